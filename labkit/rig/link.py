"""The thread behind a Proxy: it carries bytes between clients and a server, each at its time.

It sleeps in the kernel until shortly before the next bytes are due and looks at the clock only for the last
fraction of a millisecond: accurate to about 0.1 ms, and idle when nothing happens.
"""

from __future__ import annotations

import random
import select
import selectors
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from labkit import LabkitError
from labkit.rig.tlsend import TlsEnd

CHUNK = 65536
BUFFER = 8 << 20
"""Bytes that one direction of one connection may hold back; then the sender has to wait, as with TCP."""

SPIN = 0.00015
"""Seconds before the due time at which sleeping ends and watching the clock begins."""


LOW = 1024
"""select() takes only file descriptors below this."""

NAP = 0.00005
"""Seconds between looks at the clock where select() cannot be had; the kernel makes it about 0.1 ms."""


REMEMBERED = 1000
"""Failed handshakes of which the reason is kept, the latest ones."""

End = socket.socket | TlsEnd


class ProxyFailed(LabkitError):
    """A proxy can do nothing more: it was closed (`cause` is None), or its thread failed of `cause`."""

    def __init__(self, cause: BaseException | None) -> None:
        self.cause, self.remedy = cause, "make a new one."
        why = f"'s thread has failed: {cause!r}" if cause else " is closed"
        super().__init__(f"This proxy{why}. Remedy: {self.remedy}")


class _Flow:
    """One direction of one connection: what was read from `source` and is due at `sink`."""

    def __init__(self, link: Link, source: End, sink: End, way: int, number: int) -> None:
        self.link, self.source, self.sink, self.way = link, source, sink, way
        self.random = random.Random(f"{link.seed} {number} {way}")
        self.queue: deque[tuple[float, memoryview]] = deque()
        self.held = 0
        # a round trip to open it, another for TLS, and then one way
        ways = 3 if link.tls is None else 5
        self.last_due = time.perf_counter() + ways * link.delay
        self.ended = self.lost = self.blocked = False

    def read(self) -> None:
        data = self.source.recv(self.link.chunk())
        if not data:
            self.ended = True
        elif not self.lost:
            self.lost = self.random.random() < self.link.drop[self.way]
            if not self.lost:
                self.last_due = due = self._due(len(data))
                self.queue.append((due, memoryview(data)))
                self.held += len(data)

    def _due(self, size: int) -> float:
        link = self.link
        start = max(time.perf_counter(), link.busy[self.way])
        if link.bandwidth:
            link.busy[self.way] = start = start + size / link.bandwidth
        late = link.delay + (self.random.uniform(-link.jitter, link.jitter) if link.jitter else 0)
        return max(start + late, self.last_due)

    def write(self, now: float) -> None:
        """Deliver what is due, as far as the sink takes it."""
        queue, self.blocked = self.queue, False
        while queue and queue[0][0] <= now:
            due, data = queue.popleft()
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.held -= sent
            if sent < len(data):
                queue.appendleft((due, data[sent:]))
                self.blocked = True
                return
        if self.ended and not queue and not self.lost:
            self.sink.shutdown(socket.SHUT_WR)
            self.lost = True  # nothing more to do

    @property
    def waits_until(self) -> float | None:
        return self.queue[0][0] if self.queue and not self.blocked else None


class _Pair:
    """A client's connection and its counterpart to the server."""

    def __init__(self, link: Link, near: End, far: End, number: int) -> None:
        for end in (near, far):
            end.setblocking(False)
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets = (near, far)
        self.flows = (_Flow(link, near, far, 0, number), _Flow(link, far, near, 1, number))

    def interest(self, index: int, cut: bool) -> int:
        """What to watch the socket `index` for: it is the source of one flow and the sink of the other."""
        source, sink = self.flows[index], self.flows[1 - index]
        reading = not source.ended and source.held < BUFFER
        return 0 if cut else selectors.EVENT_READ * reading | selectors.EVENT_WRITE * sink.blocked

    def close(self, reset: bool = False) -> None:
        for end in self.sockets:
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()


class Link:
    """The proxy's thread: everything below runs in it, apart from `set`, `call` and `wake`."""

    def __init__(self, address: tuple[str, int] | str, seed: int, tls: ssl.SSLContext | None = None) -> None:
        self.address, self.seed, self.tls = address, seed, tls
        self.refused: deque[str] = deque(maxlen=REMEMBERED)
        self.delay = self.jitter = 0.0
        self.bandwidth: float | None = None
        self.drop = (0.0, 0.0)
        self.busy = [0.0, 0.0]
        self.state = "open"
        self.closing = False
        self.error: BaseException | None = None
        self.opened = 0
        self.pairs: set[_Pair] = set()
        self.calls: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.port = int(self.listener.getsockname()[1])
        self.ear, self.bell = socket.socketpair()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.ear, selectors.EVENT_READ)

    def describe(self) -> str:
        rate = f", {self.bandwidth:,.0f} B/s" if self.bandwidth else ""
        if self.error:
            return f"failed: {self.error!r}"
        return f"{self.state}, delay {self.delay * 2000:g} ms{rate}"

    def chunk(self) -> int:
        """How much to read at once: with little bandwidth, what passes in about 5 ms."""
        return min(CHUNK, max(64, int(self.bandwidth * 0.005))) if self.bandwidth else CHUNK

    def set(self, **settings: Any) -> None:
        self.call(lambda: self.__dict__.update(settings))

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in the proxy's thread, and wait until it has run."""
        done = threading.Event()
        self.calls.append((function, done))
        self.wake()
        while not done.wait(0.05):
            if self.closing or self.error:
                raise ProxyFailed(self.error) from self.error

    def wake(self) -> None:
        try:
            self.bell.send(b"!")
        except OSError:
            return  # closed already

    def cut(self, reset: bool) -> None:
        self.state = "reset" if reset else "cut"
        if reset:
            for pair in list(self.pairs):
                self._forget(pair, reset=True)
        self._watch_all()

    def heal(self) -> None:
        self.state = "open"
        self._watch_all()

    def _watch_all(self) -> None:
        for pair in self.pairs:
            self._watch(pair)

    def run(self) -> None:
        try:
            while not self.closing:
                for key, mask in self._wait():
                    self._serve(key, mask)
                if self.state == "open":
                    self._deliver()
        except BaseException as error:
            self.error = error
        finally:
            for pair in self.pairs:
                pair.close()
            for end in (self.listener, self.ear, self.bell):
                end.close()
            self.selector.close()

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """The next events; none if it is time to look again. (epoll waits in whole ms, select() in µs.)"""
        due = min(
            (at for pair in self.pairs for f in pair.flows if (at := f.waits_until) is not None), default=None
        )
        if due is None or self.state != "open":
            return self.selector.select()
        left = due - time.perf_counter() - SPIN
        if left > 0 and self.selector.fileno() < LOW:
            select.select([self.selector], [], [], left)
            return self.selector.select(0)
        if left >= 0.001:
            return self.selector.select((int(left * 1000) - 0.5) / 1000)  # epoll makes whole ms of it
        if left > 0:
            time.sleep(min(left, NAP))
            return self.selector.select(0)
        while not (events := self.selector.select(0)) and time.perf_counter() < due:
            pass
        return events

    def _serve(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj is self.listener:
            self._accept()
        elif key.fileobj is self.ear:
            self.ear.recv(4096)
            while self.calls:
                function, done = self.calls.popleft()
                function()
                done.set()
        elif key.data[0] in self.pairs:
            pair, index = key.data
            try:
                if mask & selectors.EVENT_WRITE:
                    pair.flows[1 - index].blocked = False
                if mask & selectors.EVENT_READ:
                    pair.flows[index].read()
                    pair.flows[index].write(time.perf_counter())
            except BlockingIOError:
                pass
            except OSError:
                self._forget(pair)
            else:
                self._settle(pair)

    def _accept(self) -> None:
        near, _ = self.listener.accept()
        try:
            if self.state == "reset":
                raise ConnectionResetError
            far = self._connect()
        except OSError:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            near.close()
            return
        self.opened += 1
        end = near if self.tls is None else TlsEnd(near, self.tls, self.refused)
        pair = _Pair(self, end, far, self.opened)
        self.pairs.add(pair)
        self._watch(pair)

    def _connect(self) -> socket.socket:
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address, timeout=2)
        far = socket.socket(socket.AF_UNIX)
        far.connect(self.address)
        return far

    def _deliver(self) -> None:
        now = time.perf_counter()
        for pair in list(self.pairs):
            if any((at := flow.waits_until) is not None and at <= now for flow in pair.flows):
                try:
                    for flow in pair.flows:
                        flow.write(now)
                except OSError:
                    self._forget(pair)
                else:
                    self._settle(pair)

    def _settle(self, pair: _Pair) -> None:
        """After something has moved: end the pair if both sides are done, else watch what it waits for."""
        if all(flow.ended and not flow.queue for flow in pair.flows):
            self._forget(pair)
        else:
            self._watch(pair)

    def _watch(self, pair: _Pair) -> None:
        known = self.selector.get_map()
        for index, end in enumerate(pair.sockets):
            interest = pair.interest(index, self.state != "open")
            key = known.get(end)
            if key is None and interest:
                self.selector.register(end, interest, (pair, index))
            elif key is not None and not interest:
                self.selector.unregister(end)
            elif key is not None and key.events != interest:
                self.selector.modify(end, interest, (pair, index))

    def _forget(self, pair: _Pair, reset: bool = False) -> None:
        self.pairs.discard(pair)
        known = self.selector.get_map()
        for end in pair.sockets:
            if known.get(end) is not None:
                self.selector.unregister(end)
        pair.close(reset)
