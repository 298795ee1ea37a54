"""Masks hold for whatever writes the weights: averages of the optimizer, and callbacks."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp

X = np.random.default_rng(0).standard_normal((48, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((8, 3))).astype("float32")
RAMP = kp.schedules.Linear(0.0, 0.75, begin_step=1, end_step=11, frequency=5)
FINAL = round(0.75 * 152)
METHODS = {
    "magnitude": lambda: kp.Pruning(RAMP),
    "surgery": lambda: kp.DynamicPruning(RAMP, "surgery"),
    "structured": lambda: kp.StructuredPruning(params=0.5, begin_step=1, end_step=11, frequency=5),
}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "overwritten": lambda: keras.optimizers.SGD(0.01, 0.9, use_ema=True, ema_overwrite_frequency=4),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01, use_ema=True)),
    "accumulated": lambda: keras.optimizers.Adam(0.01, use_ema=True, gradient_accumulation_steps=2),
}


def make_model(optimizer, compiled=True):
    dense = [layers.Dense(10, activation="relu"), layers.Dense(6, activation="relu"), layers.Dense(2)]
    model = keras.Sequential([keras.Input((8,)), *dense])
    if compiled:
        model.compile(optimizer, "mse")
    return model


def zeros(model):
    return sum(int((layer.kernel.numpy() == 0).sum()) for layer in model.layers)


class Watch(keras.callbacks.Callback):
    """Looks at the weights wherever somebody else may: in validation, and at the end of an epoch."""

    def __init__(self):
        super().__init__()
        self.told, self.seen = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.now = logs.get("sparsity", logs.get("params"))

    def on_test_batch_end(self, batch, logs=None):
        self.look()

    def on_epoch_end(self, epoch, logs=None):
        self.look()

    def look(self):
        self.told.append(self.now)
        self.seen.append(zeros(self.model))


def fit(model, *callbacks, epochs=2):
    model.fit(X, Y[:, :2], 8, epochs, verbose=0, shuffle=False, validation_data=(X, Y[:, :2]), callbacks=[*callbacks])


@pytest.mark.parametrize(("method", "optimizer"), [*(("magnitude", one) for one in OPTIMIZERS), ("surgery", "adam")])
def test_averages_are_as_sparse_as_weights(method, optimizer, tmp_path):
    model = make_model(OPTIMIZERS[optimizer]())
    watch = Watch()
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=optimizer == "adam")
    save = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    fit(model, METHODS[method](), swap, watch, save, epochs=4)
    assert watch.told[-1] == FINAL / 152
    assert watch.seen == [round(told * 152) for told in watch.told]
    assert [zeros(keras.saving.load_model(tmp_path / f"{i}.keras")) for i in (1, 4)] == [watch.seen[1], FINAL]
    assert zeros(model) == FINAL


def test_an_average_is_that_of_the_pruned_weights():
    model = make_model(keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.8))
    kept = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kept.append(self.model.layers[1].kernel.numpy())

    fit(model, kp.Pruning(kp.schedules.OneShot(0.5, step=0)), Keep(), epochs=1)
    wanted = kept[0]
    for weight in kept[1:]:
        wanted = 0.8 * wanted + 0.2 * weight
    np.testing.assert_allclose(model.layers[1].kernel.numpy(), wanted, rtol=1e-5, atol=1e-7)
    assert (wanted == 0).sum() == (kept[0] == 0).sum() > 0


@pytest.mark.parametrize("place", ["model", "compiled anew", "inside another", "two optimizers"])
def test_masks_of_one_shot_hold_in_a_plain_fit_with_averages(place):
    inner = make_model("sgd", compiled=place == "compiled anew")
    outer = inner if place != "inside another" else keras.Sequential([keras.Input((8,)), inner, layers.Dense(2)])
    kp.prune(inner, 0.75)
    optimizer = OPTIMIZERS["adam"]()
    if place == "two optimizers":
        both = [OPTIMIZERS["overwritten"](), optimizer]
        optimizer = keras.optimizers.MultiOptimizer(lambda variable: both["dense_1" in variable.path])
    outer.compile(optimizer, "mse")
    outer.fit(
        X, Y[:, :2], verbose=0, epochs=2, validation_data=(X, Y[:, :2]), callbacks=[keras.callbacks.SwapEMAWeights()]
    )
    assert zeros(inner) == FINAL


class Restore(keras.callbacks.Callback):
    """Averages all weights that it has seen since the beginning, and puts the average in at the end of an epoch."""

    def on_train_begin(self, logs=None):
        self.sum, self.number = [np.copy(w) for w in self.model.get_weights()], 1

    def on_train_batch_end(self, batch, logs=None):
        self.sum = [a + w for a, w in zip(self.sum, self.model.get_weights(), strict=True)]
        self.number += 1

    def on_epoch_end(self, epoch, logs=None):
        self.model.set_weights([a / self.number for a in self.sum])


@pytest.mark.parametrize("method", METHODS)
def test_what_a_callback_writes_is_pruned_before_another_looks(method, tmp_path):
    model = make_model("adam")
    dense = model.get_weights()
    watch, pruning = Watch(), METHODS[method]()
    fit(model, pruning, Restore(), keras.callbacks.ModelCheckpoint(str(tmp_path / "m.keras")), watch)
    assert zeros(keras.saving.load_model(tmp_path / "m.keras")) == zeros(model) == watch.seen[-1] > 40
    if method != "structured":
        assert watch.seen[-1] == FINAL
    # After training the weights are the user's again.
    model.set_weights(dense)
    assert zeros(model) == 0


def test_a_wrong_shape_is_refused_by_keras_while_a_training_runs():
    model = make_model("sgd")
    pruning = kp.Pruning(RAMP)
    pruning.attach(model)
    pruning.on_step(0)
    with pytest.raises(ValueError, match=r"must match.*\(8, 10\)"):
        model.layers[0].kernel.assign(np.zeros((10, 8)))
    pruning.detach()
    model.layers[0].kernel.assign(np.ones((8, 10)))
