"""A cache under traffic: how often it hits, what the database has to bear, and how much of it is stale.

    def make(r, store):
        return CacheAside(r, store.load, "sim", ttl=0.3)

    found = simulate(make, seconds=1, size=100, updates=50, strategy="write, then delete")
    found                     # 2,000 reads: 74 % hits, 519 loads/s, 6 % stale
    found.df                  # a row for each moment

Nothing is imitated but the database: threads read real keys of a real server that evicts and expires them, in
real time. So the numbers are measured, and differ a little from run to run; orders and bounds do not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import OutOfMemoryError

from labkit.rig.server import Server
from labkit.rig.traffic import zipf

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STRATEGIES", "Read", "Simulation", "Store", "human_share", "simulate"]


class Read(NamedTuple):
    """One read: when it began (s), whether it was answered without the database, and whether it was stale.

    Stale is what is older than a write that was over, cache and all, before the read began.
    """

    at: float
    hit: bool
    stale: bool


@dataclass(frozen=True, repr=False)
class Simulation:
    """What came of the traffic. Times are in seconds since it began.

    `rate` is how many reads a second were wanted. `loads` and `writes` are when the database was read and
    written, `entries` how many entries the cache held in the end, `evicted` how many it dropped for others.
    """

    seconds: float
    rate: float
    reads: tuple[Read, ...]
    loads: tuple[float, ...]
    writes: tuple[float, ...]
    entries: int
    evicted: int
    bins: int = 24

    def __repr__(self) -> str:
        return (
            f"{len(self.reads):,} reads: {100 * self.hit_ratio:.0f} % hits, "
            f"{self.loads_per_second:,.0f} loads/s, {human_share(self.stale_ratio)} stale"
        )

    def _repr_html_(self) -> str:
        cells = {
            "reads": f"{len(self.reads):,}",
            "hits": f"{100 * self.hit_ratio:.0f} %",
            "database loads": f"{len(self.loads):,}",
            "writes": f"{len(self.writes):,}",
            "stale reads": f"{self.stale:,}",
            "entries held": f"{self.entries:,}",
            "evicted": f"{self.evicted:,}",
        }
        head = "".join(f"<th>{title}</th>" for title in cells)
        body = "".join(f"<td>{cell}</td>" for cell in cells.values())
        return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody></table>"

    @property
    def hit_ratio(self) -> float:
        """The share of reads that were answered without the database."""
        return sum(read.hit for read in self.reads) / len(self.reads) if self.reads else 0.0

    @property
    def loads_per_second(self) -> float:
        """How often the database was read, in a second."""
        return len(self.loads) / self.seconds

    @property
    def stale(self) -> int:
        """How many reads were stale."""
        return sum(read.stale for read in self.reads)

    @property
    def stale_ratio(self) -> float:
        """The share of reads that were stale."""
        return self.stale / len(self.reads) if self.reads else 0.0

    @property
    def df(self) -> pd.DataFrame:
        """One row for each of `bins` equal spans of time: `time` is its middle (s), ratios are from 0 to 1.

        In a span without reads there are no ratios (NaN).
        """
        import pandas as pd

        span = self.seconds / self.bins
        frame = pd.DataFrame({"time": [(n + 0.5) * span for n in range(self.bins)]})
        for name, times in {
            "reads": [read.at for read in self.reads],
            "hits": [read.at for read in self.reads if read.hit],
            "stale": [read.at for read in self.reads if read.stale],
            "loads": self.loads,
        }.items():
            numbers = [min(int(at / span), self.bins - 1) for at in times]
            frame[name] = [numbers.count(n) for n in range(self.bins)]
        frame["hit_ratio"] = frame.hits / frame.reads
        frame["stale_ratio"] = frame.stale / frame.reads
        frame["loads_per_second"] = frame.loads / span
        return frame


def human_share(share: float) -> str:
    """In per cent; what is not 0 does not look like 0."""
    return f"{100 * share:.0f} %" if share == 0 or share > 0.0995 else f"{100 * share:.1g} %"


class Store:
    """A database in this process: rows that have a version, and are slow to come.

    `load` takes what it finds and then `delay` seconds on the way back; `save` writes a new version at once.
    Any id from 1 has a row, of about `size` bytes.
    """

    def __init__(self, delay: float = 0.0, size: int = 4000) -> None:
        self.delay = delay
        self._page = "x" * size
        self._versions: dict[int, int] = {}
        self._mutex = threading.Lock()

    def load(self, id: int) -> dict[str, Any]:
        """The row as it is now."""
        row = {"id": id, "version": self._versions.get(id, 1), "page": self._page}
        time.sleep(self.delay)
        return row

    def load_many(self, ids: Any) -> dict[int, dict[str, Any]]:
        """Several rows in one query."""
        rows = {id: {"id": id, "version": self._versions.get(id, 1), "page": self._page} for id in ids}
        time.sleep(self.delay)
        return rows

    def save(self, id: int, **changes: Any) -> dict[str, Any]:
        """Raise the version; the row."""
        with self._mutex:
            self._versions[id] = self._versions.get(id, 1) + 1
            return {"id": id, "version": self._versions[id], "page": self._page, **changes}


def _none(cache: Any, store: Any, id: int) -> None:
    store.save(id)


def _delete_then_write(cache: Any, store: Any, id: int) -> None:
    cache.r.delete(cache.key(id))
    time.sleep(store.delay)  # a write takes its time too
    store.save(id)


def _write_then_delete(cache: Any, store: Any, id: int) -> None:
    store.save(id)
    cache.r.delete(cache.key(id))


def _write_through(cache: Any, store: Any, id: int) -> None:
    cache.save(id)


def _write_then_invalidate(cache: Any, store: Any, id: int) -> None:
    store.save(id)
    cache.invalidate(id)


Strategy = Callable[[Any, Any, int], None]

STRATEGIES: dict[str, Strategy] = {
    "none (wait for the TTL)": _none,
    "delete, then write": _delete_then_write,
    "write, then delete": _write_then_delete,
    "write, then invalidate (lease)": _write_then_invalidate,
    "write through, with versions": _write_through,
}
"""Named ways to change a row that may be cached: `change(cache, store, id)`."""

WRITERS = 4
"""Threads that change rows."""


def simulate(
    make: Callable[[Any, Any], Any],
    *,
    seconds: float = 1.0,
    rate: float = 2000,
    keys: int = 300,
    skew: float = 1.0,
    size: int | None = None,
    updates: float = 0,
    strategy: str | Strategy = "write, then invalidate (lease)",
    store: Any = None,
    warm: bool = False,
    readers: int = 16,
    policy: str = "allkeys-lfu",
    seed: int = 3,
    server: Server | None = None,
) -> Simulation:
    """Let `readers` threads read for `seconds`, `rate` times a second in all, with `updates` a second beside.

    `make(r, store)` gives the cache, which has `get(id)`, and for the strategies `invalidate(id)`, `key(id)`
    and `r`. Which of the `keys` ids is wanted follows Zipf's law with that `skew` (0: all alike), the same in
    each run; updates too. A `strategy` is one of STRATEGIES by name, or a function like them. `store` has
    `load(id)` and `save(id, **changes)`, of rows with a "version"; by default it is a Store that takes 5 ms.
    With `warm`, all entries were loaded at one moment just before. Without `server`, one is started; one that
    is given is emptied, before and after.

    `size` is about how many entries the server's memory has room for (25 or more; None: for all), `policy` is
    what it drops then. Within a second that is not "allkeys-lru": Redis's clock of last uses ticks once a
    second, and entries would be dropped at random.

    Reads that a slow machine does not get to in time are left out: the run takes no longer. What a thread
    raises ends it, and is raised here (but for OutOfMemoryError: a write of the cache's that found no room
    is a miss). ValueError for settings that make no sense.
    """
    _check(seconds=(seconds, 0.01), rate=(rate, 1), keys=(keys, 1), readers=(readers, 1), size=(size, 1))
    _check(updates=(updates, 0), skew=(skew, 0))
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; there are {', '.join(map(repr, STRATEGIES))}")
    change = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    wanted = zipf(round(seconds * rate), keys, skew, seed)
    changed = zipf(round(seconds * updates), keys, skew, seed + 1)
    with contextlib.ExitStack() as stack:
        r = stack.enter_context((server or stack.enter_context(Server())).client())
        for name, setting in {"maxmemory": 0, "maxmemory-policy": policy}.items():
            stack.callback(r.config_set, name, r.config_get(name)[name])
            r.config_set(name, setting)
        stack.callback(_empty, r)
        _empty(r)
        run = _Run(make, Store(0.005) if store is None else store, r, seconds, rate, size)
        run.prepare(keys if warm else 0, connections=readers + WRITERS)
        write = partial(run.change, change)
        return run.go([(run.read, wanted, rate, readers), (write, changed, updates, WRITERS)])


def _check(**least: tuple[float | None, float]) -> None:
    for name, (value, bound) in least.items():
        if value is not None and not value >= bound:
            raise ValueError(f"{name} is {value!r}; it must be at least {bound:g}")


def _empty(r: Any) -> None:
    """Delete all keys of a throw-away server."""
    if keys := list(r.scan_iter(count=1000)):
        r.delete(*keys)


class _Run:
    """One simulation. To the cache it is the store: so it knows what was loaded, and how new that is."""

    def __init__(
        self,
        make: Callable[[Any, Any], Any],
        store: Any,
        r: Any,
        seconds: float,
        rate: float,
        size: int | None,
    ) -> None:
        self.store, self.r, self.seconds, self.rate, self.size = store, r, seconds, rate, size
        self.reads: list[Read] = []
        self.loads: list[float] = []
        self.writes: list[float] = []
        self.settled: dict[int, int] = {}
        self.errors: list[BaseException] = []
        self.over = threading.Event()
        self._entry = self._limit = self._dropped = self._loading = 0
        self._began, self._mutex, self._mine = time.perf_counter(), threading.Lock(), threading.local()
        self.cache = make(r, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def now(self) -> float:
        """Seconds since the traffic began."""
        return time.perf_counter() - self._began

    def load(self, id: int) -> Any:
        self._mine.asked = True
        self.loads.append(self.now())
        with self._mutex:
            self._loading += 1
        try:
            return self.store.load(id)
        finally:
            with self._mutex:
                self._loading -= 1

    def save(self, id: int, **changes: Any) -> Any:
        row = self.store.save(id, **changes)
        self.writes.append(self.now())
        self._mine.version = row["version"]
        return row

    def read(self, id: int) -> None:
        """Read it from the cache, and note how that went."""
        at, least, self._mine.asked = self.now(), self.settled.get(id, 0), False
        try:
            row = self.cache.get(id)
        except OutOfMemoryError:  # buffers took the room of all entries: this one was not to be kept, either
            self.reads.append(Read(at, False, False))
            self._fit()
        else:
            self.reads.append(Read(at, not self._mine.asked, row["version"] < least))

    def change(self, strategy: Strategy, id: int) -> None:
        """Change the row; from then on, whoever reads an older one reads a stale one."""
        self._mine.version = 0  # it may write nothing
        try:
            strategy(self.cache, self, id)
        except OutOfMemoryError:  # all entries were dropped before: an old one is not among them
            self._fit()
        with self._mutex:
            self.settled[id] = max(self._mine.version, self.settled.get(id, 0))

    def prepare(self, warm: int, connections: int) -> None:
        """Open the connections, and load the first `warm` entries at one moment; limit the memory."""
        pool = getattr(self.cache, "r", self.r).connection_pool
        for connection in [pool.get_connection() for _ in range(connections)]:
            pool.release(connection)
        with _at_once(self.store):
            self._entry = self._entry_size() if self.size else 0
            if warm and hasattr(self.cache, "get_many"):
                self.cache.get_many(range(1, warm + 1))
            else:
                for id in range(1, warm + 1):
                    self.cache.get(id)
        self._evicted = self._dropped = self.r.info("stats")["evicted_keys"]
        if self.size:
            self._fit()

    def _entry_size(self) -> int:
        """How many bytes an entry takes in the server's memory, its key and TTL with it."""
        for _ in range(20):  # it may have expired again
            self.cache.get(1)
            if size := self.r.memory_usage(key := self.cache.key(1)):
                self.r.delete(key)
                return int(size) + 40
        raise ValueError("the entries live too short for a size to mean anything")

    def _fit(self) -> None:
        """Correct the server's memory towards room for as many entries as wanted, whatever else it holds.

        What a lease holds for a load that is under way is no entry. Buffers of clients come and go: so it is
        raised only where entries were dropped though there are too few, and by all of it where none is left.
        """
        held, memory, stats = (
            self.r.pipeline(transaction=False).dbsize().info("memory").info("stats").execute()
        )
        missing = (self.size or 0) - held + self._loading
        if not self._limit or missing < 0 or not held:
            self._limit = memory["used_memory"] + missing * self._entry
        elif stats["evicted_keys"] > self._dropped:
            self._limit += missing * self._entry // 2
        self._dropped = stats["evicted_keys"]
        self.r.config_set("maxmemory", max(self._limit, 1))

    def go(self, work: Sequence[tuple[Callable[[int], None], Sequence[int], float, int]]) -> Simulation:
        """Let so many threads do each kind of work, so many times a second; what came of it."""
        threads = [threading.Thread(target=self._keep_room, daemon=True)]
        for act, ids, rate, count in work:
            todo = enumerate(ids)
            serve = partial(self._serve, act, todo, rate)
            threads += [threading.Thread(target=serve, daemon=True) for _ in range(count if ids else 0)]
        self.loads.clear()
        self._began = time.perf_counter()
        for thread in threads:
            thread.start()
        try:
            for thread in threads[1:]:
                thread.join()
        finally:
            self.over.set()
            for thread in threads:
                thread.join()
        if self.errors:
            raise self.errors[0]
        return self._result()

    def _serve(self, act: Callable[[int], None], todo: Iterator[tuple[int, int]], rate: float) -> None:
        """Take the next id when its time has come, and act on it; one of several threads."""
        try:
            for number, id in todo:
                late = self.over.wait(number / rate - self.now())
                if late or self.now() > self.seconds:
                    return
                act(id)
        except BaseException as error:
            self.errors.append(error)
            self.over.set()

    def _keep_room(self) -> None:
        try:
            while self.size and not self.over.wait(0.01):
                self._fit()
        except BaseException as error:
            self.errors.append(error)
            self.over.set()

    def _result(self) -> Simulation:
        evicted = self.r.info("stats")["evicted_keys"] - self._evicted
        loads, writes = (
            tuple(sorted(at for at in times if at <= self.seconds)) for times in (self.loads, self.writes)
        )
        reads = tuple(sorted(self.reads))
        return Simulation(self.seconds, self.rate, reads, loads, writes, self.r.dbsize(), evicted)


@contextlib.contextmanager
def _at_once(store: Any) -> Iterator[None]:
    """Meanwhile the store takes no time, if it is one whose `delay` can be set."""
    delay = getattr(store, "delay", None)
    if delay is None:
        yield
        return
    store.delay = 0
    try:
        yield
    finally:
        store.delay = delay
