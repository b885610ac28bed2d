"""Run chapters in a fresh kernel and store their outputs: the outputs are what the tests compare.

uv run python -m labkit refresh notebooks/05*.ipynb
"""

from __future__ import annotations

import atexit
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from labkit import LabkitError
from labkit.rig.connection import EMBEDDED

CELL_SECONDS = 60
"""The time limit of a cell, as in the tests."""

STRIPPED = [
    "metadata.signature",
    "metadata.widgets",
    "cell.metadata.collapsed",
    "cell.metadata.ExecuteTime",
    "cell.metadata.execution",
    "cell.metadata.heading_collapsed",
    "cell.metadata.hidden",
    "cell.metadata.scrolled",
]
"""What the command line of nbstripout removes beside outputs."""

_PERSONAL = ("JPY_SESSION_NAME", "VSCODE_PID", "MPLBACKEND", "IPYKERNEL_CELL_NAME")
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class RefreshFailed(LabkitError):
    """A chapter could not be executed to its end, or not be stored; its file is as it was."""


def refresh(notebook: Path) -> str:
    """Execute the chapter at `notebook` in a fresh kernel and store its outputs; returns a line on the run.

    The kernel runs in the notebook's folder, as under JupyterLab, on a Redis of its own, also where the
    container runs, and with nobody's progress. The file is replaced in one step, and only if every cell went
    well (cells tagged `raises-exception` may fail). It holds what nbstripout with --keep-output --keep-count
    --keep-id leaves, so two refreshes differ in measured outputs only.

    Raises RefreshFailed, naming the cell that fails; with the remedy where nbstripout is missing.
    """
    strip = _stripper()
    chapter = read(notebook)
    began = time.monotonic()
    execute(chapter, notebook.parent, notebook.name)
    seconds = time.monotonic() - began
    store(strip(tidy(chapter)), notebook)
    count = sum(cell.cell_type == "code" for cell in chapter.cells)
    return f"{notebook.name}: {count} code cells, {seconds:.1f} s"


def read(notebook: Path) -> Any:
    """The notebook at that path. Raises RefreshFailed where there is none."""
    try:
        return nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise RefreshFailed(
            f"{notebook}: there is no such file. Remedy: name a chapter, as notebooks/05*.ipynb"
        ) from None
    except Exception as error:
        raise RefreshFailed(f"{notebook}: is no notebook that can be read ({error})") from None


def execute(chapter: Any, folder: Path, name: str = "notebook", record_timing: bool = False) -> None:
    """Execute all cells of `chapter` in place, in a fresh kernel whose working directory is `folder`.

    With `record_timing`, each code cell's metadata hold its times, under `execution`.
    Raises RefreshFailed, naming the first cell that fails, or where the kernel does not start.
    """
    at = 0

    def begin(cell: Any, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    for cell in chapter.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    with tempfile.TemporaryDirectory(prefix="labkit-") as home:
        runner = NotebookClient(
            chapter,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=record_timing,
            coalesce_streams=True,
            store_widget_state=False,
            on_cell_execute=begin,
            resources={"metadata": {"path": str(folder)}},
        )
        runner.km = own_sockets(runner.create_kernel_manager(), home)
        try:
            with (Path(home) / "kernel.log").open("w") as log:
                runner.execute(env=_environment(home), stderr=log)
        except CellExecutionError as error:
            raise RefreshFailed(
                f"{name}: {_place(chapter, at)} failed: {error.ename}: {error.evalue}"
            ) from None
        except CellTimeoutError:
            raise RefreshFailed(
                f"{name}: {_place(chapter, at)} had not ended after {CELL_SECONDS} s."
            ) from None
        except DeadKernelError:
            raise RefreshFailed(f"{name}: the kernel died in {_place(chapter, at)}.") from None
        except RuntimeError as error:
            if at:  # a cell has begun: that is another matter
                raise
            atexit.unregister(runner._cleanup_kernel)  # nbclient 0.11 has cleaned up, and would fail at exit
            raise RefreshFailed(f"{name}: the kernel did not start ({error}).") from None


def own_sockets(manager: Any, folder: str) -> Any:
    """The manager of a kernel that is not started yet: it will speak by Unix sockets in a folder of its own.

    For TCP, ports are looked for that are free, and given up again for the kernel to take: meanwhile they may
    become somebody else's, a server's or any client's. A kernel whose port for IOPub or for heartbeats is
    taken hangs (ipykernel 7.4). Where there are no Unix sockets, as on Windows, or the path is too long for
    one (some 100 bytes): TCP.
    """
    file = str(Path(folder, "kernel.json"))
    if not hasattr(socket, "AF_UNIX") or os.name == "nt" or len(os.fsencode(f"{file}-ipc-5")) > 100:
        return manager
    manager.transport, manager.connection_file = "ipc", file
    return manager


def tidy(chapter: Any) -> Any:
    """Bare metadata; an expected error without its stack, which names paths of this machine."""
    chapter.metadata = nbformat.from_dict(_METADATA)  # type: ignore[no-untyped-call]
    chapter.nbformat_minor = max(5, chapter.nbformat_minor)
    for cell in chapter.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]
    return chapter


def store(chapter: Any, notebook: Path) -> None:
    """Replace the file in one step."""
    handle, name = tempfile.mkstemp(dir=notebook.parent, prefix=".refresh-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            nbformat.write(chapter, file)  # type: ignore[no-untyped-call]
        Path(name).chmod(notebook.stat().st_mode & 0o777 if notebook.exists() else 0o644)
        Path(name).replace(notebook)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _environment(home: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _PERSONAL} | {
        "LABKIT_HOME": home,
        "REDIS_URL": EMBEDDED,
    }


def _place(chapter: Any, index: int) -> str:
    cell = chapter.cells[index]
    first = cell.source.strip().splitlines()[0]
    return f"cell {index + 1} of {len(chapter.cells)} ({cell.get('id', 'no id')}, `{first}`)"


def _stripper() -> Callable[[Any], Any]:
    try:
        from nbstripout import strip_output
    except ImportError:
        raise RefreshFailed(
            "nbstripout is not installed. Remedy: `uv sync`, or `pip install nbstripout`."
        ) from None
    return lambda chapter: strip_output(chapter, True, True, True, extra_keys=STRIPPED)
