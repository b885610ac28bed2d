"""Chapter 04, exercise index: which sessions of a user are live, and nothing about those that are not."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.lock.grading import BETWEEN, LONG, Story, clocks, explored, in_time, wrong
from labkit.teach.exercises.session.grading import (
    NEVER,
    USERS,
    Inside,
    Strangers,
    assert_mortal,
    elsewhere,
    no_scan,
    said,
)
from labkit.teach.lab import Lab

STUB = '''
class MyIndex:
    """Which sessions of each user are live. A session is known by its `sid`."""

    def __init__(self, r, name):
        raise NotImplementedError

    def touch(self, user, sid, ttl):
        """`sid` begins or is used: it is live for `ttl` seconds from now, be it more or less than before."""
        raise NotImplementedError

    def end(self, user, sid):
        """True if `sid` was live: it is not any more. False if it was not."""
        raise NotImplementedError

    def active(self, user):
        """The sids of `user` that are live, in any order."""
        raise NotImplementedError
'''

REFERENCE = '''
class MyIndex:
    """Which sessions of each user are live: a sorted set of sids, by the moment at which each ends."""

    # KEYS: the user's set. ARGV: what to do, sid, ttl in ms. Returns all that are live, or how many removed.
    LUA = """
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
    if ARGV[1] == 'active' then return redis.call('ZRANGE', KEYS[1], 0, -1) end
    local removed = 0
    if ARGV[1] == 'touch' then redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2]) end
    if ARGV[1] == 'end' then removed = redis.call('ZREM', KEYS[1], ARGV[2]) end
    local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
    if last then redis.call('PEXPIREAT', KEYS[1], last) end
    return removed
    """

    def __init__(self, r, name):
        self.r, self.name = r, name

    def do(self, user, *what):
        return self.r.eval(self.LUA, 1, f"{self.name}:{user}", *what)

    def touch(self, user, sid, ttl):
        """`sid` begins or is used: it is live for `ttl` seconds from now, be it more or less than before."""
        self.do(user, "touch", sid, max(1, round(ttl * 1000)))

    def end(self, user, sid):
        """True if `sid` was live: it is not any more. False if it was not."""
        return self.do(user, "end", sid) == 1

    def active(self, user):
        """The sids of `user` that are live, in any order."""
        return self.do(user, "active")
'''

_PURGE = "    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)\n"
_PURGE_SOME = """    local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
    for _, sid in ipairs(dead) do
        redis.call('ZREM', KEYS[1], sid)
    end
"""
_ADD = "redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2])"
_LIVE = "redis.call('ZRANGE', KEYS[1], 0, -1) end"
_LAST = "    if last then redis.call('PEXPIREAT', KEYS[1], last) end\n"
_NOW = "local now = time[1] * 1000 + math.floor(time[2] / 1000)"
_SCORE = "tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or 0)"
_KEY = 'f"{self.name}:{user}"'

_CALL = f"self.r.eval(self.LUA, 1, {_KEY}, *what)"

_HEAD = """
import json, time

class MyIndex:
    def __init__(self, r, name):
        self.r, self.name, self.mine = r, name, {}

    def key(self, user, sid=""):
        return f"{self.name}:{user.encode().hex()}:{sid}"

    def now(self):
        seconds, micros = self.r.time()
        return seconds * 1000 + micros // 1000
"""
_SET = (
    _HEAD
    + """
    def touch(self, user, sid, ttl):
        self.r.sadd(self.key(user), sid)

    def end(self, user, sid):
        return self.r.srem(self.key(user), sid) == 1

    def active(self, user):
        return self.r.smembers(self.key(user))
"""
)
_ADDED = "        self.r.sadd(self.key(user), sid)\n"
_KEYS = (
    _HEAD
    + """
    def touch(self, user, sid, ttl):
        self.r.set(self.key(user, sid), 1, px=round(ttl * 1000))

    def end(self, user, sid):
        return self.r.delete(self.key(user, sid)) == 1

    def active(self, user):
        return [key.rpartition(":")[2] for key in self.r.scan_iter(self.key(user, "*"))]
"""
)
_STEPS = (
    _HEAD
    + """
    def touch(self, user, sid, ttl):
        self.r.zadd(self.key(user), {sid: self.now() + round(ttl * 1000)})
        self.tidy(user)

    def end(self, user, sid):
        self.tidy(user)
        removed = self.r.zrem(self.key(user), sid)
        self.tidy(user)
        return removed == 1

    def active(self, user):
        self.tidy(user)
        return self.r.zrange(self.key(user), 0, -1)

    def tidy(self, user):
        self.r.zremrangebyscore(self.key(user), "-inf", self.now())
        last = self.r.zrange(self.key(user), -1, -1, withscores=True)
        if last:
            self.r.pexpireat(self.key(user), int(last[0][1]))
"""
)
_PAIRS = (
    _HEAD
    + """
    TIDY = '''
    local last = 0
    for _, sid in ipairs(redis.call('SMEMBERS', KEYS[1])) do
        last = math.max(last, redis.call('PTTL', KEYS[1] .. sid))
    end
    if last > 0 then redis.call('PEXPIRE', KEYS[1], last) end
    '''

    def touch(self, user, sid, ttl):
        self.active(user)
        with self.r.pipeline() as pipe:
            pipe.set(self.key(user, sid), 1, px=round(ttl * 1000)).sadd(self.key(user), sid)
            pipe.eval(self.TIDY, 1, self.key(user)).execute()

    def end(self, user, sid):
        self.active(user)
        with self.r.pipeline() as pipe:
            pipe.srem(self.key(user), sid).delete(self.key(user, sid))
            return pipe.eval(self.TIDY, 1, self.key(user)).execute()[1] == 1

    def active(self, user):
        sids = self.r.smembers(self.key(user))
        with self.r.pipeline(transaction=False) as pipe:
            for sid in sids:
                pipe.exists(self.key(user, sid))
            dead = [sid for sid, there in zip(sids, pipe.execute(), strict=True) if not there]
        if dead:
            self.r.srem(self.key(user), *dead)
        return sids.difference(dead)
"""
)
_JSON = (
    _HEAD
    + """
    def read(self, user):
        now = self.now()
        return {sid: at for sid, at in json.loads(self.r.get(self.key(user)) or "{}").items() if at > now}

    def write(self, user, live):
        if live:
            self.r.set(self.key(user), json.dumps(live), pxat=max(live.values()))
        else:
            self.r.delete(self.key(user))

    def touch(self, user, sid, ttl):
        self.write(user, self.read(user) | {sid: self.now() + round(ttl * 1000)})

    def end(self, user, sid):
        live = self.read(user)
        was = live.pop(sid, None) is not None
        self.write(user, live)
        return was

    def active(self, user):
        live = self.read(user)
        self.write(user, live)
        return list(live)
"""
)
_OWN = (
    _HEAD
    + """
    def touch(self, user, sid, ttl):
        self.mine[user, sid] = time.monotonic() + ttl

    def end(self, user, sid):
        return self.mine.pop((user, sid), 0) > time.monotonic()

    def active(self, user):
        return [sid for (of, sid), end in self.mine.items() if of == user and end > time.monotonic()]
"""
)


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


def _last(option: str) -> tuple[str, str]:
    """The TTL of whoever was touched last, or first."""
    return _LAST, f"    if ARGV[1] == 'touch' then redis.call('PEXPIRE', KEYS[1], ARGV[3]{option}) end\n"


def _purge(when: str) -> tuple[str, str]:
    return _PURGE, f"    if ARGV[1] {when} then {_PURGE.strip()} end\n"


WRONG = (
    wrong(_SET, "dead", "SADD: a set knows who was there, not until when, so nothing ever ends"),
    wrong(
        _SET,
        "dead",
        "SADD and EXPIRE: as long as the user is there, every session that ever was is on the list",
        (
            _ADDED,
            f"{_ADDED}        self.r.pexpire(self.key(user), round(ttl * 1000), nx=True)\n"
            "        self.r.pexpire(self.key(user), round(ttl * 1000), gt=True)\n",
        ),
    ),
    wrong(_KEYS, "scan", "SCAN through all keys of the server, for one user's sessions"),
    wrong(
        _KEYS,
        "scan",
        "KEYS: the server stands still while it looks at everybody's keys",
        ("scan_iter", "keys"),
    ),
    wrong(_STEPS, "crash", "ZADD, then PEXPIREAT: a crash in between leaves an index for ever"),
    wrong(_PAIRS, "race", "a set, and a key for each session: one that begins while it is cleaned is lost"),
    wrong(_JSON, "race", "one JSON value: two who write at once overwrite each other"),
    wrong(_OWN, "shared", "a dict: other processes know nothing of it"),
    _wrong("outlives", "no TTL: the last sessions of a user who never comes back stay for ever", (_LAST, "")),
    _wrong(
        "early", "it ends with the session that was used last, not with the one that ends last", _last("")
    ),
    _wrong("early", "PEXPIRE NX: the index ends with its first session, and others live on", _last(", 'NX'")),
    _wrong(
        "outlives",
        "GT: a key without a TTL lasts longer than any",
        (_LAST, _LAST.replace("last)", "last, 'GT')")),
    ),
    _wrong(
        "outlives",
        "only ever longer: when the longest session is ended, the index stays",
        (_LAST, _LAST.replace("last)", "last, 'NX')") + _LAST.replace("last)", "last, 'GT')")),
    ),
    _wrong(
        "grows",
        "never cleaned: active() leaves out what has ended, and keeps it",
        (_PURGE, ""),
        (_LIVE, "redis.call('ZRANGE', KEYS[1], now, '+inf', 'BYSCORE') end"),
        ("if ARGV[1] == 'end' then", f"if ARGV[1] == 'end' and {_SCORE} > now then"),
    ),
    _wrong(
        "grows",
        "removes a hundred at most in a call: with more, some of the dead stay",
        (_PURGE, _PURGE_SOME),
        (_LIVE, "redis.call('ZRANGE', KEYS[1], '(' .. now, '+inf', 'BYSCORE') end"),
        ("if ARGV[1] == 'end' then", f"if ARGV[1] == 'end' and {_SCORE} > now then"),
    ),
    _wrong(
        "grows",
        "cleans only when there is much of it: a few dead sessions stay for good",
        (_PURGE, f"    if redis.call('ZCARD', KEYS[1]) > 3 then {_PURGE.strip()} end\n"),
        (_LIVE, "redis.call('ZRANGE', KEYS[1], '(' .. now, '+inf', 'BYSCORE') end"),
        ("if ARGV[1] == 'end' then", f"if ARGV[1] == 'end' and {_SCORE} > now then"),
    ),
    _wrong(
        "grows",
        "touch() does not clean: who only ever uses sessions keeps all the dead ones",
        _purge("~= 'touch'"),
    ),
    _wrong("dead", "cleaned by touch() alone: active() shows what has ended", _purge("== 'touch'")),
    _wrong("late", "end() is True for what had ended, since it was still on the list", _purge("~= 'end'")),
    _wrong(
        "dead",
        "the time in whole seconds: for up to a second a dead session is listed",
        (_NOW, "local now = tonumber(time[1]) * 1000"),
    ),
    _wrong(
        "outlives",
        "ZADD GT: a session that gets less time is listed for the longer one",
        (_ADD, _ADD.replace(" now", " 'GT', now")),
    ),
    _wrong(
        "early",
        "ZADD NX: the first end stays, so a session that is used drops off the list",
        (_ADD, _ADD.replace(" now", " 'NX', now")),
    ),
    _wrong(
        "clock",
        "the client's clock: one that is ahead removes what is live",
        ("class MyIndex", "import time\n\nclass MyIndex"),
        ("    local time = redis.call('TIME')\n", ""),
        (_NOW, "local now = tonumber(ARGV[4])"),
        (_CALL, f"{_CALL[:-6]}*what, *[''] * (3 - len(what)), round(time.time() * 1000))"),
    ),
    _wrong("others", "one index for all users: everybody sees everybody's sessions", (_KEY, "self.name")),
    _wrong("others", "keys without the store's name: two stores mix their users", (_KEY, "user")),
    _wrong(
        "listed",
        "one session for each user: the phone drops off when the laptop logs in",
        (_ADD, f"redis.call('DEL', KEYS[1]) {_ADD}"),
    ),
    _wrong(
        "listed",
        "each use is a new entry: one session is listed many times",
        (_ADD, _ADD.replace("ARGV[2])", "ARGV[2] .. ':' .. now)")),
        ('return self.do(user, "active")', "return [s.partition(':')[0] for s in self.do(user, 'active')]"),
    ),
    _wrong(
        "listed",
        "lists ten at most: an eleventh is live, and left out",
        (_LIVE, "redis.call('ZRANGE', KEYS[1], 0, 9) end"),
    ),
    _wrong(
        "answer",
        "end() is True in every case: nobody learns that the session had ended before",
        ("sid) == 1", "sid) in (0, 1)"),
    ),
    _wrong(
        "ended",
        "end() changes nothing: what was ended is listed as live",
        ("redis.call('ZREM', KEYS[1], ARGV[2])", f"{_SCORE} > 0 and 1 or 0"),
    ),
)


def _grade(kind: Any, lab: Lab) -> None:
    inside = Inside(lab)
    _check_lists(kind, lab, inside)
    _check_end(kind, lab)
    for path in ("active", "touch"):
        for dead in (1, 300):
            _check_clean(kind, lab, inside, path, dead)
    _check_ends(kind, lab, inside)
    in_time(lambda ttl: _real_time(kind, lab, inside, ttl), 0.12, 0.24, 0.48, 0.96)
    _check_late(kind, lab)
    for dead in (1, 300):
        _check_clean(kind, lab, inside, "end", dead)
    _check_fractions(kind, lab)
    _check_clock(kind, lab)
    _check_crash(kind, lab, inside)
    _check_races(kind, lab, inside)


def _sid() -> str:
    return secrets.token_hex(32)


class _Told:
    """An index and a story: each call is told, with labels for the sids."""

    def __init__(self, kind: Any, lab: Lab) -> None:
        lab.r.flushdb()
        self.story, self.name = Story(), lab.key("index")
        self.index, self.other = kind(lab.r, self.name), elsewhere(kind)(lab.client(), self.name)
        self.sids: dict[str, str] = {}

    def sid(self, label: str) -> str:
        return self.sids.setdefault(label, _sid())

    def touch(self, user: str, label: str, ttl: float) -> None:
        self.story.tell(f"touch({user!r}, {label}, {ttl:g})")
        self.index.touch(user, self.sid(label), ttl)

    def end(self, user: str, label: str) -> Any:
        return self.story.call(f"end({user!r}, {label})", self.index.end, user, self.sid(label))

    def active(self, user: str, index: Any = None) -> list[str]:
        """Labels of what is active, sorted."""
        labels = {sid: label for label, sid in self.sids.items()}
        given = (index or self.index).active(user)
        what = f"active({user!r}) gives None: where there is no session, an empty list is asked for"
        self.story.hold(given is not None, "listed", what, "what active() returns, on every path")
        found = [labels.get(sid, repr(sid)) for sid in given]
        self.story.tell(f"active({user!r}) -> [{', '.join(sorted(found))}]")
        return sorted(found)


def _check_lists(kind: Any, lab: Lab, inside: Inside) -> None:
    """Sessions of many users, from two processes; nothing of theirs is another's."""
    told = _Told(kind, lab)
    strangers, hold = Strangers(inside, told.name), told.story.hold
    with no_scan(told.story, inside):
        hold(
            told.active("ada") == [],
            "listed",
            "nobody has a session yet",
            "what active() gives where there is no key",
        )
        hold(
            not told.end("ada", "s1"),
            "answer",
            "end() is False where there is no such session",
            "what end() returns",
        )
        for user in USERS:
            for label in ("phone", "laptop", "phone"):
                told.touch(user, f"{user}'s {label}", LONG)
                time.sleep(0.002)  # each use in another millisecond, however fast the machine is
        told.story.lines = [f"each of {', '.join(USERS)}: touch(phone), touch(laptop), touch(phone)"]
        for user in USERS:
            _check_user(told, user)
        told.story.lines.clear()
        _check_others(kind, lab, told)
    strangers.check(told.story)
    many = [_sid() for _ in range(300)]
    for sid in many:
        told.index.touch("many", sid, LONG)
    found = list(told.index.active("many"))
    told.story.lines = [f"touch('many', …, 60) of 300 sids; active('many') gives {len(found)}"]
    hold(sorted(found) == sorted(many), "listed", "300 sessions are live", "how many active() reads")


def _check_user(told: _Told, user: str) -> None:
    """Two sessions are live, of which one was touched twice: the same to another process."""
    hold, wanted, found = told.story.hold, [f"{user}'s laptop", f"{user}'s phone"], told.active(user)
    strange = [label for label in found if not label.startswith(f"{user}'s")]
    hold(not strange, "others", f"{strange} is not a session of {user!r}'s", "the names of the keys")
    what = "two sessions are live; each is to be listed once"
    hold(found == wanted, "listed", what, "what you store for each session")
    found = told.active(user, told.other)
    hold(found == wanted, "shared", "another process sees other sessions", "what is kept in the process")
    told.story.lines.pop()


def _check_others(kind: Any, lab: Lab, told: _Told) -> None:
    """An index of another name, and a user whose session it is not."""
    told.sids.clear()
    told.touch("ada", "s1", LONG)
    other = kind(lab.r, lab.key("other"))
    told.story.tell("in an index of another name:")
    look = "the names of the keys"
    told.story.hold(not told.active("ada", other), "others", "that index must know nothing of it", look)
    for user in ("bob", "ad", "a*"):
        done = told.end(user, "s1")
        told.story.hold(
            not done, "answer", f"s1 is not a session of {user!r}'s: end() is False", "what end() returns"
        )
    told.story.hold("s1" in told.active("ada"), "others", "s1 was live, and another user ended it", look)


def _check_end(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    for label in ("s1", "s2"):
        told.touch("ada", label, LONG)
    look = "what end() returns, and when"
    told.story.hold(told.end("ada", "s1") is True, "answer", "end() is True if the session was live", look)
    told.story.hold(
        told.active("ada") == ["s2"], "ended", "s1 was ended, and s2 was not", "what end() removes"
    )
    told.story.hold(
        told.end("ada", "s1") is False, "answer", "end() is False if the session was not live", look
    )
    told.touch("ada", "s1", LONG)
    found = told.active("ada")
    told.story.hold(found == ["s1", "s2"], "listed", "s1 begins once more", "what end() leaves behind")
    lab.r.flushdb()
    told.story.tell("FLUSHDB")
    look = "what is kept in your object, or in a variable: only Redis knows what is live"
    told.story.hold(
        not told.active("ada"), "shared", "nothing is left in Redis, and sessions are listed", look
    )


Step = tuple[str, str, float]


def _check_ends(kind: Any, lab: Lab, inside: Inside) -> None:
    """Whatever is done, the index ends with the latest of the sessions that are left."""
    stories: list[list[Step]] = [
        [("touch", "s1", 60), ("touch", "s2", 10)],
        [("touch", "s1", 10), ("touch", "s2", 60), ("touch", "s1", 20)],
        [("touch", "s1", 10), ("touch", "s1", 60)],
        [("touch", "s1", 60), ("touch", "s1", 10)],
        [("touch", "s1", 60), ("touch", "s2", 20), ("touch", "s1", 5)],
        [("touch", "s1", 60), ("touch", "s2", 20), ("end", "s1", 0)],
        [("touch", "s1", 20), ("touch", "s2", 60), ("end", "s1", 0), ("touch", "s3", 90), ("end", "s2", 0)],
        [("touch", "s1", 60), ("end", "s1", 0)],
        [("touch", "s1", 1.5), ("touch", "s2", 0.75)],
    ]
    for steps in stories:
        told, live = _Told(kind, lab), dict[str, tuple[float, float]]()
        for what, label, ttl in steps:
            before = time.monotonic()
            if what == "touch":
                told.touch("ada", label, ttl)
                live[label] = before + ttl, time.monotonic() + ttl
            else:
                told.end("ada", label)
                del live[label]
            _check_latest(told, inside, live)
        _check_not_early(told, inside, live)


def _check_latest(told: _Told, inside: Inside, live: dict[str, tuple[float, float]]) -> None:
    """The key that lasts longest lasts as long as the latest of the live sessions."""
    now, ends = time.monotonic(), inside.ends()
    told.story.hold(ends or not live, "shared", "Redis holds nothing of it", "what `r` is for")
    most = (max((after for _, after in live.values()), default=now) - now) * 1000 + 5
    for key, left in ends.items():
        if left == NEVER or left > most:
            told.story.tell(f"PTTL {said(key)} -> {left}")
            lasts = f"at most {most / 1000:.1f} s are left of any session" if live else "no session is left"
            look = "what happens to the TTL when the longest session ends, or gets less time"
            told.story.hold(False, "outlives", f"{lasts}, and the index lasts longer", look)
    least = (max((before for before, _ in live.values()), default=0.0) - time.monotonic()) * 1000 - 5
    if live and max(ends.values()) < least:
        told.story.lines += [f"PTTL {said(key)} -> {left}" for key, left in ends.items()]
        look = "which session sets the TTL: the one that ends last"
        told.story.hold(False, "early", "the index ends before its sessions", look)


def _check_not_early(told: _Told, inside: Inside, live: dict[str, tuple[float, float]]) -> None:
    """Shortly before the last session ends, it is still there."""
    if not live:
        return
    last = max(live, key=lambda label: live[label])
    skip = int((live[last][0] - time.monotonic()) * 1000) - 500
    if skip <= 0:
        return
    for key in inside.keys():  # noqa: SIM118
        left = int(inside.r.pttl(key))
        if 0 <= left <= skip:
            inside.r.delete(key)
        elif left > 0:
            inside.r.pexpire(key, left - skip)
    told.story.tell(f"{skip / 1000:.1f} s later")
    what = f"{last} is live for another half second, and is not listed"
    told.story.hold(
        last in told.active("ada"), "early", what, "which session sets the TTL: the one that ends last"
    )


def _check_clean(kind: Any, lab: Lab, inside: Inside, path: str, dead: int) -> None:
    """So many sessions have ended. After one call for their user nothing of them is left."""
    told, sids = _Told(kind, lab), [_sid() for _ in range(dead)]
    told.touch("ada", "s0", LONG)
    before, ttl = inside.size(), 0.1 if dead > 1 else 0.02
    told.story.tell(f"keys and elements in Redis: {before}")
    for sid in sids:
        told.index.touch("ada", sid, ttl)
    told.story.tell(f"touch('ada', …, {ttl:g}) of {dead} other{'s' * (dead > 1)}; when their time is up:")
    time.sleep(ttl + 0.01)
    if path == "touch":
        told.touch("ada", "s0", LONG)
    elif path == "end":
        told.end("ada", "s1")
    else:
        found = told.active("ada")
        told.story.lines[-1] = f"active('ada') gives {len(found)} sids"
        look = "which session sets the TTL of the index"
        told.story.hold("s0" in found, "early", "s0 is live, and active() does not list it", look)
        what, look = "one session is live, and active() lists others", "when what has ended is removed"
        told.story.hold(found == ["s0"], "dead", what, look)
    size, words = inside.size(), inside.dump()
    told.story.tell(f"keys and elements in Redis: {size}")
    left = sum(any(sid.encode() in word for word in words) for sid in sids)
    what = "one session is live, and Redis still holds those that have ended"
    told.story.hold(not left and size <= before, "grows", what, f"what {path}() removes, and how much of it")


def _real_time(kind: Any, lab: Lab, inside: Inside, ttl: float) -> bool:
    """A short session, a long one, and one that is used again. False: the machine was too slow to tell."""
    told = _Told(kind, lab)
    hold = told.story.hold
    began = time.monotonic()
    told.touch("ada", "short", ttl)
    told.touch("ada", "long", 3 * ttl)
    told.touch("ada", "used", ttl)
    all_there = time.monotonic()
    told.touch("bob", "bob's", ttl)
    time.sleep(max(0, began + 0.5 * ttl - time.monotonic()))
    told.story.tell(f"{0.5 * ttl:.2f} s:")
    found, now = told.active("ada"), time.monotonic()
    if now > began + ttl - 0.005:
        return False
    hold(found == ["long", "short", "used"], "early", "all of them are live", "which unit the times are in")
    told.touch("ada", "used", 2 * ttl)
    used = time.monotonic()
    time.sleep(max(0, all_there + 1.25 * ttl - time.monotonic()))
    told.story.tell(f"{1.25 * ttl:.2f} s:")
    done, found, now = told.end("ada", "short"), told.active("ada"), time.monotonic()
    if now > began + 2.5 * ttl - 0.005:
        return False
    hold(not done, "late", "end() is False for a session whose time is up", "whether end() asks for the time")
    hold("short" not in found, "dead", "the time of `short` is up", "when what has ended is removed")
    hold(
        "used" in found,
        "early",
        f"`used` was used at {0.5 * ttl:.2f} s, for {2 * ttl:.2f} s more",
        "what touch() sets anew",
    )
    hold(found == ["long", "used"], "early", "`long` is still live", "which session sets the TTL")
    time.sleep(max(0, used + 3.5 * ttl - time.monotonic()))
    told.story.tell(f"{4 * ttl:.2f} s, and nobody has asked meanwhile:")
    keys = inside.keys()
    told.story.tell(f"keys: {', '.join(map(said, keys)) or 'none'}")
    hold(not keys, "outlives", "every session has ended, and a key is left", "the TTL of the index")
    return True


def _check_late(kind: Any, lab: Lab) -> None:
    """Sessions are ended just after their time was up: also where the server has not removed them yet."""
    for _ in range(10):
        told = _Told(kind, lab)
        told.touch("ada", "s1", LONG)
        told.touch("ada", "s2", 0.003)
        time.sleep(0.006)
        told.story.tell("0.006 s later:")
        done, look = told.end("ada", "s2"), "how end() knows whether the time of a session is up"
        told.story.hold(not done, "late", "end() is False for a session whose time is up", look)


def _check_fractions(kind: Any, lab: Lab) -> None:
    """At whatever moment of a second they begin: 0.04 s later one of 0.3 s is live, one of 0.02 s over."""
    for n in range(4):
        told = _Told(kind, lab)
        before = time.monotonic()
        told.touch("ada", "long", 0.3)
        told.touch("ada", "short", 0.02)
        time.sleep(0.04)
        found = told.active("ada")
        if time.monotonic() > before + 0.295:
            continue
        told.story.hold("long" in found, "early", "of 0.3 s some 0.04 s are over", "fractions of a second")
        told.story.hold("short" not in found, "dead", "0.02 s are over", "fractions of a second")
        time.sleep(0.2 if n < 3 else 0)


def _check_clock(kind: Any, lab: Lab) -> None:
    """Clients whose clocks are wrong by 100 s touch, list and end."""
    look = "whose clock says when a session ends: TIME in a script is the server's"
    for skew in (100, -100):
        told = _Told(kind, lab)
        told.touch("ada", "s1", LONG)
        told.touch("ada", "s3", 0.001)
        time.sleep(0.003)
        for turn in (skew, 0):
            with clocks(turn, kind):
                told.story.tell(f"by a clock that is wrong by {turn:+d} s:")
                if turn:
                    told.touch("ada", "s2", LONG)
                    told.touch("ada", "s4", 0.001)
                    time.sleep(0.003)
                found = told.active("ada")
            told.story.hold(
                found == ["s1", "s2"], "clock", "s1 and s2 are live for some 60 s, and nothing else", look
            )
        with clocks(skew, kind):
            told.story.tell(f"by a clock that is wrong by {skew:+d} s:")
            done = told.end("ada", "s1")
        told.story.hold(done, "clock", "s1 was live: end() should be True", look)
        told.story.hold(told.active("ada") == ["s2"], "clock", "s2 is live, and nothing else", look)


def _check_crash(kind: Any, lab: Lab, inside: Inside) -> None:
    def ada(r: Any) -> None:
        index = kind(r, "index")
        index.touch("ada", "s1", LONG)
        index.touch("ada", "s2", LONG)
        index.end("ada", "s1")

    def rule(r: Any) -> None:
        assert_mortal(inside, LONG)

    cast = "A: touch(s1), touch(s2), end(s1); it may crash"
    explored(
        lab,
        [ada],
        "crash",
        "what a crash leaves behind after each of your commands",
        cast,
        invariant=rule,
        faults=[crash],
    )


def _check_races(kind: Any, lab: Lab, inside: Inside) -> None:
    """Two clients at once; `old` is a session that has ended before."""

    def touch(sid: str, ttl: float) -> Callable[[Any], None]:
        return lambda r: kind(r, "index").touch("ada", sid, ttl)

    def end(sid: str) -> Callable[[Any], bool]:
        return lambda r: bool(kind(r, "index").end("ada", sid))

    def active(r: Any) -> list[str]:
        return sorted(kind(r, "index").active("ada"))

    pairs: list[tuple[str, Any, str, Any, list[str], int]] = [
        ("touch(s2, 60)", touch("s2", 60), "touch(s3, 10)", touch("s3", 10), ["s1", "s2", "s3"], 60),
        ("active()", active, "touch(old, 60)", touch("old", 60), ["old", "s1"], 60),
        ("touch(s2, 60)", touch("s2", 60), "touch(old, 20)", touch("old", 20), ["old", "s1", "s2"], 60),
        ("end(s1)", end("s1"), "touch(s2, 20)", touch("s2", 20), ["s2"], 20),
        ("end(s1)", end("s1"), "end(s1)", end("s1"), [], 0),
        ("active()", active, "end(s1)", end("s1"), [], 0),
    ]
    for one, first, other, second, left, seconds in pairs:

        def rule(r: Any, results: list[Any], left: list[str] = left, seconds: int = seconds) -> None:
            _rule(inside, active(r), results, left, seconds)

        setup = _with_old(kind, lab, inside)
        cast = f"s1 has 40 s left, and old has ended. A: {one}. B: {other}"
        explored(lab, [first, second], "race", BETWEEN, cast, setup=setup, invariant=rule)


def _with_old(kind: Any, lab: Lab, inside: Inside) -> Callable[[Any], None]:
    """A setup: s1 is live, and old has just ended, with nobody having looked since."""
    lab.r.flushdb()
    index = kind(lab.r, "index")
    index.touch("ada", "s1", 40)
    index.touch("ada", "old", 0.003)
    time.sleep(0.006)
    return inside.saved()


def _rule(inside: Inside, found: list[str], results: list[Any], left: list[str], seconds: int) -> None:
    """What is listed in the end, how long the index lasts, and what A and B were told."""
    for sid in left:
        assert sid in found, f"{sid} is live, and is not listed any more"
    for sid in found:
        assert sid in left, f"{sid} has ended, and is listed"
    longest = max(inside.ends().values(), default=0)
    assert longest != NEVER, "the index never ends"
    assert longest <= seconds * 1000 + 5, (
        f"the index outlives its sessions: {longest} ms, and they {seconds} s"
    )
    assert longest > seconds * 1000 - 8000, (
        f"the index ends before its sessions: in {longest} ms, they in {seconds} s"
    )
    told = [result for result in results if isinstance(result, bool)]
    assert not told or told.count(True) == 1, f"s1 was live: end() says {' and '.join(map(str, told))}"
    for result in results:
        if isinstance(result, list) and left and "s1" in left:
            assert "s1" in result, f"s1 is live all the time, and active() gives {result}"


EXERCISE = Exercise(
    stem="session",
    name="index",
    title="An index that cleans itself",
    statement="""
Write an index that tells which sessions of a user are live, for many users and many processes:

- A session is live for `ttl` seconds (fractions too) from its latest `touch`. Each `touch` may come with
  another `ttl`, more or less.
- No session that has ended is ever listed.
- After any call for a user, nothing in Redis is left of their sessions that have ended.
- The index ends by itself with the latest session that is left, not before and not after: also when that
  one is ended, or gets less time.
- What several do at once gets nothing lost.
- A crash leaves nothing that stays for ever.
- No client's clock counts, and nothing goes through all keys of the server.
""".strip(),
    answer="MyIndex",
    stub=STUB.strip(),
    hints=(
        "A set knows who was there, and not until when. What could hold both?",
        "A sorted set for each user: sids, with the moment at which each ends as the score. "
        "ZREMRANGEBYSCORE from -inf to now removes all that has ended, and every call can begin with it.",
        "Now is the server's: in a script redis.call('TIME') gives seconds and microseconds. A script is "
        "also one step: nobody comes in between.",
        "The key must last as long as the last of its members: after each change, the greatest score "
        "(ZRANGE key -1 -1 WITHSCORES) is what PEXPIREAT needs. An empty sorted set is gone by itself.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=60,
)
