"""What a page that measures a file gets of it: its bytes with fixed sizes, and samples with the answers expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_prune.arrays.distance import scale_of
from tflite_export.bench.comparable import feeds_for, matching_inputs, matching_outputs
from tflite_export.errors import ExportError
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.opening import open_foreign
from tflite_export.runtimes.sessions import Session, in_batches
from tflite_export.tolerances import OTHER_RUNTIME
from tflite_export.verification.golden import Golden
from tflite_export.web.limitations import with_fixed_sizes

__all__ = ["SAMPLES", "ServedFile", "served_files"]

SAMPLES = 4
"""Samples that the page checks, at most: they travel to the phone."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """Inputs of a run and its expected outputs, by position; bounds are absolute."""

    feeds: list[NDArray[Any]]
    outputs: list[NDArray[Any]]
    bounds: list[float]


@dataclass(frozen=True, eq=False)
class ServedFile:
    """A file as the page gets it.

    Args:
        subject: what errors call it.
        content: its bytes, its sizes fixed.
        inputs: its names of the inputs, in the first file's order.
        outputs: likewise.
        samples: to check it on.
    """

    subject: str
    content: bytes
    inputs: list[str]
    outputs: list[str]
    samples: list[_Sample]

    def described(self, blobs: list[bytes]) -> dict[str, Any]:
        """Return what the page needs to know; the arrays of the samples go to the end of the blobs."""
        outputs = []
        for place, name in enumerate(self.outputs):
            bound = max(sample.bounds[place] for sample in self.samples)
            scale = max(scale_of(sample.outputs[place]) for sample in self.samples)
            outputs.append({"name": name, "bound": bound, "scale": scale})
        return {
            "bytes": len(self.content),
            "inputs": self.inputs,
            "outputs": outputs,
            "samples": [
                {"feeds": _append(blobs, sample.feeds), "outputs": _append(blobs, sample.outputs)}
                for sample in self.samples
            ],
        }


def served_files(
    subjects: Sequence[str], contents: Sequence[bytes], data: Any, golden: Golden | None, limits: Limits
) -> list[ServedFile]:
    """Return the files with their sizes fixed, and what each must give.

    The outputs are computed here, in a child process that a file may crash.

    Args:
        subjects: what errors call each file.
        contents: their bytes; the first is what the others must agree with in inputs and outputs.
        data: inputs: see `tflite_export.bench.timing.benchmark`.
        golden: inputs and outputs that the files must give; None: what LiteRT gives here, to 0.02 of each output's
            scale.
        limits: what the files may take here.

    Raises:
        ExportError: a file does not run, or differs from the first in its inputs or outputs.
    """
    open_file = partial(open_foreign, limits=limits)
    sessions = [open_file(content, subject) for content, subject in zip(contents, subjects, strict=True)]
    served = []
    for subject, content, session, inputs, outputs in zip(
        subjects, contents, sessions, matching_inputs(sessions), matching_outputs(sessions), strict=True
    ):
        feeds = _feeds(session, inputs, outputs, data, golden)
        named = {name: feed[: session.batch_size or 1] for name, feed in zip(inputs, feeds, strict=True)}
        fixed = with_fixed_sizes(content, 1, subject, named, open_file=open_file)
        with open_file(fixed, subject) as again:
            samples = _samples(again, inputs, outputs, data, golden)
        served.append(ServedFile(subject, fixed, inputs, outputs, samples))
    return served


def _feeds(
    session: Session, inputs: list[str], outputs: list[str], data: Any, golden: Golden | None
) -> list[NDArray[Any]]:
    """Return the inputs of a file, those of the golden file or of the data, or drawn ones."""
    if golden is None:
        return feeds_for(session, inputs, 1, data)
    missing = [name for name in (*inputs, *outputs) if name not in golden.inputs and name not in golden.outputs]
    if missing:
        raise ExportError(
            session.subject,
            f"must have the names of the golden file, {[*golden.inputs, *golden.outputs]}",
            missing,
            "Is it the golden file of another model?",
        )
    return [golden.inputs[name] for name in inputs]


def _samples(
    session: Session, inputs: list[str], outputs: list[str], data: Any, golden: Golden | None
) -> list[_Sample]:
    """Return the first runs of a file of fixed sizes, with the outputs that are expected."""
    batch = session.batch_size or 1
    feeds = list(islice(in_batches(_feeds(session, inputs, outputs, data, golden), batch), SAMPLES))
    if golden is None:
        samples = []
        for feed in feeds:
            session.feed(feed, inputs)
            session.invoke()
            answers = session.fetch(outputs)
            samples.append(_Sample(feed, answers, [_bound(answer) for answer in answers]))
        return samples
    wanted = in_batches([golden.outputs[name] for name in outputs], batch)
    bounds = [golden.bounds[name] for name in outputs]
    return [_Sample(feed, answer, bounds) for feed, answer in zip(feeds, wanted, strict=False)]


def _bound(answer: NDArray[Any]) -> float:
    """Return the largest difference that is allowed; garbage is off by the whole scale."""
    return OTHER_RUNTIME * scale_of(answer)


def _append(blobs: list[bytes], arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Append the bytes of arrays; return their places."""
    start = len(blobs)
    blobs.extend(np.ascontiguousarray(array).tobytes() for array in arrays)
    return list(range(start, len(blobs)))
