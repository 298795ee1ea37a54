"""What a report says of OpenVINO and the page of Core ML, held against them: where they are installed, both are run."""

import pathlib
import re

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers as kl

import keras_prune as kp
from tests.tflite_export.graphs import Net
from tflite_export import export
from tflite_export.file import flatbuffer
from tflite_export.file.encoding import CsrLevel, DenseLevel, SparseArray, encode_blocks, encode_csr
from tflite_export.other_runtimes import NOT_IN_OPENVINO, unreadable_by

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "deploy" / "other-runtimes.md"
WEIGHT = np.array([[1, 0, 2], [0, 3, 0], [0, 0, 4]], np.float32)
ROWS = CsrLevel(np.array([0, 2, 3, 4], np.int32), np.array([0, 2, 1, 2], np.int32))
COLUMNS = CsrLevel(np.array([0, 1, 2, 4], np.int32), np.array([0, 1, 0, 2], np.int32))
EACH_ROW = CsrLevel(np.array([0, 3], np.int32), np.array([0, 1, 2], np.int32))
SPARSE = {
    "rows": encode_csr(WEIGHT),
    "columns": SparseArray((3, 3), (1, 0), (), (DenseLevel(3), COLUMNS), np.array([1, 3, 2, 4], np.float32)),
    "both": SparseArray((3, 3), (0, 1), (), (EACH_ROW, ROWS), np.array([1, 2, 3, 4], np.float32)),
    "neither": SparseArray((3, 3), (0, 1), (), (DenseLevel(3), DenseLevel(3)), WEIGHT.reshape(-1)),
    "blocks": encode_blocks(np.kron(WEIGHT, np.ones((1, 4), np.float32)), 4),
}


@pytest.fixture(scope="module")
def openvino():
    return pytest.importorskip("openvino", reason='OpenVINO is not installed: pip install "keras-prune[runtimes]"')


@pytest.fixture(scope="module")
def run(openvino):
    """A function that runs a file on an input in OpenVINO; None where it does not read it."""
    core = openvino.Core()

    def answers(path, x):
        try:
            return core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]
        except RuntimeError:
            return None

    return answers


def says(file):
    return next((each.reason for each in unreadable_by(file) if each.runtime == "OpenVINO"), None)


@pytest.mark.parametrize("form", SPARSE)
def test_openvino_reads_the_sparse_tensors_that_are_not_ruled_out(form, run, tmp_path):
    stored = SPARSE[form]
    net = Net(1, stored.shape[1])
    root = net.tensor(stored.shape, buffer=flatbuffer.add_buffer(net.model, stored.values))
    net.graph.tensors[root].sparsity = flatbuffer.sparsity_parameters(stored)
    weight = net.op("DENSIFY", [root], stored.shape, schema.DensifyOptionsT())
    (tmp_path / "m.tflite").write_bytes(
        net.content(net.op("FULLY_CONNECTED", [net.x, weight, -1], (1, 3), schema.FullyConnectedOptionsT()))
    )
    x = np.arange(1, stored.shape[1] + 1, dtype=np.float32)[None]
    answers, reason = run(tmp_path / "m.tflite", x), says((tmp_path / "m.tflite").read_bytes())
    if form == "rows":
        np.testing.assert_array_equal(answers, x @ WEIGHT.T)
        assert reason is None
    else:
        assert answers is None or not np.allclose(answers, x @ WEIGHT.T)
        assert re.match(rf"'t1' is stored {'in blocks' if form == 'blocks' else 'otherwise than row by row'}", reason)


def test_openvino_translates_the_operators_that_are_not_ruled_out(openvino, tmp_path):
    """Each operator without options: what it has a translation for fails otherwise, if at all."""
    core, untranslated, named = openvino.Core(), set(), set()
    for name in (name for name in vars(schema.BuiltinOperator) if name.isupper()):
        net = Net(1, 4)
        content = net.content(net.op(name, [net.x], (1, 4)))
        (tmp_path / "m.tflite").write_bytes(content)
        try:
            core.read_model(tmp_path / "m.tflite")
        except RuntimeError as error:
            untranslated |= {name} if re.search("No translator|CUSTOM type", str(error)) else set()
        named |= {name} if (says(content) or "").startswith("it has no ") else set()
    assert named == untranslated - {"PLACEHOLDER_FOR_GREATER_OP_CODES"}
    assert named > NOT_IN_OPENVINO


def test_a_file_that_is_mirrored_for_sparse_inference_is_for_litert_and_a_portable_one_for_all(run, zero_out, tmp_path):
    image = keras.Input((16, 16, 3))
    x = kl.Conv2D(16, 3, 2, "same", activation="relu")(image)
    x = kl.Conv2D(16, 1, activation="relu")(x)
    model = zero_out(keras.Model(image, kl.Dense(4)(kl.GlobalAveragePooling2D()(x))))
    data = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    expected = np.asarray(model(data[:1]))
    for portable in (False, True):
        report = export(model, path := tmp_path / "m.tflite", data=data, optimize="portable" if portable else "size")
        assert bool(report.changes) is not portable
        answers, reason = run(path, data[:1]), says(path.read_bytes())
        if portable:
            assert reason is None
            np.testing.assert_allclose(answers, expected, atol=1e-5)
        else:
            assert answers is None
            assert reason.startswith("it reverses one axis at a time, and a REVERSE_V2 here 3, ")


def test_zeros_of_an_int8_file_run_in_openvinos_kernel_for_sparse_weights(openvino, tmp_path):
    """The page names the property, and this is the file that it acts on."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not (cpuinfo.exists() and "amx_int8" in cpuinfo.read_text(encoding="utf-8")):
        pytest.skip("a processor without AMX, for which OpenVINO has no kernel for sparse weights")
    cpu = openvino.Core()
    model = keras.Sequential([keras.Input((128,)), kl.Dense(128, use_bias=False), kl.Dense(64)])
    kp.strip(kp.prune(model, 0.8, allocation="uniform"))
    data = np.random.default_rng(0).normal(size=(16, 128)).astype("float32")
    export(model, tmp_path / "m.tflite", data=data, quantize="int8", optimize="portable")
    kernels = {}
    for rate in (0.5, 0.9):
        compiled = cpu.compile_model(str(tmp_path / "m.tflite"), "CPU", {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": rate})
        infos = [each.get_rt_info() for each in compiled.get_runtime_model().get_ops()]
        kernels[rate] = sum("sparse" in info["primitiveType"].astype(str) for info in infos)
    assert kernels == {0.5: 2, 0.9: 0}


def test_the_code_of_the_page_makes_core_ml_packages_that_store_what_is_not_zero(tmp_path, monkeypatch):
    ct = pytest.importorskip("coremltools", reason='Core ML is not installed: pip install "keras-prune[runtimes]"')
    monkeypatch.chdir(tmp_path)
    image = keras.Input((8, 8, 16), name="image")
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(64, 1, use_bias=False)(image)))
    model = keras.Model(image, kl.Dense(64, name="scores")(kl.GlobalAveragePooling2D()(x)))
    model.layers[2].set_weights([np.linspace(0.5, 2.0, 64)] * 4)
    model = kp.strip(kp.share(kp.prune(model, 0.75, allocation="uniform"), 8))
    left = [int(np.count_nonzero(kernel)) for kernel in model.get_weights() if kernel.ndim > 1]
    namespace = {"model": model}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if "openvino" not in block:
            exec(compile(block, str(PAGE), "exec"), namespace)

    def stored(name, kind):
        program = namespace[name]._mil_program.functions["main"]
        return [each for each in program.operations if each.op_type == kind]

    sparse = stored("sparse", "constexpr_sparse_to_dense")
    assert sorted(each.nonzero_data.val.size for each in sparse) == sorted(left) == [256, 1024]
    tables = stored("shared", "constexpr_lut_to_dense")
    assert [each.lut.shape[-2] for each in tables] == [8, 8]  # palettes of 3 bits
    assert stored("both", "constexpr_lut_to_sparse")
    sizes = {}
    for name in ("dense", "sparse", "shared", "both"):
        path = tmp_path / f"{name}.mlpackage"
        assert ct.models.MLModel(str(path), skip_model_load=True).get_spec().description.input[0].name == "image"
        sizes[name] = sum(file.stat().st_size for file in path.rglob("weight.bin"))
    assert sizes["both"] < sizes["sparse"] < 0.5 * sizes["dense"] > sizes["shared"]
