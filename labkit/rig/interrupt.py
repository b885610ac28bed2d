"""What a reader sees who stops a long cell: one sentence in place of redis-py's stack."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any


def say_where(shell: Any) -> None:
    """Let IPython answer the stop button with the line of the cell at which it was.

    Servers, links and recordings of `with` blocks have ended by then: the interrupt went through them.
    """
    shell.set_custom_exc((KeyboardInterrupt,), _show)


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, stack: TracebackType, tb_offset: Any = None
) -> list[str]:
    render = getattr(error, "_render_traceback_", None)
    text: list[str] = render() if render else [_sentence(stack)]
    shell._showtraceback(kind, error, text)
    return text


def _sentence(stack: TracebackType) -> str:
    cells = [frame for frame in traceback.extract_tb(stack) if _is_cell(frame.filename)]
    where = f" at line {cells[-1].lineno}: {cells[-1].line}" if cells else ""
    return f"Interrupted{where}\nWhat `with` blocks had started has ended. Run the cell again, or go on."


def _is_cell(file: str) -> bool:
    """ipykernel gives a cell a file name with its own in it, IPython in a terminal `<ipython-input-…>`."""
    return "ipykernel_" in file or file.startswith("<ipython-input")
