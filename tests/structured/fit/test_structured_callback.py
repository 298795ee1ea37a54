import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.optimizers.finding import hooked
from keras_prune.schedules import Cosine, Iterative, OneShot, PolynomialDecay, Threshold
from keras_prune.structured import L2, Importance, count, plan
from keras_prune.structured.fit.callback import StructuredPruning
from keras_prune.structured.fit.regularise import GroupLasso, GrowingRegularisation
from keras_prune.structured.fit.structured_run import Goal
from keras_prune.structured.surgery.shrink import shrink

STEPS = 8


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * 8, 12)).astype("float32")
    return x, (x[:, :3].argmax(axis=1) + (x[:, 3] > 0)).astype("int32")


def net(optimizer=None, **options):
    """The same initial weights each time."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((12,))
    x = kl.Dense(24, activation="relu", name="first")(inputs)
    x = kl.BatchNormalization()(x)
    x = kl.Add()([x, kl.Dense(24, activation="tanh", name="second")(x)])
    x = kl.Dense(16, activation="relu", name="third")(x)
    model = keras.Model(inputs, kl.Dense(4, activation="softmax", name="head")(x), name="net")
    options = options or {"run_eagerly": True}
    model.compile(optimizer or keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", **options)
    return model


def fit(model, callbacks, epochs=3, **options):
    return model.fit(
        *data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **options
    ).history


def assert_same(a, b, tolerance=1e-5):
    x = data()[0]
    assert np.abs(a(x, training=False).numpy() - b(x, training=False).numpy()).max() <= tolerance


@pytest.mark.parametrize(
    ("target", "scope"),
    [({"params": 0.5}, "local"), ({"params": 0.6, "flops": 0.5}, "global"), ({"memory": 0.7}, "local")],
)
def test_the_target_is_reached_and_the_smaller_model_is_the_same(target, scope):
    model = net()
    whole = count(model).total
    pruning = StructuredPruning(**target, end_step=12, frequency=4, scope=scope)
    history = fit(model, [pruning], epochs=2, validation_data=data())
    smaller = pruning.shrink()
    total = count(smaller).total
    left = {
        "params": total.params / whole.params,
        "flops": total.macs / whole.macs,
        "memory": total.peak / whole.peak,
    }
    for name, share in target.items():
        assert left[name] <= share
        assert left[name] > share - 0.15
    assert pruning.left == left
    for name in left:
        assert history[f"{name}_left"][-1] == left[name]
        assert history[f"{name}_left"] == sorted(history[f"{name}_left"], reverse=True)
    assert history["params_left"][0] < 1.0
    assert_same(model, smaller)
    assert smaller.evaluate(*data(), verbose=0) == pytest.approx(history["val_loss"][-1], abs=1e-5)
    assert int(smaller.optimizer.iterations) == 2 * STEPS
    assert np.isfinite(smaller.fit(*data(), verbose=0).history["loss"]).all()


def test_units_go_step_by_step_and_as_the_planner_would_choose():
    model = net(keras.optimizers.SGD(0.0))
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(round((1.0 - logs["params_left"]) * 1.0, 6))

    schedule = Cosine(0.0, 0.5, begin_step=4, end_step=20, frequency=4)
    pruning = StructuredPruning(params=schedule)
    fit(model, [pruning, Look()])
    assert seen[:4] == [0.0, 0.0, 0.0, 0.0]
    assert len(set(seen)) == 5  # of steps 8, 12, 16 and 20: at 4 nothing is asked for yet
    for step in (8, 12, 16, 20):
        assert seen[step - 1] >= schedule(step) - 1e-6
    # At a learning rate of 0 nothing moves, so one choice at the end is the same.
    made = plan(net(), params=0.5)
    np.testing.assert_array_equal(np.bincount(pruning.gates.keep), np.bincount(made.keep))


def test_the_way_of_shares():
    goal = Goal({"params": 0.3, "macs": 0.6}, PolynomialDecay(0.0, 0.7, begin_step=10, end_step=20, power=1.0), L2())
    assert goal.targets(0) == {"params": 1.0, "macs": 1.0}
    assert goal.targets(15) == pytest.approx({"params": 0.65, "macs": 0.8})
    assert goal.targets(20) == {"params": 0.3, "macs": 0.6}


@pytest.mark.parametrize("importance", ["taylor", "apoz", "batch_norm_scale", "lamp"])
def test_importances(importance):
    model = net()
    needs = importance in ("taylor", "apoz")
    pruning = StructuredPruning(
        params=0.7, end_step=8, frequency=4, importance=importance, data=data() if needs else None, scope="global"
    )
    fit(model, [pruning], epochs=1)
    assert pruning.left["params"] <= 0.7
    assert_same(model, pruning.shrink())


def test_closed_units_count_for_nothing():
    """A group's mean is that of the units that are open: as if the smaller model were scored."""
    model = net()
    pruning = StructuredPruning(params=0.6, end_step=4, frequency=4, scope="global")
    fit(model, [pruning], epochs=1)
    run, keep = pruning._run, pruning.gates.keep
    scores = run._scores(keep)
    smaller = pruning.shrink()
    made = plan(smaller, params=0.5, scope="global")
    np.testing.assert_allclose(scores[keep], L2()(smaller, made.analysis), rtol=1e-5)
    assert scores[~keep].max() < scores[keep].min()


def test_limits():
    model = net()
    pruning = StructuredPruning(
        params=0.9, end_step=8, frequency=4, round_to={"third": 4}, max_share={"third": 0.5}, frozen=["second"]
    )
    fit(model, [pruning], epochs=1)
    smaller = pruning.shrink()
    assert smaller.get_layer("second").units == smaller.get_layer("first").units == 24
    # 6 of 16 would do; what is left is a multiple of 4.
    assert smaller.get_layer("third").units == 8
    assert any("it is named in frozen" in skipped.reason for skipped in pruning.skipped)
    assert StructuredPruning(params=0.9, target="ethos-u55").goal.round_to == 8
    assert StructuredPruning(params=0.9, target="ethos-u55", round_to=4).goal.round_to == 4
    assert StructuredPruning(params=0.9).goal.round_to == 1


@pytest.mark.parametrize(
    ("order", "parts"), [(0, ()), (1, (GrowingRegularisation(0.1, 3, 0.4), GroupLasso(1e-3)))], ids=["plain", "parts"]
)
def test_a_resumed_training_ends_as_one_that_was_not_broken_off(tmp_path, order, parts):
    def pruning():
        return StructuredPruning(params=0.5, begin_step=2, end_step=16, frequency=3, scope="global", parts=parts)

    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == STEPS + 5:
                raise KeyboardInterrupt

    calm = net()
    first = pruning()
    fit(calm, [first], epochs=3)
    backup = [keras.callbacks.BackupAndRestore(tmp_path / "backup") for _ in range(2)]
    broken = net()
    callbacks = [pruning(), Break()]
    callbacks.insert(order, backup[0])
    with pytest.raises(KeyboardInterrupt):
        fit(broken, callbacks, epochs=3)
    resumed, second = net(), pruning()
    callbacks = [second]
    callbacks.insert(order, backup[1])
    fit(resumed, callbacks, epochs=3)
    np.testing.assert_array_equal(first.gates.keep, second.gates.keep)
    assert first.left["params"] <= 0.5
    for a, b in zip(calm.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert_same(resumed, second.shrink())


def test_going_on_from_a_file(tmp_path):
    calm, first = net(), StructuredPruning(params=0.5, end_step=14, frequency=3)
    fit(calm, [first], epochs=2)
    model, half = net(), StructuredPruning(params=0.5, end_step=14, frequency=3)
    with pytest.warns(UserWarning, match="will not be reached"):
        fit(model, [half], epochs=1)
    model.save(tmp_path / "half.keras")
    for load in (kp.load_model, keras.models.load_model):
        loaded = load(tmp_path / "half.keras")
        loaded.run_eagerly = True
        np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
        assert_same(model, shrink(loaded))
        rest = StructuredPruning(params=0.5, end_step=14, frequency=3)
        loaded.fit(*data(), batch_size=8, initial_epoch=1, epochs=2, shuffle=False, verbose=0, callbacks=[rest])
        np.testing.assert_array_equal(rest.gates.keep, first.gates.keep)
        for a, b in zip(calm.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_however_the_step_is_run():
    options = {"jit_compile": False, "steps_per_execution": 4}
    model = net(keras.optimizers.AdamW(0.005), **options)
    pruning = StructuredPruning(params=0.5, end_step=10, frequency=5, parts=[kp.ClipGradients(1.0), kp.L1(1e-5)])
    history = fit(model, [pruning], validation_data=data())
    assert_same(model, pruning.shrink())
    assert pruning.left["params"] <= 0.5
    assert history["val_loss"][-1] == pytest.approx(pruning.shrink().evaluate(*data(), verbose=0), abs=1e-5)


def test_averaged_weights():
    model = net(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9))
    pruning = StructuredPruning(params=0.5, end_step=10, frequency=5)
    history = fit(model, [pruning, keras.callbacks.SwapEMAWeights(swap_on_epoch=False)], validation_data=data())
    smaller = pruning.shrink()
    assert_same(model, smaller)
    assert history["val_loss"][-1] == pytest.approx(smaller.evaluate(*data(), verbose=0), abs=1e-5)


def test_best_weights_of_a_wider_epoch_are_cut_with_a_warning():
    model = net()
    stop = keras.callbacks.EarlyStopping(monitor="loss", mode="max", patience=9, restore_best_weights=True)
    pruning = StructuredPruning(params=0.5, end_step=20, frequency=4)
    with pytest.warns(UserWarning, match="something wrote to .* weights of closed units"):
        fit(model, [pruning, stop])
    assert "on_train_end" not in vars(model.history)
    assert_same(model, pruning.shrink())


def test_a_custom_loop():
    model = net()
    pruning = StructuredPruning(params=0.5, end_step=6, frequency=3)
    pruning.attach(model)
    pruning.on_step(0)
    x, y = data()
    for i in range(STEPS):
        model.train_on_batch(x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8])
        pruning.on_step()
    pruning.detach()
    assert pruning.left["params"] <= 0.5
    assert_same(model, pruning.shrink())
    again = StructuredPruning(params=0.3, end_step=10)
    again.attach(model)
    again.on_step(0)
    assert again.left == pruning.left


def test_a_second_fit_goes_further():
    model = net()
    first = StructuredPruning(params=0.7, end_step=4)
    fit(model, [first], epochs=1)
    kept = first.gates.keep
    second = StructuredPruning(params=0.4, end_step=12, frequency=4)
    fit(model, [second], epochs=1)
    assert second.left["params"] <= 0.4
    assert not second.gates.keep[~kept].any()
    assert_same(model, second.shrink())


def test_parts_leave_the_step_and_gates_stay():
    model = net()
    pruning = StructuredPruning(params=0.5, end_step=4, parts=[GroupLasso(0.1)])
    fit(model, [pruning], epochs=1)
    assert [type(part).__name__ for part in hooked(model.optimizer, object)] == ["_ClosedGradients"]
    fit(model, [], epochs=1)
    assert_same(model, pruning.shrink())
    assert pruning._run.gates.settle() == 0


def test_a_ramp_scales_a_part():
    model = net(keras.optimizers.SGD(0.01))
    ramp = PolynomialDecay(0.0, 0.5, begin_step=0, end_step=8, power=1.0, frequency=4)
    pruning = StructuredPruning(params=0.9, end_step=4, parts=[GroupLasso(1e-3, ramp=ramp)])
    pruning.attach(model)
    pruning.on_step(0)
    (level,) = (found.variable for found in pruning._run._levels)
    levels = [float(level.value)]
    x, y = data()
    for _ in range(8):
        model.train_on_batch(x[:8], y[:8])
        pruning.on_step()
        levels.append(float(level.value))
    assert levels == [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 1.0]


def test_refused_arguments():
    def refuse(match, error=ValueError, **options):
        with pytest.raises(error, match=match):
            StructuredPruning(**options)

    refuse("needs a target.*Received: params=None, flops=None, memory=None", end_step=5)
    refuse(r"params must be a fraction in \[0, 1\). Received: 50.*write 0.5", params=50, end_step=5)
    refuse("the share that may be left, so it is above 0. Received: 0.0", flops=0.0, end_step=5)
    refuse("a schedule says all of one target", params=OneShot(0.5), flops=0.5)
    refuse("a schedule says all of one target", params=OneShot(0.5), end_step=4)
    refuse("a schedule of the share removed.*Received: Threshold", params=Threshold(0.1))
    refuse("without rewinding", params=Iterative(0.5, rounds=2, interval=4, begin_step=4, rewind_to=2))
    refuse("ends in .*Received: OneShot", params=OneShot(0.0))
    refuse("scope must be 'local' or 'global'. Received: 'layer'", params=0.5, end_step=4, scope="layer")
    refuse("round_to must be a whole number from 1. Received: 0", params=0.5, end_step=4, round_to=0)
    refuse("Unknown importance: 'tailor'.*'taylor'", params=0.5, end_step=4, importance="tailor")
    refuse("Taylor is taken on data. Received: data=None", params=0.5, end_step=4, importance="taylor")
    refuse("must be a keras_prune.Part. Received: 0.1", TypeError, params=0.5, end_step=4, parts=[0.1])
    growing = [GrowingRegularisation(), GrowingRegularisation()]
    refuse("one GrowingRegularisation at most", params=0.5, end_step=4, parts=growing)


def test_refused_models():
    pruning = StructuredPruning(params=0.5, end_step=4)
    with pytest.raises(RuntimeError, match="not attached to a model"):
        pruning.shrink()
    with pytest.raises(ValueError, match=r"StructuredPruning: Sequential .* is not built"):
        pruning.attach(keras.Sequential([kl.Dense(2)]))
    plain = keras.Sequential([keras.Input((4,)), kl.Dense(8), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"is not compiled.*structured.plan"):
        pruning.attach(plain)
    with pytest.raises(
        ValueError, match=r"StructuredPruning: params=0.01 cannot be met: even the smallest model keeps 0.\d+"
    ):
        fit(net(), [StructuredPruning(params=0.01, end_step=4)])
    with pytest.raises(ValueError, match="'nowhere'"):
        fit(net(), [StructuredPruning(params=0.5, end_step=4, frozen="nowhere")])
    for others in ([pruning, StructuredPruning(flops=0.5, end_step=4)], [pruning, kp.Pruning(OneShot(0.5))]):
        with pytest.raises(ValueError, match=r"Two pruning callbacks act on '.*kernel'"):
            fit(net(), others)
        with pytest.raises(ValueError, match=r"Two pruning callbacks act on '.*kernel'"):
            fit(net(), others[::-1])


def test_beside_pruning_of_other_weights():
    model = net()
    head = kp.Pruning(OneShot(0.5), scope=kp.Scope(include=("head/.*",)))
    pruning = StructuredPruning(params=0.8, end_step=4, frozen="head")
    fit(model, [pruning, head], epochs=1)
    assert head.sparsity == 0.5
    with pytest.raises(ValueError, match=r"masks of another pruning on 1 variables, the first 'head/kernel'"):
        pruning.shrink()
    bare = shrink(kp.strip(model))
    assert_same(model, bare)
    assert bare.count_params() < model.count_params()


def test_a_schedule_that_ends_after_training_warns():
    pruning = StructuredPruning(params=0.5, end_step=12, parts=[GrowingRegularisation(0.5, 4, 1.0)])
    with pytest.warns(
        UserWarning, match=r"the last units go at step 16, and training ends at step 8 .*8 steps earlier"
    ):
        fit(net(), [pruning], epochs=1)


def test_an_importance_of_ones_own():
    class Last(Importance):
        def of_axis(self, weight, axis, statistics):
            return np.arange(weight.shape[axis], dtype=float)

    model = net()
    pruning = StructuredPruning(params=0.6, end_step=2, importance=Last(normalise="max"))
    fit(model, [pruning], epochs=1)
    for group in pruning.gates.analysis.groups:
        keep = pruning.gates.keep[group.start : group.stop]
        np.testing.assert_array_equal(keep, np.sort(keep))
