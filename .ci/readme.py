"""README.md from nbs/index.ipynb: the same text, its pictures as files below nbs/index_files/."""
import re
from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent


def render():
    "(text of README.md, {file name: bytes})"
    config = Config({'TagRemovePreprocessor': {'enabled': True, 'remove_input_tags': ('hide-input',), 'remove_cell_tags': ('remove-cell',)}})
    text, res = MarkdownExporter(config=config).from_filename(str(ROOT/'nbs'/'index.ipynb'), {'output_files_dir': 'nbs/index_files', 'unique_key': 'index'})
    text = re.sub(r'^#\|.*\n', '', text, flags=re.M)
    text = re.sub(r'\]\((?!http|#|nbs/|\.\./)([^)]+\.ipynb)', r'](nbs/\1', text).replace('](../', '](')
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return '<!-- made from nbs/index.ipynb by `make export`; edit that -->\n\n' + text, res['outputs']


def main():
    text, files = render()
    (ROOT/'README.md').write_text(text)
    folder = ROOT/'nbs'/'index_files'
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*'): old.unlink()
    for name, data in files.items(): (ROOT/name).write_bytes(data)


if __name__ == '__main__': main()
