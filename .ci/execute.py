"""Execute notebooks in place, clean and export them: `python .ci/execute.py nbs/0_base/00_core.ipynb ...` (none named: all)."""
import os, re, sys, tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parent.parent
TEMPORARY = re.compile(re.escape(tempfile.gettempdir()) + r'/tmp\w{8}')
os.environ['HEADNB_QUIET'] = '1'      # progress bars would leave their widget state in the file


def anywhere(nb):
    "Printed paths of temporary folders say nothing, and differ each time: TMP."
    for out in (o for cell in nb.cells for o in cell.get('outputs', ())):
        for where, key in ((out, 'text'), (out.get('data', {}), 'text/plain')):
            if key in where: where[key] = TEMPORARY.sub('TMP', where[key])


for p in [Path(a).resolve() for a in sys.argv[1:]] or sorted((ROOT/'nbs').rglob('[0-9i]*.ipynb')):
    nb = nbformat.read(p, 4)
    nb_export(p, lib_path=ROOT/'headnb')
    NotebookClient(nb, timeout=3600, kernel_name='python3', resources={'metadata': {'path': str(p.parent)}}).execute()
    nb.metadata.pop('widgets', None)
    anywhere(nb)
    nbformat.write(nb, p)
    nbdev_clean(p)
    print('executed', p.relative_to(ROOT))
