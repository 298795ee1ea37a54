"""What decoding costs and saves: a file with DECODE records beside the same weights stored dense."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.interleaved import time_in_turn
from tflite_export.runtimes.limits import Limits
from tflite_export.tflm.decode_operators import decoded_tensors
from tflite_export.tflm.micro import MicroSession

__all__ = ["Decoding", "beside_dense", "require_right_tables"]

ROUNDS, SECONDS, FEWEST = 50, 1.0, 5
"""Timed runs of each file: so many, or those of a second, and a few in any case."""


@dataclass(frozen=True)
class Decoding:
    """A file with DECODE records beside the same weights stored dense: the outputs are equal, bit for bit.

    Args:
        weights: number of weights that are stored as records.
        decoded_bytes: bytes that are decoded in each run; a weight with several readers is decoded for each.
        most_at_once: of them, those of the operator that has the most decoded at once: they lie in the arena.
        dense_bytes: of flash: the file with those weights dense.
        dense_arena_bytes: the arena that it needs.
        milliseconds: of a run in the interpreter on this machine, the median.
        dense_milliseconds: of a run of the dense file, likewise.
        slowdown: the median of the pairwise ratios: above 1, decoding makes a run longer.
        machine: which kind of machine this is.
    """

    weights: int
    decoded_bytes: int
    most_at_once: int
    dense_bytes: int
    dense_arena_bytes: int
    milliseconds: float
    dense_milliseconds: float
    slowdown: float
    machine: str

    def __str__(self) -> str:
        """Return the figures as two lines."""
        return (
            f"DECODE of {self.weights} weights, {self.decoded_bytes:,} bytes in each run, {self.most_at_once:,} at "
            f"once; outputs equal the dense file's bit for bit (flash {self.dense_bytes:,} bytes, arena "
            f"{self.dense_arena_bytes:,})\na run in this interpreter on {self.machine}: {self.milliseconds:.3g} ms, "
            f"dense {self.dense_milliseconds:.3g} ms ({self.slowdown:.2f} x as long); a chip's figures are others"
        )


def require_right_tables(file: TFLiteFile, subject: str) -> None:
    """Refuse a file with a look-up table that TensorFlow Lite Micro reads as another.

    Raises:
        FlatbufferError: a record is damaged.
        ExportError: a table is read otherwise than it was written.
    """
    for each in decoded_tensors(file.model, subject):
        if each.why_wrong:
            raise ExportError(
                f"weight '{each.name}' of {subject}",
                "its look-up table must be read by TensorFlow Lite Micro as it was written",
                each.why_wrong,
                "Compress it with tables along the axis of its scales (per_channel), or export with target='mcu'.",
            )


def beside_dense(
    session: MicroSession,
    file: TFLiteFile,
    dense: TFLiteFile,
    stored: Sequence[NDArray[np.generic]],
    got: Sequence[NDArray[np.generic]],
    subject: str,
    limits: Limits | None,
) -> Decoding:
    """Return what the records of a file cost and save.

    Args:
        session: of the file, which has run.
        file: it.
        dense: the file with the same weights dense.
        stored: an array [samples, ...] for each input, in the session's order.
        got: what the file answered.
        subject: what errors call it.
        limits: what a file may take here.

    Raises:
        ExportError: the dense file answers otherwise.
    """
    names, outputs = list(session.inputs), list(session.outputs)
    with MicroSession(dense, f"{subject}, its weights dense", limits=limits) as other:
        for name, own, wanted in zip(outputs, got, other.run(stored, names, outputs), strict=True):
            if wrong := int(np.count_nonzero(own != wanted)):
                raise ExportError(
                    f"output '{name}' of {subject} (TFLM)",
                    "must be that of the same weights stored dense",
                    f"{wrong} of {own.size} values differ",
                    "Report the file to tflite-micro; DECODE gives other weights.",
                )
        arena = other.arena()[0]
        for one in (session, other):
            one.feed([values[: one.batch_size] for values in stored], names)
            one.invoke()
        both = [session, other]
        times = 1e3 * time_in_turn(
            [one.invoke for one in both],
            ROUNDS,
            seconds=SECONDS,
            fewest=FEWEST,
            clock=lambda: sum(one.ran for one in both),
        )
    by_encoded: dict[tuple[int, int], int] = {}
    at_once: dict[tuple[int, int], int] = {}
    found = decoded_tensors(file.model, subject)
    for each in found:
        size = int(np.prod(each.shape)) * each.dtype.itemsize
        by_encoded[each.subgraph, each.encoded] = size
        at_once[each.subgraph, each.operator] = at_once.get((each.subgraph, each.operator), 0) + size
    return Decoding(
        weights=len(by_encoded),
        decoded_bytes=sum(at_once.values()),
        most_at_once=max(at_once.values()),
        dense_bytes=len(dense.content),
        dense_arena_bytes=arena,
        milliseconds=float(np.median(times[:, 0])),
        dense_milliseconds=float(np.median(times[:, 1])),
        slowdown=float(np.median(times[:, 0] / times[:, 1])),
        machine=platform.machine(),
    )
