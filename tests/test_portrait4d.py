"""Portrait4D's training: rows of Table 3 as parameter files, the command on a set made here, killed (SIGKILL) and resumed bit for bit."""
import json, sys
from pathlib import Path
import pytest
from processes import ROOT, apart, disturbed, forked, killed, left_behind, recipe

KILLS = ('G_step:1', 'R1:2', 'EMA:3', 'rename:4', 'D_step:5')   # set on the way: guided by the GenHead, with identity, with D
STEPS, BATCH = 6, 2


def sets(work):
    "A GenHead's set and one of true renders, by the recipe."
    for spec, name, more in (('tiny', 'set', []), ('tiny', 'renders', ['-p', 'checkpoint=renders', '-p', 'side=16', '-p', 'raw_size=16'])):
        if code := recipe('genhead_4d').main([str(ROOT/f'data_recipes/genhead_4d/{spec}.yaml'), str(work/name), '--no-measure', *more]): return code


def one_run(work, name):
    "The tiny configuration, every phase within six steps."
    from dataclasses import replace
    import random, numpy, torch
    from headnb.gan.train import train
    from headnb.papers import portrait4d as paper
    torch.set_num_threads(1); torch.manual_seed(0); random.seed(0); numpy.random.seed(0)
    c = paper.config('tiny')
    at = lambda step: step*BATCH/1000
    c = replace(c, train=replace(c.train, kimg=at(STEPS), batch=BATCH, guide_kimg=at(3), id_kimg=at(3), adv_kimg=at(2), freeze='paper', freeze_kimg=at(4), cross_lr=2.5, density_every=2, r1_every=2, snapshot_kimg=at(2), log_every=1, preview_kimg=at(3), max_loss=1e6))
    run = train(*paper.build(c), paper.open_data(c, str(work/'set'), None), c.train, work/name, paper.terms(c), make_step=paper.make_step(c), speed=paper.speed(c))
    (work/f'{name}.json').write_text(json.dumps(left_behind(run, work/name)))


def worker(work):
    assert not forked(lambda: sets(work))
    import accelerate, PIL.PngImagePlugin, torch._dynamo, headnb.papers.portrait4d, headnb.gan.train, safetensors.torch, tqdm.auto  # noqa: F401  once, before the forks
    (work/'report.json').write_text(json.dumps(disturbed(lambda name, kill: forked(lambda: one_run(work, name), kill), KILLS)))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('portrait'), timeout=900)


def result(work, name): return json.loads((work/f'{name}.json').read_text())


def test_undisturbed(runs):
    work, report, _ = runs
    assert report['whole'] == 0
    status, _, _, _, steps, names = result(work, 'whole')
    assert status == 'done' and steps == [*range(1, STEPS + 1)]
    assert 'G/triplane' in names[2] and 'G/identity' not in names[2] and 'G/triplane' not in names[3] and 'G/identity' in names[3]
    assert 'D/logistic' not in names[1] and {'D/logistic', 'D/r1', 'G/density'} <= set(names[4])
    assert list((work/'whole/previews').iterdir())


@pytest.mark.parametrize('kill', KILLS)
def test_killed_and_resumed(runs, kill):
    work, report, log = runs
    first, second = report[kill]
    assert killed(first) and second == 0, log[-2000:]
    assert result(work, kill.replace(':', '-'))[:4] == result(work, 'whole')[:4]


def test_the_command_and_true_renders(runs, capsys):
    "headnb-run on the set; on true renders, which are refused while planes and features are asked for."
    from headnb.runs import main
    work = runs[0]
    run = lambda *p: main(['tiny/portrait4d', '--out', str(work/'out'), *(a for x in p for a in ('-p', x))])
    assert run(f'data={work}/renders') == 2
    assert 'the set has no feat and no point_feat (true renders and clips have none): set train.features and train.planes to 0' in capsys.readouterr().err
    assert run(f'data={work}/renders', 'train.features=0', 'train.planes=0', 'train.kimg=0.016') == 0
    out = json.loads((work/'out'/'tiny-portrait4d'/'result.json').read_text())
    assert out['status'] == 'done' and out['kimg'] == .016


def test_rows_of_table_3_are_their_parameter_files():
    from headnb.base.core import from_dict, to_dict
    from headnb.runs import TrainRun, model_config, read_spec
    spec = lambda name: from_dict(TrainRun, read_spec(name)[2])
    own = {'a': dict(calm=False, static=0.), 'b': dict(calm=False, still='dynamic'), 'c': dict(static=0.), 'd': dict(still='dynamic'), 'g': dict(parser=True), 'h': dict(depth=0.), 'r': {}}
    base = to_dict(model_config(spec('micro/portrait4d')))
    for k, changes in own.items(): assert to_dict(model_config(spec(f'micro/portrait4d-{k}'))) == base | {'train': base['train'] | changes}, k
    runs = {k: spec(f'micro/portrait4d{k}') for k in ('', *(f'-{k}' for k in 'abcdfghr'))}
    assert {k: r.data for k, r in runs.items() if r.data != 'data/heads4d'} == {'-h': dict(clips='data/clips32/clips.zip', stills='data/clips32/faces.zip'), '-r': 'data/renders4d'}
    assert all(r.start == dict(G='papermill_runs/out/micro-portrait-base', D='papermill_runs/out/micro-portrait-base') for r in runs.values())
    for k in 'abcdefgh': assert model_config(spec(f'paper/portrait4d-{k}')).train.kimg == 5000
    f, e = (model_config(spec(f'paper/portrait4d-{k}')).G for k in 'fe')
    assert (f.motion, f.phi.motion, e.motion, e.phi.motion) == ('codes109', 109, 'pdfgc', 548)
    for name in ('tiny/portrait4d', 'mini/portrait4d', 'mini/portrait4d-genhead', 'paper/portrait4d', 'paper/portrait4d-released'): model_config(spec(name))
    f, e = (model_config(spec(f'micro/portrait4d{k}')) for k in ('-f', ''))
    assert (f.G.motion, f.G.phi.motion, e.G.motion, e.G.phi.motion) == ('codes61', 61, 'small64', 64) and f.train == e.train


if __name__ == '__main__': worker(Path(sys.argv[1]))
