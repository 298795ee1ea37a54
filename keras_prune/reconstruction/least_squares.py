r"""The weights that are kept, solved again by least squares: sums over samples in, kernels out. Pure arrays.

A layer is linear in its kernel: each sample gives one row x of inputs, and z = x W + b. Several groups of inputs, each
with a kernel of its own (grouped and depthwise convolutions), are stacked on the first axis.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["DAMPING", "Sums", "solve"]

Array = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]

DAMPING = 1e-3
"""Share of the mean diagonal of the Gram matrix that is added to its diagonal, so that it can be inverted."""


@dataclasses.dataclass
class Sums:
    r"""Sums over samples of what a kernel reads, in the pruned model (x) and in the dense one (y).

    Attributes:
        gram: $\sum x^T x$, `[groups, k, k]`.
        mixed: $\sum x^T y$, `[groups, k, k]`.
        pruned: $\sum x$, `[groups, k]`.
        dense: $\sum y$, `[groups, k]`.
        count: samples.
    """

    gram: Array
    mixed: Array
    pruned: Array
    dense: Array
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, width: int) -> Sums:
        """Return sums over no samples, for `width` inputs of each of `groups`."""
        square, line = (groups, width, width), (groups, width)
        return cls(np.zeros(square), np.zeros(square), np.zeros(line), np.zeros(line))

    def add(self, pruned: npt.NDArray[np.float32], dense: npt.NDArray[np.float32]) -> None:
        """Add samples.

        Args:
            pruned: the inputs in the pruned model, `[n, groups, k]`.
            dense: those of the same samples in the dense model, `[n, groups, k]`.
        """
        x, y = np.ascontiguousarray(pruned.transpose(1, 0, 2)), dense.transpose(1, 0, 2)
        turned = x.transpose(0, 2, 1)
        self.gram += turned @ x
        self.mixed += turned @ y
        self.pruned += x.sum(axis=1, dtype=np.float64)
        self.dense += y.sum(axis=1, dtype=np.float64)
        self.count += len(pruned)


def solve(
    sums: Sums,
    kernel: Array,
    kept: Kept,
    bias: Array | None = None,
    *,
    start: Array | None = None,
    damping: float = DAMPING,
) -> tuple[Array, Array | None]:
    r"""Return the kernel, zero where it is not kept, whose outputs are nearest to the dense ones, and its bias.

    For each output the kept weights w minimise $\|X w + b - (Y w_0 + b_0)\|^2 + \lambda \|w - s\|^2$, where X are the
    inputs in the pruned model, Y those in the dense one, $w_0$ and $b_0$ the dense weights, s the start, and
    $\lambda$ the damping times the mean diagonal of $X^T X$. An input that is always 0 leaves its weight at s.

    Args:
        sums: over the samples.
        kernel: the dense one, `[groups, k, outputs]`.
        kept: which weights may be other than 0, `[groups, k, outputs]`.
        bias: the dense one, `[groups, outputs]`; None where the layer has none, and then none is solved for.
        start: what the kept weights are drawn to, `[groups, k, outputs]`; None: the dense ones.
        damping: share of the mean diagonal.

    Source: Hassibi, Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", eq. 4, with the
    inputs of one layer in place of the whole network's gradients, as in Frantar, Alistarh, "SparseGPT", eq. 2.

    Example:
        >>> x = np.array([[1.0, 1.0], [2.0, 2.0]], np.float32)[:, None, :]  # two inputs that are always equal
        >>> sums = Sums.zeros(1, 2)
        >>> sums.add(x, x)
        >>> kept = np.array([[[True], [False]]])
        >>> solve(sums, np.array([[[3.0], [4.0]]]), kept, damping=1e-9)[0].round(3).ravel()  # one takes both weights
        array([7., 0.])
    """
    start = kernel if start is None else start
    gram, wanted = sums.gram, sums.mixed @ kernel
    if bias is not None:
        mean, other = sums.pruned / sums.count, sums.dense / sums.count
        gram = gram - sums.count * mean[:, :, None] * mean[:, None, :]
        wanted = wanted - sums.count * mean[:, :, None] * (other[:, None, :] @ kernel)
    solved = np.zeros_like(kernel)
    for group in range(len(kernel)):
        _solve_group(gram[group], wanted[group], kept[group], start[group], damping, solved[group])
    if bias is None:
        return solved, None
    return solved, bias + (other[:, None, :] @ kernel - mean[:, None, :] @ solved)[:, 0]


def _solve_group(gram: Array, wanted: Array, kept: Kept, start: Array, damping: float, solved: Array) -> None:
    """Solve for one group, `[k, k]`, `[k, outputs]`; outputs that keep the same weights are solved together."""
    shift = damping * (float(np.mean(np.diag(gram))) or 1.0)
    packed = np.packbits(kept, axis=0).T
    _, pattern = np.unique(packed, axis=0, return_inverse=True)
    order = np.argsort(pattern.ravel(), kind="stable")
    edges = np.flatnonzero(np.diff(pattern.ravel()[order])) + 1
    for outputs in np.split(order, edges):
        rows = np.flatnonzero(kept[:, outputs[0]])
        if not len(rows):
            continue
        left = gram[np.ix_(rows, rows)] + shift * np.eye(len(rows))
        place = np.ix_(rows, outputs)
        solved[place] = np.linalg.solve(left, wanted[place] + shift * start[place])
