"""Inspect a .tflite, ours or another's, or a Keras model: which operators could run sparse, and what stops the rest."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import keras
import numpy as np

from keras_prune import strip
from keras_prune.devices import Device, Encoding
from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_table
from tflite_export.convert.converter import convert
from tflite_export.convert.workspace import in_turn
from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model import precision
from tflite_export.model.signature import signature_of
from tflite_export.rewrites.pooling import PoolingPass
from tflite_export.runtimes.litert import load
from tflite_export.source.loading import open_source
from tflite_export.source.source import build_like
from tflite_export.targets import resolve_target
from tflite_export.tflm.decode_operators import decoded_tensors, without_decode
from tflite_export.tflm.seen import note_of, with_records, wrong_tables
from tflite_export.xnnpack.clusters import analyse
from tflite_export.xnnpack.prediction import SPARSE_KERNELS, Cluster, Danger, OperatorVerdict
from tflite_export.xnnpack.stored_weights import WeightView, weight_views
from tflite_export.xnnpack.subgraphs import UNPACKING

__all__ = ["MODEL_FILES", "Inspection", "inspect"]

_READ_AS_STORED = [encoding.value for encoding in Encoding if encoding.has_kernel]


@dataclass(frozen=True)
class Inspection:
    """What can run in sparse inference, operator by operator.

    Args:
        subject: the file, or the model.
        target: name of the device in question.
        operators: one for each operator of the file.
        weights: one for each weight.
        clusters: parts of the graph that XNNPACK would switch to sparse inference together, or nearly.
        dangers: places where the file would give wrong results, on a processor with the sparse kernels or in TensorFlow
            Lite Micro.
        notes: remarks on the target and on custom operators.
        runs_sparse: whether sparse inference is predicted on the target.
        reads_kernels: whether the target has sparse kernels for Dense layers.
    """

    subject: str
    target: str
    operators: tuple[OperatorVerdict, ...]
    weights: tuple[WeightView, ...]
    clusters: tuple[Cluster, ...]
    dangers: tuple[Danger, ...]
    notes: tuple[str, ...]
    runs_sparse: bool
    reads_kernels: bool = True

    @property
    def is_wrong(self) -> bool:
        """Whether the file gives wrong results on the target."""
        return any(self.runs_sparse or danger.where != SPARSE_KERNELS for danger in self.dangers)

    @property
    def summary(self) -> str:
        """The result in one line."""
        kernels = [weight for weight in self.weights if weight.encoding in _READ_AS_STORED]
        if not kernels or not self.reads_kernels:
            return f"'{self.target}': {self._inference()}"
        zeros = sum(weight.sparsity * prod(weight.shape) for weight in kernels)
        share = zeros / sum(prod(weight.shape) for weight in kernels)
        several = f"{len(kernels)} weight{'s' * (len(kernels) != 1)}"
        return f"'{self.target}': sparse kernels of Dense layers read {several}, {share:.0%} zero; {self._inference()}"

    def _inference(self) -> str:
        """Return how much runs in sparse inference, or why nothing does."""
        if self.runs_sparse:
            on = [cluster for cluster in self.clusters if cluster.on]
            zeros, weights = sum(c.zeros for c in on), sum(c.weights for c in on)
            nodes = sum(len(cluster.nodes) for cluster in on)
            return (
                f"sparse inference of {nodes} of {len(self.operators)} operators, "
                f"{zeros / max(weights, 1):.0%} of their 1x1 weights zero"
                + (", BUT THE RESULTS ARE WRONG" if self.is_wrong else "")
            )
        if self.clusters:
            largest = max(self.clusters, key=lambda cluster: cluster.weights)
            why = f"XNNPACK has no sparse kernels there, though {largest.reason}" if largest.on else largest.reason
            return f"no sparse inference: {why}"
        return f"no sparse inference: {self._obstacles()}"

    def _obstacles(self) -> str:
        """Return the changes that would help, each with the number of operators that it would help."""
        cures = Counter(verdict.cure for verdict in self.operators if not verdict.eligible and verdict.cure)
        if not cures:
            return "no cluster of operators around a 1x1 convolution"
        return "what would help: " + "; ".join(
            f"{cure} ({count} operator{'s' * (count != 1)})" for cure, count in cures.most_common(3)
        )

    def __str__(self) -> str:
        """Return the tables."""
        several = len({verdict.subgraph for verdict in self.operators}) > 1
        shown = [verdict for verdict in self.operators if verdict.operator not in UNPACKING]
        operators = plain_table(
            self.subject,
            {
                "op": [f"{each.subgraph}/{each.index}" if several else str(each.index) for each in shown],
                "operator": [each.operator for each in shown],
                "output": [_short(each.name) for each in shown],
                "shape": ["?" if each.shape is None else "x".join(map(str, each.shape)) for each in shown],
                "eligible": ["yes" if each.eligible else "no" for each in shown],
                "rule": [each.rule for each in shown],
                "cure": [each.cure for each in shown],
            },
        )
        weights = plain_table(
            "weights",
            {
                "weight": [_short(weight.name) for weight in self.weights],
                "shape": ["x".join(map(str, weight.shape)) for weight in self.weights],
                "type": [weight.dtype for weight in self.weights],
                "stored as": [weight.encoding for weight in self.weights],
                "zeros": [f"{weight.sparsity:.1%}" for weight in self.weights],
                "bytes": [f"{weight.stored_bytes:,}" for weight in self.weights],
                "sparse inference": [f"{'yes' if weight.spmm else 'no'}: {weight.reason}" for weight in self.weights],
            },
        )
        hidden = len(self.operators) - len(shown)
        lines = [
            *([f"not shown: {hidden} DENSIFY and DEQUANTIZE operators"] if hidden else []),
            *(f"WRONG {d.where}: {d.subject}: {d.rule}. Cure: {d.cure}." for d in self.dangers),
            *self.notes,
            self.summary,
        ]
        return printable(operators + (weights if self.weights else "") + "\n".join(lines))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a JSON-able dictionary."""
        return {
            "subject": self.subject,
            "target": self.target,
            "summary": self.summary,
            "runs_sparse": self.runs_sparse,
            "operators": [_plain(verdict) for verdict in self.operators],
            "weights": [_plain(weight) for weight in self.weights],
            "clusters": [_plain(cluster) for cluster in self.clusters],
            "dangers": [_plain(danger) for danger in self.dangers],
            "notes": list(self.notes),
        }


MODEL_FILES = (".keras", ".h5", ".hdf5")


def inspect(
    source: keras.Model | str | os.PathLike[str] | bytes | Any, *, target: str | Device = "android"
) -> Inspection:
    """Report which operators of a file or a model can run in sparse inference, and what to change about the others.

    A file is read and checked, never run; it may come from any converter. A model is stripped and converted
    first, and treated as if its zeros were stored sparse.

    Args:
        source: a Keras or tf_keras model or the path of its file (.keras, .h5), the path of a .tflite, or its bytes.
        target: a device, as for `tflite_export.export`.

    Returns:
        Operators, weights and clusters; `str()` of it is a table.

    Raises:
        FlatbufferError: the file is damaged, or no .tflite.
        ExportError: the target is not known, the file cannot be read, or the model not converted.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> verdict = inspect(model, target="web").operators[0]
        >>> verdict.operator, verdict.eligible, verdict.rule
        ('FULLY_CONNECTED', False, 'a Dense layer on vectors has no sparse inference; it can be sparse in 1x4 blocks')
    """
    device = resolve_target(target)
    assumed = False
    notes: tuple[str, ...] = ()
    if isinstance(source, (bytes, bytearray, memoryview)):
        subject = "the file"
        file = TFLiteFile(bytes(source), subject)
    elif isinstance(source, (str, os.PathLike)) and not os.fspath(source).endswith(MODEL_FILES):
        subject = f"'{os.fspath(source)}'"
        file = TFLiteFile(load(source), subject)
    else:
        given = open_source(source)
        if given.model is None:
            raise ExportError(
                f"model '{given.name}'",
                "must have a graph of Keras layers to be inspected",
                type(source).__name__,
                "Export it by tflite_export.export, and inspect the file.",
            )
        file, notes = _convert(given.model)
        subject, assumed = f"model '{given.name}'", True
    records = decoded_tensors(file.model, subject)
    model = without_decode(file).model
    sparse = _with_zeros(model) if assumed else frozenset()
    analysis = analyse(model, assume_sparse=sparse)
    return Inspection(
        subject=subject,
        target=device.name,
        operators=analysis.operators,
        weights=with_records(weight_views(model, analysis), records),
        clusters=analysis.clusters,
        dangers=(*analysis.dangers, *wrong_tables(records)),
        notes=(*notes, *note_of(records), *_notes(model, device, assumed)),
        runs_sparse=analysis.on and device.clusters is not None and device.clusters.everywhere,
        reads_kernels=bool(device.kernels),
    )


def _short(name: str) -> str:
    """Return the first of the names that the converter joins where it fuses operators."""
    return name.split(";")[0]


@in_turn
def _convert(model: keras.Model) -> tuple[TFLiteFile, tuple[str, ...]]:
    plain = strip(model)
    build_like(plain, model)
    # As an export writes it: a mean over the whole map is one, however it is written.
    plain = PoolingPass().apply(plain).model
    with precision.float32(plain):
        converted = convert(lambda: plain, signature_of(model))
    return converted.file, converted.notes


def _with_zeros(model: Any) -> frozenset[tuple[int, int]]:
    """Return the dense float constants that hold a zero."""
    found = set()
    for number, subgraph in enumerate(model.subgraphs):
        for index, tensor in enumerate(subgraph.tensors or []):
            values = flatbuffer.constant(model, tensor)
            if values is not None and values.dtype == np.float32 and values.ndim > 1 and not values.all():
                found.add((number, index))
    return frozenset(found)


def _notes(model: Any, device: Device, assumed: bool) -> list[str]:
    notes = [device.note] if device.note else []
    if device.npu is None and not device.skips_zeros:
        also = "; single zeros and few values save flash as DECODE records" if device.decode else ""
        notes.append(f"no sparse inference on '{device.name}': prune whole channels instead{also}")
    if assumed:
        notes.append("a model, analysed as if its zeros were stored sparse; tflite_export.export decides which are")
    custom = Counter(
        text(model.operatorCodes[operator.opcodeIndex].customCode)
        for subgraph in model.subgraphs
        for operator in subgraph.operators or []
        if flatbuffer.operator_name(model, operator) == "CUSTOM"
    )
    notes += [f"custom operator '{name}' ({count}): runs only where it is registered" for name, count in custom.items()]
    return notes


def _plain(record: Any) -> dict[str, Any]:
    """Return a record's fields as JSON takes them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(record).items()}
