"""The eviction lab: its cache under traffic, its controls, its thread, and its server that is thrown away."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from servers import until

from labkit.rig.server import ServerFailed
from labkit.show import eviction, panel
from labkit.show.eviction import STEP, EvictionLab, Trial

PNG = b"\x89PNG"


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[EvictionLab]:
    monkeypatch.setattr(eviction, "BEAT", 0.1)
    monkeypatch.setattr(eviction, "STEPS", 4)
    before, made = set(threading.enumerate()), EvictionLab()
    yield made
    made.close()
    assert set(threading.enumerate()) <= before
    assert not made.trial._server.running


def history(lab: EvictionLab) -> tuple[tuple[int, int, int], ...]:
    assert lab.trial.now is not None
    return lab.trial.now.history


def test_a_trial_is_a_cache_after_another() -> None:
    with Trial() as trial:
        assert trial.sentence == "nothing has been asked for yet"
        trial.start("allkeys-lru", 300_000, 1.0)
        assert trial.now is not None
        assert trial.now.history[0][:2] == (STEP, STEP)
        assert trial.now.scanned == 0
        trial.scan = 0.5
        assert trial.step()
        assert trial.now.history[1][:2] == (2 * STEP, STEP)
        trial.step()
        assert trial.now.scanned == 2 * STEP
        assert trial.now.entries + trial.now.evicted == 3 * STEP - trial.now.hits + trial.now.scanned
        assert "keys of a scan in memory" in trial.sentence
        trial.start("volatile-ttl", 300_000, 1.0)
        assert trial.before is not None
        assert trial.before.policy == "allkeys-lru"
        for _ in range(5):
            trial.step()
        assert trial.now.others < 80, "a scan's keys have the shorter time, and go first"
        trial.start("noeviction", 100_000, 0.0)
        assert "writes refused" in trial.sentence
        assert trial.now.evicted == 0
    assert not trial._server.running


def test_a_run_goes_its_steps_and_on(lab: EvictionLab) -> None:
    lab.refresh()
    assert lab.error is None
    first = bytes(lab.picture.value)
    assert first.startswith(PNG)
    assert len(history(lab)) == 1
    assert "allkeys-lru in 300 kB" in lab.status.value
    assert set(lab.policy.options) >= {"allkeys-lru", "allkeys-lfu", "volatile-ttl", "noeviction"}
    assert lab.go.description == "run"
    lab.go.click()
    assert lab.go.description == "pause"
    until(lambda: not lab._ticker.running)
    assert (len(history(lab)), lab.go.description) == (5, "run")
    assert bytes(lab.picture.value) != first
    lab.go.click()
    lab.go.click()
    assert not lab._ticker.running
    assert lab.go.description == "run"


def _draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes much longer than a step."""
    monkeypatch.setattr(EvictionLab, "_drawn", lambda self: b"")


def test_controls_begin_anew_and_the_scan_goes_on(lab: EvictionLab, monkeypatch: pytest.MonkeyPatch) -> None:
    _draw_nothing(monkeypatch)
    lab.refresh()
    lab.go.click()
    until(lambda: not lab._ticker.running)
    lab.policy.value = "allkeys-lfu"
    until(lambda: not lab._ticker.running)
    assert lab.trial.before is not None
    assert lab.trial.before.policy == "allkeys-lru"
    assert (len(history(lab)), len(lab.trial.before.history)) == (4, 5)
    lab.scan.value = 0.5
    until(lambda: not lab._ticker.running)
    steps = history(lab)
    assert len(steps) == 8, "the same run"
    assert [asked // STEP for asked, _, _ in steps] == [1] * 4 + [2] * 4
    lab.memory.value = 1_200_000
    until(lambda: not lab._ticker.running)
    assert "in 1.2 MB" in lab.status.value
    lab.skew.value = 0.0
    until(lambda: not lab._ticker.running)
    assert all(asked == 2 * STEP for asked, _, _ in history(lab))
    assert lab.error is None


def test_a_run_that_has_had_all_its_traffic_begins_anew(
    lab: EvictionLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "MOST", 3)
    lab.refresh()
    for _ in range(2):
        lab.go.click()
        until(lambda: not lab._ticker.running)
        assert lab.error is None
        assert [asked for asked, _, _ in history(lab)] == [STEP] * 3


def test_a_dead_server_is_said_and_the_next_press_has_another(
    lab: EvictionLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _draw_nothing(monkeypatch)
    lab.refresh()
    lab.trial._server.kill()
    lab.go.click()
    until(lambda: not lab._ticker.running)
    assert isinstance(lab.error, Exception)
    assert type(lab.error).__name__ in lab.status.value
    assert not lab.trial._server.running
    lab.go.click()
    assert lab.error is None
    assert lab.trial._server.running
    until(lambda: not lab._ticker.running)
    assert len(history(lab)) == 5


def test_a_server_that_does_not_start_is_said(lab: EvictionLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.trial._server.binary = "/nowhere/redis-server"
    lab.refresh()
    assert isinstance(lab.error, ServerFailed)
    assert "/nowhere/redis-server: not found" in lab.status.value
    lab.scan.value = 0.3
    assert isinstance(lab.error, ServerFailed)


def test_without_a_browser_it_is_a_picture_and_no_server_is_left(
    lab: EvictionLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[dict[str, Any]] = []
    monkeypatch.setattr("labkit.in_browser", lambda: False)
    monkeypatch.setattr(panel, "publish_display_data", lambda data, sizes: published.append(data))
    lab._ipython_display_()
    assert set(published[0]) == {"image/png", "text/plain"}
    assert published[0]["text/plain"] == "<EvictionLab: a cache that runs out of memory>"
    assert published[0]["image/png"].startswith(PNG)
    assert not lab.trial._server.running
    assert len(history(lab)) == 4


def test_a_running_lab_ends_with_the_process() -> None:
    code = """
from labkit.show.widgets import EvictionLab
lab = EvictionLab()
lab.refresh()
lab.go.click()
print(lab.trial._server.pid)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    until(lambda: not alive(int(done.stdout)))


def alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")
