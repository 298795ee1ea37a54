"""Kernels that wait to be solved, and what each reads, summed over the data in both models."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.models.variables import assign, read
from keras_prune.reconstruction.least_squares import Sums
from keras_prune.reconstruction.linear import LinearMap, linear_map
from keras_prune.reconstruction.side_by_side import Call
from keras_prune.scope import Skipped, Target

__all__ = ["Done", "Kernels", "Reader", "Unsolvable", "bias_of", "put", "sums_of", "warn_of_left"]

ROWS, ROWS_PER_INPUT = 65_536, 8
"""Samples that a kernel is solved on: at most the larger of this many, and this many for each of its inputs."""


Done = Callable[[str], None]
"""Is told the path of each tensor that is done."""


class Unsolvable(Exception):
    """A kernel cannot be solved; with the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads inputs by a kernel, in one of the two models.

    Attributes:
        layer: the layer.
        found: how it applies its kernel.
        groups: the groups of inputs to take, in this order; None for all.
    """

    layer: Any
    found: LinearMap
    groups: npt.NDArray[np.int64] | None = None

    def rows(self, x: npt.NDArray[Any], limit: int, seed: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return at most `limit` samples, `[samples, groups, k]`; the same ones for the same seed."""

        def some(number: int) -> Any:
            draw = np.random.default_rng(seed)
            return slice(None) if number <= limit else np.sort(draw.choice(number, limit, replace=False))

        rows = self.found.rows(x, some)
        return rows if self.groups is None else rows[:, self.groups]


def sums_of(call: Call, pruned: Reader, dense: Reader, widths: tuple[int, int, int], seed: int) -> Sums:
    """Return sums over the samples of all batches.

    Args:
        call: in which the layer is called.
        pruned: the layer in the pruned model.
        dense: in the dense one.
        widths: groups, inputs of each in the pruned model, and in the dense one.
        seed: of the draw of samples.

    Raises:
        Unsolvable: inputs have no values, or the two models see other samples.
    """
    sums = Sums.zeros(*widths)
    limit = -(-max(ROWS, ROWS_PER_INPUT * widths[1]) // call.batches)
    for batch in range(call.batches):
        first, second = call.inputs(pruned.layer, dense.layer, batch)
        if len(first) != len(second):
            raise Unsolvable("its layer is called more often in one of the models than in the other")
        for number, (x, y) in enumerate(zip(first, second, strict=True)):
            draw = (seed, batch, number)
            rows = pruned.rows(_array(x), limit, draw)
            same = x is y and pruned is dense
            others = rows if same else dense.rows(_array(y), limit, draw)
            if len(rows) != len(others):
                raise Unsolvable("it is applied at more places in one of the models than in the other")
            sums.add(rows, others)
    if not sums.count:
        raise Unsolvable("no call of its layer was seen on the data")
    return sums


def put(
    target: Target, found: LinearMap, kernel: npt.NDArray[np.float64], bias: npt.NDArray[np.float64] | None
) -> None:
    """Put a kernel, `[groups, k, outputs]`, and a bias, `[groups, outputs]`, into the layer."""
    assign(target.variable, found.kernel(kernel))
    if bias is not None and found.bias is not None:
        assign(target.layer.bias, found.bias(bias))


def bias_of(target: Target, found: LinearMap) -> npt.NDArray[np.float64] | None:
    """The bias of a kernel's layer, `[groups, outputs]`; None where there is none that may be solved."""
    bias = getattr(target.layer, "bias", None)
    if found.vectors is None or found.bias is None or bias is None or not bias.trainable:
        return None
    return found.vectors(np.asarray(read(bias), np.float64))


class Kernels:
    """The kernels that wait for a call of their layer, and why some are left."""

    def __init__(self, targets: Sequence[Target], done: Done) -> None:
        self._waiting = list(targets)
        self._left: list[Skipped] = []
        self._done = done

    def visit(self, call: Call, act: Callable[[Call, Target, LinearMap], None]) -> None:
        """Act on each kernel in a layer that is called, in the order in which it calls its layers."""
        inside = {id(layer) for layer, _ in call.layers()}
        here = [target for target in self._waiting if id(target.layer) in inside]
        order = {id(layer): place for place, layer in enumerate(call.in_order([target.layer for target in here]))}
        for target in sorted((t for t in here if id(t.layer) in order), key=lambda t: order[id(t.layer)]):
            self._waiting.remove(target)
            layer: Any = target.layer
            found = linear_map(layer, target.variable)
            try:
                if found is None:
                    raise Unsolvable(f"{type(layer).__name__} is not known to multiply its input by this kernel")
                act(call, target, found)
            except Unsolvable as error:
                self._left.append(Skipped(target.path, str(error)))
            self._done(target.path)

    def skipped(self) -> tuple[Skipped, ...]:
        """Return the tensors that were not acted on."""
        reason = "no call of its layer was seen on the data"
        return (*self._left, *(Skipped(target.path, reason) for target in self._waiting))


def warn_of_left(owner: str, left: Sequence[Skipped]) -> None:
    """Warn of tensors whose weights were not solved."""
    if left:
        listed = "; ".join(f"{one.path}: {one.reason}" for one in left)
        message = f"{owner}: reconstruct= leaves the weights of these tensors as they were: {listed}."
        warnings.warn(message, stacklevel=3)


def _array(x: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))
    except (NotImplementedError, TypeError):
        raise Unsolvable("its layer is called in a compiled function, where inputs have no values") from None
