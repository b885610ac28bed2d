"""What the graders of chapter 11 share: a client that loses replies or crashes, time that passes, outages."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from types import FunctionType
from typing import Any
from unittest import mock

import redis
import redis.retry
from redis.crc import key_slot
from redis.exceptions import RedisClusterException, RedisError

from labkit.teach.exercises import Failure
from labkit.teach.exercises.lock.grading import clocks
from labkit.teach.exercises.pipelining import one_by_one
from labkit.teach.exercises.session.grading import Inside
from labkit.teach.exercises.session.grading import elsewhere as class_elsewhere
from labkit.teach.lab import Lab

_BRACES = ("", "}", "{", "{}", "}{", "a}b", "a{b", "a{b}c", "{a}b", "{a}", "a}:orders", "ünï:{çø}")
_ALIKE = ("a", "b", "ab", "A", "a b", "ä", "a\u0308", "7", "07", "7 ", f"{'x' * 60}1", f"{'x' * 60}2")
_PARTS = ("a:cart", "a:profile", "cart", "profile", ":", "::", "*", "%", "%7B", "%7D")
_SIGNS = ("/", "\\", "\n", "0", "None")
ODD = (*_BRACES, *_ALIKE, *_PARTS, *_SIGNS, "plumless", "buckeroo")
"""Ids that any text may be: empty, braces, alike, parts of key names, and two with the same CRC32."""

QUIET = {"HELLO", "AUTH", "CLIENT", "READONLY", "READWRITE", "SELECT", "CLUSTER", "COMMAND"}
QUIET |= {"ASKING", "UNWATCH"}
"""With these a client introduces itself, asks who is there, or tidies up."""

Hook = Callable[[int, list[str]], None]


class Crash(BaseException):
    """A process ends here. No Exception: an answer that deals with errors does not meet it."""


class Enough(BaseException):
    """An attempt that is not to be made any more."""


class Wire:
    """A client of the private cluster, `rc`, which calls `before` and `after` around each command it sends.

    They may raise what the client is to meet: its connection is then gone. `after`: the server has run it
    (within MULTI: has queued it). `told` are the commands, as a story shows them.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab, self.count, self.told = lab, 0, list[str]()
        self.before: Hook = lambda number, words: None
        self.after: Hook | None = None
        self.rc: Any = lab.cluster_client(connection_class=_hooked(self))

    def settle(self, port: int) -> None:
        """Until the node has read what was sent before: it reads a client's second PING after that."""
        node = next(node for node in self.lab.cluster.nodes if node.port == port)
        with node.client() as r:
            r.ping()
            r.ping()


def _hooked(wire: Wire) -> type[redis.Connection]:
    class Hooked(redis.Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            send: Any = super().send_packed_command
            for found, data in one_by_one(self, command):
                words = [word.decode(errors="replace") for word in found]
                try:
                    hooked = words[0].upper() not in QUIET
                    if hooked:
                        wire.count += 1
                        wire.told.append(" ".join(words))
                        wire.before(wire.count, words)
                    send([data], check_health=False)
                    if hooked and wire.after is not None:
                        wire.settle(int(self.port))
                        wire.after(wire.count, words)
                except BaseException:
                    hang_up: Any = self.disconnect
                    hang_up()
                    raise

    return Hooked


_sleep, _wait = time.sleep, threading.Event.wait


class Passing:
    """What has passed, in seconds, since `hurried` began; sleep of its thread adds to it without waiting."""

    def __init__(self) -> None:
        self._slept, self._begin, self._thread = 0.0, time.monotonic(), threading.get_ident()
        self._real = time.monotonic

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() != self._thread:
            _sleep(seconds)
        else:
            self._slept += max(0.0, seconds)

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """As Event.wait; it is a sleep, too."""
        if timeout is None or threading.get_ident() != self._thread:
            return _wait(event, timeout)
        self._slept += max(0.0, timeout)
        return event.is_set()

    @property
    def slept(self) -> float:
        return self._slept

    @property
    def seconds(self) -> float:
        return self._slept + self._real() - self._begin


@contextmanager
def hurried(answer: Any) -> Iterator[Passing]:
    """Whoever sleeps goes on at once, and all clocks say that the time has passed."""
    passing, real = Passing(), time.sleep
    space = getattr(inspect.unwrap(answer), "__globals__", {}) if callable(answer) else {}
    names = [name for name, value in space.items() if value is real]
    with ExitStack() as stack:
        stack.enter_context(clocks(lambda: passing.slept, answer))
        for where in (time, redis.retry):
            stack.enter_context(mock.patch.object(where, "sleep", passing.sleep))
        wait = partialmethod(lambda event, timeout=None: passing.wait(event, timeout))
        stack.enter_context(mock.patch.object(threading.Event, "wait", wait))
        for name in names:
            space[name] = passing.sleep
        try:
            yield passing
        finally:
            for name in names:
                space[name] = real


@contextmanager
def cluster_down(lab: Lab, key: str) -> Iterator[Callable[[], None]]:
    """The primary of `key` says CLUSTERDOWN, until what this gives is called: it lacks a slot."""
    cluster, mine = lab.cluster, key_slot(key.encode())
    node = cluster.owner(key)
    slot = next(slot for slot, name in cluster.owners().items() if name == node.name and slot != mine)
    is_down = True

    def end() -> None:
        nonlocal is_down
        if is_down:
            r.execute_command("CLUSTER", "ADDSLOTS", slot)
            is_down = False

    with node.client() as r:
        r.execute_command("CLUSTER", "DELSLOTS", slot)
        try:
            yield end
        finally:
            end()


@contextmanager
def moved(lab: Lab, keys: list[str]) -> Iterator[None]:
    """The slots of these keys are another primary's meanwhile."""
    cluster, owners = lab.cluster, lab.cluster.owners()
    names = sorted(set(owners.values()))
    slots = {key_slot(key.encode()) for key in keys}
    for name in names:
        cluster.move_slots([slot for slot in slots if owners[slot] == name], names[names.index(name) - 1])
    try:
        yield
    finally:
        for name in names:
            cluster.move_slots([slot for slot in slots if owners[slot] == name], name)


class InsideNode(Inside):
    """All that one node of the cluster holds."""

    def __init__(self, lab: Lab, key: str) -> None:
        super().__init__(lab)
        self.r = lab.cluster.owner(key).client(decode_responses=False)
        lab._clients.append(self.r)


def elsewhere(answer: Any) -> Any:
    """The function, or class, as another process has it: what it keeps in its module is not shared."""
    if not isinstance(answer, FunctionType):
        return class_elsewhere(answer)
    kind = class_elsewhere(type("Holder", (), {"answer": answer}))
    return vars(kind)["answer"]


CROSSES = ("same slot", "same key slot", "crossslot", "different slots", "non local key", "same node")


@contextmanager
def one_slot(told: str, look: str) -> Iterator[None]:
    """What a cluster says of keys in several slots is told as what it is."""
    try:
        yield
    except (RedisError, RedisClusterException) as error:
        if not any(words in str(error).lower() for words in CROSSES):
            raise
        what = f"the cluster refuses it: {type(error).__name__}: {str(error)[:90].rstrip('.')}"
        raise Failure("slot", what, told, look) from None
