"""How soon and how fast labkit.pubsub delivers, beside redis-py's own ways; run by hand.

    python tests/bench_pubsub.py [--rounds 15]

Everything is one process and one server: latency is from just before PUBLISH to the callback, one message at
a time, with the listener asleep when it comes; throughput is of messages that a script publishes on the
server, so that nothing but the listener takes time. All candidates parse the JSON, and take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benching import cores, met, run_on, speed

from labkit.pubsub import subscribe
from labkit.rig.server import Server

FLOOD = "for i = 1, ARGV[1] do redis.call('PUBLISH', KEYS[1], ARGV[2]) end"
PAYLOAD = json.dumps({"user": "ada", "action": "viewed", "page": "/products/17"})
Callback = Callable[[str, Any], None]


@contextmanager
def ours(r: Any, channel: str, callback: Callback) -> Iterator[None]:
    with subscribe(r, channel, callback):
        yield


@contextmanager
def bare_loop(r: Any, channel: str, callback: Callback) -> Iterator[None]:
    """get_message() in a loop, as in redis-py's documentation, but in a thread, and without sleeping."""
    stop = threading.Event()
    pubsub = r.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(channel)

    def listen() -> None:
        while not stop.is_set():
            message = pubsub.get_message(timeout=0.05)
            if message is not None:
                callback(message["channel"], json.loads(message["data"]))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pubsub.close()


@contextmanager
def run_in_thread(r: Any, channel: str, callback: Callback) -> Iterator[None]:
    pubsub = r.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(**{channel: lambda m: callback(m["channel"], json.loads(m["data"]))})
    thread = pubsub.run_in_thread(sleep_time=0.05, daemon=True)
    try:
        yield
    finally:
        thread.stop()
        thread.join()


WAYS: dict[str, Callable[[Any, str, Callback], Any]] = {
    "labkit.pubsub": ours,
    "get_message loop": bare_loop,
    "run_in_thread": run_in_thread,
}


class Counter:
    """A callback that wakes who waits for so many messages."""

    def __init__(self) -> None:
        self.left, self.done, self.at = 0, threading.Event(), 0.0

    def __call__(self, channel: str, event: Any) -> None:
        self.at = time.perf_counter()
        self.left -= 1
        if self.left == 0:
            self.done.set()

    def expect(self, count: int) -> None:
        self.left = count
        self.done.clear()

    def wait(self) -> None:
        if not self.done.wait(60):
            raise SystemExit(f"{self.left} messages did not come")


def latencies(r: Any, channel: str, counter: Counter, count: int) -> list[float]:
    """Seconds from publish to callback, of `count` messages one after another."""
    taken = []
    for _ in range(count):
        counter.expect(1)
        start = time.perf_counter()
        r.publish(channel, PAYLOAD)
        counter.wait()
        taken.append(counter.at - start)
    return taken


def flood(r: Any, channel: str, counter: Counter, count: int) -> float:
    """Seconds for one of `count` messages that are all there at once."""
    counter.expect(count)
    start = time.perf_counter()
    r.eval(FLOOD, 1, channel, count, PAYLOAD)
    counter.wait()
    return (counter.at - start) / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    run_on({max(cores())})  # across two cores the figures jump between two states
    for protocol in (3, 2):
        with Server() as server, server.client(protocol=protocol) as r, ExitStack() as stack:
            counters = {name: Counter() for name in WAYS}
            for name, way in WAYS.items():
                stack.enter_context(way(r, name, counters[name]))
            waits: dict[str, list[float]] = {name: [] for name in WAYS}
            costs: dict[str, list[float]] = {name: [] for name in WAYS}
            p50s: dict[str, list[float]] = {name: [] for name in WAYS}
            order = list(WAYS)
            for number in range(rounds + 1):
                for name in order:
                    found = latencies(r, name, counters[name], 200)
                    cost = flood(r, name, counters[name], 5000)
                    if number:  # the first round is a warm-up
                        waits[name] += found
                        p50s[name].append(statistics.median(found))
                        costs[name].append(cost)
                order.reverse()
        report(protocol, waits, costs, p50s)


def report(
    protocol: int,
    waits: dict[str, list[float]],
    costs: dict[str, list[float]],
    p50s: dict[str, list[float]],
) -> None:
    print(f"RESP{protocol}, {len(waits['labkit.pubsub']):,} messages each")
    print(f"{'':18} {'p50 µs':>8} {'p99 µs':>8} {'messages/s':>11}   times as fast is labkit.pubsub")
    for name in WAYS:
        p50, p99 = statistics.median(waits[name]), statistics.quantiles(waits[name], n=100)[98]
        rate = 1 / statistics.median(costs[name])
        soon, fast = speed(p50s["labkit.pubsub"], p50s[name]), speed(costs["labkit.pubsub"], costs[name])
        words = "" if name == "labkit.pubsub" else f"{soon:.2f}, {fast:.2f}"
        print(f"{name:18} {p50 * 1e6:8.0f} {p99 * 1e6:8.0f} {rate:11,.0f}   {words}")
    soon = min(speed(p50s["labkit.pubsub"], p50s[name]) for name in WAYS)
    fast = min(speed(costs["labkit.pubsub"], costs[name]) for name in WAYS)
    print(f"at least 0.9 of the others in latency and rate: {met(soon >= 0.9 and fast >= 0.9)}\n")


if __name__ == "__main__":
    main()
