"""Playgrounds without a browser: what a moved control does, what an error shows, the static picture."""

from __future__ import annotations

from typing import Any

import ipywidgets as ipw
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from labkit.show import plot, widgets
from labkit.show.widgets import Playground

PNG = b"\x89PNG"


def bars(count: int, kind: str) -> Figure:
    if count > 5:
        raise ValueError(f"count is {count}; at most 5")
    figure, ax = plot.figure()
    plot.bars({f"{kind} {i}": i for i in range(count)}, ax, title=kind, unit="commands")
    return figure


@pytest.fixture
def playground() -> Playground:
    controls = {
        "count": ipw.IntSlider(2, 1, 10, description="count", continuous_update=True),
        "kind": ipw.Dropdown(options=["a", "b"], description="kind"),
    }
    return Playground(controls, bars, name="bars", title="Bars to play with")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(widgets, "publish_display_data", lambda data, metadata: shown.append(data))
    return shown


def test_a_moved_control_changes_the_picture(playground: Playground) -> None:
    pyplot.close("all")
    playground.refresh()
    before = bytes(playground.picture.value)
    assert before.startswith(PNG)
    playground.controls["count"].value = 3
    assert bytes(playground.picture.value).startswith(PNG)
    assert bytes(playground.picture.value) != before
    assert playground.status.value == "drawn: count 3, kind a"
    assert pyplot.get_fignums() == []


def test_an_error_is_shown_and_the_last_picture_stays(playground: Playground) -> None:
    playground.refresh()
    before = bytes(playground.picture.value)
    playground.controls["count"].value = 9
    assert playground.status.value == "ValueError: count is 9; at most 5"
    assert isinstance(playground.error, ValueError)
    assert bytes(playground.picture.value) == before
    playground.controls["count"].value = 4
    assert playground.error is None


def test_an_interrupt_is_shown() -> None:
    def interrupted() -> Figure:
        raise KeyboardInterrupt

    playground = Playground({}, interrupted, name="x", title="x")
    playground.refresh()
    assert playground.status.value.startswith("Interrupted")


def test_controls_act_when_they_rest_and_parts_can_be_found(playground: Playground) -> None:
    assert playground.controls["count"].continuous_update is False
    assert playground.settings == {"count": 2, "kind": "a"}
    assert "labkit-bars" in playground.box._dom_classes
    assert "labkit-picture" in playground.picture._dom_classes
    assert "labkit-status" in playground.status._dom_classes


def test_without_a_browser_it_is_a_static_picture(
    playground: Playground, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    playground._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["image/png"].startswith(PNG)
    assert published[0]["text/plain"] == "<Playground: Bars to play with>"


def test_without_a_browser_an_error_fails_the_cell(
    published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    playground = Playground({"count": ipw.IntSlider(9), "kind": ipw.Text("a")}, bars, name="x", title="x")
    with pytest.raises(ValueError, match="at most 5"):
        playground._ipython_display_()
    assert published == []


def test_in_a_browser_it_is_live(
    playground: Playground, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.in_browser", lambda: True)
    playground._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in published[0]
    assert published[0]["text/plain"] == "<Playground: Bars to play with>"
    assert bytes(playground.picture.value).startswith(PNG)
