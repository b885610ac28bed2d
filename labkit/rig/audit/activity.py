"""What is done with the server: slow commands, dangerous ones, deprecated ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from labkit.rig.audit.report import Finding, count
from labkit.rig.audit.seen import Seen, whole

STALLING = ("keys", "save", "debug", "monitor", "flushall", "flushdb")
"""KEYS and SAVE hold up everybody, MONITOR halves the throughput, FLUSHALL and FLUSHDB empty the server."""

OWN = frozenset({"command", "acl", "info", "slowlog"})
"""Of inspection, as by an audit: no application's."""

LIBRARIES = frozenset({"quit", "cluster|slots"})
"""Sent by client libraries of themselves, whatever the application does."""


def check(seen: Seen) -> Iterator[Finding]:
    yield from _busy(seen)
    yield from _slow(seen)
    yield from _dangerous(seen)
    yield from _deprecated(seen)


def _busy(seen: Seen) -> Iterator[Finding]:
    if any(one.why.startswith("BUSY") for one in seen.unseen):
        yield seen.finding(
            "critical",
            "busy with a script",
            "A script or function has run for longer than busy-reply-threshold: everybody is answered "
            "BUSY, as this audit is.",
            "SCRIPT KILL (or FUNCTION KILL) ends one that has not written yet; for one that has, there is "
            "only SHUTDOWN NOSAVE. Then bound its loop.",
        )


def _slow(seen: Seen) -> Iterator[Finding]:
    entries = [entry for entry in seen.slow or () if entry.command not in OWN]
    if not entries:
        return
    slowest = max(entry.seconds for entry in entries)
    often = Counter(entry.command.upper() for entry in entries)
    told = ", ".join(f"{name} {count(n, 'time')}" for name, n in often.most_common(3))
    bound = whole(seen.setting("slowlog-log-slower-than"))
    over = f" (over {bound / 1000:g} ms)" if bound else ""
    yield seen.finding(
        "warning" if slowest >= seen.limits.slow_seconds else "notice",
        "slow commands",
        f"The slow log{over} has {count(len(entries), 'entry', 'entries')}: {told}; the slowest held up "
        f"every client for {slowest * 1000:,.0f} ms.",
        "SLOWLOG GET shows their arguments. Read in parts (SCAN, HSCAN, LIMIT), UNLINK for DEL, shorter "
        "scripts; SLOWLOG RESET once it is mended, to see whether it comes back.",
    )


def _dangerous(seen: Seen) -> Iterator[Finding]:
    calls = seen.calls(*STALLING)
    watching = sum("O" in client.get("flags", "") for client in seen.clients or ())
    if not calls and not watching:
        return
    told = [f"{name.upper()} {count(n, 'time')}{_took(seen, name)}" for name, n in calls.items()]
    told += [f"{count(watching, 'client')} in MONITOR now"] * bool(watching)
    long = any(_mean(seen, name) >= seen.limits.slow_seconds for name in calls)
    yield seen.finding(
        "warning" if long or watching else "notice",
        "dangerous commands in use",
        f"Since the start (or CONFIG RESETSTAT): {', '.join(told)}.",
        "SCAN for KEYS, BGSAVE for SAVE, UNLINK of one's own prefix for FLUSHALL; and ACL SETUSER <user> "
        "-@dangerous, so that it stays so.",
    )


def _mean(seen: Seen, name: str) -> float:
    return float(seen.stats[name].get("usec_per_call", 0)) / 1e6


def _took(seen: Seen, name: str) -> str:
    return f" ({_mean(seen, name) * 1000:,.1f} ms each)" if name in ("keys", "save") else ""


def _deprecated(seen: Seen) -> Iterator[Finding]:
    """By the server's own documents: what it calls deprecated, since when, and what replaces it."""
    old = {name: doc for name, doc in seen.docs.items() if "deprecated" in (doc.get("doc_flags") or ())}
    calls = seen.calls(*(old.keys() - LIBRARIES))
    if not calls:
        return
    most = sorted(calls, key=lambda name: (-calls[name], name))
    told = [
        f"{name.upper()} {count(calls[name], 'time')} (since {old[name].get('deprecated_since', '?')}; now "
        f"{_plain(old[name])})"
        for name in most[:5]
    ]
    more = f" and {count(len(most) - 5, 'other')}" if len(most) > 5 else ""
    yield seen.finding(
        "notice",
        "deprecated commands",
        f"The server calls deprecated: {', '.join(told)}{more}.",
        f"They still work. In new code, for {most[0].upper()} use {_plain(old[most[0]])}.",
    )


def _plain(doc: dict[str, object]) -> str:
    """What replaces it, without the marks of redis.io: `HSET`, or `!GET` for what is no command."""
    return str(doc.get("replaced_by", "nothing")).replace("`!", "").replace("`", "")
