"""What LiteRT.js does not take: types of inputs and outputs, and free sizes, which are fixed in the file first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import Change, TFLiteFile
from tflite_export.runtimes.opening import Opener, open_own

__all__ = ["TYPES", "web_refusal", "with_fixed_sizes"]

TYPES: dict[int, type[np.generic]] = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.UINT8: np.uint8,
}
"""The types of inputs and outputs that LiteRT.js 2.5.3 has (`src/datatypes.ts`)."""


def with_fixed_sizes(
    file: TFLiteFile | bytes,
    batch: int = 1,
    subject: str = "the file",
    feeds: Mapping[str, NDArray[Any]] | None = None,
    *,
    open_file: Opener = open_own,
) -> bytes:
    """Return the bytes of a file with its free sizes fixed, since LiteRT.js does not resize.

    Where only the batch is free, the first dimension of tensors of the main graph is set. Where other sizes are free,
    the file is run in LiteRT on the feeds, and each tensor gets the shape that it has then. A file without free sizes
    is returned as it is.

    Args:
        file: the file, or its bytes.
        batch: what to fix the batch to.
        subject: what to call it in errors.
        feeds: arrays [batch, ...] by input: what to fix other sizes to.
        open_file: loads the file into LiteRT, for such a run: `open_foreign` for a file of unknown origin.

    Raises:
        ExportError: another dimension than the batch is free, and there are no feeds.
    """
    file = TFLiteFile.of(file, subject)
    graph = file.model.subgraphs[0]
    free = [
        (index, tensor)
        for index, tensor in enumerate(graph.tensors)
        if tensor.shapeSignature is not None and (np.asarray(tensor.shapeSignature) < 0).any()
    ]
    if not free:
        return file.content
    others = [index for index in graph.inputs if (np.asarray(_signature(graph.tensors[index]))[1:] < 0).any()]
    shapes = {index: [batch, *tensor.shape[1:]] for index, tensor in free if tensor.shapeSignature[0] < 0}
    if others and feeds is None:
        tensor = graph.tensors[others[0]]
        raise ExportError(
            f"{subject}, input '{text(tensor.name)}'",
            "only its batch may be free in WebAssembly where no inputs are given",
            list(map(int, tensor.shapeSignature)),
            "Give data, or export the model with fixed sizes: shapes={...}.",
        )
    if others and feeds is not None:
        with open_file(file, subject, delegate=False) as session:
            session.feed(list(feeds.values()), list(feeds))
            session.invoke()
            ran = session.tensor_shapes()
        shapes = {index: list(ran[index]) for index, _ in free}

    def fix(model: Any) -> tuple[Change, ...]:
        changes = []
        for index in (index for index, _ in free if index in shapes):
            tensor = model.subgraphs[0].tensors[index]
            tensor.shape, tensor.shapeSignature = np.array(shapes[index], dtype=np.int32), None
            changes.append(Change("fix_sizes", text(tensor.name), f"free -> {shapes[index]}"))
        return tuple(changes)

    return file.edited(fix)[0].content


def _signature(tensor: Any) -> Any:
    return () if tensor.shapeSignature is None else tensor.shapeSignature


def web_refusal(file: TFLiteFile | bytes, subject: str = "the file") -> str | None:
    """Return why LiteRT.js cannot run a file, or None where it can."""
    graph = TFLiteFile.of(file, subject).model.subgraphs[0]
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        if tensor.type not in TYPES:
            return (
                f"LiteRT.js takes float32, int32 and uint8 inputs and outputs, and '{text(tensor.name)}' is "
                f"{flatbuffer.TYPE_NAMES[tensor.type]}"
            )
    return None
