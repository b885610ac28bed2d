"""Worker processes that share a stream's work, to be killed in the middle of it.

with Crew(r, "workbook:07:panel", workers=4) as crew:
    crew.publish(100)
    crew.kill(0)                # SIGKILL
    crew.view                   # per worker what is pending, what waits, what was applied once, and twice
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from labkit.rig.processes import Worker, spawn
from labkit.show import plot
from labkit.show.bars import Bar, MovingBars
from labkit.show.panel import Pressed, button, png, row
from labkit.show.ticker import Ticker
from labkit.stream import Producer

GROUP, BATCH, TTL = "crew", 10, 3600
BEAT = 0.4
"""Seconds from one look to the next."""


@dataclass(frozen=True)
class CrewView:
    """How things stand, all at one moment: of each worker whether it is alive, and what it has in hand.

    Of `published` messages some are `waiting` to be delivered; `applied` have had their effect, `twice` of
    them more than once. Handlers were called `begun` times.
    """

    alive: tuple[bool, ...]
    pending: tuple[int, ...]
    waiting: int
    published: int
    applied: int
    twice: int
    begun: int

    @property
    def sentence(self) -> str:
        if not self.published:
            return f"{sum(self.alive)} workers wait for messages"
        said = f"{self.applied} of {self.published} applied, {self.twice} of them twice"
        left = self.published - self.applied
        dead = sum(count for count, alive in zip(self.pending, self.alive, strict=True) if not alive)
        if not left:
            return f"all {said}"
        held = f"{dead} {'is' if dead == 1 else 'are'} in a dead worker's hands"
        return f"{said}; {held if dead else f'{left} to go'}"


def _work(settings: Any, stream: str, name: str, keys: Any, pause: float, idle: float) -> Iterator[None]:
    import time

    import redis

    from labkit.stream import Consumer

    r = redis.Redis(**settings, decode_responses=True)
    applied, begun = keys

    def handle(entry, effects):  # type: ignore[no-untyped-def]
        r.incr(begun)
        time.sleep(pause)
        effects.hincrby(applied, entry.id, 1)
        effects.expire(applied, 3600)

    consumer = Consumer(r, stream, "crew", name, handle, batch=10, block=0.2, idle=idle)
    yield
    consumer.run()


class Crew:
    """So many worker processes in one group of `stream`; a context manager.

    Each message takes `pause` seconds; what was in a dead worker's hands for `idle` seconds goes to another.
    `close()` ends the processes, and removes the keys; the processes end with this one, too, however it ends.
    """

    def __init__(
        self, r: Any, stream: str, workers: int = 4, *, pause: float = 0.05, idle: float = 2
    ) -> None:
        if not 1 <= workers <= 8:
            raise ValueError(f"workers is {workers!r}; it must be 1 to 8")
        self.r, self.stream, self.names = r, stream, [f"worker {n + 1}" for n in range(workers)]
        self.pause, self.idle = pause, idle
        self.published = 0
        self._settings = _settings(r)
        self._keys = (f"{stream}:applied", f"{stream}:begun")
        self._workers: list[Worker | None] = []

    def __enter__(self) -> Crew:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """An empty stream, and all workers ready; nothing where they have been started before."""
        if self._workers:
            return
        self._remove()
        self.published = 0
        self.r.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
        self.r.expire(self.stream, TTL)
        self.r.set(self._keys[1], 0, ex=TTL)
        with ThreadPoolExecutor(len(self.names)) as pool:
            self._workers = list(pool.map(self._worker, self.names))

    def _worker(self, name: str) -> Worker:
        return spawn(_work, self._settings, self.stream, name, self._keys, self.pause, self.idle)

    def is_alive(self, n: int) -> bool:
        worker = self._workers[n] if self._workers else None
        return worker is not None and worker.alive

    def kill_or_revive(self, n: int) -> None:
        """The one that is possible."""
        (self.kill if self.is_alive(n) else self.revive)(n)

    def kill(self, n: int) -> None:
        """SIGKILL: whatever it has in hand stays pending."""
        worker, self._workers[n] = self._workers[n], None
        if worker is not None:
            worker.__exit__()

    def revive(self, n: int) -> None:
        """A new process of the same name."""
        self.kill(n)
        self._workers[n] = self._worker(self.names[n])

    def publish(self, count: int = 100) -> None:
        """Add so many messages to the stream."""
        self.published += count
        Producer(self.r, self.stream).add_many({"n": self.published - count + n} for n in range(count))

    @property
    def view(self) -> CrewView:
        """How things stand: one transaction."""
        with self.r.pipeline(transaction=True) as pipe:
            pipe.xinfo_groups(self.stream)
            pipe.xinfo_consumers(self.stream, GROUP)
            pipe.hvals(self._keys[0])
            pipe.get(self._keys[1])
            groups, consumers, times, begun = pipe.execute()
        pending = {consumer["name"]: consumer["pending"] for consumer in consumers}
        return CrewView(
            alive=tuple(self.is_alive(n) for n in range(len(self.names))),
            pending=tuple(pending.get(name, 0) for name in self.names),
            waiting=groups[0]["lag"] or 0,
            published=self.published,
            applied=len(times),
            twice=sum(int(count) > 1 for count in times),
            begun=int(begun or 0),
        )

    def start_again(self) -> None:
        """New workers, and an empty stream."""
        self.close()
        self.start()

    def close(self) -> None:
        """End the workers, and remove the keys, if there are any; `start()` begins anew."""
        if not self._workers:
            return
        for n in range(len(self._workers)):
            self.kill(n)
        self._workers = []
        self._remove()

    def _remove(self) -> None:
        self.r.delete(self.stream, f"{self.stream}:dead", *self._keys)


def _settings(r: Any) -> dict[str, Any]:
    """What a client in another process needs to reach the server of `r`."""
    if not hasattr(r, "connection_pool"):
        raise TypeError(f"{type(r).__name__} is no client of a single server, such as redis.Redis")
    pool = r.connection_pool
    known = {key: value for key, value in pool.connection_kwargs.items() if isinstance(value, str | int)}
    wanted = {key: known[key] for key in ("host", "port", "db", "username", "password") if key in known}
    if "path" in known:
        wanted["unix_socket_path"] = known["path"]
    tls = {key: value for key, value in known.items() if key.startswith("ssl_")}
    return wanted | ({"ssl": True, **tls} if "SSL" in pool.connection_class.__name__ else {})


class ConsumersPanel(Pressed):
    """Worker processes that share a stream: publish, kill one in the middle of a message, and watch.

    The bars show what each worker has in hand (pending), what waits for one, and how many messages have had
    their effect: once, whoever is killed. The processes start when it is first shown, and end with `close()`
    or the kernel. While there is work, a thread looks every 0.4 s. Errors are shown in the status line, and
    kept in `.error`.

    In the browser the parts are found by their classes: `labkit-consumers`, `-picture`, `-status`, `-kill-1`
    to the number of workers (the same buttons revive), `-publish`, `-again`.
    """

    def __init__(self, r: Any, stream: str = "workbook:07:panel", *, workers: int = 4) -> None:
        super().__init__()
        self.crew = crew = Crew(r, stream, workers)
        self.title = f"{workers} worker processes of one group"
        self.switches = [self._add(f"kill-{n + 1}", partial(crew.kill_or_revive, n)) for n in range(workers)]
        publish = self._add("publish", crew.publish, "publish 100")
        again = self._add("again", crew.start_again, "start again")
        self.bars = MovingBars(workers + 3, row=36, wide=8, room=17, seconds=BEAT)
        self.picture = self.bars.box
        self._lock = threading.Lock()
        self._ticker = Ticker(self._beat, BEAT)
        self._seen: CrewView | None = None
        self._same = 0
        self.status.style.font_size = "17px"
        self._put_together("consumers", row(*self.switches), row(publish, again))

    def _add(self, css: str, act: Callable[[], object], text: str = "") -> Any:
        made = button(text, css, lambda: self.press(act))
        made.layout.width = "10em"
        return made

    def press(self, act: Callable[[], object]) -> None:
        self._ticker.stop()  # so that nobody looks while it acts
        self._same = 0
        super().press(act)
        self._ticker.start()

    def close(self) -> None:
        """End the processes and remove the keys; when it is used again, new ones start."""
        self._ticker.stop()
        self.crew.close()

    def _beat(self) -> bool:
        """Look; not again, when nothing has changed for a while."""
        before = self._seen
        self.refresh()
        view = self._seen
        self._same = self._same + 1 if view == before else 0
        done = view is not None and view.applied == view.published
        return self.error is None and self._same < (3 if done else 25)

    def refresh(self) -> None:
        with self._lock:
            try:
                self.crew.start()
                self._seen = view = self.crew.view
            except (Exception, KeyboardInterrupt) as error:
                self.error = self.error or error
                self._say("", wrong=True)
                return
            for n, (made, alive) in enumerate(zip(self.switches, view.alive, strict=True), 1):
                made.description = f"{'kill' if alive else 'revive'} worker {n}"
            self.bars.show(self._bars(view))
            self._say(view.sentence, wrong=bool(view.twice))

    def _bars(self, view: CrewView) -> list[Bar]:
        bars, all_of_it = [], max(view.published, 1)
        for n, (name, alive, count) in enumerate(zip(self.crew.names, view.alive, view.pending, strict=True)):
            colour = plot.BLUE if alive else plot.VERMILLION
            note = "pending" if alive else "pending · killed"
            bars.append(Bar(name, colour, count, count / max(BATCH, *view.pending), n, note, not alive))
        rest = (
            ("waiting", plot.SKY, view.waiting, "for a worker"),
            ("applied", plot.GREEN, view.applied, f"of {view.published} · handled {view.begun} times"),
            ("applied twice", plot.VERMILLION, view.twice, ""),
        )
        for name, colour, count, note in rest:
            bars.append(Bar(name, colour, count, count / all_of_it, len(bars), note))
        return bars

    def _static(self) -> dict[str, Any]:
        """Two workers, one of which is killed in the middle of a message; nothing is left behind."""
        with Crew(self.crew.r, self.crew.stream, 2, pause=0.02, idle=0.3) as crew:
            crew.publish(40)
            _await(lambda: (view := crew.view).pending[0] or view.applied == view.published)
            crew.kill(0)
            view = crew.view
            _await(lambda: crew.view.applied == crew.published)
            end = crew.view
        values = {"worker 1 (killed): pending": view.pending[0], "worker 2: pending": view.pending[1]}
        values |= {"waiting": view.waiting, "applied": view.applied, "applied in the end": end.applied}
        values["applied twice"] = end.twice
        figure, ax = plot.figure(0.12 + 0.05 * len(values))
        title = "Worker 1 is killed at work: nothing is lost"
        plot.bars(values, ax, title=title, unit="messages", highlight="worker 1 (killed): pending")
        return {"image/png": png(figure)}


def _await(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the workers have not come so far within {seconds:g} s")
        time.sleep(0.02)
