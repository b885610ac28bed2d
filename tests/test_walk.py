"""A program walked through by hand: forth, back, along the counterexample and off it."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.rig.race import Program, crash, expire, explore, lose_reply
from labkit.rig.walk import Walk


def buy(r: Any) -> None:
    if int(r.get("stock")) > 0:
        r.decr("stock")
        r.rpush("sold", "ticket")


def stock(r: Any) -> None:
    r.set("stock", 1)


def few(r: Any) -> bool:
    return bool(r.llen("sold") <= 1)


def hold(r: Any) -> None:
    if r.set("lock", "me", nx=True, px=9000):
        r.delete("lock")


def test_forth_and_back() -> None:
    walk = Walk([buy, buy], setup=stock, invariant=few)
    assert [walk.label("A"), walk.verdict] == [
        "A · buy ▸ GET stock",
        "whose turn is it? Choose the next step.",
    ]
    walk.take("A")
    walk.take("B")
    assert walk.moves == ("A", "B")
    assert walk.trace.schedule == "AB"
    assert walk.label("A") == "A · buy ▸ DECRBY stock 1"
    walk.undo()
    assert walk.trace.schedule == "A"
    walk.restart()
    assert walk.undo().schedule == ""


def test_to_an_end_without_and_with_a_violation() -> None:
    walk = Walk([buy, buy], setup=stock, invariant=few)
    walk.go("AAAB")
    assert walk.verdict == "✓ all clients are done, and the invariant holds."
    assert [walk.label("A"), walk.label("B")] == ["A · buy is done", "B · buy is done"]
    walk.go("ABABAB")
    assert walk.verdict == "✗ the invariant does not hold"
    assert Walk([hold]).go("AA").finished
    assert (
        Walk(
            Program((hold,)),
        ).verdict
        == "whose turn is it? Choose the next step."
    )


def test_what_is_not_possible_changes_nothing() -> None:
    walk = Walk([buy, buy], setup=stock, invariant=few)
    walk.go("AAA")
    with pytest.raises(ValueError, match="the move 'A' is not possible; possible is B"):
        walk.take("A")
    assert walk.moves == ("A", "A", "A")
    assert walk.trace.schedule == "AAA"


def test_faults_have_labels_and_a_crashed_client_says_so() -> None:
    walk = Walk([hold, hold], faults=[expire, crash, lose_reply])
    walk.take("A")
    assert dict(walk.trace.next).keys() == {"A", "B", "~A", "~B", "!A", "*lock"}
    assert [walk.label(move) for move in ("~A", "!A", "*lock")] == [
        "A loses its reply",
        "A crashes",
        "lock expires",
    ]
    walk.take("*lock")
    walk.take("!A")
    assert walk.label("A") == "A · hold has crashed"
    assert walk.trace.schedule == "A*!A"


def test_one_that_waits() -> None:
    walk = Walk([lambda r: r.blpop("jobs"), hold])
    walk.take("A")
    assert walk.label("A").endswith("waits")
    assert not walk.trace.finished


def test_along_the_counterexample_and_off_it() -> None:
    found = explore([buy, buy], setup=stock, invariant=few)
    walk = Walk(found)
    assert "".join(walk.path) == found.schedule == "ABBBAA"
    assert walk.signpost == "next step of the counterexample: A (1 of 6)"
    walk.forward()
    walk.take("A")
    assert walk.strayed
    assert walk.signpost == "back to the counterexample"
    walk.forward()
    assert walk.moves == ("A",)
    for _ in range(9):
        walk.forward()
    assert walk.signpost == "the counterexample ends here"
    assert walk.verdict == "✗ the invariant does not hold"
    assert Walk(explore([buy], setup=stock, invariant=few)).path == ()


def test_the_programs_own_settings_are_not_given_twice() -> None:
    with pytest.raises(TypeError, match="give them with actors"):
        Walk(explore([buy], setup=stock, invariant=few), setup=stock)
