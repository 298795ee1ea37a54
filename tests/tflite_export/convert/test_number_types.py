import sys

import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import Encoding, ExportError, export, verify
from tflite_export.convert import number_types as numbers
from tflite_export.convert.number_types import NUMBER_TYPES, number_type_of, resolve_number_type
from tflite_export.file import flatbuffer
from tflite_export.model.inputs import Inputs
from tflite_export.plan.weights import Names, fingerprint
from tflite_export.stages.checks import check_size


@pytest.fixture(scope="module")
def net():
    """Two Dense layers of 16x1 blocks of a Keras kernel, 90 % of them zero; a classifier."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    x = keras.Input((64,), name="x")
    model = keras.Model(x, layers.Dense(16, name="two")(layers.Dense(128, activation="relu", name="one")(x)))
    for layer in model.layers[1:]:
        shape = layer.kernel.shape
        blocks = rng.permutation(shape[0] * shape[1] // 16) >= round(0.9 * shape[0] * shape[1] // 16)
        layer.kernel.assign(layer.kernel * np.repeat(blocks.reshape(shape[0] // 16, shape[1]), 16, axis=0))
        layer.bias.assign(rng.normal(size=shape[1]) * 0.1)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(4).normal(size=(150, 64)).astype("float32")


def test_the_number_types_of_the_design_are_known():
    assert list(NUMBER_TYPES) == ["float32", "float16", "dynamic", "int8", "int16x8"]
    assert resolve_number_type(None) is numbers.FLOAT32
    assert resolve_number_type("int16x8").calibrated
    assert all(0 < kind.encoding_tolerance <= kind.tolerance < 0.5 for kind in NUMBER_TYPES.values())


@pytest.mark.parametrize("name", ["int4", "float32", ""])
def test_an_unknown_number_type_is_refused_with_those_that_are_known(name, net, tmp_path):
    with pytest.raises(
        ExportError,
        match=rf"quantize: must be one of \[None, 'float16', 'dynamic', 'int8', 'int16x8'\]\. Received: '{name}'",
    ):
        export(net, tmp_path / "model.tflite", quantize=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int8"}, r"quantize='int8': needs a representative data set .* Received: data=None"),
        ({"target": "mcu", "data": np.ones((2, 64))}, r"target 'mcu': takes quantize='int8'\. Received: None"),
        ({"target": "mcu", "quantize": "dynamic"}, r"target 'mcu': takes quantize='int8'\. Received: 'dynamic'"),
        ({"optimize": "memory"}, r"optimize: must be 'speed', 'size' or 'portable'\. Received: 'memory'"),
        ({"target": "toaster"}, r"target: must be one of .* Received: 'toaster'"),
        ({"target": "web", "tune": True}, r"tune=True for target 'web': needs a machine of that kind"),
    ],
)
def test_choices_that_do_not_go_together_are_refused_before_work_begins(arguments, message, net, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["tflite_export.export"], "make_dense_file", lambda *_: pytest.fail("work began"))
    with pytest.raises(ExportError, match=message):
        export(net, tmp_path / "model.tflite", **arguments)


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8", "int16x8"])
def test_a_file_is_of_its_number_type_and_its_weights_keep_their_names(quantize, net, data, tmp_path):
    path = tmp_path / "model.tflite"
    report = export(net, path, data=data, quantize=quantize, optimize="size")
    assert number_type_of(flatbuffer.read(path.read_bytes())) is resolve_number_type(quantize)
    assert {line.name for line in report.lines if len(line.shape) > 1} == {"one/kernel", "two/kernel"}
    encodings = {line.encoding for line in report.lines if len(line.shape) > 1}
    assert (
        encodings
        == {
            None: {Encoding.BLOCK},
            "float16": {Encoding.DENSIFY},
            "dynamic": {Encoding.DENSE},
            "int8": {Encoding.BLOCK16},
            "int16x8": {Encoding.DENSIFY},
        }[quantize]
    )
    assert report.quantize == quantize
    assert report.to_dict()["quantize"] == quantize
    assert f"target 'any', {quantize or 'float32'}; " in str(report)
    assert report.verification.top1 >= 0.8
    assert "top-1 agreement" in str(report)
    # The same tolerance is found by the file alone.
    again = verify(path, net, data)
    assert again.tolerance == report.verification.tolerance == resolve_number_type(quantize).tolerance
    assert again.max_relative == report.verification.max_relative


def test_float16_and_dynamic_need_no_data(net, tmp_path):
    for quantize in ("float16", "dynamic"):
        with pytest.warns(UserWarning, match="no data given"):
            assert export(net, tmp_path / "model.tflite", quantize=quantize).verification.drawn


def test_a_quantized_file_is_held_against_the_dense_one_too(net, data, tmp_path, monkeypatch):
    """Rows that are swapped are within what int8 may cost here, were it not for the dense file."""
    from tflite_export.plan.plan import encoded

    def wrong(weight, encoding):
        sparse = encoded(weight, encoding)
        sparse.values[:32] //= 2
        return sparse

    report = export(net, tmp_path / "model.tflite", data=data, quantize="int8", optimize="size", tolerance=10.0)
    assert report.verification.encoding <= 0.04
    monkeypatch.setattr("tflite_export.edits.encode.encoded", wrong)
    report = export(net, tmp_path / "model.tflite", data=data, quantize="int8", optimize="size", tolerance=10.0)
    wrong_lines = [line for line in report.lines if "must equal the dense file's to 0.04 of its scale" in line.reason]
    assert wrong_lines
    assert all(line.encoding is Encoding.DENSE for line in wrong_lines)
    with pytest.raises(ExportError, match=r"must equal the dense file's to 0\.04"):
        export(net, tmp_path / "model.tflite", data=data, quantize="int8", optimize="size", tolerance=10.0, strict=True)


def test_an_error_that_quantization_itself_makes_is_refused(net, data, tmp_path):
    with pytest.raises(ExportError, match=r"must equal the model's to 1e-05 .* Quantize less, give more data"):
        export(net, tmp_path / "model.tflite", data=data, quantize="int8", tolerance=1e-5)
    assert not (tmp_path / "model.tflite").exists()


def test_strict_raises_where_the_number_type_keeps_a_weight_dense(net, data, tmp_path):
    with pytest.raises(
        ExportError,
        match=r"weight '(one|two)/kernel': must be stored sparse with strict=True, but the runtime gives wrong "
        r"results with a sparse int8 weight there\. Received: read by FULLY_CONNECTED \(input 1, in float32\)",
    ):
        export(net, tmp_path / "model.tflite", data=data, quantize="dynamic", strict=True)
    export(net, tmp_path / "model.tflite", data=data, quantize="float16", strict=True)


def test_classes_may_differ_in_a_quantized_file_by_its_tolerance(data, tmp_path):
    keras.utils.set_random_seed(3)
    x = keras.Input((64,))
    model = keras.Model(x, keras.ops.cast(layers.Dense(64)(x) > 0, "int32"))
    report = export(model, tmp_path / "model.tflite", data=data, quantize="dynamic")
    assert 0 < report.verification.max_relative <= 0.1
    with pytest.raises(ExportError, match=r"integers must equal the model's, but for 0%\. Received: \d+ of 2048"):
        export(model, tmp_path / "model.tflite", data=data, quantize="dynamic", tolerance=1e-3)


def test_calibration_goes_in_batches_of_the_files_size():
    inputs = Inputs((np.arange(5), np.arange(5) * 10), drawn=False)
    found = [
        {name: array.tolist() for name, array in batch.items()} for batch in numbers.batches(inputs, ("a", "b"), 2)
    ]
    assert found == [{"a": [0, 1], "b": [0, 10]}, {"a": [2, 3], "b": [20, 30]}, {"a": [4, 4], "b": [40, 40]}]
    assert [batch["a"].tolist() for batch in numbers.batches(inputs, ("a", "b"), None)] == [[i] for i in range(5)]


def test_a_model_above_the_limit_of_the_format_is_refused_before_anything_is_made(net, tmp_path, monkeypatch):
    table = ("table/embeddings", (40_000, 20_000))
    with pytest.raises(ExportError, match=r"at most 2146435072 .* Received: 3200000064 bytes in float32, 'table/emb"):
        check_size([table, ("bias", (16,))])
    check_size([table], numbers.FLOAT16)
    with pytest.raises(ExportError, match=r"Received: 2400000000 bytes in int8"):
        check_size([(table[0], (40_000, 60_000))], numbers.INT8)
    monkeypatch.setattr("tflite_export.file.flatbuffer.LARGEST_FILE", 40_000)
    monkeypatch.setattr(sys.modules["tflite_export.export"], "make_dense_file", lambda *_: pytest.fail("work began"))
    with pytest.raises(ExportError, match=r"Received: 41536 bytes in float32, 'one/kernel' the largest with 32768"):
        export(net, tmp_path / "model.tflite", data=np.ones((1, 64)))


def test_a_variable_is_known_by_its_values_in_every_number_type():
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(64, 32)).astype("float32") for i in range(40)}
    names = Names.of(weights.items(), float16=True, sums=True)
    for path, values in weights.items():
        assert names.find(values.T.copy()) == path
        assert names.find(values.astype("float16")) == path
        scale = np.abs(values.T).max(axis=1) / 127
        parameters = type("Parameters", (), {"scale": scale, "quantizedDimension": 0})
        assert names.find(np.round(values.T / scale[:, None]).astype("int8"), parameters) == path
    assert names.find(rng.normal(size=(64, 32)).astype("float32")) is None
    assert names.find(np.ones((4, 4), "int8"), None) is None


def test_variables_that_are_equal_keep_no_name():
    values = np.ones((8, 8), "float32")
    names = Names.of([("a", values), ("b", values)], sums=True)
    assert fingerprint(values) not in names.exact
    assert names.find(values) is None
    assert (names | Names.of([("c", values)])).find(values) == "c"
