"""Every chapter and every pattern's tests on every server to be had here, and one table of what came of it.

    uv run python -m labkit matrix
    uv run --group bench python -m labkit matrix --servers valkey 8.6 --chapters 05 08

What runs is a process of its own each, with the server that it is about and no other. `degraded` is what ends
well on a server without some newer command: the chapter says so in a sentence, or shows a run that took
place elsewhere. Nothing is left out silently: servers that are not here are told with what to do about it,
and skipped tests with their reason.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from labkit import LabkitError
from labkit.rig import table
from labkit.rig.server import ServerFailed
from labkit.rig.targets import Lacks, Missing, Target, chosen, find, lacking
from labkit.teach.refresh import read

PATTERNS = ("cache", "session", "rate_limiter", "pubsub", "stream", "lock", "leaderboard")
"""The stems whose tests run on every server: tests/test_lock.py, …"""

MINUTES = 20
"""The time limit of one chapter, or of the tests of one pattern."""

PYTEST = ("-m", "pytest", "-q", "-n0", "--color=no", "-p", "no:cacheprovider")
_PERSONAL = ("JPY_SESSION_NAME", "VSCODE_PID", "MPLBACKEND", "PYTEST_ADDOPTS")


class NothingToRun(LabkitError):
    """No chapter of that name, or no pytest; the message says what there is, or what to do."""


@dataclass(frozen=True)
class Result:
    """What came of one `part` ("05_rate_limiter" or "test_lock") on one `server`, after `seconds`.

    `why` is a sentence of what is missing or what failed, "" if passed; `skipped` has the reasons of skipped
    tests and how many each; `log` is the path of all that was printed.
    """

    server: str
    part: str
    state: Literal["passed", "degraded", "failed"]
    why: str
    skipped: dict[str, int]
    seconds: float
    log: str


@dataclass(frozen=True)
class Matrix:
    """All results, by server and part, in the order in which they are shown; and what was not found."""

    results: tuple[Result, ...]
    absent: tuple[Missing, ...] = ()

    @property
    def failed(self) -> bool:
        return any(result.state == "failed" for result in self.results)

    def _rows(self) -> list[list[str]]:
        servers = list(dict.fromkeys(result.server for result in self.results))
        states = {(result.part, result.server): result.state for result in self.results}
        parts = list(dict.fromkeys(result.part for result in self.results))
        return [["", *servers], *([part, *(states[part, server] for server in servers)] for part in parts)]

    def __repr__(self) -> str:
        return "\n\n".join(filter(None, [table.text(self._rows()), *self._notes()]))

    def _repr_html_(self) -> str:
        notes = "".join(f"<pre>{note}</pre>" for note in map(escape, self._notes()) if note)
        return table.html(self._rows()) + notes

    def _notes(self) -> list[str]:
        """What stands behind the words of the table, a paragraph for each of them."""
        notes = []
        for state in ("failed", "degraded"):
            lines = [f"  {one.server}, {one.part}: {one.why}" for one in self.results if one.state == state]
            notes.append("\n".join([f"{state}:", *lines]) if lines else "")
        skipped: dict[str, Counter[str]] = {}
        for one in self.results:
            for reason, count in one.skipped.items():
                skipped.setdefault(f"  {one.part}: {reason}", Counter())[one.server] += count
        lines = [f"{line} ({_listed(on)})" for line, on in skipped.items()]
        notes.append("\n".join(["skipped tests, and where how many:", *lines]) if lines else "")
        gone = [f"  {one}" for one in self.absent]
        notes.append("\n".join(["servers that were not found:", *gone]) if gone else "")
        return notes


def _listed(on: Counter[str]) -> str:
    return ", ".join(f"{server} × {count}" for server, count in on.items())


# What runs


@dataclass(frozen=True)
class Job:
    """One chapter, or the tests of one pattern, on one server. `lacks`: what is missing there, or "".

    `broken`: why that server cannot be run on at all, or "".
    """

    target: Target
    path: Path
    lacks: str
    newest: bool
    broken: str = ""

    @property
    def part(self) -> str:
        return self.path.stem

    def run(self, root: Path, folder: Path) -> Result:
        """Run it under pytest, as CI does, with its log in `folder`; nothing of the reader's is touched."""
        if self.broken:
            return Result(self.target.name, self.part, "failed", self.broken, {}, 0.0, "")
        folder.mkdir(parents=True, exist_ok=True)
        log, report = folder / f"{self.part}.log", folder / f"{self.part}.xml"
        report.unlink(missing_ok=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="labkit-") as home, log.open("w") as printed:
            environment = {**self.target.environment(), "LABKIT_HOME": home}
            environment = {name: value for name, value in environment.items() if name not in _PERSONAL}
            if self.newest:
                environment["LABKIT_NEWER_REDIS"] = self.target.binary
            command = [sys.executable, *PYTEST, f"--junitxml={report}", str(self.path)]
            try:
                code = subprocess.run(
                    command, cwd=root, env=environment, stdout=printed, stderr=printed, timeout=60 * MINUTES
                ).returncode
                failed = self._failure(report, code)
            except subprocess.TimeoutExpired:
                failed = f"it had not ended after {MINUTES} minutes"
        seconds, shown = time.monotonic() - began, str(log.relative_to(root))
        state: Literal["passed", "degraded", "failed"] = (
            "failed" if failed else "degraded" if self.lacks else "passed"
        )
        why = f"{failed}; see {shown}" if failed else self.lacks
        return Result(self.target.name, self.part, state, why, _skipped(report), round(seconds, 1), shown)

    def _failure(self, report: Path, code: int) -> str:
        """The first that failed, or "". That nothing ran is a failure, too."""
        if code == 0:
            ran = any(case.find("skipped") is None for case in _cases(report))
            return "" if ran else "every test was skipped"
        for case in _cases(report):
            if case.find("failure") is not None or case.find("error") is not None:
                return f"{case.get('name')}{self._source(case.get('name') or '')} is the first that failed"
        return "no test ran" if code == 5 else f"pytest ended with exit code {code}"

    def _source(self, name: str) -> str:
        """The first line of a chapter's cell: (`r = labkit.connect()`)."""
        number = re.fullmatch(r"Cell (\d+)", name)
        if self.path.suffix != ".ipynb" or number is None:
            return ""
        cells = [cell.source for cell in read(self.path).cells if cell.cell_type == "code"]
        first, *_ = cells[int(number[1])].strip().split("\n")
        return f" (`{first}`)"


def _cases(report: Path) -> list[ElementTree.Element]:
    """Of each test what pytest wrote; none where it did not come so far."""
    with suppress(OSError, ElementTree.ParseError):
        return list(ElementTree.parse(report).iter("testcase"))
    return []


def _skipped(report: Path) -> dict[str, int]:
    reasons = [case.find("skipped") for case in _cases(report)]
    return dict(Counter(one.get("message", "") for one in reasons if one is not None))


def plan(
    root: Path, targets: Sequence[Target], chapters: Sequence[str] = (), *, tests: bool = True
) -> list[Job]:
    """The jobs, in the order of the table: of each server the chapters, then the tests of the patterns.

    `chapters` narrows both to these: numbers or stems, `05` or `rate_limiter`. Raises NothingToRun for one
    that is not in the notebooks folder of `root`, or where there is none at all.
    """
    there = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    names = {path: {path.stem, *path.stem.split("_", 1)} for path in there}
    unknown = [name for name in chapters if not any(name in known for known in names.values())]
    if unknown or not there:
        known = ", ".join(path.stem for path in there) or "none; run this in the workbook's folder"
        raise NothingToRun(f"No chapter {', '.join(unknown) or 'is here'}. Chapters: {known}.")
    chosen = [path for path in there if not chapters or names[path] & set(chapters)]
    stems = [path.stem.partition("_")[2] for path in chosen]
    suites = [
        root / "tests" / f"test_{stem}.py" for stem in PATTERNS if tests and (not chapters or stem in stems)
    ]
    parts = [*((path, "chapter") for path in chosen), *((path, "tests") for path in suites if path.exists())]
    jobs = []
    for target in targets:
        broken, lacks = "", Lacks({}, {}, False)
        try:
            lacks = lacking(target, {*stems, *PATTERNS})
        except ServerFailed as error:  # the others are run on all the same
            broken = " ".join(str(error).split())
        for path, kind in parts:
            gone = lacks.chapters if kind == "chapter" else lacks.patterns
            stem = path.stem.partition("_")[2]
            jobs.append(Job(target, path, gone.get(stem, ""), lacks.newest, broken))
    return jobs


def matrix(jobs: Sequence[Job], root: Path, *, at_once: int = 2) -> Matrix:
    """Run them, `at_once` at a time, telling on stderr of each as it ends. Logs: build/matrix/<server>/."""
    done: dict[Job, Result] = {}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            running = {pool.submit(job.run, root, _folder(root, job.target)): job for job in jobs}
            for ended in as_completed(running):
                done[running[ended]] = one = ended.result()
                why = f": {one.why}" if one.why else ""
                line = f"[{len(done):>2}/{len(jobs)}] {one.server}, {one.part}: {one.state}{why}"
                print(f"{line} ({one.seconds:.0f} s)", file=sys.stderr, flush=True)
        except BaseException:  # an interrupt, too: what has not begun does not begin
            pool.shutdown(cancel_futures=True)
            raise
    return Matrix(tuple(done[job] for job in jobs))


def _folder(root: Path, target: Target) -> Path:
    return root / "build" / "matrix" / target.name.lower().replace(" ", "-")


def run(
    servers: Sequence[str] = (),
    chapters: Sequence[str] = (),
    *,
    further: Sequence[str] = (),
    tests: bool = True,
    at_once: int = 2,
    as_json: bool = False,
) -> int:
    """Find, run and print; 1 if anything failed, else 0. The folder of the workbook is the working directory.

    Raises NothingToRun, NoSuchServer or ServerFailed for what is asked for and is not there, and ValueError
    for `at_once` below 1.
    """
    if at_once < 1:
        raise ValueError(f"jobs is {at_once}; it must be at least 1")
    if not (find_spec("pytest") and find_spec("nbval") and find_spec("xdist")):
        raise NothingToRun("pytest, nbval or pytest-xdist is not installed. Remedy: `uv sync`.")
    root = Path.cwd()
    found, absent = find(further)
    for one in absent:
        print(f"not found: {one}", file=sys.stderr, flush=True)
    targets = chosen(found, servers)
    for target in targets:
        print(target, file=sys.stderr, flush=True)
    whole = replace(
        matrix(plan(root, targets, chapters, tests=tests), root, at_once=at_once), absent=tuple(absent)
    )
    if as_json:
        told = {"failed": whole.failed, "servers": [asdict(target) for target in targets]}
        told |= {
            "results": [asdict(one) for one in whole.results],
            "absent": [one._asdict() for one in absent],
        }
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print(whole)
    return int(whole.failed)
