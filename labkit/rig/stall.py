"""What every other client waits while one of them has something done.

    both = compare(server, {"KEYS *": lambda r: r.execute_command("KEYS", "*"),
                            "SCAN": lambda r: list(r.scan_iter(count=1000))})
    both["KEYS *"].longest          # seconds

A bystander, in a process of its own, sends PING and waits for the answer, again and again, 0.5 ms apart. The
work runs in this process. So however long Python is busy with a reply of a million members, the bystander is
not: what it waits for is the server. Why one client's command is another's latency:
https://redis.io/docs/latest/operate/oss_and_stack/management/optimization/latency/

Look at lengths and at the share of time, never at the share of requests: a bystander that waits sends nothing
meanwhile, so a stop of 300 ms is one slow request among hundreds of fast ones.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from labkit.rig.bench import human_time
from labkit.rig.bystander import Wait, watching
from labkit.rig.table import html, text

if TYPE_CHECKING:
    import pandas as pd
    import redis

__all__ = ["Slowest", "Stall", "Stalls", "Wait", "compare", "stalls"]

STALLED = 0.01
"""Seconds: who waits so long for an answer that takes a tenth of a millisecond stands still.

A busy machine of two cores may keep a process waiting for a few milliseconds all by itself.
"""

QUIET, AFTER = 0.03, 0.02
"""Seconds that are watched before and after the work."""

MICROSECONDS, HELD = 1000, 1000
"""While work runs, the server's slow log notes what takes so long, and holds so many entries."""

FROM = "slowlog-log-slower-than"

Work = Callable[[Any], object]


class Slowest(NamedTuple):
    """The longest command meanwhile by the server's own clock, from its slow log.

    An empty `command`, and 0.0 seconds, where none took 1 ms.
    """

    command: str
    seconds: float


@dataclass(frozen=True, repr=False)
class Stall:
    """What a bystander saw while `name` ran for `during` seconds, from its own start on.

    `waits` are its requests, also of the moment before (those have a negative `at`) and after. `slowest` is
    the server's own word for it, or None if it did not say.
    """

    name: str
    waits: tuple[Wait, ...]
    during: float
    slowest: Slowest | None = None

    @cached_property
    def spells(self) -> tuple[tuple[float, float], ...]:
        """From when until when it waited for a proper answer; refusals in between belong to the waiting."""
        return tuple(_spells(self.waits))

    @property
    def longest(self) -> float:
        """Seconds: its longest wait for a proper answer while the work ran, or just after."""
        return max((end - begin for begin, end in self._meanwhile), default=0.0)

    @property
    def median(self) -> float:
        """Seconds: its median wait while the work ran, or just after."""
        return statistics.median([end - begin for begin, end in self._meanwhile] or [0.0])

    @property
    def quiet(self) -> float:
        """Seconds: its median wait just before the work, for comparison; 0.0 if it had no answer then."""
        return statistics.median([end - begin for begin, end in self.spells if end <= 0] or [0.0])

    @property
    def stalls(self) -> tuple[float, ...]:
        """Its waits of 10 ms and more while the work ran, or just after, in seconds, in their order."""
        return tuple(end - begin for begin, end in self._meanwhile if end - begin >= STALLED)

    @property
    def share(self) -> float:
        """Of the time that the work took, the share (0 to 1) that fell into waits of 10 ms and more."""
        long = [(begin, end) for begin, end in self._meanwhile if end - begin >= STALLED]
        return sum(max(min(end, self.during) - max(begin, 0), 0) for begin, end in long) / self.during

    @cached_property
    def _meanwhile(self) -> list[tuple[float, float]]:
        """Also just after: a work of 0.1 ms may begin and end between two requests."""
        return [(begin, end) for begin, end in self.spells if end > 0 and begin < self.during + AFTER]

    @property
    def df(self) -> pd.DataFrame:
        """One row a request of the bystander: `seconds` since the work began, `ms` that it took, `error`."""
        import pandas as pd

        at, took, error = zip(*self.waits, strict=True) if self.waits else ((), (), ())
        return pd.DataFrame({"seconds": at, "ms": [1000 * t for t in took], "error": error})

    def __repr__(self) -> str:
        longest, _, share, during, slowest = _cells(self)
        return (
            f"{self.name}: took {during} · another client waited {longest} at most, and stood still for "
            f"{share} of the time · slowest command, by the server: {slowest}"
        )

    def _repr_html_(self) -> str:
        return html(_rows([self]))


@dataclass(frozen=True, repr=False)
class Stalls:
    """Several works, one after the other and in turns; `stalls[name]` is the turn of the middle length.

    `turns` holds all of them, by name and round. A length is that of the bystander's longest wait.
    """

    turns: tuple[tuple[Stall, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(rounds[0].name for rounds in self.turns)

    def __getitem__(self, name: str) -> Stall:
        ordered = sorted(self._rounds(name), key=lambda stall: stall.longest)
        return ordered[(len(ordered) - 1) // 2]

    def __iter__(self) -> Iterator[Stall]:
        return (self[name] for name in self.names)

    def __len__(self) -> int:
        return len(self.turns)

    def ratio(self, one: str, other: str) -> float:
        """How many times as long the longest wait is with `one` as with `other`: the median of the rounds."""
        pairs = zip(self._rounds(one), self._rounds(other), strict=True)
        return statistics.median(a.longest / max(b.longest, 1e-6) for a, b in pairs)

    def _rounds(self, name: str) -> tuple[Stall, ...]:
        if name not in self.names:
            raise KeyError(f"{name!r} was not watched; there are {', '.join(self.names)}")
        return self.turns[self.names.index(name)]

    @property
    def df(self) -> pd.DataFrame:
        """One row a work: how long another client waited and stood still; times in ms."""
        import pandas as pd

        rows = [
            {
                "work": stall.name,
                "longest_ms": 1000 * stall.longest,
                "stalls": len(stall.stalls),
                "stalled_share": stall.share,
                "median_ms": 1000 * stall.median,
                "during_ms": 1000 * stall.during,
                "slowest_ms": 1000 * stall.slowest.seconds if stall.slowest else math.nan,
                "slowest": stall.slowest.command if stall.slowest else "",
            }
            for stall in self
        ]
        return pd.DataFrame(rows).set_index("work")

    def __repr__(self) -> str:
        return text(_rows(self))

    def _repr_html_(self) -> str:
        return html(_rows(self))


def stalls(server: Any, work: Work, *, name: str = "") -> Stall:
    """Run `work(r)`, with a client of its own, while a bystander in another process sends PING after PING.

    `server` is a labkit.rig.server.Server, or anything else that has `url` and `client()`. Nothing is assumed
    of the work: it may fail (its exception is raised here, and the bystander has ended), and may kill, freeze
    or restart the server: then the bystander knocks every half millisecond until it is answered. Its client
    waits for replies without a limit of time.

    Meanwhile the server's slow log begins at 1 ms; then its settings are what they were. Use it on a server
    of your own. Raises redis.ConnectionError where that does not answer at the start.
    """
    name = name or getattr(work, "__name__", "work").replace("<lambda>", "work")
    return compare(server, {name: work})[name]


def compare(
    server: Any,
    works: Mapping[str, Work],
    *,
    setup: Work | Mapping[str, Work] | None = None,
    rounds: int = 1,
) -> Stalls:
    """As `stalls`, for several works that take turns, every other round in the reverse order.

    `setup(r)` runs before each turn, unwatched; a mapping gives single works one of their own.
    """
    if not works or rounds < 1:
        raise ValueError(f"works has {len(works)} entries and rounds is {rounds}; each must be at least 1")
    prepare = setup if isinstance(setup, Mapping) else dict.fromkeys(works, setup)
    if unknown := prepare.keys() - works.keys():
        raise ValueError(f"setup names {', '.join(sorted(unknown))}; there are {', '.join(works)}")
    order, turns = list(works), list[tuple[str, float, float, Slowest | None]]()
    with _noting(server) as slow_log, watching(server.url) as heard:
        for _ in range(rounds):
            for name in order:
                with server.client(socket_timeout=None) as r:
                    if (before := prepare.get(name)) is not None:
                        before(r)
                    turns.append((name, *_turn(r, works[name], slow_log)))
            order.reverse()
        waits = heard()
    found = {name: [_cut(turn, waits) for turn in turns if turn[0] == name] for name in works}
    return Stalls(tuple(map(tuple, found.values())))


def _turn(r: redis.Redis, work: Work, slow_log: _SlowLog) -> tuple[float, float, Slowest | None]:
    r.ping()  # its connection stands
    time.sleep(QUIET)
    last = slow_log.last()
    start = time.perf_counter()
    work(r)
    end = time.perf_counter()
    time.sleep(AFTER)
    return start, end, slow_log.slowest(last)


def _cut(turn: tuple[str, float, float, Slowest | None], waits: Sequence[Wait]) -> Stall:
    name, start, end, slowest = turn
    near = [wait for wait in waits if wait.at + wait.seconds > start - QUIET and wait.at < end + AFTER]
    return Stall(name, tuple(wait._replace(at=wait.at - start) for wait in near), end - start, slowest)


def _spells(waits: Sequence[Wait]) -> Iterator[tuple[float, float]]:
    begin = None
    for at, seconds, error in waits:
        begin = at if begin is None else begin
        if not error:
            yield begin, at + seconds
            begin = None
    if begin is not None:
        yield begin, waits[-1].at + waits[-1].seconds


class _SlowLog:
    """The server's own word; silent where the server is gone, or will not say."""

    def __init__(self, r: redis.Redis) -> None:
        self._r = r

    def last(self) -> int:
        """The number of its newest entry; -1 where it has none."""
        with contextlib.suppress(RedisError):
            return max((entry["id"] for entry in self._r.slowlog_get(1)), default=-1)
        return -1

    def slowest(self, last: int) -> Slowest | None:
        """The longest of the entries since the one of that number; None where it did not begin at 1 ms."""
        try:
            if self._r.config_get(FROM)[FROM] != str(MICROSECONDS):  # a new server, or CONFIG was refused
                return None
            since = [entry for entry in self._r.slowlog_get(HELD) if entry["id"] > last]
        except RedisError:
            return None
        found = [Slowest(_command(entry["command"]), entry["duration"] / 1e6) for entry in since]
        return max(found, key=lambda slow: slow.seconds, default=Slowest("", 0.0))


def _command(said: bytes | str) -> str:
    """The command's name and what follows, as far as it is short."""
    text = " ".join((said.decode(errors="replace") if isinstance(said, bytes) else said).split())
    return text if len(text) <= 30 else f"{text[:29]}…"


@contextlib.contextmanager
def _noting(server: Any) -> Iterator[_SlowLog]:
    """Let the slow log begin at 1 ms and hold 1,000 entries; afterwards it is set as it was."""
    wanted = {FROM: MICROSECONDS, "slowlog-max-len": HELD}
    with server.client(socket_timeout=1) as r:
        r.ping()
        before: dict[str, str] = {}
        with contextlib.suppress(RedisError):
            before = {name: r.config_get(name)[name] for name in wanted}
            for name, value in wanted.items():
                r.config_set(name, value)
        try:
            yield _SlowLog(r)
        finally:
            with contextlib.suppress(RedisError):
                for name, old in before.items():
                    r.config_set(name, old)


HEADS = ("", "longest wait", "stalls", "of the time", "work took", "slowest command, by the server")


def _cells(stall: Stall) -> tuple[str, ...]:
    longest, during = (human_time(seconds * 1e9) for seconds in (stall.longest, stall.during))
    slowest = "not said"
    if stall.slowest:
        command, seconds = stall.slowest
        slowest = f"{command} {human_time(seconds * 1e9)}" if command else "under 1 ms"
    return longest, str(len(stall.stalls)), f"{stall.share:.0%}", during, slowest


def _rows(found: Iterable[Stall]) -> list[tuple[str, ...]]:
    return [HEADS, *((stall.name, *_cells(stall)) for stall in found)]
