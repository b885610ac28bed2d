"""What a tap has heard: commands with their replies, round trips, bytes, and how a notebook shows them."""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.rig.resp import Reply, as_cli, parse, text, to_python

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""How many exchanges a tape shows as a table before it says how many more there are."""

SUBSCRIBING = ("subscribe", "unsubscribe", "psubscribe", "punsubscribe", "ssubscribe", "sunsubscribe")


class Exchange(NamedTuple):
    """A command and its reply, as values and as bytes. `round_trip` counts from 1.

    `reply` is None and `received` empty where no reply came before the tape ended. A message that the server
    pushed unasked has an empty `command`.
    """

    command: tuple[str, ...]
    reply: Any
    sent: bytes
    received: bytes
    round_trip: int


class Event(NamedTuple):
    connection: int
    sent: bool
    data: bytes
    handshake: bool


class Tape:
    """What went over the wire while the tap was open; use as `with tap(r) as t`.

    It may be read while it still records. Reading costs no round trip.
    """

    def __init__(self, hooks: list[Any], handshake: bool) -> None:
        self._hooks, self._handshake = hooks, handshake
        self._events: list[Event] = []
        self._read: tuple[int, tuple[Exchange, ...]] = (0, ())
        self.connections = 0
        """How many new connections were opened."""

    def __enter__(self) -> Tape:
        for hook in self._hooks:
            hook.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove(self)

    def note(self, event: Event) -> None:
        self._events.append(event)

    @property
    def commands(self) -> tuple[Exchange, ...]:
        """Every command with its reply, in the order in which they were sent; and what the server pushed."""
        events = self._kept()
        if self._read[0] != len(events):
            self._read = len(events), tuple(_exchanges(events))
        return self._read[1]

    @property
    def round_trips(self) -> int:
        """How many times something was sent and then answered: a pipeline counts once."""
        return len({trip for event, trip in _trips(self._kept()) if trip and not event.sent})

    @property
    def bytes_sent(self) -> int:
        """Bytes from the client to the server, as RESP; the headers of TCP and IP come on top."""
        return sum(len(event.data) for event in self._kept() if event.sent)

    @property
    def bytes_received(self) -> int:
        """Bytes from the server to the client, likewise."""
        return sum(len(event.data) for event in self._kept() if not event.sent)

    @property
    def summary(self) -> str:
        """One line: round trips, commands, bytes."""
        commands = sum(1 for exchange in self.commands if exchange.command)
        return (
            f"{_count(self.round_trips, 'round trip')} · {_count(commands, 'command')} · "
            f"{self.bytes_sent:,} B sent · {self.bytes_received:,} B received"
        )

    @property
    def df(self) -> pd.DataFrame:
        """One row an exchange: round_trip, command, reply, sent and received in bytes."""
        import pandas as pd

        return pd.DataFrame(
            self._rows(len(self.commands)), columns=["round_trip", "command", "reply", "sent", "received"]
        )

    def raw(self) -> Raw:
        """The bytes in their order: `C:` from the client, `S:` from the server, one line of RESP a line."""
        lines = []
        for event in self._kept():
            shown = [repr(line)[2:-1] for line in event.data.split(b"\r\n")]
            parts = [line + r"\r\n" for line in shown[:-1]] + shown[-1:] * bool(shown[-1])
            lines += [f"{'C:' if event.sent else 'S:'} {line}" for line in parts]
        return Raw("\n".join(lines))

    def _kept(self) -> list[Event]:
        return [event for event in self._events if self._handshake or not event.handshake]

    def _rows(self, count: int) -> list[tuple[int, str, str, int, int]]:
        rows = []
        for e in self.commands[:count]:
            reply = as_cli(_first(e.received)) if e.received else "(no reply yet)"
            command = " ".join(e.command) or "(pushed by the server)"
            rows.append((e.round_trip, command, " ".join(reply.split()), len(e.sent), len(e.received)))
        return rows

    def _table(self) -> tuple[list[tuple[str, str, str, str, str]], str]:
        rows = [
            (str(trip), _short(command, 60), _short(reply, 40), f"{sent:,}", f"{received:,}")
            for trip, command, reply, sent, received in self._rows(SHOWN)
        ]
        more = len(self.commands) - len(rows)
        return rows, f"… and {more:,} more" if more else ""

    def __repr__(self) -> str:
        rows, more = self._table()
        rows = [("round trip", "command", "reply", "B sent", "B received"), *rows]
        wide = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            f"{a:>{wide[0]}}  {b:<{wide[1]}}  {c:<{wide[2]}}  {d:>{wide[3]}}  {e:>{wide[4]}}"
            for a, b, c, d, e in rows
        ]
        return "\n".join([*lines, *([more] if more else []), self.summary])

    def _repr_html_(self) -> str:
        rows, more = self._table()
        cell = '<td style="text-align:{}"><code>{}</code></td>'
        sides = ("right", "left", "left", "right", "right")
        head = "".join(
            f'<th style="text-align:{side}">{name}</th>'
            for side, name in zip(
                sides, ("round trip", "command", "reply", "B sent", "B received"), strict=True
            )
        )
        body = "".join(f"<tr>{''.join(map(cell.format, sides, map(html.escape, row)))}</tr>" for row in rows)
        foot = f'<p style="margin:0.4em 0">{more + "<br>" if more else ""}{self.summary}</p>'
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}"


class Raw(str):
    """Text that a notebook shows line by line, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _trips(events: list[Event]) -> Iterator[tuple[Event, int]]:
    """Each event with the round trip that it belongs to; 0 for what a connection received before it asked."""
    current: dict[int, int] = {}
    sending: dict[int, bool] = {}
    last = 0
    for event in events:
        if event.sent and not sending.get(event.connection):
            last += 1
            current[event.connection] = last
        sending[event.connection] = event.sent
        yield event, current.get(event.connection, 0)


class _Stream:
    """One direction of one connection: its bytes, and which event and round trip a position belongs to."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.starts: list[int] = []
        self.marks: list[tuple[int, int]] = []
        self.length = 0

    def add(self, number: int, trip: int, data: bytes) -> None:
        self.starts.append(self.length)
        self.marks.append((number, trip))
        self.chunks.append(data)
        self.length += len(data)

    def __iter__(self) -> Iterator[tuple[int, int, Reply, bytes]]:
        data, at = b"".join(self.chunks), 0
        while at < len(data) and (found := parse(data, at)):
            number, trip = self.marks[bisect_right(self.starts, at) - 1]
            yield number, trip, found[0], data[at : found[1]]
            at = found[1]


def _exchanges(events: list[Event]) -> list[Exchange]:
    """Match commands and replies: on one connection, replies come in the order of the commands."""
    streams: dict[tuple[int, bool], _Stream] = {}
    for number, (event, trip) in enumerate(_trips(events)):
        if trip:
            streams.setdefault((event.connection, event.sent), _Stream()).add(number, trip, event.data)
    found: list[tuple[int, Exchange]] = []
    for connection, sent in list(streams):
        if sent:
            found += _match(streams[connection, True], streams.get((connection, False), _Stream()))
    return [exchange for _, exchange in sorted(found, key=lambda item: item[0])]


def _match(asked: _Stream, answered: _Stream) -> Iterator[tuple[int, Exchange]]:
    replies = list(answered)
    at = 0
    for number, trip, command, sent in asked:
        words = tuple(text(word.value) for word in command.value)
        name = words[0].lower()
        every = name in SUBSCRIBING and len(words) == 1
        wanted = max(1, len(words) - 1) if name in SUBSCRIBING else 1
        got: list[tuple[int, int, Reply, bytes]] = []
        while at < len(replies) and (len(got) < wanted or (every and _goes_on(replies[at][2], name))):
            if _unasked(replies[at][2], name):
                yield _pushed(replies[at])
            else:
                got.append(replies[at])
            at += 1
        values = [to_python(reply) for _, _, reply, _ in got]
        reply = values if name in SUBSCRIBING else values[0] if values else None
        yield number, Exchange(words, reply, sent, b"".join(raw for *_, raw in got), trip)
    for late in replies[at:]:
        yield _pushed(late)


def _goes_on(reply: Reply, name: str) -> bool:
    """One more reply to an UNSUBSCRIBE from everything: one a channel (a single nil where there was none)."""
    if reply.kind not in ">*" or len(reply.value) != 3:
        return False
    return reply.value[0].value == name.encode() and reply.value[1].value is not None


def _unasked(reply: Reply, name: str) -> bool:
    """A push that does not answer the command `name` (a message, an invalidation)."""
    if reply.kind != ">":
        return False
    return name not in SUBSCRIBING or text(reply.value[0].value) not in SUBSCRIBING


def _pushed(item: tuple[int, int, Reply, bytes]) -> tuple[int, Exchange]:
    number, trip, reply, raw = item
    return number, Exchange((), to_python(reply), b"", raw, trip)


def _first(data: bytes) -> Reply:
    found = parse(data)
    assert found is not None
    return found[0]


def _short(words: str, length: int) -> str:
    words = words.replace("\n", "\\n").replace("\r", "\\r")
    return words if len(words) <= length else words[: length - 1] + "…"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"
