"""Arrays and shapes in initializers, regularizers and constraints are cut with the weights that they are for."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp

TABLE = np.random.default_rng(0).normal(size=(10, 8)).astype("float32")


class PerUnit(keras.regularizers.Regularizer):
    def __init__(self, strengths):
        self.strengths = np.asarray(strengths, "float32")

    def __call__(self, x):
        return keras.ops.sum(keras.ops.square(x) * self.strengths)

    def get_config(self):
        return {"strengths": self.strengths.tolist()}


class Bounded(keras.constraints.Constraint):
    def __init__(self, bounds):
        self.bounds = bounds

    def __call__(self, x):
        return keras.ops.clip(x, -keras.ops.convert_to_tensor(self.bounds), self.bounds)

    def get_config(self):
        return {"bounds": self.bounds}


class Shaped(keras.initializers.Initializer):
    def __init__(self, size):
        self.size = tuple(size)

    def __call__(self, shape, dtype=None):
        assert tuple(shape) == self.size
        return keras.ops.ones(shape, dtype)

    def get_config(self):
        return {"size": list(self.size)}


def tables():
    ids = keras.Input((5,), dtype="int32")
    layer = kl.Embedding(10, 8, embeddings_initializer=keras.initializers.Constant(TABLE), name="cut")
    return keras.Model(ids, kl.Dense(2)(layer(ids))), lambda layer: layer.embeddings_initializer.value, (10, 5)


def dense(**options):
    layer = kl.Dense(8, name="cut", **options)
    inputs = keras.Input((10,))
    return keras.Model(inputs, kl.Dense(2)(layer(inputs)))


CASES = {
    "table": tables,
    "kernel": lambda: (
        dense(kernel_initializer=keras.initializers.Constant(TABLE)),
        lambda layer: layer.kernel_initializer.value,
        (10, 5),
    ),
    "bias": lambda: (
        dense(bias_initializer=keras.initializers.Constant(TABLE[0])),
        lambda layer: layer.bias_initializer.value,
        (5,),
    ),
    "regularizer": lambda: (
        dense(kernel_regularizer=PerUnit(np.arange(8))),
        lambda layer: layer.kernel_regularizer.strengths,
        (5,),
    ),
    "constraint": lambda: (
        dense(kernel_constraint=Bounded([[float(i + 1) for i in range(8)]])),
        lambda layer: layer.kernel_constraint.bounds,
        (1, 5),
    ),
    "shape": lambda: (
        dense(kernel_initializer=Shaped((10, 8))),
        lambda layer: np.ones(layer.kernel_initializer.size),
        (10, 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_has_the_size_of_a_weight_is_cut_with_it(name, tmp_path):
    model, held, shape = CASES[name]()
    before = np.asarray(held(model.get_layer("cut")))
    smaller = kp.structured.remove(model, {"cut": [0, 3, 4]}).apply()
    layer = smaller.get_layer("cut")
    assert layer.compute_output_shape((None, 10))[-1] == 5
    after = np.asarray(held(layer))
    assert after.shape == shape
    np.testing.assert_array_equal(after, before[..., [1, 2, 5, 6, 7]] if name != "shape" else after)
    objects = {kind.__name__: kind for kind in (PerUnit, Bounded, Shaped)}
    smaller.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", custom_objects=objects)
    for a, b in zip(smaller.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_weights_of_one_size_keep_their_own():
    recurrent, kernel = (np.random.default_rng(i).normal(size=(6, 6)).astype("float32") for i in (0, 1))
    constant = keras.initializers.Constant
    layer = kl.SimpleRNN(6, kernel_initializer=constant(kernel), recurrent_initializer=constant(recurrent), name="cut")
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, kl.Dense(2)(layer(inputs)))
    small = kp.structured.remove(model, {"cut": [0]}).apply().get_layer("cut")
    np.testing.assert_array_equal(np.asarray(small.kernel_initializer.value), kernel[:, 1:])
    np.testing.assert_array_equal(np.asarray(small.recurrent_initializer.value), recurrent[1:, 1:])
