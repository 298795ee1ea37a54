import json

import keras
import numpy as np
import pytest
from keras import layers as kl
from sklearn.datasets import load_digits

from keras_prune.structured.fit.adjust import StructureAdjustment
from keras_prune.structured.fit.adjustments import decide


def mlp(units=8, metrics=("mae",)):
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(units, activation="relu", name="a"), kl.Dense(2, name="b")], name="net"
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=list(metrics))
    return model


def data(n=16):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)).astype("float32"), rng.normal(size=(n, 2)).astype("float32")


class Said(keras.callbacks.Callback):
    """Says what the metric is."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.values[epoch]


class Watch(keras.callbacks.Callback):
    """Notes which units are open, and outputs before and after each look."""

    def __init__(self, adjustment, x):
        super().__init__()
        self.adjustment = adjustment
        self.x = x
        self.keep = []
        self.outputs = []

    def on_epoch_end(self, epoch, logs=None):
        self.keep.append(self.adjustment.gates.keep)
        self.outputs.append(np.asarray(self.model(self.x)))


def run(values, model=None, watch=True, **options):
    model = mlp() if model is None else model
    adjustment = StructureAdjustment("score", mode="max", **{"tolerance": 0.05, "step": 0.25, **options})
    x, y = data()
    before, after = Watch(adjustment, x), Watch(adjustment, x)
    model.fit(x, y, epochs=len(values), verbose=0, callbacks=[Said(values), before, adjustment, after])
    return model, adjustment, before, after


def test_the_metric_takes_units_out_and_puts_them_back():
    _, adjustment, _, after = run([0.9, 0.9, 0.8, 0.9, 0.7, 0.6, 0.9])
    wanted = [
        ("close", 2, 6),  # a quarter of 8
        ("close", 2, 4),
        ("open", 2, 6),  # 0.1 below the best: the two closed last come back, and the step is halved
        ("close", 1, 5),
        ("open", 1, 6),
        ("open", 1, 7),  # the same fall: the step stays
        ("hold", 0, 7),  # the last epoch
    ]
    assert [(a.action, a.units, a.open) for a in adjustment.history] == wanted
    assert [a.reference for a in adjustment.history] == [0.9] * 7
    assert [a.metric for a in adjustment.history] == [0.9, 0.9, 0.8, 0.9, 0.7, 0.6, 0.9]
    assert [a.epoch for a in adjustment.history] == list(range(7))
    assert [a.step for a in adjustment.history] == list(range(1, 8))
    np.testing.assert_array_equal(after.keep[2], after.keep[0])  # those that were closed last
    assert adjustment.step == 0.25 / 4
    assert adjustment.history[-1].reason == "within 0.05, but nothing is trained after this"
    assert adjustment.history[2].reason == "0.1000 worse, 0.05 allowed"


def test_the_least_important_go_and_come_back_with_their_weights():
    model = mlp()
    model.optimizer.learning_rate = 0.0
    kernel = np.tile(np.array([3.0, 1.0, 2.0, 8.0, 5.0, 6.0, 7.0, 4.0]), (4, 1))
    rows = np.ones((8, 2)) * np.array([3.0, 1.0, 2.0, 8.0, 5.0, 6.0, 7.0, 4.0])[:, None]
    model.set_weights([kernel, np.arange(8.0), rows, np.zeros(2)])
    whole = model.get_weights()
    x, y = data()
    adjustment = StructureAdjustment("score", mode="max", step=0.25, tolerance=0.05)
    watch = Watch(adjustment, x)
    model.fit(x, y, epochs=1 + 1, verbose=0, callbacks=[Said([0.9, 0.9]), adjustment, watch])
    assert np.flatnonzero(~watch.keep[0]).tolist() == [1, 2]
    assert not model.get_weights()[0][:, [1, 2]].any()
    smaller = adjustment.shrink()
    assert smaller.get_layer("a").units == 6
    np.testing.assert_allclose(smaller(x), model(x), atol=1e-5)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[Said([0.5]), adjustment])
    assert adjustment.history[-1].action == "open"
    for a, b in zip(whole, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_net2net_opens_units_without_changing_the_outputs(noise):
    model, adjustment, before, after = run([0.9, 0.9, 0.5, 0.4, 0.9], grow="net2net", noise=noise)
    assert [a.action for a in adjustment.history] == ["close", "close", "open", "open", "hold"]
    for epoch in (2, 3):
        np.testing.assert_allclose(after.outputs[epoch], before.outputs[epoch], rtol=1e-5, atol=1e-5)
    assert np.abs(after.outputs[0] - before.outputs[0]).max() > 1e-3  # what closes does change them
    kernel = model.get_layer("a").kernel.numpy()
    assert np.count_nonzero(kernel.any(axis=0)) == 7


def test_net2net_halves_what_reads_the_copy():
    model = mlp()
    model.optimizer.learning_rate = 0.0
    adjustment = StructureAdjustment("score", mode="max", step=0.1, grow="net2net", noise=0.0)
    x, y = data()
    model.fit(x, y, epochs=1 + 1, verbose=0, callbacks=[Said([0.9, 0.9]), adjustment])
    (unit,) = np.flatnonzero(~adjustment.gates.keep)
    kernel, bias, rows, _ = model.get_weights()
    model.fit(x, y, epochs=1, verbose=0, callbacks=[Said([0.1]), adjustment])
    now, now_bias, now_rows, _ = model.get_weights()
    (of,) = [u for u in range(8) if u != unit and np.array_equal(now[:, u], now[:, unit])]
    np.testing.assert_array_equal(now[:, unit], kernel[:, of])
    assert now_bias[unit] == bias[of]
    np.testing.assert_allclose(now_rows[unit], rows[of] / 2)
    np.testing.assert_allclose(now_rows[of], rows[of] / 2)
    norms = np.sqrt(np.square(kernel).sum(0)) + np.sqrt(np.square(rows).sum(1))
    assert of == np.argmax(norms)


def test_patience_waits_for_training_to_bring_it_back():
    _, adjustment, _, _ = run([0.9, 0.8, 0.9, 0.8, 0.8, 0.9, 0.9], patience=2)
    assert [a.action for a in adjustment.history] == ["close", "hold", "close", "hold", "open", "close", "hold"]
    assert adjustment.history[1].reason.endswith("look 1 of 2")


@pytest.mark.parametrize(
    ("reference", "actions", "compared"),
    [
        ("best", ["close", "close", "open", "hold"], [0.5, 0.9, 0.9, 0.9]),
        ("dense", ["close", "close", "close", "hold"], [0.5] * 4),
        (0.8, ["hold", "close", "open", "hold"], [0.8] * 4),
    ],
)
def test_what_the_metric_is_compared_with(reference, actions, compared):
    _, adjustment, _, _ = run([0.5, 0.9, 0.6, 0.9], reference=reference)
    assert [a.action for a in adjustment.history] == actions
    assert [a.reference for a in adjustment.history] == compared


def test_limits():
    _, adjustment, _, _ = run([0.9] * 6, step=0.5, min_width=3)
    assert [a.open for a in adjustment.history] == [4, 3, 3, 3, 3, 3]
    assert adjustment.history[2].reason == "within 0.05, but no group can lose one more"
    _, adjustment, _, _ = run([0.9] * 5, max_share={"a": 0.25}, step=0.1)
    assert [a.open for a in adjustment.history] == [7, 6, 6, 6, 6]
    model, adjustment, _, _ = run([0.9] * 8, step=0.1, params=0.6)
    assert adjustment.shrink().count_params() == 30  # 58 with 8 units, 2 + 7 a unit: 37 is above 0.6, 30 is not
    assert adjustment.history[-2].reason == "within 0.05, but params=0.6 is reached, 0.517 left"
    assert model.count_params() == 58
    _, adjustment, _, _ = run([0.9, 0.1, 0.9, 0.9], min_step=0.2)
    assert [a.action for a in adjustment.history] == ["close", "open", "hold", "hold"]
    assert "min_step" in adjustment.history[2].reason


def test_a_metric_that_is_not_a_number_is_a_fall():
    _, adjustment, _, _ = run([0.9, float("nan"), 0.9])
    assert [a.action for a in adjustment.history] == ["close", "open", "hold"]
    _, adjustment, _, _ = run([0.9, 0.1, 0.1, 0.1], reference=0.9)
    assert [a.action for a in adjustment.history] == ["close", "open", "hold", "hold"]
    assert adjustment.history[2].reason.endswith("but nothing is closed")


def test_the_direction_is_as_keras_finds_it():
    x, y = data()
    for metric, rises in (("loss", False), ("val_mae", False)):
        adjustment = StructureAdjustment(metric, tolerance=100.0)
        mlp().fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=[adjustment])
        assert adjustment._found.rises is rises
        assert adjustment.history[0].action == "close"
    adjustment = StructureAdjustment("score")
    with pytest.raises(ValueError, match=r"whether 'score' should rise or fall is not known.*mode='max'"):
        mlp().fit(x, y, verbose=0, callbacks=[Said([0.5]), adjustment])


def test_looks_between_epochs_leave_the_running_metrics_alone():
    x, y = data(64)
    histories = []
    for every in (None, 2):
        keras.utils.set_random_seed(0)
        model = mlp()
        adjustment = StructureAdjustment(
            "val_mae", tolerance=0.0, reference=-1.0, every=every, validation_data=(x, y) if every else None
        )
        histories.append(
            model.fit(x, y, batch_size=8, epochs=2, validation_data=(x, y), verbose=0, callbacks=[adjustment]).history
        )
        assert [a.step for a in adjustment.history] == ([2, 4, 6, 8, 8, 10, 12, 14, 16, 16] if every else [8, 16])
        assert {a.action for a in adjustment.history} == {"hold"}  # nothing was ever closed
    assert histories[0] == histories[1]


def test_digits_end_smaller_with_the_accuracy_kept():
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    model = keras.Sequential(
        [keras.Input((64,)), kl.Dense(32, activation="relu"), kl.Dense(16, activation="relu"), kl.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])
    train, held = (x[:900], y[:900]), (x[900:1400], y[900:1400])
    model.fit(*train, epochs=10, batch_size=64, verbose=0)
    dense = model.evaluate(*held, verbose=0)[1]
    adjustment = StructureAdjustment(
        "val_accuracy", tolerance=0.02, step=0.2, min_step=0.06, importance="taylor", data=train
    )
    model.fit(*train, epochs=12, batch_size=64, validation_data=held, verbose=0, callbacks=[adjustment])
    assert {"close", "open"} <= {a.action for a in adjustment.history}
    smaller = adjustment.shrink()
    assert smaller.count_params() < 0.8 * model.count_params()
    assert smaller.evaluate(*held, verbose=0)[1] > dense - 0.03
    np.testing.assert_allclose(smaller(held[0]), model(held[0]), rtol=1e-5, atol=1e-5)


def test_it_prints():
    _, adjustment, _, _ = run([0.9, 0.8])
    lines = [line.split() for line in str(adjustment.history).splitlines()]
    assert lines[0] == ["epoch", "step", "metric", "reference", "action", "units", "open", "reason"]
    assert ["0", "1", "0.9000", "0.9000", "close", "2", "6", "within", "0.05"] in lines
    assert json.loads(json.dumps(adjustment.history.to_dicts()))[1]["action"] == "open"


def test_decide_waits_as_long_as_it_is_told():
    assert [decide(0.5, 0.1, falls, 3)[0] for falls in range(4)] == ["hold", "hold", "open", "open"]
    assert decide(0.1, 0.1, 0, 1)[0] == "close"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tolerance": -0.1}, r"tolerance must be 0 or more\. Received: -0.1"),
        ({"step": 1.0}, r"step must be a fraction in \[0, 1\)\. Received: 1.0"),
        ({"step": 0.0}, r"step must be above 0"),
        ({"params": 50}, r"params must be a fraction.*Received: 50"),
        ({"grow": "net"}, r"grow must be one of \('weights', 'net2net'\)\. Received: 'net'"),
        ({"scope": "all"}, r"scope must be one of .*Received: 'all'"),
        ({"reference": "first"}, r"reference must be one of .*Received: 'first'"),
        ({"patience": 0}, r"patience must be a whole number from 1\. Received: 0"),
        ({"noise": 1.0}, r"noise must be in \[0, 1\)\. Received: 1.0"),
        ({"mode": "up"}, r"mode must be one of .*Received: 'up'"),
        ({"every": 0}, r"every must be a whole number from 1, or None\. Received: 0"),
        ({"every": 5}, r"every=5 looks at a metric of validation_data.*validation_data None"),
        ({"importance": "l3"}, r"Unknown importance: 'l3'"),
    ],
)
def test_bad_input(wrong, message):
    with pytest.raises(ValueError, match=message):
        StructureAdjustment(**wrong)


def test_what_training_refuses():
    x, y = data()
    with pytest.raises(ValueError, match=r"one of the logs \['loss', 'mae'\]\. Received: 'val_mae'\. Give fit"):
        mlp().fit(x, y, verbose=0, callbacks=[StructureAdjustment("val_mae")])
    plain = keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Dense(2)], name="plain")
    with pytest.raises(ValueError, match=r"'plain' must be compiled"):
        StructureAdjustment("loss").set_model(plain)
    with pytest.raises(ValueError, match=r"there was no training yet"):
        StructureAdjustment("loss").shrink()
    inputs = keras.Input((4,))
    norm = keras.Model(inputs, kl.Dense(2)(kl.RMSNormalization(name="norm")(kl.Dense(6)(inputs))))
    norm.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"grow='net2net'\): 'norm' \(RMSNormalization\) sums over units"):
        norm.fit(x, y, verbose=0, callbacks=[StructureAdjustment("loss", grow="net2net")])


class Stop(keras.callbacks.Callback):
    """Ends the process, as far as a test can."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("grow", ["weights", "net2net"])
def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, grow):
    values = [0.9, 0.9, 0.9, 0.7, 0.7, 0.9, 0.9]
    x, y = data()

    def train(*more):
        keras.utils.set_random_seed(3)
        model = mlp()
        adjustment = StructureAdjustment("score", mode="max", tolerance=0.05, step=0.25, grow=grow)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [Said(values), adjustment, *([backup] if more else []), *more]
        model.fit(x, y, epochs=len(values), shuffle=False, verbose=0, callbacks=callbacks)
        return model, adjustment

    whole, straight = train()
    with pytest.raises(KeyboardInterrupt):
        train(Stop())
    again, resumed = train(keras.callbacks.Callback())
    assert straight.history[3:] == resumed.history
    assert "open" in {a.action for a in resumed.history}
    for a, b in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
