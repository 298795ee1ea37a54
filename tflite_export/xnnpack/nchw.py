"""Which operators XNNPACK can run in sparse inference, one by one, the rule that fails, and the cure.

Read in XNNPACK's `xnn_check_nchw_compatibility` and `xnn_subgraph_fusion` (`src/subgraph.c`) and in what
LiteRT's delegate hands over at all (`tflite/delegates/xnnpack/xnnpack_delegate.cc`, `Visit...Node`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from ai_edge_litert import schema_py_generated as schema

from tflite_export.xnnpack.padding import Pads, padded, whole_numbers
from tflite_export.xnnpack.reasons import Reason
from tflite_export.xnnpack.subgraphs import Graph
from tflite_export.xnnpack.verdicts import Role, Verdict, refuse

__all__ = ["CURES", "FUSED", "UNARY", "is_pointwise", "is_spatial", "judge"]

FUSED = frozenset(
    {
        schema.ActivationFunctionType.NONE,
        schema.ActivationFunctionType.RELU,
        schema.ActivationFunctionType.RELU_N1_TO_1,
        schema.ActivationFunctionType.RELU6,
    }
)
"""Activations that the delegate takes inside another operator."""
UNARY = frozenset(
    {
        "ABS",
        "CEIL",
        "COS",
        "ELU",
        "EXP",
        "FLOOR",
        "GELU",
        "HARD_SWISH",
        "LEAKY_RELU",
        "LOG",
        "LOGISTIC",
        "NEG",
        "RELU",
        "RELU6",
        "RELU_N1_TO_1",
        "ROUND",
        "RSQRT",
        "SIN",
        "SQRT",
        "SQUARE",
        "TANH",
    }
)
"""Operators of one input that the delegate takes."""
CURES = MappingProxyType(
    {
        "AVERAGE_POOL_2D": "GlobalAveragePooling2D where it covers the whole map, else a depthwise convolution",
        "CONCATENATION": "add instead of concatenating",
        "DIV": "multiply by the inverse",
        "MAX_POOL_2D": "a depthwise convolution of stride 2",
        "PAD": "padding that the convolution after it can take in: zeros, spatial, one reader, padding='valid'",
        "PRELU": "ReLU, ReLU6 or LeakyReLU",
        "RESHAPE": "pool with keepdims=True instead of reshaping",
        "SQUEEZE": "pool with keepdims=True instead of reshaping",
        "SUB": "add the negative",
        "TRANSPOSE_CONV": "UpSampling2D(interpolation='bilinear') and a 1x1 convolution",
    }
)
"""What to write instead of an operator that has no sparse form."""


def judge(graph: Graph, position: int, fused: Pads = (0, 0, 0, 0)) -> Verdict:
    """Judge an operator by itself.

    Args:
        graph: its subgraph.
        position: of the operator.
        fused: padding of a PAD before it that becomes its own: see `fused_padding`.
    """
    name = graph.names[position]
    rule = _RULES.get(name)
    if rule is None:
        return refuse(Reason.NO_SPARSE_FORM, f"{name} has no sparse form", CURES.get(name, ""))
    kinds = {graph.tensors[t].type for t in (graph.input(position, 0), graph.output(position)) if t is not None}
    if kinds != {schema.TensorType.FLOAT32}:
        return refuse(Reason.NUMBER_TYPE, "does not compute in float32", "export in float32, or with float16 weights")
    options = graph.operators[position].builtinOptions
    if getattr(options, "fusedActivationFunction", 0) not in FUSED:
        return refuse(
            Reason.FUSED_ACTIVATION,
            "XNNPACK does not take its fused activation",
            "ReLU, ReLU6, or an activation layer of its own",
        )
    return rule(graph, position, fused)


def is_pointwise(graph: Graph, position: int) -> bool:
    """Return whether an operator multiplies each pixel by a matrix: a 1x1 convolution, or a Dense on a map."""
    shape = graph.shape(graph.input(position, 1))
    if graph.names[position] == "FULLY_CONNECTED":
        return shape is not None and len(shape) == 2
    return graph.names[position] == "CONV_2D" and shape is not None and len(shape) == 4 and shape[1:3] == (1, 1)


def is_spatial(graph: Graph, position: int) -> bool:
    """Return whether a MEAN or SUM goes over height and width, and nothing else."""
    axes = whole_numbers(graph, position, 1)
    return axes is not None and sorted({int(axis) % 4 for axis in axes.reshape(-1)}) == [1, 2]


def _convolution(graph: Graph, position: int, fused: Pads) -> Verdict:
    options = graph.operators[position].builtinOptions or schema.Conv2DOptionsT()
    shape, image = graph.shape(graph.input(position, 1)), graph.shape(graph.input(position, 0))
    refusal = _weights(graph, position, shape, image)
    if refusal is not None:
        return refusal
    assert shape is not None
    assert image is not None
    channels, kernel, stride = shape[3], shape[1:3], (options.strideH, options.strideW)
    if channels != image[3]:
        return refuse(Reason.GROUPED, "grouped convolution", "groups=1, or a depthwise and a 1x1 convolution")
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return refuse(Reason.DILATED, "dilated", "dilation_rate=1")
    if kernel == (1, 1):
        if stride != (1, 1):
            return refuse(
                Reason.POINTWISE_STRIDE,
                f"1x1 convolution of stride {stride[0]}",
                "move the stride into the depthwise layer before it",
            )
        if any(fused):
            return refuse(
                Reason.POINTWISE_PADDING, "1x1 convolution with padding", "no padding before a 1x1 convolution"
            )
        return Verdict(Role.INSIDE)
    if kernel != (3, 3):
        return refuse(Reason.KERNEL_SIZE, f"{kernel[0]}x{kernel[1]} convolution", "a depthwise and a 1x1 convolution")
    if channels != 3:
        return refuse(
            Reason.CHANNELS,
            f"3x3 convolution of {channels} channels; only a first layer of 3 channels can be 3x3",
            "a depthwise and a 1x1 convolution",
        )
    if stride != (2, 2):
        return refuse(Reason.STRIDE, f"the first convolution has stride {stride[0]}; it must be 2", "strides=2")
    return padded(Role.STEM, 1, options.padding, stride, kernel, fused, image)


def _depthwise(graph: Graph, position: int, fused: Pads) -> Verdict:
    options = graph.operators[position].builtinOptions or schema.DepthwiseConv2DOptionsT()
    shape, image = graph.shape(graph.input(position, 1)), graph.shape(graph.input(position, 0))
    refusal = _weights(graph, position, shape, image)
    if refusal is not None:
        return refusal
    assert shape is not None
    assert image is not None
    kernel, stride = shape[1:3], (options.strideH, options.strideW)
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return refuse(Reason.DILATED, "dilated", "dilation_rate=1")
    if options.depthMultiplier != 1 or shape[3] != image[3]:
        return refuse(
            Reason.DEPTH_MULTIPLIER, f"depth multiplier {options.depthMultiplier}; it must be 1", "depth_multiplier=1"
        )
    if stride not in ((1, 1), (2, 2)):
        return refuse(Reason.STRIDE, f"stride {stride[0]}x{stride[1]}; it must be 1 or 2", "strides=1 or strides=2")
    if kernel not in ((3, 3), (5, 5)):
        return refuse(
            Reason.KERNEL_SIZE, f"{kernel[0]}x{kernel[1]} depthwise kernel; it must be 3x3 or 5x5", "kernel_size=3 or 5"
        )
    return padded(Role.INSIDE, kernel[0] // 2, options.padding, stride, kernel, fused, image)


def _weights(
    graph: Graph, position: int, shape: tuple[int, ...] | None, image: tuple[int, ...] | None
) -> Verdict | None:
    """Return why the weights keep a convolution from XNNPACK, or None."""
    if shape is None or image is None or len(shape) != 4 or len(image) != 4:
        return refuse(Reason.RANK, "its weights or its input are not of rank 4")
    weights = graph.input(position, 1)
    stored = graph.stored(weights)
    if stored is None:
        return refuse(Reason.COMPUTED_WEIGHTS, "its weights are computed while the file runs", "constant weights")
    if graph.tensors[stored.tensor].sparsity is not None and not stored.densified:
        return refuse(
            Reason.SPARSE_WITHOUT_DENSIFY, "its weights are sparse without a DENSIFY", "put a DENSIFY between"
        )
    assert weights is not None
    if graph.tensors[weights].type != schema.TensorType.FLOAT32:
        return refuse(
            Reason.QUANTIZED_WEIGHTS,
            "its weights are quantized; the sparse kernels compute in float",
            "export in float32 or float16",
        )
    if graph.stored(graph.input(position, 2)) is None:
        return refuse(Reason.NO_BIAS, "has no constant bias", "use_bias=True")
    return None


def _fully_connected(graph: Graph, position: int, fused: Pads) -> Verdict:
    options, weights = graph.operators[position].builtinOptions, graph.input(position, 1)
    stored = graph.stored(weights)
    if stored is None or weights is None:
        return refuse(Reason.COMPUTED_WEIGHTS, "its weights are computed while the file runs", "constant weights")
    if graph.tensors[weights].type != schema.TensorType.FLOAT32:
        return refuse(
            Reason.QUANTIZED_WEIGHTS,
            "its weights are quantized; the sparse kernels compute in float",
            "export in float32 or float16",
        )
    if graph.tensors[stored.tensor].sparsity is not None and not stored.densified:
        return refuse(Reason.SPARSE_FULLY_CONNECTED, "runs in the sparse FULLY_CONNECTED kernel, outside XNNPACK")
    if not getattr(options, "keepNumDims", False):
        # The delegate puts a reshape before it.
        return refuse(
            Reason.DENSE_ON_VECTORS, "a Dense layer on vectors has no sparse inference; it can be sparse in 1x4 blocks"
        )
    return Verdict(Role.INSIDE)


def _reduction(graph: Graph, position: int, fused: Pads) -> Verdict:
    image = graph.shape(graph.input(position, 0))
    if image is None or len(image) != 4:
        return refuse(Reason.RANK, "its input is not a 4-D map")
    if whole_numbers(graph, position, 1) is None:
        return refuse(Reason.COMPUTED_AXES, "its axes are computed while the file runs", "constant axes")
    return Verdict(Role.INSIDE | Role.END)


def _depth_to_space(graph: Graph, position: int, fused: Pads) -> Verdict:
    return Verdict(Role.END)


def _arithmetic(graph: Graph, position: int, fused: Pads) -> Verdict:
    tensors = graph.inputs(position)
    shapes = [graph.shape(tensor) for tensor in tensors]
    constant = [graph.stored(tensor) is not None for tensor in tensors]
    name = graph.names[position]
    for shape, fixed in zip(shapes, constant, strict=True):
        if shape is None or len(shape) != 4:
            rank = "unknown" if shape is None else len(shape)
            what = "the constant" if fixed else "an input"
            return refuse(
                Reason.RANK, f"{what} of {name} has rank {rank}; it must be 4", "give it the shape [1, 1, 1, channels]"
            )
    # XNNPACK measures the first input where either is constant.
    if any(constant) and shapes and sum(size != 1 for size in shapes[0] or ()) > 1:
        return refuse(
            Reason.CONSTANT_OPERAND,
            f"{name} of a map by a constant: XNNPACK takes a constant only beside one vector",
            "fold it into the convolution before it",
        )
    return Verdict(Role.INSIDE)


def _resize(graph: Graph, position: int, fused: Pads) -> Verdict:
    image = graph.shape(graph.input(position, 0))
    if image is None or len(image) != 4:
        return refuse(Reason.RANK, "its input is not a 4-D map")
    if min(image[1:3]) < 2:
        return refuse(Reason.SMALL_MAP, "resizes a map of one row or column", "resize a larger map")
    return Verdict(Role.INSIDE)


def _unary(graph: Graph, position: int, fused: Pads) -> Verdict:
    image = graph.shape(graph.input(position, 0))
    return (
        Verdict(Role.INSIDE)
        if image is not None and len(image) == 4
        else refuse(Reason.RANK, "its input is not a 4-D map")
    )


_RULES: MappingProxyType[str, Callable[[Graph, int, Pads], Verdict]] = MappingProxyType(
    {
        "ADD": _arithmetic,
        "CONV_2D": _convolution,
        "DEPTHWISE_CONV_2D": _depthwise,
        "DEPTH_TO_SPACE": _depth_to_space,
        "FULLY_CONNECTED": _fully_connected,
        "MEAN": _reduction,
        "MUL": _arithmetic,
        "RESIZE_BILINEAR": _resize,
        "SUM": _reduction,
        **dict.fromkeys(UNARY, _unary),
    }
)
