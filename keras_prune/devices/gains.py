"""What sparse kernels of TFLite's runtimes were measured to gain, and from which share of zeros they do.

Data, and the arithmetic on it. A gain is (time of XNNPACK's dense kernel) / (time of the sparse one), of the operator
that reads the weight: above 1 is faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from math import log2
from typing import ClassVar

from keras.saving import register_keras_serializable

from keras_prune.strategy import Strategy

__all__ = ["Measured", "gain_of", "pays_from"]

PAYS = 1.03
"""Gain from which a sparse kernel is used: below, the noise of a measurement could hide a loss."""

SWITCHES_ON = 2 / 3
"""XNNPACK's sparse inference switches on where more than this share of a cluster's 1x1 weights is zero
(`src/subgraph.c`, `xnn_subgraph_rewrite_for_nchw`)."""

ZERO_BLOCKS_ANYWHERE = (0.79, 0.89)
"""Share of zero blocks from which the kernel for 1x4 blocks keeps up on x86 and on ARM, at one row and at more; these
let a rounded 80 % and 90 % in."""


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Measured(Strategy):
    """Gains of a kernel in one setting.

    Args:
        rows: Rows that the weight was multiplied with.
        weight_bytes: Bytes of all weights of the file when dense: whether they stay in a cache between two
            inferences decides what the dense kernel takes.
        gains: (share of zero units, gain), shares ascending; a unit is a block, or a weight for CSR.
    """

    kind: ClassVar[str] = "measurement"

    rows: int
    weight_bytes: int
    gains: tuple[tuple[float, float], ...]

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


def gain_of(table: Sequence[Measured], rows: int | None, weight_bytes: int, share: float) -> float:
    """Return the expected gain of a kernel.

    Between settings log(gain) is interpolated in log(rows) and log(bytes), and held beyond the last one; for an
    unknown number of rows it is the lowest of all.

    Args:
        table: Of the kernel.
        rows: Rows of the multiplication, or None.
        weight_bytes: Bytes of all weights of the file when dense.
        share: Share of zero units, a fraction in [0, 1].
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


_KB = 1024

X86_BLOCKS = (
    Measured(1, 768 * _KB, ((0.80, 0.92), (0.85, 1.18), (0.90, 1.57), (0.95, 2.38))),
    Measured(1, 3072 * _KB, ((0.80, 0.93), (0.85, 1.22), (0.90, 1.86), (0.95, 3.29))),
    Measured(1, 12288 * _KB, ((0.80, 1.67), (0.85, 2.19), (0.90, 3.29), (0.95, 5.89))),
    Measured(1, 40960 * _KB, ((0.80, 2.07), (0.85, 2.84), (0.90, 4.28), (0.95, 10.0))),
    Measured(4, 768 * _KB, ((0.80, 0.95), (0.85, 1.21), (0.90, 1.68), (0.95, 2.61))),
    Measured(4, 3072 * _KB, ((0.80, 0.94), (0.85, 1.24), (0.90, 1.88), (0.95, 3.38))),
    Measured(4, 12288 * _KB, ((0.80, 0.89), (0.85, 1.20), (0.90, 1.87), (0.95, 3.93))),
    Measured(4, 40960 * _KB, ((0.80, 0.86), (0.85, 1.15), (0.90, 1.75), (0.95, 3.67))),
    Measured(16, 768 * _KB, ((0.80, 0.80), (0.85, 1.02), (0.90, 1.41), (0.95, 2.18))),
    Measured(16, 3072 * _KB, ((0.80, 0.79), (0.85, 1.06), (0.90, 1.59), (0.95, 2.83))),
    Measured(16, 12288 * _KB, ((0.80, 0.79), (0.85, 1.07), (0.90, 1.72), (0.95, 3.40))),
    Measured(196, 768 * _KB, ((0.80, 0.62), (0.85, 0.81), (0.90, 1.11), (0.95, 1.75))),
    Measured(196, 3072 * _KB, ((0.80, 0.61), (0.85, 0.82), (0.90, 1.23), (0.95, 2.21))),
    Measured(196, 12288 * _KB, ((0.80, 0.57), (0.85, 0.78), (0.90, 1.24), (0.95, 2.50))),
)
"""The kernel for 1x4 blocks.

x86: `python -m benchmarks.never_slower --gains`: chains of Dense(n), one thread, LiteRT 2.3, AMD EPYC with AVX-512,
1 MB of L2 and 32 MB of L3 cache."""

WEB_BLOCKS = (
    Measured(1, 768 * _KB, ((0.60, 0.96), (0.70, 1.28), (0.80, 1.45), (0.90, 1.72), (0.95, 1.97))),
    Measured(1, 3072 * _KB, ((0.60, 0.86), (0.70, 1.08), (0.80, 1.66), (0.90, 2.45), (0.95, 3.41))),
    Measured(1, 12288 * _KB, ((0.60, 0.93), (0.70, 1.19), (0.80, 1.66), (0.90, 3.41), (0.95, 5.46))),
    Measured(16, 768 * _KB, ((0.60, 1.66), (0.70, 1.77), (0.80, 2.56), (0.90, 4.6), (0.95, 7.17))),
    Measured(16, 3072 * _KB, ((0.60, 1.21), (0.70, 1.67), (0.80, 2.61), (0.90, 5.27), (0.95, 9.63))),
    Measured(16, 12288 * _KB, ((0.60, 1.2), (0.70, 1.69), (0.80, 2.63), (0.90, 5.61), (0.95, 11.46))),
    Measured(196, 768 * _KB, ((0.60, 1.25), (0.70, 1.71), (0.80, 2.54), (0.90, 5.13), (0.95, 9.38))),
    Measured(196, 3072 * _KB, ((0.60, 1.08), (0.70, 1.5), (0.80, 2.41), (0.90, 4.97), (0.95, 10.32))),
    Measured(196, 12288 * _KB, ((0.60, 1.03), (0.70, 1.4), (0.80, 2.18), (0.90, 4.87), (0.95, 10.11))),
)
"""The kernel for 1x4 blocks.

WebAssembly: `python -m benchmarks.web_dense`: three Dense(n), one thread, Node 20, @litertjs/core 2.5.3, relaxed SIMD,
AMD EPYC."""

ARM_BLOCKS = (
    Measured(1, 3072 * _KB, ((0.80, 0.7), (0.90, 1.2), (0.95, 2.1))),
    Measured(196, 3072 * _KB, ((0.80, 1.0), (0.90, 1.75), (0.95, 2.8))),
)
"""The kernel for 1x4 blocks.

ARM: three Dense(512), aarch64 (cortex-a76), LiteRT 2.3: guest instructions under qemu, which do not see the memory
traffic that zeros save."""
