"""The rewrite of what follows a global pooling."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.keras_seam import calls_in
from tflite_export.convert.converter import convert
from tflite_export.file import flatbuffer
from tflite_export.model.signature import signature_of
from tflite_export.rewrites.heads import HeadsPass
from tflite_export.rewrites.rewrite import rewrite_model


def net(*layers, shape=(6, 5, 8)):
    return randomized(keras.Sequential([keras.Input(shape, name="x"), *layers]))


def randomized(model):
    """The model with random weights, three quarters of each kernel zero."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        values = rng.uniform(0.5, 1.5, variable.shape) * rng.choice([-1.0, 1.0], variable.shape)
        if "kernel" in variable.path:
            values *= rng.random(variable.shape) < 0.25
        variable.assign(np.abs(values) if "variance" in variable.path else values)
    return model


def rewritten(model):
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(3, *tensor.shape[1:])) for tensor in model.inputs]
    return rewrite_model(model, [HeadsPass()], inputs, tolerance=1e-6)


def kinds(model):
    return [type(node.operation).__name__ for node in calls_in(model)]


@pytest.mark.parametrize("tail", [[kl.Flatten()], [kl.Reshape((4,))], [kl.Reshape((4,)), kl.Activation("softmax")]])
def test_the_head_of_mobilenet_becomes_dense(tail):
    model = net(kl.GlobalAveragePooling2D(keepdims=True), kl.Dropout(0.1), kl.Conv2D(4, 1, name="head"), *tail)
    result = rewritten(model)
    assert kinds(result.model)[:3] == ["GlobalAveragePooling2D", "Dropout", "Dense"]
    assert kinds(result.model)[3:] == [type(layer).__name__ for layer in tail[1:]]
    assert not result.model.layers[1].keepdims
    np.testing.assert_array_equal(result.model.get_layer("head").kernel, model.get_layer("head").kernel[0, 0])
    assert {change.what for change in result.changes} == {
        *("1x1 convolution on a 1x1 map -> Dense", "drops its dimensions", "left out")
    }


def test_the_head_of_mobilenet_v3_with_operations_norms_and_branches():
    inputs = keras.Input((4, 4, 8))
    x = kl.Conv2D(6, 1, use_bias=False)(kl.GlobalAveragePooling2D(keepdims=True)(inputs))
    x = kl.BatchNormalization()(x)
    x = x * kl.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
    y = kl.Concatenate()([x, kl.Conv2D(2, 1, activation="relu")(x)])
    y = kl.Conv2D(5, 1)(kl.Softmax()(y))
    model = randomized(keras.Model(inputs, {"flat": kl.Flatten()(y), "kept": x}))
    result = rewritten(model)
    assert not any(isinstance(layer, (kl.Conv2D, kl.Flatten)) for layer in result.model.layers)
    assert kinds(result.model).count("Dense") == 3
    assert kinds(result.model).count("Reshape") == 1  # the output of rank 4
    assert result.model.output["kept"].shape == (None, 1, 1, 6)


def test_a_map_that_a_convolution_makes_single():
    result = rewritten(net(kl.Conv2D(4, (6, 5)), kl.ReLU(), kl.Conv2D(3, 1, strides=2, padding="same"), kl.Flatten()))
    assert kinds(result.model) == ["Conv2D", "Reshape", "ReLU", "Dense"]


def test_a_mean_of_keras_ops():
    inputs = keras.Input((4, 4, 8))
    x = kl.Conv2D(3, 1)(keras.ops.mean(inputs, axis=(1, 2), keepdims=True))
    result = rewritten(randomized(keras.Model(inputs, kl.Flatten()(x))))
    assert kinds(result.model) == ["Mean", "Dense"]


@pytest.mark.parametrize(
    "layers",
    [
        [kl.GlobalAveragePooling2D(), kl.Dense(3)],
        [kl.GlobalAveragePooling2D(keepdims=True), kl.Flatten(), kl.Dense(3)],
        [kl.GlobalAveragePooling2D(keepdims=True)],
        [kl.Conv2D(3, 1), kl.Flatten()],
        [kl.GlobalAveragePooling2D(keepdims=True), kl.Conv2D(4, 1, groups=2), kl.Flatten()],
        [kl.GlobalAveragePooling2D(keepdims=True), kl.Conv2D(4, 3, padding="same"), kl.Flatten()],
        [kl.GlobalAveragePooling2D(keepdims=True), kl.UpSampling2D(4), kl.Conv2D(2, 1)],
    ],
)
def test_what_is_right_already_stays(layers):
    model = net(*layers)
    result = HeadsPass().apply(model)
    assert result.model is model
    assert (result.changes, result.refusals) == ((), ())


def squeeze(form, pooling=kl.GlobalAveragePooling2D):
    """A squeeze-and-excitation in one of the forms that people write, with a head behind it."""
    inputs = keras.Input((6, 5, 8))
    x = kl.ReLU()(inputs)
    if form == "dense":
        y = kl.Dense(8, activation="sigmoid")(kl.Dense(2, activation="relu")(pooling()(x)))
        y = kl.Reshape((1, 1, 8))(y)
    elif form == "reshaped":
        y = kl.Reshape((1, 1, 8))(pooling()(x))
        y = kl.Conv2D(8, 1, activation="sigmoid")(kl.Conv2D(2, 1, activation="relu")(y))
    else:
        y = kl.Conv2D(8, 1)(kl.Conv2D(2, 1, activation="relu")(pooling(keepdims=True)(x)))
        y = kl.ReLU(6.0)(y + 3.0) * (1.0 / 6.0)
    x = kl.Multiply()([x, y])
    return randomized(keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(x))))


@pytest.mark.parametrize("form", ["dense", "reshaped"])
def test_a_squeeze_and_excitation_is_written_with_1x1_convolutions(form):
    result = rewritten(squeeze(form))
    assert kinds(result.model) == [
        *("ReLU", "GlobalAveragePooling2D", "Conv2D", "Conv2D", "Multiply", "GlobalAveragePooling2D", "Dense")
    ]
    means = [layer.keepdims for layer in result.model.layers if isinstance(layer, kl.GlobalAveragePooling2D)]
    assert means == [True, False]


def test_a_batch_normalization_inside_a_squeeze_is_made_again():
    inputs = keras.Input((6, 5, 8))
    y = kl.Dense(4, use_bias=False, activation="tanh")(kl.GlobalAveragePooling2D()(inputs))
    y = kl.Dense(8, activation="sigmoid")(kl.BatchNormalization(epsilon=0.1, scale=False)(y))
    result = rewritten(randomized(keras.Model(inputs, inputs * kl.Reshape((1, 1, 8))(y))))
    norm = next(layer for layer in result.model.layers if isinstance(layer, kl.BatchNormalization))
    assert (norm.epsilon, norm.scale, norm.output.shape) == (0.1, False, (None, 1, 1, 4))
    assert kinds(result.model).count("Conv2D") == 2


def test_a_squeeze_and_excitation_in_the_right_form_stays():
    model = squeeze("kept")
    assert HeadsPass().apply(model).model is model


def test_what_the_sparse_inference_has_no_reduction_for_stays():
    model = squeeze("dense", kl.GlobalMaxPooling2D)
    assert HeadsPass().apply(model).model is model


def test_a_group_that_scales_a_map_and_is_an_output_stays():
    inputs = keras.Input((6, 5, 8))
    gate = kl.Conv2D(8, 1)(kl.Reshape((1, 1, 8))(kl.GlobalAveragePooling2D()(inputs)))
    model = keras.Model(inputs, [kl.Multiply()([inputs, gate]), gate])
    assert HeadsPass().apply(model).model is model


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x * 2.0

    own = Own()
    own(np.zeros((1, 4, 4, 3), "float32"))
    (refusal,) = HeadsPass().apply(own).refusals
    assert "subclassed" in refusal.reason


@pytest.mark.parametrize("batch", [None, 1])
def test_the_converter_keeps_the_form(batch):
    """With a free batch, it would compute the shape of a Reshape in five operators."""
    model = rewritten(squeeze("dense")).model
    file = convert(lambda: model, signature_of(model), batch).file.model
    (graph,) = file.subgraphs
    assert [flatbuffer.operator_name(file, operator) for operator in graph.operators] == [
        *("RELU", "MEAN", "CONV_2D", "CONV_2D", "LOGISTIC", "MUL", "MEAN", "FULLY_CONNECTED")
    ]
