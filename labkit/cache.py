"""Caches on Redis: CacheAside in front of any loader, WriteThrough in front of a store with versions.

    cache = CacheAside(r, load_product, "product", ttl=60)      # load_product(7) gives a row, or None
    cache.get(7)                                                # from Redis; else loaded, and kept
    save_product(7, price=100)                                  # first the database, committed,
    cache.invalidate(7)                                         # then the cache

What holds for both:

* The database, or whatever `load` asks, is the truth. What is cached may go at any moment, and always has a
  TTL, by the server's clock: `ttl` + `stale` after it was stored, it is gone.
* Values go through `dumps` and `loads`: JSON by default, never pickle. `get` gives a copy of one's own; with
  JSON a tuple is a list from the first call on. None means that there is no such thing, and is cached as an
  empty string, so `dumps` must never give one. 0, "", [], {} and False are values.
* What cannot be read (garbage, another type, an old schema) is a miss, and is replaced. Where rows change so
  that the old ones can be read and are wrong, change the name: "product:v2".
* Reads fail open: where Redis is down, full, read-only, busy or too slow, the database is asked. A plain
  redis.Redis is replaced by a client with the same settings (a client-side cache is not taken along) and a
  pool of its own, `.r`, closed with the object or by `.r.close()`: it has `timeout` seconds to answer, as
  many to connect, and sends nothing twice. Others are used as they are, with their timeouts and retries: a
  cluster's, a Sentinel's, a subclass of redis.Redis, any with timeout=None. After an error of the connection
  one read in `pause` seconds tries again, of whatever key: a dead shard of a cluster makes misses of all.
* Writes do not: `invalidate`, `refresh` and `save` raise Redis's error, since a value that silently stays
  stale is worse. By then the database has been written.

A key is a str or an int (1 and "1" are one key); its braces, `name:{key}`, put all that belongs to it in one
slot of a cluster. Reading from replicas, or with a client-side cache, which hears of a change a moment later,
voids what is promised here. Times are in seconds, kept to the millisecond. An object serves all threads; in
a forked process it begins without them. Misuse raises ValueError or TypeError before anything is sent."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import cache
from typing import Any, NamedTuple

from redis import BlockingConnectionPool, ConnectionPool, Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

FAILED = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException, OSError)
FIRST, LONGEST = 0.004, 0.05  # seconds between two looks of who waits: at first, and later on
MISS: Any = object()  # nothing is cached; None says that there is nothing
RANDOM = secrets.SystemRandom()  # leaves the program's own random numbers alone, and differs after a fork

Key = str | int
Loaded = dict[Key, tuple[Any, int]]  # by key: the value as text, and the ms that it took to load
Alone = list[tuple[float, Loaded]]  # a load without Redis, if there was one: when it began, and what it gave
Flight = Future[Alone]
compact = json.JSONEncoder(separators=(",", ":")).encode


class Stats(NamedTuple):
    """Of one CacheAside. What is asked for is a hit (somebody had loaded it), a miss (its caller loads it),
    or stale (given after `ttl`).

    `loads`: calls of load or load_many. `waits`: how often somebody waited for another's load, also of a key
    of get_many. `refused_fills`: what was loaded, and not cached by this, as the lease was gone: invalidated,
    refreshed or expired meanwhile, or the script was sent again. `errors`: of Redis and its client, to reads.
    """

    hits: int
    misses: int
    loads: int
    waits: int
    stale: int
    refused_fills: int
    errors: int


def _seconds(name: str, value: float, least: float = 0.001, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; it must be a number from {least:g} to {most:g}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be from {least:g} to {most:g}")
    return value


def _ms(seconds: float) -> int:
    return max(round(seconds * 1000), 1)


@cache
def _sha(lua: str) -> str:
    return hashlib.sha1(lua.encode()).hexdigest()


class _Unavailable(Exception):
    """Redis has not been asked, or gave no answer that is of use: its error is the cause."""


class _Redis:
    """Asks with little patience: after an error of the connection one caller in `pause` seconds, no more."""

    def __init__(self, r: Any, name: str, timeout: float | None, pause: float) -> None:
        command = getattr(r, "execute_command", None)
        if command is None or hasattr(r, "execute") or inspect.iscoroutinefunction(command):
            raise TypeError(f"{type(r).__name__} is no client such as redis.Redis, or is an async one")
        if not isinstance(name, str) or not name or "{" in name or "}" in name:
            raise ValueError(f"name is {name!r}; it must be a str that is not empty, without braces")
        self.r = r if timeout is None else _bounded(r, _seconds("timeout", timeout))
        self.name, self.pause = name, _seconds("pause", pause, 0)
        self.errors, self._away_until, self.decode = 0, 0.0, self.r.get_encoder().decode

    def key(self, key: Key) -> str:
        if type(key) is not int and (not isinstance(key, str) or key[:1] in ("", "}")):
            wanted = "an int, or a str that is not empty and does not begin with }"
            raise (ValueError if isinstance(key, str) else TypeError)(f"key is {key!r}; it must be {wanted}")
        return f"{self.name}:{{{key}}}"

    def ask(self, do: Callable[..., Any], *args: Any) -> Any:
        """What `do` answers, unless Redis is away."""
        if self._away_until:
            if time.monotonic() < self._away_until:
                raise _Unavailable
            self._away_until = time.monotonic() + self.pause  # for the others, while this one tries
        try:
            answer = do(*args)
        except (*FAILED, UnicodeDecodeError) as error:
            self.errors += 1
            if not isinstance(error, exceptions.MaxConnectionsError):
                self._away_until = time.monotonic() + self.pause if isinstance(error, AWAY) else 0.0
            raise _Unavailable from error
        self._away_until = 0.0
        return answer

    def get_all(self, names: list[str]) -> list[Any]:
        """MGET; in a cluster, where the keys are in many slots, a pipeline. One round trip."""
        if isinstance(self.r, Redis):
            return list(self.ask(self.r.mget, names))
        return list(self.ask(self._send, [("GET", name) for name in names]))

    def script(self, lua: str, calls: list[Any]) -> list[Any]:
        """What a script answers to each of these calls. One round trip, if it has been loaded."""
        return list(self.ask(self.run, lua, calls))

    def run(self, lua: str, calls: list[Any]) -> list[Any]:
        """The same, with Redis's errors as they are."""
        try:
            return self._send([("EVALSHA", _sha(lua), *call) for call in calls])
        except exceptions.NoScriptError:  # it may repeat what has been done; all of them bear that
            return self._send([("EVAL", lua, *call) for call in calls])

    def _send(self, commands: list[Any]) -> list[Any]:
        """What is answered, as bytes, since a value may be no text."""
        if len(commands) == 1:
            return [self.r.execute_command(*commands[0], NEVER_DECODE=True)]
        with self.r.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command, NEVER_DECODE=True)
            return list(pipe.execute())


def _bounded(r: Any, timeout: float) -> Any:
    """A client of the same server that waits no longer than `timeout`, and sends nothing twice."""
    pool: Any = getattr(r, "connection_pool", None)
    if type(r) is not Redis or isinstance(pool, SentinelConnectionPool):
        return r
    options = {**pool.connection_kwargs, "socket_timeout": timeout, "socket_connect_timeout": timeout}
    options |= {"connection_class": pool.connection_class, "max_connections": pool.max_connections}
    options["retry"] = Retry(NoBackoff(), 0)
    if isinstance(pool, BlockingConnectionPool):
        return Redis.from_pool(BlockingConnectionPool(timeout=timeout, **options))
    return Redis.from_pool(ConnectionPool(**options))


def _split(raw: Any) -> tuple[int, Any]:
    """The number before the first colon, and what is behind it."""
    number, text = raw.split(b":" if isinstance(raw, bytes) else ":", 1)
    return int(number), text


def _text(dumps: Callable[[Any], Any], value: Any) -> Any:
    text = "" if value is None else dumps(value)
    if not isinstance(text, str | bytes) or (not text and value is not None):
        raise TypeError(f"dumps gave {text!r}; it must give a str or bytes that is not empty")
    return text


class CacheAside:
    """Reads through a cache: one loader at a time, and nothing older than the last invalidation.

    Guarantees, if each writer calls `invalidate` after its commit: a `get` that begins when `invalidate` has
    returned never gives what was there before the commit. And however many callers, threads and processes
    miss at once, one of them loads; the others wait for that, or have the old value (`stale`, `beta`).

    Both rest on the lease. Who misses takes it: a random token with a TTL. Only who still holds it may fill,
    and `invalidate` deletes value and lease: what was read from the database before is refused. Who was
    refused gives what it loaded to its own caller, who had asked before; the others ask again.

    Not guaranteed: a writer that crashes after its commit, or does not invalidate, leaves the old value until
    its TTL ends; so may a server that comes back with older data, or a replica that takes over and has not
    heard of the invalidation. A TTL of few ms may be over before those who wait have looked: the next loads.

    A loader that crashed blocks the others for `lease` seconds. One that lives keeps its lease, however long
    it takes: a thread extends it (not with a subclass of redis.Redis, which might not be for two threads).
    Who has waited for `wait` seconds loads for himself, and caches nothing. If `load` fails, its caller has
    the old value, if there is one (`stale`, `beta`); else the error goes to him and to all who wait in the
    same process, and the next one tries. Without Redis, threads share a load that began after they asked.

    Round trips: a hit one (GET; with beta or stale a script), a miss three, for one key or for a thousand.
    Keys: `name:{key}` and `name:{key}:lease`. Source: Nishtala et al., "Scaling Memcache at Facebook" (2013).
    """

    # KEYS      value, lease
    # ARGV      token ('': only look), TTL of the lease in ms, how many ms or fewer make a value due
    # returns   value, ms that it has left, 1 if the lease is ours (also if a lost reply is asked for again)
    LOOK = """-- look
    local value, left = redis.pcall('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
    if type(value) == 'table' then value, left = false, -2 end -- no string: as good as nothing
    if ARGV[1] == '' or left > tonumber(ARGV[3]) then return {value, left, 0} end
    local holder = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])
    return {value, left, (not holder or holder == ARGV[1]) and 1 or 0}
    """

    # KEYS      value, lease
    # ARGV      token, TTL of the value in ms, the ms that it took to load and a colon (or ''), value
    # returns   1; 0 if the lease is no longer ours
    FILL = """-- fill
    if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[3] .. ARGV[4], 'PX', ARGV[2])
    return redis.call('DEL', KEYS[2])
    """

    # KEYS      value, lease
    # ARGV      token, TTL of the lease in ms (0 gives it back)
    # returns   1; 0 if it is no longer ours
    EXTEND = """-- extend
    if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[2], ARGV[2])
    """

    def __init__(
        self,
        r: Any,
        load: Callable[[Any], Any],
        name: str,
        *,
        ttl: float,
        jitter: float = 0.0,
        negative_ttl: float | None = None,
        load_many: Callable[[list[Any]], Mapping[Any, Any]] | None = None,
        beta: float = 0.0,
        stale: float = 0.0,
        lease: float = 5.0,
        wait: float = 30.0,
        timeout: float | None = 0.25,
        pause: float = 1.0,
        dumps: Callable[[Any], str | bytes] = compact,
        loads: Callable[[Any], Any] = json.loads,
    ) -> None:
        """`load(key)` gives a value or None; `load_many(keys)` a dict, without those that are not there.

        `jitter`: each TTL is shorter by a random share of up to so much (0 to 1), so that what is cached at
        one moment does not expire at one moment. `negative_ttl`: for None; by default `ttl`. `stale`: after
        its TTL a value stays for so many seconds, for all but the one who loads it anew; never after an
        invalidation. `beta`: one caller loads before the TTL ends, the likelier the closer the end and the
        longer a load takes (XFetch; 1 is best in theory, more is earlier: Vattani et al., VLDB 2015).
        """
        for what in (load, load_many or load, dumps, loads):
            if not callable(what):
                raise TypeError(f"{what!r} is not callable")
        self._redis, self._counts = _Redis(r, name, timeout, pause), dict.fromkeys(Stats._fields, 0)
        self.r, self.name, self.key = self._redis.r, name, self._redis.key
        self._load_one, self._load_many, self._dumps, self._loads = load, load_many, dumps, loads
        self.ttl, self.jitter = _seconds("ttl", ttl), _seconds("jitter", jitter, 0, 1)
        self.negative_ttl = ttl if negative_ttl is None else _seconds("negative_ttl", negative_ttl)
        self.beta, self.stale = _seconds("beta", beta, 0, 1000), _seconds("stale", stale, 0)
        self.lease, self.wait = _seconds("lease", lease, 0.05), _seconds("wait", wait, 0)
        self._plain, self._late = not (beta or stale), stale * 1000
        self._begin()
        CACHES.add(self)

    def _begin(self) -> None:
        """Without any thread: also in a process that was forked."""
        self._mutex = threading.Lock()
        self._flights: dict[str, Flight] = {}  # by key: what a thread of this process sees to
        self._loading: dict[str, list[Key]] = {}  # by token: the leases to be extended
        self._keeper: threading.Thread | None = None

    def lease_key(self, key: Key) -> str:
        return f"{self.key(key)}:lease"

    def get(self, key: Key) -> Any:
        """The value, or None if there is no such thing."""
        value, due = self._peek(key)
        if due < 0:
            self._count("hits")
            return value
        return self._share(key, value, due)

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values of those that there are: one MGET, then one round trip for all leases, one load, and one
        round trip that fills (twice that, or more, where others are loading some of them)."""
        names = {key: self.key(key) for key in keys}
        if not names:
            return {}
        once = {name: key for key, name in names.items()}  # of 1 and "1" one is loaded
        seen = self._peek_many(list(once.values()))
        missed = {key: due for key, (_, due) in seen.items() if due >= 0}
        self._count("hits", len(seen) - len(missed))
        found = {key: value for key, (value, due) in seen.items() if due < 0}
        found |= self._obtain(missed, time.monotonic() + self.wait, [])
        return {key: found[once[name]] for key, name in names.items() if found[once[name]] is not None}

    def invalidate(self, *keys: Key) -> None:
        """Forget them, and refuse what is being loaded now. Call it after the commit, never before. One round
        trip (in a cluster one per slot). Raises Redis's error: they may then stay stale; call it again."""
        if keys:
            self.r.delete(*(name for key in keys for name in (self.key(key), self.lease_key(key))))

    def refresh(self, key: Key) -> Any:
        """Load it now and cache that; until then readers have the old value, also if it fails. Once it has
        returned, nothing older is cached, whoever else crashes and whatever expires: if its lease is gone, it
        invalidates. Raises Redis's error. After a write `invalidate` is safer, as it needs no load."""
        token = secrets.token_hex(8)
        self.r.set(self.lease_key(key), token, px=_ms(self.lease))
        loaded = self._load_leased([key], token)
        if self._fill(loaded, token, self._redis.run):
            self.invalidate(key)
        return self._values(loaded)[key]

    @property
    def stats(self) -> Stats:
        """What has come of all calls of this object so far."""
        with self._mutex:
            return Stats(**{**self._counts, "errors": self._redis.errors})

    @property
    def hit_ratio(self) -> float:
        """The share that their callers did not have to load, 0.0 to 1.0."""
        hits, misses, _, _, stale, *_ = self.stats
        return (hits + stale) / max(hits + stale + misses, 1)

    def _count(self, what: str, n: int = 1) -> None:
        with self._mutex:
            self._counts[what] += n

    def _peek(self, key: Key) -> tuple[Any, float]:
        """The value, or MISS; and -1, or what makes it due: that it has so many ms left, or fewer."""
        try:
            if self._plain:
                return self._judged(self._redis.ask(self.r.get, self.key(key)))
            [(raw, left, _)] = self._look({key: 0})
            return self._judged(raw, left)
        except _Unavailable:
            return MISS, self._late

    def _peek_many(self, keys: list[Key]) -> dict[Key, tuple[Any, float]]:
        try:
            if self._plain:
                seen = [(raw, math.inf, 0) for raw in self._redis.get_all([self.key(key) for key in keys])]
            else:
                seen = self._look(dict.fromkeys(keys, 0))
        except _Unavailable:
            return dict.fromkeys(keys, (MISS, self._late))
        return {key: self._judged(raw, left) for key, (raw, left, _) in zip(keys, seen, strict=True)}

    def _judged(self, raw: Any, left: float = math.inf) -> tuple[Any, float]:
        value, cost = self._read(raw)
        if value is MISS:
            return MISS, self._late
        early = cost * self.beta * -math.log(1 - RANDOM.random()) if cost else 0
        return value, -1 if left > self._late + early else max(left, self._late)

    def _look(self, due: Mapping[Key, float], token: str = "") -> list[tuple[Any, float, int]]:
        lease = _ms(self.lease)
        calls = [(2, self.key(key), self.lease_key(key), token, lease, ms) for key, ms in due.items()]
        return self._redis.script(self.LOOK, calls)

    def _read(self, raw: Any) -> tuple[Any, int]:
        """The value, and the ms that it took to load; MISS if there is none that can be read."""
        if raw is None:
            return MISS, 0
        try:
            text = self._redis.decode(raw)
            cost, text = _split(text) if self.beta else (0, text)
            return self._value(text), cost
        except Exception:  # whatever `loads` raises
            return MISS, 0

    def _value(self, text: Any) -> Any:
        return self._loads(text) if text else None

    def _share(self, key: Key, value: Any, due: float) -> Any:
        """One thread of this process sees to it; the others have the old value, or wait for that thread."""
        name, asked = self.key(key), time.monotonic()
        deadline = asked + self.wait
        while due >= 0:
            mine: Flight = Future()
            flight = self._flights.setdefault(name, mine)
            if flight is mine:
                return self._lead(key, due, flight, deadline)
            if value is not MISS:
                self._count("hits" if due > self._late else "stale")
                return value
            if time.monotonic() >= deadline:
                self._flights.pop(name, None)  # its thread is stuck
                return self._values(self._load([key]))[key]
            self._count("waits")
            if loaded := self._follow(flight, asked, deadline):
                self._count("hits")
                return self._values(loaded).popitem()[1]
            value, due = self._peek(key)
        self._count("hits")
        return value

    def _lead(self, key: Key, due: float, flight: Flight, deadline: float) -> Any:
        """See to it, for all threads of this process that want it meanwhile."""
        alone: Alone = []
        try:
            return self._obtain({key: due}, deadline, alone)[key]
        except Exception as error:
            flight.set_exception(error)
            raise
        finally:
            self._flights.pop(self.key(key), None)
            if not flight.done():
                flight.set_result(alone)

    def _follow(self, flight: Flight, asked: float, deadline: float) -> Any:
        """What was loaded without Redis, if that began after we asked: else it may be from before an
        invalidation that we asked after. None: look again what is cached now."""
        try:
            error = flight.exception(max(deadline - time.monotonic(), 0))
        except TimeoutError:
            return None
        if error is not None:
            raise error
        return next((loaded for began, loaded in flight.result() if asked < began), None)

    def _obtain(self, due: dict[Key, float], deadline: float, alone: Alone) -> dict[Key, Any]:
        """The values of all these: load those whose lease is to be had, and wait for the others."""
        found, token, pause = dict[Key, Any](), secrets.token_hex(8), FIRST
        while due:
            try:
                seen = self._look(due, token)
            except _Unavailable as error:
                return found | self._load_alone(list(due), token if error.__cause__ else "", alone)
            ours, others = dict[Key, Any](), dict[Key, float]()
            for key, (raw, left, granted) in zip(due, seen, strict=True):
                value, _ = self._read(raw)
                if granted:
                    ours[key] = value
                elif value is not MISS:
                    found[key] = value
                    self._count("hits" if left > self._late else "stale")
                else:
                    others[key] = max(due[key], left)  # what cannot be read is due as it is
            if ours:
                found |= self._renew(ours, token)
            elif others == due:
                if (left := deadline - time.monotonic()) <= 0:
                    return found | self._values(self._load(list(due)))
                self._count("waits", len(due) if pause == FIRST else 0)
                time.sleep(min(RANDOM.uniform(pause / 2, pause), left))
                pause = min(pause * 1.5, LONGEST)
            due = others
        return found

    def _load_alone(self, keys: list[Key], token: str, alone: Alone) -> dict[Key, Any]:
        """Load them without Redis. What it may have leased to `token`, though it gave an error, goes back."""
        began = time.monotonic()
        try:
            loaded = self._load(keys)
        finally:
            if token:
                self._extend({token: keys}, 0)
        alone.append((began, loaded))  # for the others, who cannot look what is cached
        return self._values(loaded)

    def _renew(self, old: dict[Key, Any], token: str) -> dict[Key, Any]:
        """Load these, whose leases are ours, and cache them; where that fails, the old values will do."""
        try:
            loaded = self._load_leased(list(old), token)
        except Exception:
            if any(value is MISS for value in old.values()):
                raise
            return old
        with contextlib.suppress(_Unavailable):
            self._fill(loaded, token, self._redis.script)
        return self._values(loaded)

    def _load(self, keys: list[Key]) -> Loaded:
        self._count("misses", len(keys))
        start, values = time.monotonic(), dict[Key, Any]()
        if self._load_many is not None and len(keys) > 1:
            self._count("loads")
            values.update(self._load_many(list(keys)))  # a list that it may change
        else:
            for key in keys:
                self._count("loads")
                values[key] = self._load_one(key)
        cost = _ms((time.monotonic() - start) / len(keys))
        return {key: (_text(self._dumps, values.get(key)), cost) for key in keys}

    def _values(self, loaded: Loaded) -> dict[Key, Any]:
        return {key: self._value(text) for key, (text, _) in loaded.items()}

    def _load_leased(self, keys: list[Key], token: str) -> Loaded:
        """Load them while their leases are kept; if that fails, give them back."""
        self._keep(token, keys)
        try:
            return self._load(keys)
        except BaseException:
            self._extend({token: keys}, 0)
            raise
        finally:
            self._loading.pop(token, None)

    def _fill(self, loaded: Loaded, token: str, run: Callable[[str, list[Any]], list[Any]]) -> int:
        """Cache them, whose leases end by that; how many were refused."""
        calls = []
        for key, (text, cost) in loaded.items():
            ttl = (self.ttl if text else self.negative_ttl) * (1 - self.jitter * RANDOM.random()) + self.stale
            prefix = f"{cost}:" if self.beta else ""
            calls.append((2, self.key(key), self.lease_key(key), token, _ms(ttl), prefix, text))
        try:
            refused = run(self.FILL, calls).count(0)
        except BaseException:
            self._extend({token: list(loaded)}, 0)
            raise
        self._count("refused_fills", refused)
        return refused

    def _keep(self, token: str, keys: list[Key]) -> None:
        """A thread extends the leases in `_loading`, while there are any."""
        if isinstance(self.r, Redis) and type(self.r) is not Redis:
            return
        with self._mutex:
            self._loading[token] = keys
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._keep_all, name=f"{self.name}:lease", daemon=True)
                self._keeper.start()

    def _keep_all(self) -> None:
        while True:
            time.sleep(self.lease / 3)
            with self._mutex:
                loading = dict(self._loading)
                if not loading:
                    self._keeper = None
                    return
            self._extend(loading, _ms(self.lease))

    def _extend(self, leases: Mapping[str, list[Key]], ms: int) -> None:
        """By token; 0 ms gives them back. Heeds no pause: an error of another key must not cost a lease."""
        calls = [(2, self.key(k), self.lease_key(k), token, ms) for token in leases for k in leases[token]]
        with contextlib.suppress(*FAILED):  # then they end when their TTL does
            self._redis.run(self.EXTEND, calls)


CACHES = weakref.WeakSet[CacheAside]()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=lambda: [*map(CacheAside._begin, CACHES)])


class WriteThrough:
    """Writes to the store, then to the cache; what is cached carries its version and never goes back.

    `store.load(key)` gives a row (a dict with an int "version" from 0 on, which every write raises) or None;
    `store.save(key, **changes)` writes it, commits, and gives the new row, or None if there is no such row.

    Guarantees: of two versions the newer stays, in whatever order they arrive, so a slow writer or reader
    cannot undo a newer write: a `get` that begins after `save` has returned sees that version or a newer one,
    if the entry has not gone in between. Not safe: a crash between commit and cache leaves the old version
    until its TTL ends (an outbox cures that); so does an older write that is still on its way when a newer
    entry expires or is evicted: nothing is left to compare with. Nor are deletions, which leave no version:
    after one call `forget`; a row that is made anew must go on counting.

    Round trips: a hit one, a miss two, a write one. Keys: `name:{key}` with "version:JSON".
    """

    # KEYS      entry
    # ARGV      version, text, TTL in ms
    # returns   1; 0 if a newer version is there
    PUT = """-- put if newer
    local entry, new = redis.pcall('GETRANGE', KEYS[1], 0, 99), ARGV[1]
    local held = type(entry) == 'string' and string.match(entry, '^([1-9]%d*):') or ''
    if #held > #new or #held == #new and held > new then return 0 end -- a Lua number has 53 bits
    redis.call('SET', KEYS[1], new .. ':' .. ARGV[2], 'PX', ARGV[3])
    return 1
    """

    def __init__(
        self,
        r: Any,
        store: Any,
        name: str,
        *,
        ttl: float,
        timeout: float | None = 0.25,
        pause: float = 1.0,
        dumps: Callable[[Any], str | bytes] = compact,
        loads: Callable[[Any], Any] = json.loads,
    ) -> None:
        for what in ("load", "save"):
            if not callable(getattr(store, what, None)):
                raise TypeError(f"store is {store!r}; it must have .load(key) and .save(key, **changes)")
        self._redis = _Redis(r, name, timeout, pause)
        self.r, self.name, self.key = self._redis.r, name, self._redis.key
        self.store, self.ttl, self._dumps, self._loads = store, _seconds("ttl", ttl), dumps, loads

    def get(self, key: Key) -> Any:
        """The row, or None if there is none."""
        name = self.key(key)
        with contextlib.suppress(Exception):  # Redis is away, or it is absent, or not to be read
            return self._value(_split(self._redis.ask(self.r.get, name))[1])
        row = self.store.load(key)
        with contextlib.suppress(_Unavailable):
            self._redis.ask(self._put, key, row)
        return self._value(_text(self._dumps, row))

    def save(self, key: Key, /, **changes: Any) -> Any:
        """Write it; the new row, or None if there is none. Raises Redis's error, after the row is saved."""
        name, row = self.key(key), self.store.save(key, **changes)
        try:
            if row is None:
                self.r.delete(name)
            else:
                self._put(key, row)
        except Exception as error:
            if not isinstance(error, FAILED):  # what cannot be cached, such as by `dumps`
                with contextlib.suppress(*FAILED):
                    self.r.delete(name)
            error.add_note(f"{name}: the store has been written; the cache may be older, until its TTL ends")
            raise
        return row

    def forget(self, *keys: Key) -> None:
        """Remove them from the cache. One round trip (in a cluster one per slot). Raises Redis's error."""
        if keys:
            self.r.delete(*map(self.key, keys))

    def _value(self, text: Any) -> Any:
        return self._loads(text) if text else None

    def _put(self, key: Key, row: Any) -> bool:
        version = 0 if row is None else row["version"]
        if type(version) is not int or not 0 <= version < 10**99:
            raise ValueError(f"the version of {key!r} is {version!r}; it must be an int from 0 to 10**99 - 1")
        call = (1, self.key(key), version, _text(self._dumps, row), _ms(self.ttl))
        return bool(self._redis.run(self.PUT, [call])[0])
