"""The widgets in a real Chromium: run the chapter in JupyterLab, move a slider, see the picture change.

nbval runs no widget callback, so only these tests see what a learner sees. Screenshots are kept in
`build/screenshots/`. Without a browser they are skipped with the reason; where CI is set they fail instead.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.rig.doctor import find_browser

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "build" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

PLAYGROUNDS = [
    ("02_pipelining", "pipelining"),
    ("05_rate_limiter", "limiter"),
]

# What the page is asked; `jupyterapp` is there because the server is started with expose_app_in_browser.
READY = """() => {
  const session = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session;
  return session?.kernel?.status === 'idle' && session.kernel.connectionStatus === 'connected';
}"""
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
STATE = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
  const state = {left: 0, errors: []};
  for (let i = 0; i < cells.length; i++) {
    const cell = cells.get(i);
    if (cell.type !== 'code' || !cell.sharedModel.source.trim()) continue;
    if (cell.executionCount === null || cell.executionState === 'running') state.left += 1;
    const tags = cell.getMetadata('tags') || [];
    for (const output of cell.outputs.toJSON())
      if (output.output_type === 'error' && !tags.includes('raises-exception'))
        state.errors.push(`${output.ename}: ${output.evalue}`);
  }
  return state;
}"""
CLEAR = "() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')"
FIND = """async (name) => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  const cells = Array.from(notebook.model.cells);
  const at = cells.findIndex(c => c.type === 'code' && c.sharedModel.source.includes(`widgets.${name}(`));
  for (let tries = 0; at >= 0 && tries < 100; tries++) {
    await notebook.scrollToItem(at, 'start');
    await new Promise(done => setTimeout(done, 200));
    const found = document.querySelector(`.labkit-${name} .labkit-picture`);
    if (found && found.naturalWidth) { found.scrollIntoView({block: 'center'}); return true; }
  }
  return false;
}"""
ASK_KERNEL = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({code, store_history: false});
  let text = '';
  future.onIOPub = message => { if (message.content.text) text += message.content.text; };
  await future.done;
  return text;
}"""
# With JupyterLab's own default a callback runs in a subshell's thread, and can draw into a cell's figure.
WATCH_THREADS = """
import gc, threading
from labkit.show.widgets import Playground
in_main_thread = []
for playground in [o for o in gc.get_objects() if isinstance(o, Playground)]:
    for control in playground.controls.values():
        control.observe(
            lambda _: in_main_thread.append(threading.current_thread() is threading.main_thread()), "value"
        )
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason, path = "no Chromium here: apt-get install chromium", find_browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason, path = "playwright is not installed: pip install playwright", None
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab as `uv run jupyter lab` starts it, on a copy of the notebooks; gives its address.

    Each chapter has a workspace of its own, or it would open beside the one before.
    """
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(8)
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        *(f"--{k}={v}" for k, v in options.items()),
    ]
    env = {**os.environ, "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "LABKIT_HOME": str(folder)}
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        await_answer(f"http://127.0.0.1:{port}/api?token={token}", server, folder / "lab.log")
        yield f"http://127.0.0.1:{port}/lab/workspaces/{{0}}/tree/notebooks/{{0}}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def await_answer(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text())


def open_and_run(page: Any, address: str, chapter: str) -> None:
    """Open a chapter, wait for its kernel, clear the stored outputs, run all cells to their end."""
    page.goto(address.format(chapter))
    page.wait_for_function(READY, timeout=60_000)
    page.evaluate(CLEAR)
    page.evaluate(RUN_ALL)
    deadline = time.monotonic() + 120
    while (state := page.evaluate(STATE))["left"]:
        assert state["errors"] == [], f"{chapter}: {state['errors']}"
        assert time.monotonic() < deadline, f"{chapter}: {state['left']} cells did not finish"
        page.wait_for_timeout(250)
    page.wait_for_function(READY, timeout=30_000)
    assert page.evaluate(STATE)["errors"] == []


def await_change(page: Any, picture: Any, before: bytes) -> None:
    """Until the picture differs, and the status line says that it is done."""
    for _ in range(300):
        page.wait_for_timeout(100)
        if picture.screenshot() != before:
            return
    pytest.fail("the picture did not change")


@pytest.mark.parametrize(("chapter", "name"), PLAYGROUNDS)
def test_a_playground_follows_the_keyboard(browser: Any, lab: str, chapter: str, name: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(30_000)
    open_and_run(page, lab, chapter)
    assert page.evaluate(FIND, name), f"no playground .labkit-{name} in {chapter}"
    box, status = page.locator(f".labkit-{name}"), page.locator(f".labkit-{name} .labkit-status")
    picture = page.locator(f".labkit-{name} .labkit-picture")
    page.wait_for_timeout(500)
    before = picture.screenshot()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    box.screenshot(path=SCREENSHOTS / f"{name}-before.png")
    assert status.inner_text().startswith("drawn:"), status.inner_text()
    told = status.inner_text()

    page.evaluate(ASK_KERNEL, WATCH_THREADS)
    slider = box.get_by_role("slider").first
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    await_change(page, picture, before)
    page.wait_for_function(
        "([selector, told]) => { const t = document.querySelector(selector).innerText;"
        " return t.startsWith('drawn:') && t !== told; }",
        arg=[f".labkit-{name} .labkit-status", told],
    )
    box.screenshot(path=SCREENSHOTS / f"{name}-after.png")
    page.screenshot(path=SCREENSHOTS / f"{name}-page.png")
    assert page.evaluate(ASK_KERNEL, "print(set(in_main_thread))").strip() == "{True}"
    page.close()
