"""The tap sees everything and leaves nothing behind; %%redis prints what redis-cli prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from labkit.rig import magics
from labkit.rig.resp import Reply, as_cli, parse, split, to_python
from labkit.rig.server import Server
from labkit.rig.wire import register_magics, tap


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


# --- the tap -----------------------------------------------------------------------------------


def test_commands_replies_bytes_and_round_trips(r: redis.Redis) -> None:
    with tap(r) as t:
        r.set("k", "v")
        r.get("k")
        r.get("none")
    assert [e.command for e in t.commands] == [("SET", "k", "v"), ("GET", "k"), ("GET", "none")]
    assert [e.reply for e in t.commands] == ["OK", "v", None]
    assert [e.round_trip for e in t.commands] == [1, 2, 3]
    assert t.commands[0].sent == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"
    assert t.commands[0].received == b"+OK\r\n"
    assert t.round_trips == 3
    assert t.bytes_sent == sum(len(e.sent) for e in t.commands)
    assert t.bytes_received == sum(len(e.received) for e in t.commands)
    assert t.summary == f"3 round trips · 3 commands · {t.bytes_sent} B sent · {t.bytes_received} B received"


def test_a_pipeline_of_100_is_one_round_trip(r: redis.Redis) -> None:
    pipe = r.pipeline(transaction=False)
    for i in range(100):
        pipe.set(f"k{i}", i)
    with tap(r) as t:
        pipe.execute()
    assert (t.round_trips, len(t.commands)) == (1, 100)


def test_a_pipeline_larger_than_all_buffers_is_one_round_trip(r: redis.Redis) -> None:
    pipe = r.pipeline(transaction=False)
    for i in range(2000):
        pipe.set(f"k{i}", "v" * 100)
    with tap(r) as t:
        pipe.execute()
    assert (t.round_trips, len(t.commands)) == (1, 2000)
    assert {e.reply for e in t.commands} == {"OK"}


def test_multi_exec_with_watch(r: redis.Redis) -> None:
    with tap(r) as t, r.pipeline() as pipe:
        pipe.watch("k")
        pipe.get("k")
        pipe.multi()
        pipe.incr("k")
        pipe.execute()
    names = [e.command[0] for e in t.commands]
    assert names == ["WATCH", "GET", "MULTI", "INCRBY", "EXEC"]
    assert [e.reply for e in t.commands] == ["OK", None, "OK", "QUEUED", [1]]
    assert t.round_trips == 3


def test_a_script_the_first_time(r: redis.Redis) -> None:
    script = r.register_script("return {1, 'two', {3}}")
    with tap(r) as t:
        script()
        script()
    assert [e.command[0] for e in t.commands] == ["EVALSHA", "SCRIPT", "EVALSHA", "EVALSHA"]
    assert isinstance(t.commands[0].reply, redis.ResponseError)
    assert t.commands[-1].reply == [1, "two", [3]]


def test_errors_are_replies(r: redis.Redis) -> None:
    r.set("k", "text")
    with tap(r) as t, pytest.raises(redis.ResponseError):
        r.incr("k")
    assert str(t.commands[0].reply) == "ERR value is not an integer or out of range"


def test_connections_opened_meanwhile_with_and_without_their_handshake(server: Server) -> None:
    r = server.client(client_name="somebody")
    with tap(r) as t, tap(r, handshake=True) as whole:
        r.ping()
    assert [e.command[0] for e in t.commands] == ["PING"]
    assert whole.commands[0].command[0] == "HELLO"
    assert whole.commands[-1].command[0] == "PING"
    assert t.connections == whole.connections == 1
    assert server.password not in str(whole.commands) + whole.raw() + repr(whole) + whole._repr_html_()
    with tap(r) as t:
        r.client_setname("other")
    assert t.commands[0].command == ("CLIENT", "SETNAME", "other")
    r.close()


def test_a_single_connection_client_and_one_that_reconnects(server: Server) -> None:
    with server.client() as pooled:
        r = redis.Redis.from_pool(pooled.connection_pool)
        single = redis.Redis.from_url(server.url, single_connection_client=True)
        with tap(single) as t:
            single.ping()
        assert (t.round_trips, t.connections) == (1, 0)
        with tap(r) as t:
            r.ping()
            r.connection_pool.disconnect()
            r.ping()
        assert (t.round_trips, t.connections) == (2, 2)
        single.close()


@pytest.mark.parametrize("kind", ["resp2", "blocking pool", "python parser", "cache"])
def test_other_kinds_of_client(server: Server, kind: str) -> None:
    from redis._parsers import _RESP3Parser
    from redis.cache import CacheConfig

    options: dict[str, dict[str, Any]] = {
        "resp2": {"protocol": 2},
        "python parser": {"parser_class": _RESP3Parser, "protocol": 3},
        "cache": {"cache_config": CacheConfig(), "protocol": 3},
    }
    if kind == "cache" and server.client().info("server")["redis_version"].startswith("7.0"):
        pytest.skip("redis-py caches on the client's side from Redis 7.4")
    if kind == "blocking pool":
        r = redis.Redis(connection_pool=redis.BlockingConnectionPool.from_url(server.url))
    else:
        r = redis.Redis.from_url(server.url, **options[kind])
    r.set("k", 1)
    with tap(r) as t:
        r.get("k")
    assert (t.commands[-1].command, t.commands[-1].reply) == (("GET", "k"), "1")
    with tap(r) as t:
        r.mget(["k", "none"])
    assert t.commands[-1].reply == ["1", None]
    r.close()


def test_a_connection_that_waits_while_the_tap_begins_and_ends(r: redis.Redis) -> None:
    popped = []
    waiting = threading.Thread(target=lambda: popped.append(r.blpop(["q"], timeout=5)))
    waiting.start()
    while not any(c["cmd"] == "blpop" for c in r.client_list()):
        time.sleep(0.01)
    with tap(r) as t:
        r.lpush("q", "x")
        waiting.join()
    assert popped and [e.command[0] for e in t.commands] == ["LPUSH"]
    with tap(r) as t:
        assert r.blpop(["q"], timeout=0.05) is None
    assert (t.commands[0].command[0], t.round_trips) == ("BLPOP", 1)


def test_pubsub(r: redis.Redis) -> None:
    with tap(r) as t, r.pubsub() as p:
        p.subscribe("a", "b")
        assert [p.get_message(timeout=1) and None for _ in "ab"] == [None, None]
        r.publish("a", "hello")
        assert p.get_message(timeout=1)["data"] == "hello"
    subscribed, published, pushed = sorted(
        t.commands, key=lambda e: (e.command == (), e.command[:1] == ("PUBLISH",))
    )
    assert subscribed.reply == [["subscribe", "a", 1], ["subscribe", "b", 2]]
    assert published.reply == 1
    assert (pushed.command, pushed.reply) == ((), ["message", "a", "hello"])


def sockets(r: redis.Redis) -> set[str]:
    pool: Any = r.connection_pool
    connections = pool._get_free_connections() + list(pool._get_in_use_connections())
    return {type(s).__name__ for c in connections for s in (c._sock, c._parser._sock) if s is not None}


def test_everything_is_put_back_also_after_an_exception_and_when_nested(r: redis.Redis) -> None:
    r.ping()
    with pytest.raises(KeyError), tap(r) as outer:
        with tap(r) as inner:
            r.ping()
        r.ping()
        assert sockets(r) == {"_Recorder"}
        raise KeyError
    assert (inner.round_trips, outer.round_trips) == (1, 2)
    assert sockets(r) == {"socket"}
    pool: Any = r.connection_pool
    assert "make_connection" not in vars(pool)
    assert not {"_connect", "connect_check_health"} & set(vars(pool._get_free_connections()[0]))
    r.ping()
    assert outer.round_trips == 2


def test_many_threads(r: redis.Redis) -> None:
    def work() -> None:
        for _ in range(50):
            r.incr("n")

    with tap(r) as t:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (t.round_trips, len(t.commands)) == (400, 400)
    assert sorted(e.reply for e in t.commands) == list(range(1, 401))


def test_a_tape_shows_itself(r: redis.Redis) -> None:
    with tap(r) as t:
        for i in range(25):
            r.set("k", f"<b>{i}")
    assert "… and 5 more" in repr(t) and repr(t).endswith(t.summary)
    assert "SET k &lt;b&gt;0" in t._repr_html_()
    assert list(t.df.columns) == ["round_trip", "command", "reply", "sent", "received"]
    assert len(t.df) == 25
    assert repr(t.raw()).splitlines()[:2] == [r"C: *3\r\n", r"C: $3\r\n"]
    with tap(r) as empty:
        pass
    assert (empty.round_trips, len(empty.df)) == (0, 0)
    assert repr(empty).endswith("0 round trips · 0 commands · 0 B sent · 0 B received")


def test_what_cannot_be_tapped() -> None:
    import redis.asyncio

    for wrong in (3, redis.asyncio.Redis()):
        with pytest.raises(TypeError, match="synchronous"):
            tap(wrong)


# --- the protocol, and %%redis -------------------------------------------------------------------


def test_parse_waits_for_the_whole_reply() -> None:
    whole = b"%1\r\n$1\r\na\r\n*2\r\n:1\r\n,1.5\r\n"
    assert all(parse(whole[:n]) is None for n in range(len(whole)))
    found = parse(whole + b"+next")
    assert found is not None and found[1] == len(whole)
    assert to_python(found[0]) == {"a": [1, 1.5]}
    with pytest.raises(ValueError, match="no marker"):
        parse(b"?x\r\n")
    attributed = parse(b"|1\r\n+ttl\r\n:3\r\n+value\r\n")
    assert attributed is not None and attributed[0] == Reply("+", b"value")


def test_quoting() -> None:
    assert split(r"""SET 'it\'s' "a\x00\n\"b" plain ä""") == [
        b"SET",
        b"it's",
        b'a\x00\n"b',
        b"plain",
        "ä".encode(),
    ]
    assert split('GET ""') == [b"GET", b""]
    for wrong in ('GET "a', "GET 'a", 'GET "a"b'):
        with pytest.raises(ValueError, match="balanced"):
            split(wrong)


KINDS = "string integer double null array set map attrib push verbatim true false bignum"
COMMANDS = [
    "PING",
    'SET k "quote \\" back \\\\ line \\n tab \\t bell \\a nul \\x00 é"',
    "GET k",
    "GET none",
    "INCR k",
    "NOSUCH",
    "DEL k",
    "RPUSH list " + " ".join(map(str, range(12))),
    "LRANGE list 0 -1",
    "LRANGE none 0 -1",
    "HSET h a 1 b 2 c 3",
    "HGETALL h",
    "HGETALL none",
    "SADD s one",
    "SMEMBERS s",
    "SMEMBERS none",
    "ZADD z 1.5 a 2 b",
    "ZRANGE z 0 -1 WITHSCORES",
    "ZSCORE z a",
    "EVAL \"return {1,{2,{3,{}},4},{'a'}}\" 0",
    'EVAL "redis.setresp(3); return {map={x={map={y={1,2}}}}}" 0',
    'EVAL "return {double=3.25}" 0',
    "EVAL \"return redis.error_reply('MY own')\" 0",
    "XADD x 1-1 f v g w",
    "XRANGE x - +",
    "XREAD COUNT 1 STREAMS x 0",
    "CONFIG GET maxmemory-samples",
    "MULTI",
    "INCR n",
    "EXEC",
    *(f"DEBUG PROTOCOL {kind}" for kind in KINDS.split() if kind not in ("push", "attrib", "bignum")),
]


RECORDED = Path(__file__).with_name("redis_cli.txt")
"""What a real redis-cli printed for COMMANDS; its first line says which. Never edited by hand."""

BY_VERSION = ["CONFIG GET maxmemory*", "COMMAND INFO get"]
"""Replies that depend on the server: compared only with a redis-cli that is there."""


def printed(r: redis.Redis, commands: list[str]) -> list[str]:
    lines = [line for line in magics.run(r, "\n".join(commands)) if not line.startswith("> ")]
    return "\n".join(lines).split("\n")


def test_prints_what_redis_cli_printed_when_it_was_recorded(r: redis.Redis) -> None:
    assert printed(r, COMMANDS) == RECORDED.read_text(encoding="utf-8").splitlines()[1:]


def test_prints_what_redis_cli_prints(server: Server, r: redis.Redis) -> None:
    cli = shutil.which("redis-cli")
    if cli is None:
        pytest.skip("redis-cli is not installed; what it printed when it was recorded is compared")
    commands = COMMANDS + BY_VERSION
    mine = printed(r, commands)
    r.flushall()
    out = subprocess.run(
        [cli, "-3", "-p", str(server.port), "--no-raw", "--no-auth-warning"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        env={**os.environ, "REDISCLI_AUTH": server.password},
    ).stdout
    assert mine == [line for line in out.split("\n") if line]


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (b"%1\r\n+k\r\n~2\r\n:1\r\n#t\r\n", "1# k => \n   1~ (integer) 1\n   2~ (true)"),
        (b"(123456789012345678901\r\n", "123456789012345678901"),
        (b"=7\r\ntxt:a\nb\r\n", "a\nb"),
        (b"*-1\r\n", "(nil)"),
        (b"$-1\r\n", "(nil)"),
        (b",inf\r\n", "(double) inf"),
        (b"!5\r\nERR x\r\n", "(error) ERR x"),
        (b">1\r\n+x\r\n", "1) x"),
    ],
)
def test_replies_as_redis_cli_shows_them(reply: bytes, shown: str) -> None:
    found = parse(reply)
    assert found is not None
    assert as_cli(found[0]) == shown


def test_comments_blank_lines_and_bad_lines(r: redis.Redis) -> None:
    cell = '\n# a comment\nSET a#b 1   # said behind\n\nGET a#b\nGET "x\nSORT list GET #\n'
    out = list(magics.run(r, cell))
    assert out[:4] == ["> SET a#b 1", "OK", "> GET a#b", '"1"']
    assert out[4] == '> GET "x' and out[5].startswith("(error) Invalid argument(s)")
    assert out[6:] == ["> SORT list GET #", "(empty array)"]


def test_a_hash_within_quotes_is_no_comment(r: redis.Redis) -> None:
    cell = """ECHO "a  # b"   # "said"  # behind
ECHO 'it\\'s  # c'  # it's
ECHO x # y"""
    out = list(magics.run(r, cell))
    assert out[:4] == ['> ECHO "a  # b"', '"a  # b"', "> ECHO 'it\\'s  # c'", '"it\'s  # c"']
    assert out[4] == "> ECHO x # y" and "wrong number of arguments" in out[5]


@pytest.mark.parametrize(
    ("cell", "open_at_the_end"),
    [
        ("MULTI\nNOSUCH\nEXEC", False),
        ("MULTI\nEXEC too many", False),
        ("MULTI\nINCR n\nDISCARD", False),
        ("MULTI\nDISCARD too many", True),
        ("MULTI\nMULTI", True),
        ("MULTI\nSUBSCRIBE a b", True),
        ("EXEC", False),
        ("MULTI\nRESET", False),
    ],
)
def test_whether_a_transaction_is_still_open(r: redis.Redis, cell: str, open_at_the_end: bool) -> None:
    out = list(magics.run(r, cell, wait=2))
    assert out[-1].startswith("(MULTI without EXEC") == open_at_the_end
    if open_at_the_end:  # the server sees it so too
        assert "without MULTI" not in list(magics.run(r, f"{cell}\nEXEC", wait=2))[-1]
    else:
        assert "without MULTI" in "".join(magics.run(r, f"{cell}\nAUTH default {password(r)}\nEXEC", wait=2))


def password(r: redis.Redis) -> str:
    return str(r.connection_pool.connection_kwargs["password"])


def test_unsubscribing_from_everything(r: redis.Redis) -> None:
    cell = "SUBSCRIBE a b\nPSUBSCRIBE c*\nUNSUBSCRIBE\nPING\nPUNSUBSCRIBE\nUNSUBSCRIBE\nPING"
    out = list(magics.run(r, cell, wait=2))
    after = out[out.index("> UNSUBSCRIBE") :]
    assert [line.split("\n")[0] for line in after] == [
        *("> UNSUBSCRIBE", '1) "unsubscribe"', '1) "unsubscribe"', "> PING", "PONG"),
        *("> PUNSUBSCRIBE", '1) "punsubscribe"', "> UNSUBSCRIBE", '1) "unsubscribe"', "> PING", "PONG"),
    ]
    out = list(magics.run(r, "SUBSCRIBE a b\nUNSUBSCRIBE a\nPUBLISH b x", wait=2))
    assert '1) "message"\n2) "b"\n3) "x"' in out and out[-1] == "(the subscription ends with the cell)"


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_tape_of_unsubscribing_from_everything(server: Server, protocol: int) -> None:
    with server.client(protocol=protocol) as r, tap(r) as t, r.pubsub() as p:
        p.subscribe("a", "b")
        p.unsubscribe()
        p.unsubscribe()
        p.subscribe("c")
        while (message := p.get_message(timeout=1)) and message["channel"] != "c":
            pass
    assert [(e.command[0], len(e.reply)) for e in t.commands] == [
        ("SUBSCRIBE", 2),
        ("UNSUBSCRIBE", 2),
        ("UNSUBSCRIBE", 1),
        ("SUBSCRIBE", 1),
    ]


def test_a_frozen_server_ends_the_cell_after_the_promised_wait() -> None:
    with Server() as own:
        own.freeze()
        before = time.monotonic()
        out = list(magics.run(own.client(), "PING\nPING", wait=0.3))
        assert time.monotonic() - before < 5
    assert out == ["> PING", "(no connection within 0.3 s: the cell ends here)"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[redis.RedisCluster]:
    """Two nodes; they share a user, since their passwords differ."""
    options = {"cluster_enabled": True, "cluster_node_timeout": 500}
    with Server.several(2, **options) as nodes:
        clients = [node.client() for node in nodes]
        for r, (first, last) in zip(clients, [(0, 8191), (8192, 16383)], strict=True):
            r.execute_command("ACL SETUSER", "tester", "on", ">secret", "~*", "&*", "+@all")
            r.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        clients[0].execute_command("CLUSTER MEET", "127.0.0.1", nodes[1].port)
        deadline = time.monotonic() + 20
        while any(r.cluster("INFO")["cluster_state"] != "ok" for r in clients):
            assert time.monotonic() < deadline, "no cluster"
            time.sleep(0.05)
        with redis.RedisCluster(
            host="127.0.0.1",
            port=nodes[0].port,
            username="tester",
            password="secret",
            protocol=3,
            decode_responses=True,
        ) as r:
            yield r


def test_in_a_cluster_each_line_goes_to_the_node_of_its_key(cluster: redis.RedisCluster) -> None:
    assert len({cluster.get_node_from_key(key).name for key in ("a", "b")}) == 2
    out = list(magics.run(cluster, "\n".join(f"SET {key} 1\nGET {key}" for key in "abcabc")))
    assert out[1::4] == ["OK"] * 6 and out[3::4] == ['"1"'] * 6
    for key in "ab":
        out = list(magics.run(cluster, f"MULTI\nINCR {key}\nINCR {key}\nEXEC\nGET {key}"))
        assert out[1::2] == ["OK", "QUEUED", "QUEUED", "1) (integer) 2\n2) (integer) 3", '"3"']
        out = list(magics.run(cluster, f"WATCH {key}\nMULTI\nGET {key}\nEXEC"))
        assert out[-1] == '1) "3"'
    assert "(error) MOVED" in "".join(magics.run(cluster, "WATCH a\nGET b"))  # not at the price of the WATCH
    assert "(error) MOVED" in "".join(magics.run(cluster, "MULTI\nGET a\nGET b"))


def test_blocking_commands_are_given_up(r: redis.Redis) -> None:
    before = time.monotonic()
    out = list(magics.run(r, "BLPOP none 0\nPING\nBLPOP none 0.1", wait=0.3))
    assert time.monotonic() - before < 5
    assert out[1] == "(no reply within 0.3 s: given up, and its connection closed)"
    assert out[2:] == ["> PING", "PONG", "> BLPOP none 0.1", "(nil)"]


def test_subscriptions_endless_commands_and_open_transactions(r: redis.Redis) -> None:
    out = list(magics.run(r, "SUBSCRIBE a b\nPUBLISH a x\nMONITOR\nMULTI\nINCR n", wait=2))
    text = "\n".join(out)
    assert '1) "message"\n2) "a"\n3) "x"' in text
    assert "MONITOR never end" in text
    assert out[-2] == "(the subscription ends with the cell)"
    assert out[-1].startswith("(MULTI without EXEC")
    assert r.get("n") is None


def test_the_server_goes_away(server: Server) -> None:
    with Server() as own:
        out = list(magics.run(own.client(), "SHUTDOWN NOSAVE\nPING", wait=2))
    assert out[1] == "(the server closed the connection)"
    assert out[3].startswith("(error)")


def test_no_connection_is_left_behind(r: redis.Redis) -> None:
    before = r.info("clients")["connected_clients"]
    list(magics.run(r, "PING\nBLPOP none 0\nSUBSCRIBE x", wait=0.1))
    deadline = time.monotonic() + 5
    while r.info("clients")["connected_clients"] > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert r.info("clients")["connected_clients"] <= before


# --- in IPython ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    config = Config()
    config.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()


def run_cell(shell: Any, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    result = shell.run_cell(text, store_history=False)
    captured = capsys.readouterr()
    return result, captured.out + captured.err


def test_the_redis_magic(shell: Any, r: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    register_magics(shell, r)
    shell.user_ns["mine"] = r
    for head in ("%%redis", "%%redis mine"):
        assert "> GET k\n(nil)\n" in run_cell(shell, f"{head}\nGET k", capsys)[1]
    result, out = run_cell(shell, "%%redis nobody\nGET k", capsys)
    assert not result.success and "not a Redis client of this notebook" in out


def test_the_wire_magic(shell: Any, r: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    register_magics(shell, r)
    shell.user_ns["r"] = r
    r.ping()
    result, out = run_cell(shell, "%%wire\nx = 5\nr.ping()\nr.incr('n', x)", capsys)
    assert "2 round trips · 2 commands · 44 B sent · 11 B received\n" in out
    assert (result.result, shell.user_ns["x"]) == (5, 5)
    assert run_cell(shell, "%%wire r\nr.ping();", capsys)[0].result is None
    result, _ = run_cell(shell, "%%wire\nr.ping()\n1/0", capsys)
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert sockets(r) == {"socket"}
