"""One global target -> a target for each tensor: how much of each layer is pruned."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.arrays.splitting import Scored, caps_of, fit_shares, lowest_together, reachable_caps
from keras_prune.models.keys import check_keys, fits, keyed
from keras_prune.strategy import Measuring, check_fraction, check_points, data_field, declared

__all__ = ["ERK", "LAMP", "Allocation", "Explicit", "Global", "Sensitivity", "Uniform", "lamp_scores"]

_register = register_keras_serializable(package="keras_prune")


@dataclasses.dataclass(frozen=True)
class Allocation(Measuring):
    """A target for each tensor, which together remove the global target's share of all weights.

    Every tensor keeps at least the share `floor` of its units, and at least one unit, so none is emptied; what a floor
    keeps in one tensor is pruned in the others. A global target that no split can reach is refused.

    Example:
        >>> tensors = [Scored("a", (1, 4), np.array([1.0, 2.0, 3.0, 4.0]), 1),
        ...            Scored("b", (1, 4), np.array([5.0, 6.0, 7.0, 8.0]), 1)]
        >>> Uniform()(tensors, 0.5), Global()(tensors, 0.25)
        ([0.5, 0.5], [0.5, 0.0])
    """

    kind: ClassVar[str] = "allocation"
    adds_up: ClassVar[bool] = True
    """Whether the shares together come to the target; if so, a target that is reached leaves nothing to do."""
    needs_curves: ClassVar[bool] = False
    """Whether each tensor comes with its curve, `Scored.curve`: how the loss on `data` rises when this tensor alone is
    pruned to each of `points`. Curves are measured once in a training. Without `data` they are empty, and an allocation
    that cannot do without refuses (`check_curves`)."""
    floor = declared(0.0)
    """The share of its units that every tensor keeps: 0, or a field."""
    points = declared((0.25, 0.5, 0.75, 0.9, 0.95))
    """The sparsities of the curves, increasing fractions in (0, 1): 0.25, 0.5, 0.75, 0.9 and 0.95, or a field."""

    @abstractmethod
    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        """Return one target a tensor.

        Args:
            tensors: with the scores of their units.
            target: the share of all weights to be zero, a fraction in [0, 1).
            final: the target at the end of the schedule; None when it is `target`.

        Raises:
            ValueError: the floors leave no way to reach the target.
        """

    def check_curves(self, tensors: Sequence[Scored]) -> None:
        """Refuse tensors whose curve was not measured.

        Raises:
            ValueError: with their paths.
        """
        missing = [tensor.path for tensor in tensors if not tensor.curve]
        if missing:
            raise ValueError(
                f"{type(self).__name__}: no loss was measured for {missing}. Give data=(x, y) to measure it on."
            )


@_register
@dataclasses.dataclass(frozen=True)
class Uniform(Allocation, name="uniform"):
    """The same target everywhere: $s_l = s$; where a tensor has more off already, less of the others is pruned.

    Args:
        floor: the share of its units that every tensor keeps; at least one unit always stays.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fraction("Uniform: floor", self.floor)

    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        caps = reachable_caps(tensors, self.floor, target)
        if all(t.off <= round(target * t.units) <= cap for t, cap in zip(tensors, caps, strict=True)):
            return [target] * len(tensors)
        return fit_shares(tensors, [target] * len(tensors), caps, target)


@_register
@dataclasses.dataclass(frozen=True)
class Global(Allocation, name="global"):
    r"""One threshold for all tensors, $s_l = |\{u \in l: score(u) \le \theta\}| / |l|$: the model's lowest scores go.

    Args:
        floor: the share of its units that every tensor keeps.
    """

    floor: float = 0.01

    def __post_init__(self) -> None:
        check_fraction("Global: floor", self.floor)

    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        caps = reachable_caps(tensors, self.floor, target)
        return lowest_together(tensors, caps, target)


@_register
@dataclasses.dataclass(frozen=True)
class LAMP(Allocation, name="lamp"):
    r"""One threshold for all tensors, on scores relative to their tensor: $u^2 / \sum_{v \ge u} v^2$.

    Within a tensor the order is that of the scores; between tensors, a bound on the model's distortion is minimised.
    Costs a sort of each tensor.

    Args:
        floor: the share of its units that every tensor keeps.

    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 4.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fraction("LAMP: floor", self.floor)

    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        caps = reachable_caps(tensors, self.floor, target)
        # The threshold is one for LAMP's scores, so it says nothing about the criterion's.
        lamp = [dataclasses.replace(t, scores=lamp_scores(t.lowered), on=None) for t in tensors]
        return [float(share) for share in lowest_together(lamp, caps, target)]


def lamp_scores(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the LAMP score of each unit, in increasing order.

    Args:
        scores: `[units]`; negative ones (already pruned) count as 0.

    Example:
        >>> lamp_scores(np.array([2.0, 1.0]))
        array([0.2, 1. ])
    """
    squares = np.sort(np.square(np.maximum(scores, 0.0).astype(np.float64)))
    tail = np.cumsum(squares[::-1])[::-1]
    return np.asarray(np.divide(squares, tail, out=np.zeros_like(squares), where=tail > 0))


@_register
@dataclasses.dataclass(frozen=True)
class ERK(Allocation, name="erk"):
    r"""Erdős–Rényi-Kernel: densities in proportion to $\sum_d n_d / \prod_d n_d$ over the kernel's dimensions.

    Small tensors stay dense, and more of large ones is pruned; one factor makes the whole meet the target.

    Args:
        floor: the share of its units that every tensor keeps.

    Source: Evci et al. 2020, "Rigging the lottery", section 3, (1).
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fraction("ERK: floor", self.floor)

    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        caps = reachable_caps(tensors, self.floor, target)
        density = [sum(t.shape) / t.size for t in tensors]
        top = max(density)
        return fit_shares(tensors, [1.0 - d / top for d in density], caps, target)


@_register
@dataclasses.dataclass(frozen=True)
class Sensitivity(Allocation):
    r"""Each tensor is pruned until the loss has risen by the same amount, $\Delta L_l(s_l) = \tau$ for all l.

    The loss on `data` is measured with each tensor alone pruned to each of `points`; between points the curve is a
    straight line. The tolerance $\tau$ is the one that meets the global target.

    Args:
        data: what the loss is measured on: `(x, y)`, or batches of it. Cost: one evaluation a tensor and point, once.
        points: sparsities to measure, increasing fractions in (0, 1).
        floor: the share of its units that every tensor keeps.

    Source: the sensitivity scans of Han et al. 2015, "Learning both weights and connections", section 3 and figure 6.
    """

    needs_curves: ClassVar[bool] = True

    data: Any = data_field()
    points: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 0.95)
    floor: float = 0.01

    def __post_init__(self) -> None:
        check_fraction("Sensitivity: floor", self.floor)
        check_points("Sensitivity", self.points)

    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        caps = reachable_caps(tensors, self.floor, target)
        self.check_curves(tensors)
        curves = [self._increasing(t.curve) for t in tensors]
        most = [cap / t.units for cap, t in zip(caps, tensors, strict=True)]

        def shares(tolerance: float) -> list[float]:
            return [
                min(cap, float(np.interp(tolerance, losses, points, right=1.0)))
                for cap, (points, losses) in zip(most, curves, strict=True)
            ]

        low, high = 0.0, max(float(losses[-1]) for _, losses in curves) + 1e-12
        for _ in range(100):
            middle = (low + high) / 2.0
            zeros = sum(s * t.size for s, t in zip(shares(middle), tensors, strict=True))
            low, high = (low, middle) if zeros >= target * sum(t.size for t in tensors) else (middle, high)
        return fit_shares(tensors, shares(high), caps, target)

    @staticmethod
    def _increasing(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Return the points and losses from (0, 0), made strictly increasing: noise never rewards pruning more."""
        points, losses = [0.0], [0.0]
        for sparsity, loss in curve:
            points.append(sparsity)
            losses.append(max(loss, losses[-1] + 1e-12))
        return points, losses


@_register
@dataclasses.dataclass(frozen=True)
class Explicit(Allocation):
    r"""Targets by name: a tensor that a key fits ends at the target of that key.

    While the schedule rises, the target of such a tensor rises in step, $s_l(t) = s_l \cdot s(t) / s_f$. A tensor that
    no key fits takes the schedule's own target. The first key that fits counts.

    Args:
        targets: layer, name, path, glob or regular expression -> sparsity, a fraction in [0, 1).

    Example:
        >>> tensors = [Scored("a/kernel", (1, 4), np.arange(4.0), 1), Scored("b/kernel", (1, 4), np.arange(4.0), 1)]
        >>> Explicit({"a/.*": 0.75})(tensors, 0.25, final=0.5)
        [0.375, 0.25]
    """

    adds_up: ClassVar[bool] = False

    targets: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", keyed(self.targets))
        for path, target in self.targets.items():
            check_fraction(f"Explicit: the target of {path!r}", target)

    def __call__(self, tensors: Sequence[Scored], target: float, final: float | None = None) -> list[float]:
        paths = [t.path for t in tensors]
        check_keys("Explicit", self.targets, paths, "prunable tensor")
        progress = 1.0 if not final else target / final
        shares = []
        for tensor, cap in zip(tensors, caps_of(tensors, 0.0), strict=True):
            own = next((value * progress for key, value in self.targets.items() if fits(key, tensor.path)), target)
            if round(own * tensor.units) > cap:
                raise ValueError(
                    f"Explicit: a target of {own:g} would empty {tensor.path!r} or pass its pattern's limit "
                    f"({tensor.units:g} units, at most {cap} off). Give it a lower target."
                )
            shares.append(own)
        return shares
