"""python papermill_runs/tables/make.py head3d: gather finished runs of `compare` or `planes` into <name>.json, and the models of one seed into <name>_models.safetensors, as <name>.yaml says (`without`: parts of the names of columns that are not kept)."""
import sys
from pathlib import Path
import torch, yaml
from headnb.base.core import repo_path
from headnb.gan.checkpoint import load, save
from headnb.gan.tables import gather, recompute, read_table, write_table


def newest(name) -> Path:
    "The folder of the last run of that name."
    from headnb.runs import run_folder
    return run_folder(name, resume=True)


def bundle(path, models: dict):   # row -> name of its training run
    "The averaged generators of several runs: in one checkpoint, or in one each (<path>_<row>) where their configurations differ."
    packages = {k: load(newest(v)/'model.safetensors') for k, v in models.items()}
    groups = {path: [*packages]} if len({p.cfg.G for p in packages.values()}) == 1 else {path.with_stem(f'{path.stem}_{k}'): [k] for k in packages}
    for file, rows in groups.items():
        names = rows if len(groups) == 1 else ['G_ema']
        meta = {n: packages[k].meta | {'run': models[k]} for n, k in zip(names, rows)}
        save(file, {n: packages[k].models['G_ema'] for n, k in zip(names, rows)}, packages[rows[0]].cfg.G, meta, dtype=torch.bfloat16)


if __name__ == '__main__':
    name, here = sys.argv[1], repo_path('papermill_runs/tables')
    spec = yaml.safe_load((here/f'{name}.yaml').read_text())
    entries = gather([newest(r) for r in spec['runs']])
    for e in entries: e['results'] = {k: r for k, r in e['results'].items() if not any(w in k for w in spec.get('without', []))}
    write_table(here/f'{name}.json', spec['title'], spec['about'], entries, spec.get('published'))
    for complaint in recompute(read_table(here/f'{name}.json')): print(complaint)
    if spec.get('models'): bundle(here/f'{name}_models.safetensors', spec['models'])
