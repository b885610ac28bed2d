"""Writers for an outage: in a process of its own, a thread for the slots of each primary, until SIGTERM.

Each writes one new key after the other, with a client of its own, and notes what was acknowledged and for how
long nothing was. `labkit.rig.outage` starts them, kills a primary, and reads what they tell.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

from redis import exceptions

from labkit.rig.client import cluster_client

FAILURES = (exceptions.RedisError, exceptions.RedisClusterException)

SAID = {
    "ClusterDownError": "CLUSTERDOWN",
    "MovedError": "MOVED",
    "TimeoutError": "no answer",
    "ConnectionError": "no connection",
}
"""What a client was told, by the exception that it raised; any other goes by its own name."""


class Report(NamedTuple):
    """What one writer has seen; a key's number is that of its write. Times are of `time.monotonic()`."""

    tags: list[str]
    tried: int
    missed: list[int]
    """Not acknowledged."""
    gap: tuple[float, float]
    """The longest time without a write that a server has carried out."""
    errors: dict[str, int]

    @property
    def acknowledged(self) -> list[int]:
        return sorted(set(range(self.tried)) - set(self.missed))


def keys(tags: Sequence[str], numbers: Iterable[int]) -> list[str]:
    """The keys of these writes: they take the tags in turns."""
    return [f"outage:{{{tags[n % len(tags)]}}}:{n}" for n in numbers]


class Plan(NamedTuple):
    """What each write is: a value of so many bytes, WAIT for so many replicas, and a pause in seconds."""

    size: int
    wait: int
    pause: float
    timeout: float
    """So long a writer goes on trying after it was told to end."""


class Writer:
    """Writes keys with these hash tags; `run()` ends when `over` is set and a server has answered again."""

    def __init__(self, url: str, tags: list[str], plan: Plan) -> None:
        self.rc: Any = cluster_client(url)
        self.tags, self.plan = tags, plan
        self.missed: list[int] = []
        self.errors: Counter[str] = Counter()
        self.tried, self.last, self.gap = 0, 0.0, (0.0, 0.0)

    def ready(self) -> None:
        """Have a connection before it counts."""
        self._put(first := f"outage:{{{self.tags[0]}}}:first")
        self.rc.delete(first)

    def _put(self, key: str) -> bool:
        """Carried out: and confirmed by as many replicas as asked for?"""
        node = self.rc.get_redis_connection(self.rc.get_node_from_key(key))
        with node.pipeline(transaction=False) as pipe:
            pipe.set(key, "x" * self.plan.size)
            if self.plan.wait:
                pipe.execute_command("WAIT", self.plan.wait, 100)
            confirmed: bool = pipe.execute()[-1] >= self.plan.wait
        return confirmed

    def run(self, over: threading.Event) -> None:
        self.last, end = time.monotonic(), 0.0
        while not over.is_set() or time.monotonic() < (end := end or time.monotonic() + self.plan.timeout):
            if self._once() and over.is_set():
                return
            time.sleep(self.plan.pause)
        self._silent_until(time.monotonic())

    def _once(self) -> bool:
        """One write; True where a server has carried it out, confirmed or not."""
        number, self.tried = self.tried, self.tried + 1
        try:
            confirmed = self._put(keys(self.tags, [number])[0])
        except FAILURES as error:
            self.missed.append(number)
            self.errors[SAID.get(type(error).__name__, type(error).__name__)] += 1
            time.sleep(0.01)
            with contextlib.suppress(*FAILURES):
                self.rc.nodes_manager.initialize()
            return False
        self._silent_until(now := time.monotonic())
        self.last = now
        if not confirmed:
            self.missed.append(number)
            self.errors["unconfirmed"] += 1
        return True

    def _silent_until(self, now: float) -> None:
        """Since the last write that a server has carried out: the longest such time counts."""
        self.gap = max(self.gap, (self.last, now), key=lambda pair: pair[1] - pair[0])

    @property
    def report(self) -> Report:
        return Report(self.tags, self.tried, self.missed, self.gap, dict(self.errors))


def work(url: str, tags: list[list[str]], plan: list[Any]) -> Generator[None, None, list[Report]]:
    """A writer for each list of tags: ready at the `yield`, then at work until SIGTERM."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    writers = [Writer(url, mine, Plan(*plan)) for mine in tags]
    for writer in writers:
        writer.ready()
    yield
    threads = [threading.Thread(target=writer.run, args=(over,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [writer.report for writer in writers]
