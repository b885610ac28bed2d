"""The bench that a grader works on: a private server and fresh keys, and nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from redis.exceptions import RedisClusterException, RedisError

from labkit import PREFIX
from labkit.rig import connection
from labkit.rig.server import Server

if TYPE_CHECKING:
    import redis

    from labkit.rig.wire import Tape

_server: Server | None = None


class Lab:
    """What a grader may use. The server is the graders' own: it is emptied before each grade.

    It starts on first use, is shared by all graders of this process and ends with it.
    """

    def __init__(self) -> None:
        self._names = itertools.count(1)
        self._clients: list[redis.Redis] = []
        self._r: redis.Redis | None = None

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

    def key(self, name: str) -> str:
        """A key (or the beginning of keys) that nothing has used before: `workbook:check:1:name`."""
        return f"{PREFIX}check:{next(self._names)}:{name}"

    def tap(self, r: redis.Redis | None = None) -> AbstractContextManager[Tape]:
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
        self._r = None


def discard_server() -> None:
    """End the private server; the next grade starts a new one."""
    global _server
    if _server is not None:
        with contextlib.suppress(Exception):
            _server.stop()
        _server = None


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
