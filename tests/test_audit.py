"""The audit: servers that are misconfigured in each way, each of them found, alone; and a clean bill."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import random
import re
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from hypothesis import given
from hypothesis import strategies as st
from servers import BINARIES, _binary, until

from labkit.__main__ import main
from labkit.rig import connection
from labkit.rig.audit import NAMES, RIGHTS, SEVERITIES, Audit, Finding, Limits, asking, audit
from labkit.rig.audit.replies import plain
from labkit.rig.audit.report import Node, Sampled, Unseen, share
from labkit.rig.audit.sampling import BATCH, most_scans, pattern, shapes, wilson
from labkit.rig.client import client, cluster_client
from labkit.rig.server import Cluster, Server, _free_port
from labkit.rig.tls import has_tls
from labkit.rig.wire import tap

WELL: dict[str, Any] = {
    "appendonly": True,
    "appendfsync": "everysec",
    "save": "",
    "maxmemory": "200mb",
    "maxmemory_policy": "volatile-ttl",
    "maxmemory_clients": "5%",
    "protected_mode": True,
    "enable_debug_command": False,
    "slowlog_log_slower_than": 5_000_000,  # a test machine stalls by itself
    "repl_diskless_sync_delay": 0,
}
"""A server with which nothing is wrong, but for its users, whom `Well` makes."""

FIXED = {"enable_debug_command"}
"""What cannot be changed at run time."""


class Well:
    """A well configured server: an administrator, no default user, sixty sessions with a TTL."""

    def __init__(self, binary: str | None = None, **other: Any) -> None:
        self.server = Server(binary=binary, **{**WELL, **other})

    def __enter__(self) -> Well:
        self.server.start()
        with self.server.client() as r:
            r.execute_command("ACL", "SETUSER", "admin", "on", ">secret", "~*", "&*", "+@all")
        self.r = self.client()
        self.kept = contextlib.ExitStack()
        self.r.execute_command("ACL", "SETUSER", "default", "off")
        return self

    def __exit__(self, *_: object) -> None:
        self.kept.close()
        self.r.close()
        self.server.stop()

    def client(self, user: str = "admin", password: str = "secret", **options: Any) -> redis.Redis:
        return client(f"redis://{user}:{password}@127.0.0.1:{self.server.port}/0", **options)

    def user(self, name: str, *rules: str) -> redis.Redis:
        """A client of a new user with these rules alone."""
        self.r.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *rules)
        return self.client(name)

    def reset(self) -> None:
        """As it was at the start."""
        self.kept.close()
        until(lambda: len(self.r.client_list()) == 1)
        for line in self.r.execute_command("ACL", "LIST"):
            if line.split()[1] not in ("default", "admin"):
                self.r.execute_command("ACL", "DELUSER", line.split()[1])
        self.r.execute_command("ACL", "SETUSER", "default", "reset", ">unguessable")
        settings = {name.replace("_", "-"): value for name, value in WELL.items() if name not in FIXED}
        settings |= {"maxclients": 10_000, "client-output-buffer-limit": BUFFERS}
        for name, value in settings.items():
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
            self.r.config_set(name, text)
        if self.r.config_get("bind")["bind"] != "127.0.0.1":
            self.bind("127.0.0.1")
        self.r.flushall()
        for number in range(60):
            self.r.set(f"session:{number}", "x", ex=10_000)
        self.r.config_resetstat()
        self.r.slowlog_reset()

    def bind(self, addresses: str) -> None:
        """Not while a child of the server, just forked, still holds the old socket."""
        until(lambda: self.r.info("persistence")["aof_rewrite_in_progress"] == 0)
        self.r.config_set("bind", addresses)

    @property
    def folder(self) -> Path:
        return Path(str(self.r.config_get("dir")["dir"]))

    def lua(self, script: str) -> Any:
        return self.r.eval(script, 0)


BUFFERS = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"


@pytest.fixture(scope="module", params=BINARIES)
def each(request: pytest.FixtureRequest) -> Iterator[Well]:
    with Well(_binary(BINARIES[request.param])) as well:
        yield well


@pytest.fixture
def well(each: Well) -> Well:
    each.reset()
    return each


@pytest.fixture(scope="module")
def one() -> Iterator[Well]:
    with Well() as well:
        yield well


def alone(found: Audit, name: str, severity: str, evidence: str) -> Finding:
    """The one finding, which is this."""
    assert [(one.name, one.severity) for one in found.findings] == [(name, severity)], str(found)
    (finding,) = found.findings
    assert re.search(evidence, finding.evidence), finding.evidence
    assert finding.fix
    return finding


def clean(found: Audit) -> None:
    assert found.findings == () and found.unseen == () and found.exit_code == 0, str(found)


def test_a_well_configured_server_gets_a_clean_bill(well: Well) -> None:
    found = audit(well.r)
    clean(found)
    assert found.nodes[0].role == "primary" and found.nodes[0].version.startswith(("Redis", "Valkey"))
    assert [(one.db, one.keys, one.of, one.complete) for one in found.sampled] == [(0, 60, 60, True)]
    assert repr(found) == "Audit(nothing found)"
    assert "nothing found" in found._repr_html_() and "<table" not in found._repr_html_()


def test_one_with_an_empty_keyspace_too(well: Well) -> None:
    well.r.flushall()
    well.r.config_resetstat()
    found = audit(well.r)
    clean(found)
    assert str(found.sampled[0]) == "0 keys of 0 in database 0"


# What may be wrong with a running server

Wrong = Callable[[Well], object]
CASES: list[Any] = []


def case(name: str, severity: str, evidence: str, **limits: Any) -> Callable[[Wrong], Wrong]:
    """A way to go wrong, to be done to a well configured server."""

    def add(wrong: Wrong) -> Wrong:
        CASES.append(pytest.param(name, severity, evidence, Limits(**limits), wrong, id=wrong.__name__))
        return wrong

    return add


@case("no maxmemory", "warning", r"maxmemory is 0, no limit; [\d.]+ MB of the machine's [\d.]+ GB")
def no_limit(well: Well) -> None:
    well.r.config_set("maxmemory", 0)


@case("no maxmemory", "critical", "maxmemory is 0, no limit", memory_share=1e-9)
def no_limit_and_little_left(well: Well) -> None:
    well.r.config_set("maxmemory", 0)


@case("no maxmemory", "warning", "maxmemory is 102,400.0 GB, more than the machine has")
def a_limit_that_is_none(well: Well) -> None:
    well.r.config_set("maxmemory", f"{100 << 10}gb")


@case("memory nearly full", "warning", r"of maxmemory [\d.]+ MB are in use \(9\d %\), and noeviction")
def nearly_full(well: Well) -> None:
    well.r.config_set("maxmemory-policy", "noeviction")
    well.r.config_set("maxmemory", int(well.r.info("memory")["used_memory"] * 1.05))


@case("memory nearly full", "critical", r"2 commands were refused with OOM since the start \(or")
def full(well: Well) -> None:
    well.r.config_set("maxmemory-policy", "noeviction")
    well.r.config_set("maxmemory", 1000)
    for _ in range(2):
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            well.r.set("session:new", "x")
    well.r.config_set("maxmemory", "200mb")


@case(
    "policy against use", "warning", "volatile-ttl, which evicts only keys with a TTL, and 60 of 1,010 keys"
)
def few_may_go(well: Well) -> None:
    well.lua("for i = 1, 950 do redis.call('SET', 'a' .. (i % 50) .. ':' .. i, 'x') end")


@case("policy against use", "notice", "noeviction, yet 260 of 260 keys have a TTL, as in a cache")
def a_cache_that_refuses(well: Well) -> None:
    well.lua("for i = 1, 200 do redis.call('SET', 'cache:' .. i, 'x', 'EX', 1000) end")
    well.r.config_set("maxmemory-policy", "noeviction")


@case(
    "policy against use", "warning", "allkeys-lru, which may delete any key .*1 stream among 61 sampled keys"
)
def a_stream_that_may_go(well: Well) -> None:
    well.r.config_set("maxmemory-policy", "allkeys-lru")
    well.r.xadd("orders", {"id": 1})


@case("policy against use", "warning", "BLPOP was called 1 time")
def a_queue_that_may_go(well: Well) -> None:
    well.r.config_set("maxmemory-policy", "allkeys-lfu")
    well.r.rpush("jobs", "one")
    assert well.r.blpop(["jobs"])


@case("policy against use", "warning", r"keys called lock:\*\.")
def locks_that_may_go(well: Well) -> None:
    well.r.config_set("maxmemory-policy", "allkeys-random")
    well.lua("for i = 1, 20 do redis.call('SET', 'lock:' .. i, 'x', 'PX', 100000) end")


def _evict(well: Well) -> None:
    well.r.config_set("maxmemory-policy", "allkeys-lru")
    well.r.config_set("maxmemory", int(well.r.info("memory")["used_memory"]) + 200_000)
    for number in range(1000):
        well.r.set(f"session:{number}", "x" * 500, ex=1000)
    well.r.config_set("maxmemory", "200mb")


@case("evictions", "notice", r"[\d,]+ keys were evicted .* by allkeys-lru\.")
def a_cache_that_evicts(well: Well) -> None:
    _evict(well)


@case("evictions", "warning", r"by allkeys-lru; 0 % of 1,000 lookups hit")
def a_cache_that_evicts_too_early(well: Well) -> None:
    _evict(well)
    well.r.mget([f"gone:{number}" for number in range(1000)])
    well.r.set("session:1", "x", ex=1000)


@case("no persistence", "warning", "loses everything, now 60 keys, 0 of them without a TTL")
def nothing_on_disk(well: Well) -> None:
    well.r.config_set("appendonly", "no")


@case("no persistence", "critical", "loses everything, now 61 keys, 1 of them without a TTL")
def nothing_on_disk_of_what_should_stay(well: Well) -> None:
    well.r.config_set("appendonly", "no")
    well.r.set("account", "x")


@case("snapshots only", "notice", 'save is "3600 1 60 10000" .* up to 3,600 s of it')
def only_snapshots(well: Well) -> None:
    well.r.config_set("save", "3600 1 60 10000")
    well.r.config_set("appendonly", "no")


@case("snapshots only", "notice", r"last snapshot, up to 900 s of it\.$")
def only_snapshots_and_the_safer_rule_is_the_quicker(well: Well) -> None:
    well.r.config_set("save", "900 1 3600 100")
    well.r.config_set("appendonly", "no")


@case("snapshots only", "notice", "last snapshot, however long ago that was: few changes start none")
def only_snapshots_of_many_changes(well: Well) -> None:
    well.r.config_set("save", "60 10000")
    well.r.config_set("appendonly", "no")


@case("appendfsync no", "warning", "appendfsync is no")
def the_system_decides(well: Well) -> None:
    well.r.config_set("appendfsync", "no")


@case("appendfsync always", "notice", "appendfsync is always")
def every_write_waits(well: Well) -> None:
    well.r.config_set("appendfsync", "always")


@case("no password", "warning", "1 user is on and without a password: default; every program on this machine")
def anybody_is_somebody(well: Well) -> None:
    well.r.execute_command("ACL", "SETUSER", "default", "on", "nopass", "~*", "&*", "+@all")


@case("no password", "warning", "1 user is on and without a password: guest")
def anybody_is_a_guest(well: Well) -> None:
    well.r.execute_command("ACL", "SETUSER", "guest", "on", "nopass", "~public:*", "+get")


@case("default user unrestricted", "notice", "The default user is on and may send every command")
def one_password_for_everything(well: Well) -> None:
    well.r.execute_command("ACL", "SETUSER", "default", "on", ">secret", "~*", "&*", "+@all")


@case("dangerous commands allowed", "warning", r": app \(KEYS, FLUSHALL, FLUSHDB\)\.")
def an_application_that_may_flush(well: Well) -> None:
    well.user("app", "~app:*", "+@read", "+@write").close()


@case("protected mode off", "notice", "the default user cannot come in without a password, for now")
def unprotected(well: Well) -> None:
    well.r.config_set("protected-mode", "no")


@case("keys without TTL", "warning", r"20 of 80 keys session:\* have no TTL\. Some keys of a prefix")
def a_ttl_that_is_forgotten(well: Well) -> None:
    well.lua("for i = 100, 119 do redis.call('SET', 'session:' .. i, 'x') end")


@case("keys without TTL", "notice", r"30 of 30 keys user:\*:profile have no TTL\. Without a TTL")
def no_ttl_at_all(well: Well) -> None:
    well.lua("for i = 1, 30 do redis.call('HSET', 'user:' .. i .. ':profile', 'name', 'x') end")


@case("big keys", "notice", r"1 key of 61 sampled .*: a hash cart:\* of 10,001 elements \(\d")
def a_large_hash(well: Well) -> None:
    well.lua("for i = 1, 10001 do redis.call('HSET', 'cart:1', i, i) end redis.call('EXPIRE', 'cart:1', 999)")


@case("big keys", "warning", r"a string report \(1\d\.\d MB\)")
def a_large_string(well: Well) -> None:
    well.lua(f"redis.call('SET', 'report', string.rep('x', {11 << 20}), 'EX', 1000)")


@case("slow commands", "notice", r"slow log \(over 5000 ms\) has 1 entry: GET 1 time; the slowest")
def a_slow_command(well: Well) -> None:
    _slowly(well)


@case("slow commands", "warning", "GET 1 time", slow_seconds=0)
def a_very_slow_command(well: Well) -> None:
    _slowly(well)


def _slowly(well: Well) -> None:
    well.r.config_set("slowlog-log-slower-than", 0)
    well.r.slowlog_reset()
    well.r.get("session:1")
    well.r.config_set("slowlog-log-slower-than", 5_000_000)


@case("dangerous commands in use", "notice", r"CONFIG RESETSTAT\): KEYS 1 time \([\d.]+ ms each\)\.")
def keys_in_use(well: Well) -> None:
    well.r.execute_command("KEYS", "*")


@case("dangerous commands in use", "warning", "KEYS 1 time", slow_seconds=0)
def keys_that_take_long(well: Well) -> None:
    well.r.execute_command("KEYS", "*")


@case("dangerous commands in use", "warning", "MONITOR 1 time, 1 client in MONITOR now")
def somebody_watches(well: Well) -> None:
    monitor = well.client().monitor()
    well.kept.callback(lambda: monitor.connection.disconnect())
    monitor.__enter__()


@case("deprecated commands", "notice", r"deprecated: SLAVEOF 2 times \(since 5\.0\.0; now REPLICAOF\)\.$")
def of_old(well: Well) -> None:
    for _ in range(2):
        well.r.execute_command("SLAVEOF", "NO", "ONE")


def _connected(well: Well) -> Any:
    connection = well.client().connection_pool.get_connection()
    well.kept.callback(connection.disconnect)
    return connection


@case("blocked clients", "notice", "1 client has been blocked for 0 s .*1 in BLPOP", blocked_seconds=0)
def a_worker_that_waits(well: Well) -> None:
    _connected(well).send_command("BLPOP", "jobs", 0)
    until(lambda: well.r.info("clients")["blocked_clients"] == 1)


@case("clients near the limit", "warning", r"9 of at most 10 clients are connected \(90 %\)")
def almost_too_many(well: Well) -> None:
    for _ in range(8):
        _connected(well)
    well.r.config_set("maxclients", 10)


@case("connections rejected", "warning", "2 connections were rejected .* maxclients 10000 was reached")
def too_many(well: Well) -> None:
    well.r.config_set("maxclients", 1)
    for _ in range(2):
        with pytest.raises(redis.exceptions.ConnectionError):
            well.client().ping()
    well.r.config_set("maxclients", 10_000)


@case("clients evicted", "warning", r"1 client was disconnected .* more than maxmemory-clients, 5%")
def too_large_a_value(well: Well) -> None:
    with pytest.raises(redis.exceptions.ConnectionError):
        well.r.set("report", "x" * (11 << 20), ex=1000)


@case("output buffers unlimited", "notice", "no limit for normal clients, nor does maxmemory-clients")
def clients_without_limit(well: Well) -> None:
    well.r.config_set("maxmemory-clients", 0)


@case("output buffers unlimited", "warning", "no limit for normal and pubsub clients")
def subscribers_without_limit(well: Well) -> None:
    well.r.config_set("maxmemory-clients", 0)
    well.r.config_set("client-output-buffer-limit", "pubsub 0 0 0")


@case(
    "large output buffer",
    "warning",
    r"1 client holds 2\.0 MB or more .* of a subscriber",
    output_bytes=2 << 20,
)
def a_subscriber_that_does_not_read(well: Well) -> None:
    connection = _connected(well)
    connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.send_command("SUBSCRIBE", "news")
    until(lambda: well.r.pubsub_numsub("news")[0][1] == 1)

    def held() -> int:
        well.r.publish("news", "x" * 500_000)
        return max(int(one["omem"]) for one in well.r.client_list())

    until(lambda: held() > 3 << 20)


@pytest.mark.parametrize(("name", "severity", "evidence", "limits", "wrong"), CASES)
def test_each_is_found_alone(
    well: Well, name: str, severity: str, evidence: str, limits: Limits, wrong: Wrong
) -> None:
    clean(audit(well.r, limits=limits))
    wrong(well)
    alone(audit(well.r, limits=limits), name, severity, evidence)


def test_deprecated_is_what_the_server_calls_so(one: Well) -> None:
    one.reset()
    for command in ("HMSET thing field value", "GETSET plain 1", "GETSET plain 2", "SUBSTR plain 0 1"):
        one.r.execute_command(*command.split())
    with one.client() as other:
        other.execute_command("QUIT")  # as client libraries do by themselves
    (old,) = audit(one.r).found("deprecated")
    assert "GETSET 2 times (since 6.2.0; now SET with the GET argument), HMSET 1 time (since" in old.evidence
    assert re.findall(r"[A-Z]+(?= \d+ time)", old.evidence) == ["GETSET", "HMSET", "SUBSTR"]
    assert "for GETSET use SET with the GET argument" in old.fix


# What is wrong from the start, or with more than one server


@pytest.fixture(params=BINARIES)
def binary(request: pytest.FixtureRequest) -> str:
    return _binary(BINARIES[request.param])


def test_debug_commands(binary: str) -> None:
    with Well(binary, enable_debug_command=True, enable_module_command=True) as well:
        evidence = "enable-debug-command and enable-module-command are yes"
        alone(audit(well.r), "debug commands enabled", "warning", evidence)
    with Well(binary, enable_debug_command="local") as well:
        clean(audit(well.r))


def test_a_snapshot_that_fails(binary: str) -> None:
    with Well(binary) as well:
        (well.folder / "dump.rdb").mkdir()  # the snapshot cannot take its place
        well.r.bgsave()
        until(lambda: well.r.info("persistence")["rdb_last_bgsave_status"] == "err")
        well.r.set("session:1", "x", ex=1000)
        finding = alone(audit(well.r), "snapshot failed", "critical", r"failed; \d change")
        assert "MISCONF" in finding.evidence


def test_an_append_only_file_that_is_not_rewritten(binary: str) -> None:
    with Well(binary) as well:
        folder = well.folder / "appendonlydir"
        for number in range(1, 9):
            name = folder / f"appendonly.aof.{number}.base.rdb"
            if not name.exists():
                name.mkdir()
        well.r.bgrewriteaof()
        until(lambda: well.r.info("persistence")["aof_last_bgrewrite_status"] == "err")
        alone(audit(well.r), "append-only file failed", "warning", "at rewriting the .*: it grows on")


def test_an_append_only_file_that_is_not_written(binary: str, tmp_path: Path) -> None:
    limited = tmp_path / "redis-server"
    limited.write_text(
        f"#!/bin/sh\ncase $1 in --version) exec {binary} $1;; esac\n"
        f"trap '' XFSZ\nulimit -f 64\nexec {binary} \"$@\"\n"  # no file of more than 32 or 64 KB
    )
    limited.chmod(0o755)
    with Well(str(limited)) as well:
        with pytest.raises(redis.exceptions.ResponseError, match="MISCONF"):
            for number in range(1000):
                well.r.set(f"session:{number}", "x" * 1000, ex=1000)
        until(lambda: well.r.info("persistence")["aof_last_write_status"] == "err")
        found = audit(well.r)
        alone(found, "append-only file failed", "critical", "at writing to the .*; writes are refused")
        assert found.exit_code == 2


def test_a_script_without_end(binary: str) -> None:
    with Well(binary, busy_reply_threshold=100) as well, well.client() as other:
        loop = other.connection_pool.get_connection()
        loop.send_command("EVAL", "while true do end", 0)
        found = audit(well.r)
        well.r.script_kill()
        loop.disconnect()
    alone(found, "busy with a script", "critical", "everybody is answered BUSY")
    assert {one.why[:5] for one in found.unseen} == {"BUSY "}


def test_fragmentation() -> None:
    with Well() as well:
        if not well.r.info("memory")["mem_allocator"].startswith("jemalloc"):
            pytest.skip("this server's allocator does not tell")
        fill = "for i = 1, 60000 do redis.call('SET', 'session:' .. i, string.rep('x', 500), 'EX', 9999) end"
        well.lua(fill)
        limits = Limits(fragmentation_bytes=8 << 20)
        clean(audit(well.r, limits=limits))
        well.lua("for i = 1, 60000 do if i % 4 > 0 then redis.call('DEL', 'session:' .. i) end end")
        until(lambda: well.r.info("memory")["allocator_frag_ratio"] > 1.6)
        alone(
            audit(well.r, limits=limits),
            "fragmentation",
            "warning",
            r"^[\d.]+ MB of data hold [\d.]+ MB of memory \([1-9]\.\d times as much\): [\d.]+ MB are lost",
        )
        clean(audit(well.r))  # so little is not worth a word


@pytest.fixture
def pair(binary: str) -> Iterator[tuple[Well, Well]]:
    """A primary and its replica, in sync."""
    with Well(binary) as primary:
        source = f"127.0.0.1 {primary.server.port}"
        with Well(binary, replicaof=source, masteruser="admin", masterauth="secret") as replica:
            until(lambda: replica.r.info("replication")["master_link_status"] == "up")
            until(lambda: "state=online" in str(primary.r.info("replication")["slave0"]).replace("': '", "="))
            yield primary, replica


def test_replication(pair: tuple[Well, Well]) -> None:
    """One server pair through what can befall it, as either side tells it."""
    primary, replica = pair
    for well in pair:
        clean(audit(well.r))
    assert audit(replica.r).nodes[0].role == "replica"

    replica.r.config_set("replica-read-only", "no")
    alone(audit(replica.r), "writable replica", "warning", "replica-read-only is no")
    replica.r.config_set("replica-read-only", "yes")

    replica.server.freeze()
    primary.r.set("report", "x" * 1_500_000, ex=1000)
    primary.r.unlink("report")
    behind = audit(primary.r, limits=Limits(lag_bytes=1 << 20))
    alone(behind, "replication lag", "warning", r"^Replica 1 of 1 is 1\.\d MB behind and was last heard")
    clean(audit(primary.r))
    until(lambda: int(primary.r.info("replication")["slave0"]["lag"]) >= 1)
    alone(
        audit(primary.r, limits=Limits(lag_seconds=1)), "replication lag", "warning", "last heard [1-9] s ago"
    )
    replica.server.thaw()

    def offset(well: Well) -> int:
        return int(well.r.info("replication")["master_repl_offset"])

    until(lambda: offset(replica) == offset(primary))  # what it had not read yet would be a sign of life
    primary.server.freeze()
    until(lambda: replica.r.info("replication")["master_last_io_seconds_ago"] >= 1)
    silent = audit(replica.r, limits=Limits(silent_seconds=1))
    alone(silent, "replication lag", "warning", "^The primary was last heard [1-9] s ago")
    primary.server.kill()
    until(lambda: replica.r.info("replication")["master_link_status"] == "down")
    alone(audit(replica.r), "replication link down", "critical", "had no link to its primary")


def test_a_replica_without_the_data_yet(binary: str) -> None:
    with Well(binary, repl_diskless_sync_delay=60, repl_diskless_sync=True) as primary:
        source = f"127.0.0.1 {primary.server.port}"
        with Well(binary, replicaof=source, masteruser="admin", masterauth="secret"):
            until(lambda: "slave0" in primary.r.info("replication"))
            alone(audit(primary.r), "replication lag", "warning", "Replica 1 of 1 is in state wait_bgsave")


def test_a_replica_may_do_without_files(binary: str) -> None:
    with Well(binary) as primary:
        source = f"127.0.0.1 {primary.server.port}"
        other = {"replicaof": source, "masteruser": "admin", "masterauth": "secret", "appendonly": False}
        with Well(binary, **other) as replica:
            until(lambda: replica.r.info("replication")["master_link_status"] == "up")
            alone(audit(replica.r), "no persistence", "notice", "its data come back from the primary")


def test_a_cluster_that_serves_nothing(binary: str) -> None:
    with Well(binary, cluster_enabled=True) as well:
        alone(audit(well.r), "cluster down", "critical", "cluster_state is fail; 0 of 16,384 slots")


def test_each_primary_of_a_cluster_is_looked_at() -> None:
    settings = {name: value for name, value in WELL.items() if name != "repl_diskless_sync_delay"}
    with Cluster(primaries=3, replicas=0, node_timeout=0.5, **settings) as cluster, cluster.client() as r:
        for number in range(300):
            r.set(f"session:{number}", "x", ex=1000)
        with cluster["B"].client() as b:
            b.config_set("appendfsync", "no")
        found = audit(r)
        default, fsync = "default user unrestricted", "appendfsync no"
        assert {(one.name, one.node) for one in found.findings} == {
            (default, "primary 1, primary 2, primary 3"),
            (fsync, "primary 2"),
        }
        assert sum(one.keys for one in found.sampled) == 300 and found.unseen == ()
        assert str(found).startswith("A cluster of 3 primaries: 1 warning, 1 notice.")
        assert not re.search("|".join(str(node.port) for node in cluster.nodes), found.to_json())
        _check_auditor_of_a_cluster(cluster)
        cluster.kill("C")
        (lost,) = audit(r).found("unreachable")
        assert (lost.node, lost.severity) == ("primary 3", "critical")
        until(lambda: "cluster down" in audit(r).names)


def _check_auditor_of_a_cluster(cluster: Cluster) -> None:
    """Its client asks for COMMAND, besides."""
    for node in cluster.nodes:
        with node.client() as r:
            r.execute_command("ACL", "SETUSER", "auditor", "on", ">secret", *RIGHTS.split(), "+command")
    port = cluster.nodes[0].port
    with cluster_client(f"redis+cluster://auditor:secret@127.0.0.1:{port}") as auditor:
        found = audit(auditor)
        assert found.unseen == () and "default user unrestricted" in found.names


# Networks


def _own_address() -> str:
    """This machine's address on a network, which nothing is sent to; skips where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address on a network")
        return str(probe.getsockname()[0])


def test_bound_to_one_address_without_tls(well: Well) -> None:
    address = _own_address()
    well.bind(f"127.0.0.1 {address}")
    alone(audit(well.r), "no TLS", "warning", "from other machines on a port without TLS: who listens")
    with client(f"redis://admin:secret@{address}:{well.server.port}/0") as r:
        evidence = "1 of 2 clients come from other machines in the clear"
        alone(audit(r), "no TLS", "warning", evidence)
    well.user("blind", *RIGHTS.split(), "-config|get").close()
    with client(f"redis://blind:secret@{address}:{well.server.port}/0") as r:
        alone(audit(r), "no TLS", "warning", "^This very client comes from another machine in the clear")


def test_bound_to_the_world(well: Well) -> None:
    """Nobody can do anything with it meanwhile: the default user is off."""
    well.bind("* -::*")
    found = audit(well.r)
    assert found.names == {"bound to the world", "no TLS"} and found.exit_code == 1
    (world,) = found.found("world")
    assert 'bind is "* -::*"' in world.evidence and "a password is all" in world.evidence


def test_how_bad_it_is_depends_on_who_gets_in(well: Well) -> None:
    """A default user without a password, that may read keys called nothing."""
    well.r.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", "~nothing", "+get")
    well.bind("* -::*")
    found = audit(well.r)
    assert [(one.severity, one.name) for one in found.findings] == [
        ("warning", "no password"),
        ("notice", "bound to the world"),
    ]
    well.r.config_set("protected-mode", "no")
    found = audit(well.r)
    assert [(one.severity, one.name) for one in found.findings] == [
        ("critical", "no password"),
        ("critical", "protected mode off"),
        ("critical", "bound to the world"),
        ("warning", "no TLS"),
    ]


def test_a_default_user_that_may_do_nothing_is_no_finding(well: Well) -> None:
    well.r.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", "+ping", "+hello")
    clean(audit(well.r))


def test_protected_mode_asks_whether_the_default_user_has_a_password_be_it_off(well: Well) -> None:
    well.bind("* -::*")
    well.r.execute_command("ACL", "SETUSER", "default", "reset", "off", "nopass")
    alone(audit(well.r), "bound to the world", "notice", "behind protected mode alone")


def test_who_came_in_without_a_password_tells_where_the_users_are_hidden(well: Well) -> None:
    """Protected mode on and off; without the right to see the users."""
    rules = [rule for rule in RIGHTS.split() if rule != "+acl|list"]
    well.r.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", *rules)
    well.bind("* -::*")
    with client(f"redis://127.0.0.1:{well.server.port}/0") as r:
        behind = audit(r)
        well.r.config_set("protected-mode", "no")
        before = audit(r)
    assert [(one.severity, one.name) for one in behind.findings] == [
        ("warning", "no password"),
        ("notice", "bound to the world"),
    ]
    assert [(one.severity, one.name) for one in before.findings] == [
        ("critical", "no password"),
        ("critical", "protected mode off"),
        ("critical", "bound to the world"),
        ("warning", "no TLS"),
    ]


def test_a_socket_alone_is_not_bound_to_the_world(binary: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short path, as a socket needs
        path = f"{folder}/socket"
        with Well(binary, unixsocket=path) as well:
            well.r.config_set("protected-mode", "no")
            well.bind("* -::*")
            well.r.config_set("port", 0)
            with client(f"unix://admin:secret@{path}") as r:
                alone(audit(r), "protected mode off", "notice", "for now")
                r.execute_command("ACL", "SETUSER", "default", "on", "nopass", "~*", "+get")
                found = audit(r)
                r.config_set("port", well.server.port)
    assert [(one.severity, one.name) for one in found.findings] == [
        ("warning", "no password"),
        ("warning", "protected mode off"),
    ]


def test_tls_and_nothing_else(tmp_path: Path) -> None:
    binaries = [path for path in BINARIES.values() if path and has_tls(path)]
    if not binaries:
        pytest.skip("no redis-server here was built with TLS")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "pem"
    )
    files = {"tls_cert_file": tmp_path / "pem", "tls_key_file": tmp_path / "pem"}
    port = _free_port()
    options = {"tls_port": port, "tls_auth_clients": False, "tls_ca_cert_file": tmp_path / "ca.pem", **files}
    with Well(binaries[0], **options):
        url = f"rediss://admin:secret@127.0.0.1:{port}/0"
        with client(url, ssl_ca_certs=str(tmp_path / "ca.pem")) as r:
            clean(audit(r))
            r.config_set("port", 0)
            clean(audit(r))
            r.config_set("bind", "0.0.0.0")
            alone(audit(r), "bound to the world", "notice", "every network interface .*, with TLS")


# What it sends, and what it may not see

READS = {
    *("INFO", "CONFIG GET", "ACL LIST", "ACL DRYRUN", "SLOWLOG GET", "CLIENT INFO", "CLIENT LIST"),
    *("COMMAND DOCS", "CLUSTER INFO", "SCAN", "TYPE", "PTTL", "MEMORY USAGE"),
    *("HLEN", "LLEN", "SCARD", "ZCARD", "XLEN"),
}


def _name(command: tuple[str, ...]) -> str:
    two = " ".join(command[:2]).upper()
    return two if two in READS else command[0].upper()


def test_it_only_reads(well: Well) -> None:
    """By what went over the wire, by what the server counted, and by what the server says of the commands."""
    well.lua("for i = 1, 5000 do redis.call('HSET', 'big:h', i, i) redis.call('RPUSH', 'big:l', i) end")
    well.lua("for i = 1, 5000 do redis.call('SADD', 'big:s', 's' .. i) redis.call('ZADD', 'big:z', i, i) end")
    well.lua("for i = 1, 5000 do redis.call('XADD', 'big:x', '*', 'f', i) end")
    well.user("app", "~app:*", "+get").close()
    well.r.config_resetstat()
    well.r.acl_log_reset()
    well.r.save()
    before = well.r.dbsize(), well.r.config_get("*"), well.r.execute_command("ACL", "LIST")
    called = set(well.r.info("commandstats"))
    with tap(well.r) as tape:
        found = audit(well.r)
    names = {_name(exchange.command) for exchange in tape.commands}
    assert names <= READS
    assert {"HLEN", "LLEN", "SCARD", "ZCARD", "XLEN", "MEMORY USAGE"} <= names
    assert all(e.command[3:] == ("SAMPLES", "5") for e in tape.commands if e.command[0] == "MEMORY")
    counted = {
        name.removeprefix("cmdstat_").replace("|", " ").upper() for name in well.r.info("commandstats")
    }
    assert counted - {name.removeprefix("cmdstat_").replace("|", " ").upper() for name in called} <= READS
    assert before == (well.r.dbsize(), well.r.config_get("*"), well.r.execute_command("ACL", "LIST"))
    assert well.r.info("persistence")["rdb_changes_since_last_save"] == 0 and well.r.acl_log() == []
    assert {one.kind: one.elements for one in found.sampled[0].biggest[:5]} == dict.fromkeys(
        ("hash", "list", "set", "zset", "stream"), 5000
    )
    for name in READS:
        (entry,) = well.r.execute_command("COMMAND INFO", name.replace(" ", "|").lower())
        assert not {"write", "may_replicate"} & set(entry[2]), name


def test_two_hundred_thousand_keys_cost_no_more_than_a_thousand(one: Well) -> None:
    one.reset()
    for part in range(4):
        first = part * 50_000
        one.lua(
            f"for i = {first + 1}, {first + 50_000} do redis.call('SET', 'session:' .. i, 1, 'EX', 9999) end"
        )
    one.r.delete("session:0")
    with tap(one.r) as tape:
        found = audit(one.r, keys=1000)
    clean(found)
    (sampled,) = found.sampled
    assert (sampled.keys, sampled.of, sampled.complete) == (1000, 200_000, False)
    assert str(sampled) == "1,000 keys of 200,000 in database 0"
    (group,) = sampled.groups
    assert (group.prefix, group.without_ttl, group.low) == ("session:*", 0, 0) and 0.003 < group.high < 0.004
    scans = sum(exchange.command[0] == "SCAN" for exchange in tape.commands)
    assert 4 <= scans <= 6 and tape.round_trips <= 3 + 3 * scans
    assert len(tape.commands) <= 8 + 20 + scans + 3 * 1000

    with tap(one.r) as tape:
        hurried = audit(one.r, keys=100_000, seconds=1e-6)
    assert sum(exchange.command[0] == "SCAN" for exchange in tape.commands) == 1
    assert BATCH <= hurried.sampled[0].keys < 2 * BATCH
    assert audit(one.r, keys=0).sampled == ()


class _Odd(socketserver.StreamRequestHandler):
    """A server that knows SCAN alone, which finds nothing and never ends, as in a table almost empty."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = [self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:]))]
            scan = b"*2\r\n$1\r\n7\r\n*0\r\n"
            self.wfile.write(scan if words[0] == b"SCAN" else b"-ERR unknown command\r\n")


def test_a_scan_that_finds_nothing_ends() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Odd) as odd:
        threading.Thread(target=odd.serve_forever, args=[0.01]).start()
        with redis.Redis(port=odd.server_address[1], protocol=2) as r, tap(r) as tape:
            found = audit(r)
        odd.shutdown()
    assert sum(exchange.command[0] == "SCAN" for exchange in tape.commands) == most_scans(1000) == 32
    assert tape.round_trips <= 99
    assert found.findings == () and len(found.unseen) == 6
    assert [(one.keys, one.complete) for one in found.sampled] == [(0, False)]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
def test_it_is_the_same_over_any_client(well: Well, protocol: int, decode: bool) -> None:
    well.lua("for i = 1, 30 do redis.call('SET', 'user:' .. i, 'x') end")
    well.r.execute_command("SLAVEOF", "NO", "ONE")
    well.user("app", "~app:*", "+@read").close()
    expected = {"keys without TTL", "deprecated commands", "dangerous commands allowed"}
    with well.client(protocol=protocol, decode_responses=decode) as r:
        callbacks = dict(r.response_callbacks)
        found = audit(r)
        assert found.names == expected and found.unseen == (), str(found)
        assert r.response_callbacks == callbacks and r.get("user:1") == ("x" if decode else b"x")
    with redis.Redis(
        port=well.server.port, username="admin", password="secret", single_connection_client=True
    ) as r:
        assert audit(r).names == expected and r.ping()


def test_a_user_with_these_rights_sees_everything(well: Well) -> None:
    well.lua("for i = 1, 5000 do redis.call('HSET', 'big', i, i) end redis.call('EXPIRE', 'big', 100)")
    with well.user("auditor", *RIGHTS.split()) as r:
        clean(audit(r))
        assert audit(r).sampled[0].biggest[0].elements == 5000
        for command in ("set", "del", "get", "config|set", "flushall", "shutdown", "acl|setuser", "keys"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                r.execute_command(
                    *command.split("|"), *["x"] * (1 if command in ("get", "del", "keys") else 2)
                )


LACKING = {
    "+info": {"memory, persistence, replication, counters: INFO", "the clients: CLIENT LIST"},
    "+config|get": {"settings: CONFIG GET"},
    "+acl|list": {"users and passwords: ACL LIST"},
    "+acl|dryrun": {"what each user may do: ACL DRYRUN"},
    "+slowlog|get": {"slow commands: SLOWLOG GET"},
    "+client|info": {"this connection: CLIENT INFO"},
    "+client|list": {"the clients: CLIENT LIST"},
    "+command|docs": {"which commands are deprecated: COMMAND DOCS"},
    "+scan": {"which keys there are: SCAN"},
    "+type": {"61 sampled keys: TYPE"},
    "+pttl": {"61 sampled keys: PTTL"},
    "+memory|usage": {"61 sampled keys: MEMORY USAGE"},
    "+hlen": {"1 sampled key: HLEN"},
}


def test_what_one_right_less_hides_is_said(well: Well) -> None:
    well.lua("for i = 1, 5000 do redis.call('HSET', 'big', i, i) end redis.call('EXPIRE', 'big', 100)")
    for right, what in LACKING.items():
        with well.user("auditor", *RIGHTS.split(), f"-{right[1:]}") as r:
            found = audit(r)
            assert found.findings == (), f"{right}: {found}"
            assert {(one.what, one.why, one.right) for one in found.unseen} == {
                (one, "no permission", right) for one in what
            }
            assert "no permission; needs " + right in str(found)


def test_keys_that_a_user_may_not_see(well: Well) -> None:
    well.lua("for i = 1, 40 do redis.call('SET', 'user:' .. i, 'x') end")
    rules = [rule for rule in RIGHTS.split() if not rule.startswith("%")]
    with well.user("auditor", *rules, "%R~session:*") as r:
        found = audit(r)
    (hidden,) = found.unseen
    assert hidden.what == "40 sampled keys" and hidden.right == "%R~*"
    (sampled,) = found.sampled
    assert (sampled.keys, sampled.of, sampled.complete) == (60, 100, False)


def test_a_redirection_is_said_without_its_address() -> None:
    """As by a replica of a cluster, asked for keys."""
    moved = redis.exceptions.MovedError("1234 10.0.0.7:7001")
    assert asking.refused(asking.Question(("TYPE",), "keys", "+type"), moved, "") == Unseen(
        "keys", "another node of the cluster serves these keys"
    )


def test_a_user_that_may_do_nothing(well: Well) -> None:
    with well.user("nobody", "+ping") as r:
        found = audit(r)
    assert found.findings == () and {one.right for one in found.unseen} == {
        *("+info", "+config|get", "+acl|list", "+slowlog|get", "+client|info", "+scan")
    }


def test_where_the_clients_are_not_counted_they_are_not_listed(well: Well) -> None:
    """There may be too many."""
    with well.user("auditor", *RIGHTS.split(), "-info") as r, tap(r) as tape:
        audit(r)
    assert ("CLIENT", "LIST") not in [exchange.command[:2] for exchange in tape.commands]


def test_without_info_no_number_is_made_up(well: Well) -> None:
    well.r.config_set("maxmemory", 0)
    well.r.config_set("appendonly", "no")
    with well.user("auditor", *RIGHTS.split(), "-info") as r:
        found = audit(r)
    assert {one.name: one.evidence.partition(": ")[::2] for one in found.findings} == {
        "no maxmemory": (
            "maxmemory is 0, no limit",
            "whatever grows without bound ends with the operating system's killer of processes.",
        ),
        "no persistence": (
            "Neither snapshots (save is empty) nor an append-only file",
            "a restart loses everything.",
        ),
    }


def test_without_a_password_is_seen_without_the_right_to_see_users(well: Well) -> None:
    rules = [rule for rule in RIGHTS.split() if rule != "+acl|list"]
    well.r.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", *rules)
    with client(f"redis://127.0.0.1:{well.server.port}/0") as r:
        found = audit(r)
    alone(found, "no password", "warning", "1 user is on and without a password: default")
    assert [one.right for one in found.unseen] == ["+acl|list"]


def test_a_managed_service_that_has_no_config(binary: str) -> None:
    with Well(binary, rename_command='CONFIG ""') as well:
        well.r.set("session:1", "x", ex=1000)
        found = audit(well.r)
        assert found.findings == (), str(found)
        (unseen,) = found.unseen
        why = "the server has no such command, or under another name"
        assert (unseen.what, unseen.why, unseen.right) == ("settings: CONFIG GET", why, "")


def test_what_would_be_too_much_is_left_out_and_said(well: Well, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CLIENTS", 0)
    monkeypatch.setattr(asking, "USERS", 1)
    well.user("zoe", "~*", "+flushall").close()
    with tap(well.r) as tape:
        found = audit(well.r)
    assert "LIST" not in [
        exchange.command[1] for exchange in tape.commands if exchange.command[0] == "CLIENT"
    ]
    assert {exchange.command[2] for exchange in tape.commands if exchange.command[1] == "DRYRUN"} == {"admin"}
    assert found.findings == () and [one.what for one in found.unseen] == [
        "the clients: CLIENT LIST",
        "what 1 more user may do",
    ]
    assert "nothing found in what could be seen" in str(found)


def test_a_slow_log_that_is_off_is_said(well: Well) -> None:
    well.r.config_set("slowlog-log-slower-than", -1)
    found = audit(well.r)
    assert found.findings == () and found.unseen == (
        Unseen("slow commands", "slowlog-log-slower-than is -1"),
    )


def test_other_databases_are_said(well: Well) -> None:
    with client(f"redis://admin:secret@127.0.0.1:{well.server.port}/3") as r:
        r.set("session:1", "x", ex=1000)
        found = audit(r)
    assert [str(one) for one in found.sampled] == ["1 key of 1 in database 3, all of them"]
    (unseen,) = found.unseen
    assert unseen.what == "the names and sizes of 60 keys in database 0"


def test_misuse_is_refused() -> None:
    for keys, seconds in ((-1, 1), (5, 0)):
        with pytest.raises(ValueError, match="they must be at least 0"):
            audit(redis.Redis(), keys=keys, seconds=seconds)
    with pytest.raises(TypeError, match="synchronous Redis or RedisCluster, not a str"):
        audit("redis://")
    with pytest.raises(TypeError, match="synchronous"):
        audit(redis.asyncio.Redis())
    with pytest.raises(redis.exceptions.ConnectionError):
        audit(client("redis://127.0.0.1:1"))
    with pytest.raises(ValueError, match="names are in NAMES"):
        Finding("warning", "no such thing", "", "")


# Servers as people have them


def test_a_cache(well: Well) -> None:
    """Nothing on disk, no TTL, keys come and go: as it should be."""
    for name, value in {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}.items():
        well.r.config_set(name, value)
    well.lua("for i = 1, 500 do redis.call('SET', 'page:' .. i, 'x') end")
    clean(audit(well.r))


def test_a_server_as_it_comes(binary: str) -> None:
    """No configuration but the port: protected mode lets nobody in from other machines."""
    with Well(binary) as well:
        port = _free_port()
        command = [binary, "--port", str(port), "--dir", str(well.folder), "--appenddirname", "other"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with client(f"redis://127.0.0.1:{port}/0") as r:
                until(lambda: _pings(r))
                found = audit(r)
        finally:
            process.kill()
            process.wait()
    assert [(one.severity, one.name) for one in found.findings] == [
        ("warning", "no password"),
        ("warning", "no maxmemory"),
        ("notice", "bound to the world"),
        ("notice", "snapshots only"),
        ("notice", "output buffers unlimited"),
    ]
    assert found.unseen == ()


def _pings(r: redis.Redis) -> bool:
    try:
        return bool(r.ping())
    except redis.exceptions.ConnectionError:
        return False


# Samples


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (1, 148, 0.0012, 0.0373)],
)
def test_wilson_as_published(part: int, whole: int, low: float, high: float) -> None:
    assert wilson(part, whole) == pytest.approx((low, high), abs=6e-4)


@given(st.integers(1, 2000), st.data())
def test_wilson_holds_the_share_and_mirrors(whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, whole))
    low, high = wilson(part, whole)
    assert 0 <= low <= part / whole <= high <= 1
    assert wilson(whole - part, whole) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("wrong", [(1, 0), (-1, 5), (6, 5)])
def test_wilson_of_no_share(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="there must be at least one"):
        wilson(*wrong)


@pytest.mark.parametrize(("share", "size"), [(0.02, 200), (0.1, 50), (0.5, 20), (0.5, 300), (0.95, 100)])
def test_the_interval_covers_the_truth_as_often_as_it_says(share: float, size: int) -> None:
    """95 % on average over shares; for single ones it swings, hardly below 90 %."""
    dice = random.Random(f"{share} {size}")
    draws = [sum(dice.random() < share for _ in range(size)) for _ in range(2000)]
    covered = sum(low <= share <= high for low, high in (wilson(draw, size) for draw in draws))
    assert 0.91 <= covered / 2000 <= 0.995


def test_the_interval_covers_the_truth_on_a_server(one: Well) -> None:
    """Thirty prefixes whose shares are known: of thirty intervals of 95 %, seven are hardly ever wrong."""
    one.reset()
    script = """
        math.randomseed(7)
        local without = {}
        for p = 1, 30 do
            without[p] = 0
            for i = 1, 500 do
                local key = 'kind' .. p .. ':' .. i
                if math.random() < p / 31 then
                    redis.call('SET', key, 'x') without[p] = without[p] + 1
                else
                    redis.call('SET', key, 'x', 'EX', 9999)
                end
            end
        end
        return without"""
    truth = one.lua(script)
    found = audit(one.r, keys=3000, seconds=60)
    told = r"keys kind\d+:\* have no TTL, so of all of them [\d.]+ % to [\d.]+ %; .* \(95 % confidence\)"
    assert re.search(told, found.found("keys without TTL")[0].evidence)
    groups = {group.prefix: group for group in found.sampled[0].groups if group.prefix.startswith("kind")}
    assert len(groups) == 30 and not found.sampled[0].complete
    for group in groups.values():
        assert group.high - group.low < 0.25
    true = {f"kind{p}:*": n / 500 for p, n in enumerate(truth, 1)}
    covered = sum(group.low <= true[prefix] <= group.high for prefix, group in groups.items())
    assert covered >= 24
    assert list(found.sampled[0].df.columns) == ["prefix", "keys", "without_ttl", "low", "high"]


NAMED = {
    b"user:1:cart": "user:*:cart",
    b"{user:2}:cart": "user:*:cart",
    b"session:3f2a9c81de": "session:*",
    b"session:8f14e45f-ceea-467f-a8d3-1b2f0a7c9d10": "session:*",
    b"v2:page:home": "v2:page:home",
    b"a:b:c:d:e:f": "a:b:c:d:…",
    b"flags": "flags",
    b"2026-05-01": "*",
    b"": "*",
    b":": "*:*",
    b"mail:alice@example.org": "mail:*",
    b"\xff\xfe:\x00": "*:*",
    b"<script>alert(1)</script>:1": "*:*",
    b"x" * 100_000: "*",
}


def test_names_without_their_ids() -> None:
    assert shapes(NAMED) == NAMED


def test_a_pattern_finds_the_name_and_tells_no_id() -> None:
    assert pattern(b"{user:2}:cart", "user:*:cart") == "*user:*:cart"
    assert pattern(b"a:b:c:d:e:f", "a:b:c:d:\N{HORIZONTAL ELLIPSIS}") == "a:b:c:d:*"


@given(st.lists(st.binary(max_size=40) | st.from_regex(rb"[ab{}:]{0,12}", fullmatch=True), max_size=40))
def test_a_pattern_finds_any_name(names: list[bytes]) -> None:
    found = shapes([*names, *NAMED])
    for name, shape in found.items():
        its = pattern(name, shape)
        assert fnmatch.fnmatchcase(name.decode("latin-1"), its)
        assert set(its) <= {*shape, "*"}


def test_how_a_big_key_is_found(one: Well) -> None:
    one.reset()
    name = b"{cart:77}:of:somebody:in:the:past"
    one.r.set(name, "x" * (2 << 20), ex=1000)
    (big,) = audit(one.r).found("big keys")
    told = re.search(r"SCAN with MATCH (\S+) TYPE string, until its cursor is 0, finds it\.$", big.fix)
    assert told and told[1] == "*cart:*:of:somebody:*"
    own = redis.Redis(connection_pool=one.r.connection_pool)
    assert [plain(found) for found in own.scan_iter(match=told[1])] == [name.decode()]


def test_many_rare_words_are_ids_and_few_frequent_ones_are_not() -> None:
    people = [f"cart:{a}{b}" for a in ("an", "ben", "cat", "dan", "eve") for b in ("na", "ny", "lia", "rik")]
    kinds = [f"app:kind{chr(97 + n % 12)}:{n}" for n in range(600)]
    found = shapes(name.encode() for name in people + kinds)
    assert {found[name.encode()] for name in people} == {"cart:*"}
    assert len({found[name.encode()] for name in kinds}) == 12


@given(st.lists(st.binary(max_size=40), max_size=40))
def test_no_shape_has_anything_that_could_do_harm(names: list[bytes]) -> None:
    found = shapes(names)
    assert found.keys() == set(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.:*…-]+", shape) for shape in found.values())


def test_hostile_names_of_keys_and_users(well: Well) -> None:
    for name in NAMED:
        well.r.set(name, "x" * (2 << 20) if name else "x", ex=1000)
    well.r.execute_command("ACL", "SETUSER", "<img/src=x>", "on", "nopass", "~*", "+get")
    found = audit(well.r)
    assert found.names == {"big keys", "no password"} and found.unseen == ()
    html = found._repr_html_()
    assert "<img" not in html and "<script" not in html and "&lt;img/src=x&gt;" in html
    assert json.loads(found.to_json())["sampled"][0]["keys"] == 60 + len(NAMED)
    assert "script" not in found.to_json()
    biggest = json.loads(found.to_json(private=True))["sampled"][0]["biggest"]
    assert "<script>alert(1)</script>:1" in {one["name"] for one in biggest}
    assert len(str(found)) < 4000


# Reports

MADE = Audit(
    (
        Finding("critical", "no persistence", "All is lost.", "Keep it.", "primary 1"),
        Finding("warning", "no maxmemory", "No <limit>.", "Set it."),
        Finding("notice", "evictions", "3 went.", "Look."),
        Finding("notice", "big keys", "One.", "Split it."),
    ),
    (Unseen("settings", "no permission", "+config|get"), Unseen("clients", "too many", "", "primary 1")),
    (Sampled(0, 5, 10, False),),
    (Node("Redis 8.2.3", "primary", "", "10.0.0.1:6379"),),
)


def test_the_report_as_text() -> None:
    assert (
        str(MADE)
        == """\
Redis 8.2.3, primary: 1 critical, 1 warning, 2 notices.

CRITICAL  no persistence (primary 1)
          All is lost.
          Fix: Keep it.

WARNING   no maxmemory
          No <limit>.
          Fix: Set it.

NOTICE    evictions
          3 went.
          Fix: Look.

NOTICE    big keys
          One.
          Fix: Split it.

Not seen: settings (no permission; needs +config|get)
Not seen: primary 1: clients (too many)

Sampled: 5 keys of 10 in database 0."""
    )
    assert repr(MADE) == (
        "Audit(critical: no persistence (primary 1); warning: no maxmemory; notice: evictions, big keys; "
        "2 things unseen)"
    )


def test_the_report_as_values() -> None:
    assert (
        MADE.names == {"no persistence", "no maxmemory", "evictions", "big keys"} and "big keys" in MADE.names
    )
    assert [one.name for one in MADE.found("maxmemory")] == ["no maxmemory"] and MADE.found("TLS") == ()
    with pytest.raises(ValueError, match="no finding is called 'maxmemry'"):
        MADE.found("maxmemry")
    assert list(MADE.df.columns) == ["severity", "name", "node", "evidence", "fix"] and len(MADE.df) == 4
    assert list(Audit((), (), (), ()).df.columns) == list(MADE.df.columns)
    html = MADE._repr_html_()
    assert html.count("<tr>") == 5 and "No &lt;limit&gt;." in html and "10.0.0.1" not in html


def test_the_report_as_json() -> None:
    report = json.loads(MADE.to_json())
    assert list(report) == ["schema", "exit_code", "nodes", "findings", "unseen", "sampled"]
    assert (report["schema"], report["exit_code"]) == (1, 2)
    assert report["nodes"] == [{"version": "Redis 8.2.3", "role": "primary", "node": ""}]
    assert set(report["findings"][0]) == {"severity", "name", "evidence", "fix", "node"}
    assert report["unseen"][0] == {
        "what": "settings",
        "why": "no permission",
        "right": "+config|get",
        "node": "",
    }
    assert set(report["sampled"][0]) == {"db", "keys", "of", "complete", "node", "groups"}
    assert json.loads(MADE.to_json(private=True))["nodes"][0]["address"] == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("severities", "code"),
    [((), 0), (("notice",), 0), (("warning", "notice"), 1), (("critical", "warning"), 2)],
)
def test_exit_codes(severities: tuple[Any, ...], code: int) -> None:
    findings = tuple(Finding(severity, "evictions", "", "") for severity in severities)
    assert Audit(findings, (), (), ()).exit_code == code


def test_the_worst_comes_first(one: Well) -> None:
    one.reset()
    one.r.config_set("appendonly", "no")
    one.r.config_set("maxmemory", 0)
    one.r.set("account", "x")
    one.r.execute_command("ACL", "SETUSER", "default", "on", ">secret", "~*", "&*", "+@all")
    found = audit(one.r)
    order = [SEVERITIES.index(finding.severity) for finding in found.findings]
    assert order == sorted(order) == [0, 1, 2] and found.exit_code == 2


@pytest.mark.parametrize(
    ("part", "told"),
    [
        *((0, "0 %"), (0.0004, "under 0.1 %"), (0.004, "0.4 %"), (0.123, "12 %"), (0.996, "99.6 %")),
        *((0.9996, "over 99.9 %"), (1, "100 %"), (1.0003, "over 100 %"), (1.2, "120.0 %")),
    ],
)
def test_a_share_is_never_0_or_100_percent_unless_it_is(part: float, told: str) -> None:
    assert share(part) == told


def test_every_name_is_tried() -> None:
    """NAMES is all that is ever found, and all of it is found in a test on a real server."""
    source = Path(__file__).read_text().partition("\n# Reports\n")[0]
    assert [name for name in NAMES if f'"{name}"' not in source and name != "node unreachable"] == []


# The command line


def test_the_command_line(one: Well, capsys: pytest.CaptureFixture[str]) -> None:
    one.reset()
    url = f"redis://admin:secret@127.0.0.1:{one.server.port}/0"
    assert main(["audit", url]) == 0
    assert re.fullmatch(
        r"(Redis|Valkey) [\d.]+, primary: nothing found\.\n\nSampled: 60 .*\n", capsys.readouterr().out
    )
    one.r.config_set("maxmemory", 0)
    assert main(["audit", url]) == 1
    said = capsys.readouterr().out
    assert "WARNING   no maxmemory\n" in said and "secret" not in said and str(one.server.port) not in said
    one.r.config_set("appendonly", "no")
    one.r.set("account", "x")
    assert main(["audit", url, "--json"]) == 2
    report = capsys.readouterr().out
    assert json.loads(report)["exit_code"] == 2
    assert "secret" not in report and "127.0.0.1" not in report and str(one.server.port) not in report


def test_the_command_line_of_a_user_without_rights(one: Well, capsys: pytest.CaptureFixture[str]) -> None:
    one.reset()
    one.user("app", "~app:*", "+get").close()
    assert main(["audit", f"redis://app:secret@127.0.0.1:{one.server.port}"]) == 0
    said = capsys.readouterr()
    assert "nothing found in what could be seen" in said.out and "needs +info" in said.out and said.err == ""


def test_the_command_line_takes_what_connect_takes(one: Well) -> None:
    one.reset()
    env = os.environ | {"REDIS_URL": f"redis://admin:secret@127.0.0.1:{one.server.port}/0"}
    command = [sys.executable, "-m", "labkit", "audit"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0 and "nothing found" in done.stdout and done.stderr == ""


def test_where_none_is_named_it_says_which_one_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else somebody takes the findings of a server that was just started for those of their own."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(connection, "_container", lambda options: None)
    assert main(["audit"]) in (0, 1, 2)
    said = capsys.readouterr()
    assert "No address was given: this is a server started just now" in said.err and "primary: " in said.out


@pytest.mark.parametrize(
    "url", ["redis://admin:hidden@127.0.0.1:1/0", "redis:/admin:hidden@/nowhere", "nonsense"]
)
def test_no_server(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", url]) == 3
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "hidden" not in said.err


def test_help_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    assert "0 nothing found or only notices, 1 warnings, 2" in " ".join(capsys.readouterr().out.split())
