"""Which outputs are scores of classes: agreement in the largest value is said of these only."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from tflite_export.model.classes import Compiled, are_distributions
from tflite_export.model.inputs import Inputs
from tflite_export.model.reference import Reference
from tflite_export.source.loading import open_source

X = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")


def classes_of(model, data=X):
    source = open_source(model)
    signature = source.signature(data)
    return source.answer(signature, source.inputs(signature, data, 20)).has_classes()


def head(activation=None, units=4):
    return keras.Sequential([keras.Input((6,)), layers.Dense(units, activation=activation)])


@pytest.mark.parametrize(
    ("activation", "loss", "metrics", "expected"),
    [
        ("softmax", None, None, True),
        ("log_softmax", None, None, True),
        (None, None, None, False),  # landmarks or logits: nothing says so
        ("sigmoid", None, None, False),  # several labels at once
        (None, "sparse_categorical_crossentropy", None, True),
        (None, keras.losses.CategoricalCrossentropy(from_logits=True), None, True),
        (None, keras.losses.CategoricalFocalCrossentropy(), None, True),
        (None, keras.losses.sparse_categorical_crossentropy, None, True),
        (None, "mse", None, False),
        ("softmax", "mse", None, False),  # shares of a whole, say
        (None, "mse", ["accuracy", "sparse_categorical_accuracy"], False),
        (None, keras.losses.Huber(), None, False),
        ("sigmoid", "binary_crossentropy", None, False),
        (None, lambda y, p: keras.ops.mean(y - p), ["sparse_categorical_accuracy"], True),
        (None, lambda y, p: keras.ops.mean(y - p), ["mae"], False),
        ("softmax", lambda y, p: keras.ops.mean(y - p), ["mae"], True),
        ("softmax", "kl_divergence", None, True),
    ],
)
def test_the_loss_says_so_or_each_row_is_a_distribution(activation, loss, metrics, expected, tmp_path):
    model = head(activation)
    if loss is not None:
        model.compile(loss=loss, metrics=metrics)
    assert classes_of(model) == [expected]
    if loss is None or isinstance(loss, (str, keras.Loss)):  # what a file keeps
        for name in ("model.keras", "model.h5"):
            model.save(tmp_path / name)
            assert classes_of(tmp_path / name) == [expected]


def test_one_score_or_a_map_holds_no_classes():
    assert classes_of(head("softmax", units=1)) == [False]
    picture = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 1, activation="softmax")])
    assert classes_of(picture, np.ones((2, 4, 4, 3), "f4")) == [False]


@pytest.mark.parametrize("kind", ["list", "dict", "by layer"])
def test_each_of_several_outputs_has_a_loss_of_its_own(kind):
    x = keras.Input((6,))
    label, box = layers.Dense(3, name="label")(x), layers.Dense(4, name="box")(x)
    model = keras.Model(x, {"z": label, "a": box} if kind == "dict" else [label, box])
    losses = {"label": "sparse_categorical_crossentropy", "box": "mse"}
    model.compile(
        loss={
            "list": list(losses.values()),
            "dict": {"z": losses["label"], "a": losses["box"]},
            "by layer": losses,
        }[kind]
    )
    assert classes_of(model) == ([False, True] if kind == "dict" else [True, False])


def test_the_configuration_of_a_loss_is_read_and_nothing_made_of_it():
    config = {"class_name": "SparseCategoricalCrossentropy", "module": "none", "config": {"name": "x"}}
    assert Compiled(json.loads(json.dumps(config))).classes(["y"]) == (True,)
    function = {"class_name": "function", "config": "mean_squared_error"}
    assert Compiled([config, function]).classes(["a", "b"]) == (True, False)
    assert Compiled({"b": function}).classes(["a", "b"]) == (None, False)
    assert Compiled(metrics=["categorical_accuracy"]).classes(["y"]) == (None,)
    assert Compiled.of(object()).classes(["y"]) == (None,)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[-1.6094379, -0.22314355]], True),
        ([[0.2, 0.9]], False),
        ([[1.2, -0.2]], False),
        ([[np.nan, 1.0]], False),
        ([[np.inf, 1.0]], False),
        ([[1.0]], False),
    ],
)
def test_a_distribution(rows, expected):
    assert are_distributions(np.array(rows, np.float32)) is expected
    reference = Reference(Inputs((X,), False), (np.array(rows, np.float32),), ("x",), ("y",))
    assert reference.has_classes() == [expected]
