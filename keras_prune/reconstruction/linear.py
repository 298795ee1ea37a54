r"""Layers as linear maps: their input as rows `[samples, groups, k]`, their kernel as `[groups, k, outputs]`.

One sample is one place at which the kernel is applied: a row of a Dense layer, a window of a convolution.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_prune.graph.windows import Window, same_padding

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
    if variable is not getattr(layer, "kernel", None):
        return None
    if isinstance(layer, kl.EinsumDense):
        return _einsum(layer)
    if isinstance(layer, kl.Dense):
        return _dense(layer)
    if isinstance(layer, (kl.DepthwiseConv1D, kl.DepthwiseConv2D)):
        return _depthwise(layer)
    if isinstance(layer, (kl.Conv1D, kl.Conv2D, kl.Conv3D)):
        return _convolution(layer)
    return None


def _dense(layer: Any) -> LinearMap:
    shape = tuple(layer.kernel.shape)
    return LinearMap(
        rows=lambda x, pick: _picked(x.reshape(-1, 1, shape[0]), pick),
        matrices=lambda kernel: kernel[None],
        kernel=lambda solved: solved[0],
        vectors=None if layer.bias is None else lambda bias: bias[None],
        bias=None if layer.bias is None else lambda solved: solved[0],
    )


def _convolution(layer: Any) -> LinearMap:
    *space, inputs, outputs = layer.kernel.shape
    groups, places = layer.groups, int(np.prod(space))
    shape = (places, inputs, groups, outputs // groups)

    def rows(x: Array, pick: Pick) -> Array:
        found = windows(layer, x, pick).reshape(-1, places, groups, inputs)
        return found.transpose(0, 2, 1, 3).reshape(-1, groups, places * inputs)

    return LinearMap(
        rows,
        matrices=lambda kernel: kernel.reshape(shape).transpose(2, 0, 1, 3).reshape(groups, places * inputs, -1),
        kernel=lambda solved: (
            solved.reshape(groups, places, inputs, -1).transpose(1, 2, 0, 3).reshape(layer.kernel.shape)
        ),
        vectors=None if layer.bias is None else lambda bias: bias.reshape(groups, -1),
        bias=None if layer.bias is None else lambda solved: solved.reshape(-1),
    )


def _depthwise(layer: Any) -> LinearMap:
    *space, channels, multiplier = layer.kernel.shape
    places = int(np.prod(space))
    return LinearMap(
        rows=lambda x, pick: windows(layer, x, pick).transpose(0, 2, 1),
        matrices=lambda kernel: kernel.reshape(places, channels, multiplier).transpose(1, 0, 2),
        kernel=lambda solved: solved.transpose(1, 0, 2).reshape(layer.kernel.shape),
        vectors=None if layer.bias is None else lambda bias: bias.reshape(channels, multiplier),
        bias=None if layer.bias is None else lambda solved: solved.reshape(-1),
    )


def _einsum(layer: Any) -> LinearMap | None:
    """Letters of kernel and input that the output has count groups; those that it lacks are summed over."""
    left, output = layer.equation.replace(" ", "").split("->")
    read, letters = left.split(",")
    groups = [c for c in letters if c in read and c in output]
    summed = [c for c in letters if c in read and c not in output]
    made = [c for c in letters if c not in read and c in output]
    if len(groups) + len(summed) + len(made) != len(letters) or len(set(letters)) != len(letters):
        return None
    front, _, back = read.partition("...")
    axis = {c: i for i, c in enumerate(front)} | {c: i - len(back) for i, c in enumerate(back)}
    size = dict(zip(letters, layer.kernel.shape, strict=True))
    number = int(np.prod([size[c] for c in groups], dtype=int))
    width = int(np.prod([size[c] for c in summed], dtype=int))
    order = [letters.index(c) for c in (*groups, *summed, *made)]
    sizes = [size[c] for c in (*groups, *summed, *made)]

    def rows(x: Array, pick: Pick) -> Array:
        last = [axis[c] % x.ndim for c in (*groups, *summed)]
        first = [i for i in range(x.ndim) if i not in last]
        return _picked(x.transpose(*first, *last).reshape(-1, number, width), pick)

    turned = _einsum_bias(layer, output, [*groups, *made], size)
    return LinearMap(
        rows,
        matrices=lambda kernel: kernel.transpose(order).reshape(number, width, -1),
        kernel=lambda solved: solved.reshape(sizes).transpose(np.argsort(order)),
        vectors=None if turned is None else lambda bias: turned(bias).reshape(number, -1),
        bias=None if turned is None else lambda solved: _unturned(solved, layer, output, [*groups, *made], size),
    )


def _bias_letters(layer: Any, output: str) -> str:
    """The letters of the output that the axes of the bias stand for, in the output's order."""
    axes = layer.bias_axes or ""
    return "".join(c for c in output if c in axes)


def _einsum_bias(layer: Any, output: str, wanted: list[str], size: dict[str, int]) -> Callable[[Array], Array] | None:
    if layer.bias is None:
        return None
    letters = _bias_letters(layer, output)
    if sorted(letters) != sorted(wanted):
        return None
    shape, order = [size[c] for c in letters], [letters.index(c) for c in wanted]
    return lambda bias: bias.reshape(shape).transpose(order)


def _unturned(solved: Array, layer: Any, output: str, wanted: list[str], size: dict[str, int]) -> Array:
    letters = _bias_letters(layer, output)
    return (
        solved.reshape([size[c] for c in wanted])
        .transpose([wanted.index(c) for c in letters])
        .reshape(layer.bias.shape)
    )


def _picked(rows: Array, pick: Pick) -> Array:
    return rows[pick(len(rows))]


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
