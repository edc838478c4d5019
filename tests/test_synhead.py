"""The stand-in for SYNHEAD100: its recipe, the released layout that it writes, and what reads both."""
import numpy as np, pytest, torch
from headnb.base.core import repo_path
from headnb.base.camera import yaw_pitch
from headnb.field.bilinear import head_bilinear
from headnb.field.hair import STYLES
from headnb.field.rig import load_head
from headnb.gan.data import Batches, HeadDataset
from headnb.gan.synhead import SynHead, facts_of, recoded
from processes import recipe

HERE = repo_path('data_recipes', 'synhead')
SPEC = 'kind: expressions\npeople: 1\nviews: 2\nrings: [0, -20]\nbare: true\ncodes: true\nsize: 16\nsamples: 1\nseed: 3000000\nyaw: 180\nbackground: white\nhats: false\nspecs: false\nshard: 104\n'


@pytest.fixture(scope='module')
def make(): return recipe('synhead')


@pytest.fixture(scope='module')
def made(make, tmp_path_factory): # zip, folder of the released layout
    "One person, 52 expressions, two sides, with and without hair."
    d = tmp_path_factory.mktemp('synhead')
    (d/'s.yaml').write_text(SPEC)
    assert make.main([str(d/'s.yaml'), str(d/'set.zip'), '--workers', '1', '--folder', str(d/'SYNHEAD')]) == 0
    return d/'set.zip', d/'SYNHEAD'


@pytest.mark.parametrize('path', sorted(HERE.glob('*.yaml')), ids=lambda p: p.stem)
def test_specs_are_valid(make, path):
    s = make.load_spec(path)
    assert s.bare and s.codes and s.background == 'white' and make.ANNY.total(s) == s.people*52*s.views*2
    if path.stem == 'paper': assert (s.people, s.views, s.size) == (100, 72, 512)
    seen = {make.ANNY.item(s, i)[3]['view'] for i in range(0, 2*s.views*52, 2)}
    assert len(seen) == s.views if not s.grid else len(seen) > 25            # a grid is seen from everywhere


def test_held_cameras_are_others(make):
    a, b = make.load_spec(HERE/'mini.yaml'), make.load_spec(HERE/'mini_held.yaml')
    for k in (0, 51, 60, 52*99 + 3):
        train, held = ({make.ANNY.item(s, (k*s.views + v)*2)[3]['view'] for v in range(s.views)} for s in (a, b))
        assert len(train) == 2 and len(held) == 1 and not train & held
    pitches = {round(float(yaw_pitch(make.ANNY.item(a, i)[1][None])[1].rad2deg()[0])) for i in range(0, 800, 2)}
    assert pitches == {-20, 0, 20}


def test_the_set_has_codes(made):
    ds, rig = HeadDataset(made[0]), load_head()
    f, t = facts_of(ds), np.load(made[0].with_name('set_truth.npz'))
    assert len(ds) == 208 and ds.drive.shape == (208, 144) and int(f['hair'].sum()) == 104 and (f['hair'].numpy() == (t['hair'] > 0)).all()
    shape, expression, pose = rig.split(ds.drive)
    assert (expression.argmax(1) == f['expression']).all() and (expression.sum(1) == 1).all() and pose[:, 1].abs().max() == 0
    assert torch.allclose(pose[:, 3:].flatten(1), rig.gaze(expression), atol=1e-4)
    batch = next(Batches(ds, 4))
    assert batch['drive'].shape == (4, 144) and batch['image'].shape == (4, 3, 16, 16)
    model = head_bilinear(shape[:1], 1)
    same = recoded(ds, rig, model)
    i = torch.arange(0, 208, 23)
    assert (model(*model.split(same.drive[i])) - rig(*rig.split(ds.drive[i]))).abs().max() < 1e-4


def test_the_folder_is_the_same_set(made):
    ds, syn = HeadDataset(made[0]), SynHead(made[1], views=2, hair='both')
    f = facts_of(ds)
    place = {(int(e), int(v), bool(h)): i for i, (e, v, h) in enumerate(zip(f['expression'], f['view'], f['hair']))}
    names, g = load_head().expression_names, syn.facts
    assert len(syn) == 208 and syn.subjects == ['fs_001'] and syn.n_styles == len(STYLES) and syn.styles.tolist() == [int(np.load(made[0].with_name('set_truth.npz'))['hair'].max())]
    for i in range(0, 208, 19):
        x, y = syn[i], ds[place[names.index(syn.expressions[g['expression'][i]]), int(g['view'][i]), bool(g['hair'][i])]]
        assert (x['image'].int() - y['image'].int()).abs().max() <= 1 and torch.equal(x['mask'], y['mask']) and torch.allclose(x['c'], y['c'])
    model = syn.fit(made[1]/'meshes', lips=True)
    coded, rig = syn.coded(model), load_head()
    shape, expression, pose = rig.split(ds.drive[place[names.index('jawOpen'), 0, True]][None])
    i = next(i for i in range(208) if syn.expressions[g['expression'][i]] == 'jawOpen' and g['hair'][i] and g['view'][i] == 0)
    v, truth = model(*model.split(coded.drive[i:i + 1])), rig(shape, expression, pose)
    assert (v[:, :len(rig.v_template)] - truth).abs().max() < 1e-3 and (v[:, -12:] - rig.landmarks(truth)[:, 48:60]).abs().max() < 1e-3
    assert HeadDataset(coded.to_zip(made[1].with_name('small.zip'))).drive.shape == (208, 1 + 52 + 12)


def test_an_interrupted_set_goes_on(make, tmp_path, monkeypatch):
    (tmp_path/'s.yaml').write_text(SPEC.replace('shard: 104', 'shard: 4'))
    job = lambda out: make.main([str(tmp_path/'s.yaml'), str(out), '--workers', '1', '--count', '8'])
    assert job(tmp_path/'a.zip') == 0
    real, calls = make.ANNY.render_shard, []
    def broken(s, k, stop, path):
        calls.append(k)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(s, k, stop, path)
    monkeypatch.setattr(make.ANNY, 'render_shard', broken)
    with pytest.raises(KeyboardInterrupt): job(tmp_path/'b.zip')
    assert job(tmp_path/'b.zip') == 0 and calls == [0, 1, 1]
    assert (tmp_path/'a.zip').read_bytes() == (tmp_path/'b.zip').read_bytes()


def test_bad_requests_are_refused(make, tmp_path, capsys):
    for text, rest, message in ((SPEC.replace('expressions', 'frontal') + 'count: 3\n', [], 'this recipe makes expressions'), (SPEC + 'grid: 72\n', ['--folder', str(tmp_path/'f')], 'grid is 72'), (SPEC + 'grid: 3\nskip: 2\n', [], 'are more than the grid'),
                                (SPEC, ['--folder', str(tmp_path/'f'), '--count', '4', '--workers', '1'], 'holds 4 of 208 pictures')):
        (tmp_path/'s.yaml').write_text(text)
        assert make.main([str(tmp_path/'s.yaml'), str(tmp_path/'x.zip'), *rest]) == 2 and message in capsys.readouterr().err


def test_the_training_loop_takes_it(made, tmp_path):
    "The stand-in drives a generator of the shipped head; the released layout gives the loop the same kinds of batches."
    from dataclasses import replace
    from headnb.gan.train import Run, draw
    from headnb.papers import genhead
    cfg = genhead.CONFIGS['tiny']
    run = Run(*genhead.build(cfg), genhead.arrange(cfg, HeadDataset(made[0])), replace(cfg.train, batch=4), tmp_path, genhead.terms(cfg), make_step=genhead.make_step(cfg))
    real = next(run.batches[''])
    assert {'image', 'mask', 'drive', 'c'} <= set(real) and next(draw(run, real, run.phases[-1])).fake['image'].shape == (4, 3, 16, 16)
    syn = SynHead(made[1], views=2)
    run = Run(*genhead.build(cfg), syn.coded(syn.fit(made[1]/'meshes')), replace(cfg.train, batch=4), tmp_path, genhead.terms(cfg), make_step=genhead.make_step(cfg))
    again = next(run.batches[''])
    assert {k: v.shape for k, v in again.items() if k not in ('drive', 'depth')} == {k: v.shape for k, v in real.items() if k not in ('drive', 'depth')} and run.drives[''].shape == (104, 65)
