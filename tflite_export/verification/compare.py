"""Compare outputs of a file with those that it must have: how far each is off, and whether that is near enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_prune.arrays.distance import Distance, distance, is_float, largest_difference
from tflite_export.convert.number_types import FLOAT32, NumberType
from tflite_export.errors import ExportError
from tflite_export.tolerances import NEGLIGIBLE, NOTABLE, NOTABLE_AGREEMENT

__all__ = ["OutputError", "compare_output", "require_agreement", "worst_of"]


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

    @classmethod
    def of(cls, name: str, found: Distance, **more: Any) -> OutputError:
        """Return the error of an output from its distance."""
        given = {"mean_absolute": found.mean, "max_relative": found.relative, "scale": found.scale} | more
        return cls(name, max_absolute=found.largest, **given)

    @property
    def share(self) -> float:
        """The largest error as a share of the scale, or of the span where that is smaller."""
        unit = min(self.scale, self.span) or self.scale
        return self.max_absolute / unit if unit else self.max_absolute

    @property
    def is_notable(self) -> bool:
        """Whether a reader should be warned: see `tflite_export.tolerances`."""
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


def compare_output(
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
        got: what the file answers, [samples, ...].
        wanted: what the model answers, likewise.
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
        rule = f"must have the model's shape {wanted.shape}"
        raise ExportError(place, rule, got.shape, "Was the file made from this model?")
    found = distance(got, wanted, scale)
    finite = wanted[np.isfinite(wanted.astype(np.float64))].astype(np.float64)
    span = float(np.ptp(finite)) if finite.size else 0.0
    if not is_float(got):
        allowed = tolerance if kind is not FLOAT32 else 0.0
        if found.unequal > allowed * found.size:
            raise ExportError(
                place,
                "integers must equal the model's" + (f", but for {allowed:.0%}" if allowed else ""),
                f"{found.unequal} of {found.size} differ",
                "Export the scores, and take the class from them.",
            )
        return OutputError.of(name, found, max_relative=found.unequal / max(found.size, 1), span=span)
    if np.isnan(got).any():
        received = f"{int(np.isnan(got).sum())} NaN of {got.size}"
        raise ExportError(place, "must hold no NaN", received, "Export it dense, and report the model.")
    if not found.relative <= tolerance:
        raise ExportError(
            place,
            f"must equal the model's to {tolerance:g} of its scale {scale:.3g}",
            f"{found.relative:.3g}",
            "Export it dense, or raise tolerance where this is accepted."
            if kind is FLOAT32
            else "Quantize less, give more data, or raise tolerance where this is accepted.",
        )
    beside: dict[str, Any] = {}
    if dense is not None:
        encoding = distance(got, dense, scale).relative
        if not encoding <= kind.encoding_tolerance:
            raise ExportError(
                place,
                f"must equal the dense file's to {kind.encoding_tolerance:g} of its scale {scale:.3g}",
                f"{encoding:.3g}",
                "Export it dense, and report the model.",
            )
        own = distance(dense, wanted, scale)
        beside = {"encoding": encoding, "dense_max_absolute": own.largest, "dense_mean_absolute": own.mean}
    top1 = float(np.mean(got.argmax(1) == wanted.argmax(1))) if classes else None
    return OutputError.of(name, found, top1=top1, span=span, **beside)


def require_agreement(
    outputs: Sequence[NDArray[Any]],
    wanted: Sequence[NDArray[Any]],
    subject: str,
    *,
    whose: str,
    tolerance: float,
    said: Sequence[str] = (),
) -> float:
    """Return the largest difference of outputs from those that they must equal, as a share of their scale.

    Args:
        outputs: what a runtime answered.
        wanted: what it must answer.
        subject: which file, and where.
        whose: whose outputs are right: "the model's outputs".
        tolerance: largest difference, as a share of an output's scale.
        said: what the runtime printed.

    Raises:
        ExportError: the difference is larger, a shape is another, or there is NaN.
    """
    found = largest_difference(outputs, wanted)
    if not found <= tolerance:
        raise ExportError(
            subject,
            f"must equal {whose} to {tolerance:g} of each output's scale",
            "; ".join([f"a difference of {found:.3g}", *said]),
            "Where this runtime cannot allocate, its outputs are garbage: export the model again, for this target.",
        )
    return found
