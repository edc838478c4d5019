"""Photos in: what a person expects of them, hostile files, the folder, the command line, and the stored measurements."""
import io, json, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import headnb
from headnb.accuracy import BINS, measure_row, summary
from headnb.align import MAX_PIXELS, align, align_folder, area, back, cut, find_faces, main, quarter, read_photo, settings
from headnb.base.camera import check_label, split_label
from headnb.base.core import BadInput
from headnb.gan.data import HeadDataset

ASTRONAUT = skimage.data.astronaut()
HAND = np.array([[206., 109], [245, 109], [227, 134], [207, 150], [244, 149]])   # eyes, nose, corners of the mouth


def has_dlib():
    try:
        import dlib, face_recognition_models   # noqa
        return True
    except ImportError: return False


dlib_only = pytest.mark.skipif(not has_dlib(), reason='the extra dlib is not installed')


def saved(im, kind='PNG', **kw):
    f = io.BytesIO()
    im.save(f, kind, **kw)
    return f.getvalue()


def same_camera(a, b, tol=2e-3): assert torch.allclose(a.c, b.c, atol=tol), (a.c, b.c)


@pytest.fixture(scope='module')
def plain(): return align(ASTRONAUT, 64, by=HAND, mask=None)


def test_the_package_is_callable():
    assert callable(headnb.align)
    import headnb.align as module
    assert callable(module) and module(ASTRONAUT, 64, by=HAND, mask=None).image.shape == (1, 3, 64, 64)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_exif_orientation(orientation):
    small = Image.fromarray(ASTRONAUT).resize((96, 64))
    undo = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}[orientation]
    e = Image.Exif(); e[0x0112] = orientation
    data = saved(small if undo is None else small.transpose(undo), exif=e)
    assert np.array_equal(read_photo(data).rgb, np.array(small))


def test_modes():
    im = Image.fromarray(ASTRONAUT).resize((64, 64))
    for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'I;16', 'F'):
        other = im.convert('L').convert(mode) if mode in ('I;16', 'LA') else im.convert(mode)
        p = read_photo(other)
        assert p.rgb.shape == (64, 64, 3) and p.rgb.dtype == np.uint8 and p.rgb.std() > 20, mode
    for x in (ASTRONAUT, ASTRONAUT[..., 0], ASTRONAUT[..., :1], torch.rand(1, 3, 64, 64)*2 - 1, torch.rand(3, 64, 64)): assert read_photo(x).rgb.shape[2] == 3
    for bad in (None, 3, ASTRONAUT.astype(float), torch.rand(2, 3, 64, 64), np.zeros((64, 64, 2), np.uint8)):
        with pytest.raises(BadInput, match='me: '): read_photo(bad, 'me')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF'])
def test_damaged_files(kind):
    "Cut and flipped files give pixels or one BadInput that names the file; nothing else, and quickly."
    good, rng, start = saved(Image.fromarray(ASTRONAUT).resize((80, 60)), kind), np.random.default_rng(0), time.time()
    cases = [good[:n] for n in np.linspace(0, len(good) - 1, 15).astype(int)]
    for _ in range(40):
        b = bytearray(good)
        for i in rng.integers(0, min(len(b), 400) if rng.random() < .5 else len(b), 3): b[i] ^= 1 << rng.integers(8)
        cases.append(bytes(b))
    refused = 0
    for data in cases:
        try: assert read_photo(data, 'x.img').rgb.ndim == 3
        except BadInput as e: refused += 1; assert str(e).startswith('x.img: ') and '\n' not in str(e)
    assert refused >= 10 and time.time() - start < 60


BOMB = '''
import resource, struct, sys, time, zlib
from headnb.align import read_photo
from headnb.base.core import BadInput
def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
png = lambda w, h: b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(10**7))) + chunk(b'IEND', b'')
text = b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 64, 64, 8, 2, 0, 0, 0)) + chunk(b'zTXt', b'a\\0\\0' + zlib.compress(bytes(10**8))) + chunk(b'IEND', b'')
gif = b'GIF89a' + struct.pack('<HH', 65535, 65535) + bytes(3) + b',' + struct.pack('<HHHH', 0, 0, 65535, 65535) + b'\\0\\x08' + bytes(50)
bmp = b'BM' + struct.pack('<IHHIIiiHHIIIIII', 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time()
for name, data in dict(png=png(60000, 60000), large=png(11000, 11000), thin=png(2**31 - 1, 64), text=text, gif=gif, bmp=bmp).items():
    try: read_photo(data, name); print(name, 'was opened')
    except BadInput as e: assert str(e).startswith(name + ': '), e
print('ok', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)//1024 < 400, time.time() - start < 60)
'''


def test_bombs():
    "Each is refused in bounded time and memory."
    r = subprocess.run([sys.executable, '-c', BOMB], capture_output=True, text=True, timeout=120)
    assert r.stdout.split() == ['ok', 'True', 'True'], r.stdout + r.stderr
    assert MAX_PIXELS*3 < 400e6


def test_points_follow_turns(plain):
    for k in (1, 2, 3):
        turned = align(np.ascontiguousarray(np.rot90(ASTRONAUT, k)), 64, by=quarter(HAND, k, 512, 512), mask=None)
        assert turned.report['turned'] == (360 - 90*k) % 360
        same_camera(turned, plain)
        assert (turned.image - plain.image).abs().mean() < .02


def test_scale_and_place_do_not_matter(plain):
    big = np.pad(np.array(Image.fromarray(ASTRONAUT).resize((768, 768), Image.Resampling.LANCZOS)), ((100, 0), (37, 60), (0, 0)))
    a = align(big, 64, by=HAND*1.5 + [37, 100], mask=None)
    same_camera(a, plain)
    assert (a.image - plain.image).abs().mean() < .03


def test_mirror(plain):
    "The mirrored photo has the mirrored label."
    from headnb.base.camera import mirror_label
    p = HAND.copy(); p[:, 0] = 512 - p[:, 0]
    m = align(np.ascontiguousarray(ASTRONAUT[:, ::-1]), 64, by=p[[1, 0, 2, 4, 3]], mask=None)
    assert (m.c - mirror_label(plain.c)).abs().max() < .03


def test_tilted_points_keep_their_roll():
    im = Image.fromarray(ASTRONAUT).rotate(20, expand=True)
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    p = (HAND - 256)@np.array([[c, -s], [s, c]]) + np.array(im.size)/2
    assert np.abs(back(p, 20, (512, 512), im.size) - HAND).max() < .1
    a, b = align(im, 64, by=p, mask=None), align(ASTRONAUT, 64, by=HAND, mask=None)
    assert a.report['turned'] == 0 and 15 < abs(a.report['roll'] - b.report['roll']) < 25


def test_crop_beyond_the_border():
    out = cut(ASTRONAUT, (0, 0, 400), 64)
    assert out.shape == (64, 64, 3) and np.abs(out[:30, :30].astype(int) - ASTRONAUT[0, 0]).max() < 40
    huge = cut(ASTRONAUT, (256, 256, 5000), 64)
    assert huge.shape == (64, 64, 3)


@pytest.mark.parametrize('points, why', [([[1, 1]]*5, 'pixels wide'), (HAND*9, 'outside the photo'), (HAND*np.nan, 'not finite'), (np.zeros((6, 2)), '5 (eyes'), ([[1, 2], [3]], 'not numbers'),
                                         (np.tile([[0., 0.], [1e9, 1e9]], (34, 1)), 'me.png'), (np.zeros((68, 2)), 'me.png'), ([], 'no face found'), (None, 'no face found')])
def test_wrong_points(points, why):
    with pytest.raises(BadInput) as e: align(ASTRONAUT, 64, by=(lambda rgb: None) if points is None else points, name='me.png')
    assert why in str(e.value) and 'me.png' in str(e.value)


def test_detectors_of_the_caller():
    both = lambda rgb: np.stack([HAND, HAND*.5 + 200])
    a = align(ASTRONAUT, 64, by=both, mask=None)
    assert len(a.faces) == 2 and a.chosen == 0 and align(ASTRONAUT, 64, by=both, mask=None, face=1).chosen == 1
    with pytest.raises(BadInput, match="detector 'dlob'; did you mean 'dlib'"): align(ASTRONAUT, by='dlob')


def test_matting_by_path(tmp_path):
    class M(torch.nn.Module):
        def forward(self, x): return (x.mean(1, keepdim=True) > 0).float()
    torch.jit.script(M()).save(str(tmp_path/'m.pt'))
    a = align(ASTRONAUT, 64, by=HAND, mask=str(tmp_path/'m.pt'))
    assert torch.equal(a.mask, (a.image.mean(1, keepdim=True) > 0).float()) and a.report['mask'].endswith('m.pt')
    (tmp_path/'bad.pt').write_bytes(b'no model')
    for bad, why in ((tmp_path/'bad.pt', 'not a TorchScript file'), (tmp_path/'none.pt', 'no matting model'), (lambda x: x*9, r'gave \[1, 3, 64, 64\]'), (lambda x: x[:, :1]*9, 'gave values from')):
        with pytest.raises(BadInput, match=why): align(ASTRONAUT, 64, by=HAND, mask=bad)


def test_label_is_a_camera_of_its_world():
    for world in ('eg3d', 'headnb'):
        c = check_label(align(ASTRONAUT, 64, world, by=HAND, mask=None).c)
        M, K = split_label(c)
        assert abs(float(M[0, :3, 3].norm()) - 2.7) < 1e-4 and torch.allclose(K[0, 0, 0], torch.tensor(4.2647))
    assert float((M[0, :3, 3] + 2.7*M[0, :3, 2]).norm()) < 1e-3, 'the camera of our world looks at the origin'


def test_save_and_command_line(tmp_path, capsys):
    Image.fromarray(ASTRONAUT).save(tmp_path/'a.png'); (tmp_path/'p.json').write_text(json.dumps(HAND.tolist()))
    assert main([str(tmp_path/'a.png'), str(tmp_path/'out'), '--by', str(tmp_path/'p.json'), '--size', '64']) == 0
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['crop.png', 'dataset.json', 'mask.png', 'overlay.png']
    table = json.loads((tmp_path/'out'/'dataset.json').read_text())
    check_label(table['labels'][0][1]); assert table['labels'][0][0] == 'crop.png' and table['info']['crop.png']['photo'] == 'a.png'
    assert len(HeadDataset(tmp_path/'out', on_error='skip', masks=None)) == 1
    for args, why in ((['nothing.png', 'o'], 'no photo at'), ([str(tmp_path/'a.png'), 'o', '--by', str(tmp_path/'q.json')], 'no file of points'), ([str(tmp_path/'a.png'), 'o', '--by', str(tmp_path/'a.png')], 'not JSON')):
        assert main(args) == 2 and why in capsys.readouterr().err
    r = subprocess.run([sys.executable, '-m', 'headnb.align', 'nothing.png', str(tmp_path/'o')], capture_output=True, text=True, cwd=Path(headnb.__file__).parent.parent)
    assert r.returncode == 2 and 'Traceback' not in r.stderr and 'no photo at' in r.stderr, r.stderr


@pytest.mark.parametrize('out', ['set', 'set.zip'])
def test_folder(tmp_path, out):
    src = tmp_path/'in'
    (src/'sub').mkdir(parents=True)
    for name in ('a.png', 'sub/b.jpg'): Image.fromarray(ASTRONAUT).save(src/name)
    (src/'c.jpg').write_bytes(b'\xff\xd8 no'); (src/'notes.txt').write_text('x')
    told = align_folder(src, tmp_path/out, overlays=tmp_path/'seen', size=64, by=HAND)
    assert (told['photos'], told['written'], list(told['skipped'])) == (3, 2, ['c.jpg']) and told['skipped']['c.jpg']
    ds = HeadDataset(tmp_path/out)
    assert len(ds) == 2 and ds[0]['image'].shape == (3, 64, 64) and ds[0]['mask'].shape == (1, 64, 64) and [i['photo'] for i in ds.info.values()] == ['a.png', 'b.jpg']
    assert sorted(p.relative_to(tmp_path/'seen').as_posix() for p in (tmp_path/'seen').rglob('*.png')) == ['a.png', 'sub/b.png']
    with pytest.raises(BadInput, match='not one of 1 photos'):
        (tmp_path/'bad').mkdir(); (tmp_path/'bad'/'x.png').write_bytes(b'x'); align_folder(tmp_path/'bad', tmp_path/'never.zip', by=HAND)
    assert not (tmp_path/'never.zip').exists()
    with pytest.raises(BadInput, match='no photos'): (tmp_path/'empty').mkdir(); align_folder(tmp_path/'empty', tmp_path/'e.zip')


def test_stored_measurements():
    m = settings()['measured']
    rows = m['rows']
    calibrated = range(*settings()['calibration']['seeds'])
    assert len({r['seed'] for r in rows}) == len(rows) and not {r['seed'] for r in rows} & set(calibrated)
    front = [r for r in rows if r['bin'][1] <= 45]
    assert len(front) >= 200 and {tuple(r['bin']) for r in rows} == set(BINS)
    s = summary(front, 'dlib')
    turn = [r['dlib'][0] if r['dlib'] else 90 for r in front]
    assert abs(s['mean'] - sum(turn)/len(turn)) < 1e-9 and s['found'] >= .9


def test_judge_finds_rendered_heads_only():
    r = next(r for r in settings()['measured']['rows'] if r['judge'] and r['bin'][0] == 0)
    new = measure_row(r['seed'], *r['bin'])
    assert new['judge'] is not None and new['judge'][0] < 25
    assert find_faces(read_photo(np.full((128, 128, 3), 200, np.uint8)), 'judge') == []


@dlib_only
def test_stored_rows_measured_again():
    rows = settings()['measured']['rows']
    for r in rows[2:200:66]:
        new = measure_row(r['seed'], *r['bin'])
        assert (new['dlib'] is None) == (r['dlib'] is None)
        if r['dlib']: assert abs(new['dlib'][0] - r['dlib'][0]) < .5


@dlib_only
def test_real_portrait():
    a = align(ASTRONAUT, 128)
    assert abs(a.report['yaw']) < 25 and abs(a.report['roll']) < 10 and a.report['inside'] > .95
    x, y, side = a.report['square']
    assert abs(x - 225) < 20 and abs(y - 120) < 30 and 110 < side < 190
    for k in (1, 2, 3):
        t = align(np.ascontiguousarray(np.rot90(ASTRONAUT, k)), 128, mask=None)
        assert t.report['turned'] == (360 - 90*k) % 360 and (t.c - a.c).abs().max() < .6


@dlib_only
def test_several_and_none():
    page = Image.new('RGB', (900, 512), 'gray')
    page.paste(Image.fromarray(ASTRONAUT).resize((300, 300)), (0, 100)); page.paste(Image.fromarray(ASTRONAUT), (388, 0))
    a = align(page, 64, mask=None)
    assert a.faces[a.chosen].box[0] > 388 and area(a.faces[a.chosen]) >= .99*max(area(f) for f in a.faces if f.score > .5)
    assert align(page, 64, mask=None, face=(125, 175)).report['square'][0] < 300
    for nothing in (skimage.data.coffee(), skimage.data.brick(), np.zeros((100, 100), np.uint8)):
        with pytest.raises(BadInput, match='me: no face found'): align(nothing, name='me')
