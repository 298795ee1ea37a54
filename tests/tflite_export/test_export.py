import dataclasses
import json
import os
from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers

from keras_prune import Gated, strip
from tflite_export import Encoding, ExportError, export, verify
from tflite_export.file import flatbuffer
from tflite_export.plan.plan import PORTABLE, PlanLine
from tflite_export.runtimes.litert import LiteRTSession


class TwoInputs(keras.Model):
    """A subclassed model that takes and gives a dictionary, and uses one layer twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(64, activation="relu")
        self.second = layers.Dense(32)

    def call(self, inputs):
        return {"b": self.second(self.first(inputs["u"])), "a": self.second(inputs["v"])}


def functional(shape, *stack, **input_arguments):
    x = y = keras.Input(shape, **input_arguments)
    for layer in stack:
        y = layer(y)
    return keras.Model(x, y)


def attention():
    x = keras.Input((8, 32))
    return keras.Model(x, layers.MultiHeadAttention(2, 16)(x, x))


def several():
    a, b = keras.Input((32,), name="zebra"), keras.Input((64,), name="ant")
    return keras.Model([a, b], [layers.Dense(32)(a), layers.Dense(16)(layers.Concatenate()([a, b]))])


def by_name():
    inputs = {"z": keras.Input((32,), name="z"), "a": keras.Input((64,), name="a")}
    return keras.Model(inputs, {"o": layers.Dense(32)(inputs["z"]), "k": layers.Dense(32)(inputs["a"])})


def nested():
    inner = keras.Sequential([keras.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(32)])
    x = keras.Input((64,))
    return keras.Model(x, [inner(x), layers.Dense(32)(x)])


def shared():
    layer, x = layers.Dense(64), keras.Input((64,))
    return keras.Model(x, layer(layers.ReLU()(layer(x))))


BLOCK, CSR, DENSE = Encoding.BLOCK, Encoding.DENSIFY, Encoding.DENSE
# name: (model, zeros in blocks, how the kernels are stored: Keras's order)
CASES = {
    "dense 1x4": (lambda: functional((64,), layers.Dense(64, activation="relu")), True, {BLOCK}),
    "dense single": (lambda: functional((64,), layers.Dense(64, activation="relu6")), False, {CSR}),
    "dense fused tanh": (lambda: functional((64,), layers.Dense(64, activation="tanh")), True, {BLOCK}),
    "dense on a sequence": (lambda: functional((7, 64), layers.Dense(64)), True, {BLOCK}),
    "sequential": (
        lambda: keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Softmax()]),
        True,
        {BLOCK},
    ),
    "conv": (lambda: functional((8, 8, 8), layers.Conv2D(16, 3, strides=2, padding="same")), False, {CSR}),
    "conv 1x1": (lambda: functional((8, 8, 16), layers.Conv2D(64, 1)), False, {CSR}),
    "conv and norm": (
        lambda: functional((8, 8, 8), layers.Conv2D(16, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU()),
        False,
        {CSR},
    ),
    "conv groups": (lambda: functional((8, 8, 16), layers.Conv2D(32, 3, groups=2)), False, {CSR}),
    "conv 1d": (lambda: functional((16, 8), layers.Conv1D(32, 3)), False, {CSR}),
    "conv 3d": (lambda: functional((4, 6, 6, 4), layers.Conv3D(16, 2)), False, {CSR}),
    "conv transpose": (lambda: functional((6, 6, 8), layers.Conv2DTranspose(16, 3, strides=2)), False, {CSR}),
    "depthwise": (lambda: functional((6, 6, 96), layers.DepthwiseConv2D(3)), False, {CSR}),
    "separable": (lambda: functional((6, 6, 64), layers.SeparableConv2D(32, 3)), False, {CSR}),
    "gates": (
        lambda: functional((8, 8, 8), Gated(layers.Conv2D(16, 3)), layers.Flatten(), Gated(layers.Dense(4))),
        False,
        {CSR},
    ),
    "embedding": (
        lambda: functional((6,), layers.Embedding(9, 64), layers.Flatten(), layers.Dense(8), dtype="int32"),
        False,
        {CSR},
    ),
    "lstm 1x4": (lambda: functional((5, 16), layers.LSTM(32)), True, {BLOCK}),
    "gru 1x4": (lambda: functional((5, 16), layers.GRU(32, return_sequences=True)), True, {BLOCK}),
    "bidirectional": (lambda: functional((5, 16), layers.Bidirectional(layers.LSTM(16))), True, {BLOCK}),
    "lstm single": (lambda: functional((5, 16), layers.LSTM(32)), False, {CSR}),
    "conv lstm": (lambda: functional((3, 5, 5, 4), layers.ConvLSTM2D(16, 3)), False, {CSR}),
    "attention": (attention, False, {CSR}),
    "einsum": (
        lambda: functional((5, 64), layers.EinsumDense("abc,cd->abd", (None, 32), bias_axes="d")),
        True,
        {BLOCK},
    ),
    "several inputs and outputs": (several, True, {BLOCK}),
    "inputs by name": (by_name, True, {BLOCK}),
    "nested": (nested, True, {BLOCK}),
    "shared": (shared, True, {BLOCK}),
    "head on one pixel": (
        lambda: functional(
            (4, 4, 16), layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(64, 1), layers.Flatten()
        ),
        False,
        {CSR},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sparse_file_answers_as_its_model(case, tmp_path, zero_out, inputs, operators):
    build, in_blocks, expected = CASES[case]
    model = zero_out(build(), blocks=in_blocks)
    data = inputs(model)
    path = tmp_path / "model.tflite"
    report = export(model, path, data=data if len(data) > 1 else data[0])

    paths = {variable.path for variable in model.trainable_variables if "bias" not in variable.path}
    kernels = [line for line in report.lines if line.name in paths and line.dense_bytes >= 1024]
    # Empty where the converter folds or splits a kernel, so that it is no longer known by its values.
    assert {line.encoding for line in kernels} <= expected
    assert {line.encoding for line in report.lines} - {DENSE} == expected - {DENSE}
    assert all(line.reason for line in report.lines)
    assert report.verification.samples == 5
    assert not report.verification.drawn
    assert report.verification.max_relative < 1e-5
    assert report.written.raw == path.stat().st_size
    assert (report.written.raw < report.dense.raw) == (expected != {DENSE})
    assert ("DENSIFY" in operators(path)) == (CSR in expected)

    # And once more by another way: by the names of the signature, against Keras.
    session = LiteRTSession(path.read_bytes())
    assert sorted(session.inputs) == sorted(tensor.name for tensor in model.inputs)
    outputs = model(data if len(data) > 1 else data[0], training=False) if case != "inputs by name" else None
    if outputs is not None:
        names = [f"output_{i}" for i in range(len(keras.tree.flatten(outputs)))]
        got = session.run(data, [tensor.name for tensor in model.inputs], names)
        for a, b in zip(got, keras.tree.flatten(outputs), strict=True):
            np.testing.assert_allclose(a, keras.ops.convert_to_numpy(b), atol=1e-5)


def test_a_subclassed_model_is_exported_by_the_shapes_it_was_built_with(tmp_path, zero_out):
    model = TwoInputs()
    data = {"v": np.ones((3, 64), "float32"), "u": np.full((3, 32), 0.5, "float32")}
    model(data)
    zero_out(model, blocks=True)
    report = export(model, tmp_path / "model.tflite", data=data)
    assert [line.encoding for line in report.lines if len(line.shape) > 1] == [BLOCK, BLOCK]
    assert [output.name for output in report.verification.runs[0].outputs] == ["a", "b"]


def test_a_weight_of_zeros_only_is_exported(tmp_path):
    model = functional((64,), layers.Dense(64, kernel_initializer="zeros", bias_initializer="ones"))
    report = export(model, tmp_path / "model.tflite", data=np.ones((2, 64)))
    assert report.lines[0].encoding is BLOCK
    assert report.verification.max_absolute == 0.0


def test_gates_go_into_int8_where_no_logit_is_near_zero(tmp_path, operators):
    gated = Gated(layers.Conv2D(16, 3, activation="relu"), hidden=4)
    model = functional((8, 8, 8), gated, layers.Flatten(), layers.Dense(4))
    head = [np.zeros(weight.shape) for weight in gated.head.weights]
    head[0][0, 0] = head[2][0, ::2] = 4.0
    head[3][:] = -2.0
    gated.head.set_weights(head)
    data = np.random.default_rng(0).uniform(0.5, 1.5, (64, 8, 8, 8)).astype("float32")
    data[::2, ..., 0] = -1.0
    assert np.unique(np.asarray(gated.gates(data)), axis=0).tolist() == [[0.0] * 16, [1.0, 0.0] * 8]
    report = export(model, tmp_path / "model.tflite", quantize="int8", data=data)
    assert report.verification.samples > 8
    assert {"GREATER", "MUL"} <= set(operators(tmp_path / "model.tflite"))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_trained_in_mixed_precision_computes_in_float32(policy, tmp_path, zero_out):
    keras.config.set_dtype_policy(policy)
    try:
        model = functional((64,), layers.Dense(64, activation="relu"), layers.Dense(16, dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    zero_out(model, blocks=True)
    report = export(model, tmp_path / "model.tflite", data=np.ones((2, 64)))
    assert report.verification.max_relative < 1e-5
    assert report.notes[-1].startswith("computes in float32: ")
    assert model.layers[1].compute_dtype == policy.removeprefix("mixed_")
    verify(tmp_path / "model.tflite", model, np.ones((2, 64)))


def test_a_model_quantized_by_keras_is_refused(tmp_path):
    model = functional((64,), layers.Dense(64, name="quantized"))
    model.quantize("int8")
    with pytest.raises(ExportError, match=r"layer '.*quantized': must not be quantized.* Received: int8"):
        export(model, tmp_path / "model.tflite", data=np.ones((1, 64)))


def test_recurrent_layers_fix_the_batch_and_say_so(tmp_path, inputs):
    model = functional((5, 16), layers.GRU(8, name="memory"))
    report = export(model, tmp_path / "model.tflite", data=inputs(model)[0])
    assert report.notes == (
        "batch fixed to 1: the converter unrolls the recurrent layer 'memory' at a known batch only",
    )
    assert LiteRTSession((tmp_path / "model.tflite").read_bytes()).batch_size == 1


def test_the_batch_is_fixed_on_request_and_free_otherwise(tmp_path, dense_net, inputs):
    data = inputs(dense_net)[0]
    export(dense_net, tmp_path / "free.tflite", data=data)
    report = export(dense_net, tmp_path / "fixed.tflite", data=data, batch_size=3)
    assert report.notes == ("batch fixed to 3: as requested",)
    assert LiteRTSession((tmp_path / "free.tflite").read_bytes()).batch_size is None
    assert LiteRTSession((tmp_path / "fixed.tflite").read_bytes()).batch_size == 3


def test_the_report_is_a_table_and_a_dictionary(tmp_path, dense_net, inputs):
    report = export(dense_net, tmp_path / "model.tflite", data=inputs(dense_net)[0])
    text = str(report)
    for word in (
        "model.tflite",
        "128x64",
        "1x4 blocks",
        "90.0%",
        "gzip",
        "verified on 5 given inputs",
        "2 vectors",
    ):
        assert word in text
    saved = json.loads(json.dumps(report.to_dict()))
    assert saved["written"]["raw"] == report.written.raw < saved["dense"]["raw"]
    assert [weight["encoding"] for weight in saved["weights"] if len(weight["shape"]) > 1] == ["1x4 blocks"] * 2
    assert [(run["delegate"], run["threads"]) for run in saved["verification"]["runs"]] == [
        (True, 1),
        (True, 4),
        (False, 1),
        (False, 4),
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.path = "other"


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        # The converter's own, the dense one (constants shared), the sparse one.
        ({}, 3),
        ({"quantize": "int8", "optimize": "size"}, 2),
        # The one with its summary, with integers in and out and short names, and with weights that are decoded.
        ({"target": "mcu", "quantize": "int8"}, 4),
    ],
    ids=["float32", "int8", "mcu"],
)
def test_each_file_is_parsed_and_checked_once_on_its_way(arguments, files, tmp_path, dense_net, inputs, monkeypatch):
    if arguments.get("target") == "mcu":
        pytest.importorskip("tflite_micro")
    parsed = Counter()
    for check in ("check_bounds", "check_model"):
        inner = getattr(flatbuffer, check)

        def counted(content, subject, check=check, inner=inner):
            parsed[check] += 1
            if check == "check_bounds":
                parsed[bytes(content)] += 1
            return inner(content, subject)

        monkeypatch.setattr(flatbuffer, check, counted)
    export(dense_net, tmp_path / "model.tflite", data=inputs(dense_net, samples=64)[0], **arguments)
    assert parsed.pop("check_bounds") == parsed.pop("check_model") == files
    assert set(parsed.values()) == {1}
    assert len(parsed) == files
    assert (tmp_path / "model.tflite").read_bytes() in parsed


def break_weight(monkeypatch, name):
    """Let the encoder store one weight wrongly: the rows of its matrix in reverse order."""
    from tflite_export.edits import encode as stage
    from tflite_export.plan.plan import encoded

    def wrong(weight, encoding):
        if name in weight.name:
            weight = dataclasses.replace(weight, values=weight.values[::-1].copy())
        return encoded(weight, encoding)

    monkeypatch.setattr("tflite_export.edits.encode.encoded", wrong)
    assert stage.encoded is wrong


def test_a_weight_that_makes_the_file_wrong_is_left_dense_with_the_reason(tmp_path, dense_net, inputs, monkeypatch):
    name = dense_net.layers[1].kernel.path
    break_weight(monkeypatch, name)
    report = export(dense_net, tmp_path / "model.tflite", data=inputs(dense_net)[0])
    lines: dict[str, PlanLine] = {line.name: line for line in report.lines}
    assert lines[name].encoding is DENSE
    assert lines[name].reason.startswith("stored sparse, the file was wrong: must equal the model's to 0.0001")
    assert lines[dense_net.layers[0].kernel.path].encoding is BLOCK
    assert report.verification.max_relative < 1e-5


def test_strict_names_the_weight_and_leaves_what_stood_there(tmp_path, dense_net, inputs, monkeypatch):
    name = dense_net.layers[1].kernel.path
    break_weight(monkeypatch, name)
    path = tmp_path / "model.tflite"
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match=rf"weight '{name}': stored sparse must leave the outputs .* strict=False"):
        export(dense_net, path, data=inputs(dense_net)[0], strict=True)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_a_converter_that_gives_a_wrong_file_is_found_out(tmp_path, dense_net, inputs, monkeypatch):
    from tflite_export.convert import converter as stock

    def wrong(make, signature, *arguments):
        def made():
            model = strip(make())
            model.layers[0].bias.assign_add(np.ones(128))
            return model

        return stock.convert(made, signature, *arguments)

    monkeypatch.setattr("tflite_export.source.source.convert", wrong)
    with pytest.raises(ExportError, match=r"the dense file, before any weight was stored sparse"):
        export(dense_net, tmp_path / "model.tflite", data=inputs(dense_net)[0])
    assert not list(tmp_path.iterdir())


def test_a_model_that_answers_nan_is_refused(tmp_path, dense_net):
    dense_net.layers[1].bias.assign(np.full(16, np.nan))
    with pytest.raises(ExportError, match=r"output 'output_0' .* must hold no NaN\. Received: 32 NaN"):
        export(dense_net, tmp_path / "model.tflite", data=np.ones((2, 64)))


def test_a_layer_that_the_converter_does_not_know_is_refused(tmp_path):
    import tensorflow as tf

    class Spectrum(layers.Layer):
        def call(self, x):
            return tf.math.real(tf.signal.fft2d(tf.cast(x, tf.complex64)))

        def compute_output_shape(self, shape):
            return shape

    with pytest.raises(
        ExportError, match=r"TFLite must have an operator .* Received: none for FFT2D of '\w+/spectrum\w*/FFT2D'"
    ):
        export(functional((8, 8), Spectrum()), tmp_path / "model.tflite", data=np.ones((1, 8, 8)))


def test_another_backend_is_refused(tmp_path, dense_net, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ExportError, match=r"needs Keras on TensorFlow\. Received: jax\. Save it as \.keras"):
        export(dense_net, tmp_path / "model.tflite", data=np.ones((1, 64)))


def test_an_unbuilt_model_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"must be built before it is exported"):
        export(TwoInputs(), tmp_path / "model.tflite", data=np.ones((1, 64)))


def test_runtimes_that_cannot_read_the_file_are_named(dense_net, zero_out, tmp_path):
    def unreadable(model, **arguments):
        x = np.ones((2, *model.inputs[0].shape[1:]), "float32")
        report = export(model, tmp_path / "m.tflite", data=x, **arguments)
        assert report.to_dict()["unreadable_by"] == {each.runtime: each.reason for each in report.unreadable_by}
        assert all(str(each) in str(report) for each in report.unreadable_by)
        return {each.runtime: each.reason for each in report.unreadable_by}

    found = unreadable(dense_net)
    assert list(found) == ["OpenVINO", "LiteRT.js", "TensorFlow Lite Micro"]
    assert found["OpenVINO"].endswith("is stored in blocks, and it takes dense weights and single zeros")
    assert "'serving_default_x:0' has a free size" in found["LiteRT.js"]
    assert list(unreadable(dense_net, batch_size=1)) == ["OpenVINO", "TensorFlow Lite Micro"]
    image = keras.Input((8, 8, 16), batch_size=1)
    single = zero_out(keras.Model(image, layers.Conv2D(64, 3)(image)))
    assert list(unreadable(single, optimize="size")) == ["Vela (Ethos-U)", "TensorFlow Lite Micro"]
    assert unreadable(keras.Sequential([keras.Input((8,), batch_size=1), layers.Dense(4)])) == {}


@pytest.mark.parametrize("quantize", [None, "float16", "int8"])
def test_a_portable_file_is_read_by_every_runtime(quantize, dense_net, tmp_path):
    x = np.random.default_rng(0).normal(size=(4, *dense_net.inputs[0].shape[1:])).astype("float32")
    path = tmp_path / "portable.tflite"
    report = export(dense_net, path, data=x, quantize=quantize, optimize="portable")
    assert report.unreadable_by == ()
    assert report.lines
    assert {(line.encoding.value, line.reason) for line in report.lines} == {("dense", PORTABLE)}
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled([x[:1]])[0]
    expected = np.asarray(dense_net(x[:1]))
    assert np.abs(answers - expected).max() <= (0.05 if quantize == "int8" else 2e-3) * np.abs(expected).max()


@pytest.mark.parametrize("choice", ["tune", "strict"])
def test_a_portable_file_has_nothing_to_tune_or_to_insist_on(choice, dense_net, tmp_path):
    with pytest.raises(ExportError, match=f"nothing to time or to insist on. Received: {choice}=True"):
        export(dense_net, tmp_path / "m.tflite", data=np.ones((1, 64)), optimize="portable", **{choice: True})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: functional((8,), layers.Lambda(lambda x: keras.ops.argmax(x, -1))),
            r"Received: none for BitwiseAnd of '.*'\. Write that part with other operations",
        ),
        (
            lambda: functional((None, None, 3), layers.UpSampling2D(interpolation="bilinear")),
            r"symbolic `tf.Tensor` as a Python `bool`.*Give numbers in place of the free sizes .*shapes=",
        ),
        (
            lambda: keras.Sequential([keras.Input((8,)), layers.Dense(4, name="größe")]),
            r"'größe' is not a valid scope name.*Name layers with ASCII",
        ),
    ],
    ids=["operator", "free size", "name"],
)
def test_the_converters_reason_and_a_way_out_that_can_be_taken(make, message, tmp_path):
    model = make()
    x = np.ones((1, *(size or 8 for size in model.inputs[0].shape[1:])), "float32")
    with pytest.raises(ExportError, match=message) as caught:
        export(model, tmp_path / "m.tflite", data=x)
    assert not {"batch_size=1", "Exception encountered", "\x1b"} & set(str(caught.value).split())
    assert "loc(" not in str(caught.value)


def test_text_is_no_input(tmp_path):
    text = keras.Input((1,), dtype="string", name="words")
    model = keras.Model(text, layers.Hashing(4)(text))
    with pytest.raises(ExportError, match=r"'words' of model .*: must hold numbers.* Received: string\. Export the"):
        export(model, tmp_path / "m.tflite", data=np.array([["a"]]))
