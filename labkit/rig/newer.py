"""Commands newer than the oldest Redis of the workbook, 7.0: which are missing here, and what they save.

    print(*missing(r, "lock"), sep=", ")    # SET IFEQ (8.4), DELEX (8.4) on Redis 8.2; nothing on 8.6
    side_by_side(r, command="DELEX", old=by_script, new=by_command, recorded="measured/08_lock_newer.json")

A comparison runs both ways on the server of `r`. Where that lacks the command, the newer way is shown as it
ran elsewhere: a run that really took place, stored by tests/bench_newer.py together with the code that ran.
"""

from __future__ import annotations

import ast
import inspect
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import dedent
from types import FunctionType
from typing import TYPE_CHECKING, Any

from labkit.rig import table
from labkit.rig.connection import server_name, supports
from labkit.rig.wire import tap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COMMANDS", "Newer", "SideBySide", "Way", "missing", "side_by_side"]

SHOWN = 44
"""How many characters of an answer a comparison shows."""


@dataclass(frozen=True)
class Newer:
    """A command or an option of one (`SET IFEQ`), the Redis that it came with, and a chapter that uses it.

    `shipped`: the pattern's own class uses it, too, where the server has it.
    """

    command: str
    since: str
    stem: str
    shipped: bool = False

    def __str__(self) -> str:
        return f"{self.command} ({self.since})"

    def known_to(self, r: Any) -> bool:
        """Does this server know it? One round trip; False also where the server will not say."""
        return supports(r, *self.command.split())


COMMANDS = (
    # Marks Redis 7.4, from which on redis-py keeps copies in the client. It keeps none of Valkey, which may
    # know the command all the same: that is not told as missing here, but the chapter says it.
    Newer("HPEXPIRE", "7.4", "cache"),
    Newer("HSETEX", "8.0", "cache"),
    Newer("HGETEX", "8.0", "cache"),
    Newer("MSETEX", "8.4", "cache"),
    Newer("SET IFEQ", "8.4", "cache"),
    Newer("HSETEX", "8.0", "session"),
    Newer("HGETEX", "8.0", "session"),
    Newer("INCREX", "8.8", "rate_limiter"),  # described there, not run
    Newer("XACKDEL", "8.2", "stream", shipped=True),
    Newer("XREADGROUP CLAIM", "8.4", "stream", shipped=True),
    Newer("XADD IDMP", "8.6", "stream", shipped=True),
    Newer("SET IFEQ", "8.4", "lock", shipped=True),
    Newer("DELEX", "8.4", "lock", shipped=True),
    Newer("ZREVRANK WITHSCORE", "7.2", "leaderboard", shipped=True),
    Newer("WAITAOF", "7.2", "production"),
    Newer("HOTKEYS", "8.6", "production"),
)
"""Without one of these a chapter degrades: it says so in a sentence, or shows a run made elsewhere."""


def missing(r: Any, stem: str) -> tuple[Newer, ...]:
    """What the chapter `stem` ("lock") would use, and this server does not know; () where it has everything.

    The server is asked, whatever its version: one round trip a command. A chapter that uses nothing newer
    than Redis 7.0 misses nothing.
    """
    return tuple(one for one in COMMANDS if one.stem == stem and not one.known_to(r))


@dataclass(frozen=True)
class Way:
    """One way to do it, as it ran: what went over the wire, how much code it took, and what came of it.

    `commands` are the names of those that the client sent (what a script calls is inside the server), `sent`
    and `received` are bytes of RESP. `code` is the function with all that it names of its own: Lua and other
    functions; `lines` counts those of it that are not blank. `answer` is the repr of what it returned (and
    of what was found afterwards). `recorded`: it ran elsewhere, on `server`, and was stored.
    """

    server: str
    recorded: bool
    round_trips: int
    commands: tuple[str, ...]
    sent: int
    received: int
    answer: str
    code: str = field(repr=False)
    around: str = field(repr=False, default="")
    """The code that prepared the run and looked at what came of it; it is not counted."""

    @property
    def lines(self) -> int:
        return sum(1 for line in self.code.splitlines() if line.strip())

    @property
    def characters(self) -> int:
        """Of the code as it stands in the cell, indentation included."""
        return len(self.code)

    @property
    def where(self) -> str:
        """`run here, Redis 8.2.3` or `recorded on Redis 8.6.2`."""
        return f"{'recorded on' if self.recorded else 'run here,'} {self.server}"

    def record(self) -> dict[str, Any]:
        """What is stored of a run, for JSON."""
        names = ("server", "round_trips", "commands", "sent", "received", "answer", "code", "around")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class SideBySide:
    """The classic way and the newer one. `new` is None where it has not run; then `note` says why."""

    newer: Newer
    old: Way
    new: Way | None
    note: str = ""

    @property
    def same(self) -> bool:
        """Have both run, and with the same answer?"""
        return self.new is not None and self.new.answer == self.old.answer

    @property
    def df(self) -> pd.DataFrame:
        """A row for each way that ran: the fields of `Way`, the number of commands, the size of the code."""
        import pandas as pd

        ways = {"classic": self.old, str(self.newer): self.new}
        names = (
            "server",
            "recorded",
            "round_trips",
            "commands",
            "sent",
            "received",
            "lines",
            "characters",
            "answer",
        )
        rows = {way: {n: getattr(ran, n) for n in names} for way, ran in ways.items() if ran}
        made = pd.DataFrame.from_dict(rows, orient="index", columns=names)
        made["commands"] = made["commands"].map(len)
        return made.rename_axis("way")

    def _rows(self) -> list[list[str]]:
        first = ["", "", "round trips", "commands", "bytes sent", "bytes received", "code", "answer"]
        columns = [["classic", *_cells(self.old)]]
        if self.new:
            cells = _cells(self.new)
            columns.append([str(self.newer), *cells[:-1], "the same" if self.same else cells[-1]])
        return [list(row) for row in zip(first, *columns, strict=True)]

    def __repr__(self) -> str:
        return "\n".join([table.text(self._rows()), *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        return table.html(self._rows()) + (f"<p>{escape(self.note)}</p>" if self.note else "")


def side_by_side(
    r: Any,
    *,
    command: str,
    old: Callable[[Any], Any],
    new: Callable[[Any], Any] | None = None,
    setup: Callable[[Any], Any] | None = None,
    after: Callable[[Any], Any] | None = None,
    recorded: str | Path | None = None,
) -> SideBySide:
    """Run `old(r)` and, where the server knows `command`, `new(r)`; count what each sends and its code.

    Before each run `setup(r)` makes the same situation; what `after(r)` finds is part of the answer; neither
    is counted. Each way runs twice and the second run counts: scripts are loaded by then. Where the server
    lacks the command, the newer way is read from the file `recorded`, if what ran there is still the code of
    `new`; else there is none, and the result says why. Without `new` only the classic way runs.
    What a function raises goes through. Raises ValueError for a command that COMMANDS does not list, and for
    functions whose source is not to be had (a lambda has no lines of its own).
    """
    newer = next((one for one in COMMANDS if one.command == command), None)
    if newer is None:
        raise ValueError(f"command is {command!r}; one of {sorted({one.command for one in COMMANDS})}")
    server = server_name(r)
    around = "\n\n".join(_code(one) for one in (setup, after) if one)
    classic = _run(r, server, old, setup, after, around)
    if new is None:
        return SideBySide(newer, classic, None, f"{newer} is described here; it was not run.")
    if newer.known_to(r):
        return SideBySide(newer, classic, _run(r, server, new, setup, after, around))
    way, why = _stored(recorded, command, _code(new), around)
    return SideBySide(newer, classic, way, f"{server} has no {command}{why}." if why else "")


def _run(
    r: Any,
    server: str,
    function: Callable[[Any], Any],
    setup: Callable[[Any], Any] | None,
    after: Callable[[Any], Any] | None,
    around: str,
) -> Way:
    code = _code(function)
    for _ in range(2):  # the first loads scripts
        if setup:
            setup(r)
        with tap(r) as tape, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Call to .*experimental")  # redis-py's, of what is new to it
            returned = function(r)
        answer = repr((returned, after(r)) if after else returned)
    names = tuple(exchange.command[0].upper() for exchange in tape.commands if exchange.command)
    return Way(
        server, False, tape.round_trips, names, tape.bytes_sent, tape.bytes_received, answer, code, around
    )


def _stored(recorded: str | Path | None, command: str, code: str, around: str) -> tuple[Way | None, str]:
    """The recorded run of exactly this code; or None, and why not. (Data that it names are not compared.)"""
    runs: Mapping[str, Any] = {}
    if recorded and Path(recorded).exists():
        runs = json.loads(Path(recorded).read_text(encoding="utf-8"))
    if command not in runs:
        return None, ", and no run of it is recorded"
    run = {**runs[command], "commands": tuple(runs[command]["commands"])}
    if (run["code"], run["around"]) != (code, around):
        return None, f"; what was recorded on {run['server']} is a run of other code than this"
    return Way(**run, recorded=True), ""


def _code(function: Callable[..., Any]) -> str:
    """The source of a function and of what it names of its own: Lua, other functions of the same place."""
    return "\n\n".join(_parts(function, set()))


def _parts(function: Callable[..., Any], seen: set[int]) -> Iterator[str]:
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        raise ValueError(f"{function!r} has no source of its own; give a function made by `def`")
    try:
        source = dedent(inspect.getsource(function)).strip()
    except (OSError, TypeError):
        raise ValueError(f"the source of {function.__name__} is not to be had; define it in a cell") from None
    seen.add(id(function))
    yield source
    known = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    own = {node.id for node in nodes if isinstance(node.ctx, ast.Store)} | set(function.__code__.co_varnames)
    for value in [known.get(node.id) for node in nodes if node.id not in own]:
        if id(value) in seen:
            continue
        if isinstance(value, str) and "\n" in value:
            seen.add(id(value))
            yield value.strip()
        elif isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
            yield from _parts(value, seen)


def _cells(way: Way) -> list[str]:
    counts = Counter(way.commands)
    names = ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())
    answer = way.answer if len(way.answer) <= SHOWN else way.answer[: SHOWN - 1] + "…"
    return [
        way.where,
        str(way.round_trips),
        f"{len(way.commands)}: {names}",
        f"{way.sent:,}",
        f"{way.received:,}",
        f"{way.lines} line{'s' * (way.lines != 1)}, {way.characters} characters",
        answer,
    ]
