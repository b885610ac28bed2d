"""What the benchmarks share: candidates that take turns, and criteria that are met or not."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)


def measure(calls: Mapping[Key, Callable[[], Any]], rounds: int, n: int) -> dict[Key, list[float]]:
    """Seconds for one of `n` calls, by candidate and round; every other round in the reverse order."""
    taken: dict[Key, list[float]] = {key: [] for key in calls}
    order = list(calls)
    gc.collect()
    gc.disable()
    for number in range(rounds + 1):
        for key in order:
            call, start = calls[key], perf_counter()
            for _ in range(n):
                call()
            if number:  # the first round is a warm-up
                taken[key].append((perf_counter() - start) / n)
        order.reverse()
    gc.enable()
    return taken


def speed(one: Sequence[float], other: Sequence[float]) -> float:
    """How many times as fast `one` is as `other`: the median of their rounds."""
    return statistics.median(b / a for a, b in zip(one, other, strict=True))


def met(criterion: bool) -> str:
    return "met" if criterion else "NOT MET"


def cores() -> set[int]:
    """Those that this process may use."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else {0}


def run_on(where: set[int]) -> None:
    """Where this process runs, and those that it starts; nothing on systems that cannot say so."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, where)
