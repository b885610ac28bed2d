"""What it costs to begin; run by hand: python tests/bench_startup.py

Medians of this machine, and one clone: of what is committed here, set up with a warm cache of packages.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benching import cores, met
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parents[1]
ROUNDS = 9
ALLOWED_MS = 150

CONNECT = "import labkit, time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
FIRST = "labkit.connect(quiet=True)"
ENVIRONMENT = {**os.environ, "REDIS_URL": "embedded"}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def process(code: str) -> float:
    return seconds(lambda: run(sys.executable, "-c", code))


def over(code: str, base: str) -> float:
    """Median of one code's process less another's, taken in turns."""
    pairs = [(process(code), process(base)) for _ in range(ROUNDS)]
    return statistics.median(a - b for a, b in pairs)


def printed(code: str) -> float:
    """Median of what fresh processes print."""
    return statistics.median(float(run(sys.executable, "-c", code)) for _ in range(ROUNDS))


def first_cell() -> tuple[float, float]:
    """Seconds until a new kernel answers, and until chapter 00's first cell has been executed in it."""
    start = time.perf_counter()
    manager, client = start_new_kernel(env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    ready = time.perf_counter() - start
    try:
        reply = client.execute_interactive("import labkit; r = labkit.connect()", output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok", reply
        return ready, time.perf_counter() - start - ready
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def clone(folder: Path) -> tuple[float, float]:
    """Seconds for git clone, and for what `uv run` does before its command: environment and packages."""
    cloned = seconds(lambda: run("git", "clone", "--quiet", ROOT, folder))
    return cloned, seconds(lambda: run("uv", "run", "--quiet", "python", "-c", "pass", cwd=folder))


def main() -> None:
    bare = statistics.median(process("pass") for _ in range(ROUNDS))
    imported = over("import labkit", "pass")
    with tempfile.TemporaryDirectory() as place:
        git, sync = clone(Path(place) / "workbook")
    cells = [first_cell() for _ in range(5)]
    kernel, cell = (statistics.median(column) for column in zip(*cells, strict=True))
    rows = [
        ("python, with nothing", bare),
        ("import labkit, over that", imported),
        ("import redis, over that", over("import redis", "pass")),
        ("first connect(), redis-py's import and a server's start in it", printed(CONNECT.format(FIRST))),
        ("second connect()", printed(f"import labkit; {FIRST}; {CONNECT.format(FIRST)}")),
        ("git clone, of a local repository", git),
        ("uv run, for the first time, with a warm cache", sync),
        ("a kernel's start", kernel),
        ("its first cell: import labkit; r = labkit.connect()", cell),
        ("clone to first executed cell", git + sync + kernel + cell),
    ]
    print(f"{len(cores())} cores; Python {sys.version.split()[0]}; medians")
    for what, took in rows:
        print(f"{what:<62} {took * 1000:9,.0f} ms")
    print(f"import labkit takes less than {ALLOWED_MS} ms: {met(imported * 1000 < ALLOWED_MS)}")


if __name__ == "__main__":
    main()
