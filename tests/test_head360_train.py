"Head360 and Next3D learn: killed and resumed bit for bit, stage 2 from stage 1, what is frozen stays."
import json, os, subprocess, sys
from dataclasses import replace

import pytest
import torch

from headnb.base.camera import orbit
from headnb.base.core import repo_path, write_atomic
from headnb.field.bilinear import head_bilinear
from headnb.field.rig import load_head
from headnb.gan.checkpoint import open_generator
from headnb.gan.data import write_dataset
from headnb.gan.train import weights_of
from headnb.papers.head360 import Head360, small
from headnb.runs import TrainRun, model_config, prepare, read_spec, worker

SHORT = {f'train.{k}': v for k, v in dict(kimg=.016, batch=4, snapshot_kimg=.004, log_every=1, preview_kimg=.008, density_every=2, r1_every=2).items()}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "Sums are the same bit for bit only where their parts are added in the same order."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('OMP_NUM_THREADS', '1')
        m.setenv('HEADNB_QUIET', '1')
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Two people with two expressions from two sides, with hair (dark above) and without; each has a colour."
    here, rig = tmp_path_factory.mktemp('head360'), load_head()
    shapes, skin = rig.sample_shape(2, torch.Generator().manual_seed(0)), torch.tensor([[200, 120, 90], [90, 140, 200]])
    def items():
        for i in range(16):
            who, mood, view, bare = i % 2, i//2 % 2, i//4 % 2, i//8
            image = skin[who].expand(16, 16, 3).clone()
            if not bare: image[:8] = 20
            drive = rig.join(shapes[who:who + 1], rig.expression_code(jawOpen=float(mood)))[0]
            yield dict(image=image.byte().numpy(), mask=torch.full((16, 16), 255).byte().numpy(), c=orbit(float(2*view))[0], drive=drive, info=dict(person=who, expression=mood, view=view, bare=bool(bare)))
    write_dataset(here/'set.zip', items())
    return here


def begin(place, name, *changes, config='tiny', **more):
    "A run's folder, ready for `worker`: what headnb-run does without a notebook."
    spec = place/f'{name}.yaml'
    spec.write_text(f'paper: head360\nconfig: {config}\ndata: {place}/set.zip\n')
    facts, out = prepare(spec, [f'{k}={v}' for k, v in (SHORT | more).items()] + list(changes), root=place/'out')
    write_atomic(out/'config.json', json.dumps(facts))
    return out


def rows(out): return [json.loads(l) for l in (out/'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def stage1(place):
    out = begin(place, 'stage1')
    worker(out)
    return out


def test_killed_and_resumed(place, stage1):
    "SIGKILL in the third step of D, then on to the end: the same weights as the run that was left alone."
    out = begin(place, 'killed')
    dead = subprocess.run([sys.executable, '-m', 'headnb.runs', '--worker', str(out)], env=os.environ | {'HEADNB_KILL_AT': 'D_step:2'}, cwd=repo_path(), capture_output=True, text=True, timeout=280)
    assert dead.returncode == -9 and not (out/'result.json').exists(), dead.stderr
    worker(out)
    a, b = (weights_of(f) for f in (out, stage1))
    assert all(torch.equal(a[m][k], b[m][k]) for m in a for k in a[m])
    assert [{'G/photometric', 'G/logistic', 'D/logistic'} <= set(r) for r in rows(out)] == [True]*4 and ['G/density' in r for r in rows(out)] == [True, False]*2
    assert list((out/'previews').glob('*.png'))
    assert model_config(TrainRun('head360', 'tiny')).G == open_generator(out)[0].cfg


def test_stage_two_and_what_is_frozen(place, stage1):
    "Begins with stage 1; the frozen parts stay, the others learn; a bald head hears nothing of the still planes."
    out = begin(place, 'stage2', 'G.stage=2', f'start={stage1}', 'train.freeze=[decoder, texture]', **{'train.kimg': .048, 'train.lr_G': .01, 'train.warmup_kimg': .004, 'train.preview_kimg': 0, 'train.snapshot_kimg': 1})
    worker(out)
    old, new = (weights_of(f)['G'] for f in (stage1, out))
    part = lambda k: k.split('.')[0]
    learnt = {part(k) for k in new if not k.endswith(('w_avg', 'noise_const')) and not torch.equal(old[k], new[k])}
    assert learnt == {'mapping', 'planes', 'completion'}
    loss = [r['G/photometric'] for r in rows(out)]
    assert sum(loss[-3:]) < .9*sum(loss[:3]), loss
    G = open_generator(out)[0].requires_grad_(True)
    ws = G.map(torch.randn(1, G.z_dim), G.orbit()).detach()
    G.synthesize(ws, G.orbit(), hair=[0], noise='const', deterministic=True)['image'].sum().backward()
    assert G.planes.b8.conv1.weight.grad.abs().sum() == 0 < G.texture.b8.conv1.weight.grad.abs().sum()


def test_as_released(place):
    "Two latents, a discriminator that is told the expression: two steps."
    out = begin(place, 'released', 'D.c2_dim=52', 'train.latent=shape', 'G.sr_mapping={z_dim: 8, c_dim: 25, w_dim: 32, num_ws: 2, layers: 2}', **{'train.kimg': .008})
    cfg = model_config(TrainRun(**{k: v for k, v in json.loads((out/'config.json').read_text())['parameters'].items()}))
    assert cfg.D.c2_dim == 52 and cfg.G.sr_mapping.z_dim == 8 and cfg.train.latent == 'shape'
    worker(out)
    assert open_generator(out)[0].z_dim == 16 + 8 and len(rows(out)) == 2


def test_next3d(place):
    "Random latents, no pictures to compare with."
    out = begin(place, 'next3d', config='next3d-tiny', **{'train.kimg': .008})
    worker(out)
    assert not any('G/photometric' in r for r in rows(out)) and open_generator(out)[0].cfg.sides.join == 'sum'


@pytest.mark.parametrize('config, kind', [('nerf-tiny', 'Nerf'), ('eg3d-micro', 'Told'), ('panohead-micro', 'Told')])
def test_what_it_is_compared_with(place, config, kind):
    "Told the person, with the photometric loss; the checkpoint finds its class."
    out = begin(place, config, config=config, **{'train.kimg': .008, 'train.schedule.raw_size': 16, 'D.resolution': 16, 'G.raw_size': 16})
    worker(out)
    assert all('G/photometric' in r for r in rows(out)) and type(open_generator(out)[0]).__name__ == kind and list((out/'previews').glob('*.png'))


RUNS = sorted(p.relative_to(repo_path('papermill_runs')).with_suffix('') for k in ('head360', 'next3d') for p in repo_path('papermill_runs').glob(f'*/{k}*.yaml') if p.parent.name != 'tables')

@pytest.mark.parametrize('path', RUNS, ids=str)
def test_every_run_names_a_configuration(path):
    cfg = model_config(TrainRun(**read_spec(str(path))[2]))
    assert cfg.G.stage == 1 + ('detach' in path.name) and path.name.startswith('next3d') == (cfg.train.photo_weight == 0)


def test_a_rig_from_a_file(tmp_path):
    "A bilinear head by its path; its landmarks by their embedding, or as its last vertices."
    rig = head_bilinear(4)
    path = rig.save_bilinear(tmp_path/'head.npz')
    cfg = replace(small(16, 16), rig=f'bilinear:{path}')
    code = rig.join(rig.people[:1])
    whole, last = (Head360(replace(cfg, embedded=e)).pose(code) for e in (True, False))
    assert whole.shape[1] == last.shape[1] + 70 and torch.allclose(last, rig(*rig.split(code)), atol=1e-5)
