"""Time for clients in greenlets: a sleep is a step, and a clock shows the time that its client has slept."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import redis.client
from greenlet import getcurrent


@contextlib.contextmanager
def virtual_time(actors: Iterable[Callable[..., Any]] = ()) -> Iterator[None]:
    """Meanwhile `time.sleep` and the clocks of `time` are virtual for actors; for others nothing changes.

    Also where a module of these actors has imported them by name (`from time import sleep`). redis-py's own
    accounts of its commands are kept by the real clocks.
    """
    stand_ins: dict[Any, Any] = {time.sleep: _sleep(time.sleep)}
    for name, since in (("time", 0), ("monotonic", 1), ("perf_counter", 1)):
        for real, scale in ((getattr(time, name), 1), (getattr(time, f"{name}_ns"), 10**9)):
            stand_ins[real] = _clock(real, since, scale)
    real_time = types.ModuleType("time")
    vars(real_time).update(vars(time), sleep=stand_ins[time.sleep])
    spaces = {id(space): space for space in (vars(time), *map(_globals, actors))}
    found = [
        (space, name, value)
        for space in spaces.values()
        for name, value in space.items()
        if inspect.isbuiltin(value) and value in stand_ins
    ]
    vars(getcurrent()).setdefault("actor", None)  # this greenlet is none of an actor's
    for space, name, real in found:
        space[name] = stand_ins[real]
    redis_py: Any = redis.client
    before, redis_py.time = redis_py.time, real_time
    try:
        yield
    finally:
        redis_py.time = before
        for space, name, real in found:
            space[name] = real


def _sleep(real: Callable[[float], None]) -> Callable[[float], None]:
    def sleep(seconds: float) -> None:
        actor: Any = getattr(getcurrent(), "actor", None)
        (real if actor is None else actor.sleep)(seconds)

    return sleep


def _clock(real: Callable[[], Any], since: int, scale: int) -> Callable[[], Any]:
    def now() -> Any:
        here: Any = getcurrent()
        try:
            actor = here.actor
        except AttributeError:  # in another thread
            return real()
        if actor is None:
            return real()
        at = actor.born[since] + actor.elapsed
        return at if scale == 1 else int(at * scale)

    return now


def _globals(actor: Callable[..., Any]) -> dict[str, Any]:
    """The names that the module of an actor knows."""
    while isinstance(actor, functools.partial):
        actor = actor.func
    function: Any = inspect.unwrap(getattr(actor, "__func__", actor))
    if not hasattr(function, "__globals__"):
        function = vars(type(actor)).get("__call__")
    return getattr(function, "__globals__", {})
