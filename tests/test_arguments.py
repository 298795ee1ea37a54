"""What a user may get wrong in an argument: refused where it is written, with the rule and a way out that works."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune import criteria, oneshot, patterns, schedules
from keras_prune.masks import bound as masks

X = np.random.default_rng(0).standard_normal((32, 8)).astype("float32")
Y = np.random.default_rng(1).standard_normal((32, 4)).astype("float32")


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(4)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: schedules.PolynomialDecay(0.0, 0.9, begin_step=0, end_step=0.75 * 94),
            ValueError,
            r"end_step must be a whole number\. Received: 70\.5\. Write int",
        ),
        (lambda: schedules.ConstantSparsity(0.5, begin_step="1"), TypeError, "begin_step must be a whole number"),
        (lambda: schedules.Iterative(0.5, rounds=2.5, interval=3), ValueError, "rounds must be a whole number"),
        (lambda: schedules.OneShot(0.5, step=1.5), ValueError, "step must be a whole number"),
        (lambda: schedules.Piecewise((0, 1.5), (0.1, 0.2)), ValueError, "each of steps must be a whole number"),
        (lambda: schedules.Piecewise(0, 0.5), TypeError, "steps must be a sequence"),
        (lambda: schedules.Linear(0.0, 0.5, begin_step=0, end_step=True), TypeError, "end_step must be a whole number"),
        (lambda: schedules.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=5, power="3"), TypeError, "power must be"),
        (lambda: schedules.OneShot("0.5"), TypeError, "sparsity must be a number"),
        (lambda: schedules.Threshold("0.1"), TypeError, "value must be a number"),
        (lambda: kp.ThresholdPruning(None), TypeError, "value must be a number"),
        (lambda: kp.ThresholdPruning(np.array([0.1, 0.2])), TypeError, "value must be a number"),
        (lambda: kp.ThresholdPruning(schedules.OneShot(0.5)), TypeError, r"a number or a schedules\.Threshold"),
        (lambda: kp.ThresholdPruning(0.1, on="activation"), ValueError, r"samples: data=x\."),
        (lambda: kp.DynamicPruning("0.5"), TypeError, r"a number, the sparsity at the end\. Received: '0\.5'"),
        (lambda: kp.Pruning(schedules.OneShot(0.5), scope="dense"), TypeError, r"Scope\(include='dense'\)"),
        (lambda: kp.Pruning(schedules.OneShot(0.5), parts=kp.L1(0.1, ramp=0.5)), TypeError, "the ramp of a part must"),
        (lambda: kp.L1("a"), TypeError, "strength must be a number"),
        (lambda: patterns.Block(1.5, 4), ValueError, "rows must be a whole number"),
        (lambda: patterns.NofM("2", 4), TypeError, "n must be a whole number"),
        (lambda: kp.Scope(include="("), ValueError, r"'\(' must be a name, a path, a glob, or a regular expression"),
        (lambda: kp.Scope(names="("), ValueError, "a regular expression"),
        (lambda: kp.Pruning(schedules.OneShot(0.5), pattern="block"), ValueError, r"Block\(rows=\.\.\., cols=\.\.\.\)"),
        (lambda: kp.Pruning(schedules.OneShot(0.5), "grasp"), ValueError, r"GraSP\(data=\.\.\.\)"),
        (lambda: kp.Pruning(schedules.OneShot(0.5), criteria.Magnitude), TypeError, r"Write Magnitude\(\.\.\.\)"),
        (lambda: kp.report("model.keras"), TypeError, r"Received: 'model\.keras' of type str"),
    ],
)
def test_it_is_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_numbers_of_numpy_are_numbers():
    ramp = schedules.Linear(np.float32(0.25), np.float16(0.5), begin_step=np.int64(1), end_step=np.int32(5))
    assert ramp == schedules.Linear(0.25, 0.5, begin_step=1, end_step=5)
    assert {type(value) for value in ramp.get_config().values()} == {float, int, type(None)}
    assert patterns.Block(np.int64(4), 1).get_config()["rows"] == 4


def test_a_single_part_stands_for_itself():
    assert kp.Pruning(schedules.OneShot(0.5), parts=kp.L1()).parts == (kp.L1(),)


@pytest.mark.parametrize(
    ("criterion", "way_out"),
    [("movement", r"GradientPruning\(schedule, Movement\(\)\)"), ("taylor", r"criteria\.Taylor\(data=\(x, y\)\)")],
)
def test_the_way_out_is_one(model, criterion, way_out):
    with pytest.raises(ValueError, match=way_out):
        kp.prune(model, 0.5, criterion)
    kp.prune(model, 0.5, criteria.Taylor(data=(X, Y)))
    kp.GradientPruning(schedules.OneShot(0.5, step=1), criteria.Movement())


@pytest.mark.parametrize("pattern", [patterns.Block(3, 1), {".*": patterns.NofM(1, 3)}])
def test_a_refused_call_leaves_nothing_on_the_model(model, pattern):
    with pytest.raises(ValueError, match="does not divide"):
        kp.prune(model, 0.5, pattern=pattern)
    with pytest.raises(ValueError, match="does not divide"):
        model.fit(X, Y, verbose=0, callbacks=[kp.Pruning(schedules.OneShot(0.5), pattern=pattern)])
    with pytest.raises(ValueError, match=r"targets|loss"):
        kp.prune(model, 0.5, criteria.Taylor(data=X))
    assert [masks.mask_of(variable) for variable in model.weights] == [None] * 4
    assert all(variable.constraint is None for variable in model.weights)


def test_a_model_whose_later_round_fails_is_given_back_as_it_was(model, monkeypatch):
    first = model.layers[0].kernel
    kp.prune(model, 0.25, scope=kp.Scope(include=model.layers[0].name))
    weights, held = model.get_weights(), masks.mask_of(first)
    calls = []

    def fails_later(*arguments, **options):
        calls.append(1)
        if len(calls) == 60:
            assert (np.asarray(first) == 0).sum() > (~held).sum()
            raise RuntimeError("no data")
        return masks_at_sparsity(*arguments, **options)

    masks_at_sparsity = oneshot.masks_at_sparsity
    monkeypatch.setattr(oneshot, "masks_at_sparsity", fails_later)
    with pytest.raises(RuntimeError, match="no data"):
        kp.prune(model, 0.9, "synflow")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))
    np.testing.assert_array_equal(masks.mask_of(first), held)
    assert all(masks.mask_of(layer.kernel) is None for layer in model.layers[1:])


def test_weights_to_rewind_to_are_known_or_asked_for(model):
    model.fit(X, Y, verbose=0, batch_size=8)
    late = schedules.Iterative(0.5, rounds=2, interval=2, begin_step=8, rewind_to=0)
    with pytest.raises(ValueError, match=r"weights of step 0, .* has done 4 steps.* set rewind_to to 4 or later"):
        model.fit(X, Y, verbose=0, batch_size=8, epochs=3, callbacks=[kp.Pruning(late)])
    then = schedules.Iterative(0.5, rounds=2, interval=2, begin_step=8, rewind_to=4)
    model.fit(X, Y, verbose=0, batch_size=8, epochs=3, callbacks=[kp.Pruning(then)])
    assert kp.report(model).sparsity == pytest.approx(0.5, abs=0.01)


def test_a_plot_that_cannot_be_written_says_where(model, tmp_path):
    report = kp.report(model)
    with pytest.raises(OSError, match=r"cannot be written to .*none.*Choose a folder that exists"):
        report.plot(tmp_path / "none" / "plot.png")
    with pytest.raises(ValueError, match=r"plot\.xyz.*an ending such as \.png"):
        report.plot(tmp_path / "plot.xyz")
