"""One look for every picture of the workbook.

Each function takes a result and `ax=None`, draws into that axes or into a new figure of the common width,
sets title, labels with units and legend, and returns the Axes. The title says what there is to see. In a
chapter the cell ends with a semicolon, and the picture is shown by itself.

The colours are Okabe and Ito's, which people with any colour vision tell apart. What fails or is refused is
VERMILLION, what works or is admitted BLUE or GREEN, a model or a limit BLACK.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from labkit.rig.bench import Run, Sweep, human_time
from labkit.rig.cachesim import Simulation, human_share
from labkit.rig.eviction import Eviction, Evictions, human_bytes
from labkit.rig.model import Line
from labkit.rig.stall import STALLED, Stall, Stalls
from labkit.rig.trace import Trace
from labkit.rig.traffic import Replay
from labkit.show.diagram import Diagram, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from labkit.rig.load import Load
    from labkit.rig.outage import Outage
    from labkit.rig.quorum import Seat, View
    from labkit.rig.race import Exploration

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"

PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, BLACK)
"""The order in which series are coloured; yellow is left out, it does not show on white."""

WIDTH = 9.0
"""Inches: the width of every picture."""


class _Look(NamedTuple):
    """Points of letters and lines; pixels of an inch on the page; and what widgets add, as CSS."""

    letters: float
    lines: float
    rules: float
    dpi: int
    css: str = ""


_FOCUS = """
.labkit-widget :is(button, select, input, .noUi-handle):focus-visible { outline: 3px solid #D55E00 !important;
  outline-offset: -3px }
.labkit-widget .noUi-handle:focus-visible { outline-offset: 2px !important }
"""
# On a screen of 1280×720, for the last row: letters of 24 pixels in plots, and of 20 or so around them.
_TALK = """
.labkit-widget { --jp-widgets-font-size: 20px; --jp-widgets-inline-height: 40px;
  --jp-widgets-inline-width: 400px; --jp-widgets-inline-label-width: 120px; }
.labkit-widget .widget-toggle-buttons .widget-toggle-button, .labkit-widget .widget-button {
  font-size: 20px; height: 40px; line-height: 38px }
.labkit-widget .labkit-status, .labkit-widget .labkit-status * { font-size: 24px !important;
  line-height: 1.3; height: auto; white-space: normal }
.labkit-widget .labkit-picture:not(img) { zoom: 1.2; max-width: none }
.labkit-widget .labkit-picture code { font-size: 16px !important }
"""
_LOOKS = {"page": _Look(13, 2.6, 0.8, 100), "talk": _Look(16.5, 4.2, 1.2, 104, _TALK)}
_style = "page"
_followers: WeakSet[Any] = WeakSet()


def use_style(name: str = "page") -> None:
    """From now on: "page" for reading; "talk" for a projector: larger letters and pictures, thicker lines.

    It sets matplotlib's defaults, so it counts for all pictures that are made from now on; live widgets
    change where they stand, at once. The colours are the same. Raises ValueError for another name.
    """
    global _style
    if name not in _LOOKS:
        raise ValueError(f"style is {name!r}; there are {', '.join(_LOOKS)}")
    _style = name
    for setting, value in _defaults(_LOOKS[name]).items():
        mpl.rcParams[setting] = value  # type: ignore[index]
    _in_a_notebook()
    for one in list(_followers):
        one.restyle()


def _defaults(look: _Look) -> dict[str, Any]:
    """What matplotlib is told."""
    size = look.letters
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": GREY,
        "axes.grid": True,
        "axes.labelsize": size,
        "axes.linewidth": look.rules,
        "axes.prop_cycle": f"cycler(color={list(PALETTE)})",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlepad": 12,
        "axes.titlesize": size * 1.2,
        "axes.titleweight": "bold",
        "figure.constrained_layout.use": True,
        "figure.dpi": look.dpi,
        "figure.titlesize": size * 1.2,
        "figure.titleweight": "bold",
        "figure.figsize": (WIDTH, WIDTH * 0.42),
        "font.family": "DejaVu Sans",
        "font.size": size,
        "grid.color": "#E3E3E3",
        "grid.linewidth": look.rules,
        "legend.fontsize": size,
        "legend.frameon": False,
        "lines.linewidth": look.lines,
        "lines.markersize": size / 1.8,
        "xtick.color": GREY,
        "xtick.labelcolor": BLACK,
        "xtick.labelsize": size,
        "ytick.color": GREY,
        "ytick.labelcolor": BLACK,
        "ytick.labelsize": size,
    }


def follow(widget: Any) -> None:
    """Have `widget.restyle()` called now, and whenever the style changes, for as long as somebody uses it."""
    _followers.add(widget)
    widget.restyle()


def css() -> str:
    """A style sheet for every `labkit-widget`: what has the focus is seen, and what the style adds."""
    return f"<style>{_FOCUS}{_LOOKS[_style].css}</style>"


def pixels() -> int:
    """How wide a picture is on the page, in the style of now."""
    return round(WIDTH * _LOOKS[_style].dpi)


def _in_a_notebook() -> None:
    """Figures of exactly the common width, at twice the resolution, and nothing written for the Axes.

    A semicolon at the end of the cell silences the Axes too, but only where the cell enters the history.
    """
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is not None:
        from matplotlib.axes import Axes
        from matplotlib_inline import backend_inline

        show_as: Any = backend_inline.set_matplotlib_formats
        show_as("retina", bbox_inches=None)
        shell.display_formatter.ipython_display_formatter.for_type(Axes, lambda ax: None)


use_style()


def figure(height: float = 0.42, **subplots: Any) -> tuple[Figure, Any]:
    """A figure and its axes, made without pyplot, for widgets: nothing shows it, and nothing else changes it.

    `height` is a share of the width; `subplots` is passed to `Figure.subplots`.
    """
    made = Figure(figsize=(WIDTH, WIDTH * height))
    return made, made.subplots(**subplots)


def new_axes(ax: Axes | None = None, *, title: str = "", height: float = 0.42) -> Axes:
    """`ax`, or the axes of a new pyplot figure, which a notebook shows when the cell ends; titled.

    `height` is a share of the width. A new figure carries the title at its left edge, where there is room.
    """
    if ax is not None:
        _set_title(ax, title)
        return ax
    from matplotlib import pyplot

    made, ax = pyplot.subplots(figsize=(WIDTH, WIDTH * height))
    made.suptitle(title, x=0.012, horizontalalignment="left", fontsize=_title_size(title, WIDTH))
    return ax


def _set_title(ax: Axes, title: str, **look: Any) -> None:
    """Above the axes, in letters of which the figure has room for all to the right of them."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    room = figure.get_figwidth() * (1 - ax.get_position().x0)
    ax.set_title(title, **{"fontsize": _title_size(title, room), **look})


def fit_titles(figure: Figure) -> None:
    """Make titles of axes smaller that would be cut off: where they begin is known when all is laid out."""
    titles = [title for ax in figure.axes if (title := ax._left_title).get_text()]  # type: ignore[attr-defined]
    long = [t for t in titles if text_width(t.get_text(), t.get_fontsize()) > 0.6 * figure.get_figwidth()]
    if not long:
        return
    figure.draw_without_rendering()
    for title in long * 3:  # hinted letters do not become narrower quite as they become smaller
        box, edge = title.get_window_extent(), figure.bbox.x1 - 8
        if box.x1 > edge > box.x0:
            title.set_fontsize(title.get_fontsize() * (edge - box.x0) / box.width)


def _title_size(title: str, room: float) -> float:
    """In points: the style's, or smaller, so that no line of it is longer than `room` (inches)."""
    size = float(mpl.rcParams["figure.titlesize"])
    longest = max((text_width(line, size) for line in title.splitlines()), default=0.0)
    return size * min(1.0, (room - 0.2) / (1.05 * longest)) if longest else size  # hinted letters are wider


def legend(ax: Axes, **options: Any) -> None:
    """A legend where there is more than one thing to name, to the right of the data."""
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(**{"loc": "center left", "bbox_to_anchor": (1.01, 0.5), **options})


_BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 3.4}
"""Where a legend stands below the axis and its label, however high the picture."""


def time_axis(axis: Any) -> None:
    """Label the ticks of an axis in nanoseconds as a person says them: 200 µs, 5 ms.

    Where its scale is logarithmic, call this when everything is drawn: the ticks depend on the range.
    """
    _label(axis, lambda ns: human_time(ns) if ns > 0 else "0")


def number_axis(axis: Any) -> None:
    """Label the ticks of an axis with plain numbers, also on a log scale: 0.5, 10, 10,000.

    When to call it: see `time_axis`.
    """
    _label(axis, lambda value: f"{value:,.10g}")


def _label(axis: Any, say: Callable[[float], str]) -> None:
    """Labels that do not meet: on a log scale at each power of ten, at more where there are few of those."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() == "log" and low > 0:
        axis.set_major_locator(_places(math.log10(high / low)))
        axis.set_minor_formatter(NullFormatter())


def _places(decades: float) -> Locator:
    """Where a log scale of that length has its labels."""
    if decades < 0.3:
        return MaxNLocator(5, steps=[1, 2, 5, 10])
    return LogLocator(subs=range(1, 10) if decades < 0.6 else (1, 2, 5) if decades < 2 else (1,))


def latency(result: Run | Sweep, ax: Axes | None = None, *, title: str = "") -> Axes:
    """How slow the calls were: for each latency, the share of calls that took at most so long.

    A steep line left of another is faster; a long shoulder to the right is the tail. Dots mark p50 and p99.
    """
    runs = list(result) if isinstance(result, Sweep) else [(result.name, result)]
    ax = new_axes(ax, title=title or "Latency: how many calls took at most so long")
    for value, run in runs:
        _cumulated(ax, run, str(value))
    ax.set_xscale("log")
    time_axis(ax.xaxis)
    ax.set(xlabel="time of one call (log scale)", ylabel="calls (%)", ylim=(0, 103))
    legend(ax, title=result.name if isinstance(result, Sweep) else None)
    return ax


def _cumulated(ax: Axes, run: Run, label: str) -> None:
    ordered = sorted(run.samples)
    shares = [100 * rank / len(ordered) for rank in range(1, len(ordered) + 1)]
    (line,) = ax.plot(ordered, shares, drawstyle="steps-post", label=label)
    ax.plot([run.p50, run.p99], [50, 99], "o", color=line.get_color())


def bars(
    values: Mapping[str, float],
    ax: Axes | None = None,
    *,
    title: str,
    unit: str,
    fmt: str = "{:,.0f}",
    highlight: str | Sequence[str] = (),
    log: bool = False,
    colors: Mapping[str, str] | None = None,
) -> Axes:
    """A horizontal bar for each value, the first on top, with its number; `highlight` names the bad ones."""
    ax = new_axes(ax, title=title, height=0.12 + 0.07 * len(values))
    bad = {highlight} if isinstance(highlight, str) else set(highlight)
    own = dict.fromkeys(bad, VERMILLION) | dict(colors or {})
    chosen = [own.get(name, BLUE) for name in values]
    drawn = ax.barh(list(values), list(values.values()), color=chosen, height=0.7)
    ax.bar_label(drawn, labels=[f" {fmt.format(v)}" for v in values.values()])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.18)
    ax.set_xlabel(unit)
    if log:
        ax.set_xscale("log")
    elif all(isinstance(value, int) for value in values.values()):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    number_axis(ax.xaxis)
    return ax


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ax: Axes | None = None,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    marker: str = "o",
    limits: Mapping[str, float] | None = None,
) -> Axes:
    """One line a series, each a pair of x and y values; the axes begin at 0 unless they are logarithmic.

    `limits` are named values of y: dashed lines across.
    """
    ax = new_axes(ax, title=title)
    for name, (xs, ys) in series.items():
        ax.plot(xs, ys, marker=marker, label=name)
    for (name, value), style in zip((limits or {}).items(), cycle(("--", ":", "-.")), strict=False):
        ax.axhline(value, color=BLACK, linewidth=1.5, linestyle=style, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    number_axis(ax.xaxis)
    number_axis(ax.yaxis)
    legend(ax)
    return ax


def sweep(result: Sweep, ax: Axes | None = None, *, title: str, xlabel: str = "", log: bool = True) -> Axes:
    """The median time of one call at each value, with a band from p10 to p90."""
    ax = new_axes(ax, title=title)
    (line,) = ax.plot(result.values, [run.p50 for run in result.runs], marker="o", label="median")
    low, high = ([run.percentile(share) for run in result.runs] for share in (10, 90))
    ax.fill_between(result.values, low, high, alpha=0.2, color=line.get_color(), label="p10 to p90")
    if log:
        ax.set(xscale="log", yscale="log")
    else:
        ax.set_ylim(bottom=0)
    number_axis(ax.xaxis)
    time_axis(ax.yaxis)
    ax.set(xlabel=xlabel or result.name, ylabel="time of one call")
    legend(ax)
    return ax


def timeline(
    rows: Mapping[str, Sequence[float]],
    ax: Axes | None = None,
    *,
    title: str,
    spans: Mapping[str, tuple[float, float]] | None = None,
    colors: Mapping[str, str] | None = None,
    xlabel: str = "time (s)",
) -> Axes:
    """What happened when: a row of marks for each name, the first on top, and named, shaded spans of time."""
    ax = new_axes(ax, title=title, height=0.16 + 0.07 * len(rows))
    for height, (name, times) in enumerate(rows.items()):
        color = (colors or {}).get(name, PALETTE[height % len(PALETTE)])
        ax.plot(times, [height] * len(times), "|", color=color, markersize=22, markeredgewidth=3.5)
    for name, (start, end) in (spans or {}).items():
        ax.axvspan(start, end, color=GREY, alpha=0.22, linewidth=0)
        ax.text((start + end) / 2, -0.75, name, ha="center", va="center")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -1.1 if spans else -0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(xlabel)
    return ax


def lanes(result: Exploration | Trace, ax: Axes | None = None, *, title: str = "") -> Axes:
    """A sequence diagram: a lane for each client, time downward, and beside Redis what stands in it.

    An arrow to Redis is a command, the dashed one back its reply; a client whose lane is dotted waits. The
    step at which it went wrong is marked, with the reason below. Of an exploration its counterexample is
    drawn; one that has none raises ValueError. A new figure is as high as its steps need.
    """
    if isinstance(result, Trace):
        trace, said = result, f"Schedule {result.schedule or '(none)'}"
    elif first := result.first:
        trace, said = first, result.headline
    else:
        raise ValueError(f"there is nothing to draw: {result}")
    diagram = Diagram(trace, WIDTH)
    room = mpl.rcParams["font.size"] / 72 * 2.4  # for the title
    ax = new_axes(ax, title=title or said, height=(diagram.height + room) / WIDTH)
    diagram.draw(ax)
    return ax


# --- chapter 00 ---------------------------------------------------------------------------------------------


def memory(used: Mapping[str, Sequence[int]], ax: Axes | None = None, *, limit: int) -> Axes:
    """Memory used (bytes) after each round of traffic, a line for each name, and the server's limit."""
    ax = new_axes(ax, title="Without a TTL, memory fills up; with one it levels off")
    for (name, amounts), color in zip(used.items(), (VERMILLION, BLUE, GREEN), strict=False):
        rounds = range(1, len(amounts) + 1)
        ax.plot(rounds, [amount / 1024**2 for amount in amounts], marker="o", color=color, label=name)
    ax.axhline(limit / 1024**2, color=BLACK, linestyle="--", label="maxmemory")
    ax.set(xlabel="round of traffic", ylabel="memory (MB)", ylim=(0, limit / 1024**2 * 1.15))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax)
    return ax


def waits(series: Mapping[str, Sequence[tuple[float, float]]], ax: Axes | None = None, *, title: str) -> Axes:
    """Requests of another client: a line from the moment it was sent to its answer, a dot at the answer.

    `series` gives for each name pairs of when it was sent and how long it waited, both in s.
    """
    ax = new_axes(ax, title=title)
    colors = dict(zip(series, (VERMILLION, BLUE, GREEN), strict=False))
    for name, answers in sorted(series.items(), key=lambda item: -len(item[1])):  # the few on top
        color = colors[name]
        sent = [at * 1000 for at, _ in answers]
        answered = [(at + wait) * 1000 for at, wait in answers]
        heights = [wait * 1e9 for _, wait in answers]
        ax.hlines(heights, sent, answered, color=color)
        label = f"{name}: {len(answers):,} answer{'s' * (len(answers) != 1)}"
        size, alpha = (3.5, 0.5) if len(answers) > 50 else (10, 1)
        ax.plot(answered, heights, "o", markersize=size, alpha=alpha, color=color, label=label)
    ax.set(yscale="log", xlabel="time since the search began (ms)", ylabel="wait for an answer")
    time_axis(ax.yaxis)
    legend(ax)
    return ax


# --- chapter 01 ---------------------------------------------------------------------------------------------


def arrivals(
    series: Mapping[str, Sequence[float]],
    ax: Axes | None = None,
    *,
    title: str,
    width: float = 0.01,
    colors: Mapping[str, str] | None = None,
) -> Axes:
    """How many attempts arrive in each `width` seconds: a step line for each name."""
    ax = new_axes(ax, title=title)
    last = max(at for times in series.values() for at in times)
    edges = [width * i for i in range(int(last / width) + 2)]
    for name, times in series.items():
        color = (colors or {}).get(name)
        ax.hist(times, bins=edges, label=name, color=color, alpha=0.85, histtype="stepfilled")
    ax.set(xlabel="time since the failure (s)", ylabel=f"attempts in {width * 1000:g} ms")
    legend(ax)
    return ax


def reconnects(
    rows: Mapping[str, Sequence[float]], ax: Axes | None = None, *, title: str, back: float
) -> Axes:
    """When each client tried to connect, in s since its server was killed: a row each, the first on top.

    The server was away until `back`. The last attempt of each row succeeded, those before it did not.
    """
    ax = new_axes(ax, title=title, height=0.2 + 0.07 * len(rows))
    ax.axvspan(0, back, color=GREY, alpha=0.22, linewidth=0, label="server away")
    for height, times in enumerate(rows.values()):
        names = ("refused", "connected") if height == 0 else ("_", "_")
        failed = times[:-1]
        ax.plot(failed, [height] * len(failed), "o", color=VERMILLION, markersize=8, label=names[0])
        ax.plot(times[-1:], [height], "o", color=GREEN, markersize=13, label=names[1])
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("time since the kill (s)")
    legend(ax)
    return ax


def pipeline_fit(
    measured: Mapping[Any, Mapping[int, float]], lines: Mapping[Any, Line], ax: Axes | None = None
) -> Axes:
    """Time of a pipeline over its size, for each added delay (ms): dots measured, lines fitted.

    `measured` gives for each delay the time in ns of each batch size. In a picture of its own, a second panel
    shows the residuals: by how many per cent each dot lies off its line.
    """
    title = "One pipeline: the way once, then a little for each command"
    below = None
    if ax is None:
        from matplotlib import pyplot

        shape = {"height_ratios": [3, 1.3]}
        made, (ax, below) = pyplot.subplots(2, sharex=True, figsize=(WIDTH, WIDTH * 0.66), gridspec_kw=shape)
        made.suptitle(title, x=0.012, horizontalalignment="left", fontsize=_title_size(title, WIDTH))
    else:
        _set_title(ax, title)
    for color, (ms, points) in zip(PALETTE, measured.items(), strict=False):
        sizes = list(points)
        smooth = [sizes[0] * (sizes[-1] / sizes[0]) ** (step / 60) for step in range(61)]
        ax.plot(smooth, [lines[ms].at(b) for b in smooth], color=color, label=f"{ms:g} ms")
        ax.plot(sizes, list(points.values()), "o", color=color)
        if below is not None:
            off = lines[ms].residuals(points)
            below.plot(sizes, [100 * share for share in off.values()], "o-", color=color, linewidth=1)
    ax.set(xscale="log", yscale="log", ylabel="time of one pipeline")
    time_axis(ax.yaxis)
    legend(ax, title="added delay")
    if below is not None:
        _residuals(below)
    number_axis((ax if below is None else below).xaxis)
    (ax if below is None else below).set_xlabel("commands in the pipeline")
    return ax


def _residuals(ax: Axes) -> None:
    ax.axhline(0, color=BLACK, linewidth=1)
    reach = 1.15 * max(10.0, *(abs(limit) for limit in ax.get_ylim()))  # no dot on the edge
    ax.set_ylim(-reach, reach)
    ax.set_ylabel("off the\nline (%)")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0f}" if value else "0"))


def speedup_map(times: Mapping[Any, Mapping[int, float]], ax: Axes | None = None) -> Axes:
    """How many times as fast as one by one: a cell for each added delay (ms) and batch size.

    `times` gives for each delay the total time of the same commands in batches of each size, size 1 among
    them.
    """
    ax = new_axes(ax, title="The speed-up grows with the batch and with the way", height=0.48)
    delays, sizes = list(times), list(next(iter(times.values())))
    gains = [[times[ms][1] / times[ms][b] for b in sizes] for ms in delays]
    best = max(2.0, *(gain for row in gains for gain in row))
    ax.imshow(gains, cmap="cividis", norm=LogNorm(1, best), aspect="auto")
    for row, col in ((row, col) for row in range(len(delays)) for col in range(len(sizes))):
        light = gains[row][col] < best**0.6
        number = f"{gains[row][col]:.0f}×" if gains[row][col] >= 9.5 else f"{gains[row][col]:.1f}×"
        ax.text(col, row, number, ha="center", va="center", color="white" if light else BLACK)
    ax.set_xticks(range(len(sizes)), [f"{b:,}" for b in sizes])
    ax.set_yticks(range(len(delays)), [f"{ms:g}" for ms in delays])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set(xlabel="commands in a batch", ylabel="added delay (ms)")
    return ax


def measured_and_model(
    rows: Mapping[str, tuple[float | None, float]], ax: Axes | None = None, *, title: str
) -> Axes:
    """For each name the measured time in ns (None: not run) as a bar, and the model's as a line across it."""
    ax = new_axes(ax, title=title, height=0.16 + 0.1 * len(rows))
    far = max(max(model, measured or 0) for measured, model in rows.values())
    for row, (measured, model) in enumerate(rows.values()):
        first = row == 0
        ax.barh(row, measured or 0, color=BLUE, height=0.56, label="measured" if first else None)
        ax.plot(
            [model, model],
            [row - 0.38, row + 0.38],
            color=BLACK,
            linewidth=3,
            label="model" if first else None,
        )
        text = human_time(measured) if measured else f"not run: the model says {human_time(model)}"
        at, side = max(measured or 0, model), "left"
        if at > 0.6 * far and not measured:
            at, side = model, "right"
        ax.annotate(
            text,
            (at, row),
            (8 if side == "left" else -8, 0),
            textcoords="offset points",
            va="center",
            ha=side,
        )
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(0, far * 1.18), ylim=(len(rows) - 0.4, -0.6), xlabel="time for all commands")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    time_axis(ax.xaxis)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    legend(ax)
    return ax


# --- chapter 03 ---------------------------------------------------------------------------------------------


def simulation(result: Simulation, ax: Axes | None = None, *, title: str = "") -> Axes:
    """A cache under traffic, over time: hit ratio, database load, stale reads; beside each its mean.

    The scale of the load goes up to the rate of reads: what the database would have to bear without a cache.
    """
    ax = new_axes(ax, title=title or str(result), height=0.6)
    frame = result.df
    rate = max(result.rate, frame.loads_per_second.max())
    most = max(25.0, 110 * frame.stale_ratio.max()) if result.stale else 25.0
    rows: Sequence[tuple[str, Any, str, float, str]] = (
        ("hit ratio (%)", 100 * frame.hit_ratio, BLUE, 100, f"{100 * result.hit_ratio:.0f} %"),
        ("database loads/s", frame.loads_per_second, ORANGE, rate, f"{result.loads_per_second:,.0f}/s"),
        ("stale reads (%)", 100 * frame.stale_ratio, VERMILLION, most, human_share(result.stale_ratio)),
    )
    panels = _panels(ax, len(rows))
    for (label, values, color, top, mean), panel in zip(rows, panels, strict=True):
        known = values.notna()  # no reads, no ratio
        panel.fill_between(frame.time[known], values[known], color=color, alpha=0.3, linewidth=0)
        panel.plot(frame.time[known], values[known], color=color)
        panel.set(ylim=(0, top), xlim=(0, result.seconds))
        _name(panel, label)
        panel.yaxis.set_major_locator(MaxNLocator(nbins=2, steps=[1, 2, 2.5, 5, 10]))
        number_axis(panel.yaxis)
        size = 1.6 * mpl.rcParams["font.size"]
        panel.text(1.015, 0.5, mean, va="center", weight="bold", fontsize=size, transform=panel.transAxes)
    panels[-1].set_xlabel("time (s)")
    return ax


def _name(panel: Axes, text: str) -> None:
    """What it shows, above it: there it is in nobody's way, however large the letters."""
    size = mpl.rcParams["font.size"]
    panel.set_title(text, fontsize=size, fontweight="normal", pad=size / 2.5)


def _panels(ax: Axes, rows: int, gap: float = 0.14) -> list[Axes]:
    """The axes divided into so many panels, one below the other; only the last has numbers below it."""
    ax.set_axis_off()
    if ax.get_title(loc="left"):  # of its own; there is a name between it and the first panel
        _set_title(ax, ax.get_title(loc="left"), pad=2.2 * mpl.rcParams["font.size"])
    height = (1 - gap * (rows - 1)) / rows
    made = [ax.inset_axes((0, 1 - height - row * (height + gap), 1, height)) for row in range(rows)]
    for panel in made[:-1]:
        panel.tick_params(labelbottom=False)
    return made


# --- chapter 05 ---------------------------------------------------------------------------------------------


def traffic(replays: Mapping[str, Replay], ax: Axes | None = None, *, title: str, window: float = 0) -> Axes:
    """What limiters answered: a row for each, admitted requests above the line, refused ones below it.

    With `window`, every other aligned window is shaded.
    """
    ax = new_axes(ax, title=title, height=0.2 + 0.085 * len(replays))
    last = max(at for replay in replays.values() for at in (*replay.admitted, *replay.refused))
    _aligned_windows(ax, window, last)
    for row, replay in enumerate(replays.values()):
        _answers(ax, replay, row, label=row == 0)
        ax.text(1.01, row, f"{len(replay.admitted)} of {_total(replay)}", va="center", **_beside(ax))
    ax.text(1.01, -0.75, "admitted", va="center", **_beside(ax))
    ax.set_yticks(range(len(replays)), list(replays))
    ax.set(xlabel="time (s)", ylim=(len(replays) - 0.45, -1.0), xlim=(-0.02 * last, 1.02 * last))
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, handlelength=1)
    return ax


def _beside(ax: Axes) -> dict[str, Any]:
    return {"transform": ax.get_yaxis_transform(), "ha": "left"}


def _total(replay: Replay) -> int:
    return len(replay.admitted) + len(replay.refused)


def _answers(ax: Axes, replay: Replay, row: float, *, label: bool, height: float = -0.34) -> None:
    """Admitted requests as lines from the row by `height`, refused ones to the other side."""
    for name, times, color, side in (
        ("admitted", replay.admitted, BLUE, 1),
        ("refused", replay.refused, VERMILLION, -1),
    ):
        ax.vlines(times, row, row + side * height, color=color, linewidth=1.5, label=name if label else "")
    ax.axhline(row, color=GREY, linewidth=0.6)


def _aligned_windows(ax: Axes, window: float, last: float) -> None:
    for n in range(0, math.ceil(last / window) if window else 0, 2):
        label = f"every other window of {window:g} s" if n == 0 else ""
        ax.axvspan(n * window, (n + 1) * window, color=GREY, alpha=0.16, linewidth=0, label=label)


def held(replay: Replay, ax: Axes | None = None, *, title: str, window: float, limit: int) -> Axes:
    """How many requests the last `window` seconds held, at each admission; what is too many stands out."""
    ax = new_axes(ax, title=title)
    points = replay.held(window)
    for name, color, chosen in (
        ("at most the limit", BLUE, [point for point in points if point[1] <= limit]),
        ("too many", VERMILLION, [point for point in points if point[1] > limit]),
    ):
        size = 7 if color == VERMILLION else 4
        ax.plot(
            [at for at, _ in chosen], [n for _, n in chosen], "o", color=color, markersize=size, label=name
        )
    ax.axhline(limit, color=BLACK, linewidth=1.5, linestyle="--", label="limit")
    ax.set(xlabel="time (s)", ylabel=f"admitted in the last {window:g} s")
    ax.set_ylim(bottom=0)
    legend(ax)
    return ax


def room(
    replay: Replay,
    ax: Axes | None = None,
    *,
    title: str,
    limit: int,
    window: float = 0,
    ylabel: str = "room left",
) -> Axes:
    """What was left to spend over time, and below it which requests were admitted and which refused."""
    ax = new_axes(ax, title=title, height=0.5)
    last = max(at for at, _ in replay.room)
    _aligned_windows(ax, window, last)
    times, units = [at for at, _ in replay.room], [left for _, left in replay.room]
    ax.fill_between(times, units, step="post", color=SKY, alpha=0.45, linewidth=0)
    ax.plot(times, units, drawstyle="steps-post", color=SKY, linewidth=1.5, label=ylabel)
    _answers(ax, replay, -0.2 * limit, label=True, height=0.13 * limit)
    ax.set(xlabel="time (s)", ylabel=ylabel, xlim=(-0.02 * last, 1.02 * last))
    ax.set_ylim(-0.36 * limit, 1.1 * limit)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= limit])
    legend(ax, handlelength=1)
    return ax


# --- chapter 06 ---------------------------------------------------------------------------------------------

_HEARD: Mapping[str, tuple[str, dict[str, Any]]] = {
    "at once": ("heard at once", {"marker": "o", "color": BLUE}),
    "later": ("read later", {"marker": "o", "color": BLUE, "markerfacecolor": "white"}),
    "never": ("never", {"marker": "x", "color": VERMILLION}),
    "not yet": ("not yet", {"marker": ".", "color": GREY}),
}
_DOT: dict[str, Any] = {"linestyle": "", "markersize": 11, "markeredgewidth": 2.5}


def heard(
    groups: Mapping[str, Mapping[str, Sequence[str]]],
    ax: Axes | None = None,
    *,
    title: str,
    first: int = 1,
) -> Axes:
    """Who heard which message: for each group a row for each of its people, and a column for each message.

    The columns are in the order of publishing, numbered from `first` on. What became of a message is "at
    once", "later", "never", "not yet", or "" (nothing is drawn). At the right stands how many of all each
    has.
    """
    known = {state for people in groups.values() for states in people.values() for state in states}
    if odd := known - {*_HEARD, ""}:
        raise ValueError(f"a state is {min(odd)!r}; it must be one of {', '.join(map(repr, _HEARD))}, or ''")
    rows = sum(len(people) + 1 for people in groups.values())
    ax = new_axes(ax, title=title, height=0.14 + 0.045 * rows)
    names, last = [], first + 7
    for group, people in groups.items():
        names.append(f"{group}:")
        for name, states in people.items():
            _states(ax, states, len(names), first)
            names.append(name)
            last = max(last, len(states) + first - 1)
    for said, look in (_HEARD[state] for state in _HEARD if state in known):
        ax.plot([], [], label=said, **_DOT, **look)
    ax.set_yticks(range(rows), names)
    ax.set(xlabel="message", ylim=(rows - 0.4, -0.6), xlim=(first - 0.6, last + 0.6))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(visible=False)
    ax.tick_params(axis="y", length=0)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().endswith(":") else "normal")
    if known - {""}:
        ax.legend(**_BELOW, ncols=4, handletextpad=0.2)
    return ax


def _states(ax: Axes, states: Sequence[str], row: int, first: int) -> None:
    got = sum(state in ("at once", "later") for state in states)
    ax.axhline(row, color=GREY, linewidth=0.6, zorder=0)
    ax.text(1.01, row, f"{got} of {len(states)}", va="center", **_beside(ax))
    for state, (_, look) in _HEARD.items():
        at = [n for n, one in enumerate(states, first) if one == state]
        ax.plot(at, [row] * len(at), **_DOT, **look)


# --- chapter 07 ---------------------------------------------------------------------------------------------


def deliveries(
    rows: Mapping[str, Sequence[tuple[float, float | None, int]]],
    ax: Axes | None = None,
    *,
    title: str,
    kills: Mapping[str, float | Sequence[float]] | None = None,
) -> Axes:
    """Who got what, and when: a row for each consumer, a bar for each message that it handled.

    `rows` gives for each message when it was begun and ended (s), and which delivery of it that was: 1 is the
    first. An end of None is work that was never finished: its bar ends where its consumer was killed, which
    `kills` tells (s).
    """
    ax = new_axes(ax, title=title, height=0.2 + 0.065 * len(rows))
    ended = [end for of_one in rows.values() for _, end, _ in of_one if end is not None]
    kinds: dict[str, str] = {}
    for row, (name, of_one) in enumerate(rows.items()):
        told = (kills or {}).get(name, ())
        killed = [told] if isinstance(told, int | float) else list(told)
        for begin, end, delivery in of_one:
            kind = (
                "never finished" if end is None else "first delivery" if delivery == 1 else "delivered again"
            )
            color = {"never finished": VERMILLION, "first delivery": BLUE, "delivered again": ORANGE}[kind]
            until = min((at for at in killed if at >= begin), default=max(ended, default=begin))
            bar = [(begin, (until if end is None else end) - begin)]
            alpha = 0.45 if end is None else 1
            ax.broken_barh(
                bar, (row - 0.36, 0.72), color=color, alpha=alpha, edgecolor="white", linewidth=0.7
            )
            kinds[kind] = color
        ax.plot(killed, [row] * len(killed), "X", color=VERMILLION, markersize=15, markeredgecolor="white")
    marks: list[Any] = [Patch(color=kinds[kind], alpha=0.45 if kind[0] == "n" else 1) for kind in kinds]
    if kills:
        marks.append(Line2D([], [], linestyle="", marker="X", color=VERMILLION, markersize=12))
    ax.legend(marks, [*kinds, *(["killed"] if kills else [])], **_BELOW, ncols=4)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel="time (s)", ylim=(len(rows) - 0.4, -0.6))
    ax.set_xlim(left=0)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    return ax


def lag(
    ways: Mapping[str, Sequence[tuple[float, int, int]]],
    ax: Axes | None = None,
    *,
    title: str,
    limit: int | Mapping[str, int] | None = None,
) -> Axes:
    """How far a group is behind, over time: messages not delivered yet, on those delivered but not done.

    A panel for each way, all of one scale; `ways` gives for each (s, waiting, pending). `limit` is where a
    producer waits, in all panels or in those named.
    """
    ax = new_axes(ax, title=title, height=0.24 + 0.11 * len(ways))
    limits = limit if isinstance(limit, Mapping) else dict.fromkeys(ways, limit) if limit else {}
    every = [sample for samples in ways.values() for sample in samples]
    top = 1.1 * max(1, *(waiting + pending for _, waiting, pending in every), *limits.values())
    panels = _panels(ax, len(ways)) if len(ways) > 1 else [ax]
    for (way, samples), panel in zip(ways.items(), panels, strict=True):
        times = [at for at, _, _ in samples]
        pending = [count for _, _, count in samples]
        both = [waiting + count for _, waiting, count in samples]
        panel.fill_between(times, pending, both, color=SKY, alpha=0.75, linewidth=0, label="waiting")
        panel.fill_between(times, pending, color=ORANGE, linewidth=0, label="pending")
        if way in limits:
            look: dict[str, Any] = {"color": BLACK, "linestyle": "--", "linewidth": 1.5}
            panel.axhline(limits[way], **look, label="limit")
        panel.set(ylim=(0, top), xlim=(0, max(at for at, _, _ in every)))
        if len(ways) > 1:
            _name(panel, f"{way} (messages)")
        panel.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        number_axis(panel.yaxis)
    panels[-1].set(xlabel="time (s)", ylabel="messages" if len(ways) == 1 else "")
    most = max(panels, key=lambda panel: len(panel.get_legend_handles_labels()[1]))
    most.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


# --- chapter 08 ---------------------------------------------------------------------------------------------


def turns(
    ways: Mapping[str, Sequence[Sequence[tuple[float, float, float]]]], ax: Axes | None = None, *, title: str
) -> Axes:
    """Who has a lock, and who waits for it: for each way of waiting, a row for each of its processes.

    A turn is when it was asked for, when it was granted, and when it was given back, all in s.
    """
    rows = sum(len(processes) + 1 for processes in ways.values())
    ax = new_axes(ax, title=title, height=0.14 + 0.034 * rows)
    row, names = 0.0, {}
    for (way, processes), color in zip(ways.items(), (VERMILLION, ORANGE, BLUE, GREEN), strict=False):
        names[row + (len(processes) - 1) / 2] = way
        for of_one in processes:
            waiting = [(asked, granted - asked) for asked, granted, _ in of_one]
            holding = [(granted, back - granted) for _, granted, back in of_one]
            ax.broken_barh(waiting, (row - 0.06, 0.12), color=GREY, alpha=0.45, linewidth=0)
            ax.broken_barh(holding, (row - 0.38, 0.76), color=color, linewidth=0)
            row += 1
        row += 0.8
    ax.set_yticks(list(names), list(names.values()))
    ax.set_ylim(row - 1.2, -0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(left=0)
    ax.set_xlabel("time (s)")
    marks = [Patch(color=BLUE), Patch(color=GREY, alpha=0.45)]
    said = ["has the lock (any colour)", "waits for it"]
    ax.legend(marks, said, loc="upper right", bbox_to_anchor=(1.0, -0.14), ncols=2)
    return ax


def redlock(view: View, ax: Axes | None = None, *, title: str = "") -> Axes:
    """What each server said and after how long, whether that is a majority, and for how long it then holds.

    The axis is logarithmic: answers, the timeout of a server, and the lock's TTL fit on one. At the right
    stands whose lock each server has now, and whether it is up.
    """
    title = title or view.sentence[:1].upper() + view.sentence[1:]
    ax = new_axes(ax, title=title, height=0.2 + 0.055 * len(view.seats))
    ax.set(xscale="log", xlim=(1e5, view.ttl * 1e9), ylim=(len(view.seats) + 0.6, -1.3))
    ax.axvline(view.timeout * 1e9, color=BLACK, linewidth=1.5, linestyle="--", zorder=0)
    for row, seat in enumerate(view.seats):
        _seat(ax, seat, row, 1e9 * (view.timeout if seat.said == "no answer" else seat.seconds or 0))
    _outcome(ax, view, len(view.seats))
    _heads(ax, view)
    names = [*(seat.name for seat in view.seats), f"client {view.asked[:1] or 'A'}"]
    ax.set_yticks(range(len(names)), names)
    ttl = human_time(view.ttl * 1e9)
    ax.set_xlabel(f"time since the servers were asked, up to the TTL of {ttl} (log scale)")
    time_axis(ax.xaxis)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    return ax


HAS = 1.015
"""Where the column of who has a server's vote begins, in widths of the axes."""


def _is() -> float:
    """Where the one of how the server is begins: behind "has", in letters of this size."""
    return HAS + 0.07 * float(mpl.rcParams["font.size"]) / _LOOKS["page"].letters


def _heads(ax: Axes, view: View) -> None:
    white = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    timeout = view.timeout * 1e9
    ax.text(timeout, -0.9, f"timeout {human_time(timeout)}", ha="center", va="center", bbox=white)
    ax.text(HAS, -0.9, "has", va="center", **_beside(ax))
    ax.text(_is(), -0.9, "is", va="center", **_beside(ax))
    ax.text(_is(), 0, "frozen", alpha=0, **_beside(ax))  # room for it, always


def _seat(ax: Axes, seat: Seat, row: int, until: float) -> None:
    """One server's bar, up to its answer or for as long as it was waited for, what it has, and what it is."""
    color = {"yes": BLUE, "no": VERMILLION}.get(seat.said, GREY)
    left, alpha = ax.get_xlim()[0], 0.4 if seat.said == "no answer" else 1
    if until:
        ax.barh(row, max(until, left * 1.2) - left, left=left, color=color, height=0.56, alpha=alpha)
    said = f"{seat.said} · {human_time(until)}" if seat.seconds else seat.said
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    at = (max(until, left), row)
    ax.annotate(said, at, (8, 0), textcoords="offset points", va="center", bbox=white if said else None)
    ax.text(HAS, row, seat.holder or "–", va="center", weight="bold", **_beside(ax))
    color = BLACK if seat.state == "up" else VERMILLION
    ax.text(_is(), row, seat.state, va="center", color=color, **_beside(ax))


def _outcome(ax: Axes, view: View, row: int) -> None:
    """The client's row: from its decision on, the time for which the lock is certainly its own."""
    ax.axhline(row - 0.5, color=GREY, linewidth=0.8)
    if not view.asked:
        return
    until, said = view.took * 1e9, f"{view.yes} of {len(view.seats)} after {human_time(view.took * 1e9)}"
    held = view.ok and view.validity > 0
    if held:
        ax.barh(row, view.validity * 1e9, left=until, color=GREEN, height=0.56)
        said = f"a majority: valid for {human_time(view.validity * 1e9)}"
    at, color = (max(until, ax.get_xlim()[0]), row), "white" if held else BLACK
    ground = {"facecolor": GREEN if held else "white", "edgecolor": "none", "pad": 1}
    look: dict[str, Any] = {"color": color, "weight": "bold", "bbox": ground}
    ax.annotate(said, at, (8, 0), textcoords="offset points", va="center", **look)


# --- chapter 09 ---------------------------------------------------------------------------------------------


def board_scaling(
    series: Mapping[str, Mapping[int, float]],
    ax: Axes | None = None,
    *,
    title: str,
    fit: str | Sequence[str] = (),
    stored: Mapping[str, Mapping[int, float]] | None = None,
) -> Axes:
    """The time of one call (ns) by the number of members, both logarithmic: a line of dots for each name.

    The names in `fit` get the curve a + b · log₂ n in place of a line from dot to dot: it has the least
    squared relative errors, as `Line.fit({log2(n): ns})`. `stored` are further sizes, measured elsewhere:
    hollow dots.
    """
    ax = new_axes(ax, title=title, height=0.54)
    fitted, elsewhere = {fit} if isinstance(fit, str) else set(fit), stored or {}
    for name, color in zip({**series, **elsewhere}, cycle(PALETTE), strict=False):
        points = dict(sorted({**elsewhere.get(name, {}), **series.get(name, {})}.items()))
        here, label = series.get(name, {}), name
        if name in fitted:
            line = Line.fit({math.log2(n): ns for n, ns in points.items()})  # type: ignore[misc]
            first, last = min(points), max(points)
            smooth = [first * (last / first) ** (step / 60) for step in range(61)]
            ax.plot(smooth, [line.at(math.log2(n)) for n in smooth], color=color)
            label = f"{name}: {human_time(line.fixed)} + {human_time(line.each)} each doubling"
        else:
            ax.plot(list(points), list(points.values()), color=color, linewidth=1.2)
        for n, ns in points.items():
            ax.plot([n], [ns], "o", color=color, markerfacecolor=color if n in here else "white")
        ax.plot([], [], "o-", color=color, label=label)
    if any(set(points) - set(series.get(name, {})) for name, points in elsewhere.items()):
        ax.plot([], [], "o", color=BLACK, markerfacecolor="white", label="stored result")
    ax.set(xscale="log", yscale="log", xlabel="members on the board (log scale)")
    ax.set_ylabel("time of one call (log scale)")
    number_axis(ax.xaxis)
    time_axis(ax.yaxis)
    ax.legend(**_BELOW, ncols=2)
    return ax


# --- chapter 10 ---------------------------------------------------------------------------------------------


def stalls(result: Stall | Stalls, ax: Axes | None = None, *, title: str) -> Axes:
    """What another client waited while each work ran, a panel for each: time across, waits (log scale) up.

    A request is a line from when it was sent to its answer, at the height of its wait; waits of 10 ms and
    more are filled. Shaded is the time for which the work ran. All panels have the same axes.
    """
    found = [result] if isinstance(result, Stall) else list(result)
    ax = new_axes(ax, title=title, height=0.2 + 0.1 * max(len(found), 2))
    panels = _panels(ax, len(found), 0.42 / len(found)) if len(found) > 1 else [ax]
    waited = [1e9 * (end - begin) for stall in found for begin, end in stall.spells]
    last = 1000 * max(stall.during for stall in found)
    for stall, panel in zip(found, panels, strict=True):
        panel.axvspan(0, 1000 * stall.during, color=GREY, alpha=0.18, linewidth=0)
        _spells(panel, stall)
        panel.set(yscale="log", ylim=(min(waited) / 2, 2.5 * max(waited)), xlim=(-0.08 * last, 1.12 * last))
        time_axis(panel.yaxis)
        if len(found) > 1:
            _name(panel, f"{stall.name}: {human_time(stall.longest * 1e9)} at most")
    panels[-1].set(xlabel="time (ms)", ylabel="wait (log scale)" if len(found) == 1 else "")
    marks = [Patch(color=GREY, alpha=0.18), Line2D([], [], color=BLUE), Patch(color=VERMILLION, alpha=0.5)]
    said = ["the work runs", "another client waits", "10 ms and more"]
    if any(wait.error for stall in found for wait in stall.waits):
        marks.append(Line2D([], [], color=BLACK, marker="x", linestyle="", markersize=6))
        said.append("is refused")
    panels[-1].legend(marks, said, **_BELOW, ncols=len(said), columnspacing=1.2)
    return ax


def _spells(ax: Axes, stall: Stall) -> None:
    """A line for each time that the other client waited, and marks where it was refused meanwhile."""
    low = min(end - begin for begin, end in stall.spells) * 1e9 / 10
    short = [(begin, end) for begin, end in stall.spells if end - begin < STALLED]
    if short:  # one line with gaps: there may be thousands
        times = [1000 * at for begin, end in short for at in (begin, end, math.nan)]
        heights = [1e9 * (end - begin) for begin, end in short for _ in range(3)]
        ax.plot(times, heights, color=BLUE, solid_capstyle="round")
    for begin, end in stall.spells:
        if end - begin >= STALLED:
            spell, height = (1000 * begin, 1000 * end), 1e9 * (end - begin)
            ax.plot(spell, (height, height), color=VERMILLION, solid_capstyle="round")
            ax.fill_between(spell, low, height, color=VERMILLION, alpha=0.3, linewidth=0)
    refused = [(1000 * wait.at, 1e9 * wait.seconds) for wait in stall.waits if wait.error]
    ax.plot(*zip(*refused, strict=True) if refused else ([], []), "x", color=BLACK, markersize=4)


_RULES = {"exact LRU": ":", "clairvoyant": "--"}


def evictions(result: Evictions, ax: Axes | None = None, *, title: str, traffic: str | None = None) -> Axes:
    """The hit ratio (%) by memory for data (log scale), a line for each policy; black are simulated bounds.

    Of the first traffic, or the one that is named.
    """
    ax = new_axes(ax, title=title)
    colors = cycle(PALETTE[:-1])
    for policy, ratios in result.ratios(traffic).items():
        look: dict[str, Any] = {"color": next(colors), "marker": "o"}
        if policy in _RULES:
            look = {"color": BLACK, "linestyle": _RULES[policy], "linewidth": 1.5}
        ax.plot(list(ratios), [100 * ratio for ratio in ratios.values()], label=policy, **look)
    memories = sorted({memory for _, _, memory in result.replays})
    ax.set(xscale="log", xlabel="memory for data (log scale)", ylabel="hit ratio (%)", ylim=(0, 100))
    ax.set_xticks(memories, list(map(human_bytes, memories)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    legend(ax)
    return ax


def hits_over_time(
    replays: Mapping[str, Eviction], ax: Axes | None = None, *, title: str, last: int = 0
) -> Axes:
    """The hit ratio (%) of each span of requests, a line for each name; shaded is where a scan came by.

    The more of a span's requests were the scan's, the darker; of the last replay. `last`: how far the axis
    goes at least. Requests for the scan's keys are no hits and no misses. A name that begins with "before" is
    drawn in grey.
    """
    ax = new_axes(ax, title=title)
    frames = {name: one.df for name, one in replays.items()}
    for n, (name, frame) in enumerate(frames.items()):
        color = GREY if name.startswith("before") else None
        marker = "o" if len(frame) == 1 else None  # one point has no line
        look: dict[str, Any] = {"color": color, "marker": marker, "zorder": 3 - 0.01 * n}
        ax.plot(frame["at"], 100 * frame.hit_ratio, label=name, **look)
    begin, spans = 0.0, list[list[float]]()
    for at, scan in frame[["at", "scan"]].itertuples(index=False):
        if spans and spans[-1][1:] == [begin, scan]:
            spans[-1][1] = at  # one for all that are alike
        elif scan:
            spans.append([begin, at, scan])
        begin = at
    for n, (begin, at, scan) in enumerate(spans):
        look = {"color": VERMILLION, "alpha": 0.05 + 0.25 * scan, "linewidth": 0}
        ax.axvspan(begin, at, label="" if n else "a scan", **look)
    far = max(last, *(int(frame["at"].max()) for frame in frames.values()))
    ax.set(xlabel="requests", ylabel="hit ratio (%)", ylim=(0, 100), xlim=(0, far))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    number_axis(ax.xaxis)
    legend(ax)
    return ax


def residents(replays: Mapping[str, Eviction], ax: Axes | None = None, *, title: str, keys: int) -> Axes:
    """Which of so many pages are in memory: a cell for each, the most popular at the top left, row by row.

    A cell has a colour, from hot to cold, if its page is there, and is grey if not. Below, in black, is a
    cell for each other key that takes up room: a scan's. A block for each name, and how many keys it holds.
    """
    ax = new_axes(ax, title=title, height=0.5)
    width = max(10, round(math.sqrt(keys * 2.2 / len(replays))))
    rows = -(-keys // width)
    low = rows + max((1 - (-one.others // width) for one in replays.values() if one.others), default=0)
    for n, (name, one) in enumerate(replays.items()):
        left = 1.06 * width * n
        ax.imshow(_cells(one, keys, width, low), extent=(left, left + width, low, 0), aspect="auto")
        others = f" + {one.others:,} of a scan" if one.others else ""
        said = f"{name}\n{len(one.resident):,} pages{others}"
        ax.text(left + width / 2, low * 1.04, said, ha="center", va="top")
    ax.set(xlim=(0, left + width), ylim=(low, 0), ylabel="rank of a row's first page")
    ax.set_xticks([])
    ax.set_yticks([row + 0.5 for row in (0, rows // 2, rows - 1)])
    ax.set_yticklabels([f"{row * width + 1:,}" for row in (0, rows // 2, rows - 1)])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("a cell for each page, the most popular at the top left", labelpad=46)
    return ax


def _cells(one: Eviction, keys: int, width: int, rows: int) -> Any:
    """A block as a picture: rows of cells, each red, green and blue."""
    cells = np.ones((rows * width, 3))
    cells[:keys] = 0.9
    ranks = np.array([rank for rank in one.resident if rank <= keys], dtype=int)
    cells[ranks - 1] = mpl.colormaps["plasma_r"](0.08 + 0.92 * np.log(ranks) / math.log(keys + 1))[:, :3]
    if one.others:
        first = (-(-keys // width) + 1) * width
        cells[first : first + one.others] = 0
    return cells.reshape(rows, width, 3)


# --- chapter 11 ---------------------------------------------------------------------------------------------

SPAN = 256
"""So many neighbouring slots are one bar: a 64th of them all."""


def slots(
    ways: Mapping[str, Sequence[int]], owners: Mapping[int, str], ax: Axes | None = None, *, title: str
) -> Axes:
    """Where keys fall: a panel for each way of naming them, a bar for 256 slots, coloured by their primary.

    `ways` gives for each the slot of every key, `owners` the name of each slot's primary. Every panel has a
    scale of its own; beside it stands the share of the keys that the busiest primary has.
    """
    ax = new_axes(ax, title=title, height=0.22 + 0.14 * len(ways))
    colors = dict(zip(dict.fromkeys(owners[slot] for slot in sorted(owners)), cycle(PALETTE), strict=False))
    panels = _panels(ax, len(ways), 0.8 / len(ways) ** 1.5) if len(ways) > 1 else [ax]
    for (way, found), panel in zip(ways.items(), panels, strict=True):
        per_owner = Counter(owners[slot] for slot in found)
        bottom: Counter[int] = Counter()
        for name, color in colors.items():
            counts = Counter(slot // SPAN for slot in found if owners[slot] == name)
            at, tall = [SPAN * (span + 0.5) for span in counts], list(counts.values())
            under = [bottom[span] for span in counts]
            panel.bar(at, tall, width=SPAN * 0.9, bottom=under, color=color, linewidth=0)
            bottom.update(counts)
        panel.set(xlim=(0, max(owners) + 1), ylim=(0, 1.1 * max(bottom.values())))
        _name(panel, f"{way} (keys in each {SPAN} slots)")
        panel.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
        number_axis(panel.yaxis)
        panel.text(
            1.015,
            0.5,
            f"{100 * max(per_owner.values()) / len(found):.0f} %",
            va="center",
            weight="bold",
            fontsize=1.6 * mpl.rcParams["font.size"],
            transform=panel.transAxes,
        )
    panels[0].text(1.015, 1.0, "busiest:", va="top", transform=panels[0].transAxes)
    number_axis(panels[-1].xaxis)
    panels[-1].set_xlabel("slot")
    marks = [Patch(color=color) for color in colors.values()]
    panels[-1].legend(marks, [f"primary {name}" for name in colors], **_BELOW, ncols=len(colors))
    return ax


def service(outages: Mapping[str, Outage], ax: Axes | None = None, *, title: str) -> Axes:
    """Which slots were served while a primary died: a panel a failover, a row for each primary's slots.

    Blue is service, red the longest time without it, in seconds since the kill, and how long that was.
    """
    rows = sum(len(one.ranges) + 1 for one in outages.values())
    ax = new_axes(ax, title=title, height=0.16 + 0.05 * rows)
    last = 0.5 + max(part.end for one in outages.values() for part in one.ranges)
    panels = _panels(ax, len(outages), 0.36 / len(outages)) if len(outages) > 1 else [ax]
    for (name, one), panel in zip(outages.items(), panels, strict=True):
        for row, part in enumerate(one.ranges):
            panel.barh(row, last + 0.3, left=-0.3, color=BLUE, height=0.56)
            panel.barh(row, part.seconds, left=part.begin, color=VERMILLION, height=0.56)
            long = part.seconds > 0.25 * last
            look: dict[str, Any] = {"color": "white", "weight": "bold", "va": "center"}
            if long:
                panel.text((part.begin + part.end) / 2, row, f"{part.seconds:.1f} s", ha="center", **look)
            else:
                said = f"{part.seconds:.2f} s"
                panel.annotate(said, (part.end, row), (8, 0), textcoords="offset points", **look)
            if part.hit:
                panel.plot([0], [row], "X", color=BLACK, markersize=13, markeredgecolor="white")
        panel.set_yticks(range(len(one.ranges)), [f"slots {part.name}" for part in one.ranges])
        panel.set(ylim=(len(one.ranges) - 0.5, -0.5), xlim=(-0.3, last))
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        if len(outages) > 1:
            _name(panel, name)
    panels[-1].set_xlabel("time since the kill (s)")
    killed = Line2D([], [], linestyle="", marker="X", color=BLACK, markersize=12)
    marks = [Patch(color=BLUE), Patch(color=VERMILLION), killed]
    panels[-1].legend(marks, ["served", "not served", "its primary is killed"], **_BELOW, ncols=3)
    return ax


def runs(
    groups: Mapping[str, Sequence[float]],
    ax: Axes | None = None,
    *,
    title: str,
    xlabel: str,
    live: Mapping[str, Sequence[float]] | None = None,
) -> Axes:
    """One measure of several runs: a row for each group, a ring for each stored run, a line at their median.

    `live` are runs of now: filled. Where five or more are equal, "10×" says how many lie there.
    """
    ax = new_axes(ax, title=title, height=0.2 + 0.075 * len(groups))
    far = max(max(values) for values in (*groups.values(), *(live or {}).values()) if len(values))
    for row, (name, values) in enumerate(groups.items()):
        middle = statistics.median(values)
        ax.plot([middle, middle], [row - 0.34, row + 0.34], color=BLACK, linewidth=3, zorder=1)
        ax.plot(values, [row] * len(values), "o", color=BLUE, markerfacecolor="none", markeredgewidth=2)
        for value, times in Counter(values).items():
            if times > 4:
                at = (value, row)
                ax.annotate(f"{times}×", at, (12, 0), textcoords="offset points", va="center", color=BLUE)
        now = (live or {}).get(name, ())
        ax.plot(now, [row] * len(now), "D", color=VERMILLION, markeredgecolor="white")
    ring = Line2D([], [], linestyle="", marker="o", color=BLUE, markerfacecolor="none", markeredgewidth=2)
    marks = [ring, Line2D([], [], color=BLACK, linewidth=3)]
    said = ["a stored run", "their median"]
    if live:
        marks.append(Line2D([], [], linestyle="", marker="D", color=VERMILLION))
        said.append("a run of this chapter, now")
    ax.legend(marks, said, **_BELOW, ncols=3)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set(xlabel=xlabel, ylim=(len(groups) - 0.45, -0.55), xlim=(-0.03 * far, 1.06 * far))
    number_axis(ax.xaxis)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    return ax


def capacity(loads: Mapping[int, Load], ax: Axes | None = None, *, title: str, cores: int) -> Axes:
    """Commands a second by the number of primaries; beside it, how many cores their servers had in all."""
    ax = new_axes(ax, title=title)
    ax.set_axis_off()
    if ax.get_title(loc="left"):
        _set_title(ax, ax.get_title(loc="left"), pad=2.2 * mpl.rcParams["font.size"])
    left, right = (ax.inset_axes((x, 0, 0.42, 1)) for x in (0, 0.58))
    rates = [load.per_second for load in loads.values()]
    done = left.bar(range(len(loads)), rates, color=BLUE, width=0.6)
    left.bar_label(done, labels=[f"{rate:,.0f}" for rate in rates])
    number_axis(left.yaxis)
    left.margins(y=0.14)
    _name(left, "commands/s")
    for at, load in enumerate(loads.values()):
        under = 0.0
        for share, color in zip(load.cpu.values(), cycle(PALETTE), strict=False):
            right.bar(at, share, bottom=under, color=color, width=0.6, edgecolor="white")
            if share > 0.12:
                look: dict[str, Any] = {"ha": "center", "va": "center", "color": "white"}
                right.text(at, under + share / 2, f"{100 * share:.0f} %", weight="bold", **look)
            under += share
    right.axhline(cores, color=BLACK, linestyle="--", linewidth=1.5)
    right.text(-0.4, cores, f"this machine: {cores}", va="bottom")
    right.set_ylim(0, 1.2 * cores)
    number_axis(right.yaxis)
    right.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    _name(right, "cores that the servers had")
    for panel in (left, right):
        panel.set_xticks(range(len(loads)), [str(n) for n in loads])
        panel.set_xlabel("primaries")
        panel.grid(visible=False, axis="x")
    return ax
