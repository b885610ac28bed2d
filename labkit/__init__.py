"""Redis patterns to run, break and fix on a real Redis.

The map:

    labkit.connect()         a client on a real Redis; starts an embedded server where there is no other
    labkit.claim(text, ok)   prints ✓ and the sentence, or fails the cell
    labkit.progress()        which exercises are solved
    labkit.reset()           brings a chapter to its start: ends what it started, removes the workbook's keys

    labkit.rate_limiter      the patterns, one flat module each: what the chapters teach
    labkit.lock
    labkit.rig               what makes failure and cost visible: connection, server, proxy, wire, race, bench
    labkit.show              plots and widgets
    labkit.teach             exercises and their graders, progress, refresh

Importing labkit loads nothing heavy: redis-py, pandas and matplotlib come when they are first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.rig.connection import connect, reset
    from labkit.teach.claims import claim
    from labkit.teach.progress import progress

__all__ = ["PREFIX", "LabkitError", "claim", "connect", "in_browser", "progress", "reset"]

PREFIX = "workbook:"
"""Every key that the workbook writes to the reader's Redis begins so; nothing else there is touched."""

_HOME = {
    "connect": "labkit.rig.connection",
    "reset": "labkit.rig.connection",
    "claim": "labkit.teach.claims",
    "progress": "labkit.teach.progress",
}


class LabkitError(Exception):
    """The root of labkit's own exceptions; each subclass carries the facts and the remedy."""


def in_browser() -> bool:
    """True where a person watches the kernel in JupyterLab or VS Code.

    Progress bars and live widgets appear only there. Under nbval and nbclient nobody watches: bars stay
    silent and widgets draw a static picture, so that stored outputs are the same on every machine.
    """
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
