"""The recipes of the rendered data sets: a few pictures of each."""
import os, random
from dataclasses import replace
import numpy as np, pytest, torch
from headnb.base.core import repo_path
from headnb.base.camera import yaw_pitch
from headnb.gan.data import HeadDataset
from processes import recipe

HERE = repo_path('data_recipes', 'anny_heads')
SPECS = sorted(p for p in HERE.glob('*.yaml') if '_' in p.stem)


@pytest.fixture(scope='module')
def make(): return recipe('anny_heads')


@pytest.mark.parametrize('path', SPECS, ids=lambda p: p.stem)
def test_specs_are_valid(make, path):
    s = make.load_spec(path)
    assert make.total(s) >= 1000
    if path.stem.startswith('multiview'): assert s.people == 50 and not s.hats and not s.specs and s.background == 'white'
    if path.stem.startswith('clips'): assert s.people*s.clips >= 100 and s.frames > 1


@pytest.mark.parametrize('kind', ['frontal', 'full360', 'multiview', 'expressions', 'clips'])
def test_a_few_pictures_of_each(make, tmp_path, kind):
    out = tmp_path/f'{kind}.zip'
    spec = HERE/f'{kind}_mini.yaml' if kind != 'expressions' else HERE.parent/'synhead'/'mini.yaml'
    assert make.main([str(spec), str(out), '--count', '4', '--size', '32', '--workers', '1']) == 0
    d, t = HeadDataset(out), np.load(tmp_path/f'{kind}_truth.npz')
    assert len(d) == 4 and d[0]['image'].shape == (3, 32, 32) and {'mask', 'depth', 'c'} <= set(d[0])
    assert d.meta['multi_view'] == (kind not in ('frontal', 'full360')) and t['shape'].shape == (4, 80) and t['landmarks'].shape == (4, 68, 2)
    error = np.abs(t['c_true'] - d.labels.numpy()).max()
    assert error > 1e-3 if kind == 'full360' else error < 1e-5                        # known label noise there, none elsewhere
    if kind == 'expressions': assert t['expression'][0].argmax() == 0 and t['hair'][1] == 0 != t['hair'][0] and (d.labels[2:, 16] == 2*d.labels[:2, 16]).all()   # with and without hair; a far and a near camera
    if kind == 'multiview': assert (t['shape'] == t['shape'][0]).all() and d[0]['image'][:, 0, 0].min() == 255
    if kind == 'clips': assert np.abs(np.diff(t['expression'].astype(np.float32), axis=0)).max() < .25    # smooth
    assert not (tmp_path/f'{kind}_shards').exists()


def test_an_interrupted_run_goes_on(make, tmp_path, monkeypatch):
    s = replace(make.load_spec(HERE/'frontal_mini.yaml'), size=16, shard=2)
    a, b = tmp_path/'a.zip', tmp_path/'b.zip'
    make.assemble(s, a, make.render(s, a, 4, 1))
    real, calls = make.render_shard, []
    def broken(s, k, stop, path):
        calls.append(k)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(s, k, stop, path)
    monkeypatch.setattr(make, 'render_shard', broken)
    with pytest.raises(KeyboardInterrupt): make.render(s, b, 4, 1)
    make.assemble(s, b, make.render(s, b, 4, 1))
    assert calls == [0, 1, 1]                                                        # the finished shard is not made again
    assert a.read_bytes() == b.read_bytes() and (tmp_path/'a_masks.zip').read_bytes() == (tmp_path/'b_masks.zip').read_bytes()


def test_views_and_tracks(make):
    s = make.load_spec(HERE/'multiview_mini.yaml')
    yaw = torch.stack([yaw_pitch(make.item(s, i)[1][None])[0][0] for i in range(s.views)])
    assert yaw.min() < -2.8 and yaw.max() > 2.7 and len({round(float(y), 3) for y in yaw}) >= s.views//2   # all around
    s = make.load_spec(HERE/'frontal_mini.yaml')
    yaw = torch.stack([yaw_pitch(make.item(s, i)[1][None])[0][0] for i in range(50)]).rad2deg()
    assert yaw.abs().max() <= 60.01 and yaw.std() > 15
    from headnb.field.rig import load_head
    e, jaw, neck, eyes = make.track(100, 3, list(load_head().expression_names))
    assert e.min() >= 0 and e.max() <= 1 and all(np.abs(np.diff(x, axis=0)).max() < .1 for x in (jaw, neck, eyes))


def test_cameras_and_moments_of_clips(make):
    "Without turn and every a clip is what it was before there were such fields; with them the camera is that of made clips, and moments are those of the longer clip."
    from headnb.gan.scenes import sweep
    s = replace(make.load_spec(HERE/'clips_mini.yaml'), frames=6)
    names = make._names()
    for i in (0, 5, 20, 100):
        p, k, f = i//18, i//6 % 3, i % 6
        h, c, said, _ = make.item(s, i)
        yaw, sway = random.Random(s.seed*31 + p*101 + k).gauss(0, s.yaw/2), make.smooth_noise(6, 2, 20, 5*p + k)
        assert torch.equal(c, make.camera(max(-s.yaw, min(s.yaw, yaw + 4*sway[f, 0])), s.pitch/2*sway[f, 1])) and torch.equal(c, said)
        assert h.expression == tuple(make.track(6, 17*(s.seed + p) + 1009*k, names)[0][f].tolist())
    around = [make.item(replace(s, turn=40.), i) for i in range(6)]
    assert torch.equal(torch.stack([c for _, c, _, _ in around]), sweep(6, 40., torch.Generator().manual_seed(s.seed*31)))
    yaw = yaw_pitch(torch.stack([c for _, c, _, _ in around]))[0].rad2deg()
    assert abs(abs(float(yaw[-1] - yaw[0])) - 40) < .01
    assert [h for h, *_ in around] == [make.item(s, i)[0] for i in range(6)]                                  # the camera alone
    assert make.item(replace(s, every=4), 2)[0] == make.item(replace(s, frames=24), 8)[0] != make.item(s, 2)[0]


@pytest.fixture
def fit(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import fit
    return fit


def test_fitted_clips(fit, tmp_path, capsys):
    "Photographs, crops with fitted labels, and the set: whose frame it is, one shape a clip, found opacity; the second call makes nothing but the last file."
    from headnb.field.rig import load_head
    spec, out = tmp_path/'s.yaml', tmp_path/'c.zip'
    spec.write_text('kind: clips\npeople: 2\nclips: 1\nframes: 2\nevery: 8\nturn: 30\nseed: 4200000\nsize: 64\nhats: false\nspecs: false\ncodes: true\nmasks: false\ndepth: false')
    call = [str(spec), str(out), '--size', '32', '--workers', '1']
    assert fit.main(call) == 0 and '4 of 4 photographs' in capsys.readouterr().out
    d, photos = HeadDataset(out), HeadDataset(tmp_path/'c_photos.zip')
    assert d.names == photos.names and (d.resolution, photos.resolution) == (32, 64) and d.meta['recipe']['turn'] == 30
    assert [(d.info[n]['person'], d.info[n]['frame']) for n in d.names] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert torch.equal(d.drive[0, :80], d.drive[1, :80]) and not torch.equal(d.drive[1, :80], d.drive[2, :80]) and not torch.equal(d.drive, photos.drive)
    assert (yaw_pitch(d.labels)[0] - yaw_pitch(photos.labels)[0]).abs().max() < .25 and d.drive.shape[1] == load_head().drive_dim
    from headnb.gan.scenes import StoredClips, clips_of, pairs
    assert clips_of(d) == ([[0, 1], [2, 3]], [0, 1]) and clips_of(HeadDataset(tmp_path/'c_crops.zip')) == ([[0, 1], [2, 3]], ['00000', '00001'])   # who is in a clip, with the recipe and without
    assert pairs(StoredClips(d), 'cross') == [(0, 1), (1, 0)] and StoredClips(d).person(1) == 1
    m = torch.stack([d[i]['mask'] for i in range(4)])
    assert m.shape == (4, 1, 32, 32) and .2 < (m > 127).float().mean() < .9
    before, whole = [os.stat(tmp_path/n).st_mtime_ns for n in ('c_photos.zip', 'c_crops.zip')], out.read_bytes()
    assert fit.main(call) == 0 and [os.stat(tmp_path/n).st_mtime_ns for n in ('c_photos.zip', 'c_crops.zip')] == before and out.read_bytes() == whole
    for change, message in ((['--setting', 'tyny'], "did you mean 'tiny'"), (['--part', '2/2'], 'expected K/N')): assert fit.main(call + change) == 2 and message in capsys.readouterr().err
    spec.write_text('kind: full360\ncount: 3')
    assert fit.main(call) == 2 and 'clips or frontal' in capsys.readouterr().err


def test_bad_specs_are_refused(make, tmp_path, capsys):
    p = tmp_path/'s.yaml'
    for text, message in (('kind: frontl\ncount: 3', 'kind is'), ('kind: frontal\ncont: 3', "did you mean 'count'"), ('kind: multiview', 'no pictures'), ('kind: frontal\ncount: 3\nturn: 9', 'turn is for the kind clips'), ('kind: frontal\ncount: 3\nmaps: [flow]', 'maps are')):
        p.write_text(text)
        assert make.main([str(p), str(tmp_path/'x.zip')]) == 2 and message in capsys.readouterr().err
    assert make.main([str(tmp_path/'none.yaml'), str(tmp_path/'x.zip')]) == 2
