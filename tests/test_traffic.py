"""labkit.rig.traffic: replays in virtual time, and the pictures and the playground that show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot

from labkit.rate_limiter import FixedWindow, SlidingLog, TokenBucket
from labkit.rig.server import Server
from labkit.rig.traffic import SHAPES, Clock, Replay, at_once, at_random, noting, replay, steady, zipf
from labkit.show import plot, widgets


@pytest.fixture(scope="module")
def r() -> Iterator[redis.Redis]:
    with Server() as server, server.client() as r:
        yield r


@pytest.fixture(autouse=True)
def no_figure_is_left() -> Iterator[None]:
    yield
    pyplot.close("all")


class EveryOther:
    """A limiter that admits every second request, and notes when it was asked."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.hits, self.peeks = clock, list[float](), list[float]()

    def hit(self, key: str) -> Any:
        self.hits.append(self.clock())
        return type("Answer", (), {"allowed": len(self.hits) % 2 == 1, "remaining": len(self.hits)})

    def peek(self, key: str) -> Any:
        self.peeks.append(self.clock())
        return type("Answer", (), {"allowed": True, "remaining": -1})


def test_a_replay_hits_at_each_time_in_order() -> None:
    clock = Clock()
    limiter = EveryOther(clock)
    result = replay(limiter, clock, [3.0, 1.0, 2.0, 2.0])
    assert limiter.hits == [1.0, 2.0, 2.0, 3.0]
    assert (result.admitted, result.refused) == ((1.0, 2.0), (2.0, 3.0))
    assert repr(result) == "2 admitted, 2 refused"


def test_with_a_sample_it_also_asks_what_is_left() -> None:
    clock = Clock()
    limiter = EveryOther(clock)
    result = replay(limiter, clock, [0.3], sample=0.25, until=1)
    assert limiter.peeks == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert result.room == ((0.0, -1), (0.25, -1), (0.3, 1), (0.5, -1), (0.75, -1), (1.0, -1))


@given(micros=st.lists(st.integers(0, 4_000_000), max_size=40).map(sorted))
def test_held_counts_each_half_open_window(micros: list[int]) -> None:
    result = Replay(tuple(at / 1e6 for at in micros), ())
    counted = [sum(at - 500_000 < t for t in micros[: i + 1]) for i, at in enumerate(micros)]
    assert result.held(0.5) == [(at / 1e6, held) for at, held in zip(micros, counted, strict=True)]
    most = max((sum(t <= s < t + 500_000 for s in micros) for t in micros), default=0)
    assert result.most_in_any(0.5) == most


def test_a_replay_is_a_table_of_requests() -> None:
    result = Replay((0.5, 2.0), (0.75, 1.0, 1234.5))
    assert result.df.to_dict("list") == {
        "at": [0.5, 0.75, 1.0, 2.0, 1234.5],
        "admitted": [True, False, False, True, False],
    }
    assert list(Replay((), ()).df.columns) == ["at", "admitted"]


def test_a_notebook_shows_how_many_and_from_when_to_when() -> None:
    html = Replay((0.5, 2.0), (0.75, 1.0, 1234.5))._repr_html_()
    assert "<th>admitted</th><td>2</td><td>0.5 s</td><td>2 s</td>" in html
    assert "<th>refused</th><td>3</td><td>0.75 s</td><td>1234.5 s</td>" in html
    assert "<th>refused</th><td>0</td><td></td><td></td>" in Replay((1.0,), ())._repr_html_()


def test_replays_of_one_limiter_do_not_meet(r: redis.Redis) -> None:
    clock = Clock()
    log = SlidingLog(r, "fresh", limit=3, window=1, now=clock)
    assert [repr(replay(log, clock, [1.0] * 5)) for _ in range(3)] == ["3 admitted, 2 refused"] * 3


def test_traffic_has_the_asked_shape() -> None:
    assert steady(4, seconds=1, start=2) == [2.0, 2.25, 2.5, 2.75]
    assert at_once(2, at=1) == [1.0, 1.0]
    crowd = at_random(50, seconds=20)
    assert crowd == sorted(at_random(50, seconds=20)) != at_random(50, seconds=20, seed=6)
    assert 900 < len(crowd) < 1100 and crowd[0] > 0 and crowd[-1] < 20


@pytest.mark.parametrize("shape", SHAPES)
def test_named_traffic_asks_for_more_than_the_limit_within_four_windows(shape: str) -> None:
    times = SHAPES[shape](10, 2.0)
    assert Replay(tuple(sorted(times)), ()).most_in_any(2.0) > 10
    assert min(times) >= 0 and max(times) < 4 * 2.0


def test_noting_writes_down_the_very_time_of_each_admission(r: redis.Redis) -> None:
    limiter = noting(SlidingLog, "notes")(r, "noted", limit=3, window=60)
    answers = [limiter.hit("k") for _ in range(5)]
    assert [answer.allowed for answer in answers] == [True] * 3 + [False] * 2
    assert r.lrange("notes", 0, -1) == r.lrange("noted:{k}", 0, -1)
    assert type(limiter).__name__ == "SlidingLog"


def test_the_pictures_show_what_was_replayed(r: redis.Redis) -> None:
    clock = Clock()
    fixed = FixedWindow(r, "pictures", limit=10, window=1, now=clock)
    edge = replay(fixed, clock, SHAPES["a burst at a window's edge"](10, 1.0), sample=0.1, until=4)
    ax: Any = plot.traffic({"fixed": edge, "again": edge}, title="two", window=1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fixed", "again"]
    assert "20 of 20" in [text.get_text() for text in ax.texts]
    ax = plot.held(edge, title="held", window=1, limit=10)
    fine, too_many, limit = ax.get_lines()
    assert (len(fine.get_xdata()), len(too_many.get_xdata())) == (10, 10)
    assert list(limit.get_ydata()) == [10, 10]
    ax = plot.room(edge, title="room", limit=10, window=1)
    assert max(ax.get_lines()[0].get_ydata()) == 10


@pytest.mark.parametrize("shape", SHAPES)
def test_the_playground_draws_every_algorithm(r: redis.Redis, shape: str) -> None:
    playground = widgets.limiter(r)
    playground.controls["traffic"].value = shape
    pictures = set()
    for algorithm in playground.controls["algorithm"].options:
        playground.controls["algorithm"].value = algorithm
        assert playground.error is None and playground.status.value.startswith("drawn: algorithm ")
        pictures.add(playground.picture.value)
    assert len(pictures) >= 3
    assert all(0 < r.ttl(key) <= 100 for key in r.scan_iter("workbook:05:playground*"))


def test_the_bucket_starts_full_and_is_drawn_the_same_twice(r: redis.Redis) -> None:
    clock = Clock()
    shots = []
    for name in ("one", "two"):
        bucket = TokenBucket(r, name, capacity=5, rate=5, now=clock)
        shots.append(replay(bucket, clock, SHAPES["bursts"](5, 1.0), sample=0.2, until=4))
    assert shots[0] == shots[1] and shots[0].room[0] == (0.0, 5)


def test_zipf_asks_for_the_first_things_most() -> None:
    asked = zipf(50_000, keys=1000)
    counts = Counter(asked)
    assert asked == zipf(50_000, keys=1000) != zipf(50_000, keys=1000, seed=4)
    assert set(counts) <= set(range(1, 1001))
    assert [id for id, _ in counts.most_common(3)] == [1, 2, 3]
    for id in (2, 3, 10):  # the first is asked for `id` times as often
        assert 0.8 * id < counts[1] / counts[id] < 1.25 * id


def test_zipf_without_skew_asks_for_all_alike_and_with_more_for_fewer() -> None:
    alike, steep = Counter(zipf(20_000, keys=10, skew=0)), Counter(zipf(20_000, keys=10, skew=3))
    assert max(alike.values()) < 1.2 * min(alike.values())
    assert steep[1] > 0.75 * 20_000
    assert zipf(3, keys=1) == [1, 1, 1]
    assert zipf(0, keys=5) == []


@pytest.mark.parametrize("wrong", [{"requests": -1}, {"keys": 0}, {"skew": -0.1}, {"skew": float("nan")}])
def test_zipf_says_what_it_can_do(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* must be"):
        zipf(**{"requests": 1, "keys": 1, **wrong})
