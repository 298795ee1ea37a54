"""What removed units did is taken over by those that stay: exactly where it can be, and nearer to it elsewhere."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.reconstruction import side_by_side

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(40, 8, 8, 3)).astype(np.float32)
ROWS = RNG.normal(size=(400, 6)).astype(np.float32)


def depend(layer, groups=1):
    """The second half of the outputs of each group becomes a mixture of the first; gives their numbers."""
    kernel, bias = (np.asarray(v).copy() for v in (layer.kernel, layer.bias))
    bias = RNG.normal(size=bias.shape)
    gone, size = [], kernel.shape[-1] // groups
    for group in range(groups):
        first = slice(group * size, group * size + size // 2)
        second = slice(first.stop, group * size + size)
        mixture = RNG.normal(size=(size // 2, size - size // 2))
        kernel[..., second], bias[second] = kernel[..., first] @ mixture, bias[first] @ mixture
        gone += range(second.start, second.stop)
    layer.set_weights([kernel, bias])
    return gone


def normalised():
    layer = kl.BatchNormalization()
    layer.build((None, 6, 6, 8))
    layer.set_weights([RNG.uniform(0.5, 2.0, 8), *RNG.normal(size=(2, 8)), RNG.uniform(0.5, 2.0, 8)])
    return layer


def equal_filters():
    layer = kl.DepthwiseConv2D(3, use_bias=False)
    layer.build((None, 6, 6, 8))
    layer.kernel.assign(np.tile(RNG.normal(size=(3, 3, 1, 1)), (1, 1, 8, 1)))
    return layer


CONSUMERS = {
    "convolution": lambda: [kl.Conv2D(5, 3, strides=2)],
    "normalised": lambda: [normalised(), kl.Conv2D(5, 3)],
    "grouped": lambda: [kl.Conv2D(6, 3, groups=2)],
    "depthwise": lambda: [equal_filters(), kl.Conv2D(5, 1)],
    "flat": lambda: [kl.Flatten(), kl.Dense(5)],
    "pooled": lambda: [kl.AveragePooling2D(2), kl.Conv2D(4, 2, use_bias=False), kl.Conv2D(3, 2)],
}


def distance(model, dense, x):
    wanted = dense.predict(x, verbose=0)
    return np.linalg.norm(model.predict(x, verbose=0) - wanted) / np.linalg.norm(wanted)


def check_taken_over(model, gone, x):
    plan = kp.structured.remove(model, {"a": gone})
    solved = plan.apply(reconstruct=x)
    assert solved.count_params() == plan.after.params < model.count_params()
    assert distance(plan.apply(), model, x) > 0.2
    assert distance(solved, model, x) < 0.01


@pytest.mark.parametrize("name", CONSUMERS)
def test_channels_that_others_can_replace_are_replaced(name):
    keras.utils.set_random_seed(1)
    first = kl.Conv2D(8, 3, name="a")
    model = keras.Sequential([keras.Input((8, 8, 3)), first, *CONSUMERS[name]()])
    check_taken_over(model, depend(first, groups=2 if name == "grouped" else 1), IMAGES)


def test_neurons_too_in_nested_models_and_behind_an_addition():
    keras.utils.set_random_seed(1)
    first, second = kl.Dense(8, name="a"), kl.Dense(8)
    inputs = keras.Input((6,))
    x = kl.Add()([first(inputs), second(inputs)])
    model = keras.Model(inputs, keras.Sequential([keras.Input((8,)), kl.Dense(4)], name="inner")(x))
    gone = depend(first)
    mixture = np.linalg.lstsq(first.kernel[:, :4], first.kernel[:, 4:], rcond=None)[0]
    kernel = np.asarray(second.kernel).copy()
    kernel[:, 4:] = kernel[:, :4] @ mixture
    second.kernel.assign(kernel)
    check_taken_over(model, gone, ROWS)


class Perceptron(kl.Layer):
    """A layer of layers, that is seen through."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = kl.Dense(8, name="a"), kl.Dense(4)

    def call(self, x):
        return self.second(self.first(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = kl.Dense(8, name="a"), kl.Dense(4)

    def call(self, x):
        return keras.ops.tanh(self.second(self.first(x)))


@pytest.mark.parametrize("kind", [Perceptron, Subclassed])
def test_neurons_too_in_layers_of_layers_and_subclassed_models(kind, monkeypatch):
    keras.utils.set_random_seed(1)
    inner = kind()
    if isinstance(inner, keras.Model):
        model = inner
        model(ROWS[:1])
    else:
        model = keras.Sequential([keras.Input((6,)), inner, kl.Dense(3)])
    gone = depend(inner.first)
    plan = kp.structured.Plan(analysis := kp.structured.analyse(model), np.ones(analysis.size, bool))
    plan.keep[[int(unit) for unit in analysis.slot_of(inner.first.kernel, 1).units[gone]]] = False
    assert distance(plan.apply(), model, ROWS) > 0.1
    assert distance(plan.apply(reconstruct=ROWS), model, ROWS) < 0.01
    # The same where calls do not pair off, and the whole model is one.
    monkeypatch.setattr(side_by_side, "_graphs", lambda pruned, dense: None)
    assert distance(plan.apply(reconstruct=ROWS), model, ROWS) < 0.01


def blocks():
    inputs = keras.Input((8, 8, 3))
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(16, 3, use_bias=False)(inputs)))
    y = kl.ReLU(6.0)(kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    x = kl.Add()([x, kl.Conv2D(16, 1)(y)])
    return keras.Model(inputs, kl.Dense(5)(kl.GlobalAveragePooling2D()(x)))


def attention():
    inputs = keras.Input((8, 8, 3))
    x = kl.Dense(8)(kl.Reshape((64, 3))(inputs))
    x = kl.Add()([x, kl.MultiHeadAttention(4, 4)(x, x)])
    x = kl.Dense(8)(kl.Dense(16, "gelu")(x))
    return keras.Model(inputs, kl.Dense(5)(kl.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize("build", [blocks, attention])
def test_elsewhere_outputs_are_nearer_to_those_of_the_dense_model(build):
    keras.utils.set_random_seed(2)
    model = build()
    before = model.get_weights()
    found = [kp.structured.prune(model, params=0.6, reconstruct=x) for x in (None, IMAGES)]
    assert found[0].count_params() == found[1].count_params()
    assert distance(found[1], model, IMAGES) < 0.7 * distance(found[0], model, IMAGES)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))
    if build is blocks:
        smaller = kp.recalibrate(found[0], IMAGES)
        convolution, normalisation = smaller.layers[1:3]
        made = np.asarray(convolution(IMAGES)).reshape(-1, normalisation.moving_mean.shape[0])
        np.testing.assert_allclose(normalisation.moving_mean, made.mean(axis=0), atol=0.05)


def test_what_cannot_be_solved_is_named_and_rounds_reconstruct_too():
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((8, 3)), kl.Conv1D(8, 3), kl.LSTM(4, name="lstm"), kl.Dense(2)])
    x = IMAGES[:, 0]
    with pytest.warns(UserWarning, match=r"as they were: lstm.*LSTMCell is not known to multiply"):
        kp.structured.prune(model, params=0.7, reconstruct=x)
    dense = keras.Sequential([keras.Input((6,)), kl.Dense(24, "relu"), kl.Dense(24, "relu"), kl.Dense(3)])
    ends = []
    for given in (None, ROWS):
        history = kp.structured.iterate(
            dense,
            rounds=2,
            params=0.4,
            retrain=lambda model: None,
            evaluate=lambda model: distance(model, dense, ROWS),
            mode="min",
            reconstruct=given,
        )
        ends.append(history.rounds[-1].removed)
    assert ends[1] < 0.7 * ends[0]
