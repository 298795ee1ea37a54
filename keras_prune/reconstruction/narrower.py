"""The kernels of a model that lost units solved again: what stays takes over what the removed units did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.models.variables import read
from keras_prune.reconstruction.kernels import Done, Kernels, Reader, Unsolvable, bias_of, put, sums_of
from keras_prune.reconstruction.least_squares import solve
from keras_prune.reconstruction.linear import LinearMap, linear_map
from keras_prune.reconstruction.side_by_side import Call, run_side_by_side
from keras_prune.scope import Skipped, Target

__all__ = ["reconstruct_narrower"]

Indices = Callable[[keras.Variable], Sequence[npt.NDArray[np.int64] | None]]
"""A variable of the dense model -> for each axis, which indices stay; None for all."""


def reconstruct_narrower(
    model: keras.Model,
    dense: keras.Model,
    targets: Sequence[Target],
    indices: Indices,
    data: Any,
    done: Done,
) -> tuple[Skipped, ...]:
    """Solve the kernels of a model that lost units again, and the biases of their layers, in place.

    Each output that stayed is to be what it was in the dense model, from the inputs that stayed.

    Args:
        model: the smaller model, with the weights that stayed.
        dense: the one that it was made from.
        targets: kernels of the smaller one.
        indices: what stayed of the dense model's variables.
        data: inputs, as `Batches` takes them; labels are not looked at.
        done: is told of each tensor.

    Returns:
        The tensors that keep their weights as they are, with the reasons.
    """
    kernels = Kernels(targets, done)

    def solved(call: Call, target: Target, found: LinearMap) -> None:
        partner = next((other for layer, other in call.layers() if layer is target.layer), None)
        _solve(call, _Cut.of(target, found, partner, indices))

    run_side_by_side(model, dense, [], data, lambda call: kernels.visit(call, solved))
    return kernels.skipped()


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """A kernel of which indices were left out.

    Attributes:
        target: in the smaller model.
        pruned, dense: its layer in the two models.
        wanted: for each output that stayed what the dense kernel has, `[groups, inputs of the dense one, outputs]`.
        start: the smaller kernel, `[groups, inputs, outputs]`.
    """

    target: Target
    pruned: Reader
    dense: Reader
    wanted: npt.NDArray[np.float64]
    start: npt.NDArray[np.float64]

    @classmethod
    def of(cls, target: Target, found: LinearMap, partner: Any, indices: Indices) -> _Cut:
        """Find what of the dense kernel each weight of the smaller one was.

        Raises:
            Unsolvable: that is not to be seen.
        """
        variable = getattr(partner, "kernel", None)
        before = None if variable is None else linear_map(partner, variable)
        if before is None:
            raise Unsolvable("the layer that it was made from is not to be found in the dense model")
        kernel = before.matrices(read(variable).astype(np.float64))
        _, width, outputs = kernel.shape
        # The number of each weight, cut as the weights were.
        numbers = before.kernel(np.arange(kernel.size).reshape(kernel.shape))
        for axis, stays in enumerate(indices(variable)):
            numbers = numbers if stays is None else np.take(numbers, stays, axis)
        start = found.matrices(read(target.variable).astype(np.float64))
        if numbers.shape != tuple(target.variable.shape):
            raise Unsolvable("it is not the part that stayed of the dense model's kernel")
        numbers = found.matrices(numbers)
        group, output = numbers[:, 0] // (width * outputs), numbers[:, 0] % outputs
        if (group != group[:, :1]).any():
            raise Unsolvable("outputs that read different groups of inputs before read one group now")
        slices = kernel.reshape(-1)[numbers]
        factor = float((start * slices).sum() / (np.square(slices).sum() or 1.0))
        if not np.allclose(start, factor * slices, rtol=1e-3, atol=1e-6 * np.abs(start).max()):
            raise Unsolvable("its weights are not those of the dense model's kernel")
        wanted = factor * kernel.transpose(0, 2, 1)[group, output].transpose(0, 2, 1)
        return cls(target, Reader(target.layer, found), Reader(partner, before, group[:, 0]), wanted, start)


def _solve(call: Call, cut: _Cut) -> None:
    """Solve a kernel and the bias of its layer."""
    found = cut.pruned.found
    groups, width, _ = cut.start.shape
    sums = sums_of(call, cut.pruned, cut.dense, (groups, width, cut.wanted.shape[1]), cut.target.index)
    bias = bias_of(cut.target, found)
    solved, moved = solve(sums, cut.wanted, np.ones(cut.start.shape, bool), bias, start=cut.start)
    put(cut.target, found, solved, moved)
