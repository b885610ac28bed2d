"""A primary of a cluster dies under load: for how long which slots are not served, and what is lost.

    found = outage(cluster, slot=0)      # kills the primary of slot 0
    found                                # a row for each primary's slots
    found.hit.seconds                    # without service, the dead one's slots
    cluster.revive(found.killed)

In one process more, a thread for each primary's slots writes one key after the other, with a client of its
own, and notes when which was acknowledged. After the failover all that was acknowledged is looked for.
How a replica is promoted: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.rig import topology
from labkit.rig.processes import spawn
from labkit.rig.rangewriter import Plan, Report, keys
from labkit.rig.server import ServerFailed
from labkit.rig.table import html

if TYPE_CHECKING:
    import pandas as pd

    from labkit.rig.server import Cluster, Node

__all__ = ["Outage", "Range", "outage"]

PATIENCE = 20
"""Seconds for which a replica may take to fall behind."""

TAGS = 4
"""So many slots of each primary are written to."""


@dataclass(frozen=True)
class Range:
    """What befell the slots of one primary. Times are in seconds since the kill."""

    name: str
    """The slots, "0–5460"; of several runs the longest one."""
    hit: bool
    """Is it the primary of these slots that was killed?"""
    acknowledged: int
    lost: int
    """Writes that were acknowledged, and are nowhere after the failover."""
    begin: float
    end: float
    """Of the longest time without a write that a server has carried out."""
    errors: tuple[tuple[str, int], ...]
    """What clients were told meanwhile, and how often."""

    @property
    def seconds(self) -> float:
        """The longest time without a write that a server has carried out."""
        return self.end - self.begin

    def told(self, error: str) -> int:
        """How often clients were told this: "CLUSTERDOWN", "no connection", "MOVED", "unconfirmed", …"""
        return dict(self.errors).get(error, 0)


@dataclass(frozen=True, repr=False)
class Outage:
    """One failover: a `Range` for each primary there was, in the order of their slots."""

    killed: str
    """The name of the node."""
    heir: str
    ranges: tuple[Range, ...]

    @property
    def hit(self) -> Range:
        """The slots of the primary that was killed."""
        return next(one for one in self.ranges if one.hit)

    @property
    def others(self) -> tuple[Range, ...]:
        return tuple(one for one in self.ranges if not one.hit)

    @property
    def lost(self) -> int:
        """Acknowledged writes that are nowhere, of all slots."""
        return sum(one.lost for one in self.ranges)

    def __repr__(self) -> str:
        gaps = ", ".join(f"{one.name} {one.seconds:.2f} s" for one in self.ranges)
        return (
            f"Outage({self.killed} killed, {self.heir} promoted; without service: {gaps}; lost: {self.lost})"
        )

    @property
    def df(self) -> pd.DataFrame:
        """A row for each range: killed, seconds, acknowledged, lost, errors."""
        import pandas as pd

        return pd.DataFrame(
            [
                ("yes" if one.hit else "", one.seconds, one.acknowledged, one.lost, _told(one))
                for one in self.ranges
            ],
            index=pd.Index([one.name for one in self.ranges], name="slots"),
            columns=["killed", "seconds", "acknowledged", "lost", "errors"],
        )

    def _repr_html_(self) -> str:
        heads = ("slots", "primary killed", "without service", "acknowledged", "lost", "clients were told")
        return html([heads, *map(_cells, self.ranges)])


def _cells(one: Range) -> tuple[str, ...]:
    return (
        one.name,
        "yes" if one.hit else "",
        f"{one.seconds:.2f} s",
        f"{one.acknowledged:,}",
        f"{one.lost:,}",
        _told(one),
    )


def _told(one: Range) -> str:
    return ", ".join(f"{times}× {error}" for error, times in one.errors)


def outage(
    cluster: Cluster,
    slot: int = 0,
    *,
    behind: int = 0,
    wait: int = 0,
    size: int = 100,
    pause: float = 0.002,
    before: float = 0.3,
    timeout: float = 30,
) -> Outage:
    """Kill the primary of `slot` under load, wait for its heir, and say what clients saw of it.

    Each writer sends SET of a new key with a value of `size` bytes, and the next one `pause` seconds after
    the answer; the kill comes after `before` seconds. With `behind`, that primary's replicas are frozen
    first, until so many bytes of what it has acknowledged wait for them in its memory, and thaw after the
    kill. (The kernel of this machine still delivers what the primary has given to it, a few MB: make values
    large.) With `wait`, each SET is followed by WAIT `wait` 100, and counts as acknowledged only where so
    many replicas had it in time ("unconfirmed" else).

    Every key that it wrote is removed in the end, though not where it raises; the node stays dead:
    `cluster.revive(found.killed)`. Raises ValueError where nobody serves the slot or nobody can take over,
    ServerFailed where nobody does in time, or no replica falls so far behind.
    """
    owners = cluster.owners()
    if slot not in owners:
        raise ValueError(f"nobody serves slot {slot}")
    victim = cluster[owners[slot]]
    replicas = cluster.replicas_of(victim)
    if not replicas:
        raise ValueError(f"{victim.name} has no replica that could take over")
    tags, plan = topology.tags(owners, TAGS), Plan(size, wait, pause, timeout)
    with spawn(_write, cluster.url, list(tags.values()), list(plan)) as writers:
        time.sleep(before)
        killed = _kill(cluster, victim, replicas, behind)
        heir = cluster.await_failover(victim, timeout)
        writers.stop(timeout + 10)
        told = [Report(*answer) for answer in writers.result()]
    lost = _lost(cluster, told)
    ranges = [
        _range(owner, owners, owner == victim.name, killed, report, gone)
        for owner, report, gone in zip(tags, told, lost, strict=True)
    ]
    ranges.sort(key=lambda one: int(one.name.partition("–")[0]))
    return Outage(victim.name, heir.name, tuple(ranges))


def _kill(cluster: Cluster, victim: Node, replicas: Sequence[Node], behind: int) -> float:
    """When it was dead (`time.monotonic()`, which is one clock for all processes of a machine)."""
    frozen = replicas if behind else []
    try:
        for replica in frozen:
            replica.freeze()
        with victim.client() as r:
            why = topology.await_until(lambda: _near(r, behind), PATIENCE) if behind else ""
        if why:
            raise ServerFailed(why, "let it write more, or larger values: size=.")
        cluster.kill(victim)
        return time.monotonic()
    finally:
        for replica in frozen:
            replica.thaw()


def _near(r: Any, behind: int) -> str:
    """ "" once so many bytes wait for each replica in the server's memory."""
    waiting = [int(one["omem"]) for one in r.client_list(_type="replica")]
    return "" if min(waiting, default=0) >= behind else f"Its replicas are less than {behind:,} bytes behind."


def _write(url: str, tags: list[list[str]], plan: list[Any]) -> Generator[None, None, list[Report]]:
    """In a process of its own: what `labkit.rig.rangewriter` does."""
    from labkit.rig.rangewriter import work

    return (yield from work(url, tags, plan))


def _lost(cluster: Cluster, told: Sequence[Report]) -> list[int]:
    """How many acknowledged keys of each writer are nowhere; and every key that was tried is removed."""
    lost = []
    with cluster.client() as rc:
        for report in told:
            with rc.pipeline() as pipe:
                for key in keys(report.tags, report.acknowledged):
                    pipe.exists(key)
                lost.append(pipe.execute().count(0))
                for key in keys(report.tags, range(report.tried)):
                    pipe.unlink(key)
                pipe.execute()
    return lost


def _range(
    owner: str, owners: Mapping[int, str], hit: bool, killed: float, report: Report, lost: int
) -> Range:
    runs = topology.ranges(slot for slot, name in owners.items() if name == owner)
    first, last = max(runs, key=lambda run: run[1] - run[0])
    begin, end = (at - killed for at in report.gap)
    errors = tuple(sorted(report.errors.items(), key=lambda item: -item[1]))
    return Range(f"{first}–{last}", hit, len(report.acknowledged), lost, begin, end, errors)
