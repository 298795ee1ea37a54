"""Which constant of the file each kernel became, and whether the converter kept the kernel's zeros.

The converter folds a batch normalization into the kernel before it: each output channel of the constant is then a
multiple of the kernel's, and no longer equal to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from numpy.typing import NDArray

from keras_prune.keras_seam import layers_in
from keras_prune.layer_kinds import altered
from keras_prune.models.variables import read
from tflite_export.plan.eligibility import Weight

__all__ = ["LARGEST_ANGLE", "Match", "kernels_of", "lost_zeros", "match_kernels", "with_paths"]

LARGEST_ANGLE = 1e-3
"""Largest distance at which a channel of a kernel and one of a constant, each scaled to length 1, count as the same.

A channel that was scaled in float32 is about 1e-7 away; a channel of another kernel, 0.1 to 2.
"""


@dataclass(frozen=True, eq=False)
class Match:
    """A kernel and the constant that it became.

    Args:
        path: path of the Keras variable.
        weight: the constant.
        folded: whether the constant is the kernel times one factor for each output channel, not the kernel itself.
        lost: number of the kernel's zeros that are not zero in the constant.
    """

    path: str
    weight: Weight
    folded: bool
    lost: int


def kernels_of(model: keras.Model) -> dict[str, NDArray[Any]]:
    """Return the kernels of a model by path, each in the layout that TFLite gives it.

    Dense [in, out] -> [out, in]; convolutions [height, width, in, out] -> [out, height, width, in], with height 1 for
    Conv1D; depthwise [height, width, in, multiplier] -> [1, height, width, in * multiplier]. The arrays may share
    memory with the variables.

    Args:
        model: the model that is converted, with its masks taken off and rewritten.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), kl.Conv2D(4, (3, 5)), kl.DepthwiseConv2D(3)])
        >>> [kernel.shape for kernel in kernels_of(model).values()]
        [(4, 3, 5, 3), (1, 3, 3, 4)]
    """
    kernels: dict[str, NDArray[Any]] = {}
    for layer in layers_in(model):
        for variable, layout in _laid_out(layer):
            kernels[variable.path] = layout(read(variable))
    return kernels


def match_kernels(kernels: Mapping[str, NDArray[Any]], weights: Iterable[Weight]) -> tuple[Match, ...]:
    """Find the constant of each kernel: one that is equal, or equal up to a factor for each output channel.

    Each constant is matched with one kernel only. A kernel without a match is left out of the result, and so of
    `lost_zeros`: the converter dropped its layer, or wrote it in another form.

    Args:
        kernels: kernels by path in TFLite's layout, as `kernels_of` returns them.
        weights: constants of the dense file, as `weights.collect` returns them; only those of float types are searched.
    """
    free: defaultdict[tuple[int, ...], list[Weight]] = defaultdict(list)
    for weight in weights:
        if weight.values.dtype.kind == "f":
            free[weight.values.shape].append(weight)
    matches = {}
    for folded in (False, True):  # equal constants first, so that none of them is matched with a scaled kernel
        for path, kernel in kernels.items():
            found = None if path in matches else _find(kernel, free[kernel.shape], folded)
            if found is not None:
                free[kernel.shape] = [weight for weight in free[kernel.shape] if weight is not found]
                lost = int(np.count_nonzero((kernel == 0) & (found.values != 0)))
                matches[path] = Match(path, found, folded, lost)
    return tuple(matches[path] for path in kernels if path in matches)


def lost_zeros(matches: Iterable[Match]) -> dict[str, int]:
    """Return the number of zeros that each kernel lost in conversion, for those kernels that lost some."""
    return {match.path: match.lost for match in matches if match.lost}


def with_paths(weights: Iterable[Weight], matches: Iterable[Match]) -> list[Weight]:
    """Return the weights, each one that was matched with a kernel named by the kernel's path."""
    paths = {match.weight.tensors: match.path for match in matches}
    return [replace(weight, name=paths.get(weight.tensors, weight.name)) for weight in weights]


def _find(kernel: NDArray[Any], candidates: Sequence[Weight], folded: bool) -> Weight | None:
    if not folded:
        return next((weight for weight in candidates if np.array_equal(weight.values, kernel)), None)
    angles = [_angle(kernel, weight.values) for weight in candidates]
    best = min(range(len(angles)), key=angles.__getitem__, default=None)
    return None if best is None or not angles[best] <= LARGEST_ANGLE else candidates[best]


def _angle(kernel: NDArray[Any], constant: NDArray[Any]) -> float:
    """Return the median distance between the channels of two arrays, each channel scaled to length 1.

    The median, so that a few channels in which zeros were lost do not hide a match. Infinity if too few channels
    can be compared: a channel that is all zeros in either array cannot.
    """
    a, b = _channels(kernel), _channels(constant)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both = (lengths[0] > 0) & (lengths[1] > 0)
    if not both.any() or np.count_nonzero(both) < np.count_nonzero(lengths[1]) / 2:
        return float("inf")
    a, b = a[both] / lengths[0][both, None], b[both] / lengths[1][both, None]
    sign = np.sign((a * b).sum(axis=1, keepdims=True))  # the factor may be negative
    return float(np.median(np.linalg.norm(a - sign * b, axis=1)))


def _channels(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array as [channels, rest]. The channels are the first axis; in a depthwise kernel, the last."""
    depthwise = values.ndim == 4 and values.shape[0] == 1
    flat = values.reshape(-1, values.shape[-1]).T if depthwise else values.reshape(len(values), -1)
    return flat.astype(np.float64)


def _laid_out(layer: Any) -> list[tuple[Any, Any]]:
    """Return (kernel, function that brings it into TFLite's layout) for each kernel of a layer."""
    if not layer.built or altered(layer):
        return []
    if isinstance(layer, kl.Dense):
        return [(layer.kernel, np.transpose)]
    if isinstance(layer, kl.SeparableConv2D):
        return [(layer.depthwise_kernel, _depthwise), (layer.pointwise_kernel, _out_first)]
    if isinstance(layer, kl.DepthwiseConv2D):
        return [(layer.kernel, _depthwise)]
    if isinstance(layer, kl.Conv2DTranspose):
        return [(layer.kernel, lambda values: values.transpose(2, 0, 1, 3))]
    if isinstance(layer, (kl.Conv1D, kl.Conv2D)):
        return [(layer.kernel, _out_first)]
    return []


def _out_first(values: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(values[None] if values.ndim == 3 else values, -1, 0)


def _depthwise(values: NDArray[Any]) -> NDArray[Any]:
    height, width = values.shape[:2]
    return values.reshape(1, height, width, -1)
