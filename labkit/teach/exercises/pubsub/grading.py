"""What the graders of chapter 06 share: a subscriber that misses nothing, and threads that are watched."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import io
import itertools
import logging
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import redis
from redis.client import PubSubWorkerThread

from labkit.teach.exercises import Failure
from labkit.teach.exercises.session.grading import elsewhere
from labkit.teach.lab import Lab
from labkit.teach.timelimit import let_arrive

TICK = 0.01
"""Seconds. Time is counted in ticks of the grader's own thread: while the machine stands still, none pass."""

SOON = 300
"""In so many ticks a right answer has done what it is to do."""


def within(ticks: int, come: Callable[[], Any]) -> bool:
    """Wait until `come()` is true; False when it was not, so many ticks long."""
    for _ in range(ticks):
        if come():
            return True
        time.sleep(TICK)
    return bool(come())


class Feed:
    """What subscribers of a channel are sent: a real subscription, read to the end whenever it is asked."""

    def __init__(self, lab: Lab) -> None:
        self.r = lab.client()
        self._pubsub = lab.client().pubsub()
        self._ends, self._end = itertools.count(1), lab.key("end")
        self._channels = set[str]()
        self.subscribe(self._end)

    def subscribe(self, channel: str) -> None:
        """Returns when the server has confirmed it."""
        if channel in self._channels:
            return
        self._channels.add(channel)
        self._pubsub.subscribe(channel)
        while self._next()["type"] != "subscribe":
            pass

    def take(self) -> list[str]:
        """All that has arrived since the last time, in order."""
        last, found = str(next(self._ends)), list[str]()
        self.r.publish(self._end, last)
        while True:
            message = self._next()
            if message["channel"] != self._end:
                found.append(message["data"])
            elif message["data"] == last:
                return found

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] | None = self._pubsub.get_message(timeout=10)
        if message is None:
            raise RuntimeError("the graders' server does not deliver")
        return message

    def close(self) -> None:
        self._pubsub.close()


class Over(BaseException):
    """The grade is over, and with it all that an answer has left behind."""


class Link:
    """The way from an answer's client to the server: it can hold back what subscribes, and be taken away."""

    def __init__(self) -> None:
        self.over = False
        self._holds = False
        self._kept: list[tuple[Any, Callable[[], None]]] = []

    @property
    def holds_something(self) -> bool:
        """Has a command that subscribes been sent, and is still on its way?"""
        return bool(self._kept)

    def hold(self) -> None:
        """From now on a connection that subscribes is stuck on its way to the server."""
        self._holds = True

    def release(self) -> None:
        """What was held arrives."""
        self._holds = False
        while self._kept:
            self._kept.pop(0)[1]()

    def client(self, lab: Lab) -> redis.Redis:
        """A client over this link."""
        link = self

        class Connection(redis.Connection):
            def connect(self) -> None:
                link.check()
                connect: Any = super().connect
                connect()

            def can_read(self, *args: Any, **options: Any) -> Any:
                link.check()
                return super().can_read(*args, **options)

            def send_packed_command(self, command: Any, check_health: bool = True) -> None:
                def send() -> None:
                    real: Any = super(Connection, self).send_packed_command
                    real(command, check_health)

                link.check()
                if not link.keeps(self, command, send):
                    send()

        return lab.client(connection_class=Connection)

    def keeps(self, connection: Any, command: Any, send: Callable[[], None]) -> bool:
        """Is it kept back? What comes after it on the same connection is, too."""
        words = b"".join(command if isinstance(command, list | tuple) else [command]).upper()
        if not self._holds or not (
            b"SUBSCRIBE" in words or any(connection is other for other, _ in self._kept)
        ):
            return False
        self._kept.append((connection, send))
        return True

    def check(self) -> None:
        if self.over:
            raise Over


ON_PURPOSE = "raised on purpose"
"""What the grader's own exceptions say."""

LOOKS = frozenset({"poll", "recv", "recv_into", "recvfrom", "recvmsg", "select", "kevent", "control"})
"""What looks at a socket, or waits for one."""


class Watched:
    """The threads that an answer starts: how often each has looked at a socket, and which is at one now."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())
        self._looks = Counter[str]()
        self._at = dict[int, list[str]]()  # the calls that it is in: finalizers run within others
        self.noise = io.StringIO()

    @property
    def alive(self) -> list[threading.Thread]:
        """Those that have not ended."""
        new = set(threading.enumerate()) - self._before
        return sorted((one for one in new if not getattr(one, "of_the_grader", False)), key=lambda t: t.name)

    @property
    def complaints(self) -> list[str]:
        """The exceptions that they have shown, but those that were raised on purpose."""
        shown = r"^(?:\w+\.)*\w+(?:Error|Exception|Exit)(?:: .*)?$"
        found = re.findall(shown, self.noise.getvalue(), re.M)
        return list(dict.fromkeys(line for line in found if ON_PURPOSE not in line))

    @property
    def looks(self) -> int:
        """How often they have looked at a socket: by the call that they made most often."""
        return max(self._looks.values(), default=0)

    @property
    def waits(self) -> bool:
        """Is one of them in a call that waits for a socket?"""
        return any(at[-1] in LOOKS for one in self.alive if (at := self._at.get(one.ident or 0)))

    def profile(self, frame: FrameType, event: str, arg: Any) -> None:
        """What `threading.setprofile` takes: each call of a function in C, and its end."""
        name, thread = getattr(arg, "__name__", ""), threading.get_ident()
        if arg is getattr(select, "poll", None):  # makes what has a method of the same name
            return
        at = self._at.setdefault(thread, [])
        if event == "c_call":
            at.append(name)
        elif event in ("c_return", "c_exception"):
            del at[-1:]
            if name in LOOKS:
                self._looks[name] += 1

    def polls(self) -> str:
        """How it polls, while nothing arrives; "" if it does not.

        Twice a second is seldom enough. Whoever waits for a message does so in one look, and nowhere else.
        """
        began, first, waited, ticks = time.monotonic(), self.looks, 0, 30
        for _ in range(ticks):
            time.sleep(TICK)
            waited += self.waits
        looked, seconds = self.looks - first, time.monotonic() - began
        if looked > 1.5 + 3 * seconds:
            return f"in {seconds:.1f} s it looks {looked:,} times at its connection"
        if waited < ticks / 2:
            return f"in {ticks - waited} of {ticks} moments it does not wait for its connection, but sleeps"
        return ""

    def end(self) -> None:
        """End what is left, however it resists: a read fails, and an exception is put into the thread."""
        for thread in self.alive:
            if isinstance(thread, PubSubWorkerThread):
                thread.stop()

        def all_ended() -> bool:
            for thread in self.alive:
                if thread.ident is not None:
                    _raise_in(thread.ident)
            return not self.alive

        if not within(10, lambda: not self.alive):  # what has lost its connection ends by itself
            within(SOON, all_ended)


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Over))


class Task(threading.Thread):
    """A call of an answer in a thread of its own: whether it has returned, what it gave, what it raised."""

    of_the_grader = True

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(name="labkit grader", daemon=True)
        self._call, self._result = call, None
        self._error: BaseException | None = None
        self.returned = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error
        self.returned.set()

    def done(self, ticks: int = SOON) -> bool:
        """Has it returned, or raised, in so many ticks?"""
        return within(ticks, self.returned.is_set)

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


@contextmanager
def watched(lab: Lab, link: Link) -> Iterator[Watched]:
    """Threads that start meanwhile are watched, and silent; none of them, and no connection, is left."""
    threads = Watched()
    let_arrive()
    before = threading.getprofile(), threading.excepthook, logging.root.handlers
    threading.setprofile(threads.profile)
    threading.excepthook = _show
    logging.root.handlers = [logging.StreamHandler(threads.noise)]
    try:
        with contextlib.redirect_stderr(threads.noise):
            try:
                yield threads
            except Failure as failure:
                for line in threads.complaints[:3]:
                    failure.counterexample += f"\nin a thread of the answer's: {line}"
                raise
            finally:
                link.over = True
                if threads.alive:
                    _hang_up(lab)
                    threads.end()
    finally:
        profile, threading.excepthook, logging.root.handlers = before
        threading.setprofile(profile)
        let_arrive()


def _show(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not Over:
        threading.__excepthook__(args)


def _hang_up(lab: Lab) -> None:
    """Whoever listens is cut off."""
    with contextlib.suppress(redis.RedisError, OSError):
        lab.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub")


def strangers(lab: Lab, known: set[str]) -> list[str]:
    """The connections to the server that are not among `known`, each as CLIENT LIST tells it, shortened."""
    found = []
    for one in lab.r.client_list():
        if one["id"] not in known:
            sub = int(one["sub"]) + int(one["psub"]) + int(one.get("ssub", 0))
            found.append(
                f"CLIENT LIST: a connection of the answer's, subscriptions={sub}, last cmd={one['cmd']}"
            )
    return found


def connections(lab: Lab) -> set[str]:
    """The ids of all connections that there are."""
    return {one["id"] for one in lab.r.client_list()}


def apart(kind: Any) -> Any:
    """The class as another process has it: neither what it keeps in itself nor in its module is shared."""
    other = elsewhere(kind)
    for one in vars(other).values() if other is not kind else ():
        if inspect.isfunction(one):
            one.__globals__[kind.__name__] = other
    return other
