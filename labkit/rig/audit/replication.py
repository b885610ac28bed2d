"""Primaries and replicas, as each side tells it; and whether a cluster serves every slot."""

from __future__ import annotations

from collections.abc import Iterator

from labkit.rig.audit.report import Finding, count, size
from labkit.rig.audit.seen import Seen


def check(seen: Seen) -> Iterator[Finding]:
    yield from _cluster(seen)
    yield from _as_primary(seen)
    yield from _as_replica(seen)


def _cluster(seen: Seen) -> Iterator[Finding]:
    if seen.cluster.get("cluster_state") == "fail":
        served = int(seen.cluster.get("cluster_slots_ok", 0))
        yield seen.finding(
            "critical",
            "cluster down",
            f"cluster_state is fail; {served:,} of 16,384 slots are served. With "
            "cluster-require-full-coverage yes, the default, no key is.",
            "CLUSTER NODES shows which primaries failed: bring them back, or CLUSTER FAILOVER TAKEOVER on a "
            "replica of each; CLUSTER ADDSLOTSRANGE for slots that nobody has.",
        )


def _as_primary(seen: Seen) -> Iterator[Finding]:
    replicas, limits = seen.replicas, seen.limits
    offset = seen.number("master_repl_offset") or 0
    told = []
    for number, one in enumerate(replicas, 1):
        name = f"replica {number} of {len(replicas)}"
        behind, silent = max(0, offset - int(one.get("offset", 0))), int(one.get("lag", 0))
        if one.get("state") != "online":
            told.append(f"{name} is in state {one.get('state', '?')}, without the data yet")
        elif behind >= limits.lag_bytes or silent >= limits.lag_seconds:
            told.append(f"{name} is {size(behind)} behind and was last heard {silent} s ago")
    if told:
        yield _lag(seen, told)


def _as_replica(seen: Seen) -> Iterator[Finding]:
    if not seen.is_replica:
        return
    if seen.info.get("slave_read_only") == "0":
        yield seen.finding(
            "warning",
            "writable replica",
            "replica-read-only is no: what is written here, the primary never hears of, and the next full "
            "synchronisation deletes it.",
            "CONFIG SET replica-read-only yes.",
        )
    silent = seen.number("master_last_io_seconds_ago") or 0
    if seen.info.get("master_link_status") == "down":
        yield from _down(seen)
    elif silent >= seen.limits.silent_seconds:
        yield _lag(seen, [f"the primary was last heard {silent} s ago"])


def _down(seen: Seen) -> Iterator[Finding]:
    if seen.info.get("master_sync_in_progress") == "1":
        left = seen.number("master_sync_left_bytes") or 0
        todo = f", {size(left)} to go" if left > 0 else ""
        yield _lag(seen, [f"this replica is in a full synchronisation{todo}"])
        return
    seconds = seen.number("master_link_down_since_seconds") or 0
    since = f" for {count(seconds, 'second')}" if seconds > 0 else ""
    yield seen.finding(
        "critical",
        "replication link down",
        f"This replica has had no link to its primary{since}: what it answers is old, and grows older.",
        "Its log says why: the primary is gone, or masterauth and masteruser do not fit, or a firewall. "
        "If the primary is gone for good, REPLICAOF NO ONE on the replica with the highest offset.",
    )


def _lag(seen: Seen, told: list[str]) -> Finding:
    evidence = "; ".join(told)
    return seen.finding(
        "warning",
        "replication lag",
        f"{evidence[0].upper()}{evidence[1:]}: reads from a replica are old, and a failover now "
        "loses writes.",
        "Look for a slow network, a replica that is stalled (SLOWLOG there) or too small. "
        "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10 stop writes that nobody copies.",
    )
