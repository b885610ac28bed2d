"""Chapter 03, exercise update: once an update has returned, nobody reads what was there before."""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import redis

from labkit.rig.race import outside
from labkit.teach.exercises import Exercise, Failure
from labkit.teach.exercises.cache.grading import (
    PROCESS,
    TTL,
    Broken,
    Waiting,
    another_process,
    documents,
    explored,
    is_pickle,
    mortal,
    patient,
    quietly,
    same,
    short_expire,
    texts,
)
from labkit.teach.exercises.lock.grading import COUNTED, Story, check_chance, wrong
from labkit.teach.lab import Lab

STUB = '''
class MyCache:
    """A cache of the rows of `store`, for `ttl` seconds. Its keys begin with `name`.

    store.load(id) gives a row, a dict of int and str, or None if there is none. store.save(id, **changes)
    changes it, commits, and gives the new row, or None if there is none; its "version" is greater by 1 then.
    """

    def __init__(self, r, store, name, ttl):
        raise NotImplementedError

    def get(self, id):
        """The row, from Redis if it is there; None if there is no such row."""
        raise NotImplementedError

    def update(self, id, **changes):
        """Save the changes; the new row, or None if there is no such row."""
        raise NotImplementedError
'''

REFERENCE = '''
import json
import secrets

class MyCache:
    """A cache of the rows of `store`, for `ttl` seconds. Its keys begin with `name`."""

    FILL = """-- fill: not if an update came in between
    if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
    redis.call('DEL', KEYS[2])
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 1
    """

    def __init__(self, r, store, name, ttl):
        self.r, self.store, self.name, self.ms = r, store, name, max(1, round(ttl * 1000))

    def keys(self, id):
        return f"{self.name}:{{{id}}}", f"{self.name}:{{{id}}}:lease"

    def get(self, id):
        """The row, from Redis if it is there; None if there is no such row."""
        key, lease = self.keys(id)
        text = self.r.get(key)
        if text is not None:
            return json.loads(text)
        token = secrets.token_hex(16)
        self.r.set(lease, token, px=self.ms)
        row = self.store.load(id)
        if row is not None:
            self.r.eval(self.FILL, 2, key, lease, token, json.dumps(row), self.ms)
        return row

    def update(self, id, **changes):
        """Save the changes; the new row, or None if there is no such row."""
        row = self.store.save(id, **changes)
        self.r.delete(*self.keys(id))
        return row
'''

VERSIONS = '''
import json

class MyCache:
    PUT = """
    local there = string.match(redis.call('GET', KEYS[1]) or '', '^%d+')
    if there and tonumber(there) >= tonumber(ARGV[2]) then return 0 end
    return redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1], 'PX', ARGV[3])
    """

    def __init__(self, r, store, name, ttl):
        self.r, self.store, self.name, self.ms = r, store, name, max(1, round(ttl * 1000))

    def put(self, id, row):
        if row is not None:
            key, text = f"{self.name}:{id}", json.dumps(row)
            self.r.eval(self.PUT, 1, key, text, row['version'], self.ms)
        return row

    def get(self, id):
        text = self.r.get(f"{self.name}:{id}")
        if text is not None:
            return json.loads(text.partition(' ')[2])
        return self.put(id, self.store.load(id))

    def update(self, id, **changes):
        return self.put(id, self.store.save(id, **changes))
'''
"""Another right way; the wrong ones are made from it."""

_GET = REFERENCE[
    REFERENCE.index("        token = secrets") : REFERENCE.index("        return row\n\n    def update")
]
_PLAIN = """        row = self.store.load(id)
        if row is not None:
            self.r.set(key, json.dumps(row), px=self.ms)
"""
_LEASE = """        token = secrets.token_hex(16)
        self.r.set(lease, token, px=self.ms)
"""
_LOAD = "        row = self.store.load(id)\n"
_FILL = "self.r.eval(self.FILL, 2, key, lease, token, json.dumps(row), self.ms)"
_SAVE = "row = self.store.save(id, **changes)\n"
_DROP = "self.r.delete(*self.keys(id))"
_WRITE = "self.r.set(self.keys(id)[0], json.dumps(row), px=self.ms)"
_NOT_NONE = "if row is not None:\n            "
_WATCH = """        with self.r.pipeline() as pipe:
            pipe.watch(key)
            row = self.store.load(id)
            if row is not None:
                pipe.multi()
                try:
                    pipe.set(key, json.dumps(row), px=self.ms).execute()
                except redis.WatchError:
                    pass
"""
_LOCK = """        lock = self.r.lock(f"{key}:lock", timeout=10)
        with lock:
            row = self.store.load(id)
            if row is not None:
                self.r.set(key, json.dumps(row), px=self.ms)
"""

WRONG = (
    wrong(
        REFERENCE,
        "stale",
        "nothing is invalidated: the old row stays for a whole TTL",
        (f"        {_DROP}\n", ""),
    ),
    wrong(
        REFERENCE,
        "race",
        "delete after the write: a reader that has loaded the old row before stores it after",
        (_GET, _PLAIN),
    ),
    wrong(
        REFERENCE,
        "race",
        "delete before the write: a reader loads the old row in between",
        (_SAVE + f"        {_DROP}", f"{_DROP}\n        {_SAVE}".rstrip()),
    ),
    wrong(
        REFERENCE,
        "race",
        "delete before and after the write: a reader that has loaded the old row stores it later still",
        (_GET, _PLAIN),
        (_SAVE, f"{_DROP}\n        {_SAVE}"),
    ),
    wrong(
        REFERENCE,
        "race",
        "delete, sleep, delete again: the window is narrower, not closed",
        ("import json", "import json\nimport time"),
        (_GET, _PLAIN),
        (_DROP, f"{_DROP}\n        time.sleep(0.1)\n        {_DROP}"),
    ),
    wrong(
        REFERENCE,
        "race",
        "write, then set: a reader with the old row, or an older update, comes later",
        (_GET, _PLAIN),
        (_DROP, f"{_NOT_NONE}{_WRITE}"),
    ),
    wrong(
        REFERENCE,
        "race",
        "write, then set; readers set only what is not there: of two updates the older may come later",
        (_GET, _PLAIN.replace("px=self.ms", "px=self.ms, nx=True")),
        (_DROP, f"{_NOT_NONE}{_WRITE}"),
    ),
    wrong(
        REFERENCE,
        "commit",
        "set before the commit: a save that fails leaves what never was in the database",
        (
            _SAVE + f"        {_DROP}",
            "row = self.store.load(id)\n        if row is None:\n"
            "            return None\n"
            "        row = {**row, **changes, 'version': row['version'] + 1}\n"
            f"        {_WRITE}\n        {_SAVE}".rstrip(),
        ),
    ),
    wrong(
        REFERENCE,
        "race",
        "the value is deleted, the lease is not: a reader with the old row may still store it",
        (_DROP, "self.r.delete(self.keys(id)[0])"),
    ),
    wrong(
        REFERENCE,
        "race",
        "first the value is deleted, then the lease: in between the old row is stored",
        (_DROP, "for key in self.keys(id):\n            self.r.delete(key)"),
    ),
    wrong(
        REFERENCE,
        "race",
        "the lease is taken after the load: an update in between takes nothing away",
        (_LEASE + _LOAD, _LOAD + _LEASE),
    ),
    wrong(
        REFERENCE,
        "race",
        "a lease without a token: any reader's lease allows any reader's row",
        ("secrets.token_hex(16)", "'leased'"),
    ),
    wrong(
        REFERENCE,
        "race",
        "looks at the lease, and then sets the row: two steps, and an update comes in between",
        (
            _FILL,
            "if self.r.get(lease) == token:\n                self.r.set(key, json.dumps(row), px=self.ms)",
        ),
    ),
    wrong(
        REFERENCE,
        "race",
        "WATCH, but deleting what is not there is no change",
        ("import secrets", "import redis"),
        (_GET, _WATCH),
    ),
    wrong(
        REFERENCE,
        "raises",
        "a lock that ends before `ttl` does: who held it for longer gets a LockNotOwnedError on release",
        (_GET, _LOCK),
        (
            _SAVE + f"        {_DROP}",
            f"""with self.r.lock(f"{{self.keys(id)[0]}}:lock", timeout=10):
            {_SAVE}            {_DROP}""",
        ),
        ("import secrets", "import redis"),
    ),
    wrong(
        REFERENCE,
        "race",
        "loads once more after storing: until it has deleted, others get the old row",
        (_GET, _PLAIN + "            if self.store.load(id) != row:\n                self.r.delete(key)\n"),
    ),
    wrong(
        REFERENCE,
        "store",
        "read, then the whole row is written: of two updates one gets lost",
        (
            _SAVE,
            "row = self.store.load(id)\n        if row is None:\n            return None\n"
            "        row = {k: v for k, v in row.items() if k not in ('id', 'version')}\n"
            "        row = self.store.save(id, **{**row, **changes})\n",
        ),
    ),
    wrong(
        VERSIONS,
        "stale",
        "versions as text: '10' counts as less than '9'",
        ("tonumber(there) >= tonumber(ARGV[2])", "there >= ARGV[2]"),
    ),
    wrong(
        VERSIONS,
        "race",
        "looks at the version, and then sets the row: two steps, and a newer one comes in between",
        (
            "self.r.eval(self.PUT, 1, key, text, row['version'], self.ms)",
            "there = self.r.get(key)\n            if not there or json.loads(there.partition(' "
            "')[2])['version'] < row['version']:\n"
            "                self.r.set(key, f\"{row['version']} {text}\", px=self.ms)",
        ),
    ),
    wrong(
        VERSIONS,
        "value",
        'int() of all that looks like a number: the text "007" comes back as 7',
        (
            "json.loads(text.partition(' ')[2])",
            "{k: int(v) if str(v).isdigit() else v for k, v in json.loads(text.partition(' ')[2]).items()}",
        ),
    ),
    wrong(
        REFERENCE,
        "ttl",
        "a row without a TTL: if an updater crashes, the old row stays for ever",
        (", 'PX', ARGV[3]", ""),
    ),
    wrong(
        REFERENCE,
        "crash",
        "a lease without a TTL: a reader that crashes leaves it behind for ever",
        ("token, px=self.ms", "token"),
    ),
    wrong(
        REFERENCE,
        "ttl",
        "whole seconds: 0.3 s become 1 s, and so do 1.9 s",
        ("max(1, round(ttl * 1000))", "max(1, int(ttl)) * 1000"),
    ),
    wrong(
        REFERENCE,
        "crash",
        "SET, then PEXPIRE: a crash in between leaves a lease for ever",
        ("token, px=self.ms)", "token)\n        self.r.pexpire(lease, self.ms)"),
    ),
    wrong(
        REFERENCE,
        "longer",
        "each hit begins the time anew: if an updater crashes, the old row may stay for ever",
        ("text = self.r.get(key)", "text = self.r.getex(key, px=self.ms)"),
    ),
    wrong(
        REFERENCE,
        "scan",
        "KEYS: it stops the server for as long as it looks at every key",
        (
            _DROP,
            'found = self.r.keys(f"{self.name}:*")\n        if found:\n            self.r.delete(*found)',
        ),
    ),
    wrong(
        REFERENCE,
        "scan",
        "KEYS in a script: the server stands still all the same",
        (
            _DROP,
            "self.r.register_script(\"for _, key in ipairs(redis.call('KEYS', ARGV[1])) do \"\n"
            '            "redis.call(\'DEL\', key) end")(args=[f"{self.name}:{{{id}}}*"])',
        ),
    ),
    wrong(
        REFERENCE,
        "token",
        "tokens are counted in the process: another process counts the same",
        ("import secrets", "import itertools"),
        ('    FILL = """', '    COUNT = itertools.count()\n    FILL = """'),
        ("secrets.token_hex(16)", "str(next(self.COUNT))"),
    ),
    wrong(
        REFERENCE,
        "process",
        "a lock of the process: the other processes read and update all the same",
        ("import secrets", "import threading\n\nLOCK = threading.Lock()"),
        (_GET, "        with LOCK:\n" + "".join(f"    {line}\n" for line in _PLAIN.splitlines())),
        (_SAVE + f"        {_DROP}", f"with LOCK:\n            {_SAVE}            {_DROP}"),
    ),
    wrong(
        REFERENCE,
        "error",
        "Redis cannot be reached, and nobody is told that the old row is still there",
        (_DROP, f"try:\n            {_DROP}\n        except Exception:\n            pass"),
    ),
    wrong(
        REFERENCE,
        "error",
        "a database that cannot be reached is a row that is not there",
        (
            _LOAD,
            f"        try:\n    {_LOAD}        except OSError:\n            row = None\n",
        ),
    ),
    wrong(
        REFERENCE,
        "shared",
        "hash() in the key's name: each process has copies of its own, and deletes only those",
        (
            'f"{self.name}:{{{id}}}", f"{self.name}:{{{id}}}:lease"',
            "f\"{self.name}:{hash(f'row {id}')}\", f\"{self.name}:{hash(f'row {id}')}:lease\"",
        ),
    ),
    wrong(
        REFERENCE,
        "scan",
        "FLUSHDB: all keys of everybody are forgotten for one row",
        (_DROP, "self.r.flushdb()"),
    ),
    wrong(
        REFERENCE,
        "others",
        "one lease and one hash for all rows: an update forgets all of them",
        (
            'f"{self.name}:{{{id}}}", f"{self.name}:{{{id}}}:lease"',
            'f"{self.name}:{{all}}", f"{self.name}:lease:{{all}}"',
        ),
        (
            "redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])",
            "redis.call('HSET', KEYS[1], ARGV[4], ARGV[2])\n    redis.call('PEXPIRE', KEYS[1], ARGV[3])",
        ),
        ("json.dumps(row), self.ms", "json.dumps(row), self.ms, id"),
        ("self.r.get(key)", "self.r.hget(key, id)"),
    ),
    wrong(
        REFERENCE,
        "names",
        "the name is left out: two caches mix their rows",
        ('f"{self.name}:{{{id}}}", f"{self.name}:{{{id}}}:lease"', 'f"row:{{{id}}}", f"row:{{{id}}}:lease"'),
    ),
    wrong(
        REFERENCE,
        "names",
        "name and id run together: shop 1's row 1 is shop's row 11",
        (
            'f"{self.name}:{{{id}}}", f"{self.name}:{{{id}}}:lease"',
            'f"{self.name}{id}", f"{self.name}{id}:lease"',
        ),
    ),
    wrong(REFERENCE, "hit", "stores nothing: each read goes to the database", (_FILL, "pass")),
    wrong(
        REFERENCE,
        "shared",
        "a dict in the process: another process's update does not reach it",
        (
            "        text = self.r.get(key)\n",
            "        if id in self.mine:\n            return self.mine[id]\n        text = self.r.get(key)\n",
        ),
        (_FILL, f"{_FILL}\n            self.mine[id] = row"),
        ("        self.r, self.store", "        self.mine = {}\n        self.r, self.store"),
        (_DROP, f"self.mine.pop(id, None)\n        {_DROP}"),
    ),
    wrong(
        REFERENCE,
        "again",
        "for a while after an update nothing is kept: each read of that row goes to the database",
        (
            "        token = secrets",
            "        if self.r.exists(f'{key}:new'):\n"
            "            return self.store.load(id)\n        token = secrets",
        ),
        (_DROP, f"self.r.set(f'{{self.keys(id)[0]}}:new', 1, px=self.ms)\n        {_DROP}"),
    ),
    wrong(
        REFERENCE,
        "trips",
        "EXISTS, then GET: two round trips for a hit, though GET alone says whether it is there",
        ("text = self.r.get(key)", "text = self.r.get(key) if self.r.exists(key) else None"),
    ),
    wrong(
        REFERENCE,
        "answer",
        "update() gives nothing: the caller has to read the row that was just written",
        (f"{_DROP}\n        return row", _DROP),
    ),
    wrong(
        REFERENCE,
        "readable",
        "a pickle, in base64: loading it runs whatever somebody else has written there",
        ("import secrets", "import base64, pickle, secrets"),
        ("json.dumps(row)", "base64.b64encode(pickle.dumps(row)).decode()"),
        ("json.loads(text)", "pickle.loads(base64.b64decode(text))"),
    ),
    wrong(
        REFERENCE,
        "error",
        "a save that fails is passed over in silence",
        (
            _SAVE,
            "try:\n            row = self.store.save(id, **changes)\n"
            "        except Exception:\n            row = None\n",
        ),
    ),
    wrong(
        REFERENCE,
        "missing",
        "takes a row that is not there for an error: the answer to that is None",
        (f"        {_DROP}\n", f"        {_DROP}\n        row['id']\n"),
    ),
)


ROW: dict[str, Any] = {
    "id": 7,
    "name": "lamp-83c1",
    "price": 0,
    "code": "0012",
    "note": "",
    "stock": 5,
    "version": 9,
}
"""Version 10 comes next: a comparison of texts takes it for less than 9."""


class Store:
    """A table in plain Python: each statement is a step of an exploration, and commits by itself."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids or (7,)
        self.failing: Exception | None = None
        self.before_commit: Callable[[], Any] | None = None
        self.in_load: Callable[[], Any] | None = None
        self.reset()

    def reset(self) -> None:
        self.rows = {id: {**ROW, "id": id} for id in self.ids}
        self.loads, self.saves = list[int](), list[dict[str, Any]]()

    def load(self, id: int) -> dict[str, Any] | None:
        def select() -> dict[str, Any] | None:
            self.loads.append(id)
            if self.in_load is not None:
                self.in_load()
            return copy.deepcopy(self.rows.get(id))

        return outside(("SQL", "SELECT", "row", str(id)), select, reads=[f"row {id}"], show=_shown)

    def save(self, id: int, **changes: Any) -> dict[str, Any] | None:
        if unknown := set(changes) - (set(ROW) - {"id", "version"}):
            raise ValueError(f"save() cannot change {', '.join(sorted(unknown))}")

        def update() -> dict[str, Any] | None:
            if self.before_commit is not None:
                self.before_commit()
            if self.failing is not None:
                raise self.failing
            self.saves.append(changes)
            if id not in self.rows:
                return None
            self.rows[id] |= {**changes, "version": self.rows[id]["version"] + 1}
            return copy.deepcopy(self.rows[id])

        said = [f"{name}={value}" for name, value in changes.items()]
        words = ("SQL", "UPDATE", "row", str(id), "SET", *said)
        return outside(words, update, writes=[f"row {id}"], show=_shown)


def _shown(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return row and {name: row[name] for name in ("price", "stock", "version")}


@quietly
def _grade(kind: Any, lab: Lab) -> None:
    _check_hits(kind, lab)
    _check_scans(kind, lab)
    _check_thread(kind, lab)
    _check_update(kind, lab)
    _check_names(kind, lab)
    _check_missing(kind, lab)
    for ttl in (TTL, 1.234, 0.75):
        _check_time(kind, lab, ttl)
    _check_longer(kind, lab)
    _check_commit(kind, lab)
    _check_errors(kind, lab)
    _check_tokens(kind, lab)
    _check_crash(kind, lab)
    _check_reader(kind, lab)
    _check_writers(kind, lab)


def _check_hits(kind: Any, lab: Lab) -> None:
    lab.r.flushdb()
    store, name, story = Store(), lab.key("rows"), Story()
    one = kind(lab.r, store, name, TTL)
    row = store.rows[7]
    got = story.call("get(7)", one.get, 7)
    once = len(store.loads)
    story.hold(same(got, row), "value", "get() gives the row as the store has it", "what a miss returns")
    with lab.tap() as tape:
        got = story.call("get(7)", one.get, 7)
    story.hold(
        same(got, row), "value", "a hit gives another row than the store has", "how it is written and read"
    )
    what = "the row is loaded again, and it was loaded before"
    story.hold(len(store.loads) == once, "hit", what, "what is stored, and under which key")
    story.tell(f"round trips: {tape.round_trips}")
    what = "Redis is not asked: what this process remembers may be old by now"
    story.hold(tape.round_trips, "shared", what, "what is remembered in the process")
    story.hold(tape.round_trips == 1, "trips", "a hit is one round trip", "what is asked before the value")
    with another_process(kind):
        other = kind(lab.client(), store, name, TTL)
        got = story.call("another process: get(7)", other.get, 7)
    what, look = "what one process has loaded is not there for another", "what is remembered in the process"
    story.hold(len(store.loads) == once and same(got, row), "shared", what, f"{look}; {PROCESS}")
    _check_readable(lab, story)


def _check_readable(lab: Lab, story: Story) -> None:
    raw = lab.client(decode_responses=False)
    found = {key: texts(raw, key) for key in sorted(raw.scan_iter())}
    all_texts = [text for values in found.values() for text in values]
    for key, values in found.items():
        story.tell(f"{key.decode()}: {' '.join(values)[:80]}")
    what = "a pickle runs whatever code somebody writes into it: never read one from Redis"
    story.hold(not any(map(is_pickle, all_texts)), "readable", what, "json.dumps and json.loads, or a hash")
    hashes = [key for key in found if raw.type(key) == b"hash" and ROW["name"] in " ".join(found[key])]
    plain = any(_mentions(document) for text in all_texts for document in documents(text))
    story.hold(hashes or plain, "readable", "no key has the row as JSON or as a hash", "json.dumps, or HSET")


def _mentions(document: Any) -> bool:
    return isinstance(document, dict | list) and ROW["name"] in str(document)


def _asks_nothing(client: Any) -> bool:
    """It has not asked Redis for a while, and does not wait in a command."""
    pool = client.connection_pool
    return not getattr(pool, "held", 0) and time.monotonic() - max([0.0, *getattr(pool, "asked", [])]) > 0.5


def _check_update(kind: Any, lab: Lab) -> None:
    lab.r.flushdb()
    store, name, story = Store(7, 8), lab.key("rows"), Story()
    one, other = kind(lab.r, store, name, TTL), kind(lab.client(), store, name, TTL)
    for price in (0, 1500, 20, 0):
        for id in (7, 8):
            story.call(f"get({id})", one.get, id)
        before = after = len(store.loads)
        new = story.call(f"update(7, price={price})", partial(one.update, 7, price=price))
        what = "update() saves the changes once, and nothing else"
        story.hold(
            store.saves[-1] == {"price": price} and len(store.saves) == store.rows[7]["version"] - 9,
            "store",
            what,
            "what you give to store.save()",
        )
        what = "update() gives the new row"
        story.hold(same(new, store.rows[7]), "answer", what, "what update() returns")
        for who, cache in (("", one), ("another process: ", other)):
            got = story.call(f"{who}get(7)", cache.get, 7)
            what = "update() has returned, and an older row is read"
            story.hold(same(got, store.rows[7]), "stale", what, "what update() does to what is in Redis")
            after = after if who else len(store.loads)
            what = "after an update the row is kept again as before: here it is loaded once more"
            story.hold(len(store.loads) == after, "again", what, "what update() leaves in Redis")
        story.call("get(8)", one.get, 8)
        what = "an update of one row has thrown away another"
        story.hold(8 not in store.loads[before:], "others", what, "what update() deletes")


def _check_scans(kind: Any, lab: Lab) -> None:
    """A miss, a hit and an update touch the row's own keys; scripts do, too."""
    lab.r.flushdb()
    lab.r.script_flush()
    story, store = Story(), Store()
    with lab.tap() as tape:
        cache = kind(lab.r, store, lab.key("rows"), TTL)
        for said, fn in {
            "get(7)": lambda: cache.get(7),
            "get(7) again": lambda: cache.get(7),
            "update(7, price=3)": lambda: cache.update(7, price=3),
        }.items():
            story.call(said, fn)
    for exchange in tape.commands:
        first, *words = exchange.command
        scripts = words if first.upper() in ("EVAL", "EVAL_RO", "SCRIPT", "SCRIPT LOAD", "FUNCTION") else []
        inside = re.findall(r"call\s*\(\s*['\"](\w+)", " ".join(scripts))
        for command in (first.upper(), *(word.upper() for word in inside)):
            what = f"{command} goes through every key of the server, or empties it"
            held = command not in ("KEYS", "SCAN", "FLUSHDB", "FLUSHALL", "RANDOMKEY", "SWAPDB")
            story.hold(held, "scan", what, "the keys of one row: you know their names")


def _check_thread(kind: Any, lab: Lab) -> None:
    """While one loads, another reads, in a thread: who waits for it has to wait by way of Redis."""
    lab.r.flushdb()
    store, client, stuck = Store(), lab.client(), list[bool]()
    other = threading.Thread(target=lambda: _reading(kind, store)(client), daemon=True)

    def meanwhile() -> None:
        store.in_load = None
        other.start()
        for _ in range(2):
            other.join(1)
            if not (other.is_alive() and _asks_nothing(client)):
                return
        stuck.append(True)

    store.in_load = meanwhile
    kind(lab.r, store, lab.key("rows"), TTL).get(7)
    other.join(5)
    shown = "A: get(7). While its load() runs, B: get(7)\nB waits, and asks Redis nothing"
    what = "callers wait for each other in the process: a threading.Lock holds in one process only"
    if stuck:
        raise Failure("process", what, shown, "what other processes know of it: they share nothing but Redis")


def _check_names(kind: Any, lab: Lab) -> None:
    """Several caches in one Redis, whose names and ids are alike."""
    lab.r.flushdb()
    base, story = lab.key("shop"), Story()
    caches: dict[str, tuple[Any, Store]] = {}
    loads: dict[str, int] = {}
    for name in (base, f"{base}1", f"{base}2"):
        store = Store(1, 11, 2, 12, 112)
        for row in store.rows.values():
            row["name"] = f"row {row['id']} of {name}"
        caches[name] = kind(lab.r, store, name, TTL), store
    for number in range(2):
        for name, (cache, store) in caches.items():
            for id, row in store.rows.items():
                got = story.call(f"the cache {name}: get({id})", cache.get, id)
                del story.lines[:-2]
                what = "this is another cache's row, or another id's"
                story.hold(same(got, row), "names", what, "the names of your keys")
            loads.setdefault(name, len(store.loads))
            what = "a row has got lost: another one took its place"
            story.hold(len(store.loads) == loads[name], "names", what, "the names of your keys")
        if not number:
            cache, _ = caches[f"{base}1"]
            story.call(f"the cache {base}1: update(1, price=5)", partial(cache.update, 1, price=5))
            story.call(f"the cache {base}1: get(1)", cache.get, 1)
            loads[f"{base}1"] = len(caches[f"{base}1"][1].loads)
    for key in lab.r.scan_iter():
        what = "the keys of a cache begin with its name"
        story.tell(f"key: {key}")
        story.hold(key.lstrip("{").startswith(base), "names", what, "the names of your keys")


def _check_missing(kind: Any, lab: Lab) -> None:
    lab.r.flushdb()
    store, story = Store(), Story("there is no row 99")
    cache, look = kind(lab.r, store, lab.key("rows"), TTL), "what you do with a row that is None"
    for said, fn in (
        ("get(99)", lambda: cache.get(99)),
        ("update(99, price=1)", lambda: cache.update(99, price=1)),
    ) * 2:
        try:
            got = story.call(said, fn)
        except Exception as error:
            story.tell(f"{said} raises {type(error).__name__}: {error}")
            got = error
        story.hold(got is None, "missing", "there is no such row: that is None", look)


def _rows_ttl(lab: Lab, name: str) -> dict[str, int]:
    """PTTL of all keys that have the row."""
    raw = lab.client(decode_responses=False)
    keys = [key for key in sorted(raw.scan_iter()) if name in " ".join(texts(raw, key))]
    return {key.decode(): raw.pttl(key) for key in keys}


def _check_time(kind: Any, lab: Lab, ttl: float) -> None:
    """Rows are kept for `ttl` seconds, also after an update; nothing is kept for ever."""
    lab.r.flushdb()
    store, story = Store(), Story(f"ttl {ttl:g} s")
    cache = kind(lab.r, store, lab.key("rows"), ttl)
    for call, fn in (
        ("get(7)", lambda: None),
        ("update(7, price=3); get(7)", lambda: cache.update(7, price=3)),
    ):
        for key in lab.r.scan_iter():
            lab.r.pexpire(key, round(ttl * 500))  # half of the time has passed
        since = time.monotonic()
        fn()
        cache.get(7)
        story.tell(call)
        for key in sorted(lab.r.scan_iter()):
            left = lab.r.pttl(key)
            story.tell(f"PTTL {key} -> {left}")
            story.hold(left != -1, "ttl", "this key is never forgotten", "px= of SET, or PEXPIRE")
        found = _rows_ttl(lab, str(ROW["name"]))
        least = (ttl - (time.monotonic() - since)) * 1000 - 5
        for key, left in found.items():
            what = f"the row should be kept for {ttl:g} s from now"
            held = least <= left <= ttl * 1000 + 1 or (left == -2 and least < 0)
            story.hold(held, "ttl", f"{what}: PTTL {key} is {left}", "the unit, and fractions of a second")


def _check_longer(kind: Any, lab: Lab) -> None:
    lab.r.flushdb()
    store, story = Store(), Story("get(7)")
    cache = kind(lab.r, store, lab.key("rows"), TTL)
    cache.get(7)
    for key in lab.r.scan_iter():
        lab.r.pexpire(key, 5000)
    story.tell("later on, 5 s are left")
    story.call("get(7)", cache.get, 7)
    for key, left in _rows_ttl(lab, str(ROW["name"])).items():
        story.tell(f"PTTL {key} -> {left}")
        what = "a hit lengthens the time: a row that an updater's crash left old would stay for ever"
        story.hold(left <= 5000, "longer", what, "what a hit does to the TTL")


def _check_commit(kind: Any, lab: Lab) -> None:
    """Nobody reads what is not committed; what save() raises is the caller's."""
    lab.r.flushdb()
    store, story, raw = Store(), Story("get(7)"), lab.client(decode_responses=False)
    one, other = (kind(lab.client(), store, "rows", TTL) for _ in range(2))
    one.get(7)
    early: list[str] = []

    def look() -> None:
        for key in raw.scan_iter():
            early.extend(text for text in texts(raw, key) if "new-name" in text)

    store.before_commit, store.failing, raised = look, Broken("no room on the disk"), None
    try:
        story.call('update(7, name="new-name")', partial(one.update, 7, name="new-name"))
    except Exception as error:
        raised = error
        story.tell(f'update(7, name="new-name"): save() raises {type(store.failing).__name__}')
    for text in early:
        story.tell(f"before the commit in Redis: {text[:80]}")
    what = "what is not committed is in Redis: if save() fails, or you crash, it never comes true"
    story.hold(not early, "commit", what, "the order of the two writes")
    what = "what save() raises goes to the caller"
    story.hold(raised is store.failing, "error", what, "your `except`")
    store.before_commit = store.failing = None
    got = story.call("get(7)", other.get, 7)
    story.hold(
        same(got, store.rows[7]),
        "commit",
        "the save failed, and its row is read",
        "the order of the two writes",
    )


def _check_errors(kind: Any, lab: Lab) -> None:
    """What load() raises is the caller's, and so is what Redis raises when a row has been saved."""
    for error in (Broken("the database is down"), ConnectionError("the database is down")):
        lab.r.flushdb()
        store, story, raised = Store(), Story(), None
        store.in_load, cache = partial(_fail, error), kind(lab.r, store, lab.key("rows"), TTL)
        try:
            story.call("get(7)", cache.get, 7)
        except Exception as caught:
            raised = caught
        story.tell(f"get(7): load() raises {type(error).__name__}; it was called {len(store.loads)} times")
        what = "what load() raises goes to the caller, at once"
        story.hold(raised is error and len(store.loads) == 1, "error", what, "your `except`")
        store.in_load = None
        got = story.call("get(7)", cache.get, 7)
        what = "load() failed, and something is remembered as if it had not"
        story.hold(
            same(got, store.rows[7]), "error", what, "what is written before load() has given something"
        )
    _check_no_redis(kind, lab)


def _fail(error: Exception) -> None:
    raise error


def _check_no_redis(kind: Any, lab: Lab) -> None:
    lab.r.flushdb()
    client, story = lab.client(), Story()
    cache = kind(client, Store(), lab.key("rows"), TTL)
    story.call("get(7)", cache.get, 7)
    story.tell("Redis cannot be reached any more")
    error = redis.ConnectionError("Redis cannot be reached")
    with mock.patch.object(client.connection_pool, "get_connection", side_effect=error):
        try:
            story.call("update(7, price=3)", partial(cache.update, 7, price=3))
            raised = False
        except Exception:
            raised = True
    what = "the old row is still in Redis, and update() says nothing of it"
    story.hold(raised, "error", what, "your `except`: the caller has to know that")


def _check_crash(kind: Any, lab: Lab) -> None:
    store = Store()

    def setup(r: Any) -> None:
        store.reset()

    def ada(r: Any) -> None:
        cache = kind(r, store, "rows", TTL)
        cache.get(7)
        cache.update(7, price=2)
        cache.get(7)

    cast = "A: get(7), update(7, price=2), get(7); it may crash"
    look = "what a crash leaves behind after each of your commands"
    explored(lab, [ada], "crash", look, cast, setup=setup, invariant=mortal, faults=["crash"])


LOOK = "what a reader that has loaded the old row knows of the update, when it stores it"
STALE = {"reads": "race", "in the end": "race", "lost": "race"}


def _cases(kind: Any, store: Store, warm: bool) -> Callable[[Any], None]:
    def setup(r: Any) -> None:
        store.reset()
        if warm:
            kind(r, store, "rows", TTL).get(7)

    return setup


def _ends_well(kind: Any, r: Any, store: Store) -> None:
    """Whoever reads when all is done reads what the store has."""
    got, row = kind(r, store, "rows", TTL).get(7), store.rows[7]
    what = (
        f"in the end the store has price {row['price']}, stock {row['stock']} (version "
        f"{row['version']}), and Redis"
    )
    shown = (
        f"price {got['price']}, stock {got['stock']}"
        if isinstance(got, dict) and {"price", "stock"} <= set(got)
        else repr(got)
    )
    assert same(got, row), f"{what} {shown}: for a whole TTL"


def _reading(kind: Any, store: Store) -> Callable[[Any], Any]:
    return patient(kind, lambda r: kind(r, store, "rows", TTL).get(7))


def _updating(kind: Any, store: Store) -> Callable[[Any], Any]:
    def update(r: Any) -> Any:
        cache = kind(r, store, "rows", TTL)
        cache.update(7, price=2)
        return cache.get(7)

    return patient(kind, update)


def _rule(kind: Any, store: Store) -> Callable[[Any, list[Any]], None]:
    def rule(r: Any, results: list[Any]) -> None:
        got = results[1]
        if isinstance(got, Waiting):
            return
        assert same(got, store.rows[7]), "B has updated the row, and then reads the old one"
        if not any(isinstance(one, Waiting) for one in results):
            _ends_well(kind, r, store)

    return rule


def _check_reader(kind: Any, lab: Lab) -> None:
    """One reads, one updates; and keys that do not last for `ttl` may end meanwhile."""
    store = Store()
    for warm in (False, True):
        cast = f"The row is {'' if warm else 'not '}in Redis. A: get(7). B: update(7, price=2), then get(7)"
        setup, rule = _cases(kind, store, warm), _rule(kind, store)
        actors = [_reading(kind, store), _updating(kind, store)]
        explored(lab, actors, STALE, LOOK, cast, setup=setup, invariant=rule, max_switches=4)
    cast += ". Either may take nearly `ttl` seconds"
    setup = _cases(kind, store, False)
    actors.append(lambda r: short_expire(r, TTL * 0.9))
    explored(lab, actors, STALE, LOOK, cast, setup=setup, invariant=rule, max_switches=3)


def _check_writers(kind: Any, lab: Lab) -> None:
    """Two update at once."""
    store = Store()

    def update(**changes: Any) -> Callable[[Any], Any]:
        return patient(kind, lambda r: kind(r, store, "rows", TTL).update(7, **changes))

    def rule(r: Any, results: list[Any]) -> None:
        if any(isinstance(one, Waiting) for one in results):
            return
        row = store.rows[7]
        changed = f"the store has price {row['price']}, stock {row['stock']}"
        assert (row["price"], row["stock"]) == (2, 9), f"one of two updates is lost: {changed}"
        _ends_well(kind, r, store)

    cast = "The row is in Redis. A: update(7, price=2). B: update(7, stock=9)"
    look = "which of two updates comes last, in the store and in Redis"
    actors = [update(price=2), update(stock=9)]
    explored(lab, actors, STALE, look, cast, setup=_cases(kind, store, True), invariant=rule, max_switches=4)


def _check_tokens(kind: Any, lab: Lab) -> None:
    """What tells one reader's lease from another's is nothing that another process might come to."""
    raw, held = lab.client(decode_responses=False), list[str]()
    store = Store()

    def note() -> None:
        store.in_load = None  # a reader may load once more
        held.append(" ".join(text for key in sorted(raw.scan_iter()) for text in texts(raw, key)))

    with lab.tap() as tape:
        for _ in range(30):
            raw.flushdb()
            store.in_load = note
            kind(lab.r, store, "rows", TTL).get(7)
    counted = any(COUNTED.search(" ".join(exchange.command)) for exchange in tape.commands)
    if not counted and len(set(held)) > 1:  # else there is a lock that is nobody's own, or nothing
        check_chance(held, "secrets.token_hex(16)")


EXERCISE = Exercise(
    stem="cache",
    name="update",
    title="An update that leaves nothing stale",
    statement="""Write a cache of the rows of a database: `get` and `update`, for many processes at once.

**Once `update` has returned, no `get` that begins then gives an older row**, whoever reads or updates
meanwhile, and whatever stands still for how long: a call may take nearly `ttl` seconds.

- Rows are kept in Redis as JSON (or as hashes), under keys that begin with `name`, for `ttl` seconds
  (fractions too) after they were loaded or updated. After an update the row is kept again as before.
- A hit is one round trip. `update` touches no other row.
- Nobody reads what is not committed. If an updater crashes after its commit, the old row may be read for
  `ttl` seconds at most.
- What the store or Redis raises in `update` goes to the caller: he has to know that the old row may still be
  there. So does what `load` raises in `get`.
- Every key has a TTL at every moment.""",
    answer="MyCache",
    stub=STUB.strip(),
    hints=(
        "A reader misses and loads the old row. Then it stands still. An update saves, "
        "and deletes the key. Now the "
        "reader goes on, and stores what it has loaded. Who could tell it not to?",
        "Its row is old if an update came after its miss. So at the miss the reader "
        "leaves something in Redis that "
        "each update takes away: a lease, with a token of its own (SET name:7:lease token PX …).",
        "It stores the row only if its lease is still there: GET, compare, SET in one step, so a script. "
        "update() saves first, and then deletes the row and the lease in one DEL.",
        "Or compare versions: a script that sets a row only if what is there has a "
        "lower version; update() sets "
        "the row that save() gave, readers what they have loaded, both by that script.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=20,
)
