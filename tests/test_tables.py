"""Tables of the studies: every number follows from its samples, and a row can be measured again from a committed checkpoint."""
import math
import pytest, torch
from headnb.base.camera import orbit
from headnb.base.core import repo_path
from headnb.gan.tables import read_table, recompute

TABLES = sorted(p.stem for p in repo_path('papermill_runs/tables').glob('*.yaml'))


@pytest.mark.parametrize('name', TABLES)
def test_recomputed(name):
    table = read_table(name)
    assert recompute(table) == [] and len({e['seed'] for e in table.entries}) >= 2
    for e in table.entries: assert all(len(str(e[k])) >= 6 for k in ('config_hash', 'data_hash', 'commit', 'command')), e['row']


def test_identity_measured_again():
    "ID of `ours`, seed 0, on other latents: the mean lies within four standard errors of the table's."
    from headnb.gan.checkpoint import load
    from headnb.gan.generator import Generator
    from headnb.gan.judges import load_judges
    package, judges = load(repo_path('papermill_runs/tables/head3d_models.safetensors')), load_judges()
    teacher, student = (package.into(k, Generator(package.cfg)).eval() for k in ('face', 'ours'))
    z, c = torch.randn(100, package.cfg.mapping.z_dim, generator=torch.Generator().manual_seed(77)), orbit(0.).expand(100, 25)
    with torch.no_grad(): a, b = (judges.identity(G(z, c, noise='const', deterministic=True)['image']) for G in (teacher, student))
    again = (a*b).sum(1)
    table = read_table('head3d')
    then = next(e for e in table.entries if (e['row'], e['seed']) == ('ours', 0))['results']['ID']
    assert then['judge'].startswith(judges.name)
    error = math.hypot(float(again.std())/10, (then['high'] - then['value'])/1.96)
    assert abs(float(again.mean()) - then['value']) < 4*error, (float(again.mean()), then['value'], error)
