"""A cache under traffic: what is counted, what size and TTL do, and what ways of writing leave behind."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from labkit.rig.cachesim import STRATEGIES, Read, Simulation, Store, simulate
from labkit.rig.server import Server


class Naive:
    """Cache-aside as people write it first."""

    def __init__(self, r: Any, load: Any, ttl: float = 60) -> None:
        self.r, self.load, self.ttl = r, load, ttl

    def key(self, id: int) -> str:
        return f"naive:{id}"

    def get(self, id: int) -> Any:
        if (value := self.r.get(self.key(id))) is not None:
            return json.loads(value)
        row = self.load(id)
        self.r.set(self.key(id), json.dumps(row), px=round(self.ttl * 1000))
        return row

    def invalidate(self, id: int) -> None:
        self.r.delete(self.key(id))


class Bare:
    """No cache at all."""

    def __init__(self, load: Any) -> None:
        self.get = load


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


def naive(r: Any, store: Any) -> Naive:
    return Naive(r, store.load)


def brief(r: Any, store: Any) -> Naive:
    return Naive(r, store.load, ttl=0.02)


FOUND = Simulation(
    seconds=2.0,
    rate=2,
    reads=(Read(0.1, False, False), Read(0.9, True, False), Read(1.5, True, True), Read(1.9, True, False)),
    loads=(0.1, 0.2, 1.1),
    writes=(1.0,),
    entries=7,
    evicted=1,
    bins=2,
)


def test_a_simulation_counts_and_has_a_row_for_each_span() -> None:
    assert repr(FOUND) == "4 reads: 75 % hits, 2 loads/s, 25 % stale"
    assert (FOUND.hit_ratio, FOUND.loads_per_second, FOUND.stale, FOUND.stale_ratio) == (0.75, 1.5, 1, 0.25)
    df = FOUND.df
    assert list(df.columns[:5]) == ["time", "reads", "hits", "stale", "loads"]
    assert df.time.tolist() == [0.5, 1.5]
    assert df.loads.tolist() == [2, 1]
    assert df.hit_ratio.tolist() == [0.5, 1.0]
    assert df.stale_ratio.tolist() == [0.0, 0.5]
    assert df.loads_per_second.tolist() == [2.0, 1.0]
    html = FOUND._repr_html_()
    assert "<th>stale reads</th>" in html
    assert "<td>75 %</td>" in html


def test_nothing_came_of_no_traffic() -> None:
    nothing = Simulation(1.0, 10, (), (), (), 0, 0)
    assert repr(nothing) == "0 reads: 0 % hits, 0 loads/s, 0 % stale"
    assert nothing.df.hit_ratio.isna().all()


def test_without_a_cache_every_read_is_a_load() -> None:
    found = simulate(lambda r, store: Bare(store.load), seconds=0.2, rate=300, store=Store())
    assert found.hit_ratio == 0
    assert len(found.loads) == len(found.reads) > 0
    assert found.entries == 0


def test_a_larger_cache_hits_more(server: Server) -> None:
    small, large = (simulate(naive, seconds=0.4, size=size, warm=True, server=server) for size in (15, 250))
    assert small.hit_ratio + 0.15 < large.hit_ratio
    assert small.loads_per_second > large.loads_per_second
    assert small.entries < 60 < large.entries
    assert small.evicted > large.evicted


class Squeezed(Naive):
    """Once, in the midst of it, what the server has besides entries takes all the memory that there is."""

    reads = 0

    def get(self, id: int) -> Any:
        self.reads += 1
        if self.reads == 800:
            self.r.config_set("maxmemory", 1)
        return super().get(id)


def test_where_buffers_take_all_the_room_it_makes_room_and_goes_on(server: Server) -> None:
    def squeezed(r: Any, store: Any) -> Squeezed:
        return Squeezed(r, store.load)

    found = simulate(squeezed, seconds=1, size=50, warm=True, updates=50, server=server)
    assert found.reads[-1].at > 0.7
    assert found.evicted >= 50
    assert any(read.hit for read in found.reads[-200:]), "there are entries again"
    assert 10 < found.entries < 150


def busy(make: Any, server: Server, **traffic: Any) -> Simulation:
    """A run that got through a quarter of its reads: not one during which the machine stood still."""
    for _ in range(4):
        found = simulate(make, server=server, **traffic)
        if len(found.reads) >= found.rate * found.seconds / 4:
            break
    return found


def test_a_longer_ttl_hits_more(server: Server) -> None:
    short, long = (busy(make, server, seconds=0.4) for make in (brief, naive))
    assert short.hit_ratio + 0.15 < long.hit_ratio
    assert short.evicted == long.evicted == 0


def test_skewed_traffic_hits_more(server: Server) -> None:
    alike, skewed = (busy(naive, server, seconds=0.3, keys=2000, skew=skew) for skew in (0, 1.4))
    assert alike.hit_ratio + 0.2 < skewed.hit_ratio


def test_warm_entries_are_hit_from_the_first_read(server: Server) -> None:
    found = simulate(naive, seconds=0.2, keys=100, warm=True, server=server)
    assert found.hit_ratio == 1
    assert found.loads == ()
    assert found.entries == 100


def test_a_store_of_ones_own_keeps_its_delay(server: Server) -> None:
    store = Store(delay=0.001)
    simulate(naive, seconds=0.1, keys=5, warm=True, store=store, server=server)
    assert store.delay == 0.001


@pytest.mark.parametrize("strategy", list(STRATEGIES)[:2])
def test_ways_of_writing_that_leave_stale_values(server: Server, strategy: str) -> None:
    found = simulate(naive, seconds=0.5, keys=20, updates=60, strategy=strategy, server=server)
    assert found.stale > 0.02 * len(found.reads)
    assert found.writes


def test_what_is_fresh_is_not_called_stale(server: Server) -> None:
    found = simulate(
        lambda r, store: Bare(store.load),
        seconds=0.3,
        keys=5,
        updates=200,
        strategy=STRATEGIES["none (wait for the TTL)"],
    )
    assert found.stale == 0
    assert len(found.writes) > 5


def test_a_strategy_may_be_a_function(server: Server) -> None:
    def write_it_too(cache: Any, store: Any, id: int) -> None:
        cache.r.set(cache.key(id), json.dumps(store.save(id)), px=60_000)

    found = simulate(naive, seconds=0.3, keys=5, updates=20, warm=True, strategy=write_it_too, server=server)
    assert found.hit_ratio == 1
    assert found.stale == 0  # one writer at a time, and nobody loads


def test_a_run_takes_no_longer_than_was_said(server: Server) -> None:
    begun = time.monotonic()
    found = simulate(lambda r, store: Bare(store.load), seconds=0.2, rate=50_000, readers=2, server=server)
    assert len(found.reads) < 5_000
    assert max(read.at for read in found.reads) <= 0.25
    assert time.monotonic() - begun < 20


def test_nothing_is_left_on_the_server(server: Server) -> None:
    before = server.config["maxmemory"], server.config["maxmemory-policy"]
    simulate(naive, seconds=0.1, size=30, server=server)
    assert (server.config["maxmemory"], server.config["maxmemory-policy"]) == before
    with server.client() as r:
        assert r.dbsize() == 0


def test_what_a_thread_raises_is_raised(server: Server) -> None:
    class Broken(Store):
        def load(self, id: int) -> Any:
            raise LookupError(f"no row {id}")

    with pytest.raises(LookupError, match="no row"):
        simulate(naive, seconds=5, store=Broken(), server=server)


def test_entries_that_never_stay_have_no_size(server: Server) -> None:
    with pytest.raises(ValueError, match="live too short"):
        simulate(lambda r, store: Forgetful(r, store.load), size=10, seconds=0.1, server=server)


class Forgetful(Naive):
    def get(self, id: int) -> Any:
        return self.load(id)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seconds": 0}, "seconds is 0; it must be at least 0.01"),
        ({"rate": 0.5}, "rate is 0.5; it must be at least 1"),
        ({"keys": 0}, "keys is 0; it must be at least 1"),
        ({"size": 0}, "size is 0; it must be at least 1"),
        ({"readers": 0}, "readers is 0; it must be at least 1"),
        ({"updates": -1}, "updates is -1; it must be at least 0"),
        ({"skew": -0.5}, "skew is -0.5; it must be at least 0"),
        ({"strategy": "hope"}, "strategy is 'hope'; there are 'none (wait for the TTL)'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        simulate(naive, **settings)
