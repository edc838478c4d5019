"""A run killed by SIGKILL at any named point and resumed gives bit-for-bit the weights of one never killed: EG3D at ten points, GenHead - driven, with pictures that have codes - at six.

Runs are forks of one helper process (processes.py). `HEADNB_KILL_AT=point:step` places the kill.
"""
import json, os, resource, signal, sys
from pathlib import Path
import pytest
from processes import ROOT, apart, forked, killed, recipe

STEPS, BATCH, PEOPLE = 6, 4, 32
DRIVEN = ['loader:3', 'G_step:5', 'G_reg:4', 'R1:4', 'EMA:3', 'checkpoint_write:4']
KILLS = ['loader:3', 'loader:5', 'G_step:5', 'G_reg:4', 'D_step:5', 'R1:4', 'EMA:3', 'checkpoint_write:4', 'rename:4', 'rename:6']


def tiny():
    "A tiny EG3D: 16 x 16 pictures, 8 x 8 rays."
    from headnb.field.planes import DecoderCfg, SamplerCfg
    from headnb.field.render import RenderCfg
    from headnb.gan.generator import Generator, GeneratorCfg
    from headnb.nets.discriminator import Discriminator, DiscriminatorCfg
    from headnb.nets.stylegan2 import MappingCfg, SynthesisCfg
    from headnb.nets.superres import SuperResCfg
    G = GeneratorCfg(MappingCfg(8, 25, 16, num_ws=6), SynthesisCfg(16, 16, 12, 64, 8), SamplerCfg(), DecoderCfg(4, 8, 4), RenderCfg(samples=4, importance=4),
                     SuperResCfg(size=8, channels=4, w_dim=16, widths=(8,), ups=(2,)), raw_size=8)
    return Generator(G), Discriminator(DiscriminatorCfg(resolution=16, channel_base=128, channel_max=8, map_layers=2))


def ada():
    from headnb.gan.augment import ADA, ADACfg
    return ADA(ADACfg(interval=1, kimg=.1))


def cfg(**kw):
    from headnb.gan.terms import ScheduleCfg
    from headnb.gan.train import ReconCfg, TrainCfg
    return TrainCfg(**dict(kimg=STEPS*BATCH/1000, batch=BATCH, density_every=2, r1_every=2, ada=True, mirror=True, recon=ReconCfg(kimg=.004, d_kimg=.004, fade_kimg=1.),
                           schedule=ScheduleCfg(raw_size=8, blur_sigma=1., blur_kimg=.1), snapshot_kimg=2*BATCH/1000, log_every=1, preview_kimg=.008, max_loss=1e6) | kw)


def eg3d(work, name, **kw):
    from headnb.gan.data import HeadDataset
    from headnb.gan.train import train
    return train(*tiny(), HeadDataset(work/'balls.zip', mirror=True), cfg(**kw), work/name, augment=ada())


def genhead(work, name, **kw):
    "The tiny configuration with its own terms and step: parts, correspondence maps, opacity, labels with codes."
    from dataclasses import replace
    from headnb.gan.data import HeadDataset
    from headnb.gan.train import train
    from headnb.papers import genhead as paper
    c = paper.config('tiny')
    c = replace(c, train=replace(c.train, kimg=STEPS*BATCH/1000, batch=BATCH, density_every=2, r1_every=2, snapshot_kimg=2*BATCH/1000, log_every=1, preview_kimg=.008, max_loss=1e6))
    return train(*paper.build(c), paper.arrange(c, HeadDataset(work/'people.zip')), c.train, work/name, paper.terms(c), make_step=paper.make_step(c))


def one_run(work, name, family=eg3d, **kw):
    "Train in this process; write what the last checkpoint holds."
    import random, numpy, torch
    from headnb.gan.train import checkpoints
    torch.set_num_threads(1)
    torch.manual_seed(0); random.seed(0); numpy.random.seed(0)
    run = family(work, name, **kw)
    last = checkpoints(work/name)[-1]
    state = json.loads((last/'state.json').read_text()); state.pop('seconds')
    sums = [l for l in (last/'SHA256SUMS').read_text().splitlines() if 'state.json' not in l]
    rows = [json.loads(l)['step'] for l in (work/name/'metrics.jsonl').read_text().splitlines()]
    (work/f'{name}.json').write_text(json.dumps([run.status, last.name, state, sums, rows]))


def fork(work, name, kill=None, file_limit=None, **kw):
    "Run in a forked process; -> its wait status."
    def job():
        if file_limit: signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        try: one_run(work, name, **kw)
        except OSError as e: (work/f'{name}.error').write_text(str(e)); return 3
    return forked(job, kill)


def balls(path):
    import numpy as np
    from headnb.base.camera import orbit
    from headnb.gan.data import write_dataset
    rng = np.random.default_rng(0)
    write_dataset(path, [dict(image=rng.integers(0, 255, (16, 16, 3), np.uint8), mask=np.full((16, 16), 255, np.uint8), c=orbit(float(y))[0]) for y in np.linspace(-1, 1, 12)])


def people(path):
    "Rendered faces of 16 pixels, their labels with codes: `codes_mini` of the recipe."
    return recipe('anny_heads').main([str(ROOT/'data_recipes/anny_heads/codes_mini.yaml'), str(path), '--count', str(PEOPLE), '--size', '16', '--workers', '1'])


def worker(work):
    "All runs: one undisturbed, one per kill point (killed, then resumed), one on a full disk."
    made = [forked(lambda: balls(work/'balls.zip')), forked(lambda: people(work/'people.zip'))]
    assert made == [0, 0], made
    import torch._dynamo, PIL.PngImagePlugin, accelerate, headnb.gan.augment, headnb.gan.generator, headnb.gan.train, headnb.nets.discriminator, headnb.papers.genhead, safetensors.torch, tqdm.auto  # noqa: F401  once, before the forks
    report = {'whole': fork(work, 'whole')}
    for kill in KILLS:
        name = kill.replace(':', '-')
        report[kill] = [fork(work, name, kill), fork(work, name)]
    report['driven'] = {'whole': fork(work, 'driven', family=genhead)}
    for kill in DRIVEN:
        name = f"driven-{kill.replace(':', '-')}"
        report['driven'][kill] = [fork(work, name, kill, family=genhead), fork(work, name, family=genhead)]
    report['chain'] = [fork(work, 'chain', k) for k in ('G_step:1', 'rename:2', 'D_step:3', 'EMA:4', None)]
    report['full'] = [fork(work, 'full', kimg=.012), fork(work, 'full', file_limit=20_000), len(list((work/'full/checkpoints').iterdir())), fork(work, 'full')]
    (work/'report.json').write_text(json.dumps(report))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('kill'), timeout=900)


def result(work, name):
    return json.loads((work/f'{name}.json').read_text())


def test_undisturbed(runs):
    work, report, stderr = runs
    assert report['whole'] == 0, stderr[-3000:]
    status, last, state, sums, rows = result(work, 'whole')
    assert (status, last, state['nimg'], rows) == ('done', 'step-00000006', STEPS*BATCH, list(range(1, STEPS + 1)))
    assert {s.split('  ')[1] for s in sums} == {'weights.safetensors', 'optimisers.safetensors', 'rank0.safetensors', 'rank0.json'}


@pytest.mark.parametrize('kill', KILLS)
def test_killed_and_resumed(runs, kill):
    work, report, stderr = runs
    first, second = report[kill]
    assert killed(first)
    assert second == 0, stderr[-3000:]
    assert result(work, kill.replace(':', '-')) == result(work, 'whole')     # weights, EMA, moments, ADA, random numbers, data order, log


def test_driven_undisturbed(runs):
    "What was trained on has codes, and the mesh, both discriminator inputs that follow from it and the part terms took part."
    work, report, stderr = runs
    assert report['driven']['whole'] == 0, stderr[-3000:]
    status, last, state, sums, rows = result(work, 'driven')
    assert (status, last, rows) == ('done', 'step-00000006', list(range(1, STEPS + 1))) and result(work, 'whole')[3] != sums
    log = [json.loads(l) for l in (work/'driven'/'metrics.jsonl').read_text().splitlines()]
    assert {'G/partdensity', 'G/partsmooth', 'D/r1', 'r1_corr', 'r1_mask'} <= set().union(*log), log[-1]


@pytest.mark.parametrize('kill', DRIVEN)
def test_driven_killed_and_resumed(runs, kill):
    work, report, stderr = runs
    first, second = report['driven'][kill]
    assert killed(first)
    assert second == 0, stderr[-3000:]
    assert result(work, f"driven-{kill.replace(':', '-')}") == result(work, 'driven')


def test_killed_four_times(runs):
    work, report, _ = runs
    assert [killed(s) for s in report['chain']] == [True]*4 + [False]
    assert result(work, 'chain') == result(work, 'whole')


def test_full_disk(runs):
    "A disk that is full while saving: one line, what was written stays, and with room the run ends as if nothing had been."
    work, report, _ = runs
    done, full, kept, after = report['full']
    assert (done, os.waitstatus_to_exitcode(full), after) == (0, 3, 0)
    message = (work/'full.error').read_text()
    assert 'cannot write' in message and '\n' not in message and kept == 2, message
    assert result(work, 'full') == result(work, 'whole')


if __name__ == '__main__':
    os.environ.setdefault('PYTHONPATH', '')
    worker(Path(sys.argv[1]))
