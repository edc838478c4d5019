"""Provenance in files: what goes in comes out, and what strangers send is answered by facts, None or one clear line."""
import io, json, struct, zlib

import imageio.v2 as imageio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from headnb.base.core import BadInput
from headnb.base.provenance import LIMIT, facts, mark, read_provenance, write_png
from headnb.base.show import save_video

FACE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
KINDS = 'png', 'jpg', 'gif', 'mp4'
calm = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fresh(path):
    if path.suffix in ('.png', '.jpg'): Image.fromarray(FACE).save(path)
    else: save_video(np.stack([FACE, 255 - FACE]), path, 2)
    return path


@pytest.fixture(scope='module')
def marked(tmp_path_factory):
    folder = tmp_path_factory.mktemp('marked')
    return {k: mark(fresh(folder/f'a.{k}'), facts('model', 'ab'*32, date='2026-11-22', seed=3)).read_bytes() for k in KINDS}


@calm
@given(texts=st.dictionaries(st.from_regex(r'[a-z]{1,8}', fullmatch=True), st.one_of(st.text(max_size=60), st.integers(-2**40, 2**40), st.booleans()), max_size=5), kind=st.sampled_from(('png', 'jpg', 'gif')))
def test_any_facts_come_back(tmp_path, texts, kind):
    meta = facts('model', date='today') | texts
    meta['made_by'], meta['digital_source_type'] = 'headnb 0', 'algorithmicMedia'
    assert read_provenance(mark(fresh(tmp_path/f'a.{kind}'), meta)) == meta


@pytest.mark.parametrize('note', ['a=b;c#d\\e', 'line\nline\r\n', '"quoted" \u00e4\u4e2d\U0001f600 \0 \x1b', "-y ; 'rm'", 'x'*(LIMIT - 400)])
def test_odd_texts_in_a_film(tmp_path, note):
    meta = facts('model', date='today', note=note)
    assert read_provenance(mark(fresh(tmp_path/'a.mp4'), meta)) == meta


def answer(path):
    try: return read_provenance(path)
    except BadInput as e: return str(e)


@settings(parent=calm, max_examples=150)
@given(data=st.data(), kind=st.sampled_from(('png', 'jpg', 'gif')))
def test_damaged_pictures(tmp_path, marked, data, kind):
    "Cut anywhere, or a byte changed: facts, None or BadInput; nothing else is raised."
    whole = bytearray(marked[kind])
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()): whole = whole[:at]
    else: whole[at] ^= data.draw(st.integers(1, 255))
    (tmp_path/f'b.{kind}').write_bytes(whole)
    said = answer(tmp_path/f'b.{kind}')
    assert said is None or isinstance(said, str) or said['made_by'].startswith('headnb')


def test_damaged_films(tmp_path, marked):
    n = len(marked['mp4'])
    for cut in (1, 7, 40, 200, n//2, n - 20):
        (tmp_path/'b.mp4').write_bytes(marked['mp4'][:n - cut])
        assert 'cut off' in answer(tmp_path/'b.mp4')
    rng = np.random.default_rng(1)
    for at in rng.integers(0, n, 12):
        x = bytearray(marked['mp4']); x[at] ^= 0x55
        (tmp_path/'b.mp4').write_bytes(x)
        said = answer(tmp_path/'b.mp4')
        assert said is None or isinstance(said, str) or said['made_by'].startswith('headnb')


def test_strangers(tmp_path):
    f = tmp_path/'bomb.png'                                                                   # 40,000 x 40,000 pixels are announced: nothing is unpacked
    head = struct.pack('>IIBBBBB', 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = lambda k, b: struct.pack('>I', len(b)) + k + b + struct.pack('>I', zlib.crc32(k + b))
    f.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0'*1000)) + chunk(b'IEND', b''))
    assert 'damaged (DecompressionBombError' in answer(f)
    for said in ('[1, 2]', '{"made_by": "headnb", "x": NaN, "y": [[', '{"made_by": "headnb", "n": ' + '9'*5000 + '}', '{"made_by": "headnb 1", "a": null}', '{"made_by": "headnb ' + 'x'*LIMIT + '"}'):
        b = io.BytesIO(); Image.fromarray(FACE).save(b, 'JPEG', comment=said.encode()); (tmp_path/'x.jpg').write_bytes(b.getvalue())
        got = answer(tmp_path/'x.jpg')
        assert got is None if not said.startswith('{"made_by"') else isinstance(got, str), said[:40]
    (tmp_path/'x.mp4').write_bytes(b'\0\0\0\0ftypmp42' + b'concat:/etc/hostname|')
    assert isinstance(answer(tmp_path/'x.mp4'), str)


def test_pixels_and_archives(tmp_path):
    f = write_png(tmp_path/'a.png', FACE, facts('m', date='d'))
    assert (np.asarray(Image.open(f)) == FACE).all() and json.loads(Image.open(f).info['Provenance'])['synthetic'] is True
    import xml.etree.ElementTree as ET
    for name in ('a.png', 'b.jpg'):
        if name == 'b.jpg': mark(fresh(tmp_path/name), facts('m', date='d'))
        xmp = Image.open(tmp_path/name).info['xmp']
        tree = ET.fromstring((xmp if isinstance(xmp, bytes) else xmp.encode()).decode('utf-8-sig').strip('\0'))
        d = tree.find('.//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description')
        assert d.attrib['{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType'].endswith('/trainedAlgorithmicMedia')
    rgba = np.dstack([FACE, FACE[..., :1]])
    assert Image.open(write_png(tmp_path/'c.png', rgba, facts('m', date='d'))).mode == 'RGBA'
    assert imageio.mimread(mark(fresh(tmp_path/'d.gif'), facts('m', date='d')))[1].shape[:2] == (16, 16)
