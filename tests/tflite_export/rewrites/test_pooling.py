"""The rewrite of means over the whole map."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_prune as kp
from tflite_export import export, inspect
from tflite_export.rewrites.pooling import PoolingPass
from tflite_export.rewrites.rewrite import rewrite_model

MEANS = {
    "valid": (lambda x: kl.AveragePooling2D((6, 5), name="pool")(x), True),
    "valid, strides beyond": (lambda x: kl.AveragePooling2D((6, 5), strides=9, name="pool")(x), True),
    "same, larger than the map": (lambda x: kl.AveragePooling2D((9, 6), padding="same", name="pool")(x), True),
    "adaptive": (lambda x: kl.AdaptiveAveragePooling2D(1, name="pool")(x), True),
    "operation": (lambda x: ops.average_pool(x, (6, 5)), True),
    "places, then a layer": (lambda x: kl.GlobalAveragePooling1D(name="pool")(kl.Reshape((30, 8))(x)), False),
    "places, then an operation": (lambda x: ops.mean(kl.Reshape((30, 8))(x), axis=1), False),
}
OTHERS = {
    "a part of the map": lambda x: kl.AveragePooling2D((6, 4))(x),
    "one window of the map's first part": lambda x: kl.AveragePooling2D((5, 5), strides=6)(x),
    "same, one window of the first part": lambda x: kl.AveragePooling2D((5, 4), strides=6, padding="same")(x),
    "same, several windows": lambda x: kl.AveragePooling2D((9, 9), strides=2, padding="same")(x),
    "a maximum": lambda x: kl.MaxPooling2D((6, 5))(x),
    "adaptive, several": lambda x: kl.AdaptiveAveragePooling2D((1, 5))(x),
    "channels over places": lambda x: kl.GlobalAveragePooling1D()(kl.Reshape((40, 6))(x)),
    "places with dimensions kept": lambda x: kl.GlobalAveragePooling1D(keepdims=True)(kl.Reshape((30, 8))(x)),
    "a mean over channels": lambda x: ops.mean(kl.Reshape((30, 8))(x), axis=2),
}


def model_of(tail, shape=(6, 5, 8)):
    inputs = keras.Input(shape, name="x")
    return keras.Model(inputs, kl.Dense(3)(kl.Flatten()(tail(inputs))))


def images(shape=(6, 5, 8)):
    return np.random.default_rng(0).normal(1.0, 1.0, size=(3, *shape)).astype("float32")


@pytest.mark.parametrize(("tail", "keepdims"), MEANS.values(), ids=MEANS)
def test_a_mean_over_the_whole_map_becomes_a_global_one_and_answers_the_same(tail, keepdims):
    result = rewrite_model(model_of(tail), [PoolingPass()], [images()], tolerance=1e-6)
    (change,) = result.changes
    assert change.what.endswith("-> GlobalAveragePooling2D")
    pooling = [layer for layer in result.model.layers if isinstance(layer, kl.GlobalAveragePooling2D)]
    assert [layer.keepdims for layer in pooling] == [keepdims]
    assert not any(type(layer).__name__ == "AveragePooling2D" for layer in result.model.layers)


@pytest.mark.parametrize("tail", OTHERS.values(), ids=OTHERS)
def test_other_poolings_stay(tail):
    model = model_of(tail)
    assert PoolingPass().apply(model).model is model


def test_a_pooling_of_unknown_sizes_stays_and_so_do_places_that_are_read_twice():
    free = keras.Sequential([keras.Input((None, 5, 8)), kl.AveragePooling2D((6, 5)), kl.GlobalMaxPooling2D()])
    assert PoolingPass().apply(free).model is free
    inputs = keras.Input((6, 5, 8))
    places = kl.Reshape((30, 8))(inputs)
    twice = keras.Model(inputs, [kl.GlobalAveragePooling1D()(places), kl.GlobalMaxPooling1D()(places)])
    assert PoolingPass().apply(twice).model is twice


def test_a_pooling_in_a_model_inside_the_model_and_one_called_twice():
    inner = keras.Sequential([keras.Input((6, 5, 8)), kl.AveragePooling2D((6, 5), name="pool")], name="inner")
    inputs, others = keras.Input((6, 5, 8)), keras.Input((6, 5, 8))
    model = keras.Model([inputs, others], [inner(inputs), inner(others) * 2.0])
    result = rewrite_model(model, [PoolingPass()], [images(), images() + 1.0], tolerance=1e-6)
    assert len(result.changes) == 2
    assert sum(isinstance(layer, kl.GlobalAveragePooling2D) for layer in result.model.layers) == 2


@pytest.mark.parametrize("form", ["pooling", "places"])
def test_a_net_that_ends_in_it_runs_sparse(tmp_path, form):
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 10, 3))
    x = kl.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
    x = kl.Conv2D(32, 1, activation="relu", name="mix")(x)
    x = kl.AveragePooling2D((6, 5))(x) if form == "pooling" else kl.GlobalAveragePooling1D()(kl.Reshape((30, 32))(x))
    model = keras.Model(image, kl.Dense(3)(kl.Flatten()(x)))
    kp.prune(model, 0.75, scope=kp.Scope(include=("mix/kernel",)))
    report = export(model, tmp_path / "m.tflite", target="web", data=images((12, 10, 3)), batch_size=1)
    assert "pooling" in {change.rewrite for change in report.changes}
    assert inspect(tmp_path / "m.tflite", target="web").runs_sparse
    # What a model would be exported as is inspected, too.
    assert "MEAN" in {verdict.operator for verdict in inspect(model, target="web").operators}
