"""Callbacks in `fit`: every layer kind, every criterion, every way of running the step; errors by message."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prune as kp
from keras_prune.masks.bound import mask_of
from keras_prune.masks.state import innermost
from keras_prune.optimizers.slots import slots_of

RAMP = kp.schedules.PolynomialDecay(0.0, 0.75, begin_step=1, end_step=12, frequency=3)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 8)).astype("float32")
Y = (X @ RNG.standard_normal((8, 3))).astype("float32")


def make_model(optimizer=None, **options):
    first, last = layers.Dense(16, activation="relu", name="first"), layers.Dense(3, name="last")
    model = keras.Sequential([keras.Input((8,)), first, last])
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **options)
    return model


def fit(model, *callbacks, x=X, y=Y, epochs=2, **options):
    options = {"batch_size": 12, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **options)


def pruned(model):
    """Exact zeros of the kernels; negative ones, and masks that do not cover the zeros, are failures."""
    zeros = 0
    for target in kp.Scope().survey(model).targets:
        value = keras.ops.convert_to_numpy(target.variable.value)
        zero = value == 0
        assert not np.signbit(value[zero]).any(), "pruned weights are +0.0"
        mask = mask_of(target.variable)
        assert mask is not None
        assert zero[~mask].all()
        zeros += int((~mask).sum())
    return zeros


class Watch(keras.callbacks.Callback):
    """Checks after every batch that what is pruned is zero, and that masks only shrink unless weights may come back."""

    def __init__(self, may_grow=False):
        super().__init__()
        self.may_grow, self.last, self.sparsity = may_grow, None, []

    def on_train_batch_end(self, batch, logs=None):
        targets = kp.Scope().survey(self.model).targets
        masks = [mask_of(target.variable) for target in targets]
        if masks[0] is None:
            return  # surgery holds its weights by itself
        for target, mask in zip(targets, masks, strict=True):
            assert (target.variable.numpy()[~mask] == 0).all()
        if self.last is not None and not self.may_grow:
            assert all((new <= old).all() for new, old in zip(masks, self.last, strict=True))
        self.last = [np.array(mask) for mask in masks]
        self.sparsity.append(logs["sparsity"])


CRITERIA = {
    "magnitude": "magnitude",
    "random": "random",
    "gradient": "gradient",
    "taylor": "taylor",
    "movement": "movement",
    "fisher": "fisher",
    "snip": "snip",
    "synflow": "synflow",
    "activation": kp.criteria.Activation(data=X),
    "taylor on data": kp.criteria.Taylor(data=(X, Y)),
    "fisher on data": kp.criteria.Fisher(data=(X, Y)),
    "grasp": kp.criteria.GraSP(data=(X, Y)),
    "snip on data": kp.criteria.SNIP(data=(X, Y)),
}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_criteria_meet_the_target_exactly_and_masks_only_shrink(criterion):
    model, callback, watch = make_model(), kp.Pruning(RAMP, criterion), Watch()
    history = fit(model, callback, watch)
    assert pruned(model) == round(0.75 * 176) == 132
    assert callback.sparsity == 0.75
    assert history.history["sparsity"][-1] == 0.75
    assert watch.sparsity == sorted(watch.sparsity)
    expected = [round(RAMP(step) * 176) / 176 for step in (1, 4, 7, 10, 12)]
    assert sorted(set(watch.sparsity)) == sorted({0.0, *expected})
    assert [skipped.path.split("/")[-1] for skipped in callback.skipped] == ["bias", "bias"]


@pytest.mark.parametrize(
    ("pattern", "target"),
    [(kp.patterns.Block(4, 1), 0.75), (kp.patterns.NofM(2, 4), 0.5), ("filter", 0.5), ("channel", 0.5)],
    ids=str,
)
@pytest.mark.parametrize("allocation", ["uniform", "erk", {".*first/kernel": 0.5}], ids=str)
def test_patterns_hold_through_training(pattern, target, allocation):
    model, watch = make_model(), Watch()
    schedule = kp.schedules.Linear(0.0, target, begin_step=0, end_step=10, frequency=5)
    fit(model, kp.Pruning(schedule, pattern=pattern, allocation=allocation), watch)
    for weight in (model.layers[0].kernel.numpy(), model.layers[1].kernel.numpy()):
        kept = weight != 0
        if isinstance(pattern, kp.patterns.Block):
            assert set(np.unique(kept.reshape(-1, 4, kept.shape[1]).sum(axis=1))) <= {0, 4}
        elif isinstance(pattern, kp.patterns.NofM):
            assert set(np.unique(kept.reshape(-1, 4, kept.shape[1]).sum(axis=1))) <= {2, 4}
        else:
            lines = kept if pattern == "channel" else kept.T
            assert set(np.unique(lines.mean(axis=1))) <= {0.0, 1.0}


def conv(layer, shape=(6, 6, 4)):
    return [keras.Input(shape), layer, layers.Flatten(), layers.Dense(3)]


LAYERS = {
    "dense": lambda: [keras.Input((8,)), layers.Dense(4), layers.Dense(3)],
    "einsum": lambda: [
        keras.Input((4, 8)),
        layers.EinsumDense("abc,cd->abd", (4, 4)),
        layers.Flatten(),
        layers.Dense(3),
    ],
    "conv1d": lambda: conv(layers.Conv1D(4, 3), (6, 4)),
    "conv2d": lambda: conv(layers.Conv2D(4, 3)),
    "conv3d": lambda: conv(layers.Conv3D(4, 2), (3, 3, 3, 4)),
    "conv1d transpose": lambda: conv(layers.Conv1DTranspose(4, 3), (6, 4)),
    "conv2d transpose": lambda: conv(layers.Conv2DTranspose(4, 3)),
    "conv3d transpose": lambda: conv(layers.Conv3DTranspose(4, 2), (3, 3, 3, 4)),
    "depthwise1d": lambda: conv(layers.DepthwiseConv1D(3), (6, 4)),
    "depthwise2d": lambda: conv(layers.DepthwiseConv2D(3)),
    "separable1d": lambda: conv(layers.SeparableConv1D(4, 3), (6, 4)),
    "separable2d": lambda: conv(layers.SeparableConv2D(4, 3)),
    "embedding": lambda: [keras.Input((5,), dtype="int32"), layers.Embedding(8, 4), layers.Flatten(), layers.Dense(3)],
    "simple rnn": lambda: [keras.Input((4, 4)), layers.SimpleRNN(4), layers.Dense(3)],
    "lstm": lambda: [keras.Input((4, 4)), layers.LSTM(4), layers.Dense(3)],
    "gru": lambda: [keras.Input((4, 4)), layers.GRU(4), layers.Dense(3)],
    "conv lstm": lambda: conv(layers.ConvLSTM1D(2, 2), (3, 6, 4)),
    "bidirectional": lambda: [keras.Input((4, 4)), layers.Bidirectional(layers.LSTM(4)), layers.Dense(3)],
    "time distributed": lambda: [
        keras.Input((4, 4)),
        layers.TimeDistributed(layers.Dense(4)),
        layers.Flatten(),
        layers.Dense(3),
    ],
    "attention": lambda: [
        keras.Input((4, 4)),
        Self(layers.MultiHeadAttention(2, 2)),
        layers.Flatten(),
        layers.Dense(3),
    ],
    "grouped attention": lambda: [
        keras.Input((4, 4)),
        Self(layers.GroupQueryAttention(2, 4, 2)),
        layers.Flatten(),
        layers.Dense(3),
    ],
    "nested": lambda: [keras.Input((8,)), keras.Sequential([keras.Input((8,)), layers.Dense(4)]), layers.Dense(3)],
}


class Self(layers.Layer):
    """Attention of a sequence to itself, inside a custom layer."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_kinds_are_pruned_in_training(kind):
    model = keras.Sequential(LAYERS[kind]())
    # Gradients from training and growth by gradient are what touches a layer most.
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    shape = model.input_shape[1:]
    x = RNG.integers(0, 8, (24, *shape)) if kind == "embedding" else RNG.standard_normal((24, *shape))
    targets = kp.Scope().survey(model).targets
    callback = kp.Pruning(
        kp.schedules.Linear(0.0, 0.5, begin_step=1, end_step=3, frequency=1), "taylor", allocation="uniform"
    )
    fit(model, callback, Watch(), x=x, y=np.ones((24, 3)), batch_size=6, epochs=1)
    assert pruned(model) == sum(round(0.5 * int(np.prod(t.variable.shape))) for t in targets)


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "muon": lambda: keras.optimizers.Muon(0.01),
    "lion": lambda: keras.optimizers.Lion(0.001),
    "averaging": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=4),
    "scaled loss": lambda: keras.optimizers.Adam(0.01, loss_scale_factor=64.0),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}
METHODS = {
    "magnitude": lambda: kp.Pruning(RAMP),
    "taylor": lambda: kp.GradientPruning(RAMP),
    "rigl": lambda: kp.DynamicPruning(RAMP, "rigl"),
    "set": lambda: kp.DynamicPruning(RAMP, "set"),
    "surgery": lambda: kp.DynamicPruning(RAMP, "surgery"),
    "soft threshold": lambda: kp.SoftThreshold(RAMP),
}


@pytest.mark.parametrize("method", ["taylor", "surgery"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(optimizer, method):
    model = make_model(OPTIMIZERS[optimizer]())
    fit(model, METHODS[method](), Watch(may_grow=True), epochs=4)
    assert pruned(model) == 132


STEPS = {
    "jit": {"jit_compile": True},
    "several a call": {"steps_per_execution": 5},
    "eager": {"run_eagerly": True},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", STEPS)
def test_ways_of_running_the_step(options, method):
    model = make_model(**STEPS[options])
    fit(model, METHODS[method](), Watch(may_grow=True))
    assert pruned(model) == 132


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("method", ["taylor", "surgery"])
def test_mixed_precision(policy, method):
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy("float32")
    # A loss scale that overflows at first: steps that are skipped are not counted.
    fit(model, METHODS[method](), Watch(may_grow=True), epochs=4)
    assert pruned(model) == 132


@pytest.mark.parametrize("method", METHODS)
def test_replicas_agree_and_follow_the_single_device(method, mirrored):
    """Two logical CPUs, full batches: the same masks, and weights equal to rounding."""
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        with strategy.scope():
            model = make_model(keras.optimizers.SGD(0.01))
        fit(model, METHODS[method](), shuffle=False)
        assert pruned(model) == 132
        weights.append(model.get_weights())
    for replica in model.layers[0].kernel.value.values:
        np.testing.assert_array_equal(replica.numpy(), weights[1][0])
    for single, mirrored in zip(*weights, strict=True):
        np.testing.assert_array_equal(single == 0, mirrored == 0)
        np.testing.assert_allclose(mirrored, single, rtol=1e-4, atol=1e-6)


def test_taylor_in_training_equals_a_computation_by_hand():
    """One linear layer, one batch a step: the scores are |w| times the mean |g| of the steps since the last update."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    weight, x, y = model.get_weights()[0].astype(np.float64), X[:48], Y[:48, :1].repeat(4, axis=1)
    total = np.zeros_like(weight)
    for i in range(4):
        batch, wanted = x[i * 12 : i * 12 + 12], y[i * 12 : i * 12 + 12]
        g = 2 * batch.T @ (batch @ weight - wanted) / wanted.size
        total += np.abs(g)
        weight -= 0.05 * g
    expected = np.abs(weight) * total / 4
    fit(model, kp.GradientPruning(kp.schedules.OneShot(0.5, step=4)), x=x, y=y, epochs=1, shuffle=False)
    kept = model.get_weights()[0] != 0
    np.testing.assert_array_equal(kept, expected > np.sort(expected.ravel())[15])


def test_surgery_lets_a_pruned_weight_grow_back_with_what_it_learnt():
    """A weight that starts small and is wanted large is pruned, goes on learning, and returns."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.set_weights([np.array([[1.0], [0.1]], dtype=np.float32)])
    x = np.eye(2, dtype=np.float32).repeat(8, axis=0)
    y = x @ np.array([[0.2], [2.0]], dtype=np.float32)
    schedule = kp.schedules.ConstantSparsity(0.5, begin_step=0, end_step=40, frequency=1)
    fit(model, kp.DynamicPruning(schedule, "surgery"), x=x, y=y, batch_size=16, epochs=40)
    # The first weight went, having held the place at first; it is zero, the other has learnt on.
    first, second = model.get_weights()[0].ravel()
    assert first == 0.0
    assert second > 1.0


@pytest.mark.parametrize("growth", ["rigl", "set", "surgery"])
def test_growth_moves_zeros_and_keeps_their_number(growth):
    model = make_model()
    schedule = kp.schedules.ConstantSparsity(0.5, begin_step=1, end_step=16, frequency=3)
    seen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append([w != 0 for w in self.model.get_weights()[::2]])

    fit(model, kp.DynamicPruning(schedule, growth), Note())
    masks = [np.concatenate([m.ravel() for m in masks]) for masks in seen[2::3]]  # before each exchange
    assert any((later & ~earlier).any() for earlier, later in itertools.pairwise(masks)), "some come back"
    assert pruned(model) == 88


@pytest.mark.parametrize(("optimizer", "growth"), [("momentum", "rigl"), ("adagrad", "set"), ("mixed_float16", "rigl")])
def test_what_grows_back_begins_anew_in_the_optimizer_too(optimizer, growth):
    keras.config.set_dtype_policy("mixed_float16" if optimizer == "mixed_float16" else "float32")
    begins = 0.25 if optimizer == "adagrad" else 0.0
    try:
        made = {
            "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
            "adagrad": lambda: keras.optimizers.Adagrad(0.1, initial_accumulator_value=begins),
            "mixed_float16": lambda: keras.optimizers.Adam(0.01),
        }[optimizer]()
        model = make_model(made)
    finally:
        keras.config.set_dtype_policy("float32")
    kernels = [layer.kernel for layer in model.layers]
    last, seen = [None], {"back": 0, "on": []}

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks = [np.array(mask_of(kernel)) for kernel in kernels]
            if last[0] is not None:
                for kernel, mask, before in zip(kernels, masks, last[0], strict=True):
                    back = mask & ~before
                    seen["back"] += back.sum()
                    assert (np.asarray(kernel.value)[back] == 0).all()
                    for slot, _ in slots_of(innermost(model.optimizer), kernel):
                        assert (np.asarray(slot.value)[back] == begins).all()
                        seen["on"].append((np.asarray(slot.value)[mask & before] != begins).mean())
            last[0] = masks

    schedule = kp.schedules.ConstantSparsity(0.6, begin_step=1, end_step=40, frequency=4)
    fit(model, kp.DynamicPruning(schedule, growth), Look(), epochs=4)
    assert seen["back"] > 10
    assert seen["on"][-1] > 0.8, "those that stayed keep theirs"


def test_the_optimizer_sees_no_gradient_of_what_is_off():
    """Its clipping by the norm of all gradients reckons with those of weights that are on."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3, use_bias=False)])
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=1e-3), "mse")
    schedule = kp.schedules.ConstantSparsity(0.5, begin_step=1, end_step=100, frequency=100)
    pruning = kp.DynamicPruning(schedule, "set")
    pruning.attach(model)
    pruning.on_step(0)
    moves = []
    for _ in range(2):
        before = model.get_weights()[0]
        model.train_on_batch(X, Y)
        on = np.array(mask_of(model.layers[0].kernel))
        moves.append(np.linalg.norm((model.get_weights()[0] - before)[on]))
        pruning.on_step()
    np.testing.assert_allclose(moves, 1e-3, rtol=1e-3)
    pruning.detach()
    assert "apply" not in vars(model.optimizer)


def test_gradients_under_a_wrapper_are_no_gain():
    model = keras.Sequential([keras.Input((8,)), kp.PrunableDense(16, name="first"), layers.Dense(3)])
    model.compile("sgd", "mse")
    schedule = kp.schedules.ConstantSparsity(0.5, begin_step=1, end_step=8, frequency=2)
    with pytest.raises(ValueError, match=r"RigL.*gradient of pruned weights.*first/kernel.*straight_through=True"):
        fit(model, kp.DynamicPruning(schedule, "rigl"))
    fit(model, kp.DynamicPruning(schedule, "set"))


def test_thresholds_on_weights_gradients_and_activations():
    model = make_model()
    before = model.get_weights()[::2]
    fit(model, kp.ThresholdPruning(0.2, frequency=1000))
    for old, new in zip(before, model.get_weights()[::2], strict=True):
        np.testing.assert_array_equal(new == 0, np.abs(old) <= 0.2)

    model = make_model(keras.optimizers.SGD(0.0))
    x, y = X[:48], Y[:48]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
    gradient = np.abs(tape.gradient(loss, model.layers[0].kernel.value).numpy())
    # One batch of all data a step, so the mean |g| is that of the batch.
    bound = float(np.median(gradient))
    callback = kp.ThresholdPruning(bound, on="gradient", frequency=2, scope=kp.Scope(include=r".*first/kernel"))
    fit(model, callback, x=x, y=y, batch_size=48, epochs=3)
    np.testing.assert_array_equal(model.get_weights()[0] == 0, gradient <= bound)

    model = make_model()
    x = X * np.array([1, 0, 1, 0, 1, 1, 1, 1], dtype=np.float32)
    callback = kp.ThresholdPruning(0.0, on="activation", data=x, scope=kp.Scope(include=r".*first/kernel"))
    fit(model, callback, x=x)
    np.testing.assert_array_equal((model.get_weights()[0] == 0).all(axis=1), [False, True] * 2 + [False] * 4)


def test_a_users_constraint_stays_and_is_applied_first():
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, kernel_constraint=keras.constraints.NonNeg()), layers.Dense(3)]
    )
    model.compile("adam", "mse")
    fit(model, kp.Pruning(RAMP))
    assert pruned(model) == 132
    assert (model.get_weights()[0] >= 0).all()


def test_zeros_survive_later_training_and_a_new_compile():
    model = make_model()
    fit(model, kp.Pruning(RAMP))
    fit(model)
    assert pruned(model) == 132
    model.compile("sgd", "mse")
    fit(model)
    assert pruned(model) == 132
    fit(model, kp.Pruning(kp.schedules.OneShot(0.9, step=20)))
    assert pruned(model) == round(0.9 * 176)


def test_iterative_pruning_rewinds_the_survivors():
    model = make_model(keras.optimizers.SGD(0.05))
    start = model.get_weights()
    rounds = kp.schedules.Iterative(0.75, rounds=2, interval=4, begin_step=4, rewind_to=0)
    # The last round is at step 8, the end of the epoch, so nothing is trained after the rewinding.
    fit(model, kp.Pruning(rounds), epochs=1)
    for old, new in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, np.where(new == 0, 0, old))
    assert pruned(model) == 132


def test_a_custom_loop_calls_on_step():
    model, pruning = make_model(), kp.GradientPruning(RAMP)
    pruning.attach(model)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, weights), weights)

    pruning.on_step(0)
    for i in range(16):
        step(X[(i % 8) * 12 :][:12], Y[(i % 8) * 12 :][:12])
        pruning.on_step()
    assert pruning.sparsity == 0.75
    pruning.detach()
    assert pruned(model) == 132


def test_with_validation_and_early_stopping():
    model = make_model()
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=100.0)
    history = fit(model, kp.Pruning(RAMP), stop, epochs=9, validation_data=(X, Y))
    assert len(history.history["loss"]) < 9
    # What was pruned is zero in the model that validation and early stopping saw.
    assert pruned(model) == round(history.history["sparsity"][-1] * 176)


def test_interrupted_training_leaves_a_model_that_trains_on():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 5:
                raise KeyboardInterrupt

    for method in ("taylor", "surgery"):
        model = make_model()
        with pytest.raises(KeyboardInterrupt):
            fit(model, METHODS[method](), Interrupt())
        fit(model, METHODS[method](), epochs=3)
        assert pruned(model) == 132


def test_scopes_that_do_not_overlap_share_a_model():
    model = make_model()
    first = kp.Pruning(kp.schedules.OneShot(0.5), scope=kp.Scope(include=r".*first/kernel"))
    second = kp.GradientPruning(kp.schedules.OneShot(0.25, step=3), scope=kp.Scope(exclude=r".*first/kernel"))
    fit(model, first, second)
    assert [int((w == 0).sum()) for w in model.get_weights()[::2]] == [64, 12]


def test_two_callbacks_on_one_tensor_are_refused():
    with pytest.raises(ValueError, match=r"Two pruning callbacks act on '.*first/kernel'.*scope="):
        fit(make_model(), kp.Pruning(RAMP), kp.DynamicPruning(RAMP))


def test_errors_name_what_to_change():
    unbuilt = keras.Sequential([layers.Dense(3)])
    unbuilt.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"has no weights yet.*call it on a batch"):
        kp.Pruning(RAMP).attach(unbuilt)
    with pytest.raises(ValueError, match=r"is not compiled.*model\.compile"):
        kp.Pruning(RAMP).attach(keras.Sequential([keras.Input((2,)), layers.Dense(3)]))
    with pytest.raises(ValueError, match=r"Activation takes \['input_norm'\] from data.*data=None"):
        kp.Pruning(RAMP, kp.criteria.Activation())
    with pytest.raises(ValueError, match=r"on='weights'"):
        kp.ThresholdPruning(0.1, on="weights")
    with pytest.raises(ValueError, match=r"must take gradients.*Magnitude"):
        kp.GradientPruning(RAMP, "magnitude")
    with pytest.raises(ValueError, match=r"must give a sparsity.*Threshold"):
        kp.DynamicPruning(kp.schedules.Threshold(0.1))
    with pytest.raises(ValueError, match=r"nothing can grow back in NofM"):
        kp.DynamicPruning(RAMP, pattern=kp.patterns.NofM(2, 4))
    with pytest.raises(TypeError, match=r"each of parts must be a keras_prune\.Part. Received: 'l1'"):
        kp.Pruning(RAMP, parts=["l1"])
    with pytest.raises(RuntimeError, match=r"not attached.*attach\(model\)"):
        _ = kp.Pruning(RAMP).sparsity
    with pytest.raises(ValueError, match=r"seen no gradients at step 0.*step 1 or later"):
        fit(make_model(), kp.GradientPruning(kp.schedules.OneShot(0.5)))
    with pytest.raises(ValueError, match=r"Layer collapse.*threshold 100"):
        fit(make_model(), kp.ThresholdPruning(100.0))
    frozen = make_model()
    frozen.layers[0].trainable = frozen.layers[1].trainable = False
    with pytest.raises(ValueError, match=r"no prunable tensor.*frozen"):
        kp.Pruning(RAMP).attach(frozen)


def test_a_schedule_that_outlasts_training_warns():
    late = kp.schedules.Linear(0.0, 0.5, begin_step=0, end_step=500)
    with pytest.warns(UserWarning, match=r"ends at step 500, and training at step 16 .*Set end_step to 16 or less"):
        fit(make_model(), kp.Pruning(late))


def test_a_schedule_that_is_over_before_training_warns():
    model = make_model()
    fit(model, epochs=3)
    with pytest.warns(UserWarning, match=r"ends at step 12, and the optimizer has done 24 steps"):
        fit(model, kp.Pruning(RAMP))


def test_weights_restored_at_the_end_are_pruned_again():
    model = make_model()
    best_first = keras.callbacks.EarlyStopping(monitor="loss", mode="max", patience=9, restore_best_weights=True)
    with pytest.warns(UserWarning, match=r"wrote to \d+ pruned weights.*start_from_epoch"):
        fit(model, kp.Pruning(RAMP), best_first, epochs=4)
    assert pruned(model) == 132
    assert "on_train_end" not in vars(model.history)
