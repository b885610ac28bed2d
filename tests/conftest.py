"""Kernels and tests in an environment of their own: nobody's progress, no browser, the inline backend."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chapters_again
import nbval.kernel  # type: ignore[import-untyped]
import psycopg
import pytest
import redis
from hypothesis import settings
from jupyter_client.manager import KernelManager
from servers import on_cluster
from servers import the_cluster as the_cluster

from labkit.rig import watchdog
from labkit.rig.server import Server
from labkit.teach.refresh import own_sockets

_HOME = tempfile.mkdtemp(prefix="labkit-tests-")

os.environ["LABKIT_HOME"] = _HOME
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ.setdefault("REDIS_URL", "embedded")  # also where the container is up: each kernel has its own
for _name in ("JPY_SESSION_NAME", "VSCODE_PID", "MPLBACKEND"):
    os.environ.pop(_name, None)
if not os.environ.get("LABKIT_THOROUGH"):  # else as many as hypothesis takes by itself
    settings.register_profile("suite", max_examples=50)
    settings.load_profile("suite")


def _manager(**options: Any) -> Any:
    """For nbval: no port of its kernels is taken by one of the many servers and clients of other tests."""
    return own_sockets(KernelManager(**options), tempfile.mkdtemp(dir=_HOME))


nbval.kernel.KernelManager = _manager

LONGEST = [
    "test_browser.py",
    "test_exercises.py",
    "11_cluster.ipynb",
    "test_widgets.py",
    "test_exercises_session.py",
    "10_production.ipynb",
    "test_stream.py",
    "test_rate_limiter.py",
    "test_exercises_cache.py",
    "test_cache.py",
    "test_database.py",
    "test_chapters_postgres.py",
    "test_chapters_cluster.py",
    "test_lock.py",
]
"""These begin first, so that in the end no process works alone on one of them; longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chapters once more, solved; and the order in which modules are given to processes."""
    chapters_again.again(items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "single_server(why): not on a cluster, for a reason that is told")
    config.addinivalue_line("markers", "docker: needs a Docker engine; skipped, with the reason, without one")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("single_server")
    if marker is not None and on_cluster(item):
        pytest.skip(f"not on a cluster: {marker.args[0]}")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests recorded as "summary" is printed at the end, from whichever worker it came."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = {
        str(text)
        for report in reports
        for name, text in getattr(report, "user_properties", [])
        if name == "summary"
    }
    for line in sorted(lines):
        terminalreporter.write_line(line)


@pytest.fixture
def r(server: Server) -> Iterator[redis.Redis]:
    """A client of the module's server, which is empty."""
    with server.client() as r:
        r.flushall()
        yield r


@pytest.fixture(scope="module")
def throwaway() -> Iterator[Server]:
    """For tests that freeze, kill, reconfigure or explore; and where the version does not matter."""
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def _own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Progress that a test records is its own; kernels that nbval starts meanwhile have the session's."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    yield


@pytest.fixture(autouse=True, scope="module")
def _no_widgets_of_other_modules() -> Iterator[None]:
    """Widgets outlive their tests: who changes the style would draw all those that were seen, each time."""
    yield
    if plot := sys.modules.get("labkit.show.plot"):
        plot._followers.clear()


# A PostgreSQL of the tests' own


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of a real PostgreSQL, thrown away in the end; it listens on a socket in a folder only.

    Skips where no PostgreSQL is installed, but fails in CI.
    """
    initdb, postgres = _postgres_binary("initdb"), _postgres_binary("postgres")
    if initdb is None or postgres is None:
        why = (
            "no PostgreSQL is installed here: no initdb and postgres on PATH or in /usr/lib/postgresql/*/bin"
        )
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="labkit-postgres-", ignore_cleanup_errors=True) as name:
        folder, password = Path(name), secrets.token_hex(16)
        (folder / "password").write_text(password)
        as_user = _unprivileged(folder)
        make = [initdb, "-D", str(folder / "data"), "-U", "workbook", "-A", "scram-sha-256", "--no-sync"]
        make += ["--pwfile", str(folder / "password"), "-E", "UTF8", "--locale", "C"]
        done = subprocess.run([*as_user, *make], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        start = [postgres, "-D", str(folder / "data"), "-k", name, "-c", "listen_addresses=", "-F"]
        process = watchdog.get().launch([*as_user, *start], folder / "log")
        try:
            url = f"postgresql://workbook:{password}@/postgres?host={name}"
            _await_postgres(process, url, folder / "log")
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
            watchdog.get().forget(process.pid)


def _postgres_binary(name: str) -> str | None:
    """On PATH; else Debian's, which are beside it: of the newest version."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[-3].zfill(3)
    )
    return shutil.which(name) or (str(found[-1]) if found else None)


def _unprivileged(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: give the folder to somebody else, and say how to run as that one."""
    if os.geteuid() != 0:
        return []
    names = {user.pw_name: user for user in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _await_postgres(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError as error:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{error}\n{log.read_text()}"
            time.sleep(0.02)
        else:
            return
