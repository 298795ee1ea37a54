"""The rewrite that mirrors images: exact, and even paddings where XNNPACK's sparse inference wants them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import layers as kl

from keras_prune.graph.windows import Window, same_padding
from keras_prune.keras_seam import calls_in
from tflite_export.convert.converter import convert
from tflite_export.file import flatbuffer
from tflite_export.model.signature import signature_of
from tflite_export.rewrites.graph import flat_copy
from tflite_export.rewrites.mirror import MirrorPass
from tflite_export.rewrites.rewrite import rewrite_model
from tflite_export.rewrites.turning import turned

TURNED = "reversed in height and width"
REVERSED = "reversed in height, width and channels"


def randomized(model, seed=0):
    """The model with statistics of batch normalization, biases and slopes that are not their initial ones."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for variable in layer.weights if not isinstance(layer, keras.Model) else ():
            kind = variable.path.rsplit("/", 1)[-1]
            if kind in ("moving_variance", "gamma"):
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
            elif kind in ("moving_mean", "beta", "bias", "alpha"):
                variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def net(*layers, size=(16, 16), channels=3):
    return randomized(keras.Sequential([keras.Input((*size, channels), name="image"), *layers]))


def stem(padding="same", name="stem"):
    return kl.Conv2D(4, 3, strides=2, padding=padding, name=name)


def mirrored(model, seed=1):
    """The result of the pass, held against the model on real-valued inputs: to 1e-6, in float32."""
    rng = np.random.default_rng(seed)
    shapes = [[size or 16 for size in tensor.shape[1:]] for tensor in model.inputs]
    return rewrite_model(model, [MirrorPass()], [rng.normal(size=(2, *shape)) for shape in shapes], tolerance=1e-6)


def uneven(model):
    """Names of the layers that XNNPACK's sparse inference would not take for their padding."""
    names = []
    for node in calls_in(flat_copy(model)):
        layer = node.operation
        stemmed = type(layer) is kl.Conv2D and layer.kernel_size == (3, 3) and node.input_tensors[0].shape[-1] == 3
        if type(layer) is not kl.DepthwiseConv2D and not stemmed:
            continue
        before = node.input_tensors[0]._keras_history.operation
        half = layer.kernel_size[0] // 2
        explicit = isinstance(before, kl.ZeroPadding2D) and before.padding == ((half, half), (half, half))
        even = explicit and layer.padding == "valid" if layer.strides[0] > 1 else layer.padding == "same" or explicit
        if not even:
            names.append(layer.name)
    return names


windows = st.builds(
    Window,
    size=st.integers(1, 20),
    reach=st.integers(1, 7),
    stride=st.integers(1, 4),
    left=st.integers(0, 4),
    right=st.integers(0, 4),
)


def places(window, mirrored=False):
    """The places that each window covers, by their number in the input; None is padding or beyond."""
    starts = range(-window.left, -window.left + window.count * window.stride, window.stride)
    rows = [[i if 0 <= i < window.size else None for i in range(s, s + window.reach)] for s in starts]
    if not mirrored:
        return rows
    return [[None if i is None else window.size - 1 - i for i in row[::-1]] for row in rows[::-1]]


@given(windows, st.booleans(), st.data())
def test_paddings_give_the_same_windows(window, flip, data):
    assume(window.count > 0)
    left, least, most = window.paddings(flip)
    right = data.draw(st.integers(least, most))
    assume(left >= 0 and right >= 0)
    other = Window(window.size, window.reach, window.stride, left, right)
    assert places(other, flip) == places(window)
    assert window.allows(left, right, flip)
    for wrong in (left - 1, right), (left + 1, right), (left, least - 1), (left, most + 1):
        assert not window.allows(*wrong, flip)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4))
def test_same_padding_is_tensorflows(size, reach, stride):
    x = np.ones((1, size, 1), "float32")
    kernel = np.ones((reach, 1, 1), "float32")
    left, right = same_padding(size, reach, stride)
    wide = np.pad(x, ((0, 0), (left, right), (0, 0)))
    np.testing.assert_array_equal(
        keras.ops.conv(x, kernel, stride, "same"), keras.ops.conv(wide, kernel, stride, "valid")
    )


def test_turned_swaps_the_sides_of_reversed_axes():
    assert turned(((1, 2), (3, 4)), (False, False)) == ((1, 2), (3, 4))
    assert turned(((1, 2), (3, 4)), (True, True)) == ((2, 1), (4, 3))


def test_one_reversal_at_the_input_and_none_after_a_mean():
    model = net(stem(), kl.Conv2D(5, 1), kl.GlobalAveragePooling2D(), kl.Dense(2))
    result = mirrored(model)
    assert [(change.place, change.what) for change in result.changes] == [
        ("stem", "kernel reversed in height, width and channels; padding 'same' -> ((1, 1), (1, 1))"),
        ("image", REVERSED),
    ]
    kernel = model.get_layer("stem").kernel
    np.testing.assert_array_equal(result.model.get_layer("stem").kernel, kernel[::-1, ::-1, ::-1])
    assert [type(node.operation).__name__ for node in calls_in(result.model)] == [
        *("Flip", "ZeroPadding2D", "Conv2D", "Conv2D", "GlobalAveragePooling2D", "Dense")
    ]


def test_the_zero_padding_of_keras_applications_is_replaced_not_joined():
    model = net(
        kl.ZeroPadding2D(((0, 1), (0, 1))),
        stem("valid"),
        kl.Conv2D(5, 1),
        kl.ZeroPadding2D(((1, 2), (1, 2))),
        kl.DepthwiseConv2D(5, strides=2, name="depthwise"),
        kl.GlobalMaxPooling2D(),
    )
    result = mirrored(model)
    assert uneven(model) == ["stem", "depthwise"]
    assert uneven(result.model) == []
    paddings = [layer.padding for layer in result.model.layers if isinstance(layer, kl.ZeroPadding2D)]
    assert paddings == [((1, 1), (1, 1)), ((2, 2), (2, 2))]


@pytest.mark.parametrize(
    "tail",
    [
        [],
        [kl.Flatten(), kl.Dense(3)],
        [kl.Reshape((16, 40)), kl.LSTM(3)],
        [kl.Permute((2, 1, 3)), kl.GlobalAveragePooling2D()],
        [kl.UpSampling2D(2), kl.Conv2D(2, 3, padding="same", name="tail"), kl.Softmax()],
        [kl.UpSampling2D(4, interpolation="bilinear"), kl.Conv2D(2, 3, name="tail")],
        [kl.Resizing(11, 13, dtype="float32")],
        [kl.Conv2DTranspose(3, 4, strides=2, padding="same"), kl.Conv2DTranspose(2, 3)],
        [kl.Lambda(lambda x: x[:, 1:])],
        [kl.Cropping2D(((0, 3), (1, 0))), kl.PReLU(shared_axes=(1, 2))],
        [kl.ZeroPadding2D(((0, 3), (1, 0))), kl.PReLU()],
        [kl.SeparableConv2D(6, 3, strides=2, padding="same", activation="relu"), kl.LayerNormalization()],
        [kl.Conv2D(4, (2, 4), padding="same", name="tail"), kl.GroupNormalization(2)],
        [kl.Conv2D(4, 3, dilation_rate=2, padding="same", name="tail"), kl.Dense(3, activation="gelu")],
        [kl.MaxPooling2D(2), kl.AveragePooling2D(2, strides=1), kl.LeakyReLU()],
    ],
    ids=lambda tail: "-".join(layer.__class__.__name__ for layer in tail) or "map",
)
def test_what_depends_on_places_gets_them_back(tail):
    model = net(stem(), kl.Conv2D(5, 1), kl.BatchNormalization(), kl.ReLU(6.0), *tail, size=(16, 32))
    result = mirrored(model)
    assert result.changes
    assert result.refusals == ()
    assert uneven(result.model) == []


@pytest.mark.parametrize(
    "layers",
    [
        [stem("valid"), kl.DepthwiseConv2D(3, padding="same"), kl.Conv2D(4, 1), kl.Flatten()],
        [kl.Conv2D(4, 3, padding="same"), kl.Conv2D(4, 1)],
        [kl.Conv2D(4, 3, strides=2, padding="same"), kl.Flatten()],
        [kl.Conv2D(4, 1), kl.Conv2D(4, 1)],
        [kl.Flatten(), kl.Dense(2)],
    ],
    ids=["valid", "stride-1", "nothing-pointwise", "pointwise", "flat"],
)
def test_a_net_that_pads_evenly_or_cannot_run_sparse_is_left_alone(layers):
    if isinstance(layers[0], kl.Conv2D) and layers[0].padding == "valid":
        layers = [kl.ZeroPadding2D(1), *layers]
    model = net(*layers)
    result = MirrorPass().apply(model)
    assert result.model is model
    assert (result.changes, result.refusals) == ((), ())


def test_same_at_an_odd_size_is_spelled_out_without_a_mirror():
    result = mirrored(net(stem(), kl.Conv2D(4, 1), size=(17, 33)))
    assert [change.what for change in result.changes] == ["padding 'same' -> ((1, 1), (1, 1))"]
    assert uneven(result.model) == []


def test_only_the_axis_that_needs_it_is_reversed():
    """Height 16 is padded by (0, 1), width 32 by (1, 1), one column of which is never read: mirrored, it is (0, 1)."""
    model = net(kl.ZeroPadding2D(((0, 1), (1, 1))), stem("valid"), kl.Conv2D(4, 1), size=(16, 32))
    result = mirrored(model)
    assert [change.what for change in result.changes] == [
        "kernel reversed in height; padding ((0, 1), (1, 1)) -> ((1, 1), (1, 1))",
        "reversed in height",
        "reversed back in height",
    ]


def test_sizes_that_cannot_pad_evenly_are_refused_with_both_reasons():
    model = net(
        stem(), kl.Conv2D(4, 1), kl.ZeroPadding2D(((0, 1), (0, 1))), kl.DepthwiseConv2D(3, 2, name="odd"), size=(18, 18)
    )
    result = MirrorPass().apply(model)
    assert result.model is model
    (refusal,) = result.refusals
    assert refusal.place == "stem"
    assert "height 18, its windows need 0 before and 1 to 2 after, where 1 on each side is wanted" in refusal.reason
    assert "mirrored, 'odd', height 9, its windows need 0 before and 0 to 1 after" in refusal.reason


def test_unknown_sizes_are_refused():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, kl.Conv2D(4, 1)(stem()(inputs)))
    (refusal,) = MirrorPass().apply(model).refusals
    assert "height is unknown where the stride is 2: give keras.Input its size" in refusal.reason


def test_a_pooling_that_is_not_the_same_from_both_ends_is_refused():
    result = MirrorPass().apply(net(stem(), kl.Conv2D(4, 1), kl.MaxPooling2D(3, 2, padding="same", name="pool")))
    assert "mirrored, 'pool', height: pooling 3 by 2 of 8 places is not the same from both ends" in (
        result.refusals[0].reason
    )


def test_without_a_first_convolution_of_three_channels_nothing_can_run_sparse():
    model = net(kl.DepthwiseConv2D(3, 2, padding="same", name="depthwise"), kl.Conv2D(4, 1), channels=4)
    (refusal,) = MirrorPass().apply(model).refusals
    assert refusal.place == "depthwise"
    assert "begins at a 3x3 stride-2 convolution of 3 channels" in refusal.reason


def test_a_layer_called_in_two_places_that_need_different_paddings_is_refused():
    shared = kl.DepthwiseConv2D(3, 2, padding="same", name="shared")
    inputs, other = keras.Input((16, 16, 3)), keras.Input((6, 6, 4))
    model = keras.Model([inputs, other], [shared(kl.Conv2D(4, 1)(stem()(inputs))), kl.Flatten()(shared(other))])
    result = MirrorPass().apply(model)
    assert result.model is model
    assert [refusal.place for refusal in result.refusals] == ["shared"]


def reversals(model):
    """For each reversal of a model, what it reads from, and its axes."""
    flips = [node for node in calls_in(model) if type(node.operation).__name__ == "Flip"]
    return [(node.input_tensors[0]._keras_history.operation.name, node.operation.axis) for node in flips]


def test_what_works_place_by_place_comes_before_the_reversal_with_its_channels_in_order():
    layers = [
        kl.Rescaling([0.5, 1.0, 2.0], name="scale"),
        kl.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 2.0]),
    ]
    for more in ([], [kl.ZeroPadding2D(((0, 1), (0, 1)))]):
        result = mirrored(
            net(*layers, *more, stem("valid" if more else "same"), kl.Conv2D(5, 1), kl.GlobalMaxPooling2D())
        )
        assert reversals(result.model) == [(layers[1].name, (1, 2, 3))]


def test_an_image_that_others_read_is_reversed_for_each_as_it_needs():
    image = keras.Input((16, 16, 3), name="image")
    x = kl.Conv2D(3, 1)(kl.UpSampling2D()(stem()(image)))
    model = randomized(keras.Model(image, kl.GlobalAveragePooling2D()(kl.Conv2D(4, 1)(kl.Add()([x, image])))))
    assert sorted(axes for _, axes in reversals(mirrored(model).model)) == [(1, 2), (1, 2, 3)]


def test_a_first_convolution_of_a_map_that_is_turned_already_keeps_its_channels():
    result = mirrored(
        net(kl.DepthwiseConv2D(3, 2, padding="same"), stem(), kl.Conv2D(5, 1), kl.GlobalMaxPooling2D(), size=(32, 32))
    )
    assert reversals(result.model) == [("image", (1, 2))]


def test_a_twin_network_shares_its_mirrored_layers():
    branch = keras.Sequential([keras.Input((16, 16, 3)), stem(), kl.Conv2D(4, 1), kl.GlobalAveragePooling2D()])
    a, b = keras.Input((16, 16, 3), name="a"), keras.Input((16, 16, 3), name="b")
    model = keras.Model({"a": a, "b": b}, {"gap": kl.Subtract()([branch(a), branch(b)])})
    result = mirrored(model)
    assert sorted(change.place for change in result.changes if change.what == REVERSED) == ["a", "b"]
    assert sum(isinstance(layer, kl.Conv2D) for layer in result.model.layers) == 2
    assert signature_of(result.model) == signature_of(model)


def test_blocks_with_skips_squeezes_and_operations_of_keras():
    inputs = keras.Input((16, 24, 3), name="image")
    x = kl.Rescaling([0.5, 1.0, 2.0], offset=-0.1)(inputs)
    x = kl.BatchNormalization()(stem()(x))
    x = keras.ops.relu6(x + 3.0) * x
    y = kl.DepthwiseConv2D(5, padding="same")(x)
    gate = kl.Conv2D(4, 1, activation="sigmoid")(kl.GlobalAveragePooling2D(keepdims=True)(y))
    y = kl.Multiply()([y, gate]) + keras.ops.mean(x, axis=(1, 2), keepdims=True)
    x = kl.Concatenate()([kl.Dropout(0.5)(kl.Conv2D(4, 1)(y)), x])
    mask = keras.ops.mean(x, axis=-1, keepdims=True)
    model = randomized(keras.Model(inputs, [x * mask, keras.ops.max(x, axis=(1, 2))]))
    result = mirrored(model)
    assert [change.what for change in result.changes if "kernel" not in change.what] == [
        REVERSED,
        f"{TURNED[:8]} back{TURNED[8:]}",
    ]
    assert uneven(result.model) == []


layer_makers = st.sampled_from(
    [
        lambda: kl.Conv2D(4, 1, activation="relu"),
        lambda: kl.Conv2D(3, (3, 2), strides=2, padding="same"),
        lambda: kl.Conv2D(4, (2, 3), padding="valid"),
        lambda: kl.DepthwiseConv2D(3, strides=2, padding="same"),
        lambda: kl.DepthwiseConv2D(5, padding="same"),
        lambda: kl.DepthwiseConv2D((1, 4), depth_multiplier=2),
        lambda: kl.ZeroPadding2D(((0, 1), (0, 1))),
        lambda: kl.ZeroPadding2D(((1, 2), (0, 0))),
        lambda: kl.Cropping2D(((0, 1), (1, 0))),
        lambda: kl.MaxPooling2D(2, 1),
        lambda: kl.AveragePooling2D(3, 2, padding="same"),
        lambda: kl.UpSampling2D(2),
        lambda: kl.Conv2DTranspose(3, 2, strides=2),
        lambda: kl.BatchNormalization(),
    ]
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(layer_makers, max_size=4), st.integers(15, 24), st.integers(15, 24))
def test_any_stack_of_layers_is_rewritten_exactly_or_refused(makers, height, width):
    try:
        model = net(stem(), kl.Conv2D(4, 1), *(make() for make in makers), size=(height, width))
    except ValueError:
        assume(False)  # too small a map for its windows
    result = mirrored(model)
    assert result.changes or result.refusals


STOCK = {
    "MobileNet": {"alpha": 0.25, "depth_multiplier": 1},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"alpha": 1.0},
    "EfficientNetB0": {},
}


def stock(name, size):
    options = {"weights": None, "classes": 10, "classifier_activation": None, **STOCK[name]}
    return randomized(getattr(keras.applications, name)(input_shape=(size, size, 3), **options))


@pytest.mark.parametrize(("name", "size"), [("MobileNetV2", 64), ("EfficientNetB0", 32), ("MobileNetV3Small", 33)])
def test_stock_models_are_exact_and_padded_evenly(name, size):
    model = stock(name, size)
    images = np.random.default_rng(3).uniform(0, 255, (2, size, size, 3))
    result = rewrite_model(model, [MirrorPass()], [images], tolerance=2e-6)
    assert result.refusals == ()
    assert uneven(model) != []
    assert uneven(result.model) == []
    assert sum(change.what == REVERSED for change in result.changes) == (size % 2 == 0)


def test_the_converter_adds_one_reversal_and_pads_evenly():
    model = mirrored(stock("MobileNet", 64)).model
    file = convert(lambda: model, signature_of(model), 1).file.model
    (graph,) = file.subgraphs
    names = [flatbuffer.operator_name(file, operator) for operator in graph.operators]
    assert names[:3] == ["REVERSE_V2", "PAD", "CONV_2D"]
    assert {name: names.count(name) for name in set(names)} == {
        **{"REVERSE_V2": 1, "PAD": 5, "CONV_2D": 15, "DEPTHWISE_CONV_2D": 13, "MEAN": 1, "RESHAPE": 1},
    }
    for name, operator in zip(names, graph.operators, strict=True):
        if name == "PAD":
            padding = flatbuffer.constant(file, graph.tensors[operator.inputs[1]])
            np.testing.assert_array_equal(padding, [[0, 0], [1, 1], [1, 1], [0, 0]])
