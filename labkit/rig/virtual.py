"""Time for clients in greenlets: a sleep is a step, and a clock shows the time that its client has slept."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import redis.client
from greenlet import getcurrent


def _sleep(seconds: float) -> None:
    actor: Any = getattr(getcurrent(), "actor", None)
    (_REAL_SLEEP if actor is None else actor.sleep)(seconds)


def _clock(real: Callable[[], Any], since: int, scale: int) -> Callable[[], Any]:
    def now() -> Any:
        actor: Any = getattr(getcurrent(), "actor", None)
        if actor is None:
            return real()
        at = actor.born[since] + actor.elapsed
        return at if scale == 1 else int(at * scale)

    return now


_REAL_SLEEP = time.sleep
_STAND_INS: dict[Any, Any] = {
    time.sleep: _sleep,
    time.time: _clock(time.time, 0, 1),
    time.time_ns: _clock(time.time_ns, 0, 10**9),
    time.monotonic: _clock(time.monotonic, 1, 1),
    time.monotonic_ns: _clock(time.monotonic_ns, 1, 10**9),
    time.perf_counter: _clock(time.perf_counter, 1, 1),
    time.perf_counter_ns: _clock(time.perf_counter_ns, 1, 10**9),
}
_REDIS_PY = types.ModuleType("time")
vars(_REDIS_PY).update(vars(time), sleep=_sleep)


@dataclass
class _Replaced:
    """A name for which a stand-in stands, in one of the namespaces, and how many need it."""

    space: dict[str, Any]
    name: str
    real: Any
    users: int = 0


_mutex = threading.Lock()
_replaced: dict[tuple[int, str], _Replaced] = {}


@contextlib.contextmanager
def virtual_time(actors: Iterable[Callable[..., Any]] = ()) -> Iterator[None]:
    """Meanwhile `time.sleep` and the clocks of `time` are virtual for actors; for others nothing changes.

    Also where a module of these actors has imported them by name (`from time import sleep`). redis-py's own
    accounts of its commands are kept by the real clocks. Several at once do not disturb each other.
    """
    with _mutex:
        held = _replace(vars(redis.client), {"time": _REDIS_PY})
        for space in {id(space): space for space in (vars(time), *map(_globals, actors))}.values():
            held += _replace(space, {n: _STAND_INS[v] for n, v in space.items() if _is_real(v)})
    try:
        yield
    finally:
        with _mutex:
            for key in held:
                one = _replaced[key]
                one.users -= 1
                if not one.users:
                    one.space[one.name] = one.real
                    del _replaced[key]


def _is_real(value: Any) -> bool:
    return inspect.isbuiltin(value) and value in _STAND_INS


def _replace(space: dict[str, Any], stand_ins: dict[str, Any]) -> list[tuple[int, str]]:
    """Put stand-ins in a namespace; the keys of all that stand there now, also for others."""
    for name, stand_in in stand_ins.items():
        if (id(space), name) not in _replaced:
            _replaced[id(space), name] = _Replaced(space, name, space[name])
            space[name] = stand_in
    held = [key for key in _replaced if key[0] == id(space)]
    for key in held:
        _replaced[key].users += 1
    return held


def _globals(actor: Callable[..., Any]) -> dict[str, Any]:
    """The names that the module of an actor knows."""
    while isinstance(actor, functools.partial):
        actor = actor.func
    function: Any = inspect.unwrap(getattr(actor, "__func__", actor))
    if not hasattr(function, "__globals__"):
        function = vars(type(actor)).get("__call__")
    return getattr(function, "__globals__", {})
