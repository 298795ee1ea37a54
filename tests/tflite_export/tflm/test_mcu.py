import importlib.util
import os
import sys
import tempfile

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from tflite_export import ExportError, Limits
from tflite_export.edits.integer_io import make_borders_integer
from tflite_export.file import encoding, flatbuffer
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.tflm.mcu import check_full_int8, check_micro, check_structure
from tflite_export.tflm.micro import MicroSession
from tflite_export.verification.ports import Port

needs_tflm = pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="needs tflite-micro")


def convert(model, batch=1, int8=False, borders=True):
    """Convert by TensorFlow's converter, the output called y."""
    import tensorflow as tf

    shape = model.inputs[0].shape[1:]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda x: {"y": model(x, training=False)},
        input_signature=[tf.TensorSpec((batch, *shape), tf.float32, name="x")],
    )
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if int8:
            rng = np.random.default_rng(0)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: (
                [rng.normal(size=(1, *shape)).astype("float32")] for _ in range(16)
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            if borders:
                converter.inference_input_type = converter.inference_output_type = tf.int8
        return converter.convert()


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([*stack, layers.Dense(3)])


@pytest.fixture(scope="module")
def int8(net):
    return convert(net, int8=True)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(5, 8, 8, 1)).astype("float32")


@needs_tflm
def test_a_full_int8_file_is_reported(int8, x):
    report = check_micro(int8, {"x": x})
    assert dict(report.operators) == {"CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1}
    assert report.model_bytes == len(int8)
    assert report.samples == 5
    assert report.arena_bytes % 16 == 0
    assert report.arena_bytes >= report.activation_bytes + report.persistent_bytes
    # The image and the first feature map live at the same time.
    assert report.activation_bytes >= 8 * 8 + 6 * 6 * 4
    assert [output.name for output in report.outputs] == ["y"]
    assert report.to_dict()["arena_bytes"] == report.arena_bytes
    assert str(report).startswith(f"TFLM {report.runtime}: arena {report.arena_bytes:,} bytes, flash {len(int8):,}")


@needs_tflm
def test_the_arena_is_the_smallest_that_is_enough(int8):
    from tflite_micro import runtime

    arena = check_micro(int8).arena_bytes
    runtime.Interpreter.from_bytes(int8, arena_size=arena)
    with MicroSession(int8) as micro:
        micro.feed([np.zeros((1, 8, 8, 1), "float32")], ["x"])
        assert micro.arena()[0] == arena
    # One grain less fails; in a fork, since the interpreter may crash there.
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            runtime.Interpreter.from_bytes(int8, arena_size=arena - 16)
            os._exit(0)
        except RuntimeError:
            os._exit(1)
    assert os.waitpid(child, 0)[1] != 0


@needs_tflm
def test_the_session_answers_as_the_model_does(net, x):
    with MicroSession(convert(net)) as micro:
        assert (list(micro.inputs), list(micro.outputs), micro.batch_size) == (["x"], ["y"], 1)
        (got,) = micro.run([x], ["x"], ["y"])
    np.testing.assert_allclose(got, net(x).numpy(), atol=1e-6)


@needs_tflm
def test_a_quantized_session_takes_and_gives_real_numbers(net, int8, x):
    with MicroSession(int8) as micro:
        assert micro.inputs["x"].dtype == np.int8
        (got,) = micro.run([x], ["x"], ["y"])
        step = micro.outputs["y"].scale
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, net(x).numpy(), atol=5 * step)
        np.testing.assert_allclose(np.rint(got / step), got / step, atol=1e-4)


@needs_tflm
def test_state_does_not_leak_from_one_sample_into_the_next():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4), layers.Dense(2)])
    samples = np.random.default_rng(2).normal(size=(3, 5, 3)).astype("float32")
    with MicroSession(convert(model)) as micro:
        (got,) = micro.run([samples], ["x"], ["y"])
    np.testing.assert_allclose(got, model(samples).numpy(), atol=1e-5)


@pytest.mark.parametrize("blocks", [True, False], ids=["1x4 blocks", "DENSIFY"])
def test_sparse_files_are_refused_with_the_weight_and_the_cure(zero_out, blocks):
    net = zero_out(keras.Sequential([keras.Input((64,)), layers.Dense(32, name="wide")]), blocks=blocks)
    model = flatbuffer.read(convert(net))
    check_structure(model)
    graph = model.subgraphs[0]
    (index,) = (i for i, tensor in enumerate(graph.tensors) if list(tensor.shape) == [32, 64])
    tensor = graph.tensors[index]
    encode = encoding.encode_blocks if blocks else encoding.encode_csr
    sparse = encode(flatbuffer.constant(model, tensor))
    tensor.buffer, tensor.sparsity = flatbuffer.add_buffer(model, sparse.values), flatbuffer.sparsity_parameters(sparse)
    if not blocks:
        flatbuffer.densify(model, graph, index)
    with pytest.raises(ExportError, match=r"wide.*no sparse kernels.*Received: a sparse tensor.*target='mcu'"):
        check_structure(flatbuffer.read(flatbuffer.write(model)))


def test_float_borders_are_taken_away_and_nothing_else(net, int8, x):
    with_floats = convert(net, int8=True, borders=False)
    with pytest.raises(ExportError, match=r"input '.*' of the file: .* integers only"):
        check_full_int8(flatbuffer.read(with_floats))
    content = make_borders_integer(with_floats)
    model = flatbuffer.read(content)
    check_full_int8(model)
    names = [flatbuffer.operator_name(model, operator) for operator in model.subgraphs[0].operators]
    assert names == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]
    # The converter's own way gives the same integers.
    ours, theirs = LiteRTSession(content), LiteRTSession(int8)
    assert (list(ours.inputs), list(ours.outputs)) == (["x"], ["y"])
    for name in ("dtype", "quantization"):
        assert ours.inputs["x"][name] == theirs.inputs["x"][name]
        assert ours.outputs["y"][name] == theirs.outputs["y"][name]
    stored = np.random.default_rng(3).integers(-128, 128, (4, 8, 8, 1)).astype("int8")
    results = [session.run([stored], ["x"], ["y"])[0] for session in (ours, theirs)]
    assert results[0].dtype == np.int8
    np.testing.assert_array_equal(*results)
    assert make_borders_integer(content) == content


def test_borders_that_are_read_otherwise_stay(net):
    plain = convert(net)
    assert make_borders_integer(plain) == plain


def test_a_free_batch_is_refused(net):
    with pytest.raises(
        ExportError,
        match=r"must have fixed shapes for TensorFlow Lite Micro\. Received: \[-1, 8, 8, 1\]\. .*batch_size=1",
    ):
        check_structure(flatbuffer.read(convert(net, batch=None)))


def test_floats_are_refused_where_full_int8_is_asked(net, int8):
    check_full_int8(flatbuffer.read(int8))
    with pytest.raises(ExportError, match=r"input 'serving_default_x:0' of the file: .*Received: float32.*'int8'"):
        check_full_int8(flatbuffer.read(convert(net)))


@needs_tflm
def test_floats_are_run_where_they_are_asked_for(net, x):
    report = check_micro(convert(net), {"x": x}, full_int8=False)
    assert report.outputs[0].max_relative < 1e-5


@needs_tflm
def test_an_operator_that_is_missing_is_named():
    model = keras.Sequential([keras.Input((4, 4, 4)), layers.Reshape((4, 4, 4, 1)), layers.Conv3D(2, 3)])
    with pytest.raises(
        ExportError, match=r"must have only operators that TensorFlow Lite Micro has\. Received: CONV_3D"
    ):
        check_micro(convert(model), full_int8=False)


@needs_tflm
def test_a_process_that_dies_is_an_error_with_its_last_words(int8):
    micro = MicroSession(int8)
    micro._process._process.kill()
    micro._process._process.wait()
    micro.feed([np.zeros((1, 8, 8, 1), "float32")], ["x"])
    with pytest.raises(ExportError, match="the interpreter must be running"):
        micro.invoke()
    micro.close()


@needs_tflm
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a limit of memory")
def test_the_interpreter_keeps_the_limits_of_a_file(int8):
    with pytest.raises(ExportError, match=r"must not crash or stall .*MemoryError.*and 0\.2 GiB of memory: .*--memory"):
        check_micro(int8, limits=Limits(memory=2**28))  # an arena to begin with takes as much


@needs_tflm
def test_names_and_shapes_are_checked(int8):
    with MicroSession(int8) as micro:
        with pytest.raises(ExportError, match=r"must be fed every input\. Received: nothing for \['x'\]"):
            micro.invoke()
        with pytest.raises(ExportError, match=r"knows the names \['x'\]\. Received: \['z'\]"):
            micro.feed([np.zeros(1)], ["z"])
        with pytest.raises(ExportError, match=r"must have the shape \(1, 8, 8, 1\)\. Received: \(1, 8, 8\)"):
            micro.feed([np.zeros((1, 8, 8))], ["x"])


@needs_tflm
def test_the_same_file_twice_gives_the_same_report(int8):
    assert check_micro(int8) == check_micro(int8)


def test_a_missing_package_names_the_command(monkeypatch, int8):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras-prune\[mcu\]"'):
        check_micro(int8)


def test_quantization_rounds_halves_away_from_zero_and_clips():
    port = Port((1, 6), np.dtype("int8"), scale=0.5, zero_point=3)
    stored = port.store(np.array([[0.25, -0.25, 0.24, 100.0, -100.0, 1.0]], dtype=np.float32))
    assert stored.tolist() == [[4, 2, 3, 127, -128, 5]]
    assert port.store(stored) is stored
    assert port.real(stored).tolist() == [[0.5, -0.5, 0.0, 62.0, -65.5, 1.0]]
    # Whole numbers of another type are real ones too: pixels.
    assert port.store(np.array([[1, 0]], dtype=np.uint8)).tolist() == [[5, 3]]


@given(st.floats(1e-3, 1e3), st.integers(-128, 127), st.floats(-1, 1))
def test_quantizing_and_back_is_off_by_half_a_step_at_most(scale, zero_point, place):
    port = Port((1,), np.dtype("int8"), scale, zero_point)
    low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
    value = np.array([(low + high) / 2 + place * (high - low) / 2], dtype=np.float32)
    assert abs(float(port.real(port.store(value))[0]) - float(value[0])) <= scale * 0.5001
