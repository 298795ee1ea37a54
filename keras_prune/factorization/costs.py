"""What a layer and the layers in its place cost: weights and multiplications, for any ranks at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Cost", "Places", "chain_costs"]

Integers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Weights of kernels, and multiplications for one sample."""

    params: int
    macs: int

    def of(self, by: str) -> int:
        """Return "params" or "macs"."""
        return self.params if by == "params" else self.macs


@dataclasses.dataclass(frozen=True)
class Places:
    """At how many places a layer applies its kernel, at each of its calls; an axis of unknown length counts as 1.

    Attributes:
        calls: for each call, how many vectors there are besides those of the window's axes, the sizes of the window's
            axes in the input, and those in the output.
    """

    calls: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]

    def after(self, moved: Sequence[int]) -> int:
        """Return the number of places, all calls together, once the window has gone along some axes only.

        Example:
            >>> strided = Places(((1, (8, 8), (4, 4)),))
            >>> strided.after(()), strided.after((0,)), strided.after((0, 1))
            (64, 32, 16)
        """
        return sum(
            others * math.prod(out[axis] if axis in moved else size for axis, size in enumerate(given))
            for others, given, out in self.calls
        )


def chain_costs(
    shape: Sequence[int], moves: Sequence[Sequence[int]], ranks: Integers, places: Places
) -> tuple[Integers, Integers]:
    r"""Return weights and multiplications of layers in a row, $\sum_i w_i c_i c_{i+1}$ and the same times places.

    Args:
        shape: of the kernel, `[window..., in, out]`.
        moves: for each layer, the axes of the window that it takes over.
        ranks: `[choices, layers - 1]`, the channels between layers.
        places: where the layer is applied.

    Returns:
        Weights and multiplications, `[choices]` each.

    Example:
        >>> dense = Places(((1, (), ()),))
        >>> [numbers.tolist() for numbers in chain_costs((100, 50), [(), ()], np.array([[1], [10]]), dense)]
        [[150, 1500], [150, 1500]]
    """
    *window, first, last = shape
    ends = np.ones((len(ranks), 1), np.int64)
    widths = np.concatenate([first * ends, ranks, last * ends], axis=1)
    params = macs = np.zeros(len(ranks), np.int64)
    done: list[int] = []
    for place, axes in enumerate(moves):
        done += axes
        weights = math.prod(window[axis] for axis in axes) * widths[:, place] * widths[:, place + 1]
        params, macs = params + weights, macs + weights * places.after(done)
    return params, macs
