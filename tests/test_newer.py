"""The commands that are newer than Redis 7.0: who lacks which, and the classic way beside the newer one."""

from __future__ import annotations

import ast
import json
import re
import warnings
from pathlib import Path
from typing import Any

import bench_newer
import nbformat
import pytest
import redis
from servers import on_each as server  # noqa: F401

from labkit.rig import newer
from labkit.rig.connection import server_info, server_name
from labkit.rig.newer import COMMANDS, Newer, SideBySide, missing, side_by_side
from labkit.rig.server import Server

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CHAPTERS = {path.stem.partition("_")[2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
KEY = "workbook:newer"

SCRIPT = """-- swap
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


@pytest.fixture
def r(server: Server) -> redis.Redis:  # noqa: F811
    r: redis.Redis = server.client()
    r.delete(KEY)
    return r


def before(r: Any) -> None:
    r.set(KEY, "old")


def found(r: Any) -> Any:
    return r.get(KEY)


def new_value() -> str:
    return "new"


def by_script(r: Any) -> list[int]:
    swap = r.register_script(SCRIPT)
    return [swap(keys=[KEY], args=[old, new_value()]) for old in ("other", "old")]


def by_commands(r: Any) -> list[int]:
    return [0, int(r.set(KEY, "new"))]


def otherwise(r: Any) -> list[int]:
    return [1, 1]


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> str:
    """A command that no server has."""
    monkeypatch.setattr(newer, "COMMANDS", (*newer.COMMANDS, Newer("NONSENSE", "99.0", "cache")))
    return "NONSENSE"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> str:
    """A command that every server has."""
    monkeypatch.setattr(newer, "COMMANDS", (*newer.COMMANDS, Newer("SET NX", "2.6", "cache")))
    return "SET NX"


# --- which are missing -------------------------------------------------------------------------


def test_each_is_of_a_chapter_that_speaks_of_it() -> None:
    assert len({(one.command, one.stem) for one in COMMANDS}) == len(COMMANDS)
    for one in COMMANDS:
        told = CHAPTERS[one.stem].read_text(encoding="utf-8").upper()
        named = r"\b" + r"\W+".join(one.command.split()) + r"\b"
        assert re.search(named, told), f"{one} in {one.stem}"
    assert str(Newer("SET IFEQ", "8.4", "lock")) == "SET IFEQ (8.4)"


@pytest.mark.parametrize("one", COMMANDS, ids=lambda one: f"{one.stem}-{one.command}")
def test_shipped_is_what_the_patterns_class_itself_uses(one: Newer) -> None:
    module = NOTEBOOKS.parent / "labkit" / f"{one.stem}.py"
    named = module.exists() and all(word in module.read_text() for word in one.command.split()[-1:])
    assert one.shipped == named


def test_what_redis_py_calls_experimental_warns_in_no_chapter(r: redis.Redis, known: str) -> None:
    def new(r: Any) -> list[int]:
        warnings.warn("Call to experimental method delex. Be aware that it may change.", UserWarning, 1)
        return [0, int(r.set(KEY, "new"))]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compared(r, known, new=new).same


def test_missing_is_what_is_newer_than_this_redis(r: redis.Redis) -> None:
    assert server_name(r).startswith("Redis")  # on Valkey the numbers would say something else
    version = tuple(map(int, server_info(r)["redis_version"].split(".")[:2]))
    for stem in CHAPTERS:
        late = [one for one in COMMANDS if tuple(map(int, one.since.split("."))) > version]
        assert missing(r, stem) == tuple(one for one in late if one.stem == stem)


def test_a_server_that_does_not_say_lacks_everything(r: redis.Redis, server: Server) -> None:  # noqa: F811
    r.acl_setuser("few", enabled=True, nopass=True, reset_keys=True, commands=["+ping", "+hello", "+client"])
    few = server.client(username="few")
    assert missing(few, "lock") == tuple(one for one in COMMANDS if one.stem == "lock")
    assert missing(few, "pubsub") == ()


# --- side by side ------------------------------------------------------------------------------


def compared(r: Any, command: str, **options: Any) -> SideBySide:
    ways: dict[str, Any] = {"old": by_script, "new": by_commands, "setup": before, "after": found}
    return side_by_side(r, command=command, **{**ways, **options})


def test_both_run_where_the_command_is_known(r: redis.Redis, known: str) -> None:
    both = compared(r, known)
    assert both.same and both.note == "" and both.new is not None
    assert both.old.commands == ("EVALSHA", "EVALSHA")  # no SCRIPT LOAD, no setup, no look afterwards
    assert both.new.commands == ("SET",)
    assert (both.old.round_trips, both.new.round_trips) == (2, 1)
    assert both.new.sent == len(b"*3\r\n$3\r\nSET\r\n$14\r\nworkbook:newer\r\n$3\r\nnew\r\n")
    assert (both.old.received, both.new.received) == (8, 5)
    assert both.old.answer == both.new.answer == "([0, 1], 'new')"
    assert both.old.where == both.new.where == f"run here, {server_name(r)}"
    assert repr(both) == repr(compared(r, known)) and "the same" in repr(both)


def test_the_code_is_the_function_with_its_lua_and_its_helpers(r: redis.Redis, known: str) -> None:
    both = compared(r, known)
    assert both.new is not None
    lua, helper = SCRIPT.strip(), 'def new_value() -> str:\n    return "new"'
    assert both.old.code.startswith("def by_script(r: Any)") and both.new.code.startswith("def by_commands")
    assert both.old.code.count(lua) == both.old.code.count(helper) == 1 and helper not in both.new.code
    assert (both.old.lines, both.new.lines) == (3 + 4 + 2, 2)
    assert both.new.characters == len(both.new.code)


def shadowed(r: Any) -> int:
    new_value = r.get(KEY)
    return sum(len(SCRIPT) for SCRIPT in new_value)


def test_names_of_the_functions_own_are_not_taken_for_the_modules(r: redis.Redis, known: str) -> None:
    both = compared(r, known, new=shadowed)
    assert both.new is not None and both.new.lines == 3


def test_another_answer_or_another_trace_is_not_the_same(r: redis.Redis, known: str) -> None:
    other = compared(r, known, new=otherwise, after=None)
    assert not other.same and "[1, 1]" in repr(other) and "the same" not in repr(other)
    other = compared(r, known, new=otherwise)
    assert not other.same and other.new is not None and other.new.answer == "([1, 1], 'old')"


def test_where_it_is_unknown_a_recorded_run_is_shown(
    r: redis.Redis, known: str, unknown: str, tmp_path: Path
) -> None:
    ran = compared(r, known).new
    assert ran is not None
    record = {**ran.record(), "server": "Redis 99.0.1"}
    (tmp_path / "runs.json").write_text(json.dumps({unknown: record}))
    both = compared(r, unknown, recorded=tmp_path / "runs.json")
    assert both.same and both.new is not None and both.new.recorded and not both.old.recorded
    assert both.new.where == "recorded on Redis 99.0.1" and both.old.where == f"run here, {server_name(r)}"
    assert both.new.record() == record
    for changed in ({"new": otherwise}, {"after": None}):
        stale = compared(r, unknown, recorded=tmp_path / "runs.json", **changed)
        assert stale.new is None and not stale.same
        assert stale.note == (
            f"{server_name(r)} has no NONSENSE; "
            "what was recorded on Redis 99.0.1 is a run of other code than this."
        )
        assert stale.note in repr(stale) and "99.0.1 is a run" in stale._repr_html_()


def test_where_nothing_is_recorded_it_says_so(r: redis.Redis, unknown: str, tmp_path: Path) -> None:
    (tmp_path / "others.json").write_text("{}")
    for recorded in (None, tmp_path / "none.json", tmp_path / "others.json"):
        both = compared(r, unknown, recorded=recorded)
        assert both.new is None and both.note.endswith("has no NONSENSE, and no run of it is recorded.")
        assert list(both.df.index) == ["classic"]


def test_what_is_only_described_is_not_run(r: redis.Redis) -> None:
    both = compared(r, "INCREX", new=None)
    assert both.new is None and not both.same
    assert both.note == "INCREX (8.8) is described here; it was not run."


def test_as_a_table(r: redis.Redis, known: str) -> None:
    both = compared(r, known)
    assert list(both.df.index) == ["classic", "SET NX (2.6)"]
    assert list(both.df["commands"]) == [2, 1] and list(both.df["round_trips"]) == [2, 1]
    assert "<th>SET NX (2.6)</th>" in both._repr_html_() and "2 × EVALSHA" in both._repr_html_()
    quoted = compared(r, known, after=lambda_free)
    assert "&lt;b&gt;" in quoted._repr_html_() and "<b>" not in quoted._repr_html_()


def lambda_free(_: Any) -> str:
    return "<b>"


def fails(r: Any) -> None:
    r.lpush(KEY, "wrong type")


def test_misuse_and_failures(r: redis.Redis, known: str) -> None:
    with pytest.raises(ValueError, match="command is 'GETSET'; one of"):
        compared(r, "GETSET")
    for odd in (lambda r: r.get(KEY), len, eval("lambda r: 1")):
        with pytest.raises(ValueError, match="give a function made by `def`"):
            compared(r, known, old=odd)
    names: dict[str, Any] = {}
    exec("def hidden(r): return 1", names)
    with pytest.raises(ValueError, match="the source of hidden is not to be had"):
        compared(r, known, old=names["hidden"])
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        compared(r, known, new=fails)


# --- what the chapters show of servers that are not here ----------------------------------------


def _cells(chapter: Path) -> list[str]:
    notebook = nbformat.read(chapter, as_version=4)  # type: ignore[no-untyped-call]
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def _pieces(cells: list[str]) -> list[str]:
    """The functions and the texts that stand in the cells."""
    trees = [(cell, ast.parse(cell)) for cell in cells if not re.search(r"^[%!?]|\?$", cell, re.M)]
    nodes = [(cell, node) for cell, tree in trees for node in ast.walk(tree)]
    functions = [
        ast.get_source_segment(c, node) or "" for c, node in nodes if isinstance(node, ast.FunctionDef)
    ]
    constants = [node.value for _, node in nodes if isinstance(node, ast.Constant)]
    return functions + [text.strip() for text in constants if isinstance(text, str) and "\n" in text]


def _consists_of(code: str, pieces: list[str]) -> bool:
    if not code:
        return True
    fitting = [one for one in pieces if code == one or code.startswith(f"{one}\n\n")]
    return any(_consists_of(code.removeprefix(one).removeprefix("\n\n"), pieces) for one in fitting if one)


COMPARING = [path for path in CHAPTERS.values() if "recorded=" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("chapter", COMPARING, ids=lambda path: path.stem)
def test_every_recorded_run_is_of_the_code_in_the_chapter(chapter: Path) -> None:
    """Whoever changes a cell records again: `tests/bench_newer.py --store`."""
    cells = _cells(chapter)
    shown = set(re.findall(r'command="([A-Z ]+)"', "\n".join(cells)))
    runs = json.loads((NOTEBOOKS / "measured" / f"{chapter.stem}_newer.json").read_text(encoding="utf-8"))
    assert runs.keys() == shown
    for command, run in runs.items():
        since = next(one.since for one in COMMANDS if one.command == command)
        name, version = run["server"].split()
        assert name == "Redis" and tuple(map(int, version.split("."))) >= tuple(map(int, since.split(".")))
        for part in ("code", "around"):
            assert _consists_of(run[part], _pieces(cells)), f"{command}: {part} is not what the cells say"


def test_the_chapters_that_compare_are_these() -> None:
    assert {path.stem[3:] for path in COMPARING} == {"cache", "session", "stream", "lock"}
    assert bench_newer.chapters() == COMPARING
    files = sorted((NOTEBOOKS / "measured").glob("*_newer.json"))
    assert [path.name for path in files] == [f"{path.stem}_newer.json" for path in COMPARING]
    unrun = {one.command for one in COMMANDS if one.since == "8.8"}
    recorded = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    assert unrun == {"INCREX"} and not unrun & {command for runs in recorded for command in runs}
