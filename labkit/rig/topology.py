"""The commands that form a cluster and move its slots, and what its nodes say of it.

Everything here goes by clients of single nodes, as an operator's tool would: redis.io, "Scale with Redis
Cluster" and "Redis cluster specification", names these commands and their order.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError, RedisError, ResponseError

SLOTS = 16_384
"""So many hash slots has every Redis cluster: CRC16 of a key's hash tag, or of the whole key, modulo this."""

CHUNK = 64
"""So many slots are under way at once in `move()`."""

BATCH = 100
"""So many keys go in one MIGRATE: the source serves nobody meanwhile."""


class Member(NamedTuple):
    """One node, as another one (or itself) describes it in CLUSTER NODES."""

    id: str
    port: int
    flags: frozenset[str]
    primary: str
    """The id of the primary that it is a replica of, or ""."""
    slots: tuple[int, ...]
    epoch: int
    """Of two nodes that claim a slot, the one with the greater has it."""

    @property
    def is_primary(self) -> bool:
        return "master" in self.flags

    @property
    def failed(self) -> bool:
        """By the word of a majority of primaries; "fail?" is the suspicion of one node alone."""
        return "fail" in self.flags


def members(r: redis.Redis) -> dict[str, Member]:
    """What the node of `r` knows of every node, by their ids: CLUSTER NODES, one round trip."""
    found = {}
    for address, told in r.execute_command("CLUSTER NODES").items():
        slots = [range(int(part[0]), int(part[-1]) + 1) for part in told["slots"]]
        primary = "" if told["master_id"] == "-" else told["master_id"]
        found[told["node_id"]] = Member(
            told["node_id"],
            int(address.rpartition(":")[2]),
            frozenset(told["flags"].split(",")) - {"myself"},
            primary,
            tuple(slot for part in slots for slot in part),
            int(told["epoch"]),
        )
    return found


def ranges(slots: Iterable[int]) -> list[tuple[int, int]]:
    """[(first, last), …] of the runs in `slots`, in order: `ranges([7, 1, 2])` is [(1, 2), (7, 7)]."""
    runs: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if runs and slot == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], slot)
        else:
            runs.append((slot, slot))
    return runs


def owners(members: Mapping[str, Member]) -> dict[int, str]:
    """The name of the primary of each slot: of several that claim it, the one with the greatest epoch."""
    oldest_first = sorted(members.items(), key=lambda item: item[1].epoch)
    return {slot: name for name, one in oldest_first if one.is_primary for slot in one.slots}


def tags(owners: Mapping[int, str], each: int) -> dict[str, list[str]]:
    """So many hash tags of slots of each primary, by its name; `owners` are the names, by slot."""
    found: dict[str, list[str]] = {name: [] for name in sorted(set(owners.values()))}
    for n in itertools.count():
        mine = found.get(owners.get(key_slot(f"{n}".encode()), ""))
        if mine is not None and len(mine) < each:
            mine.append(f"{n}")
        if all(len(its) == each for its in found.values()):
            return found
    raise AssertionError("count() does not end")


def shares(primaries: int) -> list[range]:
    """The slots, cut into so many neighbouring ranges of equal length."""
    cuts = [round(SLOTS * number / primaries) for number in range(primaries + 1)]
    return [range(first, end) for first, end in itertools.pairwise(cuts)]


def meet(clients: Sequence[redis.Redis], ports: Sequence[tuple[int, int]]) -> None:
    """Let every node meet every other; `ports` are (port, cluster bus port) of each, all on 127.0.0.1."""
    for number, r in enumerate(clients):
        for port, bus in ports[number + 1 :]:
            r.execute_command("CLUSTER MEET", "127.0.0.1", port, bus)


def found(clients: Sequence[redis.Redis], ports: Sequence[tuple[int, int]], primaries: int) -> None:
    """Form a cluster of empty nodes: the first `primaries` share the slots, each other follows one of them.

    CLUSTER ADDSLOTSRANGE, SET-CONFIG-EPOCH (so that no two primaries have the same), MEET, and REPLICATE as
    soon as the replica has heard of its primary. It returns before the cluster is ready.
    """
    for epoch, r in enumerate(clients, 1):
        r.execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
    for slots, r in zip(shares(primaries), clients, strict=False):
        r.execute_command("CLUSTER ADDSLOTSRANGE", slots[0], slots[-1])
    meet(clients, ports)
    for number, r in enumerate(clients[primaries:]):
        follow(r, clients[number % primaries].execute_command("CLUSTER MYID"))


def follow(r: redis.Redis, primary: str, seconds: float = 20) -> None:
    """CLUSTER REPLICATE, as soon as the node of `r` has heard of that primary."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            r.execute_command("CLUSTER REPLICATE", primary)
        except ResponseError as error:
            if "nknown node" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def unready(clients: Mapping[str, redis.Redis]) -> str:
    """Why this is no whole cluster yet, in words; "" when it is. `clients` are of the nodes that run.

    It is whole when every node says that the cluster is in order, all of them agree on who is who and who
    serves what, every replica has the link to its primary, and has taken over its data.
    """
    views = {name: members(r) for name, r in clients.items()}
    known = {
        name: {(one.id, one.is_primary, one.primary, one.slots) for one in view.values() if not one.failed}
        for name, view in views.items()
    }
    for name, r in clients.items():
        state = r.execute_command("CLUSTER INFO")
        state = state if isinstance(state, dict) else dict(line.split(":") for line in state.split())
        if state["cluster_state"] != "ok":
            return f"{name} says that the cluster is in state {state['cluster_state']}"
        if any({"handshake", "fail?"} & one.flags for one in views[name].values()):
            return f"{name} does not reach a node"
        if known[name] != next(iter(known.values())):
            return f"{name} knows another cluster than {next(iter(known))}"
        replication = r.info("replication")
        if replication["role"] == "slave" and replication["master_link_status"] != "up":
            return f"{name} has no link to its primary"
    return ""


def migrate(source: redis.Redis, slot: int, to: tuple[str, int], password: str) -> int:
    """Move every key of the slot, BATCH at a time, to the node at that address; returns how many.

    Two round trips a batch (CLUSTER GETKEYSINSLOT, MIGRATE). A key is at the one or the other node at every
    moment; a client that asks for it at the source, where it no longer is, is sent on by ASK. (An interrupted
    MIGRATE may leave it at both: clients went on with the source's, which therefore replaces the other.)
    """
    moved = 0
    while keys := source.execute_command("CLUSTER GETKEYSINSLOT", slot, BATCH):
        source.execute_command("MIGRATE", *to, "", 0, 10_000, "REPLACE", "AUTH", password, "KEYS", *keys)
        moved += len(keys)
    return moved


def move(
    slots: Iterable[int],
    owners: Mapping[int, str],
    to: str,
    nodes: Mapping[str, tuple[redis.Redis, tuple[str, int]]],
    password: str,
) -> int:
    """Move slots with their keys to the primary with the id `to`, while clients go on; returns how many keys.

    `owners` gives the id of each slot's primary, `nodes` the client and the address of each primary that
    runs. For CHUNK slots at a time: IMPORTING at the target, MIGRATING at the source, the keys, then NODE at
    the target first, at the source, and at the others, so that no node ever thinks that nobody has the slot.
    """
    by_source = defaultdict(list)
    for slot in sorted(set(slots)):
        if owners[slot] != to:
            by_source[owners[slot]].append(slot)
    moved = 0
    for source, its in by_source.items():
        for first in range(0, len(its), CHUNK):
            chunk = its[first : first + CHUNK]
            _announce(nodes[to][0], chunk, "IMPORTING", source)
            _announce(nodes[source][0], chunk, "MIGRATING", to)
            moved += _empty(nodes[source][0], chunk, nodes[to][1], password)
            for node in sorted(nodes, key=lambda node: (node != to, node != source)):
                with contextlib.suppress(_NoPrimary) if node != to else contextlib.nullcontext():
                    _announce(nodes[node][0], chunk, "NODE", to)
    return moved


class _NoPrimary(ResponseError):
    """A primary that gave its last slot follows the one that has it now, and hears of the rest from there."""


def _announce(r: redis.Redis, slots: Iterable[int], what: str, node: str) -> None:
    with r.pipeline(transaction=False) as pipe:
        for slot in slots:
            pipe.execute_command("CLUSTER SETSLOT", slot, what, node)
        try:
            pipe.execute()
        except ResponseError as error:
            raise _NoPrimary(str(error)) if "only with masters" in str(error) else error from None


def _empty(source: redis.Redis, slots: Sequence[int], to: tuple[str, int], password: str) -> int:
    with source.pipeline(transaction=False) as pipe:
        for slot in slots:
            pipe.execute_command("CLUSTER COUNTKEYSINSLOT", slot)
        counts = pipe.execute()
    return sum(migrate(source, slot, to, password) for slot, keys in zip(slots, counts, strict=True) if keys)


def unaware(clients: Mapping[str, redis.Redis], node: str, slots: Iterable[int]) -> str:
    """Which node does not know yet that `node` serves all of `slots`, in words; "" when all do."""
    wanted = set(slots)
    for name, r in clients.items():
        told = members(r).get(node)
        if told is None or not wanted <= set(told.slots):
            return f"{name} does not know yet who serves these slots"
    return ""


def await_until(unmet: Callable[[], str], seconds: float) -> str:
    """Ask until there is nothing left to wait for, or the time is over: then what that is, else ""."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            why = unmet()
        except (ConnectionError, RedisError) as error:
            why = str(error)
        if not why or time.monotonic() > deadline:
            return why
        time.sleep(0.02)


def described(clients: Iterable[redis.Redis]) -> dict[str, Member]:
    """The members as the newest configuration has them: each node's word for itself, where it can be had."""
    own: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for r in clients:
        view = members(r)
        me = r.execute_command("CLUSTER MYID")
        own[me] = view[me]
        told.update(view)
    return told | own
