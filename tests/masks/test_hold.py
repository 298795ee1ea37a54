"""Zeros of loaded, copied and foreign models are held in whatever training follows, or their loss is said."""

import copy
import pickle

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp

X = np.random.default_rng(0).standard_normal((32, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((8, 3))).astype("float32")


def make_model(*, compiled=True):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(10, activation="relu"), layers.Dense(3)])
    if compiled:
        model.compile("adam", "mse")
    return model


def zeros(model):
    return sum(int((np.asarray(w) == 0).sum()) for w in model.get_weights() if w.ndim > 1)


def fit(model, *callbacks, **options):
    model.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=list(callbacks), **options)
    return model


def saved(model, path):
    model.save(path)
    return path


def weights_of(model, path):
    model.save_weights(path)
    other = make_model()
    other.load_weights(path)
    return other


def test_settings_that_keras_cannot_read_from_hdf5_are_said(tmp_path):
    with pytest.warns(UserWarning, match=r"m\.h5' is loaded, but not compiled.*Call compile"):
        assert not kp.load_model(saved(make_model(), tmp_path / "m.h5")).compiled


COPIES = {
    "keras": lambda m, d: keras.saving.load_model(saved(m, d / "m.keras")),
    "load_weights": lambda m, d: weights_of(m, d / "m.weights.h5"),
    "deepcopy": lambda m, d: copy.deepcopy(m),
    "pickle": lambda m, d: pickle.loads(pickle.dumps(m)),
    "strip": lambda m, d: kp.strip(m),
}


@pytest.fixture(scope="module")
def pruned():
    return kp.prune(fit(make_model()), 0.75)


def test_pruning_between_two_fits_holds(pruned):
    assert zeros(fit(pruned)) == round(0.75 * 110)


@pytest.mark.parametrize("way", COPIES)
def test_hold_keeps_the_zeros_of_a_copy(way, pruned, tmp_path):
    model = COPIES[way](pruned, tmp_path)
    if not model.compiled:
        model.compile("adam", "mse")
    assert kp.hold(model) is model
    assert zeros(fit(model)) == round(0.75 * 110)
    assert kp.report(model).sparsity == round(0.75 * 110) / 110
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True), "mse")
    assert zeros(fit(model)) == round(0.75 * 110)


@pytest.mark.filterwarnings("ignore:.*is loaded, but not compiled")
@pytest.mark.parametrize(
    ("ending", "compiled", "plain"),
    [(".keras", True, False), (".keras", False, True), (".h5", True, False), (".hdf5", False, False)],
)
def test_what_load_model_brings_back_holds_its_zeros(ending, compiled, plain, pruned, tmp_path):
    model = kp.strip(pruned) if plain else kp.prune(keras.models.clone_model(pruned), 0.75)
    if compiled:
        model.compile("adam", "mse")
    loaded = kp.load_model(saved(model, tmp_path / f"m{ending}"))
    loaded.compile("sgd", "mse")
    assert zeros(fit(loaded)) == zeros(model) == round(0.75 * 110)
    # Another recipe goes on from them.
    assert zeros(kp.prune(loaded, 0.8)) == round(0.8 * 110)
    again = kp.load_model(saved(loaded, tmp_path / f"again{ending}"))
    ramp = kp.schedules.Linear(0.0, 0.9, begin_step=0, end_step=4, frequency=2)
    again.compile("sgd", "mse")
    assert zeros(fit(again, kp.Pruning(ramp))) == round(0.9 * 110)


def test_layers_of_every_kind_are_held(tmp_path):
    inner = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(6, trainable=False)])
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(9, 8),
            layers.Bidirectional(layers.GRU(4, return_sequences=True)),
            layers.TimeDistributed(inner),
            kp.PrunableDense(5),
            layers.Flatten(),
            layers.Dense(2, kernel_initializer="zeros"),
        ]
    )
    frozen = inner.layers[1]
    frozen.trainable = True
    kp.prune(model, 0.5, scope=kp.Scope(exclude=[".*dense_3/.*"]))
    before = kp.report(model)
    frozen.trainable = False
    model.save(tmp_path / "m.keras")
    loaded = kp.load_model(tmp_path / "m.keras")
    loaded.get_layer("time_distributed").layer.layers[1].trainable = True
    loaded.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    ids = np.random.default_rng(0).integers(0, 9, (32, 4))
    loaded.fit(ids, np.ones((32, 2)), epochs=2, verbose=0)
    after = kp.report(loaded)
    wanted = {row.shape: row.nonzero for row in before.rows}
    found = {row.shape: row.nonzero for row in after.rows}
    last = (20, 2)
    assert {shape: n for shape, n in found.items() if shape != last} == {
        shape: n for shape, n in wanted.items() if shape != last
    }
    assert found[last] == 40, "a kernel that starts at zero learns"


def test_closed_units_of_a_file_stay_closed_and_can_go(tmp_path):
    model = make_model()
    pruning = kp.StructuredPruning(params=0.5, begin_step=1, end_step=3, frequency=1)
    fit(model, pruning)
    model.save(tmp_path / "m.keras")
    loaded = fit(kp.load_model(tmp_path / "m.keras"))
    off = [(np.asarray(w) == 0) for w in model.get_weights()]
    for was, now in zip(off[:2], loaded.get_weights()[:2], strict=True):
        assert not now[was].any()
        assert was.any()
    assert kp.structured.shrink(loaded).layers[0].units == pruning.shrink().layers[0].units < 10
    again = kp.load_model(tmp_path / "m.keras")
    again.compile("adam", "mse")
    fit(again, kp.StructuredPruning(params=0.3, begin_step=1, end_step=3, frequency=1))
    assert kp.structured.shrink(again).layers[0].units < pruning.shrink().layers[0].units


def test_structure_goes_from_a_held_model_and_its_zeros_are_held_again(pruned, tmp_path):
    loaded = kp.load_model(saved(kp.strip(pruned), tmp_path / "m.keras"))
    smaller = kp.structured.plan(loaded, params=0.6).apply()
    number = zeros(smaller)
    smaller.compile("adam", "mse")
    assert zeros(fit(smaller)) == number > 0
    gated = fit(kp.hold(loaded), kp.StructuredPruning(params=0.6, begin_step=1, end_step=3, frequency=1))
    assert zeros(gated) >= round(0.75 * 110)


@pytest.mark.parametrize("thing", [None, "model.keras", layers.Dense(2)])
def test_hold_refuses_what_is_no_model(thing):
    with pytest.raises(TypeError, match=r"hold takes a keras\.Model\. Received: "):
        kp.hold(thing)


def test_hold_refuses_a_model_that_is_not_built():
    with pytest.raises(ValueError, match=r"is not built, so it has no zeros yet"):
        kp.hold(keras.Sequential([layers.Dense(2)]))


def test_models_of_keras_2_are_known_as_such(pruned):
    layer = type("Layer", (), {"__module__": "tf_keras.src.engine.base_layer"})
    model = type(
        "Model", (layer,), {"__module__": "tf_keras.src.engine.training", "built": True, "optimizer": 1, "name": "m"}
    )()
    calls = [kp.hold, kp.prune, kp.report, kp.strip, kp.structured.analyse, kp.Prunable]
    calls += [kp.Pruning(kp.schedules.OneShot(0.5)).attach, lambda m: kp.structured.plan(m, params=0.5)]
    calls += [kp.StructuredPruning(params=0.5, end_step=3).attach]
    for call in calls:
        with pytest.raises(TypeError, match=r"Keras 2 \(tf_keras\).*copy the weights"):
            call(model)


def test_what_is_said_is_counted_in_the_weights(tmp_path):
    model = make_model()
    pruning = kp.Pruning(kp.schedules.OneShot(0.75, step=0))
    fit(model, pruning)
    assert pruning.sparsity == kp.report(model).sparsity == model.history.history["sparsity"][0] == 82 / 110
    assert all(row.masked and not row.written and not row.loose for row in kp.report(model).rows)
    weights = [np.ones_like(w) for w in model.get_weights()]
    model.set_weights(weights)
    result = kp.report(model)
    assert pruning.sparsity == result.sparsity == 0.0
    assert sum(row.written for row in result.rows) == 82
    assert "No longer in force: the masks of" in str(result)
    assert "82 of the weights" in " ".join(str(result).split())
    with pytest.warns(UserWarning, match=r"strip: the masks of 2 variables no longer hold.*: 82 of the weights"):
        plain = kp.strip(model)
    np.testing.assert_array_equal(plain(X), model(X))
    assert zeros(fit(model)) == 82, "the next step puts them back at zero"
    assert kp.report(kp.strip(model)).rows[0].loose > 0
    assert "Not held: 82 zeros" in str(kp.report(kp.strip(model)))


def test_zeros_that_a_callback_fills_in_are_said(pruned):
    late = kp.schedules.OneShot(0.25, step=3)
    model = kp.strip(pruned)
    with pytest.warns(UserWarning, match=r"Pruning: 54 of 82 zeros that the weights had before training are gone"):
        fit(model, kp.Pruning(late))
    assert zeros(model) == 28
    held = kp.hold(kp.strip(pruned))
    assert zeros(fit(held, kp.Pruning(late))) == 82


def test_zeros_beyond_what_prune_was_asked_for_are_said(pruned):
    with pytest.warns(UserWarning, match=r"prune: 54 zeros more than asked for .*keras_prune\.hold"):
        kp.prune(kp.strip(pruned), 0.25)
