"""Leaderboards on Redis: who is ahead, who is around me, and who was first.

    board = Leaderboard(r, "game")
    board.increment("ada", 50)                  # 50: her points now
    board.top(3)                                # [Place(rank=1, member="ada", points=50)]

    daily = WindowedLeaderboard(r, "game", days=7)
    daily.increment("ada", 50)                  # on today's board
    daily.last(7).rank("ada")                   # in the sum of seven days

A board is a sorted set: a hash table and a skip list, so that a rank is found in O(log n) steps and not by
counting. What holds, and what does not, stands in the two classes. Redis's errors are raised as they are;
misuse raises ValueError or TypeError before anything is sent. Sources: "Sorted sets", ZADD, ZRANGE, ZRANK and
ZUNIONSTORE on redis.io; a score is a double of IEEE 754, exact for whole numbers up to 2^53."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import cache, partial
from itertools import count, islice
from typing import Any, ClassVar, NamedTuple

from redis import exceptions

MOST = 2**31 - 1  # points: 31 bits, and a sign
TICKS = 2**22  # a tick is 1 / TICKS of a point: 22 bits; the scripts write it out
CHUNK = 1000  # members of one command: a few milliseconds
DAY = 86_400  # seconds
ASK = 60.0  # seconds after which the server is asked for its time again


class Place(NamedTuple):
    """Rank 1 is the first."""

    rank: int
    member: str
    points: int


def _check(r: Any, name: str) -> None:
    command = getattr(r, "execute_command", None)
    if command is None or hasattr(r, "execute") or inspect.iscoroutinefunction(command):
        raise TypeError(f"{type(r).__name__} is no client such as redis.Redis, or is an async one")
    if not isinstance(name, str) or not name:
        raise TypeError(f"name is {name!r}; it must be a str that is not empty")


def _tagged(name: str) -> str:
    """Braces around what follows the last colon: in a cluster, only that decides the slot."""
    if re.match(r"[^{]*\{[^}]+\}", name):
        return name
    head, colon, tail = name.rpartition(":")
    if not tail or "{" in name or "}" in name:
        raise ValueError(f"name is {name!r}; no colon may end it, and braces must hold a {{hash tag}}")
    return f"{head}{colon}{{{tail}}}"


def _whole(name: str, value: int, least: int, most: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} is {value!r}; it must be an int from {least:,} to {most:,}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value:,}; it must be from {least:,} to {most:,}")
    return value


def _member(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a member is {value!r}; it must be a str")
    return value


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


@cache
def _sha(lua: str) -> str:
    return hashlib.sha1(lua.encode()).hexdigest()


def _run(r: Any, lua: str, *args: Any) -> Any:
    try:
        return r.execute_command("EVALSHA", _sha(lua), *args)
    except exceptions.NoScriptError:
        return r.execute_command("EVAL", lua, *args)


def _places(first: int, members: list[Any], points: Iterable[int]) -> list[Place]:
    if members and isinstance(members[0], bytes):
        members = [member.decode() for member in members]
    rows = zip(count(first), members, points, strict=False)
    return list(map(partial(tuple.__new__, Place), rows))  # Place(*row), in half the time


class Leaderboard:
    """Members with whole points, the highest first; among equals, who reached them first.

    Points go from -(2^31 - 1) to 2^31 - 1. The score that Redis stores is `points - tick / 2^22`. The tick is
    the number of the board's change in which the member got these points, counted by Redis itself, so that no
    clock matters: later means lower. To round up gives the points back. 31 bits of points and 22 of ticks are
    the 53 that a double has: nothing is lost. A board has 4,194,303 ticks. After that, whoever reaches points
    has the last tick, and those who share it are in the reverse order of their names, as in every sorted set;
    `renumber` makes room again. Equal points keep their tick, so to set them again costs nobody the place.

    Atomic: each method, except `add_many` beyond 1,000 members, is one command or one script, so no update is
    lost, whoever else writes. One round trip each, O(log n) and what is returned; `add_many` one for 1,000
    members. After a lost reply it is unknown whether `increment` has run: a client that sends it again by
    itself may count twice. `add` may be sent again.

    Keys, both in one slot: `key`, the sorted set, about 100 bytes a member; up to 128 members with short
    names it is a listpack, with a third of that, searched from one end to the other. `ticks_key` counts. A
    board is data and has no TTL, unless you give one: `ttl` seconds after points last changed both keys go.
    """

    _knows: ClassVar[weakref.WeakKeyDictionary[Any, bool]] = weakref.WeakKeyDictionary()

    def __init__(self, r: Any, name: str, *, ttl: int | None = None, newer: bool | None = None) -> None:
        """`newer`: rank and score in one command, as from Redis 7.2 on? None tries it, once a client."""
        _check(r, name)
        self._r, self.name, self._newer = r, name, newer
        self.key = _tagged(name)
        self.ticks_key = f"{self.key}:ticks"
        self.ttl = None if ttl is None else _whole("ttl", ttl, 1, 10**9)
        self._most, self._last_tick = MOST, TICKS - 1

    # KEYS      board, its ticks
    # ARGV      tick (-1: the next), NX or GT, highest tick, TTL in ms or 0; then points, member, points, …
    # returns   how many have come in, or have other points now; the tick
    # With NX, who was there already gets the points after that, unless he has them.
    ADD = """
    local last, tick = tonumber(redis.call('GET', KEYS[2]) or 0), tonumber(ARGV[1])
    local there = tick >= 0 or redis.call('EXISTS', KEYS[1]) == 1
    if tick < 0 then tick = math.min(there and last + 1 or last, ARGV[3]) end
    local words = {}
    for i = 5, #ARGV, 2 do words[i - 4], words[i - 3] = ARGV[i] - tick / 4194304, ARGV[i + 1] end
    local changed = redis.call('ZADD', KEYS[1], ARGV[2], 'CH', unpack(words))
    if ARGV[2] == 'NX' and changed < #words / 2 then
        for i = 1, #words, 2 do
            if math.ceil(redis.call('ZSCORE', KEYS[1], words[i + 1])) ~= math.ceil(words[i]) then
                redis.call('ZADD', KEYS[1], words[i], words[i + 1])
                changed = changed + 1
            end
        end
    end
    if changed > 0 and tick > last then redis.call('SET', KEYS[2], tick) end
    if changed > 0 and ARGV[4] ~= '0' then
        for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[4]) end
    end
    return {changed, tick}
    """

    def add(self, member: str, points: int, *, best: bool = False) -> bool:
        """Set the points; with `best`, only if they are more than before. False: nothing has changed."""
        words = (_whole("points", points, -self._most, self._most), _member(member))
        return bool(self._add(-1, best, words)[0])

    def add_many(self, points: Mapping[str, int], *, best: bool = False) -> int:
        """The same for many; how many have changed. They count as having come at one moment: the beginning.

        Into an empty board without `ttl` they go by plain ZADD, which is as fast as Redis gets. Each 1,000
        are atomic, not all together; while others write the same members to a board that was empty, somebody
        may be set twice: what happened to him between the two is undone. Raises for bad points before it
        sends.
        """
        if not isinstance(points, Mapping):
            raise TypeError(f"points is {points!r}; it must be a mapping of members to points")
        for member, wrong in self._wrong(points):
            _whole(f"the points of {_member(member)!r}", wrong, -self._most, self._most)
        pairs, changed, tick = iter(points.items()), 0, -1
        while chunk := list(islice(pairs, CHUNK)):
            words = [word for member, number in chunk for word in (number, member)]
            if tick == 0 and not self.ttl:  # the score is the points
                how = ("GT", "CH") if best else ("NX",)
                new = int(self._r.execute_command("ZADD", self.key, *how, *words))
                changed += new
                if best or new == len(chunk):
                    continue
            some, tick = self._add(tick, best, words)
            changed += some
        return changed

    def _wrong(self, points: Mapping[str, int]) -> Iterable[tuple[str, int]]:
        """Nothing, if all is well: that is the quick question."""
        values = points.values()
        well = {type(value) for value in values} <= {int} and {type(member) for member in points} <= {str}
        if well and (not points or (-self._most <= min(values) and max(values) <= self._most)):
            return ()
        return points.items()

    def _add(self, tick: int, best: bool, words: Iterable[Any]) -> list[int]:
        options = tick, "GT" if best else "NX", self._last_tick, (self.ttl or 0) * 1000
        changed: list[int] = _run(self._r, self.ADD, 2, self.key, self.ticks_key, *options, *words)
        return changed

    # KEYS      board, its ticks
    # ARGV      points to add, member, most points, highest tick, TTL in ms or 0
    # returns   the points now; if they would be more than the most: a list of what they are
    INCREMENT = """
    local had = redis.call('ZSCORE', KEYS[1], ARGV[2])
    local points = math.ceil(had or 0) + ARGV[1]
    if math.abs(points) > tonumber(ARGV[3]) then return {points - ARGV[1]} end
    if had and tonumber(ARGV[1]) == 0 then return points end
    local tick = math.min(redis.call('INCR', KEYS[2]), ARGV[4])
    redis.call('ZADD', KEYS[1], points - tick / 4194304, ARGV[2])
    if ARGV[5] ~= '0' then
        for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
    end
    return points
    """

    def increment(self, member: str, by: int = 1) -> int:
        """Add to the points of a member, who need not be there; the points now.

        Raises ValueError, and changes nothing, if they would leave the range.
        """
        args = _whole("by", by, -2 * self._most, 2 * self._most), _member(member), self._most
        ttl = (self.ttl or 0) * 1000
        now = _run(self._r, self.INCREMENT, 2, self.key, self.ticks_key, *args, self._last_tick, ttl)
        if isinstance(now, list):
            most = f"at most {self._most:,} either way"
            raise ValueError(f"by is {by:,}, and {member!r} has {now[0]:,} points; {most} are allowed")
        return int(now)

    def top(self, n: int = 10) -> list[Place]:
        """The first n, or fewer if there are no more."""
        return self._range(0, _whole("n", n, 1, 10**6) - 1)

    def page(self, number: int, size: int = 50) -> list[Place]:
        """Page 1 has the places 1 to `size`. Beyond the end: nothing."""
        size = _whole("size", size, 1, 10**6)
        first = (_whole("number", number, 1, 10**9) - 1) * size
        return self._range(first, first + size - 1)

    def _range(self, first: int, last: int) -> list[Place]:
        found = self._r.execute_command("ZRANGE", self.key, first, last, "REV", "WITHSCORES")
        if found and isinstance(found[0], list | tuple):  # pairs (RESP3), or one after the other (RESP2)
            found = [word for pair in found for word in pair]
        return _places(first + 1, found[::2], map(math.ceil, map(float, found[1::2])))

    # KEYS      board
    # ARGV      member
    # returns   how many are ahead, and the score: what ZREVRANK … WITHSCORE answers from 7.2 on; or nil
    RANK = """
    local ahead = redis.call('ZREVRANK', KEYS[1], ARGV[1])
    return ahead and {ahead, redis.call('ZSCORE', KEYS[1], ARGV[1])}
    """

    def rank(self, member: str) -> Place | None:
        """Where the member is; None if nowhere. One command where the server has it, else a script."""
        reply, newer = None, self._knows.get(self._r, True) if self._newer is None else self._newer
        if newer:
            try:
                reply = self._r.execute_command("ZREVRANK", self.key, _member(member), "WITHSCORE")
            except exceptions.ResponseError as error:
                if "number of arguments" not in str(error) and "syntax" not in str(error):
                    raise
                self._knows[self._r] = newer = False
        if not newer:
            reply = _run(self._r, self.RANK, 1, self.key, _member(member))
        return Place(int(reply[0]) + 1, member, math.ceil(float(reply[1]))) if reply else None

    # KEYS      board
    # ARGV      member, how many on either side
    # returns   how many are ahead of the first of them, then members with their points; or nil
    AROUND = """
    local ahead = redis.call('ZREVRANK', KEYS[1], ARGV[1])
    if not ahead then return nil end
    local first = math.max(ahead - ARGV[2], 0)
    local found = redis.call('ZRANGE', KEYS[1], first, ahead + ARGV[2], 'REV', 'WITHSCORES')
    for i = 2, #found, 2 do found[i] = math.ceil(found[i]) end
    return {first, found}
    """

    def around(self, member: str, n: int = 5) -> list[Place]:
        """The member with n on either side, fewer at the ends of the board. Not there: nothing."""
        words = (_member(member), _whole("n", n, 0, 10**5))
        reply = _run(self._r, self.AROUND, 1, self.key, *words)
        return _places(reply[0] + 1, reply[1][::2], reply[1][1::2]) if reply else []

    # KEYS      board
    # ARGV      member
    # returns   how many have fewer points, and how many there are; or nil
    # Who has fewer points has a score of one point less, or below that.
    BELOW = """
    local had = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if not had then return nil end
    return {redis.call('ZCOUNT', KEYS[1], '-inf', math.ceil(had) - 1), redis.call('ZCARD', KEYS[1])}
    """

    def percentile(self, member: str) -> float | None:
        """Of 100 members, so many have fewer points: from 0 to just under 100. None: not there."""
        reply = _run(self._r, self.BELOW, 1, self.key, _member(member))
        return 100 * int(reply[0]) / int(reply[1]) if reply else None

    # KEYS      board, its ticks
    # ARGV      members
    # returns   how many were there; the ticks go with the last member
    REMOVE = """
    local gone = redis.call('ZREM', KEYS[1], unpack(ARGV))
    if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
    return gone
    """

    def remove(self, *members: str) -> int:
        """Take them off; how many were on the board. One round trip for 1,000."""
        names, gone = map(_member, [_member(member) for member in members]), 0
        while chunk := list(islice(names, CHUNK)):
            gone += int(_run(self._r, self.REMOVE, 2, self.key, self.ticks_key, *chunk))
        return gone

    def clear(self) -> None:
        """Remove the board. Its memory is freed in the background (UNLINK)."""
        self._r.execute_command("UNLINK", self.key, self.ticks_key)

    def __len__(self) -> int:
        return int(self._r.execute_command("ZCARD", self.key))

    def __bool__(self) -> bool:
        """A board is one also when nobody is on it; and nothing is sent to know that."""
        return True

    def __repr__(self) -> str:
        return f"Leaderboard({self.name!r})"

    def ticks_left(self) -> int:
        """How many changes of points can still be told apart; see `renumber`."""
        return max(self._last_tick - int(self._r.execute_command("GET", self.ticks_key) or 0), 0)

    # KEYS      board, its ticks
    # returns   the highest tick now
    # From the top, so that nobody passes anybody: ticks only shrink, scores only rise.
    RENUMBER = """
    local at, points, score, tick, highest = 0, nil, nil, 0, 0
    repeat
        local some, words = redis.call('ZRANGE', KEYS[1], at, at + 999, 'REV', 'WITHSCORES'), {}
        for i = 1, #some, 2 do
            local had = tonumber(some[i + 1])
            if math.ceil(had) ~= points then points, tick = math.ceil(had), 0
            elseif had ~= score then tick = tick + 1 end
            score, highest = had, math.max(highest, tick)
            words[i], words[i + 1] = points - tick / 4194304, some[i]
        end
        if #words > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(words)) end
        at = at + #words / 2
    until #some < 2000
    if highest > 0 then redis.call('SET', KEYS[2], highest, 'KEEPTTL') else redis.call('DEL', KEYS[2]) end
    return highest
    """

    def renumber(self) -> int:
        """Give ticks anew, as few as the ties need, in the same order; how many are left then.

        One script, O(n log n): Redis serves nobody meanwhile, for a second or more with a million members.
        """
        return self._last_tick - int(_run(self._r, self.RENUMBER, 2, self.key, self.ticks_key))


class WindowedLeaderboard:
    """A board for each day, and totals over the latest of them.

    `add` and `increment` go to the board of today, which is the server's date in UTC (its clock is asked once
    a minute, one round trip more). Each day is a Leaderboard and goes by itself, `days` days and one more
    after its last change: nothing has to be cleaned up. `last(n)` adds up n days into a board of its own.

    So that a total can be read like any board, all its ticks together must stay below one point, and its
    points within 31 bits: with `days` = 7 a day has 599,186 ticks and members 306,783,378 points a day at
    most. So `days` must be the same for all who use a name. Ties in a total: lower sum of ticks first, which
    is repeatable but does not tell who came first.

    Keys: `name:<date>`, in one slot for all days, since ZUNIONSTORE needs that: a cluster spreads different
    names over its nodes, not the days of one.
    """

    def __init__(self, r: Any, name: str, *, days: int = 7, now: Callable[[], float] | None = None) -> None:
        """`days`: how many a total may have, 1 to 366. `now`: Unix seconds in place of the server's clock."""
        _check(r, name)
        self._r, self.name, self.days, self._now = r, name, _whole("days", days, 1, 366), now
        self.key = _tagged(name)
        self._ahead, self._asked = 0.0, -math.inf  # the server's clock against ours, and when it was asked

    def _date(self) -> date:
        """Today, by the server's clock, in UTC."""
        if self._now is not None:
            return datetime.fromtimestamp(self._now(), UTC).date()
        if time.monotonic() >= self._asked + ASK:
            seconds, micros = (int(part) for part in self._r.execute_command("TIME"))
            now = time.monotonic()
            self._ahead = seconds + micros / 1e6 - now  # first: other threads go by _asked
            self._asked = now
        return datetime.fromtimestamp(time.monotonic() + self._ahead, UTC).date()

    def today(self) -> Leaderboard:
        return self.day(self._date())

    def day(self, day: date) -> Leaderboard:
        """The board of that day, which may be empty."""
        if not isinstance(day, date) or isinstance(day, datetime):
            raise TypeError(f"day is {day!r}; it must be a datetime.date")
        return self._board(day.isoformat(), (self.days + 1) * DAY)

    def _board(self, suffix: str, ttl: int) -> Leaderboard:
        board = Leaderboard(self._r, f"{self.key}:{suffix}", ttl=ttl)
        board._most, board._last_tick = MOST // self.days, (TICKS - 1) // self.days
        return board

    def add(self, member: str, points: int, *, best: bool = False) -> bool:
        """Leaderboard.add, today."""
        return self.today().add(member, points, best=best)

    def increment(self, member: str, by: int = 1) -> int:
        """Leaderboard.increment, today: the points of today."""
        return self.today().increment(member, by)

    # KEYS      total, then the days
    # ARGV      SUM or MAX, how old it may be, TTL in ms: less what is left of that is its age
    # returns   how many are on the total
    TOTAL = """
    if ARGV[3] - redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then return redis.call('ZCARD', KEYS[1]) end
    local words = {KEYS[1], #KEYS - 1, unpack(KEYS, 2)}
    words[#words + 1], words[#words + 2] = 'AGGREGATE', ARGV[1]
    local count = redis.call('ZUNIONSTORE', unpack(words))
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return count
    """

    def last(self, days: int | None = None, *, best: bool = False, fresh: float = 60.0) -> Leaderboard:
        """The total of today and the days before it (None: as many as there may be); with `best`, each
        member's best day.

        A board to read: made anew if it is older than `fresh` seconds; it goes two days after that, by
        itself. Making it is one script, O(n log n) in all members of all days: Redis serves nobody meanwhile.
        """
        days = self.days if days is None else _whole("days", days, 1, self.days)
        if isinstance(fresh, bool) or not isinstance(fresh, int | float) or not 0.001 <= fresh <= DAY:
            raise ValueError(f"fresh is {fresh!r}; it must be from 0.001 to {DAY} seconds")
        today = self._date()
        boards = [self.day(today - timedelta(days=ago)).key for ago in range(days)]
        total = self._board(f"{today.isoformat()}:{'best' if best else 'sum'}:{days}", DAY)
        words = ("MAX" if best else "SUM", round(fresh * 1000), 2 * DAY * 1000)
        _run(self._r, self.TOTAL, 1 + days, total.key, *boards, *words)
        return total

    def __repr__(self) -> str:
        return f"WindowedLeaderboard({self.name!r}, days={self.days})"
