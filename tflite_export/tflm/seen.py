"""What `tflite_export.inspect` says of DECODE records, of whatever make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from keras_prune.devices import Encoding
from tflite_export.tflm.decode_operators import Decoded
from tflite_export.tflm.records import Form
from tflite_export.xnnpack.prediction import Danger
from tflite_export.xnnpack.reasons import Reason
from tflite_export.xnnpack.stored_weights import WeightView

__all__ = ["ENCODINGS", "note_of", "with_records", "wrong_tables"]

ENCODINGS = {Form.BITMASK: Encoding.BITMASK, Form.TABLE: Encoding.TABLE, Form.HUFFMAN: Encoding.HUFFMAN}
"""What each form is called."""


def with_records(views: Iterable[WeightView], records: Iterable[Decoded]) -> tuple[WeightView, ...]:
    """Return the weights of a file, those that DECODE makes as they are stored."""
    found = {(each.subgraph, each.output): each for each in records}
    return tuple(
        replace(view, encoding=ENCODINGS[each.record.form].value, stored_bytes=each.record.size)
        if (each := found.get((view.subgraph, view.tensor))) is not None
        else view
        for view in views
    )


def wrong_tables(records: Iterable[Decoded]) -> tuple[Danger, ...]:
    """Return the look-up tables that TensorFlow Lite Micro reads as others."""
    return tuple(
        Danger(
            each.subgraph,
            each.operator,
            f"DECODE of '{each.name}'",
            each.why_wrong,
            "compress it with tables along the axis of its scales (per_channel)",
            Reason.LOOK_UP_TABLE_AXIS,
            "in TensorFlow Lite Micro",
        )
        for each in records
        if each.why_wrong
    )


def note_of(records: Sequence[Decoded]) -> tuple[str, ...]:
    """Return a remark on what is decoded, if anything is."""
    if not records:
        return ()
    stored = {(each.subgraph, each.encoded): each for each in records}.values()
    dense = sum(prod(each.shape) * each.dtype.itemsize for each in stored)
    size = sum(each.record.size for each in stored)
    return (
        f"{len(stored)} weight{'s' * (len(stored) != 1)} in DECODE records, {size:,} bytes for {dense:,}: "
        "TensorFlow Lite Micro alone reads them; operators are listed without DECODE",
    )
