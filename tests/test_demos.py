"""notebooks/90_demos.ipynb: every widget is there once, with what to do, what to see, and its chapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit.show import widgets

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NOTEBOOK = nbformat.read(NOTEBOOKS / "90_demos.ipynb", as_version=4)  # type: ignore[no-untyped-call]
SHOWN = sorted(set(widgets.__all__) - {"Playground", "png"})
"""A Playground is shown as what it is made for: pipelining, limiter, cache."""


def section(name: str) -> tuple[str, list[Any]]:
    """The prose before the cell that shows this widget, and the code cells of its section."""
    at = [n for n, cell in enumerate(NOTEBOOK.cells) if f"widgets.{name}(" in cell.source]
    assert len(at) == 1, f"{name} is shown in {len(at)} cells"
    first = max(n for n in range(at[0]) if NOTEBOOK.cells[n].cell_type == "markdown")
    while not NOTEBOOK.cells[first].source.startswith("## "):
        first -= 1
    after = [n for n in range(first + 1, len(NOTEBOOK.cells)) if NOTEBOOK.cells[n].cell_type == "markdown"]
    return NOTEBOOK.cells[first].source, NOTEBOOK.cells[first + 1 : after[0]]


@pytest.mark.parametrize("name", SHOWN)
def test_a_widget_has_a_section_with_what_to_do_and_its_chapter(name: str) -> None:
    prose, cells = section(name)
    assert prose.count("**Do** ") == prose.count("**Look** ") == 1
    chapters = re.findall(r"\]\(([0-9]{2}_\w+\.ipynb)\)", prose)
    assert len(chapters) == 1
    chapter = nbformat.read(NOTEBOOKS / chapters[0], as_version=4)  # type: ignore[no-untyped-call]
    assert any(f"widgets.{name}(" in cell.source for cell in chapter.cells), f"{name} is not in {chapters[0]}"
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml", "text/html"}, "no still picture is stored"


def test_there_is_a_section_for_widgets_alone_but_for_the_last() -> None:
    headings = [cell.source for cell in NOTEBOOK.cells if cell.source.startswith("## ")]
    assert len(headings) == len(SHOWN) + 1
    assert "labkit.reset()" in headings[-1] and 'plot.use_style("talk")' in headings[-1]


def test_set_up_and_reset_come_first() -> None:
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert 'plot.use_style("talk")' in code[0].source and "labkit.connect()" in code[0].source
    assert code[1].source == "removed = labkit.reset()"
