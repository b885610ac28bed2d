"""Chapter 08, exercise release: only what is still ours."""

from __future__ import annotations

import time
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise
from labkit.teach.exercises.lock.grading import (
    BETWEEN,
    COUNTED,
    LONG,
    PUT_BACK,
    Story,
    check_chance,
    check_left,
    check_refused,
    check_third,
    expires,
    explored,
    swapped,
    wrong,
)
from labkit.teach.lab import Lab

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


def _setnx(expire: str) -> tuple[tuple[str, str], ...]:
    return (_SET, "self.r.setnx(self.key, token)"), (_KEEP, f"{_KEEP}        self.r.{expire}\n")


RELEASE_WRONG = (
    wrong(
        RELEASE,
        "theirs",
        "DEL without a token: whoever holds the lock loses it",
        (_BY_LUA, "return self.r.delete(self.key) == 1"),
    ),
    wrong(
        RELEASE,
        "race",
        "GET, then DEL: in between the lock expires, and another client gets it",
        (_BY_LUA, "return self.r.get(self.key) == self.token and self.r.delete(self.key) == 1"),
    ),
    wrong(
        RELEASE,
        "token",
        "the token is the client's name: two acquisitions of one client share it",
        (_TOKEN, "self.me"),
    ),
    wrong(
        RELEASE,
        "theirs",
        "process and thread: two acquisitions of one thread share them",
        (_TOKEN, 'f"{os.getpid()}:{threading.get_ident()}"'),
        ("import secrets", "import os, threading"),
    ),
    wrong(
        RELEASE,
        "answer",
        "always True: the holder never learns that it lost the lock",
        (_BY_LUA, _BY_LUA.removeprefix("return ").removesuffix(" == 1") + "\n        return True"),
    ),
    wrong(RELEASE, "theirs", "asks whether anybody holds it, not who", ("~= ARGV[1] then", "== false then")),
    wrong(
        RELEASE,
        "crash",
        "SETNX, then EXPIRE: a crash in between leaves a lock that never ends",
        *_setnx("pexpire(self.key, round(self.ttl * 1000))"),
    ),
    wrong(
        RELEASE,
        "ttl",
        "EXPIRE in whole seconds: a lock of 0.3 s lasts for 1 s",
        *_setnx("expire(self.key, max(1, round(self.ttl)))"),
    ),
    wrong(
        RELEASE,
        "exclusive",
        "EXISTS, then SET: both find it free",
        (
            f"not {_SET}",
            "self.r.exists(self.key) or not self.r.set(self.key, token, px=round(self.ttl * 1000))",
        ),
    ),
    wrong(
        RELEASE,
        "race",
        "GET, and then WATCH: what happened between the two is not seen",
        (_BY_LUA, _LATE),
        _USES_REDIS,
    ),
    wrong(
        RELEASE,
        "race",
        "True although EXEC did nothing: the lock was another's, and nobody is told",
        (_BY_LUA, _DEAF),
        _USES_REDIS,
    ),
    wrong(
        RELEASE,
        "raises",
        "WATCH is right, and its WatchError goes to the caller: a lost lock is an answer, no error",
        (_BY_LUA, _WATCH),
    ),
    wrong(
        RELEASE,
        "again",
        "a new token with each attempt: after a refused one, the lock that it holds cannot be released",
        (f"token = {_TOKEN}\n", f"self.token = token = {_TOKEN}\n"),
        (f"{_KEEP}        return", "        return"),
    ),
    wrong(
        RELEASE,
        "refused",
        "SETNX and PEXPIRE in one transaction: each attempt of the others lengthens a dead holder's time",
        (f"if not {_SET}:", f"{_BOTH}\n        if not pipe.execute()[0]:"),
    ),
    wrong(
        RELEASE,
        "refused",
        "a refused acquire sets the TTL anew: a dead holder's lock never ends while others try",
        (f"if not {_SET}:", f"if not {_SET}:\n            self.r.expire(self.key, 3600)"),
    ),
    wrong(
        RELEASE,
        "race",
        "GETDEL, and put back what was another's: in between a third client acquires it",
        (_BY_LUA, PUT_BACK),
    ),
    wrong(RELEASE, "token", "the object's id: another process may have the same", (_TOKEN, "str(id(self))")),
    wrong(
        RELEASE,
        "token",
        "a million different tokens: among a few thousand locks two are alike",
        (_TOKEN, "str(secrets.randbelow(10**6))"),
    ),
    wrong(
        RELEASE,
        "token",
        "a token of 16 bits: among some 300 acquisitions two are likely to be alike",
        (_TOKEN, "secrets.token_hex(2)"),
    ),
    wrong(
        RELEASE,
        "token",
        "counted in the process: another process counts the same",
        (_TOKEN, 'f"{self.me}:{next(COUNT)}"'),
        ("import secrets", "import itertools\n\nCOUNT = itertools.count()"),
    ),
    wrong(
        RELEASE,
        "token",
        "the time: two may acquire at the same moment of their clocks",
        (_TOKEN, "str(time.time())"),
        ("import secrets", "import time"),
    ),
)


def _grade_release(kind: Any, lab: Lab) -> None:
    _check_own(kind, lab)
    _check_lost(kind, lab)
    _check_same_name(kind, lab)
    for ttl in (LONG, 100, 1.234, 0.75):
        key = lab.key("lock")
        story, since = Story(f"ttl {ttl:g} s"), time.monotonic()
        story.call("ada.acquire()", kind(lab.r, key, "ada", ttl).acquire)
        check_left(story, lab.r, key, ttl, since)
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
    look = swapped(tape, key) or "what an acquire() that fails leaves behind in your object"
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
        expires(r, key)
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
    expires(lab.r, key)
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
    check_refused(story, lab.r, "bob.acquire()", bob.acquire, got)
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
        check_chance(held, "secrets.token_hex(16)")


def _check_acquire_race(kind: Any, lab: Lab) -> None:
    def acquire(r: Any) -> bool:
        return bool(kind(r, "lock", "ada", LONG).acquire())

    def one_holder(r: Any, results: list[Any]) -> None:
        assert results.count(True) < 2, "A and B hold the lock, both at once"

    def mortal(r: Any, results: list[Any]) -> None:
        one_holder(r, results)
        assert r.pttl("lock") != -1, "the lock never expires: nobody can ever acquire it again"

    cast = "A and B: acquire()"
    explored(lab, [acquire, acquire], "exclusive", BETWEEN, cast, invariant=one_holder)
    look, cast = "what a crash leaves behind after each of your commands", cast + "; either may crash"
    explored(lab, [acquire, acquire], "crash", look, cast, invariant=mortal, faults=[crash])


def _check_release_race(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> bool | None:
        lock = kind(r, "lock", "ada", LONG)
        return bool(lock.release()) if lock.acquire() else None

    def bob(r: Any) -> tuple[int, bool]:
        left = expires(r, "lock")
        return left, bool(kind(r, "lock", "bob", LONG).acquire())

    def rule(r: Any, results: list[Any]) -> None:
        freed, (left, got) = results
        assert r.exists("lock") or not got, "B holds the lock, and A's release has taken it away"
        assert not freed or left == -2, "A's lock had expired, and A's release() says that it was still A's"
        assert freed is not False or left != -2, "A held the lock, and A's release() says that it did not"

    cast = "A: acquire(), release(). B: acquire(), once A's time is up"
    explored(lab, [ada, bob], "race", BETWEEN, cast, invariant=rule)


def _check_release_third(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> Any:
        lock = kind(r, "lock", "ada", LONG)
        return lock.release if lock.acquire() else None

    def bob(r: Any) -> Any:
        expires(r, "lock")
        return kind(r, "lock", "bob", LONG).acquire()

    def cyd(r: Any) -> bool:
        return bool(kind(r, "lock", "cyd", LONG).acquire())

    cast = "A: acquire(). B: acquire(), once A's time is up. Then A: release(). C: acquire()"
    what = "B holds the lock, and C got it too: A's release() took it from B for a moment"
    check_third(lab, ada, bob, cyd, (cast, what))


EXERCISE = Exercise(
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
)
