"""Which steps of an execution may swap: it stands for all arrangements that keep the order that matters.

Two executions that differ only by swaps of neighbouring steps, of which neither depends on the other, end in
the same state with the same replies (Mazurkiewicz 1977). One of them is run, and the others are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from labkit.rig.footprint import conflict
from labkit.rig.stage import Taken


def dependent(one: Taken, other: Taken, ordered_writes: bool = False) -> bool:
    """May the order of these two steps matter? With `ordered_writes`, also that of any two changes."""
    if not one.owners.isdisjoint(other.owners) or conflict(one.footprint, other.footprint):
        return True
    return ordered_writes and one.footprint.changes and other.footprint.changes


def switches(moves: Sequence[str]) -> int:
    """How often another client goes on than the one before. Crashes and expiries are no client's steps."""
    clients = [move[-1] for move in moves if move[0] not in "!*"]
    return sum(a != b for a, b in pairwise(clients))


class Order:
    """The order that matters in an execution; whatever arrangement of its steps keeps to it is its equal.

    Only arrangements that can happen are counted: crashes and expiries do not, once no client can go on by
    itself. `before` says of each step which earlier ones must stay before it (a bit for each), `able` are the
    clients that could go on before the first step.
    """

    def __init__(self, taken: Sequence[Taken], before: Sequence[int], able: frozenset[str]) -> None:
        self.moves = [step.move for step in taken]
        self._faults = sum(1 << i for i, move in enumerate(self.moves) if move[0] in "!*")
        self._able, self._taken = able, taken
        self.before = before
        self.all = (1 << len(taken)) - 1

    def _next(self, done: int) -> Iterator[int]:
        stuck = self._faults & ~done and not self._some_able(done)
        for i, before in enumerate(self.before):
            if not done >> i & 1 and before & done == before and not (stuck and self._faults >> i & 1):
                yield i

    def _some_able(self, done: int) -> bool:
        able = self._able
        for i, step in enumerate(self._taken):
            if done >> i & 1:
                able = able - step.owners | step.able
        return bool(able)

    def count(self) -> int:
        """How many arrangements there are; 0 if each has a fault that comes too late to happen."""
        if not self._faults and all(self.before[i] >> i - 1 & 1 for i in range(1, len(self.moves))):
            return 1  # each depends on the one just before it
        ways = {0: 1}
        for _ in self.moves:
            longer: dict[int, int] = {}
            for done, number in ways.items():
                for i in self._next(done):
                    longer[done | 1 << i] = longer.get(done | 1 << i, 0) + number
            ways = longer
        return ways.get(self.all, 0)

    def fewest_switches(self) -> tuple[str, ...]:
        """The arrangement with the fewest switches between clients; among equals the first by name."""
        best: dict[tuple[int, str], tuple[int, tuple[str, ...]]] = {(0, ""): (0, ())}
        for _ in self.moves:
            longer: dict[tuple[int, str], tuple[int, tuple[str, ...]]] = {}
            for (done, last), (count, moves) in best.items():
                for i in self._next(done):
                    move = self.moves[i]
                    now = last if move[0] in "!*" else move[-1]
                    rank = (count + (bool(last) and now != last), (*moves, move))
                    at = (done | 1 << i, now)
                    longer[at] = min(longer.get(at, rank), rank)
            best = longer
        return min(best.values())[1]
