"""All notebooks, then tests/: prints seconds per notebook, what was skipped and why. `--all` runs the slow parts too."""
import argparse, json, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FLAGS = ('notest', 'slow', 'gpu', 'browser', 'weights', 'data')


def notebooks():
    "Every notebook below nbs/, longest first by size of source."
    found = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts and not p.name.startswith('_')]
    return sorted(found, key=lambda p: 'train' not in p.name and 'benchmark' not in p.name)


def flagged(p):
    "Flags of the cells of `p` that a test skips."
    cells = json.loads(p.read_text())['cells']
    lines = [ln for c in cells if c['cell_type'] == 'code' for ln in ''.join(c['source']).splitlines() if ln.startswith('#|')]
    return [f for ln in lines for f in FLAGS if f in ln[2:].split()]


def run(p, flags):
    "nbdev_test of one notebook: (path, seconds, ok, output)."
    t = time.time()
    env = dict(os.environ, OMP_NUM_THREADS='1', HEADNB_QUIET='1', MPLBACKEND='agg')
    r = subprocess.run([BIN/'nbdev_test', '--path', p, '--n_workers', '0', *(['--flags', flags] if flags else [])], cwd=ROOT, env=env, capture_output=True, text=True)
    return p, time.time() - t, r.returncode == 0, r.stdout + r.stderr


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument('--all', action='store_true')
    everything = args.parse_args().all
    nbs, failed = notebooks(), []
    assert nbs, 'no notebook below nbs/'
    with ThreadPoolExecutor(2) as pool:
        for p, seconds, ok, out in pool.map(lambda p: run(p, 'slow' if everything else ''), nbs):
            skip = [] if everything else flagged(p)
            note = f"   skipped cells: {', '.join(sorted(set(skip)))}" if skip else ''
            print(f"{'ok  ' if ok else 'FAIL'} {seconds:6.1f} s  {p.relative_to(ROOT)}{note}", flush=True)
            if not ok: failed.append(p); print(out[-4000:], flush=True)
    print(f'{len(nbs) - len(failed)} notebooks passed, {len(failed)} failed', flush=True)
    marks = [] if everything else ['-m', 'not slow and not browser and not gpu']
    if not everything: print('tests marked slow, browser or gpu are left out: `make test-all` runs them')
    r = subprocess.run([BIN/'pytest', '-rs', '--durations=8', *marks, 'tests'], cwd=ROOT, env=dict(os.environ, HEADNB_QUIET='1'))
    sys.exit(1 if failed or r.returncode else 0)


if __name__ == '__main__': main()
