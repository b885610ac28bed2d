"""Measured runs, candidates that take turns, and processes that start together and leave nothing behind."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from test_server import alive, eventually

from labkit.rig import bench
from labkit.rig.bench import ProcessFailed, Run, Sweep, compare, human_time, measure, processes, sweep


def test_importing_bench_loads_nothing_heavy() -> None:
    heavy = "{'pandas', 'matplotlib', 'tqdm', 'ipywidgets', 'numpy'}"
    code = f"import sys, labkit.rig.bench; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_measure_calls_warmup_and_n_times() -> None:
    calls: list[None] = []
    run = measure(lambda: calls.append(None), n=50, warmup=7)
    assert len(calls) == 57
    assert len(run.samples) == 50
    assert run.name == "call"
    assert all(isinstance(ns, int) and ns > 0 for ns in run.samples)


def test_a_sample_is_the_elapsed_time() -> None:
    run = measure(lambda: time.sleep(0.002), n=5, warmup=0, name="nap")
    assert run.best >= 2_000_000
    assert run.ops_per_second <= 500


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.floats(0.01, 100))
def test_percentile_is_the_nearest_rank(samples: list[int], share: float) -> None:
    value = Run("x", tuple(samples)).percentile(share)
    assert value in samples
    assert sum(s <= value for s in samples) >= share / 100 * len(samples) - 1e-9
    assert sum(s < value for s in samples) < share / 100 * len(samples) + 1e-9


def test_percentiles_of_a_thousand() -> None:
    run = Run("x", tuple(range(1, 1001)))
    assert (run.p50, run.p90, run.p99, run.p999, run.best) == (500, 900, 990, 999, 1)
    assert Run("x", tuple(range(1, 1001)), ops=10).ops_per_second == 10 * run.ops_per_second


def test_runs_show_as_one_line_and_as_a_table() -> None:
    run = Run("<get>", (1_000, 2_000, 3_000_000))
    assert repr(run) == "<get>: 3 calls · p50 2 µs · p90 3 ms · p99 3 ms · p99.9 3 ms · 999 ops/s"
    assert "<th>&lt;get&gt;</th>" in run._repr_html_()
    assert list(run.df.columns) == ["round", "ns"]
    assert run == Run("<get>", (1_000, 2_000, 3_000_000))


def test_candidates_take_turns_in_reversed_order() -> None:
    seen: list[str] = []
    result = compare({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, n=2, rounds=3, warmup=0)
    assert "".join(seen) == "aabb" + "bbaa" + "aabb"
    assert result.values == ("a", "b")
    assert [len(run.by_round) for _, run in result] == [3, 3]


def test_ratio_compares_within_each_round() -> None:
    """The machine became ten times slower in the second round: the ratio does not notice."""
    a = Run("a", (10, 10, 100, 100, 10, 10), rounds=3)
    b = Run("b", (20, 20, 200, 200, 20, 20), rounds=3)
    result = Sweep("candidate", ("a", "b"), (a, b))
    assert result.ratio("b", "a") == 2
    assert result.ratio("a", "b") == 0.5
    with pytest.raises(KeyError, match="'c' was not measured; there are a, b"):
        result.ratio("c", "a")


def test_sweep_calls_fn_with_each_value() -> None:
    seen: list[int] = []
    result = sweep(seen.append, over=(1, 10), n=1, rounds=2, warmup=1, name="batch", ops=lambda b: b)
    assert seen == [1, 10, 1, 10, 10, 1]
    assert [run.ops for run in result.runs] == [1, 10]
    assert result[10].name == "batch=10"
    assert list(result.df["batch"]) == [1, 10]
    assert result.df.columns[-1] == "ops_per_second"
    assert repr(result).splitlines()[0].split() == ["batch", "calls", "p50", "p90", "p99", "p99.9", "ops/s"]


@pytest.mark.parametrize("bad", [{"n": 0}, {"warmup": -1}])
def test_bad_counts_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        measure(lambda: None, **bad)
    with pytest.raises(ValueError, match="at least one candidate"):
        compare({})
    with pytest.raises(ValueError, match="percentile is 0"):
        Run("x", (1,)).percentile(0)


def test_the_garbage_collector_works_again_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 / 0, warmup=0)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (850, "850 ns"),
        (41_230, "41.2 µs"),
        (999_600, "1 ms"),
        (3_050_000, "3.05 ms"),
        (2e12, "2,000 s"),
        (-1_730, "-1.73 µs"),
    ],
)
def test_human_time(ns: float, text: str) -> None:
    assert human_time(ns) == text


def test_bars_are_silent_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("VSCODE_PID", raising=False)
    assert list(bench.bar(range(3))) == [0, 1, 2]
    with bench.bar(total=2, desc="x") as b:
        b.update()
    assert capsys.readouterr() == ("", "")


BAR = """
import time
from labkit.rig.bench import bar

print("before")
with bar(total=3, desc="working") as b:
    for _ in range(3):
        time.sleep(0.3)
        b.update()
print("after")
"""


def test_a_bar_that_is_watched_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    shown: list[str] = []
    cell = nbformat.v4.new_code_cell(BAR)  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    client = NotebookClient(notebook, kernel_name="python3")
    process = client.process_message

    def watch(message: Any, *rest: Any) -> Any:
        shown.append(str(message["content"].get("data", {}).get("text/html", "")))
        return process(message, *rest)

    monkeypatch.setattr(client, "process_message", watch)
    client.execute()
    assert any("working: 100%" in html for html in shown)
    left = [output.get("text") or output.data["text/html"] for output in cell.outputs]
    assert [text for text in left if text] == ["before\n", "after\n"]


def test_a_bar_starts_no_thread() -> None:
    before = set(threading.enumerate())
    list(bench.bar(range(10)))
    assert set(threading.enumerate()) <= before


def add(a: int, b: int) -> int:
    print("what it prints is not its result")
    return a + b


def start() -> Any:
    import time

    time.sleep(0.05)
    yield
    return time.monotonic()


def fail() -> Any:
    return undefined_name  # type: ignore[name-defined]  # noqa: F821


def sleep_for_ever() -> None:
    import time

    time.sleep(1000)


def vanish() -> None:
    import os

    os._exit(7)


def give_a_set() -> Any:
    return {1, 2}


def yield_twice() -> Any:
    yield
    yield


def test_processes_give_their_results() -> None:
    assert processes(2, add, 1, 2) == [3, 3]


def test_processes_are_released_together() -> None:
    def apart() -> float:
        times = processes(3, start)
        return float(max(times) - min(times))

    assert any(apart() < 0.5 for _ in range(3))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            fail,
            "(?s)fail in process 1 of 1 raised:.*return undefined_name.*NameError.*Remedy: it travels",
        ),
        (vanish, "vanish in process 1 of 1 ended with exit code 7"),
        (give_a_set, "set is not JSON serializable"),
        (yield_twice, "it yields twice"),
    ],
)
def test_a_failing_process_says_why(fn: Any, message: str) -> None:
    with pytest.raises(ProcessFailed, match=message):
        processes(1, fn)


def test_processes_have_a_time_limit() -> None:
    started = time.monotonic()
    with pytest.raises(ProcessFailed, match=r"2 of 2 processes did not finish within 1 s.*Remedy"):
        processes(2, sleep_for_ever, seconds=1)
    assert time.monotonic() - started < 10


def test_functions_that_cannot_travel_are_refused() -> None:
    captured = 1

    def closure() -> int:
        return captured

    scope: dict[str, Any] = {}
    exec("def typed(): return 1", scope)
    with pytest.raises(ValueError, match="closure uses captured of its surroundings"):
        processes(1, closure)
    with pytest.raises(ValueError, match="write it with def"):
        processes(1, lambda: 1)
    with pytest.raises(ValueError, match="no source text here"):
        processes(1, scope["typed"])
    with pytest.raises(ValueError, match="n is 0"):
        processes(0, add)


ORPHANS = """
import sys
from labkit.rig.bench import processes
def wait(path):
    import os, time
    with open(path, "a") as f:
        f.write(f"{os.getpid()}\\n")
    time.sleep(1000)
processes(2, wait, sys.argv[1], seconds=100)
"""


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    script, pids = tmp_path / "orphans.py", tmp_path / "pids"
    script.write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, str(script), str(pids)])
    assert eventually(lambda: pids.exists() and pids.read_text().count("\n") == 2, 20)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    children = [int(pid) for pid in pids.read_text().split()]
    assert eventually(lambda: not any(map(alive, children)), 20)
