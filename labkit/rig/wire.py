"""What a client really says to its server: a tap on its sockets.

    with tap(r) as t:
        r.set("k", "v")
    t               # a table of commands and replies
    t.raw()         # the bytes
    t.round_trips   # 1

A round trip is a send followed by a receive on one connection: a pipeline of 100 commands is one.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, ClassVar

from labkit.rig.tape import Event, Exchange, Tape

__all__ = ["Exchange", "Tape", "register_magics", "tap"]


def tap(r: Any, handshake: bool = False) -> Tape:
    """Record the commands, replies, round trips and bytes of one client, while the `with` block lasts.

    It sees every connection of the client's pool, also those opened meanwhile: plain commands, pipelines,
    scripts, MULTI, blocking commands, pub/sub. What a new connection says to introduce itself (HELLO, CLIENT
    SETINFO, …) is there only with `handshake=True`, its password as asterisks. At the end, also after an
    exception, the sockets are as they were. Taps may be nested. Raises TypeError for what is not a
    synchronous redis-py client.
    """
    return Tape([_Hook.of(pool) for pool in _pools(r)], handshake)


def _pools(r: Any) -> list[Any]:
    if hasattr(r, "get_nodes") and not type(r).__module__.startswith("redis.asyncio"):
        return [r.get_redis_connection(node).connection_pool for node in r.get_nodes()]
    pool = getattr(r, "connection_pool", None)
    if (
        pool is None
        or type(pool).__module__.startswith("redis.asyncio")
        or not hasattr(pool, "make_connection")
    ):
        raise TypeError(
            f"tap() takes a synchronous Redis or RedisCluster; got {type(r).__module__}.{type(r).__name__}"
        )
    return [pool]


class _Recorder:
    """Stands where a connection's socket stood, and notes what passes."""

    def __init__(self, socket: Any, hook: _Hook, secret: bytes = b"", handshake: bool = False) -> None:
        self.socket, self.hook, self.handshake = socket, hook, handshake
        self.number = hook.number()
        self._secret = secret

    def _note(self, sent: bool, data: Any) -> None:
        data = bytes(data)
        if self.handshake and self._secret:  # a tape is shown and stored: no password on it
            data = data.replace(self._secret, b"*" * len(self._secret))
        event = Event(self.number, sent, data, self.handshake)
        for tape in self.hook.tapes:
            tape.note(event)

    def sendall(self, data: Any, *rest: Any) -> None:
        self._note(True, data)
        self.socket.sendall(data, *rest)

    def recv_into(self, buffer: Any, *rest: Any) -> int:
        count: int = self.socket.recv_into(buffer, *rest)
        if count:
            self._note(False, memoryview(buffer)[:count])
        return count

    def recv(self, size: int, *flags: int) -> bytes:
        data: bytes = self.socket.recv(size, *flags)
        if data and not any(flags):  # with MSG_PEEK the same bytes come again
            self._note(False, data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)


class _Hook:
    """The taps of one pool: put on its connections by the first tape, taken off by the last."""

    _all: ClassVar[weakref.WeakKeyDictionary[Any, _Hook]] = weakref.WeakKeyDictionary()
    _lock: ClassVar[Any] = threading.RLock()
    _numbers: ClassVar[int] = 0

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._wired: list[Any] = []
        self.tapes: tuple[Tape, ...] = ()

    @classmethod
    def of(cls, pool: Any) -> _Hook:
        with cls._lock:
            return cls._all.setdefault(pool, cls(pool))

    @classmethod
    def number(cls) -> int:
        with cls._lock:
            cls._numbers += 1
            return cls._numbers

    def add(self, tape: Tape) -> None:
        with self._lock:
            self.tapes += (tape,)
            if len(self.tapes) == 1:
                self._install(self._pool())

    def remove(self, tape: Tape) -> None:
        with self._lock:
            self.tapes = tuple(other for other in self.tapes if other is not tape)
            if not self.tapes:
                self._uninstall(self._pool())

    def _install(self, pool: Any) -> None:
        make = pool.make_connection

        def make_connection() -> Any:
            connection = make()
            self._wire(connection)
            return connection

        pool.make_connection = make_connection
        for connection in [*pool._get_free_connections(), *pool._get_in_use_connections()]:
            self._wire(connection)

    def _uninstall(self, pool: Any) -> None:
        if pool is not None:
            del pool.make_connection
        for connection in self._wired:
            del connection._connect, connection.connect_check_health
            _replace(connection, lambda s: s.socket if isinstance(s, _Recorder) else s)
        self._wired = []

    def _wire(self, connection: Any) -> None:
        connection = getattr(connection, "_conn", connection)  # a caching connection wraps the real one
        open_socket, introduce = connection._connect, connection.connect_check_health

        def _connect() -> _Recorder:
            secret = (getattr(connection, "password", None) or "").encode()
            recorder = _Recorder(open_socket(), self, secret, handshake=True)
            for tape in self.tapes:
                tape.connections += 1
            return recorder

        def connect_check_health(*args: Any, **options: Any) -> None:
            introduce(*args, **options)
            if isinstance(connection._sock, _Recorder):
                connection._sock.handshake = False

        connection._connect, connection.connect_check_health = _connect, connect_check_health
        _replace(connection, lambda s: _Recorder(s, self))
        self._wired.append(connection)


def _replace(connection: Any, change: Any) -> None:
    """Exchange the socket in the three places where redis-py keeps it."""
    parser = connection._parser
    if connection._sock is None:
        return
    connection._sock = new = change(connection._sock)
    for holder in (parser, getattr(parser, "_buffer", None)):
        if getattr(holder, "_sock", None) is not None:
            holder._sock = new  # type: ignore[union-attr]


def register_magics(shell: Any, r: Any) -> None:
    """Give an IPython shell the magics %%redis and %%wire; `r` is the client that they use by default."""
    from labkit.rig import magics

    magics.register(shell, r)
