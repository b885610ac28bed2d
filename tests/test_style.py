"""The style for a projector: of all pictures and widgets, there and back, and nothing is cut off in it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import ipywidgets as ipw
import matplotlib as mpl
import pytest
from matplotlib import pyplot

from labkit.show import plot, widgets
from labkit.show.panel import png
from labkit.show.widgets import Playground

LONG = "TokenBucket: 42 admitted, 18 refused; at most 12 in any 1 s, as was asked for"


@pytest.fixture(autouse=True)
def page_again() -> Iterator[None]:
    yield
    plot.use_style("page")
    pyplot.close("all")


def test_there_and_back_leaves_all_as_it_was() -> None:
    before, wide = dict(mpl.rcParams), plot.pixels()
    plot.use_style("talk")
    assert mpl.rcParams["font.size"] * mpl.rcParams["figure.dpi"] / 72 >= 23, "letters, in pixels of the page"
    assert mpl.rcParams["lines.linewidth"] > 1.3 * before["lines.linewidth"]
    assert mpl.rcParams["axes.prop_cycle"] == before["axes.prop_cycle"]
    assert wide < plot.pixels() <= 1100
    plot.use_style("page")
    assert (dict(mpl.rcParams), plot.pixels()) == (before, wide)


def test_a_live_widget_follows_at_once_and_is_drawn_anew_only_where_it_is_seen() -> None:
    drawn = []

    def draw(n: int) -> Any:
        drawn.append(mpl.rcParams["font.size"])
        return plot.figure(0.3)[0]

    made = Playground({"n": ipw.IntSlider(1, max=3, description="n")}, draw, name="t", title="t")
    page, width = made._sheet.value, made.picture.layout.width
    plot.use_style("talk")
    assert drawn == [] and made._sheet.value != page
    assert "--jp-widgets-font-size: 20px" in made._sheet.value and made.picture.layout.width != width
    made._seen_here = True  # as when a page shows it
    plot.use_style("page")
    assert len(drawn) == 1 and (made._sheet.value, made.picture.layout.width) == (page, width)
    made.end()
    plot.use_style("talk")
    assert len(drawn) == 1, "labkit.reset() has ended it"
    made.box.close()


def test_every_widget_has_the_styles_sheet_and_shows_its_focus() -> None:
    panels = [widgets.RedlockPanel(), widgets.EvictionLab(), widgets.ClusterMap(), widgets.cache()]
    for made in panels:
        assert "labkit-widget" in made.box._dom_classes and made._page.children == (made._sheet, made.box)
        assert ":focus-visible { outline: 3px" in made._sheet.value
        made.box.close()


@pytest.mark.parametrize("style", ["page", "talk"])
def test_a_long_title_is_not_cut_off(style: str) -> None:
    plot.use_style(style)
    figure, ax = plot.figure(0.4)
    plot.bars({"a": 1, "b": 2}, ax, title=LONG, unit="n")
    alone: Any = plot.bars({"a": 1, "b": 2}, title=LONG, unit="n").get_figure(root=True)
    for made in (figure, alone):
        made.savefig(io.BytesIO(), format="png")  # it is laid out now
        title = getattr(made, "_suptitle", None) or ax._left_title
        assert title.get_text() == LONG
        box = title.get_window_extent()
        assert made.bbox.x0 <= box.x0 and box.x1 <= made.bbox.x1 + 1
    figure, ax = plot.figure(0.4)
    plot.bars({"a rather long name at the left": 1, "b": 2}, ax, title=LONG, unit="n")
    png(figure)  # as widgets do
    figure.draw_without_rendering()
    assert ax._left_title.get_window_extent().x1 <= figure.bbox.x1
    short = plot.bars({"a": 1}, title="Short", unit="n").get_figure(root=True)._suptitle  # type: ignore[union-attr]
    assert short.get_fontsize() == mpl.rcParams["figure.titlesize"]
