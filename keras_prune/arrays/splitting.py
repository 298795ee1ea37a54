"""Splitting a number of zeros among tensors: the most that each may have, and how many it gets. Pure arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from keras_prune.arrays.selection import lowest

__all__ = ["Scored", "Share", "caps_of", "fit_shares", "lowest_together", "reachable_caps", "shift_shares"]


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A tensor as an allocation sees it.

    Attributes:
        path: the variable's path, unique in the model.
        shape: the kernel's shape, `[..., in, out]`.
        scores: one score a unit of the pattern, `[units]`; larger is kept, minus infinity is off already.
        weights_per_unit: weights that an off unit sets to zero.
        limit: the highest sparsity that the pattern gives, a fraction.
        curve: pairs of (sparsity, loss increase), increasing in sparsity, where the allocation needs them.
        on: `[units]`, False where a unit is off already: it stays off, and its score does not count. None: all are on.
    """

    path: str
    shape: tuple[int, ...]
    scores: npt.NDArray[np.floating]
    weights_per_unit: int
    limit: float = 1.0
    curve: tuple[tuple[float, float], ...] = ()
    on: npt.NDArray[np.bool_] | None = None

    @property
    def lowered(self) -> npt.NDArray[np.floating]:
        """The scores, `[units]`, minus infinity where a unit is off already."""
        return self.scores if self.on is None else np.where(self.on, self.scores, -np.inf)

    @property
    def off(self) -> int:
        """Number of units that are off already."""
        return 0 if self.on is None else self.on.size - int(np.count_nonzero(self.on))

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def units(self) -> float:
        """Number of weights, in units."""
        return self.size / self.weights_per_unit


class Share(float):
    """A target that was found as a bound of scores: the units at or below `bound` are pruned, except for ties.

    A plain number will do as well; the bound saves a search when the mask is made.
    """

    __slots__ = ("bound",)
    bound: float

    def __new__(cls, value: float, bound: float) -> Share:
        """Return the number `value` with a bound."""
        share = super().__new__(cls, value)
        share.bound = bound
        return share


def caps_of(tensors: Sequence[Scored], floor: float) -> list[int]:
    """Return the most units that each tensor may have off, keeping the share `floor` and at least one unit.

    What is off already stays off, whatever the floor.

    Args:
        tensors: their scores do not matter.
        floor: the share of its units that every tensor keeps, a fraction in [0, 1).
    """
    caps = []
    for tensor in tensors:
        available = round(tensor.limit * tensor.units)
        kept = math.ceil(floor * tensor.units - 1e-9)
        if tensor.limit >= 1.0:
            kept = max(kept, 1)
        caps.append(max(tensor.off, min(available, math.floor(tensor.units) - kept)))
    return caps


def reachable_caps(tensors: Sequence[Scored], floor: float, target: float) -> list[int]:
    """Return `caps_of` the tensors.

    Raises:
        ValueError: with all of them at their caps, the target is not reached.
    """
    caps = caps_of(tensors, floor)
    total = sum(t.size for t in tensors)
    most = sum(cap * t.weights_per_unit for cap, t in zip(caps, tensors, strict=True)) / total
    if target > most + 0.5 * max(t.weights_per_unit for t in tensors) / total:
        tightest = min(zip(caps, tensors, strict=True), key=lambda pair: pair[0] / pair[1].units)[1]
        raise ValueError(
            f"The {len(tensors)} tensors can give at most a sparsity of {most:.6g} without emptying one or passing "
            f"the pattern's limit (tightest: {tightest.path!r}). Received: target={target:g}. "
            "Lower the target or the floor, or take another pattern."
        )
    return caps


def fit_shares(tensors: Sequence[Scored], wanted: Sequence[float], caps: Sequence[int], target: float) -> list[float]:
    """Scale wanted densities by one factor, within the caps, until the whole has the target's number of zeros.

    Densities 1 - s_i are multiplied by one factor and clipped, so that no tensor has more off than its cap nor less
    than it has already; the factor is found by bisection, since the number of zeros falls as it grows. The last few
    units, lost to rounding, are given by the tensors in turn, largest first.
    """
    sizes = [t.size for t in tensors]
    goal = target * sum(sizes)
    off = [t.off for t in tensors]
    bounds = [(low / t.units, cap / t.units) for low, cap, t in zip(off, caps, tensors, strict=True)]

    def shares(factor: float) -> list[float]:
        return [min(high, max(low, 1.0 - (1.0 - s) * factor)) for s, (low, high) in zip(wanted, bounds, strict=True)]

    low, high = 0.0, 1.0
    while sum(s * n for s, n in zip(shares(high), sizes, strict=True)) > goal and high < 1e12:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        zeros = sum(s * n for s, n in zip(shares(middle), sizes, strict=True))
        low, high = (middle, high) if zeros > goal else (low, middle)
    counts = [min(round(s * t.units), cap) for s, t, cap in zip(shares(high), tensors, caps, strict=True)]
    _settle(tensors, counts, off, caps, goal)
    return [count / t.units for count, t in zip(counts, tensors, strict=True)]


def shift_shares(
    tensors: Sequence[Scored], wanted: Sequence[float], bounds: Sequence[tuple[float, float]], target: float | None
) -> list[float]:
    r"""Shift wanted sparsities by one amount, within bounds, until the whole has the target's number of zeros.

    The shift c is one on the logistic scale of each tensor's bounds, so that no share leaves them:

    $s_i' = l_i + (h_i - l_i) \, \sigma(c + \mathrm{logit} \frac{s_i - l_i}{h_i - l_i})$

    Args:
        tensors: their scores do not matter.
        wanted: a fraction for each.
        bounds: the lowest and the highest share of each; no tensor loses its last unit, whatever they say.
        target: the share of all weights to be zero, a fraction in [0, 1); None leaves the shares as they are wanted.

    Returns:
        Shares of whole units, which add up to the target, to within half a unit.

    Raises:
        ValueError: the bounds leave no way to reach the target.

    Example:
        >>> a, b = Scored("a", (10, 10), np.zeros(0), 1), Scored("b", (10, 30), np.zeros(0), 1)
        >>> shift_shares([a, b], [0.5, 0.5], [(0.0, 1.0)] * 2, 0.8)
        [0.8, 0.8]
        >>> shift_shares([a, b], [0.2, 0.9], [(0.0, 1.0)] * 2, 0.8)
        [0.35, 0.95]
    """
    ends = _unit_bounds(tensors, bounds)
    if target is None:
        counts = [_within(round(s * t.units), *end) for s, t, end in zip(wanted, tensors, ends, strict=True)]
        return [count / t.units for count, t in zip(counts, tensors, strict=True)]
    goal = target * sum(t.size for t in tensors)
    _check_between(tensors, ends, target)
    places = [
        math.log(u / (1.0 - u))
        for s, (low, high) in zip(wanted, bounds, strict=True)
        for u in [_within((s - low) / (high - low) if high > low else 0.5, 1e-6, 1.0 - 1e-6)]
    ]

    def counts_at(shift: float) -> list[float]:
        return [
            _within((low + (high - low) / (1.0 + math.exp(-z - shift))) * t.units, *end)
            for z, t, (low, high), end in zip(places, tensors, bounds, ends, strict=True)
        ]

    below, above = -100.0, 100.0
    for _ in range(100):
        middle = (below + above) / 2.0
        zeros = sum(c * t.weights_per_unit for c, t in zip(counts_at(middle), tensors, strict=True))
        below, above = (below, middle) if zeros >= goal else (middle, above)
    rounded = [round(count) for count in counts_at(above)]
    _settle(tensors, rounded, [low for low, _ in ends], [high for _, high in ends], goal)
    return [count / t.units for count, t in zip(rounded, tensors, strict=True)]


def _unit_bounds(tensors: Sequence[Scored], bounds: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """The fewest and the most units that each tensor may have off."""
    ends = []
    for tensor, cap, (low, high) in zip(tensors, caps_of(tensors, 0.0), bounds, strict=True):
        most = min(cap, math.floor(high * tensor.units + 1e-9))
        ends.append((min(most, math.ceil(low * tensor.units - 1e-9)), most))
    return ends


def _check_between(tensors: Sequence[Scored], ends: Sequence[tuple[int, int]], target: float) -> None:
    """Refuse a target that lies outside what the ends allow, by more than half a unit."""
    total = sum(t.size for t in tensors)
    fewest, most = (
        sum(end[i] * t.weights_per_unit for end, t in zip(ends, tensors, strict=True)) / total for i in (0, 1)
    )
    half = max(t.weights_per_unit for t in tensors) / 2 / total
    if not fewest - half <= target <= most + half:
        raise ValueError(
            f"The bounds of {len(tensors)} tensors, and their patterns, allow sparsities of all together from "
            f"{fewest:.4g} to {most:.4g}. Received: {target:g}. Widen the bounds, or take another sparsity or pattern."
        )


N = TypeVar("N", int, float)


def _within(value: N, low: N, high: N) -> N:
    return min(max(value, low), high)


def _settle(tensors: Sequence[Scored], counts: list[int], off: Sequence[int], caps: Sequence[int], goal: float) -> None:
    """Move single units until the number of zeros is within half a unit of the goal; changes `counts`.

    Args:
        tensors: of which units go.
        counts: how many, for each tensor.
        off: the fewest.
        caps: the most.
        goal: zeros of all together.
    """
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].size)
    moved = True
    while moved:
        moved = False
        missing = goal - sum(c * t.weights_per_unit for c, t in zip(counts, tensors, strict=True))
        for i in order:
            unit = tensors[i].weights_per_unit
            step = 1 if missing > 0 else -1
            if abs(missing) > unit / 2 and off[i] <= counts[i] + step <= caps[i]:
                counts[i] += step
                missing -= step * unit
                moved = True


def lowest_together(tensors: Sequence[Scored], caps: Sequence[int], target: float) -> list[float]:
    """Return the share of each tensor's units that are among the lowest of all tensors, none above its cap.

    Args:
        tensors: with scores.
        caps: the most units that each may have off.
        target: the share of all weights to be zero, a fraction in [0, 1).
    """
    counts = [0] * len(tensors)
    bounds = [-math.inf] * len(tensors)
    open_ = list(range(len(tensors)))
    goal = target * sum(t.size for t in tensors)
    while open_:
        taken = sum(counts[i] * tensors[i].weights_per_unit for i in range(len(tensors)) if i not in open_)
        bound, share = _contest([tensors[i] for i in open_], goal - taken)
        over = [i for i, count in zip(open_, share, strict=True) if count > caps[i]]
        for i, count in zip(open_, share, strict=True):
            counts[i], bounds[i] = caps[i] if i in over else count, bound
        if not over:
            break
        open_ = [i for i in open_ if i not in over]
    return [Share(count / t.units, bound) for count, bound, t in zip(counts, bounds, tensors, strict=True)]


def _contest(tensors: Sequence[Scored], goal: float) -> tuple[float, list[int]]:
    """Take the units with the lowest scores until `goal` weights are gone; ties go to the earlier tensor.

    Returns:
        The highest score taken, and how many of each tensor are.
    """
    units = {t.weights_per_unit for t in tensors}
    if len(units) > 1:
        return _contest_of_sizes(tensors, goal)
    wanted = min(round(goal / units.pop()), sum(t.scores.size for t in tensors))
    if wanted <= 0:
        return -math.inf, [0] * len(tensors)
    return lowest([t.scores for t in tensors], wanted, [t.on for t in tensors])


def _contest_of_sizes(tensors: Sequence[Scored], goal: float) -> tuple[float, list[int]]:
    """The same where units differ in size (channels of different layers): there are few, so they are sorted."""
    scores = [t.lowered for t in tensors]
    owner = np.concatenate([np.full(s.size, i) for i, s in enumerate(scores)])
    sizes = np.array([t.weights_per_unit for t in tensors])[owner]
    joined = np.concatenate(scores)
    order = np.argsort(joined, kind="stable")
    removed = np.cumsum(sizes[order])
    # A unit goes as long as at least half of it is still wanted.
    taken = order[removed - sizes[order] / 2 <= goal]
    bound = float(joined[taken[-1]]) if taken.size else -math.inf
    return bound, [int(n) for n in np.bincount(owner[taken], minlength=len(tensors))]
