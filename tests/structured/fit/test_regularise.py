import dataclasses

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_prune as kp
from keras_prune.structured import BatchNormScale, analyse
from keras_prune.structured.fit.callback import StructuredPruning
from keras_prune.structured.fit.regularise import (
    GroupLasso,
    GrowingPenalty,
    GrowingRegularisation,
    Slimming,
    UnitSlices,
)
from keras_prune.structured.surgery.shrink import shrink, zero_units

A = np.array([[3.0, 0.0, 0.1], [4.0, 0.0, 0.2]], "float32")  # [2 inputs, 3 units]
BIAS = np.array([0.0, 0.0, 0.2], "float32")
B = np.array([[0.0], [0.0], [0.4]], "float32")  # [3 units, 1 output]
NORMS = np.array([5.0, 0.0, 0.5])
COUNT = 4  # weights of a unit


def two_layers():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(3, name="a"), kl.Dense(1, name="b")])
    model.set_weights([A, BIAS, B, np.array([7.0])])
    return model


def stepped(part, model, gradients=None, rate=0.1, level=1.0):
    """What a part makes of gradients, and leaves of weights."""
    optimizer = keras.optimizers.SGD(rate)
    optimizer.build(model.trainable_variables)
    active = part.on_units(analyse(model), level, optimizer)
    zeros = [ops.zeros(v.shape) for v in model.trainable_variables]
    made = active.before(gradients or zeros, list(model.trainable_variables))
    active.after(list(model.trainable_variables))
    return [np.array(g) for g in made], model.get_weights()


def test_slices():
    slices = UnitSlices(analyse(two_layers()))
    np.testing.assert_array_equal(slices.counts, [4, 4, 4, 0])
    np.testing.assert_allclose(np.sqrt(np.array(slices.squares())[:3]), NORMS, rtol=1e-6)


def test_group_lasso_adds_its_gradient():
    model = two_layers()
    given = [ops.ones(v.shape) for v in model.trainable_variables]
    made, weights = stepped(GroupLasso(0.3), model, given, level=0.5)
    scale = 0.5 * 0.3 * np.sqrt(COUNT) * np.array([1 / 5.0, 0.0, 1 / 0.5])
    np.testing.assert_allclose(made[0], 1.0 + A * scale, rtol=1e-6)
    np.testing.assert_allclose(made[1], 1.0 + BIAS * scale, rtol=1e-6)
    np.testing.assert_allclose(made[2], 1.0 + B * scale[:, None], rtol=1e-6)
    np.testing.assert_array_equal(made[3], [1.0])  # the output's bias is of no unit
    for value, before in zip(weights, two_layers().get_weights(), strict=True):
        np.testing.assert_array_equal(value, before)


def test_group_lasso_takes_the_proximal_step():
    model = two_layers()
    made, weights = stepped(GroupLasso(3.0, proximal=True), model, rate=0.1, level=0.5)
    assert not any(gradient.any() for gradient in made)
    bound = 0.1 * 0.5 * 3.0 * np.sqrt(COUNT)  # 0.3, so unit 2 of norm 0.5 is left with 0.2
    factor = np.array([1 - bound / 5.0, 0.0, 1 - bound / 0.5])
    np.testing.assert_allclose(weights[0], A * factor, rtol=1e-5)
    np.testing.assert_allclose(weights[1], BIAS * factor, rtol=1e-5)
    np.testing.assert_allclose(weights[2], B * factor[:, None], rtol=1e-5)
    model.layers[0].kernel.assign(0.0 - A)
    stepped(GroupLasso(6.0, proximal=True), model, rate=0.1, level=0.5)
    for value in (model.layers[0].kernel.numpy()[:, 1:], model.layers[1].kernel.numpy()[1:]):
        assert not value.any()
        assert not np.signbit(value).any()
    np.testing.assert_array_equal(zero_units(analyse(model)), [False, True, True])


def test_a_weight_of_two_units_takes_both():
    model = keras.Sequential([keras.Input((1,)), *(kl.Dense(n, use_bias=False) for n in (2, 2, 1))])
    first, middle, last = np.array([[1.0, 2.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0], [1.0]])
    model.set_weights([first, middle, last])
    norms = np.sqrt([1 + 1 + 4, 4 + 9 + 16]), np.sqrt([1 + 9 + 4, 4 + 16 + 1])
    one, two = (np.sqrt(3.0) / n for n in norms)
    made, _ = stepped(GroupLasso(1.0), model)
    np.testing.assert_allclose(made[0], first * one, rtol=1e-6)
    np.testing.assert_allclose(made[1], middle * (one[:, None] + two), rtol=1e-6)
    np.testing.assert_allclose(made[2], last * two[:, None], rtol=1e-6)
    _, weights = stepped(GroupLasso(1.0, proximal=True), model, rate=0.1)
    np.testing.assert_allclose(weights[1], middle * (1 - 0.1 * one[:, None]) * (1 - 0.1 * two), rtol=1e-5)
    # To first order in the rate, both are one step.
    _, tiny = stepped(GroupLasso(1e-3, proximal=True), model, rate=0.1)
    gradient = stepped(GroupLasso(1e-3), model)[0][1]
    np.testing.assert_allclose(weights[1] - tiny[1], 0.1 * gradient, rtol=2e-3)


def test_slimming_acts_on_scales_alone():
    norm = kl.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((2,)), kl.Dense(3), norm, kl.Dense(1)])
    norm.gamma.assign([0.5, -0.5, 0.01])
    before = model.get_weights()
    made, _ = stepped(Slimming(0.2), model, level=0.5)
    expected = [np.zeros(v.shape) for v in model.trainable_variables]
    expected[2] = np.array([0.1, -0.1, 0.1])
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    _, weights = stepped(Slimming(1.0, proximal=True), model, rate=0.1)
    before[2] = np.array([0.4, -0.4, 0.0])
    for a, b in zip(weights, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(ValueError, match="has no batch normalisation with a trainable scale"):
        stepped(Slimming(0.1), two_layers())


def test_growing_penalty():
    model = two_layers()
    strengths = keras.Variable(np.array([0.5, 0.0, 2.0, 0.0]), dtype="float32")
    penalty = GrowingPenalty(UnitSlices(analyse(model)), strengths)
    variables = list(model.trainable_variables)
    made = penalty.before([ops.ones(v.shape) for v in variables], variables)
    factor = np.array([0.5, 0.0, 2.0])
    np.testing.assert_allclose(made[0], 1.0 + A * factor, rtol=1e-6)
    np.testing.assert_allclose(made[1], 1.0 + BIAS * factor, rtol=1e-6)
    np.testing.assert_allclose(made[2], 1.0 + B * factor[:, None], rtol=1e-6)


def problem(units=16):
    """Two of the inputs matter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 6)).astype("float32")
    y = np.maximum(x[:, :1], 0) - np.maximum(x[:, 1:2], 0)
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), kl.Dense(units, activation="relu"), kl.Dense(1)])
    return model, x, y


def unit_norms(model):
    return np.sqrt(np.array(UnitSlices(analyse(model)).squares())[:-1])


def train(model, x, y, parts):
    """With parts only: nothing is closed yet."""
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    pruning = StructuredPruning(params=0.5, begin_step=320, end_step=320, parts=parts)
    model.fit(x, y, batch_size=32, epochs=79, verbose=0, callbacks=[pruning])
    return pruning


def cost_of_closing(pruning, model, x, y, number):
    """How much the loss rises without the units of the least norms."""
    before = model.evaluate(x, y, verbose=0)
    pruning.gates.close(np.argsort(unit_norms(model))[:number])
    return model.evaluate(x, y, verbose=0) - before


@pytest.mark.filterwarnings("ignore:StructuredPruning. the last units go at step")
@pytest.mark.parametrize("proximal", [False, True])
def test_group_lasso_empties_units_that_then_cost_nothing(proximal):
    model, x, y = problem()
    pruning = train(model, x, y, [GroupLasso(0.01, proximal=proximal)])
    norms = np.sort(unit_norms(model))
    assert model.evaluate(x, y, verbose=0) < 0.01
    assert norms[11] < 0.01
    assert norms[12] > 0.1
    assert (not norms[:12].any()) is proximal
    if proximal:
        smaller = shrink(model)
        assert smaller.layers[0].units == 4
        np.testing.assert_allclose(smaller(x), model(x), atol=1e-5)
    assert cost_of_closing(pruning, model, x, y, 12) < 1e-5


@pytest.mark.filterwarnings("ignore:StructuredPruning. the last units go at step")
def test_without_group_lasso_units_cost_something():
    model, x, y = problem()
    pruning = train(model, x, y, [])
    assert unit_norms(model).min() > 0.3
    assert cost_of_closing(pruning, model, x, y, 12) > 1e-3


def test_growing_regularisation_moves_what_units_do_before_they_go():
    model, x, y = problem()
    growing = GrowingRegularisation(delta=0.25, every=4, ceiling=5.0)
    assert growing.steps == 76
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    pruning = StructuredPruning(params=0.5, end_step=8, begin_step=8, parts=[growing])
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            on = pruning._run._read_strengths() > 0
            norm = float(unit_norms(model)[on].max()) if on.any() else 0.0
            seen.append((int(on.sum()), float(pruning._run._read_strengths().max()), norm, logs["params_left"]))

    model.fit(x, y, batch_size=32, epochs=25, verbose=0, callbacks=[pruning, Look()])
    chosen, strength, norms, left = (np.array(column) for column in zip(*seen, strict=True))
    assert not chosen[:7].any()
    assert (chosen[7:83] == 9).all()  # (8 * 16 + 1) / 2 leaves 7 units
    np.testing.assert_allclose(strength[7:83:4], np.arange(1, 20) * 0.25)
    assert not chosen[83:].any()
    assert (left[:83] == 1.0).all()
    assert (left[83:] <= 0.5).all()
    assert norms[82] < 0.05 * norms[7]
    assert model.evaluate(x, y, verbose=0) < 0.05


def test_slimming_shows_which_channels_to_remove():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 6)).astype("float32")
    y = x[:, :1] - x[:, 1:2]
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), kl.Dense(12, use_bias=False), kl.BatchNormalization(), kl.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    pruning = StructuredPruning(
        params=0.45,
        begin_step=160,
        end_step=160,
        importance=BatchNormScale(normalise="none"),
        scope="global",
        parts=[Slimming(0.1, proximal=True)],
    )
    before = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if int(model.optimizer.iterations) == 159:
                before.append(np.abs(model.layers[1].gamma.numpy()))

    model.fit(x, y, batch_size=32, epochs=45, verbose=0, callbacks=[pruning, Look()])
    closed = np.flatnonzero(~pruning.gates.keep)
    assert len(closed) == 7  # 12 * 11 + 1 parameters, 5 * 11 + 1 left
    assert set(closed) == set(np.argsort(before[0])[:7])
    assert before[0][closed].max() < 0.05
    assert before[0].max() > 0.4
    assert model.evaluate(x, y, verbose=0) < 0.05
    np.testing.assert_allclose(pruning.shrink()(x), model(x), atol=1e-5)


def test_the_proximal_step_waits_for_accumulated_gradients():
    model = two_layers()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse", run_eagerly=True)
    pruning = StructuredPruning(params=0.9, end_step=1000, parts=[GroupLasso(0.1, proximal=True)])
    pruning.attach(model)
    pruning.on_step(0)
    x, y = np.zeros((4, 2), "float32"), np.full((4, 1), 7.0, "float32")  # no gradient but that of the last bias
    model.layers[0].bias.assign(np.zeros(3))
    before = model.layers[0].kernel.numpy()
    model.train_on_batch(x, y)
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), before)
    model.train_on_batch(x, y)
    assert np.linalg.norm(model.layers[0].kernel.numpy()[:, 0]) == pytest.approx(5.0 - 0.1 * 0.1 * 2.0, rel=1e-5)


def test_beside_a_pruning_of_single_weights():
    model, x, y = problem()
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    pruning = kp.Pruning(kp.schedules.OneShot(0.3, step=90), parts=[GroupLasso(0.02, proximal=True)])
    model.fit(x, y, batch_size=32, epochs=60, verbose=0, callbacks=[pruning])
    assert not np.sort(unit_norms(model))[7]
    with pytest.raises(ValueError, match="only StructuredPruning chooses some"):
        model.fit(x, y, verbose=0, callbacks=[kp.Pruning(kp.schedules.OneShot(0.3), parts=[GrowingRegularisation()])])


@pytest.mark.parametrize(
    "part",
    [
        GroupLasso(0.5, proximal=True, ramp=kp.schedules.Linear(0.0, 0.5, begin_step=1, end_step=4)),
        Slimming(0.25, proximal=True, ramp=kp.schedules.OneShot(0.5)),
        GrowingRegularisation(0.125, 3, 0.5),
    ],
)
def test_configurations(part):
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(part)) == part
    assert type(part).from_config(part.get_config()) == part
    defaults = type(part)()
    same = [f.name for f in dataclasses.fields(part) if getattr(part, f.name) == getattr(defaults, f.name)]
    assert same == (["ramp"] if isinstance(part, GrowingRegularisation) else [])


def test_refusals():
    with pytest.raises(ValueError, match=r"GroupLasso: strength must be 0 or more. Received: strength=-1"):
        GroupLasso(-1)
    with pytest.raises(ValueError, match=r"Slimming: strength must be 0 or more. Received: strength=-0.1"):
        Slimming(-0.1)
    with pytest.raises(
        ValueError, match=r"delta must be above 0 and not above the ceiling. Received: delta=2, ceiling=1"
    ):
        GrowingRegularisation(delta=2, ceiling=1)
    with pytest.raises(ValueError, match=r"every must be a whole number from 1. Received: 0.5"):
        GrowingRegularisation(every=0.5)
    with pytest.raises(ValueError, match=r"grows by itself. Received: ramp=OneShot"):
        GrowingRegularisation(ramp=kp.schedules.OneShot(0.5))
    assert not hasattr(GroupLasso(), "before"), "it acts on units, and has no method for one tensor"
    with pytest.raises(ValueError, match="only StructuredPruning chooses some"):
        GrowingRegularisation().bind(two_layers(), (), 1.0, None)
