"""The committed table of faults (papermill_runs/faults.json, made by `python tests/faults.py`): complete and without a failed case; some of its cheap cases again, and - in the slow tests - all of them."""
import json, os, re, subprocess, sys
import pytest
from faults import CASES, FAULTS, JOBS, KNOWN, TABLE
from processes import ROOT

ROWS = json.loads(TABLE.read_text())['cases']
CHEAP = ['invert: SIGTERM: *', 'invert: checkpoint damaged: flipped search.safetensors', 'invert: disk full: *', 'invert: two runs in one folder: *', 'invert: data missing*', 'train eg3d: checkpoint damaged: truncated weights*', 'train eg3d: data missing*: truncated*']


def test_every_case_held():
    assert [r['name'] for r in ROWS] == [c.name for c in CASES]               # no line is left out, none is left over
    assert [r['name'] for r in ROWS if not r['held'] and r['name'] not in KNOWN] == []
    assert [r['name'] for r in ROWS if r['lost'] or r['corrupted']] == []
    assert {r['name'] for r in ROWS if not r['held']} == {r['name'] for r in ROWS if r['known']} == set(KNOWN)     # what is mended leaves the list


def test_enough_kills_in_every_template():
    templates = {p.stem for p in (ROOT/'nbs/9_runs').glob('*.ipynb')}
    assert {r['template'] for r in ROWS} == templates == {j.split()[0] for j in JOBS}
    for t in templates: assert {'SIGKILL', 'SIGTERM', 'kernel killed'} <= {r['fault'] for r in ROWS if r['template'] == t}, t
    assert sum(r['kills'] for r in ROWS) >= 50 and sum(r['terms'] for r in ROWS) >= 15
    assert {r['fault'] for r in ROWS} == set(FAULTS)
    for j in JOBS: assert sum(r['kills'] for r in ROWS if r['job'] == j) >= 3, j
    for r in ROWS:                                                            # kills were kills, SIGTERM left something to go on with
        if r['fault'] == 'SIGKILL': assert r['exit'] == [-9]*len(r['places']) + [0], r['name']
        if r['fault'] == 'two runs in one folder': assert sorted(r['exit']) == ([0, 0] if 'at once' in r['name'] else [0, 2]), r['name']   # at once: each in a folder of its own


def test_every_training_is_there():
    "Each paper, and each tiny training that is another configuration or stage of one, is killed and stopped."
    import yaml
    family = lambda t: (t['paper'], t['config'], t.get('G', {}).get('stage', 1))
    tiny = [yaml.safe_load(p.read_text()) for p in sorted((ROOT/'papermill_runs/tiny').glob('*.yaml'))]
    struck = {family(JOBS[j]) for j in JOBS if j[:5] == 'train' and {'SIGKILL', 'SIGTERM'} <= {r['fault'] for r in ROWS if r['job'] == j}}
    assert {family(t) for t in tiny if t['template'] == 'train'} <= struck
    assert {p.stem for p in (ROOT/'headnb/papers').glob('[!_]*.py')} == {paper for paper, *_ in struck}


def test_every_line_says_what_it_was_measured_with():
    for r in ROWS: assert re.fullmatch(r'[0-9a-f]{7,}\+?', r['commit']), (r['name'], r['commit'])


def again(tmp_path, *more):
    "tests/faults.py in a process of its own."
    done = subprocess.run([sys.executable, ROOT/'tests/faults.py', '--out', tmp_path/'faults.json', *more], cwd=ROOT, env=os.environ | {'HEADNB_QUIET': '1'}, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads((tmp_path/'faults.json').read_text())['cases']


def test_cheap_cases_again(tmp_path):
    made = again(tmp_path, '--only', *CHEAP)
    known = {r['name']: r for r in ROWS}
    assert len(made) == len(CHEAP) and [(r['held'], r['exit'], r['kills']) for r in made] == [(known[r['name']]['held'], known[r['name']]['exit'], known[r['name']]['kills']) for r in made]


@pytest.mark.slow
def test_all_cases_again(tmp_path): assert len(again(tmp_path)) == len(CASES)
