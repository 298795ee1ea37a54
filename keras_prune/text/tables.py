"""Tables as plain text, the same in a terminal, a file and a notebook."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from keras_prune.text.plaintext import printable

__all__ = ["WIDTH", "plain_lines", "plain_table", "plain_text"]

WIDTH = 120
"""Characters in a line, where nothing else is said."""


class _PlainConsole(Console):
    """Renders cells and titles as they can be printed, before it measures them."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, lines=False), **options)


def plain_text(*parts: Any, width: int = WIDTH) -> str:
    """Return what `rich` makes of tables and texts, without colours.

    Args:
        parts: one below the other.
        width: characters in a line.
    """
    stream = io.StringIO()
    console = _PlainConsole(
        width=width, file=stream, color_system=None, force_terminal=False, highlight=False, markup=False, emoji=False
    )
    console.print(Group(*parts))
    return printable(stream.getvalue())


def plain_lines(*parts: Any, width: int = WIDTH) -> list[str]:
    """Return what `rich` makes of tables and texts, line by line, without colours or spaces at the end.

    Args:
        parts: one below the other.
        width: characters in a line.

    Example:
        >>> plain_lines("two words", width=5)
        ['two', 'words']
    """
    return [line.rstrip() for line in plain_text(*parts, width=width).splitlines()]


def plain_table(
    title: str, columns: Mapping[str, Sequence[str]], *, right: Collection[str] = (), width: int = WIDTH
) -> str:
    """Return a table as text; a word that is longer than its column goes on in the next line.

    Args:
        title: the line above it.
        columns: the cells of each column by its heading, as many in each.
        right: headings of the columns that are aligned to the right, as numbers are.
        width: characters in a line.

    Example:
        >>> print(plain_table("Files", {"file": ["a.tflite"], "bytes": ["12"]}, right=["bytes"]).splitlines()[4])
        │ a.tflite │    12 │
    """
    table = Table(title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return plain_text(table, width=width)
