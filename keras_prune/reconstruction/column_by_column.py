r"""Which weights are kept, chosen input by input while the others make up for those that go. Pure arrays.

Around the kernel $w^*$ that gives what the dense model gave, a change costs $(w - w^*)^T H (w - w^*)$. Without the
weight of input j, the best change of the inputs after it costs $w_j^2 / [H_{j:}^{-1}]_{00}$, where $H_{j:}$ is what is
left of H once the inputs before j are settled, and moves them by $-w_j / [H_{j:}^{-1}]_{00} [H_{j:}^{-1}]_{0,:}$.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.arrays.layouts import Layout
from keras_prune.arrays.selection import all_but_smallest
from keras_prune.criteria import Criterion
from keras_prune.masks.update import layout_for
from keras_prune.patterns import Pattern
from keras_prune.reconstruction.least_squares import factor_of_inverse

__all__ = ["Choice", "choose"]

Array = npt.NDArray[np.float64]
MaskArray = npt.NDArray[np.bool_]

RUNS, WIDTH = 16, 8
"""Inputs are settled in so many runs; in more, where one would be wider. Weights of a run are chosen at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """How many weights of a kernel go, and where they may.

    Attributes:
        criterion: takes "inverse_hessian", and scores the weights.
        pattern: of the kernel.
        layout: of the kernel.
        first: a mask (True: kept), of the kernel's shape, with as many units off among any inputs as are to be.
        earlier: what was kept before, of the kernel's shape: the rest stays off. None: everything.
    """

    criterion: Criterion
    pattern: Pattern
    layout: Layout
    first: MaskArray
    earlier: MaskArray | None = None


def choose(hessian: Array, best: Array, choice: Choice) -> MaskArray:
    r"""Return which weights are kept (True), of the kernel's shape.

    Inputs are settled in order, in runs that hold whole units of the pattern. At each run the units that cost least go,
    as many of them as `choice.first` has off there, and the inputs after it make up for them.

    Args:
        hessian: $H = X^T X + \lambda I$ of what the kernel reads, `[groups, k, k]`.
        best: the kernel with the least cost while nothing is pruned, `[groups, k, outputs]`.
        choice: what may go.

    Source: Frantar, Alistarh 2023, "SparseGPT", algorithm 1 and equation 5; for units of several inputs Frantar, Singh,
    Alistarh 2022, "Optimal brain compression", section 5: $w_P^T ([H^{-1}]_{PP})^{-1} w_P$.

    Example:
        >>> from keras_prune.criteria import SecondOrder
        >>> from keras_prune.patterns import Unstructured
        >>> layout, first = Layout.plain(2), np.array([[False], [True]])  # one of two weights goes
        >>> choice = Choice(SecondOrder(), Unstructured(), layout, first)
        >>> choose(np.array([[[1.0, 0.0], [0.0, 9.0]]]), np.array([[[2.0], [1.0]]]), choice).ravel()  # costs 4 and 9
        array([False,  True])
    """
    view = _View(choice, best.shape)
    order = view.order
    factor = factor_of_inverse(hessian[:, order][:, :, order])
    left = best[:, order].copy()
    kept = np.ones(left.shape, bool)
    earlier = None if choice.earlier is None else view.matrices(choice.earlier)[:, order]
    start = 0
    for stop in view.stops:
        run = slice(start, stop)
        kept[:, run] = view.keep(left, factor, run)
        if earlier is not None:
            kept[:, run] &= earlier[:, run]
        _settle(left, kept, factor, run)
        start = stop
    found = np.empty_like(kept)
    found[:, order] = kept
    return choice.layout.from_matrices(found, choice.first.shape)


def _settle(left: Array, kept: MaskArray, factor: Array, run: slice) -> None:
    """Put what goes in a run of inputs at 0, and let the inputs after it make up for that."""
    errors = np.zeros_like(left[:, run])
    for i, j in enumerate(range(run.start, run.stop)):
        errors[:, i] = np.where(kept[:, j], 0.0, left[:, j] / factor[:, j, j, None])
        after = slice(j, run.stop)
        left[:, after] -= factor[:, j, after, None] * errors[:, i, None, :]
    left[:, run.stop :] -= factor[:, run, run.stop :].transpose(0, 2, 1) @ errors


class _View:
    """A kernel's matrices `[groups, k, outputs]` as its pattern reads them, their inputs in the order of its units."""

    def __init__(self, choice: Choice, shape: tuple[int, ...]) -> None:
        self._choice = choice
        self._shape = shape
        self._layout = layout_for(choice.layout, choice.pattern)
        first = self._layout.to_canonical(choice.first)
        places, inputs = math.prod(first.shape[:-2]), shape[1] // math.prod(first.shape[:-2])
        reach = choice.pattern.reach(first.shape)
        if choice.pattern.by_input:  # all places of the window that read one input belong together
            self.order = np.arange(shape[1]).reshape(places, inputs).T.ravel()
            reach *= places
        else:
            self.order = np.arange(shape[1])
        reach = min(reach, shape[1])
        width = reach * -(-min(WIDTH, -(-shape[1] // RUNS)) // reach)
        self.stops = [*range(width, shape[1], width), shape[1]]
        units = choice.pattern.weights_per_unit(first.shape)
        self._whole = reach if choice.pattern.fixed_units and units % reach == 0 else 1
        self._off = ~choice.pattern.units_on(first)
        earlier = None if choice.earlier is None else self._layout.to_canonical(choice.earlier)
        self._earlier = earlier
        self._on = np.ones(self._off.shape, bool) if earlier is None else choice.pattern.units_on(earlier)

    def matrices(self, kernel: MaskArray) -> MaskArray:
        return self._choice.layout.to_matrices(kernel)

    def keep(self, left: Array, factor: Array, run: slice) -> MaskArray:
        """Return which weights of a run are kept, `[groups, run, outputs]`."""
        pattern = self._choice.pattern
        scores = self._canonical(self._scores(left, factor, run), run, 0.0)
        if self._earlier is not None:
            scores = np.where(self._earlier, scores, 0.0 if pattern.fixed_units else -np.inf)
        here = pattern.units_on(self._canonical(np.ones((1, 1, 1), bool), run, False))
        worth = pattern.reduce(scores)[here]
        on = np.ones(self._off.shape, bool)
        on[here] = all_but_smallest(worth, int(self._off[here].sum()), on=self._on[here])
        kernel = self._layout.from_canonical(pattern.expand(on, scores), self._choice.first.shape)
        return self.matrices(kernel)[:, self.order][:, run]

    def _scores(self, left: Array, factor: Array, run: slice) -> Array:
        """The scores of the weights of a run; of a unit of several inputs, each as it stands once those before go."""
        diagonal = np.diagonal(factor, axis1=1, axis2=2)[:, run, None]
        weights = left[:, run]
        if self._whole > 1:
            parts = []
            for start in range(run.start, run.stop, self._whole):
                part = slice(start, start + self._whole)
                parts.append(np.linalg.solve(factor[:, part, part].transpose(0, 2, 1), left[:, part]))
            weights = np.concatenate(parts, axis=1) * diagonal
        return np.asarray(self._choice.criterion(weights, {"inverse_hessian": np.square(diagonal)}), np.float64)

    def _canonical(self, values: npt.NDArray[Any], run: slice, other: float) -> npt.NDArray[Any]:
        """An array of the pattern's shape with values in a run, and another value elsewhere."""
        whole = np.full(self._shape, other, values.dtype)
        whole[:, self.order[run]] = values
        return self._layout.to_canonical(self._choice.layout.from_matrices(whole, self._choice.first.shape))
