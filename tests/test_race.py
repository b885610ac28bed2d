"""labkit.rig.race: known counts, what a step is, faults, verdicts, traces, and that nothing is left behind.

That reduction changes no count is tested on generated programs in test_race_programs.py.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import random
import secrets
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from time import sleep as imported_sleep
from typing import Any

import greenlet
import pytest
import redis

from labkit import LabkitError, rate_limiter
from labkit.rig.footprint import PURE
from labkit.rig.order import Order, dependent, switches
from labkit.rig.race import (
    Exploration,
    NondeterministicActor,
    RaceFound,
    crash,
    expire,
    explore,
    lose_reply,
    outside,
    sequence,
)
from labkit.rig.server import Server, binaries
from labkit.rig.stage import Taken


def holds(*_: Any) -> bool:
    return True


def fails(*_: Any) -> bool:
    return False


def add_slowly(r: Any) -> None:
    value = int(r.get("n") or 0)
    r.set("n", value + 1)


def add(r: Any, times: int = 1) -> None:
    for _ in range(times):
        r.incr("n")


def adds_up(n: int) -> Callable[[Any], bool]:
    return lambda r: int(r.get("n")) == n


@pytest.fixture(
    scope="module", params=sorted({b.path: b for b in binaries()}.values()), ids=lambda b: b.source
)
def server(request: Any) -> Iterator[Server]:
    """A server of each Redis that is installed here."""
    with Server(binary=request.param.path) as started:
        yield started


# Known counts


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize(("clients", "broken", "total"), [(2, 4, 6), (3, 84, 90)])
def test_get_then_set(clients: int, broken: int, total: int, reduce: bool) -> None:
    result = explore([add_slowly] * clients, invariant=adds_up(clients), reduce=reduce)
    assert (result.violations, result.total, result.verdict, result.exhausted) == (
        broken,
        total,
        "violated",
        True,
    )


@pytest.mark.parametrize("reduce", [True, False])
def test_decr_is_atomic(reduce: bool) -> None:
    def decr(r: Any) -> None:
        r.decr("stock")

    def setup(r: Any) -> None:
        r.set("stock", 2)

    result = explore([decr, decr], setup=setup, invariant=lambda r: r.get("stock") == "0", reduce=reduce)
    assert (result.violations, result.total, result.verdict) == (0, 2, "safe")
    result.assert_safe()


def test_three_clients_of_three_increments() -> None:
    result = explore([partial(add, times=3)] * 3, invariant=adds_up(9), reduce=False)
    assert (result.violations, result.total, result.runs, result.verdict) == (0, 1680, 1680, "safe")


def test_the_last_ticket() -> None:
    def buy(r: Any) -> None:
        if int(r.get("stock")) > 0:
            r.decr("stock")
            r.rpush("sold", "ticket")

    def setup(r: Any) -> None:
        r.set("stock", 1)

    result = explore([buy, buy], setup=setup, invariant=lambda r: r.llen("sold") <= 1)
    assert (result.violations, result.total, result.schedule) == (12, 16, "ABBBAA")
    assert result.replay("AAAB").wrong == ""
    same = explore([buy, buy], setup=setup, invariant=lambda r: r.llen("sold") <= 1, reduce=False)
    assert (same.violations, same.total, same.schedule) == (12, 16, "ABBBAA")


@pytest.mark.parametrize(
    "shape", [(1,), (4,), (1, 1), (3, 1), (2, 3), (4, 2), (1, 1, 1), (3, 2, 1), (2, 2, 2), (1,) * 5]
)
def test_totals_are_multinomials(shape: tuple[int, ...]) -> None:
    expected = math.factorial(sum(shape))
    for steps in shape:
        expected //= math.factorial(steps)

    def touch(name: str, times: int, r: Any) -> None:
        for number in range(times):
            r.set(f"{name}{number}", 1)

    shared = [partial(add, times=steps) for steps in shape]
    apart = [partial(touch, name, steps) for name, steps in zip("abcde", shape, strict=False)]
    for actors in (shared, apart):
        plain = explore(actors, invariant=holds, reduce=False)
        assert (plain.total, plain.runs, plain.exhausted) == (expected, expected, True)
        assert len({one.schedule for one in plain.interleavings}) == expected
        assert explore(actors, invariant=holds).total == expected
    assert explore(apart, invariant=holds).runs == 1  # all steps commute


def test_distinct_keys_need_few_runs() -> None:
    def client(own: str, r: Any) -> None:
        r.set(own, 1)
        r.incr("shared")
        r.get(own)
        r.delete(own)

    result = explore([partial(client, own) for own in "xyz"], invariant=lambda r: r.get("shared") == "3")
    assert result.total == 34_650  # 12! / 4!4!4!
    assert result.runs == 6  # in which order they increment
    assert result.verdict == "safe"


# What a step is


def steps_of(actor: Callable[[Any], Any], **options: Any) -> tuple[tuple[str, str], ...]:
    """The commands and replies of one client that is alone."""
    result = explore([actor], invariant=fails, **options)
    assert result.first is not None
    return tuple((step.command, step.reply) for step in result.first.steps)


def test_a_transaction_is_one_step(server: Server) -> None:
    def transfer(r: Any) -> Any:
        with r.pipeline() as pipe:
            pipe.incr("a")
            pipe.decr("b")
            return pipe.execute()

    result = explore([transfer] * 3, always=lambda r: int(r.get("a")) == -int(r.get("b")), server=server)
    assert (result.total, result.verdict) == (6, "safe")
    assert steps_of(transfer, server=server) == (("MULTI; INCRBY a 1; DECRBY b 1; EXEC", "[1, -1]"),)


def test_a_pipeline_is_a_step_for_each_command_and_its_client_does_not_react(server: Server) -> None:
    def transfer(r: Any) -> Any:
        with r.pipeline(transaction=False) as pipe:
            pipe.incr("a")
            pipe.llen("a")
            pipe.decr("b")
            return [str(reply) for reply in pipe.execute(raise_on_error=False)]

    result = explore([transfer] * 2, always=lambda r: bool(r.get("b")), server=server)
    assert (result.total, result.violations) == (20, 20)
    wrong = "WRONGTYPE Operation against a key holding the wrong …"
    assert [command for command, _ in steps_of(transfer, server=server)] == [
        "INCRBY a 1",
        "LLEN a",
        "DECRBY b 1",
    ]
    replies = [reply for _, reply in steps_of(transfer, server=server)]
    assert (replies[0], replies[2]) == ("1", "-1")
    assert wrong[:9] in replies[1]
    trace = sequence("ABAABB", [transfer] * 2, server=server)
    assert [step.reply for step in trace.steps if step.command.startswith("INCR")] == ["1", "2"]


def test_a_script_is_one_step_and_a_cold_cache_changes_nothing(server: Server) -> None:
    body = "if redis.call('GET', KEYS[1]) then return 0 end redis.call('SET', KEYS[1], ARGV[1]) return 1"
    taken = f"-- take\n{body}"

    def registered(r: Any) -> Any:
        return r.register_script(taken)(keys=["lock"], args=[secrets.token_hex(8)])

    def piped(r: Any) -> Any:
        script = r.register_script(taken)
        with r.pipeline(transaction=False) as pipe:
            script(keys=["lock"], args=["x"], client=pipe)
            return pipe.execute()

    def by_hand(r: Any) -> Any:
        try:
            return r.evalsha(script_sha, 1, "lock", "x")
        except redis.exceptions.NoScriptError:
            return r.eval(taken, 1, "lock", "x")

    with server.client() as r:
        script_sha = r.script_load(taken)
        for actor, steps in ((registered, 1), (by_hand, 1), (piped, 2)):
            for cold in (True, False):
                if cold:
                    r.script_flush()
                result = explore(
                    [actor] * 2, invariant=lambda r, results: results[0] != results[1], server=server
                )
                assert (result.total, result.verdict) == (math.comb(2 * steps, steps), "safe"), actor
                assert sequence("AB" * steps, [actor] * 2, server=server).finished
    assert steps_of(registered, server=server) == (("EVALSHA <take> 1 lock token·1", "1"),)


def test_a_cold_script_before_an_expiry(server: Server) -> None:
    def lock(r: Any) -> Any:
        return r.register_script("return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', 9000)")(["l"], ["x"])

    def only_one(r: Any, results: list[Any]) -> bool:
        return results.count("OK") <= 1

    with server.client() as r:
        r.script_flush()
    result = explore([lock, lock], invariant=only_one, faults=[expire], server=server)
    assert (result.violations, result.total, result.schedule) == (2, 4, "A*B")
    assert result.first is not None
    assert [step.kind for step in result.first.steps] == ["command", "expire", "command"]


def test_watch_belongs_to_a_connection(server: Server) -> None:
    def add_watching(r: Any) -> str:
        with r.pipeline() as pipe:
            pipe.watch("n")
            value = int(pipe.get("n") or 0)
            pipe.multi()
            pipe.set("n", value + 1)
            try:
                pipe.execute()
            except redis.WatchError:
                return "lost"
            return "done"

    def counted(r: Any, results: list[str]) -> bool:
        return int(r.get("n")) == results.count("done") >= 1

    result = explore([add_watching] * 2, invariant=counted, server=server)
    assert (result.total, result.verdict) == (20, "safe")
    lost = explore([add_watching] * 2, invariant=lambda r, results: "lost" not in results, server=server)
    assert lost.violations == 18  # all but one after the other

    def retrying(r: Any) -> None:
        def change(pipe: Any) -> None:
            value = int(pipe.get("n") or 0)
            pipe.multi()
            pipe.set("n", value + 1)

        r.transaction(change, "n")

    assert explore([retrying] * 2, invariant=adds_up(2), server=server).verdict == "safe"


def test_select_and_tracking_belong_to_a_connection(server: Server) -> None:
    def elsewhere(r: Any) -> Any:
        with r.client() as one:
            one.select(3)
            one.incr("n")
            return one.get("n")

    def here(r: Any) -> Any:
        return r.get("n")

    result = explore([elsewhere, here], invariant=lambda r, results: results == ["1", None], server=server)
    assert (result.total, result.verdict) == (4, "safe")

    def tracks(r: Any) -> Any:
        with r.client() as one:
            one.execute_command("CLIENT TRACKING", "ON")
            one.get("n")
            return one.blpop(["q"], 5)

    def changes(r: Any) -> None:
        r.incr("n")
        r.rpush("q", "x")

    served = explore([tracks, changes], invariant=holds, server=server, reduce=False)
    assert (served.verdict, served.total) == (
        explore([tracks, changes], invariant=holds).verdict,
        served.total,
    )
    assert explore([here], invariant=lambda r, results: results == [None], server=server).verdict == "safe"


def test_every_client_has_a_connection_of_its_own() -> None:
    def who(r: Any) -> Any:
        return r.client_id()

    assert explore([who] * 3, invariant=lambda r, ids: len({*ids, r.client_id()}) == 4).verdict == "safe"


# Waiting


def test_a_blocked_client_goes_on_when_another_ends_its_wait(server: Server) -> None:
    def consumer(r: Any) -> Any:
        return r.blpop(["q"], 0)

    def producer(r: Any) -> None:
        r.rpush("q", "job")

    result = explore(
        [consumer, producer], invariant=lambda r, results: results[0] == ["q", "job"], server=server
    )
    assert (result.total, result.verdict) == (2, "safe")
    waited = sequence("AB", [consumer, producer], server=server)
    assert waited.steps[0].reply == "(waits)"
    assert waited.steps[1].woken == (("A", '["q", "job"]'),)
    assert "A" in str(waited)
    assert "(it had waited)" in str(waited)
    two = explore([consumer, consumer, producer], invariant=holds, server=server)
    assert (two.total, two.violations) == (6, 6)
    assert two.first is not None
    assert two.first.wrong == "deadlock: B waits in BLPOP, and nobody is left to end it"


def test_a_timeout_is_a_step_that_may_come_at_any_moment(server: Server) -> None:
    def consumer(r: Any) -> tuple[Any, float]:
        began = time.monotonic()
        got = r.blpop(["q"], 7)
        return got, time.monotonic() - began

    def producer(r: Any) -> None:
        r.set("other", 1)
        r.rpush("q", "job")

    def outcome(r: Any, results: list[Any]) -> None:
        got, waited = results[0]
        assert waited == (0 if got else 7)
        raise AssertionError("served" if got else "timed out")

    result = explore([consumer, producer], invariant=outcome, server=server)
    counts: Counter[str] = Counter()
    for one in result.interleavings:
        counts[one.wrong] += one.stands_for
    assert counts == {"served": 3, "timed out": 3}  # (A)SR, S(A)R, SRA; A-S-R, A-SR-…
    trace = sequence("AABB", [consumer, producer], server=server)
    assert [step.kind for step in trace.steps] == ["command", "timeout", "command", "command"]
    assert "BLPOP q 7 times out" in str(trace)


BLOCKING: dict[str, Callable[[Any, float], Any]] = {
    "BLPOP": lambda r, s: r.blpop(["q"], s),
    "BRPOP": lambda r, s: r.brpop(["q"], s),
    "BLMOVE": lambda r, s: r.blmove("q", "p", s),
    "BRPOPLPUSH": lambda r, s: r.brpoplpush("q", "p", s),
    "BLMPOP": lambda r, s: r.blmpop(s, 1, "q", direction="LEFT"),
    "BZPOPMIN": lambda r, s: r.bzpopmin(["z"], s),
    "BZPOPMAX": lambda r, s: r.bzpopmax(["z"], s),
    "BZMPOP": lambda r, s: r.bzmpop(s, 1, ["z"], min=True),
    "XREAD": lambda r, s: r.xread({"block": "$"}, block=int(s * 1000)),
    "XREADGROUP": lambda r, s: r.xreadgroup("block", "c", {"x": ">"}, block=int(s * 1000)),
    "WAIT": lambda r, s: r.wait(1, int(s * 1000)),
}


@pytest.mark.parametrize("name", BLOCKING)
def test_blocking_commands(name: str, server: Server) -> None:
    command = BLOCKING[name]

    def setup(r: Any) -> None:
        r.xgroup_create("x", "block", mkstream=True)

    began = time.perf_counter()
    timed = explore([lambda r: command(r, 3600)], setup=setup, invariant=holds, server=server)
    assert (timed.total, timed.verdict) == (1, "safe")
    for_ever = explore([lambda r: command(r, 0)], setup=setup, invariant=holds, server=server)
    assert for_ever.first is not None
    assert for_ever.first.wrong == f"deadlock: A waits in {name}, and nobody is left to end it"
    assert time.perf_counter() - began < 3600


def test_a_deadlock_is_a_violation() -> None:
    def one(first: str, then: str, r: Any) -> None:
        r.blpop([first], 0)
        r.rpush(then, "token")

    result = explore([partial(one, "x", "y"), partial(one, "y", "x")], invariant=holds)
    assert (result.violations, result.total, result.verdict) == (2, 2, "violated")
    assert "A waits in BLPOP, B waits in BLPOP, and nobody is left to end it" in str(result)


def test_a_chain_of_waits_is_ended_at_once() -> None:
    def mover(r: Any) -> Any:
        return r.blmove("a", "b", 0)

    def last(r: Any) -> Any:
        return r.blpop(["b"], 0)

    def first(r: Any) -> None:
        r.rpush("a", "x")

    result = explore([mover, last, first], invariant=lambda r, got: got == ["x", ["b", "x"], None])
    assert (result.total, result.verdict) == (6, "safe")
    assert [who for who, _ in sequence("ABC", [mover, last, first]).steps[-1].woken] == ["A", "B"]


# Time


def test_time_is_the_clients_own_and_virtual() -> None:
    def sleeper(seconds: float, r: Any) -> list[float]:
        clocks = (time.time, time.monotonic, time.perf_counter)
        began = [clock() for clock in clocks]
        nanos = time.time_ns()
        time.sleep(seconds)
        r.incr("n")
        assert time.time_ns() - nanos == pytest.approx(seconds * 1e9, rel=1e-6)
        assert abs(time.time() - real_time()) < 3600 + seconds
        return [clock() - then for clock, then in zip(clocks, began, strict=True)]

    real_time = time.time
    before = (time.sleep, time.time, time.monotonic, time.perf_counter, time.time_ns)
    actors = [partial(sleeper, 1000), partial(sleeper, 30)]
    result = explore(
        actors,
        invariant=lambda r, got: got == [pytest.approx([1000] * 3), pytest.approx([30] * 3)],
        reduce=False,
    )
    assert (result.total, result.verdict) == (6, "safe")
    assert before == (time.sleep, time.time, time.monotonic, time.perf_counter, time.time_ns)
    assert "time.sleep(1000)" in str(sequence("A", actors))
    assert [step.kind for step in sequence("AB", actors).steps] == ["sleep", "sleep"]


def test_sleep_that_was_imported_by_name_is_a_step_too() -> None:
    def sleeper(r: Any) -> None:
        imported_sleep(3600)
        r.incr("n")

    result = explore([sleeper, sleeper], invariant=adds_up(2), reduce=False)
    assert (result.total, result.verdict) == (6, "safe")
    assert imported_sleep is time.sleep


def test_time_goes_on_for_everybody_else() -> None:
    seen = []

    def look(r: Any) -> None:
        thread = threading.Thread(target=lambda: seen.append(time.monotonic()))
        thread.start()
        thread.join()
        r.get("n")

    before = time.monotonic()
    explore([look], setup=lambda r: seen.append(time.monotonic()), invariant=holds)
    assert before < min(seen) < max(seen) < time.monotonic()


# Actors that misbehave


def test_an_actor_that_raises_is_a_violation_that_shows_the_exception() -> None:
    def checks(r: Any) -> None:
        if r.get("gone"):
            raise RuntimeError("it has gone")

    def leaves(r: Any) -> None:
        r.set("gone", 1)

    result = explore([checks, leaves], invariant=holds)
    assert (result.violations, result.total) == (1, 2)
    assert "A raised RuntimeError: it has gone" in str(result)
    assert result.schedule == "BA"
    at_once = explore([lambda r: 1 / 0], invariant=holds)
    assert (at_once.violations, at_once.total, at_once.schedule) == (1, 1, "")
    assert "A raised ZeroDivisionError: division by zero" in str(at_once)
    replies = explore([lambda r: r.llen("n")], setup=lambda r: r.set("n", 1), invariant=holds)
    assert "A raised ResponseError: WRONGTYPE" in str(replies)


def test_other_commands_when_run_again() -> None:
    numbers = itertools.count()

    def other_command(r: Any) -> None:
        r.get("n")
        r.get("n") if next(numbers) % 2 else r.incr("n")

    def other_key(r: Any) -> None:
        r.set(f"key{next(numbers)}", 1)

    def more(r: Any) -> None:
        r.get("n")
        if next(numbers) % 2:
            r.set("n", 1)

    for actor, said in ((other_command, ("INCRBY n 1", "GET n")), (other_key, ("SET key", "SET key"))):
        for reduce in (True, False):
            numbers = itertools.count()
            with pytest.raises(NondeterministicActor) as caught:
                explore([actor], invariant=holds, reduce=reduce)
            assert isinstance(caught.value, LabkitError)
            assert caught.value.actor == "A"
            assert caught.value.first.startswith(said[0])
            assert caught.value.second.startswith(said[1])
            assert caught.value.first in str(caught.value)
            assert caught.value.second in str(caught.value)
    for start in (0, 1):
        numbers = itertools.count(start)
        with pytest.raises(NondeterministicActor, match=r"\(nothing more\)"):
            explore([more], invariant=holds)


def test_chance_is_found_out_in_the_course_of_a_search() -> None:
    numbers = itertools.count(1)

    def client(r: Any) -> None:
        r.get("a")
        r.get("b") if next(numbers) % 7 else r.get("c")

    with pytest.raises(NondeterministicActor):
        explore([client, client], invariant=holds, reduce=False)


def test_random_arguments_are_no_difference() -> None:
    def lock(r: Any) -> None:
        token = secrets.token_hex(8)
        r.set("lock", token, nx=True, ex=10)
        r.zadd("when", {token: time.time()})
        r.xadd("log", {"who": token})
        time.sleep(random.random())

    texts, pages = set(), set()
    for _ in range(20):
        result = explore([lock, lock], invariant=fails, limit=3)
        texts.add(repr(result))
        pages.add(result._repr_html_())
    assert len(texts) == len(pages) == 1
    (text,) = texts
    assert "SET lock token·1 EX 10 NX" in text.replace("NX EX 10", "EX 10 NX")
    assert "token·2" in text
    assert "time·1" in text
    assert "token·3" not in text


def test_a_busy_machine_is_no_difference() -> None:
    """A TTL stands in the trace as it was set, however long the steps after that really take."""

    def slow(r: Any) -> None:
        r.set("k", "v", px=1300)
        r.get("k")
        select.select([], [], [], 0.4)
        r.expire("k", 7)

    found = explore([slow], invariant=fails).first
    assert found is not None
    assert [step.state[0][1] for step in found.steps] == ['"v" · TTL 2 s', '"v" · TTL 2 s', '"v" · TTL 7 s']


def test_actors_that_swallow_whatever_is_raised() -> None:
    def persistent(r: Any) -> None:
        for _ in range(3):
            try:
                r.incr("n")
            except:  # noqa: E722
                continue

    result = explore([persistent, add], invariant=lambda r: int(r.get("n")) <= 4, faults=[crash])
    assert result.verdict == "safe"
    plain = explore([persistent, add], invariant=holds, faults=[crash], reduce=False)
    assert result.total == plain.total

    def endless(r: Any) -> None:
        while True:
            try:
                r.incr("n")
            except BaseException:
                continue

    with pytest.raises(LabkitError, match="cannot be stopped"):
        explore([endless, add], invariant=holds, limit=3)
    assert explore([add], invariant=holds).verdict == "safe"


def test_what_cannot_be_an_actor() -> None:
    def generator(r: Any) -> Iterator[Any]:
        yield r.get("n")

    async def coroutine(r: Any) -> None: ...

    for actor in ("get n", None, generator, coroutine):
        with pytest.raises(TypeError, match="an actor is "):
            explore([actor], invariant=holds)  # type: ignore[list-item]
    for actors in ([], [add] * 27):
        with pytest.raises(ValueError, match="from 1 to 26"):
            explore(actors, invariant=holds)


@pytest.mark.parametrize(
    "words", [("MONITOR",), ("SUBSCRIBE", "x"), ("SSUBSCRIBE", "x"), ("CLIENT REPLY", "OFF")]
)
def test_what_an_actor_cannot_do(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="an actor cannot"):
        explore([lambda r: r.execute_command(*words)], invariant=holds)
    assert explore([add], invariant=adds_up(1)).verdict == "safe"


def test_another_threads_commands_are_refused() -> None:
    def client(r: Any) -> None:
        failed: list[BaseException] = []

        def work() -> None:
            try:
                r.get("n")
            except RuntimeError as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        raise failed[0]

    assert "not from a thread" in str(explore([client], invariant=holds))


def test_an_interrupt_leaves_everything_usable() -> None:
    runs = itertools.count()

    def client(r: Any) -> None:
        add_slowly(r)
        if next(runs) == 9:
            raise KeyboardInterrupt

    with Server() as server:
        with pytest.raises(KeyboardInterrupt):
            explore([client] * 2, invariant=adds_up(2), reduce=False, server=server)
        assert time.sleep.__module__ == "time"
        assert explore([add_slowly] * 2, invariant=adds_up(2), server=server).violations == 4
        assert server.client().info("clients")["connected_clients"] <= 5


def test_ordinary_code_works() -> None:
    def client(r: Any) -> list[Any]:
        """Generators, helpers, comprehensions and context managers."""
        r.mset({"k1": 1, "k2": 2})
        found = sorted(r.scan_iter("k*", count=100))
        return [value for value in (r.get(key) for key in found) if value]

    result = explore([client, client], invariant=lambda r, got: got == [["1", "2"]] * 2)
    assert (result.total, result.verdict) == (math.comb(8, 4), "safe")
    methods = explore(
        [redis.Redis.ping, lambda r: r.set("n", 1)], invariant=lambda r, got: got == [True, True]
    )
    assert methods.verdict == "safe"
    assert methods.replay("A").clients[0] == ("A", "ping")


# Faults


def lock(r: Any, ttl: int | None = 10) -> bool:
    if not r.set("lock", "mine", nx=True, ex=ttl):
        return False
    r.incr("inside")
    r.decr("inside")
    r.delete("lock")
    return True


def test_expire_may_happen_at_any_moment(server: Server) -> None:
    def alone(r: Any) -> bool:
        return int(r.get("inside") or 0) <= 1

    kept = explore([lock, lock], always=alone, server=server)
    assert (kept.verdict, kept.exhausted) == ("safe", True)
    lost = explore([lock, lock], always=alone, faults=[expire], server=server)
    assert lost.verdict == "violated"
    assert lost.first is not None
    assert [step.command for step in lost.first.steps].count("lock expires") == 1
    assert lost.first.broke_at is not None
    assert lost.schedule.count("*") == 1
    endless = explore([partial(lock, ttl=None)] * 2, always=alone, faults=[expire], server=server)
    assert (endless.verdict, endless.total) == ("safe", kept.total)  # nothing has a TTL


def test_which_key_expires_is_said_where_several_could() -> None:
    def client(r: Any) -> Any:
        r.set("one", 1, ex=100)
        r.set("other", 2, ex=100)
        return r.mget("one", "other")

    def intact(r: Any, results: list[Any]) -> bool:
        return bool(results[0] != ["1", None])

    result = explore([client], invariant=intact, faults=["expire"])
    assert result.schedule == "AA*<other>A"
    assert result.replay(result.schedule).wrong == result.replay("AA *<other> A").wrong != ""
    with pytest.raises(ValueError, match=r"'\*' is not possible; possible is A, \*one, \*other"):
        result.replay("AA*A")
    alone = explore([client], invariant=lambda r, results: results[0] != [None, "2"], faults=["expire"])
    assert alone.schedule in ("A*AA", "AA*<one>A")
    every = explore([client], invariant=intact, faults=["expire"], reduce=False)
    assert {one.schedule for one in every.interleavings} >= {"AAA", "A*AA", "AA*<one>*A", "AA*<other>*A"}


def test_expiry_just_before_a_last_step_that_does_not_see_it() -> None:
    """Steps that commute with the fault must not hide it: it can happen only while somebody still runs."""

    def setup(r: Any) -> None:
        r.set("k", 1, ex=100)

    for actors in ([lambda r: r.get("other")], [lambda r: r.get("other"), lambda r: r.blpop(["never"], 0)]):
        for faults in ([expire], [expire, crash]):
            both = [
                explore(actors, setup=setup, invariant=lambda r: r.exists("k"), faults=faults, reduce=reduce)
                for reduce in (True, False)
            ]
            assert both[0].violations == both[1].violations > 0
            assert both[0].total == both[1].total


def test_a_crash_may_follow_any_step(server: Server) -> None:
    def client(r: Any) -> str:
        try:
            r.set("lock", 1)
            r.incr("n")
        except Exception:
            r.set("swallowed", 1)
        finally:
            r.delete("lock")
        return "done"

    result = explore(
        [client], invariant=lambda r, got: not r.exists("lock", "swallowed"), faults=[crash], server=server
    )
    assert (result.violations, result.total) == (2, 3)  # A!A, AA!A; AAA
    assert result.schedule == "A!A"
    assert result.first is not None
    assert result.first.steps[-1].command == "A crashes"
    assert [one.wrong != "" for one in result.interleavings].count(True) == 2
    returned = explore(
        [client], invariant=lambda r, got: got in (["done"], [None]), faults=[crash], server=server
    )
    assert returned.verdict == "safe"


def test_a_client_may_crash_while_it_waits(server: Server) -> None:
    def consumer(r: Any) -> Any:
        return r.blpop(["q"], 0)

    def producer(r: Any) -> None:
        r.rpush("q", "job")

    def delivered(r: Any, got: list[Any]) -> bool:
        return got[0] is not None or r.llen("q") == 1  # a job is never lost with its consumer

    result = explore([consumer, producer], invariant=delivered, faults=[crash], server=server)
    assert result.verdict == "safe"
    assert {"A!AB", "AB", "BA"} <= {
        one.schedule
        for one in explore(
            [consumer, producer], invariant=delivered, faults=[crash], reduce=False, server=server
        ).interleavings
    }


def test_a_lost_reply(server: Server) -> None:
    def careful(r: Any) -> None:
        try:
            r.incr("n")
        except redis.TimeoutError:
            r.incr("n")

    twice = explore([careful], invariant=adds_up(1), faults=[lose_reply], server=server)
    assert (twice.violations, twice.schedule) == (1, "~AA")
    assert {one.schedule for one in twice.interleavings} == {"A", "~AA"}  # a client loses one reply at most
    assert "(lost: 1)" in str(twice)

    def careless(r: Any) -> str:
        r.incr("n")
        return "done"

    def applied(r: Any, got: list[Any]) -> bool:
        return r.get("n") == "1" and (got == ["done"] or isinstance(got[0], redis.TimeoutError))

    assert explore([careless], invariant=applied, faults=[lose_reply], server=server).verdict == "safe"

    def transaction(r: Any) -> Any:
        with r.pipeline() as pipe:
            pipe.incr("n")
            pipe.incr("n")
            return pipe.execute()

    lost = sequence("~A", [transaction], faults=[lose_reply], server=server)
    assert lost.finished
    assert lost.steps[0].state == (("n", '"2"'),)


def test_after_a_lost_reply_the_connection_is_new() -> None:
    def client(r: Any) -> Any:
        with r.client() as one:
            one.select(1)
            with contextlib.suppress(redis.TimeoutError):
                one.set("n", 1)
            return one.get("n"), one.ping()

    result = explore([client], invariant=lambda r, got: got == [("1", True)], faults=[lose_reply])
    assert result.replay("A~AAA").results  # database 0 again, as with redis-py's own connections
    assert result.total >= 3


def test_faults_that_are_none() -> None:
    said = r"faults are expire, crash, lose_reply, not 'pause' \(a pause needs no fault: "
    with pytest.raises(ValueError, match=said):
        explore([add], invariant=holds, faults=["pause"])
    with pytest.raises(ValueError, match=r"not 'fire'$"):
        sequence("A", [add], faults=["fire"])


# Rules


def test_what_a_rule_may_be() -> None:
    def both(r: Any, results: list[Any]) -> bool:
        return results == [None, None] and r.get("n") == "2"

    assert explore([add, add], invariant=both).verdict == "safe"
    assert explore([add, add], invariant=lambda r, more=None: more is None).verdict == "safe"
    assert explore([add, add], invariant=lambda *given: len(given) == 1).verdict == "safe"

    def says(r: Any) -> None:
        if r.get("n") != "2":
            raise AssertionError(f"n is {r.get('n')}")

    assert explore([add, add], invariant=says).verdict == "safe"
    broken = explore([add_slowly, add_slowly], invariant=says)
    assert broken.first is not None
    assert broken.first.wrong == "n is 1"
    assert broken.df.wrong.unique().tolist() in (["n is 1", ""], ["", "n is 1"])

    def bare(r: Any) -> None:
        if r.get("n"):
            raise AssertionError

    assert "✗ an assertion of it failed" in str(explore([add], invariant=bare))
    with pytest.raises(TypeError, match="must return a bool, or raise AssertionError"):
        explore([add], invariant=lambda r: r.set("x", 1) and None)
    with pytest.raises(KeyError):
        explore([add], invariant=lambda r: {"y": 1}["x"])


def test_always_is_checked_after_every_step() -> None:
    def twice(r: Any) -> None:
        r.set("n", 5)
        r.set("n", 1)

    assert explore([twice], invariant=adds_up(1)).verdict == "safe"
    seen = explore([twice], always=lambda r: int(r.get("n")) < 5)
    assert (seen.violations, seen.total) == (1, 1)
    assert seen.first is not None
    assert seen.first.broke_at == 0
    late = explore([twice, partial(add, times=2)], always=lambda r: int(r.get("n")) < 7, reduce=False)
    same = explore([twice, partial(add, times=2)], always=lambda r: int(r.get("n")) < 7)
    assert (late.violations, late.total) == (same.violations, same.total) == (1, 6)
    trace = late.replay("ABBA")
    assert (trace.broke_at, trace.wrong) == (2, "the invariant does not hold")
    assert late.replay("ABB").wrong == trace.wrong  # although it has not ended
    assert "✗" in str(trace).splitlines()[4]


def test_always_that_is_false_before_the_first_step() -> None:
    """Then steps that commute do not: which comes first decides whether the others see it."""

    def here(r: Any) -> None:
        r.set("here", 1)

    def there(r: Any) -> None:
        r.get("there")

    for reduce in (True, False):
        result = explore([here, there], always=lambda r: r.exists("here"), reduce=reduce)
        assert (result.violations, result.total, result.schedule) == (1, 2, "BA")


def test_both_rules() -> None:
    result = explore([add, add], invariant=adds_up(3), always=lambda r: int(r.get("n")) < 2, reduce=False)
    assert {one.wrong for one in result.interleavings} == {"the invariant does not hold"}
    assert result.first is not None
    assert result.first.broke_at == 1


def test_misuse() -> None:
    with pytest.raises(ValueError, match="neither invariant nor always is given"):
        explore([add])
    for options in ({"limit": 0}, {"seconds": 0}, {"max_switches": -1}):
        with pytest.raises(ValueError, match="must be"):
            explore([add], invariant=holds, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Server"):
        explore([add], invariant=holds, server="redis://localhost")  # type: ignore[arg-type]


# Limits and verdicts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 3}, "then the limit of 3 runs"),
        ({"seconds": 1e-9}, "then the limit of 1e-09 s"),
        ({"max_switches": 1}, "then max_switches=1 left out the others"),
    ],
)
def test_what_was_not_tried_is_unknown(options: dict[str, Any], said: str) -> None:
    result = explore([partial(add, times=2)] * 2, invariant=adds_up(4), reduce=False, **options)
    assert (result.verdict, result.exhausted, result.violations) == ("unknown", False, 0)
    assert result.headline.startswith("unknown: 0 of the first ")
    assert result.headline.endswith(said)
    assert result.first is None
    with pytest.raises(RaceFound, match="unknown"):
        result.assert_safe()


def test_a_limit_that_is_just_enough_is_none() -> None:
    result = explore([add] * 3, invariant=adds_up(3), reduce=False, limit=6)
    assert (result.verdict, result.total) == ("safe", 6)
    assert explore([add] * 3, invariant=adds_up(3), reduce=False, limit=5).verdict == "unknown"


def test_a_violation_within_a_limit_is_one() -> None:
    result = explore([add_slowly] * 2, invariant=adds_up(2), reduce=False, limit=3)
    assert (result.verdict, result.exhausted, result.total) == ("violated", False, 3)
    assert "then the limit of 3 runs ended the search" in result.headline


def test_few_switches() -> None:
    for most, expected in ((0, 0), (1, 2), (2, 4), (3, 6), (9, 6)):
        result = explore([add_slowly] * 2, invariant=fails, max_switches=most)
        found = [one.schedule for one in result.interleavings]
        assert len(found) == (expected or 0)
        assert all(switches(schedule) <= most for schedule in found)
        assert result.exhausted == (most >= 3)
    assert explore([add_slowly] * 2, invariant=adds_up(2), max_switches=1).verdict == "unknown"
    assert explore([add_slowly] * 2, invariant=adds_up(2), max_switches=2).verdict == "violated"


def test_a_client_that_polls_for_ever() -> None:
    def poll(r: Any) -> None:
        while not r.get("ready"):
            time.sleep(0.1)

    for reduce in (True, False):
        result = explore([poll, lambda r: r.get("x")], invariant=holds, limit=4, reduce=reduce)
        assert result.verdict == "unknown"
        assert "one that had not ended after 200 steps (does a client poll for ever?)" in result.headline


def test_a_found_race_raises() -> None:
    result = explore([add_slowly] * 2, invariant=adds_up(2))
    with pytest.raises(RaceFound, match="4 of 6 interleavings break the invariant") as caught:
        result.assert_safe()
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, LabkitError)
    assert caught.value.exploration is result


# The counterexample


def random_program(rng: random.Random) -> list[Callable[[Any], Any]]:
    def client(ops: list[tuple[str, str]], r: Any) -> None:
        for op, key in ops:
            {"get": r.get, "incr": r.incr, "delete": r.delete}[op](key)

    return [
        partial(client, [(rng.choice(["get", "incr", "incr", "delete"]), rng.choice("xy")) for _ in range(2)])
        for _ in range(rng.choice([2, 3]))
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_counterexample_has_the_fewest_switches(seed: int) -> None:
    actors = random_program(random.Random(seed))

    def rule(r: Any) -> bool:
        return (int(r.get("x") or 0) * 3 + int(r.get("y") or 0)) % 5 != seed % 5

    plain, reduced = (explore(actors, invariant=rule, reduce=reduce) for reduce in (False, True))
    broken = [one.schedule for one in plain.interleavings if one.wrong]
    assert (len(broken), plain.schedule, plain.first) == (reduced.violations, reduced.schedule, reduced.first)
    if broken:
        assert plain.schedule == min(broken, key=lambda schedule: (switches(schedule), schedule))
        assert plain.first is not None
        assert plain.first.schedule == plain.schedule


def test_switches() -> None:
    assert [switches(moves) for moves in ("", "A", "AABB", "ABAB")] == [0, 0, 1, 3]
    assert switches(["A", "~A", "!A", "*k", "B", "*k", "B"]) == 1


def test_linear_extensions_by_brute_force() -> None:
    rng = random.Random(1)
    for _ in range(30):
        clients = [rng.choice("ABC") for _ in range(5)]
        taken = [Taken(who, frozenset(who), PURE, (), (), able=frozenset(who)) for who in clients]
        tied = {pair for pair in itertools.combinations(range(5), 2) if rng.random() < 0.3}
        number = {id(step): i for i, step in enumerate(taken)}

        def ordered(one: Taken, other: Taken) -> bool:
            return dependent(one, other) or (number[id(one)], number[id(other)]) in tied  # noqa: B023

        allowed = [
            way
            for way in itertools.permutations(range(5))
            if all(
                way.index(i) < way.index(j) for j in range(5) for i in range(j) if ordered(taken[i], taken[j])
            )
        ]
        before = [sum(1 << i for i in range(j) if ordered(taken[i], taken[j])) for j in range(5)]
        order = Order(taken, before, frozenset("ABC"))
        assert order.count() == len(allowed)
        spelled = [tuple(clients[i] for i in way) for way in allowed]
        assert order.fewest_switches() == min(spelled, key=lambda moves: (switches(moves), moves))


def test_its_text() -> None:
    result = explore([add_slowly] * 2, invariant=adds_up(2))
    assert repr(result) == (
        "4 of 6 interleavings break the invariant\n"
        "schedule ABBA\n"
        "  A  GET n    -> (nil)\n"
        "  B  GET n    -> (nil)\n"
        "  B  SET n 1  -> OK\n"
        "  A  SET n 1  -> OK\n"
        "  ✗ the invariant does not hold"
    )
    assert str(explore([add] * 2, invariant=adds_up(2))) == (
        "0 of 2 interleavings break the invariant: safe, all were tried"
    )
    assert "4 of 6 interleavings break the invariant" in result._repr_html_()


def test_its_table() -> None:
    result = explore([add_slowly] * 2, invariant=adds_up(2))
    frame = result.df
    assert list(frame) == ["schedule", "wrong", "stands_for"]
    assert frame.stands_for.sum() == result.total == 6
    assert frame.stands_for[frame.wrong != ""].sum() == result.violations == 4
    assert len(frame) == result.runs < 6
    assert result.first is not None
    assert list(result.first.df) == ["client", "command", "reply", "Redis afterwards"]


def test_results_outlive_their_server() -> None:
    with Server() as server:
        result = explore([add_slowly] * 2, invariant=adds_up(2), server=server)
    assert "SET n 1" in repr(result)
    assert "SET n 1" in result._repr_html_()


def test_keys_that_are_no_text() -> None:
    def client(r: Any) -> None:
        r.setbit("bits", 0, 1)
        r.pfadd("log", "x")
        r.rpush("list", b"\xff")

    trace = sequence("AAA", [client])
    assert trace.steps[-1].state == (
        ("bits", '"(string, not text)"'),
        ("list", '"(list, not text)"'),
        ("log", '"(string, not text)"'),
    )


def test_one_hand_written_order() -> None:
    trace = sequence("ABAB", [add_slowly, add_slowly], invariant=adds_up(2))
    assert (trace.schedule, trace.wrong, trace.finished) == ("ABAB", "the invariant does not hold", True)
    assert trace.clients == (("A", "add_slowly"), ("B", "add_slowly"))
    assert [step.who for step in trace.steps] == list("ABAB")
    assert trace.steps[-1].state == (("n", '"1"'),)
    begun = sequence("AB A", [add_slowly, add_slowly], setup=lambda r: r.set("n", 5))
    assert begun.before == (("n", '"5"'),)
    assert (begun.finished, begun.wrong, begun.next) == (False, "", (("B", "SET n 6"),))
    assert sequence("", [add_slowly]).next == (("A", "GET n"),)
    for schedule in ("ABC", "AAA", "*", "!A", "~A"):
        with pytest.raises(ValueError, match="is not possible; possible is "):
            sequence(schedule, [add_slowly, add_slowly])
    for schedule in ("ab", "A1", "A!", "*<k"):
        with pytest.raises(ValueError, match="schedule is "):
            sequence(schedule, [add_slowly, add_slowly])


# Programs that others wrote


def test_a_lock_of_redis_py() -> None:
    def client(r: Any) -> bool:
        held = r.lock("lock", timeout=10, blocking=False)
        if not held.acquire():
            return False
        add_slowly(r)
        held.release()
        return True

    def counted(r: Any, got: list[bool]) -> bool:
        return int(r.get("n")) == got.count(True) >= 1

    safe = explore([client] * 2, invariant=counted)
    assert (safe.verdict, safe.exhausted) == ("safe", True)
    assert explore([client] * 2, invariant=counted, reduce=False).total == safe.total
    late = explore([client] * 2, invariant=counted, faults=[expire])
    assert late.verdict == "violated"

    def waits(r: Any) -> None:
        with r.lock("lock", timeout=10, sleep=1, blocking_timeout=3):
            r.incr("n")

    slow = explore([waits] * 2, invariant=adds_up(2))
    assert slow.first is not None
    assert "LockError" in slow.first.wrong  # who is too slow finds three times that the other holds it


@pytest.mark.parametrize("name", ["FixedWindow", "SlidingLog", "SlidingCounter", "GCRA", "NaiveSortedSet"])
def test_rate_limiters(name: str) -> None:
    kind = getattr(rate_limiter, name)

    def client(r: Any) -> bool:
        options = {"now": lambda: 1000.0} if name != "NaiveSortedSet" else {}
        return bool(kind(r, "api", limit=1, window=3600, **options).hit("alice").allowed)

    result = explore([client] * 3, invariant=lambda r, got: sum(got) == 1)
    assert (result.verdict, result.total) == ("safe", 6)  # one MULTI/EXEC, or one script


# Nothing is left behind


def test_nothing_leaks() -> None:
    def untidy(r: Any) -> None:
        pipe = r.pipeline()
        pipe.watch("n")
        pipe.get("n")
        r.client().execute_command("SELECT", 1)
        r.blpop(["q"], 1)

    def clients() -> int:
        return int(own.client().info("clients")["connected_clients"])

    def greenlets() -> int:
        gc.collect()
        return sum(isinstance(thing, greenlet.greenlet) and not thing.dead for thing in gc.get_objects())

    own = Server().start()
    untouched = (time.sleep, time.time, time.monotonic, time.perf_counter)
    explore([untidy, add, add_slowly], invariant=holds, faults=[crash], limit=5, server=own)
    before, threads = (clients(), greenlets()), set(threading.enumerate())
    runs = 0
    for faults in ([], [crash], [expire, lose_reply]):
        runs += explore(
            [untidy, add, add_slowly], invariant=holds, faults=faults, reduce=False, limit=400, server=own
        ).runs
    assert runs >= 1000
    assert clients() <= before[0]
    assert greenlets() <= before[1]
    assert set(threading.enumerate()) <= threads
    assert (time.sleep, time.time, time.monotonic, time.perf_counter) == untouched
    own.stop()


def test_stopped_clients_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    def watching(r: Any) -> None:
        with r.pipeline() as pipe:
            pipe.watch("n")
            pipe.get("n")
            pipe.multi()
            pipe.incr("n")
            pipe.execute()

    def forgetful(r: Any) -> None:
        pipe = r.pipeline()
        pipe.watch("n")
        pipe.get("n")  # and no unwatch: redis-py sends it when the pipeline is forgotten

    for schedule in ("A", "AA", "AAB", "AABB"):
        for actor in (watching, forgetful):
            sequence(schedule, [actor, actor])
            gc.collect()
    explore([watching, forgetful], invariant=holds, faults=[crash])
    assert sequence("AAA", [forgetful]).steps[-1].command == "UNWATCH"
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_each_interleaving_begins_with_an_empty_server() -> None:
    def litter(r: Any) -> None:
        with r.client() as one:
            one.set("here", 1)
            one.select(2)
            one.set("there", 1)
            one.execute_command("CLIENT", "SETNAME", "x")

    def clean(r: Any) -> bool:
        return int(r.dbsize()) == 1 and r.info("keyspace").keys() == {"db0", "db2"}

    assert explore(
        [litter] * 2, setup=lambda r: holds() if not r.info("keyspace") else 1 / 0, invariant=clean
    ).total


def test_the_server_is_that_of_the_environment() -> None:
    """And nothing is left of it when the process ends."""
    code = (
        "from labkit.rig.race import explore\n"
        "from labkit.rig.stage import _private\n"
        "print(explore([lambda r: r.incr('n')] * 2, invariant=lambda r: r.get('n') == '2').verdict)\n"
        "((server,),) = _private.values()\n"
        "print(server.binary, server.pid)\n"
    )
    oldest = min(binaries(), key=lambda binary: binary.version).path
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LABKIT_REDIS_SERVER": oldest},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    verdict, where = done.stdout.splitlines()
    binary, pid = where.rsplit(" ", 1)
    assert (verdict, binary, done.stderr) == ("safe", oldest, "")
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(pid), 0)
            time.sleep(0.05)


def test_a_result_is_a_value() -> None:
    one, other = (explore([add_slowly] * 2, invariant=adds_up(2)) for _ in range(2))
    assert isinstance(one, Exploration)
    assert [key for key, _ in groupby(one.schedule)] == ["A", "B", "A"]
    assert (one.first, one.interleavings, one.headline) == (other.first, other.interleavings, other.headline)


def test_nothing_of_one_exploration_is_left_in_the_next() -> None:
    def other_database(r: Any) -> None:
        r.select(7)
        r.set_response_callback("GET", lambda reply, **options: "mine")

    explore([lambda r: r.incr("n")], setup=other_database, invariant=lambda r: True)
    found = explore([lambda r: r.incr("n")], invariant=lambda r: bool(r.get("n") == "1"))
    assert found.verdict == "safe"


# What is easily overlooked


def test_an_error_of_its_own_while_a_reply_is_lost_is_a_violation() -> None:
    def gives_up(r: Any) -> None:
        try:
            r.incr("n")
        except redis.TimeoutError:
            raise ValueError("charged twice") from None

    def goes_on(r: Any) -> None:
        try:
            r.incr("n")
        except redis.TimeoutError:
            r.lpush("n", 1)

    def watches(r: Any) -> None:
        with r.pipeline() as pipe:
            pipe.watch("n")
            pipe.get("n")

    for client, said in ((gives_up, "ValueError: charged twice"), (goes_on, "WRONGTYPE")):
        result = explore([client], invariant=holds, faults=[lose_reply])
        assert result.violations == 1 and said in str(result)
    assert explore([watches], invariant=holds, faults=[lose_reply]).verdict == "safe"


def test_the_reply_of_a_command_that_waits_can_be_lost() -> None:
    def take(r: Any) -> None:
        if job := r.blpop(["jobs"], 0):
            r.rpush("done", job[1])

    def put(r: Any) -> None:
        r.rpush("jobs", "job")

    def kept(r: Any) -> bool:
        return bool(r.llen("jobs") + r.llen("done") == 1)

    there = explore([take], setup=put, invariant=kept, faults=[lose_reply])
    assert (there.violations, there.total, there.schedule) == (1, 3, "~A")
    plain, reduced = (
        explore([take, put], invariant=kept, faults=[lose_reply], reduce=reduce) for reduce in (False, True)
    )
    assert (plain.violations, plain.total) == (reduced.violations, reduced.total) == (4, 12)
    waits = sequence("~AB", [take, put], faults=[lose_reply])
    assert waits.steps[0].lost and waits.steps[1].woken and waits.finished


def test_explorations_in_threads_and_in_each_other_keep_apart() -> None:
    def sleepy(r: Any) -> None:
        time.sleep(3)
        r.incr("n")

    found: list[Any] = []

    def run() -> None:
        began = time.perf_counter()
        result = explore([sleepy] * 2, invariant=adds_up(2), reduce=False)
        found.append((result.total, result.verdict, time.perf_counter() - began < 3))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # so that the first does not end when the last begins
    for thread in threads:
        thread.join()
    assert found == [(6, "safe", True)] * 4

    def setup(r: Any) -> None:
        r.set("n", 0)
        assert explore([add], invariant=holds).total == 1

    assert explore([add_slowly] * 2, setup=setup, invariant=adds_up(2)).violations == 4
    with Server() as own, pytest.raises(ValueError, match="is being explored"):
        explore([add], invariant=lambda r: bool(explore([add], invariant=holds, server=own)), server=own)


def test_keys_expire_in_every_database_and_whatever_they_are_called() -> None:
    def locks(db: int) -> Any:
        def client(r: Any) -> Any:
            r.select(db)
            return r.set("lock", 1, nx=True, ex=10)

        return client

    def once(r: Any, got: list[Any]) -> bool:
        return sum(map(bool, got)) <= 1

    for db in (0, 3):
        result = explore([locks(db)] * 2, invariant=once, faults=[expire])
        assert (result.violations, result.total) == (8, 14)
        assert ("lock in db 3 expires" in str(result)) == (db == 3)
    for key in ("my lock", "a->b", "a\\>b", b"\xff"):

        def setup(r: Any, key: Any = key) -> None:
            r.set(key, 1, ex=99)
            r.set("other", 1, ex=99)

        def client(r: Any) -> None:
            r.get("x")

        result = explore([client], setup=setup, invariant=lambda r, key=key: r.exists(key), faults=[expire])
        assert result.first is not None and result.first.wrong
        for schedule in result.df["schedule"]:
            assert result.replay(schedule).finished


def test_a_script_that_nobody_loads_is_met_as_it_is() -> None:
    def reads(r: Any) -> None:
        r.get("n")
        r.script_exists("0" * 40)

    def calls(r: Any) -> None:
        r.evalsha("0" * 40, 0)

    assert explore([reads] * 2, invariant=holds, reduce=False).total == 6
    result = explore([calls] * 2, invariant=holds)
    assert result.violations == result.total == 2 and "NoScriptError" in str(result)


def test_nothing_of_setup_or_an_actor_stays() -> None:
    code = "#!lua name=own\nredis.register_function('one', function() return 1 end)"

    def setup(r: Any) -> None:
        r.function_load(code)

    def client(r: Any) -> Any:
        r.set_response_callback("GET", lambda reply, **options: "9")
        return r.fcall("one", 0)

    def elsewhere(r: Any) -> bool:
        held = bool(r.get("n") == "2")
        r.select(1)
        return held

    assert explore([client] * 2, setup=setup, invariant=lambda r, got: got == [1, 1]).verdict == "safe"
    assert explore([add_slowly] * 2, invariant=elsewhere).violations == 4


@pytest.mark.parametrize(
    "command", ["EVAL return nil", "EVAL x y", "SCRIPT", "CLIENT", "BLPOP q -1", "BLPOP"]
)
def test_what_is_no_command_is_answered_by_the_server(command: str) -> None:
    def client(r: Any) -> None:
        r.execute_command(*command.split())

    result = explore([client], invariant=holds)
    assert "ResponseError" in str(result)


def test_other_keys_are_noticed_in_commands_that_may_touch_anything() -> None:
    def sorts(r: Any) -> None:
        r.sort(f"k{next(numbers)}")

    def runs(r: Any) -> None:
        r.eval("redis.call('SET', 'fixed', 1) return redis.call('INCR', KEYS[1])", 1, f"k{next(numbers)}")

    for client in (sorts, runs):
        numbers = itertools.count()
        with pytest.raises(NondeterministicActor):
            explore([client, add_slowly], invariant=holds)


class Shop:
    """A price in a table outside Redis, and its copy in a cache."""

    def __init__(self) -> None:
        self.rows = {"lamp": 100}

    def setup(self, r: Any) -> None:
        self.rows["lamp"] = 100

    def load(self) -> int:
        return outside(("SQL", "SELECT", "lamp"), lambda: self.rows["lamp"], reads=["lamp"])

    def save(self, price: int) -> None:
        said = ("SQL", "UPDATE", "lamp", str(price))
        outside(said, lambda: self.rows.update(lamp=price), writes=["lamp"], show=lambda _: "OK")

    def reader(self, r: Any) -> None:
        if r.get("lamp") is None:
            r.set("lamp", self.load(), ex=60)

    def writer(self, r: Any) -> None:
        self.save(120)
        r.delete("lamp")

    def fresh(self, r: Any) -> bool:
        return r.get("lamp") in (None, str(self.rows["lamp"]))


def test_a_step_outside_redis_is_interleaved_and_told() -> None:
    shop = Shop()
    found = explore([shop.reader, shop.writer], setup=shop.setup, invariant=shop.fresh)
    assert found.headline == "1 of 10 interleavings breaks the invariant"
    assert str(found.first) == (
        "schedule AABBA\n"
        "  A  GET lamp             -> (nil)\n"
        "  A  SQL SELECT lamp      -> 100\n"
        "  B  SQL UPDATE lamp 120  -> OK\n"
        "  B  DEL lamp             -> 0\n"
        "  A  SET lamp 100 EX 60   -> OK\n"
        "  ✗ the invariant does not hold"
    )
    assert found.first is not None
    assert "SQL SELECT lamp" in found.first._repr_html_()
    assert [step.kind for step in found.first.steps] == [
        "command",
        "outside",
        "outside",
        "command",
        "command",
    ]


def test_outside_elsewhere_just_acts() -> None:
    assert outside(("SQL", "SELECT"), lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        outside(("SQL", "SELECT"), lambda: 1 // 0)


def test_a_client_may_crash_after_a_step_outside() -> None:
    shop = Shop()

    def write(r: Any) -> None:
        shop.save(120)
        r.set("lamp", 120)

    def cached(r: Any) -> None:
        shop.setup(r)
        r.set("lamp", 100)

    found = explore([write], setup=cached, invariant=shop.fresh, faults=[crash])
    assert (found.schedule, found.violations) == ("A!A", 1)


def test_what_fails_outside_goes_to_the_actor() -> None:
    def act(r: Any) -> str:
        try:
            outside(("SQL", "SELECT"), lambda: 1 // 0)
        except ZeroDivisionError:
            return "caught"
        return "nothing"

    told = sequence("A", [act], invariant=holds)
    assert told.results == ('"caught"',)
    assert told.steps[0].reply.startswith("ZeroDivisionError")


def test_steps_outside_swap_with_what_they_do_not_touch() -> None:
    def look(name: str) -> Callable[[Any], None]:
        return lambda r: outside(("SQL", name), lambda: None, reads=[name], writes=[name])

    apart = explore([look("one"), look("other"), lambda r: r.set("one", 1)], invariant=holds)
    assert (apart.total, apart.runs) == (6, 1)  # no key is called as a row is
    together = explore([look("one"), look("one")], invariant=holds)
    assert (together.total, together.runs) == (2, 2)
