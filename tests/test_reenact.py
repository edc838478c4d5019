"""The command headnb-reenact: killed with SIGKILL after a part of a film, and called again."""
import json, os, subprocess, sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch

from headnb.base.provenance import read_provenance
from headnb.base.show import to_uint8
from headnb.gan.checkpoint import save
from headnb.gan.data import write_dataset
from headnb.gan.scenes import MadeClips
from headnb.papers.portrait4d import Reconstructor, config

ROOT = Path(__file__).resolve().parent.parent


def stage(folder):
    "A model, a photograph with its label, and a film of somebody else, not aligned: the face is searched once and followed."
    torch.manual_seed(0)
    G = Reconstructor(config('tiny').G)
    torch.nn.init.normal_(G.decoder.out_sigma.weight, std=4.); torch.nn.init.normal_(G.planes.conv_last.weight, std=3.); torch.nn.init.constant_(G.decoder.out_sigma.bias, 5.)
    save(folder/'model.safetensors', {'G_ema': G}, config('tiny'))
    clips = MadeClips(people=2, clips=1, frames=6, size=128, samples=1)
    anna, otto = clips.frames(0), clips.frames(1)
    write_dataset(folder/'anna', [dict(image=to_uint8(anna.image)[0], c=anna.c[0].tolist(), drive=anna.drive[0].tolist())], meta={})
    imageio.mimsave(folder/'otto.mp4', [np.roll(x, 4*i, 1) for i, x in enumerate(to_uint8(otto.image))], fps=10, macro_block_size=2)
    return sorted((folder/'anna').rglob('*.png'))[0]


def command(folder, photo, out, kill=''):
    call = [sys.executable, '-m', 'headnb.reenact', photo, folder/'otto.mp4', '--model', folder/'model.safetensors', '--out', folder/out, '--find', 'judge', '--read', 'judge', '--part', '2', '--device', 'cpu']
    return subprocess.run([*map(str, call)], cwd=ROOT, env=os.environ | dict(HEADNB_KILL_AT=kill, HEADNB_QUIET='1'), capture_output=True, text=True)


def test_killed_and_called_again(tmp_path):
    photo = stage(tmp_path)
    dead = command(tmp_path, photo, 'film.mp4', 'part:1')
    assert dead.returncode == -9, dead.stderr
    parts = tmp_path/'film.mp4_parts'
    kept = {p.name: p.read_bytes() for p in parts.glob('part_*')}
    assert sorted(kept) == ['part_00000.npz', 'part_00001.npz'] and not (tmp_path/'film.mp4').exists()
    (parts/'.part_00002.npz.x.tmp').write_bytes(b'half')                    # what a kill in the middle of a write leaves
    date = json.loads((parts/'job.json').read_text())['date']
    alive, whole = command(tmp_path, photo, 'film.mp4'), command(tmp_path, photo, 'whole.mp4')
    assert alive.returncode == whole.returncode == 0, alive.stderr + whole.stderr
    films = [np.stack([f for f in imageio.get_reader(tmp_path/k)]) for k in ('film.mp4', 'whole.mp4')]
    assert len(films[0]) == 6 and np.array_equal(*films) and np.abs(np.diff(films[0].astype(float), axis=0)).mean() > .5
    said = [read_provenance(tmp_path/k) for k in ('film.mp4', 'whole.mp4')]
    assert said[0]['date'] == date and {k: v for k, v in said[0].items() if k != 'date'} == {k: v for k, v in said[1].items() if k != 'date'}
    assert not parts.exists()
