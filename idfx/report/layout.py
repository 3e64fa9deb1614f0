"""Lines and tables for a terminal, with rich."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDEST = 10_000  # of a line; a terminal wraps longer lines, and a pipe gets them whole


def text(*parts: Any) -> str:
    """Render without colour at a fixed width, so that piped output equals terminal output; tables may be wider."""
    file = io.StringIO()
    console = Console(file=file, width=_WIDEST, no_color=True, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table without lines, with columns as wide as their contents."""
    made = Table(box=None, pad_edge=False, header_style="", show_edge=False)
    for heading in headings:
        made.add_column(heading, no_wrap=True, overflow="ignore")
    for row in rows:
        made.add_row(*row)
    return made


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "tensor"), count(1200, "tensor")
        ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
