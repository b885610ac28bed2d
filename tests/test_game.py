"""The game that a leaderboard is fed with: the same points each time, boosts, and what it refuses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from labkit.rig.game import HIT, NAMES, Game, scores


class Board:
    """Adds up, and notes every call."""

    def __init__(self) -> None:
        self.points: Counter[str] = Counter()
        self.calls = 0

    def increment(self, member: str, by: int = 1) -> int:
        self.points[member] += by
        self.calls += 1
        return self.points[member]


def test_what_is_made_stands_on_the_board_by_one_call_for_each_who_scored() -> None:
    board = Board()
    game = Game(board, 5)
    made = game.play(20)
    assert made == dict(board.points)
    assert board.calls == len(made) == 5
    assert all(points > 0 and points % HIT == 0 for points in made.values())
    assert game.play(0) == {}
    assert board.calls == 5
    assert repr(game) == "Game(5 players, 20 s)"


def test_the_same_points_are_made_however_the_time_is_cut() -> None:
    def points(cuts: list[float], **options: Any) -> Counter[str]:
        board = Board()
        game = Game(board, **options)
        for seconds in cuts:
            game.play(seconds)
        return board.points

    assert points([60]) == points([0.5] * 120) == points([1, 59])
    assert points([60]) != points([60], seed=10)
    fewer, more = points([60], players=3), points([60], players=8)
    assert {name: more[name] for name in fewer} == dict(fewer)  # who else plays is no difference


def test_a_boost_is_for_a_player_and_a_time() -> None:
    plain, boosted = Board(), Board()
    game = Game(boosted, 4)
    Game(plain, 4).play(30)
    game.boost("bob", factor=6, seconds=30)
    assert game.boosted("bob")
    game.play(30)
    assert not game.boosted("bob")
    assert not game.boosted("nobody")
    assert boosted.points["bob"] > 3 * plain.points["bob"]
    assert boosted.points["ada"] == plain.points["ada"]
    still = Game(Board(), ["x"])
    still.boost("x", factor=0, seconds=1000)
    assert still.play(1000) == {}


def test_players_swing_so_that_places_change() -> None:
    board = Board()
    game, leaders = Game(board), set()
    for _ in range(120):
        game.play(1)
        leaders.add(board.points.most_common(1)[0][0])
    assert len(leaders) >= 3


def test_names() -> None:
    assert Game(Board(), 2).names == ("ada", "bob")
    assert Game(Board(), 18).names[-3:] == (NAMES[-1], "player-17", "player-18")
    assert Game(Board(), ["x", "y"]).names == ("x", "y")


@pytest.mark.parametrize("players", [0, -1, [], ["ada", "ada"]])
def test_players_that_are_none_or_twice_are_refused(players: Any) -> None:
    with pytest.raises(ValueError, match="players is "):
        Game(Board(), players)


def test_times_and_factors_below_0_are_refused() -> None:
    game = Game(Board())
    with pytest.raises(ValueError, match="seconds is -1; it must be 0 or more"):
        game.play(-1)
    with pytest.raises(ValueError, match="factor is -1"):
        game.boost("ada", -1)
    with pytest.raises(ValueError, match="name is 'zoe'; the players are ada, bob"):
        game.boost("zoe")


def test_scores_are_the_same_each_time_and_long_tailed() -> None:
    made = scores(2000)
    assert made == scores(2000)
    assert list(made)[:2] == ["player-0000001", "player-0000002"]
    ordered = sorted(made.values())
    assert ordered[0] >= 0
    assert ordered[-1] > 20 * ordered[1000]
    assert ordered[-1] <= 2**30
    assert scores(0) == {}
    with pytest.raises(ValueError, match="members is -1"):
        scores(-1)
