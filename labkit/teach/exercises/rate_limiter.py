"""Exercises of chapter 05: a window that slides, one atomic round trip, a retry_after that is honest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from threading import Thread
from typing import Any
from unittest import mock

import redis

from labkit.rig.traffic import Clock, Replay, at_once, at_random, steady
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.lab import Lab

# --- boundary: no window holds more than the limit --------------------------------------------------

BOUNDARY_STUB = '''
class MyLimiter:
    """At most `limit` in any `window` seconds, by all processes together. `now()`: the time in seconds."""

    def __init__(self, r, name, limit, window, now):
        raise NotImplementedError

    def hit(self, key):
        """True if the request is admitted."""
        raise NotImplementedError
'''

BOUNDARY = '''
class MyLimiter:
    """A list of the newest `limit` admissions, newest first: full and all recent means refuse."""

    LUA = """
    local now, limit, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local oldest = redis.call('LINDEX', KEYS[1], limit - 1)
    if oldest and now - window < tonumber(oldest) then return 0 end
    redis.call('LPUSH', KEYS[1], ARGV[1])
    redis.call('LTRIM', KEYS[1], 0, limit - 1)
    redis.call('PEXPIRE', KEYS[1], math.ceil(window * 1000))
    return 1
    """

    def __init__(self, r, name, limit, window, now):
        self.r, self.name, self.limit, self.window, self.now = r, name, limit, window, now

    def hit(self, key):
        return self.r.eval(self.LUA, 1, f"{self.name}:{{{key}}}", self.now(), self.limit, self.window) == 1
'''

_HEAD = """
import uuid

class MyLimiter:
    def __init__(self, r, name, limit, window, now):
        self.r, self.name, self.limit, self.window, self.now = r, name, limit, window, now
"""

BOUNDARY_WRONG = (
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        k = f"{self.name}:{key}:{int(self.now() // self.window)}"
        count = self.r.incr(k)
        self.r.expire(k, int(self.window))
        return count <= self.limit
""",
        "boundary",
        "a fixed window: twice the limit passes at its edge",
    ),
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        n, past = divmod(self.now(), self.window)
        k = f"{self.name}:{key}"
        previous, current = (int(v or 0) for v in self.r.hmget(k, int(n) - 1, int(n)))
        if previous * (1 - past / self.window) + current + 1 > self.limit:
            return False
        self.r.hincrby(k, int(n), 1)
        self.r.expire(k, 2 * int(self.window))
        return True
""",
        "boundary",
        "two counters: an estimate, which a burst at the end of a window deceives",
    ),
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        k, now = f"{self.name}:{key}", self.now()
        self.r.zremrangebyscore(k, 0, now - self.window)
        self.r.zadd(k, {uuid.uuid4().hex: now})
        self.r.expire(k, int(self.window))
        return self.r.zcard(k) <= self.limit
""",
        "refused",
        "adds first and counts afterwards: refused requests keep a client out",
    ),
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        k, now = f"{self.name}:{key}", self.now()
        self.r.zremrangebyscore(k, 0, now - self.window)
        if self.r.zcard(k) >= self.limit:
            return False
        self.r.zadd(k, {repr(now): now})
        self.r.expire(k, int(self.window))
        return True
""",
        "same_time",
        "the member is the time, so requests with one timestamp count once",
    ),
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        k, now = f"{self.name}:{key}", self.now()
        self.r.zremrangebyscore(k, 0, now - self.window)
        if self.r.zcard(k) >= self.limit:
            return False
        self.r.zadd(k, {uuid.uuid4().hex: now})
        return True
""",
        "ttl",
        "no TTL: the last requests of each client stay for ever",
    ),
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        k, now = f"{self.name}:{key}", self.now()
        if now < float(self.r.get(k) or 0):
            return False
        self.r.set(k, now + self.window / self.limit, ex=int(self.window))
        return True
""",
        "burst",
        "spaces requests evenly, although `limit` at once are allowed",
    ),
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        k, now = self.name, self.now()
        self.r.zremrangebyscore(k, 0, now - self.window)
        if self.r.zcard(k) >= self.limit:
            return False
        self.r.zadd(k, {uuid.uuid4().hex: now})
        self.r.expire(k, int(self.window))
        return True
""",
        "keys",
        "one key for all clients: one of them uses up the limit of the others",
    ),
    Wrong(
        _HEAD
        + """
    def hit(self, key):
        k, now = f"{self.name}:{key}", self.now()
        self.r.zremrangebyscore(k, 0, now - self.window)
        if self.r.zcard(k) >= self.limit:
            return False
        self.r.zadd(k, {uuid.uuid4().hex: now})
        self.r.expire(k, int(self.window))
        return True
""",
        "together",
        "asks and writes in several round trips: two processes both find the last place free",
    ),
    Wrong(
        _HEAD
        + """
        self.admitted = {}

    def hit(self, key):
        now = self.now()
        recent = [at for at in self.admitted.get(key, []) if at > now - self.window]
        self.admitted[key] = recent + [now] * (len(recent) < self.limit)
        return len(recent) < self.limit
""",
        "shared",
        "a dict: each process has a limit of its own",
    ),
    Wrong(
        BOUNDARY.replace("self.limit, self.window) ==", "self.limit, 1.3 * self.window) =="),
        "room",
        "a window longer than asked: refuses what the limit allows",
    ),
    Wrong(
        BOUNDARY.replace("redis.call('PEXPIRE'", "if not oldest then redis.call('PEXPIRE'").replace(
            "window * 1000))", "window * 1000)) end"
        ),
        "ttl",
        "only the first requests set the TTL: the key is gone while the newest still count",
    ),
)

LIMIT, WINDOW = 5, 60.0


def _grade_boundary(kind: Any, lab: Lab) -> None:
    clock = Clock(1000 * WINDOW)
    start = clock.at

    def run(times: Iterable[float]) -> Replay:
        limiter = kind(lab.r, lab.key("limiter"), LIMIT, WINDOW, clock)
        answers: dict[bool, list[float]] = {True: [], False: []}
        for at in times:
            clock.at = start + at
            answers[bool(limiter.hit("alice"))].append(at)
        _check_ttl(lab)
        return Replay(tuple(answers[True]), tuple(answers[False]))

    _check_at_once(run)
    for gap in (1.0, 20.0):
        late, early = at_once(LIMIT, at=WINDOW - 2, spread=1), at_once(LIMIT, at=WINDOW + gap, spread=1)
        _check_windows(run(late + early))
    _check_steady(run)
    _check_room(run([0.0] * LIMIT + [WINDOW + 0.001]))
    for seed in range(3):
        crowd = run(at_random(3 * LIMIT / WINDOW, seconds=4 * WINDOW, seed=seed))
        _check_windows(crowd)
        _check_room(crowd)

    def several(*clients: redis.Redis) -> list[Any]:
        name = lab.key("limiter")
        return [kind(r, name, LIMIT, WINDOW, clock) for r in clients]

    _check_two_keys(several(lab.r)[0])
    _check_shared(several, lab)
    _check_lasting(several, lab, clock)
    for turn in range(1, 10):
        if not _met(several, lab, turn):
            break


Run = Callable[[Iterable[float]], Replay]
Several = Callable[..., list[Any]]


def _check_at_once(run: Run) -> None:
    first = run(at_once(LIMIT, at=1, spread=1))
    if first.refused:
        raise Failure(
            "burst",
            f"{LIMIT} requests within a second are allowed, if none came before",
            f"limit {LIMIT} in {WINDOW:g} s: {first} of {LIMIT} within 1 s",
            "what you compare with the limit",
        )
    same = run([7.0] * 3 * LIMIT)
    if len(same.admitted) > LIMIT:
        raise Failure(
            "same_time",
            "requests with one timestamp must count one each",
            f"limit {LIMIT}: {same} of {3 * LIMIT} at t = 7 s",
            "what makes an entry of your record unique",
        )


def _check_steady(run: Run) -> None:
    """A client that keeps trying."""
    result = run(steady(1, seconds=3 * WINDOW))
    if result.admitted[-1] <= WINDOW:
        raise Failure(
            "refused",
            "a client that keeps trying is refused for ever",
            f"a request a second for {3 * WINDOW:g} s: {result}, the last at {result.admitted[-1]:g} s",
            "whether a refused request leaves a trace",
        )
    _check_windows(result)


def _check_windows(result: Replay) -> None:
    for (at, held), following in zip(result.held(WINDOW), [*result.held(WINDOW)[1:], (0.0, 0)], strict=True):
        if held > LIMIT and following[1] <= held:
            inside = [round(t, 1) for t in result.admitted if at - WINDOW < t <= at]
            raise Failure(
                "boundary",
                f"a window of {WINDOW:g} s holds {held} requests; the limit is {LIMIT}",
                f"admitted at {', '.join(f'{t:g}' for t in inside)} s",
                "the windows that begin between your own",
            )


def _check_room(result: Replay) -> None:
    """Whoever was refused would have been one too many (give or take half a millisecond)."""
    for at in result.refused:
        held = sum(at - WINDOW - 0.0005 < t <= at for t in result.admitted)
        if held < LIMIT:
            raise Failure(
                "room",
                f"a request is refused although the last {WINDOW:g} s hold {held}; the limit is {LIMIT}",
                f"admitted at {', '.join(f'{t:g}' for t in result.admitted if t <= at)} s; "
                f"refused at {at:g} s",
                "when a request leaves the window",
            )


def _check_ttl(lab: Lab) -> None:
    for key in lab.r.scan_iter():
        if lab.r.pttl(key) < 0:
            raise Failure("ttl", "a key has no TTL", f"PTTL {key} -> {lab.r.pttl(key)}", "PEXPIRE")


def _check_two_keys(limiter: Any) -> None:
    for _ in range(LIMIT):
        limiter.hit("alice")
    if not limiter.hit("bob"):
        said = f"{LIMIT} requests of alice, then one of bob"
        raise Failure("keys", "bob is refused because of alice", said, "the name of the key")


def _check_shared(several: Several, lab: Lab) -> None:
    before = lab.r.dbsize()
    one, other = several(lab.r, lab.client())
    for _ in range(LIMIT):
        one.hit("alice")
    if lab.r.dbsize() == before:
        said = f"{LIMIT} requests, and no key in Redis"
        raise Failure("shared", "other processes cannot see what is counted", said, "what `r` is for")
    if other.hit("alice"):
        said = f"{LIMIT} requests through one instance, then one through another of the same name: admitted"
        raise Failure("shared", "each process has a limit of its own", said, "what is kept in the instance")


def _check_lasting(several: Several, lab: Lab, clock: Clock) -> None:
    """Ten requests over two windows, and before each the TTL is put down as if time had really passed."""
    before, (limiter,) = set(lab.r.scan_iter()), several(lab.r)
    for number in range(1, 2 * LIMIT + 1):
        limiter.hit("alice")
        keys = set(lab.r.scan_iter()) - before
        longest = max((lab.r.pttl(key) for key in keys), default=0)
        if longest < WINDOW * 750:
            said = f"a request every {1.01 * WINDOW / LIMIT:g} s; after number {number}: PTTL -> {longest}"
            what = "the key is gone before its newest request has left the window"
            raise Failure("ttl", what, said, "which requests set the TTL")
        for key in keys:
            lab.r.pexpire(key, round(WINDOW * 500))
        clock.at += 1.01 * WINDOW / LIMIT


def _met(several: Several, lab: Lab, turn: int) -> bool:
    """With one place left: another process hits before what `one` sends `turn`-th. False: nothing was."""
    armed, sent, answers = False, 0, list[bool]()

    def pause() -> None:
        nonlocal sent
        sent += armed
        if armed and sent == turn and not thread.ident:
            thread.start()
            thread.join(0.5)  # what waits for a lock of `one` comes later

    class Pausing(redis.Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            pause()
            send: Any = super().send_packed_command
            send(command, check_health)

    one, other = several(lab.client(connection_class=Pausing), lab.client())
    thread = Thread(target=lambda: answers.append(bool(other.hit("alice"))), daemon=True)
    for limiter in (one, *[other] * (LIMIT - 2)):
        limiter.hit("alice")
    armed = True
    answers.append(bool(one.hit("alice")))
    if sent >= turn:
        thread.join(2)
    if answers == [True, True]:
        raise Failure(
            "together",
            "two processes that ask at the same moment both get the last place",
            f"limit {LIMIT}, {LIMIT - 1} admitted; another process asks before your command {turn}",
            "what may happen between two commands, and not within a script",
        )
    return sent >= turn


# --- one_trip: atomic, on the server's clock --------------------------------------------------------

TRIP_STUB = '''
def hit(r, key, limit, window):
    """True for the first `limit` requests in each `window` seconds. One round trip, nothing in between."""
    raise NotImplementedError
'''

TRIP = '''
LUA = """
local count = tonumber(redis.call('GET', KEYS[1]) or '0')
if count >= tonumber(ARGV[1]) then return 0 end
redis.call('INCR', KEYS[1])
if count == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""

def hit(r, key, limit, window):
    """A fixed window that begins with its first request and ends with the key's TTL: the server's clock."""
    return r.eval(LUA, 1, key, limit, max(1, round(window * 1000))) == 1
'''

TRIP_WRONG = (
    Wrong(
        """
def hit(r, key, limit, window):
    count = r.incr(key)
    if count == 1:
        r.pexpire(key, int(window * 1000))
    return count <= limit
""",
        "round_trips",
        "INCR, then PEXPIRE: a crash in between leaves a key without TTL",
    ),
    Wrong(
        """
def hit(r, key, limit, window):
    with r.pipeline() as pipe:
        count, _ = pipe.incr(key).pexpire(key, int(window * 1000)).execute()
    return count <= limit
""",
        "refused",
        "every request, refused ones too, puts the end of the window off",
    ),
    Wrong(
        """
LUA = '''
local count = redis.call('INCR', KEYS[1])
return count
'''

def hit(r, key, limit, window):
    return r.eval(LUA, 1, key) <= limit
""",
        "ttl",
        "INCR without a TTL: after the first `limit` requests a client is locked out for ever",
    ),
    Wrong(
        """
LUA = '''
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return count
'''

def hit(r, key, limit, window):
    return r.eval(LUA, 1, key, int(window)) <= limit
""",
        "limit",
        "a window of under a second becomes EXPIRE 0, which deletes the key",
    ),
    Wrong(
        """
import time

LUA = '''
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, ARGV[1] - ARGV[3])
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1] .. ':' .. redis.call('ZCARD', KEYS[1]))
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[3] * 1000))
return 1
'''

def hit(r, key, limit, window):
    return r.eval(LUA, 1, key, time.time(), limit, window) == 1
""",
        "clock",
        "the time is the client's: a client whose clock is ahead empties the window",
    ),
    Wrong(
        """
import hashlib

LUA = '''
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count
'''
loaded = set()

def hit(r, key, limit, window):
    sha = hashlib.sha1(LUA.encode()).hexdigest()
    if sha not in loaded:
        r.script_load(LUA)
        loaded.add(sha)
    return r.evalsha(sha, 1, key, int(window * 1000)) <= limit
""",
        "flushed",
        "EVALSHA alone does not survive SCRIPT FLUSH or a restart of the server",
    ),
    Wrong(
        """
def hit(r, key, limit, window):
    with r.pipeline(transaction=False) as pipe:
        count, _ = pipe.incr(key).pexpire(key, int(window * 1000), nx=True).execute()
    return count <= limit
""",
        "atomic",
        "a pipeline is one round trip, but lets others in between",
    ),
    Wrong(
        """
import time

admitted = {}

def hit(r, key, limit, window):
    r.set(key, "busy", px=int(window * 1000))
    recent = [at for at in admitted.get(key, []) if at > time.monotonic() - window]
    admitted[key] = recent + [time.monotonic()] * (len(recent) < limit)
    return len(recent) < limit
""",
        "shared",
        "counts in the process, and writes a key for show: each process has a limit of its own",
    ),
    Wrong(
        TRIP.replace("window * 1000", "window * 500"),
        "window",
        "half the window: twice as many get in as asked for",
    ),
    Wrong(
        TRIP.replace("if count == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end", "").replace(
            "redis.call('INCR', KEYS[1])", "redis.call('SET', KEYS[1], count + 1, 'PX', ARGV[2])"
        ),
        "polite",
        "every admitted request puts the end of the window off",
    ),
)


def _grade_trip(hit: Any, lab: Lab) -> None:
    r, long = lab.r, 30.0
    hit(r, lab.key("warm-up"), 3, long)
    _check_trips(hit, lab, long)
    for window in (long, 0.9):
        _check_count(hit, lab, window)
    _check_clock(hit, lab)
    _check_hammering(hit, lab)
    _check_polite(hit, lab)
    r.script_flush()
    try:
        hit(r, lab.key("trip"), 3, long)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise Failure(
            "flushed", "after SCRIPT FLUSH a call fails", what, "EVAL, which always works"
        ) from None


def _check_trips(hit: Any, lab: Lab, window: float) -> None:
    key = lab.key("trip")
    with lab.tap() as t:
        hit(lab.r, key, 3, window)
    if t.round_trips != 1:
        raise Failure(
            "round_trips",
            f"a call takes {t.round_trips} round trips",
            ", ".join(exchange.command[0] for exchange in t.commands),
            "what remains if your process dies between them; then at EVAL",
        )
    names = [exchange.command[0].upper() for exchange in t.commands]
    if len(names) > 1 and (names[0], names[-1]) != ("MULTI", "EXEC"):
        what = "the server may let another client in between your commands"
        raise Failure("atomic", what, ", ".join(names), "MULTI/EXEC, or a script")
    if not 0 < lab.r.pttl(key) <= window * 1000:
        said = f"window {window:g} s: PTTL -> {lab.r.pttl(key)}"
        raise Failure("ttl", "the key has no TTL of at most the window", said, "PEXPIRE")


def _check_count(hit: Any, lab: Lab, window: float) -> None:
    key, began = lab.key("trip"), time.monotonic()
    answers = [bool(hit(lab.r, key, 3, window)) for _ in range(9)]
    if time.monotonic() - began < window / 2 and answers != [True] * 3 + [False] * 6:
        raise Failure(
            "limit",
            "with a limit of 3, the first 3 of 9 requests are to be admitted, and only those",
            f"window {window:g} s: {answers}",
            "what Redis makes of the TTL that you give it",
        )
    lab.r.unlink(key)
    if not hit(lab.r, key, 3, window):
        said = "limit 3: refused, although the key was deleted just before"
        raise Failure("shared", "the count is not in the key", said, "what other processes see")


def _check_clock(hit: Any, lab: Lab) -> None:
    """Two clients whose clocks differ by 100 s take turns."""
    key, real, admitted = lab.key("trip"), time.time, 0
    for i in range(12):
        skew = 100.0 * (i % 2)
        with mock.patch("time.time", lambda skew=skew: real() + skew):
            admitted += bool(hit(lab.r, key, 3, 30.0))
    if admitted > 3:
        raise Failure(
            "clock",
            "two clients whose clocks differ by 100 s get more than the limit together",
            f"limit 3, 12 requests in turns: {admitted} admitted",
            "whose clock decides what is old",
        )


def _check_hammering(hit: Any, lab: Lab) -> None:
    """Three windows long; in them lie at most four windows, or parts of them."""
    key, window, began, admitted = lab.key("trip"), 0.2, time.monotonic(), list[float]()
    while (at := time.monotonic() - began) < 3 * window or (admitted[-1] < window and at < 2):
        if hit(lab.r, key, 3, window):
            admitted.append(at)
    if admitted[-1] < window:
        raise Failure(
            "refused",
            "a client that keeps trying is never admitted again",
            f"window {window:g} s: refused without a pause for {at:.0f} s",
            "when the TTL is set, and by which requests",
        )
    if (count := sum(at < 3 * window for at in admitted)) > 4 * 3:
        raise Failure(
            "window",
            "the windows are shorter than asked",
            f"limit 3, window {window:g} s: {count} admitted in {3 * window:g} s",
            "the unit of the TTL that you give",
        )


def _check_polite(hit: Any, lab: Lab) -> None:
    """Four requests so far apart that no window holds more than two."""
    key, window = lab.key("trip"), 0.4
    for i in range(4):
        if i:
            time.sleep(0.52 * window)
        if not hit(lab.r, key, 3, window):
            raise Failure(
                "polite",
                "a client that sends two requests a window is refused; three are allowed",
                f"limit 3, window {window:g} s, a request every {0.52 * window:.2f} s: number {i + 1}",
                "which request sets the TTL: one that comes later must not put the end off",
            )


# --- honest: a bucket whose retry_after can be relied on --------------------------------------------

HONEST_STUB = '''
class Bucket:
    """A token bucket in Python. `now()` tells the time in seconds."""

    def __init__(self, capacity, rate, now):
        raise NotImplementedError

    def hit(self, cost=1):
        """(True, 0.0) if admitted, else (False, seconds after which this very call is admitted)."""
        raise NotImplementedError
'''

HONEST = '''
class Bucket:
    """A token bucket in Python. `now()` tells the time in seconds."""

    def __init__(self, capacity, rate, now):
        self.capacity, self.rate, self.now = capacity, rate, now
        self.level, self.at = capacity, now()

    def hit(self, cost=1):
        now = self.now()
        self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < cost:
            return False, (cost - self.level) / self.rate
        self.level -= cost
        return True, 0.0
'''


def _spoilt(*changes: tuple[str, str]) -> str:
    """The reference with some lines changed."""
    source = HONEST
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


_FILL = "min(self.capacity, self.level + (now - self.at) * self.rate)"
_WAIT = "(cost - self.level) / self.rate"
_SPEND = "        self.level -= cost\n"
_NOTE = "        self.at = now\n"

HONEST_WRONG = (
    Wrong(
        _spoilt((_FILL, "self.level + (now - self.at) * self.rate")),
        "overflow",
        "the bucket has no rim: a long pause buys a burst without bound",
    ),
    Wrong(
        _spoilt(
            (_SPEND, ""), ("        if self.level < cost:", f"{_SPEND}        if self.level < 0:")
        ).replace(_WAIT, "-self.level / self.rate"),
        "refused",
        "a refused request is paid for as well",
    ),
    Wrong(
        _spoilt((_WAIT, "1 / self.rate")),
        "honest",
        "the time for one token, whatever the call costs: it comes too early and is refused again",
    ),
    Wrong(
        _spoilt((_WAIT, "self.capacity / self.rate")),
        "shortest",
        "says the time for a full bucket: never too early, and far longer than need be",
    ),
    Wrong(
        _spoilt((_NOTE, ""), (_SPEND, _SPEND + _NOTE)),
        "rate",
        "a refused request fills the bucket, but not the record of when: time counts twice",
    ),
    Wrong(
        _spoilt(("(now - self.at) * self.rate", "int(now - self.at) * self.rate")),
        "honest",
        "counts whole seconds: what drips in between is lost, so the answer is wrong",
    ),
    Wrong(
        _spoilt(("self.level, self.at = capacity, now()", "self.level, self.at = 0, now()")),
        "burst",
        "empty at first: a new client is refused, though nobody has taken anything yet",
    ),
    Wrong(
        _spoilt(("return True, 0.0", "return True, 1 / self.rate")),
        "honest",
        "tells a client to wait that was admitted: it goes at the pace of one token, for nothing",
    ),
)

ROUNDING = 1e-6


def _grade_honest(kind: Any, lab: Lab) -> None:
    del lab
    for capacity, rate in ((10, 4), (6, 0.5)):
        _check_bucket(kind, capacity, rate)


def _check_bucket(kind: Any, capacity: int, rate: float) -> None:
    clock = Clock(100.0)

    def fresh() -> Any:
        clock.at = 100.0
        return kind(capacity, rate, clock)

    bucket = fresh()
    taken = sum(bool(bucket.hit()[0]) for _ in range(3 * capacity))
    if taken != capacity:
        said = f"capacity {capacity}: {taken} at once"
        raise Failure("burst", "at first the bucket is full", said, "the level in __init__")
    clock.at += 1000
    taken = sum(bool(bucket.hit()[0]) for _ in range(3 * capacity))
    if taken != capacity:
        raise Failure(
            "overflow",
            "after a long pause the bucket is full, not fuller",
            f"capacity {capacity}: {taken} at once after 1,000 s",
            "min()",
        )
    _check_refused_is_free(fresh(), capacity)
    for cost in (3, 1, capacity):
        _check_wait(fresh(), clock, capacity, rate, cost)
    _check_rate(fresh(), clock, capacity, rate)


def _check_refused_is_free(bucket: Any, capacity: int) -> None:
    if (answer := tuple(bucket.hit(capacity - 1))) != (True, 0.0):
        said = f"capacity {capacity}: hit({capacity - 1}) on a full bucket -> {answer}"
        raise Failure("honest", "who is admitted need not wait: (True, 0.0)", said, "what you return")
    for _ in range(20):
        bucket.hit(capacity)
    if not bucket.hit(1)[0]:
        raise Failure(
            "refused",
            "a refused request must cost nothing",
            f"one token is left; 20 requests for {capacity} are refused; then one for 1 is refused too",
            "when you subtract",
        )


def _check_wait(bucket: Any, clock: Clock, capacity: int, rate: float, cost: int) -> None:
    bucket.hit(capacity)
    clock.at += 0.1
    allowed, wait = bucket.hit(cost)
    asked = f"rate {rate}/s; 0.1 s after the bucket was emptied, hit({cost}) says: retry after {wait:.3f} s"
    if allowed or wait <= 0:
        what = "an empty bucket must refuse, and say for how long"
        raise Failure("honest", what, asked, "what you compare the level with")
    clock.at += wait + ROUNDING
    if not bucket.hit(cost)[0]:
        raise Failure(
            "honest", "after that time the same call is refused again", asked, "what is missing for it"
        )
    if wait > (cost - 0.1 * rate) / rate + ROUNDING:
        raise Failure("shortest", "that is longer than it takes", asked, "what is missing for it")


def _check_rate(bucket: Any, clock: Clock, capacity: int, rate: float) -> None:
    """A client that tries every 10 ms for 20 s."""
    times = []
    for _ in range(2000):
        clock.at += 0.01
        if bucket.hit()[0]:
            times.append(clock.at)
    most = capacity + rate * 20
    said = f"a request every 10 ms for 20 s: {len(times)} admitted"
    if len(times) > most + 1:
        what = f"over t seconds at most capacity + rate · t may pass, here {most:g}"
        raise Failure("rate", what, said, "what a refused request changes")
    if any(b < a for a, b in pairwise(times)) or len(times) < most - 2:
        what = f"too little passes, {most:g} should"
        raise Failure("rate", what, said, "when the level is brought up to date")


EXERCISES = (
    Exercise(
        stem="rate_limiter",
        name="boundary",
        title="No window holds more than the limit",
        statement="Write a limiter that does not let twice the limit through at the edge of a window: in "
        "**any** `window` seconds at most `limit` requests of a key are admitted, and as many as "
        "that allows. Several processes share the limit, and may ask at the same moment. Refused "
        "requests do not count. Every key has a TTL, and stays as long as it matters. `now()` tells "
        "the time.",
        answer="MyLimiter",
        stub=BOUNDARY_STUB.strip(),
        hints=(
            "A count cannot know when its requests were made. What would you have to remember instead?",
            "The request is fine unless the `limit`-th newest admitted one is younger than the window.",
            "A list, newest first: LINDEX key limit-1 is that one. LPUSH if you admit; LTRIM keeps it short.",
            "Between two of your commands another process may ask. Nobody gets into a script: r.eval(…).",
        ),
        reference=BOUNDARY.strip(),
        wrong=BOUNDARY_WRONG,
        grade=_grade_boundary,
    ),
    Exercise(
        stem="rate_limiter",
        name="one_trip",
        title="One atomic round trip on the server's clock",
        statement="`INCR` and then `EXPIRE` is two round trips, and a crash in between leaves a key that "
        "never expires. Write a fixed window that takes one round trip, lets nobody in between, uses "
        "no clock but the server's, survives `SCRIPT FLUSH`, and also works for windows under a "
        "second. Several processes share the count: it is in `key`.",
        answer="hit",
        stub=TRIP_STUB.strip(),
        hints=(
            "A script runs without anything in between: r.eval(lua, 1, key, …).",
            "The server keeps a clock for you: a key with a TTL ends by itself. Who may set it, and when?",
            "PEXPIRE takes milliseconds. EXPIRE 0 deletes the key.",
        ),
        reference=TRIP.strip(),
        wrong=TRIP_WRONG,
        grade=_grade_trip,
        seconds=15,
    ),
    Exercise(
        stem="rate_limiter",
        name="honest",
        title="A retry_after that is honest",
        statement="Write the token bucket in plain Python. A refused call says after how many seconds the "
        "same call would be admitted: never too early, and no later than need be (a microsecond "
        "of rounding is fine).",
        answer="Bucket",
        stub=HONEST_STUB.strip(),
        hints=(
            "Two numbers are enough: the level, and when it was true.",
            "Bring the level up to date first, and never above the capacity. Then decide.",
            "Missing are cost - level tokens, and `rate` of them drip in each second.",
        ),
        reference=HONEST.strip(),
        wrong=HONEST_WRONG,
        grade=_grade_honest,
    ),
)
