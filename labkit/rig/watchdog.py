"""Child processes that never outlive this one, however it ends: return, exception, crash or SIGKILL.

A small shell holds the reading end of a pipe whose only writer is this process. When the operating system
closes that pipe, the shell kills every process on its list and removes the folder that they used. Shell and
children stand in sessions of their own, so that an interrupt (Ctrl-C, the stop button) meant for a cell does
not reach them.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import tempfile
import threading
from pathlib import Path

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
rm -rf "$1"
"""
# The child reports its own pid before it becomes redis-server: there is no moment at which it is unknown.
_LAUNCH = 'echo "+ $$" >&0; exec "$@" </dev/null'


class Watchdog:
    """One shell per process; on the end of this process it kills what is on its list."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="labkit-")
        self.shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "labkit-watchdog", self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.shell.stdin is not None
        self.pipe = self.shell.stdin.fileno()

    def launch(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a child that is on the list before its first instruction; what it prints goes to `log`.

        Wait for its end, then `forget()` it.
        """
        with log.open("ab") as output:
            return subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", *command],
                stdin=self.pipe,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )

    def forget(self, pid: int) -> None:
        """Take an ended child off the list, since its pid may now be given to a stranger."""
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


os.register_at_fork(after_in_child=_disown)
