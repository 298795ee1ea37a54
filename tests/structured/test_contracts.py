"""One's own importances, schedules and parts, never registered, wherever the library runs them."""

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_prune as kp
from keras_prune.schedules import Schedule
from keras_prune.structured import (
    AxisImportance,
    Importance,
    ScoredUnits,
    StructureAdjustment,
    analyse,
    iterate,
    plan,
    prune,
)
from keras_prune.structured.importances.importance import data_field
from keras_prune.structured.importances.names import NAMES


@dataclasses.dataclass(frozen=True)
class LastAxis(AxisImportance):
    """The later, the more important: half of a group leaves its last units."""

    def of_axis(self, weight, axis, statistics):
        return np.arange(1.0, weight.shape[axis] + 1.0)


@dataclasses.dataclass(frozen=True)
class LastByGradient(AxisImportance):
    """The same, where it has been handed the gradients that it declares."""

    needs: ClassVar[frozenset[str]] = frozenset({"abs_gradient", "squared_gradient"})
    every: ClassVar[bool] = True

    data: Any = data_field()

    def of_axis(self, weight, axis, statistics):
        assert {name: value.shape for name, value in statistics.items()} == dict.fromkeys(self.needs, weight.shape)
        return np.arange(1.0, weight.shape[axis] + 1.0)


class LastWithoutDecorator(AxisImportance):
    def of_axis(self, weight, axis, statistics):
        return np.arange(1.0, weight.shape[axis] + 1.0)


@dataclasses.dataclass(frozen=True)
class LastUnits(Importance):
    def __call__(self, model, analysis):
        return self.normalised(analysis, 1.0 + np.arange(analysis.size))


@dataclasses.dataclass(frozen=True)
class LastOnData(Importance):
    """Data in a plain field, an argument that has to be given, and notes."""

    offset: float
    data: Any = None

    def __call__(self, model, analysis):
        x, _ = self.data
        assert x.shape[1] == 12
        return self.normalised(analysis, self.offset + np.arange(analysis.size))

    def score(self, model, analysis):
        return ScoredUnits(self(model, analysis), (f"an offset of {self.offset}",))


OWN = [LastAxis(), LastByGradient(), LastWithoutDecorator(), LastUnits(), LastOnData(1.0)]
own = pytest.mark.parametrize("importance", OWN, ids=lambda one: type(one).__name__)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 12)).astype("float32")
    return x, (x[:, :3].argmax(axis=1)).astype("int32")


def net():
    keras.utils.set_random_seed(3)
    layers = [kl.Dense(8, activation="relu", name="first"), kl.Dense(6, activation="relu", name="second"), kl.Dense(3)]
    model = keras.Sequential([keras.Input((12,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], run_eagerly=True)
    return model


def fit(model, callback, epochs=2):
    return model.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback])


def last_stay(analysis, keep):
    """Whether of each group the last units are kept, and not all."""
    parts = [keep[group.start : group.stop] for group in analysis.groups]
    return all((part == np.sort(part)).all() and 0 < part.sum() < part.size for part in parts)


@own
def test_an_importance_of_ones_own_plans_and_prunes(importance):
    model = net()
    made = plan(model, params=0.5, importance=importance, data=data())
    assert last_stay(made.analysis, made.keep)
    assert made.notes == (("an offset of 1.0",) if isinstance(importance, LastOnData) else ())
    smaller = prune(model, params=0.5, importance=importance, data=data())
    for layer in ("first", "second"):
        kept = smaller.get_layer(layer).units
        np.testing.assert_array_equal(
            np.array(smaller.get_layer(layer).bias), np.array(model.get_layer(layer).bias)[-kept:]
        )
    strict = plan(model, threshold=3.0, importance=importance, data=data())
    # Scores not normalised: 1, 2 and 3 of each group go where groups are scored one by one, of all units elsewhere.
    gone = [3, 3] if isinstance(importance, AxisImportance) else [3, 0]
    assert [group.size - kept for group, kept in zip(strict.analysis.groups, strict.kept, strict=True)] == gone


@own
def test_an_importance_of_ones_own_in_rounds(importance):
    x, y = data()
    options = {"x": x, "y": y, "epochs": 1, "verbose": 0}
    done = iterate(net(), rounds=2, params=0.5, retrain=options, evaluate=(x, y), importance=importance, data=data())
    assert [one.count.params for one in done.rounds] == sorted({one.count.params for one in done.rounds}, reverse=True)
    assert done.model.count_params() <= 0.5 * net().count_params()


@own
def test_an_importance_of_ones_own_closes_units_in_fit_and_is_saved_with_the_model(importance, tmp_path):
    model = net()
    pruning = kp.StructuredPruning(params=0.5, end_step=4, frequency=2, importance=importance, data=data())
    fit(model, pruning)
    assert last_stay(pruning.gates.analysis, pruning.gates.keep)
    smaller = pruning.shrink()
    model.save(tmp_path / "gated.keras")
    loaded = kp.structured.shrink(kp.load_model(tmp_path / "gated.keras"))
    x = data()[0]
    np.testing.assert_allclose(loaded(x), smaller(x), atol=1e-6)
    assert loaded.count_params() == smaller.count_params()


@own
def test_an_importance_of_ones_own_adjusts_in_fit(importance):
    model = net()
    adjustment = StructureAdjustment("loss", tolerance=10.0, step=0.3, importance=importance, data=data())
    fit(model, adjustment, epochs=3)
    assert [one.action for one in adjustment.history] == ["close", "close", "hold"]
    assert last_stay(adjustment.gates.analysis, adjustment.gates.keep)
    assert adjustment.shrink().count_params() < model.count_params()


@pytest.mark.parametrize("importance", OWN, ids=lambda one: type(one).__name__)
def test_an_importance_of_ones_own_is_written_down(importance):
    changed = dataclasses.replace(importance, normalise="max")
    assert type(changed).from_config(changed.get_config()) == changed
    written = keras.saving.serialize_keras_object(changed)
    kind = type(changed)
    with keras.saving.custom_object_scope({f"{kind.__module__}>{kind.__name__}": kind, kind.__name__: kind}):
        assert keras.saving.deserialize_keras_object(written) == changed


def test_both_bases_are_abstract():
    with pytest.raises(TypeError, match=r"abstract .*__call__"):
        Importance()
    with pytest.raises(TypeError, match=r"abstract .*of_axis"):
        AxisImportance()

    class Nothing(Importance):
        pass

    with pytest.raises(TypeError, match=r"abstract class Nothing .*__call__"):
        Nothing()


@pytest.mark.parametrize("kind", NAMES.values(), ids=NAMES)
def test_no_importance_inherits_what_it_cannot_do(kind):
    """What scores no axis has no method for axes, and what can be given data says so."""
    assert hasattr(kind, "of_axis") == issubclass(kind, AxisImportance)
    takes_data = "data" in kind.__dataclass_fields__
    assert kind().takes_data == takes_data
    assert kind().on("some").data == ("some" if takes_data else None)
    scores = kind().on(data())(net(), analyse(net())) if not takes_data else None
    assert scores is None or scores.shape == (14,)


def test_an_importance_from_before_the_two_bases_were_told_apart():
    with pytest.warns(DeprecationWarning, match=r"Former scores weights along .*from .*AxisImportance"):

        @dataclasses.dataclass(frozen=True)
        class Former(Importance):
            def of_axis(self, weight, axis, statistics):
                return np.arange(1.0, weight.shape[axis] + 1.0)

    assert isinstance(Former(reduction="first"), AxisImportance)
    made = plan(net(), params=0.5, importance=Former(reduction="first"))
    assert last_stay(made.analysis, made.keep)


@pytest.mark.parametrize("importance", ["taylor", "apoz", LastOnData(1.0)], ids=str)
def test_data_is_asked_for_before_anything_runs(importance):
    makers = {
        "plan": lambda: plan(net(), params=0.5, importance=importance),
        "StructuredPruning": lambda: kp.StructuredPruning(params=0.5, end_step=4, importance=importance),
        "StructureAdjustment": lambda: StructureAdjustment("loss", importance=importance),
    }
    for name, make in makers.items():
        with pytest.raises(ValueError, match=rf"^{name}: \w+ is taken on data. Received: data=None"):
            make()


@dataclasses.dataclass(frozen=True)
class Stairs(Schedule):
    """A share that is removed in two steps."""

    def __call__(self, step):
        return 0.0 if step < 2 else 0.3 if step < 5 else 0.6

    def should_update(self, step):
        return step in (2, 5)

    @property
    def final(self):
        return 0.6

    @property
    def first_step(self):
        return 2

    @property
    def target_step(self):
        return 5


def test_a_schedule_of_ones_own():
    model = net()
    pruning = kp.StructuredPruning(params=Stairs())
    left = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            left.append(logs["params_left"])

    model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[pruning, Look()])
    assert left[0] == 1.0
    assert left[1] == left[3] <= 0.7
    assert left[4] == left[-1] <= 0.4
    assert pruning.left["params"] == left[-1]


@dataclasses.dataclass(frozen=True)
class Halve(kp.Part):
    """Halves each weight in scope after each step."""

    def before(self, gradient, weight, level):
        return ops.zeros_like(gradient)

    def after(self, weight, learning_rate, level):
        return 0.5 * ops.convert_to_tensor(weight)


def test_a_part_of_ones_own():
    model, plain = net(), net()
    pruning = kp.StructuredPruning(params=0.5, end_step=2, frequency=1, parts=[Halve()])
    fit(model, pruning, epochs=1)
    keep = pruning.gates.keep[:8]
    before, after = np.array(plain.get_layer("first").kernel), np.array(model.get_layer("first").kernel)
    np.testing.assert_allclose(after[:, keep], before[:, keep] / 2**4, rtol=1e-6)
    assert not after[:, ~keep].any()
