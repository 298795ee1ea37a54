"""Soft thresholds: what is kept is shown smaller by the threshold, so that no weight jumps where it goes or returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.arrays.layouts import Layout
from keras_prune.in_step.hidden_weights import HiddenWeights
from keras_prune.masks.bound import Mask
from keras_prune.masks.state import TrainingState

__all__ = ["SoftThresholds", "scales_of", "shrink", "threshold_between"]


def shrink(whole: Any, mask: Any, threshold: Any, scale: Any) -> Any:
    r"""Return $c \cdot sign(w) \max(|w| - t, 0)$ where the mask is on, and 0 elsewhere.

    Args:
        whole: w.
        mask: booleans of its shape.
        threshold: t, a scalar, 0 or more.
        scale: c, one for each output, in a shape that broadcasts to that of w.

    Example:
        >>> shrink([0.5, -3.0, 2.0], [True, True, False], 1.0, 2.0).numpy()
        array([ 0., -4.,  0.], dtype=float32)
    """
    whole = ops.convert_to_tensor(whole)
    beyond = ops.abs(whole) - ops.cast(threshold, whole.dtype)
    shown = ops.sign(whole) * beyond * ops.cast(scale, whole.dtype)
    kept = ops.logical_and(ops.convert_to_tensor(mask), beyond > 0)
    return ops.where(kept, shown, ops.zeros_like(whole))


def scales_of(whole: npt.NDArray[Any], mask: npt.NDArray[np.bool_], layout: Layout) -> npt.NDArray[np.float32]:
    r"""Return what brings an output's weights back to the size that they had: $c = 1.01 / (s + 0.01)$.

    s is the share of the output's $\sum |w|$ that the mask keeps; both sums have $10^{-6}$ added to their mean.

    Args:
        whole: a kernel.
        mask: True where kept, of its shape.
        layout: of the kernel.

    Returns:
        One scale for each output, in a shape that broadcasts to the kernel's.

    Example:
        >>> kernel, mask = np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([[True, True], [False, True]])
        >>> scales_of(kernel, mask, Layout.plain(2)).round(2).tolist()
        [[1.33, 1.0]]
    """
    outputs = _outputs(layout, whole.ndim)
    others = tuple(axis for axis in range(whole.ndim) if axis not in outputs)
    sizes = np.abs(whole.astype(np.float32))
    kept = np.mean(np.where(mask, sizes, 0.0), axis=others, keepdims=True) + 1e-6
    share = kept / (np.mean(sizes, axis=others, keepdims=True) + 1e-6)
    return np.asarray(1.01 / (share + 0.01), np.float32)


def threshold_between(whole: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> np.float32:
    """Return the largest magnitude that is off, or what is just below the smallest that is on, if that is less.

    So no weight that is on is at or below it, by whatever criterion the mask was found.

    Args:
        whole: a kernel.
        mask: True where kept, of its shape.

    Example:
        >>> mask = np.array([False, True, True])
        >>> float(threshold_between(np.array([1.0, -2.0, 3.0]), mask))
        1.0
        >>> round(float(threshold_between(np.array([5.0, -2.0, 3.0]), mask)), 3)
        2.0
    """
    sizes = np.abs(whole.astype(np.float32))
    off, on = sizes[~mask], sizes[mask]
    if not off.size:
        return np.float32(0.0)
    below = np.nextafter(on.min(), np.float32(0.0)) if on.size else np.float32(np.inf)
    return np.float32(min(off.max(), below))


def _outputs(layout: Layout, rank: int) -> set[int]:
    """Return the axes of a kernel that count its outputs; where groups cut the last one, both parts are that axis."""
    return {min(axis, rank - 1) for axis in layout.outputs}


class SoftThresholds(HiddenWeights):
    """Shows kept weights nearer to zero by a threshold for each tensor, scaled output by output.

    Args:
        state: of the model; it makes the variables.
        masks: of the weights.
        rescale: scale; if not, the scale is 1.
    """

    def __init__(self, state: TrainingState, masks: Sequence[Mask], rescale: bool = True) -> None:
        super().__init__(state, masks)
        self._rescale = rescale
        self._thresholds: dict[int, keras.Variable] = {}
        self._scales: dict[int, keras.Variable] = {}
        for mask in masks:
            index, shape = mask.target.index, tuple(mask.target.variable.shape)
            outputs = _outputs(mask.target.layout, len(shape))
            narrow = tuple(size if axis in outputs else 1 for axis, size in enumerate(shape))
            self._thresholds[id(mask)] = state.variable(f"soft_threshold:{index}", (), "float32", 0.0)
            self._scales[id(mask)] = state.variable(f"soft_scale:{index}", narrow, "float32", 1.0)
            self.keys += [f"soft_threshold:{index}", f"soft_scale:{index}"]

    def show(self, mask: Mask, whole: Any) -> Any:
        threshold = ops.convert_to_tensor(self._thresholds[id(mask)])
        return shrink(whole, mask.variable, threshold, ops.convert_to_tensor(self._scales[id(mask)]))

    def prepare(self, mask: Mask, whole: npt.NDArray[Any], values: npt.NDArray[np.bool_]) -> None:
        """Set the threshold and the scales to what the new mask keeps."""
        self._thresholds[id(mask)].assign(threshold_between(whole, values))
        if self._rescale:
            self._scales[id(mask)].assign(scales_of(whole, values, mask.target.layout))
