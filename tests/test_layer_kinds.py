import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.keras_seam import origin_of
from keras_prune.layer_kinds import (
    KINDS,
    Held,
    LayerKind,
    Source,
    altered,
    channel_rule,
    has_adapters,
    held_by,
    kernels_of,
    kinds_where,
    quantization_of,
    set_channel_rule,
    states_of,
)


class Mine(kl.Conv2D):
    pass


class WithOwnCall(kl.Conv2D):
    def call(self, inputs):
        return super().call(inputs)


def test_a_subclass_has_what_the_nearest_class_says():
    assert kernels_of(Mine(2, 3)) is kernels_of(kl.Conv2D(2, 3))
    assert list(kernels_of(kl.ConvLSTM2D(2, 3).cell)) == ["kernel", "recurrent_kernel"]
    assert kernels_of(kl.LSTM(2)) is None
    assert [held_by(one) for one in (kl.LSTM(2), kl.StringLookup(), kl.Discretization(num_bins=2), kl.Dense(1))] == [
        Held.STATES,
        Held.TABLE,
        Held.BOUNDARIES,
        None,
    ]


def test_a_record_of_a_subclass_hides_nothing_of_its_base(monkeypatch):
    monkeypatch.setitem(KINDS, Mine, LayerKind(channel_rule="mine"))
    assert channel_rule(Mine(2, 3)) == "mine"
    assert kernels_of(Mine(2, 3)) is kernels_of(kl.Conv2D(2, 3))


def test_a_rule_counts_up_to_a_call_of_ones_own(monkeypatch):
    for kind in (kl.Conv2D, "Add"):
        monkeypatch.setitem(KINDS, kind, KINDS.get(kind, LayerKind()))
    kernels = kernels_of(kl.Conv2D(2, 3))
    set_channel_rule([kl.Conv2D, "Add"], "rule")
    assert [channel_rule(one) for one in (kl.Conv2D(2, 3), Mine(2, 3), WithOwnCall(2, 3))] == ["rule", "rule", None]
    assert kernels_of(kl.Conv2D(2, 3)) is kernels
    x = keras.KerasTensor((None, 3))
    assert channel_rule(origin_of(x + x)) == "rule"
    named_alike = type("Add", (kl.Layer,), {"call": lambda self, x: x})
    assert channel_rule(named_alike()) is None


LAYERS = {
    "dense": (kl.Dense(3), (2, 4)),
    "einsum": (kl.EinsumDense("abc,cde->abde", (None, 2, 5)), (2, 3, 4)),
    "einsum of groups": (kl.EinsumDense("...gc,gcd->...gd", (3, 5)), (2, 3, 4)),
    "conv": (kl.Conv2D(6, 3), (2, 5, 5, 4)),
    "conv of groups": (kl.Conv2D(6, 3, groups=2), (2, 5, 5, 4)),
    "conv of one axis": (kl.Conv1D(6, 3, padding="same"), (2, 5, 4)),
    "transposed": (kl.Conv2DTranspose(6, 3), (2, 5, 5, 4)),
    "depthwise": (kl.DepthwiseConv2D(3, depth_multiplier=2), (2, 5, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_stand_in_the_kernel_where_they_are_read(name):
    """A weight whose input is 0 in all samples does nothing; all others do."""
    layer, shape = LAYERS[name]
    layer.build(shape)
    (kernel,) = kernels_of(layer).values()
    variable = next(v for v in layer.weights if len(v.shape) > 1)
    axes = [axis % len(shape) for axis in kernel.axes(layer)]
    sizes = [shape[axis] for axis in axes]
    rng = np.random.default_rng(0)
    present = rng.integers(0, 2, sizes).astype(bool)
    present.reshape(-1)[:2] = True, False
    in_order = present.transpose(np.argsort(axes)).reshape([n if i in axes else 1 for i, n in enumerate(shape)])
    x = rng.normal(size=shape).astype("float32") * in_order
    read = kernel.layout(layer, len(variable.shape)).over_inputs(present.reshape(-1), variable.shape)
    read = np.broadcast_to(read, variable.shape)
    plain, values = np.array(layer(x)), np.array(variable)
    variable.assign(np.where(read, values, values + 1.0))
    np.testing.assert_array_equal(np.array(layer(x)), plain)
    places = np.argwhere(read)
    for place in places[rng.choice(len(places), 5)]:
        variable.assign(values)
        changed = values.copy()
        changed[tuple(place)] += 1.0
        variable.assign(changed)
        assert not np.array_equal(np.array(layer(x)), plain)


def test_sources_of_kernels():
    found = {
        kind: {name: k.source for name, k in kernels_of(layer).items()}
        for kind, layer in {
            "separable": kl.SeparableConv1D(2, 3),
            "cell": kl.GRUCell(2),
            "table": kl.Embedding(3, 2),
        }.items()
    }
    assert found == {
        "separable": {"depthwise_kernel": Source.INPUT, "pointwise_kernel": Source.FIRST_STAGE},
        "cell": {"kernel": Source.INPUT, "recurrent_kernel": Source.STATE},
        "table": {"embeddings": Source.TOKENS},
    }


@pytest.mark.parametrize("kind", kinds_where(lambda kind: kind.training_only))
def test_what_acts_in_training_only_hands_its_input_on(kind):
    space = int(kind.__name__[-2]) if "Spatial" in kind.__name__ else 1
    x = np.random.default_rng(0).normal(size=(2, *[3] * space, 4)).astype("float32")
    np.testing.assert_array_equal(np.array(kind(0.5)(x, training=False)), x)


def test_states_are_those_of_stateful_layers():
    stateful, stacked = kl.LSTM(3, stateful=True), kl.RNN([kl.GRUCell(2), kl.LSTMCell(3)], stateful=True)
    assert states_of(stateful) == []
    for layer in (stateful, stacked):
        layer(np.zeros((2, 4, 1), "float32"))
    assert [tuple(v.shape) for v in states_of(stateful)] == [(2, 3), (2, 3)]
    assert [tuple(v.shape) for v in states_of(stacked)] == [(2, 2), (2, 3), (2, 3)]
    assert [states_of(layer) for layer in (kl.LSTM(3), kl.Dense(1))] == [[], []]


def test_what_is_altered_says_how():
    plain, quantized, adapted = (kl.Dense(4) for _ in range(3))
    for layer in (plain, quantized, adapted):
        layer.build((None, 4))
    quantized.quantize("int8")
    adapted.enable_lora(1)
    assert [altered(one) for one in (plain, quantized, adapted)] == [
        "",
        "it is quantized (int8)",
        "LoRA is enabled on it",
    ]
    assert [quantization_of(one) for one in (plain, quantized, adapted)] == [None, "int8", None]
    assert [has_adapters(one) for one in (plain, quantized, adapted)] == [False, False, True]


def test_what_sums_has_one_activation():
    assert kl.SeparableConv2D in kinds_where(lambda kind: kind.sums)
    assert not {kl.DepthwiseConv2D, kl.Embedding, kl.LSTMCell} & set(kinds_where(lambda kind: kind.sums))
