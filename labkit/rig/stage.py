"""A program of several clients on a real Redis, taken one step at a time, in whatever order.

A *move* is a string: "A" lets client A take its next step (or, if it waits in a command, lets that time out),
"~A" the same but the reply is lost, "!A" stops A for good, and "*key" lets a key with a TTL expire.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError, RedisError

from labkit.rig.actors import Actor, Command, actors_client, letters
from labkit.rig.client import client
from labkit.rig.footprint import PURE, Footprint, Footprints, first_word, text, words
from labkit.rig.server import Server

expire = "expire"
"""Fault: any key that has a TTL may expire at any moment."""

crash = "crash"
"""Fault: any client may stop for good after any of its steps, also while it waits in a command."""

lose_reply = "lose_reply"
"""Fault: the server applies a step, and the client sees a timeout, also where it has waited for the reply.

Each client loses at most one reply. What it raises because of that is no violation; what it raises while it
deals with it is."""

FAULTS = (expire, crash, lose_reply)

DEEPEST = 200
"""After so many steps an interleaving is given up, and the verdict is at best "unknown"."""

_EMPTY = """
local keys = redis.call('KEYS', '*')
for i = 1, #keys, 5000 do redis.call('UNLINK', unpack(keys, i, math.min(i + 4999, #keys))) end
for db in string.gmatch(redis.call('INFO', 'keyspace'), 'db(%d+)') do
    redis.call('SELECT', db)
    redis.call('FLUSHDB')
end
"""
_WITH_TTL = """
local found = {}
for db in string.gmatch(redis.call('INFO', 'keyspace'), 'db(%d+)') do
    redis.call('SELECT', db)
    for _, key in ipairs(redis.call('KEYS', '*')) do
        if redis.call('PTTL', key) > 0 then found[#found + 1] = {db, key} end
    end
end
return found
"""
_EXPIRE = """
redis.call('SELECT', ARGV[1])
return redis.call('PEXPIREAT', ARGV[2], 1)  -- in the past: the server removes it
"""


_CLIENT = re.compile(r"^id=(\d+) .*? flags=(\w+)", re.M)


@dataclass(frozen=True)
class Program:
    """What is explored: the clients, how Redis is before, what must hold, and what may go wrong."""

    actors: tuple[Callable[[Any], Any], ...]
    setup: Callable[[Any], Any] | None = None
    invariant: Callable[..., Any] | None = None
    always: Callable[[Any], Any] | None = None
    faults: tuple[str, ...] = ()
    server: Server | None = None

    def __post_init__(self) -> None:
        letters(self.actors)
        if unknown := [fault for fault in self.faults if fault not in FAULTS]:
            said = " (a pause needs no fault: in some interleavings a client is paused)"
            raise ValueError(
                f"faults are {', '.join(FAULTS)}, not {unknown[0]!r}{said if unknown[0] == 'pause' else ''}"
            )
        if self.server is not None and not isinstance(self.server, Server):
            raise TypeError(f"server is {self.server!r}; it must be a Server: it is emptied again and again")


class Taken(NamedTuple):
    """A step that has been taken: by which move, which commands, and what it may have read and written.

    `owners` are those whose own order it is part of: the client, and clients whose wait it ended. `woken` are
    these, with their replies; `able` are those of the clients among the owners that can go on by themselves;
    `sole` says, of an expiry, that no other key had a TTL.
    """

    move: str
    owners: frozenset[str]
    footprint: Footprint
    commands: Sequence[Command]
    replies: Sequence[Any]
    woken: tuple[tuple[str, Any], ...] = ()
    able: frozenset[str] = frozenset()
    sole: bool = True


class Done(NamedTuple):
    """A step and what it led to; `after` has the states, and next commands, of the clients that it moved."""

    taken: Taken
    broken: tuple[int, str] | None
    mortal: list[str]
    after: tuple[tuple[Actor, str, Sequence[Command]], ...]


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode()).hexdigest()


def label(db: int, key: bytes) -> str:
    """What a key is called: by its name and, unless that is 0, its database."""
    return text(key) + (f" in db {db}" if db else "")


_mutex = threading.Lock()
_private: dict[int, list[Server]] = {}
"""The explorer's own servers that are free, by process: started when they are needed, gone with it."""

_in_use: set[Server] = set()


def _take_server(given: Server | None) -> Server:
    """A server that nobody else explores; a private one, unless one is given."""
    with _mutex:
        if given in _in_use:
            raise ValueError("this server is being explored: it is emptied again and again")
        free = _private.setdefault(os.getpid(), [])
        while given is None and free:
            server = free.pop()
            given = server if server.running else None
        if given is not None:
            _in_use.add(given)
            return given
    server = Server().start()
    with _mutex:
        _in_use.add(server)
    return server


def _give_back(server: Server, private: bool) -> None:
    with _mutex:
        _in_use.discard(server)
        if private:
            _private.setdefault(os.getpid(), []).append(server)


class _Control(redis.Redis):
    """The explorer's own client, which is given to `setup` and the invariants; it notes what they leave."""

    def __init__(self, **options: Any) -> None:
        self.db, self.functions = 0, True
        super().__init__(**options)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        reply: Any = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        name = first_word(args)
        if name == "SELECT":
            self.db = int(words(args)[1])
        elif name == "FUNCTION":
            self.functions = True
        return reply

    def clean(self) -> None:
        """Back to database 0, and without the functions that have been loaded."""
        if self.db:
            self.execute_command("SELECT", 0)
        if self.functions:
            self.execute_command("FUNCTION", "FLUSH")
            self.functions = False


class _Link:
    """Connections to a server, and what is known of its commands and scripts; kept for the next time."""

    def __init__(self, server: Server) -> None:
        self.process = os.getpid(), server.pid
        self._control = client(server.url, socket_timeout=30, driver_info=None)
        self._control.script_flush()  # so that each script's text is seen when it is loaded
        self.footprints = Footprints(self._control)
        self._address = {"host": "127.0.0.1", "port": server.port, "password": server.password}
        self._clients: list[redis.Redis] = []

    def client(self) -> _Control:
        """A new one on a connection that is there. Nothing of an earlier one is left in it."""
        return _Control(connection_pool=self._control.connection_pool, single_connection_client=True)

    def actors(self, count: int) -> list[redis.Redis]:
        """A client for each actor, with a pool of its own."""
        while len(self._clients) < count:
            self._clients.append(actors_client(self._address))
        return self._clients[:count]

    def close(self) -> None:
        for r in self._clients:
            r.connection_pool.disconnect()
        self._control.close()


_kept: weakref.WeakKeyDictionary[Server, _Link] = weakref.WeakKeyDictionary()


def _link(server: Server) -> _Link:
    """The link to this server that nobody uses, or a new one. Whoever takes it has it alone."""
    kept = _kept.pop(server, None)
    if kept is not None and kept.process == (os.getpid(), server.pid):
        with contextlib.suppress(RedisError):
            kept._control.ping()
            return kept
    return _Link(server)


class Stage:
    """The program on its server. `begin()`, then `do(move)` for one of `moves()`, until there are none."""

    def __init__(self, program: Program, footprints: bool = True) -> None:
        self.program, self._wants_footprints = program, footprints
        self._server = _take_server(program.server)
        try:
            self._link = _link(self._server)
            self.r, self.footprints = self._link.client(), self._link.footprints
            self.r.execute_command("SELECT", 0)
        except BaseException:
            _give_back(self._server, program.server is None)
            raise
        clients = self._link.actors(len(program.actors))
        parts = zip(letters(program.actors), program.actors, clients, strict=True)
        self.actors = {name: Actor(name, fn, self, client) for name, fn, client in parts}
        self._all = tuple(self.actors.values())
        self._always, self._faults = program.always, program.faults
        self._takes_results = _takes_results(program.invariant)
        self.cold = self.waits = False
        self._missing: set[str] = set()
        self._waited: Counter[str] = Counter()
        self._places: dict[str, tuple[int, bytes]] = {}
        self._known: Sequence[Done] = ()  # steps that are taken again
        self._at = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """What went well is kept; after an exception nothing is."""
        try:
            for actor in self.actors.values():
                actor.close()
        except BaseException:
            kind = True
            raise
        finally:
            try:
                self.r.close()
                if kind is None:
                    _kept[self._server] = self._link
                else:
                    self._link.close()
            finally:
                _give_back(self._server, self.program.server is None)

    def _eval(self, script: str, *args: Any, **options: Any) -> Any:
        try:
            return self.r.execute_command("EVALSHA", _sha(script), 0, *args, **options)
        except NoScriptError:
            return self.r.execute_command("EVAL", script, 0, *args, **options)

    def begin(self) -> None:
        """Empty the server, set it up, and let each client run to its first command."""
        for actor in self.actors.values():
            actor.stop()
        self.r.clean()
        self._eval(_EMPTY)
        if self.program.setup is not None:
            self.program.setup(self.r)
        self.cold = self.waits = False
        self.taken: list[Taken] = []
        self.broken: tuple[int, str] | None = None
        self._lost: set[str] = set()
        self._mortal: list[str] = []
        for actor in self.actors.values():
            actor.start()
        if expire in self.program.faults:
            self._look()

    def lacks(self, script: str) -> None:
        """A client has met a script that is not loaded; if it loads it then, that is to be no difference."""
        if self._waited[script] < 3:
            self._missing.add(script)
            self.cold = True

    def warm(self) -> None:
        """Let the clients run, one after the other, so that the server knows the scripts that they use.

        A script that is still missing after three of these runs is one that nobody loads.
        """
        self._waited.update(self._missing)
        self._missing.clear()
        self.begin()
        for actor in self._all:
            while actor.state == "ready" and actor.steps < DEEPEST:
                self.do(actor.letter)

    def starts_well(self) -> bool:
        """Whether `always` holds before the first step: else it matters which step is the first."""
        self.begin()
        try:
            return self.program.always is None or _why_not(self.program.always, self.r) is None
        except Exception:
            return False

    def moves(self) -> list[str]:
        """What can happen next; nothing once no client can move."""
        faults = self._faults
        found = [a.letter for a in self._all if a.state == "ready" or a.able]
        if not faults or not found:
            return found
        for name, actor in self.actors.items():
            if lose_reply in faults and self._can_lose(name, actor):
                found.append(f"~{name}")
            if crash in faults and actor.steps and actor.state in ("ready", "blocked"):
                found.append(f"!{name}")
        return found + [f"*{key}" for key in self._mortal]

    def _can_lose(self, name: str, actor: Actor) -> bool:
        if actor.state != "ready" or name in self._lost or actor.connection is None:
            return False
        return actor.last_of_batch and bool(actor.pending)

    def pending(self, move: str) -> Sequence[Command]:
        """The commands that a move would send; none if it is not possible."""
        if move[0] == "*":
            return ((move,),) if move[1:] in self._mortal else ()
        actor = self.actors[move[-1]]
        if move[0] == "!":
            return ((move,),) if actor.state in ("ready", "blocked") else ()
        if actor.state == "blocked":
            return (("TIMEOUT", *actor.pending[0]),) if actor.patience is not None else ()
        return actor.pending

    def do(self, move: str) -> Taken:
        """Take a step, end the waits that it ends, and check `always`."""
        taken = self._expire(move) if move[0] == "*" else self._act(move)
        if self.waits:
            taken = self._wake(taken)
        if self._faults:
            taken = taken._replace(able=frozenset(a.letter for a in self._all if a.able) & taken.owners)
            if expire in self._faults and (taken.footprint.changes or not self._wants_footprints):
                self._look()
        self.taken.append(taken)
        if self._always is not None and self.broken is None:
            why = _why_not(self._always, self.r)
            self.broken = (len(self.taken) - 1, why) if why is not None else None
        return taken

    def after(self, who: Iterable[str]) -> tuple[tuple[Actor, str, Sequence[Command]], ...]:
        """The states of these clients, and what they would send next."""
        actors = self.actors
        return tuple([(a, a.state, a.pending) for a in map(actors.get, who) if a is not None])

    def done(self, taken: Taken) -> Done:
        """What the step that has just been taken led to."""
        return Done(taken, self.broken, self._mortal, self.after(taken.owners))

    def redo(self, known: Sequence[Done], at: int) -> int:
        """Take the step `at` again: what it leads to is known, and not asked for again.

        And those after it, as long as they are done by clients that go on as they did. Says which is next.
        """
        move = known[at].taken.move
        self._known, self._at = known, at
        try:
            if move[0] == "*":
                self._expire(move)
            else:
                self._move(self.actors[move[-1]], move)
        finally:
            self._known = ()
        done = known[self._at]
        if self.waits:
            self._wake(done.taken)
        self.taken += [one.taken for one in known[at : self._at + 1]]
        self.broken, self._mortal = done.broken, done.mortal
        return self._at + 1

    def onward(self, actor: Actor) -> Any:
        """The greenlet to go on in when a client stops: the scheduler's, or that of the known next step."""
        known, at = self._known, self._at + 1
        if at >= len(known) or self.waits or self.cold:
            return actor.scheduler
        after = known[at - 1].after[0]
        move = known[at].taken.move
        if actor.state != after[1] or actor.pending != after[2] or len(move) > 1:
            return actor.scheduler
        other = self.actors[move]
        if other.state != "ready" or other.notable:
            return actor.scheduler
        self._at = at
        other.steps += 1
        other.replies = []
        return other.greenlet

    def _act(self, move: str) -> Taken:
        actor = self.actors[move[-1]]
        commands = self.pending(move)
        footprint = actor.footprint() if self._wants_footprints else PURE
        if move[0] == "!" and actor.state != "blocked":
            footprint = PURE
        self._move(actor, move)
        return Taken(move, actor.owner, footprint, commands, () if move[0] == "!" else actor.replies)

    def _move(self, actor: Actor, move: str) -> None:
        if actor.state == "ready" and len(move) == 1:
            actor.go()
        elif move[0] == "!":
            actor.crash()
        elif actor.state == "blocked":
            self._time_out(actor)
        else:
            self._lost.add(actor.letter)
            actor.go("lose")

    def _time_out(self, actor: Actor) -> None:
        """The server gives the same reply as after the time that the command was to wait."""
        assert actor.connection is not None
        self.r.execute_command("CLIENT UNBLOCK", actor.connection.id, "TIMEOUT")
        actor.elapsed += actor.patience or 0
        actor.go()

    def expiry(self, move: str) -> Taken:
        """What a key's expiry would be, if no client waited for that."""
        footprint = Footprint(writes=frozenset({text(self._places[move[1:]][1])}))
        return Taken(move, frozenset({move}), footprint, ((move,),), (), sole=len(self._mortal) == 1)

    def _expire(self, move: str) -> Taken:
        self._eval(_EXPIRE, *self._places[move[1:]])
        return self.expiry(move)

    def late_moves(self) -> list[str]:
        """Faults when no client can go on: they count only in so far as they could have come before."""
        found = [f"!{a.letter}" for a in self._all if a.state == "blocked" and crash in self.program.faults]
        return found + [f"*{key}" for key in self._mortal]

    def _wake(self, taken: Taken) -> Taken:
        """Clients whose wait this step ended read their replies, and run on to their next command."""
        waiting = [actor for actor in self._all if actor.state == "blocked"]
        if not waiting:
            return taken
        still = self._blocked([actor.connection.id for actor in waiting if actor.connection])
        for actor in waiting:
            if actor.connection is None or actor.connection.id in still:
                continue
            footprint = actor.footprint() if self._wants_footprints else PURE
            actor.go()
            reply = actor.replies[-1] if actor.replies else None
            taken = taken._replace(
                owners=taken.owners | {actor.letter},
                footprint=taken.footprint | footprint,
                woken=(*taken.woken, (actor.letter, reply)),
            )
        return taken

    def _look(self) -> None:
        """Which keys may expire now?"""
        found = {label(int(db), key): (int(db), key) for db, key in self._eval(_WITH_TTL, NEVER_DECODE=True)}
        self._places |= found
        self._mortal = sorted(found)

    def _blocked(self, ids: Iterable[int]) -> set[int]:
        found = text(self.r.execute_command("CLIENT", "LIST", "ID", *ids))
        return {int(number) for number, flags in _CLIENT.findall(found) if "b" in flags}

    def is_blocked(self, client_id: int) -> bool:
        """Does the server let this client wait?"""
        return client_id in self._blocked([client_id])

    def kill_client(self, client_id: int) -> None:
        """Close a client's connection at the server; nothing can be served to it any more."""
        self.r.execute_command("CLIENT KILL", "ID", client_id)

    def verdict(self) -> tuple[int | None, str] | None:
        """What is wrong with the execution that has come to its end (and at which step), or None."""
        if self.broken is not None:
            return self.broken
        for name, actor in self.actors.items():
            if actor.error is not None and not actor.only_lost_a_reply:
                return None, f"{name} raised {type(actor.error).__name__}: {actor.error}"
        if waiting := [actor for actor in self.actors.values() if actor.state == "blocked"]:
            said = ", ".join(f"{actor.letter} waits in {actor.pending[0][0]}" for actor in waiting)
            return None, f"deadlock: {said}, and nobody is left to end it"
        if self.program.invariant is None:
            return None
        given = (self.r, self.results) if self._takes_results else (self.r,)
        why = _why_not(self.program.invariant, *given)
        return None if why is None else (None, why)

    @property
    def results(self) -> list[Any]:
        """What each client returned; the error that ended one that could not bear a lost reply; else None."""
        return [actor.error or actor.result for actor in self.actors.values()]


def _why_not(check: Callable[..., Any], *given: Any) -> str | None:
    """None if the check holds, else what it says."""
    try:
        held = check(*given)
    except AssertionError as error:
        return str(error) or "an assertion of it failed"
    if held is None and getattr(check, "__name__", "") == "<lambda>":
        raise TypeError("an invariant returned None; it must return a bool, or raise AssertionError")
    return None if held or held is None else "the invariant does not hold"


def _takes_results(invariant: Callable[..., Any] | None) -> bool:
    if invariant is None:
        return False
    wanted = [
        parameter
        for parameter in inspect.signature(invariant).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(wanted) > 1
