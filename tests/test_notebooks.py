"""The lint of the chapters: what a reader may rely on, and what keeps their stored outputs comparable."""

from __future__ import annotations

import ast
import copy
import re
import socket
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbstripout import strip_output

from labkit import PREFIX
from labkit.teach.exercises import load
from labkit.teach.refresh import STRIPPED

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
DEMOS = "90_demos"
"""All widgets on one page: no acts and no exercises; tests/test_demos.py says what it has instead."""

EXEMPT = "nbval-ignore-output"
TAGS = {EXEMPT, "raises-exception"}
SLIDES = {"slide", "subslide", "fragment", "skip", "notes", "-"}

MACHINE = {
    "an absolute path": r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|var|work|private|Users|etc|mnt|srv)/",
    "this machine's name": rf"\b{re.escape(socket.gethostname())}\b"
    if len(socket.gethostname()) > 3
    else r"(?!)",
    "a port": r"(?:127\.0\.0\.1|localhost|\[::1\]):(?!6379\b|6390\b)\d+|\bport[= ]+\d{4,5}\b",
    "a process id": r"\bpid[= ]+\d+",
    "a date": r"\b20[2-9]\d-[01]\d-[0-3]\d\b",
    "a warning": r"\b\w*Warning:",
}

WRITES = {
    "set",
    "get",
    "incr",
    "incrby",
    "decr",
    "expire",
    "pexpire",
    "ttl",
    "pttl",
    "delete",
    "unlink",
    "exists",
}
WRITES |= {
    "hset",
    "hget",
    "hgetall",
    "lpush",
    "rpush",
    "lrange",
    "sadd",
    "smembers",
    "zadd",
    "zcard",
    "zrange",
}
WRITES |= {"getdel", "setex", "append", "strlen", "type", "persist", "watch", "memory_usage", "object"}


def _stem(path: Path) -> str:
    return path.stem


def _read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _prints_text(cell: Any) -> bool:
    """Not so a cell that only defines or starts something, nor one whose output is a picture."""
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    return len(cell.outputs) > len(pictures)


def _where(notebook: Any, cell: Any) -> str:
    first = (cell.source.strip().splitlines() or ["(empty)"])[0]
    return f"cell {notebook.cells.index(cell) + 1}, `{first}`"


def _texts(output: Any) -> list[str]:
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [output.evalue, *output.traceback]
    return [
        text for kind, text in output.data.items() if isinstance(text, str) and not kind.startswith("image/")
    ]


pytestmark = pytest.mark.parametrize("path", CHAPTERS, ids=_stem)


def test_at_least_85_percent_of_code_cells_are_compared(
    path: Path, record_property: Callable[[str, object], None]
) -> None:
    cells = _code(_read(path))
    compared = [cell for cell in cells if EXEMPT not in _tags(cell)]
    share = len(compared) / len(cells)
    telling = [cell for cell in compared if _prints_text(cell)]
    record_property(
        "summary",
        f"{path.stem}: {len(compared)} of {len(cells)} code cells compared, {share:.0%}; "
        f"{len(telling)} of them print a text, the others are to print nothing or a picture",
    )
    assert share >= 0.85


def test_an_exempted_cell_is_followed_by_a_claim(path: Path) -> None:
    notebook = _read(path)
    cells = _code(notebook)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        assert not _tags(cell) & {"nbval-skip", "nbval-check-output", "nbval-raises-exception"}, _where(
            notebook, cell
        )
        if EXEMPT in _tags(cell):
            claims = following is not None and EXEMPT not in _tags(following) and "claim(" in following.source
            assert claims, f"{_where(notebook, cell)}: no claim follows"


def test_cells_were_run_in_order_and_none_is_empty(path: Path) -> None:
    cells = _code(_read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.source.strip() for cell in cells)


def test_errors_are_stored_only_where_they_are_meant(path: Path) -> None:
    notebook = _read(path)
    for cell in _code(notebook):
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in _tags(cell)), _where(notebook, cell)


def test_outputs_name_nothing_of_this_machine(path: Path) -> None:
    notebook = _read(path)
    for cell in _code(notebook):
        for output in cell.outputs:
            assert output.get("name") != "stderr", f"{_where(notebook, cell)}: writes to stderr"
            for what, pattern in MACHINE.items():
                found = [match[0] for text in _texts(output) for match in re.finditer(pattern, text)]
                assert not found, f"{_where(notebook, cell)}: {what} in the output: {found[0]!r}"


def test_outputs_can_be_compared(path: Path) -> None:
    notebook = _read(path)
    for cell in _code(notebook):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert not any("widget" in kind for kind in kinds), (
            f"{_where(notebook, cell)}: a live widget is stored"
        )
        assert not any("display_id" in output.get("transient", {}) for output in cell.outputs)
        streams = [output.name for output in cell.outputs if output.output_type == "stream"]
        assert len(streams) == len(set(streams)), f"{_where(notebook, cell)}: one stream is stored in pieces"


def test_no_marker_comments_and_no_flush(path: Path) -> None:
    for cell in _code(_read(path)):
        assert "NBVAL" not in cell.source
        assert not re.search(r"flush_?(all|db)", cell.source, re.I), "a stranger's keys"


def test_every_cell_is_a_slide_or_part_of_one(path: Path) -> None:
    notebook = _read(path)
    for cell in notebook.cells:
        assert cell.metadata.get("slideshow", {}).get("slide_type") in SLIDES, _where(notebook, cell)
    assert notebook.cells[0].metadata.slideshow.slide_type == "slide"


def test_metadata_is_bare_and_ids_are_unique(path: Path) -> None:
    notebook = _read(path)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata.keys() <= {"slideshow", "tags", "labkit"}, _where(notebook, cell)
        unknown = {tag for tag in _tags(cell) - TAGS if not tag.startswith("exercise-")}
        assert not unknown, f"{_where(notebook, cell)}: {unknown}"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert strip_output(copy.deepcopy(notebook), True, True, True, extra_keys=STRIPPED) == notebook


def test_each_part_has_questions_for_the_room(path: Path) -> None:
    """The instructor's hidden notes: at each act's heading, and with each question what to expect."""
    if path.stem == "90_demos":
        pytest.skip("all widgets on one page: it has no acts")
    for cell in _read(path).cells:
        notes = cell.metadata.get("labkit")
        asked = re.match(r"## (Act \d|In production|Exercises)", cell.source) is not None
        assert (notes is not None) == (asked and cell.cell_type == "markdown"), cell.id
        if notes is not None:
            assert notes.keys() == {"ask", "expect"}, cell.id
            assert 2 <= len(notes["ask"]) == len(notes["expect"]) <= 4, cell.id
            assert all(question.rstrip().endswith(("?", ".")) for question in notes["ask"]), cell.id


def test_cells_are_short(path: Path) -> None:
    notebook = _read(path)
    sizes = [len(cell.source.splitlines()) for cell in _code(notebook)]
    long = [_where(notebook, cell) for cell in _code(notebook) if len(cell.source.splitlines()) > 20]
    assert not long
    assert statistics.median(sizes) <= 4, f"median {statistics.median(sizes)} lines"


def test_sections_come_in_order(path: Path) -> None:
    if path.stem == DEMOS:
        return
    notebook = _read(path)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.M | re.S)
    assert re.match(rf"# {path.stem[:2]} · \w", notebook.cells[0].source)
    assert len(re.findall(r"^# ", prose, re.M)) == 1, "one title"
    headings = re.findall(r"^## (.*)$", prose, re.M)
    acts = [heading for heading in headings if heading.startswith("Act ")]
    assert 2 <= len(acts) <= 5
    assert [act.partition(" · ")[0] for act in acts] == [f"Act {n}" for n in range(1, len(acts) + 1)]
    assert headings == [*acts, "In production", "Exercises", "Recap"]
    for act in re.split(r"^## ", prose, flags=re.M)[1 : len(acts) + 1]:
        assert "**Predict" in act, f"no prediction in {act.splitlines()[0]}"
    assert re.search(r"^\|.*\|$", prose.partition("\n## Recap")[2], re.M), "a cheat-sheet table"


def test_setup_cell_connects(path: Path) -> None:
    first = _code(_read(path))[0]
    assert re.search(r"\br = labkit\.connect\(\)", first.source) and "import labkit" in first.source
    printed = [output for output in first.outputs if output.output_type == "stream"]
    assert re.match(r"(Redis|Valkey) \d+\.\d+\.\d+ · ", printed[0].text)


def test_exercises_stand_in_the_chapter(path: Path) -> None:
    if path.stem == DEMOS:
        return
    notebook = _read(path)
    cells = _code(notebook)
    stem = path.stem.partition("_")[2]
    exercises = load(stem)
    assert len(exercises) >= 3
    tagged = [tag for cell in cells for tag in sorted(_tags(cell)) if tag.startswith("exercise-")]
    assert tagged == [f"exercise-{exercise.name}" for exercise in exercises]
    for exercise in exercises:
        at = next(i for i, cell in enumerate(cells) if f"exercise-{exercise.name}" in _tags(cell))
        assert cells[at].source.strip() == exercise.stub.strip()
        assert f"check.{stem}.{exercise.name}({exercise.answer})" in cells[at + 1].source
        assert "○ not attempted yet" in "".join(output.get("text", "") for output in cells[at + 1].outputs)
        before = notebook.cells[notebook.cells.index(cells[at]) - 1]
        assert before.cell_type == "markdown"
        assert " ".join(exercise.statement.split()) in " ".join(before.source.split()), exercise.name


def test_key_literals_begin_with_the_prefix(path: Path) -> None:
    """Of calls on `r`, the connected client, and of %%redis and %%node cells that use it."""
    notebook = _read(path)
    for cell in _code(notebook):
        if cell.source.startswith("%%redis\n"):
            words = [
                line.split()
                for line in cell.source.splitlines()[1:]
                if line.strip() and line.strip()[0] != "#"
            ]
            keys = [line[1] for line in words if line[0].lower() in WRITES and len(line) > 1]
        elif cell.source.startswith("%%node"):
            keys = re.findall(r"""\bredis\.(?!eval)\w+\(\s*["'`]([^"'`]*)""", cell.source)
        elif cell.source.startswith("%%redis"):
            continue
        else:
            keys = _key_literals(re.sub(r"^[%!].*$", "", cell.source, flags=re.M))
        bad = [key for key in keys if not key.strip("\"'").startswith(PREFIX)]
        assert not bad, f"{_where(notebook, cell)}: {bad}"


def _key_literals(source: str) -> list[str]:
    """First arguments of commands on `r` that are written out, or begin so."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES
        ):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "r" and node.args):
            continue
        first = node.args[0]
        if isinstance(first, ast.JoinedStr) and first.values:
            first = first.values[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            found.append(first.value)
    return found
