"""Acknowledged writes, and a server that is killed: what is there, what was at risk, how it comes back."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import redis
from servers import BINARIES
from test_server import alive, eventually

from labkit.rig import restarts
from labkit.rig.connection import supports
from labkit.rig.durability import Crash, Crashes, Mark, crash_test, crash_tests, fsync_cost, throughput
from labkit.rig.restarts import WAYS, Restart, Restarts, restart_times
from labkit.rig.server import Server

LOG = ("always", "everysec", "no")
FOUND = [binary for binary in BINARIES.values() if binary]


def tells(binary: str) -> bool:
    with Server(binary=binary) as server, server.client() as r:
        return supports(r, "WAITAOF")


@pytest.fixture(scope="module", params=FOUND, ids=[name for name, binary in BINARIES.items() if binary])
def crashes(request: pytest.FixtureRequest) -> tuple[bool, Crashes]:
    return tells(request.param), crash_tests(seconds=0.4, binary=request.param)


def test_a_killed_server_keeps_what_it_acknowledged_whatever_appendfsync(
    crashes: tuple[bool, Crashes],
) -> None:
    """The operating system has it, and that has not crashed."""
    _, found = crashes
    for fsync in LOG:
        (crash,) = found[fsync]
        assert (crash.lost, crash.lost_seconds) == (0, 0)
        assert crash.kept == crash.acknowledged > 20
        assert crash.extra <= 1


def test_a_snapshot_loses_what_came_after_it(crashes: tuple[bool, Crashes]) -> None:
    (crash,) = crashes[1][None]
    assert 0 < crash.lost < crash.acknowledged
    assert crash.extra == 0
    assert 0 < crash.lost_seconds < crash.seconds
    assert (crash.at_risk, crash.at_risk_seconds) == (crash.lost, crash.lost_seconds)


def test_what_is_not_on_disk_is_at_risk_by_the_servers_word(crashes: tuple[bool, Crashes]) -> None:
    told, found = crashes
    (always,), (everysec,), (no,) = (found[fsync] for fsync in LOG)
    if not told:
        assert always.at_risk is everysec.at_risk is no.at_risk is None
        assert "not told" in repr(always)
        return
    assert always.at_risk == 0
    assert always.marks and all(mark.others == 0 for mark in always.marks)
    assert all(mark.after is not None for mark in always.marks[:-1])  # the kill may come in between
    assert no.at_risk is not None and no.at_risk_seconds is not None
    assert no.at_risk > 0.8 * no.acknowledged  # nobody told the disk
    assert no.at_risk_seconds > 0.7 * no.seconds
    assert everysec.at_risk is not None and everysec.at_risk > 0


def test_with_everysec_the_disk_is_a_second_late_at_most_about() -> None:
    newest = max(FOUND, key=tells)
    if not tells(newest):
        pytest.skip("no server here tells what is on disk")
    crash = crash_test("everysec", seconds=6, seed=1, binary=newest)
    assert crash.marks is not None
    on_disk = [mark for mark in crash.marks if mark.after is not None]
    assert len(on_disk) > 5
    assert crash.at_risk is not None and 0 < crash.at_risk < crash.acknowledged
    assert crash.at_risk_seconds is not None and 0.3 < crash.at_risk_seconds < 2.5 < crash.seconds


def test_several_connections_share_one_fsync() -> None:
    """That holds on a RAM disk as well: there more is under way at once."""
    for _ in range(3):
        one, many = (crash_test("always", seconds=0.4, clients=clients) for clients in (1, 50))
        if many.per_second > 2 * one.per_second:
            break
    assert many.per_second > 2 * one.per_second
    assert many.acknowledged > 50 and many.lost == 0
    assert many.extra <= 50
    assert many.at_risk in (0, None)


def test_tests_take_turns_and_the_same_seed_kills_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.rig import durability

    asked: list[tuple[Any, int]] = []

    def noted(fsync: Any, *, seed: int, **_: Any) -> Crash:
        asked.append((fsync, seed))
        return Crash(fsync, 10, 10, 0, 1.0, 0.0, 0.01)

    monkeypatch.setattr(durability, "crash_test", noted)
    found = crash_tests(("always", None), rounds=2, seed=5)
    assert asked == [("always", 5), (None, 5), (None, 6), ("always", 6)]
    assert [crash.fsync for crash in found.tests] == ["always", "always", None, None]
    moments: list[float] = []
    monkeypatch.undo()
    monkeypatch.setattr(durability, "_let_write", lambda server, seconds, snapshot: moments.append(seconds))
    for seed in (1, 1, 2):
        crash_test("no", seed=seed)
    assert moments[0] == moments[1] != moments[2]
    assert all(0.3 <= moment <= 0.6 for moment in moments)


def test_throughput_of_each_policy_on_servers_that_take_turns() -> None:
    found = throughput(("always", "no"), n=5, rounds=3, clients=3)
    assert found.values == ("always", "no")
    assert found["no"].ops == 3 and len(found["no"].samples) == 15
    assert found.ratio("always", "no") > 0.8  # never less work; on a disk a hundred times as long
    assert fsync_cost(n=5) > 0


def test_misuse() -> None:
    with pytest.raises(ValueError, match="fsync is 'sometimes'; it must be"):
        crash_test("sometimes")
    with pytest.raises(ValueError, match="seconds is 0 "):
        crash_test(seconds=0)
    with pytest.raises(ValueError, match="clients 0;"):
        crash_test(clients=0)
    with pytest.raises(ValueError, match="at least one of each"):
        crash_tests(())
    with pytest.raises(ValueError, match=r"ways has \['tape'\]; there are RDB, AOF"):
        restart_times(ways=["tape"])
    wrong: dict[str, Any]
    for wrong in ({"sizes": [0]}, {"sizes": []}, {"ways": []}, {"rounds": 0}, {"writes": 0}):
        with pytest.raises(ValueError, match="each must be at least 1"):
            restart_times(**wrong)


def test_figures_and_tables() -> None:
    marks = (Mark(0.1, 0.3, 40), Mark(0.5, None, 30))
    crash = Crash("everysec", 1000, 1000, 1, 2.0, 0.0, 0.05, marks)
    assert (crash.lost, crash.per_second, crash.at_risk, crash.at_risk_seconds) == (0, 500, 40, 1.5)
    snap = Crash(None, 3000, 1000, 0, 2.0, 1.25, 0.04)
    both = Crashes((crash, snap))
    assert both.ratio(None, "everysec") == 3 and both.lost(None) == 2000 and both.per_second(None) == 1500
    assert [re.split("  +", line.strip()) for line in repr(both).splitlines()] == [
        ["acknowledged", "writes/s", "lost by SIGKILL", "at risk if the machine crashes", "back after"],
        ["appendfsync everysec", "1,000", "500/s", "0", "40 (1.5 s)", "50 ms"],
        ["RDB only", "3,000", "1,500/s", "2,000 (1.25 s)", "2,000 (1.25 s)", "40 ms"],
    ]
    assert repr(crash).startswith(
        "appendfsync everysec: 1,000 writes acknowledged, 500/s; lost by SIGKILL: 0;"
    )
    assert both._repr_html_().count("<tr>") == 3 and crash._repr_html_().count("<tr>") == 2
    assert list(both.df["lost"]) == [0, 2000] and len(crash.df) == 1
    with pytest.raises(KeyError, match="'no' was not tested; there are 'everysec', None"):
        both["no"]


@pytest.mark.parametrize("binary", FOUND)
def test_restarts_from_each_kind_of_file(binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_REDIS_SERVER", binary)
    found = restart_times((10, 3_000), rounds=1, writes=2)
    assert found.ways == tuple(WAYS) and found.sizes == (10, 3_000)
    rdb, rewritten, bare, commands = (found[way, 3_000].size for way in WAYS)
    assert 300_000 < rdb < 1.05 * rewritten
    assert 1.1 * rewritten < bare  # commands are longer than data,
    assert 1.9 * bare < commands  # and a log has every write that there was
    assert len(found.df) == 8
    assert set(found.series["RDB"][0]) == {10, 3_000}


def test_a_log_whose_write_is_put_off_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    left, told, info = [7, 7], list[int](), redis.Redis.info

    def putting_off(self: Any, section: str) -> Any:
        found = {**info(self, section)}
        found["aof_buffer_length"] = left.pop() if left else found["aof_buffer_length"]
        told.append(found["aof_buffer_length"])
        return found

    monkeypatch.setattr(redis.Redis, "info", putting_off)
    restart_times((10,), ways=["AOF, commands"], rounds=1)
    assert told[:2] == [7, 7] and told[-1] == 0


def test_a_server_that_comes_back_without_its_keys_is_no_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfilled(server: Server, *_: Any) -> int:
        server.kill()
        return 1

    monkeypatch.setattr(restarts, "_prepare", unfilled)
    with pytest.raises(RuntimeError, match="RDB: 0 of 10 keys came back"):
        restart_times((10,), ways=["RDB"], rounds=1)


def test_restarts_are_compared_round_by_round() -> None:
    found = Restarts((Restart("a", 1000, 7, (1.0, 2.0, 6.0)), Restart("b", 1000, 8, (1.0, 1.0, 2.0))))
    assert found.ratio("a", "b") == 2
    assert repr(found).splitlines() == [
        "   1,000 keys  bytes on disk",
        "a         2 s              7",
        "b         1 s              8",
    ]
    assert "<th>b</th>" in found._repr_html_()
    with pytest.raises(KeyError, match="was not measured; there are a, b"):
        found["c", 1]


KILLED = """
import os, threading
from labkit.rig import durability, server
start = server.Server.start
def started(self, *a, **k):
    start(self, *a, **k)
    print(self.pid, flush=True)
    return self
server.Server.start = started
threading.Timer(0.8, lambda: os.kill(os.getpid(), 9)).start()
durability.crash_test("no", seconds=60)
"""


def test_nothing_outlives_a_killed_program() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids and eventually(lambda: not any(map(alive, pids)))
