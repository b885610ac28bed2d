"""Who may come in, from where, and what they may do."""

from __future__ import annotations

from collections.abc import Iterator

from labkit.rig.audit.asking import DANGEROUS
from labkit.rig.audit.report import Finding, Severity, count
from labkit.rig.audit.seen import Seen, User


def check(seen: Seen) -> Iterator[Finding]:
    yield from _password(seen)
    yield from _default_user(seen)
    yield from _protected_mode(seen)
    yield from _bound(seen)
    yield from _tls(seen)
    yield from _dangerous(seen)
    yield from _debug(seen)


def _open(user: User | None) -> bool:
    """Can whoever reaches the port do something with data, or to the server, as this user?"""
    return user is not None and user.nopass and (user.may is None or bool(user.may))


def _unlocked(seen: Seen) -> bool:
    """Is the default user open? Where the users are unknown, this client may have come in as that one."""
    return seen.came_in_freely if seen.users is None else _open(seen.default)


def _password(seen: Seen) -> Iterator[Finding]:
    if seen.users is None:
        names = ["default"] * _unlocked(seen)
    else:
        names = [user.name for user in seen.users if _open(user)]
    if not names:
        return
    how = f"{count(len(names), 'user is', 'users are')} on and without a password: {', '.join(names[:5])}"
    severity: Severity = "critical" if seen.beyond and not seen.protected else "warning"
    where = (
        "the port can be reached from beyond this machine"
        if severity == "critical"
        else "every program on this machine is in"
    )
    yield seen.finding(
        severity,
        "no password",
        f"{how}; {where}.",
        "ACL SETUSER a user for each application, then ACL SETUSER default off (or requirepass <long random "
        "string>), and ACL SAVE or redis.conf, so that a restart keeps it.",
    )


def _default_user(seen: Seen) -> Iterator[Finding]:
    default = seen.default
    if default and not default.nopass and default.administrator:
        yield seen.finding(
            "notice",
            "default user unrestricted",
            "The default user is on and may send every command: whoever knows its one password, as every "
            "application that was given it, may empty or stop the server.",
            "ACL SETUSER a user for each application with the commands and keys that it needs, then "
            "ACL SETUSER default off.",
        )


def _protected_mode(seen: Seen) -> Iterator[Finding]:
    if seen.setting("protected-mode") != "no":
        return
    unlocked = _unlocked(seen)
    severity: Severity = "notice" if not unlocked else "critical" if seen.beyond else "warning"
    state = "has no password" if unlocked else "cannot come in without a password"
    yield seen.finding(
        severity,
        "protected mode off",
        f"protected-mode is no; the default user {state}{' now' if unlocked else ', for now'}.",
        "CONFIG SET protected-mode yes: it refuses other machines whenever the default user has no password, "
        "and costs nothing else.",
    )


def _bound(seen: Seen) -> Iterator[Finding]:
    if not seen.wildcard:
        return
    unlocked = _unlocked(seen)
    plain = seen.setting("port") != "0"
    severity: Severity = "warning"
    besides = "so that a password is all that stands before it"
    if seen.protected or not plain:
        severity = "notice"
        besides = "behind protected mode alone" if seen.protected else "with TLS"
    elif unlocked:
        severity, besides = "critical", "and asks for no password"
    yield seen.finding(
        severity,
        "bound to the world",
        f'It listens on every network interface (bind is "{seen.setting("bind")}"), {besides}.',
        "CONFIG SET bind to 127.0.0.1 and the one address that the applications use; a firewall besides. In "
        "a container, publish the port to one address only.",
    )


def _tls(seen: Seen) -> Iterator[Finding]:
    """By the settings, by who is connected (a client of the TLS port speaks TLS), and by this very client."""
    tls = seen.config.get("tls-port", "0")
    listens = seen.beyond and seen.setting("port") not in (None, "0") and not seen.protected
    plain = sum(_in_the_clear(seen, client, tls) for client in seen.clients or () if seen.config)
    told = ["it can be reached from other machines on a port without TLS"] if listens else []
    if plain:
        told.append(f"{plain} of {len(seen.clients or ())} clients come from other machines in the clear")
    elif seen.comes_from_beyond(seen.me) and not seen.tls:
        told.append("this very client comes from another machine in the clear")
    if not told:
        return
    offers = "" if tls == "0" else f", beside the TLS port {tls}"
    evidence = "; ".join(told)
    yield seen.finding(
        "warning",
        "no TLS",
        f"{evidence[0].upper()}{evidence[1:]}{offers}: who listens on the way reads passwords and data.",
        "Set tls-port with tls-cert-file, tls-key-file and tls-ca-cert-file, then port 0; or bind to "
        "loopback and let a TLS proxy stand before it.",
    )


def _in_the_clear(seen: Seen, client: dict[str, str], tls: str) -> bool:
    return seen.comes_from_beyond(client) and client.get("laddr", "").rpartition(":")[2] != tls


def _dangerous(seen: Seen) -> Iterator[Finding]:
    told = []
    for user in seen.users or ():
        if user.may and not user.administrator and not user.nopass:
            can = [name for name in DANGEROUS if name in user.may]
            told += [f"{user.name} ({', '.join(can)})"] if can else []
    if told:
        shown = "; ".join(told[:5]) + (f"; and {len(told) - 5} more" if len(told) > 5 else "")
        yield seen.finding(
            "warning",
            "dangerous commands allowed",
            f"Users who are no administrators may send what empties, stops or stalls the server: {shown}.",
            "ACL SETUSER <user> -@dangerous -@admin, then add back what it needs, as +info. Note that +@read "
            "includes KEYS, and +@write FLUSHALL.",
        )


def _debug(seen: Seen) -> Iterator[Finding]:
    names = ("enable-debug-command", "enable-module-command", "enable-protected-configs")
    if wide := [name for name in names if seen.config.get(name) == "yes"]:
        yield seen.finding(
            "warning",
            "debug commands enabled",
            f"{' and '.join(wide)} {'is' if len(wide) == 1 else 'are'} yes: an administrator's stolen "
            "password is then good for crashing the server, or for running code on this machine.",
            f"Set {wide[0]} to no (or local) in redis.conf and restart: it cannot be changed at run time.",
        )
