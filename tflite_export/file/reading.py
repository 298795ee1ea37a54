"""Read files that others made: what they declare is looked at before anything is allocated for it."""

from __future__ import annotations

import os
import stat
import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from keras_prune.files import archives
from tflite_export.errors import ExportError

__all__ = ["LARGEST_DATA", "check_keras_archive", "read_arrays", "require_file"]

LARGEST_DATA = 4 * 2**30
"""Bytes of arrays in one file, unpacked."""


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
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                return _read_array(file, os.fstat(file.fileno()).st_size)
            with zipfile.ZipFile(file) as archive:
                archives.require_small_archive(archive, LARGEST_DATA)
                found = {}
                for entry in archive.infolist():
                    with archive.open(entry) as member:
                        found[entry.filename.removesuffix(".npy")] = _read_array(member, entry.file_size)
                return found
    except Exception as error:  # NumPy and zipfile raise anything on damage
        raise ExportError(
            f"'{os.fspath(path)}'",
            "must be a .npy or .npz of numbers",
            f"{type(error).__name__}: {error}",
            "Save it by numpy.save.",
        ) from error


def _read_array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """Return the array of a .npy that takes so many bytes."""
    stream.seek(0)
    version = npy.read_magic(stream)
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"the format's version {version}, where arrays of numbers have 1.0 or 2.0")
    shape, _, dtype = headers[version](stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which are not loaded")
    declared, there = prod(shape) * dtype.itemsize, size - stream.tell()
    if declared != there:
        raise ValueError(f"shape {shape} of {dtype}, which takes {declared} bytes, where {there} are")
    stream.seek(0)
    array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array
