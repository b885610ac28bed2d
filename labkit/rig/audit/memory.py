"""How much may be stored, what goes when that is full, and whether it has already."""

from __future__ import annotations

from collections.abc import Iterator

from labkit.rig.audit.report import Finding, Severity, count, share, size
from labkit.rig.audit.seen import Seen, whole

WAITING = ("blpop", "brpop", "blmove", "blmpop", "bzpopmin", "bzpopmax", "bzmpop", "brpoplpush", "xreadgroup")
"""Who sends these takes a list, a sorted set or a stream for a queue."""

LOCKS = frozenset({"lock", "locks", "mutex", "semaphore", "redlock"})


def check(seen: Seen) -> Iterator[Finding]:
    yield from _maxmemory(seen)
    yield from _full(seen)
    yield from _policy(seen)
    yield from _fragmentation(seen)
    yield from _evictions(seen)


def _limit(seen: Seen) -> int | None:
    return whole(seen.setting("maxmemory"))


def _maxmemory(seen: Seen) -> Iterator[Finding]:
    """Without INFO, how much is in use, and of how much, is unknown, and not said."""
    limit, machine = _limit(seen), seen.number("total_system_memory") or 0
    used = seen.number("used_memory") or 0
    if limit is None or (limit > 0 and (limit <= machine or not machine)):
        return
    what = f"maxmemory is {size(limit)}, more than the machine has" if limit else "maxmemory is 0, no limit"
    in_use = f"; {size(used)} of the machine's {size(machine)} are in use" if machine else ""
    severity: Severity = "critical" if machine and used > seen.limits.memory_share * machine else "warning"
    yield seen.finding(
        severity,
        "no maxmemory",
        f"{what}{in_use}: whatever grows without bound ends with the operating system's killer of processes.",
        "CONFIG SET maxmemory to what the machine can spare: with snapshots or an append-only file about "
        "half of it, since a fork may copy every page that is written meanwhile.",
    )


def _full(seen: Seen) -> Iterator[Finding]:
    limit = _limit(seen)
    if not limit or seen.setting("maxmemory-policy") != "noeviction" or seen.is_replica:
        return
    counted = (seen.number("used_memory") or 0) - (seen.number("mem_not_counted_for_evict") or 0)
    refused = seen.errors.get("OOM", 0)
    if not refused and counted < seen.limits.memory_share * limit:
        return
    times = count(refused, "command was", "commands were")
    evidence = f"{size(counted)} of maxmemory {size(limit)} are in use ({share(counted / limit)})"
    yield seen.finding(
        "critical" if refused else "warning",
        "memory nearly full",
        f"{evidence}, and noeviction lets nothing go"
        + (f"; {times} refused with OOM since the start (or CONFIG RESETSTAT)." if refused else "."),
        "Delete what is not needed (see the findings on keys), raise maxmemory, or, if this is a cache, "
        "CONFIG SET maxmemory-policy allkeys-lru.",
    )


def _policy(seen: Seen) -> Iterator[Finding]:
    """Only what numbers show: how many keys have a TTL (INFO keyspace, exactly), which commands are used."""
    policy, (keys, expires) = seen.setting("maxmemory-policy") or "", seen.keys
    enough = keys >= seen.limits.keys_enough
    if not _limit(seen) or seen.is_replica:
        return
    if policy.startswith("allkeys"):
        yield from _evictable_queue(seen, policy)
    elif policy.startswith("volatile") and enough and expires < 0.1 * keys:
        yield seen.finding(
            "warning",
            "policy against use",
            f"maxmemory-policy is {policy}, which evicts only keys with a TTL, and {expires:,} of {keys:,} "
            "keys have one: when memory is full, these go at once, and then writes are refused.",
            "If every key can be had again from elsewhere, CONFIG SET maxmemory-policy allkeys-lru; if not, "
            "give a TTL to those that can, or say noeviction and watch used_memory.",
        )
    elif policy == "noeviction" and enough and expires > 0.9 * keys:
        yield seen.finding(
            "notice",
            "policy against use",
            f"maxmemory-policy is noeviction, yet {expires:,} of {keys:,} keys have a TTL, as in a cache: "
            "when memory is full, writes are refused, though almost every key would have gone by itself.",
            "For a cache, CONFIG SET maxmemory-policy allkeys-lru (or allkeys-lfu). For sessions and locks, "
            "which must not go early, noeviction is right: then watch used_memory.",
        )


def _evictable_queue(seen: Seen, policy: str) -> Iterator[Finding]:
    why = [f"{name.upper()} was called {count(n, 'time')}" for name, n in seen.calls(*WAITING).items()]
    sampled = seen.sample.keys if seen.sample else ()
    if streams := sum(key.kind == "stream" for key in sampled):
        why.append(f"{count(streams, 'stream')} among {count(len(sampled), 'sampled key')}")
    groups = seen.sampled.groups if seen.sampled else ()
    locks = [one.prefix for one in groups if LOCKS & set(one.prefix.lower().split(":"))]
    if locks:
        why.append(f"keys called {', '.join(locks[:3])}")
    if why:
        yield seen.finding(
            "warning",
            "policy against use",
            f"maxmemory-policy is {policy}, which may delete any key when memory is full, and there are "
            f"what a cache does not have: {'; '.join(why[:4])}. A queue goes with all that waits in it, a "
            "lock with its holder unaware.",
            "Keep queues, streams and locks on a server of their own with noeviction; or CONFIG SET "
            "maxmemory-policy volatile-lru, and give a TTL to nothing but cached values.",
        )


def _fragmentation(seen: Seen) -> Iterator[Finding]:
    """jemalloc tells how much of its pages is in use; of other allocators only the process is known."""
    jemalloc = seen.info.get("mem_allocator", "").startswith("jemalloc")
    held, used = (
        ("allocator_active", "allocator_allocated") if jemalloc else ("used_memory_rss", "used_memory")
    )
    pages, data = seen.number(held) or 0, seen.number(used) or 0
    limits = seen.limits
    if pages - data < limits.fragmentation_bytes or pages < limits.fragmentation_ratio * data:
        return
    fix = "CONFIG SET activedefrag yes moves the data together while it runs" if jemalloc else "A restart"
    yield seen.finding(
        "warning",
        "fragmentation",
        f"{size(data)} of data hold {size(pages)} of memory ({pages / max(data, 1):.1f} times as much): "
        f"{size(pages - data)} are lost between them.",
        f"{fix}; MEMORY PURGE gives back what is wholly free. It comes of deleting much at once, or of "
        "values that grow.",
    )


def _evictions(seen: Seen) -> Iterator[Finding]:
    """What a cache is for, unless it evicts what is asked for next: the hit ratio tells.

    TYPE and PTTL count as lookups that hit. An audit sends them for every key that it looks at, so they are
    taken out.
    """
    evicted = seen.number("evicted_keys")
    if not evicted:
        return
    inspected = sum(seen.calls("type", "pttl").values())
    hits = max(0, (seen.number("keyspace_hits") or 0) - inspected)
    misses = seen.number("keyspace_misses") or 0
    lookups = hits + misses
    poor = lookups >= seen.limits.lookups_enough and hits < seen.limits.hit_ratio * lookups
    ratio = f"; {share(hits / lookups)} of {lookups:,} lookups hit" if lookups else ""
    yield seen.finding(
        "warning" if poor else "notice",
        "evictions",
        f"{count(evicted, 'key was', 'keys were')} evicted since the start (or CONFIG RESETSTAT), by "
        f"{seen.setting('maxmemory-policy')}{ratio}.",
        "A cache may: judge it by its hit ratio, and raise maxmemory, shorten TTLs or try allkeys-lfu where "
        "that is poor. What is no cache must not be evicted at all: noeviction.",
    )
