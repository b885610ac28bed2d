"""The servers that a pattern is tested on, and how a test waits for something.

They are each redis-server found here, a newer one where LABKIT_NEWER_REDIS names it, and a cluster. A test
module takes the fixtures that it wants by importing them: `on_each` gives `server`, `everywhere` gives it
with the cluster; `each_path` and `of_path` give `path` and its `server`, with the cluster. That is one in
a server's place: tests use no more of it than its `client()` and its `url`. What is about one server by its
nature says why:

    @pytest.mark.single_server("counts the commands of one server")
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from labkit.rig.server import Cluster, Server, binaries

NEWER = os.environ.get("LABKIT_NEWER_REDIS")
ALONE = os.environ.get("LABKIT_ALONE") == "1"
BINARIES: dict[str, str | None] = {
    "alone": os.environ.get("LABKIT_REDIS_SERVER", "")
}  # "": what Server takes
if not ALONE:
    BINARIES = {".".join(map(str, found.version[:2])): found.path for found in binaries()}
    BINARIES["newer"] = NEWER
CLUSTER = "cluster"


class Path(NamedTuple):
    """A server's binary, and whether the newer commands are used there (None: the server is asked)."""

    name: str
    binary: str | None
    newer: bool | None


PATHS = [
    *(Path(f"{name}-asked", binary, None) for name, binary in BINARIES.items()),
    *([Path("newer-without", NEWER, False)] if NEWER or not ALONE else []),
    Path(CLUSTER, CLUSTER, None),
]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for it; the limit is only there so that a failure is one."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def clients_of(r: Any) -> list[Any]:
    """A client of each server: of the one, or of each node of the cluster."""
    return [r.get_redis_connection(node) for node in r.get_nodes()] if hasattr(r, "get_nodes") else [r]


def nodes_of(r: Any, keys: list[str]) -> int:
    """On how many servers these keys are, and so how many round trips it takes to all of them."""
    return len({r.get_node_from_key(key).name for key in keys}) if hasattr(r, "get_nodes") else 1


def _binary(binary: str | None) -> str:
    if binary is None:
        pytest.skip("LABKIT_NEWER_REDIS does not name a redis-server")
    return binary


def on_cluster(item: pytest.Item) -> bool:
    """Whether this test gets the cluster for its `server`."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return (
        CLUSTER in (params.get("server"), params.get("own"), params.get("t"))
        or getattr(params.get("path"), "name", "") == CLUSTER
    )


@pytest.fixture(scope="session")
def the_cluster() -> Iterator[Cluster]:
    """One for all modules: three primaries. (Replicas would only repeat what is written.)"""
    with Cluster(replicas=0, node_timeout=30) as cluster:
        yield cluster


@contextlib.contextmanager
def _started(binary: str | None, request: pytest.FixtureRequest) -> Iterator[Server | Cluster]:
    if binary == CLUSTER:
        yield request.getfixturevalue("the_cluster")
    else:
        with Server(binary=_binary(binary)) as server:
            yield server


@pytest.fixture(name="server", scope="module", params=BINARIES)
def on_each(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(binary=_binary(BINARIES[request.param])) as server:
        yield server


@pytest.fixture(name="server", scope="module", params=[*BINARIES, CLUSTER])
def everywhere(request: pytest.FixtureRequest) -> Iterator[Server | Cluster]:
    with _started({**BINARIES, CLUSTER: CLUSTER}[request.param], request) as server:
        yield server


@pytest.fixture(name="path", scope="module", params=PATHS, ids=lambda path: path.name)
def each_path(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    _binary(path.binary)
    return path


@pytest.fixture(name="server", scope="module")
def of_path(path: Path, request: pytest.FixtureRequest) -> Iterator[Server | Cluster]:
    with _started(path.binary, request) as server:
        yield server
