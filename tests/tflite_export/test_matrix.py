"""Kinds of layers x where their zeros lie x number types x delegate: right in the runtime, or refused with a reason."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import Encoding, ExportError, export
from tflite_export.convert.number_types import resolve_number_type
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.targets import Kernel, resolve_target

ZEROS = ("none", "half", "most", "blocks4", "blocks16", "two_of_four", "all")
NUMBERS = (None, "float16", "dynamic", "int8")


def keep(zeros, shape, rng):
    """Which weights of a Keras kernel [..., in, out] stay: blocks and groups lie along the inputs."""
    size, matrix = int(np.prod(shape)), (int(np.prod(shape[:-1])), shape[-1])
    if zeros in ("none", "all"):
        return np.full(shape, zeros == "none")
    if zeros in ("half", "most"):
        return (rng.permutation(size) >= round({"half": 0.5, "most": 0.9}[zeros] * size)).reshape(shape)
    group = {"blocks4": 4, "blocks16": 16, "two_of_four": 4}[zeros]
    if matrix[0] % group:  # a depthwise kernel has nine inputs to a channel
        return keep("most", shape, rng)
    if zeros == "two_of_four":
        order = rng.permuted(np.tile(np.arange(4), (size // 4, 1)), axis=1).reshape(matrix[1], -1).T
        return (order < 2).reshape(shape)
    blocks = (rng.permutation(size // group) >= round(0.9 * (size // group))).reshape(-1, matrix[1])
    return np.repeat(blocks, group, axis=0).reshape(shape)


def squeeze_and_excite(x, name):
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name=f"{name}_stem")(x)
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Conv2D(32, 1, activation="relu", name=f"{name}_squeeze")(scale)
    return layers.Multiply()([x, layers.Conv2D(16, 1, activation="sigmoid", name=f"{name}_excite")(scale)])


# kind: (shape of a sample, one branch)
KINDS = {
    "dense": ((64,), lambda x, name: layers.Dense(64, activation="relu", name=name)(x)),
    "conv1x1": ((6, 6, 32), lambda x, name: layers.Conv2D(64, 1, name=name)(x)),
    "conv3x3": ((6, 6, 16), lambda x, name: layers.Conv2D(32, 3, strides=2, padding="same", name=name)(x)),
    "depthwise": ((6, 6, 128), lambda x, name: layers.DepthwiseConv2D(3, name=name)(x)),
    "lstm": ((3, 32), lambda x, name: layers.LSTM(32, name=name)(x)),
    "gru": ((3, 32), lambda x, name: layers.GRU(32, name=name)(x)),
    "attention": ((5, 64), lambda x, name: layers.MultiHeadAttention(2, 32, name=name)(x, x)),
    "squeeze": ((6, 6, 16), squeeze_and_excite),
}


@pytest.fixture(scope="module")
def models():
    """For each kind a model with a branch, and an output, for each place that zeros may have."""
    made = {}

    def build(kind):
        if kind not in made:
            keras.utils.set_random_seed(7)
            rng = np.random.default_rng(7)
            shape, branch = KINDS[kind]
            x = keras.Input(shape, name="x")
            model = keras.Model(x, {zeros: branch(x, zeros) for zeros in ZEROS})
            for variable in model.trainable_variables:
                weight = variable.numpy()
                if "bias" in variable.path:
                    variable.assign(rng.normal(size=weight.shape) * 0.1)
                else:
                    variable.assign(weight * keep(zeros_of(variable.path), weight.shape, rng))
            made[kind] = model, rng.normal(size=(24, *shape)).astype("float32")
        return made[kind]

    return build


MATRIX = ("dense", "lstm", "gru", "attention")
"""Kinds whose kernels FULLY_CONNECTED reads."""
FOUND = {
    # (reader, number type): what a weight of each kind of zeros may be stored as, if its zeros save anything
    ("matrix", None): {Encoding.BLOCK, Encoding.DENSIFY},
    ("matrix", "float16"): {Encoding.DENSIFY},
    ("matrix", "dynamic"): set(),
    ("matrix", "int8"): {Encoding.BLOCK16},
    ("window", None): {Encoding.DENSIFY},
    ("window", "float16"): {Encoding.DENSIFY},
    ("window", "dynamic"): set(),
    ("window", "int8"): {Encoding.DENSIFY},
}
SAVES = {"matrix": ("blocks16", "all"), "window": ("most", "blocks4", "blocks16", "all")}
"""Zeros that save bytes in every number type that can be stored sparse at all."""
REASON = (
    r"^(no zeros"
    r"|stored sparse, it would take \d+% of its dense bytes"
    r"|read by (FULLY_CONNECTED|CONV_2D|DEPTHWISE_CONV_2D) \(input 1, in float32\), not known to accept an int8 weight"
    r"|a 1x1 convolution on a 1x1 map, which ARM and WebAssembly get wrong when sparse"
    r"|its buffer is shared by 2 tensors of different shapes or types"  # two of zeros only, in int8
    r"|shape \[.*\]: too small)"
)


def zeros_of(path):
    return next((zeros for zeros in sorted(ZEROS, key=len, reverse=True) if path.startswith(zeros)), None)


def answers(path, model, data, delegate):
    session = LiteRTSession(path.read_bytes(), delegate=delegate)
    return dict(zip(sorted(ZEROS), session.run([data], ["x"], sorted(ZEROS)), strict=True))


@pytest.mark.parametrize("quantize", NUMBERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_is_right_or_refused(kind, quantize, models, tmp_path):
    model, data = models(kind)
    path = tmp_path / "model.tflite"
    if kind in ("lstm", "gru") and quantize == "int8":
        with pytest.raises(ExportError, match=r"takes no loops: .* Build its recurrent layers with unroll=True"):
            export(model, path, data=data, quantize=quantize)
        assert not path.exists()
        return
    report = export(model, path, data=data, quantize=quantize, optimize="size", samples=6)

    kernels = [line for line in report.lines if "kernel" in line.name]
    reader = "matrix" if kind in MATRIX else "window"
    assert {zeros_of(line.name) for line in kernels} == set(ZEROS)
    for line in kernels:
        zeros = zeros_of(line.name)
        if line.encoding is Encoding.DENSE:
            assert re.match(REASON, line.reason), line
            assert zeros not in SAVES[reader] or not FOUND[reader, quantize] or "_stem" not in line.name
        else:
            # The converter quantizes no weight of fewer than 1024 elements: it is read as in a float32 file.
            is_float = quantize == "dynamic" and line.dense_bytes == 4 * np.prod(line.shape)
            assert line.encoding in FOUND[reader, None if is_float else quantize], line
            assert zeros != "none"
            assert line.stored_bytes < line.dense_bytes
    stored = {zeros_of(line.name) for line in kernels if line.encoding is not Encoding.DENSE}
    assert stored >= set(SAVES[reader] if FOUND[reader, quantize] else ())

    number = resolve_number_type(quantize)
    verification = report.verification
    assert [(run.delegate, run.threads) for run in verification.runs] == [(d, t) for d in (True, False) for t in (1, 4)]
    for run in verification.runs:
        assert {output.name for output in run.outputs} == set(ZEROS)
        assert all(output.max_relative <= number.tolerance for output in run.outputs)
        if quantize is not None and stored:
            assert all(output.encoding <= number.encoding_tolerance for output in run.outputs)
    # And by another way than the verification's: a wrong kernel is off by more than half of what it computes.
    wanted = {name: np.asarray(value) for name, value in model(data[:3], training=False).items()}
    for delegate in (True, False):
        for name, got in answers(path, model, data[:3], delegate).items():
            assert np.abs(got - wanted[name]).max() <= number.tolerance * np.abs(wanted[name]).max(), name


@pytest.mark.parametrize("kind", ["dense", "lstm", "attention"])
@pytest.mark.parametrize("quantize", [None, "float16"])
@pytest.mark.parametrize("target", ["any", "x86"])
def test_the_float_kernels_are_right_in_both_float_types(kind, quantize, target, models, tmp_path):
    """A float16 weight behind 1x4 blocks would be NaN: its blocks are written in float32."""
    model, data = models(kind)
    report = export(model, tmp_path / "model.tflite", data=data, quantize=quantize, target=target, samples=6)
    encodings = {}
    for line in report.lines:
        if "kernel" in line.name:
            encodings.setdefault(zeros_of(line.name), set()).add(line.encoding)
    assert Encoding.BLOCK in encodings["blocks4"]
    assert Encoding.BLOCK in encodings["blocks16"]
    assert not encodings["most"] & {Encoding.BLOCK, Encoding.CSR}
    if kind == "dense" and target == "x86":
        assert encodings["all"] & {Encoding.BLOCK, Encoding.CSR}
    assert report.verification.max_relative < (1e-5 if quantize is None else 1e-3)


def test_the_csr_kernel_is_right(models, tmp_path):
    model, data = models("dense")
    only_csr = dataclasses.replace(
        resolve_target("x86"), kernels=(Kernel(Encoding.CSR, "this test", pays_from=(0.0, 0.0)),)
    )
    report = export(model, tmp_path / "model.tflite", data=data, target=only_csr, samples=6)
    assert {line.encoding for line in report.lines if "kernel" in line.name} == {Encoding.CSR, Encoding.DENSE}
    assert report.verification.max_relative < 1e-5


def test_a_recurrent_layer_that_is_unrolled_is_quantized(tmp_path):
    keras.utils.set_random_seed(1)
    x = keras.Input((3, 32))
    model = keras.Model(x, layers.LSTM(32, unroll=True)(x))
    rng = np.random.default_rng(0)
    kernel = model.layers[1].cell.kernel
    kernel.assign(kernel.numpy() * keep("blocks16", kernel.shape, rng))
    data = rng.normal(size=(40, 3, 32)).astype("float32")
    report = export(model, tmp_path / "model.tflite", data=data, quantize="int8", optimize="size")
    assert Encoding.BLOCK16 in {line.encoding for line in report.lines}
    assert report.verification.max_relative < 0.1


def test_a_quantized_transposed_convolution_is_stored_behind_densify(tmp_path):
    keras.utils.set_random_seed(1)
    x = keras.Input((6, 6, 16))
    model = keras.Model(x, layers.Conv2DTranspose(32, 3, strides=2)(x))
    rng = np.random.default_rng(0)
    kernel = model.layers[1].kernel
    kernel.assign(kernel.numpy() * keep("most", kernel.shape, rng))
    data = rng.normal(size=(20, 6, 6, 16)).astype("float32")
    for quantize in (None, "dynamic", "int8", "int16x8"):
        report = export(model, tmp_path / "model.tflite", data=data, quantize=quantize)
        assert Encoding.DENSIFY in {line.encoding for line in report.lines}
        assert report.verification.encoding in (None, 0.0)
    # XNNPACK answers NaN to this one in float16 behind a DENSIFY: it stays dense, and says why.
    report = export(model, tmp_path / "model.tflite", data=data, quantize="float16")
    assert [line.reason for line in report.lines if len(line.shape) == 4] == [
        "read by TRANSPOSE_CONV (input 1, in float32), not known to accept a float16 weight from DENSIFY"
    ]
