"""Who is connected, who waits, and who holds what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from labkit.rig.audit.report import Finding, count, share, size
from labkit.rig.audit.seen import Seen, whole


def check(seen: Seen) -> Iterator[Finding]:
    yield from _blocked(seen)
    yield from _many(seen)
    yield from _rejected(seen)
    yield from _evicted(seen)
    yield from _unlimited(seen)
    yield from _large(seen)


def _blocked(seen: Seen) -> Iterator[Finding]:
    """Workers of a queue are blocked most of the time; only for how long can be told from outside."""
    blocked = [client for client in seen.clients or () if "b" in client.get("flags", "")]
    long = [one for one in blocked if int(one.get("idle", 0)) >= seen.limits.blocked_seconds]
    if not long:
        return
    often = Counter(client.get("cmd", "?").upper() for client in long)
    told = ", ".join(f"{n} in {name}" for name, n in often.most_common(3))
    yield seen.finding(
        "notice",
        "blocked clients",
        f"{count(len(long), 'client has', 'clients have')} been blocked for {seen.limits.blocked_seconds} s "
        f"or longer ({told}), the longest for {max(int(one['idle']) for one in long):,} s: workers that "
        "wait for work, or whose work has been going elsewhere; from here they look the same.",
        "Give blocking commands a timeout of some seconds and call them again, so that a dead connection is "
        "noticed; CLIENT LIST shows names and addresses, CLIENT UNBLOCK id ends one wait.",
    )


def _many(seen: Seen) -> Iterator[Finding]:
    connected, most = seen.number("connected_clients") or 0, whole(seen.setting("maxclients")) or 0
    if most and connected >= seen.limits.clients_share * most:
        yield seen.finding(
            "warning",
            "clients near the limit",
            f"{connected:,} of at most {most:,} clients are connected ({share(connected / most)}).",
            "CONFIG SET maxclients higher (the process needs as many file descriptors), or find who does not "
            "close: CLIENT LIST with large idle; a pool for each process, CONFIG SET timeout.",
        )


def _rejected(seen: Seen) -> Iterator[Finding]:
    if rejected := seen.number("rejected_connections"):
        yield seen.finding(
            "warning",
            "connections rejected",
            f"{count(rejected, 'connection was', 'connections were')} rejected since the start (or CONFIG "
            f"RESETSTAT), since maxclients {seen.setting('maxclients') or '?'} was reached.",
            "CONFIG SET maxclients higher, or find who does not close: CLIENT LIST with large idle.",
        )


def _evicted(seen: Seen) -> Iterator[Finding]:
    if evicted := seen.number("evicted_clients"):
        yield seen.finding(
            "warning",
            "clients evicted",
            f"{count(evicted, 'client was', 'clients were')} disconnected since the start (or CONFIG "
            "RESETSTAT), since the buffers of all together held more than maxmemory-clients, "
            f"{seen.config.get('maxmemory-clients', '?')}. One command with a value that large is enough.",
            "Smaller values and replies, slow readers mended (CLIENT LIST: tot-mem, omem), or CONFIG SET "
            "maxmemory-clients higher.",
        )


def _unlimited(seen: Seen) -> Iterator[Finding]:
    """Of requests and replies one client holds one reply; unbounded is what a subscriber may pile up."""
    words = (seen.config.get("client-output-buffer-limit") or "").split()
    limits = {words[at]: words[at + 1 : at + 4] for at in range(0, len(words), 4)}
    together = seen.config.get("maxmemory-clients", "0")
    kinds = [kind for kind in ("normal", "pubsub") if kind in limits and limits[kind][:2] == ["0", "0"]]
    if kinds and together == "0":
        yield seen.finding(
            "warning" if "pubsub" in kinds else "notice",
            "output buffers unlimited",
            f"client-output-buffer-limit sets no limit for {' and '.join(kinds)} clients, nor does "
            "maxmemory-clients for all together: who asks for much and does not read it fills the memory, "
            "and what it holds counts against maxmemory.",
            "CONFIG SET maxmemory-clients 5% (of maxmemory; the largest are disconnected first, so more "
            "than your largest value)"
            + ("; CONFIG SET client-output-buffer-limit 'pubsub 32mb 8mb 60'." if "pubsub" in kinds else "."),
        )


def _large(seen: Seen) -> Iterator[Finding]:
    """Replicas have limits of their own, and hold much while they are in full synchronisation."""
    clients = [one for one in seen.clients or () if not set(one.get("flags", "")) & set("SM")]
    held = sorted(((int(one.get("omem", 0)), one) for one in clients), key=lambda item: -item[0])
    if large := [item for item in held if item[0] >= seen.limits.output_bytes]:
        most, client = large[0]
        kind = "a subscriber" if "P" in client.get("flags", "") else f"a client in {client.get('cmd', '?')}"
        yield seen.finding(
            "warning",
            "large output buffer",
            f"{count(len(large), 'client holds', 'clients hold')} {size(seen.limits.output_bytes)} or more "
            f"of replies unread; the most is {size(most)}, of {kind}.",
            f"It reads too slowly: CLIENT LIST ID {client.get('id', '?')} says who, CLIENT KILL ID ends it. "
            "Fewer or smaller messages, a stream for pub/sub, replies in parts.",
        )
