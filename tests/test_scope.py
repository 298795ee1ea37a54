"""Scope: what is prunable in every kind of layer, how its axes read, and why the rest is left out."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.arrays.layouts import Layout
from keras_prune.layers import PrunableDense
from keras_prune.patterns import Channel
from keras_prune.scope import Scope

# Layer, input shape, and for each kernel its shape as [..., in, out].
KINDS = {
    "Dense": (lambda: kl.Dense(4), (3,), [(3, 4)]),
    "EinsumDense": (lambda: kl.EinsumDense("abc,cde->abde", (None, 4, 5)), (2, 3), [(3, 20)]),
    "EinsumDense, output first": (lambda: kl.EinsumDense("ab,cb->ac", (4,)), (3,), [(3, 4)]),
    "Conv1D": (lambda: kl.Conv1D(4, 3), (8, 2), [(3, 2, 4)]),
    "Conv2D": (lambda: kl.Conv2D(4, 3), (8, 8, 2), [(3, 3, 2, 4)]),
    "Conv1D in groups": (lambda: kl.Conv1D(6, 3, groups=2), (8, 4), [(3, 2, 6)]),
    "Conv2D in groups": (lambda: kl.Conv2D(6, 3, groups=3), (8, 8, 12), [(3, 3, 4, 6)]),
    "EinsumDense in groups": (lambda: kl.EinsumDense("bnh,nhd->bnd", (3, 5)), (3, 2), [(2, 15)]),
    "Conv3D": (lambda: kl.Conv3D(4, 2), (4, 4, 4, 3), [(2, 2, 2, 3, 4)]),
    "Conv1DTranspose": (lambda: kl.Conv1DTranspose(4, 3), (8, 2), [(3, 2, 4)]),
    "Conv2DTranspose": (lambda: kl.Conv2DTranspose(4, 3), (8, 8, 2), [(3, 3, 2, 4)]),
    "Conv3DTranspose": (lambda: kl.Conv3DTranspose(4, 2), (4, 4, 4, 3), [(2, 2, 2, 3, 4)]),
    "DepthwiseConv1D": (lambda: kl.DepthwiseConv1D(3, depth_multiplier=2), (8, 5), [(3, 1, 10)]),
    "DepthwiseConv2D": (lambda: kl.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 5), [(3, 3, 1, 10)]),
    "SeparableConv1D": (lambda: kl.SeparableConv1D(4, 3), (8, 5), [(3, 1, 5), (1, 5, 4)]),
    "SeparableConv2D": (lambda: kl.SeparableConv2D(4, 3), (8, 8, 5), [(3, 3, 1, 5), (1, 1, 5, 4)]),
    "Embedding": (lambda: kl.Embedding(10, 4), (5,), [(10, 4)]),
    "SimpleRNN": (lambda: kl.SimpleRNN(4), (5, 3), [(3, 4), (4, 4)]),
    "LSTM": (lambda: kl.LSTM(4), (5, 3), [(3, 16), (4, 16)]),
    "GRU": (lambda: kl.GRU(4), (5, 3), [(3, 12), (4, 12)]),
    "RNN of cells": (lambda: kl.RNN([kl.LSTMCell(4), kl.GRUCell(2)]), (5, 3), [(3, 16), (4, 16), (4, 6), (2, 6)]),
    "ConvLSTM1D": (lambda: kl.ConvLSTM1D(4, 3), (2, 8, 3), [(3, 3, 16), (3, 4, 16)]),
    "ConvLSTM2D": (lambda: kl.ConvLSTM2D(4, 3), (2, 8, 8, 3), [(3, 3, 3, 16), (3, 3, 4, 16)]),
    "Bidirectional": (lambda: kl.Bidirectional(kl.GRU(2)), (5, 3), [(3, 6), (2, 6)] * 2),
    "TimeDistributed": (lambda: kl.TimeDistributed(kl.Dense(4)), (5, 3), [(3, 4)]),
    "SpectralNormalization": (lambda: kl.SpectralNormalization(kl.Conv2D(4, 3)), (8, 8, 2), [(3, 3, 2, 4)]),
    "BatchNormalization": (lambda: kl.BatchNormalization(), (3,), []),
    "LayerNormalization": (lambda: kl.LayerNormalization(), (3,), []),
    "PReLU": (lambda: kl.PReLU(), (3,), []),
}


def canonical(target):
    return target.layout.to_canonical(np.zeros(target.variable.shape)).shape


def built(layer, shape):
    return keras.Sequential([keras.Input(shape), layer])


def names(variables):
    return [variable.path.split("/")[-1] for variable in variables]


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_each_kind_of_layer(kind):
    make, shape, kernels = KINDS[kind]
    model = built(make(), shape)
    survey = Scope().survey(model, may_be_empty=True)
    assert [canonical(target) for target in survey.targets] == kernels
    assert len(survey.targets) + len(survey.skipped) == len(model.weights)
    assert all(skipped.reason for skipped in survey.skipped)


@pytest.mark.parametrize("kind", [kind for kind, (_, _, kernels) in KINDS.items() if kernels])
def test_layouts_are_undone(kind):
    make, shape, _ = KINDS[kind]
    for target in Scope().survey(built(make(), shape)).targets:
        kernel = np.random.default_rng(0).normal(size=target.variable.shape)
        back = target.layout.from_canonical(target.layout.to_canonical(kernel), kernel.shape)
        np.testing.assert_array_equal(back, kernel)


BY_INPUT = {
    "Conv1D in groups": [(3, 4, 3)],
    "Conv2D in groups": [(3, 3, 12, 2)],
    "EinsumDense in groups": [(6, 5)],
    "DepthwiseConv1D": [(3, 5, 2)],
    "DepthwiseConv2D": [(3, 3, 5, 2)],
    "SeparableConv1D": [(3, 5, 1), (1, 5, 4)],
    "SeparableConv2D": [(3, 3, 5, 1), (1, 1, 5, 4)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_read_by_input_each_layer_has_all_its_channels(kind):
    make, shape, kernels = KINDS[kind]
    targets = Scope().survey(built(make(), shape), may_be_empty=True).targets
    layouts = [target.layout.by_input() for target in targets]
    shapes = [tuple(target.variable.shape) for target in targets]
    found = [layout.canonical_shape(shape) for layout, shape in zip(layouts, shapes, strict=True)]
    assert found == BY_INPUT.get(kind, kernels)
    for layout, shape in zip(layouts, shapes, strict=True):
        kernel = np.arange(np.prod(shape)).reshape(shape)
        canonical = layout.to_canonical(kernel)
        assert canonical.shape == layout.canonical_shape(shape)
        np.testing.assert_array_equal(layout.from_canonical(canonical, shape), kernel)


# The inputs of one channel; what an input channel is, whatever the layer.
CHANNELS = {
    "Dense": (lambda: kl.Dense(4, use_bias=False), (8,), (slice(None), 2)),
    "Conv2D": (lambda: kl.Conv2D(4, 3), (8, 8, 6), (..., 2)),
    "Conv2D in groups": (lambda: kl.Conv2D(4, 3, groups=2), (8, 8, 6), (..., 2)),
    "Conv1D in groups": (lambda: kl.Conv1D(4, 3, groups=2), (8, 6), (..., 2)),
    "Conv2DTranspose": (lambda: kl.Conv2DTranspose(4, 3), (8, 8, 6), (..., 2)),
    "DepthwiseConv2D": (lambda: kl.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 6), (..., 2)),
    "DepthwiseConv1D": (lambda: kl.DepthwiseConv1D(3), (8, 6), (..., 2)),
    "EinsumDense": (lambda: kl.EinsumDense("abc,cde->abde", (None, 2, 4)), (3, 6), (..., 2)),
    "EinsumDense in groups": (lambda: kl.EinsumDense("bnh,nhd->bnd", (3, 5)), (3, 2), (slice(None), 1, 0)),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_a_channel_is_what_one_input_of_the_layer_is_read_by(kind):
    """With the mask of one unit off, the layer no longer sees that input, and sees every other as before."""
    make, shape, place = CHANNELS[kind]
    model = built(make(), shape)
    (target,) = Scope().survey(model).targets
    pattern, layout = Channel(), target.layout.by_input()
    kernel = np.asarray(target.variable)
    scores = np.ones(layout.canonical_shape(kernel.shape))
    units = pattern.reduce(scores).size
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype("float32")
    without = x.copy()
    without[place] = 0.0
    expected = np.asarray(model(without))
    found = []
    for unit in range(units):
        mask = layout.from_canonical(pattern.expand(np.arange(units) != unit, scores), kernel.shape)
        target.variable.assign(kernel * mask)
        found.append(bool(np.allclose(np.asarray(model(x)), expected, atol=1e-6)))
    assert sum(found) == 1


def test_layout_of_a_transposed_kernel_by_hand():
    kernel = np.arange(6).reshape(1, 1, 2, 3)  # h, w, out, in
    np.testing.assert_array_equal(Layout.transposed(4).to_canonical(kernel)[0, 0], [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (lambda: kl.MultiHeadAttention(2, 3), [(4, 6)] * 3 + [(6, 4)]),
        (lambda: kl.GroupQueryAttention(3, 4, 2), [(4, 12), (4, 6), (4, 6), (12, 4)]),
    ],
)
def test_each_projection_of_attention(layer, shapes):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layer()(inputs, inputs))
    assert [canonical(target) for target in Scope().survey(model).targets] == shapes


def test_a_shared_layer_appears_once():
    dense = kl.Dense(3, name="shared")
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), dense])
    model = keras.Model(inputs, inner(dense(dense(inputs))))
    survey = Scope().survey(model)
    assert [target.variable is dense.kernel for target in survey.targets] == [True]
    assert len(survey.skipped) == 1


def test_nested_models_have_unique_paths():
    twins = [keras.Sequential([keras.Input((3,)), kl.Dense(3, name="same")], name="twin") for _ in range(2)]
    outer = [keras.Sequential([keras.Input((3,)), twin]) for twin in twins]
    model = keras.Sequential([keras.Input((3,)), *outer])
    paths = [target.path for target in Scope().survey(model).targets]
    assert len(set(paths)) == 2


def test_a_subclassed_model():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [kl.Dense(3), kl.Dense(2)]

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Own()
    model(np.ones((1, 4)))
    assert [target.variable.shape for target in Scope().survey(model).targets] == [(4, 3), (3, 2)]


class Custom(keras.layers.Layer):
    def build(self, shape):
        self.a = self.add_weight(name="w", shape=(shape[-1], 2))
        self.b = self.add_weight(name="my_kernel", shape=(2, 2))
        self.c = self.add_weight(name="table", shape=(2, 2))
        self.d = self.add_weight(name="kernel", shape=(2,))

    def call(self, x):
        return x @ self.a @ self.b @ self.c + self.d


class Listed(Custom):
    def prunable_weights(self):
        return [self.c]


def test_custom_layers_by_name():
    survey = Scope().survey(built(Custom(), (3,)))
    assert names(target.variable for target in survey.targets) == ["w", "my_kernel"]
    assert all("or it has prunable_weights()" in skipped.reason for skipped in survey.skipped)
    survey = Scope(names="table").survey(built(Custom(), (3,)))
    assert names(target.variable for target in survey.targets) == ["table"]


def test_custom_layers_by_method():
    survey = Scope().survey(built(Listed(), (3,)))
    assert names(target.variable for target in survey.targets) == ["table"]
    assert {skipped.reason for skipped in survey.skipped} == {"Listed.prunable_weights() leaves it out"}


def test_lora_is_skipped_with_the_reason():
    model = built(kl.Dense(4), (3,))
    model.layers[0].enable_lora(2)
    survey = Scope().survey(model, may_be_empty=True)
    assert survey.targets == ()
    reasons = {skipped.path.split("/")[-1]: skipped.reason for skipped in survey.skipped}
    assert "LoRA is enabled" in reasons["kernel"]
    assert "LoRA is enabled" in reasons["lora_kernel_a"]
    assert "biases" in reasons["bias"]


def test_quantized_layers_are_skipped_with_the_reason():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(4, name="q"), kl.Dense(2, name="plain")])
    model.layers[0].quantize("int8")
    survey = Scope().survey(model)
    assert [target.layer.name for target in survey.targets] == ["plain"]
    assert any("quantized (int8): prune before quantize()" in skipped.reason for skipped in survey.skipped)


def test_frozen_layers_are_skipped_with_the_reason():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(4, trainable=False), kl.Dense(2)])
    survey = Scope().survey(model)
    assert len(survey.targets) == 1
    assert "frozen (trainable=False)" in [skipped.reason for skipped in survey.skipped]


def test_masks_of_wrapper_layers_come_with_their_kernels():
    model = built(PrunableDense(4, straight_through=True), (3,))
    survey = Scope().survey(model)
    (target,) = survey.targets
    assert target.mask is model.layers[0].mask_pairs[0][1]
    assert target.straight_through
    assert len(survey.skipped) == 1, "a mask is not a weight to prune, and not listed as left out"


def two_layers():
    return keras.Sequential([keras.Input((3,)), kl.Dense(4, name="a"), kl.Dense(2, name="b")])


@pytest.mark.parametrize(
    ("scope", "kept"),
    [
        (Scope(include=r".*a/kernel"), ["a"]),
        (Scope(exclude=(r".*a/.*",)), ["b"]),
        (Scope(include=[".*kernel"], exclude=".*b/kernel"), ["a"]),
        (Scope(min_size=10), ["a"]),
    ],
)
def test_what_the_user_asks_for(scope, kept):
    assert [target.layer.name for target in scope.survey(two_layers()).targets] == kept
    assert Scope.from_config(scope.get_config()) == scope


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"no variable of .* matches \['c/kernel'\].*There are: .*a/kernel"):
        Scope(include="c/kernel").survey(two_layers())


def test_no_prunable_tensor_is_an_error_with_the_reasons():
    with pytest.raises(
        ValueError, match=r"has no prunable tensor. Left out: .*gamma: BatchNormalization has no kernel"
    ):
        Scope().survey(built(kl.BatchNormalization(), (3,)))


def test_an_unbuilt_model_is_an_error():
    with pytest.raises(ValueError, match=r"no weights yet.*Build it first"):
        Scope().survey(keras.Sequential([kl.Dense(1)]))


# -- names ------------------------------------------------------------------------------------------------------------


def nested_net():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="deep")], name="inner")
    layers = [keras.Input((4,)), keras.layers.Dense(4, name="first"), inner, keras.layers.Dense(4, name="last_1")]
    return keras.Sequential(layers)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("first", ["first/kernel"]),
        ("inner", ["inner/deep/kernel"]),
        ("deep", ["inner/deep/kernel"]),
        ("inner/deep", ["inner/deep/kernel"]),
        ("deep/kernel", ["inner/deep/kernel"]),
        ("l*_?", ["last_1/kernel"]),
        ("*deep*", ["inner/deep/kernel"]),
        (r"(first|last_\d)/kernel", ["first/kernel", "last_1/kernel"]),
        (["first", "de*"], ["first/kernel", "inner/deep/kernel"]),
        # As a regular expression it matches whole paths, and never a model around a layer that it is to leave out.
        (r"(?!.*deep).*", ["first/kernel", "last_1/kernel"]),
    ],
)
def test_tensors_are_named_alike_in_a_fresh_and_in_a_loaded_model(tmp_path, key, found):
    fresh = nested_net()
    fresh.save(tmp_path / "m.keras")
    for model in (fresh, keras.saving.load_model(tmp_path / "m.keras"), keras.models.clone_model(fresh)):
        assert [target.path for target in Scope(include=key).survey(model).targets] == found
        left = [target.path for target in Scope(exclude=key).survey(model).targets]
        assert sorted(found + left) == ["first/kernel", "inner/deep/kernel", "last_1/kernel"]
        if isinstance(key, str):
            kp.prune(model, 0.25, allocation={key: 0.5}, pattern={key: "unstructured", ".*": "filter"})
            zeros = {row.path: row.sparsity for row in kp.report(model).rows}
            assert {path for path, share in zeros.items() if share == 0.5} == set(found)


def test_a_layer_names_its_tensors():
    model = nested_net()
    first, inner = model.layers[:2]
    assert [t.path for t in Scope(include=[first, inner]).survey(model).targets] == [
        "first/kernel",
        "inner/deep/kernel",
    ]
    assert [t.path for t in Scope(exclude=first).survey(model).targets] == ["inner/deep/kernel", "last_1/kernel"]
    assert Scope.from_config(Scope(include=first).get_config()) == Scope(include="first")
    kp.prune(model, 0.25, allocation={first: 0.5})
    assert np.count_nonzero(first.kernel.numpy() == 0) == 8


@pytest.mark.parametrize(
    ("call", "subject"),
    [
        (lambda model: Scope(include="frist").survey(model), "Scope: include"),
        (lambda model: Scope(exclude=["inner", "frist"]).survey(model), "Scope: exclude"),
        (lambda model: kp.prune(model, 0.5, allocation={"frist": 0.5}), "Explicit"),
        (lambda model: kp.prune(model, 0.5, pattern={"frist": "filter", ".*": "unstructured"}), "prune: pattern"),
    ],
)
def test_a_name_of_nothing_is_refused_with_those_that_are_near(call, subject):
    with pytest.raises(ValueError, match=rf"{subject}: no .* matches \['frist'\]. Did you mean 'first'.*inner/deep"):
        call(nested_net())


def test_what_is_no_name_is_refused():
    with pytest.raises(TypeError, match=r"named by a layer, a layer's name, .*Received: 3 of type int"):
        Scope(include=3)
    with pytest.raises(TypeError, match=r"named by a layer.*Received: 0 of type int"):
        kp.allocation.Explicit({0: 0.5})
