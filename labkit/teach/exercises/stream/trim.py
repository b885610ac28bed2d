"""Chapter 07, exercise trim: a producer that bounds its stream, and loses nothing that is still needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.exercises.session.grading import Inside, no_scan
from labkit.teach.exercises.stream.grading import GROUP, explore_stream
from labkit.teach.lab import Lab

STUB = '''
def add(r, stream, fields, most):
    """Add an entry; its id. None, and nothing is added, while the stream is full of what is needed."""
    raise NotImplementedError
'''

REFERENCE = '''
# KEYS: stream. ARGV: most, then fields and values. Gives the new entry's id; false where there is no place.
ADD = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
"""

def add(r, stream, fields, most):
    """Add an entry; its id. None, and nothing is added, while the stream is full of what is needed."""
    words = [word for pair in fields.items() for word in pair]
    entry = r.eval(ADD, 1, stream, most, *words)
    if entry is None and (first := first_needed(r, stream)):
        r.xtrim(stream, minid=first, approximate=False)
        entry = r.eval(ADD, 1, stream, most, *words)
    return entry

def first_needed(r, stream):
    """From this id on a group needs what is there; None without a group. Groups only ever move it forward."""
    needed = []
    for group in r.xinfo_groups(stream):
        ms, number = group["last-delivered-id"].split("-")
        oldest = r.xpending(stream, group["name"])["min"]
        needed.append(oldest or f"{ms}-{int(number) + 1}")
    return min(needed, key=lambda entry: tuple(map(int, entry.split("-"))), default=None)
'''

_OLDEST = '        oldest = r.xpending(stream, group["name"])["min"]\n'
_LAST = '        ms, number = group["last-delivered-id"].split("-")\n'
_NEEDED = '        needed.append(oldest or f"{ms}-{int(number) + 1}")\n'
_TRIM = "r.xtrim(stream, minid=first, approximate=False)"
_FIRST = "if entry is None and (first := first_needed(r, stream)):"
_MIN = 'return min(needed, key=lambda entry: tuple(map(int, entry.split("-"))), default=None)'
_BODY = REFERENCE[REFERENCE.index("    words = ") : REFERENCE.index("def first_needed")]


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


def _adds(*lines: str) -> tuple[str, str]:
    """The reference, but that `add` has these lines."""
    return _BODY, "".join(f"    {line}\n" for line in lines) + "\n"


WRONG = (
    _wrong(
        "unread",
        "MAXLEN drops the oldest, read or not",
        _adds("return r.xadd(stream, fields, maxlen=most, approximate=False)"),
    ),
    _wrong(
        "over",
        "XADD without a bound: the stream grows until memory ends",
        _adds("return r.xadd(stream, fields)"),
    ),
    _wrong(
        "over",
        "MAXLEN ~ leaves up to a hundred more",
        _adds("return r.xadd(stream, fields, maxlen=most)"),
    ),
    _wrong(
        "scan",
        "KEYS, to find streams that are too long: it goes through all keys of the server",
        _adds(
            "for key in r.keys(f'{stream}*'):",
            "    if r.xlen(key) >= most and (first := first_needed(r, key)):",
            "        r.xtrim(key, minid=first, approximate=False)",
            "return r.xadd(stream, fields) if r.xlen(stream) < most else None",
        ),
    ),
    _wrong(
        "stuck",
        "refuses when it is full, and never trims: from then on it refuses for ever",
        (_FIRST, "if False:"),
    ),
    _wrong(
        "stuck",
        "MINID ~ drops whole nodes only: up to a hundred that may go stay, and it refuses",
        (", approximate=False", ""),
    ),
    _wrong(
        "pending",
        "trims what was delivered: what a worker has in its hands is gone if that dies",
        (_OLDEST, "        oldest = None\n"),
    ),
    _wrong(
        "unread",
        "asks for what is pending alone: where nothing is, it takes everything for settled",
        (_NEEDED, '        needed.append(oldest or r.xinfo_stream(stream)["last-generated-id"])\n'),
    ),
    _wrong(
        "pending",
        "counts what is needed, and keeps so many of the latest: needed are others",
        _adds(
            "entry = r.eval(ADD, 1, stream, most, *[word for pair in fields.items() for word in pair])",
            "if entry is None and (groups := r.xinfo_groups(stream)):",
            "    left = max(g['pending'] + (g['lag'] or 0) for g in groups)",
            "    if left < most:",
            "        r.xtrim(stream, maxlen=left, approximate=False)",
            "        return r.xadd(stream, fields)",
            "return entry",
        ),
    ),
    _wrong(
        "groups",
        "asks the first group alone: what the others still need is dropped",
        ("in r.xinfo_groups(stream):", "in r.xinfo_groups(stream)[:1]:"),
    ),
    _wrong(
        "groups",
        "trims up to the fastest group: what slower ones have not read is gone",
        (_MIN, _MIN.replace("min(", "max(")),
    ),
    _wrong("order", "compares ids as text: 10-0 is before 9-0", (_MIN, "return min(needed, default=None)")),
    _wrong(
        "race",
        "asks first what is pending, then what was delivered: what is read in between is in neither",
        (_OLDEST, ""),
        (
            "    needed = []\n",
            "    needed = []\n    names = [g['name'] for g in r.xinfo_groups(stream)]\n"
            "    oldest_of = {name: r.xpending(stream, name)['min'] for name in names}\n",
        ),
        (_NEEDED, _NEEDED.replace("oldest or", "oldest_of.get(group['name']) or")),
    ),
    _wrong(
        "full",
        "XLEN, then XADD: two producers both find the last place",
        _adds(
            "if r.xlen(stream) >= most and (first := first_needed(r, stream)):",
            f"    {_TRIM}",
            "return r.xadd(stream, fields) if r.xlen(stream) < most else None",
        ),
    ),
    _wrong(
        "full",
        "adds, and takes it back when there is no place: meanwhile somebody may have read it",
        _adds(
            "if r.xlen(stream) >= most and (first := first_needed(r, stream)):",
            f"    {_TRIM}",
            "entry = r.xadd(stream, fields)",
            "if r.xlen(stream) <= most:",
            "    return entry",
            "r.xdel(stream, entry)",
        ),
    ),
    _wrong(
        "waits",
        "waits until there is a place: the producer hangs in place of being told",
        _adds(
            "import time",
            "while r.xlen(stream) >= most:",
            "    if first := first_needed(r, stream):",
            f"        {_TRIM}",
            "    time.sleep(0.01)",
            "return r.xadd(stream, fields)",
        ),
    ),
    _wrong(
        "unread",
        "no group, so nothing is needed: but in a stream without a group all is needed",
        ("default=None)", 'default="+")'),
        (_TRIM, 'r.xtrim(stream, maxlen=0, approximate=False) if first == "+" else ' + _TRIM),
    ),
    _wrong(
        "answer",
        "True in place of the id: the caller cannot name the entry any more",
        ("    return entry\n\ndef", "    return entry is not None\n\ndef"),
    ),
)

STREAM = "events"
_KEEPS = "up to where you trim: the first id that any group has not read, or has not acknowledged"
_PLACE = "what another producer may do between your XLEN and your XADD"


class _Told:
    """A stream with events 1-0, 2-0, …, its groups, and a story."""

    def __init__(self, fn: Any, lab: Lab, most: int, events: int = 0) -> None:
        lab.r.flushdb()
        self.r: Any = lab.r
        self.fn, self.most, self.story = fn, most, Story()
        self.stream, self.added = lab.key("events"), 0
        for n in range(1, events + 1):
            self.r.xadd(self.stream, {"event": f"e{n}"}, id=f"{n}-0")
        if events:
            self.story.tell(f"the stream holds 1-0 … {events}-0; most={most}")

    def group(self, name: str, read: int, held: tuple[int, ...] = ()) -> None:
        """A group that has read up to an event, and acknowledged all but some."""
        self.r.xgroup_create(self.stream, name, "0")
        if read:
            self.r.xreadgroup(name, "worker", {self.stream: ">"}, count=read)
            acked = [f"{n}-0" for n in range(1, read + 1) if n not in held]
            if acked:
                self.r.xack(self.stream, name, *acked)
        pending = f"; {', '.join(f'{n}-0' for n in held)} of it still pending" if held else ""
        upto = f"has read up to {read}-0" if read else "has read nothing"
        self.story.tell(f"group {name!r} {upto}{pending}")

    def add(self) -> str | None:
        """One more event. The stream is not longer than allowed, and says what it is asked."""
        self.added += 1
        fields, check = {"event": f"new {self.added}", "n": str(self.added)}, self.story.hold
        before = self.r.xlen(self.stream)
        entry: str | None = self.fn(self.r, self.stream, fields, self.most)
        length = self.r.xlen(self.stream)
        shown = repr(entry) if entry is None or not isinstance(entry, str) else "an id"
        self.story.tell(f"add(r, stream, …, {self.most}) -> {shown}; XLEN {before} -> {length}")
        what = f"{self.most} entries are the most, and the stream holds {length}"
        check(
            length <= self.most, "over", what, "what bounds the length; MAXLEN ~ and MINID ~ are approximate"
        )
        look = "what add() returns: the id that XADD gives, or None"
        what = f"add() gives {entry!r}: an id, or None, is asked for"
        check(entry is None or isinstance(entry, str), "answer", what, look)
        there = [found for found, held in self.r.xrange(self.stream) if held == fields]
        what = f"add() says {entry!r}, and the stream holds the event {len(there)} times"
        check(there == ([] if entry is None else [entry]), "answer", what, look)
        return entry

    def kept(self, numbers: list[int], property: str, why: str) -> None:
        """These events are still there."""
        there = {entry for entry, _ in self.r.xrange(self.stream)}
        lost = [f"{n}-0" for n in numbers if f"{n}-0" not in there]
        what = f"{', '.join(lost[:3])}{' and others' * (len(lost) > 3)} {'was' if len(lost) == 1 else 'were'}"
        self.story.hold(not lost, property, f"{what} trimmed away, {why}", _KEEPS)


def _grade(fn: Any, lab: Lab) -> None:
    _check_first(fn, lab)
    _check_full(fn, lab)
    _check_settled(fn, lab)
    _check_kept(fn, lab)
    _check_strangers(fn, lab)
    _check_stream_of_events(fn, lab)
    lab.r.flushdb()
    _check_two_producers(fn, lab)
    _check_reader(fn, lab)


def _check_first(fn: Any, lab: Lab) -> None:
    told = _Told(fn, lab, 3)
    told.story.tell("there is no stream yet")
    for _ in range(2):
        what = "there is a place, and nothing is added"
        told.story.hold(
            told.add(), "answer", what, "what add() does where the stream is short, or is not there"
        )


def _check_full(fn: Any, lab: Lab) -> None:
    """All that is there is needed: None, at once, and nothing is trimmed."""

    def setup(r: Any) -> None:
        for n in (1, 2):
            r.xadd(STREAM, {"event": f"e{n}"}, id=f"{n}-0")
        r.xgroup_create(STREAM, GROUP, "0")

    cast = "the stream holds 1-0 and 2-0, which nobody has read. A: add(r, stream, {…}, most=2)"
    actors = [lambda r: fn(r, STREAM, {"event": "new"}, 2)]
    try:
        explore_stream(lab, actors, cast, {}, setup, invariant=lambda r: True)
    except Failure as failure:
        if failure.property != "endless":
            raise
        what = "all that is there is needed, and add() waits: it is to say None, at once"
        raise Failure("waits", what, cast, "what add() does where there is no place") from None
    for groups in ((), (GROUP,)):
        told = _Told(fn, lab, 5, 5)
        for name in groups:
            told.group(name, 0)
        who = f"the group {GROUP!r} has" if groups else "there is no group, so nobody has"
        entry = told.add()
        told.kept(
            [1, 2, 3, 4, 5],
            "unread",
            f"and {who} {'not ' * bool(groups)}read {'it' if groups else 'anything'}",
        )
        what = "all five entries are needed, so there is no place: None"
        told.story.hold(entry is None, "full", what, _KEEPS)


def _check_settled(fn: Any, lab: Lab) -> None:
    """What all groups are done with makes room; one entry more or less may stay."""
    for read in (10, 6):
        told = _Told(fn, lab, 10, 10)
        told.group(GROUP, read)
        accepted = 0
        while accepted <= 10 and told.add() is not None:
            accepted += 1
        told.kept(list(range(read + 1, 11)), "unread", f"and the group {GROUP!r} has not read it")
        what = f"{read} of 10 entries are read and acknowledged, and {accepted} could be added in their place"
        told.story.hold(accepted >= read - 1, "stuck", what, "what is trimmed when the stream is full")
        told.story.hold(accepted <= read, "over", what, _KEEPS)


Groups = dict[str, tuple[int, tuple[int, ...]]]


def _check_kept(fn: Any, lab: Lab) -> None:
    """What some group needs stays, whatever the others have done."""
    slow = "and {} has not read it"
    held = "and {} has not acknowledged it: if its worker dies, it must come again"
    cases: list[tuple[Groups, str, str]] = [
        ({"a": (8, (4,))}, "pending", held.format("a worker of group 'a'")),
        ({"a": (8, (1,))}, "pending", held.format("a worker of group 'a'")),
        ({"a": (6, (3, 5))}, "pending", held.format("a worker of group 'a'")),
        ({"a": (8, ()), "b": (0, ())}, "groups", slow.format("group 'b'")),
        ({"a": (0, ()), "b": (8, ())}, "groups", slow.format("group 'a'")),
        ({"a": (8, ()), "b": (8, (7,))}, "groups", held.format("a worker of group 'b'")),
        ({"a": (8, (7,)), "b": (8, ())}, "groups", held.format("a worker of group 'a'")),
        ({"a": (12, (10,)), "b": (12, (9,))}, "order", held.format("a worker of group 'b'")),
        ({"a": (12, (9,)), "b": (12, (10,))}, "order", held.format("a worker of group 'a'")),
    ]
    for groups, property, why in cases:
        size = max(8, *(read for read, _ in groups.values()))
        told, needed = _Told(fn, lab, size, size), set[int]()
        for name, (read, pending) in groups.items():
            told.group(name, read, pending)
            needed |= {*range(read + 1, size + 1), *pending}
        for _ in range(size + 1):
            entry = told.add()
            told.kept(sorted(needed), property, why)
            if entry is None:
                break


def _check_strangers(fn: Any, lab: Lab) -> None:
    told = _Told(fn, lab, 3, 3)
    told.group(GROUP, 3)
    others = [f"{told.stream}:dead", f"{told.stream}2", "events"]
    for other in others:
        for n in range(1, 6):
            told.r.xadd(other, {"event": "another's"}, id=f"{n}-0")
        told.r.xgroup_create(other, GROUP, "$")
    shown = Scanned()
    shown.lines = told.story.lines
    with no_scan(shown, Inside(lab)):
        for _ in range(3):
            told.add()
    for other in others:
        what = f"{other} is another stream, and was trimmed"
        told.story.hold(told.r.xlen(other) == 5, "strangers", what, "which keys you touch")


class Scanned(Story):
    """What `no_scan` says, in the words of this chapter."""

    def hold(self, held: Any, property: str, message: str, look_at: str) -> None:
        if not held:
            what = message.partition(" goes")[0]
            message = f"{what} goes through every key of the server, for one stream whose name is known"
            raise Failure(
                property, message, "\n".join(self.lines), "what is asked of `stream` itself: XLEN, XINFO"
            )


def _check_stream_of_events(fn: Any, lab: Lab) -> None:
    """Two hundred events, and a reader that is now ahead, now behind: it misses none."""
    told, sent, seen = _Told(fn, lab, 20), list[str](), list[str]()
    told.r.xgroup_create(told.stream, GROUP, "0", mkstream=True)

    def read(count: int) -> None:
        reply = told.r.xreadgroup(GROUP, "w", {told.stream: ">"}, count=count)
        for got, _ in dict(reply).get(told.stream, []):
            seen.append(got)
            told.r.xack(told.stream, GROUP, got)

    for n in range(200):
        entry = told.add()
        told.story.lines[:-6] = []
        if entry is not None:
            sent.append(entry)
        if n % 7 == 0 or entry is None:
            read(12)
    read(1000)
    what = f"{len(sent)} events were accepted, and a reader that was behind has got {len(seen)} of them"
    told.story.hold(seen == sent, "unread", what, _KEEPS)


def _check_two_producers(fn: Any, lab: Lab) -> None:
    """One place is free, at once or when what is settled is trimmed."""

    def producer(name: str) -> Callable[[Any], Any]:
        return lambda r: fn(r, STREAM, {"event": name}, 3)

    def rule(r: Any, results: list[Any]) -> None:
        there = [fields["event"] for _, fields in r.xrange(STREAM)]
        for name, result in zip("AB", results, strict=True):
            assert (name in there) == (result is not None), (
                f"{name} is told {result!r}, and the stream holds {there}"
            )
        assert any(results), "there is a place, and neither A nor B is given it"

    def bounded(r: Any) -> None:
        length = r.xlen(STREAM)
        assert length <= 3, f"three entries are the most, and the stream holds {length}"

    says = {"are the most": ("full", _PLACE), "is told": ("answer", _PLACE), "neither": ("stuck", _PLACE)}
    for settled in (False, True):

        def setup(r: Any, settled: bool = settled) -> None:
            for n in range(1, 4 if settled else 3):
                r.xadd(STREAM, {"event": f"e{n}"}, id=f"{n}-0")
            r.xgroup_create(STREAM, GROUP, "2-0" if settled else "0")

        before = (
            "1-0, which is settled, 2-0 and 3-0, which are not" if settled else "1-0 and 2-0, both unread"
        )
        cast = f"the stream holds {before}. A and B: add(r, stream, {{…}}, most=3)"
        actors = [producer("A"), producer("B")]
        explore_stream(lab, actors, cast, says, setup, always=bounded, invariant=rule)


def _check_reader(fn: Any, lab: Lab) -> None:
    """While one adds, a worker reads and does not acknowledge: what it holds stays."""

    def worker(r: Any) -> None:
        r.xreadgroup(GROUP, "bob", {STREAM: ">"}, count=1)

    def rule(r: Any, results: list[Any]) -> None:
        there = [entry for entry, _ in r.xrange(STREAM)]
        for entry in ("2-0", "3-0"):
            assert entry in there, f"{entry} is not acknowledged, and was trimmed away"

    def setup(r: Any) -> None:
        for n in (1, 2, 3):
            r.xadd(STREAM, {"event": f"e{n}"}, id=f"{n}-0")
        r.xgroup_create(STREAM, GROUP, "1-0")

    cast = "1-0 is settled, 2-0 and 3-0 are unread. A: add(r, stream, {…}, most=3). B reads 2-0 for the group"
    says = {
        "acknowledged": (
            "race",
            "what a worker may read between two of your questions, and which comes first",
        )
    }
    actors = [lambda r: fn(r, STREAM, {"event": "new"}, 3), worker]
    explore_stream(lab, actors, cast, says, setup, invariant=rule)


EXERCISE = Exercise(
    stem="stream",
    name="trim",
    title="A stream that is bounded, and loses nothing that is needed",
    statement="""
A producer must bound its stream: Redis holds it in memory. `MAXLEN` would drop entries that nobody has
read. Write `add`, which knows better.

- `add(r, stream, fields, most)` adds an entry and returns its id. The stream never holds more than `most`
  entries, not for a moment, however many producers there are.
- An entry is needed as long as a group of the stream has not read it, or has not acknowledged it. Several
  groups may read; in a stream without a group all is needed.
- Nothing that is needed is ever removed. What stands before the first entry that is needed may go, and goes
  when there is no other place.
- If there is no place, `add` returns None, at once, and has added nothing: the producer is told to slow
  down.
- No other key is touched, and nothing goes through all keys of the server.
""".strip(),
    answer="add",
    stub=STUB.strip(),
    hints=(
        "XTRIM stream MINID id removes what stands before an id: exactly, if redis-py is told "
        "approximate=False. What is the first id that is needed?",
        "XINFO GROUPS shows each group's last-delivered-id: what comes after it is unread. XPENDING "
        "stream group shows the oldest id that was read and not acknowledged (`min`). Ids are pairs of "
        "numbers: as text 10-0 is before 9-0.",
        "Groups only go forward: what was settled when you looked is settled when you trim. But if you "
        "ask for `min` first and then for last-delivered-id, what is read in between is in neither.",
        "XLEN and XADD must be one step: a script that gives false if XLEN is `most` already, and what "
        "XADD gives otherwise. Try it; if it refuses, trim, and try once more.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
