"""Small pruned models, and what the tests read from a file."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def zero_out():
    """A function that zeroes a share of each kernel: single weights, or 4x1 blocks of a Keras kernel [in, out]."""

    def apply(model, zeros=0.9, blocks=False, seed=0):
        rng = np.random.default_rng(seed)
        for variable in model.trainable_variables:
            weight = np.asarray(variable.numpy())
            if weight.ndim < 2 or "bias" in variable.path:
                # A bias of zeros would hide a bias that is dropped.
                variable.assign(rng.normal(size=weight.shape) * 0.1)
                continue
            if blocks and weight.ndim == 2:
                assert weight.shape[0] % 4 == 0
                units = rng.permutation(weight.size // 4) >= round(zeros * (weight.size // 4))
                keep = np.repeat(units.reshape(weight.shape[0] // 4, -1), 4, axis=0)
            else:
                keep = (rng.permutation(weight.size) >= round(zeros * weight.size)).reshape(weight.shape)
            variable.assign(np.where(keep, weight, 0.0))
        return model

    return apply


@pytest.fixture(scope="session")
def make_dense_net(zero_out):
    """A function that makes two Dense layers, 90 % of the 4x1 blocks of each kernel zero."""

    def make():
        import keras
        from keras import layers

        stack = [keras.Input((64,), name="x"), layers.Dense(128, activation="relu"), layers.Dense(16)]
        return zero_out(keras.Sequential(stack), blocks=True)

    return make


@pytest.fixture
def dense_net(make_dense_net):
    return make_dense_net()


@pytest.fixture(scope="session")
def inputs():
    """A function that draws samples for the inputs of a functional or sequential model."""

    def draw(model, samples=5, seed=1):
        rng = np.random.default_rng(seed)
        return [
            rng.integers(0, 9, (samples, *tensor.shape[1:])).astype("int32")
            if tensor.dtype == "int32"
            else rng.normal(size=(samples, *tensor.shape[1:])).astype("float32")
            for tensor in model.inputs
        ]

    return draw


@pytest.fixture(scope="session")
def operators():
    """A function that lists the operators of a file, of all subgraphs."""
    from tflite_export.file import flatbuffer

    def names(path):
        model = flatbuffer.read(path.read_bytes())
        return [flatbuffer.operator_name(model, op) for graph in model.subgraphs for op in graph.operators or []]

    return names
