"""The reader's progress: which exercises are solved. A small JSON file that a person can read.

It is `progress.json` in the folder that LABKIT_HOME names, by default `.labkit` in the workbook's own folder.
Where that folder is another user's, or read-only (many share one checkout), it is `.labkit` in one's home.
"""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit import LabkitError
from labkit.teach.exercises import State, load, stems

COLUMNS = ("chapter", "exercise", "state", "at")
MARKS: dict[str, str] = {"correct": "✓", "incorrect": "✗", "not attempted": "○"}


class ProgressUnreadable(LabkitError):
    """The progress file is damaged. It was set aside, under the name in the message."""


@dataclass(frozen=True)
class Progress:
    """Chapters and the state of their exercises: ((chapter, ((exercise, state), …)), …).

    `when` has, for each chapter and exercise in the same order, when it was solved or last tried: UTC, as
    "2026-05-04T09:30:00Z", or "". A repr is the grid, a notebook shows a table that links to the chapters.

    What is exported has these columns, in this order, and a row for each exercise; it names nothing of the
    learner or the machine, so call the file after the learner:

        chapter     "05 rate_limiter"
        exercise    "boundary"
        state       "correct", "incorrect" or "not attempted"; what was solved once stays "correct"
        at          as in `when`

    An instructor who has collected such files reads them all into one table:

        files = Path("class").glob("*.csv")        # python -m labkit progress --csv anna.csv
        everybody = pd.concat({file.stem: pd.read_csv(file) for file in files}, names=["learner", None])
        everybody.groupby(["chapter", "exercise"], sort=False)["state"].value_counts().unstack(fill_value=0)
    """

    chapters: tuple[tuple[str, tuple[tuple[str, State], ...]], ...]
    when: tuple[tuple[str, ...], ...] = ()

    @property
    def solved(self) -> int:
        return sum(map(_solved, self.chapters))

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of an export."""
        times = self.when or tuple(("",) * len(row) for _, row in self.chapters)
        return [
            dict(zip(COLUMNS, (chapter, exercise, state, at), strict=True))
            for (chapter, row), whens in zip(self.chapters, times, strict=True)
            for (exercise, state), at in zip(row, whens, strict=True)
        ]

    @property
    def df(self) -> Any:
        """The rows as a pandas DataFrame; `at` is a time, or NaT."""
        import pandas as pd

        table = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return table.assign(at=pd.to_datetime(table["at"].replace("", None), utc=True))

    def to_json(self, file: str | Path | None = None) -> str:
        """{"format": 1, "solved": 3, "exercises": 36, "rows": [{"chapter": …}, …]}; and written to `file`."""
        whole = {"format": 1, "solved": self.solved, "exercises": len(self.rows), "rows": self.rows}
        return _written(json.dumps(whole, indent=2) + "\n", file)

    def to_csv(self, file: str | Path | None = None) -> str:
        """A line with the columns' names, and one for each row: UTF-8, for any spreadsheet; and to `file`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        return _written(text.getvalue(), file)

    def __repr__(self) -> str:
        width = max((len(chapter) for chapter, _ in self.chapters), default=0)
        lines = [f"{chapter:<{width}}  {self._cells(row)}" for chapter, row in self.chapters]
        return "\n".join([*lines, self._sum()])

    def _cells(self, row: tuple[tuple[str, State], ...]) -> str:
        return "  ".join(f"{MARKS[state]} {name}" for name, state in row)

    def _sum(self) -> str:
        return f"{self.solved} of {sum(len(row) for _, row in self.chapters)} solved"

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        heads = "".join(f"<th {left}>{head}</th>" for head in ("chapter", "solved", "exercises"))
        rows = "".join(
            f"<tr><th {left}>{_link(one[0])}</th><td>{_solved(one)} of {len(one[1])}</td>"
            f"<td {left}>{html.escape(self._cells(one[1]))}</td></tr>"
            for one in self.chapters
        )
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table><p>{self._sum()}</p>"


def _solved(chapter: tuple[str, tuple[tuple[str, State], ...]]) -> int:
    return sum(state == "correct" for _, state in chapter[1])


def _link(chapter: str) -> str:
    """To the notebook of that name, where it is one: as notebooks in one folder link to each other."""
    name, text = chapter.replace(" ", "_", 1), html.escape(chapter)
    return f"<a href='{html.escape(name)}.ipynb'>{text}</a>" if name[:2].isdecimal() else text


def _written(text: str, file: str | Path | None) -> str:
    """The text, after it has been written to `file`, if there is one. OSError where that cannot be."""
    if file is not None:
        Path(file).write_text(text, encoding="utf-8", newline="")
    return text


def progress(stem: str | None = None) -> Progress:
    """The grid of chapters and exercises, or the row of the one chapter `stem`: ✓ solved, ✗ tried, ○ not yet.

    `progress().to_csv("anna.csv")` and `.to_json(…)` export it, `.df` is a table (see `Progress`). Raises
    LookupError for a chapter that has no exercises. A damaged file is set aside with a sentence.
    """
    kept = _read_or_set_aside()
    chosen = stems() if stem is None else [stem]
    rows = sorted((_chapter(name), name, [e.name for e in load(name)]) for name in chosen)
    return Progress(
        tuple((chapter, tuple((e, _state(kept, name, e)) for e in names)) for chapter, name, names in rows),
        tuple(tuple(_when(kept, name, e) for e in names) for _, name, names in rows),
    )


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
            break
    else:
        folder = Path.cwd()
    return (folder if _is_ours(folder) else Path.home()) / ".labkit" / "progress.json"


def _is_ours(folder: Path) -> bool:
    """Whether this user owns it and may write there: one who may only write shares it with its owner."""
    mine = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    return mine and os.access(folder, os.W_OK)


def _chapter(stem: str) -> str:
    """`05 rate_limiter`, where the notebook of that name is beside the package; else the stem."""
    found = sorted((Path(__file__).parents[2] / "notebooks").glob(f"[0-9][0-9]_{stem}.ipynb"))
    return found[0].stem.replace("_", " ", 1) if found else stem


def _state(kept: dict[str, Any], stem: str, exercise: str) -> State:
    state: Any = kept.get(stem, {}).get(exercise, {}).get("state")
    return state if state in list(MARKS) else "not attempted"  # a list: it may be no text, and not hashable


def _when(kept: dict[str, Any], stem: str, exercise: str) -> str:
    """In UTC, whatever the clock of the machine says; "" where it is not known."""
    try:
        at = datetime.fromisoformat(kept.get(stem, {}).get(exercise, {})["at"])
    except (KeyError, TypeError, ValueError):
        return ""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
    """One process at a time, by a lock that ends with its holder; on Windows there is none."""
    path().parent.mkdir(parents=True, exist_ok=True)
    with path().with_name(".lock").open("w") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
