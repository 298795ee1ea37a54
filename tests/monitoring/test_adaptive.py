"""A sparsity that follows a metric: what each look decides, what comes back, where it ends, and that it resumes."""

import math
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.masks.bound import mask_of
from keras_prune.monitoring.kept_model import KeptModel
from keras_prune.monitoring.metric import Metric
from keras_prune.monitoring.steering import Looks, Progress, Steering
from keras_prune.optimizers.slots import slots_of

X = np.random.default_rng(0).standard_normal((96, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((8, 4))).astype("float32")
SIZE = 8 * 16 + 16 * 4
RISING, FALLING = Metric("score", rises=True), Metric("score", rises=False)
NAN = math.nan

# -- the rule ---------------------------------------------------------------------------------------------------------


def steered(steering, values, metric=RISING, **begin):
    """What looks at some values of the metric decide, with the sparsity of the next epoch; saved in between."""
    now = steering.begin(**{"sparsity": 0.0, **begin}).done()
    looks = []
    for epoch, value in enumerate(values):
        now, look = steering.look(now, metric, epoch, value, now.at, epoch + 1)
        looks.append(look)
        now, read = Progress.from_array(now.to_array(Looks(looks)))
        assert repr(read) == repr(Looks(looks))
        now = now.done()
    return now, [(look.action, round(look.to, 4)) for look in looks]


def test_it_speeds_up_holds_rolls_back_and_ends_at_the_last_good_sparsity():
    steering = Steering(tolerance=0.01, step=0.2, speed_up=1.5, min_step=0.05, patience=2)
    values = [0.9, 0.9, 0.91, 0.88, 0.885, 0.9, 0.893, 0.892, NAN, NAN, 0.85, 0.85]
    now, found = steered(steering, values)
    assert found == [
        ("raise", 0.2),
        ("raise", 0.44),  # 1 - 0.8 * 0.7: the step has grown to 0.3
        ("raise", 0.692),  # 1 - 0.56 * 0.55
        ("hold", 0.692),  # 0.02 worse, once
        ("roll back", 0.566),  # twice: from 0.44 on, in steps of 0.225, 1 - 0.56 * 0.775
        ("raise", 0.6637),  # 1 - 0.434 * 0.775: they grow no more
        ("hold", 0.6637),  # 0.007 worse: near the tolerance
        ("raise", 0.7015),  # still: on in steps half as large, 1 - 0.33635 * 0.8875
        ("hold", 0.7015),  # not a number is bad
        ("roll back", 0.6826),  # 1 - 0.33635 * 0.94375
        ("hold", 0.6826),
        ("end", 0.6637),  # a step of 0.028 would be too small
    ]
    assert (now.ended, now.good_epoch, round(now.good_at, 4), now.good_metric) == (True, 6, 0.6637, 0.893)


@pytest.mark.parametrize(
    ("options", "metric", "values", "begin", "expected"),
    [
        # The best of the first looks, and less is better; ends at what patterns allow.
        (
            {"baseline_epochs": 2, "tolerance": 0.1},
            FALLING,
            [1.0, 1.2, 1.04, 1.04],
            {"highest": 0.3},
            [("measure", 0.0), ("raise", 0.2), ("raise", 0.3), ("end", 0.3)],
        ),
        # A share of the baseline, given: pruned at once, on top of what is off.
        (
            {"baseline": 2.0, "relative": True, "tolerance": 0.1, "patience": 1, "speed_up": 1.0},
            FALLING,
            [2.05, 2.21],
            {"sparsity": 0.5},
            [("raise", 0.68), ("roll back", 0.64)],
        ),
        # Nothing is within the tolerance: back to the beginning, and to its end.
        (
            {"baseline": 1.0, "patience": 1, "step": 0.3, "min_step": 0.1},
            RISING,
            [0.0, 0.0],
            {},
            [("roll back", 0.15), ("end", 0.0)],
        ),
        # Near the tolerance steps are halved, and grow again where it holds.
        (
            {"patience": 1},
            RISING,
            [0.9, 0.893, 0.9, 0.9],
            {},
            [("raise", 0.2), ("raise", 0.28), ("raise", 0.388), ("raise", 0.5257)],
        ),
        # No tolerance at all: what is no worse goes on.
        (
            {"tolerance": 0.0, "max_sparsity": 0.3},
            RISING,
            [0.5, 0.5, 0.6],
            {},
            [("raise", 0.2), ("raise", 0.3), ("end", 0.3)],
        ),
        # Nothing to prune any more.
        ({"max_sparsity": 0.3}, RISING, [0.5], {"sparsity": 0.4}, [("end", 0.4)]),
        # Infinite is as bad as not a number, where less is better, too.
        ({"patience": 1}, FALLING, [0.5, -math.inf], {}, [("raise", 0.2), ("roll back", 0.1)]),
    ],
)
def test_other_rules(options, metric, values, begin, expected):
    assert steered(Steering(**options), values, metric, **begin)[1] == expected


def test_a_better_epoch_of_the_same_sparsity_is_the_one_that_comes_back():
    now, found = steered(Steering(patience=3), [0.9, 0.892, 0.894, 0.85])
    assert [action for action, _ in found] == ["raise", "hold", "hold", "hold"]
    assert (now.good_epoch, now.good_metric) == (2, 0.894)


def test_a_baseline_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"baseline must be a finite number\. Received: score=nan"):
        steered(Steering(baseline_epochs=2), [NAN, NAN])
    assert steered(Steering(baseline_epochs=2), [NAN, 0.5])[0].baseline == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, r"tolerance must be 0 or more, and finite\. Received: -0\.1"),
        ({"tolerance": NAN}, "tolerance must be 0 or more"),
        ({"speed_up": 0.5}, "speed_up must be 1 or more"),
        ({"patience": 0}, "patience must be a whole number from 1"),
        ({"baseline_epochs": 1.5}, r"baseline_epochs must be a whole number from 1\. Received: 1\.5"),
        ({"baseline": NAN}, "baseline must be a finite number"),
        ({"step": 20}, "for 20 % write 0.2"),
        ({"min_step": 0.0}, "min_step must be above 0"),
        ({"max_sparsity": 1.0}, "max_sparsity must be a fraction"),
        ({"near": 2}, r"near is a share of the tolerance, in \[0, 1\]\. Received: 2"),
        ({"step": 0.1, "min_step": 0.2}, "step must not be below min_step"),
        ({"mode": "up"}, "mode must be one of"),
        ({"criterion": "taylor", "baseline": 0.5}, r"takes gradients from training.*baseline=None"),
    ],
)
def test_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        kp.AdaptivePruning(**options)


# -- in fit -----------------------------------------------------------------------------------------------------------


class Fixed(keras.callbacks.Callback):
    """Puts given values of a metric into the logs."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.values[epoch]


class Watch(keras.callbacks.Callback):
    """Keeps what a model is like at the beginning and at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.begin, self.end = [], []

    def state(self):
        kernels = [layer.kernel for layer in self.model.layers if isinstance(layer, layers.Dense)]
        slots = [slots_of(self.model.optimizer, variable) for variable in self.model.trainable_weights]
        return {
            "weights": self.model.get_weights(),
            "masks": [np.array(mask_of(kernel)) for kernel in kernels],
            "moments": [np.array(slot) for each in slots for slot, _ in each],
            "steps": int(self.model.optimizer.iterations),
        }

    def on_epoch_begin(self, epoch, logs=None):
        self.begin.append(self.state())

    def on_epoch_end(self, epoch, logs=None):
        self.end.append(self.state())


def net():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, "relu", name="a"), layers.BatchNormalization(), layers.Dense(4, name="b")]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def fit(model, *callbacks, epochs=9, **options):
    options = {"batch_size": 12, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


#           measured, .2,  .44,     .63, back,    .52, again,   back, near
VALUES = [0.90, 0.90, 0.90, 0.80, 0.80, 0.90, 0.80, 0.80, 0.893, 0.8, 0.8, 0.8]


def adaptive(**options):
    return kp.AdaptivePruning("score", mode="max", **{"speed_up": 1.4, **options})


def test_masks_weights_and_moments_of_the_last_good_epoch_come_back_and_steps_go_on(capsys):
    model, watch, pruning = net(), Watch(), adaptive(verbose=1)
    history = fit(model, Fixed(VALUES), pruning, watch, epochs=9)
    actions = ["raise", "raise", "raise", "hold", "roll back", "raise", "hold", "roll back", "hold"]
    assert [look.action for look in pruning.history] == actions
    assert [look.sparsity for look in pruning.history] == history.history["sparsity"]
    # The sparsities of the rule, to the nearest weight: of 192.
    assert history.history["sparsity"] == [
        round(share * SIZE) / SIZE for share in (0, 0.2, 0.424, 0.64979, 0.64979, 0.53690, 0.62767, 0.62767, 0.58233)
    ]
    good, back = watch.end[2], watch.begin[5]
    for mask, earlier in zip(back["masks"], good["masks"], strict=True):
        assert (mask <= earlier).all()
    pruned = [w.copy() for w in good["weights"]]
    pruned[0][~back["masks"][0]] = 0
    pruned[6][~back["masks"][1]] = 0
    assert equal(back["weights"], pruned)
    assert equal(back["moments"], good["moments"])
    assert back["steps"] == 5 * 8
    # Held: what an epoch begins with is what the one before it left.
    assert equal(watch.begin[4]["weights"], watch.end[3]["weights"])
    # At the end: the sparsity of epoch 8 is the highest that was near enough.
    assert equal(model.get_weights(), watch.end[8]["weights"])
    assert pruning.sparsity == history.history["sparsity"][8]
    assert kp.report(model).sparsity == pytest.approx(pruning.sparsity)
    assert not [key for key in model._pruning_state.arrays if key.startswith("adaptive:")]
    printed = capsys.readouterr().out
    assert "epoch 4, score 0.8000 at a sparsity of 65.1%: roll back, 53.7% next (0.1000 worse" in printed
    assert len(str(pruning.history).splitlines()) >= 11
    # Its zeros stay in what follows.
    fit(model, epochs=1)
    assert kp.report(model).sparsity == pytest.approx(pruning.sparsity)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01, use_ema=True, gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01, momentum=0.9)),
        lambda: keras.optimizers.Adafactor(0.01),  # keeps means of rows and columns
    ],
    ids=["Adam", "scaled", "Adafactor"],
)
def test_all_that_follows_the_weights_comes_back_and_counters_do_not(optimizer):
    model = net()
    model.compile(optimizer(), "mse", run_eagerly=True)

    def values():
        return {v.path: np.array(v) for v in [*model.weights, *model.optimizer.variables]}

    def train(factor):
        for _ in range(3):
            model.train_on_batch(factor * X[:8], Y[:8])

    train(1.0)
    kept, before = KeptModel(model, "kept", moments=True), values()
    kept.keep({})
    train(2.0)
    after = values()
    kept.put_back({})
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    still = {path for path, value in values().items() if not np.array_equal(before[path], value)}
    assert len(changed) > 15
    assert still == {path for path in changed if path.endswith(("/iteration", "/step_counter"))}
    kept.drop()
    assert not model._pruning_state.arrays


def test_a_training_goes_on_from_a_file_as_if_it_had_not_been_interrupted(tmp_path):
    """Stopped between two looks that find it worse: what comes back was kept in the file; sums of gradients, too."""

    def callbacks():
        return [Fixed(VALUES), adaptive(criterion="taylor")]

    (values, whole), model = callbacks(), net()
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, values, whole, saving, epochs=9)
    (values, again), other = callbacks(), kp.load_model(tmp_path / "4.keras")
    fit(other, values, again, epochs=9, initial_epoch=4)
    assert again.history == whole.history
    assert [look.action for look in again.history[4:]] == ["roll back", "raise", "hold", "roll back", "hold"]
    left, right = ([*m.variables, *m.optimizer.variables] for m in (model, other))
    for one, two in zip(left, right, strict=True):
        assert np.array(one.value).tobytes() == np.array(two.value).tobytes(), one.path
    assert again.sparsity == whole.sparsity > 0.5
    # What is left in a file of an epoch that ended later says so, where an epoch was missed.
    with pytest.warns(UserWarning, match=r"goes on in epoch 7 from what was saved before the metric of epoch 6"):
        fit(kp.load_model(tmp_path / "6.keras"), *callbacks(), epochs=9, initial_epoch=7)


def test_it_ends_training_at_the_end_and_says_if_nothing_held():
    pruning = adaptive(max_sparsity=0.4, pattern=kp.patterns.NofM(2, 4))
    history = fit(net(), Fixed([0.9] * 9), pruning)
    assert len(history.history["loss"]) == 4 - 1
    assert pruning.history[-1].action == "end"
    assert pruning.sparsity == pytest.approx(0.4, abs=0.02)

    model, watch = net(), Watch()
    pruning = adaptive(baseline=0.9, patience=1, min_step=0.1)
    start = model.get_weights()
    with pytest.warns(UserWarning, match=r"after 2 epochs, and no sparsity above 0\.0% was found.*smaller steps"):
        fit(model, Fixed([0.5] * 9), pruning, watch)
    assert [look.action for look in pruning.history] == ["roll back", "end"]
    assert equal(model.get_weights(), start)
    assert pruning.sparsity == 0.0

    with pytest.warns(UserWarning, match="the baseline is measured, and nothing was pruned yet"):
        fit(net(), Fixed([0.5] * 9), adaptive(baseline_epochs=2), epochs=1)


def test_metrics_of_the_logs_and_those_that_are_not_there():
    pruning = kp.AdaptivePruning("val_mae", tolerance=10.0)
    model = net()
    model.compile("sgd", "mse", metrics=["mae"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, pruning, epochs=3, validation_data=(X, Y))
    assert pruning.sparsity == pytest.approx(0.44, abs=0.005)
    with pytest.raises(ValueError, match=r"one of the logs \[.*'mae'.*\]. Received: 'val_mae'.*validation_data"):
        fit(model, kp.AdaptivePruning("val_mae"), epochs=1)
    with pytest.raises(ValueError, match=r"follows the logs of epochs.*CallbackList"):
        pruning.attach(model)


def test_a_loop_of_ones_own():
    model, pruning = net(), adaptive(max_sparsity=0.5)
    hooks = keras.callbacks.CallbackList([pruning], model=model)
    hooks.on_train_begin()
    for epoch in range(9):
        hooks.on_epoch_begin(epoch)
        for batch in range(2):
            model.train_on_batch(X[:12], Y[:12])
            hooks.on_train_batch_end(batch)
        hooks.on_epoch_end(epoch, {"score": 1.0})
        if model.stop_training:
            break
    hooks.on_train_end()
    assert epoch == 3
    assert pruning.sparsity == kp.report(model).sparsity == 0.5
