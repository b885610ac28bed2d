"""What a restart or a crash leaves."""

from __future__ import annotations

from collections.abc import Iterator

from labkit.rig.audit.report import Finding, Severity, count
from labkit.rig.audit.seen import Seen


def check(seen: Seen) -> Iterator[Finding]:
    yield from _kept(seen)
    yield from _appendfsync(seen)
    yield from _failed(seen)


def _append_only(seen: Seen) -> bool:
    return seen.setting("appendonly") == "yes" or seen.number("aof_enabled") == 1


def _kept(seen: Seen) -> Iterator[Finding]:
    """A cache need not be kept; of anything else, the sentence says what is lost."""
    save = seen.setting("save")
    if save is None or _append_only(seen) or seen.evicts_everything:
        return
    keys, expires = seen.keys
    if save:
        yield seen.finding(
            "notice",
            "snapshots only",
            f'save is "{save}" and there is no append-only file: a crash loses what was written since the '
            f"last snapshot, {_at_most(save)}.",
            "CONFIG SET appendonly yes (and appendfsync everysec) bounds the loss to about a second. Do it "
            "at run time first: a restart with appendonly yes and no file begins empty.",
        )
        return
    severity: Severity = "critical" if keys > expires else "warning"
    if seen.is_replica:
        severity = "notice"
    now = f", now {count(keys, 'key')}, {keys - expires:,} of them without a TTL" if seen.info else ""
    others = " It is a replica, so its data come back from the primary, unless a failover makes it one."
    yield seen.finding(
        severity,
        "no persistence",
        "Neither snapshots (save is empty) nor an append-only file: a restart loses everything"
        f"{now}.{others if seen.is_replica else ''}",
        "CONFIG SET appendonly yes with appendfsync everysec, at run time first. If all of it may be lost, "
        "say so: set maxmemory and maxmemory-policy allkeys-lru, as for a cache.",
    )


def _at_most(save: str) -> str:
    """How much that is: a rule that waits for several changes may wait for ever."""
    rules = list(map(int, save.split()))
    sure = [seconds for seconds, changes in zip(rules[::2], rules[1::2], strict=True) if changes <= 1]
    return f"up to {min(sure):,} s of it" if sure else "however long ago that was: few changes start none"


def _appendfsync(seen: Seen) -> Iterator[Finding]:
    when = seen.setting("appendfsync")
    if not _append_only(seen) or when not in ("no", "always"):
        return
    if when == "no":
        yield seen.finding(
            "warning",
            "appendfsync no",
            "appendfsync is no: a crash of the machine loses what the operating system had not yet written, "
            "usually up to 30 s on Linux.",
            "CONFIG SET appendfsync everysec: at most about a second is lost, at almost the same speed.",
        )
    else:
        yield seen.finding(
            "notice",
            "appendfsync always",
            "appendfsync is always: every write waits until it is on the disk, as do all others behind it.",
            "Keep it if no acknowledged write may be lost, and measure; else CONFIG SET appendfsync "
            "everysec.",
        )


def _failed(seen: Seen) -> Iterator[Finding]:
    info = seen.info
    if info.get("rdb_last_bgsave_status") == "err":
        since = seen.number("rdb_changes_since_last_save") or 0
        yield seen.finding(
            "critical",
            "snapshot failed",
            f"The last snapshot failed; {count(since, 'change')} since the last good one. With "
            "stop-writes-on-bgsave-error yes, the default, writes are refused (MISCONF) while it is so.",
            "The server's log says why: no space, no right to the folder, or no memory to fork "
            "(vm.overcommit_memory=1). Then BGSAVE.",
        )
    parts = {"aof_last_write_status": "writing to", "aof_last_bgrewrite_status": "rewriting"}
    if failed := [what for name, what in parts.items() if info.get(name) == "err"]:
        yield seen.finding(
            "critical" if "writing to" in failed else "warning",
            "append-only file failed",
            f"The last attempt at {' and '.join(failed)} the append-only file failed"
            + (
                "; writes are refused (MISCONF) until it works."
                if "writing to" in failed
                else ": it grows on."
            ),
            "The server's log says why: no space, as a rule. Make room; it tries again by itself "
            "(BGREWRITEAOF for a rewrite).",
        )
