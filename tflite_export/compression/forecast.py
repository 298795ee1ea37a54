"""What a candidate promises, by what was measured of others: its cost, and how its drop falls as it is trained.

It orders trials, and decides nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from tflite_export.compression.candidate import Candidate
from tflite_export.compression.space import HALF_THE_WIDTH
from tflite_export.compression.tried import Tried

__all__ = ["Trained", "power_of_training", "promised"]

COST_BY_SHARE = 0.8
"""cost = share ^ this, before anything is measured."""
COST_OF_ZEROS = 0.6
"""cost = 1 - this * sparsity, before anything is measured."""

POWER = 0.9
"""A drop falls with epochs ^ -this, before any was trained more: 0.5 to 1.2 on a MobileNetV2 and a DS-CNN."""
BELIEF = 2.0
"""How many candidates that were trained more it counts for."""
CLEAR = 3.0
"""Times the drop that is allowed from which on a drop says all of how it falls: nearer, most of it is noise."""
STEEPEST = 1.5
"""The greatest power that one candidate is believed to show."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A candidate that was trained more.

    Args:
        before: its drop before that.
        after: its drop.
        times: how many times the epochs it had by then.
    """

    before: float
    after: float
    times: float


def power_of_training(trained: Iterable[Trained], most: float) -> float:
    r"""Return p in drop = c epochs ^ -p: by what more training brought, from `POWER` while nothing is known.

    Each candidate shows $p_i = \log(d_{before} / d_{after}) / \log(times)$, from 0 to `STEEPEST`. Their mean
    is weighted by how far each was above the drop that is allowed: near it, noise says more than training.

    Args:
        trained: what is known.
        most: the drop that is allowed.

    Example:
        >>> power_of_training([], 0.01), round(power_of_training([Trained(0.04, 0.04, 5.0)], 0.01), 3)
        (0.9, 0.6)
    """
    total, weights = BELIEF * POWER, BELIEF
    for each in trained:
        if each.before <= most or each.times <= 1:
            continue
        fell = each.before / max(each.after, each.before * each.times**-STEEPEST)
        weight = 1.0 if most == 0 else min(1.0, (each.before / most - 1) / (CLEAR - 1))
        total += weight * max(0.0, math.log(fell) / math.log(each.times))
        weights += weight
    return total / weights


def promised(candidate: Candidate, tried: Iterable[Tried], reference: str | None) -> float:
    """Return the ratio of costs, the reference's / the candidate's, that is to be expected.

    The nearest candidate that differs in the share only says most. Without one, the gains of the share, of the zeros,
    of shared values and of the number type multiply, each as it was measured alone.

    Args:
        candidate: in question.
        tried: what is known.
        reference: number type of the reference.

    Example:
        >>> promised(Candidate(0.5), [], None)
        1.74...
    """
    measured = [each for each in tried if each.cost is not None]
    known = next((each.ratio for each in measured if each.candidate == candidate), None)
    if known is not None:
        return known
    power = _power_of_shares(measured, reference)
    line = [each for each in measured if _line(each.candidate) == _line(candidate)]
    if line:
        near = min(line, key=lambda each: abs(math.log(each.candidate.keep / candidate.keep)))
        return float(near.ratio * (near.candidate.keep / candidate.keep) ** power)
    kind = _alone(Candidate(quantize=candidate.quantize), measured)
    values = 1.0 if candidate.values is None else _alone(Candidate(1.0, 0.0, reference, candidate.values), measured)
    return float(candidate.keep**-power * _by_zeros(candidate.sparsity, measured, reference) * kind * values)


def _line(candidate: Candidate) -> tuple[float, str | None, int | None]:
    return candidate.sparsity, candidate.quantize, candidate.values


def _alone(candidate: Candidate, measured: Sequence[Tried]) -> float:
    """Return what a single means gains as it was measured; 1 where it was not."""
    return next((each.ratio for each in measured if each.candidate == candidate), 1.0)


def _power_of_shares(measured: Sequence[Tried], reference: str | None) -> float:
    """Return p in cost = share ^ p: by the network half as wide, where it was measured."""
    half = Candidate(HALF_THE_WIDTH, 0.0, reference)
    ratio = next((each.ratio for each in measured if each.candidate == half and each.stage == "untrained"), 0.0)
    return max(0.1, math.log(ratio) / math.log(1 / HALF_THE_WIDTH)) if ratio > 0 else COST_BY_SHARE


def _by_zeros(sparsity: float, measured: Sequence[Tried], reference: str | None) -> float:
    """Return what zeros alone gain: by those that were measured on the whole model."""
    if sparsity == 0:
        return 1.0
    whole = [
        each
        for each in measured
        if each.ratio > 0
        and each.candidate.keep == 1.0
        and each.candidate.sparsity > 0
        and each.candidate.quantize == reference
        and each.candidate.values is None
    ]
    saved = max(0.0, 1 - 1 / whole[0].ratio) / whole[0].candidate.sparsity if whole else COST_OF_ZEROS
    return 1 / max(0.05, 1 - saved * sparsity)
