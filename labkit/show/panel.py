"""What all widgets are made of: how one shows itself, rows of buttons, the status line, a figure as a PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as ipw
from IPython.display import publish_display_data
from matplotlib.figure import Figure

import labkit
from labkit.rig.lanes import WRONG
from labkit.show import plot


class Shown:
    """Shows itself as the last value of a cell: `box` where somebody watches, else what `_static` gives."""

    title: str
    box: Any
    picture: Any
    _seen_here = False

    def _follow_style(self, name: str) -> None:
        """Give the box its classes, put the style's sheet beside it, and follow the style from now on."""
        self._sheet = ipw.HTML(layout={"display": "none"})
        self._page = ipw.VBox([self._sheet, self.box])
        for css in ("labkit-widget", f"labkit-{name}"):
            self.box.add_class(css)
        plot.follow(self)

    def restyle(self) -> None:
        """What `plot.use_style` does to it: the sizes of the style of now; drawn anew if it is on a page."""
        self._sheet.value = plot.css()
        if isinstance(self.picture, ipw.Image):
            self.picture.layout.width = f"{plot.pixels()}px"
        if self._seen_here:
            self.refresh()

    def refresh(self) -> None:
        """Show how things stand now; never raises."""
        raise NotImplementedError

    def close(self) -> None:
        """End what it has going, such as threads and servers; nothing, where it has nothing."""

    def end(self) -> None:
        """What `labkit.reset()` does to it: close it, and have it say so; never raises."""
        self._seen_here = False

    def _static(self) -> dict[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title}>"

    def _ipython_display_(self) -> None:
        if labkit.in_browser():
            self._seen_here = True
            self.refresh()
            bundle = self._page._repr_mimebundle_()
        else:
            bundle = self._static()
        publish: Any = publish_display_data
        sizes = {"image/png": {"width": plot.pixels()}} if "image/png" in bundle else {}
        publish({**bundle, "text/plain": repr(self)}, sizes)


class Pressed(Shown):
    """Has buttons; `press` is what each of them does, and `.error` what the last one raised, or None."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.status = ipw.HTML()

    def _put_together(self, name: str, *rows: Any) -> None:
        self.box = ipw.VBox([*rows, self.status, self.picture])
        self.picture.add_class("labkit-picture")
        self.status.add_class("labkit-status")
        self._follow_style(name)

    def press(self, act: Callable[[], object]) -> None:
        """Act, then show how things stand; never raises."""
        self.status.value, self.error, self._seen_here = "…", None, True
        try:
            act()
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
        self.refresh()

    def end(self) -> None:
        """Close it, and say so where there was something to end; what that raises is kept in `.error`."""
        self.error, self._seen_here = None, False
        try:
            self.close()
        except Exception as error:
            self.error = error
        if type(self).close is not Shown.close:
            self._say("ended by labkit.reset(): run its cell again", wrong=False)

    def _say(self, text: str, wrong: bool) -> None:
        """The status line; an error goes before."""
        said = f"{type(self.error).__name__}: {self.error}" if self.error else text
        colour = f"color:{WRONG}" if self.error or wrong else ""
        self.status.value = f'<b role="status" style="{colour}">{escape(said)}</b>'


def png(figure: Figure) -> bytes:
    """The figure as a PNG, at twice the resolution of the page."""
    buffer = io.BytesIO()
    plot.fit_titles(figure)
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi)
    return buffer.getvalue()


WIDE = {"max_width": "100%"}
"""The layout of a picture; its width is the style's."""


def row(*children: Any) -> Any:
    return ipw.HBox(children, layout={"flex_flow": "wrap"})


def button(text: str, css: str, act: Callable[[], object]) -> Any:
    made = ipw.Button(description=text, layout={"width": "auto", "max_width": "100%"})
    made.add_class(f"labkit-{css}")
    made.on_click(lambda _: act())
    return made


def choice(name: str, options: Sequence[str], value: str) -> Any:
    """A button for each option; no Dropdown, since JupyterLab takes the arrow keys of a list for its own."""
    style = {"button_width": "auto", "description_width": "initial"}
    made = ipw.ToggleButtons(options=options, value=value, description=name, style=style, tooltip=name)
    made.tooltips = [f"{name}: {option}" for option in options]
    return made
