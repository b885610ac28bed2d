"""The cost of a batch as a straight line: a fixed part for the way, and a part for each command.

line = Line.fit({1: 1.1e6, 10: 1.2e6, 100: 2.4e6})     # commands in a batch: ns
line.fixed, line.each, line.at(1000), line.half

trials = Trials(link)                                  # a Proxy: measures the line of this machine
trials.run(delay=4, batch=50, commands=1000).rows      # {way: (measured, expected)} in ns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from labkit.rig.bench import human_time

if TYPE_CHECKING:
    import pandas as pd

    from labkit.rig.proxy import Proxy


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

    def further(self, ms: float) -> Line:
        """The line of a server that is so many milliseconds further away; the commands cost the same."""
        return Line(self.fixed + ms * 1e6, self.each)

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


@dataclass(frozen=True, repr=False)
class Trial:
    """So many commands, one by one and in batches: what each way took, and what the model expects.

    `rows` gives for each way (measured, expected) in ns; measured is None where it would have taken too long
    and was not run. `delay` is in ms.
    """

    delay: float
    batch: int
    commands: int
    rows: Mapping[str, tuple[float | None, float]]

    @property
    def df(self) -> pd.DataFrame:
        """One row a way, times in ms."""
        import pandas as pd

        times = [[ns and ns / 1e6 for ns in row] for row in self.rows.values()]
        return pd.DataFrame(times, index=list(self.rows), columns=["measured_ms", "expected_ms"])

    def __repr__(self) -> str:
        waits = ceil(self.commands / self.batch)
        return f"{self.commands:,} GETs, {self.delay:g} ms away: {self.commands:,} waits, or {waits:,}"


class Trials:
    """A server behind a link, and the line of its costs: trials at any delay, each held against the model.

    The line is measured once, 2 ms away; at other delays it is moved by the difference. Each trial sets the
    delay of `link`.
    """

    CALIBRATED_AT = 2.0

    def __init__(self, link: Proxy) -> None:
        self.link, self.r = link, link.client()
        link.delay(self.CALIBRATED_AT)
        self.line = Line.fit({b: min(run_batches(self.r, b, b) for _ in range(7)) for b in (1, 300)})

    def run(self, delay: float, batch: int, commands: int) -> Trial:
        """So many GETs, one by one and in batches, `delay` ms away."""
        self.link.delay(delay)
        model = self.line.further(delay - self.CALIBRATED_AT)
        ways = {"one by one": 1, f"batches of {batch}": batch}
        rows = {way: measured_and_expected(self.r, model, commands, b) for way, b in ways.items()}
        return Trial(delay, batch, commands, rows)
