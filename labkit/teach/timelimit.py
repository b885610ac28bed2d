"""A time limit on code that may not want to end: a busy loop, a sleep, a read that nobody answers."""

from __future__ import annotations

import ctypes
import dis
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

KNOCK = 0.25
"""Seconds from one attempt to break the code off to the next."""

PATIENT = 3
"""So many attempts may be swallowed; then they come thousands of times a second, at random moments.

A loop around `try: … except: pass` is inside its `try` most of the time, but not all of it: soon one of them
meets it outside.
"""


class TimeUp(BaseException):
    """The time limit is over; `stack` is where the code was. No Exception: `except Exception` misses it."""

    def __init__(self, stack: traceback.StackSummary | None = None) -> None:
        super().__init__("time limit")
        self.stack = stack or traceback.StackSummary()


def limited(seconds: float, work: Callable[[], None], unblock: Callable[[], None]) -> None:
    """Run `work()`; after `seconds` it is broken off, and TimeUp is raised here.

    In the main thread a timer signal does it, wherever Python code is, in a socket read too. Code that
    swallows TimeUp (`except:` in an endless loop) meets it again and again, until it meets it outside of its
    `try`. In another thread, as in a widget's callback, TimeUp is put into the thread, after `unblock()`,
    which must end its reads; there, code that swallows it is not stopped. Code in C that does not return to
    Python, a huge `sum(range(...))`, is broken off when it returns.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        _Alarm(seconds).run(work)
    else:
        _by_thread(seconds, work, unblock)


class _Alarm:
    """Breaks code of the main thread off by SIGALRM."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.first: traceback.StackSummary | None = None
        self.knocks = 0

    def run(self, work: Callable[[], None]) -> None:
        self.guard: FrameType | None = sys._getframe()
        before = signal.signal(signal.SIGALRM, self._ring)
        self.hook, sys.unraisablehook = sys.unraisablehook, self._lost
        try:
            signal.setitimer(signal.ITIMER_REAL, self.seconds, KNOCK)
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            # A last signal may still be on its way to another thread; by default it would end the process.
            signal.signal(signal.SIGALRM, before if callable(before) else _unheard)
            sys.unraisablehook = self.hook
            self.guard = None
        if self.first:
            raise TimeUp(self.first)

    def _ring(self, _: int, frame: FrameType | None) -> None:
        if frame is self.guard:  # the work is done or not begun: nothing to break off
            return
        if frame is None or _untouchable(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.001, KNOCK)
            return
        self.knocks += 1
        self.first = self.first or traceback.extract_stack(frame)
        if self.knocks > PATIENT:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 200e-6), KNOCK)
        raise TimeUp(self.first)

    def _lost(self, lost: sys.UnraisableHookArgs) -> None:
        """Where nothing can be raised, as in a weakref's callback, TimeUp is lost: nobody need be told."""
        if not issubclass(lost.exc_type, TimeUp):
            self.hook(lost)


def _unheard(*_: object) -> None:
    """What an alarm that comes too late does: nothing."""


def _untouchable(frame: FrameType) -> bool:
    """Where it would be lost: in a finalizer, and while a lost one is told of. And hiredis 3 ends the process
    if writing a number fails.
    """
    if frame.f_code.co_name == "pack" and frame.f_globals.get("__name__") == "redis.connection":
        return True
    codes = (inner.f_code for inner, _ in traceback.walk_stack(frame))
    return any(code.co_name == "__del__" or code is _Alarm._lost.__code__ for code in codes)


def is_library(file: str) -> bool:
    """Is this file labkit's, of an installed package, or of Python itself, rather than the reader's?"""
    path = Path(file)
    rooms = (Path(__file__).parents[1], Path(dis.__file__).parent)
    return "site-packages" in path.parts or any(path.is_relative_to(room) for room in rooms)


class _Arrived(BaseException):
    """Raised here, and caught here."""


def let_arrive() -> None:
    """Let an exception for this thread arrive, and be over.

    Python 3.11 remembers that one is on its way until one has arrived, also if it was taken back, or if its
    thread had ended; until then each new thread that is profiled hangs at its first line.
    """
    here = ctypes.c_ulong(threading.get_ident())
    try:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(here, ctypes.py_object(_Arrived))
        while True:
            pass
    except _Arrived:
        pass


def _by_thread(seconds: float, work: Callable[[], None], unblock: Callable[[], None]) -> None:
    thread = threading.get_ident()
    done = threading.Event()
    lock = threading.Lock()
    late = False

    def raise_there(error: type[BaseException] | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))

    def watch() -> None:
        nonlocal late
        while not done.wait(KNOCK if late else seconds):
            if not late:
                late = True
                unblock()
            with lock:
                if not done.is_set():
                    raise_there(TimeUp)

    watcher = threading.Thread(target=watch, name="labkit time limit", daemon=True)
    watcher.start()
    try:
        work()
    except BaseException:
        if not late:
            raise
    finally:
        with lock:
            done.set()
            raise_there(None)
        watcher.join()
        let_arrive()
    if late:
        raise TimeUp
