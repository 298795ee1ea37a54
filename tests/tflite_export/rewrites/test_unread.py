"""The rewrite that leaves out channels which no weight reads."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl

from tflite_export import export, inspect
from tflite_export.rewrites import unread
from tflite_export.rewrites.unread import NAME, UnreadPass


def network(width=48):
    """A network in which sparse inference can run: a stem, then an inverted residual, then a mean."""
    image = keras.Input((32, 32, 3))
    x = kl.ReLU(6.0)(kl.Conv2D(16, 3, 2, padding="same", name="stem")(image))
    y = kl.ReLU(6.0)(kl.Conv2D(width, 1, name="expand")(x))
    y = kl.ReLU(6.0)(kl.DepthwiseConv2D(3, padding="same", name="depthwise")(y))
    x = kl.Add()([x, kl.Conv2D(16, 1, name="project")(y)])
    return keras.Model(image, kl.Dense(4, name="head")(kl.GlobalAveragePooling2D()(x)))


def pruned(empty, zeros, seed=0):
    """A network with zeros in its 1x1 kernels, and channels in the middle that `project` does not read."""
    keras.utils.set_random_seed(seed)
    model, rng = network(), np.random.default_rng(seed)
    for layer in (model.get_layer("expand"), model.get_layer("project")):
        kernel = layer.kernel.numpy()
        kernel[rng.permutation(kernel.size).reshape(kernel.shape) < zeros * kernel.size] = 0.0
        layer.bias.assign(rng.normal(size=layer.bias.shape))
        layer.kernel.assign(kernel)
    kernel = model.get_layer("project").kernel.numpy()
    rows = kernel[0, 0]
    rows[~rows.any(axis=1), 0] = 0.5
    rows[:empty] = 0.0
    model.get_layer("project").kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")


def test_channels_that_nothing_reads_are_not_in_the_file(tmp_path, images):
    model = pruned(empty=20, zeros=0.85)
    report = export(model, tmp_path / "m.tflite", target="web", data=images, batch_size=1)
    left_out = [change for change in report.changes if change.rewrite == NAME]
    assert [change.what for change in left_out] == ["20 of 48 units left out, which nothing reads"]
    shapes = sorted(line.shape for line in report.lines if len(line.shape) == 4)
    assert shapes == [(1, 3, 3, 28), (16, 1, 1, 28), (16, 3, 3, 3), (28, 1, 1, 16)]
    assert inspect(tmp_path / "m.tflite", target="web").runs_sparse
    assert model.get_layer("expand").filters == 48


def test_zeros_that_sparse_inference_needs_stay(images):
    model = pruned(empty=32, zeros=0.0)  # of the zeros of a kernel, all but five lie in channels that nothing reads
    kernel = model.get_layer("project").kernel.numpy()
    kernel[..., 40, :5] = 0.0
    model.get_layer("project").kernel.assign(kernel)
    assert UnreadPass(zeros_from=2 / 3).apply(model).model is model
    assert UnreadPass(zeros_from=0.99).apply(model).model.get_layer("expand").filters == 16


def test_a_model_that_cannot_be_built_again_stays_with_the_reason(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("'own' cannot be built from its configuration")

    monkeypatch.setattr(unread, "rebuild", refuse)
    model = pruned(empty=4, zeros=0.85)
    result = UnreadPass().apply(model)
    assert result.model is model
    assert [refusal.reason for refusal in result.refusals] == ["'own' cannot be built from its configuration"]


def test_a_model_whose_channels_are_all_read_is_not_looked_into():
    assert not UnreadPass().concerns(network())
