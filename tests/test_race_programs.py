"""Partial-order reduction against plain enumeration, on generated programs: the same outcomes, as often.

A program's outcome is everything that can be seen at its end: what stands in Redis, and what each client got.
Each interleaving is made to "break" a rule with its outcome as the message, so that the explorer counts how
often each outcome comes about; with `reduce` these counts are worked out, without it they are counted.

Programs of the suite are always the same 150; with LABKIT_THOROUGH=1 they are 450.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import redis

from labkit.rig.race import Exploration, crash, expire, explore, lose_reply, outside

LARGEST = 40
"""Programs with more interleavings, or more runs, are passed over: they cost much, and show no more."""

PARTS = range(6) if os.environ.get("LABKIT_THOROUGH") else (0, 4)
"""Of 75 generated programs each. These two have every kind of operation, and find what all six find."""

Op = tuple[str, str, str, int]  # what to do; a string's key, a list's key, a number

KEEPS_TO_KEYS = "if redis.call('GET', KEYS[1]) then return redis.call('INCR', KEYS[1]) end return 0"
READS = "return redis.call('EXISTS', KEYS[1])"
BREAKS_OUT = "redis.call('SET', 'b', ARGV[1]) return redis.call('GET', KEYS[1])"

SIMPLE: dict[str, Callable[[Any, str, str, int], Any]] = {
    "get": lambda r, k, q, n: r.get(k),
    "set": lambda r, k, q, n: r.set(k, n),
    "lock": lambda r, k, q, n: r.set(k, n, nx=True, ex=100),
    "incr": lambda r, k, q, n: r.incr(k),
    "mget": lambda r, k, q, n: r.mget(k, "b"),
    "mset": lambda r, k, q, n: r.mset({k: n, "c": k}),
    "bits": lambda r, k, q, n: r.execute_command("BITFIELD", k, *(["GET", "u8", 0] * n)),
    "set bits": lambda r, k, q, n: r.execute_command("BITFIELD", k, "OVERFLOW", "SAT", "SET", "u8", 0, n),
    "del": lambda r, k, q, n: r.delete(k, q),
    "expire": lambda r, k, q, n: r.expire(k, 50),
    "persist": lambda r, k, q, n: r.persist(k),
    "ttl": lambda r, k, q, n: r.ttl(k),
    "push": lambda r, k, q, n: r.rpush(q, n),
    "pop": lambda r, k, q, n: r.lpop(q),
    "len": lambda r, k, q, n: r.llen(q),
    "move": lambda r, k, q, n: r.lmove(q, "p", "LEFT", "RIGHT"),
    "hset": lambda r, k, q, n: r.hset("h", k, n),
    "hget": lambda r, k, q, n: r.hget("h", k),
    "sadd": lambda r, k, q, n: r.sadd("s", n),
    "scard": lambda r, k, q, n: r.scard("s"),
    "dbsize": lambda r, k, q, n: r.dbsize(),
    "publish": lambda r, k, q, n: r.publish("news", n),
    "wrong type": lambda r, k, q, n: r.llen(k),
}


def transaction(r: Any, k: str, q: str, n: int, *, real: bool = True) -> Any:
    with r.pipeline(transaction=real) as pipe:
        pipe.incr(k)
        pipe.dbsize()
        pipe.lpop(q)
        return [str(reply) for reply in pipe.execute(raise_on_error=False)]


def watch(r: Any, k: str, q: str, n: int) -> Any:
    with r.pipeline() as pipe:
        pipe.watch(k)
        value = int(pipe.get(k) or 0)
        pipe.multi()
        pipe.set("b" if n == 1 else k, value + n)
        try:
            return pipe.execute()
        except redis.WatchError:
            return "changed"


def multi_by_hand(r: Any, k: str, q: str, n: int) -> Any:
    with r.client() as one:
        one.execute_command("multi")
        one.incr(k)
        one.get("b")
        return one.execute_command("exec")


def elsewhere(r: Any, k: str, q: str, n: int) -> Any:
    with r.client() as one:
        one.select(1)
        return one.incr(k)


def track(r: Any, k: str, q: str, n: int) -> Any:
    with r.client() as one:
        one.execute_command("CLIENT TRACKING", "ON")
        one.get(k)
        return one.blpop([q], 5)


def either(r: Any, k: str, q: str, n: int) -> Any:
    return r.rpush(q, n) if r.get(k) else r.set(k, n, ex=100)


def pipelined_wait(r: Any, k: str, q: str, n: int) -> Any:
    with r.pipeline(transaction=False) as pipe:
        pipe.rpush("q", n)
        pipe.blpop([q], n - 1)
        pipe.get(k)
        return pipe.execute()


COMPOSED: dict[str, Callable[[Any, str, str, int], Any]] = {
    "if": either,
    "transaction": transaction,
    "pipeline": lambda r, k, q, n: transaction(r, k, q, n, real=False),
    "watch": watch,
    "multi by hand": multi_by_hand,
    "script": lambda r, k, q, n: r.eval(KEEPS_TO_KEYS, 1, k),
    "cold script": lambda r, k, q, n: r.register_script(KEEPS_TO_KEYS)(keys=[k]),
    "reading script": lambda r, k, q, n: r.eval_ro(READS, 1, k),
    "script that breaks out": lambda r, k, q, n: r.eval(BREAKS_OUT, 1, k, n),
    "other database": elsewhere,
    "tracking": track,
    "sleep": lambda r, k, q, n: time.sleep(n),
    "wait": lambda r, k, q, n: r.wait(1, 10),
}

BLOCKING: dict[str, Callable[[Any, str, str, int], Any]] = {
    "blpop": lambda r, k, q, n: r.blpop([q, "q"], n),
    "blpop for ever": lambda r, k, q, n: r.blpop([q], 0),
    "blmove": lambda r, k, q, n: r.blmove(q, "p", n),
    "xread": lambda r, k, q, n: bool(r.xread({"x": "0"}, block=n)),
    "xreadgroup": lambda r, k, q, n: bool(r.xreadgroup("g", "c", {"x": ">"}, block=n - 1)),
    "xadd": lambda r, k, q, n: bool(r.xadd("x", {"f": n})),
    "pipelined blpop": pipelined_wait,
}

rows: dict[str, int] = {}
"""A table outside Redis."""


def row(r: Any, k: str, q: str, n: int, *, change: bool = True) -> Any:
    def act() -> int:
        if change:
            rows[k] = 10 * rows.get(k, 0) + n
        return rows.get(k, 0)

    return outside(("SQL", k, str(n)), act, reads=[k], writes=[k] * change)


def failing(r: Any, k: str, q: str, n: int) -> Any:
    def act() -> None:
        raise redis.ResponseError(f"the row is {rows.get(k, 0)}")

    return outside(("SQL", k), act, reads=[k])


OUTSIDE: dict[str, Callable[[Any, str, str, int], Any]] = {
    "row": lambda r, k, q, n: row(r, k, q, n, change=False),
    "change a row": row,
    "a row that fails": failing,
    "if a row": lambda r, k, q, n: r.incr(k) if row(r, k, q, n, change=False) else row(r, k, q, n),
}

KINDS = SIMPLE | COMPOSED | BLOCKING | OUTSIDE

ALWAYS: dict[str, Callable[[Any], Any]] = {
    "b is not above 1": lambda r: int(r.get("b") or 0) <= 1,
    "q is short": lambda r: r.llen("q") < 2,
    "few keys": lambda r: r.dbsize() < 4,
    "a is there": lambda r: r.exists("a"),  # false before the first step
}


class Generated(NamedTuple):
    clients: tuple[tuple[Op, ...], ...]
    before: tuple[Op, ...]
    faults: tuple[str, ...]
    always: str

    def setup(self, r: Any) -> None:
        rows.clear()
        if any(kind.startswith("x") for client in self.clients for kind, *_ in client):
            r.xgroup_create("x", "g", mkstream=True)
            r.expire("x", 100)
        for kind, key, queue, number in self.before:
            KINDS[kind](r, key, queue, number)

    def explore(self, reduce: bool) -> Exploration:
        return explore(
            [_actor(ops) for ops in self.clients],
            setup=self.setup,
            invariant=_outcome,
            always=ALWAYS.get(self.always),
            faults=self.faults,
            reduce=reduce,
            limit=LARGEST,
        )


def generate(seed: int) -> Generated:
    rng = random.Random(seed)
    faults = tuple(fault for fault in (expire, crash, lose_reply) if rng.random() < 0.2)
    clients = rng.choice((2, 2, 3))
    longest = 3 if clients == 2 and not faults else 2 if clients == 2 else 1

    def op(kinds: list[str]) -> Op:
        return rng.choice(kinds), rng.choice("ab"), rng.choice("qp"), rng.randint(1, 3)

    families = [list(SIMPLE), list(COMPOSED), list(BLOCKING), list(OUTSIDE)]
    return Generated(
        tuple(
            tuple(op(rng.choice(families)) for _ in range(rng.randint(1, longest))) for _ in range(clients)
        ),
        tuple(op(["set", "lock", "push"]) for _ in range(rng.randint(0, 2))),
        faults,
        rng.choice((*ALWAYS, "", "", "", "", "", "")),
    )


def _actor(ops: tuple[Op, ...]) -> Callable[[Any], Any]:
    def run(r: Any) -> list[str]:
        got = []
        for kind, key, queue, number in ops:
            try:
                got.append(str(KINDS[kind](r, key, queue, number)))
            except redis.ResponseError as error:
                got.append(str(error))
        return got

    return run


LOOK = """
local found, keys = {}, redis.call('KEYS', '*')
table.sort(keys)
for i, key in ipairs(keys) do
    local kind = redis.call('TYPE', key).ok
    local read = {string = {'GET', key}, list = {'LRANGE', key, 0, -1}, hash = {'HGETALL', key},
                  set = {'SORT', key}, stream = {'XLEN', key}}
    local pending = kind == 'stream' and redis.pcall('XPENDING', key, 'g')[1] or 0
    found[i] = {key, redis.call('TTL', key) > 0, pending, redis.call(unpack(read[kind]))}
end
return cjson.encode(found)
"""


def _outcome(r: Any, results: list[Any]) -> None:
    raise AssertionError(f"{r.eval(LOOK, 0)} {sorted(rows.items())} {[str(result) for result in results]}")


def outcomes(result: Exploration) -> Counter[str]:
    """How many interleavings end in each way."""
    counts: Counter[str] = Counter()
    for one in result.interleavings:
        counts[one.wrong] += one.stands_for
    return counts


def check(seed: int) -> tuple[int, int] | None:
    """The runs with and without reduction, which must agree; None for a program that is too large."""
    program = generate(seed)
    reduced = program.explore(reduce=True)
    if reduced.total > LARGEST or not reduced.exhausted:
        return None
    plain = program.explore(reduce=False)
    assert plain.runs == plain.total
    assert outcomes(reduced) == outcomes(plain), program
    for what in ("total", "violations", "exhausted", "verdict", "schedule", "first"):
        assert getattr(reduced, what) == getattr(plain, what), (what, program)
    return reduced.runs, plain.runs


@pytest.mark.parametrize("part", PARTS)
def test_reduction_changes_no_outcome_and_no_count(part: int, record_property: Any) -> None:
    checked = [runs for seed in range(part * 1000, part * 1000 + 75) if (runs := check(seed))]
    assert len(checked) >= 40
    with_reduction, without = (sum(column) for column in zip(*checked, strict=True))
    record_property(
        "summary", f"reduction, part {part}: {len(checked)} programs, {with_reduction:,} runs for {without:,}"
    )
    assert with_reduction < 0.8 * without
