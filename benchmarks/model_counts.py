"""Counts of `kp.report` against others: parameters, multiplications and peak activation memory of `keras.applications`.

    python -m benchmarks.model_counts [--only NAME ...] [--size 96]

- Parameters: against Keras's own `count_params()`.
- MACs: against TensorFlow's profiler, half of its floating-point operations of convolutions and matrix products. What
  it counts of activations, biases and normalisations is left out on both sides. It also leaves out convolutions with
  groups, whose shapes it does not know; so ConvNeXt is held against a count by the shapes of layers: kernel times
  positions of the result.
- Peak activation memory: against the arena of LiteRT's reference kernels, without XNNPACK, for the file that
  TensorFlow's converter makes at batch 1: from the first to the last byte of all tensors that are no constants. This is
  another executor: it fuses activations, normalisations and padding into convolutions, and keeps inputs to the end. So
  it says whether the figure is plausible, and is held to nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import math
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from benchmarks.timing import machine, print_table, verdict
from keras_prune.keras_seam import layers_in
from keras_prune.structured import count

TOLERANCE = 0.01
NAMES = (
    "VGG16", "ResNet50", "ResNet50V2", "InceptionV3", "Xception", "DenseNet121", "NASNetMobile", "MobileNet",
    "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny",
)  # fmt: skip
COLUMNS = [
    "model",
    "parameters",
    "of Keras's",
    "MACs",
    "of the profiler's",
    "by shapes",
    "peak bytes",
    "arena",
    "ratio",
]
PRODUCTS = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2", "Conv2DBackpropInput", "Conv3D")


def profiled_macs(model: keras.Model) -> float:
    """TensorFlow's own count of products with kernels and of matrices: half of its floating-point operations."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
    graph = convert_variables_to_constants_v2(function).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    options["account_type_regexes"] = [f"^{kind}$" for kind in PRODUCTS]
    return float(tf.compat.v1.profiler.profile(graph, options=options, cmd="op").total_float_ops / 2)


def macs_by_shapes(model: keras.Model) -> int:
    """The size of each kernel times the positions of the result, for models whose layers run once.

    A kernel of a convolution is `[window, channels in a group, filters]`, so groups need no care.
    """
    total = 0
    for layer in layers_in(model, include_self=False):
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
            kernel = getattr(layer, name, None)
            if kernel is not None and len(kernel.shape) > 1:
                shape = layer.output.shape[1:-1]
                total += math.prod(kernel.shape) * math.prod(size for size in shape if size is not None)
    return total


def arena_bytes(model: keras.Model) -> int:
    """The memory that LiteRT's reference kernels take for tensors, at batch 1."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from tflite_export.file import flatbuffer

    image = keras.Input(model.input_shape[1:], batch_size=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, model(image)))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the signature
        content = converter.convert()
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    file = flatbuffer.read(content)
    constants = {
        number
        for number, tensor in enumerate(file.subgraphs[0].tensors)
        if (data := file.buffers[tensor.buffer].data) is not None and len(data)
    }
    ranges = []
    for detail in interpreter.get_tensor_details():
        if detail["index"] in constants:
            continue
        with contextlib.suppress(ValueError):  # fused into others: it has no place
            values = interpreter.tensor(detail["index"])()
            start = values.__array_interface__["data"][0]
            ranges.append((start, start + values.nbytes))
    return max(stop for _, stop in ranges) - min(start for start, _ in ranges)


def run(name: str, size: int) -> tuple[list[str], float]:
    """One row, and the larger relative error of parameters and multiplications."""
    kind: Any = getattr(keras.applications, name)
    model = kind(weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None)
    total = count(model).total
    profiled, by_shapes = profiled_macs(model), macs_by_shapes(model)
    expected = by_shapes if name.startswith("ConvNeXt") else profiled
    arena = arena_bytes(model)
    row = [
        name,
        f"{total.params:,}",
        f"{total.params / model.count_params():.4f}",
        f"{total.macs:,}",
        f"{total.macs / profiled:.4f}",
        f"{total.macs / by_shapes:.4f}",
        f"{total.peak:,}",
        f"{arena:,}",
        f"{total.peak / arena:.2f}",
    ]
    return row, max(abs(total.params / model.count_params() - 1), abs(total.macs / expected - 1))


def main() -> int:
    """Print the table; 0 if parameters and multiplications are within 1 %."""
    parser = argparse.ArgumentParser(description="Counts against others")
    parser.add_argument("--only", nargs="*", default=list(NAMES), help="names of keras.applications")
    parser.add_argument("--size", type=int, default=96, help="height and width of the input")
    args = parser.parse_args()
    rows, errors = [], []
    for name in args.only:
        row, error = run(name, args.size)
        print("  ".join(row), flush=True)
        rows.append(row)
        errors.append(error)
        keras.utils.clear_session()
        gc.collect()
    caption = f"largest error of parameters and MACs {max(errors):.4f}, asked {TOLERANCE}: "
    caption += f"{verdict(max(errors), TOLERANCE)}\n" + machine("tensorflow", "keras", "ai-edge-litert")
    print_table(f"Counts, {args.size} x {args.size}", COLUMNS, rows, caption)
    return int(max(errors) > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
