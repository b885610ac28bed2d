"""What a call costs: samples of its latency, and real processes that do it at once.

    run = measure(lambda: r.ping(), n=1000)
    both = compare({"one by one": one_by_one, "pipeline": pipeline}, n=20, rounds=5)
    both.ratio("pipeline", "one by one")

Every sample is one call's elapsed time in whole nanoseconds, by `time.perf_counter_ns`. Candidates take
turns in short rounds, in an order that is reversed every time, so that a machine that slows down meanwhile
slows them all alike. The garbage collector rests while samples are taken, as in `timeit`.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from labkit.rig.bar import bar
from labkit.rig.processes import ProcessFailed, processes
from labkit.rig.table import html, text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ProcessFailed", "Run", "Sweep", "bar", "compare", "human_time", "measure", "processes", "sweep"]

COLUMNS = ("calls", "p50", "p90", "p99", "p99.9", "ops/s")


def human_time(ns: float) -> str:
    """Nanoseconds as a person says them, to three figures: '850 ns', '41.2 µs', '3.05 ms', '1.2 s'."""
    if ns < 0:
        return f"-{human_time(-ns)}"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size * 0.9995:
            return f"{ns / size:.3g} {unit}" if ns < 999.5 * size else f"{ns / size:,.0f} {unit}"
    return f"{ns:.3g} ns"


@dataclass(frozen=True, repr=False)
class Run:
    """The latency of one thing that was called many times.

    `samples` are in nanoseconds, in the order in which they were taken; `ops` is how many operations one call
    performs (100 for a pipeline of 100), and `rounds` into how many equal parts the samples fall.
    """

    name: str
    samples: tuple[int, ...]
    ops: int = 1
    rounds: int = 1

    def percentile(self, share: float) -> int:
        """The latency in ns that this share (in %) of the calls did not exceed: always a real sample."""
        if not 0 < share <= 100:
            raise ValueError(f"percentile is {share!r}; it must be above 0 and at most 100")
        rank = -(-share * len(self._sorted) // 100)
        return self._sorted[int(rank) - 1]

    @property
    def p50(self) -> int:
        return self.percentile(50)

    @property
    def p90(self) -> int:
        return self.percentile(90)

    @property
    def p99(self) -> int:
        return self.percentile(99)

    @property
    def p999(self) -> int:
        return self.percentile(99.9)

    @property
    def best(self) -> int:
        """The fastest call, in ns: the cost with the least disturbance by other work of the machine."""
        return self._sorted[0]

    @property
    def ops_per_second(self) -> float:
        """Operations in the time that all calls took together, slow ones included."""
        return self.ops * len(self.samples) * 1e9 / max(sum(self.samples), 1)

    @property
    def by_round(self) -> tuple[tuple[int, ...], ...]:
        size = len(self.samples) // self.rounds
        return tuple(self.samples[i * size : (i + 1) * size] for i in range(self.rounds))

    @property
    def df(self) -> pd.DataFrame:
        """One row a call: its round, and its latency in ns."""
        import pandas as pd

        size = len(self.samples) // self.rounds
        return pd.DataFrame({"round": [i // size for i in range(len(self.samples))], "ns": self.samples})

    @cached_property
    def _sorted(self) -> list[int]:
        return sorted(self.samples)

    def _row(self) -> list[str]:
        times = [human_time(ns) for ns in (self.p50, self.p90, self.p99, self.p999)]
        return [f"{len(self.samples):,}", *times, f"{self.ops_per_second:,.0f}"]

    def __repr__(self) -> str:
        calls, p50, p90, p99, p999, rate = self._row()
        return f"{self.name}: {calls} calls · p50 {p50} · p90 {p90} · p99 {p99} · p99.9 {p999} · {rate} ops/s"

    def _repr_html_(self) -> str:
        return html(_rows("", [(self.name, self)]))


@dataclass(frozen=True, repr=False)
class Sweep:
    """The same measurement at several values, or of several candidates, taken in turns.

    `sweep[value]` is the Run at that value; `name` says what the values are.
    """

    name: str
    values: tuple[Any, ...]
    runs: tuple[Run, ...]

    def __getitem__(self, value: Any) -> Run:
        if value not in self.values:
            raise KeyError(f"{value!r} was not measured; there are {', '.join(map(str, self.values))}")
        return self.runs[self.values.index(value)]

    def __iter__(self) -> Iterator[tuple[Any, Run]]:
        return iter(zip(self.values, self.runs, strict=True))

    def __len__(self) -> int:
        return len(self.runs)

    def ratio(self, one: Any, other: Any) -> float:
        """How many times as long `one` takes as `other`: the median over the rounds of the medians' ratio.

        Both sides of a ratio were measured at about the same moment, so load that comes and goes cancels out.
        """
        pairs = zip(self[one].by_round, self[other].by_round, strict=True)
        return statistics.median(statistics.median(a) / max(statistics.median(b), 1) for a, b in pairs)

    @property
    def df(self) -> pd.DataFrame:
        """One row a value: calls, percentiles in µs, operations a second."""
        import pandas as pd

        shares = {"p50_us": 50, "p90_us": 90, "p99_us": 99, "p999_us": 99.9}
        times = {name: [run.percentile(share) / 1e3 for run in self.runs] for name, share in shares.items()}
        calls, rate = [len(run.samples) for run in self.runs], [run.ops_per_second for run in self.runs]
        return pd.DataFrame({self.name: self.values, "calls": calls, **times, "ops_per_second": rate})

    def __repr__(self) -> str:
        return text(_rows(self.name, list(self)))

    def _repr_html_(self) -> str:
        return html(_rows(self.name, list(self)))


def _rows(name: str, runs: Sequence[tuple[Any, Run]]) -> list[tuple[str, ...]]:
    return [(name, *COLUMNS), *((str(value), *run._row()) for value, run in runs)]


def measure(
    fn: Callable[[], object], n: int = 1000, warmup: int = 10, *, name: str = "", ops: int = 1
) -> Run:
    """Call `fn` `warmup` times unseen, then `n` times with a clock. What it raises is the caller's."""
    name = name or getattr(fn, "__name__", "call").replace("<lambda>", "call")
    return _in_turns({name: fn}, n, 1, warmup, {name: (name, ops)})[name]


def compare(
    candidates: Mapping[str, Callable[[], object]],
    n: int = 100,
    rounds: int = 5,
    warmup: int = 3,
    *,
    ops: int = 1,
    name: str = "candidate",
) -> Sweep:
    """Measure candidates that take turns: in each of the rounds, `n` calls of each.

    `ops` is the number of operations that a call of each performs.
    """
    runs = _in_turns(candidates, n, rounds, warmup, {key: (str(key), ops) for key in candidates})
    return Sweep(name, tuple(runs), tuple(runs.values()))


def sweep(
    fn: Callable[[Any], object],
    over: Iterable[Hashable],
    n: int = 20,
    rounds: int = 5,
    warmup: int = 1,
    *,
    name: str = "value",
    ops: Callable[[Any], int] = lambda value: 1,
) -> Sweep:
    """Measure `fn(value)` for each value of `over`, the values taking turns: `n` calls of each in each round.

    `ops(value)` is the number of operations that one call performs, for `ops_per_second`.
    """
    values = tuple(dict.fromkeys(over))
    calls = {value: (lambda value=value: fn(value)) for value in values}
    labels = {value: (f"{name}={value}", ops(value)) for value in values}
    runs = _in_turns(calls, n, rounds, warmup, labels)
    return Sweep(name, values, tuple(runs.values()))


def _in_turns(
    calls: Mapping[Any, Callable[[], object]],
    n: int,
    rounds: int,
    warmup: int,
    labels: Mapping[Any, tuple[str, int]],
) -> dict[Any, Run]:
    if not calls:
        raise ValueError("nothing to measure: give at least one candidate")
    for what, value, least in (("n", n, 1), ("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{what} is {value!r}; it must be at least {least}")
    for call in calls.values():
        for _ in range(warmup):
            call()
    samples: dict[Any, list[int]] = {key: [] for key in calls}
    order = list(calls)
    with bar(total=n * rounds * len(calls), desc="measuring") as progress, _no_gc():
        for _ in range(rounds):
            for key in order:
                _sample(calls[key], n, samples[key], progress.update)
            order.reverse()
    return {key: Run(name, tuple(samples[key]), ops, rounds) for key, (name, ops) in labels.items()}


def _sample(call: Callable[[], object], n: int, into: list[int], tick: Callable[[], object]) -> None:
    for _ in range(n):
        start = perf_counter_ns()
        call()
        into.append(perf_counter_ns() - start)
        tick()


@contextmanager
def _no_gc() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
