"""The padding of convolutions: which PAD one takes in, and whether it is what sparse inference asks for."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.xnnpack.reasons import Reason
from tflite_export.xnnpack.subgraphs import Graph
from tflite_export.xnnpack.verdicts import Role, Verdict, refuse

__all__ = ["MIRRORED", "SAME", "Pads", "fused_padding", "padded", "whole_numbers"]

SAME = schema.Padding.SAME
MIRRORED = (
    "export the Keras model: the mirror rewrite makes the padding even once more than 2/3 of the weights are zero"
)
"""The cure for padding that an exact rewrite makes equal on both sides: `tflite_export.rewrites.mirror`."""
Pads = tuple[int, int, int, int]
"""Top, bottom, left, right."""


def fused_padding(graph: Graph, position: int) -> tuple[int, Pads] | None:
    """Return the convolution that takes in a PAD, and the padding; None where none does.

    It does where it is the PAD's only reader, pads nothing at stride 2 itself, and the PAD adds zeros to height and
    width only.
    """
    output = graph.output(position)
    if graph.names[position] != "PAD" or output is None or output in graph.outputs:
        return None
    readers = graph.consumers.get(output, [])
    paddings = whole_numbers(graph, position, 1)
    source = graph.input(position, 0)
    if len(readers) != 1 or paddings is None or paddings.size != 8 or source is None:
        return None
    reader = readers[0]
    if graph.names[reader] not in ("CONV_2D", "DEPTHWISE_CONV_2D") or graph.inputs(reader).count(output) != 1:
        return None
    batch, rows, columns, channels = ([int(side) for side in pair] for pair in paddings.reshape(4, 2))
    options = graph.operators[reader].builtinOptions
    strided = max(getattr(options, "strideH", 0), getattr(options, "strideW", 0)) > 1
    if any(batch + channels) or min(rows + columns) < 0 or (strided and getattr(options, "padding", SAME) == SAME):
        return None
    return reader, (rows[0], rows[1], columns[0], columns[1])


def padded(
    role: Role,
    wanted: int,
    padding: int,
    stride: tuple[int, int],
    kernel: tuple[int, ...],
    fused: Pads,
    image: tuple[int, ...],
) -> Verdict:
    """Return the role, if the padding is `wanted` on each side.

    Args:
        role: of the convolution, if so.
        wanted: zeros on each side.
        padding: a `schema.Padding`.
        stride: down and across.
        kernel: its height and width.
        fused: padding of a PAD before it that becomes its own.
        image: shape of the map, [batch, height, width, channels].
    """
    layer = f"ZeroPadding2D({wanted}) before it and padding='valid'"
    pads = fused
    if padding == SAME:
        # XNNPACK keeps 'same' as a flag at stride 2, and looks at explicit padding only.
        if max(stride) > 1:
            even = image[1] % 2 == 0 or image[2] % 2 == 0
            return refuse(Reason.PADDING, f"padding 'same' at stride {max(stride)}", MIRRORED if even else layer)
        before, after = (kernel[0] - 1) // 2, kernel[0] - 1 - (kernel[0] - 1) // 2
        pads = (fused[0] + before, fused[1] + after, fused[2] + before, fused[3] + after)
    if pads == (wanted,) * 4:
        return Verdict(role)
    if not any(pads):
        return refuse(Reason.PADDING, f"no padding; it must be {wanted} on each side", layer)
    shown = f"(({pads[0]},{pads[1]}),({pads[2]},{pads[3]}))"
    mirrored = max(stride) > 1 and (pads[0], pads[2]) == (wanted - 1,) * 2 and (pads[1], pads[3]) == (wanted,) * 2
    return refuse(Reason.PADDING, f"padding {shown}; it must be {wanted} on each side", MIRRORED if mirrored else layer)


def whole_numbers(graph: Graph, position: int, slot: int) -> NDArray[Any] | None:
    """Return the values of a constant input, where they are whole numbers."""
    values = graph.values(graph.input(position, slot))
    return values if values is not None and values.dtype.kind == "i" else None
