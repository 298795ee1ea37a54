"""Units that do nothing are left out, and what the model answers stays."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_prune as kp
from keras_prune.structured.analysis.groups import analyse
from keras_prune.structured.surgery.shrink import unread_units, zero_units


def bottleneck():
    """An inverted residual with squeeze-and-excitation, whose 8 channels in the middle two convolutions read."""
    image = keras.Input((6, 6, 3))
    x = kl.BatchNormalization()(kl.Conv2D(4, 3, padding="same")(image))
    y = kl.Activation("relu6")(kl.BatchNormalization()(kl.Conv2D(8, 1, name="expand")(x)))
    y = kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same")(y))
    gate = kl.Conv2D(2, 1, activation="relu", name="squeeze")(kl.GlobalAveragePooling2D(keepdims=True)(y))
    y = kl.Multiply()([y, kl.Conv2D(8, 1, activation="sigmoid")(gate)])
    x = kl.Add()([x, kl.Conv2D(4, 1, name="project")(y)])
    return keras.Model(image, kl.Dense(3)(kl.GlobalAveragePooling2D()(x)))


def randomise(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) * rng.choice([-1, 1], variable.shape))
        if "variance" in variable.name:
            variable.assign(ops.abs(variable))
    return model


def empty_inputs(model, name, channels):
    kernel = model.get_layer(name).kernel
    values = kernel.numpy()
    values[..., channels, :] = 0.0
    kernel.assign(values)


def same(one, other, shape):
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype("float32")
    wanted = one(x).numpy()
    np.testing.assert_allclose(other(x).numpy(), wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_channel_goes_when_all_that_read_it_have_zeros_there():
    model = randomise(bottleneck())
    empty_inputs(model, "project", [0, 1, 5])
    empty_inputs(model, "squeeze", [1, 5, 6])
    smaller = kp.structured.shrink(model)
    assert smaller.get_layer("expand").filters == 6  # 0 and 6 are read by one of the two
    same(model, smaller, (6, 6, 3))
    assert zero_units(analyse(model)).sum() == 0


def test_what_single_zeros_leave_unread_goes_after_strip():
    model = randomise(keras.Sequential([keras.Input((9,)), kl.Dense(40, "relu"), kl.Dense(2), kl.Dense(2)]))
    kp.prune(model, 0.85, allocation="uniform")
    plain = kp.strip(model)
    unread = int((plain.layers[1].kernel.numpy() == 0).all(axis=1).sum())
    assert unread > 20
    smaller = kp.structured.shrink(plain)
    assert smaller.layers[0].units == 40 - unread
    same(plain, smaller, (9,))


def test_of_a_layer_that_nothing_reads_one_unit_stays():
    model = randomise(keras.Sequential([keras.Input((4,)), kl.Dense(5), kl.Dense(2)]))
    model.layers[1].kernel.assign(np.zeros((5, 2)))
    smaller = kp.structured.shrink(model)
    assert smaller.layers[0].units == 1
    same(model, smaller, (4,))


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: ops.sum(x, axis=-1, keepdims=True),
        lambda x: ops.matmul(ops.reshape(x, (-1, 1, 6)), ops.reshape(x, (-1, 6, 1)))[:, 0],
        lambda x: kl.Dot(-1)([x, x]),
    ],
    ids=["sum", "product", "Dot"],
)
def test_a_unit_that_is_summed_without_weights_is_read(reads):
    inputs = keras.Input((4,))
    x = kl.Dense(6, "relu", name="made")(inputs)
    model = randomise(keras.Model(inputs, kl.Concatenate()([kl.Dense(2, name="head")(x), reads(x)])))
    empty_inputs(model, "head", [0, 1, 2])
    assert not unread_units(analyse(model)).any()
    same(model, kp.structured.shrink(model), (4,))


def test_units_of_recurrent_and_attention_layers_are_read_inside_them():
    inputs = keras.Input((5, 8))
    attended = kl.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    model = randomise(keras.Model(inputs, kl.Dense(2, name="head")(kl.LSTM(4)(attended))))
    model.get_layer("head").kernel.assign(np.zeros((4, 2)))  # the state still reads what the head does not
    assert not unread_units(analyse(model)).any()
    output = model.get_layer("attention").output_dense.kernel  # [heads, size, width]
    output.assign(output.numpy() * np.array([0.0, 1.0])[:, None, None])
    unread = unread_units(analyse(model))
    assert unread.any()
    smaller = kp.structured.shrink(model)
    assert smaller.count_params() < model.count_params()
    same(model, smaller, (5, 8))
