"A reconstructor's file as the release writes it opens, with the FLAME it carries. The released width is fixed in its code (0.9 GB), so the file here holds a tiny network and its config is put in the place of the one that was read."
import re, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import official_writer as w
from headnb.base.core import BadInput
from headnb.gan.checkpoint import generator_of, load, official_name, official_to_ours, ours_to_official, save
from headnb.golden import Case
from headnb.golden_rig import toy_codes, toy_rig
from headnb.open import inspect, open_official
from headnb.field.deform import DeformCfg
from headnb.papers import portrait4d
from headnb.papers.portrait4d import CONFIGS, Portrait4DCfg, Reconstructor, build, config
from test_open_genhead import flame, layer

CASES = Path(__file__).parent/'golden'/'portrait4d'
w.STORAGES.setdefault('bool', 'BoolStorage')
CLASSES = {'encoder_global': ('models.deeplabv3.decoder', 'DeepLabV3'), 'encoder': ('segmentation_models_pytorch.encoders.resnet', 'ResNetEncoder'), 'layer1': ('torch.nn.modules.container', 'Sequential'), 'encoder_canonical': ('models.mix_transformer.mix_transformer', 'BlockCross'),
           'generator_triplane': ('models.mix_transformer.mix_transformer', 'Block'), 'background': ('models.unet.openaimodel', 'Unet'), 'decoder': ('training.triplane', 'OSGDecoder')}


TINY = replace(CONFIGS['tiny'].G, rig='flame', frame='opengl', deform=DeformCfg('released'))


def born(): # our state of a tiny network
    torch.manual_seed(0)
    return Reconstructor(TINY, torch.nn.Identity()).state_dict()


def flat(): return {k: v.numpy() for k, v in ours_to_official(born(), 'portrait4d').items()} | {'dataset_label_std': np.zeros((), np.int64)}


@pytest.fixture
def small(monkeypatch): # what was read of the file is kept in the list
    seen, read = [], portrait4d.released_cfg
    monkeypatch.setattr(portrait4d, 'released_cfg', lambda *a, **k: (seen.append(read(*a, **k)), TINY)[1])
    return seen


def tree(table, name='', make=None):
    here, below = {}, {}
    for key, x in table.items():
        head, _, rest = key.partition('.')
        if rest: below.setdefault(head, {})[rest] = x
        else: here[head] = x
    own = w.module_state(children={k: tree(v, k, make) for k, v in below.items()})
    own['_buffers'] = w.ordered({k: w.Array(x) for k, x in here.items()})
    return make(name, own) if name else own


def reconstructor(change=lambda t: t):
    buffers, lists = flame()
    flames = layer(lists)
    make = lambda name, own: flames(name, own) if name.startswith('flame') or name == 'deformer' else w.plain(*CLASSES.get(name, ('torch.nn.modules.container', 'Sequential')), own)
    options = dict(depth_resolution=48, depth_resolution_importance=48, ray_start='auto-plane', ray_end='auto-plane', box_warp=1.3, clamp_mode='softplus', c_scale=1, superresolution_module='models.stylegan.superresolution.SuperresolutionHybrid8XDC',
                   superresolution_noise_mode='none', sr_antialias=True, decoder_lr_mul=1, density_reg=.25, density_reg_p_dist=.004)
    kw = dict(c_dim=25, img_resolution=512, img_channels=3, sr_num_fp16_res=4, has_background=True, has_superresolution=True, flame_full=True, num_blocks_neutral=1, num_blocks_motion=1, deformation_kwargs=dict(flame_cfg_path='configs/flame.yaml', mapping_kwargs={}, box_warp=1.3), rendering_kwargs=options)
    state = tree(change(flat() | buffers), make=make) | {'c_dim': 25, 'rendering_kwargs': w.easy(options), 'neural_rendering_resolution': 128}
    return w.persistent('TriPlaneReconstructorNeutralize', state, 'reconstructor', '', (), kw)


def write(tmp_path, data):
    (tmp_path/'portrait4d.pkl').write_bytes(data)
    return tmp_path/'portrait4d.pkl'


def test_opens(tmp_path, monkeypatch, small):
    monkeypatch.setenv('HEADNB_TRACE', str(tmp_path/'executed'))
    path = write(tmp_path, w.dump(w.checkpoint(G_ema=reconstructor(), D_patch=None)))
    o = open_official(path)
    assert o.family == 'portrait4d' and not (tmp_path/'executed').exists()
    phi = CONFIGS['released'].G.phi
    assert small == [replace(CONFIGS['released'].G, raw_size=128, phi=replace(phi, neutral=1, moving=1))]
    G, want = o.generator, born()
    assert type(G) is Reconstructor and {k: v for k, v in G.state_dict().items()}.keys() == want.keys() and all(torch.equal(v, want[k]) for k, v in G.state_dict().items())
    assert 'portrait4d' in inspect(path)
    case = Case(CASES/'genhead_tiny')
    code = toy_rig(case).join(**toy_codes(case))
    torch.testing.assert_close(G.pose(code).vertices, toy_rig(case)(*toy_rig(case).split(code)), atol=1e-5, rtol=0)


@pytest.mark.parametrize('lost, message', [('encoder_canonical.proj_y.weight', 'missing keys: encoder_canonical.proj_y.weight'), ('background.down_conv_1.2.op.bias', 'background.down_conv_1.2.op.bias')])
def test_names_what_is_missing(tmp_path, small, lost, message):
    with pytest.raises(BadInput, match=re.escape(message)): open_official(write(tmp_path, w.dump({'G_ema': reconstructor(lambda t: {k: v for k, v in t.items() if k != lost})})))


def test_names_there_and_back():
    "The table is one to one over all released parameters."
    theirs = [k for k, *_ in Case(CASES/'full_reconstructor').read('state_dict.json') if official_name(k, 'portrait4d')]
    ours = official_to_ours(dict.fromkeys(theirs), 'portrait4d')
    assert len(ours) == len(theirs) and list(ours_to_official(ours, 'portrait4d')) == theirs
    with torch.device('meta'): assert set(ours) == set(Reconstructor(CONFIGS['released'].G, torch.nn.Identity()).state_dict())


def test_a_checkpoint_of_ours(tmp_path):
    "Saved with its config, read back, the same bits."
    torch.manual_seed(0)
    G = build(config('tiny'))[0].eval()
    package = load(save(tmp_path/'p.safetensors', dict(G=G), config('tiny')))
    assert type(package.cfg) is Portrait4DCfg
    again = package.into('G', generator_of(package.cfg.G)).eval()
    x, v, c = torch.rand(1, 3, 16, 16)*2 - 1, torch.randn(1, 61), G.orbit(torch.tensor([.3]))
    with torch.no_grad(): a, b = (g(x, v, v, c, deterministic=True) for g in (G, again))
    assert all(torch.equal(a[k], b[k]) for k in a)
