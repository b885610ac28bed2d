"""One interleaving as a reader sees it: commands, replies, and what stood in Redis after each step."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.client import NEVER_DECODE

from labkit.rig import lanes
from labkit.rig.footprint import Outside, first_word, text, words
from labkit.rig.stage import Stage, Taken, label

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 48
"""So many characters of a value or a command are shown."""

State = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Step:
    """A step of a trace. `state` is Redis afterwards: pairs of a key and its value as text.

    `kind` is "command", "outside" (not in Redis), "sleep", "timeout" (a wait that timed out), "crash" or
    "expire"; `who` is "" for an expiry; `woken` are clients whose waiting command this step ended, with the
    reply that each got.
    """

    move: str
    who: str
    kind: str
    command: str
    reply: str
    lost: bool
    woken: tuple[tuple[str, str], ...]
    state: State


@dataclass(frozen=True, repr=False)
class Trace:
    """What happened in one interleaving; random values stand in it under stable names, such as token·1.

    `wrong` says what rule it breaks ("" if none, or if it has not ended yet), `broke_at` is the index of the
    step at which that happened. `next` lists the moves that are possible now, and what each would do; it is
    empty when all clients are done. `clients` maps letters to names, `before` is Redis before the first step.
    """

    schedule: str
    clients: tuple[tuple[str, str], ...]
    before: State
    steps: tuple[Step, ...]
    wrong: str
    broke_at: int | None
    results: tuple[str, ...]
    next: tuple[tuple[str, str], ...]

    @property
    def finished(self) -> bool:
        """Whether all clients have come to their end."""
        return not self.next

    @property
    def df(self) -> pd.DataFrame:
        """One row a step: who, command, reply, and Redis afterwards."""
        import pandas as pd

        rows = [(step.who, step.command, step.reply, _line(step.state)) for step in self.steps]
        return pd.DataFrame(rows, columns=["client", "command", "reply", "Redis afterwards"])

    def __repr__(self) -> str:
        width = max((len(step.command) for step in self.steps), default=0)
        lines = [f"schedule {self.schedule or '(none)'}"]
        for number, step in enumerate(self.steps):
            lines.append(f"  {step.who or '·'}  {step.command.ljust(width)}  {_answer(step)}".rstrip())
            lines += [f"  {who}  {'':{width}}  -> {reply}  (it had waited)" for who, reply in step.woken]
            if number == self.broke_at:
                lines.append(f"  ✗ {self.wrong}")
        if self.wrong and self.broke_at is None:
            lines.append(f"  ✗ {self.wrong}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return lanes.html(self)


def _answer(step: Step) -> str:
    if step.lost:
        return f"-> (lost: {step.reply})"
    return f"-> {step.reply}" if step.reply else ""


def _line(state: State) -> str:
    return ", ".join(f"{key} = {value}" for key, value in state)


_SPECIAL, _ESCAPED = r"([\\>])", r"\\\1"
_MOVE = r"[!~]?[A-Z]|\*(?:<((?:[^\\>]|\\.)*)>)?"


def spell(taken: Iterable[Taken]) -> str:
    """The moves as a schedule, which `parse_schedule` reads."""
    return "".join(["*" if step.move[0] == "*" and step.sole else spelled(step.move) for step in taken])


def spelled(move: str) -> str:
    """A move in a schedule, with the name of the key where one expires."""
    return f"*<{re.sub(_SPECIAL, _ESCAPED, move[1:])}>" if move[0] == "*" else move


def parse_schedule(schedule: str) -> list[str]:
    """The moves of a schedule; an expiry without a name is "*". Raises ValueError for what is no schedule."""
    if not re.fullmatch(rf"(?:\s|{_MOVE})*", schedule, re.S):
        raise ValueError(
            f"schedule is {schedule!r}; it must be of A (client A's next step), ~A (the same with its reply "
            "lost), !A (A crashes) and * or *<key> (a key expires)"
        )
    found = re.finditer(_MOVE, schedule, re.S)
    return [move[0] if move[1] is None else "*" + re.sub(r"(?s)\\(.)", r"\1", move[1]) for move in found]


@dataclass
class _Seen:
    """One execution, as it was: values not yet under stable names."""

    before: list[Any]
    steps: list[tuple[Taken, list[Any]]]
    results: list[Any]
    next: list[tuple[str, Sequence[Any]]]
    verdict: tuple[int | None, str] | None


def record(stage: Stage, schedule: str) -> Trace:
    """Run a schedule twice; what differs between the two runs is random, and gets a stable name.

    The second time goes slowly, so that whatever hangs on the time does differ.
    """
    one, other = _watch_warm(stage, schedule), _watch_warm(stage, schedule, pause=0.003)
    names = _Names(stage.footprints.sources)
    names.learn(_values(one), _values(other))
    clients = tuple(
        (name, getattr(actor.fn, "__name__", type(actor.fn).__name__)) for name, actor in stage.actors.items()
    )
    return Trace(
        schedule=spell(taken for taken, _ in one.steps),
        clients=clients,
        before=_state(one.before, names),
        steps=tuple(_step(taken, state, names) for taken, state in one.steps),
        wrong=names.within(one.verdict[1]) if one.verdict else "",
        broke_at=one.verdict[0] if one.verdict else None,
        results=tuple(names.show(result) for result in one.results),
        next=tuple((move, _command(commands, names)) for move, commands in one.next),
    )


def _watch_warm(stage: Stage, schedule: str, pause: float = 0) -> _Seen:
    """Run the schedule on a server that knows all scripts: where it did not, the steps were others."""
    for _ in range(20):
        try:
            seen = _watch(stage, schedule, pause)
        except ValueError:
            if not stage.cold:
                raise
        else:
            if not stage.cold:
                return seen
        stage.warm()
    return _watch(stage, schedule, pause)


def _watch(stage: Stage, schedule: str, pause: float) -> _Seen:
    stage.begin()
    ends: dict[str, tuple[int, int | None]] = {}
    before, steps = _dump(stage, ends), []
    for move in parse_schedule(schedule):
        time.sleep(pause)
        steps.append((stage.do(_possible(stage, move)), _dump(stage, ends)))
    moves = stage.moves()
    verdict = stage.broken if moves else stage.verdict()
    return _Seen(before, steps, stage.results, [(m, stage.pending(m)) for m in moves], verdict)


def _possible(stage: Stage, move: str) -> str:
    """The move by its full name. Raises ValueError, with those that are possible, for one that is not."""
    moves = stage.moves()
    mortal = [m for m in moves if m[0] == "*"]
    if move == "*" and len(mortal) == 1:
        return mortal[0]
    if move not in moves:
        done = spell(stage.taken)
        possible = ", ".join(moves) or "nothing: all clients are done"
        raise ValueError(f"after {done!r} the move {move!r} is not possible; possible is {possible}")
    return move


def _dump(stage: Stage, ends: dict[str, tuple[int, int | None]]) -> list[Any]:
    """Every key with its type, value and TTL in whole seconds, by database and name.

    `ends` remembers when each key is to end, and the TTL that it had when that was seen first: the TTL does
    not shrink because this machine is busy.
    """
    r, found = stage.r, []
    before = r.db
    for db in sorted(int(name[2:]) for name in r.info("keyspace")):
        r.select(db)
        keys: list[Any] = r.execute_command("KEYS", "*", **{NEVER_DECODE: True})
        for key in sorted(keys):
            name, kind, end = label(db, key), text(r.type(key)), r.pexpiretime(key)
            if ends.get(name, (None,))[0] != end:
                left = r.pttl(key)
                ends[name] = end, math.ceil(left / 1000) if left >= 0 else None
            found.append((name, kind, _read(r, key, kind), ends[name][1]))
    r.select(before)
    return found


def _read(r: Any, key: bytes, kind: str) -> Any:
    try:
        return _READ[kind](r, key) if kind in _READ else f"({kind})"
    except UnicodeDecodeError:
        return f"({kind}, not text)"


_READ: dict[str, Any] = {
    "none": lambda r, key: None,
    "string": lambda r, key: r.get(key),
    "list": lambda r, key: r.lrange(key, 0, -1),
    "set": lambda r, key: sorted(r.smembers(key)),
    "hash": lambda r, key: dict(sorted(r.hgetall(key).items())),
    "zset": lambda r, key: dict(r.zrange(key, 0, -1, withscores=True)),
    "stream": lambda r, key: r.xrange(key),
}


def _values(seen: _Seen) -> list[Any]:
    """All values of an execution, in the order in which a reader meets them."""

    def content(dump: list[Any]) -> list[Any]:
        return [(key, value) for key, _, value, _ in dump]

    def replies(taken: Taken) -> Sequence[Any]:
        return () if first_word(taken.commands[-1]) in ("TTL", "PTTL") else taken.replies

    steps = [[taken.commands, replies(taken), taken.woken, content(state)] for taken, state in seen.steps]
    return [content(seen.before), steps, seen.results, [commands for _, commands in seen.next]]


class _Names:
    """Stable names for values that differ from run to run."""

    def __init__(self, scripts: dict[str, str]) -> None:
        self.scripts = scripts
        self._names: dict[Any, str] = {}
        self._counts: dict[str, int] = {}

    def learn(self, one: Any, other: Any, kind: str = "token") -> None:
        """Name whatever differs between the two, or is a moment in time."""
        if isinstance(one, dict) and isinstance(other, dict):
            one, other = list(one.items()), list(other.items())
        if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
            clock = bool(one) and _is_moment(text(one[0]))  # TIME gives seconds and µs
            for a, b in zip(one, other, strict=True):
                self.learn(a, b, "time" if clock else kind)
        elif isinstance(one, str | bytes | int | float) and not isinstance(one, bool):
            value = text(one)
            if value not in self._names and (value != text(other) or _is_moment(value)):
                kind = "time" if _is_moment(value) or _near(value, text(other)) else kind
                self._counts[kind] = self._counts.get(kind, 0) + 1
                self._names[value] = f"{kind}·{self._counts[kind]}"

    def within(self, said: str) -> str:
        """A sentence, in which random values that are long enough to be known stand under their names."""
        for value, name in self._names.items():
            said = said.replace(value, name) if len(value) >= 8 else said
        return said

    def show(self, value: Any) -> str:
        """A value as redis-cli would show it, in one line."""
        if value is None:
            return "(nil)"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, Exception):
            return f"{type(value).__name__}: {self.within(str(value))}"
        if isinstance(value, dict):
            return _short("{" + ", ".join(f"{self.word(k)}: {self.show(v)}" for k, v in value.items()) + "}")
        if isinstance(value, list | tuple | set):
            return _short("[" + ", ".join(map(self.show, value)) + "]")
        if isinstance(value, int | float):
            return self._names.get(text(value), f"{value:g}" if isinstance(value, float) else str(value))
        name = self._names.get(text(value))
        return name or ("OK" if value == "OK" else f'"{_short(text(value))}"')

    def word(self, value: Any) -> str:
        """A value as a word of a command: quoted where it has to be."""
        said = text(value)
        said = self._names.get(said, said)
        said = " ".join(said.split()) if "\n" in said else said
        return f'"{_short(said)}"' if not said or re.search(r"[\s\"'{}]", said) else _short(said)


def _is_moment(value: str) -> bool:
    """Is this a point in time of these years: seconds, ms, µs or ns since 1970, or an entry's id?"""
    if re.fullmatch(r"\d{13}-\d+", value):
        return True
    if not re.fullmatch(r"\d{10}(\.\d+)?|\d{13}(\.\d+)?|\d{16}|\d{19}", value):
        return False
    digits = len(value.partition(".")[0])
    years = (float(value) / 10.0 ** (digits - 10) - time.time()) / (366 * 86_400)
    return -3 < years < 3


def _near(one: str, other: str) -> bool:
    """Are both numbers, such as two readings of a clock in ms, one soon after the other?"""
    try:
        return abs(float(one) - float(other)) <= 2000
    except ValueError:
        return False


def _short(said: str) -> str:
    return said if len(said) <= LONGEST else said[: LONGEST - 1] + "…"


def _state(dump: Sequence[Any], names: _Names) -> State:
    return tuple(
        (names.word(key), names.show(value) + (f" · TTL {left} s" if left is not None else ""))
        for key, _, value, left in dump
    )


def _step(taken: Taken, dump: Sequence[Any], names: _Names) -> Step:
    move = taken.move
    kind = {"*": "expire", "!": "crash"}.get(move[0], "command")
    if taken.commands[0][0] in ("TIMEOUT", "SLEEP"):
        kind = taken.commands[0][0].lower()
    elif kind == "command" and isinstance(taken.commands[0], Outside):
        kind = "outside"
    return Step(
        move=move,
        who="" if kind == "expire" else move[-1],
        kind=kind,
        command=_command(taken.commands, names),
        reply=_reply(taken, names) if kind in ("command", "timeout", "outside") else "",
        lost=move[0] == "~",
        woken=tuple((who, names.show(reply)) for who, reply in taken.woken),
        state=_state(dump, names),
    )


def _reply(taken: Taken, names: _Names) -> str:
    if not taken.replies:
        return "(waits)"
    reply = taken.replies[-1]
    name = words(taken.commands[-1])[0].upper()
    if name in ("PTTL", "TTL") and isinstance(reply, int) and reply > 0:
        unit = 1000 if name == "PTTL" else 1
        return f"about {math.ceil(reply / unit) * unit}"
    return names.show(reply)


def _command(commands: Sequence[tuple[Any, ...]], names: _Names) -> str:
    """As one would type it; a transaction's commands one after the other."""
    first = commands[0]
    if text(first[0])[0] in "*!" and len(first) == 1:
        return f"{text(first[0])[1:]} {'expires' if text(first[0])[0] == '*' else 'crashes'}"
    if first[0] == "SLEEP":
        return f"time.sleep({names.word(first[1])})"
    if first[0] == "TIMEOUT":
        return f"{_typed(first[1:], names)} times out"
    return "; ".join(_typed(args, names) for args in commands)


def _typed(args: Sequence[Any], names: _Names) -> str:
    name, rest = text(args[0]), args[1:]
    if not first_word(args).startswith("EVAL") or not rest:
        return " ".join([name, *map(names.word, rest)])
    script = text(rest[0])
    title = _title(names.scripts.get(script, script)) or names.word(script if " " in script else script[:7])
    return " ".join([name, title, *map(names.word, rest[1:])])


def _title(script: str) -> str:
    """A script that begins with a comment is shown by it: <release>."""
    found = re.match(r"\s*--\s*(\w[^\n:.]{0,30})", script)
    return f"<{found[1].strip()}>" if found else ""
