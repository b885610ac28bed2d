"""The cell magics: %%redis talks to the server as redis-cli does, %%wire counts what a cell cost."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from typing import Any

from redis.exceptions import RedisError

from labkit.rig.resp import Reply, as_cli, pack, parse, split, text
from labkit.rig.wire import tap

WAIT = 5.0
"""Seconds that %%redis waits for one reply; a longer blocking command is given up, with a sentence."""

ENDLESS = ("MONITOR", "SYNC", "PSYNC")

_default: Any = None


def register(shell: Any, r: Any) -> None:
    """Give the shell both magics; `r` is their client where a cell names none."""
    global _default
    _default = r

    def redis_magic(line: str, cell: str) -> None:
        for out in run(_client(shell, line), cell):
            print(out)

    def wire_magic(line: str, cell: str) -> Any:
        with tap(_client(shell, line)) as tape:
            value = _execute(shell, cell)
        print(tape.summary)
        return value

    shell.register_magic_function(redis_magic, "cell", "redis")
    shell.register_magic_function(wire_magic, "cell", "wire")


def _client(shell: Any, name: str) -> Any:
    from IPython.core.error import UsageError

    name = name.strip()
    r = shell.user_ns.get(name) if name else _default
    if not hasattr(r, "connection_pool") and not hasattr(r, "get_nodes"):
        raise UsageError(
            f"{name!r} is not a Redis client of this notebook: name one, or nothing for that of connect()."
        )
    return r


def _execute(shell: Any, cell: str) -> Any:
    """Run a cell in the notebook's namespace; the value of its last expression, None if it ends with `;`."""
    code = shell.transform_cell(cell)
    tree = ast.parse(code)
    name = shell.compile.cache(code, shell.execution_count)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), shell.user_ns)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), name, "eval"), shell.user_ns)
    return None if cell.rstrip().endswith(";") else value


def run(r: Any, cell: str, wait: float = WAIT) -> Iterator[str]:
    """Send the commands of a cell, one a line; yield `> command` and its reply, as redis-cli prints it.

    The cell has a connection of its own, with the client's address and credentials: MULTI, WATCH and SELECT
    hold until its end. Blank lines and `# comments` (also behind a command, after two spaces) are skipped. No
    reply within `wait` seconds: a sentence, and the next line goes over a new connection.
    """
    session = _Session(r, wait)
    try:
        for line in cell.splitlines():
            if line := re.sub(r"(^|\s{2,})#\s.*|^#.*", "", line.strip()).strip():
                yield f"> {line}"
                yield from session.ask(line)
        yield from session.end()
    except RedisError as error:
        yield f"(error) {error}"
    finally:
        session.close()


class _Session:
    """One connection, spoken to in raw bytes: redis-py would already have turned the replies into Python."""

    def __init__(self, r: Any, wait: float) -> None:
        if hasattr(r, "get_nodes"):
            r = r.get_redis_connection(r.get_random_node())
        self._pool, self._wait = r.connection_pool, wait
        self._connection: Any = None
        self._received = b""
        self._in_multi = self._listening = False

    def ask(self, line: str) -> Iterator[str]:
        try:
            arguments = split(line)
        except ValueError as error:
            yield f"(error) {error}"
            return
        name = text(arguments[0]).upper()
        if name in ENDLESS:
            yield f"(error) the replies to {name} never end: run it in redis-cli, in a terminal."
            return
        try:
            self._send(arguments)
            yield from self._until_reply(name, len(arguments) - 1)
            yield from self._messages()
        except TimeoutError:
            yield f"(no reply within {self._wait:g} s: given up, and its connection closed)"
            self.close()
        except OSError:
            yield "(the server closed the connection)"
            self.close()

    def _send(self, arguments: list[bytes]) -> None:
        if self._connection is None:
            self._connection = self._pool.connection_class(**self._pool.connection_kwargs)
            self._connection.connect()
        self._connection._get_socket().sendall(pack(arguments))

    def _until_reply(self, name: str, arguments: int) -> Iterator[str]:
        """Print what comes until the command is answered; a SUBSCRIBE is answered by one push a channel."""
        subscribing = name.endswith("SUBSCRIBE")
        wanted = max(1, arguments) if subscribing else 1
        deadline = time.monotonic() + self._wait
        while wanted:
            reply = self._next(deadline)
            yield as_cli(reply)
            if reply.kind != ">" or (subscribing and text(reply.value[0].value).upper() == name):
                wanted -= 1
            refused = reply.kind in "-!"
            if refused:
                wanted = 0
        if subscribing and not refused:
            self._listening = not name.endswith("UNSUBSCRIBE")
        if not refused:
            self._in_multi = name == "MULTI" or (self._in_multi and name not in ("EXEC", "DISCARD", "RESET"))

    def _next(self, deadline: float) -> Reply:
        while (found := parse(self._received)) is None:
            socket = self._connection._get_socket()
            socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = socket.recv(65536)
            if not data:
                raise ConnectionResetError
            self._received += data
        self._received = self._received[found[1] :]
        return found[0]

    def _messages(self) -> Iterator[str]:
        """While subscribed: what is published within a moment after each command."""
        deadline = time.monotonic() + 0.05
        while self._listening:
            try:
                yield as_cli(self._next(deadline))
            except TimeoutError:
                return

    def end(self) -> Iterator[str]:
        if self._connection is None:
            return
        if self._listening:
            yield "(the subscription ends with the cell)"
        if self._in_multi:
            yield "(MULTI without EXEC: the transaction ends with the cell, nothing of it was run)"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
        self._connection, self._received = None, b""
        self._in_multi = self._listening = False
