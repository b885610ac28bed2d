"""What a hit costs, here and in other libraries: `uv run --group bench python tests/bench_rate_limiter.py`.

One server, one thread, one client for all; client and server share one core, because across two cores the
figures jump between two states. The candidates take turns in short rounds, in an order that is reversed every
time; a ratio is the median over the rounds. Two tables: all requests admitted, all requests refused.

* "of evalsha" compares with a bare `r.evalsha` of the very same script and arguments: what the wrapper costs.
* "of no-op" compares with an EVALSHA of `return 0`: what the whole limiter costs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benching import cores, measure, run_on, speed

from labkit.rate_limiter import GCRA, FixedWindow, NaiveSortedSet, SlidingCounter, SlidingLog, TokenBucket
from labkit.rig.server import Server


class Row(NamedTuple):
    group: str
    who: str
    guarantee: str
    call: Callable[[], Any]
    bare: Callable[[], Any] | None = None


EXACT = "server's µs, one script, TTL always"


def ours(r: Any, limit: int, window: float) -> list[Row]:
    rows = []
    for kind, group in (
        (FixedWindow, "fixed window"),
        (SlidingLog, "log"),
        (SlidingCounter, "counter"),
        (TokenBucket, "bucket"),
        (GCRA, "GCRA"),
    ):
        size: dict[str, Any] = {"limit": limit, "window": window}
        if kind is TokenBucket:
            size = {"capacity": limit, "rate": limit / window}
        limiter: Any = kind(r, f"{kind.__name__}:ours", **size)
        limiter.hit("alice")
        args = (1, f"{kind.__name__}:bare:{{alice}}", 1, *limiter._own)
        r.evalsha(limiter._sha, *args)
        rows.append(
            Row(
                group, "labkit", EXACT, partial(limiter.hit, "alice"), partial(r.evalsha, limiter._sha, *args)
            )
        )
    naive = NaiveSortedSet(r, "naive", limit=limit, window=window)
    rows.append(Row("log", "(naive sorted set)", "none: see its docstring", partial(naive.hit, "alice")))
    return rows


def limits_rows(r: Any, url: str, limit: int, window: int) -> list[Row]:
    from limits import RateLimitItemPerSecond, storage, strategies

    store = storage.RedisStorage(url, connection_pool=r.connection_pool)
    item = RateLimitItemPerSecond(limit, window)
    rows = []
    for name, group, guarantee in (
        (
            "FixedWindowRateLimiter",
            "fixed window",
            "refused hits count, whole s from the first hit; one script",
        ),
        ("MovingWindowRateLimiter", "log", "client's clock; one script"),
        ("SlidingWindowCounterRateLimiter", "counter", "server's ms by TTLs; one script"),
    ):
        strategy = getattr(strategies, name)(store)
        rows.append(
            Row(
                group,
                "limits",
                guarantee,
                partial(strategy.hit, item, name, "alice"),
            )
        )
    return rows


def pyrate_rows(r: Any, limit: int, window: int) -> list[Row]:
    import pyrate_limiter as pyrate

    rates = [pyrate.Rate(limit, window * 1000)]
    rows = []
    for algorithm, group, guarantee in (
        (pyrate.FixedWindow(), "fixed window", "client's ms; one script; no TTL: trimmed by a thread"),
        (pyrate.SlidingWindowLog(), "log", "client's ms; one script; no TTL: trimmed by a thread"),
    ):
        bucket = pyrate.RedisBucket.init(rates, r, f"pyrate:{group}", algorithm=algorithm)
        limiter = pyrate.Limiter(pyrate.SingleBucketFactory(bucket, schedule_leak=False))
        rows.append(
            Row(group, "pyrate-limiter", guarantee, partial(limiter.try_acquire, "alice", blocking=False))
        )
    for state, group in ((pyrate.TokenBucket(), "bucket"), (pyrate.GCRA(), "GCRA")):
        store = pyrate.RedisStateStore(r, f"pyrate:{group}")
        limiter = pyrate.Limiter(
            pyrate.SingleBucketFactory(pyrate.StateBucket(rates, state, store), schedule_leak=False)
        )
        rows.append(
            Row(
                group,
                "pyrate-limiter",
                "client's ms; one script",
                partial(limiter.try_acquire, "alice", blocking=False),
            )
        )
    return rows


def throttled_rows(r: Any, limit: int, window: int) -> list[Row]:
    from datetime import timedelta

    from throttled import Throttled, rate_limiter, store

    backend = store.RedisStore(server="redis://unused")
    backend._backend._client = r
    quota = rate_limiter.per_duration(timedelta(seconds=window), limit, limit)
    rows = []
    for using, group, guarantee in (
        (
            "fixed_window",
            "fixed window",
            "weaker: INCRBY, then EXPIRE: a crash between leaves no TTL; client's whole s",
        ),
        ("sliding_window", "counter", "client's ms; one script; two keys"),
        ("token_bucket", "bucket", "server's whole s; one script"),
        ("gcra", "GCRA", "server's µs as floats; one script"),
    ):
        throttle = Throttled(using=using, quota=quota, store=backend, key=f"throttled:{using}")
        rows.append(Row(group, "throttled-py", guarantee, throttle.limit))
    return rows


def table(title: str, rows: list[Row], r: Any, rounds: int, n: int) -> None:
    noop = r.script_load("return 0")
    calls: dict[Any, Callable[[], Any]] = {"no-op": lambda: r.evalsha(noop, 1, "noop:{alice}")}
    for i, row in enumerate(rows):
        calls[i] = row.call
        if row.bare:
            calls[i, "bare"] = row.bare
    taken = measure(calls, rounds, n)

    def ratio(one: Any, other: Any) -> float:
        """How fast `other` is, compared with `one`."""
        return speed(taken[other], taken[one])

    print(f"\n{title}\n")
    print(f"{'algorithm':<13}{'limiter':<20}{'ops/s':>8}{'of evalsha':>12}{'of no-op':>10}  guarantee")
    shares = {i: ratio("no-op", i) for i in range(len(rows))}
    best = {row.group: shares[i] for i, row in enumerate(rows) if row.who == "labkit"}
    for group in best:
        for i in sorted(shares, key=lambda i: -shares[i]):
            row, rate = rows[i], 1 / statistics.median(taken[i])
            if row.group != group:
                continue
            wrapper = f"{ratio((i, 'bare'), i):.3f}" if row.bare else ""
            note = row.guarantee + ("  <- faster" if shares[i] > best[group] else "")
            print(f"{group:<13}{row.who:<20}{rate:>8,.0f}{wrapper:>12}{shares[i]:>10.2f}  {note}")
    print(f"{'':<13}{'no-op EVALSHA':<20}{1 / statistics.median(taken['no-op']):>8,.0f}{'':>12}{1:>10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=200, help="of each candidate in each round")
    parser.add_argument("--core", type=int, help="the core to use (default: the last)")
    options = parser.parse_args()
    run_on({max(cores()) if options.core is None else options.core})
    for title, limit, window in (
        ("All requests are admitted: limit 1,000,000 in 10 s", 1_000_000, 10),
        ("All requests are refused: limit 1 in 3,600 s", 1, 3600),
    ):
        with Server() as server, server.client() as r:
            rows = [
                *ours(r, limit, window),
                *limits_rows(r, server.url, limit, window),
                *pyrate_rows(r, limit, window),
                *throttled_rows(r, limit, window),
            ]
            table(title, rows, r, options.rounds, options.calls)


if __name__ == "__main__":
    main()
