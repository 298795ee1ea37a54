"""How far an output is from what it should be, and whether that is near enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.quantize import FLOAT32, NumberType

TOLERANCE = FLOAT32.tolerance
"""Largest error of a float32 file's output, as a share of the largest absolute value of it over all samples.

Two right float32 implementations differ by the order of their sums: per layer about sqrt(n) * 2**-24 of the
sum's scale, 2e-6 at n = 1000, and up to some 1e-5 through a deep network. A wrong kernel is off by 1e-2 and
more. 1e-4 lies between. For other number types see :mod:`tflite_export.quantize`.
"""


@dataclass(frozen=True)
class OutputError:
    """How far an output is from the model's.

    Args:
        name: Of the output.
        max_absolute: Largest absolute difference.
        max_relative: The same, as a share of the output's scale.
        scale: Largest absolute value of the model's output over all samples.
        top1: Share of the samples whose largest value stands at the model's place, for an output [samples,
            classes]; None for others.
        encoding: Largest difference from the dense file of the same number type in the same configuration, as
            a share of the scale; None where there was none to compare with.
    """

    name: str
    max_absolute: float
    max_relative: float
    scale: float
    top1: float | None = None
    encoding: float | None = None


def scale_of(output: NDArray[Any]) -> float:
    """Return the largest finite absolute value of an output."""
    values = output.astype(np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def measure(
    name: str,
    got: NDArray[Any],
    wanted: NDArray[Any],
    scale: float,
    tolerance: float,
    kind: NumberType,
    dense: NDArray[Any] | None,
    subject: str,
) -> OutputError:
    """Return the error of one output; raise where it is too large."""
    place = f"{subject}, output '{name}'"
    if got.shape != wanted.shape:
        raise ExportError(
            place,
            f"must have the model's shape {wanted.shape}",
            got.shape,
            "Was the file made from this model?",
        )
    if got.dtype.kind not in "fc":
        return _measure_integers(name, got, wanted, scale, tolerance if kind is not FLOAT32 else 0.0, place)
    if np.isnan(got).any():
        raise ExportError(
            place,
            "must hold no NaN",
            f"{int(np.isnan(got).sum())} NaN of {got.size}",
            "Export it dense, and report the model.",
        )
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite]):
        raise ExportError(
            place,
            "must be infinite where the model is",
            "other values",
            "Export it dense, and report the model.",
        )
    absolute = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    # A model that answers zeros only has no scale; its file must answer zeros too.
    unit = scale if scale > 0 else 1.0
    if not absolute / unit <= tolerance:
        raise ExportError(
            place,
            f"must equal the model's to {tolerance:g} of its scale {scale:.3g}",
            f"{absolute / unit:.3g}",
            "Export it dense, or raise tolerance where this is accepted."
            if kind is FLOAT32
            else "Quantize less, give more data, or raise tolerance where this is accepted.",
        )
    encoding = None
    if dense is not None:
        encoding = float(np.abs(a[finite] - dense.astype(np.float64)[finite]).max(initial=0.0)) / unit
        if not encoding <= kind.encoding_tolerance:
            raise ExportError(
                place,
                f"must equal the dense file's to {kind.encoding_tolerance:g} of its scale {scale:.3g}",
                f"{encoding:.3g}",
                "Export it dense, and report the model.",
            )
    top1 = float(np.mean(a.argmax(1) == b.argmax(1))) if a.ndim == 2 and a.shape[1] > 1 else None
    return OutputError(name, absolute, absolute / unit, scale, top1, encoding)


def _measure_integers(
    name: str, got: NDArray[Any], wanted: NDArray[Any], scale: float, tolerance: float, place: str
) -> OutputError:
    """Return the share of an integer output that differs; raise where it is too large."""
    wrong = int(np.count_nonzero(got != wanted))
    if wrong > tolerance * got.size:
        raise ExportError(
            place,
            "integers must equal the model's" + (f", but for {tolerance:.0%}" if tolerance else ""),
            f"{wrong} of {got.size} differ",
            "Export the scores, and take the class from them.",
        )
    return OutputError(name, float(bool(wrong)), wrong / max(got.size, 1), scale)
