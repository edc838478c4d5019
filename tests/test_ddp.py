"""A step in parts, in several processes, or with activations made again is the same step: in float64 within 1e-9 after five of them. And what happens when a process dies or a port is taken.

What must be fixed for that: random numbers by the place of a sample in the whole batch (`train.sample_noise`), whole groups of the minibatch statistic in every part (`dealt`), and no company between samples of a batch: foreign cameras,
codes and backgrounds off, PanoHead's offset penalty per sample (the paper's). Head3D is rendered without random numbers along its rays: its teacher renders only the samples that face it; so is PanoHead, whose rays
make several chunks here, and each chunk draws its own.
"""
import contextlib, json, os, socket, sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import pytest
from processes import apart, forked, killed

FAMILIES = {'eg3d': {}, 'panohead': dict(swap_background=0., offset_batch_mean=False), 'head3d': {}, 'genhead': dict(swap='released'), 'portrait4d': {}}
STEPS, BATCH, PICTURES = 5, 8, 13
KILLS = '1D_step-3', '0checkpoint_write-4'   # who, where


@contextlib.contextmanager
def double():
    "Arithmetic in float64: `.float()` leaves it alone, what is mixed is brought to it. Meshes and their kernels stay in float32."
    import torch
    from unittest import mock
    from torch.overrides import TorchFunctionMode
    from headnb.gan import reconstruct
    from headnb.nets import recompute
    from headnb.papers import genhead
    from torch.utils._pytree import tree_leaves, tree_map
    meshes = {f'headnb.field.{m}' for m in ('deform', 'driven', 'raster', 'rig')}

    class Double(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            frame = sys._getframe(1)
            while frame.f_globals.get('__name__') == recompute.__name__: frame = frame.f_back
            where, single = frame.f_globals.get('__name__'), any(a is torch.float32 for a in (*args, kwargs.get('dtype')))
            if where in meshes: return func(*args, **kwargs)
            if args and torch.is_tensor(args[0]) and args[0].dtype == torch.float64 and (func is torch.Tensor.float or func is torch.Tensor.to and single): return args[0]
            if func not in (torch.autograd.grad, torch.Tensor.copy_, torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.__setitem__):
                kinds = {t.dtype for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
                if {torch.float32, torch.float64} <= kinds: args, kwargs = tree_map(lambda t: t.double() if torch.is_tensor(t) and t.dtype == torch.float32 else t, (args, kwargs))
            return func(*args, **kwargs)

    class Second(recompute._Second):       # a mode is off while the backward pass runs: on again for what is made again there
        def __enter__(self): super().__enter__(); self.double = Double(); self.double.__enter__()
        def __exit__(self, *e): self.double.__exit__(*e); super().__exit__(*e)
    def single(f): return lambda *args, **kw: f(*tree_map(lambda t: t.type(torch.float32) if torch.is_tensor(t) and t.dtype == torch.float64 else t, args), **kw)
    with contextlib.ExitStack() as on:
        for module, name in ((genhead, 'part_masks'), (genhead, 'correspondence'), (reconstruct, 'compose')): on.enter_context(mock.patch.object(module, name, single(getattr(module, name))))
        on.enter_context(mock.patch.object(recompute, '_Second', Second)); on.enter_context(Double())
        yield


def to_double(x):
    import torch
    return {k: to_double(v) for k, v in x.items()} if isinstance(x, dict) else x.double() if torch.is_tensor(x) and x.is_floating_point() else x


def doubled(make):  # make_step -> the same with inputs in float64
    return lambda G, D, z, c, real, *a, drive=None, **kw: make(G, D, to_double(z), to_double(c), to_double(real), *a, drive=drive if drive is None else to_double(drive), **kw)


def state(run):  # {name: tensor}: everything that has learnt
    return {f'{k}.{n}': t.detach().clone() for k in ('G', 'D', 'G_ema') for n, t in getattr(run, k).state_dict().items() if t.is_floating_point()}


def apart_by(a, b):  # two states -> (largest difference, where)
    assert a.keys() == b.keys()
    return max((float((a[k].double() - b[k].double()).abs().max()), k) for k in a if a[k].numel())


# In parts, on one process

def paper_run(paper, **kw):
    "The tiny configuration on a made-up batch, ready to play; every lazy phase in every second step."
    import torch
    from headnb.runs import TrainRun, model_config
    from headnb.sizing import make_run, without_files
    spec = TrainRun(paper, 'tiny')
    cfg = without_files(model_config(spec))[0]
    t = cfg.train
    cfg = replace(cfg, train=replace(t, density_every=2, r1_every=2, sample_noise=True, schedule=replace(t.schedule, swap_prob=0., swap_kimg=0.), **FAMILIES[paper], **kw))
    run, real = make_run(spec, cfg, BATCH)
    for m in (run.G, run.D, run.G_ema):
        m.double()
        if getattr(m, 'deformer', None) is not None: m.deformer.float()          # meshes stay as they are
    if teacher := getattr(run.make_step, 'keywords', {}).get('teacher'):
        teacher.double()
        with torch.no_grad(): [p.mul_(1.1) for p in teacher.parameters()]     # born like its student: the sign of a difference of nothing is rounding
    make = partial(run.make_step, deterministic=True) if paper in ('head3d', 'panohead') else run.make_step
    run.make_step = doubled(make)
    from headnb.base.camera import orbit
    real['c'] = orbit(torch.linspace(-.4, .4, BATCH))
    for k in run.labels: run.labels[k] = real['c']
    return run, real


def five_steps(paper, **kw):
    from headnb.gan.train import average, play
    run, real = paper_run(paper, **kw)
    with double():
        for run.step in range(STEPS):
            for phase in run.phases:
                if run.step//len(run.sets) % phase.every == 0: play(run, phase, real)
            average(run)
            run.nimg += BATCH
    return run


def in_parts(work):
    "Whole, in parts, with activations made again; -> differences."
    out = {}
    for paper in FAMILIES:
        whole = five_steps(paper)
        born = state(paper_run(paper)[0])
        out[paper] = dict(moved=apart_by(state(whole), born), parts=apart_by(state(whole), state(five_steps(paper, micro_batch=4))),
                          again=apart_by(state(whole), state(five_steps(paper, recompute='all', chunk_mb=.5))))
    (work/'parts.json').write_text(json.dumps(out))


# Several processes

def free_port():
    with socket.socket() as s: s.bind(('localhost', 0)); return s.getsockname()[1]


def pictures(path, n=PICTURES):
    import numpy as np
    from headnb.base.camera import orbit
    from headnb.gan.data import write_dataset
    rng = np.random.default_rng(0)
    write_dataset(path, [dict(image=rng.integers(0, 255, (16, 16, 3), np.uint8), c=orbit(float(y))[0]) for y in np.linspace(-1, 1, n)])


def trained(work, name, steps=STEPS, single=False, watch=None, **kw):
    "EG3D, tiny, by the loop itself; what it has learnt goes to a file."
    import torch
    from headnb.gan import train as t
    from headnb.gan.data import HeadDataset
    from headnb.papers import eg3d
    from headnb.runs import TrainRun, build
    torch.set_num_threads(1)
    c = eg3d.config('tiny')
    cfg = replace(c.train, kimg=steps*BATCH/1000, batch=BATCH, density_every=2, r1_every=2, snapshot_kimg=2*BATCH/1000, log_every=1, preview_kimg=0, sample_noise=True, schedule=replace(c.train.schedule, swap_prob=0., swap_kimg=0.), **kw)
    G, D = build(TrainRun(), replace(c, train=cfg))
    data = HeadDataset(work/'set.zip')
    seen, load = [], data.__class__.__getitem__
    data.__class__.__getitem__ = lambda self, i: (seen.append(int(i)), load(self, i))[1]
    if watch: watch(t)
    if not single: G.double(), D.double()
    with contextlib.nullcontext() if single else double(): run = t.train(G, D, data, cfg, work/name, make_step=t.Step if single else doubled(t.Step))
    torch.save((state(run), seen), work/f'{name}.{run.rank}of{run.world}.pt')


def rank_of(work, name, rank, world, port, job):
    "One process of several: what it raised goes to a file."
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='localhost', MASTER_PORT=str(port))
    try: job()
    except Exception as e:
        (work/f'{name}.{rank}.error').write_text(json.dumps([type(e).__name__, str(e), time.time()])); return 3
    return 0


def together(work, name, world=2, kill=None, port=None, **kw):  # kill: (rank, point)
    "Forks that find each other; -> wait status of each."
    port, pids = port or free_port(), []
    for rank in range(world):
        pid = os.fork()
        if not pid:
            os.environ.pop('HEADNB_KILL_AT', None)
            if kill and kill[0] == rank: os.environ['HEADNB_KILL_AT'] = kill[1]
            code = 1
            try: code = rank_of(work, name, rank, world, port, lambda: trained(work, name, **kw))
            finally: os._exit(code)
        pids.append(pid)
    ends = {}
    while len(ends) < world:
        pid, status = os.wait()
        if pid in pids: ends[pid] = (status, time.time())
    return [ends[p] for p in pids]


def first_gradients(work, name):  # watch(train): gradients of the first two phases, averaged over processes
    def watch(t):
        import torch
        clean, kept = t.clean_gradients, []
        def noted(run, who):
            out = clean(run, who)
            if len(kept) < 2: kept.append(torch.cat([p.grad.flatten() for p in run._params[who] if p.grad is not None])); torch.save(kept, work/f'{name}.{run.rank}.grads.pt')
            return out
        t.clean_gradients = noted
    return watch


# As a user starts them: the template, torchrun, two processes

ENDS = {'killed': dict(kill='D_step:3@1'), 'diverged': dict(changes=('train.max_loss=0.001',)), 'resumed': dict(folder='killed')}


def started(work, name, kill=None, changes=(), folder=None):
    "`headnb-run` in a fork -> exit code, status.json, seconds from the last word of a process to the end."
    folder = work/f'run-{folder or name}'
    def job():
        from headnb.runs import main
        if kill: os.environ['HEADNB_KILL_AT'] = kill
        return main([str(work/'pair.yaml'), '--folder', str(folder), *(x for c in changes for x in ('-p', c))])
    code = os.waitstatus_to_exitcode(forked(job))
    said = [json.loads(p.read_text())['time'] for p in folder.glob('failed/*.json')]
    return code, json.loads((folder/'status.json').read_text()), time.time() - max(said, default=0)


def worker(work):
    assert forked(lambda: pictures(work/'set.zip')) == 0
    import accelerate, headnb.gan.augment, headnb.gan.generator, headnb.nets.discriminator, headnb.papers.eg3d, headnb.runs, headnb.sizing, safetensors.torch, torch._dynamo, torch.distributed, tqdm.auto  # noqa: F401  once, before the forks
    report = dict(parts=forked(lambda: in_parts(work)))
    report['one'] = forked(lambda: trained(work, 'one'))
    report['two'] = together(work, 'two')
    report['single'] = [forked(lambda: trained(work, 'single', steps=1, single=True, watch=first_gradients(work, 'single'))), together(work, 'single2', steps=1, single=True, watch=first_gradients(work, 'single2'))]
    report['more'] = [forked(lambda: trained(work, 'more', steps=2)), together(work, 'more')]                # one process, then two
    report['fewer'] = [together(work, 'fewer', steps=2), forked(lambda: trained(work, 'fewer'))]             # two, then one
    report['dead'] = {k: together(work, f'dead-{k}', kill=(int(k[0]), k[1:].replace('-', ':'))) for k in KILLS}
    report['after'] = forked(lambda: trained(work, f'dead-{KILLS[1]}'))                                      # goes on alone
    (work/'pair.yaml').write_text(f'name: pair\npaper: eg3d\nconfig: tiny\ndata: {work}/set.zip\nprocesses: 2\ntrain: {{kimg: .04, batch: 8, density_every: 2, r1_every: 2, snapshot_kimg: .016, log_every: 1, preview_kimg: 0}}\n')
    report['ends'] = {k: started(work, k, **v) for k, v in ENDS.items()}
    with socket.socket() as s:
        s.bind(('0.0.0.0', 0)); s.listen()
        report['port'] = forked(lambda: rank_of(work, 'port', 0, 2, s.getsockname()[1], lambda: trained(work, 'port')))
        report['busy'] = s.getsockname()[1]
    (work/'report.json').write_text(json.dumps(report))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('ddp'), timeout=1500)


def learnt(work, name):
    import torch
    return torch.load(work/f'{name}.pt', weights_only=False)


@pytest.mark.parametrize('paper', FAMILIES)
def test_in_parts_is_at_once(runs, paper):
    "Micro-batches of one group, and activations made again: the weights of whole batches."
    work, report, stderr = runs
    assert report['parts'] == 0, stderr[-3000:]
    found = json.loads((work/'parts.json').read_text())[paper]
    assert found['moved'][0] > 1e-3 and found['parts'][0] < 1e-9 and found['again'][0] < 1e-9, found


def test_two_processes_are_one(runs):
    "Thirteen pictures in batches of eight: every batch but the first crosses or nears the end of an epoch, and each process gets its half."
    work, report, stderr = runs
    assert report['one'] == 0 and [s for s, _ in report['two']] == [0, 0], stderr[-3000:]
    (one, seen), (a, seen_a), (b, seen_b) = (learnt(work, n) for n in ('one.0of1', 'two.0of2', 'two.1of2'))
    assert apart_by(a, b)[0] == 0 and apart_by(one, a)[0] < 1e-9, (apart_by(a, b), apart_by(one, a))
    n = STEPS*BATCH
    assert (seen_a[:n//2], seen_b[:n//2]) == (seen[:n:2], seen[1:n:2]) and sorted(seen[:PICTURES]) == list(range(PICTURES))
    assert report['more'][0] == 0 and report['fewer'][1] == 0 and {s for s, _ in report['more'][1] + report['fewer'][0]} == {0}, report
    assert apart_by(one, learnt(work, 'more.0of2')[0])[0] < 1e-9 and apart_by(one, learnt(work, 'fewer.0of1')[0])[0] < 1e-9
    assert 'was written by 1 process(es), now there are 2' in stderr and 'was written by 2 process(es), now there are 1' in stderr


def test_first_gradients_in_float32(runs):
    import torch
    work, report, stderr = runs
    assert report['single'][0] == 0 and [s for s, _ in report['single'][1]] == [0, 0], stderr[-3000:]
    for a, b in zip(torch.load(work/'single.0.grads.pt'), torch.load(work/'single2.1.grads.pt')): assert (a - b).norm() < 1e-5*a.norm() and a.norm() > 0


@pytest.mark.parametrize('kill', KILLS)
def test_one_process_dies(runs, kill):
    "The other one stops within seconds and says why; what stands in the folder is whole, and one process alone goes on from there."
    from headnb.gan.train import checkpoints, damage
    work, report, _ = runs
    dead = int(kill[0])
    ends = report['dead'][kill]
    assert killed(ends[dead][0]) and os.waitstatus_to_exitcode(ends[1 - dead][0]) == 3
    assert ends[1 - dead][1] - ends[dead][1] < 10
    kind, message, _ = json.loads((work/f'dead-{kill}.{1 - dead}.error').read_text())
    assert kind == 'Lost' and 'another one is gone in step' in message and 'the last good checkpoint is' in message and '\n' not in message, message
    made = checkpoints(work/f'dead-{kill}')
    assert [c.name for c in made] == (['step-00000002'] if dead else ['step-00000004', 'step-00000005']) and not any(damage(c) for c in made)
    if not dead: assert report['after'] == 0 and not list((work/f'dead-{kill}').glob('checkpoints/.*')) and apart_by(learnt(work, 'one.0of1')[0], learnt(work, f'dead-{kill}.0of1')[0])[0] < 1e-9


@pytest.mark.parametrize('name, why', [
    ('killed', 'Failed: process 1 of 2 ended without a word (killed, or out of memory); process 0 of 2: another one is gone in step 3'),
    ('diverged', 'of 2: Diverged: the loss was not finite or above 0.001 at step 0; no checkpoint had been written'),
])
def test_why_it_failed(runs, name, why):
    "`status.json` says what the process said, not that torchrun ended with 1; nothing is half-written."
    from headnb.gan.train import checkpoints, damage
    work, report, stderr = runs
    code, status, late = report['ends'][name]
    assert code == 1 and status['status'] == 'failed' and why in status['why'] and 'torchrun' not in status['why'], (status, stderr[-3000:])
    made = checkpoints(work/f'run-{name}')
    assert [c.name for c in made][-1:] == (['step-00000005'] if name == 'killed' else [])       # of `resumed` by now
    assert not any(damage(c) for c in made) and not list((work/f'run-{name}').glob('checkpoints/.*')) and late < 60


def test_goes_on_after_a_process_was_killed(runs):
    work, report, stderr = runs
    code, status, _ = report['ends']['resumed']
    assert (code, status['status']) == (0, 'done'), (status, stderr[-3000:])
    assert [json.loads(l)['step'] for l in (work/'run-killed'/'metrics.jsonl').read_text().splitlines()] == [1, 2, 3, 4, 5] and not (work/'run-killed'/'failed').exists()


def test_port_in_use(runs):
    work, report, _ = runs
    assert os.waitstatus_to_exitcode(report['port']) == 3
    kind, message, _ = json.loads((work/'port.0.error').read_text())
    assert kind == 'BadInput' and f'port {report["busy"]} of localhost' in message and 'is in use by another program' in message and '\n' not in message and not (work/'port').exists(), message


if __name__ == '__main__':
    os.environ.setdefault('PYTHONPATH', '')
    worker(Path(sys.argv[1]))
