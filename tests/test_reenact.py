"""The command headnb-reenact: killed with SIGKILL after a part of a film, and called again; what it refuses and what it leaves out; motion encoders by path."""
import json, os, re, subprocess, sys
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np, pytest
import torch
from PIL import Image

from headnb.base.core import BadInput
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


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('reenact')
    photo = stage(folder)
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(folder/'wall.png')
    return folder, photo


def call(place, driver, *more, photo=None): # -> exit code of the command, in this process
    from headnb.reenact import main
    return main([*map(str, (photo or place[1], driver, '--model', place[0]/'model.safetensors', '--out', place[0]/'out.mp4', '--find', 'judge', '--read', 'judge', '--device', 'cpu', *more))])


def ffmpeg(*a):
    from imageio_ffmpeg import get_ffmpeg_exe
    subprocess.run([get_ffmpeg_exe(), '-v', 'error', '-y', *map(str, a)], check=True)


def test_no_face(place, capsys):
    folder, photo = place
    assert call(place, folder/'wall.png') == 2 and 'not one of 1 could be used' in (said := capsys.readouterr().err) and 'no face found' in said
    assert call(place, folder/'otto.mp4', photo=folder/'wall.png') == 2 and 'wall.png: no face found' in capsys.readouterr().err
    frames = [f for f in imageio.get_reader(folder/'otto.mp4')]
    imageio.mimsave(folder/'gap.mp4', frames[:2] + [np.full_like(frames[0], 90)] + frames[3:], fps=10, macro_block_size=2)
    assert call(place, folder/'gap.mp4') == 0 and 'frame 2: no face found' in (said := capsys.readouterr().out) and 'the frame before is shown' in said
    assert len([f for f in imageio.get_reader(folder/'out.mp4')]) == 6                          # a film keeps its time


def test_several_faces(place):
    from headnb.reenact import reenact
    folder, photo = place
    frame = next(iter(imageio.get_reader(folder/'otto.mp4')))
    face = np.array([[48., 56], [80, 56], [64, 72], [52, 88], [76, 88]])                        # eyes, nose, corners of the mouth
    turn = np.array([[.94, .34], [-.34, .94]])
    two = lambda rgb: np.stack([(face - 64)@turn*.5 + 64, face])                                # the smaller one leans
    made = reenact(photo, [frame], folder/'model.safetensors', device='cpu', find=two, read='judge')
    assert made.frames == 1 and any('2 faces; took number 1, the largest (face= takes another)' in n for n in made.notes)
    other = reenact(photo, [frame], folder/'model.safetensors', device='cpu', find=two, read='judge', face=0)
    assert any('took number 0, as asked' in n for n in other.notes) and not np.array_equal(made.pictures, other.pictures)
    with pytest.raises(BadInput, match='not one of 1 could be used.*there is no face 5'): reenact(photo, [frame], folder/'model.safetensors', device='cpu', find=two, read='judge', face=5)


def test_films_that_are_not_whole(place, capsys):
    folder, photo = place
    for k, size in (('a', '64x64'), ('b', '96x48')): ffmpeg('-i', folder/'otto.mp4', '-s', size, '-f', 'mpegts', folder/f'{k}.ts')
    (folder/'ab.ts').write_bytes((folder/'a.ts').read_bytes() + (folder/'b.ts').read_bytes())
    assert call(place, folder/'ab.ts') == 2 and re.search(r'6 of 1[12] frames .the first is number [56]. have 96x48 pixels, the others 64x64: cut the film there', capsys.readouterr().err)   # the joint may cost a frame
    noise = [f for f in imageio.get_reader(folder/'otto.mp4')]*6
    imageio.mimsave(folder/'long.mp4', noise, fps=10, macro_block_size=2); ffmpeg('-i', folder/'long.mp4', '-c', 'copy', '-movflags', '+faststart', folder/'quick.mp4')
    data = (folder/'quick.mp4').read_bytes()
    (folder/'cut.mp4').write_bytes(data[:int(.6*len(data))]); (folder/'headless.mp4').write_bytes((folder/'long.mp4').read_bytes()[:3000])
    assert call(place, folder/'cut.mp4') == 0 and 'cut off' in (said := capsys.readouterr().out) and 'of 36 frames are there' in said      # what is there is used, and it is said
    assert call(place, folder/'headless.mp4') == 2 and 'no film that can be read (cut off, damaged, or no film at all)' in capsys.readouterr().err


def test_frame_rates(place, capsys):
    folder, photo = place
    assert call(place, folder/'otto.mp4', '--rate', '1e6') == 2 and 'a film has 1 to 240 frames a second' in capsys.readouterr().err
    ffmpeg('-i', folder/'otto.mp4', '-c', 'copy', '-f', 'h264', folder/'bare.avi')                # frames without any time
    assert call(place, folder/'bare.avi') == 2 and 'does not say how fast it runs. Say it: rate=25' in capsys.readouterr().err
    assert call(place, folder/'bare.avi', '--rate', '12') == 0 and imageio.get_reader(folder/'out.mp4').get_meta_data()['fps'] == 12


def test_motion_of_another_encoder(place):
    from headnb.reenact import reenact
    from headnb.stream import Motions
    kw = dict(source=place[1], model=place[0]/'model.safetensors', device='cpu')
    for driver, why in ((torch.zeros(2, 548), 'belong to another encoder or rig'), (Motions(torch.zeros(2, 61), 'small64'), "those of 'small64', this model was trained with 'codes61'"), (torch.full((2, 61), float('nan')), 'not finite')):
        with pytest.raises(BadInput, match=why): reenact(driver=driver, **kw)
    with pytest.raises(BadInput, match='belong to another encoder or rig'): reenact(driver=torch.zeros(2, 61), codes=torch.zeros(1, 548), **kw)


def test_encoders_by_path(tmp_path, monkeypatch):
    from headnb.nets import motion
    from headnb.gan.scenes import act, shoot
    from headnb.nets.motion import MotionNet
    from headnb.nets.small_motion import SmallMotion, save_small_motion
    from headnb.papers.portrait4d import open_encoder, open_reenactor
    from headnb.reenact import heard_by
    g, model = config('tiny').G, tmp_path/'model.safetensors'
    of = lambda name, dim: Reconstructor(replace(g, motion=name, phi=replace(g.phi, motion=dim))).eval()
    G = of('pdfgc', 548)
    torch.nn.init.normal_(G.decoder.out_sigma.weight, std=4.)
    save(model, {'G_ema': G}, replace(config('tiny'), G=G.cfg))
    with pytest.raises(BadInput, match='motion_file must name its weights'): open_reenactor(model)
    torch.manual_seed(0); torch.save(MotionNet().state_dict(), tmp_path/'motion_model.pth')
    plays, clips = open_reenactor(model, motion_file=tmp_path/'motion_model.pth'), MadeClips(2, 1, 3, 32)
    shot = shoot(clips, 0, 1)
    assert act(plays, shot.source, shot.driver)['image'].shape == (2, 3, 32, 32)
    elsewhere = replace(shot.driver, c=shot.driver.c.flip(0))                                    # the same pictures, landmarks of another view
    seen, crop = [], motion.aligned_crop
    monkeypatch.setattr(motion, 'aligned_crop', lambda images, points, *more: seen.append(points) or crop(images, points, *more))
    plays.felt(shot.driver); plays.felt(elsewhere)
    assert seen[0].shape == (2, 70, 2) and not torch.allclose(*seen, atol=.1)
    torch.manual_seed(1); save_small_motion(own := SmallMotion(), tmp_path/'own.safetensors', {})
    x, small = shot.driver.image, of('small64', 64)
    assert torch.allclose(open_encoder(small, tmp_path/'own.safetensors')(x), own.eval()(x), atol=.02) and not torch.allclose(open_encoder(small)(x), own(x), atol=.02)
    heard = {heard_by(open_encoder(small)), heard_by(open_encoder(small, tmp_path/'own.safetensors')), heard_by(plays.motion)}
    assert len(heard) == 3 and all(re.fullmatch(r'(small64|pdfgc) [0-9a-f]{16}', h) for h in heard) and heard_by(open_encoder(of('codes61', 61))) == 'codes61'   # a killed job does not go on with other weights
