"""How the axes of a kernel read as `[..., in, out]`, the layout in which patterns are stated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Layout"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kernel's axes read as `[..., in, out]`, the layout in which patterns are stated.

    Attributes:
        space: axes of the window; inputs, outputs: axes over which a weight's input and output run, each flattened.
        groups: those of the outputs that count groups which read inputs of their own: a depthwise kernel's channels.
        split: the groups into which the kernel's last axis is cut, before axes are counted: `[..., out]` is
            `[..., split, out / split]`. 0: it is not.

    Example:
        >>> Layout.transposed(4).to_canonical(np.zeros((3, 3, 8, 2))).shape  # Conv2DTranspose: (h, w, out, in)
        (3, 3, 2, 8)
    """

    space: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: tuple[int, ...] = ()
    split: int = 0

    @classmethod
    def plain(cls, rank: int) -> Layout:
        """`[..., in, out]`: Dense, Conv, recurrent kernels, Embedding."""
        if rank == 1:
            return cls((), (), (0,))
        return cls(tuple(range(rank - 2)), (rank - 2,), (rank - 1,))

    @classmethod
    def transposed(cls, rank: int) -> Layout:
        """`[..., out, in]`: transposed convolutions."""
        return cls(tuple(range(rank - 2)), (rank - 1,), (rank - 2,))

    @classmethod
    def depthwise(cls, rank: int) -> Layout:
        """`[..., channel, multiplier]`: each output has an input of its own, so both axes count its outputs."""
        return cls(tuple(range(rank - 2)), (), (rank - 2, rank - 1), groups=(rank - 2,))

    @classmethod
    def grouped(cls, rank: int, groups: int) -> Layout:
        """`[..., in / groups, out]`: convolutions in groups, of which each reads channels of its own."""
        space, inputs = tuple(range(rank - 2)), (rank - 2,)
        return cls(space, inputs, (rank - 1, rank), groups=(rank - 1,), split=groups)

    def by_input(self) -> Layout:
        """Return the layout in which `in` counts every input of the layer, and `out` the outputs that read each.

        Example:
            >>> grouped = Layout.grouped(4, groups=2)
            >>> grouped.canonical_shape((3, 3, 4, 6)), grouped.by_input().canonical_shape((3, 3, 4, 6))
            ((3, 3, 4, 6), (3, 3, 8, 3))
        """
        return dataclasses.replace(self, inputs=self.groups + self.inputs, outputs=self._matrices[2], groups=())

    def over_inputs(self, values: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
        """Return one number for each input of the layer where it stands in the kernel.

        Args:
            values: [in], in the order in which `by_input` counts inputs.
            shape: of the kernel.

        Returns:
            An array that broadcasts to `shape`; the last axis is as long as the kernel's where groups cut it.

        Example:
            >>> Layout.plain(2).over_inputs(np.array([1.0, 2.0]), (2, 3)).tolist()
            [[1.0], [2.0]]
            >>> Layout.grouped(3, groups=2).over_inputs(np.array([1.0, 2.0]), (1, 1, 4)).tolist()
            [[[1.0, 1.0, 2.0, 2.0]]]
        """
        cut, inputs = self._shape(shape), self.groups + self.inputs
        spread = values.reshape([cut[axis] for axis in inputs]).transpose(np.argsort(inputs))
        spread = spread.reshape([size if axis in inputs else 1 for axis, size in enumerate(cut)])
        if not self.split:
            return spread
        return np.repeat(spread, cut[-1], axis=-1).reshape(*spread.shape[:-2], -1)

    def _shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A kernel's shape, its last axis cut into groups."""
        return (*shape[:-1], self.split, shape[-1] // self.split) if self.split else tuple(shape)

    def to_canonical(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array of the kernel's shape as `[..., in, out]`; a view where the axes stand in order already."""
        return self._joined(array, self._canonical)

    def canonical_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape `[..., in, out]` of a kernel of `shape`."""
        return self._sizes(shape, self._canonical)

    def from_canonical(self, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return an array `[..., in, out]` in the axes of a kernel of `shape`: `to_canonical` undone."""
        return self._parted(array, self._canonical, shape)

    def to_matrices(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array of the kernel's shape as `[groups, window x in, out]`, a matrix for each group.

        Example:
            >>> Layout.depthwise(4).to_matrices(np.zeros((3, 3, 8, 2))).shape
            (8, 9, 2)
        """
        return self._joined(array, self._matrices)

    def matrices_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape `[groups, window x in, out]` of a kernel of `shape`."""
        return self._sizes(shape, self._matrices)

    def from_matrices(self, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return matrices `[groups, window x in, out]` in the axes of a kernel of `shape`: `to_matrices` undone."""
        return self._parted(array, self._matrices, shape)

    @property
    def _canonical(self) -> tuple[tuple[int, ...], ...]:
        return (*((axis,) for axis in self.space), self.inputs, self.outputs)

    @property
    def _matrices(self) -> tuple[tuple[int, ...], ...]:
        return self.groups, self.space + self.inputs, tuple(axis for axis in self.outputs if axis not in self.groups)

    def _sizes(self, shape: Sequence[int], parts: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        cut = self._shape(shape)
        return tuple(math.prod(cut[axis] for axis in part) for part in parts)

    def _joined(self, array: npt.NDArray[Any], parts: tuple[tuple[int, ...], ...]) -> npt.NDArray[Any]:
        """An array of the kernel's shape with one axis for each part, its axes flattened."""
        moved = array.reshape(self._shape(array.shape)).transpose(sum(parts, ()))
        return moved.reshape(self._sizes(array.shape, parts))

    def _parted(
        self, array: npt.NDArray[Any], parts: tuple[tuple[int, ...], ...], shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """The same in the axes of a kernel of `shape`: `_joined` undone."""
        order = sum(parts, ())
        cut = self._shape(shape)
        return array.reshape([cut[axis] for axis in order]).transpose(np.argsort(order)).reshape(shape)
