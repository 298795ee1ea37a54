"""Which operations of Keras are the mean over a whole map, however they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers as kl

from keras_prune.keras_seam import AdaptiveAveragePool, AveragePool, Mean

__all__ = ["is_mean_of_map", "is_mean_of_places", "pools_whole_map"]

Shape = Sequence[int | None]


def is_mean_of_map(operation: Any, given: Shape) -> bool:
    """Say whether an operation takes a map `[batch, height, width, channels]` to its mean over all places.

    Args:
        operation: a layer or an operation of `keras.ops`.
        given: the shape of its input.

    Example:
        >>> [is_mean_of_map(kl.AveragePooling2D(size), (None, 7, 7, 64)) for size in (7, 2)]
        [True, False]
    """
    if len(given) != 4:
        return False
    if isinstance(operation, kl.GlobalAveragePooling2D):
        return bool(operation.data_format == "channels_last")
    if isinstance(operation, Mean):
        return operation.axis is not None and sorted(axis % 4 for axis in _pair(operation.axis)) == [1, 2]
    return pools_whole_map(operation, given)


def pools_whole_map(operation: Any, given: Shape) -> bool:
    """Say whether a pooling by windows has one window, which covers the whole map; sizes have to be known.

    With 'same', places outside the map do not count in the mean, so a window may be larger than the map.
    """
    if len(given) != 4 or tuple(given[1:3]) == (1, 1) or _format(operation) != "channels_last":
        return False
    if isinstance(operation, (kl.AdaptiveAveragePooling2D, AdaptiveAveragePool)):
        return _pair(operation.output_size) == (1, 1) and None not in given[1:3]
    if not isinstance(operation, (kl.AveragePooling2D, AveragePool)):
        return False
    pool = _pair(operation.pool_size)
    strides = _pair(operation.strides if operation.strides is not None else operation.pool_size)
    if operation.padding == "valid":
        return pool == tuple(given[1:3])
    sizes = list(zip(given[1:3], pool, strides, strict=True))
    return all(size is not None and stride >= size and reach >= size for size, reach, stride in sizes)


def is_mean_of_places(reshape: Any, given: Shape, made: Shape, mean: Any) -> bool:
    """Say whether a Reshape of a map to `[batch, places, channels]` and what reads it are the mean over all places.

    Args:
        reshape: the first operation.
        given: the shape of its input.
        made: the shape of its output.
        mean: the operation that reads it.
    """
    if not isinstance(reshape, kl.Reshape) or len(given) != 4 or len(made) != 3 or given[-1] != made[-1]:
        return False
    if isinstance(mean, kl.GlobalAveragePooling1D):
        return bool(mean.data_format == "channels_last" and not mean.keepdims)
    if not isinstance(mean, Mean) or mean.axis is None or mean.keepdims:
        return False
    return [axis % 3 for axis in _pair(mean.axis)] == [1]


def _format(operation: Any) -> str:
    """Return the order of an operation's axes; where it names none, Keras's default holds."""
    return getattr(operation, "data_format", None) or keras.config.image_data_format()


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
