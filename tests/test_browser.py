"""The orbit viewer in real JupyterLab, in a real browser: sliders move the head, the saved file stays small and keeps a picture.

Needs Debian's `chromium` and the Python package `playwright`; run by `make test-all`. `HEADNB_SHOTS=folder` keeps the screenshots.
"""
import importlib.util, json, os, re, secrets, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat, pytest

CHROMIUM = shutil.which('chromium')
pytestmark = [pytest.mark.browser, pytest.mark.slow,
              pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH (Debian: apt-get install chromium)'),
              pytest.mark.skipif(importlib.util.find_spec('playwright') is None, reason='the Python package playwright is not installed')]
ROOT = Path(__file__).resolve().parents[1]
FLAGS = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']


def notebook(path):
    "The toy scene of the show notebook, its viewer, and a mesh."
    cells = [c.source for c in nbformat.read(ROOT/'nbs/0_base/02_show.ipynb', 4).cells if c.cell_type == 'code']
    toy = [c for c in cells if 'def toy' in c]
    assert len(toy) == 2, 'the show notebook has lost its toy scene'
    head = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport torch, torch.nn.functional as F, trimesh\nimport time\nfrom headnb.base.show import orbit_viewer, show_mesh\nfrom headnb.base.camera import rays"
    code = [head, *toy, 'def slow(c, seed, psi): time.sleep(.4); return toy(c, seed, psi)\nviewer = orbit_viewer(slow, seed=3)\nviewer', 'show_mesh(trimesh.creation.icosphere(3, .2))', "print('all', 'done')"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in code])
    nb.metadata = {'kernelspec': dict(display_name='python3', language='python', name='python3')}
    nbformat.write(nb, path)


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "(address of the notebook in a running JupyterLab, path of the file)."
    work = tmp_path_factory.mktemp('lab')
    notebook(work/'viewer.ipynb')
    (work/'config/labconfig').mkdir(parents=True)
    (work/'config/labconfig/default_setting_overrides.json').write_text(json.dumps({'@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False)}))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    token = secrets.token_hex(16)
    env = {**os.environ, **{f'{k}_DIR': str(work/'config'/k) for k in ('JUPYTERLAB_SETTINGS', 'JUPYTERLAB_WORKSPACES', 'JUPYTER_RUNTIME')}, 'JUPYTER_CONFIG_DIR': str(work/'config'), 'OMP_NUM_THREADS': '2'}
    env.pop('HEADNB_INTERACTIVE', None)
    args = ['--no-browser', '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={work}', *(['--allow-root'] if os.geteuid() == 0 else [])]
    with open(work/'lab.log', 'wb') as log: server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *args], env=env, stdout=log, stderr=log)
    try:
        for _ in range(120):
            assert server.poll() is None, (work/'lab.log').read_text()[-2000:]
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token={token}', timeout=2); break
            except OSError: time.sleep(.5)
        yield f'http://127.0.0.1:{port}/lab/tree/viewer.ipynb?token={token}', work/'viewer.ipynb'
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope='module')
def page(lab, tmp_path_factory):
    "The notebook, opened and run."
    import playwright.sync_api as sync
    with sync.sync_playwright() as p:
        flags = FLAGS + (['--no-sandbox'] if os.geteuid() == 0 else [])
        context = p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp('chromium')), executable_path=CHROMIUM, headless=True, args=flags, viewport=dict(width=1100, height=1300))
        page = context.pages[0]
        page.goto(lab[0])
        page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=60_000)
        for _ in range(20):       # "run all" is dropped while the kernel starts, silently or with a dialog
            for button in page.locator('dialog.jp-Dialog button.jp-mod-accept').all(): button.click()
            page.click('text="Run"'); page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
            try: page.wait_for_selector('text="all done"', timeout=20_000); break
            except sync.TimeoutError: continue
        yield page
        context.close()


def shot(page, name):
    "Keep a screenshot if somebody wants to look."
    if folder := os.environ.get('HEADNB_SHOTS'): page.screenshot(path=str(Path(folder)/f'{name}.png'))


def test_slider_turns_the_head(page):
    image, note = page.locator('.widget-image'), page.locator('.widget-vbox .widget-html')
    image.wait_for(timeout=30_000)
    before = image.get_attribute('src')
    shot(page, 'viewer_before')
    handle = page.locator('.noUi-handle').first
    handle.focus()
    for _ in range(40): page.keyboard.press('ArrowRight')
    page.wait_for_function("old => document.querySelector('.widget-image').src !== old", arg=before, timeout=30_000)
    page.wait_for_function("() => document.querySelector('.widget-readout').textContent.startsWith('0.8')", timeout=30_000)
    settled = "() => /\\d+ x \\d+, \\d+ ms/.test(document.querySelector('.widget-vbox').innerText)"
    page.wait_for_function(settled, timeout=30_000)
    text, quiet = '', 0
    while quiet < 4: quiet, text = (quiet + 1 if note.inner_text() == text else 0), note.inner_text(); time.sleep(.5)
    print(text)
    assert text.startswith('yaw 46°'), 'the picture is not that of the last slider position'
    assert int(re.search(r'(\d+) overtaken', text)[1]) > 0, 'every slider event was rendered: a queue'
    shot(page, 'viewer_after')


def test_views_switch(page):
    image = page.locator('.widget-image')
    for name in ('depth', 'mask', 'raw', 'image'):
        before = image.get_attribute('src')
        page.click(f'.widget-toggle-button:has-text("{name}")')
        page.wait_for_function("old => document.querySelector('.widget-image').src !== old", arg=before, timeout=20_000)
        if name == 'depth': shot(page, 'viewer_depth')


def test_mesh_turns(page):
    page.wait_for_selector('.js-plotly-plot', timeout=60_000)
    page.locator('.js-plotly-plot').scroll_into_view_if_needed()
    time.sleep(2)
    shot(page, 'mesh')


def test_saved_file_is_small_and_keeps_pictures(page, lab):
    stamp = lab[1].stat().st_mtime
    page.keyboard.press('Escape'); page.click('text="File"'); page.click('.lm-Menu-itemLabel:text-is("Save Notebook")')
    for _ in range(60):
        if lab[1].stat().st_mtime > stamp: break
        time.sleep(.5)
    nb = nbformat.read(lab[1], 4)
    kinds = [set(o.get('data', {})) for c in nb.cells for o in c.get('outputs', [])]
    assert sum('image/png' in k for k in kinds) == 2, kinds
    assert not any('application/vnd.plotly.v1+json' in k for k in kinds)
    assert lab[1].stat().st_size < 300_000, lab[1].stat().st_size
