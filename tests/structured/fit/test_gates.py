import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.masks.bound import MaskConstraint
from keras_prune.structured import analyse
from keras_prune.structured.fit.gates import Gates
from keras_prune.structured.surgery.shrink import shrink, zero_units


def mlp():
    return keras.Sequential([keras.Input((6,)), kl.Dense(10, activation="tanh"), kl.Dense(8, "sigmoid"), kl.Dense(3)])


def residual_cnn():
    inputs = keras.Input((6, 6, 3))
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(6, 3, padding="same", use_bias=False)(inputs)))
    y = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    # Its input is 0 where units are closed, and no scale makes it so.
    y = kl.BatchNormalization(scale=False)(kl.Conv2D(6, 3, padding="same", use_bias=False)(y))
    x = kl.Flatten()(kl.MaxPooling2D(2)(kl.Add()([x, y])))
    return keras.Model(inputs, kl.Dense(3)(x))


def depthwise_se():
    inputs = keras.Input((6, 6, 3))
    x = kl.Conv2D(8, 1, activation="relu")(inputs)
    x = kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="sigmoid")(x)
    s = kl.Dense(16, "sigmoid")(kl.Dense(4, "relu")(kl.GlobalAveragePooling2D(keepdims=True)(x)))
    x = kl.Conv2D(6, 3, activation="relu")(kl.Multiply()([x, s]))
    return keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(x)))


def recurrent():
    inputs = keras.Input((5, 4))
    x = kl.LSTM(8, return_sequences=True)(inputs)
    x = kl.Bidirectional(kl.GRU(4))(x)
    return keras.Model(inputs, kl.Dense(3)(x))


def attention():
    inputs = keras.Input((5, 4))
    x = kl.Dense(8, activation="relu")(inputs)
    # No biases: that of the keys has no gradient but rounding.
    x = kl.MultiHeadAttention(4, 4, use_bias=False)(x, x)
    return keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling1D()(kl.Dense(8, activation="relu")(x))))


def shared():
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.Input((8,)), kl.Dense(6, "relu"), kl.Dense(8)])
    x = kl.Dense(8, "tanh")(inputs)
    twice = kl.Dense(8, activation="tanh")
    return keras.Model(inputs, kl.Dense(3)(kl.Concatenate()([inner(inner(x)), twice(twice(x))])))


MODELS = [mlp, residual_cnn, depthwise_se, recurrent, attention, shared]
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True, global_clipnorm=0.5),
    "adam": lambda: keras.optimizers.Adam(1e-3, amsgrad=True, use_ema=True, ema_momentum=0.8),
    "adamw": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.05),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-3, centered=True, momentum=0.5),
    "ftrl": lambda: keras.optimizers.Ftrl(0.02, l1_regularization_strength=0.01),
}


def made(build, optimizer="adamw", **options):
    """Run eagerly: on models so small, tracing takes longer than training."""
    model = build()
    model.compile(OPTIMIZERS[optimizer](), "mse", **(options or {"run_eagerly": True}))
    return model


def batch(model, n=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *model.input_shape[1:])).astype("float32"), rng.normal(size=(n, 3)).astype("float32")


def train(model, epochs=1, seed=0):
    model.fit(*batch(model, seed=seed), batch_size=8, epochs=epochs, shuffle=False, verbose=0)


def closed_weights(gates, trainable=True):
    """Values of all weights of closed units."""
    found = []
    for slot in gates.analysis.slots:
        if slot.variable is not None and (slot.variable.trainable or not trainable):
            gone = (slot.units >= 0) & ~gates.keep[slot.units]
            found.append(np.moveaxis(np.array(slot.variable.numpy()), slot.axis, 0)[gone].reshape(-1))
    return np.concatenate(found)


def without_factors(analysis, keep):
    """Open the units whose removal multiplies what is left by a factor: their gradients differ by it."""
    for effect in analysis.effects.values():
        for _, width in effect.scales:
            units = analysis.units_of(width.labels)
            keep[units[units >= 0]] = True
    return keep


def assert_same_outputs(a, b, seed=5):
    assert np.abs(outputs(a, seed) - outputs(b, seed)).max() <= 1e-5


def outputs(model, seed=5):
    return np.array(model(batch(model, seed=seed)[0], training=False).numpy())


@pytest.mark.parametrize("build", MODELS)
def test_closed_is_removed(build, random_keep):
    model = made(build)
    train(model)
    gates = Gates(model, analyse(model))
    keep = random_keep(gates.analysis, np.random.default_rng(0))
    gates.set(keep)
    assert_same_outputs(model, gates.shrink())
    train(model)
    values = closed_weights(gates)
    assert values.size > 0
    assert not values.any()
    assert not np.signbit(values).any()
    smaller = gates.shrink()
    assert smaller.count_params() < model.count_params()
    assert_same_outputs(model, smaller)
    np.testing.assert_array_equal(gates.keep, keep)
    # The zeros alone tell it, too.
    assert shrink(model).count_params() == smaller.count_params()


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_goes_on_as_that_of_the_smaller_model(build, optimizer, random_keep):
    model = made(build, optimizer)
    train(model)
    gates = Gates(model, analyse(model))
    gates.set(without_factors(gates.analysis, random_keep(gates.analysis, np.random.default_rng(1))))
    train(model, seed=1)
    smaller = gates.shrink()
    assert int(smaller.optimizer.iterations) == int(model.optimizer.iterations) == 4
    for one in (model, smaller):
        train(one, seed=2)
    assert_same_outputs(model, smaller)


def test_without_the_moments_training_would_differ():
    model = made(mlp)
    train(model)
    gates = Gates(model, analyse(model))
    gates.close([0, 12])
    smaller = gates.shrink()
    for moment in smaller.optimizer.variables[2:]:
        moment.assign(np.zeros(moment.shape))
    for one in (model, smaller):
        train(one, seed=2)
    assert np.abs(outputs(model) - outputs(smaller)).max() > 1e-4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_stay_under_every_optimizer(optimizer, random_keep):
    model = made(residual_cnn, optimizer)
    train(model)
    gates = Gates(model, analyse(model))
    gates.set(random_keep(gates.analysis, np.random.default_rng(0)))
    train(model)
    assert not closed_weights(gates).any()
    moments = [(mask, moment) for mask in gates._masks for moment in gates._moments(mask.target.variable)]
    assert len(moments) >= len(model.trainable_variables) - 2  # all but those of the head's bias
    for mask, moment in moments:
        assert not moment.numpy()[~mask.read()].any(), moment.path
        assert moment.numpy()[mask.read()].any(), moment.path
    assert_same_outputs(model, gates.shrink())


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"jit_compile": False, "steps_per_execution": 2}])
def test_however_the_step_is_run(options, random_keep):
    model = made(mlp, "adam", **options)
    model.fit(*batch(model), batch_size=8, verbose=0)  # a function is compiled before there are gates
    gates = Gates(model, analyse(model))
    gates.set(random_keep(gates.analysis, np.random.default_rng(0)))
    train(model)
    assert not closed_weights(gates).any()
    assert_same_outputs(model, gates.shrink())


def test_mixed_precision(random_keep):
    keras.config.set_dtype_policy("mixed_float16")
    model = made(residual_cnn, "sgd")
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    train(model)
    gates = Gates(model, analyse(model))
    gates.set(random_keep(gates.analysis, np.random.default_rng(0)))
    train(model)
    assert not closed_weights(gates).any()
    smaller = gates.shrink()
    np.testing.assert_allclose(outputs(model), outputs(smaller), atol=5e-3)  # sums of halves
    assert int(smaller.optimizer.inner_optimizer.iterations) == int(model.optimizer.inner_optimizer.iterations) > 0


def test_gradient_accumulation(random_keep):
    model = residual_cnn()
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9, gradient_accumulation_steps=3), "mse", run_eagerly=True)
    train(model, epochs=2)  # so one gradient is waiting
    gates = Gates(model, analyse(model))
    gates.set(random_keep(gates.analysis, np.random.default_rng(0)))
    smaller = gates.shrink()
    for one in (model, smaller):
        train(one, seed=2)
    assert_same_outputs(model, smaller)


def test_opened_units_have_their_old_values_and_learn():
    model = made(mlp)
    train(model)
    gates = Gates(model, analyse(model))
    kernel, bias = model.layers[1].kernel, model.layers[1].bias
    before = np.array(kernel.numpy()), np.array(bias.numpy())
    # Rows of unit 1 of the first layer, columns of units 10 and 11: the first two of the second.
    gates.close([1])
    gates.close([10, 11])
    gates.open([1, 10])
    expected = before[0].copy()
    expected[:, 1] = 0.0
    np.testing.assert_array_equal(kernel.numpy(), expected)
    np.testing.assert_array_equal(bias.numpy(), np.where(np.arange(8) == 1, 0.0, before[1]))
    train(model)
    changed = kernel.numpy() != expected
    assert changed[:, 0].all()
    assert changed[1, 2:].all()
    assert not changed[:, 1].any()
    gates.open([11])
    np.testing.assert_array_equal(kernel.numpy()[:, 1], before[0][:, 1])


def test_what_was_closed_together_opens_apart():
    model = made(mlp)
    gates = Gates(model, analyse(model))
    kernel = model.layers[1].kernel
    before = np.array(kernel.numpy())
    gates.close([0, 10])
    gates.open([10])
    np.testing.assert_array_equal(kernel.numpy()[0], np.zeros(8))
    np.testing.assert_array_equal(kernel.numpy()[1:], before[1:])
    gates.open([0])
    np.testing.assert_array_equal(kernel.numpy(), before)


def test_constraints_of_the_user_are_kept_and_restored():
    model = keras.Sequential(
        [keras.Input((6,)), kl.Dense(8, kernel_constraint="max_norm", name="a"), kl.Dense(3, name="b")]
    )
    model.compile("sgd", "mse")
    user = model.layers[0].kernel.constraint
    gates = Gates(model, analyse(model))
    gates.close([0, 3])
    assert isinstance(model.layers[0].kernel.constraint, MaskConstraint)
    assert isinstance(gates.shrink().layers[0].kernel.constraint, type(user))
    train(model)
    assert not closed_weights(gates).any()
    assert np.linalg.norm(model.layers[0].kernel.numpy(), axis=0).max() <= 2.0 + 1e-5
    gates.remove()
    assert model.layers[0].kernel.constraint is user
    assert all(v.constraint is None for v in model.weights if v is not model.layers[0].kernel)
    assert "apply" not in vars(model.optimizer)
    model.layers[0].bias.assign(np.ones(8))
    train(model)
    assert model.layers[0].bias.numpy().all()
    assert Gates(model, analyse(model)).keep.all()


def test_frozen_layers():
    model = made(mlp)
    model.layers[1].trainable = False
    model.compile("adam", "mse")
    before = np.array(model.layers[1].kernel.numpy())
    gates = Gates(model, analyse(model))
    gates.close([0, 12])
    train(model)
    kernel = model.layers[1].kernel.numpy()
    assert not kernel[0].any()
    assert not kernel[:, 2].any()
    np.testing.assert_array_equal(np.delete(kernel[1:], 2, axis=1), np.delete(before[1:], 2, axis=1))
    smaller = gates.shrink()
    assert_same_outputs(model, smaller)
    assert not smaller.layers[1].trainable


def test_a_model_that_is_not_compiled():
    model = residual_cnn()
    gates = Gates(model, analyse(model))
    gates.close([0, 8])
    smaller = gates.shrink()
    assert not smaller.compiled
    assert_same_outputs(model, smaller)


def test_several_optimizers(random_keep):
    model = mlp()
    optimizers = keras.optimizers.OptimizerMap(default_optimizer=keras.optimizers.Adam(1e-3))
    optimizers[".*dense/.*"] = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(keras.optimizers.MultiOptimizer(optimizers), "mse", run_eagerly=True)
    train(model)
    gates = Gates(model, analyse(model))
    gates.set(random_keep(gates.analysis, np.random.default_rng(0)))
    train(model)
    assert not closed_weights(gates).any()
    moments = [(mask, moment) for mask in gates._masks for moment in gates._moments(mask.target.variable)]
    assert len(moments) == 2 + 3 * 2
    assert not any(moment.numpy()[~mask.read()].any() for mask, moment in moments)
    assert_same_outputs(model, gates.shrink())


def test_saved_and_loaded(tmp_path, random_keep):
    model = made(residual_cnn)
    gates = Gates(model, analyse(model))
    dense = [np.array(v.numpy()) for v in model.trainable_variables]
    keep = random_keep(gates.analysis, np.random.default_rng(0))
    gates.set(keep)
    model.save(tmp_path / "gated.keras")
    loaded = kp.load_model(tmp_path / "gated.keras")
    again = Gates(loaded, analyse(loaded))
    assert again.restored
    np.testing.assert_array_equal(again.keep, keep)
    assert_same_outputs(model, again.shrink())
    again.set(np.ones_like(keep))
    for value, variable in zip(dense, loaded.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_file_loaded_without_the_state_of_pruning(tmp_path, random_keep):
    model = made(residual_cnn)
    gates = Gates(model, analyse(model))
    keep = random_keep(gates.analysis, np.random.default_rng(0))
    gates.set(keep)
    train(model)
    model.save(tmp_path / "gated.keras")
    plain = keras.models.load_model(tmp_path / "gated.keras")
    np.testing.assert_array_equal(zero_units(analyse(plain)), ~keep)
    smaller = shrink(plain)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == gates.shrink().count_params()
    assert int(smaller.optimizer.iterations) == int(model.optimizer.iterations)


def test_a_unit_that_is_zero_with_a_mean_that_is_not_is_no_zero_unit():
    norm = kl.BatchNormalization(scale=False, center=False)
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, "relu"), norm, kl.Dense(2)])
    for variable in model.trainable_variables:
        variable.assign(np.arange(1.0, 1.0 + np.prod(variable.shape)).reshape(variable.shape))
    kernel, bias, head = model.layers[0].kernel, model.layers[0].bias, model.layers[2].kernel
    kernel.assign(kernel.numpy() * [1, 0, 0])
    bias.assign([1, 0, 0])
    head.assign(head.numpy() * [[1], [0], [0]])
    norm.moving_mean.assign([0.5, 0.5, 0.0])
    np.testing.assert_array_equal(zero_units(analyse(model)), [False, False, True])


def test_weights_loaded_under_gates():
    model = made(mlp)
    gates = Gates(model, analyse(model))
    dense = model.get_weights()
    gates.close([0])
    model.set_weights(dense)
    with pytest.warns(UserWarning, match="weights of closed units had been written to"):
        smaller = gates.shrink()
    assert_same_outputs(model, smaller)


def test_refusals():
    model = made(mlp)
    with pytest.raises(ValueError, match="must be of the model itself"):
        Gates(model, analyse(made(mlp)))
    with pytest.raises(ValueError, match="exact=False"):
        Gates(model, analyse(model, exact=False))
    lone = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="head")])
    with pytest.raises(ValueError, match=r"no unit that can be removed.*head.*it is an output of the model"):
        Gates(lone, analyse(lone))
    gates = Gates(model, analyse(model))
    with pytest.raises(ValueError, match=r"numbered 0 to 17. Received: \[18\]"):
        gates.close([3, 18])
    with pytest.raises(ValueError, match=r"must keep one unit at least. Received: all 10 units, 0 to 9"):
        gates.close(range(10))
    with pytest.raises(ValueError, match=r"one boolean for each of the 18 units. Received: bool of shape \(3,\)"):
        gates.set(np.ones(3, bool))
    assert gates.keep.all()
    with pytest.raises(ValueError, match="Two pruning callbacks act on"):
        Gates(model, analyse(model))


def test_gates_that_do_not_remember_stay_closed():
    model = made(mlp)
    gates = Gates(model, analyse(model), remember=False)
    gates.close([2])
    assert not any(key.startswith("gate_values") for key in gates.state.arrays)
    with pytest.raises(ValueError, match=r"were not remembered, so they cannot be opened. Received: \[2\]"):
        gates.open([2])


def test_masks_of_another_pruning_are_refused():
    model = made(mlp)
    model.fit(*batch(model), verbose=0, callbacks=[kp.Pruning(kp.schedules.OneShot(0.5))])
    with pytest.raises(ValueError, match="has a mask of another pruning"):
        Gates(model, analyse(model))


def test_gates_that_were_taken_over_say_so():
    model = made(mlp)
    gates = Gates(model, analyse(model))
    gates.close([0])
    model.fit(*batch(model), verbose=0, callbacks=[kp.Pruning(kp.schedules.OneShot(0.5, step=1))])
    assert not model.layers[0].kernel.numpy()[:, 0].any()
    with pytest.raises(RuntimeError, match="removed or taken over by another pruning"):
        gates.close([1])
    with pytest.raises(ValueError, match="has masks of another pruning"):
        shrink(model)
    model = made(mlp)
    gates = Gates(model, analyse(model))
    gates.close([0])
    model.compile("sgd", "mse")
    with pytest.raises(RuntimeError, match="compiled anew"):
        gates.close([1])
    assert not Gates(model, analyse(model)).keep[0]


def test_distributed(mirrored, random_keep):
    with mirrored.scope():
        model = made(mlp, "sgd", jit_compile=False)
    gates = Gates(model, analyse(model))
    gates.set(random_keep(gates.analysis, np.random.default_rng(0)))
    train(model)
    assert not closed_weights(gates).any()
