"""What a group of consumers costs, and whether it holds: `uv run python tests/bench_stream.py`.

* One consumer against loops of bare XREADGROUP, effect and XACK, for several batch sizes: candidates take
  turns on one server, every other round in the reverse order; a ratio is the median over the rounds.
* Four worker processes and a producer that waits for them (back-pressure) and trims what they have
  acknowledged: messages/s by batch size, then `--n` messages (a million) with memory sampled. `--store` does
  this alone.
* `--kills 20`: the test's 10,000 messages and 20 SIGKILLs in mid-message, so many times; nothing else.

With `--store` the results of the last two go to notebooks/measured/07_stream.json, which chapter 07 shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benching import cores, met, run_on, speed
from test_stream import kill_run

from labkit.rig.connection import server_info
from labkit.rig.processes import Worker, spawn
from labkit.rig.server import Server
from labkit.stream import Consumer, Producer

RESULT = Path(__file__).parents[1] / "notebooks" / "measured" / "07_stream.json"
AHEAD = 20_000  # messages that the producer may be ahead of the group
PART = 10_000  # messages after which it looks


def event(n: int) -> dict[str, Any]:
    return {"n": n, "user": f"user-{n % 1000}", "kind": ("view", "click", "buy")[n % 3]}


def handle(entry: Any, effects: Any) -> None:
    effects.hincrby("kinds", entry.event["kind"], 1)


def labkit_loop(r: Any, batch: int, n: int) -> None:
    consumer = Consumer(r, "s", "labkit", "a", handle, batch=batch, block=0)
    while consumer.report.applied < n:
        consumer.poll()


def bare_loop(transaction: bool) -> Callable[[Any, int, int], None]:
    """Read, decode, effects and XACK in one pipeline; nothing of reclaiming, retries, dead letters, once."""

    def loop(r: Any, batch: int, n: int) -> None:
        group, done = f"bare {transaction}", 0
        while done < n:
            found = r.xreadgroup(group, "a", {"s": ">"}, count=batch)["s"]
            with r.pipeline(transaction=transaction) as pipe:
                for _, fields in found:
                    said = {name: json.loads(value) for name, value in fields.items()}
                    pipe.hincrby("kinds", said["kind"], 1)
                pipe.xack("s", group, *[id for id, _ in found])
                pipe.execute()
            done += len(found)

    return loop


CANDIDATES = {"labkit": labkit_loop, "bare, pipeline": bare_loop(False), "bare, MULTI": bare_loop(True)}


def one_consumer(rounds: int, n: int, binary: str | None) -> None:
    with Server(binary=binary) as server, server.client() as r:
        print(f"\nOne consumer on Redis {server_info(r)['redis_version']}: messages a second\n")
        print(f"{'batch':>5}" + "".join(f"{name:>18}" for name in CANDIDATES) + f"{'labkit / MULTI':>18}")
        for batch in (1, 10, 100, 1000):
            taken: dict[str, list[float]] = {name: [] for name in CANDIDATES}
            some = n // 10 if batch == 1 else n
            order = list(CANDIDATES)
            for number in range(rounds + 1):
                r.flushall()
                Producer(r, "s").add_many(map(event, range(some)))
                for group in ("labkit", "bare False", "bare True"):
                    r.xgroup_create("s", group, "0")
                for name in order:
                    start = time.perf_counter()
                    CANDIDATES[name](r, batch, some)
                    if number:
                        taken[name].append((time.perf_counter() - start) / some)
                order.reverse()
            rates = "".join(f"{1 / statistics.median(taken[name]):>18,.0f}" for name in CANDIDATES)
            ratio = speed(taken["labkit"], taken["bare, MULTI"])
            print(f"{batch:>5}{rates}{ratio:>18.2f}   {met(ratio >= 0.7)} (at least 0.7)")


def worker(url: str, name: str, batch: int) -> Generator[None, None, Any]:
    import signal

    from labkit.rig.client import client
    from labkit.stream import Consumer

    def handle(entry: Any, effects: Any) -> None:
        effects.hincrby("kinds", entry.event["kind"], 1)

    consumer = Consumer(client(url), "events", "group", name, handle, batch=batch, block=0.2)
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    yield
    return consumer.run()


def four_workers(r: Any, url: str, n: int, batch: int) -> dict[str, Any]:
    """`n` messages through four processes, with a producer that keeps `AHEAD` at most and trims."""
    r.flushall()
    producer, group = Producer(r, "events"), Consumer(r, "events", "group", "watcher", handle)
    group.lag()
    samples: list[list[float]] = []
    with ExitStack() as stack:
        workers: list[Worker] = []
        for number in range(4):
            workers.append(stack.enter_context(spawn(worker, url, f"worker-{number}", batch)))
        start = time.perf_counter()

        def sample() -> int:
            backlog = producer.backlog()
            stream, used = r.memory_usage("events", samples=0), r.info("memory")["used_memory"]
            at = round(time.perf_counter() - start, 3)
            samples.append([at, int(used), int(r.xlen("events")), backlog, int(stream)])
            return backlog

        for first in range(0, n, PART):
            producer.add_many(map(event, range(first, min(first + PART, n))))
            while sample() > AHEAD:
                time.sleep(0.02)
            producer.trim()
        while sample():
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        ended = all(one.stop(20) for one in workers)
        applied = [one.result()[1] for one in workers]
    kinds = sum(map(int, r.hgetall("kinds").values()))
    if not ended or kinds != n or sum(applied) != n:
        raise RuntimeError(f"{n} messages, {kinds} effects, {sum(applied)} applied by {applied}")
    _, used, length, backlog, stream = zip(*samples, strict=True)
    return {
        "messages": n,
        "workers": 4,
        "batch": batch,
        "ahead": AHEAD,
        "seconds": round(seconds, 2),
        "per_second": round(n / seconds),
        "by_worker": applied,
        "peak_backlog": max(backlog),
        "peak_length": max(length),
        "peak_stream_bytes": max(stream),
        "peak_used_memory": max(used),
        "columns": ["seconds", "used_memory", "length", "backlog", "stream_bytes"],
        "samples": samples[:: -(-len(samples) // 60)],
    }


def untrimmed(r: Any, n: int = 100_000) -> float:
    """Bytes for an entry of a stream that nobody trims."""
    r.flushall()
    Producer(r, "events").add_many(map(event, range(n)))
    return float(r.memory_usage("events", samples=0)) / n


def scale(n: int, store: bool) -> None:
    with Server() as server, server.client() as r:
        version = server_info(r)["redis_version"]
        each = untrimmed(r)
        print(f"\nA producer and four workers on Redis {version}, {len(cores())} cores\n")
        print(
            f"{'batch':>6}{'n':>12}{'messages/s':>13}{'backlog':>10}{'length':>10}{'stream':>12}{'untrimmed':>12}"
        )
        sizes = {batch: four_workers(r, server.url, n // 20, batch) for batch in (1, 10, 100, 1000)}
        found = four_workers(r, server.url, n, 100)
    for run in (*sizes.values(), found):
        print(
            f"{run['batch']:>6}{run['messages']:>12,}{run['per_second']:>13,}{run['peak_backlog']:>10,}"
            f"{run['peak_length']:>10,}{run['peak_stream_bytes'] / 1e6:>9,.1f} MB"
            f"{each * run['messages'] / 1e6:>9,.1f} MB"
        )
    length = found["peak_length"] <= AHEAD + 2 * PART + 200
    print(f"\n  {met(length)}  the stream was never longer than {AHEAD + 2 * PART + 200:,}")
    if store:
        million = {**found, "bytes_per_entry": round(each, 1), "untrimmed_bytes": round(each * n)}
        batches = {str(batch): run["per_second"] for batch, run in sizes.items()}
        keep(version, million=million, batches=batches, batches_messages=n // 20)


def keep(version: str, **results: Any) -> None:
    """Put these among the stored results."""
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.parent.mkdir(exist_ok=True)
    stored |= {"server": version, "cores": len(cores()), **results}
    RESULT.write_text(json.dumps(stored) + "\n")


def killed(times: int, store: bool) -> None:
    print(f"\n{'run':>4}{'kills':>7}{'applied once':>14}{'twice':>7}{'lost':>6}{'seconds':>9}", flush=True)
    runs = []
    with Server() as server:
        version = server_info(server.client())["redis_version"]
        for number in range(1, times + 1):
            run = kill_run(server)
            runs.append(run)
            figures = (
                f"{number:>4}{run.kills:>7}{run.applied:>14,}{run.twice:>7}{run.lost:>6}{run.seconds:>9.1f}"
            )
            print(figures, flush=True)
    held = sum((run.applied, run.twice, run.lost) == (10_000, 0, 0) for run in runs)
    print(f"\n  {met(held == times)}  {held} of {times}: none lost, none applied twice")
    if store:
        kills: dict[str, Any] = {"messages": 10_000, "workers": 4, "kills": 20, "runs": times, "held": held}
        for what in ("lost", "twice"):
            kills[what] = sum(getattr(run, what) for run in runs)
        keep(version, kills={**kills, "reclaimed": [run.reclaimed for run in runs]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=0, help="repeat the kill test so many times")
    parser.add_argument("--store", action="store_true", help="keep the results for chapter 07")
    options = parser.parse_args()
    if options.kills:
        killed(options.kills, options.store)
        return
    if not options.store:
        everywhere = cores()
        run_on({max(everywhere)})  # across two cores the figures jump between two states
        one_consumer(options.rounds, 20_000, None)
        if newer := os.environ.get("LABKIT_NEWER_REDIS"):
            one_consumer(options.rounds, 20_000, newer)
        run_on(everywhere)
    scale(options.n, options.store)


if __name__ == "__main__":
    main()
