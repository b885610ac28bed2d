"""Chapter 06, exercise snapshot: who comes late begins with the state, and goes on with the changes."""

from __future__ import annotations

import itertools
import json
from typing import Any

from labkit.rig.race import outside
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.lock.grading import Story, explored, spoilt
from labkit.teach.exercises.pubsub.grading import Feed
from labkit.teach.lab import Lab

STUB = '''
class MyTotal:
    """The total of `name` as it is now, in this process. It begins at any moment, while others change it."""

    def __init__(self, r, name, subscribe):
        raise NotImplementedError

    def total(self):
        """The total, with every change that has arrived."""
        raise NotImplementedError
'''

REFERENCE = '''
class MyTotal:
    """The total of `name` as it is now, in this process. It begins at any moment, while others change it.

    First it subscribes: from then on every change arrives. Then it reads the state, total and version in one
    command. A change that the state has in it already is known by its version.
    """

    def __init__(self, r, name, subscribe):
        self.inbox = subscribe(name)
        state = r.hgetall(name)
        self.value, self.version = int(state.get("total", 0)), int(state.get("version", 0))

    def total(self):
        """The total, with every change that has arrived."""
        for change in self.inbox.take():
            if change["version"] > self.version:
                self.value += change["amount"]
                self.version = change["version"]
        return self.value
'''

_READ = """        state = r.hgetall(name)
        self.value, self.version = int(state.get("total", 0)), int(state.get("version", 0))
"""
_VALUE = '        self.value = int(r.hget(name, "total") or 0)\n'
_VERSION = '        self.version = int(r.hget(name, "version") or 0)\n'
_SUBSCRIBE = "        self.inbox = subscribe(name)\n"
_APPLY = """            if change["version"] > self.version:
                self.value += change["amount"]
                self.version = change["version"]
"""


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return Wrong(spoilt(REFERENCE, *changes), violates, why)


WRONG = (
    _wrong(
        "lost",
        "reads the state, then subscribes: what changes in between never arrives",
        (_SUBSCRIBE, ""),
        (_READ, _READ + _SUBSCRIBE),
    ),
    _wrong(
        "twice",
        "subscribes, reads, and applies all that has arrived: some of it is in the state already",
        (_APPLY, '            self.value += change["amount"]\n'),
    ),
    _wrong(
        "twice",
        "`>=` in place of `>`: the change that the state ends with is applied again",
        ('change["version"] > self', 'change["version"] >= self'),
    ),
    _wrong(
        "lost",
        "throws away all that has arrived when the state has been read: some of it was not in it",
        (_READ, _READ + "        self.inbox.take()\n"),
        (_APPLY, '            self.value += change["amount"]\n'),
    ),
    _wrong(
        "lost",
        "`>` the state's version plus one: the first change after the state is dropped",
        (_READ, _READ + "        self.first = self.version + 1\n"),
        ('change["version"] > self.version:', 'change["version"] > self.first:'),
    ),
    _wrong(
        "lost",
        "reads the total, and then the version: a change between the two is never applied",
        (
            _READ,
            _VALUE + _VERSION,
        ),
    ),
    _wrong(
        "twice",
        "reads the version, and then the total: a change between the two is applied twice",
        (
            _READ,
            _VERSION + _VALUE,
        ),
    ),
    _wrong(
        "state",
        "begins with 0 in place of the state: all that was before is missing",
        (_READ, "        self.value = self.version = 0\n"),
    ),
    _wrong(
        "asks",
        "reads the state every time: that is asking, and no message is needed for it",
        (_SUBSCRIBE, "        self.r, self.name, self.inbox = r, name, subscribe(name)\n"),
        (_READ, ""),
        ("        for change in self.inbox.take():\n" + _APPLY, ""),
        ("return self.value", 'return int(self.r.hget(self.name, "total") or 0)'),
    ),
    _wrong(
        "empty",
        "int(state['total']): before the first change there is no hash, and it raises",
        (
            'int(state.get("total", 0)), int(state.get("version", 0))',
            'int(state["total"]), int(state["version"])',
        ),
    ),
)

CHANGE = """
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HINCRBY', KEYS[1], 'total', ARGV[1])
redis.call('PUBLISH', KEYS[1], cjson.encode({version = version, amount = tonumber(ARGV[1])}))
return version
"""
"""What a publisher does, in one step. KEYS: the state, and the channel has its name. ARGV: by how much."""


class _Inbox:
    """What `subscribe()` gives to an answer."""

    def __init__(self, world: _World, name: str) -> None:
        self._world, self._name, self._from = world, name, len(world.arrived)

    def take(self) -> list[dict[str, int]]:
        """The changes that have arrived since the last time, in order."""

        def act() -> list[dict[str, int]]:
            self._world.deliver()
            found, self._from = self._world.arrived[self._from :], len(self._world.arrived)
            return [dict(change) for change in found]

        return outside(["inbox.take()"], act, reads=["the channel"], writes=["the inbox"], show=_told)


def _told(changes: list[dict[str, int]]) -> str:
    said = [f"version {change['version']}: {change['amount']:+d}" for change in changes]
    return "; ".join(said) or "nothing"


class _World:
    """A state that is changed, its channel, which is a real one, and what has arrived on it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.r, self.name, self.feed = lab.client(), name, Feed(lab)
        self.arrived = list[dict[str, int]]()

    def begin(self, _: Any = None) -> None:
        """Three changes have been made, before anybody is there."""
        self.feed.take()
        self.arrived.clear()
        for amount in (100, 20, 3):
            self.r.eval(CHANGE, 1, self.name, amount)

    def change(self, amount: int) -> int:
        def act() -> int:
            return int(self.r.eval(CHANGE, 1, self.name, amount))

        said = [f"total {amount:+d}, in one step"]
        version = outside(said, act, writes=["the channel"], show=lambda version: f"version {version}")
        return int(version)

    def subscribe(self, name: str) -> _Inbox:
        """What an answer calls; returns when the server has confirmed it."""
        if name != self.name:
            what = f"subscribe({name!r}): that is another channel than the one of this total"
            raise Failure("channel", what, f"MyTotal(r, {self.name!r}, subscribe)", "subscribe(name)")

        def act() -> _Inbox:
            self.deliver()
            self.feed.subscribe(name)
            return _Inbox(self, name)

        inbox: _Inbox = outside(["SUBSCRIBE", name], act, writes=["the inbox"], show=lambda _: "confirmed")
        return inbox

    def deliver(self) -> None:
        self.arrived += map(json.loads, self.feed.take())

    def truth(self) -> int:
        return int(self.r.hget(self.name, "total") or 0)


def _total(
    story: Story, kept: Any, right: int, property: str, message: str, look: str, who: str = "the second"
) -> None:
    given = story.call(f"{who}: total()", kept.total)
    what = f"total() is to give a number, and gives {given!r}"
    story.hold(type(given) is int, "number", what, "what Redis gives: strings; int(…) makes a number of one")
    story.hold(given == right, property, f"{message}: total() is to give {right}", look)


LOOK = "the order in which it subscribes and reads, and the version of each change against that of the state"


def _check_alone(kind: Any, lab: Lab) -> None:
    """Nobody else is at work: one that begins with nothing, one that comes late, and both go on."""
    world = _World(lab, lab.key("sold"))
    try:
        story, r = Story("nothing has been changed yet"), lab.client()
        early = _begin(kind, world, lab, story)
        look = "what HGETALL gives where there is no key: {}"
        _total(story, early, 0, "empty", "there is no state yet", look, "the first")
        for amount in (5, -2):
            story.tell(f"total {amount:+d} -> version {world.change(amount)}")
        story.tell("a second MyTotal begins")
        late = kind(r, world.name, world.subscribe)
        _total(story, late, 3, "state", "version 2 was before it began", "what it has to begin with")
        what = "two changes have arrived"
        _total(story, early, 3, "lost", what, LOOK, "the first")
        for amount in (10, 20, -1):
            story.tell(f"total {amount:+d} -> version {world.change(amount)}")
        with lab.tap(r) as tape:
            _total(story, late, 32, "lost", "three more changes have arrived", LOOK)
        asked = ", ".join(exchange.command[0] for exchange in tape.commands)
        story.tell(f"with that it has sent: {asked}")
        what = "total() asks Redis: all that it needs has arrived"
        story.hold(not asked, "asks", what, "inbox.take(), and what __init__ has kept")
        _total(story, late, 32, "twice", "nothing has changed since", LOOK)
    finally:
        world.feed.close()


def _begin(kind: Any, world: _World, lab: Lab, story: Story) -> Any:
    """An answer where there is no state: whoever does not expect that raises."""
    try:
        return kind(lab.client(), world.name, world.subscribe)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TypeError) and "argument" in str(error):
            raise
        story.tell(f"MyTotal(r, name, subscribe) raises {type(error).__name__}: {error}")
        look = "what HGETALL gives where there is no key: {}; and HGET: None"
        story.hold(False, "empty", "nothing has been changed yet, and it cannot begin", look)


def _check_joins(kind: Any, lab: Lab) -> None:
    """Changes come at any moment: before, between and after its steps."""
    world = _World(lab, "sold")
    sums = [0, *itertools.accumulate((100, 20, 3, 4000, 500))]

    def a(r: Any) -> tuple[Any, Any]:
        kept = kind(r, world.name, world.subscribe)
        return kept, kept.total()

    def b(r: Any) -> None:
        world.change(4000)
        world.change(500)

    def rule(r: Any, results: list[Any]) -> None:
        kept, first = results[0]
        last, truth = kept.total(), world.truth()
        assert last == truth, f"the total is {truth}, and A's is {last}: {_why(last - truth)}"
        assert first in sums[3:], f"A's first total is {first}, which the total never was"

    cast = "the total is 123, by three changes. A: begins, and asks for total(). B: +4000, then +500"
    try:
        explored(lab, [a, b], "race", LOOK, cast, setup=world.begin, invariant=rule, reduce=False)
    except Failure as failure:
        if failure.property == "race":
            failure.property = "twice" if "twice" in failure.message else "lost"
        raise
    finally:
        world.feed.close()


def _why(wrong: int) -> str:
    """What has happened to the changes, from how far off the total is."""
    for sign, what in ((-1, "never reached it"), (1, "counted twice")):
        changes = [f"{amount:+d}" for amount in (4000, 500) if sign * wrong in (amount, 4500)]
        if changes:
            return f"{' and '.join(changes)} {what}"
    return "it is no sum of these changes"


def _grade(kind: Any, lab: Lab) -> None:
    _check_alone(kind, lab)
    _check_joins(kind, lab)


EXERCISE = Exercise(
    stem="pubsub",
    name="snapshot",
    title="Who comes late: the state first, and every change after it once",
    statement="""
A total is kept in Redis, and each change of it is published, in one step:

    local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
    redis.call('HINCRBY', KEYS[1], 'total', ARGV[1])
    redis.call('PUBLISH', KEYS[1], cjson.encode({version = version, amount = tonumber(ARGV[1])}))

So the hash `name` has the fields `total` and `version`, and the channel `name` carries the changes. Write
`MyTotal`, which has the total in this process.

- `subscribe(name)` is given. It returns when the server has confirmed the subscription. What it returns
  has one method, `take()`: the changes that have arrived since the subscription, or since the last
  `take()`, as a list in order: `[{"version": 8, "amount": 5}, {"version": 9, "amount": -2}]`.
- It may begin at any moment, also while others change the total, and where nothing has been changed yet
  (0).
- `total()` gives a number, with every change that has arrived: none is lost, and none is applied twice.
- `total()` asks Redis nothing: it takes what has arrived.
""".strip(),
    answer="MyTotal",
    stub=STUB.strip(),
    hints=(
        "What is changed between reading and subscribing never arrives. So which of the two comes first?",
        "What is changed between subscribing and reading arrives, and is in the state already. Its "
        "version tells: it is not above the version of the state.",
        "The total and its version belong together: read both in one command, r.hgetall(name), or a "
        "change comes between them. Both are strings, and neither is there before the first change.",
        "In total(): for each change of inbox.take(), if its version is above the one that is kept, add"
        " its amount and keep its version.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
