"""Clients that wait to be told: each of their commands is one step, taken when the scheduler says so.

An actor is an ordinary callable that takes a `redis.Redis`. It runs in a greenlet; its client's connections
stop before each command that they send, and go on when `Actor.go()` is called. Nothing sleeps and no thread
runs, so the same order of calls gives the same execution. Time is virtual for an actor: it passes while the
actor sleeps or waits in vain, and otherwise not.
"""

from __future__ import annotations

import copy
import inspect
import select
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from time import monotonic, time
from typing import Any, Literal, TypeVar

import redis
from greenlet import GreenletExit, getcurrent, greenlet
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.exceptions import ConnectionError, NoScriptError, ResponseError, TimeoutError, WatchError
from redis.retry import Retry

from labkit import LabkitError
from labkit.rig.client import settings
from labkit.rig.footprint import EVERYTHING, PURE, Footprint, Outside, first_word, text, words

Command = tuple[Any, ...]
T = TypeVar("T")
How = Literal["run", "lose"]

STATEFUL = {"SELECT", "CLIENT", "HELLO", "AUTH", "RESET", "READONLY", "FUNCTION"}
"""After one of these a connection is not as it was; it is replaced before the next interleaving."""

PUSHED = {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "SYNC", "PSYNC"}
NOTED = STATEFUL | PUSHED | {"WATCH", "MULTI", "EXEC", "DISCARD", "UNWATCH"}
"""Commands that leave something in their connection, or cannot be had."""


_PLAIN: Any = Connection
"""redis-py's connection: what an actor's does when it does not stop."""


@cache
def _is_noted(word: Any) -> bool:
    return first_word((word,)) in NOTED


class _Packed(list[bytes]):
    """A packed pipeline that remembers its commands."""

    commands: list[Command]


class ActorConnection(Connection):
    """A connection of redis-py that lets its actor stop before each command. Its handshake is no step."""

    def __init__(self, *, actor: Actor, **options: Any) -> None:
        _PLAIN.__init__(self, **options)
        self.actor = actor
        self.watched = PURE
        self.queued: Footprint | None = None
        self.changed = self.tracking = self.retired = self._direct = False
        self._replies: deque[Any] = deque()

    def connect(self) -> None:
        if self._sock is None:
            _PLAIN.connect(self)

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        if self._sock:
            return
        direct, self._direct = self._direct, True
        try:
            super().connect_check_health(*args, **options)
        finally:
            self._direct = direct

    def disconnect(self, *args: Any, **options: Any) -> None:
        self.watched, self.queued = PURE, None
        self.changed = self.tracking = False
        self._replies.clear()
        _PLAIN.disconnect(self, *args, **options)

    def pack_commands(self, commands: Any) -> Any:
        commands = [tuple(command) for command in commands]
        packed = _Packed(_PLAIN.pack_commands(self, commands))
        packed.commands = commands
        return packed

    def send_command(self, *args: Any, **options: Any) -> None:
        if self._direct:
            _PLAIN.send_command(self, *args, **options)
        else:
            self._one(args)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        commands = getattr(command, "commands", None)
        if commands is None or self._direct:
            _PLAIN.send_packed_command(self, command, check_health)
            return
        self._replies.clear()
        if commands[0] == ("MULTI",) and commands[-1] == ("EXEC",):
            self._take(commands, list(command), True)
            return
        collected = []
        for number, args in enumerate(commands, 1):
            self._one(args, last=number == len(commands))
            collected.append(self._collected())
        self._replies.extend(collected)

    def _one(self, args: Command, last: bool = True) -> None:
        if not self.actor.stage.footprints.blocking(args):
            self._take((args,), self._command_packer.pack(*args), last)
            return
        endless, seconds = without_timeout(args)
        packed = self._command_packer.pack(*endless)
        self._take((args,), packed, last, lambda: self._wait(seconds))

    def _take(
        self,
        commands: Sequence[Command],
        packed: list[bytes],
        last: bool,
        wait: Callable[[], None] | None = None,
    ) -> None:
        """Stop; then send, and with a lost reply see to it that the server has done it all."""
        if self.retired:
            raise ConnectionError("this connection was of an execution that is over")
        how = self.actor.step(commands, self, last)
        if self._sock is None:
            self.connect_check_health()
        if self.tracking:
            self._drain()
        _PLAIN.send_packed_command(self, packed, False)
        if wait is not None:
            wait()
        if how == "lose":
            self._replies.clear()
            for _ in commands:
                self._collected()
            self.disconnect()
            raise self.actor.lose()

    def _collected(self) -> Any:
        try:
            return self.read_response()
        except ResponseError as error:
            return error

    def read_response(self, *args: Any, **options: Any) -> Any:
        if self._replies:
            reply = self._replies.popleft()
            if isinstance(reply, Exception):
                raise reply
            return reply
        if self._direct:
            return _PLAIN.read_response(self, *args, **options)
        try:
            reply = _PLAIN.read_response(self, *args, **options)
        except ResponseError as error:
            self.actor.heard(error)
            raise
        if type(reply) is list:
            self.actor.heard(reply)
        else:
            self.actor.replies.append(reply)
        return reply

    def _drain(self) -> None:
        """Read what has been pushed so far, so that nothing but a reply can be there to be read."""
        self.actor.stage.r.ping()  # once this is answered, it has all been sent
        while self._sock is not None and select.select([self._sock], [], [], 0)[0]:
            _PLAIN.read_response(self, push_request=True)

    def _wait(self, seconds: float | None) -> None:
        """Until the reply is there, the actor is blocked."""
        sock: Any = self._sock
        while not select.select([sock], [], [], 0)[0]:
            if self.actor.stage.is_blocked(self.id):
                self.actor.block(self, seconds)
                return

    @property
    def id(self) -> int:
        """The server's number for this client."""
        hello: Any = self.handshake_metadata
        return int(hello["id"])


def without_timeout(args: Command) -> tuple[Command, float | None]:
    """A blocking command that waits for ever, and the seconds that it was to wait (None: for ever)."""
    try:
        return _without_timeout(args)
    except (IndexError, ValueError):
        return args, None  # no command, as the server will say


def _without_timeout(args: Command) -> tuple[Command, float | None]:
    said = [word.upper() for word in words(args)]
    name, millis = said[0], False
    if name in ("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX"):
        at = len(args) - 1
    elif name in ("WAIT", "WAITAOF"):
        at, millis = len(args) - 1, True
    elif name in ("BLMPOP", "BZMPOP"):
        at = 1
    elif name in ("XREAD", "XREADGROUP") and (at := _block_of_streams(said)):
        millis = True
    else:
        return args, None
    value = float(text(args[at]))
    if value < 0:
        return args, None
    endless = (*args[:at], 0, *args[at + 1 :])
    return endless, (value / 1000 if millis else value) or None


def _block_of_streams(said: list[str]) -> int:
    """Where in XREAD or XREADGROUP the milliseconds stand; 0 if it is not to wait."""
    first = 4 if said[0] == "XREADGROUP" else 1
    options = said[first : said.index("STREAMS", first)]
    return first + options.index("BLOCK") + 1 if "BLOCK" in options else 0


class ActorClient(redis.Redis):
    """An actor's client: what it changes of itself is gone with it."""

    def set_response_callback(self, command: str, callback: Any) -> None:
        self.response_callbacks = copy.copy(self.response_callbacks)
        super().set_response_callback(command, callback)


class ActorPool(redis.ConnectionPool):
    """A pool for one greenlet: it needs no locks, metrics and events, and an exploration saves their time."""

    def get_connection(self, *args: Any, **options: Any) -> Any:
        free = self._available_connections
        connection = free.pop() if free else self.make_connection()
        self._in_use_connections.add(connection)
        connection.connect()
        return connection

    def release(self, connection: Any) -> None:
        if connection in self._in_use_connections:
            self._in_use_connections.remove(connection)
            self._available_connections.append(connection)


def actors_client(address: dict[str, Any]) -> redis.Redis:
    """A client that stops before each command."""
    wanted = {**settings(), "socket_timeout": None, "retry": Retry(NoBackoff(), 0), "driver_info": None}
    return ActorClient(connection_pool=ActorPool(connection_class=ActorConnection, **{**wanted, **address}))


class Actor:
    """One client of a program: its callable in a greenlet, a redis-py client, and what has become of it.

    `state` is "ready" (it sends `pending` next), "blocked" (in a command that waits), "done" or "crashed".
    """

    def __init__(self, letter: str, fn: Callable[[Any], Any], stage: Any, client: redis.Redis) -> None:
        self.letter, self.fn, self.stage = letter, fn, stage
        self.owner = frozenset(letter)
        self._client, self._pool = client, client.connection_pool
        self._pool.connection_kwargs["actor"] = self
        for connection in self._pool._available_connections:
            connection.actor = self
        self.greenlet: Any = None
        self._marked = False
        self._clear()

    def _clear(self) -> None:
        self.state: Literal["ready", "blocked", "done", "crashed"] = "ready"
        self.pending: Sequence[Command] = ()
        self.connection: ActorConnection | None = None
        self.replies: list[Any] = []
        self.result: Any = None
        self.error: Exception | None = None
        self._lost: Exception | None = None
        self.steps, self.elapsed = 0, 0.0
        self.patience: float | None = None
        self.last_of_batch, self.notable = True, False
        self._stopping, self._refused = False, 0

    @property
    def able(self) -> bool:
        """Can it go on by itself?"""
        return self.state == "ready" or (self.state == "blocked" and self.patience is not None)

    def lose(self) -> Exception:
        """What it sees instead of a reply."""
        self._lost = TimeoutError("Timeout reading from socket")
        return self._lost

    @property
    def only_lost_a_reply(self) -> bool:
        """Is its error that of a lost reply, as it was or as redis-py passed it on (WATCH does so)?"""
        error: BaseException | None = self.error
        passed_on = isinstance(error, WatchError) and "occurred while watching" in str(error)
        if not passed_on and not isinstance(error, ConnectionError | TimeoutError):
            return False
        while error is not None and error is not self._lost:
            error = error.__cause__ or error.__context__
        return error is not None

    def start(self) -> None:
        """Begin anew: run to the first command."""
        self._clear()
        self.born = time(), monotonic()  # of its own: two clients never see quite the same
        self.scheduler: Any = getcurrent()
        if self.greenlet is None or self.greenlet.dead:
            self.greenlet = greenlet(self._run)
            self.greenlet.actor = self
        self.greenlet.gr_context = None  # context variables are as new
        self.greenlet.switch()

    def _run(self) -> None:
        """Run again and again: making a greenlet takes as long as a command."""
        while True:
            try:
                self.result = self.fn(self._new_client())
            except GreenletExit:  # it has been stopped
                pass
            except Exception as error:
                self.error = None if self._stopping else error
            self.state, self.pending = "done", ()
            (self.scheduler if self._stopping else self.stage.onward(self)).switch()

    def _new_client(self) -> redis.Redis:
        """A copy, so that nothing can be remembered of a client of an execution before."""
        client = ActorClient.__new__(ActorClient)
        vars(client).update(vars(self._client))
        return client

    def go(self, how: How = "run") -> None:
        """Take the pending step (or end a wait), and run on to the next."""
        if self.notable:
            self._note()
        self.steps += 1
        self.replies = []
        self.greenlet.switch(how)

    def step(self, commands: Sequence[Command], connection: ActorConnection | None, last: bool = True) -> How:
        """Called in the actor's greenlet, before it sends: stop until `go()`."""
        if self._stopping:
            self._refuse()
        if isinstance(ending := sys.exception(), KeyboardInterrupt | SystemExit):
            raise ending  # whoever tidies up on the way out sends nothing more
        if getcurrent() is not self.greenlet:
            raise RuntimeError("an actor's client sends for its own actor only, and not from a thread")
        self.pending, self.connection, self.last_of_batch = commands, connection, last
        self.state = "ready"
        if connection is not None:
            self.notable = connection.queued is not None or _is_noted(commands[0][0])
        try:
            there = self.stage.onward(self)
            how: How = there.switch("run") if there is not self.greenlet else "run"
        except GreenletExit:
            if _in_finalizer():  # which would print it
                raise ConnectionError("this client has been stopped") from None
            raise
        return how

    def _refuse(self) -> None:
        """Whoever has been stopped and wants to tidy up finds its connection gone; who insists is ended."""
        self._refused += 1
        if self._refused > 1000:
            said = f"client {self.letter} cannot be stopped: it goes on after any exception at all"
            self.scheduler.throw(LabkitError(f"{said}. Remedy: let it catch Exception, not BaseException."))
        raise ConnectionError("this client has been stopped") if self._refused < 50 else GreenletExit

    def block(self, connection: ActorConnection, seconds: float | None) -> None:
        """Called in the actor's greenlet, when the server lets it wait: stop until the reply is there."""
        self.state, self.patience, self.stage.waits = "blocked", seconds, True
        try:
            self.scheduler.switch()
        except GreenletExit:
            connection.disconnect()
            raise

    def heard(self, reply: Any) -> None:
        """A reply has been read."""
        self.replies.append(reply)
        if isinstance(reply, NoScriptError | list):
            for script in _not_loaded(reply, self.pending[-1]):
                self.stage.lacks(script)

    def footprint(self) -> Footprint:
        """What the pending step may read and write."""
        connection, found = self.connection, PURE
        for args in self.pending:
            found |= self.stage.footprints.of(args) if first_word(args) != "EXEC" else PURE
        if connection is None:
            return found
        if connection.tracking:
            return EVERYTHING
        executes = first_word(self.pending[-1]) == "EXEC"
        if connection.queued is not None and not executes:
            return PURE  # it is queued until EXEC
        if executes:
            found |= Footprint(reads=connection.watched.reads)
            found |= connection.queued or PURE
        return found

    def _note(self) -> None:
        """Keep account of what the step that is about to be taken leaves in its connection."""
        connection = self.connection
        assert connection is not None
        self._marked, self.notable = True, False
        for args in self.pending:
            name = first_word(args)
            if name == "WATCH":
                connection.watched |= self.stage.footprints.of(args)
            elif name == "MULTI":
                connection.queued = PURE
            elif name in ("EXEC", "DISCARD", "UNWATCH"):
                connection.watched, connection.queued = PURE, None
            elif connection.queued is not None:
                connection.queued |= self.stage.footprints.of(args)
            elif name in STATEFUL:
                connection.changed = True
                if name == "FUNCTION":
                    self.stage.r.functions = True
                kind = words(args)[1].upper() if name == "CLIENT" and len(words(args)) > 1 else ""
                connection.tracking |= kind == "TRACKING"
                if kind == "REPLY":
                    raise ValueError("an actor cannot do without replies (CLIENT REPLY)")
            else:
                raise ValueError(f"an actor cannot {name}: what is pushed to it belongs to no step")

    def sleep(self, seconds: float) -> None:
        """What `time.sleep` is to an actor: a step, which takes `seconds` of the actor's own time."""
        self.step((("SLEEP", seconds),), None)
        self.elapsed += max(0.0, seconds)

    def outside(self, step: Outside, act: Callable[[], T], show: Callable[[T], Any] | None) -> T:
        """A step that is no command: it happens when the scheduler says so."""
        self.step((step,), None)
        try:
            done = act()
        except Exception as error:
            self.replies.append(error)
            raise
        self.replies.append(show(done) if show else done)
        return done

    def crash(self) -> None:
        """Stop for good. A command that waits is withdrawn from the server."""
        if self.state == "blocked" and self.connection is not None:
            self.stage.kill_client(self.connection.id)
        self.stop()
        self.state = "crashed"

    def stop(self) -> None:
        """End the program where it stands, without another command, and make the connections as new."""
        self._stopping = True
        if self.state == "done" and not self._marked and not self._pool._in_use_connections:
            return
        if self.state in ("ready", "blocked") and self.greenlet is not None and not self.greenlet.dead:
            if self.state == "blocked" and self.connection is not None and self.connection._sock:
                self.stage.kill_client(self.connection.id)
            running, self.greenlet = self.greenlet, None
            running.throw(GreenletExit)
            self.greenlet = running
        for connection in list(self._pool._in_use_connections):  # who was to give it back is gone
            connection.retired = True
            self._pool.release(connection)
            self._pool._available_connections.remove(connection)
            self._pool._created_connections -= 1
            connection.disconnect()
        for connection in self._pool._available_connections:
            if connection.changed or connection.queued is not None or connection.watched != PURE:
                connection.disconnect()
        self._marked = False

    def close(self) -> None:
        """Stop, and end the greenlet."""
        self.stop()
        if self.greenlet is not None:
            self.greenlet.throw(GreenletExit)


def _in_finalizer() -> bool:
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def _not_loaded(reply: Any, args: Command) -> list[str]:
    """The scripts of which this reply says that they are not loaded."""
    said = words(args)
    if isinstance(reply, NoScriptError):
        return said[1:2]
    exists = [word.upper() for word in said[:2]] == ["SCRIPT", "EXISTS"]
    return [sha for sha, there in zip(said[2:], reply, strict=True) if not there] if exists else []


LAZY = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def letters(actors: Sequence[Any]) -> str:
    """A, B, C, …: a letter for each actor."""
    if not 1 <= len(actors) <= 26:
        raise ValueError(f"{len(actors)} actors; there must be from 1 to 26")
    for actor in actors:
        if not callable(actor):
            raise TypeError(f"an actor is {actor!r}; it must be a callable that takes a redis.Redis")
        if any(is_lazy(actor) for is_lazy in LAZY):
            raise TypeError(f"an actor is {actor!r}; it must be a plain function: calling it runs nothing")
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(actors)]
