"""The bench that a grader works on: a private server and fresh keys, and nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

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
        """Remove every key, script and function from the private server."""
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


@contextlib.contextmanager
def no_keys_left() -> Iterator[list[str]]:
    """Keys of the workbook that meanwhile this process writes to the reader's Redis are removed, and listed.

    Only what went over the reader's own client counts: another kernel may be at work on the same server.
    """
    from labkit.rig.wire import tap

    r, left = connection.last, list[str]()
    before = _keys(r)
    if before is None:  # there is no such server, or it is gone
        yield left
        return
    with tap(r) as tape:
        try:
            yield left
        finally:
            named = {word for exchange in tape.commands for word in exchange.command}
            left += sorted(named & ((_keys(r) or set()) - before))
            for key in left:
                r.unlink(key)  # type: ignore[union-attr]


def _keys(r: Any) -> set[str] | None:
    if r is None:
        return None
    try:
        found = list(r.scan_iter(match=f"{PREFIX}*", count=1000))
    except (RedisError, RedisClusterException):
        return None
    return {key if isinstance(key, str) else key.decode(errors="replace") for key in found}
