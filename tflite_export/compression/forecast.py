"""What a candidate promises, by what was measured of others: its cost, and which drop its training may make good.

It orders trials, and decides nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tflite_export.compression.candidate import Candidate
from tflite_export.compression.space import HALF_THE_WIDTH
from tflite_export.compression.tried import Tried

__all__ = ["expected", "hoped", "promised"]

COST_BY_SHARE = 0.8
"""cost = share ^ this, before anything is measured."""
COST_OF_ZEROS = 0.6
"""cost = 1 - this * sparsity, before anything is measured."""

NEAR = 4.0
"""Times `max_drop` that a candidate may be below the plain file after a short fine-tuning to be trained fully,"""
NEAR_SHARE = 0.04
"""or this share of the plain file's metric, if that is more."""
RECOVERS = 2.0
"""Times what full fine-tuning has brought at most that it is trusted to bring again."""
LEAST_LEFT = 0.2
"""The least share of a drop that full fine-tuning is trusted to leave."""

Brought = Sequence[tuple[float, float]]
"""The drop after the short training and after the last one, for each candidate that was trained more."""


def hoped(brought: Brought, most: float, plain: float) -> float:
    """Return the drop that training may make good at the best.

    Once some were trained fully, it is by what that brought: with room for as much again, or to the least share.

    Args:
        brought: what training brought.
        most: the drop that is allowed.
        plain: the plain file's metric.

    Example:
        >>> hoped([], 0.01, 0.9), round(hoped([(0.03, 0.01)], 0.01, 0.9), 3)
        (0.04, 0.05)
    """
    if not brought:
        return max(NEAR * most, NEAR_SHARE * abs(plain))
    gained, left = _seen(brought, most)
    return max(most + RECOVERS * gained, most / left)


def expected(brought: Brought, most: float, plain: float) -> float:
    """Return the drop after a short training that a full one may make good.

    As `hoped`, until one that was trained fully did not hold: then nothing is expected that was not seen.

    Args:
        brought: what training brought.
        most: the drop that is allowed.
        plain: the plain file's metric.

    Example:
        >>> round(expected([(0.04, 0.02)], 0.01, 0.9), 3)
        0.03
    """
    failed = [short for short, last in brought if last > most]
    if not failed:
        return hoped(brought, most, plain)
    gained, left = _seen(brought, most)
    return min(max(most + gained, most / left), *failed)


def _seen(brought: Brought, most: float) -> tuple[float, float]:
    """Return the most that training took from a drop, and the least share of one that it left."""
    gained = max(0.0, *(short - last for short, last in brought))
    left = min((last / short for short, last in brought if short > most), default=1.0)
    return gained, min(1.0, max(LEAST_LEFT, left))


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
