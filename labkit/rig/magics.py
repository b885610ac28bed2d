"""The cell magics: %%redis is redis-cli, %%wire counts what a cell cost, %%node runs JavaScript."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from labkit.rig.resp import Reply, as_cli, pack, parse, split, text
from labkit.rig.wire import tap

WAIT = 5.0
"""Seconds that %%redis waits for one reply; a longer blocking command is given up, with a sentence."""

COMMENT = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\'|[^'])*')|(?:^|\s{2,})#\s.*|^#.*""")
"""A comment, or (in its group) a quoted argument, in which nothing is one."""

ENDLESS = ("MONITOR", "SYNC", "PSYNC")

_default: Any = None


def register(shell: Any, r: Any) -> None:
    """Give the shell the magics; `r` is their client where a cell names none."""
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

    def node_magic(line: str, cell: str) -> None:
        from labkit.rig import nodecell

        nodecell.cell(shell, line, cell, _default)

    shell.register_magic_function(redis_magic, "cell", "redis")
    shell.register_magic_function(wire_magic, "cell", "wire")
    shell.register_magic_function(node_magic, "cell", "node")


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
    reply within `wait` seconds: a sentence, and the next line goes over a new connection; where none can be
    had, the cell ends. Of a cluster, each line goes to the node that has its keys.
    """
    session = _Session(r, wait)
    try:
        for line in cell.splitlines():
            if line := COMMENT.sub(lambda found: found[1] or "", line.strip()).strip():
                yield f"> {line}"
                yield from session.ask(line)
        yield from session.end()
    except RedisTimeout:
        yield f"(no connection within {wait:g} s: the cell ends here)"
    except RedisError as error:
        yield f"(error) {str(error).rstrip('.')}: the cell ends here"
    finally:
        session.close()


class _Session:
    """One connection, spoken to in raw bytes: redis-py would already have turned the replies into Python."""

    def __init__(self, r: Any, wait: float) -> None:
        self._cluster = r if hasattr(r, "get_nodes") else None
        if self._cluster is not None:
            r = r.get_redis_connection(r.get_default_node())
        self._pool, self._wait = r.connection_pool, wait
        self._connection: Any = None
        self._received = b""
        self.close()

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
            yield from self._until_reply(name, arguments)
            yield from self._messages()
        except TimeoutError:
            yield f"(no reply within {self._wait:g} s: given up, and its connection closed)"
            self.close()
        except OSError:
            yield "(the server closed the connection)"
            self.close()

    def _send(self, arguments: list[bytes]) -> None:
        if self._connection is None:
            options = {"socket_timeout": self._wait, "retry": Retry(NoBackoff(), 0)}
            self._connection = self._pool.connection_class(**{**self._pool.connection_kwargs, **options})
            self._connection.connect()
        socket = self._connection._get_socket()
        socket.settimeout(self._wait)
        socket.sendall(pack(arguments))

    def _until_reply(self, name: str, arguments: list[bytes]) -> Iterator[str]:
        """Print what comes until the command is answered; a SUBSCRIBE is answered by one push a channel."""
        deadline = time.monotonic() + self._wait
        wanted = self._replies(name, len(arguments) - 1)
        moved = False
        while wanted:
            reply = self._next(deadline)
            if not moved and self._follows(reply, deadline):
                moved = True
                self._send(arguments)
                continue
            yield as_cli(reply)
            mine = reply.kind != ">" or text(reply.value[0].value).upper() == name
            wanted = 0 if reply.kind in "-!+" else wanted - mine
            if mine:
                self._remember(name, reply)

    def _replies(self, name: str, arguments: int) -> int:
        if not name.endswith("SUBSCRIBE"):
            return 1
        kind = name.replace("UNSUB", "SUB")
        return arguments or max(1, sum(of == kind for of, _ in self._channels))

    def _remember(self, name: str, reply: Reply) -> None:
        """What the connection is in the middle of, after this reply: MULTI, WATCH, subscriptions."""
        if name.endswith("SUBSCRIBE") and reply.kind in ">*":
            channel = name.replace("UNSUB", "SUB"), reply.value[1].value
            (self._channels.discard if "UNSUB" in name else self._channels.add)(channel)
        refused = reply.kind in "-!"
        if name == "EXEC" or (name in ("DISCARD", "RESET") and not refused):  # EXEC ends it even if refused
            self._queued = 0
            self._watching = False
            if name == "RESET":
                self._channels.clear()
        elif self._queued or (name == "MULTI" and not refused):
            self._queued += 1
        elif name in ("WATCH", "UNWATCH") and not refused:
            self._watching = name == "WATCH"

    def _follows(self, reply: Reply, deadline: float) -> bool:
        """After `MOVED slot address`: go to that slot's node, unless a WATCH or the like would be lost."""
        held = self._queued > 1 or self._watching or self._channels
        if self._cluster is None or held or not (reply.kind == "-" and reply.value.startswith(b"MOVED ")):
            return False
        nodes = self._cluster.nodes_manager.slots_cache.get(int(reply.value.split()[1]))
        if not nodes:
            return False
        in_multi = self._queued
        self.close()
        self._pool = self._cluster.get_redis_connection(nodes[0]).connection_pool
        if in_multi:
            self._send([b"MULTI"])
            self._remember("MULTI", self._next(deadline))
        return True

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
        while self._channels:
            try:
                yield as_cli(self._next(deadline))
            except TimeoutError:
                return

    def end(self) -> Iterator[str]:
        if self._connection is None:
            return
        if self._channels:
            yield "(the subscription ends with the cell)"
        if self._queued:
            yield "(MULTI without EXEC: the transaction ends with the cell, nothing of it was run)"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
        self._connection, self._received = None, b""
        self._queued = 0  # commands since MULTI, itself included
        self._watching = False
        self._channels: set[tuple[str, bytes]] = set()  # ("PSUBSCRIBE", b"news.*")
