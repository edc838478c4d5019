"""Faults, and what survives them: every template that `headnb-run` executes is killed, stopped, starved and given broken files, and must then end as if nothing had been.

    python tests/faults.py [--only PATTERN] [--seconds N] [--all] [--out FILE] [--keep FOLDER]

A case is a line of CASES. Each is a real `headnb-run` (checks, papermill, exit code, status.json) in a fork of this process, which has imported the library once; the cells of the template are executed in that
fork too, so that a kill takes all of it at a named place, as a machine that is lost would. Where a line says *kernel*, there is a Jupyter kernel of its own, and only that dies.
The table goes to papermill_runs/faults.json after every case; a case whose code has not changed since is not run again.
"""
import argparse, fnmatch, functools, hashlib, json, os, re, shutil, signal, subprocess, sys, tarfile, tempfile, time, traceback, zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
os.environ |= {'HEADNB_QUIET': '1', 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}     # sums are the same bit for bit only where their parts are added in one order
from processes import ROOT, forked, recipe

TABLE = ROOT/'papermill_runs/faults.json'
SIDE, STEPS, BATCH = 16, 6, 4


# ---------------------------------------------------------------- what is run: template, model, parameters

def at(step, batch=BATCH): return step*batch/1000      # kimg

SHORT = dict(kimg=at(STEPS), batch=BATCH, density_every=2, r1_every=2, snapshot_kimg=at(2), preview_kimg=at(3), log_every=1, max_loss=1e6)
PHASES = SHORT | dict(kimg=at(STEPS, 2), batch=2, snapshot_kimg=at(2, 2), preview_kimg=at(3, 2), guide_kimg=at(3, 2), id_kimg=at(3, 2), adv_kimg=at(2, 2), freeze='paper', freeze_kimg=at(4, 2), cross_lr=2.5)
BACK = SHORT | dict(kimg=at(STEPS, 2), batch=2, snapshot_kimg=at(2, 2), preview_kimg=at(3, 2))
WARM = dict(ada=True, mirror=True, recon=dict(kimg=.004, d_kimg=.004, fade_kimg=1.))
JOBS = {                                               # '@name' is a file of this bench
    'train eg3d': dict(paper='eg3d', config='tiny', data='@balls.zip', train=SHORT | WARM),
    'train panohead': dict(paper='panohead', config='tiny', data='@around.zip', train={k: v for k, v in SHORT.items() if k != 'density_every'}),
    'train head3d': dict(paper='head3d', config='tiny', data=dict(front='@balls.zip', back='@around.zip'), teacher='@teacher', start={'G': '@teacher', 'D.front': '@teacher', 'D.back': '@teacher'}, train=SHORT),
    'train genhead': dict(paper='genhead', config='tiny', data='@people.zip', train=SHORT),
    'train head360': dict(paper='head360', config='tiny', data='@expressions.zip', train=BACK),
    'train head360-detach': dict(paper='head360', config='tiny', data='@expressions.zip', G=dict(stage=2), start={'G': '@head360', 'D': '@head360'}, train=BACK | dict(warmup_kimg=at(2, 2))),
    'train next3d': dict(paper='head360', config='next3d-tiny', data='@people.zip', train=BACK),
    'train refinenet': dict(paper='refinenet', config='tiny', data=dict(pictures='@balls.zip', blur=.7), train={k: v for k, v in SHORT.items() if k[-5:] != 'every' or k == 'log_every'} | dict(mirror=True)),
    'train portrait4d': dict(paper='portrait4d', config='tiny', data='@heads4d', train=PHASES),
    'invert': dict(data='@balls.zip', count=2, seconds=None, invert=dict(method='pti', w_steps=4, tune_steps=4, perceptual=0.)),
    'synthesize': dict(recipe='tiny'),
    'evaluate': dict(n=16), 'sample': dict(seeds=[0, 1], mesh_size=16, level=0.), 'planes': dict(n=4, steps=2), 'compare': dict(n=16, pairs=2, shapes=2, known=2, accessories=8, bootstrap=2),
    'control': dict(), 'around': dict(), 'reenact': dict(), 'likeness': dict(), 'hairstyle': dict(people=1, held_people=1, hair=dict(steps=4)),
}
STOPS = ('train', 'invert', 'synthesize', 'hairstyle') # templates that heed SIGTERM; the others finish what they are at. All but the last go on where they were; the others begin again
RUNS = {'@teacher': 'train eg3d', '@head360': 'train head360'}      # folders of runs that nothing happened to


def pictures(path, reach, **more):
    "Twelve pictures of noise, with cameras."
    import numpy as np
    from headnb.base.camera import orbit
    from headnb.gan.data import write_dataset
    rng = np.random.default_rng(0)
    write_dataset(path, [dict(image=rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8), c=orbit(float(y))[0]) | {k: rng.integers(0, 255, (SIDE, SIDE), np.uint8) for k in more} for y in np.linspace(-reach, reach, 12)])


def expressions(path):
    "Two people, two expressions, two sides, with hair and without: codes of the rig, who and what they are."
    import numpy as np, torch
    from headnb.base.camera import orbit
    from headnb.field.rig import load_head
    from headnb.gan.data import write_dataset
    rng, rig, shown = np.random.default_rng(0), load_head(), [(i % 2, i//2 % 2, i//4 % 2, i//8) for i in range(16)]
    shapes = rig.sample_shape(2, torch.Generator().manual_seed(0))
    code = lambda who, mood: rig.join(shapes[who:who + 1], rig.expression_code(jawOpen=float(mood)))[0]
    write_dataset(path, [dict(image=rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8), c=orbit(2.*view)[0], drive=code(who, mood), info=dict(person=who, expression=mood, view=view, bare=bool(bare))) for who, mood, view, bare in shown])


SETS = {                                               # file -> how it is made
    'expressions.zip': expressions,
    'balls.zip': lambda p: pictures(p, 1), 'around.zip': lambda p: pictures(p, 3, mask=True),
    'people.zip': lambda p: recipe('anny_heads').main([str(ROOT/'data_recipes/anny_heads/codes_mini.yaml'), str(p), '--count', '32', '--size', str(SIDE), '--workers', '1']),
    'heads4d': lambda p: recipe('genhead_4d').main([str(ROOT/'data_recipes/genhead_4d/tiny.yaml'), str(p), '--no-measure']),
}


# ---------------------------------------------------------------- where a fault strikes

class Trap:
    """A place in a run, and what happens there.

    'G_step:3' a point of the training loop, 'identity:dynamic-1' one of the synthesis, 'search:5' a step of an inversion, 'cell:Masks' the first cell below that heading, 'write:result.json' the middle of
    the writing of a file; '@2' behind it: the second time.
    """
    def __init__(self, place, act):
        self.place, _, n = place.partition('@')
        self.left, self.act = int(n or 1), act

    def __call__(self, place):
        if place != self.place: return False
        self.left -= 1
        if self.left: return False
        self.act()
        return True

    def set(self):
        "Put it into the library (of this process)."
        import headnb.base.core as core, headnb.gan.invert as invert, headnb.gan.synthesis as synthesis, headnb.gan.train as train
        real, row = core.write_atomic, invert.Search.row
        def write(path, data):
            def half(p):
                data(p) if callable(data) else p.write_bytes(data.encode() if isinstance(data, str) else data)
                whole = p.read_bytes()
                p.write_bytes(whole[:len(whole)//2])
                self(f'write:{Path(path).name}')
                p.write_bytes(whole)
            return real(path, half)
        def step(search, *a): self(f'search:{len(search.history) + 1}'); return row(search, *a)
        for m in [m for k, m in sys.modules.items() if k.partition('.')[0] == 'headnb' and getattr(m, 'write_atomic', None) is real]: m.write_atomic = write
        train.kill_point, synthesis.die_here, invert.Search.row = (lambda name, step: self(f'{name}:{step}')), self, step


def strike(sig): return lambda: os.kill(os.getpid(), sig)


def undrawn():
    "In a child: what a run only shows is not drawn, its HTML not made, the list of packages read once. A run with a kernel of its own does all of that."
    import headnb.runs as runs, matplotlib.figure, matplotlib.pyplot as plt
    facts = environment()
    matplotlib.figure.Figure.savefig = lambda self, f, **kw: f.write(NO_PICTURE) if hasattr(f, 'write') else Path(f).write_bytes(NO_PICTURE)
    plt.show, runs.environment, runs.html_report = (lambda: plt.close('all')), (lambda: facts), (lambda notebook: notebook.with_name('report.html').write_text('<html></html>'))


@functools.cache
def environment():
    from headnb.runs import environment
    return environment()


NO_PICTURE = bytes.fromhex('89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63f80f0001010100'
                           '1bb6ee560000000049454e44ae426082')


def told(path):
    "In a child: write down how much of what was there a run takes up."
    import headnb.gan.invert as invert, headnb.gan.synthesis as synthesis, headnb.gan.train as train
    def note(**kw): path.open('a').write(json.dumps(kw) + '\n')
    resume, load, make = train.resume, invert.Search.load_state, synthesis.make_shard
    def resumed(run, *a): bad = resume(run, *a); note(step=run.step); return bad
    def loaded(search, folder): found = load(search, folder); note(**{Path(folder).name: len(search.history)}); return found
    def made(G, cfg, codes, shard, *a): note(**{shard.name: 0}); return make(G, cfg, codes, shard, *a)
    train.resume, invert.Search.load_state, synthesis.make_shard = resumed, loaded, made
    invert.invert = functools.partial(invert.invert, save_every=0.)        # a state after every step, not every 20 s


# ---------------------------------------------------------------- a run

def in_this_process(trap):
    "A papermill engine that executes the cells here."
    from IPython.core.interactiveshell import InteractiveShell
    from nbformat.v4 import new_output
    from papermill.engines import Engine
    class Here(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kw):
            shell, heading = InteractiveShell.instance(), ''
            for i, cell in enumerate(nb_man.nb.cells):
                if cell.cell_type != 'code': heading = cell.source.split('\n')[0].lstrip('# '); continue
                trap and trap(f'cell:{heading}')
                nb_man.cell_start(cell, i)
                done = shell.run_cell(cell.source)
                if e := done.error_before_exec or done.error_in_exec:
                    cell.outputs = [new_output('error', ename=type(e).__name__, evalue=str(e), traceback=[])]
                    nb_man.cell_exception(cell, i, exception=e)
                    return
                nb_man.cell_complete(cell, i)
    return Here


def kernel_dies(place):
    "The kernel is killed where a cell begins: papermill's own engine, and its kernel."
    import psutil
    from papermill.engines import NotebookExecutionManager as Manager
    start, heading = Manager.cell_start, place.partition(':')[2]
    def cell_start(self, cell, i=None, **kw):
        above = next((c.source.split('\n')[0].lstrip('# ') for c in self.nb.cells[i::-1] if c.cell_type != 'code'), '')
        if above == heading:
            for p in psutil.Process().children(): p.kill()
        return start(self, cell, i, **kw)
    Manager.cell_start = cell_start


@dataclass
class Ran:
    "How a run ended."
    code: int          # exit code, negative: the signal
    said: str          # what it wrote to the terminal
    began: dict        # what it took up
    pid: int = 0

    @property
    def line(self): return next((l for l in reversed(self.said.splitlines()) if l.strip()), '')


class Bench:
    "Data, undisturbed runs and the folder of each case."
    def __init__(self, work):
        self.work, self.count, self.made, self.wholes, self.deads = work, 0, set(), {}, {}

    def folder(self): self.count += 1; return self.work/f'case{self.count:03d}'/'run'

    def beside(self, folder): return Path(f'{folder.parent}.log'), Path(f'{folder.parent}.began')      # what a run says, and what it took up

    def spec(self, job):
        "The YAML of a job."
        import yaml
        def real(v):
            if isinstance(v, dict): return {k: real(x) for k, x in v.items()}
            if not isinstance(v, str) or v[:1] != '@': return v
            if v in RUNS: return str(self.whole(RUNS[v]))
            path = self.work/v[1:]
            if v[1:] not in self.made: self.made.add(v[1:]); assert forked(lambda: SETS[v[1:]](path)) == 0, f'{path} could not be made'
            return str(path)
        path = self.work/f'{job.replace(" ", "-")}.yaml'
        path.write_text(yaml.safe_dump({'template': job.split()[0], 'name': 'run'} | real(JOBS[job])))
        return path

    def start(self, job, folder, *args, trap=None, kernel=None, before=None, place=True):
        "headnb-run in a fork -> its process id."
        spec, folder = self.spec(job), Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        log, note = self.beside(folder)
        log.write_text(''); note.write_text('')
        pid = os.fork()
        if pid: return pid
        code = 99
        try:
            out = os.open(log, os.O_WRONLY | os.O_APPEND)
            for k in (1, 2): os.dup2(out, k)
            import random, numpy, torch, papermill.engines, headnb.runs as runs
            for seed in (torch.manual_seed, numpy.random.seed, random.seed): seed(os.getpid())        # what hangs on the process's own random numbers would differ
            torch.set_num_threads(1)
            if trap: trap.set()
            if kernel and kernel[:5] == 'cell:': kernel_dies(kernel)
            elif kernel: os.environ['HEADNB_KILL_AT'] = kernel
            else:
                told(note); undrawn()
                papermill.engines.papermill_engines.register(None, in_this_process(trap))
            if before: before()
            code = runs.main([str(spec), *(['--folder', str(folder)] if place else []), *map(str, args)])
        except BaseException: traceback.print_exc(); code = 1
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)

    def end(self, pid, folder):
        "Wait for it."
        _, status = os.waitpid(pid, 0)
        log, note = self.beside(Path(folder))
        rows = [json.loads(l) for l in note.read_text().splitlines()]
        return Ran(os.waitstatus_to_exitcode(status), log.read_text(), {k: v for r in rows for k, v in r.items()}, pid)

    def run(self, job, folder, *args, **kw): return self.end(self.start(job, folder, *args, **kw), folder)

    def whole(self, job):
        "The folder of a run that nothing happened to."
        if job not in self.wholes:
            folder = self.work/f'whole-{job.replace(" ", "-")}'/'run'
            done = self.run(job, folder)
            assert done.code == 0, f'{job} does not run undisturbed: {done.said[-3000:]}'
            self.wholes[job] = folder
        return self.wholes[job]

    def dead(self, job):
        "A copy of a run that was killed late: a `train` at step 5 of 6 with checkpoints of steps 2 and 4, an inversion in its second head, a synthesis in its second shard."
        if job not in self.deads:
            folder = self.work/f'dead-{job.replace(" ", "-")}'/'run'
            assert self.run(job, folder, trap=Trap(LATE[job.split()[0]], strike(signal.SIGKILL))).code == -signal.SIGKILL
            self.deads[job] = folder
        return Path(shutil.copytree(self.deads[job], self.folder()))


LATE = {'train': 'EMA:4', 'invert': 'search:6@2', 'synthesize': 'identity:dynamic-2'}


# ---------------------------------------------------------------- what must hold

def without_times(x, *also):
    "Plain data without what differs from one run to the next of the same."
    drop = (*also, 'seconds', 'img_per_s', 'cpu', 'load', 'time', 'took', 'pid', 'cost', 'plan')
    return {k: without_times(v, *also) for k, v in x.items() if k not in drop} if isinstance(x, dict) else [without_times(v, *also) for v in x] if isinstance(x, list) else x


def digest(p):
    "A file, without times."
    if p.suffix == '.json': data = json.dumps(without_times(json.loads(p.read_text()), *(['shards'] if p.name == 'result.json' else [])), sort_keys=True).encode()      # the shards that this process has made
    elif p.suffix == '.jsonl': data = json.dumps([without_times(json.loads(l)) for l in p.read_text().splitlines()]).encode()
    elif p.suffix == '.safetensors':
        from safetensors import safe_open
        with safe_open(str(p), 'pt') as f: about = without_times(json.loads((f.metadata() or {}).get('headnb', '{}')))
        raw = p.read_bytes()
        if p.name[:4] == 'rank':                                      # torch's random numbers; those of numpy and of Python begin where each process happens to (`Bench.start` makes sure of that)
            from safetensors.torch import load_file
            return hashlib.sha256(load_file(p)['torch'].numpy().tobytes()).hexdigest()[:12]
        data = json.dumps(about, sort_keys=True).encode() + raw[8 + int.from_bytes(raw[:8], 'little'):]
    elif p.suffix in ('.png', '.gif'):                                         # what their text says has a date
        from PIL import Image, ImageSequence
        data = b''.join(f.convert('RGB').tobytes() for f in ImageSequence.Iterator(Image.open(p)))
    else: data = p.read_bytes()
    return hashlib.sha256(data).hexdigest()[:12]


CONFIGURED = ('state.json', 'model.json', 'model.safetensors', 'result.json')      # files that hold the configuration
IDLE = ('run.ipynb', 'report.html', 'environment.json', 'config.json', 'status.json', 'measured.json', 'SHA256SUMS', 'job.json', 'rank0.json')


def fruit(folder):
    "{file: digest} of all that a run leaves: of checkpoints the last."
    last = sorted(folder.glob('checkpoints/step-*'))[-1:]
    kept = [p for p in folder.rglob('*') if p.is_file() and p.name not in IDLE and not p.name.endswith('.tmp') and (p.parts[-3] != 'checkpoints' or p.parent in last)]
    return {str(p.relative_to(folder)): digest(p) for p in sorted(kept)}


def opened(p):
    "Read a file to its end, as what it is."
    if p.suffix in ('.json', '.ipynb'): json.loads(p.read_text())
    elif p.suffix == '.jsonl': [json.loads(l) for l in p.read_text().splitlines()]
    elif p.suffix == '.safetensors':
        from safetensors import safe_open
        with safe_open(str(p), 'pt') as f: [f.get_tensor(k) for k in f.keys()]
    elif p.suffix == '.zip': assert zipfile.ZipFile(p).testzip() is None
    elif p.suffix == '.tar':
        with tarfile.open(p) as tar: [tar.extractfile(m).read() for m in tar]
        assert p.stat().st_size % tarfile.RECORDSIZE == 0
    elif p.suffix in ('.png', '.gif'):
        from PIL import Image
        Image.open(p).load()
    elif p.suffix == '.npy':
        import numpy
        numpy.load(p)


def corrupted(folder):
    "Files under their final names that cannot be read to the end, and checkpoints whose checksums do not agree."
    from headnb.gan.train import checkpoints, damage
    bad = [p.name for p in checkpoints(folder) if damage(p)] if not (folder/'heads').exists() else []
    for p in folder.rglob('*') if folder.exists() else ():
        if not p.is_file() or p.name.endswith('.tmp') or any(q.name.endswith('.tmp') for q in p.parents) or p.name == 'run.ipynb': continue      # papermill writes the notebook in place; nothing reads it
        try: opened(p)
        except Exception: bad.append(p.name)
    return sorted(bad)


def steps_of(path):
    "Steps that a state or a head of an inversion knows of; None: damaged."
    from headnb.gan.checkpoint import load
    try: return len(load(path).meta['history'])
    except ValueError: return None


def kept(folder):
    "{part of a run: how much of it stands on the disk}."
    from headnb.gan.train import checkpoints, damage
    sound = [int(p.name[5:]) for p in checkpoints(folder) if p.name[5:].isdigit() and (p/'state.json').exists() and not damage(p)]
    out = {'step': max(sound)} if sound else {}
    for p in folder.glob('checkpoints/step-*/search*.safetensors'):
        if (n := steps_of(p)) is not None: out[p.parent.name] = max(n, out.get(p.parent.name, 0))
    for p in folder.glob('heads/*.safetensors'):
        if steps_of(p) is not None: out[f'step-{p.stem}'] = steps_of(p)
    for p in folder.glob('set/*.tar'):
        note = p.with_name(f'.{p.name}.json')
        if not note.exists() or json.loads(note.read_text())['sha256'] == hashlib.sha256(p.read_bytes()).hexdigest(): out[p.name] = 1
    return out


def lost(before, began):
    "Steps (shards) that stood in a checkpoint and were done again."
    return sum(max(0, before[k] - v) for k, v in began.items() if k in before)


KNOWN = {}                                             # {name of a case: why it does not hold yet}


class Found:
    "What a case has shown."
    def __init__(self): self.checks, self.kills, self.terms, self.lost, self.corrupted, self.codes, self.said, self.how = [], 0, 0, 0, 0, [], '', ''

    def check(self, ok, what):
        if not ok: self.checks.append(what)
        return bool(ok)

    def ended(self, ran, codes, words=''):
        "With one of these exit codes, and these words in its last line."
        codes = codes if isinstance(codes, tuple) else (codes,)
        self.codes.append(ran.code)
        self.check(ran.code in codes, f'exit code {ran.code}, expected {codes}: {ran.line[:200]}')
        return self.check(not words or words in ran.said, f'the output lacks {words!r}: {ran.line[:200]}')

    def after(self, folder):
        "The disk after a fault."
        bad = corrupted(folder)
        self.corrupted += len(bad)
        self.check(not bad, f'corrupted: {bad}')
        return kept(folder)

    def took_up(self, before, ran):
        n = lost(before, ran.began)
        self.lost += n
        self.check(not n, f'{n} lost: {before} stood, it began with {ran.began}')

    def equal(self, bench, job, folder, but=()):
        "The folder of a run that ended, against one that nothing happened to."
        self.after(folder)
        ours, whole = fruit(folder), fruit(bench.whole(job))
        wrong = sorted(k for k in {**ours, **whole} if ours.get(k) != whole.get(k) and k.split('/')[-1] not in but)
        self.check(not wrong, f'not as if undisturbed: {wrong[:6]}')


# ---------------------------------------------------------------- faults

def again(bench, case, sig):
    "At one place after another, in one folder; then to the end."
    found, folder, before = Found(), bench.folder(), {}
    for place in case.places:
        ran = bench.run(case.job, folder, trap=Trap(place, strike(sig)))
        found.took_up(before, ran)
        if sig == signal.SIGKILL: found.check(ran.code == -sig, f'{place}: not reached, exit code {ran.code}: {ran.line[:200]}'); found.kills += ran.code == -sig; found.codes.append(ran.code)
        else: found.ended(ran, 4 if case.template in STOPS else 0); found.terms += 1
        before = found.after(folder)
    last = bench.run(case.job, folder)
    found.took_up(before, last)
    found.ended(last, 0)
    found.equal(bench, case.job, folder)
    found.how = 'one run, struck again each time it is resumed' if len(case.places) > 1 else ''
    return found


def sigkill(bench, case): return again(bench, case, signal.SIGKILL)
def sigterm(bench, case): return again(bench, case, signal.SIGTERM)


def kernel_killed(bench, case):
    "A kernel of its own dies, headnb-run stays."
    found, folder = Found(), bench.folder()
    ran = bench.run(case.job, folder, kernel=case.places[0])
    found.kills += 1
    if not found.ended(ran, 3, 'killed') or not (folder/'status.json').exists(): return found
    status = json.loads((folder/'status.json').read_text())
    found.said = status['why']
    found.check(status['status'] == 'killed' and status['why'] == 'the kernel died', f'status.json says {status}')
    before = found.after(folder)
    last = bench.run(case.job, folder)
    found.took_up(before, last); found.ended(last, 0); found.equal(bench, case.job, folder)
    return found


def private_disk(folder, size):
    "In a child: a small file system of its own at `folder` -> function that gives it room; None where that is not allowed."
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) or libc.mount(b'none', b'/', None, 0x44000, None): return None      # CLONE_NEWNS; MS_REC | MS_PRIVATE
    if libc.mount(b'tmpfs', str(folder).encode(), b'tmpfs', 0, f'size={size}k'.encode()): return None
    return lambda: libc.mount(b'tmpfs', str(folder).encode(), b'tmpfs', 0x20, b'size=64m')         # MS_REMOUNT


def full_disk(bench, case):
    "The disk is full before the run ends; then there is room."
    found, folder = Found(), bench.folder()
    size = int(case.places[0].split()[0])
    folder.parent.mkdir(parents=True)
    def job():
        import resource
        room = private_disk(folder.parent, size)
        limit = lambda: None
        if room is None:
            def limit(): signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (size*250, size*250))
        first = bench.run(case.job, folder, before=limit)
        bad, before = corrupted(folder), kept(folder)
        if room: room()
        second = bench.run(case.job, folder)
        shutil.copytree(folder.parent, bench.work/'full', dirs_exist_ok=True)
        (bench.work/'full.json').write_text(json.dumps([asdict(first), asdict(second), bad, before, 'a tmpfs of its own' if room else 'RLIMIT_FSIZE']))
    shutil.rmtree(bench.work/'full', ignore_errors=True)
    found.check(forked(job) == 0, 'the case itself failed')
    first, second, bad, before, found.how = json.loads((bench.work/'full.json').read_text())
    first, second = Ran(**first), Ran(**second)
    found.how += f' of {size} kB'
    found.corrupted += len(bad); found.check(not bad, f'corrupted: {bad}')
    found.ended(first, 1)
    full = ('No space left', 'File too large')
    found.said = next((l.strip() for l in reversed(first.said.splitlines()) if any(w in l for w in full)), first.line)
    found.check(any(w in first.said for w in full), f'it says {first.line!r}')
    found.check(not first.line.startswith(' '), f'a traceback is the last word: {first.line[:160]}')
    found.took_up(before, second); found.ended(second, 0)
    found.equal(bench, case.job, bench.work/'full'/'run')
    return found


def newest_file(folder, name):
    "The newest file of that name."
    return max((p for p in folder.rglob(name) if p.is_file()), key=lambda p: (p.parent.name, p.name))


def spoil(path, how):
    "Cut off, with a flipped bit, with half a line at its end, empty, or gone."
    data = bytearray(path.read_bytes())
    if how == 'missing': path.unlink(); return
    if how == 'torn': path.write_bytes(data + b'{"step": 5, "kim'); return
    if how == 'flipped': data[int(len(data)*.7)] ^= 1
    path.write_bytes({'truncated': data[:int(len(data)*.6)], 'flipped': data, 'empty': b''}[how])


def damaged(bench, case):
    "A file of a killed run is spoilt; it ends as if nothing had been, without any of that file."
    found, folder, words = Found(), bench.dead(case.job), case.must
    for place in case.places:
        how, name = place.split(' ', 1)
        spoil(newest_file(folder, name), how)
    before = kept(folder)
    last = bench.run(case.job, folder)
    found.took_up(before, last); found.ended(last, 0, words); found.equal(bench, case.job, folder)
    found.said = next((l for l in last.said.splitlines() if words and words in l), '')
    return found


def all_damaged(bench, case):
    "Nothing to go on with: said in one line, nothing is written over."
    found, folder = Found(), bench.dead(case.job)
    how, name = case.places[0].split(' ', 1)
    for p in folder.rglob(name): spoil(p, how)
    left = {p: p.read_bytes() for p in folder.glob('checkpoints/*/*')}
    ran = bench.run(case.job, folder)
    found.ended(ran, (1, 2), case.must)
    found.said = json.loads((folder/'status.json').read_text()).get('why') or ran.line
    found.check(left == {p: p.read_bytes() for p in folder.glob('checkpoints/*/*')}, 'checkpoints were changed')
    return found


def bad_data(bench, case):
    "A part of the data is gone or broken when a killed run is resumed: refused in a line; with the data back it ends as if nothing had been."
    found, folder = Found(), bench.dead(case.job)
    how, name = case.places[0].split(' ', 1)
    path = bench.work/name
    data = path.read_bytes()
    before = kept(folder)
    try:
        spoil(path, how)
        ran = bench.run(case.job, folder)
    finally: path.write_bytes(data)
    found.ended(ran, (1, 2), case.must)
    status = json.loads((folder/'status.json').read_text())
    found.said = status.get('why') if ran.code == 1 else ran.line
    found.check(len((found.said or '').splitlines()) == 1, f'not one line: {found.said!r}')
    found.after(folder)
    last = bench.run(case.job, folder)
    found.took_up(before, last); found.ended(last, 0); found.equal(bench, case.job, folder)
    return found


def clock(bench, case):
    "A clock of the machine jumps in the middle."
    found, folder = Found(), bench.folder()
    which, by, place = case.places[0].split(' ')
    def jump():
        real = getattr(time, which)
        setattr(time, which, lambda: real() + float(by))
    ran = bench.run(case.job, folder, *case.args, trap=Trap(place, jump))
    found.ended(ran, 0); found.equal(bench, case.job, folder, CONFIGURED if case.args else ())
    return found


def two_runs(bench, case):
    "A second run is started in the folder of one that goes on (it is stopped with SIGSTOP for that time)."
    found, folder = Found(), bench.folder()
    together = case.places[0] == 'started at once'
    wait = lambda: os.kill(os.getpid(), signal.SIGSTOP)
    args = ['--out', str(folder.parent)] if together else []
    def before():
        import headnb.runs as runs
        real = runs.prepare
        def prepare(*a, **kw): out = real(*a, **kw); wait(); return out
        runs.prepare = prepare
    first = bench.start(case.job, folder, *args, trap=None if together else Trap(case.places[0], wait), before=before if together else None, place=not together)
    os.waitpid(first, os.WUNTRACED)
    log = bench.beside(folder)[0]
    so_far = log.read_text()
    second = bench.run(case.job, folder, *args, place=not together)
    os.kill(first, signal.SIGCONT)
    log.write_text(so_far)
    ran = bench.end(first, folder)
    if together: found.check(sorted([second.code, ran.code]) in ([0, 0], [0, 2]), f'exit codes {second.code}, {ran.code}'); found.codes += [second.code, ran.code]
    else: found.ended(second, 2, case.must); found.ended(ran, 0)
    found.said = second.line if second.code else ran.line if ran.code else ''
    places = [p for p in folder.parent.iterdir() if p.is_dir()]
    if together: found.check(len(places) == [second.code, ran.code].count(0), f'{len(places)} folders: {[p.name for p in places]}')
    for p in places: found.equal(bench, case.job, p)
    return found


def read_only(bench, case):
    "The run may not write where it should: said in a line before anything starts."
    found, folder = Found(), bench.folder()
    folder.parent.mkdir(parents=True)
    if case.places[0] == 'a file in the way': folder.write_text('not a folder'); nobody = lambda: None
    else:
        folder.mkdir(); folder.chmod(0o555)
        def nobody():
            if os.getuid() == 0: os.setgid(65534); os.setuid(65534)
    found.how = '' if case.places[0] == 'a file in the way' else 'chmod 0555' + (', the run is not root' if os.getuid() == 0 else '')
    ran = bench.run(case.job, folder, before=nobody)
    found.ended(ran, (1, 2), case.must)
    found.said = ran.line
    found.check('Traceback' not in ran.said, f'a traceback instead of a line: {ran.line[:160]}')
    found.check(folder.is_file() or not list(folder.iterdir()), 'something was written')
    return found


# ---------------------------------------------------------------- the cases

FAULTS = {'SIGKILL': sigkill, 'SIGTERM': sigterm, 'kernel killed': kernel_killed, 'disk full': full_disk, 'checkpoint damaged': damaged, 'all checkpoints damaged': all_damaged, 'data missing or corrupt': bad_data,
          'clock jumps': clock, 'two runs in one folder': two_runs, 'read-only folder': read_only}


@dataclass(frozen=True)
class Case:
    "A line of the table."
    job: str              # of JOBS
    fault: str            # of FAULTS
    places: tuple         # where it strikes, as of Trap; or what is broken
    must: str = ''        # words that must be in what the run says
    args: tuple = ()

    @property
    def template(self): return self.job.split()[0]
    @property
    def name(self): return f'{self.job}: {self.fault}: {", ".join(self.places)}' + f' {" ".join(self.args)}'*bool(self.args)

    @property
    def code(self):
        "Hash of everything that decides how it ends: the library, the template, this program, the line."
        return hashlib.sha256(json.dumps([package(), asdict(self), JOBS[self.job]]).encode()).hexdigest()[:12]


@functools.cache
def package():
    "Hash of the library, the templates' code and this program."
    h = hashlib.sha256()
    for p in sorted([*(ROOT/'headnb').rglob('*.py'), *(ROOT/'data_recipes').rglob('*.py'), Path(__file__)]): h.update(p.read_bytes())
    for p in sorted((ROOT/'nbs/9_runs').glob('*.ipynb')): h.update(json.dumps([c['source'] for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']).encode())
    return h.hexdigest()[:12]


def case(job, fault, *places, must='', args=()): return Case(job, fault, places, must, args)


BEGIN = ('write:config.json', 'cell:What is trained, on what', 'loader:0', 'G_step:0')
MIDDLE = ('checkpoint_write:2', 'rename:2', 'loader:2', 'G_reg:2', 'D_step:3', 'R1:2', 'EMA:3', 'rename:4', 'loader:4', 'G_step:5', 'R1:4', 'checkpoint_write:6')
ENDING = ('write:model.safetensors', 'write:result.json', 'cell:What it makes', 'write:status.json@2')
FEWER = ('loader:1', 'checkpoint_write:2', 'G_step:2', 'D_step:3', 'EMA:3', 'rename:4', 'R1:4', 'write:model.safetensors')
HEADS = {'evaluate': ('The pictures', 'The numbers'), 'sample': ('Turntable', 'Mesh'), 'planes': ('Figure 2', 'All pairs'), 'compare': ('The same latents', 'Identity, the back, the shape'), 'control': ('Told and shown', 'Independent control'),
         'around': ('Latents 0 to 7 from all sides', 'Walking around'), 'reenact': ('The numbers', 'What it looks like'), 'likeness': ('The pictures', 'The numbers'), 'hairstyle': ('Pictures', 'Training')}
PAPERS = [j for j in JOBS if j[:5] == 'train']
NEVER = {'train portrait4d': ('D_step:3',), 'train refinenet': ('R1:4',)}      # points that a training does not come to
PASSED = 'warning: passed over step-00000004'

CASES = [
    case('train eg3d', 'SIGKILL', *BEGIN, *MIDDLE, *ENDING),
    *[case(j, 'SIGKILL', *(p for p in FEWER if p not in NEVER.get(j, ()))) for j in PAPERS[1:]],
    case('invert', 'SIGKILL', 'write:config.json', 'search:2', 'write:search.safetensors@3', 'search:7', 'write:000000.safetensors', 'search:3', 'search:8', 'write:000001.safetensors', 'cell:What was found', 'write:result.json'),
    case('synthesize', 'SIGKILL', 'write:set.json', 'identity:dynamic-0', 'identity:dynamic-1', 'written:dynamic-000000.tar', 'named:dynamic-000000.tar', 'written:static-000000.tar', 'named:static-000000.tar', 'identity:dynamic-2', 'named:dynamic-000001.tar', 'write:index.json', 'write:result.json'),
    *[case(t, 'SIGKILL', *(f'cell:{h}' for h in hs), *(['write:result.json'] if t != 'sample' else [])) for t, hs in HEADS.items()],

    case('train eg3d', 'SIGTERM', 'cell:What is trained, on what'),
    case('train eg3d', 'SIGTERM', 'loader:0', 'G_step:1', 'R1:2', 'EMA:3', 'D_step:4'),
    *[case(j, 'SIGTERM', 'G_step:1', 'EMA:3') for j in PAPERS[1:]],
    case('invert', 'SIGTERM', 'cell:The pictures', 'search:3', 'search:7', 'search:2'),
    case('synthesize', 'SIGTERM', 'identity:dynamic-0', 'cell:Making it'),
    *[case(t, 'SIGTERM', f'cell:{hs[1]}') for t, hs in HEADS.items()],

    case('train eg3d', 'kernel killed', 'G_step:3'),
    *[case(t, 'kernel killed', f'cell:{p}') for t, p in {'invert': 'What was found', 'synthesize': 'A look at it', **{t: hs[1] for t, hs in HEADS.items()}}.items()],

    *[case(j, 'disk full', p) for j, p in (('train eg3d', '1500 kB'), ('train genhead', '1500 kB'), ('invert', '300 kB'), ('synthesize', '600 kB'), ('evaluate', '48 kB'))],

    *[case('train eg3d', 'checkpoint damaged', f'{how} {f}', must=PASSED) for how, f in (('truncated', 'weights.safetensors'), ('flipped', 'weights.safetensors'), ('flipped', 'optimisers.safetensors'), ('truncated', 'state.json'),
                                                                                   ('missing', 'rank0.safetensors'), ('missing', 'SHA256SUMS'), ('empty', 'SHA256SUMS'))],
    case('train eg3d', 'checkpoint damaged', 'torn metrics.jsonl'),
    case('train portrait4d', 'checkpoint damaged', 'flipped weights.safetensors', must=PASSED),
    *[case('invert', 'checkpoint damaged', f'{how} search.safetensors', must='passed over') for how in ('truncated', 'flipped')],
    case('invert', 'checkpoint damaged', 'flipped 000000.safetensors', must='passed over'),
    *[case('synthesize', 'checkpoint damaged', f'{how} dynamic-000000.tar', must='made anew') for how in ('truncated', 'flipped')],
    case('synthesize', 'checkpoint damaged', 'missing dynamic-000000.tar'),
    case('train eg3d', 'all checkpoints damaged', 'truncated weights.safetensors', must='no checkpoint can be used'),

    case('train eg3d', 'data missing or corrupt', 'missing balls.zip', must='no data set at'),
    case('train eg3d', 'data missing or corrupt', 'truncated balls.zip'),
    case('train eg3d', 'data missing or corrupt', 'flipped balls.zip'),
    case('train panohead', 'data missing or corrupt', 'missing around_masks.zip', must='no archive around_masks'),
    *[case('train portrait4d', 'data missing or corrupt', f'{how} heads4d/dynamic-000000.tar') for how in ('missing', 'truncated', 'flipped')],
    case('invert', 'data missing or corrupt', 'missing balls.zip', must='no data set at'),

    *[case(j, 'clock jumps', f'time {by} {p}') for j, p in (('train eg3d', 'loader:3'), ('invert', 'search:6'), ('synthesize', 'identity:dynamic-1')) for by in ('86400', '-86400')],
    case('train eg3d', 'clock jumps', 'time 86400 loader:3', args=('-p', 'train.max_seconds=3600')),

    *[case(j, 'two runs in one folder', p, must='is still running (process') for j, p in (('train eg3d', 'loader:3'), ('invert', 'search:6'), ('synthesize', 'identity:dynamic-1'))],
    case('train eg3d', 'two runs in one folder', 'started at once'),

    *[case('train eg3d', 'read-only folder', p) for p in ('no right to write', 'a file in the way')],
]


def imported():
    "Everything that a run imports, once, before the forks."
    import encodings.cp437, torch._dynamo, PIL.PngImagePlugin, accelerate, matplotlib.pyplot, nbconvert, papermill, papermill.execute, safetensors.torch, tqdm.auto, yaml, kornia, psutil  # noqa: F401
    import headnb.runs, headnb.gan.invert, headnb.gan.synthesis, headnb.gan.train, headnb.gan.triples, headnb.view, headnb.compare_runs, headnb.cluster  # noqa: F401
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config
    for j in JOBS.values(): 'paper' in j and headnb.runs.paper_module(j['paper'])
    c = Config(); c.HistoryManager.enabled = False
    InteractiveShell.instance(config=c)
    environment()


def judged(bench, c):
    "Run a case -> its line of the table."
    import resource
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = used()
    try: f = FAULTS[c.fault](bench, c)
    except Exception as e:
        f = Found(); f.check(False, f'{type(e).__name__}: {e}'); traceback.print_exc()
    clean = lambda x: re.sub(r'\x1b\[[\d;]*m|^Executing.*?/s(cell)?\]', '', str(x or '').split('\r')[-1]).replace(f'{bench.work}/', '').replace(f'{ROOT}/', '')[:240]
    return dict(name=c.name, template=c.template, job=c.job, fault=c.fault, places=list(c.places), how=f.how, known=KNOWN.get(c.name, ''), held=not f.checks, failed=[clean(x) for x in f.checks], kills=f.kills, terms=f.terms, lost=f.lost, corrupted=f.corrupted,
                exit=f.codes, said=clean(f.said), seconds=round(used() - before, 1), commit=commit(), code=c.code)


@functools.cache
def commit():
    "What was checked out; '+' where the library has been changed since."
    git = lambda *a: subprocess.run(['git', *a], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return git('rev-parse', '--short', 'HEAD') + '+'*bool(git('status', '--porcelain', 'headnb', 'nbs/9_runs'))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', default=['*'], metavar='PATTERN', help='cases whose name fits')
    p.add_argument('--seconds', type=float, help='begin no case after so many')
    p.add_argument('--all', action='store_true', help='also what is known already')
    p.add_argument('--stale', action='store_true', help='what held with other code is known, too')
    p.add_argument('--out', type=Path, default=TABLE)
    p.add_argument('--keep', type=Path, help='folder in which runs stay')
    a = p.parse_args(argv)
    from headnb.base.core import write_atomic
    from tqdm.auto import tqdm
    rows = {r['name']: r for r in json.loads(a.out.read_text())['cases']} if a.out.exists() else {}
    chosen = [c for c in CASES if any(fnmatch.fnmatch(c.name, p) for p in a.only)]
    todo = [c for c in chosen if a.all or not (r := rows.get(c.name)) or not (r['code'] == c.code or a.stale) or not r['held']]
    print(f'{len(CASES)} cases, {len(chosen)} chosen, {len(todo)} to run')
    if not todo: return 0
    imported()
    work = a.keep or Path(tempfile.mkdtemp(prefix='headnb-faults-', dir=next((d for d in ('/dev/shm',) if os.access(d, os.W_OK)), None)))      # in memory: every write of a run waits for its disk
    work.mkdir(parents=True, exist_ok=True); work.chmod(0o755)
    begin = time.monotonic()
    try:
        bench = Bench(work)
        for c in (bar := tqdm(todo, desc='cases', disable=not sys.stderr.isatty() and None)):
            if a.seconds and time.monotonic() - begin > a.seconds: break
            bar.set_postfix_str(c.name[:60])
            rows[c.name] = r = judged(bench, c)
            print(f"{'held  ' if r['held'] else 'FAILED'} {r['seconds']:5.1f} s  {c.name[:150]}" + ''.join(f'\n       {x}' for x in r['failed']), flush=True)
            order = [rows[x.name] for x in CASES if x.name in rows]
            write_atomic(a.out, json.dumps(dict(command='python tests/faults.py', made=time.strftime('%Y-%m-%d', time.gmtime()), cases=order), indent=1))
    finally:
        if not a.keep: shutil.rmtree(work, ignore_errors=True)
    return int(any(not rows[c.name]['held'] and not rows[c.name]['known'] for c in chosen if c.name in rows))


if __name__ == '__main__': sys.exit(main())
