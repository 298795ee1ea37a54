import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from benchmarks.model_counts import macs_by_shapes, profiled_macs
from keras_prune.structured import analyse, count, plan
from keras_prune.structured.counting import Counter


def tiny(kind, **options):
    return kind(weights=None, input_shape=(64, 64, 3), classes=10, **options)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: tiny(keras.applications.MobileNetV2, alpha=0.35), id="MobileNetV2"),
        pytest.param(lambda: tiny(keras.applications.EfficientNetB0), id="EfficientNetB0"),
        pytest.param(lambda: tiny(keras.applications.ResNet50), id="ResNet50"),
        pytest.param(lambda: tiny(keras.applications.DenseNet121), id="DenseNet121"),
    ],
)
def test_counts_are_those_of_tensorflow(make):
    model = make()
    counted = count(model)
    assert counted.total.params == model.count_params()
    assert counted.total.params == sum(layer.params for layer in counted.layers)
    assert counted.total.macs == sum(layer.macs for layer in counted.layers)
    assert counted.total.macs == macs_by_shapes(model) == pytest.approx(profiled_macs(model), rel=0.01)


def test_what_the_profiler_leaves_out_is_grouped_convolutions():
    """It knows no shapes inside of them, so ConvNeXt is held against a count of another kind."""
    model = tiny(keras.applications.ConvNeXtTiny)
    counted = count(model)
    assert counted.total.params == model.count_params()
    assert counted.total.macs == macs_by_shapes(model)
    grouped = {layer.name for layer in model.layers if getattr(layer, "groups", 1) > 1}
    left_out = sum(layer.macs for layer in counted.layers if layer.path in grouped)
    assert counted.total.macs - profiled_macs(model) == left_out > 0.01 * counted.total.macs


def layers(model):
    return {layer.path: (layer.params, layer.macs) for layer in count(model).layers if layer.params or layer.macs}


def test_each_kind_by_hand():
    inputs = keras.Input((8, 8, 4))
    x = kl.Conv2D(6, 3, groups=2, padding="same", name="grouped")(inputs)
    x = kl.SeparableConv2D(5, 3, depth_multiplier=2, use_bias=False, padding="same", name="separable")(x)
    x = kl.Conv2DTranspose(3, 2, strides=2, use_bias=False, name="transposed")(x)
    model = keras.Model(inputs, x)
    assert layers(model) == {
        "grouped": (3 * 3 * 2 * 6 + 6, 64 * 9 * 2 * 6),
        "separable": (9 * 6 * 2 + 12 * 5, 64 * (9 * 12 + 12 * 5)),
        "transposed": (2 * 2 * 5 * 3, 64 * 4 * 5 * 3),
    }


def test_sequences_by_hand():
    inputs = keras.Input((5, 3))
    x = kl.LSTM(4, return_sequences=True, name="lstm")(inputs)
    x = kl.TimeDistributed(kl.Dense(6, use_bias=False), name="each")(x)
    x = kl.MultiHeadAttention(2, 3, value_dim=4, use_bias=False, name="heads")(x, x)
    model = keras.Model(inputs, x)
    assert layers(model) == {
        "lstm": (3 * 16 + 4 * 16 + 16, 5 * (3 * 16 + 4 * 16)),
        "each": (24, 5 * 24),
        "heads": (6 * 6 * 2 + 6 * 8 + 8 * 6, 5 * (6 * 6 * 2 + 6 * 8 + 8 * 6) + 25 * 2 * (3 + 4)),
    }


def test_products_of_tensors_count():
    inputs = keras.Input((5, 3))
    a, b = kl.Dense(7, use_bias=False, name="a")(inputs), kl.Dense(7, use_bias=False, name="b")(inputs)
    model = keras.Model(inputs, ops.einsum("bik,bjk->bij", a, b))
    assert count(model).total.macs == 2 * 5 * 21 + 25 * 7


def test_a_shared_layer_weighs_once_and_works_twice():
    inputs = keras.Input((3,))
    shared = kl.Dense(3, name="shared")
    assert layers(keras.Model(inputs, shared(shared(inputs)))) == {"shared": (12, 18)}


def test_counts_of_a_plan_are_those_of_the_model_made(random_keep):
    model = tiny(keras.applications.MobileNetV3Small, minimalistic=True)
    made = plan(model, params=0.4, scope="global")
    smaller = count(made.apply())
    assert (made.after.params, made.after.macs) == (smaller.total.params, smaller.total.macs)
    counter = Counter(made.analysis)
    assert counter.layers(made.kept)[5].params == smaller.layers[5].params


def test_unknown_lengths_count_as_one():
    inputs = keras.Input((None, 3))
    assert count(keras.Model(inputs, kl.Dense(4)(inputs))).total.macs == 12


def test_widths_are_linear_in_units():
    inputs = keras.Input((4, 4, 3))
    x = kl.Flatten()(kl.Conv2D(8, 1, name="conv")(inputs))
    model = keras.Model(inputs, kl.Dense(2, name="head")(x))
    counter = Counter(analyse(model))
    found = counter.layers(np.array([3]))
    assert [(layer.path, layer.params) for layer in found if layer.params] == [("conv", 12), ("head", 16 * 3 * 2 + 2)]
