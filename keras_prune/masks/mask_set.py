"""The masks of one training, written and counted together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.masks.bound import Mask, select
from keras_prune.models.variables import read, resource_of

__all__ = ["MaskSet"]

TOGETHER = 1 << 20
"""Up to this many weights in all, the masks of a training are written by one compiled function."""


class MaskSet:
    """The masks of one training, in the order of its targets.

    Args:
        masks: always written together, in this order.
    """

    def __init__(self, masks: Sequence[Mask]) -> None:
        self.masks = tuple(masks)
        self.size = sum(math.prod(mask.target.variable.shape) for mask in self.masks)
        plain = all(resource_of(mask.variable) is not None for mask in self.masks)
        # Where the tensors are small, calls into TensorFlow cost more than the work: one compiled function does it all.
        self._together = self._compile() if plain and self.size <= TOGETHER else None

    def __iter__(self) -> Iterator[Mask]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def write(self, values: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Set every mask, and put pruned weights at +0.0.

        Args:
            values: for each mask, True where kept, of the kernel's shape.
        """
        if self._together is None:
            for mask, value in zip(self.masks, values, strict=True):
                mask.write(value)
            return
        import tensorflow as tf

        self._together(tf.constant(np.concatenate([value.reshape(-1) for value in values])))
        for mask, value in zip(self.masks, values, strict=True):
            mask.count(value)

    def apply(self) -> None:
        """Put every weight that a mask prunes at +0.0, and its averages."""
        for mask in self.masks:
            mask.apply()

    def guard(self, on: bool = True) -> None:
        """Keep pruned weights at zero whatever else than an optimizer writes to the kernels; or end that."""
        for mask in self.masks:
            mask.guard(on)

    def recount(self) -> None:
        """Count the zeros of masks that something else has set."""
        for mask in self.masks:
            mask.count(mask.read())

    @property
    def off(self) -> float:
        """The share of the weights that masks have off, counted when they last changed."""
        return sum(mask.zeros for mask in self.masks) / self.size

    @property
    def sparsity(self) -> float:
        """The share of the weights that are pruned and zero, counted now.

        Weights that have just come back as 0, and are there to learn, do not count.
        """
        return sum(self.zeros(pruned=True)) / self.size

    def zeros(self, *, pruned: bool = False) -> list[int]:
        """Return how many weights of each target are zero for the layer that computes with them.

        Args:
            pruned: count those that the mask has off only.
        """
        found = []
        for mask in self.masks:
            zero = read(mask.target.variable) == 0
            wrapped = mask.target.mask
            zero = zero if wrapped is None else zero | (read(wrapped) == 0)
            found.append(int(np.count_nonzero(zero & ~mask.read() if pruned else zero)))
        return found

    def settle(self) -> int:
        """Put pruned weights that something wrote to back at zero; return how many there were."""
        written = 0
        for mask in self.masks:
            if not mask.target.straight_through:
                written += int(np.count_nonzero(read(mask.target.variable)[~mask.read()]))
        if written:
            self.apply()
        return written

    def _compile(self) -> Any:
        import tensorflow as tf

        shapes = [tuple(mask.variable.shape) for mask in self.masks]
        sizes = [math.prod(shape) for shape in shapes]

        def write(packed: Any) -> None:
            for mask, part, shape in zip(self.masks, tf.split(packed, sizes), shapes, strict=True):
                value = tf.reshape(part, shape)
                mask.variable.assign(value)
                if mask.target.mask is not None:
                    mask.target.mask.assign(value)
                if not mask.target.straight_through:
                    for held in (mask.target.variable, *mask.averages):
                        held.assign(select(value, held.value))

        # One argument, and no look for the function that fits it: on small models TensorFlow takes longer to check a
        # call than to run it.
        return tf.function(write, autograph=False).get_concrete_function(tf.TensorSpec((sum(sizes),), tf.bool))
