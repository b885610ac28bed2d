"""Cache-aside traffic on a real server that runs out of memory: who is dropped, and how often it still hits.

    pages = zipf(20_000, keys=3000)
    with Server() as server:
        replay(server, pages, policy="allkeys-lru", memory=500_000)     # allkeys-lru in 500 kB: 71 % hits, …
        found = compare(server, {"pages": pages, "and a scan": polluted(pages)},
                        policies=["allkeys-lru", "allkeys-lfu"], memories=[250_000, 500_000, 1_000_000])
    found.df

A request is GET and, after a miss, SET: one script for each, for Redis makes room before a command and not
within a script. The server samples, and drops, by itself; only its clock is helped along. Redis notes the
last use of a key in whole seconds. A lab sends in a second what a small application sends in an hour: all
would have been used "now", and LRU would drop at random. So with each request `tick` seconds pass: where the
policy goes by that clock, the script also says for how long the key has not been used (RESTORE … IDLETIME).
With `tick=None` nothing is helped: GET and SET, in real time.

LFU counts uses, which needs no help; but its counters fade by one in `lfu-decay-time` minutes, and no replay
here lasts so long. A popularity that changes is what this does not show.

Source: redis.io, "Key eviction".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from labkit.rig.bar import bar
from labkit.rig.ideal import Key, ideal
from labkit.rig.server import Server
from labkit.rig.table import html

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["POLICIES", "Cache", "Eviction", "Evictions", "compare", "policies", "polluted", "replay"]

ORDERS = ("lru", "lfu", "random", "lrm")
POLICIES = (
    *(f"allkeys-{by}" for by in ORDERS),
    "volatile-ttl",
    *(f"volatile-{by}" for by in ORDERS),
    "noeviction",
)

HORIZON = 8_000_000
"""Seconds: so long ago is the beginning of each cache. Redis's clock of last uses goes round in 194 days."""

BATCH = 100
"""Requests in one pipeline. They reach the server one by one; it has little to keep of them at a time."""

READ = """-- KEYS: the key. ARGV: bytes of the value, then options of SET.
if redis.call('GET', KEYS[1]) then return 1 end
local reply = redis.pcall('SET', KEYS[1], string.rep('x', ARGV[1]), unpack(ARGV, 2))
return reply.err and 2 or 0"""

READ_AT = """-- KEYS: the key. ARGV: when it ends (ms, 0: never), its value (DUMP), how long ago this is (s);
-- and whether a read is a use. RESTORE is the one command that says when a key was last used.
local hit = redis.call('EXISTS', KEYS[1])
if hit == 1 and ARGV[4] == '0' then return 1 end
local ends = hit == 1 and math.max(redis.call('PEXPIRETIME', KEYS[1]), 0) or ARGV[1]
local reply = redis.pcall('RESTORE', KEYS[1], ends, ARGV[2], 'REPLACE', 'ABSTTL', 'IDLETIME', ARGV[3])
return hit == 0 and reply.err and 2 or hit"""


def polluted(keys: Sequence[Key], share: float = 0.3, runs: int = 1) -> list[Key]:
    """The same traffic with a scan in between: keys that nobody asks for again make up `share` of all.

    They come in so many `runs`, evenly spread: 1 is a nightly job, in the middle; many are a trickle.
    ValueError where `share` is not from 0 to below 1, or `runs` is less than 1.
    """
    if not 0 <= share < 1 or runs < 1:
        raise ValueError(f"share is {share!r}, runs {runs!r}; they must be 0 to below 1, and 1 or more")
    count = round(len(keys) * share / (1 - share))
    mixed: list[Key] = []
    for n in range(runs + 1):
        first, last = (round(len(keys) * (n + part) / runs) for part in (-0.5, 0.5))
        mixed += keys[max(first, 0) : last]
        if n < runs:
            mixed += [f"scan:{i}" for i in range(count * n // runs, count * (n + 1) // runs)]
    return mixed


@dataclass(frozen=True, repr=False)
class Eviction:
    """What came of the traffic under one policy, and what was in memory in the end.

    `memory` is in bytes, and above what the empty server needs. `requests` and `hits` are those for pages;
    `scanned` were for other keys. `refused` counts writes that the server did not take, `evicted` keys that
    it dropped. `resident` are the ranks of the pages that are there, `others` how many other keys.
    `history` has for each span of time how many requests it had, how many of them for pages, and how many of
    these hit.
    """

    policy: str
    memory: int
    requests: int
    hits: int
    scanned: int
    refused: int
    evicted: int
    resident: tuple[int, ...]
    others: int
    history: tuple[tuple[int, int, int], ...]

    def __repr__(self) -> str:
        said = f"{self.policy} in {human_bytes(self.memory)}: {100 * self.hit_ratio:.0f} % hits"
        refused = f", {self.refused:,} writes refused" if self.refused else ""
        return f"{said}, {self.entries:,} keys, {self.evicted:,} evicted{refused}"

    def _repr_html_(self) -> str:
        cells = {
            "policy": self.policy,
            "memory for data": human_bytes(self.memory),
            "hits": f"{100 * self.hit_ratio:.1f} %",
            "keys in the end": f"{self.entries:,}",
            "evicted": f"{self.evicted:,}",
            "writes refused": f"{self.refused:,}",
        }
        return html([list(cells), list(cells.values())])

    @property
    def hit_ratio(self) -> float:
        """The share of requests for pages that hit, from 0 to 1; those of the cold start, too."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def settled(self) -> float:
        """The hit ratio of the second half: without the cold start."""
        late = self.history[len(self.history) // 2 :]
        asked = sum(pages for _, pages, _ in late)
        return sum(hits for _, _, hits in late) / asked if asked else 0.0

    @property
    def entries(self) -> int:
        """How many keys there were in the end."""
        return len(self.resident) + self.others

    @property
    def df(self) -> pd.DataFrame:
        """A row for each span: `at` (requests until its end), `hit_ratio` of the pages (NaN: none), `scan`.

        `scan` is the share of its requests that were for other keys.
        """
        import pandas as pd

        frame = pd.DataFrame(self.history, columns=["requests", "pages", "hits"])
        frame["at"] = frame.requests.cumsum()
        frame["hit_ratio"] = frame.hits / frame.pages.where(frame.pages > 0)
        frame["scan"] = 1 - frame.pages / frame.requests
        return frame[["at", "hit_ratio", "scan"]]


@dataclass(frozen=True, repr=False)
class Evictions:
    """Replays side by side: of each traffic, by each policy, in each memory.

    `bounds` are what simulations give that hold as many keys: (traffic, rule, memory, hit ratio).
    """

    replays: Mapping[tuple[str, str, int], Eviction]
    bounds: tuple[tuple[str, str, int, float], ...] = ()

    def __getitem__(self, which: tuple[str, int] | tuple[str, str, int]) -> Eviction:
        """By (policy, memory), where there is one traffic, or by (traffic, policy, memory)."""
        traffics = list(dict.fromkeys(traffic for traffic, _, _ in self.replays))
        if len(which) == 2:
            if len(traffics) > 1:
                raise KeyError(f"of which traffic? There are {', '.join(map(repr, traffics))}")
            which = (traffics[0], *which)
        return self.replays[which]

    def __repr__(self) -> str:
        return f"{len(self.replays)} replays: " + "; ".join(map(repr, self.replays.values()))

    def _repr_html_(self) -> str:
        rows = [
            [traffic, policy, human_bytes(memory), f"{found.entries:,}", f"{100 * found.hit_ratio:.1f} %"]
            for (traffic, policy, memory), found in self.replays.items()
        ]
        bounds = [
            [traffic, rule, human_bytes(memory), "", f"{100 * ratio:.1f} %"]
            for traffic, rule, memory, ratio in self.bounds
        ]
        return html([["traffic", "policy", "memory for data", "keys", "hits"], *rows, *bounds])

    def ratios(self, traffic: str | None = None) -> dict[str, dict[int, float]]:
        """For each policy, and then for each bound, the hit ratio by memory (bytes); of the first traffic."""
        wanted = next(iter(self.replays))[0] if traffic is None else traffic
        found: dict[str, dict[int, float]] = {}
        measured = [
            (name, policy, memory, one.hit_ratio) for (name, policy, memory), one in self.replays.items()
        ]
        for name, policy, memory, ratio in (*measured, *self.bounds):
            if name == wanted:
                found.setdefault(policy, {})[memory] = ratio
        return found

    @property
    def df(self) -> pd.DataFrame:
        """A row for each replay, then one for each bound; a bound has no `entries`, `evicted`, `refused`."""
        import pandas as pd

        rows = [
            (*which, found.hit_ratio, found.settled, found.entries, found.evicted, found.refused)
            for which, found in self.replays.items()
        ]
        rows += [(*bound, None, None, None, None) for bound in self.bounds]  # type: ignore[misc]
        columns = ["traffic", "policy", "memory", "hit_ratio", "settled", "entries", "evicted", "refused"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype(dict.fromkeys(["entries", "evicted", "refused"], "Int64"))


def human_bytes(count: float) -> str:
    """To three figures, in units of 1,000 bytes: 850 B, 250 kB, 1.5 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} B"


def policies(server: Server) -> tuple[str, ...]:
    """Those of POLICIES that this server knows: allkeys-lrm and volatile-lrm came with Redis 8.6."""
    found = []
    with server.client() as r:
        before = r.config_get("maxmemory-policy")["maxmemory-policy"]
        for policy in POLICIES:
            try:
                r.config_set("maxmemory-policy", policy)
            except ResponseError:
                continue
            found.append(policy)
        r.config_set("maxmemory-policy", before)
    return tuple(found)


class Cache:
    """A server as a cache of `memory` bytes, empty at first; a context manager that empties it again.

    `memory` is what there is for data: `maxmemory` is set so far above what the server needs when it is
    empty, with the connection that asks. Each value has `value_bytes`. `ttl` is how long a key lasts (s), or
    says it for a key; None: for ever. On the helped clock nothing expires, and TTLs only say who is next.
    `samples` is maxmemory-samples. See the module for `tick`.

    The server's keys are all removed, before and after, and its settings put back after: give one that is to
    be thrown away. ValueError for settings that make no sense, or a policy that the server does not have.
    """

    def __init__(
        self,
        server: Server,
        *,
        policy: str,
        memory: int,
        value_bytes: int = 1000,
        ttl: float | Callable[[Key], float | None] | None = None,
        tick: float | None = 1.0,
        samples: int = 5,
    ) -> None:
        for name, value, least in (
            ("memory", memory, 50_000),
            ("value_bytes", value_bytes, 1),
            ("samples", samples, 1),
        ):
            if not value >= least:
                raise ValueError(f"{name} is {value!r}; it must be at least {least:,}")
        if tick is not None and not tick > 0:
            raise ValueError(f"tick is {tick!r}; it must be above 0 s, or None")
        self.policy, self.memory, self.tick = policy, memory, tick
        self._size, self._ttl = value_bytes, ttl if callable(ttl) else lambda key: ttl
        self.asked = self.scanned = self.hits = self.requests = self.refused = 0
        self._r: Any = server.client(decode_responses=False)
        self._wire = self._r.connection_pool.get_connection()
        self._before = {
            name: self._setting(name) for name in ("maxmemory", "maxmemory-policy", "maxmemory-samples")
        }
        try:
            self._prepare(samples)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _setting(self, name: str) -> str:
        found: str = self._r.config_get(name)[name]
        return found

    def _prepare(self, samples: int) -> None:
        r = self._r
        r.config_set("maxmemory", 0)
        r.config_set("maxmemory-samples", samples)
        try:
            r.config_set("maxmemory-policy", self.policy)
        except ResponseError:
            known = ", ".join(POLICIES)
            raise ValueError(
                f"policy is {self.policy!r}, which this server does not have; of {known}"
            ) from None
        self._empty()
        r.set("value", b"x" * self._size)
        self._value = r.dump("value")
        self._helped = self.tick is not None and self.policy.endswith(("-lru", "-lrm"))
        self._sha = r.script_load(READ_AT if self._helped else READ).encode()
        self._since = r.time()[0] * 1000 + 1000 * HORIZON  # a moment that does not come, in ms
        self._send([*range(1, 5 * BATCH)] * 2)  # misses and hits: what Redis needs for the first of each
        self._empty()
        self.asked = 0
        self._evicted = r.info("stats")["evicted_keys"]
        self._limit = r.info("memory")["used_memory"] + self.memory
        r.config_set("maxmemory", self._limit)

    def _empty(self) -> None:
        self._r.execute_command("FLUSHALL", "SYNC")  # its tables too, which DEL leaves large

    def play(self, keys: Iterable[Key]) -> tuple[int, int, int]:
        """Ask for these keys, one after the other; of how many, how many of them pages, and how many hits.

        ValueError where the helped clock has gone through 8,000,000 s; a larger `tick` is no use then.
        """
        wanted = list(keys)
        if self.tick and (self.asked + len(wanted)) * self.tick > HORIZON:
            raise ValueError(
                f"{self.asked + len(wanted):,} requests of {self.tick:g} s are over {HORIZON:,} s"
            )
        answers = self._send(wanted)
        pages = [answer for key, answer in zip(wanted, answers, strict=True) if isinstance(key, int)]
        self.requests, self.scanned = self.requests + len(pages), self.scanned + len(wanted) - len(pages)
        self.hits, self.refused = self.hits + pages.count(1), self.refused + answers.count(2)
        return len(wanted), len(pages), pages.count(1)

    def _send(self, keys: Sequence[Key]) -> list[int]:
        answers: list[int] = []
        batches = [keys[first : first + BATCH] for first in range(0, len(keys), BATCH)]
        packed = map(self._all_packed, batches)
        words = next(packed, b"")
        for batch in batches:
            self._wire.send_packed_command([words])
            words = next(packed, b"")  # while the server is at work on those before
            for _ in batch:
                answer = self._wire.read_response()
                if isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
        return answers

    def _all_packed(self, keys: Sequence[Key]) -> bytes:
        return b"".join(map(self._packed, keys))

    def _packed(self, key: Key) -> bytes:
        """One request, as RESP; redis-py would need as long for it as the server."""
        passed = self.asked * (self.tick or 0)
        self.asked += 1
        ttl = self._ttl(key)
        if self._helped:
            ends = 0 if ttl is None else self._since + round(1000 * (passed + ttl))
            uses = 0 if self.policy.endswith("-lrm") else 1
            words = [b"%d" % ends, self._value, b"%d" % (HORIZON - passed), b"%d" % uses]
        elif ttl is None:
            words = [b"%d" % self._size]
        elif self.tick is None:
            words = [b"%d" % self._size, b"PX", b"%d" % round(1000 * ttl)]
        else:
            words = [b"%d" % self._size, b"PXAT", b"%d" % (self._since + round(1000 * (passed + ttl)))]
        words = [b"EVALSHA", self._sha, b"1", _name(key), *words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    def result(self, history: Iterable[tuple[int, int, int]] = ()) -> Eviction:
        """How things stand; `history` is what the calls of `play` gave. To look drops nothing."""
        r = self._r
        r.config_set("maxmemory", 0)  # or Redis would make room before each of these commands, too
        evicted = r.info("stats")["evicted_keys"] - self._evicted
        names = set(r.scan_iter(count=10_000))  # it may give a key twice
        r.config_set("maxmemory", self._limit)
        ranks = sorted(int(name[5:]) for name in names if name.startswith(b"page:"))
        return Eviction(
            self.policy,
            self.memory,
            self.requests,
            self.hits,
            self.scanned,
            self.refused,
            evicted,
            tuple(ranks),
            len(names) - len(ranks),
            tuple(history),
        )

    def close(self) -> None:
        """Empty the server and put its settings back; where it is gone, or it was done before, nothing."""
        if self._r is None:
            return
        self._wire.disconnect()
        try:
            for name, value in self._before.items():
                self._r.config_set(name, value)
            self._empty()
        except (RedisError, OSError):
            pass
        finally:
            self._r.close()
            self._r = None


def _name(key: Key) -> bytes:
    return b"page:%d" % key if isinstance(key, int) else key.encode()


def replay(
    server: Server, keys: Sequence[Key], *, policy: str, memory: int, windows: int = 50, **options: Any
) -> Eviction:
    """Ask for these keys in turn, with a cache of `memory` bytes for data; `options` are Cache's.

    `windows` is into how many spans the history falls. Hits differ a little from run to run: Redis samples.
    """
    if windows < 1:
        raise ValueError(f"windows is {windows!r}; it must be at least 1")
    edges = [len(keys) * n // windows for n in range(windows + 1)]
    with Cache(server, policy=policy, memory=memory, **options) as cache:
        spans = [cache.play(keys[a:b]) for a, b in itertools.pairwise(edges) if b > a]
        return cache.result(spans)


def compare(
    server: Server,
    traffic: Sequence[Key] | Mapping[str, Sequence[Key]],
    policies: Sequence[str],
    memories: Sequence[int],
    *,
    bounds: Sequence[str] = (),
    windows: int = 10,
    **options: Any,
) -> Evictions:
    """`replay` of each traffic by each policy in each memory, each from an empty cache, in few `windows`.

    `bounds` are rules of `labkit.rig.ideal`, for a cache of as many keys as the fullest of that memory held.
    """
    named = dict(traffic) if isinstance(traffic, Mapping) else {"": traffic}
    found: dict[tuple[str, str, int], Eviction] = {}
    limits: list[tuple[str, str, int, float]] = []
    with bar(total=len(named) * len(policies) * len(memories), desc="replaying") as progress:
        for name, keys in named.items():
            for memory in memories:
                for policy in policies:
                    found[name, policy, memory] = replay(
                        server, keys, policy=policy, memory=memory, windows=windows, **options
                    )
                    progress.update()
                room = max(found[name, policy, memory].entries for policy in policies)
                limits += [(name, rule, memory, ideal(keys, room, rule)) for rule in bounds]
    in_order = {(name, p, m): found[name, p, m] for name in named for p in policies for m in memories}
    return Evictions(in_order, tuple(limits))
