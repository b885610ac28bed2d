"""Child processes that never outlive this one, however it ends: return, exception, crash or SIGKILL.

A small shell holds the reading end of a pipe whose only writer is this process. When the operating system
closes that pipe, the shell kills every process on its list and removes the folder that they used. Shell and
children stand in sessions of their own, so that an interrupt (Ctrl-C, the stop button) meant for a cell does
not reach them. On Windows, which has no such shell, a small Python program does the same, and what it
watches over is the folder: servers are in Docker there (labkit.rig.container).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import ClassVar, Literal

Signal = Literal["KILL", "TERM", "STOP", "CONT"]

_WATCHDOG = """
trap '' INT HUP TERM
pids=
while read -r what pid; do
  case $what in
    +) pids="$pids $pid" ;;
    -) rest=; for p in $pids; do [ "$p" = "$pid" ] || rest="$rest $p"; done; pids=$rest ;;
  esac
done
[ -z "$pids" ] || kill -9 $pids
rm -rf "$1" || { sleep 2; rm -rf "$1"; } # a server in a container may still have written into it
"""
# The child reports its own pid before it becomes redis-server: there is no moment at which it is unknown.
_LAUNCH = 'echo "+ $$" >&0; exec "$@" </dev/null'

_PROGRAM = """
import os, shutil, signal, sys, time
for name in "SIGINT", "SIGBREAK", "SIGHUP", "SIGTERM":
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
pids = []
for line in sys.stdin:
    what, pid = line.split()
    pids = [*pids, int(pid)] if what == "+" else [one for one in pids if one != int(pid)]
for pid in pids:
    try:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    except OSError:
        pass
for pause in 0, 2:
    time.sleep(pause)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
"""
"""The same as _WATCHDOG, where there is no shell. (Windows has one way to end a process: that of SIGKILL.)"""


def listed(command: list[str]) -> list[str]:
    """The command with which a child puts itself on the list first; its stdin is the watchdog's `pipe`."""
    return ["/bin/sh", "-c", _LAUNCH, "sh", *command]


def _guard() -> list[str]:
    """The command that watches over this process; a folder is its last argument."""
    if os.name == "posix":
        return ["/bin/sh", "-c", _WATCHDOG, "labkit-watchdog"]
    return [sys.executable, "-c", _PROGRAM]


class Child(subprocess.Popen[bytes]):
    """A child process; `signal()` is the part of it that a process in a container has too."""

    def signal(self, name: Signal) -> None:
        """Send it; after STOP, return when it stands still. No effect after its end."""
        self.send_signal(getattr(signal, f"SIG{name}"))
        if name == "STOP" and hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):  # it had ended, and was waited for
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class Watchdog:
    """One shell per process; on the end of this process it kills what is on its list."""

    listen: ClassVar[dict[str, str]] = {"bind": "127.0.0.1"}
    """What a server has to be told, to be reached at 127.0.0.1."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="labkit-")
        self.shell = subprocess.Popen(
            [*_guard(), self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.shell.stdin is not None
        self.pipe = self.shell.stdin.fileno()

    def inside(self, text: str) -> str:
        """A path, or a text with paths, as a child knows it: the same."""
        return text

    def launch(self, command: list[str], log: Path) -> Child:
        """Start a child that is on the list before its first instruction; what it prints goes to `log`.

        Wait for its end, then `forget()` it.
        """
        with log.open("ab") as output:
            return Child(
                listed(command),
                stdin=self.pipe,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )

    def forget(self, pid: int) -> None:
        """Take an ended child off the list, since its pid may now be given to a stranger.

        No effect in a forked child, which has closed the pipe: another file may have its number there.
        """
        if self is _current:
            os.write(self.pipe, f"- {pid}\n".encode())

    def close(self) -> None:
        """End what is left now, and the folder."""
        assert self.shell.stdin is not None
        self.shell.stdin.close()
        self.shell.wait()


_lock = threading.Lock()
_current: Watchdog | None = None


def get() -> Watchdog:
    """The watchdog of this process, started at its first use."""
    global _current
    with _lock:
        if _current is None:
            _current = Watchdog()
        return _current


@atexit.register
def _end() -> None:
    global _current
    if _current is not None:
        _current.close()
        _current = None


def _disown() -> None:
    """In a forked child: the children belong to the parent, and the child must not hold the pipe open."""
    global _current
    if _current is not None:
        os.close(_current.pipe)
        _current = None


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_disown)
