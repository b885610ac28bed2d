"""Chapter 06, exercise gaps: numbered messages, so that whoever misses some knows which."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import redis

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.lock.grading import Story, explored, spoilt
from labkit.teach.exercises.pubsub.grading import Feed, apart
from labkit.teach.lab import Lab

STUB = '''
class MyChannel:
    def __init__(self, r, channel):
        self.r, self.channel = r, channel

    def publish(self, text):
        """Publish `text` with the next number of the channel: 1, 2, 3 … Gives the number."""
        raise NotImplementedError

    def subscribed(self):
        """Called when the server has confirmed the subscription: the first one, and after each reconnect."""
        raise NotImplementedError

    def receive(self, data):
        """Called with what a message carries. Gives its text; None if that message was received before."""
        raise NotImplementedError

    def missing(self):
        """The numbers of the messages that this receiver has missed: a list, in ascending order."""
        raise NotImplementedError
'''

REFERENCE = '''
import json


class MyChannel:
    """Numbered messages on `channel`. Each publisher and each receiver has one: none knows of the others.

    The counter is the key `{channel}:number`. It has no TTL, since numbers must never begin again.
    """

    # KEYS: the counter. ARGV: the channel, the text as JSON. Returns the number.
    PUBLISH = """
    local number = redis.call('INCR', KEYS[1])
    redis.call('PUBLISH', ARGV[1], '[' .. number .. ',' .. ARGV[2] .. ']')
    return number
    """

    def __init__(self, r, channel):
        self.r, self.channel, self.counter = r, channel, f"{channel}:number"
        self.last, self.lost = None, set()  # the highest number known of; those below it that have not come

    def publish(self, text):
        """Publish `text` with the next number of the channel: 1, 2, 3 … Gives the number."""
        return self.r.eval(self.PUBLISH, 1, self.counter, self.channel, json.dumps(text))

    def subscribed(self):
        """Called when the server has confirmed the subscription: the first one, and after each reconnect."""
        if self.last is not None:
            self._expect(int(self.r.get(self.counter) or 0) + 1)

    def receive(self, data):
        """Called with what a message carries. Gives its text; None if that message was received before."""
        number, text = json.loads(data)
        if self.last is None:
            self.last = number
        elif number > self.last:
            self._expect(number)
            self.last = number
        elif number in self.lost:
            self.lost.remove(number)
        else:
            return None
        return text

    def missing(self):
        """The numbers of the messages that this receiver has missed: a list, in ascending order."""
        return sorted(self.lost)

    def _expect(self, number):
        """All below `number` have been published, so what has not come of them is missing."""
        self.lost.update(range(self.last + 1, number))
        self.last = max(self.last, number - 1)
'''

_CATCH_UP = """        if self.last is not None:
            self._expect(int(self.r.get(self.counter) or 0) + 1)"""
_EVAL = "self.r.eval(self.PUBLISH, 1, self.counter, self.channel, json.dumps(text))"


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return Wrong(spoilt(REFERENCE, *changes), violates, why)


def _publish(violates: str, why: str, body: str, head: str = "import json") -> Wrong:
    return _wrong(violates, why, (f"return {_EVAL}", body), ("import json", head))


WRONG = (
    _publish(
        "race",
        "INCR, then PUBLISH: another publisher's message may come first",
        """number = self.r.incr(self.counter)
        self.r.publish(self.channel, json.dumps([number, text]))
        return number""",
    ),
    _publish(
        "race",
        "GET, then a transaction: two publishers take the same number",
        """number = int(self.r.get(self.counter) or 0) + 1
        data = json.dumps([number, text])
        self.r.pipeline().set(self.counter, number).publish(self.channel, data).execute()
        return number""",
    ),
    _publish(
        "crash",
        "INCR and PUBLISH under a lock: in order; but after a crash nobody publishes for a minute",
        """while not self.r.set(f"{self.channel}:lock", "mine", nx=True, ex=60):
            time.sleep(0.01)
        number = self.r.incr(self.counter)
        self.r.publish(self.channel, json.dumps([number, text]))
        self.r.delete(f"{self.channel}:lock")
        return number""",
        "import json\nimport time",
    ),
    _publish(
        "number",
        "the client's clock for a number: nobody can tell whether there was one in between",
        """number = time.time_ns()
        self.r.publish(self.channel, json.dumps([number, text]))
        return number""",
        "import json\nimport time",
    ),
    _publish(
        "number",
        "each publisher counts for itself: two messages have the number 1",
        """self.number = getattr(self, "number", 0) + 1
        self.r.publish(self.channel, json.dumps([self.number, text]))
        return self.number""",
    ),
    _wrong(
        "first",
        "who comes late is told that it missed all that was before",
        ("self.last, self.lost = None, set()", "self.last, self.lost = 0, set()"),
        (
            "        if self.last is not None:\n            self._expect",
            "        if self.last:\n            self._expect",
        ),
    ),
    _wrong(
        "which",
        "says how many are missing: nobody can ask for them without their numbers",
        ("sorted(self.lost)", "len(self.lost)"),
    ),
    _wrong(
        "which",
        "knows the first number of the gap only, however long it is",
        ("range(self.last + 1, number)", "range(self.last + 1, min(number, self.last + 2))"),
    ),
    _wrong(
        "reconnect",
        "begins anew after a reconnect: what was missed meanwhile is forgotten",
        (
            _CATCH_UP,
            "        self.last, self.lost = None, set()",
        ),
    ),
    _wrong(
        "tail",
        "goes on with the next number after a reconnect, whatever was missed",
        (
            _CATCH_UP,
            "        self.last = None",
        ),
    ),
    _wrong(
        "tail",
        "learns of a gap from the next message only: if none comes, never",
        (
            _CATCH_UP,
            "        pass",
        ),
    ),
    _wrong(
        "twice",
        "a message that comes a second time is handled a second time",
        ("        else:\n            return None\n", ""),
    ),
    _wrong(
        "late",
        "what comes late is taken for something that was received before",
        (
            "            self.lost.remove(number)\n",
            "            self.lost.remove(number)\n            return None\n",
        ),
    ),
    _wrong(
        "late",
        "what comes late is still called missing",
        ("            self.lost.remove(number)", "            pass"),
    ),
    _wrong(
        "asks",
        "asks the server for the latest number with every message",
        (
            "        number, text = json.loads(data)\n",
            "        number, text = json.loads(data)\n        self.subscribed()\n",
        ),
    ),
)

_RECEIVED = "what a receiver remembers: the highest number, and which below it have not come"


class _Receiver:
    """An answer that receives, its story, and what was published and has not been delivered yet."""

    def __init__(self, kind: Any, lab: Lab, channel: str, feed: Feed, *lines: str) -> None:
        self.lab, self.r, self.feed, self.story = lab, lab.client(), feed, Story(*lines)
        self.publishers = [apart(kind)(lab.client(), channel) for _ in range(2)]
        self.one = apart(kind)(self.r, channel)
        self.on_its_way = dict[int, str]()
        self.number = 0

    def publish(self, *texts: str) -> None:
        """By both publishers in turn; each message is on its way then."""
        for text in texts:
            self.number += 1
            publisher = self.publishers[self.number % 2]
            number = publisher.publish(text)
            self.story.tell(f"publish({text!r}) -> {number!r}")
            what = f"publish() is to give the number of the message, {self.number}, and gives {number!r}"
            look = "who counts: publishers in several processes have nothing in common but Redis"
            right = type(number) is int and number == self.number
            self.story.hold(right, "number", what, look)
            data = self.feed.take()
            what = f"publish() is to publish one message on the channel, and has published {len(data)}"
            self.story.hold(len(data) == 1, "message", what, "PUBLISH channel, once for each message")
            self.on_its_way[number] = data[0]
        del self.story.lines[-len(texts) :]
        numbers = [str(self.number - back) for back in reversed(range(len(texts)))]
        self.story.tell(f"published: {', '.join(numbers)}")

    def lose(self, *numbers: int) -> None:
        for number in numbers:
            self.on_its_way.pop(number)
        self.story.tell(f"lost on the way: {', '.join(map(str, numbers))}")

    def get(self, number: int, text: str | None, property: str, message: str, look: str = _RECEIVED) -> None:
        """Message `number` arrives: receive() is to give this text."""
        with self.lab.tap(self.r) as tape:
            given = self.one.receive(self.on_its_way[number])
        self.story.tell(f"receive(message {number}) -> {given!r}")
        asked = ", ".join(exchange.command[0] for exchange in tape.commands)
        what = f"receive() asks the server ({asked}), and that for every message"
        look_there = "what the number in the message itself tells"
        self.story.hold(not asked, "asks", what, look_there)
        self.story.hold(given == text, property, message, look)

    def subscribed(self) -> None:
        self.story.call("subscribed()", self.one.subscribed)

    def misses(self, *numbers: int, property: str, message: str, look: str = _RECEIVED) -> None:
        """missing() is to give just these."""
        given = self.story.call("missing()", self.one.missing)
        what = f"missing() is to give a list of numbers, and gives {given!r}"
        self.story.hold(isinstance(given, list), "which", what, "sorted(…), which gives a list")
        self.story.hold(given == list(numbers), property, message, look)


def _check_receiver(kind: Any, lab: Lab, feed: Feed) -> None:
    """One receiver, message by message: it comes late, misses some, reconnects, gets some out of order."""
    channel = lab.key("news")
    feed.subscribe(channel)
    one = _Receiver(kind, lab, channel, feed)
    one.publish("one", "", 'three, "ünï" [3]: a\nb')
    one.story.tell("a receiver begins")
    one.subscribed()
    nothing = "nothing has been lost, and missing() is not empty"
    one.misses(property="first", message=nothing, look="what was published before the first subscription")
    one.publish("four", "")
    late = "it began with message 4: what was before that, it has not missed"
    for number, text in ((4, "four"), (5, "")):
        what = f"message {number} arrives, and receive() does not give its text, {text!r}"
        one.get(
            number, text, "text", what, "what publish() puts into the message, and what receive() takes out"
        )
        one.misses(property="first", message=late, look="the first number that a receiver sees")
    _check_gap(one)
    _check_reconnect(one)
    _check_order(one)


def _check_gap(one: _Receiver) -> None:
    one.story.lines = ["a receiver has received 4 and 5"]
    one.publish(*"6789")
    one.lose(6, 7, 8)
    one.get(9, "9", "text", "message 9 arrives, and receive() does not give its text, '9'")
    what = "5 was received, and 9 is the next: 6, 7 and 8 are missing"
    one.misses(6, 7, 8, property="which", message=what)


def _check_reconnect(one: _Receiver) -> None:
    one.story.lines = ["a receiver has received 4, 5 and 9, and lost its connection"]
    one.publish("10", "11")
    one.lose(10, 11)
    one.story.tell("a new connection")
    one.subscribed()
    given = one.story.call("missing()", one.one.missing)
    what = (
        "while the connection was lost, 10 and 11 were published: it is not to wait for 12 to find that out"
    )
    look = "subscribed(): Redis knows the latest number"
    one.story.hold(given != [6, 7, 8], "tail", what, look)
    what = "6, 7, 8 and, while the connection was lost, 10 and 11 were missed, and that is forgotten"
    look = "what subscribed() does to what the receiver knows"
    one.story.hold(given == [6, 7, 8, 10, 11], "reconnect", what, look)
    one.publish("12")
    one.get(12, "12", "text", "message 12 arrives, and receive() does not give its text, '12'")
    one.misses(6, 7, 8, 10, 11, property="reconnect", message=what, look=look)


def _check_order(one: _Receiver) -> None:
    """Twice; late; and what was on its way when the receiver asked for the latest number."""
    one.story.lines = ["a receiver has received 4, 5, 9 and 12"]
    what = "message 12 has been received before: receive() is to give None, so that it is not handled twice"
    one.get(12, None, "twice", what)
    one.publish("13", "14", "15")
    one.get(15, "15", "text", "message 15 arrives, and receive() does not give its text, '15'")
    one.get(13, "13", "late", "message 13 comes after 15, and it is new: receive() is to give its text")
    what = "13 came late, and is missing no more; 14 has not come"
    one.misses(6, 7, 8, 10, 11, 14, property="late", message=what)
    one.get(13, None, "twice", "message 13 has been received before: receive() is to give None")
    one.story.tell("a new connection")
    one.publish("16")
    one.subscribed()
    what = "16 was on its way when subscribed() was called, and it is new: receive() is to give its text"
    one.get(16, "16", "late", what)
    what = "16 has come, and is missing no more"
    one.misses(6, 7, 8, 10, 11, 14, property="late", message=what)
    what = "message 9 has been received before: receive() is to give None"
    one.get(9, None, "twice", what)


BETWEEN = "what may happen between taking a number and publishing it: a script is one step"


def _bounded(lab: Lab, after: str) -> redis.Redis:
    """A client that gives up where a publisher does not come to an end."""
    sent = itertools.count()

    class Bounded(redis.Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            if next(sent) > 50:
                what = "after a crash of one publisher nobody can publish any more"
                raise Failure("crash", what, after, "what waits for whom: a script waits for nobody")
            send: Any = super().send_packed_command
            send(command, check_health)

    return lab.client(connection_class=Bounded)


class _Race:
    """One message has been published; then several publish. What a receiver makes of what it gets."""

    def __init__(self, kind: Any, lab: Lab, feed: Feed) -> None:
        self.kind, self.lab, self.feed = kind, lab, feed
        self.channel, self.first = "news", list[str]()
        feed.subscribe(self.channel)

    def setup(self, r: Any) -> None:
        self.feed.take()
        self.kind(r, self.channel).publish("the first")
        self.first = self.feed.take()

    def publish(self, text: str, r: Any) -> Any:
        return self.kind(r, self.channel).publish(text)

    def received(self, why: str) -> None:
        """Raises AssertionError if a receiver takes anything for lost, or for received before."""
        receiver = apart(self.kind)(self.lab.r, self.channel)
        for data in [*self.first, *self.feed.take()]:
            text = receiver.receive(data)
            assert text is not None, "two messages have the same number: a receiver takes one for the other"
            missing = receiver.missing()
            assert not missing, f"{text!r} arrives, and for its receiver {missing} is missing: {why}"

    def in_order(self, r: Any, results: list[Any]) -> None:
        self.received("that is on its way")
        assert sorted(results) == [2, 3], f"A is told the number {results[0]}, and B {results[1]}"

    def goes_on(self, r: Any, results: list[Any]) -> None:
        cast = 'A: publish("a"), and crashes. B: publish("b")'
        apart(self.kind)(_bounded(self.lab, cast), self.channel).publish("b")

    def loses_none(self, r: Any, results: list[Any]) -> None:
        self.goes_on(r, results)
        self.received("it was never published")


def _check_races(kind: Any, lab: Lab, feed: Feed) -> None:
    """In whatever order the steps of two publishers come, numbers arrive in order; and a crash takes none."""
    race = _Race(kind, lab, feed)
    rules: dict[str, Any] = {"setup": race.setup, "reduce": False}
    cast = 'one message has been published. A: publish("a"); it may crash. Then B: publish("b")'
    a, b = partial(race.publish, "a"), partial(race.publish, "b")
    two = 'one message has been published. A: publish("a"). B: publish("b")'
    explored(lab, [a], "crash", BETWEEN, cast, invariant=race.goes_on, faults=[crash], **rules)
    explored(lab, [a, b], "race", BETWEEN, two, invariant=race.in_order, **rules)
    explored(lab, [a], "crash", BETWEEN, cast, invariant=race.loses_none, faults=[crash], **rules)


def _grade(kind: Any, lab: Lab) -> None:
    feed = Feed(lab)
    try:
        _check_receiver(kind, lab, feed)
        _check_races(kind, lab, feed)
    finally:
        feed.close()


EXERCISE = Exercise(
    stem="pubsub",
    name="gaps",
    title="Numbered messages: whoever misses some knows which",
    statement="""
Pub/sub forgets. Let messages have numbers, so that a receiver knows at least what it has missed. Several
processes publish, others receive; each has a `MyChannel` of its own.

- `publish(text)` publishes one message with the next number of the channel (1, 2, 3 …, over all
  publishers), and gives the number. What the message looks like is up to you.
- Messages arrive in the order of their numbers, however many publish at once, and a number that is given
  is published: also if a publisher crashes at any moment.
- `receive(data)` is called with what a message carries, and gives its text; None if that message has been
  received before. It asks Redis nothing.
- `missing()` gives the numbers that were missed, as a sorted list. Nothing that came before the first
  message that a receiver has received counts as missed. What comes late has come: it is missing no more.
- `subscribed()` is called when the server has confirmed the subscription: the first one, and again after
  each reconnect. After a reconnect `missing()` knows at once what was published meanwhile.
""".strip(),
    answer="MyChannel",
    stub=STUB.strip(),
    hints=(
        "Between r.incr(…) and r.publish(…) another publisher may take the next number, and publish it "
        "first. What takes a number and publishes it in one step? A transaction does not know the "
        "number before it ends.",
        "A script: local number = redis.call('INCR', KEYS[1]), then redis.call('PUBLISH', ARGV[1], "
        "number .. ':' .. ARGV[2]), then return number. data.partition(':') takes it apart again.",
        "A receiver needs two things: the highest number that it knows of (None at first), and the set "
        "of those below it that have not come. A number above the highest adds what it jumps over to "
        "the set; one in the set leaves it; any other has been received before.",
        "After a reconnect no message may come for long. But Redis knows the latest number: in "
        "subscribed() all numbers up to int(r.get(counter) or 0) that have not come are missing, until "
        "they come.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=30,
)
