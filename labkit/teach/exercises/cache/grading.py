"""What the graders of chapter 03 share: sources that count, what is in Redis, and actors that wait."""

from __future__ import annotations

import base64
import binascii
import contextlib
import copy
import functools
import itertools
import json
import os
import pickletools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from labkit.rig.race import explore, outside
from labkit.teach.exercises import Failure
from labkit.teach.exercises.lock import grading as stories
from labkit.teach.exercises.lock.grading import Story
from labkit.teach.lab import Lab

TTL, NEGATIVE_TTL = 60.0, 20.0
"""Seconds that do not end while a grade runs."""

THING = {"id": 7, "name": 'Anna\'s "lamp" für dich', "price": 0, "tags": [], "sold": None, "new": True}
VALUES = (THING, 42, "text", [1, {"two": 2.5}], 10**17 + 1, True)
FALSY: tuple[Any, ...] = (0, "", [], False, {}, 0.0)
DISGUISED = ("null", "None", "nil", '""', "0", " ", "-1", "{}", [None], "false", "é")
"""Values that look like something else."""
LONG = "a long text " * 400


class Broken(Exception):
    """What a load raises that fails."""


class Source:
    """What is loaded: it counts its calls, does `meanwhile()` in each, and gives a fresh copy of `value`."""

    def __init__(self, value: Any, meanwhile: Callable[[], Any] | None = None) -> None:
        self.value, self.meanwhile, self.calls = value, meanwhile, 0

    def __call__(self) -> Any:
        self.calls += 1
        if self.meanwhile is not None:
            self.meanwhile()
        if isinstance(self.value, Exception):
            raise self.value
        return copy.deepcopy(self.value)


class Query(Source):
    """The same, and a load is a step of the exploration."""

    def __call__(self) -> Any:
        return outside(("SQL", "SELECT", "thing"), super().__call__, reads=["thing"])


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types throughout: 0, 0.0, False and "0" are four values."""
    try:
        return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    except (TypeError, ValueError):
        return False


# What is in Redis


Snapshot = dict[bytes, tuple[int, bytes]]


def snapshot(raw: Any) -> Snapshot:
    """Every key with its PTTL and its DUMP."""
    found = {key: (raw.pttl(key), raw.dump(key)) for key in sorted(raw.scan_iter())}
    return {key: (left, blob) for key, (left, blob) in found.items() if blob is not None}


def put_back(r: Any, state: Snapshot) -> None:
    """Redis is as it was then: nothing else is there, and every TTL begins anew."""
    r.flushdb()
    for key, (left, blob) in state.items():
        r.restore(key, max(left, 0), blob)


def texts(raw: Any, key: bytes) -> list[str]:
    """The values under a key, as text."""
    kind = raw.type(key)
    if kind == b"string":
        found = [raw.get(key)]
    elif kind == b"hash":
        found = [word for pair in sorted(raw.hgetall(key).items()) for word in pair]
    elif kind == b"list":
        found = raw.lrange(key, 0, -1)
    else:
        found = (
            raw.zrange(key, 0, -1) if kind == b"zset" else sorted(raw.smembers(key)) if kind == b"set" else []
        )
    return [word.decode("utf-8", "replace") for word in found if word is not None]


def is_pickle(text: str) -> bool:
    """Is this a pickle, as it is or in base64?"""
    plain = text.encode("latin-1", "replace")
    candidates = [plain]
    with contextlib.suppress(binascii.Error, ValueError):
        candidates.append(base64.b64decode(plain, validate=True))
    for data in candidates:
        try:
            names = [code.name for code, _, _ in pickletools.genops(data)]
        except Exception:
            continue
        if len(names) > 2 and data.endswith(b"."):
            return True
    return False


def documents(text: str) -> Iterator[Any]:
    """Every JSON document that begins anywhere in the text, and whatever is within it."""
    decoder = json.JSONDecoder()
    for start, letter in enumerate(text):
        if letter in '{["':
            try:
                yield from _within(decoder.raw_decode(text, start)[0])
            except ValueError:
                continue


def _within(document: Any) -> Iterator[Any]:
    yield document
    parts: Any = ()
    if isinstance(document, dict):
        parts = document.values()
    elif isinstance(document, list):
        parts = document
    elif isinstance(document, str):
        parts = documents(document)
    for part in parts:
        yield from _within(part)


# Threads and processes


def quietly(grade: Callable[[Any, Lab], None]) -> Callable[[Any, Lab], None]:
    """That grade, where threads of the answer print no stack traces; its timers do not outlive the grade."""

    @functools.wraps(grade)
    def quiet(answer: Any, lab: Lab) -> None:
        others, hook = set(threading.enumerate()), threading.excepthook

        def except_from_the_answers(args: Any) -> None:
            if args.thread in others:
                hook(args)

        with mock.patch.object(threading, "excepthook", except_from_the_answers):
            try:
                grade(answer, lab)
            finally:
                _end([thread for thread in threading.enumerate() if thread not in others])

    return quiet


def _end(threads: list[threading.Thread]) -> None:
    until = time.monotonic() + 0.5
    for thread in threads:
        if isinstance(thread, threading.Timer):
            thread.cancel()
    for thread in threads:
        with contextlib.suppress(RuntimeError):
            thread.join(max(0.0, until - time.monotonic()))


@contextlib.contextmanager
def another_process(answer: Any) -> Iterator[None]:
    """Meanwhile os.getpid() and hash() give what they might give in another process."""
    pid, real = os.getpid(), hash

    def other_hash(value: Any) -> int:
        return real(("elsewhere", value)) if isinstance(value, str | bytes | tuple) else real(value)

    def other_pid() -> int:
        return pid + 1

    with contextlib.ExitStack() as stack:
        for space in _spaces(answer):
            names = {name: other_pid for name, value in space.items() if value is os.getpid}
            stack.enter_context(mock.patch.dict(space, {"hash": other_hash, **space, **names}))
        stack.enter_context(mock.patch.object(os, "getpid", other_pid))
        yield


PROCESS = "what differs from process to process: hash() of a text, os.getpid()"


@contextlib.contextmanager
def sleeping(answer: Any, nap: Callable[[float], None]) -> Iterator[None]:
    """In this thread sleeps are `nap(seconds)`, and the clocks go on by as much."""
    slept, mine = 0.0, threading.get_ident()
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        nonlocal slept
        if threading.get_ident() != mine:
            real_sleep(seconds)
            return
        slept += seconds
        nap(seconds)

    def ahead(clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: clock() + (slept if threading.get_ident() == mine else 0)

    clocks = [time.time, time.monotonic, time.perf_counter]
    stand_ins: list[tuple[Any, Any]] = [(time.sleep, sleep), *((clock, ahead(clock)) for clock in clocks)]
    with contextlib.ExitStack() as stack:
        for space in (vars(time), *_spaces(answer)):
            names = {n: fake for n, value in space.items() for real, fake in stand_ins if value is real}
            stack.enter_context(mock.patch.dict(space, names))
        yield


def _spaces(answer: Any) -> list[dict[str, Any]]:
    """The names that the functions of an answer see."""
    found = getattr(_function(answer), "__globals__", None)
    return [found] if found is not None and found is not globals() else []


# Explorations


class _Enough(BaseException):
    """A client that waits has asked often enough."""


@dataclass
class Waiting:
    """What came of an actor that was still waiting when it had asked Redis so many times, and when it did."""

    asked: list[float]

    @property
    def pauses(self) -> list[float]:
        """Seconds from each question to the next."""
        return [after - before for before, after in itertools.pairwise(self.asked)]


class _Counted:
    """A pool that stops whoever takes a connection too often: a pipeline or a WATCH counts as one."""

    def __init__(self, pool: Any, most: Callable[[], int], naps: int) -> None:
        self.pool, self.most, self.naps, self.asked = pool, most, naps, list[float]()
        self.held = 0

    def get_connection(self, *args: Any, **options: Any) -> Any:
        now = time.monotonic()
        if self.asked and now - self.asked[-1] > 1e-6:
            self.naps -= 1
        if len(self.asked) >= self.most() or self.naps < 0:
            raise _Enough
        self.asked.append(now)
        connection = self.pool.get_connection(*args, **options)
        self.held += 1
        return connection

    def release(self, connection: Any) -> None:
        self.held -= 1
        self.pool.release(connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)


def patient(
    answer: Any, fn: Callable[[Any], Any], most: int | Callable[[], int] = 20, naps: int = 1
) -> Callable[[Any], Any]:
    """An actor that may wait for another one: after `most` requests, or `naps` pauses, it is left waiting.

    Else a client that polls would have no end of interleavings. Its sleeps are virtual, also where the
    answer has imported `sleep` by name.
    """
    limit = most if callable(most) else lambda: most

    def actor(r: Any) -> Any:
        r.connection_pool = _Counted(r.connection_pool, limit, naps)
        try:
            return fn(r)
        except _Enough:
            return Waiting(r.connection_pool.asked)

    actor.__wrapped__ = _function(answer)  # type: ignore[attr-defined]
    return actor


def _function(answer: Any) -> Any:
    """A function that sees the names that the answer sees."""
    if isinstance(answer, type):
        own = [part for part in vars(answer).values() if callable(part) and hasattr(part, "__globals__")]
        return own[0] if own else (lambda: None)
    return answer if hasattr(answer, "__globals__") else (lambda: None)


SHORT = "short-lived"
_SHORT_EXPIRE = """local left = 0
for _, key in ipairs(redis.call('KEYS', '*')) do
    if redis.call('PTTL', key) < tonumber(ARGV[1]) then redis.call('DEL', key) end
end
return left"""


def short_expire(r: Any, seconds: float) -> None:
    """Every key that lasts less than that is gone, in one step."""
    r.eval(_SHORT_EXPIRE, 0, round(seconds * 1000), SHORT)


def explored(
    lab: Lab,
    actors: Sequence[Callable[[Any], Any]],
    properties: str | dict[str, str],
    look_at: str,
    cast: str,
    setup: Callable[[Any], Any] | None = None,
    max_switches: int | None = None,
    **rules: Any,
) -> None:
    """Raises Failure with the shortest counterexample, if an interleaving breaks the invariant.

    `properties` is the property that is broken then, or says which by a part of the sentence that tells what
    is wrong. There are so few interleavings (of up to `max_switches` switches, if that is given) that all of
    them are tried, unless the machine stands still.
    """
    rules |= {**stories.bounded(cast, setup), "server": lab.server, "max_switches": max_switches}
    with stories.only_tokens_by_chance():
        result = explore(actors, limit=4000, seconds=8, **rules)
    if result.violations:
        raise _told(result, properties, look_at, cast)


def _told(result: Any, properties: str | dict[str, str], look_at: str, cast: str) -> Failure:
    failure = stories.failure(result, properties if isinstance(properties, str) else "race", look_at, cast)
    if isinstance(properties, dict):
        found = [name for said, name in properties.items() if said in failure.message]
        failure.property = found[0] if found else failure.property
    short = "every key that lasts less than ttl expires"
    failure.counterexample = failure.counterexample.replace(f"{SHORT} expires", short)
    return failure


def mortal(r: Any) -> None:
    """Every key has a TTL."""
    for key in sorted(r.scan_iter()):
        assert r.pttl(key) != -1, f"a key that never expires is left: PTTL {key} is -1"


# Checks that every cache has to pass


Call = Callable[[Any, str, Callable[[], Any], float], Any]
"""(client, key, load, ttl) -> value"""


def check_hits(call: Call, said: str, lab: Lab) -> None:
    """What was loaded is given, by the caller who loaded it and by the next; and from one round trip."""
    for value in (*VALUES, *FALSY, *DISGUISED, LONG):
        shown = "a text of 4800 letters" if value is LONG else repr(value)
        key, story, source = lab.key("thing"), Story(f"load() gives {shown}"), Source(value)
        got = story.call(said, call, lab.r, key, source, TTL)
        what = "a new key: load() has to be called, and this is what another key has"
        story.hold(source.calls, "key", what, "the name of the key")
        what = f"load() was called {source.calls} times"
        story.hold(source.calls == 1, "load", what, "who calls it, and when")
        story.hold(same(got, value), "value", "a miss gives what load() gave", "what a miss returns")
        with lab.tap() as tape:
            got = story.call(said, call, lab.r, key, source, TTL)
        falsy, look = not value, "what tells a hit from a miss: 0, '', [] and False are values too"
        there = falsy or lab.r.exists(key)
        story.hold(there, "key", "there is nothing under `key`", "the name of the key, and when you store")
        what = "load() is called again for a value that it gave before"
        story.hold(source.calls == 1, "falsy" if falsy else "hit", what, look)
        what = "a hit gives another value than load() gave"
        story.hold(same(got, value), "falsy" if falsy else "value", what, "how it is written and read")
        commands = ", ".join(one.command[0] for one in tape.commands)
        story.tell(f"round trips: {tape.round_trips} ({commands or 'nothing is asked'})")
        what = "Redis is not asked: what this process remembers may be old, and others do not have it"
        story.hold(tape.round_trips, "shared", what, "what is remembered in the process rather than in Redis")
        story.hold(
            tape.round_trips == 1, "trips", "a hit is one round trip", "what is asked before the value"
        )
        if isinstance(got, dict | list):
            got.clear()
            story.tell("the caller empties what it got")
            got = story.call(said, call, lab.r, key, source, TTL)
            what = "what one caller does to the value that it got, the next one sees"
            story.hold(
                same(got, value), "shared", what, "what is remembered in the process rather than in Redis"
            )


def check_other_keys(call: Call, said: str, lab: Lab, values: Sequence[Any]) -> None:
    """Several keys, of any name, hold several values; each is forgotten when its key is deleted."""
    names = [lab.key("thing"), lab.key("thing2"), "product:7", "product:70", "product", "Product:7"]
    story, sources = Story(), {name: Source(f"value of {name}") for name in names}
    for _ in range(2):
        for name, source in sources.items():
            got = story.call(said.replace("key", repr(name)), call, lab.r, name, source, TTL)
            story.hold(
                same(got, source.value), "key", "this is the value of another key", "the name of the key"
            )
            story.hold(source.calls == 1, "key", "what was under this key is lost", "the name of the key")
    for old, new in itertools.pairwise(values):
        _check_forgotten(call, said, lab, old, new)


def _check_forgotten(call: Call, said: str, lab: Lab, old: Any, new: Any) -> None:
    key, story = lab.key("thing"), Story(f"load() gives {old!r}")
    story.call(said, call, lab.r, key, Source(old), TTL)
    story.call("DEL key", lab.r.delete, key)
    story.tell(f"load() gives {new!r}")
    for client in (lab.r, lab.client()):
        got = story.call(said, call, client, key, Source(new), TTL)
        what = "the key was deleted, and an older value comes back"
        story.hold(
            same(got, new),
            "forget",
            what,
            "what is remembered elsewhere: in the process, or under other keys",
        )


def check_shared(call: Call, said: str, lab: Lab, values: Sequence[Any]) -> None:
    """All that is remembered is in Redis: what is under a key is worth the same under another."""
    raw = lab.client(decode_responses=False)
    for value in values:
        key, copied, story = lab.key("thing"), lab.key("copy"), Story(f"load() gives {value!r}")
        story.call(said, call, lab.r, key, Source(value), TTL)
        blob = raw.dump(key)
        story.hold(blob is not None, "key", "nothing is under `key`", "the name of the key")
        raw.restore(copied, 60_000, blob or b"")
        story.tell("COPY key copy")
        again = Source("loaded anew")
        got = story.call(said.replace("key", "copy"), call, lab.client(), copied, again, TTL)
        what = (
            "what is under `key` is no hit for who has not loaded it himself: other processes have to load it"
        )
        look = "what is remembered in the process rather than in Redis"
        story.hold(not again.calls and same(got, value), "shared", what, look)


def check_json(call: Call, said: str, lab: Lab) -> None:
    raw, key, story = lab.client(decode_responses=False), lab.key("thing"), Story(f"load() gives {THING!r}")
    story.call(said, call, lab.r, key, Source(THING), TTL)
    found = texts(raw, key.encode())
    for text in found:
        story.tell(f"under key: {text[:80]!r}")
    what = "a pickle runs whatever code somebody writes into it: never read one from Redis"
    story.hold(not any(map(is_pickle, found)), "json", what, "json.dumps and json.loads")
    held = any(same(part, THING) for text in found for part in documents(text))
    story.hold(held, "json", "what is under `key` is not the value as JSON", "json.dumps and json.loads")


def check_time(
    call: Call, said: str, lab: Lab, value: Any, ttls: Sequence[float], property: str = "ttl"
) -> None:
    """It is kept for `ttl` seconds, whatever was asked meanwhile. `call` is given the ttl."""
    for ttl in ttls:
        key, story, since = lab.key("thing"), Story(f"load() gives {value!r}"), time.monotonic()
        story.call(f"{said}, where it is {ttl:g} s", call, lab.r, key, Source(value), ttl)
        if lab.r.pttl(key) == -1:
            property = "ttl"
        look = "which of the TTLs, and its unit: px= has milliseconds"
        stories.check_left(story, lab.r, key, ttl, since, (property, look))
    key, story = lab.key("thing"), Story(f"load() gives {value!r}")
    story.call(said, call, lab.r, key, Source(value), TTL)
    for ms in (5000, 50_000):
        since = time.monotonic()
        lab.r.pexpire(key, ms)
        story.tell(f"later on it has {ms / 1000:g} s left")
        story.call(said, call, lab.r, key, Source(value), TTL)
        left = story.call("PTTL key", lab.r.pttl, key)
        least = ms - (time.monotonic() - since) * 1000 - 5
        what = "a hit changes how long it is kept: what is asked for often would never be loaded again"
        story.hold(least <= left <= ms, "longer", what, "what a hit does to the TTL")


def check_error(call: Call, said: str, lab: Lab) -> None:
    """What load() raises is the caller's, and nothing is remembered of it."""
    errors = (Broken, KeyError, TypeError, ValueError, ConnectionError, TimeoutError)
    for error in (kind("the database is down") for kind in errors):
        key, story, source = lab.key("thing"), Story(f"load() raises {type(error).__name__}"), Source(error)
        raised: BaseException | None = None
        try:
            story.call(said, call, lab.r, key, source, TTL)
        except Exception as caught:
            raised = caught
            story.tell(f"{said} raises {type(caught).__name__}")
        story.hold(
            raised is error, "error", "what load() raises goes to the caller as it is", "your `except`"
        )
        what = f"load() fails, and is called {source.calls} times: who is down is asked even more often"
        story.hold(source.calls == 1, "error", what, "your `except`, and what it calls")
        what = "load() failed, and something is remembered as if it had not"
        story.hold(not lab.r.exists(key), "error", what, "what is written before load() has given something")


def check_mortal(
    run: Callable[[Any, Callable[[], Any]], Any], lab: Lab, cast: str, values: Sequence[Any]
) -> None:
    """Whenever it crashes, no key is left that never expires."""
    look = "what a crash leaves behind after each of your commands"
    for value in values:
        query = Query(value)

        def actor(r: Any, query: Query = query) -> Any:
            return run(r, query)

        explored(lab, [functools.partial(actor)], "crash", look, cast, invariant=mortal, faults=["crash"])
