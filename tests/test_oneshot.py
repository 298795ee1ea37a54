"""kp.prune: at once, in place, on from what is pruned already."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.masks import mask_of

X = np.random.default_rng(0).standard_normal((64, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((8, 3))).astype("float32")


def make_model(compiled=True):
    first, last = layers.Dense(16, activation="relu", name="first"), layers.Dense(3, name="last")
    model = keras.Sequential([keras.Input((8,)), first, last])
    if compiled:
        model.compile("adam", "mse")
    return model


def zeros(model):
    return [int((w == 0).sum()) for w in model.get_weights()[::2]]


def test_the_smallest_of_the_whole_model_go():
    model = make_model(compiled=False)
    before = np.concatenate([w.ravel() for w in model.get_weights()[::2]])
    assert kp.prune(model, 0.5) is model
    after = np.concatenate([w.ravel() for w in model.get_weights()[::2]])
    np.testing.assert_array_equal(after == 0, np.abs(before) <= np.sort(np.abs(before))[87])
    np.testing.assert_array_equal(after[after != 0], before[after != 0])


def test_masks_hold_in_training_and_pruning_goes_on_from_them():
    model = kp.prune(make_model(), 0.5, allocation="uniform")
    masks = [np.array(mask_of(layer.kernel)) for layer in model.layers]
    model.fit(X, Y, epochs=2, verbose=0)
    assert zeros(model) == [64, 24]
    kp.prune(model, 0.75, allocation="uniform")
    assert zeros(model) == [96, 36]
    for old, layer in zip(masks, model.layers, strict=True):
        assert (mask_of(layer.kernel) <= old).all()
    kp.prune(model, 0.25)
    assert zeros(model) == [96, 36], "nothing comes back"
    ramp = kp.schedules.Linear(0.75, 0.9, begin_step=4, end_step=8, frequency=2)
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[kp.Pruning(ramp)])
    assert sum(zeros(model)) == round(0.9 * 176)


@pytest.mark.parametrize(
    "criterion",
    [
        "random",
        kp.criteria.Taylor(data=(X, Y)),
        kp.criteria.Gradient(data=(X, Y)),
        kp.criteria.Fisher(data=(X, Y)),
        kp.criteria.SNIP(data=(X, Y)),
        kp.criteria.GraSP(data=(X, Y)),
        kp.criteria.Activation(data=X),
        "synflow",
    ],
    ids=lambda c: c if isinstance(c, str) else type(c).__name__,
)
def test_criteria_at_initialisation(criterion):
    assert sum(zeros(kp.prune(make_model(), 0.8, criterion))) == round(0.8 * 176)


def test_synflow_does_not_collapse_where_one_round_would():
    """Tanaka et al. 2020: at extreme sparsity every layer keeps a path."""
    model = keras.Sequential([keras.Input((16,)), *[layers.Dense(16) for _ in range(4)], layers.Dense(2)])
    kp.prune(model, 0.97, "synflow", kp.patterns.Unstructured(), kp.allocation.Global(floor=0.0))
    for layer in model.layers:
        assert (layer.kernel.numpy() != 0).any()
    ones = np.ones((1, 16), dtype=np.float32)
    for layer in model.layers:
        ones = ones @ np.abs(layer.kernel.numpy())
    assert ones.sum() > 0, "a path leads from the input to the output"


def test_sensitivity_gives_more_where_the_loss_does_not_mind():
    model = make_model()
    # The second layer reads the first eight units only, so the others may all go.
    last = model.layers[1].kernel.numpy()
    last[8:] = 0.0
    model.layers[1].kernel.assign(last)
    kp.prune(model, 0.4, allocation=kp.allocation.Sensitivity(data=(X, Y)))
    first, second = zeros(model)
    assert first + second == round(0.4 * 176)
    assert second / 48 >= 24 / 48


def test_layers_by_name():
    model = kp.prune(make_model(), 0.25, allocation={r"first/.*|.*/first/.*": 0.75})
    assert zeros(model) == [96, 12]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: kp.prune(m, 50), ValueError, r"prune: sparsity must be a fraction in \[0, 1\).*Received: 50.*0\.5"),
        (lambda m: kp.prune(m, 0.5, "magnitud"), ValueError, r"Did you mean 'magnitude'"),
        (lambda m: kp.prune(m, 0.5, "taylor"), ValueError, r"Taylor takes \['abs_gradient'\] from data"),
        (
            lambda m: kp.prune(m, 0.5, pattern=kp.patterns.Block(5, 1)),
            ValueError,
            r"first/kernel.*nearest.*Block\(4, 1\)",
        ),
        (
            lambda m: kp.prune(m, 0.5, pattern=kp.patterns.NofM(2, 6)),
            ValueError,
            r"first/kernel.*nearest m that does is 4",
        ),
        (
            lambda m: kp.prune(m, 0.5, allocation={"frist": 0.5}),
            ValueError,
            r"no prunable tensor is named by \['frist'\]",
        ),
        (lambda m: kp.prune(m, 0.5, allocation={".*": 0.999}), ValueError, r"would empty"),
        (lambda m: kp.prune(m, 0.5, scope=kp.Scope(include="frist")), ValueError, r"include names no variable.*frist"),
        (lambda m: kp.prune(m, 0.999), ValueError, r"at most a sparsity of 0\.98.*target=0\.999"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(make_model())


def test_weights_that_are_not_numbers_are_refused():
    model = make_model()
    model.layers[0].kernel.assign(np.full((8, 16), np.nan))
    with pytest.raises(ValueError, match=r"first/kernel' holds NaN or infinite weights"):
        kp.prune(model, 0.5)
