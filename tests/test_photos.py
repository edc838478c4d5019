"""A folder of photos: every kind of failure has its reason, a killed run goes on, nothing is done twice, hostile containers and ONNX files are refused."""
import json, os, signal, subprocess, sys, zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import headnb.photos as photos
from headnb.base.core import BadInput, repo_path
from headnb.detect import Constants, Head, OnnxBoxes, OnnxPose, PoseCfg, angles_of, judge_boxes, judge_landmarks, judge_pose, level_head, made_photo, pose_of
from headnb.gan.data import HeadDataset
from headnb.photos import PhotosCfg, Rejected, detectors, made_folder, main, photo_set, read_known
from processes import script

torch.set_num_threads(1)
GIVEN = Constants(1.75, 0., .09)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Six good photos and every kind of failure, through everything once."
    d = tmp_path_factory.mktemp('photos')
    truth, reasons = made_folder(d/'in', 6)
    cfg = PhotosCfg(photos=str(d/'in'), size=64, landmarks='judge', constants=GIVEN)
    return d, truth, reasons, cfg, photo_set(d/'out.zip', cfg)


def test_every_failure_has_its_reason(made):
    d, truth, reasons, cfg, report = made
    assert {n: r['reason'] for n, r in report['rejected_photos'].items()} == reasons
    assert set(reasons.values()) >= {'broken', 'small', 'colour', 'duplicate', 'near', 'none', 'several', 'cut', 'limits'}
    assert set(report['accepted_photos']) == set(truth) and report['photos'] == len(truth) + len(reasons)
    text = (d/'out_report'/'report.md').read_text()
    assert all(n in text for n in reasons) and 'Traceback' not in text
    assert Image.open(d/'out_report'/'contact.png').size[0] > 400


def test_the_set_opens_with_masks_and_cameras(made):
    d, truth, _, cfg, report = made
    ds = HeadDataset(d/'out.zip')
    assert len(ds) == len(truth) and ds[0]['image'].shape == (3, 64, 64) and ds[0]['mask'].shape == (1, 64, 64)
    for i, name in enumerate(sorted(truth)):
        info, t = ds.info[ds.names[i]], truth[name]
        assert info['photo'] == name and abs((info['yaw'] - t['yaw'] + 180) % 360 - 180) < 40 and abs(info['turned'] - t['roll']) < 15
        assert np.hypot(*(np.array(info['square'][:2]) - t['square'][:2])) < .15*t['square'][2] and .7 < info['square'][2]/t['square'][2] < 1.4
        M = ds.labels[i, :16].view(4, 4)
        assert torch.allclose(M[:3, 3], -2.7*M[:3, 2], atol=1e-4)                       # 2.7 from the origin, looking at it
    assert ds.meta['made_by'] == 'headnb.photos' and report['stages']['stage 2'] >= 1 and report['stages']['stage 1'] >= 2


def test_a_second_run_does_nothing(made):
    d, _, _, cfg, _ = made
    before = {p.name: p.stat().st_mtime_ns for p in (*d.glob('out*.zip'), d/'out_report'/'report.json')}
    assert photo_set(d/'out.zip', cfg)['work'] == dict(looked=0, cut=0, assembled=False)
    assert before == {p.name: p.stat().st_mtime_ns for p in (*d.glob('out*.zip'), d/'out_report'/'report.json')}


KILLED = '''
import os, signal, sys, torch
torch.set_num_threads(1)
import headnb.photos as P
from processes import dying
where, n = sys.argv[3], int(sys.argv[4])
if where == 'look': P.look = dying(P.look, n)
if where == 'crop': P.crop = dying(P.crop, n)
if where == 'publish':                                          # the masks have appeared, the pictures are about to
    replace = os.replace
    os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if str(b) == sys.argv[2] else replace(a, b)
P.photo_set(sys.argv[2], P.PhotosCfg(photos=sys.argv[1], size=64, landmarks='judge', constants=P.Constants(1.75, 0., .09)))
'''


def test_killed_anywhere_it_goes_on(made, tmp_path):
    "SIGKILL while looking, while cutting, and between the two archives: no half archive, no work twice, the same bytes in the end."
    d, truth, _, cfg, _ = made
    src, out = tmp_path/'in', tmp_path/'out.zip'
    src.mkdir()
    for n in sorted(truth)[:3]: (src/n).write_bytes((d/'in'/n).read_bytes())
    run = lambda where, n: script(KILLED, src, out, where, n).returncode
    count = lambda kind: len(list((tmp_path/'out_report'/'work').glob(f'{kind}_*')))
    assert run('look', 1) == -signal.SIGKILL and (count('look'), count('crop'), out.exists()) == (1, 0, False)
    assert run('crop', 2) == -signal.SIGKILL and (count('look'), count('crop'), out.exists()) == (3, 2, False)
    assert run('publish', 0) == -signal.SIGKILL and count('crop') == 3 and (tmp_path/'out_masks.zip').exists() and not out.exists() and not (tmp_path/'out_report'/'report.json').exists()
    assert photo_set(out, replace(cfg, photos=str(src)))['work'] == dict(looked=0, cut=0, assembled=True)
    assert photo_set(tmp_path/'again.zip', replace(cfg, photos=str(src)))['work'] == dict(looked=3, cut=3, assembled=True)
    for k in ('', '_masks'): assert (tmp_path/f'out{k}.zip').read_bytes() == (tmp_path/f'again{k}.zip').read_bytes()


def test_hostile_containers(tmp_path):
    picture = tmp_path/'p.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(picture)
    for name in ('../out.png', '/etc/out.png', 'a/../../b.png', 'C:\\x.png'):
        with zipfile.ZipFile(tmp_path/'bad.zip', 'w') as z: z.write(picture, 'ok.png'); z.writestr(name, b'x')
        with pytest.raises(BadInput, match='leaves the folder'): photo_set(tmp_path/'o.zip', PhotosCfg(photos=str(tmp_path/'bad.zip'), landmarks='judge'))
    (tmp_path/'half.zip').write_bytes((tmp_path/'bad.zip').read_bytes()[:100])
    with pytest.raises(BadInput, match='not a complete zip'): photo_set(tmp_path/'o.zip', PhotosCfg(photos=str(tmp_path/'half.zip'), landmarks='judge'))
    (tmp_path/'linked').mkdir(); (tmp_path/'linked'/'a.png').symlink_to(picture)
    with pytest.raises(BadInput, match='a link'): photo_set(tmp_path/'o.zip', PhotosCfg(photos=str(tmp_path/'linked'), landmarks='judge'))
    (tmp_path/'odd').mkdir(); (tmp_path/'odd'/'a|b\n.png').write_bytes(picture.read_bytes()[:50])
    with pytest.raises(BadInput, match='not one of 1 photos'): photo_set(tmp_path/'o.zip', PhotosCfg(photos=str(tmp_path/'odd'), landmarks='judge'))
    assert 'a\\|b .png' in (tmp_path/'o_report'/'report.md').read_text() and not (tmp_path/'o.zip').exists()


def test_mistakes_of_the_whole_folder(made, tmp_path):
    d, _, _, cfg, _ = made
    (tmp_path/'empty').mkdir(); (tmp_path/'mine').mkdir()
    for kw, out, why in ((dict(photos=str(d/'inn')), tmp_path/'o', "did you mean 'in'"), (dict(photos=str(tmp_path/'empty')), tmp_path/'o', 'no photos'), ({}, d/'in'/'o.zip', 'lies inside'), ({}, tmp_path/'mine', 'not made by this recipe'),
                         (dict(box='boxes.onnx'), tmp_path/'o', 'no ONNX file'), (dict(landmarks='dlob'), tmp_path/'o', "did you mean 'dlib'"), (dict(landmarks='none', pose='none'), tmp_path/'o', 'nothing can find a head'), (dict(source='fhq'), tmp_path/'o', "did you mean 'ffhq'"), (dict(size=9), tmp_path/'o', 'size is 9')):
        with pytest.raises(BadInput, match=why): photo_set(out, replace(cfg, **kw))


def test_a_failing_detector_is_a_rejection_and_is_asked_again(made, tmp_path):
    d, truth, _, cfg, _ = made
    (tmp_path/'in').mkdir()
    for n in sorted(truth)[:2]: (tmp_path/'in'/n).write_bytes((d/'in'/n).read_bytes())
    eyes = detectors(cfg)
    def sometimes(photo, square=None):
        if photo.name == 'p000.png': raise ValueError('out of memory')
        return good(photo, square)
    good, eyes.box = eyes.box, sometimes
    r = photo_set(tmp_path/'o', replace(cfg, photos=str(tmp_path/'in')), eyes)
    assert r['rejected_photos']['p000.png'] == dict(reason='failed', detail='ValueError: out of memory') and r['accepted'] == 1
    r = photo_set(tmp_path/'o', replace(cfg, photos=str(tmp_path/'in')))
    assert r['work'] == dict(looked=1, cut=1, assembled=True) and len(HeadDataset(tmp_path/'o')) == 2      # a folder as output, replaced as a whole


def test_masks_of_ones_own(tmp_path):
    "Silhouettes give box and mask; no face, no landmarks: all is stage 2 with given constants."
    (tmp_path/'in').mkdir(); (tmp_path/'masks').mkdir()
    for i, yaw in enumerate((0, 170)):
        t = made_photo(60 + i, yaw, 10.)
        Image.fromarray(t['rgb']).save(tmp_path/'in'/f'{i}.png'); Image.fromarray(t['mask']).save(tmp_path/'masks'/f'{i}.png')
    Image.fromarray(t['rgb'][:200]).save(tmp_path/'in'/'2.png'); Image.fromarray(t['mask']).save(tmp_path/'masks'/'2.png')        # the mask is of another size
    Image.fromarray(made_photo(62, 90, 0.)['rgb']).save(tmp_path/'in'/'3.png')                                                        # no mask
    cfg = PhotosCfg(photos=str(tmp_path/'in'), masks=str(tmp_path/'masks'), size=64, landmarks='none', box='mask', mask='given', constants=GIVEN)
    r = photo_set(tmp_path/'o.zip', cfg)
    assert {n: v['reason'] for n, v in r['rejected_photos'].items()} == {'2.png': 'broken', '3.png': 'none'} and r['stages'] == {'stage 2': 2}
    m = HeadDataset(tmp_path/'o.zip')[1]['mask'].float()
    assert .2 < (m > 127).float().mean() < .9
    with pytest.raises(BadInput, match='2 no constants for boxes'): photo_set(tmp_path/'p.zip', replace(cfg, constants=None))


# ------------------------------------------------------------------ ONNX files, made by hand
def packed(v):
    out = bytearray()
    while v > 127: out.append(v & 127 | 128); v >>= 7
    return bytes([*out, v])


def number(k, v): return packed(k << 3) + packed(v)
def message(k, v): v = v.encode() if isinstance(v, str) else v; return packed(k << 3 | 2) + packed(len(v)) + v
def tensor(name, a): return b''.join(number(1, d) for d in a.shape) + number(2, 1) + message(9, np.asarray(a, '<f4').tobytes()) + message(8, name)
def port(name, shape): return message(1, name) + message(2, message(1, number(1, 1) + message(2, b''.join(message(1, number(1, d)) for d in shape))))
def node(kind, i, o): return b''.join(message(1, n) for n in i) + b''.join(message(2, n) for n in o) + message(4, kind)


def constant_net(path, *rows, side=32): # a network that gives these numbers, whatever it sees
    steps, data, outs = [node('GlobalAveragePool', ['x'], ['a']), node('Flatten', ['a'], ['f'])], [], []
    for i, b in enumerate(np.atleast_1d(r).astype(np.float32) for r in rows):
        steps += [node('MatMul', ['f', f'W{i}'], [f'm{i}']), node('Add', [f'm{i}', f'b{i}'], [f'y{i}'])]
        data += [tensor(f'W{i}', np.zeros((3, len(b)), np.float32)), tensor(f'b{i}', b)]; outs.append(port(f'y{i}', (1, len(b))))
    graph = b''.join(message(1, s) for s in steps) + message(2, 'made') + b''.join(message(5, t) for t in data) + message(11, port('x', (1, 3, side, side))) + b''.join(message(12, o) for o in outs)
    path.write_bytes(number(1, 8) + message(8, message(1, '') + number(2, 13)) + message(7, graph))
    return str(path)


def test_onnx_detectors_run_the_recipe(tmp_path):
    "Box and pose by ONNX files: the crop is where the box says, the camera where the pose says."
    pytest.importorskip('onnxruntime')
    (tmp_path/'in').mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)).save(tmp_path/'in'/'a.png')
    box, pose = constant_net(tmp_path/'box.onnx', [10, 4, 18, 12, .9, 0]), constant_net(tmp_path/'pose.onnx', [150, -10, 0])
    cfg = PhotosCfg(photos=str(tmp_path/'in'), size=32, landmarks='none', box=box, pose=pose, mask='none', constants=Constants(1.5, 0., .1), limits=photos.Limits(inside=.5, shift=9., scale=(.01, 9.)))
    r = photo_set(tmp_path/'o.zip', cfg)
    a = r['accepted_photos']['a.png']
    assert a['stage'] == 2 and abs(a['yaw'] - 150) < .1 and abs(a['pitch'] + 10) < .1 and r['detectors']['box'].startswith('box (')
    assert HeadDataset(tmp_path/'o.zip').source.names and not (tmp_path/'o_masks.zip').exists()
    found = OnnxBoxes(box)(photos.Photo(np.zeros((64, 128, 3), np.uint8), ''))
    assert np.allclose(found, [[40, 16, 72, 48, .9]], atol=1e-3)
    bins = OnnxPose(constant_net(tmp_path/'bins.onnx', *(99*np.eye(n)[k] for n, k in ((120, 70), (66, 33), (66, 30)))), PoseCfg(signs=(-1., 1., 1.)))
    assert np.allclose(angles_of(bins(np.zeros((64, 64, 3), np.uint8))), [-30, 0, -9], atol=1e-3)


def test_onnx_files_that_are_none(tmp_path):
    (tmp_path/'x.onnx').write_bytes(b'PK no model')
    with pytest.raises(BadInput, match='not an ONNX file'): detectors(PhotosCfg(landmarks='judge', box=str(tmp_path/'x.onnx')))


def test_collections(made, tmp_path):
    "FFHQ's landmarks serve stage 1 without dlib; a wrong MD5 is a rejection; author and licence travel along."
    d, truth, _, cfg, _ = made
    name = 'p000.png'
    p = photos.Known(truth[name]['rgb'], name)
    head = level_head(p, judge_boxes(p)[0], judge_boxes, judge_pose, Constants())
    points = judge_landmarks(p, [head])[0].points
    wild = tmp_path/'ffhq'/'in-the-wild-images'/'00000'; wild.mkdir(parents=True)
    for i in range(2): (wild/f'0000{i}.png').write_bytes((d/'in'/f'p00{i}.png').read_bytes())
    row = lambda i, md5, pts: dict(metadata=dict(author='somebody', license='BY'), in_the_wild=dict(file_path=f'in-the-wild-images/00000/0000{i}.png', file_md5=md5, face_landmarks=pts))
    (tmp_path/'ffhq'/'ffhq-dataset-v2.json').write_text(json.dumps({'0': row(0, None, points.tolist()), '1': row(1, 'f'*32, [])}))
    r = photo_set(tmp_path/'f.zip', PhotosCfg(photos=str(tmp_path/'ffhq'), source='ffhq', size=64, landmarks='known', box='none', pose='none'))
    assert r['stages'] == {'stage 1': 1} and [v['reason'] for v in r['rejected_photos'].values()] == ['broken']
    assert HeadDataset(tmp_path/'f.zip').info['00000/img00000000.png']['author'] == 'somebody'
    q, t = r['accepted_photos']['in-the-wild-images/00000/00000.png']['square'], truth[name]['square']
    assert np.hypot(q[0] - t[0], q[1] - t[1]) < .1*t[2]
    hair = tmp_path/'hair'; hair.mkdir()
    for i, text in enumerate((json.dumps({'polygon1': [{'x': 60, 'y': 40}, {'x': 200, 'y': 40}, {'x': 200, 'y': 220}], 'horizontal': 170}), '{', json.dumps({'polygon1': [[1, 'a'], [2, 3], [5, None]]}))):
        (hair/f'{i}.json').write_text(text); (hair/f'{i}.png').write_bytes((d/'in'/f'p00{i}.png').read_bytes())
    source = photos.open_photos(PhotosCfg(photos=str(hair), source='k_hairstyle'))
    assert read_known(source, '0.png').boxes and read_known(source, '0.png').info == {'horizontal': 170} and read_known(source, '2.png').boxes == ()
    with pytest.raises(Rejected, match='not JSON'): read_known(source, '1.png')


def test_command_line_and_specs(made, tmp_path, capsys):
    d, truth, _, cfg, _ = made
    for p in repo_path('data_recipes', 'photos').glob('*.yaml'): photos.load_cfg(p)
    recipe = str(repo_path('data_recipes', 'photos', 'make.py'))
    (tmp_path/'in').mkdir(); (tmp_path/'in'/'a.png').write_bytes((d/'in'/'p000.png').read_bytes())
    told = tmp_path/'told.json'; told.write_text(json.dumps(dict(constants=dict(scale=1.7))))
    env = dict(os.environ, HEADNB_QUIET='1')
    r = subprocess.run([sys.executable, recipe, str(repo_path('data_recipes', 'photos', 'rendered.yaml')), str(tmp_path/'o.zip'), '--photos', str(tmp_path/'in'), '--constants', str(told), '--size', '48'], capture_output=True, text=True, env=env)
    assert r.returncode == 0 and '1 of 1 photos' in r.stdout, r.stdout + r.stderr
    assert HeadDataset(tmp_path/'o.zip')[0]['image'].shape == (3, 48, 48)
    for args, why in (([str(tmp_path/'nowhere'), 'o.zip', '--landmarks', 'judge'], 'no data set at'), (['-', 'o.zip'], 'give a folder'), (['-', 'o.zip', '--spec', str(tmp_path/'no.yaml')], 'no.yaml'), ([str(tmp_path/'in'), 'o.zip', '--constants', str(tmp_path/'in'/'a.png')], 'is not JSON')):
        assert main(args) == 2 and why in capsys.readouterr().err


def test_records_decide_the_same_way():
    "The limits of the release, on records made by hand."
    head = Head(50, 50, 30, 0., pose_of(150, 0, 0).tolist(), (35, 35, 65, 65, 1.), (1., 0.))
    def why(**kw):
        try: return photos.decide(dict(face=None, head=replace(head, **kw), others=0, size=(100, 100)), photos.Limits(), GIVEN, 64)['stage']
        except Rejected as e: return e.reason
    assert why() == 2 and why(R=pose_of(150, 81, 0).tolist()) == 'limits' and why(R=pose_of(150, 0, 51).tolist()) == 'limits' and why(R=pose_of(150, 79, 0).tolist()) == 2
    assert [why(slip=s) for s in ((.69, 0), (1.31, 0), (.71, 0), (1, 1.01))] == ['limits', 'limits', 2, 'limits']
    assert why(size=5.) == 'small' and why(box=(0, 35, 30, 65, 1.)) == 'cut'
