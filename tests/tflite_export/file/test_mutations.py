"""Damaged and cut files: an error or an answer, never a crash, a hang or unbounded memory.

Every file goes through ``inspect`` here, and through ``verify``'s comparison with the runtime in its child process.
"""

import importlib
import os
import resource
import time
import tracemalloc
from collections import Counter

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from tests.tflite_export.graphs import Net
from tests.tflite_export.mutants import mutants
from tflite_export import ExportError, FlatbufferError, benchmark, verify
from tflite_export.bench.device_page import make_server
from tflite_export.file import flatbuffer
from tflite_export.file.encoding import encode_csr
from tflite_export.inspection import inspect
from tflite_export.model.inputs import Inputs
from tflite_export.runtimes.isolation import IsolatedSession, LiteRTProcess
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import LiteRTSession

EACH = 560
LIMITS = Limits(seconds=3.0, memory=2**31)
"""That a request to the runtime may take here; the sound files take a millisecond."""

module = importlib.import_module("tflite_export.verification.verify")


def convolutions():
    made = Net(1, 8, 8, 3)
    x = made.block(made.block(made.stem(8)))
    return made.content(made.dense(made.mean(made.binary(x, made.unary(x, "LOGISTIC"), "MUL")), 4))


def converted(model, quantized=False):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantized:
        shape = (1, *model.input_shape[1:])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: [
            [np.random.default_rng(i).normal(size=shape).astype("float32")] for i in range(4)
        ]
    return converter.convert()


def dense():
    stack = [keras.Input((16,)), layers.Dense(8, activation="relu"), layers.Dense(4, activation="softmax")]
    return keras.Sequential(stack)


@pytest.fixture(scope="module")
def seeds():
    """Files: sparse behind DENSIFY; dense and int8 by TensorFlow's converter; one with calls between subgraphs."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 3), batch_size=1)
    return {
        "sparse": convolutions(),
        "float": converted(dense()),
        "int8": converted(dense(), quantized=True),
        "recurrent": converted(keras.Model(x, layers.LSTM(4)(x))),
    }


@pytest.fixture(scope="module")
def damaged(seeds):
    return {name: list(mutants(content, EACH, seed=20240229)) for name, content in seeds.items()}


def test_there_are_as_many_as_promised(damaged, seeds):
    assert sum(len(files) for files in damaged.values()) >= 2000
    assert sum(content != seeds[name] for name, files in damaged.items() for _, content in files) >= 2000


def test_inspect_refuses_or_answers(damaged, capsys):
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for files in damaged.values():
        for number, (_, content) in enumerate(files):
            start = time.process_time()
            try:
                found = inspect(content)
            except FlatbufferError:
                outcomes["refused"] += 1
            else:
                outcomes["told"] += 1
                if number % 20 == 0:
                    assert found.summary in str(found)
            slowest = max(slowest, time.process_time() - start)
    with capsys.disabled():
        print(f"\n  inspect: {dict(outcomes)}")
    assert outcomes["refused"] > 1000
    assert outcomes["told"] > 100
    assert slowest < 5.0  # a guard against hangs, not a measurement


def test_inspect_takes_little_memory(damaged):
    """A sound file of these takes 2 MB at most; a vector length of 2**31 must not decide."""
    peaks = []
    for files in damaged.values():
        for _, content in files[::8]:
            tracemalloc.start()
            try:
                inspect(content)
            except FlatbufferError:
                pass
            finally:
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    assert max(peaks) < 10 * 2**20


def reference_of(content, process):
    session = IsolatedSession(content, process=process)
    names = list(session.inputs)
    x = [
        np.random.default_rng(3).normal(size=(3, *detail["shape"][1:])).astype(detail["dtype"])
        for detail in session.inputs.values()
    ]
    outputs = session.run(x, names, list(session.outputs))
    return module.Reference(Inputs(tuple(x), drawn=False), tuple(outputs), tuple(names), tuple(session.outputs))


def test_verify_refuses_or_answers_and_outlives_the_runtime(seeds, damaged, monkeypatch, capsys):
    outcomes: Counter[str] = Counter()
    with LiteRTProcess() as process:

        def isolated(content, subject, *, threads=1, delegate=True):
            return IsolatedSession(content, subject, threads=threads, delegate=delegate, limits=LIMITS, process=process)

        # Two configurations of the four: threads change nothing about what a file can break.
        monkeypatch.setattr(module, "CONFIGURATIONS", ((True, 1), (False, 1)))
        for name, files in damaged.items():
            reference = reference_of(seeds[name], process)
            assert module.compare_runs(seeds[name], reference, name, open_file=isolated).max_relative < 1e-5
            for _, content in files:
                try:
                    module.compare_runs(content, reference, name, open_file=isolated)
                except FlatbufferError:
                    outcomes["refused by structure"] += 1
                except ExportError as error:
                    if error.rule == "must not crash or stall the runtime":
                        outcomes["crash or hang caught"] += 1
                    elif "runtime" in error.rule or "names" in error.rule or "its inputs" in error.rule:
                        outcomes["refused by the runtime"] += 1
                    else:
                        outcomes["answers otherwise"] += 1
                else:
                    outcomes["answers the same"] += 1
        assert (
            module.compare_runs(
                seeds["float"], reference_of(seeds["float"], process), "float", open_file=isolated
            ).max_relative
            < 1e-5
        )
    with capsys.disabled():
        print(f"\n  verify: {dict(outcomes)}")
    assert sum(outcomes.values()) == 4 * EACH
    assert outcomes["refused by structure"] > 1000
    assert outcomes["refused by the runtime"] > 0
    assert outcomes["answers otherwise"] > 0


def test_a_file_that_kills_the_runtime_is_an_error_of_verify(tmp_path, monkeypatch):
    """A SPLIT into four with one output: XNNPACK's delegate reads the other three (SIGSEGV in LiteRT 2.3)."""
    made = Net(1, 8)
    axis = made.constant(np.int32(1))
    output = made.op("SPLIT", [axis, made.x], (1, 2), schema.SplitOptionsT(numSplits=4))
    (tmp_path / "model.tflite").write_bytes(made.content(output))
    assert inspect(tmp_path / "model.tflite").operators[0].operator == "SPLIT"
    with LiteRTProcess() as process:
        monkeypatch.setattr(
            importlib.import_module("tflite_export.tflm.verifying"),
            "open_foreign",
            lambda content, subject, **options: IsolatedSession(content, subject, process=process, **options),
        )
        model = keras.Sequential([keras.Input((8,)), layers.Dense(2)])
        with pytest.raises(ExportError, match=r"model\.tflite.*: must not crash or stall the runtime\. Received: "):
            verify(tmp_path / "model.tflite", model, np.ones((1, 8)))


def one_operator(name, inputs=1, **fields):
    """A Dense, and an operator beside it that gets less than its kernel reads."""
    made = Net(1, 8)
    output = made.dense(made.x, 4)
    if name is not None:
        made.op(name, [made.x] * inputs, (1,))
        for field, value in fields.items():
            setattr(made.graph.operators[-1], field, value)
    made.graph.outputs = np.array([output], dtype=np.int32)
    return made


def never_computed():
    made = one_operator(None)
    made.graph.operators = []
    return made


def without(part, field):
    made = one_operator(None)
    setattr(made.graph.operators[0] if part == "operator" else made.graph, field, None)
    return made


def signature_without_inputs():
    made = one_operator(None)
    output = schema.TensorMapT(name=b"y", tensorIndex=int(made.graph.outputs[0]))
    made.model.signatureDefs = [
        schema.SignatureDefT(signatureKey=b"serving_default", subgraphIndex=0, inputs=[], outputs=[output])
    ]
    return made


def fill(*shape, reached=True):
    """A few bytes that ask for gigabytes, as the output or beside it."""
    made = one_operator(None)
    zero = made.constant(np.float32(1.0))
    output = made.op("FILL", [made.constant(np.array(shape, np.int32)), zero], shape, schema.FillOptionsT())
    if reached:
        made.graph.outputs = np.array([output], dtype=np.int32)
    return made


def sparse_table():
    """A sparse constant without values, of 2**40 elements once it is dense."""
    made = one_operator(None)
    place = made.tensor((2**20, 2**20), buffer=flatbuffer.add_buffer(made.model, np.zeros(1, np.float32)))
    level = encode_csr(np.ones((1, 1), np.float32))
    made.graph.tensors[place].sparsity = flatbuffer.sparsity_parameters(level)
    segments, indices = schema.Uint8VectorT(values=[0, 1]), schema.Uint8VectorT(values=[0])
    compressed = [
        schema.DimensionMetadataT(
            format=1, arraySegmentsType=3, arraySegments=segments, arrayIndicesType=3, arrayIndices=indices
        )
        for _ in range(2)
    ]
    made.graph.tensors[place].sparsity.dimMetadata = compressed
    return made


FOREIGN = {
    "a SPLIT with one input": lambda: one_operator("SPLIT"),
    "a STRIDED_SLICE with one input": lambda: one_operator("STRIDED_SLICE"),
    "a CUSTOM without a name": lambda: one_operator("CUSTOM", 2),
    "an output that nothing computes": never_computed,
    "a signature without inputs": signature_without_inputs,
    "no inputs": lambda: without("graph", "inputs"),
    "no outputs": lambda: without("graph", "outputs"),
    "an operator without outputs": lambda: without("operator", "outputs"),
    "an operator without inputs": lambda: without("operator", "inputs"),
    "3 GB beside the output": lambda: fill(40000, 20000, reached=False),
    "3 GB of output": lambda: fill(40000, 20000),
    "a large sparse table": sparse_table,
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_file_ends_who_asks_or_takes_memory_without_limit(what, tmp_path, monkeypatch):
    """Each of these killed the process of ``benchmark``, of ``serve`` or of neither, or ended in a traceback."""
    path = tmp_path / "foreign.tflite"
    path.write_bytes(flatbuffer.write(FOREIGN[what]().model))
    served = importlib.import_module("tflite_export.bench.device_page")
    monkeypatch.setattr(served, "find_web_runtime", lambda: None)
    monkeypatch.setattr(served, "web_files", lambda _: {})
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for ask in (
        lambda: inspect(path),
        lambda: benchmark(path, rounds=1, warm_up=0, twins=True, limits=LIMITS),
        lambda: make_server([path], limits=LIMITS).server_close(),
        lambda: verify(path, model, np.ones((1, 8)), limits=LIMITS, tolerance=1e9),
    ):
        try:
            ask()
        except ExportError as error:
            assert "foreign.tflite" in error.subject  # noqa: PT017
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # kilobytes


def test_only_files_are_read_and_none_larger_than_the_format_allows(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**32)  # takes no room on the disk
    for path, received in (
        ("/dev/zero", "no regular file"),
        ("pipe", "no regular file"),
        ("large", "4294967296 bytes"),
    ):
        with pytest.raises(ExportError, match=f"must be a file of at most .*Received: {received}"):
            benchmark(tmp_path / path)


def test_cutting_at_every_byte_is_refused(seeds):
    """The flatbuffer is written from the back: its first bytes lead to its last ones."""
    content = seeds["sparse"]
    refused = 0
    for size in range(len(content)):
        try:
            inspect(content[:size])
        except FlatbufferError:
            refused += 1
    assert refused >= len(content) - 8


def test_the_session_of_this_process_still_runs(seeds):
    session = LiteRTSession(seeds["float"])
    x = np.ones((1, 16), np.float32)
    assert session.run([x], list(session.inputs), list(session.outputs))[0].shape == (1, 4)
