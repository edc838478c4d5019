"""Inversion: killed and continued, on a generator with a background, from a file; the template and its parameters."""
import dataclasses, json, os, subprocess, sys
import pytest, torch
from headnb.base.camera import orbit
from headnb.base.core import BadInput, repo_path
from headnb.gan.checkpoint import open_generator
from headnb.gan.generator import Generator
from headnb.gan.invert import PUBLISHED, InvertCfg, invert, open_inversion
from headnb.papers import eg3d, panohead

CFG = InvertCfg('pti', w_steps=5, tune_steps=5, coarse=4, camera=True, perceptual=0.)
C = orbit(.3, .1)


def tiny(module=eg3d):
    "An untrained generator and one of its pictures."
    torch.manual_seed(0)
    cfg = module.CONFIGS['tiny'].G
    G = (panohead.PanoHead if module is panohead else Generator)(cfg).eval()
    for k, p in G.named_parameters():
        if k.endswith('noise_strength'): p.data.fill_(.3)
    with torch.no_grad(): x = G.synthesize(G.map(torch.randn(1, cfg.mapping.z_dim), C), C, noise='const', deterministic=True)['image']
    return G, x.clamp(-1, 1)


def child(folder, kill):
    "In a process of its own: invert, and die by SIGKILL in step `kill`."
    def die(search, row):
        if len(search.history) == kill: os.kill(os.getpid(), 9)
    torch.set_num_threads(1)
    G, x = tiny()
    invert(G, x, C, CFG, folder=folder, observers=[die], save_every=0.)


@pytest.mark.parametrize('kill', [8])    # in tuning; nbs/3_gan/38_invert.ipynb stops in every stage
def test_killed_and_continued_is_bit_equal(tmp_path, kill):
    code = f"import sys; sys.path.insert(0, {str(repo_path('tests'))!r}); from test_invert import child; child({str(tmp_path)!r}, {kill})"
    dead = subprocess.run([sys.executable, '-c', code], env=os.environ | {'HEADNB_QUIET': '1'}, cwd=repo_path(), capture_output=True, text=True, timeout=200)
    assert dead.returncode == -9, dead.stderr
    before, threads = open_state(tmp_path), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        G, x = tiny()
        again, whole = invert(G, x, C, CFG, folder=tmp_path), invert(G, x, C, CFG)
    finally: torch.set_num_threads(threads)
    assert before == kill - 1 and len(again.history) == 10      # observers are called before the state is written
    assert torch.equal(again.ws, whole.ws) and torch.equal(again.c, whole.c) and [r['pixel'] for r in again.history] == [r['pixel'] for r in whole.history]
    assert all(torch.equal(a, b) for a, b in zip(again.G.state_dict().values(), whole.G.state_dict().values()))


def open_state(folder):  # -> steps that the state knows of
    from headnb.gan.checkpoint import load
    return len(load(folder/'search.safetensors', CFG).meta['history'])


def test_damaged_state_is_refused(tmp_path):
    G, x = tiny()
    invert(G, x, C, dataclasses.replace(CFG, method='w'), folder=tmp_path)
    path = tmp_path/'search.safetensors'
    data = bytearray(path.read_bytes()); data[-3] ^= 1; path.write_bytes(data)
    with pytest.raises(BadInput, match='damaged'): invert(G, x, C, dataclasses.replace(CFG, method='w'), folder=tmp_path)


def test_a_generator_with_a_background_and_an_offset(tmp_path):
    "PanoHead: background from ws, learnt toRGB; saved, it opens like any checkpoint of that family."
    G, x = tiny(panohead)
    found = invert(G, x, C, dataclasses.replace(CFG, w_steps=15, tune_steps=10))
    assert found.history[14]['psnr'] > found.history[6]['psnr'] and found.psnr > found.history[6]['psnr']
    found.save(tmp_path/'head.safetensors')
    opened, _ = open_generator(tmp_path/'head.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), found.G.state_dict().values()))
    back = open_inversion(tmp_path/'head.safetensors')
    assert torch.equal(back.render()['image'], found.render()['image'])


def masked(G, x):  # -> a mask of the side of the picture
    return torch.zeros(1, 1, *x.shape[-2:]).index_fill_(2, torch.arange(4, 14), 1.)


def test_a_background_with_codes_of_its_own(tmp_path):
    "The background is sought beside the head, survives tuning and files, and can be replaced without a change of the head."
    G, x = tiny(panohead)
    cfg = dataclasses.replace(CFG, camera=False, mask='whole', backdrop='free', opacity=1.)
    found = invert(G, x, C, cfg, mask=masked(G, x))
    assert {'pixel', 'opacity'} <= set(found.losses) and not torch.equal(found.behind, found.ws)
    other = found.render(behind=torch.randn_like(found.ws))
    assert torch.equal(other['mask'], found.render()['mask']) and not torch.equal(other['image'], found.render()['image'])
    for name, whole in (('whole', True), ('changes', False)):
        found.save(tmp_path/f'{name}.safetensors', whole)
        assert torch.equal(open_inversion(tmp_path/f'{name}.safetensors', G).render()['image'], found.render()['image'])
    before = invert(G, x, C, dataclasses.replace(cfg, method='w'), mask=masked(G, x))
    on = invert(G, x, C, dataclasses.replace(cfg, w_steps=0), mask=masked(G, x), start=before)      # in two calls, as in one
    assert torch.equal(on.behind, before.behind) and torch.equal(on.behind, found.behind) and abs(on.psnr - found.psnr) < 1e-3


@pytest.mark.parametrize('method', ['z-pti', 'w+pti'])
def test_stopped_with_a_free_background_and_continued(tmp_path, method):
    class Enough(Exception): pass
    def stop(search, row):
        if len(search.history) == n: raise Enough
    G, x = tiny(panohead)
    cfg = dataclasses.replace(CFG, method=method, z_steps=4, w_steps=2, plus_steps=2, tune_steps=3, guesses=3, mask='whole', backdrop='free', opacity=1.)
    whole = invert(G, x, C, cfg, mask=masked(G, x))
    for n in (3, 6):
        try: invert(G, x, C, cfg, mask=masked(G, x), folder=tmp_path/str(n), observers=[stop])
        except Enough: pass
        again = invert(G, x, C, cfg, mask=masked(G, x), folder=tmp_path/str(n))
        assert [r['pixel'] for r in again.history] == [r['pixel'] for r in whole.history]
        assert torch.equal(again.behind, whole.behind) and torch.equal(again.ws, whole.ws)


def test_released_recipe_displaces_the_camera_once():
    "By the mean of the offsets of the released 10,000 latents for the target's label; the mapping hears of the front."
    import numpy as np
    G, x = tiny(panohead)
    cfg = dataclasses.replace(PUBLISHED['released, with mask'], plus_steps=2, tune_steps=0, perceptual=0.)
    found = invert(G, x, C, cfg, mask=masked(G, x))
    z = torch.from_numpy(np.random.RandomState(123).randn(10_000, G.z_dim)).float()
    with torch.no_grad(): delta, w = G.shift(z, C.expand(10_000, -1)).mean(0), G.map(z, orbit(0.).expand(10_000, -1))[:, 0].mean(0)
    assert torch.allclose((found.c - C)[0, [3, 7, 11]], delta, atol=1e-6) and delta.norm() > 1e-4
    assert torch.allclose((found.c - C)[0, :3], torch.zeros(3), atol=1e-6) and found.G.cfg.render.near == 2.35
    assert (found.ws - w).abs().max() < .25      # two steps of at most 0.1 away from the average (a step of Adam is about as long as its learning rate)


@pytest.mark.parametrize('change, message', [
    ('invert.method=pty', "invert.method is 'pty'; did you mean 'pti'?"),
    ('invert.w_step=3', "invert has no parameter 'w_step'; did you mean 'w_steps'?"),
    ('seconds=soon', "invert.seconds is 'soon'"),
    ('checkpoint=eg3d-midi', "did you mean 'eg3d-mini"),
    ('data=data/none.zip', 'no data set at'),
    ('pictures=3', "invert has no parameter 'pictures'"),
])
def test_refused_before_anything_starts(tmp_path, capsys, change, message):
    from headnb.runs import EXIT, main
    assert main(['tiny/invert', '--out', str(tmp_path), '-p', change]) == EXIT['refused']
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_run_from_a_data_set(tmp_path):
    "Two labelled pictures; then a head is lost, and only that one is looked for again."
    from headnb.gan.data import write_dataset
    from headnb.gan.metrics import to_bytes
    from headnb.runs import main
    side = eg3d.CONFIGS['tiny'].D.resolution
    pictures = to_bytes(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))*2 - 1).permute(0, 2, 3, 1).numpy()
    write_dataset(tmp_path/'set.zip', [dict(image=p, c=orbit(y)[0]) for p, y in zip(pictures, (-.2, .3))])
    small = dict(checkpoint="''", data=tmp_path/'set.zip', count=2, invert='{w_steps: 3, tune_steps: 2, perceptual: 0}', name='two')
    args = ['tiny/invert', '--out', str(tmp_path/'out')] + [a for k, v in small.items() for a in ('-p', f'{k}={v}')]
    assert main(args) == 0
    folder = tmp_path/'out'/'two'
    result = json.loads((folder/'result.json').read_text())
    assert result['status'] == 'done' and len(result['heads']) == 2 and all(h['steps'] == 5 for h in result['heads'])
    kept, lost = (folder/'heads'/f'00000{i}.safetensors' for i in (0, 1))
    times = kept.stat().st_mtime, lost.stat().st_mtime
    lost.unlink()
    assert main(args + ['--resume']) == 0
    assert kept.stat().st_mtime == times[0] and lost.stat().st_mtime > times[1]


def test_lpips_from_a_file(tmp_path):
    "A trunk given by path is used, has gradients, and is named with its checksum."
    from headnb.gan.metrics import Lpips
    torch.manual_seed(0)
    path = tmp_path/'squeezenet.pth'
    torch.save({'features.' + k.split('.', 1)[1]: v for k, v in Lpips('squeeze').net.net.state_dict().items()}, path)
    G, x = tiny()
    big = lambda a: torch.nn.functional.interpolate(a, size=64)
    net = Lpips('squeeze', path)
    found = invert(G, x, C, dataclasses.replace(CFG, method='w', camera=False, pixel=0., raw=0., perceptual=1., w_steps=4, coarse_share=0.), perceptual=lambda a, b: net(big(a), big(b)))
    assert len({r['perceptual'] for r in found.history}) == 4
    from headnb.gan.invert import Perceptual
    assert Perceptual(path, big(x)).name.startswith('LPIPS squeeze (') and Perceptual(path, big(x))(big(x)).item() < 1e-6
