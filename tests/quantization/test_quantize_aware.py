import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.models.stand_ins import at_rest
from keras_prune.quantization import FakeQuantize, QuantizedKernels, quantize_aware, report
from keras_prune.quantization.rounding import round_weights
from tflite_export import export
from tflite_export.convert.number_types import FLOAT32, INT8
from tflite_export.file import flatbuffer
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.source.loading import open_source

RNG = np.random.default_rng(0)
X = RNG.normal(size=(160, 8, 8, 3)).astype("float32")
Y = (X[:, :4].mean((1, 2, 3)) > X[:, 4:].mean((1, 2, 3))).astype("int32") + 2 * (X[..., 0].mean((1, 2)) > 0)


def rounded(kernel, channels):
    """Kernel -> (int8 values, scales), computed anew."""
    others = tuple(axis for axis in range(kernel.ndim) if axis not in channels)
    scale = np.abs(kernel).max(others, keepdims=True) / 127
    return np.round(kernel / np.where(scale > 0, scale, 1)), scale


def make_net():
    """Each kind of layer that has a kernel, batch normalizations to fold, a residual Add, a softmax."""
    keras.utils.set_random_seed(1)
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv")(x)
    y = shortcut = layers.ReLU()(layers.BatchNormalization(name="norm")(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(16, 1, name="pointwise")(y))
    y = layers.MaxPooling2D()(layers.ReLU()(layers.Add(name="add")([y, shortcut])))
    y = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu", name="transposed")(y)
    y = layers.Dropout(0.1)(layers.GlobalAveragePooling2D(name="mean")(y))
    model = keras.Model(x, layers.Dense(4, activation="softmax", name="head")(y))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def dense():
    model = make_net()
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained(dense):
    """Pruned at once to one half, made quantization-aware, trained to 90 % zeros."""
    model = quantize_aware(kp.prune(kp.strip(dense), 0.5), data=(X, Y))
    model.zeros_before = {v.path: v.numpy() == 0 for v in model.weights if v.path.endswith("kernel")}
    model.ranges_before = report(model).ranges
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0, callbacks=[kp.Pruning(0.9)])
    return model


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    export(trained, path, quantize="int8", data=X, batch_size=1, target=kp.Device("plain", densify=False))
    return path.read_bytes()


# -- rounding ---------------------------------------------------------------------------------------------------------


def test_zeros_stay_zero_equal_weights_stay_equal_and_a_factor_of_a_channel_passes_through():
    weights = np.random.default_rng(2).choice(np.float32([-0.31, 0.0, 0.07, 0.5]), (3, 3, 5, 4))
    weights[..., 3] = 0
    values = keras.ops.convert_to_numpy(round_weights(weights, (3,)))
    assert ((values == 0) == (weights == 0)).all()
    assert [len(np.unique(values[..., c])) for c in range(4)] == [4, 4, 4, 1]
    integers, scale = rounded(weights, (3,))
    np.testing.assert_allclose(values, integers * scale, rtol=1e-6, atol=1e-9)
    factor = np.float32([3.0, -0.2, 11.0, 1.0])
    np.testing.assert_allclose(round_weights(weights * factor, (3,)), values * factor, rtol=1e-5, atol=1e-8)


def test_a_normalization_behind_a_kernel_is_rounded_as_if_it_were_folded_in(trained):
    conv, norm = trained.get_layer("quantized_conv"), trained.get_layer("norm")
    gamma, beta, mean, variance = (keras.ops.convert_to_numpy(v) for v in norm.weights)
    factor = gamma / np.sqrt(variance + norm.epsilon)
    integers, scale = rounded(conv.layer.kernel.numpy() * factor, (3,))
    folded = keras.ops.conv(X[:8], (integers * scale).astype("float32"), padding="same") + (beta - mean * factor)
    np.testing.assert_allclose(norm(conv(X[:8])), folded, atol=1e-5)


def test_gradients_pass_straight_through_within_the_range_only():
    layer = QuantizedKernels(layers.Dense(1, use_bias=False))
    behind = FakeQuantize()
    model = keras.Sequential([keras.Input((2,)), layer, behind])
    behind.set_range(-1.0, 2.0)
    layer.layer.set_weights([np.float32([[0.5], [0.0]])])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: p)
    model.train_on_batch(np.float32([[1.0, 3.0]]), np.zeros((1, 1)))
    assert layer.layer.kernel.numpy().tolist() == [[-0.5], [-3.0]]
    model.train_on_batch(np.float32([[1.0, 3.0]]), np.zeros((1, 1)))  # -9.5 is below the range, which follows slowly
    assert layer.layer.kernel.numpy().tolist() == [[-0.5], [-3.0]]


# -- the model --------------------------------------------------------------------------------------------------------


def test_what_is_rounded_is_what_the_file_rounds(trained):
    found = report(trained)
    assert [path.split("/")[-2] for path in found.kernels] == ["conv", "depthwise", "pointwise", "transposed", "head"]
    assert not found.skipped
    names = ["x_range", "re_lu_range", "re_lu_1_range", "batch_normalization_1_range", "re_lu_2_range"]
    names += ["transposed_range", "mean_range", "head_sum_range", "head_range"]
    assert [keras_name(one.name) for one in found.ranges] == [keras_name(name) for name in names]
    assert found.ranges[-1].source == "fixed"
    assert "int8, 0 to 0.9961 (fixed)" in str(found)
    assert found.to_dict()["kernels"] == found.kernels


def keras_name(name):
    """Without the number by which Keras tells layers of several models apart."""
    return "".join(letter for letter in name if not letter.isdigit()).replace("__", "_")


def test_masks_go_on_from_the_zeros_and_ranges_from_the_data(trained):
    kernels = {v.path: v.numpy() for v in trained.weights if v.path.endswith("kernel")}
    assert sum((values == 0).sum() for values in kernels.values()) == round(0.9 * sum(v.size for v in kernels.values()))
    assert all((kernels[path][before] == 0).all() for path, before in trained.zeros_before.items())
    first = trained.ranges_before[0]
    assert (first.low, first.high) == pytest.approx((X.min(), X.max()))
    moved = [one for one, before in zip(report(trained).ranges, trained.ranges_before, strict=True) if one != before]
    assert len(moved) == 8


def test_it_is_saved_cloned_and_stripped(trained, dense, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = kp.load_model(tmp_path / "model.keras")
    expected = trained.predict(X, verbose=0)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    assert report(loaded).ranges == report(trained).ranges
    clone = keras.models.clone_model(trained)
    clone.set_weights(trained.get_weights())
    np.testing.assert_array_equal(clone.predict(X, verbose=0), expected)
    plain = kp.strip(loaded)
    assert [type(one) for one in plain.layers if one.name in {two.name for two in dense.layers}] == [
        type(one) for one in dense.layers
    ]
    assert plain.compiled
    assert not report(plain).kernels
    with at_rest(trained):
        np.testing.assert_allclose(plain(X), trained(X), atol=1e-5)
    assert np.abs(plain.predict(X, verbose=0) - expected).max() > 1e-4


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ("wise", ["depthwise", "pointwise"]),
        (["^conv$", "head"], ["conv", "head"]),
        (lambda layer: isinstance(layer, layers.Dense), ["head"]),
    ],
)
def test_filters_are_those_of_keras(dense, filters, names):
    model = quantize_aware(dense, data=X[:4], filters=filters)
    found = report(model)
    assert [path.split("/")[-2] for path in found.kernels] == names
    assert {one.path: one.reason for one in found.skipped}.keys() == {
        f"{name}/kernel" for name in {"conv", "depthwise", "pointwise", "transposed", "head"} - set(names)
    }
    assert all("left out by filters" in one.reason for one in found.skipped)


def test_trained_ranges_follow_the_gradients_of_what_lies_beyond():
    layer = FakeQuantize("trained")
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.set_range(-1.0, 1.0)
    model.compile(keras.optimizers.SGD(0.1), loss=lambda y, p: keras.ops.sum(p, axis=-1))
    model.train_on_batch(np.float32([[-5.0, 3.0, 4.0]]), np.zeros((1, 3)))
    np.testing.assert_allclose(layer.ends, (-1.1, 0.8), rtol=1e-6)


def test_models_in_models_and_sequences_keep_their_form_and_shared_layers_stay_shared():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"), layers.Dense(4)], name="inner")
    shared = layers.Dense(4, activation="tanh", name="shared")
    x = keras.Input((6,))
    model = keras.Model(x, layers.Concatenate()([shared(inner(x)), shared(keras.ops.relu(inner(x)))]))
    made = quantize_aware(model, data=np.ones((4, 6)))
    assert type(made.get_layer("inner")) is keras.Sequential
    kinds = [type(layer).__name__ for layer in made.get_layer("inner").layers]
    assert kinds == ["QuantizedKernels", "FakeQuantize"] * 2
    assert sum(isinstance(layer, QuantizedKernels) for layer in made.layers) == 1
    assert type(kp.strip(made).get_layer("inner")) is keras.Sequential


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"filters": "nothing"}, ValueError, r"filters='nothing' leave no layer with a kernel\. There are: \['x', 'co"),
        ({"filters": 3}, TypeError, r"a regular expression, a list of these, or a function.* Received: 3 of type int"),
        ({"ranges": "fast"}, ValueError, r"ranges must be one of .* Received: 'fast'"),
        ({"momentum": 1.0}, ValueError, r"momentum must be a fraction in \[0, 1\)\. Received: 1\.0"),
    ],
)
def test_wrong_arguments_are_refused(dense, arguments, error, message):
    with pytest.raises(error, match=message):
        quantize_aware(dense, data=X[:4], **arguments)


def test_what_cannot_be_made_quantization_aware_is_refused_with_the_reason(trained):
    with pytest.raises(ValueError, match="trains quantization-aware already"):
        quantize_aware(trained, data=X[:4])
    with pytest.raises(ValueError, match=r"begin a Sequential with keras\.Input"):
        quantize_aware(keras.Sequential([layers.Dense(2)]), data=X[:4])
    with pytest.raises(ValueError, match="two operators in one layer"):
        QuantizedKernels(layers.SeparableConv2D(2, 3))


# -- the file ---------------------------------------------------------------------------------------------------------


def tensors_of(content):
    model = flatbuffer.read(content)
    tensors = [t for t in model.subgraphs[0].tensors if t.quantization is not None]
    return model, [t for t in tensors if t.quantization.scale is not None]


def test_the_file_answers_as_the_model_does(trained, file):
    (answers,) = LiteRTSession(file).run([X], ["x"], ["output_0"], 1)
    expected = trained.predict(X, verbose=0)
    assert np.abs(answers - expected).max() <= 2 / 256
    assert abs((answers.argmax(1) == Y).mean() - (expected.argmax(1) == Y).mean()) <= 0.002


def test_the_file_has_the_trained_ranges_and_no_others(trained, file):
    _, tensors = tensors_of(file)
    scales = {np.float32(t.quantization.scale[0]) for t in tensors if len(t.quantization.scale) == 1}
    wanted = {np.float32((one.high - one.low) / 255) for one in report(trained).ranges}
    assert len(scales) == len(wanted)
    np.testing.assert_allclose(sorted(scales), sorted(wanted), rtol=1e-5)


def test_zeros_and_the_number_of_values_of_each_channel_survive_exactly(trained, file):
    model, tensors = tensors_of(file)
    constants = [
        np.frombuffer(bytes(model.buffers[t.buffer].data), "int8").reshape([int(n) for n in t.shape])
        for t in tensors
        if len(t.quantization.scale) > 1 and len(t.shape) > 1
    ]
    assert len(constants) == 5
    for name, channels, layout in (
        ("conv", (3,), lambda k: np.moveaxis(k, -1, 0)),
        ("depthwise", (2, 3), lambda k: k.reshape(1, 3, 3, -1)),
        ("pointwise", (3,), lambda k: np.moveaxis(k, -1, 0)),
        ("transposed", (2,), lambda k: k.transpose(2, 0, 1, 3)),
        ("head", (1,), np.transpose),
    ):
        integers = layout(rounded(trained.get_layer(f"quantized_{name}").layer.kernel.numpy(), channels)[0])
        # A negative factor of a normalization turns a channel's sign.
        assert any(c.shape == integers.shape and (np.abs(c) == np.abs(integers)).all() for c in constants), name


def test_other_number_types_are_made_of_the_plain_model(trained):
    source = open_source(trained).in_numbers(FLOAT32)
    assert not report(source.keras).kernels
    assert source.notes == (
        "exported as it is without quantization-aware training, whose ranges are for int8, not for float32",
    )
    assert open_source(trained).in_numbers(INT8).plain() is trained
