"""Chapter 09, exercise around: a member with those ahead and behind, in one round trip, at any size."""

from __future__ import annotations

from typing import Any

from labkit.rig.connection import may_write
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.leaderboard.grading import check_frugal, overheard
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.exercises.stream.grading import explore_stream
from labkit.teach.lab import Lab

STUB = '''
def around(r, board, member, n):
    """The member with n on either side: [(rank, member, points), …], the best first. Not there: []."""
    raise NotImplementedError
'''

REFERENCE = '''
# KEYS: board. ARGV: member, n. How many are ahead of the first, then members with their scores; or nil.
AROUND = """
local ahead = redis.call('ZREVRANK', KEYS[1], ARGV[1])
if not ahead then return nil end
local first = math.max(ahead - ARGV[2], 0)
return {first, redis.call('ZRANGE', KEYS[1], first, ahead + ARGV[2], 'REV', 'WITHSCORES')}
"""

def around(r, board, member, n):
    """The member with n on either side: [(rank, member, points), …], the best first. Not there: []."""
    reply = r.eval(AROUND, 1, board, member, n)
    if reply is None:
        return []
    first, found = reply
    pairs = zip(found[::2], found[1::2])
    return [(rank, who, int(points)) for rank, (who, points) in enumerate(pairs, first + 1)]
'''

_AHEAD = "local ahead = redis.call('ZREVRANK', KEYS[1], ARGV[1])"
_ABSENT = "if not ahead then return nil end"
_FIRST = "local first = math.max(ahead - ARGV[2], 0)"
_RANGE = "redis.call('ZRANGE', KEYS[1], first, ahead + ARGV[2], 'REV', 'WITHSCORES')"
_BODY = REFERENCE[REFERENCE.index("    reply = r.eval") :]


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


def _body(*lines: str) -> tuple[str, str]:
    """The reference, but with these lines."""
    return _BODY, "".join(f"    {line}\n" for line in lines)


_ROWS = "return [(rank, who, int(points)) for rank, (who, points) in enumerate(found, first + 1)]"
_PAIRS = "found = r.zrange(board, first, ahead + n, desc=True, withscores=True)"

WRONG = (
    _wrong(
        "first",
        "gives ZREVRANK as it is: it counts who is ahead, so the best is number 0",
        ("first + 1)", "first)"),
    ),
    _wrong(
        "fetch",
        "fetches the whole board to find one rank",
        _body(
            "found = r.zrange(board, 0, -1, desc=True, withscores=True)",
            "names = [who for who, _ in found]",
            "if member not in names:",
            "    return []",
            "ahead = names.index(member)",
            "first = max(ahead - n, 0)",
            "found = found[first : ahead + n + 1]",
            _ROWS,
        ),
    ),
    _wrong(
        "fetch",
        "reads the whole board in a script: the server does it while all others wait",
        (
            f"{_AHEAD}\n{_ABSENT}",
            "local ahead\n"
            "for at, who in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1, 'REV')) do\n"
            "    if who == ARGV[1] then ahead = at - 1 end\n"
            f"end\n{_ABSENT}",
        ),
    ),
    _wrong(
        "fetch",
        "fetches all who are ahead, for the sake of n of them",
        (_RANGE, _RANGE.replace("first,", "0,")),
        ("first, found = reply", "first, found = reply\n    found = found[2 * first :]"),
    ),
    _wrong(
        "race",
        "two round trips: in between somebody has overtaken",
        _body(
            "ahead = r.zrevrank(board, member)",
            "if ahead is None:",
            "    return []",
            "first = max(ahead - n, 0)",
            _PAIRS,
            _ROWS,
        ),
    ),
    _wrong(
        "trips",
        "WATCH: right, and four round trips",
        _body(
            "import redis",
            "while True:",
            "    with r.pipeline() as pipe:",
            "        try:",
            "            pipe.watch(board)",
            "            ahead = pipe.zrevrank(board, member)",
            "            if ahead is None:",
            "                return []",
            "            first = max(ahead - n, 0)",
            "            pipe.multi()",
            f"            {_PAIRS.replace('found = r', 'pipe')}",
            "            found = pipe.execute()[0]",
            f"            {_ROWS}",
            "        except redis.WatchError:",
            "            continue",
        ),
    ),
    _wrong(
        "order",
        "ZRANK counts from the last: the worst are first",
        (_AHEAD, _AHEAD.replace("ZREVRANK", "ZRANK")),
        (", 'REV'", ""),
    ),
    _wrong(
        "top",
        "a negative index counts from the end: nothing near the top",
        (_FIRST, "local first = ahead - ARGV[2]"),
    ),
    _wrong(
        "top",
        "always 2n + 1: near the top too many behind",
        ("ahead + ARGV[2], 'REV'", "first + 2 * ARGV[2], 'REV'"),
    ),
    _wrong(
        "bottom",
        "always 2n + 1: near the end too many ahead",
        (
            _FIRST,
            "local last = redis.call('ZCARD', KEYS[1]) - 1 - 2 * ARGV[2]\n"
            "local first = math.max(math.min(ahead - ARGV[2], last), 0)",
        ),
    ),
    _wrong(
        "side", "the last index counts, too: one too few behind", ("ahead + ARGV[2],", "ahead + ARGV[2] - 1,")
    ),
    _wrong("absent", "who is not on the board is taken for the first", (_ABSENT, "ahead = ahead or 0")),
    _wrong(
        "absent",
        "None for who is not there: a loop over the answer fails",
        ("        return []", "        return None"),
    ),
    _wrong(
        "ties",
        "counts only who has more points: the window is around the first of the equals, not the member",
        (
            "return {first, ",
            "local points = redis.call('ZSCORE', KEYS[1], ARGV[1])\n"
            "ahead = redis.call('ZCOUNT', KEYS[1], '(' .. points, '+inf')\n"
            "first = math.max(ahead - ARGV[2], 0)\n"
            "return {first, ",
        ),
    ),
    _wrong(
        "ties",
        "sorts equals by name, as people do: they are not in the board's order any more",
        (
            "    pairs = zip(found[::2], found[1::2])",
            "    pairs = sorted(zip(found[::2], found[1::2]), key=lambda p: (-int(p[1]), p[0]))",
        ),
    ),
    _wrong(
        "answer",
        'points as they come out of a script: text, so "90" is greater than "100"',
        ("int(points)", "points"),
    ),
)

_SIDES = "where your range begins and ends: both indexes are inclusive"
_SCRIPT = "how the rank, and the range that depends on it, get into one step: a script"


class _Told:
    """A board, and a story."""

    def __init__(self, fn: Any, lab: Lab, points: dict[str, int], *before: str) -> None:
        lab.r.flushdb()
        self.r: Any = lab.r
        self.fn, self.board = fn, lab.key("board")
        if points:
            self.r.zadd(self.board, points)
        shown = ", ".join(f"{who!r} {has}" for who, has in list(points.items())[:9])
        self.story = Story(*before or (f"the board: {shown or 'nobody'}",))
        self.rows = rows(points)

    def ask(self, member: str, n: int, property: str, message: str, look: str) -> None:
        """around() gives what it should; if not, `property` and `message` say what is wrong."""
        hold = self.story.hold
        found = self.fn(self.r, self.board, member, n)
        self.story.tell(f"around(r, board, {member!r}, {n}) -> {_shown(found)}")
        expected = around(self.rows, member, n)
        if expected and found is not None:
            _check_rows(self.story, found)
            found = [tuple(row) for row in found]
            below = [(rank - 1, who, points) for rank, who, points in expected]
            hold(
                found != below or property == "old",
                "first",
                "the first has rank 1, not 0",
                "what ZREVRANK counts: who is ahead",
            )
            back = [who for _, who, _ in reversed(expected)]
            what = "the best are to come first"
            backwards = expected[0][2] > expected[-1][2] and [who for _, who, _ in found] == back
            hold(not backwards, "order", what, "which end ZRANK and ZREVRANK count from, and REV of ZRANGE")
        if found != expected:
            self.story.tell(f"asked for: {_shown(expected)}")
        hold(found == expected, property, message, look)


Row = tuple[int, str, int]


def rows(points: dict[str, int]) -> list[Row]:
    """Everybody, in the order of ZRANGE … REV."""
    order = sorted(points.items(), key=lambda pair: (pair[1], pair[0].encode()), reverse=True)
    return [(rank, who, has) for rank, (who, has) in enumerate(order, 1)]


def around(everybody: list[Row], member: str, n: int) -> list[Row]:
    at = (
        [who for _, who, _ in everybody].index(member) if member in {who for _, who, _ in everybody} else None
    )
    return [] if at is None else everybody[max(at - n, 0) : at + n + 1]


def _shown(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 400 else f"{text[:400]}…"


def _check_rows(story: Story, found: Any) -> None:
    look = "what you return: [(rank, member, points), …], ranks and points as ints"
    story.hold(isinstance(found, list), "answer", f"around() gives {type(found).__name__}: a list", look)
    for row in found:
        three = isinstance(row, tuple | list) and len(row) == 3
        story.hold(three, "answer", f"{row!r} is not (rank, member, points)", look)
        typed = [type(row[0]), type(row[2])] == [int, int] and isinstance(row[1], str)
        story.hold(typed, "answer", f"{row!r} is not a whole number, text, and a whole number", look)


def _grade(fn: Any, lab: Lab) -> None:
    _check_middle(fn, lab)
    _check_ends(fn, lab)
    _check_absent(fn, lab)
    _check_ties(fn, lab)
    _check_points(fn, lab)
    _check_moves(fn, lab)
    lab.r.flushdb()
    _check_race(fn, lab)
    _check_large(fn, lab)


SMALL = {"ada": 90, "bob": 80, "cyd": 70, "dan": 60, "eve": 50, "fay": 40, "gus": 30}


def _check_middle(fn: Any, lab: Lab) -> None:
    told, what = _Told(fn, lab, SMALL), "it is to give the member, with {} on either side"
    for n in (1, 2, 3):
        told.ask("dan", n, "side", what.format(n), _SIDES)
    told.ask("dan", 0, "side", "n is 0: the member alone", _SIDES)


def _check_ends(fn: Any, lab: Lab) -> None:
    """At the top fewer are ahead, at the bottom fewer behind."""
    told = _Told(fn, lab, SMALL)
    for member, n in (("ada", 1), ("ada", 2), ("bob", 2), ("bob", 3), ("ada", 0)):
        what = f"near the top fewer are ahead, and still {n} behind"
        told.ask(member, n, "top", what, "what a negative index means, and where your range ends")
    for member, n in (("gus", 1), ("gus", 2), ("fay", 2), ("fay", 3), ("gus", 0)):
        what = f"near the end fewer are behind, and still {n} ahead"
        told.ask(member, n, "bottom", what, _SIDES)
    for member in ("ada", "dan", "gus"):
        told.ask(member, 100, "side", "n is more than there are: everybody", _SIDES)
    one = _Told(fn, lab, {"ada": 7})
    one.ask("ada", 2, "side", "ada is alone", _SIDES)


def _check_absent(fn: Any, lab: Lab) -> None:
    look = "what ZREVRANK gives for who is not there"
    for points in (SMALL, {}):
        told = _Told(fn, lab, points)
        for member in ("zoe", "Ada", "ad", ""):
            told.ask(member, 2, "absent", f"{member!r} is not on the board: []", look)


def _check_ties(fn: Any, lab: Lab) -> None:
    """Equals stand in the order of ZRANGE … REV, each with a rank of its own."""
    what = "equals are in the order of ZRANGE … REV, and each has a rank of its own"
    names = ("ada", "bob", "cyd", "dan", "eve")
    tied = dict.fromkeys(names, 50)
    for points in (tied, {"top": 60, **tied, "end": 40}):
        told = _Told(fn, lab, points)
        for member in points:
            for n in (0, 1, 2):
                told.ask(member, n, "ties", what, "what counts those ahead: ZREVRANK, or only who has more")


def _check_points(fn: Any, lab: Lab) -> None:
    """Points and names of any kind."""
    points = {"ünï {çø} dé": 2**53 - 1, "7": 1_234_567_890_123, "a b": 0, "-1": -5, "+inf": -(10**12)}
    told = _Told(fn, lab, points)
    for member in points:
        told.ask(member, 1, "points", "names and points are given as they are", "what becomes of each reply")


def _check_moves(fn: Any, lab: Lab) -> None:
    """Between two questions somebody moves."""
    points = dict(SMALL)
    told, what = _Told(fn, lab, points), "the board has changed since, and this is what it was before"
    for member, has in (("gus", 95), ("dan", 5), ("bob", 91), ("ada", 1)):
        told.ask("dan", 1, "old", what, "what is kept in a variable: only Redis knows the board")
        told.r.zadd(told.board, {member: has})
        told.story.tell(f"ZADD board {has} {member}")
        points[member] = has
        told.rows = rows(points)
    told.ask("dan", 1, "old", what, "what is kept in a variable: only Redis knows the board")


def _check_race(fn: Any, lab: Lab) -> None:
    """Somebody comes to the top, or the member goes, while around() is at work."""
    five = {who: SMALL[who] for who in list(SMALL)[:5]}
    less = {who: has for who, has in five.items() if who != "cyd"}
    moves: list[tuple[str, Any, dict[str, int]]] = [
        ("ZADD board 95 eve", lambda r: r.zadd("board", {"eve": 95}), five | {"eve": 95}),
        ("ZADD board 10 ada", lambda r: r.zadd("board", {"ada": 10}), five | {"ada": 10}),
        ("ZADD board 85 cyd", lambda r: r.zadd("board", {"cyd": 85}), five | {"cyd": 85}),
        ("ZREM board cyd", lambda r: r.zrem("board", "cyd"), less),
    ]
    shown = ", ".join(f"{who} {has}" for who, has in five.items())
    for said, move, after in moves:
        valid = [around(rows(points), "cyd", 1) for points in (five, after)]

        def rule(r: Any, results: list[Any], valid: list[list[Row]] = valid) -> None:
            found = [tuple(row) for row in results[0]]
            before, then = valid
            assert found in valid, (
                f"the board was never like this: {found}; before it was {before}, then {then}"
            )

        def setup(r: Any) -> None:
            r.zadd("board", five)

        cast = f"the board: {shown}. A: around(r, board, 'cyd', 1). B: {said}"
        says = {"never like this": ("race", _SCRIPT)}
        actors = [lambda r: fn(r, "board", "cyd", 1), move]
        explore_stream(lab, actors, cast, says, setup, invariant=rule)


LARGE = 5_000


def _check_large(fn: Any, lab: Lab) -> None:
    """Of a large board only the members that are asked for are read, in one round trip."""
    points = {f"player:{i}": 10 * i for i in range(LARGE)}
    told = _Told(fn, lab, points, f"a board of {LARGE:,} members")
    member, rows, look = f"player:{LARGE // 2}", 5, "ZREVRANK: it finds a rank in O(log n) steps"
    told.ask(member, 2, "side", "it is to give the member, with 2 on either side", _SIDES)
    told.ask("player:4711", 300, "side", "it is to give the member, with 300 on either side", _SIDES)
    told = _Told(fn, lab, points, f"a board of {LARGE:,} members")
    check_frugal(told.story, lab, lambda: fn(told.r, told.board, member, 2), rows, look)
    for who in (member, "nobody", "player:0"):
        fn(told.r, told.board, who, 2)
        with lab.tap() as tape:
            fn(told.r, told.board, who, 2)
        shown = ", ".join(one.command[0] for one in tape.commands)
        told.story.tell(f"around(r, board, {who!r}, 2): round trips {tape.round_trips} ({shown})")
        what = f"it takes {tape.round_trips} round trips, and one is asked for"
        told.story.hold(tape.round_trips <= 1, "trips", what, _SCRIPT)
    with overheard(lab) as heard:
        fn(told.r, told.board, member, 2)
    for script, words in heard:
        writes = (script or not words[0].upper().startswith(("EVAL", "FCALL"))) and may_write(
            told.r, words[0]
        )
        what = f"{words[0].upper()} writes, and around() is only to read"
        told.story.hold(not writes, "writes", what, "what your commands change")


EXERCISE = Exercise(
    stem="leaderboard",
    name="around",
    title="Around me, in one round trip",
    statement="""
Players look at their own place more often than at the top ten. `board` is a sorted set whose scores are
whole numbers below 2^53. Write `around`:

- It gives the member with `n` on either side, as a list of `(rank, member, points)`, the best first. Rank 1
  is the best; `rank` and `points` are ints.
- At the top fewer are ahead, at the end fewer are behind; those on the other side are still `n`.
- Equals stand in the order of `ZRANGE … REV`, each with a rank of its own.
- A member who is not on the board, or a board that is not there: `[]`.
- What it gives is the board at one moment, whoever else moves.
- It takes one round trip, reads no more of the board than it gives, and writes nothing.
""".strip(),
    answer="around",
    stub=STUB.strip(),
    hints=(
        "ZREVRANK says how many are ahead. What range begins n before that, and ends n after it?",
        "The range depends on the rank. In two round trips somebody may come in between. What lets the "
        "server use the reply of one command for the next?",
        "A script: ZREVRANK, then ZRANGE … REV WITHSCORES from math.max(ahead - ARGV[2], 0) to "
        "ahead + ARGV[2]. It must also give where the range begins: ranks follow from that.",
        "Where ZREVRANK finds nobody, a script has false: return nil, which is None for redis-py. Scores "
        "come out of a script as text.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
