"""How many commands a second clusters carry out, and how much of a processor each of their servers has.

    found = load({1: small, 3: large})
    found[3].per_second         # of all its primaries together
    found[3].cpu                # {"A": 0.93, …}: the share of one core that each server had

Load and servers share this machine. So more primaries carry out more only as long as there are idle cores,
and the shares say when that ends.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from labkit.rig import topology
from labkit.rig.client import client
from labkit.rig.processes import processes

if TYPE_CHECKING:
    import pandas as pd

    from labkit.rig.server import Cluster

__all__ = ["Load", "load"]

BATCH = 20
"""So many commands are on the way to one server at a time, for each process that asks."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, repr=False)
class Load:
    """What the primaries of a cluster did in `seconds`, and the share of a core that each had."""

    commands: int
    seconds: float
    cpu: Mapping[str, float]

    @property
    def per_second(self) -> float:
        """Commands a second, of all servers together."""
        return self.commands / self.seconds

    @property
    def cores(self) -> float:
        """How many cores the servers had in all."""
        return sum(self.cpu.values())

    @property
    def per_cpu_second(self) -> float:
        """Commands for each second for which a server had a core: what one could do with one of its own."""
        return self.per_second / self.cores

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.cpu.items())
        return f"Load({self.per_second:,.0f} commands/s; CPU: {shares} of a core)"

    @property
    def df(self) -> pd.DataFrame:
        """A row for each server: cpu, the share of a core that it had."""
        import pandas as pd

        return pd.DataFrame({"cpu": dict(self.cpu)})

    def _repr_html_(self) -> str:
        rows = {"commands/s": f"{self.per_second:,.0f}"}
        rows |= {f"{name}, share of a core": f"{share:.0%}" for name, share in self.cpu.items()}
        body = "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows.items())
        return f"<table>{body}</table>"


def load(
    clusters: Mapping[Name, Cluster],
    seconds: float = 0.6,
    *,
    rounds: int = 2,
    workers: int = 2,
    members: int = 2000,
) -> dict[Name, Load]:
    """Keep every primary of one cluster after the other busy, for `seconds` each in all, and count.

    The clusters take turns in `rounds`, every other one in the reverse order. The load comes from `workers`
    processes with one connection to each primary and BATCH commands on it. The command is SINTERCARD of two
    sets of `members` numbers: under 0.1 ms of work for the server, and a few bytes for those who ask. The
    sets are removed in the end. Raises ValueError for a cluster whose primaries have no slots.
    """
    asked = [_keys(cluster) for cluster in clusters.values()]
    everybody = list(zip(clusters.values(), asked, strict=True))
    order = list(range(len(asked)))
    order = [n for number in range(rounds) for n in (order[::-1] if number % 2 else order)]
    try:
        for cluster, keys in everybody:
            _prepare(cluster, keys, members)
        nodes = [[(cluster[name].url, *pair) for name, pair in keys.items()] for cluster, keys in everybody]
        reports = processes(workers, _ask, nodes, order, BATCH, seconds / rounds)
    finally:
        for cluster, keys in everybody:
            for name, pair in keys.items():
                with cluster[name].client() as r:
                    r.unlink(*pair)
    turns = [Turn(*turn) for report in reports for turn in report]
    return {
        name: _counted(list(keys), [turn for turn in turns if turn.cluster == number], workers)
        for number, (name, keys) in enumerate(zip(clusters, asked, strict=True))
    }


def _keys(cluster: Cluster) -> dict[str, tuple[str, str]]:
    """Two keys for each primary that has slots, by its name."""
    owners = cluster.owners()
    if not owners:
        raise ValueError("this cluster has no primary with slots")
    tags = topology.tags(owners, 1)
    return {name: (f"load:{{{tag}}}:a", f"load:{{{tag}}}:b") for name, [tag] in tags.items()}


def _prepare(cluster: Cluster, keys: Mapping[str, tuple[str, str]], members: int) -> None:
    """Two sets on each primary, half of their members the same."""
    for name, (a, b) in keys.items():
        with cluster[name].client() as r:
            r.sadd(a, *range(members))
            r.sadd(b, *range(members // 2, members + members // 2))


class _Link:
    """One connection to one server, and a batch of commands for it."""

    def __init__(self, url: str, a: str, b: str, batch: int) -> None:
        self.r = client(url)
        self.batch = batch
        self.connection: Any = self.r.connection_pool.get_connection()
        self._request = [b"".join(self.connection.pack_command("SINTERCARD", 2, a, b)) * batch]

    def ask(self) -> None:
        self.connection.send_packed_command(self._request, check_health=False)

    def read(self) -> None:
        for _ in range(self.batch):
            self.connection.read_response()

    def used(self) -> float:
        """Seconds of CPU that the server has had so far."""
        cpu = self.r.info("cpu")
        return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


class Turn(NamedTuple):
    """One process and one cluster: when, how many commands, and each server's CPU before and after."""

    cluster: int
    begin: float
    end: float
    done: int
    before: list[float]
    after: list[float]


def busy(number: int, links: Sequence[_Link], deadline: float) -> Turn:
    """A batch to each server, and when it has answered the next one, until the deadline."""
    before, begin, done = [link.used() for link in links], time.monotonic(), 0
    with selectors.DefaultSelector() as ready:
        for link in links:
            link.ask()
            ready.register(link.connection._sock, selectors.EVENT_READ, link)
        while ready.get_map():
            for key, _ in ready.select():
                key.data.read()
                done += key.data.batch
                if time.monotonic() < deadline:
                    key.data.ask()
                else:
                    ready.unregister(key.fileobj)
    return Turn(number, begin, time.monotonic(), done, before, [link.used() for link in links])


def take_turns(
    clusters: list[Any], order: list[int], batch: int, seconds: float
) -> Generator[None, None, list[Turn]]:
    """Of one process: connected at the `yield`, then `seconds` for each cluster in this order."""
    links = [[_Link(url, a, b, batch) for url, a, b in nodes] for nodes in clusters]
    yield
    start = time.monotonic()  # the others' start, too: so all are busy with the same cluster
    return [busy(n, links[n], start + (at + 1) * seconds) for at, n in enumerate(order)]


def _ask(
    clusters: list[Any], order: list[int], batch: int, seconds: float
) -> Generator[None, None, list[Turn]]:
    """In a process of its own: `take_turns`."""
    from labkit.rig.load import take_turns

    return (yield from take_turns(clusters, order, batch, seconds))


def _counted(names: Sequence[str], turns: Sequence[Turn], workers: int) -> Load:
    """One cluster's turns of all processes: the time and the CPU of each round from its first to its last."""
    rounds = len(turns) // workers
    together = [turns[number::rounds] for number in range(rounds)]  # of one round, in each process
    seconds = sum(max(turn.end for turn in one) - min(turn.begin for turn in one) for one in together)
    spent = [
        sum(max(turn.after[i] for turn in one) - min(turn.before[i] for turn in one) for one in together)
        for i in range(len(names))
    ]
    shares = {name: cpu / seconds for name, cpu in zip(names, spent, strict=True)}
    return Load(sum(turn.done for turn in turns), seconds, shares)
