"""JupyterLab and Voila on loopback with a study of seconds, and Chromium before them.

Requests to anywhere but loopback are refused and remembered; so are errors on the console.
"""

import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import ROOT
from fedser_utils.federated import server_app
from fedser_utils.federated.deployment.processes import free_port

FILM = os.environ.get("FEDSER_FILM")  # a finished demo study: `make pictures` draws the pages of it
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(os.environ.get("FEDSER_PICTURES", ROOT / "outputs" / "browser"))
NOTEBOOKS = ROOT / "notebooks"


def pytest_collection_modifyitems(items):
    try:
        import playwright  # noqa: F401
    except ImportError:
        missing = "playwright is not installed"
    else:
        missing = None if CHROMIUM else "there is no chromium; make test-browser installs it"
    for item in items:
        if missing and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A folder of runs: two models that recognise a little; or a copy of the study to be filmed."""
    if FILM:
        outputs = tmp_path_factory.mktemp("browser") / "outputs"
        return shutil.copytree(FILM, outputs)
    outputs = tmp_path_factory.mktemp("browser") / "outputs"
    small = {"outputs": str(outputs), "rounds": 4, "local_epochs": 6, "eval_every": 2}
    for attack in ("none", "fgsm"):
        server_app.train(load_settings("smoke", attack=attack, clips=126, **small))
    return outputs


@pytest.fixture(scope="session")
def folder(study):
    """The notebooks, set to the study: as a user edits their parameters."""
    folder = study.parent / "notebooks"
    folder.mkdir()
    for path in NOTEBOOKS.glob("*.ipynb"):
        lines = [f'preset: str = "{"demo" if FILM else "smoke"}"', 'outputs: str = "../outputs"']
        if path.stem == "02_fl_advtrain":  # a run that is still to be trained
            lines += ['attack: str = "pgd"', "rounds: int = 8", "eval_every: int = 2"]
        if path.stem == "03_attacks":
            lines += ["epsilons: list[float] = [0.05]"]  # to be quick
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", ()):
                cell["source"] = "\n".join(["".join(cell["source"]), *lines])
        (folder / path.name).write_text(json.dumps(notebook))
    return folder


@contextmanager
def served(command, address, folder, log, **own):
    """A server on loopback, until it answers; ended by its own pid."""
    own |= {name: str(log.parent / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR",
           "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}  # fmt: skip
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=file, env=os.environ | own | {"PATH": search}
        )
    try:
        end = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"no answer:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.3)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="session")
def lab(folder):
    """The address of a notebook in JupyterLab, by its name. JupyterLab is told not to look for news
    and updates, which it would ask about."""
    path = folder.parent / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "apputils-extension"
    path.mkdir(parents=True)
    asked = {"fetchNews": "false", "checkForUpdates": False}
    (path / "notification.jupyterlab-settings").write_text(json.dumps(asked))
    port, token = free_port(), secrets.token_hex(8)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip", "127.0.0.1"]
    command += ["--port", str(port), f"--IdentityProvider.token={token}", "--allow-root"]
    command += [f"--ServerApp.root_dir={folder}"]
    address = f"http://127.0.0.1:{port}"
    with served(command, f"{address}/api?token={token}", folder, folder.parent / "lab.log"):
        yield lambda name: f"{address}/lab/tree/{name}.ipynb?token={token}&reset"


@pytest.fixture(scope="session")
def dashboard(study, folder):
    """The address of the dashboard that Voila serves."""
    port, token, voila = free_port(), secrets.token_hex(8), ROOT / "deploy" / "voila"
    command = [str(Path(sys.executable).parent / "voila"), str(folder / "08_dashboard.ipynb")]
    command += [f"--Voila.token={token}", "--port", str(port)]
    address, log = f"http://127.0.0.1:{port}/?token={token}", folder.parent / "voila.log"
    with served(command, address, voila, log, JUPYTER_PATH=str(voila)):
        yield address


@pytest.fixture(scope="module")
def browser():
    """Chromium. Playwright keeps an event loop in this thread, which others must not find."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as made:
        browser = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page did that it should not do."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser):
    """A function that opens a page of 1280 x 900, and what was wrong with all of them."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    watch = Watch()

    def guard(route):
        if re.match(r"(https?|wss?)://127\.0\.0\.1[:/]", route.request.url):
            route.continue_()
        else:
            watch.outside.append(route.request.url)
            route.abort()

    context.route("**/*", guard)

    def open_page(address):
        page = context.new_page()
        page.on("console", lambda m: watch.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: watch.errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page, watch
    PICTURES.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(context.pages):
        page.screenshot(path=PICTURES / f"end-{number}.png")
    context.close()


@pytest.fixture
def shot(study):
    """Saves a screenshot in PICTURES, once it is sure that the page names no temporary folder."""
    PICTURES.mkdir(parents=True, exist_ok=True)

    def take(page, name):
        assert str(study.parent) not in page.locator("body").inner_text()
        page.screenshot(path=PICTURES / f"{name}.png")

    return take


@pytest.fixture
def film():
    """Takes what the page shows for so many seconds of the README's animation, if it is made."""
    frames = []

    def roll(page, seconds):
        if FILM:
            frames.append((Image.open(io.BytesIO(page.screenshot())).convert("RGB"), seconds))

    yield roll
    if frames:
        small = [picture.crop((290, 90, 1240, 880)).resize((760, 632)) for picture, _ in frames]
        small[0].save(
            PICTURES / "explorer.webp", save_all=True, append_images=small[1:], loop=0,
            duration=[int(1000 * seconds) for _, seconds in frames], quality=60, method=6,
        )  # fmt: skip
