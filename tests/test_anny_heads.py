"""The recipes of the rendered data sets: a few pictures of each."""
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
    assert make.total(s) > 1000
    if path.stem.startswith('multiview'): assert s.people == 50 and not s.hats and not s.specs and s.background == 'white'
    if path.stem.startswith('clips'): assert s.people*s.clips >= 100 and s.clips >= 2


@pytest.mark.parametrize('kind', ['frontal', 'full360', 'multiview', 'expressions', 'clips'])
def test_a_few_pictures_of_each(make, tmp_path, kind):
    out = tmp_path/f'{kind}.zip'
    assert make.main([str(HERE/f'{kind}_mini.yaml'), str(out), '--count', '4', '--size', '32', '--workers', '1']) == 0
    d, t = HeadDataset(out), np.load(tmp_path/f'{kind}_truth.npz')
    assert len(d) == 4 and d[0]['image'].shape == (3, 32, 32) and {'mask', 'depth', 'c'} <= set(d[0])
    assert d.meta['multi_view'] == (kind not in ('frontal', 'full360')) and t['shape'].shape == (4, 80) and t['landmarks'].shape == (4, 68, 2)
    error = np.abs(t['c_true'] - d.labels.numpy()).max()
    assert error > 1e-3 if kind == 'full360' else error < 1e-5                        # known label noise there, none elsewhere
    if kind == 'expressions': assert t['expression'][0].argmax() == 0 and t['hair'][1] == 0 != t['hair'][0]   # with and without hair
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


def test_bad_specs_are_refused(make, tmp_path, capsys):
    p = tmp_path/'s.yaml'
    for text, message in (('kind: frontl\ncount: 3', 'kind is'), ('kind: frontal\ncont: 3', "did you mean 'count'"), ('kind: multiview', 'no pictures'), ('kind: frontal\ncount: 3\nmaps: [flow]', 'maps are')):
        p.write_text(text)
        assert make.main([str(p), str(tmp_path/'x.zip')]) == 2 and message in capsys.readouterr().err
    assert make.main([str(tmp_path/'none.yaml'), str(tmp_path/'x.zip')]) == 2
