"""Writes files as the released training scripts do, opcode by opcode, from the specification alone. It imports nothing of headnb and not even `pickle`."""
import re
import struct

import numpy as np

FRAME = 64*1024


class Global:
    "A module and a name, as they stand in the file."
    def __init__(self, module, name): self.module, self.name = module, name


class Call:
    "REDUCE: a global called with arguments; then an optional BUILD with `state`, and items of a dictionary."
    def __init__(self, func, *args, state=None, items=None): self.func, self.args, self.state, self.items = func, args, state, items


class Instance:
    "NEWOBJ of a class; items of a dict subclass by SETITEMS, the instance dict by BUILD."
    def __init__(self, cls, state=None, items=None): self.cls, self.state, self.items = cls, state, items


class Raw:
    "Opcodes as they are; they must leave one object on the stack."
    def __init__(self, code): self.code = code


class Array:
    "A tensor of a released file; `stride`, `offset`, `size` (None: contiguous) and `storage` (bytes) may lie; a Call as storage is shared."
    def __init__(self, x, parameter=False, size=None, stride=None, offset=0, storage=None):
        self.x, self.parameter = np.ascontiguousarray(x) if np.ndim(x) else np.asarray(x), parameter
        self.size = tuple(self.x.shape) if size is None else size
        self.stride = tuple(s//self.x.itemsize for s in self.x.strides) if stride is None else stride
        self.offset, self.storage = offset, storage


class Scalar:
    "A float64 scalar of numpy."
    def __init__(self, value): self.value = value


class Pickle:
    "One pickle stream of protocol 2 to 5."
    def __init__(self, protocol=4, numpy='numpy.core', frames=True):
        self.protocol, self.numpy, self.out, self.frame = protocol, numpy, bytearray(), bytearray()
        self.memo, self.kept, self.framed = {}, [], frames and protocol >= 4

    def emit(self, *parts):
        for p in parts: self.frame += p
        if len(self.frame) >= FRAME: self.commit()

    def commit(self):
        if self.framed and self.frame: self.out += b'\x95' + struct.pack('<Q', len(self.frame))
        self.out += self.frame
        self.frame = bytearray()

    def outside(self, head, data):
        "A long text or long bytes stand outside of frames."
        if not self.framed or len(data) < FRAME: return self.emit(head, data)
        self.commit()
        self.out += head
        self.out += data

    def remember(self, obj):
        n = self.memo[id(obj)] = len(self.kept)
        self.kept.append(obj)                      # so that no id is used twice
        if self.protocol >= 4: self.emit(b'\x94')
        elif n < 256: self.emit(b'q', bytes([n]))
        else: self.emit(b'r', struct.pack('<I', n))

    def recall(self, obj):
        n = self.memo.get(id(obj))
        if n is not None: self.emit(b'h' + bytes([n]) if n < 256 else b'j' + struct.pack('<I', n))
        return n is not None

    def save(self, obj):
        if obj is None or obj is True or obj is False: return self.emit({None: b'N', True: b'\x88', False: b'\x89'}[obj])
        if type(obj) is int: return self.integer(obj)
        if type(obj) is float: return self.emit(b'G', struct.pack('>d', obj))
        if type(obj) is Raw: return self.emit(obj.code)
        if obj == () and type(obj) is tuple: return self.emit(b')')
        if self.recall(obj): return
        getattr(self, 'save_' + type(obj).__name__)(obj)

    def integer(self, i):
        if 0 <= i < 256: self.emit(b'K', bytes([i]))
        elif 0 <= i < 65536: self.emit(b'M', struct.pack('<H', i))
        elif -2**31 <= i < 2**31: self.emit(b'J', struct.pack('<i', i))
        else:
            n = i.bit_length()//8 + 1
            self.emit(b'\x8a', bytes([n]), i.to_bytes(n, 'little', signed=True))

    def save_str(self, s):
        b = s.encode()
        short = self.protocol >= 4 and len(b) < 256
        self.outside(b'\x8c' + bytes([len(b)]) if short else b'X' + struct.pack('<I', len(b)), b)
        self.remember(s)

    def save_bytes(self, b):
        if self.protocol < 3: self.save(Call(Global('_codecs', 'encode'), b.decode('latin1'), 'latin1'))
        else:
            self.outside(b'C' + bytes([len(b)]) if len(b) < 256 else b'B' + struct.pack('<I', len(b)), b)
            self.remember(b)

    def save_tuple(self, t):
        if len(t) > 3: self.emit(b'(')
        for x in t: self.save(x)
        self.emit((b')', b'\x85', b'\x86', b'\x87')[len(t)] if len(t) < 4 else b't')
        self.remember(t)

    def save_list(self, xs):
        self.emit(b']')
        self.remember(xs)
        if len(xs) == 1: self.save(xs[0]); self.emit(b'a')
        elif xs:
            self.emit(b'(')
            for x in xs: self.save(x)
            self.emit(b'e')

    def save_dict(self, d):
        self.emit(b'}')
        self.remember(d)
        self.items(d)

    def items(self, d):
        rows = list(d.items())
        for i in range(0, len(rows), 1000):
            part = rows[i:i + 1000]
            if len(part) > 1: self.emit(b'(')
            for k, v in part: self.save(k); self.save(v)
            self.emit(b'u' if len(part) > 1 else b's')

    def save_set(self, s):
        if self.protocol < 4: return self.save(Call(Global('__builtin__' if self.protocol < 3 else 'builtins', 'set'), sorted(s)))
        self.emit(b'\x8f')
        self.remember(s)
        if s:
            self.emit(b'(')
            for x in sorted(s): self.save(x)
            self.emit(b'\x90')

    def named(self, module, name):
        "A global, kept in the memo under its full name."
        key = (module, name)
        if (n := self.memo.get(key)) is not None: return self.emit(b'h' + bytes([n]) if n < 256 else b'j' + struct.pack('<I', n))
        if self.protocol >= 4:
            self.save(self.text(module)); self.save(self.text(name)); self.emit(b'\x93')
        else: self.emit(b'c', module.encode(), b'\n', name.encode(), b'\n')
        self.remember(key)
        self.memo[key] = self.memo.pop(id(key))

    def text(self, s):
        "The same object for equal texts, so that the memo finds it."
        self.texts = getattr(self, 'texts', {})
        return self.texts.setdefault(s, s)

    def save_Global(self, g): self.named(g.module, g.name)

    def save_Call(self, c):
        self.save_Global(c.func)
        self.save(c.args)
        self.emit(b'R')
        self.remember(c)
        if c.items: self.items(c.items)
        if c.state is not None: self.save(c.state); self.emit(b'b')

    def save_Instance(self, o):
        self.save_Global(o.cls)
        self.emit(b')', b'\x81')
        self.remember(o)
        if o.items: self.items(o.items)
        if o.state is not None: self.save(o.state); self.emit(b'b')

    def save_Scalar(self, s):
        "numpy scalars share one dtype object, through the memo."
        if not hasattr(self, 'f8'): self.f8 = Call(Global('numpy', 'dtype'), 'f8', False, True, state=(3, '<', None, None, None, -1, -1, 0))
        self.save(Call(Global(f'{self.numpy}.multiarray', 'scalar'), self.f8, struct.pack('<d', s.value)))

    def save_Array(self, a):
        storage = a.storage if isinstance(a.storage, Call) else Call(Global('torch.storage', '_load_from_bytes'), legacy_stream(a.x) if a.storage is None else a.storage)
        tensor = Call(Global('torch._utils', '_rebuild_tensor_v2'), storage, a.offset, a.size, a.stride, False, ordered())
        self.save(Call(Global('torch._utils', '_rebuild_parameter'), tensor, False, ordered()) if a.parameter else tensor)

    def done(self, obj):
        self.out += bytes([0x80, self.protocol])
        self.save(obj)
        self.emit(b'.')
        self.commit()
        return bytes(self.out)


STORAGES = {'float32': 'FloatStorage', 'float64': 'DoubleStorage', 'float16': 'HalfStorage', 'int64': 'LongStorage'}


def legacy_stream(x, numel=None, kind=None, location='cpu', payload=None):
    "torch.save of one storage in the format without zip: four small pickles and a list of keys, then a count and the numbers."
    key, n = '94871266', x.size if numel is None else numel
    word = lambda s: b'X' + struct.pack('<I', len(s)) + s.encode()
    count = b'J' + struct.pack('<i', n) if abs(n) < 2**31 else b'\x8a\x09' + n.to_bytes(9, 'little', signed=True)
    magic = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'
    version = b'\x80\x02M\xe9\x03.'
    system = (b'\x80\x02}q\x00(' + word('protocol_version') + b'q\x01M\xe9\x03' + word('little_endian') + b'q\x02\x88' + word('type_sizes') + b'q\x03}q\x04('
              + word('short') + b'q\x05K\x02' + word('int') + b'q\x06K\x04' + word('long') + b'q\x07K\x04uu.')
    kind = kind or STORAGES[x.dtype.name]
    obj = b'\x80\x02(' + word('storage') + b'q\x00ctorch\n' + kind.encode() + b'\nq\x01' + word(key) + b'q\x02' + word(location) + b'q\x03' + count + b'Ntq\x04Q.'
    keys = b'\x80\x02]q\x00' + word(key) + b'q\x01a.'
    return magic + version + system + (payload or obj) + keys + struct.pack('<q', n) + x.tobytes()


# ---------------------------------------------------------------- what stands in the pickle

def ordered(d=None): return Call(Global('collections', 'OrderedDict'), items=d or {})
def easy(d): return Instance(Global('dnnlib.util', 'EasyDict'), items={k: easy(v) if isinstance(v, dict) else v for k, v in d.items()})


HOOKS = ('_backward_hooks', '_forward_hooks', '_forward_pre_hooks', '_state_dict_hooks', '_load_state_dict_pre_hooks')
BUFFERS = {'resample_filter', 'noise_const', 'w_avg', 'dataset_label_std', 'dense_faces', 'faces', 'raw_uvcoords', 'uvcoords', 'uvfaces', 'face_uvcoords'}
SOURCES = {}


def source(name):
    "A module's text; if anybody runs it, that leaves a trace."
    text = f'"""Stands for training/{name}.py."""\nimport os\nopen(os.environ["HEADNB_TRACE"], "w").write("the source of {name} was executed")\n' + '# '*2000
    return SOURCES.setdefault(name, text)


def module_state(params=None, buffers=None, children=None, **attributes):
    "The instance dict of an nn.Module."
    return {'training': False, '_parameters': ordered({k: Array(v, True) for k, v in (params or {}).items()}), '_buffers': ordered({k: Array(v) for k, v in (buffers or {}).items()}),
            '_non_persistent_buffers_set': set(), **{h: ordered() for h in HOOKS}, '_modules': ordered(children), **attributes}


def persistent(class_name, state, file, prefix='', args=(), kwargs=None):
    "An object that carries the source of its class."
    state = state | {'_init_args': args, '_init_kwargs': easy(kwargs or {})}
    meta = {'type': 'class', 'version': 6, 'module_src': source(file), 'class_name': class_name, 'state': state}
    return Call(Global(f'{prefix}torch_utils.persistence', '_reconstruct_persistent_obj'), meta)


def plain(module, name, state, prefix=''): return Instance(Global(prefix + module, name), state)


LAYERS = [(r'fc\d?|embed|affine|out|[02]', 'FullyConnectedLayer'), (r'torgb', 'ToRGBLayer'), (r's?b4', 'SynthesisBlock'), (r's?b\d+', 'SynthesisBlock'), (r'block[01]', 'SynthesisBlock'),
          (r'conv[01]?|fromrgb|skip', 'SynthesisLayer'), (r'synthesis|bcg_synthesis', 'SynthesisNetwork'), (r'mapping|t_mapping', 'MappingNetwork'), (r'backbone', 'Generator')]


def layer(name, state, prefix=''):
    "The object of one name of the tree: persistent for networks and layers, by class reference for the rest."
    if name == 'decoder': return plain('training.triplane', 'OSGDecoder', state, prefix)
    if name == 'net': return plain('torch.nn.modules.container', 'Sequential', state)
    cls = next((c for p, c in LAYERS if re.fullmatch(p, name)), name)
    return persistent(cls, state | {'weight_gain': Scalar(0.125), 'act_gain': Scalar(2**.5)} if cls.endswith('Layer') else state, 'superresolution' if name == 'superresolution' else 'networks_stylegan2', prefix)


def tree(table, name='', prefix='', make=layer, **attributes):
    "Nested objects of a flat state dict (released names, released order)."
    here, below = {}, {}
    for key, x in table.items():
        head, _, rest = key.partition('.')
        if rest: below.setdefault(head, {})[rest] = x
        else: here[head] = x
    children = {k: tree(v, k, prefix, make) for k, v in below.items()}
    if name == 'net': children = {'0': children['0'], '1': plain('torch.nn.modules.activation', 'Softplus', module_state(beta=1, threshold=20)), '2': children['2']}
    own = module_state({k: v for k, v in here.items() if k not in BUFFERS}, {k: v for k, v in here.items() if k in BUFFERS}, children, **attributes)
    return make(name, own, prefix) if name else own


EG3D_AXES = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]]


def renderer(axes=None, prefix='', persist=False):
    marcher, where = module_state(), 'training.volumetric_rendering'
    cls = persistent if persist else None
    inner = cls('MipRayMarcher2', marcher, 'ray_marcher', prefix) if cls else plain(f'{where}.ray_marcher', 'MipRayMarcher2', marcher, prefix)
    state = module_state(children={'ray_marcher': inner}, plane_axes=Array(np.array(EG3D_AXES if axes is None else axes, np.float32)))
    return cls('ImportanceRenderer', state, 'renderer', prefix) if cls else plain(f'{where}.renderer', 'ImportanceRenderer', state, prefix)


def generator(table,             # dict released key -> array, in the released order
              constructor,       # constructor arguments
              raw_size=64,       # attribute neural_rendering_resolution; None: the attribute is missing
              rendering=None,    # attribute rendering_kwargs, where it differs from the constructor's
              axes=None,         # attribute plane_axes of the renderer
              prefix='',         # package of a fork, with its dot
              positional=(),     # constructor arguments given without a name
              persist=False,     # the renderer carries its source (PanoHead)
              **attributes):
    state = tree(table, prefix=prefix)
    children = {'renderer': renderer(axes, prefix, persist), 'ray_sampler': plain('training.volumetric_rendering.ray_sampler', 'RaySampler', module_state(), prefix)}
    state['_modules'] = ordered(children | state['_modules'].items)
    extra = {'z_dim': constructor.get('z_dim'), 'c_dim': constructor.get('c_dim'), 'rendering_kwargs': easy(constructor['rendering_kwargs'] if rendering is None else rendering), '_last_planes': None}
    if raw_size is not None: extra['neural_rendering_resolution'] = raw_size
    args = tuple(constructor[k] for k in positional)
    return persistent('TriPlaneGenerator', state | extra | attributes, 'triplane', prefix, args, {k: v for k, v in constructor.items() if k not in positional})


def discriminator(table, constructor, prefix=''): # constructor: with class_name
    kwargs = {k: v for k, v in constructor.items() if k != 'class_name'}
    return persistent(constructor['class_name'].split('.')[-1], tree(table, prefix=prefix), 'dual_discriminator', prefix, (), kwargs)


def checkpoint(G=None, D=None, G_ema=None, training_set=True, augment_pipe=None, **extra):
    "The dict of a released file; what is None here is left out."
    data = {'training_set_kwargs': easy({'class_name': 'training.dataset.ImageFolderDataset', 'path': 'FFHQ_512.zip', 'use_labels': True, 'max_size': 139914, 'xflip': False, 'resolution': 512})} if training_set else {}
    data |= {k: v for k, v in (('G', G), ('D', D), ('G_ema', G_ema)) if v is not None}
    return data | {'augment_pipe': augment_pipe} | extra


def dump(data, protocol=4, **kw): return Pickle(protocol, **kw).done(data)
