"""Arrays and shapes that initializers, regularizers and constraints hold, cut with the weights that they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

__all__ = ["cut_arrays"]

Cuts = Sequence[tuple[keras.Variable, tuple[npt.NDArray[Any] | None, ...]]]

KINDS = ("initializer", "regularizer", "constraint")


def cut_arrays(config: Any, cuts: Cuts) -> Any:
    """Return a layer's configuration in which arrays of the size of a weight have its new size, and so have shapes.

    Looked at is what stands under keys such as `kernel_initializer` or `bias_constraint`, at any depth: arrays written
    down as Keras writes them, nested lists of numbers, and lists of whole numbers that are the weight's shape. An array
    fits where it has the weight's shape, or one that is broadcast to it.

    Args:
        config: of a layer.
        cuts: weights that are cut, each with the indices that stay along its axes, None for all.

    Example:
        >>> layer = keras.layers.Dense(3, bias_initializer=keras.initializers.Constant(np.array([1.0, 2.0, 3.0])))
        >>> layer.build((None, 2))
        >>> cut = cut_arrays(layer.get_config(), [(layer.bias, (np.array([0, 2]),))])
        >>> cut["bias_initializer"]["config"]["value"]["config"]["value"]
        [1.0, 3.0]
    """
    if not cuts:
        return config
    if isinstance(config, Mapping):
        return {
            key: _cut_under(value, _cuts_of(str(key), cuts)) if _is_kind(key) else cut_arrays(value, cuts)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(cut_arrays(value, cuts) for value in config)
    return config


def _is_kind(key: Any) -> bool:
    return isinstance(key, str) and key.endswith(KINDS)


def _cuts_of(key: str, cuts: Cuts) -> Cuts:
    """The weights that a key is for, by their names, first; a layer inside may call its own otherwise."""
    prefix = key.rsplit("_", 1)[0]  # `recurrent_initializer` is for `recurrent_kernel`
    return sorted(cuts, key=lambda cut: cut[0].name != prefix and not cut[0].name.startswith(f"{prefix}_"))


def _cut_under(value: Any, cuts: Cuts) -> Any:
    if isinstance(value, Mapping):
        if value.get("class_name") in ("__numpy__", "__tensor__") and "value" in value.get("config", {}):
            inner = value["config"]
            return {**value, "config": {**inner, "value": _cut_array(inner["value"], cuts)}}
        return {key: _cut_under(entry, cuts) for key, entry in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return _cut_array(value, cuts)
    return value


def _cut_array(value: Any, cuts: Cuts) -> Any:
    """An array, as one or as nested lists, cut as the first weight whose shape it fits; a shape, that of the weight."""
    numbers = _numbers(value)
    if numbers is None:
        return type(value)(_cut_under(entry, cuts) for entry in value) if isinstance(value, list | tuple) else value
    for variable, stays in cuts:
        shape = tuple(variable.shape)
        if numbers.ndim == 1 and len(shape) > 1 and numbers.dtype.kind in "iu" and tuple(numbers.tolist()) == shape:
            new = [size if axis is None else len(axis) for size, axis in zip(shape, stays, strict=True)]
            return type(value)(new) if isinstance(value, list | tuple) else np.array(new, numbers.dtype)
        first = len(shape) - numbers.ndim
        fits = [a in (1, b) for a, b in zip(numbers.shape, shape[first:], strict=True)] if first >= 0 else [False]
        if all(fits) and numbers.ndim:
            for axis, (size, indices) in enumerate(zip(numbers.shape, stays[first:], strict=True)):
                if indices is not None and size == shape[first + axis]:
                    numbers = np.take(numbers, indices, axis)
            return numbers if isinstance(value, np.ndarray) else numbers.tolist()
    return value


def _numbers(value: Any) -> npt.NDArray[Any] | None:
    if isinstance(value, np.ndarray):
        return value
    try:
        found = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return found if found.dtype.kind in "iufb" and found.ndim else None
