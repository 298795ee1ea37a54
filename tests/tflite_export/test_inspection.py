"""What inspect tells of files, ours and others', and of models."""

import json

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from tests.tflite_export.graphs import Net
from tflite_export import ExportError, FlatbufferError, export
from tflite_export.file import flatbuffer
from tflite_export.file.encoding import encode_blocks
from tflite_export.inspection import inspect
from tflite_export.xnnpack.padding import MIRRORED

DEVICES = ("android", "ios", "arm64", "web", "x86", "mcu")


@pytest.fixture(scope="module")
def sparse():
    """A file with a whole cluster, 90 % zeros."""
    made = Net(1, 16, 16, 3)
    x = made.block(made.stem(10), zeros=0.9)
    return made.content(made.dense(made.mean(x), 4))


def test_a_sparse_file_is_told_row_by_row(sparse):
    found = inspect(sparse, target="web")
    assert found.runs_sparse
    assert found.summary == "'web': sparse inference of 4 of 7 operators, 90% of their 1x1 weights zero"
    pointwise = next(weight for weight in found.weights if weight.shape == (10, 1, 1, 10))
    assert (pointwise.encoding, pointwise.dtype, pointwise.spmm) == ("CSR + DENSIFY", "float32", True)
    assert pointwise.sparsity == pytest.approx(0.9)
    # 10 values, 11 segments and 10 indices of a byte each.
    assert pointwise.stored_bytes == 10 * 4 + 11 + 10
    head = next(weight for weight in found.weights if weight.shape == (4, 10))
    assert (head.encoding, head.spmm, head.stored_bytes) == ("dense", False, 160)
    shown = str(found)
    assert "CONV_2D" in shown
    assert "taken in by" in shown
    assert "not shown: 1 DENSIFY" in shown
    assert shown.endswith(found.summary)


@pytest.mark.parametrize("target", DEVICES)
def test_targets(sparse, target):
    found = inspect(sparse, target=target)
    assert found.target == target
    assert found.runs_sparse == (target not in ("x86", "mcu"))
    if target == "x86":
        assert "XNNPACK has no sparse kernels there" in found.summary
        assert "AVX" in str(found)


def test_an_unknown_target_is_refused_with_the_known(sparse):
    with pytest.raises(ExportError, match=r"target: must be one of .*'android'.*'x86'.* Received: 'fridge'"):
        inspect(sparse, target="fridge")


def test_a_dictionary_is_json(sparse):
    found = json.loads(json.dumps(inspect(sparse).to_dict()))
    assert found["summary"].startswith("'android': sparse inference")
    assert [operator["operator"] for operator in found["operators"]][:2] == ["PAD", "CONV_2D"]
    assert found["clusters"][0]["on"] is True
    assert set(found["weights"][0]) >= {"name", "encoding", "sparsity", "spmm", "reason"}
    # What a program acts on, beside the texts.
    assert [operator["code"] for operator in found["operators"]] == [
        "taken_in",
        None,
        None,
        "unpacks_a_constant",
        None,
        None,
        "dense_on_vectors",
    ]
    assert [cluster["code"] for cluster in found["clusters"]] == ["sparse_inference"]
    assert [weight["code"] for weight in found["weights"] if weight["spmm"]] == ["sparse_inference"]


def test_too_few_zeros_are_told_in_percent():
    made = Net(1, 16, 16, 3)
    content = made.content(made.mean(made.block(made.stem(10), zeros=0.63)))
    found = inspect(content)
    assert not found.runs_sparse
    assert found.summary == "'android': no sparse inference: 63 % zeros in its 1x1 weights; more than 2/3 must be zero"
    assert "63 % zeros in its 1x1 weights; more than 2/3 must be zero" in [v.rule for v in found.operators]


def test_a_file_that_is_wrong_on_a_phone_says_so():
    made = Net(1, 16, 16, 3)
    x = made.block(made.stem(10))
    found = inspect(made.content(made.mean(made.block(made.depthwise(x, stride=2)))))
    assert found.summary.endswith("BUT THE RESULTS ARE WRONG")
    assert "WRONG where sparse kernels exist: #4 CONV_2D" in str(found)
    assert "Cure: export the Keras model: the mirror rewrite" in " ".join(str(found).split())


def test_other_encodings_are_named():
    made = Net(1, 16)
    values = np.zeros((4, 16), np.float32)
    values[:, :4] = 1
    stored = encode_blocks(values)
    root = made.tensor((4, 16), buffer=flatbuffer.add_buffer(made.model, stored.values))
    made.graph.tensors[root].sparsity = flatbuffer.sparsity_parameters(stored)
    y = made.op("FULLY_CONNECTED", [made.x, root, -1], (1, 4), schema.FullyConnectedOptionsT(), version=8)
    content = made.content(y)
    (weight,) = inspect(content).weights
    assert (weight.encoding, weight.sparsity) == ("1x4 blocks", 0.75)
    assert "sparse FULLY_CONNECTED kernel" in weight.reason

    # A level order that we never write: columns before rows.
    model = flatbuffer.read(content)
    tensor = model.subgraphs[0].tensors[root]
    tensor.sparsity = schema.SparsityParametersT(
        traversalOrder=np.array([1, 0], dtype=np.int32),
        dimMetadata=[schema.DimensionMetadataT(format=0, denseSize=size) for size in (16, 4)],
    )
    model.buffers[tensor.buffer].data = np.zeros(4 * 64, np.uint8)
    (weight,) = inspect(flatbuffer.write(model)).weights
    assert weight.encoding == "sparsity of levels dense/dense, order [1, 0]"
    assert weight.sparsity == 1.0


def test_custom_operators_and_several_subgraphs_are_told():
    made = Net(1, 4)
    y = made.op("CUSTOM", [made.x], (1, 4))
    made.model.operatorCodes[0].customCode = b"Mine"
    model = made.build(y)
    model.subgraphs.append(model.subgraphs[0])
    found = inspect(flatbuffer.write(model))
    assert "custom operator 'Mine' (2): runs only where it is registered" in found.notes
    assert [verdict.subgraph for verdict in found.operators] == [0, 1]
    assert "1/0" in str(found)


@pytest.fixture(scope="module")
def model():
    x = keras.Input((16, 16, 3))
    y = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    y = layers.Conv2D(8, 1)(layers.DepthwiseConv2D(3, padding="same")(y))
    made = keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)), name="small")
    kernel = made.layers[3].kernel
    kernel.assign(np.where(np.arange(64).reshape(kernel.shape) % 10 == 0, 1.0, 0.0))
    return made


def test_a_model_is_told_as_if_its_zeros_were_stored_sparse(model):
    found = inspect(model)
    assert found.subject == "model 'small'"
    assert (found.operators[0].rule, found.operators[0].cure) == ("padding 'same' at stride 2", MIRRORED)
    assert found.summary == f"'android': no sparse inference: what would help: {MIRRORED} (1 operator)"
    weight = next(weight for weight in found.weights if weight.shape == (8, 1, 1, 8))
    assert (weight.encoding, weight.sparsity) == ("dense", pytest.approx(57 / 64))


def test_the_cure_cures(model):
    """With explicit padding, as the rule asks, the same net runs sparse."""
    x = keras.Input((16, 16, 3))
    y = layers.ZeroPadding2D(1)(x)
    for layer in model.layers[1:]:
        changed = {"padding": "valid"} if layer is model.layers[1] else {}
        again = type(layer).from_config({**layer.get_config(), **changed})
        y = again(y)
        again.set_weights(layer.get_weights())
    found = inspect(keras.Model(x, y), target="web")
    assert found.runs_sparse
    assert not found.dangers


def test_files_of_the_stock_converter_are_told(model, tmp_path):
    import tensorflow as tf

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x), input_signature=[tf.TensorSpec((1, 16, 16, 3), tf.float32)])
    archive.write_out(str(tmp_path / "saved"), verbose=False)
    for kind in ("float16", "int8"):
        converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        else:
            converter.representative_dataset = lambda: [[np.ones((1, 16, 16, 3), np.float32)]]
        (tmp_path / f"{kind}.tflite").write_bytes(converter.convert())
        found = inspect(tmp_path / f"{kind}.tflite")
        assert kind in {weight.dtype for weight in found.weights}
        rules = {verdict.rule for verdict in found.operators}
        expected = "does not compute in float32" if kind == "int8" else "padding 'same' at stride 2"
        assert expected in rules


def test_what_is_no_tflite_is_refused_by_name(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FlatbufferError, match=r"model\.tflite'?: a \.tflite carries the identifier"):
        inspect(tmp_path / "model.tflite")
    with pytest.raises(ExportError, match=r"must be a readable file"):
        inspect(str(tmp_path / "none.tflite"))


@pytest.mark.parametrize(("target", "said"), [("x86", True), ("android", True), ("mcu", False)])
def test_the_summary_counts_what_sparse_kernels_of_dense_layers_read(dense_net, tmp_path, target, said):
    export(dense_net, tmp_path / "m.tflite", data=np.ones((2, 64), "float32"))
    summary = inspect(tmp_path / "m.tflite", target=target).summary
    assert ("sparse kernels of Dense layers read 2 weights, 90% zero; no sparse inference: " in summary) == said


def test_what_is_no_model_and_no_path_is_refused():
    with pytest.raises(ExportError, match=r"model: must be a Keras or tf_keras model.*Received: int"):
        inspect(7)


def test_a_model_of_keras_2_is_inspected():
    library = pytest.importorskip("tf_keras")
    model = library.Sequential([library.layers.Input((8,)), library.layers.Dense(4)])
    assert [row.operator for row in inspect(model).operators] == ["FULLY_CONNECTED"]


def test_a_file_of_a_model_is_inspected_like_the_model(tmp_path):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model.save(tmp_path / "model.keras")
    assert inspect(tmp_path / "model.keras").to_dict()["operators"] == inspect(model).to_dict()["operators"]
