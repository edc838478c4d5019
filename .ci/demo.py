"""`make demo`: render heads, train a tiny EG3D on them for a bounded time, open the shipped model. Everything through papermill."""
import subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT/'papermill_runs'/'out'
PY = sys.executable


def say(text): print(f'\n== {text}', flush=True)


def do(*args): subprocess.run([PY, *map(str, args)], cwd=ROOT, check=True)


def main():
    begin = time.time()
    say('1/3  rendering 600 parametric heads (zip + dataset.json, 32x32)')
    do('data_recipes/anny_heads/make.py', 'data_recipes/anny_heads/frontal_mini.yaml', OUT/'demo'/'heads.zip', '--count', 600, '--size', 32)
    say('2/3  training a tiny EG3D on them, from scratch, for 100 seconds')
    hundred = [f'train.{k}={v}' for k, v in dict(kimg=1000, max_seconds=100, snapshot_kimg=5, preview_kimg=5, log_every=10).items()]
    code = subprocess.run([PY, '-m', 'headnb.runs', 'tiny/eg3d', *(x for p in hundred for x in ('-p', p))], cwd=ROOT).returncode
    if code not in (0, 4): sys.exit(code)          # 4: out of time, resumable - as planned
    say('3/3  opening the shipped eg3d-mini: samples, turntable, depth, planes, mesh')
    do('-m', 'headnb.runs', 'tiny/sample')
    newest = lambda name: max(OUT.glob(f'{name}*'), key=lambda p: p.stat().st_mtime)
    say(f'done in {time.time() - begin:.0f} s. Look at:')
    for folder in (newest('tiny-eg3d'), newest('tiny-sample')):
        for p in sorted(folder.glob('*')):
            if p.suffix in ('.html', '.ipynb', '.gif', '.ply', '.glb', '.obj'): print('  ', p.relative_to(ROOT))


if __name__ == '__main__': main()
