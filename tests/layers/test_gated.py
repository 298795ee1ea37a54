"""Layers with gates: what they compute, what they learn, what they save, what they refuse."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_prune as kp

# Constructor, and the shape of its input: every kind that can be gated.
CASES = {
    "Dense": (lambda: kl.Dense(6, activation="sigmoid"), (4,)),
    "Dense on steps": (lambda: kl.Dense(6), (5, 4)),
    "Conv1D": (lambda: kl.Conv1D(6, 3), (7, 4)),
    "Conv2D": (lambda: kl.Conv2D(6, 3, padding="same", activation="relu"), (6, 5, 4)),
    "Conv2D in groups": (lambda: kl.Conv2D(6, 3, groups=2), (6, 5, 4)),
    "Conv3D": (lambda: kl.Conv3D(6, 2), (3, 4, 3, 4)),
    "Conv1DTranspose": (lambda: kl.Conv1DTranspose(6, 3), (7, 4)),
    "Conv2DTranspose": (lambda: kl.Conv2DTranspose(6, 3), (4, 4, 4)),
    "Conv3DTranspose": (lambda: kl.Conv3DTranspose(6, 2), (3, 3, 3, 4)),
    "DepthwiseConv1D": (lambda: kl.DepthwiseConv1D(3, depth_multiplier=2), (7, 3)),
    "DepthwiseConv2D": (lambda: kl.DepthwiseConv2D(3, depth_multiplier=2), (6, 5, 3)),
    "SeparableConv1D": (lambda: kl.SeparableConv1D(6, 3), (7, 4)),
    "SeparableConv2D": (lambda: kl.SeparableConv2D(6, 3), (6, 5, 4)),
    "in a row": (
        lambda: keras.Sequential([kl.Conv2D(6, 3), kl.BatchNormalization(), kl.Activation("sigmoid")]),
        (6, 5, 4),
    ),
    "Prunable": (lambda: kp.Prunable(kl.Dense(6)), (4,)),
    "PrunableConv2D": (lambda: kp.PrunableConv2D(6, 3), (6, 5, 4)),
}
each_case = pytest.mark.parametrize("name", CASES)


def made(name, **options):
    """A built layer with gates about zero, and a batch for it."""
    make, shape = CASES[name]
    layer = kp.Gated(make(), **options)
    layer.build((None, *shape))
    rng = np.random.default_rng(0)
    layer.head.set_weights([rng.normal(size=weight.shape) for weight in layer.head.weights])
    return layer, rng.normal(size=(5, *shape)).astype("float32")


def gates_by_hand(head, x):
    """The gates of the formula, in NumPy, with channels last."""
    first, first_bias, second, second_bias = (np.asarray(weight) for weight in head.weights)
    mean = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)
    return np.maximum(mean @ first + first_bias, 0) @ second + second_bias > 0


@each_case
def test_it_is_the_layer_with_each_channel_multiplied_by_its_gate(name):
    layer, x = made(name)
    gates = gates_by_hand(layer.head, x)
    assert 0 < gates.mean() < 1
    np.testing.assert_array_equal(layer.gates(x), gates)
    plain = np.asarray(layer.layer(x))
    wanted = plain * gates.reshape(len(x), *[1] * (plain.ndim - 2), gates.shape[-1])
    np.testing.assert_array_equal(layer(x), wanted)
    assert tuple(layer.compute_output_shape(x.shape)) == wanted.shape


def test_channels_first():
    """The head's arithmetic; a CPU has no convolution with channels first."""
    layer = kp.Gated(kl.Conv2D(6, 3, data_format="channels_first"))
    layer.build((None, 4, 6, 5))
    assert layer.head.hidden_kernel.shape[0] == 4
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 5)).astype("float32")
    layer.head.logit_kernel.assign(np.random.default_rng(1).normal(size=layer.head.logit_kernel.shape))
    np.testing.assert_array_equal(layer.gates(x), gates_by_hand(layer.head, np.moveaxis(x, 1, -1)))
    assert keras.Sequential([keras.Input((4, 6, 5)), layer]).output_shape == (None, 6, 4, 3)


def test_a_mask_leaves_steps_out_of_the_mean():
    layer, x = made("Dense on steps")
    x[:, 3:] = 0.0
    masked = kl.Masking()(x)
    np.testing.assert_array_equal(layer(masked)[:, :3], layer(x[:, :3]))
    assert (np.asarray(layer.gates(x)) != np.asarray(layer.gates(x[:, :3]))).any()
    np.testing.assert_array_equal(layer.compute_mask(masked, masked._keras_mask), masked._keras_mask)


def gradients(layer, x):
    """Of the sum of the gates in training by the logits' bias, times the batch."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        total = ops.sum(layer._gates(ops.convert_to_tensor(x), True, None))
    return np.asarray(tape.gradient(total, layer.head.logit_bias)), float(total)


def test_straight_through_has_the_gradient_of_the_sigmoid():
    layer, x = made("Dense", temperature=0.5)
    logits = np.asarray(layer.head(x))
    soft = 1 / (1 + np.exp(-logits / 0.5))
    found, total = gradients(layer, x)
    np.testing.assert_allclose(found, (soft * (1 - soft) / 0.5).sum(axis=0), rtol=1e-5)
    assert total == pytest.approx((logits > 0).sum())


def test_gumbel_draws_a_gate_as_often_as_its_sigmoid_says_and_again_for_the_same_seed():
    layer, _ = made("Dense", gate="gumbel", seed=3)
    again, _ = made("Dense", gate="gumbel", seed=3)
    x = ops.tile(np.random.default_rng(4).normal(size=(1, 4)).astype("float32"), (4000, 1))
    first, second, third = (np.array(one._gates(x, True, None)) for one in (layer, layer, again))
    np.testing.assert_allclose(first.mean(axis=0), ops.sigmoid(layer.head(x[:1]))[0], atol=0.03)
    assert np.isin(first.round(5), (0, 1)).all()
    assert (first != second).any()
    np.testing.assert_array_equal(third, first)
    np.testing.assert_array_equal(layer(x, training=False), layer(x, training=False))


def test_the_loss_is_the_squared_distance_of_the_mean_share():
    layer, x = made("Conv2D", share=0.25, strength=3.0)
    layer(x)
    assert float(layer.losses[0]) == pytest.approx(3.0 * (gates_by_hand(layer.head, x).mean() - 0.25) ** 2)
    silent, x = made("Conv2D", strength=0)
    silent(x)
    assert silent.losses == []


@pytest.mark.parametrize(("gate", "settings"), [("straight_through", {}), ("gumbel", {"jit_compile": True})])
def test_fit_pulls_the_share_to_what_is_asked(gate, settings, tmp_path):
    """A whole life, in a model inside a model: trained, pruned meanwhile, counted, stripped, saved, loaded."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 8)).astype("float32")
    y = (x @ rng.normal(size=(8, 2))).astype("float32")
    layer = kp.Gated(kl.Dense(16, "relu"), 0.4, gate, strength=4.0, hidden=4, temperature=0.7, seed=5, name="gated")
    inner = keras.Sequential([keras.Input((8,)), layer], name="inner")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, kl.Dense(2)(inner(inputs)))
    model.compile(keras.optimizers.Adam(0.02), "mse", **settings)
    assert kp.gate_report(model, x).share > 0.6
    pruning = kp.Pruning(kp.schedules.OneShot(0.5, step=60), scope=kp.Scope(include="gated"))
    losses = model.fit(x, y, epochs=12, batch_size=16, verbose=0, callbacks=[pruning]).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert kp.gate_report(model, x).share == pytest.approx(0.4, abs=0.1)
    assert (np.asarray(layer.layer.kernel) == 0).mean() == 0.5
    assert all(np.count_nonzero(weight) == weight.size for weight in layer.head.get_weights()[::2])
    skipped = {one.path.rsplit("/", 1)[-1] for one in kp.report(model).skipped if "prunable_weights" in one.reason}
    assert skipped == {"hidden_kernel", "hidden_bias", "logit_kernel", "logit_bias"}
    plain = kp.strip(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for other in (plain, loaded):
        found = other.get_layer("inner").get_layer("gated")
        assert type(found) is kp.Gated
        assert {**found.get_config(), "layer": None} == {**layer.get_config(), "layer": None}
        np.testing.assert_array_equal(other(x), model(x))


def test_mixed_precision_decides_in_float32(tmp_path):
    layer = kp.Gated(kl.Conv2D(4, 3, dtype="mixed_float16"))
    x = np.full((1, 60, 60, 1), 300.0, "float16")  # a sum that float16 does not hold
    assert layer(x).dtype == "float16"
    assert layer.head.compute_dtype == "float32" == layer.head.hidden_kernel.dtype
    assert np.isfinite(np.asarray(layer.head(x))).all()


def test_the_configuration_is_whole():
    options = {"share": 0.3, "gate": "gumbel", "strength": 2.0, "hidden": 5, "temperature": 0.5, "seed": 7}
    layer = kp.Gated(kl.Dense(3), **options, name="mine", dtype="float64")
    config = kp.Gated.from_config(layer.get_config()).get_config()
    assert config == layer.get_config()
    assert {key: config[key] for key in options} == options
    assert config["name"] == "mine"


@pytest.mark.parametrize(
    "make",
    [lambda: kp.Gated(kp.Prunable(kl.Dense(6))), lambda: kp.Prunable(kp.Gated(kl.Dense(6)))],
    ids=["inside", "outside"],
)
def test_masks_come_off_and_gates_stay(make):
    model = keras.Sequential([keras.Input((4,)), make(), kl.Dense(2)])
    mask = np.arange(24).reshape(4, 6) % 2
    next(layer for layer in (model.layers[0], model.layers[0].layer) if type(layer) is kp.Prunable).set_masks([mask])
    plain = kp.strip(model)
    assert type(plain.layers[0]) is kp.Gated
    assert type(plain.layers[0].layer) is kl.Dense
    np.testing.assert_array_equal(np.asarray(plain.layers[0].layer.kernel) != 0, mask)
    np.testing.assert_array_equal(plain(np.ones((2, 4))), model(np.ones((2, 4))))


@pytest.mark.parametrize(
    "layer",
    [kl.LSTM(2), kl.Embedding(3, 2), kl.MultiHeadAttention(2, 2), kl.EinsumDense("ab,bc->ac", 3), kl.ReLU()],
    ids=lambda layer: type(layer).__name__,
)
def test_refuses_layers_of_other_kinds(layer):
    with pytest.raises(ValueError, match=f"wraps a layer in which every output channel .* {type(layer).__name__}"):
        kp.Gated(layer)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([kl.Conv2D(2, 3), kl.Conv2D(2, 3)], "what treats each channel by itself: .* Received: Conv2D"),
        ([kl.Conv2D(2, 3), kl.MaxPooling2D()], "Received: MaxPooling2D"),
        ([kl.Conv2D(2, 3), kl.BatchNormalization(axis=1)], "along axis -1. Received: BatchNormalization"),
        ([kl.Conv2D(2, 3), kl.Activation("softmax")], "normalises over the channels"),
        ([kl.Dense(2, "softmax")], "normalises over the channels"),
        ([kl.ReLU(), kl.Dense(2)], "wraps a layer in which .* Received: ReLU"),
    ],
)
def test_refuses_layers_in_a_row_that_mix_channels(layers, message):
    with pytest.raises(ValueError, match=message):
        kp.Gated(keras.Sequential(layers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, r"share must be a fraction in \(0, 1\]. Received: 0.0"),
        ({"share": 40}, "share .* Received: 40"),
        ({"gate": "soft"}, "gate must be one of .* Received: 'soft'"),
        ({"strength": -1.0}, "strength must be 0 or more. Received: -1.0"),
        ({"hidden": 0}, "hidden .* Received: 0"),
        ({"temperature": 0.0}, "temperature must be above 0. Received: 0.0"),
    ],
)
def test_refuses_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        kp.Gated(kl.Dense(2), **options)


def test_refuses_what_is_no_layer():
    with pytest.raises(TypeError, match=r"wraps a Keras layer\. Received: 3 of type int"):
        kp.Gated(3)
