"""The servers that a pattern is tested on, and how a test waits for something.

They are each redis-server found here and, where LABKIT_NEWER_REDIS names one, a newer one. A test module
takes the fixtures that it wants by importing them: `on_each` gives `server`; `each_path` and `of_path` give
`path` and its `server`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from labkit.rig.server import Server, binaries

NEWER = os.environ.get("LABKIT_NEWER_REDIS")
BINARIES = {".".join(map(str, found.version[:2])): found.path for found in binaries()} | {"newer": NEWER}


class Path(NamedTuple):
    """A server's binary, and whether the newer commands are used there (None: the server is asked)."""

    name: str
    binary: str | None
    newer: bool | None


PATHS = [
    *(Path(f"{name}-asked", binary, None) for name, binary in BINARIES.items()),
    Path("newer-without", NEWER, False),
]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for it; the limit is only there so that a failure is one."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def _binary(binary: str | None) -> str:
    if binary is None:
        pytest.skip("LABKIT_NEWER_REDIS does not name a redis-server")
    return binary


@pytest.fixture(name="server", scope="module", params=BINARIES)
def on_each(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(binary=_binary(BINARIES[request.param])) as server:
        yield server


@pytest.fixture(name="path", scope="module", params=PATHS, ids=lambda path: path.name)
def each_path(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    _binary(path.binary)
    return path


@pytest.fixture(name="server", scope="module")
def of_path(path: Path) -> Iterator[Server]:
    with Server(binary=path.binary) as server:
        yield server
