"""What tests of recipes and of killed runs share: a recipe as a module, functions that die in a certain call, runs that are forks of one helper process, and that process.

The helper imports the library once; every run is a fork of it (no tensor is computed before the fork), so each kill is a real kill of a real process, and ten of them take seconds. `HEADNB_KILL_AT` places the kill.
"""
import importlib.util, json, os, signal, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def recipe(name): # folder in data_recipes -> its make.py as a module
    place = ROOT/'data_recipes'/name/'make.py'
    spec = importlib.util.spec_from_file_location(f'{name}_make', place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module               # worker processes find it by this name
    spec.loader.exec_module(module)
    return module


def forked(job, kill=None): # function without arguments -> its exit code, None for 0; where to die -> wait status
    "Run in a fork."
    pid = os.fork()
    if pid: return os.waitpid(pid, 0)[1]
    code = 1
    try:
        os.environ.pop('HEADNB_KILL_AT', None)
        if kill: os.environ['HEADNB_KILL_AT'] = kill
        code = job() or 0
    except Exception:
        import traceback; traceback.print_exc()
    finally: os._exit(code)


def killed(status): return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def disturbed(run, kills): # function (name, where to die or None) -> status; places -> report: one run undisturbed, one per place killed and resumed
    return {'whole': run('whole', None)} | {k: [run(k.replace(':', '-'), k), run(k.replace(':', '-'), None)] for k in kills}


def left_behind(run, folder): # finished Run, its folder -> what a resumed one must end with: status, checkpoint, its state, its checksums; and the steps and losses of the log
    from headnb.gan.train import checkpoints
    last = checkpoints(folder)[-1]
    state = json.loads((last/'state.json').read_text()); state.pop('seconds')
    rows = [json.loads(l) for l in (folder/'metrics.jsonl').read_text().splitlines()]
    return [run.status, last.name, state, [l for l in (last/'SHA256SUMS').read_text().splitlines() if 'state.json' not in l], [r['step'] for r in rows], [sorted(k for k in r if k[:2] in ('G/', 'D/')) for r in rows]]


def dying(f, n): # -> f, which kills its process in call n + 1
    calls = iter(range(n))
    def g(*a, **k):
        if next(calls, None) is None: os.kill(os.getpid(), signal.SIGKILL)
        return f(*a, **k)
    return g


def script(code, *args): # Python text that may import from tests/, its arguments -> finished process
    "Run in a process of its own, on one thread."
    env = os.environ | {'HEADNB_QUIET': '1', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT/'tests')}
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def apart(file, work, timeout=300): # a test file whose `__main__` writes work/report.json -> work, report, stderr
    "The runs of a test file in a process of their own, on one thread: sums are the same bit for bit only where their parts are added in one order."
    env = os.environ | {'HEADNB_QUIET': '1', 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, file, str(work)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return work, json.loads((work/'report.json').read_text()), done.stderr
