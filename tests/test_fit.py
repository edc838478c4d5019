"""Fitting a folder: a killed run goes on where it was, with the same bytes; a part is never half there."""
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from headnb.base.camera import orbit, project
from headnb.field.rig import load_head
from headnb.gan.data import HeadDataset
from headnb.gan.fit import SETTINGS, Stage
from headnb.gan.fit_photos import FolderCfg, fit_folder
from processes import script

torch.set_num_threads(1)
FAST = replace(SETTINGS['tiny'], contour='fixed', start=6, stages=(Stage('rotation translation shape expression eyes', 5, 1e-3),))
CFG = FolderCfg(FAST, size=32, batch=2, mirror='rig')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Ten pictures of nothing with the landmarks of somebody, and the data set that an undisturbed run makes."
    d, head = tmp_path_factory.mktemp('fit'), load_head()
    (d/'in').mkdir()
    g = torch.Generator().manual_seed(0)
    X = head.landmarks(head(head.sample_shape(10, g)))
    uv = project(X, orbit(torch.linspace(-.5, .5, 10)))[0]*64
    for i in range(10): Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(d/'in'/f'{i:02d}.png')
    np.savez(d/'marks.npz', **{f'{i:02d}.png': uv[i].numpy() for i in range(10)})
    report = fit_folder(d/'in', d/'whole.zip', head, dict(np.load(d/'marks.npz')), CFG)
    assert report['accepted'] == 10 and report['parts'] == 5 and report['assembled']
    return d


KILLED = '''
import os, sys
import numpy as np, torch
torch.set_num_threads(1)
import headnb.gan.fit_photos as F
from headnb.field.rig import load_head
from processes import dying
from test_fit import CFG
where, n = sys.argv[2], int(sys.argv[3])
if where == 'fit': F.fit_rig = dying(F.fit_rig, n)
if where == 'crop': F.cut_square = dying(F.cut_square, n)
if where == 'rename': os.replace = dying(os.replace, n)
d = sys.argv[1]
F.fit_folder(d + '/in', d + f'/{where}{n}.zip', load_head(), dict(np.load(d + '/marks.npz')), CFG)
'''


@pytest.mark.parametrize('where, n', [('fit', 3), ('rename', 2), ('crop', 18), ('rename', 5), ('rename', 6)])   # during the fit of part 4; before part 3 has its name; while crops are cut; before the data set, before the report
def test_a_killed_run_goes_on(made, where, n):
    r = script(KILLED, made, where, n)
    assert r.returncode == -signal.SIGKILL, r.stderr[-2000:]
    out = made/f'{where}{n}.zip'
    parts = sorted((made/f'{where}{n}_fit').glob('part_*.json'))
    done = {('fit', 3): 3, ('rename', 2): 2, ('crop', 18): 5, ('rename', 5): 5, ('rename', 6): 5}[where, n]
    assert len(parts) == done and out.exists() == ((where, n) == ('rename', 6))
    times = {p.name: p.stat().st_mtime_ns for p in parts}
    report = fit_folder(made/'in', out, load_head(), dict(np.load(made/'marks.npz')), CFG)
    assert report['made'] == 5 - done and report['assembled']
    assert times.items() <= {p.name: p.stat().st_mtime_ns for p in (made/f'{where}{n}_fit').glob('part_*.json')}.items()       # what was there was not made again
    assert out.read_bytes() == (made/'whole.zip').read_bytes()
    assert len(HeadDataset(out)) == 20


def test_a_damaged_part_is_made_anew(made):
    "A part that somebody cut is not what the ledger vouches for: it alone is made again, to the same bytes."
    head, marks = load_head(), dict(np.load(made/'marks.npz'))
    fit_folder(made/'in', made/'damaged.zip', head, marks, CFG)
    p = sorted((made/'damaged_fit').glob('part_*.json'))[0]
    whole = p.read_bytes()
    p.write_bytes(whole[:-20])
    report = fit_folder(made/'in', made/'damaged.zip', head, marks, CFG)
    assert report['made'] == 1 and p.read_bytes() == whole and (made/'damaged.zip').read_bytes() == (made/'whole.zip').read_bytes()


def test_several_processes_fit_the_same_set(made):
    "Two processes, and landmarks and checksums that are known: the same bytes; another checksum is another part."
    head, marks = load_head(), dict(np.load(made/'marks.npz'))
    report = fit_folder(made/'in', made/'pair.zip', head, marks, CFG, workers=2)
    assert report['made'] == 5 and (made/'pair.zip').read_bytes() == (made/'whole.zip').read_bytes()
    sums = {f'{i:02d}.png': str(i) for i in range(10)}
    assert fit_folder(made/'in', made/'sums.zip', head, marks, CFG, sums=sums)['made'] == 5
    assert fit_folder(made/'in', made/'sums.zip', head, marks, CFG, sums=sums | {'03.png': 'x'})['made'] == 1
