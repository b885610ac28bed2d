"""A progress bar that is there only while someone watches, and leaves nothing behind."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from html import escape
from typing import Any

import labkit


def bar(iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str = "") -> Any:
    """A tqdm bar where a person watches and the work takes over half a second; else silent.

    `for x in bar(things)`, or `with bar(total=100) as b: b.update()`. It goes when the work ends, also by an
    exception or an interrupt; it starts no thread.
    """
    unseen = not labkit.in_browser()
    return _kind()(
        iterable, total=total, desc=desc, delay=0.5, disable=unseen, leave=False, file=io.StringIO()
    )


@cache
def _kind() -> type[Any]:
    """tqdm, drawn as an output of the cell that is emptied at the end (its own widget would stay)."""
    from tqdm.std import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0
        handle: Any = None

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            from IPython.display import DisplayHandle

            self.ncols = 80
            text = str(self) if msg is None else msg
            data = {"text/html": f'<pre style="margin: 0">{escape(text)}</pre>' if text else ""}
            if self.handle is not None:
                self.handle.update(data, raw=True)
            elif text:
                new: Any = DisplayHandle
                self.handle = new()
                self.handle.display(data, raw=True)
            return True

    return Bar
