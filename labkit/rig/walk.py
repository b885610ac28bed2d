"""A program walked through by hand: one move at a time, and back as far as one likes.

    walk = Walk([buy, buy], setup=…, invariant=…)
    walk.take("A"); walk.take("B"); walk.undo()
    walk.trace          # what has happened so far; `walk.trace.next` says what can happen next

A real server cannot go back, so every move replays the whole schedule from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from labkit.rig.lanes import Life, layout
from labkit.rig.race import Exploration, Program, Trace, sequence
from labkit.rig.trace import spelled

Actor = Callable[[Any], Any]


class Walk:
    """The moves taken so far, in `moves`, and their Trace, in `trace`.

    Of an Exploration, `path` holds the moves of its counterexample, to go along with `forward()` or to leave;
    else it is empty. What a replay raises leaves everything as it was.
    """

    def __init__(
        self,
        program: Exploration | Program | Sequence[Actor],
        *,
        setup: Callable[[Any], Any] | None = None,
        invariant: Callable[..., Any] | None = None,
        always: Callable[[Any], Any] | None = None,
        faults: Sequence[str] = (),
    ) -> None:
        given = setup is not None or invariant is not None or always is not None or bool(faults)
        if isinstance(program, Exploration | Program):
            if given:
                raise TypeError(
                    "setup, invariant, always and faults are the program's own; give them with actors"
                )
            self.program = program.program if isinstance(program, Exploration) else program
        else:
            self.program = Program(tuple(program), setup, invariant, always, tuple(map(str, faults)))
        first = program.first if isinstance(program, Exploration) else None
        self.path = tuple(step.move for step in first.steps) if first else ()
        self.moves: tuple[str, ...] = ()
        self.trace = self.replay(())

    def replay(self, moves: Sequence[str]) -> Trace:
        """Run these moves from the beginning. Raises ValueError for one that is not possible."""
        p = self.program
        return sequence(
            "".join(map(spelled, moves)),
            p.actors,
            setup=p.setup,
            invariant=p.invariant,
            always=p.always,
            faults=p.faults,
            server=p.server,
        )

    def go(self, moves: Sequence[str]) -> Trace:
        """Be where these moves lead."""
        self.trace = self.replay(moves)
        self.moves = tuple(moves)
        return self.trace

    def take(self, move: str) -> Trace:
        """One more move: one of those that `trace.next` names."""
        return self.go((*self.moves, move))

    def undo(self) -> Trace:
        """Take back the last move; at the beginning nothing happens."""
        return self.go(self.moves[:-1])

    def restart(self) -> Trace:
        """Take back all moves."""
        return self.go(())

    @property
    def strayed(self) -> bool:
        """Whether the moves are no beginning of the counterexample."""
        return bool(self.path) and self.moves != self.path[: len(self.moves)]

    @property
    def ahead(self) -> str:
        """The counterexample's next move; "" at its end, off it, or where there is none."""
        on_it = self.path and not self.strayed and len(self.moves) < len(self.path)
        return self.path[len(self.moves)] if on_it else ""

    def forward(self) -> Trace:
        """The counterexample's next move; from off it, back to where it was left."""
        if self.strayed:
            same = [a == b for a, b in zip(self.moves, self.path, strict=False)]
            return self.go(self.moves[: [*same, False].index(False)])
        return self.take(self.ahead) if self.ahead else self.trace

    @property
    def signpost(self) -> str:
        """What the button along the counterexample says."""
        if self.strayed:
            return "back to the counterexample"
        if self.ahead:
            return (
                f"next step of the counterexample: {self.ahead} ({len(self.moves) + 1} of {len(self.path)})"
            )
        return "the counterexample ends here"

    def label(self, move: str) -> str:
        """What a button for this move says: what it would do, or why it cannot be taken."""
        if move[0] in "*!~":
            return f"{move[1:]} {({'*': 'expires', '!': 'crashes', '~': 'loses its reply'})[move[0]]}"
        whats, name = dict(self.trace.next), dict(self.trace.clients)[move]
        if move in whats:
            return f"{move} · {name} ▸ {whats[move]}"
        rows = layout(self.trace)
        life = rows[-1].lives[move] if rows else "done"
        return f"{move} · {name} {_STANDS[life]}"

    @property
    def verdict(self) -> str:
        """One line: what is wrong, that all is well in the end, or what there is to do."""
        if self.trace.wrong:
            return f"✗ {self.trace.wrong}"
        if not self.trace.finished:
            return "whose turn is it? Choose the next step."
        if self.program.invariant is None and self.program.always is None:
            return "all clients are done."
        return "✓ all clients are done, and the invariant holds."


_STANDS: dict[Life, str] = {"runs": "stops here", "waits": "waits", "done": "is done", "gone": "has crashed"}
