import dataclasses
import json
import sys

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.structured import (
    L1,
    L2,
    APoZ,
    AxisImportance,
    Entropy,
    Fisher,
    Gradient,
    MeanActivation,
    Plan,
    SecondOrder,
    Taylor,
    analyse,
    plan,
)
from keras_prune.structured.importances.ablation import ablate
from keras_prune.structured.importances.features import features
from keras_prune.structured.importances.importance import ScoredUnits
from keras_prune.structured.importances.learned import Learned, predict_costs, rank_correlation, sample_units
from keras_prune.structured.importances.predictors import PREDICTORS

FIRST = np.array([[3.0, 0.0, 1.0], [-4.0, 2.0, 1.0]])
SECOND = np.array([[1.0], [-2.0], [0.5]])
X = np.array([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0], [1.0, 1.0]], "float32")
Y = np.array([[1.0], [2.0], [-1.0], [0.0]], "float32")


@pytest.fixture
def linear():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(3, use_bias=False), kl.Dense(1, use_bias=False)])
    model.set_weights([FIRST, SECOND])
    model.compile(loss="mse")
    return model


@pytest.fixture(scope="module")
def cnn():
    """A residual block, a normalisation and a dense end, trained a little: 28 units in three groups."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = kl.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    inner = kl.ReLU()(kl.BatchNormalization(momentum=0.5)(kl.Conv2D(12, 3, padding="same", name="inner")(x)))
    x = kl.Add()([x, kl.Conv2D(8, 3, padding="same")(inner)])
    x = kl.Dense(8, activation="relu")(kl.Flatten()(x))
    model = keras.Model(inputs, kl.Dense(3)(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = rng.normal(size=(96, 8, 8, 1)) + np.eye(3)[y][:, :, None, None].repeat(3, 1)[:, :8] * 1.5
    data = x.astype("float32"), y
    model.fit(*data, epochs=5, batch_size=16, verbose=0)
    return model, data


def mse(kernel, read):
    return np.mean(np.square(X @ kernel @ read - Y))


def test_the_cost_of_a_linear_unit_by_hand(linear):
    keep = [np.delete(np.arange(3), unit) for unit in range(3)]
    expected = [mse(FIRST[:, on], SECOND[on]) - mse(FIRST, SECOND) for on in keep]
    found = ablate(linear, analyse(linear), range(3), (X, Y))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert min(expected) < 0 < max(expected)
    np.testing.assert_allclose(ablate(linear, analyse(linear), [2, 0], (X, Y)), found[[2, 0]])


def test_weights_and_regularisers_count(linear):
    weight = np.array([1.0, 2.0, 0.0, 1.0], "float32")
    on = [0, 2]

    def loss(kernel, read):
        return np.mean(weight[:, None] * np.square(X @ kernel @ read - Y)) + 0.1 * np.square(kernel).sum()

    linear.layers[0].kernel.regularizer = keras.regularizers.L2(0.1)
    found = ablate(linear, analyse(linear), [1], (X, Y, weight))
    np.testing.assert_allclose(found, loss(FIRST[:, on], SECOND[on]) - loss(FIRST, SECOND), rtol=1e-5)


def test_uneven_batches_give_the_mean_over_samples(linear):
    whole = ablate(linear, analyse(linear), range(3), (X, Y))
    parts = ablate(linear, analyse(linear), range(3), iter([(X[:1], Y[:1]), (X[1:], Y[1:])]))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_the_cost_is_that_of_the_model_without_the_unit(cnn):
    model, data = cnn
    analysis = analyse(model)
    units = [0, 9, 15, 25]
    dense = model.evaluate(*data, batch_size=96, verbose=0)
    found = ablate(model, analysis, units, data)
    for unit, cost in zip(units, found, strict=True):
        smaller = Plan(analysis, np.arange(analysis.size) != unit).apply()
        np.testing.assert_allclose(cost, smaller.evaluate(*data, batch_size=96, verbose=0) - dense, atol=1e-5)


def test_a_loss_that_overflows_is_the_worst_of_all(linear):
    def loss(y, predicted):
        return keras.ops.mean(1.0 / keras.ops.abs(predicted))

    linear.set_weights([np.eye(2, 3), SECOND])
    linear.compile(loss=loss)
    x = np.array([[1.0, 0.0]], "float32")
    assert ablate(linear, analyse(linear), [0, 1], (x, x[:, :1])).tolist() == [float(np.finfo("float32").max), 0.0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_the_model_is_left_as_it_was_also_by_an_error(cnn, error):
    model, data = cnn
    before = [np.array(v) for v in [*model.variables, *model.optimizer.variables]]

    def interrupted():
        yield data
        raise error

    class Batches(list):
        def __iter__(self):
            return interrupted()

    analysis = analyse(model)
    with pytest.raises(error):
        ablate(model, analysis, range(4), Batches())
    with pytest.raises(error):
        Learned(sample=12, data=Batches())(model, analysis)
    Learned(sample=12, data=data)(model, analysis)
    after = [*model.variables, *model.optimizer.variables]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, np.array(new))


def test_features_by_hand(linear):
    found = features(linear, analyse(linear), [(X[:2], Y[:2]), (X[2:], Y[2:])], "sum")
    np.testing.assert_allclose(found.column("l1_in"), [7, 2, 2])
    np.testing.assert_allclose(found.column("l2_in"), [5, 2, 2**0.5])
    np.testing.assert_allclose(found.column("l1_out"), [1, 2, 0.5])
    np.testing.assert_allclose(found.column("l2_out"), [1, 2, 0.5])
    np.testing.assert_allclose(found.column("scale"), 1)
    np.testing.assert_allclose(found.column("bias"), 0)
    np.testing.assert_allclose(found.column("fan_in"), 2)
    np.testing.assert_allclose(found.column("fan_out"), 1)
    np.testing.assert_allclose(found.column("group_size"), 3)
    np.testing.assert_allclose(found.column("depth"), 0)
    np.testing.assert_allclose(found.column("rank_l2_in"), [1, 0.5, 0])
    # The derivative of the loss by a factor on each hidden unit: 2 (p - y) h w, the mean over a batch.
    hidden = X @ FIRST
    q = (2 * (hidden @ SECOND - Y) * hidden * SECOND.T).reshape(2, 2, 3).mean(axis=1)
    mean = q.mean(axis=0)
    curvature = mean**2 + (2 * (q - mean) ** 2).mean(axis=0)
    np.testing.assert_allclose(found.column("first_order"), -mean, rtol=1e-5)
    np.testing.assert_allclose(found.column("curvature"), curvature, rtol=1e-5)
    np.testing.assert_allclose(found.column("second_order"), -mean + curvature / 2, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.column("std_activation"), hidden.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        found.column("output"), np.sqrt(np.square(hidden).mean(axis=0)) * np.abs(SECOND[:, 0]), rtol=1e-5
    )


def test_features_agree_with_the_importances_of_their_names(cnn):
    model, data = cnn
    analysis = analyse(model)
    found = features(model, analysis, data, "sum")
    same = {
        "gradient": Gradient,
        "taylor": Taylor,
        "fisher": Fisher,
        "mean_activation": MeanActivation,
        "apoz": APoZ,
        "entropy": Entropy,
    }
    for name, importance in same.items():
        options = {"reduction": "sum"} if issubclass(importance, AxisImportance) else {}
        expected = importance(normalise="none", data=data, **options)(model, analysis)
        np.testing.assert_allclose(found.column(name), expected, rtol=1e-6, err_msg=name)
    both = L1(reduction="sum", normalise="none")(model, analysis)
    np.testing.assert_allclose(found.column("l1_in") + found.column("l1_out"), both)
    squares = found.column("l2_in") ** 2 + found.column("l2_out") ** 2
    assert (squares <= L2(reduction="sum", normalise="none")(model, analysis) ** 2 * (1 + 1e-9)).all()
    assert np.isfinite(found.values).all()
    inner = analysis.slot_of(model.get_layer("inner").kernel, -1)
    np.testing.assert_allclose(found.column("fan_in")[inner.units], 3 * 3 * 8)
    np.testing.assert_allclose(found.column("fan_out")[inner.units], 3 * 3 * 8)


def test_heads_and_states_have_features():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 8))
    x = kl.LSTM(4)(kl.MultiHeadAttention(2, 3)(inputs, inputs))
    model = keras.Model(inputs, kl.Dense(1)(x))
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 5, 8)).astype("float32"), rng.normal(size=(8, 1)).astype("float32")
    analysis = analyse(model)
    found = features(model, analysis, data)
    assert np.isfinite(found.values).all()
    assert found.column("first_order").all()
    # The derivative by a factor on a head's values is the first order of the head's cost.
    heads = analysis.slot_of(model.layers[1]._output_dense.kernel, 0).units
    kernel = model.layers[1]._output_dense.kernel
    value, step = np.array(kernel), 1e-3
    for head, unit in enumerate(heads):
        losses = []
        for factor in (1 - step, 1 + step):
            changed = value.copy()
            changed[head] *= factor
            kernel.assign(changed)
            losses.append(float(np.mean(np.square(np.asarray(model(data[0])) - data[1]))))
        kernel.assign(value)
        np.testing.assert_allclose(
            -found.column("first_order")[unit], (losses[1] - losses[0]) / (2 * step), rtol=0.02, atol=1e-5
        )


@pytest.mark.parametrize("model", sorted(PREDICTORS))
def test_a_cost_that_follows_from_features_is_found(model):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    table = np.abs(rng.normal(size=(300, 6)))
    # The estimate is of the wrong unit, and knows nothing of the factor that is in the first two features.
    first_order, curvature = np.abs(rng.normal(size=300)), np.square(rng.normal(size=300))
    costs = (first_order + curvature / 32.0) * np.exp(2.0 * (table[:, 0] - table[:, 1]))
    sample = sample_units([100, 200], 100, 0)
    made = predict_costs(table, first_order, curvature, sample, costs[sample], model)
    others = np.setdiff1d(np.arange(300), sample)
    assert made.correlation > made.estimate_correlation + 0.02
    assert rank_correlation(made.costs[others], costs[others]) > 0.9
    np.testing.assert_array_equal(made.costs[sample], costs[sample])
    assert made.correlation == rank_correlation(made.held_out, costs[sample])


@pytest.mark.parametrize("model", sorted(PREDICTORS))
def test_no_fold_sees_what_it_is_held_against(model):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    table, zero = rng.normal(size=(60, 4)), np.zeros(60)
    costs = rng.normal(size=60)  # nothing to learn, so what had seen the answer would stand out
    made = predict_costs(table, zero, zero, np.arange(60), costs, model)
    assert abs(made.correlation) < 0.35
    folds = np.random.default_rng((0, 1)).permutation(60) % 5
    changed = np.where(folds == 2, 100.0 + costs, costs)
    again = predict_costs(table, zero, zero, np.arange(60), changed, model)
    np.testing.assert_allclose(again.held_out[folds == 2], made.held_out[folds == 2], rtol=1e-5)
    assert not np.allclose(again.held_out[folds == 1], made.held_out[folds == 1])


@pytest.mark.parametrize("model", sorted(PREDICTORS))
def test_same_seed_same_scores(cnn, model):
    pytest.importorskip("sklearn")
    network, data = cnn
    analysis = analyse(network)
    state = np.random.get_state()[1].copy()
    importance = Learned(sample=14, model=model, seed=3, data=data)
    scored = importance.score(network, analysis)
    np.testing.assert_array_equal(importance(network, analysis), scored.scores)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    other = dataclasses.replace(importance, seed=4)(network, analysis)
    assert not np.array_equal(other, scored.scores)
    truth = ablate(network, analysis, range(analysis.size), data)
    sample = sample_units([group.size for group in analysis.groups], 14, 3)
    np.testing.assert_allclose(scored.scores[sample], truth[sample], atol=1e-7)
    others = np.setdiff1d(np.arange(analysis.size), sample)
    assert rank_correlation(scored.scores[others], truth[others]) > 0.5


def test_the_plan_reports_the_correlation(cnn):
    pytest.importorskip("sklearn")
    model, data = cnn
    made = plan(model, params=0.5, importance=Learned(sample=0.5), data=data)
    [note] = made.notes
    assert note.startswith("cost of 14 of 28 units measured, of the others predicted by a forest: rank correlation on")
    assert note in str(made)
    assert json.loads(json.dumps(made.to_dict()))["notes"] == [note]
    assert made.apply().count_params() == made.after.params <= 0.5 * made.before.params


def test_all_units_measured_is_the_truth(cnn):
    model, data = cnn
    analysis = analyse(model)
    truth = ablate(model, analysis, range(analysis.size), data)
    scored = Learned(sample=1.0, data=data).score(model, analysis)
    assert isinstance(scored, ScoredUnits)
    np.testing.assert_array_equal(scored.scores, truth)
    assert scored.notes == ("cost of all 28 units measured",)
    normalised = Learned(sample=28, normalise="max", data=data)(model, analysis)
    for group in analysis.groups:
        part = truth[group.start : group.stop]
        np.testing.assert_allclose(normalised[group.start : group.stop], part / part.max())


def test_a_sample_has_its_part_of_each_group():
    sizes = [1, 50, 200, 3]
    for count in (4, 5, 60, 253, 254):
        chosen = sample_units(sizes, count, 1)
        assert len(np.unique(chosen)) == count
        parts = np.bincount(np.searchsorted(np.cumsum(sizes), chosen, side="right"), minlength=4)
        assert parts.min() >= 1
        assert (parts <= sizes).all()
        assert (np.abs(parts - count * np.array(sizes) / 254) <= 3).all()
    assert not np.array_equal(sample_units(sizes, 60, 1), sample_units(sizes, 60, 2))


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3], [10, 20, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Ranks 1.5, 1.5, 3 and 1, 2, 3: Pearson's correlation of these.
    assert rank_correlation([5, 5, 7], [1, 2, 3]) == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])
    assert np.isnan(rank_correlation([1, 1], [1, 2]))


def test_costs_that_are_all_equal_can_be_predicted():
    made = predict_costs(np.ones((30, 2)), np.zeros(30), np.zeros(30), np.arange(20), np.zeros(20), "network")
    assert np.isfinite(made.costs).all()
    assert np.isnan(made.correlation)


def test_the_configuration_is_complete():
    first = Learned(reduction="sum", normalise="max", sample=30, model="network", seed=5, data=1)
    config = json.loads(json.dumps(first.get_config()))
    assert config == {"reduction": "sum", "normalise": "max", "sample": 30, "model": "network", "seed": 5}
    assert Learned.from_config(config) == first
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first)) == first


def test_bad_input_is_named(linear, cnn):
    with pytest.raises(ValueError, match=r"Learned: model must be one of \['forest', 'network'\]\. Received: 'tree'"):
        Learned(model="tree")
    for sample in (0, 0.0, 1.5, -3, True, "half"):
        with pytest.raises(ValueError, match=rf"Learned: sample must be a share .* Received: {sample!r}"):
            Learned(sample=sample)
    with pytest.raises(ValueError, match=r"Learned: seed must be .* Received: -1"):
        Learned(seed=-1)
    with pytest.raises(ValueError, match=r"Learned is taken on data\. Received: data=None"):
        Learned()(linear, analyse(linear))
    with pytest.raises(ValueError, match=r"which is 1 of 3 units\. Ask for sample=1\.0, which measures every unit"):
        Learned(data=(X, Y))(linear, analyse(linear))
    model, data = cnn
    with pytest.raises(ValueError, match=r"needs 10 units at least.* sample=6, which is 6 of 28.*Ask for sample=10"):
        Learned(sample=6, data=data)(model, analyse(model))
    with pytest.raises(ValueError, match=r"ablate: .* has the units 0 to 2\. Received: \[3, -1\]"):
        ablate(linear, analyse(linear), [0, 3, -1], (X, Y))
    with pytest.raises(ValueError, match=r"must be finite\. Received: nan"):
        ablate(linear, analyse(linear), [0], (X * np.nan, Y))
    with pytest.raises(ValueError, match=r"Features has the columns \['l1_in', .*Received: 'l3'"):
        features(linear, analyse(linear), (X, Y)).column("l3")
    linear.compiled = False
    for call in (
        lambda: ablate(linear, analyse(linear), [0], (X, Y)),
        lambda: Learned(data=(X, Y))(linear, analyse(linear)),
    ):
        with pytest.raises(ValueError, match=r"is not compiled"):
            call()


def test_scikit_learn_that_is_missing_is_named(cnn, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    model, data = cnn
    with pytest.raises(ImportError, match=r'pip install "keras-prune\[learned\]".*model="network"'):
        Learned(sample=14, data=data)(model, analyse(model))


def test_second_order_is_the_estimate_that_learning_begins_with(cnn):
    model, data = cnn
    analysis = analyse(model)
    expected = features(model, analysis, data).column("second_order")
    np.testing.assert_array_equal(SecondOrder(data=data)(model, analysis), expected)
    made = plan(model, params=0.6, importance="second_order", scope="global", data=data)
    assert made.keep[np.argmax(expected)]
    assert not made.keep[np.argmin(expected)]
    with pytest.raises(ValueError, match=r"SecondOrder is taken on data\. Received: data=None"):
        plan(model, params=0.6, importance="second_order")
