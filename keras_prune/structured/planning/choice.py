"""Which units go: limits of groups, the order of units, and how many of it meet the targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from keras_prune.strategy import check_fraction
from keras_prune.structured.analysis.groups import Analysis, Keep, labels_of_layer
from keras_prune.structured.analysis.widths import Kept
from keras_prune.structured.counting.counting import Counter

__all__ = [
    "check_reachable",
    "fewest",
    "keep_best",
    "kept_after",
    "least_kept",
    "multiples",
    "order_units",
    "share_left",
    "why_not_more",
]

OPTIONS = {"params": "params", "macs": "flops", "peak": "memory"}
"""Fields of a `Count` that targets are of, by the names that users give them."""

PerLayer = int | Mapping[str, int]


def least_kept(
    analysis: Analysis, max_share: float | Mapping[str, float], min_width: PerLayer, round_to: PerLayer | Kept
) -> Kept:
    """How many units each group keeps at least."""
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
    width = _numbers(analysis, "min_width", min_width, max)
    least = np.maximum(np.ceil(sizes * (1.0 - share) - 1e-9).astype(np.int64), width)
    return _rounded(sizes, least, multiples(analysis, round_to))


def multiples(analysis: Analysis, round_to: PerLayer | Kept) -> Kept:
    """For each group, the number that it keeps a multiple of; layers of one group share the least common one."""
    return round_to if isinstance(round_to, np.ndarray) else _numbers(analysis, "round_to", round_to, math.lcm)


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


def _rounded(sizes: Kept, kept: Kept, round_to: int | Kept) -> Kept:
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
                f"plan: {OPTIONS[name]}={share} cannot be met: at the most, "
                f"{best / before if before else 1.0:.4f} is left ({best:,} of {before:,}). {why_not_more(analysis)}"
            )


def why_not_more(analysis: Analysis) -> str:
    """What to do about a target that cannot be met, and what stays, with the reasons."""
    shown = [f"{skipped.path} ({skipped.reason})" for skipped in analysis.skipped[:5]]
    more = len(analysis.skipped) - len(shown)
    if not shown:
        return "Ask for a larger share, or lower min_width or round_to; nothing else stays but one unit of each group."
    stays = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return f"Ask for a larger share, lower min_width or round_to, or free layers; what stays, and why: {stays}"


def order_units(analysis: Analysis, scores: npt.NDArray[np.float64], scope: str) -> npt.NDArray[np.int64]:
    """All units, the first to go first."""
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


def kept_after(analysis: Analysis, gone: npt.NDArray[np.int64], least: Kept, round_to: int | Kept) -> Kept:
    """How many units stay in each group when these go, limits and multiples kept."""
    starts = np.array([group.start for group in analysis.groups], np.int64)
    sizes = np.array([group.size for group in analysis.groups], np.int64)
    lost = np.bincount(np.searchsorted(starts, gone, side="right") - 1, minlength=len(sizes))
    return _rounded(sizes, np.maximum(sizes - lost, np.minimum(least, sizes)), round_to)


def share_left(counter: Counter, kept: Kept) -> float:
    """What is left of a model's multiplications; of its parameters, if it has no multiplications."""
    before, after = counter.total(counter.sizes), counter.total(kept)
    return after.macs / before.macs if before.macs else after.params / max(before.params, 1)


def fewest(
    analysis: Analysis,
    counter: Counter,
    targets: Mapping[str, float | None],
    order: npt.NDArray[np.int64],
    least: Kept,
    round_to: int | Kept,
) -> int:
    """How many units of `order` have to go to meet all targets; counts fall with each, so by halving."""
    whole = counter.total(counter.sizes)

    def met(number: int) -> bool:
        now = counter.total(kept_after(analysis, order[:number], least, round_to))
        return all(getattr(now, name) <= s * getattr(whole, name) for name, s in targets.items() if s is not None)

    low, high = 0, len(order)
    if not met(high):
        raise ValueError(
            "plan: the target cannot be met by the units that the importance scores: others have no score. "
            f"Received: targets {dict(targets)}, {len(order)} of {analysis.size} units scored."
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle + 1, high)
    return low


def keep_best(analysis: Analysis, scores: npt.NDArray[np.float64], kept: Kept) -> Keep:
    """The best units of each group stay; of equal ones the first."""
    keep = np.zeros(analysis.size, bool)
    for group, number in zip(analysis.groups, kept, strict=True):
        best = np.argsort(-scores[group.start : group.stop], kind="stable")[: math.floor(number)]
        keep[group.start + best] = True
    return keep
