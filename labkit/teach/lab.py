"""The bench that a grader works on: a private server, or a cluster, and fresh keys; nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from redis.exceptions import RedisClusterException, RedisError

from labkit import PREFIX
from labkit.rig import connection, topology
from labkit.rig.server import Cluster, Server

if TYPE_CHECKING:
    import redis
    from redis.cluster import RedisCluster

    from labkit.rig.wire import Tape

_server: Server | None = None
_cluster: Cluster | None = None


class Lab:
    """What a grader may use. The server is the graders' own: it is emptied before each grade.

    It starts on first use, is shared by all graders of this process and ends with it.
    """

    def __init__(self) -> None:
        self._names = itertools.count(1)
        self._clients: list[redis.Redis | RedisCluster] = []
        self._r: redis.Redis | None = None
        self._rc: RedisCluster | None = None
        self._has_cluster = False

    @property
    def r(self) -> redis.Redis:
        """A client of the private server; the same one throughout a grade."""
        if self._r is None:
            self._r = self.client()
        return self._r

    @property
    def server(self) -> Server:
        """The private server. What a grader does to it (freeze, CONFIG SET), it must undo."""
        global _server
        if _server is None or not _server.running:
            _server = Server().start()
        return _server

    def client(self, **options: Any) -> redis.Redis:
        """One more client of the private server; closed when the grade ends."""
        client = self.server.client(**options)
        self._clients.append(client)
        return client

    @property
    def cluster(self) -> Cluster:
        """A private cluster of three primaries with a replica each; empty when a grade first asks for it.

        It starts then (some 2 s), is shared by all graders and ends with this process. What a grader does to
        it (kill, move slots), it must undo; a cluster that is not whole is replaced before the next grade.
        """
        global _cluster
        if _cluster is None or not self._has_cluster:
            if _cluster is None or not _emptied(_cluster):
                discard_cluster()
                _cluster = Cluster(node_timeout=1.0).start()
            self._has_cluster = True
        return _cluster

    @property
    def rc(self) -> RedisCluster:
        """A client of the private cluster; the same one throughout a grade."""
        if self._rc is None:
            self._rc = self.cluster_client()
        return self._rc

    def cluster_client(self, **options: Any) -> RedisCluster:
        """One more client of the private cluster; closed when the grade ends."""
        client = self.cluster.client(**options)
        self._clients.append(client)
        return client

    def key(self, name: str) -> str:
        """A key (or the beginning of keys) that nothing has used before: `workbook:check:1:name`."""
        return f"{PREFIX}check:{next(self._names)}:{name}"

    def tap(self, r: redis.Redis | RedisCluster | None = None) -> AbstractContextManager[Tape]:
        """Record what `r` (default: `lab.r`) sends and receives."""
        from labkit.rig.wire import tap

        return tap(r or self.r)

    def empty(self) -> None:
        """Remove every key, script and function from the private server; one that is ending is replaced."""
        try:
            self._empty()
        except RedisError:  # an answer has shut it down: it answers no more, and its process ends soon
            self.close()
            discard_server()
            self._empty()

    def _empty(self) -> None:
        with self.server.client() as r:
            r.flushall()
            r.script_flush()
            r.execute_command("FUNCTION", "FLUSH")

    def close(self) -> None:
        """Close every client that this grade opened."""
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()
        self._clients.clear()
        self._r = self._rc = None
        self._has_cluster = False


def discard_server() -> None:
    """End the private server, and all connections to the cluster; the next grade starts a new one."""
    global _server
    if _server is not None:
        with contextlib.suppress(Exception):
            _server.stop()
        _server = None
    _hang_up()


def _hang_up() -> None:
    """Nobody waits for the private cluster any more; it ends, if one of its nodes does not answer."""
    if _cluster is None:
        return
    try:
        for node in _cluster.nodes:
            with node.client(socket_timeout=2) as r:
                r.client_kill_filter(_type="normal", skipme=True)
    except (RedisError, OSError):
        discard_cluster()


def discard_cluster() -> None:
    """End the private cluster; a grade that needs one starts it anew."""
    global _cluster
    if _cluster is not None:
        with contextlib.suppress(Exception):
            _cluster.stop()
        _cluster = None


def _emptied(cluster: Cluster) -> bool:
    """Remove every key, script and function from it; False where it is not as it was in the beginning."""
    try:
        with contextlib.ExitStack() as stack:
            nodes = {node.name: stack.enter_context(node.client(socket_timeout=5)) for node in cluster.nodes}
            if topology.unready(nodes):
                return False
            primaries = cluster.primaries
            for node in primaries:
                nodes[node.name].flushall()
            for r in nodes.values():
                r.script_flush()
            for node in primaries:
                nodes[node.name].execute_command("FUNCTION", "FLUSH")
            return sorted(Counter(cluster.owners().values()).values()) == [5461, 5461, 5462]
    except (RedisError, OSError):
        return False


@dataclass
class Trespass:
    """What a graded answer did to the reader's own Redis: keys that it left, and commands that write."""

    keys: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def no_trespass() -> Iterator[Trespass]:
    """Watch the reader's own client meanwhile; keys of the workbook that it writes are removed again.

    `labkit.connect()` gives a client of the graders' server meanwhile. Of new keys only those count whose
    names went over the reader's client, since another kernel may be at work on that server; a server that is
    private to this kernel has no other, so there all count.
    """
    from labkit.rig.wire import tap

    r, found = connection.last, Trespass()
    before = _keys(r)
    with _connect_gives_the_labs():
        if before is None:  # there is no such server, or it is gone
            yield found
            return
        with tap(r) as tape:
            try:
                yield found
            finally:
                found.writes = _writes(r, tape)
                new = (_keys(r) or set()) - before
                if not connection.is_embedded(r):
                    new &= {word.encode() for exchange in tape.commands for word in exchange.command}
                for key in new:
                    r.unlink(key)  # type: ignore[union-attr]
                found.keys = sorted(key.decode(errors="replace") for key in new)


@contextlib.contextmanager
def _connect_gives_the_labs() -> Iterator[None]:
    lab, last = Lab(), connection.last

    def find(url: str | None = None, **options: Any) -> tuple[redis.Redis, str]:
        return lab.client(**options), "the graders' own server"

    try:
        with mock.patch.object(connection, "find", find):
            yield
    finally:
        connection.last = last
        lab.close()


def _writes(r: Any, tape: Tape) -> list[str]:
    """Those of the recorded commands that write, or may (scripts)."""
    seen = [" ".join(exchange.command) for exchange in tape.commands]
    return [command for command in seen if connection.may_write(r, command.split(" ", 1)[0])]


def _keys(r: Any) -> set[bytes] | None:
    if r is None:
        return None
    try:
        return set(connection.keys_of(r))
    except (RedisError, RedisClusterException):
        return None
