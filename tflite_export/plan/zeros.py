"""Whether the converter kept the zeros of the kernels, and which constant of the file each kernel became.

The converter multiplies a batch normalization into the kernel before it, channel by channel: the constant is no
longer the Keras variable, bit by bit, but each of its output channels is a multiple of the kernel's.
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
"""Largest distance between a channel of a kernel and of a constant, each of length 1, for the two to be taken as one.

A channel scaled in float32 is off by some 1e-7; one of another kernel by 0.1 to 2.
"""


@dataclass(frozen=True, eq=False)
class Match:
    """A kernel and the constant that it became.

    Args:
        path: of the Keras variable.
        weight: the constant.
        folded: it is the kernel times one factor for each output channel, not the kernel itself.
        lost: zeros of the kernel that are none in the constant.
    """

    path: str
    weight: Weight
    folded: bool
    lost: int


def kernels_of(model: keras.Model) -> dict[str, NDArray[Any]]:
    """Return the kernels of a model by path, each in the layout that TFLite gives it.

    Dense [in, out] -> [out, in]; convolutions [height, width, in, out] -> [out, height, width, in], of Conv1D with a
    height of 1; depthwise [height, width, in, multiplier] -> [1, height, width, in multiplier]. They may share the
    variables' memory.

    Args:
        model: the one that is converted: without masks, rewritten.

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
    """Find the constant of each kernel: equal, or equal up to a factor for each output channel.

    A constant is given to one kernel only. Kernels that are not found are left out: of layers that the converter
    dropped, or wrote otherwise; `lost_zeros` has nothing to say about them.

    Args:
        kernels: in TFLite's layout, as `kernels_of` returns.
        weights: the float constants of the dense file, as `weights.collect` returns.
    """
    free: defaultdict[tuple[int, ...], list[Weight]] = defaultdict(list)
    for weight in weights:
        if weight.values.dtype.kind == "f":
            free[weight.values.shape].append(weight)
    matches = {}
    for folded in (False, True):  # all equal ones first, so that no scaled one takes their place
        for path, kernel in kernels.items():
            found = None if path in matches else _find(kernel, free[kernel.shape], folded)
            if found is not None:
                free[kernel.shape] = [weight for weight in free[kernel.shape] if weight is not found]
                lost = int(np.count_nonzero((kernel == 0) & (found.values != 0)))
                matches[path] = Match(path, found, folded, lost)
    return tuple(matches[path] for path in kernels if path in matches)


def lost_zeros(matches: Iterable[Match]) -> dict[str, int]:
    """Return the number of zeros that each kernel lost on the way into the file, where it lost any."""
    return {match.path: match.lost for match in matches if match.lost}


def with_paths(weights: Iterable[Weight], matches: Iterable[Match]) -> list[Weight]:
    """Return the weights, those that a kernel was folded into under the kernel's path."""
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

    The median, as a channel in which a zero was lost must not hide that the two belong together. Infinity where
    no channel of the two can be compared.
    """
    a, b = _channels(kernel), _channels(constant)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both = (lengths[0] > 0) & (lengths[1] > 0)
    if not both.any() or np.count_nonzero(both) < np.count_nonzero(lengths[1]) / 2:
        return float("inf")
    a, b = a[both] / lengths[0][both, None], b[both] / lengths[1][both, None]
    sign = np.sign((a * b).sum(axis=1, keepdims=True))  # a factor may be negative
    return float(np.median(np.linalg.norm(a - sign * b, axis=1)))


def _channels(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array as [channels, rest]: its channels are first, but last in a depthwise kernel."""
    depthwise = values.ndim == 4 and values.shape[0] == 1
    flat = values.reshape(-1, values.shape[-1]).T if depthwise else values.reshape(len(values), -1)
    return flat.astype(np.float64)


def _laid_out(layer: Any) -> list[tuple[Any, Any]]:
    """Return (kernel, function that lays it out) for each kernel of a layer."""
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
