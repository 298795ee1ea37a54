"""The edit that shortens the names of tensors: a microcontroller's flash holds them, and no interpreter reads them."""

from __future__ import annotations

from typing import Any

from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import Change

__all__ = ["NAME", "shorten_names"]

NAME = "short names"


def shorten_names(model: Any) -> tuple[Change, ...]:
    """Shorten the names of tensors, in place; those of inputs and outputs stay.

    The converter names a result after every operation that it fused, divided by semicolons: some 200 characters. The
    first of them is kept.

    Args:
        model: the file's `ModelT`.

    Returns:
        One change for each tensor that has another name now.
    """
    changes = []
    for graph in model.subgraphs:
        borders = {int(index) for ends in (graph.inputs, graph.outputs) if ends is not None for index in ends}
        for index, tensor in enumerate(graph.tensors):
            first, _, others = (tensor.name or b"").partition(b";")
            if others and index not in borders:
                changes.append(Change(NAME, text(tensor.name), text(first)))
                tensor.name = first
    return tuple(changes)
