"""A small table of finished words, as text and as HTML: what results show of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["html", "text"]


def text(rows: Sequence[Sequence[str]]) -> str:
    """A line for each row, with aligned columns: the first to the left, the others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows)


def html(rows: Sequence[Sequence[str]]) -> str:
    """A <table>; the first row is its head, and the first cell of each other row names that row."""
    head, *body = [[escape(cell) for cell in row] for row in rows]
    lines = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, *cells in body
    )
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
