"""Steps of an exploration that happen outside Redis: a database, a file, a mail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from greenlet import getcurrent

from labkit.rig.footprint import Outside

T = TypeVar("T")


def outside(
    said: Sequence[str],
    act: Callable[[], T],
    *,
    reads: Iterable[str] = (),
    writes: Iterable[str] = (),
    show: Callable[[T], Any] | None = None,
) -> T:
    """Do `act()`, which touches something that is not Redis, and return what it returns.

    Inside an actor of an exploration it is a step like a command: others may come before and after it, a
    crash may follow it, and a trace shows it as `said`, with `show(result)` for its reply. `reads` and
    `writes` name what it touches, so that the explorer knows which steps may swap: the same name for the same
    thing, such as "products 1". Whoever leaves out what it touches leaves out races. Elsewhere it is just
    `act()`.

    The exploration's `setup` has to put back what actors change there. `act` must wait for nobody, and must
    not use the actor's client. What it raises goes to whoever called.
    """
    actor: Any = getattr(getcurrent(), "actor", None)
    if actor is None:
        return act()
    done: T = actor.outside(Outside.touching(said, reads, writes), act, show)
    return done
