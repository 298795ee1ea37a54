import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_prune.structured import Axis, Effect, analyse, plan, rule_for
from tests.subclassed import Residual


def data(n=16):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)


def net():
    inner_inputs = keras.Input((8,), name="inner_input")
    inner = keras.Model(inner_inputs, kl.Add()([inner_inputs, kl.Dense(8, name="deep")(inner_inputs)]), name="inner")
    inputs = keras.Input((6,), name="features")
    x = kl.Dense(8, activation="relu", name="first")(inputs)
    x = kl.Dropout(0.1, name="drop")(inner(inner(x)))
    x = kl.BatchNormalization(name="bn")(x)
    return keras.Model(inputs, kl.Dense(3, activation="softmax", name="head")(x), name="net")


def test_names_kinds_and_nesting_stay():
    model = net()
    smaller = plan(model, params=0.6).apply()
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    assert [type(layer) for layer in smaller.layers] == [type(layer) for layer in model.layers]
    assert smaller.name == "net"
    assert [tensor.name for tensor in smaller.inputs] == [tensor.name for tensor in model.inputs]
    inner = smaller.get_layer("inner")
    assert inner.get_layer("deep").units == smaller.get_layer("first").units < 8
    assert len([one for one in smaller.layers if one is inner]) == 1


def test_a_sequential_model_stays_one():
    inner = keras.Sequential([kl.Conv2D(6, 3), kl.ReLU()], name="block")
    model = keras.Sequential([keras.Input((6, 6, 2)), inner, kl.Flatten(), kl.Dense(2)], name="outer")
    smaller = plan(model, params=0.6).apply()
    assert type(smaller) is keras.Sequential
    assert type(smaller.layers[0]) is keras.Sequential
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    assert smaller.layers[0].layers[0].filters < 6


def test_inputs_and_outputs_keep_their_structure():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    x = kl.Add()([kl.Dense(6)(inputs["a"]), kl.Dense(6)(inputs["b"])])
    model = keras.Model(inputs, {"one": kl.Dense(2)(x), "two": [kl.Dense(1)(x)]})
    smaller = plan(model, params=0.6).apply()
    x = {"a": np.ones((2, 4), "float32"), "b": np.zeros((2, 4), "float32")}
    assert keras.tree.map_structure(lambda t: tuple(t.shape), smaller(x)) == {"one": (2, 2), "two": [(2, 1)]}


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam(0.01, amsgrad=True),
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.optimizers.RMSprop(0.01, centered=True, momentum=0.5),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01)),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_training_goes_on_with_the_moments_that_stay(optimizer):
    model = net()
    model.compile(
        type(optimizer).from_config(optimizer.get_config()), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(*data(), epochs=2, verbose=0)
    made = plan(model, params=0.6)
    smaller = made.apply()
    for old, new in zip(model.trainable_variables, smaller.trainable_variables, strict=True):
        kept = made.analysis.indices(old, made.keep)
        before = [v for v in model.optimizer.variables if old.path.replace("/", "_") in v.path and v.shape == old.shape]
        after = [
            v for v in smaller.optimizer.variables if new.path.replace("/", "_") in v.path and v.shape == new.shape
        ]
        assert len(before) == len(after) > 0
        for a, b in zip([old, *before], [new, *after], strict=True):
            value = a.numpy()
            for axis, stays in enumerate(kept):
                value = value if stays is None else np.take(value, stays, axis)
            np.testing.assert_array_equal(value, b.numpy())
    assert int(smaller.optimizer.iterations) == int(model.optimizer.iterations) == 2
    assert smaller.loss == "sparse_categorical_crossentropy"
    history = smaller.fit(*data(), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert "accuracy" in history


def test_state_that_has_not_its_weights_shape_starts_anew_with_a_warning():
    class Flat(keras.optimizers.SGD):
        """Keeps for each weight the squares of its gradients, in one row."""

        def build(self, variables):
            super().build(variables)
            self.squares = [self.add_variable((v.shape.num_elements(),), name="squares") for v in variables]

    model = net()
    model.compile(Flat(0.01), "sparse_categorical_crossentropy")
    model.fit(*data(), verbose=0)
    with pytest.warns(UserWarning, match="cannot be sliced with it, and starts anew"):
        smaller = plan(model, params=0.6).apply()
    smaller.fit(*data(), verbose=0)


def test_a_model_that_is_not_compiled_stays_so():
    assert not plan(net(), params=0.6).apply().compiled


def test_a_file_loads_without_the_library(tmp_path):
    inputs = keras.Input((6, 6, 3))
    x = kl.Conv2D(8, 3, activation="relu")(inputs)
    a, b = ops.split(x, 2, axis=-1)
    x = ops.concatenate([a[..., 1:], b], axis=-1)
    x = kl.Reshape((16, 7))(x)
    x = kl.MultiHeadAttention(2, 4)(x, x)
    model = keras.Model(inputs, kl.Dense(2)(ops.mean(x, axis=1)))
    smaller = plan(model, params=0.6).apply()
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    path = tmp_path / "smaller.keras"
    smaller.save(path)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np; "
        f"y = keras.models.load_model({str(path)!r})(np.load({str(tmp_path / 'x.npy')!r})); "
        f"np.save({str(tmp_path / 'y.npy')!r}, y); assert 'keras_prune' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), smaller(x), rtol=1e-5, atol=1e-6)


def test_frozen_layers_stay_frozen():
    model = net()
    model.get_layer("first").trainable = False
    model.get_layer("inner").trainable = False
    smaller = plan(model, params=0.6).apply()
    assert [v.path for v in smaller.trainable_variables] == [v.path for v in model.trainable_variables]
    assert not smaller.get_layer("inner").trainable


def test_mixed_precision_stays():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6,))
        model = keras.Model(inputs, kl.Dense(2, dtype="float32")(kl.Dense(8, name="half")(inputs)))
    finally:
        keras.config.set_dtype_policy("float32")
    smaller = plan(model, params=0.6).apply()
    assert smaller.get_layer("half").compute_dtype == "float16"
    assert smaller.get_layer("half").kernel.dtype == "float32"


def test_a_lambda_keeps_its_function():
    scale = 3.0
    inputs = keras.Input((6,))
    x = kl.Dense(2)(kl.Dense(8)(inputs))
    model = keras.Model(inputs, kl.Lambda(lambda x: scale * x, output_shape=(2,))(x))
    smaller = plan(model, params=0.6).apply()
    assert smaller(np.ones((1, 6), "float32")).shape == (1, 2)


def test_a_layer_that_cannot_be_made_again_is_named():
    class Stubborn(kl.Layer):
        def __init__(self, function):
            super().__init__(name="stubborn")
            self.apply = function

        def call(self, x):
            return self.apply(x)

    inputs = keras.Input((6,))
    model = keras.Model(inputs, Stubborn(ops.relu)(kl.Dense(2)(kl.Dense(8)(inputs))))
    with pytest.raises(ValueError, match=r"Stubborn 'stubborn' cannot be rebuilt.*get_config"):
        plan(model, params=0.6).apply()


def test_a_rule_that_gives_other_shapes_than_the_layer_is_found():
    class Plain(kl.Dense):
        pass

    @rule_for(Plain)
    def wrong(call):
        units = call.units(call.layer.kernel, 1)
        call.bind(call.layer.bias, 0, units)
        call.bind(call.layer.kernel, 0, call.inputs[0][-1])
        return Effect([call.inputs[0].replaced(-1, Axis(units))])

    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(2)(Plain(8, name="plain")(inputs)))
    with pytest.raises(ValueError, match=r"has shape \(6, 8\), of which \(6, \d\) stays.*\(6, 8\): its rule is wrong"):
        plan(model, params=0.6).apply()


def test_the_source_is_left_as_it_was():
    model = net()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*data(), verbose=0)
    x, _ = data()
    before = [np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]]
    outputs, nodes = model.predict(x, verbose=0), [len(layer._inbound_nodes) for layer in model.layers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(model, params=0.6).apply()
    for value, variable in zip(before, [*model.variables, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    np.testing.assert_array_equal(model.predict(x, verbose=0), outputs)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert analyse(model).size == 8


def test_a_mixed_model_is_compiled_alike_after_the_global_policy_was_reset():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = net()
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(*data(), verbose=0)
    finally:
        keras.config.set_dtype_policy(before)
    smaller = plan(model, params=0.6).apply()
    assert type(smaller.optimizer) is type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    assert float(smaller.optimizer.dynamic_scale) == float(model.optimizer.dynamic_scale)
    assert smaller.get_layer("first").compute_dtype == "float16"


class Wide(keras.Model):
    """A functional model of a class that is not made from inputs and outputs."""

    def __init__(self, width, **kwargs):
        inputs = keras.Input((6,))
        super().__init__(inputs=inputs, outputs=kl.Dense(3)(kl.Dense(width, name="a")(inputs)), **kwargs)


class Inherits(Wide):
    pass


class Trained(keras.Model):
    def train_step(self, data):
        return {"own": 1.0}


@pytest.mark.parametrize("kind", [Wide, Inherits])
def test_a_class_that_makes_its_own_graph_gives_a_plain_functional_model(kind):
    smaller = plan(kind(16), params=0.6).apply()
    assert smaller.get_layer("a").units < 16
    assert not isinstance(smaller, Wide)


def test_a_class_that_is_made_from_inputs_and_outputs_is_kept():
    inputs = keras.Input((6,))
    assert type(plan(Trained(inputs, kl.Dense(3)(kl.Dense(16)(inputs))), params=0.6).apply()) is Trained


class Scaled(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(8, name="dense")
        self.head = kl.Dense(2, name="head")
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        return self.head(self.dense(x) * self.factor)


def test_a_subclassed_model_comes_back_functional(check_removal):
    model = Residual()
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    model(x)
    _, smaller = check_removal(model, x)
    assert [layer.name for layer in smaller.layers if layer.weights] == ["first", "second", "head"]


def test_weights_outside_of_layers_are_refused():
    model = Scaled()
    model(np.zeros((1, 4), "float32"))
    made = plan(model, params=0.6)
    with pytest.raises(ValueError, match=r"Scaled 'scaled' has weights that no layer .* holds: \['scaled/factor'\]"):
        made.apply()
