"""Exercises of chapter 08: release and extend what is still yours, a semaphore, the election of a leader.

What one client does after another is told as calls and answers (`Story`). What several do at once is left to
the race explorer, and the counterexample is its interleaving with the fewest switches.
"""

from __future__ import annotations

import datetime
import inspect
import itertools
import math
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from redis.crc import key_slot

from labkit.rig.race import Exploration, NondeterministicActor, Trace, crash, explore
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.lab import Lab

LONG = 60.0
"""A TTL, in seconds, that does not end while a grade runs."""

MOST_STEPS = 100
"""Whoever needs more commands than this, in any interleaving, is taken to never end."""

# --- what all graders here use ----------------------------------------------------------------------

EXPIRE = """local left = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
return left > 0 and math.floor(left / 1000 + 0.5) or left"""


def _expires(r: Any, key: str) -> int:
    """The time of `key` is up. How many seconds it had left, in one step; -2 if it was not there."""
    return int(r.eval(EXPIRE, 1, key))


def _no(token: Any) -> bool:
    return token is None or token is False


class Story:
    """Calls, one after the other, with their answers: the counterexample where no race is needed."""

    def __init__(self, *lines: str) -> None:
        self.lines, self._tokens = list(lines), list[Any]()

    def call(self, said: str, fn: Callable[..., Any], *args: Any) -> Any:
        """Call `fn`, and note what it gave."""
        answer = fn(*args)
        self.lines.append(f"{said} -> {answer!r}")
        return answer

    def take(self, said: str, fn: Callable[[], Any]) -> Any:
        """The same for a call that gives a token: it is told under a name, since it is random."""
        token = fn()
        self.lines.append(f"{said} -> {self.name(token)}")
        return token

    def name(self, token: Any) -> str:
        """token·1 for the first token that was met, and so on; the same name for the same token."""
        if _no(token):
            return repr(token)
        if token not in self._tokens:
            self._tokens.append(token)
        return f"token·{self._tokens.index(token) + 1}"

    def tell(self, line: str) -> None:
        """Note what happened otherwise."""
        self.lines.append(line)

    def hold(self, held: Any, property: str, message: str, look_at: str) -> None:
        """Raises Failure, with all that has been told, unless `held`."""
        if not held:
            raise Failure(property, message, "\n".join(self.lines), look_at)


def _explored(
    lab: Lab, actors: Any, property: str, look_at: str, cast: str, setup: Any = None, **rules: Any
) -> None:
    """Raises Failure with the shortest counterexample, if an interleaving breaks the invariant.

    `cast` says what A and B do. Where there are too many interleavings, those with up to three switches
    between the clients are tried, which is where the races of so few commands are.
    """
    steps = itertools.count()

    def begin(r: Any) -> None:
        nonlocal steps
        steps = itertools.count(1)
        if setup is not None:
            setup(r)

    def comes_to_an_end(r: Any) -> None:
        if next(steps) > MOST_STEPS:
            what = f"with other clients in between, your code had not ended after {MOST_STEPS} commands"
            raise Failure("endless", what, cast, "what ends its loops")

    rules |= {"setup": begin, "always": comes_to_an_end, "limit": 1000, "seconds": 1.5, "server": lab.server}
    try:
        result = explore(actors, **rules)
        if result.verdict == "unknown" and "max_switches" not in rules:
            result = explore(actors, max_switches=3, **rules)
    except NondeterministicActor as error:
        what = "the same order of steps, run again, met other commands or other keys"
        raise Failure("deterministic", what, str(error), "what depends on chance: only tokens may") from None
    if result.violations:
        raise _failure(result, property, look_at, cast)


def _failure(result: Exploration, property: str, look_at: str, cast: str) -> Failure:
    trace = result.first
    assert trace is not None
    goes = "goes" if result.violations == 1 else "go"
    number = f"{result.violations:,} of {result.total:,} orders of these steps {goes} wrong; the simplest:"
    shown = "\n".join([cast, *([number] if result.total > 1 else []), *_rows(trace)])
    if re.match("[A-Z] raised ", trace.wrong):
        what = f"your code raises when other clients come in between: {trace.wrong.rstrip('.')}"
        return Failure("raises", what, shown, "what the last command shown may answer or raise")
    if trace.wrong.startswith("deadlock"):
        return Failure("endless", trace.wrong, shown, "what the last command shown waits for")
    return Failure(property, trace.wrong, shown, look_at)


def _rows(trace: Trace) -> list[str]:
    """The steps of a trace; where a client stands for another, or for the time that passes, they say so."""
    rows, roles = [], dict[str, str]()
    for step in trace.steps:
        who, command, reply = step.who, step.command, f"-> {step.reply}" if step.reply else ""
        if role := re.match('ECHO "?as ([A-Z])', command):
            roles[who] = role[1]
            continue
        who = roles.get(who, who)
        if command.startswith('EVAL "local left = '):
            key = command.rpartition(" ")[2]
            who, command, reply = "·", f"{key} expires" if step.reply != "-2" else f"{key} is not there", ""
        elif step.kind == "crash":
            command = "(crashes)"
        elif command == "FLUSHDB":
            who, command, reply = "·", "the time of all who came before is up", ""
        rows.append((who or "·", command, reply))
    width = max((len(command) for _, command, reply in rows if reply), default=0)
    return [f"  {who}  {command.ljust(width)}  {reply}".rstrip() for who, command, reply in rows]


def _check_left(
    story: Story, r: Any, key: str, ttl: float, since: float, unless: tuple[str, str] = ("ttl", "")
) -> None:
    """PTTL is `ttl` seconds, less what has passed since `since`. `unless`: property, and where to look."""
    left = story.call("PTTL key", r.pttl, key)
    least = (ttl - (time.monotonic() - since)) * 1000 - 5
    property, look = unless
    if left == -2:
        look = "the name of the key; in a script, what is given as KEYS and what as ARGV"
    elif not look:
        look = "px= of SET, or PEXPIRE" if left == -1 else "the unit, and fractions of a second"
    story.hold(least <= left <= ttl * 1000 + 1, property, f"the key should last {ttl:g} s from now", look)


def _check_refused(
    story: Story,
    r: Any,
    said: str,
    attempt: Callable[[], Any],
    got: tuple[str, str],
    longer: str = "refused",
) -> None:
    """An attempt that is to be refused changes no TTL: where much is left of the holder's time, and little.

    `got` is what is wrong if it is not refused: the property, and what to say.
    """
    keys, look = sorted(r.scan_iter()), "what an attempt that fails changes"
    for ms in (5000, 500):
        since = time.monotonic()
        for key in keys:
            r.pexpire(key, ms)
        story.tell(f"the holder has {ms / 1000:g} s left: PTTL -> {ms}")
        answer = attempt()
        story.tell(f"{said} -> {answer if isinstance(answer, str) else repr(answer)}")
        after = {key: r.pttl(key) for key in keys}
        least = ms - (time.monotonic() - since) * 1000 - 5
        if least <= 0:
            return  # so slow a machine that the time was up, perhaps: this says nothing
        story.hold(not answer, *got, "how it knows that the time of the holder is not up")
        for key, left in after.items():
            if not least <= left <= ms:
                story.tell(f"PTTL {key} -> {left}")
            what = (
                "a refused attempt lengthens the holder's time: if that crashed, nobody ever comes after it"
            )
            story.hold(0 <= left <= ms or left == -2, longer, what, look)
            what = "a refused attempt must change nothing, and it has shortened the holder's time"
            story.hold(left >= least, "refused", what, look)


COUNTED = re.compile(r"\b(H?INCRBY|INCR|ZINCRBY|XADD)\b", re.I)
"""Who lets the server count needs no randomness."""

ENOUGH = 40
"""Bits of chance that a token must show: secrets.token_hex(8) has 64, random.random() 53, id() some 20."""


def _chance(tokens: list[str]) -> float:
    """About how many bits differ by chance in these tokens, from how often two agree, place by place."""
    pairs, bits = len(tokens) * (len(tokens) - 1) / 2, 0.0
    for place in itertools.zip_longest(*tokens, fillvalue=""):
        alike = sum(n * (n - 1) / 2 for n in Counter(place).values())
        bits += math.log2(pairs / max(alike, 1))
    return bits


def _is_uuid(token: str) -> bool:
    """Also those of the time and the machine, which redis-py's own lock takes."""
    for found in re.findall("[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", token):
        if uuid.UUID(found).version is not None:
            return True
    return False


def _check_chance(tokens: list[str], look: str) -> None:
    twice = [token for token, times in Counter(tokens).items() if times > 1]
    if twice:
        what = f"of {len(tokens)} acquisitions several had the same token"
        raise Failure("token", what, twice[0], look)
    if not all(map(_is_uuid, tokens)) and _chance(tokens) < ENOUGH:
        what = "tokens are too much alike: another process, or another machine, may come to the same one"
        raise Failure("token", what, "\n".join([*tokens[:4], "…"]), look)


def _check_third(
    lab: Lab,
    mine: Callable[[Any], Callable[[], Any] | None],
    theirs: Callable[[Any], Any],
    third: Callable[[Any], bool],
    said: tuple[str, str],
) -> None:
    """A has something, and loses it to B; A gives it back all the same. It must not be C's meanwhile.

    `mine(r)` gets it for A, and gives what gives it back; `theirs(r)` ends A's time, and gets it for B.
    `said` is the cast, and what is wrong. A and B are one actor, since their order is fixed.
    """

    def both(r: Any) -> bool | None:
        back = mine(r)
        if back is None:
            return None
        r.echo("as B")
        got = bool(theirs(r))
        r.echo("as A")
        back()
        return got

    def rule(r: Any, results: list[Any]) -> None:
        assert not (results[0] and results[2]), said[1]

    def bob(r: Any) -> None:
        """All that B does is in `both`."""

    _explored(lab, [both, bob, third], "race", _BETWEEN, said[0], invariant=rule, max_switches=2)


def _swapped(tape: Any, key: str) -> str:
    """What to look at if a script got the key among its arguments; "" if none did."""
    for exchange in tape.commands:
        name, *words = exchange.command
        if name.upper() not in ("EVAL", "EVALSHA", "FCALL") or len(words) < 2 or not words[1].isdigit():
            continue
        keys, argv = words[2 : 2 + int(words[1])], words[2 + int(words[1]) :]
        if key in argv and key not in keys:
            return "the order of what your script is given: KEYS first, as many as you say, then ARGV"
    return ""


# --- release: only what is still ours ---------------------------------------------------------------

RELEASE_STUB = '''
class MyLock:
    """A lock on `key`, for `ttl` seconds at most. `me` is the name of this client, such as "worker-1"."""

    def __init__(self, r, key, me, ttl):
        raise NotImplementedError

    def acquire(self):
        """True if the lock was free: it is this object's now. False if it was not. Does not wait."""
        raise NotImplementedError

    def release(self):
        """True if it was still this object's: it is free now. False if not: then nothing changes."""
        raise NotImplementedError
'''

RELEASE = '''
import secrets

class MyLock:
    """A lock on `key`, for `ttl` seconds at most. `me` is the name of this client, such as "worker-1"."""

    RELEASE = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])
    """

    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.me, self.ttl = r, key, me, ttl
        self.token = ""

    def acquire(self):
        """True if the lock was free: it is this object's now. False if it was not. Does not wait."""
        token = f"{self.me}:{secrets.token_hex(16)}"
        if not self.r.set(self.key, token, nx=True, px=max(1, round(self.ttl * 1000))):
            return False
        self.token = token
        return True

    def release(self):
        """True if it was still this object's: it is free now. False if not: then nothing changes."""
        return self.r.eval(self.RELEASE, 1, self.key, self.token) == 1
'''


def _spoilt(source: str, *changes: tuple[str, str]) -> str:
    """A reference with some of its text changed."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


def _wrong(source: str, violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return Wrong(_spoilt(source, *changes), violates, why)


_BY_LUA = "return self.r.eval(self.RELEASE, 1, self.key, self.token) == 1"
_SET = "self.r.set(self.key, token, nx=True, px=max(1, round(self.ttl * 1000)))"
_TOKEN = 'f"{self.me}:{secrets.token_hex(16)}"'
_KEEP = "        self.token = token\n"
_WATCH = """with self.r.pipeline() as pipe:
            pipe.watch(self.key)
            if pipe.get(self.key) != self.token:
                return False
            pipe.multi()
            pipe.delete(self.key)
            return pipe.execute() == [1]"""
_LATE = """if self.r.get(self.key) != self.token:
            return False
        with self.r.pipeline() as pipe:
            try:
                pipe.watch(self.key)
                pipe.multi()
                return pipe.delete(self.key).execute() == [1]
            except redis.WatchError:
                return False"""
_DEAF = """with self.r.pipeline() as pipe:
            pipe.watch(self.key)
            if pipe.get(self.key) != self.token:
                return False
            try:
                pipe.multi()
                pipe.delete(self.key).execute()
            except redis.WatchError:
                pass
            return True"""
_USES_REDIS = ("import secrets", "import redis, secrets")
_BOTH = "pipe = self.r.pipeline().setnx(self.key, token).pexpire(self.key, round(self.ttl * 1000))"
_PUT_BACK = """value = self.r.getdel(self.key)
        if value is not None and value != self.token:
            self.r.set(self.key, value, px=round(self.ttl * 1000))
        return value is not None and value == self.token"""


def _setnx(expire: str) -> tuple[tuple[str, str], ...]:
    return (_SET, "self.r.setnx(self.key, token)"), (_KEEP, f"{_KEEP}        self.r.{expire}\n")


RELEASE_WRONG = (
    _wrong(
        RELEASE,
        "theirs",
        "DEL without a token: whoever holds the lock loses it",
        (_BY_LUA, "return self.r.delete(self.key) == 1"),
    ),
    _wrong(
        RELEASE,
        "race",
        "GET, then DEL: in between the lock expires, and another client gets it",
        (_BY_LUA, "return self.r.get(self.key) == self.token and self.r.delete(self.key) == 1"),
    ),
    _wrong(
        RELEASE,
        "token",
        "the token is the client's name: two acquisitions of one client share it",
        (_TOKEN, "self.me"),
    ),
    _wrong(
        RELEASE,
        "theirs",
        "process and thread: two acquisitions of one thread share them",
        (_TOKEN, 'f"{os.getpid()}:{threading.get_ident()}"'),
        ("import secrets", "import os, threading"),
    ),
    _wrong(
        RELEASE,
        "answer",
        "always True: the holder never learns that it lost the lock",
        (_BY_LUA, _BY_LUA.removeprefix("return ").removesuffix(" == 1") + "\n        return True"),
    ),
    _wrong(RELEASE, "theirs", "asks whether anybody holds it, not who", ("~= ARGV[1] then", "== false then")),
    _wrong(
        RELEASE,
        "crash",
        "SETNX, then EXPIRE: a crash in between leaves a lock that never ends",
        *_setnx("pexpire(self.key, round(self.ttl * 1000))"),
    ),
    _wrong(RELEASE, "ttl", "whole seconds", *_setnx("expire(self.key, max(1, round(self.ttl)))")),
    _wrong(
        RELEASE,
        "exclusive",
        "EXISTS, then SET: both find it free",
        (
            f"not {_SET}",
            "self.r.exists(self.key) or not self.r.set(self.key, token, px=round(self.ttl * 1000))",
        ),
    ),
    _wrong(
        RELEASE, "race", "WATCH after the GET: what was in between is not seen", (_BY_LUA, _LATE), _USES_REDIS
    ),
    _wrong(RELEASE, "race", "what EXEC found out is thrown away", (_BY_LUA, _DEAF), _USES_REDIS),
    _wrong(RELEASE, "raises", "WATCH in its place, but nobody catches the WatchError", (_BY_LUA, _WATCH)),
    _wrong(
        RELEASE,
        "again",
        "an attempt that fails throws the token away that is still needed",
        (f"token = {_TOKEN}\n", f"self.token = token = {_TOKEN}\n"),
        (f"{_KEEP}        return", "        return"),
    ),
    _wrong(
        RELEASE,
        "refused",
        "SETNX and PEXPIRE in one transaction: each attempt of the others lengthens a dead holder's time",
        (f"if not {_SET}:", f"{_BOTH}\n        if not pipe.execute()[0]:"),
    ),
    _wrong(
        RELEASE,
        "refused",
        "who is refused sets the holder's time anew",
        (f"if not {_SET}:", f"if not {_SET}:\n            self.r.expire(self.key, 3600)"),
    ),
    _wrong(
        RELEASE,
        "race",
        "GETDEL, and put back what was another's: in between a third client acquires it",
        (_BY_LUA, _PUT_BACK),
    ),
    _wrong(RELEASE, "token", "the object's id: another process may have the same", (_TOKEN, "str(id(self))")),
    _wrong(RELEASE, "token", "a million different tokens", (_TOKEN, "str(secrets.randbelow(10**6))")),
    _wrong(RELEASE, "token", "too short to be the only one", (_TOKEN, "secrets.token_hex(2)")),
    _wrong(
        RELEASE,
        "token",
        "counted in the process: another process counts the same",
        (_TOKEN, 'f"{self.me}:{next(COUNT)}"'),
        ("import secrets", "import itertools\n\nCOUNT = itertools.count()"),
    ),
    _wrong(
        RELEASE,
        "token",
        "the time: two may acquire at the same moment of their clocks",
        (_TOKEN, "str(time.time())"),
        ("import secrets", "import time"),
    ),
)

_BETWEEN = "what may happen between your last look at the key and the command that changes it"


def _grade_release(kind: Any, lab: Lab) -> None:
    _check_own(kind, lab)
    _check_lost(kind, lab)
    _check_same_name(kind, lab)
    for ttl in (LONG, 100, 1.234, 0.75):
        key = lab.key("lock")
        story, since = Story(f"ttl {ttl:g} s"), time.monotonic()
        story.call("ada.acquire()", kind(lab.r, key, "ada", ttl).acquire)
        _check_left(story, lab.r, key, ttl, since)
    _check_attempt(kind, lab)
    _check_tokens(kind, lab)
    _check_acquire_race(kind, lab)
    _check_release_race(kind, lab)
    _check_release_third(kind, lab)


def _check_own(kind: Any, lab: Lab) -> None:
    """Nothing expires: who holds the lock can release it, and nobody else."""
    r, key, story = lab.r, lab.key("lock"), Story()
    ada, bob = kind(r, key, "ada", LONG), kind(lab.client(), key, "bob", LONG)
    taken = story.call("ada.acquire()", ada.acquire)
    story.hold(taken, "acquire", "a free lock can be acquired", "what acquire() returns")
    exists = story.call("EXISTS key", r.exists, key)
    story.hold(exists, "key", "the lock is held as long as its key exists", "the name of the key")
    taken = story.call("bob.acquire()", bob.acquire)
    story.hold(not taken, "exclusive", "two clients hold the lock at once", "the options of SET")
    freed = story.call("bob.release()", bob.release)
    what = "a client that does not hold the lock takes it from its holder"
    look = "how release() knows whose it is"
    story.hold(r.exists(key), "theirs", what, look)
    story.hold(not freed, "answer", "release() is False for who does not hold the lock", look)
    _check_again(kind, lab)
    story = Story()
    freed = story.call("ada.release()", kind(r, lab.key("lock"), "ada", LONG).release)
    what = "release() is False where there is nothing to release"
    story.hold(not freed, "answer", what, "what release() returns, and when")


def _check_again(kind: Any, lab: Lab) -> None:
    """One client calls everything twice."""
    r, key, story = lab.r, lab.key("lock"), Story()
    ada = kind(r, key, "ada", LONG)
    story.call("ada.acquire()", ada.acquire)
    what = "acquire() is True only if the lock was free; here ada herself holds it"
    story.hold(not story.call("ada.acquire()", ada.acquire), "again", what, "the options of SET")
    with lab.tap(r) as tape:
        freed = story.call("ada.release()", ada.release)
    what = "ada still held the lock, and release() should have freed it"
    look = _swapped(tape, key) or "what an acquire() that fails leaves behind in your object"
    story.hold(freed and not r.exists(key), "again", what, look)
    what = "release() is False the second time"
    story.hold(not story.call("ada.release()", ada.release), "answer", what, "what release() returns")


def _check_lost(kind: Any, lab: Lab) -> None:
    """The lock expired, and then somebody else got it."""
    r, look = lab.r, "what release() returns, and when"

    def expired() -> tuple[Any, str, Story]:
        key, story = lab.key("lock"), Story()
        ada = kind(r, key, "ada", LONG)
        story.call("ada.acquire()", ada.acquire)
        _expires(r, key)
        story.tell("the lock expires")
        return ada, key, story

    ada, key, story = expired()
    bob = kind(lab.client(), key, "bob", LONG)
    taken = story.call("bob.acquire()", bob.acquire)
    story.hold(taken, "acquire", "a lock that has expired can be acquired", "what acquire() asks")
    freed = story.call("ada.release()", ada.release)
    what = "ada's time was up, and her release frees the lock that is now bob's"
    story.hold(r.exists(key), "theirs", what, "how release() knows whose lock it is")
    story.hold(not freed, "answer", "release() is False if the lock was lost", look)
    freed = story.call("bob.release()", bob.release) and not r.exists(key)
    story.hold(freed, "answer", "bob still held the lock, and release() should have freed it", look)
    ada, key, story = expired()
    freed = story.call("ada.release()", ada.release)
    story.hold(not freed, "answer", "release() is False if the lock was lost", look)
    story.call("ada.acquire()", ada.acquire)
    freed = story.call("ada.release()", ada.release) and not r.exists(key)
    story.hold(freed, "answer", "ada held the lock again, and release() should have freed it", look)


def _check_same_name(kind: Any, lab: Lab) -> None:
    key, story = lab.key("lock"), Story('one, two = MyLock(r, key, "ada", 60), MyLock(r, key, "ada", 60)')
    one, two = kind(lab.client(), key, "ada", LONG), kind(lab.client(), key, "ada", LONG)
    story.call("one.acquire()", one.acquire)
    _expires(lab.r, key)
    story.tell("the lock expires")
    story.call("two.acquire()", two.acquire)
    freed = story.call("one.release()", one.release)
    what = "two acquisitions by one client: the first frees what the second holds"
    look = "what is different in each acquisition"
    story.hold(lab.r.exists(key) and not freed, "token", what, look)


def _check_attempt(kind: Any, lab: Lab) -> None:
    """Bob is refused, and nothing changes."""
    lab.r.flushdb()
    key, story = lab.key("lock"), Story()
    ada, bob = (kind(lab.client(), key, who, LONG) for who in ("ada", "bob"))
    story.call("ada.acquire()", ada.acquire)
    before = lab.r.dump(key)
    got = "exclusive", "two clients hold the lock at once"
    _check_refused(story, lab.r, "bob.acquire()", bob.acquire, got)
    same = lab.r.dump(key) in (before, None)
    what = "a refused attempt must change nothing, and it changes what the holder wrote"
    story.hold(same, "refused", what, "what an attempt that fails changes")


def _value(raw: Any, key: str) -> str:
    """What a string or a hash holds; "" for any other type."""
    kind = raw.type(key)
    words = [raw.get(key)] if kind == b"string" else raw.hvals(key) if kind == b"hash" else []
    return " ".join(word.decode("latin-1") for word in words)


def _check_tokens(kind: Any, lab: Lab) -> None:
    """What the key holds is another thing each time, and nothing that another process might come to."""
    raw, key, held, locks = lab.client(decode_responses=False), lab.key("lock"), [], []
    with lab.tap() as tape:
        for _ in range(30):
            locks.append(kind(lab.r, key, "ada", LONG))  # kept, or their id() would be the same again
            locks[-1].acquire()
            held.append(_value(raw, key))
            raw.delete(key)
    counted = any(COUNTED.search(" ".join(exchange.command)) for exchange in tape.commands)
    if all(held) and not counted:
        _check_chance(held, "secrets.token_hex(16)")


def _check_acquire_race(kind: Any, lab: Lab) -> None:
    def acquire(r: Any) -> bool:
        return bool(kind(r, "lock", "ada", LONG).acquire())

    def one_holder(r: Any, results: list[Any]) -> None:
        assert results.count(True) < 2, "A and B hold the lock, both at once"

    def mortal(r: Any, results: list[Any]) -> None:
        one_holder(r, results)
        assert r.pttl("lock") != -1, "the lock never expires: nobody can ever acquire it again"

    cast = "A and B: acquire()"
    _explored(lab, [acquire, acquire], "exclusive", _BETWEEN, cast, invariant=one_holder)
    look, cast = "what a crash leaves behind after each of your commands", cast + "; either may crash"
    _explored(lab, [acquire, acquire], "crash", look, cast, invariant=mortal, faults=[crash])


def _check_release_race(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> bool | None:
        lock = kind(r, "lock", "ada", LONG)
        return bool(lock.release()) if lock.acquire() else None

    def bob(r: Any) -> tuple[int, bool]:
        left = _expires(r, "lock")
        return left, bool(kind(r, "lock", "bob", LONG).acquire())

    def rule(r: Any, results: list[Any]) -> None:
        freed, (left, got) = results
        assert r.exists("lock") or not got, "B holds the lock, and A's release has taken it away"
        assert not freed or left == -2, "A's lock had expired, and A's release() says that it was still A's"
        assert freed is not False or left != -2, "A held the lock, and A's release() says that it did not"

    cast = "A: acquire(), release(). B: acquire(), once A's time is up"
    _explored(lab, [ada, bob], "race", _BETWEEN, cast, invariant=rule)


def _check_release_third(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> Any:
        lock = kind(r, "lock", "ada", LONG)
        return lock.release if lock.acquire() else None

    def bob(r: Any) -> Any:
        _expires(r, "lock")
        return kind(r, "lock", "bob", LONG).acquire()

    def cyd(r: Any) -> bool:
        return bool(kind(r, "lock", "cyd", LONG).acquire())

    cast = "A: acquire(). B: acquire(), once A's time is up. Then A: release(). C: acquire()"
    what = "B holds the lock, and C got it too: A's release() took it from B for a moment"
    _check_third(lab, ada, bob, cyd, (cast, what))


# --- extend: never what has expired, never what is another's ----------------------------------------

EXTEND_STUB = '''
def extend(r, key, token, ttl):
    """True if `key` still holds `token`: it lasts `ttl` seconds from now. False if not: nothing changes."""
    raise NotImplementedError
'''

EXTEND = '''
LUA = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

def extend(r, key, token, ttl):
    """True if `key` still holds `token`: it lasts `ttl` seconds from now. False if not: nothing changes."""
    return r.eval(LUA, 1, key, token, max(1, round(ttl * 1000))) == 1
'''

_PX = "px=round(ttl * 1000)"
_IN_MS = "max(1, round(ttl * 1000))"


def _extend(body: str, violates: str, why: str, head: str = "") -> Wrong:
    return Wrong(f"{head}\ndef extend(r, key, token, ttl):\n    {body}\n", violates, why)


EXTEND_WRONG = (
    _extend(f"return r.set(key, token, {_PX})", "expired", "SET brings a lock back that has expired"),
    _extend(
        f"return r.get(key) in (None, token) and r.set(key, token, {_PX})",
        "expired",
        "nobody has it, so it takes it again: but somebody may have had it in between",
    ),
    _extend(
        f"return r.set(key, token, {_PX}, xx=True)", "theirs", "XX asks whether somebody has it, not who"
    ),
    _extend("return r.pexpire(key, round(ttl * 1000))", "theirs", "no comparison at all"),
    _extend(
        "return r.get(key) == token and r.pexpire(key, round(ttl * 1000))",
        "race",
        "GET, then PEXPIRE: another client's lock is extended",
    ),
    _extend(
        f"return r.get(key) == token and r.set(key, token, {_PX})",
        "race",
        "GET, then SET: what expires in between comes back",
    ),
    _extend(
        f"return r.eval(LUA, 1, key, token) and r.set(key, token, nx=True, {_PX})",
        "race",
        "released and acquired anew: for a moment it is free",
        "LUA = \"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0\"",
    ),
    _extend(
        """with r.pipeline() as pipe:
        pipe.watch(key)
        if pipe.get(key) != token:
            return False
        try:
            pipe.multi()
            pipe.pexpire(key, round(ttl * 1000)).execute()
        except redis.WatchError:
            pass
        return True""",
        "race",
        "True, although EXEC did nothing",
        "import redis",
    ),
    _wrong(EXTEND, "ttl", "whole seconds", ("'PEXPIRE'", "'EXPIRE'"), (_IN_MS, "max(1, round(ttl))")),
    _wrong(EXTEND, "ttl", "seconds given as milliseconds", (_IN_MS, "int(ttl)")),
    _wrong(
        EXTEND,
        "ttl",
        "added to what was left, not counted from now",
        ("ARGV[2])", "ARGV[2] + redis.call('PTTL', KEYS[1]))"),
    ),
    _wrong(
        EXTEND,
        "shorter",
        "GT: only ever longer",
        ("return redis.call('P", "redis.call('P"),
        ("ARGV[2])", "ARGV[2], 'GT')\nreturn 1"),
    ),
    _wrong(EXTEND, "answer", "True in every case", ("then return 0", "then return 1")),
    _extend(
        f"return r.eval(MINE, 1, key, token) == 1 and r.eval(LUA, 1, key, token, {_IN_MS}) == 1",
        "crash",
        "PERSIST, then PEXPIRE: a crash in between leaves a lock that never ends",
        EXTEND.partition("\ndef")[0] + "MINE = LUA.replace('PEXPIRE', 'PERSIST').replace(', ARGV[2]', '')",
    ),
    _extend(
        f"""left, old = r.pipeline().pttl(key).set(key, token, {_PX}, xx=True, get=True).execute()
    if old not in (None, token):
        r.set(key, old, px=left, xx=True)
    return old == token""",
        "race",
        "writes first, and puts back what was another's: meanwhile that finds its lock lost",
    ),
    _wrong(
        EXTEND,
        "expired",
        "remembers whose it was last, and brings that one's lock back when it has expired",
        (
            "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n",
            "local value, last = redis.call('GET', KEYS[1]), KEYS[1] .. ':last'\n"
            "if not value and redis.call('GET', last) == ARGV[1] then\n"
            "    redis.call('SET', KEYS[1], ARGV[1])\n"
            "elseif value ~= ARGV[1] then return 0 end\n"
            "redis.call('SET', last, ARGV[1], 'EX', 3600)\n",
        ),
    ),
    _wrong(
        EXTEND,
        "clock",
        "the end by the client's clock, which may be wrong by minutes",
        ("'PEXPIRE'", "'PEXPIREAT'"),
        (_IN_MS, "round((time.time() + ttl) * 1000)"),
        ('LUA = """', 'import time\n\nLUA = """'),
    ),
    _wrong(
        EXTEND,
        "value",
        "the token is gone, so that nobody can release the lock",
        ("return redis.call('PEXPIRE', KEYS[1],", "redis.call('SET', KEYS[1], 'extended', 'PX',"),
        ("ARGV[2])", "ARGV[2])\nreturn 1"),
    ),
)


def _grade_extend(extend: Any, lab: Lab) -> None:
    key, story = lab.key("lock"), Story("SET key mine PX 60000")
    lab.r.set(key, "mine", px=60_000)
    with lab.tap() as tape:
        extended = story.call('extend(r, key, "mine", 30)', extend, lab.r, key, "mine", 30)
    look = _swapped(tape, key) or "what it returns"
    story.hold(extended, "answer", "extend() is True if the lock is still ours", look)
    _check_not_ours(extend, lab)
    _check_not_again(extend, lab)
    for ttl in (90, 30, 0.75, 1.5, 120, 2.345):
        _check_extended(extend, lab, ttl)
    _check_extend_clock(extend, lab)
    _check_extend_race(extend, lab)
    _check_extend_crash(extend, lab)
    _check_extend_seen(extend, lab)


def _check_not_ours(extend: Any, lab: Lab) -> None:
    r, key, look = lab.r, lab.key("lock"), "what it returns, and when"
    story = Story("the lock has expired")
    extended = story.call('extend(r, key, "mine", 30)', extend, r, key, "mine", 30)
    left = story.call("EXISTS key", r.exists, key)
    what = "a lock that had expired came to life again"
    story.hold(not left, "expired", what, "what your command does where there is no key")
    story.hold(not extended, "answer", "extend() is False if the lock has expired", look)
    for theirs in ("theirs", "mine-2", "not-mine", "min"):
        r.set(key, theirs, px=60_000)
        story = Story(f"SET key {theirs} PX 60000")
        extended = story.call('extend(r, key, "mine", 600)', extend, r, key, "mine", 600)
        value = story.call("GET key", r.get, key)
        left = story.call("PTTL key", r.pttl, key)
        what = "the lock is another client's, and was changed"
        story.hold(value == theirs and 0 < left <= 60_000, "theirs", what, "where you compare the token")
        story.hold(not extended, "answer", "extend() is False if another client has the lock", look)


def _check_not_again(extend: Any, lab: Lab) -> None:
    """The lock was extended before, and then it expired."""
    r, key, story = lab.r, lab.key("lock"), Story("SET key mine PX 60000")
    r.set(key, "mine", px=60_000)
    story.call('extend(r, key, "mine", 30)', extend, r, key, "mine", 30)
    _expires(r, key)
    story.tell("the lock expires")
    extended = story.call('extend(r, key, "mine", 30)', extend, r, key, "mine", 30)
    left = story.call("EXISTS key", r.exists, key)
    what = "a lock that had expired came to life again"
    story.hold(not left, "expired", what, "what an earlier extend() leaves behind")
    what = "extend() is False if the lock has expired"
    story.hold(not extended, "answer", what, "what an earlier extend() leaves behind")


def _check_extend_clock(extend: Any, lab: Lab) -> None:
    """The client's clock is wrong by 100 s."""
    look = "whose clock says when it ends: PEXPIRE needs none, and TIME in a script is the server's"
    for skew in (100, -100):
        key, story, since = lab.key("lock"), Story("SET key mine PX 60000"), time.monotonic()
        lab.r.set(key, "mine", px=60_000)
        with _clocks(skew, extend):
            story.call(f'extend(r, key, "mine", 30), clock {skew:+d} s', extend, lab.r, key, "mine", 30)
        _check_left(story, lab.r, key, 30, since, ("clock", look))


def _check_extended(extend: Any, lab: Lab, ttl: float) -> None:
    r, key = lab.r, lab.key("lock")
    r.set(key, "mine", px=60_000)
    story, since = Story("SET key mine PX 60000"), time.monotonic()
    story.call(f'extend(r, key, "mine", {ttl:g})', extend, r, key, "mine", ttl)
    if ttl < 59 and 59_000 < (left := r.pttl(key)) <= 60_000:
        story.tell(f"PTTL key -> {left}")
        what = "from now on it lasts `ttl` seconds, also where that is less than was left"
        story.hold(False, "shorter", what, "what a time shorter than was left does")
    _check_left(story, r, key, ttl, since)
    value = story.call("GET key", r.get, key)
    kept = value == "mine" or (value is None and time.monotonic() - since >= ttl)
    story.hold(kept, "value", "the key must still hold the token", "what you write")


def _check_extend_race(extend: Any, lab: Lab) -> None:
    def setup(r: Any) -> None:
        r.set("lock", "token-of-A", px=40_000)

    def ada(r: Any) -> bool:
        return bool(extend(r, "lock", "token-of-A", 60))

    def bob(r: Any) -> tuple[int, bool]:
        left = _expires(r, "lock")
        return left, bool(r.set("lock", "token-of-B", nx=True, px=20_000))

    def rule(r: Any, results: list[Any]) -> None:
        extended, (left, got) = results
        assert left != -2, "A holds the lock, and for a moment it was free"
        assert got, "A's lock had expired, and came to life again: B could not acquire it"
        assert r.get("lock") == "token-of-B", "B holds the lock, and A has overwritten or removed it"
        assert 0 < r.pttl("lock") <= 20_000, "B holds the lock, and A has changed how long it lasts"
        assert extended == (left > 40), (
            f"A extended its lock {'before it' if left > 40 else 'only after it had'} expired, "
            f"and extend() says {extended}"
        )

    cast = "A holds the lock: extend(). B: SET lock … NX PX 20000, once A's time is up"
    _explored(lab, [ada, bob], "race", _BETWEEN, cast, setup=setup, invariant=rule)


def _check_extend_crash(extend: Any, lab: Lab) -> None:
    def setup(r: Any) -> None:
        r.set("lock", "token-of-A", px=40_000)

    def ada(r: Any) -> bool:
        return bool(extend(r, "lock", "token-of-A", 60))

    def rule(r: Any) -> None:
        for key in sorted(r.scan_iter()):
            assert r.pttl(key) != -1, f"a key that never expires is left: PTTL {key} is -1"

    cast, look = "A holds the lock: extend(); it may crash", "what a crash leaves behind after each command"
    _explored(lab, [ada], "crash", look, cast, setup=setup, invariant=rule, faults=[crash])


def _check_extend_seen(extend: Any, lab: Lab) -> None:
    """B holds the lock, and sees nothing of what A tries."""

    def setup(r: Any) -> None:
        r.set("lock", "token-of-B", px=20_000)

    def ada(r: Any) -> bool:
        return bool(extend(r, "lock", "token-of-A", 60))

    def bob(r: Any) -> tuple[str | None, int]:
        return r.get("lock"), r.pttl("lock")

    def rule(r: Any, results: list[Any]) -> None:
        value, left = results[1]
        what = "B holds the lock, and while A tries to extend it"
        assert value == "token-of-B", f"{what}, it is not B's: B could not release it"
        assert 0 < left <= 20_000, f"{what}, it lasts longer or shorter"

    cast = "B holds the lock. A: extend(), with its old token. B: GET lock, PTTL lock"
    _explored(lab, [ada, bob], "race", _BETWEEN, cast, setup=setup, invariant=rule)


# --- semaphore: n holders, also after some of them have crashed -------------------------------------

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
    _wrong(_COUNTER, "leak", "INCR and DECR: a holder that crashed is counted for ever"),
    _wrong(
        _COUNTER,
        "leak",
        "everybody renews the counter's TTL: while others come, a crashed holder's place stays taken",
        (_INCR, f"{_INCR}    {_LAST}\n"),
    ),
    _wrong(
        _COUNTER,
        "early",
        "the counter ends with the time of its first holder, and forgets the others",
        (_INCR, f"if redis.call('INCR', KEYS[1]) == 1 then {_LAST} end\n"),
    ),
    _wrong(_ZSET, "race", "ZCARD, then ZADD: both find the last place free"),
    _wrong(
        _ZSET,
        "race",
        "ZADD, then ZCARD: two that come at once turn each other away",
        (_ASK_FIRST, ""),
        ("        return token\n", f"{_ASK_LATER}        return token\n"),
    ),
    _wrong(
        SEMAPHORE,
        "clock",
        "the client's clock: one that is ahead throws the others out",
        *_by("time.time()"),
    ),
    _wrong(
        _SLOTS, "theirs", "places released without comparing the token", (_COMPARE, "self.r.delete(key) == 1")
    ),
    _wrong(
        _SLOTS,
        "race",
        "GET, then DEL: frees a place that is another's by now",
        (_COMPARE, "self.r.get(key) == token and self.r.delete(key) == 1"),
    ),
    _wrong(
        _SLOTS, "slot", "each place may be on another node of a cluster", ("{{{self.key}}}", "{self.key}")
    ),
    _wrong(_SLOTS, "leak", "places without a TTL", ("nx=True, px=self.ms", "nx=True")),
    _wrong(
        SEMAPHORE, "ttl", "the last token stays for ever, if nobody comes any more", (f"    {_LAST}\n", "")
    ),
    _wrong(SEMAPHORE, "leak", "while others come, whoever crashed is never removed", (_PURGE, "    if")),
    _wrong(SEMAPHORE, "token", "one token for all", ("secrets.token_hex(16)", '"holder"')),
    _wrong(SEMAPHORE, "limit", "one too many", (">= tonumber(ARGV[1])", "> tonumber(ARGV[1])")),
    _wrong(_OWN, "shared", "kept in the process: others know nothing of it"),
    _wrong(
        SEMAPHORE,
        "leak",
        "who is refused gives all holders their time anew",
        ("then return 0 end", f"then {_LAST} {_ANEW} return 0 end"),
    ),
    _wrong(
        SEMAPHORE,
        "refused",
        "who is refused sets the TTL of the key anew: it outlives its last holder",
        ("then return 0 end", f"then {_LAST} return 0 end"),
    ),
    _wrong(
        _SLOTS,
        "race",
        "GETDEL, and put back what was another's: in between a third client gets the place",
        (f"return {_COMPARE}", _PUT_BACK_PLACE),
    ),
    _wrong(
        SEMAPHORE,
        "late",
        "release() is True for a place whose time is up: nobody has removed it yet",
        (f"{_PURGE[:-7]}\n    return redis.call('ZREM'", "    return redis.call('ZREM'"),
    ),
    _wrong(
        SEMAPHORE,
        "ttl",
        "PERSIST in release(): the key outlives the holders that are left",
        ("    return redis.call('ZREM'", "    redis.call('PERSIST', KEYS[1])\n    return redis.call('ZREM'"),
    ),
    _wrong(
        SEMAPHORE, "clock", "the client's clock, by datetime", *_by("datetime.datetime.now().timestamp()")
    ),
    _wrong(
        SEMAPHORE,
        "clock",
        "the client's clock, by clock_gettime",
        *_by("time.clock_gettime(time.CLOCK_REALTIME)"),
    ),
    _wrong(
        SEMAPHORE,
        "clock",
        "the client's clock in release() alone: one that is ahead throws the others out",
        ("import secrets", "import secrets\nfrom time import time"),
        ("self.key, token)", "self.key, token, round(time() * 1000))"),
        ("'-inf', now)\n    return", "'-inf', ARGV[2])\n    return"),
    ),
    _wrong(SEMAPHORE, "token", "a token of 16 bits", (_HEX, "secrets.token_hex(2)")),
    _wrong(SEMAPHORE, "token", "the object's id: another process may have the same", (_HEX, "str(id(self))")),
    _wrong(
        _SLOTS,
        "room",
        "tries one place only, by chance: it may be refused while another is free",
        ("in range(self.n)", "in [secrets.randbelow(self.n)]"),
    ),
)


def _grade_semaphore(kind: Any, lab: Lab) -> None:
    _check_places(kind, lab)
    _check_many_places(kind, lab)
    _check_time(kind, lab)
    _check_stale(kind, lab)
    _check_late(kind, lab)
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
    free = not any(map(_no, (first, second, third)))
    hold(free, "room", "three want three places, and one is refused", "what you compare with n")
    hold(lab.r.dbsize(), "shared", "Redis holds no key: others cannot see who has a place", "what `r` is for")
    own = len({story.name(token) for token in (first, second, third)}) == 3
    hold(own, "token", "each holder needs a token of its own", "secrets.token_hex()")
    fourth = take("dan.acquire()", dan.acquire)
    hold(_no(fourth), "limit", "a fourth holder where three places are", "what counts them, and where")
    _check_slot(lab)
    freed = story.call("ada.release(token·1)", ada.release, first)
    hold(freed, "answer", "release() is True if the token had its place", look)
    fourth = take("dan.acquire()", dan.acquire)
    hold(not _no(fourth), "room", "a place is free again", "what release() frees")
    freed = story.call("ada.release(token·1)", ada.release, first)
    again = take("ada.acquire()", ada.acquire)
    what = "a token that is released twice frees the place of another"
    hold(_no(again), "theirs", what, "how release() knows whose place it frees")
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
            story.hold(not _no(token), "room", what, look)
            names.add(story.name(token))
        what = "one client that acquires several places needs a token for each"
        story.hold(len(names) == 5, "token", what, "what is different in each acquisition")
        token = story.take("acquire()", semaphore.acquire)
        story.hold(_no(token), "limit", "a sixth holder where five places are", "what you compare with n")


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
    story.hold(not _no(taken), "room", "the place is free again", "what acquire() asks")
    freed = story.call("ada.release(token·1)", ada.release, token)
    other = story.take("cyd.acquire()", cyd.acquire)
    what = "ada's release frees the place that is now bob's"
    story.hold(_no(other), "theirs", what, "how release() knows whose place it frees")
    story.hold(not freed, "answer", "release() is False if the place was lost", "what release() returns")


def _check_time(kind: Any, lab: Lab) -> None:
    """Places end in time, and not before; once more where the machine stood still in the middle."""
    if not (_crash_of_one(kind, lab) or _crash_of_one(kind, lab)):
        _crash_of_one(kind, lab)


def _crash_of_one(kind: Any, lab: Lab) -> bool:
    """Ada crashes; bob comes when half of her time is over; cyd tries all the time, and gets ada's place.

    What is asked holds however slow the machine is: moments are taken before and after each call. False: it
    was so slow that bob's time was up as well before the last question was answered.
    """
    name, ttl = lab.key("jobs"), 0.4
    ada, bob, cyd, dan = (kind(lab.client(), name, 2, ttl) for _ in range(4))
    story, look = Story(f"n = 2, ttl {ttl:g} s"), "whose time the TTL counts, and who sets it anew"

    def at(call: str, fn: Callable[[], Any]) -> tuple[float, float, bool]:
        before, got = time.monotonic(), not _no(fn())
        after = time.monotonic()
        story.lines.append(f"{before - began:.2f} s: {call} -> {'a token' if got else None}")
        return before, after, got

    began = time.monotonic()
    _, ada_after, _ = at("ada.acquire()", ada.acquire)
    story.lines[-1] += ", and ada crashes"
    time.sleep(0.6 * ttl)
    bob_before, _, got = at("bob.acquire()", bob.acquire)
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
    in_time = after < bob_before + ttl - 0.005
    what = "bob still has his place and cyd got the other, and dan gets one too"
    story.hold(not (got and in_time), "early", what, look)
    return in_time


def _check_late(kind: Any, lab: Lab) -> None:
    """Ada's time is up and bob's is not; once more where the machine stood still in the middle."""
    if not (_late_release(kind, lab) or _late_release(kind, lab)):
        _late_release(kind, lab)


def _late_release(kind: Any, lab: Lab) -> bool:
    """False: so slow that bob's time was up as well, before all was asked."""
    lab.r.flushdb()
    name, ttl = lab.key("jobs"), 0.2
    ada, bob = (kind(lab.client(), name, 2, ttl) for _ in range(2))
    story, look = Story(f"n = 2, ttl {ttl:g} s"), "whether release() asks if the time of a place is up"
    token = story.take("ada.acquire()", ada.acquire)
    ada_after = time.monotonic()
    time.sleep(0.6 * ttl)
    story.tell("0.6 ttl later:")
    bob_before = time.monotonic()
    other = story.take("bob.acquire()", bob.acquire)
    time.sleep(max(0, ada_after + ttl + 0.02 - time.monotonic()))
    story.tell("when ada's time is up, and bob's is not:")
    freed = story.call("ada.release(token·1)", ada.release, token)
    story.hold(not freed, "late", "release() is False for a place whose time is up", look)
    freed = story.call("bob.release(token·2)", bob.release, other)
    in_time = time.monotonic() < bob_before + ttl - 0.005
    what = "bob still had his place: release() should be True"
    story.hold(freed or not in_time, "answer", what, "what release() removes beside its own place")
    return in_time


def _check_place_refused(kind: Any, lab: Lab) -> None:
    """Bob is refused, and no time changes; nor does who has a place."""
    lab.r.flushdb()
    name, story = lab.key("jobs"), Story("n = 1")
    ada, bob = (kind(lab.client(), name, 1, LONG) for _ in range(2))
    story.take("ada.acquire()", ada.acquire)
    got = "limit", "two holders where one place is"
    _check_refused(story, lab.r, "bob.acquire()", lambda: None if _no(bob.acquire()) else "a token", got)


def _check_clock(kind: Any, lab: Lab) -> None:
    """One place, and two clients whose clocks differ by 100 s."""
    for first, second in ((0, 100), (-100, 0)):
        lab.r.flushdb()
        name, story = lab.key("jobs"), Story("n = 1, ttl 60 s")
        for who, skew in (("ada", first), ("bob", second)):
            semaphore = kind(lab.client(), name, 1, LONG)
            with _clocks(skew, kind):
                token = story.take(f"{who}.acquire(), clock {skew:+d} s", semaphore.acquire)
        what = "two clients whose clocks differ by 100 s both get the only place"
        story.hold(_no(token), "clock", what, "TIME inside of a script, or the TTL of a key")


def _check_clock_of_release(kind: Any, lab: Lab) -> None:
    """Two places, and bob, whose clock is ahead by 100 s, releases his."""
    lab.r.flushdb()
    name, story = lab.key("jobs"), Story("n = 2, ttl 60 s")
    ada, bob, cyd, dan = (kind(lab.client(), name, 2, LONG) for _ in range(4))
    look = "TIME inside of a script, or the TTL of a key: release() too"
    story.take("ada.acquire()", ada.acquire)
    token = story.take("bob.acquire()", bob.acquire)
    with _clocks(100, kind):
        freed = story.call("bob.release(token·2), clock +100 s", bob.release, token)
    story.hold(freed, "clock", "bob had his place, and by his own clock he had not", look)
    story.take("cyd.acquire()", cyd.acquire)
    token = story.take("dan.acquire()", dan.acquire)
    what = "ada and cyd have the two places, and dan gets one: by bob's clock ada's time was up"
    story.hold(_no(token), "clock", what, look)


@contextmanager
def _clocks(skew: float, answer: Any = None) -> Iterator[None]:
    """The client's clocks are `skew` seconds ahead, also where `answer` has imported them by name."""
    with ExitStack() as stack:
        ahead: list[tuple[Any, Any]] = []
        for name in _CLOCKS:
            real, add = getattr(time, name), int(skew * (10**9 if name.endswith("_ns") else 1))
            ahead.append((real, lambda *a, r=real, add=add: r(*a) + add))
            stack.enter_context(mock.patch.object(time, name, ahead[-1][1]))
        module = ModuleType("datetime")
        vars(module).update(vars(datetime), datetime=_datetime(skew))
        ahead += [(datetime, module), (datetime.datetime, module.datetime)]
        for space in (sys.modules, *_spaces(answer)):
            for name, value in list(space.items()):
                for real, stand_in in ahead:
                    if value is real:
                        space[name] = stand_in
                        stack.callback(space.__setitem__, name, real)
        yield


_CLOCKS = [
    name
    for clock in ("time", "monotonic", "perf_counter", "clock_gettime")
    for name in (clock, f"{clock}_ns")
    if hasattr(time, name)
]


def _datetime(skew: float) -> type[datetime.datetime]:
    real, by = datetime.datetime, datetime.timedelta(seconds=skew)

    class Ahead(real):  # type: ignore[valid-type, misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.now(tz) + by

        @classmethod
        def today(cls) -> Any:
            return real.now() + by

        @classmethod
        def utcnow(cls) -> Any:
            return real.now(datetime.UTC).replace(tzinfo=None) + by

    return Ahead


def _spaces(answer: Any) -> list[dict[str, Any]]:
    """The namespaces that the functions of an answer see as their globals."""
    kinds = answer.__mro__ if isinstance(answer, type) else ()
    parts = [answer, *(part for kind in kinds for part in vars(kind).values())]
    functions = [inspect.unwrap(getattr(part, "__func__", part)) for part in parts if callable(part)]
    spaces = [one.__globals__ for one in functions if inspect.isfunction(one)]
    return list({id(space): space for space in spaces}.values())


def _check_mortal(kind: Any, lab: Lab) -> None:
    def acquire(r: Any) -> bool:
        return not _no(kind(r, "jobs", 1, LONG).acquire())

    def rule(r: Any) -> None:
        for key in sorted(r.scan_iter()):
            left = r.pttl(key)
            assert 0 < left <= LONG * 1000, f"a key outlives its last holder: PTTL {key} is {left}"

    def both(r: Any) -> bool | None:
        semaphore = kind(r, "jobs", 1, LONG)
        token = semaphore.acquire()
        return None if _no(token) else bool(semaphore.release(token))

    cast, look = "A: acquire(); it may crash", "what a crash leaves behind after each of your commands"
    _explored(lab, [acquire], "ttl", look, cast, invariant=rule, faults=[crash])
    cast = "n = 1. A: acquire(), release(); it may crash"
    _explored(lab, [both], "ttl", look, cast, invariant=rule, faults=[crash])


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
        return not _no(kind(r, "jobs", 1, LONG).acquire())

    def rule(r: Any, results: list[Any]) -> None:
        assert results.count(True) < 2, "one place, and both A and B hold it"
        assert any(results), "the place is free, and both A and B are refused"

    cast = "n = 1. A and B: acquire()"
    _explored(lab, [acquire, acquire], "race", _BETWEEN, cast, invariant=rule)


def _check_stale_race(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> bool | None:
        semaphore = kind(r, "jobs", 1, LONG)
        token = semaphore.acquire()
        return None if _no(token) else bool(semaphore.release(token))

    def bob(r: Any) -> bool:
        r.flushdb()
        return not _no(kind(r, "jobs", 1, LONG).acquire())

    def rule(r: Any, results: list[Any]) -> None:
        free = not _no(kind(r, "jobs", 1, LONG).acquire())
        assert not (free and results[1]), "B holds the only place, and A's release has freed it"

    cast = "n = 1. A: acquire(), release(). B: acquire(), once A's time is up"
    _explored(lab, [ada, bob], "race", _BETWEEN, cast, invariant=rule)


def _check_third_place(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> Any:
        semaphore = kind(r, "jobs", 1, LONG)
        token = semaphore.acquire()
        return None if _no(token) else lambda: semaphore.release(token)

    def bob(r: Any) -> bool:
        r.flushdb()
        return cyd(r)

    def cyd(r: Any) -> bool:
        return not _no(kind(r, "jobs", 1, LONG).acquire())

    cast = "n = 1. A: acquire(). B: acquire(), once A's time is up. Then A: release(). C: acquire()"
    what = "B has the only place, and C got it too: A's release() took it from B for a moment"
    _check_third(lab, ada, bob, cyd, (cast, what))


def _check_place_tokens(kind: Any, lab: Lab) -> None:
    """Each token is another one, and none that another process might come to."""
    lab.r.flushdb()
    name, tokens, kept = lab.key("jobs"), [], []
    with lab.tap() as tape:
        for _ in range(30):
            kept.append(kind(lab.r, name, 1, LONG))
            token = kept[-1].acquire()
            kept[-1].release(token)
            tokens += [] if _no(token) else [str(token)]
    if len(tokens) == len(kept) and not any(
        COUNTED.search(" ".join(exchange.command)) for exchange in tape.commands
    ):
        _check_chance(tokens, "secrets.token_hex(16)")


# --- election: one leader at most -------------------------------------------------------------------

ELECTION_STUB = '''
class MyElection:
    """Candidate `me` for `key`, which holds the leader's name until `ttl` seconds after its last campaign."""

    def __init__(self, r, key, me, ttl):
        raise NotImplementedError

    def campaign(self):
        """True if `me` leads now: it becomes leader, or stays it for `ttl` seconds more. One round trip."""
        raise NotImplementedError

    def resign(self):
        """True if `me` led: now nobody does. False if not: then nothing changes."""
        raise NotImplementedError
'''

ELECTION = '''
class MyElection:
    """Candidate `me` for `key`, which holds the leader's name until `ttl` seconds after its last campaign."""

    CAMPAIGN = """
    local leader = redis.call('GET', KEYS[1])
    if leader and leader ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
    """
    RESIGN = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])
    """

    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.me, self.ms = r, key, me, max(1, round(ttl * 1000))

    def campaign(self):
        """True if `me` leads now: it becomes leader, or stays it for `ttl` seconds more. One round trip."""
        return self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1

    def resign(self):
        """True if `me` led: now nobody does. False if not: then nothing changes."""
        return self.r.eval(self.RESIGN, 1, self.key, self.me) == 1
'''

_CAMPAIGN = "        return self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1"
_RESIGN = "return self.r.eval(self.RESIGN, 1, self.key, self.me) == 1"
_STAY = "if self.r.get(self.key) != self.me:\n            return False\n        "


def _campaign(*lines: str) -> str:
    """The reference with another campaign()."""
    return _spoilt(ELECTION, (_CAMPAIGN, "\n".join(f"        {line}" for line in lines)))


_LEADS = "if leader and leader ~= ARGV[1] then"
_LESS = "redis.call('PEXPIRE', KEYS[1], math.max(1, redis.call('PTTL', KEYS[1]) - 1000))"
_RENEW = "'PX', ARGV[2])"
_LONGER = (
    "if leader then redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT') "
    "else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end"
)
_TTL_IN_MS = "round(self.ttl * 1000)", "self.ms"

ELECTION_WRONG = (
    Wrong(
        _campaign(
            "if self.r.setnx(self.key, self.me):",
            "    return bool(self.r.pexpire(self.key, self.ms))",
            "return self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1",
        ),
        "crash",
        "SETNX, then PEXPIRE: a crash in between, and there is never a leader again",
    ),
    Wrong(
        _campaign(
            "if self.r.get(self.key) not in (None, self.me):",
            "    return False",
            "return bool(self.r.set(self.key, self.me, px=self.ms))",
        ),
        "race",
        "GET, then SET: two see that nobody leads, and both become leader",
    ),
    Wrong(
        _campaign(
            "if self.r.set(self.key, self.me, nx=True, px=self.ms):",
            "    return True",
            "return self.r.get(self.key) == self.me and bool(self.r.pexpire(self.key, self.ms))",
        ),
        "race",
        "renewal by GET, then PEXPIRE: it believes that it leads, and lengthens another's time",
    ),
    Wrong(
        _campaign(
            "if getattr(self, 'leading', False):",
            "    return bool(self.r.pexpire(self.key, self.ms))",
            "self.leading = bool(self.r.set(self.key, self.me, nx=True, px=self.ms))",
            "return self.leading",
        ),
        "two",
        "who has led once renews without asking whose the key is by now",
    ),
    Wrong(
        _campaign("return bool(self.r.set(self.key, self.me, px=self.ms))"),
        "two",
        "SET without NX: whoever comes last leads, and the one before does not know",
    ),
    Wrong(
        _campaign("return bool(self.r.set(self.key, self.me, nx=True, px=self.ms))"),
        "stay",
        "the leader itself is refused",
    ),
    Wrong(
        _campaign(
            "return self.r.set(self.key, self.me, nx=True, get=True, px=self.ms) in (None, self.me)",
        ),
        "renew",
        "the leader stays leader, but its time is not renewed",
    ),
    Wrong(
        _campaign(
            "with self.r.pipeline() as pipe:",
            "    pipe.set(self.key, self.me, nx=True).pexpire(self.key, self.ms).get(self.key)",
            "    return pipe.execute()[-1] == self.me",
        ),
        "takeover",
        "the others renew a dead leader's time with each attempt",
    ),
    Wrong(
        _campaign(
            "return bool(self.r.set(self.key, self.me, nx=True, px=self.ms)) or \\",
            "    self.r.eval(self.CAMPAIGN, 1, self.key, self.me, self.ms) == 1",
        ),
        "round_trips",
        "safe, but two round trips to stay leader",
    ),
    Wrong(
        _spoilt(ELECTION, (_RESIGN, "return self.r.delete(self.key) == 1")),
        "resign",
        "DEL without a check: anybody can depose the leader",
    ),
    Wrong(
        _spoilt(ELECTION, (_RESIGN, f"{_STAY}return self.r.delete(self.key) == 1")),
        "race",
        "GET, then DEL: deposes the one that came after",
    ),
    Wrong(
        _spoilt(ELECTION, ("'SET', KEYS[1], ARGV[1], 'PX', ARGV[2])", "'SET', KEYS[1], ARGV[1])")),
        "ttl",
        "a leader for ever, dead or alive",
    ),
    Wrong(
        _spoilt(ELECTION, ("'PX'", "'EX'"), ("round(ttl * 1000)", "round(ttl)")),
        "ttl",
        "whole seconds",
    ),
    Wrong(
        _spoilt(
            ELECTION,
            ("class MyElection:", "import hashlib\n\nclass MyElection:"),
            (
                "        self.r, self.key",
                "        self.sha = r.script_load(self.CAMPAIGN)\n        self.r, self.key",
            ),
            ("self.r.eval(self.CAMPAIGN,", "self.r.evalsha(self.sha,"),
        ),
        "flushed",
        "EVALSHA alone does not survive a restart of the server",
    ),
    Wrong(
        _spoilt(ELECTION, (_LEADS, _LEADS.replace(" then", " and redis.call('PTTL', KEYS[1]) > 4000 then"))),
        "two",
        "takes over before the leader's time is up",
    ),
    Wrong(
        _spoilt(ELECTION, (_LEADS, _LEADS.replace("then", f"then {_LESS}"))),
        "refused",
        "each attempt of the others takes a second from the leader",
    ),
    Wrong(
        _spoilt(ELECTION, (_RENEW, "'PX', ARGV[2] + math.max(0, redis.call('PTTL', KEYS[1])))")),
        "renew",
        "added to what was left, not counted from now",
    ),
    Wrong(_spoilt(ELECTION, (_RENEW, "'PX', leader and 60000 or ARGV[2])")), "renew", "always a minute more"),
    Wrong(
        _spoilt(
            ELECTION,
            ("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])", _LONGER),
        ),
        "renew",
        "GT: only ever longer, where the leader has a shorter ttl than before",
    ),
    Wrong(
        _spoilt(ELECTION, (_RESIGN, _PUT_BACK.replace("self.token", "self.me").replace(*_TTL_IN_MS))),
        "race",
        "GETDEL, and put back another's name: in between a third candidate leads as well",
    ),
    Wrong(
        _spoilt(
            ELECTION, (_LEADS, _LEADS.replace("leader ~= ARGV[1]", "leader:find(ARGV[1], 1, true) ~= 1"))
        ),
        "two",
        "compares the beginning of the name only",
    ),
    Wrong(
        _campaign(
            "try:",
            "    self.led = self.r.evalsha(self.sha, 1, self.key, self.me, self.ms) == 1",
            "except Exception:",
            "    pass",
            "return self.led",
        ).replace(
            "        self.r, self.key",
            "        self.sha = r.script_load(self.CAMPAIGN)\n        self.r, self.key",
        ),
        "flushed",
        "where a call fails it says what it knew before",
    ),
)


def _grade_election(kind: Any, lab: Lab) -> None:
    for ttl in (LONG, 0.75):
        key, story, since = lab.key("leader"), Story(f"ttl {ttl:g} s"), time.monotonic()
        leads = story.call("ada.campaign()", kind(lab.r, key, "ada", ttl).campaign)
        story.hold(leads, "vacant", "nobody leads, so ada becomes leader", "what campaign() returns")
        _check_left(story, lab.r, key, ttl, since)
    _check_reign(kind, lab)
    _check_resign(kind, lab)
    _check_campaign_race(kind, lab)
    _check_succession_race(kind, lab)
    _check_resign_race(kind, lab)
    _check_third_candidate(kind, lab)
    _check_campaign_trips(kind, lab)
    _check_restart(kind, lab)


def _check_reign(kind: Any, lab: Lab) -> None:
    """Ada becomes leader, stays it, and comes back when bob leads."""
    r, key, story = lab.r, lab.key("leader"), Story()
    ada, bob = kind(lab.client(), key, "ada", LONG), kind(lab.client(), key, "bob", LONG)
    hold, whose = story.hold, "how campaign() knows who leads"
    story.call("ada.campaign()", ada.campaign)
    leader = story.call("GET key", r.get, key)
    hold(leader == "ada", "name", "the key holds the leader's name", "the value that you write")
    hold(not story.call("bob.campaign()", bob.campaign), "two", "two leaders at once", whose)
    hold(r.get(key) == "ada", "two", f"ada led, and the key now holds {r.get(key)!r}", whose)
    for name in ("Ada", "ad", "adam", "a.a"):
        leads = story.call(f"{name}.campaign()", kind(lab.client(), key, name, LONG).campaign)
        hold(not leads, "two", f"ada leads, and {name} is told to lead: that is another name", whose)
        story.lines.pop()
    hold(story.call("ada.campaign()", ada.campaign), "stay", "who leads stays leader by the same call", whose)
    _check_time_left(kind, lab)
    _expires(r, key)
    story.tell("ada's time is up")
    hold(story.call("bob.campaign()", bob.campaign), "vacant", "nobody leads, so bob becomes leader", whose)
    leads = story.call("ada.campaign()", ada.campaign)
    what, look = "bob leads by now, and ada is told that she leads", "what your object remembers from before"
    hold(not leads and r.get(key) == "bob", "two", what, look)


def _check_time_left(kind: Any, lab: Lab) -> None:
    """The leader's campaign counts its time anew, and nobody else's changes it."""
    r = lab.r
    for ttl, left in itertools.product((LONG, 20, 0.75), (5000, 100_000)):
        key = lab.key("leader")
        ada = kind(lab.client(), key, "ada", ttl)
        ada.campaign()
        r.pexpire(key, left)
        story = Story(f"ttl {ttl:g} s. ada leads, and has {left // 1000} s left: PTTL key -> {left}")
        since = time.monotonic()
        story.call("ada.campaign()", ada.campaign)
        _check_left(
            story, r, key, ttl, since, ("renew", "what is set where `me` leads already: `ttl`, from now")
        )
    r.flushdb()
    key, story = lab.key("leader"), Story("ada leads")
    ada, bob = (kind(lab.client(), key, who, LONG) for who in ("ada", "bob"))
    ada.campaign()
    got = "two", "ada's time is not up, and bob leads"
    _check_refused(story, r, "bob.campaign()", lambda: bool(bob.campaign()), got, "takeover")


def _check_resign(kind: Any, lab: Lab) -> None:
    r, key, story = lab.r, lab.key("leader"), Story()
    ada, bob = kind(lab.client(), key, "ada", LONG), kind(lab.client(), key, "bob", LONG)
    look = "how resign() knows who leads"
    story.call("ada.campaign()", ada.campaign)
    resigned = story.call("bob.resign()", bob.resign)
    leader = story.call("GET key", r.get, key)
    what = "bob does not lead; his resign() must change nothing, and is False"
    story.hold(leader == "ada" and not resigned, "resign", what, look)
    resigned = story.call("ada.resign()", ada.resign)
    left = story.call("EXISTS key", r.exists, key)
    story.hold(resigned and not left, "resign", "ada led; after resign(), True, nobody does", look)
    leads = story.call("bob.campaign()", bob.campaign)
    story.hold(leads, "vacant", "nobody leads, so bob becomes leader", "what resign() leaves behind")
    resigned = story.call("ada.resign()", ada.resign)
    what = "ada leads no more; her resign() must change nothing, and is False"
    story.hold(r.get(key) == "bob" and not resigned, "resign", what, look)


def _candidate(kind: Any, name: str, ttl: float) -> Callable[[Any], bool]:
    return lambda r: bool(kind(r, "leader", name, ttl).campaign())


def _check_campaign_race(kind: Any, lab: Lab) -> None:
    names = ("ada", "bob")

    def rule(r: Any, results: list[Any]) -> None:
        assert results.count(True) < 2, "A and B both lead"
        leader = r.get("leader")
        for name, leads in zip(names, results, strict=True):
            assert not leads or leader == name, f"{name} was told to lead, and the key holds {leader!r}"
        assert any(results) or None in results, "nobody leads, and both are refused"

    def mortal(r: Any, results: list[Any]) -> None:
        rule(r, results)
        assert r.pttl("leader") != -1, "the leader's name never expires: nobody ever takes over"

    actors = [_candidate(kind, name, LONG) for name in names]
    cast = "A: ada.campaign(). B: bob.campaign()"
    _explored(lab, actors, "race", _BETWEEN, cast, invariant=rule)
    look, cast = "what a crash leaves behind after each of your commands", cast + "; either may crash"
    _explored(lab, actors, "crash", look, cast, invariant=mortal, faults=[crash])


def _check_succession_race(kind: Any, lab: Lab) -> None:
    """Ada renews while her time is up and bob takes over. Each has a TTL of its own, to tell them apart."""

    def bob(r: Any) -> tuple[int, bool]:
        left = _expires(r, "leader")
        return left, _candidate(kind, "bob", 20.0)(r)

    def rule(r: Any, results: list[Any]) -> None:
        ada_leads, (left, bob_leads) = results
        leader = r.get("leader")
        assert left > 40 or not (ada_leads and bob_leads), "A and B both lead"
        if bob_leads:
            assert leader == "bob", f"B leads, and then the key holds {leader!r}"
            assert 0 < r.pttl("leader") <= 20_000, "B leads, and A has changed for how long"
        else:
            assert ada_leads and leader == "ada", "A's time was up, and neither A nor B leads"

    cast = "ada leads. A: ada.campaign(). B: bob.campaign(), once ada's time is up"
    setup, ada = _candidate(kind, "ada", 40.0), _candidate(kind, "ada", LONG)
    _explored(lab, [ada, bob], "race", _BETWEEN, cast, setup=setup, invariant=rule)


def _check_resign_race(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> bool:
        return bool(kind(r, "leader", "ada", LONG).resign())

    def bob(r: Any) -> tuple[int, bool]:
        left = _expires(r, "leader")
        return left, _candidate(kind, "bob", LONG)(r)

    def rule(r: Any, results: list[Any]) -> None:
        resigned, (left, leads) = results
        assert leads, "nobody leads, and B is refused"
        assert r.get("leader") == "bob", "B leads, and A's resign() has deposed it"
        led = "led" if left == -2 else "led no more"
        assert resigned == (left == -2), f"resign() says {resigned}, and A {led}"

    cast = "ada leads. A: ada.resign(). B: bob.campaign(), once ada's time is up"
    setup = _candidate(kind, "ada", LONG)
    _explored(lab, [ada, bob], "race", _BETWEEN, cast, setup=setup, invariant=rule)


def _check_third_candidate(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> Any:
        me = kind(r, "leader", "ada", LONG)
        return me.resign if me.campaign() else None

    def bob(r: Any) -> bool:
        _expires(r, "leader")
        return _candidate(kind, "bob", LONG)(r)

    cast = (
        "A: ada.campaign(). B: bob.campaign(), once A's time is up. Then A: ada.resign(). C: cyd.campaign()"
    )
    what = "B leads, and C leads too: A's resign() deposed B for a moment"
    _check_third(lab, ada, bob, _candidate(kind, "cyd", LONG), (cast, what))


def _check_campaign_trips(kind: Any, lab: Lab) -> None:
    r, key = lab.client(), lab.key("leader")
    ada, bob = kind(r, key, "ada", LONG), kind(r, key, "bob", LONG)
    warm = kind(r, lab.key("leader"), "ada", LONG)
    warm.campaign()
    for what, who in (("become leader", ada), ("stay leader", ada), ("be refused", bob)):
        with lab.tap(r) as tape:
            who.campaign()
        if tape.round_trips != 1:
            said = ", ".join(exchange.command[0] for exchange in tape.commands)
            message = f"to {what} takes {tape.round_trips} round trips"
            raise Failure("round_trips", message, said, "EVAL: a script may ask and write in one round trip")


def _check_restart(kind: Any, lab: Lab) -> None:
    """The server has forgotten its scripts: a call works all the same, and soon in one round trip again."""
    r, key, look = lab.client(), lab.key("leader"), "EVAL, which always works; or what catches NoScriptError"
    ada, bob = kind(r, key, "ada", LONG), kind(r, key, "bob", LONG)
    for who in (ada, bob):
        who.campaign()
    for name, who, leads in (("ada", ada, True), ("bob", bob, False), ("ada", ada, True)):
        r.script_flush()
        lab.r.pexpire(key, 5000)
        story, since = Story("ada leads, and the server has forgotten all scripts"), time.monotonic()
        try:
            told = story.call(f"{name}.campaign()", who.campaign)
        except Exception as error:
            what, said = "after a restart of the server a call fails", f"{type(error).__name__}: {error}"
            raise Failure("flushed", what, said, look) from None
        what = "after a restart of the server campaign() does not say who leads"
        story.hold(bool(told) == leads, "flushed", what, look)
        if leads:
            _check_left(story, lab.r, key, LONG, since, ("flushed", look))
        with lab.tap(r) as tape:
            who.campaign()
        trips = f"the second campaign() after a restart takes {tape.round_trips} round trips"
        story.hold(tape.round_trips == 1, "round_trips", trips, "what loads the script again, and how often")


EXERCISES = (
    Exercise(
        stem="lock",
        name="release",
        title="A release that frees nobody else's lock",
        statement="Write `acquire` and `release`. The lock is held as long as `key` exists, and for at most "
        "`ttl` seconds (fractions too), even if its holder crashes at the worst moment. "
        "A refused `acquire` changes nothing. "
        "`release` gives back only what **this** acquisition still holds, and says whether it did. "
        "`me` is the name of the client, and a client may make several such objects; no two "
        "acquisitions, in whatever process, may come to the same token. Between any two of your commands "
        "others may send theirs, and the lock may expire.",
        answer="MyLock",
        stub=RELEASE_STUB.strip(),
        hints=(
            "Your client stalls, the lock expires, another client acquires it. Now your client goes "
            "on, and calls release(). How could it know?",
            "The value of the key can say whose it is. What value does no other acquisition have, "
            "not even your own next one? secrets.token_hex(16).",
            "SET has options for both: only if there is no key (nx=True), and with a TTL "
            "(px=milliseconds). Two commands would be one too many: a client may crash between them.",
            "Comparing and deleting must be one step: a script with r.eval(lua, 1, key, token), in "
            "which redis.call('GET', KEYS[1]) is compared with ARGV[1]. (Or WATCH, GET, MULTI, DEL, "
            "EXEC, and mind the WatchError.)",
        ),
        reference=RELEASE.strip(),
        wrong=RELEASE_WRONG,
        grade=_grade_release,
    ),
    Exercise(
        stem="lock",
        name="extend",
        title="An extension that revives nothing",
        statement="A lock was acquired by `SET key token NX PX …`. Write `extend`: if `key` still holds "
        "`token`, it lasts `ttl` seconds from now, whether that is longer or shorter than before, "
        "and the answer is True. If it has expired, or is somebody else's by now, nothing changes "
        "and the answer is False. `ttl` may be a fraction of a second. Nothing without a TTL is left behind, "
        "even by a crash, and no clock of a client counts. Between any two of your "
        "commands others may send theirs, and the lock may expire.",
        answer="extend",
        stub=EXTEND_STUB.strip(),
        hints=(
            "What does your command do if the key has just expired? And if another client has it by now?",
            "SET writes whether there was something or not. PEXPIRE (in milliseconds) changes only "
            "what exists, but it does not ask whose it is.",
            "GET and then PEXPIRE is two steps, and in between the lock may change hands. A script is one.",
            "In the script: if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end, and then "
            "PEXPIRE with ARGV[2].",
        ),
        reference=EXTEND.strip(),
        wrong=EXTEND_WRONG,
        grade=_grade_extend,
    ),
    Exercise(
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
    ),
    Exercise(
        stem="lock",
        name="election",
        title="One leader, or none, but never two",
        statement="Several processes, each with a name of its own, want a leader. `key` holds the leader's "
        "name, and expires `ttl` seconds (fractions too) after the leader's latest `campaign()`. "
        "Every candidate calls `campaign()` again and again: who leads stays leader by it, and if "
        "nobody leads the caller does. A leader that died is succeeded when its time is up, whatever "
        "the others did meanwhile. `campaign()` is one round trip, but that it may load a script "
        "first, also after a restart of the server. `resign()` ends only one's own leadership.",
        answer="MyElection",
        stub=ELECTION_STUB.strip(),
        hints=(
            "There are three cases: nobody leads, you lead, another leads. What must each of them "
            "write, and which must write nothing?",
            "SET with NX and PX is right for the first case alone. In the second you must be sure, "
            "at the moment of writing, that the name is still yours.",
            "Who leads is asked and written in one step: r.eval(lua, 1, key, me, milliseconds). Here "
            "the name itself may be the token: to campaign twice is meant to be the same as once.",
            "local leader = redis.call('GET', KEYS[1]); if leader and leader ~= ARGV[1] then return "
            "0 end; then SET … PX. (A missing key is false in Lua.) resign() is the "
            "compare-and-delete of a lock.",
        ),
        reference=ELECTION.strip(),
        wrong=ELECTION_WRONG,
        grade=_grade_election,
    ),
)
