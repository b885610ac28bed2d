"""Chapter 07, exercise reclaim: take over from the dead, and put what kills workers aside."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.exercises.session.grading import elsewhere
from labkit.teach.exercises.stream.grading import GROUP, MINUTE, explore_stream, hold, idle_again, pending
from labkit.teach.lab import Lab

STUB = '''
def reclaim(r, stream, group, name, idle, most, dead):
    """Take over up to 10 entries for the consumer `name`; a list of (id, fields), for it to handle."""
    raise NotImplementedError
'''

REFERENCE = '''
# KEYS: stream, dead. ARGV: group, entry, the dead letter. Whoever acknowledges an entry writes its letter.
BURY = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
    redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
end
"""

def reclaim(r, stream, group, name, idle, most, dead):
    """Take over up to 10 entries for the consumer `name`; a list of (id, fields), for it to handle."""
    taken, cursor = [], "0-0"
    while len(taken) < 10:
        rest, least = 10 - len(taken), max(1, round(idle * 1000))
        cursor, entries, *_ = r.xautoclaim(stream, group, name, least, cursor, count=rest)
        for entry, fields in entries:
            held = r.xpending_range(stream, group, entry, entry, 1)
            if held and held[0]["times_delivered"] > most:
                letter = {**fields, "from": entry, "deliveries": held[0]["times_delivered"] - 1}
                words = [word for pair in letter.items() for word in pair]
                r.eval(BURY, 2, stream, dead, group, entry, *words)
            else:
                taken.append((entry, fields))
        if cursor == "0-0":
            break
    return taken
'''

_BURIES = """                words = [word for pair in letter.items() for word in pair]
                r.eval(BURY, 2, stream, dead, group, entry, *words)
"""
_LOOKS = "            held = r.xpending_range(stream, group, entry, entry, 1)\n"
_DEADLY = 'if held and held[0]["times_delivered"] > most:'
_LEAST = "max(1, round(idle * 1000))"
_BY_HAND = """
def reclaim(r, stream, group, name, idle, most, dead):
    ms, taken = round(idle * 1000), []
    for held in r.xpending_range(stream, group, "-", "+", 10, idle=ms):
        entry, deliveries = held["message_id"], held["times_delivered"]
        if deliveries >= most:
            for _, fields in r.xrange(stream, entry, entry):
                with r.pipeline() as pipe:
                    pipe.xadd(dead, {**fields, "from": entry})
                    pipe.xack(stream, group, entry).execute()
        else:
            taken += r.xclaim(stream, group, name, ms, [entry])
    return taken
"""
_CLAIMED = """            for entry, fields in r.xclaim(stream, group, name, ms, [entry]):
                with r.pipeline() as pipe:
"""


def _buries(*lines: str) -> tuple[str, str]:
    """The reference, but that it puts an entry aside by these lines."""
    return _BURIES, "".join(f"                {line}\n" for line in lines)


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


_SAFE_BY_HAND = _BY_HAND.replace(
    """            for _, fields in r.xrange(stream, entry, entry):
                with r.pipeline() as pipe:
""",
    _CLAIMED,
)

WRONG = (
    _wrong("idle", "no idle time: takes what others are at work on", (_LEAST, "0")),
    _wrong(
        "idle",
        "seconds where XAUTOCLAIM counts ms: 30 s become 30 ms, and the living are robbed",
        (_LEAST, "max(1, round(idle))"),
    ),
    _wrong(
        "unit",
        "int(idle): 0.5 s becomes 0, and it takes what others are at work on",
        (_LEAST, "int(idle) * 1000"),
    ),
    _wrong(
        "live",
        "begins with `0`, all that it holds itself: also what it is at work on",
        (
            'taken, cursor = [], "0-0"',
            'reply = r.xreadgroup(group, name, {stream: "0"}, count=10)\n'
            '    taken, cursor = list(dict(reply).get(stream, [])), "0-0"',
        ),
    ),
    wrong(
        _SAFE_BY_HAND,
        "both",
        "XPENDING says that it is idle, and XCLAIM without an idle time: in between another has taken it",
        ("taken += r.xclaim(stream, group, name, ms,", "taken += r.xclaim(stream, group, name, 0,"),
    ),
    Wrong(_BY_HAND, "buried", "puts aside what it has not claimed: two at once write two letters"),
    _wrong(
        "count",
        "counts deliveries in the process: a worker that was killed counts no more",
        ("# KEYS", "import collections\n\nSEEN = collections.Counter()\n\n# KEYS"),
        (_LOOKS, "            SEEN[entry] += 1\n"),
        (_DEADLY, "if SEEN[entry] > most:"),
        ('held[0]["times_delivered"] - 1', "SEEN[entry]"),
    ),
    _wrong(
        "uncounted",
        "JUSTID: the server does not count this delivery, and a poisonous entry comes for ever",
        ("cursor, entries, *_ =", "ids ="),
        (
            "count=rest)",
            "count=rest, justid=True)\n        cursor = '0-0'\n"
            "        entries = [e for i in ids for e in r.xrange(stream, i, i)]",
        ),
        ('["times_delivered"] > most', '["times_delivered"] >= most'),
    ),
    _wrong(
        "deliveries",
        "sets aside one delivery too early: an entry has fewer tries than `most`",
        ('["times_delivered"] > most', '["times_delivered"] >= most'),
    ),
    _wrong(
        "deliveries",
        "sets aside one delivery too late: what kills its worker kills once more than `most`",
        ('["times_delivered"] > most', '["times_delivered"] > most + 1'),
    ),
    wrong(
        _BY_HAND,
        "idle",
        "puts aside by the count alone: also what a worker is at work on, the last time it may be",
        ("10, idle=ms)", "10)"),
    ),
    _wrong(
        "dead",
        "XACK without a letter: what is poisonous is gone, and nobody learns of it",
        _buries("r.xack(stream, group, entry)"),
    ),
    _wrong("dead", "the letter has no `from`: nobody knows which entry it was", ('"from": entry, ', "")),
    _wrong(
        "ack",
        "a letter without XACK: the entry comes again, and writes one more each time",
        _buries("r.xadd(dead, letter)"),
    ),
    _wrong(
        "lost",
        "XACK, then the letter: a crash in between, and there is none",
        _buries("r.xack(stream, group, entry)", "r.xadd(dead, letter)"),
    ),
    _wrong(
        "buried",
        "writes the letter, and then acknowledges: a crash in between, and it is written twice",
        _buries("r.xadd(dead, letter)", "r.xack(stream, group, entry)"),
    ),
    _wrong(
        "far",
        "one XAUTOCLAIM from the beginning: it looks at a hundred entries, and the idle one is behind them",
        ('if cursor == "0-0":\n            break', "break"),
    ),
    _wrong(
        "batch",
        "COUNT 1000: a worker takes all that the dead left, and the others get nothing",
        ("count=rest", "count=1000"),
    ),
    _wrong(
        "owner",
        "acknowledges what it takes over: if this worker dies, too, it is lost",
        (
            "taken.append((entry, fields))",
            "taken.append((entry, fields))\n                r.xack(stream, group, entry)",
        ),
    ),
    _wrong(
        "owner",
        "claims for another name: who handles it does not hold it",
        ("group, name, least", "group, 'reclaimer', least"),
    ),
    _wrong(
        "answer",
        "ids alone: the caller has to read each entry once more",
        ("taken.append((entry, fields))", "taken.append(entry)"),
    ),
)

STREAM, DEAD, IDLE, MOST = "orders", "orders:dead", 60.0, 3
_WHEN = "the idle time that XAUTOCLAIM or XCLAIM is given, in milliseconds"
_COUNTS = "times_delivered of XPENDING: the server's count, which XAUTOCLAIM and XCLAIM raise"
_ONE_STEP = "what comes between the letter and the acknowledgement"


def _fill(r: Any, stream: str, number: int) -> None:
    """Entries 1-0 {order: o1}, 2-0, …: all delivered, and acknowledged but for what `hold` gives back."""
    with r.pipeline(transaction=False) as pipe:
        for n in range(1, number + 1):
            pipe.xadd(stream, {"order": f"o{n}"}, id=f"{n}-0")
        pipe.xgroup_create(stream, GROUP, "$").execute()


class _Told:
    """A stream of orders, and a story."""

    def __init__(self, fn: Any, lab: Lab, orders: int) -> None:
        self.r: Any = lab.r
        self.fn, self.story = fn, Story()
        self.stream, self.dead = lab.key("orders"), lab.key("dead")
        _fill(self.r, self.stream, orders)

    def hold(self, owner: str, ids: list[str], seconds: float, deliveries: int = 1) -> None:
        hold(self.r, self.stream, owner, ids, round(seconds * 1000), deliveries)
        which = ids[0] if len(ids) == 1 else f"each of {ids[0]} … {ids[-1]}"
        times = "" if deliveries == 1 else f", delivered {deliveries} times"
        self.story.tell(f"{owner} has held {which} for {seconds:g} s{times}")

    def reclaim(self, name: str = "ada", idle: float = IDLE, most: int = MOST) -> list[str]:
        """The ids that are handed out; they are told."""
        given = _elsewhere(self.fn)(self.r, self.stream, GROUP, name, idle, most, self.dead)
        shown = (
            repr(given) if not isinstance(given, list | tuple) or len(given) < 4 else f"{len(given)} entries"
        )
        self.story.tell(f"reclaim(…, {name!r}, idle={idle:g}, most={most}, …) -> {shown}")
        what = f"reclaim() gives {type(given).__name__}: a list of (id, fields) is asked for, or []"
        look = "what reclaim() returns, on every path"
        self.story.hold(isinstance(given, list | tuple), "answer", what, look)
        for one in given:
            pair = isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[0], str)
            what = f"{one!r} is no pair (id, fields)"
            self.story.hold(pair, "answer", what, look)
            right = one[1] == {"order": f"o{one[0].partition('-')[0]}"}
            what = f"the fields of {one[0]} are not {one[1]!r}"
            property = "answer" if one[1] else "trimmed"
            self.story.hold(right, property, what, "where the fields come from; an entry may be trimmed away")
        return [one[0] for one in given]

    def pending(self) -> dict[str, dict[str, Any]]:
        found = {entry["message_id"]: entry for entry in pending(self.r, self.stream)}
        told = [f"{e} ({one['consumer']}, {one['times_delivered']})" for e, one in found.items()]
        self.story.tell(f"XPENDING -> {', '.join(told) or 'nothing'}")
        return found

    def letters(self) -> list[dict[str, str]]:
        found = [fields for _, fields in self.r.xrange(self.dead)]
        self.story.tell(f"XRANGE dead -> {', '.join(map(str, found)) or 'nothing'}")
        return found


def _elsewhere(fn: Any) -> Callable[..., Any]:
    """The function as another process has it: its module's variables are not shared."""
    if not hasattr(fn, "__globals__"):
        made: Callable[..., Any] = fn
        return made
    other = elsewhere(type("Other", (), {"fn": fn}))
    found: Callable[..., Any] = vars(other)["fn"]
    return found


def _grade(fn: Any, lab: Lab) -> None:
    _check_idle(fn, lab)
    _check_own(fn, lab)
    _check_unit(fn, lab)
    _check_poison(fn, lab)
    _check_far(fn, lab)
    _check_batch(fn, lab)
    _check_trimmed(fn, lab)
    lab.r.flushdb()
    _check_race(fn, lab)
    _check_poison_race(fn, lab)
    _check_crash(fn, lab)


def _check_idle(fn: Any, lab: Lab) -> None:
    """One has been held for two minutes, one for 20 s."""
    told = _Told(fn, lab, 3)
    told.hold("bob", ["1-0"], 120)
    told.hold("bob", ["2-0"], 20)
    taken, check = told.reclaim(), told.story.hold
    what = "bob has held 2-0 for 20 s only: he is at work on it, and it is handed to ada"
    check("2-0" not in taken, "idle", what, _WHEN)
    check("3-0" not in taken, "taken", "3-0 is acknowledged, and handed out", "what you read")
    check(taken == ["1-0"], "taken", "bob has held 1-0 for 120 s, and nobody takes it over", _WHEN)
    held = told.pending()
    owner = held["1-0"]["consumer"] if "1-0" in held else None
    what = "1-0 is handed to ada, who does not hold it: " + (f"{owner} does" if owner else "nobody does")
    check(
        owner == "ada", "owner", what, "who has it while it is handled: if ada dies, too, it must come again"
    )
    check(held["2-0"]["consumer"] == "bob", "idle", "2-0 was taken from bob", _WHEN)
    what = "this was the second delivery of 1-0, and the server's count is still 1"
    check(held["1-0"]["times_delivered"] > 1, "uncounted", what, _COUNTS)
    taken = told.reclaim("cyd")
    check(not taken, "both", "ada has just been given 1-0, and cyd is given it, too", _WHEN)


def _check_own(fn: Any, lab: Lab) -> None:
    told = _Told(fn, lab, 1)
    told.hold("ada", ["1-0"], 20)
    taken = told.reclaim()
    what = "ada herself has held 1-0 for 20 s only: she is at work on it, and would handle it twice at once"
    told.story.hold(not taken, "live", what, "what you do with the entries that `name` holds")


def _check_unit(fn: Any, lab: Lab) -> None:
    """Fractions of a second; a machine that stands still in the middle proves nothing."""
    for _ in range(3):
        told, since = _Told(fn, lab, 2), time.monotonic()
        told.hold("bob", ["1-0"], 0.4)
        told.hold("bob", ["2-0"], 0)
        taken = told.reclaim(idle=0.9)
        if not taken:
            break
        what = "`idle` is 0.9 s, and what was held for less is taken"
        told.story.hold(time.monotonic() > since + 0.49, "unit", what, "fractions of a second")
    told = _Told(fn, lab, 1)
    told.hold("bob", ["1-0"], 0.8)
    taken = told.reclaim(idle=0.75)
    told.story.hold(taken == ["1-0"], "unit", "0.75 s are over, and it is not taken", "fractions of a second")


def _check_poison(fn: Any, lab: Lab) -> None:
    """Of `most` 3 deliveries one entry has had 2, one 3, one 9; the third of another is under way."""
    told = _Told(fn, lab, 4)
    told.hold("bob", ["3-0"], 120, 9)
    taken, check = told.reclaim(), told.story.hold
    what = "the server has counted nine deliveries of 3-0, three are the most, and it is handed out once more"
    check("3-0" not in taken, "count", what, _COUNTS)
    told.hold("bob", ["4-0"], 20, 3)
    told.hold("bob", ["1-0"], 120, 2)
    told.hold("bob", ["2-0"], 120, 3)
    taken = told.reclaim()
    check("1-0" in taken, "deliveries", "1-0 was delivered twice: a third time is due", _COUNTS)
    what = "2-0 was delivered three times, which is the most, and it is handed out once more"
    check("2-0" not in taken, "deliveries", what, _COUNTS)
    letters = sorted(told.letters(), key=lambda fields: fields.get("from", ""))
    what = "bob is at work on 4-0, for the third time, and it is put aside meanwhile"
    check("o4" not in [letter.get("order") for letter in letters], "idle", what, _WHEN)
    for entry, order in (("2-0", "o2"), ("3-0", "o3")):
        mine = [letter for letter in letters if letter.get("order") == order]
        what = f"{entry} is not handed out any more, and no letter in `dead` has its fields: it is lost"
        check(mine, "dead", what, "what you XADD to `dead`")
        what = f"the letter of {entry} should have `from`: {entry}"
        check(mine[0].get("from") == entry, "dead", what, "what you XADD to `dead`")
    held = told.pending()
    what = "a letter is written, and its entry is still pending: it will come again, with another letter"
    check(not held.keys() & {"2-0", "3-0"}, "ack", what, _ONE_STEP)
    check(len(letters) == 2, "buried", "two entries were put aside, and there are other letters", _ONE_STEP)


def _check_far(fn: Any, lab: Lab) -> None:
    told = _Told(fn, lab, 201)
    told.hold("bob", [f"{n}-0" for n in range(1, 201)], 1)
    told.hold("bob", ["201-0"], 120)
    taken = told.reclaim()
    what = "200 entries that bob is at work on stand before it, and 201-0 is not found"
    told.story.hold(taken == ["201-0"], "far", what, "the cursor that XAUTOCLAIM gives: where to go on")


def _check_batch(fn: Any, lab: Lab) -> None:
    told, found = _Told(fn, lab, 25), list[str]()
    told.hold("bob", [f"{n}-0" for n in range(1, 26)], 120)
    for _ in range(26):
        taken = told.reclaim()
        told.story.hold(len(taken) <= 10, "batch", f"up to 10 are asked for, not {len(taken)}", "count=")
        found += taken
        if not taken:
            break
    what = f"25 entries were idle; in all calls {len(set(found))} of them are handed out"
    told.story.hold(len(set(found)) == 25, "taken", what, "what your loop leaves out")
    twice = [entry for entry, times in Counter(found).items() if times > 1]
    told.story.hold(not twice, "both", f"{twice[:1]} is handed out twice", _WHEN)


def _check_trimmed(fn: Any, lab: Lab) -> None:
    told = _Told(fn, lab, 2)
    told.hold("bob", ["1-0", "2-0"], 120)
    told.r.xdel(told.stream, "1-0")
    told.story.tell("1-0 is trimmed away")
    taken = told.reclaim()
    what = "2-0 is idle; of 1-0 nothing is left to handle"
    told.story.hold(taken == ["2-0"], "trimmed", what, "what you do with a pending entry that is gone")


SAYS = {
    "handed to both": (
        "both",
        "the idle time that XCLAIM is given: between your look and it another may claim",
    ),
    "nobody": ("taken", "who gets an entry that two want"),
    "letters": (
        "buried",
        "who may write the letter: two must not both, and a crash must not part it from XACK",
    ),
    "no letter": ("lost", _ONE_STEP),
    "still pending": ("ack", _ONE_STEP),
    "handed out": ("count", _COUNTS),
}


def _client(fn: Any, name: str) -> Callable[[Any], list[str]]:
    return lambda r: [one[0] for one in fn(r, STREAM, GROUP, name, IDLE, MOST, DEAD)]


def _setup(number: int, deliveries: int) -> Callable[[Any], None]:
    def setup(r: Any) -> None:
        _fill(r, STREAM, number)
        hold(r, STREAM, "cyd", [f"{n}-0" for n in range(1, number + 1)], 2 * MINUTE, deliveries)

    return setup


def _check_race(fn: Any, lab: Lab) -> None:
    def rule(r: Any, results: list[Any]) -> None:
        given = Counter(entry for result in results for entry in result or ())
        assert given["1-0"] < 2, "1-0 is handed to both, A and B: it is handled twice"
        assert given["1-0"], "1-0 was idle, and nobody is given it"

    cast = "cyd died with 1-0, two minutes ago. A: ada reclaims. B: bob reclaims. idle=60"
    actors = [_client(fn, "ada"), _client(fn, "bob")]
    explore_stream(lab, actors, cast, SAYS, _setup(1, 1), invariant=rule)


def _buried(r: Any, results: list[Any]) -> None:
    letters = [fields for _, fields in r.xrange(DEAD)]
    assert not any(results), "1-0 was delivered as often as is allowed, and is handed out"
    assert letters, "1-0 is settled, and there is no letter: it is lost"
    assert len(letters) == 1, f"1-0 has {len(letters)} letters in `dead`"
    assert not pending(r, STREAM), "there is a letter, and 1-0 is still pending"


def _check_poison_race(fn: Any, lab: Lab) -> None:
    cast = "1-0 was delivered 3 times, the most, and is idle. A: ada reclaims. B: bob reclaims"
    actors = [_client(fn, "ada"), _client(fn, "bob")]
    explore_stream(lab, actors, cast, SAYS, _setup(1, MOST), invariant=_buried)


def _check_crash(fn: Any, lab: Lab) -> None:
    def rule(r: Any, results: list[Any]) -> None:
        later = []
        for _ in range(2):
            idle_again(r, STREAM, 2 * MINUTE)
            later.append(_client(fn, "bob")(r))
        _buried(r, [*results, *later])

    cast = (
        "1-0 was delivered 3 times, the most. A: ada reclaims; she may crash. Two minutes later bob reclaims"
    )
    explore_stream(lab, [_client(fn, "ada")], cast, SAYS, _setup(1, MOST), invariant=rule, faults=[crash])


EXERCISE = Exercise(
    stem="stream",
    name="reclaim",
    title="What the dead held is taken over, and what kills is put aside",
    statement="""
A worker that dies leaves entries pending that nobody handles. Write `reclaim`, which every worker calls now
and then. `group` has the consumers, `name` is the caller's.

- It takes over, for `name`, entries that a consumer has held for `idle` seconds (fractions too) or longer,
  and returns them, up to 10 a call, as a list of `(id, fields)`; `[]` if there are none. It finds them
  wherever they stand, also behind hundreds that are not idle.
- What was held for less is being worked on, and stays where it is: also if `name` itself holds it.
- If two call it at once, no entry is handed to both.
- An idle entry that has been delivered `most` times already is not handed out again. It is moved: its fields,
  and `from`, the id that it had, are added to the stream `dead`, and it is acknowledged. A crash at any
  moment, or two callers, and there is one letter in the end, not two and not none.
- Taking an entry over is a delivery, too. Workers get killed: so the server counts, not they.
""".strip(),
    answer="reclaim",
    stub=STUB.strip(),
    hints=(
        "XAUTOCLAIM stream group name ms start COUNT n gives [next start, [(id, fields), …], ids that are "
        "gone]. Another way: XPENDING with IDLE to look, and XCLAIM with the same idle time to take.",
        "XAUTOCLAIM looks at ten times COUNT entries and stops, found or not: go on from where it says, "
        "until it says 0-0. Milliseconds!",
        "Each claim raises the entry's count, which XPENDING stream group id id 1 shows as "
        "times_delivered. After the claim it includes this delivery.",
        "First claim, then look at the count, then put aside what has had too many: whoever has just "
        "claimed an entry is alone with it. XADD dead and XACK go into one MULTI, or into a script.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
