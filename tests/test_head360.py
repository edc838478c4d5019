"Head360's generator as a user meets it: saved, opened by its file, driven; what it refuses."
import pytest
import torch

from headnb.base.core import BadInput
from headnb.gan.checkpoint import open_generator, save
from headnb.papers.head360 import Head360, small


@pytest.fixture(scope='module')
def G():
    torch.manual_seed(0)
    return Head360(small(16, 16, 32, 4)).eval().requires_grad_(False)


def drive(G, **weights): return G.rig.join(expression=G.rig.expression_code(**weights))


def test_file_opens_by_itself(G, tmp_path):
    again, _ = open_generator(save(tmp_path/'model.safetensors', {'G_ema': G}, G.cfg))
    z, c, same = torch.randn(1, G.z_dim), G.orbit(.3), dict(noise='const', deterministic=True)
    ours = [g(z, c, drive=drive(G, jawOpen=1.), **same)['image'] for g in (G, again)]
    assert torch.equal(*ours)
    assert (G(z, c, drive=drive(G), **same)['image'] - ours[0]).abs().max() > 1e-4          # the expression shows


def test_batch_is_samples(G):
    "Each sample of a batch gets its own mesh, box and texture."
    z, c, same = torch.randn(2, G.z_dim), G.orbit(torch.tensor([0., 1.])), dict(noise='const', deterministic=True)
    codes = torch.cat([drive(G, jawOpen=1.), drive(G, mouthPucker=1.)])
    both = G(z, c, drive=codes, **same)['raw']
    alone = torch.cat([G(z[i:i + 1], c[i:i + 1], drive=codes[i:i + 1], **same)['raw'] for i in (0, 1)])
    assert (both - alone).abs().max() < 1e-3


@pytest.mark.parametrize('change, words', [(lambda x: x[:, :100], 'this topology needs'), (lambda x: x[:, :-70], 'a mesh of 5782 rows; this topology needs 5782 vertices and 70 landmarks'), (lambda x: torch.cat([x, x[:, :9]], 1), 'a mesh of 5861 rows'), (lambda x: x*float('nan'), 'vertices of sample 0 are not finite'), (lambda x: x + 3, 'leaves the picture')])
def test_other_meshes_are_refused(G, change, words):
    with pytest.raises(BadInput, match=words): G(torch.randn(1, G.z_dim), G.orbit(), drive=change(G.pose()))


def test_codes_of_another_rig_are_refused(G):
    with pytest.raises(BadInput, match='drive is .1, 51.'): G(torch.randn(1, G.z_dim), G.orbit(), drive=torch.zeros(1, 51))
