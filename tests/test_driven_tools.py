"A GenHead that was trained on labels with other axes, from farther away, in every tool that has no cameras of its own."
import json, math
from dataclasses import replace
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from headnb.base.camera import orbit, relabel
from headnb.base.core import BadInput, repo_path
from headnb.base.show import image_grid
from headnb.drive import to_drive
from headnb.field.heads import render_heads, sample_head
from headnb.gan.checkpoint import save
from headnb.gan.data import HeadDataset, write_dataset
from headnb.gan.export import subject, save_mesh
from headnb.gan.invert import InvertCfg, invert, open_inversion
from headnb.gan.metrics import to_bytes
from headnb.gan.terms import ScheduleCfg
from headnb.gan.texture import bake, mesh_render
from headnb.gan.train import preview
from headnb.nets.stylegan2 import MappingCfg
from headnb.papers.genhead import CONFIGS, GenHead
from headnb.papers.head360 import Head360, small
from headnb.view import Scene

SAME = dict(noise='const', deterministic=True)
CAMERAS = lambda yaw: orbit(yaw, 0., 4.2, focal=.5/math.tan(math.radians(6)))   # as the release's, in our axes


@pytest.fixture(scope='module')
def far():
    "Untrained, but neither grey nor empty."
    torch.manual_seed(0)
    tiny = CONFIGS['tiny'].G
    G = GenHead(replace(tiny, frame='opengl', camera_cond=True, render=replace(tiny.render, near='plane', far='plane'))).eval().requires_grad_(False)
    torch.nn.init.normal_(G.decoder.out_sigma.weight, std=3.)
    return G


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "24 heads with codes; the file says that its cameras have the axes of OpenGL."
    c = CAMERAS(torch.linspace(-.6, .6, 24))
    made = render_heads([replace(sample_head(40 + i), neck=(0., 0., 0.)) for i in range(24)], c, 16, corr=False)
    drive = torch.cat([made['shape'], made['expression'], made['pose'][:, 1:].flatten(1)], 1)
    rows = (dict(image=x.permute(1, 2, 0).numpy(), c=g, drive=d) for x, g, d in zip(to_bytes(made['image']), relabel(c, 'opencv', 'opengl'), drive))
    path = write_dataset(tmp_path_factory.mktemp('data')/'codes.zip', rows, meta=dict(camera='opengl'))
    assert torch.equal(HeadDataset(path).labels, c)
    return path


def template(name, **params):
    "Run a papermill template here; -> its variables."
    space, cells = {}, [c for c in json.loads(repo_path(f'nbs/9_runs/{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    with torch.enable_grad():                           # a template switches gradients off for its process: here, until it ends
        for c in cells:
            exec(compile(''.join(c['source']), name, 'exec'), space)
            if 'parameters' in c['metadata'].get('tags', ()):
                assert params.keys() <= space.keys(), params
                space |= params
    return space


def test_preview(far, data):
    ds = HeadDataset(data)
    run = SimpleNamespace(G_ema=far, z_dim=far.z_dim, device='cpu', labels={'': ds.labels}, drives={'': ds.drive}, cfg=SimpleNamespace(schedule=ScheduleCfg(raw_size=16)), gan_nimg=0.)
    z, at = torch.randn(4, run.z_dim, generator=torch.Generator().manual_seed(0)), slice(None, None, 6)
    drive = ds.drive[at]
    ws = far.map(z, torch.cat([ds.labels[at], drive], 1))
    torch.manual_seed(0)
    seen = preview(run)
    torch.manual_seed(0)
    want = torch.stack([far.synthesize(ws, c, drive=drive, raw_size=16, noise='const')['image'] for c in (ds.labels[at], *[CAMERAS(torch.full((4,), y)) for y in (-.5, 0., .5)])], 1)
    np.testing.assert_array_equal(seen, image_grid(want.flatten(0, 1), ncols=4))


def test_export_and_inversion(far, tmp_path):
    z, drive = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)), to_drive(far.rig, jawOpen=.6)
    ws, c = far.map(z, torch.cat([far.orbit(), drive], 1)), far.orbit()
    s = subject(far, ws, drive=drive)
    x = (torch.rand(1, 50, 3) - .5)*.3
    assert torch.allclose(s.colour(s.query(x)[0]), far.field(far.make_planes(ws, noise='const'), drive)(x)[0][..., :3], atol=1e-6)        # features in 0..1 are the colours
    assert torch.allclose(s.render(c)['image'], far.synthesize(ws, CAMERAS(0.), drive=drive, **SAME)['image'], atol=1e-4)
    import trimesh
    made = bake(s, trimesh.creation.icosphere(2, .12), 32, far.orbit([0., 1.]))
    assert save_mesh(made, tmp_path/'head.glb').stat().st_size > 1000 and mesh_render(made, 16)(c)['image'].isfinite().all()
    found = invert(far, s.render(c)['image'].clamp(-1, 1), c, InvertCfg(w_steps=3, tune_steps=2, perceptual=0.), folder=tmp_path, drive=drive)
    assert found.ws.shape == ws.shape and torch.equal(found.drive, drive)
    again = open_inversion(found.save(tmp_path/'found.safetensors', whole=False), far)
    assert torch.allclose(again.render()['image'], found.render()['image'], atol=1e-4)
    assert not torch.allclose(again.render(drive=far.rig.join())['image'], found.render()['image'], atol=1e-3)
    with pytest.raises(BadInput, match='another picture'): invert(far, s.render(c)['image'].clamp(-1, 1), c, InvertCfg(w_steps=3, tune_steps=2, perceptual=0.), folder=tmp_path)


def test_sample_and_evaluate(far, data, tmp_path):
    file = str(save(tmp_path/'far.safetensors', {'G_ema': far.state_dict()}, far.cfg, {}))
    made = template('sample', checkpoint=file, out=str(tmp_path/'sample'), seeds=[0, 1], drive=dict(jawOpen=.8), level=0., mesh_size=16)
    want = far.synthesize(made['ws'][:1], CAMERAS(0.), drive=to_drive(far.rig, jawOpen=.8), **SAME)['image']
    assert torch.allclose(made['images'][:1], want, atol=1e-4) and (tmp_path/'sample/head.glb').stat().st_size > 1000
    rest = template('sample', checkpoint=file, out=str(tmp_path/'rest'), seeds=[0], level=0., mesh_size=16)
    assert torch.allclose(rest['images'][:1], far.synthesize(rest['ws'], CAMERAS(0.), drive=far.rig.join(), **SAME)['image'], atol=1e-4)
    done = template('evaluate', checkpoint=file, data=str(data), n=16, batch=8, out=str(tmp_path/'evaluate'))
    assert {'FID', 'coverage', 'pose error / real', 'FID independent cameras'} <= set(done['results'])
    assert torch.equal(done['labels'][:, :25], HeadDataset(data).labels) and done['labels'].shape[1] == 25 + far.rig.drive_dim


@pytest.fixture(scope='module')
def textured():
    "An untrained Head360 of two mappings: its latent is that of the person and, behind it, that of the super-resolution."
    torch.manual_seed(0)
    G = Head360(small(32, 16, 16, sr_mapping=MappingCfg(8, w_dim=32, num_ws=2))).eval().requires_grad_(False)
    G.decoder.fc1.weight[0] *= 30
    assert G.z_dim == 16 + 8
    return G


def test_two_mappings_in_the_viewer(textured):
    scene = Scene(textured, budget=9.)
    z = torch.randn(1, 24, generator=torch.Generator().manual_seed(3))
    assert torch.equal(scene.codes(scene.style(seed=3, psi=1.)), textured.map(z, scene.front))
    for k in ('image', 'depth', 'normals', 'planes'): assert scene(scene.front, seed=3, psi=1.)[k].shape[0] == 1
    assert torch.allclose(scene(scene.front, seed=3, psi=1.)['image'], textured.synthesize(textured.map(z, scene.front), scene.front, **SAME)['image'], atol=1e-4)
    mixed = scene.codes(scene.style(seed=3, mix_seed=1, mix_from=4))
    assert mixed.shape == (1, textured.cfg.num_ws + 2, 32)


def test_two_mappings_in_sample_and_invert(textured, tmp_path):
    file = str(save(tmp_path/'head360.safetensors', {'G_ema': textured.state_dict()}, textured.cfg, {}))
    made = template('sample', checkpoint=file, out=str(tmp_path/'sample'), seeds=[0, 1], drive=dict(jawOpen=.8), level=0., mesh_size=16)
    off = [(made['images'][:1] - textured.synthesize(made['ws'][:1], textured.orbit(), drive=textured.pose(d), **SAME)['image']).abs().max() for d in (to_drive(textured.rig, jawOpen=.8), None)]
    assert off[0] < 1e-5 and off[1] > 3e-5 and (tmp_path/'sample/head.glb').stat().st_size > 1000, off      # an untrained texture shows little of what the mesh does
    found = template('invert', checkpoint=file, out=str(tmp_path/'invert'), invert=dict(w_steps=3, tune_steps=2, perceptual=0.))
    assert found['result']['status'] == 'done' and len(found['result']['heads']) == 2
    again = open_inversion(tmp_path/'invert/heads/000000.safetensors', textured)
    assert again.ws.shape == (1, textured.cfg.num_ws + 2, 32) and torch.allclose(again.render()['image'], found['heads'][0].render()['image'], atol=1e-4)
