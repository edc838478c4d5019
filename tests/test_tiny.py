"""`headnb-run papermill_runs/tiny/*.yaml`: every paper and every template has a tiny run, the commands that stand in their first lines make their data, and all of them end with 0.

Copies of the files, whose folders and data lie elsewhere, and whose counts of pictures and steps are smaller (`LESS`). Each run is a fork in which the cells are executed (as in faults.py); the last test starts two of them as a user does.
"""
import json, os, re, subprocess, sys
from pathlib import Path
import pytest
from faults import in_this_process, imported, undrawn
from processes import ROOT, apart, forked, recipe

FILES = sorted((ROOT/'papermill_runs/tiny').glob('*.yaml'))
LESS = {'invert': dict(invert=dict(method='pti', w_steps=6, tune_steps=4)), 'sample': dict(seeds=[0, 1], mesh_size=32)}
COUNT = '24'                                           # rendered pictures of a set


def files(work):
    "The tiny runs in `work`."
    import yaml
    (work/'tiny').mkdir()
    for p in FILES:
        table = yaml.safe_load(p.read_text().replace('papermill_runs/out', f'{work}/out'))
        (work/'tiny'/p.name).write_text(yaml.safe_dump({'name': f'tiny-{p.stem}'} | table | LESS.get(p.stem, {})))
    return sorted((work/'tiny').iterdir())


def commands():
    "{file: what makes it} of the first lines."
    found = [m.group(1).split() for p in FILES for m in [re.search(r'data: python (data_recipes/\S+/make.py .*)$', p.read_text().splitlines()[0])] if m]
    return {args[2]: args for args in found}


def make(work, args):
    args = [a.replace('papermill_runs/out', f'{work}/out') for a in args]
    if '--count' not in args: return subprocess.run([sys.executable, *args], cwd=ROOT).returncode        # it has processes of its own
    return forked(lambda: recipe(Path(args[0]).parent.name).main([str(ROOT/args[1]), *args[2:], '--count', COUNT, '--workers', '1']))


def worker(work):
    import papermill.engines, torch, headnb.cluster as cluster
    imported()
    torch.set_num_threads(1)
    work_files = files(work)
    report = dict(data={k: make(work, v) for k, v in commands().items()})
    here, order = cluster.run_here, []
    def run(argv):
        def job():
            undrawn()
            papermill.engines.papermill_engines.register(None, in_this_process(None))
            return here(argv)
        order.append(Path(argv[0]).stem)
        return os.waitstatus_to_exitcode(forked(job))
    cluster.run_here = run
    report |= dict(code=cluster.main([*map(str, work_files), '--out', str(work/'out')]), order=order)
    (work/'report.json').write_text(json.dumps(report))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return apart(__file__, tmp_path_factory.mktemp('tiny'), timeout=1500)


def test_every_paper_and_template_has_one():
    import yaml
    tables = [yaml.safe_load(p.read_text()) for p in FILES]
    assert {t['template'] for t in tables} == {p.stem for p in (ROOT/'nbs/9_runs').glob('*.ipynb')}
    assert {t['paper'] for t in tables if t['template'] == 'train'} == {p.stem for p in (ROOT/'headnb/papers').glob('[!_]*.py')}


def test_their_data_can_be_made(runs):
    work, report, stderr = runs
    assert len(report['data']) >= 5 and set(report['data'].values()) == {0}, stderr[-3000:]


def test_all_end_well(runs):
    work, report, stderr = runs
    ends = {p.stem: json.loads((work/'out'/f'tiny-{p.stem}'/'status.json').read_text()) for p in FILES}
    assert {k: e['why'] for k, e in ends.items() if e['status'] != 'done'} == {} and report['code'] == 0, stderr[-3000:]
    assert report['order'].index('head360') < report['order'].index('head360-detach') and report['order'].index('eg3d') < report['order'].index('head3d')


def test_as_a_user_does(tmp_path):
    "Two of them by the shell, each with a kernel of its own; a third that could not start stops all before the first begins."
    files(tmp_path)
    def shell(line): return subprocess.run(['sh', '-c', line], cwd=ROOT, env=os.environ | {'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=500)
    for p in (tmp_path/'tiny').iterdir(): p.unlink() if p.stem not in ('genhead-4d', 'planes') else None
    (tmp_path/'tiny'/'typo.yaml').write_text('template: planes\nstpes: 2\n')
    line = f'headnb-run {tmp_path}/tiny/*.yaml --out {tmp_path}/out'
    refused = shell(line)
    assert refused.returncode == 2 and "planes has no parameter 'stpes'; did you mean 'steps'?" in refused.stderr and not (tmp_path/'out').exists(), refused.stderr
    (tmp_path/'tiny'/'typo.yaml').unlink()
    done = shell(line)
    assert done.returncode == 0 and done.stdout.count('done: ') == 2, done.stderr[-3000:]


if __name__ == '__main__': worker(Path(sys.argv[1]))
