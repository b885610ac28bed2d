"""What all widgets are made of: how one shows itself, rows of buttons, the status line, a figure as a PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
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

    def refresh(self) -> None:
        """Show how things stand now; never raises."""
        raise NotImplementedError

    def _static(self) -> dict[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title}>"

    def _ipython_display_(self) -> None:
        if labkit.in_browser():
            self.refresh()
            bundle = self.box._repr_mimebundle_()
        else:
            bundle = self._static()
        publish: Any = publish_display_data
        sizes = {"image/png": {"width": round(plot.WIDTH * 100)}} if "image/png" in bundle else {}
        publish({**bundle, "text/plain": repr(self)}, sizes)


class Pressed(Shown):
    """Has buttons; `press` is what each of them does, and `.error` what the last one raised, or None."""

    picture: Any

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.status = ipw.HTML()

    def _put_together(self, name: str, *rows: Any) -> None:
        self.box = ipw.VBox([*rows, self.status, self.picture])
        for widget, css in ((self.box, name), (self.picture, "picture"), (self.status, "status")):
            widget.add_class(f"labkit-{css}")

    def press(self, act: Callable[[], object]) -> None:
        """Act, then show how things stand; never raises."""
        self.status.value, self.error = "…", None
        try:
            act()
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
        self.refresh()

    def _say(self, text: str, wrong: bool) -> None:
        """The status line; an error goes before."""
        said = f"{type(self.error).__name__}: {self.error}" if self.error else text
        colour = f"color:{WRONG}" if self.error or wrong else ""
        self.status.value = f'<b role="status" style="{colour}">{escape(said)}</b>'


def png(figure: Figure) -> bytes:
    """The figure as a PNG, at twice the resolution of the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi)
    return buffer.getvalue()


WIDE = {"width": f"{plot.WIDTH * 100:.0f}px", "max_width": "100%"}


def row(*children: Any) -> Any:
    return ipw.HBox(children, layout={"flex_flow": "wrap"})


def button(text: str, css: str, act: Callable[[], object]) -> Any:
    made = ipw.Button(description=text, layout={"width": "auto", "max_width": "100%"})
    made.add_class(f"labkit-{css}")
    made.on_click(lambda _: act())
    return made
