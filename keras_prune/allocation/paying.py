"""Zeros where they save time on a device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.allocation.allocation import Allocation
from keras_prune.arrays.selection import all_but_smallest
from keras_prune.arrays.splitting import Scored, caps_of, lowest_together, reachable_caps
from keras_prune.strategy import check_fraction

__all__ = ["Paying"]

LEAST = 0.7
"""Share of the whole model's density that a tensor keeps under `Paying`, whatever its work."""


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Paying(Allocation):
    r"""Zeros where they save time: first the share $b_l$ that makes a tensor's kernel faster, then the lowest scores.

    A sparse kernel is faster than the dense one from a certain share of zeros on: it pays. The kernels with the most
    multiplications are brought to that share first, as many as the target has zeros for; $b_l = 0$ for the others. What
    is left of the target goes to the lowest scores of the whole model for their work, $s / m_l^{1/2}$ with $m_l$
    multiplications a weight: of all ways to stay below so many multiplications, leaving out the lowest
    $|w| / m_l^{1/2}$ keeps $\sum w^2$ the largest. Where the $m_l$ differ, each tensor keeps at least 0.7 of the
    share that all keep, as far as that can be, since early layers have the most work and few weights. While the
    schedule rises, so do the $b_l$: at s(t) they are $b_l \cdot s(t) / s_f$.

    Args:
        pays_from: path -> share of a tensor's units above which its kernel pays; 0 for a path that is missing.
        work: path -> multiplications that a weight takes part in; 1 for a path that is missing.
        together: groups of paths whose kernels switch to sparse inference together or not at all.
        floor: the share of its units that every tensor keeps.

    Example:
        >>> low, high = np.arange(10.0), np.arange(10.0) + 100.0
        >>> tensors = [Scored("early", (1, 10), high, 1), Scored("late", (1, 10), low, 1)]
        >>> [round(float(share), 3) for share in Paying({"early": 0.45}, work={"early": 4})(tensors, 0.6)]
        [0.5, 0.7]
    """

    pays_from: Mapping[str, float]
    work: Mapping[str, float] = dataclasses.field(default_factory=dict)
    together: tuple[tuple[str, ...], ...] = ()
    floor: float = 0.01

    def __post_init__(self) -> None:
        check_fraction("Paying: floor", self.floor)
        for path, share in self.pays_from.items():
            if not share >= 0.0:
                raise ValueError(f"Paying: the share of {path!r} must be 0 or more. Received: {share!r}")

    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        last = target if final is None else max(final, target)
        needed = self.needed(tensors, last)
        caps = self._caps(tensors, needed, target, last)
        taken = []
        for tensor, units in zip(tensors, needed, strict=True):
            units = math.floor(units * (target / last) + 1e-9) if units else 0
            rest = all_but_smallest(tensor.scores, units, on=tensor.on) if units else tensor.on
            taken.append(dataclasses.replace(tensor, on=rest, scores=self._for_their_work(tensor)))
        return lowest_together(taken, caps, target)

    def needed(self, tensors: Sequence[Scored], target: float) -> list[int]:
        """Return how many units have to be off for each tensor's kernel to pay; 0 if the target has too few zeros.

        Args:
            tensors: their scores do not matter.
            target: the share of all weights to be zero.
        """
        wanted = [self._wanted(tensor) for tensor in tensors]
        caps = caps_of(tensors, self.floor)
        groups = [[i for i, t in enumerate(tensors) if t.path in group] for group in self.together]
        grouped = {i for group in groups for i in group}
        groups += [[i] for i in range(len(tensors)) if i not in grouped]

        def multiplications(group: list[int]) -> float:
            return sum(tensors[i].size * self.work.get(tensors[i].path, 1.0) for i in group)

        left = target * sum(t.size for t in tensors)
        units = [0] * len(tensors)
        for group in sorted(groups, key=multiplications, reverse=True):
            zeros = sum(wanted[i] * tensors[i].weights_per_unit for i in group)
            if zeros <= left and all(wanted[i] <= caps[i] for i in group):
                left -= zeros
                for i in group:
                    units[i] = wanted[i]
        return units

    def _caps(self, tensors: Sequence[Scored], needed: Sequence[int], target: float, last: float) -> list[int]:
        """The most units that each tensor may have off: its work alone must not nearly empty one."""
        caps = reachable_caps(tensors, self.floor, target)
        if len({self.work.get(tensor.path, 1.0) for tensor in tensors}) == 1:
            return caps
        even = [max(pair) for pair in zip(caps_of(tensors, LEAST * (1.0 - last)), needed, strict=True)]
        even = [min(pair) for pair in zip(even, caps, strict=True)]
        zeros = sum(cap * tensor.weights_per_unit for cap, tensor in zip(even, tensors, strict=True))
        return even if zeros >= target * sum(tensor.size for tensor in tensors) else caps

    def _for_their_work(self, tensor: Scored) -> npt.NDArray[np.floating]:
        """The scores of units for the multiplications that they cost: more work lowers a score, whatever its sign."""
        root = math.sqrt(self.work.get(tensor.path, 1.0))
        if root == 1.0:
            return tensor.scores
        scaled: npt.NDArray[np.floating] = tensor.scores / root
        np.multiply(tensor.scores, root, out=scaled, where=tensor.scores < 0)
        return scaled

    def _wanted(self, tensor: Scored) -> int:
        share = self.pays_from.get(tensor.path, 0.0)
        if not share or math.isinf(share):
            return 0
        # One more than the share, which has to be exceeded.
        return math.floor(share * tensor.units + 1e-9) + 1
