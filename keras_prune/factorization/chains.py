r"""Kernels as products of kernels, each a layer of its own: by a singular value decomposition, or by two of them.

A form is named by the axes of the window that each of its layers takes over. With $W \in R^{h \times w \times I \times
O}$, the kernels $K_i$ of the layers broadcast over the window's axes, and $W \approx K_1 K_2 \dots$ as matrices of
their last two axes:

| form | layers | ranks |
| --- | --- | --- |
| "svd" | Dense, Dense | 1 |
| "spatial" | h x 1, 1 x w | 1 |
| "channel" | 1 x 1, h x w; or h x w, 1 x 1 | 1 |
| "tucker2" | 1 x 1, h x w, 1 x 1 | 2 |
| "tensor_train" | 1 x 1, h x 1, 1 x w, 1 x 1 | 3 |

Sources: Eckart & Young 1936 (what is lost at a rank); Jaderberg, Vedaldi & Zisserman 2014, "Speeding up convolutional
neural networks with low rank expansions", scheme 2 (spatial); Zhang et al. 2015, "Accelerating very deep convolutional
networks", section 3.1 (channel, and the decomposition on inputs); Kim et al. 2016, "Compression of deep convolutional
neural networks for fast and low power mobile applications", equations 2 to 6 (Tucker-2).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from keras_prune.factorization.costs import Places, chain_costs

__all__ = ["Array", "Decomposition", "Split", "Tucker2", "lost_beyond", "product", "root_of"]

Array = npt.NDArray[np.float64]
Moves = tuple[tuple[int, ...], ...]


def lost_beyond(singular: Array, size: int, eps: float) -> Array:
    r"""Return the share of energy that is lost at each rank r, $\sum_{i > r} \sigma_i^2 / \sum_i \sigma_i^2$.

    Singular values that rounding explains, below $\sigma_1 n \epsilon$, count as 0.

    Args:
        singular: values, falling.
        size: n, the longer side of the matrix.
        eps: of the type that the matrix was stored in.

    Returns:
        For ranks from 1 on.

    Example:
        >>> lost_beyond(np.array([3.0, 4.0e-9]), 10, 1e-7).tolist(), lost_beyond(np.array([2.0, 1.0]), 2, 0.0).tolist()
        ([0.0, 0.0], [0.2, 0.0])
    """
    energy = np.where(singular > singular[0] * size * eps, singular, 0.0) ** 2
    total = energy.sum()
    if not total:
        return np.zeros(len(energy))
    return np.append(np.cumsum(energy[::-1])[::-1][1:], 0.0) / total


def product(kernels: Sequence[Array]) -> Array:
    """Return the kernel that layers in a row compute together, `[window..., in, out]`."""
    return functools.reduce(np.matmul, kernels)


class Decomposition(ABC):
    """One kernel in one form, at each of its ranks.

    Attributes:
        form: its name.
        ranks: `[choices, number of ranks]`.
        lost: the share of energy that each choice loses, `[choices]`: the squared relative error, of the kernel or of
            what it gives on data.
        params: weights of its kernels, `[choices]`.
        macs: its multiplications for one sample, `[choices]`.
        moves: for each layer, the axes of the window that it takes over.
    """

    form: str
    ranks: npt.NDArray[np.int64]
    lost: Array
    params: npt.NDArray[np.int64]
    macs: npt.NDArray[np.int64]
    moves: Moves

    @abstractmethod
    def kernels(self, ranks: Sequence[int]) -> list[Array]:
        """Return the kernels of the layers, in order, `[window..., in, out]`."""

    def approximation(self, ranks: Sequence[int]) -> Array:
        """Return the kernel that they compute together, of the old kernel's shape."""
        return product(self.kernels(ranks))


class Split(Decomposition):
    r"""Two layers, by a singular value decomposition: no other two of the rank lose less (Eckart-Young).

    Args:
        form: its name.
        kernel: `[window..., in, out]`.
        first: the axes of the window that the first layer takes over; the second has the rest.
        places: where the kernel is applied.
        eps: of the type that the kernel was stored in.
        gram: of what the kernel reads, $C = \sum x x^T$, `[window x in, window x in]`; if given, the first layer takes
            over all of the window, and $\|C^{1/2} (W - K_1 K_2)\|$ is least, the error of the outputs.

    Example:
        >>> split = Split("svd", np.diag([3.0, 2.0, 1.0]), (), Places(((1, (), ()),)), 0.0)
        >>> (split.lost * 14).round(6).tolist(), split.params.tolist()
        ([5.0, 1.0, 0.0], [6, 12, 18])
    """

    def __init__(
        self,
        form: str,
        kernel: Array,
        first: tuple[int, ...],
        places: Places,
        eps: float,
        gram: Array | None = None,
    ) -> None:
        window = range(kernel.ndim - 2)
        self.form, self.shape = form, kernel.shape
        self.moves = (first, tuple(axis for axis in window if axis not in first))
        self._order = (*self.moves[0], kernel.ndim - 2, *self.moves[1], kernel.ndim - 1)
        cut = len(first) + 1
        self._sizes = [kernel.shape[axis] for axis in self._order]
        rows = int(np.prod(self._sizes[:cut]))
        matrix = kernel.transpose(self._order).reshape(rows, -1)
        root, back = (None, None) if gram is None else root_of(gram)
        left, singular, right = np.linalg.svd(matrix if root is None else root @ matrix, full_matrices=False)
        self._left, self._right = left if back is None else back @ left, right
        # The same scale on both sides: what training and number types like best.
        scale = np.sqrt(singular)
        self._left, self._right = self._left * scale, self._right * scale[:, None]
        self.lost = lost_beyond(singular, max(matrix.shape), eps)
        self.ranks = np.arange(1, len(singular) + 1)[:, None]
        self.params, self.macs = chain_costs(kernel.shape, self.moves, self.ranks, places)

    def kernels(self, ranks: Sequence[int]) -> list[Array]:
        (rank,), (first, second) = ranks, self.moves
        window, width = range(len(self.shape) - 2), len(first) + 1
        sides = [[self.shape[axis] if axis in moved else 1 for axis in window] for moved in (first, second)]
        before = self._left[:, :rank].reshape(*sides[0], self.shape[-2], rank)
        rest = self._right[:rank].reshape(rank, *self._sizes[width:])
        after = np.moveaxis(rest, 0, -2).reshape(*sides[1], rank, self.shape[-1])
        return [before, after]


def root_of(gram: Array) -> tuple[Array, Array]:
    """Return the root of a Gram matrix and the inverse of it; directions that no input has count as nearly none."""
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, values[-1] * 1e-10)
    root = np.sqrt(values)
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


class Tucker2(Decomposition):
    r"""Three layers: a core between bases of the input and the output channels, by a higher-order SVD.

    The bases are the left singular vectors of the kernel's unfoldings along each, so a choice of ranks takes the first
    of each, and what it keeps is the energy of that corner of the whole core. What it loses is at most twice the least.

    Source: De Lathauwer, De Moor & Vandewalle 2000, "A multilinear singular value decomposition", property 10.

    Args:
        kernel: `[window..., in, out]`.
        places: where the kernel is applied.
        eps: of the type that the kernel was stored in.
    """

    form = "tucker2"

    def __init__(self, kernel: Array, places: Places, eps: float) -> None:
        self.moves = ((), tuple(range(kernel.ndim - 2)), ())
        self._window = len(self.moves[1])
        self._before, self._after = (_basis(kernel, axis) for axis in (-2, -1))
        self._core = self._before.T @ kernel @ self._after
        corner = (self._core**2).reshape(-1, *self._core.shape[-2:]).sum(axis=0).cumsum(axis=0).cumsum(axis=1)
        total = corner[-1, -1]
        lost = np.maximum(1.0 - corner / total, 0.0) if total else np.zeros_like(corner)
        self.lost = np.where(lost > (eps * max(kernel.shape)) ** 2, lost, 0.0).reshape(-1)
        sizes = [np.arange(1, size + 1) for size in corner.shape]
        self.ranks = np.stack(np.meshgrid(*sizes, indexing="ij"), axis=-1).reshape(-1, 2)
        self.params, self.macs = chain_costs(kernel.shape, self.moves, self.ranks, places)

    def kernels(self, ranks: Sequence[int]) -> list[Array]:
        first, second = ranks
        ones = (1,) * self._window
        before, after = self._before[:, :first], self._after[:, :second].T
        core = self._core[..., :first, :second]
        return [before.reshape(*ones, *before.shape), core, after.reshape(*ones, *after.shape)]


def _basis(kernel: Array, axis: int) -> Array:
    """The left singular vectors of the unfolding along an axis, `[size, at most size]`."""
    unfolded = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    basis: Array = np.linalg.svd(unfolded, full_matrices=False)[0]
    return basis
