"""Chapter 09, exercise ties: among equals whoever was first is ahead, and points stay exact."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.leaderboard.grading import check_frugal, check_pairs
from labkit.teach.exercises.lock.grading import Story, clocks, wrong
from labkit.teach.exercises.session.grading import Inside, elsewhere, said
from labkit.teach.exercises.stream.grading import asked, explore_stream
from labkit.teach.lab import Lab

STUB = '''
class MyBoard:
    """A board on which, among equals, whoever reached the points first is ahead."""

    def __init__(self, r, name):
        raise NotImplementedError

    def set(self, member, points):
        """The member has so many points now: 0 to 2,000,000,000."""
        raise NotImplementedError

    def top(self, n):
        """The first n, or fewer: [(member, points), …]."""
        raise NotImplementedError
'''

REFERENCE = '''
import math

class MyBoard:
    """The score is points - tick / 2^22. 31 bits of points and 22 of ticks are the 53 that a double has."""

    # KEYS: board, ticks. ARGV: member, points. Each change has a tick, later ones a greater: a lower score.
    SET = """
    local had = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if had and math.ceil(had) == tonumber(ARGV[2]) then return end
    local tick = redis.call('INCR', KEYS[2])
    redis.call('ZADD', KEYS[1], ARGV[2] - tick / 4194304, ARGV[1])
    """

    def __init__(self, r, name):
        self.r, self.board, self.ticks = r, f"{{{name}}}:board", f"{{{name}}}:ticks"

    def set(self, member, points):
        """The member has so many points now: 0 to 2,000,000,000."""
        self.r.eval(self.SET, 2, self.board, self.ticks, member, points)

    def top(self, n):
        """The first n, or fewer: [(member, points), …]."""
        found = self.r.zrange(self.board, 0, n - 1, desc=True, withscores=True)
        return [(member, math.ceil(score)) for member, score in found]
'''

_HAD = "    if had and math.ceil(had) == tonumber(ARGV[2]) then return end\n"
_SCRIPT_TICK = "    local tick = redis.call('INCR', KEYS[2])\n"
_ZADD = "    redis.call('ZADD', KEYS[1], ARGV[2] - tick / 4194304, ARGV[1])\n"
_EVAL = "        self.r.eval(self.SET, 2, self.board, self.ticks, member, points)\n"
_TOP = """        found = self.r.zrange(self.board, 0, n - 1, desc=True, withscores=True)
        return [(member, math.ceil(score)) for member, score in found]
"""


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


def _sets(*lines: str) -> tuple[str, str]:
    """The reference, but that `set` has these lines."""
    return _EVAL, "".join(f"        {line}\n" for line in lines)


def _tops(*lines: str) -> tuple[str, str]:
    """The reference, but that `top` has these lines."""
    return _TOP, "".join(f"        {line}\n" for line in lines)


_PREFIX = """
import time

class MyBoard:
    \"\"\"Plain points as the score; equals are ordered by name, and each name begins with a moment.\"\"\"

    SET = '''
    local old = redis.call('HGET', KEYS[2], ARGV[1])
    if old then
        if redis.call('ZSCORE', KEYS[1], old) == ARGV[2] then return end
        redis.call('ZREM', KEYS[1], old)
    end
    local name = ARGV[3] .. ':' .. ARGV[1]
    redis.call('HSET', KEYS[2], ARGV[1], name)
    redis.call('ZADD', KEYS[1], ARGV[2], name)
    '''

    def __init__(self, r, name):
        self.r, self.board, self.names = r, f"{{{name}}}:board", f"{{{name}}}:names"

    def set(self, member, points):
        moment = 10**20 - time.time_ns()
        self.r.eval(self.SET, 2, self.board, self.names, member, points, f"{moment:020d}")

    def top(self, n):
        found = self.r.zrange(self.board, 0, n - 1, desc=True, withscores=True)
        return [(name.partition(":")[2], int(score)) for name, score in found]
"""

_HASH = """
class MyBoard:
    \"\"\"A sorted set of points, and a hash that says who came when.\"\"\"

    SET = '''
    if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then return end
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[1], redis.call('INCR', KEYS[3]))
    '''

    def __init__(self, r, name):
        self.r, self.keys = r, [f"{{{name}}}:board", f"{{{name}}}:came", f"{{{name}}}:ticks"]

    def set(self, member, points):
        self.r.eval(self.SET, 3, *self.keys, member, points)

    def top(self, n):
        found = self.r.zrange(self.keys[0], 0, n - 1, desc=True, withscores=True)
        came = self.r.hgetall(self.keys[1])
        rows = sorted(found, key=lambda row: (-row[1], int(came[row[0]])))
        return [(member, int(points)) for member, points in rows[:n]]
"""

WRONG = (
    _wrong(
        "names",
        "plain ZADD: equals are ordered by their names",
        _sets("self.r.zadd(self.board, {member: points})"),
    ),
    _wrong(
        "later",
        "adds the tick in place of taking it away: whoever comes later is ahead",
        ("ARGV[2] - tick", "ARGV[2] + tick"),
        ("math.ceil", "math.floor"),
    ),
    _wrong("again", "to set the same points again costs the place", (_HAD, "")),
    _wrong(
        "anew",
        "a member keeps the tick of the first time, whatever points came after",
        (
            _SCRIPT_TICK,
            "    redis.call('HSETNX', KEYS[2], ARGV[1], redis.call('HLEN', KEYS[2]))\n"
            "    local tick = redis.call('HGET', KEYS[2], ARGV[1])\n",
        ),
    ),
    wrong(_PREFIX, "clock", "the client's clock says who was first: machines disagree"),
    _wrong(
        "shared",
        "a counter in the process: another process begins at 1 again",
        ("        self.r, self.board,", "        self.count = 0\n        self.r, self.board,"),
        (_SCRIPT_TICK, "    local tick = ARGV[3]\n"),
        _sets("self.count += 1", f"{_EVAL.strip()[:-1]}, self.count)"),
    ),
    _wrong(
        "precision",
        "the server's time in the fraction: with large points a double has no room for it",
        (
            _SCRIPT_TICK,
            "    local time = redis.call('TIME')\n    local tick = time[1] * 1000000 + time[2]\n",
        ),
        ("tick / 4194304", "tick / 2 ^ 51"),
    ),
    _wrong(
        "precision",
        "a 2^32nd of a point for each tick: with large points many ticks are one score",
        ("tick / 4194304", "tick / 4294967296"),
    ),
    _wrong(
        "precision",
        "tostring() in Lua writes 14 digits",
        ("ARGV[2] - tick / 4194304,", "tostring(ARGV[2] - tick / 4194304),"),
    ),
    _wrong("points", "int() cuts the fraction off: one point too few", ("math.ceil(score))", "int(score))")),
    _wrong("room", "round(): right for half of all ticks", ("math.ceil(score))", "round(score))")),
    _wrong(
        "room", "a thousandth of a point for each tick: after a thousand it is a point", ("4194304", "1000")
    ),
    _wrong("room", "2^20 ticks: they are used up after a million changes", ("4194304", "1048576")),
    _wrong(
        "race",
        "INCR, then ZADD: whoever has the lower tick may be on the board later",
        _sets(
            "had = self.r.zscore(self.board, member)",
            "if had is None or math.ceil(had) != points:",
            "    tick = self.r.incr(self.ticks)",
            "    self.r.zadd(self.board, {member: points - tick / 4194304})",
        ),
    ),
    _wrong(
        "race",
        "looks whether the points are the same, then sets them: in between they were set",
        (_HAD, ""),
        _sets(
            "had = self.r.zscore(self.board, member)",
            "if had is None or math.ceil(had) != points:",
            f"    {_EVAL.strip()}",
        ),
    ),
    _wrong(
        "crash",
        "ZREM before the new points: a crash takes the member from the board",
        _sets(
            "had = self.r.zscore(self.board, member)",
            "if had is not None and math.ceil(had) != points:",
            "    self.r.zrem(self.board, member)",
            _EVAL.strip(),
        ),
    ),
    _wrong(
        "exact",
        "32 bits of ticks: 53 bits are too few for them and the points",
        ("ARGV[2] - tick / 4194304", "(ARGV[2] + 1) * 4294967296 - 1 - tick"),
        ("math.ceil(had)", "math.floor(had / 4294967296)"),
        ("math.ceil(score)", "math.floor(score / 4294967296)"),
    ),
    wrong(_HASH, "cut", "takes the first n by name, and then asks who was first"),
    wrong(
        _HASH,
        "fetch",
        "fetches the whole board to sort it: for three rows of a million",
        ("0, n - 1,", "0, -1,"),
    ),
    _wrong(
        "answer", "gives the scores as they are: 99.9999998 in place of 100", ("math.ceil(score))", "score)")
    ),
)

MOST = 2_000_000_000
CHANGES = 4_000_000
_TICK = "what tells the earlier from the later: a tick that Redis counts, as a part of the score"
_BITS = "how many bits a double has (53), and how many of them points and ticks take"


class _Told:
    """A board, in two processes, and a story."""

    def __init__(self, kind: Any, lab: Lab, empty: bool = True) -> None:
        if empty:
            lab.r.flushdb()
        self.story, self.name = Story(), lab.key("board")
        self.kind, self.board = kind, kind(lab.r, self.name)
        self.other = elsewhere(kind)(lab.client(), self.name)
        asked(self.story, self.board, ("set", "top"), "MyBoard")
        self.came = dict[str, tuple[int, int]]()
        self.ticks = 0

    def set(self, member: str, points: int, process: str = "") -> None:
        self.ticks += 1
        if self.came.get(member, (-1, 0))[0] != points:
            self.came[member] = points, self.ticks
        (self.other if process else self.board).set(member, points)
        self.story.tell(f"set({member!r}, {points}){process}")

    def rows(self, n: int) -> list[tuple[str, int]]:
        """What top(n) is to give."""
        order = sorted(self.came.items(), key=lambda one: (-one[1][0], one[1][1]))
        return [(member, points) for member, (points, _) in order[:n]]

    def top(self, n: int) -> list[tuple[str, int]]:
        found = self.board.top(n)
        self.story.tell(f"top({n}) -> {found!r}")
        check_pairs(self.story, found, "top()")
        return [(member, points) for member, points in found]

    def check(self, n: int, property: str, message: str, look: str, points: str = "points") -> None:
        """top(n) is what it should be. `points`: what is violated where only the points are others."""
        found, rows = self.top(n), self.rows(n)
        same = [member for member, _ in found] == [member for member, _ in rows]
        wrong = [(a, b) for a, b in zip(found, rows, strict=False) if a != b]
        if same and wrong:
            (who, got), (_, has) = wrong[0]
            what = f"{who!r} has {has:,} points, and top() says {got:,}"
            self.story.hold(False, points, what, "how points become a score, and a score points")
        if found != rows:
            self.story.tell(f"asked for: {rows!r}")
        self.story.hold(found == rows, property, message, look)


def _grade(kind: Any, lab: Lab) -> None:
    _check_plain(kind, lab)
    _check_equal(kind, lab)
    _check_on_board(kind, lab)
    _check_again(kind, lab)
    _check_anew(kind, lab)
    _check_clock(kind, lab)
    _check_processes(kind, lab)
    _check_exact(kind, lab)
    _check_boards(kind, lab)
    _check_room(kind, lab)
    _check_size(kind, lab)
    _check_large(kind, lab)
    lab.r.flushdb()
    _check_races(kind, lab)
    _check_crash(kind, lab)


def _check_plain(kind: Any, lab: Lab) -> None:
    told, what, look = (
        _Told(kind, lab),
        "the most points are first, and n at most",
        "REV of ZRANGE; and n - 1",
    )
    told.check(3, "order", "nobody is on the board: []", "what top() gives of a board that is not there")
    for member, points in (("ada", 1), ("bob", 3), ("cyd", 2), ("7", 0), ("ünï {çø}: dé", 5), ("a:b", 4)):
        told.set(member, points)
    for n in (1, 2, 3, 6, 100):
        told.check(n, "order", what, look)
    told.set("ada", 6)
    told.set("bob", 1)
    told.check(3, "order", "points are set anew, be they more or fewer", look)
    told.set("cyd", 7)
    told.check(10, "order", what, look)


def _check_equal(kind: Any, lab: Lab) -> None:
    """Three reach the same points, in any order of their names."""
    found = list[tuple[list[str], list[str]]]()
    stories = list[Story]()
    for names in permutations(("amy", "max", "zoe")):
        told = _Told(kind, lab)
        for member in names:
            told.set(member, 2)
        found.append(([member for member, _ in told.top(3)], list(names)))
        stories.append(told.story)
        if found[-1][0] == list(names):
            told.check(3, "first", "", "")  # the points
    tellers = {"names": "equals are ordered by name", "later": "whoever came later is ahead"}
    tellers["first"] = "whoever was first is to be ahead"
    for story, (order, came) in zip(stories, found, strict=True):
        property = "names" if len({tuple(one) for one, _ in found}) == 1 else "first"
        property = "later" if all(one == names[::-1] for one, names in found) else property
        story.hold(order == came, property, tellers[property], _TICK)
    for n in (1, 2):
        what = f"four have the same points, and top({n}) gives others than the first {n} of top(4)"
        told = _Told(kind, lab)
        for member in ("max", "amy", "zoe", "bob"):
            told.set(member, 2)
        told.check(4, "first", "whoever was first is to be ahead", _TICK)
        told.check(n, "cut", what, "what decides among equals before they are cut off")


def _check_on_board(kind: Any, lab: Lab) -> None:
    """Those who reach the points were on the board before; and some leave it to others."""
    what = "whoever was first is to be ahead"
    for names in permutations(("amy", "max", "zoe")):
        told = _Told(kind, lab)
        for n, member in enumerate(names):
            told.set(member, 10 + n)
        for member in names:
            told.set(member, 2)
        told.check(3, "first", what, _TICK)
        told.set(names[0], 1)
        told.set("kim", 2)
        told.check(4, "first", what, _TICK)
    for key, left in Inside(lab).ends().items():
        told.story.tell(f"PTTL {said(key)} -> {left}")
        told.story.hold(left == -1, "kept", "a board is to stay, and a part of it ends by itself", "EXPIRE")


def _check_again(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    for member in ("max", "amy", "max", "zoe", "max"):
        told.set(member, 2)
    what = "to set the same points again costs nobody the place"
    told.check(3, "again", what, "what set() does where the points are the same as before")


def _check_anew(kind: Any, lab: Lab) -> None:
    """Who leaves the points and comes back has reached them anew; who sinks to them, too."""
    what = "whoever comes to points has reached them then, whatever was before"
    for before in (1, 3):
        told = _Told(kind, lab)
        for member, points in (("max", 2), ("amy", 2), ("zoe", 2), ("max", before), ("max", 2)):
            told.set(member, points)
        told.check(3, "anew", what, "from which change the place among equals counts")
    told = _Told(kind, lab)
    for member, points in (("max", 3), ("zoe", 1), ("amy", 2), ("zoe", 2), ("max", 2)):
        told.set(member, points)
    told.check(3, "anew", what, "from which change the place among equals counts")


def _check_clock(kind: Any, lab: Lab) -> None:
    """Clients whose clocks are wrong by 100 s."""
    for names in (("max", "amy"), ("amy", "max")):
        told = _Told(kind, lab)
        for member, skew in zip(names, (100, -100), strict=True):
            with clocks(skew, kind):
                told.set(member, 2, "")
            told.story.lines[-1] += f" by a clock that is wrong by {skew:+d} s"
        look = "whose clock says who was first: what Redis counts needs none"
        told.check(2, "clock", "whoever was first is to be ahead, whatever the clients' clocks say", look)


def _check_processes(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    for n in range(5):
        told.set(f"early {n}", 1)
    told.set("max", 2)
    for member in ("amy", "zoe"):
        told.set(member, 2, " in another process")
    told.set("bob", 2)
    what = "whoever was first is to be ahead, also of those who come by another process"
    told.check(9, "shared", what, "what is kept in your object, or in a variable: only Redis knows all")


def _check_exact(kind: Any, lab: Lab) -> None:
    """Points are whole numbers, and exact up to the most."""
    told, what = _Told(kind, lab), "the most points are first"
    for n, points in enumerate((MOST, MOST - 1, 1_999_999_998, 123_456_789, 1_073_741_824, 1, 0)):
        told.set(f"m{n}", points)
    told.check(9, "exact", what, _BITS, "exact")
    what = "with so many points it is not the first who is ahead"
    for most in (MOST, 1_999_999_999, 1_073_741_825):
        for names in (("max", "amy", "zoe"), ("zoe", "amy", "max"), ("amy", "zoe", "max")):
            told = _Told(kind, lab)
            for member in names:
                told.set(member, most)
            told.check(9, "precision", what, _BITS, "exact")


def _check_boards(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    other = _Told(kind, lab, empty=False)
    for one, points in ((told, 1), (other, 2), (told, 3)):
        one.set("ada", points)
        one.set("bob", 2)
    for one in (told, other):
        one.check(3, "boards", "a board of another name has its own members", "the names of the keys")


def _check_room(kind: Any, lab: Lab) -> None:
    """As many changes as a board may see: whatever has counted them is set to that."""
    told, inside = _Told(kind, lab), Inside(lab)
    told.set("ada", MOST)
    before = _counters(inside)
    told.set("bob", MOST)
    for at, count in _counters(inside).items():
        if 1 <= abs(step := count - before.get(at, count)) <= 9:
            _count_on(inside, at, count + step * (CHANGES - 10))
            key = said(at[0])
            told.story.tell(f"four million changes later: {key} is {count + step * (CHANGES - 10):,}")
    for n in range(3):
        for member in ("max", "amy", "zoe"):
            told.set(f"{member} {n}", (MOST, 7, MOST - 1)[n])
    for member in ("amy", "max"):
        told.set(member, MOST)
    what = "after four million changes it is not the first who is ahead"
    told.check(12, "room", what, _BITS, "room")


Place = tuple[bytes, bytes]


def _counters(inside: Inside) -> dict[Place, int]:
    """The whole numbers in Redis: key and field, or b"" where it is the key's."""
    found = dict[Place, bytes]()
    for key in inside.keys():  # noqa: SIM118
        words, kind = inside.words(key), inside.r.type(key)
        if kind == b"string":
            found[key, b""] = words[0]
        elif kind == b"hash":
            found |= {(key, field): word for field, word in zip(words[::2], words[1::2], strict=True)}
    return {at: int(word) for at, word in found.items() if word.lstrip(b"-").isdigit()}


def _count_on(inside: Inside, at: Place, count: int) -> None:
    key, field = at
    if field:
        inside.r.hset(key, field, count)
    else:
        inside.r.set(key, count, keepttl=True)


def _check_size(kind: Any, lab: Lab) -> None:
    """Three members go to and fro between the same points: what is in Redis does not grow with that."""
    told, inside, sizes = _Told(kind, lab), Inside(lab), list[int]()
    for n in range(90):
        for member in ("amy", "max", "zoe")[:: (-1, 1)[n % 2]]:
            told.set(member, 7 + n % 2)
        sizes.append(inside.size())
        told.story.lines[:-12] = ["three members go to and fro between 7 and 8 points"]
        told.check(3, "first", "whoever was first is to be ahead", _TICK)
    told.story.tell(f"keys and elements in Redis: {sizes[9]} after 30 changes, {sizes[-1]} after 270")
    what = "what is in Redis grows with every change, and there are three members"
    told.story.hold(sizes[-1] <= sizes[9] + 3, "grows", what, "what nobody needs any more")


def _check_large(kind: Any, lab: Lab) -> None:
    """Of a board of a thousand, top(3) reads what it gives; its order is right throughout."""
    told = _Told(kind, lab)
    for i in range(1000):
        told.set(f"player:{i * 577 % 1000}", i * 311 % 20)
    told.story.lines = ["a board of 1,000 members"]
    for n in (3, 1000):
        found = [(member, points) for member, points in told.board.top(n)]
        same, what = found == told.rows(n), f"top({n}) of a thousand is not what it should be"
        told.story.hold(same, "order", what, _TICK)
    check_frugal(told.story, lab, lambda: told.board.top(3), 3, "what is ordered by Redis, and what by you")


def _sets_and_looks(kind: Any, member: str) -> Callable[[Any], Any]:
    def actor(r: Any) -> list[str]:
        board = kind(r, "board")
        board.set(member, 50)
        return [who for who, _ in board.top(10)]

    return actor


SAYS = {"": ("race", "what others may do between two of your commands: a script, or WATCH, is one step")}


def _check_races(kind: Any, lab: Lab) -> None:
    """What a client sees right after its own set() holds: nobody passes anybody among equals."""

    def rule(r: Any, results: list[Any]) -> None:
        board = [who for who, _ in kind(r, "board").top(10)]
        assert sorted(board) == ["ada", "bob"], (
            f"ada and bob are to be on the board, once, and it has {board}"
        )
        for seen in filter(None, results):
            first = seen[0]
            assert board[0] == first, (
                f"{first} had 50 points first, as top() said then, and in the end {board[0]} is ahead"
            )

    ada, bob = _sets_and_looks(kind, "ada"), _sets_and_looks(kind, "bob")
    cast = "A: set('ada', 50), top(10). B: set('bob', 50), top(10)"
    explore_stream(lab, [ada, bob], cast, SAYS, None, invariant=rule)

    def again(r: Any) -> None:
        kind(r, "board").set("ada", 50)

    cast = "A and B: set('ada', 50). C: set('bob', 50), top(10)"
    explore_stream(lab, [again, again, bob], cast, SAYS, None, invariant=rule, max_switches=3)

    def once(r: Any) -> None:
        found = kind(r, "board").top(10)
        assert [who for who, _ in found] == ["ada"], f"ada is to be on the board, once, and it has {found}"
        assert found[0][1] in (10, 20), f"ada has 10 or 20 points, and top() says {found[0][1]}"

    actors = [lambda r: kind(r, "board").set("ada", 10), lambda r: kind(r, "board").set("ada", 20)]
    explore_stream(lab, actors, "A: set('ada', 10). B: set('ada', 20)", SAYS, None, invariant=once)


def _check_crash(kind: Any, lab: Lab) -> None:
    def setup(r: Any) -> None:
        kind(r, "board").set("ada", 50)
        kind(r, "board").set("bob", 55)

    def rule(r: Any) -> None:
        found = [(who, points) for who, points in kind(r, "board").top(10)]
        valid = [("bob", 55), ("ada", 50)], [("ada", 60), ("bob", 55)]
        assert found in valid, f"ada is to have 50 points, or 60, and bob 55; the board is {found}"

    says = {"": ("crash", "what stands there if it ends after each of your commands")}
    cast = "ada has 50 points, bob 55. A: set('ada', 60); it may crash"
    actors = [lambda r: kind(r, "board").set("ada", 60)]
    explore_stream(lab, actors, cast, says, setup, invariant=rule, faults=[crash])


EXERCISE = Exercise(
    stem="leaderboard",
    name="ties",
    title="Whoever was first is ahead, and points stay exact",
    statement="""
A sorted set orders equals by their names. Write a board on which, among equals, whoever reached the points
first is ahead.

- `set(member, points)` says how many points the member has now: a whole number from 0 to 2,000,000,000, be
  it more or less than before.
- `top(n)` gives the first `n` (one at least) as a list of `(member, points)`; the points are ints, and exact.
- To set the points that a member has already changes nothing. Whoever leaves points and comes back to them
  has reached them anew.
- A board sees up to four million changes. Many processes use it at once, and no client's clock counts.
- A crash leaves the board as it was before a `set`, or as it is after it.
- `top` reads no more of the board than it gives. Boards of other names know nothing of each other. How
  you lay it out is yours; nothing of it ends by itself, and no change adds to the memory that it takes.
""".strip(),
    answer="MyBoard",
    stub=STUB.strip(),
    hints=(
        "Equals need something that tells them apart: the number of the change in which each came. Redis "
        "can count changes (INCR), and a script makes one step of counting and writing.",
        "A score is a double: 53 bits. 2,000,000,000 takes 31 of them. How many changes fit in the rest?",
        "points - tick / 2^22: later is lower, and 22 bits are 4,194,304 ticks. Which rounding gives the "
        "points back, even for the last tick?",
        "In the script: if ZSCORE, rounded up, is what is to be set, return. Else INCR the ticks, and ZADD.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=60,
)
