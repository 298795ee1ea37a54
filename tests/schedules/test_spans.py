"""Schedules in shares and epochs, a number in the place of a schedule, and the best epoch at the target."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prune as kp
from keras_prune import schedules as s
from keras_prune.schedules import Span

X = np.random.default_rng(0).standard_normal((96, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((8, 4))).astype("float32")
SIZE = 8 * 8 + 8 * 4


def net(optimizer=None, cls=None, **options):
    inputs = keras.Input((8,))
    model = (cls or keras.Model)(inputs, layers.Dense(4)(layers.Dense(8, "relu")(inputs)))
    model.compile(optimizer or keras.optimizers.SGD(0.01, momentum=0.9), "mse", **options)
    return model


def fit(model, *callbacks, epochs=5, **options):
    options = {"batch_size": 12, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options)


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.sparsity = []

    def on_train_batch_end(self, batch, logs=None):
        self.sparsity.append(logs["sparsity"])


def zeros(model):
    return sum(int((layer.kernel.numpy() == 0).sum()) for layer in model.layers if hasattr(layer, "kernel"))


def test_shares_and_epochs_by_hand():
    span = Span(start=100, total=50, epoch_steps=12.5, first_epoch=2)
    assert [span.step(t) for t in ("0%", "1%", "10%", "100%", "2 epochs", "3 epochs", "3.5 epochs", 7)] == [
        *(100, 101, 105, 150, 100, 112, 119, 7)
    ]
    assert [span.length(t) for t in ("0.1%", "10%", "2 epochs", 3)] == [1, 5, 25, 3]
    late = Span(start=0, total=100, epoch_steps=20.0, now=20)
    assert [late.step(t) for t in ("10%", "1 epoch", "30%")] == [20, 20, 30]
    with pytest.raises(ValueError, match="how many steps one has is not known"):
        Span(0, 10).step("1 epoch")


RELATIVE = {
    s.PolynomialDecay(0.1, 0.9, begin="10%", end="70%", power=2.0): s.PolynomialDecay(
        0.1, 0.9, begin_step=20, end_step=140, power=2.0, frequency=2
    ),
    s.Linear(0.1, 0.9, begin_epoch=1, end_epoch=2.5, frequency=7): s.Linear(
        0.1, 0.9, begin_step=50, end_step=125, frequency=7
    ),
    s.Cosine(0.1, 0.9, begin_step=3, end="50%"): s.Cosine(0.1, 0.9, begin_step=3, end_step=100, frequency=2),
    s.Exponential(0.1, 0.9, begin="1 epoch", end_step=90): s.Exponential(
        0.1, 0.9, begin_step=50, end_step=90, frequency=2
    ),
    s.ConstantSparsity(0.4, end="50%"): s.ConstantSparsity(0.4, begin_step=0, end_step=100, frequency=2),
    s.OneShot(0.4, step="2 epochs"): s.OneShot(0.4, step=100),
    s.OneShot(0.4, begin="10%"): s.OneShot(0.4, step=20),
    s.Iterative(0.4, rounds=2, interval=7, begin_epoch=1): s.Iterative(0.4, rounds=2, interval=7, begin_step=50),
    s.Iterative(0.4, rounds=2, interval="10%", begin_step="1 epoch", rewind_to="5%"): s.Iterative(
        0.4, rounds=2, interval=20, begin_step=50, rewind_to=10
    ),
    s.Piecewise(("10%", "2 epochs"), (0.2, 0.4)): s.Piecewise((20, 100), (0.2, 0.4)),
    s.Threshold(0.1, final_value=0.3, begin_epoch=1, end="90%"): s.Threshold(
        0.1, final_value=0.3, begin_step=50, end_step=180, frequency=2
    ),
}


@pytest.mark.parametrize(("relative", "steps"), RELATIVE.items(), ids=lambda one: type(one).__name__)
def test_every_schedule_gets_its_steps_from_a_training(relative, steps):
    assert relative.is_relative
    assert not steps.is_relative
    assert relative.resolve(Span(0, 200, epoch_steps=50.0)) == steps
    assert steps.resolve(Span(5, 9)) == steps
    assert relative.final == steps.final
    again = type(relative).from_config(json.loads(json.dumps(relative.get_config())))
    assert again == relative
    with pytest.raises(ValueError, match=r"counts in shares or epochs.*total_steps"):
        relative(3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: s.Linear(0, 0.5, begin="10", end="70%"), ValueError, r"begin must be a share.*Received: '10'"),
        (lambda: s.Linear(0, 0.5, begin="10%", end="170%"), ValueError, r"Received: '170%'"),
        (lambda: s.Linear(0, 0.5, begin=0.1, end="70%"), TypeError, r"Received: 0\.1\. Write '10%'"),
        (lambda: s.Linear(0, 0.5, begin=10, end="70%"), TypeError, r"argument of their own, begin_step"),
        (lambda: s.Linear(0, 0.5, begin_step=1, begin="10%", end="70%"), ValueError, r"begin_step=1, begin='10%'"),
        (lambda: s.Linear(0, 0.5, begin_epoch=-1, end_epoch=2), ValueError, r"begin_epoch=-1"),
        (lambda: s.Linear(0, 0.5, begin_step=1), TypeError, r"end_step=1000, end='70%' or end_epoch="),
        (lambda: s.Piecewise(("10%", 5), (0.1, 0.2)), TypeError, "all steps or all texts"),
        (lambda: kp.Pruning(90), ValueError, r"for 90 % write 0\.9"),
        (lambda: kp.Pruning("0.9"), TypeError, r"Received: '0\.9' of type str"),
    ],
)
def test_what_is_no_time_is_refused_with_the_way_to_write_it(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", [kp.Pruning, kp.GradientPruning, kp.DynamicPruning], ids=lambda one: one.__name__)
def test_a_number_takes_its_schedule_from_the_fit_it_is_in(make, capsys):
    model, record, pruning = net(), Record(), make(0.75)
    fit(model, pruning, record, verbose=2)
    wanted = s.PolynomialDecay(0.0, 0.75, begin_step=4, end_step=28, frequency=1)
    assert pruning.resolved_schedule == wanted
    assert record.sparsity == [round(wanted(step) * SIZE) / SIZE for step in range(1, 41)]
    line = f"{make.__name__}: from step 4 on, the target of 0.75 in force at step 28; training ends at step 40."
    assert line in capsys.readouterr().out
    # One that goes on training counts on; a later first epoch leaves fewer steps.
    more = make(0.875)
    fit(model, more, initial_epoch=2)
    assert (more.resolved_schedule.begin_step, more.resolved_schedule.end_step) == (40 + 2, 40 + 17)
    assert zeros(model) == 84
    assert line not in capsys.readouterr().out


def test_steps_that_are_not_batches_are_counted_as_steps():
    accumulating = net(keras.optimizers.SGD(0.01, gradient_accumulation_steps=2))
    pruning = kp.Pruning(0.75)
    fit(accumulating, pruning)
    assert (pruning.resolved_schedule.begin_step, pruning.resolved_schedule.end_step) == (2, 14)

    class Twice(keras.Model):
        def train_step(self, data):
            for _ in range(2):
                logs = super().train_step(data)
            return logs

    pruning, model = kp.Pruning(0.75), net(cls=Twice)
    fit(model, pruning)
    assert (pruning.resolved_schedule.begin_step, pruning.resolved_schedule.end_step) == (8, 56)
    assert zeros(model) == 72


def unknown():
    return tf.data.Dataset.from_generator(
        lambda: ((X[i : i + 12], Y[i : i + 12]) for i in range(0, 96, 12)),
        output_signature=(tf.TensorSpec((None, 8)), tf.TensorSpec((None, 4))),
    )


def test_a_data_set_of_unknown_length_is_known_after_its_first_epoch():
    model, record, pruning = net(), Record(), kp.Pruning(0.75)
    model.fit(unknown(), epochs=3, verbose=0, callbacks=[pruning, record])
    # Keras finds the end of the data by a step that fails, whose count goes up all the same.
    epoch = int(model.optimizer.iterations) // 3
    assert epoch in (8, 9)
    end = round(0.7 * 3 * epoch)
    wanted = s.PolynomialDecay(0.0, 0.75, begin_step=epoch, end_step=end, frequency=1)
    assert pruning.resolved_schedule == wanted
    assert record.sparsity[:8] == [0.0] * 8
    assert record.sparsity[8:16] == [round(wanted(epoch + i) * SIZE) / SIZE for i in range(1, 9)]
    assert zeros(model) == 72
    by_epoch = kp.Pruning(s.Linear(0.0, 0.5, begin_epoch=1, end_epoch=2))
    net().fit(unknown(), epochs=3, verbose=0, callbacks=[by_epoch])
    assert (by_epoch.resolved_schedule.first_step, by_epoch.resolved_schedule.last_step) == (epoch, 2 * epoch)
    with pytest.warns(UserWarning, match="how long the training is was not known before its end"):
        net().fit(unknown(), epochs=1, verbose=0, callbacks=[kp.Pruning(0.75)])


def test_a_loop_says_how_long_it_is():
    model, pruning = net(), kp.Pruning(0.75)
    with pytest.raises(ValueError, match=r"total_steps=None. Write attach\(model, total_steps=\.\.\.\)"):
        pruning.attach(model)
    assert "make_train_function" not in vars(model)
    pruning.attach(model, total_steps=20)
    pruning.on_step(0)
    for _ in range(20):
        model.train_on_batch(X[:12], Y[:12])
        pruning.on_step()
    pruning.detach()
    assert (pruning.resolved_schedule.begin_step, pruning.resolved_schedule.end_step) == (2, 14)
    assert zeros(model) == 72


def test_units_thresholds_and_ramps_take_shares_too():
    units = kp.StructuredPruning(params=0.5)
    fit(net(), units)
    assert (units.resolved_schedule.begin_step, units.resolved_schedule.end_step) == (4, 28)
    assert units.left["params"] <= 0.5
    by_share = kp.StructuredPruning(params=s.Linear(0.0, 0.5, begin="20%", end="2 epochs"))
    fit(net(), by_share)
    assert (by_share.resolved_schedule.begin_step, by_share.resolved_schedule.end_step) == (8, 16)
    threshold = kp.ThresholdPruning(s.Threshold(0.1, final_value=0.2, begin="50%", end="75%"))
    fit(net(), threshold)
    assert (threshold.resolved_schedule.begin_step, threshold.resolved_schedule.end_step) == (20, 30)
    weights = []
    for ramp in (s.Linear(0, 0.8, begin="10%", end="50%"), s.Linear(0, 0.8, begin_step=4, end_step=20, frequency=1)):
        keras.utils.set_random_seed(1)
        model = net()
        fit(model, kp.Pruning(s.OneShot(0.5, step=2), parts=[kp.L1(0.05, ramp=ramp)]))
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("known", [True, False])
def test_a_training_that_was_stopped_resolves_to_the_same_steps(tmp_path, known):
    def run(*callbacks):
        keras.utils.set_random_seed(1)
        model = net()
        if known:
            fit(model, *callbacks)
        else:
            model.fit(unknown(), epochs=5, verbose=0, callbacks=list(callbacks))
        return model

    def callbacks():
        return kp.GradientPruning(0.75, parts=[kp.L1(0.01, ramp=s.Linear(0.0, 1 / 2, begin="5%", end="90%"))])

    first = callbacks()
    whole = run(first, kp.RestoreBest("loss", mode="max"))
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    with pytest.raises(KeyboardInterrupt):
        run(callbacks(), kp.RestoreBest("loss", mode="max"), backup, Kill())
    pruning = callbacks()
    again = run(pruning, kp.RestoreBest("loss", mode="max"), backup)
    assert pruning.resolved_schedule == first.resolved_schedule
    # Where the length shows only after the first epoch, nothing begins before: 8 steps, and the one that fails.
    assert pruning.resolved_schedule.begin_step == (4 if known else 9)
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert zeros(again) == 72


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_rewinding_goes_back_to_its_very_step(steps_per_execution):
    rounds = s.Iterative(0.5, rounds=1, interval=1, begin_step=8, rewind_to=3)
    model = net(steps_per_execution=steps_per_execution)
    start = model.get_weights()
    fit(model, kp.Pruning(rounds), epochs=1)
    reference = net()
    reference.set_weights(start)
    for i in range(3):
        reference.train_on_batch(X[12 * i : 12 * i + 12], Y[12 * i : 12 * i + 12])
    for found, wanted in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(found, np.where(found == 0, 0, wanted), atol=1e-6)
    assert zeros(model) == SIZE // 2


# -- the best epoch at the target -------------------------------------------------------------------------------------


class Fixed(keras.callbacks.Callback):
    """Puts given values of a metric into the logs, and keeps the weights of each epoch."""

    def __init__(self, values):
        super().__init__()
        self.values, self.weights = values, []

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.values[epoch]
        self.weights.append(self.model.get_weights())


def quiet(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return run()


@pytest.mark.parametrize("first", ["pruning", "best"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: kp.Pruning(0.75),
        lambda: kp.DynamicPruning(s.ConstantSparsity(0.75, begin_epoch=3, end_epoch=6, frequency=3), "set"),
        lambda: kp.DynamicPruning(0.75, "surgery"),
        lambda: kp.StructuredPruning(params=0.5),
    ],
    ids=["pruning", "set", "surgery", "units"],
)
def test_the_best_epoch_is_one_at_the_target_with_its_own_zeros(make, first):
    model, pruning = net(), make()
    fixed, best = Fixed([9.0, 8.0, 0.0, 0.0, 3.0, 2.0, 1.0]), kp.RestoreBest("score", mode="max")
    pair = [pruning, best] if first == "pruning" else [best, pruning]
    quiet(lambda: fit(model, fixed, *pair, epochs=7))
    assert (best.best, best.best_epoch) == (3.0, 4)
    for found, wanted in zip(model.get_weights(), fixed.weights[4], strict=True):
        np.testing.assert_array_equal(found, wanted)
    if not isinstance(pruning, kp.StructuredPruning):
        # Weights that have just come back are zero too.
        assert zeros(model) >= 72
        assert pruning.sparsity == 0.75
        assert [np.count_nonzero(np.signbit(w[w == 0])) for w in model.get_weights()] == [0, 0, 0, 0]
        fit(model, epochs=1)
        assert all((v[w == 0] == 0).all() for w, v in zip(model.get_weights()[::2], fixed.weights[4][::2], strict=True))
        assert zeros(model) >= 72
    assert not [key for key in model._pruning_state.arrays if key.startswith("best:")]


def test_patience_counts_from_the_target_on_and_no_epoch_at_the_target_is_said():
    best = kp.RestoreBest("score", mode="max", patience=2)
    history = fit(net(), Fixed([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), kp.Pruning(0.5), best, epochs=10)
    # At the target from step 56 on, the end of epoch 6: two epochs later training stops.
    assert len(history.history["loss"]) == 9
    assert best.best_epoch == 6
    late = s.Linear(0.0, 0.5, begin_step=0, end_step=99)
    with (
        pytest.warns(UserWarning, match="no epoch ended with the final target in force"),
        pytest.warns(UserWarning, match="will not be reached"),
    ):
        fit(net(), kp.Pruning(late), kp.RestoreBest("loss"), epochs=1)
    with pytest.raises(ValueError, match=r"must be one of the logs \['loss'\]. Received: 'val_loss'"):
        fit(net(), kp.RestoreBest(), epochs=1)
    with pytest.raises(ValueError, match=r"patience must be a whole number from 1, or None\. Received: 0"):
        kp.RestoreBest(patience=0)
