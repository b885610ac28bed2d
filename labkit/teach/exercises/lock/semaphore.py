"""Chapter 08, exercise semaphore: n holders, also after some of them have crashed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from redis.crc import key_slot

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise
from labkit.teach.exercises.lock.grading import (
    BETWEEN,
    COUNTED,
    LONG,
    Story,
    check_chance,
    check_refused,
    check_third,
    clocks,
    explored,
    in_time,
    nothing,
    wrong,
)
from labkit.teach.lab import Lab

SEMAPHORE_STUB = '''
class MySemaphore:
    """At most `n` holders of `name` at once; each holds its place for `ttl` seconds at most."""

    def __init__(self, r, name, n, ttl):
        raise NotImplementedError

    def acquire(self):
        """A token if a place was free: it is ours now. None if there was none. Does not wait."""
        raise NotImplementedError

    def release(self, token):
        """True if `token` still had its place: that is free now. False if not: nothing changes."""
        raise NotImplementedError
'''

SEMAPHORE = '''
import secrets

class MySemaphore:
    """At most `n` holders of `name` at once: a sorted set of tokens, each with the end of its time."""

    ACQUIRE = """
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
    if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return 1
    """
    RELEASE = """
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
    return redis.call('ZREM', KEYS[1], ARGV[1])
    """

    def __init__(self, r, name, n, ttl):
        self.r, self.key, self.n, self.ms = r, name, n, max(1, round(ttl * 1000))

    def acquire(self):
        """A token if a place was free: it is ours now. None if there was none. Does not wait."""
        token = secrets.token_hex(16)
        return token if self.r.eval(self.ACQUIRE, 1, self.key, self.n, self.ms, token) == 1 else None

    def release(self, token):
        """True if `token` still had its place: that is free now. False if not: nothing changes."""
        return self.r.eval(self.RELEASE, 1, self.key, token) == 1
'''

_HEAD = """
import secrets, time

class MySemaphore:
    def __init__(self, r, name, n, ttl):
        self.r, self.key, self.n, self.ttl, self.ms, self.tokens = r, name, n, ttl, round(ttl * 1000), {}
"""
_SLOTS = (
    _HEAD
    + """
    LUA = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

    def slot(self, i):
        return f"{{{self.key}}}:{i}"

    def acquire(self):
        for i in range(self.n):
            token = f"{i}:{secrets.token_hex(8)}"
            if self.r.set(self.slot(i), token, nx=True, px=self.ms):
                return token

    def release(self, token):
        key = self.slot(token.partition(":")[0])
        return self.r.eval(self.LUA, 1, key, token) == 1
"""
)
_COUNTER = (
    _HEAD
    + """
    ACQUIRE = '''
    if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[1]) then return 0 end
    redis.call('INCR', KEYS[1])
    return 1
    '''

    def acquire(self):
        if self.r.eval(self.ACQUIRE, 1, self.key, self.n, self.ms):
            return self.tokens.setdefault(secrets.token_hex(8), secrets.token_hex(8))

    def release(self, token):
        if token not in self.tokens.values():
            return False
        self.tokens.clear()
        return self.r.decr(self.key) >= 0
"""
)
_ZSET = (
    _HEAD
    + """
    def now(self):
        seconds, micros = self.r.time()
        return seconds * 1000 + micros // 1000

    def acquire(self):
        token, now = secrets.token_hex(8), self.now()
        self.r.zremrangebyscore(self.key, "-inf", now)
        if self.r.zcard(self.key) >= self.n:
            return None
        with self.r.pipeline() as pipe:
            pipe.zadd(self.key, {token: now + self.ms}).pexpire(self.key, self.ms).execute()
        return token

    def release(self, token):
        with self.r.pipeline() as pipe:
            return pipe.zremrangebyscore(self.key, "-inf", self.now()).zrem(self.key, token).execute()[1]
"""
)
_ASK_FIRST = """        if self.r.zcard(self.key) >= self.n:
            return None
"""
_ASK_LATER = """        if self.r.zcard(self.key) > self.n:
            self.r.zrem(self.key, token)
            return None
"""
_OWN = (
    _HEAD
    + """
    def acquire(self):
        if sum(end > time.monotonic() for end in self.tokens.values()) < self.n:
            token = secrets.token_hex(8)
            self.tokens[token] = time.monotonic() + self.ttl
            return token

    def release(self, token):
        return self.tokens.pop(token, 0) > time.monotonic()
"""
)
_COMPARE = "self.r.eval(self.LUA, 1, key, token) == 1"
_INCR = "redis.call('INCR', KEYS[1])\n"
_LAST = "redis.call('PEXPIRE', KEYS[1], ARGV[2])"
_NOW = "local now = time[1] * 1000 + math.floor(time[2] / 1000)"
_PURGE = "    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)\n    if"

_HEX = "secrets.token_hex(16)"
_ANEW = (
    "for _, one in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do "
    "redis.call('ZADD', KEYS[1], now + ARGV[2], one) end"
)
_PUT_BACK_PLACE = """value = self.r.getdel(key)
        if value is not None and value != token:
            self.r.set(key, value, px=self.ms)
        return value == token"""


def _by(clock: str) -> tuple[tuple[str, str], ...]:
    return (
        ("import secrets", "import datetime, secrets, time"),
        ("local time = redis.call('TIME')\n", ""),
        (_NOW, "local now = tonumber(ARGV[4])"),
        ("self.ms, token)", f"self.ms, token, round({clock} * 1000))"),
        ("self.key, token)", f"self.key, token, '', '', round({clock} * 1000))"),
    )


SEMAPHORE_WRONG = (
    wrong(_COUNTER, "leak", "INCR and DECR: a holder that crashed is counted for ever"),
    wrong(
        _COUNTER,
        "leak",
        "everybody renews the counter's TTL: while others come, a crashed holder's place stays taken",
        (_INCR, f"{_INCR}    {_LAST}\n"),
    ),
    wrong(
        _COUNTER,
        "early",
        "the counter ends with the time of its first holder, and forgets the others",
        (_INCR, f"if redis.call('INCR', KEYS[1]) == 1 then {_LAST} end\n"),
    ),
    wrong(_ZSET, "race", "ZCARD, then ZADD: both find the last place free"),
    wrong(
        _ZSET,
        "race",
        "ZADD, then ZCARD: two that come at once turn each other away",
        (_ASK_FIRST, ""),
        ("        return token\n", f"{_ASK_LATER}        return token\n"),
    ),
    wrong(
        SEMAPHORE,
        "clock",
        "the client's clock: one that is ahead throws the others out",
        *_by("time.time()"),
    ),
    wrong(
        _SLOTS,
        "theirs",
        "DEL of a place without comparing: it may be another's by now",
        (_COMPARE, "self.r.delete(key) == 1"),
    ),
    wrong(
        _SLOTS,
        "race",
        "GET, then DEL: frees a place that is another's by now",
        (_COMPARE, "self.r.get(key) == token and self.r.delete(key) == 1"),
    ),
    wrong(_SLOTS, "slot", "each place may be on another node of a cluster", ("{{{self.key}}}", "{self.key}")),
    wrong(
        _SLOTS,
        "leak",
        "a place without a TTL: a holder that crashed has it for ever",
        ("nx=True, px=self.ms", "nx=True"),
    ),
    wrong(
        SEMAPHORE, "ttl", "the last token stays for ever, if nobody comes any more", (f"    {_LAST}\n", "")
    ),
    wrong(SEMAPHORE, "leak", "while others come, whoever crashed is never removed", (_PURGE, "    if")),
    wrong(
        SEMAPHORE,
        "token",
        "one token for all holders: in a set they count as one, and each releases the others",
        ("secrets.token_hex(16)", '"holder"'),
    ),
    wrong(
        SEMAPHORE,
        "limit",
        "`>` in place of `>=`: n + 1 holders get in",
        (">= tonumber(ARGV[1])", "> tonumber(ARGV[1])"),
    ),
    wrong(_OWN, "shared", "kept in the process: others know nothing of it"),
    wrong(
        SEMAPHORE,
        "leak",
        "a refused acquire renews all holders: while others try, a dead one keeps its place",
        ("then return 0 end", f"then {_LAST} {_ANEW} return 0 end"),
    ),
    wrong(
        SEMAPHORE,
        "refused",
        "who is refused sets the TTL of the key anew: it outlives its last holder",
        ("then return 0 end", f"then {_LAST} return 0 end"),
    ),
    wrong(
        _SLOTS,
        "race",
        "GETDEL, and put back what was another's: in between a third client gets the place",
        (f"return {_COMPARE}", _PUT_BACK_PLACE),
    ),
    wrong(
        SEMAPHORE,
        "late",
        "release() is True for a place whose time is up: nobody has removed it yet",
        (f"{_PURGE[:-7]}\n    return redis.call('ZREM'", "    return redis.call('ZREM'"),
    ),
    wrong(
        SEMAPHORE,
        "ttl",
        "PERSIST in release(): the key outlives the holders that are left",
        ("    return redis.call('ZREM'", "    redis.call('PERSIST', KEYS[1])\n    return redis.call('ZREM'"),
    ),
    wrong(
        SEMAPHORE,
        "clock",
        "datetime is the client's clock, too: one that is ahead throws the others out",
        *_by("datetime.datetime.now().timestamp()"),
    ),
    wrong(
        SEMAPHORE,
        "clock",
        "clock_gettime is the client's clock, too: one that is ahead throws the others out",
        *_by("time.clock_gettime(time.CLOCK_REALTIME)"),
    ),
    wrong(
        SEMAPHORE,
        "clock",
        "the client's clock in release() alone: one that is ahead throws the others out",
        ("import secrets", "import secrets\nfrom time import time"),
        ("self.key, token)", "self.key, token, round(time() * 1000))"),
        ("'-inf', now)\n    return", "'-inf', ARGV[2])\n    return"),
    ),
    wrong(
        SEMAPHORE,
        "token",
        "a token of 16 bits: among some 300 holders two are likely to be alike",
        (_HEX, "secrets.token_hex(2)"),
    ),
    wrong(SEMAPHORE, "token", "the object's id: another process may have the same", (_HEX, "str(id(self))")),
    wrong(
        _SLOTS,
        "room",
        "tries one place only, by chance: it may be refused while another is free",
        ("in range(self.n)", "in [secrets.randbelow(self.n)]"),
    ),
)


def _grade_semaphore(kind: Any, lab: Lab) -> None:
    _check_places(kind, lab)
    _check_many_places(kind, lab)
    in_time(lambda ttl: _crash_of_one(kind, lab, ttl), 0.4, 0.8, 1.6)
    _check_stale(kind, lab)
    in_time(lambda ttl: _late_release(kind, lab, ttl), 0.2, 0.4, 0.8, 1.6)
    _check_clock(kind, lab)
    _check_clock_of_release(kind, lab)
    _check_place_tokens(kind, lab)
    _check_mortal(kind, lab)
    _check_mortal_release(kind, lab)
    _check_places_race(kind, lab)
    _check_stale_race(kind, lab)
    _check_third_place(kind, lab)
    _check_place_refused(kind, lab)


def _check_places(kind: Any, lab: Lab) -> None:
    """Three places, and four clients."""
    name, story, look = lab.key("jobs"), Story("n = 3"), "what release() returns, and when"
    ada, bob, cyd, dan = (kind(lab.client(), name, 3, LONG) for _ in range(4))
    hold, take = story.hold, story.take
    first, second, third = (
        take(f"{who}.acquire()", each.acquire) for who, each in (("ada", ada), ("bob", bob), ("cyd", cyd))
    )
    free = not any(map(nothing, (first, second, third)))
    hold(free, "room", "three want three places, and one is refused", "what you compare with n")
    hold(lab.r.dbsize(), "shared", "Redis holds no key: others cannot see who has a place", "what `r` is for")
    own = len({story.name(token) for token in (first, second, third)}) == 3
    hold(own, "token", "each holder needs a token of its own", "secrets.token_hex()")
    fourth = take("dan.acquire()", dan.acquire)
    hold(nothing(fourth), "limit", "a fourth holder where three places are", "what counts them, and where")
    _check_slot(lab)
    freed = story.call("ada.release(token·1)", ada.release, first)
    hold(freed, "answer", "release() is True if the token had its place", look)
    fourth = take("dan.acquire()", dan.acquire)
    hold(not nothing(fourth), "room", "a place is free again", "what release() frees")
    freed = story.call("ada.release(token·1)", ada.release, first)
    again = take("ada.acquire()", ada.acquire)
    what = "a token that is released twice frees the place of another"
    hold(nothing(again), "theirs", what, "how release() knows whose place it frees")
    hold(not freed, "answer", "release() is False for a token that was released before", look)


def _check_many_places(kind: Any, lab: Lab) -> None:
    """Five places are taken, and no more, three times over: also where an answer leaves it to chance."""
    for _ in range(3):
        lab.r.flushdb()
        name, story = lab.key("jobs"), Story("n = 5")
        semaphore = kind(lab.r, name, 5, LONG)
        look, names = "whether every place is tried, and what you compare with n", set()
        for held in range(5):
            token = story.take("acquire()", semaphore.acquire)
            what = f"{held} of 5 places are taken, and the next client is refused"
            story.hold(not nothing(token), "room", what, look)
            names.add(story.name(token))
        what = "one client that acquires several places needs a token for each"
        story.hold(len(names) == 5, "token", what, "what is different in each acquisition")
        token = story.take("acquire()", semaphore.acquire)
        story.hold(nothing(token), "limit", "a sixth holder where five places are", "what you compare with n")


def _check_slot(lab: Lab) -> None:
    slots = {key: key_slot(key.encode()) for key in sorted(lab.r.scan_iter())}
    story = Story(*(f"CLUSTER KEYSLOT {key} -> {slot}" for key, slot in slots.items()))
    what = "in a cluster these keys may be on different nodes"
    story.hold(len(set(slots.values())) <= 1, "slot", what, "hash tags, or one key for all")


def _check_stale(kind: Any, lab: Lab) -> None:
    """One place; ada's time is up, and it is bob's."""
    lab.r.flushdb()
    name, story = lab.key("jobs"), Story("n = 1")
    ada, bob, cyd = (kind(lab.client(), name, 1, LONG) for _ in range(3))
    token = story.take("ada.acquire()", ada.acquire)
    lab.r.flushdb()
    story.tell("ada's time is up")
    taken = story.take("bob.acquire()", bob.acquire)
    story.hold(not nothing(taken), "room", "the place is free again", "what acquire() asks")
    freed = story.call("ada.release(token·1)", ada.release, token)
    other = story.take("cyd.acquire()", cyd.acquire)
    what = "ada's release frees the place that is now bob's"
    story.hold(nothing(other), "theirs", what, "how release() knows whose place it frees")
    story.hold(not freed, "answer", "release() is False if the place was lost", "what release() returns")


def _crash_of_one(kind: Any, lab: Lab, ttl: float) -> bool:
    """Ada crashes; bob comes when half of her time is over; cyd tries all the time, and gets ada's place.

    Places end in time, and not before. What is asked holds however slow the machine is: moments are taken
    before and after each call. False: it was so slow that ada's time was up before bob came, or bob's before
    the last question was answered.
    """
    lab.r.flushdb()
    name = lab.key("jobs")
    ada, bob, cyd, dan = (kind(lab.client(), name, 2, ttl) for _ in range(4))
    story, look = Story(f"n = 2, ttl {ttl:g} s"), "whose time the TTL counts, and who sets it anew"

    def at(call: str, fn: Callable[[], Any]) -> tuple[float, float, bool]:
        before, got = time.monotonic(), not nothing(fn())
        after = time.monotonic()
        story.lines.append(f"{before - began:.2f} s: {call} -> {'a token' if got else None}")
        return before, after, got

    began = time.monotonic()
    ada_before, ada_after, _ = at("ada.acquire()", ada.acquire)
    story.lines[-1] += ", and ada crashes"
    time.sleep(0.6 * ttl)
    bob_before, bob_after, got = at("bob.acquire()", bob.acquire)
    story.hold(got, "room", "one of two places is free, and bob is refused", look)
    for attempt in itertools.count():
        before, after, got = at("cyd.acquire()", cyd.acquire)
        what = f"both places are taken, for {ttl:g} s each, and cyd gets one"
        story.hold(not got or after > began + ttl - 0.005, "early", what, look)
        if got:
            break
        what = f"ada crashed; {ttl:g} s later her place should be free again, and is not"
        story.hold(before < ada_after + ttl + 0.03, "leak", what, look)
        if attempt:
            story.lines.pop()  # the first refusal and the last are enough
        time.sleep(0.005)
    _, after, got = at("dan.acquire()", dan.acquire)
    before_the_end = after < bob_before + ttl - 0.005
    met = bob_after < ada_before + ttl - 0.005
    what = "bob still has his place and cyd got the other, and dan gets one too"
    story.hold(not (got and before_the_end), "early", what, look)
    return met and before_the_end


def _late_release(kind: Any, lab: Lab, ttl: float) -> bool:
    """Ada releases when her time is up and bob's is not.

    False: so slow that ada's time was up before bob came, who removed her, or bob's before the end.
    """
    lab.r.flushdb()
    name = lab.key("jobs")
    ada, bob = (kind(lab.client(), name, 2, ttl) for _ in range(2))
    story, look = Story(f"n = 2, ttl {ttl:g} s"), "whether release() asks if the time of a place is up"
    ada_before = time.monotonic()
    token = story.take("ada.acquire()", ada.acquire)
    ada_after = time.monotonic()
    time.sleep(0.6 * ttl)
    story.tell("0.6 ttl later:")
    bob_before = time.monotonic()
    other = story.take("bob.acquire()", bob.acquire)
    met = time.monotonic() < ada_before + ttl - 0.005
    time.sleep(max(0, ada_after + ttl + 0.02 - time.monotonic()))
    story.tell("when ada's time is up, and bob's is not:")
    freed = story.call("ada.release(token·1)", ada.release, token)
    story.hold(not freed, "late", "release() is False for a place whose time is up", look)
    freed = story.call("bob.release(token·2)", bob.release, other)
    before_the_end = time.monotonic() < bob_before + ttl - 0.005
    what = "bob still had his place: release() should be True"
    story.hold(freed or not before_the_end, "answer", what, "what release() removes beside its own place")
    return met and before_the_end


def _check_place_refused(kind: Any, lab: Lab) -> None:
    """Bob is refused, and no time changes; nor does who has a place."""
    lab.r.flushdb()
    name, story = lab.key("jobs"), Story("n = 1")
    ada, bob = (kind(lab.client(), name, 1, LONG) for _ in range(2))
    story.take("ada.acquire()", ada.acquire)
    got = "limit", "two holders where one place is"
    check_refused(story, lab.r, "bob.acquire()", lambda: None if nothing(bob.acquire()) else "a token", got)


def _check_clock(kind: Any, lab: Lab) -> None:
    """One place, and two clients whose clocks differ by 100 s."""
    for first, second in ((0, 100), (-100, 0)):
        lab.r.flushdb()
        name, story = lab.key("jobs"), Story("n = 1, ttl 60 s")
        for who, skew in (("ada", first), ("bob", second)):
            semaphore = kind(lab.client(), name, 1, LONG)
            with clocks(skew, kind):
                token = story.take(f"{who}.acquire(), clock {skew:+d} s", semaphore.acquire)
        what = "two clients whose clocks differ by 100 s both get the only place"
        story.hold(nothing(token), "clock", what, "TIME inside of a script, or the TTL of a key")


def _check_clock_of_release(kind: Any, lab: Lab) -> None:
    """Two places, and bob, whose clock is ahead by 100 s, releases his."""
    lab.r.flushdb()
    name, story = lab.key("jobs"), Story("n = 2, ttl 60 s")
    ada, bob, cyd, dan = (kind(lab.client(), name, 2, LONG) for _ in range(4))
    look = "TIME inside of a script, or the TTL of a key: release() too"
    story.take("ada.acquire()", ada.acquire)
    token = story.take("bob.acquire()", bob.acquire)
    with clocks(100, kind):
        freed = story.call("bob.release(token·2), clock +100 s", bob.release, token)
    story.hold(freed, "clock", "bob had his place, and by his own clock he had not", look)
    story.take("cyd.acquire()", cyd.acquire)
    token = story.take("dan.acquire()", dan.acquire)
    what = "ada and cyd have the two places, and dan gets one: by bob's clock ada's time was up"
    story.hold(nothing(token), "clock", what, look)


def _check_mortal(kind: Any, lab: Lab) -> None:
    def acquire(r: Any) -> bool:
        return not nothing(kind(r, "jobs", 1, LONG).acquire())

    def rule(r: Any) -> None:
        for key in sorted(r.scan_iter()):
            left = r.pttl(key)
            assert 0 < left <= LONG * 1000, f"a key outlives its last holder: PTTL {key} is {left}"

    def both(r: Any) -> bool | None:
        semaphore = kind(r, "jobs", 1, LONG)
        token = semaphore.acquire()
        return None if nothing(token) else bool(semaphore.release(token))

    cast, look = "A: acquire(); it may crash", "what a crash leaves behind after each of your commands"
    explored(lab, [acquire], "ttl", look, cast, invariant=rule, faults=[crash])
    cast = "n = 1. A: acquire(), release(); it may crash"
    explored(lab, [both], "ttl", look, cast, invariant=rule, faults=[crash])


def _check_mortal_release(kind: Any, lab: Lab) -> None:
    """Two hold places, and one of them releases: what is left has its TTL still."""
    lab.r.flushdb()
    name, story = lab.key("jobs"), Story("n = 2, ttl 60 s")
    ada, bob = (kind(lab.client(), name, 2, LONG) for _ in range(2))
    token = story.take("ada.acquire()", ada.acquire)
    story.take("bob.acquire()", bob.acquire)
    story.call("ada.release(token·1)", ada.release, token)
    for key in sorted(lab.r.scan_iter()):
        left = story.call(f"PTTL {key}", lab.r.pttl, key)
        what = "after a release a key outlives its last holder"
        story.hold(0 < left <= LONG * 1000, "ttl", what, "what release() does to the TTL of the key")


def _check_places_race(kind: Any, lab: Lab) -> None:
    def acquire(r: Any) -> bool:
        return not nothing(kind(r, "jobs", 1, LONG).acquire())

    def rule(r: Any, results: list[Any]) -> None:
        assert results.count(True) < 2, "one place, and both A and B hold it"
        assert any(results), "the place is free, and both A and B are refused"

    cast = "n = 1. A and B: acquire()"
    explored(lab, [acquire, acquire], "race", BETWEEN, cast, invariant=rule)


def _check_stale_race(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> bool | None:
        semaphore = kind(r, "jobs", 1, LONG)
        token = semaphore.acquire()
        return None if nothing(token) else bool(semaphore.release(token))

    def bob(r: Any) -> bool:
        r.flushdb()
        return not nothing(kind(r, "jobs", 1, LONG).acquire())

    def rule(r: Any, results: list[Any]) -> None:
        free = not nothing(kind(r, "jobs", 1, LONG).acquire())
        assert not (free and results[1]), "B holds the only place, and A's release has freed it"

    cast = "n = 1. A: acquire(), release(). B: acquire(), once A's time is up"
    explored(lab, [ada, bob], "race", BETWEEN, cast, invariant=rule)


def _check_third_place(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> Any:
        semaphore = kind(r, "jobs", 1, LONG)
        token = semaphore.acquire()
        return None if nothing(token) else lambda: semaphore.release(token)

    def bob(r: Any) -> bool:
        r.flushdb()
        return cyd(r)

    def cyd(r: Any) -> bool:
        return not nothing(kind(r, "jobs", 1, LONG).acquire())

    cast = "n = 1. A: acquire(). B: acquire(), once A's time is up. Then A: release(). C: acquire()"
    what = "B has the only place, and C got it too: A's release() took it from B for a moment"
    check_third(lab, ada, bob, cyd, (cast, what))


def _check_place_tokens(kind: Any, lab: Lab) -> None:
    """Each token is another one, and none that another process might come to."""
    lab.r.flushdb()
    name, tokens, kept = lab.key("jobs"), [], []
    with lab.tap() as tape:
        for _ in range(30):
            kept.append(kind(lab.r, name, 1, LONG))
            token = kept[-1].acquire()
            kept[-1].release(token)
            tokens += [] if nothing(token) else [str(token)]
    if len(tokens) == len(kept) and not any(
        COUNTED.search(" ".join(exchange.command)) for exchange in tape.commands
    ):
        check_chance(tokens, "secrets.token_hex(16)")


EXERCISE = Exercise(
    stem="lock",
    name="semaphore",
    title="A semaphore that survives its holders",
    statement="Write a semaphore: at most `n` clients hold a place at once, and while one is free nobody "
    "is refused. Each holder has its place for `ttl` seconds (fractions too) unless it "
    "releases it before: not longer, even if it crashed and others come and go, and not shorter. "
    "A refused `acquire` changes nothing. "
    "`release` frees only the place that its token still has, and says whether it did. "
    "No two tokens are the same, in whatever process. No clock counts but the server's; "
    "every key has a TTL; all keys are in one cluster slot.",
    answer="MySemaphore",
    stub=SEMAPHORE_STUB.strip(),
    hints=(
        "A counter knows how many hold a place, but not who, and not until when. What must be "
        "remembered of each holder?",
        "A sorted set: a token for each holder, and as its score the moment at which its place "
        "ends. Who is over time goes first (ZREMRANGEBYSCORE), then you count (ZCARD), then you "
        "add (ZADD).",
        "These must be one step, on the server's clock: a script, and in it redis.call('TIME'), "
        "which gives seconds and microseconds.",
        "The key as a whole needs a TTL too: PEXPIRE by whoever was admitted last is right, "
        "since its place ends last. release() is ZREM, after those whose time is up have been "
        "removed.",
    ),
    reference=SEMAPHORE.strip(),
    wrong=SEMAPHORE_WRONG,
    grade=_grade_semaphore,
    seconds=30,
)
