"""What another client waits: seen from outside of this process, and checked against the server's own word."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from servers import on_each as on_each
from test_server import alive, eventually

from labkit.rig.server import Server
from labkit.rig.stall import Slowest, Stall, Stalls, Wait, compare, stalls

BUSY = """
local now = redis.call('TIME')
local till = now[1] * 1000000 + now[2] + ARGV[1]
repeat now = redis.call('TIME') until now[1] * 1000000 + now[2] > till"""


def sleep(seconds: float) -> Callable[[Any], object]:
    return lambda r: r.execute_command("DEBUG", "SLEEP", seconds)


def test_a_stall_of_known_length_is_seen(server: Server) -> None:
    stall = stalls(server, sleep(0.2), name="DEBUG SLEEP")
    assert 0.1 < stall.longest < 1.5  # the bystander may have been late to ask, or to be woken
    assert stall.longest > 5 * stall.quiet
    assert stall.share > 0.5
    assert len(stall.stalls) >= 1
    assert stall.slowest is not None and stall.slowest.command == "DEBUG SLEEP 0.2"
    assert stall.slowest.seconds == pytest.approx(0.2, abs=0.15)
    assert stall.during >= 0.2


def test_a_program_that_is_busy_itself_stalls_nobody(server: Server) -> None:
    """The bystander is no thread of the program: it does not wait for this interpreter."""

    def think(r: redis.Redis) -> None:
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:
            pass

    both = compare(server, {"thinks": think, "stops": sleep(0.2)}, rounds=3)
    assert both["thinks"].share < 0.5 < both["stops"].share
    assert both["thinks"].slowest is not None and both["thinks"].slowest.seconds < 0.1
    assert both.ratio("stops", "thinks") > 3


def test_a_refusal_is_no_answer(server: Server) -> None:
    """A stall is as long as the script, whenever others begin to be told BUSY."""
    server.config["busy-reply-threshold"] = 30
    stall = stalls(server, lambda r: r.eval(BUSY, 0, 250_000), name="script")
    assert stall.longest > 0.12
    assert (
        stall.slowest is not None and stall.slowest.command.startswith("EVAL") and stall.slowest.seconds > 0.2
    )
    assert set(stall.df["error"]) == {"", "BUSY"}
    assert len(stall.df) == len(stall.waits)


def test_a_server_that_is_killed_and_started_again_is_watched_on(server: Server) -> None:
    def crash(r: redis.Redis) -> None:
        server.kill()
        time.sleep(0.1)
        server.start()

    stall = stalls(server, crash)
    assert stall.name == "crash"
    assert "no connection" in {wait.error for wait in stall.waits}
    assert stall.longest > 0.1
    assert stall.slowest is None  # the new one's slow log begins elsewhere


def test_a_server_that_is_left_dead_or_frozen_is_told_so(throwaway: Server) -> None:
    frozen = stalls(throwaway, lambda r: throwaway.freeze())
    throwaway.thaw()
    assert frozen.waits[-1].error == "no answer" and frozen.slowest is None
    dead = stalls(throwaway, lambda r: throwaway.kill())
    throwaway.start()
    assert dead.waits[-1].error == "no connection" and dead.slowest is None
    assert "not said" in repr(dead)


def test_settings_are_what_they_were_and_the_bystander_is_gone(
    throwaway: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwaway.config["slowlog-max-len"] = 77
    seen: list[str | None] = []

    def look(r: redis.Redis) -> None:
        seen.append(r.config_get("slowlog-max-len")["slowlog-max-len"])
        raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        stalls(throwaway, look)
    assert seen == ["1000"]
    assert throwaway.config["slowlog-max-len"] == "77"
    assert throwaway.config["slowlog-log-slower-than"] == "10000"
    with throwaway.client() as r:
        assert eventually(lambda: len(r.client_list()) == 1)


def test_setup_runs_before_each_turn_unwatched(throwaway: Server) -> None:
    done: list[str] = []

    def prepare(r: redis.Redis) -> None:
        done.append("prepare")
        r.execute_command("DEBUG", "SLEEP", 0.3)

    works = {name: (lambda r, name=name: done.append(name)) for name in ("a", "b")}
    found = compare(throwaway, works, setup={"b": prepare}, rounds=2)
    assert done == ["a", "prepare", "b", "prepare", "b", "a"]
    assert all(stall.longest < 0.3 for stall in found)
    compare(throwaway, works, setup=prepare)
    assert done[6:] == ["prepare", "a", "prepare", "b"]


def test_misuse(throwaway: Server) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        compare(throwaway, {})
    with pytest.raises(ValueError, match="rounds is 0"):
        compare(throwaway, {"a": print}, rounds=0)
    with pytest.raises(ValueError, match="setup names c; there are a, b"):
        compare(throwaway, {"a": print, "b": print}, setup={"c": print})
    with Server() as gone:
        gone.kill()
        with pytest.raises(redis.ConnectionError):
            stalls(gone, print)


def test_the_figures_are_those_of_the_waits() -> None:
    waits = (
        Wait(-0.02, 0.001),
        Wait(-0.005, 0.045),
        Wait(0.05, 0.002),
        Wait(0.06, 0.001, "BUSY"),
        Wait(0.065, 0.001, "BUSY"),
        Wait(0.07, 0.05),
        Wait(0.13, 0.0001),
    )
    stall = Stall("w", waits, 0.1, Slowest("DEL big", 0.04))
    assert [round(end - begin, 6) for begin, end in stall.spells] == [0.001, 0.045, 0.002, 0.06, 0.0001]
    assert (round(stall.longest, 6), round(stall.median, 6), round(stall.quiet, 6)) == (0.06, 0.045, 0.001)
    assert [round(wait, 6) for wait in stall.stalls] == [0.045, 0.06]
    assert stall.share == pytest.approx((0.04 + 0.04) / 0.1)
    calm = Stall("<c>", (Wait(0.0, 0.002),), 0.05, Slowest("", 0.0))
    both = Stalls(((stall,), (calm,)))
    assert both["w"] is stall and both.ratio("w", "<c>") == pytest.approx(30)
    assert repr(both).splitlines() == [
        "     longest wait  stalls  of the time  work took  slowest command, by the server",
        "w           60 ms       2          80%     100 ms                   DEL big 40 ms",
        "<c>          2 ms       0           0%      50 ms                      under 1 ms",
    ]
    assert "<th>&lt;c&gt;</th><td>2 ms</td>" in both._repr_html_()
    assert repr(stall).startswith("w: took 100 ms · another client waited 60 ms at most")
    assert stall._repr_html_().count("<tr>") == 2
    assert list(both.df["longest_ms"].round(3)) == [60.0, 2.0]
    with pytest.raises(KeyError, match="'x' was not watched; there are w, <c>"):
        both["x"]
    between = Stall("b", (Wait(-0.001, 0.0001), Wait(0.0005, 0.011)), 0.0001)  # no request met the work
    assert (between.longest, between.share) == (0.011, 0)
    nothing = Stall("n", (), 0.001)
    assert (nothing.longest, nothing.median, nothing.quiet, nothing.share) == (0, 0, 0, 0)
    assert nothing.df.empty


def test_of_several_rounds_the_middle_one_is_shown() -> None:
    rounds = tuple(Stall("a", (Wait(0, length),), 1.0) for length in (0.3, 0.1, 0.2))
    assert Stalls((rounds,))["a"].longest == 0.2


KILLED = """
import os
from labkit.rig.server import Server
from labkit.rig.stall import stalls
with Server() as server:
    def work(r):
        clients = [c["name"] or c["addr"] for c in r.client_list()]
        print(server.pid, len(clients), flush=True)
        os.kill(os.getpid(), 9)
    stalls(server, work)
"""


def test_nothing_outlives_a_killed_program() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60)
    pid, clients = map(int, done.stdout.split())
    assert clients == 3  # the work's, the bystander's, and the one that reads the slow log
    assert eventually(lambda: not alive(pid))
