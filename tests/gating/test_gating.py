"""What gates do on data: counted by hand; channels that no sample opens, removed where that is exact."""

import json

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.gating import remove_closed

NEVER = -50.0


def bias_of(layer, *closed):
    """Close these channels for any input, open the others."""
    size = layer.head.logit_bias.shape[0]
    layer.head.logit_kernel.assign(np.zeros(layer.head.logit_kernel.shape))
    layer.head.logit_bias.assign(np.where(np.isin(np.arange(size), closed), NEVER, 1.0))


def switched(layer):
    """Gates that follow the sign of the first input: the last channel if it is positive, the first always."""
    channels = layer.head.logit_bias.shape[0]
    read, made = (np.zeros(weight.shape) for weight in layer.head.weights[::2])
    read[0, 0] = 1.0
    made[0, -1] = 1.0
    layer.head.set_weights([read, np.zeros(read.shape[1]), made, np.array([1.0] + [0.0] * (channels - 1))])


@pytest.fixture(scope="module")
def counted():
    """Two layers, the second one called twice, and the report on three samples."""
    shared = kp.Gated(kl.Conv2D(4, 3, padding="same"), 0.25, hidden=2, name="shared")
    inputs = keras.Input((5, 5, 4))
    x = kp.Gated(kl.SeparableConv2D(4, 3), hidden=2, name="separable")(inputs)
    x = kl.Dense(2, name="answer")(kl.GlobalAveragePooling2D()(shared(shared(x))))
    model = keras.Model(inputs, x, name="net")
    separable = model.get_layer("separable")
    switched(separable)
    bias_of(shared, 3)
    data = np.ones((3, 5, 5, 4)) * np.array([1.0, -1.0, -1.0]).reshape(3, 1, 1, 1)
    return model, kp.gate_report(model, data)


def test_shares_and_multiplications_by_hand(counted):
    _, report = counted
    separable, shared = report.layers
    assert (report.samples, separable.path, separable.kind, separable.channels) == (
        3,
        "separable",
        "SeparableConv2D",
        4,
    )
    assert (separable.mean, separable.least, separable.most) == (pytest.approx(4 / 12), 0.25, 0.5)
    assert (separable.never, separable.always) == ((1, 2), (0,))
    deep, point, head = 9 * 9 * 4, 9 * 4 * 4, 4 * 2 + 2 * 4
    assert (separable.macs, separable.macs_of_head) == (deep + point, head)
    assert separable.macs_used == pytest.approx(deep + point / 3)
    assert (shared.mean, shared.never, shared.always, shared.target) == (0.75, (3,), (0, 1, 2), 0.25)
    assert (shared.macs, shared.macs_of_head) == (2 * 9 * 9 * 4 * 4, 2 * head)
    assert shared.macs_used == pytest.approx(0.75 * shared.macs)
    assert report.macs == deep + point + shared.macs + 4 * 2
    assert report.macs_used == pytest.approx(separable.macs_used + shared.macs_used + 3 * head + 8)
    assert report.share == pytest.approx((4 / 12 + 0.75) / 2)


def test_counting_knows_the_layer_and_its_head(counted):
    model, report = counted
    total = kp.structured.count(model).total
    assert total.params == model.count_params()
    assert total.macs == report.macs + sum(layer.macs_of_head for layer in report.layers)
    assert kp.structured.count(model).not_counted == ()


def test_the_report_as_a_table_and_as_data(counted):
    _, report = counted
    text = str(report)
    assert "Gates of net on 3 samples" in text
    assert "Keras and TensorFlow Lite compute closed channels, too" in " ".join(text.split())
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["never"] == [1, 2]
    assert report.to_dict()["share"] == report.share


def test_a_layer_called_for_each_step_is_counted_for_each_step():
    layer = kp.Gated(kl.Dense(4), hidden=1)
    model = keras.Sequential([keras.Input((5, 3)), kl.TimeDistributed(layer), kl.Dense(2)])
    bias_of(layer, 0)
    found = kp.gate_report(model, np.ones((2, 5, 3))).layers[0]
    assert (found.mean, found.macs, found.macs_used, found.macs_of_head) == (0.75, 60, 45.0, 35)


def test_masks_change_no_count():
    layer = kp.Gated(kp.Prunable(kl.Dense(4)), hidden=1)
    model = keras.Sequential([keras.Input((3,)), layer, kl.Dense(2)])
    bias_of(layer, 1)
    found = kp.gate_report(model, np.ones((2, 3))).layers[0]
    assert (found.kind, found.mean, found.macs, found.never) == ("Dense", 0.75, 12, (1,))


def test_models_without_gates_are_refused():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"gate_report: .* has no layer with gates"):
        kp.gate_report(model, np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"takes a keras\.Model\. Received: 3 of type int"):
        kp.gate_report(3, np.ones((2, 3)))


# -- channels that no sample opens -------------------------------------------------------------------------------------


def chain(first, *after, shape=(6, 6, 4), closed=(1, 2)):
    """A gated layer with closed channels, what follows it, an answer, and data; all weights drawn."""
    model = keras.Sequential([keras.Input(shape), kp.Gated(first), *after, kl.Flatten(), kl.Dense(3)])
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([np.abs(rng.normal(size=weight.shape)) for weight in layer.get_weights()])
    bias_of(model.layers[0], *closed)
    return model, rng.normal(size=(5, *shape)).astype("float32")


@pytest.mark.parametrize(
    ("first", "after", "shape"),
    [
        (lambda: kl.Dense(6, "sigmoid"), lambda: [], (4,)),
        (lambda: kl.Conv2D(6, 3, activation="softplus"), lambda: [kl.ReLU(), kl.MaxPooling2D()], (6, 6, 4)),
        (lambda: kl.SeparableConv2D(6, 3), lambda: [kp.Gated(kl.Conv2D(3, 1))], (6, 6, 4)),
        (lambda: kl.Conv1DTranspose(6, 3), lambda: [kl.Conv1D(3, 1)], (6, 4)),
        (
            lambda: keras.Sequential([kl.Conv2D(6, 3), kl.BatchNormalization(), kl.ReLU()]),
            lambda: [kp.Gated(keras.Sequential([kl.Conv2D(4, 3), kl.BatchNormalization()])), kl.Conv2D(3, 1)],
            (6, 6, 4),
        ),
    ],
    ids=["dense", "convolution", "gates behind", "transposed", "in a row"],
)
def test_closed_channels_go_and_answers_stay(first, after, shape):
    model, x = chain(first(), *after(), shape=shape)
    smaller = remove_closed(model, x)
    np.testing.assert_allclose(smaller(x), model(x), rtol=1e-5)
    assert smaller.layers[0].head.logit_bias.shape == (4,)
    assert [weight.shape for weight in model.layers[0].head.weights][-1] == (6,)
    assert kp.gate_report(smaller, x).layers[0].never == ()
    with pytest.raises(ValueError, match=r"0 are closed on all samples, and none can be removed\. Train it to"):
        remove_closed(smaller, x)


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (lambda: [kl.BatchNormalization(name="norm")], "norm has a gamma for it"),
        (lambda: [kl.Activation("sigmoid", name="soft"), kl.Conv2D(3, 1)], "reads it as something else than 0"),
        (lambda: [kl.LayerNormalization(name="norm")], "takes its statistics over this axis"),
        (lambda: [kl.DepthwiseConv2D(3, name="deep")], "deep has a kernel for it"),
    ],
    ids=["offset", "sigmoid", "statistics", "bias"],
)
def test_closed_channels_that_become_something_else_stay(after, why):
    model, x = chain(kl.Conv2D(6, 3), *after())
    with pytest.raises(ValueError, match=f"2 are closed on all samples, and none can be removed: gated.*: .*{why}"):
        remove_closed(model, x)


def test_channels_that_are_added_go_only_if_both_are_closed():
    inputs = keras.Input((4,))
    sides = [kp.Gated(kl.Dense(6), name=name)(inputs) for name in ("a", "b")]
    model = keras.Model(inputs, kl.Dense(2)(kl.Add()(sides)))
    bias_of(model.get_layer("a"), 0, 1)
    bias_of(model.get_layer("b"), 1, 2)
    x = np.random.default_rng(0).normal(size=(5, 4))
    with pytest.warns(UserWarning, match="stay: a: b opens it, .*; b: a opens it"):
        smaller = remove_closed(model, x)
    assert smaller.get_layer("a").layer.units == smaller.get_layer("b").layer.units == 5
    np.testing.assert_allclose(smaller(x), model(x), rtol=1e-5)


def test_a_layer_that_is_closed_altogether_keeps_one_channel():
    model, x = chain(kl.Dense(3), shape=(4,), closed=(0, 1, 2))
    with pytest.warns(UserWarning, match="it is the last one"):
        smaller = remove_closed(model, x)
    assert smaller.layers[0].layer.units == 1
    np.testing.assert_array_equal(smaller(x), model(x))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: keras.Sequential([keras.Input((4,)), kp.Gated(kl.Dense(3))]), "it is an output of the model"),
        (lambda: chain(kl.DepthwiseConv1D(2), shape=(5, 4))[0], "they go with its input's"),
    ],
    ids=["outputs", "inputs"],
)
def test_channels_of_the_model_itself_stay(make, why):
    model = make()
    bias_of(model.layers[0], 1)
    with pytest.raises(ValueError, match=f"1 are closed on all samples, and none can be removed: .*{why}"):
        remove_closed(model, np.ones((2, *model.input_shape[1:])))


def test_masks_have_to_come_off_first():
    model = keras.Sequential([keras.Input((4,)), kp.Gated(kp.Prunable(kl.Dense(3))), kl.Dense(2)])
    bias_of(model.layers[0], 1)
    with pytest.raises(ValueError, match=r"hold masks. Take them off first: kp.strip\(model\)"):
        remove_closed(model, np.ones((2, 4)))
    assert remove_closed(kp.strip(model), np.ones((2, 4))).layers[0].layer.units == 2
