"""Every picture: one width, a title, labels with units, and the data that it was given."""

from __future__ import annotations

import base64
import colorsys
import inspect
import io
import itertools
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from nbclient import NotebookClient

from labkit.rig.bench import Run, Sweep
from labkit.rig.cachesim import Read, Simulation
from labkit.rig.eviction import Eviction, Evictions
from labkit.rig.load import Load
from labkit.rig.outage import Outage, Range
from labkit.rig.quorum import Seat, View
from labkit.rig.race import crash, expire, explore, lose_reply, sequence
from labkit.rig.stall import Stall, Stalls, Wait
from labkit.show import plot

RUN = Run("GET", tuple(range(20_000, 60_000, 100)))
SWEEP = Sweep(
    "batch", (1, 10, 100), tuple(Run(f"b{b}", tuple(range(b * 1000, b * 3000, b))) for b in (1, 10, 100))
)

REDLOCK = View(
    seats=(
        Seat("S1", "killed", "no connection", None, "?"),
        Seat("S2", "frozen", "no answer", None, "?"),
        Seat("S3", "up", "no", 0.002, "B"),
        Seat("S4", "up", "yes", 0.001, ""),
        Seat("S5", "up", "yes", 0.00001, ""),
    ),
    asked="A acquires",
    ok=False,
    took=0.2,
    validity=0.0,
    ttl=10.0,
    timeout=0.2,
    left=(("B", 3.0),),
)

SIMULATION = Simulation(
    seconds=1.0,
    rate=200,
    reads=tuple(Read(n / 100, n % 4 != 0, n > 50 and n % 10 == 0) for n in range(100)),
    loads=tuple(n / 25 for n in range(25)),
    writes=(0.5,),
    entries=10,
    evicted=0,
    bins=10,
)

HEARD = {
    "pub/sub": {"ada": ("at once", "never", "at once"), "bob": ("never", "never", "at once")},
    "stream": {"ada": ("at once", "later", "at once"), "bob": ("not yet", "not yet", "")},
}
DELIVERIES: dict[str, list[tuple[float, float | None, int]]] = {
    "one": [(0.0, 0.1, 1), (0.2, None, 1)],
    "two": [(0.0, 0.1, 1), (0.5, 0.6, 2)],
}
LAG = [(0.0, 0, 0), (1.0, 100, 20), (2.0, 300, 20)]
STALL = Stall("KEYS *", (Wait(-0.01, 0.0001), Wait(0.001, 0.08), Wait(0.09, 0.0002)), 0.1)
REFUSED = Stall("script", (Wait(0.0, 0.05, "BUSY"), Wait(0.06, 0.001, "BUSY"), Wait(0.065, 0.09)), 0.15)
LRU = Eviction("allkeys-lru", 10**6, 30, 9, 10, 0, 9, (1, 2, 99), 12, ((20, 10, 4), (10, 0, 0), (20, 20, 5)))
LFU = replace(LRU, policy="allkeys-lfu", hits=20, resident=(1, 2, 3), others=0)
EVICTIONS = Evictions(
    {("", one.policy, memory): one for one in (LRU, LFU) for memory in (10**6, 2 * 10**6)},
    (("", "clairvoyant", 10**6, 0.9), ("", "clairvoyant", 2 * 10**6, 0.95)),
)
RANKS = {1_000: 30_000.0, 10_000: 33_000.0, 100_000: 36_000.0}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    pyplot.close("all")
    plot.use_style("page")


GENERIC: dict[str, Callable[[Axes | None], Axes]] = {
    "latency of a run": lambda ax: plot.latency(RUN, ax),
    "latency of a sweep": lambda ax: plot.latency(SWEEP, ax),
    "sweep": lambda ax: plot.sweep(SWEEP, ax, title="More takes longer"),
    "bars": lambda ax: plot.bars(
        {"one": 1, "two": 2}, ax, title="Two is more", unit="commands", highlight="two"
    ),
    "lines": lambda ax: plot.lines(
        {"a": ([1, 2], [3, 4]), "b": ([1, 2], [5, 6])},
        ax,
        title="b is above a",
        xlabel="x (s)",
        ylabel="y (ms)",
    ),
    "arrivals": lambda ax: plot.arrivals({"a": [0.1, 0.1], "b": [0.3]}, ax, title="a comes at once"),
    "timeline": lambda ax: plot.timeline(
        {"ok": [0.1, 0.5], "failed": [0.2]}, ax, title="It came back", spans={"down": (0.15, 0.4)}
    ),
    "reconnects": lambda ax: plot.reconnects({"one": [0.1, 0.3], "other": [0.2]}, ax, title="Back", back=0.2),
    "memory": lambda ax: plot.memory({"kept": [10**6, 3 * 10**6]}, ax, limit=5 * 1024**2),
    "waits": lambda ax: plot.waits({"KEYS": [(0.0, 0.1)], "SCAN": [(0.1, 0.001)]}, ax, title="KEYS stops"),
    "turns": lambda ax: plot.turns({"polls": [[(0, 0.1, 0.2)], [(0, 0.3, 0.4)]]}, ax, title="One waits"),
    "redlock": lambda ax: plot.redlock(REDLOCK, ax),
    "heard": lambda ax: plot.heard(HEARD, ax, title="Who was away missed it"),
    "deliveries": lambda ax: plot.deliveries(DELIVERIES, ax, title="Two went on", kills={"one": 0.25}),
    "lag": lambda ax: plot.lag({"": LAG}, ax, title="It grows"),
    "board": lambda ax: plot.board_scaling({"rank": RANKS, "SQLite": RANKS}, ax, title="Slowly", fit="rank"),
    "evictions": lambda ax: plot.evictions(EVICTIONS, ax, title="LFU hits more often"),
    "hits": lambda ax: plot.hits_over_time({"LRU": LRU, "LFU": LFU}, ax, title="A scan passes"),
    "residents": lambda ax: plot.residents({"LRU": LRU}, ax, title="Who is there", keys=100),
    "stalls": lambda ax: plot.stalls(STALL, ax, title="KEYS stops everybody"),
    "speed-up": lambda ax: plot.speedup_map({0: {1: 10.0, 8: 2.0}, 1: {1: 20.0, 8: 3.0}}, ax),
}


@pytest.mark.parametrize("draw", GENERIC.values(), ids=GENERIC)
def test_every_plot_is_titled_labelled_and_of_one_width(draw: Callable[[Axes | None], Axes]) -> None:
    ax = draw(None)
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    assert figure.get_suptitle()
    assert ax.get_xlabel()
    assert ax.get_ylabel() or all(label.get_text() for label in ax.get_yticklabels())  # rows have names
    assert len(ax.get_lines()) < 2 or ax.get_legend() or ax.get_yticklabels()[0].get_text()
    assert figure.get_figwidth() == plot.WIDTH
    assert str(figure).startswith("Figure(900x")
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize("draw", GENERIC.values(), ids=GENERIC)
def test_every_plot_draws_into_the_axes_it_is_given(draw: Callable[[Axes | None], Axes]) -> None:
    _, ax = plot.figure()
    assert draw(ax) is ax
    assert ax.get_title(loc="left")
    assert pyplot.get_fignums() == []


def test_every_plot_has_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    plots = {
        name
        for name, function in inspect.getmembers(plot, inspect.isfunction)
        if function.__module__ == plot.__name__ and not name.startswith("_") and name != "new_axes"
        if "ax" in inspect.signature(function).parameters
    }
    assert plots - {"legend"} <= set(re.findall(r"plot\.(\w+)\(", tests))


def test_memory_shows_megabytes_and_the_limit() -> None:
    ax = plot.memory({"kept": [1024**2, 3 * 1024**2]}, limit=5 * 1024**2)
    kept, limit = ax.get_lines()
    assert (xs(kept), ys(kept)) == ([1, 2], [1, 3])
    assert set(ys(limit)) == {5}
    assert "MB" in ax.get_ylabel()


def test_waits_shows_each_answer_when_it_was_asked_for() -> None:
    ax = plot.waits({"KEYS": [(0.0, 0.3)], "SCAN": [(0.1, 0.001), (0.2, 0.002)]}, title="t")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["SCAN: 2 answers", "KEYS: 1 answer"]
    assert ax.get_yscale() == "log"


def test_turns_has_a_row_for_each_process_and_names_each_way_once() -> None:
    ways = {"polls": [[(0.0, 0.1, 0.2), (0.3, 0.4, 0.5)], [(0.0, 0.6, 0.7)]], "blocks": [[(0.0, 0.0, 0.1)]]}
    ax = plot.turns(ways, title="t")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["polls", "blocks"]
    assert len(ax.collections) == 2 * 3
    waiting, holding = (bars.get_paths() for bars in ax.collections[:2])
    boxes = [bar.get_extents() for bar in (*waiting, *holding)]
    spans = [[round(box.x0, 6), round(box.x1, 6)] for box in boxes]
    assert spans == [[0, 0.1], [0.3, 0.4], [0.1, 0.2], [0.4, 0.5]]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


def test_latency_shows_every_share_and_marks_p50_and_p99() -> None:
    ax = plot.latency(RUN)
    cumulated, marks = ax.get_lines()
    assert xs(cumulated)[-1] == max(RUN.samples)
    assert ys(cumulated)[-1] == 100
    assert xs(marks) == [RUN.p50, RUN.p99]
    assert ax.get_legend() is None


def test_latency_of_several_names_each() -> None:
    legend = plot.latency(SWEEP).get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "batch"
    assert [text.get_text() for text in legend.get_texts()] == ["1", "10", "100"]


def test_bars_show_their_values_first_on_top() -> None:
    ax = plot.bars({"one": 1, "two": 2000}, title="t", unit="commands", highlight=["two"])
    assert [text.get_text().strip() for text in ax.texts] == ["1", "2,000"]
    assert ax.yaxis_inverted()
    assert [mpl.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches] == [
        plot.BLUE,
        plot.VERMILLION,
    ]


def test_timeline_has_a_row_for_each_name() -> None:
    ax = plot.timeline({"ok": [1.0], "failed": [2.0, 3.0]}, title="t", colors={"failed": plot.VERMILLION})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ok", "failed"]
    assert [xs(line) for line in ax.get_lines()] == [[1.0], [2.0, 3.0]]
    assert ax.get_lines()[1].get_color() == plot.VERMILLION


def test_reconnects_tells_refused_attempts_from_the_one_that_connected() -> None:
    ax = plot.reconnects({"one": [0.1, 0.3, 0.5], "other": [0.45]}, title="t", back=0.4)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "other"]
    assert [xs(line) for line in ax.get_lines()] == [[0.1, 0.3], [0.5], [], [0.45]]
    assert ax.get_legend_handles_labels()[1] == ["server away", "refused", "connected"]
    assert {line.get_color() for line in ax.get_lines()[::2]} == {plot.VERMILLION}


NOTEBOOK = """
from labkit.rig.bench import Run
from labkit.show import plot

plot.latency(Run("GET", (1000, 2000, 3000)), title="t")
"""


def test_in_a_notebook_a_plot_is_a_sharp_picture_and_nothing_else() -> None:
    cell = nbformat.v4.new_code_cell(NOTEBOOK)  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = cell.outputs
    assert output.data["text/plain"] == "<Figure size 900x378 with 1 Axes>"
    assert output.metadata["image/png"] == {"width": 900, "height": 378}
    header = base64.b64decode(output.data["image/png"])[:24]
    assert struct.unpack(">II", header[16:]) == (1800, 756)


def test_the_talk_style_is_larger() -> None:
    plot.use_style("talk")
    talk = mpl.rcParams["font.size"]
    plot.use_style("page")
    assert talk > mpl.rcParams["font.size"] >= 12
    with pytest.raises(ValueError, match="style is 'poster'; there are page, talk"):
        plot.use_style("poster")


def test_neighbouring_colours_differ_in_lightness_or_hue() -> None:
    colours = [colorsys.rgb_to_hls(*mpl.colors.to_rgb(colour)) for colour in plot.PALETTE]
    for (hue, light, _), (next_hue, next_light, _) in itertools.pairwise(colours):
        apart = abs(hue - next_hue)
        assert min(apart, 1 - apart) > 0.1 or abs(light - next_light) > 0.15
    assert len(set(plot.PALETTE)) == 7
    assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(plot.PALETTE)


def buy(r: Any) -> None:
    if int(r.get("stock")) > 0:
        r.decr("stock")
        r.rpush("sold", "ticket")


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_lanes_show_commands_replies_state_and_where_it_went_wrong() -> None:
    found = explore([buy, buy], setup=lambda r: r.set("stock", 1), invariant=lambda r: r.llen("sold") <= 1)
    ax = plot.lanes(found)
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "12 of 16 interleavings break the invariant"
    assert figure.get_figwidth() == plot.WIDTH
    said = texts(ax)
    assert said[:3] == ["A · buy", "B · buy", "Redis"]
    assert said.count("GET stock") == said.count("DECRBY stock 1") == said.count("RPUSH sold ticket") == 2
    assert {'"1"', "-1", 'sold = ["ticket", "ticket"]', "✗ 6", "✗ the invariant does not hold"} <= set(said)
    marked = [text for text in ax.texts if mpl.colors.same_color(text.get_color(), plot.VERMILLION)]
    assert [text.get_text() for text in marked] == ["✗ 6", "✗ the invariant does not hold"]


def test_lanes_grow_with_the_steps_and_their_letters_with_the_style() -> None:
    def height(schedule: str) -> float:
        ax = plot.lanes(sequence(schedule, [buy, buy], setup=lambda r: r.set("stock", 9)))
        return ax.get_figure(root=True).get_figheight()  # type: ignore[union-attr]

    assert height("") < height("A") < height("AABB") < height("ABABAB")
    before = height("AB")
    plot.use_style("talk")
    assert height("AB") > before


def test_lanes_show_faults_waits_and_what_is_long() -> None:
    def hold(r: Any) -> None:
        r.set("lock", "x" * 80, px=9000)
        r.lpush("jobs", "j" * 80)

    def wait_for_a_rather_long_time(r: Any) -> Any:
        return r.blpop("jobs", 5)

    actors = [hold, wait_for_a_rather_long_time, wait_for_a_rather_long_time]
    ax = plot.lanes(sequence("ABC*~AC", actors, faults=[expire, crash, lose_reply]))
    said = texts(ax)
    assert {"lock expires", "waits", "wait ends", "reply lost", "times out", "lock is gone"} <= set(said)
    assert any(text.startswith("SET lock xxx") and text.endswith("…") for text in said)
    assert any(text.startswith("lock = ") and text.endswith("… · TTL 9 s") for text in said)
    assert "A crashes" in texts(plot.lanes(sequence("A!A", [hold], faults=[crash])))
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), format="png")
    inside = figure.bbox.padded(1)
    for text in ax.texts:
        corners = text.get_window_extent().get_points()
        assert all(inside.contains(x, y) for x, y in corners), text.get_text()


def test_lanes_of_many_keys_and_of_what_is_safe() -> None:
    ax = plot.lanes(
        sequence("", [buy], setup=lambda r: r.mset({f"k{i}": i for i in range(9)} | {"stock": 0}))
    )
    assert "… and 6 more" in texts(ax)
    safe = explore([buy], setup=lambda r: r.set("stock", 1), invariant=lambda r: r.llen("sold") <= 1)
    with pytest.raises(ValueError, match="nothing to draw: 0 of 1 interleavings"):
        plot.lanes(safe)


def test_lanes_draw_into_the_axes_they_are_given() -> None:
    pyplot.close("all")
    _, ax = plot.figure(0.6)
    assert plot.lanes(sequence("A", [buy], setup=lambda r: r.set("stock", 1)), ax, title="Mine") is ax
    assert ax.get_title(loc="left") == "Mine"
    assert pyplot.get_fignums() == []


def test_redlock_shows_what_each_server_said_has_and_is() -> None:
    said = texts(plot.redlock(REDLOCK))
    assert {"no connection", "no answer", "no · 2 ms", "yes · 1 ms", "yes · 10 µs"} <= set(said)
    assert {"2 of 5 after 200 ms", "timeout 200 ms", "killed", "B"} <= set(said)
    won = replace(REDLOCK, ok=True, validity=9.7, took=0.002)
    ax = plot.redlock(won, plot.figure()[1])
    assert "a majority: valid for 9.7 s" in texts(ax)
    assert ax.get_title(loc="left") == "A has the lock: 2 of 5 said yes"
    unasked = replace(
        REDLOCK, asked="", left=(), seats=tuple(replace(s, said="", seconds=None) for s in won.seats)
    )
    assert (
        plot.redlock(unasked, plot.figure()[1]).get_title(loc="left")
        == "5 servers, of which 3 are a majority"
    )


def panels(ax: Axes) -> list[Axes]:
    return [child for child in ax.child_axes if isinstance(child, Axes)]


def test_a_simulation_is_three_panels_over_one_time_with_their_means() -> None:
    ax = plot.simulation(SIMULATION)
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "100 reads: 75 % hits, 25 loads/s, 4 % stale"
    assert figure.get_figwidth() == plot.WIDTH
    three = panels(ax)
    assert [panel.get_title(loc="left") for panel in three] == [
        "hit ratio (%)",
        "database loads/s",
        "stale reads (%)",
    ]
    assert [texts(panel) for panel in three] == [["75 %"], ["25/s"], ["4 %"]]
    assert three[-1].get_xlabel() == "time (s)"
    assert {panel.get_xlim() for panel in three} == {(0, 1)}
    assert three[1].get_ylim() == (0, 200)  # what was asked for: the same in every picture
    (stale,) = three[2].get_lines()
    assert max(ys(stale)) == 10
    figure.savefig(io.BytesIO(), format="png")


def test_a_simulation_names_nothing_over_its_title() -> None:
    for style in ("page", "talk"):
        plot.use_style(style)
        figure, ax = plot.figure(0.56)
        assert plot.simulation(SIMULATION, ax, title="Mine") is ax
        figure.savefig(io.BytesIO(), format="png")
        title = ax.title if ax.title.get_text() else ax._left_title  # type: ignore[attr-defined]
        first = panels(ax)[0]._left_title  # type: ignore[attr-defined]
        assert title.get_text() == "Mine"
        assert title.get_window_extent().y0 > first.get_window_extent().y1
    assert pyplot.get_fignums() == []


def test_a_simulation_without_reads_or_stale_ones_is_drawn_too() -> None:
    ax = plot.simulation(replace(SIMULATION, reads=(), loads=()))
    assert [texts(panel) for panel in panels(ax)] == [["0 %"], ["0/s"], ["0 %"]]
    few = replace(SIMULATION, reads=SIMULATION.reads[65:])
    (hits,) = panels(plot.simulation(few))[0].get_lines()
    assert xs(hits)[0] == 0.65  # before that nothing is known
    slow = replace(SIMULATION, rate=10)
    assert panels(plot.simulation(slow))[1].get_ylim()[1] >= 25


def test_heard_says_what_became_of_each_message_and_counts() -> None:
    ax = plot.heard(HEARD, title="t", first=5)
    assert [text.get_text() for text in ax.texts] == ["2 of 3", "1 of 3", "3 of 3", "0 of 3"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["pub/sub:", "ada", "bob", "stream:", "ada", "bob"]
    drawn = {
        (round(ys(line)[0]), tuple(xs(line)))
        for line in ax.get_lines()
        if line.get_linestyle() == "None" and xs(line)
    }
    assert {(1, (5, 7)), (1, (6,)), (4, (6,)), (5, (5, 6))} <= drawn
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "heard at once",
        "read later",
        "never",
        "not yet",
    ]
    with pytest.raises(ValueError, match="a state is 'lost'; it must be one of 'at once', 'later'"):
        plot.heard({"x": {"ada": ["lost"]}}, title="t")


def test_deliveries_end_at_the_kill_or_at_their_end() -> None:
    ax = plot.deliveries(DELIVERIES, title="t", kills={"one": [0.25, 0.9]})
    boxes = [bar.get_paths()[0].get_extents() for bar in ax.collections]
    assert [[round(box.x0, 6), round(box.x1, 6)] for box in boxes] == [
        [0, 0.1],
        [0.2, 0.25],
        [0, 0.1],
        [0.5, 0.6],
    ]
    (killed,) = (line for line in ax.get_lines() if xs(line))
    assert (xs(killed), ys(killed)) == ([0.25, 0.9], [0, 0])
    legend = ax.get_legend()
    assert legend is not None
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["first delivery", "never finished", "delivered again", "killed"]
    calm = plot.deliveries({"one": [(0, 1, 1)]}, title="t").get_legend()
    assert calm is not None
    assert len(calm.get_texts()) == 1


def test_lag_of_several_ways_has_one_scale_and_the_limits_that_are_named() -> None:
    ax = plot.lag({"free": LAG, "waits": [(0, 0, 0), (2, 80, 20)]}, title="t", limit={"waits": 100})
    free, waits = panels(ax)
    assert free.get_ylim() == waits.get_ylim() == (0, 1.1 * 320)
    assert [panel.get_title(loc="left") for panel in (free, waits)] == ["free (messages)", "waits (messages)"]
    assert [len(panel.get_lines()) for panel in (free, waits)] == [0, 1]
    legend = waits.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["waiting", "pending", "limit"]
    assert len(plot.lag({"": LAG}, title="t", limit=200).get_lines()) == 1


def test_a_board_is_fitted_and_stored_sizes_are_hollow() -> None:
    ax = plot.board_scaling({"rank": RANKS}, title="t", fit=["rank"], stored={"rank": {10**6: 39_000.0}})
    legend = ax.get_legend()
    assert legend is not None
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["rank: 21 µs + 903 ns each doubling", "stored result"]
    dots = [line for line in ax.get_lines() if line.get_marker() == "o" and xs(line)]
    hollow = [xs(line) for line in dots if line.get_markerfacecolor() == "white"]
    assert (len(dots), hollow) == (4, [[10**6]])
    lines = [xs(line) for line in plot.board_scaling({"a": RANKS}, title="t").get_lines()]
    assert list(RANKS) in lines


def labels_along(axis: Any) -> list[str]:
    """The labels of an axis, in order, of which none may touch another."""
    figure = axis.get_figure(root=True)
    figure.draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    shown = {tick.get_loc(): tick.label1 for tick in ticks if low <= tick.get_loc() <= high}
    boxes = {at: text.get_window_extent() for at, text in sorted(shown.items()) if text.get_text()}
    for one, other in itertools.pairwise(boxes.values()):
        assert not one.overlaps(other), [shown[at].get_text() for at in boxes]
    labels = [shown[at].get_text() for at in boxes]
    assert not any("$" in label for label in labels), labels  # 3×10⁵ is nobody's idea of 300 kB
    return labels


@pytest.mark.parametrize("style", ["page", "talk"])
@pytest.mark.parametrize("name", GENERIC)
def test_no_label_of_a_tick_touches_another(name: str, style: str) -> None:
    plot.use_style(style)
    figure = GENERIC[name](None).get_figure(root=True)
    assert figure is not None
    for ax in figure.get_axes():
        labels_along(ax.xaxis)
        labels_along(ax.yaxis)


def test_a_log_scale_may_be_upside_down_or_empty() -> None:
    ax = plot.lines({"a": ([1, 1e6], [1, 1e6])}, title="t", xlabel="x", ylabel="y", logx=True)
    ax.invert_xaxis()
    plot.number_axis(ax.xaxis)
    assert len(labels_along(ax.xaxis)) >= 3
    plot.lines({"a": ([], [])}, title="t", xlabel="x", ylabel="y", logx=True, logy=True)


def test_memories_that_were_replayed_are_named_and_no_others() -> None:
    sizes = (250_000, 500_000, 10**6)
    ax = plot.evictions(Evictions({("", LRU.policy, memory): LRU for memory in sizes}, ()), title="t")
    assert labels_along(ax.xaxis) == ["250 kB", "500 kB", "1 MB"]


@pytest.mark.parametrize("style", ["page", "talk"])
@pytest.mark.parametrize(
    ("first", "last", "among", "least"),
    [
        (9.2, 10.1, "9.6", 4),
        (72, 123, "80", 3),
        (11, 31, "20", 2),
        (13, 420, "50", 4),
        (60, 580, "200", 3),
        (1, 1e6, "10,000", 3),
    ],
)
def test_ticks_of_a_log_scale_are_enough_and_none_meet(
    first: float, last: float, among: str, least: int, style: str
) -> None:
    plot.use_style(style)
    series = {"a": ([first, last], [first, last])}
    ax = plot.lines(series, title="t", xlabel="x", ylabel="y", logx=True, logy=True)
    for axis in (ax.xaxis, ax.yaxis):
        labels = labels_along(axis)
        assert among in labels and len(labels) >= least, labels
    plot.time_axis(ax.yaxis)
    assert len(labels_along(ax.yaxis)) >= least


def test_lines_have_named_limits_and_bars_their_own_colours() -> None:
    ax = plot.lines({"a": ([0, 1], [2, 3])}, title="t", xlabel="x", ylabel="y", limits={"hard": 9, "soft": 5})
    assert [ys(line)[0] for line in ax.get_lines()[1:]] == [9, 5]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "hard", "soft"]
    drawn = plot.bars({"a": 1, "b": 2}, title="t", unit="u", colors={"b": plot.GREEN}).patches
    assert [mpl.colors.to_hex(bar.get_facecolor()).upper() for bar in drawn] == [plot.BLUE, plot.GREEN]


def test_stalls_have_a_panel_each_and_one_scale() -> None:
    ax = plot.stalls(Stalls(((STALL,), (REFUSED,))), title="t")
    keys, script = panels(ax)
    assert [panel.get_title(loc="left") for panel in (keys, script)] == [
        "KEYS *: 80 ms at most",
        "script: 155 ms at most",
    ]
    assert keys.get_xlim() == script.get_xlim() and keys.get_ylim() == script.get_ylim()
    longest = keys.get_lines()[1]
    assert xs(longest) == pytest.approx([1, 81])
    assert ys(longest) == pytest.approx([8e7, 8e7])
    assert len(keys.collections) == 1  # the one of 10 ms and more is filled
    *waited, refused = script.get_lines()
    assert (len(waited), xs(refused), ys(refused)) == (1, [0, 60], [5e7, 1e6])
    legend = script.get_legend()
    assert legend is not None
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["the work runs", "another client waits", "10 ms and more", "is refused"]
    alone = plot.stalls(STALL, title="t").get_legend()
    assert alone is not None
    assert len(alone.get_texts()) == 3


def test_evictions_are_a_line_for_each_policy_and_bounds_are_black() -> None:
    ax = plot.evictions(EVICTIONS, title="LFU hits more often")
    lru, lfu, bound = ax.get_lines()
    assert (xs(lru), ys(lru)) == ([10**6, 2 * 10**6], [30, 30])
    assert ys(lfu) == pytest.approx([200 / 3] * 2)
    assert (bound.get_label(), bound.get_color(), ys(bound)) == ("clairvoyant", plot.BLACK, [90, 95])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1 MB", "2 MB"]


def test_hits_over_time_have_a_gap_where_only_a_scan_was() -> None:
    ax = plot.hits_over_time({"before": LFU, "now": LRU}, title="A scan passes", last=100)
    before, now = ax.get_lines()
    assert before.get_color() == plot.GREY
    assert xs(now) == [20, 30, 50]
    assert ys(now)[0] == pytest.approx(40) and math.isnan(ys(now)[1]) and ys(now)[2] == pytest.approx(25)
    spans = [(patch.get_x(), patch.get_width()) for patch in ax.patches if isinstance(patch, Rectangle)]
    assert spans == [(0, 20), (20, 10)], "where a scan came by"
    assert ax.get_xlim() == (0, 100)


def test_hits_of_a_single_span_are_a_dot() -> None:
    one = replace(LRU, history=LRU.history[:1])
    ax = plot.hits_over_time({"before": LFU, "now": one}, title="A scan passes")
    assert [line.get_marker() for line in ax.get_lines()] == ["None", "o"]


def test_residents_have_a_colour_from_hot_to_cold_and_a_scan_is_black() -> None:
    ax = plot.residents({"LRU": LRU, "LFU": LFU}, title="Who is there", keys=100)
    with_scan, without = (np.asarray(image.get_array()) for image in ax.get_images())
    height, width, _ = with_scan.shape
    assert width * height >= 100 + 12
    cells = with_scan.reshape(-1, 3)
    coloured = [n + 1 for n in range(100) if not np.allclose(cells[n], 0.9)]
    assert coloured == [1, 2, 99]
    assert cells[0].sum() > cells[1].sum() > cells[98].sum(), "hot is light"
    assert (cells[100:] == 0).all(axis=1).sum() == 12
    assert not (without.reshape(-1, 3) == 0).all(axis=1).any()
    assert "3 pages + 12 of a scan" in "".join(texts(ax))


OUTAGE = Outage(
    "A",
    "A2",
    (
        Range("0–8191", True, 100, 3, 0.01, 2.51, ()),
        Range("8192–16383", False, 200, 0, 1.5, 1.53, ()),
    ),
)


def test_slots_are_coloured_by_primary_and_the_busiest_ones_share_stands_beside() -> None:
    owners = {slot: "A" if slot < 8192 else "B" for slot in range(16_384)}
    ways = {"spread": list(range(0, 16_384, 16)), "hot": [100] * 50}
    ax: Any = plot.slots(ways, owners, title="One slot has everything")
    spread, hot = ax.child_axes
    assert [sum(bar.get_height() for bar in drawn) for drawn in spread.containers] == [512, 512]
    assert [sum(bar.get_height() for bar in drawn) for drawn in hot.containers] == [50, 0]
    assert spread.containers[0][0].get_facecolor() != spread.containers[1][0].get_facecolor()
    assert {"50 %", "busiest:"} <= {text.get_text() for text in spread.texts}
    assert [text.get_text() for text in hot.texts] == ["100 %"]
    assert hot.get_xlabel() == "slot" and "(keys in each 256 slots)" in hot.get_title(loc="left")
    assert [text.get_text() for text in hot.get_legend().get_texts()] == ["primary A", "primary B"]
    alone = plot.slots({"hot": ways["hot"]}, owners, title="One")
    assert alone.containers and not alone.child_axes


def test_service_shows_for_how_long_which_slots_were_not_served() -> None:
    ax: Any = plot.service({"yes": OUTAGE, "no": OUTAGE}, title="Who else stops?")
    for panel, name in zip(ax.child_axes, ("yes", "no"), strict=True):
        assert panel.get_title(loc="left") == name
        gaps = [drawn[0] for drawn in panel.containers[1::2]]
        assert [(bar.get_x(), round(bar.get_width(), 2)) for bar in gaps] == [(0.01, 2.5), (1.5, 0.03)]
        assert [text.get_text() for text in panel.texts] == ["2.5 s", "0.03 s"]
        assert [label.get_text() for label in panel.get_yticklabels()] == ["slots 0–8191", "slots 8192–16383"]
        (killed,) = panel.get_lines()
        assert list(killed.get_xydata()[0]) == [0, 0]
    assert ax.child_axes[-1].get_xlabel() == "time since the kill (s)"


def test_runs_show_each_run_the_median_and_those_of_now() -> None:
    groups = {"one": [1.0, 2.0, 4.0], "other": [0.0, 0.0, 0.0, 0.0, 0.0, 3.0]}
    ax: Any = plot.runs(groups, title="One takes longer", xlabel="time (s)", live={"one": [5.0]})
    drawn = [line for line in ax.get_lines() if len(line.get_xdata())]
    stored, now = ([list(line.get_xdata()) for line in drawn if line.get_marker() == mark] for mark in "oD")
    assert stored == [[1, 2, 4], [0, 0, 0, 0, 0, 3]] and now == [[5]]
    assert [line.get_xdata()[0] for line in drawn if line.get_color() == plot.BLACK] == [2, 0]
    assert [text.get_text() for text in ax.texts] == ["5×"]
    assert ax.get_xlim()[1] > 5


def test_capacity_shows_commands_and_the_cores_that_each_server_had() -> None:
    loads = {1: Load(2000, 1.0, {"A": 0.9}), 2: Load(3000, 1.0, {"A": 0.8, "B": 0.1})}
    ax: Any = plot.capacity(loads, title="As much more as they get", cores=2)
    left, right = ax.child_axes
    assert [bar.get_height() for bar in left.patches] == [2000, 3000]
    assert {"2,000", "3,000"} <= {text.get_text() for text in left.texts}
    cpu = [(round(bar.get_y(), 2), round(bar.get_height(), 2)) for bar in right.patches]
    assert cpu == [(0, 0.9), (0, 0.8), (0.8, 0.1)]
    said = {text.get_text() for text in right.texts}
    assert said == {"90 %", "80 %", "this machine: 2"}  # there is no room for 10 %
    assert [left.get_xlabel(), right.get_xlabel()] == ["primaries", "primaries"]
