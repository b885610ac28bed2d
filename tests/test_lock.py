"""labkit.lock on real servers: what is held, what is refused, who waits, and what faults do to it.

The commands of Redis 8.4 (DELEX, SET IFEQ) are tested too where LABKIT_NEWER_REDIS names such a server.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.retry import Retry
from servers import Path, until
from servers import each_path as each_path
from servers import of_path as of_path

import labkit.lock
from labkit.lock import Lock, Redlock
from labkit.rig.connection import supports
from labkit.rig.processes import processes
from labkit.rig.proxy import Proxy
from labkit.rig.server import Server
from labkit.rig.wire import tap


@pytest.fixture
def make(r: redis.Redis, path: Path) -> Callable[..., Lock]:
    def make(name: str = "workbook:test:stock", **options: Any) -> Lock:
        return Lock(r, name, **{"ttl": 30, "newer": path.newer, **options})

    return make


def expire(r: Any, lock: Lock) -> None:
    r.pexpire(lock.key, 1)
    until(lambda: not r.exists(lock.key))


def blocked(r: Any, count: int = 1) -> Callable[[], bool]:
    return lambda: r.info("clients")["blocked_clients"] == count


Make = Callable[..., Lock]


class TestOneHolder:
    def test_acquired_with_token_ttl_and_fence(self, r: redis.Redis, make: Make) -> None:
        lock, before = make(ttl=30), time.monotonic()
        assert (lock.token, lock.fence, lock.locked_until) == (None, 0, 0.0)
        assert lock.acquire()
        assert before + 30 <= lock.locked_until <= time.monotonic() + 30
        assert r.get("workbook:test:{stock}") == lock.token
        assert lock.token is not None and len(lock.token) == 32
        assert 0 < r.pttl(lock.key) <= 30_000
        assert lock.fence == 1
        assert (r.get(lock.fence_key), r.ttl(lock.fence_key)) == ("1", -1)

    def test_refused_while_another_has_it_and_to_the_same_object_too(self, make: Make) -> None:
        lock, other = make(), make()
        assert lock.acquire()
        held = lock.token, lock.fence, lock.locked_until
        assert not other.acquire()
        assert not lock.acquire()
        assert (lock.token, lock.fence, lock.locked_until) == held
        assert (other.token, other.fence, other.locked_until) == (None, 0, 0.0)

    def test_released(self, r: redis.Redis, make: Make) -> None:
        lock, other = make(), make()
        assert lock.acquire()
        assert lock.release()
        assert (lock.token, lock.fence, lock.locked_until) == (None, 1, 0.0)
        assert not r.exists(lock.key)
        assert other.acquire()
        assert other.fence == 2

    def test_release_of_what_was_never_held_asks_nobody(self, r: redis.Redis, make: Make) -> None:
        with tap(r) as said:
            assert not make().release()
            assert not make().extend()
        assert said.round_trips == 0

    def test_what_expired_is_not_released_nor_brought_back(self, r: redis.Redis, make: Make) -> None:
        lock = make()
        lock.acquire()
        expire(r, lock)
        assert not lock.extend()
        assert lock.locked_until == 0.0
        assert not lock.release()
        assert r.keys("*") == [lock.fence_key]

    def test_what_another_has_by_now_is_left_alone(self, r: redis.Redis, make: Make) -> None:
        late, other = make(), make()
        late.acquire()
        expire(r, late)
        assert other.acquire()
        assert not late.extend(1)
        assert not late.release()
        assert r.get(other.key) == other.token
        assert r.pttl(other.key) > 20_000
        assert not r.exists(other.wake_key)
        assert other.release()

    def test_extended_from_now_on(self, r: redis.Redis, make: Make) -> None:
        lock, before = make(), time.monotonic()
        lock.acquire()
        assert lock.extend(600)
        assert before + 600 <= lock.locked_until <= time.monotonic() + 600
        assert 500_000 < r.pttl(lock.key) <= 600_000
        assert lock.extend()
        assert 20_000 < r.pttl(lock.key) <= 30_000
        assert r.get(lock.key) == lock.token
        assert lock.fence == 1

    def test_the_same_sent_twice_is_one_acquisition(self, r: redis.Redis, make: Make) -> None:
        lock = make()
        keys_and_args = (2, lock.key, lock.fence_key, "token", 30_000)
        assert [r.eval(Lock.ACQUIRE, *keys_and_args) for _ in range(3)] == [1, 1, 1]

    def test_a_strangers_key_without_ttl_is_never_taken(self, r: redis.Redis, make: Make) -> None:
        r.set(make().key, "stranger")
        assert not make().acquire()
        assert not make().acquire(wait=0.15)
        assert (r.get(make().key), r.ttl(make().key)) == ("stranger", -1)

    def test_on_a_client_that_does_not_decode(self, server: Server, path: Path, r: redis.Redis) -> None:
        for protocol in (2, 3):
            with server.client(decode_responses=False, protocol=protocol, legacy_responses=True) as raw:
                lock = Lock(raw, f"raw{protocol}", ttl=30, newer=path.newer)
                assert lock.acquire() and lock.extend() and lock.release() and not lock.release()

    def test_a_flushed_script_cache_is_survived(self, r: redis.Redis, make: Make) -> None:
        lock = make()
        for action in (lock.acquire, lock.extend, lock.release):
            r.script_flush()
            assert action()


class TestCost:
    def test_one_round_trip_each(self, r: redis.Redis, make: Make) -> None:
        lock = make()
        for _ in range(2):  # the first time scripts are loaded, and the server asked what it knows
            with tap(r) as said:
                assert lock.acquire() and lock.extend() and lock.release()
        assert said.round_trips == 3

    @pytest.mark.single_server("counts the commands of one server")
    def test_newer_commands_where_the_server_has_them(self, r: redis.Redis, path: Path, make: Make) -> None:
        used = supports(r, "DELEX") and path.newer is not False
        with make() as lock:
            r.config_resetstat()
            lock.extend()
        calls = r.info("commandstats")
        assert ("cmdstat_delex" in calls) == used
        assert ("cmdstat_pexpire" in calls and calls["cmdstat_pexpire"]["calls"]) == (1 if used else 2)
        assert ("cmdstat_command|info" in calls) == (path.newer is None)

    def test_a_client_asks_once_what_its_server_knows(self, r: redis.Redis, make: Make) -> None:
        with tap(r) as said:
            for name in "abc":
                with make(name, newer=None):
                    pass
        assert sum("COMMAND" in exchange.command[0] for exchange in said.commands) == 1

    @pytest.mark.single_server("redis-py's cluster client itself needs COMMAND")
    def test_a_server_that_will_not_say_gets_scripts(self, server: Server, r: redis.Redis) -> None:
        r.acl_setuser(
            "shy", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-command"]
        )
        with server.client(username="shy", password="x") as shy, Lock(shy, "shy", ttl=30) as lock:
            assert lock.extend()
        assert lock._newer is False


class TestWith:
    def test_released_at_the_end_also_after_an_exception(self, r: redis.Redis, make: Make) -> None:
        with make() as lock:
            assert r.get(lock.key) == lock.token
        assert not r.exists(lock.key)
        with pytest.raises(ZeroDivisionError), make():
            _ = 1 / 0
        assert not r.exists(lock.key)

    def test_lock_error_when_it_was_not_to_be_had_in_time(self, make: Make) -> None:
        with (
            make(),
            pytest.raises(exceptions.LockError, match="stock was not to be had within 0"),
            make(wait=0),
        ):
            pytest.fail("two holders")

    def test_a_loss_is_an_error_at_the_end(self, r: redis.Redis, make: Make) -> None:
        with pytest.raises(exceptions.LockNotOwnedError, match="lost before the block ended"), make() as lock:
            expire(r, lock)
        with pytest.raises(ZeroDivisionError), make() as lock:  # but it does not hide another
            expire(r, lock)
            _ = 1 / 0

    def test_released_by_hand_is_not_lost(self, make: Make) -> None:
        with make() as lock:
            assert lock.release()


class TestWaiting:
    def test_a_release_wakes_who_waits(self, r: redis.Redis, make: Make) -> None:
        holder, waiter = make(ttl=60), make(ttl=60)
        holder.acquire()
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(waiter.acquire, None)
            until(blocked(r))
            r.config_resetstat()
            start = time.monotonic()
            assert holder.release()
            assert waits.result(30)
            assert time.monotonic() - start < 60 / 6
        assert waiter.fence == holder.fence + 1
        assert r.info("commandstats")["cmdstat_set"]["calls"] == 1  # it did not poll

    def test_each_of_many_gets_its_turn(self, r: redis.Redis, make: Make) -> None:
        locks, turns = [make(ttl=60) for _ in range(9)], []

        def turn(lock: Lock) -> None:
            assert lock.acquire(wait=None)
            turns.append(lock.fence)
            assert lock.release()

        locks[0].acquire()
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(turn, lock) for lock in locks[1:]]
            until(blocked(r, 8))
            locks[0].release()
            for each in waiting:
                each.result(30)
        assert turns == list(range(2, 10))

    def test_a_holder_that_crashed_is_waited_for_no_longer_than_its_ttl(self, make: Make) -> None:
        make(ttl=0.5).acquire()
        waiter, start = make(), time.monotonic()
        assert waiter.acquire(wait=None)
        assert 0.3 < time.monotonic() - start < 5

    def test_a_woken_waiter_that_crashed_delays_others_no_longer(self, r: redis.Redis, make: Make) -> None:
        holder, waiter = make(ttl=0.5), make()
        holder.acquire()
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(waiter.acquire, None)
            r.delete(holder.key)  # released, and somebody else has taken the wake-up, and the lock never
            assert waits.result(10)

    def test_waiting_ends_in_time(self, r: redis.Redis, make: Make) -> None:
        make(ttl=60).acquire()
        start = time.monotonic()
        with tap(r) as said:
            assert not make().acquire(wait=0.4)
        assert 0.4 <= time.monotonic() - start < 4
        asleep = [float(exchange.command[2]) for exchange in said.commands if exchange.command[0] == "BLPOP"]
        assert sum(asleep) <= 0.3  # an idle Redis lets a BLPOP end up to 0.1 s late
        assert blocked(r, 0)()

    def test_waiting_longer_than_the_sockets_patience(
        self, server: Server, r: redis.Redis, make: Make
    ) -> None:
        holder = make("patience")
        holder.acquire()
        with server.client(socket_timeout=0.2) as hasty:
            start = time.monotonic()
            assert not Lock(hasty, "patience", ttl=60).acquire(wait=0.5)
            assert time.monotonic() - start >= 0.5
            r.pexpire(holder.key, 700)
            assert Lock(hasty, "patience", ttl=60).acquire(wait=None)

    def test_wake_ups_do_not_pile_up(self, r: redis.Redis, make: Make) -> None:
        lock = make(ttl=30)
        for _ in range(20):
            assert lock.acquire() and lock.release()
        assert r.llen(lock.wake_key) == 1
        assert 0 < r.pttl(lock.wake_key) <= 30_000

    def test_a_stale_wake_up_does_not_grant_anything(self, r: redis.Redis, make: Make) -> None:
        holder = make()
        assert holder.acquire() and holder.release() and holder.acquire()
        assert r.llen(holder.wake_key) == 1
        assert not make().acquire(wait=0.3)
        assert r.get(holder.key) == holder.token
        assert not r.exists(holder.wake_key)

    def test_in_four_processes_one_at_a_time_and_fences_rise(
        self, server: Server, r: redis.Redis, path: Path
    ) -> None:
        def count(url: str, newer: bool | None, times: int) -> Iterator[Any]:
            import labkit
            from labkit.lock import Lock

            r = labkit.connect(url, quiet=True)
            yield
            for _ in range(times):
                with Lock(r, "crowd", ttl=30, newer=newer) as lock:
                    seen = int(r.get("n") or 0)
                    r.rpush("fences", lock.fence)
                    r.set("n", seen + 1)

        processes(4, count, server.url, path.newer, 100)
        assert r.get("n") == "400"
        assert r.lrange("fences", 0, -1) == [str(n) for n in range(1, 401)]


@pytest.mark.single_server("fills the memory of one server")
def test_extend_and_release_when_memory_is_full(r: redis.Redis, make: Make) -> None:
    lock = make("full")
    lock.acquire()
    r.config_set("maxmemory", 1)
    try:
        with pytest.raises(exceptions.OutOfMemoryError):
            make("other").acquire()
        assert lock.extend(60)
        assert r.pttl(lock.key) > 30_000
        assert lock.release() and not lock.extend()
    finally:
        r.config_set("maxmemory", 0)
    assert r.llen(lock.wake_key) == 1


def test_on_a_cluster() -> None:
    with Server(cluster_enabled=True) as node:
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
        with RedisCluster.from_url(node.url, protocol=3, legacy_responses=False) as cluster:
            for name in "abcdefgh":
                lock = Lock(cluster, f"workbook:{name}", ttl=0.8)
                assert lock.acquire() and lock.extend() and lock.release() and lock.acquire()
            assert Lock(cluster, "workbook:h", ttl=30).acquire(wait=None)


text = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1)


@given(st.one_of(text, st.builds("{}:{{{}}}{}".format, text, text, text)))
def test_all_keys_share_a_slot_and_begin_alike(name: str) -> None:
    r = redis.Redis()
    if name.endswith(":") and "{" not in name:
        with pytest.raises(ValueError, match="colon"):
            Lock(r, name, ttl=1)
        return
    lock = Lock(r, name, ttl=1)
    assert len({key_slot(key.encode()) for key in (lock.key, lock.fence_key, lock.wake_key)}) == 1
    assert lock.key.replace("{", "").replace("}", "") == name.replace("{", "").replace("}", "")
    assert all(key.startswith(lock.key) for key in (lock.fence_key, lock.wake_key))


class Model(RuleBasedStateMachine):
    """Three holders; who has it, and with which number, is all there is to know. Expiry is one more move."""

    r: Any
    newer: bool | None

    def __init__(self) -> None:
        super().__init__()
        self.r.flushall()
        self.locks = [Lock(self.r, "model", ttl=30, newer=self.newer) for _ in range(3)]
        self.holder: int | None = None
        self.granted = 0

    @rule(i=st.integers(0, 2))
    def acquire(self, i: int) -> None:
        free = self.holder is None
        assert self.locks[i].acquire() == free
        if free:
            self.holder, self.granted = i, self.granted + 1
            assert self.locks[i].fence == self.granted

    @rule(i=st.integers(0, 2))
    def release(self, i: int) -> None:
        assert self.locks[i].release() == (self.holder == i)
        self.holder = None if self.holder == i else self.holder

    @rule(i=st.integers(0, 2))
    def extend(self, i: int) -> None:
        assert self.locks[i].extend() == (self.holder == i)

    @rule()
    def expire(self) -> None:
        self.r.delete(self.locks[0].key)
        self.holder = None

    @invariant()
    def redis_says_the_same(self) -> None:
        token = None if self.holder is None else self.locks[self.holder].token
        assert self.r.get(self.locks[0].key) == token
        assert self.r.llen(self.locks[0].wake_key) <= 1
        assert (self.r.pttl(self.locks[0].key) > 0) == (self.holder is not None)


def test_any_order_of_moves_is_as_the_model_says(r: redis.Redis, path: Path) -> None:
    machine = type("Model", (Model,), {"r": r, "newer": path.newer})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("keep-alive")]


class TestKeepAlive:
    def test_extends_until_stopped(self, r: redis.Redis, make: Make) -> None:
        with make(ttl=0.6) as lock:
            first = lock.locked_until
            with lock.keep_alive() as alive:
                assert len(keepers()) == 1
                until(lambda: lock.locked_until > first + 0.7)
                assert r.get(lock.key) == lock.token
                assert not alive.lost
            assert keepers() == []
            lock.extend(30)
        assert not alive.lost

    def test_release_ends_it(self, make: Make) -> None:
        lock = make()
        lock.acquire()
        alive = lock.keep_alive()
        assert lock.release()
        assert keepers() == []
        assert not alive.lost

    def test_started_again_it_is_one(self, make: Make) -> None:
        with make() as lock:
            lock.keep_alive()
            lock.keep_alive()
            assert len(keepers()) == 1
        assert keepers() == []

    def test_a_loss_is_told_once(self, r: redis.Redis, make: Make) -> None:
        told: list[int] = []
        lock = make(ttl=0.3)
        lock.acquire()
        alive = lock.keep_alive(on_lost=lambda: told.append(1))
        make("other").acquire()
        r.set(lock.key, "another's")
        until(lambda: alive.lost)
        until(lambda: not keepers())
        assert told == [1]
        assert not lock.release()
        assert alive.lost

    def test_the_callback_may_release(self, r: redis.Redis, make: Make) -> None:
        lock = make(ttl=0.3)
        lock.acquire()
        lock.keep_alive(on_lost=lock.release)
        r.delete(lock.key)
        until(lambda: not keepers())
        assert lock.token is None

    def test_not_without_holding_it(self, make: Make) -> None:
        with pytest.raises(exceptions.LockError, match="acquire it first"):
            make().keep_alive()

    def test_a_short_silence_is_survived_and_a_long_one_noticed(self, throwaway: Server) -> None:
        class Watched(Lock):
            def _extend(self, r: Any, seconds: float) -> bool:
                try:
                    return super()._extend(r, seconds)
                except exceptions.TimeoutError as error:
                    silence.append(error)
                    raise

        silence: list[Exception] = []
        told: list[int] = []
        with throwaway.client(socket_timeout=0.1) as hasty:
            lock = Watched(hasty, "silence", ttl=1.5)
            lock.acquire()
            alive = lock.keep_alive(on_lost=lambda: told.append(1))
            throwaway.freeze()
            until(lambda: silence)
            throwaway.thaw()
            before = lock.locked_until
            until(lambda: lock.locked_until > before)
            assert not alive.lost
            throwaway.freeze()
            try:
                until(lambda: alive.lost)
                assert time.monotonic() >= lock.locked_until
                until(lambda: told and not keepers())
            finally:
                throwaway.thaw()

    def test_it_begins_in_time_and_follows_what_the_holder_extends(self, make: Make) -> None:
        late, short, shorter = make("late", ttl=1.5), make("short", ttl=3), make("shorter", ttl=3)
        for lock in (late, short, shorter):
            assert lock.acquire()
        time.sleep(1)
        short.extend(0.8)
        keepers_of = [late.keep_alive(), short.keep_alive(), shorter.keep_alive()]
        shorter.extend(0.8)
        time.sleep(1.2)
        assert not any(alive.lost for alive in keepers_of)
        assert late.release() and short.release() and shorter.release()

    def test_a_release_that_comes_too_late_tells_it(self, r: redis.Redis, make: Make) -> None:
        lock = make(ttl=20)
        lock.acquire()
        alive = lock.keep_alive()
        r.delete(lock.key)
        assert not lock.release()
        assert alive.lost

    def test_a_client_that_tries_again_does_not_delay_it(self, throwaway: Server) -> None:
        told: list[float] = []
        with throwaway.client(socket_timeout=0.5, retry=Retry(NoBackoff(), 20)) as patient:
            lock = Lock(patient, "patient", ttl=1.2, newer=False)
            lock.acquire()
            alive = lock.keep_alive(on_lost=lambda: told.append(time.monotonic()))
            throwaway.freeze()
            try:
                until(lambda: told)
                assert told[0] - lock.locked_until < 2
                start = time.monotonic()
                alive.stop()
                assert time.monotonic() - start < 2
            finally:
                throwaway.thaw()

    def test_nobody_refers_to_the_lock_any_more(self, throwaway: Server) -> None:
        with throwaway.client() as r:
            locks = [Lock(r, "forgotten", ttl=0.6)]
            locks[0].acquire()
            alive, first = locks[0].keep_alive(), locks[0].locked_until
            until(lambda: locks[0].locked_until > first)
            locks.clear()
            gc.collect()
            until(lambda: alive.lost)
            until(lambda: not keepers())

    def test_it_keeps_no_process_from_ending(self, throwaway: Server) -> None:
        code = """
import sys, redis
from labkit.lock import Lock
r = redis.Redis.from_url(sys.argv[1])
lock = Lock(r, "exit", ttl=30)
lock.acquire()
lock.keep_alive()
print("held")
"""
        done = subprocess.run(
            [sys.executable, "-c", code, throwaway.url], capture_output=True, text=True, timeout=25
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")
        with throwaway.client() as r:
            assert 0 < r.pttl("{exit}") <= 30_000


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"ttl": 0}, ValueError, "ttl is 0; it must be from 0.001 to 1e"),
        ({"ttl": -1}, ValueError, "ttl is -1"),
        ({"ttl": float("nan")}, ValueError, "ttl is nan"),
        ({"ttl": 1e10}, ValueError, "ttl is 1"),
        ({"ttl": "5"}, TypeError, "ttl is '5'; it must be a number of seconds"),
        ({"ttl": None}, TypeError, "ttl is None"),
        ({"ttl": True}, TypeError, "ttl is True"),
        ({"wait": -1}, ValueError, "wait is -1; it must be from 0 to"),
        ({"wait": "1"}, TypeError, "wait is '1'"),
        ({"name": ""}, TypeError, "name is ''"),
        ({"name": 5}, TypeError, "name is 5"),
        ({"name": "a{b"}, ValueError, "name is 'a{b'"),
        ({"name": "a{}b"}, ValueError, "name is 'a{}b'"),
        ({"name": "a:"}, ValueError, "name is 'a:'; no colon may end it"),
        ({"r": None}, TypeError, "NoneType is no client"),
        ({"r": redis.Redis().pipeline()}, TypeError, "Pipeline is no client"),
        ({"r": redis.asyncio.Redis()}, TypeError, "Redis is no client"),
    ],
)
def test_misuse(wrong: dict[str, Any], error: type[Exception], says: str) -> None:
    arguments: dict[str, Any] = {"r": redis.Redis(port=1), "name": "x", "ttl": 1, **wrong}
    with pytest.raises(error, match=f"^{says.replace('{', '[{]')}"):
        Lock(**arguments)


def test_misuse_of_methods() -> None:
    lock = Lock(redis.Redis(port=1), "x", ttl=1)
    with pytest.raises(ValueError, match="wait is -1"):
        lock.acquire(wait=-1)
    with pytest.raises(ValueError, match="ttl is 0;"):
        lock.extend(0)


@pytest.fixture(scope="module")
def five() -> Iterator[list[Server]]:
    with Server.several(5) as servers:
        yield servers


@pytest.fixture
def clients(five: list[Server]) -> Iterator[list[redis.Redis]]:
    """Of five servers that all run, and are empty."""
    clients = [server.start().client() for server in five]
    for r in clients:
        r.flushall()
    yield clients
    for r in clients:
        r.close()


def held_on(clients: list[redis.Redis], name: str) -> int:
    return sum(r.exists(name) for r in clients)


class TestRedlock:
    def test_acquired_extended_and_released_on_all(self, clients: list[redis.Redis]) -> None:
        lock, other, before = Redlock(clients, "x", ttl=20), Redlock(clients, "x", ttl=20), time.monotonic()
        assert lock.acquire()
        assert lock.votes == (True,) * 5 and lock.errors == (None,) * 5
        drift = 20 * 0.01 + 0.002
        assert before + 20 - drift <= lock.locked_until <= time.monotonic() + 20 - drift
        assert 10 < lock.validity < 20 - drift
        assert {r.get("x") for r in clients} == {lock.token}
        assert all(10_000 < r.pttl("x") <= 20_000 for r in clients)
        assert not other.acquire() and other.votes == (False,) * 5
        assert not lock.acquire() and lock.token == clients[0].get("x")
        assert lock.extend(60)
        assert 40 < lock.validity < 60 and clients[4].pttl("x") > 40_000
        assert lock.release() and not lock.release()
        assert (lock.token, lock.validity, lock.locked_until) == (None, 0.0, 0.0)
        assert held_on(clients, "x") == 0
        assert other.acquire() and other.release()

    def test_an_attempt_that_got_no_majority_is_taken_back(self, clients: list[redis.Redis]) -> None:
        for r in clients[:3]:
            r.set("x", "another's")
        lock = Redlock(clients, "x", ttl=20)
        assert not lock.acquire()
        assert lock.votes == (False, False, False, True, True)
        assert [r.get("x") for r in clients] == ["another's"] * 3 + [None] * 2
        assert not lock.acquire(wait=0.1)
        clients[0].delete("x")
        assert lock.acquire(wait=0) and lock.votes == (True, False, False, True, True)

    def test_who_waits_gets_it_after_a_release(self, clients: list[redis.Redis]) -> None:
        holder, waiter = Redlock(clients, "x", ttl=60), Redlock(clients, "x", ttl=60)
        holder.acquire()
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(waiter.acquire, None)
            until(lambda: waiter.votes)
            holder.release()
            assert waits.result(30)

    def test_what_expired_is_not_extended_nor_released(self, clients: list[redis.Redis]) -> None:
        lock, other = Redlock(clients, "x", ttl=20), Redlock(clients, "x", ttl=20)
        lock.acquire()
        for r in clients[:3]:
            r.delete("x")
        assert not lock.extend() and lock.locked_until == 0
        assert lock.votes == (False, False, False, True, True)
        assert other.acquire() and other.votes == (True, True, True, False, False)
        assert not lock.release()
        assert [r.get("x") for r in clients] == [other.token] * 3 + [None] * 2

    def test_two_dead_servers_of_five(self, five: list[Server], clients: list[redis.Redis]) -> None:
        lock = Redlock(clients, "x", ttl=20)
        assert lock.acquire() and lock.release()
        five[0].kill()
        five[3].kill()
        for _ in range(3):
            assert lock.acquire() and lock.extend()
            assert lock.votes == (None, True, True, None, True)
            assert isinstance(lock.errors[0], exceptions.ConnectionError) and lock.errors[1] is None
            assert lock.release()
        five[0].restart()
        assert lock.acquire() and lock.votes == (True, True, True, None, True)
        assert lock.release()

    def test_three_dead_servers_of_five(self, five: list[Server], clients: list[redis.Redis]) -> None:
        lock = Redlock(clients, "x", ttl=20)
        for server in five[:3]:
            server.kill()
        assert not lock.acquire() and not lock.acquire(wait=0.1)
        assert held_on(clients[3:], "x") == 0
        for server in five[:3]:
            server.restart()
        assert lock.acquire()
        for server in five[:3]:
            server.kill()
        assert not lock.extend() and not lock.release()
        assert held_on(clients[3:], "x") == 0

    def test_servers_that_restarted_meanwhile_are_asked_at_once(
        self, five: list[Server], clients: list[redis.Redis]
    ) -> None:
        lock = Redlock(clients, "x", ttl=20)
        assert lock.acquire() and lock.release()
        for server in five:
            server.restart()
        assert lock.acquire() and lock.votes == (True,) * 5

    @pytest.mark.parametrize("connected", [True, False])
    def test_frozen_servers_cost_one_timeout(
        self, five: list[Server], clients: list[redis.Redis], connected: bool
    ) -> None:
        lock = Redlock(clients, "x", ttl=20, timeout=0.5)
        if connected:
            assert lock.acquire() and lock.release()
        five[1].freeze()
        five[2].freeze()
        try:
            start = time.monotonic()
            assert lock.acquire()
            assert time.monotonic() - start < 2 * 0.5
            assert lock.votes == (True, None, None, True, True)
            assert isinstance(lock.errors[1], exceptions.TimeoutError)
            assert lock.release()
        finally:
            five[1].thaw()
            five[2].thaw()
        until(lambda: lock.acquire() and lock.release() and lock.votes == (True,) * 5)
        assert held_on(clients, "x") == 0  # what they ran after the thaw was in order

    def test_a_late_reply_is_no_answer_to_a_later_question(self, clients: list[redis.Redis]) -> None:
        with Proxy(clients[0]) as link, link.client() as through:
            lock = Redlock([through, *clients[1:]], "x", ttl=20, timeout=0.2)
            assert lock.acquire() and lock.release() and lock.votes == (True,) * 5
            link.delay(600)
            assert lock.acquire() and lock.votes[0] is None
            until(lambda: clients[0].exists("x"))
            clients[0].delete("x")
            link.delay(0)
            until(lambda: lock.extend() and lock.votes[0] is not None)
            assert lock.votes[0] is False
            assert lock.release() and lock.votes == (False, True, True, True, True)

    def test_connecting_may_take_several_rounds(self, clients: list[redis.Redis]) -> None:
        with Proxy(clients[0]) as link, link.client() as through:
            link.delay(70)  # for each question of the introduction
            lock = Redlock([through, *clients[1:]], "x", ttl=20, timeout=0.1)
            assert lock.acquire() and lock.votes == (None, True, True, True, True)
            assert lock.release() and lock.votes[0] is None
            until(lambda: lock.acquire() and lock.release() and lock.votes == (True,) * 5)
        assert held_on(clients, "x") == 0

    def test_the_first_to_ask_waits_for_its_connections(self, clients: list[redis.Redis]) -> None:
        with ExitStack() as stack:
            links = [stack.enter_context(Proxy(r)) for r in clients]
            far = [stack.enter_context(link.client()) for link in links]
            for link in links:
                link.delay(70)
            lock = Redlock(far, "x", ttl=20, timeout=0.1)
            assert lock.acquire() and lock.votes == (True,) * 5
            assert lock.release()

    def test_who_is_refused_by_a_majority_does_not_wait_for_connections(
        self, five: list[Server], clients: list[redis.Redis]
    ) -> None:
        other = Redlock(clients, "x", ttl=20, timeout=0.5)
        assert other.acquire()
        five[0].freeze()
        try:
            lock, start = Redlock(clients, "x", ttl=20, timeout=0.5), time.monotonic()
            assert not lock.acquire() and lock.votes == (None, False, False, False, False)
            assert (
                time.monotonic() - start < 2 * 0.5 + 1
            )  # a round and its undoing, and no three timeouts more
        finally:
            five[0].thaw()
        assert other.release()

    def test_what_a_thread_sent_too_late_is_no_answer_either(self, clients: list[redis.Redis]) -> None:
        lock, connected = Redlock(clients, "x", ttl=20), threading.Event()
        assert lock.acquire() and lock.release()
        server = lock._servers[0]
        server._send(server.connection.pack_command("PING"))

        def opens() -> None:
            connected.wait()
            server._opening = False

        server._opening, server._thread = True, threading.Thread(target=opens)
        server._thread.start()
        soon = threading.Timer(0.02, connected.set)
        soon.start()
        lock._round("EXISTS", "x")
        assert list(lock.votes) == [None, False, False, False, False]
        soon.join()
        lock._round("EXISTS", "x")
        assert list(lock.votes) == [False] * 5

    def test_a_release_reaches_a_server_whose_connection_is_being_opened(
        self, five: list[Server], clients: list[redis.Redis]
    ) -> None:
        lock = Redlock(clients, "x", ttl=20, timeout=0.3)
        assert lock.acquire() and lock.votes == (True,) * 5
        for r in clients:
            r.client_kill_filter(_type="normal", skipme=True)
        five[0].freeze()
        try:
            assert lock.extend() and lock.votes[0] is None
        finally:
            five[0].thaw()
        assert lock.release()
        until(lambda: held_on(clients, "x") == 0)

    def test_nobody_else_has_it_before_its_time_whatever_came_of_an_extension(
        self, five: list[Server], clients: list[redis.Redis]
    ) -> None:
        lock, other = Redlock(clients, "x", ttl=20, timeout=0.3), Redlock(clients, "x", ttl=20, timeout=0.3)
        assert lock.acquire()
        for server in five[:3]:
            server.freeze()
        try:
            assert not lock.extend(0.5) and lock.validity == 0
        finally:
            for server in five[:3]:
                server.thaw()
        until(other.acquire)
        assert time.monotonic() >= lock.locked_until
        refused = not lock.extend()
        assert refused and lock.locked_until == 0
        assert other.release()

    def test_a_slow_server_costs_its_own_time_once(self, clients: list[redis.Redis]) -> None:
        with Proxy(clients[0]) as one, Proxy(clients[1]) as two, one.client() as a, two.client() as b:
            lock = Redlock([a, b, *clients[2:]], "x", ttl=60, timeout=5)
            assert lock.acquire() and lock.release()
            one.delay(500)
            two.delay(500)
            start = time.monotonic()
            assert lock.acquire() and lock.votes == (True,) * 5
            assert 0.4 < time.monotonic() - start < 1

    def test_one_that_stays_silent_does_not_collect_questions_for_ever(
        self, five: list[Server], clients: list[redis.Redis]
    ) -> None:
        lock = Redlock(clients, "x", ttl=20, timeout=0.005)
        until(lambda: lock.acquire() and lock.release() and lock.votes == (True,) * 5)
        five[0].freeze()
        try:
            for _ in range(120):
                lock._round("PING")
            assert max(server.owed for server in lock._servers) <= 100
        finally:
            five[0].thaw()
        until(lambda: lock.acquire() and lock.release() and lock.votes == (True,) * 5)

    def test_a_majority_that_came_too_late_is_none(
        self, clients: list[redis.Redis], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Paused(Redlock):
            def _round(self, *command: Any, certainly: bool = False) -> None:
                super()._round(*command, certainly=certainly)
                late[0] += 19.9

        late = [0.0]
        monkeypatch.setattr(labkit.lock, "time", Clock(late))
        lock = Paused(clients, "x", ttl=20)
        assert not lock.acquire() and lock.votes == (True,) * 5
        assert held_on(clients, "x") == 0

    def test_a_wrong_password_is_seen(self, clients: list[redis.Redis], five: list[Server]) -> None:
        wrong = redis.Redis(port=five[0].port, password="wrong")
        lock = Redlock([wrong, *clients[1:]], "x", ttl=20)
        assert lock.acquire() and lock.votes[0] is None
        assert isinstance(lock.errors[0], exceptions.AuthenticationError)
        assert lock.release()

    def test_with(self, clients: list[redis.Redis]) -> None:
        with Redlock(clients, "x", ttl=20) as lock:
            assert held_on(clients, "x") == 5
            with pytest.raises(exceptions.LockError, match="x: no majority within 0 s"):
                Redlock(clients, "x", ttl=20, wait=0).__enter__()
        assert held_on(clients, "x") == 0
        with pytest.raises(exceptions.LockNotOwnedError), lock:
            for r in clients[:3]:
                r.delete("x")

    def test_a_fork_has_connections_of_its_own(self, clients: list[redis.Redis]) -> None:
        lock = Redlock(clients, "x", ttl=20)
        assert lock.acquire()
        inherited = [server.connection for server in lock._servers]
        lock._pid = -1
        assert lock.extend() and lock.release()
        assert not {id(c) for c in inherited} & {id(server.connection) for server in lock._servers}

    def test_close_and_go_on(self, clients: list[redis.Redis]) -> None:
        lock = Redlock(clients, "x", ttl=20)
        lock.acquire()
        lock.close()
        assert lock.release()

    def test_in_four_processes_one_at_a_time(self, five: list[Server], clients: list[redis.Redis]) -> None:
        def count(urls: list[str], times: int) -> Iterator[Any]:
            from labkit.lock import Redlock
            from labkit.rig.client import client

            clients = [client(url) for url in urls]
            lock = Redlock(clients, "x", ttl=30, timeout=5)
            yield
            for _ in range(times):
                with lock:
                    seen = int(clients[0].get("n") or 0)
                    clients[0].set("n", seen + 1)

        processes(4, count, [server.url for server in five], 20)
        assert clients[0].get("n") == "80"

    def test_misuse(self, clients: list[redis.Redis]) -> None:
        for servers in (clients[:2], [], [clients[0]] * 3):
            with pytest.raises(ValueError, match="they must be of three or more, one each"):
                Redlock(servers, "x", ttl=1)
        with pytest.raises(ValueError, match="timeout is 1; it must be at most half"):
            Redlock(clients, "x", ttl=1, timeout=1)
        with pytest.raises(TypeError, match="NoneType is no client"):
            Redlock([*clients, None], "x", ttl=1)
        cluster: Any = type("RedisCluster", (), {"execute_command": print})()
        with pytest.raises(TypeError, match="RedisCluster is no client of one server"):
            Redlock([*clients, cluster], "x", ttl=1)
        with pytest.raises(ValueError, match="ttl is 0;"):
            Redlock(clients, "x", ttl=0)
        with pytest.raises(ValueError, match="wait is -1"):
            Redlock(clients, "x", ttl=1).acquire(wait=-1)


class Clock:
    """The `time` module, later."""

    def __init__(self, late: list[float]) -> None:
        self.late, self.sleep = late, time.sleep

    def monotonic(self) -> float:
        return time.monotonic() + self.late[0]
