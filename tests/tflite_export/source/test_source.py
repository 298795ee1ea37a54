import json
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from tflite_export import ExportError
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.source.keras2 import modernize
from tflite_export.source.loading import open_source
from tflite_export.source.source import FunctionSource, KerasSource
from tflite_export.verification.verify import compare_runs

pytestmark = pytest.mark.filterwarnings("ignore:no data given")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 8)).astype("float32")


def through(model, data=None, batch_size=None, **arguments):
    """Export without sparsity: the source, its dense file, and the figures of the comparison."""
    source = open_source(model, **arguments)
    signature = source.signature(data)
    reference = source.answer(signature, source.inputs(signature, data))
    converted = source.convert(signature, batch_size)
    reference = replace(reference, input_names=converted.inputs, output_names=converted.outputs)
    assert compare_runs(converted.file, reference, "the file").max_relative < 1e-5
    return source, converted


def zeros(source):
    return {name: int((values == 0).sum()) for name, values in source.variables() if values.ndim > 1}


@pytest.fixture
def net():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    shared = keras.Sequential([keras.Input((8,)), layers.Dense(6, activation="relu")], name="shared")
    joined = layers.Concatenate()([shared(a), shared(b)])
    return keras.Model({"a": a, "b": b}, {"sum": layers.Dense(2)(joined), "left": layers.Dense(1)(a)})


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_files_of_keras_3_answer_as_the_model_does(tmp_path, net, file):
    net.save(tmp_path / file)
    source, converted = through(tmp_path / file, {"a": X, "b": -X})
    assert isinstance(source, KerasSource)
    assert (converted.inputs, converted.outputs) == (("a", "b"), ("left", "sum"))
    np.testing.assert_allclose(source.keras([X, -X])["sum"], net([X, -X])["sum"], atol=1e-6)


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_code_in_a_file_is_not_run(tmp_path, file):
    model = keras.Sequential([keras.Input((8,)), layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / file)
    with pytest.raises(ExportError, match=rf"{file}': must load in safe mode.* Received: a Lambda layer"):
        open_source(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("model.keras", r"must be a \.keras file\. Received: no zip archive"),
        ("model.h5", r"must load in safe mode\. Received: "),
        ("none.keras", "must exist"),
        ("none.h5", "must exist"),
    ],
)
def test_damaged_and_missing_files_are_refused(tmp_path, name, rule):
    if name.startswith("model"):
        (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ExportError, match=rf"{name}': {rule}"):
        open_source(tmp_path / name)


def test_a_signature_is_named_of_a_saved_model_only(net):
    with pytest.raises(ExportError, match="signature_key: applies to a SavedModel only"):
        open_source(net, "serve")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (7, r"model: must be a Keras or tf_keras model, or the path .*\. Received: int\."),
        ("model.onnx", r"must be a \.keras file, a \.h5 file, or the folder of a SavedModel\. Received: \.onnx\."),
        (".", r"Received: a folder without saved_model\.pb\."),
    ],
)
def test_anything_else_is_refused(model, message):
    with pytest.raises(ExportError, match=message):
        open_source(model)


def test_a_model_with_masks_is_stripped_and_answers_as_given():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), kp.PrunableDense(16), layers.Dense(3)])
    kp.prune(model, 0.5)
    source, _ = through(model, X)
    assert source.model is model


def test_a_subclassed_model_that_cannot_be_copied_is_exported_itself():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return {"p": self.dense(x["u"]), "q": -x["v"]}

    model = Own()
    data = {"u": X, "v": X[:, :2]}
    model(data)
    _, converted = through(model, data)
    assert (converted.inputs, converted.outputs) == (("u", "v"), ("p", "q"))


def test_adapted_statistics_stay_in_the_file():
    normalization = layers.Normalization()
    normalization.adapt(X * 3 + 1)
    model = keras.Sequential([keras.Input((8,)), normalization, layers.Dense(2)])
    through(model, X)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel with three signatures."""
    import tensorflow as tf

    class Served(tf.Module):
        def __init__(self):
            self.w = tf.Variable(RNG.normal(size=(4, 2)).astype("float32"), name="w")

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, 4), tf.float32, name="features"),
                tf.TensorSpec((None,), tf.int32, name="ids"),
            ]
        )
        def serve(self, features, ids):
            return {"scores": features @ self.w, "twice": ids * 2}

        @tf.function(input_signature=[tf.TensorSpec((3, 4), tf.float32, name="features")])
        def three(self, features):
            return {"scores": features @ self.w}

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
        def words(self, text):
            return {"length": tf.strings.length(text)}

    folder = tmp_path_factory.mktemp("saved") / "model"
    module = Served()
    tf.saved_model.save(
        module, str(folder), signatures={"serve": module.serve, "three": module.three, "words": module.words}
    )
    return folder


def test_a_saved_model_keeps_its_signature(saved):
    data = {"features": X[:, :4], "ids": np.arange(5, dtype="int32")}
    source, converted = through(saved, data, signature_key="serve")
    assert isinstance(source, FunctionSource)
    assert source.model is None
    assert (converted.inputs, converted.outputs, converted.batch_size) == (
        ("features", "ids"),
        ("scores", "twice"),
        None,
    )
    session = LiteRTSession(converted.file)
    assert list(session._interpreter.get_signature_list()) == ["serve"]
    assert [name for name, _ in source.variables()] == ["w"]


def test_the_batch_of_a_saved_model_is_fixed_on_request_or_as_saved(saved):
    _, converted = through(saved, {"features": X[:, :4], "ids": np.arange(5)}, batch_size=2, signature_key="serve")
    assert converted.batch_size == 2
    # Five samples through a batch of three: the second is filled up.
    source, converted = through(saved, {"features": X[:, :4]}, signature_key="three")
    assert (source.signature().batch, converted.batch_size, converted.notes) == (3, 3, ())
    with pytest.raises(ExportError, match=r"was saved with a batch of 3\. Received: 2"):
        source.convert(source.signature(), 2)


def test_a_saved_model_is_quantized(saved):
    from tflite_export.convert.number_types import INT8

    source = open_source(saved, "three")
    signature = source.signature()
    inputs = source.inputs(signature, {"features": RNG.normal(size=(30, 4)).astype("float32")})
    converted = source.convert(signature, kind=INT8, calibration=inputs)
    kinds = {detail["dtype"] for detail in LiteRTSession(converted.file)._interpreter.get_tensor_details()}
    assert np.int8 in kinds
    reference = replace(source.answer(signature, inputs), input_names=converted.inputs, output_names=converted.outputs)
    assert 0 < compare_runs(converted.file, reference, "the file", INT8).max_relative < 0.1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, r"must have the signature 'serving_default'\. Received: \['serve', 'three', 'words'\]"),
        ("other", r"must have the signature 'other'"),
        ("words", r"input 'text' of .* must hold numbers and have a batch dimension\. Received: string"),
    ],
)
def test_signatures_that_cannot_be_used_are_refused(saved, key, message):
    with pytest.raises(ExportError, match=message):
        open_source(saved, key)


def test_a_saved_model_of_keras_draws_inputs_and_agrees(tmp_path, net):
    net.export(tmp_path / "saved", verbose=False)
    _, converted = through(tmp_path / "saved")
    assert converted.inputs == ("a", "b")
    assert converted.outputs == ("left", "sum")


def test_a_damaged_saved_model_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08junk")
    with pytest.raises(ExportError, match="must load as a SavedModel"):
        open_source(tmp_path)


# Keras 2, with and without tfmot.


@pytest.fixture
def k2():
    library = pytest.importorskip("tf_keras")
    library.utils.set_random_seed(0)
    return library


def pruned(k2, layer):
    """A layer in tfmot's wrapper; its mask has every second weight off, and the weights are not masked yet."""
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    # No step has been taken, so that the mask is what is set below.
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=1000)
    return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)


def mask_half(model):
    for layer in model._flatten_layers():
        for _, mask, _ in getattr(layer, "pruning_vars", ()):
            mask.assign((np.arange(mask.numpy().size) % 2).reshape(mask.shape).astype("float32"))
    return model


def make_pruned(k2):
    inner = k2.Sequential([k2.layers.InputLayer((8,)), pruned(k2, k2.layers.Dense(6, name="hidden"))], name="inner")
    a, b = k2.Input((8,), name="a"), k2.Input((4,), name="b")
    joined = k2.layers.Concatenate()([inner(a), b])
    out = pruned(k2, k2.layers.Dense(2, name="out"))(joined)
    return mask_half(k2.Model({"a": a, "b": b}, {"y": out, "z": k2.layers.Dense(1, name="tail")(out)}))


DATA = {"a": X, "b": X[:, :4]}


def check_halves(source):
    counts = {name.split("/")[-2]: count for name, count in zeros(source).items()}
    assert counts == {"hidden": 24, "out": 10, "tail": 0}


def test_a_model_pruned_by_tfmot_loses_its_wrappers_and_keeps_its_zeros(k2):
    model = make_pruned(k2)
    names = [weight.name for weight in model.weights]
    source, converted = through(model, DATA)
    assert isinstance(source, KerasSource)
    check_halves(source)
    assert (converted.inputs, converted.outputs) == (("a", "b"), ("y", "z"))
    assert not [layer.name for layer in source.keras._flatten_layers() if "prune" in layer.name]
    assert source.notes == ("tf_keras model: exported as the Keras 3 model of the same configuration and weights",)
    assert [weight.name for weight in model.weights] == names


def test_an_h5_file_pruned_by_tfmot_needs_no_tfmot(k2, tmp_path, monkeypatch):
    model = make_pruned(k2)
    model.save(tmp_path / "pruned.h5")
    wanted = model({name: values for name, values in DATA.items()}, training=False)
    for name in [name for name in sys.modules if name.startswith("tensorflow_model_optimization")]:
        monkeypatch.setitem(sys.modules, name, None)
    before = (tmp_path / "pruned.h5").read_bytes()
    source, _ = through(tmp_path / "pruned.h5", DATA)
    check_halves(source)
    assert (tmp_path / "pruned.h5").read_bytes() == before
    np.testing.assert_allclose(source.keras(DATA)["z"], wanted["z"], atol=1e-6)


def test_masks_of_a_recurrent_layer_are_told_apart(k2):
    model = k2.Sequential([k2.layers.InputLayer((6, 4)), pruned(k2, k2.layers.LSTM(4)), k2.layers.Dense(2)])
    source, converted = through(mask_half(model), RNG.normal(size=(3, 6, 4)).astype("float32"))
    assert isinstance(source, KerasSource)
    counts = {name.split("/")[-1]: count for name, count in zeros(source).items() if "lstm" in name}
    assert counts == {"kernel": 32, "recurrent_kernel": 32}
    assert converted.batch_size == 1


def test_a_saved_model_with_wrappers_is_refused(k2, tmp_path):
    model = make_pruned(k2)
    model.save(tmp_path / "saved", save_format="tf")
    with pytest.raises(ExportError, match=r"without tfmot's pruning wrappers.*Received: prune_low_magnitude_\w+/mask"):
        open_source(tmp_path / "saved")


def test_what_keras_3_cannot_load_is_exported_by_its_function_with_the_reason(k2):
    class Sine(k2.layers.Layer):
        def call(self, x):
            return k2.backend.sin(x)

    model = mask_half(
        k2.Sequential([k2.layers.InputLayer((8,), name="x"), pruned(k2, k2.layers.Dense(6, name="d")), Sine()])
    )
    source, converted = through(model, X)
    assert isinstance(source, FunctionSource)
    assert "without rewrites, since Keras 3 cannot load it (ValueError: Unknown layer: 'Sine'" in source.notes[0]
    assert zeros(source) == {"d/kernel": 24}
    assert converted.inputs == ("x",)


def test_an_activation_that_changed_its_meaning_is_not_translated(k2, tmp_path):
    model = k2.Sequential([k2.layers.InputLayer((8,)), k2.layers.Dense(3, activation="hard_sigmoid", name="gate")])
    source, _ = through(model, X)
    assert isinstance(source, FunctionSource)
    assert "hard_sigmoid" in source.notes[0]
    model.save(tmp_path / "model.h5")
    with pytest.raises(ExportError, match=r"layer 'gate': .* Received: activation='hard_sigmoid', which Keras 3"):
        open_source(tmp_path / "model.h5")


def test_subclassed_tf_keras_models(k2):
    class Own(k2.Model):
        def __init__(self, dense):
            super().__init__()
            self.dense = dense

        def call(self, x, training=None):
            return self.dense(x)

    model = Own(k2.layers.Dense(3))
    with pytest.raises(ExportError, match="must be built before it is exported"):
        open_source(model)
    model(X)
    assert isinstance(through(model, X)[0], FunctionSource)
    wrapped = Own(pruned(k2, k2.layers.Dense(3)))
    wrapped(X)
    with pytest.raises(
        ExportError, match=r"pruning wrappers can be removed from Sequential and functional models only"
    ):
        open_source(wrapped)


def test_a_wrapper_as_first_layer_keeps_the_shape_of_the_input(k2, tmp_path):
    model = mask_half(k2.Sequential([pruned(k2, k2.layers.Dense(4, input_shape=(8,), name="d"))]))
    assert list(zeros(through(model, X)[0]).values()) == [16]
    model.save(tmp_path / "model.h5")
    assert list(zeros(through(tmp_path / "model.h5", X)[0]).values()) == [16]


def test_separable_and_depthwise_convolutions_of_keras_2_are_read(k2):
    stack = [k2.layers.DepthwiseConv2D(3, name="a/depthwise"), k2.layers.BatchNormalization(), k2.layers.ReLU(6.0)]
    model = k2.Sequential([k2.layers.InputLayer((6, 6, 3)), *stack, k2.layers.Conv2DTranspose(2, 3)])
    assert isinstance(through(model, RNG.normal(size=(2, 6, 6, 3)).astype("float32"))[0], KerasSource)


def test_statistics_inside_a_model_inside_a_model_are_read(k2, tmp_path):
    normalization = k2.layers.Normalization()
    normalization.adapt(X * 3 + 1)
    inner = k2.Sequential([k2.layers.InputLayer((8,)), normalization])
    x = k2.Input((8,))
    model = k2.Model(x, k2.layers.Dense(2)(inner(x)))
    model.save(tmp_path / "model.h5")
    source, _ = through(tmp_path / "model.h5", X)
    np.testing.assert_allclose(source.keras(X), model(X), atol=1e-6)


def test_calls_are_renumbered_where_they_count_from_one():
    inner = {
        "class_name": "Sequential",
        "name": "inner",
        "config": {"name": "inner"},
        "inbound_nodes": [[["x", 0, 0, {}]]],
    }
    dense = {
        "class_name": "Dense",
        "name": "d",
        "config": {"name": "d"},
        "inbound_nodes": [[["inner", 1, 0, {}]], [["inner", 2, 0, {}]]],
    }
    config = {"layers": [inner, dense], "output_layers": [["inner", 2, 0], ["d", 1, 0]]}
    found = modernize(config)
    assert found["layers"][1]["inbound_nodes"] == [[["inner", 0, 0, {}]], [["inner", 1, 0, {}]]]
    assert found["output_layers"] == [["inner", 1, 0], ["d", 1, 0]]
    # Keras 3 lowers the outputs of functional models itself.
    functional = json.loads(json.dumps(config).replace("Sequential", "Functional"))
    assert modernize(functional)["output_layers"] == [["inner", 2, 0], ["d", 1, 0]]
    # Counted from 0 already.
    from_zero = json.loads(json.dumps(config).replace('"inner", 1', '"inner", 0'))
    assert modernize(from_zero) == from_zero
