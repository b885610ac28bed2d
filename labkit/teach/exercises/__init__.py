"""What an exercise is. Each chapter's exercises are in the module that bears its stem.

An exercise module ends with `EXERCISES = (Exercise(...), ...)`. Its grader tests properties, not text:

    def _grade_ttl(answer: Any, lab: Lab) -> None:
        key = lab.key("session")
        answer(lab.r, key)
        if lab.r.ttl(key) < 0:
            raise Failure("ttl", "the key has no TTL", f"TTL {key} -> -1", "the `ex=` of SET")
"""

from __future__ import annotations

import linecache
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from labkit.teach.lab import Lab

State = Literal["correct", "incorrect", "not attempted"]


@dataclass(frozen=True)
class Wrong:
    """An answer known to be wrong, and the key of the property that it violates."""

    source: str
    violates: str
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a grader found. `property` is the key of the property that failed, "" if none did.

    Beside the keys of the exercise itself there are `hangs` (time limit) and `raises` (an exception).
    """

    state: State
    property: str = ""
    message: str = ""
    counterexample: str = ""
    look_at: str = ""

    def __str__(self) -> str:
        if self.state == "not attempted":
            return "○ not attempted yet: replace the stub above, then run this cell again"
        lines = [f"{'✓' if self.state == 'correct' else '✗'} {self.state}: {self.message}"]
        lines += [f"    {line}" for line in self.counterexample.splitlines()]
        lines += [f"  → look at {self.look_at}"] if self.look_at else []
        return "\n".join(lines)


class Failure(Exception):
    """Raised by a grader: the answer violates `property`; the shortest counterexample shows it."""

    def __init__(self, property: str, message: str, counterexample: str = "", look_at: str = "") -> None:
        super().__init__(message)
        self.property = property
        self.message = message
        self.counterexample = counterexample
        self.look_at = look_at


@dataclass(frozen=True)
class Exercise:
    """One exercise: what is asked, the stub in the notebook, hints, a reference, wrong answers, the grader.

    `answer` is the name that the stub, the reference and every wrong answer bind. Their sources are complete:
    they import what they use. `grade(answer, lab)` returns for a correct answer and raises Failure otherwise;
    `seconds` is the time limit of a whole grade.
    """

    stem: str
    name: str
    title: str
    statement: str
    answer: str
    stub: str
    hints: tuple[str, ...]
    reference: str
    wrong: tuple[Wrong, ...]
    grade: Callable[[Any, Lab], None]
    seconds: float = 10

    def build(self, source: str) -> Any:
        """Run `source` on its own and return what it binds to `answer`."""
        file = f"<{self.stem}.{self.name}: {hash(source):x}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, file, "exec"), space)
        return space[self.answer]


def stems() -> list[str]:
    """The chapters that have exercises, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(stem: str) -> tuple[Exercise, ...]:
    """The exercises of a chapter, in its order. Raises LookupError for a chapter that has none."""
    if stem not in stems():
        raise LookupError(f"no chapter {stem!r} has exercises; there are: {', '.join(stems())}")
    exercises: tuple[Exercise, ...] = import_module(f"{__name__}.{stem}").EXERCISES
    return exercises
