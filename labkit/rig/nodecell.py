"""The cell magic %%node: which client, which variables, run or replay.

%%node                          `redis` is a client of the server of connect()
%%node far token                … of the server of `far`; the variable `token` of Python, too
%%node --out found              the last value goes to Python's `found`, and is not printed
%%node --while outage           outage() is called once the cell has printed its first line; with --out,
                                Python gets a pair: the last value, and what outage() returned
%%node --seconds 5              its time limit, 30 by default
"""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any, NamedTuple, NoReturn

from labkit.rig import connection, node, noderun, replay

_WORDS = """
    arguments case catch const debugger default delete do enum eval export extends false function implements
    instanceof interface let new null package private protected public static super switch this throw true
    typeof undefined var void console process globalThis redis Redis require crypto JSON Number Object NaN
    Infinity
"""
RESERVED = frozenset(_WORDS.split())
"""Names that a variable of a cell cannot have: JavaScript's own, where Python allows them, and others."""


class Line(NamedTuple):
    """What stands behind %%node, with the objects that its names mean."""

    client: Any
    names: dict[str, Any]
    during: Any
    out: str | None
    seconds: float


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _refuse(
            f"%%node: {message}. It is: %%node [client] [variables …] [--while f] [--out name] [--seconds n]"
        )


def _refuse(why: str) -> NoReturn:
    from IPython.core.error import UsageError

    raise UsageError(why)


def cell(shell: Any, line: str, source: str, default: Any) -> None:
    """Run a %%node cell: on Node.js or, where that is missing, from its recording.

    Raises IPython's UsageError for a line that cannot be understood; else as noderun.run and replay.replay.
    """
    asked = understand(shell.user_ns, line, default)
    engine = replay.engine()
    if isinstance(engine, replay.Recorded):
        answer = replay.replay(line, source, asked.client, asked.names, engine.why)
    else:
        answer = _run(engine, source, asked)
        if replay.recording():
            server = connection.server_name(default)
            made = {"node": engine.node, "ioredis": engine.ioredis, "server": server}
            replay.record(line, source, asked.names, answer, made)
    if asked.out is not None:
        shell.user_ns[asked.out] = answer.value if asked.during is None else (answer.value, answer.during)


def _run(engine: node.Engine, source: str, asked: Line) -> noderun.Answer:
    return noderun.run(
        engine,
        source,
        asked.client,
        names=asked.names,
        keep=asked.out is not None,
        during=asked.during,
        seconds=asked.seconds,
    )


def understand(namespace: dict[str, Any], line: str, default: Any) -> Line:
    """The line, with the objects of the notebook. A client among the names is what `redis` is made like."""
    parser = _Parser(prog="%%node", add_help=False, allow_abbrev=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--while", dest="during")
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=float, default=noderun.SECONDS)
    try:
        chosen = parser.parse_args(shlex.split(line))
    except ValueError as error:  # a quotation without its end
        _refuse(f"%%node: {error}.")
    if not 0 < chosen.seconds < float("inf"):
        _refuse(f"%%node: --seconds is {chosen.seconds:g}; it must be a positive number.")
    named = {name: _looked_up(namespace, name) for name in chosen.names}
    clients = [name for name, value in named.items() if _is_client(value)]
    if len(clients) > 1:
        _refuse(f"%%node: {' and '.join(clients)} are clients; a cell has one.")
    client = named.pop(clients[0]) if clients else default
    for name, value in named.items():
        _check(name, value)
    during = None if chosen.during is None else _looked_up(namespace, chosen.during)
    if during is not None and not callable(during):
        _refuse(f"%%node: {chosen.during} is no function that could be called meanwhile.")
    if chosen.out is not None and not chosen.out.isidentifier():
        _refuse(f"%%node: {chosen.out!r} is no name for a variable.")
    return Line(client, named, during, chosen.out, chosen.seconds)


def _looked_up(namespace: dict[str, Any], name: str) -> Any:
    if name not in namespace:
        _refuse(f"%%node: this notebook has no variable {name!r}.")
    return namespace[name]


def _is_client(value: Any) -> bool:
    return hasattr(value, "connection_pool") or hasattr(value, "get_nodes")


def _check(name: str, value: Any) -> None:
    if name in RESERVED or not name.isascii():
        _refuse(f"%%node: a variable of JavaScript cannot be called {name!r} here.")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        _refuse(f"%%node: {name} is a {type(value).__name__}, which JSON cannot hold.")
