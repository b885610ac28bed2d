"""Kernels and tests in an environment of their own: nobody's progress, no browser, the inline backend."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_HOME = tempfile.mkdtemp(prefix="labkit-tests-")

os.environ["LABKIT_HOME"] = _HOME
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
for _name in ("JPY_SESSION_NAME", "VSCODE_PID", "MPLBACKEND"):
    os.environ.pop(_name, None)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Progress that a test records is its own; kernels that nbval starts meanwhile have the session's."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    yield
