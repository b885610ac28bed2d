"""Code as reading matter: the source of a class, a function or an answer, highlighted in the notebook."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(frozen=True)
class Listing:
    """Python source that a notebook shows highlighted and a terminal shows as it is."""

    code: str

    def __repr__(self) -> str:
        return self.code

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```"


def source(thing: Any) -> Listing:
    """The source of a class, function or method (of an instance: of its class), as a Listing.

    Raises TypeError where there is none to show: builtins, and what was compiled in C.
    """
    return Listing(source_text(thing))


def source_text(thing: Any) -> str:
    """The source as text, dedented. Finds classes that a notebook cell defines, where `inspect` does not."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
        thing = type(thing)
    try:
        code = _class_in_cell(thing) if isinstance(thing, type) else ""
        return textwrap.dedent(code or inspect.getsource(thing)).rstrip()
    except (OSError, TypeError):
        raise TypeError(
            f"{thing!r} has no Python source to show; give a class, a function or a method"
        ) from None


def _class_in_cell(cls: type) -> str:
    """A cell is no module, so the class itself names no file; its methods do."""
    if cls.__module__ != "__main__":
        return ""
    for member in vars(cls).values():
        function = inspect.unwrap(getattr(member, "__func__", member))
        if isinstance(function, FunctionType) and function.__qualname__.startswith(f"{cls.__qualname__}."):
            text = "".join(linecache.getlines(function.__code__.co_filename))
            return _definition(text, cls.__name__)
    return ""


def _definition(text: str, name: str) -> str:
    """The last class or function called `name` in `text`, decorators included; "" if there is none."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name]
    if not found:
        return ""
    node = found[-1]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def same_code(thing: Any, text: str) -> bool:
    """Is `thing` what `text` defines under that name, apart from comments and layout?"""
    try:
        mine = source_text(thing)
        name = (thing if hasattr(thing, "__name__") else type(thing)).__name__
        theirs = _definition(text, name)
        return bool(theirs) and ast.dump(ast.parse(mine)) == ast.dump(ast.parse(textwrap.dedent(theirs)))
    except (TypeError, SyntaxError):
        return False
