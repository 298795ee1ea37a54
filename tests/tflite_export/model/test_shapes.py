"""Inputs of any size: free, fixed by the model, fixed on request; answers to whole batches and to sequences."""

import re
from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import keras_prune as kp
from tflite_export import ExportError, benchmark, export, inspect, verify
from tflite_export.cli import parse_shapes
from tflite_export.file import flatbuffer
from tflite_export.model.inputs import Inputs
from tflite_export.model.reference import answer
from tflite_export.model.shapes import fix_sizes, fix_to_data
from tflite_export.model.signature import InputSpec, Signature, signature_of
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.targets import ANY, MCU, WEB, Target
from tflite_export.verification.golden import read_golden
from tflite_export.web.limitations import with_fixed_sizes

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype("float32")


def run(path, x):
    """What plain LiteRT answers, its input resized before anything is allocated."""
    interpreter = Interpreter(str(path))
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def listening():
    """A window of 9 over a sequence of free length: it does not fit into the length 1 that the file begins with."""
    audio = keras.Input((None, 1), name="audio")
    x = layers.Conv1D(8, 9, strides=4, activation="relu")(audio)
    return keras.Model(audio, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def looking(window=layers.MaxPooling2D):
    image = keras.Input((None, None, 3), name="image")
    x = window(3)(image) if window is layers.MaxPooling2D else window(4, 5)(image)
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


class Own(keras.Model):
    """A subclassed model of free length."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution, self.head = layers.Conv1D(8, 9, strides=4), layers.Dense(3)

    def call(self, x):
        return self.head(ops.mean(self.convolution(x), axis=1))


def own():
    model = Own()
    model(keras.Input((None, 1)))
    return model


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (listening, (3, 41, 1)),
        (looking, (2, 9, 12, 3)),
        (lambda: looking(layers.Conv2D), (2, 7, 6, 3)),
        (own, (2, 30, 1)),
    ],
    ids=["Conv1D", "pooling", "Conv2D", "subclassed"],
)
def test_a_window_larger_than_the_free_size_of_a_file(make, shape, tmp_path):
    model, x = make(), draw(*shape)
    kp.prune(model, 0.5)
    path = tmp_path / "model.tflite"
    report = export(model, path, data=x, golden=tmp_path / "golden.safetensors")
    assert report.verification.max_relative < 1e-5
    other = draw(1, *(size + 3 for size in shape[1:-1]), shape[-1])  # sizes stay free
    np.testing.assert_allclose(run(path, other), model(other), atol=1e-5)
    assert verify(path, model, x).max_relative < 1e-5
    assert benchmark(path, data=x[:1], rounds=1).timings[0].median > 0
    assert inspect(path).operators
    assert inspect(model).operators
    np.testing.assert_array_equal(next(iter(read_golden(tmp_path / "golden.safetensors").inputs.values())), x)


def test_a_window_larger_than_the_free_size_is_calibrated_and_tuned(tmp_path):
    model, x = listening(), draw(8, 41, 1)
    assert export(model, tmp_path / "m.tflite", batch_size=1, data=x).verification.max_relative < 1e-5
    assert export(model, tmp_path / "m.tflite", quantize="int8", data=x).verification.max_relative < 0.15
    assert export(model, tmp_path / "m.tflite", tune=True, data=x).verification.max_relative < 1e-5


def test_free_sizes_of_a_file_are_fixed_as_the_web_runtime_needs_them(tmp_path):
    model, x = listening(), draw(1, 41, 1)
    export(model, tmp_path / "m.tflite", data=x)
    content = (tmp_path / "m.tflite").read_bytes()
    with pytest.raises(ExportError, match=r"only its batch may be free .* Received: \[-1, -1, 1\].*shapes="):
        with_fixed_sizes(content)
    fixed = with_fixed_sizes(content, feeds={"audio": x})
    graph = flatbuffer.read(fixed).subgraphs[0]
    assert all(tensor.shapeSignature is None or min(tensor.shapeSignature) > 0 for tensor in graph.tensors)
    assert tuple(graph.tensors[graph.inputs[0]].shape) == (1, 41, 1)
    (out,) = LiteRTSession(fixed).run([x], ["audio"], ["output_0"])
    np.testing.assert_allclose(out, model(x), atol=1e-6)


def test_sizes_are_fixed_by_name(tmp_path):
    model, path = listening(), tmp_path / "m.tflite"
    report = export(model, path, shapes={"audio": (1, 64, 1)}, data=draw(3, 64, 1))
    assert report.notes == ("input 'audio' fixed to (64, 1): as requested", "batch fixed to 1: as requested")
    (detail,) = LiteRTSession(path.read_bytes()).inputs.values()
    assert detail["shape_signature"].tolist() == [1, 64, 1]
    with pytest.warns(UserWarning, match="no data given"):  # now that sizes are known, inputs can be drawn
        assert verify(path, model).max_relative < 1e-5
    with pytest.raises(ExportError, match=r"must have the shape \('samples', 64, 1\)\. Received: \(3, 65, 1\)"):
        verify(path, model, draw(3, 65, 1))
    report = export(model, path, shapes={"audio": (None, 64, 1)}, data=draw(3, 64, 1))
    (detail,) = LiteRTSession(path.read_bytes()).inputs.values()
    assert detail["shape_signature"].tolist() == [-1, 64, 1]


FREE = Signature((InputSpec("a", (None, 2), "float32"), InputSpec("b", (3,), "int32")), ["a", "b"])


@pytest.mark.parametrize(
    ("shapes", "batch_size", "message"),
    [
        ({"c": (1, 2, 2)}, None, r"shapes: may only name the model's inputs, \['a', 'b'\]\. Received: \['c'\]"),
        ({"a": (1, 2)}, None, r"shapes\['a'\]: must fit the input's shape \('batch', 'any', 2\)\. Received: \(1, 2\)"),
        ({"a": (1, 5, 3)}, None, r"must fit .*Received: \(1, 5, 3\)"),
        ({"a": (1, 0, 2)}, None, r"shapes\['a'\]: must be a whole number of at least 1\. Received: 0"),
        ({"a": (1, 2.5, 2)}, None, r"Received: 2\.5"),
        ({"a": (2, 5, 2), "b": (3, 3)}, None, r"shapes\['b'\]: must agree with the batch of 2 \(as requested\).*: 3"),
        ({"a": (2, 5, 2)}, 4, r"shapes\['a'\]: must agree with the batch of 4 \(as requested\)\. Received: 2"),
        ((1, 5, 2), None, r"must be a dictionary .*Received: \(1, 5, 2\).*shapes=\{'a': \(1, None, 2\)\}"),
        (None, 0, r"batch_size: must be a whole number of at least 1\. Received: 0"),
    ],
)
def test_sizes_that_are_none_are_refused(shapes, batch_size, message):
    with pytest.raises(ExportError, match=message):
        fix_sizes(FREE, ANY, batch_size, shapes)


@pytest.mark.parametrize("target", [WEB, MCU, Target("mine", fixed_sizes="my runtime cannot resize")])
def test_a_target_of_fixed_sizes_gets_them(target):
    fixed, notes = fix_sizes(FREE, target)
    assert (fixed.batch, fixed.inputs) == (1, FREE.inputs)
    assert notes == (f"batch fixed to 1: {target.fixed_sizes}; batch_size=... chooses another",)
    fixed, notes = fix_to_data(fixed, target, Inputs((draw(4, 5, 2), draw(4, 3)), drawn=False))
    assert [spec.shape for spec in fixed.inputs] == [(5, 2), (3,)]
    assert notes == (f"input 'a' fixed to (5, 2), as in the data: {target.fixed_sizes}; shapes={{...}} chooses others",)
    assert fix_sizes(FREE, target, batch_size=6)[0].batch == 6
    assert fix_sizes(replace(FREE, batch=3), target)[0].batch == 3
    assert fix_sizes(FREE, ANY)[0] == FREE


def test_a_file_for_the_web_is_fixed_and_says_so(tmp_path):
    report = export(listening(), tmp_path / "m.tflite", target="web", data=draw(2, 41, 1))
    assert report.notes[0].startswith("batch fixed to 1: LiteRT.js refuses")
    assert report.notes[1].startswith("input 'audio' fixed to (41, 1), as in the data: LiteRT.js refuses")
    (detail,) = LiteRTSession((tmp_path / "m.tflite").read_bytes()).inputs.values()
    assert detail["shape_signature"].tolist() == [1, 41, 1]


def test_shapes_on_the_command_line():
    assert parse_shapes([]) is None
    for wrong in ("audio", "audio=", "audio=1,x", "=1,2", "audio=1,-2"):
        with pytest.raises(ExportError, match=r"--shape: must be NAME=SIZE"):
            parse_shapes([wrong])


# -- batches that the model fixes --------------------------------------------------------------------------------------


def pairs():
    """A model that takes two samples at a time, no more and no fewer."""
    rows = keras.Input((6, 5), batch_size=2, name="rows")
    return keras.Model(rows, layers.Dense(8)(ops.reshape(rows, (2, 30))))


@pytest.mark.parametrize(
    ("samples", "arguments"),
    [(2, {}), (3, {"batch_size": 2}), (4, {"target": "web"}), (1, {"shapes": {"rows": (2, 6, 5)}})],
)
def test_a_model_of_a_fixed_batch_keeps_it(samples, arguments, tmp_path):
    model, x = pairs(), draw(samples, 6, 5)
    report = export(model, tmp_path / "m.tflite", data=x, **arguments)
    assert report.notes[0] == "batch fixed to 2: as in the model"
    assert (report.verification.samples, report.verification.max_relative < 1e-5) == (samples, True)
    assert LiteRTSession((tmp_path / "m.tflite").read_bytes()).batch_size == 2
    assert verify(tmp_path / "m.tflite", model, x).samples == samples


def test_another_batch_than_the_models_is_refused(tmp_path):
    with pytest.raises(
        ExportError, match=r"batch_size: must agree with the batch of 2 \(as in the model\).*: 4\. Leave"
    ):
        export(pairs(), tmp_path / "m.tflite", data=draw(4, 6, 5), batch_size=4)


def test_a_model_that_answers_so_many_samples_only(tmp_path):
    rows = keras.Input((6, 5), name="rows")
    model = keras.Model(rows, layers.Dense(8)(ops.reshape(rows, (2, 30))))
    report = export(model, tmp_path / "m.tflite", data=draw(2, 6, 5))
    assert report.notes == ("batch fixed to 2: the model answers that many samples, and not a single one",)


def test_a_stateful_layer_begins_every_sequence_anew_and_is_left_as_it_was(tmp_path):
    batch = 2
    steps = keras.Input((3, 5), batch_size=batch, name="steps")
    layer = layers.GRU(8, stateful=True)
    model, x = keras.Model(steps, layer(steps)), draw(3, 3, 5)
    model(x[:batch])
    before = [state.numpy().copy() for state in keras.tree.flatten(layer.states)]
    assert np.abs(before[0]).max() > 0
    for _ in range(2):
        assert export(model, tmp_path / "m.tflite", data=x).verification.max_relative < 1e-5
    assert verify(tmp_path / "m.tflite", model, x).max_relative < 1e-5
    after = [state.numpy() for state in keras.tree.flatten(layer.states)]
    np.testing.assert_array_equal(before, after)
    layer.reset_state()  # the file begins with a fresh state, and keeps it from call to call
    first, second = model(x[:batch]).numpy(), model(x[:batch]).numpy()
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    index, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    for wanted in (first, second):
        interpreter.set_tensor(index, x[:batch])
        interpreter.invoke()
        np.testing.assert_allclose(interpreter.get_tensor(out), wanted, atol=1e-5)


def test_other_state_is_left_as_it_was():
    class Counting(layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.calls.assign(self.calls + 1.0)
            return x + self.calls

    counting = Counting()
    model = keras.Sequential([keras.Input((3,)), counting])
    x = draw(40, 3)
    counting.calls.assign(5.0)
    found = answer(model, signature_of(model), Inputs((x,), drawn=False))
    assert float(counting.calls) == 5.0
    np.testing.assert_allclose(found.outputs[0], x + 6.0)


# -- answers of a whole batch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "whole",
    [ops.mean, lambda x: ops.mean(x, axis=0), lambda x: x - ops.mean(x, axis=0), lambda x: {"a": x, "b": ops.sum(x)}],
    ids=["a scalar", "a vector", "rows that depend on the others", "rows and a scalar"],
)
@pytest.mark.parametrize("samples", [1, 4])
def test_an_output_of_the_whole_batch_is_compared_run_by_run(whole, samples, tmp_path):
    x = keras.Input((8,), name="x")
    model, data = keras.Model(x, whole(layers.Dense(4)(x))), draw(samples, 8)
    report = export(model, tmp_path / "m.tflite", data=data, golden=tmp_path / "golden.safetensors")
    assert report.verification.max_relative < 1e-5
    assert verify(tmp_path / "m.tflite", model, data).samples == samples
    assert benchmark(tmp_path / "m.tflite", data=data, rounds=1).timings[0].max_difference == 0
    assert len(read_golden(tmp_path / "golden.safetensors")) == samples
    session = LiteRTSession((tmp_path / "m.tflite").read_bytes())  # the batch stays free
    session.feed([data], ["x"])
    session.invoke()
    for found, wanted in zip(session.fetch(sorted(session.outputs)), keras.tree.flatten(model(data)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_scalar_of_a_fixed_batch(tmp_path):
    x = keras.Input((8,), batch_size=2, name="x")
    model, data = keras.Model(x, ops.mean(layers.Dense(4)(x))), draw(3, 8)
    assert export(model, tmp_path / "m.tflite", data=data).verification.max_relative < 1e-5
    model = keras.Model(free := keras.Input((8,), name="x"), ops.mean(layers.Dense(4)(free)))
    assert export(model, tmp_path / "m.tflite", data=data, batch_size=3).verification.max_relative < 1e-5


# -- a model that cannot answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "data", "reason"),
    [
        (
            lambda: keras.Sequential([keras.Input((2,), dtype="int32"), layers.Embedding(5, 8)]),
            np.full((4, 2), 9, "int32"),
            r"InvalidArgumentError: .*indices\[0,0\] = 9 is not in \[0, 5\)",
        ),
        (
            lambda: keras.Sequential([keras.Input((None, 3)), layers.Conv1D(4, 9)]),
            np.ones((1, 4, 3), "float32"),
            r"[Nn]egative|Computed output size",
        ),
        (
            lambda: keras.Sequential([keras.Input((None,)), layers.Reshape((4,)), layers.Dense(2)]),
            np.ones((2, 5), "float32"),
            r"total size of the tensor must be unchanged",
        ),
    ],
    ids=["ids outside the table", "a window that does not fit", "a shape that does not fit"],
)
def test_what_a_model_cannot_answer_is_said(make, data, reason, tmp_path):
    model = make()
    for call in (
        lambda: export(model, tmp_path / "m.tflite", data=data),
        lambda: answer(model, signature_of(model), Inputs((data,), drawn=False)),
    ):
        with pytest.raises(ExportError, match=r"must accept the data itself") as caught:
            call()
        assert re.search(reason, str(caught.value.received))
        assert "Exception encountered" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "m.tflite").exists()
