"""Render, train and measure the small motion encoder: python data_recipes/motion/make.py FOLDER [--blocks 150] [--seconds 180] [--out headnb/assets/small_motion.safetensors]

FOLDER keeps the pictures (shards) and the checkpoint. Stopped or killed, the same command goes on; with more --blocks or --seconds a finished run is taken up again, too.
"""
import argparse, json
from pathlib import Path

import torch

from headnb.base.core import seed_all
from headnb.gan.metrics import hardware
from headnb.gan.motion_training import BlockCfg, MotionFitCfg, fit_motion, measure_motion, render_shards, settle
from headnb.nets.small_motion import SmallMotion, save_small_motion


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', type=Path)
    p.add_argument('--blocks', type=int, default=250, help='of 48 pictures: 4 people x 6 motions x 2 views')
    p.add_argument('--held', type=int, default=6, help='blocks of 4 people x 16 motions that are for measuring only')
    p.add_argument('--shard', type=int, default=10, help='blocks in a file')
    p.add_argument('--seconds', type=float, default=150, help='of the processor, for training behind the trunk: the learning rate reaches zero here')
    p.add_argument('--stop', type=float, default=float('inf'), help='leave the training after so many seconds of this call')
    p.add_argument('--save', type=float, default=30, help='seconds between two checkpoints')
    p.add_argument('--copies', type=int, default=2, help='jittered copies of every picture')
    p.add_argument('--out', type=Path, default=Path('headnb/assets/small_motion.safetensors'))
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    seed_all(0)
    test = BlockCfg(4, 16, 1, first=8_900_000)
    data, held = render_shards(a.folder, a.blocks, each=a.shard), render_shards(a.folder, a.held, test, a.shard)
    end = fit_motion(data, a.folder, MotionFitCfg(seconds=a.seconds, copies=a.copies, save_every=a.save), stop=a.stop, log=lambda line: print(line, flush=True))
    net, few = SmallMotion(), {k: v[:2400] for k, v in data.items()}
    net.load_state_dict({k[2:]: v for k, v in end['both'].items() if k.startswith('0.')})
    settle(net, few)
    measured = {f'{side} pixels': measure_motion(net, few, held, test, side) for side in (64, 32)}
    save_small_motion(net, a.out, dict(measured=measured, trained=dict(pictures=len(data['image']), people=len(data['who'].unique()), motions=len(data['motion'].unique()), seen=end['seen'], seconds=round(end['spent']), hardware=hardware()),
                                       about='A small motion encoder, trained on heads rendered by headnb.field.heads (data_recipes/motion); measured on people, motions and cameras that it has never seen.'))
    print(json.dumps({k: {m: x for m, x in v.items() if m != 'codes'} for k, v in measured.items()}, indent=1))
    return 0


if __name__ == '__main__': raise SystemExit(main())
