"""The released numbers, replayed through the command line as a user would."""
import json, subprocess, sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent/'golden'
CASES, FAMILIES = GOLDEN/'eg3d', ('eg3d', 'panohead', 'portrait4d', 'head360')
SLOW = {'eg3d_full_ffhq512-128', 'panohead_full', 'full_genhead', 'full_discriminator', 'full_reconstructor', 'generator_full', 'next3d_generator_full', 'discriminator_dual_label_full'}


def golden(*args): return subprocess.run([sys.executable, '-m', 'headnb.golden', *map(str, args)], capture_output=True, text=True)


def cases(family, slow): return sorted(p.parent for p in (GOLDEN/family).glob('*/case.json') if (p.parent.name in SLOW) == slow)


@pytest.mark.parametrize('family', FAMILIES)
def test_small_cases(family):
    r = golden(*cases(family, False))
    assert r.returncode == 0, r.stdout + r.stderr
    assert sum(line.rstrip().endswith('ok') for line in r.stdout.splitlines()) > 100


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_full_size(family):
    r = golden(*cases(family, True))
    assert r.returncode == 0, r.stdout + r.stderr


def spoil(tmp_path, name, change):
    "A copy of a case with its case.json changed."
    folder = tmp_path/name
    folder.mkdir()
    for f in (CASES/name).iterdir(): (folder/f.name).write_bytes(f.read_bytes())
    case = json.loads((folder/'case.json').read_text())
    change(case)
    (folder/'case.json').write_text(json.dumps(case))
    return folder


def test_another_seed_fails(tmp_path):
    r = golden(spoil(tmp_path, 'eg3d_D_tiny', lambda c: c.update(seed=1)))
    assert r.returncode == 1 and 'FAIL' in r.stdout.upper()


@pytest.mark.parametrize('change', [lambda c: c.update(family='eg4d'), lambda c: c.update(kind='dance')])
def test_unknown_family_or_kind(tmp_path, change):
    r = golden(spoil(tmp_path, 'eg3d_D_tiny', change))
    assert r.returncode == 2 and ('eg4d' in r.stdout + r.stderr or 'dance' in r.stdout + r.stderr)


def test_nothing_compared(tmp_path):
    assert golden(tmp_path).returncode != 0
