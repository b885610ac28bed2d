"""The cost of a batch as a straight line: a fixed part for the way, and a part for each command.

line = Line.fit({1: 1.1e6, 10: 1.2e6, 100: 2.4e6})     # commands in a batch: ns
line.fixed, line.each, line.at(1000), line.half
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from time import perf_counter_ns
from typing import Any

from labkit.rig.bench import human_time


@dataclass(frozen=True, repr=False)
class Line:
    """t(b) = fixed + b · each, in nanoseconds: `fixed` is paid once a batch, `each` once a command."""

    fixed: float
    each: float

    @classmethod
    def fit(cls, points: Mapping[int, float]) -> Line:
        """The line with the least squared *relative* errors: 5 % count the same at 1 ms and at 100 ms.

        Raises ValueError for fewer than two batch sizes, or times that are not above 0.
        """
        if len(points) < 2 or min(points.values()) <= 0:
            raise ValueError(f"a line needs two sizes or more, and times above 0; got {dict(points)}")
        weights = {b: 1 / t**2 for b, t in points.items()}
        total = sum(weights.values())
        mean_b = sum(w * b for b, w in weights.items()) / total
        mean_t = sum(w * points[b] for b, w in weights.items()) / total
        spread = sum(w * (b - mean_b) ** 2 for b, w in weights.items())
        each = sum(w * (b - mean_b) * (points[b] - mean_t) for b, w in weights.items()) / spread
        return cls(mean_t - each * mean_b, each)

    def at(self, b: float) -> float:
        """The time of a batch of b commands."""
        return self.fixed + b * self.each

    def total(self, commands: int, b: int) -> float:
        """The time of so many commands in batches of b, one batch after another."""
        return ceil(commands / b) * self.fixed + commands * self.each

    @property
    def half(self) -> float:
        """The batch size at which half of the time is waiting: beyond it, no batch is ever twice as fast."""
        return self.fixed / self.each

    def residuals(self, points: Mapping[int, float]) -> dict[int, float]:
        """By how much of the line's time each measured time lies above (+) or below (-) the line."""
        return {b: t / self.at(b) - 1 for b, t in points.items()}

    def __repr__(self) -> str:
        return f"t(b) = {human_time(self.fixed)} + b · {human_time(self.each)}"


def run_batches(r: Any, commands: int, b: int, key: str = "workbook:02:playground") -> int:
    """Really send so many GETs, in pipelines of b; the time in ns. ceil(commands / b) round trips."""
    begin = perf_counter_ns()
    for first in range(0, commands, b):
        pipe = r.pipeline(transaction=False)
        for _ in range(min(b, commands - first)):
            pipe.get(key)
        pipe.execute()
    return perf_counter_ns() - begin


def measured_and_expected(
    r: Any, model: Line, commands: int, b: int, budget: float = 1.5e9
) -> tuple[float | None, float]:
    """The time in ns that so many GETs in pipelines of b take here, and the time that the model expects.

    The faster of two runs where both fit into the budget (ns); None, not run at all, where the first would
    not.
    """
    expected = model.total(commands, b)
    if expected > budget:
        return None, expected
    runs = 2 if 2 * expected < budget else 1
    return min(run_batches(r, commands, b) for _ in range(runs)), expected
