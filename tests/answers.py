"""What the tests of exercises share: answers that differ a little from those that a chapter has."""

from __future__ import annotations

import time

from labkit.teach import check
from labkit.teach.exercises import Exercise, Verdict, load


def _exercise(stem: str, name: str) -> Exercise:
    return next(exercise for exercise in load(stem) if exercise.name == name)


def changed(stem: str, name: str, *changes: tuple[str, str]) -> Verdict:
    """The verdict on a reference with some of its text changed."""
    exercise = _exercise(stem, name)
    source = exercise.reference
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return check.grade(exercise, exercise.build(source))


def wrong(stem: str, name: str, why: str) -> Verdict:
    """The verdict on the first known-wrong answer of which this is said."""
    exercise = _exercise(stem, name)
    return check.grade(exercise, exercise.build(next(w.source for w in exercise.wrong if why in w.why)))


def told_by(verdict: Verdict) -> list[str]:
    """The lines of its counterexample, however they are set."""
    return [" ".join(line.split()) for line in verdict.counterexample.splitlines()]


class SlowTime:
    """The clock of a machine that stands still for so many seconds whenever somebody sleeps."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, halt: float) -> None:
        self.halt = halt

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds + self.halt)
