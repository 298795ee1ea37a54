"""How far two lists of outputs are apart, and how far they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError

__all__ = ["AGREEMENT", "difference", "require_right"]

AGREEMENT = 0.02
"""Largest difference of outputs from LiteRT's on this machine, as a share of their scale.

Garbage is off by all of it. Float kernels agree to 1e-5; int8 kernels may round the other way, by a few steps of 1/255.
"""


def difference(first: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]]) -> float:
    """Return the largest difference of an output, as a share of the first's scale.

    max |other - first| / max |first|, the largest over the outputs; infinite where shapes differ or a value is
    NaN; a first output of zeros has the scale 1.

    Example:
        >>> difference([np.array([2.0, 4.0])], [np.array([2.0, 3.0])])
        0.25
    """
    largest = 0.0
    for a, b in zip(first, other, strict=True):
        if a.shape != b.shape:
            return float("inf")
        x, y = a.astype(np.float64), b.astype(np.float64)
        if np.isnan(x).any() or np.isnan(y).any():
            return float("inf")
        scale = float(np.abs(x).max(initial=0.0)) or 1.0
        largest = max(largest, float(np.abs(x - y).max(initial=0.0)) / scale)
    return largest


def require_right(
    outputs: Sequence[NDArray[Any]],
    wanted: Sequence[NDArray[Any]],
    subject: str,
    *,
    whose: str,
    tolerance: float,
    said: Sequence[str] = (),
) -> float:
    """Return the difference of outputs from what they must be.

    Args:
        outputs: what a runtime answered.
        wanted: what it must answer.
        subject: which file, and where.
        whose: who answers rightly: "the model".
        tolerance: largest difference, as a share of an output's scale.
        said: what the runtime printed.

    Raises:
        ExportError: the difference is larger, or there is NaN.
    """
    found = difference(wanted, outputs)
    if not found <= tolerance:
        raise ExportError(
            subject,
            f"must answer as {whose} to {tolerance:g} of each output's scale",
            "; ".join([f"a difference of {found:.3g}", *said]),
            "This runtime answers garbage where it cannot allocate: export the model again, for this target.",
        )
    return found
