#!/usr/bin/env python
"""Render our stand-in for SYNHEAD100:  python data_recipes/synhead/make.py SPEC.yaml OUT(.zip or folder) [--folder SYNHEAD] [--count N] [--size PIXELS] [--workers 2] [--keep]

People x 52 expressions x cameras, with and without hair, on white; rendered, sharded and resumed by data_recipes/anny_heads/make.py. OUT is in the field's format, its labels carry the codes of the head that ships. --folder also writes the
layout in which SYNHEAD100 is released (pictures, two json files, hairstyles, meshes and lips), which headnb.gan.synhead reads: for sets in which every person and expression is seen by the same cameras (no `grid`).
"""
import argparse, importlib.util, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np, torch
from headnb.base.core import BadInput, require
from headnb.field.hair import STYLES
from headnb.field.rig import load_head
from headnb.gan.data import HeadDataset
from headnb.gan.synhead import FRONTAL, facts_of, write_meshes, write_synhead


def renderer(): # data_recipes/anny_heads/make.py as a module; worker processes, which import this file first, find it by the same name
    name = 'anny_heads_make'
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1]/'anny_heads'/'make.py')
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


ANNY = renderer()


def load_spec(path): # YAML -> Spec of the renderer
    "Read a spec, strictly."
    s = ANNY.load_spec(path)
    require(s.kind == 'expressions', f'{path}: kind is {s.kind}; this recipe makes expressions')
    return s


def subject(i): return f'fs_{i + 1:03d}'


def pictures(ds, hair, views, names): # HeadDataset, hairstyle ids of all pictures -> items of `write_synhead`
    "One after the other."
    f, turn = facts_of(ds), FRONTAL if views == 72 else 0
    for i in range(len(ds)):
        x, e = ds[i], int(f['expression'][i])
        yield dict(image=x['image'].permute(1, 2, 0).numpy(), mask=x['mask'][0].numpy(), c=x['c'], weights=torch.eye(52)[e], subject=subject(int(f['identity'][i])), expression=names[e], view=(int(f['view'][i]) + turn) % views, bare=not f['hair'][i])


def write_folder(s, out, folder): # Spec, finished set, where
    "SYNHEAD100's layout of a finished set."
    require(not s.grid, 'a set whose cameras are drawn (grid) has no folder of SYNHEAD100: there everybody is seen by the same')
    ds, rig = HeadDataset(out), load_head()
    with np.load(out.with_name(out.stem + '_truth.npz')) as t: shape, who, hair = torch.from_numpy(t['shape']).float(), t['info_person'], t['hair']
    people, names = sorted(set(who.tolist())), rig.expression_names
    require(len(ds) == ANNY.total(s), f'{out} holds {len(ds)} of {ANNY.total(s)} pictures; a folder wants them all (leave --count off)')
    styles = {subject(p): int(hair[who == p].max()) for p in people}                                # without hair it is 0
    write_synhead(folder, pictures(ds, hair, s.views, names), styles, len(STYLES))
    pose = rig.pose(eyes=rig.gaze(torch.eye(52)))
    for p in people:
        v = rig(shape[int((who == p).argmax())].expand(52, -1), torch.eye(52), pose)
        write_meshes(folder, v[None], rig.faces, [subject(p)], names, rig.landmarks(v)[None, :, 48:60])
    return folder


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('spec'); p.add_argument('out')
    p.add_argument('--folder', help="also the released layout, here")
    a, rest = p.parse_known_args(argv)
    try:
        s = load_spec(a.spec)
        require(not a.folder or not s.grid, f'{a.spec}: grid is {s.grid}; --folder is for sets in which everybody is seen by the same cameras')
        done = ANNY.main([a.spec, a.out, *rest])
        if a.folder and not done: print(f'{write_folder(s, Path(a.out), Path(a.folder))}: in the layout of SYNHEAD100')
        return done
    except BadInput as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == '__main__': sys.exit(main())
