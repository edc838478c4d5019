"""Sets of 4D heads: killed at any named place and resumed, with one worker or three, the bytes are the same; what does not fit is refused.

Runs are forks of one helper process (processes.py); workers are processes of their own (spawned), killed by their own SIGKILL.
"""
import json, os, sys
from pathlib import Path
import pytest
from processes import ROOT, apart, forked, killed, recipe

HERE = ROOT/'data_recipes'/'genhead_4d'
KILLS = ['identity:dynamic-1', 'written:static-000000.tar', 'named:dynamic-000000.tar']
WITH_THREE = 'identity:dynamic-2'


def fork(work, name, kill=None, *args, threads=1):
    "make.py in a forked process; -> its wait status."
    def job():
        import random, numpy, torch
        for seed in (torch.manual_seed, numpy.random.seed, random.seed): seed(os.getpid())     # a set that hangs on the process's own random numbers would differ
        torch.set_num_threads(threads)
        return recipe('genhead_4d').main([str(HERE/'tiny.yaml'), str(work/name), '--no-measure', *args])
    return forked(job, kill)


def worker(work):
    "All runs."
    import headnb.gan.triples, headnb.papers.genhead, headnb.view, safetensors.torch, PIL.PngImagePlugin, tqdm.auto  # noqa: F401  once, before the forks
    report = {'whole': fork(work, 'whole')}
    for kill in KILLS: report[kill] = [fork(work, kill.replace(':', '-'), kill), sorted(p.name for p in (work/kill.replace(':', '-')).iterdir()), fork(work, kill.replace(':', '-'))]
    report['chain'] = [fork(work, 'chain', k) for k in (KILLS[0], KILLS[2], KILLS[1], None)]
    report['three'] = [fork(work, 'three', WITH_THREE, '--workers', '3'), sorted(p.name for p in (work/'three').iterdir()), fork(work, 'three', None, '--workers', '2')]
    report['threads'] = fork(work, 'threads', threads=4)
    (work/'report.json').write_text(json.dumps(report))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('synthesis'), timeout=900)


def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_undisturbed(runs):
    work, report, stderr = runs
    assert report['whole'] == 0, stderr[-3000:]
    names = {'set.json', 'index.json', 'labels.npy', 'untrained.safetensors', 'untrained.json', 'dynamic-000000.tar', 'dynamic-000001.tar', 'static-000000.tar'}
    assert set(contents(work/'whole')) == names


@pytest.mark.parametrize('kill', KILLS)
def test_killed_and_resumed(runs, kill):
    "Nothing half written has a name; the second run ends with the bytes of one never killed, and without leftovers."
    work, report, stderr = runs
    first, left, second = report[kill]
    assert killed(first)
    shards = [n for n in left if n.endswith('.tar')]
    assert shards == {KILLS[0]: [], KILLS[1]: ['dynamic-000000.tar', 'dynamic-000001.tar'], KILLS[2]: ['dynamic-000000.tar']}[kill] and 'index.json' not in left
    assert any(n.endswith('.tmp') for n in left) == (kill != KILLS[2])
    assert second == 0, stderr[-3000:]
    assert contents(work/kill.replace(':', '-')) == contents(work/'whole')


def test_killed_three_times(runs):
    work, report, _ = runs
    assert [killed(s) for s in report['chain']] == [True]*3 + [False]
    assert contents(work/'chain') == contents(work/'whole')


def test_any_number_of_threads(runs):
    "A process that has four threads: the same bytes. (That a shard is made on one of them is tested in 31c; at this size four would happen to agree.)"
    work, report, stderr = runs
    assert report['threads'] == 0, stderr[-3000:]
    assert contents(work/'threads') == contents(work/'whole')


def test_three_workers_one_of_them_killed(runs):
    "One of three is killed: exit code 1 and a message; with two others the set is the same to the last byte."
    work, report, stderr = runs
    first, left, second = report['three']
    assert os.waitstatus_to_exitcode(first) == 1 and 'a worker was killed' in stderr and 'index.json' not in left
    assert second == 0, stderr[-3000:]
    assert contents(work/'three') == contents(work/'whole')


def test_an_ordinary_reader_agrees(runs):
    "The shards are plain tar files: samples are members that share a name up to the first dot."
    import io, tarfile
    import numpy as np
    from headnb.gan.triples import Heads4D
    work, _, _ = runs
    heads, samples = Heads4D(work/'whole'), {}
    with tarfile.open(work/'whole'/'dynamic-000000.tar') as tar:
        for m in tar:
            key, _, end = m.name.partition('.')
            samples.setdefault(key, {})[end] = tar.extractfile(m).read()
            assert (m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, '')
    pictures = [k for k in samples if '_' in k]
    assert pictures == heads.names[:8] and set(samples) - set(pictures) == {'d000000', 'd000001'}
    assert (np.load(io.BytesIO(samples[pictures[3]]['label.npy'])) == heads.rows[3].numpy()).all()


@pytest.fixture(scope='module')
def make(): return recipe('genhead_4d')


@pytest.mark.parametrize('path', sorted(HERE.glob('*.yaml')), ids=lambda p: p.stem)
def test_specs_are_valid(make, path):
    s = make.read_spec(path)
    assert path.stem != 'paper' or (s.cfg.images == 660_000 and s.cfg.ranges == make.Ranges())


@pytest.mark.parametrize('args, message', [
    (('-p', 'dynamics=3'), "has no parameter 'dynamics'; did you mean 'dynamic'?"),
    (('-p', 'views=many'), "views is 'many' (str); expected int"),
    (('-p', 'ranges=papr'), "ranges is 'papr'; did you mean 'paper'?"),
    (('-p', 'change={yow: [0, 1]}'), "change has no parameter 'yow'; did you mean 'yaw'?"),
    (('-p', 'checkpoint=eg3d-mini'), 'Generator cannot be driven'),
    (('-p', 'checkpoint=lost.safetensors'), 'lost.safetensors does not exist'),
    (('-p', 'still=lost.zip'), 'no data set at'),
    (('-p', 'layout=flame'), 'for FLAME give the released arrays'),
    (('-p', 'points=5000'), 'has 3072 coarse samples'),
    (('--part', '3/2'), 'part is 3/2'),
    (('--part', 'half'), "--part is 'half'"),
])
def test_refused(make, tmp_path, capsys, args, message):
    assert make.main([str(HERE/'tiny.yaml'), str(tmp_path/'out'), '--no-measure', *args]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1, err
    assert not list((tmp_path/'out').glob('*.tar'))


def test_not_the_same_set(runs, make, capsys):
    work, _, _ = runs
    assert make.main([str(HERE/'tiny.yaml'), str(work/'whole'), '-p', 'seed=1']) == 2
    assert 'was begun with another configuration: seed was 0, is 1' in capsys.readouterr().err


def test_truncated_shard(runs, make, capsys):
    "A shard that lost its end is named by the reader, and made anew by the recipe: nothing else is."
    import shutil
    from headnb.base.core import BadInput
    from headnb.gan.triples import Heads4D, Triples
    work, _, _ = runs
    place = work/'cut'
    shutil.copytree(work/'whole', place)
    shard = place/'static-000000.tar'
    shard.write_bytes(shard.read_bytes()[:-5000])
    triples = Triples(Heads4D(place), 1, static=None)
    triples.load([0, 1])                                                       # other shards are sound
    with pytest.raises(BadInput, match='static-000000.tar: .*only this shard is made anew'): triples.load([len(triples) - 1])
    before = (place/'dynamic-000000.tar').stat().st_mtime_ns
    assert make.main([str(HERE/'tiny.yaml'), str(place), '--no-measure']) == 0
    assert 'made anew: ' in capsys.readouterr().err and (place/'dynamic-000000.tar').stat().st_mtime_ns == before
    assert contents(place) == contents(work/'whole')


def test_plan_comes_first(make, tmp_path, capsys, monkeypatch):
    "What is measured belongs to the set; nothing else is made before the plan is on the screen."
    monkeypatch.setenv('HEADNB_QUIET', '1')
    assert make.main([str(HERE/'tiny.yaml'), str(tmp_path/'set'), '--plan']) == 0
    said = capsys.readouterr().out
    assert '3 identities, 12 pictures in 2 shards' in said and 'together on ' in said
    assert {p.name for p in (tmp_path/'set').glob('*')} >= {'plan.png', 'measured.json', 'dynamic-000000.tar', 'static-000000.tar'} and not (tmp_path/'set'/'dynamic-000001.tar').exists()


def test_training_loop_reads_them(runs, make, tmp_path):
    "A finished set is real data for the loop of notebook 37; shards and online synthesis are two sources of one run, with the same keys."
    from dataclasses import replace
    from headnb.gan.data import InTurn
    from headnb.gan.synthesis import made_codes
    from headnb.gan.train import Run, draw
    from headnb.gan.triples import Heads4D, Online, Triples
    from headnb.papers import genhead
    work, _, _ = runs
    cfg = genhead.CONFIGS['tiny']
    G, D = genhead.build(cfg)
    heads = Heads4D(work/'whole')
    run = Run(G, D, heads, replace(cfg.train, batch=4), tmp_path, genhead.terms(cfg), make_step=genhead.make_step(cfg))
    real = next(run.batches[''])
    assert run.make_step and {'image', 'mask', 'drive', 'c'} <= set(real) and next(draw(run, real, run.phases[-1])).fake['image'].shape == (4, 3, 16, 16)
    sources = InTurn(shards=Triples(heads, 2, deformer=G.deformer), online=Online(G.eval(), made_codes(G.deformer.rig), replace(make.read_spec(HERE/'tiny.yaml').cfg, cutoff=None), count=100))
    run = Run(G, D, sources, replace(cfg.train, batch=4), tmp_path, genhead.terms(cfg), make_step=genhead.make_step(cfg))
    a, b = (next(run.batches[k]) for k in ('shards', 'online'))
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}


if __name__ == '__main__': worker(Path(sys.argv[1]))
