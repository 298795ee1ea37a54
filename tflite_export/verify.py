"""Compare a .tflite, in the runtime, with the Keras model that it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tflite_export import flatbuffer, precision
from tflite_export.errors import ExportError
from tflite_export.inputs import SAMPLES, Inputs, collect_inputs
from tflite_export.quantize import FLOAT32, NumberType, number_type_of
from tflite_export.runtime import LARGEST_BATCH, Session, load
from tflite_export.signature import Signature, output_names, signature_of

TOLERANCE = FLOAT32.tolerance
"""Largest error of a float32 file's output, as a share of the largest absolute value of it over all samples.

Two right float32 implementations differ by the order of their sums: per layer about sqrt(n) * 2**-24 of the
sum's scale, 2e-6 at n = 1000, and up to some 1e-5 through a deep network. A wrong kernel is off by 1e-2 and
more. 1e-4 lies between. For other number types see :mod:`tflite_export.quantize`.
"""

CONFIGURATIONS = ((True, 1), (True, 4), (False, 1), (False, 4))
"""(XNNPACK delegate, threads) that a file is run with."""


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


@dataclass(frozen=True)
class Run:
    """One configuration of the runtime."""

    delegate: bool
    threads: int
    outputs: tuple[OutputError, ...]


@dataclass(frozen=True)
class Verification:
    """A file that agrees with its model.

    Args:
        runs: One for each configuration.
        samples: Number of inputs.
        drawn: The inputs were random, not real.
        tolerance: Largest relative error allowed.
        encoding_tolerance: Largest difference from the dense file allowed, where it was compared.
    """

    runs: tuple[Run, ...]
    samples: int
    drawn: bool
    tolerance: float
    encoding_tolerance: float | None = None

    @property
    def max_absolute(self) -> float:
        """Largest absolute error over outputs and configurations."""
        return max(output.max_absolute for run in self.runs for output in run.outputs)

    @property
    def max_relative(self) -> float:
        """Largest error as a share of its output's scale."""
        return max(output.max_relative for run in self.runs for output in run.outputs)

    @property
    def top1(self) -> float | None:
        """Smallest share of samples that keep their class, over outputs [samples, classes] and configurations."""
        shares = [output.top1 for run in self.runs for output in run.outputs if output.top1 is not None]
        return min(shares, default=None)

    @property
    def encoding(self) -> float | None:
        """Largest difference from the dense file, where it was compared."""
        found = [output.encoding for run in self.runs for output in run.outputs if output.encoding is not None]
        return max(found, default=None)

    def __str__(self) -> str:
        """Return the figures as one line."""
        top1 = f", top-1 agreement {self.top1:.1%}" if self.top1 is not None else ""
        encoding = (
            f"; beside the dense file {self.encoding:.2g} (allowed {self.encoding_tolerance:g})"
            if self.encoding is not None
            else ""
        )
        threads = sorted({run.threads for run in self.runs})
        return (
            f"verified on {self.samples} {'random' if self.drawn else 'given'} inputs, "
            f"XNNPACK on and off, {' and '.join(map(str, threads))} "
            f"threads: max error {self.max_absolute:.2g}, relative {self.max_relative:.2g} "
            f"(allowed {self.tolerance:g}){top1}{encoding}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON-able dictionary."""
        return {
            "samples": self.samples,
            "drawn": self.drawn,
            "tolerance": self.tolerance,
            "top1": self.top1,
            "encoding": self.encoding,
            "encoding_tolerance": self.encoding_tolerance,
            "max_absolute": self.max_absolute,
            "max_relative": self.max_relative,
            "runs": [
                {
                    "delegate": run.delegate,
                    "threads": run.threads,
                    "outputs": [dict(vars(output)) for output in run.outputs],
                }
                for run in self.runs
            ],
        }


@dataclass(frozen=True, eq=False)
class Reference:
    """What the Keras model answers to the inputs.

    Args:
        inputs: The samples.
        outputs: One array [samples, ...] for each output.
        input_names: Of the file, in the model's order.
        output_names: Likewise.
    """

    inputs: Inputs
    outputs: tuple[NDArray[Any], ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def verify(
    path: str | os.PathLike[str],
    model: keras.Model,
    data: Any = None,
    *,
    samples: int = SAMPLES,
    tolerance: float | None = None,
) -> Verification:
    """Compare a .tflite with a Keras model, in LiteRT: with and without XNNPACK, on 1 and 4 threads.

    error = max |file - model| / max |model|, for each float output; NaN fails. Integer outputs must be equal; in a
    quantized file, the error is the share of them that are not.

    Args:
        path: The file.
        model: The model that it came from.
        data: Inputs: see :func:`tflite_export.inputs.collect_inputs`. None draws a few, with a warning.
        samples: Use at most so many.
        tolerance: Largest error allowed; None: that of the file's number type.

    Returns:
        The errors, all within the tolerance.

    Raises:
        ExportError: They are not, or the file cannot be run.

    Example:
        >>> verify("missing.tflite", keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: 'missing.tflite': must be a readable file. Received: No such ...
    """
    content = load(path)
    signature = signature_of(model, data)
    inputs = collect_inputs(model, signature, data, samples)
    with precision.float32(model):
        reference = answer(model, signature, inputs)
    kind = number_type_of(flatbuffer.read(content, os.fspath(path)))
    return compare(content, _names_of_file(content, os.fspath(path), reference), os.fspath(path), kind, tolerance)


def answer(model: keras.Model, signature: Signature, inputs: Inputs) -> Reference:
    """Run the Keras model on the inputs.

    Raises:
        ExportError: The model itself answers NaN.
    """
    parts = []
    names: tuple[str, ...] = ()
    for start in range(0, len(inputs), LARGEST_BATCH):
        outputs = model(
            signature.pack([array[start : start + LARGEST_BATCH] for array in inputs.arrays]), training=False
        )
        names = output_names(outputs)
        parts.append([keras.ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(outputs)])
    columns = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    for name, column in zip(names, columns, strict=True):
        if column.dtype.kind == "f" and np.isnan(column).any():
            raise ExportError(
                f"output '{name}' of model '{model.name}'",
                "must hold no NaN",
                f"{int(np.isnan(column).sum())} NaN",
                "Check the weights and the data.",
            )
    return Reference(inputs, columns, tuple(spec.name for spec in signature.inputs), names)


Answers = Mapping[tuple[bool, int, int], Sequence[NDArray[Any]]]
"""The outputs of a file for (delegate, threads, which run of that configuration)."""


def answers(content: bytes, reference: Reference, subject: str) -> Answers:
    """Return what a file gives out in every configuration, for :func:`compare` to hold another one against.

    Raises:
        ExportError: It cannot be run.
    """
    return {
        (delegate, threads, turn): outputs
        for delegate, threads, turn, _, _, outputs in _configurations(content, reference, subject)
    }


def compare(
    content: bytes,
    reference: Reference,
    subject: str,
    kind: NumberType = FLOAT32,
    tolerance: float | None = None,
    dense: Answers | None = None,
) -> Verification:
    """Run a file in every configuration and compare it with the reference.

    A file with a free batch is run on one sample, on all, and on one again, in the same interpreter: what an
    operator has unpacked must survive that tensors are allocated anew, larger and smaller.

    Args:
        content: The file's bytes.
        reference: What the model answers.
        subject: What to call the file in errors.
        kind: Its number type, for the tolerances.
        tolerance: Largest error against the model, in place of the number type's.
        dense: What the dense file of the same number type gives out, to be compared with too.

    Raises:
        ExportError: An output is off, or the file cannot be run.
    """
    allowed = kind.tolerance if tolerance is None else tolerance
    scales = [_scale(output) for output in reference.outputs]
    found: dict[tuple[bool, int], tuple[OutputError, ...]] = {}
    for delegate, threads, turn, place, count, outputs in _configurations(content, reference, subject):
        twins = [None] * len(outputs) if dense is None else dense[delegate, threads, turn]
        errors = tuple(
            _measure(name, output, wanted[:count], scale, allowed, kind, twin, place)
            for name, output, wanted, scale, twin in zip(
                reference.output_names, outputs, reference.outputs, scales, twins, strict=True
            )
        )
        if count == len(reference.inputs):
            found[delegate, threads] = errors
    runs = tuple(Run(delegate, threads, errors) for (delegate, threads), errors in found.items())
    return Verification(
        runs,
        len(reference.inputs),
        reference.inputs.drawn,
        allowed,
        None if dense is None else kind.encoding_tolerance,
    )


def _configurations(
    content: bytes, reference: Reference, subject: str
) -> Iterator[tuple[bool, int, int, str, int, list[NDArray[Any]]]]:
    """Yield (delegate, threads, turn, place for errors, number of samples, outputs) of each run."""
    for delegate, threads in CONFIGURATIONS:
        session = Session(content, subject, threads=threads, delegate=delegate)
        resized = session.batch_size is None and len(reference.inputs) > 1
        for turn, count in enumerate((1, len(reference.inputs), 1) if resized else (len(reference.inputs),)):
            outputs = session.run(
                [array[:count] for array in reference.inputs.arrays],
                reference.input_names,
                reference.output_names,
            )
            yield delegate, threads, turn, f"{session.subject}, {count} samples", count, outputs
        # The next one is not to be made while this one still holds its copy of the weights.
        del session


def _scale(output: NDArray[Any]) -> float:
    """Return the largest finite absolute value of an output."""
    values = output.astype(np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _measure(
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


def _names_of_file(content: bytes, subject: str, reference: Reference) -> Reference:
    """Return the reference with the file's own names, by position where another tool chose them."""
    session = Session(content, subject)
    inputs, outputs = tuple(session.inputs), tuple(session.outputs)
    ours = set(reference.input_names) == set(inputs) and set(reference.output_names) == set(outputs)
    if ours:
        return reference
    if len(inputs) != len(reference.input_names) or len(outputs) != len(reference.output_names):
        raise ExportError(
            subject,
            f"must have {len(reference.input_names)} inputs and {len(reference.output_names)} outputs",
            f"{len(inputs)} and {len(outputs)}",
            "Was the file made from this model?",
        )
    return Reference(
        reference.inputs,
        reference.outputs,
        _by_position(reference.input_names, inputs),
        _by_position(reference.output_names, outputs),
    )


def _by_position(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, ...]:
    """Return the file's names in the model's order: the same name where there is one, else by position."""
    return tuple(name if name in theirs else theirs[position] for position, name in enumerate(ours))
