"""Text that others wrote, made harmless where it is shown."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what is not to reach a terminal: controls, formats, halves of pairs, line separators."""
_JOINERS = "\u200c\u200d"
"""Formats that scripts need to be written rightly; they move nothing."""


def printable(text: str, *, lines: bool = True) -> str:
    r"""Return a text in which no character acts on a terminal or a page: such ones are written as escapes.

    Names of layers, tensors and operators come from files that anyone may have made; printed as they are, they could
    clear the screen, colour a failure green, or turn the direction of reading.

    Args:
        text: any text.
        lines: it may have several lines; else line breaks and tabs are escaped too.

    Example:
        >>> printable("\x1b[2Jdense\u202e", lines=False), printable("größe → 3\n")
        ('\\x1b[2Jdense\\u202e', 'größe → 3\n')
    """
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode()
        if unicodedata.category(each) in _ESCAPED and each not in _JOINERS and not (lines and each in "\n\t")
        else each
        for each in text
    )
