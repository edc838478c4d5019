"""All notebooks, then tests/: prints seconds per notebook, what was skipped and why. `--all` runs the slow parts too."""
import argparse, json, os, subprocess, sys, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FLAGS = ('notest', 'slow', 'gpu', 'browser', 'weights', 'data', 'dlib')   # tst_flags of settings.ini


def notebooks():
    "Every notebook below nbs/, longest first by size of source."
    found = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts and not p.name.startswith('_')]
    return sorted(found, key=lambda p: 'train' not in p.name and 'benchmark' not in p.name)


def left_out(p, flags):
    "How many cells of `p` a test skips: {flags of the cell that are not in `flags`: cells}."
    code = [''.join(c['source']).splitlines() for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']
    marks = [{w for ln in lines if ln.startswith('#|') for w in ln[2:].split()} for lines in code]
    return Counter(' + '.join(f for f in FLAGS if f in m and f not in flags) for m in marks if m & set(FLAGS) - set(flags))


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
    nbs, failed, total = notebooks(), [], Counter()
    flags = ['slow']*everything + ['dlib']*(find_spec('dlib') is not None and find_spec('face_recognition_models') is not None)
    assert nbs, 'no notebook below nbs/'
    with ThreadPoolExecutor(2) as pool:
        for p, seconds, ok, out in pool.map(lambda p: run(p, ' '.join(flags)), nbs):
            skip = left_out(p, flags)
            total += skip
            note = f"   left out: {', '.join(f'{n} {f}' for f, n in skip.items())}" if skip else ''
            print(f"{'ok  ' if ok else 'FAIL'} {seconds:6.1f} s  {p.relative_to(ROOT)}{note}", flush=True)
            if not ok: failed.append(p); print(out[-4000:], flush=True)
    print(f"{len(nbs) - len(failed)} notebooks passed, {len(failed)} failed; {sum(total.values())} cells left out ({', '.join(f'{n} {f}' for f, n in total.items()) or 'none'})", flush=True)
    if 'dlib' not in flags: print("the extra is not installed: pip install -c constraints.txt -e '.[dlib]' runs the dlib cells and tests too")
    marks = [] if everything else ['-m', 'not slow and not browser and not gpu']
    if not everything: print('tests marked slow, browser or gpu are left out: `make test-all` runs them')
    r = subprocess.run([BIN/'pytest', '-rs', '--durations=8', *marks, 'tests'], cwd=ROOT, env=dict(os.environ, HEADNB_QUIET='1'))
    sys.exit(1 if failed or r.returncode else 0)


if __name__ == '__main__': main()
