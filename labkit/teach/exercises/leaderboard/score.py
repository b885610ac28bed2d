"""Chapter 09, exercise score: points are added, the best game is kept, and no update is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.leaderboard.grading import DAY
from labkit.teach.exercises.lock.grading import Story, clocks, wrong
from labkit.teach.exercises.session.grading import Inside, said
from labkit.teach.exercises.stream.grading import explore_stream
from labkit.teach.lab import Lab

STUB = '''
def score(r, today, best, member, points):
    """A game of `member` has ended, with so many points. The points on `today` now, an int."""
    raise NotImplementedError
'''

REFERENCE = '''
def score(r, today, best, member, points):
    """A game of `member` has ended, with so many points. The points on `today` now, an int."""
    with r.pipeline() as pipe:
        pipe.zincrby(today, points, member)
        pipe.expire(today, 48 * 3600)
        pipe.zadd(best, {member: points}, gt=True)
        now, *_ = pipe.execute()
    return int(now)
'''

_INCREMENT = "pipe.zincrby(today, points, member)"
_EXPIRE = "pipe.expire(today, 48 * 3600)"
_BEST = "pipe.zadd(best, {member: points}, gt=True)"
_BODY = REFERENCE[REFERENCE.index("    with r.pipeline()") :]


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


def _body(*lines: str) -> tuple[str, str]:
    """The reference, but with these lines."""
    return _BODY, "".join(f"    {line}\n" for line in lines)


WRONG = (
    _wrong(
        "race",
        "reads the points, adds, and writes: who writes in between is overwritten",
        ("    with r.pip", "    total = int(r.zscore(today, member) or 0) + points\n    with r.pip"),
        (_INCREMENT, "pipe.zadd(today, {member: total})"),
        ("return int(now)", "return total"),
    ),
    _wrong(
        "race",
        "WATCH, and the WatchError is passed over: EXEC did nothing, and this game is lost",
        _body(
            "import redis",
            "with r.pipeline() as pipe:",
            "    pipe.watch(today)",
            "    total = int(pipe.zscore(today, member) or 0) + points",
            "    pipe.multi()",
            "    pipe.zadd(today, {member: total})",
            f"    {_EXPIRE}",
            f"    {_BEST}",
            "    try:",
            "        pipe.execute()",
            "    except redis.WatchError:",
            "        pass",
            "return total",
        ),
    ),
    _wrong(
        "race",
        "looks at the best game, and writes if this one was better: a lower one may come last",
        ("    with r.pip", "    had = r.zscore(best, member)\n    with r.pip"),
        (_BEST, "had is None or points > had) and pipe.zadd(best, {member: points})".join(["(", ""])),
    ),
    _wrong(
        "race",
        "asks for the points after it has added: they may be those of another game, too",
        ("now, *_ = pipe.execute()", "pipe.execute()"),
        ("return int(now)", "return int(r.zscore(today, member))"),
    ),
    _wrong(
        "added",
        "ZADD sets the points, it does not add",
        (_INCREMENT, "pipe.zadd(today, {member: points})"),
        ("return int(now)", "return points"),
    ),
    _wrong(
        "added",
        "ZADD NX: only the first game of the day counts",
        (_INCREMENT, "pipe.zadd(today, {member: points}, nx=True)"),
        ("return int(now)", "return points"),
    ),
    _wrong("best", "ZADD sets what came last: a worse game overwrites the best", (", gt=True", "")),
    _wrong(
        "best", "GT and XX: who plays for the first time is not on the board", ("gt=True", "gt=True, xx=True")
    ),
    _wrong(
        "best",
        "ZUNIONSTORE MAX with the day's board: its sums count as games, and two middling ones beat the best",
        (_BEST, "pipe.zunionstore(best, [best, today], 'MAX')"),
    ),
    _wrong("ttl", "no TTL: the board of every day stays for ever", (_EXPIRE, "pass")),
    _wrong("ttl", "NX: it ends two days after the first game, not the last", ("3600)", "3600, nx=True)")),
    _wrong(
        "kept",
        "EXPIRE on both boards: the best games end after two days, too",
        (_BEST, f"{_BEST}\n        pipe.expire(best, 48 * 3600)"),
    ),
    _wrong(
        "crash",
        "one command after the other: a crash leaves half a game",
        _body(
            "now = r.zincrby(today, points, member)",
            "r.expire(today, 48 * 3600)",
            "r.zadd(best, {member: points}, gt=True)",
            "return int(now)",
        ),
    ),
    _wrong(
        "crash",
        "a pipeline without MULTI: one round trip, and yet three steps",
        ("r.pipeline()", "r.pipeline(transaction=False)"),
    ),
    _wrong(
        "answer",
        "gives what ZINCRBY gives, a float: 120.0 in place of 120",
        ("return int(now)", "return now"),
    ),
    _wrong(
        "answer",
        "gives the points of this game, not what the member has now",
        ("return int(now)", "return points"),
    ),
)

SECONDS = 2 * DAY
_HOW = "ZINCRBY, which adds in one step and answers with what there is now"
_BETWEEN = "what another game may change between two of your commands"


class _Told:
    """Two boards, what is to be on them, and a story."""

    def __init__(self, fn: Any, lab: Lab) -> None:
        lab.r.flushdb()
        self.r: Any = lab.r
        self.fn, self.story, name = fn, Story(), lab.key("game")
        self.today, self.best = f"{name}:today", f"{name}:best"
        self.games = dict[str, list[int]]()

    def play(self, member: str, points: int) -> None:
        """One game more: both boards hold what they should, and the answer is right."""
        games, hold = self.games.setdefault(member, []), self.story.hold
        games.append(points)
        answer = self.fn(self.r, self.today, self.best, member, points)
        self.story.tell(f"score(r, today, best, {member!r}, {points}) -> {answer!r}")
        for key, word in ((self.today, "today"), (self.best, "best")):
            kind = self.r.type(key)
            what = f"`{word}` is {kind if kind != 'none' else 'not there'}: a sorted set is asked for"
            hold(kind == "zset", "added" if word == "today" else "best", what, "ZINCRBY, ZADD")
        sums = " + ".join(map(str, games))
        for who, expected in self.expected(sum).items():
            has = self.r.zscore(self.today, who)
            what = f"{who!r} is to have {expected} on `today` ({sums}), and has {_number(has)}"
            hold(has == expected, "added", what.replace(f" ({sums})", f" ({sums})" * (who == member)), _HOW)
        for who, expected in self.expected(max).items():
            has = self.r.zscore(self.best, who)
            what = f"the best game of {who!r} had {expected} points, and `best` says {_number(has)}"
            hold(has == expected, "best", what, "GT of ZADD: what it does for who is there, and who is not")
        look = "what you return: the reply of ZINCRBY is a float"
        hold(type(answer) is int, "answer", f"score() gives {answer!r}: an int is asked for", look)
        what = f"score() gives {answer!r}, and {member!r} has {sum(games)} on `today` now"
        hold(answer == sum(games), "answer", what, look)

    def lasts(self, since: float) -> None:
        """`today` ends two days from now."""
        left = self.r.pttl(self.today)
        self.story.tell(f"PTTL today -> {left}")
        least = (SECONDS - (time.monotonic() - since)) * 1000 - 5
        what = "`today` is to end 48 hours after its last game, and it "
        what += "never ends" if left == -1 else f"ends in {left / 3_600_000:.2f} hours"
        look = "EXPIRE, which counts seconds; and NX, XX, GT, LT of it"
        self.story.hold(least <= left <= SECONDS * 1000 + 1, "ttl", what, look)

    def expected(self, of: Callable[[list[int]], int]) -> dict[str, int]:
        return {member: of(games) for member, games in self.games.items()}


def _number(score: float | None) -> str:
    return "nothing" if score is None else f"{score:g}"


def _grade(fn: Any, lab: Lab) -> None:
    _check_games(fn, lab)
    _check_ends(fn, lab)
    lab.r.flushdb()
    _check_race(fn, lab)
    _check_first_race(fn, lab)
    _check_crash(fn, lab)


def _check_games(fn: Any, lab: Lab) -> None:
    told = _Told(fn, lab)
    games = [("ada", 50), ("bob", 30), ("ada", 20), ("ada", 80), ("bob", 0), ("cyd", 0), ("dan", -5)]
    for member, points in (*games, ("dan", -9), ("dan", 3), ("7", 12), ("ünï dé", 7), ("7", 3)):
        told.play(member, points)
    told.story.lines = []
    told.play("eve", 1_000_000_007)
    told.play("eve", 2_000_000_001)
    mine = {told.today.encode(), told.best.encode()}
    for key, left in Inside(lab).ends().items():
        what = f"a key that nobody asked for never ends: {said(key)}"
        told.story.hold(key in mine or left >= 0, "left", what, "what else you write")


def _check_ends(fn: Any, lab: Lab) -> None:
    """`today` ends two days after its last game, `best` never."""
    told, since = _Told(fn, lab), time.monotonic()
    told.play("ada", 50)
    told.lasts(since)
    for hours in (24, 1):
        told.r.pexpire(told.today, hours * 3_600_000)
        told.story.tell(f"later on `today` has {hours} h left")
        since = time.monotonic()
        told.play("ada", 20)
        told.play("bob", 10)
        told.lasts(since)
    for skew in (100, -100):
        since = time.monotonic()
        with clocks(skew, fn):
            told.play("ada", 20)
        told.story.lines[-1] += f", by a clock that is wrong by {skew:+d} s"
        told.lasts(since)
    left = told.r.pttl(told.best)
    told.story.tell(f"PTTL best -> {left}")
    told.story.hold(left == -1, "kept", "`best` is to stay, and it ends by itself", "which key you EXPIRE")


Rule = Callable[..., None]
SAYS = {"": ("race", _BETWEEN)}


def _plays(fn: Any, member: str, points: int) -> Callable[[Any], Any]:
    return lambda r: fn(r, "today", "best", member, points)


def _before(r: Any) -> None:
    """Ada has 10 today, and her best game had 6."""
    r.zadd("today", {"ada": 10})
    r.zadd("best", {"ada": 6})
    r.expire("today", 3600)


def _check_race(fn: Any, lab: Lab) -> None:
    """Two games of one player end at once."""

    def rule(r: Any, results: list[Any]) -> None:
        has, most = r.zscore("today", "ada"), r.zscore("best", "ada")
        assert has == 25, f"a game is lost: 10 + 8 + 7 makes 25, and ada has {_number(has)} on `today`"
        assert most == 8, f"the best game of ada had 8 points, and `best` says {_number(most)}"
        told = " and ".join(map(repr, results))
        assert results in ([18, 25], [25, 17]), (
            f"A and B are told {told}: whoever is first has 18, or 17, the other 25"
        )

    cast = "ada has 10 on `today`, 6 on `best`. A: score(…, 'ada', 8). B: score(…, 'ada', 7)"
    explore_stream(lab, [_plays(fn, "ada", 8), _plays(fn, "ada", 7)], cast, SAYS, _before, invariant=rule)


def _check_first_race(fn: Any, lab: Lab) -> None:
    """The first two games of the day end at once."""

    def rule(r: Any, results: list[Any]) -> None:
        for key in ("today", "best"):
            found = {who: int(has) for who, has in r.zrange(key, 0, -1, withscores=True)}
            assert found == {"ada": 8, "bob": 7}, (
                f"`{key}` is to have 8 for ada and 7 for bob, and has {found}"
            )
        assert r.ttl("today") > 0, "`today` has no TTL"

    cast = "there are no boards yet. A: score(…, 'ada', 8). B: score(…, 'bob', 7)"
    explore_stream(lab, [_plays(fn, "ada", 8), _plays(fn, "bob", 7)], cast, SAYS, None, invariant=rule)


def _check_crash(fn: Any, lab: Lab) -> None:
    def rule(r: Any) -> None:
        has, most = r.zscore("today", "ada"), r.zscore("best", "ada")
        assert (has in (8, 18)) == (most == 8), (
            f"half a game: ada has {_number(has)} on `today`, and {_number(most)} on `best`"
        )
        assert r.ttl("today") != -1, "`today` is left without a TTL: it never ends"

    says = {"": ("crash", "what stands there if it ends after each of your commands: MULTI, or a script")}
    for setup, before in ((_before, "ada has 10 on `today`, 6 on `best`"), (None, "there are no boards yet")):
        cast = f"{before}. A: score(…, 'ada', 8); it may crash"
        explore_stream(lab, [_plays(fn, "ada", 8)], cast, says, setup, invariant=rule, faults=[crash])


EXERCISE = Exercise(
    stem="leaderboard",
    name="score",
    title="Points are added, the best game is kept, and nothing is lost",
    statement="""
A game of `member` has ended with `points`, a whole number that may be 0, or negative. Write `score`, which
many clients call at once. `today` and `best` are two boards: sorted sets, whose scores are points.

- On `today` the points are added to what the member has.
- On `best` the member has the points of the best single game.
- `score` returns the points that the member has on `today` after this game, as an int. They are those of
  this moment: no later game is in them.
- `today` ends by itself, 48 hours after its last game; no client's clock counts. `best` stays.
- Both boards change in one step: a crash leaves a game on both, or on none; and no update is lost, whoever
  else plays.
""".strip(),
    answer="score",
    stub=STUB.strip(),
    hints=(
        "To read the points, add to them and write them back is three steps. One command adds.",
        "ZINCRBY adds, and answers with the new points: a float. ZADD … GT writes only what is more than "
        "before; who is not there yet is added in any case.",
        "ZINCRBY, EXPIRE and ZADD in one r.pipeline() are sent as MULTI … EXEC: one step. Its execute() "
        "gives the three replies.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
