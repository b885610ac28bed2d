"""Things to play with: controls, a picture that follows them, and a line that says how it went.

    Playground({"rate": IntSlider(…)}, draw, name="bucket", title="A token bucket")   # draw(rate=…) gives a
    Figure
    Scheduler([buy, buy], setup=…, invariant=…)      # whose turn is it? One button for each client
    RedlockPanel()                                   # five servers to kill, freeze and revive
    SessionPanel(store)                              # who is logged in where, and until when
    ChannelPanel(r)                                  # who hears what: pub/sub beside a stream
    ConsumersPanel(r)                                # worker processes to kill in mid-message
    LiveBoard(board)                                 # a leaderboard, fed by a running game
    EvictionLab()                                    # a cache that runs out of memory: who stays
    ClusterMap()                                     # nodes to kill, slots that change hands

They hold no logic. A playground's `draw` gets the controls' values as keyword arguments and returns a Figure
that was made without pyplot (`plot.figure`); a Scheduler steers a Walk, a RedlockPanel a Quorum, a
SessionPanel Devices, a ChannelPanel an Audience, a ConsumersPanel a Crew, a LiveBoard a Game, an
EvictionLab a Trial, and a ClusterMap a Fleet. Where nobody watches, each shows a still picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw
from matplotlib.figure import Figure

from labkit.cache import CacheAside, WriteThrough
from labkit.lock import Redlock
from labkit.rate_limiter import GCRA, FixedWindow, NaiveSortedSet, SlidingCounter, SlidingLog, TokenBucket
from labkit.rig.cachesim import STRATEGIES, Store, simulate
from labkit.rig.lanes import COLOURS
from labkit.rig.model import Trials
from labkit.rig.quorum import CLIENTS, Quorum, View
from labkit.rig.race import Exploration, Program
from labkit.rig.traffic import SHAPES, Clock, replay
from labkit.rig.walk import Walk
from labkit.session import SessionStore
from labkit.show import plot
from labkit.show.channels import ChannelPanel
from labkit.show.clustermap import ClusterMap
from labkit.show.consumers import ConsumersPanel
from labkit.show.eviction import EvictionLab
from labkit.show.live import LiveBoard
from labkit.show.panel import WIDE, Pressed, Shown, button, choice, png, row
from labkit.show.sessions import DEVICES, Devices, table

if TYPE_CHECKING:
    from labkit.rig.proxy import Proxy
    from labkit.rig.server import Server

__all__ = [
    "ChannelPanel",
    "ClusterMap",
    "ConsumersPanel",
    "EvictionLab",
    "LiveBoard",
    "Playground",
    "RedlockPanel",
    "Scheduler",
    "SessionPanel",
    "cache",
    "limiter",
    "pipelining",
    "png",
]


class Playground(Shown):
    """Controls above, a picture and a status line below; shows itself as the last value of a cell.

    The picture is drawn anew whenever a control has come to rest. What `draw` raises, a KeyboardInterrupt
    too, is shown in the status line, is kept in `.error`, and leaves the last good picture standing; in a
    static rendering it is raised. In the browser the parts are found by their classes: `labkit-<name>`,
    `labkit-picture`, `labkit-status`.
    """

    def __init__(
        self, controls: Mapping[str, Any], draw: Callable[..., Figure], *, name: str, title: str
    ) -> None:
        self.controls = dict(controls)
        self.draw = draw
        self.title = title
        self.error: BaseException | None = None
        self.picture = ipw.Image(format="png", layout=WIDE)
        self.status = ipw.Label()
        self.box = ipw.VBox([row(*self.controls.values()), self.picture, self.status])
        self.picture.add_class("labkit-picture")
        self.status.add_class("labkit-status")
        self._follow_style(name)
        for control in self.controls.values():
            if control.has_trait("continuous_update"):
                control.continuous_update = False
            control.observe(self._changed, names="value")

    @property
    def settings(self) -> dict[str, Any]:
        """What the controls say now: the keyword arguments of the next `draw`."""
        return {name: control.value for name, control in self.controls.items()}

    def refresh(self) -> None:
        """Draw the picture of the current settings; never raises."""
        self.status.value = "drawing …"
        try:
            self.picture.value = png(self.draw(**self.settings))
        except KeyboardInterrupt as error:
            self.error, self.status.value = error, "Interrupted: the picture is that of the last settings."
        except Exception as error:
            self.error, self.status.value = error, f"{type(error).__name__}: {error}"
        else:
            self.error, self.status.value = None, f"drawn: {self._spoken()}"

    def _static(self) -> dict[str, Any]:
        return {"image/png": png(self.draw(**self.settings))}

    def _changed(self, _: object) -> None:
        self.refresh()

    def _spoken(self) -> str:
        return ", ".join(
            f"{control.description or name} {control.value}" for name, control in self.controls.items()
        )


def pipelining(link: Proxy) -> Playground:
    """Choose delay, batch size and number of commands: the time that they take, and what the model says.

    Commands run against the server behind `link`, whose delay this sets. What would take over 1.5 s is not
    run, and the picture says so.
    """
    trials = Trials(link)

    def draw(delay: float, batch: int, commands: int) -> Figure:
        trial = trials.run(delay, batch, commands)
        figure, ax = plot.figure(0.36)
        plot.measured_and_model(trial.rows, ax, title=repr(trial))
        return figure

    controls = {
        "delay": ipw.FloatSlider(
            2.0,
            min=0,
            max=20,
            step=0.5,
            description="RTT (ms)",
            readout_format=".1f",
            tooltip="how far away the server is: milliseconds of a round trip",
        ),
        "batch": ipw.SelectionSlider(
            options=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
            value=50,
            description="batch",
            tooltip="commands in one round trip",
        ),
        "commands": ipw.IntSlider(
            100, min=50, max=2000, step=50, description="commands", tooltip="commands in all"
        ),
    }
    return Playground(controls, draw, name="pipelining", title="how long do these commands take?")


def limiter(r: Any, prefix: str = "workbook:05:playground") -> Playground:
    """Choose algorithm, limit, window and traffic: which requests are admitted, and what is left to spend.

    Each picture is a replay in virtual time on the server of `r`; its keys begin with `prefix` and expire.
    """
    kinds = (FixedWindow, SlidingLog, SlidingCounter, TokenBucket, GCRA, NaiveSortedSet)

    def draw(algorithm: str, limit: int, window: float, traffic: str) -> Figure:
        clock = Clock()
        name = f"{prefix}:{algorithm}:{limit}:{window:g}"
        if algorithm == "TokenBucket":
            made: Any = TokenBucket(r, name, capacity=limit, rate=limit / window, now=clock)
        else:
            kind: Any = next(kind for kind in kinds if kind.__name__ == algorithm)
            made = kind(r, name, limit=limit, window=window, now=clock)
        times = SHAPES[traffic](limit, window)
        result = replay(made, clock, times, sample=window / 25, until=4 * window)
        figure, ax = plot.figure(0.5)
        most = result.most_in_any(window)
        title = f"{algorithm}: {result}; at most {most} in any {window:g} s"
        what = "tokens in the bucket" if algorithm == "TokenBucket" else "room left"
        plot.room(result, ax, title=title, limit=limit, window=window, ylabel=what)
        return figure

    controls = {
        "algorithm": choice("algorithm", [kind.__name__ for kind in kinds], "TokenBucket"),
        "traffic": choice("traffic", list(SHAPES), "bursts"),
        "limit": ipw.IntSlider(10, min=1, max=30, description="limit", tooltip="requests in a window"),
        "window": ipw.FloatSlider(
            1.0, min=0.5, max=3, step=0.5, description="window (s)", tooltip="length of a window in seconds"
        ),
    }
    return Playground(controls, draw, name="limiter", title="which requests does a limiter admit?")


def cache(server: Server | None = None) -> Playground:
    """Choose traffic, TTL, size and a way of writing: hit ratio, database load and stale reads over time.

    Each picture is a second of real traffic on a server of its own, or on `server`, which is emptied: 2,000
    reads and 100 writes, of 200 products that were all loaded at one moment just before. A load takes 10 ms.
    Writing through knows no jitter.
    """
    keys = 200

    def draw(strategy: str, skew: float, ttl: int, jitter: float, size: int) -> Figure:
        def make(r: Any, store: Any) -> CacheAside | WriteThrough:
            life: dict[str, Any] = {"ttl": ttl / 1000, "timeout": None}
            if strategy.startswith("write through"):
                return WriteThrough(r, store, "sim", **life)
            return CacheAside(r, store.load, "sim", jitter=jitter, load_many=store.load_many, **life)

        traffic: dict[str, Any] = {"keys": keys, "skew": skew, "updates": 100, "warm": True}
        room, store = size if size < keys else None, Store(delay=0.01)
        found = simulate(make, strategy=strategy, size=room, store=store, server=server, **traffic)
        figure, ax = plot.figure(0.56)
        count = f"{len(found.reads):,} reads, {len(found.writes):,} writes"
        plot.simulation(found, ax, title=f"{strategy[:1].upper()}{strategy[1:]}: {count}")
        return figure

    return Playground(_cache_controls(), draw, name="cache", title="what does a cache take off the database?")


def _cache_controls() -> dict[str, Any]:
    return {
        "strategy": choice("strategy", list(STRATEGIES), "write, then delete"),
        "skew": ipw.FloatSlider(
            1.0,
            min=0,
            max=1.6,
            step=0.2,
            description="Zipf skew",
            readout_format=".1f",
            tooltip="how uneven: 0 is the same for all products",
        ),
        "ttl": ipw.SelectionSlider(
            options=[25, 50, 100, 200, 300, 400, 600, 800, 1000],
            value=400,
            description="TTL (ms)",
            tooltip="how long a copy may be used",
        ),
        "jitter": ipw.FloatSlider(
            0.0,
            min=0,
            max=0.9,
            step=0.1,
            description="jitter",
            readout_format=".1f",
            tooltip="up to which share of itself a TTL is made shorter, by chance",
        ),
        "size": ipw.SelectionSlider(
            options=[25, 50, 75, 100, 150, 200],
            value=200,
            description="room for",
            tooltip="how many of the 200 products fit into the cache",
        ),
    }


class Scheduler(Pressed):
    """You are the scheduler: a button for each client says what it would send next; press it, and it does.

    `program` is a list of actors, with `setup`, `invariant`, `always` and `faults` as for `explore`, or what
    `explore` returned: then one more button goes along its counterexample, step by step, and the reader may
    leave that anywhere. Lanes and Redis's state grow with each press, which replays all moves from the
    beginning. What that raises is shown in the status line, is kept in `.error`, and changes nothing else.

    In the browser the parts are found by their classes: `labkit-scheduler`, `-picture`, `-status`, `-undo`,
    `-restart`, `-forward`, and for the moves `-move-A`, `-crash-A`, `-lose-A`, `-expire-<key>`.
    """

    def __init__(
        self,
        program: Exploration | Program | Sequence[Callable[[Any], Any]],
        *,
        setup: Callable[[Any], Any] | None = None,
        invariant: Callable[..., Any] | None = None,
        always: Callable[[Any], Any] | None = None,
        faults: Sequence[str] = (),
    ) -> None:
        self.walk = Walk(program, setup=setup, invariant=invariant, always=always, faults=faults)
        self.title = ", ".join(f"{letter} · {name}" for letter, name in self.walk.trace.clients)
        super().__init__()
        self.moves: dict[str, Any] = {}
        self.clients, self.faults, steering = (row() for _ in range(3))
        self.picture = ipw.HTML()
        self.forward = button("", "forward", lambda: self.press(self.walk.forward))
        steering.children = (
            button("undo", "undo", lambda: self.press(self.walk.undo)),
            button("start again", "restart", lambda: self.press(self.walk.restart)),
            *([self.forward] if self.walk.path else []),
        )
        self._put_together("scheduler", self.clients, self.faults, steering)
        self._add_moves()
        self.refresh()

    def _add_moves(self) -> None:
        letters = [letter for letter, _ in self.walk.trace.clients]
        for letter, colour in zip(letters, cycle(COLOURS), strict=False):
            self._add(letter, self.clients, f"move-{letter}").layout.border_left = f"8px solid {colour}"
        for fault, sign, css in (("crash", "!", "crash"), ("lose_reply", "~", "lose")):
            for letter in letters if fault in self.walk.program.faults else ():
                self._add(f"{sign}{letter}", self.faults, f"{css}-{letter}")

    def _add(self, move: str, row: Any, css: str) -> Any:
        """A button for good, now and then disabled: so the keyboard's focus stays where it was."""
        self.moves[move] = made = button("", css, lambda: self.press(lambda: self.walk.take(move)))
        made.style.font_family = "monospace"
        row.children = (*row.children, made)
        return made

    def refresh(self) -> None:
        walk = self.walk
        possible = dict(walk.trace.next)
        for move in possible:
            if move not in self.moves:  # a key that may expire from now on
                self._add(move, self.faults, f"expire-{move[1:]}")
        for move, made in self.moves.items():
            made.disabled = move not in possible
            made.description = made.tooltip = walk.label(move)
        self.forward.description, self.forward.disabled = walk.signpost, not (walk.ahead or walk.strayed)
        self.picture.value = walk.trace._repr_html_()
        self._say(walk.verdict, bool(walk.trace.wrong))

    def _static(self) -> dict[str, Any]:
        walk = self.walk
        if walk.path:
            return {"text/html": walk.replay(walk.path)._repr_html_()}
        ways = "".join(f"<li><code>{escape(walk.label(move))}</code></li>" for move, _ in walk.trace.next)
        say = f'<p style="margin:0.4em 0">{escape(walk.verdict)}</p><ul>{ways}</ul>'
        return {"text/html": say + walk.trace._repr_html_()}


class RedlockPanel(Pressed):
    """Five real servers to kill, freeze and revive, and two clients, A and B, that want one Redlock on them.

    The picture shows what each server said and after how long, whether that is a majority, for how long the
    lock is then valid, and whose lock stands where. The servers start when it is first shown, and end with
    `close()` or the kernel; one that was killed comes back empty, unless `appendonly`. `ttl` is in seconds.
    Errors are shown in the status line, and kept in `.error`.

    In the browser the parts are found by their classes: `labkit-redlock`, `-picture`, `-status`, `-kill-1`
    and `-freeze-1` to 5 (the same buttons revive and thaw), `-acquire-A`, `-release-A`, and likewise for B.
    """

    def __init__(self, *, ttl: float = 10, appendonly: bool = False) -> None:
        super().__init__()
        self.quorum = quorum = Quorum(lambda rs: Redlock(rs, "panel", ttl=ttl), appendonly=appendonly)
        self.title = "five servers, two clients"
        self.picture = ipw.Image(format="png", layout=WIDE)
        self.switches = [
            (
                self._add(f"kill-{n + 1}", partial(quorum.kill_or_revive, n)),
                self._add(f"freeze-{n + 1}", partial(quorum.freeze_or_thaw, n)),
            )
            for n in range(5)
        ]
        acts = [(client, act, getattr(quorum, act)) for client in CLIENTS for act in ("acquire", "release")]
        clients = [
            self._add(f"{act}-{client}", partial(do, client), f"{client} {act}s") for client, act, do in acts
        ]
        kills, freezes = zip(*self.switches, strict=True)
        self._put_together("redlock", row(*kills), row(*freezes), row(*clients))

    def _add(self, css: str, act: Callable[[], object], text: str = "") -> Any:
        made = button(text, css, lambda: self.press(act))
        made.layout.width = "8em"
        return made

    def close(self) -> None:
        """End its servers; when it is used again, new ones start."""
        self.quorum.close()

    def refresh(self) -> None:
        view = self.quorum.view
        for pair, texts in zip(self.switches, view.switches, strict=True):
            for made, text in zip(pair, texts, strict=True):
                made.description, made.disabled = text or "–", not text
        self.picture.value = self._drawn(view)
        left = "".join(f" · {client}: {seconds:.1f} s left" for client, seconds in view.left)
        self._say(view.sentence + left, view.twice)

    def _drawn(self, view: View) -> bytes:
        figure, ax = plot.figure(0.2 + 0.055 * len(view.seats))
        plot.redlock(view, ax)
        return png(figure)

    def _static(self) -> dict[str, Any]:
        with self.quorum as quorum:
            quorum.acquire("A")
            return {"image/png": self._drawn(quorum.view)}


class SessionPanel(Pressed):
    """The sessions of one user in `store`: log in on three devices, use one, log out one, or all everywhere.

    The table's bars show how much time each session has left. They shrink in the browser, without the kernel:
    a session that ends by itself fades, and is gone when something is pressed. `use` sends a request with
    the device's token, which makes its session last; `log out` works on the user's list, so that the device
    still has its token, and may try. Errors are shown in the status line, and kept in `.error`.

    In the browser the parts are found by their classes: `labkit-sessions`, `-picture`, `-status`,
    `-login-phone`, `-use-phone`, `-logout-phone`, likewise for laptop and tablet, `-everywhere`, `-look`.
    """

    def __init__(self, store: SessionStore, user_id: str = "ada") -> None:
        super().__init__()
        self.devices = devices = Devices(store, user_id)
        self.title = f"the sessions of {user_id}"
        self.picture = ipw.HTML()
        acts = (("login", "log in on", devices.log_in), ("use", "use", devices.use))
        rows = [
            row(
                *(self._add(f"{css}-{device}", partial(do, device), f"{verb} {device}") for device in DEVICES)
            )
            for css, verb, do in (*acts, ("logout", "log out", devices.log_out))
        ]
        everywhere = self._add("everywhere", devices.log_out_everywhere, "log out everywhere")
        look = self._add("look", devices.look, "look again")
        self._put_together("sessions", *rows, row(everywhere, look))

    def _add(self, css: str, act: Callable[[], object], text: str) -> Any:
        made = button(text, css, lambda: self.press(act))
        made.layout.width = "12em"
        return made

    def refresh(self) -> None:
        devices = self.devices
        try:
            shown = table(devices.sessions, user_id=devices.user_id, ttl=devices.store.ttl)
        except (Exception, KeyboardInterrupt) as error:
            self.error = self.error or error  # what was pressed has failed before
        else:
            self.picture.value = shown
        self._say(devices.said, devices.refused)

    def _static(self) -> dict[str, Any]:
        """Two devices that log in and are logged out again: nothing is left behind."""
        devices = Devices(self.devices.store, self.devices.user_id)
        try:
            for device in DEVICES[:2]:
                devices.log_in(device)
            names = [f"{session.data.get('device', '–')} {session.id[:4]}…" for session in devices.sessions]
            left = [session.expires_in for session in devices.sessions]
            figure, ax = plot.figure(0.12 + 0.07 * len(left))
            title = f"{devices.user_id[:1].upper()}{devices.user_id[1:]} is logged in on {len(left)} devices"
            plot.bars(dict(zip(names, left, strict=False)), ax, title=title, unit="time left (s)")
            return {"image/png": png(figure)}
        finally:
            for token in devices.tokens.values():
                devices.store.destroy(token)
