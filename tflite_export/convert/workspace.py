"""Room for the work of an export: a temporary folder that goes away whatever happens, and a model for one at a time."""

from __future__ import annotations

import errno
import functools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from tflite_export.errors import ExportError

__all__ = ["P", "R", "in_turn", "temporary_folder"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = ("no space left on device", "disk quota exceeded")
"""By TensorFlow and HDF5, whose errors carry no number."""
_TURN = threading.RLock()

P = ParamSpec("P")
R = TypeVar("R")


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Let one thread at a time run functions that work on models.

    An export changes its model for a while, such as what its layers compute in, and puts that back; two of one model,
    or of models that share layers, would meet what the other has changed.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _TURN:
            return function(*args, **kwargs)

    return alone


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Yield a temporary folder; it goes away on any way out, failures and Ctrl-C included.

    Raises:
        ExportError: it cannot be made, or is full.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="tflite-export-", ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from error
    with folder as name:
        try:
            yield name
        except Exception as error:
            if _says_full(error):
                raise _no_room(error) from error
            raise


def _says_full(error: BaseException | None) -> bool:
    """Return whether an error, or what it arose from, is that of a full disk."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error raised twice may lead to itself
        seen.add(id(error))
        said = str(error).lower()
        if (isinstance(error, OSError) and error.errno in _FULL) or any(words in said for words in _SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_room(error: Exception) -> ExportError:
    try:
        place = tempfile.gettempdir()
        received = f"too little room ({shutil.disk_usage(place).free:,} bytes are free)"
    except OSError:
        place, received = "of this system", str(getattr(error, "strerror", None) or error)
    return ExportError(
        f"the temporary folder '{place}'",
        "must be writable and have room for the model, which TensorFlow's converter reads from there",
        received,
        "Free it, or set the environment variable TMPDIR to a folder on a larger disk.",
    )
