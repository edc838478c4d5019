"""Recipes of fetched data on made data of the same layout: killed at any place, shared by processes or parts of an array, submitted as jobs, always the same bytes; a changed input, a damaged piece and a damaged result are found; a wrong folder is one line.

Runs are forks of one helper process (processes.py); several processes are spawned and die by their own SIGKILL.
"""
import contextlib, io, json, os, sys
from pathlib import Path

import pytest
from processes import ROOT, apart, forked, killed, script

CLIPS = 'names: vfhq\nlandmarks: {table}\nsize: 32\nsetting: tiny\nleast: 4\nsmooth: 0.5\nmask: judge\n'
PEOPLE = 'hair: with\nsize: 24\nviews: 2\nrank: 2\nmeshes: {meshes}\n'
FFHQ = 'source: ffhq\nsize: 48\nlandmarks: known\nbox: none\npose: none\nmask: judge\nlimits: {others: 0.25, enlarge: 6}\n'
HAIR = 'source: k_hairstyle\nsize: 48\nlandmarks: none\nbox: known\npose: judge\nmask: none\nconstants: {scale: 1.75, dy: 0.09}\nlimits: {pitch: 90, roll: 90, scale: [0.01, 100.0], shift: 9.0, inside: 0.3, touch: true, enlarge: 20}\nnear: 1.1\n'


# ------------------------------------------------------------------ made data, and the runs, in a process of their own
def made(work):
    "VFHQ's, SYNHEAD100's, FFHQ's and K-hairstyle's layouts, small; -> exit code."
    import hashlib
    from PIL import Image
    from headnb.detect import Constants, judge_boxes, judge_landmarks, judge_pose, level_head, made_photo
    from headnb.photos import Known
    from headnb.recipes import made_clips, made_people
    table, gone = made_clips(work/'vfhq', 2, 2, 6, 64)
    (work/'clips.yaml').write_text(CLIPS.format(table=table)); (work/'gone.json').write_text(json.dumps(gone))
    (work/'people.yaml').write_text(PEOPLE.format(meshes=made_people(work/'people')))
    rows, wild, hair = {}, work/'ffhq'/'in-the-wild-images'/'00000', work/'hair'/'0001'
    wild.mkdir(parents=True); hair.mkdir(parents=True)
    for i in range(4):
        t = made_photo(i, (10, -20, 30, 160)[i], 0.)
        x, y, s = t['square']
        p = Known(t['rgb'], str(i))
        marks = judge_landmarks(p, [level_head(p, judge_boxes(p)[0], judge_boxes, judge_pose, Constants())])[0].points.tolist() if i < 2 else []
        Image.fromarray(t['rgb']).save(wild/f'{i:05d}.png'); Image.fromarray(t['rgb']).save(hair/f'CP{i}.jpg', quality=95)
        rows[str(i)] = dict(metadata=dict(author='somebody', license='BY'), in_the_wild=dict(file_path=f'in-the-wild-images/00000/{i:05d}.png', file_md5=hashlib.md5((wild/f'{i:05d}.png').read_bytes()).hexdigest(), face_landmarks=marks))
        (hair/f'CP{i}.json').write_text(json.dumps(dict(horizontal=str(i), polygon1=[dict(x=x + a*s/4, y=y + b*s/4) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))])))
    rows['2']['in_the_wild']['file_md5'] = 'f'*32
    (work/'ffhq'/'ffhq-dataset-v2.json').write_text(json.dumps(rows)); (hair/'CP3.json').write_text('{')
    (work/'ffhq.yaml').write_text(FFHQ); (work/'hair.yaml').write_text(HAIR)
    return 0


def run(work, kind, spec, data, out, *args, kill=None): # -> wait status; what it says goes to OUT.txt
    def job():
        from headnb.recipes import main
        with open(work/f'{out}.txt', 'a') as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f): return main(kind, [str(work/spec), str(work/out), '--data', str(work/data), *args])
    return forked(job, kill)


def pieces(work, out): return sorted(p.name for p in (work/f'{Path(out).stem}_report'/'work').rglob('*') if p.suffix in ('.npz', '.json') and not p.name.startswith('report'))


def worker(work):
    "All runs."
    import headnb.recipes, headnb.gan.scenes, headnb.field.heads, PIL.PngImagePlugin, tqdm.auto  # noqa: F401  once, before the forks
    clips = lambda out, *a, **k: run(work, 'clips', 'clips.yaml', 'vfhq', out, *a, **k)
    report = dict(made=forked(lambda: made(work)), whole=clips('whole.zip'))
    of = lambda kind: [p.name for p in sorted((work/'whole_report'/'work').rglob(f'{kind}_*'), key=lambda p: p.stat().st_mtime_ns)]     # in the order in which they were made
    kills = [f'unit:{of("detect")[1]}', f'named:{of("detect")[2]}', f'unit:{of("part")[0]}', f'named:{of("part")[0]}', f'unit:{of("mask")[0]}', f'named:{of("mask")[0]}']
    report['kills'] = [[k, clips('killed.zip', kill=k), pieces(work, 'killed.zip'), (work/'killed.zip').exists()] for k in kills] + [['', clips('killed.zip'), pieces(work, 'killed.zip'), True]]
    report['parts'] = [clips('parts.zip', '--part', p) for p in ('1/2', '0/2')*3] + [clips('parts.zip')]
    report['two'] = [clips('two.zip', '--workers', '2', kill=kills[0]), clips('two.zip', '--workers', '2')]
    report['again'] = clips('whole.zip')
    frame = work/'vfhq'/sorted(p.name for p in (work/'vfhq').iterdir())[1]/'00000002.png'
    before = frame.read_bytes()
    frame.write_bytes((frame.parent/'00000003.png').read_bytes())
    report['changed'] = [clips('parts.zip'), (work/'parts.zip').read_bytes() != (work/'whole.zip').read_bytes()]
    frame.write_bytes(before)
    report['back'] = clips('parts.zip')
    piece = work/'two_report'/'work'/of('mask')[0]
    piece.write_bytes(piece.read_bytes()[:-5]); (work/'two.zip').write_bytes(b'PK')
    report['damaged'] = clips('two.zip')
    report['people'] = [run(work, 'synhead', 'people.yaml', 'people', 'people.zip', *a) for a in (('--part', '0/2'), ('--part', '1/2'), ())] + [run(work, 'synhead', 'people.yaml', 'people', 'one.zip')]
    report['ffhq'] = [run(work, 'photos', 'ffhq.yaml', 'ffhq', 'ffhq_parts.zip', *a) for a in (('--part', '1/2'), ('--part', '0/2'), ('--part', '1/2'), ())] + [run(work, 'photos', 'ffhq.yaml', 'ffhq', 'ffhq_one.zip', '--workers', '2')]
    report['hair'] = run(work, 'photos', 'hair.yaml', 'hair', 'hair_set.zip')
    (work/'report.json').write_text(json.dumps(report))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('recipes'), timeout=1500)


def same(work, a, b, masks=True):
    "Sets and manifests: the same bytes, but for the name of the set."
    for k in ('', '_masks')[:1 + masks]: assert (work/f'{a}{k}.zip').read_bytes() == (work/f'{b}{k}.zip').read_bytes()
    seals = [json.loads((work/f'{x}_report'/'manifest.json').read_text()) for x in (a, b)]
    assert all(seals[0][k] == seals[1][k] for k in ('inputs', 'pieces')) and [*seals[0]['results'].values()] == [*seals[1]['results'].values()]


def told(work, out): return (work/f'{out}.txt').read_text()


# ------------------------------------------------------------------ clips
def test_clips_whole(runs):
    "What is left out has its reason; the loaders read what is there; a second run does nothing."
    from headnb.gan.clip_pairs import ClipPairs
    from headnb.gan.data import HeadDataset
    from headnb.gan.scenes import StoredClips, clips_of
    work, report, stderr = runs
    assert report['made'] == report['whole'] == report['again'] == 0, stderr[-3000:] + told(work, 'whole.zip')
    r = json.loads((work/'whole_report'/'report.json').read_text())
    assert {n: x['reason'] for n, x in r['rejected'].items()} == json.loads((work/'gone.json').read_text()) and r['clips'] == 4 and r['people'] == 2
    ds = HeadDataset(work/'whole.zip')
    rows, who = clips_of(ds)
    assert len(ClipPairs(ds, rows).clips) == len(StoredClips(ds)) == len(rows) == 3 and set(who) == {0, 1}                 # the fourth kept too few frames
    assert ds[0]['mask'].shape == (1, 32, 32) and ds.drive.shape[1] == 144
    text = (work/'whole_report'/'report.md').read_text()
    assert all(n in text for n in r['rejected']) and all(f'| {k} |' in text for k in ('detect', 'fit', 'mask'))
    assert 'a second' in told(work, 'whole.zip') and 'nothing to do' in told(work, 'whole.zip')
    assert (work/'whole_report'/'contact.png').stat().st_size > 2000


def test_clips_killed_anywhere(runs):
    "Each kill leaves what was finished, never a set; in the end the bytes of one never killed, and no leftovers."
    work, report, stderr = runs
    *kills, last = report['kills']
    for at, status, left, there in kills:
        assert killed(status) and not there, (at, stderr[-2000:])
        assert (at.split(':', 1)[1] in left) == at.startswith('named'), at
    assert [len(x[2]) for x in kills] == sorted(len(x[2]) for x in kills) and last[1] == 0 and last[2] == pieces(work, 'whole.zip')
    same(work, 'killed', 'whole')
    assert not list((work/'killed_report').rglob('.*.tmp'))


def test_clips_in_parts_and_processes(runs):
    "Three passes of two parts leave nothing to the run that assembles; a killed worker is one line."
    work, report, stderr = runs
    assert report['parts'] == [0]*7, stderr[-3000:] + told(work, 'parts.zip')
    first, *_ = told(work, 'parts.zip').split('run it once without --part')
    assert 'pieces of other parts are missing' in first
    assert not killed(report['two'][0]) and os.WEXITSTATUS(report['two'][0]) == 1 and 'a worker was killed' in told(work, 'two.zip') and 'Traceback' not in told(work, 'two.zip') and report['two'][1] == 0
    for k in ('', '_masks'): assert (work/f'parts{k}.zip').read_bytes() == (work/f'whole{k}.zip').read_bytes()


def test_a_changed_input_is_found(runs):
    "One frame is another picture: it is named, its clip is made anew, and with the old frame the old bytes come back."
    work, report, stderr = runs
    assert report['changed'] == [0, True] and report['back'] == 0
    text = told(work, 'parts.zip')
    assert text.count('1 inputs have changed since: Clip+made') == 2 and 'detect: 1 made' in text
    same(work, 'parts', 'whole')


def test_damage_is_found(runs):
    work, report, stderr = runs
    assert report['damaged'] == 0 and 'had damaged pieces, made anew: mask_' in told(work, 'two.zip')
    same(work, 'two', 'whole')


# ------------------------------------------------------------------ people, photos
def test_people(runs):
    "SYNHEAD100's layout in two parts and at once: the same bytes; codes of the meshes, one broken picture listed."
    from headnb.gan.data import HeadDataset
    work, report, stderr = runs
    assert report['people'] == [0]*4, stderr[-3000:] + told(work, 'people.zip')
    same(work, 'people', 'one')
    r = json.loads((work/'one_report'/'report.json').read_text())
    assert list(r['rejected']) == ['split_24/fs_002/jawOpen/0001.png'] and r['accepted'] == 207
    ds = HeadDataset(work/'one.zip')
    assert ds.drive.shape == (207, 66) and ds[0]['mask'].shape == (1, 24, 24) and (work/'one_bilinear.npz').exists()


def test_ffhq(runs):
    "FFHQ's tree with its table: parts and processes give the same bytes; a wrong MD5 and a photo without landmarks are listed; the licence travels along."
    from headnb.gan.data import HeadDataset
    work, report, stderr = runs
    assert report['ffhq'] == [0]*5, stderr[-3000:] + told(work, 'ffhq_parts.zip')
    same(work, 'ffhq_parts', 'ffhq_one')
    r = json.loads((work/'ffhq_one_report'/'report.json').read_text())
    assert {n[-9:]: x['reason'] for n, x in r['rejected_photos'].items()} == {'00002.png': 'broken', '00003.png': 'none'} and r['stages'] == {'stage 1': 2}
    ds = HeadDataset(work/'ffhq_one.zip')
    assert all(ds.info[n]['license'] == 'BY' for n in ds.names)
    assert {n[-9:] for n in json.loads((work/'ffhq_one_report'/'manifest.json').read_text())['inputs']} == {f'{i:05d}.png' for i in range(4)}


def test_k_hairstyle(runs):
    "K-hairstyle's tree: boxes from the outlines in the JSON files, poses by the judge; a damaged JSON is listed."
    work, report, stderr = runs
    assert report['hair'] == 0, stderr[-3000:] + told(work, 'hair_set.zip')
    r = json.loads((work/'hair_set_report'/'report.json').read_text())
    assert r['rejected_photos']['0001/CP3.jpg']['reason'] == 'broken' and r['stages'] == {'stage 2': 3}


# ------------------------------------------------------------------ the pipeline alone, the command
SEVERAL = '''
import operator, sys
from pathlib import Path
from headnb.gan.pipeline import Bench, work_through
if __name__ == '__main__': print(work_through(operator.methodcaller('upper'), {f'{i}.txt': b'unit' for i in range(6)}, Bench(Path(sys.argv[1])), 2))
'''


def test_a_worker_dies(tmp_path):
    "One of two processes is killed: one line; the next run makes the rest."
    (tmp_path/'run.py').write_text(SEVERAL)
    code = f'import os, runpy, sys; os.environ["HEADNB_KILL_AT"] = sys.argv[2]; sys.argv = [{str(tmp_path/"run.py")!r}, sys.argv[1]]; runpy.run_path(sys.argv[0], run_name="__main__")'
    r = script(code, tmp_path/'bench', 'unit:3.txt')
    assert r.returncode == 1 and 'a worker was killed' in r.stderr
    r = script(code, tmp_path/'bench', '')
    assert r.returncode == 0 and 'were there' in r.stdout and {p.name for p in (tmp_path/'bench').glob('*.txt')} == {f'{i}.txt' for i in range(6)}


@pytest.mark.parametrize('kind, spec, data, say', [
    ('clips', 'data_recipes/vfhq/vfhq.yaml', 'nowhere', 'no data set at'), ('clips', 'data_recipes/vfhq/rendered.yaml', 'flat', 'every clip is a folder of frames'), ('clips', 'data_recipes/vfhq/rendered.yaml', 'named', 'not named as VFHQ'),
    ('synhead', 'data_recipes/synhead100/synhead100.yaml', 'flat', 'no pictures like split_512'), ('synhead', 'data_recipes/synhead100/synhead100.yaml', 'nowhere', 'no data set at'),
    ('photos', 'data_recipes/photos/ffhq.yaml', 'flat', 'no ffhq-dataset'), ('photos', 'data_recipes/photos/k_hairstyle.yaml', 'flat', 'no JSON files of K-hairstyle'), ('photos', 'data_recipes/photos/rendered.yaml', 'nowhere', 'no data set at'),
    ('flame', 'data_recipes/flame/flame.yaml', 'flat', 'holds no model'), ('flame', 'data_recipes/flame/flame.yaml', 'nowhere', 'no model at'), ('ict', 'data_recipes/ict_facekit/ict_facekit.yaml', 'flat', 'no generic_neutral_mesh.obj'), ('ict', 'data_recipes/ict_facekit/ict_facekit.yaml', 'nowhere', 'no model at')])
def test_a_wrong_folder_is_one_line(tmp_path, kind, spec, data, say):
    import numpy as np
    from PIL import Image
    from headnb.recipes import main
    for place in ('flat', 'named/anna'):
        (tmp_path/place).mkdir(parents=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path/place/'0.png')
    with contextlib.redirect_stderr(io.StringIO()) as e: code = main(kind, [str(ROOT/spec), str(tmp_path/('o.npz' if kind in ('flame', 'ict') else 'o.zip')), '--data', str(tmp_path/data)])
    assert code == 2 and say in e.getvalue() and e.getvalue().count('\n') == 1, e.getvalue()
    assert not (tmp_path/'o.zip').exists() and not (tmp_path/'o.npz').exists()


def test_models(tmp_path):
    "ICT-FaceKit and FLAME by their make.py; a second run does nothing; a damaged result is made anew."
    import importlib.util
    import numpy as np
    from headnb.field.flame import read_flame
    from headnb.field.meshes import made_ict
    from headnb.field.rig import Rig, load_head
    from headnb.recipes import main
    made_ict(tmp_path/'ict', 2)
    with contextlib.redirect_stdout(io.StringIO()) as o:
        for _ in range(2): assert main('ict', [str(ROOT/'data_recipes'/'ict_facekit'/'ict_facekit.yaml'), str(tmp_path/'ict.npz'), '--data', str(tmp_path/'ict')]) == 0
        whole = (tmp_path/'ict.npz').read_bytes()
        (tmp_path/'ict.npz').write_bytes(whole[:99])
        assert main('ict', [str(ROOT/'data_recipes'/'ict_facekit'/'ict_facekit.yaml'), str(tmp_path/'ict.npz'), '--data', str(tmp_path/'ict')]) == 0
    assert o.getvalue().count('nothing to do') == 1 and (tmp_path/'ict.npz').read_bytes() == whole
    head = load_head()
    (tmp_path/'in').mkdir()
    np.savez(tmp_path/'in'/'generic_model.npz', v_template=head.v_template, f=head.faces, shapedirs=head.shapedirs[..., :3], J_regressor=head.J_regressor, weights=head.weights, kintree_table=np.array([head.parents, range(5)]))
    (tmp_path/'flame.yaml').write_text('official: false\n')
    assert main('flame', [str(tmp_path/'flame.yaml'), str(tmp_path/'flame.npz'), '--data', str(tmp_path/'in'/'generic_model.npz')]) == 0
    assert Rig(read_flame(tmp_path/'flame.npz', official=False), n_shape=3).n_shape == 3
    for name in ('photos', 'vfhq', 'synhead100', 'flame', 'ict_facekit'):
        spec = importlib.util.spec_from_file_location(f'{name}_make', ROOT/'data_recipes'/name/'make.py')
        module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
        assert callable(module.main) and (ROOT/'data_recipes'/name/'README.md').is_file()


def test_every_specification_reads():
    from headnb.photos import load_cfg
    from headnb.recipes import KINDS
    for folder, kind in dict(vfhq='clips', synhead100='synhead', flame='flame', ict_facekit='ict').items():
        for p in (ROOT/'data_recipes'/folder).glob('*.yaml'): load_cfg(p, KINDS[kind][0])


def test_jobs_of_this_machine(runs, tmp_path):
    "Two jobs for the pass and one that assembles, by submitit's local executor: the same bytes."
    pytest.importorskip('submitit')
    work, _, _ = runs
    from headnb.recipes import main
    with contextlib.redirect_stdout(io.StringIO()) as o: assert main('synhead', [str(work/'people.yaml'), str(work/'jobs.zip'), '--data', str(work/'people'), '--jobs', '2', '--executor', 'local-jobs', '-j', 'time=10']) == 0
    logs = '\n'.join(p.read_text()[-500:] for p in (work/'jobs_jobs').glob('*.err'))
    assert 'pass 1: 1 jobs' in o.getvalue() and (work/'jobs.zip').exists(), logs
    same(work, 'jobs', 'one')


if __name__ == '__main__': worker(Path(sys.argv[1]))
