"""The command line: `python -m labkit doctor | audit | refresh | progress | reset`.

doctor [--json]             can the workbook run here, and on which Redis
audit [REDIS_URL] [--json]  review any Redis, changing nothing; the exit code says how bad it is
refresh [NOTEBOOK …]        execute chapters and store their outputs
progress                    which exercises are solved
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

    audit = commands.add_parser(
        "audit",
        help="review any Redis, changing nothing: what is wrong, the evidence, the fix",
        epilog="Exit code: 0 nothing found or only notices, 1 warnings, 2 something critical (or a wrong "
        "command line), 3 no server answered. What could not be seen does not count; it is listed.",
    )
    audit.add_argument("url", nargs="?", metavar="REDIS_URL", help="default: what connect() would find")
    audit.add_argument("--json", action="store_true", help="the same as JSON")
    audit.set_defaults(run=_audit)

    refresh = commands.add_parser(
        "refresh", help="execute chapters in a fresh kernel and store their outputs"
    )
    refresh.add_argument("notebooks", nargs="*", type=Path, help="default: every chapter")
    refresh.set_defaults(run=_refresh)

    progress = commands.add_parser("progress", help="which exercises are solved")
    progress.set_defaults(run=_progress)

    reset = commands.add_parser(
        "reset", help="remove the workbook's keys from the connected Redis, and only those"
    )
    reset.add_argument("--progress", action="store_true", help="forget which exercises are solved, too")
    reset.set_defaults(run=_reset)
    return parser


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

    chapters = chosen.notebooks or sorted(Path("notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not chapters:
        raise LabkitError(
            "There is no chapter here. Remedy: run this in the workbook's folder, or name a notebook."
        )
    for chapter in chapters:
        print(refresh(chapter), flush=True)
    return 0


def _progress(_: argparse.Namespace) -> int:
    from labkit.teach.progress import progress

    print(progress())
    return 0


def _reset(chosen: argparse.Namespace) -> int:
    from labkit import PREFIX
    from labkit.rig.connection import connect, reset

    r = connect()
    gone = reset(r)
    print(f"{gone} key{'' if gone == 1 else 's'} that began with {PREFIX} removed; no other key was touched.")
    if chosen.progress:
        from labkit.teach.progress import forget

        print("Progress forgotten." if forget() else "There was no progress to forget.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
