"""JavaScript cells on real servers, what Python and Node.js share, and the recordings in place of Node.js."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import redis
from IPython.core.error import UsageError
from test_kernel import PRELUDE, kernel
from test_server import alive, eventually

from labkit.lock import Lock
from labkit.rig import doctor, node, nodecell, noderun, replay
from labkit.rig.node import Engine, NodeMissing
from labkit.rig.noderun import Answer, JavaScriptError
from labkit.rig.server import Cluster, Server
from labkit.rig.tls import secured
from labkit.session import SessionStore
from labkit.stream import Consumer, Producer
from labkit.teach import refresh

CHAPTER = Path(__file__).parents[1] / "notebooks" / "01_connection.ipynb"


@pytest.fixture(scope="module", params=["one server", "cluster"])
def server(request: pytest.FixtureRequest) -> Server | Cluster:
    name = {"cluster": "the_cluster"}.get(request.param, "throwaway")
    started: Server | Cluster = request.getfixturevalue(name)
    return started


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Skips where Node.js or ioredis is missing, but fails in CI."""
    found = node.find()
    if found is None:
        why = f"Node.js {node.find_node()}, ioredis {node.installed() or 'missing'}: {node.REMEDY}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found


@pytest.fixture
def js(engine: Engine, server: Server | Cluster) -> Iterator[Any]:
    """js(source, name=value, …) is the last value, from a process that speaks to the module's server."""
    with server.client() as r:

        def run(source: str, **names: Any) -> Any:
            return noderun.run(engine, source, r, names=names, keep=True).value

        yield run


@pytest.fixture
def plain(engine: Engine) -> Any:
    """The same without any Redis."""
    return functools.partial(noderun.run, engine)


@pytest.mark.skipif("CI" not in os.environ, reason="says that CI runs chapter 01 with Node: CI is not set")
def test_chapter_01_runs_with_node_in_ci() -> None:
    """A chapter's kernel asks the same function in the same environment."""
    assert os.environ.get("LABKIT_NODE") != node.NONE
    assert isinstance(found := replay.engine(), Engine)
    assert found.ioredis == node.pinned()


# The cell


def test_an_error_of_a_command_that_nobody_awaits_is_one(js: Any, server: Server | Cluster) -> None:
    """Forgotten awaits are the usual mistake; what is caught, or only cut off by the cell's end, is none."""
    js("await redis.set('word', 'abc', 'EX', 60)")
    with pytest.raises(JavaScriptError, match="not an integer"):
        js("redis.incr('word');\nawait new Promise((soon) => setTimeout(soon, 200));\n'all is well'")
    with pytest.raises(JavaScriptError, match="not an integer"):
        js("redis.incr('word');\n'all is well'")
    assert js("await redis.incr('word').catch(() => 'caught')") == "caught"
    assert js("await Promise.allSettled([redis.incr('word')]).then(([one]) => one.status)") == "rejected"
    assert js("redis.blpop('nothing', 1);\n5") == 5


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        ("1 + 1", "2\n"),
        ("1 + 1;", ""),
        ("const a = 1\na + 1", "2\n"),
        ("[1,\n 2].map((n) => ({ n }))", "[ { n: 1 }, { n: 2 } ]\n"),
        ("const a = 5\na\n  - 1 // less", "4\n"),
        ("function f() {\n  return 3;\n}", ""),
        ("for (const n of [1, 2])\n  console.log(n)", "1\n2\n"),
        ("let n = 0;\nwhile (n < 3)\n  console.log((n += 1))", "1\n2\n3\n"),
        ("if (false)\n  console.log('no')", ""),
        ("const f = () =>\n  5", ""),
        ("if (true) {\n  console.log('x', true);\n}", "x true\n"),
        ("console.error('oh');\nawait Promise.resolve('é')", "oh\n'é'\n"),
        ("setTimeout(() => console.log('late'), 20);\n'first'", "'first'\nlate\n"),
        ("process.exit(3)", ""),
        ("// nothing\n", ""),
    ],
)
def test_what_a_cell_prints(source: str, printed: str, plain: Any, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a kernel
    assert plain(source).printed == printed
    assert capfd.readouterr().out == printed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("const a = 1;\na.b.c", "TypeError: Cannot read properties of undefined (reading 'c') (line 2)"),
        ("let x = ;", "SyntaxError: Unexpected token ';' (line 1)"),
        ("\nrequire('nix')", "Error: Cannot find module 'nix' (line 2)"),
        ("await Promise.reject(new Error('one\\ntwo'))", "Error: one (line 1)"),
        ("throw 5", "thrown: 5"),
        ("setTimeout(() => nix(), 1);\nawait new Promise(() => {})", "ReferenceError: nix is not defined"),
        ("await new Promise(() => {})", "an await of this cell can never end"),
        ("Promise.reject(new Error('nobody waits'));\n5", "Error: nobody waits (line 1)"),
        ("setTimeout(() => nix(), 20);\n5", "ReferenceError: nix is not defined (line 1)"),
        ("process.kill(process.pid, 9)", "its process ended with code -9 before the cell did"),
        ("redis.ping()", "Error: no client of Redis was given to this cell (line 1)"),
    ],
)
def test_an_error_is_one_line_without_paths(source: str, message: str, plain: Any) -> None:
    with pytest.raises(JavaScriptError) as caught:
        plain(source)
    (said,) = caught.value._render_traceback_()
    assert said.startswith(f"JavaScriptError: {message}") and "\n" not in said and "/" not in said


def test_values_go_both_ways(plain: Any) -> None:
    names = {"token": 'a"b\u2028é', "list": [1, None, {"x": 2.5}], "yes": True}
    answer = plain("({ token, list, yes, more: list.length })", names=names, keep=True)
    assert answer.value == {**names, "more": 3}
    with pytest.raises(JavaScriptError, match="circular"):
        plain("const a = {}; a.a = a;\na", keep=True)
    for value in ("new Map([[1, 2]])", "new Set([1])", "() => 1"):
        with pytest.raises(JavaScriptError, match="--out: JSON cannot hold"):
            plain(value, keep=True)


def test_a_cell_that_does_not_end_is_ended(plain: Any) -> None:
    for source in (
        "while (true) {}",
        "setInterval(() => {}, 10);",
        "console.log('x'); await new Promise(r => setTimeout(r, 9e4))",
    ):
        with pytest.raises(JavaScriptError, match=r"had not ended after 0\.6 s"):
            plain(source, seconds=0.6)
    with pytest.raises(ValueError, match="seconds is 0"):
        plain("1", seconds=0)


def test_a_during_that_was_never_called_is_told(plain: Any) -> None:
    called: list[int] = []
    for source in ("1;", "process.stdout.write('no line');"):
        with pytest.raises(JavaScriptError, match=r"printed no line.*Remedy: console\.log"):
            plain(source, during=lambda: called.append(1))
    with pytest.raises(JavaScriptError, match="nix is not defined"):
        plain("nix", during=lambda: called.append(1))
    assert not called
    plain("console.log('x')", during=lambda: called.append(1))
    assert called == [1]


def test_an_interrupted_cell_leaves_no_process_and_neither_does_a_killed_kernel(engine: Engine) -> None:
    cell = "%%node\nconsole.log(process.pid); while (true) {}"
    with kernel() as k:
        k.run(PRELUDE)
        first = int(k.start(cell))
        k.manager.interrupt_kernel()
        assert k.rest().startswith("KeyboardInterrupt")
        assert eventually(lambda: not alive(first))
        assert k.run("%%node\nawait redis.ping()") == "'PONG'"
        second = int(k.start(cell))
        assert alive(second)
        k.manager.signal_kernel(9)
        assert eventually(lambda: not alive(second))


def test_the_line_behind_the_magic() -> None:
    r, other = redis.Redis(), redis.Redis()
    namespace = {"far": other, "r": r, "token": "x", "thing": object(), "f": print, "new": 1}
    asked = nodecell.understand(namespace, "far token --while f --out got --seconds 2", r)
    assert asked == (other, {"token": "x"}, print, "got", 2)
    assert nodecell.understand(namespace, "", r) == (r, {}, None, None, noderun.SECONDS)
    for line, why in {
        "nix": "no variable 'nix'",
        "far r": "far and r are clients",
        "thing": "thing is a object, which JSON cannot hold",
        "new": "cannot be called 'new'",
        "--while token": "token is no function",
        "--out 1x": "no name for a variable",
        "--wat": "unrecognized",
        "--seconds x": "invalid float",
        "--seconds 0": "it must be a positive number",
        "--seconds nan": "it must be a positive number",
        "it's": "No closing quotation",
    }.items():
        with pytest.raises(UsageError, match=why):
            nodecell.understand(namespace, line, r)


# On every kind of server


def test_python_reads_what_node_writes(js: Any, server: Any) -> None:
    with server.client() as r:
        assert (
            js("await redis.set(key, 'Zürich', 'EX', 60);\nawait redis.get(key)", key="workbook:n")
            == "Zürich"
        )
        assert r.get("workbook:n") == "Zürich" and 0 < r.ttl("workbook:n") <= 60


def test_over_tls_a_socket_and_with_another_user(engine: Engine, tmp_path: Path) -> None:
    with secured(mutual=True, unixsocket=str(tmp_path / "s")) as place:
        with place.client() as r:
            assert noderun.run(engine, "await redis.ping()", r, keep=True).value == "PONG"
            r.acl_setuser("ada", enabled=True, passwords=["+p@ss/w:rd"], keys=["*"], categories=["+@all"])
        socket = f"unix://ada:p%40ss%2Fw%3Ard@{tmp_path}/s?db=3"
        with redis.Redis.from_url(socket) as r:
            who = noderun.run(engine, "await redis.set('a', 1);\nawait redis.acl('WHOAMI')", r, keep=True)
            assert who.value == "ada" and r.get("a") == b"1"
        with redis.Redis.from_url(place.url, retry=None) as stranger:
            where = noderun.address(stranger)
            where["options"]["maxRetriesPerRequest"] = 0
            with pytest.raises(JavaScriptError, match=r"MaxRetriesPerRequestError: .*\(.*certificate"):
                _run_at(engine, where)


def _run_at(engine: Engine, where: dict[str, Any]) -> Answer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noderun, "address", lambda _: where)
        return noderun.run(engine, "await redis.ping()", object())


def test_neither_password_nor_address_is_shown(engine: Engine, throwaway: Server, capfd: Any) -> None:
    with throwaway.client() as r:
        noderun.run(engine, "console.log(redis);\n[redis, Redis.prototype]", r)
        said = capfd.readouterr().out
        assert said.startswith("Redis { wait }\n[ Redis { wait }")
        texts = ("redis.options.password", "`${redis.options.host}:${redis.options.port}`", "process.cwd()")
        for text in texts:
            with pytest.raises(JavaScriptError) as caught:
                noderun.run(engine, f"throw new Error({text})", r)
            assert str(caught.value) in (
                "Error: *** (line 1)",
                "Error: the server (line 1)",
                "Error: . (line 1)",
            )
        assert noderun.run(engine, "process.env.LABKIT_REDIS === undefined", r, keep=True).value is True


def test_neither_password_nor_address_is_in_a_file(engine: Engine, throwaway: Server) -> None:
    source = """
    const task = Buffer.alloc(65536);
    require("fs").readSync(Number(process.argv[2]), task, 0, task.length, 0);
    const { password, port } = redis.options;
    ["readSync", password, String(port)].map((text) => task.includes(text))
    """
    with throwaway.client() as r:
        assert noderun.run(engine, source.rstrip(), r, keep=True).value == [True, False, False]


# What the two languages share

SESSION = """
const [tag, secret] = token.split(".");
const id = require("crypto").createHash("sha256").update(secret).digest("hex");
const prefix = `workbook:s:{${tag}}:`;
await redis.eval(script, 1, prefix + id, id, `${prefix}user:`, 3600_000)
"""
LOG_IN = """
const id = require("crypto").createHash("sha256").update(secret).digest("hex");
const prefix = `workbook:s:{${tag}}:`;
const fields = ["@user", "bob", "device", JSON.stringify("laptop")];
await redis.eval(script, 2, prefix + id, `${prefix}user:bob`, id, 60_000, 0, ...fields);
"""


def test_a_session_goes_both_ways(js: Any, server: Any) -> None:
    with server.client() as r:
        store = SessionStore(r, ttl=60, name="workbook:s")
        token = store.create("ada", cart=["book"])
        id, left, words = js(SESSION, token=token, script=store.FIND + store.GET)
        assert store.key(token).endswith(id) and left > 3_500_000
        assert json.loads(words[words.index("cart") + 1]) == ["book"]
        (listed,) = store.active("ada")
        assert listed.expires_in > 3500 and r.ttl(store.index_key("ada")) > 3500
        tag, secret = hashlib.sha256(b"bob").hexdigest()[:12], "s" * 43
        js(LOG_IN, tag=tag, secret=secret, script=store.CREATE)
        session = store.get(f"{tag}.{secret}")
        assert session is not None and session.user_id == "bob" and session.data == {"device": "laptop"}


LOCK = """
const acquire = (token) => redis.eval(scripts[0], 2, lock, fence, token, 30_000);
const release = (token) => redis.eval(scripts[1], 2, lock, wake, token, 30_000);
"""


def test_a_lock_of_one_language_holds_in_the_other(js: Any, server: Any) -> None:
    with server.client() as r:
        lock = Lock(r, f"workbook:l:{time.time_ns()}", ttl=30)
        keys = {"lock": lock.key, "fence": lock.fence_key, "wake": lock.wake_key}
        node = functools.partial(js, scripts=[lock.ACQUIRE, lock.RELEASE], **keys)
        assert node(LOCK + "[await release('node'), await acquire('node'), await release('other')]") == [
            0,
            1,
            0,
        ]
        assert not lock.acquire() and r.get(lock.key) == "node" and 0 < r.ttl(lock.key) <= 30
        assert node(LOCK + "await release('node')") == 1 and lock.acquire(wait=1)
        assert lock.fence == 2 and node(LOCK + "await acquire('node')") < 0
        assert lock.release() and node(LOCK + "await acquire('node')") == 3


def test_jobs_go_both_ways(js: Any, server: Any) -> None:
    stream, sold = "workbook:{j}", "workbook:{j}:sold"
    add = (
        "for (const item of items) await redis.xadd(stream, '*', 'item', JSON.stringify(item), '@key', item);"
    )
    with server.client() as r:
        r.unlink(stream, sold)
        js(add, stream=stream, items=["book", "pen", "book"])

        def handle(entry: Any, effects: Any) -> None:
            effects.hincrby(sold, entry.event["item"], 1)

        report = Consumer(r, stream, f"g{time.time_ns()}", "one", handle, block=0).run(until_idle=True)
        assert (report.applied, report.skipped, report.dead) == (2, 1, 0), "the same key counts once"
        assert r.hgetall(sold) == {"book": "1", "pen": "1"}
        Producer(r, stream).add({"item": "cup", "price": 1.5})
        words = js("(await redis.xrevrange(stream, '+', '-', 'COUNT', 1))[0][1]", stream=stream)
        assert {name: json.loads(value) for name, value in zip(words[::2], words[1::2], strict=True)} == {
            "item": "cup",
            "price": 1.5,
        }


# Retries, measured

ATTEMPTS = """
const client = redis.duplicate({ retryStrategy: (times) => Math.min(times * 50, 2000) });
const attempts = [];
let lost;
client.on("error", () => {});
await client.ping();
const back = new Promise((ready) => client.on("ready", ready));
client.on("close", () => (lost ??= performance.now()));
client.on("connecting", () => attempts.push(performance.now()));
console.log("connected");
await back;
[attempts.map((at) => at - lost), await client.ping()]
"""


def test_the_attempts_of_a_retry_strategy_while_a_server_is_away(engine: Engine) -> None:
    with Server() as server, server.client() as r:

        def outage() -> float:
            server.kill()
            killed = time.monotonic()
            time.sleep(0.4)
            server.start()
            return time.monotonic() - killed

        answer = noderun.run(engine, ATTEMPTS, r, keep=True, during=outage)
        attempts, said = answer.value
        assert said == "PONG" and answer.during >= 0.4 and answer.printed == "connected\n"
        assert len(attempts) >= 3 and attempts == sorted(attempts)
        assert attempts[-1] > 0.9 * sum(50 * times for times in range(1, len(attempts) + 1))
        assert sum(at > answer.during * 1000 + 5 for at in attempts) <= 1


def test_what_was_sent_and_not_answered_is_sent_again(engine: Engine) -> None:
    source = """
    const client = redis.duplicate();
    await client.ping();
    client.stream.pause();
    const answer = client.incr("n");
    client.rpush("ran", "yes");
    await redis.blpop("ran", 20);
    client.stream.destroy();
    await answer
    """
    with Server() as server, server.client() as r:
        assert noderun.run(engine, source.rstrip(), r, keep=True).value == 2
        assert r.get("n") == "2"


def test_fifty_callers_share_one_connection(engine: Engine, throwaway: Server) -> None:
    source = "(await Promise.all(Array.from({ length: 50 }, () => redis.incr(key)))).length"
    with throwaway.client() as r:

        def accepted() -> int:
            return int(r.info("stats")["total_connections_received"])

        before = accepted()
        names = {"key": f"workbook:{time.time_ns()}"}
        assert noderun.run(engine, source, r, names=names, keep=True).value == 50
        assert accepted() - before == 1


def test_max_retries_per_request_counts_attempts(engine: Engine) -> None:
    source = """
    const found = [];
    for (const limit of [undefined, 0, 3]) {
      const options = limit === undefined ? {} : { maxRetriesPerRequest: limit };
      const client = redis.duplicate({ retryStrategy: () => 1, ...options });
      let attempts = 0;
      client.on("error", () => {}).on("connecting", () => (attempts += 1));
      await client.ping().catch((error) => found.push([error.name, attempts]));
      client.disconnect();
    }
    """
    with Server() as server, server.client() as r:
        server.kill()
        answer = noderun.run(engine, source.rstrip() + "\nfound", r, keep=True)
    name = "MaxRetriesPerRequestError"
    assert answer.value == [[name, 21], [name, 1], [name, 4]] and answer.sent == ()


# Recordings

CELL = """await redis.set(place.key, token, "EX", 60);
console.log("stored", token);
await redis.set(`${place.key}:id`, token.slice(4), "EX", 60);
[await redis.set(place.key, "x", "NX"), await redis.incrby("workbook:counted", 5)]"""


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file of recordings, and nothing recorded by this process."""
    monkeypatch.setattr(replay, "path", lambda: tmp_path / "recorded.json")
    monkeypatch.setattr(replay, "_kept", {})
    (tmp_path / "recorded.json").write_text(json.dumps({"other": [1, 2]}))
    return tmp_path / "recorded.json"


def play(r: Any, token: str, line: str = "place token --out got", cell: str = CELL) -> dict[str, Any]:
    names: dict[str, Any] = {"token": token, "place": {"key": f"workbook:{token}"}}
    nodecell.cell(SimpleNamespace(user_ns=names), line, cell, r)
    return names


def test_a_recording_prints_the_same_and_does_the_same_with_the_values_of_today(
    engine: Engine, throwaway: Server, recordings: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with throwaway.client() as r:
        monkeypatch.setenv("LABKIT_RECORD", "1")
        play(r, "token-of-yesterday")
        assert capfd.readouterr().out == "stored token-of-yesterday\n"
        monkeypatch.delenv("LABKIT_RECORD")
        assert "yesterday" not in recordings.read_text() and json.loads(recordings.read_text())["other"] == [
            1,
            2,
        ]
        monkeypatch.setenv("LABKIT_NODE", "none")
        r.unlink("workbook:counted")
        got = play(r, "another-one-today.")["got"]
        assert capfd.readouterr().out == "stored another-one-today.\n" and got == [None, 5]
        assert r.get("workbook:another-one-today.") == "another-one-today."
        assert r.get("workbook:another-one-today.:id") == "her-one-today."
        assert r.get("workbook:counted") == "5" and 0 < r.ttl("workbook:another-one-today.") <= 60
        r.set("workbook:counted", -10)
        play(r, "another-one-today.")
        told = "(recorded; here Redis answers otherwise to INCRBY: negative, not something)\n"
        assert capfd.readouterr().out.endswith(told)


def test_a_recording_is_of_one_cell_to_the_letter(
    engine: Engine, throwaway: Server, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with throwaway.client() as r:
        play(r, "nothing-is-recorded-unless-asked")
        assert json.loads(recordings.read_text()) == {"other": [1, 2]}
        monkeypatch.setenv("LABKIT_RECORD", "1")
        play(r, "token-of-yesterday")
        monkeypatch.setenv("LABKIT_NODE", "none")
        play(r, "token-of-yesterday", cell=CELL + "\n\n")
        for line, cell in (("place token --out got", CELL.replace("60", "61")), ("place token", CELL)):
            with pytest.raises(NodeMissing, match=r"no recording is of it\. Remedy: unset LABKIT_NODE"):
                play(r, "token-of-yesterday", line, cell)


def test_in_ci_nothing_is_replayed_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "find_node", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("LABKIT_NODE", raising=False)
    found = replay.engine()
    assert isinstance(found, replay.Recorded) and found.ioredis == node.pinned()
    said = repr(found)
    assert "LABKIT_NODE" not in said
    for words in (
        "There is no Node.js 16 or newer here.",
        "recorded with Node.js",
        "sends the same commands",
        "npm install",
    ):
        assert words in said
    monkeypatch.setenv("CI", "true")
    with pytest.raises(NodeMissing, match=r"There is no Node\.js 16 or newer here\. Remedy: put Node\.js 16"):
        replay.engine()
    monkeypatch.setenv("LABKIT_NODE", "none")
    found = replay.engine()
    assert isinstance(found, replay.Recorded)
    assert repr(found).startswith("LABKIT_NODE is 'none': no Node.js 16 or newer is taken from there.")
    assert "To run them for real: unset LABKIT_NODE" in repr(found)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(node, "find_node", lambda: ("node", "20.0.0", "PATH"))
    monkeypatch.setattr(node, "installed", lambda: "")
    said = repr(replay.engine())
    assert "Node.js is here, but ioredis is not." in said and "npm install" in said
    assert "put Node.js" not in said
    check = doctor._node()
    assert check.state == "note" and "ioredis is not" in check.found and "npm install" in check.remedy
    monkeypatch.setattr(node, "find_node", lambda: None)
    assert "uv sync --group node" in doctor._node().remedy


def test_on_windows_the_recordings_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(node, "POSIX", False)
    monkeypatch.setattr(node, "find_node", lambda: ("node", "20.0.0", "PATH"))
    monkeypatch.setattr(node, "installed", node.pinned)
    said = repr(replay.engine())
    assert "run on Linux and macOS" in said and said.endswith("open the workbook in WSL.")


def test_npm_is_that_of_the_node_that_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    script.parent.mkdir(parents=True)
    script.touch()
    for file, version in {
        tmp_path / "node": "v12.22.0",
        tmp_path / "wheel" / "bin" / "node": "v22.1.0",
    }.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\necho {version}\n")
        file.chmod(0o755)
    monkeypatch.delenv("LABKIT_NODE", raising=False)
    monkeypatch.setattr(node, "_home", lambda: tmp_path / "wheel")
    monkeypatch.setenv("PATH", str(tmp_path))
    wheels = [str(tmp_path / "wheel" / "bin" / "node"), str(script)]
    assert node.npm() == wheels, "there is no other"
    (tmp_path / "npm").write_text("#!/bin/sh\n")
    (tmp_path / "npm").chmod(0o755)
    assert node.npm() == wheels, "the one on PATH runs on a Node.js that is too old"
    (tmp_path / "node").write_text("#!/bin/sh\necho v20.1.0\n")
    node._version.cache_clear()
    assert node.npm() == [str(tmp_path / "npm")]
    (tmp_path / "npm").unlink()
    script.unlink()
    assert node.npm() == []
    with pytest.raises(NodeMissing, match=r"no npm here\. Remedy: put Node.*uv sync --group node"):
        node.install()


def test_a_node_that_is_too_old_or_does_not_run_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "node"
    old.write_text("#!/bin/sh\necho v12.22.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("LABKIT_NODE", str(old))
    assert node.find_node() is None
    old.write_text("#!/bin/sh\necho v16.1.0\n")
    node._version.cache_clear()
    assert node.find_node() == (str(old), "16.1.0", "LABKIT_NODE")
    monkeypatch.setenv("LABKIT_NODE", str(tmp_path / "missing"))
    assert node.find_node() is None
    monkeypatch.delenv("LABKIT_NODE")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node.find_node() == (str(old), "16.1.0", "PATH")


def act() -> list[Any]:
    """The cells of act 5 and, of those before it, what they need."""
    chapter: Any = nbformat.read(CHAPTER, as_version=4)  # type: ignore[no-untyped-call]
    texts = [cell.source for cell in chapter.cells]
    begin = next(at for at, text in enumerate(texts) if text.startswith("## Act 5 "))
    end = next(at for at, text in enumerate(texts) if text.startswith("## In production"))
    code = [cell for cell in chapter.cells if cell.cell_type == "code"]
    needed = [code[0], next(cell for cell in code if cell.source.startswith("def keep_asking("))]
    return [*needed, *(cell for cell in chapter.cells[begin:end] if cell.cell_type == "code")]


def test_each_cell_of_the_chapter_has_its_recording() -> None:
    stored = json.loads(replay.path().read_text())["node"]
    assert stored["made"]["ioredis"] == node.pinned()
    recorded = [(cell["line"], "\n".join(cell["source"])) for cell in stored["cells"]]
    cells = [cell.source.partition("\n") for cell in act() if cell.source.startswith("%%node")]
    assert recorded == [(first.removeprefix("%%node").strip(), rest) for first, _, rest in cells]


def test_without_node_the_act_says_so_once_and_prints_what_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABKIT_NODE", "none")
    cells = act()
    stored = [_text(cell) for cell in cells]
    notebook: Any = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    refresh.execute(notebook, CHAPTER.parent)
    found = [_text(cell) for cell in cells]
    compared = ["nbval-ignore-output" not in cell.metadata.get("tags", []) for cell in cells]
    assert [text for text, kept in zip(found[1:], compared[1:], strict=True) if kept] == [
        text for text, kept in zip(stored[1:], compared[1:], strict=True) if kept
    ]
    assert sum("LABKIT_NODE is 'none': no Node.js 16" in text for text in found) == 1
    assert sum("recorded" in text for text in found) == 1
    measured = next(text for text in found if text.startswith("{'ioredis': "))
    recorded = [cell for cell in json.loads(replay.path().read_text())["node"]["cells"] if cell["during"]]
    assert ast.literal_eval(measured)["ioredis"] == len(recorded[0]["value"]), "it is the recorded one"


def _text(cell: Any) -> str:
    return "".join(
        output.text if output.output_type == "stream" else output.data["text/plain"]
        for output in cell.outputs
    )
