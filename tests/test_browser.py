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

import nbformat
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
    ("cache", "cache"),
    ("05_rate_limiter", "limiter"),
]

SMALL = {
    "cache": """
from labkit.show import widgets

widgets.cache()
""",
    "scheduler": """
from labkit.rig.race import crash, expire, explore
from labkit.show import widgets

def naive(r):
    if r.set("lock", "taken", nx=True, px=9000):
        r.incr("inside")
        r.decr("inside")
        r.delete("lock")

def alone(r):
    if int(r.get("inside") or 0) > 1:
        raise AssertionError("two clients were inside at once")

widgets.Scheduler([naive, naive], always=alone, faults=[expire, crash])
""",
    "counterexample": """
from labkit.rig.race import explore
from labkit.show import widgets

def buy(r):
    if int(r.get("stock")) > 0:
        r.decr("stock")
        r.rpush("sold", "ticket")

found = explore([buy, buy], setup=lambda r: r.set("stock", 1), invariant=lambda r: r.llen("sold") <= 1)
widgets.Scheduler(found)
""",
    "redlock": """
from labkit.show import widgets

panel = widgets.RedlockPanel(ttl=60)  # longer than the test takes on a busy machine
panel
""",
    "sessions": """
from labkit.rig.server import Server
from labkit.session import SessionStore
from labkit.show import widgets

server = Server().start()
panel = widgets.SessionPanel(SessionStore(server.client(), ttl=40))
panel
""",
    "channels": """
from labkit.rig.server import Server
from labkit.show import widgets

server = Server().start()
panel = widgets.ChannelPanel(server.client())
panel
""",
    "consumers": """
from labkit.rig.server import Server
from labkit.show import widgets

server = Server().start()
panel = widgets.ConsumersPanel(server.client())
panel.crew.pause, panel.crew.idle = 0.2, 4  # work for 5 s: time to kill one, and to see it
panel
""",
    "board": """
from labkit.leaderboard import Leaderboard
from labkit.rig.server import Server
from labkit.show import widgets

server = Server().start()
board = Leaderboard(server.client(), "workbook:09:live")
live = widgets.LiveBoard(board)
live
""",
    "eviction": """
from labkit.show import eviction, widgets

eviction.STEPS = 6
caches = widgets.EvictionLab()
caches
""",
    "clustermap": """
from labkit.show import widgets

cluster = widgets.ClusterMap()
cluster
""",
}
"""Notebooks of one cell, beside the chapters: what a widget is tried with."""

KERNEL = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}

# What the page is asked; `jupyterapp` is there because the server is started with expose_app_in_browser.
LOADED = "() => window.jupyterapp?.shell?.currentWidget"
OPEN = """async ([path, shared]) => {
  const {shell, commands} = window.jupyterapp;
  const before = Array.from(shell.widgets('main'));
  await commands.execute('docmanager:open', {path, kernel: shared ? window.shared : undefined});
  for (const widget of before) widget.dispose();
}"""
SHARE = "() => { window.shared = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.model; }"
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


@pytest.fixture(scope="module")  # its event loop is not to run on beside the tests of other files
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab as `uv run jupyter lab` starts it, on a copy of the notebooks; gives its address."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for name, source in SMALL.items():
        cell = nbformat.v4.new_code_cell(source)  # type: ignore[no-untyped-call]
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata=KERNEL)  # type: ignore[no-untyped-call]
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")  # type: ignore[no-untyped-call]
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
        yield f"http://127.0.0.1:{port}/lab?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def test_the_address_without_a_path_leads_to_chapter_00(lab: str) -> None:
    """No browser is needed: whoever opens JupyterLab's own address is sent there."""
    with urllib.request.urlopen(lab.replace("/lab?", "/?"), timeout=30) as page:
        assert page.url.partition("?")[0].endswith("/lab/tree/notebooks/00_start_here.ipynb")


def await_answer(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
def page(browser: Any, lab: str) -> Iterator[Any]:
    """The one page of all tests, each of which opens its notebook in it: JupyterLab takes seconds to load."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(30_000)
    page.goto(lab)
    page.wait_for_function(LOADED, timeout=60_000)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    yield page
    page.close()


def open_and_run(page: Any, name: str, shared: bool = False) -> None:
    """Open a notebook in place of the one before, clear its stored outputs, run all cells to their end.

    Its kernel is a fresh one; or the one that was shared last, if one was.
    """
    page.evaluate(OPEN, [f"notebooks/{name}.ipynb", shared])
    page.wait_for_function(READY, timeout=60_000)
    page.evaluate(CLEAR)
    page.evaluate(RUN_ALL)
    deadline = time.monotonic() + 120
    while (state := page.evaluate(STATE))["left"]:
        assert state["errors"] == [], f"{name}: {state['errors']}"
        assert time.monotonic() < deadline, f"{name}: {state['left']} cells did not finish"
        page.wait_for_timeout(100)
    page.wait_for_function(READY, timeout=30_000)
    assert page.evaluate(STATE)["errors"] == []


# What Tab has come to: its place among all that is enabled, whether its frame is seen, and what it is called.
FOCUSED = """box => {
  const all = Array.from(box.querySelectorAll('button:enabled, select, input, .noUi-handle'));
  const one = document.activeElement, row = one.closest('.widget-inline-hbox');
  const label = row && row.querySelector('.widget-label');
  const frame = getComputedStyle(one).outlineStyle;
  const name = one.innerText || (label && label.innerText) || '';
  const told = one.title || (row && (row.title || label && label.title)) || '';
  const slider = one.classList.contains('noUi-handle');
  return {place: all.indexOf(one), of: all.length, frame, name, told, slider};
}"""


def walk(page: Any, box: Any) -> list[str]:
    """Go through a widget by Tab alone: it comes to each control in order; gives what they are called.

    Each has a name, a slider a description too, and what has the focus has a frame.
    """
    box.locator("button:enabled, select, input, .noUi-handle").first.focus()
    page.keyboard.press("Shift+Tab")
    names: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen = box.evaluate(FOCUSED)
        if seen["place"] < 0:
            continue
        assert seen["place"] == len(names), f"Tab goes from {names} to {seen}"
        assert seen["frame"] != "none", f"{seen}: its focus is not seen"
        assert seen["name"], f"{seen}: it has no name"
        assert seen["told"] or not seen["slider"], f"{seen}: nothing tells what it is"
        names.append(seen["name"])
        if len(names) == seen["of"]:
            return names
    pytest.fail(f"Tab comes to {names} alone, of {seen['of']} controls")


def await_change(page: Any, picture: Any, before: bytes) -> None:
    """Until the picture differs, and the status line says that it is done."""
    for _ in range(300):
        page.wait_for_timeout(100)
        if picture.screenshot() != before:
            return
    pytest.fail("the picture did not change")


@pytest.mark.parametrize(("chapter", "name"), PLAYGROUNDS)
def test_a_playground_follows_the_keyboard(page: Any, chapter: str, name: str) -> None:
    open_and_run(page, chapter)
    assert page.evaluate(FIND, name), f"no playground .labkit-{name} in {chapter}"
    box, status = page.locator(f".labkit-{name}"), page.locator(f".labkit-{name} .labkit-status")
    picture = page.locator(f".labkit-{name} .labkit-picture")
    page.wait_for_timeout(500)
    before = picture.screenshot()
    box.screenshot(path=SCREENSHOTS / f"{name}-before.png")
    assert status.inner_text().startswith("drawn:"), status.inner_text()
    told = status.inner_text()

    walk(page, box)
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
    if (choices := box.locator(".widget-toggle-button")).count():
        chosen = choices.nth(1)
        chosen.focus()
        page.keyboard.press("Enter")
        said = f"status => status.innerText.includes({chosen.inner_text()!r})"
        page.wait_for_function(said, arg=status.element_handle())


def small(page: Any, name: str) -> Any:
    """The widget of a small notebook, which has been run. They share a kernel: leave nothing behind there."""
    open_and_run(page, name, shared=True)
    page.evaluate(SHARE)
    box = page.locator(".jp-OutputArea .labkit-widget").first
    walk(page, box)
    return box


def type_on(page: Any, box: Any, css: str, key: str = "Enter") -> None:
    """Press a button of the widget by the keyboard, and wait until it has acted."""
    picture, status = box.locator(".labkit-picture"), box.locator(".labkit-status")
    look = "element => element.outerHTML"  # of an image, its new address
    before, said = picture.evaluate(look), status.inner_text()
    box.locator(f".labkit-{css}").focus()
    page.keyboard.press(key)
    for _ in range(200):
        page.wait_for_timeout(50)
        if status.inner_text() not in ("…", said) or picture.evaluate(look) != before:
            page.wait_for_function("status => status.innerText !== '…'", arg=status.element_handle())
            return
    pytest.fail(f"{css}: nothing has changed")


def test_the_naive_lock_is_broken_by_the_keyboard(page: Any) -> None:
    box = small(page, "scheduler")
    status = box.locator(".labkit-status")
    assert status.inner_text() == "whose turn is it? Choose the next step."
    box.screenshot(path=SCREENSHOTS / "scheduler-before.png")
    type_on(page, box, "move-A")
    assert box.locator(".labkit-move-A").inner_text() == "A · naive ▸ INCRBY inside 1"
    type_on(page, box, "move-A", " ")
    type_on(page, box, "expire-lock")
    assert box.locator(".labkit-expire-lock").is_disabled()
    type_on(page, box, "move-B")
    type_on(page, box, "crash-A")
    assert box.locator(".labkit-move-A").inner_text() == "A · naive has crashed"
    type_on(page, box, "undo")
    type_on(page, box, "move-B")
    assert status.inner_text() == "✗ two clients were inside at once"
    box.screenshot(path=SCREENSHOTS / "scheduler-after.png")
    page.screenshot(path=SCREENSHOTS / "scheduler-page.png")
    type_on(page, box, "restart")
    assert status.inner_text() == "whose turn is it? Choose the next step."


def test_a_counterexample_is_gone_along_and_left(page: Any) -> None:
    box = small(page, "counterexample")
    forward = box.locator(".labkit-forward")
    assert forward.inner_text() == "next step of the counterexample: A (1 of 6)"
    type_on(page, box, "forward")
    type_on(page, box, "move-A")
    assert forward.inner_text() == "back to the counterexample"
    while forward.is_enabled():
        type_on(page, box, "forward")
    assert box.locator(".labkit-status").inner_text() == "✗ the invariant does not hold"
    box.screenshot(path=SCREENSHOTS / "counterexample-after.png")


def test_redlock_works_without_two_servers_and_not_without_three(page: Any) -> None:
    box = small(page, "redlock")
    status, picture = box.locator(".labkit-status"), box.locator(".labkit-picture")
    assert status.inner_text() == "5 servers, of which 3 are a majority"

    def press(*buttons: str) -> str:
        for css in buttons:
            type_on(page, box, css)
        return str(status.inner_text())

    assert press("kill-1", "kill-2", "acquire-A").startswith("A has the lock: 3 of 5 said yes · A: ")
    page.wait_for_function("document.querySelector('.labkit-picture').naturalWidth > 1000")
    box.screenshot(path=SCREENSHOTS / "redlock-two-killed.png")
    assert press("release-A") == "A gave the lock back: 3 of 5 had it"
    assert press("freeze-3", "acquire-A") == "A does not get the lock: 2 of 5 said yes, 3 are needed"
    assert (
        press("freeze-3", "kill-3", "acquire-A") == "A does not get the lock: 2 of 5 said yes, 3 are needed"
    )
    assert box.locator(".labkit-kill-3").inner_text() == "revive S3"
    box.screenshot(path=SCREENSHOTS / "redlock-three-killed.png")
    assert press("kill-3", "acquire-A").startswith("A has the lock: 3 of 5 said yes")
    assert press("kill-1", "kill-2", "kill-3", "kill-3", "acquire-B").startswith("A and B both have the lock")
    assert picture.get_attribute("src")
    box.screenshot(path=SCREENSHOTS / "redlock-twice.png")
    page.screenshot(path=SCREENSHOTS / "redlock-page.png")
    page.evaluate(ASK_KERNEL, "panel.close()")


BARS = "rows => rows.map(row => Math.round(row.getBoundingClientRect().width))"
ENDED = """() => {
  const seen = row => getComputedStyle(row).opacity;
  const rows = Array.from(document.querySelectorAll('.labkit-sessions tbody tr'));
  return rows.length > 0 && rows.every(row => seen(row) < 0.5 && seen(row.querySelector('div > b')) == 1);
}"""


def test_sessions_are_seen_to_end_and_are_ended_by_the_keyboard(page: Any) -> None:
    box = small(page, "sessions")
    status, bars = box.locator(".labkit-status"), box.locator(".labkit-bar")
    assert status.inner_text() == "ada may log in"
    assert "ada is logged in nowhere" in box.locator(".labkit-picture").inner_text()

    def press(*buttons: str) -> str:
        for css in buttons:
            type_on(page, box, css)
        return str(status.inner_text())

    press("login-phone", "login-laptop")
    page.wait_for_timeout(500)  # so that the bars differ by some pixels
    assert press("login-tablet") == "tablet is logged in for 40 s"
    before = bars.evaluate_all(BARS)
    page.wait_for_timeout(1000)
    after = bars.evaluate_all(BARS)  # nobody has asked the kernel
    assert [now < then for now, then in zip(after, before, strict=True)] == [True] * 3
    seconds = box.locator(".labkit-left").first.evaluate(
        "left => getComputedStyle(left).getPropertyValue('--labkit-left')"
    )
    assert 5 < int(seconds) < 40
    box.screenshot(path=SCREENSHOTS / "sessions-three.png")
    assert press("use-phone") == "phone is let in, and stays logged in for 40 s from now"
    tablet, laptop, phone = bars.evaluate_all(BARS)
    assert phone > tablet > laptop
    assert press("logout-laptop") == "laptop: 1 session ended"
    assert press("use-laptop").startswith("laptop is not logged in")
    box.screenshot(path=SCREENSHOTS / "sessions-refused.png")
    assert press("everywhere") == "logged out everywhere: 2 sessions ended"
    assert press("use-phone").startswith("phone is not logged in")
    page.screenshot(path=SCREENSHOTS / "sessions-page.png")

    page.evaluate(ASK_KERNEL, "panel.devices.store = SessionStore(server.client(), ttl=3, name='brief')")
    assert press("login-phone") == "phone is logged in for 3 s"
    page.wait_for_function(ENDED)
    box.screenshot(path=SCREENSHOTS / "sessions-ended.png")
    press("look")
    assert "ada is logged in nowhere" in box.locator(".labkit-picture").inner_text()
    page.evaluate(ASK_KERNEL, "server.kill()")


def test_who_hears_what_by_the_keyboard(page: Any) -> None:
    box = small(page, "channels")
    status, picture = box.locator(".labkit-status"), box.locator(".labkit-picture")
    assert status.inner_text() == "nobody is there yet"
    box.screenshot(path=SCREENSHOTS / "channels-before.png")

    def press(*buttons: str) -> str:
        for css in buttons:
            type_on(page, box, css)
        return str(status.inner_text())

    assert press("ada", "publish") == "message 1: PUBLISH found 1 subscriber"
    assert box.locator(".labkit-ada").inner_text() == "ada leaves"
    assert press("ada", "publish-5") == "messages 2 to 6: PUBLISH found 0 subscribers"
    assert press("bob").startswith("bob is there, and reads 6 messages from the stream")
    assert press("ada").startswith("ada is there, and reads 5 messages from the stream")
    assert press("publish") == "message 7: PUBLISH found 2 subscribers"
    page.wait_for_function("document.querySelector('.labkit-picture').naturalWidth > 1000")
    assert picture.get_attribute("src")
    box.screenshot(path=SCREENSHOTS / "channels-after.png")
    page.screenshot(path=SCREENSHOTS / "channels-page.png")
    assert press("again") == "nobody is there yet"
    page.evaluate(ASK_KERNEL, "panel.close(); server.kill()")


def test_a_worker_is_killed_by_the_keyboard_and_nothing_is_lost(page: Any) -> None:
    box = small(page, "consumers")
    status = box.locator(".labkit-status")
    assert status.inner_text() == "4 workers wait for messages"
    box.screenshot(path=SCREENSHOTS / "consumers-before.png")
    type_on(page, box, "publish")
    type_on(page, box, "kill-1", " ")
    assert box.locator(".labkit-kill-1").inner_text() == "revive worker 1"
    page.wait_for_function("status => status.innerText.includes('dead')", arg=status.element_handle())
    page.wait_for_timeout(500)  # the bars have come to their place
    box.screenshot(path=SCREENSHOTS / "consumers-killed.png")
    page.wait_for_function(
        "status => status.innerText === 'all 100 of 100 applied, 0 of them twice'",
        arg=status.element_handle(),
    )
    type_on(page, box, "kill-1")
    assert box.locator(".labkit-kill-1").inner_text() == "kill worker 1"
    page.wait_for_timeout(500)
    box.screenshot(path=SCREENSHOTS / "consumers-after.png")
    page.screenshot(path=SCREENSHOTS / "consumers-page.png")
    page.evaluate(ASK_KERNEL, "panel.close(); server.kill()")


PLACES = "rows => rows.map(row => row.getBoundingClientRect().top)"
THREADS = "import threading; print([t.name for t in threading.enumerate() if t.name == 'labkit-ticker'])"


def test_a_live_board_is_played_boosted_and_paused_by_the_keyboard(page: Any) -> None:
    box = small(page, "board")
    status, rows = box.locator(".labkit-status"), box.locator(".labkit-row")
    assert status.inner_text() == "nobody has scored yet: press start"
    box.screenshot(path=SCREENSHOTS / "board-before.png")
    letters = "status => parseFloat(getComputedStyle(status.querySelector('b')).fontSize)"
    before = status.evaluate(letters)
    page.evaluate(ASK_KERNEL, "from labkit.show import plot; plot.use_style('talk')")
    page.wait_for_function(f"status => ({letters})(status) >= 24", arg=status.element_handle())
    assert box.locator(".labkit-start").evaluate("e => parseFloat(getComputedStyle(e).fontSize)") >= 20
    box.screenshot(path=SCREENSHOTS / "board-talk.png")
    page.evaluate(ASK_KERNEL, "plot.use_style('page')")
    page.wait_for_function(f"status => ({letters})(status) === {before}", arg=status.element_handle())
    type_on(page, box, "start")
    assert box.locator(".labkit-start").inner_text() == "pause"
    page.wait_for_function("document.querySelectorAll('.labkit-row').length >= 10")
    before = rows.evaluate_all(PLACES)
    box.locator(".labkit-player").get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("status => status.innerText.includes('bob: ')", arg=status.element_handle())
    box.locator(".labkit-speed").get_by_role("slider").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    box.locator(".labkit-boost").focus()
    for _ in range(3):
        page.keyboard.press(" ")
    page.wait_for_function("status => status.innerText.includes('bob leads')", arg=status.element_handle())
    box.screenshot(path=SCREENSHOTS / "board-playing.png")
    assert page.evaluate(ASK_KERNEL, THREADS).strip() == "['labkit-ticker']"
    page.evaluate(ASK_KERNEL, "board.increment('zoe', 5000)")  # from elsewhere
    page.wait_for_function("status => status.innerText.includes('zoe leads')", arg=status.element_handle())
    box.locator(".labkit-start").focus()
    page.keyboard.press(" ")
    page.wait_for_function("status => status.innerText.startsWith('paused')", arg=status.element_handle())
    assert status.inner_text().startswith("paused · zoe leads · bob: ")
    assert page.evaluate(ASK_KERNEL, THREADS).strip() == "[]"
    page.wait_for_timeout(700)  # until all have come to their place
    assert sorted(rows.evaluate_all(PLACES))[:10] != before
    box.screenshot(path=SCREENSHOTS / "board-after.png")
    page.screenshot(path=SCREENSHOTS / "board-page.png")
    type_on(page, box, "start")
    page.evaluate(CLEAR)  # nobody sees it any more
    for _ in range(100):
        if page.evaluate(ASK_KERNEL, THREADS).strip() == "[]":
            break
        page.wait_for_timeout(100)
    assert page.evaluate(ASK_KERNEL, "print(live.playing)").strip() == "False"
    page.evaluate(ASK_KERNEL, "server.kill()")


def test_a_scan_passes_a_cache_by_the_keyboard(page: Any) -> None:
    box = small(page, "eviction")
    status, picture = box.locator(".labkit-status"), box.locator(".labkit-picture")
    page.wait_for_function("document.querySelector('.labkit-picture').naturalWidth > 1000")
    assert status.inner_text().startswith("allkeys-lru in 300 kB: ")
    box.screenshot(path=SCREENSHOTS / "eviction-before.png")
    before = picture.screenshot()
    box.locator(".labkit-scan").get_by_role("slider").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("status => status.innerText.includes('of a scan')", arg=status.element_handle())
    await_change(page, picture, before)
    assert box.locator(".labkit-go").inner_text() == "pause"
    page.wait_for_function("() => document.querySelector('.labkit-go').innerText === 'run'")
    box.screenshot(path=SCREENSHOTS / "eviction-lru.png")
    page.evaluate(ASK_KERNEL, "eviction.STEPS = 120")  # a minute, if nobody pauses it
    box.get_by_role("button", name="allkeys-lfu").focus()
    page.keyboard.press("Enter")
    lfu = "status => status.innerText.startsWith('allkeys-lfu')"
    page.wait_for_function(lfu, arg=status.element_handle())
    box.locator(".labkit-go").focus()
    page.keyboard.press("Enter")  # a picture that was under way may still come before it acts
    page.wait_for_function("() => document.querySelector('.labkit-go').innerText === 'run'")
    assert page.evaluate(ASK_KERNEL, THREADS).strip() == "[]"
    assert 0 < int(page.evaluate(ASK_KERNEL, "print(len(caches.trial.now.history))")) < 120
    box.screenshot(path=SCREENSHOTS / "eviction-after.png")
    page.screenshot(path=SCREENSHOTS / "eviction-page.png")
    page.evaluate(ASK_KERNEL, "caches.close()")


def test_a_failover_is_seen_and_undone_by_the_keyboard(page: Any) -> None:
    box = small(page, "clustermap")
    status, square = box.locator(".labkit-status"), box.locator(".labkit-picture svg")
    assert "3 primaries, 3 replicas · " in status.inner_text()
    page.wait_for_timeout(1500)  # requests are counted for a second
    box.screenshot(path=SCREENSHOTS / "cluster-before.png")

    def await_said(css: str, what: str) -> None:
        box.locator(f".labkit-{css}").focus()
        page.keyboard.press("Enter")
        box.locator(".labkit-status", has_text=what).wait_for(timeout=60_000)

    await_said("kill-A", "A is killed · 5,461 slots have no primary")
    assert "nobody" in square.text_content() or "A2 has taken over" in status.inner_text()
    assert box.locator(".labkit-kill-A").inner_text() == "revive A"
    box.screenshot(path=SCREENSHOTS / "cluster-killed.png")
    box.locator(".labkit-status", has_text="A2 has taken over: ").wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    box.screenshot(path=SCREENSHOTS / "cluster-failover.png")
    await_said("kill-A2", "A2 is the last with its 5,461 slots: revive A first")
    await_said("hot", "3 of 4 requests go to one key")
    await_said("kill-A", "A is back, as a replica of A2")
    assert "replica of A2" in square.text_content()
    box.screenshot(path=SCREENSHOTS / "cluster-after.png")
    page.screenshot(path=SCREENSHOTS / "cluster-page.png")
    page.evaluate(ASK_KERNEL, "cluster.close()")
