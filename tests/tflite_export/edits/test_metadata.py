import json
from functools import partial

import flatbuffers
import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import Encoding, ExportError, FlatbufferError
from tflite_export.edits.metadata import ENTRY, STANDARD_ENTRY, add_metadata, read_metadata, summarize
from tflite_export.file import flatbuffer
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model.signature import signature_of
from tflite_export.plan.plan import PlanLine
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.source.source import KerasSource

LINES = (
    PlanLine("a/kernel", (10, 4), 0.9, Encoding.BLOCK, "", 160, 20, ((0, 1),)),
    PlanLine("b/kernel", (2, 3, 5), 0.5, Encoding.DENSE, "", 120, 120, ((0, 2),)),
    PlanLine("c/kernel", (5, 2), 0.0, Encoding.DENSE, "", 40, 40, ((0, 3),)),
    PlanLine("a/bias", (4,), 0.5, Encoding.DENSE, "", 16, 16, ((0, 4),)),
)


@pytest.fixture(scope="module")
def content():
    """A file as the converter wrote it."""
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu")(image)
    model = keras.Model(image, {"scores": layers.Dense(2)(layers.Flatten()(x)), "map": x})
    return KerasSource(model).convert(signature_of(model)).file.content


def entries(model):
    return {entry.name.decode(): bytes(model.buffers[entry.buffer].data) for entry in model.metadata}


def test_a_summary_counts_the_zeros_of_matrices():
    summary = summarize(LINES, target="android", quantize=None)
    assert (summary["weights"], summary["zeros"], summary["sparsity"]) == (80, 36 + 15, round(51 / 80, 6))
    assert summary["encodings"] == {"1x4 blocks": 1, "dense": 2}
    assert [tensor["name"] for tensor in summary["tensors"]] == ["a/kernel", "b/kernel"]
    assert summary["tensors"][0] == {
        "name": "a/kernel",
        "shape": [10, 4],
        "sparsity": 0.9,
        "encoding": "1x4 blocks",
    }
    assert summary["target"] == "android"
    assert summary["tool"].startswith("keras-prune ")
    assert "tensors" not in summarize(LINES, detail=False)
    assert summarize(())["sparsity"] == 0


def test_a_summary_reads_back_and_the_rest_of_the_file_stays(content):
    model = flatbuffer.read(content)
    before = entries(model)
    assert "min_runtime_version" in before
    assert read_metadata(model) is None
    summary = summarize(LINES, target="web", quantize="int8")
    add_metadata(model, summary)
    written = flatbuffer.write(model)
    again = flatbuffer.read(written)
    assert read_metadata(again) == summary
    after = entries(again)
    assert {name: after[name] for name in before} == before
    assert set(after) == {*before, ENTRY, STANDARD_ENTRY}
    assert again.description == b"MLIR Converted."
    assert [len(again.subgraphs), again.operatorCodes[0].builtinCode] == [
        len(model.subgraphs),
        model.operatorCodes[0].builtinCode,
    ]
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 3)).astype("float32")
    sessions = [LiteRTSession(content), LiteRTSession(written)]
    assert [list(session.inputs) for session in sessions] == [["image"]] * 2
    assert [sorted(session.outputs) for session in sessions] == [["map", "scores"]] * 2
    first, second = (session.run([x], ["image"], ["map", "scores"]) for session in sessions)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_summaries_make_equal_files_and_the_order_of_keys_does_not_matter(content):
    file, summaries = TFLiteFile(content), ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    first, second = (file.edited(partial(add_metadata, summary=each))[0].content for each in summaries)
    assert first == second != content


def test_a_second_summary_takes_the_place_of_the_first(content):
    model = flatbuffer.read(content)
    add_metadata(model, {"round": 1})
    count = len(model.buffers)
    add_metadata(model, {"round": 2})
    assert len(model.buffers) == count
    assert read_metadata(flatbuffer.read(flatbuffer.write(model))) == {"round": 2}


def field(table, slot):
    """Return the place of a field, as the flatbuffer format defines it, or None."""
    offset = table.Offset(4 + 2 * slot)
    return table.Pos + offset if offset else None


def text(table, slot):
    return table.String(field(table, slot)).decode()


def tables(table, slot):
    start = table.Vector(table.Offset(4 + 2 * slot))
    count = table.VectorLen(table.Offset(4 + 2 * slot))
    return [flatbuffers.Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(count)]


def test_the_standard_entry_names_inputs_and_outputs_as_the_signature_does(content):
    model = flatbuffer.read(content)
    add_metadata(model, summarize(LINES, target="web"))
    data = bytearray(entries(model)[STANDARD_ENTRY])
    assert data[4:8] == b"M001"
    root = flatbuffers.Table(data, int.from_bytes(data[:4], "little"))
    assert text(root, 0) == "keras-prune"
    assert text(root, 1) == "sparsity: 0.6375, target: web"
    assert text(root, 7) == "1.0.0"
    (subgraph,) = tables(root, 3)
    assert [(text(t, 0), text(t, 1)) for t in tables(subgraph, 2)] == [("image", "float32, anyx6x6x3")]
    outputs = [(text(t, 0), text(t, 1)) for t in tables(subgraph, 3)]
    assert sorted(outputs) == [("map", "float32, anyx4x4x4"), ("scores", "float32, anyx2")]
    positions = [model.subgraphs[0].outputs.tolist().index(o.tensorIndex) for o in model.signatureDefs[0].outputs]
    assert [outputs[place][0] for place in positions] == [o.name.decode() for o in model.signatureDefs[0].outputs]


def test_a_standard_entry_of_the_users_own_is_left(content):
    model = flatbuffer.read(content)
    add_metadata(model, {"round": 1})
    first = entries(model)[STANDARD_ENTRY]
    add_metadata(model, {"sparsity": 0.5})
    assert entries(model)[STANDARD_ENTRY] == first


@pytest.mark.parametrize("summary", [{"x": float("nan")}, {"x": object()}, {"x": np.float32(1)}])
def test_what_json_cannot_express_is_refused_before_the_model_is_touched(content, summary):
    model = flatbuffer.read(content)
    with pytest.raises(ExportError, match="the metadata: must be what JSON can express"):
        add_metadata(model, summary)
    assert read_metadata(model) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_entry_is_an_error(content, damage):
    model = flatbuffer.read(content)
    add_metadata(model, {"round": 1})
    entry = next(entry for entry in model.metadata if entry.name == ENTRY.encode())
    model.buffers[entry.buffer].data = np.frombuffer(damage, dtype=np.uint8)
    with pytest.raises(FlatbufferError, match=r"metadata 'keras_prune': must be a JSON object"):
        read_metadata(model)


def test_the_entry_is_text_that_anyone_can_read(content):
    model = flatbuffer.read(content)
    add_metadata(model, {"sparsity": 0.9, "name": "größe"})
    assert json.loads(entries(model)[ENTRY]) == {"name": "größe", "sparsity": 0.9}
    assert entries(model)[ENTRY].isascii()
