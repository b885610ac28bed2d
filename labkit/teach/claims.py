"""Claims: a sentence and the condition that proves it, checked each time the cell runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit import LabkitError

ATTEMPTS = 3
"""How often a measured claim is looked at before it fails: once, and at most twice again."""


class ClaimFailed(LabkitError, AssertionError):
    """A claim did not hold here. `text` is the sentence, `attempts` how often it was measured."""

    def __init__(self, text: str, attempts: int = 1) -> None:
        self.text = text
        self.attempts = attempts
        super().__init__(f"✗ {text}" + (f" (measured {attempts} times)" if attempts > 1 else ""))

    def _render_traceback_(self) -> list[str]:
        """IPython shows this in place of a stack trace: the sentence is all there is to say."""
        return [f"ClaimFailed: {self}"]


def claim(text: str, holds: bool | Callable[[], Any]) -> None:
    """Print `✓ text` if it holds, else fail the cell with ClaimFailed.

    `holds` is a condition, or a function without arguments that measures and returns one. A measurement that
    says no is repeated, at most twice, because a busy machine can spoil one; the bound itself never changes.
    An exception in the function is not a failed claim: it is raised as it is, at once.
    """
    attempts = ATTEMPTS if callable(holds) else 1
    for _ in range(attempts):
        if holds() if callable(holds) else holds:
            print(f"✓ {text}")
            return
    raise ClaimFailed(text, attempts)
