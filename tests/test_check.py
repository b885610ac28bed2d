"""The machinery around graders: verdicts, limits, cleaning up, hints, claims, listings."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import labkit
from labkit.rig import connection
from labkit.rig.server import Server
from labkit.teach import check, lab, source
from labkit.teach.claims import ClaimFailed
from labkit.teach.exercises import Exercise, Failure, Verdict
from labkit.teach.lab import Lab
from labkit.teach.listing import same_code, source_text


def _grade_one(answer: Any, lab: Lab) -> None:
    key = lab.key("n")
    got = answer(lab.r, key)
    if got != 1:
        raise Failure("one", "it is not one", f"answer(r, key) -> {got!r}", "the number one")


def _exercise(
    grade: Any = _grade_one, seconds: float = 5, stub: str = "def answer(r, key):\n    return 7\n"
) -> Exercise:
    return Exercise(
        "test", "one", "it is one", "?", "answer", stub, ("first", "second"), "", (), grade, seconds
    )


def _answer(body: str) -> Any:
    return _exercise().build(f"def answer(r, key):\n    {body}\n")


def _left(lab_server: Server | None) -> list[str]:
    if lab_server is None or not lab_server.running:
        return []
    with lab_server.client() as r:
        return list(r.keys("*"))


def test_verdicts_read_well() -> None:
    assert str(check.grade(_exercise(), _answer("return 1"))) == "✓ correct: it is one"
    assert str(check.grade(_exercise(), _answer("return 2"))) == (
        "✗ incorrect: it is not one\n    answer(r, key) -> 2\n  → look at the number one"
    )
    assert str(check.grade(_exercise(), None)) == (
        "○ not attempted yet: replace the stub above, then run this cell again"
    )


def test_function_class_and_instance_are_answers() -> None:
    def grade(answer: Any, lab: Lab) -> None:
        if answer().value() != 1:
            raise Failure("one", "it is not one")

    class Answer:
        def value(self) -> int:
            return 1

    exercise = _exercise(
        grade, stub="class answer:\n    def value(self):\n        raise NotImplementedError\n"
    )
    for answer in (Answer, Answer(), lambda: Answer()):
        assert check.grade(exercise, answer).state == "correct"


def test_stub_is_recognised_in_any_layout_and_not_when_changed() -> None:
    stub = "def answer(r, key):\n    # think first\n    return 7\n"
    exercise = _exercise(stub=stub)
    assert (
        check.grade(exercise, exercise.build("def answer(r, key):\n    return  7  # hm\n")).state
        == "not attempted"
    )
    assert check.grade(exercise, exercise.build("def answer(r, key):\n    return 8\n")).state == "incorrect"


def test_what_the_answer_raises_is_shown_with_its_line() -> None:
    verdict = check.grade(_exercise(), _answer("return {}['a']"))
    assert verdict.property == "raises"
    assert str(verdict) == "✗ incorrect: your code raised KeyError: 'a'\n    line 2: return {}['a']"


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "__import__('time').sleep(60)",
        "r.blpop(key, 0)",
        "\n    while True:\n        try: r.blpop(key, 0)\n        except: pass",
        "\n    while True:\n        try:\n            while True:\n                try: r.get(key)\n"
        "                except BaseException: continue\n        except: pass",
        "\n    while True:\n        try: r.echo(10 ** 4000)\n        except: pass",
    ],
    ids=["loop", "sleep", "socket", "swallowing", "swallowing twice", "a number is packed"],
)
def test_time_limit(body: str) -> None:
    began = time.monotonic()
    verdict = check.grade(_exercise(seconds=0.3), _answer(body))
    assert (
        verdict.property == "hangs"
        and "0.3 s" in verdict.message
        and verdict.counterexample.startswith("line ")
    )
    assert time.monotonic() - began < 20
    assert check.grade(_exercise(), _answer("return 1")).state == "correct", "the next grade works"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    os.kill(os.getpid(), signal.SIGALRM)  # one that comes too late ends no process


def test_where_nothing_can_be_raised_the_limit_is_lost_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a weakref's callback, say. What else is lost there is told of, and no limit comes between."""
    begun: list[type[BaseException] | None] = []
    told: list[type[BaseException] | None] = []

    def tell(lost: Any) -> None:
        begun.append(lost.exc_type)
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        told.append(lost.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", tell)
    body = """
    import weakref
    class A: pass
    count = 0
    def gone(_):
        nonlocal count
        for _ in range(300): count += 1
        if count % 30_000 == 0:
            raise KeyError
    while True:
        try:
            a = A()
            ref = weakref.ref(a, gone)
            del a
        except: pass
"""
    verdict = check.grade(_exercise(seconds=0.5), _answer(body))
    assert verdict.property == "hangs" and set(begun) == {KeyError} and told == begun
    assert sys.unraisablehook is tell


@pytest.mark.parametrize("body", ["while True: pass", "r.blpop(key, 0)"], ids=["loop", "socket"])
def test_time_limit_in_another_thread(body: str) -> None:
    verdicts: list[Verdict] = []
    before = set(threading.enumerate())
    thread = threading.Thread(
        target=lambda: verdicts.append(check.grade(_exercise(seconds=0.3), _answer(body)))
    )
    thread.start()
    thread.join(20)
    assert [verdict.property for verdict in verdicts] == ["hangs"]
    assert set(threading.enumerate()) <= before


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """As in a kernel, which is interruptible; what starts in the background of a shell ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_interrupt_passes_and_leaves_nothing() -> None:
    stop = "import os, signal; r.set(key, 1); os.kill(os.getpid(), signal.SIGINT); r.blpop(key + 'x', 0)"
    with pytest.raises(KeyboardInterrupt, match=r"^the grade was interrupted; .* Run the cell again\.$"):
        pytest.fail(str(check.grade(_exercise(), _answer(stop))))
    assert _left(lab._server) == []
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert check.grade(_exercise(), _answer("return 1")).state == "correct"


@pytest.fixture
def own() -> Iterator[Any]:
    """The reader's own Redis, with a stranger's key, as connect() would have left it."""
    before = connection.last
    with Server() as server:
        connection.last = server.client()
        connection.last.set("stranger", "x")
        yield connection.last
    connection.last = before


def test_keys_on_the_readers_redis_are_found_and_removed(own: Any) -> None:
    own.set("workbook:old", "x")
    body = "import labkit.rig.connection as c; c.last.set('workbook:00:left', 1); return 1"
    verdict = check.grade(_exercise(), _answer(body))
    assert (verdict.property, verdict.counterexample) == ("keys", "workbook:00:left")
    assert sorted(own.keys("*")) == ["stranger", "workbook:old"]


@pytest.mark.parametrize(
    "body",
    [
        "import labkit; labkit.connect(quiet=True).set('workbook:leak', 1); return 1",
        "import labkit; labkit.connect('redis://elsewhere', quiet=True).set('workbook:leak', 1); return 1",
    ],
)
def test_connect_gives_an_answer_the_graders_server(own: Any, body: str) -> None:
    assert check.grade(_exercise(), _answer(body)).state == "correct"
    assert own.keys("*") == ["stranger"]
    assert connection.last is own and connection.find.__module__ == connection.__name__


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("c.last.eval(\"redis.call('SET', 'workbook:' .. 'x', 1, 'EX', 9)\", 0); return 1", "EVAL"),
        ("c.last.set('foo', 1, ex=9); return 1", "SET foo 1 EX 9"),
        ("c.last.set('workbook:x', 1); c.last.unlink('workbook:x'); return 1", "SET workbook:x 1"),
    ],
)
def test_writing_to_the_readers_redis_is_no_right_answer(own: Any, body: str, shown: str) -> None:
    verdict = check.grade(_exercise(), _answer("import labkit.rig.connection as c; " + body))
    assert (verdict.state, verdict.property) == ("incorrect", "keys")
    assert verdict.counterexample.startswith(shown)


def test_on_a_server_private_to_the_kernel_no_key_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not one whose name a script put together."""
    monkeypatch.setattr(connection, "last", None)
    r = labkit.connect("embedded", quiet=True)
    body = "import labkit.rig.connection as c; c.last.eval(\"redis.call('SET', 'workbook:' .. 'x', 1)\", 0)"
    verdict = check.grade(_exercise(), _answer(body + "; return 1"))
    assert (verdict.property, verdict.counterexample) == ("keys", "workbook:x")
    assert not r.exists("workbook:x")


def test_keys_that_are_no_text_disturb_nobody(own: Any) -> None:
    own.set(b"workbook:\xff", 1)
    assert check.grade(_exercise(), _answer("return 1")).state == "correct"
    assert labkit.reset(own) == 1 and own.keys("*") == ["stranger"]


def test_private_server_is_emptied_shared_and_replaced_when_it_died() -> None:
    check.grade(_exercise(), _answer("return r.incr('workbook:count')"))
    first = lab._server
    assert check.grade(_exercise(), _answer("return r.incr('workbook:count')")).state == "correct"
    assert lab._server is first
    check.grade(_exercise(), _answer("r.shutdown(nosave=True)"))
    assert check.grade(_exercise(), _answer("return 1")).state == "correct"


def test_hints_come_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    checker = check.Checker(_exercise())
    for _ in range(3):
        checker.hint()
    assert capsys.readouterr().out.splitlines() == [
        "Hint 1 of 2: first",
        "Hint 2 of 2: second",
        "That was the last of 2 hints. check.test.one.solution() shows a solution.",
    ]


def test_verdict_is_printed_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    check.start_here.encode(None)
    assert "○" in capsys.readouterr().out and "✗" not in repr(labkit.progress())
    check.start_here.encode(lambda *words: b"")
    assert "✗ encode" in repr(labkit.progress("start_here"))
    exercise = check.start_here.encode.exercise
    check.start_here.encode(exercise.build(exercise.reference))
    check.start_here.encode(lambda *words: b"")
    assert "✓ encode" in repr(labkit.progress("start_here")), "what was solved once stays solved"


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no chapter 'nothing' has exercises; there are: .*start_here"):
        _ = check.nothing
    with pytest.raises(AttributeError, match=r"start_here has no exercise 'nothing'; it has: encode, "):
        _ = check.start_here.nothing
    assert "start_here" in dir(check) and "encode" in dir(check.start_here)


def test_solution_is_code() -> None:
    assert repr(check.start_here.encode.solution()).startswith("def encode(")


def test_claim(capsys: pytest.CaptureFixture[str]) -> None:
    labkit.claim("two is two", 2 == 2)
    assert capsys.readouterr().out == "✓ two is two\n"
    with pytest.raises(ClaimFailed, match=r"^✗ two is three$"):
        labkit.claim("two is three", False)


def test_measured_claim_is_measured_at_most_three_times(capsys: pytest.CaptureFixture[str]) -> None:
    results = iter([False, False, True])
    labkit.claim("the third time", lambda: next(results))
    assert capsys.readouterr().out == "✓ the third time\n"
    calls: list[int] = []
    with pytest.raises(ClaimFailed, match=r"never \(measured 3 times\)") as failed:
        labkit.claim("never", lambda: calls.append(1))
    assert len(calls) == failed.value.attempts == 3
    assert failed.value._render_traceback_() == ["ClaimFailed: ✗ never (measured 3 times)"]


def test_source_shows_functions_classes_methods_and_instances() -> None:
    assert repr(source(_answer)).startswith("def _answer(body: str)")
    assert repr(source(Lab.key)).startswith("def key(self, name: str)")
    assert source_text(Lab()) == source_text(Lab)
    assert source(Lab.key)._repr_markdown_().startswith("```python\ndef key")
    with pytest.raises(TypeError, match="give a class, a function or a method"):
        source(len)


def test_source_of_a_class_defined_in_a_cell() -> None:
    built = _exercise().build("class answer:\n    '''Mine.'''\n    def f(self):\n        return 1\n\nx = 3\n")
    assert source_text(built).splitlines()[-1].strip() == "return 1"
    assert same_code(built, "class answer:\n  '''Mine.'''\n  def f(self): return 1\n")
