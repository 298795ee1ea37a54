"""Which of several points no other beats: the Pareto front. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["non_dominated"]


def non_dominated(losses: Sequence[Sequence[float]]) -> list[bool]:
    """Return for each point whether no other is at most as high in every coordinate and lower in one.

    Args:
        losses: `[points][coordinates]`, low is good.

    Example:
        >>> non_dominated([(1, 3), (2, 2), (2, 3), (3, 1)])
        [True, True, False, True]
    """
    return [
        not any(all(a <= b for a, b in zip(other, one, strict=True)) and tuple(other) != tuple(one) for other in losses)
        for one in losses
    ]
