"""A cache to try: choose what it drops and how much it holds, send a scan through it, and see who stays.

with Trial() as trial:
    trial.start(policy="allkeys-lru", memory=300_000, skew=1.0)
    trial.scan = 0.3
    trial.step()
    trial.now                   # labkit.rig.eviction.Eviction
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as ipw

from labkit.rig.eviction import Cache, Eviction, human_bytes, policies, polluted
from labkit.rig.ideal import Key
from labkit.rig.server import Server
from labkit.rig.traffic import zipf
from labkit.show import plot
from labkit.show.panel import WIDE, Pressed, button, png, row
from labkit.show.ticker import Ticker

PAGES, STEP, STEPS = 1000, 400, 24
"""So many pages there are, so many are asked for in one step, and so many steps a run has."""

MOST = 240
"""Steps of one run, at most, however often it is let go on; after that it begins anew."""

BEAT = 0.5
"""Seconds from one step to the next."""

OFFERED = ("allkeys-lru", "allkeys-lfu", "allkeys-random", "allkeys-lrm", "volatile-ttl", "noeviction")
MEMORIES = (100_000, 200_000, 300_000, 500_000, 700_000, 1_200_000)


def _ttl(key: Key) -> float:
    """A scan's keys are of use for a minute, pages for an hour."""
    return 3600 if isinstance(key, int) else 60


class Trial:
    """One cache after the other, on a server of its own that starts with the first; a context manager.

    Traffic is the same each time, page by page; `scan` is the share of requests for keys that nobody asks
    for again, and may be changed in between. `now` is how things stand, `before` what came of the run before.
    """

    def __init__(self) -> None:
        self.scan = 0.0
        self.now: Eviction | None = None
        self.before: Eviction | None = None
        self._server = Server()
        self._cache: Cache | None = None

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def offered(self) -> tuple[str, ...]:
        """The policies to choose from: those that the server has."""
        return tuple(policy for policy in OFFERED if policy in policies(self._server.start()))

    def start(self, policy: str, memory: int, skew: float) -> None:
        """An empty cache, and the first step."""
        self._drop()
        self._server.start()
        self._cache = Cache(self._server, policy=policy, memory=memory, ttl=_ttl)
        self._pages = zipf(MOST * STEP, PAGES, skew)
        self._history: list[tuple[int, int, int]] = []
        if self.now is not None and len(self.now.history) > 1:
            self.before = self.now
        self.step()

    def step(self) -> bool:
        """Send a little more traffic; whether there is more to come. RedisError, OSError as redis-py's."""
        assert self._cache is not None
        done = len(self._history)
        pages = self._pages[done * STEP : (done + 1) * STEP]
        mixed = polluted(pages, self.scan, runs=STEP)
        self._history.append(self._cache.play(k if isinstance(k, int) else f"{k}:{done}" for k in mixed))
        self.now = self._cache.result(self._history)
        return done + 1 < MOST

    def _drop(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def close(self) -> None:
        """End the server; `start` begins anew."""
        self._server.stop()
        self._drop()

    @property
    def sentence(self) -> str:
        """How things stand."""
        now = self.now
        if now is None:
            return "nothing has been asked for yet"
        lately = now.history[-5:]
        asked, hits = (sum(step[n] for step in lately) for n in (1, 2))
        said = f"{now.policy} in {human_bytes(now.memory)}: {100 * hits / asked:.0f} % hits of late"
        there = f"{len(now.resident)} of {PAGES:,} pages"
        there += f" and {now.others} keys of a scan" if now.others else ""
        refused = f", {now.refused:,} writes refused" if now.refused else ""
        return f"{said} · {there} in memory · {now.evicted:,} evicted{refused}"


class EvictionLab(Pressed):
    """Choose policy, memory, skew and scan: the hit ratio over time, and which pages are in memory.

    Another policy, memory or skew begins with an empty cache, and the same traffic; the run before stays as
    a grey line. The scan may come and go within a run. 1,000 pages of 1 kB are asked for, an hour's TTL each;
    the keys of a scan have a minute, on a clock that goes a second with each request (labkit.rig.eviction).

    While it runs, a thread takes a step every 0.5 s: 24 of them, and 24 more with each "run". It is gone
    after `pause()`, `close()`, at the end of the run, and with the kernel. The server starts when the lab is
    first shown, and ends with `close()` or the kernel. Errors are shown in the status line, and kept in
    `.error`; then the next thing that is pressed begins with a new server.

    In the browser the parts are found by their classes: `labkit-eviction`, `-picture`, `-status`, `-policy`,
    `-memory`, `-skew`, `-scan`, `-go`, `-again`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trial = Trial()
        self.title = "a cache that runs out of memory"
        self.picture = ipw.Image(format="png", layout=WIDE)
        self.left = 0
        self._lock = threading.RLock()
        self._ticker = Ticker(self._beat, BEAT)
        self._put_together("eviction", *self._controls())

    def _controls(self) -> tuple[Any, ...]:
        wide = {"description_width": "initial"}
        self.policy = ipw.ToggleButtons(
            options=OFFERED, style={"button_width": "10em"}, tooltip="what is dropped when memory is full"
        )
        sizes = [(human_bytes(size), size) for size in MEMORIES]
        self.memory = ipw.SelectionSlider(options=sizes, value=300_000, description="memory", style=wide)
        self.skew = ipw.FloatSlider(
            1.0, min=0, max=1.6, step=0.2, description="Zipf skew", readout_format=".1f", style=wide
        )
        shares = [(f"{share} %", share / 100) for share in (0, 10, 30, 50, 70)]
        self.scan = ipw.SelectionSlider(options=shares, description="scan", style=wide)
        self.memory.tooltip, self.skew.tooltip = "how much the cache may hold", "how uneven the traffic is"
        self.scan.tooltip = "how many of the requests are a scan's"
        for css in ("policy", "memory", "skew", "scan"):
            made = getattr(self, css)
            made.add_class(f"labkit-{css}")
            made.layout.margin = "2px 2px 2px 16px"
            if made.has_trait("continuous_update"):
                made.continuous_update = False
            act = self._go_on if css == "scan" else self.start_again
            made.observe(lambda _, act=act: self.press(act), names="value")
        self.go = button("", "go", lambda: self.press(self._pause_or_go_on))
        again = button("start again", "again", lambda: self.press(self.start_again))
        for made in (self.go, again):
            made.layout.width = "9em"
        return row(self.policy), row(self.memory, self.skew, self.scan), row(self.go, again)

    def start_again(self) -> None:
        """An empty cache with the settings that the controls show, and a whole run."""
        self.trial.scan = self.scan.value
        self.trial.start(self.policy.value, self.memory.value, self.skew.value)
        self.left = STEPS - 1

    def pause(self) -> None:
        """Halt; when this returns, the thread is gone."""
        self.left = 0
        self._ticker.stop()

    def close(self) -> None:
        """Halt, and end the server; when it is used again, a new run begins with a new one."""
        self.pause()
        self._give_up()

    def _pause_or_go_on(self) -> None:
        if self.left:
            self.pause()
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self.trial.now is None or len(self.trial.now.history) >= MOST:
            self.start_again()
        self.trial.scan = self.scan.value
        self.left = max(self.left, STEPS)

    def press(self, act: Callable[[], object]) -> None:
        self._ticker.stop()  # so that nobody sends while it acts
        super().press(act)
        if self.error:
            self._give_up()
        elif self.left:
            self._ticker.start()

    def _give_up(self) -> None:
        self.left, self.trial.now = 0, None
        with contextlib.suppress(Exception):
            self.trial.close()

    def _beat(self) -> bool:
        """One more step, and a look; not again at the end of the run."""
        with self._lock:
            try:
                self.left = self.left - 1 if self.trial.step() else 0
            except Exception as error:
                self.error = error
                self._give_up()
            self.refresh()
            return bool(self.left)

    def refresh(self) -> None:
        with self._lock:
            if self.trial.now is None and not self.error:
                self._first()
            self.go.description = "pause" if self.left else "run"
            if self.trial.now is not None:
                self.picture.value = self._drawn()
            self._say(self.trial.sentence, wrong=False)

    def _first(self) -> None:
        """The server's policies to choose from, and the first step of a run that waits to go on."""
        try:
            if self.policy.options != (offered := self.trial.offered):
                with self.policy.hold_trait_notifications():
                    self.policy.options, self.policy.value = offered, offered[0]
            self.start_again()
            self.left = 0
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            self._give_up()

    def _drawn(self) -> bytes:
        now, before = self.trial.now, self.trial.before
        assert now is not None
        edges = {"left": 0.09, "right": 0.96, "top": 0.94, "bottom": 0.16, "hspace": 0.38}
        figure, (above, below) = plot.figure(0.7, nrows=2, gridspec_kw=edges)
        figure.set_layout_engine("none")  # to find the best one would take most of the time
        runs = {f"before: {before.policy}, {human_bytes(before.memory)}": before} if before else {}
        title = f"{now.policy} in {human_bytes(now.memory)}: {100 * now.hit_ratio:.0f} % hits"
        plot.hits_over_time({**runs, "now": now}, above, title=title, last=STEP * STEPS)
        above.legend(loc="lower right", ncols=3)
        plot.residents({"in memory": now}, below, title="", keys=PAGES)
        return png(figure)

    def _static(self) -> dict[str, Any]:
        """A run of LRU, and through its second half a scan; the server is gone."""
        with Trial() as self.trial:
            self.trial.start("allkeys-lru", 300_000, 1.0)
            for step in range(STEPS - 1):
                self.trial.scan = 0.5 if step >= STEPS // 2 else 0.0
                self.trial.step()
            return {"image/png": self._drawn()}
