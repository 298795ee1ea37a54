"""Strategies as values and as code, and the space of them for the tensors of a model."""

import dataclasses
import sys

import keras
import numpy as np
import optuna
import pytest

import keras_prune as kp
from keras_prune.trials import objectives
from keras_prune.trials.code import as_code, imports_of
from keras_prune.trials.extra import search_module
from keras_prune.trials.objectives import count_macs, resolve_objectives
from keras_prune.trials.space import with_final
from keras_prune.trials.working_copy import WorkingCopy


@pytest.fixture(scope="module")
def conv():
    """A path that is a part of another one; kernels of 144, 288, 32 and 16 weights."""
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="dense")], name="inner")
    layers = [
        keras.layers.Conv2D(8, 3, padding="same", name="conv", use_bias=False),
        keras.layers.Conv2D(8, 3, strides=2, padding="same", groups=2, name="grouped", use_bias=False),
        keras.layers.GlobalAveragePooling2D(),
        inner,
        keras.layers.Dense(4, name="dense"),
    ]
    return keras.Sequential([keras.Input((6, 6, 2)), *layers])


def sizes(model):
    return {target.path: int(np.prod(target.variable.shape)) for target in kp.Scope().survey(model).targets}


def test_every_choice_of_a_space_has_the_sparsity_to_a_unit(conv):
    blocks = {"grouped": "unstructured", ".*": kp.patterns.Block(1, 4)}
    space = kp.search.Space({"conv": (0.5, 0.75)}, ["magnitude", "random"], ["unstructured", blocks]).of(
        conv, 0.6, trains=True
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(12):
        chosen = space(study.ask())
        model = chosen.prune(kp.strip(conv))
        zeros = {t.path: int((t.variable.numpy() == 0).sum()) for t in kp.Scope().survey(model).targets}
        unit = 1 if chosen.pattern == kp.patterns.Unstructured() else 4
        assert abs(sum(zeros.values()) - 0.6 * 480) <= unit / 2
        for path, size in sizes(conv).items():
            assert zeros[path] == round(chosen.allocation.targets[path] * size)
        assert 72 <= zeros["conv/kernel"] <= 108
        assert chosen.schedule.final == 0.6
        seen.add((type(chosen.criterion).__name__, unit, type(chosen.schedule).__name__))
    assert len(seen) >= 6


def test_a_space_starts_where_allocations_end(conv):
    space = kp.search.Space(starts=("uniform", "erk")).of(conv, 0.5, trains=False)
    for parameters, allocation in zip(space.starts, ("uniform", "erk"), strict=True):
        chosen = space(optuna.trial.FixedTrial(parameters))
        wanted = kp.report(kp.prune(kp.strip(conv), 0.5, allocation=allocation))
        for row in wanted.rows:
            assert chosen.allocation.targets[row.path] == pytest.approx(
                1 - row.nonzero / row.weights, abs=1 / row.weights
            )


@dataclasses.dataclass(frozen=True)
class Mine(kp.criteria.Criterion):
    power: float

    def __call__(self, weight, statistics):
        return np.abs(weight) ** self.power


def test_strategies_are_written_as_the_code_that_makes_them():
    for value, text in (
        (
            kp.schedules.PolynomialDecay(0.0, 0.8, begin="10%", end="70%"),
            'kp.schedules.PolynomialDecay(0.0, 0.8, begin="10%", end="70%")',
        ),
        (kp.criteria.Taylor(data=[1]), "kp.criteria.Taylor(data=data)"),
        (kp.criteria.Taylor(), '"taylor"'),
        (kp.patterns.NofM(2, 4), "kp.patterns.NofM(2, 4)"),
        (kp.allocation.ERK(floor=0.1), "kp.allocation.ERK(floor=0.1)"),
        (kp.Scope(exclude="head"), 'kp.Scope(exclude=("head",))'),
        (Mine(2.0), "Mine(2.0)"),
    ):
        assert as_code(value) == text
        made = eval(text, {"kp": kp, "Mine": Mine, "data": [1]})
        assert made == (value if text != '"taylor"' else "taylor")
    assert imports_of(Mine(1.0), None, kp.criteria.Magnitude()) == [f"from {__name__} import Mine"]


def test_spaces_and_strategies_are_values_that_can_be_saved():
    space = kp.search.Space((0.1, 0.9), ["taylor"], [kp.patterns.NofM(2, 4)], kp.schedules.OneShot(0.5), starts=())
    strategy = kp.search.PruningStrategy(
        0.7, "random", {"a": kp.patterns.Block(2, 1)}, {"a": 0.7}, kp.schedules.OneShot(0.7), kp.Scope(include="a")
    )
    for value in (space, strategy):
        assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(value)) == value
        defaults = type(value)() if value is space else type(value)(0.5)
        assert all(
            getattr(value, field.name) != getattr(defaults, field.name)
            for field in dataclasses.fields(value)
            if field.name != "scope" or value is strategy
        )
    assert with_final(kp.schedules.Linear(0.3, 0.8, begin_step=0, end_step=9), 0.2).initial_sparsity == 0.0


@pytest.mark.parametrize(
    ("message", "make"),
    [
        (r"criteria must be different choices.*Received: \[\]", lambda: kp.search.Space(criteria=[])),
        (r"bounds must not fall. Received: \(0\.8, 0\.2\)", lambda: kp.search.Space(bounds=(0.8, 0.2))),
        (r"bounds of 'a' must be a fraction.*Received: 90", lambda: kp.search.Space(bounds={"a": (0.0, 90)})),
        (r"mode must be 'min' or 'max'. Received: 'up'", lambda: kp.search.Objective(len, mode="up")),
        (r"sparsity must be a fraction.*Received: 1\.5", lambda: kp.search.PruningStrategy(1.5)),
    ],
)
def test_bad_choices_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_multiplications_by_zeros_do_not_count(conv):
    copy = WorkingCopy(conv)
    macs = count_macs(copy.model)
    assert macs(copy) == 36 * 144 + 9 * 288 + 32 + 16
    copy.model.get_layer("grouped").kernel.assign(np.eye(9 * 4 * 8).reshape(-1)[: 9 * 4 * 8].reshape(3, 3, 4, 8))
    assert macs(copy) == 36 * 144 + 9 * 1 + 32 + 16
    copy.restore()
    assert macs(copy) == 36 * 144 + 9 * 288 + 32 + 16


def test_latency_is_measured_beside_the_dense_model(conv, monkeypatch):
    seen = []

    def measure(model):
        seen.append(kp.report(model).sparsity)
        return 0.001 * len(seen)

    monkeypatch.setattr(objectives, "find_measure", lambda model, data: measure)
    copy = WorkingCopy(conv)
    (latency,) = resolve_objectives("latency", copy, None, None)
    assert seen == [0.0]
    assert (latency.name, latency.rises) == ("latency", False)
    copy.restore()
    kp.prune(copy.model, 0.5)
    assert latency.of(copy) == 0.002
    assert seen[1] == pytest.approx(0.5, abs=0.01)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo.core.problem", None)
    with pytest.raises(ImportError, match=r"a search: pymoo is needed.*pip install \"keras-prune\[search\]\""):
        search_module("pymoo.core.problem")
