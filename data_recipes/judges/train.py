"""Train the judges and write the shipped weights: python data_recipes/judges/train.py TRAIN HELD RUN [--seconds 1500] [--out headnb/assets/judges.safetensors]

TRAIN and HELD are folders made by make.py (HELD: people that TRAIN does not hold), RUN keeps the checkpoint. Stopped or killed, the same command goes on; more shards in TRAIN are taken up at the next start.
"""
import argparse, json
from pathlib import Path

import torch

from headnb.base.core import require, seed_all
from headnb.gan.judges import FitCfg, JudgeCfg, JudgeNet, fit, measure, read_judge_set, save_judge, settle_parts, standardise_features, warm_start
from headnb.gan.metrics import hardware


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('train', type=Path)
    p.add_argument('held', type=Path)
    p.add_argument('run', type=Path)
    p.add_argument('--seconds', type=float, default=1500, help='the learning rate reaches zero here')
    p.add_argument('--stop', type=float, default=float('inf'), help='leave after so many seconds of this call')
    p.add_argument('--lr', type=float, default=2e-3)
    p.add_argument('--batch', type=int, default=32, help='of each worker')
    p.add_argument('--workers', type=int, default=2, help='threads, one half of a step each')
    p.add_argument('--warm', type=Path, help='start from what fits of these weights (the shipped ones, say) where RUN holds no checkpoint')
    p.add_argument('--note', help='what else the JSON shall say about the training')
    p.add_argument('--out', type=Path, default=Path('headnb/assets/judges.safetensors'))
    a = p.parse_args()
    torch.set_num_threads(1)                             # each worker is one thread
    seed_all(0)
    data, held, net = read_judge_set(a.train), read_judge_set(a.held), JudgeNet(JudgeCfg())
    both = set(data['identity'].tolist()) & set(held['identity'].tolist())
    require(not both, f'{len(both)} people are in both {a.train} and {a.held}')
    if a.warm: print(f'{warm_start(net, a.warm):.0%} of the parameters from {a.warm}', flush=True)
    end = fit(net, data, a.run, FitCfg(seconds=a.seconds, lr=a.lr, batch=a.batch, workers=a.workers), a.stop, log=lambda line: print(line, flush=True))
    net.load_state_dict(end['net'])
    net.eval()
    pick = torch.randperm(len(data['image']), generator=torch.Generator().manual_seed(0))[:2000]
    standardise_features(net, data['image'][pick])
    settle_parts(net, data)
    accuracy = {k: round(v, 4) for k, v in measure(net, held).items()}
    save_judge(net, a.out, dict(accuracy=accuracy, trained=dict(images=len(data['image']), people=len(end['people']), seen=end['seen'], seconds=round(end['spent']), hardware=hardware(), **(dict(note=a.note) if a.note else {})),
                                about='One small network with many heads, trained on heads rendered by headnb.field.heads (data_recipes/judges); measured on people it has never seen.'))
    print(json.dumps(accuracy, indent=1))


if __name__ == '__main__': main()
