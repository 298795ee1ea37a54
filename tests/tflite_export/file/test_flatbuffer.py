import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tflite_export.graphs import Net
from tflite_export import ExportError, FlatbufferError, export
from tflite_export.file import flatbuffer
from tflite_export.runtimes.litert import LiteRTSession


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


def test_equal_names_and_equal_lists_of_numbers_are_stored_once():
    """Of 20 tensors, whose zero points alone would be 20 times 800 bytes."""

    def file(count):
        points, scale = np.zeros(100, dtype=np.int64), np.ones(100, dtype=np.float32)
        tensors = [
            schema.TensorT(
                shape=np.array([100], dtype=np.int32),
                type=schema.TensorType.INT8,
                name=b"n" * 50,
                quantization=schema.QuantizationParametersT(scale=(1 + i) * scale, zeroPoint=points),
            )
            for i in range(count)
        ]
        graph = schema.SubGraphT(tensors=tensors, inputs=np.array([0], dtype=np.int32), outputs=np.array([0], np.int32))
        return flatbuffer.write(schema.ModelT(version=3, subgraphs=[graph], buffers=[schema.BufferT()]))

    assert len(file(20)) - len(file(1)) < 19 * (400 + 100)
    read = flatbuffer.read(file(20)).subgraphs[0].tensors
    assert all(tensor.name == b"n" * 50 for tensor in read)
    assert [tensor.quantization.zeroPoint.tolist() for tensor in read] == [[0] * 100] * 20
    assert [float(tensor.quantization.scale[0]) for tensor in read] == list(range(1, 21))


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
        LiteRTSession(sparse_file[:-64], "model.tflite")


def test_the_errors_of_the_package_have_one_base():
    assert issubclass(FlatbufferError, ExportError)
    assert issubclass(ExportError, ValueError)


def small():
    """A file of two operators, one subgraph."""
    made = Net(1, 8, 8, 4)
    return made, made.unary(made.conv(made.x, 8), "TANH")


def write_constant(made):
    made.graph.operators[-1].outputs = made.graph.operators[-2].inputs[2:]


def compute_twice(made):
    made.graph.operators[-1].outputs = made.graph.operators[-2].outputs


def read_early(made):
    made.graph.operators = made.graph.operators[::-1]


def leave_out(made):
    made.graph.operators[-1].inputs = np.array([-1], dtype=np.int32)


def take_other_options(made):
    made.graph.operators[1].builtinOptions = schema.AddOptionsT()
    made.graph.operators[1].builtinOptionsType = schema.BuiltinOptions.AddOptions


def call_itself(made):
    made.graph.operators[-1].builtinOptions = schema.CallOptionsT(subgraph=0)
    made.graph.operators[-1].builtinOptionsType = schema.BuiltinOptions.CallOptions


def grow(made):
    made.graph.tensors[made.x].shape = np.array([2**20, 2**20, 2**20], dtype=np.int32)


def add_dimensions(made):
    made.graph.tensors[made.x].shape = np.ones(33, dtype=np.int32)


def make_negative(made):
    made.graph.tensors[made.x].shape = np.array([1, -2, 8, 4], dtype=np.int32)


def sign_another_rank(made):
    made.graph.tensors[made.x].shapeSignature = np.array([-1, 8], dtype=np.int32)


def scale_strangely(made):
    made.graph.tensors[made.x].quantization = schema.QuantizationParametersT(
        scale=np.ones(3, np.float32), zeroPoint=np.zeros(3, np.int64), quantizedDimension=3
    )


def name_no_operator(made):
    made.model.operatorCodes[0].builtinCode = 10_000


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (write_constant, r"must be computed once, and be no constant\. Received: a second producer"),
        (compute_twice, r"must be computed once, and be no constant\. Received: a second producer"),
        (read_early, r"an operator must come after the ones whose outputs it reads\. Received: \["),
        (leave_out, r"TANH must have its first inputs\. Received: \[0\]"),
        (take_other_options, r"CONV_2D must have its own options\. Received: AddOptionsT"),
        (call_itself, r"subgraphs must not run each other in a circle\. Received: \[0\]"),
        (grow, r"tensor t0 must have at most 2\*\*40 elements"),
        (add_dimensions, r"tensor t0 must have at most 32 dimensions"),
        (make_negative, r"sizes of tensor t0 must not be negative"),
        (sign_another_rank, r"the shape signature of tensor t0 must have the rank of its shape\. Received: 2"),
        (scale_strangely, r"the quantized dimension of tensor t0 must have as many entries as it has scales, 3"),
        (name_no_operator, r"an operator must be one of the schema's\. Received: 10000"),
    ],
)
def test_what_would_mislead_the_runtime_is_refused(edit, rule):
    made, y = small()
    flatbuffer.read(made.content(y))
    edit(made)
    with pytest.raises(FlatbufferError, match=rule):
        flatbuffer.read(made.content(y))


def block_twice(sparsity):
    sparsity.blockMap = np.array([1, 1], dtype=np.int32)


def permute_wrongly(sparsity):
    sparsity.traversalOrder = np.array([0, 0, 1, 2], dtype=np.int32)


def repeat_index(sparsity):
    level = sparsity.dimMetadata[-1]
    level.arrayIndices.values = np.zeros_like(level.arrayIndices.values)


def lose_segments(sparsity):
    sparsity.dimMetadata[-1].arraySegments = None


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (block_twice, r"levels of t\d+ must be its dimensions and its blocks"),
        (permute_wrongly, r"traversal order of t\d+ must permute its 4 levels"),
        (repeat_index, r"indices of t\d+ must rise within a row"),
        (lose_segments, r"a CSR level of t\d+ must have segments and indices"),
    ],
)
def test_sparsity_that_does_not_fit_is_refused(edit, rule):
    made = Net(1, 8, 8, 4)
    y = made.conv(made.x, 8, zeros=0.5)
    model = made.build(y)
    tensor = next(tensor for tensor in model.subgraphs[0].tensors if tensor.sparsity is not None)
    edit(tensor.sparsity)
    with pytest.raises(FlatbufferError, match=rule):
        flatbuffer.read(flatbuffer.write(model))


def test_a_densify_that_would_be_filled_past_its_end_is_refused():
    made = Net(1, 8, 8, 4)
    y = made.conv(made.x, 8)
    made.graph.tensors[int(made.graph.operators[0].outputs[0])].shape = np.array([2**24, 1, 1, 4], dtype=np.int32)
    with pytest.raises(FlatbufferError, match=r"DENSIFY must keep the shape \[8, 1, 1, 4\]\. Received: \[16777216, "):
        flatbuffer.read(made.content(y))


def test_a_table_that_is_its_own_child_ends():
    """Offsets that lead back: the budget ends what the structure would not."""
    made, y = small()
    content = bytearray(made.content(y))
    # Every 32-bit word in turn becomes an offset to the vector of subgraphs, or near it.
    for place in range(8, len(content) - 4, 4):
        for value in (2**32 - place, 4, 0):
            copy = bytearray(content)
            copy[place : place + 4] = (value % 2**32).to_bytes(4, "little")
            try:
                flatbuffer.read(bytes(copy))
            except FlatbufferError:
                continue


def test_names_that_many_share_are_paid_for():
    """A long name that every tensor points to would be copied for each."""
    made, y = small()
    for tensor in made.graph.tensors:
        tensor.name = b"x" * 100
    made.graph.tensors += [made.graph.tensors[0]] * 200
    content = bytearray(made.content(y))
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    places = [graph.Tensors(i)._tab for i in range(graph.TensorsLength())]
    names = [table.Pos + table.Offset(10) for table in places]
    targets = [place + int.from_bytes(content[place : place + 4], "little") for place in names]
    first = max(targets)
    long = len(content) // 3
    content[first : first + 4] = long.to_bytes(4, "little")
    for place in names:
        if place < first:
            content[place : place + 4] = (first - place).to_bytes(4, "little")
    if first + 4 + long > len(content):
        content += bytes(first + 4 + long - len(content))
    with pytest.raises(FlatbufferError, match=r"its tables must fit its \d+ bytes"):
        flatbuffer.read(bytes(content))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content):
    for file in (content, b"\x08\0\0\0TFL3" + content):
        with pytest.raises(FlatbufferError):
            flatbuffer.read(file)
