"""What the graders of chapter 04 share: a look at all that Redis holds, time that passes, chance, and scans.

A store may name and lay out its keys as it likes. So these look at whatever is there.
"""

from __future__ import annotations

import ast
import base64
import binascii
import codecs
import contextlib
import copy
import hashlib
import inspect
import linecache
import os
import random
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any
from unittest import mock

from labkit.rig.connection import supports
from labkit.teach.exercises.lock.grading import Story
from labkit.teach.lab import Lab

USERS = ("ada", "bob", "ad", "Ada", "a*", "ada:1", "ünï {çø} dé", "007")
"""Names that are the beginning of others, or patterns, or look like a part of a key or a number."""

NEVER, GONE = -1, -2

LATER = """local left = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', '*')) do
    local ends = redis.call('PTTL', key)
    if ends >= 0 and ends <= left then redis.call('DEL', key)
    elseif ends > left then redis.call('PEXPIRE', key, ends - left)
    elseif ARGV[2] == '1' and redis.call('TYPE', key).ok == 'hash' then
        for _, field in ipairs(redis.call('HKEYS', key)) do
            local ends = redis.call('HPTTL', key, 'FIELDS', 1, field)[1]
            if ends >= 0 and ends <= left then redis.call('HDEL', key, field)
            elseif ends > left then redis.call('HPEXPIRE', key, ends - left, 'FIELDS', 1, field) end
        end
    end
end"""
"""Milliseconds pass. ARGV: how many; whether fields have TTLs; the word by which a story tells it."""


class Inside:
    """All that the graders' server holds, however it is named, typed and laid out."""

    def __init__(self, lab: Lab) -> None:
        self.r: Any = lab.client(decode_responses=False)
        self._fields_expire = supports(self.r, "HPTTL")

    def keys(self) -> list[bytes]:
        """Every key, but those that hold nothing any more (hashes of which each field has expired)."""
        return [
            key
            for key in sorted(self.r.scan_iter(count=1000))
            if self.r.type(key) != b"hash" or self.r.hkeys(key)
        ]

    def words(self, key: bytes) -> list[bytes]:
        """What a key holds: elements; fields and values; members and scores."""
        kind, r = self.r.type(key), self.r
        if kind == b"string":
            return [r.get(key)]
        if kind == b"set":
            return sorted(r.smembers(key))
        if kind == b"list":
            return list(r.lrange(key, 0, -1))
        if kind == b"hash":
            return [word for pair in sorted(r.hgetall(key).items()) for word in pair]
        if kind == b"zset":
            return [
                word
                for member, score in r.zrange(key, 0, -1, withscores=True)
                for word in (member, b"%d" % score)
            ]
        return [repr(entry).encode() for entry in r.xrange(key)] if kind == b"stream" else []

    def size(self) -> int:
        """How many keys and elements there are."""
        return sum(1 + len(self.words(key)) for key in self.keys())

    def dump(self) -> list[bytes]:
        """Everything that can be read: what a thief of a snapshot has."""
        return [word for key in self.keys() for word in (key, *self.words(key))]

    def left(self, key: bytes) -> int:
        """Milliseconds until it has ended by itself, at once or field by field; NEVER, or GONE."""
        left = int(self.r.pttl(key))
        if left != NEVER or not self._fields_expire or self.r.type(key) != b"hash":
            return left
        if not (fields := self.r.hkeys(key)):
            return GONE
        each = self.r.execute_command("HPTTL", key, "FIELDS", len(fields), *fields)
        return NEVER if NEVER in each else max(each)

    def ends(self) -> dict[bytes, int]:
        """What is left of each key's time."""
        return {key: self.left(key) for key in self.keys()}

    def each(self) -> list[int]:
        """What is left of every key, or of every field of a hash whose fields end one by one."""
        found: list[int] = []
        for key, left in self.ends().items():
            own = int(self.r.pttl(key)) >= 0 or left < 0
            fields = [] if own else self.r.hkeys(key)
            found += [left] if own else self.r.execute_command("HPTTL", key, "FIELDS", len(fields), *fields)
        return found

    def set_left(self, ms: int) -> None:
        """As if so much were left of everything that ends by itself."""
        for key in self.keys():
            if self.r.pttl(key) >= 0:
                self.r.pexpire(key, ms)
            elif self.left(key) >= 0:
                fields = self.r.hkeys(key)
                self.r.execute_command("HPEXPIRE", key, ms, "FIELDS", len(fields), *fields)

    def later(self, ms: int, r: Any = None) -> None:
        """As if so much time were over: one step, of client `r` if one is given."""
        (r or self.r).eval(LATER, 0, ms, int(self._fields_expire), "session")

    def saved(self) -> Callable[[Any], None]:
        """All that is there now, as a setup for explorations: it puts the same back."""
        kept = [(key, max(0, self.r.pttl(key)), self.r.dump(key)) for key in self.keys()]

        def put_back(r: Any) -> None:
            for key, left, value in kept:
                r.restore(key, left, value)

        return put_back


def said(key: bytes) -> str:
    """A key in a counterexample; long ones are cut off."""
    text = key.decode(errors="replace")
    return text if len(text) <= 60 else f"{text[:59]}…"


def check_mortal(story: Story, inside: Inside, ttl: float, look: str = "") -> None:
    """Every key ends by itself, within `ttl` seconds."""
    for key, left in inside.ends().items():
        if left == GONE or 0 <= left <= ttl * 1000 + 1:
            continue
        story.tell(f"PTTL {said(key)} -> {left}")
        what = "a key never expires" if left == NEVER else f"a key lasts longer than {ttl:g} s from now"
        story.hold(
            False, "ttl", what, look or "which of your commands set a TTL, on every path, and in which unit"
        )


def assert_mortal(inside: Inside, ttl: float) -> None:
    """The same, as a rule of an exploration."""
    for key, left in inside.ends().items():
        assert left == GONE or 0 <= left <= ttl * 1000 + 1, (
            f"a key never expires: PTTL {said(key)} is {left}"
            if left == NEVER
            else f"a key lasts longer than {ttl:g} s: PTTL {said(key)} is {left}"
        )


def elsewhere(kind: Any) -> Any:
    """The class as another process has it: what it keeps in itself, or in its module, is not shared."""
    if not isinstance(kind, type):
        return kind
    functions = {name: one for name, one in vars(kind).items() if inspect.isfunction(one)}
    if not functions or any("__class__" in one.__code__.co_freevars for one in functions.values()):
        return kind  # super() knows the class by itself
    space = dict(next(iter(functions.values())).__globals__)
    space |= {
        name: _own(space[name])
        for one in functions.values()
        for name in one.__code__.co_names
        if name in space
    }
    own = {name: _own(value) for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    _draw_anew(kind, next(iter(functions.values())).__code__.co_filename, space, own)
    for name, one in functions.items():
        own[name] = FunctionType(one.__code__, space, name, one.__defaults__, one.__closure__)
        own[name].__kwdefaults__ = one.__kwdefaults__
    return type(kind)(kind.__name__, kind.__bases__, own)


DRAWN = set("token_bytes token_hex token_urlsafe randbits urandom randbytes getrandbits uuid4 getpid".split())  # noqa: SIM905


def _draw_anew(kind: Any, file: str, space: dict[str, Any], own: dict[str, Any]) -> None:
    """What the module, or the class, draws by chance as it begins is another value in another process."""
    with contextlib.suppress(Exception):
        body = ast.parse("".join(linecache.getlines(file))).body
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
        for names, nodes in ((space, body), (own, [node for one in classes for node in one.body])):
            for node in nodes:
                if isinstance(node, ast.Assign) and _draws(node.value):
                    found: dict[str, Any] = {}
                    exec(compile(ast.Module([node], []), file, "exec"), space, found)
                    names.update(found)


def _draws(value: ast.expr) -> bool:
    """Whether an expression calls what gives chance: secrets.token_bytes(…), urandom(…)."""
    calls = [node.func for node in ast.walk(value) if isinstance(node, ast.Call)]
    return any(getattr(one, "attr", getattr(one, "id", "")) in DRAWN for one in calls)


def _own(value: Any) -> Any:
    """A copy of what can change; of all else the same."""
    if isinstance(value, dict | list | set | bytearray):
        with contextlib.suppress(Exception):
            return copy.deepcopy(value)
    return value


class Strangers:
    """Keys of other applications, with names like those of sessions. They must stay as they are."""

    def __init__(self, inside: Inside, name: str) -> None:
        self.r = inside.r
        self.keys = [name[:-1], f"{name}2:ada", "session:ada", "user:ada:sessions"]
        for key in self.keys:
            self.r.set(key, "a stranger's")

    def check(self, story: Story) -> None:
        """Raises Failure if one was changed; then takes them away."""
        for key in self.keys:
            same = self.r.get(key) == b"a stranger's" and self.r.pttl(key) == NEVER
            what = f"{key} is another application's, and was changed"
            story.hold(same, "strangers", what, "which keys your commands touch")
        self.r.delete(*self.keys)


@contextmanager
def no_scan(story: Story, inside: Inside) -> Iterator[None]:
    """Raises Failure if what is done meanwhile goes through all keys of the server, in a script or not."""
    inside.r.config_resetstat()
    yield
    calls = inside.r.info("commandstats")
    for name in ("keys", "scan", "randomkey", "flushdb", "flushall"):
        if f"cmdstat_{name}" in calls:
            what = f"{name.upper()} goes through every key of every user, and of every application"
            story.hold(False, "scan", what, "what remembers which sessions a user has")


@contextmanager
def system_chance(answer: Any, seed: str = "", flip: int = 0) -> Iterator[list[int]]:
    """A list of how many bytes of chance this thread takes from the system meanwhile, one entry a time.

    With a `seed` they are the same bytes each time, so that an exploration meets the same keys again; `flip`
    says which bits of the last byte are others.
    """
    taken, real, mine = list[int](), os.urandom, threading.get_ident()

    def urandom(size: int) -> bytes:
        if threading.get_ident() != mine:
            return real(size)
        taken.append(size)
        if not seed or not size:
            return real(size)
        same = hashlib.shake_256(f"{seed}:{len(taken)}".encode()).digest(size)
        return same[:-1] + bytes([same[-1] ^ flip])

    functions = vars(answer).values() if isinstance(answer, type) else [answer]
    spaces = {
        id(space): space for one in functions if (space := getattr(one, "__globals__", None)) is not None
    }
    names = [(space, name) for space in spaces.values() for name, value in space.items() if value is real]
    with mock.patch.object(os, "urandom", urandom), mock.patch.object(random, "_urandom", urandom):
        for space, name in names:
            space[name] = urandom
        try:
            yield taken
        finally:
            for space, name in names:
                space[name] = real


def unseen(token: str, words: list[bytes]) -> str:
    """The part of `token` that none of `words` shows, in whatever way it is written there."""
    texts = [text for word in words for text in _readings(word.decode("latin-1"))]
    written = {
        other for raw in _bytes_of(token) for other in (raw.decode("latin-1"), raw.hex(), *_numbers(raw))
    }
    if any(form.lower() in text.lower() for form in (token, *written) for text in texts):
        return ""
    at = 0
    while at + 8 <= len(token):
        sizes = range(len(token) - at, 7, -1)
        size = next((n for n in sizes if any(token[at : at + n] in text for text in texts)), 0)
        token, at = (token[:at] + token[at + size :], at) if size else (token, at + 1)
    return token


def _numbers(raw: bytes) -> list[str]:
    return [str(int.from_bytes(raw, order)) for order in ("big", "little")]


def _readings(text: str) -> list[str]:
    """A text as it is, backwards, and as what it says by ROT13, in hex, Base32, 64 or 85, or packed."""
    parts = {part for part in (*re.split(r"[^\w+/=-]", text), *text.split(":"), text) if part}
    raws = [raw for part in parts for raw in _bytes_of(part)]
    raws += [unpacked for raw in (*raws, text.encode("latin-1")) for unpacked in _unpacked(raw)]
    return [text, text[::-1], codecs.encode(text, "rot13"), *(raw.decode("latin-1") for raw in raws)]


def _unpacked(raw: bytes) -> list[bytes]:
    with contextlib.suppress(zlib.error):
        return [zlib.decompress(raw, wbits=47)]
    return []


def _bytes_of(text: str) -> list[bytes]:
    """The bytes that a text in hex or in Base32, 64 or 85 stands for, and those of the text itself."""
    found, standard = [text.encode()], text.replace("-", "+").replace("_", "/")
    whole = text.rstrip("=")
    readers: list[tuple[Callable[[str], bytes], str]] = [
        (binascii.unhexlify, text),
        (binascii.a2b_base64, f"{standard}=="),
        (base64.b32decode, whole.upper() + "=" * (-len(whole) % 8)),
        (base64.b85decode, text),
        (base64.a85decode, text),
    ]
    for read, words in readers:
        with contextlib.suppress(ValueError):
            found.append(read(words))
    return [one for one in found if len(one) >= 8]
