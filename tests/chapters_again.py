"""After nbval has run a chapter, it runs once more in the same kernel, with all its exercises solved.

conftest.py calls `again`, so `uv run pytest` has these tests, and a run of one chapter alone does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbval.plugin import IPyNbCell  # type: ignore[import-untyped]

from labkit.teach.exercises import Exercise, load

DEMOS = "90_demos.ipynb"
"""It has no exercises: it runs again, and that is all."""


class Solved(pytest.Item):
    """Each exercise of a chapter has a cell, with its stub, and was accepted when the chapter ran again."""

    def __init__(self, again: list[Any], stubs: dict[str, str], **options: Any) -> None:
        super().__init__(**options)
        self.again, self.stubs = again, stubs

    def runtest(self) -> None:
        asked = {f"exercise-{one.name}": one.stub.strip() for one in _exercises(self.path)}
        assert self.stubs == asked, "each exercise's cell holds its stub"
        printed = [output.get("text", "") for cell in self.again for output in cell.test_outputs or []]
        assert sum(text.count("✓ correct: ") for text in printed) == len(asked), "".join(printed)

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        return f"{self.nodeid}: {excinfo.value}"

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}: {self.name}"


def again(items: list[pytest.Item]) -> None:
    """Behind the cells of each chapter, the same cells again: each stub replaced by the reference."""
    chapters = defaultdict(list)
    for item in items:
        if isinstance(item, IPyNbCell):
            chapters[item.parent].append(item)
    for chapter, cells in chapters.items():
        if len(cells) == sum(cell.cell_type == "code" for cell in chapter.nb.cells):  # it runs as a whole
            after = items.index(cells[-1]) + 1
            items[after:after] = _again(chapter, cells)


def _again(chapter: Any, cells: list[Any]) -> Iterator[pytest.Item]:
    references = {f"exercise-{one.name}": one.reference.strip() for one in _exercises(chapter.path)}
    again, stubs = [], {}
    for item in cells:
        cell = item.cell.copy()
        for tag in references.keys() & set(cell.metadata.get("tags", [])):
            stubs[tag] = cell.source.strip()
            cell.source = references[tag]
        name, options = item.name.replace("Cell", "Again"), defaultdict(bool, item.options, check=False)
        again.append(
            IPyNbCell.from_parent(chapter, name=name, cell_num=item.cell_num, cell=cell, options=options)
        )
    yield from again
    if chapter.path.name != DEMOS:
        yield Solved.from_parent(chapter, name="Solved", again=again, stubs=stubs)


def _exercises(chapter: Path) -> tuple[Exercise, ...]:
    return () if chapter.name == DEMOS else load(chapter.stem.partition("_")[2])
