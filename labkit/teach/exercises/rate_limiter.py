"""Exercises of chapter 05: a window that slides, one atomic round trip, a retry_after that is honest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any
from unittest import mock

from labkit.rig.traffic import Clock, Replay, at_once, at_random, steady
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.lab import Lab

# --- boundary: no window holds more than the limit --------------------------------------------------

BOUNDARY_STUB = '''
class MyLimiter:
    """At most `limit` in any `window` seconds, wherever they begin. `now()` tells the time in seconds."""

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
        "one count for all clients",
    ),
)

LIMIT, WINDOW = 5, 60.0


def _grade_boundary(kind: Any, lab: Lab) -> None:
    clock = Clock(1000 * WINDOW)
    start = clock.at

    def run(times: Iterable[float]) -> Replay:
        name = lab.key("limiter")
        limiter = kind(lab.r, name, LIMIT, WINDOW, clock)
        answers: dict[bool, list[float]] = {True: [], False: []}
        for at in times:
            clock.at = start + at
            answers[bool(limiter.hit("alice"))].append(at)
        _check_ttl(lab, name)
        return Replay(tuple(answers[True]), tuple(answers[False]))

    _check_at_once(run)
    for gap in (1.0, 20.0):
        late, early = at_once(LIMIT, at=WINDOW - 2, spread=1), at_once(LIMIT, at=WINDOW + gap, spread=1)
        _check_windows(run(late + early))
    _check_steady(run)
    for seed in range(3):
        _check_windows(run(at_random(3 * LIMIT / WINDOW, seconds=4 * WINDOW, seed=seed)))
    _check_two_keys(kind(lab.r, lab.key("limiter"), LIMIT, WINDOW, clock))


Run = Callable[[Iterable[float]], Replay]


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


def _check_ttl(lab: Lab, prefix: str) -> None:
    for key in lab.r.scan_iter(match=f"{prefix}*"):
        if lab.r.pttl(key) < 0:
            raise Failure("ttl", "a key has no TTL", f"PTTL {key} -> {lab.r.pttl(key)}", "PEXPIRE")


def _check_two_keys(limiter: Any) -> None:
    for _ in range(LIMIT):
        limiter.hit("alice")
    if not limiter.hit("bob"):
        said = f"{LIMIT} requests of alice, then one of bob"
        raise Failure("keys", "bob is refused because of alice", said, "the name of the key")


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
        "the count is never forgotten",
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
)


def _grade_trip(hit: Any, lab: Lab) -> None:
    r, long = lab.r, 30.0
    hit(r, lab.key("warm-up"), 3, long)
    _check_trips(hit, lab, long)
    for window in (long, 0.9):
        _check_count(hit, lab, window)
    _check_clock(hit, lab)
    _check_hammering(hit, lab)
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
    key, end = lab.key("trip"), time.monotonic() + 2
    while hit(lab.r, key, 3, 0.2):
        pass
    while not hit(lab.r, key, 3, 0.2):
        if time.monotonic() > end:
            raise Failure(
                "refused",
                "a client that keeps trying is never admitted again",
                "window 0.2 s: refused without a pause for 2 s",
                "when the TTL is set, and by which requests",
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
        "the time for one token, whatever the call costs",
    ),
    Wrong(
        _spoilt((_WAIT, "self.capacity / self.rate")),
        "shortest",
        "safe, but far too long",
    ),
    Wrong(
        _spoilt((_NOTE, ""), (_SPEND, _SPEND + _NOTE)),
        "rate",
        "a refused request fills the bucket, but not the record of when: time counts twice",
    ),
    Wrong(
        _spoilt(("(now - self.at) * self.rate", "int(now - self.at) * self.rate")),
        "honest",
        "whole seconds: what drips in between is lost",
    ),
    Wrong(
        _spoilt(("self.level, self.at = capacity, now()", "self.level, self.at = 0, now()")),
        "burst",
        "empty at first",
    ),
)

CAPACITY, RATE, ROUNDING = 10, 4, 1e-6


def _grade_honest(kind: Any, lab: Lab) -> None:
    del lab
    clock = Clock(100.0)

    def fresh() -> Any:
        clock.at = 100.0
        return kind(CAPACITY, RATE, clock)

    bucket = fresh()
    taken = sum(bool(bucket.hit()[0]) for _ in range(3 * CAPACITY))
    if taken != CAPACITY:
        said = f"capacity {CAPACITY}: {taken} at once"
        raise Failure("burst", "at first the bucket is full", said, "the level in __init__")
    clock.at += 1000
    taken = sum(bool(bucket.hit()[0]) for _ in range(3 * CAPACITY))
    if taken != CAPACITY:
        raise Failure(
            "overflow",
            "after a long pause the bucket is full, not fuller",
            f"capacity {CAPACITY}: {taken} at once after 1,000 s",
            "min()",
        )
    _check_refused_is_free(fresh(), clock)
    for cost in (3, 1, CAPACITY):
        _check_wait(fresh(), clock, cost)
    _check_rate(fresh(), clock)


def _check_refused_is_free(bucket: Any, clock: Clock) -> None:
    bucket.hit(CAPACITY - 1)
    for _ in range(20):
        bucket.hit(CAPACITY)
    if not bucket.hit(1)[0]:
        raise Failure(
            "refused",
            "a refused request must cost nothing",
            f"one token is left; 20 requests for {CAPACITY} are refused; then one for 1 is refused too",
            "when you subtract",
        )


def _check_wait(bucket: Any, clock: Clock, cost: int) -> None:
    bucket.hit(CAPACITY)
    clock.at += 0.1
    allowed, wait = bucket.hit(cost)
    asked = f"rate {RATE}/s; 0.1 s after the bucket was emptied, hit({cost}) says: retry after {wait:.3f} s"
    if allowed or wait <= 0:
        raise Failure("honest", "an empty bucket must refuse, and say for how long", asked)
    clock.at += wait + ROUNDING
    if not bucket.hit(cost)[0]:
        raise Failure(
            "honest", "after that time the same call is refused again", asked, "what is missing for it"
        )
    if wait > (cost - 0.1 * RATE) / RATE + ROUNDING:
        raise Failure("shortest", "that is longer than it takes", asked, "what is missing for it")


def _check_rate(bucket: Any, clock: Clock) -> None:
    """A client that tries every 10 ms for 20 s."""
    times = []
    for _ in range(2000):
        clock.at += 0.01
        if bucket.hit()[0]:
            times.append(clock.at)
    most = CAPACITY + RATE * 20
    if len(times) > most + 1:
        raise Failure(
            "rate",
            f"over t seconds at most capacity + rate · t may pass, here {most}",
            f"a request every 10 ms for 20 s: {len(times)} admitted",
            "what a refused request changes",
        )
    if any(b < a for a, b in pairwise(times)) or len(times) < most - 2:
        said = f"a request every 10 ms for 20 s: {len(times)} admitted"
        raise Failure(
            "rate", f"too little passes, {most} should", said, "when the level is brought up to date"
        )


EXERCISES = (
    Exercise(
        stem="rate_limiter",
        name="boundary",
        title="No window holds more than the limit",
        statement="Write a limiter that does not let twice the limit through at the edge of a window: in "
        "**any** `window` seconds at most `limit` requests of a key are admitted, and as many as "
        "that allows. Refused requests do not count. Every key has a TTL. `now()` tells the time.",
        answer="MyLimiter",
        stub=BOUNDARY_STUB.strip(),
        hints=(
            "A count cannot know when its requests were made. What would you have to remember instead?",
            "The request is fine unless the `limit`-th newest admitted one is younger than the window.",
            "A list, newest first: LINDEX key limit-1 is that one. LPUSH if you admit; LTRIM keeps it short.",
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
        "never expires. Write a fixed window that takes one round trip, uses nobody's clock but "
        "the server's, survives `SCRIPT FLUSH`, and also works for windows under a second.",
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
