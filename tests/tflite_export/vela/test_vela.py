"""Arm's Ethos-U: files compiled by Vela, and what is said of them."""

import dataclasses
import importlib.util
import json
import sys
from types import SimpleNamespace

import keras
import numpy as np
import optuna
import pytest
from keras import layers
from typer.testing import CliRunner

import keras_prune as kp
import tflite_export as tx
from keras_prune.devices import DEVICES, Npu
from keras_prune.devices.choosing import choose
from keras_prune.patterns import NofM, Unstructured
from tflite_export import ExportError, Limits, latency
from tflite_export.cli import app
from tflite_export.file import flatbuffer
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.vela.compiling import compile_files
from tflite_export.vela.filled import fill_zeros
from tflite_export.vela.operators import operators_of
from tflite_export.vela.report import check_npu

needs_vela = pytest.mark.skipif(importlib.util.find_spec("ethosu") is None, reason="needs ethos-u-vela")
U55 = DEVICES["ethos-u55"]


def net():
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 4))
    x = layers.Conv2D(16, 3, padding="same", name="window")(image)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu", name="depth")(x)
    x = layers.Conv2D(128, 1, activation="elu", name="point")(x)
    x = layers.Conv2DTranspose(8, 2, strides=2, name="wider")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(16, name="head")(layers.Dense(512, name="hidden")(x)))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(16, 16, 16, 4)).astype("float32")


@pytest.fixture(scope="module")
def pruned():
    return kp.prune(net(), 0.9, target="ethos-u55", verbose=0)


@pytest.fixture(scope="module")
def exported(pruned, x, tmp_path_factory):
    folder = tmp_path_factory.mktemp("npu")
    pytest.importorskip("ethosu")
    options = {"target": "ethos-u55", "quantize": "int8", "data": x, "tolerance": 1.0}
    report = tx.export(pruned, folder / "m.tflite", compiled=folder / "m_vela.tflite", **options)
    return report, folder


def zeros(model):
    kernels = {w.path: np.asarray(w.numpy()) for w in model.weights if "kernel" in w.path}
    return {path.split("/")[0]: float(np.mean(values == 0)) for path, values in kernels.items()}


def test_every_kernel_is_pruned_for_an_npu(pruned):
    found = zeros(pruned)
    sizes = {w.path.split("/")[0]: w.shape.num_elements() for w in pruned.weights if "kernel" in w.path}
    assert set(found) >= {"window", "point", "wider", "hidden", "head"}
    total = sum(sizes[name] for name in found if found[name])
    assert sum(share * sizes[name] for name, share in found.items()) == pytest.approx(0.9 * total, abs=len(found))
    choice = choose(U55, pruned, kp.Scope().survey(pruned))
    assert {type(choice.pattern.at(tensor.path)) for tensor in choice.survey.targets} == {Unstructured}


def test_zeros_that_an_npu_is_faster_for_are_made_where_their_share_lets_it(x):
    found = {}
    for final in (0.5, 0.6, None):
        choice = choose(DEVICES["ethos-u85"], model := net(), kp.Scope().survey(model), final=final)
        found[final] = {t.path.split("/")[0]: choice.pattern.at(t.path) for t in choice.survey.targets}
    assert {found[0.5][name] for name in ("window", "point", "hidden", "head")} == {NofM(2, 4)}
    assert set(found[0.6].values()) | set(found[None].values()) == {Unstructured()}
    model = kp.prune(net(), 0.5, target="ethos-u85", verbose=0)
    kernel = model.get_layer("window").kernel.numpy()
    assert ((kernel.reshape(-1, 4, 16) != 0).sum(axis=1) == 2).all()
    again = kp.prune(kp.strip(model), 0.8, target="ethos-u85", verbose=0)
    assert ((again.get_layer("window").kernel.numpy().reshape(-1, 4, 16) != 0).sum(axis=1) <= 2).all()


@needs_vela
def test_a_file_for_an_npu(exported, x):
    report, folder = exported
    content = (folder / "m.tflite").read_bytes()
    npu = report.npu
    # Integers in and out, no sparse tensor, nothing for DENSIFY.
    assert {line.encoding for line in report.lines} == {tx.Encoding.DENSE}
    model = TFLiteFile(content).model
    assert {int(model.subgraphs[0].tensors[i].type) for i in model.subgraphs[0].inputs} == {9}
    # What is written is what was measured.
    assert (folder / "m_vela.tflite").read_bytes() == npu.compiled.content
    assert npu.compiled.flash_bytes == (folder / "m_vela.tflite").stat().st_size
    # Zeros save flash, and cycles where weights are waited for.
    assert npu.compiled.flash_bytes < 0.5 * npu.filled.flash_bytes
    assert npu.compiled.cycles < npu.filled.cycles
    # The file beside it is the one without zeros: about as large as that of a model that is not pruned.
    assert npu.filled.operators == npu.compiled.operators
    assert f"flash {npu.compiled.flash_bytes:,} bytes" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["npu"]["compiled"]["cycles"] == npu.compiled.cycles


@needs_vela
def test_a_function_of_a_model_gives_what_its_file_costs(exported, pruned, x, monkeypatch):
    made = exported[0].npu.compiled
    flash = tx.NpuCost("ethos-u55", "flash_bytes", data=x)
    assert flash(pruned) == made.flash_bytes
    assert (flash.estimate, flash.__name__) == ("", "flash_bytes")
    # What follows is about figures, not about Vela: a report of so many seconds and operators for each model.
    left, given = {"dense": (), "faster": made.on_processor, "none": made.on_processor[:1]}, []

    def report(model, path, **options):
        given.append(options)
        seconds = 1e-3 * model.count_params()
        compiled = dataclasses.replace(made, seconds=seconds, on_processor=left.get(model.name, ()))
        return SimpleNamespace(npu=SimpleNamespace(compiled=compiled))

    monkeypatch.setattr(latency, "export", report)
    stack = [keras.Input((8,)), layers.Dense(40, name="wide"), layers.Dense(2)]
    dense = keras.Sequential(stack, name="dense")
    plan = kp.structured.plan(dense, latency=0.5, target="ethos-u55", data=x[:8, 0, 0, :2].reshape(2, 8))
    assert plan.kept.tolist() == [16]
    assert plan.latency.after == pytest.approx(1e-3 * plan.after.params)
    assert "as Vela, the compiler, estimates them" in str(plan)
    assert {(options["target"], options["quantize"], len(options["data"])) for options in given} == {(U55, "int8", 2)}
    seconds = tx.NpuCost(U55, data=x)
    seconds(dense)
    with pytest.raises(ExportError, match=r"the seconds of 'faster' on 'ethos-u55'.*on the processor: .*ELU 1 x"):
        seconds(keras.Sequential(stack, name="faster"))


@needs_vela
def test_a_search_weighs_bytes_of_the_compiled_file(x):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(256, "relu"), layers.Dense(8)])
    inputs = x[:, 0, :4].reshape(16, 16)
    flash = tx.NpuCost("ethos-u55", "flash_bytes", data=inputs)
    options = {"trials": 1, "storage": optuna.storages.InMemoryStorage(), "verbose": 0}
    found = kp.search.study(
        model, inputs, lambda model: 0.0, sparsity=0.9, objectives=["metric", flash, "bytes"], **options
    )
    assert found.trials[0].values[1] < 0.5 * found.dense["flash_bytes"]


def test_a_cost_that_is_not_known_is_refused(monkeypatch):
    with pytest.raises(ExportError, match=r"target 'mcu': must have an NPU"):
        tx.NpuCost("mcu")
    with pytest.raises(ExportError, match=r"figure: must be one of .*'cycles'.* Received: 'energy'"):
        tx.NpuCost("ethos-u55", "energy")
    monkeypatch.setitem(sys.modules, "ethosu", None)
    with pytest.raises(ImportError, match=r'pip install "keras-prune\[npu\]"'):
        tx.NpuCost("ethos-u55")


@needs_vela
def test_what_stays_on_the_processor_is_named_with_the_reason(exported):
    made = exported[0].npu.compiled
    on = {each.operator: each for each in made.on_processor}
    assert set(on) >= {"ELU"}
    assert all(each.reason and each.reason != "Vela does not say why" for each in made.on_processor)
    assert made.operators_share == 1 - len(made.on_processor) / made.operators
    assert made.macs_share == 1.0
    assert "on the processor: ELU" in str(exported[0])


@needs_vela
def test_multiplications_are_counted(exported):
    _, folder = exported
    counts = {}
    for kind, _, macs in operators_of(TFLiteFile((folder / "m.tflite").read_bytes()).model):
        counts[kind] = counts.get(kind, 0) + macs
    assert counts["CONV_2D"] == 16 * 16 * 16 * 3 * 3 * 4 + 8 * 8 * 128 * 16
    assert counts["DEPTHWISE_CONV_2D"] == 8 * 8 * 16 * 9
    assert counts["TRANSPOSE_CONV"] == 8 * 8 * 128 * 2 * 2 * 8
    assert counts["FULLY_CONNECTED"] == 8 * 512 + 512 * 16


def test_filled_files_have_no_zeros_to_speak_of():
    from ai_edge_litert import schema_py_generated as schema

    model, tensor = schema.ModelT(), schema.TensorT()
    values = np.zeros((8, 500), np.int8)
    values[:, :50] = np.random.default_rng(0).choice([-100, -80, 80, 100], (8, 50))
    tensor.type, tensor.shape, tensor.buffer, tensor.name = schema.TensorType.INT8, [8, 500], 0, b"w"
    buffer, graph = schema.BufferT(), schema.SubGraphT()
    buffer.data, graph.tensors = values.reshape(-1).view(np.uint8), [tensor]
    model.buffers, model.subgraphs = [buffer], [graph]
    (change,) = fill_zeros(model)
    filled = flatbuffer.constant(model, tensor)
    assert change.what == "3600 zeros got values"
    assert (filled[:, :50] == values[:, :50]).all()
    rest = filled[:, 50:].astype(int)
    assert (rest == 0).mean() < 0.02
    assert -100 <= rest.min() <= -75
    assert 75 <= rest.max() <= 100
    assert fill_zeros(model)[:1] != (change,)  # what it drew as zero only


@needs_vela
def test_what_vela_refuses_is_an_error_with_its_words(exported):
    content = (exported[1] / "m.tflite").read_bytes()
    npu = U55.npu
    with pytest.raises(ExportError, match=r"system-config=nowhere.*not found in Vela config file"):
        compile_files([content], dataclasses.replace(npu, system="nowhere"))
    with pytest.raises(ExportError, match=r"invalid choice: 'ethos-u55-7'"):
        compile_files([content], dataclasses.replace(npu, accelerator="ethos-u55-7"))
    with pytest.raises(ExportError, match=r"must not crash or stall Vela"):
        compile_files([content], npu, limits=Limits(seconds=0.001))
    with pytest.raises(tx.FlatbufferError, match="TFL3"):
        compile_files([b"no file"], npu)
    with pytest.raises(ExportError, match=r"target 'web': must have an NPU"):
        check_npu(content, DEVICES["web"])


def test_the_error_without_vela_names_the_command(monkeypatch, tmp_path, x):
    monkeypatch.setitem(sys.modules, "ethosu", None)
    with pytest.raises(ImportError, match=r'pip install "keras-prune\[npu\]"'):
        tx.export(net(), tmp_path / "m.tflite", target="ethos-u55", quantize="int8", data=x)


def test_choices_that_do_not_go_together(tmp_path, x):
    with pytest.raises(ExportError, match=r"compiled: needs a target with an NPU. Received: target 'mcu'"):
        tx.export(net(), tmp_path / "m.tflite", target="mcu", quantize="int8", data=x, compiled=tmp_path / "n.tflite")
    with pytest.raises(ExportError, match=r"target 'ethos-u55': takes quantize='int8'"):
        tx.export(net(), tmp_path / "m.tflite", target="ethos-u55", data=x)
    with pytest.raises(TypeError, match="Npu: memory must be a text"):
        Npu("ethos-u55-128", "system", "")
    with pytest.raises(ValueError, match=r"fast_zeros is \(n, m\)"):
        Npu("a", "b", "c", fast_zeros=(4, 2))


@needs_vela
def test_the_command(x, tmp_path):
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8)])
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x[:, 0, :4, :].reshape(16, 16))
    arguments = ["export", "m.keras", "m.tflite", "--target", "ethos-u65", "--quantize", "int8", "--data", "x.npy"]
    arguments += ["--compiled", "v.tflite", "--tolerance", "1", "--json"]
    paths = [str(tmp_path / part) if part.endswith(("keras", "lite", "npy")) else part for part in arguments]
    result = CliRunner().invoke(app, paths, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)["npu"]
    assert found["accelerator"] == "ethos-u65-256"
    assert (tmp_path / "v.tflite").stat().st_size == found["compiled"]["flash_bytes"]
