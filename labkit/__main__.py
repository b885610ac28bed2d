"""The command line: `python -m labkit doctor | audit | refresh | matrix | instructor | progress | reset`.

doctor [--json]             can the workbook run here, and on which Redis
audit [REDIS_URL] [--json]  review a Redis, changing nothing; the exit code says how bad it is
refresh [NOTEBOOK …]        execute chapters and store their outputs
matrix                      run every chapter and pattern on every server to be had here
instructor [NOTEBOOK …]     the chapters solved, with what a class needs, and as slides
progress [--json | --csv]   which exercises are solved; for an instructor, as a file
reset [--progress]          remove the workbook's keys, and only those
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from labkit import LabkitError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What goes wrong is one sentence with its remedy, on stderr."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except LabkitError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        if error.filename is None:  # no file: a broken pipe, say
            raise
        what = f"{error.filename} cannot be used: {error.strerror or error}."
        print(f"{what} Remedy: name a folder that you may write to, or work in one.", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m labkit", description="Tools of the Redis patterns workbook."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    doctor = commands.add_parser(
        "doctor", help="what Redis would be used and why; problems, with their remedies"
    )
    doctor.add_argument("--json", action="store_true", help="the same as JSON")
    doctor.set_defaults(run=_doctor)

    _add_audit(commands)

    refresh = commands.add_parser(
        "refresh", help="execute chapters in a fresh kernel and store their outputs"
    )
    refresh.add_argument("notebooks", nargs="*", type=Path, help="default: every chapter")
    refresh.set_defaults(run=_refresh)

    _add_matrix(commands)
    _add_instructor(commands)
    _add_progress(commands)

    reset = commands.add_parser(
        "reset", help="remove the workbook's keys from the connected Redis, and only those"
    )
    reset.add_argument("--progress", action="store_true", help="forget which exercises are solved, too")
    reset.set_defaults(run=_reset)
    return parser


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = commands.add_parser(
        "audit",
        help="review any Redis from 7.0 on, changing nothing: what is wrong, the evidence, the fix",
        epilog="Exit code: 0 nothing found or only notices, 1 warnings, 2 something critical (or a wrong "
        "command line), 3 no server could be reviewed: none answers, it refuses the log-in, or it is older "
        "than 7.0. What could not be seen does not count; it is listed.",
    )
    audit.add_argument("url", nargs="?", metavar="REDIS_URL", help="default: what connect() would find")
    audit.add_argument("--json", action="store_true", help="the same as JSON")
    audit.set_defaults(run=_audit)


def _add_progress(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    progress = commands.add_parser("progress", help="which exercises are solved")
    forms = progress.add_mutually_exclusive_group()
    for form in ("json", "csv"):
        said = f"as {form.upper()}: to FILE, else printed"
        forms.add_argument(f"--{form}", nargs="?", const="-", metavar="FILE", help=said)
    progress.set_defaults(run=_progress)


def _add_matrix(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    matrix = commands.add_parser(
        "matrix",
        help="run the chapters and the patterns' tests on every server to be had here; a table",
        epilog="Exit code: 1 if anything failed, else 0. Logs are kept in build/matrix/.",
    )
    matrix.add_argument(
        "--server", action="append", default=[], metavar="PATH", help="a further one; repeatable"
    )
    matrix.add_argument("--servers", nargs="+", default=[], metavar="WORD", help="only these: 7.0 valkey")
    matrix.add_argument("--chapters", nargs="+", default=[], metavar="NAME", help="only these: 05 lock")
    matrix.add_argument(
        "--no-tests", action="store_true", help="chapters only, not the tests of the patterns"
    )
    matrix.add_argument("--jobs", type=_count, default=2, help="how many run at once (default: 2)")
    matrix.add_argument("--json", action="store_true", help="the same as JSON")
    matrix.set_defaults(run=_matrix)


def _add_instructor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    instructor = commands.add_parser(
        "instructor",
        help="the chapters solved, with timings, questions and known mistakes, and as slides",
        epilog="Exit code: 0 if the solutions of every chapter ran green (or were not run), else 1.",
    )
    instructor.add_argument("notebooks", nargs="*", type=Path, help="default: every chapter")
    instructor.add_argument("--to", type=Path, metavar="FOLDER", help="default: build/instructor")
    instructor.add_argument(
        "--no-run", action="store_true", help="take the stored outputs, execute nothing (no timings)"
    )
    instructor.add_argument(
        "--no-grade", action="store_true", help="do not grade the known-wrong answers (minutes, for all)"
    )
    instructor.set_defaults(run=_instructor)


def _doctor(chosen: argparse.Namespace) -> int:
    from labkit.rig.doctor import run

    code: int = run(as_json=chosen.json)
    return code


def _audit(chosen: argparse.Namespace) -> int:
    from labkit.rig.audit import run

    code: int = run(chosen.url, as_json=chosen.json)
    return code


def _refresh(chosen: argparse.Namespace) -> int:
    from labkit.teach.refresh import refresh

    for chapter in _chapters(chosen):
        print(refresh(chapter), flush=True)
    return 0


def _chapters(chosen: argparse.Namespace) -> list[Path]:
    """The notebooks that were named, else every chapter. Raises LabkitError where there is none."""
    chapters: list[Path] = chosen.notebooks or sorted(Path("notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not chapters:
        raise LabkitError(
            "There is no chapter here. Remedy: run this in the workbook's folder, or name a notebook."
        )
    return chapters


def _instructor(chosen: argparse.Namespace) -> int:
    from labkit.teach import instructor

    folder = chosen.to or instructor.FOLDER
    return instructor.run(_chapters(chosen), folder, not chosen.no_run, not chosen.no_grade)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _matrix(chosen: argparse.Namespace) -> int:
    from labkit.teach.matrix import run

    code: int = run(
        chosen.servers,
        chosen.chapters,
        further=chosen.server,
        tests=not chosen.no_tests,
        at_once=chosen.jobs,
        as_json=chosen.json,
    )
    return code


def _progress(chosen: argparse.Namespace) -> int:
    from labkit.teach.progress import progress

    file, grid = chosen.json or chosen.csv, progress()
    if file is None:
        print(grid)
        return 0
    try:
        text = (grid.to_json if chosen.json else grid.to_csv)(None if file == "-" else file)
    except OSError as error:
        raise LabkitError(f"{file} cannot be written: {error.strerror}. Remedy: name another file.") from None
    solved = "1 exercise is" if grid.solved == 1 else f"{grid.solved} exercises are"
    sys.stdout.write(text if file == "-" else f"{file} written: {solved} solved.\n")
    return 0


def _reset(chosen: argparse.Namespace) -> int:
    from redis.exceptions import RedisError

    from labkit import PREFIX
    from labkit.rig.connection import connect, reset

    r = connect()
    try:
        gone = reset(r)
    except RedisError as error:
        raise LabkitError(
            f"The keys could not be removed: {str(error).rstrip('.')}. "
            "Remedy: let REDIS_URL name a server that takes writes."
        ) from None
    print(f"{gone} key{'' if gone == 1 else 's'} that began with {PREFIX} removed; no other key was touched.")
    if chosen.progress:
        from labkit.teach.progress import forget

        print("Progress forgotten." if forget() else "There was no progress to forget.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
