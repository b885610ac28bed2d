"""A user's devices, each with the token that it got, and a table of the user's sessions whose bars shrink.

    devices = Devices(store, "ada")
    devices.log_in("phone")
    devices.log_out("phone")        # as from a list of devices: the phone still has its token
    devices.use("phone")
    devices.said                    # 'phone is not logged in: its token belongs to no session any more'
    table(devices.sessions, user_id="ada", ttl=60)      # HTML

Nothing ticks: a bar is an animation of the browser, which is told once how much time is left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from labkit.rig.lanes import COLOURS, WRONG

if TYPE_CHECKING:
    from labkit.session import Session

DEVICES = ("phone", "laptop", "tablet")

MOST = 12
"""Rows of the table; what does not fit is counted."""


class Devices:
    """What each device does with `store`, a SessionStore; `said` is what came of the last act.

    `refused` is whether that was a request without a session.
    """

    def __init__(self, store: Any, user_id: str) -> None:
        self.store, self.user_id = store, user_id
        self.tokens: dict[str, str] = {}
        self.said, self.refused = f"{user_id} may log in", False

    @property
    def sessions(self) -> list[Session]:
        """The user's sessions, newest first; one round trip, and none of them lasts longer for it."""
        found: list[Session] = self.store.active(self.user_id)
        return found

    def log_in(self, device: str) -> None:
        """A new session. The device forgets the token that it had; that session lasts to its end."""
        old = sum(session.data.get("device") == device for session in self.sessions)
        self.tokens[device] = self.store.create(self.user_id, device=device)
        older = f"; {_sessions(old)} from before still count{'s' * (old == 1)}" if old else ""
        self._say(f"{device} is logged in for {self.store.ttl:g} s{older}")

    def use(self, device: str) -> None:
        """A request with the device's token."""
        if device not in self.tokens:
            self._say(f"{device} has no token: it never logged in", refused=True)
        elif (session := self.store.get(self.tokens[device])) is None:
            self._say(f"{device} is not logged in: its token belongs to no session any more", refused=True)
        else:
            self._say(f"{device} is let in, and stays logged in for {session.expires_in:.0f} s from now")

    def log_out(self, device: str) -> None:
        """End its sessions by the user's list. The device still has its token."""
        ids = [session.id for session in self.sessions if session.data.get("device") == device]
        ended = sum(self.store.revoke(self.user_id, id) for id in ids)
        self._say(f"{device}: {_sessions(ended)} ended")

    def log_out_everywhere(self) -> None:
        """End all of the user's sessions, those of other programs too."""
        self._say(f"logged out everywhere: {_sessions(self.store.destroy_all(self.user_id))} ended")

    def look(self) -> None:
        """How many sessions there are now."""
        self._say(f"{self.user_id} has {_sessions(len(self.sessions))}")

    def _say(self, text: str, refused: bool = False) -> None:
        self.said, self.refused = text, refused


def _sessions(count: int) -> str:
    return f"{count} session{'s' * (count != 1)}"


# What the browser does by itself. All bars are one animation, as long as the TTL; for each it began when its
# session was last used. `--labkit-left` is a whole number, for browsers from 2024 on.
_STYLE = """<style>
@property --labkit-left {{ syntax: "<integer>"; inherits: true; initial-value: 0 }}
@keyframes labkit-shrink {{
  from {{ width: 100%; background: {fresh} }} 70% {{ background: {fresh} }} 71% {{ background: {late} }}
  89% {{ background: {late} }} 90% {{ background: {wrong} }} to {{ width: 0; background: {wrong} }}
}}
@keyframes labkit-left-{whole} {{ from {{ --labkit-left: {whole} }} to {{ --labkit-left: 0 }} }}
@keyframes labkit-fade {{ to {{ opacity: 0.4 }} }}
@keyframes labkit-appear {{ to {{ opacity: 1 }} }}
.labkit-left::after {{ counter-reset: left var(--labkit-left); content: counter(left) " s" }}
</style>"""

_CELL = "text-align:left;vertical-align:middle;padding:5px 18px 5px 0;border:0;white-space:nowrap"


def table(sessions: Sequence[Session], *, user_id: str, ttl: float) -> str:
    """A row for each session, with a bar of the time that it has left; an ended one fades.

    Its colours let the page's through, so it looks alike on a light and on a dark page.
    """
    if not sessions:
        return f'<p style="margin:0.8em 0;font-size:1.1em">{escape(user_id)} is logged in nowhere.</p>'
    style = _STYLE.format(fresh=COLOURS[0], late=COLOURS[3], wrong=WRONG, whole=round(ttl))
    heads = "".join(
        f'<th scope="col" style="{_CELL};border-bottom:2px solid rgba(128,128,128,0.5)">{head}</th>'
        for head in ("device", "since", "session", "ends in")
    )
    rows = "".join(_row(session, ttl) for session in sessions[:MOST])
    more = f'<p style="margin:0">… and {len(sessions) - MOST} more</p>' if len(sessions) > MOST else ""
    return (
        f'{style}<table style="border-collapse:collapse;border:0;margin:0.6em 0;font-size:1.1em;'
        f'line-height:1.5"><thead><tr style="background:none">{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>{more}"
    )


def _row(session: Session, ttl: float) -> str:
    left = min(max(session.expires_in, 0.0), ttl)
    run = f"{ttl:g}s linear {left - ttl:.3f}s both"
    device = escape(str(session.data.get("device", "–")))
    since = time.strftime("%H:%M:%S", time.localtime(session.created))
    bar = (
        '<div style="position:relative;width:22em;height:1.5em;border-radius:4px;overflow:hidden;'
        'background:rgba(128,128,128,0.2)">'
        f'<div class="labkit-bar" style="height:100%;animation:labkit-shrink {run}"></div>'
        '<b style="position:absolute;left:0.6em;top:0;line-height:1.5em;opacity:0;'
        f'animation:labkit-appear 0.2s {left:.3f}s forwards">has ended</b></div>'
    )
    number = (
        f'<span class="labkit-left" role="timer" aria-label="{left:.0f} s" style="display:inline-block;'
        f"width:4.5em;text-align:right;font-variant-numeric:tabular-nums;"
        f'animation:labkit-left-{round(ttl)} {run}"></span>'
    )
    cells = (f"<b>{device}</b>", since, f'<code style="background:none">{session.id[:8]}…</code>')
    said = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
    both = f'<div style="display:flex;align-items:center">{bar}{number}</div>'
    fade = f"background:none;animation:labkit-fade 0.3s {left:.3f}s forwards"
    return f'<tr style="{fade}">{said}<td style="{_CELL}">{both}</td></tr>'
