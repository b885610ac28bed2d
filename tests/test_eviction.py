"""Caches that run out of memory: whom each policy drops, what is counted, and what the bounds are."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from redis.exceptions import RedisError
from servers import BINARIES

from labkit.rig.eviction import (
    HORIZON,
    POLICIES,
    Cache,
    Eviction,
    Evictions,
    compare,
    human_bytes,
    policies,
    polluted,
    replay,
)
from labkit.rig.ideal import Key, ideal
from labkit.rig.server import Server
from labkit.rig.traffic import zipf

ROOM = 300_000
"""Bytes: about 290 keys of 1 kB."""


@pytest.fixture(name="server", scope="module", params=BINARIES)
def each_binary(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A cache on one server: in a cluster each node would evict by itself."""
    if BINARIES[request.param] is None:
        pytest.skip("LABKIT_NEWER_REDIS does not name a redis-server")
    with Server(binary=BINARIES[request.param]) as started:
        yield started


@pytest.fixture(name="one", scope="module")
def any_server() -> Iterator[Server]:
    with Server() as started:
        yield started


def test_a_scan_comes_in_runs_and_the_pages_stay_in_order() -> None:
    pages = list(range(1, 701))
    for runs, longest in ((1, 300), (10, 30), (300, 1)):
        mixed = polluted(pages, 0.3, runs)
        scan = [key for key in mixed if isinstance(key, str)]
        assert [key for key in mixed if isinstance(key, int)] == pages
        assert len(set(scan)) == len(scan) == 300
        groups = [list(group) for _, group in itertools.groupby(mixed, lambda key: isinstance(key, str))]
        assert max(len(group) for group in groups if isinstance(group[0], str)) == longest
        assert len(groups) == 2 * runs + 1, "pages come first and last"
    assert polluted(pages, 0) == pages
    for bad in ({"share": 1}, {"share": -0.1}, {"runs": 0}):
        with pytest.raises(ValueError, match="share is"):
            polluted(pages, **bad)


def test_lfu_is_above_lru_and_lru_above_random_most_of_all_beside_a_scan(server: Server) -> None:
    pages = zipf(12_000, 2000)
    wanted = ["allkeys-lru", "allkeys-lfu", "allkeys-random"]
    traffics: dict[str, list[Key]] = {"pages": [*pages], "and a scan": polluted(pages, 0.4, runs=500)}
    found = compare(server, traffics, wanted, [ROOM], bounds=["exact LRU", "clairvoyant"])
    for traffic in traffics:
        lru, lfu, by_chance = (found[traffic, policy, ROOM] for policy in wanted)
        assert lfu.hit_ratio > lru.hit_ratio + 0.01
        assert lru.hit_ratio > by_chance.hit_ratio + 0.01
        ratios = found.ratios(traffic)
        assert lfu.hit_ratio < ratios["clairvoyant"][ROOM]
        assert abs(lru.hit_ratio - ratios["exact LRU"][ROOM]) < 0.06, "sampled, it is near"
    lost = {
        policy: found["pages", policy, ROOM].hit_ratio - found["and a scan", policy, ROOM].hit_ratio
        for policy in wanted
    }
    assert lost["allkeys-lru"] > 2 * lost["allkeys-lfu"]
    for each in found.replays.values():
        accounted(each)
        assert each.evicted > 0 == each.refused


def test_on_a_new_server_all_have_the_same_room() -> None:
    """What Redis needs for the first hit, and for the first miss, is not taken from whoever comes first."""
    pages = zipf(5000, 2000)
    with Server() as new:
        held = [
            replay(new, pages, policy=policy, memory=ROOM).entries
            for policy in ("allkeys-lru", "allkeys-lfu", "allkeys-random")
        ]
    assert min(held) > 0.87 * max(held), held


def accounted(found: Eviction) -> None:
    """Whatever was written is there, or was dropped."""
    assert found.requests + found.scanned - found.hits - found.refused == found.entries + found.evicted
    assert sum(asked for asked, _, _ in found.history) == found.requests + found.scanned
    assert sum(hits for _, _, hits in found.history) == found.hits


def test_where_all_have_room_each_page_misses_once(server: Server) -> None:
    pages = zipf(5000, 400)
    for tick in (1.0, None):
        found = replay(server, pages, policy="allkeys-lru", memory=4_000_000, tick=tick)
        assert found.resident == tuple(sorted(set(pages)))
        assert found.requests - found.hits == len(set(pages))
        assert found.evicted == found.others == 0


def test_memory_is_what_there_is_for_data(server: Server) -> None:
    pages = list(range(1, 4001))
    for policy in ("allkeys-lru", "allkeys-random"):
        held = [replay(server, pages, policy=policy, memory=size).entries for size in (500_000, 1_000_000)]
        assert 1.8 < held[1] / held[0] < 2.2
        assert 350 < held[0] < 500, "keys of 1,000 bytes, and what Redis needs for each"


def test_lru_keeps_what_was_used_last(server: Server) -> None:
    """A small set is read again and again while others pass by, each once."""
    loved = list(range(1, 51))
    others = iter(range(1000, 5000))
    traffic = [key for _ in range(80) for key in (*loved, *itertools.islice(others, 50))]
    lru = replay(server, traffic, policy="allkeys-lru", memory=ROOM)
    assert len(set(lru.resident) & set(loved)) >= 48
    assert sorted(lru.resident)[60] > 4000, "of the others the last"
    by_chance = replay(server, traffic, policy="allkeys-random", memory=ROOM)
    assert by_chance.hit_ratio < lru.hit_ratio - 0.05
    if "allkeys-lrm" in policies(server):
        lrm = replay(server, traffic, policy="allkeys-lrm", memory=ROOM)
        assert lrm.hit_ratio < lru.hit_ratio - 0.05, "it goes by the last change: to be read is no help"
        assert max(lrm.resident) == 4999
        assert sorted(lrm.resident)[60] > 4000


def test_lfu_keeps_what_was_used_often(server: Server) -> None:
    loved, scan = list(range(1, 101)), [f"scan:{n}" for n in range(4000)]
    found = replay(server, [*loved * 30, *scan], policy="allkeys-lfu", memory=ROOM)
    assert len(found.resident) >= 75
    assert found.others > 100
    gone = replay(server, [*loved * 30, *scan], policy="allkeys-lru", memory=ROOM)
    assert len(gone.resident) <= 5, "a scan of more than fits sweeps LRU clean"


def test_a_volatile_policy_leaves_what_has_no_ttl(server: Server) -> None:
    def ttl(key: Key) -> float | None:
        return None if isinstance(key, int) and key <= 100 else 3600

    traffic = list(range(1, 2001))
    for policy in ("volatile-ttl", "volatile-lru", "volatile-lfu", "volatile-random"):
        found = replay(server, traffic, policy=policy, memory=ROOM, ttl=ttl)
        assert set(found.resident) >= set(range(1, 101)), policy
        assert found.refused == 0 < found.evicted
        bare = replay(server, traffic, policy=policy, memory=ROOM)
        assert bare.evicted == 0 < bare.refused, "nothing has a TTL: nothing may be dropped"
        accounted(bare)


def test_volatile_ttl_drops_what_ends_first(server: Server) -> None:
    for tick in (0.001, None):
        found = replay(
            server,
            random.Random(5).sample(range(1, 2001), 2000),
            policy="volatile-ttl",
            memory=ROOM,
            ttl=lambda rank: 1000 + int(rank),
            tick=tick,
        )
        assert found.resident[len(found.resident) // 2] > 1500, tick


def test_without_eviction_writes_are_refused_and_what_was_first_stays(server: Server) -> None:
    found = replay(server, list(range(1, 1001)), policy="noeviction", memory=ROOM)
    assert found.evicted == 0 < found.refused
    assert found.resident[:200] == tuple(range(1, 201))
    accounted(found)
    assert f"{found.refused:,} writes refused" in repr(found)


def test_more_samples_come_nearer_to_lru(one: Server) -> None:
    pages = list(range(1, 5001))
    oldest = {
        samples: replay(one, pages, policy="allkeys-lru", memory=ROOM, samples=samples).resident[0]
        for samples in (1, 20)
    }
    assert oldest[20] > oldest[1]


def test_what_a_server_offers(one: Server) -> None:
    known = policies(one)
    assert set(POLICIES) - set(known) <= {"allkeys-lrm", "volatile-lrm"}
    assert one.config["maxmemory-policy"] == "noeviction", "as before"
    with pytest.raises(ValueError, match=r"allkeys-mru.*does not have; of allkeys-lru"):
        Cache(one, policy="allkeys-mru", memory=ROOM)


def test_nothing_is_left_behind(one: Server) -> None:
    with one.client() as r:
        r.config_set("maxmemory-samples", 7)
        r.set("before", 1)
        with Cache(one, policy="allkeys-lru", memory=ROOM, samples=3) as cache:
            assert r.dbsize() == 0
            assert cache.play([1, 1, "other"]) == (3, 2, 1)
            assert (cache.result().resident, cache.result().others) == ((1,), 1)
            assert r.config_get("maxmemory*")["maxmemory-samples"] == "3"
        assert r.dbsize() == 0
        settings = r.config_get("maxmemory*")
        assert settings["maxmemory"] == "0"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["maxmemory-samples"] == "7"
        r.config_set("maxmemory-samples", 5)
        cache.close()


def test_a_dead_server_is_an_error_and_nothing_more() -> None:
    with Server() as server, Cache(server, policy="allkeys-lfu", memory=ROOM) as cache:
        cache.play([1, 2, 3])
        server.kill()
        with pytest.raises((RedisError, OSError)):
            cache.play(range(4, 1000))


@pytest.mark.parametrize(
    "options", [{"memory": 10}, {"memory": ROOM, "tick": 0}, {"memory": ROOM, "value_bytes": 0}], ids=str
)
def test_misuse_says_the_value(one: Server, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be (at least|above)"):
        Cache(one, policy="allkeys-lru", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="windows is 0"):
        replay(one, [1], policy="allkeys-lru", memory=ROOM, windows=0)


def test_the_clock_ends(one: Server) -> None:
    with (
        Cache(one, policy="allkeys-lru", memory=ROOM, tick=HORIZON / 2) as cache,
        pytest.raises(ValueError, match="3 requests of 4e"),
    ):
        cache.play([1, 2, 3])


def best(keys: Sequence[Key], entries: int) -> int:
    """The most hits, by trying whatever may be dropped."""
    found = {frozenset[Key](): 0}
    for key in keys:
        after: dict[frozenset[Key], int] = {}
        for held, hits in found.items():
            if key in held:
                choices = [held]
            elif len(held) < entries:
                choices = [held | {key}]
            else:
                choices = [held - {gone} | {key} for gone in held]
            for choice in choices:
                after[choice] = max(after.get(choice, 0), hits + (key in held))
        found = after
    return max(found.values())


def test_nobody_beats_the_clairvoyant() -> None:
    for seed in range(30):
        keys = zipf(40, 8, 0.7, seed=seed)
        for entries in (1, 2, 3, 5):
            assert ideal(keys, entries) * len(keys) == pytest.approx(best(keys, entries))
            assert ideal(keys, entries, "exact LRU") <= ideal(keys, entries) + 1e-9


def test_exact_lru_is_lru_and_a_scan_is_not_counted() -> None:
    keys: list[Key] = [1, 2, 1, 3, 1, 2]
    assert ideal(keys, 2, "exact LRU") == pytest.approx(2 / 6)
    assert ideal([1, "a", "b", 1], 2, "exact LRU") == 0
    assert ideal([1, "a", "b", 1], 2) == 0.5
    assert ideal([], 2) == 0
    with pytest.raises(ValueError, match="rule 'lru'"):
        ideal(keys, 2, "lru")


def test_results_are_values() -> None:
    one = Eviction("allkeys-lru", 500_000, 10, 4, 2, 0, 3, (1, 2), 1, ((6, 4, 1), (6, 6, 3)))
    assert repr(one) == "allkeys-lru in 500 kB: 40 % hits, 3 keys, 3 evicted"
    assert one.settled == 0.5
    assert one.df.to_dict("list") == {
        "at": [6, 12],
        "hit_ratio": [0.25, 0.5],
        "scan": [pytest.approx(1 / 3), 0],
    }
    assert "<td>40.0 %</td>" in one._repr_html_()
    both = Evictions({("", "allkeys-lru", 500_000): one}, (("", "clairvoyant", 500_000, 0.9),))
    assert both["allkeys-lru", 500_000] is both["", "allkeys-lru", 500_000] is one
    assert both.ratios() == {"allkeys-lru": {500_000: 0.4}, "clairvoyant": {500_000: 0.9}}
    assert list(both.df.policy) == ["allkeys-lru", "clairvoyant"]
    assert "90.0 %" in both._repr_html_()
    two = Evictions({(name, "allkeys-lru", 500_000): one for name in "ab"})
    with pytest.raises(KeyError, match="of which traffic"):
        two["allkeys-lru", 500_000]
    assert [human_bytes(size) for size in (512, 250_000, 1_500_000, 2e9)] == [
        "512 B",
        "250 kB",
        "1.5 MB",
        "2 GB",
    ]
