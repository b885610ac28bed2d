"""Traffic in virtual time: when requests come, and what a limiter answers to each.

    clock = Clock()
    limiter = SlidingLog(r, "workbook:05:log", limit=10, window=1, now=clock)
    result = replay(limiter, clock, steady(15, seconds=4))
    result                    # 40 admitted, 20 refused
    result.most_in_any(1)     # 10
    result.df                 # a row a request

    zipf(10_000, keys=1000)   # which of 1,000 things each request asks for

Nothing waits: the clock is set to each request's time, so a replay is the same on every machine. A limiter is
whatever has `hit(key)` and `peek(key)`.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_fresh = itertools.count(1)


class Clock:
    """Seconds that pass only when somebody says so: `clock.at = 2.5`. Calling it tells the time."""

    def __init__(self, at: float = 0.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@dataclass(frozen=True)
class Replay:
    """Times (s) of admitted and refused requests, and of what was left to spend: `room`, (time, units)."""

    admitted: tuple[float, ...]
    refused: tuple[float, ...]
    room: tuple[tuple[float, int], ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return f"{len(self.admitted)} admitted, {len(self.refused)} refused"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in ("", "requests", "first", "last"))
        body = ""
        for name, times in (("admitted", self.admitted), ("refused", self.refused)):
            ends = (f"{times[0]:.6g} s", f"{times[-1]:.6g} s") if times else ("", "")
            cells = "".join(f"<td>{cell}</td>" for cell in (f"{len(times):,}", *ends))
            body += f"<tr><th>{name}</th>{cells}</tr>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def df(self) -> pd.DataFrame:
        """One row a request, in the order of time: when it came (s), and whether it was admitted."""
        import pandas as pd

        rows = [(at, True) for at in self.admitted] + [(at, False) for at in self.refused]
        return pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=["at", "admitted"])

    def most_in_any(self, window: float) -> int:
        """The most that were admitted in any window of that length."""
        return max((held for _, held in self.held(window)), default=0)

    def held(self, window: float) -> list[tuple[float, int]]:
        """At each admission t, how many were admitted in (t - window, t]."""
        recent: deque[int] = deque()
        counts = []
        for at in self.admitted:
            recent.append(micros := round(at * 1_000_000))
            while recent[0] <= micros - round(window * 1_000_000):
                recent.popleft()
            counts.append((at, len(recent)))
        return counts


def replay(
    limiter: Any, clock: Clock, times: Iterable[float], *, key: str = "", sample: float = 0, until: float = 0
) -> Replay:
    """One `hit` at each of the times, in order. `key`: by default one that nobody has used before.

    With `sample`, what is left is also asked every so many seconds, up to `until`.
    """
    key = key or f"replay {next(_fresh)}"
    todo = sorted((at, True) for at in times)
    if sample:
        todo = sorted(todo + [(i * sample, False) for i in range(int(until / sample) + 1)])
    admitted: list[float] = []
    refused: list[float] = []
    room: list[tuple[float, int]] = []
    for clock.at, is_hit in todo:
        decision = limiter.hit(key) if is_hit else limiter.peek(key)
        if is_hit:
            (admitted if decision.allowed else refused).append(clock.at)
        room.append((clock.at, decision.remaining))
    return Replay(tuple(admitted), tuple(refused), tuple(room))


def steady(rate: float, seconds: float, start: float = 0.0) -> list[float]:
    """`rate` requests a second, evenly spaced."""
    return [start + i / rate for i in range(round(rate * seconds))]


def at_once(count: int, at: float, spread: float = 0.0) -> list[float]:
    """`count` requests that begin at one moment, within `spread` seconds."""
    return [at + spread * i / count for i in range(count)]


def at_random(rate: float, seconds: float, seed: int = 5, start: float = 0.0) -> list[float]:
    """`rate` requests a second on average, independent of each other (a Poisson process), in whole µs."""
    chance, at, times = random.Random(seed), start, []
    while (at := at + chance.expovariate(rate)) < start + seconds:
        times.append(round(at, 6))
    return times


def zipf(requests: int, keys: int, skew: float = 1.0, seed: int = 3) -> list[int]:
    """The id, from 1 to `keys`, that each of so many requests asks for: the same ids each time.

    Number n is asked for in proportion to 1 / n ** skew (Zipf's law), so 1 is the most popular. With a skew
    of 0 all are alike; for pages of the web Breslau and others measured 0.64 to 0.83 (INFOCOM 1999).
    """
    if requests < 0 or keys < 1 or not 0 <= skew <= 10:
        raise ValueError(
            f"requests is {requests!r}, keys {keys!r}, skew {skew!r}; they must be 0 or more, 1 or more, "
            "and from 0 to 10"
        )
    shares = list(itertools.accumulate(n**-skew for n in range(1, keys + 1)))
    return random.Random(seed).choices(range(1, keys + 1), cum_weights=shares, k=requests)


def _edge(limit: int, window: float) -> list[float]:
    late = at_once(limit, 0.85 * window, spread=0.1 * window)
    return late + at_once(limit, 1.02 * window, spread=0.1 * window)


def _bursts(limit: int, window: float) -> list[float]:
    size = limit + limit // 2
    return [at for i in range(4) for at in at_once(size, (i + 0.3) * window, spread=0.3 * window)]


SHAPES: dict[str, Callable[[int, float], Sequence[float]]] = {
    "a burst at a window's edge": _edge,
    "steady, 1.5 times too fast": lambda limit, window: steady(1.5 * limit / window, 4 * window),
    "bursts": _bursts,
    "random, 1.2 times too fast": lambda limit, window: at_random(1.2 * limit / window, 4 * window),
}
"""Named traffic for a limit and a window: four windows long."""


def noting(kind: Any, note: str) -> Any:
    """That class of limiter, whose script also appends the time (µs) of each admission to the list `note`.

    The time is the server's, and the very one that the limiter's arithmetic uses: windows can be checked to
    the microsecond. For a single server, because `note` is one more key of the script.
    """
    lua = f"""
        local time = redis.call('TIME')
        local now = string.format('%d', time[1] * 1000000 + time[2])
        table.insert(ARGV, now)
        local answer = (function() {kind.LUA} end)()
        if type(answer) == 'number' then redis.call('RPUSH', '{note}', now) end
        return answer
    """
    return type(kind.__name__, (kind,), {"LUA": lua})
