"""Large Dense kernels stay out of the conversion: the same file comes of it, or the model is converted whole."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tflite_export import export
from tflite_export.convert import converter as stock
from tflite_export.convert import hollow
from tflite_export.file import flatbuffer
from tflite_export.model.signature import signature_of
from tflite_export.runtimes.litert import Session


@pytest.fixture(autouse=True)
def _small_counts_as_large(monkeypatch):
    monkeypatch.setattr(hollow, "LARGE", 4 * 8 * 8)
    monkeypatch.setattr(hollow, "WORTH_WHILE", 4 * 8 * 8)


@pytest.fixture
def taken(monkeypatch):
    """Whether each conversion of a model with large kernels came off without them."""
    found = []
    inner = stock._convert_hollow

    def recorded(model, *arguments):
        result = inner(model, *arguments)
        if hollow.Hollow.of(model).kernels:
            found.append(result is not None)
        return result

    monkeypatch.setattr(stock, "_convert_hollow", recorded)
    return found


def chain():
    """Square kernels, one of them used twice, one equal to another, one too small, and one on three axes."""
    rng = np.random.default_rng(0)
    entry = keras.Input((5, 16))
    twice = kl.Dense(16, activation="tanh")
    x = kl.Dense(24, activation="relu")(twice(twice(entry)))
    x = kl.GlobalAveragePooling1D()(x)
    first, second = kl.Dense(24, use_bias=False), kl.Dense(24, activation="relu")
    x = second(kl.Activation("gelu")(first(x)))
    model = keras.Model(entry, kl.Dense(3)(x))
    for variable in model.variables:
        variable.assign(rng.standard_normal(variable.shape, dtype=np.float32) / 4)
    second.kernel.assign(first.kernel)
    return model


def with_normalization():
    """A batch normalization that the converter multiplies into the kernel before it."""
    model = keras.Sequential([keras.Input((16,)), kl.Dense(16), kl.BatchNormalization(), kl.Dense(2)])
    model.layers[1].gamma.assign(np.linspace(0.5, 2, 16, dtype=np.float32))
    model.layers[1].moving_mean.assign(np.linspace(-1, 1, 16, dtype=np.float32))
    return model


def linear():
    """A bias that the converter multiplies with the kernel behind it, into the bias behind that."""
    first, second = (kl.Dense(16, bias_initializer="random_normal") for _ in range(2))
    return keras.Sequential([keras.Input((16,)), first, second])


def cancelling():
    """The same, where what is carried over sums up to zero with a kernel of one value."""
    model = linear()
    model.layers[0].bias.assign(np.tile([0.5, -0.5], 8))
    return model


def shifted():
    """A batch normalization that only shifts, by as much up as down."""
    norm = kl.BatchNormalization(epsilon=0.0)
    model = keras.Sequential([keras.Input((16,)), kl.Dense(16, activation="relu"), norm, kl.Dense(16)])
    norm.beta.assign(np.tile([0.5, -0.5], 8))
    return model


def scaled():
    """A kernel that is used as it is, and once more with a scale that the converter multiplies into it."""
    entry = keras.Input((16,))
    dense = kl.Dense(16, use_bias=False)
    return keras.Model(entry, [dense(entry), kl.Rescaling(1e-12)(dense(kl.ReLU()(entry)))])


@keras.saving.register_keras_serializable("tests")
class Default(kl.Layer):
    """What a layer makes of a learned value, for samples that are all zero."""

    def __init__(self, dense, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense

    def build(self, shape):
        self.value = self.add_weight(shape=(1, shape[-1]), initializer="random_normal")
        self.dense.build(shape)

    def call(self, x):
        empty = keras.ops.all(x == 0, axis=-1, keepdims=True)
        return keras.ops.where(empty, self.dense(keras.ops.convert_to_tensor(self.value)), self.dense(x))


def constant():
    """A kernel that the converter multiplies a constant with, in a branch that the data need not reach."""
    entry = keras.Input((16,))
    return keras.Model(entry, Default(kl.Dense(16, activation="tanh"))(entry))


@keras.saving.register_keras_serializable("tests")
class Tied(kl.Layer):
    """Multiplies with a Dense layer's kernel the other way round."""

    def __init__(self, dense, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.dense.kernel))


def tied():
    """A kernel that something else than its layer reads."""
    entry = keras.Input((16,))
    dense = kl.Dense(16)
    return keras.Model(entry, Tied(dense)(dense(entry)))


@keras.saving.register_keras_serializable("tests")
class Counting(kl.Layer):
    """Writes to a variable as it is called."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign(self.calls + 1.0)
        return x


def stateful():
    return keras.Sequential([keras.Input((16,)), kl.Dense(16), Counting()])


def constants(file):
    values = [flatbuffer.constant(file, tensor) for tensor in file.subgraphs[0].tensors]
    return {(each.shape, each.tobytes()) for each in values if each is not None}


def file_of(model):
    return stock.convert(lambda: model, signature_of(model))


def test_the_file_is_that_of_the_whole_model(taken, monkeypatch):
    model = chain()
    without = file_of(model)
    assert taken == [True]
    monkeypatch.setattr(hollow, "WORTH_WHILE", 1 << 30)
    whole = file_of(model)
    assert taken == [True]
    ours, theirs = flatbuffer.read(without.content), flatbuffer.read(whole.content)
    operators = [[flatbuffer.operator_name(f, op) for op in f.subgraphs[0].operators] for f in (ours, theirs)]
    assert operators[0] == operators[1]
    assert "FULLY_CONNECTED" in operators[0]
    # A kernel that two layers have is one tensor or two, and one buffer always.
    assert constants(ours) == constants(theirs)
    assert abs(len(without.content) - len(whole.content)) < 512  # names of tensors
    feed = np.random.default_rng(1).standard_normal((3, 5, 16), dtype=np.float32)
    answers = [
        Session(converted.content, "a file", delegate=False).run([feed], converted.inputs, converted.outputs)
        for converted in (without, whole)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize(
    "make", [with_normalization, linear, cancelling, shifted, scaled, constant, tied], ids=lambda make: make.__name__
)
def test_what_does_not_fit_is_converted_whole(taken, make, tmp_path):
    feed = np.random.default_rng(1).standard_normal((4, 16), dtype=np.float32)
    report = export(make(), tmp_path / "model.tflite", data=feed)
    assert taken == [False]
    assert report.verification.max_relative < 1e-6


def test_what_is_added_that_depends_on_the_input_too_is_no_hindrance(taken):
    entry = keras.Input((16,))
    x = kl.LayerNormalization()(kl.Add()([kl.Dense(16, activation="relu")(entry), entry]))
    model = keras.Model(entry, kl.Dense(16)(x))
    file_of(model)
    assert taken == [True]


def test_a_model_that_writes_to_a_variable_is_not_taken_apart():
    model = stateful()
    found = hollow.Hollow.of(model)
    assert len(found.kernels) == 1
    import tensorflow as tf

    with pytest.raises(hollow.ExportError, match="write to no variable"):
        tf.function(lambda x: found.call(model, x), autograph=False).get_concrete_function(
            tf.TensorSpec((None, 16), tf.float32)
        )


def test_only_plain_dense_layers_in_float32_are_taken_apart(monkeypatch):
    class Own(kl.Dense):
        def call(self, x):
            return super().call(x) + keras.ops.sum(self.kernel)

    model = keras.Sequential([keras.Input((16,)), Own(16), kl.Dense(16, dtype="float16"), kl.Dense(16), kl.Dense(2)])
    assert [kernel.path for kernel in hollow.Hollow.of(model).kernels] == [model.layers[2].kernel.path]
    monkeypatch.setattr(hollow, "WORTH_WHILE", 4 * 16 * 16 + 1)
    assert hollow.Hollow.of(model).kernels == ()
