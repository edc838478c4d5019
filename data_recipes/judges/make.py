"""Render a judge set: python data_recipes/judges/make.py FOLDER [--people 1000] [--first 0] [--shard 25]

Shards of `shard` people each, one file per shard; a shard that exists is kept, so the command can be repeated, stopped and run several times side by side
(`--part 1/4` makes every fourth). People 10,000,000 and above are for measuring only.
"""
import argparse, time
from pathlib import Path

import torch
from safetensors.torch import save

from headnb.base.core import write_atomic
from headnb.gan.judges import render_people


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', type=Path)
    p.add_argument('--people', type=int, default=1000)
    p.add_argument('--first', type=int, default=0, help='number of the first person')
    p.add_argument('--shard', type=int, default=25, help='people in a shard')
    p.add_argument('--variants', type=int, default=4, help='days of each person: other hair, expression, light')
    p.add_argument('--views', type=int, default=3, help='pictures of each day')
    p.add_argument('--samples', type=int, default=2, help='renderer samples per side of a pixel')
    p.add_argument('--part', default='0/1', help='k/n: every n-th shard, beginning with the k-th')
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    k, n = map(int, a.part.split('/'))
    for lo in range(a.first, a.first+a.people, a.shard)[k::n]:
        path, start = a.folder/f'{lo:09d}.safetensors', time.time()
        if path.exists(): continue
        rows = render_people(range(lo, min(lo+a.shard, a.first+a.people)), a.variants, a.views, a.samples)
        write_atomic(path, save(rows))
        print(f'{path.name} {len(rows["image"])} images {len(rows["image"])/(time.time()-start):.1f}/s', flush=True)


if __name__ == '__main__': main()
