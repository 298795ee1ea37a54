r"""Layers as linear maps: their input as rows `[samples, groups, k]`, their kernel as `[groups, k, outputs]`.

One sample is one place at which the kernel is applied: a row of a Dense layer, a window of a convolution.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_prune.graph.windows import Window, same_padding
from keras_prune.layer_kinds import kernels_of, letters_of

__all__ = ["LinearMap", "Pick", "linear_map", "windows"]

Array = npt.NDArray[Any]
Pick = Callable[[int], npt.NDArray[np.int64] | slice]
"""Number of samples -> which of them are taken."""


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """How a layer applies its kernel.

    Attributes:
        rows: (input, which samples to take) -> `[samples, groups, k]`.
        matrices: kernel -> `[groups, k, outputs]`.
        kernel: `[groups, k, outputs]` -> kernel.
        vectors: bias -> `[groups, outputs]`; None where there is none that runs along all outputs.
        bias: `[groups, outputs]` -> bias.
    """

    rows: Callable[[Array, Pick], Array]
    matrices: Callable[[Array], Array]
    kernel: Callable[[Array], Array]
    vectors: Callable[[Array], Array] | None
    bias: Callable[[Array], Array] | None


def linear_map(layer: Any, variable: keras.Variable) -> LinearMap | None:
    """Return how a layer applies a kernel; None where it is not known to apply it to its input.

    Args:
        layer: Dense, EinsumDense, a convolution (grouped ones too) or a depthwise convolution, built.
        variable: one of its variables.

    Example:
        >>> layer = kl.Conv2D(6, 3, groups=2)
        >>> layer.build((None, 8, 8, 4))
        >>> found = linear_map(layer, layer.kernel)
        >>> found.rows(np.zeros((5, 8, 8, 4)), lambda samples: slice(None)).shape
        (180, 2, 18)
        >>> found.matrices(np.zeros((3, 3, 2, 6))).shape
        (2, 18, 3)
    """
    if not isinstance(layer, (*_VECTORS, *_WINDOWS)) or layer.kernel is not variable:
        return None
    if isinstance(layer, kl.EinsumDense) and not _is_product(layer):
        return None
    record = (kernels_of(layer) or {})[variable.name]
    shape = tuple(variable.shape)
    layout = record.layout(layer, len(shape))
    groups, width, _ = layout.matrices_shape(shape)

    def rows_of_vectors(x: Array, pick: Pick) -> Array:
        last = [axis % x.ndim for axis in record.axes(layer)]
        first = [axis for axis in range(x.ndim) if axis not in last]
        rows = x.transpose(*first, *last).reshape(-1, groups, width)
        return rows[pick(len(rows))]

    def rows_of_windows(x: Array, pick: Pick) -> Array:
        found = windows(layer, x, pick)
        by_group = found.reshape(*found.shape[:2], groups, -1)
        return by_group.transpose(0, 2, 1, 3).reshape(-1, groups, width)

    axes = _axes_of_bias(layer)
    return LinearMap(
        rows=rows_of_windows if isinstance(layer, _WINDOWS) else rows_of_vectors,
        matrices=layout.to_matrices,
        kernel=lambda solved: layout.from_matrices(solved, shape),
        vectors=None if axes is None else lambda bias: bias.reshape(axes[0]).transpose(axes[1]).reshape(groups, -1),
        bias=None if axes is None else lambda solved: _as_bias(solved, *axes, layer.bias.shape),
    )


_VECTORS = (kl.Dense, kl.EinsumDense)
_WINDOWS = (kl.Conv1D, kl.Conv2D, kl.Conv3D, kl.DepthwiseConv1D, kl.DepthwiseConv2D)


def _is_product(layer: Any) -> bool:
    """Whether each letter of an einsum's kernel runs along its input, its output, or both."""
    read, letters, output = letters_of(layer)
    return len(set(letters)) == len(letters) and all(letter in read or letter in output for letter in letters)


def _axes_of_bias(layer: Any) -> tuple[list[int], tuple[int, ...]] | None:
    """The sizes of a bias's axes, and their order in matrices; None where it has others than outputs, or none."""
    if layer.bias is None:
        return None
    if not isinstance(layer, kl.EinsumDense):
        return list(layer.bias.shape), (0,)
    read, letters, output = letters_of(layer)
    size = dict(zip(letters, layer.kernel.shape, strict=True))
    made = [c for c in letters if c in read and c in output] + [c for c in letters if c not in read]
    has = [c for c in output if c in (layer.bias_axes or "")]
    return ([size[c] for c in has], tuple(has.index(c) for c in made)) if sorted(has) == sorted(made) else None


def _as_bias(solved: Array, sizes: Sequence[int], order: tuple[int, ...], shape: Sequence[int]) -> Array:
    return solved.reshape([sizes[axis] for axis in order]).transpose(np.argsort(order)).reshape(shape)


def windows(layer: Any, x: Array, pick: Pick) -> Array:
    """Return what each window of a convolution covers, `[samples, places of the window, channels]`.

    Args:
        layer: the convolution, for its window, strides, dilation, padding and data format.
        x: its input, `[batch, ..., channels]`, or channels first if the layer says so.
        pick: which of all windows, before they are copied.
    """
    if layer.data_format == "channels_first":
        x = np.moveaxis(x, 1, -1)
    axes = []
    for size, kernel, stride, dilation in zip(
        x.shape[1:-1], layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
    ):
        reach = (kernel - 1) * dilation + 1
        if layer.padding == "same":
            left, right = same_padding(size, reach, stride)
        else:
            left, right = (reach - 1, 0) if layer.padding == "causal" else (0, 0)
        axes.append((Window(size, reach, stride, left, right), kernel, dilation))
    x = np.pad(x, [(0, 0), *((w.left, w.right) for w, _, _ in axes), (0, 0)])
    chosen = pick(len(x) * int(np.prod([w.count for w, _, _ in axes])))
    found = []
    for place in itertools.product(*(range(kernel) for _, kernel, _ in axes)):
        cut = tuple(
            slice(i * dilation, i * dilation + (w.count - 1) * w.stride + 1, w.stride)
            for i, (w, _, dilation) in zip(place, axes, strict=True)
        )
        found.append(x[(slice(None), *cut)].reshape(-1, x.shape[-1])[chosen])
    return np.stack(found, axis=1)
