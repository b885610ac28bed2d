"""Refresh: a fresh kernel, stable outputs, bare metadata; and nothing written when a cell fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labkit.__main__ import main
from labkit.teach import progress
from labkit.teach.refresh import RefreshFailed, execute, own_sockets, read, refresh


def _notebook(path: Path, *sources: str, tags: dict[int, str] | None = None) -> Path:
    cells: list[Any] = [new_markdown_cell("# 99 · A test", id="title")]  # type: ignore[no-untyped-call]
    for i, source in enumerate(sources):
        metadata = {"tags": [(tags or {})[i]], "scrolled": True} if i in (tags or {}) else {"collapsed": True}
        cells.append(new_code_cell(source, id=f"cell-{i}", metadata=metadata))  # type: ignore[no-untyped-call]
    chapter = new_notebook(
        cells=cells, metadata={"widgets": {}, "language_info": {"name": "python", "version": "3.1"}}
    )  # type: ignore[no-untyped-call]
    nbformat.write(chapter, path)  # type: ignore[no-untyped-call]
    return path


def test_outputs_are_stored_bare_and_stable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    path = _notebook(
        tmp_path / "99_test.ipynb",
        "import os, labkit\nfrom pathlib import Path\nr = labkit.connect()",
        "labkit.in_browser(), Path.cwd().name, os.environ.get('REDIS_URL')",
        "for i in range(3):\n    print(i, flush=True)",
        "1 / 0",
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        tags={3: "raises-exception"},
    )
    assert refresh(path).startswith("99_test.ipynb: 5 code cells, ")
    stored = path.read_bytes()
    chapter = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert chapter.metadata.keys() == {"kernelspec", "language_info"}
    assert chapter.metadata.language_info == {"name": "python"}
    assert [cell.id for cell in chapter.cells] == ["title", *(f"cell-{i}" for i in range(5))]
    assert {key for cell in chapter.cells for key in cell.metadata} == {"tags"}
    code = chapter.cells[1:]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert code[0].outputs[0].text.startswith("Redis ")
    assert code[1].outputs[0].data["text/plain"] == repr((False, tmp_path.name, "embedded"))
    assert [output.text for output in code[2].outputs] == ["0\n1\n2\n"]
    assert code[3].outputs[0].traceback == ["ZeroDivisionError: division by zero"]
    assert "image/png" in code[4].outputs[0].data
    refresh(path)
    assert path.read_bytes() == stored


def test_nobodys_progress_is_touched(tmp_path: Path) -> None:
    progress.record("start_here", "encode", "correct")
    before = progress.path().read_bytes()
    path = _notebook(
        tmp_path / "99_test.ipynb",
        "from labkit.teach import check\ncheck.start_here.count(lambda r, p: 0)",
        "import labkit\nprint(labkit.progress('start_here'))",
    )
    refresh(path)
    shown = nbformat.read(path, as_version=4).cells[2].outputs[0].text  # type: ignore[no-untyped-call]
    assert "○ encode" in shown and "✗ count" in shown
    assert progress.path().read_bytes() == before


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\nx / 0", "cell 3 of 3 (cell-1, `x = 1`) failed: ZeroDivisionError: division by zero"),
        ("import os; os._exit(3)", "the kernel died in cell 3 of 3 (cell-1, `import os; os._exit(3)`)."),
    ],
)
def test_a_failure_names_the_cell_and_writes_nothing(tmp_path: Path, source: str, says: str) -> None:
    path = _notebook(tmp_path / "99_test.ipynb", "1 + 1", source)
    before = path.read_bytes()
    with pytest.raises(RefreshFailed) as failed:
        refresh(path)
    assert str(failed.value) == f"99_test.ipynb: {says}"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["99_test.ipynb"]


def test_time_limit_names_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.teach.refresh.CELL_SECONDS", 1)
    path = _notebook(tmp_path / "99_test.ipynb", "while True: pass")
    with pytest.raises(RefreshFailed, match="had not ended after 1 s"):
        refresh(path)


def test_a_kernel_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    path = _notebook(tmp_path / "99_test.ipynb", "1")
    with pytest.raises(
        RefreshFailed, match=r"^99_test.ipynb: the kernel did not start \(Kernel died .*\)\.$"
    ):
        refresh(path)


CONNECTION = """
import json, ipykernel
with open(ipykernel.get_connection_file()) as file:
    print(json.load(file)["transport"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets between a kernel and its client")
def test_a_kernel_takes_no_port_that_others_may_have(tmp_path: Path) -> None:
    chapter = read(_notebook(tmp_path / "99_test.ipynb", CONNECTION))
    execute(chapter, tmp_path)
    assert chapter.cells[-1].outputs[0].text == "ipc\n"
    manager = own_sockets(KernelManager(), str(tmp_path / ("x" * 100)))
    assert manager.transport == "tcp"


def test_bad_files_get_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refresh", str(tmp_path / "none.ipynb")]) == 1
    assert "there is no such file. Remedy: " in capsys.readouterr().err
    (tmp_path / "bad.ipynb").write_text("{")
    assert main(["refresh", str(tmp_path / "bad.ipynb")]) == 1
    assert "is no notebook that can be read" in capsys.readouterr().err


def test_without_nbstripout_there_is_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _notebook(tmp_path / "99_test.ipynb", "1 + 1")
    monkeypatch.setitem(sys.modules, "nbstripout", None)
    with pytest.raises(RefreshFailed, match=r"nbstripout is not installed. Remedy: "):
        refresh(path)
