"""labkit.cache on real servers: what is cached, who loads, what is never stale, and what faults do to it."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from redis import exceptions
from redis.cluster import RedisCluster
from redis.crc import key_slot
from servers import everywhere as everywhere
from servers import nodes_of, until

from labkit.cache import CacheAside, Stats, WriteThrough
from labkit.rig.processes import processes
from labkit.rig.race import Exploration, crash, expire, explore, lose_reply, outside
from labkit.rig.server import Server
from labkit.rig.wire import tap


class Table:
    """A database: rows by key, and the keys of each load."""

    def __init__(self, **rows: Any) -> None:
        self.rows, self.asked = dict[Any, Any](rows), list[Any]()
        self.gate = threading.Event()
        self.gate.set()

    def load(self, key: Any) -> Any:
        self.asked.append(key)
        value = self.rows.get(key)
        self.gate.wait(30)
        return value

    def load_many(self, keys: list[Any]) -> dict[Any, Any]:
        self.asked.append(keys)
        return {key: self.rows[key] for key in keys if key in self.rows}


Make = Callable[..., CacheAside]


@pytest.fixture
def table() -> Table:
    return Table(a={"id": 1, "name": "ä"}, b=[1, 2], zero=0, no=False, text="", empty={})


@pytest.fixture
def make(r: redis.Redis, table: Table) -> Make:
    def make(load: Any = table.load, name: str = "workbook:test:row", **options: Any) -> CacheAside:
        return CacheAside(r, load, name, **{"ttl": 60, "timeout": 20, **options})

    return make


WAYS: list[dict[str, Any]] = [{}, {"beta": 1.0}, {"stale": 30}, {"beta": 1.0, "stale": 30, "jitter": 0.5}]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "plain")


class TestValues:
    @ways
    def test_loaded_once_and_then_from_the_cache(self, make: Make, table: Table, way: Any) -> None:
        cache = make(**way)
        for key in table.rows:
            assert [cache.get(key) for _ in range(3)] == [table.rows[key]] * 3
        assert table.asked == list(table.rows)
        assert cache.stats == Stats(12, 6, 6, 0, 0, 0, 0)
        assert cache.hit_ratio == pytest.approx(12 / 18)

    @ways
    def test_nothing_is_cached_too_and_is_no_value(self, make: Make, table: Table, way: Any) -> None:
        cache = make(**way)
        assert [cache.get("nobody") for _ in range(3)] == [None] * 3
        assert table.asked == ["nobody"]

    def test_as_json_under_its_key_with_a_ttl(self, r: redis.Redis, make: Make) -> None:
        cache = make(negative_ttl=7)
        cache.get("a")
        cache.get("nobody")
        assert cache.key("a") == "workbook:test:row:{a}"
        assert cache.lease_key("a") == "workbook:test:row:{a}:lease"
        assert r.get(cache.key("a")) == '{"id":1,"name":"\\u00e4"}'
        assert r.get(cache.key("nobody")) == ""
        assert 50_000 < r.pttl(cache.key("a")) <= 60_000
        assert 1_000 < r.pttl(cache.key("nobody")) <= 7_000
        assert r.dbsize() == 2

    def test_everyone_has_a_copy_and_the_same_also_who_loads(self, make: Make) -> None:
        cache = make(lambda key: {"pair": (1, 2)})
        first = cache.get("x")
        assert first == cache.get("x") == {"pair": [1, 2]}
        first["pair"].append(3)
        assert cache.get("x") == {"pair": [1, 2]}

    @ways
    @pytest.mark.parametrize("garbage", ["{", "[1", "x:y", "7", "\x80", "12:{"])
    def test_what_cannot_be_read_is_replaced(self, r: Any, make: Make, way: Any, garbage: str) -> None:
        """ "7" is no text that `beta` can read, and it is a number otherwise."""
        if garbage == "7" and "beta" not in way:
            pytest.skip("7 is garbage where `beta` reads it, a value elsewhere")
        cache = make(**way)
        for ttl in (None, 5, 5000):
            r.set(cache.key("b"), garbage, ex=ttl)
            assert cache.get("b") == [1, 2]
            assert 20_000 < r.pttl(cache.key("b")) <= 90_000
            r.set(cache.key("b"), garbage, ex=ttl)
            assert cache.get_many(["b"]) == {"b": [1, 2]}
            assert 20_000 < r.pttl(cache.key("b")) <= 90_000

    def test_loads_may_refuse_an_old_schema(self, r: redis.Redis, make: Make, table: Table) -> None:
        def loads(text: Any) -> Any:
            row = json.loads(text)
            return {"id": row["id"], "name": row["name"]}

        cache = make(loads=loads)
        r.set(cache.key("a"), '{"id": 1}', ex=60)
        assert cache.get("a") == table.rows["a"] == cache.get("a")
        assert table.asked == ["a"]

    @ways
    @pytest.mark.parametrize("ttl", [None, 5])
    def test_a_value_of_another_type_is_replaced(self, r: Any, make: Make, way: Any, ttl: int | None) -> None:
        cache = make(**way)
        for get in (cache.get, lambda key: cache.get_many(["zero", key])[key]):
            r.delete(cache.key("b"))
            r.rpush(cache.key("b"), "stranger")
            if ttl:
                r.expire(cache.key("b"), ttl)
            assert [get("b"), get("b")] == [[1, 2]] * 2
            assert r.type(cache.key("b")) == "string"
        assert not r.keys("*:lease")

    @ways
    @pytest.mark.parametrize("garbage", [b"\x80\xff", b'"\xff"', b"12:\xff"])
    def test_bytes_that_are_no_text_are_replaced(
        self, server: Server, r: Any, make: Make, table: Table, way: Any, garbage: bytes
    ) -> None:
        cache = make(**way, load_many=table.load_many)
        cache.get("a")
        with server.client(decode_responses=False) as raw:
            raw.set(cache.key("b"), garbage, ex=5)
            assert [cache.get("b"), cache.get("b")] == [[1, 2]] * 2
            raw.set(cache.key("b"), garbage)
            wanted = {"a": table.rows["a"], "b": [1, 2], "zero": 0}
            assert [cache.get_many(["a", "b", "zero"]), cache.get_many(["a", "b", "zero"])] == [wanted] * 2
        assert table.asked == ["a", "b", ["b", "zero"]]

    def test_an_answer_that_is_no_text_ends_the_pause(self, server: Server, r: Any, make: Make) -> None:
        cache = make(pause=60)
        with server.client(decode_responses=False) as raw:
            raw.set(cache.key("b"), b"\xff")
        cache._redis._away_until = 0.001
        assert cache.get("b") == [1, 2]
        assert r.get(cache.key("b")) == "[1,2]"

    @ways
    def test_bytes_through_a_client_that_does_not_decode(self, server: Server, r: Any, way: Any) -> None:
        for protocol in (2, 3):
            with server.client(decode_responses=False, protocol=protocol, legacy_responses=True) as raw:
                table, packs = Table(x=b"\x00\xff", e=b""), (lambda b: b"=" + b, lambda raw: raw[1:])
                cache = CacheAside(
                    raw,
                    table.load,
                    f"raw{protocol}",
                    ttl=60,
                    timeout=20,
                    **way,
                    dumps=packs[0],
                    loads=packs[1],
                    load_many=table.load_many,
                )
                assert [cache.get(key) for key in ("x", "x", "e", "e", "n", "n")] == [
                    b"\x00\xff",
                    b"\x00\xff",
                    b"",
                    b"",
                    None,
                    None,
                ]
                assert cache.get_many("xeny") == {"x": b"\x00\xff", "e": b""}
                assert table.asked == ["x", "e", "n", "y"]

    def test_a_flushed_script_cache_is_survived(self, r: redis.Redis, make: Make, table: Table) -> None:
        cache = make(stale=5)
        for key in "ab":
            r.script_flush()
            assert cache.get(key) == table.rows[key] == cache.get(key)
        r.script_flush()
        assert set(cache.get_many(table.rows)) == set(table.rows)
        assert cache.stats.refused_fills == 0 == cache.stats.errors

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_whatever_json_can_say(self, make: Make, r: redis.Redis, value: Any) -> None:
        for way in WAYS:
            r.flushall()
            cache = make(lambda key: value, **way)
            assert [cache.get("x"), cache.get("x")] == [value, value]
            assert cache.stats.loads == 1


class TestCost:
    def test_round_trips(self, make: Make) -> None:
        for way in WAYS:
            cache = make(**way, name=f"cost{len(way)}{list(way)}")
            for key in ("a", "b", "nobody"):
                cache.get(key)  # loads the scripts, on whichever server it is
                cache.refresh(key)
            cache.r.flushall()
            for key, trips in (("a", 3), ("a", 1), ("nobody", 3), ("nobody", 1)):
                with tap(cache.r) as said:
                    cache.get(key)
                assert said.round_trips == trips
            with tap(cache.r) as said:
                cache.invalidate("a", "b", "c")
            assert said.round_trips == nodes_of(cache.r, [cache.key(key) for key in "abc"])
            with tap(cache.r) as said:
                cache.refresh("a")
            assert said.round_trips == 2

    def test_a_hit_is_a_bare_get(self, make: Make) -> None:
        cache = make()
        cache.get("a")
        with tap(cache.r) as said:
            cache.get("a")
        assert [exchange.command for exchange in said.commands] == [("GET", cache.key("a"))]

    @pytest.mark.single_server("keys of several slots are a round trip to each node")
    def test_many_cost_as_much_as_one(self, make: Make, table: Table) -> None:
        table.rows |= {n: {"id": n} for n in range(500)}
        cache = make(load_many=table.load_many)
        cache.get_many([0, 1])
        wanted = [*range(300), "nobody", *range(20)]
        with tap(cache.r) as said:
            assert cache.get_many(wanted) == {n: {"id": n} for n in range(300)}
        assert said.round_trips == 3
        assert table.asked == [[0, 1], [*range(2, 300), "nobody"]]
        assert cache.stats == Stats(2, 301, 2, 0, 0, 0, 0)
        with tap(cache.r) as said:
            cache.get_many(wanted)
        assert [said.round_trips, said.commands[0].command[0], len(said.commands)] == [1, "MGET", 1]
        with tap(cache.r) as said:
            assert cache.get_many([]) == {}
            cache.invalidate()
        assert said.round_trips == 0

    def test_two_spellings_of_a_key_are_one(self, r: redis.Redis, make: Make, table: Table) -> None:
        table.rows |= {1: "one"}
        cache = make(load_many=lambda keys: table.load_many([int(key) for key in keys]))
        assert cache.get_many(["1", 1, 2, "2"]) == {"1": "one", 1: "one"}
        assert table.asked == [[1, 2]]
        assert cache.get(1) == "one" == cache.get("1")

    def test_a_bulk_load_may_use_its_list_up(self, r: redis.Redis, make: Make) -> None:
        cache = make(load_many=lambda keys: {keys.pop(): 1 for _ in range(len(keys))})
        assert cache.get_many("ab") == {"a": 1, "b": 1}

    def test_many_without_a_bulk_load(self, make: Make, table: Table) -> None:
        cache = make()
        assert cache.get_many(["b", "nobody", "a"]) == {"b": [1, 2], "a": table.rows["a"]}
        assert list(cache.get_many(["b", "nobody", "a"])) == ["b", "a"]
        assert table.asked == ["b", "nobody", "a"]


class TestInvalidation:
    @ways
    def test_invalidated_is_gone(self, r: redis.Redis, make: Make, table: Table, way: Any) -> None:
        cache = make(**way)
        for key in ("a", "b", "new"):
            cache.get(key)
        table.rows |= {"a": 2, "b": 3, "new": 4}
        assert cache.get("a") == {"id": 1, "name": "ä"}
        cache.invalidate("a", "b", "new")
        assert r.dbsize() == 0
        assert [cache.get(key) for key in ("a", "b", "new")] == [2, 3, 4]

    @ways
    def test_what_was_loaded_before_is_refused(self, r: Any, make: Make, table: Table, way: Any) -> None:
        cache, other = make(**way), make(**way)
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: table.asked)
            table.rows["b"] = "new"
            other.invalidate("b")
            table.gate.set()
            assert slow.result(30) == [1, 2]  # it had asked before
        assert cache.stats.refused_fills == 1
        assert r.dbsize() == 0
        assert other.get("b") == "new" == cache.get("b")

    def test_who_waited_in_the_same_process_asks_again(self, make: Make, table: Table) -> None:
        cache = make()
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: table.asked)
            table.rows["b"] = "new"
            cache.invalidate("b")
            late = [pool.submit(cache.get, "b") for _ in range(3)]
            until(lambda: cache.stats.waits >= 3)
            table.gate.set()
            assert slow.result(30) == [1, 2]
            assert [one.result(30) for one in late] == ["new"] * 3
        assert table.asked == ["b", "b"]

    @ways
    def test_refresh_replaces_and_readers_have_the_old_one(self, make: Make, table: Table, way: Any) -> None:
        cache = make(**way)
        cache.get("b")
        table.rows["b"] = "new"
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.refresh, "b")
            until(lambda: len(table.asked) == 2)
            assert cache.get("b") == [1, 2]
            table.gate.set()
            assert slow.result(30) == "new" == cache.get("b")
        del table.rows["b"]
        assert cache.refresh("b") is None is cache.get("b")

    def test_refresh_refuses_an_older_load(self, make: Make, table: Table) -> None:
        cache, other = make(), make(lambda key: "newest")
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: table.asked)
            assert other.refresh("b") == "newest"
            table.gate.set()
            assert slow.result(30) == [1, 2]
        assert cache.get("b") == "newest"


class TestOneLoader:
    @ways
    def test_threads(self, make: Make, table: Table, way: Any) -> None:
        cache = make(**way)
        table.gate.clear()
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(cache.get, "a") for _ in range(16)]
            until(lambda: cache.stats.waits >= 15)
            table.gate.set()
            assert [one.result(30) for one in asked] == [table.rows["a"]] * 16
        assert table.asked == ["a"]
        assert cache.stats[:3] == (15, 1, 1)
        assert len({id(one.result()) for one in asked}) == 16

    def test_threads_of_get_many(self, make: Make, table: Table) -> None:
        caches = [make(load_many=table.load_many) for _ in range(4)]
        with ThreadPoolExecutor(16) as pool:
            asked = [
                pool.submit(cache.get_many, list(keys)) for cache in caches for keys in ("ab", "ba", "a")
            ]
            assert all(one.result(30)["a"] == table.rows["a"] for one in asked)
        loaded = [key for keys in table.asked for key in keys]
        assert sorted(loaded) == ["a", "b"]

    def test_an_error_of_load_is_everyones_who_waits(self, r: redis.Redis, make: Make, table: Table) -> None:
        def fail(key: str) -> None:
            table.load(key)
            raise TimeoutError("the database is slow")

        cache = make(fail)
        table.gate.clear()
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(cache.get, "a") for _ in range(5)]
            until(lambda: cache.stats.waits >= 4)
            table.gate.set()
            for one in asked:
                with pytest.raises(TimeoutError, match="the database is slow"):
                    one.result(30)
        assert table.asked == ["a"]
        assert r.dbsize() == 0  # the lease was given back
        assert make().get("a") == table.rows["a"]

    def test_leases_are_given_back_whatever_fails(self, r: redis.Redis, make: Make) -> None:
        def interrupted(key: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(interrupted).get("a")
        with pytest.raises(ZeroDivisionError):
            make(load_many=lambda keys: {"a": 1 // 0}).get_many("ab")
        with pytest.raises(TypeError, match="not JSON serializable"):
            make(lambda key: {1, 2}).get("a")
        with pytest.raises(TypeError, match=r"dumps gave ''; it must give a str or bytes that is not empty"):
            make(dumps=str, load=lambda key: "").get("a")
        with pytest.raises(ZeroDivisionError):
            make(lambda key: 1 // 0).refresh("a")
        assert r.dbsize() == 0

    @pytest.mark.parametrize("seconds", [0.05, 2.2])
    def test_two_processes_of_sixteen_also_if_a_load_takes_longer_than_the_lease(
        self, server: Server, r: redis.Redis, seconds: float
    ) -> None:
        def callers(url: str, seconds: float) -> Any:
            import time
            from concurrent.futures import ThreadPoolExecutor

            import labkit
            from labkit.cache import CacheAside

            r = labkit.connect(url, quiet=True)

            def load(key: str) -> Any:
                r.incr("loads")
                time.sleep(seconds)
                return {"id": key}

            cache = CacheAside(r, load, "hot", ttl=60, lease=1, timeout=20)
            r.ping()
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda _: r.ping(), range(16)))
                yield
                return list(pool.map(cache.get, ["x"] * 16)), cache.stats

        results = processes(2, callers, server.url, seconds)
        assert [values for values, _ in results] == [[{"id": "x"}] * 16] * 2
        assert r.get("loads") == "1"
        assert sum(Stats(*stats).loads for _, stats in results) == 1
        assert sum(Stats(*stats).errors for _, stats in results) == 0

    def test_a_loader_that_was_killed_blocks_for_its_lease(self, server: Server, r: Any, make: Make) -> None:
        code = (
            "import sys, time, labkit; from labkit.cache import CacheAside; r = labkit.connect(sys.argv[1])\n"
            "CacheAside(r, lambda key: time.sleep(60), 'k', ttl=9, lease=1).get('a')"
        )
        child = subprocess.Popen([sys.executable, "-c", code, server.url])
        until(lambda: r.exists("k:{a}:lease"))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        cache, start = make(name="k"), time.monotonic()
        assert cache.get("a") == {"id": 1, "name": "ä"}
        assert time.monotonic() - start < 15
        assert cache.stats[:4] == (0, 1, 1, 1)

    def test_who_waited_long_enough_loads_and_caches_nothing(self, r: Any, make: Make, table: Table) -> None:
        cache = make(wait=0.1, load_many=table.load_many)
        r.set(cache.lease_key("b"), "another", ex=60)
        start = time.monotonic()
        assert cache.get("b") == [1, 2]
        assert time.monotonic() - start >= 0.1
        assert cache.get_many("ab") == {"a": table.rows["a"], "b": [1, 2]}
        assert r.exists(cache.key("b")) == 0
        assert r.exists(cache.key("a")) == 1
        assert make(wait=0).get("b") == [1, 2]

    def test_a_thread_that_waited_long_enough_too(self, make: Make, table: Table) -> None:
        cache = make(wait=0.1)
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: table.asked)
            late = pool.submit(cache.get, "b")
            until(lambda: len(table.asked) == 2)
            table.gate.set()
            assert late.result(30) == slow.result(30) == [1, 2]

    def test_a_thread_that_is_stuck_stops_others_once(self, make: Make, table: Table) -> None:
        cache = make(wait=0.1)
        cache._flights[cache.key("b")] = Future()
        assert [cache.get("b") for _ in range(3)] == [[1, 2]] * 3
        assert table.asked == ["b", "b"]
        assert cache._flights == {}

    def test_the_keeper_ends_and_never_keeps_a_process(self, server: Server, make: Make) -> None:
        cache = make(lease=0.06)
        cache.get("a")
        keeper = cache._keeper
        assert keeper is not None and keeper.daemon
        until(lambda: not keeper.is_alive())
        cache.get("b")
        assert cache.stats.errors == 0

    def test_a_child_that_was_forked_waits_for_no_thread_of_its_parent(
        self, make: Make, table: Table
    ) -> None:
        cache = make(stale=30)
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: table.asked)
            with cache._mutex:
                child = os.fork()
                if not child:
                    try:
                        table.gate = threading.Event()  # that thread may have held the lock of the old one
                        table.gate.set()
                        idle = (cache._flights, cache._loading, cache._keeper) == ({}, {}, None)
                        cache.r.delete(cache.lease_key("b"))
                        os._exit(0 if idle and cache.get("b") == [1, 2] else 1)
                    finally:
                        os._exit(2)
            killer = threading.Timer(10, os.kill, (child, signal.SIGKILL))
            killer.start()
            ended = os.waitpid(child, 0)
            killer.cancel()  # whatever comes of it: the pid may soon be a stranger's
            table.gate.set()
            assert ended == (child, 0)
            assert slow.result(30) == [1, 2]

    def test_leases_are_kept_during_a_pause(self, r: redis.Redis, make: Make, table: Table) -> None:
        cache = make(lease=0.6, pause=60)
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: table.asked)
            cache._redis._away_until = time.monotonic() + 60  # by an error of another key
            time.sleep(1.3)
            assert r.exists(cache.lease_key("b"))
            table.gate.set()
            assert slow.result(30) == [1, 2]
        assert r.dbsize() == 0  # nothing filled, and the lease given back

    def test_leases_are_given_back_after_an_error_of_one_of_them(self, r: Any, make: Make) -> None:
        cache, names = make(), ("x", "bad", "y")
        r.rpush(cache.lease_key("bad"), "stranger")
        r.script_flush()
        assert cache.get_many(names) == {}
        assert [r.exists(cache.lease_key(name)) for name in names] == [0, 1, 0]
        assert cache.stats.errors == 1

    @pytest.mark.parametrize("script", ["LOOK", "FILL"])
    def test_leases_are_given_back_if_the_answer_does_not_come(self, script: str, table: Table) -> None:
        with Server() as server:
            cache = CacheAside(server.client(), table.load, "x", ttl=60, timeout=0.2, pause=60)
            run = cache._redis.run

            def frozen(lua: str, calls: list[Any]) -> list[Any]:
                if lua != getattr(cache, script):
                    return run(lua, calls)
                server.freeze()
                try:
                    return run(lua, calls)
                finally:
                    server.thaw()

            cache._redis.run = frozen  # type: ignore[method-assign]
            assert cache.get("b") == [1, 2]
            assert cache.stats.errors == 1
            with server.client() as r:
                until(lambda: not r.exists(cache.lease_key("b")), 2)  # it lasts for 5 s

    def test_a_lease_is_kept_while_loading(self, r: redis.Redis, make: Make, table: Table) -> None:
        cache = make(lease=0.6)
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get_many, "ab")
            until(lambda: table.asked)
            token = r.get(cache.lease_key("b"))
            time.sleep(1.6)
            assert [r.get(cache.lease_key(key)) for key in "ab"] == [token, token]
            table.gate.set()
            assert set(slow.result(30)) == {"a", "b"}
        assert r.exists(cache.key("a"), cache.key("b")) == 2

    def test_the_same_sent_twice_is_one_lease(self, r: redis.Redis, make: Make) -> None:
        cache = make()
        call = (2, cache.key("a"), cache.lease_key("a"))
        assert [r.eval(cache.LOOK, *call, token, 9000, 0)[2] for token in ("me", "me", "you")] == [1, 1, 0]


class TestStale:
    def test_one_loads_and_the_others_have_the_old_one(self, r: Any, make: Make, table: Table) -> None:
        cache, other = make(ttl=10, stale=100), make(ttl=10, stale=100)
        cache.get("b")
        assert 100_000 < r.pttl(cache.key("b")) <= 110_000
        r.pexpire(cache.key("b"), 99_000)  # ten seconds have passed
        table.rows["b"] = "new"
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: len(table.asked) == 2)
            assert [cache.get("b"), other.get("b")] == [[1, 2]] * 2
            assert other.get_many("b") == {"b": [1, 2]}
            table.gate.set()
            assert slow.result(30) == "new"
        assert cache.get("b") == "new"
        assert (cache.stats.stale, other.stats.stale, cache.stats.waits, other.stats.waits) == (1, 2, 0, 0)
        assert table.asked == ["b", "b"]

    def test_what_was_invalidated_is_never_given(self, make: Make, table: Table) -> None:
        cache = make(ttl=10, stale=100)
        cache.get("b")
        table.rows["b"] = "new"
        cache.invalidate("b")
        assert cache.get("b") == "new"

    @pytest.mark.parametrize("way", [{"stale": 100}, {"beta": 1000.0}], ids=str)
    def test_if_the_load_fails_the_old_one_will_do(self, r: Any, make: Make, table: Table, way: Any) -> None:
        def load(key: Any) -> Any:
            if table.asked:
                raise LookupError(key)
            time.sleep(0.1)
            return table.load(key)

        cache = make(load, ttl=10, **way)
        cache.get("b")
        r.pexpire(cache.key("b"), 9_000)  # late, or early
        assert [cache.get("b"), cache.get("b")] == [[1, 2]] * 2
        assert cache.get_many("b") == {"b": [1, 2]}
        assert not r.exists(cache.lease_key("b"))
        with pytest.raises(LookupError):
            cache.get_many("ab")
        with pytest.raises(LookupError):
            cache.refresh("b")
        cache.invalidate("b")
        with pytest.raises(LookupError):
            cache.get("b")


class TestEarly:
    def test_one_loads_before_the_end_and_the_others_keep_the_value(
        self, r: Any, make: Make, table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache, other = make(beta=1.0), make(beta=1.0)
        r.set(cache.key("b"), "5000:[0]", px=20_000)  # a load takes 5 s; 20 s are left
        monkeypatch.setattr("labkit.cache.RANDOM", Fixed(0.9))  # log 10 is 2.3, times 5 s: 11.5 s
        assert cache.get("b") == [0]
        monkeypatch.setattr("labkit.cache.RANDOM", Fixed(0.99))  # 23 s
        table.gate.clear()
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(cache.get, "b")
            until(lambda: table.asked)
            assert [cache.get("b"), other.get("b"), *other.get_many("b").values()] == [[0]] * 3
            table.gate.set()
            assert slow.result(30) == [1, 2]
        assert table.asked == ["b"]
        assert (cache.stats.hits, other.stats.hits, cache.stats.stale) == (2, 2, 0)
        assert r.get(cache.key("b")).endswith(":[1,2]")
        assert r.pttl(cache.key("b")) > 30_000

    def test_beta_zero_never_does(self, r: redis.Redis, make: Make, table: Table) -> None:
        cache = make(stale=1)
        r.set(cache.key("b"), "[0]", px=30_000)
        assert {str(cache.get("b")) for _ in range(100)} == {"[0]"}
        assert table.asked == []

    def test_the_cost_is_measured(self, r: redis.Redis, make: Make) -> None:
        def slow(key: str) -> str:
            time.sleep(0.05)
            return key

        cache = make(slow, beta=1.0)
        cache.get("x")
        cost, _, text = str(r.get(cache.key("x"))).partition(":")
        assert 50 <= int(cost) < 10_000
        assert text == '"x"'


class Fixed:
    """A source of random numbers with one number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value

    def uniform(self, low: float, high: float) -> float:
        return high


def test_jitter_shortens_and_never_lengthens(r: redis.Redis, make: Make) -> None:
    cache = make(lambda key: key, ttl=1000, jitter=0.5, load_many=lambda keys: {key: key for key in keys})
    cache.get_many(range(200))
    left = [r.pttl(cache.key(n)) / 1000 for n in range(200)]
    assert max(left) <= 1000 and min(left) > 480
    assert max(left) > 900 and min(left) < 600
    plain = make(lambda key: key, ttl=1000, name="plain")
    plain.get(1)
    assert 990_000 < r.pttl(plain.key(1)) <= 1_000_000


def test_an_expired_value_is_loaded_anew(make: Make, table: Table) -> None:
    cache = make(ttl=0.05, negative_ttl=0.05)
    for key in ("b", "nobody"):
        cache.get(key)
        until(lambda key=key: not cache.r.exists(cache.key(key)))  # type: ignore[misc]
        cache.get(key)
    assert table.asked == ["b", "b", "nobody", "nobody"]


class TestWithoutRedis:
    """Its own servers: they are killed, frozen and filled."""

    def test_killed(self, table: Table) -> None:
        with Server() as server:
            cache = CacheAside(server.client(), table.load, "x", ttl=60, load_many=table.load_many)
            assert cache.get("b") == [1, 2]
            server.kill()
            assert cache.get("b") == [1, 2]
            assert cache.get_many("ab") == {"a": table.rows["a"], "b": [1, 2]}
            assert cache.get("nobody") is None
            assert cache.stats.errors == 1  # then it was left alone
            for write in (cache.invalidate, cache.refresh):
                with pytest.raises(exceptions.ConnectionError):
                    write("b")
            cache._redis._away_until = 0.001  # the pause is over
            server.start()
            assert [cache.get("b"), cache.get("b")] == [[1, 2]] * 2
            assert table.asked[-2:] == ["nobody", "b"]

    @pytest.mark.single_server("redis-py's cluster client connects, and so fails, when it is made")
    def test_never_there_and_a_refused_password(self, table: Table, server: Server) -> None:
        for url in ("redis://127.0.0.1:1/0", server.url.replace("://:", "://:wrong")):
            cache = CacheAside(redis.Redis.from_url(url), table.load, "x", ttl=60)
            assert [cache.get("b") for _ in range(3)] == [[1, 2]] * 3
            assert cache.stats.errors == 1

    def test_frozen_is_waited_for_once_for_the_timeout(self, table: Table) -> None:
        with Server() as server:
            cache = CacheAside(server.client(), table.load, "x", ttl=60, timeout=0.2, pause=60)
            cache.get("b")
            server.freeze()
            taken = []
            for _ in range(5):
                start = time.monotonic()
                assert cache.get("b") == [1, 2]
                taken.append(time.monotonic() - start)
            start = time.monotonic()
            with pytest.raises(exceptions.TimeoutError):
                cache.invalidate("b")
            taken.append(time.monotonic() - start)
            server.thaw()
        assert 0.2 <= taken[0] < 5  # the client itself would wait for 10 s
        assert sum(taken[1:5]) < taken[0]
        assert 0.2 <= taken[5] < 5

    def test_frozen_while_it_loads(self) -> None:
        with Server() as server:

            def load(key: str) -> str:
                server.freeze()
                return "loaded"

            cache = CacheAside(server.client(), load, "x", ttl=60, timeout=0.2)
            assert cache.get("b") == "loaded"
            server.thaw()

    def test_after_the_pause_only_one_tries(self, table: Table) -> None:
        with Server() as server:
            cache = CacheAside(server.client(), table.load, "x", ttl=60, timeout=1, pause=60)
            cache.get("b")
            server.freeze()
            cache.get("b")
            cache._redis._away_until = 0.001
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(cache.get, "abcdefgh"))[1] == [1, 2]
            assert cache.stats.errors == 2
            server.thaw()

    def test_threads_still_share_a_load(self) -> None:
        """Who asked while the first one was under way has the second one."""
        asked, gates = list[Any](), [threading.Event(), threading.Event()]

        def load(key: Any) -> Any:
            asked.append(key)
            gates[len(asked) - 1].wait(30)
            return [len(asked)]

        with Server() as server:
            cache = CacheAside(server.client(), load, "x", ttl=60, timeout=5, pause=60)
            server.kill()
            with ThreadPoolExecutor(16) as pool:
                found = [pool.submit(cache.get, "a")]
                until(lambda: asked)
                found += [pool.submit(cache.get, "a") for _ in range(15)]
                until(lambda: cache.stats.waits >= 15)
                gates[0].set()
                until(lambda: cache.stats.waits >= 15 + 14)
                assert cache.stats.waits == 15 + 14  # nobody turned in circles
                gates[1].set()
                assert sorted(one.result(30) for one in found) == [[1]] + [[2]] * 15
            assert len({id(one.result()) for one in found}) == 16

    @pytest.mark.parametrize("why", ["full", "a timeout"])
    def test_who_asks_after_an_invalidation_never_has_what_was_loaded_before(self, why: str) -> None:
        """Redis says no to a script, or is away for a moment; it does invalidate."""
        entered, gate, row = threading.Event(), threading.Event(), ["old"]

        def load(key: Any) -> Any:
            value = row[0]
            entered.set()
            if value == "old":
                gate.wait(30)
            return value

        with Server() as server, ThreadPoolExecutor() as pool:
            r = server.client()
            cache = CacheAside(r, load, "x", ttl=60, timeout=0.2 if why == "a timeout" else 20, pause=0.1)
            if why == "full":
                r.config_set("maxmemory", 1)
            else:
                server.freeze()
            first = pool.submit(cache.get, "a")
            assert entered.wait(30)
            if why == "a timeout":
                server.thaw()
            row[0] = "new"
            until(lambda: _invalidated(cache, "a"))
            late = pool.submit(cache.get, "a")
            until(lambda: cache.stats.waits)
            gate.set()
            assert (first.result(30), late.result(30)) == ("old", "new")

    def test_full(self, table: Table) -> None:
        with Server() as server:
            r = server.client()
            r.config_set("maxmemory", 1)
            cache = CacheAside(r, table.load, "x", ttl=60, timeout=20)
            assert [cache.get("b") for _ in range(3)] == [[1, 2]] * 3
            assert r.dbsize() == 0
            r.config_set("maxmemory", 0)
            assert [cache.get("b") for _ in range(2)] == [[1, 2]] * 2  # errors that it answers make no pause
            assert len(table.asked) == 4

    def test_read_only(self, table: Table) -> None:
        with Server() as server:
            r = server.client()
            cache = CacheAside(r, table.load, "x", ttl=60, timeout=20)
            cache.get("b")
            r.execute_command("REPLICAOF", "127.0.0.1", "1")
            r.config_set("replica-serve-stale-data", "yes")
            assert [cache.get("b"), cache.get("a")] == [[1, 2], table.rows["a"]]
            with pytest.raises(exceptions.ReadOnlyError):
                cache.invalidate("b")

    def test_busy_with_a_script(self, table: Table) -> None:
        with Server(busy_reply_threshold=1) as server:
            cache = CacheAside(server.client(), table.load, "x", ttl=60, timeout=20)
            with ThreadPoolExecutor() as pool:
                busy = pool.submit(server.client().eval, "while true do end", 0)
                with server.client() as other:
                    until(lambda: _busy(other))
                    assert cache.get("b") == [1, 2]
                    other.script_kill()
                with pytest.raises(exceptions.ResponseError):
                    busy.result(30)
            assert cache.stats.errors >= 1

    @pytest.mark.single_server("about the pool of redis.Redis")
    def test_a_pool_that_is_exhausted(self, server: Server, r: redis.Redis, table: Table) -> None:
        with server.client(max_connections=1) as small:
            cache = CacheAside(small, table.load, "x", ttl=60, timeout=20)
            cache.get("b")
            held = cache.r.connection_pool.get_connection()
            assert cache.get("b") == [1, 2]
            cache.r.connection_pool.release(held)
            cache.get("b")
            assert table.asked == ["b", "b"]


def _invalidated(cache: CacheAside, key: Any) -> bool:
    try:
        cache.invalidate(key)
    except exceptions.RedisError:
        return False
    return True


def _busy(r: Any) -> bool:
    try:
        r.ping()
    except exceptions.ResponseError:
        return True
    return False


class TestClient:
    @pytest.mark.single_server("about the pool of redis.Redis")
    def test_a_plain_client_is_replaced_by_one_that_is_patient_for_the_timeout(self, r: redis.Redis) -> None:
        cache = CacheAside(r, str, "x", ttl=1)
        kwargs = cache.r.connection_pool.connection_kwargs
        assert type(cache.r) is redis.Redis and cache.r is not r
        assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (0.25, 0.25)
        assert kwargs["retry"].get_retries() == 0
        for name in ("host", "port", "password", "db", "protocol", "decode_responses"):
            assert kwargs.get(name) == r.connection_pool.connection_kwargs.get(name)
        assert r.connection_pool.connection_kwargs["socket_timeout"] == 10

    @pytest.mark.single_server("about the pool of redis.Redis")
    def test_its_connections_are_closed_with_it(self, r: redis.Redis) -> None:
        cache = CacheAside(r, str, "x", ttl=1)

        def closed(which: object) -> None:
            until(lambda: str(which) not in {one["id"] for one in r.client_list()})

        first = cache.r.client_id()
        assert first == cache.r.client_id()
        cache.r.close()
        closed(first)
        second = cache.r.client_id()  # it may go on
        del cache
        gc.collect()
        closed(second)

    @pytest.mark.single_server("about subclasses of redis.Redis")
    def test_others_are_used_as_they_are(self, server: Server, r: redis.Redis) -> None:
        class Mine(redis.Redis):
            pass

        with Mine.from_url(server.url) as mine:
            assert CacheAside(mine, str, "x", ttl=1).r is mine
            assert WriteThrough(mine, Rows(), "x", ttl=1).r is mine
        assert CacheAside(r, str, "x", ttl=1, timeout=None).r is r

    @pytest.mark.single_server("about the pool of redis.Redis")
    def test_a_blocking_pool_stays_one(self, server: Server, r: redis.Redis, table: Table) -> None:
        pool = redis.BlockingConnectionPool.from_url(server.url, max_connections=2)
        cache = CacheAside(redis.Redis(connection_pool=pool), table.load, "x", ttl=60, timeout=20)
        assert type(cache.r.connection_pool) is redis.BlockingConnectionPool
        with ThreadPoolExecutor(12) as threads:
            assert list(threads.map(cache.get, "b" * 50)) == [[1, 2]] * 50
        assert (table.asked, cache.stats.errors) == (["b"], 0)

    def test_on_a_cluster(self, table: Table) -> None:
        with Server(cluster_enabled=True) as node:
            node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: "cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
            with RedisCluster.from_url(node.url, protocol=3, legacy_responses=False) as cluster:
                for way in WAYS:
                    name = f"x{len(way)}{list(way)}"
                    cache = CacheAside(cluster, table.load, name, ttl=60, load_many=table.load_many, **way)
                    assert cache.r is cluster
                    assert cache.get("b") == [1, 2] == cache.get("b")
                    wanted = {key: value for key, value in table.rows.items() if value is not None}
                    assert cache.get_many([*table.rows, "nobody"]) == wanted
                    cache.invalidate(*table.rows)
                    assert cache.get_many([*table.rows, "nobody"]) == wanted
                    assert cache.refresh("b") == [1, 2]
                    assert cache.stats[3:] == (0, 0, 0, 0)
                    with node.client(decode_responses=False) as raw:
                        raw.set(cache.key("b"), b"\xff")
                        raw.delete(cache.key("a"))
                        raw.rpush(cache.key("a"), "stranger")
                    assert cache.get_many("ba") == {key: table.rows[key] for key in "ba"}
                rows = Rows(a={"id": 1, "version": 1})
                through = WriteThrough(cluster, rows, "w", ttl=60)
                assert through.save("a", id=2) == {"id": 2, "version": 2} == through.get("a")
                through.forget("a", "b")


@given(st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_all_of_a_key_is_in_one_slot(key: Any) -> None:
    cache = CacheAside(redis.Redis(), str, "workbook:x", ttl=1)
    if str(key).startswith("}"):
        with pytest.raises(ValueError, match="does not begin with }"):
            cache.key(key)
        return
    assert key_slot(cache.key(key).encode()) == key_slot(cache.lease_key(key).encode())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"ttl": 0}, ValueError, "ttl is 0; it must be from 0.001 to 1e"),
        ({"ttl": "1"}, TypeError, "ttl is '1'; it must be a number from 0.001"),
        ({"ttl": True}, TypeError, "ttl is True"),
        ({"jitter": 1.5}, ValueError, "jitter is 1.5; it must be from 0 to 1"),
        ({"jitter": float("nan")}, ValueError, "jitter is nan"),
        ({"negative_ttl": -1}, ValueError, "negative_ttl is -1"),
        ({"beta": -1}, ValueError, "beta is -1"),
        ({"stale": -1}, ValueError, "stale is -1"),
        ({"lease": 0}, ValueError, "lease is 0"),
        ({"wait": -1}, ValueError, "wait is -1"),
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"pause": -1}, ValueError, "pause is -1"),
        ({"name": ""}, ValueError, "name is ''; it must be a str that is not empty, without braces"),
        ({"name": "a{b}"}, ValueError, "without braces"),
        ({"load": None}, TypeError, "None is not callable"),
        ({"loads": "json"}, TypeError, "'json' is not callable"),
        ({"r": redis.asyncio.Redis()}, TypeError, "is an async one"),
        ({"r": None}, TypeError, "NoneType is no client"),
        ({"r": redis.Redis().pipeline()}, TypeError, "Pipeline is no client"),
    ],
)
def test_misuse(options: dict[str, Any], error: type[Exception], said: str) -> None:
    options = {"r": redis.Redis(), "load": str, "name": "x", "ttl": 1, **options}
    with pytest.raises(error, match=said):
        CacheAside(options.pop("r"), options.pop("load"), options.pop("name"), **options)


@pytest.mark.parametrize("key", ["", "}x", 1.5, None, True, b"x", ("a",)])
def test_misuse_of_keys(key: Any) -> None:
    cache, through = (
        CacheAside(redis.Redis(), str, "x", ttl=1),
        WriteThrough(redis.Redis(), Rows(), "x", ttl=1),
    )
    for call in (cache.get, cache.refresh, cache.invalidate, lambda key: cache.get_many([2, key])):
        with pytest.raises((ValueError, TypeError), match="it must be an int, or a str"):
            call(key)
    writes: list[Callable[..., Any]] = [through.get, through.save, through.forget]
    for call in writes:
        with pytest.raises((ValueError, TypeError), match="it must be an int, or a str"):
            call(key)


class Rows:
    """A store whose rows have versions; each statement is a step of an exploration."""

    def __init__(self, **rows: dict[str, Any]) -> None:
        self.rows = dict[Any, dict[str, Any]](rows)

    def load(self, key: Any) -> dict[str, Any] | None:
        def read() -> dict[str, Any] | None:
            return dict(self.rows[key]) if key in self.rows else None

        return outside(("SELECT", str(key)), read, reads=[f"rows {key}"])

    def save(self, key: Any, **changes: Any) -> dict[str, Any] | None:
        def write() -> dict[str, Any] | None:
            if key not in self.rows:
                return None
            self.rows[key] |= {**changes, "version": self.rows[key]["version"] + 1}
            return dict(self.rows[key])

        return outside(("UPDATE", str(key)), write, writes=[f"rows {key}"])


def agree(name: str = "x:{1}") -> tuple[Rows, Callable[[Any], None], Callable[[Any], bool]]:
    """A row, what puts it back, and the invariant that nothing old is cached in the end."""
    rows = Rows()

    def setup(redis: Any) -> None:
        rows.rows = {1: {"price": 100, "version": 1}}

    def invariant(redis: Any) -> bool:
        text = redis.get(name)
        return text is None or json.loads(text[text.index("{") :])["price"] == rows.rows[1]["price"]

    return rows, setup, invariant


def cached(redis: Any, rows: Rows, **options: Any) -> CacheAside:
    return CacheAside(redis, rows.load, "x", ttl=60, **{"wait": 0, **options})


class TestEveryOrder:
    """All interleavings of readers and writers, by the race explorer."""

    @staticmethod
    def explored(
        readers: int = 1, writers: int = 1, faults: Any = (), fill: bool = False, **options: Any
    ) -> Exploration:
        rows, setup, invariant = agree()

        def prepare(redis: Any) -> None:
            setup(redis)
            if fill:
                cached(redis, rows, **options).get(1)

        def read(redis: Any) -> Any:
            return cached(redis, rows, **options).get(1)["price"]

        def write(redis: Any) -> None:
            rows.save(1, price=200)
            cached(redis, rows, **options).invalidate(1)

        return explore(
            [read] * readers + [write] * writers, setup=prepare, invariant=invariant, faults=faults
        )

    @pytest.mark.parametrize("options", [{}, {"stale": 30}, {"beta": 1.0}, {"wait": 0.002}], ids=str)
    @pytest.mark.parametrize("fill", [False, True])
    def test_a_reader_and_a_writer(self, options: Any, fill: bool) -> None:
        found = self.explored(fill=fill, **options)
        found.assert_safe()
        assert found.total > 1

    @pytest.mark.parametrize("fault", [expire, lose_reply])
    def test_also_if_leases_expire_or_replies_are_lost(self, fault: Any) -> None:
        found = self.explored(faults=[fault])
        found.assert_safe()

    def test_two_readers_and_a_writer(self) -> None:
        self.explored(readers=2).assert_safe()

    def test_a_writer_that_crashes_before_it_invalidates_leaves_the_old_value(self) -> None:
        found = self.explored(fill=True, faults=[crash])
        assert found.verdict == "violated"
        assert "!B" in found.schedule

    def test_a_reader_may_crash(self) -> None:
        rows, setup, invariant = agree()

        def read(redis: Any) -> None:
            cached(redis, rows).get(1)

        def write(redis: Any) -> None:
            rows.save(1, price=200)
            cached(redis, rows).invalidate(1)

        found = explore([read, write], setup=setup, invariant=invariant, faults=[crash])
        assert not [one for one in found.interleavings if one.wrong and "!B" not in one.schedule]
        assert found.exhausted

    def test_who_asks_after_the_invalidation_never_sees_the_old_value(self) -> None:
        rows, setup, _ = agree()

        def read(redis: Any) -> None:
            cached(redis, rows).get(1)

        def write_and_read(redis: Any) -> Any:
            rows.save(1, price=200)
            cache = cached(redis, rows)
            cache.invalidate(1)
            return cache.get(1)["price"]

        explore(
            [read, write_and_read], setup=setup, invariant=lambda redis, results: results[1] == 200
        ).assert_safe()

    def test_a_refresh_after_a_write_is_as_good(self) -> None:
        rows, setup, invariant = agree()

        def read(redis: Any) -> None:
            cached(redis, rows).get(1)

        def write(redis: Any) -> None:
            rows.save(1, price=200)
            cached(redis, rows).refresh(1)

        explore([read, write], setup=setup, invariant=invariant).assert_safe()
        explore([write, write], setup=setup, invariant=invariant).assert_safe()

    @pytest.mark.parametrize("fault", [expire, crash])
    @pytest.mark.parametrize("actors", ["WV", "WR"])
    def test_a_refresh_that_has_returned_leaves_nothing_older(self, actors: str, fault: Any) -> None:
        """Whoever else crashes, and whatever expires: also if another had taken its lease."""
        rows, setup, _ = agree()

        def prepare(redis: Any) -> None:
            setup(redis)
            cached(redis, rows).get(1)

        def refresh(redis: Any) -> Any:
            cached(redis, rows).refresh(1)

        def writer(price: int) -> Callable[[Any], Any]:
            def write(redis: Any) -> Any:
                saved = rows.save(1, price=price)
                cached(redis, rows).refresh(1)
                return saved

            return write

        def nothing_older(redis: Any, results: Any) -> bool:
            text = redis.get("x:{1}")
            least = max(saved["version"] if saved else 0 for saved in results)
            return text is None or json.loads(text)["version"] >= least

        kinds = {"W": writer(200), "V": writer(300), "R": refresh}
        explore(
            [kinds[kind] for kind in actors], setup=prepare, invariant=nothing_older, faults=[fault]
        ).assert_safe()

    def test_many_at_once(self) -> None:
        rows, setup, invariant = agree()

        def read(redis: Any) -> None:
            cached(redis, rows).get_many([1, 2])

        def write(redis: Any) -> None:
            rows.save(1, price=200)
            cached(redis, rows).invalidate(1, 2)

        explore([read, write], setup=setup, invariant=invariant).assert_safe()

    def test_without_the_lease_it_is_a_race(self) -> None:
        """The same by hand, so that the tests above are known to see what they look for."""
        rows, setup, invariant = agree()

        def read(redis: Any) -> None:
            if redis.get("x:{1}") is None:
                redis.set("x:{1}", json.dumps(rows.load(1)), ex=60)

        def write(redis: Any) -> None:
            rows.save(1, price=200)
            redis.delete("x:{1}")

        assert explore([read, write], setup=setup, invariant=invariant).verdict == "violated"

    def test_only_one_loads(self) -> None:
        rows, setup, _ = agree()

        def read(redis: Any) -> Any:
            cache = cached(redis, rows, stale=30)
            cache.get(1)
            return cache.stats.loads

        def prepare(redis: Any) -> None:
            setup(redis)
            cached(redis, rows, stale=30).get(1)
            redis.pexpire("x:{1}", 20_000)

        explore(
            [read, read, read], setup=prepare, invariant=lambda redis, results: sum(results) == 1
        ).assert_safe()


def through(redis: Any, rows: Rows) -> WriteThrough:
    return WriteThrough(redis, rows, "x", ttl=60)


class TestWriteThrough:
    def test_rows_with_their_version(self, r: redis.Redis) -> None:
        rows = Rows(a={"id": 1, "version": 1})
        cache = WriteThrough(r, rows, "w", ttl=60, timeout=20)
        assert cache.get("a") == {"id": 1, "version": 1}
        assert r.get("w:{a}") == '1:{"id":1,"version":1}'
        assert cache.save("a", id=7) == {"id": 7, "version": 2} == rows.rows["a"]
        assert r.get("w:{a}") == '2:{"id":7,"version":2}'
        rows.rows["a"]["id"] = "unseen"
        assert cache.get("a") == {"id": 7, "version": 2}
        assert 50_000 < r.pttl("w:{a}") <= 60_000
        cache.forget("a")
        assert r.dbsize() == 0

    def test_nothing_is_cached_and_gives_way_to_anything(self, r: redis.Redis) -> None:
        rows = Rows()
        cache = WriteThrough(r, rows, "w", ttl=60, timeout=20)
        assert cache.get("a") is None
        rows.rows["a"] = {"id": 1, "version": 1}
        assert cache.get("a") is None
        assert cache.save("a", id=2) == {"id": 2, "version": 2} == cache.get("a")
        del rows.rows["a"]
        assert cache.save("a", id=3) is None
        assert r.dbsize() == 0
        assert cache.get("a") is None

    def test_what_comes_is_a_copy_from_the_first_get_on(self, r: redis.Redis) -> None:
        rows = Rows(a={"pair": (1, 2), "version": 1})
        cache = WriteThrough(r, rows, "w", ttl=60, timeout=20)
        assert cache.get("a") == {"pair": [1, 2], "version": 1} == cache.get("a")

    def test_an_older_version_never_replaces_a_newer_one(self, r: redis.Redis) -> None:
        cache = WriteThrough(r, Rows(), "w", ttl=60, timeout=20)
        big, huge = 2**53, 10**19
        versions = (9, 10, 3, big, 11, big + 1, big, huge + 1, huge, 10**99 - 1, 10**98, 0)
        for n, version in enumerate(versions):
            cache._put("a", {"version": version})
            assert cache.get("a") == {"version": max(versions[: n + 1])}

    @pytest.mark.parametrize("version", [-1, 2.5, True, "7", None, 10**99])
    def test_a_version_must_be_an_int_that_can_be_compared(self, r: redis.Redis, version: Any) -> None:
        rows = Rows(a={"version": version})
        cache = WriteThrough(r, rows, "w", ttl=60, timeout=20)
        with pytest.raises(ValueError, match=r"the version of 'a' is .*; it must be an int from 0 to"):
            cache.get("a")
        assert r.dbsize() == 0

    def test_an_entry_of_another_type_is_replaced(self, r: redis.Redis) -> None:
        rows = Rows(a={"version": 1})
        cache = WriteThrough(r, rows, "w", ttl=60, timeout=20)
        for call in (cache.get, cache.save):
            r.delete("w:{a}")
            r.rpush("w:{a}", "stranger")
            assert call("a") == rows.rows["a"] == cache.get("a")
            assert r.type("w:{a}") == "string"

    def test_a_row_that_cannot_be_cached_does_not_leave_the_old_one(self, r: redis.Redis) -> None:
        cache = WriteThrough(r, Rows(a={"version": 1}), "w", ttl=60, timeout=20)
        cache.get("a")
        with pytest.raises(TypeError, match="not JSON serializable") as raised:
            cache.save("a", tags={1, 2})
        assert "the store has been written" in raised.value.__notes__[0]
        assert r.dbsize() == 0

    def test_a_column_may_have_any_name(self, r: redis.Redis) -> None:
        class Plain:
            def load(self, key: Any) -> Any: ...

            def save(self, id: Any, /, **changes: Any) -> Any:
                return {"version": 2, **changes}

        saved = WriteThrough(r, Plain(), "w", ttl=60, timeout=20).save("a", key=3, self=4)
        assert saved == {"version": 2, "key": 3, "self": 4}

    @pytest.mark.parametrize("garbage", ["", "x", "{}", "1:{", "0:[", ":", "x:{}", "007:["])
    def test_what_cannot_be_read_is_replaced(self, r: redis.Redis, garbage: str) -> None:
        cache = WriteThrough(r, Rows(a={"version": 1}), "w", ttl=60, timeout=20)
        r.set("w:{a}", garbage)
        assert cache.get("a") == {"version": 1}
        assert r.get("w:{a}") == '1:{"version":1}'
        assert r.pttl("w:{a}") > 0

    def test_round_trips(self, r: redis.Redis) -> None:
        cache = WriteThrough(r, Rows(a={"version": 1}, b={"version": 1}), "w", ttl=60, timeout=20)
        for warm in (cache.get, cache.save, cache.forget):
            warm("b")  # loads the scripts
        r.flushall()
        for call, trips in ((cache.get, 2), (cache.get, 1), (cache.save, 1), (cache.forget, 1)):
            with tap(cache.r) as said:
                call("b")
            assert said.round_trips == trips

    def test_on_a_client_that_does_not_decode(self, server: Server, r: redis.Redis) -> None:
        with server.client(decode_responses=False) as raw:
            cache = WriteThrough(raw, Rows(a={"version": 1}), "w", ttl=60, timeout=20)
            assert [cache.get("a"), cache.get("a"), cache.get("b"), cache.get("b")] == [
                {"version": 1}
            ] * 2 + [None] * 2
            assert cache.save("a", x=1) == {"x": 1, "version": 2} == cache.get("a")

    def test_without_redis_reads_go_on_and_writes_say_so(self) -> None:
        rows = Rows(a={"id": 1, "version": 1})
        with Server() as server:
            cache = WriteThrough(server.client(), rows, "w", ttl=60)
            server.kill()
            assert [cache.get("a") for _ in range(3)] == [{"id": 1, "version": 1}] * 3
            with pytest.raises(exceptions.ConnectionError) as raised:
                cache.save("a", id=2)
        assert rows.rows["a"] == {"id": 2, "version": 2}
        assert "the store has been written" in raised.value.__notes__[0]

    def test_an_error_of_the_store_is_the_callers(self, r: redis.Redis) -> None:
        class Broken(Rows):
            def load(self, key: Any) -> Any:
                raise LookupError(key)

        with pytest.raises(LookupError) as raised:
            WriteThrough(r, Broken(), "w", ttl=60).get("a")
        assert raised.value.__context__ is None
        with pytest.raises(TypeError, match=r"store is None; it must have .load\(key\) and .save"):
            WriteThrough(r, None, "w", ttl=60)

    @staticmethod
    def explored(faults: Any = (), actors: str = "RWW") -> Exploration:
        rows, setup, invariant = agree()

        def read(redis: Any) -> Any:
            return through(redis, rows).get(1)

        def write(redis: Any) -> Any:
            return through(redis, rows).save(1, price=300)

        def write_too(redis: Any) -> Any:
            return through(redis, rows).save(1, price=400)

        kinds = {"R": read, "W": write, "V": write_too}
        return explore([kinds[kind] for kind in actors], setup=setup, invariant=invariant, faults=faults)

    @pytest.mark.parametrize("actors", ["RW", "WV", "RWV"])
    def test_safe_in_every_order(self, actors: str) -> None:
        self.explored(actors=actors).assert_safe()

    def test_not_safe_against_a_crash_nor_an_entry_that_goes_meanwhile(self) -> None:
        assert self.explored(faults=[crash], actors="RW").verdict == "violated"
        assert self.explored(faults=[expire], actors="WV").verdict == "violated"


class Model(RuleBasedStateMachine):
    """Two caches of two processes and a table: after an invalidation nobody sees what was there before."""

    r: Any
    way: dict[str, Any]
    keys = st.sampled_from([1, 2, "a"])
    cache = st.sampled_from([0, 1])

    def __init__(self) -> None:
        super().__init__()
        self.r.flushall()
        self.table = Table()
        self.caches = [
            CacheAside(
                self.r, self.table.load, "m", ttl=50, timeout=20, load_many=self.table.load_many, **self.way
            )
            for _ in range(2)
        ]
        self.seen: dict[Any, Any] = {}  # what is cached, as far as is known

    def expected(self, key: Any) -> Any:
        return self.seen.setdefault(key, self.table.rows.get(key))

    @rule(key=keys, cache=cache)
    def get(self, key: Any, cache: int) -> None:
        assert self.caches[cache].get(key) == self.expected(key)

    @rule(some=st.lists(keys), cache=cache)
    def get_many(self, some: list[Any], cache: int) -> None:
        expected = {key: self.expected(key) for key in some}
        found = {key: value for key, value in expected.items() if value is not None}
        assert self.caches[cache].get_many(some) == found

    @rule(key=keys, cache=cache, value=st.none() | st.integers(0, 3) | st.just({}))
    def write(self, key: Any, cache: int, value: Any) -> None:
        self.table.rows[key] = value
        self.caches[cache].invalidate(key)
        self.seen.pop(key, None)

    @rule(key=keys, value=st.integers(4, 9))
    def write_unseen(self, key: Any, value: Any) -> None:
        self.expected(key)
        self.caches[0].get(key)
        self.table.rows[key] = value

    @rule(key=keys, cache=cache)
    def refresh(self, key: Any, cache: int) -> None:
        assert self.caches[cache].refresh(key) == self.table.rows.get(key)
        self.seen[key] = self.table.rows.get(key)

    @rule(key=keys)
    def evict(self, key: Any) -> None:
        self.r.delete(self.caches[0].key(key))
        self.seen.pop(key, None)

    @precondition(lambda self: "stale" in self.way)
    @rule(key=keys, cache=cache)
    def outlive(self, key: Any, cache: int) -> None:
        """Its TTL has passed, and another loads it: the old value. Then nobody does: the new one."""
        one = self.caches[cache]
        if key in self.seen and self.r.pexpire(one.key(key), 5_000):
            self.r.set(one.lease_key(key), "another", px=60_000)
            assert one.get(key) == self.seen[key]
            self.r.delete(one.lease_key(key))
            self.seen[key] = self.table.rows.get(key)
            assert one.get(key) == self.seen[key]

    @rule(key=keys)
    def garble(self, key: Any) -> None:
        self.r.set(self.caches[0].key(key), "{", px=90_000)
        self.seen.pop(key, None)

    def teardown(self) -> None:
        for name in self.r.scan_iter("*"):
            assert self.r.pttl(name) > 0 and not name.endswith(":lease")
        for one in self.caches:
            assert one.stats.errors == 0 == one.stats.refused_fills


@pytest.mark.parametrize("way", [{}, {"stale": 30, "jitter": 0.1}], ids=["plain", "stale"])
def test_a_model(r: redis.Redis, way: dict[str, Any]) -> None:
    model = type("Model", (Model,), {"r": r, "way": way})
    run_state_machine_as_test(
        model, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )
