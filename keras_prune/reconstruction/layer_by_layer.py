"""The kept weights of a pruned model solved again, layer after layer, against the outputs of the dense one.

Each layer is solved on what it really reads once the layers before it are pruned and solved, and the data goes through
each layer a fixed number of times, however deep the model is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.masks.bound import Mask
from keras_prune.masks.recipe import Recipe
from keras_prune.models.variables import read
from keras_prune.reconstruction.column_by_column import Choice, choose
from keras_prune.reconstruction.kernels import Done, Kernels, Reader, bias_of, put, sums_of
from keras_prune.reconstruction.least_squares import Sums, damped, factor_of_inverse, solve
from keras_prune.reconstruction.linear import LinearMap
from keras_prune.reconstruction.side_by_side import Call, Values, run_side_by_side
from keras_prune.scope import Skipped, Target

__all__ = ["Pruned", "inverse_hessians", "reconstruct"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
    """A tensor that was pruned.

    Attributes:
        mask: in force.
        dense: its values before it was pruned, of the kernel's shape.
        earlier: its mask before; None if there was none.
    """

    mask: Mask
    dense: npt.NDArray[Any]
    earlier: npt.NDArray[np.bool_] | None = None

    @property
    def target(self) -> Target:
        """The tensor."""
        return self.mask.target


def reconstruct(
    model: keras.Model, pruned: Sequence[Pruned], data: Any, recipe: Recipe, done: Done
) -> tuple[Skipped, ...]:
    """Solve the kept weights of pruned kernels again, and the biases of their layers, in place.

    Args:
        model: the pruned model.
        pruned: its pruned tensors.
        data: inputs, as `Batches` takes them; labels are not looked at.
        recipe: how the masks were found. Where its criterion chooses while solving, masks are chosen again, with as
            many weights off among any inputs.
        done: is told of each tensor.

    Returns:
        The tensors that keep their weights as they are, with the reasons.
    """
    values: Values = []
    for one in pruned:
        _note(values, one.target.variable, one.dense)
        if one.target.mask is not None:
            _note(values, one.target.mask, np.ones(one.dense.shape))
    solving = Kernels([one.target for one in pruned], done)
    by_target = {id(one.target): one for one in pruned}

    def solved(call: Call, target: Target, found: LinearMap) -> None:
        _solve(call, by_target[id(target)], found, recipe)

    run_side_by_side(model, model, values, data, lambda call: solving.visit(call, solved))
    return solving.skipped()


def inverse_hessians(
    model: keras.Model, targets: Sequence[Target], data: Any, done: Done
) -> list[dict[str, npt.NDArray[np.float32]]]:
    r"""Return for each tensor the diagonal of $H^{-1}$, `{"inverse_hessian": ...}`, of the kernel's shape.

    Args:
        model: as it is; it stays so.
        targets: kernels of it.
        data: inputs, as `Batches` takes them.
        done: is told of each tensor.

    Raises:
        ValueError: it cannot be had for some; with the reasons and the way out.
    """
    found: dict[int, npt.NDArray[np.float32]] = {}

    def measured(call: Call, target: Target, reads: LinearMap) -> None:
        shape = reads.matrices(np.broadcast_to(False, target.variable.shape)).shape
        sums = _sums(call, target, reads, shape)
        gram = (sums.gram if bias_of(target, reads) is None else sums.centred()[0]) / sums.count
        factor = factor_of_inverse(damped(gram)[0])
        diagonal = np.square(factor).sum(axis=1)[:, :, None]
        found[id(target)] = reads.kernel(np.broadcast_to(diagonal, shape)).astype(np.float32)

    kernels = Kernels(targets, done)
    run_side_by_side(model, model, [], data, lambda call: kernels.visit(call, measured))
    left = kernels.skipped()
    if left:
        listed = "; ".join(f"{one.path}: {one.reason}" for one in left)
        paths = [one.path for one in left]
        raise ValueError(
            f"prune: masks are chosen while solving only where outputs are linear in the kernel. Received: {listed}. "
            f"Leave these out, scope=keras_prune.Scope(exclude={paths}), or take another criterion."
        )
    return [{"inverse_hessian": found[id(target)]} for target in targets]


def _solve(call: Call, one: Pruned, found: LinearMap, recipe: Recipe) -> None:
    """Solve a kernel, and choose its mask before if that is asked for."""
    target, kept = one.target, one.mask.read()
    if kept.all():
        return
    kernel = found.matrices(one.dense.astype(np.float64))
    sums, bias = _sums(call, target, found, kernel.shape), bias_of(target, found)
    if recipe.while_solving:
        kept = _chosen(sums, kernel, bias, one, recipe)
        one.mask.write(kept)
    if bias is not None:
        _note(call.values, target.layer.bias, read(target.layer.bias))
    solved, moved = solve(sums, kernel, found.matrices(kept), bias)
    put(target, found, solved, moved)


def _chosen(
    sums: Sums, kernel: npt.NDArray[np.float64], bias: npt.NDArray[np.float64] | None, one: Pruned, recipe: Recipe
) -> npt.NDArray[np.bool_]:
    """The mask that is chosen while solving."""
    best, _ = solve(sums, kernel, np.ones(kernel.shape, bool), bias)
    hessian, _ = damped(sums.gram if bias is None else sums.centred()[0])
    pattern = recipe.pattern.at(one.target.path)
    choice = Choice(recipe.criterion, pattern, one.target.layout, one.mask.read(), one.earlier)
    return choose(hessian / sums.count, best, choice)


def _sums(call: Call, target: Target, found: LinearMap, shape: tuple[int, ...]) -> Sums:
    reader = Reader(target.layer, found)
    return sums_of(call, reader, reader, (shape[0], shape[1], shape[1]), target.index)


def _note(values: Values, variable: keras.Variable, value: Any) -> None:
    """Note the value that a variable has in the dense model."""
    values.append((variable, ops.convert_to_tensor(value, dtype=variable.dtype)))
