r"""The weights that are kept, solved again by least squares: sums over samples in, kernels out. Pure arrays.

A layer is linear in its kernel: each sample gives one row x of inputs, and z = x W + b. Several groups of inputs, each
with a kernel of its own (grouped and depthwise convolutions), are stacked on the first axis.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["DAMPING", "Sums", "damped", "factor_of_inverse", "solve"]

Array = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]

DAMPING = 1e-3
"""Share of the mean diagonal of the Gram matrix that is added to its diagonal, so that it can be inverted."""


@dataclasses.dataclass
class Sums:
    r"""Sums over samples of what a kernel reads, in the pruned model (x) and in the dense one (y).

    Attributes:
        gram: $\sum x^T x$, `[groups, k, k]`.
        mixed: $\sum x^T y$, `[groups, k, m]`.
        pruned: $\sum x$, `[groups, k]`.
        dense: $\sum y$, `[groups, m]`.
        count: samples.
    """

    gram: Array
    mixed: Array
    pruned: Array
    dense: Array
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, width: int, dense: int | None = None) -> Sums:
        """Return sums over no samples, for `width` inputs of each of `groups`, and `dense` ones in the dense model."""
        dense = width if dense is None else dense
        square, mixed = np.zeros((groups, width, width)), np.zeros((groups, width, dense))
        return cls(square, mixed, np.zeros((groups, width)), np.zeros((groups, dense)))

    def add(self, pruned: npt.NDArray[np.float32], dense: npt.NDArray[np.float32]) -> None:
        """Add samples.

        Args:
            pruned: the inputs in the pruned model, `[n, groups, k]`.
            dense: those of the same samples in the dense model, `[n, groups, m]`.
        """
        x, y = np.ascontiguousarray(pruned.transpose(1, 0, 2)), dense.transpose(1, 0, 2)
        turned = x.transpose(0, 2, 1)
        self.gram += turned @ x
        self.mixed += turned @ y
        self.pruned += x.sum(axis=1, dtype=np.float64)
        self.dense += y.sum(axis=1, dtype=np.float64)
        self.count += len(pruned)

    def centred(self) -> tuple[Array, Array]:
        r"""Return the Gram matrix and the mixed one of inputs less their means: what is left once a bias is solved."""
        mean, other = self.pruned / self.count, self.dense / self.count
        gram = self.gram - self.count * mean[:, :, None] * mean[:, None, :]
        return gram, self.mixed - self.count * mean[:, :, None] * other[:, None, :]


def damped(gram: Array, damping: float = DAMPING) -> tuple[Array, Array]:
    r"""Return Gram matrices $H = X^T X + \lambda I$, and for each group its $\lambda$, `[groups]`.

    Args:
        gram: $X^T X$, `[groups, k, k]`.
        damping: share of the mean diagonal.
    """
    mean = np.diagonal(gram, axis1=1, axis2=2).mean(axis=1)
    shift = damping * np.where(mean == 0, 1.0, mean)
    return gram + shift[:, None, None] * np.eye(gram.shape[1]), shift


def factor_of_inverse(hessian: Array) -> Array:
    r"""Return the upper triangular U with $H^{-1} = U^T U$, `[groups, k, k]`.

    The inverse of what is left of H once its first j rows and columns are gone is $U_{j:,j:}^T U_{j:,j:}$.

    Args:
        hessian: H, positive definite, `[groups, k, k]`.

    Example:
        >>> factor_of_inverse(np.array([[[1.0, 0.0], [0.0, 4.0]]]))
        array([[[1. , 0. ],
                [0. , 0.5]]])
    """
    # With rows and columns in reverse H = L L^T, so that reversed again the inverse of L is U.
    lower = np.linalg.cholesky(hessian[:, ::-1, ::-1])
    return np.asarray(np.linalg.inv(lower)[:, ::-1, ::-1])


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
        kernel: the dense one, `[groups, m, outputs]`.
        kept: which weights may be other than 0, `[groups, k, outputs]`.
        bias: the dense one, `[groups, outputs]`; None where the layer has none, and then none is solved for.
        start: what the kept weights are drawn to, `[groups, k, outputs]`; None: the dense ones, where m is k.
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
    gram, mixed = (sums.gram, sums.mixed) if bias is None else sums.centred()
    hessian, shift = damped(gram, damping)
    wanted = mixed @ kernel + shift[:, None, None] * start
    solved = np.zeros(kept.shape)
    for group in range(len(kernel)):
        _solve_group(hessian[group], wanted[group], kept[group], solved[group])
    if bias is None:
        return solved, None
    gap = sums.dense[:, None, :] @ kernel - sums.pruned[:, None, :] @ solved
    return solved, bias + gap[:, 0] / sums.count


def _solve_group(hessian: Array, wanted: Array, kept: Kept, solved: Array) -> None:
    """Solve for one group, `[k, k]`, `[k, outputs]`; outputs that keep the same weights are solved together."""
    packed = np.packbits(kept, axis=0).T
    _, pattern = np.unique(packed, axis=0, return_inverse=True)
    order = np.argsort(pattern.ravel(), kind="stable")
    edges = np.flatnonzero(np.diff(pattern.ravel()[order])) + 1
    for outputs in np.split(order, edges):
        rows = np.flatnonzero(kept[:, outputs[0]])
        if len(rows):
            place = np.ix_(rows, outputs)
            solved[place] = np.linalg.solve(hessian[np.ix_(rows, rows)], wanted[place])
