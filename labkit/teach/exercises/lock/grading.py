"""What the graders of chapter 08 share: stories, explorations, and what every one of them checks."""

from __future__ import annotations

import datetime
import inspect
import itertools
import math
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from labkit.rig.race import Exploration, NondeterministicActor, Trace, explore
from labkit.teach.exercises import Failure, Wrong
from labkit.teach.lab import Lab

LONG = 60.0
"""A TTL, in seconds, that does not end while a grade runs."""

MOST_STEPS = 100
"""Whoever needs more commands than this, in any interleaving, is taken to never end."""


EXPIRE = """local left = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
return left > 0 and math.floor(left / 1000 + 0.5) or left"""


def expires(r: Any, key: str) -> int:
    """The time of `key` is up. How many seconds it had left, in one step; -2 if it was not there."""
    return int(r.eval(EXPIRE, 1, key))


def in_time(check: Callable[[float], bool], *ttls: float) -> None:
    """`check` for the first TTL; while it is False, since the machine stood still in the middle, the next.

    All together have to fit into the exercise's time limit. Where the last is too short, nothing was graded.
    """
    for ttl in ttls:
        if check(ttl):
            return


def nothing(token: Any) -> bool:
    return token is None or token is False


class Story:
    """Calls, one after the other, with their answers: the counterexample where no race is needed."""

    def __init__(self, *lines: str) -> None:
        self.lines, self._tokens = list(lines), list[Any]()

    def call(self, said: str, fn: Callable[..., Any], *args: Any) -> Any:
        """Call `fn`, and note what it gave."""
        answer = fn(*args)
        self.lines.append(f"{said} -> {answer!r}")
        return answer

    def take(self, said: str, fn: Callable[[], Any]) -> Any:
        """The same for a call that gives a token: it is told under a name, since it is random."""
        token = fn()
        self.lines.append(f"{said} -> {self.name(token)}")
        return token

    def name(self, token: Any) -> str:
        """token·1 for the first token that was met, and so on; the same name for the same token."""
        if nothing(token):
            return repr(token)
        if token not in self._tokens:
            self._tokens.append(token)
        return f"token·{self._tokens.index(token) + 1}"

    def tell(self, line: str) -> None:
        """Note what happened otherwise."""
        self.lines.append(line)

    def hold(self, held: Any, property: str, message: str, look_at: str) -> None:
        """Raises Failure, with all that has been told, unless `held`."""
        if not held:
            raise Failure(property, message, "\n".join(self.lines), look_at)


def bounded(cast: str, setup: Any) -> dict[str, Any]:
    """Rules for `explore`: that setup, and an end to what does not end by itself."""
    steps = itertools.count()

    def begin(r: Any) -> None:
        nonlocal steps
        steps = itertools.count(1)
        if setup is not None:
            setup(r)

    def comes_to_an_end(r: Any) -> None:
        if next(steps) > MOST_STEPS:
            what = f"with other clients in between, your code had not ended after {MOST_STEPS} commands"
            raise Failure("endless", what, cast, "what ends its loops")

    return {"setup": begin, "always": comes_to_an_end}


@contextmanager
def only_tokens_by_chance() -> Iterator[None]:
    """Raises Failure where an exploration finds that its clients did something else the second time."""
    try:
        yield
    except NondeterministicActor as error:
        what = "the same order of steps, run again, met other commands or other keys"
        raise Failure("deterministic", what, str(error), "what depends on chance: only tokens may") from None


def explored(
    lab: Lab, actors: Any, property: str, look_at: str, cast: str, setup: Any = None, **rules: Any
) -> None:
    """Raises Failure with the shortest counterexample, if an interleaving breaks the invariant.

    `cast` says what A and B do. Where there are too many interleavings, those with up to three switches
    between the clients are tried, which is where the races of so few commands are.
    """
    rules |= {**bounded(cast, setup), "limit": 1000, "seconds": 1.5, "server": lab.server}
    with only_tokens_by_chance():
        result = explore(actors, **rules)
        if result.verdict == "unknown" and "max_switches" not in rules:
            result = explore(actors, max_switches=3, **rules)
    if result.violations:
        raise failure(result, property, look_at, cast)


def failure(result: Exploration, property: str, look_at: str, cast: str) -> Failure:
    trace = result.first
    assert trace is not None
    goes = "goes" if result.violations == 1 else "go"
    number = f"{result.violations:,} of {result.total:,} orders of these steps {goes} wrong; the simplest:"
    shown = "\n".join([cast, *([number] if result.total > 1 else []), *_rows(trace)])
    if re.match("[A-Z] raised ", trace.wrong):
        what = f"your code raises when other clients come in between: {trace.wrong.rstrip('.')}"
        return Failure("raises", what, shown, "what the last command shown may answer or raise")
    if trace.wrong.startswith("deadlock"):
        return Failure("endless", trace.wrong, shown, "what the last command shown waits for")
    return Failure(property, trace.wrong, shown, look_at)


def _rows(trace: Trace) -> list[str]:
    """The steps of a trace; where a client stands for another, or for the time that passes, they say so."""
    rows, roles = [], dict[str, str]()
    for step in trace.steps:
        who, command, reply = step.who, step.command, f"-> {step.reply}" if step.reply else ""
        if role := re.match('ECHO "?as ([A-Z])', command):
            roles[who] = role[1]
            continue
        who = roles.get(who, who)
        if command.startswith('EVAL "local left = '):
            key = command.rpartition(" ")[2]
            who, command, reply = "·", f"{key} expires" if step.reply != "-2" else f"{key} is not there", ""
        elif step.kind == "crash":
            command = "(crashes)"
        elif command == "FLUSHDB":
            who, command, reply = "·", "the time of all who came before is up", ""
        rows.append((who or "·", command, reply))
    width = max((len(command) for _, command, reply in rows if reply), default=0)
    return [f"  {who}  {command.ljust(width)}  {reply}".rstrip() for who, command, reply in rows]


def check_left(
    story: Story, r: Any, key: str, ttl: float, since: float, unless: tuple[str, str] = ("ttl", "")
) -> None:
    """PTTL is `ttl` seconds, less what has passed since `since`. `unless`: property, and where to look."""
    left = story.call("PTTL key", r.pttl, key)
    least = (ttl - (time.monotonic() - since)) * 1000 - 5
    property, look = unless
    if left == -2:
        look = "the name of the key; in a script, what is given as KEYS and what as ARGV"
    elif not look:
        look = "px= of SET, or PEXPIRE" if left == -1 else "the unit, and fractions of a second"
    story.hold(least <= left <= ttl * 1000 + 1, property, f"the key should last {ttl:g} s from now", look)


def check_refused(
    story: Story,
    r: Any,
    said: str,
    attempt: Callable[[], Any],
    got: tuple[str, str],
    longer: str = "refused",
) -> None:
    """An attempt that is to be refused changes no TTL: where much is left of the holder's time, and little.

    `got` is what is wrong if it is not refused: the property, and what to say.
    """
    keys, look = sorted(r.scan_iter()), "what an attempt that fails changes"
    for ms in (5000, 500):
        since = time.monotonic()
        for key in keys:
            r.pexpire(key, ms)
        story.tell(f"the holder has {ms / 1000:g} s left: PTTL -> {ms}")
        answer = attempt()
        story.tell(f"{said} -> {answer if isinstance(answer, str) else repr(answer)}")
        after = {key: r.pttl(key) for key in keys}
        least = ms - (time.monotonic() - since) * 1000 - 5
        if least <= 0:
            return  # so slow a machine that the time was up, perhaps: this says nothing
        story.hold(not answer, *got, "how it knows that the time of the holder is not up")
        for key, left in after.items():
            if not least <= left <= ms:
                story.tell(f"PTTL {key} -> {left}")
            what = (
                "a refused attempt lengthens the holder's time: if that crashed, nobody ever comes after it"
            )
            story.hold(0 <= left <= ms or left == -2, longer, what, look)
            what = "a refused attempt must change nothing, and it has shortened the holder's time"
            story.hold(left >= least, "refused", what, look)


COUNTED = re.compile(r"\b(H?INCRBY|INCR|ZINCRBY|XADD)\b", re.I)
"""Who lets the server count needs no randomness."""

ENOUGH = 40
"""Bits of chance that a token must show: secrets.token_hex(8) has 64, random.random() 53, id() some 20."""


def chance(tokens: list[str]) -> float:
    """About how many bits differ by chance in these tokens, from how often two agree, place by place."""
    pairs, bits = len(tokens) * (len(tokens) - 1) / 2, 0.0
    for place in itertools.zip_longest(*tokens, fillvalue=""):
        alike = sum(n * (n - 1) / 2 for n in Counter(place).values())
        bits += math.log2(pairs / max(alike, 1))
    return bits


def _is_uuid(token: str) -> bool:
    """Also those of the time and the machine, which redis-py's own lock takes."""
    for found in re.findall("[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", token):
        if uuid.UUID(found).version is not None:
            return True
    return False


def check_chance(tokens: list[str], look: str) -> None:
    twice = [token for token, times in Counter(tokens).items() if times > 1]
    if twice:
        what = f"of {len(tokens)} acquisitions several had the same token"
        raise Failure("token", what, twice[0], look)
    if not all(map(_is_uuid, tokens)) and chance(tokens) < ENOUGH:
        what = "tokens are too much alike: another process, or another machine, may come to the same one"
        raise Failure("token", what, "\n".join([*tokens[:4], "…"]), look)


def check_third(
    lab: Lab,
    mine: Callable[[Any], Callable[[], Any] | None],
    theirs: Callable[[Any], Any],
    third: Callable[[Any], bool],
    said: tuple[str, str],
) -> None:
    """A has something, and loses it to B; A gives it back all the same. It must not be C's meanwhile.

    `mine(r)` gets it for A, and gives what gives it back; `theirs(r)` ends A's time, and gets it for B.
    `said` is the cast, and what is wrong. A and B are one actor, since their order is fixed.
    """

    def both(r: Any) -> bool | None:
        back = mine(r)
        if back is None:
            return None
        r.echo("as B")
        got = bool(theirs(r))
        r.echo("as A")
        back()
        return got

    def rule(r: Any, results: list[Any]) -> None:
        assert not (results[0] and results[2]), said[1]

    def bob(r: Any) -> None:
        """All that B does is in `both`."""

    explored(lab, [both, bob, third], "race", BETWEEN, said[0], invariant=rule, max_switches=2)


def swapped(tape: Any, key: str) -> str:
    """What to look at if a script got the key among its arguments; "" if none did."""
    for exchange in tape.commands:
        name, *words = exchange.command
        if name.upper() not in ("EVAL", "EVALSHA", "FCALL") or len(words) < 2 or not words[1].isdigit():
            continue
        keys, argv = words[2 : 2 + int(words[1])], words[2 + int(words[1]) :]
        if key in argv and key not in keys:
            return "the order of what your script is given: KEYS first, as many as you say, then ARGV"
    return ""


def spoilt(source: str, *changes: tuple[str, str]) -> str:
    """A reference with some of its text changed."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


def wrong(source: str, violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return Wrong(spoilt(source, *changes), violates, why)


PUT_BACK = """value = self.r.getdel(self.key)
        if value is not None and value != self.token:
            self.r.set(self.key, value, px=round(self.ttl * 1000))
        return value is not None and value == self.token"""


BETWEEN = "what may happen between your last look at the key and the command that changes it"


@contextmanager
def clocks(skew: float | Callable[[], float], answer: Any = None) -> Iterator[None]:
    """The client's clocks are `skew` seconds ahead, also where `answer` has imported them by name."""
    with ExitStack() as stack:
        ahead: list[tuple[Any, Any]] = []
        by = skew if callable(skew) else lambda: skew
        for name in _CLOCKS:
            real = getattr(time, name)
            in_ns = (lambda *a, r=real: r(*a) + int(by() * 1e9)) if name.endswith("_ns") else None
            ahead.append((real, in_ns or (lambda *a, r=real: r(*a) + by())))
            stack.enter_context(mock.patch.object(time, name, ahead[-1][1]))
        module = ModuleType("datetime")
        vars(module).update(vars(datetime), datetime=_datetime(by))
        ahead += [(datetime, module), (datetime.datetime, module.datetime)]
        for space in (sys.modules, *_spaces(answer)):
            for name, value in list(space.items()):
                for real, stand_in in ahead:
                    if value is real:
                        space[name] = stand_in
                        stack.callback(space.__setitem__, name, real)
        yield


_CLOCKS = [
    name
    for clock in ("time", "monotonic", "perf_counter", "clock_gettime")
    for name in (clock, f"{clock}_ns")
    if hasattr(time, name)
]


def _datetime(skew: Callable[[], float]) -> type[datetime.datetime]:
    real = datetime.datetime

    def by() -> datetime.timedelta:
        return datetime.timedelta(seconds=skew())

    class Ahead(real):  # type: ignore[valid-type, misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.now(tz) + by()

        @classmethod
        def today(cls) -> Any:
            return real.now() + by()

        @classmethod
        def utcnow(cls) -> Any:
            return real.now(datetime.UTC).replace(tzinfo=None) + by()

    return Ahead


def _spaces(answer: Any) -> list[dict[str, Any]]:
    """The namespaces that the functions of an answer see as their globals."""
    kinds = answer.__mro__ if isinstance(answer, type) else ()
    parts = [answer, *(part for kind in kinds for part in vars(kind).values())]
    functions = [inspect.unwrap(getattr(part, "__func__", part)) for part in parts if callable(part)]
    spaces = [one.__globals__ for one in functions if inspect.isfunction(one)]
    return list({id(space): space for space in spaces}.values())
