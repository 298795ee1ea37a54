"""Which pruned units come back, and which are pruned in their place, at a given number of units off."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.arrays.selection import all_but_smallest, smallest
from keras_prune.strategy import Measuring, check_fraction

__all__ = ["SET", "Alternation", "Growth", "RigL", "Surgery"]

Array = npt.NDArray[np.floating]
Gains = Mapping[str, Array]
Mask = npt.NDArray[np.bool_]

_register = register_keras_serializable(package="keras_prune")


@dataclasses.dataclass(frozen=True)
class Growth(Measuring):
    """Exchanges units of one tensor: some that are on go off, some that are off come back.

    What it needs to know of the weights that are off, it names in `needs` (`strategy.Measuring`; all but "seed").

    Example:
        >>> on, scores = np.array([True, True, False, False]), np.array([2.0, 1.0, 0.0, 0.0])
        >>> gains = {"gradient": np.array([0.0, 0.0, 1.0, 3.0])}
        >>> RigL(fraction=0.5)(on, scores, gains, off=2, progress=0.0, seed=0)
        array([ True, False, False,  True])
    """

    kind: ClassVar[str] = "growth"
    keeps_learning: ClassVar[bool] = False
    """Whether pruned weights go on being updated out of sight, so that they come back with the value that they grew
    to. If not, they come back as new weights: 0, and without anything in the optimizer's state (momentum, moments)."""
    clears_momentum: ClassVar[bool] = False
    """Whether the momentum of every weight of the model begins anew when all that was pruned comes back."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        call = vars(cls).get("__call__")
        if call is not None and "gain" in inspect.signature(call).parameters:
            _take_one_gain(cls, call)

    @abstractmethod
    def __call__(self, on: Mask, scores: Array, gains: Gains, *, off: int, progress: float, seed: int) -> Mask:
        """Return which units are on afterwards, `[units]`; exactly `off` are off.

        Args:
            on: `[units]`, the units that are on now.
            scores: `[units]`, larger is kept; of units that are off too, where the growth keeps them learning.
            gains: for each statistic in `needs` its size in the units, `[units]`: the absolute value in each weight,
                pooled over a unit as scores are.
            off: units to be off.
            progress: 0 at the schedule's first step, 1 at its last.
            seed: fixes whatever is drawn at random.
        """


def _take_one_gain(cls: type[Growth], call: Callable[..., Mask]) -> None:
    """Let a growth of the former signature, with the array `gain` of its one statistic, run as it did."""
    warnings.warn(
        f"{cls.__name__}.__call__ takes `gain`, one array. Write `gains`, a mapping from each statistic in `needs` to "
        "its array: gains['gradient'].",
        DeprecationWarning,
        stacklevel=4,
    )

    @functools.wraps(call)
    def with_gain(self: Growth, on: Mask, scores: Array, gains: Gains, **named: Any) -> Mask:
        if len(gains) > 1:
            raise TypeError(
                f"{type(self).__name__}.__call__ takes `gain`, one array, and needs several statistics. Received: "
                f"{sorted(gains)}. Name the argument `gains`, and read each by its name: "
                f"gains[{min(gains)!r}]."
            )
        return call(self, on, scores, next(iter(gains.values()), None), **named)

    cls.__call__ = with_gain  # type: ignore[method-assign]


def _exchange(on: Mask, scores: Array, gain: Array, off: int, fraction: float) -> Mask:
    """Keep the best units that are on, all but a fraction of what is to be on; fill up with the best gains.

    Units that were off grow first. Where they are fewer than what is wanted (a first mask, a schedule that rises), the
    best gains among the units that would have been pruned stay on.

    Args:
        on: `[units]`, the units that are on now.
        scores: `[units]`, larger is kept.
        gain: `[units]`, larger comes first.
        off: units to be off.
        fraction: of the units to be on, the share to be exchanged.
    """
    total = on.size - off
    swap = min(math.floor(fraction * total), off)
    after = _best(scores, min(int(np.count_nonzero(on)), total - swap), among=on)
    for claimants in (~on, on & ~after):
        after |= _best(gain, total - int(np.count_nonzero(after)), among=claimants)
    return after


def _best(values: Array, count: int, among: Mask) -> Mask:
    """Return which units have the largest values, `[units]`: `count` of those `among`, or as many as there are."""
    return all_but_smallest(values, values.size - count, on=among)


def _check_fraction(rule: Growth, fraction: float) -> None:
    check_fraction(f"{type(rule).__name__}: fraction", fraction)


@_register
@dataclasses.dataclass(frozen=True)
class SET(Growth, name="set"):
    r"""Sparse evolutionary training: the share $\zeta$ with the lowest scores is pruned, and as many random ones grow.

    Args:
        fraction: $\zeta$, a fraction in [0, 1).

    Source: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity",
    algorithm 2.
    """

    fraction: float = 0.3

    def __post_init__(self) -> None:
        _check_fraction(self, self.fraction)

    def __call__(self, on: Mask, scores: Array, gains: Gains, *, off: int, progress: float, seed: int) -> Mask:
        noise = np.random.default_rng(seed).random(on.size)
        return _exchange(on, scores, noise, off, self.fraction)


@_register
@dataclasses.dataclass(frozen=True)
class RigL(Growth, name="rigl"):
    r"""The share $\frac{\alpha}{2}(1 + \cos \pi p)$ with the lowest scores is pruned, and the largest $|\bar g|$ grow.

    They grow from 0. The gradient is that of training, averaged since the last exchange; pruned weights have one too.

    Args:
        fraction: $\alpha$, a fraction in [0, 1).

    Source: Evci et al. 2020, "Rigging the lottery: making all tickets winners", section 3, (3) and (4).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    fraction: float = 0.3

    def __post_init__(self) -> None:
        _check_fraction(self, self.fraction)

    def __call__(self, on: Mask, scores: Array, gains: Gains, *, off: int, progress: float, seed: int) -> Mask:
        if "gradient" not in gains:
            raise ValueError(
                f"RigL: gains must hold the gradient of pruned weights, 'gradient'. Received: {sorted(gains)}"
            )
        annealed = self.fraction / 2.0 * (1.0 + math.cos(math.pi * progress))
        return _exchange(on, scores, gains["gradient"], off, annealed)


@_register
@dataclasses.dataclass(frozen=True)
class Surgery(Growth, name="surgery"):
    r"""Dynamic network surgery: all weights go on learning; a unit that is on has an advantage over one that is off.

    In the paper, a weight is pruned below a threshold a and comes back above $b = (1 + margin)\,a$. Here the thresholds
    follow the schedule: $margin\,|s|$ is added to the score s of a unit that is on, and the units with the best scores
    are on, so that the number of units off is exact.

    Args:
        margin: the distance of the two thresholds as a share of the score, 0 or more.

    Source: Guo et al. 2016, "Dynamic network surgery for efficient DNNs", equations 2 and 3.
    """

    keeps_learning: ClassVar[bool] = True

    margin: float = 0.1

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"Surgery: margin must be 0 or more. Received: margin={self.margin}")

    def __call__(self, on: Mask, scores: Array, gains: Gains, *, off: int, progress: float, seed: int) -> Mask:
        return ~smallest(np.where(on, scores + self.margin * np.abs(scores), scores), off)


@_register
@dataclasses.dataclass(frozen=True)
class Alternation(Growth, name="alternation"):
    """Compressed and dense phases in turn: the units with the best scores are on, so all are where the target is 0.

    With `schedules.Phases`, which alternates between a sparsity and 0. A unit that is off has the score of zeros, so
    none comes back while the target stays. When all come back, the optimizer's momentum is cleared.

    Source: Peste et al. 2021, "AC/DC: Alternating compressed/decompressed training of deep neural networks",
    algorithm 1.

    Example:
        >>> on, scores = np.array([True, False, True]), np.array([1.0, 0.0, 2.0])
        >>> [Alternation()(on, scores, {}, off=off, progress=0.0, seed=0).tolist() for off in (0, 2)]
        [[True, True, True], [False, False, True]]
    """

    clears_momentum: ClassVar[bool] = True

    def __call__(self, on: Mask, scores: Array, gains: Gains, *, off: int, progress: float, seed: int) -> Mask:
        return ~smallest(scores, off)
