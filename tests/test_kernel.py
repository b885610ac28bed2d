"""Real Jupyter kernels, interrupted, killed and shut down: nothing of theirs is left."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from test_server import alive, eventually

from labkit.teach.refresh import own_sockets

PRELUDE = """
import threading, time
import labkit
from labkit.rig import connection
from labkit.rig.proxy import Proxy
from labkit.rig.server import Server
r = labkit.connect(quiet=True)
own = connection._embedded.pid
"""


class Kernel:
    """A kernel and its client; `run` gives what a cell printed, and the traceback of its exception."""

    def __init__(self, folder: str) -> None:
        self.manager = own_sockets(KernelManager(kernel_name="python3"), folder)
        self.manager.start_kernel(env=os.environ | {"REDIS_URL": "embedded"})
        self.client: Any = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def start(self, code: str) -> str:
        """Send a cell, and wait until it prints a line."""
        self.client.execute(code)
        return self._collect(until_line=True)

    def run(self, code: str) -> str:
        self.client.execute(code)
        return self._collect()

    def rest(self) -> str:
        """What the running cell still says, until its end."""
        return self._collect()

    def _collect(self, until_line: bool = False) -> str:
        said = ""
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            kind, content = message["msg_type"], message["content"]
            if kind == "stream" and content["name"] == "stdout":
                said += content["text"]
            elif kind == "error":
                said += "\n".join([content["ename"], *content["traceback"]])
            if (until_line and said.endswith("\n")) or (
                kind == "status" and content["execution_state"] == "idle" and not until_line
            ):
                return said.strip()


@contextmanager
def kernel() -> Iterator[Kernel]:
    with tempfile.TemporaryDirectory(prefix="labkit-") as folder:
        started = Kernel(folder)
        try:
            yield started
        finally:
            started.client.stop_channels()
            started.manager.shutdown_kernel(now=True)


LONG_CELLS = {
    "a server in a sleep": """
with Server() as s:
    print(s.pid, flush=True)
    time.sleep(60)
""",
    "five servers": """
with Server.several(5) as five:
    print(*[s.pid for s in five], flush=True)
    time.sleep(60)
""",
    "a frozen server": """
with Server() as s:
    c = s.client(socket_timeout=60)
    c.ping()
    s.freeze()
    print(s.pid, flush=True)
    c.ping()
""",
    "a blocking command through a proxy": """
with Server() as s, Proxy(s) as p:
    c = p.client(socket_timeout=None)
    print(s.pid, flush=True)
    c.blpop("nothing", 60)
""",
}


@pytest.mark.parametrize("cell", LONG_CELLS.values(), ids=LONG_CELLS.keys())
def test_an_interrupted_cell_leaves_no_server_and_no_thread(cell: str) -> None:
    with kernel() as k:
        threads = k.run(PRELUDE + "print(threading.active_count())")
        pids = k.start(cell).split()
        time.sleep(0.2)
        k.manager.interrupt_kernel()
        name, where, remedy = k.rest().splitlines()
        assert name == "KeyboardInterrupt" and where.startswith("Interrupted at line ")
        assert where.split(": ", 1)[1] in cell and "Run the cell again" in remedy
        assert eventually(lambda: not any(alive(int(pid)) for pid in pids))
        assert int(k.run("print(threading.active_count())")) <= int(threads)
        assert (
            k.run("r.incr('workbook:still'); print(r.get('workbook:still'), r.unlink('workbook:still'))")
            == "1 1"
        )


def test_a_killed_kernel_leaves_no_server_and_no_folder() -> None:
    with kernel() as k:
        said = k.run(
            PRELUDE + "s = Server().start(); s.freeze(); from labkit.rig import watchdog\n"
            "print(watchdog.get().folder, own, s.pid)"
        )
        folder, *pids = said.split()
        assert all(alive(int(pid)) for pid in pids)
        k.manager.signal_kernel(9)
        assert eventually(lambda: not any(alive(int(pid)) for pid in pids))
        assert eventually(lambda: not Path(folder).exists())


def test_a_shut_down_kernel_ends_at_once_and_leaves_nothing() -> None:
    with kernel() as k:
        pids = k.run(PRELUDE + "s = Server().start(); print(own, s.pid)").split()
        start = time.monotonic()
        k.manager.shutdown_kernel()
        assert time.monotonic() - start < 5
        assert eventually(lambda: not any(alive(int(pid)) for pid in pids))


def test_a_restarted_kernel_begins_with_an_empty_server() -> None:
    with kernel() as k:
        before = k.run(PRELUDE + "r.set('workbook:kept', 1, ex=60); print(own)")
        k.manager.restart_kernel(now=True)
        k.client.wait_for_ready(timeout=60)
        assert k.run(PRELUDE + "print(r.get('workbook:kept'))") == "None"
        assert eventually(lambda: not alive(int(before)))


def test_two_kernels_at_once_never_meet() -> None:
    with kernel() as one, kernel() as two:
        script = PRELUDE + "print(r.incr('workbook:meet'))"
        assert [k.run(script) for k in (one, two, one)] == ["1", "1", "2"]
