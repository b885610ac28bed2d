"""labkit.leaderboard on real servers: order, ties, ranks, windows, and what others do meanwhile."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import exceptions
from redis.cluster import RedisCluster
from redis.crc import key_slot
from servers import everywhere as everywhere

from labkit.leaderboard import MOST, TICKS, Leaderboard, Place, WindowedLeaderboard
from labkit.rig.processes import processes
from labkit.rig.race import explore
from labkit.rig.server import Server
from labkit.rig.wire import tap

NAME = "workbook:test:game"
DAY = 86_400


@pytest.fixture
def board(r: redis.Redis) -> Leaderboard:
    return Leaderboard(r, NAME)


def names(places: list[Place]) -> list[str]:
    return [place.member for place in places]


class TestOrder:
    def test_an_empty_board(self, board: Leaderboard) -> None:
        assert board.top() == board.page(1) == board.around("ada") == []
        assert board.rank("ada") is None and board.percentile("ada") is None
        assert len(board) == 0 and board.remove("ada") == 0 == board.remove() and bool(board)
        assert board.add_many({}) == 0 and board.ticks_left() == TICKS - 1 == board.renumber()

    def test_the_highest_is_first(self, board: Leaderboard) -> None:
        for member, points in {"ada": 5, "bob": 9, "eve": -3}.items():
            assert board.add(member, points) is True
        assert board.top() == [Place(1, "bob", 9), Place(2, "ada", 5), Place(3, "eve", -3)]
        assert board.rank("eve") == Place(3, "eve", -3) and len(board) == 3

    def test_who_was_first_is_ahead(self, board: Leaderboard) -> None:
        """A plain sorted set would order them by name, backwards."""
        for member in ("mia", "zoe", "ada", "kim"):
            board.add(member, 100)
        assert names(board.top()) == ["mia", "zoe", "ada", "kim"]
        board.add("mia", 99)
        board.add("mia", 100)
        assert names(board.top()) == ["zoe", "ada", "kim", "mia"], "she came again, and last"

    def test_the_same_points_again_cost_no_place(self, r: redis.Redis, board: Leaderboard) -> None:
        board.add("ada", 7)
        board.add("zoe", 7)
        before = r.zrange(board.key, 0, -1, withscores=True), board.ticks_left()
        assert board.add("ada", 7) is False and board.add_many({"ada": 7, "zoe": 7}) == 0
        assert board.add("ada", 7, best=True) is False and board.increment("ada", 0) == 7
        assert (r.zrange(board.key, 0, -1, withscores=True), board.ticks_left()) == before

    def test_increment(self, board: Leaderboard) -> None:
        assert board.increment("ada") == 1 and board.increment("ada", 41) == 42
        board.add("zoe", 40)
        assert board.increment("zoe", 2) == 42 and names(board.top()) == ["ada", "zoe"]
        assert board.increment("ada", -2) == 40 and board.increment("ada", 2) == 42
        assert names(board.top()) == ["zoe", "ada"]
        assert board.increment("kim", 0) == 0 and board.rank("kim") == Place(3, "kim", 0)

    def test_best(self, board: Leaderboard) -> None:
        assert [board.add("ada", points, best=True) for points in (5, 3, 5, 8)] == [True, False, False, True]
        assert board.add_many({"ada": 7, "bob": 7}, best=True) == 1
        assert board.add_many({"ada": 8, "bob": 9}, best=True) == 1
        assert board.top() == [Place(1, "bob", 9), Place(2, "ada", 8)]

    def test_a_best_that_is_refused_uses_no_tick(self, board: Leaderboard) -> None:
        board.add("ada", 5)
        left = board.ticks_left()
        assert not any(board.add("ada", 4, best=True) for _ in range(10))
        assert board.ticks_left() == left

    def test_remove(self, r: redis.Redis, board: Leaderboard) -> None:
        board.add_many({f"{n}": n for n in range(2_500)})
        board.add("late", 7)
        assert board.remove("7", "7", "nobody") == 1 and len(board) == 2_500
        assert board.remove(*map(str, range(2_500))) == 2_499 and names(board.top()) == ["late"]
        assert board.remove("late") == 1 and r.dbsize() == 0, "the ticks go with the last member"

    def test_clear(self, r: redis.Redis, board: Leaderboard) -> None:
        board.increment("ada")
        board.clear()
        assert r.dbsize() == 0

    @pytest.mark.parametrize("points", [MOST, -MOST, MOST - 1, 0, -1, 1])
    def test_nothing_is_lost_at_the_extremes(self, r: redis.Redis, board: Leaderboard, points: int) -> None:
        """The last two ticks still tell two apart, and points stay what they are."""
        board.add("first", points)
        r.set(board.ticks_key, TICKS - 3)
        for member in ("second", "third"):
            board.add(member, points)
        assert board.ticks_left() == 0
        assert board.top() == [
            Place(1, "first", points),
            Place(2, "second", points),
            Place(3, "third", points),
        ]

    def test_when_the_ticks_are_used_up_names_decide_until_they_are_given_anew(
        self, r: redis.Redis, board: Leaderboard
    ) -> None:
        board.add("mia", 5)
        r.set(board.ticks_key, TICKS - 2)
        for member in ("ada", "kim", "bob"):
            board.add(member, 5)
        assert board.increment("eve", 5) == 5 and board.ticks_left() == 0
        assert names(board.top()) == ["mia", "kim", "eve", "bob", "ada"], "but nobody passes who was first"
        assert board.renumber() == TICKS - 2
        assert names(board.top()) == ["mia", "kim", "eve", "bob", "ada"]
        board.add("tom", 5)
        assert names(board.top())[-1] == "tom"

    def test_renumber_keeps_the_order_of_thousands(self, r: redis.Redis, board: Leaderboard) -> None:
        board.add_many({f"a{n}": n % 3 for n in range(1_500)})
        for n in range(1_500):
            board.increment(f"b{n}", n % 3)
        before = board.top(5_000)
        assert r.set(board.ticks_key, TICKS - 1, xx=True, ex=1000)
        assert board.renumber() == TICKS - 1 - 500 and board.top(5_000) == before
        assert r.ttl(board.ticks_key) > 0, "renumber keeps the TTL"


class TestReading:
    @pytest.fixture
    def hundred(self, board: Leaderboard) -> Leaderboard:
        board.add_many({f"p{n:03}": 1000 - n for n in range(1, 101)})
        return board

    def test_top_and_page(self, hundred: Leaderboard) -> None:
        assert [place.rank for place in hundred.top()] == list(range(1, 11))
        assert hundred.page(3, 7) == [Place(n, f"p{n:03}", 1000 - n) for n in range(15, 22)]
        assert [len(hundred.page(number)) for number in (1, 2, 3)] == [50, 50, 0]
        assert len(hundred.top(1_000)) == 100 and hundred.page(15, 7)[-1].rank == 100

    @pytest.mark.parametrize("at", [1, 2, 3, 50, 98, 99, 100])
    def test_around_is_cut_at_both_ends(self, hundred: Leaderboard, at: int) -> None:
        around = hundred.around(f"p{at:03}", 2)
        assert [place.rank for place in around] == [n for n in range(at - 2, at + 3) if 1 <= n <= 100]
        assert Place(at, f"p{at:03}", 1000 - at) in around
        assert hundred.around(f"p{at:03}", 0) == [hundred.rank(f"p{at:03}")]
        assert hundred.around(f"p{at:03}", 10**5) == hundred.top(100)

    def test_percentile(self, hundred: Leaderboard) -> None:
        assert hundred.percentile("p001") == 99 and hundred.percentile("p100") == 0
        assert hundred.percentile("p051") == 49
        for member in ("x", "y", "z"):
            hundred.add(member, 1000 - 51)
        assert hundred.percentile("p051") == hundred.percentile("z") == 100 * 49 / 103, "equals count alike"

    @pytest.mark.parametrize("member", ["", " ", "ä€𝄞", "a\nb\0c", "-inf", "x" * 5_000])
    def test_any_text_is_a_member(self, board: Leaderboard, member: str) -> None:
        board.increment(member, 3)
        board.add(member, 4)
        board.add_many({member: 5, "other": 1})
        assert board.top(1) == board.around(member, 0) == [board.rank(member)] == [Place(1, member, 5)]
        assert board.remove(member) == 1

    def test_one_round_trip_each(self, server: Server, board: Leaderboard) -> None:
        r = board._r
        newer = "WITHSCORE" in str(r.execute_command("COMMAND DOCS", "ZREVRANK"))
        acts: dict[str, Callable[[], Any]] = {
            "add": lambda: board.add("ada", 5),
            "best": lambda: board.add("ada", 6, best=True),
            "increment": lambda: board.increment("ada"),
            "top": lambda: board.top(),
            "page": lambda: board.page(2),
            "rank": lambda: board.rank("ada"),
            "around": lambda: board.around("ada"),
            "percentile": lambda: board.percentile("ada"),
            "remove": lambda: board.remove("nobody"),
            "add_many": lambda: board.add_many({f"{n}": n for n in range(1_000)}),
            "len": lambda: len(board),
        }
        for act in acts.values():
            act()  # scripts are loaded, and what the server knows is known
        for name, act in acts.items():
            with tap(r) as wire:
                act()
            assert wire.round_trips == 1, name
            if name == "rank":
                assert wire.commands[0].command[0] == ("ZREVRANK" if newer else "EVALSHA")

    def test_what_redis_does_not_know_is_asked_once(self, board: Leaderboard) -> None:
        board.add("ada", 5)
        board.rank("ada")
        assert board.rank("ada") == Leaderboard(board._r, NAME, newer=False).rank("ada") == Place(1, "ada", 5)
        with tap(board._r) as wire:
            Leaderboard(board._r, NAME).rank("ada")
        assert len(wire.commands) == 1


class TestMany:
    def test_a_board_with_a_ttl_keeps_it_however_long_it_takes(self, r: redis.Redis) -> None:
        board = Leaderboard(r, NAME, ttl=1000)
        half = iter(range(3000))

        class Slow(dict[str, int]):
            def items(self) -> Any:  # the board is cleared in the middle
                for pair in super().items():
                    if next(half) == 1500:
                        board.clear()
                    yield pair

        board.add_many(Slow({f"player:{n}": n for n in range(3000)}))
        assert 0 < r.ttl(board.key) <= 1000

    def test_a_load_into_an_empty_board_is_plain_zadd(self, r: redis.Redis, board: Leaderboard) -> None:
        with tap(r) as wire:
            assert board.add_many({f"{n}": n for n in range(4_500)}) == 4_500
        assert [one.command[0] for one in wire.commands if one.command[0] != "EVAL"][-4:] == ["ZADD"] * 4
        assert r.zscore(board.key, "4499") == 4499.0 and board.ticks_left() == TICKS - 1
        board.add("late", 4499)
        assert names(board.top(2)) == ["4499", "late"]

    def test_a_second_load_comes_later_and_changes_what_differs(self, board: Leaderboard) -> None:
        board.add_many({f"{n:04}": 7 for n in range(2_000)})
        assert board.add_many({f"{n:04}": 7 if n % 2 else 8 for n in range(1_000, 3_000)}) == 1_500
        assert len(board) == 3_000
        assert names(board.top(1_000))[0] == "2998" and board.top(1_001)[-1] == Place(1_001, "1999", 7)
        assert [place.member for place in board.top(2_500)[-2:]] == ["0001", "0000"]
        last = board.rank("2999")
        assert last is not None and last.rank > 2_000, "who came with the second load is behind the first"

    def test_a_member_that_comes_twice_meanwhile(self, r: redis.Redis, board: Leaderboard) -> None:
        """A board that was empty when the load began: who has come since is given the points of the load."""

        class Meddling(dict[str, int]):
            def items(self) -> Any:
                for number, pair in enumerate(super().items()):
                    if number == 1_000:
                        board.increment("1500", 10**6)
                    yield pair

        assert board.add_many(Meddling({f"{n}": 5 for n in range(3_000)})) == 3_000
        assert {place.points for place in board.top(3_000)} == {5} and len(board) == 3_000

    @pytest.mark.parametrize("best", [False, True])
    def test_like_one_after_the_other(self, r: redis.Redis, board: Leaderboard, best: bool) -> None:
        other = Leaderboard(r, f"{NAME}:other")
        for load in ({f"{n}": n % 5 for n in range(1_200)}, {f"{n}": n % 7 for n in range(600, 2_000)}):
            board.add_many(load, best=best)
            for member, points in load.items():
                other.add(member, points, best=best)
        assert {(p.member, p.points) for p in board.top(3_000)} == {
            (p.member, p.points) for p in other.top(3_000)
        }


class Model(RuleBasedStateMachine):
    """Beside a list of (points, when they were reached)."""

    r: redis.Redis
    members = st.sampled_from(["ada", "bob", "eve", "kim", "zoe"])
    points = st.one_of(st.integers(-3, 3), st.sampled_from([MOST, -MOST, MOST - 1, 2**30]))

    def __init__(self) -> None:
        super().__init__()
        self.r.flushall()
        self.board = Leaderboard(self.r, NAME)
        self.has: dict[str, tuple[int, int]] = {}
        self.time = 0

    def put(self, points: dict[str, int]) -> int:
        new = {m: p for m, p in points.items() if m not in self.has or self.has[m][0] != p}
        self.time += 1
        self.has |= {member: (number, self.time) for member, number in new.items()}
        return len(new)

    @rule(member=members, points=points)
    def add(self, member: str, points: int) -> None:
        assert self.board.add(member, points) == bool(self.put({member: points}))

    @rule(load=st.dictionaries(members, points, min_size=1))
    def add_many(self, load: dict[str, int]) -> None:
        assert self.board.add_many(load) == self.put(load)

    @rule(load=st.dictionaries(members, points, min_size=1))
    def best(self, load: dict[str, int]) -> None:
        better = {m: p for m, p in load.items() if m not in self.has or self.has[m][0] < p}
        assert self.board.add_many(load, best=True) == self.put(better)

    @rule(member=members, by=points)
    def increment(self, member: str, by: int) -> None:
        total = self.has.get(member, (0, 0))[0] + by
        if abs(total) > MOST:
            with pytest.raises(ValueError, match="are allowed"):
                self.board.increment(member, by)
        else:
            assert self.board.increment(member, by) == total
            self.put({member: total})

    @rule(some=st.lists(members, unique=True))
    def remove(self, some: list[str]) -> None:
        assert self.board.remove(*some) == sum(self.has.pop(member, None) is not None for member in some)

    @rule()
    def renumber(self) -> None:
        assert TICKS - 1 - self.board.renumber() <= max(len(self.has) - 1, 0)

    @invariant()
    def same(self) -> None:
        backwards = sorted(self.has, reverse=True)
        order = sorted(backwards, key=lambda member: (-self.has[member][0], self.has[member][1]))
        places = [Place(n, member, self.has[member][0]) for n, member in enumerate(order, 1)]
        assert self.board.top() == places and len(self.board) == len(places)
        assert self.board.page(2, 2) == places[2:4]
        for place in places:
            assert self.board.rank(place.member) == place
            assert self.board.around(place.member, 1) == places[max(place.rank - 2, 0) : place.rank + 1]
            fewer = sum(other.points < place.points for other in places)
            assert self.board.percentile(place.member) == 100 * fewer / len(places)


def test_like_the_model(r: redis.Redis) -> None:
    run_state_machine_as_test(
        type("Model", (Model,), {"r": r}),
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@given(st.integers(-MOST, MOST), st.integers(0, TICKS - 2))
@example(MOST, TICKS - 2)
@example(-MOST, TICKS - 2)
def test_a_double_holds_points_and_ticks(points: int, tick: int) -> None:
    one, later = points - tick / TICKS, points - (tick + 1) / TICKS
    assert points - 1 < later < one <= points
    assert float(f"{later:.17g}") == later and later * TICKS == points * TICKS - tick - 1


# What others do meanwhile


def at(redis: Any) -> Leaderboard:
    return Leaderboard(redis, NAME, newer=False)


def points_of(redis: Any, member: str) -> int | None:
    place = at(redis).rank(member)
    return place and place.points


class TestRaces:
    def test_no_increment_is_lost(self, throwaway: Server) -> None:
        def score(redis: Any) -> int:
            return at(redis).increment("ada", 5)

        def holds(redis: Any, results: list[int]) -> bool:
            return points_of(redis, "ada") == 15 and sorted(results) == [5, 10, 15]

        explore([score] * 3, invariant=holds, server=throwaway).assert_safe()

    def test_read_add_write_loses_them_and_the_rule_sees_it(self, throwaway: Server) -> None:
        def score(redis: Any) -> None:
            at(redis).add("ada", (points_of(redis, "ada") or 0) + 5)

        def holds(redis: Any) -> bool:
            return points_of(redis, "ada") == 10

        assert explore([score] * 2, invariant=holds, server=throwaway).verdict == "violated"

    def test_two_who_reach_the_same(self, throwaway: Server) -> None:
        """Who had the answer first is ahead, whatever their names are."""
        came: list[str] = []

        def reach(name: str) -> Callable[[Any], None]:
            def actor(redis: Any) -> None:
                at(redis).add(name, 7)
                redis.rpush("came", name)

            return actor

        def holds(redis: Any) -> bool:
            came[:] = redis.lrange("came", 0, -1)
            order = names(at(redis).top())
            return set(order) == set(came) == {"ada", "zoe"}

        found = explore([reach("ada"), reach("zoe")], invariant=holds, server=throwaway)
        found.assert_safe()

    def test_who_has_seen_another_there_is_behind(self, throwaway: Server) -> None:
        def reach(name: str) -> Callable[[Any], list[str]]:
            def actor(redis: Any) -> list[str]:
                seen = names(at(redis).top())
                at(redis).increment(name, 7)
                return seen

            return actor

        def holds(redis: Any, results: list[list[str]]) -> bool:
            order = names(at(redis).top())
            before = zip(("zoe", "kim", "ada"), results, strict=True)
            return all(order.index(one) < order.index(name) for name, seen in before for one in seen)

        actors = [reach("zoe"), reach("kim"), reach("ada")]
        explore(actors, invariant=holds, server=throwaway).assert_safe()

    @pytest.mark.parametrize("best", [False, True])
    def test_a_load_of_many_parts_beside_increments(
        self, throwaway: Server, monkeypatch: pytest.MonkeyPatch, best: bool
    ) -> None:
        """Each member's points are those of one order of the two, also where the load is not one step."""
        monkeypatch.setattr("labkit.leaderboard.CHUNK", 1)

        def load(redis: Any) -> int:
            return at(redis).add_many({"ada": 100, "bob": 50, "kim": 5}, best=best)

        def score(redis: Any) -> list[int]:
            return [at(redis).increment(member, 5) for member in ("ada", "kim")]

        def holds(redis: Any, results: list[Any]) -> bool:
            ada, kim = (points_of(redis, member) for member in ("ada", "kim"))
            fine_ada = (ada, results[1][0]) in {(105, 105), (100, 6)}
            fine_kim = (kim, results[1][1]) in {(10, 10), (6 if best else 5, 6)}
            return fine_ada and fine_kim and points_of(redis, "bob") == 50

        def setup(redis: Any) -> None:
            for member in ("ada", "kim"):
                at(redis).add(member, 1)

        explore([load, score], setup=setup, invariant=holds, server=throwaway).assert_safe()

    def test_a_load_of_many_parts_beside_renumber(
        self, throwaway: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ticks that shrink in the middle of a load: who comes after it is behind all the same."""
        monkeypatch.setattr("labkit.leaderboard.CHUNK", 1)

        def setup(redis: Any) -> None:
            for points in (5, 4, 3, 5):
                at(redis).add("old", points)

        def load(redis: Any) -> None:
            at(redis).add_many({"ada": 5, "bob": 5})
            at(redis).add("zoe", 5)

        def renumber(redis: Any) -> None:
            at(redis).renumber()

        def holds(redis: Any) -> bool:
            order = names(at(redis).top())
            return order[0] == "old" and order[-1] == "zoe" and len(order) == 4

        explore([load, renumber], setup=setup, invariant=holds, server=throwaway).assert_safe()

    def test_the_best_stays_whoever_comes_last(self, throwaway: Server) -> None:
        def attempt(points: int) -> Callable[[Any], bool]:
            return lambda redis: at(redis).add("ada", points, best=True)

        def holds(redis: Any) -> bool:
            return points_of(redis, "ada") == 9

        explore([attempt(4), attempt(9), attempt(6)], invariant=holds, server=throwaway).assert_safe()

    def test_renumber_beside_everything(self, throwaway: Server) -> None:
        def setup(redis: Any) -> None:
            for member in ("zoe", "ada", "kim"):
                at(redis).add(member, 5)

        def renumber(redis: Any) -> None:
            at(redis).renumber()

        def change(redis: Any) -> None:
            at(redis).increment("zoe", 1)
            at(redis).add("new", 5)

        def holds(redis: Any) -> bool:
            return names(at(redis).top()) == ["zoe", "ada", "kim", "new"]

        explore([renumber, change], setup=setup, invariant=holds, server=throwaway).assert_safe()

    def test_a_load_beside_an_increment(self, throwaway: Server) -> None:
        """Up to 1,000 are set at one moment: before or after."""

        def load(redis: Any) -> int:
            return at(redis).add_many({"ada": 100, "bob": 50})

        def score(redis: Any) -> int:
            return at(redis).increment("ada", 5)

        def holds(redis: Any, results: list[int]) -> bool:
            return (points_of(redis, "ada"), results[1]) in {(105, 105), (100, 5), (100, 8)}

        explore([load, score], invariant=holds, server=throwaway).assert_safe()
        explore(
            [load, score], setup=lambda r: at(r).add("ada", 3), invariant=holds, server=throwaway
        ).assert_safe()

    def test_who_leaves_while_others_score(self, throwaway: Server) -> None:
        """The ticks that go with the last member never let a later one pass an earlier one."""

        def leave(redis: Any) -> int:
            return at(redis).remove("old")

        def score(name: str) -> Callable[[Any], int]:
            return lambda redis: at(redis).increment(name, 5)

        def holds(redis: Any) -> bool:
            scores = redis.zrange(at(redis).key, 0, -1, withscores=True)
            return len(at(redis)) == 2 and len({score for _, score in scores}) == 2

        actors = [leave, score("ada"), score("zoe")]
        explore(actors, setup=lambda r: at(r).add("old", 1), invariant=holds, server=throwaway).assert_safe()

    def test_a_total_is_made_once_and_is_whole(self, throwaway: Server) -> None:
        def week(redis: Any) -> WindowedLeaderboard:
            return WindowedLeaderboard(redis, NAME, now=lambda: 0.0)

        def total(redis: Any) -> int:
            return sum(place.points for place in week(redis).last().top())

        def score(redis: Any) -> int:
            return week(redis).increment("ada", 5)

        def holds(redis: Any, results: list[int]) -> bool:
            return results[0] in (0, 5) and results[1] in (0, 5) and results[2] == 5

        explore([total, total, score], invariant=holds, server=throwaway).assert_safe()


def test_processes_that_score_at_once(r: redis.Redis, server: Server, board: Leaderboard) -> None:
    def play(url: str, name: str, times: int) -> Generator[None, None, list[int]]:
        import labkit
        from labkit.leaderboard import Leaderboard

        board = Leaderboard(labkit.connect(url, quiet=True), name)
        board.add("warm", 1)
        yield
        return [board.increment(member, 3) for _ in range(times) for member in ("ada", "bob")]

    answers = processes(3, play, server.url, NAME, 200)
    assert sorted(points for answer in answers for points in answer) == sorted(
        2 * [3 * n for n in range(1, 601)]
    )
    scores = [pair[1] for pair in r.zrange(board.key, 0, -1, withscores=True)]
    assert len(set(scores)) == 3 and {place.points for place in board.top()} == {1800, 1}


# Windows


class Clock:
    def __init__(self, day: str) -> None:
        self.now = datetime.datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()

    def __call__(self) -> float:
        return self.now


class TestWindows:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock("2024-02-27")

    @pytest.fixture
    def week(self, r: redis.Redis, clock: Clock) -> WindowedLeaderboard:
        return WindowedLeaderboard(r, NAME, days=7, now=clock)

    def test_days_are_apart_and_totals_add_them(self, clock: Clock, week: WindowedLeaderboard) -> None:
        for day in range(8):  # over the 29th of February
            assert week.increment("ada", 10 + day) == 10 + day
            week.add("bob", 100 * (day == 2))
            clock.now += DAY
        clock.now -= DAY
        assert week.today().top() == [Place(1, "ada", 17), Place(2, "bob", 0)]
        assert week.day(datetime.date(2024, 2, 29)).top() == [Place(1, "bob", 100), Place(2, "ada", 12)]
        assert week.last().top() == [Place(1, "bob", 100), Place(2, "ada", sum(range(11, 18)))]
        assert week.last(2).top()[0] == Place(1, "ada", 16 + 17)
        assert week.last(best=True).top() == [Place(1, "bob", 100), Place(2, "ada", 17)]
        assert week.last(1).top() == week.today().top()

    def test_every_key_has_a_ttl_and_one_slot(
        self, r: redis.Redis, clock: Clock, week: WindowedLeaderboard
    ) -> None:
        week.increment("ada", 5)
        week.add("bob", 5)
        week.last()
        week.last(3, best=True, fresh=30)
        keys = sorted(r.scan_iter())
        assert len(keys) == 4 and all(key.startswith("workbook:test:{game}:2024-02-27") for key in keys)
        assert len({key_slot(key.encode()) for key in keys}) == 1
        ttls = sorted(r.pttl(key) / 1000 for key in keys)
        assert all(2 * DAY - 60 < ttl <= 2 * DAY for ttl in ttls[:2])
        assert all(8 * DAY - 60 < ttl <= 8 * DAY for ttl in ttls[2:])

    def test_a_total_is_fresh_when_it_is_older(self, r: redis.Redis, week: WindowedLeaderboard) -> None:
        week.increment("ada", 5)
        total = week.last()
        week.increment("ada", 5)
        assert week.last().rank("ada") == Place(1, "ada", 5), "not yet"
        r.pexpire(total.key, r.pttl(total.key) - 59_000)  # a second short of what is too old
        assert week.last().rank("ada") == Place(1, "ada", 5)
        assert week.last(fresh=59).rank("ada") == Place(1, "ada", 10), "not as old as I ask for"
        week.increment("ada", 5)
        r.pexpire(total.key, r.pttl(total.key) - 60_000)
        assert week.last().rank("ada") == Place(1, "ada", 15)
        r.delete(total.key)
        assert week.last().rank("ada") == Place(1, "ada", 15)

    def test_a_total_does_not_go_before_it_is_read(self, r: redis.Redis, week: WindowedLeaderboard) -> None:
        week.increment("ada", 5)
        assert all(week.last(fresh=0.001).rank("ada") == Place(1, "ada", 5) for _ in range(500))

    def test_nothing_of_a_day_stays_for_ever(self, r: redis.Redis, week: WindowedLeaderboard) -> None:
        today = week.today()
        assert today.renumber() == today._last_tick and not r.exists(today.ticks_key)
        today.add("ada", 1)
        today.renumber()
        assert not r.exists(today.ticks_key), "nobody has a tick"
        today.add_many({f"player:{n}": n for n in range(1500)})
        assert all(r.ttl(key) > 7 * DAY for key in r.scan_iter())

    def test_points_of_a_total_are_exact_with_all_ticks_used(
        self, r: redis.Redis, clock: Clock, week: WindowedLeaderboard
    ) -> None:
        most = MOST // 7
        for _ in range(7):
            today = week.today()
            today.add("first", 1)
            r.set(today.ticks_key, TICKS)  # more than a day has
            assert today.increment("ada", most) == most and today.increment("bob", -most) == -most
            assert today.ticks_left() == 0 and today.rank("ada") == Place(1, "ada", most)
            clock.now += DAY
        clock.now -= DAY
        assert week.last().top() == [
            Place(1, "ada", 7 * most),
            Place(2, "first", 7),
            Place(3, "bob", -7 * most),
        ]
        with pytest.raises(ValueError, match="306,783,378"):
            week.add("ada", most + 1)
        with pytest.raises(ValueError, match="306,783,378"):
            week.increment("ada", 1)

    def test_the_day_is_the_servers(self, r: redis.Redis) -> None:
        week = WindowedLeaderboard(r, NAME)
        with tap(r) as wire:
            week.increment("ada")
            week.increment("ada")
        assert [one.command[0] for one in wire.commands].count("TIME") == 1
        dates = {datetime.datetime.fromtimestamp(r.time()[0], datetime.UTC).date().isoformat()}
        week.increment("ada")
        dates.add(datetime.datetime.fromtimestamp(r.time()[0], datetime.UTC).date().isoformat())
        assert week.today().key.rpartition(":")[2] in dates

    def test_the_clock_is_asked_again(self, r: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        week = WindowedLeaderboard(r, NAME)
        week.today()
        monkeypatch.setattr("labkit.leaderboard.ASK", 0.0)
        with tap(r) as wire:
            week.today()
        assert [one.command[0] for one in wire.commands] == ["TIME"]

    def test_an_empty_total(self, week: WindowedLeaderboard) -> None:
        assert week.last().top() == [] and len(week.last(best=True)) == 0


# Trouble, clusters, clients


def test_ttl(r: redis.Redis) -> None:
    board = Leaderboard(r, NAME, ttl=1000)
    acts: list[Callable[[], Any]]
    acts = [lambda: board.add("a", 1), lambda: board.increment("a"), lambda: board.add_many({"b": 2})]
    for act in acts:
        act()
        assert all(900 < r.ttl(key) <= 1000 for key in r.scan_iter())
        for key in r.scan_iter():
            r.expire(key, 10)
    assert r.dbsize() == 2
    board.add("a", 2)
    board.add("b", 1, best=True)
    assert {r.ttl(key) for key in r.scan_iter()} == {10}, "nothing has changed"
    Leaderboard(r, f"{NAME}:data").increment("a")
    assert r.ttl(Leaderboard(r, f"{NAME}:data").key) == -1, "a board is data"


@pytest.mark.parametrize(
    "options", [{}, {"protocol": 2}, {"decode_responses": False}, {"decode_responses": False, "protocol": 2}]
)
def test_every_kind_of_client(server: Server, r: redis.Redis, options: dict[str, Any]) -> None:
    with server.client(**options) as client:
        board = Leaderboard(client, NAME)
        board.add_many({f"é{n}": n for n in range(1_100)})
        assert board.increment("zoe", 1099) == 1099
        assert board.top(2) == [Place(1, "é1099", 1099), Place(2, "zoe", 1099)] == board.page(1, 2)
        assert board.around("zoe", 1) == board.top(3)[:3] and board.rank("zoe") == Place(2, "zoe", 1099)
        assert board.percentile("zoe") == 100 * 1099 / 1101 and board.remove("zoe") == 1
        week = WindowedLeaderboard(client, f"{NAME}:week")
        week.increment("é", 5)
        assert week.last().top() == [Place(1, "é", 5)]


def test_in_a_cluster() -> None:
    """Of one node: what is not in one slot is refused there as well."""
    with Server(cluster_enabled=True) as node:
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while "cluster_state:ok" not in node.client().execute_command("CLUSTER", "INFO"):
            pass
        with RedisCluster.from_url(node.url, protocol=3, legacy_responses=False) as cluster:
            for name in "abcdefgh":
                board = Leaderboard(cluster, name)
                board.add_many({f"{n}": n for n in range(2_100)})
                assert board.increment("5", 10**4) == 10_005 and board.rank("5") == Place(1, "5", 10_005)
                assert names(board.around("5", 1)) == ["5", "2099"] and board.percentile("0") == 0
                assert board.renumber() == TICKS - 1 and board.remove("5") == 1
                board.clear()
                week = WindowedLeaderboard(cluster, name)
                week.add("ada", 5)
                assert week.last().top() == [Place(1, "ada", 5)]


@given(st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1))
def test_all_keys_of_a_board_share_a_slot(name: str) -> None:
    if name.endswith(":"):
        with pytest.raises(ValueError):
            Leaderboard(UNUSED, name)
        return
    board = Leaderboard(UNUSED, name)
    assert key_slot(board.key.encode()) == key_slot(board.ticks_key.encode())
    assert Leaderboard(UNUSED, board.key).key == board.key and board.key.replace("{", "").startswith(
        name[:-1]
    )


def test_scripts_that_were_forgotten(r: redis.Redis, board: Leaderboard) -> None:
    board.increment("ada")
    r.script_flush()
    assert board.increment("ada") == 2 and board.around("ada") == [Place(1, "ada", 2)]


def test_threads_that_share_a_board(board: Leaderboard) -> None:
    with ThreadPoolExecutor(6) as pool:
        totals = list(pool.map(lambda _: board.increment("ada", 2), range(300)))
    assert sorted(totals) == list(range(2, 602, 2))


def test_redis_down_is_said(server: Server) -> None:
    with Server() as own:
        r = own.client(retry=None, socket_timeout=5)
        board, week = Leaderboard(r, NAME), WindowedLeaderboard(r, NAME)
        board.increment("ada")
        own.kill()
        acts: list[Callable[[], Any]] = [
            lambda: board.add("ada", 1), lambda: board.increment("ada"), lambda: board.rank("ada"),
            lambda: board.around("ada"), lambda: board.top(), lambda: board.add_many({"ada": 1}),
            lambda: week.today(), lambda: board.percentile("ada"), lambda: len(board),
        ]  # fmt: skip
        for act in acts:
            with pytest.raises(exceptions.ConnectionError):
                act()


def test_errors_of_redis_are_raised(r: redis.Redis, board: Leaderboard) -> None:
    r.set(board.key, "no board")
    for act in (lambda: board.rank("ada"), lambda: board.increment("ada"), lambda: board.top()):
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            act()


UNUSED = redis.Redis()


class TestMisuse:
    @pytest.mark.parametrize("r", [None, 5, UNUSED.pipeline(), redis.asyncio.Redis()])
    @pytest.mark.parametrize("kind", [Leaderboard, WindowedLeaderboard])
    def test_no_client(self, r: Any, kind: Any) -> None:
        with pytest.raises(TypeError, match=re.escape(type(r).__name__)):
            kind(r, NAME)

    @pytest.mark.parametrize("name", [None, 5, "", b"x"])
    def test_no_name(self, name: Any) -> None:
        with pytest.raises(TypeError, match="name is"):
            Leaderboard(UNUSED, name)

    @pytest.mark.parametrize("name", ["a:", "{a", "a}", "{}", "x{}:y"])
    def test_a_name_that_makes_no_slot(self, name: str) -> None:
        with pytest.raises(ValueError, match="hash tag"):
            Leaderboard(UNUSED, name)

    @pytest.mark.parametrize("points", [1.0, "5", None, True, float("nan")])
    def test_points_that_are_no_int(self, points: Any) -> None:
        board = Leaderboard(UNUSED, NAME)
        for act in (board.add, board.increment, lambda member, p: board.add_many({"x": 1, member: p})):
            with pytest.raises(TypeError, match=f"{re.escape(repr(points))}.*an int"):
                act("ada", points)

    @pytest.mark.parametrize("points", [MOST + 1, -MOST - 1, 10**30])
    def test_points_out_of_range(self, points: int) -> None:
        board = Leaderboard(UNUSED, NAME)
        for act in (board.add, lambda member, p: board.add_many({"x": 1, member: p})):
            with pytest.raises(ValueError, match=f"{points:,}.*2,147,483,647"):
                act("ada", points)
        with pytest.raises(ValueError, match="by is"):
            board.increment("ada", 10**30)

    @pytest.mark.parametrize("points", [None, "x", [("ada", 1)], {"ada"}])
    def test_many_that_are_no_mapping(self, points: Any) -> None:
        with pytest.raises(TypeError, match="it must be a mapping"):
            Leaderboard(UNUSED, NAME).add_many(points)

    @pytest.mark.parametrize("member", [None, 5, b"ada"])
    def test_a_member_that_is_no_str(self, member: Any) -> None:
        board = Leaderboard(UNUSED, NAME)
        for act in (
            lambda: board.add(member, 1), lambda: board.increment(member), lambda: board.rank(member),
            lambda: board.around(member), lambda: board.percentile(member), lambda: board.remove("x", member),
            lambda: board.add_many({member: 1}),
        ):  # fmt: skip
            with pytest.raises(TypeError, match="a member is"):
                act()

    def test_numbers_of_places(self) -> None:
        board = Leaderboard(UNUSED, NAME)
        for act in (
            lambda: board.top(0), lambda: board.top(10**7), lambda: board.page(0), lambda: board.page(1, 0),
            lambda: board.around("ada", -1), lambda: Leaderboard(UNUSED, NAME, ttl=0),
            lambda: WindowedLeaderboard(UNUSED, NAME, days=0),
            lambda: WindowedLeaderboard(UNUSED, NAME, days=367),
            lambda: WindowedLeaderboard(UNUSED, NAME).last(8),
            lambda: WindowedLeaderboard(UNUSED, NAME).last(fresh=0),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="it must be from"):
                act()
        for wrong in (datetime.datetime(2024, 1, 1), "2024-01-01", None):
            with pytest.raises(TypeError, match=r"datetime\.date"):
                WindowedLeaderboard(UNUSED, NAME).day(wrong)  # type: ignore[arg-type]
