"""Whose steps count: optimizers of the model's own, several steps a batch, and trainings that end before the target."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prune as kp
from keras_prune.optimizers.finding import hooked, optimizers_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 8)).astype("float32")
Y = (X @ RNG.standard_normal((8, 4))).astype("float32")
RAMP = kp.schedules.PolynomialDecay(0.0, 0.75, begin_step=1, end_step=7, frequency=4)
SIZE = 8 * 8 + 8 * 4


def dense_net(name, width=4):
    return keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu"), layers.Dense(width)], name=name)


class Pair(keras.Model):
    """A generator and a critic, each with an optimizer of its own, as often a batch as is said.

    Args:
        hold: how the model holds the optimizers.
        times: steps of the generator and of the critic in each batch.
    """

    def __init__(self, hold="attribute", times=(1, 1), every=1):
        super().__init__()
        self.generator, self.critic = dense_net("generator"), dense_net("critic")
        self.hold, self.times, self.every = hold, times, every
        self.batches = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def compile(self, first, second):
        super().compile()
        if self.hold == "list":
            self.optimizers = [first, [second]]
        elif self.hold == "dict":
            self.optimizers = {"generator": first, "others": {"critic": second}}
        elif self.hold == "submodel":
            self.generator.moved_by, self.critic.moved_by = first, second
        else:
            self.first, self.second = first, second
        self.get = lambda: (first, second)

    def move(self, optimizer, net, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(net(x)))
        weights = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return 0

    def train_step(self, x):
        self.batches.assign_add(1)
        first, second = self.get()
        for _ in range(self.times[0]):
            if self.every == 1:
                self.move(first, self.generator, x)
            else:
                turn = tf.equal(self.batches % self.every, 0)
                tf.cond(turn, lambda: self.move(first, self.generator, x), lambda: 0)
        for _ in range(self.times[1]):
            self.move(second, self.critic, x)
        return {"loss": 0.0}


class Record(keras.callbacks.Callback):
    """The sparsity after each batch."""

    def on_train_begin(self, logs=None):
        self.sparsity = []

    def on_train_batch_end(self, batch, logs=None):
        self.sparsity.append(logs["sparsity"])


def generator_only(schedule=RAMP, **options):
    return kp.Pruning(schedule, scope=kp.Scope(include=r"generator/.*"), **options)


def fit(model, *callbacks, epochs=2, x=X, y=None, **options):
    return model.fit(x, y, batch_size=12, epochs=epochs, verbose=0, callbacks=list(callbacks), **options)


def zeros(net):
    return sum(int((layer.kernel.numpy() == 0).sum()) for layer in net.layers)


def expected(steps, schedule=RAMP, size=SIZE):
    """The sparsity after so many steps: the target at the last step at which masks changed."""
    due = [s for s in range(steps + 1) if schedule.should_update(s)]
    return round(schedule(due[-1]) * size) / size if due else 0.0


@pytest.mark.parametrize("hold", ["attribute", "list", "dict", "submodel"])
def test_the_optimizer_that_moves_the_weights_counts_wherever_it_is_held(hold):
    model, record = Pair(hold), Record()
    model.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
    pruning = generator_only()
    fit(model, pruning, record)
    assert record.sparsity == [expected(i + 1) for i in range(16)]
    assert zeros(model.generator) == 72
    assert zeros(model.critic) == 0
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize(
    ("times", "every", "made"),
    [((2, 1), 1, lambda i: 2 * (i + 1)), ((1, 3), 1, lambda i: i + 1), ((1, 2), 2, lambda i: (i + 1) // 2)],
    ids=["two steps a batch", "a busy critic", "every second batch"],
)
def test_several_steps_a_batch_and_none_in_some(times, every, made):
    model, record = Pair(times=times, every=every), Record()
    model.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    fit(model, generator_only(), record)
    # What falls between two looks is made at the next with the target of that step; none comes later than its batch.
    steps = [made(i) for i in range(16)]
    found, target = [], 0.0
    for before, now in zip([0, *steps], steps, strict=False):
        if any(RAMP.should_update(s) for s in range(before + 1, now + 1)):
            target = round(RAMP(now) * SIZE) / SIZE
        found.append(target)
    assert record.sparsity == found
    assert zeros(model.generator) == 72


def test_one_optimizer_for_both_counts_all_its_steps_and_scaled_losses_are_seen_through():
    model, record = Pair(), Record()
    shared = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=1.0)
    shared.scale_loss = lambda loss: loss
    shared.build([*model.generator.trainable_variables, *model.critic.trainable_variables])
    model.compile(shared, shared)
    assert optimizers_of(model) == [model.optimizer, shared.inner_optimizer]
    fit(model, generator_only(), record, epochs=1)
    assert int(shared.iterations) == 16
    assert record.sparsity[0] == round(RAMP(2) * SIZE) / SIZE
    assert zeros(model.generator) == 72


def test_a_second_fit_counts_on_and_a_pretrained_submodel_counts_from_its_new_optimizer():
    model = Pair()
    model.generator.compile("sgd", "mse")
    fit(model.generator, y=Y, epochs=5)
    assert int(model.generator.optimizer.iterations) == 40
    model.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    fit(model, generator_only())
    assert zeros(model.generator) == 72
    more = kp.schedules.OneShot(0.9, step=20)
    fit(model, generator_only(more))
    assert zeros(model.generator) == round(0.9 * SIZE)


def test_several_optimizers_of_one_callback_count_by_the_slowest_and_gradients_are_means_of_each():
    model = Pair(times=(1, 3))
    model.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    pruning = kp.GradientPruning(kp.schedules.OneShot(0.5, step=6), parts=[kp.L1(1e-3)])
    record = Record()
    fit(model, pruning, record, epochs=1)
    assert [i for i, s in enumerate(record.sparsity) if s > 0] == [5, 6, 7]
    assert zeros(model.generator) + zeros(model.critic) == SIZE
    assert not hooked(model.first, object)


def test_an_optimizer_that_cannot_be_found_is_said_and_what_no_one_moves_too():
    hidden = keras.optimizers.SGD(0.01)

    class Hidden(Pair):
        def train_step(self, x):
            self.move(hidden, self.generator, x)
            return {"loss": 0.0}

    model = Hidden()
    model.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    with pytest.warns(UserWarning, match="no step was counted") as told:
        fit(model, generator_only())
    text = " | ".join(str(one.message) for one in told)
    assert "no optimizer that Hidden" in text
    assert "'generator/" in text
    assert "as an attribute of the model" in text
    assert "the final target 0.75 was not reached, the sparsity is 0" in text

    model = Pair(times=(1, 0))
    model.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    with pytest.warns(
        UserWarning, match=r"Pruning: 'critic/\w+/kernel', .* no optimizer that the model holds has moved"
    ):
        fit(model, kp.Pruning(RAMP))
    assert zeros(model.generator) + zeros(model.critic) == round(0.75 * 2 * SIZE)


# -- trainings that end before the target -----------------------------------------------------------------------------


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 2


def plain(optimizer="sgd", **options):
    model = dense_net("plain")
    model.compile(optimizer, "mse", **options)
    return model


def unknown_length():
    return tf.data.Dataset.from_generator(
        lambda: (X[i : i + 12] for i in range(0, 96, 12)), output_signature=tf.TensorSpec((None, 8))
    ).map(lambda x: (x, x[:, :4]))


LATE = kp.schedules.Linear(0.0, 0.5, begin_step=0, end_step=14, frequency=2)


@pytest.mark.parametrize(
    "run",
    {
        "stopped": lambda cb: fit(plain(), cb, Stop(), y=Y, epochs=9),
        "early": lambda cb: fit(plain(), cb, keras.callbacks.EarlyStopping("loss", min_delta=99.0), y=Y, epochs=1 + 8),
        "unknown": lambda cb: plain().fit(unknown_length(), epochs=1, verbose=0, callbacks=[cb]),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_training_that_ends_short_of_the_target_says_so_whatever_the_reason(run):
    late = kp.schedules.Linear(0.0, 0.5, begin_step=0, end_step=40, frequency=2)
    for callback, rest in (
        (kp.Pruning(late), "the final target 0.5 was not reached, the sparsity is"),
        (kp.DynamicPruning(late), "the final target 0.5 was not reached"),
        (kp.StructuredPruning(params=0.5, end_step=40, frequency=2), r"the target .* was not reached, .* are left"),
    ):
        with pytest.warns(UserWarning, match=rf"training ended at step \d+, .* at step 40: {rest}"):
            run[1](callback)


def test_a_loop_that_ends_short_is_told_and_one_that_does_not_is_not(recwarn):
    model, pruning = plain(), kp.Pruning(LATE)
    pruning.attach(model)
    for i in range(14):
        pruning.on_step(int(i > 0))
        model.train_on_batch(X[:12], Y[:12])
    pruning.detach()
    assert [str(one.message) for one in recwarn if "training ended at step 14" in str(one.message)] == []
    assert pruning.sparsity == 0.5
    model, pruning = plain(), kp.Pruning(LATE)
    pruning.attach(model)
    pruning.on_step(0)
    with pytest.warns(UserWarning, match="training ended at step 0"):
        pruning.detach()


class Odd(kp.schedules.Schedule):
    """A schedule of a user's own whose masks change at every third step only."""

    def __call__(self, step):
        return 0.5 if step >= 7 else 0.25

    def should_update(self, step):
        return step % 3 == 0

    last_step = 7


@pytest.mark.parametrize("steps_per_execution", [1, 4])
@pytest.mark.parametrize(
    "schedule",
    [
        kp.schedules.PolynomialDecay(0.0, 0.5, begin_step=1, end_step=7, frequency=4),
        kp.schedules.Linear(0.0, 0.5, begin_step=0, end_step=7, frequency=5),
        kp.schedules.Cosine(0.0, 0.5, begin_step=2, end_step=7, frequency=9),
        kp.schedules.Exponential(0.0, 0.5, begin_step=1, end_step=7, frequency=4),
        kp.schedules.Piecewise((0, 7), (0.25, 0.5), interpolate=True, frequency=5),
        kp.schedules.Iterative(0.5, rounds=2, interval=4, begin_step=3),
        kp.schedules.OneShot(0.5, step=7),
        Odd(),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_the_final_target_is_in_force_at_the_last_step_on_the_grid_or_not(schedule, steps_per_execution):
    model = plain(steps_per_execution=steps_per_execution)
    record = Record()
    fit(model, kp.Pruning(schedule), record, y=Y, epochs=1)
    last = -1 if steps_per_execution == 4 else 6
    assert record.sparsity[last] == 0.5
    assert zeros(model) == SIZE // 2


# -- parts with several optimizers, in branches, and after an interrupt -----------------------------------------------


def test_parts_take_the_rate_of_the_optimizer_that_moves_each_weight():
    """Proximal L1 over two SGD of different rates, by hand: one full batch."""
    multi = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1), {".*dense_1/.*": keras.optimizers.SGD(0.4)})
    )
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(4)])
    model.compile(multi, "mse")
    before = [layer.kernel.numpy() for layer in model.layers]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(X) - Y))
    gradients = [g.numpy() for g in tape.gradient(loss, [layer.kernel.value for layer in model.layers])]
    never = kp.schedules.OneShot(0.5, step=99)
    with pytest.warns(UserWarning, match="will not be reached"):
        model.fit(X, Y, batch_size=96, verbose=0, callbacks=[kp.Pruning(never, parts=[kp.L1(0.5, proximal=True)])])
    for layer, weight, gradient, rate in zip(model.layers, before, gradients, (0.1, 0.4), strict=True):
        moved = weight - rate * gradient
        wanted = np.sign(moved) * np.maximum(np.abs(moved) - rate * 0.5, 0)
        np.testing.assert_allclose(layer.kernel.numpy(), wanted, atol=1e-6)


class Guarded(keras.Model):
    """Steps only where the loss is finite, in a branch."""

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=data[1], y_pred=self(data[0], training=True))
        weights = self.trainable_variables
        gradients = tape.gradient(loss, weights)

        def apply():
            self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
            return 0

        tf.cond(tf.math.is_finite(loss), apply, lambda: 0)
        return {"loss": loss}


def test_parts_act_in_a_branch_as_outside_of_it():
    weights = []
    for cls in (keras.Model, Guarded):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((5,), dtype="int32")
        hidden = layers.Dense(8)(layers.Flatten()(layers.Embedding(6, 4)(inputs)))
        model = cls(inputs, layers.Dense(4)(hidden))
        model.compile("adam", "mse")
        x = np.arange(480).reshape(96, 5) % 6
        parts = [kp.L1(1e-2), kp.ClipGradients(0.1)]
        fit(model, kp.GradientPruning(RAMP, parts=parts), x=x, y=Y, shuffle=False)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    inputs = keras.Input((8,))
    model = Guarded(inputs, layers.Dense(4)(layers.Dense(8)(inputs)))
    model.compile("adam", "mse")
    structured = kp.StructuredPruning(params=0.5, end_step=4, frequency=2)
    fit(model, structured, y=Y)
    assert structured.left["params"] <= 0.5


class Interrupt(keras.callbacks.Callback):
    def __init__(self, error=KeyboardInterrupt):
        super().__init__()
        self.error = error

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 2:
            raise self.error


def train_plainly(model):
    fit(model, y=Y, epochs=1, shuffle=False)


def train_by_batches(model):
    for i in range(0, 96, 12):
        model.train_on_batch(X[i : i + 12], Y[i : i + 12])


def train_by_hand(model):
    for i in range(0, 96, 12):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(X[i : i + 12]) - Y[i : i + 12]))
        weights = model.trainable_variables
        model.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))


@pytest.mark.parametrize("train", [train_plainly, train_by_batches, train_by_hand])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_no_part_outlives_an_interrupted_fit(train, error):
    never = kp.schedules.OneShot(0.5, step=99)
    model = plain(keras.optimizers.SGD(0.01))
    parts = [kp.L1(5.0), kp.ClipGradients(1e-3)]
    callback = kp.Pruning(never, parts=parts, scope=kp.Scope(include=r".*dense/kernel"))
    other = kp.GradientPruning(never, parts=[kp.L1(3.0)], scope=kp.Scope(exclude=r".*dense/kernel"))
    with pytest.raises(error), pytest.warns(UserWarning, match="will not be reached"):
        fit(model, callback, other, Interrupt(error), y=Y)
    start = model.get_weights()
    train(model)
    reference = plain(keras.optimizers.SGD(0.01))
    reference.set_weights(start)
    train(reference)
    for one, another in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(one, another, atol=1e-6)


def test_what_was_interrupted_keeps_its_zeros():
    model = plain(keras.optimizers.SGD(0.01))
    schedule = kp.schedules.ConstantSparsity(0.5, begin_step=0, end_step=40, frequency=1)
    with pytest.raises(KeyboardInterrupt):
        fit(model, kp.DynamicPruning(schedule, "surgery"), Interrupt(), y=Y)
    train_plainly(model)
    assert zeros(model) == SIZE // 2
    assert "make_train_function" not in vars(model)
    assert not hooked(model.optimizer, object)


def test_a_used_callback_can_be_copied_and_the_copy_begins_anew():
    callbacks = [
        kp.Pruning(RAMP, "taylor", parts=[kp.L1(1e-3)]),
        kp.GradientPruning(RAMP),
        kp.DynamicPruning(RAMP, "set"),
        kp.ThresholdPruning(0.1, frequency=3),
        kp.StructuredPruning(params=0.5, end_step=7),
        kp.structured.StructureAdjustment("loss", tolerance=9.0, step=0.2),
    ]
    for callback in callbacks:
        fit(plain(), callback, y=Y)
        for again in (copy.deepcopy(callback), copy.copy(callback), pickle.loads(pickle.dumps(callback))):
            if isinstance(callback, kp.PruningCallback):
                assert repr(again) == repr(callback)
                with pytest.raises(RuntimeError, match="not attached"):
                    _ = again.sparsity
        model = plain()
        fit(model, again, y=Y)
        assert zeros(model) > 0
        assert again.model is model
        assert callback.model is not model
