"""A process of one's own: started, watched, frozen, killed, and never left behind."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_server import alive, eventually

from labkit.rig.processes import ProcessFailed, spawn


def add(a: int, b: int) -> int:
    return a + b


def count_for_ever(start: int) -> Iterator[None]:
    import time

    print("prepared")
    yield
    for n in range(start, 1 << 60):
        print(n)
        time.sleep(0.001)


def polite(marker: str) -> Any:
    import signal
    import threading

    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    yield
    while not asked.wait(0.01):
        pass
    print("tidied up")
    return marker


def deaf() -> Iterator[None]:
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    time.sleep(1000)


def fail_early() -> Iterator[None]:
    print("on the way")
    raise RuntimeError("not today")
    yield


def fail_late() -> Iterator[None]:
    yield
    raise RuntimeError("not today")


def much() -> list[int]:
    return list(range(200_000))


def never_ready() -> Iterator[None]:
    import time

    time.sleep(1000)
    yield


def test_it_runs_and_has_a_result() -> None:
    with spawn(add, 1, 2) as worker:
        assert worker.result() == 3
        assert worker.result() == 3
        assert eventually(lambda: not worker.alive, 20)
    assert worker.result() == 3
    assert repr(worker) == "Worker(add, ended)"
    with spawn(much) as worker:
        assert worker.result() == list(range(200_000))


def test_it_is_ready_when_spawn_returns_and_works_on_until_it_is_killed() -> None:
    with spawn(count_for_ever, 7) as worker:
        assert worker.said[:1] == ["prepared"]
        assert eventually(lambda: "9" in worker.said, 20)
        assert worker.alive and alive(worker.pid)
        assert repr(worker) == "Worker(count_for_ever, alive)"
        worker.kill()
        assert not worker.alive and not alive(worker.pid)
        with pytest.raises(ProcessFailed, match="the worker count_for_ever ended with exit code -9"):
            worker.result()
        worker.kill()
        assert worker.stop()
    assert worker.said[:4] == ["prepared", "7", "8", "9"]


def test_it_ends_with_the_block() -> None:
    with pytest.raises(ZeroDivisionError), spawn(count_for_ever, 0) as worker:
        _ = 1 / 0
    assert not alive(worker.pid)
    with pytest.raises(ProcessFailed, match="before it gave a result"):
        worker.result()


def test_frozen_it_stands_still_and_thawed_it_goes_on() -> None:
    with spawn(count_for_ever, 0) as worker:
        worker.freeze()
        before = worker.said
        assert worker.alive
        assert not eventually(lambda: worker.said != before, 0.1)
        worker.thaw()
        assert eventually(lambda: worker.said != before, 20)
        worker.freeze()
        assert worker.stop()  # a frozen one hears it all the same


def test_asked_to_stop_it_may_finish_first() -> None:
    with spawn(polite, "done") as worker:
        assert worker.stop()
        assert worker.result() == "done"
        assert worker.said == ["tidied up"]
    with spawn(count_for_ever, 0) as worker:
        assert worker.stop()
        with pytest.raises(ProcessFailed, match=f"exit code -{signal.SIGTERM.value} "):
            worker.result()
    with spawn(deaf) as worker:
        assert not worker.stop(0.05)
        assert not worker.alive


def test_what_went_wrong_is_told() -> None:
    with pytest.raises(ProcessFailed, match=r"(?s)the worker fail_early raised:.*RuntimeError: not today"):
        spawn(fail_early)
    with (
        spawn(fail_late) as worker,
        pytest.raises(ProcessFailed, match=r"(?s)the worker fail_late raised:.*RuntimeError: not today"),
    ):
        worker.result()
    with pytest.raises(ProcessFailed, match=r"never_ready has no answer after 0\.5 s"):
        spawn(never_ready, seconds=0.5)
    with (
        spawn(count_for_ever, 0) as worker,
        pytest.raises(ProcessFailed, match=r"has no answer after 0\.05 s"),
    ):
        worker.result(0.05)
    with pytest.raises(ValueError, match="write it with def"):
        spawn(lambda: 1)


def test_nobody_refers_to_it_any_more() -> None:
    worker = spawn(count_for_ever, 0)
    pid = worker.pid
    assert alive(pid)
    del worker
    gc.collect()
    assert eventually(lambda: not alive(pid), 20)


def test_a_line_that_it_prints_is_waited_for() -> None:
    with spawn(count_for_ever, 7) as worker:
        worker.await_said("9")
        assert worker.said[:4] == ["prepared", "7", "8", "9"]
        with pytest.raises(ProcessFailed, match=r"has not said 'never' after 0\.1 s"):
            worker.await_said("never", seconds=0.1)


def test_who_ends_without_the_line_is_told() -> None:
    with spawn(add, 2, 3) as worker, pytest.raises(ProcessFailed, match="has ended, and never said 'six'"):
        worker.await_said("six")


ORPHAN = """
import sys, time
from labkit.rig.processes import spawn
def wait():
    import time
    time.sleep(1000)
worker = spawn(wait)
worker.freeze() if sys.argv[2] == "frozen" else None
with open(sys.argv[1], "w") as f:
    f.write(f"{worker.pid}\\n")
time.sleep(1000)
"""


@pytest.mark.parametrize("state", ["awake", "frozen"])
def test_it_dies_with_a_killed_parent(state: str, tmp_path: Path) -> None:
    script, pid = tmp_path / "orphan.py", tmp_path / "pid"
    script.write_text(ORPHAN)
    parent = subprocess.Popen([sys.executable, str(script), str(pid), state])
    assert eventually(lambda: pid.exists() and pid.read_text().endswith("\n"), 20)
    parent.kill()
    parent.wait()
    assert eventually(lambda: not alive(int(pid.read_text())), 20)
