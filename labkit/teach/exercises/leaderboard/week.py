"""Chapter 09, exercise week: boards of days that end by themselves, and totals over them at one moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redis.crc import key_slot

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.leaderboard.grading import (
    DAY,
    check_frugal,
    check_pairs,
    keys_of,
    overheard,
    undeclared,
)
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.exercises.session.grading import (
    Inside,
    assert_mortal,
    elsewhere,
    no_scan,
    said,
    system_chance,
)
from labkit.teach.exercises.stream.grading import asked, explore_stream
from labkit.teach.lab import Lab

STUB = '''
class MyWeek:
    """A board for each day, and totals over several of them."""

    def __init__(self, r, name):
        raise NotImplementedError

    def add(self, day, member, points):
        """Add to the points that the member has on that day, a text such as "2025-03-01"."""
        raise NotImplementedError

    def top(self, days, n):
        """The first n in the sum of these days: [(member, points), …]."""
        raise NotImplementedError
'''

REFERENCE = '''
class MyWeek:
    """A sorted set for each day. Braces around the name: all of it is in one slot of a cluster."""

    def __init__(self, r, name):
        self.r, self.name = r, f"{{{name}}}"

    def add(self, day, member, points):
        """Add to the points that the member has on that day, a text such as "2025-03-01"."""
        with self.r.pipeline() as pipe:
            pipe.zincrby(f"{self.name}:{day}", points, member)
            pipe.expire(f"{self.name}:{day}", 8 * 86_400)
            pipe.execute()

    def top(self, days, n):
        """The first n in the sum of these days: [(member, points), …]."""
        total = f"{self.name}:total"
        with self.r.pipeline() as pipe:
            pipe.zunionstore(total, [f"{self.name}:{day}" for day in days])
            pipe.expire(total, 60)
            pipe.zrange(total, 0, n - 1, desc=True, withscores=True)
            *_, found = pipe.execute()
        return [(member, int(points)) for member, points in found]
'''

_ADD = REFERENCE[REFERENCE.index("        with self.r") : REFERENCE.index("    def top")]
_TOP = REFERENCE[REFERENCE.index("        total = ") :]
_NAME = 'f"{{{name}}}"'
_UNION = 'pipe.zunionstore(total, [f"{self.name}:{day}" for day in days])'
_EXPIRE_DAY = '            pipe.expire(f"{self.name}:{day}", 8 * 86_400)\n'
_EXPIRE_TOTAL = "            pipe.expire(total, 60)\n"
_ROWS = "return [(member, int(points)) for member, points in found]"


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


def _adds(*lines: str) -> tuple[str, str]:
    return _ADD, "".join(f"        {line}\n" for line in lines) + "\n"


def _tops(*lines: str) -> tuple[str, str]:
    return _TOP, "".join(f"        {line}\n" for line in lines)


_SUMS = (
    "from collections import Counter",
    "total = Counter()",
    "for day in days:",
    "    total.update(dict(self.r.zrange(f'{self.name}:{day}', 0, -1, withscores=True)))",
    "return [(member, int(points)) for member, points in total.most_common(n)]",
)

WRONG = (
    _wrong("ttl", "no TTL: the board of every day stays for ever", (_EXPIRE_DAY, "")),
    _wrong(
        "ttl",
        "NX: it ends eight days after the first game, not the last",
        ("8 * 86_400)", "8 * 86_400, nx=True)"),
    ),
    _wrong("total", "the total has no TTL: if nobody asks again, it stays for ever", (_EXPIRE_TOTAL, "")),
    _wrong(
        "total",
        "the total stays for a week: what is stored on the way is to end within an hour",
        ("(total, 60)", "(total, 7 * 86_400)"),
    ),
    _wrong(
        "scan",
        "KEYS, to find the days that are there: it goes through all keys of the server",
        (
            _UNION,
            "pipe.zunionstore(total, [k for k in self.r.keys(f'{self.name}:*') if k.split(':')[-1] in days]"
            " or [total + ':none'])",
        ),
    ),
    _wrong(
        "race",
        "reads day after day: points that come between two of these reads are in one and not the other",
        _tops(*_SUMS),
    ),
    _wrong(
        "race",
        "stores the total, and reads it in a second step: another total may have come in between",
        _tops(
            'total = f"{self.name}:total"',
            "with self.r.pipeline() as pipe:",
            f"    {_UNION}",
            "    pipe.expire(total, 60).execute()",
            "found = self.r.zrange(total, 0, n - 1, desc=True, withscores=True)",
            _ROWS,
        ),
    ),
    _wrong(
        "race",
        "reads the points of the day, adds, and writes: who adds in between is overwritten",
        (
            '            pipe.zincrby(f"{self.name}:{day}", points, member)\n',
            '            had = self.r.zscore(f"{self.name}:{day}", member) or 0\n'
            '            pipe.zadd(f"{self.name}:{day}", {member: had + points})\n',
        ),
    ),
    _wrong(
        "fetch",
        "fetches all days, or their union, and throws away all but three rows",
        _tops(
            'found = self.r.zunion([f"{self.name}:{day}" for day in days], withscores=True)',
            "found.sort(key=lambda row: -row[1])",
            _ROWS.replace("in found", "in found[:n]"),
        ),
    ),
    _wrong(
        "sum",
        "AGGREGATE MAX: the best day in place of the sum",
        (_UNION, _UNION.replace("days])", 'days], "MAX")')),
    ),
    _wrong(
        "sum",
        "the old total is one of the boards that are added up: it grows with each question",
        (_UNION, _UNION.replace("(total, [", "(total, [total, *[").replace("days])", "days]])")),
    ),
    _wrong("slot", "no hash tag: in a cluster the days are on different nodes", (_NAME, "name")),
    _wrong(
        "slot",
        "a hash tag around the day: each day is in another slot",
        (_NAME, "name"),
        ("{day}", "{{{day}}}"),
    ),
    _wrong("spread", "one hash tag for all names: everything is on one node", (_NAME, 'f"{{week}}:{name}"')),
    _wrong(
        "missing",
        "gives nothing if one day is empty: days without a game are usual",
        (
            '        total = f"',
            '        if self.r.exists(*(f"{self.name}:{day}" for day in days)) < len(days):\n'
            '            return []\n        total = f"',
        ),
    ),
    _wrong(
        "old",
        "keeps a total that is there: what came since is not in it",
        ('        total = f"{self.name}:total"\n', '        total = f"{self.name}:total:{days}"\n'),
        (f"            {_UNION}\n", f"            if not self.r.exists(total):\n                {_UNION}\n"),
    ),
    _wrong(
        "crash",
        "EXPIRE after the points: a crash in between leaves a board for ever",
        _adds(
            'self.r.zincrby(f"{self.name}:{day}", points, member)',
            'self.r.expire(f"{self.name}:{day}", 8 * 86_400)',
        ),
    ),
    _wrong("answer", "gives what ZRANGE gives, floats: 120.0 in place of 120", ("int(points)", "points")),
)

MON, TUE, WED, THU = (f"2025-03-0{n}" for n in (3, 4, 5, 6))
WEEK = [f"2025-03-0{n}" for n in range(3, 10)]
EIGHT_DAYS = 8 * DAY
GAME = "weekly:game"
_SUM = "ZUNIONSTORE adds up; a key that is not there counts as an empty board"
_STEP = "what others may do between two of your commands: what is in one MULTI, or script, is one step"


class _Told:
    """A week, in two processes, and a story."""

    def __init__(self, kind: Any, lab: Lab, empty: bool = True) -> None:
        if empty:
            lab.r.flushdb()
        self.story, self.turn = Story(), 0
        self.name = lab.key("game")
        self.name += self.name.split(":")[2]  # names differ also after the last colon
        self.weeks = kind(lab.r, self.name), elsewhere(kind)(lab.client(), self.name)
        asked(self.story, self.weeks[0], ("add", "top"), "MyWeek")
        self.points = dict[str, dict[str, int]]()

    def add(self, day: str, member: str, points: int) -> None:
        """Now by one process, now by the other."""
        self.turn += 1
        self.weeks[self.turn % 2].add(day, member, points)
        on = self.points.setdefault(day, {})
        on[member] = on.get(member, 0) + points
        self.story.tell(f"add({day!r}, {member!r}, {points})")

    def rows(self, days: list[str], n: int) -> list[tuple[str, int]]:
        total = dict[str, int]()
        for day in days:
            for member, points in self.points.get(day, {}).items():
                total[member] = total.get(member, 0) + points
        return sorted(total.items(), key=lambda row: -row[1])[:n]

    def check(self, days: list[str], n: int, property: str, message: str, look: str) -> None:
        self.turn += 1
        found = self.weeks[self.turn % 2].top(list(days), n)
        self.story.tell(f"top({_days(days)}, {n}) -> {found!r}")
        check_pairs(self.story, found, "top()")
        rows = self.rows(days, n)
        if (found := [(member, points) for member, points in found]) != rows:
            self.story.tell(f"asked for: {rows!r}")
        self.story.hold(found == rows, property, message, look)


def _days(days: list[str]) -> str:
    return repr(days) if len(days) <= 3 else f"[{days[0]!r}, …, {days[-1]!r}]"


def _grade(kind: Any, lab: Lab) -> None:
    _check_sums(kind, lab)
    _check_missing(kind, lab)
    _check_fresh(kind, lab)
    _check_names(kind, lab)
    _check_days_end(kind, lab)
    _check_totals_end(kind, lab)
    _check_slots(kind, lab)
    lab.r.flushdb()
    with _same_chance(kind, lab) as explored:
        _check_race(kind, explored)
        _check_crash(kind, lab, explored)
    _check_large(kind, lab)


def _check_sums(kind: Any, lab: Lab) -> None:
    told, what = _Told(kind, lab), "the total is the sum of these days, and of no others"
    games = [(MON, "ada", 10), (MON, "bob", 7), (TUE, "bob", 8), (TUE, "cyd", 12), (MON, "ada", 1)]
    for day, member, points in (*games, (WED, "ada", 100), (WED, "ünï: dé", 3), (THU, "7", 1_000_000_007)):
        told.add(day, member, points)
    for days in ([MON], [TUE], [MON, TUE], [TUE, WED], [MON, WED], [TUE, MON], [MON, TUE, WED, THU], [MON]):
        told.check(days, 10, "sum", what, _SUM)
        told.check(days, 10, "sum", "asked again, the total is the same", "what the total is made of")
    for n in (1, 2, 3):
        told.check([MON, TUE, WED], n, "sum", "the most points are first, and n at most", "REV of ZRANGE")


def _check_missing(kind: Any, lab: Lab) -> None:
    """Days on which nobody played count as empty."""
    told, what = _Told(kind, lab), "a day on which nobody played counts as empty"
    inside, scanned = Inside(lab), _Scanned()
    scanned.lines = told.story.lines
    with no_scan(scanned, inside):
        told.check(WEEK, 3, "missing", what, _SUM)
        told.add(TUE, "ada", 10)
        told.add(THU, "bob", 7)
        for days in (WEEK, [MON, TUE], [TUE, WED], [MON], [MON, WED], [THU], WEEK):
            told.check(days, 3, "missing", what, _SUM)


class _Scanned(Story):
    """What `no_scan` says, in the words of this chapter."""

    def hold(self, held: Any, property: str, message: str, look_at: str) -> None:
        if not held:
            what = f"{message.partition(' goes')[0]} goes through every key of the server, to find a few days"
            look = "what is known: the days are given, and with them the names of their keys"
            raise Failure(property, what, "\n".join(self.lines), look)


def _check_fresh(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    told.add(MON, "ada", 10)
    for points in (5, 7, 20):
        told.check(
            [MON, TUE], 3, "old", "the total is as old as the one before", "when the total is made anew"
        )
        told.add(MON, "bob", points)
        told.add(TUE, "cyd", points + 1)
    told.check([MON, TUE], 3, "old", "the total is as old as the one before", "when the total is made anew")


def _check_names(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    other = _Told(kind, lab, empty=False)
    told.add(MON, "ada", 10)
    other.add(MON, "bob", 7)
    for one in (told, other, told):
        one.check([MON], 3, "names", "boards of another name have their own members", "the names of the keys")


def _check_days_end(kind: Any, lab: Lab) -> None:
    """The board of a day ends eight days after its last change."""
    told, inside, since = _Told(kind, lab), Inside(lab), time.monotonic()
    told.add(MON, "ada", 10)
    _check_ends(told, inside, since)
    for days in (1, 6):
        inside.later(days * DAY * 1000)
        told.story.tell(f"{days} day{'s' * (days > 1)} later:")
        since = time.monotonic()
        told.add(MON, "bob", 7)
        _check_ends(told, inside, since)
    told.check([MON], 3, "ttl", "the board has lost what was on it", "what EXPIRE counts from")


def _check_ends(told: _Told, inside: Inside, since: float) -> None:
    ends, look = inside.ends(), "EXPIRE, which counts seconds, on every path"
    told.story.hold(ends, "shared", "Redis holds nothing: others know nothing of it", "what `r` is for")
    least = (EIGHT_DAYS - (time.monotonic() - since)) * 1000 - 1000
    for key, left in ends.items():
        told.story.tell(f"PTTL {said(key)} -> {left}")
        what = "a board of a day is to end 8 days after its last change, and it "
        what += "never ends" if left == -1 else f"ends in {left / 1000 / DAY:.2f} days"
        told.story.hold(least <= left <= EIGHT_DAYS * 1000 + 1, "ttl", what, look)


def _check_totals_end(kind: Any, lab: Lab) -> None:
    """What top() leaves behind ends within an hour; the boards of the days stay as they are."""
    told, inside = _Told(kind, lab), Inside(lab)
    for day in (MON, TUE, WED):
        told.add(day, "ada", 10)
        told.add(day, "bob", 7)
    inside.later(DAY * 1000)
    told.story.tell("a day later:")
    before = inside.ends()
    for days in ([MON, TUE], [TUE, WED], WEEK):
        told.check(days, 3, "sum", "the total is the sum of these days", _SUM)
    for key, left in inside.ends().items():
        if key in before:
            continue
        told.story.tell(f"PTTL {said(key)} -> {left}")
        what = "what top() has stored is to end within an hour, and it "
        what += "never ends" if left == -1 else f"ends in {left / 1000:,.0f} s"
        told.story.hold(0 <= left <= 3_600_000, "total", what, "EXPIRE of the total")
    renewed = [key for key, left in before.items() if inside.ends().get(key, 0) > left]
    what = "top() changes nothing, and a board of a day lasts longer now"
    told.story.hold(not renewed, "ttl", what, "which keys you EXPIRE in top()")
    gone = before.keys() - inside.ends().keys()
    told.story.hold(not gone, "kept", f"top() has removed {', '.join(map(said, gone))}", "what you delete")


def _check_slots(kind: Any, lab: Lab) -> None:
    """All keys of one name are in one slot, those of different names are not."""
    slots = set[int]()
    for _ in range(6):
        told = _Told(kind, lab)
        told.add(MON, "ada", 10)
        with overheard(lab) as heard:
            told.add(TUE, "ada", 10)
            told.check([MON, TUE, WED], 3, "sum", "the total is the sum of these days", _SUM)
            told.check([WED, TUE, MON], 3, "sum", "the total is the sum of these days", _SUM)
        others = ", ".join(sorted(undeclared(lab.r, heard)))
        what = f"a cluster runs a script where its KEYS are, and this one uses others: {others}"
        told.story.hold(not others, "slot", what, "the keys that you give to the script, and how many")
        named = set().union(*(keys_of(lab.r, words) for _, words in heard))
        own = {key: key_slot(key.encode()) for key in sorted(named)}
        told.story.lines += [f"CLUSTER KEYSLOT {key} -> {slot}" for key, slot in own.items()]
        what = "in a cluster ZUNIONSTORE would be refused (CROSSSLOT): the keys are in different slots"
        told.story.hold(len(set(own.values())) == 1, "slot", what, "a hash tag: only what is in {…} counts")
        slots |= set(own.values())
    what = "all boards are in one slot: in a cluster one node does everything"
    told.story.hold(
        len(slots) > 1, "spread", what, "what is in the hash tag: the name, and not the same for all"
    )


def _check_large(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    for i in range(900):
        told.add((MON, TUE, WED)[i % 3], f"player:{i // 3}", 1000 + i * i % 7919 + i)
    told.story.lines = ["three boards with 300 members each"]
    days, week = [MON, TUE, WED], told.weeks[0]
    told.check(days, 3, "sum", "the total is the sum of these days", _SUM)
    look = "who sorts, and who counts: ZRANGE gives the first n of what is stored"
    check_frugal(told.story, lab, lambda: week.top(days, 3), 3, look, scripts=False)


SAYS = {"": ("race", _STEP)}


@contextmanager
def _same_chance(kind: Any, lab: Lab) -> Iterator[Callable[..., None]]:
    """explore_stream, where what an answer draws by chance (the name of a total) is the same each time."""
    state = random.getstate()
    with system_chance(kind, "the same each time") as taken:

        def explored(actors: Any, cast: str, setup: Any = None, says: Any = SAYS, **rules: Any) -> None:
            def begin(r: Any) -> None:
                taken.clear()
                random.seed(cast)
                if setup is not None:
                    setup(r)

            explore_stream(lab, actors, cast, says, begin, **rules)

        try:
            yield explored
        finally:
            random.setstate(state)


def _check_race(kind: Any, explored: Callable[..., None]) -> None:
    """Points are added to two days while they are added up; and two totals are made at once."""

    def top(*days: str) -> Callable[[Any], Any]:
        return lambda r: [tuple(row) for row in kind(r, GAME).top(list(days), 10)]

    def adds(*games: tuple[str, int]) -> Callable[[Any], None]:
        def actor(r: Any) -> None:
            week = kind(r, GAME)
            for day, points in games:
                week.add(day, "ada", points)

        return actor

    def moment(r: Any, results: list[Any]) -> None:
        valid = [[], [("ada", 5)], [("ada", 12)]]
        assert results[0] in valid, f"nobody ever had that total: {results[0]}; it was none, 5, then 12"

    cast = f"A: top({_days([MON, TUE])}, 10). B: add('{MON}', 'ada', 5), add('{TUE}', 'ada', 7)"
    explored([top(MON, TUE), adds((MON, 5), (TUE, 7))], cast, invariant=moment)

    def own(r: Any, results: list[Any]) -> None:
        for who, found, total in zip("AB", results, (3, 6), strict=True):
            assert found == [("ada", total)], f"{who} asks for the sum {total}, and is given {found}"

    cast = f"ada has 1, 2 and 4 points. A: top({_days([MON, TUE])}, 10). B: top({_days([TUE, WED])}, 10)"
    actors, setup = [top(MON, TUE), top(TUE, WED)], adds((MON, 1), (TUE, 2), (WED, 4))
    explored(actors, cast, setup, invariant=own)

    def both(r: Any) -> None:
        found = top(MON)(r)
        assert found == [("ada", 15)], f"1 + 6 + 8 makes 15, and top() gives {found}: points are lost"

    cast = f"ada has 1. A: add('{MON}', 'ada', 6). B: add('{MON}', 'ada', 8)"
    explored([adds((MON, 6)), adds((MON, 8))], cast, adds((MON, 1)), invariant=both)


def _check_crash(kind: Any, lab: Lab, explored: Callable[..., None]) -> None:
    inside = Inside(lab)

    def ada(r: Any) -> None:
        week = kind(r, GAME)
        week.add(MON, "ada", 5)
        week.top([MON, TUE], 3)

    def rule(r: Any) -> None:
        assert_mortal(inside, EIGHT_DAYS)

    says = {"": ("crash", "what a crash leaves behind after each of your commands: MULTI, or a script")}
    cast = f"A: add('{MON}', 'ada', 5), top({_days([MON, TUE])}, 3); it may crash"
    explored([ada], cast, says=says, invariant=rule, faults=[crash])


EXERCISE = Exercise(
    stem="leaderboard",
    name="week",
    title="The week's total, at one moment",
    statement="""
Each day has a board of its own, and a total adds up several of them. Write both, for many processes:

- `add(day, member, points)` adds to what the member has on that day. A board of a day ends by itself, 8 days
  after its last change.
- `top(days, n)` gives the first `n` (one at least) in the sum of these days (one at least), as a list of
  `(member, points)` with ints. A day on which nobody has played counts as empty.
- The total is that of one moment, and of now: what others add meanwhile is in it as a whole, or not at all.
- Not every member is sent to the client, only those that are asked for.
- What `top` stores on its way ends by itself within an hour, also after a crash.
- In a cluster all keys of one `name` are in one slot, and those of other names elsewhere. Nothing goes
  through all keys of the server.
""".strip(),
    answer="MyWeek",
    stub=STUB.strip(),
    hints=(
        "ZINCRBY adds, EXPIRE lets a board end. If a crash can come in between, one of them is missing: "
        "r.pipeline() sends both as one MULTI … EXEC.",
        "ZUNIONSTORE total … adds up boards; keys that are not there count as empty. What is in `total` "
        "between this and your ZRANGE, if another client makes a total meanwhile?",
        "ZUNIONSTORE, EXPIRE and ZRANGE in one MULTI are one step; then one name for all totals will do.",
        'In a cluster only what stands in braces decides the slot: f"{{{name}}}:{day}" is {game}:2025-03-01.',
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=60,
)
