"""Which units go: the limits of groups, the order of units, and how many have to go to meet a target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.devices import Device, resolve_device
from keras_prune.strategy import check_fraction
from keras_prune.structured.analysis.groups import Analysis, Keep, labels_of_layer
from keras_prune.structured.analysis.widths import Kept
from keras_prune.structured.counting.counting import Counter

__all__ = [
    "OPTIONS",
    "Limits",
    "Ranking",
    "check_reachable",
    "keep_best",
    "kept_after",
    "limits_of",
    "multiples_for",
    "order_units",
    "why_not_more",
]

OPTIONS = {"params": "params", "macs": "flops", "peak": "memory"}
"""Fields of a `Count` that targets are of, by the names that users give them."""

PerLayer = int | Mapping[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
    """What each group keeps in any case.

    Attributes:
        least: how many units stay at least, `[groups]`.
        multiples: a group that shrinks keeps a multiple of this many units, if it has as many, `[groups]`.
    """

    least: Kept
    multiples: Kept


def multiples_for(round_to: PerLayer | None, target: str | Device | Mapping[str, Any] | None) -> PerLayer:
    """Return the multiples that were given; without any, those of the device that the model is for, else 1.

    Example:
        >>> multiples_for(None, "web"), multiples_for(4, "web"), multiples_for(None, "mcu"), multiples_for(None, None)
        (8, 4, 1, 1)
    """
    if round_to is not None:
        return round_to
    return 1 if target is None else resolve_device(target).multiple


def limits_of(
    analysis: Analysis,
    max_share: float | Mapping[str, float],
    min_width: PerLayer,
    round_to: PerLayer,
) -> Limits:
    """Return the limits of all groups.

    Args:
        analysis: of the model.
        max_share: as for `plan`.
        min_width: as for `plan`.
        round_to: as for `plan`; layers of one group share the least common multiple.

    Raises:
        ValueError: a number is out of its range, no layer has that name, or a layer named in `max_share` makes no units
            that can be removed (with the reason).
    """
    share = np.ones(len(analysis.groups))
    if isinstance(max_share, Mapping):
        for name, value in max_share.items():
            check_fraction(f"plan: max_share of {name!r}", value, below_one=False)
            for group in _groups_of(analysis, name, value):
                share[group] = min(share[group], value)
    else:
        check_fraction("plan: max_share", max_share, below_one=False)
        share[:] = max_share
    sizes = np.array([group.size for group in analysis.groups], np.int64)
    multiples = _numbers(analysis, "round_to", round_to, math.lcm)
    width = _numbers(analysis, "min_width", min_width, max)
    least = np.maximum(np.ceil(sizes * (1.0 - share) - 1e-9).astype(np.int64), width)
    return Limits(_rounded(sizes, least, multiples), multiples)


def _numbers(analysis: Analysis, what: str, given: PerLayer, join: Callable[[int, int], int]) -> Kept:
    """A number for each group, from one for all or from numbers of layers; 1 for groups of no layer named."""
    by_layer = given if isinstance(given, Mapping) else {"": given}
    result = np.ones(len(analysis.groups), np.int64)
    for name, number in by_layer.items():
        of_layer = f" of {name!r}" if name else ""
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"plan: {what}{of_layer} must be a whole number from 1. Received: {number!r}")
        for group in _groups_of(analysis, name, 0.0) if name else range(len(result)):
            result[group] = join(int(result[group]), number)
    return result


def _rounded(sizes: Kept, kept: Kept, round_to: Kept) -> Kept:
    """The next multiple, or all where there are not as many."""
    return np.minimum(sizes, -(-kept // round_to) * round_to)


def _groups_of(analysis: Analysis, name: str, value: float) -> list[int]:
    """The groups of a layer's outputs."""
    labels = labels_of_layer(analysis, name)
    units = analysis.units_of(labels)
    if value > 0 and (units < 0).all():
        raise ValueError(f"plan: {name!r} cannot shrink, as max_share={value} asks: {analysis.reason(labels)}.")
    return [i for i, group in enumerate(analysis.groups) if ((units >= group.start) & (units < group.stop)).any()]


def check_reachable(analysis: Analysis, counter: Counter, targets: Mapping[str, float | None], least: Kept) -> None:
    """Refuse a target that even the narrowest model misses, and say what it reaches."""
    whole, smallest = counter.total(counter.sizes), counter.total(np.minimum(least, counter.sizes))
    for name, share in targets.items():
        before, best = getattr(whole, name), getattr(smallest, name)
        if share is not None and best > share * before:
            raise ValueError(
                f"plan: {OPTIONS[name]}={share} cannot be met: even the smallest model keeps "
                f"{best / before if before else 1.0:.4f} ({best:,} of {before:,}). {why_not_more(analysis)}"
            )


def why_not_more(analysis: Analysis) -> str:
    """Return what to do about a target that cannot be met, and what stays, with the reasons."""
    shown = [f"{skipped.path} ({skipped.reason})" for skipped in analysis.skipped[:5]]
    more = len(analysis.skipped) - len(shown)
    if not shown:
        return "Ask for a larger share, or lower min_width or round_to. Apart from that, one unit of each group stays."
    stays = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return f"Ask for a larger share, lower min_width or round_to, or unfreeze layers. What stays, and why: {stays}"


def order_units(analysis: Analysis, scores: npt.NDArray[np.float64], scope: str) -> npt.NDArray[np.int64]:
    """Return the units whose score is finite, the first to go first, `[units]`."""
    if scope == "global":
        order = np.argsort(scores, kind="stable")
        return order[np.isfinite(scores[order])]
    place = np.zeros(len(scores))
    for group in analysis.groups:
        rank = np.argsort(np.argsort(scores[group.start : group.stop], kind="stable"))
        place[group.start : group.stop] = (rank + 1) / group.size
    place[~np.isfinite(scores)] = np.inf
    order = np.argsort(place, kind="stable")
    return order[np.isfinite(place[order])]


class Ranking:
    """The units of a model in the order in which they go.

    Args:
        analysis: of the model.
        counter: of the analysis.
        scores: `[units]`; a unit whose score is not finite never goes.
        scope: "local" takes the same share of each group, "global" the lowest of the whole model.
        limits: of the groups.
    """

    def __init__(
        self, analysis: Analysis, counter: Counter, scores: npt.NDArray[np.float64], scope: str, limits: Limits
    ) -> None:
        self.analysis, self.counter, self.scores, self.limits = analysis, counter, scores, limits
        self.order = order_units(analysis, scores, scope)

    def __len__(self) -> int:
        return len(self.order)

    def fewest(self, targets: Mapping[str, float | None]) -> int:
        """Return how many units have to go to meet all targets; counts fall with each, so it is found by halving.

        Args:
            targets: for fields of a `Count`, the share that may be left; None for no target.

        Raises:
            ValueError: the units that have a score do not suffice.
        """
        whole = self.counter.total(self.counter.sizes)

        def met(number: int) -> bool:
            now = self.counter.total(self.kept(number))
            return all(getattr(now, name) <= s * getattr(whole, name) for name, s in targets.items() if s is not None)

        low, high = 0, len(self)
        if not met(high):
            raise ValueError(
                "plan: the target cannot be met by the units whose score is finite, and others never go. "
                f"Received: targets {dict(targets)}, {len(self)} of {self.analysis.size} units with a finite score."
            )
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if met(middle) else (middle + 1, high)
        return low

    def kept(self, number: int) -> Kept:
        """Return how many units of each group stay when the first `number` go, limits kept, `[groups]`."""
        return kept_after(self.analysis, self.order[:number], self.limits)

    def keep(self, number: int) -> Keep:
        """Return for each unit whether it stays when the first `number` go, `[units]`."""
        return keep_best(self.analysis, self.scores, self.kept(number))

    def share_left(self, number: int) -> float:
        """Return what is left of the model's multiplications; of its parameters, if it has no multiplications."""
        before, after = self.counter.total(self.counter.sizes), self.counter.total(self.kept(number))
        return after.macs / before.macs if before.macs else after.params / max(before.params, 1)


def kept_after(analysis: Analysis, gone: npt.NDArray[np.int64], limits: Limits) -> Kept:
    """Return how many units of each group stay when these go, as far as limits allow, `[groups]`."""
    starts = np.array([group.start for group in analysis.groups], np.int64)
    sizes = np.array([group.size for group in analysis.groups], np.int64)
    lost = np.bincount(np.searchsorted(starts, gone, side="right") - 1, minlength=len(sizes))
    return _rounded(sizes, np.maximum(sizes - lost, np.minimum(limits.least, sizes)), limits.multiples)


def keep_best(analysis: Analysis, scores: npt.NDArray[np.float64], kept: Kept) -> Keep:
    """Return for each unit whether it stays: the best of each group, of equal ones the first, `[units]`."""
    keep = np.zeros(analysis.size, bool)
    for group, number in zip(analysis.groups, kept, strict=True):
        best = np.argsort(-scores[group.start : group.stop], kind="stable")[: math.floor(number)]
        keep[group.start + best] = True
    return keep
