#!/usr/bin/env python
"""Make a set of 4D heads with a trained GenHead:  python data_recipes/genhead_4d/make.py SPEC.yaml OUT [--workers 4] [--part 0/16] [--device cuda] [--plan] [--zip OUT.zip] [-p dynamic=100]

OUT becomes a folder of shards (tar, WebDataset), `index.json` and `labels.npy`. First one shard of each kind is made and timed, and the plan for the whole set is printed and drawn (OUT/plan.png); --plan ends there. A run that was stopped or killed goes on with the same command;
any number of workers, and any cutting of the work into --part jobs, gives the same bytes. `headnb.gan.synthesis` (notebook 31c) has everything but the command line, `headnb.gan.triples` (31d) reads what was made.
"""
import argparse, json, sys
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch, yaml
from headnb.base.core import BadInput, from_dict, repo_path, require, suggest, to_dict, write_atomic
from headnb.gan.checkpoint import fingerprint, save
from headnb.gan.renders import TrueHeads
from headnb.gan.synthesis import RANGES, Cost, FourDCfg, Ranges, Work, make_set, measure, open_codes, plan, plan_picture, plan_text
from headnb.gan.triples import Heads4D, to_dataset
from headnb.view import open_any


@dataclass(frozen=True)
class Spec:
    "A set of 4D heads."
    checkpoint: str = ''                  # shipped name, .safetensors file, folder of a run, or a released .pkl; '': an untrained GenHead (tests, bills); 'renders': the parametric head itself (31e)
    side: int = 64                        # pixels of a picture, of 'renders' alone
    untrained: str = 'tiny'               # its configuration, driven by the head that is shipped
    layout: str = 'head'                  # of the codes: 'head' (the one that ships) or 'flame'
    still: str | list | None = None       # pictures with codes: a data set, or [..._shape_n_c_params.npy, ..._motion_params.npy]; None: made-up people
    clips: str | list | None = None       # videos with codes, in the same way; None: made-up clips
    ranges: str = 'paper'                 # of headnb.gan.synthesis.RANGES
    change: dict = field(default_factory=dict)   # single ranges that differ from them
    dynamic: int = 10_000                 # from here on: FourDCfg
    motions: int = 10
    views: int = 5
    static: int = 80_000
    static_views: int = 2
    points: int = 4000
    raw_size: int | None = None
    psi: float = 1.
    cutoff: int | None = None
    seed: int = 0
    shard: int = 200

    @property
    def cfg(self):
        require(self.ranges in RANGES, f'ranges is {self.ranges!r}{suggest(self.ranges, RANGES)}')
        r = from_dict(Ranges, to_dict(RANGES[self.ranges]) | self.change, 'change')
        return FourDCfg(ranges=r, **{f.name: getattr(self, f.name) for f in fields(FourDCfg) if f.name != 'ranges'})


def read_spec(path, changes=()): # YAML, 'name=value' -> Spec
    "Read a specification, strictly."
    try: data = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as e: raise BadInput(f'{path}: {" ".join(str(e).split())}') from None
    for c in changes:
        require('=' in c, f'{c!r} is not name=value')
        k, _, v = c.partition('=')
        data[k] = yaml.safe_load(v)
    s = from_dict(Spec, data, str(path))
    s.cfg
    return s


def untrained(out, name='tiny'): # folder, configuration -> path of a GenHead that was never trained, on the shipped head
    "For tests and bills: the same weights every time."
    from headnb.papers.genhead import GenHead, config
    path, c = Path(out)/'untrained.safetensors', config(name)
    if not path.exists():
        box, g = config('tiny').G.sampler.box_warp, c.G
        ours = dict(rig='head', frame='opencv', mapping=replace(g.mapping, c_dim=105), sampler=replace(g.sampler, box_warp=box), render=replace(g.render, box_warp=box), deform=replace(g.deform, box=box))
        c = replace(c, G=replace(g, **ours))
        with torch.random.fork_rng(): torch.manual_seed(0); G = GenHead(c.G)
        save(path, {'G_ema': G}, c)
    return path


def found(name): return str(p) if (p := repo_path(name)).exists() else name      # a path of the checkout, or a name


def work_of(s, out, device='cpu'): # Spec -> Work
    "What the workers need; a wrong generator or sample set is refused here."
    if s.checkpoint == 'renders': maker = partial(TrueHeads, s.side, s.raw_size or s.side//2)
    else: maker = partial(open_any, found(s.checkpoint) if s.checkpoint else str(untrained(out, s.untrained)))
    at = lambda x: None if x is None else [found(y) for y in x] if isinstance(x, list) else found(x)
    w = Work(maker, partial(open_codes, at(s.still), at(s.clips), s.layout), s.cfg, Path(out), '', device)
    G, _ = w.open()
    return replace(w, weights=fingerprint(G.state_dict())[:12])


def picture(path, rgb):
    from PIL import Image
    write_atomic(path, lambda tmp: Image.fromarray(rgb).save(tmp, 'png'))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('spec'); p.add_argument('out')
    p.add_argument('-p', '--parameter', action='append', default=[], metavar='NAME=VALUE', help='change one entry of the specification')
    p.add_argument('--workers', type=int, default=1, help='processes, of one thread each')
    p.add_argument('--part', default='0/1', metavar='K/N', help='one job of an array: shards K, K+N, ...')
    p.add_argument('--device', default='cpu', help="'cpu', or 'cuda': GPUs in turn")
    p.add_argument('--plan', action='store_true', help='measure, say what it will cost, and stop')
    p.add_argument('--also', nargs='*', default=(), metavar='measured.json', help='bills of other devices, for the plan')
    p.add_argument('--no-measure', action='store_true', help='begin without a plan (jobs of an array)')
    p.add_argument('--zip', metavar='OUT.zip', help="a finished set's pictures also in the field's format")
    a = p.parse_args(argv)
    try:
        k, _, n = a.part.partition('/')
        require(k.isdigit() and n.isdigit(), f'--part is {a.part!r}; expected K/N, such as 0/16')
        w = work_of(read_spec(a.spec, a.parameter), a.out, a.device)
        if not a.no_measure:
            costs = measure(w) + [Cost(**v) for f in a.also for v in json.loads(Path(f).read_text()).values()]
            print(plan_text(plan(w.cfg, costs), a.workers), flush=True)
            picture(Path(a.out)/'plan.png', plan_picture(w.cfg, costs))
            if a.plan: return 0
        made = make_set(w, a.workers, (int(k), int(n)))
        done = (Path(a.out)/'index.json').exists()
        print(f'{a.out}: {len(made)} shards made; ' + (f'finished, {w.cfg.images:,} pictures' if done else 'other parts are missing'))
        if a.zip: print(to_dataset(Heads4D(a.out), a.zip))
    except BadInput as e: print(e, file=sys.stderr); return 2
    except (RuntimeError, OSError) as e: print(e, file=sys.stderr); return 1
    return 0


if __name__ == '__main__': sys.exit(main())
