"""A cluster under load whose nodes are killed and revived, and what became of its slots meanwhile.

    with Fleet() as fleet:
        fleet.kill("A")
        fleet.view          # who serves which slots, how many requests a second, for how long nobody did

Requests are writes to all parts of the cluster, from a thread for each part; they and the times without
service are noted as a client sees them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from redis.crc import key_slot

from labkit.rig import topology
from labkit.rig.probes import HOT, Lane, Probes, Span
from labkit.rig.server import Cluster

__all__ = ["Fleet", "FleetView", "Seat"]


@dataclass(frozen=True)
class Seat:
    """One node, as the others see it: `of` is the primary that it follows, or "" where it is none's replica.

    `per_second` is how many requests it has answered in the last second.
    """

    name: str
    alive: bool
    of: str
    slots: int
    per_second: float

    @property
    def role(self) -> str:
        if not self.alive:
            return "killed"
        return f"replica of {self.of}" if self.of else "primary"


@dataclass(frozen=True)
class FleetView:
    """How things stand, all at one moment.

    `ranges` are (first, last, name) of slots in order, with the name "" where no node that runs serves them.
    `recent` are the slots that were asked for in the last half a second, and whether they answered.
    """

    seats: tuple[Seat, ...]
    ranges: tuple[tuple[int, int, str], ...]
    lanes: tuple[Lane, ...]
    recent: tuple[tuple[int, bool], ...]
    loaded: bool
    acted: float
    """Seconds since something was last done to the fleet."""

    @property
    def unserved(self) -> int:
        """How many slots no node that runs serves."""
        return sum(last - first + 1 for first, last, name in self.ranges if not name)

    @property
    def silent(self) -> float:
        """For so many seconds now requests to some of the slots are not answered."""
        return max((lane.silent for lane in self.lanes), default=0.0)

    @property
    def heir(self) -> Span | None:
        """Who has taken over slots since the last act, up to ten seconds ago."""
        ends = [(lane.spans[-2].name, lane.spans[-1]) for lane in self.lanes if len(lane.spans) > 1]
        heirs = [
            now for before, now in ends if now.gap and now.name != before and now.begin < min(self.acted, 10)
        ]
        return min(heirs, key=lambda span: span.begin, default=None)

    @property
    def wrong(self) -> bool:
        """Whether somebody is not served."""
        return bool(self.unserved or self.silent)

    @property
    def sentence(self) -> str:
        since = f" for {self.silent:.1f} s" if self.silent else ""
        if self.unserved:
            return f"{self.unserved:,} slots have no primary{since}: a replica is to take over"
        if self.silent:
            return f"requests are refused{since}, although each slot has a primary"
        if self.heir:
            return f"{self.heir.name} has taken over: {self.heir.gap:.2f} s without service"
        primaries = sum(seat.alive and not seat.of for seat in self.seats)
        replicas = sum(seat.alive and bool(seat.of) for seat in self.seats)
        rate = sum(seat.per_second for seat in self.seats)
        said = f"{primaries} primaries, {replicas} replica{'s' * (replicas != 1)}"
        return said + (f" · {rate:,.0f} requests/s" if self.loaded else "")


class Fleet:
    """A cluster of its own, under load; a context manager. It starts at first use, which takes some 2 s.

    `said` is what came of the last act, and `refused` whether nothing was done since it would have ended the
    cluster: what a cluster survives is one primary at a time, and a replica for each. `close()` ends the load
    and all servers, after which it may start anew; all of them end with this process, too.

    Raises ValueError for fewer than three primaries: where one of two dies, the other is no majority.
    """

    def __init__(self, primaries: int = 3, replicas: int = 1, *, node_timeout: float = 1.0) -> None:
        if not 3 <= primaries <= 6 or not 1 <= replicas <= 2:
            asked = f"primaries is {primaries}, replicas {replicas}"
            raise ValueError(f"{asked}; they must be 3 to 6, and 1 or 2")
        self._make = partial(Cluster, primaries, replicas, node_timeout=node_timeout)
        self.cluster = self._make()
        self.primaries, self.replicas = primaries, replicas
        self.names = sorted(node.name for node in self.cluster.nodes)
        self.said, self.refused, self._acted = "", False, 0.0
        self._probes: Probes | None = None

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """The cluster whole, and the load on; nothing where it has been started before."""
        if self._probes is None:
            self.cluster.start()
            ports = {node.port: node.name for node in self.cluster.nodes}
            self._probes = Probes(self.cluster.client, topology.shares(self.primaries), ports)
            self._probes.start()

    @property
    def loaded(self) -> bool:
        return self._probes is not None and self._probes.running

    @property
    def hot(self) -> bool:
        """Whether three of four requests go to one key."""
        return self._probes is not None and self._probes.hot

    def load(self, on: bool = True) -> None:
        """Begin to send requests, or `rest()`."""
        if not on:
            self.rest()
            return
        self.start()
        assert self._probes is not None
        self._probes.start()

    def load_or_rest(self) -> None:
        """The one that is possible."""
        self.load(not self.loaded)
        self._say("requests go to all slots" if self.loaded else "nobody sends requests")

    def rest(self) -> None:
        """End the load: then no thread is left; nothing where it has not begun."""
        if self._probes is not None:
            self._probes.stop()

    def heat_or_cool(self) -> None:
        """Three of four requests go to one key, or none does."""
        self.start()
        assert self._probes is not None
        self._probes.hot = not self._probes.hot
        node = self.cluster.owners().get(key_slot(HOT.encode()), "nobody")
        spread = "requests are spread over all slots again"
        self._say(f"3 of 4 requests go to one key, and so to {node}" if self.hot else spread)

    def kill_or_revive(self, name: str) -> None:
        """The one that is possible."""
        (self.kill if self.cluster[name].awake else self.revive)(name)

    def kill(self, name: str) -> None:
        """SIGKILL; not where nobody could take over its slots, or nobody could decide who does."""
        self.start()
        if why := self._needed(name):
            self._say(why, refused=True)
            return
        self.cluster.kill(name)
        self._say(f"{name} is killed")

    def revive(self, name: str) -> None:
        """Start it again; it comes back empty, takes over its primary's data, and the cluster is whole.

        Raises ServerFailed where that takes longer than 15 s.
        """
        self.start()
        self.cluster.revive(name, timeout=15)
        of = self._seats(self.cluster.members())[name].of
        self._say(f"{name} is back, {f'as a replica of {of}' if of else 'as the primary that it was, empty'}")

    def revive_all(self) -> None:
        """Every node that is dead."""
        self.start()
        dead = [node.name for node in self.cluster.nodes if not node.awake]
        self.cluster.revive(*dead, timeout=15)
        self._say(f"{', '.join(dead)} back: all nodes run" if dead else "all nodes run")

    def _say(self, text: str, refused: bool = False) -> None:
        self.said, self.refused = text, refused
        if not refused:
            self._acted = time.monotonic()

    def _needed(self, name: str) -> str:
        """Why the cluster would not survive the end of this node, in words; or ""."""
        members = self.cluster.members()
        alive = {other for other in members if self.cluster[other].awake and other != name}
        voters = {other for other, one in members.items() if one.is_primary and one.slots}
        for primary in sorted(voters):
            its = {other for other, one in members.items() if one.primary == members[primary].id}
            if name in its | {primary} and not alive & (its | {primary}):
                dead, slots = " or ".join(sorted(self._former(primary) - {name})), len(members[primary].slots)
                return f"{name} is the last with its {slots:,} slots: revive {dead or 'another one'} first"
        if name in voters and 2 * len(voters & alive) <= len(voters):
            dead = ", ".join(sorted(voters - alive - {name}))
            return f"without {name} no majority could say who takes over from {dead}: wait for that first"
        return ""

    def _former(self, primary: str) -> set[str]:
        """The dead nodes that began as nodes of the same slots."""
        return {node.name for node in self.cluster.nodes if node.name[0] == primary[0] and not node.awake}

    def _seats(self, members: Mapping[str, topology.Member]) -> dict[str, Seat]:
        names = {one.id: name for name, one in members.items()}
        rates = self._probes.rates() if self._probes else {}
        return {
            name: Seat(
                name,
                alive := self.cluster[name].awake,
                names.get(members[name].primary, ""),
                len(members[name].slots) if alive and members[name].is_primary else 0,
                rates.get(name, 0.0) if alive else 0.0,
            )
            for name in self.names
        }

    @property
    def view(self) -> FleetView:
        """How things stand: two round trips to each node that runs."""
        self.start()
        members = self.cluster.members()
        seats = self._seats(members)
        owners = topology.owners({name: one for name, one in members.items() if seats[name].alive})
        runs: list[tuple[int, int, str]] = []
        for name in {*owners.values(), ""}:
            its = (slot for slot in range(topology.SLOTS) if owners.get(slot, "") == name)
            runs += [(first, last, name) for first, last in topology.ranges(its)]
        lanes, recent = self._probes.seen() if self._probes else ((), ())
        acted = time.monotonic() - self._acted
        return FleetView(tuple(seats.values()), tuple(sorted(runs)), lanes, recent, self.loaded, acted)

    def close(self) -> None:
        """End the load and every server."""
        if self._probes is not None:
            self._probes.stop()
        self._probes = None
        self.cluster.stop()
        self.cluster = self._make()
        self._say("")
