"""The graders of chapter 03 accept every right way, and refuse what only looks right."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest

from labkit.teach import check
from labkit.teach.exercises import Verdict, load

EXERCISES = {exercise.name: exercise for exercise in load("cache")}

_ONCE = """
import json, random, redis, secrets, time
from time import sleep

FREE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"

def cached_once(r, key, load, ttl, lease):
    lock, token, px = key + ":lock", secrets.token_hex(16), round(lease * 1000)
"""
_CACHE = """
import json, random, redis, secrets, time

class MyCache:
    def __init__(self, r, store, name, ttl):
        self.r, self.store, self.name, self.ms = r, store, name, max(1, round(ttl * 1000))

    def key(self, id):
        return f"{self.name}:{{{id}}}"
"""

RIGHT = {
    "negative: null is nothing, and a miss is None of GET": """
import json

def cached(r, key, load, ttl, negative_ttl):
    text = r.get(key)
    if text is None:
        value = load()
        r.psetex(key, max(1, int((negative_ttl if value is None else ttl) * 1000)), json.dumps(value))
        return value
    return json.loads(text)
""",
    "negative: each value in a list of one": """
import json

def cached(r, key, load, ttl, negative_ttl):
    text = r.get(key)
    if text:
        found = json.loads(text)
        return found[0] if found else None
    value = load()
    pair = ([], negative_ttl) if value is None else ([value], ttl)
    r.set(key, json.dumps(pair[0]), px=round(pair[1] * 1000))
    return value
""",
    "negative: an envelope, compact, with other fields": """
import json, time

def cached(r, key, load, ttl, negative_ttl):
    if (text := r.get(key)) is not None:
        return json.loads(text)["value"]
    value = load()
    seconds = ttl if value is not None else negative_ttl
    text = json.dumps({"at": time.time(), "value": value}, separators=(",", ":"), ensure_ascii=False)
    with r.pipeline() as pipe:
        pipe.set(key, text).pexpire(key, round(seconds * 1000)).execute()
    return value
""",
    "negative: a letter before the JSON": """
import json

def cached(r, key, load, ttl, negative_ttl):
    text = r.get(key)
    if text is not None:
        return json.loads(text[1:]) if text[0] == "+" else None
    value = load()
    if value is None:
        r.set(key, "-", px=round(negative_ttl * 1000))
    else:
        r.set(key, "+" + json.dumps(value), px=round(ttl * 1000))
    return value
""",
    "negative: a hash, by a script": """
import json

STORE = '''
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
'''

def cached(r, key, load, ttl, negative_ttl):
    none, text = r.hmget(key, "none", "value")
    if none is not None:
        return None
    if text is not None:
        return json.loads(text)
    value = load()
    if value is None:
        r.eval(STORE, 1, key, "none", "", round(negative_ttl * 1000))
    else:
        r.eval(STORE, 1, key, "value", json.dumps(value), round(ttl * 1000))
    return value
""",
    "negative: a marker with a name, that is no JSON": """
import json
NOTHING = "<there is no such thing>"

def cached(r, key, load, ttl, negative_ttl):
    with r.pipeline(transaction=False) as pipe:
        [text] = pipe.get(key).execute()
    if text == NOTHING:
        return None
    try:
        return json.loads(text)
    except TypeError:
        pass
    value = load()
    if value is None:
        r.set(key, NOTHING, px=round(negative_ttl * 1000))
        return None
    r.set(key, json.dumps(value), px=round(ttl * 1000))
    return value
""",
    "stampede: redis-py's own lock": _ONCE
    + """
    if (text := r.get(key)) is not None:
        return json.loads(text)
    lock = r.lock(lock, timeout=lease)
    lock.acquire()
    try:
        if (text := r.get(key)) is not None:
            return json.loads(text)
        value = load()
        r.set(key, json.dumps(value), px=round(ttl * 1000))
        return value
    finally:
        try:
            lock.release()
        except redis.exceptions.LockError:
            pass
""",
    "stampede: redis-py's own lock, tried without waiting": _ONCE
    + """
    while (text := r.get(key)) is None:
        lock = r.lock(f"{{{key}}}:loading", timeout=lease, blocking=False)
        if lock.acquire():
            try:
                if (text := r.get(key)) is None:
                    text = json.dumps(load())
                    r.set(key, text, px=round(ttl * 1000))
                return json.loads(text)
            finally:
                try:
                    lock.release()
                except redis.exceptions.LockNotOwnedError:
                    pass
        sleep(0.02)
    return json.loads(text)
""",
    "stampede: value and lock in one script": _ONCE
    + """
    ask = '''
    local value = redis.call('GET', KEYS[1])
    if value then return value end
    return redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
    '''
    fill = '''
    if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return redis.call('DEL', KEYS[2])
    '''
    pause = 0.005
    while isinstance(text := r.eval(ask, 2, key, lock, token, px), int):
        if text == 1:
            try:
                value = load()
                r.eval(fill, 2, key, lock, token, json.dumps(value), round(ttl * 1000))
                return value
            except BaseException:
                r.eval(FREE, 1, lock, token)
                raise
        time.sleep(pause * random.uniform(0.8, 1.2))
        pause = min(2 * pause, 0.2)
    return json.loads(text)
""",
    "stampede: one key, for the value and for who loads it": _ONCE
    + """
    me = "loading " + token
    while True:
        text = r.set(key, me, nx=True, px=px, get=True)
        if text is None:
            break
        if not text.startswith("loading "):
            return json.loads(text)
        time.sleep(0.05)
    try:
        value = load()
    except Exception:
        r.eval(FREE, 1, key, me)
        raise
    fill = '''
    if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
    '''
    r.eval(fill, 1, key, me, json.dumps(value), round(ttl * 1000))
    return value
""",
    "stampede: who waits is woken by a list": _ONCE
    + """
    bell = key + ":bell"
    while (text := r.get(key)) is None:
        if not r.set(lock, token, nx=True, px=px):
            r.blpop(bell, timeout=0.2)
            continue
        try:
            if (text := r.get(key)) is None:
                text = json.dumps(load())
                r.set(key, text, px=round(ttl * 1000))
        finally:
            r.eval(FREE, 1, lock, token)
            r.pipeline().rpush(bell, 1).pexpire(bell, 1000).execute()
    return json.loads(text)
""",
    "stampede: released by WATCH": _ONCE
    + """
    while (text := r.get(key)) is None:
        if r.set(lock, token, nx=True, px=px):
            try:
                if (text := r.get(key)) is None:
                    text = json.dumps(load())
                    r.set(key, text, px=round(ttl * 1000))
                return json.loads(text)
            finally:
                with r.pipeline() as pipe:
                    try:
                        pipe.watch(lock)
                        if pipe.get(lock) == token:
                            pipe.multi()
                            pipe.delete(lock).execute()
                    except redis.WatchError:
                        pass
        time.sleep(0.1)
    return json.loads(text)
""",
    "stampede: registered scripts, and a lease that is a hash": """
import json, time, uuid

def cached_once(r, key, load, ttl, lease):
    take = r.register_script('''
    if redis.call('HSETNX', KEYS[1], 'token', ARGV[1]) == 0 then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
    ''')
    give = r.register_script('''
    return redis.call('HGET', KEYS[1], 'token') == ARGV[1] and redis.call('DEL', KEYS[1]) or 0
    ''')
    token, lock = uuid.uuid4().hex, f"lease:{{{key}}}"
    while True:
        text = r.get(key)
        if text is not None:
            return json.loads(text)
        if take([lock], [token, int(lease * 1000)]):
            break
        time.sleep(0.03)
    try:
        text = r.get(key)
        if text is None:
            value = load()
            text = json.dumps(value)
            r.psetex(key, int(ttl * 1000), text)
        return json.loads(text)
    finally:
        give([lock], [token])
""",
    "update: versions, set by a script only if they are higher": _CACHE
    + """
    PUT = '''
    local there = redis.call('GET', KEYS[1])
    if there and cjson.decode(there).version > tonumber(ARGV[2]) then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
    return 1
    '''

    def put(self, id, row):
        if row is not None:
            self.r.eval(self.PUT, 1, self.key(id), json.dumps(row), row["version"], self.ms)
        return row

    def get(self, id):
        text = self.r.get(self.key(id))
        return self.put(id, self.store.load(id)) if text is None else json.loads(text)

    def update(self, id, **changes):
        return self.put(id, self.store.save(id, **changes))
""",
    "update: versions, in a hash with a field for each column": _CACHE
    + """
    PUT = '''
    local there = redis.call('HGET', KEYS[1], 'version')
    if there and tonumber(there) >= tonumber(ARGV[1]) then return 0 end
    redis.call('HSET', KEYS[1], unpack(ARGV, 3))
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
    '''

    def put(self, id, row):
        if row is not None:
            flat = [word for pair in row.items() for word in (pair[0], json.dumps(pair[1]))]
            self.r.eval(self.PUT, 1, self.key(id), row["version"], self.ms, *flat)
        return row

    def get(self, id):
        found = self.r.hgetall(self.key(id))
        if found:
            return {name: json.loads(text) for name, text in found.items()}
        return self.put(id, self.store.load(id))

    def update(self, id, **changes):
        return self.put(id, self.store.save(id, **changes))
""",
    "update: a lease that waits for nobody, value and lease in one hash": _CACHE
    + """
    MISS = '''
    local row = redis.call('HGET', KEYS[1], 'row')
    if row then return row end
    redis.call('HSET', KEYS[1], 'lease', ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return false
    '''
    FILL = '''
    if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return 0 end
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'row', ARGV[2])
    return redis.call('PEXPIRE', KEYS[1], ARGV[3])
    '''

    def get(self, id):
        token = secrets.token_hex()
        text = self.r.eval(self.MISS, 1, self.key(id), token, self.ms)
        if text is not None:
            return json.loads(text)
        row = self.store.load(id)
        if row is not None:
            self.r.eval(self.FILL, 1, self.key(id), token, json.dumps(row), self.ms)
        return row

    def update(self, id, **changes):
        row = self.store.save(id, **changes)
        self.r.unlink(self.key(id))
        return row
""",
    "update: WATCH a number that each update makes greater": _CACHE
    + """
    def get(self, id):
        key, count = self.key(id), self.key(id) + ":count"
        text = self.r.get(key)
        if text is not None:
            return json.loads(text)
        with self.r.pipeline() as pipe:
            pipe.watch(count)
            row = self.store.load(id)
            if row is None:
                return None
            try:
                pipe.multi()
                pipe.set(key, json.dumps(row), px=self.ms).execute()
            except redis.WatchError:
                pass
            return row

    def update(self, id, **changes):
        row = self.store.save(id, **changes)
        key, count = self.key(id), self.key(id) + ":count"
        with self.r.pipeline() as pipe:
            pipe.incr(count).pexpire(count, 2 * self.ms).delete(key).execute()
        return row
""",
    "update: a number that each update makes greater, and a script": _CACHE
    + """
    FILL = '''
    if (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then return 0 end
    return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    '''

    def get(self, id):
        key, count = self.key(id), self.key(id) + ":count"
        text, number = self.r.mget(key, count)
        if text is not None:
            return json.loads(text)
        row = self.store.load(id)
        if row is not None:
            self.r.eval(self.FILL, 2, key, count, number or "0", json.dumps(row), self.ms)
        return row

    def update(self, id, **changes):
        row = self.store.save(id, **changes)
        key, count = self.key(id), self.key(id) + ":count"
        self.r.pipeline().incr(count).pexpire(count, 10 * self.ms).delete(key).execute()
        return row
""",
    "update: readers and updaters behind one lock, that lasts as long as a call may take": _CACHE
    + """
    def lock(self, id):
        return self.r.lock(self.key(id) + ":lock", timeout=self.ms / 1000)

    def get(self, id):
        text = self.r.get(self.key(id))
        if text is not None:
            return json.loads(text)
        with self.lock(id):
            text = self.r.get(self.key(id))
            if text is not None:
                return json.loads(text)
            row = self.store.load(id)
            if row is not None:
                self.r.set(self.key(id), json.dumps(row), px=self.ms)
            return row

    def update(self, id, **changes):
        with self.lock(id):
            row = self.store.save(id, **changes)
            self.r.delete(self.key(id))
            return row
""",
    "update: the lease goes before and after": _CACHE
    + """
    FILL = '''
    if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
    '''

    def get(self, id):
        key = self.key(id)
        text = self.r.get(key)
        if text is not None:
            return json.loads(text)
        token = secrets.token_urlsafe()
        self.r.set(key + ":lease", token, px=2 * self.ms)
        row = self.store.load(id)
        if row:
            self.r.eval(self.FILL, 2, key, key + ":lease", token, json.dumps(row), self.ms)
        return row

    def update(self, id, **changes):
        self.r.delete(self.key(id), self.key(id) + ":lease")
        row = self.store.save(id, **changes)
        self.r.pipeline().delete(self.key(id)).delete(self.key(id) + ":lease").execute()
        return row
""",
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_answers_are_accepted(name: str) -> None:
    exercise = EXERCISES[name.partition(":")[0]]
    verdict = check.grade(exercise, exercise.build(RIGHT[name]))
    assert verdict == Verdict("correct", message=exercise.title), str(verdict)


def _spoilt(name: str, *changes: tuple[str, str]) -> Any:
    source = EXERCISES[name].reference
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return EXERCISES[name].build(source)


_JSON = "import json"
_LOADED = "value = load()"
_TAKE = "r.set(lock, token, nx=True, px=max(1, round(lease * 1000)))"
_SAVE = "row = self.store.save(id, **changes)"
_DROP = "self.r.delete(*self.keys(id))"
_FILLED = "self.r.eval(self.FILL, 2, key, lease, token, json.dumps(row), self.ms)"

WRONG: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "negative: callers share what the process has decoded": (
        "shared",
        (
            (_JSON, "import json, functools\nDECODE = functools.cache(json.loads)"),
            ("json.loads(text)", "DECODE(text)"),
        ),
    ),
    "negative: what is not there is known in the process, and no longer when it is there": (
        "forget",
        (
            (_JSON, "import json\nNONE = set()"),
            (_LOADED, f"{_LOADED} if key not in NONE else None\n    value is None and NONE.add(key)"),
        ),
    ),
    "negative: right the first time only": (
        "key",
        (
            (_JSON, "import json\nCALLS = []"),
            ("    r.set(key", "    CALLS.append(key)\n    if len(CALLS) == 1: r.set(key"),
        ),
    ),
    "negative: only for the keys of the workbook": (
        "key",
        (("    r.set(key", '    if key.startswith("workbook:"): r.set(key'),),
    ),
    "negative: nothing for the first caller is an exception": (
        "raises",
        (("    return value", "    if value is None: raise LookupError(key)\n    return value"),),
    ),
    "negative: a jitter that is longer than the TTL": (
        "ttl",
        ((_JSON, "import json, random"), ("seconds * 1000", "seconds * random.uniform(1001, 9999)")),
    ),
    "negative: milliseconds are taken for seconds": (
        "ttl",
        (("px=max(1, round(seconds * 1000))", "px=round(seconds)"),),
    ),
    "negative: the value, then its TTL, in a pipeline without MULTI": (
        "crash",
        (
            (
                "r.set(key, text, px=max(1, round(seconds * 1000)))",
                "r.pipeline(transaction=False).set(key, text).pexpire(key, round(seconds * 1000)).execute()",
            ),
        ),
    ),
    "negative: long texts are not kept": (
        "key",
        (("    r.set(key", "    if len(text) < 500: r.set(key"),),
    ),
    "negative: names in small letters": (
        "key",
        (("    text = r.get(", "    key = key.lower()\n    text = r.get("),),
    ),
    "stampede: who waits gives up just after it was looked at": (
        "alone",
        (
            ("    while True:", "    for _ in range(30):"),
            ("time.sleep(random.uniform(0.01, 0.05))", "time.sleep(0.25)"),
        ),
    ),
    "stampede: who waits gives up after a second by the clock": (
        "alone",
        (
            ("import time", "from time import monotonic, sleep"),
            ("    while True:", "    end = monotonic() + 1\n    while monotonic() < end:"),
            ("time.sleep(", "sleep("),
        ),
    ),
    "stampede: the number of the process in the lock's name": (
        "alone",
        (('f"{key}:lock"', 'f"{key}:{getpid()}"'), (_JSON, "import json\nfrom os import getpid")),
    ),
    "stampede: things whose names begin alike wait for each other": (
        "others",
        (('f"{key}:lock"', 'f"lock:{key[:3]}"'),),
    ),
    "stampede: a database that cannot be reached gives None": (
        "error",
        (("        value = load()", "        try: value = load()\n        except OSError: return None"),),
    ),
    "stampede: a load that fails is tried again at once": (
        "error",
        (
            (
                "        value = load()",
                "        try: value = load()\n        except Exception: value = load()",
            ),
        ),
    ),
    "stampede: whoever waits takes the lock after a while": (
        "alone",
        (("    while True:", "    for attempt in range(99):"), (_TAKE, f"{_TAKE} or attempt > 3")),
    ),
    "stampede: the lock is on the process and in Redis, under a name of the process": (
        "deterministic",
        (('f"{key}:lock"', 'f"{key}:lock:{secrets.token_hex(4)}"'),),
    ),
    "stampede: who waits never asks for the lock again, but for the value and the lock's end": (
        "endless",
        (("        time.sleep(", "        while r.get(key) is None: time.sleep("),),
    ),
    "stampede: the lock is taken anew with each question": (
        "lease",
        (("px=max(1, round(lease * 1000))", "px=max(1, round(lease * 100))"),),
    ),
    "stampede: any error of a load is a value": (
        "error",
        (("        value = load()", "        try: value = load()\n        except Exception: value = None"),),
    ),
    "stampede: the lock is released if there is any": (
        "theirs",
        (("if redis.call('GET', KEYS[1]) == ARGV[1] then", "if redis.call('GET', KEYS[1]) then"),),
    ),
    "update: a lock that ends early, and nobody notices": (
        "race",
        (
            (_JSON, "import json, redis, contextlib"),
            (
                "    def get(self, id):",
                """    @contextlib.contextmanager
    def lock(self, id):
        lock = self.r.lock(f"{self.name}:{{{id}}}:lock", timeout=5)
        lock.acquire()
        try:
            yield
        finally:
            with contextlib.suppress(redis.exceptions.LockError):
                lock.release()

    def get(self, id):""",
            ),
            (
                "        row = self.store.load(id)\n        if row is not None:\n            " + _FILLED,
                "        with self.lock(id):\n            row = self.store.load(id)\n"
                "            if row: self.r.set(key, json.dumps(row), px=self.ms)",
            ),
            (
                f"        {_SAVE}\n        {_DROP}",
                f"        with self.lock(id):\n            {_SAVE}\n            {_DROP}",
            ),
        ),
    ),
    "update: WATCH, and an update that sets: two updates in the wrong order": (
        "race",
        (
            (_JSON, "import json, redis"),
            (
                "        row = self.store.load(id)\n        if row is not None:\n            " + _FILLED,
                "        with self.r.pipeline() as pipe:\n            pipe.watch(key)\n"
                "            row = self.store.load(id)\n            pipe.multi()\n            try:\n"
                "                if row: pipe.set(key, json.dumps(row), px=self.ms).execute()\n"
                "            except redis.WatchError: pass",
            ),
            (_DROP, "if row: self.r.set(self.keys(id)[0], json.dumps(row), px=self.ms)"),
        ),
    ),
    "update: what was saved last is known in the process": (
        "race",
        (
            (_JSON, "import json\nLAST = {}"),
            (_FILLED, "if LAST.get(id, 0) <= row['version']: self.r.set(key, json.dumps(row), px=self.ms)"),
            (_DROP, f"LAST[id] = row and row['version'] - 1 or 0\n        {_DROP}"),
        ),
    ),
    "update: the reader looks whether it is old, and then stores": (
        "race",
        ((_FILLED, "if self.store.load(id) == row: self.r.set(key, json.dumps(row), px=self.ms)"),),
    ),
    "update: the lease is given back at the end, whose ever it is": (
        "race",
        ((_FILLED, "if self.r.delete(lease): self.r.set(key, json.dumps(row), px=self.ms)"),),
    ),
    "update: the token is the time": (
        "token",
        (("secrets.token_hex(16)", "str(time.time())"), (_JSON, "import json, time")),
    ),
    "update: the token is one of a thousand": (
        "token",
        (("secrets.token_hex(16)", "str(random.randint(1, 1000))"), (_JSON, "import json, random")),
    ),
    "update: a miss looks at all names": (
        "scan",
        (("        token = secrets", "        self.r.keys(self.name + '*')\n        token = secrets"),),
    ),
    "update: a load that fails is tried again at once": (
        "error",
        (
            (
                "        row = self.store.load(id)",
                "        try: row = self.store.load(id)\n        except Exception: row = self.store.load(id)",
            ),
        ),
    ),
    "update: only the row's own changes are deleted": (
        "stale",
        ((_DROP, "changes.get('stock') and self.r.delete(*self.keys(id))"),),
    ),
    "update: no key of the row has a TTL after an update": (
        "ttl",
        ((_DROP, f"{_DROP}\n        if row: self.r.set(self.keys(id)[0], json.dumps(row))"),),
    ),
    "update: an updated row stays for what was left of its time": (
        "ttl",
        ((_DROP, f"{_DROP} if not row else self.r.set(self.keys(id)[0], json.dumps(row), keepttl=True)"),),
    ),
    "update: each update lengthens what it does not change": (
        "scan",
        ((_DROP, f"{_DROP}\n        for key in self.r.scan_iter(f'{{self.name}}*'): self.r.persist(key)"),),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_wrong_answers_are_refused(name: str) -> None:
    violates, changes = WRONG[name]
    exercise = name.partition(":")[0]
    verdict = check.grade(EXERCISES[exercise], _spoilt(exercise, *changes))
    assert (verdict.state, verdict.property) == ("incorrect", violates), str(verdict)


def test_the_counterexample_tells_statements_and_commands_in_one_order() -> None:
    exercise = EXERCISES["update"]
    wrong = next(wrong for wrong in exercise.wrong if wrong.why.startswith("delete after the write"))
    verdict = check.grade(exercise, exercise.build(wrong.source))
    assert "in the end the store has price 2" in verdict.message
    steps = [line.split()[:3] for line in verdict.counterexample.splitlines()[2:]]
    assert [" ".join(step) for step in steps] == [
        'A GET "rows:{7}"',
        "A SQL SELECT",
        "B SQL UPDATE",
        'B DEL "rows:{7}"',
        'B GET "rows:{7}"',
        "B SQL SELECT",
        'B SET "rows:{7}"',
        'A SET "rows:{7}"',
    ]


@pytest.mark.parametrize("body", ["while True: pass", "while True: r.get(key)", "time.sleep(3600)"])
def test_who_waits_for_ever_is_told(body: str) -> None:
    exercise = dataclasses.replace(EXERCISES["stampede"], seconds=2)
    source = exercise.reference.replace("time.sleep(random.uniform(0.01, 0.05))", body)
    verdict = check.grade(exercise, exercise.build(source))
    assert verdict.property in ("hangs", "pause"), str(verdict)


def test_a_lock_of_the_process_is_named_at_once() -> None:
    exercise = EXERCISES["update"]
    wrong = next(wrong for wrong in exercise.wrong if wrong.violates == "process")
    began = time.monotonic()
    verdict = check.grade(exercise, exercise.build(wrong.source))
    assert "a threading.Lock holds in one process only" in verdict.message
    assert time.monotonic() - began < exercise.seconds / 2


def test_another_way_to_pause_is_told_what_is_seen() -> None:
    waits = ("time.sleep(random.uniform(0.01, 0.05))", "__import__('threading').Event().wait(0.01)")
    verdict = check.grade(EXERCISES["stampede"], _spoilt("stampede", waits))
    assert (verdict.property, "only time.sleep is seen" in verdict.message) == ("pause", True), str(verdict)


def test_threads_of_an_answer_print_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while it is graded nor after it; those of others do."""
    printed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(args.thread))
    timers = "for seconds in (0, 3): threading.Timer(seconds, lambda: 1 / 0).start()"
    source = _spoilt("update", (_JSON, "import json, threading"), (_DROP, f"{_DROP}\n        {timers}"))
    verdict = check.grade(EXERCISES["update"], source)
    assert verdict.state == "correct", str(verdict)
    assert not printed
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert threading.excepthook is not threading.__excepthook__
