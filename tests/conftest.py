"""Kernels and tests in an environment of their own: nobody's progress, no browser, the inline backend."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from labkit.rig.server import Server

_HOME = tempfile.mkdtemp(prefix="labkit-tests-")

os.environ["LABKIT_HOME"] = _HOME
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ.setdefault("REDIS_URL", "embedded")  # also where the container is up: each kernel has its own
for _name in ("JPY_SESSION_NAME", "VSCODE_PID", "MPLBACKEND"):
    os.environ.pop(_name, None)


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


@pytest.fixture(autouse=True)
def _own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Progress that a test records is its own; kernels that nbval starts meanwhile have the session's."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    yield
