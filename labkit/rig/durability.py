"""What a crash takes: acknowledged writes, against what is there when the server is back.

    crash = crash_test("everysec")
    crash.acknowledged, crash.lost       # by SIGKILL of the server
    crash.at_risk                        # by a crash of the whole machine, as far as the server can say

Two kinds of crash, two answers. When the server's *process* is killed, what it has handed to the operating
system stays there: Redis writes to the append-only file before it replies, whatever `appendfsync` says, so
nothing is lost that was acknowledged. There is one exception: with "everysec", while an fsync of a slow disk
is still under way, Redis puts off the write (not the reply) for up to two seconds, and what it acknowledged
meanwhile may be lost. When the *machine* halts, what is not yet on disk is lost as well;
`appendfsync` says how much that may be. No program can crash its own machine to count it. But since 7.2 Redis
tells when a write is on disk (WAITAOF), and so how much was not yet there.

https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/ and
https://redis.io/docs/latest/commands/waitaof/
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.rig.bench import Sweep, human_time
from labkit.rig.bench import compare as _measured
from labkit.rig.connection import supports
from labkit.rig.server import Server
from labkit.rig.table import html, text
from labkit.rig.writer import key, writing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Crash", "Crashes", "Mark", "crash_test", "crash_tests", "fsync_cost", "throughput"]

POLICIES = ("always", "everysec", "no", None)
"""What `appendfsync` can be; None: no append-only file, but a snapshot (RDB) that is taken half-way."""


class Mark(NamedTuple):
    """A write that was followed to the disk: acknowledged `at` (s), and on disk `after` so many s more.

    `others` is how many later writes were acknowledged before this one was on disk. `after` is None if the
    server had not said so when it was killed.
    """

    at: float
    after: float | None
    others: int


@dataclass(frozen=True, repr=False)
class Crash:
    """A server was killed while it was written to, and started again.

    `acknowledged` writes had their OK, `kept` of them are there afterwards; `extra` are there that were under
    way and had none. `lost_seconds` is how long the oldest lost one had been acknowledged. `marks` are writes
    of which the server was asked when they were on disk; None where it cannot tell (before 7.2, and without
    an append-only file). `seconds` were spent on writing, `restart` on coming back.
    """

    fsync: str | None
    acknowledged: int
    kept: int
    extra: int
    seconds: float
    lost_seconds: float
    restart: float
    marks: tuple[Mark, ...] | None = None
    clients: int = 1

    @property
    def name(self) -> str:
        return f"appendfsync {self.fsync}" if self.fsync else "RDB only"

    @property
    def lost(self) -> int:
        """Acknowledged writes that are gone."""
        return self.acknowledged - self.kept

    @property
    def per_second(self) -> float:
        """Acknowledged writes a second."""
        return self.acknowledged / self.seconds

    @property
    def at_risk(self) -> int | None:
        """The most writes that were acknowledged and not yet on disk at one moment, by the server's word.

        A crash of the machine may take them; how many it does take is up to the operating system and the
        disk, and cannot be counted here. One write every 50 ms is followed, so it may be a few more. With
        snapshots: the writes since the last one, as with SIGKILL. None where the server cannot tell.
        """
        if self.fsync is None:
            return self.lost
        return None if self.marks is None else max((mark.others for mark in self.marks), default=0)

    @property
    def at_risk_seconds(self) -> float | None:
        """The longest time from a write's acknowledgement until it was on disk, or until the kill."""
        if self.fsync is None:
            return self.lost_seconds
        return None if self.marks is None else max((self._age(mark) for mark in self.marks), default=0.0)

    def _age(self, mark: Mark) -> float:
        return self.seconds - mark.at if mark.after is None else mark.after

    @property
    def df(self) -> pd.DataFrame:
        """One row: all of the figures; times in s."""
        import pandas as pd

        return pd.DataFrame([_row(self)]).set_index("persistence")

    def __repr__(self) -> str:
        _, written, rate, lost, risk, restart = _cells(self)
        return (
            f"{self.name}: {written} writes acknowledged, {rate}; lost by SIGKILL: {lost}; "
            f"at risk if the machine crashes: {risk}; back after {restart}"
        )

    def _repr_html_(self) -> str:
        return html([HEADS, _cells(self)])


@dataclass(frozen=True, repr=False)
class Crashes:
    """Crash tests of several policies that took turns; `crashes["always"]` are those of that one."""

    tests: tuple[Crash, ...]

    def __getitem__(self, fsync: str | None) -> tuple[Crash, ...]:
        found = tuple(crash for crash in self.tests if crash.fsync == fsync)
        if not found:
            tested = ", ".join(repr(fsync) for fsync in self.policies)
            raise KeyError(f"{fsync!r} was not tested; there are {tested}")
        return found

    def __len__(self) -> int:
        return len(self.tests)

    @property
    def policies(self) -> tuple[str | None, ...]:
        return tuple(dict.fromkeys(crash.fsync for crash in self.tests))

    def lost(self, fsync: str | None) -> int:
        """Acknowledged writes that all tests of this policy lost together."""
        return sum(crash.lost for crash in self[fsync])

    def per_second(self, fsync: str | None) -> float:
        """Acknowledged writes a second: the median of its tests."""
        return statistics.median(crash.per_second for crash in self[fsync])

    def ratio(self, one: str | None, other: str | None) -> float:
        """How many times as many writes a second `one` takes as `other`: the median over the rounds."""
        pairs = zip(self[one], self[other], strict=True)
        return statistics.median(a.per_second / b.per_second for a, b in pairs)

    @property
    def df(self) -> pd.DataFrame:
        """One row a test."""
        import pandas as pd

        return pd.DataFrame([_row(crash) for crash in self.tests]).set_index("persistence")

    def _rows(self) -> list[tuple[str, ...]]:
        return [HEADS, *(_summary(self[fsync]) for fsync in self.policies)]

    def __repr__(self) -> str:
        return text(self._rows())

    def _repr_html_(self) -> str:
        return html(self._rows())


def crash_test(
    fsync: str | None = "everysec", *, seconds: float = 0.6, seed: int = 0, clients: int = 1, **settings: Any
) -> Crash:
    """Kill a server of its own (SIGKILL) while it is written to, start it again, and look what is there.

    A process writes numbered keys, with each of `clients` connections always waiting for one OK, and notes
    each OK. `fsync` is the server's `appendfsync`; None: no append-only file, but a snapshot, taken half-way.
    The kill comes at a moment chosen by `seed`, after half to all of `seconds`. `settings` as for
    labkit.rig.server.Server. Raises ValueError for what is none of these policies.
    """
    if fsync not in POLICIES:
        raise ValueError(f'fsync is {fsync!r}; it must be "always", "everysec", "no" or None (RDB only)')
    if not 0.05 <= seconds <= 60 or not 1 <= clients <= 500:
        raise ValueError(f"seconds is {seconds} and clients {clients}; 0.05 to 60, and 1 to 500, are allowed")
    log = {"appendonly": True, "appendfsync": fsync} if fsync else {}
    with Server(**{**log, **settings}) as server:
        with server.client() as r:
            told = fsync is not None and supports(r, "WAITAOF")
        with writing(server.url, clients, told) as writer:
            chance = random.Random(f"{seed} {fsync}")
            _let_write(server, seconds * chance.uniform(0.5, 1), snapshot=fsync is None)
            server.kill()
            killed = time.perf_counter()
            times, marks = writer.result()
        start = time.perf_counter()
        server.start()
        restart = time.perf_counter() - start
        there = _there(server, len(times) + clients)
    begin, lost = times[0], [at for at, kept in zip(times, there, strict=False) if not kept]
    return Crash(
        fsync,
        acknowledged=len(times),
        kept=sum(there[: len(times)]),
        extra=sum(there[len(times) :]),
        seconds=killed - begin,
        lost_seconds=killed - lost[0] if lost else 0.0,
        restart=restart,
        marks=tuple(Mark(at - begin, after, others) for at, after, others in marks) if told else None,
        clients=clients,
    )


def crash_tests(
    policies: Sequence[str | None] = POLICIES, *, rounds: int = 1, seed: int = 0, **options: Any
) -> Crashes:
    """A crash test for each policy in turns, every other round in the reverse order; `options` as for one."""
    if not policies or rounds < 1:
        raise ValueError(f"policies are {policies!r} and rounds {rounds}; at least one of each is needed")
    found = []
    for number in range(rounds):
        order = policies if number % 2 == 0 else tuple(reversed(policies))
        found += [crash_test(fsync, seed=seed + number, **options) for fsync in order]
    return Crashes(tuple(sorted(found, key=lambda crash: list(policies).index(crash.fsync))))


def throughput(
    policies: Sequence[str | None] = POLICIES, *, clients: int = 1, n: int = 20, rounds: int = 10
) -> Sweep:
    """Writes under each policy, on servers of their own that take turns: a labkit.rig.bench.Sweep.

    One call is one write of each of `clients` connections, all under way at once: `ops` counts them. "RDB
    only" is a server between two snapshots: none is taken meanwhile, so nothing goes to disk.
    """
    with ExitStack() as stack:
        calls: dict[str | None, Callable[[], object]] = {}
        for fsync in policies:
            log: dict[str, Any] = {"appendonly": True, "appendfsync": fsync} if fsync else {}
            r = stack.enter_context(stack.enter_context(Server(**log)).client())
            pool = r.connection_pool
            calls[fsync] = _writes([pool.get_connection() for _ in range(clients)])
        return _measured(
            {fsync or "RDB only": call for fsync, call in calls.items()},
            n,
            rounds,
            ops=clients,
            name="appendfsync",
        )


def _writes(connections: Sequence[Any]) -> Callable[[], object]:
    def once() -> None:
        for connection in connections:
            connection.send_command("SET", "key", "value")
        for connection in connections:
            connection.read_response()

    return once


def fsync_cost(n: int = 20) -> float:
    """Seconds that fdatasync of a 100-byte append takes where servers keep their files: the median of `n`.

    Where that is a RAM disk, or a disk that lies, it takes microseconds: there "always" costs nothing, and
    promises nothing.
    """
    with Server() as server:
        path = Path(server.config["dir"]) / "probe"
        with path.open("wb", buffering=0) as file:
            return statistics.median(_synced(file) for _ in range(n))


def _synced(file: Any) -> float:
    file.write(b"x" * 100)
    start = time.perf_counter()
    os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())
    return time.perf_counter() - start


def _let_write(server: Server, seconds: float, snapshot: bool) -> None:
    time.sleep(seconds / 2)
    if snapshot:
        with server.client() as r:
            r.bgsave()
            while r.info("persistence")["rdb_bgsave_in_progress"]:
                time.sleep(0.005)
    time.sleep(seconds / 2)


def _there(server: Server, last: int) -> list[bool]:
    """For each number up to `last`, whether its write is there."""
    found: list[str | None] = []
    with server.client() as r:
        for first in range(1, last + 1, 1000):
            found += r.mget([key(number) for number in range(first, min(first + 1000, last + 1))])
    return [value == str(number) for number, value in enumerate(found, 1)]


# Tables

HEADS = ("", "acknowledged", "writes/s", "lost by SIGKILL", "at risk if the machine crashes", "back after")


def _row(crash: Crash) -> dict[str, Any]:
    names = ("clients", "acknowledged", "per_second", "kept", "extra", "lost", "lost_seconds", "at_risk")
    return {
        "persistence": crash.name,
        **{name: getattr(crash, name) for name in (*names, "at_risk_seconds", "seconds", "restart")},
    }


def _cells(crash: Crash) -> tuple[str, ...]:
    return _summary([crash])


def _summary(tests: Sequence[Crash]) -> tuple[str, ...]:
    """One row for tests of one policy: sums of writes, the median rate, the worst of what was at risk."""
    lost, written = sum(test.lost for test in tests), sum(test.acknowledged for test in tests)
    rate = statistics.median(test.per_second for test in tests)
    risks = [(test.at_risk, test.at_risk_seconds or 0.0) for test in tests if test.at_risk is not None]
    return (
        tests[0].name,
        f"{written:,}",
        f"{rate:,.0f}/s",
        _of(lost, max(test.lost_seconds for test in tests)),
        _of(*max(risks)) if risks else "not told",
        human_time(statistics.median(test.restart for test in tests) * 1e9),
    )


def _of(writes: int, seconds: float) -> str:
    return f"{writes:,} ({human_time(seconds * 1e9)})" if writes else "0"
