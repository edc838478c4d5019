"""The viewers in a real browser: in JupyterLab a toy scene and the shipped `eg3d-mini`, and the page of `python -m headnb.view`. Sliders and mouse turn the head, the saved file stays small and keeps a picture.

Needs Debian's `chromium` and the Python package `playwright`; run by `make test-all`. `HEADNB_SHOTS=folder` keeps the screenshots.
"""
import importlib.util, io, json, os, re, secrets, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat, numpy as np, pytest
from PIL import Image

CHROMIUM = shutil.which('chromium')
pytestmark = [pytest.mark.browser, pytest.mark.slow,
              pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH (Debian: apt-get install chromium)'),
              pytest.mark.skipif(importlib.util.find_spec('playwright') is None, reason='the Python package playwright is not installed')]
ROOT = Path(__file__).resolve().parents[1]
FLAGS = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']


def source(nb, what):
    "The code cells of a notebook that contain a text."
    cells = [c.source for c in nbformat.read(ROOT/'nbs'/nb, 4).cells if c.cell_type == 'code']
    return [c for c in cells if what in c]


def write(path, code):
    "A notebook that ends by saying so."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in [f'import sys; sys.path.insert(0, {str(ROOT)!r})', *code, "print('all', 'done')"]])
    nb.metadata = {'kernelspec': dict(display_name='python3', language='python', name='python3')}
    nbformat.write(nb, path)


def toy(path):
    "The toy scene of the show notebook, its viewer, and a mesh."
    cells = source('0_base/02_show.ipynb', 'def toy')
    assert len(cells) == 2, 'the show notebook has lost its toy scene'
    head = 'import torch, torch.nn.functional as F, trimesh\nimport time\nfrom headnb.base.show import orbit_viewer, show_mesh\nfrom headnb.base.camera import rays'
    write(path, [head, *cells, 'def slow(c, seed, psi):\n    with open("drawn", "a") as f: f.write(".")\n    time.sleep(1); return toy(c, seed, psi)\nviewer = orbit_viewer(slow, seed=3)\nviewer', 'show_mesh(trimesh.creation.icosphere(3, .2))'])


def mini(path):
    "The viewer of the view notebook."
    cell, = source('6_tools/62_view.ipynb', "v = viewer('eg3d-mini'")
    write(path, ['from headnb.view import viewer', cell])


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "(name of a notebook -> its address in a running JupyterLab, folder of the files)."
    work = tmp_path_factory.mktemp('lab')
    toy(work/'toy.ipynb')
    mini(work/'mini.ipynb')
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
        yield lambda name: f'http://127.0.0.1:{port}/lab/workspaces/{name}/tree/{name}.ipynb?token={token}', work
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    "A fresh chromium."
    import playwright.sync_api as sync
    with sync.sync_playwright() as p:
        flags = FLAGS + (['--no-sandbox'] if os.geteuid() == 0 else [])
        context = p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp('chromium')), executable_path=CHROMIUM, headless=True, args=flags, viewport=dict(width=1100, height=1300))
        context.set_default_timeout(60_000)
        yield context
        context.close()


def run_all(page, address):
    "A notebook, opened and run."
    from playwright.sync_api import TimeoutError
    page.goto(address)
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    for _ in range(20):       # "run all" is dropped while the kernel starts, silently or with a dialog
        try:
            for button in page.locator('dialog.jp-Dialog button.jp-mod-accept').all(): button.click(timeout=5_000)
            page.click('text="Run"', timeout=5_000); page.click('.lm-Menu-itemLabel:text-is("Run All Cells")', timeout=5_000)
            page.wait_for_selector('text="all done"', timeout=40_000)
            break
        except TimeoutError: page.keyboard.press('Escape')
    page.locator('.widget-image').wait_for()
    return page


@pytest.fixture(scope='module')
def page(lab, browser):
    "The toy scene, run."
    page = run_all(browser.pages[0], lab[0]('toy'))
    yield page
    page.close()


@pytest.fixture(scope='module')
def head(lab, browser):
    "The viewer of the shipped model, run."
    page = run_all(browser.new_page(), lab[0]('mini'))
    yield page
    page.close()


def shot(page, name):
    "Keep a screenshot if somebody wants to look."
    if folder := os.environ.get('HEADNB_SHOTS'): page.screenshot(path=str(Path(folder)/f'{name}.png'))


def changed(page, old):
    "Wait until the viewer shows another picture."
    page.wait_for_function("old => document.querySelector('.widget-image').src !== old", arg=old)


def turned(page):
    "Forty steps of the yaw slider, then what the viewer says when it rests."
    image, note = page.locator('.widget-image'), page.locator('.widget-vbox .widget-html').last
    before = image.get_attribute('src')
    handle = page.locator('.noUi-handle').first
    start = round(float(page.locator('.widget-readout').first.inner_text()), 2)
    handle.focus()
    for _ in range(40): page.keyboard.press('ArrowRight')
    changed(page, before)
    page.wait_for_function("end => Math.abs(parseFloat(document.querySelector('.widget-readout').textContent) - end) < .011", arg=start + .8)
    page.wait_for_function("() => /\\d+ x \\d+, \\d+ ms/.test(document.querySelector('.widget-vbox').innerText)")
    text, quiet = '', 0
    while quiet < 4: quiet, text = (quiet + 1 if note.inner_text() == text else 0), note.inner_text(); time.sleep(.5)
    print(text)
    return text


def test_slider_turns_the_head(page, lab):
    shot(page, 'viewer_before')
    drawn = lambda: len((lab[1]/'drawn').read_text())
    before = drawn()
    text = turned(page)
    assert text.startswith('yaw 46°'), 'the picture is not that of the last slider position'
    assert 0 < drawn() - before < 10, 'every slider event was rendered: a queue'       # of forty; the others are skipped in the browser or by the viewer
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
    file = lab[1]/'toy.ipynb'
    stamp = file.stat().st_mtime
    page.keyboard.press('Escape'); page.click('text="File"'); page.click('.lm-Menu-itemLabel:text-is("Save Notebook")')
    for _ in range(60):
        if file.stat().st_mtime > stamp: break
        time.sleep(.5)
    nb = nbformat.read(file, 4)
    kinds = [set(o.get('data', {})) for c in nb.cells for o in c.get('outputs', [])]
    assert sum('image/png' in k for k in kinds) == 2, kinds
    assert not any('application/vnd.plotly.v1+json' in k for k in kinds)
    assert file.stat().st_size < 300_000, file.stat().st_size


def test_mini_turns(head):
    "The viewer of 62_view, on the model that ships: yaw 0.5 and forty steps."
    shot(head, 'mini_before')
    assert turned(head).startswith('yaw 74°')
    shot(head, 'mini_after')


def test_mini_shows_all_views_and_walks(head):
    image = head.locator('.widget-image')
    for name in ('raw', 'depth', 'normals', 'gradient', 'mask', 'planes', 'slices', 'image'):
        before = image.get_attribute('src')
        head.click(f'.widget-toggle-button:text-is("{name}")')
        changed(head, before)
        if name == 'normals': shot(head, 'mini_normals')
    before = image.get_attribute('src')
    head.click('text="walk"')                                    # the fold that holds the slider and its button
    head.click('.widget-play button >> nth=0')
    changed(head, before)
    shot(head, 'mini_walk')


@pytest.fixture(scope='module')
def served():
    "Address of `python -m headnb.view eg3d-mini`."
    pytest.importorskip('viser')
    server = subprocess.Popen([sys.executable, '-m', 'headnb.view', 'eg3d-mini', '--port', '0'], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try: yield next(m[1] for line in server.stdout if (m := re.search(r'eg3d-mini: (http://127\.0\.0\.1:\d+)', line)))
    finally:
        server.terminate()
        server.wait(20)


def canvas(page):
    "The pixels below the notices and left of the controls, when they no longer change."
    clip, before = dict(x=150, y=170, width=480, height=420), None
    for _ in range(60):
        now = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert('RGB')).astype(int)
        if before is not None and np.abs(now - before).max() < 8 and 'at rest' in page.inner_text('body'): return now
        before = now
        time.sleep(1)
    raise AssertionError('the page never comes to rest')


def test_page_in_a_browser(browser, served):
    "Mouse, sliders and views of headnb.view; nothing is fetched from elsewhere."
    page, asked, rates = browser.new_page(), [], []
    page.set_viewport_size(dict(width=1000, height=640))
    page.on('request', lambda r: asked.append(r.url)); page.on('websocket', lambda w: asked.append(w.url))
    page.goto(served)
    page.wait_for_selector('text=/\\d+ pixels/')
    first = canvas(page)
    assert first.std() > 20, 'an empty page'
    shot(page, 'page_before')
    page.mouse.move(350, 400); page.mouse.down()
    for k in range(12):
        page.mouse.move(350 + 15*k, 400)
        rates += re.findall(r'moving, ([\d.]+) frames', page.inner_text('body'))
    page.mouse.up()
    print('frames/s while dragging, chromium drawing in software beside it:', rates)
    second = canvas(page)
    assert np.abs(second - first).mean() > 5, 'dragging the camera does not turn the head'
    shot(page, 'page_dragged')
    page.locator('[role=slider]').first.focus()
    for _ in range(5): page.keyboard.press('ArrowRight')
    third = canvas(page)
    assert np.abs(third - second).mean() > 2, 'another seed looks the same'
    page.locator('input[role=combobox][value=image]').click()
    page.click('[role=option]:has-text("normals")')
    assert np.abs(canvas(page) - third).mean() > 10, 'another view looks the same'
    shot(page, 'page_normals')
    assert asked and all(re.match(r'(http|ws|blob:http)://127\.0\.0\.1|data:', u) for u in asked), asked
    page.close()
