"""Read files that others made: what they declare is looked at before anything is allocated for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from keras_prune.files import archives
from keras_prune.files.arrays import LARGEST_DATA, load_arrays
from tflite_export.errors import ExportError

__all__ = ["LARGEST_DATA", "check_keras_archive", "read_arrays", "require_file"]


def require_file(path: str | os.PathLike[str], largest: int) -> None:
    """Refuse what is no regular file, such as a device or a pipe that never ends, or is too large.

    Raises:
        ExportError: it is such, or not there.
    """
    subject = f"'{os.fspath(path)}'"
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        received = getattr(error, "strerror", None) or error
        raise ExportError(subject, "must be a readable file", received, "Check the path.") from error
    regular = stat.S_ISREG(found.st_mode)
    if not regular or found.st_size > largest:
        received = f"{found.st_size} bytes" if regular else "no regular file"
        raise ExportError(subject, f"must be a file of at most {largest} bytes", received, "Check the path.")


def check_keras_archive(path: Path) -> None:
    """Refuse a .keras file that is no whole archive, or unpacks to more than a model takes, before Keras reads it.

    Raises:
        ExportError: it is such.
    """
    try:
        archives.check_keras_archive(path, archives.LARGEST_MODEL)
    except Exception as error:  # of a damaged archive zipfile raises anything from BadZipFile to struct.error
        raise ExportError(
            f"'{path}'",
            "must be a whole .keras file",
            f"{type(error).__name__}: {error}",
            "It is damaged, cut short or no model: save it again.",
        ) from error


def read_arrays(path: str | os.PathLike[str]) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the array of a `.npy`, or the arrays of a `.npz` by name; pickled objects are refused.

    Raises:
        ExportError: it cannot be read, or declares more than it holds or than is allowed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/x.npz", a=np.arange(3), b=np.ones(1))
        ...     read_arrays(f"{folder}/x.npz")
        {'a': array([0, 1, 2]), 'b': array([1.])}
    """
    require_file(path, LARGEST_DATA)
    try:
        return load_arrays(path, LARGEST_DATA)
    except Exception as error:  # NumPy and zipfile raise anything on damage
        raise ExportError(
            f"'{os.fspath(path)}'",
            "must be a .npy or .npz of numbers",
            f"{type(error).__name__}: {error}",
            "Save it by numpy.save.",
        ) from error
