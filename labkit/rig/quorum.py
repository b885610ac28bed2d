"""Several independent servers to kill, freeze and revive, and two clients that want one lock on a majority.

    with Quorum(lambda clients: Redlock(clients, "panel", ttl=10)) as quorum:
        quorum.kill(0)
        quorum.acquire("A")
        quorum.view         # who answered what, after how long; and what stands on each server

How long each server took is measured on the sockets of the lock itself, with whatever it opens and sends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from redis.connection import Connection
from redis.exceptions import TimeoutError

from labkit.rig.server import Server

State = Literal["up", "frozen", "killed"]

CLIENTS = ("A", "B")


@dataclass(frozen=True)
class Seat:
    """One server: its state, what it said in the last round, and whose lock stands there now.

    `said` is "yes", "no", "no answer" (in time), "no connection", or "" where it was not asked; `seconds` is
    when the answer came, since the round began. `holder` is "A", "B", "" (nobody), or "?" (it does not say).
    """

    name: str
    state: State
    said: str
    seconds: float | None
    holder: str


@dataclass(frozen=True)
class View:
    """How things stand after what was last done. All times are in seconds.

    `asked` is "A acquires" or "A releases" ("" at first), `ok` whether it worked. The round `took` so long;
    `validity` is what was then left for certain, and `left` is what each client has of it now.
    """

    seats: tuple[Seat, ...]
    asked: str
    ok: bool
    took: float
    validity: float
    ttl: float
    timeout: float
    left: tuple[tuple[str, float], ...]

    @property
    def majority(self) -> int:
        """How many servers it takes."""
        return len(self.seats) // 2 + 1

    @property
    def yes(self) -> int:
        """How many servers said yes."""
        return sum(seat.said == "yes" for seat in self.seats)

    @property
    def twice(self) -> bool:
        """Whether both clients are certain that the lock is theirs."""
        return len(self.left) > 1

    @property
    def switches(self) -> list[tuple[str, str]]:
        """For each server, what `kill_or_revive` and `freeze_or_thaw` would do; "" where nothing."""
        verbs = {"up": ("kill", "freeze"), "frozen": ("kill", "thaw"), "killed": ("revive", "")}
        both = [(seat.name, *verbs[seat.state]) for seat in self.seats]
        return [(f"{one} {name}", f"{other} {name}" if other else "") for name, one, other in both]

    @property
    def sentence(self) -> str:
        """What came of it."""
        who, act = (self.asked or " ").split(" ")
        of = f"{self.yes} of {len(self.seats)}"
        if self.twice:
            return f"{' and '.join(name for name, _ in self.left)} both have the lock"
        if act == "acquires":
            no = f"{who} does not get the lock: {of} said yes, {self.majority} are needed"
            return f"{who} has the lock: {of} said yes" if self.ok else no
        if act == "releases" and self.ok:
            return f"{who} gave the lock back: {of} had it"
        silent = sum(seat.said == "no answer" for seat in self.seats)
        if act == "releases" and silent and self.yes + silent >= self.majority:
            return f"{who} gives the lock back: {of} had it, {silent} do not answer"
        if act == "releases":
            asked = any(seat.said for seat in self.seats)
            return f"the lock was no longer {who}'s" if asked else f"{who} had no lock to give back"
        return f"{len(self.seats)} servers, of which {self.majority} are a majority"


@dataclass(frozen=True)
class _Round:
    asked: str = ""
    ok: bool = False
    took: float = 0.0
    validity: float = 0.0
    said: tuple[str, ...] = ()
    seconds: tuple[float | None, ...] = ()


class TimedConnection(Connection):
    """redis-py's connection, which notes in `log` when it sent each command and when it read its reply.

    Both are of time.monotonic(); without a reply there is only the first. What introduces the connection
    (HELLO, AUTH, …) is left out.
    """

    def __init__(self, *, log: list[list[float]], **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.log = log
        self._due: deque[list[float]] = deque()
        self._introducing = False

    def on_connect_check_health(self, *args: Any, **options: Any) -> None:
        self._introducing = True
        try:
            super().on_connect_check_health(*args, **options)
        finally:
            self._introducing = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]
        if not self._introducing:
            self._due.append([time.monotonic()])
            self.log.append(self._due[-1])

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        finally:
            if self._due:
                self._due.popleft().append(time.monotonic())

    def disconnect(self, *args: Any, **options: Any) -> None:
        self._due = deque()
        super().disconnect(*args, **options)  # type: ignore[no-untyped-call]


class Quorum:
    """`count` servers of its own, started at first use, ended by `close()` or with this process.

    `make(clients)` gives a lock with the methods and attributes of `labkit.lock.Redlock`; it is called once
    for each of the clients A and B. Servers are counted from 0. One that was killed has forgotten everything
    when it is revived, unless `appendonly`: then every write is on disk before it is answered.
    """

    def __init__(self, make: Callable[[list[Any]], Any], *, count: int = 5, appendonly: bool = False) -> None:
        self._make, self._count = make, count
        self._settings: dict[str, Any] = {"appendonly": True, "appendfsync": "always"} if appendonly else {}
        self._servers: list[Server] = []
        self._locks: dict[str, Any] = {}
        self._logs: dict[str, list[list[list[float]]]] = {}
        self._frozen: set[int] = set()
        self._last = _Round()

    def __enter__(self) -> Quorum:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def servers(self) -> list[Server]:
        """The servers; they are started if they were not yet."""
        if not self._servers:
            self._servers = [Server(**self._settings).start() for _ in range(self._count)]
            self._logs = {name: [[] for _ in self._servers] for name in CLIENTS}
            self._locks = {name: self._make(self._clients(name)) for name in CLIENTS}
        return self._servers

    def _clients(self, name: str) -> list[Any]:
        wired = zip(self._servers, self._logs[name], strict=True)
        return [server.client(connection_class=TimedConnection, log=log) for server, log in wired]

    def _lock(self, name: str) -> Any:
        """A client's lock, on servers that have been started."""
        return self._locks[name] if self.servers else None

    def close(self) -> None:
        """End the servers, and forget what was. Used again, it begins anew."""
        for lock in self._locks.values():
            lock.close()
        for server in self._servers:
            server.stop()
        self._servers, self._locks, self._frozen, self._last = [], {}, set(), _Round()

    def state(self, number: int) -> State:
        """Whether a server is up, frozen, or killed."""
        if not self.servers[number].running:
            return "killed"
        return "frozen" if number in self._frozen else "up"

    def kill(self, number: int) -> None:
        """SIGKILL."""
        self.servers[number].kill()
        self._frozen.discard(number)

    def freeze(self, number: int) -> None:
        """SIGSTOP: its connections stay open, and it does not answer."""
        self.servers[number].freeze()
        self._frozen.add(number)

    def revive(self, number: int) -> None:
        """Start one that was killed; let one that was frozen go on. No effect on one that is up."""
        if self.state(number) == "frozen":
            self.servers[number].thaw()
            self._frozen.discard(number)
        self.servers[number].start()

    def kill_or_revive(self, number: int) -> None:
        """What a switch does: kill one that runs, revive one that was killed."""
        (self.revive if self.state(number) == "killed" else self.kill)(number)

    def freeze_or_thaw(self, number: int) -> None:
        """What a switch does: freeze one that is up, else bring it back."""
        (self.freeze if self.state(number) == "up" else self.revive)(number)

    def acquire(self, client: str) -> bool:
        """Let A or B try once to get the lock."""
        return self._round(f"{client} acquires", client, lambda lock: bool(lock.acquire(wait=0)))

    def release(self, client: str) -> bool:
        """Let A or B give it back."""
        return self._round(f"{client} releases", client, lambda lock: bool(lock.release()))

    def _round(self, asked: str, client: str, act: Callable[[Any], bool]) -> bool:
        lock, logs = self._lock(client), self._logs[client]
        for log in logs:
            log.clear()
        began, before = time.monotonic(), lock.votes
        ok = act(lock)
        taken_back = [
            log[1][0] for log in logs if len(log) > 1
        ]  # a second round, where the first was in vain
        took = min(taken_back, default=time.monotonic()) - began
        if lock.votes is before:  # nothing to give back: nobody was asked
            self._last = _Round(asked)
            return ok
        said = tuple(map(_said, lock.votes, lock.errors))
        first = [log[0][1:] if log else [] for log in logs]
        seconds = tuple(
            at[0] - began if at and word in ("yes", "no") else None
            for at, word in zip(first, said, strict=True)
        )
        self._last = _Round(asked, ok, took, lock.validity, said, seconds)
        return ok

    @property
    def view(self) -> View:
        """How things stand now; asks each server that is up what it has."""
        last, lock, now = self._last, self._lock(CLIENTS[0]), time.monotonic()
        said = last.said or ("",) * self._count
        seconds = last.seconds or (None,) * self._count
        seats = tuple(
            Seat(f"S{n + 1}", self.state(n), said[n], seconds[n], self._holder(n)) for n in range(self._count)
        )
        until = {name: lock.locked_until - now for name, lock in self._locks.items()}
        left = tuple((name, seconds) for name, seconds in until.items() if seconds > 0)
        return View(seats, last.asked, last.ok, last.took, last.validity, lock.ttl, lock.timeout, left)

    def _holder(self, number: int) -> str:
        if self.state(number) != "up":
            return "?"
        tokens = {lock.token: name for name, lock in self._locks.items() if lock.token}
        with self.servers[number].client() as r:
            value = r.get(self._lock(CLIENTS[0]).key)
        return "" if value is None else tokens.get(value, "?")


def _said(vote: bool | None, error: Exception | None) -> str:
    if vote is None:
        return "no answer" if isinstance(error, TimeoutError) else "no connection"
    return "yes" if vote else "no"
