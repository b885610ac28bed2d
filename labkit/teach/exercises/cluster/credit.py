"""Chapter 11, exercise credit: a retry that survives a failover, and applies nothing twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import redis
from redis.exceptions import RedisClusterException, RedisError

from labkit import LabkitError
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.cluster.grading import (
    Crash,
    Enough,
    InsideNode,
    Passing,
    Wire,
    cluster_down,
    elsewhere,
    hurried,
    moved,
    one_slot,
)
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.exercises.session.grading import said
from labkit.teach.lab import Lab

STUB = '''
def credit(rc, account, amount, operation):
    """Add `amount` to the number in `account`, once per `operation`; the balance."""
    raise NotImplementedError
'''

REFERENCE = '''
import random
import time
import redis
from redis.exceptions import ClusterDownError

OUTAGE = (redis.ConnectionError, redis.TimeoutError, ClusterDownError)
PATIENCE, REMEMBER = 20, 7200  # seconds

# KEYS: account, done. ARGV: amount, seconds. Gives the balance.
CREDIT = """
if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('INCRBY', KEYS[1], ARGV[1])  -- first what may fail: a script takes nothing back
    redis.call('SET', KEYS[2], 1, 'EX', ARGV[2])
end
return tonumber(redis.call('GET', KEYS[1]))
"""

def credit(rc, account, amount, operation):
    """Add `amount` to the number in `account`, once per `operation`; the balance."""
    done = f"{account}:done:{operation}"  # the account's hash tag comes first: the same slot
    pause, end = 0.02, time.monotonic() + PATIENCE
    while True:
        try:
            return rc.eval(CREDIT, 2, account, done, amount, REMEMBER)
        except OUTAGE:
            if time.monotonic() > end:
                raise
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 1)
'''

_DONE = 'f"{account}:done:{operation}"  # the account\'s hash tag comes first: the same slot'
_EVAL = "return rc.eval(CREDIT, 2, account, done, amount, REMEMBER)"
_SLEEP = "        time.sleep(pause * random.uniform(0.5, 1))\n"
_OUTAGE = "(redis.ConnectionError, redis.TimeoutError, ClusterDownError)"
_GIVE_UP = "            if time.monotonic() > end:\n                raise\n"
_GUARD = "if redis.call('EXISTS', KEYS[2]) == 0 then"
_ADD = "    redis.call('INCRBY', KEYS[1], ARGV[1])  -- first what may fail: a script takes nothing back\n"
_SET = "    redis.call('SET', KEYS[2], 1, 'EX', ARGV[2])\n"


def _tries(*lines: str) -> tuple[str, str]:
    """The reference, but that an attempt is of these lines."""
    return f"            {_EVAL}\n", "".join(f"            {line}\n" for line in lines)


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


_MULTI = (
    "with rc.pipeline(transaction=True) as pipe:",
    "    pipe.set(done, 1, ex=REMEMBER)",
    "    pipe.incrby(account, amount)",
    "    return pipe.execute()[1]",
)

WRONG = (
    _wrong(
        "again",
        "sends INCRBY again: after a lost reply it adds twice, and nothing tells the two apart",
        _tries("return rc.incrby(account, amount)"),
    ),
    _wrong(
        "again",
        "makes up an id for each call: what comes again is the caller's id, from another process",
        (_DONE, 'f"{account}:done:{random.random()}"'),
    ),
    _wrong(
        "shared",
        "remembers in the process: another one, or the same after a crash, pays again",
        ("OUTAGE =", "DONE = set()\nOUTAGE ="),
        _tries(
            "if (account, operation) in DONE:",
            "    return int(rc.get(account))",
            "balance = rc.incrby(account, amount)",
            "DONE.add((account, operation))",
            "return balance",
        ),
    ),
    _wrong(
        "slot",
        "the operation stands before the account: braces in it are the first tag, and another slot",
        (_DONE, 'f"done:{operation}:{account}"'),
    ),
    _wrong(
        "slot",
        "the operation stands first in the name: braces in it are a tag, and another slot",
        (_DONE, 'f"{operation}:{account}"'),
    ),
    _wrong(
        "confused",
        "the done key has only the account's tag: an id on another account of it counts as done",
        (_DONE, '"done:{" + account.partition("{")[2].partition("}")[0] + "}:" + operation'),
    ),
    _wrong(
        "confused",
        "the amount is the id: two payments of 5 are taken for one",
        (_DONE, 'f"{account}:done:{amount}"'),
    ),
    _wrong(
        "lost",
        "done first, and the amount in another step: a crash in between loses the payment",
        _tries(
            "if rc.set(done, 1, nx=True, ex=REMEMBER):",
            "    return rc.incrby(account, amount)",
            "return int(rc.get(account) or 0)",
        ),
    ),
    _wrong(
        "lost",
        "one script, which says done before it adds: where INCRBY fails, it stays done",
        (_ADD + _SET, _SET + _ADD),
    ),
    _wrong(
        "twice",
        "the amount first, and done in another step: a crash in between pays twice",
        _tries(
            "if rc.exists(done):",
            "    return int(rc.get(account))",
            "balance = rc.incrby(account, amount)",
            "rc.set(done, 1, ex=REMEMBER)",
            "return balance",
        ),
    ),
    _wrong(
        "race",
        "asks, then MULTI: another process may do it in between",
        _tries("if rc.exists(done):", "    return int(rc.get(account))", *_MULTI),
    ),
    _wrong(
        "gives_up",
        "no second attempt: the first lost connection is the caller's problem",
        _tries("return rc.eval(CREDIT, 2, account, done, amount, REMEMBER)"),
        ("        except OUTAGE:\n" + _GIVE_UP, "        except OUTAGE:\n            raise\n"),
    ),
    _wrong(
        "gives_up",
        "three attempts: that is over long before a replica has taken over",
        ("    while True:\n", "    for attempt in range(3):\n"),
        (_GIVE_UP, "            if attempt == 2:\n                raise\n"),
    ),
    _wrong(
        "gives_up",
        "gives up after a second: a failover takes longer",
        ("PATIENCE, REMEMBER = 20, 7200", "PATIENCE, REMEMBER = 1, 7200"),
    ),
    _wrong(
        "gives_up",
        "does not catch CLUSTERDOWN: in a failover that is what all are told",
        (_OUTAGE, "(redis.ConnectionError, redis.TimeoutError)"),
    ),
    _wrong(
        "gives_up",
        "does not catch TimeoutError: a server that stands still gives no other answer",
        (_OUTAGE, "(redis.ConnectionError, ClusterDownError)"),
    ),
    _wrong(
        "storm",
        "tries again without a pause: all clients hammer a cluster that is about to recover",
        (_SLEEP, ""),
    ),
    _wrong(
        "endless",
        "no deadline: the caller waits for ever, and is never told",
        (_GIVE_UP, "            pass\n"),
    ),
    _wrong(
        "silent",
        "gives 0 when it gives up: the caller takes that for the balance",
        (_GIVE_UP, _GIVE_UP.replace("raise", "return 0")),
    ),
    _wrong(
        "hides",
        "tries again after every error: a wrong type does not mend itself in a minute",
        (_OUTAGE, "(redis.RedisError, ClusterDownError)"),
    ),
    _wrong(
        "ttl", "the done key has no TTL: each operation is remembered for ever", (", 'EX', ARGV[2])", ")")
    ),
    _wrong("ttl", "remembered for seven seconds: milliseconds for seconds", ("'EX'", "'PX'")),
    _wrong(
        "ttl",
        "one set for all operations, renewed by each: while payments come it never ends",
        (_GUARD, "if redis.call('SISMEMBER', KEYS[2], ARGV[3]) == 0 then"),
        (_SET, "    redis.call('SADD', KEYS[2], ARGV[3])\n    redis.call('EXPIRE', KEYS[2], ARGV[2])\n"),
        (":done:{operation}", ":done"),
        ("amount, REMEMBER)", "amount, REMEMBER, operation)"),
    ),
    _wrong(
        "ttl",
        "a sorted set from which nothing is removed: while payments come it never ends",
        (_GUARD, "if not redis.call('ZSCORE', KEYS[2], ARGV[3]) then"),
        (
            _SET,
            "    redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[3])\n"
            "    redis.call('EXPIRE', KEYS[2], ARGV[2])\n",
        ),
        (":done:{operation}", ":done"),
        ("amount, REMEMBER)", "amount, REMEMBER, operation)"),
    ),
    _wrong(
        "ttl",
        "the balance gets the TTL as well: after two hours without a payment the money is gone",
        (_SET, _SET + "    redis.call('EXPIRE', KEYS[1], ARGV[2])\n"),
    ),
    _wrong(
        "moved",
        "asks the node that had the slot at first: after a failover that one is dead",
        (
            "    pause, end =",
            "    node = rc.get_redis_connection(rc.get_node_from_key(account))\n    pause, end =",
        ),
        ("return rc.eval", "return node.eval"),
    ),
    _wrong(
        "answer",
        "returns None: the caller does not learn the balance",
        (_EVAL, "rc.eval(CREDIT, 2, account, done, amount, REMEMBER)\n            return None"),
    ),
)

LEAST, MOST = 10, 60
"""Seconds of an outage: for so long it is to be tried again at least, and at most."""

OUTAGE = 9
"""Seconds that an outage lasts here: less than LEAST, for what passes between two looks at a clock."""

_STEPS = "which of your commands are one step: a script, or MULTI with WATCH"
_REMEMBER = "by what an operation is known again, and where that is remembered"
_RETRY = "which errors an outage raises, and for how long you try again"
_SLOT = "the name of the key by which you remember: what is its hash tag?"


class _Bank:
    """An account on the cluster, a client to which nothing happens, one to which things do, and a story."""

    def __init__(self, credit: Any, lab: Lab, *lines: str) -> None:
        self.lab, self.credit, self.story = lab, credit, Story(*lines)
        self.rc: Any = lab.rc
        number = lab.key("bank").split(":")[2]
        self.account = f"{lab.key('account')}:{{ada{number}}}"

    @cached_property
    def wire(self) -> Wire:
        return Wire(self.lab)

    def call(self, amount: int, operation: str, rc: Any = None, by: Any = None, account: str = "") -> Any:
        """A call that is told, with its balance, which is to be a whole number."""
        account = account or self.account
        told = f"credit(rc, '{self.short(account)}', {amount}, {operation!r})"
        with one_slot("\n".join([*self.story.lines, told]), _SLOT):
            balance = (by or self.credit)(rc or self.rc, account, amount, operation)
        self.story.tell(f"{told} -> {balance!r}")
        what = f"credit() gives {balance!r}: the balance is asked for, a whole number"
        self.story.hold(type(balance) is int, "answer", what, "what credit() returns, on every path")
        return balance

    @property
    def balance(self) -> int:
        found = int(self.rc.get(self.account) or 0)
        self.story.tell(f"GET {self.short(self.account)} -> {found}")
        return found

    def short(self, text: str) -> str:
        """Without what the graders' keys begin with."""
        return text.replace(self.account[: self.account.index("{")], "")

    def tell_commands(self, last: int = 99) -> None:
        """What the client to which things happen has sent; a script is cut off."""
        told = self.wire.told if "wire" in vars(self) else []  # no client is made for the question
        for command in told[-last:]:
            name, _, rest = command.partition(" ")
            if name.upper() == "EVAL":
                rest = "… " + rest[rest.index(self.account) :] if self.account in rest else "…"
            self.story.tell(f"  {name} {self.short(' '.join(rest.split()))[:80]}".rstrip())


def _grade(credit: Any, lab: Lab) -> None:
    _check_adds(credit, lab)
    _check_again(credit, lab)
    _check_memory(credit, lab)
    _check_faults(credit, lab)
    _check_hides(credit, lab)
    _check_outages(credit, lab)
    _check_no_end(credit, lab)
    _check_moved(credit, lab)
    _check_failover(credit, lab)


def _check_adds(credit: Any, lab: Lab) -> None:
    bank = _Bank(credit, lab)
    due = 0
    for amount, operation in (
        (5, "op-1"),
        (7, "op-2"),
        (7, "op-3"),
        (-2, "{op} 4"),
        (1, ""),
        (10**10, "}ö:*"),
    ):
        due += amount
        balance = bank.call(amount, operation)
        what = f"the balance is {due} now"
        known = bank.balance
        bank.story.hold(known == due, "confused", f"{what}, and the account holds {known}", _REMEMBER)
        bank.story.hold(balance == due, "answer", f"{what}, and credit() gives {balance}", "what it returns")


def _check_again(credit: Any, lab: Lab) -> None:
    """The same operation comes again, here and in another process; on another account it is another."""
    bank, other = _Bank(credit, lab), elsewhere(credit)
    bank.call(5, "op-1")
    for who, by, property in (("", credit, "again"), ("another process:", other, "shared")):
        if who:
            bank.story.tell(who)
        balance = bank.call(5, "op-1", by=by)
        known = bank.balance
        what = f"op-1 was applied twice: 5 once is 5, and the account holds {known}"
        bank.story.hold(known == 5, property, what, _REMEMBER)
        bank.story.hold(balance == 5, "answer", "the balance is 5 still", "what it returns the second time")
    bank.call(7, "op-2")
    sister = f"{bank.account}:savings"
    bank.call(1, "op-0", account=sister)
    bank.call(3, "op-1", account=sister)
    found = int(bank.rc.get(sister) or 0)
    what = f"op-1 of another account is another operation: that account is to have 4, and has {found}"
    bank.story.hold(found == 4, "confused", what, _REMEMBER)


def _check_memory(credit: Any, lab: Lab) -> None:
    """What is remembered ends by itself, after an hour at least and a day at most; the balance does not."""
    bank = _Bank(credit, lab)
    inside = InsideNode(lab, bank.account)
    inside.r.flushall()
    bank.call(5, "op-1")
    mine = bank.account.encode()
    for key, left in inside.ends().items():
        name = bank.short(said(key))
        bank.story.tell(f"PTTL {name} -> {left}")
        if key == mine:
            bank.story.hold(
                left == -1, "ttl", "the balance ends by itself: the money is gone", "which key ends"
            )
            continue
        what = (
            "what is remembered never ends"
            if left == -1
            else f"an operation is remembered for {left // 1000} s"
        )
        what += "; an hour at least, and a day at most, is asked for"
        bank.story.hold(
            3_540_000 <= left <= 86_400_000, "ttl", what, "ex= of SET: seconds (px=: milliseconds)"
        )
    longest = max((left for key, left in inside.ends().items() if key != mine), default=0)
    inside.later(longest * 3 // 5)
    bank.story.tell("60 % of that time later:")
    bank.call(5, "op-2")
    inside.later(longest * 3 // 5)
    bank.story.tell("once more so much later:")
    _age_moments(bank, inside)
    for key in inside.ends():
        if key == mine:
            continue
        kept = any(word.endswith(b"op-1") for word in (key, *inside.words(key)))
        what = f"{bank.short(said(key))} still holds op-1: it grows as long as others are added"
        bank.story.hold(not kept, "ttl", what, "what has the TTL: each operation, not all of them together")


def _age_moments(bank: _Bank, inside: InsideNode) -> None:
    """The scores of sorted sets, which are moments, do not pass by themselves; then one more operation."""
    old = [key for key in inside.ends() if inside.r.type(key) == b"zset"]
    for key in old:
        for member, score in inside.r.zrange(key, 0, -1, withscores=True):
            unit = 1 if score < 1e11 else 1e3 if score < 1e14 else 1e6  # of a second
            inside.r.zadd(key, {member: score - 86_460 * unit})
        bank.story.tell(f"the moments in {bank.short(said(key))} are a day older:")
    if old:
        bank.call(5, "op-3")


def _check_faults(credit: Any, lab: Lab) -> None:
    """At each command: the process crashes before, or after; the reply is lost; another does the same."""
    bank = _Bank(credit, lab)
    bank.call(5, "op-1", rc=bank.wire.rc)
    for number in range(1, min(bank.wire.count, 12) + 1):
        _crash(credit, lab, number, after=False)
        _crash(credit, lab, number, after=True)
        for error in (
            redis.ConnectionError("Connection closed by server"),
            redis.TimeoutError("Timeout reading"),
        ):
            _lose(credit, lab, number, error)
        _meet(credit, lab, number)


def _crash(credit: Any, lab: Lab, number: int, after: bool) -> None:
    when = "has run" if after else "is sent"
    bank = _Bank(
        credit, lab, f"A: credit(rc, account, 5, 'op-1'), which crashes {'after' if after else 'before'}:"
    )

    def die(at: int, words: list[str]) -> None:
        if at >= number:
            raise Crash

    if after:
        bank.wire.after = die
    else:
        bank.wire.before = die
    other = elsewhere(credit)
    with suppress(Crash), hurried(credit):
        credit(bank.wire.rc, bank.account, 5, "op-1")
    bank.tell_commands()
    bank.story.tell(
        f"A crashes {'when this' if after else 'before this'} {when}; another process does it again:"
    )
    bank.call(5, "op-1", by=other)
    _once(bank, "a crash, and a second attempt")


def _once(bank: _Bank, what: str) -> None:
    known = bank.balance
    look = f"what happens between two of your commands; {_STEPS}"
    bank.story.hold(known != 0, "lost", f"{what}: op-1 was never applied, and counts as done", look)
    bank.story.hold(known == 5, "twice", f"{what}: op-1 was applied twice, 5 once is 5, not {known}", look)


def _lose(credit: Any, lab: Lab, number: int, error: RedisError) -> None:
    """The server has run the command; the client does not hear of it."""
    bank = _Bank(credit, lab, f"credit(rc, account, 5, 'op-1'); a reply is lost: {type(error).__name__}")

    def lose(at: int, words: list[str]) -> None:
        if at == number:
            raise error

    bank.wire.after = lose
    with hurried(credit):
        _answered(bank, lambda: credit(bank.wire.rc, bank.account, 5, "op-1"), "one reply was lost")
    bank.tell_commands()
    _once(bank, "a reply was lost, and it was tried again")


def _answered(bank: _Bank, call: Callable[[], Any], what: str, property: str = "gives_up") -> Any:
    """What the call gives; what it raises is told as giving up."""
    try:
        return call()
    except (RedisError, RedisClusterException, OSError) as error:
        bank.tell_commands(last=4)
        said = f"{type(error).__name__}: {str(error)[:70].rstrip('.')}"
        raise Failure(property, f"{what}, and your code raises {said}", _lines(bank), _RETRY) from None


def _lines(bank: _Bank) -> str:
    return "\n".join(bank.story.lines)


def _meet(credit: Any, lab: Lab, number: int) -> None:
    """Another process does the same operation, all of it, before a command of this one."""
    bank = _Bank(credit, lab, "A and B: credit(rc, account, 5, 'op-1'), at the same time")
    other = elsewhere(credit)

    def meet(at: int, words: list[str]) -> None:
        if at == number:
            bank.wire.told.insert(-1, "(B does all of it)")
            other(bank.rc, bank.account, 5, "op-1")

    bank.wire.before = meet
    with hurried(credit):
        credit(bank.wire.rc, bank.account, 5, "op-1")
    bank.tell_commands()
    known = bank.balance
    what = f"A and B do op-1 at the same time, and it is applied twice: 5 once is 5, not {known}"
    bank.story.hold(known == 5, "race", what, f"what may happen between two of your commands; {_STEPS}")


def _check_hides(credit: Any, lab: Lab) -> None:
    """An error that no waiting mends is raised at once; once it is mended, the operation is applied."""
    bank = _Bank(credit, lab, "the account is a list, by mistake: INCRBY answers WRONGTYPE")
    bank.rc.rpush(bank.account, "a list")
    told = "credit(rc, account, 5, 'op-1')"
    with hurried(credit) as passing, _failing(bank, told, passing, lambda: None):
        try:
            balance = credit(bank.wire.rc, bank.account, 5, "op-1")
        except Exception as error:
            waited = passing.slept
            bank.story.tell(f"{told} raises {type(error).__name__} after {waited:.1f} s")
        else:
            bank.story.tell(f"{told} -> {balance!r}")
            what = "nothing was added, and it gives a balance"
            bank.story.hold(False, "silent", what, "which errors you catch")
    what = f"no waiting mends this error, and it was tried again for {waited:.1f} s before it was raised"
    bank.story.hold(waited < 5, "hides", what, "which errors you catch: those of an outage")
    bank.rc.set(bank.account, 0)
    bank.story.tell("the account is mended: SET account 0; the operation comes again:")
    bank.call(5, "op-1")
    known = bank.balance
    what = f"op-1 failed, and counts as done: the account is to hold 5, and holds {known}"
    look = "a script, and MULTI, too, take nothing back where a command in them fails: which comes first?"
    bank.story.hold(known == 5, "lost", what, look)


@contextmanager
def _failing(
    bank: _Bank, told: str, passing: Passing, fails: Callable[[], Exception | None]
) -> Iterator[None]:
    """Each command meets what `fails` gives. Raises Failure where attempts come too thick, or do not end."""
    failed = 0

    def before(at: int, words: list[str]) -> None:
        nonlocal failed
        if passing.slept > MOST:
            raise Enough("endless")
        if (error := fails()) is None:
            return
        failed += 1
        if failed >= 40 and passing.slept < 0.004 * failed:
            raise Enough("storm")
        raise error

    bank.wire.before = before
    try:
        yield
    except Enough as enough:
        bank.story.tell(f"{told}: {failed} attempts, with {passing.slept:.1f} s of sleep, and no end")
        if str(enough) == "storm":
            what, look = (
                "it tries again at once, all the time: a cluster with a lot to do gets more",
                "time.sleep()",
            )
            raise Failure(
                "storm", what, _lines(bank), f"{look} between two attempts, longer each time"
            ) from None
        what = f"the outage does not end, and after {MOST} s it still tries: the caller hears nothing"
        raise Failure("endless", what, _lines(bank), "a deadline, after which the error is raised") from None


def _check_outages(credit: Any, lab: Lab) -> None:
    """Seconds without service, in three ways: refused, no answer, and CLUSTERDOWN."""
    told = "credit(rc, account, 5, 'op-1')"
    for kind, why in ((redis.ConnectionError, "Connection refused"), (redis.TimeoutError, "Timeout reading")):
        bank = _Bank(credit, lab, f"for {OUTAGE} s each command fails: {kind.__name__}: {why}")
        with hurried(credit) as passing:
            fails = partial(_until, passing, kind, why)
            with _failing(bank, told, passing, fails):
                _survives(bank, told, passing)
    bank = _Bank(credit, lab, f"for {OUTAGE} s the cluster is down: CLUSTERDOWN")
    bank.wire.rc.get(bank.account)  # a client that begins while a slot is nobody's finds no whole cluster
    with cluster_down(lab, bank.account) as end, hurried(credit) as passing:

        def heals() -> None:
            if passing.seconds >= OUTAGE:
                end()

        with _failing(bank, told, passing, heals):
            _survives(bank, told, passing)


def _until(passing: Passing, kind: type[Exception], why: str) -> Exception | None:
    return kind(why) if passing.seconds < OUTAGE else None


def _survives(bank: _Bank, told: str, passing: Passing) -> None:
    def call() -> Any:
        return bank.credit(bank.wire.rc, bank.account, 5, "op-1")

    try:
        balance = _answered(bank, call, "the outage would have ended")
    except Failure as failure:
        after = passing.seconds
        failure.message = (
            f"after {after:.1f} s of an outage of {OUTAGE} s your code gives up: "
            + (failure.message.partition("raises ")[2])
        )
        raise
    bank.story.tell(f"{told} -> {balance!r} after {passing.seconds:.0f} s")
    known = bank.balance
    what = f"it says that the balance is {balance!r}, and the account holds {known}: nothing was added"
    bank.story.hold(known, "silent", what, "what it returns when it gives up: nothing; it raises")
    bank.story.hold(known == 5, "twice", f"op-1 was applied more than once: 5 once is 5, not {known}", _STEPS)


def _check_no_end(credit: Any, lab: Lab) -> None:
    """An outage that does not end: the error is raised, within a minute."""
    told = "credit(rc, account, 5, 'op-1')"
    bank = _Bank(credit, lab, "each command fails, for ever: ConnectionError: Connection refused")
    fails = partial(redis.ConnectionError, "Connection refused")
    with hurried(credit) as passing, _failing(bank, told, passing, fails):
        try:
            balance = credit(bank.wire.rc, bank.account, 5, "op-1")
        except Exception:
            return
    bank.story.tell(f"{told} -> {balance!r}")
    what = "nothing was added, and the caller does not hear of it"
    bank.story.hold(False, "silent", what, "what it does when it gives up: it raises the error")


def _check_moved(credit: Any, lab: Lab) -> None:
    """The account's slot is another node's now; the client has not heard of it."""
    bank = _Bank(credit, lab)
    bank.call(5, "op-1", rc=bank.wire.rc)
    bank.story.tell("the account's slot moves to another node")
    look = "who follows a MOVED: rc does, the client of a single node does not"
    with moved(lab, [bank.account]):
        for amount, operation, due in ((7, "op-2", 12), (5, "op-1", 12)):
            try:
                bank.call(amount, operation, rc=bank.wire.rc)
            except RedisError as error:
                if "MOVED" not in str(error) and type(error).__name__ != "MovedError":
                    raise
                raise Failure(
                    "moved", "the slot has moved, and your code raises MOVED", _lines(bank), look
                ) from None
            known = bank.balance
            bank.story.hold(known == due, "moved", f"the account is to hold {due}, and holds {known}", look)


def _check_failover(credit: Any, lab: Lab) -> None:
    """The account's primary is killed, really; once more, if its replica takes over too late."""
    for _ in range(2):
        bank = _Bank(credit, lab)
        bank.call(5, "op-1")
        cluster, victim = lab.cluster, lab.cluster.owner(bank.account)
        with victim.client() as r:
            r.execute_command("WAIT", 1, 5000)  # what is to survive is on the replica
        cluster.kill(victim)
        bank.story.tell("the account's primary is killed")
        with _taking_over(cluster, victim) as seconds:
            try:
                _answered(bank, partial(bank.call, 7, "op-2"), "its replica takes over", "failover")
            except Failure as failure:
                if failure.property != "failover":
                    raise
                failed = failure
            else:
                _check_heir(bank)
                return
        if seconds[0] < LEAST - 2:
            raise failed


@contextmanager
def _taking_over(cluster: Any, victim: Any) -> Iterator[list[float]]:
    """After how many seconds all knew an heir of its slots, in the end; then it is revived."""
    begin, seconds = time.monotonic(), list[float]()

    def watch() -> None:
        with suppress(LabkitError):
            cluster.await_failover(victim)
        seconds.append(time.monotonic() - begin)

    watcher = threading.Thread(target=watch, name="labkit failover", daemon=True)
    watcher.start()
    try:
        yield seconds
    finally:
        watcher.join()
        cluster.revive(victim)


def _check_heir(bank: _Bank) -> None:
    """What was applied before the failover, and during it, is not applied again."""
    for amount, operation in ((5, "op-1"), (7, "op-2")):
        bank.call(amount, operation, by=elsewhere(bank.credit))
        known = bank.balance
        what = f"5 and 7, once each, are 12; after the failover the account holds {known}"
        bank.story.hold(known == 12, "failover", what, _REMEMBER)


EXERCISE = Exercise(
    stem="cluster",
    name="credit",
    title="A retry that survives a failover, and applies nothing twice",
    statement=f"""
Pay into an account, on a cluster that may fail. `rc` is a RedisCluster that tries nothing again by itself;
`account` is the name of a key with a hash tag, such as `bank:{{ada}}`.

- `credit(rc, account, amount, operation)` adds a whole number to the one in `account` (INCRBY), and gives the
  balance then. `operation` is the id of this payment: any text, given by the caller.
- An operation is applied once, however often it comes: from another process, at the same time, or again
  after a crash between any two commands. Its id on another account is another operation.
- A command may fail, and a reply may be lost: connection lost, no answer in time, CLUSTERDOWN. Then it is
  tried again, after a pause, for {LEAST} seconds of an outage at least; after {MOST} at most the error is
  raised. An error that no waiting mends is raised at once.
- What is remembered of an operation ends by itself, after an hour at least and a day at most; the balance
  does not.
""".strip(),
    answer="credit",
    stub=STUB.strip(),
    hints=(
        "After a lost reply nobody knows whether the server has run the command. What would have to stand in "
        "Redis, so that a second attempt can see it?",
        "A key for each operation says that it is done; that key and the balance change in one step: a "
        "script, or WATCH, MULTI, EXEC. For that both must be in one slot: let the key's name begin with the "
        "account's.",
        "Where EXISTS done is 0: INCRBY, and then SET done 1 EX 7200. In this order: INCRBY may fail, and a "
        "script takes nothing back. Then the balance, in any case.",
        "Around it: try, except (ConnectionError, TimeoutError, ClusterDownError), a pause that doubles up "
        "to a second, and `raise` once time.monotonic() is past the deadline.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=90,
)
