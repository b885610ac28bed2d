"""Newer commands beside the classic pattern, on a server that has them: `uv run python tests/bench_newer.py`.

    LABKIT_NEWER_REDIS=redis-server uv run python tests/bench_newer.py --store

It runs each chapter that compares two ways, from its first cell to its last, on the server that
LABKIT_NEWER_REDIS names (Redis 8.6 or later), and prints every comparison. With `--store` the newer ways go
to notebooks/measured/NN_stem_newer.json, each with the code that ran: the chapters show them where the server
at hand lacks the command. A way whose answer is not that of the classic one is never stored.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat

from labkit.teach.refresh import execute, read

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

COLLECT = """
import json as _json
from labkit.rig.newer import SideBySide as _SideBySide
_found = [one for one in list(globals().values()) if isinstance(one, _SideBySide)]
_found = {one.newer.command: one for one in _found if one.new}
for _one in _found.values():
    print(_one, end="\\n\\n")
_runs = {name: _one.new.record() for name, _one in _found.items()}
for name, _one in _found.items():
    _runs[name] |= {"same": _one.same, "here": not _one.new.recorded}
display({"application/json": _runs}, raw=True)
"""
"""A last cell: what the chapter has compared, as it shows it, and as data."""


def chapters() -> list[Path]:
    """Those that compare two ways; where the newer one is only described, there is nothing to record."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return [path for path in found if "recorded=" in path.read_text(encoding="utf-8")]


def stored(chapter: Path) -> Path:
    return NOTEBOOKS / "measured" / f"{chapter.stem}_newer.json"


def run(chapter: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The comparisons as text, and the runs of the newer ways by their command."""
    notebook = copy.deepcopy(read(chapter))
    notebook.cells.append(nbformat.v4.new_code_cell(COLLECT))  # type: ignore[no-untyped-call]
    execute(notebook, chapter.parent, chapter.name)
    outputs = notebook.cells[-1].outputs
    text = "".join(output.get("text", "") for output in outputs)
    runs = next(output.data["application/json"] for output in outputs if "data" in output)
    return text, dict(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--store", action="store_true", help="keep the results for the chapters")
    parser.add_argument("chapters", nargs="*", help="a part of their names; all that compare, unless told")
    options = parser.parse_args()
    newer = os.environ.get("LABKIT_NEWER_REDIS")
    if not newer:
        sys.exit("LABKIT_NEWER_REDIS does not name a redis-server; it should be Redis 8.6 or later.")
    os.environ["LABKIT_REDIS_SERVER"] = newer
    for chapter in chapters():
        if options.chapters and not any(part in chapter.name for part in options.chapters):
            continue
        text, runs = run(chapter)
        print(f"{chapter.name}\n\n{text}", flush=True)
        odd = [command for command, one in runs.items() if not (one.pop("here") & one.pop("same"))]
        if odd:
            sys.exit(
                f"{chapter.name}: {odd} did not run on {newer}, or answered otherwise; nothing is stored."
            )
        if options.store:
            runs = {command: runs[command] for command in sorted(runs)}
            stored(chapter).write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
