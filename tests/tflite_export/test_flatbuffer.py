import numpy as np
import pytest

from tflite_export import ExportError, FlatbufferError, export, flatbuffer
from tflite_export.runtime import Session


@pytest.fixture(scope="module")
def sparse_file(tmp_path_factory):
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 4))
    y = layers.Dense(8)(layers.Flatten()(layers.Conv2D(16, 3)(x)))
    model = keras.Model(x, y)
    rng = np.random.default_rng(0)
    kernel, other = model.layers[1].kernel, model.layers[3].kernel
    kernel.assign(kernel.numpy() * (rng.random(kernel.shape) < 0.1))
    other.assign(other.numpy() * np.repeat(rng.random((other.shape[0] // 4, 8)) < 0.1, 4, axis=0))
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    report = export(model, path, data=rng.normal(size=(2, 8, 8, 4)))
    assert {line.encoding.value for line in report.lines if len(line.shape) > 1} == {
        "1x4 blocks",
        "CSR + DENSIFY",
    }
    return path.read_bytes()


def test_what_is_read_is_written_again(sparse_file):
    again = flatbuffer.write(flatbuffer.read(sparse_file))
    assert again[4:8] == b"TFL3"
    assert flatbuffer.write(flatbuffer.read(again)) == again


def test_constants_are_aligned_to_16_bytes(sparse_file):
    model = flatbuffer.read(sparse_file)
    whole = np.frombuffer(sparse_file, dtype=np.uint8)
    start = whole.__array_interface__["data"][0]
    data = [buffer.data for buffer in model.buffers if buffer.data is not None and len(buffer.data)]
    assert len(data) > 3
    assert all((part.__array_interface__["data"][0] - start) % 16 == 0 for part in data)


def test_only_the_sparse_fully_connected_gets_version_8(sparse_file):
    model = flatbuffer.read(sparse_file)
    graph = model.subgraphs[0]
    versions = {
        flatbuffer.operator_name(model, op): model.operatorCodes[op.opcodeIndex].version for op in graph.operators
    }
    assert versions["FULLY_CONNECTED"] == 8
    assert versions["DENSIFY"] == 1
    assert versions["CONV_2D"] < 8


def test_buffers_behind_the_flatbuffer_are_read(sparse_file):
    from ai_edge_litert import schema_py_generated as schema

    model = flatbuffer.read(sparse_file)
    number = max(
        range(len(model.buffers)),
        key=lambda i: 0 if model.buffers[i].data is None else len(model.buffers[i].data),
    )
    moved = bytes(model.buffers[number].data)
    import flatbuffers

    model.buffers[number] = schema.BufferT(offset=10**6, size=len(moved))
    model.buffers[number].Pack = lambda builder: schema.BufferT.Pack(model.buffers[number], builder)
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    content = bytes(builder.Output())
    assert len(content) < 10**6
    outside = content.ljust(10**6, b"\0") + moved
    assert bytes(flatbuffer.read(outside).buffers[number].data) == moved
    with pytest.raises(FlatbufferError, match=r"a buffer must lie inside the file"):
        flatbuffer.read(outside[:-1])


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x1c\0\0\0TFL2" + bytes(64), b"PK\x03\x04" + bytes(64)])
def test_another_format_is_refused(content):
    with pytest.raises(FlatbufferError, match=rf"identifier TFL3 at byte 4\. Received: .* in {len(content)} bytes"):
        flatbuffer.read(content, "other.bin")


def test_a_truncated_file_is_refused_by_name(sparse_file):
    refused = 0
    for size in [*range(0, 200, 7), *range(200, len(sparse_file), len(sparse_file) // 150)]:
        try:
            flatbuffer.read(sparse_file[:size], "cut.tflite")
        except FlatbufferError:
            refused += 1
    # The flatbuffer library writes from the back: the first bytes lead to the last ones, so every cut is seen.
    assert refused >= 170


def test_mutated_files_are_read_or_refused(sparse_file):
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        content = bytearray(sparse_file)
        for place in rng.integers(8, len(content), rng.integers(1, 9)):
            content[place] = rng.integers(0, 256)
        try:
            flatbuffer.read(bytes(content))
        except FlatbufferError:
            refused += 1
    assert refused > 20


def test_tables_that_overlap_do_not_expand_without_bound(sparse_file):
    model = flatbuffer.read(sparse_file)
    model.metadata = []
    content = bytearray(flatbuffer.write(model))
    # A vector of a million tensors that starts anywhere in a small file.
    from ai_edge_litert import schema_py_generated as schema

    table = schema.Model.GetRootAs(content, 0).Subgraphs(0)._tab
    start = table.Vector(table.Offset(4)) - 4
    content[start : start + 4] = (2**30).to_bytes(4, "little")
    with pytest.raises(FlatbufferError, match="damaged"):
        flatbuffer.read(bytes(content))


def damaged(content, edit):
    model = flatbuffer.read(content)
    edit(model)
    return flatbuffer.write(model)


def sparse_levels(model):
    return next(
        tensor.sparsity.dimMetadata
        for tensor in model.subgraphs[0].tensors
        if tensor.sparsity is not None and len(tensor.shape) == 2
    )


def set_operator_input(model):
    model.subgraphs[0].operators[0].inputs = np.array([999], dtype=np.int32)


def set_operator_code(model):
    model.subgraphs[0].operators[0].opcodeIndex = 77


def cut_constant(model):
    constants = [(t, flatbuffer.constant(model, t)) for t in model.subgraphs[0].tensors]
    tensor = next(t for t, values in constants if values is not None and values.size > 1)
    model.buffers[tensor.buffer].data = model.buffers[tensor.buffer].data[:-4]


def raise_index(model):
    level = sparse_levels(model)[1]
    level.arrayIndices.values = np.full_like(level.arrayIndices.values, 250)


def break_segments(model):
    level = sparse_levels(model)[1]
    level.arraySegments.values = level.arraySegments.values[::-1].copy()


def drop_values(model):
    tensor = next(t for t in model.subgraphs[0].tensors if t.sparsity is not None)
    model.buffers[tensor.buffer].data = model.buffers[tensor.buffer].data[:-4]


def set_version(model):
    model.version = 4


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (set_operator_input, r"inputs of an operator must be below \d+\. Received: \[999\]"),
        (set_operator_code, r"operator codes must be below \d+\. Received: \[77\]"),
        (cut_constant, r"constant .* must have \d+ bytes\. Received: \d+"),
        (raise_index, r"indices of .* must be below 144\. Received: \[250"),
        (break_segments, r"segments of .* must rise from 0 to \d+ in 8 steps"),
        (drop_values, r"sparse constant .* must have \d+ bytes"),
        (set_version, r"the schema version must be 3\. Received: 4"),
    ],
)
def test_what_the_runtime_follows_unchecked_is_checked(sparse_file, edit, rule):
    with pytest.raises(FlatbufferError, match=rule):
        flatbuffer.read(damaged(sparse_file, edit), "model.tflite")


def test_a_session_refuses_a_damaged_file_before_the_runtime_sees_it(sparse_file):
    with pytest.raises(FlatbufferError, match=r"^model\.tflite: "):
        Session(sparse_file[:-64], "model.tflite")


def test_the_errors_of_the_package_have_one_base():
    assert issubclass(FlatbufferError, ExportError)
    assert issubclass(ExportError, ValueError)
