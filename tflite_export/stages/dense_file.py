"""The stages before the plan: rewrite where that makes the model run sparse, and convert to a dense file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_prune.devices import Device
from tflite_export.convert.converter import Converted, convert
from tflite_export.convert.number_types import NumberType
from tflite_export.edits.ranks import lower_pooled_outputs, raise_scalar_constants
from tflite_export.file import flatbuffer
from tflite_export.file.tflite_file import Change
from tflite_export.model import precision
from tflite_export.model.fresh_state import fresh_state
from tflite_export.model.inputs import Inputs
from tflite_export.model.signature import Signature
from tflite_export.plan.zeros import kernels_of
from tflite_export.rewrites.heads import HeadsPass
from tflite_export.rewrites.mirror import MirrorPass
from tflite_export.rewrites.pooling import PoolingPass
from tflite_export.rewrites.rewrite import Pass, rewrite_model
from tflite_export.rewrites.unread import NAME as UNREAD
from tflite_export.rewrites.unread import UnreadPass
from tflite_export.runtimes.sessions import in_batches
from tflite_export.source.source import KerasSource, Source
from tflite_export.xnnpack.clusters import analyse
from tflite_export.xnnpack.prediction import Analysis

__all__ = ["SAMPLES", "WORTH_TRYING", "DenseFile", "make_dense_file", "may_run_sparse"]

WORTH_TRYING = 1 / 3
"""Share of zeros in a model's 1x1 convolutions from which it is rewritten and converted to see what becomes of it.

Sparse inference needs more than 2/3 (XNNPACK `src/subgraph.c`), of those convolutions only that it reaches.
"""
SAMPLES = 4
"""Inputs that rewrites are compared on; the file is verified on all."""


@dataclass(frozen=True, eq=False)
class DenseFile:
    """A dense file, and what was done to the model before.

    Args:
        converted: the file.
        kernels: the kernels of the model that was converted, in TFLite's layout, by path.
        changes: what rewrites changed, in the model and in the file.
        notes: for the report.
    """

    converted: Converted
    kernels: Mapping[str, NDArray[Any]]
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def may_run_sparse(target: Device, kind: NumberType) -> bool:
    """Return whether XNNPACK's sparse inference may meet a file: it is on the device, or on some that it stands for."""
    return target.clusters is not None and kind.name in (None, "float16")


def make_dense_file(source: Source, signature: Signature, kind: NumberType, data: Inputs, target: Device) -> DenseFile:
    """Convert a model, rewritten where its zeros and the target let that pay.

    Args:
        source: what is exported.
        signature: of it, its sizes fixed as the file's are to be.
        kind: number type of the file.
        data: samples: rewrites are compared on a few, and some number types take their ranges from all.
        target: the device.

    Raises:
        ExportError: the converter fails, or a rewrite changes the model's answers.
    """
    tried: DenseFile | None = None
    clusters = target.clusters if may_run_sparse(target, kind) else None
    if isinstance(source, KerasSource) and clusters is not None and _is_worth_trying(source.keras):
        passes = (UnreadPass(clusters.zeros_from), PoolingPass(), HeadsPass(), MirrorPass())
        # What nothing reads are zeros as well: too few may be left where it is gone.
        for chosen in (passes, passes[1:]):
            tried = _rewritten(source, signature, kind, data, chosen)
            found = analyse(file := tried.converted.file.model, assume_sparse=_pruned_pointwise(file))
            if found.on and not found.dangers:
                return tried
            if all(change.rewrite != UNREAD for change in tried.changes):
                break
    converted = source.convert(signature, None, kind, data)
    kernels = kernels_of(source.model) if source.model is not None else {}
    return DenseFile(converted, kernels, notes=() if tried is None or not tried.changes else (_why_not(found),))


def _rewritten(
    source: KerasSource, signature: Signature, kind: NumberType, data: Inputs, passes: Sequence[Pass]
) -> DenseFile:
    made: dict[str, Any] = {}

    def make() -> keras.Model:
        plain = source.plain()
        feeds = next(in_batches([array[: signature.batch or SAMPLES] for array in data.arrays], signature.batch))
        with precision.float32(plain), fresh_state(plain):
            result = rewrite_model(plain, passes, feeds)
        # The arrays, not the model: it is let go before the converter runs.
        made.update(changes=result.changes, refusals=result.refusals, kernels=kernels_of(result.model))
        return result.model

    converted = convert(make, signature, None, kind, data)
    file, edits = converted.file.edited(raise_scalar_constants, lower_pooled_outputs)
    converted = replace(converted, file=file)
    notes = tuple(f"not rewritten: {refusal.place}: {refusal.reason}" for refusal in made["refusals"])
    return DenseFile(converted, made["kernels"], made["changes"] + edits, notes)


def _is_worth_trying(model: keras.Model) -> bool:
    pointwise = [kernel for kernel in kernels_of(model).values() if kernel.ndim == 4 and kernel.shape[1:3] == (1, 1)]
    weights = sum(kernel.size for kernel in pointwise)
    return sum(kernel.size - int(np.count_nonzero(kernel)) for kernel in pointwise) > WORTH_TRYING * weights


def _pruned_pointwise(file: Any) -> set[tuple[int, int]]:
    """Return (subgraph, tensor) of the 4-D constants with 1x1 windows that hold zeros."""
    places = set()
    for number, subgraph in enumerate(file.subgraphs):
        for index, tensor in enumerate(subgraph.tensors or []):
            values = flatbuffer.constant(file, tensor)
            pointwise = values is not None and values.ndim == 4 and values.shape[1:3] == (1, 1)
            if pointwise and values is not None and values.dtype.kind == "f" and (values == 0).any():
                places.add((number, index))
    return places


def _why_not(found: Analysis) -> str:
    if found.dangers:
        danger = found.dangers[0]
        return f"not rewritten for sparse inference, which would answer wrongly: {danger.subject}: {danger.rule}"
    reasons = "; ".join(cluster.reason for cluster in found.clusters) or "no 1x1 convolution is where it begins"
    return f"not rewritten for sparse inference, which would stay off: {reasons}"
