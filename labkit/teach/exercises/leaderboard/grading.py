"""What the graders of chapter 09 share: what the server runs, what is read of a board, and calls in rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis

from labkit.teach.exercises.lock.grading import Story
from labkit.teach.lab import Lab

DAY = 86_400

READS = {"ZRANGE", "ZREVRANGE", "ZRANGEBYSCORE", "ZREVRANGEBYSCORE", "ZRANGEBYLEX", "ZREVRANGEBYLEX"}
READS |= {"ZSCAN", "ZUNION", "ZINTER", "ZDIFF", "SORT_RO", "HGETALL", "HVALS", "HKEYS", "SMEMBERS", "LRANGE"}
"""Commands that read many elements of a key, and change nothing."""


class Heard(NamedTuple):
    """A command that the server has run; `script`: one that a script has called."""

    script: bool
    words: list[str]


@contextmanager
def overheard(lab: Lab) -> Iterator[list[Heard]]:
    """All that the server runs meanwhile, by MONITOR; unusual letters as it shows them, escaped."""
    heard, end = list[Heard](), lab.key("end")
    with lab.client().monitor() as monitor:
        yield heard
        lab.r.echo(end)
        connection: Any = monitor.connection
        while True:
            head, _, rest = connection.read_response().partition("] ")
            words = re.findall(r'"((?:[^"\\]|\\.)*)"', rest)
            if words[-1:] == [end]:
                return
            heard.append(Heard(head.endswith(" lua"), words))


def elements(reply: Any) -> int:
    """How many elements there are in a reply, those in lists counted one by one."""
    if isinstance(reply, dict):
        return len(reply)
    if isinstance(reply, list | tuple | set):
        return sum(map(elements, reply))
    return 1


def check_frugal(story: Story, lab: Lab, call: Any, rows: int, look: str, scripts: bool = True) -> None:
    """Raises Failure if a call, which gives so many rows, fetches far more; with `scripts` in these, too."""
    with overheard(lab) as heard, lab.tap() as tape:
        call()
    most = 1000 + 300 * rows
    story.tell(f"bytes received: {tape.bytes_received:,}")
    what = f"it fetches {tape.bytes_received:,} bytes, to give {rows} rows"
    story.hold(tape.bytes_received <= most, "fetch", what, look)
    inner = [words for script, words in heard if script] if scripts else []
    read = [visited(lab.r, words) for words in inner]
    shown = " ".join(inner[read.index(max(read))]) if read and max(read) > sum(read) / 2 else "all"
    what = f"in the script, {shown} reads {max(read, default=0):,} elements"
    what = f"the script calls {len(read):,} commands, to give {rows} rows" if shown == "all" else what
    story.hold(sum(read) <= 40 + 8 * rows, "fetch", what, look)


def visited(r: Any, words: list[str]) -> int:
    """How many elements a command goes through, as its reply and its LIMIT tell; 1 if it reads only one."""
    name, *rest = (word.upper() for word in words)
    if name not in READS:
        return 1
    skipped = rest[rest.index("LIMIT") + 1] if "LIMIT" in rest else "0"
    return max(1, elements(r.execute_command(*words))) + int(float(skipped))


def keys_of(r: Any, words: list[str]) -> set[str]:
    """The keys that a command names."""
    try:
        return set(r.execute_command("COMMAND GETKEYS", *words))
    except redis.ResponseError:  # it has none
        return set()


def undeclared(r: Any, heard: list[Heard]) -> set[str]:
    """Keys that scripts touch and were not given as KEYS."""
    given, found = set[str](), set[str]()
    for script, words in heard:  # a script comes before what it calls
        if script:
            found |= keys_of(r, words) - given
        else:
            given = keys_of(r, words)
    return found


def check_pairs(story: Story, found: Any, said: str) -> None:
    """Raises Failure unless it is a list of (member, points): text, and a whole number."""
    look = "what top() returns: [(member, points), …], the points as ints"
    story.hold(isinstance(found, list), "answer", f"{said} gives {type(found).__name__}: a list", look)
    for row in found:
        pair = isinstance(row, tuple | list) and len(row) == 2
        story.hold(pair, "answer", f"{row!r} is no pair (member, points)", look)
        what = f"{row!r} is not text and a whole number"
        story.hold(isinstance(row[0], str) and type(row[1]) is int, "answer", what, look)
