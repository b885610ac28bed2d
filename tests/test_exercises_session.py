"""The graders of chapter 04 accept every right way, whatever its layout, and refuse what helps a thief."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

import pytest
from answers import SlowTime, changed, wrong

from labkit.rig.connection import supports
from labkit.teach import check
from labkit.teach.exercises import Exercise, Verdict, load
from labkit.teach.exercises.lock.grading import chance
from labkit.teach.exercises.session.grading import Inside, elsewhere, unseen
from labkit.teach.lab import Lab

EXERCISES = {exercise.name: exercise for exercise in load("session")}
_answer = partial(changed, "session")

_SLIDING = """
import base64, hashlib, hmac, json, os, secrets, uuid
import redis

class MySessions:
    def __init__(self, r, name, ttl):
        self.r, self.name, self.ms = r, name, round(ttl * 1000)

    def key(self, token):
        return f"{self.name}:{hashlib.sha256(token.encode()).hexdigest()}"

    def create(self, user):
        token = secrets.token_urlsafe(32)
        self.r.set(self.key(token), user, px=self.ms)
        return token

    def destroy(self, token):
        return bool(self.r.delete(self.key(token)))
"""
_TOKEN = "secrets.token_urlsafe(32)"
_GETEX = """
    def get(self, token):
        return self.r.getex(self.key(token), px=self.ms)
"""
_EVERYWHERE = """
import hashlib, json, secrets
import redis

class MySessions:
    def __init__(self, r, name, ttl):
        self.r, self.name, self.ms = r, name, max(1, round(ttl * 1000))

    def sid(self, sid):
        return f"{self.name}:sid:{sid}"

    def of(self, user):
        return f"{self.name}:of:{user}"
"""
_SET_AND_LIST = """
    def login(self, user, sid):
        with self.r.pipeline() as pipe:
            pipe.set(self.sid(sid), user, px=self.ms)
            pipe.sadd(self.of(user), sid).pexpire(self.of(user), self.ms).execute()
"""
_SEEN = """
    def get(self, sid):
        user = self.r.get(self.sid(sid))
        if user is None:
            return None
        self.r.pexpire(self.of(user), self.ms)
        return self.r.getex(self.sid(sid), px=self.ms)
"""
_INDEX = """
import redis

class MyIndex:
    def __init__(self, r, name):
        self.r, self.name = r, name

    def key(self, user, sid=""):
        return f"{self.name}:{user}:{sid}"
"""

RIGHT = {
    "sliding: a script": _SLIDING
    + """
    def get(self, token):
        return self.r.eval('''
        local user = redis.call('GET', KEYS[1])
        if not user then return nil end
        redis.call('PEXPIRE', KEYS[1], ARGV[1])
        return user
        ''', 1, self.key(token), self.ms)
""",
    "sliding: a registered script": _SLIDING
    + """
    def get(self, token):
        return self.r.register_script("return redis.call('GETEX', KEYS[1], 'PX', ARGV[1])")(
            keys=[self.key(token)], args=[self.ms]
        )
""",
    "sliding: GET and PEXPIRE in one transaction": _SLIDING
    + """
    def get(self, token):
        return self.r.pipeline().get(self.key(token)).pexpire(self.key(token), self.ms).execute()[0]
""",
    "sliding: a hash of fields, in a transaction": _SLIDING.replace(
        "self.r.set(self.key(token), user, px=self.ms)",
        "self.r.pipeline().hset(self.key(token), mapping={'user': user, 'x': 1})"
        ".pexpire(self.key(token), self.ms).execute()",
    )
    + """
    def get(self, token):
        pipe = self.r.pipeline().hgetall(self.key(token)).pexpire(self.key(token), self.ms)
        return pipe.execute()[0].get("user")
""",
    "sliding: JSON": _SLIDING.replace(", user, px", ", json.dumps({'user': user}), px")
    + """
    def get(self, token):
        found = self.r.getex(self.key(token), px=self.ms)
        return json.loads(found)["user"] if found else None
""",
    "sliding: hex, and a hash tag": _SLIDING.replace("token_urlsafe", "token_hex").replace(
        "{self.name}:{h", "{{{self.name}}}:{h"
    )
    + _GETEX,
    "sliding: a UUID by chance, and SHA-1": _SLIDING.replace(_TOKEN, "str(uuid.uuid4())").replace(
        "sha256", "sha1"
    )
    + _GETEX,
    "sliding: os.urandom by name, BLAKE2": "from os import urandom\n"
    + _SLIDING.replace(_TOKEN, "base64.b85encode(urandom(24)).decode()").replace("sha256", "blake2b")
    + _GETEX,
    "sliding: the server's ACL GENPASS": _SLIDING.replace(_TOKEN, "self.r.acl_genpass(256)") + _GETEX,
    "sliding: a digest of bytes in the name of the key": _SLIDING.replace(
        'f"{self.name}:{hashlib.sha256(token.encode()).hexdigest()}"',
        "self.name.encode() + b':' + hashlib.sha256(token.encode()).digest()",
    )
    + _GETEX,
    "sliding: a selector in clear, and a hash of the rest": """
import hashlib, hmac, secrets

class MySessions:
    LUA = '''
    local held = redis.call('HMGET', KEYS[1], 'verifier', 'user')
    if held[1] ~= ARGV[1] then return false end
    if ARGV[3] == 'destroy' then return redis.call('DEL', KEYS[1]) end
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return held[2]
    '''

    def __init__(self, r, name, ttl):
        self.r, self.name, self.ms = r, name, round(ttl * 1000)

    def create(self, user):
        selector, verifier = secrets.token_hex(8), secrets.token_urlsafe(32)
        key, held = f"{self.name}:{selector}", hashlib.sha256(verifier.encode()).hexdigest()
        self.r.pipeline().hset(key, mapping={"verifier": held, "user": user}).pexpire(key, self.ms).execute()
        return f"{selector}.{verifier}"

    def run(self, token, what):
        selector, _, verifier = token.partition(".")
        held = hashlib.sha256(verifier.encode()).hexdigest()
        return self.r.eval(self.LUA, 1, f"{self.name}:{selector}", held, self.ms, what)

    def get(self, token):
        return self.run(token, "get")

    def destroy(self, token):
        return self.run(token, "destroy") == 1
""",
    "sliding: fields of one hash, each with a TTL (HGETEX)": """
import hashlib, secrets

class MySessions:
    def __init__(self, r, name, ttl):
        self.r, self.name, self.ms = r, name, round(ttl * 1000)

    def field(self, token):
        return hashlib.sha256(token.encode()).hexdigest()

    def create(self, user):
        token = secrets.token_urlsafe(32)
        self.r.execute_command("HSETEX", self.name, "PX", self.ms, "FIELDS", 1, self.field(token), user)
        return token

    def get(self, token):
        return self.r.execute_command("HGETEX", self.name, "PX", self.ms, "FIELDS", 1, self.field(token))[0]

    def destroy(self, token):
        return self.r.hdel(self.name, self.field(token)) == 1
""",
    "everywhere: WATCH, again and again": _EVERYWHERE
    + _SET_AND_LIST
    + _SEEN
    + """
    def logout(self, sid):
        with self.r.pipeline() as pipe:
            user = self.r.get(self.sid(sid))
            return user is not None and pipe.delete(self.sid(sid)).srem(self.of(user), sid).execute()[0] == 1

    def logout_everywhere(self, user):
        while True:
            with self.r.pipeline() as pipe:
                try:
                    pipe.watch(self.of(user))
                    sids = pipe.smembers(self.of(user))
                    pipe.multi()
                    pipe.delete(self.of(user), *map(self.sid, sids)).execute()
                    return
                except redis.WatchError:
                    continue
""",
    "everywhere: the session, then the set; and out one by one": _EVERYWHERE
    + """
    def login(self, user, sid):
        self.r.set(self.sid(sid), user, px=self.ms)
        self.r.pipeline().sadd(self.of(user), sid).pexpire(self.of(user), self.ms).execute()

    def logout(self, sid):
        return self.r.delete(self.sid(sid)) == 1

    def logout_everywhere(self, user):
        for sid in self.r.smembers(self.of(user)):
            self.r.delete(self.sid(sid))
            self.r.srem(self.of(user), sid)
"""
    + _SEEN,
    "everywhere: a sorted set, every call a script": _EVERYWHERE
    + """
    NOW = '''
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    '''
    KEEP = NOW + '''
    local user = ARGV[4]
    if user then redis.call('SET', KEYS[1], user, 'PX', ARGV[3])
    else user = redis.call('GETEX', KEYS[1], 'PX', ARGV[3]) end
    if not user then return false end
    local of = ARGV[1] .. user
    redis.call('ZREMRANGEBYSCORE', of, '-inf', now)
    redis.call('ZADD', of, now + ARGV[3], ARGV[2])
    redis.call('PEXPIRE', of, ARGV[3])
    return user
    '''
    OUT = '''
    for _, sid in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('DEL', ARGV[1] .. sid) end
    redis.call('DEL', KEYS[1])
    '''

    def login(self, user, sid):
        self.r.eval(self.KEEP, 1, self.sid(sid), self.of(""), sid, self.ms, user)

    def get(self, sid):
        return self.r.eval(self.KEEP, 1, self.sid(sid), self.of(""), sid, self.ms)

    def logout(self, sid):
        return self.r.delete(self.sid(sid)) == 1

    def logout_everywhere(self, user):
        self.r.eval(self.OUT, 1, self.of(user), self.sid(""))
""",
    "everywhere: a generation, which a session must have": _EVERYWHERE
    + """
    LOGIN = '''
    local now = redis.call('GET', KEYS[2]) or ARGV[3]
    redis.call('SET', KEYS[2], now, 'PX', ARGV[2])
    redis.call('SET', KEYS[1], now .. ' ' .. ARGV[1], 'PX', ARGV[2])
    '''
    GET = '''
    local held = redis.call('GET', KEYS[1])
    if not held then return false end
    local began, user = held:match('^(%x+) (.*)$')
    if redis.call('GET', ARGV[2] .. user) ~= began then return false end
    if ARGV[3] == 'end' then return redis.call('DEL', KEYS[1]) end
    redis.call('PEXPIRE', ARGV[2] .. user, ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    return user
    '''

    def login(self, user, sid):
        self.r.eval(self.LOGIN, 2, self.sid(sid), self.of(user), user, self.ms, secrets.token_hex(8))

    def get(self, sid):
        return self.r.eval(self.GET, 1, self.sid(sid), self.ms, self.of(""), "get")

    def logout(self, sid):
        return self.r.eval(self.GET, 1, self.sid(sid), self.ms, self.of(""), "end") == 1

    def logout_everywhere(self, user):
        self.r.delete(self.of(user))
""",
    "everywhere: a hash for each user": _EVERYWHERE
    + """
    OUT = "for _, sid in ipairs(redis.call('HKEYS', KEYS[1])) do redis.call('DEL', ARGV[1] .. sid) end " \\
          "return redis.call('DEL', KEYS[1])"

    def login(self, user, sid):
        with self.r.pipeline() as pipe:
            pipe.hset(self.of(user), sid, "phone").pexpire(self.of(user), self.ms)
            pipe.hset(self.sid(sid), "user", user).pexpire(self.sid(sid), self.ms).execute()

    def get(self, sid):
        user = self.r.hget(self.sid(sid), "user")
        if user is None:
            return None
        with self.r.pipeline() as pipe:
            pipe.pexpire(self.sid(sid), self.ms).pexpire(self.of(user), self.ms)
            return user if pipe.execute()[0] else None

    def logout(self, sid):
        return self.r.delete(self.sid(sid)) == 1

    def logout_everywhere(self, user):
        self.r.eval(self.OUT, 1, self.of(user), self.sid(""))
""",
    "index: WATCH, and the server's TIME": _INDEX
    + """
    def now(self):
        seconds, micros = self.r.time()
        return seconds * 1000 + micros // 1000

    def change(self, user, sid, ttl=None):
        key = self.key(user)
        while True:
            with self.r.pipeline() as pipe:
                try:
                    pipe.watch(key)
                    now = self.now()
                    live = dict(pipe.zrange(key, f"({now}", "+inf", byscore=True, withscores=True))
                    was = live.pop(sid, None) is not None
                    if ttl is not None:
                        live[sid] = now + round(ttl * 1000)
                    pipe.multi()
                    pipe.delete(key)
                    if live:
                        pipe.zadd(key, live).pexpireat(key, int(max(live.values())))
                    pipe.execute()
                    return was
                except redis.WatchError:
                    continue

    def touch(self, user, sid, ttl):
        self.change(user, sid, ttl)

    def end(self, user, sid):
        return self.change(user, sid)

    def active(self, user):
        now = self.now()
        with self.r.pipeline() as pipe:
            pipe.zremrangebyscore(self.key(user), "-inf", now)
            return set(pipe.zrange(self.key(user), 0, -1).execute()[1])
""",
    "index: a generator": EXERCISES["index"].reference.replace(
        'return self.do(user, "active")', 'return (sid for sid in self.do(user, "active"))'
    ),
    "index: a hash whose fields have TTLs (HPEXPIRE)": _INDEX
    + """
    def touch(self, user, sid, ttl):
        with self.r.pipeline() as pipe:
            pipe.hset(self.key(user), sid, 1)
            pipe.hpexpire(self.key(user), max(1, round(ttl * 1000)), sid).execute()

    def end(self, user, sid):
        return self.r.pipeline().hexists(self.key(user), sid).hdel(self.key(user), sid).execute()[0]

    def active(self, user):
        return self.r.hkeys(self.key(user))
""",
    "index: a hash whose fields have TTLs (HSETEX)": _INDEX
    + """
    def touch(self, user, sid, ttl):
        self.r.execute_command("HSETEX", self.key(user), "PX", round(ttl * 1000), "FIELDS", 1, sid, "")

    def end(self, user, sid):
        return self.r.execute_command("HGETDEL", self.key(user), "FIELDS", 1, sid) != [None]

    def active(self, user):
        return tuple(self.r.hgetall(self.key(user)))
""",
    "index: a hash of moments, and a script": _INDEX
    + """
    LUA = '''
    local time = redis.call('TIME')
    local now, last, live, was = time[1] * 1000 + math.floor(time[2] / 1000), 0, {}, 0
    local all = redis.call('HGETALL', KEYS[1])
    for i = 1, #all, 2 do
        local ends = tonumber(all[i + 1])
        if ends > now and all[i] ~= ARGV[1] then
            last = math.max(last, ends)
            live[#live + 1] = all[i]
        else
            if ends > now then was = 1 end
            redis.call('HDEL', KEYS[1], all[i])
        end
    end
    if ARGV[2] then
        last = math.max(last, now + ARGV[2])
        redis.call('HSET', KEYS[1], ARGV[1], now + ARGV[2])
    end
    if last > 0 then redis.call('PEXPIREAT', KEYS[1], last) end
    return {was, live}
    '''

    def touch(self, user, sid, ttl):
        self.r.eval(self.LUA, 1, self.key(user), sid, round(ttl * 1000))

    def end(self, user, sid):
        return self.r.eval(self.LUA, 1, self.key(user), sid)[0] == 1

    def active(self, user):
        return self.r.eval(self.LUA, 1, self.key(user), "")[1]
""",
    "index: a set, and a key for each session, in scripts": _INDEX
    + """
    LUA = '''
    local last, was = 0, 0
    if ARGV[1] == 'touch' then
        redis.call('SET', KEYS[1] .. ARGV[2], 1, 'PX', ARGV[3])
        redis.call('SADD', KEYS[1], ARGV[2])
    elseif ARGV[1] == 'end' then was = redis.call('DEL', KEYS[1] .. ARGV[2]) end
    for _, sid in ipairs(redis.call('SMEMBERS', KEYS[1])) do
        local left = redis.call('PTTL', KEYS[1] .. sid)
        if left < 0 then redis.call('SREM', KEYS[1], sid) end
        last = math.max(last, left)
    end
    if last > 0 then redis.call('PEXPIRE', KEYS[1], last) end
    return ARGV[1] == 'active' and redis.call('SMEMBERS', KEYS[1]) or was
    '''

    def do(self, user, *what):
        return self.r.eval(self.LUA, 1, self.key(user), *what)

    def touch(self, user, sid, ttl):
        self.do(user, "touch", sid, round(ttl * 1000))

    def end(self, user, sid):
        return self.do(user, "end", sid) == 1

    def active(self, user):
        return self.do(user, "active")
""",
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_answers_are_accepted(name: str) -> None:
    exercise, lab = EXERCISES[name.partition(":")[0]], Lab()
    for command in ("HGETEX", "HSETEX", "HPEXPIRE"):
        if command in name and not supports(lab.r, command):
            pytest.skip(f"this server has no {command}")
    lab.close()
    began = time.perf_counter()
    verdict = check.grade(exercise, exercise.build(RIGHT[name]))
    print(f"{name}: {time.perf_counter() - began:.1f} s")
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


def test_the_counterexample_is_an_interleaving_of_commands_with_replies() -> None:
    exercise: Exercise = EXERCISES["everywhere"]
    wrong = next(wrong for wrong in exercise.wrong if wrong.why.startswith("SMEMBERS, then DEL of the set"))
    verdict = check.grade(exercise, exercise.build(wrong.source))
    told = [" ".join(line.split()) for line in verdict.counterexample.splitlines()]
    login = "SET sessions:sid:s2 ada PX 60000; SADD sessions:of:ada s2; PEXPIRE sessions:of:ada 60000"
    assert told == [
        "s1 is a session of ada's. A: login('ada', s2). B: logout_everywhere('ada')",
        "2 of 4 orders of these steps go wrong; the simplest:",
        'B SMEMBERS sessions:of:ada -> ["s1"]',
        f"A MULTI; {login}; EXEC -> [OK, 1, 1]",
        "B DEL sessions:sid:s1 -> 1",
        "B DEL sessions:of:ada -> 1",
    ]


KEY = 'f"{self.name}:{hashlib.sha256(token.encode()).hexdigest()}"'
CREATE = "token = secrets.token_urlsafe(32)"
HEAD = "import hashlib"


@pytest.mark.parametrize(
    "key",
    [
        "f'{self.name}:{token}'",
        "f'{self.name}:' + token[::-1]",
        "f'{self.name}:' + token.upper()",
        "f'{self.name}:' + token.encode().hex()",
        "f'{self.name}:' + __import__('base64').b64encode(token.encode()).decode()",
        "f'{self.name}:' + __import__('base64').b32encode(token.encode()).decode()",
        "f'{self.name}:' + __import__('base64').b85encode(token.encode()).decode()",
        "f'{self.name}:' + __import__('codecs').encode(token, 'rot13')",
        "f'{self.name}:' + bytes(c ^ 42 for c in token.encode()).hex()",
        "f'{self.name}:' + __import__('zlib').compress(token.encode()).hex()",
        "f'{self.name}:' + '-'.join(str(ord(c)) for c in token)",
        "f'{self.name}:' + token[::2] + token[1::2]",
        "f'{self.name}:' + str(int.from_bytes(token.encode(), 'big'))",
        "f'{self.name}:{token[:20]}:{token[20:]}'",
        "f'{self.name}:{token[:40]}:{hashlib.sha256(token.encode()).hexdigest()}'",
    ],
)
def test_a_token_is_found_however_it_is_written(key: str) -> None:
    source = EXERCISES["sliding"].reference.replace(KEY, key)
    assert source != EXERCISES["sliding"].reference
    verdict = check.grade(EXERCISES["sliding"], EXERCISES["sliding"].build(source))
    assert verdict.state == "incorrect" and verdict.property in ("clear", "raises", "unknown"), str(verdict)


@pytest.mark.parametrize(
    "token",
    ["secrets.token_hex(12)", "str(random.random()) * 3", "random.randbytes(32).hex()", "str(uuid.uuid1())",
     "str(id(self)) * 4", "user + str(time.time_ns())", "hashlib.sha256(os.urandom(4)).hexdigest()",
     "hashlib.sha512(user.encode()).hexdigest() + secrets.token_hex(2)",
     "str(uuid.uuid5(uuid.NAMESPACE_DNS, str(time.time())))"],
)  # fmt: skip
def test_tokens_that_can_be_guessed_are_refused(token: str) -> None:
    head = (HEAD, "import hashlib, os, random, time, uuid")
    verdict = _answer("sliding", (CREATE, f"token = {token}"), head)
    assert verdict.property == "token", str(verdict)


@pytest.mark.parametrize(
    "token",
    ["secrets.token_hex(16)", "secrets.token_bytes(32).hex()", "str(uuid.uuid4())", "uuid.uuid4().hex",
     "os.urandom(20).hex()", "str(secrets.randbits(256))",
     "f'{user.encode().hex()}.{secrets.token_urlsafe()}'",
     "str(random.SystemRandom().getrandbits(256))", "secrets.token_urlsafe(16)", "secrets.token_urlsafe(18)",
     "base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()",
     "base64.b85encode(secrets.token_bytes(16)).decode()", "secrets.token_hex(15)",
     "''.join(secrets.choice('abcdefghijklmnopqrstuvwxyz0123456789') for _ in range(32))",
     "hashlib.sha256(os.urandom(32)).hexdigest()", "secrets.token_urlsafe(24) + str(time.time())"],
)  # fmt: skip
def test_tokens_of_enough_chance_are_accepted(token: str) -> None:
    head = (HEAD, "import base64, hashlib, os, random, time, uuid")
    verdict = _answer("sliding", (CREATE, f"token = {token}"), head)
    assert verdict.state == "correct", str(verdict)


@pytest.mark.parametrize("nothing", ["False", "''", "0"])
@pytest.mark.parametrize("name", ["sliding", "everywhere"])
def test_what_is_not_none_is_said_as_it_is(name: str, nothing: str) -> None:
    get = re.search(r"(?<=\n)        return self.r.(getex|eval\(self.GET).*\n", EXERCISES[name].reference)
    assert get
    verdict = _answer(name, (get[0], f"{get[0].rstrip()} or {nothing}\n"))
    assert verdict.message == f"there is no such session: get() is to give None, and gives {nothing}"


def test_an_index_of_none_is_said_so() -> None:
    verdict = _answer("index", ('return self.do(user, "active")', 'return self.do(user, "active") or None'))
    assert verdict.message.startswith("active('ada') gives None"), str(verdict)


def test_one_hash_for_each_user_renews_what_nobody_uses() -> None:
    key = (
        ("secrets.token_urlsafe(32)", "user.encode().hex() + '.' + secrets.token_urlsafe(32)"),
        ("self.r.set(self.key(token), user, px=self.ms)",
         "of = f'{self.name}:' + user.encode().hex()\n        self.r.pipeline()"
         ".hset(of, self.key(token), user).pexpire(of, self.ms).execute()"),
        ("return self.r.getex(self.key(token), px=self.ms)",
         "of = f'{self.name}:' + token.partition('.')[0]\n        return self.r.pipeline()"
         ".hget(of, self.key(token)).pexpire(of, self.ms).execute()[0]"),
        ("return self.r.delete(self.key(token)) == 1",
         "return self.r.hdel(f'{self.name}:' + token.partition('.')[0], self.key(token)) == 1"),
    )  # fmt: skip
    assert _answer("sliding", *key).property == "others"


@pytest.mark.parametrize("pepper", ["b'of this site'", "bytes.fromhex('8f0a99d1')", "PREFIX.encode()"])
def test_a_pepper_that_all_processes_know_is_accepted(pepper: str) -> None:
    head = ("class MySessions", f"PREFIX = 'site'\nPEPPER = {pepper}\n\nclass MySessions")
    verdict = _answer("sliding", ("token.encode()", "PEPPER + token.encode()"), head)
    assert verdict.state == "correct", str(verdict)


def test_a_pepper_that_the_class_draws_is_refused() -> None:
    pepper = ("    def __init__", "    pepper = secrets.token_bytes(8)\n\n    def __init__")
    verdict = _answer("sliding", ("token.encode()", "self.pepper + token.encode()"), pepper)
    assert verdict.property == "shared", str(verdict)


def test_time_passes_for_keys_and_for_fields() -> None:
    lab = Lab()
    inside = Inside(lab)
    lab.r.set("long", 1, px=5000)
    lab.r.set("short", 1, px=900)
    lab.r.set("ever", 1)
    fields = supports(lab.r, "HPEXPIRE")
    if fields:
        lab.r.hset("h", mapping={"a": 1, "b": 1})
        lab.r.hpexpire("h", 900, "a")
        lab.r.hpexpire("h", 5000, "b")
    inside.later(1000)
    assert lab.r.exists("long", "short", "ever") == 2
    assert 3000 < lab.r.pttl("long") <= 4000 and lab.r.pttl("ever") == -1
    if fields:
        assert lab.r.hkeys("h") == ["b"] and 3000 < lab.r.hpttl("h", "b")[0] <= 4000
    lab.close()


def test_the_gap_of_a_plain_pipeline_is_told_as_time_that_passes() -> None:
    wrong = next(wrong for wrong in EXERCISES["sliding"].wrong if wrong.why.startswith("a plain pipeline"))
    verdict = check.grade(EXERCISES["sliding"], EXERCISES["sliding"].build(wrong.source))
    told = [line.split()[:2] for line in verdict.counterexample.splitlines()[2:]]
    assert told == [["A", "GET"], ["·", "session"], ["A", "PEXPIRE"]], str(verdict)


def test_a_crash_is_found_where_no_two_tokens_are_the_same() -> None:
    """Tokens with the time in them: the explorer cannot compare two orders, and yet a crash is tried."""
    token = (CREATE, f"{CREATE} + str(time.time())"), (HEAD, "import hashlib, time")
    put = "self.r.set(self.key(token), user, px=self.ms)"
    late = "self.r.set(self.key(token), user)\n        self.r.pexpire(self.key(token), self.ms)"
    assert _answer("sliding", *token).state == "correct"
    assert _answer("sliding", *token, (put, late)).property == "crash"


def test_hdel_counts_fields_whose_time_is_up() -> None:
    """HDEL is 1 for a field that has expired and has not been removed yet: end() must ask first."""
    name = "index: a hash whose fields have TTLs (HPEXPIRE)"
    lab = Lab()
    if not supports(lab.r, "HPEXPIRE"):
        pytest.skip("this server has no HPEXPIRE")
    lab.close()
    old = "self.r.pipeline().hexists(self.key(user), sid).hdel(self.key(user), sid).execute()[0]"
    assert old in RIGHT[name]
    source = RIGHT[name].replace(old, "self.r.hdel(self.key(user), sid) == 1")
    verdict = check.grade(EXERCISES["index"], EXERCISES["index"].build(source))
    assert verdict.property == "late", str(verdict)


def test_hset_then_hpexpire_leaves_a_field_for_ever() -> None:
    name = "index: a hash whose fields have TTLs (HPEXPIRE)"
    lab = Lab()
    if not supports(lab.r, "HPEXPIRE"):
        pytest.skip("this server has no HPEXPIRE")
    lab.close()
    source = RIGHT[name].replace("self.r.pipeline() as pipe", "self.r.pipeline(transaction=False) as pipe")
    assert source != RIGHT[name]
    verdict = check.grade(EXERCISES["index"], EXERCISES["index"].build(source))
    assert verdict.property == "crash", str(verdict)


def test_what_redis_does_not_show_of_a_token() -> None:
    token = "0123456789abcdefghijklmnopqrstuv"
    assert unseen(token, [b"session:of:ada"]) == token
    assert unseen(token, [b"session:" + token.encode()]) == ""
    assert unseen(token, [b"selector:" + token[:16].encode()]) == token[16:]
    assert unseen("ab" * 16, [bytes.fromhex("ab" * 16)]) == ""
    assert unseen(token, [b"x:" + token[:6].encode()]) == token, "too short to tell"


def test_chance_is_measured_place_by_place() -> None:
    assert chance(["abc"] * 30) == 0
    assert 20 < chance([f"{n * 7919 % 65536:04x}" * 2 for n in range(30)]) < 60


def test_a_slow_machine_finds_the_renewal_of_all_sessions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.teach.exercises.session.sliding.time", SlowTime(0.25))
    verdict = wrong("session", "sliding", "one hash for all sessions")
    assert (verdict.state, verdict.property) == ("incorrect", "others"), str(verdict)
    assert changed("session", "sliding").state == "correct"


def test_a_slow_machine_finds_who_remembers_a_session_too(monkeypatch: pytest.MonkeyPatch) -> None:
    halts = iter([0.05] * 3)  # longer than it remembers, and no halt from the fourth time on

    def slow(kind: Any) -> Any:
        class Slow(elsewhere(kind)):  # type: ignore[misc]
            def destroy(self, token: str) -> bool:
                destroyed: bool = super().destroy(token)
                time.sleep(next(halts, 0))
                return destroyed

        return Slow

    monkeypatch.setattr("labkit.teach.exercises.session.sliding.elsewhere", slow)
    verdict = wrong("session", "sliding", "get() remembers for 20 ms")
    assert (verdict.state, verdict.property) == ("incorrect", "shared"), str(verdict)
    assert next(halts, None) is None, "it did stand still"
