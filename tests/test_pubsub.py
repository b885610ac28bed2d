"""labkit.pubsub on real servers: what arrives, what is lost and told, and that it stops for certain.

A server newer than those found here is tested too where LABKIT_NEWER_REDIS names one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import trustme
from redis import exceptions
from redis._parsers import _RESP2Parser, _RESP3Parser
from redis.cache import CacheConfig
from redis.cluster import RedisCluster
from servers import CLUSTER, clients_of, until
from servers import everywhere as everywhere

import labkit.pubsub
from labkit.pubsub import BadMessage, CallbackFailed, Gap, Subscription, publish, subscribe
from labkit.rig.client import client
from labkit.rig.proxy import Proxy
from labkit.rig.server import Cluster, Server
from labkit.rig.wire import tap

SOON = 0.05  # a heartbeat for tests in which the server falls silent
CLIENTS = pytest.mark.parametrize(
    "options",
    [
        {"protocol": 2},
        {"protocol": 3},
        {"protocol": 2, "parser_class": _RESP2Parser},
        {"protocol": 3, "parser_class": _RESP3Parser},
    ],
    ids=["2", "3", "2-python", "3-python"],
)


def listeners(r: Any) -> int:
    """How many connections of the server are subscribed to something."""
    return sum(
        any(client[kind] != "0" for kind in ("sub", "psub", "ssub"))
        for server in clients_of(r)
        for client in server.client_list()
    )


def kill_listeners(r: Any) -> int:
    """How many there were."""
    return sum(server.client_kill_filter(_type="pubsub") for server in clients_of(r))


def publish_all(r: Any, messages: list[tuple[str, str]]) -> None:
    """In one pipeline; one after the other in a cluster, where redis-py has no pipeline for them."""
    if isinstance(r, RedisCluster):
        for message in messages:
            r.publish(*message)
        return
    with r.pipeline(transaction=False) as pipe:
        for message in messages:
            pipe.publish(*message)
        pipe.execute()


def counts(r: Any, listeners: int) -> range:
    """What PUBLISH may answer: a cluster counts those at the node that was asked, though all hear it."""
    return range(0 if isinstance(r, RedisCluster) else listeners, listeners + 1)


@pytest.fixture(params=["server", CLUSTER])
def own(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of the server that may be killed; it runs when the test begins. And of the cluster."""
    if request.param == CLUSTER:
        if "throwaway" in request.fixturenames:
            pytest.skip("not on a cluster: it kills, freezes or reconfigures its server, or connects past it")
        cluster: Cluster = request.getfixturevalue("the_cluster")
        with cluster.client() as own:
            own.flushall()
            yield own
        return
    throwaway: Server = request.getfixturevalue("throwaway")
    throwaway.start()
    with throwaway.client() as own:
        yield own


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until(lambda: {one for one in threading.enumerate() if one.name != "labkit-docker"} <= before)


def of_user(server: Server, name: str, **options: Any) -> redis.Redis:
    """A client that logs in with the password "x"."""
    return client(server.url.replace(f":{server.password}@", f"{name}:x@"), **options)


class Heard:
    """A callback that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.gaps: list[Gap] = []
        self.errors: list[CallbackFailed] = []

    def __call__(self, channel: str, event: Any) -> None:
        self.calls.append((channel, event))

    @property
    def events(self) -> list[Any]:
        return [event for _, event in self.calls]


async def coroutine(*args: Any) -> None:
    """What can be no callback."""


class Asynchronous:
    """Nor can this."""

    async def __call__(self, *args: Any) -> None: ...


def under_traffic(r: Any, other: Any) -> None:
    """Messages are in order between answers to PING, which move what a gap calls certain."""
    heard = Heard()
    with subscribe(r, "a", heard, heartbeat=0.3) as sub:
        begin, sent = time.time(), 0
        while time.time() < begin + 0.7:
            publish(other, "a", sent)
            sent += 1
        until(lambda: sub.received >= sent or sub.gaps)
        assert heard.events == [*range(sent)]
        kill_listeners(other)
        until(lambda: sub.gaps)
        assert sub.gaps[0].lost_at > begin


@pytest.fixture
def heard() -> Heard:
    return Heard()


class TestWhatArrives:
    @pytest.mark.parametrize("decode", [True, False])
    @CLIENTS
    def test_any_json_whatever_the_client_is_like(
        self, server: Server, heard: Heard, options: Any, decode: bool
    ) -> None:
        events = [{"id": 1, "who": ["Zoë", None]}, [], "a\x00b", 0, 1.5, True, None, "x" * 100_000]
        with server.client(**options, decode_responses=decode) as r, ExitStack() as stack:
            for pattern, sharded in (("news:a", False), ("n[a-e]ws:?", False), ("news:a", True)):
                stack.enter_context(subscribe(r, pattern, heard, sharded=sharded))
            told = [
                [publish(r, "news:a", event, sharded=shard) for event in events] for shard in (False, True)
            ]
            assert all(count in counts(r, 2) for count in told[0]) and told[1] == [1] * len(events)
            until(lambda: len(heard.calls) == 3 * len(events))
            assert {channel for channel, _ in heard.calls} == {"news:a"}
            assert all(heard.events.count(event) >= 3 for event in events)
            assert publish(r, "news:b", 1) in counts(r, 1)  # the pattern's
            until(lambda: heard.calls[-1] == ("news:b", 1))
            until(lambda: listeners(r) == 3)
        with server.client() as r:
            until(lambda: listeners(r) == 0)

    def test_nothing_is_lost_from_the_moment_that_subscribe_returns(self, r: redis.Redis) -> None:
        for n in range(200):
            heard = Heard()
            with subscribe(r, f"workbook:{n}" if n % 2 else f"workbook:{n}*", heard):
                assert publish(r, f"workbook:{n}", n) in counts(r, 1)
                until(lambda heard=heard: heard.calls)  # type: ignore[misc]
            assert heard.events == [n]

    def test_ten_thousand_in_order(self, r: redis.Redis, heard: Heard) -> None:
        wanted = [(f"ordered:{n % 7}", n) for n in range(10_000)]
        with subscribe(r, "ordered:*", heard) as sub:
            publish_all(r, [(channel, str(n)) for channel, n in wanted])
            until(lambda: sub.received >= 10_000 or sub.gaps or sub.trouble)
            assert (sub.received, sub.gaps, sub.trouble) == (10_000, [], None)
            if isinstance(r, RedisCluster):  # that of each channel, since they go by different nodes
                wanted.sort(key=lambda call: call[0])
                heard.calls.sort(key=lambda call: call[0])
            assert heard.calls == wanted
            assert sub.failures == 0

    @pytest.mark.parametrize(
        ("pattern", "kind"),
        [("a.b", "sub"), ("a*", "psub"), ("a?b", "psub"), ("[a]", "psub"), ("a\\*", "psub")],
    )
    def test_a_pattern_is_one_only_where_it_has_to_be(self, r: redis.Redis, pattern: str, kind: str) -> None:
        with subscribe(r, pattern, print):
            found = [client for server in clients_of(r) for client in server.client_list()]
            assert [client[kind] for client in found if client["flags"] == "P"] == ["1"]

    def test_a_backslash_means_the_character_itself(self, own: redis.Redis, heard: Heard) -> None:
        with subscribe(own, "why\\?", heard):
            assert publish(own, "why?", 1) in counts(own, 1) and publish(own, "whyx", 2) == 0
            until(lambda: heard.calls == [("why?", 1)])

    def test_one_round_trip(self, own: redis.Redis) -> None:
        own.ping()
        with tap(own) as said:
            publish(own, "a", {"b": [1, 2]})
            publish(own, "a", 1, sharded=True)
        assert said.round_trips == 2
        assert own.pubsub_channels() == []

    def test_json_is_compact_and_of_one_line(self, own: redis.Redis) -> None:
        with own.pubsub() as other:
            other.subscribe("a")
            until(lambda: (m := other.get_message()) and m["type"] == "subscribe")
            publish(own, "a", {"b": [1, "é\n"]})
            until(lambda: (m := other.get_message()) and m["data"] == '{"b":[1,"\\u00e9\\n"]}')

    def test_callbacks_run_one_at_a_time_in_the_listeners_thread(self, own: redis.Redis) -> None:
        inside, seen = threading.Lock(), set()

        def callback(channel: str, event: Any) -> None:
            assert inside.acquire(blocking=False)
            seen.add(threading.current_thread())
            time.sleep(0.001)
            inside.release()

        with subscribe(own, "a*", callback) as sub:
            for n in range(20):
                publish(own, f"a{n}", n)
            until(lambda: sub.received == 20)
            assert sub.failures == 0
            assert len(seen) == 1 and threading.current_thread() not in seen

    def test_several_channels_names_that_are_no_text_and_a_callback_that_publishes(
        self, own: redis.Redis, heard: Heard
    ) -> None:
        with subscribe(own, "ping", lambda channel, event: publish(own, "pong", event)) as ping:
            with subscribe(own, "*", heard) as every:
                publish(own, "ping", 1)
                own.publish(b"\xff", "2")
                until(lambda: every.received == 3 and ping.received == 1)  # "pong" may be heard first
            assert set(heard.calls) == {("ping", 1), ("pong", 1), ("\\xff", 2)}

    def test_idle_it_is_not_woken(self, own: redis.Redis) -> None:
        path = "/proc/self/task/{}/status"
        if not Path(path.format(threading.get_native_id())).exists():
            pytest.skip("this system does not count how often a thread is woken")

        def woken(thread: threading.Thread) -> int:
            lines = Path(path.format(thread.native_id)).read_text().splitlines()
            return int(next(line for line in lines if line.startswith("voluntary")).split()[1])

        before = set(threading.enumerate())
        with subscribe(own, "a", print):
            (thread,) = set(threading.enumerate()) - before
            fewest = 99  # of several looks: to begin with it may be woken for the interpreter's lock
            for _ in range(5):
                before_it = woken(thread)
                time.sleep(0.05)
                fewest = min(fewest, woken(thread) - before_it)
            assert fewest == 0


class TestErrors:
    def test_a_callback_that_raises_is_told_and_the_next_message_comes(
        self, r: redis.Redis, heard: Heard
    ) -> None:
        def callback(channel: str, event: Any) -> None:
            heard(channel, 100 / event)

        with subscribe(r, "a", callback, on_error=heard.errors.append) as sub:
            for event in (1, 0, "x", 2):
                publish(r, "a", event)
            r.publish("a", "no json")
            r.publish("a", b"\xff")
            r.publish("a", "[" * 100_000)
            r.publish("a", "NaN")
            publish(r, "a", 4)
            until(lambda: sub.received == 9)
            assert heard.events == [100, 50, 25]
            assert sub.alive and sub.failures == 6 and sub.errors == heard.errors
            zero, text, bad, *more = sub.errors
            assert (zero.channel, zero.event, type(zero.error)) == ("a", 0, ZeroDivisionError)
            assert zero.__cause__ is zero.error and str(zero) == "a: ZeroDivisionError: division by zero"
            assert isinstance(text.error, TypeError) and not isinstance(text, BadMessage)
            assert isinstance(bad, BadMessage) and bad.event == b"no json"
            assert [type(error) for error in more] == [BadMessage] * 3
            assert repr(sub) == "Subscription('a', listening: 9 received, 6 failed, 0 gaps)"

    def test_on_error_that_raises(self, own: redis.Redis) -> None:
        def on_error(failed: CallbackFailed) -> None:
            raise KeyError("mine")

        with subscribe(own, "a", lambda channel, event: 1 / 0, on_error=on_error) as sub:
            publish(own, "a", 1)
            publish(own, "a", 2)
            until(lambda: sub.received == 2)
            kinds = [type(failed.error) for failed in sub.errors]
            assert kinds == [ZeroDivisionError, KeyError] * 2
            assert sub.alive and sub.failures == 4

    def test_only_the_newest_errors_are_kept(self, own: redis.Redis) -> None:
        with subscribe(own, "a", lambda channel, event: 1 / 0) as sub:
            for n in range(120):
                publish(own, "a", n)
            until(lambda: sub.received == 120)
            assert [failed.event for failed in sub.errors] == list(range(20, 120))
            assert sub.failures == 120

    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_what_is_no_exception_ends_it(self, own: redis.Redis, kind: type[BaseException]) -> None:
        def callback(channel: str, event: Any) -> None:
            raise kind

        sub = subscribe(own, "a", callback)
        publish(own, "a", 1)
        until(lambda: not sub.alive)
        until(lambda: listeners(own) == 0)
        assert sub.close() and sub.failures == 0

    @pytest.mark.parametrize(
        ("bad", "error", "words"),
        [
            ({"pattern": ""}, ValueError, "channel is empty"),
            ({"pattern": b"a"}, TypeError, "channel is b'a'; it must be a str"),
            ({"callback": None}, TypeError, "callback is None; it must be a function"),
            ({"callback": coroutine}, TypeError, "callback is .*not an async one"),
            ({"callback": Asynchronous()}, TypeError, "callback is .*not an async one"),
            ({"on_error": 1}, TypeError, "on_error is 1; it must be a function"),
            ({"on_gap": coroutine}, TypeError, "on_gap is .*not an async one"),
            ({"heartbeat": True}, TypeError, "heartbeat is True; it must be a number of seconds from 0.01"),
            ({"heartbeat": 0}, ValueError, "heartbeat is 0; it must be from 0.01 to 86400 seconds"),
            ({"heartbeat": float("nan")}, ValueError, "heartbeat is nan"),
            ({"r": None}, TypeError, "NoneType is no client such as redis.Redis"),
            ({"r": redis.asyncio.Redis()}, TypeError, "or is an async one"),
        ],
    )
    def test_misuse_is_refused_before_anything_is_sent(self, bad: Any, error: Any, words: str) -> None:
        usual = {"r": redis.Redis(port=1), "pattern": "a", "callback": print}
        with pytest.raises(error, match=words):
            subscribe(**{**usual, **bad})

    def test_what_cannot_be_published(self, own: redis.Redis) -> None:
        with pytest.raises(TypeError, match="set is not JSON"):
            publish(own, "a", {1, 2})
        with pytest.raises(ValueError, match="JSON compliant"):
            publish(own, "a", float("nan"))
        with pytest.raises(TypeError, match="Pipeline is no client"):
            publish(own.pipeline(), "a", 1)
        with pytest.raises(ValueError, match="channel is empty"):
            publish(own, "", 1)

    def test_what_fails_at_first_is_raised_and_nothing_is_left(self, throwaway: Server) -> None:
        throwaway.start()
        with throwaway.client() as r:
            r.acl_setuser("few", enabled=True, passwords="+x", commands=["+@all"], channels=["open*"])
            with of_user(throwaway, "few") as few:
                before = set(threading.enumerate())
                with pytest.raises(exceptions.NoPermissionError):
                    subscribe(few, "secret", print)
                with pytest.raises(exceptions.NoPermissionError):
                    subscribe(few, "s*", print)
                assert set(threading.enumerate()) <= before
                until(lambda: listeners(r) == 0)
                assert publish(few, "open:1", 1) == 0
            with of_user(throwaway, "nobody") as wrong, pytest.raises(exceptions.AuthenticationError):
                subscribe(wrong, "a", print)
        with pytest.raises(exceptions.ConnectionError):
            subscribe(redis.Redis(port=1), "a", print)

    def test_a_frozen_server_is_an_error_at_first(self, throwaway: Server) -> None:
        throwaway.start().freeze()
        try:
            for patience in ({"socket_timeout": 0.05}, {"socket_timeout": None}):
                with throwaway.client(**patience) as r, pytest.raises(exceptions.TimeoutError):
                    subscribe(r, "a", print, heartbeat=0.05)
        finally:
            throwaway.thaw()


class TestClientsOfAllKinds:
    @pytest.mark.parametrize(
        "options",
        [
            {"socket_timeout": None},
            {"socket_timeout": 0.05},
            {"db": 5},
            {"health_check_interval": 1},
            {"single_connection_client": True},
            {"retry_on_timeout": True, "retry_on_error": [exceptions.ConnectionError]},
            {"client_name": "mine"},
            {"max_connections": 1},
            {"encoding": "latin-1"},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_settings(self, own: redis.Redis, throwaway: Server, heard: Heard, options: Any) -> None:
        with throwaway.client(**options) as r, subscribe(r, "a", heard, heartbeat=0.5) as sub:
            time.sleep(0.6)  # longer than socket_timeout, and than a heartbeat
            assert publish(r, "a", 1) == 1
            until(lambda: heard.events == [1])
            assert (sub.gaps, sub.trouble, sub.failures) == ([], None, 0)

    def test_a_bare_client_with_the_defaults_of_redis_py(
        self, throwaway: Server, own: redis.Redis, heard: Heard
    ) -> None:
        for options in ({}, {"protocol": 3, "cache_config": CacheConfig()}):
            bare: Any = redis.Redis(port=throwaway.port, password=throwaway.password, **options)  # type: ignore[arg-type]
            with bare, subscribe(bare, "a", heard) as sub:
                publish(own, "a", len(heard.calls))
                until(lambda sub=sub: sub.received == 1)  # type: ignore[misc]
                assert sub.gaps == []
        assert heard.events == [0, 1]

    @pytest.mark.single_server("about the pool of redis.Redis")
    def test_a_pool_that_is_shared_and_closed_does_not_end_it(self, own: redis.Redis, heard: Heard) -> None:
        pool = redis.BlockingConnectionPool(**own.connection_pool.connection_kwargs, max_connections=1)
        with subscribe(redis.Redis(connection_pool=pool), "a", heard):
            pool.disconnect()
            publish(own, "a", 1)
            until(lambda: heard.events == [1])

    def test_unix_socket(self, heard: Heard) -> None:
        with Server(unixsocket="s") as server:  # in the server's folder, which a container shares with us
            r = redis.Redis(unix_socket_path=f"{server.config['dir']}/s", password=server.password)
            with r, subscribe(r, "a", heard, on_gap=heard.gaps.append) as sub:
                publish(r, "a", 1)
                until(lambda: heard.events == [1])
                server.kill()
                until(lambda: sub.trouble)
                server.restart()
                until(lambda: heard.gaps and sub.trouble is None)
                publish(r, "a", 2)
                until(lambda: heard.events == [1, 2])

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_tls(
        self, own: redis.Redis, throwaway: Server, heard: Heard, tmp_path: Path, protocol: int
    ) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
        with tls_in_front_of(throwaway, authority) as port:
            r = redis.Redis(
                port=port, ssl=True, ssl_ca_certs=f"{tmp_path}/ca.pem", protocol=protocol,
                password=throwaway.password, socket_timeout=5,
            )  # fmt: skip
            with r, subscribe(r, "a", heard, heartbeat=0.5) as sub:
                for n in range(500):
                    publish(own, "a", [n, "x" * 200])
                until(lambda: sub.received == 500)
                assert [event[0] for event in heard.events] == list(range(500))
                kill_listeners(own)
                until(lambda: sub.gaps)
                publish(own, "a", "again")
                until(lambda: heard.events[-1] == "again")
                start = time.monotonic()
                assert sub.close()
                assert time.monotonic() - start < 5
            until(lambda: listeners(own) == 0)


@contextmanager
def tls_in_front_of(server: Server, authority: trustme.CA) -> Iterator[int]:
    """A port that speaks TLS, whatever the server was built with."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    site = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield site.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(site.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


class TestGaps:
    def test_a_killed_server(self, throwaway: Server, own: redis.Redis, heard: Heard) -> None:
        begin = time.time()
        with subscribe(own, "a", heard, on_gap=heard.gaps.append) as sub:
            publish(own, "a", 1)
            until(lambda: heard.events == [1])
            throwaway.kill()
            until(lambda: isinstance(sub.trouble, exceptions.ConnectionError) and "111" in str(sub.trouble))
            assert (
                sub.alive
                and sub.gaps == []
                and repr(sub) == "Subscription('a', lost: 1 received, 0 failed, 0 gaps)"
            )
            throwaway.restart()
            until(lambda: heard.gaps)
            assert publish(own, "a", 2) == 1
            until(lambda: heard.events == [1, 2])
            (gap,) = sub.gaps
            assert heard.gaps == [gap] and gap.reason == "the connection was closed"
            assert begin - 1 < gap.lost_at < gap.back_at < time.time() + 1
            assert gap.seconds == gap.back_at - gap.lost_at
            assert (sub.trouble, sub.received, sub.failures) == (None, 2, 0)

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_a_frozen_server(self, throwaway: Server, own: redis.Redis, heard: Heard, protocol: int) -> None:
        with throwaway.client(protocol=protocol) as r, subscribe(r, "a", heard, heartbeat=SOON) as sub:
            throwaway.freeze()
            try:
                until(lambda: sub.trouble)
            finally:
                throwaway.thaw()
            until(lambda: sub.gaps)
            assert sub.gaps[0].reason == "no answer to PING within 0.05 s"
            until(lambda: publish(own, "a", 1) == 1)  # of the old connection the server knows soon
            until(lambda: heard.events and set(heard.events) == {1})

    def test_a_cut_cable_and_one_that_is_reset(self, throwaway: Server, own: redis.Redis) -> None:
        with ExitStack() as stack:
            link = stack.enter_context(Proxy(throwaway))
            r = stack.enter_context(link.client(socket_timeout=0.1))
            with subscribe(r, "a", print, heartbeat=SOON) as sub:
                link.cut()
                until(lambda: isinstance(sub.trouble, exceptions.TimeoutError))  # it tries again in vain
                link.heal()
                until(lambda: len(sub.gaps) == 1)
                link.cut(reset=True)
                until(lambda: sub.trouble)
                link.heal()
                until(lambda: len(sub.gaps) == 2)
                silent, closed = sub.gaps
                assert silent.reason.startswith("no answer to PING")
                assert closed.reason == "the connection was closed"
                assert silent.lost_at < silent.back_at < closed.back_at

    def test_client_kill(self, r: redis.Redis, heard: Heard) -> None:
        with subscribe(r, "a", heard) as sub:
            for n in range(1, 4):
                assert kill_listeners(r) == 1
                until(lambda n=n: len(sub.gaps) == n)  # type: ignore[misc]
                assert publish(r, "a", n) in counts(r, 1)
            until(lambda: heard.events == [1, 2, 3])
        until(lambda: listeners(r) == 0)

    def test_a_slow_callback_is_cut_off_and_told(self, own: redis.Redis, throwaway: Server) -> None:
        """What it had sent before arrives all the same; the rest is lost, and the gap begins before it."""
        go, seen, sent = threading.Event(), list[int](), dict[int, float]()

        def callback(channel: str, event: Any) -> None:
            go.wait(20)
            seen.append(event[0])

        before = throwaway.config["client-output-buffer-limit"]
        own.config_set("client-output-buffer-limit", "pubsub 1mb 0 0")
        try:
            with subscribe(own, "a", callback) as sub:
                n = 0
                while listeners(own):
                    sent[n] = time.time()
                    publish(own, "a", [n, "x" * 50_000])
                    n += 1
                    assert n < 10_000
                assert own.info("stats").get("client_output_buffer_limit_disconnections", 1) >= 1  # since 7.2
                go.set()
                until(lambda: sub.gaps)
                publish(own, "a", [-1])
                until(lambda: seen[-1] == -1)
                assert seen == [*range(len(seen) - 1), -1] and len(seen) - 1 < n
                lost = [sent[m] for m in range(len(seen) - 1, n)]
                assert sub.gaps[0].lost_at <= min(lost) and max(lost) <= sub.gaps[0].back_at
        finally:
            own.config_set("client-output-buffer-limit", before)

    @pytest.mark.parametrize("step", [3600, -3600])
    def test_a_machine_that_slept_and_a_clock_that_is_set_back(
        self, own: redis.Redis, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """A gap may be given as longer than it was, never as shorter."""
        with subscribe(own, "a", print) as sub:
            clocks = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + step)
            monkeypatch.setattr(labkit.pubsub, "time", clocks)
            kill_listeners(own)
            until(lambda: sub.gaps)
            assert 0 < sub.gaps[0].seconds - max(step, 0) < 3000

    def test_a_callback_slower_than_the_heartbeat_is_no_gap(self, own: redis.Redis) -> None:
        with subscribe(own, "a", lambda channel, event: time.sleep(0.6), heartbeat=0.2) as sub:
            for n in range(3):
                publish(own, "a", n)
            until(lambda: sub.received == 3)
            assert sub.gaps == [] and sub.trouble is None

    def test_on_gap_runs_before_what_came_after_it(self, own: redis.Redis, heard: Heard) -> None:
        """So whoever reads the state in on_gap, and then applies what comes, misses nothing."""

        def on_gap(gap: Gap) -> None:
            publish(own, "a", "later")
            heard.calls.append(("gap", gap.reason))
            raise ValueError("mine")

        with subscribe(own, "a", heard, on_gap=on_gap, on_error=heard.errors.append) as sub:
            kill_listeners(own)
            until(lambda: sub.received)
            assert heard.calls == [("gap", "the connection was closed"), ("a", "later")]
            assert [str(error) for error in heard.errors] == ["a: ValueError: mine"]
            assert heard.errors[0].event == sub.gaps[0] and sub.failures == 1

    def test_a_user_who_may_not_listen_any_more(self, own: redis.Redis, throwaway: Server) -> None:
        own.acl_setuser("once", enabled=True, passwords="+x", commands=["+@all"], channels=["a"])
        with of_user(throwaway, "once") as r, subscribe(r, "a", print) as sub:
            own.acl_setuser("once", enabled=True, reset_channels=True)
            until(lambda: isinstance(sub.trouble, exceptions.NoPermissionError))
            assert sub.alive and sub.gaps == []
            own.acl_setuser("once", enabled=True, channels=["a"])
            until(lambda: sub.gaps)
            assert sub.trouble is None

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_a_user_who_may_not_ping_is_no_gap(
        self, own: redis.Redis, throwaway: Server, protocol: int
    ) -> None:
        def refused() -> int:
            return int(own.info("commandstats").get("cmdstat_ping", {}).get("rejected_calls", 0))

        commands = ["+subscribe", "+hello", "+client"]
        own.acl_setuser("mute", enabled=True, passwords="+x", commands=commands, channels=["a"])
        with of_user(throwaway, "mute", protocol=protocol) as r:
            before = refused()
            with subscribe(r, "a", print, heartbeat=0.3) as sub:
                until(lambda: refused() >= before + 3)
                assert sub.gaps == [] and sub.trouble is None

    def test_heartbeats_go_on_under_traffic_and_move_what_is_certain(self, own: redis.Redis) -> None:
        under_traffic(own, own)

    @CLIENTS
    def test_heartbeats_under_traffic_whatever_the_client_is_like(
        self, throwaway: Server, own: redis.Redis, options: Any
    ) -> None:
        with throwaway.client(**options) as r:
            under_traffic(r, own)


class TestTheEnd:
    def test_close_and_again(self, r: redis.Redis, heard: Heard) -> None:
        before = set(threading.enumerate())
        sub = subscribe(r, "a", heard)
        assert sub.alive and len(set(threading.enumerate()) - before) == 1
        assert sub.close()
        assert set(threading.enumerate()) <= before and not sub.alive
        until(lambda: publish(r, "a", 1) == 0)
        assert sub.close() and heard.calls == []
        assert repr(sub) == "Subscription('a', closed: 0 received, 0 failed, 0 gaps)"

    def test_the_end_of_a_with_block_that_raises(self, own: redis.Redis) -> None:
        with pytest.raises(KeyError), subscribe(own, "a", print) as sub:
            raise KeyError
        assert not sub.alive
        until(lambda: listeners(own) == 0)

    def test_nothing_is_called_after_close(self, own: redis.Redis) -> None:
        """Though thousands of messages wait to be delivered."""
        calls = list[int]()
        for _ in range(20):
            with subscribe(own, "a", lambda channel, event: calls.append(event)):
                publish_all(own, [("a", str(n)) for n in range(500)])
            count = len(calls)
            time.sleep(0.001)
            assert len(calls) == count

    @pytest.mark.parametrize("where", ["callback", "on_error", "on_gap"])
    def test_from_inside(self, own: redis.Redis, where: str, heard: Heard) -> None:
        box, said = list[Subscription](), list[bool]()

        def close(*_: Any) -> None:
            until(lambda: box)
            said.append(box[0].close())
            said.append(box[0].close())

        def fail(channel: str, event: Any) -> None:
            raise ValueError

        callback: Any = {"callback": close, "on_error": fail, "on_gap": print}[where]
        more: dict[str, Any] = {} if where == "callback" else {where: close}
        sub = subscribe(own, "a", callback, **more)
        if where == "on_gap":
            kill_listeners(own)
        else:
            publish(own, "a", 1)
        box.append(sub)
        until(lambda: len(said) == 2)
        until(lambda: listeners(own) == 0)
        assert said == [False, False] and not sub.alive and sub.close()

    def test_while_a_callback_runs_for_long(self, own: redis.Redis, heard: Heard) -> None:
        go, inside = threading.Event(), threading.Event()

        def callback(channel: str, event: Any) -> None:
            inside.set()
            go.wait(20)
            heard(channel, event)

        sub = subscribe(own, "a", callback)
        publish(own, "a", 1)
        publish(own, "a", 2)
        inside.wait(20)
        assert not sub.close(timeout=0.01) and not sub.alive
        until(lambda: listeners(own) == 0)  # the server knows at once
        go.set()
        assert sub.close()
        assert heard.events == [1]

    @pytest.mark.parametrize("trouble", ["frozen", "silent", "gone"])
    def test_while_nothing_answers(self, throwaway: Server, own: redis.Redis, trouble: str) -> None:
        """Frozen, but not noticed yet; in the middle of connecting again; between two attempts."""
        sub = subscribe(own, "a", print, heartbeat=60 if trouble == "frozen" else SOON)
        throwaway.kill() if trouble == "gone" else throwaway.freeze()
        try:
            until(lambda: trouble == "frozen" or sub.trouble)
            time.sleep(0.05)
            start = time.monotonic()
            assert sub.close()
            assert time.monotonic() - start < 5  # socket_timeout is 10
        finally:
            throwaway.start() if trouble == "gone" else throwaway.thaw()

    def test_at_any_moment_of_coming_back(self, throwaway: Server, own: redis.Redis) -> None:
        with Proxy(throwaway) as link:
            for n in range(30):
                sub = subscribe(link.client(), "a", print)
                kill_listeners(own)
                time.sleep(0.002 * n)
                assert sub.close()
        until(lambda: listeners(own) == 0)

    def test_many_threads_close_it(self, own: redis.Redis) -> None:
        sub, said = subscribe(own, "a", print), list[bool]()
        threads = [threading.Thread(target=lambda: said.append(sub.close())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == [True] * 8

    def test_when_nobody_refers_to_it(self, own: redis.Redis, heard: Heard) -> None:
        before = set(threading.enumerate())
        subscribe(own, "a", heard)
        gc.collect()
        until(lambda: set(threading.enumerate()) <= before)
        until(lambda: listeners(own) == 0)

    def test_one_that_its_own_callback_collects(self, own: redis.Redis) -> None:
        box = list[Any]()
        box.append(subscribe(own, "a", lambda channel, event: box.clear()))
        publish(own, "a", 1)
        until(lambda: not box)
        until(lambda: listeners(own) == 0)

    @pytest.mark.parametrize("how", ["idle", "busy", "lost", "sys.exit", "raise", "SIGTERM"])
    def test_with_the_process(self, throwaway: Server, own: redis.Redis, how: str) -> None:
        code = f"""
import os, signal, sys, time, labkit.pubsub
from labkit.rig.client import client
r = client({throwaway.url!r})
def callback(channel, event):
    print("called", flush=True)
    time.sleep(60 if {how == "busy"} else 0)
sub = labkit.pubsub.subscribe(r, "a", callback)
labkit.pubsub.publish(r, "a", 1)
while not sub.received and {how != "busy"}: time.sleep(0.001)
if {how == "busy"}: time.sleep(0.1)
if {how == "lost"}:
    r.connection_pool.connection_kwargs["port"] = 1
    r.client_kill_filter(_type="pubsub")
    while not sub.trouble: time.sleep(0.001)
if {how == "sys.exit"}: sys.exit(0)
if {how == "raise"}: raise KeyError
if {how == "SIGTERM"}: os.kill(os.getpid(), signal.SIGTERM)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout == "called\n"
        assert done.returncode == {"raise": 1, "SIGTERM": -signal.SIGTERM}.get(how, 0), done.stderr
        assert ("KeyError" in done.stderr) if how == "raise" else done.stderr == ""
        until(lambda: listeners(own) == 0)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_leaves_the_parents_alone(self, own: redis.Redis, heard: Heard) -> None:
        sub = subscribe(own, "a", heard)
        pid = os.fork()
        if pid == 0:
            state = 1
            try:
                mine = Heard()
                right = not sub.alive and sub.close()
                del sub
                gc.collect()
                with subscribe(own, "b", mine) as other:
                    publish(own, "b", 1)
                    until(lambda: mine.events == [1])
                state = 0 if right and not other.alive else 2
            finally:
                os._exit(state)
        assert os.waitpid(pid, 0)[1] == 0
        assert sub.alive and publish(own, "a", 1) in counts(own, 1)
        until(lambda: heard.events == [1])
        assert sub.close() and sub.gaps == []
        until(lambda: listeners(own) == 0)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_child_that_a_callback_forks_takes_no_message(self, own: redis.Redis, heard: Heard) -> None:
        children = []

        def fork(channel: str, event: Any) -> None:
            if event == 0 and (pid := os.fork()):
                children.append(pid)
            heard(channel, event)

        with subscribe(own, "a", fork) as sub:
            publish(own, "a", 0)
            until(lambda: children)
            time.sleep(0.1)  # the child would be waiting for messages by now
            for n in range(1, 21):
                publish(own, "a", n)
            until(lambda: sub.received == 21)
            assert heard.events == [*range(21)] and sub.gaps == []
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def test_closed_while_it_comes_back(self, own: redis.Redis, heard: Heard) -> None:
        sub = subscribe(own, "a", heard, on_gap=heard.gaps.append)
        begin = sub._listener._open

        def open_and_be_closed() -> None:
            begin()
            sub._listener.stopped = True

        sub._listener._open = open_and_be_closed  # type: ignore[method-assign]
        kill_listeners(own)
        until(lambda: not sub._listener.thread.is_alive())
        assert heard.gaps == sub.gaps == [] and sub.close()

    @pytest.mark.parametrize("timeout", [-1, float("nan")])
    def test_a_timeout_that_is_none(self, own: redis.Redis, heard: Heard, timeout: float) -> None:
        with subscribe(own, "a", heard) as sub:
            with pytest.raises(ValueError, match="it must be 0 seconds or more"):
                sub.close(timeout)
            assert sub.alive

    def test_interrupted_while_it_begins(self, own: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            start(thread)
            if thread.name.startswith("subscription"):
                raise KeyboardInterrupt

        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            subscribe(own, "a", print)
        until(lambda: listeners(own) == 0)


@contextmanager
def cluster_of_two() -> Iterator[tuple[list[Server], Any]]:
    """Two nodes with half of the slots each, and a client of both."""
    with Server(cluster_enabled=True) as one:
        two = Server(cluster_enabled=True)
        two.password = one.password
        with two:
            with one.client() as r, two.client() as s:
                r.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
                s.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
                r.execute_command("CLUSTER", "MEET", "127.0.0.1", two.port)
                for node in (r, s):
                    until(lambda node=node: "cluster_state:ok" in node.execute_command("CLUSTER", "INFO"))  # type: ignore[misc]
            with RedisCluster.from_url(one.url, protocol=3, legacy_responses=False) as cluster:
                yield [one, two], cluster


def test_a_plain_channel_is_heard_at_the_heir_of_its_slot(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere: list[Any] = []
    with cluster_of_two() as (servers, cluster), ExitStack() as stack:

        def elsewhere() -> Any:
            anywhere.append(cluster.get_nodes()[0])
            return anywhere[-1]

        home = cluster.keyslot("room:0") // 8192
        old, heir = (stack.enter_context(servers[index].client()) for index in (home, 1 - home))
        sub = stack.enter_context(subscribe(cluster, "room:0", heard))
        monkeypatch.setattr(cluster, "get_random_node", elsewhere)
        for node in (heir, old):
            node.execute_command(
                "CLUSTER", "SETSLOT", cluster.keyslot("room:0"), "NODE", heir.cluster("MYID")
            )
        servers[home].kill()
        until(lambda: sub.gaps)
        assert publish(cluster, "room:0", "again") == 1 and not anywhere
        until(lambda: heard.events == ["again"])


def test_on_a_cluster(heard: Heard) -> None:
    with cluster_of_two() as (servers, cluster), ExitStack() as stack:
        nodes = [stack.enter_context(server.client()) for server in servers]
        names = [f"room:{n}" for n in range(8)]
        homes = [cluster.keyslot(name) // 8192 for name in names]
        assert set(homes) == {0, 1}
        with ExitStack() as plain:  # each is heard at its slot's node, which is where it is published
            same = [f"hall:{{{name}}}" for name in names]  # in the same slots, and nothing to "room:*"
            for name in same:
                plain.enter_context(subscribe(cluster, name, Heard()))
            assert [publish(cluster, name, 1) for name in same] == [1] * 8
        sharded = [stack.enter_context(subscribe(cluster, name, heard, sharded=True)) for name in names]
        every = stack.enter_context(subscribe(cluster, "room:*", heard))
        for index, node in enumerate(nodes):
            there = {name for name, home in zip(names, homes, strict=True) if home == index}
            assert set(node.pubsub_shardchannels()) == there
        assert [publish(cluster, name, name, sharded=True) for name in names] == [1] * 8
        until(lambda: sorted(heard.events) == names)
        heard.calls.clear()
        for node in nodes:  # an ordinary message is heard at whatever node
            publish(node, "room:0", "all")
        until(lambda: heard.events == ["all", "all"] and every.received == 2)

        home, other = nodes[homes[0]], nodes[1 - homes[0]]
        for node in (other, home):
            node.execute_command(
                "CLUSTER", "SETSLOT", cluster.keyslot(names[0]), "NODE", other.cluster("MYID")
            )
        until(lambda: sharded[0].gaps)
        assert sharded[0].gaps[0].reason == "the channel's slot has moved to another node"
        assert names[0] in other.pubsub_shardchannels()
        assert publish(cluster, names[0], "moved", sharded=True) == 1
        until(lambda: heard.events[-1] == "moved")

        servers[homes[0]].kill()
        until(lambda: any(sub.trouble for sub in sharded))
        start = time.monotonic()
        closed = [sub.close() for sub in [*sharded, every]]
        assert all(closed) and time.monotonic() - start < 20
