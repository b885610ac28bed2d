"""Chapter 03, exercise stampede: many callers miss at once, and one of them loads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from labkit.rig.race import explore
from labkit.teach.exercises import Exercise, Failure
from labkit.teach.exercises.cache.grading import (
    FALSY,
    PROCESS,
    THING,
    TTL,
    Broken,
    Query,
    Snapshot,
    Source,
    Waiting,
    another_process,
    check_error,
    check_hits,
    check_json,
    check_mortal,
    check_other_keys,
    check_shared,
    check_time,
    explored,
    patient,
    put_back,
    quietly,
    same,
    sleeping,
    snapshot,
    texts,
)
from labkit.teach.exercises.lock.grading import BETWEEN, COUNTED, Story, check_chance, expires, wrong
from labkit.teach.lab import Lab

STUB = '''
def cached_once(r, key, load, ttl, lease):
    """What load() gives; from Redis, if it is there. Of all who miss at once, one loads."""
    raise NotImplementedError
'''

REFERENCE = '''
import json
import random
import secrets
import time

RELEASE = """-- release
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

def cached_once(r, key, load, ttl, lease):
    """What load() gives; from Redis, if it is there. Of all who miss at once, one loads."""
    lock, token = f"{key}:lock", secrets.token_hex(16)
    while True:
        text = r.get(key)
        if text is not None:
            return json.loads(text)
        if r.set(lock, token, nx=True, px=max(1, round(lease * 1000))):
            break
        time.sleep(random.uniform(0.01, 0.05))
    try:
        text = r.get(key)  # it may have come between our GET and our SET
        if text is not None:
            return json.loads(text)
        value = load()
        r.set(key, json.dumps(value), px=max(1, round(ttl * 1000)))
        return value
    finally:
        r.eval(RELEASE, 1, lock, token)
'''

_TOKEN = "secrets.token_hex(16)"
_TAKE = "r.set(lock, token, nx=True, px=max(1, round(lease * 1000)))"
_SLEEP = "time.sleep(random.uniform(0.01, 0.05))"
_AGAIN = """        text = r.get(key)  # it may have come between our GET and our SET
        if text is not None:
            return json.loads(text)
"""
_STORE = "r.set(key, json.dumps(value), px=max(1, round(ttl * 1000)))"
_FREE = "r.eval(RELEASE, 1, lock, token)"
_FINALLY = f"    finally:\n        {_FREE}\n"
_LOOP = REFERENCE[REFERENCE.index("    while True:") : REFERENCE.index("    try:")]
_BY_THREADS = """
import json
import threading

LOCK = threading.Lock()

def cached_once(r, key, load, ttl, lease):
    with LOCK:
        text = r.get(key)
        if text is not None:
            return json.loads(text)
        value = load()
        r.set(key, json.dumps(value), px=max(1, round(ttl * 1000)))
        return value
"""
_NO_LOCK = """
import json

def cached_once(r, key, load, ttl, lease):
    text = r.get(key)
    if text is not None:
        return json.loads(text)
    value = load()
    r.set(key, json.dumps(value), px=max(1, round(ttl * 1000)))
    return value
"""

WRONG = (
    wrong(_NO_LOCK, "alone", "no lock: whoever misses loads"),
    wrong(_BY_THREADS, "alone", "a lock of the process: the other processes load too"),
    wrong(
        REFERENCE,
        "race",
        "no second look once it has the lock: another may have loaded and released in between",
        (_AGAIN, ""),
    ),
    wrong(
        REFERENCE,
        "race",
        "EXISTS, then SET: both find the lock free",
        (_TAKE, "not r.exists(lock) and r.set(lock, token, px=max(1, round(lease * 1000)))"),
    ),
    wrong(REFERENCE, "alone", "SET without NX: everybody gets the lock", (", nx=True", "")),
    wrong(
        REFERENCE,
        "alone",
        "who does not get the lock loads too: the lock keeps nobody from the database",
        (f"        {_SLEEP}", "        break"),
    ),
    wrong(
        REFERENCE,
        "wait",
        "who does not get the lock gets None, though a value is on its way",
        (f"        {_SLEEP}", "        return None"),
    ),
    wrong(
        REFERENCE,
        "wait",
        "who waits gives up after three questions and has nothing: a load may take longer",
        ("while True:", "for _ in range(3):"),
        ("    try:\n", "    else:\n        return None\n    try:\n"),
    ),
    wrong(
        REFERENCE,
        "alone",
        "who waits loads after three questions: a slow load brings the whole crowd",
        ("while True:", "for _ in range(3):"),
    ),
    wrong(
        REFERENCE,
        "raises",
        "who waits raises after three questions, though a load may take nearly `lease` seconds",
        ("while True:", "for _ in range(3):"),
        ("    try:\n", "    else:\n        raise TimeoutError('somebody else is loading')\n    try:\n"),
    ),
    wrong(
        REFERENCE,
        "alone",
        "who waits loads after two seconds: a load that takes longer brings the whole crowd",
        ("while True:", "for _ in range(40):"),
        (_SLEEP, "time.sleep(0.05)"),
    ),
    wrong(
        REFERENCE,
        "alone",
        "who has waited for `lease` seconds loads, whoever is at it by then",
        ("    while True:", "    end = time.monotonic() + lease\n    while time.monotonic() < end:"),
    ),
    wrong(
        REFERENCE,
        "wait",
        "who waits raises after about a second: the value comes a moment later",
        ("while True:", "for _ in range(30):"),
        ("    try:\n", "    else:\n        raise TimeoutError('somebody else is loading')\n    try:\n"),
    ),
    wrong(
        REFERENCE,
        "alone",
        "hash() for the lock's name: each process has a lock of its own",
        ('f"{key}:lock"', 'f"lock:{hash(key)}"'),
    ),
    wrong(
        REFERENCE,
        "crash",
        "a lock without a TTL: if its holder crashes, nobody ever loads again",
        (", px=max(1, round(lease * 1000))", ""),
    ),
    wrong(
        REFERENCE,
        "crash",
        "SETNX, then PEXPIRE: a crash in between leaves the lock for ever",
        (_TAKE, "r.setnx(lock, token) and r.pexpire(lock, max(1, round(lease * 1000)))"),
    ),
    wrong(
        REFERENCE,
        "lease",
        "the lock lasts as long as the value: after a crash all wait far longer than `lease`",
        ("round(lease * 1000)", "round(ttl * 1000)"),
    ),
    wrong(
        REFERENCE,
        "lease",
        "EX takes whole seconds: a lease of 0.3 s becomes 1 s",
        ("px=max(1, round(lease * 1000))", "ex=max(1, int(lease))"),
    ),
    wrong(
        REFERENCE,
        "lease",
        "ten seconds, whatever `lease` says: after a crash all wait for them",
        ("px=max(1, round(lease * 1000))", "ex=10"),
    ),
    wrong(
        REFERENCE,
        "theirs",
        "DEL without a token: who stood still deletes the lock of the next one",
        (_FREE, "r.delete(lock)"),
    ),
    wrong(
        REFERENCE,
        "theirs",
        "GET, then DEL: in between the lock expires, and another client gets it",
        (_FREE, "r.get(lock) == token and r.delete(lock)"),
    ),
    wrong(
        REFERENCE,
        "theirs",
        "the process's number as the token: all threads of a process share it",
        (_TOKEN, "str(os.getpid())"),
        ("import secrets", "import os"),
    ),
    wrong(
        REFERENCE,
        "token",
        "counted in the process: another process counts the same",
        (_TOKEN, "str(next(COUNT))"),
        ("import secrets", "import itertools\n\nCOUNT = itertools.count()"),
    ),
    wrong(
        REFERENCE,
        "token",
        "the time as the token: two may begin at the same moment, or on clocks that disagree",
        (_TOKEN, "str(time.time())"),
    ),
    wrong(
        REFERENCE,
        "error",
        "load() raises, and the lock is not released: everybody waits for nobody",
        (_FINALLY, f"    except ZeroDivisionError:\n        raise\n    {_FREE}\n    return value\n"),
        ("        return value\n    except", "    except"),
    ),
    wrong(
        REFERENCE,
        "release",
        "the lock is not released: when the value is deleted, all wait until the lock ends",
        (_FINALLY, "    finally:\n        pass\n"),
    ),
    wrong(
        REFERENCE,
        "race",
        "the lock is released before the value is there",
        ("value = load()\n", f"value = load()\n        {_FREE}\n"),
    ),
    wrong(
        REFERENCE,
        "endless",
        "who waits asks for the value only: if the loader has crashed, nobody ever loads",
        (
            _LOOP,
            "    text = r.get(key)\n    if text is not None:\n        return json.loads(text)\n"
            f"    if not {_TAKE}:\n        while text is None:\n            {_SLEEP}\n"
            f"            text = r.get(key)\n"
            "        return json.loads(text)\n",
        ),
    ),
    wrong(
        REFERENCE,
        "race",
        "who waits until the lock is gone loads, if nothing is there then, without a lock",
        (
            _LOOP,
            "    text = r.get(key)\n    if text is not None:\n        return json.loads(text)\n"
            f"    if not {_TAKE}:\n        while r.exists(lock):\n            {_SLEEP}\n",
        ),
    ),
    wrong(
        REFERENCE,
        "pause",
        "asks again and again without a pause: waiters keep Redis busy, and it brings nothing sooner",
        (_SLEEP, "pass"),
    ),
    wrong(
        REFERENCE,
        "pause",
        "sleeps for a whole lease: the value is there long before the sleeper wakes up",
        (_SLEEP, "time.sleep(lease)"),
    ),
    wrong(
        REFERENCE,
        "pause",
        "pauses of a second: the value may be there after a hundredth of that",
        (_SLEEP, "time.sleep(1)"),
    ),
    wrong(
        REFERENCE,
        "pause",
        "each pause is twice the one before, without a cap: the last one is far too long",
        ("    while True:", "    pause = 0.01\n    while True:"),
        (_SLEEP, "time.sleep(pause)\n        pause *= 2"),
    ),
    wrong(REFERENCE, "others", "one lock for all: things wait for each other", ('f"{key}:lock"', '"lock"')),
    wrong(
        REFERENCE,
        "ttl",
        "a value without a TTL: it is never loaded again, however old it is",
        (", px=max(1, round(ttl * 1000)))\n        return", ")\n        return"),
    ),
    wrong(
        REFERENCE,
        "ttl",
        "the value gets the lock's TTL: it is loaded far too often",
        ("round(ttl * 1000)", "round(lease * 1000)"),
    ),
    wrong(
        REFERENCE,
        "falsy",
        "`if value`: 0, '' and [] are not stored",
        (_STORE, f"if value:\n            {_STORE}"),
    ),
    wrong(
        REFERENCE,
        "falsy",
        "`if value:` where it is read: 0, '' and [] are a miss each time",
        (
            "        if text is not None:\n            return json.loads(text)\n        if",
            "        if text is not None and json.loads(text):\n"
            "            return json.loads(text)\n        if",
        ),
        (_AGAIN, "        if text is not None and json.loads(text):\n            return json.loads(text)\n"),
    ),
    wrong(
        REFERENCE,
        "trips",
        "asks for the lock before the value: a hit takes two round trips",
        (
            "        text = r.get(key)\n        if text",
            "        held, text = r.get(lock), r.get(key)\n        if text",
        ),
    ),
    wrong(
        REFERENCE,
        "longer",
        "each hit begins the TTL anew: what is asked for often is never loaded again",
        (
            "while True:\n        text = r.get(key)",
            "while True:\n        text = r.getex(key, px=round(ttl * 1000))",
        ),
    ),
    wrong(
        REFERENCE,
        "paused",
        "redis-py's lock raises if it was lost meanwhile: whoever loaded does not get the value",
        (
            REFERENCE[REFERENCE.index("    lock, token") :],
            "    text = r.get(key)\n    if text is not None:\n        return json.loads(text)\n"
            "    with r.lock(f'{key}:lock', timeout=lease):\n        text = r.get(key)\n"
            "        if text is not None:\n"
            "            return json.loads(text)\n        value = load()\n"
            f"        {_STORE}\n        return value\n",
        ),
    ),
    wrong(
        REFERENCE,
        "shared",
        "a dict in the process before Redis: it knows nothing of a DEL, or of other processes",
        ("import secrets", "import secrets\n\nMINE = {}\n"),
        ("    lock, token", "    if key in MINE:\n        return MINE[key]\n    lock, token"),
        (_STORE, f"MINE[key] = value\n        {_STORE}"),
    ),
    wrong(
        REFERENCE,
        "json",
        "a pickle, in base64: loading it runs whatever somebody else has written there",
        ("import secrets", "import base64, pickle, secrets"),
        ("json.dumps(value)", "base64.b64encode(pickle.dumps(value)).decode()"),
        ("json.loads(text)", "pickle.loads(base64.b64decode(text))"),
    ),
)


LEASE = 7.5
"""Seconds: a fraction, so that whole ones are told apart."""

SAID = "cached_once(r, key, load, 60, 7.5)"
ALONE = "who may call load(), and what the others do"


@quietly
def _grade(once: Any, lab: Lab) -> None:
    def call(r: Any, key: str, load: Any, ttl: float) -> Any:
        return once(r, key, load, ttl, LEASE)

    check_hits(call, SAID, lab)
    running = _check_running(once, lab)
    _check_waits(once, lab, running)
    _check_patience(once, lab, running)
    _check_others(once, lab, running)
    _check_released(once, lab)
    check_other_keys(call, SAID, lab, ("first", "second", 0, "third"))
    check_shared(call, SAID, lab, (THING, *FALSY[:2]))
    check_json(call, SAID, lab)
    said = "cached_once(r, key, load, ttl, 7.5)"
    check_time(call, said, lab, THING, (TTL, 100, 1.234, 0.75))
    check_time(call, said, lab, 0, (TTL,))
    check_error(call, SAID, lab)
    _check_lease(once, lab, running)
    _check_paused(once, lab)
    _check_theirs(once, lab)
    _check_tokens(once, lab)
    cast = 'A: cached_once(r, "thing", load, 60, 7.5); it may crash'
    check_mortal(lambda r, load: once(r, "thing", load, TTL, LEASE), lab, cast, (THING,))
    _check_race(once, lab)
    _check_expiry(once, lab)
    _check_crashed(once, lab, running)
    _check_heirs(once, lab, running)
    _check_release_race(once, lab)


def _meanwhile(once: Any, lab: Lab, key: str = "thing", lease: float = LEASE) -> tuple[Snapshot, float]:
    """What is in Redis while load() runs, and the milliseconds since the call began."""
    raw = lab.client(decode_responses=False)
    raw.flushdb()
    seen: list[Any] = []
    since = time.monotonic()
    once(lab.r, key, Source(THING, lambda: seen.append(snapshot(raw))), TTL, lease)
    passed = (time.monotonic() - since) * 1000
    raw.flushdb()
    return (seen[0] if seen else {}), passed


def _check_running(once: Any, lab: Lab) -> Snapshot:
    """While one loads, Redis holds what tells the others so, and not for ever."""
    running, _ = _meanwhile(once, lab)
    story = Story(
        "while load() runs:", *(f"PTTL {key.decode()} -> {left}" for key, (left, _) in running.items())
    )
    if not running:
        story.tell("there is no key")
    what = "nothing in Redis tells other processes that somebody is loading: they all load, too"
    story.hold(running, "alone", what, ALONE)
    what = "a loader that crashes now leaves a key that never expires: nobody would ever load again"
    mortal = all(left != -1 for left, _ in running.values())
    story.hold(mortal, "crash", what, "the TTL of what tells the others to wait")
    return running


def _ask(once: Any, query: Query, most: Any = 20, naps: int = 1, key: str = "thing") -> Callable[[Any], Any]:
    return patient(once, lambda r: once(r, key, query, TTL, LEASE), most, naps)


def _check_waits(once: Any, lab: Lab, running: Snapshot) -> None:
    """A loads, and B asks: it waits, with pauses."""
    query, results = Query(THING), list[Any]()

    def setup(r: Any) -> None:
        put_back(r, running)
        query.calls = 0

    def rule(r: Any, found: list[Any]) -> None:
        results[:] = found
        assert not query.calls, "A is loading, and B calls load() too"
        assert isinstance(found[0], Waiting), (
            f"A is loading, and B does not wait for it: it gets {found[0]!r}"
        )

    cast = "While load() of A runs. B: cached_once()"
    names = {"B calls load() too": "alone", "does not wait": "wait", "waits in": "endless"}
    explored(lab, [_ask(once, query, 24, 24)], names, ALONE, cast, setup=setup, invariant=rule)
    pauses = [pause for pause in results[0].pauses if pause > 1e-6]
    shown = f"{cast}\n24 requests to Redis, {len(pauses)} pauses: " + (
        ", ".join(f"{pause:.3f}" for pause in pauses[:12]) or "none"
    )
    look = "the seconds between two questions"
    what = "who waits asks Redis as fast as it can: that is a stampede, too"
    if len(pauses) < 4 or sum(pauses) < 0.005 * len(pauses):
        raise Failure("pause", f"{what} (only time.sleep is seen)", shown, look)
    if max(pauses) > 0.2501 and not _blocks(once, lab, setup):
        what = "who waits sleeps for longer than 0.25 s, and the value may be there soon"
        raise Failure("pause", what, shown, look)


_real_clock = time.perf_counter


class _Over(BaseException):
    """It has waited for long enough, or in another way than by time.sleep."""


def _check_patience(once: Any, lab: Lab, running: Snapshot) -> None:
    """B, in another process, waits for longer than `lease`, since others load, one after the other."""
    slept, query = [0.0], Source(THING)

    def nap(seconds: float) -> None:
        slept[0] += seconds
        if slept[0] > 1.2 * LEASE:
            raise _Over

    raw = lab.client(decode_responses=False)
    raw.flushdb()
    put_back(raw, running)
    with another_process(once), sleeping(once, nap):
        try:
            ends = f"it gets {_waited(once, lab.client(), query)!r}"
        except _Over:
            return
        except Exception as error:
            ends = f"it raises {type(error).__name__}: {error}"[:100]
        finally:
            raw.flushdb()
    shown = (
        f"While load() of A runs. B, in another process: cached_once()\nB sleeps for {slept[0]:.2f} s in all"
    )
    if not slept[0]:
        what = "B does not see that A, in another process, is loading"
        raise Failure("alone", what, shown, f"the names of your keys, and {PROCESS}")
    shown += f"\nthen {'it calls load()' if query.calls else ends}"
    what = "B gives up waiting, and calls load() too" if query.calls else "who waits gives up"
    raise Failure("alone" if query.calls else "wait", what, shown, "what ends its loop: only the value may")


def _waited(once: Any, r: Any, query: Source) -> Any:
    """What B gets, unless it begins to wait in a command of Redis, or does so in some other way."""
    until, execute = _real_clock() + 3, r.execute_command

    def watched(*words: Any, **options: Any) -> Any:
        if "BLOCK" in words or str(words[0]).upper() in BLOCKING or _real_clock() > until:
            raise _Over
        return execute(*words, **options)

    def pubsub(**options: Any) -> Any:
        raise _Over

    r.execute_command, r.pubsub = watched, pubsub
    return once(r, "thing", query, TTL, LEASE)


BLOCKING = ("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT")


def _blocks(once: Any, lab: Lab, setup: Any) -> bool:
    """Does B wait in a command, that ends once the value is there?"""
    actor = _ask(once, Query(THING), 24, 24)
    result = explore([actor], setup=setup, invariant=lambda r: True, server=lab.server)
    trace = result.replay(result.interleavings[0].schedule)
    return any(step.kind == "timeout" for step in trace.steps)


def _check_others(once: Any, lab: Lab, running: Snapshot) -> None:
    """While one thing is loaded, another is to be had."""
    query = Query("another")

    def rule(r: Any, results: list[Any]) -> None:
        what = "A loads one thing, and B, which asks for another, waits for it"
        assert not isinstance(results[0], Waiting), what
        assert same(results[0], "another"), f"B asks for another thing, and gets {results[0]!r}"

    for key in ("other", "thing2"):
        cast, look = (
            f'While A loads "thing". B: cached_once(r, "{key}", load, 60, 7.5)',
            "the names of your keys",
        )
        actor = _ask(once, query, key=key)
        explored(lab, [actor], "others", look, cast, setup=lambda r: put_back(r, running), invariant=rule)


def _loads_at_once(
    once: Any, lab: Lab, state: Snapshot, property: str, what: str, cast: str, look: str
) -> None:
    """Whoever asks in this state of Redis need not wait."""
    query = Query(THING)

    def rule(r: Any, results: list[Any]) -> None:
        assert not isinstance(results[0], Waiting), what
        assert same(results[0], THING), f"load() gives {THING!r}, and B gets {results[0]!r}"

    explored(
        lab, [_ask(once, query)], property, look, cast, setup=lambda r: put_back(r, state), invariant=rule
    )


def _check_released(once: Any, lab: Lab) -> None:
    """Whoever has loaded, or failed to, is out of the way of the next one."""
    raw = lab.client(decode_responses=False)
    raw.flushdb()
    once(lab.r, "thing", Source(THING), TTL, LEASE)
    raw.delete("thing")
    what, look = "nobody is loading, and B waits for somebody", "what is left in Redis when a call has ended"
    cast = "A: cached_once() has ended; DEL key. B: cached_once()"
    _loads_at_once(once, lab, snapshot(raw), "release", what, cast, look)
    raw.flushdb()
    with contextlib.suppress(Broken):
        once(lab.r, "thing", Source(Broken("no database")), TTL, LEASE)
    cast = "A: cached_once(), and its load() raises. B: cached_once()"
    _loads_at_once(once, lab, snapshot(raw), "error", what, cast, look)
    raw.flushdb()


def _check_lease(once: Any, lab: Lab, running: Snapshot) -> None:
    """`lease` seconds after the loader has crashed the next one loads, and not before."""
    late = {key: one for key, one in running.items() if one[0] > LEASE * 1000 + 1}
    cast = "A has crashed in load(), and 7.5 s have passed. B: cached_once()"
    what = "a loader has crashed, and the others wait for longer than `lease`"
    look = "which TTL is which, and its unit"
    lab.r.flushdb()
    _loads_at_once(once, lab, late, "lease", what, cast, look)
    for lease in (LEASE, 0.75):
        state, passed = _meanwhile(once, lab, lease=lease)
        kept = {key: one for key, one in state.items() if one[0] >= lease * 1000 - passed - 5}
        query = Query(THING)

        def rule(r: Any, results: list[Any], lease: float = lease, query: Query = query) -> None:
            what = f"A has been loading for nearly {lease:g} s, and B loads too: A may still be at it"
            assert isinstance(results[0], Waiting) and not query.calls, what

        def setup(r: Any, kept: Snapshot = kept, query: Query = query) -> None:
            put_back(r, kept)
            query.calls = 0

        cast = f"cached_once(r, key, load, 60, {lease:g}): A is in load() for nearly {lease:g} s. B: the same"
        explored(lab, [_ask(once, query)], "lease", look, cast, setup=setup, invariant=rule)


def _check_paused(once: Any, lab: Lab) -> None:
    """A was paused in load(), for so long that its turn was over."""
    story, raw = Story(), lab.client()
    raw.flushdb()
    try:
        got = story.call(SAID, once, lab.r, lab.key("thing"), Source(THING, raw.flushdb), TTL, LEASE)
    except Exception as error:
        got = error
        story.tell(f"{SAID} raises {type(error).__name__}: {error}")
    story.lines.insert(0, "in load() the process stands still for longer than `lease`, and all keys expire")
    what = "what was loaded is given to who loaded it, even if that took too long"
    story.hold(same(got, THING), "paused", what, "what comes of a release that comes too late")


def _check_theirs(once: Any, lab: Lab) -> None:
    """A's turn is over and B loads; then A goes on. C comes, and has to wait for B."""
    raw, other = lab.client(decode_responses=False), lab.client()
    for fails in (True, False):
        raw.flushdb()
        theirs: list[Snapshot] = []

        def bob(theirs: list[Snapshot] = theirs) -> None:
            raw.flushdb()
            once(other, "thing", Source(THING, lambda: theirs.append(snapshot(raw))), TTL, LEASE)
            put_back(raw, theirs[0])

        with contextlib.suppress(Broken):
            once(lab.r, "thing", Source(Broken("no database") if fails else THING, bob), TTL, LEASE)
        if not fails and b"thing" in theirs[0]:
            continue  # what tells the others to wait is under the same key as the value
        raw.delete("thing") if not fails else None
        _check_robbed(once, lab, snapshot(raw), fails)


def _check_robbed(once: Any, lab: Lab, state: Snapshot, fails: bool) -> None:
    query = Query(THING)

    def setup(r: Any) -> None:
        put_back(r, state)
        query.calls = 0

    def rule(r: Any, results: list[Any]) -> None:
        assert not query.calls, "B is loading, and C loads too: A has taken B's turn away"
        assert isinstance(results[0], Waiting), f"B is loading, and C does not wait: it gets {results[0]!r}"

    ends = "raises" if fails else "gives a value; DEL key"
    cast = f"A: in load(), its turn is over. B: in load(). Then A's load() {ends}. C: cached_once()"
    look = "how you know whose turn it is that you end"
    explored(lab, [_ask(once, query)], "theirs", look, cast, setup=setup, invariant=rule)


def _check_tokens(once: Any, lab: Lab) -> None:
    """What tells whose turn it is is another thing each time, and nothing another process might come to."""
    raw, held = lab.client(decode_responses=False), list[str]()

    def note() -> None:
        held.append(" ".join(text for key in sorted(raw.scan_iter()) for text in texts(raw, key)))

    raw.flushdb()
    with lab.tap() as tape:
        for _ in range(30):
            once(lab.r, "thing", Source(THING, note), TTL, LEASE)
            raw.flushdb()
    if not any(COUNTED.search(" ".join(exchange.command)) for exchange in tape.commands):
        check_chance(held, "secrets.token_hex(16)")


def _check_race(once: Any, lab: Lab) -> None:
    query = Query(THING)

    def setup(r: Any) -> None:
        query.calls = 0

    def rule(r: Any, results: list[Any]) -> None:
        assert query.calls < 2, "A and B both load"
        assert not all(isinstance(got, Waiting) for got in results), "A and B wait, and nobody loads"
        for got in results:
            assert isinstance(got, Waiting) or same(got, THING), (
                f"load() gives {THING!r}, and one gets {got!r}"
            )

    cast = "There is nothing yet. A and B: cached_once()"
    actors = [_ask(once, query), _ask(once, query)]
    names = {"both load": "race", "nobody loads": "endless", "one gets": "value"}
    explored(lab, actors, names, BETWEEN, cast, setup=setup, invariant=rule, max_switches=3)


def _check_expiry(once: Any, lab: Lab) -> None:
    query = Query(THING)

    def setup(r: Any) -> None:
        once(r, "thing", Source(THING), TTL, LEASE)

    def rule(r: Any, results: list[Any]) -> None:
        assert same(results[0], THING), f"load() gives {THING!r}, and A gets {results[0]!r}"

    cast = "It is in Redis. A: cached_once(). It expires at any moment"
    actors = [_ask(once, query), lambda r: expires(r, "thing")]
    explored(lab, actors, "value", BETWEEN, cast, setup=setup, invariant=rule)


def _check_crashed(once: Any, lab: Lab, running: Snapshot) -> None:
    """The loader has crashed; B waits, and at any moment the loader's time is up."""
    few, query, most = 5, Query(THING), [5]

    def setup(r: Any) -> None:
        put_back(r, running)
        most[0] = few

    def time_is_up(r: Any) -> None:
        r.flushdb()
        most[0] = few + 12

    def rule(r: Any, results: list[Any]) -> None:
        got = results[0]
        if isinstance(got, Waiting):
            what = "the loader has crashed, its time is up, and who waited for it goes on waiting"
            assert len(got.asked) <= few, what
        else:
            assert same(got, THING), f"load() gives {THING!r}, and A gets {got!r}"

    actors = [_ask(once, query, lambda: most[0], 20), time_is_up]
    cast = "Another client has crashed in load(). A: cached_once()"
    look = "what else who waits asks for, beside the value"
    explored(lab, actors, "endless", look, cast, setup=setup, invariant=rule)


def _check_heirs(once: Any, lab: Lab, running: Snapshot) -> None:
    """The loader has crashed, and two wait for it: one of them loads."""
    query, outside, asked = Query(THING), lab.client(), [0]

    def setup(r: Any) -> None:
        put_back(r, running)
        query.calls = asked[0] = 0

    def times_up() -> int:
        asked[0] += 1
        if asked[0] == 3:
            outside.flushdb()
        return 20

    def rule(r: Any, results: list[Any]) -> None:
        assert query.calls < 2, (
            "the loader has crashed, its time is up, and of those who waited A and B both load"
        )
        for got in results:
            assert isinstance(got, Waiting) or same(got, THING), (
                f"load() gives {THING!r}, and one gets {got!r}"
            )

    cast = (
        "Another client has crashed in load(). A and B: cached_once(); its time is "
        "up before A's third request"
    )
    actors = [_ask(once, query, times_up, 2), _ask(once, query)]
    look = "what who has waited does, before it calls load()"
    explored(lab, actors, "race", look, cast, setup=setup, invariant=rule, max_switches=3)


def _check_release_race(once: Any, lab: Lab) -> None:
    """A's turn ends at the worst moment: it must not end B's."""
    outside, robbed = lab.client(), list[bool]()

    def setup(r: Any) -> None:
        robbed.clear()

    def bob(r: Any) -> Any:
        r.flushdb()
        query = Query(THING, lambda: robbed.append(not outside.dbsize()))
        return once(r, "thing", query, TTL, LEASE)

    def ada(r: Any) -> Any:
        try:
            return once(r, "thing", Query(Broken("no database")), TTL, LEASE)
        except Broken:
            return None

    def rule(r: Any, results: list[Any]) -> None:
        assert not any(robbed), "B is loading, and A has taken its turn away: others will load, too"

    cast = "A: cached_once(), its load() raises. B: cached_once(), once A's turn is over"
    actors = [patient(once, ada), patient(once, bob)]
    explored(lab, actors, "theirs", BETWEEN, cast, setup=setup, invariant=rule, max_switches=3)


EXERCISE = Exercise(
    stem="cache",
    name="stampede",
    title="Many callers, one load",
    statement="""Write `cached_once`: it gives what `load()` gives, from Redis if it is there. Of all who miss
at once, **one** calls `load`.

- `load()` gives a value that JSON can hold, never `None`. It is kept under `key`, as JSON, for `ttl` seconds.
  A hit is one round trip; `DEL key` makes it forget.
- Callers are in many processes, which share nothing but Redis.
- Those who do not load ask Redis again, with pauses of 5 to 250 ms by `time.sleep`, until the value is there.
  They never give up.
- A load takes less than `lease` seconds (fractions too). Its process may crash: after `lease` seconds, and
  not before, one of the others loads.
- Or it stands still for longer than that and goes on. Then its caller gets what it loaded, and the turn of
  whoever loads now stays as it is.
- What `load` raises goes to the caller at once, and the next one may load.
- No key is ever without a TTL.""",
    answer="cached_once",
    stub=STUB.strip(),
    hints=(
        "Who is the one? Whoever gets a lock: SET lock token NX PX. The others sleep a "
        "little, and then ask again for "
        "the value, and for the lock: its holder may have crashed.",
        "Between your GET and your SET NX another one may have loaded, stored and "
        "released. "
        "What has to be asked again, once you have the lock?",
        "Release it however load() ends (try … finally), and only if it is still "
        "yours: a script that compares "
        "GET with your token, a secrets.token_hex(16), and only then does DEL.",
        "The value has to be there before the lock is gone. And each thing needs a "
        "lock of its own: its key with "
        "something added.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
