"""Which units go: limits of groups, the order of units, and how many of it meet the targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.strategy import check_fraction
from keras_prune.structured.counting import Counter, Kept
from keras_prune.structured.groups import Analysis, Keep

__all__ = ["check_reachable", "fewest", "keep_best", "kept_after", "labels_of_layer", "least_kept", "order_units"]


def labels_of_layer(analysis: Analysis, name: str) -> Any:
    """The elements of a layer's outputs: the last axis that its rule gives."""
    for node in analysis.graph.walk():
        if node.body is None and name in (node.path, node.operation.name):
            output = analysis.effects[id(node)].outputs[0]
            known = [entry for entry in output if entry is not None]
            if not known:
                raise ValueError(f"{name!r} has no outputs that can be removed.")
            return known[-1].labels
    raise ValueError(f"{analysis.graph.model.name!r} has no layer {name!r}.")


def least_kept(analysis: Analysis, max_share: float | Mapping[str, float], min_width: int, round_to: int) -> Kept:
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
    least = np.maximum(np.ceil(sizes * (1.0 - share) - 1e-9).astype(np.int64), min_width)
    return np.minimum(sizes, -(-least // round_to) * round_to)


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
                f"plan: {'params' if name == 'params' else 'flops'}={share} cannot be met: at the most, "
                f"{best / before if before else 1.0:.4f} is left ({best:,} of {before:,}). Ask for a larger share, "
                "lower min_width or round_to, or free layers; what stays, and why: " + _why(analysis)
            )


def _why(analysis: Analysis) -> str:
    shown = [f"{skipped.path} ({skipped.reason})" for skipped in analysis.skipped[:5]]
    more = len(analysis.skipped) - len(shown)
    return "; ".join(shown or ["nothing else"]) + (f"; and {more} more" if more > 0 else "")


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


def kept_after(analysis: Analysis, gone: npt.NDArray[np.int64], least: Kept, round_to: int) -> Kept:
    """How many units stay in each group when these go, limits and multiples kept."""
    starts = np.array([group.start for group in analysis.groups], np.int64)
    sizes = np.array([group.size for group in analysis.groups], np.int64)
    lost = np.bincount(np.searchsorted(starts, gone, side="right") - 1, minlength=len(sizes))
    kept = np.maximum(sizes - lost, np.minimum(least, sizes))
    return np.minimum(sizes, -(-kept // round_to) * round_to)


def fewest(
    analysis: Analysis,
    counter: Counter,
    targets: Mapping[str, float | None],
    order: npt.NDArray[np.int64],
    least: Kept,
    round_to: int,
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
