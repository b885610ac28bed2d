"""Chapter 07, exercise worker: a crash loses no payment, and nothing pays twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from labkit.rig.race import crash
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.exercises.session.grading import Inside, elsewhere, said
from labkit.teach.exercises.stream.grading import (
    GROUP,
    asked,
    check_no_wait,
    explore_stream,
    groups,
    hold,
    pending,
)
from labkit.teach.lab import Lab

STUB = '''
class MyWorker:
    """A worker called `name`, one of `group`. It pays what stands in `stream` into `accounts`, a hash."""

    def __init__(self, r, stream, group, name, accounts):
        raise NotImplementedError

    def work(self):
        """Settle up to 10 entries, first those that this worker was given before; how many. Never waits."""
        raise NotImplementedError
'''

REFERENCE = '''
import redis

class MyWorker:
    """A worker called `name`, one of `group`. It pays what stands in `stream` into `accounts`, a hash."""

    REMEMBER = 3600  # seconds

    # KEYS: stream, accounts, the payment's own key. ARGV: group, entry, seconds, whom, how much. Gives XACK.
    PAY = """
    if redis.call('SET', KEYS[3], ARGV[2], 'NX', 'EX', ARGV[3]) then
        redis.call('HINCRBY', KEYS[2], ARGV[4], ARGV[5])
    end
    return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
    """

    def __init__(self, r, stream, group, name, accounts):
        self.r, self.stream, self.group, self.name, self.accounts = r, stream, group, name, accounts
        try:
            r.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def work(self):
        """Settle up to 10 entries, first those that this worker was given before; how many. Never waits."""
        entries = self.read("0") or self.read(">")
        for entry, fields in entries:
            self.settle(entry, fields)
        return len(entries)

    def read(self, after):
        reply = self.r.xreadgroup(self.group, self.name, {self.stream: after}, count=10)
        return dict(reply).get(self.stream, [])

    def settle(self, entry, fields):
        if not fields:  # trimmed away while it was pending
            self.r.xack(self.stream, self.group, entry)
            return
        done = f"{self.stream}:paid:{fields['payment']}"
        keys = self.stream, self.accounts, done
        self.r.eval(self.PAY, 3, *keys, self.group, entry, self.REMEMBER, fields["to"], fields["amount"])
'''

_LOOP = """        for entry, fields in entries:
            self.settle(entry, fields)
"""
_DONE = "        done = f\"{self.stream}:paid:{fields['payment']}\"\n"
_BY_LUA = REFERENCE[REFERENCE.index("        keys = self.stream") :]
_PAYS = 'self.r.hincrby(self.accounts, fields["to"], int(fields["amount"]))'
_ACKS = "self.r.xack(self.stream, self.group, entry)"
_READS = 'entries = self.read("0") or self.read(">")'
_NX = "self.r.set(done, entry, nx=True, ex=self.REMEMBER)"
_GUARD = "    if redis.call('SET', KEYS[3], ARGV[2], 'NX', 'EX', ARGV[3]) then"
_CREATE = REFERENCE[REFERENCE.index("        try:\n") : REFERENCE.index("    def work")]
_XREAD = """
class MyWorker:
    def __init__(self, r, stream, group, name, accounts):
        self.r, self.stream, self.group, self.name, self.accounts = r, stream, group, name, accounts
        self.after = "0"

    def work(self):
        entries = dict(self.r.xread({self.stream: self.after}, count=10)).get(self.stream, [])
        for entry, fields in entries:
            done = f"{self.stream}:paid:{fields['payment']}"
            with self.r.pipeline() as pipe:
                if self.r.set(done, entry, nx=True, ex=3600):
                    self.r.hincrby(self.accounts, fields["to"], int(fields["amount"]))
            self.after = entry
        return len(entries)
"""


def _settles(*lines: str) -> tuple[str, str]:
    """The reference, but that it settles an entry by these lines."""
    return _BY_LUA, "".join(f"        {line}\n" for line in lines)


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


_MULTI = (
    "with self.r.pipeline() as pipe:",
    "    pipe.set(done, entry, ex=self.REMEMBER)",
    "    pipe.hincrby(self.accounts, fields['to'], int(fields['amount']))",
    "    pipe.xack(self.stream, self.group, entry).execute()",
)
_ASKS = ("if self.r.exists(done):", f"    {_ACKS}", "    return")

WRONG = (
    _wrong(
        "lost",
        "XACK before the work: a crash in between, and the payment is lost with nothing pending",
        (_DONE, f"        {_ACKS}\n{_DONE}"),
    ),
    _wrong(
        "lost",
        "XACK of the whole batch when it is read: a crash loses all that was not done yet",
        (
            _LOOP,
            "        if entries:\n"
            "            self.r.xack(self.stream, self.group, *[e for e, _ in entries])\n" + _LOOP,
        ),
    ),
    Wrong(_XREAD, "group", "XREAD without a group: each worker is given everything"),
    _wrong(
        "lost",
        "NOACK: nothing is pending, so a crash loses what was read",
        ("count=10", "count=10, noack=True"),
    ),
    _wrong(
        "earlier", "the group begins at $: what was there before is never delivered", ('id="0"', 'id="$"')
    ),
    _wrong(
        "start",
        "no word on BUSYGROUP: the second worker cannot start",
        (_CREATE, '        r.xgroup_create(stream, group, id="0", mkstream=True)\n\n'),
    ),
    _wrong(
        "start",
        "asks whether the group is there: two that start at once both create it",
        (
            _CREATE,
            "        if not r.exists(stream) or group not in [g['name'] for g in r.xinfo_groups(stream)]:\n"
            '            r.xgroup_create(stream, group, id="0", mkstream=True)\n\n',
        ),
    ),
    _wrong("start", "without MKSTREAM no worker starts before the first payment", (", mkstream=True", "")),
    _wrong(
        "again",
        "destroys the group at each start: what is pending is forgotten, and all is delivered again",
        ("        try:\n", "        r.exists(stream) and r.xgroup_destroy(stream, group)\n        try:\n"),
    ),
    _wrong("blocks", "BLOCK 0: waits for ever, and nothing can stop it", ("count=10", "count=10, block=0")),
    _wrong(
        "blocks",
        "BLOCK 5000: work() is to say 0 at once, and keeps its caller waiting",
        ("count=10", "count=10, block=5000"),
    ),
    _wrong(
        "duplicate",
        "no idempotency key: XACK guards against the same entry, not against the same payment",
        (_GUARD, "    if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then"),
    ),
    _wrong(
        "duplicate",
        "the idempotency key is the entry's id: a payment that was sent twice has two",
        ("{fields['payment']}", "{entry}"),
    ),
    _wrong(
        "duplicate",
        "work and XACK in MULTI: a payment that was sent twice is two entries, and paid twice",
        _settles(*(line for line in _MULTI if ".set(" not in line)),
    ),
    _wrong(
        "lost",
        "done first, and the effect in another step: a crash in between loses the payment",
        _settles(f"if {_NX}:", f"    {_PAYS}", _ACKS),
    ),
    _wrong(
        "twice",
        "the effect first, and done in another step: a crash in between pays twice",
        _settles("if not self.r.exists(done):", f"    {_PAYS}", f"    {_NX}", _ACKS),
    ),
    _wrong(
        "twice", "asks for the done key, then MULTI: in between another has paid", _settles(*_ASKS, *_MULTI)
    ),
    _wrong(
        "raises",
        "WATCH is right, but its WatchError ends the worker: somebody else has paid, no more",
        _settles(
            "with self.r.pipeline() as pipe:",
            "    pipe.watch(done)",
            "    paid = pipe.exists(done)",
            "    pipe.multi()",
            "    if not paid:",
            "        pipe.set(done, entry, ex=self.REMEMBER)",
            "        pipe.hincrby(self.accounts, fields['to'], int(fields['amount']))",
            "    pipe.xack(self.stream, self.group, entry).execute()",
        ),
    ),
    _wrong(
        "ttl",
        "the done key has no TTL: memory grows with each payment that ever was",
        ("'NX', 'EX', ARGV[3])", "'NX')"),
    ),
    _wrong(
        "ttl", "remembered for less than four seconds: milliseconds for seconds", ("'NX', 'EX'", "'NX', 'PX'")
    ),
    _wrong(
        "ttl",
        "one set for all payments, renewed by each: while payments come it never ends",
        (
            _GUARD,
            "    local new = redis.call('SADD', KEYS[3], ARGV[6])\n"
            "    redis.call('EXPIRE', KEYS[3], ARGV[3])\n    if new == 1 then",
        ),
        (":paid:{fields['payment']}", ":paid"),
        ('fields["amount"])', 'fields["amount"], fields["payment"])'),
    ),
    _wrong(
        "left",
        "reads only new entries: what it had when it crashed is left for ever",
        (_READS, 'entries = self.read(">")'),
    ),
    _wrong(
        "ack",
        "no XACK: all that was ever read stays pending",
        ("return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])", "return 1"),
        (_READS, 'entries = self.read(">")'),
    ),
    _wrong(
        "theirs",
        "takes over what is pending without an idle time: that is others' work",
        (_READS, "self.r.xautoclaim(self.stream, self.group, self.name, 0)\n        " + _READS),
    ),
    _wrong(
        "kept",
        "XDEL of what is settled: other groups have not read it",
        (_BY_LUA, f"{_BY_LUA}        self.r.xdel(self.stream, entry)\n"),
    ),
    _wrong("batch", "no COUNT: a million entries at once", (", count=10", "")),
    _wrong(
        "others",
        "the done key has only the payment's id: another stream's payment of that id counts as paid",
        ('f"{self.stream}:paid', 'f"paid'),
    ),
    _wrong(
        "shared",
        "remembers in the process: another worker, or this one after a crash, pays again",
        ("import redis\n", "import redis\n\nPAID = set()\n"),
        _settles(
            "if fields['payment'] not in PAID:",
            f"    {_PAYS}",
            "    PAID.add(fields['payment'])",
            _ACKS,
        ),
        (_DONE, ""),
    ),
    _wrong(
        "answer",
        "returns None: the caller does not know whether there is more to do",
        ("        return len(entries)\n", ""),
    ),
)

STREAM, ACCOUNTS = "payments", "accounts"
_HOW_MANY = "what work() returns, on every path"
_CREATES = "what XGROUP CREATE answers if there is no stream, and if the group is there already"
_STEPS = "which of done key, effect and acknowledgement are one step: a crash, or another, may come between"


def _add(r: Any, stream: str, *payments: tuple[str, str, int]) -> None:
    """Payments with ids 1-0, 2-0, … after those that are there."""
    first = int(r.xlen(stream)) + 1
    for number, (payment, to, amount) in enumerate(payments, first):
        r.xadd(stream, {"payment": payment, "to": to, "amount": amount}, id=f"{number}-0")


class _Told:
    """A stream, workers and a story."""

    def __init__(self, kind: Any, lab: Lab, *lines: str, empty: bool = True) -> None:
        if empty:
            lab.r.flushdb()
        self.r: Any = lab.r
        self.kind = kind
        self.stream, self.accounts, self.story = lab.key("payments"), lab.key("accounts"), Story(*lines)

    def add(self, *payments: tuple[str, str, int]) -> None:
        _add(self.r, self.stream, *payments)
        said = "; ".join(f"{payment} (to {to}, {amount})" for payment, to, amount in payments)
        self.story.tell(f"XADD: {said}")

    def worker(self, name: str) -> Any:
        """In a process of its own: it shares no variable with another."""
        made = elsewhere(self.kind)(self.r, self.stream, GROUP, name, self.accounts)
        asked(self.story, made, ("work",), "MyWorker")
        return made

    def work(self, worker: Any, name: str = "ada") -> int:
        try:
            settled = worker.work()
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self.story.tell(f"{name}.work(): {error}")
            self.story.hold(False, "group", "nobody has created the group", _CREATES)
        self.story.tell(f"{name}.work() -> {settled!r}")
        number = isinstance(settled, int) and not isinstance(settled, bool)
        what = f"work() gives {settled!r}: the number of entries that it settled is asked for"
        self.story.hold(number, "answer", what, _HOW_MANY)
        return int(settled)

    def paid(self) -> dict[str, int]:
        """What stands in the accounts."""
        found = {who: int(float(amount)) for who, amount in self.r.hgetall(self.accounts).items()}
        shown = ", ".join(f"{who}: {amount}" for who, amount in sorted(found.items()))
        self.story.tell(f"HGETALL accounts -> {{{shown}}}")
        return found


def _grade(kind: Any, lab: Lab) -> None:
    _check_first(kind, lab)
    _check_no_wait(kind, lab)
    _check_start(kind, lab)
    _check_batch(kind, lab)
    _check_again(kind, lab)
    _check_left(kind, lab)
    _check_memory(kind, lab)
    lab.r.flushdb()
    _check_crash(kind, lab)
    _check_both(kind, lab)
    _check_start_race(kind, lab)


def _check_first(kind: Any, lab: Lab) -> None:
    """Three payments are there before any worker."""
    told = _Told(kind, lab)
    r, story = told.r, told.story
    told.add(("p1", "eve", 5), ("p2", "bob", 7), ("p3", "eve", 1))
    worker = told.worker("ada")
    settled = told.work(worker)
    found = groups(r, told.stream)
    story.tell(f"XINFO GROUPS -> {', '.join(found) or 'none'}")
    what = f"nothing was read by the group {GROUP!r}: it is what gives each entry to one worker only"
    story.hold(GROUP in found, "group", what, "XREADGROUP, and XGROUP CREATE")
    paid = told.paid()
    what = "payments that were there before the group are never delivered to it"
    last = r.xinfo_groups(told.stream)[0]["last-delivered-id"]
    story.hold(paid or settled or last != "3-0", "earlier", what, "where the group begins: id=")
    story.hold(
        paid == {"eve": 6, "bob": 7}, "paid", "eve is to have 6 and bob 7", "what you do with an entry"
    )
    left = len(pending(r, told.stream))
    story.tell(f"XPENDING -> {left}")
    what = "everything is paid, and entries are still pending: they will be delivered again"
    story.hold(not left, "ack", what, "XACK")
    story.hold(settled == 3, "answer", "three entries were settled", _HOW_MANY)
    length = r.xlen(told.stream)
    story.tell(f"XLEN -> {length}")
    what = "entries were removed: other groups of this stream have not read them"
    story.hold(length == 3, "kept", what, "what you do to the stream beside reading and XACK")


@contextmanager
def _starting(what: str) -> Iterator[None]:
    """What the creation of the group raises is told as what it is."""
    try:
        yield
    except Failure as failure:
        if re.search("BUSYGROUP|NOGROUP|XGROUP", failure.message):
            error = failure.message.partition("raised ")[2]
            raise Failure("start", f"{what}: {error[:90]}", failure.counterexample, _CREATES) from None
        raise


def _check_no_wait(kind: Any, lab: Lab) -> None:
    """An empty stream: it does not wait, and says 0."""

    def work(r: Any) -> Any:
        return kind(r, STREAM, GROUP, "ada", ACCOUNTS).work()

    with _starting("a worker cannot start where there is no stream yet"):
        check_no_wait(lab, "there is no stream yet. A: MyWorker(…).work()", work)
    told = _Told(kind, lab, "the stream is empty")
    settled = told.work(told.worker("ada"))
    told.story.hold(settled == 0, "answer", "there is nothing to settle: 0", _HOW_MANY)


def _check_start(kind: Any, lab: Lab) -> None:
    """Before the first payment, and when the group is there: a worker can start."""
    told = _Told(kind, lab, "there is no stream yet")
    for name in ("ada", "bob", "ada"):
        try:
            told.worker(name).work()
        except redis.RedisError as error:
            told.story.tell(f"{name} starts: {type(error).__name__}: {error}")
            what = f"a worker cannot start: {str(error)[:60].rstrip('.')}"
            raise Failure("start", what, "\n".join(told.story.lines), _CREATES) from None
        told.story.tell(f"{name} starts, and works")


def _check_batch(kind: Any, lab: Lab) -> None:
    told = _Told(kind, lab)
    _add(told.r, told.stream, *((f"p{n}", "eve", 1) for n in range(25)))
    told.story.tell("XADD: 25 payments of 1 to eve")
    worker, calls = told.worker("ada"), list[int]()
    while len(calls) < 26 and (not calls or calls[-1]):
        calls.append(told.work(worker))
        what = f"up to 10 entries a call are asked for, and {calls[-1]} were settled"
        told.story.hold(calls[-1] <= 10, "batch", what, "the `count=` of your read")
    paid = told.paid().get("eve", 0)
    told.story.hold(paid == 25, "paid", "after as many calls as give something, eve is to have 25", _HOW_MANY)
    told.story.hold(sum(calls) == 25, "answer", "25 entries were settled", _HOW_MANY)


def _check_again(kind: Any, lab: Lab) -> None:
    """A payment comes twice, as two entries; and one of the same id in another stream."""
    told = _Told(kind, lab)
    told.add(("p1", "eve", 5), ("p1", "eve", 5))
    told.work(told.worker("ada"))
    paid = told.paid()
    what = f"the producer has sent p1 twice: eve was to get 5, and has {paid.get('eve', 0)}"
    look = "by what a payment is known again: not by its entry's id"
    told.story.hold(paid == {"eve": 5}, "duplicate", what, look)
    told.add(("p1", "eve", 5))
    told.story.tell("another process:")
    settled = told.work(told.worker("bob"), "bob")
    what = "bob was given entries that ada has settled and acknowledged: the group has forgotten all it knew"
    told.story.hold(settled <= 1, "again", what, "what a worker does to the group when it starts")
    paid = told.paid()
    what = "p1 was paid by ada; in bob's process nobody knows of it, and it was paid twice"
    told.story.hold(paid == {"eve": 5}, "shared", what, "where it is remembered what was paid")
    other = _Told(kind, lab, "p1 of another stream is paid already", empty=False)
    other.add(("p1", "eve", 5))
    other.work(other.worker("ada"))
    what = "p1 of this stream is another payment than p1 of that"
    other.story.hold(other.paid() == {"eve": 5}, "others", what, "the name of the key by which you remember")


def _check_left(kind: Any, lab: Lab) -> None:
    """Ada has crashed with an entry in her hands; bob is at work on another."""
    told = _Told(kind, lab)
    told.add(("p1", "eve", 5), ("p2", "eve", 7))
    told.r.xgroup_create(told.stream, GROUP, "0")
    told.r.xreadgroup(GROUP, "ada", {told.stream: ">"}, count=1)
    told.r.xreadgroup(GROUP, "bob", {told.stream: ">"}, count=1)
    told.story.tell("ada was given p1, and crashed; bob was given p2, and is at work on it. ada starts again")
    worker = told.worker("ada")
    settled = told.work(worker) + told.work(worker)
    paid = told.paid()
    what = "p1 was delivered to ada before she crashed: nobody else gets it, and it was never paid"
    told.story.hold(paid, "left", what, "what XREADGROUP gives for 0 in place of >")
    held = {entry["message_id"]: entry["consumer"] for entry in pending(told.r, told.stream)}
    what = "bob is at work on p2, and ada has taken it from him"
    told.story.hold(paid == {"eve": 5} and held.get("2-0") == "bob", "theirs", what, "whose entries you read")
    told.story.hold("1-0" not in held, "ack", "p1 is paid, and still pending", "XACK")
    told.story.hold(settled == 1, "answer", "one entry was settled in these two calls", _HOW_MANY)


def _check_memory(kind: Any, lab: Lab) -> None:
    """What is remembered ends by itself, an hour after the payment at least, and a day at most."""
    lab.r.flushdb()
    told, inside = _Told(kind, lab), Inside(lab)
    told.add(("p1", "eve", 5))
    worker = told.worker("ada")
    told.work(worker)
    mine = {told.stream.encode(), told.accounts.encode()}
    for key, left in inside.ends().items():
        if key in mine:
            continue
        told.story.tell(f"PTTL {said(key)} -> {left}")
        what = "what is remembered of a payment never ends" if left == -1 else "a payment is remembered for"
        what += "" if left == -1 else f" {left / 1000:.0f} s, not for an hour"
        long_enough = 3_540_000 <= left <= 86_400_000
        told.story.hold(long_enough, "ttl", what, "ex= of SET: seconds (px=: milliseconds)")
    longest = max((left for key, left in inside.ends().items() if key not in mine), default=0)
    inside.later(longest * 3 // 5)
    told.story.tell("60 % of that time later:")
    told.add(("p2", "eve", 5))
    told.work(worker)
    inside.later(longest * 3 // 5)
    told.story.tell("once more so much later:")
    _check_forgotten(told, inside, mine)


def _check_forgotten(told: _Told, inside: Inside, mine: set[bytes]) -> None:
    """The time of p1 is up. Scores of a sorted set are moments, which do not pass here."""
    for key in inside.keys():  # noqa: SIM118
        if key in mine or inside.r.type(key) == b"zset":
            continue
        words = [key, *inside.words(key)]
        if any(word.endswith(b"p1") for word in words):
            told.story.tell(f"{said(key)} still holds p1")
            what = "the memory of p1 does not end as long as others are paid: it grows for ever"
            told.story.hold(False, "ttl", what, "what has the TTL: each payment, not all of them together")


SAYS = {
    "never paid": ("lost", _STEPS),
    "paid twice": ("twice", _STEPS),
    "pending": ("ack", "what is left when a worker has crashed, and starts again"),
}


def _rule(kind: Any, amount: int = 5) -> Callable[[Any], None]:
    """Whoever has crashed starts again; then everything is paid once, and nothing is pending."""

    def once(r: Any) -> None:
        for name in ("ada", "bob"):
            worker = kind(r, STREAM, GROUP, name, ACCOUNTS)
            for _ in range(3):
                if not worker.work():
                    break
        paid = int(float(r.hget(ACCOUNTS, "eve") or 0))
        after = "when all workers have started again, "
        assert paid, f"{after}p1 was never paid: it is lost"
        assert paid == amount, f"p1 was paid twice: eve was to get {amount}, and has {paid}"
        left = [entry["message_id"] for entry in pending(r, STREAM)]
        assert not left, f"{after}p1 is still pending"

    return once


def _check_crash(kind: Any, lab: Lab) -> None:
    def ada(r: Any) -> None:
        kind(r, STREAM, GROUP, "ada", ACCOUNTS).work()

    def setup(r: Any) -> None:
        _add(r, STREAM, ("p1", "eve", 5))
        r.xgroup_create(STREAM, GROUP, "0")

    cast = "p1 (to eve, 5) is in the stream. A: ada.work(); she may crash, and starts again"
    explore_stream(lab, [ada], cast, SAYS, setup, invariant=_rule(kind), faults=[crash])


def _check_both(kind: Any, lab: Lab) -> None:
    """An entry is taken from ada while she is at work on it; and two have the same payment."""

    def ada(r: Any) -> None:
        kind(r, STREAM, GROUP, "ada", ACCOUNTS).work()

    def bob(r: Any) -> None:
        kind(r, STREAM, GROUP, "bob", ACCOUNTS).work()

    def taker(r: Any) -> None:
        r.xclaim(STREAM, GROUP, "bob", 0, ["1-0"])
        bob(r)

    def held(r: Any) -> None:
        _add(r, STREAM, ("p1", "eve", 5))
        r.xgroup_create(STREAM, GROUP, "$")
        hold(r, STREAM, "ada", ["1-0"])

    def twins(r: Any) -> None:
        _add(r, STREAM, ("p1", "eve", 5), ("p1", "eve", 5))
        r.xgroup_create(STREAM, GROUP, "$")
        hold(r, STREAM, "ada", ["1-0"])
        hold(r, STREAM, "bob", ["2-0"])

    cast = "ada was given p1 (to eve, 5). A: ada.work(). B takes p1 over from ada; bob.work()"
    explore_stream(lab, [ada, taker], cast, SAYS, held, invariant=_rule(kind))
    cast = "p1 (to eve, 5) was sent twice; ada was given one, bob the other. A: ada.work(). B: bob.work()"
    explore_stream(lab, [ada, bob], cast, SAYS, twins, invariant=_rule(kind))


def _check_start_race(kind: Any, lab: Lab) -> None:
    def starts(name: str) -> Any:
        return lambda r: kind(r, STREAM, GROUP, name, ACCOUNTS).work()

    def setup(r: Any) -> None:
        _add(r, STREAM, ("p1", "eve", 5))

    cast = "p1 is in the stream, and there is no group. A and B start: MyWorker(…).work()"
    with _starting("two workers start at once, and one of them cannot"):
        actors, rule = [starts("ada"), starts("bob")], _rule(kind)
        explore_stream(lab, actors, cast, SAYS, setup, invariant=rule, max_switches=2)


EXERCISE = Exercise(
    stem="stream",
    name="worker",
    title="A crash loses no payment, and nothing pays twice",
    statement="""
Write a worker that pays. Each entry of `stream` is a payment: `payment` is its id, `to` the account, and
`amount` a whole number. To pay is `HINCRBY accounts to amount`.

- Several workers share the work: each is one consumer, `name`, of the same `group`. The first that starts
  creates the group, also where there is no stream yet; what was in the stream before is paid, too.
- `work()` settles up to 10 entries and gives their number; where there is nothing, 0 at once: it never
  waits.
- A worker may crash after any command. When it starts again under its name, it goes on with what it was
  given before. What other workers were given is theirs.
- A payment is paid once, whatever happens: another may be given the same entry while you work on it, and
  the producer may have sent the payment twice, as two entries.
- What you remember of a payment ends by itself, after an hour at least and a day at most.
- The payments of another stream are others, even under the same id. Nothing is removed from the stream:
  other groups read it, too.

`r.xreadgroup(…)` gives a dict here: `{stream: [(id, fields), …]}`, and `{}` or `{stream: []}` for nothing.
""".strip(),
    answer="MyWorker",
    stub=STUB.strip(),
    hints=(
        "XGROUP CREATE … 0 MKSTREAM, and a BUSYGROUP error that means: it is there. XREADGROUP with `>` "
        "gives new entries, with `0` those that this consumer was given and has not acknowledged. Its "
        "reply is {stream: [(id, fields), …]}, or {}.",
        "Go through the places at which a worker can crash. Acknowledged and not paid: lost. Paid and not "
        "acknowledged: it comes again, and you must know that it was paid.",
        "A key of its own for each payment, with a TTL, says that it was paid. If a crash can come "
        "between that key and HINCRBY, one of two things goes wrong, whichever is first: so they are one "
        "step.",
        "One script: if SET done … NX EX 3600 answers, then HINCRBY; XACK in every case. (Or WATCH done, "
        "MULTI, EXEC, and again after a WatchError.)",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=60,
)
