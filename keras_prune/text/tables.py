"""Tables as plain text, the same in a terminal, a file and a notebook."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from keras_prune.text.plaintext import printable

__all__ = ["WIDTH", "plain_lines", "plain_text"]

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
