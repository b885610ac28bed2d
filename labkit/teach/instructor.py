"""The instructor's edition of the chapters: solved and executed, with what a class needs, and as slides.

uv run python -m labkit instructor notebooks/05*.ipynb

The learner's notebooks, progress and keys stay as they are: all of it is written to build/instructor/.
"""

from __future__ import annotations

import copy
import html
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_markdown_cell, new_output

from labkit import LabkitError
from labkit.teach import decks, notes, refresh
from labkit.teach.check import grade
from labkit.teach.exercises import Exercise, load, stems

FOLDER = Path("build/instructor")
SOLVED = "✓ correct: "


@dataclass(frozen=True)
class Edition:
    """What was made of a chapter: its files are `name`.html, `name`.slides.html and `name`.ipynb.

    `problem` says why its solutions did not run green, "" if they did (or were not run: `executed` is False);
    `seconds` is how long its cells took, `minutes` the chapter's own time, None where there is none.
    """

    name: str
    title: str
    exercises: int
    wrong: int
    questions: int
    executed: bool
    seconds: float | None
    minutes: int | None
    problem: str = ""

    def __str__(self) -> str:
        mark = "✗" if self.problem else "✓" if self.executed else "○"
        run = f"ran in {self.seconds:.1f} s" if self.seconds is not None else "not run"
        kept = f"{self.exercises} exercises, {self.wrong} known-wrong answers, {self.questions} questions"
        return f"{mark} {self.name}: {self.problem or run}; {kept}"


def run(chapters: Iterable[Path], folder: Path = FOLDER, execute: bool = True, ask: bool = True) -> int:
    """Write the editions of `chapters` and an index over all that are in `folder`; prints a line for each.

    `execute`: run the solved chapter in a fresh kernel; else outputs are those stored in it, and the cells
    that check an exercise have none. `ask`: grade every known-wrong answer for its counterexample.
    Returns 1 if the solutions of a chapter did not run green, else 0. Raises LabkitError if a notebook in
    `folder` would be replaced that is no edition, as a learner's own; RefreshFailed for what is no notebook,
    and LabkitError for a chapter without a title, or in which an exercise has no cell: with nothing written
    for it, or for those after it.
    """
    chapters = list(chapters)
    _spare(folder, chapters)
    folder.mkdir(parents=True, exist_ok=True)
    found = decks.libraries(folder)
    if found.problem:
        print(found.problem, file=sys.stderr)
    editions = []
    for chapter in chapters:
        editions.append(make(chapter, folder, found, execute, ask))
        print(editions[-1], flush=True)
    (folder / "index.html").write_text(index(folder), encoding="utf-8")
    print(f"Open {folder / 'index.html'}")
    return int(any(edition.problem for edition in editions))


def _spare(folder: Path, chapters: Sequence[Path]) -> None:
    """Raise LabkitError where an edition would take the place of another notebook."""
    for there in (folder / f"{chapter.stem}.ipynb" for chapter in chapters):
        if there.exists() and "labkit" not in refresh.read(there).metadata:
            raise LabkitError(
                f"{there} is a notebook that this command has not written, and would be replaced. "
                "Remedy: name another folder."
            )


def make(path: Path, folder: Path, found: decks.Libraries, execute: bool = True, ask: bool = True) -> Edition:
    """Write one chapter's edition into `folder`.

    Raises RefreshFailed if `path` is no notebook, and LabkitError if it has no title, or an exercise no cell.
    """
    chapter = refresh.read(path)
    if not chapter.cells or not chapter.cells[0].source.strip():
        raise LabkitError(f"{path}: its first cell has no title. Remedy: name a chapter.")
    exercises = _exercises(path)
    solved = solve(chapter, exercises)
    problem, seconds = "", dict[str, float]()
    if execute:
        _tell(f"{path.stem}: running it, solved …")
        problem, seconds = _execute(solved, path, exercises)
    known = {one.name: _known(one, ask) for one in exercises}
    _tell(f"{path.stem}: writing page and slides …")
    answers = {_tag(one): one.reference for one in exercises}
    rows = notes.parts(chapter.cells, seconds, answers)
    edition = Edition(
        path.stem,
        _title(chapter),
        len(exercises),
        sum(map(len, known.values())),
        sum(len(notes.asked(cell)[0]) for cell in chapter.cells),
        execute,
        sum(seconds.values()) if seconds else None,
        notes.class_minutes(chapter.cells[0].source),
        problem,
    )
    _write(edition, folder, found, _printed(solved, rows, exercises, known, problem))
    slides = deck(solved if execute and not problem else chapter, path.stem, found, rows)
    (folder / f"{path.stem}.slides.html").write_text(slides, encoding="utf-8")
    return edition


def deck(chapter: Any, name: str, found: decks.Libraries, rows: tuple[notes.Part, ...] = ()) -> str:
    """The slides of a chapter, with its outputs, as a class sees them: exercises as stubs, not attempted yet.

    The speaker's view has the timetable `rows` (by default one without timings), questions and solutions.
    """
    exercises = _exercises(Path(name))
    rows = rows or notes.parts(chapter.cells, {}, {_tag(one): one.reference for one in exercises})
    return decks.slides(_shown(unsolve(chapter, exercises), rows, exercises), name, found)


def _write(edition: Edition, folder: Path, found: decks.Libraries, printed: Any) -> None:
    printed.metadata.labkit = asdict(edition)
    refresh.store(printed, folder / f"{edition.name}.ipynb")
    page = decks.page(printed, edition.name, found)
    (folder / f"{edition.name}.html").write_text(page, encoding="utf-8")


def _exercises(path: Path) -> tuple[Exercise, ...]:
    stem = path.stem.partition("_")[2]
    return load(stem) if stem in stems() else ()


def _tag(exercise: Exercise) -> str:
    return f"exercise-{exercise.name}"


def _title(chapter: Any) -> str:
    return str(chapter.cells[0].source.splitlines()[0].removeprefix("#").strip())


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Solutions


def solve(chapter: Any, exercises: Sequence[Exercise]) -> Any:
    """A copy with the reference in each exercise's cell, and no output there, or where it is checked.

    Raises LabkitError if an exercise has no cell with its tag.
    """
    solved = copy.deepcopy(chapter)
    for exercise in exercises:
        stub, checks = _cells(solved, exercise)
        stub.source = exercise.reference.strip()
        for cell in (stub, *checks):
            cell.update(outputs=[], execution_count=None)
    return solved


def unsolve(chapter: Any, exercises: Sequence[Exercise]) -> Any:
    """A copy as a learner finds it: the stub in each exercise's cell, and what its check says of that."""
    shown = copy.deepcopy(chapter)
    for exercise in exercises:
        stub, checks = _cells(shown, exercise)
        stub.update(source=exercise.stub.strip(), outputs=[])
        said = f"{grade(exercise, exercise.build(exercise.stub))}\n"
        for cell in checks:
            cell.outputs = [new_output("stream", name="stdout", text=said)]  # type: ignore[no-untyped-call]
    return shown


def _cells(chapter: Any, exercise: Exercise) -> tuple[Any, list[Any]]:
    """The cell with an exercise's stub, and those that check its answer."""
    code = [cell for cell in chapter.cells if cell.cell_type == "code"]
    stubs = [cell for cell in code if _tag(exercise) in cell.metadata.get("tags", [])]
    if len(stubs) != 1:
        raise LabkitError(
            f"{_title(chapter)}: {len(stubs)} cells are tagged {_tag(exercise)!r}. "
            "Remedy: give that tag to the cell of the exercise's stub, and to no other."
        )
    call = re.compile(rf"check\.{exercise.stem}\.{exercise.name}\({exercise.answer}\)")
    return stubs[0], [cell for cell in code if cell is not stubs[0] and call.search(cell.source)]


def _execute(solved: Any, path: Path, exercises: Sequence[Exercise]) -> tuple[str, dict[str, float]]:
    """Run the solved chapter; what is wrong with it, or "", and the seconds of each code cell that ended."""
    problem = ""
    try:
        refresh.execute(solved, path.parent, path.name, record_timing=True)
    except refresh.RefreshFailed as error:
        problem = str(error)
    seconds = {cell.id: took for cell in solved.cells if (took := _seconds(cell)) is not None}
    refresh.tidy(solved)
    for exercise in exercises:
        said = "".join(
            str(out.get("text", "")) for cell in _cells(solved, exercise)[1] for out in cell.outputs
        )
        if SOLVED not in said and not problem:
            problem = f"the reference of {exercise.name} was not accepted: {said.strip() or 'no verdict'}"
    return problem, seconds


def _seconds(cell: Any) -> float | None:
    times = cell.metadata.pop("execution", {})
    try:
        began, ended = (times[f"iopub.status.{state}"] for state in ("busy", "idle"))
    except KeyError:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def _known(exercise: Exercise, ask: bool) -> list[notes.Mistake]:
    """The known-wrong answers, graded if `ask`."""
    if not ask:
        return [notes.Mistake(wrong) for wrong in exercise.wrong]
    _tell(f"{exercise.stem}.{exercise.name}: grading {len(exercise.wrong)} wrong answers …")
    return [notes.Mistake(wrong, grade(exercise, exercise.build(wrong.source))) for wrong in exercise.wrong]


# What is added


def _printed(
    solved: Any,
    rows: tuple[notes.Part, ...],
    exercises: Sequence[Exercise],
    known: dict[str, list[notes.Mistake]],
    problem: str,
) -> Any:
    """The notebook to read: with timetable, questions, and the mistakes behind each exercise."""
    failed = f"<p><b>Its solutions did not run green:</b> {html.escape(problem)}</p>\n\n" if problem else ""
    added = {solved.cells[0].id: failed + notes.timetable(rows)}
    for exercise in exercises:
        added[_last(solved, exercise)] = notes.mistakes(exercise, known[exercise.name])
    return _with_notes(solved, added)


def _shown(chapter: Any, rows: tuple[notes.Part, ...], exercises: Sequence[Exercise]) -> Any:
    """The notebook to show: what is added is for the speaker."""
    added = {chapter.cells[0].id: notes.timetable(rows)}
    for exercise in exercises:
        added[_last(chapter, exercise)] = notes.spoken(exercise)
    return _with_notes(chapter, added)


def _last(chapter: Any, exercise: Exercise) -> str:
    """The id of the cell behind which an exercise's notes stand."""
    stub, checks = _cells(chapter, exercise)
    return str((checks or [stub])[-1].id)


def _with_notes(chapter: Any, added: dict[str, str]) -> Any:
    """A copy with cells for the instructor behind those whose ids are named, and its hidden notes shown.

    The questions of a part come at its end: many are about what the part has shown.
    """
    noted = copy.deepcopy(chapter)
    noted.cells, asked = [], None
    for cell in [*chapter.cells, None]:
        ends = cell is None or (cell.cell_type == "markdown" and cell.source.startswith("## "))
        if asked is not None and ends:
            noted.cells.append(_note(asked, "questions", notes.questions(asked)))
            asked = None
        if cell is None:
            break
        noted.cells.append(cell)
        asked = cell if notes.questions(cell) else asked
        if text := added.get(cell.id):
            noted.cells.append(_note(cell, "notes", text))
    return noted


def _note(cell: Any, kind: str, text: str) -> Any:
    metadata = {"tags": ["instructor"], "slideshow": {"slide_type": "notes"}}
    name = f"{cell.id}-{kind}"[-64:]
    return new_markdown_cell(text, id=name, metadata=metadata)  # type: ignore[no-untyped-call]


# The index


def index(folder: Path) -> str:
    """A page over all editions in `folder`, from what their notebooks say of themselves."""
    editions = []
    for path in sorted(folder.glob("*.ipynb")):
        kept = nbformat.read(path, as_version=4).metadata.get("labkit")  # type: ignore[no-untyped-call]
        if kept:
            editions.append(Edition(**kept))
    rows = "\n".join(map(_row, editions))
    page = (decks.TEMPLATES / "index.html").read_text(encoding="utf-8")
    return page.replace("<!-- editions -->", rows)


def _row(edition: Edition) -> str:
    name = html.escape(edition.name, quote=True)
    links = f"<a href='{name}.html'>read</a> · <a href='{name}.slides.html'>slides</a>"
    ran = "solutions ran green" if edition.exercises else "ran green"
    state = edition.problem or (ran if edition.executed else "not run")
    minutes = "–" if edition.minutes is None else edition.minutes
    seconds = "–" if edition.seconds is None else f"{edition.seconds:.1f}"
    numbers = (minutes, seconds, edition.questions, edition.exercises, edition.wrong)
    cells = "".join(f"<td class='number'>{number}</td>" for number in numbers)
    return (
        f"<tr><th>{html.escape(edition.title)}</th>"
        f"<td>{links} · <a href='{name}.ipynb'>notebook</a></td>"
        f"{cells}<td class='{'failed' if edition.problem else 'fine'}'>{html.escape(state)}</td></tr>"
    )
