"""The inputs that a file is verified on: given ones, or drawn ones with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_prune.keras_seam import layers_in
from keras_prune.models.samples import draw_array, readers_of
from keras_prune.statistics.input_shapes import InputShapes, describe, is_array
from keras_prune.statistics.reading import Reader
from tflite_export.errors import ExportError
from tflite_export.model.reasons import reason_of
from tflite_export.model.signature import InputSpec, Signature

__all__ = ["DRAWN", "SAMPLES", "SEED", "Inputs", "check_array", "check_counts", "collect_inputs", "read_leaves"]

SAMPLES = 32
"""Samples that a file is verified on, at most."""
DRAWN = 4
"""Samples drawn where no data are given."""
SEED = 20240229


@dataclass(frozen=True, eq=False)
class Inputs:
    """Samples, one array [samples, ...] for each input of the signature.

    Args:
        arrays: in the signature's order.
        drawn: they are random, not real.
    """

    arrays: tuple[NDArray[Any], ...]
    drawn: bool

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.arrays[0])


def collect_inputs(model: keras.Model, signature: Signature, data: Any = None, samples: int = SAMPLES) -> Inputs:
    """Return the first `samples` samples of `data`, or drawn ones where it is None.

    Args:
        model: read for the ranges of its embeddings, where inputs are drawn.
        signature: of the model.
        data: an array; a list, tuple or dictionary of arrays for several inputs; a `tf.data.Dataset`,
            `keras.utils.PyDataset`, generator or other iterable of batches or of single samples, each `x` or
            `(x, y)`; or a function that returns such a generator, as TFLite's `representative_dataset`. It is read
            no further than needed: see `keras_prune.statistics.reading.Reader`.
        samples: at most so many.

    Raises:
        ExportError: the data do not fit the signature, or hold NaN.

    Warns:
        UserWarning: inputs are drawn: a standard normal for floats; for integers the range of the model's
            embeddings, else 0 and 1. Or the data set is of single samples.
    """
    if data is None:
        return _draw(model, signature, samples)
    leaves = read_leaves(data, signature, samples)
    arrays = tuple(_fit(leaf, spec, samples) for leaf, spec in zip(leaves, signature.inputs, strict=True))
    check_counts(arrays)
    return Inputs(arrays, drawn=False)


def read_leaves(data: Any, signature: Signature, samples: int, *, whole: bool = False) -> list[NDArray[Any]]:
    """Return an array for each input, of the first samples of data: see `collect_inputs`.

    Args:
        data: in any form.
        signature: whose inputs they are for.
        samples: so many, or fewer where there are no more.
        whole: of arrays, take all samples; so many of a data set only.

    Raises:
        ExportError: there are no data in them, or not for each input.
    """
    names = [spec.name for spec in signature.inputs]
    keys = sorted(signature.structure) if isinstance(signature.structure, dict) else names
    shapes = InputShapes(tuple(keys), tuple((None, *spec.shape) for spec in signature.inputs))
    # Reading ends with the samples that are wanted, so there is no other limit.
    reader = Reader(data, shapes, size=samples, limit=None)
    try:
        if whole and reader.whole:
            samples = reader.size = sys.maxsize
    except ValueError as error:
        raise _unreadable(error) from error
    taken: list[list[NDArray[Any]]] = []
    try:
        for parts in reader:
            taken.append(_leaves(parts[0], keys))
            if sum(len(leaves[0]) if leaves[0].ndim else 1 for leaves in taken) >= samples:
                break
    except ValueError as error:  # of the reader, whose messages are whole sentences, or of the data themselves
        raise _unreadable(error) from error
    if not taken:
        raise ExportError(
            "data",
            "at least one sample is needed",
            f"{describe(data)}, which is empty",
            "Check the data set; an iterator that was read to its end before is empty too: pass a list or an array.",
        )
    try:
        joined = [np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in zip(*taken, strict=True)]
    except ValueError as error:
        raise ExportError(
            "data",
            "batches must have the same sizes",
            reason_of(error),
            "Pass samples of one length, or a batch of them.",
        ) from error
    return [array[:samples] if array.ndim else array for array in joined]


def _unreadable(error: ValueError) -> ExportError:
    if isinstance(error, ExportError):
        return error
    return ExportError("data", "must be readable", reason_of(error), "Pass an array, or a data set of x.")


def _leaves(x: Any, keys: list[str]) -> list[NDArray[Any]]:
    """Return the arrays of x, one for each input."""
    if isinstance(x, Mapping):
        missing = [key for key in keys if key not in x]
        if missing:
            raise ExportError(
                "data", f"a dictionary must hold the inputs {keys}", sorted(map(str, x)), f"Add {missing}."
            )
        return [_numpy(x[key]) for key in keys]
    leaves = [x] if is_array(x) else keras.tree.flatten(x)
    wrong = [leaf for leaf in leaves if not is_array(leaf)]
    if wrong:
        raise ExportError("data", "a batch must hold arrays", describe(wrong[0]), "Let the data set yield x or (x, y).")
    if len(leaves) != len(keys):
        raise ExportError(
            "data",
            f"the model takes {len(keys)} inputs: {keys}",
            f"{len(leaves)} arrays",
            "Give one array for each input.",
        )
    return [_numpy(leaf) for leaf in leaves]


def _numpy(value: Any) -> NDArray[Any]:
    return np.asarray(value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value))


def check_array(array: NDArray[Any], spec: InputSpec) -> None:
    """Refuse an array that has not the shape of an input, holds NaN, or no numbers.

    Raises:
        ExportError: it is one.
    """
    subject = f"data for input '{spec.name}'"
    wanted = ("samples", *("any" if size is None else size for size in spec.shape))
    fits = array.ndim == len(wanted) and all(
        size is None or size == have for size, have in zip(spec.shape, array.shape[1:], strict=True)
    )
    if not fits:
        raise ExportError(subject, f"must have the shape {wanted}", array.shape, "Was the batch dimension left out?")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ExportError(subject, "must hold no NaN", f"{int(np.isnan(array).sum())} NaN", "Clean the data.")
    if array.dtype.kind not in "fiub":
        raise _lossy(array, spec)


def check_counts(arrays: Iterable[NDArray[Any]]) -> None:
    """Refuse arrays of different numbers of samples, or of none.

    Raises:
        ExportError: they are such.
    """
    counts = {len(array) for array in arrays}
    if len(counts) != 1 or counts == {0}:
        raise ExportError(
            "data",
            "every input needs the same number of samples, at least one",
            sorted(counts),
            "Check the first dimension of each array.",
        )


def _fit(array: NDArray[Any], spec: InputSpec, samples: int) -> NDArray[Any]:
    """Return the first samples of an array in the type of an input, their shape and values checked."""
    array = array[:samples] if array.ndim else array
    check_array(array, spec)
    if array.dtype.kind == "f" and np.dtype(spec.dtype).kind in "iub":
        raise _lossy(array, spec)
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _lossy(array: NDArray[Any], spec: InputSpec) -> ExportError:
    way_out = f"Cast it to {spec.dtype}." if array.dtype.kind in "fiub" else "Give numbers: a .tflite reads no text."
    return ExportError(
        f"data for input '{spec.name}'", f"must convert to {spec.dtype} without loss", array.dtype.name, way_out
    )


def _draw(model: keras.Model, signature: Signature, samples: int) -> Inputs:
    """Draw a few samples for each input, with a warning."""
    warnings.warn(
        "no data given: the file is verified on inputs drawn from a standard normal (integers: from the "
        "embeddings' range, else 0 and 1). Pass data=... to verify it on real ones.",
        UserWarning,
        stacklevel=4,
    )
    rng, inputs = np.random.default_rng(SEED), getattr(model, "inputs", None)
    arrays = []
    for position, spec in enumerate(signature.inputs):
        if any(size is None for size in spec.shape):
            raise ExportError(
                f"input '{spec.name}'",
                "its shape must be known for inputs to be drawn",
                spec.shape,
                "Pass data=... .",
            )
        shape = (min(DRAWN, samples), *(size for size in spec.shape if size is not None))
        if not spec.dtype.startswith(("int", "uint", "bool", "float", "bfloat")):
            raise ExportError(f"input '{spec.name}'", "only numbers can be drawn", spec.dtype, "Pass data=... .")
        readers = readers_of(model, inputs[position]) if inputs else ()
        # Where it is not known what reads an input of floats, they are taken for features, not for ids.
        layers = layers_in(model) if spec.dtype.startswith(("int", "uint", "bool")) else ()
        arrays.append(draw_array(rng, shape, spec.dtype, readers, layers).astype(spec.dtype))
    return Inputs(tuple(arrays), drawn=True)
