"""Official-like files open, hostile ones are refused: one line, bounded time and memory, nothing executed. `-s` prints the measured bounds."""
import gzip, io, json, lzma, math, os, re, stat, struct, subprocess, sys, time, warnings, zipfile, zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import official_writer as w
import headnb
from headnb.base.core import BadInput
from headnb.gan import checkpoint
from headnb.gan.checkpoint import official_to_ours, released_discriminator_cfg, released_generator_cfg
from headnb.golden import Case
from headnb.open import byte_map, inspect, main, open_official

HERE = Path(__file__).parent
SECONDS, MEGABYTES = 10., 400.      # bounds of one hostile file: processor time, memory above three times its size


# ---------------------------------------------------------------- good files

def case(name): return Case(HERE/'golden'/('panohead' if name.startswith('panohead') else 'eg3d')/name)
def table(name): return {k: v.numpy() for k, v in case(name).state().items()}
def kwargs(name, **options):
    k = json.loads(json.dumps(case(name).config['constructor']))
    k['rendering_kwargs'].update(options)
    return k


def G(name='eg3d_tiny', raw=32, constructor=None, change=lambda t: t, **kw): return w.generator(change(table(name)), constructor or kwargs(name), raw, **kw)
def D(name='eg3d_D_tiny', **kw): return w.discriminator(table(name), case(name).config['constructor_D'], **kw)
def without(t, *keys): return {k: v for k, v in t.items() if k not in keys}


def first_D():
    "PanoHead's first discriminator (a branch of its own for the mask), its golden case grown from 64 to 128 pixels: (constructor, table)."
    t, grown = table('panohead_D_v1_tiny'), {}
    for k, v in t.items():
        if k.startswith('b64.'): grown[k.replace('b64', 'b128')] = v if 'filter' in k else v[:8, :8] if 'conv0.w' in k else v[:8] if 'fromrgb' in k or 'conv0' in k else v[:, :8] if v.ndim > 1 else v
    return case('panohead_D_v1_tiny').config['constructor_D'] | {'img_resolution': 128}, grown | {k: v for k, v in t.items() if 'b64.fromrgb' not in k}


NEXT3D = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]]
pano = dict(raw=32, axes=[[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]], persist=True)
GOOD = {  # name -> (bytes, golden case of G, what the config must be: raw size, options, axes; constructor and table of D, where it is no golden case)
    'protocol 4, all three networks': lambda: (w.dump(w.checkpoint(G(), D(), G())), 'eg3d_tiny', {}),
    'protocol 2: __builtin__.set, _codecs.encode': lambda: (w.dump(w.checkpoint(G_ema=G()), 2), 'eg3d_tiny', {}),
    'protocol 3: GLOBAL, builtins.set': lambda: (w.dump(w.checkpoint(G(), D(), G()), 3), 'eg3d_tiny', {}),
    'protocol 5': lambda: (w.dump(w.checkpoint(G_ema=G()), 5), 'eg3d_tiny', {}),
    'protocol 4 without frames': lambda: (w.dump(w.checkpoint(G_ema=G()), 4, frames=False), 'eg3d_tiny', {}),
    'numpy._core': lambda: (w.dump(w.checkpoint(G(), D(), G()), numpy='numpy._core'), 'eg3d_tiny', {}),
    'no training_set_kwargs': lambda: (w.dump(w.checkpoint(G(), D(), G(), training_set=False)), 'eg3d_tiny', {}),
    'G_ema alone': lambda: (w.dump({'G_ema': G()}), 'eg3d_tiny', {}),
    'G alone': lambda: (w.dump({'G': G()}), 'eg3d_tiny', {}),
    'an augment_pipe, an unknown entry': lambda: (w.dump(w.checkpoint(G_ema=G(), augment_pipe=w.persistent('AugmentPipe', w.module_state(buffers={'p': np.zeros(())}), 'augment'), cur_nimg=25000000)), 'eg3d_tiny', {}),
    'plane axes of Next3D': lambda: (w.dump(w.checkpoint(G_ema=G(axes=NEXT3D))), 'eg3d_tiny', dict(axes=('x y z', 'x z y', 'z y x'))),
    'neural rendering at 64': lambda: (w.dump(w.checkpoint(G_ema=G(raw=64))), 'eg3d_tiny', dict(raw_size=64)),
    'no neural_rendering_resolution': lambda: (w.dump(w.checkpoint(G_ema=G(raw=None))), 'eg3d_tiny', dict(raw_size=64)),
    'options changed after construction': lambda: (w.dump(w.checkpoint(G_ema=G(rendering=kwargs('eg3d_tiny', ray_end=2.9, depth_resolution=24)['rendering_kwargs']))), 'eg3d_tiny', dict(options=kwargs('eg3d_tiny', ray_end=2.9, depth_resolution=24)['rendering_kwargs'])),
    'options that a file may lack': lambda: (w.dump(w.checkpoint(G_ema=G(rendering=without(kwargs('eg3d_tiny')['rendering_kwargs'], 'gpc_reg_prob', 'sr_antialias', 'image_resolution', 'reg_type')))), 'eg3d_tiny', {}),
    'a fork: its package before every name': lambda: (w.dump(w.checkpoint(G(prefix='fork.'), D(prefix='fork.'), G(prefix='fork.'))), 'eg3d_tiny', {}),
    'arguments without names': lambda: (w.dump(w.checkpoint(G_ema=G(positional=('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels')))), 'eg3d_tiny', {}),
    'no label statistics': lambda: (w.dump(w.checkpoint(G_ema=G(change=lambda t: without(t, 'dataset_label_std')))), 'eg3d_tiny', {}),
    'ShapeNet options, 2X': lambda: (w.dump(w.checkpoint(G_ema=G('eg3d_tiny_shapenet', 64))), 'eg3d_tiny_shapenet', dict(raw_size=64)),
    '4X': lambda: (w.dump(w.checkpoint(G_ema=G('eg3d_sr4x_clamp', 64))), 'eg3d_sr4x_clamp', dict(raw_size=64)),
    'PanoHead': lambda: (w.dump(w.checkpoint(G('panohead_tiny', **pano), D('panohead_D_tiny'), G('panohead_tiny', **pano))), 'panohead_tiny', {}),
    'PanoHead with its first discriminator': lambda: (w.dump(w.checkpoint(G('panohead_tiny', **pano), w.discriminator(*first_D()[::-1]), G('panohead_tiny', **pano))), 'panohead_tiny', {}, first_D()),
    'PanoHead, sigmoid, G_ema alone': lambda: (w.dump({'G_ema': G('panohead_tiny_sigmoid', **pano)}), 'panohead_tiny_sigmoid', {}),
}


def write(tmp_path, data, name='model.pkl'):
    (tmp_path/name).write_bytes(data)
    return tmp_path/name


def generator_cfg(name, raw_size=32, options=None, axes=None):
    "The config as the golden replay builds it."
    read = released_generator_cfg
    if name.startswith('panohead'): from headnb.papers.panohead import released_cfg as read
    return read(kwargs(name), raw_size, options, axes)


@pytest.mark.parametrize('name', GOOD)
def test_good(name, tmp_path, monkeypatch):
    monkeypatch.setenv('HEADNB_TRACE', str(tmp_path/'executed'))
    data, golden, want, *of_D = GOOD[name]()
    o = open_official(write(tmp_path, data))
    family = 'panohead' if golden.startswith('panohead') else 'eg3d'
    assert o.family == family and o.cfgs['G_ema' if 'G_ema' in o.models else 'G'] == generator_cfg(golden, **want)
    state = official_to_ours(case(golden).state(), family)
    own = o.generator.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[k], v) for k, v in state.items())
    if 'D' in o.models:
        tiny = 'panohead_D_tiny' if family == 'panohead' else 'eg3d_D_tiny'
        constructor, theirs = of_D[0] if of_D else (case(tiny).config['constructor_D'], table(tiny))
        assert o.cfgs['D'] == released_discriminator_cfg(constructor)
        assert all(torch.equal(o.D.state_dict()[k], torch.from_numpy(v)) for k, v in official_to_ours(theirs, family, 'D').items())
    assert not (tmp_path/'executed').exists() and not any(p.requires_grad for m in o.models.values() for p in m.parameters())


def test_enough_good_files(): assert len(GOOD) >= 12


@pytest.mark.parametrize('name', ['eg3d_tiny', 'PanoHead'])
def test_pictures_of_the_release(name, tmp_path):
    "What is opened draws the golden picture; what is converted draws the identical one."
    golden = 'panohead_tiny' if name == 'PanoHead' else name
    o = open_official(write(tmp_path, w.dump(w.checkpoint(G_ema=G(golden, **(pano if name == 'PanoHead' else {}))))))
    c, x, want = case(golden), case(golden).inputs, case(golden).expected()
    with torch.no_grad():
        ws = o.G_ema.map(x['z'], x['c_cond'], c.config['truncation_psi'], c.config['truncation_cutoff'])
        out = o.G_ema.synthesize(ws, x['c'], noise='const', deterministic=True)
    for ours, theirs in (('image', 'image'), ('raw', 'image_raw'), ('depth', 'image_depth')):
        cut = tuple(slice(*(s or (None,))) for s in c.outputs[theirs].get('slice_per_dim') or [None]*4)
        assert np.allclose(out[ours][cut], want[theirs], c.spec['tolerance']['rtol'], c.spec['tolerance']['atol'])
    assert main(['convert', str(tmp_path/'model.pkl'), str(tmp_path/'out')]) == 0
    g, meta = headnb.open_generator(str(tmp_path/'out'/'model.safetensors'))
    with torch.no_grad(): again = g.synthesize(g.map(x['z'], x['c_cond'], c.config['truncation_psi'], c.config['truncation_cutoff']), x['c'], noise='const', deterministic=True)
    assert all(torch.equal(out[k], again[k]) for k in out)
    assert meta['sha256'] == checkpoint.sha256_of(tmp_path/'model.pkl') if hasattr(checkpoint, 'sha256_of') else len(meta['sha256']) == 64


def test_D_of_the_release(tmp_path):
    o = open_official(write(tmp_path, w.dump(w.checkpoint(G(), D(), G()))))
    c = case('eg3d_D_tiny')
    with torch.no_grad(): logits = o.D({'image': c.inputs['image'], 'raw': c.inputs['image_raw']}, c.inputs['c'])
    assert np.allclose(logits, c.expected()['logits'], 1e-4, 1e-4)
    assert headnb.open_official is open_official and o.cfg.D == o.cfgs['D']


def test_half_precision_and_odd_strides(tmp_path):
    "Weights stored in half precision, or channels last."
    t = table('eg3d_tiny')
    half = {k: v.astype(np.float16) for k, v in t.items()}
    o = open_official(write(tmp_path, w.dump({'G_ema': w.generator(half, kwargs('eg3d_tiny'), 32)})))
    assert torch.equal(o.G_ema.decoder.fc0.weight, torch.from_numpy(half['decoder.net.0.weight']).float())
    tree = G()
    params = next(iter(tree.args[0]['state']['_modules'].items['decoder'].state['_modules'].items['net'].state['_modules'].items.values())).args[0]['state']['_parameters'].items
    params['weight'] = w.Array(t['decoder.net.0.weight'].T.copy(), True, size=(64, 32), stride=(1, 64))
    o = open_official(write(tmp_path, w.dump({'G_ema': tree})))
    assert torch.equal(o.G_ema.decoder.fc0.weight, torch.from_numpy(t['decoder.net.0.weight']))


def test_a_fork_with_its_own_class(tmp_path):
    odd = w.plain('my_fork.aligner', 'Aligner', w.module_state())
    path = write(tmp_path, w.dump(w.checkpoint(G_ema=G(aligner=odd))))
    with pytest.raises(BadInput, match=r"my_fork.aligner.Aligner.*stubs=\('my_fork',\)"): open_official(path)
    assert open_official(path, stubs=('my_fork',)).family == 'eg3d'


def test_everything_that_does_not_fit_is_named(tmp_path):
    def spoil(t):
        t['decoder.surplus'] = t.pop('decoder.net.0.bias')
        t['backbone.mapping.surplus'] = np.zeros(3, np.float32)
        t['backbone.synthesis.b8.conv1.bias'] = np.zeros(7, np.float32)
        return t
    with pytest.raises(BadInput) as e: open_official(write(tmp_path, w.dump(w.checkpoint(G_ema=G(change=spoil)))))
    for name in ('missing keys: decoder.net.0.bias', 'decoder.surplus', 'backbone.mapping.surplus', 'backbone.synthesis.b8.conv1.bias is [7], its configuration says [16]'): assert name in str(e.value)


def test_inspect_shows_text_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HEADNB_TRACE', str(tmp_path/'executed'))
    path = write(tmp_path, w.dump(w.checkpoint(G(), D(), G())))
    text = inspect(path)
    for part in ('opens as eg3d: G, G_ema, D', 'TriPlaneGenerator, 178 tensors', 'neural_rendering_resolution', 'never run', 'numpy.core.multiarray.scalar'): assert part in text
    assert 'open(os.environ["HEADNB_TRACE"]' in inspect(path, source='MappingNetwork')
    assert main(['inspect', str(path)]) == 0 and 'opens as eg3d' in capsys.readouterr().out
    assert main(['convert', str(tmp_path/'absent.pkl'), str(tmp_path/'out')]) == 2 and not (tmp_path/'out').exists()
    assert not (tmp_path/'executed').exists()


def test_writer_is_independent():
    "The writer imports nothing of the reader, its pickles are pickles, and torch's own weights-only loader reads its storages."
    import pickletools, warnings
    assert not re.search(r'^\s*(from|import) +(headnb|pickle|torch)\b', (HERE/'official_writer.py').read_text(), re.M)
    for protocol in (2, 3, 4, 5):
        ops = [(o.name, arg) for o, arg, _ in pickletools.genops(w.dump(w.checkpoint(G_ema=G()), protocol))]
        assert ops[0] == ('PROTO', protocol) and ops[-1][0] == 'STOP'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert torch.load(io.BytesIO(w.legacy_stream(np.arange(4.))), weights_only=True).tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------- hostile files

def text(s): b = s.encode(); return b'X' + struct.pack('<I', len(b)) + b
def in_dict(code): return b'\x80\x04}\x94(' + text('G_ema') + b'N' + text('extra') + code + b'u.'
def in_good(code): return w.dump({'G_ema': w.Raw(code)})
def storage(b, size=(4,), stride=(1,), offset=0): return w.dump({'G_ema': w.persistent('TriPlaneGenerator', w.module_state() | {'_buffers': w.ordered({'x': w.Array(np.zeros(4, np.float32), size=size, stride=stride, offset=offset, storage=b)})}, 'triplane')})


def option(**options): return w.dump({'G_ema': G(rendering=kwargs('eg3d_tiny', **options)['rendering_kwargs'])})
def constructor(**args): return w.dump({'G_ema': G(constructor=kwargs('eg3d_tiny') | args)})


def bomb_zip(n):
    "A torch.save archive of today, with a pickle that calls and an entry that unpacks to n zeros."
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('archive/data.pkl', b'\x80\x02cos\nsystem\n' + text('true') + b'\x85R.')
        z.writestr('../../escape', b'x'); z.writestr('archive/data/0', bytes(n))
    return f.getvalue()


def call(name, *args, proto=4):
    "module.name(args) by STACK_GLOBAL and REDUCE."
    module, _, name = name.rpartition('.')
    return text(module) + text(name) + b'\x93' + b'(' + b''.join(map(text, args)) + b'tR'


def hostile(trace): # name -> bytes
    "The corpus. Every payload would leave a file at `trace`."
    touch, os_system = text(f'touch {trace}'), b'cposix\nsystem\n'
    py = f'open({str(trace)!r}, "w")'
    evil = os_system + touch + b'\x85R'
    x, good = np.zeros(4, np.float32), w.dump({'G_ema': G()})
    stub = b'ctraining.triplane\nOSGDecoder\n)\x81'
    c = {'GLOBAL + REDUCE': in_dict(evil), 'STACK_GLOBAL + REDUCE': in_dict(call('os.system', f'touch {trace}')), 'in place of a network': in_good(evil), 'GLOBAL never used': in_dict(os_system + b'0N'),
         'INST': in_dict(b'(' + touch + b'ios\nsystem\n'), 'OBJ': in_dict(b'(' + os_system + touch + b'o'),
         'NEWOBJ': in_dict(b'csubprocess\nPopen\n' + text('true') + b'\x85\x81'), 'NEWOBJ_EX': in_dict(b'csubprocess\nPopen\n' + text('true') + b'\x85}\x92'),
         'NEWOBJ of an admitted class, with arguments': in_dict(b'ctraining.triplane\nOSGDecoder\n' + touch + b'\x85\x81'), 'REDUCE of an admitted class': in_dict(b'ctraining.triplane\nOSGDecoder\n)R'),
         'NEWOBJ_EX of an admitted class': in_dict(b'ctraining.triplane\nOSGDecoder\n)}\x92'), 'REDUCE of an instance': in_dict(stub + b')R'),
         'BUILD with __setstate__': in_dict(stub + b'}' + text('__setstate__') + os_system + b'sb' + touch + b'b'), 'BUILD twice': in_dict(stub + b'}b}b'),
         'BUILD of a function': in_dict(os_system + b'}' + text('__code__') + b'NsbN'), 'BUILD of a list': in_dict(b']}b'), 'BUILD with slots of a text': in_dict(text('a') + b'N}\x86b'),
         '__reduce__ in a state': in_dict(stub + b'}' + text('__reduce__') + evil + b'sb'),
         'EXT1': in_dict(b'\x82\x01' + touch + b'\x85R'), 'EXT2': in_dict(b'\x83\x01\x00' + touch + b'\x85R'), 'EXT4': in_dict(b'\x84\x01\x00\x00\x00' + touch + b'\x85R'),
         'PERSID': in_dict(b'Pposix.system\n'), 'BINPERSID': in_dict(evil[:-2] + b'Q'), 'BINPERSID of a text': in_dict(text('id') + b'Q'),
         'NEXT_BUFFER': in_dict(b'\x97'), 'protocol 0': b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR.", 'protocol 0 inside 4': in_dict(b"(S'a'\nI1\nF1.0\nd"),
         'protocol 9': b'\x80\x09N.', 'protocol twice': b'\x80\x04\x80\x02N.',
         'memo: exchanged': in_dict(b']q\x05' + os_system + b'q\x05' + touch + b'\x85R'), 'memo: exchanged, harmless': in_dict(b']q\x05}q\x05'), 'memo: never written': in_dict(b'h\x63'),
         'memo: never written, long': in_dict(b'j\xff\xff\xff\xff'), 'memo: entry 2^32-1': in_dict(b'Nr\xff\xff\xff\xff' + evil), 'memo: decimal': in_dict(b'Np' + b'9'*190 + b'\n'), 'memo: PUT of nothing': b'\x80\x04q\x00.',
         'dotted name': in_dict(call('builtins.__import__.__call__', 'os')), 'name with a line feed': in_dict(text('os\nsystem') + text('x') + b'\x93'), 'name with control characters': in_dict(text('\x1b]0;owned\x07') + text('x') + b'\x93'),
         'name of numbers': in_dict(b'K\x01K\x02\x93'), 'endless name': b'\x80\x04c' + b'a'*100000, 'name that looks known': in_dict(call('collections.OrderedDict.__init__.__globals__', 'x')),
         'numpy object array': in_dict(call('numpy.core.multiarray._reconstruct', 'a')), 'copyreg': in_dict(call('copyreg._reconstructor', 'a')), 'getattr': in_dict(call('builtins.getattr', 'a', 'b')),
         'a fake network': w.dump({'G_ema': {'state': 1}}), 'a number': b'\x80\x04K\x01.', 'nothing': b'\x80\x04N.', 'an empty dictionary': b'\x80\x04}.', 'a network of text': in_good(text('x'))}
    for name in ('builtins.exec', 'builtins.eval', 'builtins.compile', 'importlib.import_module', 'runpy.run_path', 'pickle.loads', 'marshal.loads', 'types.FunctionType', 'ctypes.CDLL', 'os.popen', 'os.execv', 'nt.system',
                 'subprocess.call', 'shutil.rmtree', 'webbrowser.open', 'socket.create_connection', 'torch.load', 'torch.hub.load', 'torch.jit.load', 'torch.storage._load_from_file', 'numpy.load', 'numpy.fromfile',
                 'torch.serialization._legacy_load', 'headnb.base.core.write_atomic', 'multiprocessing.Process', 'code.interact', 'pty.spawn', 'timeit.timeit', 'functools.partial', 'operator.methodcaller', 'torch._dynamo.eval_frame'):
        c[f'call {name}'] = in_dict(call(name, py))
    c |= {'storage: a pickle that calls': storage(w.legacy_stream(x, payload=b'\x80\x02' + evil + b'.')), 'storage: only a pickle': storage(b'\x80\x02' + evil + b'.'), 'storage: call inside the persistent id': storage(w.legacy_stream(x, payload=b'\x80\x02(' + text('storage') + evil + b'tQ.')),
          'storage: a zip of today with a bomb': storage(bomb_zip(50_000_000)), 'storage: 10^15 numbers': storage(w.legacy_stream(x, numel=10**15)), 'storage: -1 numbers': storage(w.legacy_stream(x, numel=-1)),
          'storage: one number more': storage(w.legacy_stream(x, numel=5)), 'storage: cut off': storage(w.legacy_stream(x)[:-3]), 'storage: unknown kind': storage(w.legacy_stream(x, kind='SparseStorage')), 'storage: of a list': in_dict(b'ctorch.storage\n_load_from_bytes\n]\x85R'),
          'storage: another magic number': storage(w.legacy_stream(x).replace(b'l\xfc\x9c', b'l\xfc\x9d')), 'storage: empty': storage(b''), 'storage: list as pid': storage(w.legacy_stream(x, payload=b'\x80\x02]Q.')), 'storage: many instructions': storage(w.legacy_stream(x, payload=b'\x80\x02' + b']'*10000 + b'.')),
          'tensor: 10^18 numbers, stride 0': storage(None, (10**9, 10**9), (0, 0)), 'tensor: beyond its storage': storage(None, offset=1), 'tensor: negative stride': storage(None, stride=(-1,)), 'tensor: 10^30 numbers': storage(None, (10**10,)*3, (1, 1, 1)),
          'tensor: 40 axes': storage(None, (1,)*40, (1,)*40), 'tensor: of text': storage(None, ('4',), (1,)), 'tensor: from a dictionary': in_dict(b'ctorch._utils\n_rebuild_tensor_v2\n}K\0))\x89}tR'.replace(b'\n}', b'\n(}', 1))}
    z = np.zeros(250_000, np.float32); once = w.Call(w.Global('torch.storage', '_load_from_bytes'), w.legacy_stream(z))
    c |= {'one storage as 3 GB of tensors': w.dump({'G_ema': G(_buffers=w.ordered({f'x{i}': w.Array(z, storage=once) for i in range(3000)}))}),
          'LONG4 of 2 GB': in_dict(b'\x8b\xff\xff\xff\x7f'), 'LONG4 of 1 MB': in_dict(b'\x8b' + struct.pack('<I', 1 << 20) + b'\x7f'*(1 << 20)), 'LONG1 of 255 bytes': in_dict(b'\x8a\xff' + b'\x7f'*255),
          'BINBYTES8 of 2^63': in_dict(b'\x8e' + b'\xff'*7 + b'\x7f'), 'BINUNICODE8 of 2^64': in_dict(b'\x8d' + b'\xff'*8), 'BINBYTES of 4 GB': in_dict(b'B\xff\xff\xff\xff'), 'BYTEARRAY8': in_dict(b'\x96' + b'\xff'*8), 'FRAME of 2^63': b'\x80\x04\x95' + b'\xff'*7 + b'\x7f' + in_dict(b'N')[2:],
          'text that is not UTF-8': in_dict(b'X\x02\0\0\0\xff\xfe'), 'text of half a character': in_dict(b'X\x03\0\0\0\xed\xa0\x80'), '70 MB of text': in_dict(text('a'*70_000_000)),
          'a million lists': b'\x80\x04' + b']'*1_000_000 + b'.', 'a million marks': b'\x80\x04' + b'('*1_000_000 + b'.', 'five million sets': b'\x80\x04' + b'\x8f'*5_000_000 + b'.', 'memo of a million': b'\x80\x04N' + b'\x94'*1_000_000 + b'.',
          'lists 200,000 deep': in_dict(b']'*200_000 + b'a'*199_999), 'tuples 200,000 deep': in_dict(b')' + b'\x85'*200_000), 'tuples 100,000 deep as a key': in_dict(b'})' + b'\x85'*100_000 + b'Ns'), 'dictionaries 60,000 deep': in_dict(b'}' + (b'K\1}')*60_000 + b's'*60_000),
          'a list that holds itself': in_dict(b']\x94h\x01a'), 'a dictionary that holds itself, as the options': w.dump({'G_ema': G(rendering_kwargs=w.Raw(b'}r\xff\xff\0\0' + text('a') + b'j\xff\xff\0\0s'))}, 3),
          'laughs: 200^50 lists as the options': w.dump({'G_ema': G(rendering_kwargs=w.Raw(b'}' + text('a') + laughs(50, 200) + b's'))}, 3), 'laughs: 3^60 lists as the arguments': w.dump({'G_ema': w.persistent('TriPlaneGenerator', w.module_state(), 'triplane', args=(w.Raw(laughs(60, 3)), *range(8)))}, 3),
          'lists 3,000 deep with short cuts': w.dump({'G_ema': G(rendering_kwargs=w.Raw(short_cuts(3000)))}, 3), 'set of the same list, 100,000 times': in_dict(same_set(100_000, 10_000)),
          'keys that collide': in_dict(b'}(' + b''.join(b'\x8a\x0a' + (i*(2**61 - 1)).to_bytes(10, 'little') + b'N' for i in range(20_000)) + b'u'), 'a network in itself': network_loop(), 'networks 40,000 deep': network_chain(40_000),
          'items without MARK': in_dict(b'}u'), 'odd items': in_dict(b'}(K\1K\2K\3u'), 'stack underflow': b'\x80\x04R.', 'items for a text': in_dict(text('x') + b'(K\1e'), 'left over': b'\x80\x04NN.', 'marks left over': b'\x80\x04(N.',
          'second pickle behind': good + in_dict(evil), 'zeros behind': good + bytes(100), 'no STOP': good[:-1]}
    nan, inf = math.nan, math.inf
    c |= {'option: NaN': option(ray_start=nan), 'option: infinite': option(box_warp=inf), 'option: a list': option(box_warp=[1, 2]), 'option: unknown': option(detonate=True), 'option: 10^9 samples': option(depth_resolution=10**9), 'option: text for a number': option(ray_end='far'),
          'option: no super-resolution of that name': option(superresolution_module='os.system'), 'option: box of side 0': option(box_warp=0), 'option: a network': option(c_scale=w.persistent('X', {}, 'x')), 'options: a text': w.dump({'G_ema': G(rendering_kwargs='x')}),
          'layers: 10^9': constructor(mapping_kwargs={'num_layers': 10**9}), 'layers: -1': constructor(mapping_kwargs={'num_layers': -1}), 'image of 2^40': constructor(img_resolution=2**40), 'image of 0': constructor(img_resolution=0), 'image of 100': constructor(img_resolution=100),
          'width 2^24': constructor(channel_base=2**24, channel_max=2**14), 'width -1': constructor(channel_max=-1), 'z of 65536': constructor(z_dim=65536), 'w of 0': constructor(w_dim=0), 'z of text': constructor(z_dim='512'), 'z missing': constructor(z_dim=None),
          'label noise': w.dump(w.checkpoint(G(), w.discriminator(table('eg3d_D_tiny'), case('eg3d_D_tiny').config['constructor_D'] | {'disc_c_noise': nan}), G())), 'D: unknown class': w.dump(w.checkpoint(G(), w.discriminator(table('eg3d_D_tiny'), case('eg3d_D_tiny').config['constructor_D'] | {'class_name': 'x.EvilDiscriminator'}), G())),
          'raw size 10^6': w.dump({'G_ema': G(raw=10**6)}), 'raw size of text': w.dump({'G_ema': G(raw='64')}), 'axes: not along the axes': w.dump({'G_ema': G(axes=np.ones((3, 3, 3)))}), 'axes: NaN': w.dump({'G_ema': G(axes=np.full((3, 3, 3), nan))}), 'axes: two planes': w.dump({'G_ema': G(axes=np.eye(3)[None].repeat(2, 0))}),
          'axes: 10^6 planes': w.dump({'G_ema': G(axes=np.zeros((1000, 3, 3)))}), 'axes: the same axis twice': w.dump({'G_ema': G(axes=np.eye(3)[[0, 0, 1]][None].repeat(3, 0))}), 'weights: NaN': w.dump({'G_ema': G(change=lambda t: t | {'decoder.net.0.bias': np.full(64, nan, np.float32)})}),
          'weights: integers': w.dump({'G_ema': G(change=lambda t: t | {'decoder.net.0.bias': np.zeros(64, np.int64)})}), 'weights: none': w.dump({'G_ema': G(change=lambda t: {})}), 'Next3D': w.dump({'G_ema': G(change=lambda t: t | {'texture_backbone.x': np.zeros(3, np.float32)})}),
          'a million arguments': w.dump({'G_ema': w.persistent('TriPlaneGenerator', w.module_state(), 'triplane', args=(1,)*1_000_000)}), 'hooks': w.dump({'G_ema': G(_forward_hooks=w.Raw(evil))}),
          'persistent: no source': in_good(text('torch_utils.persistence') + text('_reconstruct_persistent_obj') + b'\x93}' + text('type') + text('class') + b's\x85R'), 'persistent: of a text': in_good(text('torch_utils.persistence') + text('_reconstruct_persistent_obj') + b'\x93' + text('x') + b'\x85R')}
    c |= {f'cut off at {i} %': good[:len(good)*i//100] for i in (0, 1, 10, 50, 90, 99)} | {'cut off in the first word': good[:1], 'reversed': good[::-1], 'the bytes of its head flipped': bytes(b ^ 0x55 for b in good[:4096]) + good[4096:]}
    c |= {f'bit {bit} flipped in instruction {i}': flipped(good, i, bit) for i, bit in ((0, 0), (0, 7), (2, 6), (5, 5), (40, 7), (200, 7), (1000, 7))}
    c |= {'a zip with ../ in it': bomb_zip(1000), 'a zip that unpacks to 100 MB': bomb_zip(100_000_000), 'a gzip that unpacks to 100 MB': gzip.compress(bytes(100_000_000)), 'an xz': lzma.compress(good[:1000]), 'a web page': b'<html>404', 'a git-lfs pointer': b'version https://git-lfs.github.com/spec/v1\n', 'a text': b'hello', 'noise': np.random.default_rng(0).bytes(10000), 'zeros': bytes(10000)}
    return c


def laughs(depth, width):
    "Lists of lists of the same list: width^depth entries if written out, in depth*width instructions; memo entries far from the writer's own."
    code = b'](]r' + struct.pack('<I', 100_000)
    for i in range(depth): code += b']r' + struct.pack('<I', 100_001 + i) + b'(' + (b'j' + struct.pack('<I', 100_000 + i))*width + b'e'
    return code + b'e'


def short_cuts(n):
    "Nested n deep, and each level also directly in a list in front: a look level by level finds it flat."
    put = lambda i: struct.pack('<I', 200_000 + i)
    code = b'}(' + text('first') + b'](' + b''.join(b']r' + put(i) for i in range(n)) + b'e' + text('second') + b'j' + put(0)
    return code + b''.join(b'j' + put(i) for i in range(1, n)) + b'a'*(n - 1) + b'u'


def same_set(times, n): return b'](' + b'K\1'*n + b'er\xff\xff\0\0' + b'cbuiltins\nset\nr\xfe\xff\0\0' + b'(' + b'j\xfe\xff\0\0j\xff\xff\0\0\x85R'*times + b't\x86'


def network_loop():
    "A layer among its own children."
    tree = G()
    inner = b'}r\xff\xff\0\0(' + text('_parameters') + b'}' + text('_buffers') + b'}' + text('_modules') + b'}' + text('again') + b'ctraining.triplane\nOSGDecoder\n)\x81j\xff\xff\0\0bsu'
    tree.args[0]['state']['_modules'].items['loop'] = w.Raw(b'ctraining.triplane\nOSGDecoder\n)\x81' + inner + b'b')
    return w.dump({'G_ema': tree}, 3)


def network_chain(n):
    state = w.Raw(b'}' + (text('_modules') + b'}' + text('a') + b'ctraining.triplane\nOSGDecoder\n)\x81}')*n + b'bss'*n)
    return w.dump({'G_ema': w.Call(w.Global('torch_utils.persistence', '_reconstruct_persistent_obj'), {'type': 'class', 'version': 6, 'module_src': '', 'class_name': 'G', 'state': state})})


def flipped(data, i, bit):
    import pickletools
    at = [p for _, _, p in pickletools.genops(data)][i]
    b = bytearray(data); b[at] ^= 1 << bit
    return bytes(b)


def picture(side=8, colour=3, value=90):
    from PIL import Image
    f = io.BytesIO(); Image.fromarray(np.full((side, side, colour), value, np.uint8)).save(f, 'png')
    return f.getvalue()


def png_of(width, height):
    "A picture of zeros that claims and holds width x height bits."
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes((width//8 + 1)*height))) + chunk(b'IEND', b'')


def labelled(path, label=None, labels=None, name='img.png', image=None, text=None, extra=()):
    "A data set of one picture as a zip; what is hostile is given."
    c = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, .5, 0, 4.2647, .5, 0, 0, 1]
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, picture() if image is None else image)
        z.writestr('dataset.json', text if text is not None else json.dumps({'labels': [['img.png', c if label is None else label]] if labels is None else labels}))
        for info, data in extra: z.writestr(info, data)


def lie_about_size(path, entry, size):
    "Change the unpacked size of an entry in the directory of a zip."
    b = bytearray(path.read_bytes())
    at = b.index(b'PK\1\2')
    while b[at + 46:at + 46 + len(entry)] != entry.encode(): at = b.index(b'PK\1\2', at + 4)
    b[at + 24:at + 28] = struct.pack('<I', size)
    path.write_bytes(b)


def hostile_sets(folder):
    "Hostile data sets, written as data_<number>; their names in order."
    link = zipfile.ZipInfo('b.png'); link.external_attr = (stat.S_IFLNK | 0o777) << 16
    good = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, .5, 0, 4.2647, .5, 0, 0, 1]
    made = {'../ in a name': lambda p: labelled(p, extra=[('../../escape.png', b'x')]), 'an absolute name': lambda p: labelled(p, extra=[('/tmp/escape.png', b'x')]), 'a drive letter': lambda p: labelled(p, extra=[('C:/escape.png', b'x')]),
            'two entries of one name': lambda p: labelled(p, extra=[('img.png', b'x')]), 'a link in a zip': lambda p: labelled(p, labels=[['img.png', good], ['b.png', good]], extra=[(link, '/etc/passwd')]), 'no json': lambda p: zipfile.ZipFile(p, 'w').writestr('img.png', picture()),
            'label NaN': lambda p: labelled(p, [math.nan]*25), 'label infinite': lambda p: labelled(p, [1e400]*25), 'label 10^9': lambda p: labelled(p, [1e9]*25), 'label of a million numbers': lambda p: labelled(p, [0]*1_000_000), 'label of text': lambda p: labelled(p, ['x']*25),
            'label "nan"': lambda p: labelled(p, ['nan']*25), 'label of lists': lambda p: labelled(p, [[1]]*25), 'label null': lambda p: labelled(p, labels=[['img.png', None]]), 'labels a text': lambda p: labelled(p, labels='all'), 'two labels': lambda p: labelled(p, labels=[['img.png', good], ['img.png', [0]*25]]),
            'a million labels of nobody': lambda p: labelled(p, labels=[[str(i), []] for i in range(1_000_000)]), 'json 100,000 deep': lambda p: labelled(p, text='['*100_000), 'json with a number of a million digits': lambda p: labelled(p, text='{"labels": [["img.png", [' + '9'*1_000_000 + ']]]}'), 'json cut off': lambda p: labelled(p, text='{"labels": [['),
            'json not UTF-8': lambda p: labelled(p, text=b'\xff\xfe\xfa'), 'json of 200 MB of blanks': lambda p: labelled(p, text='{"labels": []' + ' '*200_000_000 + '}'), 'json of 3 GB, says the zip': lambda p: (labelled(p), lie_about_size(p, 'dataset.json', 3_000_000_000)), 'picture of 3 GB, says the zip': lambda p: (labelled(p), lie_about_size(p, 'img.png', 3_000_000_000)),
            'picture that unpacks to 200 MB': lambda p: labelled(p, image=bytes(200_000_000)), 'picture of 60000 x 60000': lambda p: labelled(p, image=png_of(60000, 60000)), 'picture not square': lambda p: labelled(p, image=png_of(8, 4000)), 'picture cut off': lambda p: labelled(p, image=picture(64)[:50]),
            'picture of noise': lambda p: labelled(p, image=bytes(100)), 'RGBA': lambda p: labelled(p, image=picture(colour=4)), 'zip cut off': lambda p: (labelled(p), p.write_bytes(p.read_bytes()[:200])), 'no zip': lambda p: p.write_bytes(b'PK\3\4' + bytes(100))}
    for i, (name, make) in enumerate(made.items()):
        with warnings.catch_warnings(action='ignore'): make(folder/f'data_{i:03d}.zip')
    outside = folder.parent/f'{folder.name}_outside.png'; outside.write_bytes(picture())
    inside = folder/f'data_{len(made):03d}'; inside.mkdir(); (inside/'img.png').symlink_to(outside); (inside/'dataset.json').write_text(json.dumps({'labels': [['img.png', good]]}))
    return [*made, 'a link out of the folder']


CHILD = r'''
import copyreg, importlib, json, os, pkgutil, resource, sys, time, warnings
os.environ['OMP_NUM_THREADS'] = '1'
from pathlib import Path
import torch, headnb.papers
from headnb.base.core import BadInput
from headnb.field.rig import load_head
from headnb.gan.data import HeadDataset
from headnb.open import open_official, inspect
copyreg.add_extension('posix', 'system', 1)                    # a gun in the registry
folder, status = Path(sys.argv[1]), lambda key: int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])/1e3
open_official(folder/'good.pkl'), inspect(folder/'good.pkl')   # everything that is imported late is imported now:
for module in pkgutil.iter_modules(headnb.papers.__path__): importlib.import_module(f'headnb.papers.{module.name}')   # every family too, and the head that ships, which good.pkl does not ask for
load_head()
seen, armed = [], [False]
BAD = ('import', 'exec', 'compile', 'os.', 'subprocess.', 'socket.', 'shutil.', 'ctypes.', 'pickle.', 'urllib.', 'marshal.', 'tempfile.', 'pty.', 'webbrowser.', 'fcntl.', 'signal.', 'syslog.')
def audit(event, args):
    if armed[0] and (event.startswith(BAD) and event not in ('os.listdir', 'os.scandir') or event == 'open' and args[1] not in ('r', 'rb')): seen.append(f'{event} {args}'[:200])
sys.addaudithook(audit)
resource.setrlimit(resource.RLIMIT_AS, (int((status('VmSize') + 3000)*1e6),)*2)
def set_of_pictures(path): ds = HeadDataset(path); [ds[i] for i in range(len(ds))]
for path in sorted(folder.glob('hostile_*')) + sorted(folder.glob('data_*')):
    try: open('/proc/self/clear_refs', 'w').write('5')
    except OSError: pass
    before, tic, wall = status('VmRSS'), time.process_time(), time.time()
    armed[0] = path.name.startswith('hostile')
    try: (open_official if armed[0] else set_of_pictures)(path); result = ['opened', '']
    except BadInput as e: result = ['BadInput', str(e)]
    except BaseException as e: result = [type(e).__name__, str(e)[:300]]
    armed[0] = False
    print(json.dumps([path.name, *result, time.process_time() - tic, time.time() - wall, status('VmHWM') - before, seen]), flush=True)
    seen = []
'''


@pytest.fixture(scope='module')
def verdicts(tmp_path_factory):
    "The whole corpus through one child process: {name: (kind, message, seconds, wall, MB, audit events, MB of the file)}."
    folder = tmp_path_factory.mktemp('hostile')
    corpus = hostile(folder/'executed')
    (folder/'good.pkl').write_bytes(w.dump(w.checkpoint(G(), D(), G())))
    names, sizes = list(corpus), {}
    for i, name in enumerate(names): (folder/f'hostile_{i:03d}').write_bytes(corpus[name]); sizes[name] = len(corpus[name])/1e6
    names += [f'data set: {n}' for n in hostile_sets(folder)]
    before = sorted(str(p) for p in folder.parent.rglob('*'))
    r = subprocess.run([sys.executable, '-c', CHILD, str(folder)], capture_output=True, text=True, timeout=1200, cwd=HERE.parent, env=os.environ | {'HEADNB_TRACE': str(folder/'executed')})
    rows = [json.loads(line) for line in r.stdout.splitlines() if line.startswith(('["hostile_', '["data_'))]
    assert len(rows) == len(names), f'the process died at {names[len(rows)]!r}: {r.returncode} {r.stderr[-2000:]}'
    assert sorted(str(p) for p in folder.parent.rglob('*')) == before, 'something was written'
    return {name: (*row[1:], sizes.get(name, 0)) for name, row in zip(names, rows)}


def test_hostile(verdicts):
    assert len(verdicts) >= 40
    for what, rows in (('files', {k: v for k, v in verdicts.items() if not k.startswith('data set')}), ('data sets', {k: v for k, v in verdicts.items() if k.startswith('data set')})):
        slow, big = max(rows.items(), key=lambda kv: kv[1][2]), max(rows.items(), key=lambda kv: kv[1][4] - 3*kv[1][6])
        print(f'\n{len(rows)} hostile {what}: {sum(v[2] for v in rows.values()):.1f} s of processor time; slowest {slow[1][2]:.2f} s ({slow[0]}); most memory above three times the file: {big[1][4] - 3*big[1][6]:.0f} MB ({big[0]}, {big[1][6]:.0f} MB)')
    for name, (kind, message, seconds, wall, memory, events, size) in verdicts.items():
        assert kind == 'BadInput', f'{name}: {kind}: {message}'
        assert message.isprintable() and 10 < len(message) < 8000, f'{name}: {message[:300]!r}'
        assert not events, f'{name}: {events}'
        assert seconds < SECONDS and memory < MEGABYTES + 3*size, f'{name}: {seconds:.1f} s, {memory:.0f} MB for a file of {size:.1f} MB'


@pytest.mark.parametrize('name, words', [('GLOBAL + REDUCE', 'asks for posix.system'), ('INST', 'INST does not occur'), ('EXT1', 'EXT1 does not occur'), ('BINPERSID of a text', 'BINPERSID'), ('memo: exchanged, harmless', 'written twice'),
                                         ('storage: a pickle that calls', 'storage asks for posix.system'), ('tensor: 10^18 numbers, stride 0', 'in a storage of 4 numbers'), ('LONG4 of 1 MB', 'integer of 1048576 bytes'), ('BINBYTES8 of 2^63', 'are announced'),
                                         ('lists 200,000 deep', 'nested deeper'), ('a network in itself', 'reached twice'), ('width 2^24', 'far larger'), ('layers: 10^9', 'num_layers is 1000000000'), ('lists 3,000 deep with short cuts', 'nested too deep'), ('laughs: 200^50 lists as the options', 'too many entries'), ('laughs: 3^60 lists as the arguments', 'arguments without a name'), ('option: NaN', 'ray_start is nan'),
                                         ('weights: NaN', 'not finite: decoder.net.0.bias'), ('cut off at 50 %', 'cut off'), ('a zip with ../ in it', 'a zip archive'), ('Next3D', 'next3d'), ('one storage as 3 GB of tensors', 'shared by many tensors'), ('second pickle behind', 'follow the end')])
def test_hostile_says_why(verdicts, name, words): assert words in verdicts[name][1], verdicts[name][1]


def test_places_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'link').symlink_to('/dev/zero')
    for p, words in ((tmp_path, 'not a regular file'), (tmp_path/'pipe', 'not a regular file'), (tmp_path/'link', 'not a regular file'), (tmp_path/'absent', 'no such file'), (Path('/dev/urandom'), 'not a regular file')):
        with pytest.raises(BadInput, match=words): open_official(p)
    (tmp_path/'huge').touch(); os.truncate(tmp_path/'huge', 1 << 40)                    # a terabyte of nothing
    with pytest.raises(BadInput, match='are accepted'): open_official(tmp_path/'huge')


def test_inspect_of_hostile_files(tmp_path):
    "inspect shows refused files too, bounded and printable."
    for i, (name, data) in enumerate(hostile(tmp_path/'executed').items()):
        if len(data) > 3e6 or not data.startswith(b'\x80') or i % 3: continue
        text = inspect(write(tmp_path, data))
        assert 'refused: ' in text and all(ch.isprintable() or ch == '\n' for ch in text) and len(text) < 50_000, name
    assert not (tmp_path/'executed').exists()


# ---------------------------------------------------------------- mutations

GUN = {'module': 'posix', 'name': 'system', 'argument': 'touch executed'}   # words that a mutation could turn into a call


@pytest.fixture(scope='module')
def target(tmp_path_factory):
    "A good file, where its instructions and words are, and the trap."
    folder = tmp_path_factory.mktemp('mutation')
    data = w.dump(w.checkpoint(G_ema=G(), gun=GUN))
    places = [i for a, b, kind in byte_map(memoryview(data)) if kind == 'structure' for i in range(a, b)]
    return folder, data, places


EVENTS, ARMED = [], [False]
def audit(event, args):
    if ARMED[0] and (event in ('exec', 'import', 'compile') or event.startswith(('os.system', 'os.exec', 'os.posix', 'os.fork', 'os.remove', 'os.rename', 'os.mkdir', 'subprocess', 'socket', 'ctypes', 'pickle', 'shutil')) or event == 'open' and args[1] not in ('r', 'rb')):
        EVENTS.append((event, str(args)[:100]))


one = st.tuples(st.sampled_from(['flip', 'set', 'set', 'insert', 'delete', 'copy', 'cut', 'anywhere']), st.integers(0, 2**32), st.integers(0, 255), st.integers(1, 64))
OPS = bytes([*b'(.0123NKMJGXBC)]}aeltduscRbiohqjpgPQ', *range(0x80, 0x99)])


def mutate(data, places, changes):
    for kind, where, value, n in changes:
        i = min(places[where % len(places)], len(data) - 1)
        if kind == 'flip': data[i] ^= 1 << value % 8
        elif kind == 'set': data[i] = OPS[value % len(OPS)]
        elif kind == 'insert': data[i:i] = bytes([OPS[value % len(OPS)]])*(n % 4 + 1)
        elif kind == 'delete': del data[i:i + n]
        elif kind == 'copy': j = places[value*37 % len(places)]; data[i:i] = data[j:j + n]
        elif kind == 'cut' and value < 64: del data[max(i, 16):]
        elif kind == 'anywhere': data[where % len(data)] ^= value | 1


def test_mutations(target, monkeypatch):
    "1,000 damaged copies of a good file: each opens or is refused."
    folder, good, places = target
    monkeypatch.chdir(folder)                   # where a payload would leave its trace
    path, tally, spent = folder/'mutant.pkl', {'opened': 0, 'refused': 0}, [0.]
    path.write_bytes(good); open_official(path)
    sys.addaudithook(audit)

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(one, min_size=1, max_size=4))
    def run(changes):
        data = bytearray(good)
        mutate(data, places, changes)
        path.write_bytes(data)
        tic, ARMED[0] = time.process_time(), True
        try: open_official(path); tally['opened'] += 1
        except BadInput as e: tally['refused'] += 1; assert str(e).isprintable() and len(str(e)) < 20_000
        finally: ARMED[0] = False
        took = time.process_time() - tic
        spent.append(took)
        assert took < SECONDS and not EVENTS and sorted(p.name for p in folder.iterdir()) == ['mutant.pkl']

    run()
    print(f'\n{sum(tally.values())} mutants: {tally}, {sum(spent):.0f} s of processor time, slowest {max(spent):.2f} s')
    assert sum(tally.values()) >= 1000 and tally['refused'] > 300
