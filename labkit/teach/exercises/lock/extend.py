"""Chapter 08, exercise extend: never what has expired, never what is another's."""

from __future__ import annotations

import time
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.lock.grading import (
    BETWEEN,
    Story,
    check_left,
    clocks,
    expires,
    explored,
    swapped,
    wrong,
)
from labkit.teach.lab import Lab

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
    _extend(
        "return r.pexpire(key, round(ttl * 1000))",
        "theirs",
        "PEXPIRE without a comparison: it lengthens the lock of whoever has it now",
    ),
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
        "DEL, then SET NX: for a moment it is free, and another may take it",
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
        "True although EXEC did nothing: the lock is another's by now",
        "import redis",
    ),
    wrong(
        EXTEND,
        "ttl",
        "EXPIRE in whole seconds: 0.3 s becomes 1 s",
        ("'PEXPIRE'", "'EXPIRE'"),
        (_IN_MS, "max(1, round(ttl))"),
    ),
    wrong(
        EXTEND, "ttl", "PEXPIRE with seconds: 30 s become 30 ms, and the lock is gone", (_IN_MS, "int(ttl)")
    ),
    wrong(
        EXTEND,
        "ttl",
        "adds to what was left: several extensions in a row make a lock that lasts for ages",
        ("ARGV[2])", "ARGV[2] + redis.call('PTTL', KEYS[1]))"),
    ),
    wrong(
        EXTEND,
        "shorter",
        "PEXPIRE GT: whoever wants to hold it for less time cannot",
        ("return redis.call('P", "redis.call('P"),
        ("ARGV[2])", "ARGV[2], 'GT')\nreturn 1"),
    ),
    wrong(
        EXTEND,
        "answer",
        "True in every case: a holder that has lost the lock works on",
        ("then return 0", "then return 1"),
    ),
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
    wrong(
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
    wrong(
        EXTEND,
        "clock",
        "the end by the client's clock, which may be wrong by minutes",
        ("'PEXPIRE'", "'PEXPIREAT'"),
        (_IN_MS, "round((time.time() + ttl) * 1000)"),
        ('LUA = """', 'import time\n\nLUA = """'),
    ),
    wrong(
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
    look = swapped(tape, key) or "what it returns"
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
    expires(r, key)
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
        with clocks(skew, extend):
            story.call(f'extend(r, key, "mine", 30), clock {skew:+d} s', extend, lab.r, key, "mine", 30)
        check_left(story, lab.r, key, 30, since, ("clock", look))


def _check_extended(extend: Any, lab: Lab, ttl: float) -> None:
    r, key = lab.r, lab.key("lock")
    r.set(key, "mine", px=60_000)
    story, since = Story("SET key mine PX 60000"), time.monotonic()
    story.call(f'extend(r, key, "mine", {ttl:g})', extend, r, key, "mine", ttl)
    if ttl < 59 and 59_000 < (left := r.pttl(key)) <= 60_000:
        story.tell(f"PTTL key -> {left}")
        what = "from now on it lasts `ttl` seconds, also where that is less than was left"
        story.hold(False, "shorter", what, "what a time shorter than was left does")
    check_left(story, r, key, ttl, since)
    value = story.call("GET key", r.get, key)
    kept = value == "mine" or (value is None and time.monotonic() - since >= ttl)
    story.hold(kept, "value", "the key must still hold the token", "what you write")


def _check_extend_race(extend: Any, lab: Lab) -> None:
    def setup(r: Any) -> None:
        r.set("lock", "token-of-A", px=40_000)

    def ada(r: Any) -> bool:
        return bool(extend(r, "lock", "token-of-A", 60))

    def bob(r: Any) -> tuple[int, bool]:
        left = expires(r, "lock")
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
    explored(lab, [ada, bob], "race", BETWEEN, cast, setup=setup, invariant=rule)


def _check_extend_crash(extend: Any, lab: Lab) -> None:
    def setup(r: Any) -> None:
        r.set("lock", "token-of-A", px=40_000)

    def ada(r: Any) -> bool:
        return bool(extend(r, "lock", "token-of-A", 60))

    def rule(r: Any) -> None:
        for key in sorted(r.scan_iter()):
            assert r.pttl(key) != -1, f"a key that never expires is left: PTTL {key} is -1"

    cast, look = "A holds the lock: extend(); it may crash", "what a crash leaves behind after each command"
    explored(lab, [ada], "crash", look, cast, setup=setup, invariant=rule, faults=[crash])


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
    explored(lab, [ada, bob], "race", BETWEEN, cast, setup=setup, invariant=rule)


EXERCISE = Exercise(
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
)
