"""Recordings of JavaScript cells, for where there is no Node.js: what was printed, and what was sent.

A recording is made by an explicit act: `LABKIT_RECORD=1 python -m labkit refresh notebooks/01*.ipynb`. It is
used for the very cell that was recorded, to the letter. Python then prints what Node had printed and sends
what Node had sent to the server of today, so that keys and their effects are real; values that came from
Python are those of today, in both.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from redis import ConnectionPool, Redis
from redis.client import NEVER_DECODE
from redis.exceptions import ResponseError

from labkit.rig import node
from labkit.rig.node import Engine, NodeMissing
from labkit.rig.noderun import Answer

LEAST = 8
"""Characters that a value must have to be told from a word that only happens to be the same."""

MOST = 200
"""Characters of a value of which also a part may be found in a command: an id within its key, say."""

SHORT = re.compile(r"([\[{])\n\s+([^\n]{1,70}(?:,\n\s+[^\n]{1,70}){0,5})\n\s+([\]}])(?![\[{])")
"""In indented JSON, a list or an object of a few short parts."""

LONGEST = 120
"""Characters of such a line."""

Piece = str | dict[str, Any]
"""A text, or what stands for a value or a part of it: {"value": "key", "from": 12, "to": 76}."""

Text = str | list[Piece]
"""What has no values in it is stored as it is."""

_kept: dict[str, dict[str, Any]] = {}


class Recorded:
    """In place of an Engine where there is no Node.js: `node` and `ioredis` are those of the recording."""

    def __init__(self, made: Mapping[str, str], why: str) -> None:
        self.node, self.ioredis, self.server = made["node"], made["ioredis"], made["server"]
        self.why = why

    def __repr__(self) -> str:
        return (
            f"{self.why} The cells of this act show what was recorded with Node.js {self.node}, ioredis "
            f"{self.ioredis} and {self.server}; Python sends the same commands to your server in its place, "
            f"over one connection for each cell. To run them for real: {node.remedy()}"
        )


def engine() -> Engine | Recorded:
    """What %%node cells run on: Node.js with ioredis or else, said openly, the recordings.

    With CI set nothing is replayed unless LABKIT_NODE=none asks for it: NodeMissing.
    """
    if (found := node.find()) is not None:
        return found
    why = node.missing()
    asked = os.environ.get("LABKIT_NODE") == node.NONE
    if (os.environ.get("CI") and not asked) or not (made := _stored().get("made")):
        raise NodeMissing(why)
    return Recorded(made, why)


def path() -> Path:
    """The file of the recordings."""
    return node.folder().parent / "measured" / "01_connection.json"


def _stored() -> dict[str, Any]:
    file = path()
    found: dict[str, Any] = json.loads(file.read_text()).get("node", {}) if file.is_file() else {}
    return found


def recording() -> bool:
    """Is each cell that runs to be recorded (LABKIT_RECORD)?"""
    return bool(os.environ.get("LABKIT_RECORD"))


def record(line: str, source: str, names: Mapping[str, Any], answer: Answer, made: dict[str, str]) -> None:
    """Store a cell that has run. The first one of a process drops what older runs had stored."""
    values = dict(_texts(names))
    _kept[_id(line, source)] = {
        "line": line,
        "source": source.rstrip().split("\n"),
        "printed": _kept_text(answer.printed, values),
        "value": answer.value,
        "during": answer.during,
        "sent": [[[_kept_word(word, values) for word in words], kind] for words, kind in answer.sent],
    }
    file = path()
    whole = json.loads(file.read_text()) if file.is_file() else {}
    whole["node"] = {"made": made, "cells": list(_kept.values())}
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".record-", suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(_dumped(whole))
    Path(name).chmod(0o644)
    Path(name).replace(file)


def replay(line: str, source: str, r: Any, names: Mapping[str, Any], why: str) -> Answer:
    """Print what the recording of this cell says, and send what was sent; a reply of another kind is told.

    Raises NodeMissing for a cell that was not recorded. MULTI and the like hold, on one connection; a cluster
    is sent one command at a time.
    """
    cells = {_id(cell["line"], "\n".join(cell["source"])): cell for cell in _stored().get("cells", ())}
    if (cell := cells.get(_id(line, source))) is None:
        raise NodeMissing(f"{why} This cell was not run: no recording is of it.")
    values = dict(_texts(names))
    printed = _filled(cell["printed"], values)
    print(printed, end="")
    sent = [(tuple(_filled(word, values) for word in words), kind) for words, kind in cell["sent"]]
    for words, kind, now in _send(r, sent):
        if now != kind:
            print(f"(recorded; here Redis answers otherwise to {words[0].upper()}: {now}, not {kind})")
    return Answer(printed, cell["value"], cell["during"], tuple(sent))


def _send(r: Any, sent: list[tuple[tuple[str, ...], str]]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    if sent:
        with _fresh(r) as one:
            for words, kind in sent:
                try:
                    reply = one.execute_command(*words, **{NEVER_DECODE: []})
                except ResponseError:
                    yield words, kind, "error"
                else:
                    yield words, kind, _kind(reply)


def _fresh(r: Any) -> Any:
    """A client with one connection, a new one, as that of a Node process would be; a cluster's is itself."""
    if hasattr(r, "get_nodes"):
        return nullcontext(r)
    pool = r.connection_pool
    own = ConnectionPool(connection_class=pool.connection_class, **pool.connection_kwargs)
    made = Redis(connection_pool=own, single_connection_client=True)
    made.auto_close_connection_pool = True
    return made


def _kind(reply: Any) -> str:
    if reply is None:
        return "nil"
    if isinstance(reply, int):
        return "negative" if reply < 0 else "something" if reply else "zero"
    return "something"


def _id(line: str, source: str) -> str:
    return json.dumps([line.split(), [text.rstrip() for text in source.rstrip().split("\n")]])


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The texts in these values that are long enough, by name: "key", "place.id"."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{name}.{number}")
    elif isinstance(value, str) and len(value) >= LEAST:
        yield name, value


def _kept_text(text: str, values: Mapping[str, str]) -> Text:
    """The text, with each value of Python that is in it replaced by its name."""
    pieces = _pieces(text, sorted(values.items(), key=lambda item: -len(item[1])))
    return pieces if any(isinstance(piece, dict) for piece in pieces) else text


def _pieces(text: str, values: Sequence[tuple[str, str]]) -> list[Piece]:
    for name, value in values:
        if value in text:
            before, _, after = text.partition(value)
            return [*_pieces(before, values), {"value": name}, *_pieces(after, values)]
    return [text] if text else []


def _kept_word(word: str, values: Mapping[str, str]) -> Text:
    """As `_kept_text`; also a word that is only a part of a value."""
    if len(word) >= LEAST and word not in values.values():
        for name, value in values.items():
            if len(value) <= MOST and (at := value.find(word)) >= 0:
                return [{"value": name, "from": at, "to": at + len(word)}]
    return _kept_text(word, values)


def _filled(text: Text, values: Mapping[str, str]) -> str:
    return "".join(
        piece if isinstance(piece, str) else values[piece["value"]][piece.get("from") : piece.get("to")]
        for piece in text
    )


def _dumped(whole: Any) -> str:
    """JSON to be read by a person: what is short stands on one line."""
    text, before = json.dumps(whole, indent=1, ensure_ascii=False), ""
    while before != text:
        before, text = text, SHORT.sub(_one_line, text)
    return text + "\n"


def _one_line(found: re.Match[str]) -> str:
    line = found[1] + re.sub(r",\n\s+", ", ", found[2]) + found[3]
    return line if len(line) <= LONGEST else found[0]
