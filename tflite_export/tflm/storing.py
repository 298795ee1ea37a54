"""A dense int8 file made one whose weights TensorFlow Lite Micro decodes, equal to it bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import Edit, TFLiteFile
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.plan import PlanLine
from tflite_export.runtimes.limits import Limits
from tflite_export.tflm.decode_operators import put_in
from tflite_export.tflm.flash_plan import FORMS, Stored, choose
from tflite_export.tflm.micro import MicroSession
from tflite_export.tflm.records import Form

__all__ = ["SAMPLES", "store"]

SAMPLES = 16
"""Inputs on which the file is compared with the dense one; a weight that was decoded wrongly shows on each."""


def store(
    dense: TFLiteFile,
    weights: Sequence[Weight],
    lines: Sequence[PlanLine],
    inputs: Mapping[str, NDArray[Any]],
    *,
    arena: int | None = None,
    forms: Sequence[Form] = tuple(FORMS.values()),
    more: Callable[[tuple[PlanLine, ...]], Edit],
    limits: Limits | None = None,
) -> tuple[TFLiteFile, tuple[PlanLine, ...]]:
    """Store each weight as the record that takes the fewest bytes, and compare the file with the dense one in TFLM.

    A weight with which the interpreter answers otherwise, or with which it would not run in the arena, stays dense.
    Weights are taken in by the bytes that they save, the largest saving first.

    Args:
        dense: the file.
        weights: of it.
        lines: of its plan, one for each weight.
        inputs: samples [samples, ...] for each input by name, as real numbers.
        arena: bytes of RAM that the interpreter may take; None: any.
        forms: that a record may have.
        more: gives a further edit of the file from the lines: its metadata.
        limits: what a file may take here.

    Returns:
        The file, and the lines of its plan.

    Raises:
        ExportError: the dense file does not run in TensorFlow Lite Micro, or not in that arena.
    """
    chosen = choose(dense.model, weights, lines, forms)
    with _Trials(dense, inputs, limits) as trials:
        if arena is not None and not trials.fits(dense, arena):
            with MicroSession(dense, dense.subject, limits=limits) as session:
                session.feed(trials.first, list(trials.feeds))
                needed = session.arena()[0]
            raise ExportError(
                "arena", "must hold what the dense file needs", f"{arena:,} bytes; it needs {needed:,}", "Raise it."
            )
        if any(each.record is not None for each in chosen):
            chosen = _equal(trials, chosen)
            if arena is not None:
                chosen = _within(trials, chosen, arena)
    planned = tuple(each.line for each in chosen)
    return dense.edited(_edit(chosen), more(planned))[0], planned


def _equal(trials: _Trials, chosen: list[Stored]) -> list[Stored]:
    """Return the weights with those dense with which the interpreter answers otherwise, each tried alone."""
    if not (reason := trials.why_other(chosen)):
        return chosen
    apart = [each if each.record is None or not trials.why_other([each]) else each.as_dense(reason) for each in chosen]
    if not (reason := trials.why_other(apart)):
        return apart
    return [each if each.record is None else each.as_dense(reason) for each in apart]


def _within(trials: _Trials, chosen: list[Stored], arena: int) -> list[Stored]:
    """Return the weights with those dense with which the file would not run in an arena."""
    if trials.fits(trials.file(chosen), arena):
        return chosen
    kept: list[Stored] = []
    for each in sorted((each for each in chosen if each.record is not None), key=lambda each: -each.saved):
        if trials.fits(trials.file([*kept, each]), arena):
            kept.append(each)
    reason = f"decoded, it would not fit into an arena of {arena:,} bytes"
    return [each if each.record is None or each in kept else each.as_dense(reason) for each in chosen]


def _edit(chosen: Sequence[Stored]) -> Edit:
    """Return the edit that stores weights."""
    records = {place: each.record for each in chosen if each.record is not None for place in each.line.tensors}
    return partial(put_in, records=records)


class _Trials:
    """The interpreter in which files are tried, and what the dense one answers."""

    def __init__(self, dense: TFLiteFile, inputs: Mapping[str, NDArray[Any]], limits: Limits | None) -> None:
        self._dense, self._limits = dense, limits
        self._session = MicroSession(dense, dense.subject, limits=limits)
        self.feeds = {name: np.asarray(inputs[name])[:SAMPLES] for name in self._session.inputs}
        self._outputs = list(self._session.outputs)
        self._wanted = self._session.run(list(self.feeds.values()), list(self.feeds), self._outputs)

    def __enter__(self) -> _Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @property
    def first(self) -> list[NDArray[Any]]:
        """One sample of each input."""
        return [values[: self._session.batch_size] for values in self.feeds.values()]

    def file(self, chosen: Sequence[Stored]) -> TFLiteFile:
        """Return the dense file with weights stored."""
        return self._dense.edited(_edit(chosen))[0]

    def fits(self, file: TFLiteFile, arena: int) -> bool:
        """Return whether a file runs in an arena."""
        self._load(file)
        self._session.feed(self.first, list(self.feeds))
        return self._session.fits(arena)

    def why_other(self, chosen: Sequence[Stored]) -> str:
        """Return why the file with weights stored is not the dense one; empty where it answers the same."""
        try:
            self._load(self.file(chosen))
            got = self._session.run(list(self.feeds.values()), list(self.feeds), self._outputs)
        except ExportError as error:
            return f"stored as a record, the file fails in TensorFlow Lite Micro: {error.received}"
        same = all(np.array_equal(own, other) for own, other in zip(got, self._wanted, strict=True))
        return "" if same else "stored as a record, TensorFlow Lite Micro gives other outputs"

    def _load(self, file: TFLiteFile) -> None:
        if self._session.is_running:
            self._session.load(file)
        else:
            self._session = MicroSession(file, file.subject, limits=self._limits)
