"""Exercises of chapter 01: a retry that gives up, a count that may be repeated, a pool that is bounded."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

from labkit.rig.proxy import Proxy
from labkit.rig.server import Server
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.lab import Lab

# --- retry: backoff, jitter, a cap, and an end ------------------------------------------------------------


class _Enough(BaseException):
    """Ends an answer that would go on for ever; not an Exception, so that no `except Exception` keeps it."""


class _Trial:
    """One call of the answer in virtual time: the outcome, how often it called, and how long it paused."""

    def __init__(
        self,
        answer: Any,
        error: Exception,
        failing: int = 10**6,
        draw: Callable[[float, float], float] = max,
        attempts: int = 6,
    ) -> None:
        self.calls, self.pauses = 0, list[float]()
        self._error, self._failing, self._limit = error, failing, attempts + 20
        self.raised: BaseException | None = None
        self.result: Any = None
        try:
            self.result = answer(self._call, attempts, 0.1, 1.0, self.pauses.append, draw)
        except (redis.RedisError, OSError, _Enough) as end:
            self.raised = end

    def _call(self) -> str:
        self.calls += 1
        if self.calls > self._limit:
            raise _Enough
        if self.calls <= self._failing:
            raise self._error
        return "PONG"

    def __str__(self) -> str:
        pauses = ", ".join(f"{pause:.3g}" for pause in self.pauses[:8]) + " …" * (len(self.pauses) > 8)
        end = f"raised {type(self.raised).__name__}" if self.raised else f"returned {self.result!r}"
        if isinstance(self.raised, _Enough):
            end = "was stopped"
        return f"attempts=6, base=0.1, cap=1.0: {self.calls} calls, pauses [{pauses}], then it {end}"


def _grade_retry(answer: Any, lab: Lab) -> None:
    refused = redis.ConnectionError("Connection refused")
    good = _Trial(answer, refused, failing=0)
    if (good.calls, good.pauses, good.result) != (1, [], "PONG"):
        raise Failure(
            "answer", "a call that succeeds is made once, and its answer returned", str(good), "return"
        )
    _grade_end(_Trial(answer, refused), refused)
    _grade_pauses(answer, refused)
    timeout = _Trial(answer, redis.TimeoutError("Timeout reading from socket"), failing=1)
    if timeout.calls != 1 or not isinstance(timeout.raised, redis.TimeoutError):
        look_at = "which errors you catch: after a timeout nobody knows whether the command ran"
        raise Failure(
            "unknown", "it sent a command again that may have run", f"a timeout; {timeout}", look_at
        )
    _grade_other_errors(answer)
    _grade_outage(answer)


def _grade_other_errors(answer: Any) -> None:
    """Errors that say nothing of a refused connection: the call failed, and would fail again."""
    for error in (redis.ResponseError("WRONGTYPE of key"), OSError("No space left on device")):
        trial = _Trial(answer, error, failing=1)
        if trial.calls != 1 or trial.raised is not error:
            raise Failure(
                "other errors",
                "an error that is no refusal goes to the caller at once",
                f"{type(error).__name__}: {error}; {trial}",
                "which errors you catch: redis.ConnectionError alone",
            )


def _grade_end(never: _Trial, refused: Exception) -> None:
    if never.calls != 6:
        raise Failure("bounded", "it makes at most `attempts` calls", str(never), "when your loop ends")
    if never.raised is not refused:
        raise Failure("gives up", "having given up, it raises the last error", str(never), "`raise`")
    if len(never.pauses) != 5:
        raise Failure(
            "last pause", "between 6 calls there are 5 pauses", str(never), "the last failed attempt"
        )


def _grade_pauses(answer: Any, refused: Exception) -> None:
    longest = _Trial(answer, refused, failing=5)
    if max(longest.pauses, default=0) > 1.0:
        raise Failure("cap", "no pause is longer than the cap", str(longest), "min()")
    wanted = [0.1, 0.2, 0.4, 0.8, 1.0]
    if any(abs(got - want) > 1e-9 for got, want in zip(longest.pauses, wanted, strict=True)):
        shown = f"the longest pauses that may be drawn are {wanted}\n{longest}"
        raise Failure(
            "backoff", "the pauses double from `base` on", shown, "2 to the power of the failures so far"
        )
    shortest = _Trial(answer, refused, failing=5, draw=min)
    if shortest.pauses != [0, 0, 0, 0, 0]:
        shown = f"uniform(low, high) that always draws low\n{shortest}"
        raise Failure("jitter", "each pause is drawn between 0 and its longest", shown, "uniform(0, …)")
    middle = _Trial(answer, refused, failing=5, draw=_middle)
    wanted = [limit / 2 for limit in wanted]
    if any(abs(got - want) > 1e-9 for got, want in zip(middle.pauses, wanted, strict=True)):
        shown = f"uniform(low, high) that always draws the middle: the pauses should be {wanted}\n{middle}"
        message = "it draws first and cuts off afterwards, so that late pauses are mostly the cap itself"
        raise Failure("draw below the cap", message, shown, "the order: min() first, then uniform()")


def _middle(low: float, high: float) -> float:
    return (low + high) / 2


def _grade_outage(answer: Any) -> None:
    """The same with a real server that dies and returns."""
    with Server() as server:
        client = server.client(retry=Retry(NoBackoff(), 0))
        client.ping()
        server.kill()
        back = threading.Timer(0.15, server.start)
        back.start()
        try:
            up = answer(client.ping, 60, 0.01, 0.1, time.sleep, random.uniform)
        except redis.ConnectionError as error:
            raise Failure(
                "answer", "the server came back, and it did not notice", repr(error), "the loop"
            ) from None
        finally:
            back.join()
            client.close()
        if up is not True:
            raise Failure("answer", "the server came back, and its answer got lost", repr(up), "`return`")


retry = Exercise(
    stem="connection",
    name="retry",
    title="few attempts, spread out, and an end",
    statement="""Write `retry(call, attempts, base, cap, sleep, uniform)`: it returns what `call()`
returns. Here `redis.ConnectionError` means that the connection was refused, so nobody took the
command: when `call()` raises it, pause and call again, at most `attempts` times in all, then raise
the last error. The first pause is drawn between 0 and `base` seconds, and the limit doubles each
time, but never exceeds `cap`. Draw with `uniform(low, high)`, pause with `sleep(seconds)`. Every
other error goes to the caller at once.""",
    answer="retry",
    stub='''import random
import time


def retry(call, attempts, base, cap, sleep=time.sleep, uniform=random.uniform):
    """The answer of call(), with at most so many attempts while the connection is refused."""
    raise NotImplementedError''',
    hints=(
        "A `for` loop over the attempts has an end by itself. `return` leaves it on success.",
        "After n failures the pause is drawn from 0 to `min(cap, base * 2 ** (n - 1))`.",
        "The last failure is followed by `raise`, not by a pause. Catch `redis.ConnectionError` only.",
    ),
    reference='''
import random
import time

import redis


def retry(call, attempts, base, cap, sleep=time.sleep, uniform=random.uniform):
    """The answer of call(), with at most so many attempts while the connection is refused."""
    for failures in range(1, attempts + 1):
        try:
            return call()
        except redis.ConnectionError:
            if failures == attempts:
                raise
        sleep(uniform(0, min(cap, base * 2 ** (failures - 1))))
''',
    wrong=(
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    failures = 0
    while True:
        try:
            return call()
        except redis.ConnectionError:
            sleep(uniform(0, min(cap, base * 2 ** failures)))
            failures += 1
""",
            "bounded",
            "`while True` without a bound: if the server stays away, the caller never learns of it",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(attempts):
        try:
            return call()
        except redis.ConnectionError:
            if failures < attempts - 1:
                sleep(uniform(0, min(cap, base * 2 ** failures)))
""",
            "gives up",
            "it returns None, as if that were the answer",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(attempts):
        try:
            return call()
        except redis.ConnectionError as error:
            last = error
            sleep(uniform(0, min(cap, base * 2 ** failures)))
    raise last
""",
            "last pause",
            "the caller waits once more, for nothing",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(1, attempts + 1):
        try:
            return call()
        except redis.ConnectionError:
            if failures == attempts:
                raise
        sleep(uniform(0, base * 2 ** (failures - 1)))
""",
            "cap",
            "no cap: after ten failures the limit is 512 times base, and it doubles on",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(1, attempts + 1):
        try:
            return call()
        except redis.ConnectionError:
            if failures == attempts:
                raise
        sleep(uniform(0, base))
""",
            "backoff",
            "the same pause each time: a server that is away for long is asked as often as at first",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(1, attempts + 1):
        try:
            return call()
        except redis.ConnectionError:
            if failures == attempts:
                raise
        sleep(min(cap, base * 2 ** (failures - 1)))
""",
            "jitter",
            "grows, but without chance: all who failed together come back together",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(1, attempts + 1):
        try:
            return call()
        except redis.RedisError:
            if failures == attempts:
                raise
        sleep(uniform(0, min(cap, base * 2 ** (failures - 1))))
""",
            "unknown",
            "after a timeout the command may run twice",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(1, attempts + 1):
        try:
            return call()
        except redis.ConnectionError:
            if failures == attempts:
                raise
        sleep(min(cap, uniform(0, base * 2 ** (failures - 1))))
""",
            "draw below the cap",
            "late pauses are mostly the cap, and the herd meets again",
        ),
        Wrong(
            """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    for failures in range(1, attempts + 1):
        try:
            return call()
        except (redis.ConnectionError, redis.ResponseError):
            if failures == attempts:
                raise
        sleep(uniform(0, min(cap, base * 2 ** (failures - 1))))
""",
            "other errors",
            "a wrong command is not cured by waiting",
        ),
    ),
    grade=_grade_retry,
)

# --- count_once: safe to repeat ---------------------------------------------------------------------------


def _grade_count_once(answer: Any, lab: Lab) -> None:
    counter, other = lab.key("orders"), lab.key("returns")
    got = [answer(lab.r, counter, f"order-{n}", 60) for n in (1, 2, 3)]
    if got != [1, 2, 3]:
        raise Failure(
            "counts", "three requests count to three", f"returned {got}", "what INCR returns, as an int"
        )
    again = answer(lab.r, counter, "order-1", 60)
    if (count := lab.r.get(counter)) != "3":
        shown = f"orders 1, 2, 3, and 1 again: GET {counter} -> {count!r}"
        raise Failure(
            "once", "a repeated request was counted again", shown, "SET … NX on a key with the request's id"
        )
    if again != 1:
        shown = f"order-1 -> 1, order-2 -> 2, order-3 -> 3, order-1 again -> {again}"
        raise Failure(
            "same reply", "the repeated request got another reply", shown, "what the marker could remember"
        )
    if (reply := answer(lab.r, other, "order-3", 60)) != 1:
        shown = f"order-3 of {counter}, then order-3 of {other} -> {reply}"
        raise Failure("separate", "two counters share their markers", shown, "the name of the marker")
    _grade_one_step(answer, lab, counter)
    _grade_memory(answer, lab, counter, other)
    _grade_slow_link(answer, lab)


def _grade_one_step(answer: Any, lab: Lab, counter: str) -> None:
    with lab.tap() as tape:
        answer(lab.r, counter, "order-4", 60)
    if tape.round_trips > 1:
        shown = "\n".join(" ".join(exchange.command)[:60] for exchange in tape.commands)
        message = (
            f"{tape.round_trips} round trips: between them another caller may act, or this one may crash"
        )
        raise Failure("one step", message, shown, "Lua: a script runs as a whole or not at all")


def _grade_memory(answer: Any, lab: Lab, counter: str, other: str) -> None:
    if lab.r.ttl(counter) != -1:
        raise Failure(
            "keeps", "the counter itself expires", f"TTL {counter} -> {lab.r.ttl(counter)}", "EXPIRE"
        )
    for marker in sorted(set(lab.r.scan_iter()) - {counter, other}):
        if not 0 < (left := _left(lab.r, marker)) <= 60:
            shown = f"remember=60: {marker} has {left} s to live (-1: for ever)"
            raise Failure("forgets", "a marker does not expire when it should", shown, "the EX of SET")
    brief = lab.key("brief")
    answer(lab.r, brief, "order-1", 1)
    time.sleep(0.6)
    answer(lab.r, brief, "order-2", 1)
    time.sleep(0.6)
    if answer(lab.r, brief, "order-1", 1) != 3:
        shown = "remember=1: order-1, order-2 after 0.6 s, order-1 again after 1.2 s"
        raise Failure(
            "forgets", "with traffic, nothing is ever forgotten", shown, "one time to live for each marker"
        )


def _left(r: redis.Redis, marker: str) -> int:
    """Seconds until all of this key is gone, -1 for never; the fields of a hash may end one by one."""
    left = int(r.ttl(marker))
    if left != -1 or r.type(marker) != "hash":
        return left
    try:
        each = r.httl(marker, *r.hkeys(marker))
    except redis.ResponseError:  # before Redis 7.4
        return -1
    return -1 if -1 in each else max(each)


def _grade_slow_link(answer: Any, lab: Lab) -> None:
    """A client that sends again after 50 ms, behind a link that needs 120 ms and then recovers."""
    key = lab.key("slow")
    with Proxy(lab.server) as link:
        eager = link.client(socket_timeout=0.05, retry=Retry(ConstantBackoff(0.02), 200))
        eager.ping()
        link.delay(120)
        heal = threading.Timer(0.2, link.delay, [0])
        heal.start()
        answer(eager, key, "order-1", 60)
        heal.join()
        eager.close()
    if (count := lab.r.get(key)) != "1":
        shown = f"a link slower than the timeout, one request: GET {key} -> {count!r}"
        raise Failure("once", "a retried request was counted again", shown, "SET … NX with the request's id")


COUNT_ONCE = '''
COUNT_ONCE = """
-- KEYS[1] counter, KEYS[2] the reply to this request; ARGV[1] how long to remember it (s)
local reply = redis.call('GET', KEYS[2])
if reply then
    return tonumber(reply)
end
reply = redis.call('INCR', KEYS[1])
redis.call('SET', KEYS[2], reply, 'EX', ARGV[1])
return reply
"""


def count_once(r, counter, request, remember):
    """Count this request, or repeat the reply that it got before."""
    return r.eval(COUNT_ONCE, 2, counter, f"{counter}:seen:{request}", remember)
'''

count_once = Exercise(
    stem="connection",
    name="count_once",
    title="repeated as often as you like, counted once",
    statement="""Write `count_once(r, counter, request, remember)`: it adds 1 to the key `counter` and
returns the new count. When the same `request` (an id, a string) comes again within `remember`
seconds, nothing changes, and it returns **the same number as the first time**. One round trip, and
nothing is remembered for ever.""",
    answer="count_once",
    stub='''def count_once(r, counter, request, remember):
    """Count this request, or repeat the reply that it got before."""
    raise NotImplementedError''',
    hints=(
        "Keep a key for each request. Its value can be the reply that the request got.",
        "Look, count and remember in one step: a Lua script, called with `r.eval(script, 2, …)`.",
        "In the script: GET the marker. There: return `tonumber(reply)`. Else INCR, and SET it with EX.",
    ),
    reference=COUNT_ONCE,
    wrong=(
        Wrong(
            """
def count_once(r, counter, request, remember):
    return r.incr(counter)
""",
            "once",
            "a bare INCR: each attempt counts, the repeated one too",
        ),
        Wrong(
            """
def count_once(r, counter, request, remember):
    marker = f"{counter}:seen:{request}"
    if r.set(marker, "", nx=True, ex=remember):
        reply = r.incr(counter)
        r.set(marker, reply, ex=remember)
        return reply
    return int(r.get(marker))
""",
            "one step",
            "SET NX, then INCR: a crash in between, and the repeated request finds a marker with no reply",
        ),
        Wrong(
            COUNT_ONCE.replace("return tonumber(reply)", "return tonumber(redis.call('GET', KEYS[1]))"),
            "same reply",
            "repeats the current count: a repeated request must get what it got the first time",
        ),
        Wrong(
            COUNT_ONCE.replace(", 'EX', ARGV[1]", ""),
            "forgets",
            "a marker without a TTL: memory grows with each request that ever was",
        ),
        Wrong(
            COUNT_ONCE.replace('f"{counter}:seen:{request}"', 'f"workbook:seen:{request}"'),
            "separate",
            "one marker for all counters: order 3 of the returns is taken for order 3 of the orders",
        ),
        Wrong(
            """
SCRIPT = '''
local reply = redis.call('HGET', KEYS[2], ARGV[1])
if not reply then
    reply = redis.call('INCR', KEYS[1])
    redis.call('HSET', KEYS[2], ARGV[1], reply)
    redis.call('EXPIRE', KEYS[2], ARGV[2])
end
return tonumber(reply)
'''

def count_once(r, counter, request, remember):
    return r.eval(SCRIPT, 2, counter, f"{counter}:seen", request, remember)
""",
            "forgets",
            "one hash for all markers, renewed by each: while requests come nothing is forgotten",
        ),
        Wrong(
            """
SCRIPT = '''
local reply = redis.call('HGET', KEYS[2], ARGV[1])
if not reply then
    reply = redis.call('INCR', KEYS[1])
    redis.call('HSET', KEYS[2], ARGV[1], reply)
end
return tonumber(reply)
'''

def count_once(r, counter, request, remember):
    return r.eval(SCRIPT, 2, counter, f"{counter}:seen", request)
""",
            "forgets",
            "one hash for all markers, without a TTL: it grows for ever",
        ),
        Wrong(
            COUNT_ONCE.replace(
                'return reply\n"""', 'redis.call(\'EXPIRE\', KEYS[1], ARGV[1])\nreturn reply\n"""'
            ),
            "keeps",
            "the counter gets the TTL as well: after a quiet minute it begins at 1 again",
        ),
    ),
    grade=_grade_count_once,
    seconds=20,
)

# --- pool: bounded, and patient for so long ---------------------------------------------------------------

HELD = 1.2
"""Seconds for which each of the grader's callers keeps its connection."""


def _grade_pool(answer: Any, lab: Lab) -> None:
    client = answer(lab.server.url, 3, 5.0)
    if not isinstance(client, redis.Redis):
        raise Failure("client", "it returns a client", f"returned {client!r}", "redis.Redis.from_pool(pool)")
    try:
        lab.r.set(key := lab.key("text"), "café")
        if (value := client.get(key)) != "café":
            raise Failure(
                "text", "replies are text", f"SET café, then GET -> {value!r}", "decode_responses=True"
            )
        _grade_crowd(client, lab)
    finally:
        client.close()
    hurried = answer(lab.server.url, 2, 0.3)
    try:
        _grade_giving_up(hurried, lab)
    finally:
        hurried.close()


def _grade_crowd(client: redis.Redis, lab: Lab) -> None:
    """Nine callers block for a moment each; three connections are allowed."""
    before = _accepted(lab) - 1  # the client has one connection already
    outcomes = _crowd(client, lab.key("none"), 9, 0.15)
    opened = _accepted(lab) - before
    if opened > 3:
        shown = f"connections=3, 9 callers at once: the server accepted {opened} connections"
        raise Failure("bound", "it opens more connections than it may", shown, "max_connections=")
    if refused := [outcome for outcome in outcomes if outcome]:
        shown = f"connections=3, wait=5 s, 9 callers at once: {len(refused)} refused\n{refused[0]}"
        raise Failure("waits", "callers are refused who could have waited", shown, "BlockingConnectionPool")
    if opened < 3:
        shown = f"connections=3, 9 callers at once: only {opened} connection was used"
        raise Failure(
            "parallel", "callers stand in line although they need not", shown, "single_connection_client"
        )


def _grade_giving_up(client: redis.Redis, lab: Lab) -> None:
    """Two callers hold both connections for a while; a third may wait for 0.3 s."""
    key = lab.key("none")
    held = [threading.Thread(target=_block, args=(client, key, HELD, [])) for _ in range(2)]
    for thread in held:
        thread.start()
    _until(lambda: lab.r.info("clients")["blocked_clients"] == 2)
    start = time.monotonic()
    try:
        client.ping()
        end = "it was served"
    except redis.ConnectionError:
        end = "it was refused"
    seconds = time.monotonic() - start
    for thread in held:
        thread.join()
    if end == "it was served" or not 0.2 < seconds < 1.0:
        shown = f"connections=2, wait=0.3 s, both busy for {HELD} s: {end} after {seconds:.1f} s"
        raise Failure("gives up", "a caller waits for `wait` seconds and no longer", shown, "timeout=")


def _accepted(lab: Lab) -> int:
    return int(lab.r.info("stats")["total_connections_received"])


def _crowd(client: redis.Redis, key: str, callers: int, seconds: float) -> list[str]:
    outcomes: list[str] = []
    threads = [threading.Thread(target=_block, args=(client, key, seconds, outcomes)) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _block(client: redis.Redis, key: str, seconds: float, outcomes: list[str]) -> None:
    """Occupy a connection for a while; notes "" or what went wrong."""
    try:
        client.blpop([key], timeout=seconds)
        outcomes.append("")
    except redis.RedisError as error:
        outcomes.append(str(error))


def _until(condition: Callable[[], bool], seconds: float = 2) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


pool = Exercise(
    stem="connection",
    name="pool",
    title="few connections, many callers, and nobody waits for ever",
    statement="""Write `make_client(url, connections, wait)`: it returns a client that any number of
threads may share. It never opens more than `connections` connections. A caller who finds them all
in use waits for one, up to `wait` seconds, and then gets a `redis.ConnectionError`. Replies are
text.""",
    answer="make_client",
    stub='''def make_client(url, connections, wait):
    """A client for many threads over few connections."""
    raise NotImplementedError''',
    hints=(
        "Two pools of redis-py know `max_connections`; one of them can wait.",
        "`redis.BlockingConnectionPool.from_url(url, …)` takes the settings of the connections, too.",
        "`timeout` is how long a caller waits for a connection. `redis.Redis.from_pool(pool)` is a client.",
    ),
    reference='''
import redis


def make_client(url, connections, wait):
    """A client for many threads over few connections."""
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=wait, decode_responses=True
    )
    return redis.Redis.from_pool(pool)
''',
    wrong=(
        Wrong(
            """
import redis

def make_client(url, connections, wait):
    return redis.Redis.from_url(url, decode_responses=True)
""",
            "bound",
            "the default pool has no bound that helps here: as many connections as callers at once",
        ),
        Wrong(
            """
import redis

def make_client(url, connections, wait):
    return redis.Redis.from_url(url, max_connections=connections, decode_responses=True)
""",
            "waits",
            "max_connections= on the client: this pool refuses at once, it does not wait",
        ),
        Wrong(
            """
import redis

def make_client(url, connections, wait):
    pool = redis.BlockingConnectionPool.from_url(url, timeout=wait, decode_responses=True)
    return redis.Redis.from_pool(pool)
""",
            "bound",
            "BlockingConnectionPool without max_connections: its own bound is 50, not `connections`",
        ),
        Wrong(
            """
import redis

def make_client(url, connections, wait):
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=None, decode_responses=True
    )
    return redis.Redis.from_pool(pool)
""",
            "gives up",
            "timeout=None: when all connections are stuck, every caller waits for ever",
        ),
        Wrong(
            """
import redis

def make_client(url, connections, wait):
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=connections, socket_timeout=wait, decode_responses=True
    )
    return redis.Redis.from_pool(pool)
""",
            "gives up",
            "socket_timeout bounds the wait for a reply, not the wait for a connection",
        ),
        Wrong(
            """
import redis

def make_client(url, connections, wait):
    return redis.Redis.from_url(url, single_connection_client=True, decode_responses=True)
""",
            "parallel",
            "a client with one connection: callers stand in line though more are allowed",
        ),
        Wrong(
            """
import redis

def make_client(url, connections, wait):
    pool = redis.BlockingConnectionPool.from_url(url, max_connections=connections, timeout=wait)
    return redis.Redis.from_pool(pool)
""",
            "text",
            "no decode_responses: replies are bytes, and b'café' is not 'café'",
        ),
    ),
    grade=_grade_pool,
)

EXERCISES = (retry, count_once, pool)
