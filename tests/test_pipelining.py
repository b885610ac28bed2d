"""Chapter 02: the cost model, its pictures and playground, and answers that its graders must also accept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import pytest

from labkit.rig.model import Line, Trial, Trials, run_batches
from labkit.rig.proxy import Proxy
from labkit.rig.server import Server
from labkit.rig.wire import tap
from labkit.show import plot, widgets
from labkit.teach.check import grade
from labkit.teach.exercises import Exercise, load

matplotlib.use("agg")

SIZES = (1, 3, 10, 30, 100, 300, 1000)
MS = 1e6


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def link(server: Server) -> Iterator[Proxy]:
    with Proxy(server) as link:
        yield link


# --- the model ---------------------------------------------------------------------------------------


def test_a_line_is_found_again() -> None:
    true = Line(fixed=2 * MS, each=5_000)
    line = Line.fit({b: true.at(b) for b in SIZES})
    assert line.fixed == pytest.approx(2 * MS) and line.each == pytest.approx(5_000)
    assert line.half == pytest.approx(400)
    assert all(abs(off) < 1e-9 for off in line.residuals({b: true.at(b) for b in SIZES}).values())
    assert repr(line) == "t(b) = 2 ms + b · 5 µs"


def test_errors_count_by_their_share_of_the_time() -> None:
    """A long batch that is 10 % late hardly moves the fixed part; with equal weights it would, by far."""
    points = {b: 1 * MS + b * 10_000.0 for b in SIZES}
    points[1000] *= 1.1
    assert Line.fit(points).fixed == pytest.approx(1 * MS, rel=0.1)


def test_totals_and_residuals() -> None:
    line = Line(fixed=100, each=1)
    assert line.total(250, 100) == 3 * 100 + 250
    assert line.total(100, 100) == line.at(100) == 200
    assert line.residuals({100: 300}) == {100: 0.5}


@pytest.mark.parametrize("points", [{}, {1: 5.0}, {1: 5.0, 2: 0.0}])
def test_a_line_needs_two_points(points: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="two sizes"):
        Line.fit(points)


@pytest.mark.parametrize(("commands", "b", "trips"), [(100, 100, 1), (100, 30, 4), (10, 1, 10), (5, 100, 1)])
def test_batches_really_run(server: Server, commands: int, b: int, trips: int) -> None:
    r = server.client()
    with tap(r) as t:
        assert run_batches(r, commands, b) > 0
    assert (t.round_trips, len(t.commands)) == (trips, commands)
    r.close()


def test_a_line_moves_with_the_server() -> None:
    assert Line(fixed=2 * MS, each=5).further(3) == Line(fixed=5 * MS, each=5)
    assert Line(fixed=2 * MS, each=5).further(-2) == Line(fixed=0, each=5)


def test_a_trial_holds_each_way_against_the_model(link: Proxy) -> None:
    trials = Trials(link)
    trial = trials.run(delay=1.0, batch=10, commands=50)
    assert list(trial.rows) == ["one by one", "batches of 10"]
    one, batches = trial.rows.values()
    assert one[0] and one[0] > 50 * MS and batches[0] and batches[0] > 5 * MS
    model = trials.line.further(-1)
    assert [one[1], batches[1]] == [model.total(50, 1), model.total(50, 10)]
    assert trials.run(delay=20.0, batch=1000, commands=2000).rows["one by one"][0] is None


def test_a_trial_is_a_value() -> None:
    rows = {"one by one": (None, 40_000 * MS), "batches of 50": (60 * MS, 58 * MS)}
    trial = Trial(delay=20, batch=50, commands=2_001, rows=rows)
    assert repr(trial) == "2,001 GETs, 20 ms away: 2,001 waits, or 41"
    assert trial == Trial(20, 50, 2_001, dict(rows))
    assert trial.df.loc["batches of 50"].to_dict() == {"measured_ms": 60, "expected_ms": 58}
    assert trial.df["measured_ms"].isna().tolist() == [True, False]


# --- the pictures ------------------------------------------------------------------------------------


def test_pipeline_fit_shows_dots_lines_and_residuals() -> None:
    lines = {0: Line(0.1 * MS, 5_000), 5: Line(5 * MS, 5_000)}
    measured = {ms: {b: line.at(b) * 1.2 for b in SIZES} for ms, line in lines.items()}
    ax: Any = plot.pipeline_fit(measured, lines)
    upper, lower = ax.figure.axes
    assert upper is ax and ax.get_xscale() == ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0 ms", "5 ms"]
    residuals = [list(line.get_ydata()) for line in lower.lines if line.get_marker() == "o"]
    assert residuals == [pytest.approx([20] * len(SIZES))] * 2
    assert "off" in lower.get_ylabel() and lower.get_xlabel() == "commands in the pipeline"
    alone = plot.figure()[1]
    assert plot.pipeline_fit(measured, lines, alone) is alone and len(alone.figure.axes) == 1


def test_speedup_map_writes_each_number_readably() -> None:
    times = {0: {1: 10.0, 8: 5.0}, 5: {1: 800.0, 8: 100.0, 64: 13.0}}
    times[0][64] = 4.0
    ax = plot.speedup_map(times)
    written = [(text.get_text(), text.get_color()) for text in ax.texts]
    assert [number for number, _ in written] == ["1.0×", "2.0×", "2.5×", "1.0×", "8.0×", "62×"]
    assert written[0][1] == "white" and written[-1][1] == plot.BLACK
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "5"]
    plot.speedup_map({0: {1: 10.0, 8: 12.0}})  # no gain anywhere is no error


def test_measured_and_model_says_what_was_not_run() -> None:
    rows = {"one by one": (None, 40_000 * MS), "batches of 50": (60 * MS, 58 * MS)}
    ax: Any = plot.measured_and_model(rows, title="2,000 GETs")
    assert [text.get_text() for text in ax.texts] == ["not run: the model says 40 s", "60 ms"]
    assert [bar.get_width() for bar in ax.patches] == [0, 60 * MS]


def test_the_playground_measures_and_does_not_run_for_ever(link: Proxy) -> None:
    playground = widgets.pipelining(link)
    figure: Any = playground.draw(delay=1.0, batch=10, commands=50)
    one, batches = figure.axes[0].patches
    assert 50 * MS < one.get_width() < 50 * 1.5e9
    assert batches.get_width() > 5 * MS
    long = playground.draw(delay=20.0, batch=1000, commands=2000)
    assert "not run" in long.axes[0].texts[0].get_text()
    playground.controls["commands"].value = 150
    assert playground.status.value.startswith("drawn:") and playground.picture.value[:4] == b"\x89PNG"
    link.close()
    playground.controls["commands"].value = 200
    assert "closed" in playground.status.value


# --- other right answers -----------------------------------------------------------------------------

RIGHT = {
    "transfer by a script": (
        "transfer",
        """
def transfer(r, source, target, amount):
    script = r.register_script(
        "if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then return 0 end "
        "redis.call('DECRBY', KEYS[1], ARGV[1]) redis.call('INCRBY', KEYS[2], ARGV[1]) return 1"
    )
    return script([source, target], [amount]) == 1
""",
    ),
    "transfer by redis-py's transaction()": (
        "transfer",
        """
def transfer(r, source, target, amount):
    def move(pipe):
        if int(pipe.get(source) or 0) < amount:
            return False
        pipe.multi()
        pipe.decrby(source, amount).incrby(target, amount)
        return True
    return r.transaction(move, source, value_from_callable=True)
""",
    ),
    "transfer by a script that writes only what it has read, again and again": (
        "transfer",
        """
def transfer(r, source, target, amount):
    swap = r.register_script(
        "if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 0 end "
        "redis.call('DECRBY', KEYS[1], ARGV[2]) redis.call('INCRBY', KEYS[2], ARGV[2]) return 1"
    )
    while int(have := r.get(source) or "0") >= amount:
        if swap([source, target], [have, amount]):
            return True
    return False
""",
    ),
    "transfer that waits a little longer each time": (
        "transfer",
        """
import time
import redis

def transfer(r, source, target, amount):
    pause = 0.001
    while True:
        with r.pipeline() as pipe:
            try:
                pipe.watch(source, target)
                if int(pipe.get(source) or 0) < amount:
                    return False
                pipe.multi()
                pipe.decrby(source, amount).incrby(target, amount)
                pipe.execute()
                return True
            except redis.WatchError:
                time.sleep(pause)
                pause *= 2
""",
    ),
    "load in transactions": (
        "load",
        """
from itertools import islice

def load(r, pairs, size=100):
    pairs, count = iter(pairs), 0
    while chunk := list(islice(pairs, size)):
        with r.pipeline() as pipe:
            for key, value in chunk:
                pipe.set(key, value, ex=3600)
            count += len(pipe.execute())
    return count
""",
    ),
    "load that fills one pipeline again and again": (
        "load",
        """
def load(r, pairs, size=100):
    pipe, count = r.pipeline(transaction=False), 0
    for key, value in pairs:
        pipe.set(key, value, ex=3600)
        count += 1
        if len(pipe) == size:
            pipe.execute()
    if len(pipe):
        pipe.execute()
    return count
""",
    ),
    "get_many by a pipeline": (
        "get_many",
        """
def get_many(r, names):
    pipe = r.pipeline(transaction=False)
    names = list(names)
    for name in names:
        pipe.get(name)
    return dict(zip(names, pipe.execute()))
""",
    ),
    "count_all in a transaction": (
        "count_all",
        """
import redis

def count_all(r, names):
    with r.pipeline() as pipe:
        for name in names:
            pipe.incrby(name, 1)
        replies = pipe.execute(raise_on_error=False)
    return [n for n, reply in zip(names, replies) if isinstance(reply, redis.RedisError)]
""",
    ),
}


def exercise(name: str) -> Exercise:
    return next(e for e in load("pipelining") if e.name == name)


@pytest.mark.parametrize("answer", RIGHT)
def test_other_right_answers_are_accepted(answer: str) -> None:
    name, source = RIGHT[answer]
    verdict = grade(exercise(name), exercise(name).build(source))
    assert verdict.state == "correct", str(verdict)


def test_what_a_wrong_answer_is_told_has_numbers() -> None:
    found = exercise("transfer")
    worst = next(wrong for wrong in found.wrong if wrong.violates == "half")
    verdict = grade(found, found.build(worst.source))
    assert "30 are nowhere" in verdict.message and "30 between 100 and 0" in verdict.counterexample
