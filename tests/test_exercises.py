"""Every grader of every chapter accepts its reference, rejects every wrong answer for the stated reason, and
survives any answer. (chapters_again.py: every chapter is green with all exercises solved.)"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest

from labkit.rig import connection
from labkit.rig.server import Server
from labkit.teach import check, lab
from labkit.teach.exercises import Exercise, Verdict, Wrong, load, stems

EXERCISES = [exercise for stem in stems() for exercise in load(stem)]
WRONG = [(exercise, wrong) for exercise in EXERCISES for wrong in exercise.wrong]

HOSTILE = {
    "raises": ("raise ValueError('on purpose')", "raises"),
    "leaves": ("raise SystemExit(1)", "raises"),
    "hangs in a loop": ("while True: pass", "hangs"),
    "hangs in a sleep": ("__import__('time').sleep(60)", "hangs"),
}


def _name(exercise: Exercise) -> str:
    return f"{exercise.stem}.{exercise.name}"


def _name_of_wrong(exercise: Exercise, wrong: Wrong) -> str:
    """With "::" behind the chapter: xdist keeps together what is alike up to there, and spreads the rest."""
    why = f" ({wrong.why})" if wrong.why else ""
    return f"{exercise.stem}::{exercise.name}-{wrong.violates}{why}"


def _hostile(exercise: Exercise, body: str) -> Any:
    """An answer as it is asked for: a function that does `body`, or a class each of whose methods does."""
    if not re.search(rf"^class {exercise.answer}\b", exercise.stub, re.M):
        return exercise.build(f"def {exercise.answer}(*a, **k):\n    {body}\n")
    code = f"""
class {exercise.answer}:
    def __init__(self, *a, **k):
        pass

    def __getattr__(self, name):
        def method(*a, **k):
            {body}
        return method
"""
    return exercise.build(code)


@pytest.fixture
def _readers_own(throwaway: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reader's own Redis, on which no grade leaves a key, or takes one away."""
    with throwaway.client() as r:
        r.flushall()
        r.mset({"workbook:mine": "1", "stranger": "2"})
        monkeypatch.setattr(connection, "last", r)
        yield
        assert sorted(r.keys("*")) == ["stranger", "workbook:mine"]
    assert lab._server is None or lab._server.running


@pytest.mark.usefixtures("_readers_own")
@pytest.mark.parametrize("exercise", EXERCISES, ids=_name)
def test_reference_is_accepted(exercise: Exercise) -> None:
    verdict = check.grade(exercise, exercise.build(exercise.reference))
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


@pytest.mark.usefixtures("_readers_own")
@pytest.mark.parametrize(("exercise", "wrong"), WRONG, ids=[_name_of_wrong(*one) for one in WRONG])
def test_wrong_answer_is_rejected_for_the_stated_reason(exercise: Exercise, wrong: Wrong) -> None:
    verdict = check.grade(exercise, exercise.build(wrong.source))
    assert (verdict.state, verdict.property) == ("incorrect", wrong.violates), str(verdict)
    assert verdict.message and not verdict.message.endswith(".")
    if wrong.violates not in ("raises", "hangs"):
        assert verdict.look_at, "says what to look at next"


@pytest.mark.parametrize("exercise", EXERCISES, ids=_name)
def test_exercise_is_complete(exercise: Exercise) -> None:
    assert len(exercise.wrong) >= 4, "at least four known-wrong answers"
    assert len({wrong.source for wrong in exercise.wrong}) == len(exercise.wrong)
    assert exercise.hints and all(exercise.hints)
    assert exercise.statement and exercise.title


@pytest.mark.parametrize("exercise", EXERCISES, ids=_name)
@pytest.mark.parametrize("answer", [None, ..., "stub"], ids=["None", "...", "stub"])
def test_no_answer_is_not_attempted(exercise: Exercise, answer: Any) -> None:
    given = exercise.build(exercise.stub) if answer == "stub" else answer
    assert check.grade(exercise, given) == Verdict("not attempted")


@pytest.mark.parametrize("exercise", EXERCISES, ids=_name)
@pytest.mark.parametrize("how", HOSTILE)
def test_grader_survives(exercise: Exercise, how: str) -> None:
    body, property = HOSTILE[how]
    limited = dataclasses.replace(exercise, seconds=0.3) if property == "hangs" else exercise
    verdict = check.grade(limited, _hostile(exercise, body))
    assert (verdict.state, verdict.property) == ("incorrect", property), str(verdict)


@pytest.mark.parametrize("exercise", EXERCISES, ids=_name)
@pytest.mark.parametrize(
    "answer", [0, "text", object(), lambda *a, **k: None], ids=["0", "text", "object", "lambda"]
)
def test_nonsense_is_incorrect(exercise: Exercise, answer: Any) -> None:
    assert check.grade(exercise, answer).state == "incorrect"
