"""RefineNet's training: killed (SIGKILL) and resumed bit for bit, the command, the use of its checkpoint, and what is refused."""
import json, sys
from pathlib import Path
import pytest
from processes import apart, disturbed, forked, killed, left_behind

KILLS = ('G_step:1', 'D_step:2', 'EMA:3', 'rename:4')
STEPS, BATCH = 6, 2


def pictures(work):
    "Heads and their blurred copies, stored; some that do not fit."
    import torch
    from headnb.base.camera import orbit
    from headnb.field.heads import render_heads
    from headnb.gan.data import to_bytes, write_dataset
    from headnb.gan.judges import person
    from headnb.nets.ops import blur
    x = render_heads([person(i, 0) for i in range(6)], orbit(torch.linspace(-1, 1, 6)), 16, background='white', corr=False)['image']
    write = lambda name, x: write_dataset(work/name, (dict(image=p.permute(1, 2, 0).numpy()) for p in to_bytes(x.clamp(-1, 1))))
    write('set.zip', x); write('set_input.zip', blur(x - 1, .7) + 1); write('few.zip', x[:3]); write('small.zip', x[..., ::2, ::2])


def one_run(work, name):
    "The tiny configuration on stored pairs, every pair also flipped."
    from dataclasses import replace
    import random, numpy, torch
    from headnb.gan.train import train
    from headnb.papers import refinenet as paper
    torch.set_num_threads(1); torch.manual_seed(0); random.seed(0); numpy.random.seed(0)
    c = paper.config('tiny')
    at = lambda step: step*BATCH/1000
    c = replace(c, train=replace(c.train, kimg=at(STEPS), batch=BATCH, mirror=True, snapshot_kimg=at(2), preview_kimg=at(3)))
    run = train(*paper.build(c), paper.open_data(c, str(work/'set.zip')), c.train, work/name, paper.terms(c), make_step=paper.make_step(c))
    (work/f'{name}.json').write_text(json.dumps(left_behind(run, work/name)))


def worker(work):
    import accelerate, PIL.PngImagePlugin, torch._dynamo, headnb.papers.refinenet, headnb.gan.train, safetensors.torch, tqdm.auto  # noqa: F401  once, before the forks
    assert not forked(lambda: pictures(work))
    (work/'report.json').write_text(json.dumps(disturbed(lambda name, kill: forked(lambda: one_run(work, name), kill), KILLS)))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('refinenet'), timeout=600)


def result(work, name): return json.loads((work/f'{name}.json').read_text())


def test_undisturbed(runs):
    work, report, log = runs
    assert report['whole'] == 0, log[-2000:]
    status, _, _, _, steps, names = result(work, 'whole')
    assert status == 'done' and steps == [*range(1, STEPS + 1)]
    assert [k for k in names[-1] if 'grad' not in k] == ['D/verdict', 'G/matching', 'G/perceptual', 'G/verdict']
    assert list((work/'whole/previews').iterdir())


@pytest.mark.parametrize('kill', KILLS)
def test_killed_and_resumed(runs, kill):
    work, report, log = runs
    first, second = report[kill]
    assert killed(first) and second == 0, log[-2000:]
    assert result(work, kill.replace(':', '-'))[:4] == result(work, 'whole')[:4]


def test_the_command_and_what_it_refuses(runs, capsys):
    "Refused before anything runs; then a run, whose folder refines pictures."
    import torch
    from headnb.papers.refinenet import ablation, open_refiner, refine
    from headnb.gan.pairs import stored
    from headnb.runs import main
    work = runs[0]
    run = lambda *p: main(['tiny/refinenet', '--out', str(work/'out'), *(a for x in p for a in ('-p', x))])
    data = lambda **kw: 'data={' + ', '.join(f'{k}: {v}' for k, v in kw.items()) + '}'
    for given, message in ((data(pictures=work/'set.zip', input=work/'few.zip'), 'few.zip: nothing is given for 00000/img00000003.png; a pair has one name in both sets'),
                           (data(pictures=work/'set.zip', input=work/'small.zip'), 'small.zip: pictures of 8 pixels; those of'),
                           (f'data={work}/few.zip', 'no data set at'),
                           (data(pictures=work/'small.zip', blur=.7), '8 x 8 pixels, but 16 x 16 are expected'),
                           (data(pictures=work/'set.zip', generator='eg3d-mini'), 'there is no pair; a trained Head360 is expected'),
                           (data(pictures=work/'set.zip', blur=.7, generator='eg3d-mini'), 'data names generator and blur; a pair has one of them')):
        assert run(given) == 2
        assert message in capsys.readouterr().err
    assert run(data(pictures=work/'set.zip', blur=.7)) == 0
    out = work/'out'/'tiny-refinenet'
    assert json.loads((out/'result.json').read_text())['status'] == 'done'
    R, pairs = open_refiner(out), stored(work/'set.zip')
    given = pairs.load([0, 1, 2, 3, 4, 5])['input']
    assert torch.allclose(refine(out, given), refine(R, given, batch=4), atol=1e-5) and not torch.equal(refine(R, given), given)
    assert ablation(R, pairs)['with']['PSNR'].count == (6, 6)
    again = ['tiny/refinenet', '--dry-run', '-p', data(pictures=work/'set.zip', blur=.7), '-p']
    assert main([*again, f'start={out}']) == 0                                       # goes on from its own weights, G and D
    assert main([*again, 'start=eg3d-mini']) == 2 and 'holds no D' in capsys.readouterr().err


def test_parameter_files():
    from headnb.base.core import from_dict
    from headnb.papers.refinenet import PairsCfg, config
    from headnb.runs import TrainRun, model_config, read_spec
    for size in ('tiny', 'mini', 'paper'):
        spec = from_dict(TrainRun, read_spec(f'{size}/refinenet')[2])
        c = model_config(spec)
        assert (c.G, c.D) == (config(size).G, config(size).D) and from_dict(PairsCfg, spec.data).pictures
    assert (c.train.look, c.train.batch, c.train.kimg) == ('weights/vgg16.pth', 1, 74880)


if __name__ == '__main__': worker(Path(sys.argv[1]))
