"""The stage that runs rewrites, and the flat copy that they work on."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.arrays.distance import relative_difference
from keras_prune.keras_seam import calls_in
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import Change
from tflite_export.model.signature import signature_of
from tflite_export.rewrites.graph import flat_copy, joined, refusal_of
from tflite_export.rewrites.heads import HeadsPass
from tflite_export.rewrites.mirror import MirrorPass
from tflite_export.rewrites.pooling import PoolingPass
from tflite_export.rewrites.rewrite import Refusal, Rewritten, rewrite_model


@dataclass(frozen=True)
class Scaled:
    """A pass that multiplies the last bias by a factor: right for 1 only."""

    factor: float
    name: str = "scaled"

    def apply(self, model):
        copy = flat_copy(model)
        copy.layers[-1].bias.assign(copy.layers[-1].bias * self.factor)
        return Rewritten(copy, (Change(self.name, copy.layers[-1].path, "bias scaled"),))


@dataclass(frozen=True)
class Refuses:
    name: str = "refuses"
    reason: str = "never"

    def apply(self, model):
        return Rewritten(model, refusals=(Refusal(self.name, model.name, self.reason),))


def small():
    model = keras.Sequential([keras.Input((4,), name="x"), kl.Dense(3, bias_initializer="ones")])
    return model


def test_passes_run_in_order_and_what_they_say_is_kept():
    model = small()
    passes = [Refuses(), Scaled(1.0), Refuses("again"), Refuses("third", "not today")]
    result = rewrite_model(model, passes)
    assert result.model is not model
    assert [change.what for change in result.changes] == ["bias scaled"]
    # The same reason for the same place is said once, by the first.
    assert [(refusal.rewrite, refusal.reason) for refusal in result.refusals] == [
        ("refuses", "never"),
        ("third", "not today"),
    ]


def test_a_model_without_a_known_graph_is_refused_once_and_stays():
    class Own(keras.Model):
        def call(self, x):
            return keras.ops.mean(x, axis=(1, 2))

    own = Own(name="own")
    own.build((None, 4, 4, 3))
    result = rewrite_model(own, [PoolingPass(), HeadsPass(), MirrorPass()])
    assert result.model is own
    (refusal,) = result.refusals
    assert refusal.place == "own"
    assert refusal.reason.startswith("a subclassed model, whose graph is in the code of its call()")


def test_a_pass_that_changes_an_output_is_a_mistake():
    with pytest.raises(ExportError, match="rewrite 'scaled'") as error:
        rewrite_model(small(), [Scaled(1.001)], [np.zeros((2, 4), "float32")])
    assert error.value.received == "0.001"
    assert rewrite_model(small(), [Scaled(1.001)], [np.zeros((2, 4), "float32")], tolerance=0.01).changes


def test_nothing_changed_gives_the_model_itself():
    model = small()
    assert rewrite_model(model, [Refuses()]).model is model
    assert rewrite_model(model, []).model is model


def test_rounding_that_a_model_blows_up_is_told_from_an_error():
    """Of 1000 ones and their sum less 1000, float32 leaves nothing but rounding."""

    @dataclass(frozen=True)
    class Reorders:
        name: str = "reorders"

        def apply(self, model):
            copy = flat_copy(model)
            dense = copy.layers[1]
            order = np.random.default_rng(0).permutation(512)
            dense.kernel.assign(dense.kernel.numpy()[order])
            tensor = keras.ops.take(copy.inputs[0], order, axis=1)
            return Rewritten(keras.Model(copy.inputs[0], dense(tensor)), (Change(self.name, dense.path, "reordered"),))

    x = np.random.default_rng(1).normal(size=(3, 512)).astype("float32")
    kernel = np.random.default_rng(2).normal(size=(512, 1))
    inputs = keras.Input((512,), name="x")
    dense = kl.Dense(1)
    model = keras.Model(inputs, dense(inputs))
    dense.kernel.assign(kernel)
    dense.bias.assign(-(x.astype("float64")[:1] @ kernel)[0])
    after = Reorders().apply(model).model
    one = x[:1]
    assert relative_difference(np.asarray(model(one)), np.asarray(after(one))) > 1e-3
    with pytest.raises(ExportError):
        rewrite_model(model, [Scaled(1.001)], [one])
    policy = model.layers[1].dtype_policy
    assert rewrite_model(model, [Reorders()], [one], tolerance=1e-5).changes
    assert model.layers[1].dtype_policy is policy


def test_a_model_in_mixed_precision_is_compared_in_float32():
    from tflite_export.rewrites.heads import HeadsPass
    from tflite_export.rewrites.mirror import MirrorPass

    mixed = {"dtype": "mixed_float16"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            kl.Conv2D(8, 3, strides=2, padding="same", **mixed),
            kl.Conv2D(4, 1, **mixed),
            kl.GlobalAveragePooling2D(keepdims=True, **mixed),
            kl.Conv2D(4, 1, **mixed),
            kl.Flatten(),
        ]
    )
    assert {change.rewrite for change in rewrite_model(model, [HeadsPass(), MirrorPass()]).changes} == {
        "heads",
        "mirror",
    }
    assert model.layers[0].compute_dtype == "float16"


def test_where_float64_cannot_be_had_the_error_in_float32_stands():
    class Picky(kl.Layer):
        def call(self, x):
            return keras.ops.add(x, keras.ops.ones((4,), "float32")) if x.dtype == "float32" else 1 / 0

    model = keras.Sequential([keras.Input((4,), name="x"), Picky(), kl.Dense(3, bias_initializer="ones")])
    with pytest.raises(ExportError, match="in float32, and in float64 ") as error:
        rewrite_model(model, [Scaled(1.001)])
    assert error.value.__cause__ is not None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.2, -4.0], 0.05),
        ([0.0, 0.0], [0.0, 0.25], 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0, 1.0], [np.nan, 1.0], np.inf),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], np.inf),
        ([1, 2], [1.0, 2.0], np.inf),
    ],
)
def test_difference(before, after, expected):
    assert relative_difference(np.array(after), np.array(before)) == pytest.approx(expected)


def nested():
    """A model of dictionaries, with a model inside that holds a model and is called twice."""
    core = keras.Sequential([keras.Input((4,)), kl.Dense(4, name="dense"), kl.ReLU()], name="core")
    inner_in = keras.Input((4,))
    inner = keras.Model(inner_in, kl.Add()([core(inner_in), inner_in]), name="inner")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    dense = kl.Dense(2, name="dense")
    return keras.Model({"a": a, "b": b}, {"sum": dense(inner(a)), "more": inner(b), "same": a})


def test_flat_copy_unfolds_and_answers_the_same():
    model = nested()
    flat = flat_copy(model)
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=(3, 4)).astype("float32") for name in "ab"}
    for name, value in model(feed).items():
        np.testing.assert_array_equal(flat(feed)[name], value)
    assert signature_of(flat) == signature_of(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert (
        sorted(type(node.operation).__name__ for node in calls_in(flat)) == ["Add"] * 2 + ["Dense"] * 3 + ["ReLU"] * 2
    )
    assert len({layer.name for layer in flat.layers}) == len(flat.layers)
    shared = [node for node in calls_in(flat) if node.operation.name == "dense"]
    assert len({id(node.operation) for node in shared}) == 1
    ids = {id(variable) for variable in model.variables}
    assert not any(id(variable) in ids for variable in flat.variables)


def test_flat_copy_leaves_the_model_as_it_was():
    model = nested()
    before = [len(op._inbound_nodes) for op in model.operations], [np.array(v) for v in model.get_weights()]
    flat = flat_copy(model)
    for variable in flat.variables:
        variable.assign(variable * 0)
    assert [len(op._inbound_nodes) for op in model.operations] == before[0]
    for was, now in zip(before[1], model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_flat_copy_brings_the_statistics_of_a_normalization():
    data = np.random.default_rng(0).normal(3, 2, (50, 4)).astype("float32")
    layer = kl.Normalization()
    layer.adapt(data)
    model = keras.Sequential([keras.Input((4,)), layer])
    np.testing.assert_allclose(flat_copy(model)(data), model(data), rtol=1e-6)


def test_a_model_inside_that_is_called_with_more_than_tensors_stays_whole():
    inner = keras.Sequential([keras.Input((4,)), kl.Dropout(0.5)])
    x = keras.Input((4,))
    assert [type(node.operation) for node in calls_in(flat_copy(keras.Model(x, inner(x, training=True))))] == [
        keras.Sequential
    ]
    assert [type(node.operation) for node in calls_in(flat_copy(keras.Model(x, inner(x, training=False))))] == [
        kl.Dropout
    ]


def test_refusals_have_a_reason():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = kl.Dense(2)

        def call(self, x):
            return self.dense(x)

    own = Own()
    own(np.zeros((1, 4), "float32"))
    assert "subclassed" in refusal_of(own)
    assert "keras.Input" in refusal_of(keras.Sequential([kl.Dense(2)]))
    assert refusal_of(small()) is None
    assert refusal_of(nested()) is None


def test_joined_groups_by_tensors():
    x = keras.Input((4, 4, 3))
    a = kl.ReLU(name="a")(x)
    b = kl.ReLU(name="b")(a)
    c = kl.GlobalAveragePooling2D(name="c")(b)
    d = kl.Dense(2, name="d")(c)
    e = kl.ReLU(name="e")(x)
    nodes = calls_in(keras.Model(x, [d, e]))
    groups = joined(nodes, lambda tensor: len(tensor.shape) == 4)
    names = sorted(sorted(node.operation.name for node in group) for group in groups)
    assert names == [["a", "b", "c"], ["d"], ["e"]]
