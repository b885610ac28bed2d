"""A review of any Redis, read-only and safe on a server in production.

    from labkit.rig.audit import audit
    audit(r)                                # a table: severity, finding, evidence, fix
    "no maxmemory" in audit(r).names

`python -m labkit audit REDIS_URL` prints the same. The findings that there can be: `NAMES`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError, RedisClusterException, RedisError, TimeoutError

from labkit.rig.audit import activity, clients, keys, memory, persistence, replication, security
from labkit.rig.audit.asking import look
from labkit.rig.audit.limits import Limits
from labkit.rig.audit.replies import plainly
from labkit.rig.audit.report import NAMES, SEVERITIES, Audit, Finding, Node, Sampled, Unseen
from labkit.rig.audit.sampling import sample
from labkit.rig.audit.seen import Seen
from labkit.rig.client import client
from labkit.rig.topology import SLOTS

__all__ = ["NAMES", "RIGHTS", "SEVERITIES", "Audit", "Finding", "Limits", "Sampled", "Unseen", "audit", "run"]

RIGHTS = (
    "%R~* resetchannels -@all +ping +info +config|get +acl|list +acl|dryrun +slowlog|get +client|info "
    "+client|list +command|docs +cluster|info +cluster|slots +scan +type +pttl +memory|usage "
    "+hlen +llen +scard +zcard +xlen"
)
"""What an ACL user needs that sees everything and changes nothing: `ACL SETUSER auditor on >… ` + these.

From Redis 7.2 on `+client|setinfo`, too: redis-py sends it with every connection, and though it does without,
each refusal is a line of the ACL LOG. On a cluster `+command`, too: redis-py's client of one asks for it."""

CHECKS = (replication, security, memory, persistence, keys, activity, clients)

UNREACHABLE = 3
"""The exit code where no server answered; 0, 1 and 2 are `Audit.exit_code`."""


def audit(r: Any, *, keys: int = 1000, seconds: float = 2.0, limits: Limits | None = None) -> Audit:
    """Review the server of `r`, or each primary of a cluster; changes nothing, whatever it finds.

    Only commands that read are sent (RIGHTS are all that it needs), and none that takes longer the more keys
    there are: no KEYS, no MONITOR. First three round trips: at most 8 commands, and 10 for each ACL user of
    50 at most. Then up to `keys` keys of the client's database, in batches of 250, of which none begins once
    `seconds` have passed: at most 16 + 4 · keys / 250 SCANs, each followed by three commands for each new
    key, and by one more for each large one, in three round trips. For a thousand keys that is 99 round trips
    at most, as in a table that has lost nearly all its keys, and 15 as a rule. With more than 5,000 clients,
    or where INFO does not tell how many, CLIENT LIST is left out; of the slow log, the last 128 entries are
    read.

    What is refused, by the rights of the user or by a managed service, stands in `unseen`, and the rest is
    done all the same. It leaves traces: its commands in commandstats, lookups in keyspace_hits, and a key's
    length counts as a use of it (LRU) for those of 10,000 bytes or more.

    `limits` are the numbers from which on something counts. It works with RESP2 and RESP3, decoded or not.
    Raises TypeError for what is no synchronous client, ValueError for keys below 0 or seconds not above it,
    and redis-py's ConnectionError or TimeoutError where a single server does not answer; in a cluster, that
    is a finding.
    """
    if keys < 0 or seconds <= 0:
        raise ValueError(f"keys is {keys}, seconds {seconds}; they must be at least 0, and above 0")
    bounds = (keys, seconds, limits or Limits())
    if isinstance(r, RedisCluster):
        return _report([_node_of(r, node, f"primary {n}", bounds) for n, node in enumerate(_primaries(r), 1)])
    if not isinstance(r, redis.Redis):
        raise TypeError(f"audit() takes a synchronous Redis or RedisCluster, not a {type(r).__name__}")
    return _report([_one(r, "", bounds)])


def _primaries(r: RedisCluster) -> list[Any]:
    """In the order of their slots, by which they are numbered; those without any come last."""
    first: dict[str, int] = {}
    for slot, nodes in sorted(r.nodes_manager.slots_cache.items()):
        first.setdefault(nodes[0].name, slot)
    return sorted(r.get_primaries(), key=lambda node: (first.get(node.name, SLOTS), node.name))


def _node_of(r: RedisCluster, node: Any, label: str, bounds: tuple[int, float, Limits]) -> Seen | Finding:
    try:
        return _one(r.get_redis_connection(node), label, bounds)
    except (ConnectionError, TimeoutError) as error:
        why = f"{label} does not answer ({type(error).__name__}): nobody serves its slots, or an heir does."
        fix = "CLUSTER NODES on another node says who has its slots; bring it back, or connect anew."
        return Finding("critical", "node unreachable", why, fix, label)


def _one(r: redis.Redis, label: str, bounds: tuple[int, float, Limits]) -> Seen:
    own = plainly(r)
    many, seconds, limits = bounds
    seen = look(own, label, limits)
    settings = own.connection_pool.connection_kwargs
    seen.address = str(settings.get("path") or f"{settings.get('host')}:{settings.get('port')}")
    if many:
        seen.sample = sample(own, many, seconds, limits.big_elements)
        seen.sampled = keys.summed_up(seen, seen.sample, int(settings.get("db") or 0))
    return seen


def _report(looked: list[Seen | Finding]) -> Audit:
    """What is word for word the same of several nodes is told once, with all their names."""
    seen = [one for one in looked if isinstance(one, Seen)]
    findings = [one for one in looked if isinstance(one, Finding)]
    findings += [finding for one in seen for topic in CHECKS for finding in topic.check(one)]
    together: dict[Finding, list[str]] = {}
    for finding in findings:
        together.setdefault(replace(finding, node=""), []).append(finding.node)
    findings = [replace(finding, node=", ".join(nodes)) for finding, nodes in together.items()]
    order = list(NAMES)
    findings.sort(key=lambda one: (SEVERITIES.index(one.severity), order.index(one.name)))
    return Audit(
        tuple(findings),
        tuple(unseen for one in seen for unseen in one.unseen),
        tuple(one.sampled for one in seen if one.sampled),
        tuple(
            Node(one.version, one.role, one.node, one.address)
            if isinstance(one, Seen)
            else Node("", "unreachable", one.node)
            for one in looked
        ),
    )


def run(url: str | None = None, as_json: bool = False) -> int:
    """Print an audit of the server at `url`, or of what connect() would find; returns the exit code.

    0: nothing, or only notices; 1: warnings; 2: something critical; 3: no server could be reviewed (none
    answers, it refuses the log-in, or it is older than 7.0), and why is said on stderr; so is which server it
    is, where none was named. What could not be seen does not count, and is printed.
    """
    from labkit.rig.connection import RedisUnavailable

    try:
        r, place = _reached(url)
        if not (url or os.environ.get("REDIS_URL")):
            print(f"No address was given: this is {place}.", file=sys.stderr)
        found = audit(r)
    except (RedisUnavailable, RedisError, RedisClusterException) as error:
        print(f"No audit: {error}", file=sys.stderr)
        return UNREACHABLE
    print(found.to_json() if as_json else found)
    return found.exit_code


def _reached(url: str | None) -> tuple[Any, str]:
    """As connect() finds it, which asks for the version; or without asking, where that right is lacking.

    And what to call it; of an embedded server, that nobody has named one.
    """
    from labkit.rig.connection import RedisUnavailable, find

    try:
        r, place = find(url)
    except RedisUnavailable as error:
        named = url or os.environ.get("REDIS_URL") or ""
        if "no permissions" not in str(error) or named.startswith("redis+cluster:"):
            raise
        return client(named), "the server that was named"
    if place.startswith("embedded"):
        return r, "a server started just now, since no other was found; name yours: audit REDIS_URL"
    return r, place
