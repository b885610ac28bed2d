"""Graded exercises: `check.<chapter>.<exercise>(answer)`.

    from labkit.teach import check

    check.rate_limiter.boundary(MyLimiter)     # ✓ correct, ✗ incorrect and why, or ○ not attempted yet
    check.rate_limiter.boundary.hint()         # one more hint each call
    check.rate_limiter.boundary.solution()     # the reference solution, as code

An answer is a class, a function or an instance. It runs against a server that is the graders' own, under a
time limit; keys that it leaves on the reader's Redis are removed. A ✓ or ✗ is kept in the reader's progress.
"""

from __future__ import annotations

import ast
import inspect
import traceback
from typing import Any

from labkit.teach import lab, progress
from labkit.teach.exercises import Exercise, Failure, Verdict, load, stems
from labkit.teach.listing import Listing, same_code
from labkit.teach.timelimit import TimeUp, is_library, limited


class Interrupted(KeyboardInterrupt):
    """The reader interrupted a grade. IPython shows the sentence in place of a stack trace."""

    def __init__(self) -> None:
        super().__init__(
            "the grade was interrupted; nothing of it is kept or left behind. Run the cell again."
        )

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]


class Checker:
    """One exercise, ready to grade answers."""

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        self._hints_given = 0

    def __repr__(self) -> str:
        return f"check.{self.exercise.stem}.{self.exercise.name}: {self.exercise.title}"

    def __call__(self, answer: Any = None) -> None:
        """Grade the answer, print the verdict and keep it in the reader's progress."""
        verdict = grade(self.exercise, answer)
        print(verdict)
        if verdict.state != "not attempted":
            progress.record(self.exercise.stem, self.exercise.name, verdict.state)

    def hint(self) -> None:
        """Print the next hint; after the last one, say how to see the solution."""
        hints = self.exercise.hints
        if self._hints_given == len(hints):
            name = f"check.{self.exercise.stem}.{self.exercise.name}"
            print(f"That was the last of {len(hints)} hints. {name}.solution() shows a solution.")
            self._hints_given = 0
            return
        print(f"Hint {self._hints_given + 1} of {len(hints)}: {hints[self._hints_given]}")
        self._hints_given += 1

    def solution(self) -> Listing:
        """The reference solution, highlighted in a notebook."""
        return Listing(self.exercise.reference.strip())


class Chapter:
    """The exercises of one chapter, as attributes."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._checkers = {exercise.name: Checker(exercise) for exercise in load(stem)}

    def __getattr__(self, name: str) -> Checker:
        if name.startswith("_") or name not in self._checkers:
            raise AttributeError(
                f"{self._stem} has no exercise {name!r}; it has: {', '.join(self._checkers)}"
            )
        return self._checkers[name]

    def __dir__(self) -> list[str]:
        return list(self._checkers)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._checkers.values()))


_chapters: dict[str, Chapter] = {}


def __getattr__(stem: str) -> Chapter:
    if stem.startswith("_") or stem not in stems():
        raise AttributeError(f"no chapter {stem!r} has exercises; there are: {', '.join(stems())}")
    return _chapters.setdefault(stem, Chapter(stem)) if stem not in _chapters else _chapters[stem]


def __dir__() -> list[str]:
    return stems()


def grade(exercise: Exercise, answer: Any) -> Verdict:
    """The verdict on an answer; prints and keeps nothing.

    Raises Interrupted, a KeyboardInterrupt, when the reader interrupts it, with everything cleaned up.
    """
    if answer is None or answer is Ellipsis or same_code(answer, exercise.stub):
        return Verdict("not attempted")
    try:
        with lab.no_trespass() as found:
            verdict = _run(exercise, _as_asked(exercise, answer), lab.Lab())
    except KeyboardInterrupt:
        raise Interrupted from None
    if verdict.state == "correct" and (found.keys or found.writes):
        return _trespassed(found)
    return verdict


def _trespassed(found: lab.Trespass) -> Verdict:
    left = len(found.keys)
    what = (
        f"left {left} key{'s' * (left > 1)} on your own Redis (removed now)"
        if left
        else "wrote to your own Redis"
    )
    shown = "\n".join((found.keys or found.writes)[:3])
    return Verdict(
        "incorrect", "keys", f"it {what}", shown, "which client your code uses: the one it is given"
    )


def _run(exercise: Exercise, answer: Any, bench: lab.Lab) -> Verdict:
    """Each way in which a grade can end, as a Verdict. The private server is in order afterwards, or gone."""
    sound = False
    try:
        bench.empty()
        limited(exercise.seconds, lambda: exercise.grade(answer, bench), lab.discard_server)
        sound = True
    except NotImplementedError:
        sound = True
        return Verdict("not attempted")
    except Failure as failure:
        sound = True
        return Verdict(
            "incorrect", failure.property, failure.message, failure.counterexample, failure.look_at
        )
    except TimeUp as late:
        message = f"your code had not ended after {exercise.seconds:g} s"
        return Verdict(
            "incorrect", "hangs", message, _where(late.stack), "what it waits for, and what ends its loops"
        )
    except (Exception, SystemExit) as error:
        message = f"your code raised {type(error).__name__}: {error}".rstrip(": ")
        return Verdict("incorrect", "raises", message, _where(traceback.extract_tb(error.__traceback__)))
    finally:
        bench.close()
        if not sound:
            lab.discard_server()
    return Verdict("correct", message=exercise.title)


def _where(stack: traceback.StackSummary) -> str:
    """The innermost line of the reader's own code, or ""."""
    for frame in reversed(stack):
        if not is_library(frame.filename):
            return f"line {frame.lineno}: {frame.line}"
    return ""


def _as_asked(exercise: Exercise, answer: Any) -> Any:
    """Where a class is asked for, an instance stands for its class."""
    asked = [node for node in ast.parse(exercise.stub).body if getattr(node, "name", "") == exercise.answer]
    if (
        asked
        and isinstance(asked[0], ast.ClassDef)
        and not isinstance(answer, type)
        and not inspect.isroutine(answer)
    ):
        return type(answer)
    return answer
