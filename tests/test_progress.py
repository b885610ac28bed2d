"""Progress: a grid that reads well, a file that survives two kernels, damage and a folder without rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import labkit
from labkit.__main__ import main
from labkit.rig.server import Server
from labkit.teach import progress
from labkit.teach.progress import Progress


def test_grid_shows_every_state() -> None:
    progress.record("start_here", "encode", "correct")
    progress.record("start_here", "count", "incorrect")
    grid = labkit.progress("start_here")
    assert repr(grid).splitlines()[0].endswith("✓ encode  ○ remember  ○ pattern  ✗ count")
    assert repr(grid).splitlines()[1] == "1 of 4 solved"
    assert grid.solved == 1
    html = grid._repr_html_()
    assert "✓ encode" in html and "1 of 4 solved" in html and "<table>" in html


def test_grid_aligns_the_chapters() -> None:
    grid = Progress((("00 a", (("x", "correct"),)), ("05 longer", (("y", "not attempted"),))))
    assert repr(grid) == "00 a       ✓ x\n05 longer  ○ y\n1 of 2 solved"


def test_unknown_chapter_lists_what_there_is() -> None:
    with pytest.raises(LookupError, match=r"no chapter 'nothing' has exercises; there are: .*start_here"):
        labkit.progress("nothing")


def test_file_is_readable_json() -> None:
    progress.record("start_here", "encode", "incorrect")
    text = progress.path().read_text()
    assert text.endswith("\n") and text.count("\n") > 5
    assert json.loads(text)["start_here"]["encode"]["state"] == "incorrect"
    assert [file.name for file in progress.path().parent.iterdir() if file.suffix == ".json"] == [
        "progress.json"
    ]


def test_solved_stays_solved() -> None:
    progress.record("start_here", "encode", "correct")
    progress.record("start_here", "encode", "incorrect")
    assert labkit.progress("start_here").solved == 1


@pytest.mark.parametrize("damage", ["{", "[]", '{"start_here": 3}', "", "\x00\xff"])
def test_damaged_file_is_set_aside(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress.path().parent.mkdir(parents=True)
    progress.path().write_bytes(damage.encode("latin-1"))
    assert labkit.progress().solved == 0
    assert "was damaged; it is now progress.damaged.json" in capsys.readouterr().out
    progress.record("start_here", "encode", "correct")
    assert labkit.progress().solved == 1
    assert progress.path().with_name("progress.damaged.json").read_bytes() == damage.encode("latin-1")


def test_folder_that_cannot_be_written_costs_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "file" / "home"))
    progress.record("start_here", "encode", "correct")
    out = capsys.readouterr().out
    assert (
        out.startswith("(This result was not kept: Not a directory. Remedy: let LABKIT_HOME")
        and out.count("\n") == 1
    )
    assert labkit.progress().solved == 0
    assert "cannot be read: Not a directory" in capsys.readouterr().out


def test_kernels_that_write_at_once_lose_nothing() -> None:
    code = (
        "import sys\nfrom labkit.teach.progress import record\n"
        "for i in range(25): record('start_here', f'{sys.argv[1]}-{i}', 'correct')\n"
    )
    kernels = [subprocess.Popen([sys.executable, "-c", code, str(n)], env={**os.environ}) for n in range(3)]
    assert [kernel.wait(60) for kernel in kernels] == [0, 0, 0]
    assert len(json.loads(progress.path().read_text())["start_here"]) == 75


def test_home_is_the_workbooks_folder_wherever_the_kernel_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABKIT_HOME")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert progress.path() == tmp_path / "notebooks" / ".labkit" / "progress.json"
    (tmp_path / "pyproject.toml").write_text('packages = ["labkit"]')
    assert progress.path() == tmp_path / ".labkit" / "progress.json"


def test_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        r = server.client()
        r.mset({"workbook:00:a": "1", "workbook:05:b": "2", "stranger": "3", "Workbook:x": "4"})
        progress.record("start_here", "encode", "correct")
        assert main(["progress"]) == 0
        assert "✓ encode" in capsys.readouterr().out
        assert main(["reset"]) == 0
        assert (
            "2 keys that began with workbook: removed; no other key was touched." in capsys.readouterr().out
        )
        assert sorted(r.keys("*")) == ["Workbook:x", "stranger"]
        assert main(["reset", "--progress"]) == 0
        out = capsys.readouterr().out
        assert "0 keys" in out and "Progress forgotten." in out
    assert labkit.progress().solved == 0


def test_command_line_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert main(["reset"]) == 1
    err = capsys.readouterr().err
    assert "Remedy" in err and err.count("\n") == 1
