"""Locks on Redis: Lock on one server, Redlock on a majority of several.

    with Lock(r, "report", ttl=10) as lock:       # waits until it is ours
        store.write(report, fence=lock.fence)     # a store that refuses lower numbers stops late holders

What holds for both:

* A lock is a key with a random token and a TTL. Who sets it first has it, until it is released, or until
  `ttl` seconds after it was acquired or last extended: a crashed holder blocks others no longer than that.
* `locked_until` is the time.monotonic() until which it is ours, counted from before the request was sent. The
  server counts too: if its clock is set forward, or it loses its memory, the lock ends early.
* `release` and `extend` compare the token in the same step. A lock that has expired, or is another's by now,
  is left as it is, and the answer is False: what has expired is never brought back.
* A TTL cannot keep a holder that was paused (by a garbage collector, swapping, a frozen machine) from writing
  after its time. Where that is wrong, and not only wasteful, the resource itself has to check `fence`: at
  each write and, if what is written depends on what was read, at the read as well.
* An object stands for one holder, so for one thread. It is not reentrant: a second `acquire` is refused, or
  waits, like anybody else's, and what is held stays held.
* A refusal is a value. Misuse raises ValueError or TypeError before anything is sent.

Redis's errors are raised by Lock, and count as "no answer" in Redlock. After a timeout it is unknown whether
the command ran: after `acquire` the lock may be nobody's until its TTL ends; `release` may be called again,
but says False if the first had done it. Times are in seconds, kept to the millisecond."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

from redis import ConnectionPool, Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

FAILED = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
TRIES, PAUSE = 6, 0.015  # of a waiter before it blocks: tries, and at most so many seconds between them
PATIENCE = 0.02  # seconds of waiting after which the pauses become shorter
LATE = 0.1  # seconds by which a BLPOP may end late: an idle Redis looks ten times a second
SILENT = exceptions.TimeoutError("no answer in time")
NO_RETRY = Retry(NoBackoff(), 0)
JITTER = secrets.SystemRandom()  # leaves the program's own random numbers alone


def _seconds(name: str, value: float, least: float = 0.001, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; it must be a number of seconds from {least:g} to {most:g}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be from {least:g} to {most:g} seconds")
    return round(value, 3)


def _deadline(wait: float | None) -> float:
    return math.inf if wait is None else time.monotonic() + _seconds("wait", wait, 0)


def _check(r: Any, name: str, wait: float | None) -> None:
    command = getattr(r, "execute_command", None)
    if command is None or hasattr(r, "execute") or inspect.iscoroutinefunction(command):
        raise TypeError(f"{type(r).__name__} is no client such as redis.Redis, or is an async one")
    if not isinstance(name, str) or not name:
        raise TypeError(f"name is {name!r}; it must be a str that is not empty")
    _deadline(wait)


def _tagged(name: str) -> str:
    """Braces around what follows the last colon: in a cluster, only that decides the slot."""
    if re.match(r"[^{]*\{[^}]+\}", name):
        return name
    head, colon, tail = name.rpartition(":")
    if not tail or "{" in name or "}" in name:
        raise ValueError(f"name is {name!r}; no colon may end it, and braces must hold a {{hash tag}}")
    return f"{head}{colon}{{{tail}}}"


@cache
def _sha(lua: str) -> str:
    return hashlib.sha1(lua.encode()).hexdigest()


class Lock:
    """A lock on one server, with a fencing token. Waiters are woken; they do not poll.

    Guarantees: until `locked_until` nobody else has it, as long as the server keeps its data and its clock (a
    replica that takes over may lack the latest lock: then it is granted twice). As long as the counter is
    kept, too, `fence` is higher than any earlier holder's: a resource that refuses numbers below the highest
    it has seen refuses a holder that comes too late. A server that restarts without its data begins anew.
    Not fair: who asks first once it is free has it, and may overtake who waits longer.

    Waiting: who is refused tries a few times more, after random pauses (of up to 15 ms, and shorter the
    longer he has waited), and then blocks (BLPOP) at a list on which each release puts one element, so that
    it wakes one waiter. Where holders change every millisecond the tries are cheaper than to be woken and
    come too late, and keep the longest wait short; where they work for longer, nearly all of the time passes
    in BLPOP. Nobody blocks beyond the TTL that was left when he asked, nor for about half of the client's
    socket_timeout, without asking again (TRIES times): a holder that crashed, or a waiter that did so when it
    was woken, costs the others one TTL at most. The last tenth of a second of a TTL, for which BLPOP's clock
    is too coarse, is waited for in pauses of 15 ms, as is all of it if socket_timeout is under 0.1.

    Keys, all in one slot: `key` holds the token, with the TTL. `wake_key` is a list of one element at most,
    with the same TTL. `fence_key` counts the holders; it has no TTL, since it must not begin anew while a
    resource remembers a number (some 80 bytes a name: delete it when the resource goes). Sources: SET and
    "Distributed Locks" on redis.io; fencing as in M. Kleppmann's "How to do distributed locking".
    """

    # KEYS      lock, counter
    # ARGV      token, TTL in ms
    # returns   the fencing token; if another has the lock: -1 - (ms that it has left)
    # A client that lost the reply may send the same again by itself: the holder is then this very token.
    ACQUIRE = """
    local holder = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])
    if not holder then return redis.call('INCR', KEYS[2]) end
    if holder == ARGV[1] then return tonumber(redis.call('GET', KEYS[2])) end
    return -1 - redis.call('PTTL', KEYS[1])
    """

    # KEYS      lock, wake-up list
    # ARGV      token, TTL of the wake-up in ms
    # returns   1; 0 if it was not ours
    RELEASE = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('RPUSH', KEYS[2], 1)
    redis.call('PEXPIRE', KEYS[2], ARGV[2])
    return 1
    """

    # The same with DELEX (Redis 8.4), which compares and deletes. Alone it would be a release without script;
    # but it wakes nobody, and in a MULTI no command can depend on what another one answered.
    RELEASE_NEWER = """
    if redis.call('DELEX', KEYS[1], 'IFEQ', ARGV[1]) == 0 then return 0 end
    redis.call('DEL', KEYS[2])
    redis.call('RPUSH', KEYS[2], 1)
    redis.call('PEXPIRE', KEYS[2], ARGV[2])
    return 1
    """

    # KEYS      lock
    # ARGV      token, TTL in ms
    # returns   1; 0 if it is not ours
    EXTEND = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
    """

    _known: ClassVar[weakref.WeakKeyDictionary[Any, bool]] = weakref.WeakKeyDictionary()

    def __init__(
        self, r: Any, name: str, *, ttl: float, wait: float | None = None, newer: bool | None = None
    ) -> None:
        """`wait` is for `with`: how many seconds at most (None: as long as it takes). Sends nothing.

        `newer`: use DELEX and SET IFEQ, of Redis 8.4? None asks the server, once per client, when it matters
        first (COMMAND INFO, one round trip more).
        """
        _check(r, name, wait)
        self._r, self.name, self.wait, self._newer = r, name, wait, newer
        self.ttl = _seconds("ttl", ttl)
        self.key = _tagged(name)
        self.fence_key, self.wake_key = f"{self.key}:fence", f"{self.key}:wake"
        self.token: str | None = None
        self.fence, self.locked_until = 0, 0.0
        self._alive: KeepAlive | None = None
        self._mutex, self._pid = threading.Lock(), os.getpid()

    def acquire(self, wait: float | None = 0) -> bool:
        """Have it within `wait` seconds (0: now or never; None: as long as it takes). False: another has it.

        One round trip if it is free; one more for each try, and two each time that it blocks.
        """
        deadline, token, tries = _deadline(wait), secrets.token_hex(16), TRIES
        begin = start = time.monotonic()
        while True:
            answer = self._run(self.ACQUIRE, (self.key, self.fence_key), token, self.ttl)
            if answer > 0:
                self.token, self.fence, self.locked_until = token, answer, start + self.ttl
                return True
            if time.monotonic() >= deadline:
                return False
            left = min(deadline - start, -answer / 1000 or math.inf)  # 0: a stranger's key, without a TTL
            if tries or left <= LATE:
                pause = PAUSE / max(1, (start - begin) / PATIENCE)
                time.sleep(JITTER.uniform(0, min(left, pause)) if tries else min(left, PAUSE))
                tries = max(tries - 1, 0)
            else:
                self._block(left - LATE)
                tries = TRIES
            start = time.monotonic()

    def _block(self, seconds: float) -> None:
        """Until a release, or so many seconds; BLPOP takes whole ms, and 0 for eternity."""
        options = getattr(self._r, "connection_pool", None) or self._r.nodes_manager
        patience = options.connection_kwargs.get("socket_timeout", 2)
        seconds = min(seconds, 60 if patience is None else (patience - LATE) / 2)
        if seconds <= 0:
            time.sleep(PAUSE)
            return
        self._r.execute_command("BLPOP", self.wake_key, max(math.ceil(seconds * 1000), 1) / 1000)

    def release(self) -> bool:
        """Give it back and wake one waiter. False: it was no longer ours. One round trip, if held."""
        if self._alive is not None:
            self._alive.stop()
        if self.token is None:
            return False
        lua = self.RELEASE_NEWER if self._has_newer() else self.RELEASE
        ours = self._run(lua, (self.key, self.wake_key), self.token, self.ttl)
        self.token, self.locked_until = None, 0.0
        if self._alive is not None:
            self._alive.told(bool(ours))
        return bool(ours)

    def extend(self, ttl: float | None = None) -> bool:
        """Have it for `ttl` seconds from now (default: the lock's). False: no longer ours. One round trip.

        (Two where it is SET IFEQ that extends, and the server's memory is full: then that is refused.)
        After an error it is unknown which of the two TTLs it has, and `locked_until` is the earlier end.
        """
        return self._extend(self._r, self.ttl if ttl is None else _seconds("ttl", ttl))

    def _extend(self, r: Any, seconds: float) -> bool:
        with self._between_threads():
            if (token := self.token) is None:
                return False
            newer, start = self._has_newer(), time.monotonic()
            self.locked_until = min(self.locked_until, start + seconds)
            ours = self._extend_newer(r, token, seconds) if newer else None
            if ours is None:
                ours = self._run(self.EXTEND, (self.key,), token, seconds, r)
            self.locked_until = start + seconds if ours else 0.0
        if self._alive is not None:
            self._alive.look()
        return bool(ours)

    def _extend_newer(self, r: Any, token: str, seconds: float) -> bool | None:
        """None where memory is full: the server refuses every SET then, but not the script's PEXPIRE."""
        try:
            ms = round(seconds * 1000)
            return bool(r.execute_command("SET", self.key, token, "IFEQ", token, "PX", ms))
        except exceptions.OutOfMemoryError:
            return None

    def _between_threads(self) -> threading.Lock:
        """Between this thread and that of keep_alive; a forked process has neither that nor its lock."""
        if self._pid != os.getpid():
            self._mutex, self._pid = threading.Lock(), os.getpid()
        return self._mutex

    def keep_alive(self, on_lost: Callable[[], Any] | None = None) -> KeepAlive:
        """Extend it in the background until it is released: see KeepAlive. LockError if it is not held."""
        if self.token is None:
            raise exceptions.LockError(f"{self.name} is not held: acquire it first", self.name)
        if self._alive is not None:
            self._alive.stop()
        self._has_newer()  # whoever keeps it alive need not ask
        self._alive = KeepAlive(self, on_lost)
        return self._alive

    def __enter__(self) -> Lock:
        """Acquire it within the constructor's `wait`, else raise LockError."""
        if not self.acquire(self.wait):
            raise exceptions.LockError(f"{self.name} was not to be had within {self.wait:g} s", self.name)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Release it. LockNotOwnedError if it was lost meanwhile, unless the block itself has raised."""
        if self.token is not None and not self.release() and kind is None:
            raise exceptions.LockNotOwnedError(f"{self.name} was lost before the block ended", self.name)

    def _run(self, lua: str, keys: Sequence[str], token: str, seconds: float, r: Any = None) -> Any:
        r, args = r or self._r, (len(keys), *keys, token, round(seconds * 1000))
        try:
            return r.execute_command("EVALSHA", _sha(lua), *args)
        except exceptions.NoScriptError:
            return r.execute_command("EVAL", lua, *args)

    def _has_newer(self) -> bool:
        """Does the server know DELEX? It is asked, whatever its version; one that will not say does not."""
        if self._newer is None and (newer := self._known.get(self._r)) is not None:
            self._newer = newer
        elif self._newer is None:
            try:
                info = _one(self._r).execute_command("COMMAND INFO", "DELEX")
            except (exceptions.ResponseError, exceptions.RedisClusterException):
                info = ()
            self._newer = self._known[self._r] = any(info.values() if isinstance(info, dict) else info)
        return self._newer


def _one(r: Any) -> Any:
    """A client of one server to ask what it knows: of a cluster, of any."""
    return r.get_redis_connection(r.get_default_node()) if hasattr(r, "nodes_manager") else r


def _without_retry(r: Any) -> Any:
    """A client of the same server that tells an error at once; of a cluster, the very same client."""
    pool = getattr(r, "connection_pool", None)
    if pool is None:
        return r
    options = {**pool.connection_kwargs, "retry": NO_RETRY}
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **options))


class KeepAlive:
    """Extends a Lock every third of its TTL, in a thread of its own.

        with lock.keep_alive() as alive:
            for part in work:
                if alive.lost: break
                part()

    The thread has ended when `stop()`, the `with` block, or the lock's `release()` returns; it also ends when
    the lock is lost or nobody refers to it any more, and never keeps a process from ending. It has a
    connection of its own, on which no command is sent twice. While the server does not answer it goes on
    trying, until the TTL is over. One round trip each time.
    """

    def __init__(self, lock: Lock, on_lost: Callable[[], Any] | None) -> None:
        """`on_lost()` is called once, in that thread: as soon as an answer says so or, without any, when the
        TTL is over and the client's socket_timeout too."""
        self._lock, self._on_lost, self._told = weakref.ref(lock), on_lost, False
        self._r, self._bell, self._ended = _without_retry(lock._r), threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name=f"keep-alive {lock.name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Has the lock ended before it was given back? On time, also while the server is silent."""
        lock = self._lock()
        late = lock is None or (lock.token is not None and time.monotonic() >= lock.locked_until)
        return self._told or late

    def told(self, ours: bool) -> None:
        """What the server has answered to a release."""
        self._told = self._told or not ours

    def look(self) -> None:
        """The lock has been extended: its next turn may be another."""
        self._bell.set()

    def _keep(self) -> None:
        again_at = 0.0
        while not self._ended and (lock := self._lock()) is not None:
            third = lock.ttl / 3
            due = max(lock.locked_until - 2 * third, again_at) - time.monotonic()
            if due > 0:
                del lock  # so that it can go while this thread waits
                self._bell.wait(min(due, third))
                self._bell.clear()
                continue
            try:
                ours = lock._extend(self._r, lock.ttl)
            except FAILED:
                ours, now = not self.lost, time.monotonic()
                again_at = now + min(third, max(lock.locked_until - now, 0.01))
            if not ours:
                self._told = True
                if self._on_lost is not None:
                    self._on_lost()
                return

    def stop(self) -> None:
        """End it; at most the client's socket_timeout later. The lock stays ours until `locked_until`."""
        self._ended = True
        self._bell.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> KeepAlive:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Redlock:
    """A lock on a majority of independent servers: it works while more than half of them do.

    Guarantees: until `locked_until` nobody else has a majority, if no server forgets the lock (restarted
    without its data on disk, or its clock set forward), if all clocks run equally fast within 1 %, and if we
    are not paused after a look at ours. Kleppmann objects that a lock for correctness may not rest on such
    conditions; a holder that was paused writes too late here as well, and nothing fences it off: the servers
    have no counter in common. Antirez answers that a pause before the last answer is noticed, because the
    clock is read after it, and that a restarted server can be kept away for a TTL. Where two holders are
    wrong, and not only wasteful, let the resource decide, or use a system with a consensus protocol.

    All servers are asked at once, on a connection each that is this object's own, and have `timeout` seconds:
    a round takes as long as the slowest answer or `timeout`, not the sum. (To connect may take longer; it
    goes on in a thread, and a server counts as silent meanwhile. Where that costs the majority, `acquire`
    waits for it once, for three timeouts at most, and begins again.) `acquire` is one round; without a
    majority one more takes it back, on all, and after a random pause it tries again. Late answers are read
    later: each connection counts what it still owes, and a release follows its acquisition on the same
    connection, so no server runs them in the wrong order (one 100 replies behind is closed). `votes` and
    `errors` say what came of the last round.

    Source: "Distributed Locks with Redis" on redis.io; from there the drift of 1 % of the TTL plus 2 ms.
    """

    # KEYS      lock
    # ARGV      token; for EXTEND also the TTL in ms
    # returns   1; 0 if it was not ours
    # So short that they are sent as they are: a server that has restarted need not be asked twice.
    RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"
    EXTEND = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"

    def __init__(
        self,
        clients: Sequence[Any],
        name: str,
        *,
        ttl: float,
        wait: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """`wait` is for `with`, as in Lock; `timeout` for each server, by default ttl / 20 but at most 0.2.

        `clients`: redis.Redis of three servers or more, best an odd number. Sends nothing.
        """
        for r in clients:
            _check(r, name, wait)
            if not hasattr(r, "connection_pool"):
                raise TypeError(f"{type(r).__name__} is no client of one server")
        places = [r.connection_pool.connection_kwargs for r in clients]
        places = [(at.get("path"), at.get("host"), at.get("port")) for at in places]
        if len(set(places)) < max(len(clients), 3):
            raise ValueError(
                f"clients are of {len(set(places))} servers; they must be of three or more, one each"
            )
        self.clients, self.name, self.key, self.wait = list(clients), name, name, wait
        self.ttl = _seconds("ttl", ttl)
        self.timeout = min(self.ttl / 20, 0.2) if timeout is None else _seconds("timeout", timeout)
        if self.timeout > self.ttl / 2:
            raise ValueError(f"timeout is {timeout}; it must be at most half of the ttl, {self.ttl / 2:g}")
        self.token: str | None = None
        self.validity, self.locked_until = 0.0, 0.0
        self.votes: tuple[bool | None, ...] = ()
        self.errors: tuple[Exception | None, ...] = ()
        self._servers: list[_Server] = []
        self._pid = 0  # whose connections these are

    def acquire(self, wait: float | None = 0) -> bool:
        """Have it within `wait` seconds (0: one attempt; None: as long as it takes). False: no majority."""
        deadline, pause, patient = _deadline(wait), 0.01, True
        while True:
            token, start = secrets.token_hex(16), time.monotonic()
            self._round("SET", self.key, token, "NX", "PX", round(self.ttl * 1000))
            if self._won(start, self.ttl):
                self.token = token
                return True
            outcome = self.votes, self.errors
            self._round("EVAL", self.RELEASE, 1, self.key, token, certainly=True)
            self.votes, self.errors = outcome
            opening = not all(server.opened(0) for server in self._servers)
            if patient and opening and 2 * self.votes.count(False) < len(self.votes):
                patient, latest = False, time.monotonic() + 3 * self.timeout
                for server in self._servers:
                    server.opened(latest)
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(JITTER.uniform(0, min(left, pause)))
            pause = min(2 * pause, 0.25)

    def _won(self, start: float, seconds: float) -> bool:
        until = start + seconds - (seconds * 0.01 + 0.002)
        validity = until - time.monotonic()
        won = 2 * self.votes.count(True) > len(self.votes) and validity > 0
        self.validity = validity if won else 0.0
        self.locked_until = until if won else self.locked_until
        return won

    def release(self) -> bool:
        """Give it back, on all servers; one that is silent, or to which a connection is being opened, is told
        later. False: no majority says that it had it as ours. One round, if held."""
        if self.token is None:
            return False
        self._round("EVAL", self.RELEASE, 1, self.key, self.token, certainly=True)
        self.token, self.validity, self.locked_until = None, 0.0, 0.0
        return 2 * self.votes.count(True) > len(self.votes)

    def extend(self, ttl: float | None = None) -> bool:
        """Have it for `ttl` seconds from now (default: the lock's). One round.

        False: no majority says yes, or no time was left. `locked_until` is then the earlier of the two ends,
        since some may have done it; 0 if a majority says that they have it no longer.
        """
        seconds, start = self.ttl if ttl is None else _seconds("ttl", ttl), time.monotonic()
        if self.token is None:
            return False
        self.locked_until = min(self.locked_until, start + seconds)
        self._round("EVAL", self.EXTEND, 1, self.key, self.token, round(seconds * 1000))
        if 2 * self.votes.count(False) > len(self.votes):
            self.locked_until = 0.0
        return self._won(start, seconds)

    def close(self) -> None:
        """Close its connections; the next round opens new ones. What is held is held until its TTL ends."""
        self._servers, self._pid = [], 0  # redis-py closes what nobody refers to; a thread may do so later

    def __enter__(self) -> Redlock:
        """Acquire it within the constructor's `wait`, else raise LockError."""
        if not self.acquire(self.wait):
            raise exceptions.LockError(f"{self.name}: no majority within {self.wait:g} s", self.name)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Release it. LockNotOwnedError if it was lost meanwhile, unless the block itself has raised."""
        if self.token is not None and not self.release() and kind is None:
            raise exceptions.LockNotOwnedError(f"{self.name} was lost before the block ended", self.name)

    def _round(self, *command: Any, certainly: bool = False) -> None:
        """Ask all servers at once; then `votes` and `errors` have what came in time.

        What is to be done `certainly` is also sent if it is late, once a connection is there.
        """
        if self._pid != os.getpid():  # none yet, or those of the process that forked this one
            self._servers, self._pid = [_Server(r, self.timeout) for r in self.clients], os.getpid()
        start = time.monotonic()
        packed = self._servers[0].connection.pack_command(*command)
        for server in self._servers:
            server.ask(packed, start + self.timeout, certainly)
        for server in self._servers:  # while one is waited for, the answers of the others come in
            server.hear()
        self.votes = tuple(server.vote for server in self._servers)
        self.errors = tuple(server.error for server in self._servers)


class _Server:
    """A Redlock's own connection to one server, and how many replies it still has to bring."""

    def __init__(self, r: Any, timeout: float) -> None:
        pool, patience = r.connection_pool, 10 * timeout  # to connect, while rounds go on without it
        options = {"socket_timeout": patience, "socket_connect_timeout": patience, "retry": NO_RETRY}
        self.connection = pool.connection_class(**{**pool.connection_kwargs, **options})
        self.owed, self._asked = 0, False
        self.vote: bool | None = None
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._mutex, self._opening, self._later = threading.Lock(), False, list[Any]()
        self._deadline = 0.0

    def ask(self, packed: Any, deadline: float, certainly: bool) -> None:
        """Send it; without a connection, a thread opens one and sends it, if it is in time or certainly."""
        self.vote, self.error, self._asked, self._deadline = None, SILENT, certainly, deadline
        with self._mutex:
            if self._opening:  # since an earlier round
                self._later += [packed] * certainly
                return
        self._asked = True
        try:
            while self.connection._sock is not None and self.connection.can_read(0):
                self._read(0)  # what was too late for an earlier round; raises if the connection was closed
            if self.owed >= 100:
                self.close()
            if self.connection._sock is not None:
                self._send(packed)
                return
        except FAILED:
            self.close()
        self._opening, self._later = True, [packed] * certainly
        command = None if certainly else packed
        self._thread = threading.Thread(target=self._open, args=(command, deadline), daemon=True)
        self._thread.start()

    def _open(self, packed: Any, deadline: float) -> None:
        failed: Exception | None = None
        try:
            self.connection.connect()
        except FAILED as error:
            failed = error
        with self._mutex:
            self._opening = False
            if failed is not None:
                self.close(failed)
                return
            try:
                if packed is not None and time.monotonic() < deadline:
                    self._send(packed)
                for command in self._later:
                    self._send(command)
            except FAILED as error:
                self.close(error)

    def _send(self, packed: Any) -> None:
        self.owed += 1  # before: an interrupt may leave one too many, which is harmless, but not one too few
        self.connection.send_packed_command(packed, check_health=False)

    def opened(self, deadline: float) -> bool:
        """Has the connection that was being opened come about, or failed, by then?"""
        if self._thread is not None:
            self._thread.join(max(deadline - time.monotonic(), 0))
        with self._mutex:
            return not self._opening

    def hear(self) -> None:
        """Read until the deadline; the last reply that is owed is the answer of this round."""
        if not self.opened(self._deadline):
            return
        self._thread = None
        try:
            while self.owed:
                reply = self._read(max(self._deadline - time.monotonic(), 0))
                if self._asked and not self.owed:
                    self.error = reply if isinstance(reply, Exception) else None
                    self.vote = bool(reply) if self.error is None else None
        except exceptions.TimeoutError:
            pass  # it stays owed
        except FAILED as error:
            self.close(error)

    def _read(self, timeout: float) -> Any:
        if not self.owed:
            raise exceptions.ConnectionError("a reply that nobody asked for")
        try:
            reply = self.connection.read_response(timeout=timeout, disconnect_on_error=False)
        except exceptions.ResponseError as error:
            reply = error
        self.owed -= 1
        return reply

    def close(self, error: Exception | None = None) -> None:
        self.connection.disconnect()
        self.owed, self.error = 0, error or self.error
