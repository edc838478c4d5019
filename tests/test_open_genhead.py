"A GenHead file as the release writes it - FLAME in buffers, vertex lists as plain arrays, pytorch3d's rasteriser - opens and renders what the golden case says; nothing of it runs."
import pickle, re, sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import official_writer as w
from headnb.base.core import BadInput
from headnb.gan.checkpoint import official_name, official_to_ours, ours_to_official, released_discriminator_cfg
from headnb.golden import Case, fill_state
from headnb.golden_genhead import filled, released_genhead, weights
from headnb.golden_rig import released_buffers, released_cameras, toy_codes, toy_rig
from headnb.nets.discriminator import Discriminator
from headnb.open import inspect, open_official
from headnb.papers.genhead import CONFIGS, GenHead

CASES = Path(__file__).parent/'golden'/'portrait4d'
w.STORAGES.setdefault('bool', 'BoolStorage')


def table(name): # state dict without what follows from FLAME
    case = Case(CASES/name)
    return {k: v.numpy() for k, v in fill_state([r for r in case.read('state_dict.json') if r[2] != 'flame'], case.seed).items()}


def flame(): # released key -> array; plain lists
    rig = toy_rig(Case(CASES/'genhead_tiny'))
    d, n = rig.data, len(rig.v_template)
    out = {k: v.numpy() for k, v in released_buffers(rig).items()}
    out |= dict(simplify_idxs=d['simp_idxs'], simplify_baris=d['simp_baris'], simplify_faces=d['simp_faces'], simplify_faces_region_idxs=d['simp_coarse_face_region_idxs'], lips_idxs=np.sort(d['mask_lips']), noinmouth_idxs=np.sort(d['mask_noinmouth']))
    out |= {k.removeprefix('add_'): d[k] for k in ('add_eye_idxs', 'add_face_idxs', 'add_vertices_region_idxs', 'add_dynamic_idxs', 'add_smallface_idxs', 'add_eyelids_idxs')}
    model = dict(eye_pose=np.zeros((1, 6), np.float32), neck_pose=np.zeros((1, 3), np.float32), faces_tensor=rig.faces.numpy(), v_template=rig.v_template.numpy(), shapedirs=torch.cat([rig.shapedirs, rig.expdirs], -1).numpy(),
                 posedirs=rig.posedirs.permute(2, 0, 1).reshape(36, -1).numpy(), J_regressor=rig.J_regressor.numpy(), parents=np.array(rig.parents), lbs_weights=rig.weights.numpy(),
                 **{k.removeprefix('lmk_').replace('static_lmk', 'lmk') if 'static' in k else k.removeprefix('lmk_'): d[k] for k in d if k.startswith('lmk_')})
    eyes = np.concatenate([d['mask_left_eyeball'], d['mask_right_eyeball']])
    lists = dict(face_mask=np.union1d(d['mask_face'], eyes), eye_mask=np.sort(eyes), lips_mask=np.sort(d['mask_lips']), face_wo_eye_mask=np.sort(d['mask_face']), noinmouth_mask=np.sort(d['mask_noinmouth']))
    assert model['posedirs'].shape == (36, 3*n)
    return {f'deformer.flame_deform.{k}': v for k, v in out.items()} | {f'deformer.flame_deform.flame_model.{k}': v for k, v in model.items()}, lists


def array(x): # a numpy array in a pickle
    dtype = w.Call(w.Global('numpy', 'dtype'), 'i8', False, True, state=(3, '<', None, None, None, -1, -1, 0))
    return w.Call(w.Global('numpy.core.multiarray', '_reconstruct'), w.Global('numpy', 'ndarray'), (0,), b'b', state=(1, tuple(x.shape), dtype, False, x.astype(np.int64).tobytes()))


def layer(lists):
    def make(name, state, prefix=''):
        if name == 'flame_model': return w.plain('models.FLAME.DecaFLAME', 'FLAME', state)
        if name == 'flame_deform':
            state = state | {'box_warp': 1.3, **{k: array(v) for k, v in lists.items()}}
            settings = w.plain('pytorch3d.renderer.mesh.rasterizer', 'RasterizationSettings', {'image_size': 64})
            drawer = w.plain('training.deformer.mesh_renderer', 'MeshRenderer', w.module_state(children={'rasterizer': w.plain('pytorch3d.renderer.mesh.rasterizer', 'MeshRasterizer', w.module_state(raster_settings=settings))}))
            state['_modules'] = w.ordered(state['_modules'].items | {'mask_renderer': drawer})
            return w.persistent('FLAME_Deformer', state, 'flame')
        if name == 'net': return w.plain('torch.nn.modules.container', 'Sequential', state)
        return w.layer(name, state, prefix)
    return make


def constructor():
    c = Case(CASES/'genhead_tiny').config
    names = ('z_dim', 'w_dim', 'c_dim', 'img_resolution', 'triplane_resolution', 'triplane_channels', 'channel_base', 'channel_max', 'has_superresolution')
    options = {k: c[k] for k in ('depth_resolution', 'depth_resolution_importance', 'box_warp')} | dict(ray_start='auto-plane', ray_end='auto-plane', clamp_mode='softplus', use_ws_ones=True, c_scale=1, c_gen_conditioning_zero=False,
               superresolution_module='models.stylegan.superresolution.SuperresolutionHybrid8XDC', superresolution_noise_mode='none', sr_antialias=True, decoder_lr_mul=1, density_reg=.25, density_reg_p_dist=.004)
    return {k: c[k] for k in names} | dict(img_channels=3, num_fp16_res=0, conv_clamp=None, has_background=True, flame_condition=True, flame_full=True, mapping_kwargs=dict(num_layers=2), fused_modconv_default='inference_only',
            deformation_kwargs=dict(flame_cfg_path='configs/flame.yaml', mapping_kwargs={}, box_warp=1.3), rendering_kwargs=options)


def genhead(change=lambda t: t):
    buffers, lists = flame()
    rows = table('genhead_tiny')

    state = tree(change(rows | buffers), make=layer(lists))
    kw = constructor()
    state |= {'z_dim': 32, 'c_dim': 325, 'w_dim': 32, 'rendering_kwargs': w.easy(kw['rendering_kwargs']), 'neural_rendering_resolution': 16}
    return w.persistent('PartTriPlaneGeneratorDeform', state, 'generator', '', (), kw)


def tree(rows, name='', make=None): # as w.tree, whose decoder has a network of three layers
    here, below = {}, {}
    for key, x in rows.items():
        head, _, rest = key.partition('.')
        if rest: below.setdefault(head, {})[rest] = x
        else: here[head] = x
    own = w.module_state({}, here, {k: tree(v, k, make) for k, v in below.items()})
    return make(name, own) if name else own


def discriminator_args(): # of the tiny case, as a released file has them
    c = Case(CASES/'discriminator_tiny').config
    return dict(class_name='training.dual_discriminator.DualDiscriminatorDeform', c_dim=25, img_resolution=c['img_resolution'], img_channels=3, channel_base=c['channel_base'], channel_max=c['channel_max'],
                num_fp16_res=4, conv_clamp=256, epilogue_kwargs=dict(mbstd_group_size=2), block_kwargs=dict(freeze_layers=0), mapping_kwargs={})


def write(tmp_path, data):
    (tmp_path/'genhead.pkl').write_bytes(data)
    return tmp_path/'genhead.pkl'


@pytest.mark.parametrize('protocol', [4, 5])
def test_opens_and_renders(tmp_path, monkeypatch, protocol):
    monkeypatch.setenv('HEADNB_TRACE', str(tmp_path/'executed'))
    path = write(tmp_path, w.dump(w.checkpoint(G_ema=genhead(), D_patch=None), protocol))
    o = open_official(path)
    assert o.family == 'genhead' and not (tmp_path/'executed').exists()
    case = Case(CASES/'genhead_tiny')
    want, G = released_genhead(case), o.generator
    assert G.cfg == want.cfg and G.state_dict().keys() == weights(case).keys() and all(torch.equal(G.state_dict()[k], v) for k, v in weights(case).items())
    codes, c, z = toy_codes(case), released_cameras(case.spec['inputs']['cameras']), filled(case, 'z', (1, 32))
    with torch.no_grad(): a, b = (g(z, c, drive=g.deformer.rig.join(**codes), noise='const', deterministic=True) for g in (G, want))
    for k in b: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=0)
    assert 'genhead' in inspect(path)


@pytest.mark.parametrize('lost, message', [('deformer.flame_deform.flame_model.shapedirs', "lacks 'shapedirs'"), ('background.synthesis.b4.const', 'missing keys'), ('decoder.out_sigma.weight', 'decoder.out_sigma.weight')])
def test_names_what_is_missing(tmp_path, lost, message):
    with pytest.raises(BadInput, match=re.escape(message)): open_official(write(tmp_path, w.dump({'G_ema': genhead(lambda t: {k: v for k, v in t.items() if k != lost})})))


def test_discriminator():
    "Beside a generator without super-resolution a 64-pixel discriminator makes no pair (the toy case has none), so it is read by itself."
    D = Discriminator(released_discriminator_cfg(discriminator_args()))
    assert D.cfg.keys == ('image', 'raw', 'corr', 'mask') and D.cfg.mbstd_group == 2
    D.load_state_dict({k: torch.from_numpy(v) for k, v in official_to_ours(table('discriminator_tiny'), 'genhead', 'D').items()})


@pytest.mark.parametrize('name', ['genhead', 'discriminator'])
def test_key_table(name):
    "The released names of our parameters are those of the released architecture."
    rows = Case(CASES/f'full_{name}').read('state_dict.json')
    theirs = [k for k, *_ in rows]
    assert len(set(theirs)) == len(theirs)
    cfg = CONFIGS['released']
    with torch.device('meta'): net = GenHead(cfg.G, torch.nn.Identity()) if name == 'genhead' else Discriminator(cfg.D)
    shapes = {k: list(v.shape) for k, v in ours_to_official(net.state_dict(), 'genhead', 'G' if name == 'genhead' else 'D').items()}
    assert shapes == {k: shape for k, shape, *_ in rows if official_name(k, 'genhead', 'G' if name == 'genhead' else 'D')}


def test_a_folder_of_flame_files(tmp_path):
    "cfg.rig as a folder: the model and its masks in files of their own, sorted by content."
    from headnb.field.deform import DeformCfg
    from headnb.golden_rig import toy_arrays
    from headnb.papers.genhead import open_deformer
    a = toy_arrays(CASES/'assets'/'flame_tiny_a.npz')
    masks = {k: a.pop(k) for k in [*a] if k.startswith('mask_')}
    np.savez(tmp_path/'model.npz', **a)
    (tmp_path/'FLAME_masks.pkl').write_bytes(pickle.dumps({k.removeprefix('mask_'): v for k, v in masks.items()}))
    d = open_deformer(str(tmp_path), DeformCfg('released'))
    drive = torch.zeros(1, d.rig.drive_dim)
    assert d.pose(drive).vertices.shape == (1, len(a['v_template']), 3) and d.rig.posed()[1][0, 1].norm() < .1    # the neck is the origin, but for the open jaw
