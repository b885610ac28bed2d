"""RESP, the protocol that Redis speaks: from bytes to values, and printed as redis-cli prints it.

RESP2 and RESP3 are read alike. A reply keeps the marker that stood before it on the wire, because a set, a
map and an array look different in redis-cli although Python would show all three as a list.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

LINES = b"+-:,(#_"
BULKS = b"$=!"
EMPTY = {"*": "(empty array)", "%": "(empty hash)", "~": "(empty set)", ">": "(empty push)"}
ESCAPES = {0x5C: "\\\\", 0x22: '\\"', 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x07: "\\a", 0x08: "\\b"}


class Reply(NamedTuple):
    """One value: `kind` is its marker on the wire ("+" status, "$" string, "*" array, "_" nil, …).

    `value` is bytes for text, int for ":", bool for "#", None for "_", and a list of Reply for aggregates
    (for a map, its keys and values in turn).
    """

    kind: str
    value: Any


def parse(data: bytes, at: int = 0) -> tuple[Reply, int] | None:
    """The reply that begins at `at`, and where the next one begins; None while bytes are still missing.

    Raises ValueError on a byte that is no marker.
    """
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    marker, head, after = data[at], data[at + 1 : end], end + 2
    if marker in LINES:
        return _line(chr(marker), head), after
    if marker in BULKS:
        return _bulk(chr(marker), data, int(head), after)
    if marker in b"*%~>|":
        return _aggregate(chr(marker), data, int(head), after)
    raise ValueError(f"{data[at : at + 20]!r} is not RESP: {chr(marker)!r} is no marker")


def _line(kind: str, head: bytes) -> Reply:
    if kind == ":":
        return Reply(kind, int(head))
    if kind == "#":
        return Reply(kind, head == b"t")
    return Reply(kind, None if kind == "_" else head)


def _bulk(kind: str, data: bytes, length: int, at: int) -> tuple[Reply, int] | None:
    if length < 0:
        return Reply("_", None), at
    if len(data) < at + length + 2:
        return None
    start = at + 4 if kind == "=" else at  # a verbatim string begins with "txt:"
    return Reply(kind, data[start : at + length]), at + length + 2


def _aggregate(kind: str, data: bytes, count: int, at: int) -> tuple[Reply, int] | None:
    if count < 0:
        return Reply("_", None), at
    items = []
    for _ in range(2 * count if kind in "%|" else count):
        found = parse(data, at)
        if found is None:
            return None
        items.append(found[0])
        at = found[1]
    return parse(data, at) if kind == "|" else (Reply(kind, items), at)  # attributes are out-of-band: skip


def to_python(reply: Reply) -> Any:
    """The reply as a Python value: str, int, float, bool, None, list, dict, set, or a ResponseError."""
    kind, value = reply
    if kind in "-!":
        return ResponseError(text(value))
    if kind == ",":
        return float(value)
    if kind == "(":
        return int(value)
    if kind == "%":
        keys, values = value[::2], value[1::2]
        pairs = [(to_python(k), to_python(v)) for k, v in zip(keys, values, strict=True)]
        return dict(pairs) if all(k.kind not in "*%~" for k in keys) else pairs
    if kind == "~":
        items = [to_python(item) for item in value]
        return set(items) if all(item.kind not in "*%~" for item in value) else items
    if kind in "*>":
        return [to_python(item) for item in value]
    return text(value) if isinstance(value, bytes) else value


def text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def quoted(data: bytes) -> str:
    """`"text"`, escaped as redis-cli escapes it: byte by byte, so é is \\xc3\\xa9."""
    return '"' + "".join(ESCAPES.get(b) or (chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in data) + '"'


def as_cli(reply: Reply, indent: str = "") -> str:
    """The reply as redis-cli prints it on a terminal, without the newline at its end."""
    kind, value = reply
    if kind in EMPTY:
        return _list_as_cli(kind, value, indent)
    if kind == "$":
        return quoted(value)
    if kind in "-!":
        return f"(error) {text(value)}"
    if kind == "_":
        return "(nil)"
    if kind == "#":
        return "(true)" if value else "(false)"
    label = {":": "(integer) ", ",": "(double) "}.get(kind, "")
    return label + (text(value) if isinstance(value, bytes) else str(value))


def _list_as_cli(kind: str, items: list[Reply], indent: str) -> str:
    if not items:
        return EMPTY[kind]
    step = 2 if kind == "%" else 1
    width = len(str(len(items) // step))
    inner = indent + " " * (width + 2)
    lines = []
    for number, at in enumerate(range(0, len(items), step), 1):
        key, *value = (as_cli(item, inner) for item in items[at : at + step])
        shown = key + "".join(f" => \n{inner}{v}" if "\n" in v else f" => {v}" for v in value)
        lines.append(f"{number:>{width}}{ {'%': '#', '~': '~'}.get(kind, ')') } {shown}")
    return ("\n" + indent).join(lines)


def split(line: str) -> list[bytes]:
    """A command line into its arguments, with redis-cli's quoting: "a\\x00b" and 'as it is'.

    Raises ValueError where a quote is not closed.
    """
    token = re.compile(r"""\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\'|[^'])*)'|([^\s"']+))(?=\s|$)""")
    arguments, at, line = [], 0, line.strip()
    while at < len(line):
        found = token.match(line, at)
        if not found:
            raise ValueError("Invalid argument(s): quotes must be balanced, with a space after them.")
        double, single, plain = found.groups()
        if double is not None:
            arguments.append(_unescape(double))
        else:
            arguments.append((single.replace("\\'", "'") if single is not None else plain).encode())
        at = found.end()
    return arguments


def _unescape(body: str) -> bytes:
    names = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}

    def one(found: re.Match[bytes]) -> bytes:
        return bytes([int(found[1], 16)]) if found[1] else names.get(found[2], found[2])

    return re.sub(rb"\\(?:x([0-9a-fA-F]{2})|(.))", one, body.encode(), flags=re.DOTALL)


def pack(arguments: list[bytes]) -> bytes:
    """A command as it goes over the wire: an array of bulk strings."""
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in arguments)
