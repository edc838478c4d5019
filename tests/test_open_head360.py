"Head360 and Next3D as the releases write them - one pickle with the mesh in buffers, its mask and scale in plain attributes - open as the golden cases' generators, and keep their mesh when they are saved in our format."
import re, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import official_writer as w
from headnb.base.core import BadInput
from headnb.gan.checkpoint import open_generator
from headnb.golden import Case, fill_state
from headnb.golden_head360 import released_constants, toy_atlas, toy_generator, toy_input, toy_mesh
from headnb.open import inspect, main, open_official

CASES = Path(__file__).parent/'golden'/'head360'
NAMES = dict(head360='generator_tiny', next3d='next3d_generator_tiny', stage2='generator_stage2_tiny')
AXES = dict(head360=[[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, -1], [0, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 0, -1], [0, 1, 0]]], next3d=[[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]])
ATTRIBUTES = dict(head360=dict(orth_scale=[[9.]], orth_shift=[[.0011, -.0305, -.0143]]), next3d=dict(orth_scale=[[5.]], orth_shift=[[0., -.01, -.01]]))


def case(kind): return Case(CASES/NAMES[kind])


def topology(case): # buffer -> array (spec_head360, 3)
    _, faces, uv, uvfaces = (x.numpy()[None] for x in toy_mesh(case.config['mesh']))
    full = np.concatenate([2*uv[..., :1] - 1, 1 - 2*uv[..., 1:], np.ones_like(uv[..., :1])], -1)
    dense = np.stack([np.stack([p, p + 256, p + 1, p + 1, p + 256, p + 257], -1).reshape(-1, 3) for p in 256*np.arange(2, 253)[:, None] + np.arange(5, 250)])
    return dict(dense_faces=dense.reshape(1, -1, 3), faces=faces, raw_uvcoords=uv, uvcoords=full, uvfaces=uvfaces, face_uvcoords=full[:, uvfaces[0]])


def table(kind): # the released state dict, in its order
    rows = case(kind).read('state_dict.json')
    mesh = topology(case(kind))
    return {k: mesh[k] for k, *_ in rows if k in mesh} | {k: v.numpy() for k, v in fill_state([r for r in rows if r[2] != 'topology'], case(kind).seed).items()} | {'dataset_label_std': np.ones(77, np.float32)}


def released(kind, change=lambda t: t, **attributes): # None takes an attribute away
    c, family = case(kind).config, 'next3d' if kind == 'next3d' else 'head360'
    names = ('z_dim', 'z_noise_dim', 'w_dim', 'channel_base', 'channel_max', 'img_resolution', 'sr_num_fp16_res', 'rendering_kwargs')
    kwargs = {k: c[k] for k in names if k in c} | dict(c_dim=25, img_channels=3, mapping_kwargs=dict(num_layers=c['map_depth']), mesh='data/head.obj')
    extra = {k: np.array(v, np.float32) for k, v in ATTRIBUTES[family].items()} | dict(uv_face_mask=toy_atlas(c).mask.numpy(), fill_mouth=True, load_lms=True) | attributes
    return w.generator(change(table(kind)), kwargs, c['neural_rendering_resolution'], axes=AXES[family], **{k: w.Array(v) if isinstance(v, np.ndarray) else v for k, v in extra.items() if v is not None})


def write(folder, data):
    (folder/'released.pkl').write_bytes(data)
    return folder/'released.pkl'


@pytest.fixture(scope='module', params=list(NAMES))
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HEADNB_TRACE', str(folder/'executed'))
        path = write(folder, w.dump(w.checkpoint(D=w.persistent('SomeDiscriminator', w.module_state(), 'discriminator'), G_ema=released(request.param))))
        return request.param, path, open_official(path)


def test_opens_as_the_golden_generator(opened):
    kind, path, o = opened
    want, atlas = toy_generator(case(kind)), toy_atlas(case(kind).config)
    assert o.family == ('next3d' if kind == 'next3d' else 'head360') and list(o.models) == ['G_ema'] and o.meta['left_out'] == ["'D'"]
    assert o.cfg == replace(want.cfg, topology=atlas.sizes) == o.generator.cfg and o.cfg.stage == 1 + (kind == 'stage2')
    state, mesh = want.state_dict(), {f'sides.atlas.{k}': getattr(atlas, k) for k in ('faces', 'uvfaces', 'uv', 'mask')}
    own = o.generator.state_dict()
    assert own.keys() == (state | mesh).keys() and all(torch.equal(own[k], v) for k, v in (state | mesh).items())
    assert not (path.parent/'executed').exists()


def test_converted_keeps_its_mesh(opened):
    "Our file opens by itself and draws the identical picture: nothing of the mesh is asked from elsewhere."
    kind, path, o = opened
    assert main(['convert', str(path), str(path.parent/'out')]) == 0
    again, meta = open_generator(str(path.parent/'out'))
    assert meta['family'] == o.family and again.rig is None and again.cfg == o.cfg
    G, x, c = o.generator, toy_input(case(kind).config)[:1], torch.tensor(case(kind).config['inputs']['c'][:1], dtype=torch.float32)
    z, kw = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(0)), dict(drive=x, hair=[1], noise='const', deterministic=True)
    with torch.no_grad(): a, b = (g(z, c, **kw)['image'] for g in (G, again))
    assert torch.equal(a, b)
    again.sides.atlas.uv += .1
    with torch.no_grad(): assert (again(z, c, **kw)['image'] - a).abs().max() > 1e-3              # the picture depends on what was kept


def test_attributes_count(tmp_path):
    "Scale and filling are read; the shift counts for Next3D alone."
    shift = np.array([[.01, 0, .02]], np.float32)
    for kind, want in (('next3d', (.01, 0., .02)), ('head360', (0., 0., 0.))):
        o = open_official(write(tmp_path, w.dump({'G_ema': released(kind, orth_scale=np.array([[6.5]], np.float32), orth_shift=shift, fill_mouth=False)})))
        s = o.generator.sides.cfg
        assert (s.scale, s.shift, s.fill) == (6.5, want, False) and o.cfg.sides == s
    x = toy_input(case(kind).config)
    full = open_official(write(tmp_path, w.dump({'G_ema': released(kind, fill_mouth=False)}))).generator
    torch.testing.assert_close(full.sides.alpha(full.sides.draw(x))[:, :, 0, 0], released_constants(toy_generator(case(kind)), x)['alpha_fill_mouth_false'])


def swap(k, f): return lambda t: t | {k: f(t[k].copy())}


@pytest.mark.parametrize('what, message', [
    (dict(change=lambda t: {k: v for k, v in t.items() if k != 'uvfaces'}), "the file lacks 'uvfaces'"),
    (dict(uv_face_mask=None), "the file lacks 'uv_face_mask'"),
    (dict(change=swap('faces', lambda x: x - 1)), 'faces name vertex -1'),
    (dict(change=swap('uvfaces', lambda x: x + 1)), 'uvfaces name coordinate 352; uv is [352, 2]'),
    (dict(change=swap('raw_uvcoords', lambda x: x*np.float32('nan'))), 'uv has numbers that are not finite'),
    (dict(change=swap('faces', lambda x: x.astype(np.float32))), 'faces is torch.float32; expected integers'),
    (dict(orth_shift=np.zeros(2, np.float32)), 'orth_shift: expected 3 finite numbers'),
    (dict(orth_scale=np.full((1, 1), np.inf, np.float32)), 'orth_scale: expected 1 finite numbers'),
    (dict(change=lambda t: {k: v for k, v in t.items() if k != 'neural_blending.synthesis.b256.torgb.weight'}), 'missing keys: neural_blending.synthesis.b256.torgb.weight')], ids=lambda x: x if isinstance(x, str) else '')
def test_damaged_files_say_what_is_wrong(tmp_path, what, message):
    path = write(tmp_path, w.dump({'G_ema': released('next3d', **what)}))
    with pytest.raises(BadInput, match=re.escape(message)): open_official(path)
    if 'uv_face_mask' in what: assert message in inspect(path)
