import json

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from keras_prune.arrays.distance import largest_difference
from tflite_export import ExportError, FlatbufferError, benchmark, export
from tflite_export.bench.report import BenchmarkReport, Timing
from tflite_export.edits.twin import is_sparse, twin, unfold
from tflite_export.file import flatbuffer
from tflite_export.file.encoding import decode, encode_blocks, encode_csr
from tflite_export.runtimes.litert import LiteRTSession


@pytest.fixture(scope="module")
def net(make_dense_net):
    return make_dense_net()


@pytest.fixture(scope="module")
def files(tmp_path_factory, net, inputs):
    folder, data = tmp_path_factory.mktemp("files"), inputs(net)[0]
    export(net, folder / "sparse.tflite", data=data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tflite_export.plan.eligibility.SMALLEST", 10**9)
        export(net, folder / "dense.tflite", data=data)
    return folder / "dense.tflite", folder / "sparse.tflite"


def test_files_are_timed_against_the_first_and_their_outputs_compared(files):
    report = benchmark(*files, rounds=7, warm_up=1)
    first, second = report.timings
    assert (first.ratio, first.max_difference) == (1.0, 0.0)
    assert second.max_difference < 1e-5
    assert second.file_bytes < first.file_bytes
    assert first.low <= first.median == first.median_ms <= first.high
    assert (report.rounds, report.warm_up, report.unit) == (7, 1, "ms")
    assert report.description.startswith("LiteRT ")
    assert (first.twin_ratio, second.twin_ratio) == (None, None)
    assert "dense.tflite" in str(report)
    assert "ratio: median over the rounds of first file's time / this file's" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["files"][1]["ratio"] == second.ratio


def test_a_file_that_answers_otherwise_shows_it(files, tmp_path, dense_net, inputs):
    dense_net.layers[1].bias.assign_add(np.ones(16))
    export(dense_net, tmp_path / "other.tflite", data=inputs(dense_net)[0])
    report = benchmark(files[0], tmp_path / "other.tflite", rounds=1, batch=4, data=inputs(dense_net, samples=4)[0])
    assert report.batch == 4
    assert report.timings[1].max_difference > 0.1


def test_what_cannot_be_compared_is_refused(files, tmp_path, inputs):
    model = keras.Sequential([keras.Input((5, 8), name="other"), layers.GRU(4)])
    export(model, tmp_path / "other.tflite", data=inputs(model)[0])
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    two = keras.Model([left, right], layers.Dense(2)(layers.Add()([left, right])))
    export(two, tmp_path / "two.tflite", data=inputs(two))
    with pytest.raises(ExportError, match=r"must have the inputs of the first file.* Received: \['left', 'right'\]"):
        benchmark(files[0], tmp_path / "two.tflite")
    with pytest.raises(
        ExportError, match=r"must take what the first file.s .x. takes.*Received: float32 of \(batch, 5, 8\)"
    ):
        benchmark(files[0], tmp_path / "other.tflite")
    with pytest.raises(ExportError, match=r"must take a batch of 2\. Received: 1"):
        benchmark(tmp_path / "other.tflite", data=np.ones((2, 5, 8)))
    with pytest.raises(
        ExportError, match=r"runtime: must be one of \('litert', 'web', 'arm64'\)\. Received: 'toaster'"
    ):
        benchmark(files[0], runtime="toaster")
    with pytest.raises(ExportError, match=r"needs a file, and rounds, batch and threads of 1 or more"):
        benchmark(files[0], rounds=0)
    with pytest.raises(ExportError, match=r"needs a file"):
        benchmark()
    with pytest.raises(ExportError, match=r"runs on one thread with XNNPACK\. Received: threads=2, delegate=True"):
        benchmark(files[0], runtime="web", threads=2)
    with pytest.raises(ExportError, match=r"browser: belongs to the runtime 'web'\. Received: 'litert'"):
        benchmark(files[0], browser=True)


def test_a_sparse_file_is_timed_against_its_twin(files):
    report = benchmark(*files, rounds=3, twins=True)
    assert report.timings[0].twin_ratio is None
    assert report.timings[1].twin_ratio > 0
    assert [timing.path for timing in report.timings] == [str(path) for path in files]
    assert "not sparse" in str(report)
    assert "against the same zeros stored dense" in str(report)


def test_instructions_are_said_to_be_such():
    timing = Timing("a.tflite", 10, 1500.0, 1500.0, 1500.0, 1.0, 0.0)
    report = BenchmarkReport((timing,), "arm64", "an emulator", "guest instructions", 1, 1, 3, 1)
    assert "median instructions" in str(report)
    assert "1,500" in str(report)
    assert "first file's guest instructions / this file's" in str(report)
    assert report.to_dict()["unit"] == "guest instructions"
    assert report.to_dict()["files"][0]["median_instructions"] == 1500.0


# -- the twin ----------------------------------------------------------------------------------------------------------


def test_the_twin_is_the_file_without_sparsity(files, net, inputs):
    dense, sparse = (path.read_bytes() for path in files)
    made = twin(sparse)
    assert is_sparse(sparse)
    assert not is_sparse(made)
    assert twin(made) is made
    stored = {
        tensor.name: values.tobytes()
        for tensor in flatbuffer.read(dense).subgraphs[0].tensors
        if (values := flatbuffer.constant(flatbuffer.read(dense), tensor)) is not None
    }
    again = flatbuffer.read(made)
    for tensor in again.subgraphs[0].tensors:
        values = flatbuffer.constant(again, tensor)
        assert values is None or values.tobytes() == stored[tensor.name]
    names, outputs = list(LiteRTSession(dense).inputs), list(LiteRTSession(dense).outputs)
    data = inputs(net)
    # The block kernel sums in another order than the dense one.
    answers = [LiteRTSession(content).run(data, names, outputs) for content in (dense, made)]
    assert largest_difference(*answers) < 1e-6


def test_the_twin_has_no_densify(tmp_path, zero_out, inputs, operators):
    model = zero_out(keras.Sequential([keras.Input((8, 8, 16)), layers.Conv2D(64, 3, activation="relu")]))
    data = inputs(model)
    export(model, tmp_path / "sparse.tflite", data=data)
    (tmp_path / "twin.tflite").write_bytes(twin((tmp_path / "sparse.tflite").read_bytes()))
    assert sorted(operators(tmp_path / "sparse.tflite")) == ["CONV_2D", "DENSIFY"]
    assert operators(tmp_path / "twin.tflite") == ["CONV_2D"]
    sessions = [LiteRTSession((tmp_path / name).read_bytes()) for name in ("sparse.tflite", "twin.tflite")]
    answers = [session.run(data, list(session.inputs), list(session.outputs)) for session in sessions]
    assert largest_difference(*answers) == 0.0


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_unfolding_is_decoding(shape, seed, zeros):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random(shape) < zeros, 0.0, rng.normal(size=shape)).astype("float32")
    sparse = encode_csr(dense)
    parameters = flatbuffer.sparsity_parameters(sparse)
    assert np.array_equal(unfold(sparse.shape, parameters, sparse.values), dense)
    blocks = encode_blocks(np.repeat(dense.reshape(1, -1), 4, axis=1))
    parameters = flatbuffer.sparsity_parameters(blocks)
    assert np.array_equal(unfold(blocks.shape, parameters, blocks.values), decode(blocks))


def levels(*found):
    """Return DimensionMetadata: an integer is a dense level, a pair is (segments, indices)."""
    kinds = schema.SparseIndexVector
    return [
        schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=level)
        if isinstance(level, int)
        else schema.DimensionMetadataT(
            format=schema.DimensionType.SPARSE_CSR,
            arraySegmentsType=kinds.Uint8Vector,
            arraySegments=schema.Uint8VectorT(values=level[0]),
            arrayIndicesType=kinds.Uint8Vector,
            arrayIndices=schema.Uint8VectorT(values=level[1]),
        )
        for level in found
    ]


def test_any_order_of_levels_unfolds():
    # Columns outside, compressed rows inside: the values lie column by column.
    by_column = schema.SparsityParametersT(traversalOrder=[1, 0], dimMetadata=levels(3, ([0, 1, 1, 3], [1, 0, 1])))
    assert unfold((2, 3), by_column, np.array([5.0, 6.0, 7.0])).tolist() == [[0, 0, 6], [5, 0, 7]]
    # Blocks of 2 x 2 in a 4 x 4 matrix: the one at the top right and the one at the bottom left.
    blocks = schema.SparsityParametersT(
        traversalOrder=[0, 1, 2, 3], blockMap=[0, 1], dimMetadata=levels(2, ([0, 1, 2], [1, 0]), 2, 2)
    )
    assert unfold((4, 4), blocks, np.arange(1.0, 9.0)).tolist() == [
        [0, 0, 1, 2],
        [0, 0, 3, 4],
        [5, 6, 0, 0],
        [7, 8, 0, 0],
    ]


@pytest.mark.parametrize(
    ("order", "found", "values"),
    [
        ([0, 0], (2, 2), 4),  # a level twice
        ([0, 1], (2,), 2),  # a level missing
        ([0, 1], (2, ([0, 1], [0])), 1),  # segments for one row of two
        ([0, 1], (2, ([0, 2, 1], [0, 1])), 2),  # segments that fall
        ([0, 1], (2, ([0, 1, 2], [0, 7])), 2),  # a column that does not exist
        ([0, 1], (2, ([0, 1, 2], [0, 1])), 3),  # a value too many
        ([0, 1], (2000, 2000), 4),  # more than the shape holds
    ],
)
def test_levels_that_do_not_fit_are_refused(order, found, values):
    parameters = schema.SparsityParametersT(traversalOrder=order, dimMetadata=levels(*found))
    with pytest.raises((ValueError, IndexError)):
        unfold((2, 2), parameters, np.ones(values, dtype="float32"))


def test_a_damaged_sparse_tensor_has_no_twin(files):
    model = flatbuffer.read(files[1].read_bytes())
    tensor = next(tensor for tensor in model.subgraphs[0].tensors if tensor.sparsity is not None)
    indices = tensor.sparsity.dimMetadata[1].arrayIndices
    indices.values = np.full_like(indices.values, 200)
    with pytest.raises(FlatbufferError, match="must"):
        twin(flatbuffer.write(model))


def test_a_difference_is_a_share_of_the_scale_and_never_nan():
    zeros, ones = np.zeros(3), np.ones(3)
    assert largest_difference([zeros, 3 * ones], [zeros, 4 * ones]) == 0.25
    assert largest_difference([ones], [zeros]) == 1.0
    assert largest_difference([ones], [np.array([1.0, np.nan, 1.0])]) == float("inf")
    assert largest_difference([ones], [np.ones((3, 1))]) == float("inf")


@pytest.mark.parametrize(
    ("other", "received"),
    [
        (lambda: keras.Input((6,)), r"float32 of \(batch, 6\)"),
        (lambda: keras.Input((5, 1)), r"float32 of \(batch, 5, 1\)"),
        (lambda: keras.Input((5,), dtype="int32"), r"int32 of \(batch, 5\)"),
    ],
)
def test_files_of_other_inputs_are_refused_before_they_run(other, received, tmp_path):
    paths = []
    for number, x in enumerate((keras.Input((5,)), other())):
        model = keras.Model(x, layers.Rescaling(2.0)(x))
        paths.append(tmp_path / f"{number}.tflite")
        export(model, paths[-1], data=np.ones((2, *x.shape[1:]), x.dtype))
    with pytest.raises(
        ExportError, match=r"must take what the first file's .* takes, float32 of \(batch, 5\).*" + received
    ):
        benchmark(*paths, rounds=1)
