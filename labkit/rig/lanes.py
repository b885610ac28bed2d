"""A trace laid out as a sequence diagram: a lane for each client, time downward, Redis at the side.

`layout` says what stands in each row; `html` writes it as a table, `labkit.show.plot.lanes` draws it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from labkit.rig.trace import State, Step, Trace

Life = Literal["runs", "waits", "done", "gone"]
"""How a client goes on after a row: it runs, waits in a command, has come to its end, or has crashed."""


@dataclass(frozen=True)
class Entry:
    """A key in Redis after a step. `change` is "new" (also in value), "same", or "gone" (its last value)."""

    key: str
    value: str
    change: Literal["new", "same", "gone"]


@dataclass(frozen=True)
class Row:
    """A step, the state after it, how each client goes on, and whether this is where it went wrong."""

    number: int
    step: Step
    state: tuple[Entry, ...]
    lives: Mapping[str, Life]
    wrong: bool

    @property
    def changed(self) -> bool:
        """Whether Redis differs from before."""
        return any(entry.change != "same" for entry in self.state)


def layout(trace: Trace) -> list[Row]:
    """The rows of a trace, in order of time."""
    before, wrong = trace.before, went_wrong(trace)
    last = _last_steps(trace)
    lives: dict[str, Life] = {letter: "runs" for letter, _ in trace.clients}
    rows = []
    for index, step in enumerate(trace.steps):
        _live_on(lives, step)
        for letter, end in last.items():
            if end <= index and lives[letter] == "runs":
                lives[letter] = "done"
        rows.append(Row(index + 1, step, changes(before, step.state), dict(lives), index == wrong))
        before = step.state
    return rows


def changes(before: State, after: State) -> tuple[Entry, ...]:
    """Every key of either state, by name, with what has happened to it."""
    old, new = dict(before), dict(after)
    return tuple(
        Entry(key, new.get(key, old.get(key, "")), _change(old.get(key), new.get(key)))
        for key in sorted({**old, **new})
    )


def _change(old: str | None, new: str | None) -> Literal["new", "same", "gone"]:
    if new is None:
        return "gone"
    return "same" if old == new else "new"


def _live_on(lives: dict[str, Life], step: Step) -> None:
    if step.kind == "crash":
        lives[step.who] = "gone"
    elif step.who:
        lives[step.who] = "waits" if step.reply == "(waits)" else "runs"
    for letter, _ in step.woken:
        lives[letter] = "runs"


def _last_steps(trace: Trace) -> dict[str, int]:
    """For each client that has come to its end, the index of its last row; -1 where it had none."""
    going_on = {move[-1] for move, _ in trace.next if move[0] != "*"}
    last = {letter: -1 for letter, _ in trace.clients}
    for index, step in enumerate(trace.steps):
        last.update({letter: index for letter in (step.who, *(who for who, _ in step.woken)) if letter})
    return {letter: index for letter, index in last.items() if letter not in going_on}


def went_wrong(trace: Trace) -> int | None:
    """The index of the step to mark; None if nothing is wrong.

    It is the one after which `always` did not hold; else the last step of the client that raised, the last
    wait of a deadlock, or, since an invariant is asked at the end, the last step that wrote to Redis or was a
    fault.
    """
    if not trace.wrong or not trace.steps:
        return None
    if trace.broke_at is not None:
        return trace.broke_at
    before, chosen = trace.before, len(trace.steps) - 1
    raised = re.match(r"([A-Z]) raised ", trace.wrong)
    for index, step in enumerate(trace.steps):
        if raised:
            counts = raised[1] in (step.who, *dict(step.woken))
        else:
            counts = step.state != before or _overwrote(step) or is_fault(step)
        chosen, before = index if counts else chosen, step.state
    return len(trace.steps) - 1 if trace.wrong.startswith("deadlock") else chosen


def _overwrote(step: Step) -> bool:
    """Whether it wrote what stood there already."""
    return (
        step.command.split()[0].upper() in ("SET", "MSET", "HMSET", "PSETEX", "SETEX") and step.reply == "OK"
    )


def is_fault(step: Step) -> bool:
    """Whether this step is a crash, an expiry, or a reply that was lost."""
    return step.lost or step.kind in ("crash", "expire")


# --- HTML ---------------------------------------------------------------------------------------------------

COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""A lane's colour: Okabe and Ito's, without the one that marks what is wrong."""

WRONG, FAULT, REDIS = "#D55E00", "#E69F00", "#8C8C8C"

_CELL = "text-align:left;vertical-align:top;padding:3px 12px 3px 8px;border:0;white-space:normal"
_LINE: dict[Life, str] = {"runs": "4px solid", "waits": "4px dotted", "done": "4px none", "gone": "4px none"}


def html(trace: Trace) -> str:
    """The trace as a table: a column for each client, and one for Redis after each step.

    Its styles are inline and let the page's colours through, so it looks alike in a notebook, on a slide, and
    on a dark page.
    """
    rows = layout(trace)
    lives: Mapping[str, Life] = {letter: "runs" for letter, _ in trace.clients}
    body = [_start(trace)]
    for row in rows:
        body.append(_row(trace, row, lives))
        lives = row.lives
        if trace.broke_at == row.number - 1:
            body.append(_verdict(trace))
    if trace.finished and any(result != "(nil)" for result in trace.results):
        body.append(_results(trace))
    if trace.wrong and trace.broke_at is None:
        body.append(_verdict(trace))
    return (
        f'<table style="border-collapse:collapse;border:0;margin:0.5em 0;font-size:1em;line-height:1.5">'
        f'<caption style="text-align:left;caption-side:top;padding:2px 0">Schedule '
        f"{_code(trace.schedule or '(none)')}</caption>"
        f"<thead>{_head(trace)}</thead><tbody>{''.join(body)}</tbody></table>"
    )


def colour(trace: Trace, letter: str) -> str:
    """The colour of a client's lane."""
    letters = [letter for letter, _ in trace.clients]
    return COLOURS[letters.index(letter) % len(COLOURS)]


def _head(trace: Trace) -> str:
    titles = [(f"{letter} · {name}", colour(trace, letter)) for letter, name in trace.clients]
    look = f"{_CELL};white-space:nowrap;border-left:4px solid {{0}};border-bottom:2px solid {{0}}"
    cells = "".join(
        f'<th scope="col" style="{look.format(line)}">{escape(title)}</th>'
        for title, line in [*titles, ("Redis afterwards", REDIS)]
    )
    return f'<tr style="background:none"><th scope="col" style="{_CELL}">step</th>{cells}</tr>'


def _start(trace: Trace) -> str:
    lanes = "".join(_lane(trace, letter, "runs", "") for letter, _ in trace.clients)
    redis = _redis(changes(trace.before, trace.before), "")
    head = f'<th scope="row" style="{_CELL};font-weight:normal">before</th>'
    return f'<tr style="background:none">{head}{lanes}{redis}</tr>'


def _row(trace: Trace, row: Row, lives: Mapping[str, Life]) -> str:
    said = {letter: "" for letter, _ in trace.clients}
    if row.step.who:
        said[row.step.who] = _said(row.step)
    for letter, reply in row.step.woken:
        said[letter] += f"{_badge('wait ends')} {_back(reply)}"
    lanes = "".join(_lane(trace, letter, lives[letter], text) for letter, text in said.items())
    expiry = _badge(row.step.command) if row.step.kind == "expire" else ""
    mark, shade = f"{row.number}", "none"
    if row.wrong:
        mark, shade = f'<b style="color:{WRONG}">✗ {row.number}</b>', "rgba(213, 94, 0, 0.16)"
    number = f'<th scope="row" style="{_CELL};font-weight:normal">{mark}</th>'
    return f'<tr style="background:{shade}">{number}{lanes}{_redis(row.state, expiry)}</tr>'


def _lane(trace: Trace, letter: str, life: Life, text: str) -> str:
    return f'<td style="{_CELL};border-left:{_LINE[life]} {colour(trace, letter)}">{text}</td>'


def _redis(state: tuple[Entry, ...], badge: str) -> str:
    lines = [badge] if badge else []
    for entry in state:
        text = _code(f"{entry.key} = {entry.value}")
        if entry.change == "gone":
            text = f"<s>{_code(entry.key)}</s> gone"
        lines.append(f"<b>{text}</b>" if entry.change == "new" else text)
    if not state:
        lines.append("(empty)")
    return f'<td style="{_CELL};border-left:4px solid {REDIS}">{"<br>".join(lines)}</td>'


def _said(step: Step) -> str:
    """What a client did, and what came back."""
    if step.kind == "crash":
        return _badge("crashes")
    command = step.command.removesuffix(" times out") if step.kind == "timeout" else step.command
    text = _code(command)
    if step.kind == "timeout":
        return f"{text} {_badge('times out')}<br>{_back(step.reply)}"
    if step.reply == "(waits)":
        return f"{text}&nbsp;→ {_badge('waits')}"
    if step.kind == "sleep":
        return text
    back = _badge("reply lost") + f" <s>{_back(step.reply)}</s>" if step.lost else _back(step.reply)
    return f"{text}&nbsp;→<br>{back}"


def _back(reply: str) -> str:
    return f"←&nbsp;{_code(reply)}"


def _code(text: str) -> str:
    return f'<code style="background:none;padding:0">{escape(text)}</code>'


def _badge(text: str) -> str:
    return f'<b style="border:2px solid {FAULT};border-radius:4px;padding:0 5px">{escape(text)}</b>'


def _results(trace: Trace) -> str:
    cells = "".join(
        f'<td style="{_CELL};border-top:2px solid {colour(trace, letter)}">'
        f"{'' if result == '(nil)' else _code(result)}</td>"
        for (letter, _), result in zip(trace.clients, trace.results, strict=True)
    )
    head = f'<th scope="row" style="{_CELL};font-weight:normal">result</th>'
    return f'<tr style="background:none">{head}{cells}<td style="{_CELL}"></td></tr>'


def _verdict(trace: Trace) -> str:
    return (
        f'<tr style="background:none"><td colspan="{len(trace.clients) + 2}" style="{_CELL}">'
        f'<b style="color:{WRONG}">✗ {escape(trace.wrong)}</b></td></tr>'
    )
