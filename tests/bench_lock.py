"""What a lock costs, here and in other libraries: `uv run --group bench python tests/bench_lock.py`.

Candidates take turns in short rounds, in an order that is reversed every time; a ratio is the median over the
rounds. Four parts, each ends with its criteria and whether this run meets them:

* one process, one server: acquire and release of a free lock, all on one core; once more on the server that
  LABKIT_NEWER_REDIS names, if any;
* Redlock on five servers, against the same five asked one after the other and other libraries;
* the same with one server, and with all five, behind a proxy that delays;
* four processes that want one lock all the time, for a read and a write that must not be interrupted; and
  once more for work of 20 ms. `block only` and `poll` are what Lock would be if a waiter blocked at once, or
  never did but went on to try, after its random pauses.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import statistics
from collections.abc import Callable, Generator
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from benching import cores, measure, met, run_on, speed

from labkit.lock import Lock, Redlock
from labkit.rig.processes import processes
from labkit.rig.proxy import Proxy
from labkit.rig.server import Server

Calls = dict[str, Callable[[], Any]]


def criterion(what: str, value: float, least: float) -> None:
    print(f"  {met(value >= least):7}  {what}: {value:.2f} (at least {least:g})")


def show(title: str, taken: dict[str, list[float]]) -> None:
    first = next(iter(taken))
    print(f"\n{title}\n\n{'':<34}{'acquire + release':>18}{'a second':>10}{'of ' + first:>14}")
    for name, times in taken.items():
        each = statistics.median(times)
        print(f"{name:<34}{each * 1e6:>15,.0f} µs{1 / each:>10,.0f}{speed(times, taken[first]):>14.2f}")
    print()


def pair(lock: Any) -> Callable[[], None]:
    def acquire_and_release() -> None:
        if not lock.acquire():
            raise RuntimeError(f"{lock} was not free")
        lock.release()

    return acquire_and_release


def uncontended(rounds: int, n: int, binary: str | None) -> None:
    import redis_lock
    from redis.lock import Lock as RedisPyLock

    logging.disable(logging.INFO)
    with Server(binary=binary) as server, server.client() as r:
        calls = {
            "labkit": pair(Lock(r, "labkit", ttl=10)),
            "redis-py": pair(RedisPyLock(r, "redis-py", timeout=10)),
            "python-redis-lock": pair(redis_lock.Lock(r, "python-redis-lock", expire=10)),
        }
        taken = measure(calls, rounds, n)
        version = r.info("server")["redis_version"]
    show(f"A free lock on Redis {version}", taken)
    for other in ("redis-py", "python-redis-lock"):
        criterion(f"as fast as {other}", speed(taken["labkit"], taken[other]), 1)


def one_after_the_other(clients: list[Any]) -> Callable[[], None]:
    """The algorithm of Redlock in a loop over the servers, as the page that describes it has it."""

    def acquire_and_release() -> None:
        token, start = secrets.token_hex(16), perf_counter()
        granted = [r.execute_command("SET", "loop", token, "NX", "PX", 10_000) for r in clients]
        if 2 * sum(map(bool, granted)) <= len(clients) or perf_counter() - start > 9:
            raise RuntimeError("no majority")
        for r in clients:
            r.execute_command("EVAL", Redlock.RELEASE, 1, "loop", token)

    return acquire_and_release


def redlock_py(clients: list[Any]) -> Callable[[], None]:
    from redlock import Redlock as RedlockPy

    manager = RedlockPy(clients)

    def acquire_and_release() -> None:
        if not (lock := manager.lock("redlock-py", 10_000)):
            raise RuntimeError("no majority")
        manager.unlock(lock)

    return acquire_and_release


def pottery(clients: list[Any]) -> Callable[[], None]:
    from pottery import Redlock as PotteryRedlock

    return pair(PotteryRedlock(key="pottery", masters=set(clients), auto_release_time=10))


LOOP = "one after the other"


def five_servers(rounds: int, n: int) -> None:
    with Server.several(5) as servers, ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for server in servers]
        calls = {
            "labkit": pair(Redlock(clients, "labkit", ttl=10)),
            LOOP: one_after_the_other(clients),
            "redlock-py": redlock_py(clients),
            "pottery": pottery(clients),
        }
        taken = measure(calls, rounds, n)
        show("Redlock on five servers", taken)
        for other, least in ((LOOP, 1.8), ("redlock-py", 1.8), ("pottery", 1.8)):
            criterion(f"times as fast as {other}", speed(taken["labkit"], taken[other]), least)


def delayed(rounds: int, ms: float) -> None:
    """Two round trips each: so twice the delay is the least that is possible."""
    with Server.several(5) as servers, ExitStack() as stack:
        links = [stack.enter_context(Proxy(server)) for server in servers]
        clients = [stack.enter_context(link.client()) for link in links]
        calls = {"labkit": pair(Redlock(clients, "labkit", ttl=10)), LOOP: one_after_the_other(clients)}
        measure(calls, 1, 1)
        for slow, which in ((1, "one of five servers is"), (5, "all five are")):
            for link in links[:slow]:
                link.delay(ms)
            taken = measure(calls, rounds, 1)
            show(f"Redlock when {which} {ms:g} ms away (a pair needs {2 * ms:g} ms at least)", taken)
            took = statistics.median(taken["labkit"]) * 1000
            criterion("of twice the delay of the slowest, per pair", 2 * ms / took, 0.7)


def contender(url: str, kind: str, seconds: float, work: float) -> Generator[None, None, Any]:
    """One of four: takes the lock as often as it can; what it did, waited and sent."""
    import logging
    import time

    import redis.lock
    import redis_lock

    from labkit import lock as ours
    from labkit.rig.client import client

    logging.disable(logging.INFO)
    r, shop, sent = client(url), client(url), 0
    if kind == "block only":
        ours.TRIES = 0
    if kind == "poll":
        ours.TRIES = 10**9
    made: Any = ours.Lock(r, "lock", ttl=10, wait=None)
    if kind == "redis-py":
        made = redis.lock.Lock(r, "lock", timeout=10)
    if kind == "python-redis-lock":
        made = redis_lock.Lock(r, "lock", expire=10)
    plain: Callable[..., Any] = r.execute_command

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        return plain(*args, **options)

    with made:
        shop.get("n")
    r.execute_command = counted  # type: ignore[method-assign]
    yield
    waits, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        with made:
            waits.append(time.perf_counter() - start)
            n = int(shop.get("n") or 0)
            if work:
                time.sleep(work)
            shop.set("n", n + 1)
    return [waits, sent]


def contended(
    kinds: tuple[str, ...], rounds: int, seconds: float, work: float
) -> dict[str, list[list[float]]]:
    """By candidate: for each round sections/s, longest and p99 wait (ms), fairness, commands each."""
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    order = list(kinds)
    for _ in range(rounds):
        for kind in order:
            with Server() as server, server.client() as r:
                results = processes(4, contender, server.url, kind, seconds, work, seconds=seconds + 60)
                done = [len(waits) for waits, _ in results]
                if int(r.get("n") or 0) != sum(done):
                    raise RuntimeError(f"{kind}: {sum(done)} sections, yet n is {r.get('n')}: two at once")
            waits = sorted(wait for waits, _ in results for wait in waits)
            jain = sum(done) ** 2 / (4 * sum(n * n for n in done))
            sent = sum(sent for _, sent in results) / sum(done)
            p99 = waits[int(len(waits) * 0.99)]
            found[kind].append([sum(done) / seconds, waits[-1] * 1000, p99 * 1000, jain, sent])
        order.reverse()
    return found


def show_contended(title: str, found: dict[str, list[list[float]]]) -> None:
    print(f"\n{title}\n")
    print(f"{'':<20}{'sections/s':>12}{'longest wait':>15}{'p99':>11}{'Jain':>8}{'commands each':>16}")
    for kind, rows in found.items():
        rate, longest, p99, jain, sent = map(statistics.median, zip(*rows, strict=True))
        print(f"{kind:<20}{rate:>12,.0f}{longest:>12,.1f} ms{p99:>8,.1f} ms{jain:>8.2f}{sent:>16.1f}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=5, help="of each contended run")
    parser.add_argument("--contended-rounds", type=int, default=5)
    options = parser.parse_args()
    everywhere = cores()
    run_on({max(everywhere)})
    uncontended(options.rounds, 150, None)
    if newer := os.environ.get("LABKIT_NEWER_REDIS"):  # has DELEX and SET IFEQ
        uncontended(options.rounds, 150, newer)
    run_on(everywhere)
    five_servers(options.rounds, 40)
    delayed(max(options.rounds // 4, 3), 10)
    kinds = ("labkit", "redis-py", "python-redis-lock", "block only", "poll")
    crowd = contended(kinds, options.contended_rounds, options.seconds, 0)
    show_contended("Four processes want one lock, for a GET and a SET", crowd)
    rate = statistics.median(a[0] / b[0] for a, b in zip(crowd["labkit"], crowd["redis-py"], strict=True))
    criterion("of redis-py's sections a second", rate, 0.7)
    longest = statistics.median(b[1] / a[1] for a, b in zip(crowd["labkit"], crowd["redis-py"], strict=True))
    criterion("times shorter is the longest wait than redis-py's", longest, 10)
    work = contended(kinds, 1, options.seconds, 0.02)
    show_contended(
        "Four processes want one lock, for 20 ms of work (50 a second would be all of the time)", work
    )


if __name__ == "__main__":
    main()
