#!/usr/bin/env python
"""A rendered set whose codes are fitted, not known:  python data_recipes/anny_heads/fit.py SPEC.yaml OUT(.zip or folder) [--size PIXELS] [--count N] [--setting tiny] [--workers 2] [--part 0/1]

SPEC is of the kind clips or frontal (one camera a picture). Its pictures are rendered as photographs (OUT_photos.zip, by make.py; their true labels stay there); the judge finds landmarks, headnb.gan.fit_photos crops and fits codes and cameras, one shape for each clip (OUT_crops.zip; OUT_crops_fit/report.json
names what was left out and why); then OUT and OUT_masks are written: crops of --size pixels, fitted labels, and the opacity that the judge's parser finds. What is there is not made again.
"""
import argparse, os, sys
from dataclasses import replace
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import torch
import make
from headnb.base.core import BadInput, from_dict, require, suggest, to_dict
from headnb.field.rig import load_head
from headnb.gan.data import HeadDataset, collate, write_dataset
from headnb.gan.fit import SETTINGS
from headnb.gan.fit_photos import FolderCfg, fit_folder, judge_points
from headnb.gan.judges import load_judges
from headnb.gan.reconstruct import judged_opacity
from headnb.nets.ops import resize


def beside(out, what): # OUT_what.zip
    return out.with_name(f'{out.stem}_{what}.zip')


def photographs(spec, out, count=None, workers=1): # Spec, path -> HeadDataset with the true labels
    "The pictures, if they are not there."
    require(spec.kind in ('clips', 'frontal'), f'kind is {spec.kind}; codes are fitted to one camera a picture: clips or frontal')
    count = min(count or make.total(spec), make.total(spec))
    if out.exists() and from_dict(make.Spec, (have := HeadDataset(out)).meta['recipe'], str(out)) == spec and len(have) == count: return have
    return HeadDataset(make.assemble(spec, out, make.render(spec, out, count, workers), keep=count < make.total(spec)))   # a longer --count reuses the shards


def labelled(photos, crops, size): # HeadDatasets of photographs, and of crops with fitted labels; pixels -> yields items of `write_dataset`
    "Crops as they are learnt from: fitted labels, found opacity, whose frame it is."
    for at in range(0, len(crops), 64):
        rows = range(at, min(at + 64, len(crops)))
        x = collate([crops[i] for i in rows])['image']
        found, small = judged_opacity(x), ((resize(x, size) + 1)*127.5).round().clamp(0, 255).byte().movedim(1, -1).numpy()
        for i, image, m in zip(rows, small, (resize(found, size)*255).round().byte()[:, 0].numpy()):
            facts = crops.info[crops.names[i]]
            yield dict(image=image, c=crops.labels[i].tolist(), drive=crops.drive[i].tolist(), mask=m, info=photos.info.get(facts['photo'], {}) | {k: facts[k] for k in ('photo', 'square', 'off')})


def fitted(spec, out, size, setting='tiny', count=None, workers=1, part=(0, 1)): # Spec, path, pixels, a name of SETTINGS -> report of `fit_folder`
    "Everything, from a specification to a set with fitted codes."
    require(setting in SETTINGS, f'--setting is {setting!r}{suggest(setting, SETTINGS)}')
    photos, judges, rig = photographs(spec, beside(out, 'photos'), count, workers), load_judges(), load_head()
    cfg = replace(SETTINGS[setting], contour='fixed', sigma=.01)                     # the judge has learnt landmarks of a mesh, and is some pixels of 512 off
    cfg = FolderCfg(cfg, by=judges.name, size=max(size, 64), clips=spec.kind == 'clips')
    report = fit_folder(photos.path, beside(out, 'crops'), rig, judge_points(rig, cfg.fit, judges), cfg, part)
    if part != (0, 1) and not beside(out, 'crops').exists(): return report
    crops = HeadDataset(beside(out, 'crops'))
    names = [crops.info[n]['photo'] for n in crops.names]
    write_dataset(out, labelled(photos, crops, size), names, crops.meta | dict(recipe=to_dict(spec), fit=to_dict(cfg.fit), opacity=judges.name))
    return report


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('spec'); p.add_argument('out')
    p.add_argument('--size', type=int, help='pixels of the crops; else those of the photographs')
    p.add_argument('--count', type=int, help='only the first N photographs')
    p.add_argument('--setting', default='tiny', help='how long is fitted: tiny, full (headnb.gan.fit)')
    p.add_argument('--workers', type=int, default=2, help='processes that render')
    p.add_argument('--part', default='0/1', metavar='K/N', help='one of N processes that fit; the last one to end writes the set')
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    try:
        k, _, n = a.part.partition('/')
        require(k.isdigit() and n.isdigit() and int(k) < int(n), f'--part is {a.part!r}; expected K/N, such as 0/16')
        s = make.load_spec(a.spec)
        r = fitted(s, Path(a.out), a.size or s.size, a.setting, a.count, a.workers, (int(k), int(n)))
        print(f'{a.out}: {r.get("accepted", 0)} of {r["photos"]} photographs, landmarks {512*(r.get("off") or 0):.1f} pixels of 512 from the fitted heads' if r.get('accepted') else f'{a.out}: other parts are missing')
    except BadInput as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__': sys.exit(main())
