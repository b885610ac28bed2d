"""Exercises of chapter 02: bounded batches, one round trip for many, errors in a batch, atomicity."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import redis

from labkit.rig.resp import parse
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.lab import Lab

# --- load: chunks -----------------------------------------------------------------------------------

LOAD_STUB = '''
def load(r, pairs, size=100):
    """Store every (key, value) of pairs for an hour, `size` commands a round trip; return how many."""
    raise NotImplementedError
'''

LOAD = '''
from itertools import islice

def load(r, pairs, size=100):
    """Store every (key, value) of pairs for an hour, `size` commands a round trip; return how many."""
    pairs, count = iter(pairs), 0
    while chunk := list(islice(pairs, size)):
        pipe = r.pipeline(transaction=False)
        for key, value in chunk:
            pipe.set(key, value, ex=3600)
        pipe.execute()
        count += len(chunk)
    return count
'''

LOAD_WRONG = (
    Wrong(
        """
def load(r, pairs, size=100):
    count = 0
    for key, value in pairs:
        r.set(key, value, ex=3600)
        count += 1
    return count
""",
        "round_trips",
        "one SET, one round trip for each key: the way costs more than the work",
    ),
    Wrong(
        """
def load(r, pairs, size=100):
    pipe = r.pipeline(transaction=False)
    for key, value in pairs:
        pipe.set(key, value, ex=3600)
    return len(pipe.execute())
""",
        "batch",
        "everything in one pipeline: client and server keep all of it in memory",
    ),
    Wrong(
        """
def load(r, pairs, size=100):
    pairs = list(pairs)
    for start in range(0, len(pairs), size):
        pipe = r.pipeline(transaction=False)
        for key, value in pairs[start : start + size]:
            pipe.set(key, value, ex=3600)
        pipe.execute()
    return len(pairs)
""",
        "memory",
        "list() before the batches: ten million pairs are in memory before the first is sent",
    ),
    Wrong(
        """
def load(r, pairs, size=100):
    pipe, count = r.pipeline(transaction=False), 0
    for key, value in pairs:
        pipe.set(key, value, ex=3600)
        count += 1
        if count % size == 0:
            pipe.execute()
    return count
""",
        "stored",
        "the last, shorter batch is never sent",
    ),
    Wrong(
        """
from itertools import islice

def load(r, pairs, size=100):
    pairs, count = iter(pairs), 0
    while chunk := dict(islice(pairs, size)):
        r.mset(chunk)
        count += len(chunk)
    return count
""",
        "ttl",
        "MSET cannot set a TTL",
    ),
    Wrong(
        """
from itertools import islice

def load(r, pairs, size=100):
    pairs, count = iter(pairs), 0
    while chunk := list(islice(pairs, size)):
        pipe = r.pipeline(transaction=False)
        for key, value in chunk:
            pipe.set(key, value, ex=3600)
        pipe.execute()
        count += 1
    return count
""",
        "count",
        "counts batches in place of keys",
    ),
)


def _grade_load(load: Any, lab: Lab) -> None:
    watcher = lab.client()
    for total, size in ((0, 10), (1, 10), (10, 10), (235, 50)):
        prefix, ahead = lab.key("load"), [0]

        def pairs(
            prefix: str = prefix, total: int = total, ahead: list[int] = ahead
        ) -> Iterator[tuple[str, str]]:
            for i in range(total):
                ahead[0] = max(ahead[0], i - watcher.dbsize())
                yield f"{prefix}:{i}", f"value {i}"

        watcher.flushdb()
        with lab.tap() as t:
            answer = load(lab.r, pairs(), size=size)
        _check_load(lab.r, prefix, total, size, answer)
        _check_batches(t, total, size)
        if ahead[0] > size:
            raise Failure(
                "memory",
                f"it reads up to {ahead[0]} pairs ahead of what it has stored; a batch is {size}",
                f"load(r, {total} pairs from a generator, size={size})",
                "itertools.islice(iterator, size), which takes one batch and leaves the rest",
            )


def _check_load(r: redis.Redis, prefix: str, total: int, size: int, answer: Any) -> None:
    call = f"load(r, {total} pairs, size={size})"
    missing = [i for i in range(total) if r.get(f"{prefix}:{i}") != f"value {i}"]
    if missing:
        what = f"{len(missing)} of {total} keys are missing, pair number {missing[0] + 1} first"
        raise Failure("stored", what, call, "what happens to the last batch, which may be shorter")
    without = [i for i in range(total) if not 0 < r.ttl(f"{prefix}:{i}") <= 3600]
    if without:
        raise Failure(
            "ttl", f"{len(without)} of {total} keys have no TTL of an hour", call, "the `ex=` of SET"
        )
    if answer != total:
        what = f"it returned {answer!r}, and {total} keys were stored"
        raise Failure("count", what, call, "what your counter counts: keys, not batches")


def _check_batches(t: Any, total: int, size: int) -> None:
    sent = [e for e in t.commands if e.command and e.command[0].upper() not in ("MULTI", "EXEC")]
    largest = max((len(list(batch)) for _, batch in groupby(sent, lambda e: e.round_trip)), default=0)
    call = f"load(r, {total} pairs, size={size})"
    if largest > size:
        what = f"it sent {largest} commands in one round trip; the bound is {size}"
        raise Failure("batch", what, call, "`execute()` whenever a batch is full")
    allowed = -(-total // size)
    if t.round_trips > allowed:
        what = f"it took {t.round_trips} round trips; {allowed} suffice"
        raise Failure("round_trips", what, call, "how many commands each `execute()` sends")


# --- get_many: one round trip, in order, nothing lost ------------------------------------------------

MANY_STUB = '''
def get_many(r, names):
    """The values of these keys: {name: value}, in the order of names; None where there is no key."""
    raise NotImplementedError
'''

MANY = '''
def get_many(r, names):
    """The values of these keys: {name: value}, in the order of names; None where there is no key."""
    names = list(names)
    return dict(zip(names, r.mget(names))) if names else {}
'''

MANY_WRONG = (
    Wrong(
        "def get_many(r, names):\n    return {n: r.get(n) for n in names}\n",
        "round_trips",
        "a GET for each name: it waits as often as there are names",
    ),
    Wrong(
        """
def get_many(r, names):
    names = list(names)
    return {n: v for n, v in zip(names, r.mget(names)) if v is not None} if names else {}
""",
        "missing",
        "leaves out what is missing: the caller cannot tell None from not asked",
    ),
    Wrong(
        """
def get_many(r, names):
    names = list(names)
    return {n: v or None for n, v in zip(names, r.mget(names))} if names else {}
""",
        "values",
        "`v or None`: an empty text is a value, too",
    ),
    Wrong(
        """
def get_many(r, names):
    names = sorted(set(names))
    return dict(zip(names, r.mget(names))) if names else {}
""",
        "order",
        "sorts the names: the caller's order is lost",
    ),
    Wrong(
        "def get_many(r, names):\n    names = list(names)\n    return dict(zip(names, r.mget(names)))\n",
        "empty",
        "MGET without a key: the server refuses it, redis-py makes [] of that: a round trip for nothing",
    ),
    Wrong(
        """
def get_many(r, names):
    names = list(names)
    if not names:
        return {}
    found = [n for n in names if r.exists(n)]
    values = dict(zip(found, r.mget(found)))
    return {n: values.get(n) for n in names}
""",
        "round_trips",
        "asks for each name first whether it exists: as many round trips as there are names",
    ),
)


def _grade_many(get_many: Any, lab: Lab) -> None:
    prefix = lab.key("many")
    names = [f"{prefix}:{i}" for i in (7, 3, 9, 1, 8, 2, 6)]
    stored: dict[str, Any] = {name: f"value of {name[-1]}" for name in names}
    stored[names[2]] = ""
    lab.r.mset(stored)
    names.insert(4, f"{prefix}:none")
    expected = {name: stored.get(name) for name in names}
    call = "get_many(r, ['7', '3', '9', '1', 'none', '8', '2', '6'])"
    with lab.tap() as t:
        got = get_many(lab.r, iter(names))
    if not isinstance(got, dict):
        what = f"it returned a {type(got).__name__}; a dict was asked for"
        raise Failure("values", what, call, "dict(zip(names, values))")
    if names[4] not in got:
        raise Failure(
            "missing", "a name without a key is not in the answer", call, "None for what is missing"
        )
    for name in names:
        if name not in got or got[name] != expected[name]:
            what = f"key {name[-1]!r} holds {expected[name]!r}, and the answer says {got.get(name)!r}"
            raise Failure("values", what, call, "`is None`: an empty string is a value too")
    if list(got) != names:
        what = f"the answer's order is {[n.rpartition(':')[2] for n in got]}"
        raise Failure("order", what, call, "what keeps the order (a list, a dict) and what does not (a set)")
    if t.round_trips != 1:
        what = f"it took {t.round_trips} round trips for {len(names)} keys; one suffices"
        raise Failure("round_trips", what, call, "MGET")
    _check_empty(get_many, lab)


def _check_empty(get_many: Any, lab: Lab) -> None:
    with lab.tap() as t:
        try:
            got = get_many(lab.r, [])
        except redis.RedisError as error:
            what = f"with no names at all it raises: {error}"
            raise Failure("empty", what, "get_many(r, [])", "an answer before you ask") from None
    if got != {} or t.round_trips:
        what = f"no names: it returned {got!r} after {t.round_trips} round trips; {{}} needs none"
        raise Failure("empty", what, "get_many(r, [])", "an answer before you ask: {}")


# --- count_all: errors inside a batch ----------------------------------------------------------------

COUNT_STUB = '''
def count_all(r, names):
    """Add 1 to each counter, in one round trip; return the names of those that could not be counted."""
    raise NotImplementedError
'''

COUNT = '''
def count_all(r, names):
    """Add 1 to each counter, in one round trip; return the names of those that could not be counted."""
    pipe = r.pipeline(transaction=False)
    for name in names:
        pipe.incr(name)
    replies = pipe.execute(raise_on_error=False)
    return [name for name, reply in zip(names, replies) if isinstance(reply, Exception)]
'''

COUNT_WRONG = (
    Wrong(
        """
def count_all(r, names):
    pipe = r.pipeline(transaction=False)
    for name in names:
        pipe.incr(name)
    pipe.execute()
    return []
""",
        "raises",
        "execute() raises the first error, and the other replies are lost",
    ),
    Wrong(
        """
import redis

def count_all(r, names):
    failed = []
    for name in names:
        try:
            r.incr(name)
        except redis.ResponseError:
            failed.append(name)
    return failed
""",
        "round_trips",
        "right, but one round trip for each key: one pipeline gives the same replies",
    ),
    Wrong(
        """
import redis

def count_all(r, names):
    pipe = r.pipeline(transaction=False)
    for name in names:
        pipe.incr(name)
    try:
        pipe.execute()
    except redis.ResponseError:
        return list(names)
    return []
""",
        "failed",
        "one error, and it calls them all failed: the others have been counted",
    ),
    Wrong(
        """
import redis

def count_all(r, names):
    for attempt in range(2):
        pipe = r.pipeline(transaction=False)
        for name in names:
            pipe.incr(name)
        replies = pipe.execute(raise_on_error=False)
        if not any(isinstance(reply, Exception) for reply in replies):
            break
    return [name for name, reply in zip(names, replies) if isinstance(reply, Exception)]
""",
        "counted",
        "tries the whole batch again: what had succeeded is counted twice",
    ),
    Wrong(
        """
def count_all(r, names):
    pipe = r.pipeline(transaction=False)
    for name in names:
        pipe.incr(name)
    return [name for name, reply in zip(names, pipe.execute(raise_on_error=False)) if not reply]
""",
        "failed",
        "looks for replies that are falsy: an error among the replies is an object, and true",
    ),
    Wrong(
        """
def count_all(r, names):
    pipe = r.pipeline(transaction=False)
    for name in names:
        pipe.incr(name)
    replies = pipe.execute(raise_on_error=False)
    return [name for name, reply in zip(names, replies) if "WRONGTYPE" in str(reply)]
""",
        "failed",
        "knows one error by its words: another kind of value gives another error",
    ),
)


def _grade_count(count_all: Any, lab: Lab) -> None:
    names = [lab.key(f"counter:{i}") for i in range(7)]
    bad = [names[1], names[3], names[5]]
    lab.r.rpush(names[1], "a list, no counter")
    lab.r.mset({names[3]: "abc", names[5]: 2**63 - 1, names[6]: 41})
    call = "count_all(r, names): of 7 keys the 2nd is a list, the 4th holds abc, the 6th the largest integer"
    with lab.tap() as t:
        failed = count_all(lab.r, names)
    for number, name in enumerate(names, 1):
        due = "42" if name == names[6] else "1"
        if name not in bad and (value := lab.r.get(name)) != due:
            what = f"counter {number} is at {value!r}, and {due!r} was due: each is to be counted once"
            raise Failure("counted", what, call, "what had succeeded already when an error came")
    if sorted(failed or []) != sorted(bad):
        which = [names.index(n) + 1 for n in failed or [] if n in names]
        what = f"it reports counters {which} as failed; 2, 4 and 6 did"
        raise Failure("failed", what, call, "isinstance(reply, Exception), whatever the error says")
    if t.round_trips != 1:
        raise Failure("round_trips", f"it took {t.round_trips} round trips; one suffices", call, "a pipeline")


# --- transfer: atomic, under interference ------------------------------------------------------------

TRANSFER_STUB = '''
def transfer(r, source, target, amount):
    """Move amount from source to target: True; or False, and nothing moved, if source has too little."""
    raise NotImplementedError
'''

TRANSFER = '''
import redis

def transfer(r, source, target, amount):
    """Move amount from source to target: True; or False, and nothing moved, if source has too little."""
    while True:
        with r.pipeline() as pipe:
            try:
                pipe.watch(source)
                if int(pipe.get(source) or 0) < amount:
                    return False
                pipe.multi()
                pipe.decrby(source, amount)
                pipe.incrby(target, amount)
                pipe.execute()
                return True
            except redis.WatchError:
                continue
'''

TRANSFER_WRONG = (
    Wrong(
        """
def transfer(r, source, target, amount):
    have, other = int(r.get(source) or 0), int(r.get(target) or 0)
    if have < amount:
        return False
    pipe = r.pipeline()
    pipe.set(source, have - amount)
    pipe.set(target, other + amount)
    pipe.execute()
    return True
""",
        "lost",
        "writes values that it read before: what came in between is overwritten",
    ),
    Wrong(
        """
def transfer(r, source, target, amount):
    if int(r.get(source) or 0) < amount:
        return False
    r.decrby(source, amount)
    r.incrby(target, amount)
    return True
""",
        "half",
        "two commands: between them the money is nowhere",
    ),
    Wrong(
        """
def transfer(r, source, target, amount):
    if int(r.get(source) or 0) < amount:
        return False
    pipe = r.pipeline(transaction=False)
    pipe.decrby(source, amount)
    pipe.incrby(target, amount)
    pipe.execute()
    return True
""",
        "half",
        "a pipeline saves round trips; it does not keep others out",
    ),
    Wrong(
        """
def transfer(r, source, target, amount):
    if int(r.get(source) or 0) < amount:
        return False
    pipe = r.pipeline()
    pipe.decrby(source, amount)
    pipe.incrby(target, amount)
    pipe.execute()
    return True
""",
        "overdraft",
        "asks for the balance, then MULTI: two who ask at once both find enough",
    ),
    Wrong(
        """
import redis

def transfer(r, source, target, amount):
    while True:
        have = int(r.get(source) or 0)
        if have < amount:
            return False
        with r.pipeline() as pipe:
            try:
                pipe.watch(source)
                pipe.multi()
                pipe.decrby(source, amount)
                pipe.incrby(target, amount)
                pipe.execute()
                return True
            except redis.WatchError:
                continue
""",
        "overdraft",
        "WATCH after the read: a payment between the two is not seen",
    ),
    Wrong(
        """
def transfer(r, source, target, amount):
    with r.pipeline() as pipe:
        pipe.watch(source)
        if int(pipe.get(source) or 0) < amount:
            return False
        pipe.multi()
        pipe.decrby(source, amount)
        pipe.incrby(target, amount)
        pipe.execute()
        return True
""",
        "gives_up",
        "no second attempt: the WatchError goes to the caller, because somebody else was faster",
    ),
    Wrong(
        """
import redis

def transfer(r, source, target, amount):
    for attempt in range(3):
        with r.pipeline() as pipe:
            try:
                pipe.watch(source)
                if int(pipe.get(source) or 0) < amount:
                    return False
                pipe.multi()
                pipe.decrby(source, amount)
                pipe.incrby(target, amount)
                pipe.execute()
                return True
            except redis.WatchError:
                continue
    return False
""",
        "gives_up",
        "False after three attempts, although there is enough",
    ),
    Wrong(
        """
def transfer(r, source, target, amount):
    pipe = r.pipeline()
    pipe.decrby(source, amount)
    pipe.incrby(target, amount)
    pipe.execute()
    return True
""",
        "refused",
        "atomic, and never asks whether there is enough",
    ),
)


STUBBORN = 10
"""So many attempts in a row are spoiled by others; the next one is not."""


class _Bank:
    """Two accounts, and a client to which something may happen before each command that it sends.

    The client's bytes reach the server one command at a time, as over a slow link; `between` runs before
    each.
    """

    def __init__(self, lab: Lab, have: int, other: int) -> None:
        self.other_client = lab.client()
        self.source, self.target = lab.key("source"), lab.key("target")
        self.other_client.mset({self.source: have, self.target: other})
        self.sent = self.attempts = 0
        self.between: Callable[[int], None] = lambda number: None
        self.r = lab.client(connection_class=_one_at_a_time(self))
        self.r.ping()
        self.sent = self.attempts = 0

    def balances(self) -> tuple[int, int]:
        have, other = self.other_client.mget(self.source, self.target)
        return int(have or 0), int(other or 0)

    def before(self, command: bytes) -> None:
        self.sent += 1
        self.between(self.sent)
        self.attempts += command.upper() in (b"EXEC", b"EVAL", b"EVALSHA", b"FCALL")


def one_by_one(connection: redis.Connection, command: Any) -> Iterator[tuple[list[bytes], bytes]]:
    """The commands in what a connection is to send: the words of each, and its bytes. It is connected."""
    if connection._sock is None:
        connection.connect_check_health(check_health=False)
    data, at = b"".join([command] if isinstance(command, bytes) else command), 0
    while at < len(data) and (found := parse(data, at)):
        yield [word.value for word in found[0].value], data[at : found[1]]
        at = found[1]


def _one_at_a_time(bank: _Bank) -> type[redis.Connection]:
    class OneAtATime(redis.Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            send: Any = super().send_packed_command
            for words, data in one_by_one(self, command):
                bank.before(words[0])
                send([data], check_health=False)
                _await_reply(self._get_socket())

    return OneAtATime


def _await_reply(socket: Any) -> None:
    """Until the server has answered, and so has done it."""
    select.select([socket], [], [], 1)


def _grade_transfer(transfer: Any, lab: Lab) -> None:
    _check_alone(transfer, lab)
    _check_half(transfer, lab)
    _check_lost(transfer, lab)
    _check_overdraft(transfer, lab)


def _check_alone(transfer: Any, lab: Lab) -> None:
    for have, amount, moved in ((100, 30, True), (100, 100, True), (100, 101, False)):
        bank = _Bank(lab, have, 5)
        answer = transfer(bank.r, bank.source, bank.target, amount)
        expected = (have - amount, 5 + amount) if moved else (have, 5)
        if bank.balances() != expected or bool(answer) != moved:
            what = f"returned {answer!r}, accounts then {bank.balances()}; {moved} and {expected} were due"
            name = "moves" if moved else "refused"
            look = "what is done first: the check or the withdrawal"
            raise Failure(name, what, f"transfer of {amount} from an account of {have} to one of 5", look)


def _check_half(transfer: Any, lab: Lab) -> None:
    bank = _Bank(lab, 100, 0)
    seen: list[tuple[int, int]] = []
    bank.between = lambda number: seen.append(bank.balances())
    transfer(bank.r, bank.source, bank.target, 30)
    for have, other in seen:
        if have + other != 100:
            what = f"another client sees {have} and {other}: {100 - have - other} are nowhere"
            look = "MULTI/EXEC, or a Lua script: both changes become visible at once"
            raise Failure("half", what, "transfer of 30 between 100 and 0, seen half way", look)


def _check_lost(transfer: Any, lab: Lab) -> None:
    bank, paid = _Bank(lab, 100, 0), [0]

    def deposit(number: int) -> None:
        if number > 1 and bank.attempts < STUBBORN:
            bank.other_client.incrby(bank.source, 10)
            bank.other_client.incrby(bank.target, 1)
            paid[0] += 1

    bank.between = deposit
    call = f"transfer of 30 from 100 to 0; between your commands, until your attempt number {STUBBORN + 1}, "
    call += "another client pays 10 and 1 in"
    gives_up, look = (
        "",
        "a loop without a bound: watch, read, decide, multi, write, execute; again on WatchError",
    )
    try:
        if not transfer(bank.r, bank.source, bank.target, 30):
            gives_up = "it says False although source has enough: others were faster, and it gave up"
    except redis.WatchError:
        gives_up = "it gives up with WatchError when another client was faster"
    if gives_up:
        raise Failure("gives_up", gives_up, call, look)
    if bank.balances() != (due := (70 + 10 * paid[0], 30 + paid[0])):
        what = f"the accounts hold {bank.balances()}; {due} were due"
        raise Failure("lost", what, call, "values that were read before and are written later")


def _check_overdraft(transfer: Any, lab: Lab) -> None:
    for moment in (2, 3, 4, 5):
        bank = _Bank(lab, 100, 0)

        def withdraw(number: int, bank: _Bank = bank, moment: int = moment) -> None:
            if number == moment:
                bank.other_client.decrby(bank.source, 80)

        bank.between = withdraw
        answer = transfer(bank.r, bank.source, bank.target, 30)
        have, other = bank.balances()
        call = f"transfer of 30 from 100, while another client takes 80 before command number {moment}"
        if have < 0:
            look = "the moment between the check and the change: WATCH before the check, or check in Lua"
            raise Failure("overdraft", f"the account is overdrawn: {have}", call, look)
        if bank.sent >= moment and bool(answer) != (other == 30):
            what = f"it returned {answer!r}, and the accounts hold {have} and {other}"
            raise Failure("moves", what, call, "what EXEC, or the script, has really done")


EXERCISES = (
    Exercise(
        stem="pipelining",
        name="load",
        title="a loader with bounded batches",
        statement="Store what a generator yields, each key for an hour, `size` commands a round trip and "
        "never more than one batch in memory. Return how many keys were stored.",
        answer="load",
        stub=LOAD_STUB.strip() + "\n",
        hints=(
            "Take one batch from the iterator, send it, take the next. How do you see that it is empty?",
            "`chunk = list(islice(iterator, size))` is an empty list when nothing is left.",
            "In the loop: a new `r.pipeline(transaction=False)`, `set(key, value, ex=3600)` each, execute().",
        ),
        reference=LOAD.strip() + "\n",
        wrong=LOAD_WRONG,
        grade=_grade_load,
    ),
    Exercise(
        stem="pipelining",
        name="get_many",
        title="many keys in one round trip, in order, with nothing lost",
        statement="Read many keys in one round trip into a dict: in the order of the names, with None for a "
        "key that does not exist. No names: no round trip.",
        answer="get_many",
        stub=MANY_STUB.strip() + "\n",
        hints=(
            "One command reads many keys, and answers in the order in which they were asked for.",
            "`zip(names, r.mget(names))`; a generator of names can be used only once, a list twice.",
            "For no names redis-py sends an MGET all the same, in vain: answer {} before you ask.",
        ),
        reference=MANY.strip() + "\n",
        wrong=MANY_WRONG,
        grade=_grade_many,
    ),
    Exercise(
        stem="pipelining",
        name="count_all",
        title="a batch in which some commands fail",
        statement="Add 1 to each counter, all in one round trip. Some of the keys may hold what cannot be "
        "counted: a list, a text, the largest integer there is. Count the others exactly once, and return "
        "the names of those that failed.",
        answer="count_all",
        stub=COUNT_STUB.strip() + "\n",
        hints=(
            "An error in a pipeline does not stop the commands after it; it is one of the replies.",
            "`execute()` raises the first error. `execute(raise_on_error=False)` gives them back as replies.",
            "Replies stand in the order of the commands: zip them with the names, keep the exceptions.",
        ),
        reference=COUNT.strip() + "\n",
        wrong=COUNT_WRONG,
        grade=_grade_count,
    ),
    Exercise(
        stem="pipelining",
        name="transfer",
        title="a transfer that is safe while others write",
        statement="Move money between two accounts, if there is enough. Nobody may ever see half of it, no "
        "payment of others may be lost, no account overdrawn, whatever happens between your commands. "
        "`False` means one thing only, that there was too little: however often others are faster, do not "
        "give up.",
        answer="transfer",
        stub=TRANSFER_STUB.strip() + "\n",
        hints=(
            "Three things belong together: the check, the withdrawal and the deposit.",
            "WATCH the source before you read it; then EXEC does nothing if anybody has changed it since.",
            "A refused EXEC raises redis.WatchError: begin again at WATCH. Or do it all in a Lua script.",
        ),
        reference=TRANSFER.strip() + "\n",
        wrong=TRANSFER_WRONG,
        grade=_grade_transfer,
    ),
)
