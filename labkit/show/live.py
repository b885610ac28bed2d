"""A leaderboard in front of a class: a game runs, bars grow and pass each other.

    LiveBoard(Leaderboard(r, "workbook:09:live"))

The game plays in a thread of its own while it runs: other cells may look at the board, or score on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ipywidgets as ipw

from labkit.rig.game import Game
from labkit.show import plot
from labkit.show.bars import Bar, MovingBars
from labkit.show.panel import Pressed, button, png, row
from labkit.show.ticker import Ticker

BEAT = 0.5
"""Seconds from one look at the board to the next."""

PATIENCE = 600
"""The game halts by itself after so many seconds without a hand on it."""

COLOURS = (*plot.PALETTE[:6], "#7F7F7F", "#5C4EB0", "#8C5A2B", "#9BBB3C", "#99244F", "#2F6F73")


class LiveBoard(Pressed):
    """The first `places` of `board`, live: start or pause the game, choose its speed, boost a player.

    `board` is a Leaderboard, or whatever has its `top`, `rank`, `increment`, `remove` and length. The game's
    `players` (their number, or names) are `Game`'s, with its `seed`; who else scores on the board is shown
    too. A name keeps its colour. "start again" takes the game's players off the board.

    While the game runs, a thread plays half a second of it twice a second, `speed` times as fast. It is gone
    after `pause()` or `close()`, when no page shows the widget any more, after ten minutes in which nothing
    was pressed, when the board does not answer (the status line says so; `.error`), and when the kernel ends.

    In the browser the parts are found by their classes: `labkit-board`, `-picture`, `-status`, `-start`,
    `-again`, `-speed`, `-player`, `-boost`.
    """

    def __init__(
        self, board: Any, players: int | Sequence[str] = 12, *, seed: int = 9, places: int = 10
    ) -> None:
        super().__init__()
        if not 1 <= places <= 12:
            raise ValueError(f"places is {places!r}; it must be 1 to 12")
        self.board, self.places = board, places
        self._new_game = partial(Game, board, players, seed=seed)
        self.game = self._new_game()
        self.title = f"a game of {len(self.game.names)} players"
        self.playing = False
        self._colours: dict[str, str] = {}
        self._before: dict[str, int] = {}
        self._climbed: dict[str, int] = {}
        self._beats = self._untouched = 0
        self._lock = threading.RLock()
        self._ticker = Ticker(self._beat, BEAT)
        self.bars = MovingBars(places, ranks=True, seconds=BEAT)
        self.picture = self.bars.box
        self.status.style.font_size = "20px"
        self._put_together("board", *self._controls())
        self.box._view_count = 0  # counted by the page from now on
        self.box.observe(self._seen, names=["_view_count", "comm"])

    def _controls(self) -> tuple[Any, Any]:
        self.go = button("start", "start", lambda: self.press(self.pause if self.playing else self.start))
        again = button("start again", "again", lambda: self.press(self.start_again))
        wide = {"description_width": "initial"}
        speeds = [(f"× {factor}", factor) for factor in (1, 2, 3, 5, 10)]
        self.speed = ipw.SelectionSlider(options=speeds, description="speed", style=wide)
        # no Dropdown: JupyterLab takes the arrow keys of a list for its own
        self.player = ipw.SelectionSlider(options=self.game.names, description="player", style=wide)
        self.speed.tooltip, self.player.tooltip = "how fast the game goes", "whom to boost and to follow"
        push = button("boost", "boost", lambda: self.press(self.boost))
        self.speed.layout.margin = "2px 2px 2px 16px"
        for made, css in ((self.speed, "speed"), (self.player, "player")):
            made.add_class(f"labkit-{css}")
            made.observe(lambda _: self.press(lambda: None), names="value")
        for made in (self.go, again, push):
            made.layout.width = "9em"
        return row(self.go, again, self.speed), row(self.player, push)

    def start(self) -> None:
        """Let the game go on."""
        self.playing = True
        self._ticker.start()

    def pause(self) -> None:
        """Halt the game; when this returns, its thread is gone."""
        self.playing = False
        self._ticker.stop()

    def start_again(self) -> None:
        """Take the game's players off the board, and begin the same game anew, without boosts."""
        with self._lock:
            self.board.remove(*self.game.names)
            self.game = self._new_game()
            self._before.clear()
            self._climbed.clear()

    def boost(self, player: str | None = None) -> None:
        """Let a player, else the chosen one, score five times as often for ten seconds of the game."""
        with self._lock:
            self.game.boost(player or self.player.value)

    def close(self) -> None:
        """Halt the game; the board stays as it is."""
        self.pause()
        self.go.description = "start"

    def press(self, act: Callable[[], object]) -> None:
        self._untouched = 0
        super().press(act)

    def _beat(self) -> bool:
        with self._lock:
            self._beats, self._untouched = self._beats + 1, self._untouched + 1
            try:
                self.game.play(BEAT * self.speed.value)
            except Exception as error:
                self.error = error
            self.refresh()
            if self.error or self._untouched * BEAT >= PATIENCE:
                self.playing = False
                self.refresh()
            return self.playing

    def _seen(self, change: Any) -> None:
        if change["new"] is None or (change["new"] == 0 and change["old"]):  # closed, or in no page any more
            self.pause()
            self.refresh()

    def refresh(self) -> None:
        with self._lock:
            self.go.description = "pause" if self.playing else "start"
            try:
                top = self.board.top(self.places)
                said = self._said(top)
            except (Exception, KeyboardInterrupt) as error:
                self.error, said = self.error or error, ""
            else:
                self.bars.show(self._bars(top))
            self._say(said, wrong=False)

    def _bars(self, top: Sequence[Any]) -> list[Bar]:
        most = max((place.points for place in top), default=0)
        bars = []
        for n, place in enumerate(top):
            name = place.member
            if n < self._before.get(name, self.places if name in self._colours else n):
                self._climbed[name] = self._beats
            climbs = self._beats - self._climbed.get(name, -99) < 4
            colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
            note = "boost " * self.game.boosted(name) + "▲" * climbs
            bars.append(Bar(name, colour, place.points, place.points / max(most, 1), n, note))
        self._before = {place.member: n for n, place in enumerate(top)}
        return bars

    def _said(self, top: Sequence[Any]) -> str:
        if not top:
            return "nobody has scored yet: press start"
        chosen, count = self.player.value, len(self.board)
        place = next((place for place in top if place.member == chosen), None) or self.board.rank(chosen)
        where = f"{place.rank} of {count}, {place.points:,} points" if place else "no points yet"
        state = "playing" if self.playing else "paused"
        return f"{state} · {top[0].member} leads · {chosen}: {where}"

    def _static(self) -> dict[str, Any]:
        """Half a minute of the game on an empty board, whose players leave it again; else the board."""
        empty = not len(self.board)
        if empty:
            self.game.play(30)
        try:
            top = self.board.top(self.places)
            points = {place.member: place.points for place in top}
            since = " after half a minute of the game" if empty else ""
            figure, ax = plot.figure(0.12 + 0.05 * len(points))
            colours = {bar.name: bar.colour for bar in self._bars(top)}
            plot.bars(points, ax, title=f"{top[0].member} leads{since}", unit="points", colors=colours)
            return {"image/png": png(figure)}
        finally:
            if empty:
                self.start_again()
