"""Files whose weights TensorFlow Lite Micro decodes: ours and Google's, right, wrong and damaged."""

import dataclasses
import importlib
import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import tflite_export as tx
from keras_prune.devices import DEVICES, Encoding
from tflite_export import ExportError, FlatbufferError
from tflite_export.edits.metadata import read_metadata
from tflite_export.file.flatbuffer import constant
from tflite_export.file.tflite_file import Change, TFLiteFile
from tflite_export.plan.eligibility import Consumer, Weight
from tflite_export.plan.plan import PlanLine, make_plan
from tflite_export.plan.weights import Names, collect
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.tflm.decode_operators import decoded_tensors, holds_decode, put_in, without_decode
from tflite_export.tflm.flash_plan import AGAIN, ONCE, choose, tables_of
from tflite_export.tflm.mcu import check_micro
from tflite_export.tflm.micro import MicroSession
from tflite_export.tflm.records import Form, Record, bitmask, huffman_code, lookup_table
from tflite_export.tflm.storing import store

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="needs tflite-micro")

DENSE = dataclasses.replace(DEVICES["mcu"], name="dense mcu", decode=False)


@pytest.fixture(scope="module")
def net():
    """A kernel of each kind: sparse, of few values, neither, and too small."""
    keras.utils.set_random_seed(0)
    stack = [
        keras.Input((10, 10, 4), name="x"),
        layers.Conv2D(32, 3, activation="relu", name="sparse"),
        layers.DepthwiseConv2D(3, name="small"),
        layers.Conv2DTranspose(16, 3, name="few"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(128, activation="relu", name="both"),
        layers.Dense(12, name="neither"),
    ]
    model = keras.Sequential(stack)
    rng = np.random.default_rng(0)
    for name, values, zeros in (("sparse", None, 0.9), ("few", 9, 0.2), ("both", 15, 0.9)):
        kernel = model.get_layer(name).kernel
        drawn = (
            rng.normal(size=kernel.shape) if values is None else rng.choice(np.linspace(-1, 1, values), kernel.shape)
        )
        kernel.assign(np.where(rng.random(kernel.shape) < zeros, 0, 0.1 * drawn))
    return model


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(8, 10, 10, 4)).astype("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mcu")


@pytest.fixture(scope="module")
def report(net, x, folder):
    return tx.export(net, folder / "m.tflite", target="mcu", quantize="int8", data=x)


@pytest.fixture(scope="module")
def dense(net, x, folder):
    """The same file with every weight dense."""
    tx.export(net, folder / "dense.tflite", target=DENSE, quantize="int8", data=x)
    return TFLiteFile((folder / "dense.tflite").read_bytes())


def weights_of(model):
    """(subgraph, tensor) of each int8 constant, with its values and the axis of its scales."""
    found = {}
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        values = constant(model, tensor)
        if values is not None and values.dtype == np.int8:
            axis = tensor.quantization.quantizedDimension if len(tensor.quantization.scale) > 1 else None
            found[0, index] = values, axis
    return found


def answers(file, x):
    with MicroSession(file) as micro:
        return micro.run([x], list(micro.inputs), list(micro.outputs))[0]


def test_each_weight_is_stored_in_the_fewest_bytes_and_the_report_says_what_that_costs(report, dense, folder, x):
    stored = {line.name.split("/")[1]: line for line in report.lines if len(line.shape) > 1}
    assert {name: line.encoding for name, line in stored.items()} == {
        "sparse": Encoding.BITMASK,
        "small": Encoding.DENSE,
        "few": Encoding.HUFFMAN,
        "both": Encoding.HUFFMAN,
        "neither": Encoding.DENSE,
    }
    nonzero = round(1152 * (1 - stored["sparse"].sparsity))
    assert stored["sparse"].stored_bytes == 1152 // 8 + nonzero + 16
    assert "% of its dense bytes with 138 for DECODE, the smallest of: bitmask" in stored["sparse"].reason
    assert "decoded, it would take" in stored["small"].reason
    content = (folder / "m.tflite").read_bytes()
    assert report.written.raw == len(content)
    assert 0 <= len(dense.content) - report.dense.raw <= 16  # for another device's name
    saved = sum(line.dense_bytes - line.stored_bytes - 138 for line in stored.values() if line.encoding != "dense")
    assert 0 <= report.dense.raw - report.written.raw - saved + ONCE < 138
    tensors = TFLiteFile(content).model.subgraphs[0].tensors
    assert b"sequential" in b"".join(tensor.name or b"" for tensor in tensors)
    assert not any(b";" in (tensor.name or b"") for tensor in tensors)
    decoding = report.micro.decoding
    assert dict(report.micro.operators)["DECODE"] == decoding.weights == 3
    assert decoding.decoded_bytes == 1152 + 16 * 9 * 32 + 128 * 16
    assert decoding.most_at_once == 16 * 9 * 32
    assert report.micro.arena_bytes - decoding.dense_arena_bytes > 0
    assert decoding.milliseconds > 0 < decoding.slowdown
    assert "DECODE of 3 weights, 7,808 bytes in each run, 4,608 at once; outputs equal the dense" in str(report)
    assert "decoded weights are those of the dense file" in str(report)
    assert report.to_dict()["micro"]["decoding"]["weights"] == 3
    assert {each.runtime for each in report.unreadable_by} >= {"LiteRT", "OpenVINO", "LiteRT.js"}
    assert read_metadata(TFLiteFile(content).model)["encodings"]["Huffman + DECODE"] == 2
    # Not only by its own word.
    np.testing.assert_array_equal(answers(content, x), answers(dense, x))


@pytest.mark.parametrize("single", [False, True], ids=["a scale for each channel", "one scale"])
def test_every_form_is_equal_bit_for_bit_in_every_kernel(dense, x, single):
    def one_scale(model):
        for number, index in weights_of(model):
            quantization = model.subgraphs[number].tensors[index].quantization
            quantization.scale, quantization.zeroPoint = [float(max(quantization.scale))], [0]
            quantization.quantizedDimension = 0
        return (Change("test", "", "one scale"),)

    file = dense.edited(one_scale)[0] if single else dense
    wanted = answers(file, x)
    assert np.ptp(wanted) > 0
    found = weights_of(file.model)
    assert len(found) == 5
    for form in (lambda values, axis: bitmask(values), lookup_table, lambda values, axis: huffman_code(values)):
        records = {place: form(*weight) for place, weight in found.items()}
        made, _ = file.edited(lambda model, records=records: put_in(model, {k: v for k, v in records.items() if v}))
        assert len(decoded_tensors(made.model)) >= 3
        np.testing.assert_array_equal(answers(made, x), wanted)
        back = without_decode(made)
        assert not holds_decode(back.model)
        np.testing.assert_array_equal(answers(back, x), wanted)


@pytest.fixture(scope="module")
def stored(dense, x):
    """A function that stores the dense file's weights; returns the file and a line for each shape."""
    weights = collect(dense.model, names=Names({}, {}), rows={})
    lines = make_plan(weights, DEVICES["mcu"]).lines

    def act(**arguments):
        file, found = store(dense, weights, lines, {"x": x}, more=lambda lines: lambda model: (), **arguments)
        return file, {line.shape: line for line in found}

    return act


SPARSE, FEW, BOTH = (32, 3, 3, 4), (16, 3, 3, 32), (128, 16)


def test_what_would_not_fit_into_the_arena_stays_dense(stored, report, net, x, folder):
    dense_needs = report.micro.decoding.dense_arena_bytes
    with MicroSession(stored()[0]) as micro:
        micro.feed([x[:1]], ["x"])
        needs = micro.arena()[0]
    file, lines = stored(arena=needs)
    assert {lines[shape].encoding for shape in (FEW, BOTH)} == {Encoding.HUFFMAN}
    file, lines = stored(arena=dense_needs + 1000)
    assert lines[FEW].encoding is Encoding.DENSE
    assert lines[FEW].reason == f"decoded, it would not fit into an arena of {dense_needs + 1000:,} bytes"
    assert lines[BOTH].encoding is Encoding.HUFFMAN
    with MicroSession(file) as micro:
        micro.feed([x[:1]], ["x"])
        assert micro.fits(dense_needs + 1000)
    with pytest.raises(
        ExportError, match=rf"arena: must hold .* Received: {dense_needs - 16:,} bytes; it needs {dense_needs:,}"
    ):
        stored(arena=dense_needs - 16)
    for arguments, message in (
        ({"target": "web", "arena": 9}, "arena: needs a target whose runtime decodes .* Received: 9 for target 'web'"),
        (
            {"target": "mcu", "quantize": "int8", "arena": 0.5},
            r"arena: must be a whole number of bytes.* Received: 0\.5",
        ),
    ):
        with pytest.raises(ExportError, match=message):
            tx.export(net, folder / "a.tflite", data=x, **arguments)


def test_a_weight_has_one_of_the_forms_that_are_asked_for(stored, dense, net, x, folder):
    wanted = answers(dense, x)
    for forms, found in (
        ((Form.BITMASK,), {SPARSE: Encoding.BITMASK, FEW: Encoding.BITMASK, BOTH: Encoding.BITMASK}),
        ((Form.TABLE,), {SPARSE: Encoding.TABLE, FEW: Encoding.TABLE, BOTH: Encoding.TABLE}),
        ((Form.TABLE, Form.BITMASK), {SPARSE: Encoding.BITMASK, FEW: Encoding.TABLE, BOTH: Encoding.BITMASK}),
    ):
        file, lines = stored(forms=forms)
        assert {shape: lines[shape].encoding for shape in found} == found
        np.testing.assert_array_equal(answers(file, x), wanted)
    report = tx.export(net, folder / "b.tflite", target="mcu", quantize="int8", data=x, records=["bitmask"])
    assert {line.encoding for line in report.lines} == {Encoding.BITMASK, Encoding.DENSE}
    for options, message in (
        (
            {"target": "web", "records": ["table"]},
            r"records: needs a target whose runtime decodes.*\['table'\] for targ",
        ),
        ({"records": ["table"], "optimize": "portable"}, r"records: needs .* optimize='portable' leaves out"),
        ({"records": ["lzma"]}, r"records: must be one or more of \('bitmask', 'table', 'huffman'\)\. .*\['lzma'\]"),
        ({"records": "table"}, r"records: must be one or more of .*Received: 'table'"),
        ({"records": ()}, r"Received: \(\)\. Pass records=\('bitmask',\)"),
    ):
        with pytest.raises(ExportError, match=message):
            tx.export(net, folder / "a.tflite", data=x, **{"target": "mcu", "quantize": "int8", **options})


def test_a_weight_that_is_decoded_wrongly_stays_dense(stored, dense, x, monkeypatch):
    """As if the kernel read bitmasks the other way round."""
    module = importlib.import_module("tflite_export.tflm.flash_plan")

    def wrong(values):
        found = bitmask(values)
        return Record(np.packbits(values.reshape(-1) != 0, bitorder="little"), found.ancillary)

    monkeypatch.setattr(module, "bitmask", wrong)
    file, lines = stored()
    assert lines[SPARSE].encoding is Encoding.DENSE
    assert lines[SPARSE].reason == "stored as a record, TensorFlow Lite Micro gives other outputs"
    assert lines[FEW].encoding is Encoding.HUFFMAN
    np.testing.assert_array_equal(answers(file, x), answers(dense, x))


@pytest.fixture(scope="module")
def googles(dense, folder):
    """Files of Google's own compressor: a look-up table for each channel, and one over scales for each."""
    compress = importlib.import_module("tflite_micro.tensorflow.lite.micro.compression.compress").compress
    spec = importlib.import_module("tflite_micro.tensorflow.lite.micro.compression.spec")
    ((number, index),) = [
        place for place, (values, _) in weights_of(dense.model).items() if values.shape == (16, 3, 3, 32)
    ]
    paths = {}
    for name, mode, bits in (("channels", spec.PerChannel(axis=0), 4), ("tensor", spec.PerTensor(), 7)):
        method = spec.LookUpTableCompression(bits, mode)
        paths[name] = folder / f"{name}.tflite"
        paths[name].write_bytes(bytes(compress(dense.content, [spec.Tensor(number, index, [method])])))
    return paths


def test_files_of_googles_compressor_are_read(googles, net, x, dense):
    found = tx.inspect(googles["channels"], target="mcu")
    (weight,) = [each for each in found.weights if each.shape == (16, 3, 3, 32)]
    assert (weight.encoding, weight.stored_bytes) == ("look-up table + DECODE", 16 * 9 * 32 // 2 + 16 + 16 * 9)
    assert not found.dangers
    assert "1 weight in DECODE records, 2,464 bytes for 4,608: TensorFlow Lite Micro alone reads them" in str(found)
    assert tx.verify(googles["channels"], net, x).max_relative < 0.1
    assert "in TensorFlow Lite Micro" in str(tx.verify(googles["channels"], net, x))
    checked = check_micro(googles["channels"].read_bytes())
    assert checked.decoding.weights == 1


def test_a_table_for_the_tensor_over_scales_for_each_channel_is_said_to_be_wrong(googles, net, x, dense):
    content = googles["tensor"].read_bytes()
    # The runtime says nothing, and answers otherwise.
    assert (answers(content, x) != answers(dense, x)).any()
    found = tx.inspect(content, target="mcu")
    (danger,) = found.dangers
    assert danger.code == "look_up_table_axis"
    assert found.is_wrong
    assert "WRONG in TensorFlow Lite Micro: DECODE of 'sequential" in str(found)
    for action in (lambda: check_micro(content), lambda: tx.verify(googles["tensor"], net, x)):
        with pytest.raises(ExportError, match=r"its look-up table must be read .* one look-up table over scales along"):
            action()


def test_our_file_is_inspected_and_verified(report, folder, net, x):
    found = tx.inspect(folder / "m.tflite", target="mcu")
    assert {weight.shape: weight.encoding for weight in found.weights}[SPARSE] == "bitmask + DECODE"
    assert tx.verify(folder / "m.tflite", net, x).samples == 8
    with pytest.raises(ExportError, match=r"must have weights that LiteRT reads.*TFLM_DECODE.*check_micro"):
        LiteRTSession((folder / "m.tflite").read_bytes())


def test_damaged_records_are_told(report, folder):
    file = TFLiteFile((folder / "m.tflite").read_bytes())
    found = decoded_tensors(file.model)

    def cut(model):
        graph = model.subgraphs[0]
        for each in found[:1]:
            tensor = graph.tensors[each.ancillary]
            tensor.shape = np.array([20], dtype=np.int32)
            model.buffers[tensor.buffer].data = model.buffers[tensor.buffer].data[:20]
        return (Change("test", "", "cut"),)

    broken = file.edited(cut)[0]
    for action in (tx.inspect, check_micro, lambda content: decoded_tensors(TFLiteFile(content).model)):
        with pytest.raises(FlatbufferError, match=r"must be a record of its weight\. Received: its bits ask for"):
            action(broken.content)


def test_what_decode_cannot_take_stays_dense_with_the_reason(dense):
    file = TFLiteFile(dense.content)
    ((place, (values, _)),) = [each for each in weights_of(file.model).items() if each[1][0].shape == (16, 3, 3, 32)]
    weight = Weight("w", np.where(values > 60, values, 0).astype(np.int8), (Consumer("CONV_2D", 1),), (place,))
    line = PlanLine("w", values.shape, 0.9, Encoding.DENSE, "", values.nbytes, values.nbytes, (place,))

    def reason(quantization=None, **changes):
        def edit(model):
            vars(model.subgraphs[0].tensors[place[1]].quantization).update(quantization or {})
            return (Change("test", "", ""),)

        (found,) = choose(file.edited(edit)[0].model, [dataclasses.replace(weight, **changes)], [line])
        assert (found.record is None) == (found.line.encoding is Encoding.DENSE)
        return found.line.reason

    assert "of its dense bytes with 138 for DECODE" in reason()
    assert reason({"zeroPoint": np.full(16, 3)}).startswith("its zero point is not 0")
    assert reason({"quantizedDimension": 3, "scale": [0.1], "zeroPoint": [0]}).startswith("its scale lies on axis 3 of")
    assert reason({"scale": None}) == "it has no scale"
    assert reason(values=values.astype(np.float32)).startswith("float32: only int8 weights")
    assert reason(is_output=True).startswith("an output of its subgraph")
    assert reason(consumers=()) == "no operator reads it"
    assert reason(agree=False).startswith("its buffer is shared by 1 tensors of different shapes")
    assert "read by SVDF (input 1), not known" in reason(consumers=(Consumer("CONV_2D", 1), Consumer("SVDF", 1)))
    assert tables_of(3) == 138 + 2 * AGAIN
    # 512 bits, 204 values and a header save 90 bytes beside the tables of a record, and the first one adds an operator.
    few = np.where(np.arange(512) % 5 < 3, 0, np.arange(512) % 127 + 1).astype(np.int8).reshape(16, 1, 1, 32)
    assert reason(values=few) == f"records of all weights would save 90 bytes, and the operator DECODE takes {ONCE}"


def test_a_weight_with_several_readers_is_decoded_for_each(folder):
    keras.utils.set_random_seed(0)
    shared = layers.Dense(64, name="shared")
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(4)(shared(keras.ops.relu(shared(inputs)))))
    shared.kernel.assign(np.where(np.random.default_rng(0).random((64, 64)) < 0.9, 0, shared.kernel.numpy()))
    data = np.random.default_rng(1).normal(size=(4, 64)).astype("float32")
    found = tx.export(model, folder / "s.tflite", target="mcu", quantize="int8", data=data)
    assert dict(found.micro.operators)["DECODE"] == 2
    assert found.micro.decoding.weights == 1
    assert (found.micro.decoding.decoded_bytes, found.micro.decoding.most_at_once) == (2 * 4096, 4096)
    (line,) = [line for line in found.lines if line.encoding is not Encoding.DENSE]
    saved = found.dense.raw - found.written.raw
    expected = 4096 - line.stored_bytes - tables_of(2) - ONCE
    assert 0 <= saved - expected < 300
