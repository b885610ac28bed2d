"""Hints and solutions are in no cell, output or metadata of a learner's file before they are asked for.

What counts as one: a hint as a whole, or a sentence of it of 40 letters or more; and a line of code of a
reference solution with 25 letters or more that is not in the exercise's stub.

A chapter's acts teach what its exercises ask for. So before the heading "Exercises", also in the code of a
labkit class that a cell shows, there may be single lines that a solution has too, idioms that were taught;
but never more than half of a solution's lines, of any chapter's. From that heading on, and in metadata, none.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit.teach.exercises import Exercise, load, stems

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").rglob("*.ipynb"))
EXERCISES = [exercise for stem in stems() for exercise in load(stem)]


def plain(text: str) -> str:
    return " ".join(text.split())


def said(hint: str) -> set[str]:
    """The hint, and those of its sentences that are long enough to be known again."""
    sentences = [sentence for sentence in re.split(r"(?<=[.:;!?])\s+", hint) if len(plain(sentence)) >= 40]
    return {plain(hint), *map(plain, sentences)}


def solution(exercise: Exercise) -> set[str]:
    """The lines of the reference by which it is known again."""
    lines = {plain(line) for line in exercise.reference.splitlines()}
    own = {line for line in lines if len(line) >= 25 and not re.match(r"import |from |#|\"\"\"", line)}
    return own - {plain(line) for line in exercise.stub.splitlines()}


def texts(part: Any) -> Iterator[str]:
    """All that is text in a part of a notebook, apart from pictures."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        yield from ["".join(part)] if part and all(isinstance(one, str) for one in part) else ()
        for one in part:
            yield from texts(one)
    elif isinstance(part, dict):
        for name, one in part.items():
            yield from () if str(name).startswith("image/") else texts(one)


def leaks(notebook: Any) -> list[str]:
    """What stands in the notebook that ought not to, one sentence each."""
    cells = notebook.cells
    begin = [n for n, cell in enumerate(cells) if re.search(r"^## Exercises", cell.source, re.M)]
    taught = [{**cell, "metadata": {}} for cell in cells[: begin[0] if begin else len(cells)]]
    rest = [notebook.metadata, [cell.metadata for cell in cells], cells[begin[0] :] if begin else []]
    everything = plain("\n".join(texts([notebook.metadata, *cells])))
    lines, lines_after = (
        {plain(line) for t in texts(part) for line in t.splitlines()} for part in (taught, rest)
    )
    found = []
    for one in EXERCISES:
        name, own = f"{one.stem}.{one.name}", solution(one)
        found += [f"{name}: hint: {text}" for hint in one.hints for text in said(hint) if text in everything]
        found += [f"{name}: solution: {line}" for line in sorted(own & lines_after)]
        if own and len(own & lines) > len(own) / 2:
            found.append(f"{name}: {len(own & lines)} of the {len(own)} lines of its solution")
    return found


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_hint_and_no_solution_is_in_the_learners_file(path: Path) -> None:
    assert leaks(read(path)) == []


def test_a_hint_or_a_solution_is_seen_wherever_it_is_put() -> None:
    """In a cell's source, an output, and what an instructor's note in the metadata says."""
    clean = read(next(path for path in NOTEBOOKS if path.stem.startswith("05_")))
    one = load("rate_limiter")[0]
    whole = one.reference.strip()
    line = next(text for text in whole.splitlines() if plain(text) in solution(one))
    assert leaks(clean) == []
    for secret in (one.hints[0], one.hints[-1], line):
        for place in ("source", "outputs", "metadata"):
            notebook = copy.deepcopy(clean)
            cell = next(cell for cell in reversed(notebook.cells) if cell.cell_type == "code")
            new = {
                "source": f"{cell.source}\n{secret}",
                "outputs": [{"output_type": "stream", "name": "stdout", "text": secret}],
                "metadata": {**cell.metadata, "labkit": {"notes": secret}},
            }
            cell[place] = nbformat.from_dict(new[place])  # type: ignore[no-untyped-call]
            assert leaks(notebook), (secret, place)
    notebook = copy.deepcopy(clean)
    notebook.cells[3].source += f"\n{whole}"
    assert [found for found in leaks(notebook) if found.startswith(f"{one.stem}.{one.name}: ")]
