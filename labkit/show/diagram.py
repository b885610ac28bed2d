"""How `plot.lanes` draws a trace: a sequence diagram in inches, x to the right and time downward."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from labkit.rig import lanes
from labkit.rig.lanes import FAULT, REDIS, WRONG, Entry, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from labkit.rig.trace import Trace

INK, PALE, SHADE, MARK = "#000000", "#6B6B6B", "#F1F1F1", "#FBEADF"

_OWN = ("sleep", "outside")  # steps that do not touch Redis: nothing goes there and back
_SHORT = ("sleep", "crash", "expire")
MOST = 5
"""So many keys of a state are shown."""

_ABOVE, _ON, _BELOW = 3, 2, 1  # the order in which things cover each other


class Diagram:
    """A trace, and where each part of it goes in letters of the current style; `draw` draws it."""

    def __init__(self, trace: Trace, width: float) -> None:
        self.trace, self.width, self.rows = trace, width, lanes.layout(trace)
        size = float(mpl.rcParams["font.size"])
        self.size, self.mono = size, 0.92 * size
        self.line, self.char = 1.25 * self.mono / 72, 0.602 * self.mono / 72
        self._columns()
        self.tops = self._tops()
        self.height = self.tops[-1] + self.line * (0.5 + 1.35 * len(self._footer()))

    def _columns(self) -> None:
        """Lanes as near to each other as their titles allow, so that commands and states have room."""
        self.before = tuple(Entry(key, value, "same") for key, value in self.trace.before)
        states = [self.before, *(row.state for row in self.rows)]
        side = max(1.7, self._room(_words(entry) for state in states for entry in state))
        commands = self._room(step.command for step in self.trace.steps)
        clients, margin = self.trace.clients, 0.55 * self.size / 13
        beside = max(text_width(f"{letter} · {name}", self.size) for letter, name in clients) + 0.22
        below = max(text_width(name, self.size) for _, name in clients) + 0.22
        free = self.width - margin
        self.one_line = len(clients) * beside <= max(0.25 * free, free - side - commands)
        self.apart = min(max(0.7, beside if self.one_line else below), 0.4 * free / len(clients))
        free -= len(clients) * self.apart
        self.redis = self.width - min(side, max(free - commands, 0.43 * free))
        self.lane = {name: margin + self.apart * (i + 0.4) for i, (name, _) in enumerate(clients)}
        self.margin, self.left = margin, max(self.lane.values()) + 0.16
        self.fits = int((self.redis - 0.22 - self.left) / self.char)
        self.state_fits = int((self.width - self.redis - 0.3) / self.char)

    def _room(self, texts: Iterable[str]) -> float:
        return self.char * min(max(map(len, texts), default=0), 34) + 0.5

    def _tops(self) -> list[float]:
        """Where each row begins, and where the last one ends; each state has room until the next change."""
        began = self.line * (1.6 if self.one_line else 2.7)
        room = began + self.line * (_lines(self.before) + 0.4)
        tops = [room]
        for row in self.rows:
            if row.changed:
                tops[-1] = max(tops[-1], room)
                room = tops[-1] + self.line * (_lines(row.state) + 0.9)
            tops.append(tops[-1] + self._own_height(row))
        tops[-1] = max(tops[-1], room)
        self.began = began
        return tops

    def _own_height(self, row: Row) -> float:
        short = row.step.kind in _SHORT or row.step.reply == "(waits)"
        return self.line * ((1.9 if short else 2.8) + 1.2 * len(row.step.woken))

    def _footer(self) -> list[tuple[str, str]]:
        """Lines below the lanes with their colours: what clients returned, and what is wrong."""
        trace, said = self.trace, ""
        if trace.finished and any(result != "(nil)" for result in trace.results):
            returned = [
                f"{letter}: {result}"
                for (letter, _), result in zip(trace.clients, trace.results, strict=True)
            ]
            said = "results   " + "   ".join(returned)
        wrong = f"✗ {trace.wrong}" if trace.wrong else ""
        letters = int((self.width - 0.3) / (0.68 * self.size / 72))
        return [
            (line, color)
            for text, color in ((said, INK), (wrong, WRONG))
            for line in textwrap.wrap(text, letters)
        ]

    def draw(self, ax: Axes) -> None:
        """Draw everything; the axes has no ticks, and its x and y are inches."""
        ax.set_axis_off()
        ax.set(xlim=(0, self.width), ylim=(self.height, 0))
        self._lifelines(ax)
        self._states(ax)
        for top, row in zip(self.tops, self.rows, strict=False):
            self._row(ax, row, top)
        for number, (text, color) in enumerate(self._footer()):
            y = self.tops[-1] + self.line * (0.75 + 1.35 * number)
            self._say(ax, 0.1, y, text, color=color, weight="bold", family=None, size=self.size)

    def _say(self, ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
        look = {"family": "DejaVu Sans Mono", "size": self.mono, "va": "center", "zorder": _ABOVE, **look}
        ax.text(x, y, text, **{key: value for key, value in look.items() if value is not None})

    def _lifelines(self, ax: Axes) -> None:
        """From each title down to the client's end; dotted while it waits."""
        bottom = self.tops[-1]
        for letter, name in self.trace.clients:
            x, color = self.lane[letter], lanes.colour(self.trace, letter)
            while not self.one_line and text_width(name, self.size) > self.apart - 0.08:
                name = name.removesuffix("…")[:-1] + "…"
            self._title(ax, x, f"{letter} · {name}" if self.one_line else f"{letter}\n{name}", color)
            life, since = "runs", self.began
            for row, top in zip(self.rows, self.tops, strict=False):
                if row.lives[letter] != life:
                    turn = self._turn(row, top, letter)
                    self._life(ax, x, since, turn, life, color)
                    life, since = row.lives[letter], turn
            self._life(ax, x, since, bottom, life, color)
        self._title(ax, self.redis, "Redis", INK)
        ax.plot(
            [self.redis] * 2,
            [self.began, bottom],
            color=REDIS,
            linewidth=6,
            solid_capstyle="butt",
            zorder=_ON,
        )

    def _turn(self, row: Row, top: float, letter: str) -> float:
        """Where in this row a client begins to wait, goes on, or ends."""
        if letter in dict(row.step.woken):
            return self._woken(row, top, [who for who, _ in row.step.woken].index(letter))
        ends = row.lives[letter] == "done" and row.step.kind not in _OWN
        return self._reply(top) if ends or row.step.kind == "timeout" else self._request(row, top)

    def _title(self, ax: Axes, x: float, text: str, color: str) -> None:
        y = self.began - self.line * 0.35
        ax.text(x, y, text, color=color, weight="bold", ha="center", va="baseline", linespacing=1.15)

    def _life(self, ax: Axes, x: float, since: float, until: float, life: str, color: str) -> None:
        if life in ("runs", "waits"):
            dashes: Any = (0, (1, 1)) if life == "waits" else "-"
            ax.plot(
                [x, x],
                [since, until],
                color=color,
                linewidth=3.5,
                linestyle=dashes,
                solid_capstyle="butt",
                dash_capstyle="butt",
                zorder=_BELOW,
            )

    def _request(self, row: Row, top: float) -> float:
        return top + self.line * (1.2 if row.step.kind not in _SHORT else 0.9)

    def _reply(self, top: float) -> float:
        return top + self.line * 2.2

    def _woken(self, row: Row, top: float, number: int) -> float:
        return top + self._own_height(row) - self.line * (0.55 + 1.2 * (len(row.step.woken) - 1 - number))

    def _row(self, ax: Axes, row: Row, top: float) -> None:
        self._number(ax, row, top)
        y, step = self._request(row, top), row.step
        if step.kind == "expire":
            self._fault(ax, self.redis, y, "D", 12)
            self._badge(ax, self.redis - 0.22, y, step.command, ha="right")
        elif step.kind == "crash":
            self._fault(ax, self.lane[step.who], y, "X", 16)
            self._badge(ax, self.left, y, step.command)
        else:
            self._command(ax, row, top)
        for number, (letter, reply) in enumerate(step.woken):
            color, ground = lanes.colour(self.trace, letter), MARK if row.wrong else "white"
            self._back(ax, letter, self._woken(row, top, number), reply, color, "wait ends", ground)

    def _number(self, ax: Axes, row: Row, top: float) -> None:
        """At the left, the step's number, or the mark that it went wrong here."""
        look = {"weight": "bold", "color": WRONG} if row.wrong else {"color": PALE}
        if row.wrong:
            ax.fill_between(
                [0, self.redis], top, top + self._own_height(row), color=MARK, linewidth=0, zorder=0
            )
        text, y = f"✗ {row.number}" if row.wrong else str(row.number), self._request(row, top)
        self._say(ax, self.margin - 0.13, y, text, ha="right", family=None, size=self.size, **look)

    def _fault(self, ax: Axes, x: float, y: float, marker: str, size: float) -> None:
        ax.plot([x], [y], marker, color=FAULT, markeredgecolor=INK, markersize=size, zorder=_ABOVE)

    def _command(self, ax: Axes, row: Row, top: float) -> None:
        step, y, x = row.step, self._request(row, top), self.lane[row.step.who]
        color = WRONG if row.wrong else lanes.colour(self.trace, step.who)
        waits, over = step.reply == "(waits)", step.kind == "timeout"
        marker = "s" if step.kind == "outside" else "o"
        text_y = y if step.kind == "sleep" else y - 0.55 * self.line
        ax.plot([x], [text_y if step.kind in _OWN else y], marker, color=color, markersize=9, zorder=_ABOVE)
        command = step.command.removesuffix(" times out") if over else step.command
        self._say(ax, self.left, text_y, _cut(command, self.fits - 9 * waits), weight="bold")
        if step.kind in _OWN:
            self._say(
                ax, self.left, text_y + self.line, _cut(f"→ {step.reply}" * bool(step.reply), self.fits)
            )
            return
        if not over:
            self._arrow(ax, x, self.redis, y, color)
        if waits:
            self._badge(ax, self.redis - 0.3, text_y, "waits", ha="right")
            return
        badge = "times out" if over else "reply lost" if step.lost else ""
        self._back(ax, step.who, self._reply(top), step.reply, color, badge, MARK if row.wrong else "white")

    def _back(self, ax: Axes, letter: str, y: float, reply: str, color: str, badge: str, ground: str) -> None:
        """A reply on its way from Redis to a client, or up to where it is lost."""
        lost = badge == "reply lost"
        end = self.lane[letter]
        if lost:
            end = self.left + self.char * (len(badge) + 3)
            self._fault(ax, end, y, "X", 14)
        room = self.fits - (len(badge) + 4 if badge else 2)
        said = f"({reply})" if lost else reply
        self._say(
            ax,
            self.redis - 0.28,
            y,
            _cut(said, room),
            ha="right",
            color=PALE if lost else INK,
            bbox={"facecolor": ground, "edgecolor": "none", "pad": 2},
        )
        if badge:
            self._badge(ax, self.left, y, badge)
        self._arrow(ax, self.redis, end, y, color, linestyle=(0, (4, 3)), head=not lost)

    def _arrow(self, ax: Axes, x: float, to: float, y: float, color: str, **look: Any) -> None:
        head = look.pop("head", True)
        style: dict[str, Any] = {
            "arrowstyle": "-|>,head_length=0.55,head_width=0.28" if head else "-",
            "color": color,
        }
        style |= {"linewidth": 2.2, "shrinkA": 0, "shrinkB": 5 if to == self.redis else 2, **look}
        ax.annotate("", (to, y), (x, y), arrowprops=style, zorder=_ON)

    def _badge(self, ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
        box = {"boxstyle": "round,pad=0.25", "facecolor": "#FFF3D6", "edgecolor": FAULT, "linewidth": 2}
        self._say(
            ax,
            x + 0.06,
            y,
            text,
            **{"bbox": box, "family": None, "size": self.mono, "weight": "bold", **look},
        )

    def _states(self, ax: Axes) -> None:
        """Beside Redis, what stands in it: a box from each change to the next."""
        turns = [(self.began, self.before)]
        turns += [(top, row.state) for top, row in zip(self.tops, self.rows, strict=False) if row.changed]
        ends = [top for top, _ in turns[1:]] + [self.tops[-1]]
        for (top, state), end in zip(turns, ends, strict=True):
            ax.fill_between(
                [self.redis + 0.13, self.width], top + 0.03, end - 0.03, color=SHADE, linewidth=0, zorder=0.5
            )
            self._entries(ax, state, top)

    def _entries(self, ax: Axes, state: Sequence[Entry], top: float) -> None:
        if not state:
            self._say(ax, self.redis + 0.22, top + self.line * 0.75, "(empty)", color=PALE)
        for number, entry in enumerate(state[: MOST - (len(state) > MOST)]):
            y = top + self.line * (0.75 + number)
            look = {"new": ("bold", INK), "same": (None, PALE), "gone": (None, PALE)}[entry.change]
            self._say(
                ax,
                self.redis + 0.22,
                y,
                _cut_value(_words(entry), self.state_fits),
                weight=look[0],
                color=look[1],
            )
        if len(state) > MOST:
            y = top + self.line * (MOST - 0.25)
            self._say(ax, self.redis + 0.22, y, f"… and {len(state) - MOST + 1} more", color=PALE)


def _words(entry: Entry) -> str:
    return f"{entry.key} is gone" if entry.change == "gone" else f"{entry.key} = {entry.value}"


def _lines(state: Sequence[Entry]) -> int:
    return max(1, min(len(state), MOST))


def text_width(text: str, size: float) -> float:
    """How many inches a bold text takes."""
    return float(
        TextPath((0, 0), text, size=size, prop=FontProperties(weight="bold")).get_extents().width / 72
    )


def _cut_value(text: str, most: int) -> str:
    """Cut short, but for the TTL at its end."""
    value, ttl, left = text.rpartition(" · TTL ")
    return _cut(value, most - len(ttl + left)) + ttl + left if value else _cut(text, most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"
