"""Tables as plain text, the same in a terminal, a file and a notebook."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, Group

__all__ = ["plain_lines"]


def plain_lines(*parts: Any, width: int) -> list[str]:
    """Return what `rich` makes of tables and texts, line by line, without colours or spaces at the end.

    Args:
        parts: one below the other.
        width: characters in a line.

    Example:
        >>> plain_lines("two words", width=5)
        ['two', 'words']
    """
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(Group(*parts))
    return [line.rstrip() for line in capture.get().splitlines()]
