"""Chapter 10, exercise drop: everything under a prefix goes, a million members too, and nobody waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import redis

from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.leaderboard.grading import Heard, elements, overheard
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.lab import Lab

STUB = '''
def drop(r, prefix):
    """Delete all keys that begin with prefix; nobody waits. How many there were."""
    raise NotImplementedError
'''

REFERENCE = r'''
import re

def drop(r, prefix):
    """Delete all keys that begin with prefix; nobody waits. How many there were."""
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
    cursor, count = None, 0
    while cursor != 0:
        cursor, keys = r.scan(cursor or 0, match=pattern, count=500)
        if keys:
            count += r.unlink(*keys)
    return count
'''

_UNLINK = "count += r.unlink(*keys)"
_PATTERN = REFERENCE[REFERENCE.index("re.sub(") : REFERENCE.index("\n    cursor")]
_LOOP = REFERENCE[REFERENCE.index("    cursor, count") :]


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


def _body(*lines: str) -> tuple[str, str]:
    """In place of the loop of the reference, these lines."""
    return _LOOP, "".join(f"    {line}\n" for line in lines)


WRONG = (
    _wrong("stalls", "DEL frees a million members while all others wait", ("r.unlink", "r.delete")),
    _wrong(
        "stalls",
        "UNLINK for sets alone: a hash is as large",
        (
            _UNLINK,
            "for key in keys:\n"
            "                count += r.unlink(key) if r.type(key) == 'set' else r.delete(key)",
        ),
    ),
    _wrong(
        "stalls",
        "a TTL of 0 s deletes at once, like DEL",
        (_UNLINK, "count += sum(r.expire(key, 0) for key in keys)"),
    ),
    _wrong(
        "stalls",
        "a TTL of 1 ms: the server frees them when it comes by, like DEL",
        (_UNLINK, "count += sum(r.pexpire(key, 1) for key in keys)"),
    ),
    _wrong(
        "stalls",
        "empties each key first, in one command: what is freed is the same",
        (
            _UNLINK,
            "for key in keys:\n"
            "                if r.type(key) == 'set':\n"
            "                    r.spop(key, r.scard(key))\n"
            "            count += r.unlink(*keys) or len(keys)",
        ),
    ),
    _wrong(
        "stalls",
        "reads all members at once, to remove them a thousand at a time",
        (
            _UNLINK,
            "for key in keys:\n"
            "                members = list(r.smembers(key)) if r.type(key) == 'set' else []\n"
            "                for at in range(0, len(members), 1000):\n"
            "                    r.srem(key, *members[at : at + 1000])\n"
            "            count += r.unlink(*keys) or len(keys)",
        ),
    ),
    _wrong(
        "stalls",
        "UNLINK of all keys at once: small ones are freed in the server's thread, all in one command",
        _body(
            "keys = list(r.scan_iter(match=pattern, count=500))",
            "return r.unlink(*keys) if keys else 0",
        ),
    ),
    _wrong(
        "keys",
        "KEYS goes through every key of the server, in one step",
        _body("return sum(r.unlink(key) for key in r.keys(pattern))"),
    ),
    _wrong(
        "stalls",
        "a script is one step, however well it scans",
        _body(
            "lua = '''",
            "local cursor, count = '0', 0",
            "repeat",
            "    local reply = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 500)",
            "    cursor = reply[1]",
            "    for _, key in ipairs(reply[2]) do count = count + redis.call('UNLINK', key) end",
            "until cursor == '0'",
            "return count'''",
            "return r.eval(lua, 0, pattern)",
        ),
    ),
    _wrong(
        "stalls",
        "SCAN with a COUNT of a million: one step over all keys, like KEYS",
        ("count=500", "count=1_000_000"),
    ),
    _wrong(
        "left",
        "one SCAN: that is one page of many, and most keys stay",
        ("    while cursor != 0:\n", "    for _ in range(1):\n"),
    ),
    _wrong(
        "left",
        "ends at the first page without a key: a page may be empty",
        ("        if keys:\n", "        if not keys:\n            break\n        if keys:\n"),
    ),
    _wrong(
        "strangers",
        "the prefix goes into the pattern as it is: a * in it matches strangers' keys",
        (_PATTERN, 'prefix + "*"'),
    ),
    _wrong(
        "strangers",
        "*prefix* finds the prefix anywhere in a name: other customers' keys go, too",
        (_PATTERN, '"*" + ' + _PATTERN),
    ),
    _wrong(
        "strangers",
        "FLUSHDB ASYNC stalls nobody, and deletes what is everybody's",
        _body("return r.dbsize() if r.flushdb(True) else 0"),
    ),
    _wrong(
        "config",
        "lets DEL be UNLINK, for everybody and for good",
        ("    cursor, count", '    r.config_set("lazyfree-lazy-user-del", "yes")\n    cursor, count'),
        ("r.unlink", "r.delete"),
    ),
    _wrong(
        "answer", "returns None: the caller does not learn how many there were", ("    return count\n", "")
    ),
    _wrong(
        "answer",
        "counts what SCAN gives and what UNLINK says: each key twice",
        (_UNLINK, "count += 2 * r.unlink(*keys)"),
    ),
)

MOST = 5_000
"""Elements that one command may go through, or free, while all others wait."""

SMALL, OTHERS, MEMBERS = 6_000, 8_000, 12_000

FILL = """-- KEYS: none. ARGV: prefix, small keys, members of the big ones.
for n = 1, ARGV[2] do redis.call('SET', ARGV[1] .. 'item:' .. n, n) end
for n = 1, ARGV[3] do redis.call('SADD', ARGV[1] .. 'seen', 'member:' .. n) end
for n = 1, ARGV[3] / 2 do
    redis.call('HSET', ARGV[1] .. 'prices', 'product:' .. n, n)
    redis.call('RPUSH', ARGV[1] .. 'visits', 'visit:' .. n)
    redis.call('ZADD', ARGV[1] .. 'best', n, 'product:' .. n)
end"""

HARMLESS = set("PING ECHO TYPE EXISTS TTL PTTL SCARD HLEN LLEN ZCARD DBSIZE SELECT TIME INFO CLIENT".split())  # noqa: SIM905
HARMLESS |= {"MEMORY", "OBJECT", "WAIT", "COMMAND", "SCRIPT", "CONFIG", "STRLEN", "XLEN", "TOUCH", "HELLO"}
"""Commands that take no longer for a larger key."""

ONE_BY_ONE = {"SREM", "HDEL", "ZREM", "XDEL"}
"""Commands that name each element that they remove."""

EXPIRING = set("EXPIRE PEXPIRE EXPIREAT PEXPIREAT GETEX SETEX PSETEX".split())  # noqa: SIM905
SIZE = """-- ARGV: words, some of which may be keys. How many elements these have, and one for each key.
local commands = {set = 'SCARD', hash = 'HLEN', list = 'LLEN', zset = 'ZCARD', stream = 'XLEN'}
local found, seen = 0, {}
for _, word in ipairs(ARGV) do
    local kind = not seen[word] and redis.call('TYPE', word).ok or 'none'
    seen[word] = true
    if kind ~= 'none' then found = found + 1 end
    if commands[kind] then found = found + redis.call(commands[kind], word) end
end
return found"""
SCRIPTS = ("EVAL", "EVALSHA", "FCALL", "EVAL_RO", "EVALSHA_RO", "FCALL_RO")

_LOOK = {
    "stalls": "what each command goes through, or frees, before the next client has its turn",
    "keys": "SCAN: a page at a time",
    "strangers": "what MATCH makes of *, ? and [ in a name; and where the prefix stands",
    "left": "when SCAN is done: not before its cursor is 0",
}


class Step(NamedTuple):
    """What the server does in one go: a command, or a script or a transaction, and what that calls."""

    name: str
    inner: tuple[list[str], ...]


def steps(heard: list[Heard]) -> Iterator[Step]:
    """What was heard, in the steps between which other clients have their turn."""
    at = 0
    while at < len(heard):
        words, at = heard[at].words, at + 1
        name, inner = words[0].upper(), list[list[str]]()
        while at < len(heard) and heard[at].script:
            inner, at = [*inner, heard[at].words], at + 1
        if name == "MULTI":
            while at < len(heard) and heard[at].words[0].upper() != "EXEC":
                inner, at = [*inner, heard[at].words], at + 1
            at += 1
        yield Step(name, tuple(inner) if inner or name in SCRIPTS or name == "MULTI" else (words,))


def cost(r: Any, words: list[str]) -> int:
    """Run a command again; how many elements it went through, or freed, while others waited.

    UNLINK hands large keys over to another thread: for each of its keys it counts one.
    """
    name = words[0].upper()
    if name in HARMLESS:
        return 1
    if name == "UNLINK":
        return max(int(r.unlink(*words[1:])), 1)
    if name == "SCAN":
        upper = [word.upper() for word in words]
        return int(words[upper.index("COUNT") + 1]) if "COUNT" in upper else 10
    if name in ONE_BY_ONE:
        r.execute_command(*words)
        return len(words)
    before = int(r.eval(SIZE, 0, *words[1:]))
    if name in EXPIRING:
        return max(before, 1)
    try:
        reply = r.execute_command(*words)
    except redis.ResponseError:
        return 1
    return max(abs(before - int(r.eval(SIZE, 0, *words[1:]))), elements(reply), 1)


def plain(word: str) -> str:
    """A word as it was sent: MONITOR shows it escaped."""
    return word.encode("latin-1", "backslashreplace").decode("unicode_escape")


def _fill(r: Any, prefix: str, others: tuple[str, ...]) -> None:
    _others(r)
    r.eval(FILL, 0, prefix, SMALL, MEMBERS)
    r.mset(dict.fromkeys(others, "a stranger's"))


def _grade(fn: Any, lab: Lab) -> None:
    neighbours = ("customer:4", "customer:421:item:1", "x:customer:42:item:1", "customer:42")
    _check_prefix(fn, lab, "customer:42:", neighbours)
    _check_rare(fn, lab)
    _check_pattern(fn, lab)


def _check_prefix(fn: Any, lab: Lab, prefix: str, neighbours: tuple[str, ...]) -> None:
    r: Any = lab.r
    _fill(r, prefix, neighbours)
    story = Story(
        f"under {prefix!r}: {SMALL:,} small keys, a set of {MEMBERS:,} members, a hash, a list and a "
        f"sorted set of {MEMBERS // 2:,} each; beside it {OTHERS:,} keys"
    )
    with _same_settings(story, r), overheard(lab) as heard:
        found = fn(r, prefix)
    story.tell(f"drop(r, {prefix!r}) -> {found!r}")
    steps_of = list(steps(heard))
    _check_names(story, steps_of)
    _check_outcome(story, r, prefix, neighbours, steps_of)
    _check_steps(story, lab, prefix, neighbours, steps_of)
    what = f"it gives {found!r}, and there were {SMALL + 4:,} keys"
    story.hold(found == SMALL + 4 and type(found) is int, "answer", what, "what UNLINK replies")


@contextlib.contextmanager
def _same_settings(story: Story, r: Any) -> Iterator[None]:
    """Raises Failure if the server's settings are others afterwards; and puts them back."""
    before, changed = r.config_get("*"), dict[str, str]()
    try:
        yield
    finally:
        after = r.config_get("*")
        changed = {name: value for name, value in after.items() if value != before[name]}
        for name, value in changed.items():
            story.tell(f"CONFIG GET {name} -> {value!r}; before: {before[name]!r}")
            r.config_set(name, before[name])
    story.hold(not changed, "config", "it has changed the settings of the server", "what concerns everybody")


def _check_names(story: Story, found: list[Step]) -> None:
    for step in found:
        for words in step.inner:
            if words[0].upper() == "KEYS":
                story.tell(" ".join(words))
                what = "KEYS goes through every key of the server in one step"
                story.hold(False, "keys", what, _LOOK["keys"])


def _check_outcome(story: Story, r: Any, prefix: str, neighbours: tuple[str, ...], found: list[Step]) -> None:
    there = r.exists(*neighbours), r.exists(*(f"other:{n}" for n in range(1, 101)))
    what = "other keys are gone, too: they do not begin with the prefix"
    story.hold(there == (len(neighbours), 100), "strangers", what, _LOOK["strangers"])
    fading = [words for step in found for words in step.inner if words[0].upper() in EXPIRING]
    if fading:
        story.tell(" ".join(fading[0]))
    what = "what expires is freed by the server's own thread, like DEL: lazyfree-lazy-expire is no"
    story.hold(not fading, "stalls", what, _LOOK["stalls"])
    left = r.dbsize() - OTHERS - len(neighbours)
    story.hold(left == 0, "left", f"{left:,} keys are still there", _LOOK["left"])


def _check_steps(story: Story, lab: Lab, prefix: str, neighbours: tuple[str, ...], found: list[Step]) -> None:
    """The same commands on the same keys: what does each of them cost?"""
    r: Any = lab.r
    _fill(r, prefix, neighbours)
    for step in found:
        spent = sum(cost(r, [plain(word) for word in words]) for words in step.inner)
        if spent <= MOST:
            continue
        words = " ".join(step.inner[0])
        inner = f"{step.name} with {len(step.inner):,} commands in it, the first {words}"
        said = words if len(step.inner) == 1 else inner
        story.tell(f"{said[:70]}{'…' * (len(said) > 70)} goes through {spent:,} elements")
        what = f"a single step goes through {spent:,} elements, and up to {MOST:,} are allowed"
        story.hold(False, "stalls", what, _LOOK["stalls"])


def _others(r: Any) -> None:
    r.flushdb()
    r.eval("for n = 1, ARGV[1] do redis.call('SET', 'other:' .. n, n) end", 0, OTHERS)


def _check_rare(fn: Any, lab: Lab) -> None:
    """A few keys among many: most pages of SCAN have none of them."""
    r: Any = lab.r
    _others(r)
    keys = [f"rare:{n}" for n in range(5)]
    r.mset(dict.fromkeys(keys, 1))
    story = Story(f"keys: {keys[0]} … {keys[-1]}, and {OTHERS:,} others")
    found = story.call("drop(r, 'rare:')", fn, r, "rare:")
    left = r.exists(*keys)
    story.hold(not left, "left", f"{left} of 5 keys are still there", _LOOK["left"])
    what = f"it gives {found!r}, and there were 5"
    story.hold(found == 5 and type(found) is int, "answer", what, "what UNLINK replies")


def _check_pattern(fn: Any, lab: Lab) -> None:
    """Names that are patterns, too."""
    r: Any = lab.r
    for prefix, stranger in (
        ("a*b:", "axb:1"),
        ("shop[12]:", "shop1:1"),
        ("who?:", "whom:1"),
        ("c\\d:", "cd:1"),
    ):
        r.flushdb()
        r.mset({f"{prefix}1": 1, f"{prefix}2": 1, stranger: 1})
        story = Story(f"keys: {prefix}1, {prefix}2, {stranger}")
        found = story.call(f"drop(r, {prefix!r})", fn, r, prefix)
        story.tell(f"left: {', '.join(sorted(r.scan_iter())) or 'nothing'}")
        story.hold(
            r.exists(stranger), "strangers", f"{stranger} does not begin with {prefix}", _LOOK["strangers"]
        )
        story.hold(r.dbsize() == 1, "left", "a * in a name is a letter like any other", _LOOK["strangers"])
        story.hold(found == 2, "answer", f"it gives {found!r}, and there were 2", "what UNLINK replies")
    r.flushdb()
    story = Story("no keys")
    found = story.call("drop(r, 'none:')", fn, r, "none:")
    story.hold(
        found == 0 and type(found) is int, "answer", "there is nothing to delete: 0", "an UNLINK of no keys"
    )


EXERCISE = Exercise(
    stem="production",
    name="drop",
    title="A million members go, and nobody waits",
    statement=f"""
A customer leaves. Whatever is under his prefix must go from a server that is in use: thousands of small keys,
and some with a million members. Write `drop(r, prefix)`:

- Every key whose name begins with `prefix` is deleted; none else. A `*` in the prefix is a letter.
- It returns how many keys there were.
- Nobody waits: no command, script or transaction goes through more than {MOST:,} elements, or frees so many,
  before the next client has its turn.
- The settings of the server stay as they are.

Time is not measured: the grader reckons for each command how many elements the server's one thread goes
through for it.
""".strip(),
    answer="drop",
    stub=STUB.strip(),
    hints=(
        "DEL frees a key's members one by one, and all others wait. Which command takes the key out of the "
        "keyspace, and lets another thread free the rest?",
        "KEYS goes through all keys in one step. SCAN does a page of them; it is done when its cursor is 0, "
        "and a page may be empty before that.",
        "MATCH takes a pattern. What must be done with *, ?, [ and \\ in a prefix? And what are small keys "
        "for UNLINK: how many may one command name?",
        "In a loop: scan(cursor, match=…, count=500), then unlink(*keys) of this page, if there are any.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=60,
)
