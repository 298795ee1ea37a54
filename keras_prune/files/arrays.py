"""Arrays in files that others made: what they declare is looked at before anything is allocated for it."""

from __future__ import annotations

import os
import zipfile
from math import prod
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from keras_prune.files.archives import require_small_archive

__all__ = ["LARGEST_DATA", "labelled", "load_arrays", "load_inputs", "load_labelled"]

LARGEST_DATA = 4 * 2**30
"""Bytes of arrays in one file, unpacked."""


def load_arrays(path: str | os.PathLike[str], largest: int = LARGEST_DATA) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the array of a `.npy`, or the arrays of a `.npz` by name; pickled objects are refused.

    Args:
        path: of the file.
        largest: bytes that the arrays of a `.npz` may take, unpacked.

    Raises:
        ValueError, BadZipFile, OSError or others: of a damaged file, NumPy and `zipfile` raise anything.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/x.npz", a=np.arange(3), b=np.ones(1))
        ...     load_arrays(f"{folder}/x.npz")
        {'a': array([0, 1, 2]), 'b': array([1.])}
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            return _read_array(file, os.fstat(file.fileno()).st_size)
        with zipfile.ZipFile(file) as archive:
            require_small_archive(archive, largest)
            found = {}
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    found[entry.filename.removesuffix(".npy")] = _read_array(member, entry.file_size)
            return found


def load_inputs(path: str | os.PathLike[str]) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return inputs for a model: the array of a `.npy`, or the arrays of a `.npz`; a single one whatever its name.

    Raises:
        ValueError: it is no such file.
    """
    found = _load(path)
    return next(iter(found.values())) if isinstance(found, dict) and len(found) == 1 else found


def load_labelled(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """Return `(x, y)` or `(x, y, sample_weight)` of a `.npz` file, see `labelled`.

    Raises:
        ValueError: it is no such file, or has no labels or no inputs.
    """
    found = _load(path)
    parts = labelled(found)
    if parts is None:
        names = sorted(found) if isinstance(found, dict) else "one array"
        raise ValueError(
            f"'{os.fspath(path)}' must hold inputs and their labels y. Received: {names}. Save it by "
            "numpy.savez(path, x=x, y=y)."
        )
    return parts


def labelled(arrays: Any) -> tuple[Any, ...] | None:
    """Return `(x, y)` or `(x, y, sample_weight)` of arrays by name; None if there are no labels y or no inputs.

    Args:
        arrays: as `load_arrays` gives them. Of several inputs, x is a dictionary; of one, the name does not matter.

    Example:
        >>> labelled({"pixels": 1, "y": 2}), labelled({"a": 1, "b": 2, "y": 3, "sample_weight": 4}), labelled({"x": 1})
        ((1, 2), ({'a': 1, 'b': 2}, 3, 4), None)
    """
    if not isinstance(arrays, dict):
        return None
    inputs = {name: value for name, value in arrays.items() if name not in ("y", "sample_weight")}
    if "y" not in arrays or not inputs:
        return None
    x = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return (x, arrays["y"], *(arrays[name] for name in ("sample_weight",) if name in arrays))


def _load(path: str | os.PathLike[str]) -> NDArray[Any] | dict[str, NDArray[Any]]:
    try:
        return load_arrays(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"'{os.fspath(path)}' must be a .npy or .npz of numbers. Received: {type(error).__name__}: {error}. "
            "Save it by numpy.save."
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
