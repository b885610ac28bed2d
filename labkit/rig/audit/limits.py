"""From what on something counts: the numbers that the checks compare with, each of which may be changed."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """`audit(r, limits=Limits(big_elements=1000))`. Sizes are in bytes, times in seconds, shares from 0 to 1.

    They are rules of thumb, not promises of Redis; where redis.conf has a number, it is that one. Ten times
    what is `big_…` is a warning, less a notice.
    """

    keys_enough: int = 100
    """A policy is judged by the share of keys with a TTL only from so many keys on."""
    group_enough: int = 20
    """A prefix is judged only from so many sampled keys on."""
    mixed_share: float = 0.01
    """TTLs are taken for forgotten where, at 95 % confidence, more than this have one and more have none."""
    big_bytes: int = MIB
    big_elements: int = 10_000
    memory_share: float = 0.9
    """Of maxmemory, where nothing may be evicted."""
    fragmentation_ratio: float = 1.5
    fragmentation_bytes: int = 100 * MIB
    """Less than this is not worth a word, whatever the ratio: a small server's ratio means nothing."""
    hit_ratio: float = 0.5
    lookups_enough: int = 1000
    slow_seconds: float = 0.1
    """A command that took so long is a warning; what else stands in the slow log is a notice."""
    blocked_seconds: int = 300
    clients_share: float = 0.8
    """Of maxclients."""
    output_bytes: int = 10 * MIB
    """That one client, no replica, holds in replies that it has not read."""
    lag_seconds: int = 10
    """redis.conf's own repl-timeout is 60, min-replicas-max-lag 10."""
    lag_bytes: int = 10 * MIB
    silent_seconds: int = 30
    """A primary with nothing to say sends a PING every 10 s (repl-ping-replica-period)."""
