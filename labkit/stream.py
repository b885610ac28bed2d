"""Streams on Redis: a log that is added to, and groups of consumers that share the work on it.

    producer = Producer(r, "orders", maxlen=100_000)
    producer.add({"item": "book", "price": 12})

    def handle(entry, effects):            # effects: commands that run together with the acknowledgement
        effects.hincrby("sold", entry.event["item"], 1)

    Consumer(r, "orders", "shop", "worker-1", handle).run()

What holds, and what does not, stands in the two classes. Redis's errors are raised as they are; misuse raises
ValueError or TypeError before anything is sent. Times are in seconds, kept to the millisecond. Sources, on
redis.io: "Redis Streams", "Idempotent message processing", XADD, XREADGROUP, XAUTOCLAIM, XACKDEL."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any, Literal, NamedTuple

from redis import exceptions
from redis.client import NEVER_DECODE
from redis.commands import CoreCommands

CHUNK = 1000  # entries that a pipeline adds at once
REMEMBERED = 100  # of a producer's latest additions, as many as the server compares with: its default
TRIES = 5  # of a named producer that gets no answer
SETTLE = 0.1  # seconds after which what has been handled so far is settled, before the batch is done
DEAD_MAXLEN = 10_000  # newest dead letters that are kept, roughly
LATE = 0.1  # seconds by which a blocking read may end late: an idle Redis looks ten times a second
PAUSE = 0.015  # seconds between two readings that must not block
WORDS = 5000  # of one effect: what Lua can unpack, with a margin
SENDABLE = frozenset((str, bytes, int, float))
RAW: dict[str, Any] = {NEVER_DECODE: []}  # one entry that is no text must not stop the reading of others
LOST = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.RedisClusterException,
)  # no answer, if `_is_lost`: it may have run, or not
JITTER = random.SystemRandom()  # leaves the program's own random numbers alone


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


_load = json.JSONDecoder(parse_constant=_refuse).decode
_dump = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Entry(NamedTuple):
    """`key` is the producer's idempotency key or else the id; `deliveries` counts this one too."""

    id: str
    event: dict[str, Any]
    key: str
    deliveries: int


class Lag(NamedTuple):
    """Entries that are `waiting` to be read by the group, and `pending`: read, but not settled.

    `oldest_pending_s`: for how long the oldest of those has been in somebody's hands; None if there is none.
    (What was handed back counts as if that were `idle` seconds.)
    """

    waiting: int
    pending: int
    oldest_pending_s: float | None


class Report(NamedTuple):
    """What a consumer did: it called the handler `handled` times, of which `failed` raised.

    Of the entries, `applied` were acknowledged with their effects done, `skipped` had been settled by
    somebody else or had a key that was done, and `dead` went to the dead letters. `reclaimed` had been
    delivered before; `trimmed` were pending, and gone when it came to take them over.
    """

    handled: int = 0
    applied: int = 0
    skipped: int = 0
    failed: int = 0
    dead: int = 0
    reclaimed: int = 0
    trimmed: int = 0


class HandlerFailed(Exception):
    """A handler raised, or an effect was refused: `id` and `deliveries` of the entry; `__cause__` is why."""

    def __init__(self, id: str, deliveries: int, why: str) -> None:
        self.id, self.deliveries = id, deliveries
        super().__init__(f"entry {id}, delivery {deliveries}: {why}")


class GroupLost(Exception):
    """The group was no longer there, as when a server has lost its memory. It has been created again."""


class Effects(CoreCommands):
    """Records commands, with redis-py's methods: what a handler queues runs when its entry is settled."""

    _event_dispatcher: Any = None  # these two are for redis-py's types alone
    _is_async_client: Literal[False] = False

    def __init__(self) -> None:
        self.commands: list[tuple[Any, ...]] = []

    def execute_command(self, *args: Any, **options: Any) -> Effects:
        """Queue it. Raises TypeError and ValueError for words that cannot be sent."""
        words = (*_text(args[0]).split(), *args[1:])
        if not SENDABLE.issuperset(map(type, words)):
            for word in words:
                if isinstance(word, bool) or not isinstance(word, tuple(SENDABLE)):
                    raise TypeError(f"{words[0]} has {word!r}; it must be str, bytes, int or float")
        ("%s" * len(words) % words).encode()  # half a surrogate pair is no text
        if len(words) > WORDS:
            raise ValueError(f"{words[0]} has {len(words)} words; one effect may have {WORDS}")
        self.commands.append(words)
        return self

    def __len__(self) -> int:
        return len(self.commands)


def _seconds(name: str, value: float, least: float = 0.001, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; it must be a number of seconds from {least:g} to {most:g}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be from {least:g} to {most:g} seconds")
    return round(value, 3)


def _whole(name: str, value: int, least: int = 1, most: int = 2**31) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; it must be a whole number from {least} to {most}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be from {least} to {most}")
    return value


def _named(what: str, name: str) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"{what} is {name!r}; it must be a str that is not empty")
    return name


def _check(r: Any, stream: str) -> None:
    command = getattr(r, "execute_command", None)
    if command is None or hasattr(r, "execute") or inspect.iscoroutinefunction(command):
        raise TypeError(f"{type(r).__name__} is no client such as redis.Redis, or is an async one")
    _named("stream", stream)
    if hasattr(r, "nodes_manager") and not 0 <= stream.find("{") < stream.find("}") - 1:
        raise ValueError(f"stream is {stream!r}; in a cluster it must hold a {{hash tag}}")


def _text(word: Any) -> str:
    return word.decode() if type(word) is bytes else str(word)


def _order(id: Any) -> tuple[int, ...]:
    """An entry's id, to be compared with others."""
    return tuple(map(int, _text(id).split("-")))


def _waiting(stream: dict[str, Any], group: dict[str, Any]) -> int | None:
    """Entries that the group has not read; None if Redis does not know how many."""
    length, read = int(stream["length"]), _order(group["last-delivered-id"])
    if not length or _order(stream["last-entry"][0]) <= read:
        return 0
    if _order(stream["first-entry"][0]) > read:
        return length
    return None if group["lag"] is None else min(int(group["lag"]), length)


def _is_lost(error: Exception) -> bool:
    """Of LOST: redis-py has among them what is an answer, or misuse."""
    if isinstance(error, exceptions.RedisClusterException):
        return "cannot be connected" in str(error) or "not covered" in str(error)
    return not isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


@cache
def _sha(lua: str) -> str:
    return hashlib.sha1(lua.encode()).hexdigest()


def _run(r: Any, lua: str, *args: Any) -> Any:
    try:
        return r.execute_command("EVALSHA", _sha(lua), *args)
    except exceptions.NoScriptError:
        return r.execute_command("EVAL", lua, *args)


_known: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _knows(r: Any, word: str) -> bool:
    """Does the server know it? It is asked once per client (COMMAND DOCS), whatever its version claims."""
    if (docs := _known.get(r)) is None:
        try:
            one = r.get_redis_connection(r.get_default_node()) if hasattr(r, "nodes_manager") else r
            docs = str(one.execute_command("COMMAND DOCS", "XADD", "XREADGROUP", "XDELEX"))
        except (exceptions.ResponseError, exceptions.RedisClusterException):
            docs = ""  # one that will not say does not
        _known[r] = docs
    return f"'{word}'" in docs


class Producer:
    """Adds events to a stream, and bounds it.

    An event is a dict; each field is stored as JSON under its name, so that it can be read in redis-cli. An
    id is <ms of the server's clock>-<number>; ids only rise, whoever adds.

    Bounded: with `maxlen` each addition trims the oldest entries, read or not: who is further behind than
    `maxlen` loses entries. Redis trims whole nodes of 100 entries, so a few more stay; `exact=True` holds the
    length to the entry and is slower. Where nothing may be lost leave `maxlen` out: call `trim` now and then,
    which drops only what every group has acknowledged, and wait while `backlog` is too long. A stream has no
    TTL: it is data.

    Added once: after a lost answer it is unknown whether an event was added. With a `name` the producer asks
    again, TRIES times. Redis 8.6 knows the latest 100 additions of each name for 100 s (XADD … IDMP) and
    adds no second entry. An older server does; but both entries have the same key, so that a Consumer applies
    one of them (and remembers the key of each entry for a while: see `remember`). A name is for one producer
    at a time.

    `add` is one round trip, `add_many` one for 1,000 events (100 with a name).
    """

    def __init__(
        self,
        r: Any,
        stream: str,
        *,
        maxlen: int | None = None,
        exact: bool = False,
        name: str | None = None,
        newer: bool | None = None,
    ) -> None:
        """Sends nothing. `newer`: use XADD … IDMP if there is a name? None asks the server, once a client."""
        _check(r, stream)
        self._r, self.stream, self._newer = r, stream, newer
        self.name = None if name is None else _named("name", name)
        bound = ("MAXLEN", "=" if exact else "~", _whole("maxlen", maxlen)) if maxlen is not None else ()
        self._bound: tuple[Any, ...] = bound

    def add(self, event: dict[str, Any], *, key: str | None = None) -> str:
        """Add it; its id. Of several with one `key`, a Consumer applies the first."""
        return self._add([self._command(event, key)])[0]

    def add_many(self, events: Iterable[dict[str, Any]]) -> list[str]:
        """Add them, in order, in pipelines; their ids. After an error some of them may have been added."""
        commands, ids = (self._command(event, None) for event in events), list[str]()
        while chunk := list(islice(commands, REMEMBERED if self.name else CHUNK)):
            ids += self._add(chunk)
        return ids

    def trim(self) -> int:
        """Drop what every group has acknowledged, roughly; how many entries went. Nothing without a group.

        Three round trips; a group that is created meanwhile, to read from the beginning, may miss them.
        """
        _, groups = self._state()
        with self._r.pipeline(transaction=False) as pipe:
            for group in groups:
                pipe.xpending_range(self.stream, _text(group["name"]), "-", "+", 1)
            pending = pipe.execute() if groups else []
        needed = [
            _text(first[0]["message_id"] if first else group["last-delivered-id"])
            for group, first in zip(groups, pending, strict=True)
        ]
        if not needed:
            return 0
        oldest = min(needed, key=_order)
        return int(self._r.execute_command("XTRIM", self.stream, "MINID", "~", oldest, "LIMIT", 0))

    def backlog(self) -> int:
        """Entries that the slowest group still has to read or to acknowledge; without a group, all. One round
        trip. Where Redis does not know how many are unread (see Consumer.lag), all of them count."""
        stream, groups = self._state()
        behind = [(_waiting(stream, group), int(group["pending"])) for group in groups]
        length = int(stream["length"])
        return max((length if unread is None else unread + held for unread, held in behind), default=length)

    def _state(self) -> tuple[dict[str, Any], list[Any]]:
        """XINFO of the stream and of its groups."""
        with self._r.pipeline(transaction=False) as pipe:
            pipe.execute_command("XINFO STREAM", self.stream, **RAW)
            pipe.xinfo_groups(self.stream)
            stream, groups = pipe.execute(raise_on_error=False)
        if isinstance(stream, exceptions.ResponseError) and "no such key" in str(stream):
            return {"length": 0}, []
        if isinstance(stream, Exception):
            raise stream
        return stream, groups

    def _command(self, event: dict[str, Any], key: str | None) -> list[Any]:
        if not isinstance(event, dict):
            raise TypeError(f"event is {event!r}; it must be a dict")
        if not event:
            raise ValueError("event is {}; it must have one field or more")
        words: list[Any] = []
        for field, value in event.items():
            if not isinstance(field, str) or field.startswith("@"):
                raise ValueError(f"a field is called {field!r}; it must be a str that does not begin with @")
            words += (field, _dump(value))
        newer = self.name is not None and self._has_newer()
        once = _named("key", key) if key is not None else secrets.token_hex(8) if self.name else None
        if key is not None or (once and not newer):
            words += ("@key", once)
        same = ("IDMP", self.name, once) if newer else ()
        return ["XADD", self.stream, *same, *self._bound, "*", *words]

    def _has_newer(self) -> bool:
        if self._newer is None:
            self._newer = _knows(self._r, "IDMP")
        return self._newer

    def _add(self, commands: list[list[Any]]) -> list[str]:
        tries = TRIES if self.name else 1
        while True:
            try:
                return [_text(id) for id in self._send(commands)]
            except LOST as error:
                tries -= 1
                if not tries or not _is_lost(error):
                    raise
                time.sleep(JITTER.uniform(0, 0.1))

    def _send(self, commands: list[list[Any]]) -> list[Any]:
        if len(commands) == 1:
            return [self._r.execute_command(*commands[0])]
        with self._r.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            ids: list[Any] = pipe.execute()
        return ids


Received = tuple[str, dict[Any, Any], int]
"""An entry's id, its fields as Redis has them, and the number of its deliveries."""


class _Work(NamedTuple):
    """An entry that has been looked at: its effects or, with an `error`, that it goes to the dead letters."""

    id: str
    key: str
    deliveries: int
    effects: list[tuple[Any, ...]]
    error: str = ""
    kind: str = ""


class Consumer:
    """One member of a group: reads entries, hands each to `handler`, and settles what was handled.

        def handle(entry, effects):
            effects.hincrby("sold", entry.event["item"], 1)

    What holds:

    * Every entry goes to one member of the group, and stays on the group's list of pending entries until it
      is settled. If its consumer crashes, or is slow, another takes it over once `idle` seconds have passed
      since its delivery. So none is lost, and the handler may run more than once for an entry.
    * Effects are applied once. Commands that the handler queues in `effects` run in the script that
      acknowledges the entry, if it was still pending: whoever acknowledges first is the one whose effects
      count, also where two have handled it at the same time. All of it happens, or nothing: there is no
      moment between effect and acknowledgement at which a crash could do harm. What is applied twice by
      mistake elsewhere (an e-mail, a payment) is for the receiver to recognise: give it `entry.key`.
    * A key that the producer gave counts once, too: of two entries with the same, one is applied, as long as
      the first was no more than `remember` seconds ago.
    * An entry whose handler raises stays pending, its effects forgotten, and comes again after `idle`. At the
      attempt number `deliveries` it goes to the dead letters in the same step in which it is acknowledged,
      with the error. What is no event (fields that are no JSON), and what has killed its consumers that many
      times, goes there as well (with `deliveries` = 1 also what was read together with it). So does an entry
      of which Redis refuses an effect: then the effects before it have been applied, and trying again would
      apply them twice.

    What does not:

    * Order. Entries are delivered in the order of their ids; but several consumers, and whatever comes again,
      overtake each other.
    * A batch has to be done within `idle`, or others begin to do it as well: work twice, effects once. Let
      `idle` be several times as long as a batch takes. What has been handled is settled with the batch's last
      entry; if that is later than 0.1 s, as soon as the entry that is then at hand is done.
    * An entry that was trimmed before it was read is missed, and nobody is told. One that is trimmed while it
      is pending is still applied by who has it, but cannot be taken over: `trimmed` counts these.
    * A group that has vanished is created again at `start`, and GroupLost stands in `errors`: if only the
      group was lost and not the stream, everything in it comes again, and is applied again. The same is meant
      by XGROUP SETID. A server that lacks its latest writes lacks effects and acknowledgements alike.
    * Effects cannot hold EVAL, FCALL, MULTI or a blocking command, and return nothing to the handler. In a
      cluster their keys must be in the stream's slot: give all a {hash tag}.
    * After a lost answer it is unknown whether a batch was settled. Nothing is applied twice, whoever sends
      again; but what was applied may be reported as `skipped`, or by nobody.
    * A Consumer is for one thread. Only `stop` may be called from another.

    Cost: a batch is two round trips, one to read and one to settle, whatever its length. Taking over: every
    `idle` / 2 XAUTOCLAIM, and the counts of what it brings in one more; Redis 8.4 does it in the reading, too
    (XREADGROUP … CLAIM), which then wakes up on time. The last attempt at an entry is settled on its own, and
    takes one round trip more.

    Keys beside the stream: `<stream>:dead`, the dead letters (fields as they were, and @id @group @deliveries
    @error @type; the newest 10,000, no TTL: they wait for a person); `<stream>:done:<group>:<key>`, for a
    producer's own keys only, with `remember` as TTL (a colon in the group's name is written %3a). A stream is
    trimmed by its producers; or, with `delete`, an entry leaves when all groups have acknowledged it (XDELEX
    … ACKED, Redis 8.2; an older server deletes it at the first acknowledgement, so use it there with one
    group). A name that is used no more stays in the group, in some hundred bytes: give workers names that
    return, or call `tidy`.
    """

    # KEYS      stream, dead letters; then the done key of each entry that has one
    # ARGV      group, how to delete or "", ms to remember a key, number of dead letters to keep;
    #           for each entry: id, number of its done key in KEYS or 0, deliveries, error and its type or "",
    #           number of effects; for each effect: number of words, the words
    # returns   for each entry: 1 (applied), 0 (skipped), or why it is dead
    SETTLE = """
    redis.call('XLEN', KEYS[2])  -- an error, before anything is done, if that is no stream
    local function may(...)  -- likewise
        if not redis.acl_check_cmd(...) then error('NOPERM no permission for ' .. ... .. ' in SETTLE') end
    end
    may('XADD', KEYS[2], '*', 'x', 'x')
    if #KEYS > 2 then may('SET', KEYS[3], '') end  -- all done keys begin alike
    if ARGV[2] ~= '' then may(ARGV[2], KEYS[1], '1-1', 'IDS', '1', '1-1') end
    local at, found = 4, {}
    local function take(n) at = at + n return unpack(ARGV, at - n + 1, at) end
    local function bury(id, ...)
        local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
        local fields = entry and entry[2] or {}
        if #fields > 7000 then fields = {'@fields', cjson.encode(fields)} end  -- more than unpack can
        for _, word in ipairs({'@id', id, '@group', ARGV[1], ...}) do fields[#fields + 1] = word end
        redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', unpack(fields))
    end
    while at < #ARGV do
        local id, done, deliveries, why, kind, effects = take(6)
        local ours = redis.call('XACK', KEYS[1], ARGV[1], id) == 1
        local new = ours and why == ''
        if new and done ~= '0' then new = redis.call('SET', KEYS[done + 0], id, 'NX', 'PX', ARGV[3]) end
        for _ = 1, effects do
            local words = {take(take(1))}
            local reply = new and why == '' and redis.pcall(unpack(words))
            if type(reply) == 'table' and reply.err then why, kind = reply.err, 'ResponseError' end
        end
        if ours and why ~= '' then
            bury(id, '@deliveries', deliveries, '@error', why, '@type', kind)
        end
        if ours and ARGV[2] == 'XDELEX' then redis.call('XDELEX', KEYS[1], 'ACKED', 'IDS', 1, id) end
        if ours and ARGV[2] == 'XDEL' then redis.call('XDEL', KEYS[1], id) end
        found[#found + 1] = ours and (why ~= '' and why or new and 1) or 0
    end
    return found
    """

    # KEYS      stream
    # ARGV      group, consumer, idle ms; for each entry: id, deliveries
    # returns   nothing; what somebody else has taken over, or settled, is left alone
    COUNT_AS = """
    for at = 4, #ARGV, 2 do
        local id = ARGV[at]
        if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
            redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'IDLE', ARGV[3],
                'RETRYCOUNT', ARGV[at + 1], 'JUSTID')
        end
    end
    """

    # KEYS      stream
    # ARGV      an id
    # returns   how many of the 10,000 entries after it there are, and the id of the last of them
    COUNT = """
    local found = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', 10000)
    return {#found, #found > 0 and found[#found][1] or ARGV[1]}
    """

    # KEYS      stream
    # ARGV      group, idle ms
    # returns   how many consumers, with nothing pending and idle for longer, were removed
    TIDY = """
    local gone = 0
    for _, words in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
        local is = {}
        for i = 1, #words, 2 do is[words[i]] = words[i + 1] end
        if is.pending == 0 and is.idle > tonumber(ARGV[2]) then
            redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], is.name)
            gone = gone + 1
        end
    end
    return gone
    """

    def __init__(
        self,
        r: Any,
        stream: str,
        group: str,
        name: str,
        handler: Callable[[Entry, Any], Any],
        *,
        batch: int = 100,
        block: float = 1.0,
        idle: float = 30.0,
        deliveries: int = 5,
        dead: str | None = None,
        remember: float = 3600.0,
        start: str = "0",
        delete: bool = False,
        newer: bool | None = None,
    ) -> None:
        """`block`: how long a round waits for entries (0: not at all). `start`: the id after which a new
        group begins ("0": with the oldest entry, "$": with the next one that is added). Sends nothing.

        `idle`: 0 is for the race explorer: whatever is pending may be taken over at any moment. `newer`: use
        CLAIM of Redis 8.4 and XDELEX of 8.2? None asks the server, once a client.
        """
        _check(r, stream)
        if not callable(handler):
            raise TypeError(f"handler is {handler!r}; it must be callable with an entry and its effects")
        self._r, self.stream, self.group, self.name = r, stream, _named("group", group), _named("name", name)
        self.handler, self.delete, self._newer = handler, delete, newer
        self.batch, self.deliveries = _whole("batch", batch, 1, 10_000), _whole("deliveries", deliveries)
        self.block, self.idle = _seconds("block", block, 0), _seconds("idle", idle, 0)
        self.remember, self.start = _seconds("remember", remember), _named("start", start)
        self.dead = f"{stream}:dead" if dead is None else _named("dead", dead)
        if self.dead == stream:
            raise ValueError(f"dead is {dead!r}, the stream itself; it must be another")
        self.errors: deque[Exception] = deque(maxlen=100)
        """The newest 100: HandlerFailed, GroupLost, and what `run` has survived."""
        self._counts = dict.fromkeys(Report._fields, 0)
        self._stopped, self._stop = False, None  # type: tuple[bool, threading.Event | None]
        self._created, self._cursor, self._due = False, "0-0", 0.0

    @property
    def report(self) -> Report:
        """What it has done since it was made."""
        return Report(**self._counts)

    def done_key(self, key: str) -> str:
        """What remembers that this key of a producer has been applied."""
        group = self.group.replace("%", "%25").replace(":", "%3a")  # or a:b and c would meet a and b:c
        return f"{self.stream}:done:{group}:{key}"

    def poll(self) -> int:
        """One round: take over what is due, or read a batch; handle and settle it. How many were settled."""
        self._stopped = False
        return self._round()[1]

    def run(self, stop: threading.Event | None = None, *, until_idle: bool = False) -> Report:
        """Round after round, until it is told to stop; with `until_idle`, until nothing is waiting or pending
        in the whole group. What it has done.

        A server that does not answer is asked again, after random pauses of up to a second; what it had
        delivered meanwhile comes again after `idle`. Other errors of Redis are raised, a wrong password among
        them.
        """
        before, pause, self._stop = self.report, 0.05, stop
        try:
            while not self._stopping:
                try:
                    found, _ = self._round()
                    if until_idle and not found and self.lag()[:2] == (0, 0):
                        break
                    if not found and not self.block:
                        time.sleep(PAUSE)
                    pause = 0.05
                except LOST as error:
                    if not _is_lost(error):
                        raise
                    self.errors.append(error)
                    time.sleep(JITTER.uniform(0, pause))
                    pause = min(2 * pause, 1.0)
        finally:
            self._stopped, self._stop = False, None
        return Report(*(now - then for now, then in zip(self.report, before, strict=True)))

    def stop(self) -> None:
        """Let `run` end: after the entry that is being handled, and within `block`; from any thread or signal
        handler. What it has read and not begun is handed back: to others, when they next take over, which is
        at once from Redis 8.4 on, and every `idle` / 2 before."""
        self._stopped = True

    @property
    def _stopping(self) -> bool:
        return self._stopped or (self._stop is not None and self._stop.is_set())

    def lag(self) -> Lag:
        """How far the group is behind. One round trip.

        Where entries were deleted (not trimmed), or the group began in the middle, Redis does not know how
        many are waiting; then they are counted, 10,000 with each round trip. Redis 7.0 may count some that
        were trimmed, too, but not more than the stream has, and none at its end.
        """
        stream, groups, oldest = self._with_group(self._ask)
        group = next(group for group in groups if _text(group["name"]) == self.group)
        waiting = _waiting(stream, group)
        if waiting is None:
            waiting = sum(self._count_after(_text(group["last-delivered-id"])))
        age = oldest[0]["time_since_delivered"] / 1000 if oldest else None
        return Lag(waiting, int(group["pending"]), age)

    def _ask(self) -> Any:
        with self._r.pipeline(transaction=False) as pipe:
            pipe.execute_command("XINFO STREAM", self.stream, **RAW)
            pipe.xinfo_groups(self.stream)
            pipe.xpending_range(self.stream, self.group, "-", "+", 1)
            return pipe.execute()

    def _count_after(self, id: str) -> Iterator[int]:
        count = -1
        while count in (-1, 10_000):
            count, last = _run(self._r, self.COUNT, 1, self.stream, id)
            id = _text(last)
            yield int(count)

    def tidy(self, older: float = 86_400) -> int:
        """Remove consumers that have nothing pending and have not asked for `older` seconds; how many."""
        return int(_run(self._r, self.TIDY, 1, self.stream, self.group, _ms(_seconds("older", older, 0))))

    def _round(self) -> tuple[int, int]:
        """How many entries it got, and how many were settled."""
        batch = self._with_group(self._receive)
        ready, settled, since = list[_Work](), 0, time.monotonic()
        last = [entry for entry in batch if entry[2] == self.deliveries > 1]
        self._count(last, -1, 0)  # one of them may kill: the others have not had their last attempt then
        for number, (id, fields, deliveries) in enumerate(batch):
            if self._stopping:
                settled += self._settle(ready)
                self._hand_back(batch[number:])
                return len(batch), settled
            if deliveries == self.deliveries > 1:  # the attempt counts now that it begins
                settled, ready = settled + self._settle(ready), []
                self._count([(id, fields, deliveries)], 0, 0)
            if (work := self._handle(id, fields, deliveries)) is not None:
                ready.append(work)
            if time.monotonic() - since >= SETTLE:
                settled += self._settle(ready)
                ready, since = [], time.monotonic()
        return len(batch), settled + self._settle(ready)

    def _handle(self, id: str, fields: dict[Any, Any], deliveries: int) -> _Work | None:
        """None: the handler has failed, and may try again."""
        effects, key = Effects(), ""
        try:
            words = {_text(name): _text(value) for name, value in fields.items()}
            key = words.pop("@key", "")
            event = {name: _load(value) for name, value in words.items() if name[:1] != "@"}
        except (ValueError, RecursionError) as error:
            return _Work(id, "", deliveries, [], f"no event: {error}", type(error).__name__)
        if deliveries > self.deliveries:
            return _Work(id, key, deliveries, [], "it was delivered, and not settled, too often", "Crashed")
        self._counts["handled"] += 1
        try:
            self.handler(Entry(id, event, key or id, deliveries), effects)
        except Exception as error:
            self._counts["failed"] += 1
            self._note(id, deliveries, error)
            if deliveries < self.deliveries:
                return None
            why = str(error).encode(errors="backslashreplace").decode() or type(error).__name__
            return _Work(id, key, deliveries, [], why, type(error).__name__)
        return _Work(id, key, deliveries, effects.commands)

    def _note(self, id: str, deliveries: int, why: Exception) -> None:
        failed = HandlerFailed(id, deliveries, f"{type(why).__name__}: {why}")
        failed.__cause__ = why
        self.errors.append(failed)

    def _settle(self, ready: list[_Work]) -> int:
        """Acknowledge and apply, all in one script."""
        if not ready:
            return 0
        keys, args = [self.stream, self.dead], list[Any]()
        for work in ready:
            if work.key:
                keys.append(self.done_key(work.key))
            done = len(keys) if work.key else 0
            args += (work.id, done, work.deliveries, work.error, work.kind, len(work.effects))
            for words in work.effects:
                args += (len(words), *words)
        how = "" if not self.delete else "XDELEX" if self._knows("xdelex") else "XDEL"
        options = self.group, how, _ms(self.remember), DEAD_MAXLEN
        replies = _run(self._r, self.SETTLE, len(keys), *keys, *options, *args)
        for work, reply in zip(ready, replies, strict=True):
            dead = isinstance(reply, str | bytes)
            self._counts["dead" if dead else "applied" if reply else "skipped"] += 1
            if dead and not work.error:
                self._note(work.id, work.deliveries, exceptions.ResponseError(_text(reply)))
        return len(ready)

    def _hand_back(self, batch: list[Received]) -> None:
        """Let others see them as idle, and as if they had not been delivered this time."""
        self._count(batch, -1, self.idle)

    def _count(self, batch: list[Received], more: int, idle: float) -> None:
        args = [word for id, _, deliveries in batch for word in (id, deliveries + more)]
        if args:
            _run(self._r, self.COUNT_AS, 1, self.stream, self.group, self.name, _ms(idle), *args)

    def _receive(self) -> list[Received]:
        found = self._reclaim() if self._is_due else []
        return found or self._read(self._knows("CLAIM"))

    def _with_group(self, do: Callable[[], Any]) -> Any:
        """Create the group at first, and when it has vanished."""
        if not self._created:
            self._create()
        try:
            return do()
        except exceptions.ResponseError as error:
            if not any(words in str(error) for words in ("NOGROUP", "no such key", "key no longer exists")):
                raise
            self.errors.append(GroupLost(f"{self.group} of {self.stream}: {error}"))
            self._create()
            return do()

    def _create(self) -> None:
        try:
            self._r.xgroup_create(self.stream, self.group, self.start, mkstream=True)
        except exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._created = True

    def _knows(self, word: str) -> bool:
        return _knows(self._r, word) if self._newer is None else self._newer

    @property
    def _is_due(self) -> bool:
        return time.monotonic() >= self._due

    def _read(self, newer: bool) -> list[Received]:
        block = self._patience(newer)
        words: list[Any] = ["GROUP", self.group, self.name, "COUNT", self.batch]
        words += ("BLOCK", max(_ms(block), 1)) if block > 0 else ()
        words += ("CLAIM", _ms(self.idle)) if newer else ()
        claim = {"claim_min_idle_time": 0} if newer else {}  # tells redis-py what to expect
        reply = self._r.execute_command("XREADGROUP", *words, "STREAMS", self.stream, ">", **claim, **RAW)
        if not reply and self.block and block <= 0:
            time.sleep(min(self.block, PAUSE))
        pairs = reply.items() if isinstance(reply, dict) else reply
        found: list[Any] = next((entries for _, entries in pairs), [])
        if found and isinstance(found[0], list):  # redis-py's legacy form of RESP3
            found = found[0]
        before = [int(entry[3]) if len(entry) > 3 else 0 for entry in found]
        self._counts["reclaimed"] += sum(map(bool, before))
        return [(_text(entry[0]), entry[1], count + 1) for entry, count in zip(found, before, strict=True)]

    def _patience(self, newer: bool) -> float:
        """For how long to block: not beyond the socket's patience, nor beyond the next taking over."""
        options = getattr(self._r, "connection_pool", None) or self._r.nodes_manager
        patience = options.connection_kwargs.get("socket_timeout", 2)
        block = min(self.block, math.inf if patience is None else (patience - LATE) / 2)
        return block if newer or block <= 0 else min(block, max(self._due - time.monotonic(), 0.001))

    def _reclaim(self) -> list[Received]:
        """Take over what has been pending for too long; what was trimmed leaves the list."""
        words = (self.stream, self.group, self.name, _ms(self.idle), self._cursor, "COUNT", self.batch)
        cursor, found, gone = self._r.execute_command("XAUTOCLAIM", *words, **RAW)
        self._cursor = _text(cursor)
        self._counts["trimmed"] += len(gone)
        if self._cursor == "0-0":
            self._due = time.monotonic() + self.idle / 2
        if not found:
            return []
        self._counts["reclaimed"] += len(found)
        with self._r.pipeline(transaction=False) as pipe:
            for id, _ in found:
                pipe.xpending_range(self.stream, self.group, id, id, 1)
            counts = pipe.execute()
        return [
            (_text(id), fields, int(count[0]["times_delivered"]) if count else 1)
            for (id, fields), count in zip(found, counts, strict=True)
        ]
