"""labkit.rate_limiter against plain-Python models in virtual time, real processes, faults and misuse.

A limiter's answer is a function of what it admitted before. Each model here says how much room there is at a
time, given that history; nothing else is compared: no stored format, no Lua.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from servers import everywhere as everywhere

from labkit.rate_limiter import (
    GCRA,
    Decision,
    FixedWindow,
    NaiveSortedSet,
    SlidingCounter,
    SlidingLog,
    TokenBucket,
)
from labkit.rig.bench import processes
from labkit.rig.server import Server
from labkit.rig.wire import tap
from labkit.teach import check
from labkit.teach.exercises import load

SECOND = 1_000_000
History = list[tuple[int, int]]
FIVE = [FixedWindow, SlidingLog, SlidingCounter, TokenBucket, GCRA]
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Clock:
    """Virtual time in µs."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at / SECOND


def make(kind: Any, r: Any, name: str, limit: int, window: float, **options: Any) -> Any:
    """A limiter of about `limit` in `window`, whichever it is."""
    if kind is TokenBucket:
        return TokenBucket(r, name, capacity=limit, rate=float(limit / window), **options)
    return kind(r, name, limit=limit, window=window, **options)


# The models: what fits at time t (µs), given what was admitted before.


def room_fixed(history: History, t: int, limit: int, window: int) -> Fraction:
    return Fraction(limit - sum(cost for at, cost in history if at // window == t // window))


def room_log(history: History, t: int, limit: int, window: int) -> Fraction:
    return Fraction(limit - sum(cost for at, cost in history if t - window < at <= t))


def room_counter(history: History, t: int, limit: int, window: int) -> Fraction:
    current = sum(cost for at, cost in history if at // window == t // window)
    previous = sum(cost for at, cost in history if at // window == t // window - 1)
    return limit - current - previous * Fraction(window - t % window, window)


def room_bucket(history: History, t: int, capacity: int, rate: Fraction) -> Fraction:
    level, last = Fraction(capacity), 0
    for at, cost in [*history, (t, 0)]:
        level, last = min(Fraction(capacity), level + (at - last) * rate) - cost, at
    return level


def model(kind: Any, limit: int, window: int) -> Any:
    """The room that `make(kind, limit=…, window=…)` must see."""
    if kind is TokenBucket:
        rate = Fraction(limit / (window / SECOND)).limit_denominator(1_000_000) / SECOND
        return lambda history, t: room_bucket(history, t, limit, rate)
    if kind is GCRA:
        rate = Fraction(1, math.ceil(window / limit))
        return lambda history, t: room_bucket(history, t, limit, rate)
    rooms: dict[Any, Any] = {FixedWindow: room_fixed, SlidingLog: room_log, SlidingCounter: room_counter}
    return lambda history, t: rooms[kind](history, t, limit, window)


def broken_promise(kind: Any, times: list[int], limit: int, window: int) -> str:
    """Which promised window holds more than it may ("" if none), from sorted times of admitted units."""
    if kind in (FixedWindow, SlidingCounter):
        for n in {t // window for t in times}:
            if (held := sum(t // window == n for t in times)) > limit:
                return f"{held} in aligned window {n}"
    for i, first in enumerate(times):
        for j in range(i, len(times)):
            held, length = j - i + 1, times[j] - first
            if kind not in (TokenBucket, GCRA):
                most = limit if kind is SlidingLog else 2 * limit
                if length < window and held > most:
                    return f"{held} within {length} µs"
            elif held > limit + Fraction(length * limit, window) + Fraction(length, 10**9):
                return f"{held} within {length} µs"
    return ""


gaps = st.one_of(st.just(0), st.integers(1, 3 * SECOND), st.integers(1, 1000))
traffic = st.lists(st.tuples(gaps, st.integers(1, 7)), min_size=1, max_size=40)


@pytest.mark.parametrize("kind", FIVE)
@given(
    traffic=traffic,
    limit=st.integers(1, 7),
    window=st.integers(1, 3 * SECOND) | st.sampled_from([SECOND, 3 * SECOND]),
    start=st.integers(0, 10 * SECOND) | st.just(1_795_420_399_335_049),
)
@relaxed
def test_every_answer_is_the_models(
    kind: Any, r: redis.Redis, traffic: Any, limit: int, window: int, start: int
) -> None:
    if kind in (TokenBucket, GCRA):
        window = max(window, 1000)
    if kind is FixedWindow:
        window = max(window, limit)  # its limit is at most two a microsecond
    r.flushall()
    clock = Clock(start)
    limiter = make(kind, r, "m", limit, window / SECOND, now=clock)
    room = model(kind, limit, window)
    history: History = []
    for gap, cost in traffic:
        clock.at, cost = clock.at + gap, min(cost, limit)
        left = room(history, clock.at)
        peeked, hit = limiter.peek("k", cost), limiter.hit("k", cost)
        assert (peeked.allowed, peeked.remaining) == (left >= cost, math.floor(left))
        assert peeked.retry_after == hit.retry_after
        if hit.allowed:
            history.append((clock.at, cost))
            assert (left >= cost, hit.retry_after) == (True, 0)
            assert hit.remaining == math.floor(left) - cost
        else:
            wait = round(hit.retry_after * SECOND)
            assert (left < cost, hit.remaining) == (True, math.floor(left))
            assert room(history, clock.at + wait) >= cost, "retry_after is too short"
            assert room(history, clock.at + wait - 1) < cost, "retry_after is too long"


@pytest.mark.parametrize("kind", FIVE)
@given(traffic=traffic, limit=st.integers(1, 7))
@relaxed
def test_after_waiting_retry_after_the_same_call_is_admitted(
    kind: Any, r: redis.Redis, traffic: Any, limit: int
) -> None:
    r.flushall()
    clock = Clock(1_795_420_399_335_049)
    limiter = make(kind, r, "w", limit, 1.0, now=clock)
    times: list[int] = []
    for gap, cost in traffic:
        clock.at, cost = clock.at + gap, min(cost, limit)
        decision = limiter.hit("k", cost)
        if not decision.allowed:
            clock.at += round(decision.retry_after * SECOND)
            assert limiter.hit("k", cost).allowed
        times += [clock.at] * cost
    assert broken_promise(kind, times, limit, SECOND) == ""


@pytest.mark.parametrize("kind", FIVE)
@given(
    steps=st.lists(st.tuples(gaps, st.integers(1, 3), st.integers(0, 5 * SECOND)), min_size=2, max_size=30),
    limit=st.integers(1, 5),
)
@relaxed
def test_a_clock_that_steps_back_neither_over_admits_nor_locks_out(
    kind: Any, r: redis.Redis, steps: Any, limit: int
) -> None:
    """`clock` is the server's, `true` the time that really passes."""
    r.flushall()
    clock, true = Clock(10**12), 0
    limiter = make(kind, r, "b", limit, 1.0, now=clock)
    times: list[int] = []
    for gap, cost, back in steps:
        clock.at, true, cost = clock.at + gap - back, true + gap, min(cost, limit)
        decision = limiter.hit("k", cost)
        times += [true] * (cost if decision.allowed else 0)
        assert decision.retry_after <= (3 if kind is SlidingCounter else 2)
        if not decision.allowed:
            clock.at += (wait := round(decision.retry_after * SECOND))
            true += wait
            assert limiter.hit("k", cost).allowed
            times += [true] * cost
    promised = kind if kind in (SlidingLog, TokenBucket, GCRA) else None
    assert broken_promise(promised or _AnyTwice, times, limit, SECOND) == ""


class _AnyTwice:
    """Stands for: any window holds less than or equal to 2 · limit (aligned windows are the clock's)."""


@pytest.mark.parametrize("kind", [SlidingLog, TokenBucket, GCRA])
@pytest.mark.parametrize(
    ("limit", "window", "at_once", "every"),
    [(10, 1, 1, 1 / 9.5), (9, 10, 1, 1 / 0.85), (10, 1, 10, 1.05)],
    ids=["9.5 a second", "0.85 a second", "10 at once"],
)
def test_a_polite_client_is_never_refused(
    kind: Any, r: redis.Redis, limit: int, window: int, at_once: int, every: float
) -> None:
    clock = Clock(1_795_420_399_335_049)
    limiter = make(kind, r, "polite", limit, window, now=clock)
    start = clock.at
    for i in range(300):
        clock.at = start + round(i * every * SECOND)
        assert all(limiter.hit("k").allowed for _ in range(at_once))


def test_the_log_holds_the_limit_at_the_very_edge(r: redis.Redis) -> None:
    clock = Clock(5 * SECOND)
    log = SlidingLog(r, "edge", limit=2, window=1, now=clock)
    assert [log.hit("k").allowed for _ in range(3)] == [True, True, False]
    clock.at += SECOND - 1
    assert log.hit("k") == Decision(False, 0, 0.000001)
    clock.at += 1
    assert log.hit("k") == Decision(True, 1, 0.0)


def test_gcra_with_a_burst_of_one_spaces(r: redis.Redis) -> None:
    clock = Clock(0)
    gcra = GCRA(r, "spaced", limit=10, window=1, burst=1, now=clock)
    admitted = []
    for clock.at in range(0, SECOND, 1000):
        if gcra.hit("k").allowed:
            admitted.append(clock.at)
    assert {b - a for a, b in pairwise(admitted)} == {100_000}


def test_no_rounding_where_the_limit_does_not_divide_the_second(r: redis.Redis) -> None:
    clock = Clock(0)
    bucket = TokenBucket(r, "thirds", capacity=2, rate=3, now=clock)
    for i in range(3000):
        clock.at = math.ceil(i * SECOND / 3)
        assert bucket.hit("k").allowed


def hammer(url: str, kind: str, limit: int, window: float, seconds: float) -> Generator[None, None, int]:
    """Hits one key as fast as it can; the script notes on the server what it admits, at the time it used."""
    import time

    from labkit import rate_limiter
    from labkit.rig.client import client
    from labkit.rig.traffic import noting

    size: dict[str, Any] = {"limit": limit, "window": window}
    if kind == "TokenBucket":
        size = {"capacity": limit, "rate": limit / window}
    limiter = noting(getattr(rate_limiter, kind), "noted")(client(url), "hammered", **size)
    yield
    end, calls = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        limiter.hit("k")
        calls += 1
    return calls


@pytest.mark.parametrize(
    ("kind", "count"), [(kind, 4) for kind in FIVE] + [(SlidingLog, 8), (FixedWindow, 8)]
)
def test_processes_that_start_cold_never_exceed_a_promised_window(kind: Any, count: int) -> None:
    with Server() as cold:
        calls = processes(count, hammer, cold.url, kind.__name__, 20, 0.2, 0.9)
        times = [int(t) for t in cold.client().lrange("noted", 0, -1)]
    assert sum(calls) > len(times), "the load was too small to be refused"
    assert len(times) >= 3 * 20, "too little was admitted"
    assert broken_promise(kind, sorted(times), 20, 200_000) == ""


@pytest.mark.parametrize("kind", FIVE)
def test_retry_after_is_honest_on_the_servers_clock(kind: Any, r: redis.Redis) -> None:
    limiter = make(kind, r, "real", 4, 0.08)
    for cost in (1, 4, 2, 3, 1):
        while (decision := limiter.hit("k", cost)).allowed:
            pass
        time.sleep(decision.retry_after)
        assert limiter.hit("k", cost).allowed


operations = st.lists(
    st.tuples(st.sampled_from(["hit", "peek"]), st.sampled_from("ab"), st.integers(1, 5), gaps), max_size=15
)


@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("kind", [*FIVE, NaiveSortedSet])
@given(operations=operations, window=st.sampled_from([1e-5, 0.0004, 0.9, 1.5, 3600]), limit=st.integers(5, 9))
@settings(relaxed, max_examples=30)
def test_keys_have_a_ttl_always(
    kind: Any, virtual: bool, r: redis.Redis, operations: Any, window: float, limit: int
) -> None:
    if kind is TokenBucket:
        window = max(window, 0.0004)
    if kind is GCRA:
        window = max(window, limit * 1e-6)
    r.flushall()
    clock = Clock(0)
    limiter = make(kind, r, "ttl", limit, window, **({"now": clock} if virtual else {}))
    for operation, key, cost, gap in operations:
        clock.at += gap
        getattr(limiter, operation)(key, cost)
        for stored in r.scan_iter():
            assert stored in ("ttl:{a}", "ttl:{b}")
            assert 0 < r.pttl(stored) <= 3 * window * 1000 + 61_001


@pytest.mark.parametrize("kind", FIVE)
def test_peeking_and_being_refused_write_nothing(kind: Any, r: redis.Redis) -> None:
    clock = Clock(10 * SECOND)
    limiter = make(kind, r, "still", 3, 1.0, now=clock)
    assert limiter.peek("k") == Decision(True, 3, 0.0)
    assert r.dbsize() == 0
    assert limiter.hit("k", 2).remaining == 1
    before = r.dump("still:{k}")
    r.persist("still:{k}")
    assert not limiter.hit("k", 2).allowed
    assert limiter.peek("k").allowed
    assert (r.dump("still:{k}"), r.ttl("still:{k}")) == (before, -1)
    assert limiter.hit("k").allowed


@pytest.mark.parametrize("kind", FIVE)
def test_one_command_is_sent_and_the_reply_is_tiny(kind: Any, r: redis.Redis) -> None:
    limiter = make(kind, r, "wire", 3, 60)
    limiter.hit("k")
    with tap(r) as t:
        limiter.hit("k")
        limiter.peek("k")
    assert [exchange.command[0] for exchange in t.commands] == ["EVALSHA", "EVALSHA"]
    assert t.round_trips == 2
    assert t.bytes_received <= 24


@pytest.mark.parametrize("kind", FIVE)
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [True, False])
def test_any_client_will_do(kind: Any, protocol: int, decode: bool, server: Server) -> None:
    with server.client(protocol=protocol, decode_responses=decode) as r:
        r.flushall()
        limiter = make(kind, r, "any", 2, 60, now=Clock(61 * SECOND))
        answers = [limiter.hit("ü}{ "), limiter.hit("ü}{ "), limiter.hit("ü}{ ")]
    assert [(d.allowed, d.remaining) for d in answers] == [(True, 1), (True, 0), (False, 0)]
    assert all(type(d.allowed) is bool and type(d.retry_after) is float for d in answers)


@pytest.mark.parametrize("kind", FIVE)
def test_a_flushed_script_cache_and_a_restarted_server_are_survived(kind: Any, throwaway: Server) -> None:
    with throwaway.client() as r:
        r.flushall()
        limiter = make(kind, r, "flush", 3, 60, now=Clock(61 * SECOND))
        assert limiter.hit("k").remaining == 2
        r.script_flush()
        assert limiter.hit("k").remaining == 1
        throwaway.restart()
        assert limiter.hit("k") == Decision(True, 2, 0.0)


def test_on_a_cluster() -> None:
    with Server(cluster_enabled=True) as node:
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 20
        while node.client().execute_command("CLUSTER", "INFO").find("cluster_state:ok") < 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with RedisCluster.from_url(node.url, protocol=3, legacy_responses=False) as cluster:
            for kind in FIVE:
                limiter = make(kind, cluster, kind.__name__, 1, 60, now=Clock(61 * SECOND))
                assert [limiter.hit(f"k{i}").allowed for i in range(20)] == [True] * 20
                assert not limiter.hit("k7").allowed


class TestRedisDown:
    def test_on_error_says_what_happens(self, throwaway: Server) -> None:
        with throwaway.client() as r:
            limiters = {
                how: SlidingLog(r, "down", limit=3, window=1, on_error=how) for how in ("allow", "deny")
            }
            strict, naive = (
                SlidingLog(r, "down", limit=3, window=1),
                NaiveSortedSet(r, "down", limit=3, window=1, on_error="deny"),
            )
            assert strict.hit("k").allowed
            throwaway.kill()
            try:
                assert limiters["allow"].hit("k") == Decision(True, 0, 0.0)
                assert limiters["deny"].hit("k") == Decision(False, 0, 1.0)
                assert limiters["deny"].peek("k") == Decision(False, 0, 1.0)
                assert naive.hit("k") == Decision(False, 0, 1.0)
                with pytest.raises(redis.ConnectionError):
                    strict.hit("k")
            finally:
                throwaway.start()
            assert limiters["deny"].hit("k") == Decision(True, 2, 0.0)

    def test_a_server_that_does_not_answer_in_time(self, throwaway: Server) -> None:
        with throwaway.client(socket_timeout=0.2) as r:
            limiter = GCRA(r, "slow", limit=3, window=1, on_error="deny")
            assert limiter.hit("k").allowed
            throwaway.freeze()
            try:
                assert limiter.hit("k") == Decision(False, 0, 1.0)
            finally:
                throwaway.thaw()

    def test_a_server_out_of_memory_or_read_only(self, throwaway: Server) -> None:
        with throwaway.client() as r:
            for setting, value, usual in (("maxmemory", "1", "0"), ("min-replicas-to-write", "0", "0")):
                throwaway.config[setting] = value
                if setting == "min-replicas-to-write":
                    r.replicaof("127.0.0.1", "1")
                try:
                    limiter = FixedWindow(r, "full", limit=3, window=1, on_error="allow")
                    assert limiter.hit("k") == Decision(True, 0, 0.0)
                finally:
                    r.replicaof("NO", "ONE")
                    throwaway.config[setting] = usual

    def test_a_server_that_may_not_write(self, throwaway: Server) -> None:
        """Too few replicas; or its last snapshot failed, as on a full disk."""
        with throwaway.client() as r:
            limiter, strict = (GCRA(r, "n", limit=3, window=1, on_error=how) for how in ("deny", "raise"))
            throwaway.config["min-replicas-to-write"] = 1
            assert limiter.hit("k") == Decision(False, 0, 1.0)
            with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                strict.hit("k")
            throwaway.config["min-replicas-to-write"] = 0
            assert limiter.hit("k").allowed

    def test_a_server_busy_with_a_script(self, throwaway: Server) -> None:
        with throwaway.client(socket_timeout=None) as busy, throwaway.client() as r:
            throwaway.config["busy-reply-threshold"] = 1
            limiter = GCRA(r, "n", limit=3, window=1, on_error="deny")
            assert limiter.hit("k").allowed
            script = threading.Thread(target=_run_until_killed, args=[busy])
            script.start()
            try:
                while limiter.hit("k").retry_after != 1.0:  # GCRA's own answer is another number
                    time.sleep(0.01)
                with pytest.raises(redis.ResponseError, match="BUSY"):
                    r.get("k")
            finally:
                r.script_kill()
                script.join()

    @pytest.mark.parametrize("kind", [*FIVE, NaiveSortedSet])
    def test_a_wrong_password_is_never_answered_with_allow(self, kind: Any, throwaway: Server) -> None:
        with redis.Redis(port=throwaway.port, password="wrong", retry=Retry(NoBackoff(), 0)) as r:
            limiter = make(kind, r, "auth", 3, 1, on_error="allow")
            with pytest.raises(redis.AuthenticationError):
                limiter.hit("k")

    def test_an_error_that_is_not_an_outage_is_raised(self, r: redis.Redis) -> None:
        r.hset("mixed:{k}", "a", "b")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            FixedWindow(r, "mixed", limit=3, window=1, on_error="allow").hit("k")


def _run_until_killed(r: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match="killed"):
        r.eval("while true do end", 0)


class TestMisuse:
    @pytest.mark.parametrize("kind", [*FIVE, NaiveSortedSet])
    def test_what_every_kind_checks(self, kind: Any, r: redis.Redis) -> None:
        with pytest.raises(ValueError, match="on_error is 'ignore'; it must be 'raise', 'allow' or 'deny'"):
            make(kind, None, "n", 1, 1, on_error="ignore")
        for name in ("", None, b"n"):
            with pytest.raises(TypeError, match=r"name is .*; it must be a str"):
                make(kind, None, name, 1, 1)  # type: ignore[arg-type]
        for key in (None, b"k", 7):
            with pytest.raises(TypeError, match=r"key is .*; it must be a str"):
                make(kind, r, "n", 1, 1).hit(key)
        for wrong in (r.pipeline(), redis.asyncio.Redis()):
            with pytest.raises(TypeError, match=r"r is a ((Cluster)?Pipeline|Redis); it must be a client"):
                make(kind, wrong, "n", 1, 1)

    @pytest.mark.parametrize("kind", [*FIVE, NaiveSortedSet])
    @pytest.mark.parametrize("limit", [0, -1, 2**60])
    def test_limit_out_of_range(self, kind: Any, limit: int) -> None:
        with pytest.raises(ValueError, match=f"(limit|capacity) is {limit:,}; it must be from 1 to"):
            make(
                kind, None, "n", limit, 1e-3 if limit < 0 else 1.0
            ) if kind is not TokenBucket else TokenBucket(None, "n", capacity=limit, rate=1)

    @pytest.mark.parametrize("kind", [*FIVE, NaiveSortedSet])
    @pytest.mark.parametrize("limit", [True, 1.5, "3", None])
    def test_limit_of_a_wrong_type(self, kind: Any, limit: Any) -> None:
        with pytest.raises(TypeError, match=r"(limit|capacity) is .*; it must be an int from 1 to"):
            TokenBucket(None, "n", capacity=limit, rate=1) if kind is TokenBucket else kind(
                None, "n", limit=limit, window=1
            )

    @pytest.mark.parametrize("kind", [FixedWindow, SlidingLog, SlidingCounter, GCRA, NaiveSortedSet])
    @pytest.mark.parametrize("window", [0, -1, 1e-9, math.inf, math.nan, 1e12])
    def test_window_out_of_range(self, kind: Any, window: float) -> None:
        with pytest.raises(ValueError, match=r"window is .*; it must be from 1e-06 to 1e\+09"):
            kind(None, "n", limit=1, window=window)

    @pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan, 1e12])
    def test_rate_out_of_range(self, rate: float) -> None:
        with pytest.raises(ValueError, match=r"rate is .*; it must be from 1e-06 to 1e\+06"):
            TokenBucket(None, "n", capacity=1, rate=rate)

    @pytest.mark.parametrize("wrong", [True, "1", None, [1]])
    def test_window_and_rate_of_a_wrong_type(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"window is .*; it must be a number"):
            SlidingLog(None, "n", limit=1, window=wrong)
        with pytest.raises(TypeError, match=r"rate is .*; it must be a number"):
            TokenBucket(None, "n", capacity=1, rate=wrong)

    @pytest.mark.parametrize("kind", [*FIVE, NaiveSortedSet])
    @pytest.mark.parametrize("cost", [0, -1, 11])
    def test_cost_out_of_range(self, kind: Any, cost: int) -> None:
        for ask in (make(kind, None, "n", 10, 1.0).hit, make(kind, None, "n", 10, 1.0).peek):
            with pytest.raises(ValueError, match=f"cost is {cost}; it must be from 1 to 10"):
                ask("k", cost)

    @pytest.mark.parametrize("cost", [1.0, True, "1", None])
    def test_cost_of_a_wrong_type(self, cost: Any) -> None:
        with pytest.raises(TypeError, match=r"cost is .*; it must be an int from 1 to 10"):
            SlidingLog(None, "n", limit=10, window=1).hit("k", cost)

    def test_the_rest(self) -> None:
        with pytest.raises(ValueError, match="limit is 2,000,000; it must be from 1 to 1,000,000"):
            SlidingLog(None, "n", limit=2_000_000, window=1)
        with pytest.raises(ValueError, match="burst is 0; it must be from 1 to"):
            GCRA(None, "n", limit=1, window=1, burst=0)
        with pytest.raises(ValueError, match=r"limit is 2,000,000; it must be from 1 to 1,000,000"):
            GCRA(None, "n", limit=2_000_000, window=1)
        with pytest.raises(ValueError, match=r"limit is 1,000,000; it must be from 1 to 104,249"):
            SlidingCounter(None, "n", limit=1_000_000, window=86_400)
        for wrong in (math.nan, -1.0, math.inf):
            with pytest.raises(ValueError, match=r"now\(\) is"):
                FixedWindow(None, "n", limit=1, window=1, now=partial(float, wrong)).hit("k")


def test_the_log_takes_at_most_30_bytes_an_entry(r: redis.Redis) -> None:
    log = SlidingLog(r, "log", limit=1000, window=3600)
    for _ in range(1000):
        assert log.hit("k").allowed
    assert int(r.memory_usage("log:{k}", samples=0) or 0) <= 30 * 1000


@pytest.mark.parametrize("kind", [FixedWindow, SlidingCounter, TokenBucket, GCRA])
def test_the_others_take_at_most_160_bytes_whatever_the_limit(kind: Any, r: redis.Redis) -> None:
    for limit in (10, 1000, 1_000_000):
        limiter = make(kind, r, f"size{limit:07}", limit, 3600)
        assert limiter.hit("k").allowed and limiter.hit("k", limit // 2).allowed
        assert 0 < int(r.memory_usage(f"size{limit:07}:{{k}}") or 0) <= 160


@pytest.mark.parametrize("kind", [FixedWindow, SlidingCounter, TokenBucket, GCRA])
def test_large_numbers_are_stored_in_full(kind: Any, r: redis.Redis) -> None:
    """No exponent, no lost digit: the largest size that each accepts, at the latest time."""
    clock = Clock(3_999_999_999_999_999)
    sizes: dict[Any, dict[str, Any]] = {
        FixedWindow: {"limit": 2_251_798, "window": 1},
        SlidingCounter: {"limit": 2**52, "window": 1e-6},
        TokenBucket: {"capacity": 9007, "rate": 3.141593},
        GCRA: {"limit": 1_000_000, "window": 1, "burst": 10**15},
    }
    limiter = kind(r, "big", now=clock, **sizes[kind])
    most = {FixedWindow: 2_251_798, TokenBucket: 9007, GCRA: 10**15, SlidingCounter: 2**52}[kind]
    assert limiter.hit("k", most - 1) == Decision(True, 1, 0.0)
    assert set(str(r.get("big:{k}"))) <= set("0123456789 ")
    assert limiter.hit("k") == Decision(True, 0, 0.0)
    assert not limiter.hit("k").allowed


def test_the_log_after_a_long_pause_and_a_large_cost(r: redis.Redis) -> None:
    clock = Clock(SECOND)
    log = SlidingLog(r, "large", limit=20_000, window=1, now=clock)
    assert log.hit("k", 19_999).remaining == 1
    clock.at += SECOND // 2
    assert log.hit("k").remaining == 0
    clock.at += SECOND // 2
    assert log.hit("k") == Decision(True, 19_998, 0.0)
    assert r.llen("large:{k}") == 2


OTHER_ANSWERS = {
    "watch": """
        while True:
            with self.r.pipeline() as pipe:
                try:
                    pipe.watch(k)
                    if pipe.zcount(k, f"({now - self.window!r}", "+inf") >= self.limit:
                        return False
                    pipe.multi()
                    pipe.zadd(k, {uuid.uuid4().hex: now})
                    pipe.expire(k, int(self.window))
                    pipe.execute()
                    return True
                except redis.WatchError:
                    pass
    """,
    "lock": """
        with self.r.lock(f"{k}:lock", timeout=5, sleep=0.01):
            self.r.zremrangebyscore(k, 0, now - self.window)
            free = self.r.zcard(k) < self.limit
            if free:
                self.r.zadd(k, {uuid.uuid4().hex: now})
                self.r.expire(k, int(self.window))
            return free
    """,
}


@pytest.mark.parametrize("body", OTHER_ANSWERS.values(), ids=OTHER_ANSWERS)
def test_the_grader_of_boundary_accepts_what_is_atomic_in_another_way(body: str) -> None:
    (boundary,) = (exercise for exercise in load("rate_limiter") if exercise.name == "boundary")
    head = """
import redis, uuid

class MyLimiter:
    def __init__(self, r, name, limit, window, now):
        self.r, self.name, self.limit, self.window, self.now = r, name, limit, window, now

    def hit(self, key):
        k, now = f"{self.name}:{key}", self.now()
"""
    verdict = check.grade(boundary, boundary.build(head + body))
    assert verdict.state == "correct", str(verdict)


class TestNaive:
    """It fails as the chapter shows it to fail."""

    def test_a_client_that_keeps_trying_is_refused_for_ever(self, r: redis.Redis) -> None:
        clock = Clock(SECOND)
        naive, log = (
            kind(r, kind.__name__, limit=5, window=1, now=clock) for kind in (NaiveSortedSet, SlidingLog)
        )
        answers: dict[Any, list[bool]] = {naive: [], log: []}
        for _ in range(200):
            clock.at += SECOND // 10
            for limiter, got in answers.items():
                got.append(limiter.hit("k").allowed)
        assert (sum(answers[naive]), sum(answers[naive][5:])) == (5, 0)
        assert sum(answers[log]) == 100

    def test_requests_with_one_timestamp_count_once(self, r: redis.Redis) -> None:
        naive = NaiveSortedSet(r, "same", limit=5, window=1, now=Clock(SECOND))
        assert all(naive.hit("k").allowed for _ in range(50))
        assert naive.peek("k") == Decision(True, 4, 0.0)

    def test_skewed_clocks_over_admit(self, r: redis.Redis) -> None:
        early, late = Clock(SECOND), Clock(3 * SECOND)
        naive = [NaiveSortedSet(r, "skew", limit=5, window=1, now=clock) for clock in (early, late)]
        admitted = 0
        for early.at, late.at in ((SECOND + i, 3 * SECOND + i) for i in range(20)):
            admitted += sum(limiter.hit("k").allowed for limiter in naive)
        assert admitted > 5


@pytest.mark.parametrize("kind", FIVE)
def test_the_script_stays_readable_and_the_docstring_names_promise_and_source(kind: Any) -> None:
    assert len(kind.LUA.strip().splitlines()) <= 25
    assert "promise" in kind.__doc__.lower() or "at most" in kind.__doc__.lower()
    assert "Source: " in kind.__doc__
