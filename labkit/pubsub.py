"""Publish and subscribe on Redis: a listener that starts ready, tells what it missed, and stops for certain.

    with subscribe(r, "news", print) as sub:      # print("news", {"id": 1}), in a thread of its own
        publish(r, "news", {"id": 1})             # 1: so many have been sent it

What pub/sub is, with any client:

* At most once. A message goes to those who are connected and subscribed at that moment, and is gone: it is
  neither stored, nor in the AOF, nor in a replica's memory. Who comes later never hears of it.
* In order: a subscriber has all messages of one publisher in the order in which that one sent them (in a
  cluster those of one channel: different channels go by different nodes).
* Nobody waits for anybody: PUBLISH costs the server O(subscribers of the channel + all patterns), and what a
  slow subscriber has not read yet fills the server's memory, until client-output-buffer-limit cuts it off.
* Channels know no databases: what is published in db 0 is heard in db 1.

So it is for what is worthless when late: presence, "look again", live pictures. What has to arrive belongs in
a stream. Sources: "Redis Pub/Sub", PUBLISH, PSUBSCRIBE, SSUBSCRIBE and "Redis client handling" on redis.io.
Times are in seconds."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import random
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

GLOB = frozenset("*?[\\")  # a pattern has one of these; a backslash takes the next character as it is
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds before connecting again, at most: doubled each time
MESSAGES = (b"message", b"pmessage", b"smessage")
FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
ENDED = (b"unsubscribe", b"punsubscribe", b"sunsubscribe")
JITTER = random.SystemRandom()  # leaves the program's own random numbers alone


class CallbackFailed(Exception):
    """A callback has raised `error` (also: `__cause__`) when it was called with `channel` and `event`."""

    def __init__(self, channel: str, event: Any, error: Exception) -> None:
        super().__init__(channel, event, error)
        self.channel, self.event, self.error = channel, event, error
        self.__cause__ = error

    def __str__(self) -> str:
        return f"{self.channel}: {type(self.error).__name__}: {self.error}"


class BadMessage(CallbackFailed):
    """What came is no JSON: `event` is its bytes. The callback was not called."""


class Gap(NamedTuple):
    """From `lost_at` to `back_at` messages may have been lost; nobody can know how many, or whether any.

    Unix seconds, by this machine's clock. What was published before `lost_at` has arrived, and so does what
    is published after `back_at`; of what lies between, any part may have come. `lost_at` is when the last
    PING was sent that was answered (or the subscription confirmed), for no later moment is certain: a
    message that the server has sent may still be lost on the way, or in its memory when it closes.
    """

    lost_at: float
    back_at: float
    reason: str

    @property
    def seconds(self) -> float:
        """How long it was, at most."""
        return self.back_at - self.lost_at


class _Moment(NamedTuple):
    """By two clocks: the first stands still while the machine sleeps, the second may be set back."""

    tick: float
    unix: float


def _no_json(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _now() -> _Moment:
    return _Moment(time.monotonic(), time.time())


class _Lost(exceptions.ConnectionError):
    """The connection is there, but nothing comes on it any more."""


def _check(r: Any, channel: str) -> None:
    command = getattr(r, "execute_command", None)
    if command is None or hasattr(r, "execute") or inspect.iscoroutinefunction(command):
        raise TypeError(f"{type(r).__name__} is no client such as redis.Redis, or is an async one")
    if not isinstance(channel, str):
        raise TypeError(f"the channel is {channel!r}; it must be a str")
    if not channel:
        raise ValueError("the channel is empty; it must be a str of one character or more")


def publish(r: Any, channel: str, event: Any, *, sharded: bool = False) -> int:
    """Send `event` as JSON to all who listen to `channel` now. How many they were; one round trip.

    The number counts subscriptions at the server that was asked (one that listens twice counts twice). In a
    cluster that is the node that has the channel's slot, where `subscribe` listens if it answers, but for a
    pattern; all nodes pass the message on, so 0 does not mean that nobody has it. The number says that the
    message was put into their buffers, not that anybody has read it.

    `sharded` (SPUBLISH) goes to the node that has the channel's slot, and only to who subscribed sharded.
    Raises TypeError or ValueError for what is no JSON (NaN is not), and the client's own errors. After a
    timeout it is unknown whether it was sent; a client that sends again by itself may have done so twice.
    """
    _check(r, channel)
    data = json.dumps(event, separators=(",", ":"), allow_nan=False)
    return int(r.execute_command("SPUBLISH" if sharded else "PUBLISH", channel, data))


def subscribe(
    r: Any,
    pattern: str,
    callback: Callable[[str, Any], Any],
    *,
    on_error: Callable[[CallbackFailed], Any] | None = None,
    on_gap: Callable[[Gap], Any] | None = None,
    heartbeat: float = 15.0,
    sharded: bool = False,
) -> Subscription:
    """Call `callback(channel, event)` for each message from now on: see Subscription. Keep what is returned.

    A `pattern` with * ? [ or \\ is one (PSUBSCRIBE: each PUBLISH on the server, to whatever channel, is
    compared with it); else it is the channel's name (SUBSCRIBE: looked up). `sharded` (SSUBSCRIBE) takes a
    name only. When this returns, the server has confirmed it: nothing that is published later is lost.

    Opens one connection, with r's settings, and one round trip more than that takes. Redis's errors are
    raised, and nothing is left behind: redis.exceptions.TimeoutError after r's socket_timeout,
    NoPermissionError where the user may not hear the channel.
    """
    _check(r, pattern)
    for name, function in (("callback", callback), ("on_error", on_error), ("on_gap", on_gap)):
        wanted = callable(function) or (function is None and name != "callback")
        if not wanted or any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
            raise TypeError(f"{name} is {function!r}; it must be a function, and not an async one")
    if isinstance(heartbeat, bool) or not isinstance(heartbeat, int | float):
        raise TypeError(f"heartbeat is {heartbeat!r}; it must be a number of seconds from 0.01 to 86400")
    if not 0.01 <= heartbeat <= 86_400:
        raise ValueError(f"heartbeat is {heartbeat!r}; it must be from 0.01 to 86400 seconds")
    return Subscription(_Listener(r, pattern, callback, on_error, on_gap, heartbeat, sharded))


class Subscription:
    """A subscription, its connection and its listener thread; a context manager.

    Guarantees: it has one thread and one connection. Callbacks run one at a time, in that thread, in the
    order in which the server sent the messages. When `close()` has returned True, none runs and none will,
    and thread and connection are gone. They go, too, when nobody refers to the subscription any more (a
    callback that does counts: use `with`), and when the process ends. Either waits for a callback that is
    running, for a second at most, for each subscription. Idle, it sleeps in the kernel.

    Gaps: after `heartbeat` seconds a PING is sent, and so on; if then nothing at all comes for so long again,
    the connection counts as dead. That, a connection closed by a server that was killed, by CLIENT KILL or by
    client-output-buffer-limit, and a sharded channel whose slot has moved, are treated alike: it connects and
    subscribes again, after random pauses of at most 0.05 s, doubled up to 2 s, for as long as it takes. When
    it has succeeded, a Gap is in `gaps` (the newest 1,000), and `on_gap(gap)` is called before any message
    that came later: whoever reads the state there, and then applies what comes, misses nothing. Meanwhile
    `trouble` is the error of the last attempt. A user who is no longer allowed to listen is such an outage,
    too: it ends when he is allowed again, or with `close()`; `alive` stays True.

    Errors: what the callback raises is in `errors` (the newest 100) as CallbackFailed, and handed to
    `on_error`; the next message is delivered as if nothing had happened. The same goes for what is no JSON
    (BadMessage), and for what `on_gap` raises; what `on_error` raises goes into `errors` only. Without
    `on_error` nothing is printed: look at `failures`. What is no Exception (SystemExit, KeyboardInterrupt) is
    no failure of a message: raised by a callback, it ends the subscription, and `alive` is False.

    A slow callback delays the next one. What comes meanwhile waits in the buffers of TCP, and then in the
    server's memory; beyond client-output-buffer-limit (32 MB at once, or 8 MB for a minute, if nobody changed
    it) the server closes, and what it had kept is lost: a gap, which is noticed when the callback comes to
    the end of what had arrived. Give long work to a queue.

    A forked child has no listener: there `alive` is False, and `close()` leaves the parent's alone.
    In a cluster, a channel is heard at the node of its slot, where redis-py publishes it, or, if that one is
    away, at any; a pattern at any; a sharded channel at the node of its slot only. All are looked up anew
    after a failure. A message of the last moments before `subscribe` may arrive, by way of another node.
    """

    def __init__(self, listener: _Listener) -> None:
        """By `subscribe` only."""
        self.channel, self._listener = listener.pattern, listener
        self._end = weakref.finalize(self, listener.stop, 1.0)  # also when the process ends
        listener.start()

    @property
    def alive(self) -> bool:
        """Is it listening, or about to do so again? False once it is closed."""
        return self._listener.mine() and not self._listener.stopped and self._listener.thread.is_alive()

    @property
    def trouble(self) -> Exception | None:
        """Why nothing can come at present, as far as is known; None while it is subscribed."""
        return self._listener.trouble

    @property
    def received(self) -> int:
        """Messages that have been dealt with, also if the callback failed."""
        return self._listener.received

    @property
    def failures(self) -> int:
        """How many errors there were, also those that `errors` no longer has."""
        return self._listener.failures

    @property
    def errors(self) -> list[CallbackFailed]:
        """The newest 100."""
        return list(self._listener.errors)

    @property
    def gaps(self) -> list[Gap]:
        """The newest 1,000 that are over."""
        return list(self._listener.gaps)

    def close(self, timeout: float = 5.0) -> bool:
        """Stop: no callback begins any more. True as soon as thread and connection are gone.

        False if that is not so after `timeout` seconds, since a callback runs for longer, or in a callback of
        its own: the thread ends as soon as the callback does. Otherwise it takes milliseconds, also while the
        server is silent or gone; but up to r's own timeouts if the network is just swallowing what opens a
        connection (or TLS on it), or a cluster is just being asked for its nodes. Again: no effect.
        """
        if not timeout >= 0:
            raise ValueError(f"timeout is {timeout!r}; it must be 0 seconds or more")
        gone = self._listener.stop(timeout)
        if gone:
            self._end.detach()
        return gone

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        counts = f"{self.received} received, {self.failures} failed, {len(self._listener.gaps)} gaps"
        state = "closed" if not self.alive else "lost" if self.trouble else "listening"
        return f"Subscription({self.channel!r}, {state}: {counts})"


class _Listener:
    """The thread of a Subscription and all that it uses. It does not know the Subscription, which can go."""

    def __init__(
        self, r: Any, pattern: str, callback: Any, on_error: Any, on_gap: Any, heartbeat: float, sharded: bool
    ) -> None:
        self._r, self.pattern, self._sharded, self._heartbeat = r, pattern, sharded, heartbeat
        self._callback, self._on_error, self._on_gap = callback, on_error, on_gap
        self._command = "SSUBSCRIBE" if sharded else "PSUBSCRIBE" if GLOB & set(pattern) else "SUBSCRIBE"
        self.received, self.failures = 0, 0
        self.errors: deque[CallbackFailed] = deque(maxlen=100)
        self.gaps: deque[Gap] = deque(maxlen=1000)
        self.trouble: Exception | None = None
        self.stopped, self._bell = False, SimpleQueue[None]()  # an Event could not be set by a finalizer
        self.thread = threading.Thread(target=self._run, name=f"subscription {pattern}", daemon=True)
        self._pid = os.getpid()
        self._connection: Any = None
        self._sound = _now()  # until then nothing is missing
        self._asked: _Moment | None = None  # when the PING was sent that is not answered yet

    def mine(self) -> bool:
        """Not so in a forked child, also one that a callback forked."""
        return self._pid == os.getpid()

    def start(self) -> None:
        """Subscribe here, so that the caller has the errors, and then listen in the thread."""
        try:
            self._open()
            self.thread.start()
        except BaseException:
            self.stop(1.0)
            self._disconnect()
            raise

    def stop(self, timeout: float) -> bool:
        """Is the thread gone? Ending its connection wakes it: again and again, for it may open another."""
        if not self.mine():
            return True
        self.stopped = True
        self._bell.put(None)
        deadline = time.monotonic() + timeout
        while self.thread.is_alive():
            sock = getattr(self._connection, "_sock", None)
            if sock is not None:
                with contextlib.suppress(OSError):  # the other thread was quicker, or the server
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, which is the other thread's
            left = deadline - time.monotonic()
            if left <= 0 or self.thread is threading.current_thread():
                return False
            self.thread.join(min(left, 0.05))
        return True

    def _pool(self, anywhere: bool) -> Any:
        if not hasattr(self._r, "nodes_manager"):
            return self._r.connection_pool
        anywhere = not self._sharded and (anywhere or self._command == "PSUBSCRIBE")
        node = self._r.get_random_node() if anywhere else self._r.get_node_from_key(self.pattern)
        return self._r.get_redis_connection(node).connection_pool

    def _open(self) -> None:
        """Connect and subscribe. In a cluster, a failure may mean that its nodes have changed: once more.

        And where the slot's node, by the new map, does not answer either, any other passes messages on.
        """
        try:
            return self._subscribe()
        except FAILURES:
            if not hasattr(self._r, "nodes_manager") or self.stopped:
                raise
        self._disconnect()
        self._r.nodes_manager.initialize()
        try:
            self._subscribe()
        except FAILURES:
            if self._sharded or self.stopped:
                raise
            self._disconnect()
            self._subscribe(anywhere=True)

    def _subscribe(self, anywhere: bool = False) -> None:
        pool = self._pool(anywhere)
        options = {**pool.connection_kwargs, "retry": Retry(NoBackoff(), 0), "retry_on_error": []}
        options |= {"decode_responses": False, "health_check_interval": 0, "retry_on_timeout": False}
        options |= {"maint_notifications_config": None}
        if options.get("socket_timeout", 0) is None:  # for ever: not on this connection
            options["socket_timeout"] = self._heartbeat
        self._connection = pool.connection_class(**options)
        self._connection.connect()
        self._connection.send_command(self._command, self.pattern)
        confirmed = self._command.lower().encode()
        while self._connection.read_response(push_request=True)[0] != confirmed:
            pass  # a push of another kind
        self._sound, self._asked = _now(), None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()

    def _run(self) -> None:
        try:
            while self.mine() and not self.stopped:
                try:
                    message = self._next()
                except Exception as error:  # whatever it was, this connection is of no use any more
                    self._disconnect()
                    self._come_back(error)
                else:
                    if message is not None and not self.stopped:
                        self._deliver(message[-2].decode(errors="backslashreplace"), message[-1])
        finally:
            self._disconnect()
            self.stopped = True

    def _next(self) -> list[Any] | None:
        """A message, or None: look again. Sends PING when it is due, and raises when nothing comes of it."""
        patience = self._heartbeat
        if self._asked is None and (left := self._sound.tick + self._heartbeat - time.monotonic()) > 0:
            patience = left
        elif self._asked is None:
            asked = _now()
            self._connection.send_command("PING", check_health=False)
            self._asked = asked
        try:
            reply = self._connection.read_response(
                push_request=True, timeout=patience, disconnect_on_error=False
            )
        except exceptions.TimeoutError:
            if self._asked is not None:
                raise _Lost(f"no answer to PING within {self._heartbeat:g} s") from None
            return None
        except exceptions.ResponseError:  # a user who may not send PING has an answer, too
            reply = b"PONG"
        if isinstance(reply, list) and reply[0] in MESSAGES:
            return reply
        if isinstance(reply, list) and reply[0] in ENDED:
            raise _Lost("the channel's slot has moved to another node")
        if self._asked is not None and (reply == b"PONG" or reply[0] == b"pong"):  # RESP3, RESP2
            self._sound, self._asked = self._asked, None
        return None

    def _deliver(self, channel: str, data: bytes) -> None:
        try:
            event = json.loads(data.decode(), parse_constant=_no_json)
        except Exception as error:  # not only ValueError: RecursionError, too
            self._report(BadMessage(channel, data, error))
        else:
            self._call(channel, event, self._callback, channel, event)
        self.received += 1

    def _call(self, channel: str, event: Any, function: Any, *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self._report(CallbackFailed(channel, event, error))

    def _report(self, failed: CallbackFailed) -> None:
        self.errors.append(failed)
        self.failures += 1
        if self._on_error is not None:
            try:
                self._on_error(failed)
            except Exception as error:
                self.errors.append(CallbackFailed(failed.channel, failed.event, error))
                self.failures += 1

    def _come_back(self, error: Exception) -> None:
        """Subscribe again, however long it takes, and say how long that was."""
        reason = str(error) if isinstance(error, _Lost) else "the connection was closed"
        self.trouble, pause = error, FIRST_PAUSE
        while True:
            with contextlib.suppress(Empty):
                self._bell.get(timeout=JITTER.uniform(0, pause))
            if self.stopped:
                return
            sound = self._sound
            try:
                self._open()
            except Exception as again:
                self.trouble, pause = again, min(2 * pause, LONGEST_PAUSE)
                self._disconnect()
                continue
            if self.stopped:
                return
            tick, back_at = _now()
            gap = Gap(min(sound.unix, back_at - (tick - sound.tick)), back_at, reason)
            self.gaps.append(gap)
            self.trouble = None
            if self._on_gap is not None:
                self._call(self.pattern, gap, self._on_gap, gap)
            return
