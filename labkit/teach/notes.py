"""What the instructor's edition adds to a chapter: a timetable, questions, and what known mistakes teach.

Each function gives the Markdown of one cell.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.teach.exercises import Exercise, Verdict, Wrong

CODE_LINE, ANSWER_LINE = 4, 20
"""How many words of prose take as long as to read a line of code, and as to find a line of an answer."""


WRAPPED = "<style>.speaker-controls-notes pre { font-size: 0.6em; white-space: pre-wrap }</style>"
"""For the speaker's view, a narrow window of reveal.js's own, which has none of the deck's style sheets."""


@dataclass(frozen=True)
class Part:
    """A part of a chapter, from one `##` heading to the next.

    `seconds` is how long its cells took, None if they did not run; `minutes` its share of the chapter's own
    time, None where the chapter names none.
    """

    title: str
    cells: int
    seconds: float | None
    minutes: int | None


@dataclass(frozen=True)
class Mistake:
    """A known-wrong answer, and what the grader said of it; None if it was not asked."""

    wrong: Wrong
    verdict: Verdict | None = None


def class_minutes(text: str) -> int | None:
    """The time that a chapter's first cell names ("About 50 minutes", "2 hours"), in minutes, or None."""
    found = re.search(r"(\d+) (minutes|hours?)\b", text)
    return int(found[1]) * (1 if found[2] == "minutes" else 60) if found else None


def parts(cells: Sequence[Any], seconds: dict[str, float], answers: dict[str, str]) -> tuple[Part, ...]:
    """The parts of a chapter. `seconds`: of code cells, by id; `answers`: references, by the stub's tag.

    The chapter's time is shared out by what is to be read and found: see CODE_LINE and ANSWER_LINE.
    """
    titles, groups = [], []
    for number, cell in enumerate(cells):
        heading = re.match(r"## (.+)", cell.source) if cell.cell_type == "markdown" else None
        if heading or not number:
            titles.append(heading[1].strip() if heading else "Opening")
            groups.append([cell])
        else:
            groups[-1].append(cell)
    weights = [sum(_weight(cell, answers) for cell in group) for group in groups]
    shares = _shares(class_minutes(cells[0].source), weights)
    counts = [[cell.id for cell in group if cell.cell_type == "code"] for group in groups]
    took = [sum(seconds.get(one, 0.0) for one in ids) if seconds else None for ids in counts]
    return tuple(Part(*row) for row in zip(titles, map(len, counts), took, shares, strict=True))


def _weight(cell: Any, answers: dict[str, str]) -> int:
    if cell.cell_type != "code":
        return len(cell.source.split())
    for tag in answers.keys() & set(cell.metadata.get("tags", [])):
        return ANSWER_LINE * len(answers[tag].splitlines())
    return CODE_LINE * len(cell.source.splitlines())


def _shares(total: int | None, weights: list[int]) -> list[int | None]:
    """Whole minutes whose sum is `total`: the running sum of the weights, rounded."""
    if total is None or not sum(weights):
        return [None] * len(weights)
    ends = [round(total * sum(weights[: n + 1]) / sum(weights)) for n in range(len(weights))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def timetable(rows: tuple[Part, ...]) -> str:
    """How long each part takes to run, and how many minutes of a class it may have."""
    lines = ["### For the instructor · timetable", ""]
    lines += ["| part | code cells | running them took | minutes of class |", "| --- | --- | --- | --- |"]
    for row in (*rows, _sum(rows)):
        took = "not measured" if row.seconds is None else f"{row.seconds:.1f} s"
        minutes = "–" if row.minutes is None else str(row.minutes)
        lines.append(f"| {row.title} | {row.cells} | {took} | {minutes} |")
    if any(row.minutes is not None for row in rows):
        lines += [
            "",
            "The minutes share out the chapter's own time, by what there is to read and to find out.",
        ]
    return "\n".join(lines)


def _sum(rows: tuple[Part, ...]) -> Part:
    seconds = [row.seconds for row in rows if row.seconds is not None]
    minutes = [row.minutes for row in rows if row.minutes is not None]
    return Part(
        "**in all**",
        sum(row.cells for row in rows),
        sum(seconds) if seconds else None,
        sum(minutes) if minutes else None,
    )


def asked(cell: Any) -> tuple[list[str], list[str]]:
    """The questions of a cell's hidden note, and what to expect: `labkit: {ask: […], expect: […]}`."""
    note = cell.metadata.get("labkit", {})
    return list(note.get("ask", [])), list(note.get("expect", []))


def questions(cell: Any) -> str:
    """What to ask the class when the part of this heading is done, and the answers to listen for; or ""."""
    ask, expect = asked(cell)
    if not ask:
        return ""
    lines = ["### For the instructor · ask the class", ""]
    for number, question in enumerate(ask, 1):
        lines.append(f"{number}. {question}")
        if len(expect) == len(ask):
            lines += ["", f"    *Listen for:* {expect[number - 1]}", ""]
    if len(expect) != len(ask):
        lines += ["", *(f"- *Listen for:* {answer}" for answer in expect)]
    return "\n".join(lines).rstrip()


def mistakes(exercise: Exercise, known: Sequence[Mistake]) -> str:
    """Each known-wrong answer of an exercise: what it violates, what it teaches, what the grader says."""
    rows = "".join(
        f"<tr><td><code>{_html(one.wrong.violates)}</code></td><td>{_html(one.wrong.why)}</td>"
        f"<td>{_html(one.verdict.message) if one.verdict else 'not graded'}</td></tr>"
        for one in known
    )
    head = "<tr><th>violates</th><th>what it teaches</th><th>the grader says</th></tr>"
    lines = [f"### For the instructor · what goes wrong in `{exercise.name}`", ""]
    lines += [f"<table>{head}{rows}</table>", "", *(line for one in known for line in _listing(one))]
    return "\n".join(lines).rstrip()


def _listing(one: Mistake) -> list[str]:
    """A wrong answer's code and the grader's verdict, folded up."""
    name = f"<code>{_html(one.wrong.violates)}</code>: {_html(one.wrong.why)}"
    said = ["", "````text", str(one.verdict), "````"] if one.verdict else []
    code = ["````python", one.wrong.source.strip(), "````"]
    return [f"<details><summary>{name}</summary>", "", *code, *said, "", "</details>", ""]


def _html(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(" ".join(text.split()), quote=False))


def spoken(exercise: Exercise) -> str:
    """For the speaker's view of an exercise's slide: its solution, and one mistake for each property."""
    first = {wrong.violates: wrong.why for wrong in reversed(exercise.wrong)}
    lines = [
        WRAPPED,
        "",
        f"**A solution of `{exercise.name}`**",
        "",
        "````python",
        exercise.reference.strip(),
        "````",
        "",
    ]
    lines += ["**What goes wrong**", "", *(f"- `{name}`: {why}" for name, why in sorted(first.items()))]
    return "\n".join(lines)
