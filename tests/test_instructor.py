"""The instructor's edition: solved and run for real, with all that a class needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labkit import LabkitError
from labkit.__main__ import main
from labkit.teach import decks, instructor, notes, progress, refresh
from labkit.teach.exercises import load

ROOT = Path(__file__).parents[1]
START = ROOT / "notebooks" / "00_start_here.ipynb"
WEB = decks.Libraries({}, "The decks need the web.")
ASIDE = re.compile(r'<aside class="notes">.*?</aside>', re.S)


@pytest.fixture(autouse=True)
def _no_npm(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    if "npm" not in request.node.name:
        monkeypatch.setattr(decks, "libraries", lambda _: WEB)
    yield


def _read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def _chapter(tmp_path: Path) -> Path:
    """Chapter 00, with a hidden note on its first act, and answers that a learner has tried."""
    chapter = _read(START)
    act = next(cell for cell in chapter.cells if cell.source.startswith("## Act 1"))
    act.metadata.labkit = {"ask": ["Who **owns** a name?"], "expect": ["Whoever wrote it first."]}
    stub = next(cell for cell in chapter.cells if "exercise-encode" in cell.metadata.get("tags", []))
    stub.source = "def encode(*words):\n    return b'my own attempt'"
    path = tmp_path / "00_start_here.ipynb"
    nbformat.write(chapter, path)  # type: ignore[no-untyped-call]
    return path


def _small(tmp_path: Path, *cells: Any) -> Path:
    title = new_markdown_cell("# 98 · Small\n\nAbout 20 minutes.", id="title")  # type: ignore[no-untyped-call]
    path = tmp_path / "98_small.ipynb"
    nbformat.write(new_notebook(cells=[title, *cells]), path)  # type: ignore[no-untyped-call]
    return path


def _code(source: str, name: str, *tags: str) -> Any:
    return new_code_cell(source, id=name, metadata={"tags": list(tags)})  # type: ignore[no-untyped-call]


def test_a_chapter_is_solved_run_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, exercises = _chapter(tmp_path), tmp_path / "out", load("start_here")
    progress.record("start_here", "encode", "incorrect")
    before = path.read_bytes(), progress.path().read_bytes()
    assert main(["instructor", str(path), "--to", str(out)]) == 0
    told = capsys.readouterr()
    assert re.match(r"✓ 00_start_here: ran in \d+\.\d s; 4 exercises, 30 known-wrong", told.out), told.out
    assert told.err.startswith(WEB.problem) and "grading 7 wrong answers" in told.err
    assert (path.read_bytes(), progress.path().read_bytes()) == before
    assert {file.name for file in tmp_path.iterdir()} <= {path.name, "out", "home"}
    names = {f"00_start_here{end}" for end in (".ipynb", ".html", ".slides.html")}
    assert {file.name for file in out.iterdir()} == {*names, "index.html"}

    edition = _read(out / "00_start_here.ipynb")
    nbformat.validate(edition)
    sources = [cell.source for cell in edition.cells]
    assert {one.reference.strip() for one in exercises} <= set(sources)
    printed = json.dumps([cell.get("outputs", []) for cell in edition.cells], ensure_ascii=False)
    assert printed.count("✓ correct: ") == len(exercises) and "not attempted yet" not in printed
    _check_page((out / "00_start_here.html").read_text(), exercises)
    _check_slides((out / "00_start_here.slides.html").read_text(), exercises)
    index = (out / "index.html").read_text()
    assert "<td class='number'>30</td>" in index and "solutions ran green" in index


def _check_page(page: str, exercises: Any) -> None:
    """Solutions, questions, timings, and each mistake with what it teaches and what the grader found."""
    assert "Who <strong>owns</strong> a name?" in page and "Whoever wrote it first." in page
    assert re.search(r"<td>Act 1 · [^<]*</td>\s*<td>\d+</td>\s*<td>\d+\.\d s</td>\s*<td>\d+</td>", page)
    assert page.count("<details>") == sum(len(one.wrong) for one in exercises)
    assert "my own attempt" not in page and "not graded" not in page
    assert page.count("✗ incorrect: ") >= sum(len(one.wrong) for one in exercises)
    for exercise in exercises:
        assert f"what goes wrong in <code>{exercise.name}</code>" in page


def _check_slides(slides: str, exercises: Any) -> None:
    """A class sees stubs; solutions and questions are the speaker's alone, and those when an act is over."""
    asked = slides.index("Who <strong>owns</strong> a name?")
    assert slides.index("Names collide") < asked < slides.index("Act 2 · What goes over the wire</h2>")
    notes, seen = "".join(ASIDE.findall(slides)), ASIDE.sub("", slides)
    assert "Who <strong>owns</strong> a name?" in notes and "owns</strong>" not in seen
    assert "my own attempt" not in slides
    assert seen.count("○ not attempted yet: replace the stub above, then") == len(exercises)
    for exercise in exercises:
        title = f"A solution of <code>{exercise.name}</code>"
        assert title in notes and title not in seen
    assert "NotImplementedError" in seen and "NotImplementedError" not in notes


def test_without_a_run_the_stored_outputs_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = _chapter(tmp_path), tmp_path / "out"
    monkeypatch.setattr(refresh, "execute", lambda *_, **__: pytest.fail("executed"))
    assert main(["instructor", "--no-run", "--no-grade", "--to", str(out), str(path)]) == 0
    edition, stored = _read(out / "00_start_here.ipynb"), _read(path)
    page = (out / "00_start_here.html").read_text()
    assert "not measured" in page and "not graded" in page and "not run" in (out / "index.html").read_text()
    kept = {cell.id: cell.get("outputs") for cell in edition.cells}
    for cell in stored.cells:
        solved = "check.start_here." in cell.source or cell.metadata.get("tags", [""])[:1] == [
            "exercise-encode"
        ]
        if cell.cell_type == "code" and not solved:
            assert kept[cell.id] == cell.outputs, cell.id
    checks = [cell for cell in edition.cells if re.match(r"check\.start_here\.encode\(", cell.source)]
    assert checks and not any(cell.outputs for cell in checks)


def test_what_does_not_run_green_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, (exercise, *_) = tmp_path / "out", load("start_here")
    path = _small(tmp_path, _code("1 + 1", "fine"), _code("1 / 0", "broken"))
    assert main(["instructor", "--to", str(out), str(path)]) == 1
    said = "cell 3 of 3 (broken, `1 / 0`) failed: ZeroDivisionError: division by zero"
    assert f"✗ 98_small: 98_small.ipynb: {said}; 0 exercises" in capsys.readouterr().out
    assert said in (out / "98_small.html").read_text().replace("&quot;", '"')
    assert "class='failed'" in (out / "index.html").read_text()

    unasked = _small(tmp_path, _code(exercise.stub, "stub", "exercise-encode"))
    chapter = refresh.read(unasked)
    solved = instructor.solve(chapter, [exercise])
    problem, seconds = instructor._execute(solved, unasked, [exercise])
    assert problem == "the reference of encode was not accepted: no verdict"
    assert seconds.keys() == {"stub"} and 0 <= seconds["stub"] < 60


def test_an_exercise_without_its_cell_gets_a_remedy(tmp_path: Path) -> None:
    chapter = refresh.read(_small(tmp_path, _code("1", "one")))
    with pytest.raises(LabkitError, match=r"0 cells are tagged 'exercise-encode'. Remedy: give that tag"):
        instructor.solve(chapter, load("start_here")[:1])


def test_a_notebook_that_is_no_edition_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _chapter(tmp_path)
    before, options = path.read_bytes(), ["--no-run", "--no-grade", "--to"]
    assert main(["instructor", str(path), *options, str(tmp_path)]) == 1
    assert "would be replaced. Remedy: name another folder" in capsys.readouterr().err
    assert path.read_bytes() == before and not list(tmp_path.glob("*.html"))
    out = str(tmp_path / "out")
    assert [main(["instructor", str(path), *options, out]) for _ in range(2)] == [0, 0], "its own it is"


def test_misuse_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "97_empty.ipynb"
    for cells in ([], [_code("", "one")]):
        nbformat.write(new_notebook(cells=cells), path)  # type: ignore[no-untyped-call]
        assert main(["instructor", str(path), "--no-run", "--to", str(tmp_path / "out")]) == 1
        assert "its first cell has no title" in capsys.readouterr().err
    assert main(["instructor", str(START), "--no-run", "--to", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{path} cannot be used: File exists. Remedy: name a folder"), said


def test_what_is_no_matter_of_a_file_is_not_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.__main__._doctor", mock.Mock(side_effect=BrokenPipeError(32, "Broken pipe")))
    with pytest.raises(BrokenPipeError):
        main(["doctor"])


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("About 50 minutes. You", 50), ("**Time:** 30 minutes", 30), ("About 2 hours.", 120), ("None", None)],
)
def test_the_time_of_a_chapter_is_read_from_its_first_cell(text: str, minutes: int | None) -> None:
    assert notes.class_minutes(text) == minutes


def test_minutes_are_shared_out_to_the_last() -> None:
    for path in sorted((ROOT / "notebooks").glob("[01][0-9]_*.ipynb")):
        cells = refresh.read(path).cells
        answers = {f"exercise-{one.name}": one.reference for one in load(path.stem[3:])}
        rows = notes.parts(cells, {}, answers)
        assert [row.title for row in rows][-3:] == ["In production", "Exercises", "Recap"]
        assert sum(row.cells for row in rows) == sum(cell.cell_type == "code" for cell in cells)
        minutes = [row.minutes or 0 for row in rows]
        assert sum(minutes) == notes.class_minutes(cells[0].source)
        assert min(minutes[1:-3]) >= 2 and rows[-2].minutes == max(minutes[-3:]), (path.name, minutes)


def test_a_timetable_without_minutes_says_nothing_of_them() -> None:
    row = notes.Part("Act 1", 3, 1.5, None)
    assert "| Act 1 | 3 | 1.5 s | – |" in notes.timetable((row,)) and "share out" not in notes.timetable(
        (row,)
    )
    assert "share out" in notes.timetable((replace(row, minutes=20),))


@pytest.mark.parametrize(
    ("exercises", "executed", "state"),
    [(4, True, ">solutions ran green<"), (0, True, ">ran green<"), (4, False, ">not run<")],
)
def test_the_index_says_what_ran(exercises: int, executed: bool, state: str) -> None:
    edition = instructor.Edition("90_demos", "90 · Demos", exercises, 0, 0, executed, None, None)
    assert state in instructor._row(edition)


def test_questions_are_paired_where_they_can_be() -> None:
    cell = new_markdown_cell("## Act", metadata={"labkit": {"ask": ["A?", "B?"], "expect": ["a", "b"]}})  # type: ignore[no-untyped-call]
    assert notes.questions(cell).split("\n\n")[1:] == [
        "1. A?",
        "    *Listen for:* a",
        "2. B?",
        "    *Listen for:* b",
    ]
    cell.metadata.labkit["expect"] = ["both"]
    assert notes.questions(cell).endswith("1. A?\n2. B?\n\n- *Listen for:* both")
    assert notes.questions(new_markdown_cell("## Act")) == ""  # type: ignore[no-untyped-call]


def test_without_npm_the_web_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decks, "_npm", list)
    found = decks.libraries(tmp_path)
    assert found.places == {} and "there is no npm here" in found.problem and "Remedy: " in found.problem
    monkeypatch.setattr(decks, "_npm", lambda: ["false"])
    assert "npm could not fetch reveal.js@" in decks.libraries(tmp_path).problem
    assert list(tmp_path.rglob("*")) == []
    chapter = refresh.read(_small(tmp_path, _code("1", "one")))
    text = decks.slides(chapter, "x", found)
    assert re.search(r'src="https://[^"]*/dist/reveal\.js"', text) and 'src="lib/' not in text


def test_npm_is_not_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (version, _) in decks.LIBRARIES.items():
        (tmp_path / "lib" / f"{name}-{version}").mkdir(parents=True)
    monkeypatch.setattr(decks, "_npm", lambda: pytest.fail("npm was asked"))
    found = decks.libraries(tmp_path)
    assert found.problem == "" and found.places["katex"].startswith("lib/katex-")
    chapter = refresh.read(_small(tmp_path, _code("1", "one")))
    for text in (decks.slides(chapter, "x", found), decks.page(chapter, "x", found)):
        assert not re.search(r"""(?:src|href|from)\s*=?\s*["']https?:""", text)
