"""What is known of one server, as the checks read it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from labkit.rig.audit.limits import Limits
from labkit.rig.audit.replies import fields
from labkit.rig.audit.report import Finding, Sampled, Severity, Unseen
from labkit.rig.audit.sampling import Sample


class User(NamedTuple):
    """An ACL user that can log in. `may`: which of DANGEROUS, GET and SET it may send; None for unknown."""

    name: str
    nopass: bool
    rules: tuple[str, ...]
    may: frozenset[str] | None = None

    @property
    def key(self) -> str:
        """A key that its first pattern allows, so far as one can tell; "" where no pattern allows any."""
        pattern = next((rule for rule in self.rules if rule[:1] in ("~", "%")), "")
        return pattern.partition("~")[2].replace("*", "x")

    @property
    def administrator(self) -> bool:
        if self.may is not None:
            return "ACL SETUSER" in self.may
        return "+@all" in self.rules and not any(rule.startswith("-") for rule in self.rules)


class Slow(NamedTuple):
    """An entry of the slow log: without arguments, which are data."""

    command: str
    seconds: float


@dataclass
class Seen:
    """Everything that is known of one server. What was refused is empty or None, and stands in `unseen`."""

    node: str
    limits: Limits
    info: dict[str, str]
    config: dict[str, str]
    me: dict[str, str]
    slow: tuple[Slow, ...] | None
    users: tuple[User, ...] | None
    without_password: bool
    """Did this client come in without one?"""
    tls: bool
    """Does this client speak TLS?"""
    default_nopass: bool = False
    """Has the default user no password, whether it is on or off?"""
    clients: tuple[dict[str, str], ...] | None = None
    docs: dict[str, dict[str, Any]] = field(default_factory=dict)
    cluster: dict[str, str] = field(default_factory=dict)
    sample: Sample | None = None
    sampled: Sampled | None = None
    unseen: list[Unseen] = field(default_factory=list)
    address: str = ""

    @property
    def version(self) -> str:
        """`Redis 8.2.3`, `Valkey 9.0.1`, or "" where INFO was refused."""
        valkey, version = self.info.get("valkey_version"), self.info.get("redis_version", "")
        return f"Valkey {valkey}" if valkey else f"Redis {version}" if version else ""

    @property
    def role(self) -> str:
        return {"master": "primary", "slave": "replica"}.get(self.info.get("role", ""), "")

    def finding(self, severity: Severity, name: str, evidence: str, fix: str) -> Finding:
        return Finding(severity, name, evidence, fix, self.node)

    def number(self, name: str) -> int | None:
        """Of INFO."""
        return whole(self.info.get(name))

    def setting(self, name: str) -> str | None:
        """Of CONFIG, or of INFO where that says the same; None where neither does."""
        return self.config.get(name, self.info.get(name.replace("-", "_")))

    @cached_property
    def stats(self) -> dict[str, dict[str, str]]:
        """`{"config|get": {"calls": "1", …}}`, of the commands that were called."""
        lines = {name.removeprefix("cmdstat_"): fields(line) for name, line in self._starting("cmdstat_")}
        return {name: told for name, told in lines.items() if int(told.get("calls", 0))}

    def calls(self, *commands: str) -> dict[str, int]:
        """How often each of these was called, since the start or CONFIG RESETSTAT."""
        return {name: int(self.stats[name]["calls"]) for name in commands if name in self.stats}

    def _starting(self, prefix: str) -> list[tuple[str, str]]:
        return [(name, line) for name, line in self.info.items() if name.startswith(prefix)]

    @cached_property
    def errors(self) -> dict[str, int]:
        """How many errors of each kind were answered: `{"OOM": 3}`."""
        return {
            name.removeprefix("errorstat_"): int(fields(line).get("count", 0))
            for name, line in self._starting("errorstat_")
        }

    @property
    def replicas(self) -> list[dict[str, str]]:
        """As a primary tells of them."""
        return [fields(line) for name, line in self._starting("slave") if name[5:].isdigit()]

    @property
    def is_replica(self) -> bool:
        return self.info.get("role") == "slave"

    @cached_property
    def databases(self) -> dict[int, tuple[int, int]]:
        """By its number, how many keys each database has, and how many of them with a TTL: exactly."""
        told = {int(name[2:]): fields(line) for name, line in self._starting("db") if name[2:].isdigit()}
        return {db: (int(one["keys"]), int(one["expires"])) for db, one in told.items()}

    @property
    def keys(self) -> tuple[int, int]:
        """Keys in all databases, and how many have a TTL."""
        both = list(self.databases.values())
        return sum(keys for keys, _ in both), sum(expires for _, expires in both)

    @property
    def evicts_everything(self) -> bool:
        """Is it set up as a cache: bounded, and any key may go?"""
        limited = self.setting("maxmemory") not in (None, "0")
        return limited and (self.setting("maxmemory-policy") or "").startswith("allkeys")

    @property
    def default(self) -> User | None:
        """The default user, if it may log in."""
        return next((user for user in self.users or () if user.name == "default"), None)

    @property
    def came_in_freely(self) -> bool:
        """Did this client come in without a password, as the default user?"""
        answered = bool(self.info or self.me)
        return self.without_password and answered and self.me.get("user", "default") == "default"

    @property
    def protected(self) -> bool:
        """Does protected mode refuse whoever does not come from this machine?

        While the default user has no password, be it off; where the users are unknown, this client tells.
        """
        nopass = self.came_in_freely if self.users is None else self.default_nopass
        return self.setting("protected-mode") == "yes" and nopass

    @property
    def wildcard(self) -> bool:
        """Does it listen on every interface?"""
        return any(address in ("*", "0.0.0.0", "::", "::*") for address in self._bound)

    @property
    def _bound(self) -> list[str]:
        """Nothing where it has no port, only a Unix socket."""
        if self.setting("port") == "0" and self.config.get("tls-port", "0") == "0":
            return []
        return [address.removeprefix("-") for address in (self.setting("bind") or "").split()]

    @property
    def beyond(self) -> bool:
        """Can it be reached from beyond this machine, by its settings or by this very connection?"""
        return any(map(_is_beyond, self._bound)) or self.comes_from_beyond(self.me)

    @staticmethod
    def comes_from_beyond(client: dict[str, str]) -> bool:
        """Does this client, of CLIENT LIST, come from another machine? False for a Unix socket."""
        host = client.get("addr", "").rpartition(":")[0].strip("[]")
        return bool(host) and not host.startswith("/") and _is_beyond(host)


def whole(text: str | None) -> int | None:
    """The number that a text is; None for anything else."""
    return int(text) if text and text.removeprefix("-").isdecimal() else None


def _is_beyond(host: str) -> bool:
    try:
        address = ipaddress.ip_address({"*": "0.0.0.0", "::*": "::"}.get(host, host))
    except ValueError:
        return host != "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_loopback
