"""labkit.rig.footprint against each Redis that is installed: what commands and scripts read and write."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from labkit.rig.footprint import EVERYTHING, PURE, Footprint, Footprints, conflict
from labkit.rig.server import Server, binaries


@pytest.fixture(
    scope="module", params=sorted({b.path: b for b in binaries()}.values()), ids=lambda b: b.source
)
def r(request: Any) -> Iterator[Any]:
    with Server(binary=request.param.path) as server, server.client() as client:
        yield client


def prints(reads: str = "", writes: str = "") -> Footprint:
    return Footprint(frozenset(reads.split()), frozenset(writes.split()))


LOOKS = Footprint(whole="r")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("GET k", prints("k")),
        ("SET k v", prints("", "k")),
        ("SET k v GET", prints("", "k")),
        ("MGET a b", prints("a b")),
        ("MSET a b c d", prints("", "a c")),
        ("EXISTS a b", prints("a b")),
        ("DEL a b", prints("", "a b")),
        ("EXPIRE k 1", prints("", "k")),
        ("GETEX k", prints("", "k")),
        ("TTL k", prints("k")),
        ("WATCH a b", prints("a b")),
        ("OBJECT ENCODING k", prints("k")),
        ("MEMORY USAGE k", prints("k")),
        ("COPY a b", prints("a", "b")),
        ("RENAME a b", prints("", "a b")),
        ("LMOVE a b LEFT RIGHT", prints("", "a b")),
        ("BLPOP a b 0", prints("", "a b")),
        ("LMPOP 2 a b LEFT", prints("", "a b")),
        ("SUNIONSTORE a b c", prints("b c", "a")),
        ("ZUNION 2 a b", prints("a b")),
        ("ZRANGESTORE a b 0 1", prints("b", "a")),
        ("BITOP AND a b c", prints("b c", "a")),
        ("GEORADIUS g 1 1 1 m STORE d", prints("g", "d")),
        ("XADD s * f v", prints("", "s")),
        ("XREAD BLOCK 0 STREAMS s 0", prints("s")),
        ("XREADGROUP GROUP g c STREAMS s >", prints("", "s")),
        ("XGROUP CREATE s g $", prints("", "s")),
        ("XPENDING s g", prints("s")),
        ("PING", PURE),
        ("TIME", PURE),
        ("SELECT 1", PURE),
        ("MULTI", PURE),
        ("UNWATCH", PURE),
        ("KEYS *", LOOKS),
        ("DBSIZE", LOOKS),
        ("SCAN 0", LOOKS),
        ("FLUSHALL", EVERYTHING),
        ("SWAPDB 0 1", EVERYTHING),
        ("PUBLISH c m", EVERYTHING),
        ("CLIENT ID", EVERYTHING),
        ("WAIT 1 0", EVERYTHING),
        ("SORT k BY weight_*", EVERYTHING),
        ("NOSUCHCOMMAND k", EVERYTHING),
        ("FCALL f 1 k", EVERYTHING),
    ],
)
def test_commands(command: str, expected: Footprint, r: Any) -> None:
    known = Footprints(r)
    assert known.of(tuple(command.split())) == expected
    assert known.of(tuple(command.split())) == expected
    assert known.of(tuple(command.lower().split())) == expected


def test_a_form_that_was_seen_says_nothing_of_other_words(r: Any) -> None:
    """Where keys stand is remembered, not what they were called, nor what else stood there."""
    known = Footprints(r)
    for command, expected in (
        ("MSET a b b c", prints("", "a b")),
        ("MSET x 1 y 2", prints("", "x y")),
        ("MSET x x x x", prints("", "x")),
        ("BITFIELD k GET u8 0 GET u8 8", prints("", "k")),  # it may write, so it counts as if it did
        ("BITFIELD k OVERFLOW SAT SET u8 0 1", prints("", "k")),
        ("XGROUP CREATE CREATE g $", prints("", "CREATE")),
        ("XGROUP CREATE s g $", prints("", "s")),
        ("OBJECT ENCODING ENCODING", prints("ENCODING")),
        ("OBJECT ENCODING k", prints("k")),
        ("SMOVE a a a", prints("", "a")),
        ("SMOVE a b c", prints("", "a b")),
    ):
        assert known.of(tuple(command.split())) == expected, command


def test_words_of_every_kind(r: Any) -> None:
    known = Footprints(r)
    assert known.of(("SET", b"k", 1)) == prints("", "k")
    assert known.of(("SET", memoryview(b"k"), 1.5)) == prints("", "k")
    assert known.of(("SET", memoryview(bytearray(b"k")), 1)) == prints("", "k")
    assert known.of(("XGROUP CREATE", "s", "g", "$")) == prints("", "s")
    assert known.of(("GET", 7)) == prints("7")


@pytest.mark.parametrize(
    ("script", "keeps"),
    [
        ("return redis.call('GET', KEYS[1])", True),
        ('return redis.pcall("incr", KEYS[ 1 ])', True),
        ("local t = redis.call('TIME') return redis.call('ZADD', KEYS[1], t[1], ARGV[1])", True),
        ("if #KEYS == 1 and KEYS[1] == ARGV[1] then return redis.status_reply('OK') end", True),
        ("-- redis.call('GET', 'other')\nreturn 1", True),
        ("--[[ redis.call('GET', 'other')\n ]] return redis.call('GET', KEYS[1]) -- redis", True),
        ("return redis.sha1hex('--') .. redis.call('GET', KEYS[1])", True),
        ("return redis.call('GET', 'other')", False),
        ("return redis.call('GET', ARGV[1])", False),
        ("return redis.call('GET', KEYS[1] .. ':x')", False),
        ("return redis.call('GET', KEYS[ARGV[1]])", False),
        ("return redis.call('MSET', KEYS[1], 1, 'other', 2)", False),
        ("return redis.call('RENAME', KEYS[1], 'other')", False),
        ("return redis.call('SORT', KEYS[1], 'BY', 'w_*')", False),
        ("return redis.call('DBSIZE')", False),
        ("return redis.call('SELECT', 1)", False),
        ("return redis.call(ARGV[1], KEYS[1])", False),
        ("return redis.call('G' .. 'ET', KEYS[1])", False),
        ("local call = redis.call return call('GET', 'other')", False),
        ("local r = redis return r.call('GET', 'other')", False),
        ("return redis['call']('GET', 'other')", False),
        ("return _G['red' .. 'is'].call('GET', 'other')", False),
        ("return loadstring(ARGV[1])()", False),
        ("KEYS[1] = 'other' return redis.call('GET', KEYS[1])", False),
        ("local KEYS = {'other'} return redis.call('GET', KEYS[1])", False),
        ("table.insert(KEYS, 1, 'other') return redis.call('GET', KEYS[1])", False),
        ("local x KEYS[1], x = 'other', 1 return redis.call('GET', KEYS[1])", False),
        ("local x x, KEYS[1] = 1, 'other' return redis.call('GET', KEYS[1])", False),
        ("local i = {1} KEYS[i[1]] = 'other' return redis.call('GET', KEYS[1])", False),
        ("local key = KEYS[1]\nlocal n = redis.call('GET', KEYS[1])", True),
        ("redis.call('SET', KEYS[1], '--') redis.call('SET', 'other', 1)", False),
        ("redis.call('SET', KEYS[1], \"it's --\") redis.call('SET', 'other', 1)", False),
        ("redis.call('SET', KEYS[1], '\\'--') redis.call('SET', 'other', 1)", False),
        ("redis.call('SET', KEYS[1], [[ -- ]]) redis.call('SET', 'other', 1)", False),
        ("redis.call('SET', KEYS[1], [==[ ]] -- ]==]) redis.call('SET', 'other', 1)", False),
        ("--[==[ ]] ]==] redis.call('SET', 'other', 1)", False),
    ],
)
def test_scripts(script: str, keeps: bool, r: Any) -> None:
    known = Footprints(r)
    sha = r.script_load("return 1")
    assert known.of(("EVALSHA", sha, 1, "k")) == EVERYTHING  # nobody has shown its text
    assert known.of(("EVAL", script, 1, "k", "v")) == (prints("", "k") if keeps else EVERYTHING)
    assert known.of(("EVAL_RO", script, 1, "k")) == (prints("k") if keeps else EVERYTHING)
    assert known.of(("SCRIPT LOAD", "return 1")) == PURE
    assert known.of(("EVALSHA", sha, 2, "k", "l", "m")) == prints("", "k l")


def test_what_may_wait(r: Any) -> None:
    known = Footprints(r)
    for command in (
        "BLPOP q 0",
        "XREAD BLOCK 0 STREAMS s $",
        "WAIT 1 0",
        "BZPOPMIN z 0",
        "blmove a b LEFT LEFT 0",
    ):
        assert known.blocking(command.split()), command
    for command in ("LPOP q", "GET k", "WATCH k", "EVAL x 0", "NOSUCHCOMMAND"):
        assert not known.blocking(command.split()), command


def test_conflicts() -> None:
    a, writes_a = prints("a"), prints("", "a")
    both = Footprint(frozenset(), frozenset("a"), "r")  # MULTI, DBSIZE, SET a, EXEC
    table = [
        (PURE, PURE, False),
        (PURE, EVERYTHING, False),
        (a, a, False),
        (a, writes_a, True),
        (writes_a, writes_a, True),
        (writes_a, prints("b", "c"), False),
        (a, EVERYTHING, True),
        (LOOKS, a, False),
        (LOOKS, LOOKS, False),
        (LOOKS, writes_a, True),
        (LOOKS, EVERYTHING, True),
        (both, a, True),
        (both, prints("b"), False),
        (both, prints("", "b"), True),
        (both, both, True),
    ]
    for one, other, expected in table:
        assert conflict(one, other) is expected, (one, other)
        assert conflict(other, one) is expected, (other, one)


def test_a_union_conflicts_with_whatever_its_parts_do() -> None:
    rng = random.Random(1)

    def some() -> Footprint:
        keys = [frozenset(rng.sample("abc", rng.randint(0, 2))) for _ in range(2)]
        return Footprint(keys[0], keys[1], rng.choice(["", "", "", "r", "w"]))

    for _ in range(2000):
        one, two, other = some(), some(), some()
        apart = conflict(one, other) or conflict(two, other)
        assert conflict(one | two, other) >= apart
        assert (one | two).changes == (one.changes or two.changes)
