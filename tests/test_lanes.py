"""A trace as lanes: what stands in each row, how clients go on, what is marked, and the table of it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from labkit.rig import lanes
from labkit.rig.race import crash, expire, explore, lose_reply, sequence
from labkit.rig.trace import Step, Trace


def buy(r: Any) -> None:
    if int(r.get("stock")) > 0:
        r.decr("stock")
        r.rpush("sold", "ticket")


def take(r: Any) -> Any:
    return r.blpop("jobs", 5)


def give(r: Any) -> None:
    r.rpush("jobs", "<b>one & two</b>")


def give_two(r: Any) -> None:
    give(r)
    give(r)


def step(move: str, command: str = "", reply: str = "", **more: Any) -> Step:
    kind = {"!": "crash", "*": "expire"}.get(move[0], "command")
    who = "" if kind == "expire" else move[-1]
    return Step(
        move, who, more.pop("kind", kind), command, reply, move[0] == "~", more.pop("woken", ()), **more
    )


def trace(*steps: Step, wrong: str = "", broke_at: int | None = None, **more: Any) -> Trace:
    clients = (("A", "one"), ("B", "two"))
    given = {
        "schedule": "",
        "clients": clients,
        "before": (),
        "results": ("(nil)", "(nil)"),
        "next": (),
        **more,
    }
    return Trace(steps=steps, wrong=wrong, broke_at=broke_at, **given)


def lives(found: Trace) -> list[str]:
    return ["".join(life[0] for life in row.lives.values()) for row in lanes.layout(found)]


class Table(HTMLParser):
    """The cells of each row as text; fails on what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.shades: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.shades.append(dict(attributes)["style"])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_a_state_says_what_is_new_the_same_and_gone() -> None:
    entries = lanes.changes((("a", "1"), ("b", "1"), ("c", "1")), (("b", "2"), ("c", "1"), ("d", "1")))
    assert [(entry.key, entry.value, entry.change) for entry in entries] == [
        ("a", "1", "gone"),
        ("b", "2", "new"),
        ("c", "1", "same"),
        ("d", "1", "new"),
    ]


def test_clients_run_wait_end_and_crash() -> None:
    found = sequence("ABCBC", [take, take, give_two], invariant=lambda r: True)
    assert lives(found) == ["wrr", "wwr", "dwr", "ddr", "ddd"]
    found = sequence("A!AB", [buy, buy], setup=lambda r: r.set("stock", 1), faults=[crash])
    assert lives(found) == ["rr", "gr", "gr"]


def test_the_step_that_broke_always_is_marked() -> None:
    steps = (
        step("A", "SET k 1", "OK", state=(("k", '"1"'),)),
        step("B", "GET k", '"1"', state=(("k", '"1"'),)),
    )
    assert lanes.went_wrong(trace(*steps, wrong="no", broke_at=1)) == 1
    assert lanes.went_wrong(trace(*steps)) is None
    assert lanes.went_wrong(trace(wrong="no")) is None


@pytest.mark.parametrize(
    ("last", "marked"),
    [
        (step("B", "GET k", '"1"', state=(("k", '"1"'),)), 1),  # it only looked
        (step("B", "SET k 1", "OK", state=(("k", '"1"'),)), 2),  # a lost update
        (step("!B", "B crashes", state=(("k", '"1"'),)), 2),
        (step("~B", "GET k", '"1"', state=(("k", '"1"'),)), 2),
        (step("*k", "k expires", state=()), 2),
    ],
)
def test_at_the_end_the_last_step_that_mattered_is_marked(last: Step, marked: int) -> None:
    state = (("k", '"1"'),)
    steps = (step("A", "GET k", "(nil)", state=()), step("A", "SET k 1", "OK", state=state), last)
    assert lanes.went_wrong(trace(*steps, wrong="the invariant does not hold")) == marked


def test_the_one_who_raised_and_a_deadlock_are_marked() -> None:
    steps = (step("A", "GET k", "(nil)", state=()), step("B", "SET k 1", "OK", state=(("k", '"1"'),)))
    assert lanes.went_wrong(trace(*steps, wrong="A raised TypeError: NoneType")) == 0
    waits = (*steps, step("A", "BLPOP jobs 0", "(waits)", state=steps[1].state))
    assert lanes.went_wrong(trace(*waits, wrong="deadlock: A waits in BLPOP, and nobody is left")) == 2


def test_the_table_has_a_column_for_each_client_and_redis_beside() -> None:
    found = explore([buy, buy], setup=lambda r: r.set("stock", 1), invariant=lambda r: r.llen("sold") <= 1)
    table = Table(found._repr_html_())
    assert table.rows[0] == ["step", "A · buy", "B · buy", "Redis afterwards"]
    assert table.rows[1] == ["before", "", "", 'stock = "1"']
    assert table.rows[2] == ["1", 'GET stock\xa0→←\xa0"1"', "", 'stock = "1"']
    assert table.rows[-2][0] == "✗ 6"
    assert table.rows[-1] == ["✗ the invariant does not hold"]
    assert [shade != "background:none" for shade in table.shades].index(True) == len(table.rows) - 2


def test_the_html_is_stable_and_says_how_many_of_how_many() -> None:
    def found() -> str:
        invariant = lambda r: r.llen("sold") <= 1  # noqa: E731
        return explore([buy, buy], setup=lambda r: r.set("stock", 1), invariant=invariant)._repr_html_()

    assert found() == found()
    assert "<b>✗ 12 of 16 interleavings break the invariant</b>" in found()
    safe = explore([give], invariant=lambda r: True)._repr_html_()
    assert safe.endswith("<b>✓ 0 of 1 interleavings break the invariant: safe, all were tried</b></p>")


def test_everything_is_escaped() -> None:
    found = sequence("AB", [give, take], setup=lambda r: r.set("<i>", "</td>"), always=lambda r: True)
    odd = replace(found, clients=(("A", "<lambda>"), ("B", "b&c")), wrong="1 < 2 & <b>")
    table = Table(odd._repr_html_())
    assert "<b>one" not in odd._repr_html_()
    assert table.rows[0][1:3] == ["A · <lambda>", "B · b&c"]
    assert table.rows[1][3] == '<i> = "</td>"'
    assert table.rows[-1] == ["✗ 1 < 2 & <b>"]


def test_faults_and_waits_are_told_in_words() -> None:
    found = sequence("ABCBC", [take, take, give_two], invariant=lambda r: True)
    text = re.sub(r"<[^>]*>", "", found._repr_html_()).replace("\xa0", " ").replace("&nbsp;", " ")
    assert "BLPOP jobs 5 → waits" in text
    assert "wait ends ← [" in text
    assert "BLPOP jobs 5 times out← (nil)" in text

    def pay(r: Any) -> None:
        r.incr("paid")

    html = sequence("~A", [pay], faults=[lose_reply])._repr_html_()
    assert "reply lost" in html
    assert "<s>←" in html

    def hold(r: Any) -> None:
        r.set("lock", "x", px=9000)
        r.get("lock")

    html = sequence("A*!A", [hold], faults=[expire, crash])._repr_html_()
    assert "lock expires" in html
    assert "lock</code></s> gone" in html
    assert "crashes" in html


def test_results_are_shown_where_there_are_any() -> None:
    rows = Table(sequence("AB", [give, take])._repr_html_()).rows
    assert rows[-1] == ["result", "", '["jobs", "<b>one & two</b>"]', ""]
    assert "result" not in sequence("A", [give])._repr_html_()
