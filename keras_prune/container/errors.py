"""What is wrong with a container, and where in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from keras_prune.text.plaintext import printable

__all__ = ["ContainerError", "Fault", "located"]

LONGEST = 400
"""Characters of a rule that a message shows: it may quote what the file says."""


class Fault(Exception):
    """Content breaks a rule of the format; whoever knows the file and the place makes a `ContainerError` of it."""


class ContainerError(ValueError):
    """A `.kpz` file is damaged, no such file, or makes no model.

    Args:
        path: of the file.
        place: where in it: the offset of a record, and its name if that is known.
        rule: what the file breaks.
        way_out: what to do about it.

    Example:
        >>> raise ContainerError("m.kpz", "byte 40, tensor 'layers/dense/vars/0'", "the checksum does not match")
        Traceback (most recent call last):
            ...
        keras_prune.container.errors.ContainerError: 'm.kpz' cannot be read: byte 40, tensor 'layers/dense/vars/0': ...
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        place: str,
        rule: str,
        way_out: str = "Take another copy, or write it again with keras_prune.save_kpz.",
    ) -> None:
        super().__init__(path, place, rule, way_out)
        self.path, self.place, self.rule, self.way_out = os.fspath(path), place, rule[:LONGEST], way_out

    def __str__(self) -> str:
        """Return the message as one line."""
        place = self.place if len(self.place) <= LONGEST else f"{self.place[:LONGEST]}..."
        return printable(f"{self.path!r} cannot be read: {place}: {self.rule}. {self.way_out}", lines=False)


@contextlib.contextmanager
def located(path: str | os.PathLike[str], place: str) -> Iterator[None]:
    """Turn a fault into an error that names the file and the place."""
    try:
        yield
    except Fault as fault:
        raise ContainerError(path, place, str(fault)) from fault
