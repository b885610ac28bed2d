"""Rate limiters on Redis: five algorithms to use, and a naive one to learn from.

    limiter = SlidingLog(r, "login", limit=10, window=60)
    decision = limiter.hit("alice")             # Decision(allowed=True, remaining=9, retry_after=0.0)

One instance serves all keys, threads and processes. What holds for FixedWindow, SlidingLog, SlidingCounter,
TokenBucket and GCRA alike:

* `hit` and `peek` are one round trip: a Lua script on one key, which Redis runs without letting another in.
* Time is the server's, in microseconds; clients' clocks do not matter. Arithmetic is on whole numbers below
  2^53, which Lua's doubles hold exactly; the constructor refuses what could exceed that.
* A refused request costs nothing, is not counted and writes nothing. `retry_after` is exact: so many seconds
  later the same call is admitted, unless others were faster.
* The key is `name:{key}` (what stands in braces decides the slot in a cluster) and always has a TTL: at least
  as long as its content matters. A name belongs to one limiter; to change limit or window, change the name.
* SCRIPT FLUSH and a restart of the server are survived: EVALSHA, then EVAL if the script was unknown. Counts
  live in memory: a server that comes back empty has forgotten them and admits afresh.
* If the server's clock steps back, stored times lie in the future. The next call corrects them to at most one
  window ahead: no more is admitted than without the step, and a refusal lasts at most one window longer
  because of it. If the clock steps forward, stored times count as old, as if that time had passed.

Every constructor takes `now=`, a callable that returns seconds (0 or more, in whole microseconds) in place of
the server's clock: for tests and virtual time; and `on_error=`, what to answer with Redis down, read-only,
full, busy with a script or too slow: "raise" the error, "allow" (remaining 0) or "deny" (retry_after 1 s).
After a timeout a request may have been counted or not, and a client that sends again by itself may count it
twice. Misuse raises ValueError or TypeError before anything is sent. Each class names its source; on scripts,
see redis.io."""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from redis import exceptions

FAILED = (exceptions.RedisError, exceptions.RedisClusterException)
OnError = Literal["raise", "allow", "deny"]
Clock = Callable[[], float] | None
EXACT = 2**53  # up to here Lua's numbers are exact
LATEST = 4_000_000_000  # seconds, in the year 2096: times beyond are refused
LONGEST = 1e9  # seconds, the longest window: times and sums of them stay below 2^53 µs until the year 2090
DOWN = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.RedisClusterException,
)
NOT_NOW = ("BUSY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ")  # it answers, but that it cannot serve now


class Decision(NamedTuple):
    """`remaining` may still be spent now; in `retry_after` seconds this call is admitted (0.0 if it was)."""

    allowed: bool
    remaining: int
    retry_after: float


def _whole(name: str, value: int, most: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} is {value!r}; it must be an int from 1 to {most:,}")
    if not 1 <= value <= most:
        raise ValueError(f"{name} is {value:,}; it must be from 1 to {most:,}")
    return value


def _number(name: str, value: float, least: float, most: float) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{name} is {value!r}; it must be a number from {least:g} to {most:g}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be from {least:g} to {most:g}")
    return Fraction(value)


def _micros(name: str, seconds: float, least: float = 1e-6, most: float = LONGEST) -> int:
    return round(_number(name, seconds, least, most) * 1_000_000)


def _check(r: Any, name: str, on_error: str) -> None:
    if hasattr(r, "execute") or inspect.iscoroutinefunction(getattr(r, "execute_command", None)):
        raise TypeError(
            f"r is a {type(r).__name__}; it must be a client such as redis.Redis, and no async one"
        )
    if not isinstance(name, str) or not name:
        raise TypeError(f"name is {name!r}; it must be a str that is not empty")
    if on_error not in ("raise", "allow", "deny"):
        raise ValueError(f"on_error is {on_error!r}; it must be 'raise', 'allow' or 'deny'")


def _key(name: str, key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key is {key!r}; it must be a str")
    return f"{name}:{{{key}}}"


def _instead(on_error: str, error: Exception) -> Decision:
    """The answer without Redis; raises an error that is not Redis being down."""
    down = isinstance(error, DOWN) or str(error).startswith(NOT_NOW)
    if on_error == "raise" or not down or isinstance(error, exceptions.AuthenticationError):
        raise error
    return Decision(True, 0, 0.0) if on_error == "allow" else Decision(False, 0, 1.0)


class _Limiter:
    """One script, one round trip: what the five have in common.

    KEYS[1]      name:{key}
    ARGV[1..2]   cost, negative only to ask; TTL in ms
    ARGV[3..]    the limiter's own, whole numbers: by default limit, window in µs
    ARGV[last]   the time in µs, if it is not to be the server's
    returns      what remains if admitted, else {what remains, µs to wait}
    """

    LUA = ""
    KEEP = 2  # windows for which a key may matter: this one, and one more if the clock steps back

    def __init__(
        self, r: Any, name: str, *, limit: int, window: float, now: Clock = None, on_error: OnError = "raise"
    ) -> None:
        micros = _micros("window", window)
        self.limit, self.window = _whole("limit", limit, self._highest(micros)), window
        self._prepare(r, name, limit, self.KEEP * micros, (limit, micros), now, on_error)

    def _prepare(
        self, r: Any, name: str, most: int, keep: int, own: Any, now: Clock, on_error: OnError
    ) -> None:
        """`most` is the highest cost, `keep` the µs for which a key matters, `own` the rest of ARGV."""
        _check(r, name, on_error)
        self._r, self.name, self._most, self._now, self._on_error = r, name, most, now, on_error
        self._sha = hashlib.sha1(self.LUA.encode()).hexdigest()
        # Keys expire by the server's time. Virtual time may pass more slowly: then they stay a minute more.
        ttl = math.ceil(keep / 1000) + (1_000 if now is None else 60_000)
        self._own = tuple(map(str, (ttl, *own)))

    def _highest(self, window: int) -> int:
        """The highest limit for a window of so many µs."""
        raise NotImplementedError

    def hit(self, key: str, cost: int = 1) -> Decision:
        """Spend `cost` if there is room for all of it. One round trip."""
        return self._ask(key, cost, 1)

    def peek(self, key: str, cost: int = 1) -> Decision:
        """What `hit` would answer; spends nothing (`remaining` is before the cost). One round trip."""
        return self._ask(key, cost, -1)

    def _ask(self, key: str, cost: int, sign: int) -> Decision:
        if type(cost) is not int or not 0 < cost <= self._most:
            _whole("cost", cost, self._most)
        args = (1, _key(self.name, key), sign * cost, *self._own)
        if self._now is not None:
            args += (_micros("now()", self._now(), 0, LATEST),)
        try:
            try:
                answer = self._r.execute_command("EVALSHA", self._sha, *args)
            except exceptions.NoScriptError:
                answer = self._r.execute_command("EVAL", self.LUA, *args)
        except FAILED as error:
            return _instead(self._on_error, error)
        if type(answer) is int:
            return Decision(True, answer, 0.0)
        return Decision(False, answer[0], answer[1] / 1_000_000)


class FixedWindow(_Limiter):
    """At most `limit` in each window [n·window, (n+1)·window) of the server's Unix time.

    Promises only these aligned windows. `limit` at the end of one and `limit` at the start of the next are
    both admitted, so a window that lies across the edge may hold 2 · limit. Stores one number. `limit` may be
    at most twice the window in µs: two million a second, or 172,800,000,000 a day. Source: the counter on
    redis.io's page on INCR, in one script, so that count and TTL change together.
    """

    # ARGV[3] limit, ARGV[4] window in µs. The key holds n · (limit + 1) + count, so that INCRBY counts.
    LUA = """
    local time = redis.call('TIME')
    local now = tonumber(ARGV[5]) or time[1] * 1000000 + time[2]
    local cost, limit, window = math.abs(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
    local n, held, size = math.floor(now / window), tonumber(redis.call('GET', KEYS[1])) or -1, limit + 1
    local stored, count = math.floor(held / size), held % size
    if stored < n then count = 0 elseif stored > n then n = n + 1 end  -- stored > n: the clock stepped back
    local save, wait = stored > n, 0
    if count + cost > limit then
        wait = (n + 1) * window - now
    elseif tonumber(ARGV[1]) > 0 then
        count, save = count + cost, true
    end
    if save and stored == n then redis.call('INCRBY', KEYS[1], cost)  -- keeps the TTL of the first
    elseif save then redis.call('SET', KEYS[1], string.format('%d', n * size + count), 'PX', ARGV[2]) end
    return wait > 0 and {math.max(0, limit - count), wait} or limit - count
    """

    def _highest(self, window: int) -> int:
        return EXACT // (LATEST * 1_000_000 // window + 2) - 1


class SlidingLog(_Limiter):
    """At most `limit` in every window (t - window, t], whatever t is: the exact answer.

    Stores the time of each admitted unit, oldest first, in a list of at most `limit` entries, which may be a
    million. Redis packs a list of numbers, some 11 bytes each; a sorted set only up to 128 entries, some 50
    bytes each, 90 to 140 beyond. Work: O(log n) to find what has left the window, O(cost) to add. Source: the
    log of times that is usually kept in a sorted set (`NaiveSortedSet`), without its mistakes.
    """

    # ARGV[3] limit, ARGV[4] window in µs. The key holds the times, oldest first.
    LUA = """
    local time = redis.call('TIME')
    local clock = tonumber(ARGV[5]) or time[1] * 1000000 + time[2]
    local cost, limit, window = math.abs(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
    local count = redis.call('LLEN', KEYS[1])
    local newest = tonumber(redis.call('LINDEX', KEYS[1], -1)) or 0
    if newest > clock + window then  -- the clock stepped back far: all of it counts as made now
        for i = 1, count do redis.call('LSET', KEYS[1], i - 1, string.format('%d', clock)) end
        newest = clock
    end
    local now, gone, step = math.max(clock, newest), 0, 1
    while step >= 1 do  -- how many have left the window: strides double, then halve
        local at = redis.call('LINDEX', KEYS[1], gone + step - 1)
        if at and at + window <= now then gone, step = gone + step, step * 2
        else step = math.floor(step / 2) end
    end
    local used, wait = count - gone, 0
    if used + cost > limit then  -- wait for the one that has to leave
        wait = redis.call('LINDEX', KEYS[1], count + cost - limit - 1) + window - clock
    elseif tonumber(ARGV[1]) > 0 then
        if gone > 0 then redis.call('LTRIM', KEYS[1], gone, -1) end
        for _ = 1, cost do redis.call('RPUSH', KEYS[1], string.format('%d', now)) end
        redis.call('PEXPIRE', KEYS[1], ARGV[2])
        used = used + cost
    end
    return wait > 0 and {math.max(0, limit - used), wait} or limit - used
    """

    def _highest(self, window: int) -> int:
        return 1_000_000


class SlidingCounter(_Limiter):
    """About `limit` in every window, estimated from the counts of two aligned windows.

    Admits while previous · (share of the previous window that a sliding one still sees) + current <= limit,
    as if the previous window's requests had been spread evenly. Promises at most `limit` in each aligned
    window. A sliding window may hold up to, but not quite, 2 · limit (after a burst at the end of an aligned
    one), and requests are refused that the log would admit (after a burst at the start). Stores one short
    string. limit · window in µs may be at most 2^53: 100,000 a day is possible, a million a day is not.
    Source: the approximation that Cloudflare described in 2017.
    """

    KEEP = 3
    # ARGV[3] limit, ARGV[4] window in µs. The key holds "n current previous".
    LUA = """
    local time = redis.call('TIME')
    local now = tonumber(ARGV[5]) or time[1] * 1000000 + time[2]
    local cost, limit, window = math.abs(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
    local n = math.floor(now / window)
    local held = redis.call('GET', KEYS[1]) or '-2 0 0'
    local stored, current, previous = string.match(held, '(%S+) (%d+) (%d+)')
    local ahead = stored - n
    if ahead == -1 then current, previous = 0, current
    elseif ahead < -1 then current, previous = 0, 0
    elseif ahead > 0 then n = n + 1 end  -- the clock stepped back
    local past = math.max(0, now - n * window)
    local room = (limit - current) * window - previous * (window - past)  -- in parts: `window` parts a unit
    local save, wait = ahead > 1, 0
    if room < cost * window then  -- wait until enough of the previous window, or of this one, is out of view
        local count, left, from = previous, limit - current - cost, n * window
        if left < 0 then count, left, from = current, limit - cost, from + window end
        wait = from + window - math.floor(left * window / count) - now
    elseif tonumber(ARGV[1]) > 0 then
        current, room, save = current + cost, room - cost * window, true
    end
    local state = save and string.format('%d %d %d', n, current, previous)
    if save and ahead == 0 then redis.call('SET', KEYS[1], state, 'KEEPTTL')  -- that of the window's first
    elseif save then redis.call('SET', KEYS[1], state, 'PX', ARGV[2]) end
    return wait > 0 and {math.max(0, math.floor(room / window)), wait} or math.floor(room / window)
    """

    def _highest(self, window: int) -> int:
        return EXACT // max(2, window)


class TokenBucket(_Limiter):
    """A bucket of `capacity` tokens, full at first; `rate` tokens a second drip in, a request takes `cost`.

    Promises at most capacity + rate · t in any interval of t seconds: after a pause a burst of `capacity`, in
    the long run `rate` a second. Stores one short string. `rate` is held as the nearest fraction with a
    denominator of at most a million (0.1 is 1/10), and the level in whole parts of a token, so that nothing
    is rounded. Source: the leaky bucket as a meter (Turner, 1986); as a bucket of tokens, RFC 2697.
    """

    # ARGV[3] parts a token, ARGV[4] parts that drip in each µs, ARGV[5] parts of a full bucket: all whole.
    # The key holds "parts time": how full it was when a token was last taken.
    LUA = """
    local time = redis.call('TIME')
    local clock = tonumber(ARGV[6]) or time[1] * 1000000 + time[2]
    local token, drip, full = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
    local price, fill = math.abs(ARGV[1]) * token, math.ceil(full / drip)
    local level, at = string.match(redis.call('GET', KEYS[1]) or ARGV[5] .. ' 0', '(%d+) (%d+)')
    local save, wait = tonumber(at) > clock + fill, 0
    at = math.min(at, clock + fill)
    local now = math.max(clock, at)  -- it is `at` that is later if the clock stepped back
    level = math.min(full, level + (now - at) * drip)
    if level < price then
        wait = math.ceil((price - level) / drip) + now - clock
    elseif tonumber(ARGV[1]) > 0 then
        level, save = level - price, true
    end
    if save then redis.call('SET', KEYS[1], string.format('%d %d', level, now), 'PX', ARGV[2]) end
    local remaining = math.floor(level / token)
    return wait > 0 and {remaining, wait} or remaining
    """

    def __init__(
        self, r: Any, name: str, *, capacity: int, rate: float, now: Clock = None, on_error: OnError = "raise"
    ) -> None:
        exact = _number("rate", rate, 1e-6, 1e6).limit_denominator(1_000_000)
        drip, token = (exact / 1_000_000).as_integer_ratio()
        self.capacity = _whole("capacity", capacity, min(EXACT // token, int(LONGEST * exact)))
        self.rate, full = rate, capacity * token
        fill = math.ceil(full / drip)
        self._prepare(r, name, capacity, 2 * fill, (token, drip, full), now, on_error)


class GCRA(_Limiter):
    """The generic cell rate algorithm: a bucket in one number, the time when all that was admitted is paid.

    A unit takes an interval of window / limit to pay; up to `burst` units (default: limit) may be owed.
    Promises at most burst + t / interval in any interval of t seconds; with burst=1 admitted units are at
    least one interval apart. The interval is rounded up to a whole µs (3 a second: 333,334 µs). Stores one
    number. Source: "virtual scheduling" in ITU-T I.371 and the ATM Forum's traffic management.
    """

    # ARGV[3] interval in µs, ARGV[4] burst · interval. The key holds the TAT, the "theoretical arrival time".
    LUA = """
    local time = redis.call('TIME')
    local now = tonumber(ARGV[5]) or time[1] * 1000000 + time[2]
    local interval, ahead = tonumber(ARGV[3]), tonumber(ARGV[4])
    local tat = tonumber(redis.call('GET', KEYS[1])) or 0
    local save, wait = tat > now + ahead, 0  -- further ahead than it may be: the clock stepped back
    tat = math.max(now, math.min(tat, now + ahead))
    local paid = tat + math.abs(ARGV[1]) * interval
    if paid > now + ahead then
        wait = paid - ahead - now
    elseif tonumber(ARGV[1]) > 0 then
        tat, save = paid, true
    end
    if save then redis.call('SET', KEYS[1], string.format('%d', tat), 'PX', ARGV[2]) end
    local remaining = math.floor((now + ahead - tat) / interval)
    return wait > 0 and {remaining, wait} or remaining
    """

    def __init__(
        self,
        r: Any,
        name: str,
        *,
        limit: int,
        window: float,
        burst: int | None = None,
        now: Clock = None,
        on_error: OnError = "raise",
    ) -> None:
        micros = _micros("window", window)
        self.limit, self.window = _whole("limit", limit, micros), window
        interval = math.ceil(micros / limit)
        self.burst = _whole("burst", limit if burst is None else burst, int(LONGEST) * 1_000_000 // interval)
        ahead = self.burst * interval
        self._prepare(r, name, self.burst, ahead, (interval, ahead), now, on_error)


class NaiveSortedSet:
    """The sliding window as it is often written, in a pipeline. It is here to fail; do not use it.

    It means to admit `limit` in any window, and does not: (1) it adds first and counts afterwards, so refused
    requests count and a client that keeps trying is refused for ever; (2) the member is the time, so requests
    with one timestamp count once, and so does a cost above 1; (3) the time is the client's, so skewed clocks
    over-admit. Refused requests take memory too: some 50 bytes each up to 128 of them, 90 to 140 beyond.
    `retry_after` is a guess.
    """

    def __init__(
        self,
        r: Any,
        name: str,
        *,
        limit: int,
        window: float,
        now: Callable[[], float] = time.time,
        on_error: OnError = "raise",
    ) -> None:
        _check(r, name, on_error)
        self.limit, self.window = _whole("limit", limit, EXACT // 2), _micros("window", window) / 1_000_000
        self._r, self.name, self._now, self._on_error = r, name, now, on_error

    def hit(self, key: str, cost: int = 1) -> Decision:
        """Record the request, then count. Four commands in one round trip."""
        _whole("cost", cost, self.limit)
        now, k = self._now(), _key(self.name, key)
        with self._r.pipeline() as pipe:
            pipe.zremrangebyscore(k, 0, now - self.window)
            pipe.zadd(k, {repr(now): now})
            pipe.zcard(k)
            pipe.expire(k, math.ceil(self.window) + 60)
            return self._decide(pipe, 2, 0)

    def peek(self, key: str, cost: int = 1) -> Decision:
        """Count without recording. One round trip."""
        _whole("cost", cost, self.limit)
        with self._r.pipeline() as pipe:
            pipe.zcount(_key(self.name, key), f"({self._now() - self.window!r}", "+inf")
            return self._decide(pipe, 0, cost)

    def _decide(self, pipe: Any, position: int, cost: int) -> Decision:
        try:
            count = pipe.execute()[position]
        except FAILED as error:
            return _instead(self._on_error, error)
        allowed = count + cost <= self.limit
        return Decision(allowed, max(0, self.limit - count), 0.0 if allowed else self.window)
