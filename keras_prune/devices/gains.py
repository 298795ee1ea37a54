"""What a sparse kernel was measured to gain, and the share of zeros from which it is faster than the dense one.

A gain is (time of XNNPACK's dense kernel) / (time of the sparse one), of the operator
that reads the weight: above 1 is faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log2
from typing import ClassVar

from keras.saving import register_keras_serializable

from keras_prune.strategy import Strategy, to_integers

__all__ = ["PAYS", "PAYS_ANYWHERE", "SWITCHES_ON", "Measured", "check_gains", "gain_of", "pays_from"]

PAYS = 1.03
"""Gain from which a sparse kernel is used: below, the noise of a measurement could hide a loss."""

SWITCHES_ON = 2 / 3
"""XNNPACK's sparse inference switches on where more than this share of a cluster's 1x1 weights is zero
(`src/subgraph.c`, `xnn_subgraph_rewrite_for_nchw`)."""

PAYS_ANYWHERE = (0.79, 0.89)
"""Share of zero blocks from which the kernel for 1x4 blocks keeps up on x86 and on ARM, at one row and at more; these
let a rounded 80 % and 90 % in."""


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Measured(Strategy):
    """Gains of a kernel in one setting.

    Args:
        rows: rows that the weight was multiplied with.
        weight_bytes: bytes of all weights of the file when dense: whether they stay in a cache between two
            inferences decides what the dense kernel takes.
        gains: (share of zero units, gain) at two shares or more, shares ascending; a unit is a block, or a weight for
            CSR.

    Raises:
        ValueError: the shares do not ascend in [0, 1], a gain is not positive, or gains fall where the share rises.

    Example:
        >>> Measured(rows=1, weight_bytes=2**20, gains=((0.8, 1.0), (0.9, 2.0))).at(0.9)
        2.0
    """

    kind: ClassVar[str] = "measurement"

    rows: int
    weight_bytes: int
    gains: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        to_integers(self, "rows", "weight_bytes")
        if self.rows < 1 or self.weight_bytes < 1:
            raise ValueError(
                "Measured: rows and weight_bytes are counted from 1. "
                f"Received: rows={self.rows}, weight_bytes={self.weight_bytes}"
            )
        object.__setattr__(self, "gains", check_gains("Measured: gains", self.gains))

    def at(self, share: float) -> float:
        """Return the gain at a share of zero units.

        The time of a sparse kernel is linear in the share that it stores, so 1 / gain is interpolated; below
        the first share it is extrapolated, above the last one the last gain holds.

        Example:
            >>> round(Measured(1, 2**20, ((0.8, 1.0), (0.9, 2.0))).at(0.85), 3)
            1.333
        """
        shares = [point[0] for point in self.gains]
        times = [1.0 / point[1] for point in self.gains]
        if share >= shares[-1]:
            return self.gains[-1][1]
        place = next((i for i in range(1, len(shares)) if share < shares[i]), len(shares) - 1)
        slope = (times[place] - times[place - 1]) / (shares[place] - shares[place - 1])
        return 1.0 / (times[place] + slope * (share - shares[place]))


def check_gains(subject: str, gains: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return measured gains as plain numbers.

    Args:
        subject: what to call them in messages.
        gains: (share of zero units, gain).

    Raises:
        ValueError: fewer than two, shares do not ascend in [0, 1], a gain is not positive, or gains fall where the
            share rises.

    Example:
        >>> check_gains("gains", [(0.8, 1), (0.9, 2.5)])
        ((0.8, 1.0), (0.9, 2.5))
    """
    points = tuple((float(share), float(gain)) for share, gain in gains)
    shares, values = [share for share, _ in points], [gain for _, gain in points]
    if (
        len(points) < 2
        or not 0 <= shares[0] < shares[-1] <= 1
        or any(before >= after for before, after in pairwise(shares))
        or not 0 < values[0] <= values[-1] < float("inf")
        or any(before > after for before, after in pairwise(values))
    ):
        raise ValueError(
            f"{subject} must be (share of zero units, gain) at two shares or more: shares ascend in [0, 1], gains are "
            f"positive and do not fall where the share rises. Received: {points}. Measure it at another share, or take "
            "the median of more runs."
        )
    return points


def gain_of(table: Sequence[Measured], rows: int | None, weight_bytes: int, share: float) -> float:
    """Return the expected gain of a kernel.

    Between settings log(gain) is interpolated in log(rows) and log(bytes), and held beyond the last one; for an
    unknown number of rows it is the lowest of all.

    Args:
        table: of the kernel.
        rows: rows of the multiplication, or None.
        weight_bytes: bytes of all weights of the file when dense.
        share: share of zero units, a fraction in [0, 1].
    """
    by_rows = {
        count: _interpolate(weight_bytes, [(m.weight_bytes, m.at(share)) for m in table if m.rows == count])
        for count in sorted({measured.rows for measured in table})
    }
    return min(by_rows.values()) if rows is None else _interpolate(rows, list(by_rows.items()))


def pays_from(table: Sequence[Measured], rows: int | None, weight_bytes: int) -> float:
    """Return the share of zero units, in whole percent, from which a kernel pays; infinity where it never does.

    Example:
        >>> pays_from((Measured(1, 2**20, ((0.8, 1.0), (0.9, 2.0))),), 1, 2**20)
        0.81
    """
    shares = (step / 100 for step in range(101))
    return next((share for share in shares if gain_of(table, rows, weight_bytes, share) >= PAYS), float("inf"))


def _interpolate(place: float, points: Sequence[tuple[float, float]]) -> float:
    """Return log-log interpolated values, held beyond both ends; the points ascend."""
    points = sorted(points)
    if place <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if place <= x1:
            weight = (log2(place) - log2(x0)) / (log2(x1) - log2(x0))
            return float(2 ** ((1 - weight) * log2(y0) + weight * log2(y1)))
    return points[-1][1]
