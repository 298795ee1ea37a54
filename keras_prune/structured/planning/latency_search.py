"""Which points along a line to measure, where each measurement is dear, until one meets a target closely."""

from __future__ import annotations

import bisect
from collections.abc import Callable

__all__ = ["MOST", "TOLERANCE", "search"]

TOLERANCE = 0.03
"""A number is taken whose measured share is below the target by no more than this, if one is found."""
MOST = 10
"""Numbers that are measured at most, beside the lowest."""
NARROW = 0.02
"""Nor is it looked for between two numbers whose shares of multiplications are as near as this: time has a step there,
where kernels work on several channels at once."""


def search(
    share: Callable[[int], float], macs: Callable[[int], float], low: int, high: int, target: float
) -> int | None:
    """How many units go, of those in [low, high], so that the measured share of latency is not above a target.

    Latency is taken to be near a straight line in multiplications, between the two measured plans around the target: so
    a few measurements do. It need not be one, nor fall with each unit (kernels work on several channels at once): the
    number returned was measured itself. Each second step halves, so that a line that bends costs no more.

    Args:
        share: measures a number of units: latency as a share of the whole model's; 1 for 0 units.
        macs: the share of multiplications that is left for a number of units; it does not rise.
        low: the fewest units that may go.
        high: the most.
        target: the share of latency that may be left.

    Returns:
        The fewest units that were measured to meet the target; None if none did.

    Example:
        >>> search(lambda n: 0.2 + 0.8 * (1 - n / 100), lambda n: 1 - n / 100, 0, 100, target=0.5)
        65
    """
    aim = target - TOLERANCE / 2
    over, above = low, share(low)
    if above <= target:
        return low
    under, below = -1, 0.0
    wanted = macs(over) * aim / above
    for step in range(MOST):
        upper = under if under >= 0 else high
        middle = _first(macs, over, upper, wanted)
        if middle == under and under - 1 > over:  # a jump: the plan before it may do
            middle -= 1
        if middle in (over, under):
            break
        measured = share(middle)
        slope = (macs(over) - macs(middle)) / (above - measured) if above > measured else 0.0
        if measured <= target:
            under, below = middle, measured
        else:
            over, above = middle, measured
        if under < 0:  # along the line of the last two, twice, with care; then all that may go
            wanted = max(macs(over) + slope * (aim - above), macs(over) / 2) if step < 2 and slope else -1.0
            continue
        if below >= target - TOLERANCE or macs(over) - macs(under) < NARROW:
            break
        straight = macs(under) + (macs(over) - macs(under)) * (aim - below) / (above - below)
        wanted = (macs(over) + macs(under)) / 2 if step % 2 else straight
    return under if under >= 0 else None


def _first(macs: Callable[[int], float], low: int, high: int, wanted: float) -> int:
    """The fewest units in (low, high] with at most so many multiplications left; `high`, if none has."""
    numbers = range(low + 1, high)
    return min(high, low + 1 + bisect.bisect_left(numbers, -wanted, key=lambda number: -macs(number)))
