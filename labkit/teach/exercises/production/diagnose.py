"""Chapter 10, exercise diagnose: what is wrong with this server? Seven ways to be sick, and health."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from labkit.rig.client import client
from labkit.rig.connection import may_write
from labkit.rig.wire import Tape
from labkit.teach.exercises import Exercise, Wrong
from labkit.teach.exercises.lock.grading import Story, wrong
from labkit.teach.lab import Lab

STUB = '''
def diagnose(r):
    """The names of what is wrong with the server of r: a set."""
    raise NotImplementedError
'''

REFERENCE = '''
def diagnose(r):
    """The names of what is wrong with the server of r: a set."""
    info = r.info("everything")
    databases = r.info("keyspace").values()
    keys, mortal = (sum(held[what] for held in databases) for what in ("keys", "expires"))
    wrong = {
        "full": "errorstat_OOM" in info,
        "thrashing": info["evicted_keys"] > 0 and info["keyspace_hits"] < info["keyspace_misses"],
        "forever": mortal < keys / 2,
        "leak": info["connected_clients"] > 0.8 * info["maxclients"],
        "deaf": any(int(client["omem"]) > 1024**2 for client in r.client_list()),
        "unsaved": info["rdb_last_bgsave_status"] != "ok",
        "sweeping": "cmdstat_keys" in info,
    }
    return {name for name, holds in wrong.items() if holds}
'''


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


_THRASHING = 'info["evicted_keys"] > 0 and info["keyspace_hits"] < info["keyspace_misses"]'
_RETURN = "    return {name for name, holds in wrong.items() if holds}\n"

WRONG = (
    _wrong(
        "alarm",
        "memory that is used up: so it is with every cache that works",
        ('"errorstat_OOM" in info', '0 < 0.9 * info["maxmemory"] < info["used_memory"]'),
    ),
    _wrong(
        "alarm",
        "any error: people mistype commands, too",
        ('"errorstat_OOM" in info', 'info["total_error_replies"] > 0'),
    ),
    _wrong("alarm", "evictions alone: a cache is there to evict", (_THRASHING, 'info["evicted_keys"] > 0')),
    _wrong(
        "alarm",
        "misses alone: a cache that is new misses all",
        (_THRASHING, 'info["keyspace_hits"] < info["keyspace_misses"]'),
    ),
    _wrong(
        "alarm",
        "more than so many clients, whatever is allowed: a false alarm where 10,000 are allowed",
        ('0.8 * info["maxclients"]', "50"),
    ),
    _wrong(
        "leak",
        "more than a thousand clients: where 100 are allowed, 90 are a leak",
        ('0.8 * info["maxclients"]', "1000"),
    ),
    _wrong(
        "alarm",
        "any key without a TTL: some belong there, it is the share that counts",
        ("mortal < keys / 2", "mortal < keys"),
    ),
    _wrong(
        "forever",
        "looks at database 0 alone: keys without a TTL may be in another",
        ('r.info("keyspace").values()', '[r.info("keyspace")["db0"]]'),
    ),
    _wrong(
        "deaf",
        "a blocked client waits for the server; here the server waits for a client",
        ('any(int(client["omem"]) > 1024**2 for client in r.client_list())', 'info["blocked_clients"] > 0'),
    ),
    _wrong(
        "unsaved",
        "asks about the append-only file, which is off",
        ("rdb_last_bgsave_status", "aof_last_write_status"),
    ),
    _wrong(
        "sweeping",
        "waits for an entry in the slow log: on few keys KEYS is fast",
        ('"cmdstat_keys" in info', 'any(b"KEYS" in entry["command"] for entry in r.slowlog_get())'),
    ),
    _wrong(
        "several",
        "one thing is found, and the rest is not looked for",
        (_RETURN, "    return set([name for name, holds in wrong.items() if holds][:1])\n"),
    ),
    _wrong(
        "harm",
        "cures, too: the evidence is gone for everybody else",
        (_RETURN, "    r.config_resetstat()\n" + _RETURN),
    ),
    _wrong(
        "harm",
        "KEYS, to find keys without a TTL: it is what it was to warn of",
        ("mortal < keys / 2", 'sum(r.ttl(key) < 0 for key in r.keys("*")) > keys / 2'),
    ),
    _wrong(
        "harm",
        "writes, to see whether it may: a patient is not changed by looking",
        ('"errorstat_OOM" in info', '"errorstat_OOM" in info or not r.set("probe", 1)'),
    ),
    _wrong(
        "answer",
        "a sentence in place of names: no program can act on that",
        (_RETURN, '    return ", ".join(name for name in wrong if wrong[name])\n'),
    ),
)

NAMES = {
    "full": "a write was refused for lack of memory",
    "thrashing": "keys are evicted, and fewer than half of all lookups hit",
    "forever": "more than half of all keys have no TTL",
    "leak": "more than 80 % of the connections that are allowed are in use",
    "deaf": "for some client more than 1 MB of replies lies waiting: it does not read them",
    "unsaved": "the last save in the background (RDB) failed",
    "sweeping": "somebody has called KEYS",
}

_LOOK = {
    "full": "INFO errorstats",
    "thrashing": "INFO stats: evicted_keys, keyspace_hits, keyspace_misses",
    "forever": "INFO keyspace: every database",
    "leak": "INFO clients: connected_clients, and how many there may be",
    "deaf": "CLIENT LIST: omem",
    "unsaved": "INFO persistence: rdb_last_bgsave_status",
    "sweeping": "INFO commandstats",
}

READS = {"CONFIG": {"GET"}, "CLIENT": {"LIST", "INFO", "ID", "GETNAME"}, "SLOWLOG": {"GET", "LEN"}}
READS |= {"MEMORY": {"STATS", "DOCTOR", "USAGE"}, "LATENCY": {"LATEST", "HISTORY", "DOCTOR", "HISTOGRAM"}}
READS |= {"ACL": {"LIST", "LOG", "WHOAMI", "GETUSER", "USERS", "CAT"}}
HARM = {
    "KEYS",
    "MONITOR",
    "DEBUG",
    "SHUTDOWN",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "REPLICAOF",
    "SLAVEOF",
    "FAILOVER",
}

MB = 1024**2


class Patient:
    """The graders' server as a cache, in health; and what makes it sick. `close()` cures it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.r: Any = lab.client()
        self.sockets: list[socket.socket] = []
        self.rdb = Path(str(self.r.config_get("dir")["dir"])) / "dump.rdb"
        self._before = {
            name: self.r.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy", "maxclients")
        }

    def cure(self) -> None:
        """Nobody is connected, nothing is stored, and nothing is known of what was."""
        for one in self.sockets:
            one.close()
        self.sockets.clear()
        r = self.r
        for name, value in self._before.items():
            r.config_set(name, value)
        r.flushall()
        _await(lambda: not r.info("persistence")["rdb_bgsave_in_progress"])
        if self.rdb.is_dir():
            self.rdb.rmdir()
            r.save()
        self.rdb.unlink(missing_ok=True)  # an answer may have saved, too
        r.config_resetstat()
        r.slowlog_reset()

    close = cure

    def healthy(self) -> None:
        """A cache that is in use: full, for it evicts; most lookups hit, a third of its keys has no TTL."""
        r = self.r
        r.config_set("maxmemory-policy", "allkeys-lfu")
        r.config_set("maxmemory", r.info("memory")["used_memory"] + 2 * MB)
        r.set("hot", 1, ex=3600)
        for _ in range(10):
            r.mget(["hot"] * 500 + ["cold"] * 50)
        with r.pipeline(transaction=False) as pipe:
            for n in range(3000):
                pipe.set(f"page:{n}", "x" * 1000, ex=3600 if n % 3 else None)
            pipe.execute()
        with contextlib.suppress(Exception):
            r.execute_command("GTE", "page:1")

    def new(self) -> None:
        """A cache that has just been started: it misses, and there is room for all."""
        self.r.mget([f"page:{n}" for n in range(500)])
        self.r.mset({"one": 1, "two": 2})
        self.r.expire("one", 3600)
        self.connect(60)

    def full(self) -> bool:
        """noeviction, and a write too many."""
        used = self.r.info("memory")["used_memory"]
        self.r.config_set("maxmemory-policy", "noeviction")
        self.r.config_set("maxmemory", used // 2)  # far below: meanwhile buffers may be given back
        with contextlib.suppress(Exception):
            self.r.set("one too many", "x" * 1000)
        self.r.config_set("maxmemory", used + MB)
        return "errorstat_OOM" in self.r.info("errorstats")

    def thrashing(self) -> None:
        self.r.mget([f"wanted:{n}" for n in range(20_000)])

    def _database(self, number: int) -> Any:
        return client(f"{self.lab.server.url.removesuffix('/0')}/{number}")

    def forever(self) -> None:
        with self._database(1) as r:
            for first in range(0, 9000, 1000):
                r.mset(dict.fromkeys(range(first, first + 1000), 1))

    def leak(self) -> bool:
        """Room is left for the answer's own connections, and for earlier ones that are about to end."""
        self.r.config_set("maxclients", 256)
        return self.connect(224)

    def connect(self, count: int) -> bool:
        for _ in range(count):
            self.sockets.append(socket.create_connection(("127.0.0.1", self.lab.server.port), timeout=10))
        return _await(lambda: self.r.info("clients")["connected_clients"] > count)

    def deaf(self) -> bool:
        """A client asks for 64 MB and reads nothing of it."""
        self.r.config_set("maxmemory", 0)  # replies that wait are memory, too, and would have keys evicted
        with self._database(2) as r:
            r.rpush("film", *["x" * 1000] * 1000)  # newer servers do not copy large strings for a client
        one = socket.create_connection(("127.0.0.1", self.lab.server.port), timeout=10)
        self.sockets.append(one)
        one.sendall(
            f"AUTH {self.lab.server.password}\r\nSELECT 2\r\n".encode() + b"LRANGE film 0 -1\r\n" * 64
        )
        return _await(lambda: any(int(one["omem"]) > 8 * MB for one in self.r.client_list()))

    def unsaved(self) -> bool:
        """What a save is written to cannot be replaced: there is a folder of that name."""
        self.rdb.mkdir()
        self.r.bgsave()
        return _await(lambda: self.r.info("persistence")["rdb_last_bgsave_status"] != "ok")

    def sweeping(self) -> None:
        self.r.keys("session:4711:*")


def _await(condition: Callable[[], object]) -> bool:
    """Whether it came to be: on a machine that stands still it may not, and then nothing is asked."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(condition())


@contextlib.contextmanager
def _patient(lab: Lab) -> Iterator[Patient]:
    made = Patient(lab)
    try:
        yield made
    finally:
        with contextlib.suppress(Exception):
            made.close()


CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("healthy", ()),
    ("new", ()),
    *(("healthy", (name,)) for name in NAMES),
    ("new", ("sweeping", "full")),
    ("healthy", ("leak", "thrashing", "unsaved")),
    ("healthy", ()),
)
"""How the server is to begin with, and what befalls it."""


def _grade(fn: Any, lab: Lab) -> None:
    with _patient(lab) as patient:
        for state, befallen in CASES:
            patient.cure()
            getattr(patient, state)()
            if False not in [getattr(patient, name)() for name in befallen]:
                _check(fn, lab, state, befallen)


def _check(fn: Any, lab: Lab, state: str, befallen: tuple[str, ...]) -> None:
    story = Story(f"a cache, {'in use' if state == 'healthy' else 'just started'}")
    for name in befallen:
        story.tell(f"{name}: {NAMES[name]}")
    r = lab.client()
    with lab.tap(r) as tape:
        found = fn(r)
    r.close()
    _check_harmless(story, lab, tape)
    look = "what diagnose() returns: a set of names"
    if isinstance(found, str) or not isinstance(found, Collection) or not set(found) <= set(NAMES):
        story.tell(f"diagnose(r) -> {found!r}")
        story.hold(False, "answer", f"a set of some of {', '.join(NAMES)} is asked for", look)
    told = ", ".join(repr(name) for name in NAMES if name in found)
    story.tell(f"diagnose(r) -> {{{told}}}")
    for name in NAMES:
        what = f"a false alarm: {name!r} is not so"
        story.hold(name in befallen or name not in found, "alarm", what, _LOOK[name])
    for name in befallen:
        property = name if len(befallen) == 1 else "several"
        story.hold(name in found, property, f"{name!r} is not found: {NAMES[name]}", _LOOK[name])


def _check_harmless(story: Story, lab: Lab, tape: Tape) -> None:
    for exchange in tape.commands:
        if not exchange.command:
            continue
        name, *rest = (word.upper() for word in " ".join(exchange.command[:2]).split())
        if name in READS:
            harmless = not rest or rest[0] in READS[name]
        else:
            harmless = name not in HARM and not may_write(lab.r, name)
        if not harmless:
            story.tell("diagnose(r) sends " + " ".join(exchange.command)[:70])
        what = f"{name} is no mere look: it changes the server, or makes others wait"
        story.hold(harmless, "harm", what, "commands that only read, and no more than they must")


def _list() -> str:
    return "\n".join(f'- `"{name}"`: {what}.' for name, what in NAMES.items())


EXERCISE = Exercise(
    stem="production",
    name="diagnose",
    title="What is wrong with this server?",
    statement=f"""
You are called to a server that you do not know; it is a cache. Write `diagnose(r)`, which finds what is wrong
with it. It returns a set of names, and an empty one for a healthy server:

{_list()}

All of it since the server's statistics began. Several may be wrong at once; a false alarm is as bad as a
miss. You may look, and no more: no command that writes, changes a setting or a statistic, or goes through all
keys at once.
""".strip(),
    answer="diagnose",
    stub=STUB.strip(),
    hints=(
        'r.info("everything") is a dict of all that INFO tells, commandstats and errorstats among it. Print '
        "that of your own server, and look for each of the names.",
        "A full memory is no illness where keys may be evicted; evictions are none where lookups hit; misses "
        "are none where nothing was evicted. How many of a thing is too many depends on what is allowed.",
        "INFO does not say which client does not read its replies. CLIENT LIST does: omem.",
        "errorstat_OOM; evicted_keys, keyspace_hits, keyspace_misses; keys and expires of db0, db1, …; "
        "connected_clients, maxclients; rdb_last_bgsave_status; cmdstat_keys.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=40,
)
