"""Bars with names and numbers that glide to their new length and place: HTML that the browser moves.

    bars = MovingBars(places=10)
    bars.box                                                # the widget
    bars.show([Bar("ada", "#0072B2", 120, 1.0, 0), Bar("bob", "#D55E00", 60, 0.5, 1)])

What is in the page stays; a change is one short style sheet, to which CSS transitions lead. Numbers count up
on the way (CSS counters of a registered property: browsers from 2024 on).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as ipw

_fresh = itertools.count(1)


@dataclass(frozen=True)
class Bar:
    """A row: its bar is `share` (0 to 1) of the whole long; `place` counts from 0 (None: out of sight).

    `note` stands behind the number; a `faint` row is out of action.
    """

    name: str
    colour: str
    number: int
    share: float
    place: int | None
    note: str = ""
    faint: bool = False


# The colours of text and rules let the page's through, so it looks alike on a light and on a dark page.
_STYLE = """<style>
@property --labkit-number {{ syntax: "<integer>"; inherits: true; initial-value: 0 }}
.{css} {{ position: relative; height: {height}px; max-width: 1100px; overflow: hidden;
  font-size: {letters}px; line-height: {row}px }}
.{css} .labkit-gutter {{ position: absolute; left: 0; width: 1.6em; text-align: right; opacity: 0.55 }}
.{css} .labkit-row {{ position: absolute; left: {left}em; right: 0; top: calc(var(--place) * {row}px);
  height: {row}px; display: flex; white-space: nowrap; --labkit-number: 0;
  transition: top 0.6s ease-in-out, opacity 0.4s, --labkit-number {seconds}s linear }}
.{css} .labkit-name {{ width: {wide}em; overflow: hidden; text-overflow: ellipsis; font-weight: bold }}
.{css} .labkit-track {{ flex: 1; min-width: 0; display: flex; align-items: center }}
.{css} .labkit-bar {{ display: block; height: {bar}px; min-width: 3px; border-radius: 4px;
  width: calc(var(--share) * (100% - {room}em)); transition: width {seconds}s linear }}
.{css} .labkit-number {{ padding-left: 0.4em; font-variant-numeric: tabular-nums }}
.{css} .labkit-number::after {{ counter-reset: number var(--labkit-number); content: counter(number) }}
.{css} .labkit-note {{ padding-left: 0.6em; opacity: 0.75 }}
.{css} .labkit-note::after {{ content: var(--note) }}
@media (prefers-reduced-motion: reduce) {{ .{css} .labkit-row, .{css} .labkit-bar {{ transition: none }} }}
</style>"""


class MovingBars:
    """So many places below each other; `box` is the widget, `show` the way to change it.

    Rows are `row` pixels high, names `wide` letters wide, and `room` letters stay free for numbers and notes.
    `seconds` is how long a bar takes to its new length. `ranks` numbers the places from 1.
    """

    def __init__(
        self,
        places: int,
        *,
        row: int = 40,
        wide: float = 5.5,
        room: float = 7,
        seconds: float = 0.5,
        ranks: bool = False,
    ) -> None:
        self.css = f"labkit-bars-{next(_fresh)}"
        self.places = places
        self._names: dict[str, None] = {}
        self._last: dict[str, int | None] = {}
        self._gutter = "".join(
            f'<span class="labkit-gutter" style="top:{place * row}px">{place + 1}</span>'
            for place in (range(places) if ranks else ())
        )
        sizes = {"row": row, "bar": round(0.7 * row), "letters": round(0.55 * row), "height": places * row}
        look = {"wide": wide, "room": room, "seconds": seconds, "left": 2.2 if ranks else 0}
        style = _STYLE.format(css=self.css, **sizes, **look)
        self._rows, self._now = ipw.HTML(self._page()), ipw.HTML()
        self.box = ipw.VBox([ipw.HTML(style), self._now, self._rows])

    def show(self, bars: Sequence[Bar]) -> None:
        """These rows, and no others; one message to the browser, or two where a name is new."""
        shown = {bar.name: bar for bar in bars}
        new = [bar for bar in bars if bar.name not in self._names]
        self._names |= dict.fromkeys(bar.name for bar in new)
        rules = "".join(self._rule(n, shown.get(name)) for n, name in enumerate(self._names))
        self._now.value = f"<style>{rules}</style>"
        if new:
            self._rows.value = self._page()
        self._last = {name: bar.place for name, bar in shown.items()}

    def _page(self) -> str:
        rows = "".join(_row(n, name) for n, name in enumerate(self._names))
        return f'<div class="{self.css}" role="list">{self._gutter}{rows}</div>'

    def _rule(self, number: int, bar: Bar | None) -> str:
        this = f".{self.css} .labkit-row-{number}"
        if bar is None or bar.place is None:
            return f"{this}{{--place:{self.places};opacity:0}}"
        before = self._last.get(bar.name)
        above = 2 if before is not None and bar.place < before else 1  # who climbs passes in front
        what = f"--place:{bar.place};--share:{min(max(bar.share, 0), 1):.4f};--labkit-number:{bar.number}"
        look = f"opacity:{0.6 if bar.faint else 1};z-index:{above};--note:{_quoted(bar.note)}"
        return f"{this}{{{what};{look}}}{this} .labkit-bar{{background:{bar.colour}}}"


def _row(number: int, name: str) -> str:
    inside = (
        f'<span class="labkit-name" title="{escape(name)}">{escape(name)}</span>'
        '<span class="labkit-track"><i class="labkit-bar"></i><span class="labkit-number"></span>'
        '<span class="labkit-note"></span></span>'
    )
    return f'<div class="labkit-row labkit-row-{number}" role="listitem">{inside}</div>'


def _quoted(text: str) -> str:
    """A CSS string; whatever could end it, or the style sheet, is written as a number."""
    safe: Any = (c if c.isalnum() or c in " .,:·✗✓▲▼×%" else f"\\{ord(c):x} " for c in text)
    return f'"{"".join(safe)}"'
