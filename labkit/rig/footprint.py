"""What a command reads and what it writes: two steps that do not touch each other's keys may swap.

    prints = Footprints(r)
    prints.of(("GET", "stock"))         # Footprint(reads={'stock'}, writes=set(), whole='')
    conflict(one, other)                # may their order matter?

The server itself is asked (COMMAND INFO, COMMAND GETKEYSANDFLAGS), once for each form of a command. What it
does not say for certain counts as touching everything: that costs interleavings, never an answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from redis.exceptions import ResponseError

NOTHING: frozenset[str] = frozenset()


class Footprint(NamedTuple):
    """Keys by name. `whole` is "r" or "w" for what reads or changes the server as a whole, else ""."""

    reads: frozenset[str] = NOTHING
    writes: frozenset[str] = NOTHING
    whole: Literal["", "r", "w"] = ""

    def __or__(self, other: Footprint) -> Footprint:
        whole: Any = max(self.whole, other.whole)
        return Footprint(self.reads | other.reads, self.writes | other.writes, whole)

    @property
    def changes(self) -> bool:
        """May it change what anybody else can see?"""
        return bool(self.writes) or self.whole == "w"


PURE = Footprint()
EVERYTHING = Footprint(whole="w")

OWN = set("PING ECHO TIME MULTI DISCARD UNWATCH HELLO AUTH SELECT COMMAND SLEEP".split())  # noqa: SIM905
"""Commands without keys that concern nobody but their own client."""

LOOKS_AROUND = {"KEYS", "SCAN", "DBSIZE", "RANDOMKEY", "SORT_RO"}
ONLY_READ = {"WATCH", "OBJECT", "XINFO", "MEMORY"}  # although the server does not flag them so
SCRIPTS = {"EVAL", "EVALSHA", "FCALL", "EVAL_RO", "EVALSHA_RO", "FCALL_RO"}
WAITS = {"WAIT", "WAITAOF"}  # although Redis 7.0 does not flag them so
FAMILIES = ONLY_READ | {"XGROUP", "CLIENT", "CONFIG", "DEBUG", "FUNCTION", "PUBSUB", "SCRIPT"}
"""Commands whose second word says what they do."""


class Outside(tuple[str, ...]):
    """A step that is no command, in the words in which it is told; it knows what it touches."""

    footprint: Footprint

    @classmethod
    def touching(cls, said: Sequence[str], reads: Iterable[str], writes: Iterable[str]) -> Outside:
        """Things outside Redis are called by names of their own: no key is one of them."""
        made = cls(said)
        read, written = (frozenset(f"outside Redis: {name}" for name in names) for names in (reads, writes))
        made.footprint = Footprint(read, written)
        return made


def conflict(one: Footprint, other: Footprint) -> bool:
    """May it matter which of the two comes first?"""
    if "w" in (one.whole, other.whole):
        return PURE not in (one, other)
    if (one.whole and other.changes) or (other.whole and one.changes):
        return True
    return not (
        one.writes.isdisjoint(other.writes)
        and one.writes.isdisjoint(other.reads)
        and one.reads.isdisjoint(other.writes)
    )


def text(word: Any) -> str:
    """A word of a command as text."""
    if isinstance(word, str):
        return word
    return bytes(word).decode(errors="replace") if isinstance(word, bytes | memoryview) else str(word)


def words(args: Sequence[Any]) -> list[str]:
    """A command as redis-py has it (its name may be two words in one) as a list of texts."""
    first, *rest = args
    return [*text(first).split(), *map(text, rest)]


@cache
def _upper(word: Any) -> str:
    return text(word).partition(" ")[0].upper()


def first_word(args: Sequence[Any]) -> str:
    """A command's name in capitals."""
    return _upper(args[0])


class Footprints:
    """The footprints of commands, as the server of `r` tells them. One round trip for each new form."""

    def __init__(self, r: Any) -> None:
        self._r = r
        self._seen: dict[tuple[Any, ...], Footprint] = {}
        self._infos: dict[str, _Info] = {}
        self._blocking: dict[Any, bool] = {}
        self._places: dict[Any, tuple[tuple[int, bool], ...]] = {}
        self._whole: dict[tuple[str, ...], Footprint] = {}
        self._scripts: dict[str, bool] = {}
        self.sources: dict[str, str] = {}
        """The texts of the scripts that have been loaded, by their SHA1."""

    def of(self, args: tuple[Any, ...]) -> Footprint:
        """What this command may read and write."""
        if type(args) is Outside:
            return args.footprint
        try:
            found = self._seen.get(args)
        except (TypeError, ValueError):  # a buffer that can change
            return self._of(args)
        if found is None:
            found = self._of(args)
            if first_word(args) not in SCRIPTS and len(self._seen) < 1000:  # a script may become known later
                self._seen[args] = found
        return found

    def named(self, args: Sequence[Any]) -> tuple[str, ...]:
        """What the command is about beside what `of` knows: its second word, its script, its keys."""
        if type(args) is Outside:
            return tuple(args)
        said = words(args)
        name = said[0].upper()
        if name in SCRIPTS:
            return tuple(said[1 : 3 + int(said[2])]) if said[2:] and said[2].isdigit() else tuple(said)
        if name in FAMILIES or self.of(tuple(args)) != EVERYTHING:
            return tuple(said[1:2]) if name in FAMILIES else ()
        try:
            return tuple(self._r.execute_command("COMMAND GETKEYS", *said))
        except ResponseError:  # it has none
            return ()

    def _of(self, args: Sequence[Any]) -> Footprint:
        try:
            return self._ask_about(words(args))
        except (IndexError, ValueError):  # no command, as the server will say
            return EVERYTHING

    def _ask_about(self, said: list[str]) -> Footprint:
        name = said[0].upper()
        if name in SCRIPTS:
            return self._script(name, said)
        if name == "SCRIPT" and said[1].upper() == "LOAD":
            self._learn(said[2])
        form = (name, len(said), said[1].upper() if name in FAMILIES else "")
        places = self._places.get(form)
        if places is None:
            exactly = tuple(said)
            if exactly not in self._whole:
                self._whole[exactly] = self._ask(name, said, form)
            return self._whole[exactly]
        reads = frozenset(said[at] for at, writes in places if not writes)
        return Footprint(reads, frozenset(said[at] for at, writes in places if writes))

    def blocking(self, args: Sequence[Any]) -> bool:
        """May this command wait?"""
        found = self._blocking.get(args[0])
        if found is None:
            name = first_word(args)
            found = self._blocking[args[0]] = name in WAITS or "blocking" in self._info(name).flags
        return found

    def _info(self, name: str) -> _Info:
        if name not in self._infos:
            entry = self._r.execute_command("COMMAND INFO", name)[0]
            self._infos[name] = _Info(frozenset(entry[2]), tuple(entry[3:6])) if entry else _Info()
        return self._infos[name]

    def _ask(self, name: str, said: list[str], form: Any) -> Footprint:
        if name in OWN or (name == "SCRIPT" and said[1].upper() in ("LOAD", "EXISTS")):
            return PURE
        if name in LOOKS_AROUND:
            return Footprint(whole="r")
        try:
            found = self._r.execute_command("COMMAND GETKEYSANDFLAGS", *said)
        except ResponseError:  # it has no keys, or is no command
            return EVERYTHING
        if "incomplete" in str(found) or name == "SORT":  # BY and GET read keys that are not named
            return EVERYTHING
        keys, writes = [key for key, _ in found], ["RO" not in flags for _, flags in found]
        flags = self._info(name).flags
        if (
            not any(writes) and "readonly" not in flags and name not in ONLY_READ
        ):  # XREADGROUP reads the stream and writes the group
            writes = [True] * len(keys)
        places = self._info(name).places(len(said))
        if [said[at] for at in places] == keys:
            self._places[form] = tuple(zip(places, writes, strict=True))
        written = frozenset(key for key, w in zip(keys, writes, strict=True) if w)
        return Footprint(frozenset(keys) - written, written)

    def _script(self, name: str, said: list[str]) -> Footprint:
        """KEYS, for a script that is seen to touch nothing else; everything, for any other."""
        if name in ("EVAL", "EVAL_RO"):
            self._learn(said[1])
        sha = _sha(said[1]) if name in ("EVAL", "EVAL_RO") else said[1]
        if not self._scripts.get(sha):
            return EVERYTHING
        keys = frozenset(said[3 : 3 + int(said[2])])
        return Footprint(reads=keys) if name.endswith("_RO") else Footprint(writes=keys)

    def _learn(self, source: str) -> None:
        sha = _sha(source)
        if sha not in self._scripts:
            self.sources[sha] = source
            self._scripts[sha] = all(map(self._keeps_to_its_keys, _calls(source)))

    def _keeps_to_its_keys(self, call: re.Match[str]) -> bool:
        """Does this use of `redis` in a script touch no key beside KEYS?"""
        command, first = (call["command"] or "").upper(), call["first"] or ""
        if call["helper"] or command in ("TIME", "PING", "ECHO"):
            return True
        if not command or not first:
            return False
        info = self._info(command)
        return info.keys[:2] == (1, 1) and "movablekeys" not in info.flags


class _Info(NamedTuple):
    """Of a command: its flags; its first key, its last (from the end, if negative), and the step."""

    flags: frozenset[str] = NOTHING
    keys: tuple[int, ...] = (0, 0, 0)

    def places(self, length: int) -> range:
        """Where the keys stand in a command of so many words; none where its words decide."""
        first, last, step = self.keys
        if not first or "movablekeys" in self.flags:
            return range(0)
        return range(first, (last if last >= 0 else length + last) + 1, step)


_QUOTED = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\[(=*)\[.*?\]\1\]"
_COMMENT = r"--\[(=*)\[.*?\]\2\]|--[^\n]*"

_CALL = re.compile(
    r"\bredis\b(?:\s*\.\s*(?P<helper>error_reply|status_reply|sha1hex|log|LOG_\w+|setresp)\b"
    r"|\s*\.\s*p?call\s*\(\s*(['\"])(?P<command>\w+)\2\s*(?:,\s*(?P<first>KEYS\[[^\]]+\])\s*[,)]|\)|,)"
    r"|)"
)


def _calls(source: str) -> list[re.Match[str]]:
    """Every use of the name `redis` (or of what could hide one) in a script, without its comments."""
    code = re.sub(f"{_QUOTED}|{_COMMENT}", lambda m: " " if m[0][:2] == "--" else m[0], source, flags=re.S)
    hides = r"\b(loadstring|load|[gs]etfenv|getmetatable|_G)\b"
    index = r"\bKEYS\s*\[[^\[\]]*\]"
    other_keys = rf"(?<!#)\bKEYS\b(?!\s*\[)|\bKEYS\s*\[[^\]]*\[|{index}(?:[^=()\n;]|,\s*\n)*=(?!=)"
    if re.search(f"{hides}|{other_keys}", code):
        code += " redis "  # one use that is not understood
    return list(_CALL.finditer(code))


def _sha(source: str) -> str:
    return hashlib.sha1(source.encode()).hexdigest()
