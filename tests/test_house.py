"""The rules of the house that a machine can hold."""
import ast, json, re, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
LAYERS = {'base': 0, 'nets': 1, 'field': 2, 'gan': 3, 'papers': 4}


def cells(p, kind='code'): return [c for c in json.loads(p.read_text())['cells'] if c['cell_type'] == kind]


def source(c): return ''.join(c['source'])


def default_exp(p):
    found = [m.group(1) for c in cells(p) for m in [re.search(r'^#\| *default_exp +(\S+)', source(c), re.M)] if m]
    return found[0] if found else None


NUMBER = {d: (int(m[1]), m[2]) for p in NBS if (d := default_exp(p)) and (m := re.match(r'(\d+)([a-z]?)_', p.name))}   # 27 < 27b < 28


def imports(tree):
    "Modules of ours that a parsed file imports, as 'layer.name'."
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('headnb.'):
            assert not any(a.name == '*' for a in n.names), f'star import from {n.module}'
            yield n.module.removeprefix('headnb.')
        if isinstance(n, ast.Import): yield from (a.name.removeprefix('headnb.') for a in n.names if a.name.startswith('headnb.'))


@pytest.mark.parametrize('module', sorted(NUMBER))
def test_layers(module):
    "A module imports from lower layers, or from lower-numbered notebooks of its own; papers never import papers."
    layer = LAYERS.get(module.split('.')[0], 5)
    for other in imports(ast.parse((ROOT/'headnb'/(module.replace('.', '/') + '.py')).read_text())):
        theirs = LAYERS.get(other.split('.')[0], 5)
        assert theirs < layer or theirs == layer != 4 and NUMBER[other] < NUMBER[module], f'{module} imports {other}'


def test_one_notebook_per_module():
    names = [d for p in NBS if (d := default_exp(p))]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


def test_every_module_has_its_notebook():
    ours = {str(p.relative_to(ROOT/'headnb').with_suffix('')).replace('/', '.') for p in (ROOT/'headnb').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py')}
    assert ours == {d for p in NBS if (d := default_exp(p))}


@pytest.mark.parametrize('p', NBS, ids=lambda p: p.name)
def test_notebook_is_executed_and_clean(p):
    code = [c for c in cells(p) if source(c).strip()]
    out = json.dumps([c['outputs'] for c in code])
    assert '"output_type": "error"' not in out, 'a stored error'
    assert p.stat().st_size < 4e6, 'over 4 MB'
    if p.parent.name != '9_runs': assert 'image/png' in out or 'image/jpeg' in out, 'no stored picture'
    assert len(cells(p)) + len(cells(p, 'markdown')) <= 80
    text = p.read_text()
    assert not re.search(r'/(home|root|work|Users)/[a-z]', text), 'a path of somebody\'s machine'


def test_parameters_are_never_exported():
    for p in NBS:
        for c in cells(p):
            assert not ('parameters' in c['metadata'].get('tags', []) and re.search(r'^#\| *export', source(c), re.M)), p.name


def test_nothing_is_imported_in_vain():
    "Modules, notebooks, recipes and tests use what they import and what they name (`[tool.ruff.lint]` of pyproject.toml)."
    r = subprocess.run([Path(sys.executable).parent/'ruff', 'check', '--no-cache', '--output-format', 'concise'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def test_nothing_heavy_at_import():
    "Importing a module of ours pulls in none of the slow packages."
    heavy = ['diffusers', 'transformers', 'torchmetrics', 'lpips', 'torchvision', 'accelerate', 'kornia', 'warp', 'skimage', 'trimesh', 'plotly', 'matplotlib', 'anny', 'papermill']
    names = ', '.join(f'headnb.{m}' for m in sorted(NUMBER))
    r = subprocess.run([sys.executable, '-c', f'import sys, {names}\nprint([m for m in {heavy} if m in sys.modules])'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout.strip() == '[]'


def test_readme_is_the_index():
    sys.path.insert(0, str(ROOT/'.ci'))
    from readme import render
    text, files = render()
    assert (ROOT/'README.md').read_text() == text, 'run make export'
    for name, data in files.items(): assert (ROOT/name).read_bytes() == data


def test_package_budget():
    size = sum(p.stat().st_size for p in (ROOT/'headnb').rglob('*') if p.is_file() and '__pycache__' not in p.parts)
    assert size < 60e6, f'{size/1e6:.1f} MB'


def test_every_asset_has_a_licence_line():
    text = (ROOT/'LICENSES.md').read_text()
    for p in (ROOT/'headnb'/'assets').rglob('*'):
        if p.is_file(): assert p.relative_to(ROOT/'headnb'/'assets').as_posix() in text or f'{p.parent.name}/' in text, p.name


def test_every_dependency_has_a_licence_line():
    import tomllib
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    text = (ROOT/'LICENSES.md').read_text().lower()
    for d in sum(project['optional-dependencies'].values(), project['dependencies']):
        assert f'| {re.split("[<>=]", d)[0].lower()} ' in text, d
