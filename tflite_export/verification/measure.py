"""How far an output is from what it should be, and whether that is near enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.convert.number_types import FLOAT32, NumberType
from tflite_export.errors import ExportError

__all__ = ["NEGLIGIBLE", "NOTABLE", "NOTABLE_AGREEMENT", "TOLERANCE", "OutputError", "measure", "scale_of", "worst_of"]

TOLERANCE = FLOAT32.tolerance
"""Largest error of a float32 file's output, as a share of the largest absolute value of it over all samples.

Two right float32 implementations differ by the order of their sums: per layer about sqrt(n) * 2**-24 of the
sum's scale, 2e-6 at n = 1000, and up to some 1e-5 through a deep network. A wrong kernel is off by 1e-2 and
more. 1e-4 lies between. For other number types see `tflite_export.convert.number_types`.
"""


NOTABLE = 0.05
"""Largest error, as a share of an output's scale or of its span, whichever is smaller, above which a report warns.

Of int8 files, most stay below in a few layers (see `tflite_export.convert.number_types`); what lies above is seen
in the application: 3 pixels of 64."""
NOTABLE_AGREEMENT = 0.95
"""Share of samples that keep their class, below which a report warns."""
NEGLIGIBLE = 1e-3
"""Largest error, as a share of an output's scale, that is never warned about: rounding, however small the span."""


@dataclass(frozen=True)
class OutputError:
    """How far an output is from the model's.

    Args:
        name: of the output.
        max_absolute: largest absolute difference, in the output's own units.
        max_relative: the same, as a share of the output's scale.
        scale: largest absolute value of the model's output over all samples.
        top1: share of the samples whose largest value stands at the model's place, for an output that holds scores of
            classes (`tflite_export.model.classes`); None for others.
        encoding: largest difference from the dense file of the same number type in the same configuration, as
            a share of the scale; None where there was none to compare with.
        mean_absolute: mean absolute difference.
        span: largest minus smallest value of the model's output over all samples.
        dense_max_absolute: what `max_absolute` is for the dense file of the same number type, which is what the number
            type costs by itself. None where there was none to compare with.
        dense_mean_absolute: likewise for `mean_absolute`.
    """

    name: str
    max_absolute: float
    max_relative: float
    scale: float
    top1: float | None = None
    encoding: float | None = None
    mean_absolute: float = 0.0
    span: float = 0.0
    dense_max_absolute: float | None = None
    dense_mean_absolute: float | None = None

    @property
    def share(self) -> float:
        """The largest error as a share of the scale, or of the span where that is smaller."""
        unit = min(self.scale, self.span) or self.scale
        return self.max_absolute / unit if unit else self.max_absolute

    @property
    def is_notable(self) -> bool:
        """Whether a reader should be warned: see `NOTABLE` and `NOTABLE_AGREEMENT`."""
        if self.top1 is not None:
            return self.top1 < NOTABLE_AGREEMENT
        return self.share > NOTABLE and self.max_relative > NEGLIGIBLE

    def __str__(self) -> str:
        """Return the error in words, in the output's own units."""
        mean, largest = f"{self.mean_absolute:.2g}", f"{self.max_absolute:.2g}"
        parts = [f"error {mean} on average, {largest} at most, of values up to {self.scale:.3g}"]
        if self.dense_max_absolute is not None:
            mean, largest = f"{self.dense_mean_absolute:.2g}", f"{self.dense_max_absolute:.2g}"
            parts.append(f"stored dense in the same number type, {mean} on average, {largest} at most")
        if self.top1 is not None:
            parts.append(f"top-1 agreement {self.top1:.1%}")
        return "; ".join(parts)


def worst_of(errors: Iterable[OutputError]) -> OutputError:
    """Return the largest errors of one output in several runs."""
    found = list(errors)

    def most(field: str, choose: Callable[[list[float]], float] = max) -> Any:
        values = [getattr(error, field) for error in found if getattr(error, field) is not None]
        return choose(values) if values else None

    return replace(
        found[0],
        top1=most("top1", min),
        **{
            field: most(field)
            for field in (
                "max_absolute",
                "max_relative",
                "encoding",
                "mean_absolute",
                "dense_max_absolute",
                "dense_mean_absolute",
            )
        },
    )


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
    classes: bool = False,
) -> OutputError:
    """Return the error of one output; raise where it is too large.

    Args:
        name: of the output.
        got: what the file answers.
        wanted: what the model answers.
        scale: of the output, over all samples.
        tolerance: largest error allowed, as a share of the scale.
        kind: number type of the file.
        dense: what the dense file of this number type answers.
        subject: what to call the file in errors.
        classes: the output holds scores of classes.

    Raises:
        ExportError: the error is larger, or the output has another shape, or NaN.
    """
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
    absolute, mean = _distance(a[finite], b[finite])
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
    encoding = dense_max = dense_mean = None
    if dense is not None:
        encoding = _distance(a[finite], dense.astype(np.float64)[finite])[0] / unit
        if not encoding <= kind.encoding_tolerance:
            raise ExportError(
                place,
                f"must equal the dense file's to {kind.encoding_tolerance:g} of its scale {scale:.3g}",
                f"{encoding:.3g}",
                "Export it dense, and report the model.",
            )
        dense_max, dense_mean = _distance(dense.astype(np.float64)[finite], b[finite])
    top1 = float(np.mean(a.argmax(1) == b.argmax(1))) if classes else None
    span = float(np.ptp(b[finite])) if finite.any() else 0.0
    return OutputError(name, absolute, absolute / unit, scale, top1, encoding, mean, span, dense_max, dense_mean)


def _distance(first: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Return the largest and the mean absolute difference."""
    off = np.abs(first - other)
    return float(off.max(initial=0.0)), float(off.mean()) if off.size else 0.0


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
    off = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    largest, mean = float(off.max(initial=0.0)), float(off.mean()) if off.size else 0.0
    span = float(np.ptp(wanted.astype(np.float64))) if wanted.size else 0.0
    return OutputError(name, largest, wrong / max(got.size, 1), scale, mean_absolute=mean, span=span)
