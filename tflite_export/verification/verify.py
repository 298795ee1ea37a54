"""Compare a .tflite, in the runtime, with the Keras model that it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
from numpy.typing import NDArray

from keras_prune.arrays.distance import scale_of
from keras_prune.text.plaintext import printable
from tflite_export.convert.number_types import FLOAT32, NumberType, check_tolerance
from tflite_export.convert.workspace import in_turn
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model.reference import Reference
from tflite_export.model.signature import Signature
from tflite_export.runtimes.opening import open_own
from tflite_export.runtimes.sessions import Session
from tflite_export.source.loading import open_source
from tflite_export.tolerances import NOTABLE, NOTABLE_AGREEMENT
from tflite_export.verification.compare import OutputError, compare_output, worst_of

__all__ = [
    "CONFIGURATIONS",
    "MICRO",
    "Answers",
    "OpenAny",
    "Run",
    "Verification",
    "answers",
    "compare_runs",
    "verify_file",
]

CONFIGURATIONS = ((True, 1), (True, 4), (False, 1), (False, 4))
"""(XNNPACK delegate, threads) that a file is run with."""
MICRO = ((False, 1),)
"""The same of TensorFlow Lite Micro, which has neither."""


OpenAny = Callable[..., Session]
"""Loads a file into a runtime, as `tflite_export.runtimes.opening.Opener` does into LiteRT."""


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
        runs: one for each configuration.
        samples: number of inputs.
        drawn: the inputs were random, not real.
        tolerance: largest relative error allowed.
        encoding_tolerance: largest difference from the dense file allowed, where it was compared.
    """

    runs: tuple[Run, ...]
    samples: int
    drawn: bool
    tolerance: float
    encoding_tolerance: float | None = None

    @property
    def outputs(self) -> tuple[OutputError, ...]:
        """The largest errors of each output, over configurations."""
        return tuple(map(worst_of, zip(*(run.outputs for run in self.runs), strict=True)))

    @property
    def max_absolute(self) -> float:
        """Largest absolute error over outputs and configurations."""
        return max(output.max_absolute for output in self.outputs)

    @property
    def max_relative(self) -> float:
        """Largest error as a share of its output's scale."""
        return max(output.max_relative for output in self.outputs)

    @property
    def top1(self) -> float | None:
        """Smallest share of samples that keep their class, over outputs with classes and configurations; else None."""
        return min((output.top1 for output in self.outputs if output.top1 is not None), default=None)

    @property
    def encoding(self) -> float | None:
        """Largest difference from the dense file, where it was compared."""
        return max((output.encoding for output in self.outputs if output.encoding is not None), default=None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should look at, though it is allowed: outputs that are far from the model's."""
        return tuple(_warning(output) for output in self.outputs if output.is_notable)

    def __str__(self) -> str:
        """Return the figures: one line, and with several outputs one more for each."""
        encoding = (
            f"; beside the dense file {self.encoding:.2g} (allowed {self.encoding_tolerance:g})"
            if self.encoding is not None
            else ""
        )
        threads = sorted({run.threads for run in self.runs})
        several = f"XNNPACK on and off, {' and '.join(map(str, threads))} threads"
        how = several if len(self.runs) > 1 else "in TensorFlow Lite Micro"
        head = f"verified on {self.samples} {'random' if self.drawn else 'given'} inputs, {how}: "
        relative = f"relative error {self.max_relative:.2g} (allowed {self.tolerance:g}){encoding}"
        named = [f"output '{output.name}': {output}" for output in self.outputs]
        if len(named) == 1:
            return printable(f"{head}{named[0]}; {relative}")
        return printable("\n".join([head + relative, *(f"  {line}" for line in named)]))

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
            "outputs": [dict(vars(output)) for output in self.outputs],
            "warnings": list(self.warnings),
            "runs": [
                {
                    "delegate": run.delegate,
                    "threads": run.threads,
                    "outputs": [dict(vars(output)) for output in run.outputs],
                }
                for run in self.runs
            ],
        }


def _warning(output: OutputError) -> str:
    """Return what there is to say about an output that is far from the model's."""
    if output.top1 is not None:
        limit = f"above {1 - NOTABLE_AGREEMENT:.0%} is warned about"
        what = f"{1 - output.top1:.1%} of the samples change their class; {limit}"
    else:
        what = (
            f"values are off by up to {output.max_absolute:.2g}, {output.mean_absolute:.2g} on average; the largest is "
            f"{output.share:.1%} of what they reach, and above {NOTABLE:.0%} is warned about"
        )
    return printable(
        f"output '{output.name}' is far from the model's: {what}. Check whether your application tolerates "
        "this. Otherwise give more data, quantize less, or pass a smaller tolerance, which rejects such a file."
    )


def verify_file(
    file: TFLiteFile,
    model: keras.Model | Any,
    data: Any,
    kind: NumberType,
    *,
    samples: int,
    tolerance: float | None,
    signature_key: str | None,
    open_file: OpenAny,
    configurations: Sequence[tuple[bool, int]] | None = None,
) -> Verification:
    """Compare a file with the model that it came from: see `tflite_export.tflm.verifying.verify`.

    Args:
        file: of whatever origin.
        model: as there, like `data`, `samples`, `tolerance` and `signature_key`.
        data: inputs.
        kind: number type of the file.
        samples: use at most so many.
        tolerance: largest error allowed.
        signature_key: of a SavedModel.
        open_file: loads the file into a runtime, in a process of its own.
        configurations: (XNNPACK delegate, threads) that it is run with there.

    Raises:
        ExportError: the file answers otherwise, or cannot be run.
    """
    check_tolerance(tolerance)
    source = open_source(model, signature_key)
    session = open_file(file, file.subject)
    signature = _sized_as(session, source.signature(data))
    reference = in_turn(source.answer)(signature, source.inputs(signature, data, samples))
    reference = _names_of_file(session, reference)
    session.close()
    return compare_runs(
        file, reference, file.subject, kind, tolerance, open_file=open_file, configurations=configurations
    )


Answers = Mapping[tuple[bool, int, int], Sequence[NDArray[Any]]]
"""The outputs of a file for (delegate, threads, which run of that configuration)."""


def answers(file: TFLiteFile, reference: Reference, subject: str) -> Answers:
    """Return the outputs of a file in every configuration, for `compare_runs` to compare another one with.

    Raises:
        ExportError: it cannot be run.
    """
    return {
        (delegate, threads, turn): outputs
        for delegate, threads, turn, _, _, outputs in _configurations(file, reference, subject)
    }


def compare_runs(
    file: TFLiteFile | bytes,
    reference: Reference,
    subject: str,
    kind: NumberType = FLOAT32,
    tolerance: float | None = None,
    dense: Answers | None = None,
    *,
    open_file: OpenAny = open_own,
    configurations: Sequence[tuple[bool, int]] | None = None,
) -> Verification:
    """Run a file in every configuration and compare it with the reference.

    A file with a free batch is run on one sample, on all, and on one again, in the same interpreter: what an
    operator has unpacked must survive that tensors are allocated anew, larger and smaller.

    Args:
        file: the file, or its bytes.
        reference: what the model answers.
        subject: what to call the file in errors.
        kind: its number type, for the tolerances.
        tolerance: largest error against the model, in place of the number type's.
        dense: outputs of the dense file of the same number type, to be compared with too.
        open_file: loads the file: `open_own` one that was just made here, `open_foreign` any other.
        configurations: (XNNPACK delegate, threads) to run it with; None: all.

    Raises:
        ExportError: an output is off, or the file cannot be run.
    """
    allowed = kind.tolerance if tolerance is None else tolerance
    scales = [scale_of(output) for output in reference.outputs]
    have_classes = reference.has_classes()
    found: dict[tuple[bool, int], tuple[OutputError, ...]] = {}
    for delegate, threads, turn, place, count, outputs in _configurations(
        file, reference, subject, open_file, configurations
    ):
        twins = [None] * len(outputs) if dense is None else dense[delegate, threads, turn]
        errors = tuple(
            compare_output(name, output, wanted[:count], scale, allowed, kind, twin, place, classes)
            for name, output, wanted, scale, twin, classes in zip(
                reference.output_names, outputs, reference.outputs, scales, twins, have_classes, strict=True
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
    file: TFLiteFile | bytes,
    reference: Reference,
    subject: str,
    open_file: OpenAny = open_own,
    configurations: Sequence[tuple[bool, int]] | None = None,
) -> Iterator[tuple[bool, int, int, str, int, list[NDArray[Any]]]]:
    """Yield (delegate, threads, turn, place for errors, number of samples, outputs) of each run."""
    for delegate, threads in CONFIGURATIONS if configurations is None else configurations:
        session = open_file(file, subject, threads=threads, delegate=delegate)
        resized = session.batch_size is None and reference.batch is None and len(reference.inputs) > 1
        for turn, count in enumerate((1, len(reference.inputs), 1) if resized else (len(reference.inputs),)):
            outputs = session.run(
                [array[:count] for array in reference.inputs.arrays],
                reference.input_names,
                reference.output_names,
                reference.batch,
            )
            yield delegate, threads, turn, f"{session.subject}, {count} samples", count, outputs
        # The next one is not to be made while this one still holds its copy of the weights.
        session.close()
        del session


def _sized_as(session: Session, signature: Signature) -> Signature:
    """Return the model's signature with the sizes that the file is fixed to, so far as the model has them free."""
    if len(session.inputs) != len(signature.inputs):
        return signature
    names = _by_position([spec.name for spec in signature.inputs], list(session.inputs))
    inputs = []
    for spec, name in zip(signature.inputs, names, strict=True):
        sizes = session.shape_of(name)[1:]
        if len(sizes) == len(spec.shape):
            fixed = (size if have is None and size > 0 else have for size, have in zip(sizes, spec.shape, strict=True))
            spec = replace(spec, shape=tuple(fixed))
        inputs.append(spec)
    return replace(signature, inputs=tuple(inputs), batch=signature.batch or session.batch_size)


def _names_of_file(session: Session, reference: Reference) -> Reference:
    """Return the reference with the file's own names, by position where another tool chose them."""
    inputs, outputs = tuple(session.inputs), tuple(session.outputs)
    ours = set(reference.input_names) == set(inputs) and set(reference.output_names) == set(outputs)
    if ours:
        return reference
    if len(inputs) != len(reference.input_names) or len(outputs) != len(reference.output_names):
        raise ExportError(
            session.subject,
            f"must have {len(reference.input_names)} inputs and {len(reference.output_names)} outputs",
            f"{len(inputs)} and {len(outputs)}",
            "Was the file made from this model?",
        )
    return replace(
        reference,
        input_names=_by_position(reference.input_names, inputs),
        output_names=_by_position(reference.output_names, outputs),
    )


def _by_position(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, ...]:
    """Return the file's names in the model's order: the same name where there is one, else by position."""
    return tuple(name if name in theirs else theirs[position] for position, name in enumerate(ours))
