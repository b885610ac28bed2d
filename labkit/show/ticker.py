"""A method that is called every so often, in a thread that is gone when it is stopped, or its owner goes."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, cast


class Ticker:
    """Calls the bound method `beat` every `interval` seconds (0.1 or more) from `start()` to `stop()`.

    It also ends when `beat` returns False, when the object that `beat` belongs to is no longer used, and when
    Python ends. While it is stopped there is no thread. `beat` shall not raise.
    """

    def __init__(self, beat: Callable[[], Any], interval: float) -> None:
        if not interval >= 0.1:
            raise ValueError(f"interval is {interval!r}; it must be 0.1 s or more")
        self._beat, self._interval = weakref.WeakMethod(beat), interval
        self._owner = weakref.ref(cast(MethodType, beat).__self__)
        self._end: weakref.finalize[..., Any] | None = None
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Is there a thread that calls `beat`?"""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Call `beat` now, and then every `interval`; where it does so already, it begins anew."""
        self.stop()
        stopping = threading.Event()
        arguments = (self._beat, self._interval, stopping)
        thread = threading.Thread(target=_run, args=arguments, name="labkit-ticker", daemon=True)
        self._end = weakref.finalize(self._owner(), _stop, stopping, thread)
        self._thread = thread
        thread.start()

    def stop(self) -> None:
        """No more calls; when it returns, the thread is gone (unless `beat` itself has called it)."""
        if (end := self._end) is not None:
            end()


def _run(beat: weakref.WeakMethod[Any], interval: float, stopping: threading.Event) -> None:
    while not stopping.is_set():
        begin, act = time.monotonic(), beat()
        if act is None or act() is False:
            return
        del act  # or its owner would live as long as this thread
        stopping.wait(max(0.1, interval - (time.monotonic() - begin)))


def _stop(stopping: threading.Event, thread: threading.Thread) -> None:
    stopping.set()
    if thread is not threading.current_thread():
        thread.join()
