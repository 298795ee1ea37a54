"""Weights that share values in training: what moves them, what holds them, and what is left at the end."""

import itertools
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_prune as kp
from keras_prune.keras_seam import average_of

RNG = np.random.default_rng(0)
X = RNG.integers(-2, 3, (40, 8)).astype("float32")
Y = RNG.integers(-4, 5, (40, 4)).astype("float32")
KERNEL = RNG.choice([0.0, -1.5, 0.25, 2.0], (8, 4)).astype("float32")


def linear(optimizer, kernel=KERNEL):
    """One kernel `[8, 4]`, whose gradient is that of a formula."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, use_bias=False, name="a")])
    model.layers[0].kernel.assign(kernel)
    model.compile(optimizer, "mse")
    return model


def two_layers(optimizer, **options):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu", name="a"), layers.Dense(4, name="b")])
    model.compile(optimizer, "mse", **options)
    return model


class Watch(keras.callbacks.Callback):
    """The kernel before the first step and after each."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen = self.seen or [self.kernel()]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.kernel())

    def kernel(self):
        return self.model.get_weights()[0]


def fit(model, *callbacks, **options):
    model.fit(X, Y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options}, callbacks=list(callbacks))
    return model


# -- what moves them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_centroids_move_by_sgd_on_the_sums_of_their_members_gradients(granularity):
    """Step by step as NumPy has it; to the bit where float32 holds the numbers."""
    rate, momentum, watch = 2.0**-5, 0.5, Watch()
    sharing = kp.WeightSharing(4, granularity=granularity)
    fit(linear(keras.optimizers.SGD(rate, momentum=momentum)), sharing, watch)
    weight, speed = KERNEL.astype(np.float64), np.zeros((8, 4))
    columns = [slice(None)] if granularity == "tensor" else [slice(j, j + 1) for j in range(4)]
    groups = [(value == KERNEL, column) for column in columns for value in (-1.5, 0.25, 2.0)]
    assert (watch.seen[0] == KERNEL).all()
    for i, seen in enumerate(watch.seen[1:]):
        x, y = X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]
        gradient = 2 * x.T @ (x @ weight - y) / y.size
        for members, column in groups:
            centroid = gradient[:, column][members[:, column]].sum()
            one = members[:, column]
            speed[:, column][one] = momentum * speed[:, column][one] - rate * centroid
        weight += speed
        if i < 2:
            assert (seen == weight).all()
        np.testing.assert_allclose(seen, weight, rtol=1e-5, atol=1e-6)
        assert (seen[KERNEL == 0] == 0).all()
        assert all(len(np.unique(seen[:, column])) <= 4 for column in columns)
    assert i == 4
    assert sharing.values == {"a/kernel": 4}


class LookedUp(layers.Layer):
    """A kernel of values that are variables: what sharing has to come to."""

    def __init__(self, places, values):
        super().__init__()
        self.places = places
        self.codebook = self.add_weight(shape=values.shape, initializer=lambda *_, **__: values, name="codebook")

    def call(self, x):
        return ops.matmul(x, ops.take(ops.pad(self.codebook, [[0, 1]]), self.places, axis=0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(0.05, global_clipnorm=0.5),
        lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
        lambda: keras.optimizers.RMSprop(0.02, momentum=0.9, clipvalue=0.1, gradient_accumulation_steps=2),
    ],
    ids=["adam, norm clipped", "adamw", "rmsprop, accumulated"],
)
def test_an_optimizer_treats_a_group_as_one_parameter(make):
    """Norms, moments, decay and accumulation are those of a model whose variables are the values themselves."""
    values, places = np.unique(KERNEL[KERNEL != 0], return_inverse=True)
    table = np.full((8, 4), 3)
    table[KERNEL != 0] = places
    oracle = keras.Sequential([keras.Input((8,)), LookedUp(table, values)])
    oracle.compile(make(), "mse")
    model = fit(linear(make()), kp.WeightSharing(4), epochs=2)
    codebook = fit(oracle, epochs=2).get_weights()[0]
    np.testing.assert_allclose(model.get_weights()[0], np.append(codebook, 0.0)[table], rtol=1e-5, atol=1e-6)
    assert abs(codebook - values).min() > 0.05


def test_it_goes_on_under_jit_mixed_precision_and_several_steps_at_once():
    """And with an average of the weights, which takes their place at the end."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8)
        model = two_layers(optimizer, jit_compile=True, steps_per_execution=2)
    finally:
        keras.config.set_dtype_policy("float32")
    kp.prune(model, 0.5, allocation="uniform")
    before = [kernel == 0 for kernel in model.get_weights()[::2]]
    sharing = kp.WeightSharing(5, granularity="channel", begin=2)
    fit(model, sharing, epochs=3)
    for kernel, zeros in zip(model.get_weights()[::2], before, strict=True):
        assert ((kernel == 0) == zeros).all()
        assert not np.signbit(kernel[zeros]).any()
        assert max(len(np.unique(column)) for column in kernel.T) == 5
    averages = [np.array(average_of(optimizer, layer.kernel)) for layer in model.layers]
    assert all((a == w).all() for a, w in zip(averages, model.get_weights()[::2], strict=True))
    plain = kp.strip(model)
    assert all((a == b).all() for a, b in zip(plain.get_weights(), model.get_weights(), strict=True))
    assert not hasattr(plain, "_pruning_state")


def test_the_report_counts_values_where_weights_share_some():
    model = two_layers("sgd")
    before = kp.report(model)
    assert [row.values for row in before.rows] == [128, 64]
    assert "values" not in str(before)
    report = kp.report(kp.share(model, 4, scope=kp.Scope(include="a")))
    assert [row.values for row in report.rows] == [4, 64]
    lines = str(report).splitlines()
    assert [line.split()[-1] for line in lines if "kernel" in line] == ["4", "any"]
    assert "values" in lines[2]
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["values"] == 4


# -- masks, files, other callbacks ------------------------------------------------------------------------------------


def train(epochs, folder, callbacks):
    """A training with a backup, which may be there already; weights, optimizer, and the callback."""
    keras.utils.set_random_seed(1)
    optimizer = keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    model = two_layers(optimizer)
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    watch = Watch()
    fit(model, *callbacks(), watch, backup, epochs=epochs)
    return model, watch, [np.asarray(v.value).tobytes() for v in [*model.weights, *model.optimizer.variables]]


@pytest.mark.parametrize("order", [1, -1])
def test_weights_that_are_pruned_meanwhile_leave_their_groups_and_resuming_changes_no_bit(order, tmp_path):
    """Of equal weights those with the lower index go first, and so do the leaders of groups."""

    def callbacks():
        ramp = kp.schedules.Linear(0.25, 0.75, begin_step=1, end_step=13, frequency=4)
        return [kp.Pruning(ramp, allocation="uniform"), kp.WeightSharing(5, begin=1)][::order]

    model, watch, whole = train(3, tmp_path / "whole", callbacks)
    zeros = [int((kernel == 0).sum()) for kernel in watch.seen]
    assert zeros[-1] == 96
    assert len(set(zeros[1:])) == 4
    for kernel in watch.seen[2:]:
        assert len(np.unique(kernel)) <= 5
    # A group goes on from where it is: no value jumps when its first members are pruned.
    values = [np.unique(kernel) for kernel in watch.seen[2:]]
    jumps = [abs(b[:, None] - a).min(axis=1).max() for a, b in itertools.pairwise(values)]
    assert max(jumps) < 0.1
    assert len(np.unique(model.get_weights()[0])) > 2
    if order == 1:
        train(1, tmp_path / "parts", callbacks)
        assert train(3, tmp_path / "parts", callbacks)[2] == whole


def test_a_saved_model_and_a_later_fit_go_on_with_the_same_groups(tmp_path):
    model = fit(two_layers(keras.optimizers.Adam(0.02)), kp.WeightSharing(6), epochs=2)
    model.save(tmp_path / "m.keras")
    fit(model, kp.WeightSharing(6, seed=5))
    for load in (kp.load_model, keras.saving.load_model):
        loaded = fit(load(tmp_path / "m.keras"), kp.WeightSharing(6, "random"))
        for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
            # Plain Keras loads no groups: they are found again by their values, and moments begin anew.
            np.testing.assert_allclose(a, b, atol=0 if load is kp.load_model else 0.1)
        assert len(np.unique(loaded.get_weights()[0])) == 6
    # Trained without the callback, values part; then they are found anew.
    fit(model)
    assert len(np.unique(model.get_weights()[0])) > 6
    sharing = kp.WeightSharing(6)
    fit(model, sharing)
    assert sharing.values == {"a/kernel": 6, "b/kernel": 6}


def test_weights_of_an_epoch_before_are_shared_again_and_that_is_said():
    model = two_layers(keras.optimizers.SGD(0.0))
    best = keras.callbacks.EarlyStopping("loss", restore_best_weights=True, start_from_epoch=0)
    sharing = kp.WeightSharing(3, begin="2 epochs")
    with pytest.warns(UserWarning, match=r"WeightSharing: a callback wrote weights .*tensors of 192 weights"):
        fit(model, sharing, best, epochs=4)
    assert sharing.values == {"a/kernel": 3, "b/kernel": 3}


def test_in_a_loop_of_ones_own():
    model, watch = linear(keras.optimizers.SGD(2.0**-5, momentum=0.5)), Watch()
    fit(linear(keras.optimizers.SGD(2.0**-5, momentum=0.5)), kp.WeightSharing(4), watch)
    sharing = kp.WeightSharing(4)
    sharing.attach(model)
    sharing.on_step(0)
    for i in range(5):
        model.train_on_batch(X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8])
        sharing.on_step()
        np.testing.assert_allclose(model.get_weights()[0], watch.seen[i + 1], rtol=1e-6)
    sharing.detach()
    assert "apply" not in vars(model.optimizer)


def test_groups_by_gradient_in_fit():
    """The gradient at `begin`, taken on the data: of the four values those two that are alike there are together."""
    model = linear(keras.optimizers.SGD(0.0))
    gradient = 2 * X.T @ (X @ KERNEL - Y) / Y.size
    fit(model, kp.WeightSharing(3, "linear", group_by="gradient", data=(X, Y)))
    shared = model.get_weights()[0]
    on = KERNEL != 0
    one = shared == np.unique(shared[on])[0]
    assert (shared[~on] == 0).all()
    assert gradient[on & one].max() < gradient[on & ~one].min() or gradient[on & one].min() > gradient[on & ~one].max()
    np.testing.assert_allclose(shared[on & one], KERNEL[on & one].mean(), rtol=1e-6)


def test_zeros_of_wrappers_stay_and_other_kinds_of_layers_share_too():
    inputs = keras.Input((6, 6, 2))
    x = layers.SeparableConv2D(6, 3, name="s")(inputs)
    x = layers.Conv2D(6, 3, groups=2, name="g")(x)
    x = layers.Reshape((4, 6))(x)
    x = layers.LSTM(5, name="l")(x)
    model = keras.Model(inputs, kp.PrunableDense(8, name="p")(x))
    kp.prune(model, 0.5, scope=kp.Scope(include="p"))
    kp.share(model, 3, granularity="channel")
    kernels = {target.path: np.array(target.variable) for target in kp.Scope().survey(model).targets}
    assert len(kernels) == 6
    for path, kernel in kernels.items():
        channels = kernel.reshape(-1, kernel.shape[-1] * kernel.shape[-2] if "depthwise" in path else kernel.shape[-1])
        assert max(len(np.unique(column)) for column in channels.T) <= 3, path
        assert len(np.unique(kernel)) > 3
    assert (kernels["p/kernel"] == 0).sum() == 20
    model.compile("adam", "mse")
    fit_x, fit_y = RNG.standard_normal((8, 6, 6, 2)), RNG.standard_normal((8, 8))
    model.fit(fit_x, fit_y, epochs=2, verbose=0, callbacks=[kp.WeightSharing(3, granularity="channel")])
    moved = np.array(model.get_layer("p").kernel)
    assert ((moved == 0) == (kernels["p/kernel"] == 0)).all()
    assert (moved != kernels["p/kernel"]).sum() == 20


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused():
    model = two_layers("adam")
    for other in (kp.DynamicPruning(0.5, "surgery"), kp.DynamicPruning(0.5, "rigl"), kp.TargetedDropout(0.5)):
        with pytest.raises(ValueError, match=r"WeightSharing goes with callbacks whose pruned weights stay pruned"):
            fit(model, kp.WeightSharing(4), other)
    with pytest.raises(ValueError, match="Two WeightSharing callbacks act on one tensor"):
        fit(model, kp.WeightSharing(4), kp.WeightSharing(4))
    model = two_layers("adam")
    weights = model.get_weights()
    fit(model, kp.WeightSharing(4, scope=kp.Scope(include="a")), kp.WeightSharing(3, scope=kp.Scope(include="b")))
    assert [len(np.unique(kernel)) for kernel in model.get_weights()[::2]] == [4, 3]
    assert any((a != b).any() for a, b in zip(model.get_weights(), weights, strict=True))
    straight = keras.Sequential([keras.Input((8,)), kp.PrunableDense(4, straight_through=True)])
    with pytest.raises(ValueError, match=r"straight_through=True, masked weights learn on out of sight"):
        kp.share(straight, 4)
    with pytest.raises(ValueError, match=r"WeightSharing: .*is not compiled.*keras_prune\.share\(model\)"):
        kp.WeightSharing(4).attach(keras.Sequential([keras.Input((8,)), layers.Dense(4)]))
    with pytest.raises(TypeError, match=r"begin must be a step, or a text as in '70%'.*begin=0\.7\. Write '70%'"):
        kp.WeightSharing(4, begin=0.7)
    with pytest.raises(ValueError, match=r"begin must be a share of the training.*Received: 'late'"):
        kp.WeightSharing(4, begin="late")


def test_a_begin_after_the_end_is_foreseen():
    with pytest.warns(UserWarning, match=r"share values from step 9 on, and training ends at step 5 "):
        fit(two_layers("sgd"), kp.WeightSharing(4, begin=9))
