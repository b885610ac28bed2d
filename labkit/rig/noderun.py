"""A cell of JavaScript in a Node process of its own.

    answer = run(engine, "await redis.ping()", r)     # what it printed has been printed here

Each cell has a fresh process: it starts in about 0.1 s, no state of one cell can spoil another, and what a
cell forgets to close ends with it. It speaks to the same server as the client that it is given: host, port or
socket, password, database and TLS are in its environment, and in no file. `notebooks/node/cell.js` is the
other half.
"""

from __future__ import annotations

import codecs
import json
import os
import select
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import redis

from labkit import LabkitError
from labkit.rig import watchdog
from labkit.rig.node import Engine, folder

SECONDS = 30.0
"""The time limit of a cell."""


class JavaScriptError(LabkitError):
    """A cell of JavaScript failed: its message in one line, and the `line` of the cell (None: not known)."""

    def __init__(self, message: str, line: int | None = None) -> None:
        self.message, self.line = message, line
        super().__init__(message + (f" (line {line})" if line else ""))

    def _render_traceback_(self) -> list[str]:
        return [f"JavaScriptError: {self}"]


@dataclass(frozen=True)
class Answer:
    """Of a cell: what it printed, its last value if that was asked for, what `during` returned, and `sent`:
    each command that was answered, with the kind of its reply ("nil", "zero", "negative", "error" or
    "something")."""

    printed: str
    value: Any
    during: Any
    sent: tuple[tuple[tuple[str, ...], str], ...]


def run(
    engine: Engine,
    source: str,
    r: Any = None,
    *,
    names: Mapping[str, Any] | None = None,
    keep: bool = False,
    during: Callable[[], Any] | None = None,
    seconds: float = SECONDS,
) -> Answer:
    """Run a cell of JavaScript, and print what it prints while it does.

    `redis` in it is an ioredis client of the server (or cluster) of `r`, made when it is first used; `names`
    are its variables, by way of JSON; `require` finds what is in notebooks/node. `await` may stand anywhere.
    The value of the last expression is printed, or with `keep` returned. `during()` is called once the cell
    has printed its first line, while it goes on. It ends when nothing is left to do, as a program does: its
    open connections are closed for it, its timers are waited for.

    Raises JavaScriptError for an error of the cell, one that takes longer than `seconds`, a process that is
    killed, or a `during` that was never called; TypeError or ValueError for what JSON cannot hold. However
    this ends, also by an interrupt or with the kernel's death, the process is gone.
    """
    if seconds <= 0:
        raise ValueError(f"seconds is {seconds}; it must be positive")
    where = address(r)
    task = {"source": source, "names": dict(names or {}), "keep": keep}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile() as answered:
        json.dump(task, given, allow_nan=False)
        given.seek(0)
        with _child(engine, where, given.fileno(), answered.fileno()) as process:
            printed, returned = _listen(process, during, deadline, seconds)
            _await_end(process, deadline, seconds)
        answered.seek(0)
        answer = _understood(answered.read(), process.returncode, printed, returned)
    if during is not None and "\n" not in printed:
        raise JavaScriptError("the cell printed no line, so --while was never called. Remedy: console.log()")
    return answer


def _understood(written: bytes, code: int, printed: str, returned: Any) -> Answer:
    if not written:
        raise JavaScriptError(f"its process ended with code {code} before the cell did")
    said = json.loads(written)
    if said["error"] is not None:
        raise JavaScriptError(said["error"], said["line"])
    sent = tuple((tuple(words), kind) for words, kind in said["sent"] if kind)
    return Answer(printed, said["value"], returned, sent)


@contextmanager
def _child(engine: Engine, where: Mapping[str, Any], task: int, answer: int) -> Iterator[Any]:
    """The process of a cell, on the watchdog's list; killed in the end in any case."""
    guard, told = watchdog.get(), {**where, "hidden": _hidden(where)}
    command = [engine.path, "--no-warnings", str(folder() / "cell.js"), str(task), str(answer)]
    process = subprocess.Popen(
        watchdog.listed(command),
        stdin=guard.pipe,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**_plain(os.environ), "LABKIT_REDIS": json.dumps(told), "NO_COLOR": "1"},
        pass_fds=(task, answer),
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        guard.forget(process.pid)


def _plain(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what asks for colours: a kernel does, and they would stand in the stored output."""
    return {
        name: value for name, value in environment.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")
    }


def _listen(
    process: subprocess.Popen[bytes], during: Callable[[], Any] | None, deadline: float, seconds: float
) -> tuple[str, Any]:
    """Print what comes until its end; (all of it, what `during` returned)."""
    assert process.stdout is not None
    decoder, printed, returned = codecs.getincrementaldecoder("utf-8")("replace"), "", None
    while data := _chunk(process.stdout, deadline, seconds):
        text = decoder.decode(data)
        print(text, end="", flush=True)
        printed += text
        if during is not None and "\n" in printed:
            returned, during = during(), None
    return printed, returned


def _chunk(stdout: IO[bytes], deadline: float, seconds: float) -> bytes:
    if not select.select([stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
        raise _late(seconds)
    return os.read(stdout.fileno(), 65536)


def _await_end(process: subprocess.Popen[bytes], deadline: float, seconds: float) -> None:
    try:
        process.wait(max(deadline - time.monotonic(), 0.001))
    except subprocess.TimeoutExpired:
        raise _late(seconds) from None


def _late(seconds: float) -> JavaScriptError:
    return JavaScriptError(
        f"the cell had not ended after {seconds:g} s, and its process was. Remedy: await less, clear its "
        "timers, or give it more: %%node --seconds"
    )


def address(r: Any) -> dict[str, Any]:
    """What ioredis needs to reach the server, or the cluster, of a synchronous redis-py client; {} for None.

    {"options": …, "tls": …}, and for a cluster also "cluster": its nodes. It holds the password.
    """
    if r is None:
        return {}
    cluster = hasattr(r, "get_nodes")
    pool = r.get_redis_connection(r.get_default_node()).connection_pool if cluster else r.connection_pool
    known, kind = pool.connection_kwargs, pool.connection_class
    names = {"username": "username", "password": "password", "db": "db"}
    options = {name: known[theirs] for name, theirs in names.items() if known.get(theirs)}
    where: dict[str, Any] = {"options": options, "tls": None}
    if cluster:
        where["cluster"] = [{"host": node.host, "port": int(node.port)} for node in r.get_nodes()]
    elif "path" in known:
        options["path"] = known["path"]
    else:
        options |= {"host": known.get("host", "localhost"), "port": int(known.get("port", 6379))}
    if issubclass(kind, redis.SSLConnection):
        where["tls"] = _tls(known)
    return where


def _tls(known: Mapping[str, Any]) -> dict[str, Any]:
    verify = known.get("ssl_cert_reqs", "required") not in ("none", None, ssl.CERT_NONE)
    files = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
    return {
        **{name: known[theirs] for name, theirs in files.items() if known.get(theirs)},
        "verify": verify,
        "names": verify and bool(known.get("ssl_check_hostname", True)),
    }


def _hidden(where: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an error must not show: passwords, addresses, and folders of this machine."""
    options = where.get("options", {})
    nodes = [options, *where.get("cluster", [])]
    found = [(f"{node['host']}:{node['port']}", "the server") for node in nodes if "host" in node]
    found += [(options["path"], "the server's socket")] if "path" in options else []
    found += [(options["password"], "***")] if "password" in options else []
    return [*found, (str(folder()), "node"), (str(Path.cwd()), "."), (str(Path.home()), "~")]
