"""Execute notebooks in place, clean and export them: `python .ci/execute.py nbs/0_base/00_core.ipynb ...` (none named: all)."""
import os, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parent.parent
os.environ['HEADNB_QUIET'] = '1'      # progress bars would leave their widget state in the file
for p in [Path(a).resolve() for a in sys.argv[1:]] or sorted((ROOT/'nbs').rglob('[0-9i]*.ipynb')):
    nb = nbformat.read(p, 4)
    nb_export(p, lib_path=ROOT/'headnb')
    NotebookClient(nb, timeout=3600, kernel_name='python3', resources={'metadata': {'path': str(p.parent)}}).execute()
    nb.metadata.pop('widgets', None)
    nbformat.write(nb, p)
    nbdev_clean(p)
    print('executed', p.relative_to(ROOT))
