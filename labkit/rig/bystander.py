"""A bystander: a process that asks a server again and again, and notes how long it waits for each answer.

    with watching(server.url) as heard:
        ...                                # whatever is done to the server, or to this process's time
        waits = heard()                    # its requests so far; it has ended

What it measures is the server (and the machine), not the Python program that keeps the server busy: it has an
interpreter of its own. It sends nothing while it waits; 0.5 ms pass between an answer and the next request.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from labkit.rig.processes import Worker, spawn

__all__ = ["Wait", "watching"]


class Wait(NamedTuple):
    """A request of the bystander: sent `at` (seconds), answered `seconds` later.

    `error` is "", or what came in place of an answer: "BUSY", "LOADING", "no connection", "no answer".
    """

    at: float
    seconds: float
    error: str = ""


@contextlib.contextmanager
def watching(url: str) -> Iterator[Callable[[], list[Wait]]]:
    """Watch the server at `url` until the block ends; what is given ends the watch and returns its requests.

    Their times are `time.perf_counter()`, which is one clock for all processes of a machine (on Linux and
    macOS). A server that is killed, frozen or busy is watched on: a refused request is followed by the next.
    Raises labkit.rig.processes.ProcessFailed where the server does not answer at the start.
    """
    with spawn(_watch, url) as worker:
        worker.await_said("watching")
        yield lambda: _heard(worker)


def _heard(worker: Worker) -> list[Wait]:
    if worker.alive:
        os.kill(worker.pid, signal.SIGTERM)
    return [Wait(*wait) for wait in worker.result()]


def in_place_of_an_answer(error: RedisError) -> str:
    """What the server said, in one word, or that it said nothing."""
    if isinstance(error, BusyLoadingError):
        return "LOADING"
    return str(error).split(" ")[0] if isinstance(error, ResponseError) else "no connection"


def _watch(url: str) -> Generator[None, None, Any]:
    """The bystander: (when, seconds, error) of each request until SIGTERM; its clock is the machine's."""
    import signal
    import time

    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from labkit.rig.bystander import in_place_of_an_answer
    from labkit.rig.client import client

    waits, done, asked = list[tuple[float, float, str]](), list[bool](), 0.0

    def enough(*_: object) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(True)  # after this answer; and if there is none, in a moment:
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    r = client(url, socket_timeout=None, retry=Retry(NoBackoff(), 0))
    r.ping()
    yield
    try:
        signal.signal(signal.SIGTERM, enough)
        signal.signal(signal.SIGALRM, enough)
        print("watching", flush=True)
        while not done:
            error, asked = "", time.perf_counter()
            try:
                r.ping()
            except redis.RedisError as refusal:
                error = in_place_of_an_answer(refusal)
            waits.append((asked, time.perf_counter() - asked, error))
            time.sleep(0.0005)
    except KeyboardInterrupt:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not waits or asked > waits[-1][0]:
        waits.append((asked, time.perf_counter() - asked, "no answer"))
    return waits
