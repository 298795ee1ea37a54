"""One contract for a user's own strategies and the built-in ones: declared on the base, kept by whoever runs them."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.strategy import FROM_TRAINING, ONLY_FROM_TRAINING, STATISTICS, Measuring, Strategy, data_field, resolve
from keras_prune.structured.importances.importance import Importance
from tests import own_strategies as own

BASES = [
    kp.schedules.Schedule,
    kp.criteria.Criterion,
    kp.patterns.Pattern,
    kp.allocation.Allocation,
    kp.growth.Growth,
    kp.Part,
    Importance,
]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 8)).astype("float32")
Y = (X @ RNG.standard_normal((8, 4))).astype("float32")
OTHER = RNG.standard_normal((16, 8)).astype("float32"), RNG.standard_normal((16, 4)).astype("float32")
STEADY = kp.schedules.ConstantSparsity(0.5, begin_step=2, end_step=4, frequency=1)


@pytest.fixture(autouse=True)
def _nothing_seen_yet():
    own.SEEN.clear()


def linear(rate=0.05):
    """One kernel `[8, 4]`, whose gradient is that of a formula."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, use_bias=False)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def two_layers():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(4)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def fit(model, *callbacks, **options):
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=list(callbacks), **options)
    return callbacks[0]


def gradient(weight, x, y):
    return 2 * x.T @ (x @ weight - y) / y.size


def seen(kind):
    return [value for who, value in own.SEEN if who == kind]


# -- the bases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_bases_cannot_be_instantiated_and_incomplete_classes_neither(base):
    with pytest.raises(TypeError, match=f"abstract class {base.__name__}"):
        base()
    with pytest.raises(TypeError, match="abstract class Incomplete"):
        type("Incomplete", (base,), {})()


def test_what_is_declared_has_a_default_on_the_base_and_may_be_a_field():
    assert own.Largest().needs == frozenset()
    assert own.Largest().data is None
    assert own.Largest().rounds == 1
    assert own.Curved().points == (0.25, 0.5, 0.75, 0.9, 0.95)
    assert own.CurvedAt().points == (0.3, 0.6)
    assert (own.Bound(0.1).relative_to, own.Bound(0.1).first_step, own.Bound(0.1).last_step) == (None, 0, 0)

    # Fields of these names may come without defaults, before others without.
    @dataclasses.dataclass(frozen=True)
    class Fields(kp.schedules.Schedule):
        begin_step: int
        end_step: int
        top: float

        def __call__(self, step):
            return self.top

        def should_update(self, step):
            return step == self.begin_step

    @dataclasses.dataclass(frozen=True)
    class Data(own.Largest):
        data: object
        power: float

    assert (Fields(3, 9, 0.5).first_step, Fields(3, 9, 0.5).last_step) == (3, 9)
    assert (Data("x", 2.0).data, Data("x", 2.0).takes_data) == ("x", True)


def test_each_statistic_comes_from_training_or_from_data():
    for size in range(len(STATISTICS) + 1):
        for needs in itertools.combinations(sorted(STATISTICS), size):
            for data, given in ((None, FROM_TRAINING), (OTHER, ONLY_FROM_TRAINING)):
                for kind in (own.Scores, own.Swap):
                    strategy = kind(needs, data)
                    assert strategy.from_training == set(needs) & given
                    assert strategy.from_data == set(needs) - given


def test_names_belong_to_classes():
    class Base(Strategy):
        kind = "choice"

    class Mine(Base, name="mine"):
        pass

    assert resolve("mine", Base) == Mine()
    assert Base.known_names == {"mine": Mine}
    assert "mine" not in kp.criteria.Criterion.known_names
    with pytest.raises(ValueError, match=r"Unknown choice: 'min'.*Did you mean 'mine'"):
        resolve("min", Base)
    with pytest.raises(ValueError, match=r"Other: the name 'mine' must be one of its own.*choice .*Mine"):
        type("Other", (Base,), {}, name="mine")
    # The same class once more, as when the cell of a notebook is run again.
    again = type("Mine", (Base,), {"__module__": Mine.__module__, "__qualname__": Mine.__qualname__}, name="mine")
    assert resolve("mine", Base) == again()


@pytest.mark.parametrize(
    ("base", "chosen"),
    [
        (own.Largest, lambda: kp.Pruning(0.5, "by a test").recipe.criterion),
        (own.Pairs, lambda: kp.Pruning(0.5, pattern={".*": "by a test"}).recipe.pattern.at("x")),
        (own.Curved, lambda: kp.Pruning(0.5, allocation="by a test").recipe.allocation),
        (own.Swap, lambda: kp.DynamicPruning(0.5, "by a test").recipe.growth),
        (kp.structured.L2, lambda: kp.StructuredPruning(params=0.5, importance="by a test").goal.importance),
    ],
)
def test_a_strategy_of_ones_own_is_chosen_by_its_name(base, chosen):
    named = type("Named", (base,), {}, name="by a test")
    try:
        assert type(chosen()) is named
    finally:
        del named.known_names["by a test"]


def test_data_is_given_to_what_takes_some_and_has_none():
    assert own.Scores().on(OTHER).data is OTHER
    assert own.Scores(data=X).on(OTHER).data is X
    assert own.Largest().on(OTHER) == own.Largest()


# -- training ---------------------------------------------------------------------------------------------------------

IN_TRAINING = tuple(sorted(FROM_TRAINING | {"synflow", "seed"}))
FOR_GROWTH = tuple(sorted(STATISTICS - {"seed"}))
TRAININGS = {
    "schedule, part and pattern": lambda: kp.Pruning(
        own.Stairs(1, 4, 0.5), own.Largest(), {".*": own.Pairs()}, parts=[own.Halve(ramp=own.Stairs(1, 4, 0.5))]
    ),
    "threshold": lambda: kp.ThresholdPruning(own.Bound(0.5, "std")),
    "criterion, from training": lambda: kp.GradientPruning(STEADY, own.Scores(IN_TRAINING), allocation=own.Curved()),
    "criterion, from data": lambda: kp.Pruning(
        STEADY, own.Scores(tuple(sorted(STATISTICS)), OTHER), allocation=own.CurvedAt(OTHER)
    ),
    "growth": lambda: kp.DynamicPruning(STEADY, own.Swap()),
    "growth, hidden": lambda: kp.DynamicPruning(STEADY, own.Swap(("gradient",), hidden=True)),
    "soft threshold": lambda: kp.SoftThreshold(STEADY, own.Largest(), allocation=own.CurvedAt(OTHER)),
    "alternating": lambda: kp.Alternating(
        kp.schedules.Phases(0.5, begin=1, end=4, sparse=1, dense=1), own.Largest(), own.Pairs(), parts=[own.Halve()]
    ),
    "growth, from training": lambda: kp.DynamicPruning(STEADY, own.Swap(tuple(sorted(FROM_TRAINING | {"synflow"})))),
    "growth, from data": lambda: kp.DynamicPruning(STEADY, own.Swap(FOR_GROWTH, OTHER), pattern=own.Pairs()),
    "a metric": lambda: kp.AdaptivePruning(
        "loss",
        10.0,
        own.Scores(IN_TRAINING),
        own.Pairs(),
        own.CurvedAt(OTHER),
        step=0.5,
        max_sparsity=0.5,
        parts=[own.Halve()],
    ),
    "all of them": lambda: kp.DynamicPruning(
        own.Stairs(1, 4, 0.5),
        own.Swap(("gradient", "squared_gradient")),
        own.Scores(("gradient", "input_norm"), OTHER),
        own.Pairs(),
        own.CurvedAt(OTHER),
        parts=[own.Halve()],
    ),
}


def train(case, epochs, folder):
    """Weights and optimizer after a training with a backup, which may be there already."""
    keras.utils.set_random_seed(1)
    model, callback = two_layers(), TRAININGS[case]()
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    model.fit(X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback, backup])
    zeros = sum(int((np.asarray(layer.kernel) == 0).sum()) for layer in model.layers)
    return callback, zeros, [np.asarray(v.value).tobytes() for v in [*model.weights, *model.optimizer.variables]]


@pytest.mark.parametrize("case", TRAININGS)
def test_they_train(case, tmp_path):
    """To the schedule's target; some are stopped after an epoch, between two changes, and come to the same weights."""
    callback, zeros, whole = train(case, 2, tmp_path / "whole")
    assert 0 < zeros < 192 if case == "threshold" else zeros == pytest.approx(96, abs=2)
    assert callback.sparsity * 192 == pytest.approx(zeros, abs=2)
    if case in ("growth", "a metric", "all of them"):
        train(case, 1, tmp_path / "parts")
        assert train(case, 2, tmp_path / "parts")[2] == whole


def test_a_criterion_and_a_growth_each_get_their_own():
    """Both need the gradient, one of it taken on data, the other from training."""
    model = linear(rate=0.0)
    weight = model.get_weights()[0]
    once = kp.schedules.ConstantSparsity(0.5, begin_step=5, end_step=5)
    growth, criterion = own.Swap(("gradient", "squared_gradient")), own.Scores(("gradient", "movement"), OTHER)
    fit(model, kp.DynamicPruning(once, growth, criterion))
    steps = [gradient(weight, X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]
    (statistics,), (gains,) = seen("criterion"), seen("growth")
    assert set(statistics) == {"gradient", "movement"}
    np.testing.assert_allclose(statistics["gradient"], gradient(weight, *OTHER), atol=1e-6)
    np.testing.assert_allclose(statistics["movement"], -weight * sum(steps), atol=1e-5)
    assert set(gains) == {"gradient", "squared_gradient"}
    np.testing.assert_allclose(gains["gradient"], np.abs(np.mean(steps, axis=0)).reshape(-1), atol=1e-6)
    np.testing.assert_allclose(gains["squared_gradient"], np.mean(np.square(steps), axis=0).reshape(-1), atol=1e-6)


def test_gains_are_pooled_over_units():
    model = linear(rate=0.0)
    weight = model.get_weights()[0]
    fit(model, kp.DynamicPruning(STEADY, own.Swap(("gradient", "input_norm"), OTHER), pattern=own.Pairs()))
    gains, norm = seen("growth")[0], np.sqrt(np.square(OTHER[0]).sum(axis=0))
    np.testing.assert_allclose(gains["input_norm"], np.repeat(2 * norm, 2), rtol=1e-5)
    np.testing.assert_allclose(
        gains["gradient"], np.abs(gradient(weight, *OTHER)).reshape(16, 2).sum(axis=1), atol=1e-6
    )


def test_a_growth_of_the_former_signature_gets_the_array_of_its_one_statistic():
    with pytest.warns(DeprecationWarning, match=r"Former\.__call__ takes `gain`.*Write `gains`"):

        @dataclasses.dataclass(frozen=True)
        class Former(own.Swap):
            def __call__(self, on, scores, gain, *, off, progress, seed):
                gains = {} if gain is None else {"gradient": gain}
                return super().__call__(on, scores, gains, off=off, progress=progress, seed=seed)

    for statistics in ((), ("gradient",)):
        model = linear()
        fit(model, kp.DynamicPruning(STEADY, Former(statistics)))
        assert (model.get_weights()[0] == 0).sum() == 16
    with pytest.raises(TypeError, match=r"needs several statistics\. Received: \['gradient', 'movement'\].*`gains`"):
        fit(linear(), kp.DynamicPruning(STEADY, Former(("gradient", "movement"))))


# -- one shot ---------------------------------------------------------------------------------------------------------

ONE_SHOT = {
    "criterion": {"criterion": own.Largest()},
    "criterion, tensor": {"criterion": own.Scores(("seed", "synflow"))},
    "criterion, data": {"criterion": own.Scores(tuple(sorted(STATISTICS - ONLY_FROM_TRAINING)), OTHER)},
    "pattern": {"pattern": own.Pairs()},
    "allocation": {"allocation": own.Curved()},
    "allocation, data": {"allocation": own.CurvedAt(OTHER), "pattern": own.Pairs()},
}


@pytest.mark.parametrize("case", ONE_SHOT)
def test_they_prune_in_one_shot(case):
    model = kp.prune(two_layers(), 0.5, **ONE_SHOT[case])
    assert sum(int((np.asarray(layer.kernel) == 0).sum()) for layer in model.layers) == 96
    if "criterion" in ONE_SHOT[case] and seen("criterion"):
        assert all(set(statistics) == ONE_SHOT[case]["criterion"].needs for statistics in seen("criterion"))


@pytest.mark.parametrize("way", ["prune", "callback"])
def test_curves_are_those_of_the_points_on_the_data(way):
    model = linear(rate=0.0)
    weight = model.get_weights()[0]
    allocation = own.CurvedAt(OTHER)
    if way == "prune":
        kp.prune(model, 0.5, allocation=allocation)
    else:
        fit(model, kp.Pruning(kp.schedules.OneShot(0.5, step=2), allocation=allocation))
    [[curve]] = seen("curves")
    x, y = OTHER
    order, whole = np.argsort(np.abs(weight), axis=None), np.mean(np.square(x @ weight - y))
    for (sparsity, rise), off in zip(curve, (10, 19), strict=True):  # of 32, to the nearest
        cut = weight.copy()
        cut.reshape(-1)[order[:off]] = 0
        assert rise == pytest.approx(np.mean(np.square(x @ cut - y)) - whole, abs=1e-4)
        assert sparsity == allocation.points[(10, 19).index(off)]


@pytest.mark.parametrize(
    ("pattern", "top"), [(kp.patterns.NofM(2, 4), 0.5), (kp.patterns.Filter(), 0.75), (own.Pairs(), 0.9375)]
)
@pytest.mark.parametrize("kind", [own.Curved, kp.allocation.Sensitivity])
def test_curves_end_where_a_pattern_does(kind, pattern, top):
    """At the limit of the pattern, or where the last unit of the tensor would go."""
    model = kp.prune(linear(), 0.5, pattern=pattern, allocation=kind(OTHER))
    assert (model.get_weights()[0] == 0).sum() == 16
    for [curve] in seen("curves"):
        assert [sparsity for sparsity, _ in curve] == [point for point in own.Curved().points if point < top] + [top]


def test_without_data_curves_are_empty_and_who_needs_them_says_so():
    kp.prune(linear(), 0.5, allocation=own.Curved())
    assert seen("curves") == [[()]]
    with pytest.raises(ValueError, match=r"Sensitivity: no loss was measured for .*kernel.* Give data=\(x, y\)"):
        kp.prune(linear(), 0.5, allocation=kp.allocation.Sensitivity())


# -- saving -----------------------------------------------------------------------------------------------------------

SAVED = [
    own.Stairs(1, 4, 0.5),
    own.Bound(0.5, "std"),
    own.Scores(("gradient", "seed")),
    own.Largest(),
    own.Pairs(),
    own.CurvedAt(points=(0.2, 0.4)),
    own.Swap(("gradient", "movement"), hidden=True),
    own.Halve(ramp=kp.schedules.OneShot(0.5, step=2)),
]


@pytest.mark.parametrize("strategy", SAVED, ids=lambda strategy: type(strategy).__name__)
def test_they_are_saved_by_registration(strategy):
    kind = type(strategy)
    assert kind.from_config(json.loads(json.dumps(strategy.get_config()))) == strategy
    registered = keras.saving.register_keras_serializable(package="contracts")(kind)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(strategy)))
    assert config["registered_name"] == f"contracts>{kind.__name__}"
    assert keras.saving.deserialize_keras_object(config) == strategy
    base = next(base for base in BASES if issubclass(kind, base))
    assert resolve(config, base) == strategy
    assert registered is kind


# -- what is refused --------------------------------------------------------------------------------------------------


def returns(base, value):
    """A class whose one method returns this, whatever it is given."""
    return type("Wrong", (base,), {"__call__": lambda self, *args, **options: value})()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: kp.prune(linear(), 0.5, returns(kp.criteria.Criterion, np.ones(3))),
            ValueError,
            r"Wrong must give a score for each weight of .*kernel', of shape \(8, 4\)\. Received: .* \(3,\)",
        ),
        (
            lambda: kp.prune(two_layers(), 0.5, allocation=returns(kp.allocation.Allocation, [0.5])),
            ValueError,
            r"Wrong must give one target for each of 2 tensors\. Received: 1",
        ),
        (
            lambda: fit(linear(), kp.DynamicPruning(STEADY, returns(kp.growth.Growth, np.ones(32, bool)))),
            ValueError,
            r"Wrong must return booleans for .*kernel', of shape \(32,\) with 16 of them False\. .* 0 of them 0",
        ),
        (
            lambda: fit(linear(), kp.DynamicPruning(STEADY, returns(kp.growth.Growth, np.arange(32) % 2))),
            ValueError,
            r"Wrong must return booleans .*Received: int64 of shape \(32,\)",
        ),
        (lambda: kp.Pruning(0.5, own.Scores(("gradiant",))), ValueError, r"Scores: needs .*Received: \['gradiant'\]"),
        (
            lambda: kp.Pruning(0.5, type("Text", (own.Largest,), {"needs": "gradient"})()),
            TypeError,
            r"Text: needs must be a set of names of statistics\. Received: 'gradient'",
        ),
        (lambda: kp.DynamicPruning(0.5, own.Swap(("seed",))), ValueError, r"Swap: needs .*Received: \['seed'\]"),
        (
            lambda: kp.DynamicPruning(0.5, own.Swap(("gradient", "input_mean"))),
            ValueError,
            r"Swap takes \['input_mean'\] from data\. Received: data=None\. Write Swap\(data=\(x, y\)\)",
        ),
        (
            lambda: kp.Pruning(0.5, type("Blind", (own.Largest,), {"needs": frozenset({"input_norm"})})()),
            ValueError,
            r"Blind takes \['input_norm'\] from data\. Received: a criterion without data.*data_field",
        ),
        (
            lambda: kp.prune(linear(), 0.5, own.Scores(("gradient", "movement"), OTHER)),
            ValueError,
            r"Scores takes \['movement'\] from training\. Received: no training",
        ),
        (
            lambda: kp.prune(linear(), 0.5, own.Scores(("gradient",))),
            ValueError,
            r"Scores takes \['gradient'\] from data\. .*Scores\(data=\(x, y\)\)",
        ),
        (lambda: kp.ThresholdPruning(own.Stairs(0, 1, 0.5)), TypeError, "which gives a sparsity"),
    ],
)
def test_a_broken_contract_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_measuring_is_what_criteria_growths_and_allocations_are():
    assert all(issubclass(base, Measuring) for base in BASES[1:2] + BASES[3:5])
    assert data_field().metadata["config"] is False


@pytest.mark.parametrize("statistic", ["gradient", "squared_gradient", "movement"])
def test_no_gradient_of_pruned_weights_comes_from_under_a_wrapper(statistic):
    model = keras.Sequential([keras.Input((8,)), kp.PrunableDense(4)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"Swap\(.*gradient of pruned weights.*under wrappers"):
        fit(model, kp.DynamicPruning(STEADY, own.Swap((statistic,))))
