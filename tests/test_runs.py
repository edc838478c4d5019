"""`headnb-run`: refused before it starts, killed, stopped in time, resumed, failed - each with its exit code and a folder that says why."""
import dataclasses, json, os, subprocess, sys
import nbformat
import numpy as np
import pytest
from headnb.base.core import BadInput, from_dict, repo_path, to_dict
from headnb.cluster import main as command_line
from headnb.compare_runs import main as compare_line
from headnb.runs import EXIT, TEMPLATES, TrainRun, main, model_config, read_cards, read_spec

TRAIN = '{kimg: 0.024, batch: 4, snapshot_kimg: 0.008, log_every: 1, preview_kimg: 0.012, density_every: 2, r1_every: 2}'


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "Every run of this file on one thread: sums are the same bit for bit only where their parts are added in the same order."
    with pytest.MonkeyPatch.context() as m:
        m.setenv('OMP_NUM_THREADS', '1')
        m.setenv('HEADNB_QUIET', '1')
        yield


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a small data set and a specification."
    from headnb.base.camera import orbit
    from headnb.gan.data import write_dataset
    here, rng = tmp_path_factory.mktemp('runs'), np.random.default_rng(0)
    made = [dict(image=rng.integers(0, 255, (16, 16, 3), np.uint8), c=orbit(float(y))[0]) for y in np.linspace(-1, 1, 8)]
    write_dataset(here/'set.zip', made)
    write_dataset(here/'around.zip', [m | {'c': orbit(float(y))[0]} for m, y in zip(made, np.linspace(-3, 3, 8))])
    write_dataset(here/'no_cameras.zip', [{'image': m['image']} for m in made])
    write_dataset(here/'cut_out.zip', [m | {'mask': np.full((16, 16), 255, np.uint8)} for m in made])
    for name, side in (('masked', 16), ('odd_masks', 8)):
        write_dataset(here/f'{name}.zip', [m | {'c': orbit(float(y))[0], 'mask': rng.integers(0, 255, (side, side), np.uint8)} for m, y in zip(made, np.linspace(-3, 3, 8))])
    (here/'small.yaml').write_text(f'template: train\npaper: eg3d\nconfig: tiny\ndata: {here}/set.zip\ntrain: {TRAIN}\n')
    return here


def command(place, *args, kill=None):
    env = os.environ | ({'HEADNB_KILL_AT': kill} if kill else {})
    done = subprocess.run([sys.executable, '-m', 'headnb.runs', str(place/'small.yaml'), '--out', str(place/'out'), *args], env=env, cwd=repo_path(), capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout + done.stderr


def status(folder): return json.loads((folder/'status.json').read_text())


@pytest.mark.parametrize('name', TEMPLATES)
def test_template_and_dataclass_name_the_same_parameters(name):
    import papermill
    cell = papermill.inspect_notebook(str(repo_path('nbs/9_runs', f'{name}.ipynb')))
    assert set(cell) == {f.name for f in dataclasses.fields(TEMPLATES[name])} | {'out'}


@pytest.mark.parametrize('change, message', [
    ('train.kmig=2', "config.train has no parameter 'kmig'; did you mean 'kimg'?"),
    ('pappers=eg3d', "train has no parameter 'pappers'; did you mean 'paper'?"),
    ('config=tinny', "eg3d has no config 'tinny'; did you mean 'tiny'?"),
    ('paper=eg3e', "no paper 'eg3e'; did you mean 'eg3d'?"),
    ('train.batch=many', "config.train.batch is 'many' (str); expected int"),
    ('template=trian', "no template 'trian'; did you mean 'train'?"),
    ('data=data/none.zip', 'no data set at'),
    ('resolution=7', 'but 7 x 7 are expected'),
])
def test_refused_before_anything_starts(place, capsys, change, message):
    assert main([str(place/'small.yaml'), '--out', str(place/'refused'), '-p', change]) == EXIT['refused'] == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1, err
    assert not (place/'refused').exists()


TRAININGS = [n for p in sorted(repo_path('papermill_runs/paper').glob('*.yaml')) if read_spec(n := f'paper/{p.stem}')[1] == 'train']


@pytest.mark.parametrize('name', TRAININGS)
def test_a_paper_run_has_its_line_for_every_card(name):
    "It belongs to the settings of today; on each card the batch, the lazy intervals and all else are those of the run; where nothing fits, it is refused."
    from headnb.gan.train import first_difference, parts_of
    from headnb.sizing import CARDS, room_of, settings_of
    spec, sizes = from_dict(TrainRun, read_spec(name)[2]), read_cards()
    cfg = model_config(spec)
    assert name in sizes, f'python -m headnb.sizing --cards {name}'
    assert sizes[name]['settings'] == settings_of(cfg), f'python -m headnb.sizing --cards {name}'
    assert set(sizes[name]['cards']) == set(CARDS)
    for card, how in sizes[name]['cards'].items():
        room = room_of(CARDS[card]*2**30)/2**30
        if not how.get('fits', True):
            assert how['peak_gb'] > room - .01
            with pytest.raises(BadInput, match=f'{name} does not fit on {card}: the smallest micro-batch with everything made again takes'): read_spec(f'{name}@{card}')
            continue
        there = from_dict(TrainRun, read_spec(f'{name}@{card}')[2])
        cut, share = model_config(there), cfg.train.batch//spec.processes
        assert there.processes == spec.processes and how['peak_gb'] < room + .01
        assert how['micro_batch']*parts_of(cut.train, there.processes)*there.processes == cfg.train.batch and (how['micro_batch'] == share or how['micro_batch'] % getattr(cfg.D, 'mbstd_group', 1) == 0)
        assert (cut.train.micro_batch, cut.train.recompute) == (how['micro_batch'], how['recompute']) and first_difference(to_dict(cut), to_dict(cfg)) == ''


def test_lines_of_cards_are_computed_again(tmp_path):
    "The cheapest paper run as the file has it; a tiny one, with its peak as `predict` gives it."
    from headnb.sizing import predict, size_run, write_cards
    assert size_run('paper/refinenet') == read_cards()['paper/refinenet']
    write_cards(['tiny/eg3d'], tmp_path/'cards.yaml')
    line, cfg = read_cards(tmp_path/'cards.yaml')['tiny/eg3d'], model_config(TrainRun('eg3d', 'tiny'))
    assert line['cards']['12gb'] == dict(processes=1, micro_batch=cfg.train.batch, recompute='none', peak_gb=round(predict(TrainRun('eg3d', 'tiny'), cfg, cfg.train.batch, hooks=False).peak/2**30, 2))


@pytest.mark.parametrize('spec, message', [
    ('paper/eg3d@21gb', "knows no card '21gb' for paper/eg3d; did you mean '24gb'?"),
    ('paper/eg4d@24gb', "no run 'paper/eg4d'; did you mean 'paper/eg3d'?"),
    ('tiny/eg3d@24gb', "holds no 'tiny/eg3d'; did you mean 'paper/eg3d'?"),
])
def test_a_card_that_nobody_knows(capsys, spec, message):
    assert main([spec, '--dry-run']) == EXIT['refused']
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1, err


def test_a_run_as_it_fits_on_a_card(capsys):
    assert main(['paper/eg3d@12gb', '--dry-run', '-p', 'data=null']) == 0
    shown, how = json.loads(capsys.readouterr().out), read_cards()['paper/eg3d']['cards']['12gb']
    assert shown['name'] == 'paper-eg3d' and shown['parameters']['processes'] == 8
    assert {k: shown['config']['train'][k] for k in ('batch', 'micro_batch', 'recompute', 'r1_every')} == dict(batch=32, micro_batch=how['micro_batch'], recompute=how['recompute'], r1_every=16)


def test_dry_run_writes_nothing(place, capsys):
    assert main([str(place/'small.yaml'), '--out', str(place/'dry'), '--dry-run', '-p', 'train.kimg=7']) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown['config']['train']['kimg'] == 7 and len(shown['data_hash']) == 12 and not (place/'dry').exists()


def test_killed_stopped_resumed(place, capsys):
    "SIGKILL in the fourth step; resumed with no time left; resumed to the end: one folder, and the exit codes say which."
    code, text = command(place, kill='G_step:3')
    folder = place/'out'/'small'
    assert code == EXIT['killed'] == 3, text
    assert (status(folder)['status'], status(folder)['resumable']) == ('killed', True)
    code, text = command(place, '--resume', '-p', 'train.max_seconds=0')
    assert code == EXIT['resumable'] == 4, text
    assert main([str(place/'small.yaml'), '--out', str(place/'out'), '--resume', '-p', 'train.gamma=7']) == 2     # not the same run
    code, text = command(place, '--resume')
    assert code == EXIT['done'] == 0, text
    steps = [json.loads(l)['step'] for l in (folder/'metrics.jsonl').read_text().splitlines()]
    assert steps == list(range(1, 7)) and [p.name for p in (place/'out').iterdir()] == ['small']
    assert {'run.ipynb', 'report.html', 'config.json', 'environment.json', 'status.json', 'result.json', 'metrics.jsonl', 'checkpoints', 'previews'} <= {p.name for p in folder.iterdir()}
    live = next(o.data['text/html'] for c in nbformat.read(folder/'run.ipynb', 4).cells for o in c.get('outputs', []) if '<progress' in o.get('data', {}).get('text/html', ''))
    assert '0.024 of 0.024 kimg' in live and live.count('<img') == 2           # losses and a preview, in the notebook that was saved
    capsys.readouterr()
    assert command_line(['list', '--out', str(place/'out')]) == 0 and 'small  eg3d   tiny  done    0.024' in capsys.readouterr().out
    cost = json.loads((folder/'result.json').read_text())['cost']
    assert 0 < cost['kimg'] <= .012 and cost['cpu_seconds'] > 0 and cost['memory_gb'] > .1                       # of the process that ended, without its first step
    capsys.readouterr()
    assert compare_line(['cost', '--out', str(place/'out')]) == 0 and 'small  eg3d   tiny  4' in capsys.readouterr().out
    kept, env = json.loads((folder/'config.json').read_text()), json.loads((folder/'environment.json').read_text())
    assert kept['config']['train']['batch'] == 4 and len(kept['data_hash']) == 12 and 'torch' in env['packages'] and env['commit']


def test_a_paper_with_its_own_step(place, capsys):
    "The template trains PanoHead as it is: masks in the real data, corrected cameras (`make_step`), its own terms."
    small = [f'train.{k}={v}' for k, v in dict(kimg=.016, batch=4, log_every=1, preview_kimg=0, r1_every=2).items()]
    args = lambda data: ['tiny/panohead', '--out', str(place/'pano')] + [a for x in (f'data={place}/{data}', *small) for a in ('-p', x)]
    assert main(args('set.zip')) == EXIT['refused']
    assert 'the discriminator of panohead reads masks; beside' in capsys.readouterr().err
    assert main(args('masked.zip')) == 0
    rows = [json.loads(l) for l in (place/'pano'/'tiny-panohead'/'metrics.jsonl').read_text().splitlines()]
    assert len(rows) == 4 and all({'G/logistic', 'G/offset', 'D/logistic', 'offset'} <= set(r) for r in rows) and 'D/r1' in rows[-2]


def test_two_stages_of_head3d(place, capsys):
    "A face, the same face fine-tuned on pictures from all around, distillation of the one into the other: refused where something does not fit, killed and resumed."
    root, short = place/'head3d', [a for k, v in dict(kimg=.024, batch=4, log_every=1, preview_kimg=0, snapshot_kimg=.008, density_every=2, r1_every=2).items() for a in ('-p', f'train.{k}={v}')]
    face, head = root/'face', root/'head'
    assert main([str(place/'small.yaml'), '--out', str(root), '-p', 'name=face']) == 0
    assert main([str(place/'small.yaml'), '--out', str(root), '-p', 'name=head', '-p', f'data={place}/around.zip', '-p', f'start={face}', '-p', 'train.ada=true']) == 0
    (place/'distil.yaml').write_text(f'paper: head3d\nconfig: tiny\ndata: {{front: {place}/set.zip, back: {place}/around.zip}}\nteacher: {face}\nstart: {{G: {head}, D.front: {face}, D.back: {head}}}\n')
    capsys.readouterr()
    args = lambda *more: [str(place/'distil.yaml'), '--out', str(root), *short, *(a for m in more for a in ('-p', m))]
    for change, message in [(f'data.back={place}/set.zip', 'is seen from 90 degrees or more (the farthest: 57)'), (f'data.back={place}/no_cameras.zip', 'dataset.json holds no "labels"'), (f'data={place}/set.zip', 'head3d needs `data` by role: front, back'),
                            ('teacher=null', 'head3d needs a `teacher`'), ('teacher=eg3d-mini', 'the teacher does not fit the student: box_warp 0.7, the student has 1.0'), ('train.tau=45', 'tau is 45; it is an angle between 0 and pi'),
                            ('start={G: eg3d-mini, D.front: eg3d-mini}', 'start: eg3d-mini holds no D; it holds G_ema'), (f'start.G={root}/lost.safetensors', 'lost.safetensors does not exist')]:
        assert main(args(change)) == EXIT['refused'], change
        err = capsys.readouterr().err
        assert message in err and err.count('\n') == 1, err
    killed = subprocess.run([sys.executable, '-m', 'headnb.runs', *args()], env=os.environ | {'HEADNB_KILL_AT': 'D_step:3'}, cwd=repo_path(), capture_output=True, text=True, timeout=280)
    assert killed.returncode == EXIT['killed'], killed.stderr
    assert main([*args(f'teacher={head}'), '--resume']) == EXIT['refused'] and 'cannot be resumed: teacher was' in capsys.readouterr().err
    assert main([*args(), '--resume']) == 0 and main(args('name=whole')) == 0
    from headnb.gan.train import weights_of
    a, b = (weights_of(root/n) for n in ('distil', 'whole'))
    assert all((a[m][k] == b[m][k]).all() for m in a for k in a[m]) and {'front.b4.out.weight', 'back.b4.out.weight'} <= set(a['D'])
    rows = [json.loads(l) for l in (root/'distil'/'metrics.jsonl').read_text().splitlines()]
    assert ['G/logistic front' in r for r in rows] == [True, False]*3 and [any(k.startswith('D/r1') for k in r) for r in rows] == [True, True, False, False, True, True]


def test_columns_of_panohead(place, capsys):
    "Refused where something does not fit; every row of Table 2 trains, begins with an EG3D, is killed and resumed bit for bit."
    root, size = place/'pano', [a for k, v in dict(kimg=.024, batch=4, log_every=1, preview_kimg=0, snapshot_kimg=.008, r1_every=2).items() for a in ('-p', f'train.{k}={v}')]
    (place/'pano.yaml').write_text(f'paper: panohead\nconfig: tiny\ndata: {place}/masked.zip\n')
    args = lambda *more: [str(place/'pano.yaml'), '--out', str(root), *size, *(a for m in more for a in ('-p', m))]
    eg3d = ('G={planes: {channels: 24}, sampler: {depth: 1, mode: paper}, background: null, offset: null}', 'D={keys: [image, raw]}', 'train.r1_keys=[image, raw]')
    for changes, message in [((f'data={place}/around.zip',), 'reads masks; beside'), ((f'data={place}/cut_out.zip',), 'no view from behind (largest |yaw| 57 degrees)'), ((f'data={place}/odd_masks.zip',), '8 x 8 pixels, but 16 x 16 are expected'),
                             (('G.sampler.depth=0',), 'depth is 0'), (('G.sampler.depth=2',), '3 planes x 8 features x 2 slices need 48'), (('G.offset.w_dim=4',), 'one vector of 3 or 6 numbers; it makes 4'),
                             (eg3d[:2], "r1_keys names ['mask'], which D does not read"), (('paper=eg3d', 'G={background: {channels: 8}}'), "has no parameter 'background'")]:
        assert main(args(*changes)) == EXIT['refused'], changes
        err = capsys.readouterr().err
        assert message in err and err.count('\n') == 1, err
    assert main([str(place/'small.yaml'), '--out', str(root), '-p', 'name=face', '-p', 'train.kimg=0.008']) == 0
    from headnb.gan.checkpoint import open_generator
    from headnb.gan.train import weights_of
    assert main(args('name=row-eg3d', *eg3d)) == 0 and main(args('name=row-six', 'G.offset.w_dim=6', 'train.offset_batch_mean=false')) == 0
    assert open_generator(root/'row-eg3d')[0].shift(None, None) is None and open_generator(root/'row-six')[0].cfg.offset.w_dim == 6
    start = f'start={{G: {root}/face}}'
    killed = subprocess.run([sys.executable, '-m', 'headnb.runs', *args(start)], env=os.environ | {'HEADNB_KILL_AT': 'D_step:3'}, cwd=repo_path(), capture_output=True, text=True, timeout=280)
    assert killed.returncode == EXIT['killed'], killed.stderr
    assert main([*args(start), '--resume']) == 0 and main(args(start, 'name=whole')) == 0
    a, b = (weights_of(root/n) for n in ('pano', 'whole'))
    assert all((a[m][k] == b[m][k]).all() for m in a for k in a[m]) and 'residual.fc1.weight' in a['G']


def test_planes_of_a_generator(place):
    "The exchange of planes through papermill at its smallest size, and the table that is made of it."
    from headnb.gan.tables import gather, read_table, recompute, write_table
    assert main(['tiny/planes', '--out', str(place/'planes')]) == 0
    table = read_table(write_table(place/'planes.json', 'Planes', 'An untrained generator.', gather([place/'planes'/'tiny-planes'])))
    assert recompute(table) == [] and table.rows[:5] == [f'untrained: {r}' for r in ('xy from ID 2', 'xz from ID 2', 'yz from ID 2', 'none', 'all')]
    assert table.cell('untrained: none', 'ID 1').mean > .999 and {'shape of ID 2', 'chamfer to ID 1', 'normal to truth 2'} <= set(table.columns)


def test_failed(place):
    code, text = command(place, '-p', 'train.max_loss=0.001', '-p', 'name=boom')
    assert code == EXIT['failed'] == 1, text
    assert 'at step 0; no checkpoint had been written' in status(place/'out'/'boom')['why']
    assert main([str(place/'small.yaml'), '--out', str(place/'out'), '--resume', '-p', 'name=never']) == 2
