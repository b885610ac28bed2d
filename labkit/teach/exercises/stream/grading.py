"""What the graders of chapter 07 share: entries that have been pending for so long, and explorations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from labkit.rig.footprint import words
from labkit.rig.race import explore
from labkit.teach.exercises import Failure
from labkit.teach.exercises.lock.grading import (
    Story,
    bounded,
    explored,
    failure,
    only_tokens_by_chance,
)
from labkit.teach.lab import Lab

GROUP = "payers"
MINUTE = 60_000


def hold(r: Any, stream: str, owner: str, ids: list[str], idle: int = 0, deliveries: int = 1) -> None:
    """As if `owner` had held these entries for `idle` milliseconds, after so many deliveries."""
    r.xclaim(stream, GROUP, owner, 0, ids, idle=idle, retrycount=deliveries, force=True, justid=True)


def idle_again(r: Any, stream: str, idle: int) -> None:
    """As if all that is pending had been held for `idle` milliseconds; nothing else changes."""
    for entry in pending(r, stream):
        r.xclaim(stream, GROUP, entry["consumer"], 0, [entry["message_id"]], idle=idle, justid=True)


def pending(r: Any, stream: str) -> list[dict[str, Any]]:
    """All that is pending: message_id, consumer, time_since_delivered, times_delivered."""
    return list(r.xpending_range(stream, GROUP, "-", "+", 1000))


def groups(r: Any, stream: str) -> list[str]:
    return [group["name"] for group in r.xinfo_groups(stream)] if r.exists(stream) else []


Says = Mapping[str, tuple[str, str]]
"""Of what a rule may say: a part of it -> the property that it violates, and what to look at."""


def explore_stream(
    lab: Lab, actors: Any, cast: str, says: Says, setup: Any, always: Any = None, **rules: Any
) -> None:
    """Raises Failure with the shortest counterexample, if an interleaving breaks `invariant` or `always`."""
    ends = bounded(cast, setup)

    def both(r: Any) -> Any:
        ends["always"](r)
        return always is None or always(r)

    rules |= {"setup": ends["setup"], "always": both, "limit": 1000, "seconds": 6, "server": lab.server}
    with only_tokens_by_chance():
        result = explore(actors, **rules)
        if result.verdict == "unknown" and "max_switches" not in rules:
            result = explore(actors, max_switches=3, **rules)
    if not result.violations:
        return
    found = failure(result, "race", "what may happen between two commands", cast)
    property, look = next((told for part, told in says.items() if part in found.message), ("", ""))
    raise Failure(property, found.message, found.counterexample, look) if property else found


def check_no_wait(lab: Lab, cast: str, act: Callable[[Any], Any]) -> None:
    """Raises Failure if the call waits where nothing is there. No time passes meanwhile."""
    waits: list[str] = []

    def client(r: Any) -> Any:
        send = r.execute_command

        def execute(*args: Any, **options: Any) -> Any:
            said = words(args)
            if said[0].upper() in ("XREAD", "XREADGROUP") and "BLOCK" in said:
                waits.append(said[said.index("BLOCK") + 1])
            return send(*args, **options)

        r.execute_command = execute
        return act(r)

    try:
        explored(lab, [client], "blocks", "what it waits for", cast, invariant=lambda r: True)
    except Failure:
        if not waits:
            raise
    if waits:
        how = "for ever, and nothing can stop it" if waits[0] == "0" else f"for {waits[0]} ms"
        what = f"work() is not to wait, and it waits for new entries {how}"
        shown = f"{cast}\n  A  XREADGROUP … BLOCK {waits[0]} …"
        raise Failure("blocks", what, shown, "the `block=` of your read")


def asked(story: Story, made: Any, methods: tuple[str, ...], kind: str) -> None:
    """Raises Failure unless the object has these methods."""
    for method in methods:
        there = callable(getattr(made, method, None))
        what = f"{kind}(…) gives {type(made).__name__}, which has no method {method}()"
        story.hold(there, "class", what, "the class of the stub: it is handed over itself, not called")
