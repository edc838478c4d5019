"""Heads edited by words or by hand: windows, what moves and what stays, a kill, no network, and what is refused."""
import os, signal, socket, subprocess, sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headnb.base.camera import orbit
from headnb.base.core import BadInput
from headnb.base.show import to_uint8
from headnb.edit import HALO, SETTINGS, Edit, EditCfg, Sitter, Translator, check_pipeline, edit_head, inner, kept, main, open_pipeline, open_sitter, sit, tiny_pipeline
from headnb.field.heads import render_heads, sample_head
from headnb.gan.checkpoint import open_generator
from headnb.gan.fit import SETTINGS as FITS, Stage
from headnb.gan.invert import image_side
from headnb.gan.judges import load_judges
from headnb.head360_fit import Painted, PhotoCfg, fit_photo
from headnb.papers.head360 import Head360, small

TINY = replace(SETTINGS['tiny'], yaw=.6)


def greener(now, before, generator=None):
    "An edit by rule: what is not the white ground gets more green and less red."
    return (before + (before.amin(1, keepdim=True) < .8)*before.new_tensor([-.4, .4, 0.])[:, None, None]).clamp(-1, 1)


def green(x): return (x[:, 1] - x[:, 0])[x.amin(1) < .8].mean().item()


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pipeline')/'tiny'
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize('name', ['eg3d-360', 'panohead-mini', 'genhead-mini'])
def test_a_window_is_a_part_of_the_picture(name):
    "Past its rim; also where a background and parts are drawn."
    G = open_generator(name)[0].requires_grad_(False)
    who, c, r = sit(G, 2), G.orbit(torch.tensor([.3, -.8])), G.cfg.raw_size
    up = image_side(G)//r
    for row, col, q in ((0, 5, 15), (r - 14, 1, 14), (3, 4, r - 8)):
        with torch.no_grad(): a, b = who.look(c, (row, col, q))['image'], who.look(c)['image'][..., row*up:(row + q)*up, col*up:(col + q)*up]
        (y0, y1), (x0, x1) = inner(r, row, q, HALO), inner(r, col, q, HALO)
        assert y1 > y0 and (a - b)[..., y0*up:y1*up, x0*up:x1*up].abs().max() < 1e-4, (row, col, q)


def test_a_fitted_head_is_edited():
    "A photograph's head (68b), its texture tuned: the colour comes out from sides that were not looked at; mesh, surface, networks and motion stay."
    torch.manual_seed(0)
    h = replace(sample_head(71, hair='bald', hats=False, specs=False), neck=(0., 0., 0.), jaw=(0., 0., 0.), eyes=(0., 0., 0.), beard='none')
    t = render_heads(h, orbit(.2), 96, corr=False)
    quick = replace(FITS['tiny'], contour='fixed', start=8, stages=(Stage('rotation translation shape expression jaw eyes', 40, 1e-2, True),))
    G, judges = Painted(32, 32, 64).requires_grad_(False), load_judges()
    fit = fit_photo(to_uint8(t['image'])[0], G, PhotoCfg(quick, subjects=2, views=2, steps=0, perceptual=0.), t['landmarks'][0]*96, judges=judges)
    state = {k: x.clone() for k, x in G.state_dict().items()}
    made = edit_head(Sitter(G, fit.ws, fit.x, fit.person, hair=0.), greener, EditCfg('texture', views=8, yaw=1., steps=40, patch=32, lr=.25, perceptual=0.))
    assert all(torch.equal(x, state[k]) for k, x in G.state_dict().items()) and made.sitter.G is G and torch.equal(made.sitter.drive, fit.x)
    c = G.orbit(torch.tensor([-.7, 0., .4]), torch.tensor([.1, -.1, .1]))
    a, b = made.before.seen(c), made.sitter.seen(c)
    want = green(greener(None, a['image']))
    assert green(b['image']) > green(a['image']) + .7*(want - green(a['image']))
    same = kept(a, b, judges)
    assert same['depth'] < .02 and same['outline'] > .97, same
    jaw = fit.rig.join(fit.codes.shape, fit.rig.expression_code(jawOpen=1.))
    assert (made.sitter.seen(c, jaw)['depth'] - b['depth'])[b['mask'] > .5].abs().max() > .005


def test_words_move_all_but_the_mapping(pipeline, monkeypatch):
    "As Instruct-NeRF2NeRF does it, on an untrained Head360, with the network cut off."
    def no(*a, **k): raise AssertionError('something was to be fetched')
    monkeypatch.setattr(socket.socket, 'connect', no)
    torch.manual_seed(0)
    G = Head360(small(32, 16, 16)).requires_grad_(False)
    words = Translator(open_pipeline(pipeline), 'make him old', steps=2, noise=(.02, .98))
    e = Edit(sit(G), words, replace(SETTINGS['instruct-nerf2nerf'], views=3, every=2, steps=5, patch=6, yaw=.6))
    for _ in range(5): e.advance()
    assert e.edited.tolist() == [1, 1, 1] and not torch.equal(e.targets, e.before) and all('perceptual' not in row for row in e.history)
    made = e.result()
    moved = {k.split('.')[0] for (k, x), y in zip(made.sitter.G.named_parameters(), G.parameters()) if not torch.equal(x, y)}
    assert moved == {'planes', 'texture', 'completion', 'decoder'}, moved              # single rays do not reach the super-resolution
    assert torch.equal(made.before.ws, made.sitter.ws)


def job(folder, die=None):
    "An edit of a shipped head; `die`: killed after so many steps."
    torch.set_num_threads(1)
    G = open_generator('eg3d-mini')[0].requires_grad_(False)
    kill = lambda e: os.kill(os.getpid(), signal.SIGKILL) if e.step == die else None
    return edit_head(sit(G, 3), Translator(tiny_pipeline(), 'make her hair red', steps=2), replace(TINY, steps=7), folder, save_every=2, observers=[kill])


def test_killed_and_resumed(tmp_path):
    "SIGKILL between two states; the rest is the same to the last bit, and what is written is whole."
    env = os.environ | dict(OMP_NUM_THREADS='1', HEADNB_QUIET='1')
    done = subprocess.run([sys.executable, '-c', 'import sys; from test_edit import job; job(sys.argv[1], 5)', str(tmp_path)], cwd=Path(__file__).parent, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ['edit.json', 'edit.safetensors']
    seen, threads = [], torch.get_num_threads()
    try:
        a = job(tmp_path)
        b = job(tmp_path/'elsewhere')
        assert len(a.history) == len(b.history) == 7 and a.history == b.history and torch.equal(a.targets, b.targets)
        assert all(torch.equal(x, y) for x, y in zip(a.sitter.G.state_dict().values(), b.sitter.G.state_dict().values()))
        edit_head(a.before, Translator(tiny_pipeline(), 'make her hair red', steps=2), replace(TINY, steps=7), tmp_path, observers=[lambda e: seen.append(e)])
        assert not seen                                                     # it was finished
    finally: torch.set_num_threads(threads)
    back = open_sitter(a.save(tmp_path/'head.safetensors'))
    c = back.G.orbit(torch.tensor([.2]))
    assert torch.allclose(back.seen(c)['image'], a.sitter.seen(c)['image'], atol=1e-5)


def test_without_the_extra(pipeline, monkeypatch, capsys):
    "One line that names it; a dye needs none."
    for k in ('diffusers', 'transformers'): monkeypatch.setitem(sys.modules, k, None)
    for f in (tiny_pipeline, lambda: open_pipeline(pipeline)):
        with pytest.raises(BadInput, match=r"pip install -c constraints.txt -e '\.\[edit\]'"): f()
    assert main(['eg3d-mini', '--say', 'red', '--pipeline', str(pipeline)]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_bad_input(pipeline, tmp_path):
    "Each names what is wrong."
    G = open_generator('eg3d-mini')[0].requires_grad_(False)
    who, pipe = sit(G, 3), tiny_pipeline()
    (tmp_path/'model_index.json').write_text('{')
    for bad, message in ((lambda: Edit(who, greener, replace(TINY, tune='texture')), "Generator has no texture: tune='model'"),
                         (lambda: Edit(who, greener, replace(TINY, patch=8)), 'so at least 9'),
                         (lambda: Edit(sit(open_generator('genhead-mini')[0]), greener, replace(TINY, sampling='pixels')), 'has parts or a background'),
                         (lambda: edit_head(who, lambda a, b, g: b[:, :1], TINY), 'came back as [1, 1, 64, 64]'),
                         (lambda: edit_head(who, Translator(pipe, 'x', size=33), TINY), 'the pipeline reads sides that are multiples of 2, not 33'),
                         (lambda: EditCfg(first='none'), 'nothing is ever edited'),
                         (lambda: Translator(pipe, ''), 'the prompt is empty'),
                         (lambda: Translator(pipe, 'x', text=1.), 'more than 1'),
                         (lambda: check_pipeline(tmp_path), 'is no JSON'),
                         (lambda: check_pipeline(tmp_path/'none'), 'nothing is fetched'),
                         (lambda: open_sitter(Path(sys.modules['headnb'].__file__).parent/'assets/eg3d-mini.safetensors'), 'of no edited head'),
                         (lambda: sit(torch.nn.Linear(1, 1)), 'Linear makes no head')):
        with pytest.raises(BadInput) as e: bad()
        assert message in str(e.value), (message, str(e.value))
