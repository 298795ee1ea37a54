"""Write a file at once or not at all: `keras_prune.files.atomic`, with this package's errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from keras_prune.files import atomic
from tflite_export.errors import ExportError

__all__ = ["check_apart", "check_writable", "write_atomically"]


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before work begins.

    Raises:
        ExportError: it is a folder or no regular file, or its folder does not exist or may not be written.
    """
    with _errors():
        atomic.check_writable(path)


def check_apart(inputs: Mapping[str, Any], outputs: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """Refuse an output that would be written over an input or another output: see the function of the same name.

    Raises:
        ExportError: two are the same file.
    """
    with _errors():
        atomic.check_apart(inputs, outputs)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that the path holds either what it held before or all of the new content.

    Raises:
        ExportError: the disk is full, or the folder cannot be written.
    """
    with _errors():
        atomic.write_atomically(path, content)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except atomic.PathError as error:
        raise ExportError(*error.args) from error
