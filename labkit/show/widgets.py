"""Playgrounds: a few controls, a picture that follows them, and a line that says how it went.

    Playground({"rate": IntSlider(…)}, draw, name="bucket", title="A token bucket")   # draw(rate=…) gives a
    Figure

A playground holds no logic: `draw` gets the controls' values as keyword arguments and returns a Figure that
was made without pyplot (`plot.figure`). Where nobody watches, it shows the picture of the first settings.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw
from IPython.display import publish_display_data
from matplotlib.figure import Figure

import labkit
from labkit.rate_limiter import GCRA, FixedWindow, NaiveSortedSet, SlidingCounter, SlidingLog, TokenBucket
from labkit.rig.model import Trials
from labkit.rig.traffic import SHAPES, Clock, replay
from labkit.show import plot

if TYPE_CHECKING:
    from labkit.rig.proxy import Proxy

__all__ = ["Playground", "limiter", "pipelining", "png"]


class Playground:
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
        width = {"width": f"{plot.WIDTH * 100:.0f}px", "max_width": "100%"}
        self.picture = ipw.Image(format="png", layout=width)
        self.status = ipw.Label()
        row = ipw.HBox(list(self.controls.values()), layout={"flex_flow": "wrap"})
        self.box = ipw.VBox([row, self.picture, self.status])
        for widget, css in ((self.box, name), (self.picture, "picture"), (self.status, "status")):
            widget.add_class(f"labkit-{css}")
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

    def __repr__(self) -> str:
        return f"<Playground: {self.title}>"

    def _ipython_display_(self) -> None:
        if labkit.in_browser():
            self.refresh()
            bundle = self.box._repr_mimebundle_()
        else:
            bundle = {"image/png": png(self.draw(**self.settings))}
        publish: Any = publish_display_data
        publish({**bundle, "text/plain": repr(self)}, {"image/png": {"width": round(plot.WIDTH * 100)}})

    def _changed(self, _: object) -> None:
        self.refresh()

    def _spoken(self) -> str:
        return ", ".join(
            f"{control.description or name} {control.value}" for name, control in self.controls.items()
        )


def png(figure: Figure) -> bytes:
    """The figure as a PNG, at twice the resolution of the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi)
    return buffer.getvalue()


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
        "delay": ipw.FloatSlider(2.0, min=0, max=20, step=0.5, description="RTT (ms)", readout_format=".1f"),
        "batch": ipw.SelectionSlider(
            options=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], value=50, description="batch"
        ),
        "commands": ipw.IntSlider(100, min=50, max=2000, step=50, description="commands"),
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
        "algorithm": ipw.Dropdown(
            options=[kind.__name__ for kind in kinds], value="TokenBucket", description="algorithm"
        ),
        "traffic": ipw.Dropdown(options=list(SHAPES), value="bursts", description="traffic"),
        "limit": ipw.IntSlider(10, min=1, max=30, description="limit"),
        "window": ipw.FloatSlider(1.0, min=0.5, max=3, step=0.5, description="window (s)"),
    }
    return Playground(controls, draw, name="limiter", title="which requests does a limiter admit?")
