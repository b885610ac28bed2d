"""What an audit hands back: findings, what could not be seen, what was sampled; and how they are shown."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["critical", "warning", "notice"]

SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "notice")
"""Critical: data is lost, refused, or open to strangers, now. Warning: it will be. Notice: to be decided."""

SCHEMA = 1
"""The version of what `to_json()` gives; it changes only when something is renamed or removed."""

NAMES = {
    "node unreachable": "a primary of the cluster does not answer",
    "busy with a script": "a script runs without end, and nobody is served",
    "cluster down": "the cluster says that it does not serve every slot",
    "no password": "whoever reaches the port may work as a user that has no password",
    "default user unrestricted": "the default user has a password, and every right",
    "protected mode off": "nothing refuses strangers if the default user has no password",
    "bound to the world": "the server listens on every network interface",
    "no TLS": "passwords and data go beyond this machine in the clear",
    "dangerous commands allowed": "users who are no administrators may stop, empty or stall the server",
    "debug commands enabled": "DEBUG, MODULE or protected settings are open to remote clients",
    "no maxmemory": "nothing bounds the memory but the machine's end",
    "memory nearly full": "soon, or already, writes are refused: nothing may be evicted",
    "policy against use": "maxmemory-policy fits neither the keys nor what is done with them",
    "fragmentation": "the server holds far more memory than its data",
    "evictions": "keys were deleted for want of memory",
    "no persistence": "a restart begins empty",
    "snapshots only": "a crash loses what was written since the last snapshot",
    "appendfsync no": "when a write reaches the disk is the operating system's affair",
    "appendfsync always": "every write waits for the disk",
    "snapshot failed": "the last RDB snapshot was not written",
    "append-only file failed": "the append-only file could not be written, or not rewritten",
    "replication link down": "a replica has no link to its primary",
    "replication lag": "a replica is behind its primary",
    "writable replica": "a replica takes writes that its primary never hears of",
    "keys without TTL": "keys that never go, and that nothing evicts",
    "big keys": "single keys so large that one command on them stalls everybody",
    "slow commands": "the slow log has entries",
    "dangerous commands in use": "KEYS, MONITOR and the like were called",
    "deprecated commands": "commands were called that the server itself calls deprecated",
    "blocked clients": "clients wait for what does not come",
    "clients near the limit": "soon, nobody more can connect",
    "connections rejected": "clients were turned away, since there were too many",
    "clients evicted": "clients were disconnected, since all together held more than maxmemory-clients",
    "output buffers unlimited": "a client that does not read makes the server hold its replies without limit",
    "large output buffer": "a client holds many replies that it has not read",
}
"""Every finding that there can be, by its name, in the order in which those of one severity are told."""

STYLES = {"critical": "#b3261e", "warning": "#a15c00", "notice": "#3d5a80"}


@dataclass(frozen=True)
class Finding:
    """One thing found: `evidence` is a sentence with its numbers, `fix` what to set or send, and why.

    `node` is "" for a single server; in a cluster "primary 2", or "primary 2, primary 3" for both. Raises
    ValueError for a name not in NAMES.
    """

    severity: Severity
    name: str
    evidence: str
    fix: str
    node: str = ""

    def __post_init__(self) -> None:
        if self.name not in NAMES or self.severity not in SEVERITIES:
            raise ValueError(f"{self.severity} finding {self.name!r}; names are in NAMES")


@dataclass(frozen=True)
class Unseen:
    """What could not be seen, `why` not, and the `right` that an ACL user lacks for it ("" if none helps)."""

    what: str
    why: str
    right: str = ""
    node: str = ""


@dataclass(frozen=True)
class Group:
    """The sampled keys of one prefix: so many, so many of them without a TTL, and what follows for all.

    `low` and `high` bound the share without a TTL among *all* keys of that prefix (Wilson's interval, 95 %);
    both are the very share where every key was looked at.
    """

    prefix: str
    keys: int
    without_ttl: int
    low: float
    high: float


@dataclass(frozen=True)
class Big:
    """A large key, by its own name, which is data: no report and no JSON shows it unasked.

    They do show its `prefix`, which is the whole name where that is mere words.
    """

    name: bytes
    prefix: str
    kind: str
    bytes: int | None
    elements: int | None


@dataclass(frozen=True)
class Sampled:
    """Of the `of` keys of database `db`, `keys` were looked at. `complete`: these were all.

    `biggest` are the largest of them, the largest first.
    """

    db: int
    keys: int
    of: int
    complete: bool
    groups: tuple[Group, ...] = ()
    biggest: tuple[Big, ...] = field(default=(), repr=False)
    node: str = ""

    def __str__(self) -> str:
        where = f"{self.node}: " if self.node else ""
        how = ", all of them" if self.complete and self.keys else ""
        return f"{where}{count(self.keys, 'key')} of {self.of:,} in database {self.db}{how}"

    @property
    def df(self) -> pd.DataFrame:
        """One row a prefix: prefix, keys, without_ttl, low, high."""
        import pandas as pd

        return pd.DataFrame([asdict(g) for g in self.groups], columns=list(Group.__dataclass_fields__))


@dataclass(frozen=True)
class Node:
    """A server that was looked at. No report and no JSON shows its `address` unasked."""

    version: str
    role: str
    node: str = ""
    address: str = ""


@dataclass(frozen=True, repr=False)
class Audit:
    """What was found, the worst first; a table in a notebook, a report as `str()`.

    `findings == ()` and `unseen == ()` together are a clean bill. `exit_code` is what the command line ends
    with: 0 for no finding or only notices, 1 for warnings, 2 for anything critical.
    """

    findings: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]
    sampled: tuple[Sampled, ...]
    nodes: tuple[Node, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of what was found: `"no maxmemory" in audit(r).names`."""
        return frozenset(finding.name for finding in self.findings)

    def found(self, word: str) -> tuple[Finding, ...]:
        """The findings with `word` in their names: `audit(r).found("maxmemory")`.

        Raises ValueError where no finding could ever have it: a slip of the pen is no clean bill.
        """
        if not any(word in name for name in NAMES):
            raise ValueError(f"no finding is called {word!r}; NAMES has {', '.join(NAMES)}")
        return tuple(finding for finding in self.findings if word in finding.name)

    @property
    def exit_code(self) -> int:
        """0, 1 or 2, by the worst finding."""
        worst = {finding.severity for finding in self.findings}
        return 2 if "critical" in worst else 1 if "warning" in worst else 0

    @property
    def summary(self) -> str:
        """`1 critical, 2 warnings`, `nothing found`, or `nothing found in what could be seen`."""
        counts = {level: sum(f.severity == level for f in self.findings) for level in SEVERITIES}
        plural = {"critical": "critical", "warning": "warnings", "notice": "notices"}
        told = [f"{n} {level if n == 1 else plural[level]}" for level, n in counts.items() if n]
        nothing = "nothing found" + (" in what could be seen" if self.unseen else "")
        return ", ".join(told) or nothing

    @property
    def df(self) -> pd.DataFrame:
        """One row a finding: severity, name, node, evidence, fix."""
        import pandas as pd

        columns = ["severity", "name", "node", "evidence", "fix"]
        return pd.DataFrame([asdict(finding) for finding in self.findings], columns=columns)

    def to_json(self, private: bool = False) -> str:
        """The same as JSON, for programs. Never a password; addresses and key names only with `private=True`.

            {"schema": 1, "exit_code": 0 | 1 | 2,
             "nodes":    [{"version", "role", "node"}],                               private: "address"
             "findings": [{"severity", "name", "evidence", "fix", "node"}],           the worst first
             "unseen":   [{"what", "why", "right", "node"}],
             "sampled":  [{"db", "keys", "of", "complete", "node",
                           "groups": [{"prefix", "keys", "without_ttl", "low", "high"}]}]}
                                  private: "biggest": [{"name", "prefix", "kind", "bytes", "elements"}]

        A key's `prefix` is always shown, and is its whole name where that is mere words.
        A name that is no UTF-8 is written with \\x for its bytes.
        """
        parts: dict[str, Any] = {"schema": SCHEMA, "exit_code": self.exit_code}
        for name in ("nodes", "findings", "unseen", "sampled"):
            parts[name] = [asdict(one) for one in getattr(self, name)]
        for one in [*parts["nodes"], *parts["sampled"]] if not private else ():
            one.pop("address", None), one.pop("biggest", None)
        return json.dumps(parts, indent=2, ensure_ascii=False, default=_readable)

    def __repr__(self) -> str:
        names = {level: [_called(f) for f in self.findings if f.severity == level] for level in SEVERITIES}
        told = [f"{level}: {', '.join(found)}" for level, found in names.items() if found]
        seen = f"; {count(len(self.unseen), 'thing')} unseen" if self.unseen else ""
        return f"Audit({'; '.join(told) or 'nothing found'}{seen})"

    def __str__(self) -> str:
        lines = [f"{self._who()}: {self.summary}.", ""]
        for finding in self.findings:
            lines += [f"{finding.severity.upper():<9} {_called(finding)}"]
            lines += [_wrapped(finding.evidence), _wrapped(f"Fix: {finding.fix}"), ""]
        lines += [f"Not seen: {self._why(one)}" for one in self.unseen] + [""] * bool(self.unseen)
        lines += [f"Sampled: {one}." for one in self.sampled]
        return "\n".join(lines)

    def _who(self) -> str:
        if len(self.nodes) == 1:
            return ", ".join(filter(None, (self.nodes[0].version, self.nodes[0].role))) or "This server"
        return f"A cluster of {count(len(self.nodes), 'primary', 'primaries')}"

    @staticmethod
    def _why(one: Unseen) -> str:
        where = f"{one.node}: " if one.node else ""
        return f"{where}{one.what} ({one.why}{f'; needs {one.right}' if one.right else ''})"

    def _repr_html_(self) -> str:
        left = ' style="text-align:left;vertical-align:top;white-space:normal"'
        rows = "".join(
            f'<tr><td{left}><b style="color:{STYLES[f.severity]}">{f.severity}</b></td>'
            f"<th{left}>{escape(_called(f))}</th><td{left}>{escape(f.evidence)}</td>"
            f"<td{left}>{escape(f.fix)}</td></tr>"
            for f in self.findings
        )
        head = "".join(f"<th{left}>{name}</th>" for name in ("severity", "finding", "evidence", "fix"))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        foot = [f"{self._who()}: {self.summary}."]
        foot += [f"Not seen: {self._why(one)}" for one in self.unseen]
        foot += [f"Sampled: {one}." for one in self.sampled]
        return f'{table}<p style="margin:0.4em 0">{"<br>".join(map(escape, foot))}</p>'


def _called(finding: Finding) -> str:
    return f"{finding.name} ({finding.node})" if finding.node else finding.name


def _readable(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * 10, subsequent_indent=" " * 10)


def count(number: int, one: str, many: str = "") -> str:
    """`1 key`, `1,200 keys`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(number: float) -> str:
    """Bytes as people read them, as INFO does: 1 MB is 1,048,576 bytes."""
    for unit in ("B", "KB", "MB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} GB"


def share(part: float) -> str:
    """0.123 as `12 %`, and never 0 % or 100 % for what is not."""
    exact = 100 * part
    if exact in (0, 100) or 1 <= exact <= 99:
        return f"{exact:.0f} %"
    close = {"0.0 %": "under 0.1 %", "100.0 %": "over 99.9 %" if exact < 100 else "over 100 %"}
    told = f"{exact:.1f} %"
    return close.get(told, told)
