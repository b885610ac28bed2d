"""Every interleaving of a few clients, tried on a real Redis.

    def buy(r):
        if int(r.get("stock")) > 0:
            r.decr("stock")
            r.rpush("sold", "ticket")

    result = explore([buy, buy], setup=lambda r: r.set("stock", 1), invariant=lambda r: r.llen("sold") <= 1)

Redis runs one command at a time, so what several clients do together depends only on the order in which their
commands arrive. `explore` tries every order. A pause of a client needs no fault of its own: in some of the
orders everybody else moves while it stands still. Sources: stateless search (VeriSoft, Godefroid 1997), sleep
sets (Godefroid 1996), bounded context switches (CHESS, Musuvathi and Qadeer 2007).

A schedule is a string, one move after another: `A` is client A's next step (if it waits in a command, that
wait times out), `~A` the same with its reply lost, `!A` A's crash, `*` the expiry of a key (`*{key}` where
several have a TTL).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from labkit import LabkitError
from labkit.rig.actors import Actor, Command
from labkit.rig.order import Order, dependent, switches
from labkit.rig.outside import outside
from labkit.rig.server import Server
from labkit.rig.stage import DEEPEST, Done, Program, Stage, Taken, crash, expire, lose_reply
from labkit.rig.trace import Trace, record, spell, spelled
from labkit.rig.virtual import virtual_time

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Exploration",
    "NondeterministicActor",
    "Program",
    "RaceFound",
    "Trace",
    "crash",
    "expire",
    "explore",
    "lose_reply",
    "outside",
    "sequence",
]

Verdict = Literal["safe", "violated", "unknown"]
Why = tuple[int | None, str] | None


class NondeterministicActor(LabkitError):
    """A client sent other commands, or other keys, when the same schedule was run again.

    `actor`, `schedule`, and the two commands, `first` and `second`, are what was seen.
    """

    def __init__(self, actor: str, schedule: str, first: str, second: str) -> None:
        self.actor, self.schedule, self.first, self.second = actor, schedule, first, second
        super().__init__(
            f"client {actor} is not deterministic: after the same schedule {schedule or '(none)'!r} it sent\n"
            f"  first:  {first}\n  then:   {second}\n"
            "Remedy: let commands and keys depend on replies alone; only other arguments may be random."
        )


class RaceFound(LabkitError, AssertionError):
    """`assert_safe()` found that it is not; `exploration` holds the evidence."""

    def __init__(self, exploration: Exploration) -> None:
        self.exploration = exploration
        super().__init__(str(exploration))


class Interleaving(NamedTuple):
    """One that was run: its schedule, what was wrong with it ("" if nothing), and how many it stands for."""

    schedule: str
    wrong: str
    stands_for: int


@dataclass(frozen=True, repr=False)
class Exploration:
    """What `explore` found.

    `total` counts interleavings and `violations` those among them that break a rule. With `reduce` most of
    them are not run: `runs` were, and each stands for all that differ from it by swaps of steps that touch
    nothing of each other. `exhausted` says that no interleaving is missing; `ended` what stopped the search.
    `schedule` is that of the counterexample with the fewest switches between clients, "" if there is none.
    """

    program: Program = field(compare=False)
    total: int
    violations: int
    exhausted: bool
    runs: int
    interleavings: tuple[Interleaving, ...]
    schedule: str
    ended: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def verdict(self) -> Verdict:
        """ "violated", "safe" (all interleavings were tried), or "unknown" (a limit ended the search)."""
        if self.violations:
            return "violated"
        return "safe" if self.exhausted else "unknown"

    @cached_property
    def first(self) -> Trace | None:
        """The counterexample, run again when it is first asked for; None if there is none."""
        return self.replay(self.schedule) if self.violations else None

    def replay(self, schedule: str) -> Trace:
        """Run one schedule again, step by step. Raises ValueError where it names an impossible move.

        It runs on the explorer's own server if the one that was given has ended.
        """
        return _replay(self.program, schedule)

    @property
    def df(self) -> pd.DataFrame:
        """One row for each interleaving that was run: schedule, what was wrong, how many it stands for."""
        import pandas as pd

        rows = [(one.schedule, one.wrong, one.stands_for) for one in self.interleavings]
        return pd.DataFrame(rows, columns=["schedule", "wrong", "stands_for"])

    def assert_safe(self) -> None:
        """Raises RaceFound, an AssertionError with the counterexample, unless the verdict is "safe"."""
        if self.verdict != "safe":
            raise RaceFound(self)

    @property
    def headline(self) -> str:
        """The first sentence: how many of how many, and the verdict."""
        if self.violations:
            rule = f"break{'s' * (self.violations == 1)} the invariant"
            said = f"{self.violations:,} of {self.total:,} interleavings {rule}"
            return said + ("" if self.exhausted else f"; then {self.ended} ended the search")
        if self.exhausted:
            return f"0 of {self.total:,} interleavings break the invariant: safe, all were tried"
        return f"unknown: 0 of the first {self.total:,} interleavings break the invariant, then {self.ended}"

    def __repr__(self) -> str:
        return self.headline + (f"\n{self.first}" if self.first else "")

    def _repr_html_(self) -> str:
        mark = {"safe": "✓", "violated": "✗", "unknown": "?"}[self.verdict]
        head = f'<p style="margin:0.4em 0"><b>{mark} {escape(self.headline)}</b></p>'
        return head + (self.first._repr_html_() if self.first else "")


def explore(
    actors: Sequence[Callable[[Any], Any]],
    *,
    setup: Callable[[Any], Any] | None = None,
    invariant: Callable[..., Any] | None = None,
    always: Callable[[Any], Any] | None = None,
    faults: Sequence[str] = (),
    reduce: bool = True,
    limit: int = 10_000,
    seconds: float = 30,
    max_switches: int | None = None,
    server: Server | None = None,
) -> Exploration:
    """Try every interleaving of these clients on a real Redis.

    Each actor is a callable that takes a `redis.Redis` of its own. A step is one command; a MULTI/EXEC
    pipeline or a script is one, too, and a plain pipeline one for each of its commands. `time.sleep` is one
    in which only that client's own clock moves on; and `outside` makes one of what is not Redis, such as a
    statement to a database. A blocking command waits until another client's step, or its timeout (at any
    moment), ends it; if nobody is left to run, that is a violation: a deadlock.

    `setup(r)` runs before each interleaving, on an empty server. `invariant(r)` or `invariant(r, results)` is
    asked at the end of each, `always(r)` after every step; each returns a bool or raises AssertionError. An
    actor that raises is a violation, too. `faults` adds `expire`, `crash` and `lose_reply`.

    `reduce` leaves out interleavings that differ only by swaps of steps that commute; it changes no verdict
    and no count, if the actors share nothing but Redis, and what they touch in `outside`. After `limit` runs
    or `seconds`, or where `max_switches` (between clients, at most) cut something off, a verdict without
    violation is "unknown".

    The server is a private one unless `server` is given; it is emptied each time. Keys must live for seconds
    at least: real time passes too, a few ms for each interleaving.

    Raises NondeterministicActor where an actor does not do the same again; ValueError, TypeError for misuse.
    """
    if invariant is None and always is None:
        raise ValueError("neither invariant nor always is given: say what must hold")
    if limit < 1 or seconds <= 0:
        raise ValueError(f"limit is {limit!r} and seconds is {seconds!r}; both must be above 0")
    if max_switches is not None and max_switches < 0:
        raise ValueError(f"max_switches is {max_switches!r}; it must be at least 0")
    program = Program(tuple(actors), setup, invariant, always, tuple(map(str, faults)), server)
    reduced = reduce and max_switches is None  # the two together would miss interleavings
    with Stage(program, footprints=reduced) as stage, virtual_time(program.actors):
        return _Search(stage, reduced, limit, seconds, max_switches).run()


def sequence(
    schedule: str,
    actors: Sequence[Callable[[Any], Any]],
    *,
    setup: Callable[[Any], Any] | None = None,
    invariant: Callable[..., Any] | None = None,
    always: Callable[[Any], Any] | None = None,
    faults: Sequence[str] = (),
    server: Server | None = None,
) -> Trace:
    """Run one hand-written order, such as "ABAB"; it may end before the clients do.

    Raises ValueError where the schedule names a move that is not possible, and says which are.
    """
    program = Program(tuple(actors), setup, invariant, always, tuple(map(str, faults)), server)
    return _replay(program, schedule)


def _replay(program: Program, schedule: str) -> Trace:
    if program.server is not None and not program.server.running:
        program = replace(program, server=None)
    with Stage(program) as stage, virtual_time(program.actors):
        return record(stage, schedule)


class _Node:
    """A state on the current path: what can happen next, what need not be tried, and what has been.

    `last` is what came of the present move, `before` which steps of the path (a bit for each) it depends on.
    """

    __slots__ = ("before", "done", "last", "move", "moves", "sleep")

    def __init__(self, moves: list[str], sleep: dict[str, Taken]) -> None:
        self.moves, self.sleep = moves, sleep
        self.done: dict[str, Taken] = {}
        self.move, self.before = "", 0
        self.last: Done | None = None

    def next(self) -> str | None:
        """A move that is still to be tried from here."""
        for move in self.moves:
            if move not in self.done and move not in self.sleep:
                return move
        return None


class _Search:
    """Depth first over all schedules; each is run from its beginning, since a real server cannot go back."""

    def __init__(
        self, stage: Stage, reduce: bool, limit: int, seconds: float, max_switches: int | None
    ) -> None:
        self.stage, self.reduce, self.limit, self.max_switches = stage, reduce, limit, max_switches
        self.seconds = seconds
        self.path: list[_Node] = []
        self.found: list[Interleaving] = []
        self.best: tuple[Any, tuple[str, ...]] | None = None
        self.total = self.violations = self.runs = 0
        self.cut = ""
        self.start: Any = ()

    def run(self) -> Exploration:
        with _rarely_collected() as collect:
            return self._search(collect)

    def _search(self, collect: Callable[[int], object]) -> Exploration:
        began = perf_counter()
        self.reduce = self.reduce and self.stage.starts_well()
        ended = ""
        while not ended:
            self._run_once()
            self.runs += 1
            collect(self.runs)
            if self.runs == 1:
                self._same_again()
            if not self._back():
                break
            if self.runs >= self.limit:
                ended = f"the limit of {self.limit:,} runs"
            elif perf_counter() - began > self.seconds:
                ended = f"the limit of {self.seconds:g} s"
        ended = " and ".join(filter(None, (ended, self.cut)))
        schedule = self._schedule()
        return Exploration(
            self.stage.program,
            self.total,
            self.violations,
            not ended,
            len(self.found),
            tuple(self.found),
            schedule,
            ended,
            perf_counter() - began,
        )

    def _run_once(self) -> None:
        """Follow the path, then go on to an end, unless the rest has been tried in another order."""
        known = len(self.path)
        for _ in range(20):
            ends = self._follow(known)
            if not self.stage.cold:
                break
            del self.path[known:]  # a script was not loaded yet; now it is
            self.stage.warm()
        for taken, why in ends:
            self._count(taken, why)

    def _same_again(self) -> None:
        """Whoever does not do the same again is found out, even where there is only one interleaving."""
        self._follow(len(self.path))

    def _follow(self, known: int) -> list[tuple[list[Taken], Why]]:
        """The interleavings that end on the way, each with what is wrong with it.

        More than one does only with `reduce`: a fault after an end stands for the same fault before it.
        """
        stage, ends = self.stage, []
        stage.begin()
        if self.start:
            self._compare(self.start)
        else:
            self.start = stage.after(stage.actors)
            self.able = frozenset(actor.letter for actor in stage.actors.values() if actor.able)
        self._again(self.path[:known])
        sleep = self._child_sleep(self.path[-1]) if known else {}
        while True:
            moves = stage.moves()
            if not moves:
                ends.append((list(stage.taken), stage.verdict()))
            node = _Node(self._allowed(moves) if moves else self._late_moves(), sleep)
            move = node.next()
            if move is None:
                return ends
            if len(self.path) >= DEEPEST:
                self.cut = f"one that had not ended after {DEEPEST} steps (does a client poll for ever?)"
                return ends
            self.path.append(node)
            self._step(node, move)
            sleep = self._child_sleep(node)

    def _late_moves(self) -> list[str]:
        stage = self.stage
        found = stage.late_moves() if self.reduce and stage.program.faults else []
        if not found or any(actor.state == "blocked" for actor in stage.actors.values()):
            return found  # one may wake a client, which goes on
        return [m for m in found if self._order(stage.taken, stage.expiry(m)).count()]

    def _order(self, taken: Sequence[Taken], *more: Taken) -> Order:
        before = [node.before for node in self.path[: len(taken)]]
        return Order([*taken, *more], [*before, *(self._before(one, taken) for one in more)], self.able)

    def _allowed(self, moves: list[str]) -> list[str]:
        if self.max_switches is None:
            return moves
        kept = [m for m in moves if switches([*(n.move for n in self.path), m]) <= self.max_switches]
        if len(kept) < len(moves):
            self.cut = f"max_switches={self.max_switches} left out the others"
        return kept

    def _step(self, node: _Node, move: str) -> None:
        """Take a step for the first time."""
        stage = self.stage
        node.move = move
        node.done[move] = taken = stage.do(move)
        if self.reduce:
            node.before = self._before(taken, stage.taken[:-1])
        node.last = None if stage.cold else stage.done(taken)

    def _again(self, path: Sequence[_Node]) -> None:
        """Take the steps of the path again, and see that the clients do the same."""
        known = [node.last for node in path if node.last is not None]
        at = 0
        while at < len(known):
            at = self.stage.redo(known, at)
            self._compare(known[at - 1].after)
        if at < len(path):  # the last one has just turned to another move
            self._step(path[at], path[at].move)

    def _before(self, step: Taken, earlier: Sequence[Taken]) -> int:
        return sum(1 << i for i, other in enumerate(earlier) if self._dependent(other, step))

    def _compare(self, before: Iterable[tuple[Actor, str, Sequence[Command]]]) -> None:
        """What these clients send next must be what it was; the first run of a cold script does not count."""
        for actor, state, commands in before:
            if (actor.state == state and actor.pending == commands) or self.stage.cold:
                continue
            if actor.state != state or not self._same(commands, actor.pending):
                one, other = _said(commands), _said(actor.pending)
                raise NondeterministicActor(actor.letter, spell(self.stage.taken), one, other)

    def _same(self, one: Sequence[Command], other: Sequence[Command]) -> bool:
        of = self.stage.footprints.of
        named = self.stage.footprints.named
        return len(one) == len(other) and all(
            a[:1] == b[:1] and of(a) == of(b) and (a == b or named(a) == named(b))
            for a, b in zip(one, other, strict=True)
        )

    def _child_sleep(self, node: _Node) -> dict[str, Taken]:
        """Moves that need not be tried next: they were tried before this one, and commute with it."""
        if not self.reduce:
            return {}
        now = node.done[node.move]
        asleep = {**node.sleep, **node.done}
        return {m: t for m, t in asleep.items() if m != node.move and not self._dependent(t, now)}

    def _dependent(self, one: Taken, other: Taken) -> bool:
        return dependent(one, other, ordered_writes=self.stage.program.always is not None)

    def _back(self) -> bool:
        """Turn to the next untried move, as deep as there is one; False when there is none left."""
        while self.path:
            node = self.path[-1]
            move = node.next()
            if move is not None:
                node.move, node.last = move, None
                return True
            self.path.pop()
        return False

    def _count(self, taken: list[Taken], why: Why) -> None:
        order = self._order(taken) if self.reduce else None
        stands_for = order.count() if order else 1
        if not stands_for:
            return
        self.total += stands_for
        schedule = spell(taken)
        if order and taken and taken[-1].move[0] in "!*":  # it may come too late where it stands
            schedule = "".join(map(spelled, order.fewest_switches()))
        self.found.append(Interleaving(schedule, why[1] if why else "", stands_for))
        if why is None:
            return
        self.violations += stands_for
        moves = order.fewest_switches() if order else tuple(step.move for step in taken)
        rank = (switches(moves), sum(m[0] in "!*~" for m in moves), len(moves), moves)
        if self.best is None or rank < self.best[0]:
            self.best = rank, moves

    def _schedule(self) -> str:
        if self.best is None:
            return ""
        if not any(move[0] == "*" for move in self.best[1]):
            return "".join(self.best[1])
        self.stage.begin()
        for move in self.best[1]:
            self.stage.do(move)
        return spell(self.stage.taken)


@contextmanager
def _rarely_collected() -> Iterator[Callable[[int], object]]:
    """Meanwhile cyclic garbage is collected every 500 runs, not after every 700 objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield lambda runs: gc.collect(1) if was_on and runs % 500 == 0 else None
    finally:
        if was_on:
            gc.enable()


def _said(commands: Sequence[Command]) -> str:
    return "; ".join(" ".join(map(str, args)) for args in commands) or "(nothing more)"
