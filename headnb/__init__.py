"""headnb: a Jupyter-first literate research library for 3D head generators. Names below are imported when first used."""
__version__ = "0.1.0"

_LAZY = {'open_generator': 'headnb.gan.checkpoint', 'open_official': 'headnb.open', 'align': 'headnb.align', 'orbit': 'headnb.base.camera', 'show_images': 'headnb.base.show', 'orbit_viewer': 'headnb.base.show', 'viewer': 'headnb.view',
         'HeadDataset': 'headnb.gan.data', 'extract_mesh': 'headnb.gan.export', 'BadInput': 'headnb.base.core'}   # public name -> module that defines it


def __getattr__(name):
    if name not in _LAZY: raise AttributeError(f"module 'headnb' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(_LAZY[name]), name)


def __dir__(): return sorted([*globals(), *_LAZY])
