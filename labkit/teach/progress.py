"""The reader's progress: which exercises are solved. A small JSON file that a person can read.

It is `progress.json` in the folder that LABKIT_HOME names, by default `.labkit` in the workbook's own folder.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit import LabkitError
from labkit.teach.exercises import State, load, stems

MARKS: dict[str, str] = {"correct": "✓", "incorrect": "✗", "not attempted": "○"}


class ProgressUnreadable(LabkitError):
    """The progress file is damaged. It was set aside, under the name in the message."""


@dataclass(frozen=True)
class Progress:
    """Chapters and the state of their exercises: ((chapter, ((exercise, state), ...)), ...)."""

    chapters: tuple[tuple[str, tuple[tuple[str, State], ...]], ...]

    @property
    def solved(self) -> int:
        return sum(state == "correct" for _, row in self.chapters for _, state in row)

    def __repr__(self) -> str:
        width = max((len(chapter) for chapter, _ in self.chapters), default=0)
        lines = [f"{chapter:<{width}}  {self._cells(row)}" for chapter, row in self.chapters]
        return "\n".join([*lines, self._sum()])

    def _cells(self, row: tuple[tuple[str, State], ...]) -> str:
        return "  ".join(f"{MARKS[state]} {name}" for name, state in row)

    def _sum(self) -> str:
        return f"{self.solved} of {sum(len(row) for _, row in self.chapters)} solved"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(chapter)}</th>"
            + "".join(
                f"<td style='text-align:left'>{MARKS[state]} {html.escape(name)}</td>" for name, state in row
            )
            + "</tr>"
            for chapter, row in self.chapters
        )
        return f"<table>{rows}</table><p>{self._sum()}</p>"


def progress(stem: str | None = None) -> Progress:
    """The grid of chapters and exercises, or the row of the one chapter `stem`: ✓ solved, ✗ tried, ○ not yet.

    Raises LookupError for a chapter that has no exercises. A damaged file is set aside with a sentence.
    """
    kept = _read_or_set_aside()
    chosen = stems() if stem is None else [stem]
    rows = [
        (_chapter(name), tuple((e.name, _state(kept, name, e.name)) for e in load(name))) for name in chosen
    ]
    return Progress(tuple(sorted(rows)))


def record(stem: str, exercise: str, state: State) -> None:
    """Keep a verdict. What was solved once stays solved.

    Kernels that write at once lose nothing: each reads and writes under a lock, and the file is replaced in
    one step. A folder that cannot be written costs a sentence, never the reader's cell.
    """
    try:
        with _locked():
            kept = _read_or_set_aside()
            entry = kept.setdefault(stem, {}).setdefault(exercise, {})
            if entry.get("state") != "correct":
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                entry.update(state=state, at=now)
                _write(kept)
    except OSError as error:
        why = error.strerror or error
        print(
            f"(This result was not kept: {why}. Remedy: let LABKIT_HOME name a folder that you can write to.)"
        )


def forget() -> bool:
    """Remove the progress file; says whether there was one."""
    try:
        path().unlink()
    except FileNotFoundError:
        return False
    return True


def path() -> Path:
    """Where the progress file is, or would be."""
    if home := os.environ.get("LABKIT_HOME"):
        return Path(home) / "progress.json"
    for folder in [Path.cwd(), *Path.cwd().parents]:
        project = folder / "pyproject.toml"
        if project.is_file() and "labkit" in project.read_text(encoding="utf-8", errors="replace"):
            return folder / ".labkit" / "progress.json"
    return Path.cwd() / ".labkit" / "progress.json"


def _chapter(stem: str) -> str:
    """`05 rate_limiter`, where the notebook of that name is beside the package; else the stem."""
    found = sorted((Path(__file__).parents[2] / "notebooks").glob(f"[0-9][0-9]_{stem}.ipynb"))
    return found[0].stem.replace("_", " ", 1) if found else stem


def _state(kept: dict[str, Any], stem: str, exercise: str) -> State:
    state = kept.get(stem, {}).get(exercise, {}).get("state")
    return state if state in MARKS else "not attempted"


def _read() -> dict[str, Any]:
    try:
        kept = json.loads(path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ProgressUnreadable(str(error)) from None
    shape = isinstance(kept, dict) and all(
        isinstance(chapter, dict) and all(isinstance(entry, dict) for entry in chapter.values())
        for chapter in kept.values()
    )
    if not shape:
        raise ProgressUnreadable("not a table of chapters and exercises")
    return dict(kept)


def _read_or_set_aside() -> dict[str, Any]:
    try:
        return _read()
    except ProgressUnreadable:
        aside = path().with_suffix(".damaged.json")
        with contextlib.suppress(OSError):
            path().replace(aside)
        print(f"(The progress file was damaged; it is now {aside.name}, and a new one begins.)")
    except OSError as error:
        why = error.strerror or error
        print(f"(The progress file cannot be read: {why}. Remedy: check its owner and its rights.)")
    return {}


def _write(kept: dict[str, Any]) -> None:
    target = path()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".progress-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=2, sort_keys=True, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One process at a time, by a lock that ends with its holder."""
    import fcntl

    path().parent.mkdir(parents=True, exist_ok=True)
    with path().with_name(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
