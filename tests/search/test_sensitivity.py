"""A metric against the sparsity of each tensor alone: by hand, beside one-shot pruning, and the model as it was."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.monitoring.metric import Metric
from keras_prune.search import Sensitivities, TensorSensitivity

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 6)).astype("float32")
Y = (X[:, 0] > X[:, 1]).astype("int32") + (X[:, 2] > 0)
POINTS = (0.25, 0.5, 0.75)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(16, "relu", name="a"), layers.BatchNormalization(), layers.Dense(3, name="b")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss, metrics=["accuracy"])
    model.fit(X, Y, epochs=4, verbose=0)
    return model


def one_shot(model, path, point, pattern):
    """Loss and accuracy of a copy in which `kp.prune` has pruned one tensor."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kp.prune(copy, point, pattern=pattern, scope=kp.Scope(include=path))
    logits = np.asarray(copy(X, training=False), "float64")
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(Y)), Y]
    return losses.mean(), (logits.argmax(axis=1) == Y).mean()


@pytest.mark.parametrize("pattern", [None, kp.patterns.Block(2, 1)], ids=str)
def test_values_are_those_of_one_shot_pruning(model, pattern):
    before = [np.array(v.value) for v in [*model.variables, *model.metrics_variables]]
    loss = kp.search.sensitivity(model, (X, Y), pattern=pattern, points=POINTS, verbose=0)

    def batches():
        yield from ((X[i : i + 100], Y[i : i + 100]) for i in range(0, 300, 100))

    accuracy = kp.search.sensitivity(model, batches(), pattern=pattern, points=POINTS, metric="accuracy", verbose=0)
    after = [np.array(v.value) for v in [*model.variables, *model.metrics_variables]]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert (loss.metric, accuracy.metric) == (Metric("loss", False), Metric("accuracy", True))
    np.testing.assert_allclose([loss.whole, accuracy.whole], model.evaluate(X, Y, verbose=0), rtol=1e-5)
    assert [row.path for row in loss.rows] == ["a/kernel", "b/kernel"]
    for one, other in zip(loss.rows, accuracy.rows, strict=True):
        assert one.sparsities == other.sparsities == POINTS
        wanted = [one_shot(model, one.path, point, pattern) for point in POINTS]
        np.testing.assert_allclose(np.transpose([one.values, other.values]), wanted, rtol=1e-5)
    again = kp.search.sensitivity(model, (X, Y), pattern=pattern, points=POINTS, verbose=0)
    assert again == loss


def test_what_is_pruned_already_stays_and_patterns_have_limits(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kp.prune(copy, 0.6, allocation={"a/kernel": 0.6, "b/kernel": 0.0})
    calls = []

    def score(given):
        calls.append(1)
        return -sum(float(np.abs(layer.kernel).sum()) for layer in (given.layers[0], given.layers[2]))

    found = kp.search.sensitivity(copy, metric=score, mode="min", points=POINTS, verbose=0)
    assert (found.metric, len(found.rows)) == (Metric("score", False), 2)
    assert [row.sparsity for row in found.rows] == [58 / 96, 0.0]
    # Two points below what is off: measured once. A whole, and then 2 and 3 models.
    assert found.rows[0].sparsities == (58 / 96, 58 / 96, 0.75)
    assert found.rows[0].values[0] == found.rows[0].values[1] == found.whole < found.rows[0].values[2]
    assert len(calls) == 1 + 2 + 3
    halves = kp.search.sensitivity(
        model, metric=score, pattern=kp.patterns.NofM(2, 4), points=POINTS, scope=kp.Scope(include="b"), verbose=0
    )
    assert halves.rows[0].sparsities == (0.25, 0.5, 0.5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_or_an_interrupt_leaves_the_model_as_it_was(model, error):
    before = model.get_weights()

    def fails(given):
        zeros = sum(int((w == 0).sum()) for w in given.get_weights()[::6])
        if zeros > 24:
            raise error
        return 1.0

    with pytest.raises(error):
        kp.search.sensitivity(model, metric=fails, points=POINTS, verbose=0)
    assert all(np.array_equal(one, other) for one, other in zip(model.get_weights(), before, strict=True))


def row(path, weights, *curve, sparsity=0.0):
    return TensorSensitivity(path, "Dense", weights, sparsity, *zip(*curve, strict=True))


def test_the_allocation_stops_where_the_metric_has_lost_so_much(model, tmp_path):
    rows = (
        row("a", 100, (0.5, 0.88), (0.75, 0.84), (0.9, 0.9)),  # better beyond a fall does not count
        row("b", 300, (0.5, 0.9), (0.75, 0.9), (0.9, 0.895)),
        row("c", 100, (0.5, float("nan")), (0.75, 0.9), (0.9, 0.9), sparsity=0.2),
        row("d", 500, (0.5, 0.5), (0.75, 0.4), (0.9, 0.3)),
    )
    found = Sensitivities("m", Metric("accuracy", True), 0.9, (0.5, 0.75, 0.9), rows)
    shares = {"a": 0.625, "b": 0.9, "c": 0.2, "d": 0.05}
    assert found.tolerated(0.04) == pytest.approx(shares)
    assert found.allocation(0.04) == kp.allocation.Explicit(found.tolerated(0.04))
    assert found.sparsity(0.04) == pytest.approx((62.5 + 270 + 20 + 25) / 1000)
    assert found.tolerated(0.0) == pytest.approx({"a": 0.0, "b": 0.75, "c": 0.2, "d": 0.0})
    with pytest.raises(ValueError, match=r"drop must be 0 or more\. Received: -1"):
        found.tolerated(-1)
    assert "0.8800" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["values"] == [0.9, 0.9, 0.895]
    found.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    # As one uses it.
    found = kp.search.sensitivity(model, (X, Y), points=POINTS, metric="accuracy", verbose=0)
    copy = keras.models.clone_model(model)
    kp.prune(copy, found.sparsity(0.05), allocation=found.allocation(0.05))
    assert kp.report(copy).sparsity == pytest.approx(found.sparsity(0.05), abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "f1"}, r"must be one of the logs \['accuracy', 'loss'\]. Received: 'f1'"),
        ({"data": None}, r"the loss is measured on data\. Received: data=None"),
        ({"points": (0.5, 0.25)}, "points must increase"),
        ({"points": (50,)}, "for 50.* % write 0.5"),
        ({"data": (X * np.nan, Y)}, r"loss of .* must be finite\. Received: nan"),
        ({"pattern": kp.patterns.Block(5, 1)}, "does not divide"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        kp.search.sensitivity(model, **{"data": (X, Y), "verbose": 0, **options})
