"""A process that writes numbered keys one by one, and notes each OK, until the server is gone.

labkit.rig.durability kills the server meanwhile, and looks which of the keys are there afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import Any

import redis

from labkit.rig.processes import Worker, spawn

__all__ = ["Writer", "key", "writing"]

READY = "writing"


def key(number: int) -> str:
    """The key of this write; its value is the number."""
    return f"write:{number}"


def writing(url: str, clients: int, told: bool) -> Worker:
    """Start a writer; its first write has been acknowledged.

    `told`: it asks the server when some of its writes are on disk. Its result: Writer's `times` and `marks`.
    """
    writer = spawn(_write, url, clients, told)
    writer.await_said(READY)
    return writer


class Writer:
    """SET 1, SET 2, … over so many connections, until the server is gone; runs in the process of `_write`."""

    EVERY = 0.05
    """Seconds between marks."""

    MOST = 64
    """Marks that may wait for the disk: later ones are not on it either, and tell nothing new."""

    def __init__(self, r: redis.Redis, clients: int, told: bool) -> None:
        self._new = r.connection_pool.get_connection
        self._connections = [self._new() for _ in range(clients)]
        self._told, self._due = told, 0.0
        self._waiting: list[
            tuple[Any, float, int]
        ] = []  # connection, when, how many were acknowledged before
        self.times: list[float] = []
        self.marks: list[tuple[float, float | None, int]] = []

    def run(self) -> None:
        number = 0
        with contextlib.suppress(redis.ConnectionError):
            while True:
                for connection in self._connections:
                    number += 1
                    connection.send_command("SET", key(number), number)
                for connection in self._connections:
                    connection.read_response()
                    self.times.append(time.perf_counter())
                if len(self.times) == len(self._connections):
                    print(READY, flush=True)
                if self._told:
                    self._look()
        self.marks += [(at, None, len(self.times) - before) for _, at, before in self._waiting]

    def _look(self) -> None:
        """Which marks are on disk by now; and a new one if it is time."""
        for waiting in list(self._waiting):
            if waiting[0].can_read(timeout=0):
                self._on_disk(waiting)
        if time.perf_counter() > self._due and len(self._waiting) < self.MOST:
            self._due = time.perf_counter() + self.EVERY
            connection = self._new()
            connection.send_command("SET", "mark", len(self.marks))
            connection.read_response()
            self._waiting.append((connection, time.perf_counter(), len(self.times)))
            connection.send_command("WAITAOF", 1, 0, 0)
            for _ in range(2):  # once the second PONG is here, so is an answer that did not have to wait
                self._connections[0].send_command("PING")
                self._connections[0].read_response()
            if connection.can_read(timeout=0):
                self._on_disk(self._waiting[-1])

    def _on_disk(self, waiting: tuple[Any, float, int]) -> None:
        connection, at, before = waiting
        connection.read_response()
        self.marks.append((at, time.perf_counter() - at, len(self.times) - before))
        self._waiting.remove(waiting)
        connection.disconnect()


def _write(url: str, clients: int, told: bool) -> Generator[None, None, Any]:
    """Numbered keys until the server is gone: when each was acknowledged, and the marks."""
    from labkit.rig.client import client
    from labkit.rig.writer import Writer

    writer = Writer(client(url, socket_timeout=30), clients, told)
    yield
    writer.run()
    return writer.times, writer.marks
