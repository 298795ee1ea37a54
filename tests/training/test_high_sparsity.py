"""ST-3, AC/DC, pruned momentum SGD and targeted dropout: formulas by hand, and what the rest of a training sees."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prune as kp
from keras_prune.arrays.layouts import Layout
from keras_prune.in_step.dropped_weights import draw_shape
from keras_prune.in_step.soft_thresholds import scales_of, shrink

RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 8)).astype("float32")
Y = (X @ RNG.standard_normal((8, 4))).astype("float32")
S = kp.schedules


def linear(optimizer=None, **options):
    """One kernel `[8, 4]`, whose gradient is that of a formula."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, use_bias=False)])
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", **options)
    return model


def two_layers(optimizer="adam", **options):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(4)])
    model.compile(optimizer, "mse", **options)
    return model


def fit(model, *callbacks, epochs=1, batch_size=12, **options):
    return model.fit(
        X, Y, epochs=epochs, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[*callbacks], **options
    )


def gradient(weight, x, y):
    return 2 * x.T @ (x @ weight - y) / y.size


def kernels(model):
    return [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers]


class Note(keras.callbacks.Callback):
    """Notes something of the model after every batch."""

    def __init__(self, what):
        super().__init__()
        self.what, self.noted = what, []

    def on_train_batch_end(self, batch, logs=None):
        self.noted.append(self.what(self.model))


# -- soft threshold ---------------------------------------------------------------------------------------------------


def test_what_is_shown_by_hand():
    whole = np.array([[3.0, -0.5], [-2.0, 1.5], [0.5, -4.0]], np.float32)
    mask = np.array([[True, False], [True, True], [True, True]])
    # Kept of the outputs' |w|: all of 5.5, and 5.5 of 6.
    scale = scales_of(whole, mask, Layout.plain(2))
    np.testing.assert_allclose(scale, [[1.0, 1.01 / (5.5 / 6 + 0.01)]], rtol=1e-5)
    shown = np.asarray(shrink(whole, mask, 1.0, np.array([[1.0, 2.0]], np.float32)))
    np.testing.assert_array_equal(shown, [[2, 0], [-1, 1], [0, -6]])
    assert not np.signbit(shown[shown == 0]).any()


def test_a_scale_for_each_output_of_any_layout():
    kernel, mask = np.ones((3, 3, 4, 6), np.float32), np.ones((3, 3, 4, 6), bool)
    for layout, shape in (
        (Layout.plain(4), (1, 1, 1, 6)),
        (Layout.transposed(4), (1, 1, 4, 1)),
        (Layout.depthwise(4), (1, 1, 4, 6)),
        (Layout.grouped(4, 2), (1, 1, 1, 6)),
    ):
        assert scales_of(kernel, mask, layout).shape == draw_shape(layout, kernel.shape, units=True) == shape


@pytest.mark.parametrize("rescale", [True, False])
def test_whole_weights_learn_by_the_gradient_at_what_is_shown(rescale):
    """Three updates and the steps between them, beside the same in NumPy; what is off goes on learning, and returns."""
    model, note = linear(), Note(lambda model: model.get_weights()[0])
    schedule = S.Linear(0.25, 0.5, begin_step=0, end_step=6, frequency=3)
    whole = model.get_weights()[0].astype(np.float64)
    callback = kp.SoftThreshold(schedule, rescale=rescale)
    fit(model, callback, note, epochs=3, batch_size=16)
    mask, threshold, scale, seen, returned = np.ones_like(whole, bool), 0.0, 1.0, [], 0

    def shown():
        return np.where(mask & (np.abs(whole) > threshold), scale * np.sign(whole) * (np.abs(whole) - threshold), 0.0)

    def update(step):
        nonlocal mask, threshold, scale, returned
        off = np.argsort(np.abs(whole), axis=None, kind="stable")[: round(schedule(step) * 32)]
        before, mask = mask, np.ones_like(mask)
        mask.reshape(-1)[off] = False
        returned += int((mask & ~before).sum())
        threshold = np.abs(whole)[~mask].max()
        kept = (np.abs(whole) * mask).mean(axis=0) + 1e-6
        scale = 1.01 / (kept / (np.abs(whole).mean(axis=0) + 1e-6) + 0.01) if rescale else 1.0

    update(0)
    for step in range(1, 10):
        start = 16 * ((step - 1) % 3)
        whole -= 0.1 * gradient(shown(), X[start : start + 16], Y[start : start + 16])
        at_end_of_batch = shown()
        if schedule.should_update(step):
            update(step)
        seen.append((at_end_of_batch, shown()))
    # The callback stands before the one that notes: it sees what an update has made.
    for noted, (_, expected) in zip(note.noted, seen, strict=True):
        np.testing.assert_allclose(noted, expected, atol=2e-5)
        np.testing.assert_array_equal(noted == 0, expected == 0)
    assert returned > 0
    assert callback.sparsity == 0.5
    np.testing.assert_array_equal(kp.strip(model).get_weights()[0], note.noted[-1])


def test_averages_are_those_of_whole_weights():
    """Shown as the weights are: without parting, each step would bring them nearer to zero by the threshold."""
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.5)
    model = linear(optimizer)
    fit(model, kp.SoftThreshold(S.ConstantSparsity(0.5, begin_step=0)), epochs=2)
    average = np.asarray(model.optimizer._model_variables_moving_average[0].value)
    np.testing.assert_allclose(average, model.get_weights()[0], rtol=1e-4)
    assert (average == 0).sum() == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fit(linear(), kp.SoftThreshold(0.5, pattern=kp.patterns.Block(4, 1))),
            r"SoftThreshold: a threshold is one of single weights\. Received: Block\(.*kernel'.*'surgery'",
        ),
        (lambda: kp.SoftThreshold(S.Threshold(0.1)), r"SoftThreshold: the schedule must give a sparsity\. Received: T"),
        (
            lambda: fit(_compiled(kp.PrunableDense(4, use_bias=False)), kp.SoftThreshold(S.OneShot(0.5))),
            r"SoftThreshold: .*a wrapper layer makes 0\. Received: .*straight_through=True",
        ),
        (lambda: kp.Alternating(0.5, pattern=kp.patterns.NofM(2, 4)), r"Alternating: nothing can come back in NofM"),
        (lambda: kp.TargetedDropout(0.5, 1.5), r"TargetedDropout: rate must be a fraction in \[0, 1\]\. Received: r"),
        (lambda: kp.TargetedDropout(0.5, pattern="channel"), r"weights or whole outputs\. Received: pattern=Channel"),
        (lambda: kp.TargetedDropout(1.0), r"TargetedDropout: the share of weights must be a fraction in \[0, 1\)"),
        (lambda: kp.MaskMomentum(ramp=S.OneShot(0.5)), r"MaskMomentum has no strength to ramp"),
        (
            lambda: fit(linear(), kp.DynamicPruning(0.5, "surgery", parts=kp.MaskMomentum())),
            r"MaskMomentum: pruned weights must be held by a mask\. Received: .*kernel",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_alternating_takes_phases_only():
    with pytest.raises(TypeError, match=r"Alternating: schedule must be a keras_prune\.schedules\.Phases.*OneShot"):
        kp.Alternating(S.OneShot(0.5))


def _compiled(layer):
    model = keras.Sequential([keras.Input((8,)), layer])
    model.compile("sgd", "mse")
    return model


# -- alternating ------------------------------------------------------------------------------------------------------


def test_phases_and_momentum_by_hand():
    """Momentum SGD beside the same in NumPy: pruned weights stand still, come back as 0, and momentum is cleared."""
    model, note = linear(keras.optimizers.SGD(0.1, momentum=0.9)), Note(lambda model: model.get_weights()[0])
    phases = S.Phases(0.5, begin=2, end=7, sparse=2, dense=2)
    weight, velocity, mask = model.get_weights()[0].astype(np.float64), 0.0, np.ones((8, 4), bool)
    fit(model, kp.Alternating(phases), note, epochs=3, batch_size=16)
    for step, noted in enumerate(note.noted, start=1):
        start = 16 * ((step - 1) % 3)
        velocity = 0.9 * velocity - 0.1 * gradient(weight, X[start : start + 16], Y[start : start + 16]) * mask
        weight = (weight + velocity) * mask
        if step in (2, 7):
            mask = np.abs(weight) > np.sort(np.abs(weight), axis=None)[15]
            weight = weight * mask
        if step == 4:
            mask, velocity = np.ones_like(mask), 0.0
        np.testing.assert_allclose(noted, weight, atol=1e-5)
        assert (noted == 0).sum() == (0 if step in (1, 5, 6) else 16), step
    assert (kp.strip(model).get_weights()[0] == 0).sum() == 16


@pytest.mark.parametrize("optimizer", ["adam", "adamax", "rmsprop", "lion"])
def test_momentum_is_cleared_and_scales_are_not(optimizer):
    made = keras.optimizers.get(optimizer)
    if optimizer == "rmsprop":
        made = keras.optimizers.RMSprop(0.01, momentum=0.9)
    model, pruning = linear(made), kp.Alternating(S.Phases(0.5, begin=1, end=9, sparse=2, dense=2))
    pruning.attach(model)
    pruning.on_step(0)
    for _ in range(3):
        model.train_on_batch(X, Y)
        pruning.on_step()
    momentum = next(list_ for name, list_ in vars(made).items() if "momentums" in name or name == "_m")[0]
    assert (np.asarray(momentum.value) == 0).all()
    scale = next((list_[0] for name, list_ in vars(made).items() if name in ("_velocities", "_u")), None)
    if scale is not None:
        # Those of weights that have just come back begin anew.
        assert (np.asarray(scale.value) == 0).sum() == 16
    pruning.detach()


# -- masked momentum --------------------------------------------------------------------------------------------------


def test_masked_momentum_by_hand():
    """v = m (mu v - a g), w = m (w + v); without the part, the momentum of what is pruned runs on."""
    once = S.OneShot(0.5, step=3)
    left = {}
    for part in ((), kp.MaskMomentum()):
        model = linear(keras.optimizers.SGD(0.1, momentum=0.9))
        weight, velocity, mask = model.get_weights()[0].astype(np.float64), np.zeros((8, 4)), np.ones((8, 4), bool)
        note = Note(lambda model: (model.get_weights()[0], model.optimizer.momentums[0].numpy()))
        fit(model, kp.Pruning(once, parts=part), note, epochs=2, batch_size=16)
        left[bool(part)] = note.noted[-1][1]
    for step, (noted, moved) in enumerate(note.noted, start=1):
        start = 16 * ((step - 1) % 3)
        g = gradient(weight, X[start : start + 16], Y[start : start + 16]) * mask
        velocity = (0.9 * velocity - 0.1 * g) * mask
        weight = (weight + velocity) * mask
        if step == 3:
            mask = np.abs(weight) > np.sort(np.abs(weight), axis=None)[15]
            weight = weight * mask
        np.testing.assert_allclose(noted, weight, atol=1e-5)
        if step != 3:  # masked from the next step on
            np.testing.assert_allclose(moved, velocity, atol=1e-5)
            assert step < 3 or (moved[~mask] == 0).all()
    assert (left[False][~mask] != 0).all()


# -- targeted dropout -------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_the_dropped_network():
    """The gradient of the loss of what is left, 0 for what is dropped; the optimizer moves whole weights."""
    model = linear()
    dropout = kp.TargetedDropout(S.ConstantSparsity(0.5, begin_step=0, frequency=2), rate=0.5, seed=3)
    dropout.attach(model)
    dropout.on_step(0)
    drawn = []
    for step in range(40):
        whole = model.get_weights()[0]
        with dropout.dropped():
            shown = model.get_weights()[0]
            model.train_on_batch(X, Y)
        dropout.on_step()
        off = shown == 0
        if step % 2 == 0:
            low = np.zeros(32, bool)
            low[np.argsort(np.abs(whole), axis=None, kind="stable")[:16]] = True
        assert not (off.reshape(-1) & ~low).any()
        np.testing.assert_array_equal(shown[~off], whole[~off])
        expected = whole - 0.1 * np.where(off, 0.0, gradient(shown.astype(np.float64), X, Y))
        np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-5)
        drawn.append(off.sum())
    # 40 draws of 16 coins.
    assert abs(np.sum(drawn) - 320) < 4 * np.sqrt(640 * 0.25)
    assert len(set(drawn)) > 3
    dropout.detach()
    assert "apply" not in vars(model.optimizer)


def test_units_are_dropped_whole():
    model = two_layers()
    dropout = kp.TargetedDropout(0.5, rate=1.0, pattern="filter", scope=kp.Scope(include=r".*dense/kernel"))
    dropout.attach(model)
    dropout.on_step(0)
    weight = model.get_weights()[0]
    with dropout.dropped():
        shown = model.get_weights()[0]
    low = np.argsort(np.abs(weight).mean(axis=0), kind="stable")[:8]
    assert np.flatnonzero((shown == 0).all(axis=0)).tolist() == sorted(low)
    assert (shown == 0).sum() == 64
    np.testing.assert_array_equal(model.get_weights()[0], weight)
    with pytest.raises(ValueError, match="an error of a step"), dropout.dropped():
        raise ValueError("an error of a step")
    np.testing.assert_array_equal(model.get_weights()[0], weight)
    dropout.detach()


def test_dropout_and_pruning_together_in_every_way_of_running_the_step():
    """Several steps in one call draw what single ones do, and pruning sees whole weights."""
    losses = []
    for options in ({}, {"jit_compile": True}, {"steps_per_execution": 4}):
        model, note = two_layers(**options), Note(kernels)
        history = fit(model, kp.Pruning(S.OneShot(0.5, step=4)), kp.TargetedDropout(0.75, 0.5), note, epochs=2)
        zeros = [sum(int((kernel == 0).sum()) for kernel in noted) for noted in note.noted]
        assert set(zeros) <= {0, 96}
        assert zeros[-1] == 96
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4)


def test_replicas_drop_the_same(mirrored):
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.clear_session()
        with strategy.scope():
            model = two_layers(keras.optimizers.SGD(0.01))
        fit(model, kp.TargetedDropout(0.75, 0.5))
        weights.append(model.get_weights())
    for single, several in zip(*weights, strict=True):
        np.testing.assert_allclose(several, single, rtol=1e-4, atol=1e-6)


def test_an_interrupt_leaves_whole_weights_and_a_loop_without_scopes_is_told():
    model = two_layers()
    before = kernels(model)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model.compute_loss = interrupt
    with pytest.raises(KeyboardInterrupt):
        fit(model, kp.TargetedDropout(0.5, 1.0))
    for now, then in zip(kernels(model), before, strict=True):
        np.testing.assert_array_equal(now, then)
    del model.compute_loss
    dropout = kp.TargetedDropout(0.5)
    dropout.attach(model)
    dropout.on_step(0)
    with pytest.raises(RuntimeError, match=r"with dropout\.dropped\(\): step\(\.\.\.\)"):
        dropout.on_step()
    dropout.detach()


def test_what_was_trained_with_dropout_bears_a_prune():
    losses = []
    for callbacks in ((), (kp.TargetedDropout(0.5, 0.7),)):
        model = two_layers(keras.optimizers.Adam(0.05))
        fit(model, *callbacks, epochs=20)
        kp.prune(model, 0.5, allocation="uniform")
        losses.append(float(np.mean((keras.ops.convert_to_numpy(model(X)) - Y) ** 2)))
    assert losses[1] < 0.7 * losses[0]
