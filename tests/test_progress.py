"""Progress: a grid that reads well, a file that survives two kernels, damage and a folder without rights."""

from __future__ import annotations

import csv
import getpass
import json
import os
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import labkit
from labkit.__main__ import main
from labkit.rig.server import Server
from labkit.teach import progress
from labkit.teach.exercises import load, stems
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


def test_the_table_counts_and_links() -> None:
    progress.record("start_here", "encode", "correct")
    html = labkit.progress()._repr_html_()
    notebooks = Path(__file__).parents[1] / "notebooks"
    links = re.findall(r"<a href='([^']+)'>([^<]+)</a></th><td>(\d+) of (\d+)</td>", html)
    assert [name for _, name, *_ in links] == [name for name, _ in labkit.progress().chapters]
    assert all((notebooks / file).is_file() for file, *_ in links)
    assert links[0] == ("00_start_here.ipynb", "00 start_here", "1", "4")
    assert "<a" not in Progress((("a<b", (("x", "correct"),)),))._repr_html_()


def test_an_export_says_all_and_names_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        progress.record("start_here", "encode", "correct")
        progress.record("start_here", "count", "incorrect")
        grid = labkit.progress()
    finally:
        monkeypatch.undo()
        time.tzset()
    rows = grid.rows
    assert len(rows) == sum(len(load(stem)) for stem in stems()) and {*rows[0]} == {*progress.COLUMNS}
    assert [row["state"] for row in rows[:4]] == ["correct", "not attempted", "not attempted", "incorrect"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows[0]["at"]) and rows[1]["at"] == ""
    assert abs(datetime.fromisoformat(rows[0]["at"]) - datetime.now(UTC)) < timedelta(minutes=5)
    kept = json.loads(grid.to_json(tmp_path / "a.json"))
    assert kept == {"format": 1, "solved": 1, "exercises": len(rows), "rows": rows}
    assert json.loads((tmp_path / "a.json").read_text()) == kept
    text = grid.to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes().decode("utf-8") == text
    assert text.splitlines()[0] == "chapter,exercise,state,at"
    assert list(csv.DictReader(text.splitlines())) == rows
    assert socket.gethostname() not in text and str(Path.home()) not in text and getpass.getuser() not in text


def test_a_table_of_one_learner_and_of_a_class(tmp_path: Path) -> None:
    progress.record("start_here", "encode", "correct")
    labkit.progress("start_here").to_csv(tmp_path / "anna.csv")
    progress.record("start_here", "count", "incorrect")
    table = labkit.progress("start_here").df
    assert list(table.columns) == list(progress.COLUMNS) and len(table) == 4
    assert str(table["at"].dtype).startswith("datetime64[") and "UTC" in str(table["at"].dtype)
    assert table["at"].isna().tolist() == [False, True, True, False]
    labkit.progress("start_here").to_csv(tmp_path / "ben.csv")
    doc = (progress.Progress.__doc__ or "").split("one table:")[1]
    lines = [line.strip().split("  #")[0] for line in doc.strip().splitlines()]
    space: dict[str, Any] = {"pd": pd, "Path": lambda _: tmp_path}
    exec("\n".join(lines[:-1]), space)
    counts = eval(lines[-1], space)
    assert counts.loc[("00 start_here", "encode"), "correct"] == 2
    assert counts.loc[("00 start_here", "count")].to_dict() == {
        "correct": 0,
        "incorrect": 1,
        "not attempted": 1,
    }


@pytest.mark.parametrize("damage", [{"at": 5}, {"at": "yesterday"}, {"state": "correct"}])
def test_a_time_that_is_none_is_empty(damage: dict[str, Any]) -> None:
    progress.path().parent.mkdir(parents=True)
    progress.path().write_text(json.dumps({"start_here": {"encode": damage}}))
    assert labkit.progress("start_here").rows[0]["at"] == ""


def test_the_command_line_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress.record("start_here", "encode", "correct")
    for form, read in (("json", lambda text: json.loads(text)["rows"]), ("csv", _rows)):
        assert main(["progress", f"--{form}"]) == 0
        printed = capsys.readouterr().out
        file = tmp_path / f"anna.{form}"
        assert main(["progress", f"--{form}", str(file)]) == 0
        assert capsys.readouterr().out == f"{file} written: 1 exercise is solved.\n"
        assert read(file.read_text()) == read(printed) == labkit.progress().rows
    assert main(["progress", "--csv", str(tmp_path)]) == 1
    assert "Remedy: name another file" in capsys.readouterr().err


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


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


def test_a_state_that_is_none_counts_as_not_attempted() -> None:
    progress.path().parent.mkdir(parents=True, exist_ok=True)
    progress.path().write_text('{"lock": {"release": {"state": ["correct"]}, "extend": {"state": "done"}}}')
    assert "0 of 41 solved" in repr(progress.progress())


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
