"""Every optimizer goes through surgery after a step: training goes on as if the dead units had never been there."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.structured import remove

OPT = keras.optimizers
X = np.random.default_rng(0).normal(size=(8, 10)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 10)).astype("float32")
GONE = [1, 4]

OPTIMIZERS = {
    "Adadelta": lambda: OPT.Adadelta(0.1),
    "Adagrad": lambda: OPT.Adagrad(0.1),
    "Adam, amsgrad": lambda: OPT.Adam(0.01, amsgrad=True),
    "AdamW": lambda: OPT.AdamW(0.01, weight_decay=0.1),
    "Adamax": lambda: OPT.Adamax(0.01),
    "Ftrl": lambda: OPT.Ftrl(0.1),
    "Lamb": lambda: OPT.Lamb(0.01),
    "Lion": lambda: OPT.Lion(0.01),
    "LossScaleOptimizer": lambda: OPT.LossScaleOptimizer(OPT.Nadam(0.01)),
    "MultiOptimizer": lambda: OPT.MultiOptimizer(
        OPT.OptimizerMap(OPT.SGD(0.05, momentum=0.9), {".*b/.*": OPT.Adam(0.01)})
    ),
    "Muon": lambda: OPT.Muon(0.01, weight_decay=0.1),
    "Nadam": lambda: OPT.Nadam(0.01),
    "RMSprop": lambda: OPT.RMSprop(0.01, centered=True, momentum=0.5),
    "SGD": lambda: OPT.SGD(0.05, momentum=0.9, nesterov=True),
    "ScheduleFreeAdamW": lambda: OPT.ScheduleFreeAdamW(0.01),
    "moving average": lambda: OPT.SGD(0.05, use_ema=True),
    "gradient accumulation": lambda: OPT.Adam(0.01, gradient_accumulation_steps=2),
}


def net(optimizer):
    """Units 1 and 4 of "a" are dead, and stay so in training."""
    layers = [kl.Dense(8, "relu", name="a"), kl.Dense(10, name="b"), kl.Dense(10, name="c")]
    model = keras.Sequential([keras.Input((10,)), *layers])
    a, b = model.layers[0], model.layers[1]
    alive = np.isin(np.arange(8), GONE, invert=True)
    a.kernel.assign(a.kernel * alive)
    b.kernel.assign(b.kernel * alive[:, None])
    model.compile(optimizer, "mse", run_eagerly=True)
    return model, np.flatnonzero(alive)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_dead_units_had_never_been(name):
    model, alive = net(OPTIMIZERS[name]())
    for _ in range(3):
        model.train_on_batch(X, Y)
    smaller = remove(model, {"a": GONE}).apply()
    assert type(smaller.optimizer) is type(model.optimizer)
    for _ in range(3):
        model.train_on_batch(X, Y)
        smaller.train_on_batch(X, Y)
    wanted = [np.array(v) for v in model.trainable_variables]
    wanted = [wanted[0][:, alive], wanted[1][alive], wanted[2][alive], *wanted[3:]]
    for value, variable in zip(wanted, smaller.trainable_variables, strict=True):
        np.testing.assert_allclose(np.array(variable), value, atol=2e-5, err_msg=variable.path)


def test_sums_over_rows_and_columns_are_cut_too():
    model, alive = net(OPT.Adafactor(0.01))
    model.train_on_batch(X, Y)
    smaller = remove(model, {"a": GONE}).apply()
    rows, columns = (np.array(kept[0]) for kept in (model.optimizer._r, model.optimizer._c))
    np.testing.assert_array_equal(np.array(smaller.optimizer._r[0]), rows)
    np.testing.assert_array_equal(np.array(smaller.optimizer._c[0]), columns[alive])
    np.testing.assert_array_equal(np.array(smaller.optimizer._r[2]), np.array(model.optimizer._r[2])[alive])
    smaller.train_on_batch(X, Y)


def test_layers_unfrozen_after_the_last_step_start_anew_with_a_warning():
    model, _ = net(OPT.Adam(0.01))
    model.layers[2].trainable = False
    model.compile(OPT.Adam(0.01), "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    model.layers[2].trainable = True
    with pytest.warns(UserWarning, match=r"The optimizer's _momentums of '.*c/kernel' .* starts anew"):
        smaller = remove(model, {"a": GONE}).apply()
    smaller.train_on_batch(X, Y)


@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_left_out_of_weight_decay_stays_so(scaled):
    decaying = OPT.AdamW(0.1, weight_decay=0.5)
    model, _ = net(OPT.LossScaleOptimizer(decaying) if scaled else decaying)
    decaying.exclude_from_weight_decay(var_list=[model.layers[2].kernel], var_names=["bias", "nothing"])
    model.train_on_batch(X, Y)
    deeper = kp.structured.deepen(model, "a")
    for made in (kp.strip(model), remove(model, {"a": GONE}).apply(), deeper):
        optimizer = made.optimizer.inner_optimizer if scaled else made.optimizer
        decays = {v.path: optimizer._use_weight_decay(v) for v in made.trainable_variables if "deeper" not in v.path}
        assert list(decays.values()) == [True, False, True, False, False, False], decays
