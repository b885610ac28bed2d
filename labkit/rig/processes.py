"""Real processes that do the same thing at the same moment.

    def hammer(url, times):
        import redis
        r = redis.Redis.from_url(url)
        r.ping()                                  # get ready …
        yield                                     # … wait until all are ready …
        return sum(r.incr("n") for _ in range(times))

    processes(4, hammer, server.url, 1000)        # a list of four results

A function crosses over as its source text, arguments and results as JSON. So it must be written with `def`,
import what it needs inside, and use no name of its surroundings. This works for functions written in a
notebook, where `multiprocessing` does not.

`spawn` starts one process and goes on, so that it can be watched, frozen and killed while it works:

    with spawn(hammer, server.url, 10**9) as worker:
        worker.kill()                             # SIGKILL: it gets no chance to do anything more
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import labkit
from labkit.rig import watchdog

__all__ = ["ProcessFailed", "Worker", "processes", "spawn"]

_CHILD = r"""
import __future__, json, linecache, os, sys, threading, traceback
task = json.loads(sys.stdin.buffer.readline())
sys.path[:] = task["path"]
answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
os.dup2(2, 1)
go = threading.Event()

def follow_parent():
    if sys.stdin.buffer.readline():
        go.set()
        sys.stdin.buffer.read()
    os._exit(1)

def answer(**what):
    answers.write(json.dumps(what) + "\n")
    answers.flush()

def wait_for_the_others():
    answer(ready=True)
    go.wait()

threading.Thread(target=follow_parent, daemon=True).start()
try:
    import redis, labkit
    file = "<" + task["name"] + ">"
    linecache.cache[file] = (len(task["source"]), None, task["source"].splitlines(True), file)
    scope = {"__name__": "__process__"}
    exec(compile(task["source"], file, "exec", __future__.annotations.compiler_flag), scope)
    fn = scope[task["name"]]
    if task["prepares"]:
        steps = fn(*task["args"])
        next(steps)
        wait_for_the_others()
        try:
            next(steps)
        except StopIteration as end:
            result = end.value
        else:
            raise TypeError("it yields twice; the one yield marks where all processes wait for each other")
    else:
        wait_for_the_others()
        result = fn(*task["args"])
    answer(result=result)
except BaseException as error:
    frames = error.__traceback__.tb_next
    answer(error="".join(traceback.format_exception(type(error), error, frames)))
os._exit(0)
"""


class ProcessFailed(labkit.LabkitError):
    """A process raised (the message holds its traceback), died, or did not finish in time."""


def processes(n: int, fn: Callable[..., Any], *args: Any, seconds: float = 30) -> list[Any]:
    """Run `fn(*args)` in `n` Python processes at once; the list of their results.

    All are released together, once each has started, imported redis and labkit, and, where `fn` is a
    generator function, come to its one `yield`. Raises ProcessFailed with the child's traceback when one
    raises, or when they are not done within `seconds`; ValueError where `fn` cannot travel as text. No
    process is left behind, also when this one is interrupted or killed: a child ends when the pipe from its
    parent closes.
    """
    if n < 1:
        raise ValueError(f"n is {n!r}; it must be at least 1")
    task = _task(fn, args)
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(n))
        children = [stack.enter_context(_child(task)) for _ in range(n)]
        _answers(pool, children, fn.__name__, deadline, seconds)
        for child in children:
            _send(child, b"go\n")
        return [answer["result"] for answer in _answers(pool, children, fn.__name__, deadline, seconds)]


def _task(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """Everything that a child needs to know, as one line of JSON."""
    name = getattr(fn, "__name__", repr(fn))
    if not inspect.isfunction(fn) or name == "<lambda>":
        raise ValueError(f"{name} cannot travel to another process: write it with def")
    if fn.__code__.co_freevars:
        raise ValueError(
            f"{name} uses {', '.join(fn.__code__.co_freevars)} of its surroundings: pass it as an argument"
        )
    try:
        source = textwrap.dedent(inspect.getsource(fn))
    except (OSError, TypeError):
        source = ""
    if f"def {name}(" not in source:  # Python 3.13 gives the text of `python -c` for whatever exec() made
        raise ValueError(f"{name} has no source text here, so it cannot travel to another process")
    prepares = inspect.isgeneratorfunction(fn)
    task = {"source": source, "name": name, "args": args, "path": sys.path, "prepares": prepares}
    return json.dumps(task).encode() + b"\n"


class Worker:
    """A Python process that runs `fn(*args)`, made by `spawn`; killed when the `with` block ends.

    It also ends with this process, however that ends, and when nobody refers to the Worker any more. `pid` is
    its process id. What it prints is not shown; `said` has it.
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> None:
        task = _task(fn, args)
        self.name, self._heard, self._tail = fn.__name__, b"", b""
        self._unlist: Callable[[], object] = bool  # nothing is to be done
        self._answer: dict[str, Any] | None = None
        self._closing = contextlib.ExitStack()
        self._child = self._closing.enter_context(_child(task))
        self.pid = self._child[0].pid
        try:
            _understood(self._line(seconds), f"the worker {self.name}", self._child)
        except BaseException:
            self._closing.close()
            raise
        _send(self._child, b"go\n")

    def __repr__(self) -> str:
        return f"Worker({self.name}, {'alive' if self.alive else 'ended'})"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._tail = self._printed()
        self._closing.close()

    @property
    def alive(self) -> bool:
        """Is its process there? A frozen one is."""
        return self._child[0].poll() is None

    @property
    def said(self) -> list[str]:
        """The lines that it has printed so far."""
        return self._printed().decode(errors="replace").splitlines()

    def await_said(self, line: str, seconds: float = 30) -> None:
        """Wait until it has printed that line; ProcessFailed if it ends, or has not by then."""
        deadline = time.monotonic() + seconds
        while True:
            alive = self.alive  # before it is looked at what it has said: the line may be its last
            if line in self.said:
                return
            if not alive:
                self.result(0)  # raises what it died of
                raise ProcessFailed(f"the worker {self.name} has ended, and never said {line!r}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"the worker {self.name} has not said {line!r} after {seconds:g} s")
            time.sleep(0.001)

    def _printed(self) -> bytes:
        file = self._child[1]
        return self._tail if file.closed else os.pread(file.fileno(), 1 << 30, 0)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. No effect if it has ended."""
        self._child[0].kill()
        self._child[0].wait()
        self._unlist()

    def stop(self, seconds: float = 10) -> bool:
        """SIGTERM: ask it to end. True once it has; if that takes longer than `seconds`, it is killed: False.

        It ends at once, unless `fn` has set a handler of its own (`signal.signal`): then it may first finish
        what it does, and return.
        """
        process = self._child[0]
        process.terminate()
        self.thaw()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def freeze(self) -> None:
        """SIGSTOP: it stands still, as in a long pause of its machine; its connections stay open.

        Since it would not see the end of this process, the watchdog will.
        """
        self._unlist()
        os.write(watchdog.get().pipe, f"+ {self.pid}\n".encode())
        self._unlist = unlist = weakref.finalize(self, watchdog.get().forget, self.pid)
        unlist.atexit = False
        self._child[0].send_signal(signal.SIGSTOP)
        if self.alive and hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT: it goes on."""
        self._child[0].send_signal(signal.SIGCONT)
        self._unlist()

    def result(self, seconds: float = 30) -> Any:
        """What `fn` returned. Raises ProcessFailed if it raised, was killed, or needs more than `seconds`."""
        if self._answer is None:
            child = self._child[0], io.BytesIO(self._printed())
            self._answer = _understood(self._line(seconds), f"the worker {self.name}", child)
        return self._answer["result"]

    def _line(self, seconds: float) -> bytes:
        """Its next answer; b"" if it has ended without one."""
        stdout = self._child[0].stdout
        assert stdout is not None
        if stdout.closed:
            return b""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._heard:
            if not select.select([stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise ProcessFailed(f"the worker {self.name} has no answer after {seconds:g} s: give it more")
            if not (more := os.read(stdout.fileno(), 1 << 16)):
                return b""
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line


def spawn(fn: Callable[..., Any], *args: Any, seconds: float = 30) -> Worker:
    """Run `fn(*args)` in a Python process of its own, and go on; `fn` is as for `processes`.

    Returns when it is ready: when `fn` begins or, if it is a generator function, has come to its one `yield`.
    Raises ProcessFailed when it fails before that, or is not ready within `seconds`; ValueError where `fn`
    cannot travel as text.
    """
    return Worker(fn, args, seconds)


_REMEDY = "\nRemedy: it travels as source text: import and define inside it, pass the rest as arguments."

_Child = tuple["subprocess.Popen[bytes]", Any]


@contextlib.contextmanager
def _child(task: bytes) -> Iterator[_Child]:
    """A fresh Python with its task, and the file of what it prints; killed in the end in any case."""
    with (
        tempfile.TemporaryFile() as printed,
        subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            start_new_session=True,
        ) as process,
    ):
        try:
            _send((process, printed), task)
            yield process, printed
        finally:
            process.kill()


def _send(child: _Child, line: bytes) -> None:
    stdin = child[0].stdin
    assert stdin is not None
    with contextlib.suppress(BrokenPipeError):
        stdin.write(line)
        stdin.flush()


def _answers(
    pool: ThreadPoolExecutor, children: list[_Child], name: str, deadline: float, seconds: float
) -> list[dict[str, Any]]:
    """The next answer of each child; raises ProcessFailed for the first that has none to give."""
    futures = [pool.submit(process.stdout.readline) for process, _ in children if process.stdout]
    answers = []
    try:
        for number, (child, future) in enumerate(zip(children, futures, strict=True), 1):
            line = future.result(max(deadline - time.monotonic(), 0))
            answers.append(_understood(line, f"{name} in process {number} of {len(children)}", child))
    except TimeoutError:
        undone = sum(not future.done() for future in futures)
        raise ProcessFailed(
            f"{name}: {undone} of {len(children)} processes did not finish within {seconds:g} s; they were "
            "ended. Remedy: give them less to do, or more time with seconds=."
        ) from None
    finally:
        if len(answers) < len(children):
            for process, _ in children:
                process.kill()
    return answers


def _understood(line: bytes, who: str, child: _Child) -> dict[str, Any]:
    process, printed = child
    if not line:
        printed.seek(0)
        tail = printed.read()[-2000:].decode(errors="replace").strip()
        raise ProcessFailed(
            f"{who} ended with exit code {process.wait()} before it gave a result. {tail}".strip()
        )
    answer: dict[str, Any] = json.loads(line)
    if error := answer.get("error"):
        raise ProcessFailed(f"{who} raised:\n{error.rstrip()}{_REMEDY if 'NameError' in error else ''}")
    return answer
