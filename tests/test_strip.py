"""strip: a plain model, the same outputs, zeros that are +0.0, and refusals instead of halves."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_prune.layers import (
    MaskedLayer,
    Prunable,
    PrunableConv2D,
    PrunableDense,
    PrunableEmbedding,
    PrunableLSTM,
    PrunableMultiHeadAttention,
)
from keras_prune.masks.bound import Mask
from keras_prune.scope import Scope
from keras_prune.strip import strip


def sequential(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def shared_and_nested():
    dense = PrunableDense(4, name="shared")
    inner = sequential((4,), dense, Prunable(kl.Dense(4, name="wrapped")))
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    hidden = kl.Dropout(0.5)(inner(dense(first)) + ops.tanh(dense(second)))
    return keras.Model({"a": first, "b": second}, [Prunable(kl.Dense(2, name="out"))(hidden), hidden])


def attention():
    inputs = keras.Input((5, 4))
    hidden = PrunableMultiHeadAttention(2, 3)(inputs, inputs)
    return keras.Model(inputs, Prunable(kl.GroupQueryAttention(2, 2, 1))(hidden, inputs))


MODELS = {
    "dense": lambda: sequential((3,), PrunableDense(4, activation="tanh"), Prunable(kl.Dense(2))),
    "conv": lambda: sequential(
        (8, 8, 2), PrunableConv2D(4, 3), kl.BatchNormalization(), Prunable(kl.SeparableConv2D(3, 3)), kl.Flatten()
    ),
    "embedding": lambda: sequential((5,), PrunableEmbedding(10, 4, mask_zero=True), PrunableLSTM(3)),
    "time distributed": lambda: sequential((5, 3), kl.TimeDistributed(Prunable(kl.Dense(3)))),
    "bidirectional": lambda: sequential(
        (5, 3), kl.Bidirectional(PrunableLSTM(3, return_sequences=True)), Prunable(kl.Bidirectional(kl.GRU(2)))
    ),
    "stacked cells": lambda: sequential((5, 3), Prunable(kl.RNN([kl.LSTMCell(3), kl.GRUCell(2)]))),
    "wrapped model": lambda: sequential((3,), Prunable(keras.Sequential([kl.Dense(3), kl.Dense(2)]))),
    "same names": lambda: sequential((3,), Prunable(kl.Dense(3, name="a")), Prunable(kl.Dense(2, name="a"))),
    "lambda": lambda: sequential((3,), PrunableDense(3), kl.Lambda(lambda x: ops.relu(x) * np.pi)),
    "shared and nested": shared_and_nested,
    "attention": attention,
}


def inputs_of(model, name):
    rng = np.random.default_rng(4)

    def value(tensor):
        shape = (4, *tensor.shape[1:])
        return rng.integers(0, 10, shape) if name == "embedding" else rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(value, model.inputs[0] if isinstance(model, keras.Sequential) else model.input)


def mask_at_random(model):
    rng = np.random.default_rng(5)
    for layer in model._flatten_layers():
        if isinstance(layer, MaskedLayer):
            layer.set_masks([rng.random(kernel.shape) < 0.5 for kernel, _ in layer.mask_pairs])


def bind(model, sparsity=0.5):
    """What a callback does: constraints on every kernel."""
    rng = np.random.default_rng(6)
    masks = []
    for target in Scope().survey(model).targets:
        variable = keras.Variable(np.ones(target.variable.shape, bool), trainable=False)
        masks.append(Mask(target, variable))
        masks[-1].write(rng.random(target.variable.shape) >= sparsity)
    return masks


def assert_plain(model):
    assert "keras_prune" not in json.dumps(keras.saving.serialize_keras_object(model))
    for layer in model._flatten_layers():
        assert not type(layer).__module__.startswith("keras_prune")
    for weight in model.weights:
        assert not type(weight.constraint).__module__.startswith("keras_prune")
        assert weight.dtype != "bool"


def assert_equal_outputs(one, other, x):
    for a, b in zip(keras.tree.flatten(one(x)), keras.tree.flatten(other(x)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_strip_is_plain_and_computes_the_same(name):
    model = MODELS[name]()
    mask_at_random(model)
    x = inputs_of(model, name)
    before = [weight.numpy() for weight in model.weights]
    plain = strip(model)
    assert_plain(plain)
    assert_equal_outputs(model, plain, x)
    assert plain.name == model.name
    assert not {id(v) for v in model.variables} & {id(v) for v in plain.variables}
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    targets = Scope().survey(plain).targets
    zeros = sum(int(np.count_nonzero(target.variable.numpy() == 0)) for target in targets)
    off = sum(int(mask.numpy().size - mask.numpy().sum()) for mask in model.weights if mask.dtype == "bool")
    assert zeros == off > 0


def test_plain_layers_keep_their_class_and_arguments():
    args = {"units": 4, "activation": "tanh", "kernel_regularizer": "l2", "kernel_constraint": "non_neg"}
    model = sequential((3,), PrunableDense(**args, straight_through=True), Prunable(kl.Dense(**args, name="inner")))
    plain = strip(model)
    assert [type(layer) for layer in plain.layers] == [kl.Dense, kl.Dense]
    assert [layer.name for layer in plain.layers] == ["dense", "inner"]
    for layer, wanted in zip(
        plain.layers, [kl.Dense(**args, name="dense"), kl.Dense(**args, name="inner")], strict=True
    ):
        assert layer.get_config() == wanted.get_config()


def test_names_that_would_meet_are_kept_apart():
    model = sequential((3,), Prunable(kl.Dense(3, name="a"), name="p"), Prunable(kl.Dense(2, name="a"), name="q"))
    assert [layer.name for layer in strip(model).layers] == ["p", "q"]


def test_sharing_is_kept():
    plain = strip(shared_and_nested())
    inner = next(layer for layer in plain.layers if isinstance(layer, keras.Sequential))
    assert inner.layers[0] is plain.get_layer("shared")
    assert len(plain.weights) == 6


@pytest.mark.parametrize("value", [-2.0, -0.0, np.inf, np.nan])
def test_pruned_weights_are_positive_zero(value):
    model = sequential((2,), PrunableDense(2, use_bias=False))
    model.layers[0].kernel.assign(np.full((2, 2), value))
    model.layers[0].set_masks([[[1, 0], [0, 0]]])
    kernel = strip(model).weights[0].numpy()
    np.testing.assert_array_equal(kernel.view(np.uint32).ravel()[1:], 0)
    np.testing.assert_array_equal(kernel[0, 0], np.float32(value))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_types(dtype):
    model = sequential((2,), PrunableDense(2, dtype=dtype))
    model.layers[0].set_masks([np.eye(2)])
    plain = strip(model)
    assert plain.weights[0].dtype == dtype
    assert np.count_nonzero(ops.convert_to_numpy(ops.cast(plain.weights[0], "float32"))) == 2


def test_constraints_of_callbacks_go_and_the_users_stay():
    by_hand = keras.constraints.MaxNorm(2.0)
    model = sequential((3,), kl.Dense(4, kernel_constraint="non_neg"), kl.Dense(4), kl.Dense(2))
    model.layers[1].kernel.constraint = by_hand
    bind(model)
    plain = strip(model)
    assert_plain(plain)
    kinds = [layer.kernel.constraint for layer in plain.layers]
    assert isinstance(kinds[0], keras.constraints.NonNeg)
    assert kinds[1:] == [by_hand, None]
    assert_equal_outputs(model, plain, np.random.default_rng(0).normal(size=(4, 3)))
    assert type(model.layers[0].kernel.constraint).__name__ == "MaskConstraint", "the source is left as it was"


def test_both_kinds_of_mask_together():
    model = sequential((3,), PrunableDense(4))
    bind(model)
    plain = strip(model)
    assert_plain(plain)
    np.testing.assert_array_equal(plain.weights[0] != 0, model.layers[0].mask_pairs[0][1])


def test_a_model_that_was_never_pruned_comes_back_equal():
    inputs = keras.Input((8, 8, 3), name="image")
    hidden = kl.BatchNormalization()(kl.Conv2D(4, 3, kernel_regularizer="l2")(inputs))
    model = keras.Model(inputs, kl.Dense(2)(ops.mean(hidden, axis=(1, 2))), name="plain")
    copy = strip(model)
    assert copy is not model
    assert json.dumps(copy.get_config()) == json.dumps(model.get_config())
    for a, b in zip(model.weights, copy.weights, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(a, b)


def test_frozen_layers_stay_frozen():
    model = sequential((3,), Prunable(kl.Dense(3, trainable=False)), PrunableDense(2))
    assert [weight.trainable for weight in strip(model).weights] == [False, False, True, True]
    model.trainable = False
    assert not strip(model).trainable_weights


def test_compile_settings_are_kept_with_a_fresh_optimizer():
    model = sequential((3,), PrunableDense(1))
    model.compile(keras.optimizers.Adam(0.02, weight_decay=0.1), loss="mae", metrics=["mse"], jit_compile=True)
    x, y = np.ones((4, 3)), np.ones((4, 1))
    model.fit(x, y, verbose=0)
    plain = strip(model)
    assert plain.optimizer.get_config() == model.optimizer.get_config()
    assert plain.jit_compile
    assert int(plain.optimizer.iterations) == 0
    assert int(model.optimizer.iterations) == 1
    assert plain.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))
    assert not strip(sequential((3,), PrunableDense(1))).compiled


def test_own_loss_and_activation_need_no_registration():
    def own_activation(x):
        return x * 2

    class Own(kl.Dense):
        pass

    model = sequential((3,), Own(2, activation=own_activation), PrunableDense(2, activation=own_activation))
    plain = strip(model)
    assert type(plain.layers[0]) is Own
    assert plain.layers[1].activation is own_activation
    assert_equal_outputs(model, plain, np.ones((2, 3)))


def test_settings_that_cannot_be_written_down_give_a_warning():
    model = sequential((3,), PrunableDense(1))
    model.compile("sgd", loss=lambda y, p: ops.mean(ops.abs(y - p)))
    with pytest.warns(UserWarning, match=r"the result is not compiled.*Call compile"):
        plain = strip(model)
    assert not plain.compiled


class Own(keras.Model):
    """A subclassed model with a configuration."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first, self.second = kl.Dense(units, name="first"), kl.Dense(2, name="second")

    def build(self, shape):
        self.first.build(shape)
        self.second.build((None, self.units))

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class MadeInCode(keras.Model):
    """A subclassed model that makes wrapper layers itself, if asked."""

    def __init__(self, masked):
        super().__init__()
        self.masked = masked
        self.dense = PrunableDense(2, name="dense") if masked else kl.Dense(2, name="dense")

    def get_config(self):
        return {"masked": self.masked}

    def call(self, x):
        return self.dense(x)


def test_subclassed_model_under_a_callback():
    model = Own(4)
    model.build((None, 3))
    bind(model)
    plain = strip(model)
    assert type(plain) is Own
    assert_plain(plain)
    assert_equal_outputs(model, plain, np.random.default_rng(0).normal(size=(4, 3)))


def test_subclassed_model_inside_a_functional_one():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Prunable(kl.Dense(2))(Own(4)(inputs)))
    mask_at_random(model)
    plain = strip(model)
    assert_plain(plain)
    assert_equal_outputs(model, plain, np.random.default_rng(0).normal(size=(4, 3)))


def test_functional_subclass_with_its_own_train_step():
    class Trainer(keras.Model):
        def train_step(self, data):
            return {"own": 1.0}

    inputs = keras.Input((3,))
    plain = strip(Trainer(inputs, PrunableDense(2)(inputs)))
    assert type(plain) is Trainer
    assert_plain(plain)


def test_wrappers_made_in_code_are_refused_and_go_into_a_plain_model():
    model, plain = MadeInCode(masked=True), MadeInCode(masked=False)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model(x), plain(x)
    mask_at_random(model)
    with pytest.raises(ValueError, match=r"\"PrunableDense 'dense'\"\] in its own code.*into=plain_model"):
        strip(model)
    assert strip(model, into=plain) is plain
    assert_plain(plain)
    assert_equal_outputs(model, plain, x)


def test_a_model_without_configuration_is_refused():
    class NoConfig(keras.Model):
        def __init__(self, layers):
            super().__init__()
            self.inner = layers[0]

        def get_config(self):
            raise NotImplementedError("no configuration")

        def call(self, x):
            return self.inner(x)

    model = NoConfig([kl.Dense(2)])
    model(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"NoConfig .* cannot be rebuilt.*no configuration.*get_config.*into="):
        strip(model)


def test_into_must_match():
    model = sequential((3,), PrunableDense(4))
    with pytest.raises(ValueError, match=r"first that differ are \('kernel', \(3, 5\)\) and \('kernel', \(3, 4\)\)"):
        strip(model, into=sequential((3,), kl.Dense(5)))
    with pytest.raises(ValueError, match=r"has 4 weights .* has 2 without its masks"):
        strip(model, into=sequential((3,), kl.Dense(4), kl.Dense(4)))
    with pytest.raises(ValueError, match=r"another keras.Model"):
        strip(model, into=model)


def test_one_kernel_under_two_masks_is_refused():
    dense = kl.Dense(3)
    model = sequential((3,), Prunable(dense), Prunable(dense))
    model.layers[0].set_masks([np.eye(3)])
    with pytest.raises(ValueError, match=r"two layers whose masks differ"):
        strip(model)


@pytest.mark.parametrize("value", [kl.Dense(1), None])
def test_only_models(value):
    with pytest.raises(TypeError, match=r"strip takes a keras\.Model\. Received"):
        strip(value)


def test_only_built_models():
    with pytest.raises(ValueError, match=r"is not built.*Call it on a batch first"):
        strip(keras.Sequential([PrunableDense(1)]))


def test_a_stripped_file_needs_no_library(tmp_path):
    model = sequential((5, 3), kl.Bidirectional(PrunableLSTM(3)), Prunable(kl.Dense(2)))
    mask_at_random(model)
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    plain = strip(model)
    plain.save(tmp_path / "plain.keras")
    np.savez(tmp_path / "wanted.npz", x=x, y=plain(x))
    code = (
        "import sys; sys.modules['keras_prune'] = None\n"
        "import keras, numpy as np\n"
        "model, data = keras.saving.load_model('plain.keras'), np.load('wanted.npz')\n"
        "np.testing.assert_allclose(model(data['x']), data['y'], atol=1e-6)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)


@pytest.mark.parametrize("functional", [False, True])
def test_inputs_keep_the_names_that_exports_know_them_by(functional):
    if functional:
        tensor = keras.Input((4,))
        model = keras.Model(tensor, keras.layers.Dense(2)(tensor))
    else:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert [t.name for t in strip(model).inputs] == [t.name for t in model.inputs]


def test_an_adapted_normalization_computes_with_the_copied_statistics():
    x = np.random.default_rng(0).normal(5.0, 3.0, (64, 4)).astype("float32")
    layer = keras.layers.Normalization()
    layer.adapt(x)
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)])
    np.testing.assert_array_equal(strip(model)(x), model(x))


class Made(keras.Model):
    """A functional model whose class makes its graph anew, with an input that it does not name."""

    def __init__(self, activation="relu", **kwargs):
        inputs = keras.Input((3,))
        x = kl.Dense(4, activation=activation, name="a")(inputs)
        super().__init__(inputs=inputs, outputs=kl.Dense(2, name="b")(x), **kwargs)

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class Unfaithful(keras.Model):
    """Its configuration cannot make it again: the width is missing."""

    def __init__(self, width, **kwargs):
        inputs = keras.Input((3,))
        super().__init__(inputs=inputs, outputs=kl.Dense(2)(kl.Dense(width)(inputs)), **kwargs)


class Steps(Unfaithful):
    def train_step(self, data):
        return {"own": 1.0}


X3 = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def test_a_class_that_makes_its_graph_anew_keeps_the_names_of_its_inputs():
    model = Made()
    bind(model)
    outer_inputs = keras.Input((3,))
    for one in (model, keras.Model(outer_inputs, model(outer_inputs))):
        plain = strip(one)
        assert [tensor.name for tensor in plain.inputs] == [tensor.name for tensor in one.inputs]
        assert_equal_outputs(one, plain, X3)
    assert type(strip(model)) is Made


@pytest.mark.parametrize("make", [lambda: Unfaithful(5), lambda: Made("tanh")], ids=["no width", "other activation"])
def test_a_class_that_cannot_be_made_again_is_copied_by_its_graph(make):
    model = make()
    bind(model)
    plain = strip(model)
    assert not isinstance(plain, (Made, Unfaithful))
    assert_equal_outputs(model, plain, X3)
    inputs = keras.Input((3,))
    outer = keras.Model(inputs, model(inputs))
    assert_equal_outputs(outer, strip(outer), X3)


def test_steps_of_training_that_are_lost_are_named():
    with pytest.warns(UserWarning, match="Steps 'steps' cannot be rebuilt .* without its own train_step"):
        strip(Steps(5))
