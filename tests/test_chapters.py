"""Every chapter runs again in the same kernel, and is green with all its exercises solved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from labkit.teach.exercises import load
from labkit.teach.refresh import execute, read

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_green_again_in_the_same_kernel_with_all_exercises_solved(chapter: Path) -> None:
    """First as it is, then once more from the top, each stub replaced by the reference."""
    notebook = read(chapter)
    again = copy.deepcopy(notebook.cells)
    for number, cell in enumerate(again):
        cell.id = f"again-{number}"
    solved = _solve(again, chapter.stem.partition("_")[2])
    notebook.cells += again
    execute(notebook, chapter.parent, chapter.name)
    printed = [output.text for cell in again for output in cell.get("outputs", []) if "text" in output]
    assert sum(text.count("✓ correct: ") for text in printed) == solved


def _solve(cells: list[Any], stem: str) -> int:
    """Replace the stubs of a chapter by its references; how many there are."""
    solutions = {f"exercise-{exercise.name}": exercise for exercise in load(stem)}
    open_ = dict(solutions)
    for cell in cells:
        for tag in set(cell.metadata.get("tags", [])) & open_.keys():
            assert cell.source.strip() == open_[tag].stub.strip(), (
                f"{tag}: the cell is not the exercise's stub"
            )
            cell.source = open_.pop(tag).reference.strip()
    assert not open_, f"{sorted(open_)}: exercises without a cell in the chapter"
    return len(solutions)
