"""A game whose players score at random, each as well as they can: what a leaderboard is fed with.

    game = Game(board, players=12)
    game.play(10)               # ten seconds of it: who has made how many points
    game.boost("ada")           # scores five times as often, for ten seconds
    scores(1_000_000)           # a season's points of a million players

`board` is whatever has `increment(member, points)`. Nothing waits: time passes when somebody calls `play`.
With the same seed the same points are made, however the seconds are cut into calls.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

NAMES = (
    "ada", "bob", "carol", "dave", "eve", "fay", "gus", "hana",
    "ivan", "judy", "karl", "lena", "mia", "nils", "olga", "pete",
)  # fmt: skip

HIT = 10
"""Points of one hit: few enough that ties happen."""


class Game:
    """Players who score on `board`; `names` are those of the players, `seconds` how long it has lasted.

    `players` is a number of players, or their names. Each scores at a rate of their own, which goes up and
    down. Raises ValueError for no players, for one name twice, and for times or factors below 0.
    """

    def __init__(self, board: Any, players: int | Sequence[str] = 12, *, seed: int = 9) -> None:
        self.board = board
        self.names = _names(players)
        self.seconds = 0.0
        self._players = {name: _Player(f"{seed}:{name}") for name in self.names}

    def __repr__(self) -> str:
        return f"Game({len(self.names)} players, {self.seconds:g} s)"

    def play(self, seconds: float) -> dict[str, int]:
        """Let so many seconds pass: the points that players made in them, put on the board by a call each."""
        if not seconds >= 0:
            raise ValueError(f"seconds is {seconds!r}; it must be 0 or more")
        begin, self.seconds = self.seconds, self.seconds + seconds
        made = {name: HIT * player.hits(begin, self.seconds) for name, player in self._players.items()}
        scored = {name: points for name, points in made.items() if points}
        for name, points in scored.items():
            self.board.increment(name, points)
        return scored

    def boost(self, name: str, factor: float = 5.0, seconds: float = 10.0) -> None:
        """Let a player score `factor` times as often, for so many seconds from now."""
        if name not in self._players:
            raise ValueError(f"name is {name!r}; the players are {', '.join(self.names)}")
        if not (factor >= 0 and seconds >= 0):
            raise ValueError(f"factor is {factor!r}, seconds {seconds!r}; they must be 0 or more")
        self._players[name].boosts.append((self.seconds, self.seconds + seconds, factor))

    def boosted(self, name: str) -> bool:
        """Does a boost of that player last still? False for whoever is no player."""
        player = self._players.get(name)
        return player is not None and any(until > self.seconds for _, until, _ in player.boosts)


def _names(players: int | Sequence[str]) -> tuple[str, ...]:
    if isinstance(players, int):
        some = NAMES[: max(players, 0)]
        names = (*some, *(f"player-{n}" for n in range(len(some) + 1, players + 1)))
    else:
        names = tuple(players)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"players is {players!r}; it must be 1 or more, or names that differ")
    return names


class _Player:
    """Hits come at random (a Poisson process), at a rate that swings about the player's skill."""

    def __init__(self, seed: str) -> None:
        self._chance = chance = random.Random(seed)
        self._skill = chance.uniform(0.7, 1.4)  # hits a second
        self._period, self._phase = chance.uniform(15, 60), chance.uniform(0, math.tau)
        self._done, self._next = 0.0, chance.expovariate(1)
        self.boosts: list[tuple[float, float, float]] = []

    def hits(self, begin: float, end: float) -> int:
        """How many there are from `begin` to `end`."""
        self._done += self._expected(begin, end)
        for since, until, factor in self.boosts:
            if (first := max(begin, since)) < (last := min(end, until)):
                self._done += (factor - 1) * self._expected(first, last)
        count = 0
        while self._next <= self._done:
            self._next += self._chance.expovariate(1)
            count += 1
        return count

    def _expected(self, begin: float, end: float) -> float:
        """The area below the rate, skill · (1 + 0.9 · sin …)."""
        turn = math.tau / self._period
        swing = math.cos(turn * begin + self._phase) - math.cos(turn * end + self._phase)
        return self._skill * (end - begin + 0.9 * swing / turn)


def scores(members: int, *, seed: int = 9) -> dict[str, int]:
    """The points of so many players, from `player-0000001` on: many have few, few have many; none over 2³⁰.

    The same each time. A million take about a second.
    """
    if members < 0:
        raise ValueError(f"members is {members!r}; it must be 0 or more")
    chance = random.Random(seed).lognormvariate
    return {f"player-{n:07d}": min(int(chance(7, 1.5)), 2**30) for n in range(1, members + 1)}
