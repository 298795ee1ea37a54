import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from keras import ops
from sklearn.datasets import load_digits

from keras_prune.structured import count, plan
from keras_prune.structured.planning.distill import Distillation
from keras_prune.structured.planning.rounds import iterate


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    return (x[:600], y[:600]), (x[600:900], y[600:900])


def mlp(loss="sparse_categorical_crossentropy", last="softmax", regularizer=None):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            kl.Dense(24, activation="relu", kernel_regularizer=regularizer),
            kl.Dense(16, activation="relu"),
            kl.Dense(10, activation=last),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


@pytest.fixture
def trained(digits):
    model = mlp()
    model.fit(*digits[0], epochs=8, verbose=0)
    return model


def options(digits, **more):
    (x, y), held = digits
    return {"x": x, "y": y, "epochs": 2, "validation_data": held, **more}


def values(model):
    return [np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]]


def test_rounds_take_the_same_share_of_what_is_left_and_training_brings_the_metric_back(trained, digits):
    before = values(trained)
    flow = iterate(trained, rounds=3, params=0.3, retrain=options(digits))
    for a, b in zip(before, values(trained), strict=True):
        np.testing.assert_array_equal(a, b)
    assert flow.metric.name == "accuracy"
    assert flow.metric.rises
    assert flow.baseline == pytest.approx(trained.evaluate(*digits[1], verbose=0)[1])
    assert len(flow.rounds) == 3
    assert flow.dense.params == trained.count_params()
    sizes = [flow.dense.params, *(r.count.params for r in flow.rounds)]
    for k, r in enumerate(flow.rounds, 1):
        assert r.target == pytest.approx(0.3 ** (k / 3))
        assert r.count == count(r.model).total
        assert 0.8 * r.target < r.count.params / flow.dense.params <= r.target
        assert sizes[k] < sizes[k - 1]
        assert r.before == (flow.rounds[k - 2].retrained if k > 1 else flow.baseline)
        assert r.retrained == pytest.approx(r.model.evaluate(*digits[1], verbose=0)[1])
    assert flow.model is flow.rounds[-1].model
    assert flow.reason == "all 3 rounds done"
    assert flow.rounds[-1].retrained > flow.rounds[-1].removed
    assert flow.rounds[-1].retrained > flow.baseline - 0.1


def test_the_first_round_is_the_plan_and_training_goes_on_from_it(trained, digits):
    seen = []
    flow = iterate(trained, rounds=1, flops=0.5, retrain=seen.append, evaluate=lambda m: m.count_params())
    wanted = plan(trained, flops=0.5)
    assert seen == [flow.model]
    assert flow.rounds[0].count == wanted.after
    for a, b in zip(wanted.apply().weights, flow.model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert int(flow.model.optimizer.iterations) == int(trained.optimizer.iterations) > 0


def test_it_stops_when_the_metric_falls_below_the_tolerance_and_gives_the_last_good_model(trained, digits):
    scores = iter([0.9, 0.7, 0.88, 0.6, 0.85, 0.5, 0.8])
    flow = iterate(
        trained, rounds=4, params=0.2, retrain=lambda m: None, evaluate=lambda m: next(scores), tolerance=0.03
    )
    assert [(r.before, r.removed, r.retrained) for r in flow.rounds] == [(0.9, 0.7, 0.88), (0.88, 0.6, 0.85)]
    assert flow.model is flow.rounds[0].model
    assert flow.reason.startswith("<lambda> is 0.8500 after round 2, 0.0500 worse than the dense model's 0.9000")
    assert flow.best(0.03) is flow.rounds[0]
    assert flow.best(0.05) is flow.rounds[1]
    with pytest.raises(ValueError, match=r"no round is within 0.01 .*0.9000\. The nearest is 0.0200 worse"):
        flow.best()


def test_a_metric_that_is_not_a_number_stops_it(trained):
    scores = iter([0.9, 0.9, float("nan")])
    flow = iterate(
        trained, rounds=2, params=0.5, retrain=lambda m: None, evaluate=lambda m: next(scores), tolerance=0.1
    )
    assert flow.model is trained
    assert "nan" in flow.reason


def test_a_metric_that_falls_is_better_when_it_is_smaller(trained, digits):
    flow = iterate(trained, rounds=1, params=0.8, retrain=options(digits), metric="loss", tolerance=10.0)
    assert not flow.metric.rises
    assert flow.baseline == pytest.approx(trained.evaluate(*digits[1], verbose=0)[0])
    assert flow.metric.loss_from(1.0, 3.0) == 2.0


def test_what_units_overshoot_is_not_removed_twice():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Dense(1)])
    flow = iterate(model, rounds=6, params=0.5, retrain=lambda m: None, evaluate=lambda m: 1.0)
    assert [r.count.params for r in flow.rounds] == [13, 13, 13, 7, 7, 7]
    assert len({id(r.model) for r in flow.rounds}) == 6


def test_limits_hold_in_every_round():
    layers = [kl.Dense(8, name="a"), kl.Dense(8, name="b"), kl.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    never = {"retrain": lambda m: None, "evaluate": lambda m: 1.0}
    flow = iterate(model, rounds=3, params=0.5, frozen=iter(["a"]), **never)
    assert [r.model.layers[0].units for r in flow.rounds] == [8, 8, 8]
    with pytest.raises(ValueError, match=r"params=0.3 cannot be met: even the smallest model keeps 0.\d+"):
        iterate(model, rounds=2, params=0.3, max_share=0.25, **never)
    assert iterate(model, rounds=5, params=0.3, max_share=0.25, **never).model.count_params() == 36
    wide = keras.Sequential([keras.Input((4,)), kl.Dense(40), kl.Dense(1)])
    flow = iterate(wide, rounds=2, params=0.5, target="ethos-u55", **never)
    assert [r.model.layers[0].units for r in flow.rounds] == [24, 16]
    with pytest.raises(ValueError, match=r"params=0.1 cannot be met: even the smallest model keeps 0.2\d+"):
        iterate(wide, rounds=2, params=0.1, target="ethos-u55", **never)


def test_it_prints_and_is_json(trained, digits):
    flow = iterate(trained, rounds=2, params=0.5, retrain=options(digits, epochs=1))
    text = str(flow)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["accuracy", "by", "round"]
    assert ["dense", f"{flow.dense.params:,}", f"{flow.dense.macs:,}", f"{flow.baseline:.4f}"] in lines
    last = flow.rounds[1]
    assert any(line[:3] == ["2", "50.0%", str(last.count.params)] for line in lines)
    assert text.endswith("ended: all 2 rounds done")
    again = json.loads(json.dumps(flow.to_dict()))
    assert again["rounds"][1]["retrained"] == last.retrained
    assert again["dense"]["params"] == flow.dense.params
    with pytest.raises(dataclasses.FrozenInstanceError):
        flow.reason = ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"params": None}, r"one target.*params=None, flops=None"),
        ({"flops": 0.5}, r"one target.*params=0.5, flops=0.5"),
        ({"params": 1.5}, r"iterate: params must be a fraction in \[0, 1\)\. Received: 1.5"),
        ({"params": 0.0}, r"above 0\. Received: 0.0"),
        ({"rounds": 0}, r"rounds must be a whole number from 1\. Received: 0"),
        ({"tolerance": -1}, r"tolerance must be 0 or more\. Received: -1"),
        ({"mode": "up"}, r"mode must be one of .*Received: 'up'"),
        ({"metric": "recall"}, r"one of the logs \['accuracy', 'loss'\]\. Received: 'recall'"),
        ({"evaluate": None, "retrain": {"x": 1}}, r"nothing to measure the metric with"),
        ({"params": 0.001}, r"params=0.001 cannot be met: even the smallest model keeps"),
        ({"retrain": print, "distill": Distillation()}, r"retrain must be options of fit.*Received a function"),
    ],
)
def test_bad_input(digits, wrong, message):
    given = {"rounds": 3, "params": 0.5, "retrain": options(digits), **wrong}
    with pytest.raises(ValueError, match=message):
        iterate(mlp(), **given)


def test_what_is_no_way_to_train(digits):
    with pytest.raises(TypeError, match=r"a function, or options of fit\. Received: 3"):
        iterate(mlp(), params=0.5, retrain=3, evaluate=digits[1])


def test_a_model_that_is_not_compiled_is_refused(digits):
    model = keras.Sequential([keras.Input((64,)), kl.Dense(8), kl.Dense(10)])
    with pytest.raises(ValueError, match=r"'.*' must be compiled, to be trained by fit"):
        iterate(model, params=0.5, retrain=options(digits))
    with pytest.raises(ValueError, match=r"must be compiled"):
        iterate(model, params=0.5, retrain=lambda m: None, evaluate=digits[1])


# -- distillation -----------------------------------------------------------------------------------------------------


def test_the_flow_learns_from_the_dense_model(trained, digits):
    before = values(trained)
    flow = iterate(
        trained, rounds=2, params=0.3, retrain=options(digits, epochs=4), distill=Distillation(temperature=2.0)
    )
    for a, b in zip(before, values(trained), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(layer.trainable for layer in trained._flatten_layers())
    assert type(flow.model) is keras.Sequential
    assert flow.model.loss == "sparse_categorical_crossentropy"
    assert flow.model.count_params() == flow.rounds[-1].count.params
    assert flow.rounds[-1].retrained > flow.baseline - 0.1
    assert int(flow.model.optimizer.iterations) == int(trained.optimizer.iterations) + 2 * 4 * 19
    flow.model.fit(*digits[0], verbose=0)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("from_logits", [False, True])
def test_the_loss_is_the_papers(digits, from_logits):
    (x, y), _ = digits
    x, y = x[:32], y[:32]
    last = None if from_logits else "softmax"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    teacher, student = mlp(loss, last), mlp(loss, last, regularizer=keras.regularizers.L2(0.1))
    student.optimizer.learning_rate = 0.0
    found = Distillation(teacher, temperature=4.0, alpha=0.25).fit(student, x=x, y=y, batch_size=32, verbose=0).history

    def logits(model):
        hidden = model.layers[-1]
        inner = keras.Model(model.inputs, hidden.input)(x)
        return np.asarray(ops.matmul(inner, hidden.kernel) + hidden.bias, np.float64)

    z, t = logits(student), logits(teacher)
    hard = -np.log(softmax(z)[np.arange(32), y]).mean()
    p, q = softmax(t / 4.0), softmax(z / 4.0)
    soft = 16.0 * (p * np.log(p / q)).sum(-1).mean()
    l2 = 0.1 * np.square(student.layers[0].kernel.numpy()).sum()
    assert found["student_loss"][0] == pytest.approx(hard, rel=1e-4)
    assert found["distillation_loss"][0] == pytest.approx(soft, rel=1e-3)
    assert found["loss"][0] == pytest.approx(0.25 * hard + 0.75 * soft + l2, rel=1e-4)
    assert "accuracy" in found


@pytest.mark.parametrize("from_logits", [False, True])
def test_two_classes_by_one_number(from_logits):
    def made(seed):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((3,)), kl.Dense(1, activation=None if from_logits else "sigmoid")])
        model.compile(keras.optimizers.SGD(0.0), keras.losses.BinaryCrossentropy(from_logits=from_logits))
        return model

    teacher, student = made(1), made(2)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    history = Distillation(teacher, temperature=2.0, alpha=0.0).fit(student, x=x, y=np.ones((8, 1)), verbose=0).history
    z, t = (x.astype("float64") @ m.layers[0].kernel.numpy() for m in (student, teacher))
    p, q = (1 / (1 + np.exp(-v / 2.0)) for v in (t, z))
    wanted = 4.0 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert history["loss"][0] == pytest.approx(wanted, rel=1e-3)


def test_numbers_are_compared_by_their_squared_difference():
    teacher, student = (keras.Sequential([keras.Input((3,)), kl.Dense(2)]) for _ in range(2))
    student.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.ones((4, 3), "float32")
    history = Distillation(teacher, alpha=0.0).fit(student, x=x, y=np.ones((4, 2)), verbose=0).history
    assert history["loss"][0] == pytest.approx(float(ops.mean(ops.square(teacher(x) - student(x)))), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0}, r"temperature must be above 0\. Received: 0"),
        ({"alpha": 1.5}, r"alpha must be a fraction in \[0, 1\)\. Received: 1.5"),
        ({"outputs": "classes"}, r"outputs must be one of .*Received: 'classes'"),
    ],
)
def test_bad_distillation(wrong, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**wrong)


def test_what_the_distiller_cannot_do_is_refused(digits):
    (x, y), _ = digits
    student = mlp()
    with pytest.raises(TypeError, match=r"teacher must be a keras.Model\. Received: 3"):
        Distillation(3)
    with pytest.raises(ValueError, match=r"fit needs a teacher"):
        Distillation().fit(student, x=x, y=y)
    with pytest.raises(ValueError, match=r"no weights of samples.*Received: \['sample_weight'\]"):
        Distillation(mlp()).fit(student, x=x, y=y, sample_weight=np.ones(len(x)))
    plain = keras.Sequential([keras.Input((64,)), kl.Dense(10)])
    with pytest.raises(ValueError, match=r"must be compiled with a loss"):
        Distillation(mlp()).fit(plain, x=x, y=y)


def test_what_the_distiller_would_ignore_is_refused_too(digits):
    """Weights in a data set, metrics by name of output, a class that trains in its own way."""
    (x, y), _ = digits
    student = mlp()
    weighted = tf.data.Dataset.from_tensor_slices((x[:32], y[:32], np.ones(32, "float32"))).batch(16)
    assert Distillation(mlp()).refusal(student, x=weighted) == ""
    with pytest.raises(ValueError, match=r"no weights of samples.*Received: samples with weights in the data set"):
        Distillation(mlp()).fit(student, x=weighted, verbose=0)
    student.compile("sgd", student.loss, metrics={student.layers[-1].name: ["accuracy"]})
    with pytest.raises(ValueError, match=r"metrics must be a list.*Received: dict"):
        Distillation(mlp()).fit(student, x=x, y=y)

    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 2.0 * super().compute_loss(x, y, y_pred, sample_weight, training)

    own = Own(student.inputs, student.outputs)
    own.compile("sgd", student.loss)
    assert "Received: Own, which has its own compute_loss" in Distillation(mlp()).refusal(own, x=x, y=y)
    with pytest.raises(ValueError, match=r"as Keras trains a model.*its own compute_loss\. Train it without"):
        Distillation(mlp()).fit(own, x=x, y=y)
