"""Requests to all parts of a cluster at once, and what became of them: who answered, and when nobody did.

    probes = Probes(cluster.client, topology.shares(3), {node.port: node.name for node in cluster.nodes})
    probes.start()
    probes.seen()           # for each part of the slots who answered, and the gaps between

Each part has a thread and a client of its own, so one that is not answered does not hold up the others.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisClusterException, RedisError

from labkit.rig import topology

__all__ = ["HOT", "Lane", "Probes", "Span"]

PAUSE = 0.006
"""Seconds from one request of a part to its next one."""

KEEP = 60
"""So many seconds are remembered, of what was served by whom."""

HOT = "load:{hot}"
"""The one key to which three of four requests go while it is hot."""

FAILURES = (RedisError, RedisClusterException, OSError)


@dataclass(frozen=True)
class Span:
    """From `begin` to `end` (seconds ago) `name` answered requests; for `gap` seconds before nobody did."""

    name: str
    begin: float
    end: float
    gap: float = 0.0


@dataclass(frozen=True)
class Lane:
    """What befell the slots `first` to `last`; `silent`: for so many seconds now nobody answers requests."""

    first: int
    last: int
    spans: tuple[Span, ...]
    silent: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.first}–{self.last}"


class Probes:
    """A thread for each part of the slots that writes to it, until it is stopped, or nobody uses this."""

    def __init__(self, client: Callable[..., Any], parts: Sequence[range], ports: Mapping[int, str]) -> None:
        self._client = client
        self._parts = [_Part(part, ports) for part in parts]
        self._end: weakref.finalize[..., Any] | None = None

    @property
    def running(self) -> bool:
        return self._end is not None and self._end.alive

    @property
    def hot(self) -> bool:
        return self._parts[0].hot

    @hot.setter
    def hot(self, hot: bool) -> None:
        for part in self._parts:
            part.hot = hot

    def start(self) -> None:
        if self.running:
            return
        stopping = threading.Event()
        threads = [
            threading.Thread(
                target=part.run,
                args=(self._client(socket_timeout=2), stopping),
                name="labkit-load",
                daemon=True,
            )
            for part in self._parts
        ]
        self._end = weakref.finalize(self, _stop, stopping, threads)
        for thread in threads:
            thread.start()

    def stop(self) -> None:
        """When this returns, the threads are gone."""
        if self._end is not None:
            self._end()

    def rates(self) -> dict[str, float]:
        """Requests that each node has answered in the last second."""
        since, rates = time.monotonic() - 1, dict[str, float]()
        for part in self._parts:
            for at, _, name in tuple(part.answers):
                if name and at > since:
                    rates[name] = rates.get(name, 0.0) + 1
        return rates

    def seen(self) -> tuple[tuple[Lane, ...], tuple[tuple[int, bool], ...]]:
        """What befell each part; and the requests of the last half a second: slot, and whether answered."""
        now = time.monotonic()
        recent = [
            (slot, bool(name))
            for part in self._parts
            for at, slot, name in tuple(part.answers)
            if at > now - 0.5
        ]
        return tuple(part.lane(now) for part in self._parts), tuple(recent)


def _stop(stopping: threading.Event, threads: Sequence[threading.Thread]) -> None:
    stopping.set()
    for thread in threads:
        thread.join(10)


class _Part:
    """A range of slots: keys of it, and what became of requests for them."""

    def __init__(self, slots: range, ports: Mapping[int, str]) -> None:
        self.slots, self.ports, self.hot = slots, ports, False
        numbers = (f"load:{n}" for n in range(topology.SLOTS))
        self.keys = list(islice((key for key in numbers if key_slot(key.encode()) in slots), 400))
        self.answers: deque[tuple[float, int, str]] = deque(maxlen=1000)
        self.spans: deque[tuple[str, float, float, float]] = deque()
        self.failing = False

    def run(self, rc: Any, stopping: threading.Event) -> None:
        chance = random.Random(self.slots.start)
        while not stopping.is_set():
            hot = self.hot and chance.random() < 0.75
            key = HOT if hot else chance.choice(self.keys)
            try:
                rc.set(key, "x", ex=600)
                name = self.ports.get(rc.get_node_from_key(key).port, "")
            except FAILURES:
                name = ""
                with suppress(*FAILURES):
                    rc.nodes_manager.initialize()
            if not stopping.is_set():
                self._note(key_slot(key.encode()), name, its=not hot)
            stopping.wait(PAUSE)
        self.failing = False
        rc.close()

    def _note(self, slot: int, name: str, its: bool) -> None:
        now = time.monotonic()
        self.answers.append((now, slot, name))
        if not its:
            return
        if not name:
            self.failing = bool(self.spans)
            return
        last = self.spans[-1] if self.spans else ("", 0.0, 0.0, 0.0)
        if self.failing or last[0] != name or now - last[2] > 1:
            gap = now - last[2] if self.failing else 0.0
            self.spans.append((name, now, now, gap))
        else:
            self.spans[-1] = (name, last[1], now, last[3])
        self.failing = False
        while now - self.spans[0][2] > KEEP:
            self.spans.popleft()

    def lane(self, now: float) -> Lane:
        spans = tuple(self.spans)
        silent = now - spans[-1][2] if self.failing and spans else 0.0
        told = [Span(name, now - begin, now - end, gap) for name, begin, end, gap in spans]
        if told and not silent and told[-1].end < 1:  # the next request is on its way
            told[-1] = replace(told[-1], end=0.0)
        return Lane(self.slots[0], self.slots[-1], tuple(told), silent)
