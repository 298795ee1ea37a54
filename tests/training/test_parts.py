"""Parts of the step by hand: clipping, L1 in both forms and with ramps, hidden weights and sums of gradients."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.masks import bound as masks

NEVER = kp.schedules.OneShot(0.5, step=10**6)
X = np.random.default_rng(0).standard_normal((40, 6)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((6, 2))).astype("float32")


def trained(parts, optimizer, epochs=1, bias=False):
    """Weights before and after, and those that plain NumPy gets from the gradients of each step."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, use_bias=bias, bias_initializer="ones")])
    model.compile(optimizer, "mse")
    before = model.get_weights()
    callback = kp.Pruning(NEVER, parts=parts)
    with pytest.warns(UserWarning, match="will not be reached"):
        model.fit(X, Y, batch_size=10, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback])
    return before, model.get_weights()


def sgd(weights, rate, change_gradient=lambda g, w, t: g, change_weight=lambda w, t: w, bias=None):
    w = weights.astype(np.float64)
    b = np.zeros(2) if bias is None else bias.astype(np.float64)
    for t in range(4):
        x, y = X[t * 10 :][:10], Y[t * 10 :][:10]
        error = 2 * (x @ w + b - y) / y.size
        w = change_weight(w - rate * change_gradient(x.T @ error, w, t), t)
        if bias is not None:
            b = b - rate * change_gradient(error.sum(axis=0), b, t)
    return (w, b) if bias is not None else w


def test_clipping_is_by_element_and_keeps_the_sign():
    before, after = trained([kp.ClipGradients(gamma=0.05)], keras.optimizers.SGD(0.1), bias=True)
    w, b = sgd(before[0], 0.1, lambda g, w, t: np.clip(g, -0.05, 0.05), bias=before[1])
    np.testing.assert_allclose(after[0], w, atol=1e-6)
    np.testing.assert_allclose(after[1], b, atol=1e-6)
    assert np.abs(after[0] - before[0]).max() <= 4 * 0.1 * 0.05 + 1e-6


def test_plain_l1_adds_the_sign():
    before, after = trained([kp.L1(0.3)], keras.optimizers.SGD(0.1))
    expected = sgd(before[0], 0.1, lambda g, w, t: g + 0.3 * np.sign(w))
    np.testing.assert_allclose(after[0], expected, atol=1e-6)


def test_l1_on_biases_only_when_asked():
    before, after = trained([kp.L1(0.3, biases=True)], keras.optimizers.SGD(0.1), bias=True)
    _, b = sgd(before[0], 0.1, lambda g, w, t: g + 0.3 * np.sign(w), bias=before[1])
    np.testing.assert_allclose(after[1], b, atol=1e-6)
    before, other = trained([kp.L1(0.3)], keras.optimizers.SGD(0.1), bias=True)
    assert np.abs(other[1] - after[1]).max() > 0.01


def test_proximal_l1_reaches_zero():
    soft = lambda w, t: np.sign(w) * np.maximum(np.abs(w) - 0.1 * 2.0, 0)  # noqa: E731
    before, after = trained([kp.L1(2.0, proximal=True)], keras.optimizers.SGD(0.1))
    np.testing.assert_allclose(after[0], sgd(before[0], 0.1, change_weight=soft), atol=1e-6)
    assert (after[0] == 0).any()
    assert not np.signbit(after[0][after[0] == 0]).any()


def test_a_ramp_scales_the_strength():
    ramp = kp.schedules.Linear(0.0, 0.8, begin_step=0, end_step=4, frequency=1)
    before, after = trained([kp.L1(0.4, ramp=ramp)], keras.optimizers.SGD(0.1))
    expected = sgd(before[0], 0.1, lambda g, w, t: g + 0.4 * t / 4 * np.sign(w))
    np.testing.assert_allclose(after[0], expected, atol=1e-6)


def test_with_accumulation_the_proximal_step_comes_with_the_move():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    before, after = trained([kp.L1(1.0, proximal=True)], optimizer)
    weight = before[0].astype(np.float64)
    moved = weight - 0.1 * 2 * X.T @ (X @ weight - Y) / Y.size
    np.testing.assert_allclose(after[0], np.sign(moved) * np.maximum(np.abs(moved) - 0.1, 0), atol=1e-6)


TOKENS = np.random.default_rng(2).integers(0, 5, (8, 6))
VALUES = 5 * np.random.default_rng(3).standard_normal((8, 3)).astype("float32")


def embedding(optimizer, wrapped=False):
    """A model in whose batches each token occurs many times, and the dense gradient of its table."""
    keras.utils.set_random_seed(0)
    table = layers.Embedding(7, 4, embeddings_initializer="normal")
    inputs = keras.Input((6,), dtype="int32")
    hidden = (kp.Prunable(table) if wrapped else table)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden)))
    model.compile(optimizer, "mse")
    weight, (kernel, bias) = table.get_weights()[0], model.layers[-1].get_weights()
    counts = np.stack([np.bincount(row, minlength=7) for row in TOKENS]) / 6
    error = 2 * (counts @ weight @ kernel + bias - VALUES) / VALUES.size
    return model, table, weight, counts.T @ error @ kernel.T


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in ("gradient", "taylor", "fisher", "movement", "snip")]
    + [("taylor", {"loss_scale_factor": 4.0}), ("taylor", {"gradient_accumulation_steps": 2})],
    ids=str,
)
def test_gradients_of_tokens_that_occur_often_are_added_up(kind, options):
    model, table, weight, gradient = embedding(keras.optimizers.SGD(0.0, **options))
    score = {
        "gradient": np.abs(gradient),
        "taylor": np.abs(weight * gradient),
        "fisher": (weight * gradient) ** 2,
        "movement": -weight * gradient,
        "snip": np.abs(weight * gradient),
    }[kind]
    pruning = kp.GradientPruning(kp.schedules.OneShot(0.5, step=1), kind, scope=kp.Scope(include=".*embeddings"))
    model.fit(TOKENS, VALUES, batch_size=8, epochs=2, verbose=0, callbacks=[pruning])
    kept = table.get_weights()[0] != 0
    assert kept.sum() == 14
    # Rows of tokens that do not occur have no gradient at all: there, ties go by index.
    assert score[~kept].max() <= score[kept].min() + 1e-7


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapper"])
def test_parts_act_on_the_whole_gradient_of_a_token(wrapped):
    class Signs(kp.Part):
        def before(self, gradient, weight, level):
            return keras.ops.sign(gradient)

    for part, change in (
        (kp.ClipGradients(0.02), lambda g, w: np.clip(g, -0.02, 0.02)),
        (kp.L1(0.3), lambda g, w: g + 0.3 * np.sign(w)),
        (Signs(), lambda g, w: np.sign(g)),
    ):
        model, table, weight, gradient = embedding(keras.optimizers.SGD(1.0), wrapped)
        with pytest.warns(UserWarning, match="will not be reached"):
            model.fit(TOKENS, VALUES, batch_size=8, verbose=0, callbacks=[kp.Pruning(NEVER, parts=[part])])
        np.testing.assert_allclose(weight - table.get_weights()[0], change(gradient, weight), atol=1e-5)


def test_parts_combine_with_every_callback():
    parts = [kp.ClipGradients(gamma=1.0), kp.L1(1e-3, proximal=True)]
    ramp = kp.schedules.Linear(0.0, 0.5, begin_step=1, end_step=4, frequency=1)
    for callback in (
        kp.Pruning(ramp, parts=parts),
        kp.GradientPruning(ramp, parts=parts),
        kp.DynamicPruning(ramp, "surgery", parts=parts),
        kp.ThresholdPruning(0.05, parts=parts),
    ):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
        model.compile("adam", "mse")
        model.fit(X, Y, batch_size=10, verbose=0, callbacks=[callback])
        assert (model.get_weights()[0] == 0).sum() >= 12 * callback.sparsity
        assert "apply" not in vars(model.optimizer), "the optimizer is as it was"


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="gamma=0"):
        kp.ClipGradients(gamma=0)
    with pytest.raises(ValueError, match="strength=-1"):
        kp.L1(-1)
    with pytest.raises(ValueError, match="no strength to ramp"):
        kp.ClipGradients(gamma=1, ramp=NEVER)


@pytest.mark.parametrize("large", [0, 1 << 24], ids=["large", "small"])
def test_selection_leaves_positive_zeros_whatever_was_there(monkeypatch, large):
    monkeypatch.setattr(masks, "LARGE", large)
    weight = np.array([[-1.0, 2.0], [np.nan, -np.inf]], dtype=np.float32)
    kept = np.array([[False, True], [False, False]])
    found = keras.ops.convert_to_numpy(masks.select(kept, weight))
    np.testing.assert_array_equal(found, [[0.0, 2.0], [0.0, 0.0]])
    assert not np.signbit(found).any()
