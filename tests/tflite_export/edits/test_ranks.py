"""The rewrites of a file that change ranks of tensors."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl

from tflite_export.convert.converter import convert
from tflite_export.convert.number_types import resolve_number_type
from tflite_export.edits.ranks import lower_pooled_outputs, raise_scalar_constants
from tflite_export.file import flatbuffer
from tflite_export.model.signature import signature_of
from tflite_export.runtimes.litert import LiteRTSession


def converted(outputs, *inputs, batch=1, kind=None):
    model = keras.Model(list(inputs), outputs)
    file = convert(lambda: model, signature_of(model), batch, resolve_number_type(kind))
    return file, flatbuffer.read(file.file.content)


def shapes(file, kind):
    (graph,) = file.subgraphs
    return [
        [list(graph.tensors[index].shape if graph.tensors[index].shape is not None else []) for index in op.inputs]
        for op in graph.operators
        if flatbuffer.operator_name(file, op) == kind
    ]


def names(file):
    return [flatbuffer.operator_name(file, op) for op in file.subgraphs[0].operators]


def assert_same_answers(before, file, *arrays):
    after = flatbuffer.write(file)
    flatbuffer.read(after)
    for delegate in (True, False):
        old, new = (LiteRTSession(content, "the file", delegate=delegate) for content in (before.file, after))
        for a, b in zip(
            old.run(arrays, before.inputs, before.outputs), new.run(arrays, before.inputs, before.outputs), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_the_hard_sigmoid_of_a_squeeze():
    inputs = keras.Input((6, 5, 8), name="x")
    gate = kl.Conv2D(8, 1)(kl.GlobalAveragePooling2D(keepdims=True)(inputs))
    gate = kl.ReLU(6.0)(gate + 3.0) * (1.0 / 6.0)
    before, file = converted(inputs * gate, inputs)
    assert [1, 1, 1, 8] in shapes(file, "MUL")[0]
    assert [] in shapes(file, "MUL")[0]
    changes = raise_scalar_constants(file)
    assert [change.what for change in changes] == ["scalar constant -> shape [1, 1, 1, 1]"]
    assert shapes(file, "MUL") == [[[1, 1, 1, 8], [1, 1, 1, 1]], [[1, 6, 5, 8], [1, 1, 1, 8]]]
    assert_same_answers(before, file, image(1, 6, 5, 8))


def test_a_constant_in_float16_is_brought_to_float32():
    inputs = keras.Input((6, 5, 8), name="x")
    before, file = converted(kl.ReLU()(inputs * 0.3), inputs, kind="float16")
    assert names(file).count("DEQUANTIZE") == 1
    assert len(raise_scalar_constants(file)) == 1
    assert shapes(file, "MUL") == [[[1, 1, 1, 1], [1, 6, 5, 8]]]
    (graph,) = file.subgraphs
    scalar = flatbuffer.constant(file, graph.tensors[graph.operators[-1].inputs[0]])
    np.testing.assert_array_equal(scalar, np.full((1, 1, 1, 1), np.float16(0.3), "float32"))
    assert_same_answers(before, file, image(1, 6, 5, 8))


def test_beside_a_map_the_constant_comes_first():
    inputs = keras.Input((6, 5, 8), name="x")
    before, file = converted(kl.ReLU()(inputs * 3.0) + 0.5, inputs)
    changes = raise_scalar_constants(file)
    assert [change.what for change in changes] == ["scalar constant -> shape [1, 1, 1, 1], put first"] * 2
    assert shapes(file, "MUL") == [[[1, 1, 1, 1], [1, 6, 5, 8]]]
    assert shapes(file, "ADD") == [[[1, 1, 1, 1], [1, 6, 5, 8]]]
    assert_same_answers(before, file, image(1, 6, 5, 8))


def test_a_constant_that_others_read_is_left_to_them():
    inputs, vector = keras.Input((6, 5, 8), name="x"), keras.Input((8,), name="y")
    before, file = converted([kl.ReLU()(inputs * 3.0), kl.ReLU()(vector * 3.0)], inputs, vector)
    (graph,) = file.subgraphs
    scalars = {int(op.inputs[1]) for op in graph.operators if flatbuffer.operator_name(file, op) == "MUL"}
    assert len(scalars) == 1  # the converter makes one tensor of the two
    count = len(graph.tensors)
    assert len(raise_scalar_constants(file)) == 1
    assert len(graph.tensors) == count + 1
    assert sorted(shapes(file, "MUL")) == [[[1, 1, 1, 1], [1, 6, 5, 8]], [[1, 8], []]]
    assert graph.tensors[count].buffer == graph.tensors[scalars.pop()].buffer
    assert_same_answers(before, file, image(1, 6, 5, 8), image(1, 8))


def test_a_constant_that_two_operators_share_is_raised_once():
    inputs, other = keras.Input((6, 5, 8), name="x"), keras.Input((2, 2, 3), name="y")
    before, file = converted([kl.ReLU()(inputs * 3.0), kl.ReLU()(other * 3.0)], inputs, other)
    count = len(file.subgraphs[0].tensors)
    assert len(raise_scalar_constants(file)) == 2
    assert len(file.subgraphs[0].tensors) == count
    assert raise_scalar_constants(file) == ()
    assert_same_answers(before, file, image(1, 6, 5, 8), image(1, 2, 2, 3))


def test_vectors_of_channels_stay():
    inputs = keras.Input((6, 5, 8), name="x")
    _, file = converted(kl.Rescaling(np.arange(8.0).tolist())(inputs), inputs)
    assert raise_scalar_constants(file) == ()


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_mean_with_dimensions_kept_as_output(batch):
    inputs = keras.Input((6, 5, 8), name="x")
    before, file = converted(kl.GlobalAveragePooling2D(keepdims=True)(kl.ReLU()(inputs)), inputs, batch=batch)
    assert names(file) == ["RELU", "MEAN"]
    (change,) = lower_pooled_outputs(file)
    assert change.what == "mean with dimensions kept -> mean and RESHAPE"
    assert names(file) == ["RELU", "MEAN", "RESHAPE"]
    assert lower_pooled_outputs(file) == ()
    assert_same_answers(before, file, image(3, 6, 5, 8))


def test_a_mean_that_is_read_on_is_an_output_all_the_same():
    inputs = keras.Input((6, 5, 8), name="x")
    mean = kl.GlobalAveragePooling2D(keepdims=True)(inputs)
    before, file = converted([inputs * mean, mean], inputs)
    assert len(lower_pooled_outputs(file)) == 1
    assert sorted(names(file)) == ["MEAN", "MUL", "RESHAPE"]
    assert_same_answers(before, file, image(1, 6, 5, 8))


def test_other_means_stay():
    inputs = keras.Input((6, 5, 8), name="x")
    outputs = [kl.GlobalAveragePooling2D()(inputs), keras.ops.mean(inputs, axis=-1, keepdims=True)]
    outputs.append(inputs * kl.GlobalAveragePooling2D(keepdims=True)(inputs))
    _, file = converted(outputs, inputs)
    assert names(file).count("MEAN") == 3
    assert lower_pooled_outputs(file) == ()
