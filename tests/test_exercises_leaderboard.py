"""The graders of chapter 09 accept every right way, and say of a wrong one who is on the wrong place."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from answers import changed, told_by, wrong

from labkit.teach import check
from labkit.teach.exercises import Verdict, load
from labkit.teach.exercises.leaderboard.around import around, rows
from labkit.teach.exercises.leaderboard.grading import (
    Heard,
    elements,
    keys_of,
    overheard,
    undeclared,
    visited,
)
from labkit.teach.lab import Lab

EXERCISES = {exercise.name: exercise for exercise in load("leaderboard")}
_answer = partial(changed, "leaderboard")
_wrong = partial(wrong, "leaderboard")

_AROUND = EXERCISES["around"].reference
_TIES = EXERCISES["ties"].reference
_WEEK = EXERCISES["week"].reference
_WEEK_TOP = _WEEK[_WEEK.index("        total = ") :]
_WEEK_ADD = _WEEK[_WEEK.index("        with self.r") : _WEEK.index("    def top")]

_PREFIXED = """
class MyBoard:
    '''Plain points; each name begins with the number of the change, counted down: later is lower.'''

    SET = '''
    local old = redis.call('HGET', KEYS[2], ARGV[1])
    if old then
        if redis.call('ZSCORE', KEYS[1], old) == ARGV[2] then return end
        redis.call('ZREM', KEYS[1], old)
    end
    local tick = redis.call('INCR', KEYS[3])
    local name = string.format('%015.0f:', 1e14 - tick) .. ARGV[1]
    redis.call('HSET', KEYS[2], ARGV[1], name)
    redis.call('ZADD', KEYS[1], ARGV[2], name)
    '''

    def __init__(self, r, name):
        self.r, self.keys = r, [f"{name}:board", f"{name}:names", f"{name}:ticks"]

    def set(self, member, points):
        self.r.eval(self.SET, 3, *self.keys, member, points)

    def top(self, n):
        found = self.r.zrange(self.keys[0], 0, n - 1, desc=True, withscores=True)
        return [(name[16:], int(score)) for name, score in found]
"""

_LIBRARY = """
import redis

LIBRARY = '''#!lua name=boards
redis.register_function('around', function(KEYS, ARGV)
    BODY
end)'''

def around(r, board, member, n):
    try:
        reply = r.fcall("around", 1, board, member, n)
    except redis.ResponseError:
        r.function_load(LIBRARY, replace=True)
        reply = r.fcall("around", 1, board, member, n)
    first, found = reply or (0, [])
    return [(rank, who, int(has)) for rank, (who, has) in enumerate(zip(found[::2], found[1::2]), first + 1)]
""".replace("BODY", _AROUND.split('"""')[1])

RIGHT = {
    "score: a script": '''
LUA = """
local now = redis.call('ZINCRBY', KEYS[1], ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], 172800000)
redis.call('ZADD', KEYS[2], 'GT', ARGV[2], ARGV[1])
return now
"""

def score(r, today, best, member, points):
    return int(r.eval(LUA, 2, today, best, member, points))
''',
    "score: a registered script, which compares by itself": '''
LUA = """
local best = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not best or tonumber(ARGV[2]) > tonumber(best) then redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1]) end
local now = redis.call('ZADD', KEYS[1], 'INCR', ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], 172800)
return math.floor(now)
"""

def score(r, today, best, member, points):
    return r.register_script(LUA)([today, best], [member, points])
''',
    "score: WATCH, again after a WatchError": """
import redis

def score(r, today, best, member, points):
    while True:
        with r.pipeline() as pipe:
            try:
                pipe.watch(today, best)
                total = int(pipe.zscore(today, member) or 0) + points
                most = pipe.zscore(best, member)
                pipe.multi()
                pipe.zadd(today, {member: total})
                pipe.expire(today, 172_800)
                if most is None or points > most:
                    pipe.zadd(best, {member: points})
                pipe.execute()
                return total
            except redis.WatchError:
                continue
""",
    "score: r.transaction()": """
def score(r, today, best, member, points):
    def game(pipe):
        total = int(pipe.zscore(today, member) or 0) + points
        pipe.multi()
        pipe.zadd(today, {member: total}).expire(today, 172_800).zadd(best, {member: points}, gt=True)
        return total

    return r.transaction(game, today, value_from_callable=True)
""",
    "around: a registered script": _AROUND.replace(
        "r.eval(AROUND, 1, board, member, n)", "r.register_script(AROUND)([board], [member, n])"
    ),
    "around: EVAL_RO and ZREVRANGE": _AROUND.replace("r.eval(", "r.eval_ro(").replace(
        "'ZRANGE', KEYS[1], first, ahead + ARGV[2], 'REV', ", "'ZREVRANGE', KEYS[1], first, ahead + ARGV[2], "
    ),
    "around: JSON, with ranks": '''
import json

LUA = """
local at, rows = redis.call('ZREVRANK', KEYS[1], ARGV[1]), {}
if not at then return '[]' end
for i = math.max(0, at - tonumber(ARGV[2])), at + tonumber(ARGV[2]) do
    local one = redis.call('ZREVRANGE', KEYS[1], i, i, 'WITHSCORES')
    if one[1] then rows[#rows + 1] = {tostring(i + 1), one[1], one[2]} end
end
return cjson.encode(rows)
"""

def around(r, board, member, n):
    rows = json.loads(r.eval(LUA, 1, board, member, n))
    return [[int(rank), who, int(points)] for rank, who, points in rows]
''',
    "around: a function of the server": _LIBRARY,
    "around: in a pipeline": _AROUND.replace(
        "r.eval(AROUND, 1, board, member, n)", "r.pipeline().eval(AROUND, 1, board, member, n).execute()[0]"
    ),
    "around: counts from the other end": _AROUND.replace(
        "local first = math.max(ahead - ARGV[2], 0)\n",
        "local first = math.max(ahead - ARGV[2], 0)\n"
        "local last, size = ahead + ARGV[2], redis.call('ZCARD', KEYS[1])\n"
        "local a, z = math.max(size - 1 - last, 0), size - 1 - first\n"
        "local up = redis.call('ZRANGE', KEYS[1], a, z, 'WITHSCORES')\n"
        "local down = {}\n"
        "for i = #up - 1, 1, -2 do down[#down + 1], down[#down + 2] = up[i], up[i + 1] end\n",
    ).replace("redis.call('ZRANGE', KEYS[1], first, ahead + ARGV[2], 'REV', 'WITHSCORES')}", "down}"),
    "ties: a whole number": _TIES.replace(
        "ARGV[2] - tick / 4194304", "(ARGV[2] + 1) * 4194304 - tick"
    ).replace("math.ceil(had) ==", "math.ceil(had / 4194304) - 1 ==").replace(
        "math.ceil(score)", "math.ceil(score / 4194304) - 1"
    ),
    "ties: ticks that count down": _TIES.replace("'INCR'", "'DECR'").replace(
        "ARGV[2] - tick / 4194304", "ARGV[2] + tick / 4194304"
    ),
    "ties: ticks in a hash": _TIES.replace("'INCR', KEYS[2]", "'HINCRBY', KEYS[2], 'n', 1"),
    "ties: ticks in a sorted set": _TIES.replace("'INCR', KEYS[2]", "'ZINCRBY', KEYS[2], 1, 'n'"),
    "ties: one slot, and one counter, for all boards": _TIES.replace(
        'f"{{{name}}}:', 'f"{{boards}}:{name}:'
    ).replace("{boards}}:{name}:ticks", "{boards}}:ticks"),
    "ties: ticks of their own for each number of points": _TIES.replace(
        "'INCR', KEYS[2]", "'INCR', KEYS[2] .. ARGV[2]"
    ),
    "ties: names that begin with the tick": _PREFIXED,
    "ties: names that begin with the server's time": _PREFIXED.replace(
        "redis.call('INCR', KEYS[3])", "redis.call('TIME')"
    )
    .replace("1e14 - tick", "5e15 - tick[1] * 1000000 - tick[2]")
    .replace("015.0f", "016.0f")
    .replace("[16:]", "[17:]"),
    "ties: WATCH, again after a WatchError": '''
import math, redis

class MyBoard:
    def __init__(self, r, name):
        self.r, self.board, self.ticks = r, f"{{{name}}}:board", f"{{{name}}}:ticks"

    def set(self, member, points):
        while True:
            with self.r.pipeline() as pipe:
                try:
                    pipe.watch(self.board, self.ticks)
                    had = pipe.zscore(self.board, member)
                    if had is not None and math.ceil(had) == points:
                        return
                    tick = int(pipe.get(self.ticks) or 0) + 1
                    pipe.multi()
                    pipe.set(self.ticks, tick)
                    pipe.zadd(self.board, {member: points - tick / 2**22})
                    pipe.execute()
                    return
                except redis.WatchError:
                    continue

    def top(self, n):
        found = self.r.zrange(self.board, 0, n - 1, desc=True, withscores=True)
        return [(member, math.ceil(score)) for member, score in found]
''',
    "ties: a list of names for each number of points": '''
class MyBoard:
    SET = """
    local had = redis.call('HGET', KEYS[2], ARGV[1])
    if had == ARGV[2] then return end
    if had then
        redis.call('LREM', KEYS[3] .. had, 1, ARGV[1])
        if redis.call('LLEN', KEYS[3] .. had) == 0 then redis.call('ZREM', KEYS[1], had) end
    end
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
    redis.call('RPUSH', KEYS[3] .. ARGV[2], ARGV[1])
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[2])
    """
    TOP = """
    local rows, left = {}, tonumber(ARGV[1])
    for _, points in ipairs(redis.call('ZRANGE', KEYS[1], 0, left - 1, 'REV')) do
        for _, member in ipairs(redis.call('LRANGE', KEYS[3] .. points, 0, left - 1)) do
            rows[#rows + 1], rows[#rows + 2] = member, points
            left = left - 1
        end
        if left < 1 then break end
    end
    return rows
    """

    def __init__(self, r, name):
        self.r, self.keys = r, [f"{{{name}}}:levels", f"{{{name}}}:points", f"{{{name}}}:at:"]

    def set(self, member, points):
        self.r.eval(self.SET, 3, *self.keys, member, points)

    def top(self, n):
        found = self.r.eval(self.TOP, 3, *self.keys, n)
        return [(member, int(points)) for member, points in zip(found[::2], found[1::2])]
''',
    "week: a script that removes the total again": _WEEK.replace(
        _WEEK_TOP,
        '''
        lua = """
        redis.call('ZUNIONSTORE', KEYS[1], #KEYS - 1, unpack(KEYS, 2))
        local found = redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1, 'REV', 'WITHSCORES')
        redis.call('DEL', KEYS[1])
        return found
        """
        keys = [f"{self.name}:total", *(f"{self.name}:{day}" for day in days)]
        found = self.r.eval(lua, len(keys), *keys, n)
        return [(member, int(points)) for member, points in zip(found[::2], found[1::2])]
''',
    ),
    "week: ZUNION in a script, nothing is stored": _WEEK.replace(
        _WEEK_TOP,
        '''
        lua = """
        local all = redis.call('ZUNION', #KEYS, unpack(KEYS))
        local scores = redis.call('ZUNION', #KEYS, unpack(KEYS, 1, #KEYS), 'WITHSCORES')
        local rows = {}
        for i = #all, math.max(#all - ARGV[1] + 1, 1), -1 do
            rows[#rows + 1] = {scores[2 * i - 1], scores[2 * i]}
        end
        return rows
        """.replace("unpack(KEYS, 1, #KEYS), 'WITHSCORES'", "unpack(ARGV, 2)")
        keys = [f"{self.name}:{day}" for day in days]
        found = self.r.eval(lua, len(keys), *keys, n, *keys, "WITHSCORES")
        return [(member, int(points)) for member, points in found]
''',
    ),
    "week: a total for each choice of days": _WEEK.replace(
        'f"{self.name}:total"', "f\"{self.name}:total:{'+'.join(days)}\""
    ),
    "week: a total that is removed in the same MULTI": _WEEK.replace(
        "pipe.expire(total, 60)\n", "pass\n"
    ).replace(
        "            *_, found = pipe.execute()",
        "            pipe.unlink(total)\n            _, found, _ = pipe.execute()",
    ),
    "week: a total with a random name": _WEEK.replace(
        'f"{self.name}:total"', 'f"{self.name}:total:{uuid.uuid4()}"'
    ).replace("class MyWeek", "import uuid\n\nclass MyWeek"),
    "week: a total with a random number": _WEEK.replace(
        'f"{self.name}:total"', 'f"{self.name}:total:{randrange(10**9)}"'
    ).replace("class MyWeek", "from random import randrange\n\nclass MyWeek"),
    "week: a total with a name of its own, read in a second step": _WEEK.replace(
        'f"{self.name}:total"', 'f"{self.name}:total:{uuid.uuid4()}"'
    )
    .replace("class MyWeek", "import uuid\n\nclass MyWeek")
    .replace("            pipe.zrange(total,", "            pipe.execute()\n            pipe.zrange(total,"),
    "week: braces around the last part of the name": _WEEK.replace(
        'r, f"{{{name}}}"', 'r, "{}:{{{}}}".format(*name.rsplit(":", 1))'
    ),
    "week: WATCH, again after a WatchError": _WEEK.replace(
        _WEEK_ADD,
        """
        key = f"{self.name}:{day}"

        def more(pipe):
            had = int(pipe.zscore(key, member) or 0)
            pipe.multi()
            pipe.zadd(key, {member: had + points}).expire(key, 691_200)

        self.r.transaction(more, key)

""",
    ),
    "week: a script that adds": _WEEK.replace(
        _WEEK_ADD,
        """
        lua = "redis.call('ZINCRBY', KEYS[1], ARGV[1], ARGV[2]) redis.call('PEXPIRE', KEYS[1], 691200000)"
        self.r.eval(lua, 1, f"{self.name}:{day}", points, member)

""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_answers_are_accepted(name: str) -> None:
    exercise = EXERCISES[name.partition(":")[0]]
    assert RIGHT[name] != exercise.reference
    verdict = check.grade(exercise, exercise.build(RIGHT[name]))
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


def test_a_lost_update_is_told_as_an_interleaving() -> None:
    verdict = _wrong("score", "reads the points, adds")
    assert verdict.message == "a game is lost: 10 + 8 + 7 makes 25, and ada has 18 on `today`"
    steps = [line.split()[:2] for line in told_by(verdict)[2:]]
    assert steps == [["A", "ZSCORE"], ["B", "ZSCORE"], ["B", "MULTI;"], ["A", "MULTI;"]]


def test_a_board_that_never_was_is_told_with_the_two_that_were() -> None:
    verdict = _wrong("around", "two round trips")
    assert verdict.message.startswith("the board was never like this: [(2, 'ada', 90), (3, 'bob', 80)")
    steps = [line.split()[:2] for line in told_by(verdict)[2:]]
    assert steps == [["A", "ZREVRANK"], ["B", "ZADD"], ["A", "ZREVRANGE"]]


def test_what_is_read_for_nothing_is_told_in_numbers() -> None:
    fetched = _wrong("around", "fetches the whole board")
    assert "to give 5 rows" in fetched.message and "147," in fetched.message
    script = _wrong("around", "reads the whole board in a script")
    assert script.message.startswith("in the script, ZRANGE workbook:check:")
    assert script.message.endswith(" 0 -1 REV reads 5,000 elements")


def test_ties_by_name_are_told_so_whatever_the_names() -> None:
    verdict = _wrong("ties", "plain ZADD")
    assert verdict.message == "equals are ordered by name"
    assert told_by(verdict)[-1] == "top(3) -> [('zoe', 2), ('max', 2), ('amy', 2)]"


def test_four_million_changes_are_told_by_the_counter() -> None:
    verdict = _answer("ties", ("4194304", "3900000"))
    assert verdict.property == "room"
    assert verdict.message == "'max 0' has 2,000,000,000 points, and top() says 1,999,999,999"
    assert any(line.startswith("four million changes later: {workbook:") for line in told_by(verdict))


def test_a_total_that_nobody_had_is_told_as_an_interleaving() -> None:
    verdict = _wrong("week", "reads day after day")
    assert verdict.message == "nobody ever had that total: [('ada', 7)]; it was none, 5, then 12"
    assert [line.split()[0] for line in told_by(verdict)[2:]] == ["A", "B", "B", "A"]


SCRIPTED = """
        lua = "redis.call('ZINCRBY', ARGV[1], ARGV[2], ARGV[3]) redis.call('EXPIRE', ARGV[1], 691200)"
        self.r.eval(lua, 0, f"{self.name}:{day}", points, member)

"""


@pytest.mark.parametrize(
    ("name", "property", "changes"),
    [
        ("score", "best", [("gt=True", "lt=True")]),
        ("score", "added", [("zincrby(today, points", "zincrby(today, abs(points)")]),
        ("score", "added", [("def score(r, today, best", "def score(r, best, today")]),
        ("score", "ttl", [("3600)", "3600, gt=True)")]),
        ("score", "ttl", [("48 * 3600", "48 * 3_600_000")]),
        (
            "score",
            "ttl",
            [
                ("expire(today, 48 * 3600)", "pexpireat(today, round(time() * 1000) + 172_800_000)"),
                ("def score", "from time import time\n\ndef score"),
            ],
        ),
        ("score", "left", [("    with r.pip", "    r.rpush(today + ':log', points)\n    with r.pip")]),
        ("around", "side", [("first + 1)]", "first + 2)]")]),
        ("around", "side", [("first + 1)]", "first + 1) if who != member]")]),
        ("around", "side", [("ahead + ARGV[2],", "ahead + math.min(ARGV[2], 100),")]),
        ("around", "trips", [("r.eval(AROUND,", "r.evalsha(r.script_load(AROUND),")]),
        ("around", "writes", [("local first", "redis.call('COPY', KEYS[1], KEYS[1] .. 2)\nlocal first")]),
        (
            "around",
            "fetch",
            [
                (
                    "first, ahead + ARGV[2], 'REV', 'WITHSCORES'",
                    "'+inf', '-inf', 'BYSCORE', 'REV', 'LIMIT', first, ahead + ARGV[2] - first + 1, "
                    "'WITHSCORES'",
                )
            ],
        ),
        (
            "around",
            "fetch",
            [
                (
                    "local ahead = redis.call('ZREVRANK', KEYS[1], ARGV[1])\n",
                    "local ahead = 0\n"
                    "repeat\n"
                    "    local one = redis.call('ZREVRANGE', KEYS[1], ahead, ahead)[1]\n"
                    "    if not one then return nil end\n"
                    "    ahead = ahead + 1\n"
                    "until one == ARGV[1]\n"
                    "ahead = ahead - 1\n",
                )
            ],
        ),
        ("ties", "first", [("'INCR', KEYS[2]", "'ZCARD', KEYS[1]")]),
        ("ties", "first", [("'INCR', KEYS[2]", "'ZCOUNT', KEYS[1], '(' .. ARGV[2] - 1, ARGV[2]")]),
        ("ties", "first", [("redis.call('INCR', KEYS[2])", "math.random(4194304)")]),
        ("ties", "precision", [("4194304", "10000000")]),
        ("ties", "room", [("redis.call('INCR', KEYS[2])", "redis.call('INCR', KEYS[2]) % 1000")]),
        ("ties", "room", [("'INCR', KEYS[2]", "'INCRBY', KEYS[2], 2")]),
        ("ties", "room", [("- tick / 4194304", "+ 1 / (tick + 1)"), ("math.ceil", "math.floor")]),
        ("ties", "grows", [("'INCR', KEYS[2]", "'RPUSH', KEYS[2], ARGV[1]")]),
        (
            "ties",
            "first",
            [
                ("    local tick", "    redis.call('SADD', KEYS[2], ARGV[1] .. ARGV[2])\n    local tick"),
                ("'INCR', KEYS[2]", "'SCARD', KEYS[2]"),
            ],
        ),
        ("ties", "kept", [("local tick", "redis.call('EXPIRE', KEYS[1], 60)\n    local tick")]),
        (
            "ties",
            "names",
            [("return [(", "return sorted([("), ("found]", "found], key=lambda p: (-p[1], p[0]))")],
        ),
        ("week", "sum", [("zunionstore", "zinterstore")]),
        ("week", "sum", [(", desc=True", "")]),
        ("week", "sum", [('f"{self.name}:total"', 'f"{self.name}:{days[0]}"')]),
        ("week", "race", [("self.r.pipeline()", "self.r.pipeline(transaction=False)")]),
        ("week", "ttl", [("8 * 86_400", "7 * 86_400")]),
        (
            "week",
            "ttl",
            [
                ("days])", "days])\n            for day in days: pipe.expire(f'{self.name}:{day}', 691_200)"),
                ("*_, found", "found"),
                ("pipe.execute()\n        return", "pipe.execute()[-1]\n        return"),
            ],
        ),
        ("week", "slot", [(_WEEK_ADD, SCRIPTED)]),
    ],
)  # fmt: skip
def test_other_wrong_answers_are_refused(name: str, property: str, changes: list[tuple[str, str]]) -> None:
    verdict = _answer(name, *changes)
    assert (verdict.state, verdict.property) == ("incorrect", property), str(verdict)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("score", ("return int(now)", "return str(int(now))"), "score() gives '50': an int"),
        ("score", ("    return int(now)", ""), "score() gives None: an int"),
        ("around", ("int(points)", "float(points)"), "(3, 'cyd', 70.0) is not a whole number"),
        ("around", ("(rank, who, int(points))", "(who, int(points))"), "('cyd', 70) is not (rank, member"),
        ("ties", ("math.ceil(score)", "str(math.ceil(score))"), "('ünï {çø}: dé', '5') is not text and"),
        ("ties", ("def top(", "def first("), "MyBoard(…) gives MyBoard, which has no method top()"),
        ("week", ("return [(member, int(points))", "return [member"), "'ada' is no pair (member, points)"),
        ("week", ("def add(", "def plus("), "MyWeek(…) gives MyWeek, which has no method add()"),
    ],
)
def test_a_wrong_type_is_said_so(name: str, change: tuple[str, str], message: str) -> None:
    verdict = _answer(name, change)
    assert verdict.property in ("answer", "class") and verdict.message.startswith(message), str(verdict)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("score", ("    return int(now)", "    return int(now.all)")),
        ("around", ("    first, found = reply", "    first, found = reply.all")),
        ("ties", ("        found = self.r", "        found = self.s")),
        ("week", ("            *_, found = pipe", "            *_, found = self.pipe")),
    ],
)
def test_an_exception_is_shown_with_its_line(name: str, change: tuple[str, str]) -> None:
    verdict = _answer(name, change)
    assert verdict.property == "raises" and "AttributeError" in verdict.message
    assert change[1].strip() in verdict.counterexample


def test_what_is_kept_in_the_process_is_found_out() -> None:
    cached = "\n\nCACHE = {}\n\ndef around(r, board, member, n):\n    key = board, member, n\n"
    cached += (
        "    if key not in CACHE:\n        CACHE[key] = look(r, board, member, n)\n    return CACHE[key]\n"
    )
    exercise = EXERCISES["around"]
    source = _AROUND.replace("def around(", "def look(") + cached
    verdict = check.grade(exercise, exercise.build(source))
    assert verdict.property == "old", str(verdict)
    counts = "        MyBoard.count = getattr(MyBoard, 'count', 0) + 1\n        self.r.eval("
    verdict = _answer(
        "ties",
        ("redis.call('INCR', KEYS[2])", "ARGV[3]"),
        ("        self.r.eval(", counts),
        ("member, points)\n\n", "member, points, MyBoard.count)\n\n"),
    )
    assert verdict.state == "incorrect" and verdict.property in ("shared", "race"), str(verdict)


def test_the_model_of_a_board_is_that_of_redis() -> None:
    points = {"a": 2, "b": 2, "Z": 2, "ü": 2, "top": 3, "end": -1, "7": 0}
    lab = Lab()
    lab.empty()
    lab.r.zadd("board", points)
    found: Any = lab.r.zrange("board", 0, -1, desc=True, withscores=True)
    assert rows(points) == [(rank, who, int(has)) for rank, (who, has) in enumerate(found, 1)]
    assert around(rows(points), "top", 1) == rows(points)[:2]
    assert around(rows(points), "end", 2) == rows(points)[-3:]
    assert around(rows(points), "nobody", 2) == []
    lab.empty()
    lab.close()


def test_what_the_server_runs_is_overheard_in_scripts_too() -> None:
    lab = Lab()
    lab.empty()
    lab.r.zadd("b", {f"m{i}": i for i in range(50)})
    script = "redis.call('ZRANGE', KEYS[1], 0, 9, 'REV') return redis.call('GET', 'other')"
    with overheard(lab) as heard:
        lab.r.eval(script, 1, "b", "some words", 'a "quoted" one')
        lab.r.zcard("b")
    inner = [one.words for one in heard if one.script]
    assert [words[0].upper() for words in inner] == ["ZRANGE", "GET"]
    assert heard[0].words[2:4] == ["1", "b"] and heard[-1] == Heard(False, ["ZCARD", "b"])
    assert undeclared(lab.r, heard) == {"other"} and keys_of(lab.r, heard[0].words) == {"b"}
    assert keys_of(lab.r, ["PING"]) == set()
    limited = ["ZRANGE", "b", "-inf", "+inf", "BYSCORE", "LIMIT", "30", "2"]
    assert [visited(lab.r, words) for words in (inner[0], ["ZSCORE", "b", "m1"], limited)] == [10, 1, 32]
    assert elements([["a", 1.0], ["b", 2.0]]) == 4
    lab.empty()
    lab.close()
