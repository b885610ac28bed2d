"""The map of a cluster: who serves which slots, how many requests, and what a killed node means for them.

ClusterMap()            # six real servers, under load; a button for each kills and revives it
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import ipywidgets as ipw

from labkit.rig.fleet import Fleet, FleetView, Seat
from labkit.rig.probes import Lane
from labkit.show import plot
from labkit.show.panel import Pressed, button, row
from labkit.show.ticker import Ticker

BEAT = 0.4
"""Seconds from one look to the next."""

PATIENCE = 600
"""Load and looking end by themselves after so many seconds in which nothing was pressed."""

SECONDS = 16
"""So much of the past is shown."""

WIDE, SIDE, TRACK = 1000, 288, 34
"""The width of the picture, of the square of all slots, and the height of a row of the past, in its units."""

FAMILIES = (
    (plot.BLUE, plot.SKY, "#A9D6F5"),
    (plot.ORANGE, "#F5CF6B", "#FBE7B2"),
    (plot.GREEN, "#66CDAA", "#B2E6D4"),
    (plot.PURPLE, "#E6BBD3", "#F3DDE9"),
    ("#5C4EB0", "#9D93D6", "#CDC8EB"),
    ("#8C5A2B", "#C69C6D", "#E2CDB5"),
)
"""The colours of A, A2, A3, of B, B2, B3, …"""

DARK = {plot.BLUE, plot.GREEN, "#5C4EB0", "#8C5A2B"}
"""White letters are read better on these."""


class ClusterMap(Pressed):
    """A real cluster of its own: kill a node, revive it, and see who serves which slots, when nobody does.

    The square shows all 16,384 slots, 128 in a row, in the colour of the node that serves them, striped where
    none does; dots are requests of the last half a second, crosses those that failed. Beside it stand the
    nodes, with their roles and the requests a second that each has answered; below, for each part of the
    slots, the last 16 seconds: whose colour, and red where no request was answered. "one hot key" sends three
    of four requests to one key. What would end the cluster is not done, and the status line says why.

    The servers start when it is first shown (some 2 s), and end with `close()` or the kernel; the load is a
    thread for each primary. It rests while no page shows the widget, and when nothing was pressed for ten
    minutes. Errors are shown in the status line, and kept in `.error`.

    In the browser the parts are found by their classes: `labkit-cluster`, `-picture`, `-status`, `-kill-A`,
    `-kill-A2` and so on (the same buttons revive), `-load`, `-hot`, `-all`.
    """

    def __init__(self, primaries: int = 3, replicas: int = 1, *, node_timeout: float = 1.0) -> None:
        super().__init__()
        self._fleet = partial(Fleet, primaries, replicas, node_timeout=node_timeout)
        self.fleet = fleet = self._fleet()
        self.title = f"a cluster of {len(fleet.names)} nodes"
        self.switches = {
            name: self._add(f"kill-{name}", partial(fleet.kill_or_revive, name)) for name in fleet.names
        }
        for name, made in self.switches.items():
            made.layout.border_left = f"10px solid {colour(name)}"
        self.go = self._add("load", fleet.load_or_rest)
        self.heat = self._add("hot", fleet.heat_or_cool)
        everybody = self._add("all", fleet.revive_all, "revive all")
        self.picture = ipw.HTML(layout={"max_width": "1100px"})
        self._lock = threading.Lock()
        self._ticker = Ticker(self._beat, BEAT)
        self._touched = time.monotonic()
        self.status.style.font_size = "19px"
        self._put_together("cluster", row(*self.switches.values()), row(self.go, self.heat, everybody))
        self.box._view_count = 0  # counted by the page from now on
        self.box.observe(self._seen, names=["_view_count", "comm"])

    def _add(self, css: str, act: Callable[[], object], text: str = "") -> Any:
        made = button(text, css, lambda: self.press(act))
        made.layout.width = "9.5em"
        return made

    def press(self, act: Callable[[], object]) -> None:
        self._ticker.stop()  # so that nobody looks while it acts
        self._touched = time.monotonic()
        super().press(act)
        self._ticker.start()

    def close(self) -> None:
        """End the load and the servers; when it is used again, new ones start."""
        self._ticker.stop()
        self.fleet.close()

    def _beat(self) -> bool:
        self.refresh()
        if time.monotonic() - self._touched > PATIENCE:
            self.fleet.rest()
            self.refresh()
            return False
        return self.error is None

    def _seen(self, change: Any) -> None:
        if change["new"] is None or (change["new"] == 0 and change["old"]):  # closed, or in no page any more
            self._ticker.stop()
            self.fleet.rest()
        elif not self._seen_here:  # labkit.reset() has ended it: only who uses it starts it again
            return
        elif change["name"] == "_view_count" and change["new"] and not self._ticker.running:
            self.press(lambda: None)

    def refresh(self) -> None:
        with self._lock:
            fleet = self.fleet
            try:
                fleet.start()
                view = fleet.view
            except (Exception, KeyboardInterrupt) as error:
                self.error = self.error or error
                self._say("", wrong=True)
                return
            for seat in view.seats:
                self.switches[seat.name].description = f"{'kill' if seat.alive else 'revive'} {seat.name}"
            self.go.description = "stop the load" if view.loaded else "start the load"
            self.heat.description = "spread the load" if fleet.hot else "one hot key"
            self.picture.value = drawn(view)
            said = f"{fleet.said} · {view.sentence}" if fleet.said else view.sentence
            self._say(fleet.said if fleet.refused else said, wrong=view.wrong or fleet.refused)

    def _static(self) -> dict[str, Any]:
        """A is killed under load, and A2 takes over; nothing is left behind."""
        with self._fleet() as fleet:
            time.sleep(0.5)
            fleet.kill("A")
            fleet.cluster.await_failover("A")
            deadline = time.monotonic() + 10
            while fleet.view.wrong and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            return {"image/svg+xml": drawn(fleet.view, ground="white", seconds=4)}


def colour(name: str) -> str:
    """The colour of a node, by its name: B2's is a lighter one of B's."""
    family = FAMILIES[(ord(name[0]) - ord("A")) % len(FAMILIES)]
    return family[min(int(name[1:] or 1), len(family)) - 1]


def drawn(view: FleetView, *, ground: str = "none", seconds: float = SECONDS) -> str:
    """The picture, as SVG: on a page (its letters are the page's), or on a ground of its own."""
    pitch = max(SIDE / len(view.seats), 36)
    below = max(SIDE, pitch * len(view.seats)) + 46
    high = below + TRACK * len(view.lanes) + 30
    nodes = (
        f'<g transform="translate({SIDE + 40} {12 + pitch * (n + 0.5)})">{_node(view, seat)}</g>'
        for n, seat in enumerate(view.seats)
    )
    parts = [f'<g transform="translate(12 12)">{_square(view)}</g>', *nodes]
    parts.append(f'<g transform="translate(12 {below})">{_past(view, seconds)}</g>')
    letters = "black" if ground != "none" else "currentColor"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {high}" role="img" width="100%" '
        f'aria-label="{escape(view.sentence)}" font-family="DejaVu Sans, Verdana, sans-serif" '
        f'font-size="17" fill="{letters}">{_STRIPES}<rect width="{WIDE}" height="{high}" fill="{ground}"/>'
        f"{''.join(parts)}</svg>"
    )


_STRIPES = (
    '<defs><pattern id="labkit-nobody" width="14" height="14" patternUnits="userSpaceOnUse" '
    f'patternTransform="rotate(45)"><rect width="14" height="14" fill="{plot.VERMILLION}"/>'
    '<rect width="5" height="14" fill="white" fill-opacity="0.22"/></pattern></defs>'
)
_NOBODY = "url(#labkit-nobody)"


def _square(view: FleetView) -> str:
    """All slots, 128 in a row; the name of who serves them stands in the middle of its longest run."""
    size = SIDE / 128
    areas, names = [], []
    longest: dict[str, tuple[int, int]] = {}
    for first, last, name in view.ranges:
        fill = colour(name) if name else _NOBODY
        areas.append(f'<path d="{_path(first, last)}" fill="{fill}"/>')
        if last - first >= longest.get(name, (0, -1))[1] - longest.get(name, (0, -1))[0]:
            longest[name] = first, last
    for name, (first, last) in longest.items():
        if last - first > 1500:
            middle = ((first + last) / 2 // 128 + 0.5) * size
            letters = "white" if not name or colour(name) in DARK else "black"
            names.append(
                f'<text x="{SIDE / 2}" y="{middle + 12}" text-anchor="middle" font-size="34" '
                f'font-weight="bold" fill="{letters}">{name or "nobody"}</text>'
            )
    dots = "".join(_dot(slot, ok, size) for slot, ok in view.recent)
    return (
        f'<g transform="scale({size})" shape-rendering="crispEdges">{"".join(areas)}</g>'
        f"{dots}{''.join(names)}"
        f'<text y="{SIDE + 20}" font-size="15">16,384 slots · dots are requests</text>'
    )


def _path(first: int, last: int) -> str:
    """The outline of the slots first to last in a grid of 128 a row: up to three rectangles."""
    top, left = divmod(first, 128)
    bottom, right = divmod(last, 128)
    if top == bottom:
        return f"M{left} {top}h{right - left + 1}v1h{left - right - 1}z"
    head = f"M{left} {top}H128v1H{left}z"
    body = f"M0 {top + 1}H128V{bottom}H0z" if bottom > top + 1 else ""
    return f"{head}{body}M0 {bottom}H{right + 1}v1H0z"


def _dot(slot: int, ok: bool, size: float) -> str:
    y, x = ((at + 0.5) * size for at in divmod(slot, 128))
    if ok:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="white" stroke="black" stroke-width="0.6"/>'
    d = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
    return f'<path d="{d}" stroke="black" stroke-width="2.6"/>'


def _node(view: FleetView, seat: Seat) -> str:
    """A row around y = 0: colour, name, role, and a bar for the requests that it answers."""
    left, room = 300, WIDE - SIDE - 430
    most = max(200.0, *(other.per_second for other in view.seats))
    long = room * seat.per_second / most
    own, wrong = colour(seat.name), "" if seat.alive else f'fill="{plot.VERMILLION}"'
    mark = f'<rect x="2" y="-14" width="28" height="28" rx="5" fill="{own}"/>'
    if not seat.alive:
        mark = (
            f'<g fill="none" stroke="{plot.VERMILLION}" stroke-width="4"><rect x="2" y="-14" width="28" '
            'height="28" rx="5"/><path d="M4 -12l24 24m0 -24l-24 24"/></g>'
        )
    slots = f" · {seat.slots:,} slots" if seat.slots else ""
    weight = "bold" if seat.slots or not seat.alive else "normal"
    number = f"{seat.per_second:,.0f}/s" if seat.slots else ""
    return (
        f'{mark}<text x="42" y="6" {wrong}><tspan font-weight="bold" font-size="20">{seat.name}</tspan>'
        f'<tspan x="84" font-weight="{weight}">{seat.role}</tspan>{slots}</text>'
        f'<rect x="{left}" y="-13" width="{long:.1f}" height="26" rx="4" fill="{own}"/>'
        f'<text x="{left + long + 8:.1f}" y="6">{number}</text>'
    )


def _past(view: FleetView, seconds: float) -> str:
    """A row for each part of the slots: who answered when, and where nobody did."""
    left, right = 160, WIDE - 30
    scale = (right - left) / seconds

    def x(ago: float) -> float:
        return right - min(max(ago, 0.0), seconds) * scale

    bed = f'<rect x="{left}" y="2" width="{right - left}" height="{TRACK - 6}" opacity="0.08"/>'
    tracks = [
        f'<g transform="translate(0 {n * TRACK})"><text y="22">{lane.name}</text>{bed}{_track(lane, x)}</g>'
        for n, lane in enumerate(view.lanes)
    ]
    low = len(view.lanes) * TRACK + 20
    said = {seconds * part / 4: f"−{seconds * part / 4:g} s" for part in range(1, 5)} | {0: "now"}
    ticks = [f'<text x="{x(ago)}" y="{low}">{text}</text>' for ago, text in said.items()]
    axis = f'<g text-anchor="middle" font-size="15">{"".join(ticks)}</g>'
    return f"{''.join(tracks)}{axis}" if tracks else ""


def _track(lane: Lane, x: Callable[[float], float]) -> str:
    """Each span with its name, and time without an answer with its length, where there is room."""
    spans = [(span.begin, span.end, colour(span.name), span.name) for span in lane.spans]
    gaps = [(span.begin + span.gap, span.begin, span.gap) for span in lane.spans if span.gap]
    gaps += [(lane.silent, 0.0, lane.silent)] if lane.silent else []
    spans += [(begin, end, _NOBODY, f"{gap:.1f} s") for begin, end, gap in gaps]
    parts = []
    for begin, end, fill, said in spans:
        first, wide = x(begin), x(end) - x(begin)
        if wide < 0.5:
            continue
        parts.append(f'<rect x="{first:.1f}" y="2" width="{wide:.1f}" height="{TRACK - 6}" fill="{fill}"/>')
        if wide > 12 * len(said):
            letters = "white" if fill in DARK or fill == _NOBODY else "black"
            parts.append(
                f'<text x="{first + wide / 2:.1f}" y="22" text-anchor="middle" font-weight="bold" '
                f'fill="{letters}">{said}</text>'
            )
    return "".join(parts)
