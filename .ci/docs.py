"""Every notebook as HTML in _docs/, linked to each other, with an index."""
import html, json, re
from pathlib import Path

from nbconvert import HTMLExporter
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT/'_docs'


def title(p):
    "First heading of a notebook and the claim under it."
    text = ''.join(json.loads(p.read_text())['cells'][0]['source'])
    claim = re.search(r'^> (.*)$', text, re.M)
    return text.splitlines()[0].lstrip('# '), claim.group(1) if claim else ''


def main():
    nbs = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
    rows = []
    for p in tqdm(nbs, desc='notebooks to HTML'):
        rel = p.relative_to(ROOT/'nbs').with_suffix('.html')
        body, _ = HTMLExporter().from_filename(str(p))
        body = re.sub(r'(href="[^":#]+)\.ipynb', r'\1.html', body)
        (OUT/rel).parent.mkdir(parents=True, exist_ok=True)
        (OUT/rel).write_text(body)
        name, claim = title(p)
        rows.append(f'<li><a href="{rel}">{rel.parent}/{html.escape(name)}</a> <small>{html.escape(claim)}</small></li>')
    (OUT/'contents.html').write_text('<meta charset="utf-8"><title>headnb</title><h1>headnb: all notebooks</h1><ul>' + '\n'.join(rows) + '</ul>')
    print(f'{len(rows)} pages: open {OUT/"contents.html"}')


if __name__ == '__main__': main()
