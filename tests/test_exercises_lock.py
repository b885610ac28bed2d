"""The graders of chapter 08 accept every right way, are deterministic, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest
from answers import SlowTime

from labkit.rig import stage
from labkit.teach import check, lab
from labkit.teach.exercises import Exercise, Verdict, load

EXERCISES = {exercise.name: exercise for exercise in load("lock")}

_INIT = """
import redis, secrets

class MyLock:
    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.ms, self.token = r, key, round(ttl * 1000), secrets.token_hex()

    def acquire(self):
        return bool(self.r.set(self.key, self.token, nx=True, px=self.ms))
"""
_EXTEND = """
import redis

def extend(r, key, token, ttl):
    ms = round(ttl * 1000)
"""
_SEMAPHORE = """
import random, redis, secrets, uuid

class MySemaphore:
    def __init__(self, r, name, n, ttl):
        self.r, self.name, self.n, self.ms = r, name, n, round(ttl * 1000)
"""
_SLOTS = """
    LUA = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

    def release(self, token):
        return self.r.eval(self.LUA, 1, f"{{{self.name}}}:{token.split(':')[0]}", token) == 1
"""
_ONE_BY_ONE = """
    def acquire(self):
        for i in range(self.n):
            token = f"{i}:{secrets.token_hex()}"
            if self.r.set(f"{{{self.name}}}:{i}", token, nx=True, px=self.ms):
                return token
        return None
"""
_ELECTION = """
import redis

LUA = '''
local leader = redis.call('GET', KEYS[1])
if not leader then return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return leader == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2])
'''
RESIGN = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"

class MyElection:
    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.me, self.ms = r, key, me, round(ttl * 1000)

    def resign(self):
        return bool(self.r.eval(RESIGN, 1, self.key, self.me))
"""

RIGHT = {
    "release: redis-py's own lock": """
from redis.exceptions import LockError

class MyLock:
    def __init__(self, r, key, me, ttl):
        self.lock = r.lock(key, timeout=ttl, blocking=False)

    def acquire(self):
        return self.lock.acquire()

    def release(self):
        try:
            self.lock.release()
        except LockError:
            return False
        return True
""",
    "release: WATCH, and a WatchError means that it is lost": _INIT
    + """
    def release(self):
        with self.r.pipeline() as pipe:
            try:
                pipe.watch(self.key)
                if pipe.get(self.key) != self.token:
                    return False
                pipe.multi()
                return pipe.delete(self.key).execute() == [1]
            except redis.WatchError:
                return False
""",
    "release: transaction() with its retries": _INIT
    + """
    def release(self):
        def drop(pipe):
            ours = pipe.get(self.key) == self.token
            pipe.multi()
            if ours:
                pipe.delete(self.key)
            return ours

        return self.r.transaction(drop, self.key, value_from_callable=True)
""",
    "release: DELEX, and a script where the server has none": _INIT
    + """
    def release(self):
        try:
            return self.r.execute_command("DELEX", self.key, "IFEQ", self.token) == 1
        except redis.ResponseError:
            lua = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"
            return self.r.register_script(lua)(keys=[self.key], args=[self.token]) == 1
""",
    "release: SETNX and PEXPIRE NX in one transaction, a registered script": """
import uuid

class MyLock:
    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.token, self.ms = r, key, uuid.uuid4().bytes.hex(), int(ttl * 1000)
        self.drop = r.register_script(
            "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
        )

    def acquire(self):
        with self.r.pipeline() as pipe:
            return pipe.setnx(self.key, self.token).pexpire(self.key, self.ms, nx=True).execute()[0]

    def release(self):
        return self.drop([self.key], [self.token])
""",
    "release: a hash": """
import itertools, secrets

class MyLock:
    TAKE = '''
    if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
    redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'token', ARGV[2])
    return redis.call('PEXPIRE', KEYS[1], ARGV[3])
    '''
    DROP = "return redis.call('HGET', KEYS[1], 'token') == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"

    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.me, self.ms, self.token = r, key, me, round(ttl * 1000), None

    def acquire(self):
        token = secrets.token_urlsafe()
        taken = self.r.eval(self.TAKE, 1, self.key, self.me, token, self.ms)
        self.token = token if taken else self.token
        return taken

    def release(self):
        token, self.token = self.token, None
        return bool(token and self.r.eval(self.DROP, 1, self.key, token))
""",
    "release: a number that the server counts": """
class MyLock:
    TAKE = '''
    if redis.call('EXISTS', KEYS[1]) == 1 then return false end
    local token = redis.call('INCR', KEYS[2])
    redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
    return token
    '''
    DROP = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"

    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.ms, self.token = r, key, round(ttl * 1000), 0

    def acquire(self):
        taken = self.r.eval(self.TAKE, 2, self.key, f"{self.key}:count", self.ms)
        self.token = taken or self.token
        return bool(taken)

    def release(self):
        return self.r.eval(self.DROP, 1, self.key, self.token) == 1
""",
    "extend: WATCH, again and again": _EXTEND
    + """
    while True:
        with r.pipeline() as pipe:
            try:
                pipe.watch(key)
                if pipe.get(key) != token:
                    return False
                pipe.multi()
                pipe.pexpire(key, ms)
                return bool(pipe.execute()[0])
            except redis.WatchError:
                continue
""",
    "extend: WATCH, SET XX, and a WatchError means that it is lost": _EXTEND
    + """
    with r.pipeline() as pipe:
        try:
            pipe.watch(key)
            ours = pipe.get(key) == token
            pipe.multi()
            return ours and pipe.set(key, token, px=ms, xx=True).execute() == [True]
        except redis.WatchError:
            return False
""",
    "extend: SET IFEQ, and a script where the server has none": _EXTEND
    + """
    try:
        return bool(r.execute_command("SET", key, token, "IFEQ", token, "PX", ms))
    except redis.ResponseError:
        lua = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2])"
        return bool(r.eval(lua, 1, key, token, ms))
""",
    "extend: redis-py's own lock": """
from redis.exceptions import LockError

def extend(r, key, token, ttl):
    lock = r.lock(key, timeout=ttl, thread_local=False)
    lock.local.token = token.encode()
    try:
        return lock.extend(ttl, replace_ttl=True)
    except LockError:
        return False
""",
    "extend: a script that sets the moment of its end": _EXTEND
    + '''
    lua = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
    local now = redis.call('TIME')
    return redis.call('PEXPIREAT', KEYS[1], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2])
    """
    return r.register_script(lua)([key], [token, ms])
''',
    "semaphore: a key for each place": _SEMAPHORE + _SLOTS + _ONE_BY_ONE,
    "semaphore: a key for each place, tried in a random order": _SEMAPHORE
    + _SLOTS
    + _ONE_BY_ONE.replace("range(self.n)", "random.sample(range(self.n), self.n)"),
    "semaphore: a key for each place, all in one script": _SEMAPHORE
    + _SLOTS
    + '''
    TAKE = """
    for i, key in ipairs(KEYS) do
        local token = (i - 1) .. ':' .. ARGV[1]
        if redis.call('SET', key, token, 'NX', 'PX', ARGV[2]) then return token end
    end
    return false
    """

    def acquire(self):
        keys = [f"{{{self.name}}}:{i}" for i in range(self.n)]
        return self.r.eval(self.TAKE, self.n, *keys, uuid.uuid4().hex, self.ms)
''',
    "semaphore: when each began, in a sorted set": _SEMAPHORE
    + '''
    TAKE = """
    local time = redis.call('TIME')
    local now = time[1] + time[2] / 1000000
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3] / 1000)
    if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[2]) then
        redis.call('ZADD', KEYS[1], now, ARGV[1])
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
        return ARGV[1]
    end
    return nil
    """

    def acquire(self):
        return self.r.eval(self.TAKE, 1, self.name, uuid.uuid4().hex, self.n, self.ms)

    DROP = """
    local time = redis.call('TIME')
    local began = redis.call('ZSCORE', KEYS[1], ARGV[1])
    redis.call('ZREM', KEYS[1], ARGV[1])
    return began and time[1] + time[2] / 1000000 < began + ARGV[2] / 1000
    """

    def release(self, token):
        return bool(self.r.eval(self.DROP, 1, self.name, token, self.ms))
''',
    "semaphore: a hash, and a script": _SEMAPHORE
    + '''
    TAKE = """
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local all = redis.call('HGETALL', KEYS[1])
    local held = 0
    for i = 1, #all, 2 do
        if tonumber(all[i + 1]) <= now then redis.call('HDEL', KEYS[1], all[i]) else held = held + 1 end
    end
    if held >= tonumber(ARGV[1]) then return 0 end
    redis.call('HSET', KEYS[1], ARGV[3], now + ARGV[2])
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
    """

    def acquire(self):
        token = secrets.token_bytes(8).hex()
        return token if self.r.eval(self.TAKE, 1, self.name, self.n, self.ms, token) else None

    DROP = """
    local time = redis.call('TIME')
    local ends = redis.call('HGET', KEYS[1], ARGV[1])
    redis.call('HDEL', KEYS[1], ARGV[1])
    return ends and tonumber(ends) > time[1] * 1000 + math.floor(time[2] / 1000)
    """

    def release(self, token):
        return self.r.eval(self.DROP, 1, self.name, token) == 1
''',
    "semaphore: WATCH, and the server's TIME": _SEMAPHORE
    + """
    def acquire(self):
        token = secrets.token_hex()
        while True:
            with self.r.pipeline() as pipe:
                try:
                    pipe.watch(self.name)
                    seconds, micros = pipe.time()
                    now = seconds * 1000 + micros // 1000
                    if pipe.zcount(self.name, f"({now}", "+inf") >= self.n:
                        return None
                    pipe.multi()
                    pipe.zremrangebyscore(self.name, "-inf", now)
                    pipe.zadd(self.name, {token: now + self.ms}).pexpire(self.name, self.ms).execute()
                    return token
                except redis.WatchError:
                    continue

    def release(self, token):
        seconds, micros = self.r.time()
        now = seconds * 1000 + micros // 1000
        with self.r.pipeline() as pipe:
            return pipe.zremrangebyscore(self.name, "-inf", now).zrem(self.name, token).execute()[1] == 1
""",
    "election: a registered script, resign by WATCH": """
import redis

class MyElection:
    def __init__(self, r, key, me, ttl):
        self.r, self.key, self.me, self.ms = r, key, me, round(ttl * 1000)
        self.try_it = r.register_script('''
        local leader = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2], 'GET')
        if not leader then return 1 end
        return leader == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0
        ''')

    def campaign(self):
        return self.try_it(keys=[self.key], args=[self.me, self.ms])

    def resign(self):
        with self.r.pipeline() as pipe:
            try:
                pipe.watch(self.key)
                if pipe.get(self.key) != self.me:
                    return False
                pipe.multi()
                return bool(pipe.delete(self.key).execute()[0])
            except redis.WatchError:
                return False
""",
    "election: two steps in one round trip": _ELECTION
    + """
    def campaign(self):
        with self.r.pipeline(transaction=False) as pipe:
            pipe.set(self.key, self.me, nx=True, px=self.ms)
            pipe.eval(LUA, 1, self.key, self.me, self.ms)
            return bool(pipe.execute()[1])
""",
    "election: EVALSHA, and EVAL where the script is unknown": _ELECTION
    + """
    def campaign(self):
        import hashlib
        args = 1, self.key, self.me, self.ms
        try:
            return self.r.evalsha(hashlib.sha1(LUA.encode()).hexdigest(), *args)
        except redis.exceptions.NoScriptError:
            return self.r.eval(LUA, *args)
""",
    "election: a function of the server": _ELECTION
    + """
    def campaign(self):
        code = f"redis.register_function('campaign', function(KEYS, ARGV) {LUA} end)"
        try:
            return self.r.fcall("campaign", 1, self.key, self.me, self.ms)
        except redis.ResponseError:
            self.r.function_load("#!lua name=election\\n" + code, replace=True)
            return self.r.fcall("campaign", 1, self.key, self.me, self.ms)
""",
}  # fmt: skip


def _exercise(name: str) -> Exercise:
    return EXERCISES[name.partition(":")[0]]


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_answers_are_accepted(name: str) -> None:
    exercise = _exercise(name)
    verdict = check.grade(exercise, exercise.build(RIGHT[name]))
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


def test_the_counterexample_is_an_interleaving_of_commands_with_replies() -> None:
    exercise = EXERCISES["release"]
    wrong = next(
        wrong for wrong in exercise.wrong if wrong.violates == "race" and "GET, then DEL" in wrong.why
    )
    verdict = check.grade(exercise, exercise.build(wrong.source))
    assert (
        verdict.counterexample
        == """A: acquire(), release(). B: acquire(), once A's time is up
1 of 9 orders of these steps goes wrong; the simplest:
  A  SET lock token·1 NX PX 60000  -> OK
  A  GET lock                      -> token·1
  ·  lock expires
  B  SET lock token·2 NX PX 60000  -> OK
  A  DEL lock                      -> 1"""
    )


TOKENS = [
    "uuid.uuid4().hex",
    "uuid.uuid1().hex",
    "str(uuid.uuid4())",
    "secrets.token_hex(8)",
    "secrets.token_bytes(8)",
    "secrets.token_urlsafe()",
    "secrets.randbits(128)",
    "random.random()",
    "random.random().hex()",
    "random.getrandbits(64)",
    "self.me + ':' + secrets.token_hex(8)",
    "f'{self.me}:{time.time()}:{secrets.token_hex(8)}'",
]


@pytest.mark.parametrize("token", TOKENS)
def test_any_token_of_enough_chance_is_accepted(token: str) -> None:
    exercise, old = EXERCISES["release"], 'f"{self.me}:{secrets.token_hex(16)}"'
    assert old in exercise.reference
    source = "import random, time, uuid\n" + exercise.reference.replace(old, token)
    verdict = check.grade(exercise, exercise.build(source))
    assert verdict.state == "correct", str(verdict)


@pytest.mark.parametrize(
    "token", ["id(self)", "next(COUNT)", "time.time()", "time.time_ns()", "randbelow(10**6)", "token_hex(4)"]
)
def test_tokens_that_another_process_may_come_to_are_refused(token: str) -> None:
    head = "import itertools, time\nfrom secrets import randbelow, token_hex\nCOUNT = itertools.count()\n"
    for name, old in (
        ("release", 'f"{self.me}:{secrets.token_hex(16)}"'),
        ("semaphore", "secrets.token_hex(16)"),
    ):
        exercise = EXERCISES[name]
        assert old in exercise.reference
        verdict = check.grade(
            exercise, exercise.build(head + exercise.reference.replace(old, f"str({token})"))
        )
        assert verdict.property == "token", str(verdict)


@pytest.mark.parametrize(
    "clock",
    ["time.time()", "time.time_ns() / 1e9", "now()", "time.clock_gettime(0)", "datetime.now().timestamp()",
     "dt.datetime.now(dt.UTC).timestamp()", "__import__('datetime').datetime.today().timestamp()"],
)  # fmt: skip
def test_every_clock_of_the_client_is_told_from_the_servers(clock: str) -> None:
    exercise, head = EXERCISES["extend"], "import time, datetime as dt\nfrom datetime import datetime\n"
    answer = exercise.reference.replace("'PEXPIRE'", "'PEXPIREAT'")
    answer = answer.replace("max(1, round(ttl * 1000))", f"round(({clock} + ttl) * 1000)")
    built = exercise.build(f"{head}from time import time as now\n{answer}")
    names = dict(built.__globals__)
    verdict = check.grade(exercise, built)
    assert verdict.property == "clock", str(verdict)
    assert built.__globals__ == names and time.time.__name__ == "time", "the clocks are put right again"


def test_keys_and_arguments_in_the_wrong_order_are_told() -> None:
    for name, old in (("extend", "1, key, token"), ("release", "1, self.key, self.token")):
        exercise = EXERCISES[name]
        count, key, token = old.split(", ")
        assert old in exercise.reference
        verdict = check.grade(
            exercise, exercise.build(exercise.reference.replace(old, f"{count}, {token}, {key}"))
        )
        assert verdict.state == "incorrect" and "KEYS" in verdict.look_at, str(verdict)


AT_CHANGE = """
import redis, time

def extend(r, key, token, ttl):
    with r.pipeline() as pipe:
        try:
            pipe.watch(key)
            if pipe.get(key) != token:
                return False
            pipe.multi()
            return pipe.pexpire(key, round(ttl * 1000)).execute() == [True]
        except redis.WatchError:
            BODY
"""
"""Right, but for what it does when another client's step came in between: only the explorer gets there."""


def _grade_at_change(body: str, seconds: float = 1.5) -> Verdict:
    exercise = dataclasses.replace(EXERCISES["extend"], seconds=seconds)
    return check.grade(exercise, exercise.build(AT_CHANGE.replace("BODY", body)))


@pytest.mark.parametrize(
    ("body", "property"),
    [
        ("return False", ""),
        ("while True: pass", "hangs"),
        ("while True: r.get(key)", "endless"),
        ("while True: time.sleep(1)", "endless"),
        ("r.blpop('never')", "endless"),
        ("raise", "raises"),
        ("raise SystemExit(1)", "raises"),
    ],
)
def test_an_answer_that_goes_astray_in_the_middle_of_an_exploration(body: str, property: str) -> None:
    threads, clocks = set(threading.enumerate()), (time.sleep, time.time, time.monotonic)
    verdict = _grade_at_change(body, seconds=1.5 if property == "hangs" else 30)
    assert (verdict.property, verdict.state == "correct") == (property, not property), str(verdict)
    exercise = EXERCISES["extend"]
    assert check.grade(exercise, exercise.build(exercise.reference)).state == "correct"
    assert set(threading.enumerate()) <= threads
    assert (time.sleep, time.time, time.monotonic) == clocks
    assert lab._server is not None
    if lab._server in stage._kept:  # the explorer keeps its own for the next time
        stage._kept.pop(lab._server).close()
    with lab._server.client() as r:
        deadline = time.monotonic() + 5
        while len(r.client_list()) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(r.client_list()) == 1, "every other connection is closed"


def test_keys_left_to_chance_are_told() -> None:
    exercise = EXERCISES["extend"]
    source = exercise.reference.replace("    return", "    r.get(secrets.token_hex())\n    return")
    verdict = check.grade(exercise, exercise.build("import secrets\n" + source))
    assert verdict.property == "deterministic", str(verdict)


def test_an_interrupt_in_the_middle_of_an_exploration_is_the_readers() -> None:
    with pytest.raises(check.Interrupted):
        _grade_at_change("raise KeyboardInterrupt")


def test_a_grade_in_another_thread_ends_too() -> None:
    verdicts: list[Any] = []
    thread = threading.Thread(target=lambda: verdicts.append(_grade_at_change("while True: pass")))
    thread.start()
    thread.join(10)
    assert [verdict.property for verdict in verdicts] == ["hangs"]


def test_a_slow_machine_finds_the_late_release_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.teach.exercises.lock.semaphore.time", SlowTime(0.25))
    semaphore = next(one for one in load("lock") if one.name == "semaphore")
    (late,) = (one for one in semaphore.wrong if one.violates == "late")
    verdict = check.grade(semaphore, semaphore.build(late.source))
    assert (verdict.state, verdict.property) == ("incorrect", "late"), str(verdict)
    monkeypatch.setattr("labkit.teach.exercises.lock.semaphore.time", SlowTime(0.7))
    right = check.grade(semaphore, semaphore.build(semaphore.reference))
    assert right.state == "correct", "all its tries fit into the time limit"
