"""Every picture: one width, a title, labels with units, and the data that it was given."""

from __future__ import annotations

import base64
import colorsys
import inspect
import io
import itertools
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from nbclient import NotebookClient

from labkit.rig.bench import Run, Sweep
from labkit.show import plot

RUN = Run("GET", tuple(range(20_000, 60_000, 100)))
SWEEP = Sweep(
    "batch", (1, 10, 100), tuple(Run(f"b{b}", tuple(range(b * 1000, b * 3000, b))) for b in (1, 10, 100))
)


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
    "memory": lambda ax: plot.memory({"kept": [10**6, 3 * 10**6]}, ax, limit=5 * 1024**2),
    "waits": lambda ax: plot.waits({"KEYS": [(0.0, 0.1)], "SCAN": [(0.1, 0.001)]}, ax, title="KEYS stops"),
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
