"What is taken away, from models and in situations that the notebooks do not show."
import json

import numpy as np
import pytest
import torch
import trimesh

from headnb.base.camera import orbit
from headnb.base.core import BadInput
from headnb.gan.capture import save_frames, save_scene, scene_labels, splats
from headnb.gan.export import Subject, save_mesh, subject
from headnb.gan.texture import bake, mesh_render
from headnb.papers.panohead import PanoHead, config

HEAD = trimesh.creation.icosphere(2, .2)


@pytest.fixture(scope='module')
def pano():
    torch.manual_seed(0)
    G = PanoHead(config('tiny').G).eval().requires_grad_(False)
    ws = G.map(torch.randn(1, G.z_dim), orbit(0.))
    return G, ws, subject(G, ws)


def test_panohead_colours_are_its_own_toRGB(pano):
    G, ws, s = pano
    feat = torch.randn(1, 7, G.cfg.decoder.out_dim)
    raw = G.to_raw(feat.mT.unflatten(2, (7, 1)), ws)[..., 0].mT
    assert torch.allclose(s.colour(feat), raw/2 + .5, atol=1e-6)
    assert s.backdrop is None                                        # a network paints it: not known


def test_panohead_field_is_cropped_as_it_is_rendered(pano):
    G, _, s = pano
    edge = G.cfg.render.box_warp/2 - G.cfg.render.crop
    x = torch.tensor([[[edge + .01, 0, 0], [edge - .01, 0, 0], [0, edge + .01, 0]]])
    assert (s.query(x)[1][0, :, 0] == -1000).tolist() == [True, False, False]


def test_panohead_is_taken_away(pano, tmp_path):
    s = pano[2]
    made = bake(s, HEAD, 64, orbit(torch.tensor([0., 2.])))
    for kind in ('glb', 'obj', 'ply'): assert save_mesh(made, tmp_path/f'head.{kind}').stat().st_size > 1000
    assert mesh_render(made, 16)(orbit(0.))['image'].isfinite().all()
    c = orbit(torch.tensor([0., 1., 2.]), .1)
    about = json.loads((save_scene(s, c, tmp_path/'scene', HEAD, 100)/'transforms.json').read_text())
    assert torch.allclose(scene_labels(about), c, atol=1e-6)
    assert all((tmp_path/'scene'/f[k]).exists() for f in about['frames'] for k in ('file_path', 'depth_file_path'))
    assert len(splats(s, HEAD, c, 200)) > 50


def stub(c):
    "A renderer that breaks when it sees the back."
    if c[0, 11] < 0: raise RuntimeError('out of memory')
    return dict(image=torch.zeros(len(c), 3, 8, 8), depth=torch.full((len(c), 1, 8, 8), 2.7), mask=torch.ones(len(c), 1, 8, 8))


@pytest.mark.parametrize('save', [save_frames, lambda s, c, f: save_scene(s, c, f, HEAD, 50)])
def test_a_failure_half_way_leaves_nothing(save, tmp_path):
    s = Subject(stub, lambda x: (torch.zeros_like(x), .2 - x.norm(dim=-1, keepdim=True)))
    with pytest.raises(RuntimeError): save(s, orbit(torch.tensor([0., .3, 3.])), tmp_path/'set')
    assert list(tmp_path.iterdir()) == []


def test_full_folder_is_refused(pano, tmp_path):
    (tmp_path/'set').mkdir()
    (tmp_path/'set'/'mine.txt').write_text('keep me')
    with pytest.raises(BadInput, match='not an empty folder'): save_frames(pano[2], orbit(0.), tmp_path/'set')
    assert [p.name for p in (tmp_path/'set').iterdir()] == ['mine.txt']


def test_names_with_spaces(pano, tmp_path):
    made = bake(pano[2], HEAD, 32)
    path = save_mesh(made, tmp_path/'a head.obj')
    back = trimesh.load(path, process=False)
    assert np.asarray(getattr(back.visual.material, 'image', None) or back.visual.material.baseColorTexture).shape[:2] == (32, 32)
