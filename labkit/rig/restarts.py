"""How long a server needs to come back, by what it has on disk: a snapshot, or the commands that led there.

    found = restart_times((10_000, 100_000))
    found.ratio("AOF, commands", "RDB")

A snapshot (RDB) is the data as such; a rewritten append-only file begins with one, unless
`aof-use-rdb-preamble no` makes it of commands; what was written since the last rewrite is commands always.
https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.rig.bench import human_time
from labkit.rig.server import Server
from labkit.rig.table import html, text

if TYPE_CHECKING:
    import pandas as pd
    import redis

__all__ = ["WAYS", "Restart", "Restarts", "restart_times"]

WAYS: dict[str, dict[str, Any]] = {
    "RDB": {},
    "AOF, rewritten": {"appendonly": True},
    "AOF, rewritten without preamble": {"appendonly": True, "aof-use-rdb-preamble": False},
    "AOF, commands": {"appendonly": True, "auto-aof-rewrite-percentage": 0},
}
"""What is on disk, and the settings that it takes. Only the last has never been rewritten."""

CHUNK = 1000

FILL = """
local size = tonumber(ARGV[3])
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local value = ''
  while #value < size do value = value .. redis.sha1hex(n .. value) end
  redis.call('SET', 'key:' .. n, string.sub(value, 1, size))
end"""
"""Keys first to last, each with a value of so many bytes that a snapshot cannot compress.

Into an append-only file go the SETs themselves."""


class Restart(NamedTuple):
    """A server with so many `keys` came back in `seconds` (several times) from `size` bytes on disk."""

    way: str
    keys: int
    size: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True, repr=False)
class Restarts:
    """Restarts by what was on disk and how much; `found[way, keys]` is one of them."""

    all: tuple[Restart, ...]

    def __getitem__(self, which: tuple[str, int]) -> Restart:
        for restart in self.all:
            if (restart.way, restart.keys) == which:
                return restart
        raise KeyError(
            f"{which!r} was not measured; there are {', '.join(self.ways)}, each with {self.sizes}"
        )

    @property
    def ways(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(restart.way for restart in self.all))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(restart.keys for restart in self.all))

    @property
    def series(self) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
        """Seconds by keys for each way: what labkit.show.plot.lines takes."""
        return {way: (self.sizes, tuple(self[way, keys].median for keys in self.sizes)) for way in self.ways}

    def ratio(self, one: str, other: str, keys: int | None = None) -> float:
        """How many times as long `one` takes as `other` with so many keys (default: the most).

        The median over the rounds, in each of which both were started one after the other.
        """
        keys = self.sizes[-1] if keys is None else keys
        pairs = zip(self[one, keys].seconds, self[other, keys].seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)

    @property
    def df(self) -> pd.DataFrame:
        """One row each: what is on disk, keys, bytes, and the median seconds of a restart."""
        import pandas as pd

        rows = [(*restart[:3], restart.median) for restart in self.all]
        return pd.DataFrame(rows, columns=["way", "keys", "bytes", "seconds"])

    def _rows(self) -> list[list[str]]:
        head = ["", *(f"{keys:,} keys" for keys in self.sizes), "bytes on disk"]
        return [head, *([way, *self._times(way), f"{self[way, self.sizes[-1]].size:,}"] for way in self.ways)]

    def _times(self, way: str) -> list[str]:
        return [human_time(self[way, keys].median * 1e9) for keys in self.sizes]

    def __repr__(self) -> str:
        return text(self._rows())

    def _repr_html_(self) -> str:
        return html(self._rows())


def restart_times(
    sizes: Sequence[int] = (1_000, 10_000, 100_000),
    *,
    ways: Sequence[str] = tuple(WAYS),
    rounds: int = 3,
    value: int = 100,
    writes: int = 1,
) -> Restarts:
    """How long servers with so many keys take from their start to their first answer.

    Each key has a value of so many bytes, and was written `writes` times: a log that is not rewritten has
    all of them. For each way and size one server is filled, killed once what is to
    be on disk is there, and started in turns with the others, `rounds` times. The files are in the operating
    system's cache: after a crash of the machine the disk's own speed comes on top.

    Raises ValueError for a way that there is none of, RuntimeError if a server is back without all its keys.
    """
    if unknown := [way for way in ways if way not in WAYS]:
        raise ValueError(f"ways has {unknown}; there are {', '.join(WAYS)}")
    if not ways or not sizes or min(*sizes, rounds, writes) < 1:
        raise ValueError(
            f"ways {ways}, sizes {sizes}, rounds {rounds}, writes {writes}: each must be at least 1"
        )
    taken: dict[tuple[str, int], list[float]] = {(way, keys): [] for keys in sizes for way in ways}
    with ExitStack() as stack:
        servers = {which: stack.enter_context(Server(**WAYS[which[0]])) for which in taken}
        on_disk = {which: _prepare(server, *which, value, writes) for which, server in servers.items()}
        for number in range(rounds):
            for which, server in list(servers.items())[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                server.start(timeout=600)
                taken[which].append(time.perf_counter() - start)
                _check(server, *which)
                server.kill()
    return Restarts(
        tuple(Restart(*which, on_disk[which], tuple(seconds)) for which, seconds in taken.items())
    )


def _prepare(server: Server, way: str, keys: int, value: int, writes: int) -> int:
    """Fill the server, let it write what it is to be started from, and kill it; bytes on disk."""
    with server.client(socket_timeout=600) as r:
        for first in [*range(1, keys + 1, CHUNK)] * writes:
            r.eval(FILL, 0, first, min(first + CHUNK - 1, keys), value)
        if way == "RDB":
            r.save()
        elif way != "AOF, commands":
            _rewrite(r)
        if way != "RDB":
            _await_log(r)
        folder = Path(r.config_get("dir")["dir"])
    server.kill()
    wanted = [folder / "dump.rdb"] if way == "RDB" else list((folder / "appendonlydir").iterdir())
    return sum(path.stat().st_size for path in wanted)


def _check(server: Server, way: str, keys: int) -> None:
    with server.client() as r:
        if (found := r.dbsize()) != keys:
            raise RuntimeError(f"{way}: {found:,} of {keys:,} keys came back")


def _await_log(r: redis.Redis) -> None:
    """Until the operating system has the whole log: a write is put off while an fsync is under way."""
    while r.info("persistence")["aof_buffer_length"]:
        time.sleep(0.005)


def _rewrite(r: redis.Redis) -> None:
    """BGREWRITEAOF, and wait for its end; the one that a new server begins with must have ended first."""
    busy = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
    before = r.info("persistence")["aof_rewrites"]
    r.bgrewriteaof()
    while (told := r.info("persistence"))["aof_rewrites"] == before or any(told[name] for name in busy):
        time.sleep(0.005)
