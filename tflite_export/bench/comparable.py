"""Files that are to be compared with each other: their names matched, and the inputs that all get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.model.inputs import SEED, check_array, check_counts, read_leaves
from tflite_export.model.signature import InputSpec, Signature
from tflite_export.runtimes.sessions import MeasuredFile, Session

__all__ = ["feeds_for", "matching_inputs", "matching_names", "matching_outputs", "measured_files"]


def measured_files(
    sessions: Sequence[Session], files: Sequence[tuple[str, bytes]], batch: int, data: Any
) -> tuple[list[MeasuredFile], list[NDArray[Any]]]:
    """Return what each file is measured as, and the inputs that all get.

    Args:
        sessions: the files, loaded.
        files: name and content of each.
        batch: samples in a run.
        data: see `tflite_export.bench.timing.benchmark`.

    Raises:
        ExportError: the files differ in their inputs or outputs, or are fixed to another batch.
    """
    inputs, outputs = matching_inputs(sessions), matching_outputs(sessions)
    feeds = feeds_for(sessions[0], inputs[0], batch, data)
    for session in sessions:
        if session.batch_size not in (None, len(feeds[0])):
            raise ExportError(
                session.subject,
                f"must take a batch of {len(feeds[0])}",
                session.batch_size,
                "Pass the batch that it is fixed to.",
            )
    cases = [
        MeasuredFile(name, content, tuple(own_inputs), tuple(own_outputs))
        for (name, content), own_inputs, own_outputs in zip(files, inputs, outputs, strict=True)
    ]
    return cases, feeds


def matching_inputs(sessions: Sequence[Session]) -> list[list[str]]:
    """Return for each file the names of its inputs, in one order; a single input may have any name.

    Raises:
        ExportError: a file has none, or others than the first: in number, name, sizes or type.
    """
    names = matching_names("inputs", [(session.subject, session.inputs) for session in sessions])
    for session, own in zip(sessions, names, strict=True):
        for name, place in zip(own, names[0], strict=True):
            wanted, found = _form(sessions[0].inputs[place]), _form(session.inputs[name])
            if not _agree(wanted, found):
                raise ExportError(
                    f"{session.subject}, input '{name}'",
                    f"must take what the first file's '{place}' takes, {_said(wanted)}",
                    _said(found),
                    "Compare files of one model, of one number type of inputs.",
                )
    return names


def matching_outputs(sessions: Sequence[Session]) -> list[list[str]]:
    """Return for each file the names of its outputs, in one order; a single output may have any name.

    Raises:
        ExportError: a file has none, or others than the first.
    """
    return matching_names("outputs", [(session.subject, session.outputs) for session in sessions])


def matching_names(what: str, files: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Return for each file its names, in one order; a single one may have any name.

    Args:
        what: "inputs" or "outputs".
        files: what errors call each, and what is described by name.

    Raises:
        ExportError: a file has none, or others than the first.
    """
    subject, described = files[0]
    first = sorted(described)
    if not first:
        raise ExportError(subject, f"must have {what}", "none", "Is its signature damaged?")
    matching = []
    for subject, described in files:
        names = sorted(described)
        if names != first and not len(names) == len(first) == 1:
            raise ExportError(
                subject, f"must have the {what} of the first file, {first}", names, "Compare files of one model."
            )
        matching.append(names)
    return matching


def _form(detail: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return sizes without the batch, -1 where free, and the type."""
    return tuple(int(size) for size in detail["shape_signature"][1:]), np.dtype(detail["dtype"])


def _agree(wanted: tuple[tuple[int, ...], np.dtype[Any]], found: tuple[tuple[int, ...], np.dtype[Any]]) -> bool:
    """Return whether one array fits both inputs; whole numbers of another type are another quantization's."""
    sizes = len(wanted[0]) == len(found[0]) and all(
        a == b or -1 in (a, b) for a, b in zip(wanted[0], found[0], strict=True)
    )
    return sizes and wanted[1].kind == found[1].kind


def _said(form: tuple[tuple[int, ...], np.dtype[Any]]) -> str:
    sizes = ("batch", *("any" if size < 0 else str(size) for size in form[0]))
    return f"{form[1].name} of ({', '.join(sizes)})"


def feeds_for(session: Session, names: list[str], batch: int, data: Any) -> list[NDArray[Any]]:
    """Return an array [batch, ...] for each input: the given ones in its type, or drawn ones.

    Args:
        session: the file.
        names: of its inputs.
        batch: samples that are drawn or taken, where the file has a free batch.
        data: see `tflite_export.bench.timing.benchmark`.

    Raises:
        ExportError: the data do not fit the inputs, or sizes that are to be drawn are free.
    """
    if data is not None:
        if isinstance(data, dict) and set(data) != set(names):
            raise ExportError(
                "data", f"must be named as the inputs, {names}", sorted(map(str, data)), "Name the arrays so."
            )
        details = [session.inputs[name] for name in names]
        free = [tuple(None if size < 0 else int(size) for size in detail["shape_signature"][1:]) for detail in details]
        types = [np.dtype(detail["dtype"]) for detail in details]
        specs = tuple(InputSpec(*each) for each in zip(names, free, (dtype.name for dtype in types), strict=True))
        given = read_leaves(data, Signature(specs, names), session.batch_size or batch, whole=True)
        for array, spec in zip(given, specs, strict=True):
            check_array(array, spec)
        check_counts(given)
        return [array.astype(dtype) for array, dtype in zip(given, types, strict=True)]
    rng = np.random.default_rng(SEED)
    return [_drawn(session, name, batch, rng) for name in names]


def _drawn(session: Session, name: str, batch: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return samples of an input from a standard normal, or zeros and ones of whole numbers."""
    shape = [int(size) for size in session.inputs[name]["shape_signature"]]
    dtype = np.dtype(session.inputs[name]["dtype"])
    if any(size < 0 for size in shape[1:]):
        raise ExportError(f"input '{name}'", "its shape must be known for inputs to be drawn", shape, "Pass data=... .")
    shape = [batch if session.batch_size is None else shape[0], *shape[1:]]
    values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
    return values.astype(dtype)
