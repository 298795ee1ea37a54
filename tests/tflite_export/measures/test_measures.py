"""What a file costs: by the target's own measure, by a measure of one's own, and what is refused."""

import dataclasses
import gzip
import importlib.util
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
import tflite_export as tx
from keras_prune.devices import DEVICES, Device
from tests.tflite_export.installed import missing
from tests.tflite_export.measures.nets import of_bool, perceptron
from tflite_export import ExportError
from tflite_export.measures import choosing
from tflite_export.measures.choosing import measure_for
from tflite_export.measures.latency import Latency, costs_of
from tflite_export.measures.micro import MicroFlash, MicroLatency
from tflite_export.measures.npu import NpuFlash, NpuLatency
from tflite_export.measures.sizes import FileSize
from tflite_export.runtimes import litertjs
from tflite_export.runtimes.arm64 import find_arm64_runtime
from tflite_export.runtimes.sessions import Measurement
from tflite_export.vela.report import check_npu
from tflite_export.web.node import find_node

WITHOUT_NODE = missing(litertjs.find_web_runtime, find_node)
WITHOUT_ARM64 = missing(find_arm64_runtime)
node = pytest.mark.skipif(bool(WITHOUT_NODE), reason=WITHOUT_NODE)
arm64 = pytest.mark.skipif(bool(WITHOUT_ARM64), reason=WITHOUT_ARM64)
vela = pytest.mark.skipif(importlib.util.find_spec("ethosu") is None, reason="needs ethos-u-vela")
U55 = dataclasses.replace(DEVICES["ethos-u55"], name="my board")  # renamed: nothing may ask for a device's name


@pytest.fixture(scope="module")
def files():
    """Nets of one interface, the second one far smaller; and one of another interface."""
    return {"wide": perceptron(1024), "narrow": perceptron(8), "other": perceptron(8, features=32)}


# -- which measure a target has ----------------------------------------------------------------------------------------


def installed(monkeypatch, arm64):
    def find():
        if not arm64:
            raise ExportError("'qemu-aarch64'", "must be on the PATH", "none", "Run: apt-get install qemu-user")

    for module in ("choosing", "latency"):
        monkeypatch.setattr(f"tflite_export.measures.{module}.find_arm64_runtime", find)
    for name in ("find_web_runtime", "find_node"):
        monkeypatch.setattr(f"tflite_export.measures.latency.{name}", lambda: None)
    monkeypatch.setattr("keras_prune.devices.device.platform.machine", lambda: "x86_64")
    monkeypatch.setattr(choosing.platform, "machine", lambda: "x86_64")


@pytest.mark.parametrize("arm64", [True, False])
def test_a_device_is_measured_by_what_is_nearest_to_it(monkeypatch, arm64):
    """Renamed, since nothing may ask for a device's name."""
    installed(monkeypatch, arm64)
    found = {
        name: measure_for(dataclasses.replace(device, name=f"my {name}"), "latency")
        for name, device in DEVICES.items()
        if name != "mcu" and device.npu is None
    }
    elsewhere = "arm64" if arm64 else "litert"
    assert {name: measure.runtime for name, measure in found.items()} == {
        "any": "litert",
        "x86": "litert",
        "web": "web",
        **dict.fromkeys(("android", "ios", "arm64"), elsewhere),
    }
    estimates = {name for name, measure in found.items() if measure.estimate}
    assert estimates == (set() if arm64 else {"android", "ios", "arm64"})
    if not arm64:
        assert found["ios"].estimate == (
            "timed in LiteRT on this machine (x86_64): instructions of aarch64 cannot be counted here. "
            "'qemu-aarch64': must be on the PATH. Received: none. Run: apt-get install qemu-user"
        )
    assert measure_for(None, "latency").runtime == "litert"


def test_a_device_that_nothing_stands_in_for_is_estimated_here():
    unknown = measure_for(Device("toaster"), "latency")
    assert unknown.runtime == "litert"
    assert unknown.estimate.endswith("nothing here runs files as 'toaster' does")
    here = measure_for(Device("mine", runs_on=("*",), stands_in=("arm64",)), "latency")
    assert (here.runtime, here.estimate) == ("litert", "")


@vela
def test_a_device_with_an_npu_is_measured_by_its_compiler():
    assert type(measure_for(U55, "latency")) is NpuLatency
    assert type(measure_for(U55, "flash")) is NpuFlash
    assert type(measure_for(U55, "size")) is FileSize


def test_bytes_are_bytes_wherever_they_lie():
    for device in (*DEVICES.values(), None):
        assert type(measure_for(device, "size")) is FileSize
    flash = measure_for(DEVICES["android"], "flash")
    assert (type(flash), flash.objective) == (FileSize, "flash")
    assert flash.measure({"a": bytes(12), "b": bytes(4)}, "a") == {
        "a": tx.Cost(12.0, "bytes", 1.0, 0.0, "the file"),
        "b": tx.Cost(4.0, "bytes", 3.0, 0.0, "the file"),
    }
    assert "TFL3" in flash.refusal(b"no file")


def test_what_is_not_installed_is_an_error_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path))
    with pytest.raises(ExportError, match=r"Run: tflite-export install web"):
        measure_for(DEVICES["web"], "latency")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for objective in ("latency", "flash"):
        with pytest.raises(ImportError, match=r"pip install \"keras-prune\[mcu\]\""):
            measure_for(DEVICES["mcu"], objective)


def test_vela_that_is_not_installed_is_an_error_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu", None)
    for objective in ("latency", "flash"):
        with pytest.raises(ImportError, match=r"pip install \"keras-prune\[npu\]\""):
            measure_for(U55, objective)
    with pytest.raises(ExportError, match=r"target 'mcu': must have an NPU"):
        NpuFlash(DEVICES["mcu"])


class Download(tx.Measure):
    objective = "size"

    def measure(self, files, reference):
        sizes = {name: len(gzip.compress(content)) for name, content in files.items()}
        return {name: tx.Cost(n, "bytes", sizes[reference] / n, 0.0, "gzip") for name, n in sizes.items()}


def test_a_measure_of_ones_own_is_taken_for_its_objective():
    own = Download()
    for device in (None, DEVICES["web"], DEVICES["mcu"]):
        assert measure_for(device, "size", own) is own
    with own as opened:
        assert opened.refusal(b"anything") is None
        assert opened.measure({"a": bytes(100)}, "a")["a"].ratio == 1.0
    with pytest.raises(ExportError, match=r"must measure what is minimised, 'latency'\. Received: 'size' of Download"):
        measure_for(None, "latency", own)
    with pytest.raises(ExportError, match=r"measure: must be a tx\.Measure\. Received: 'gzip'"):
        measure_for(None, "size", "gzip")
    with pytest.raises(ExportError, match=r"minimize: must be one of .* Received: 'macs'"):
        measure_for(None, "macs")


# -- what is measured --------------------------------------------------------------------------------------------------


def test_a_cost_is_by_medians_of_pairwise_ratios():
    # A slow second round doubles both files: the ratios do not see it.
    samples = np.array([[2.0, 1.0], [4.0, 2.0], [2.0, 0.5], [2.0, 0.8]])
    measured = Measurement("a runtime", "guest instructions", [], samples, [])
    costs = costs_of(measured, {"b": b"", "a": b""}, "a", "why")
    assert list(costs) == ["b", "a"]
    assert costs["a"] == tx.Cost(2.0, "instructions", 1.0, 0.0, "a runtime", "why")
    # The ratios are 2, 2, 4, 2.5: median 2.25, quartiles 2 and 2.875.
    assert dataclasses.astuple(costs["b"])[:4] == (0.9, "instructions", 2.25, pytest.approx(0.875 / 2 / 2.25))
    assert str(tx.Cost(1.25, "ms", 2.0, 0.05, "here", "why")) == "1.25 ms, 2.00 x (+- 5.0 %), an estimate"
    assert str(tx.Cost(12345.0, "bytes", 2.0, 0.0, "the file")) == "12,345 bytes, 2.00 x"


def test_files_are_timed_beside_the_reference_and_what_does_not_run_is_left_out(files):
    measure = Latency(rounds=9)
    given = {"narrow": files["narrow"], "other": files["other"], "damaged": files["wide"][:2000], "wide": files["wide"]}
    costs = measure.measure(given, "wide")
    assert list(costs) == ["narrow", "wide"]
    assert (costs["wide"].ratio, costs["wide"].spread, costs["wide"].unit) == (1.0, 0.0, "ms")
    assert costs["narrow"].ratio > 2
    assert costs["narrow"].value < costs["wide"].value
    assert costs["narrow"].on.startswith("LiteRT ")
    assert "must take what the first file's 't0' takes" in measure.refusal(files["other"])
    assert measure.refusal(given["damaged"]) is not None
    assert measure.refusal(files["narrow"]) is None
    with pytest.raises(ExportError):
        measure.measure({"damaged": given["damaged"], "wide": files["wide"]}, "damaged")


@node
def test_files_are_timed_in_litert_js(files):
    with measure_for(DEVICES["web"], "latency") as measure:
        costs = measure.measure({name: files[name] for name in ("wide", "narrow")}, "wide")
    assert costs["narrow"].ratio > 2
    assert costs["narrow"].on.startswith("LiteRT.js under Node")
    assert costs["narrow"].estimate == ""
    assert "is bool" in measure.refusal(of_bool())


@arm64
def test_instructions_are_counted_on_aarch64(files):
    costs = measure_for(DEVICES["ios"], "latency").measure({"wide": files["wide"], "narrow": files["narrow"]}, "wide")
    assert costs["narrow"].unit == "instructions"
    assert costs["narrow"].ratio > 10
    assert max(cost.spread for cost in costs.values()) < 0.1
    assert costs["wide"].estimate == ""
    assert costs["wide"].on.endswith("cortex-a76: instructions, not time")


def convert_int8(width, zeros=0.0, activation=None):
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,), batch_size=1), layers.Dense(width, activation), layers.Dense(8)])
    if zeros:
        model = kp.prune(model, zeros, verbose=0)
    samples = np.random.default_rng(0).normal(size=(4, 1, 64)).astype("float32")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def test_flash_and_time_of_a_microcontroller(files):
    pytest.importorskip("tflite_micro")
    int8 = convert_int8(256)
    given = {"float": perceptron(256), "int8": int8, "damaged": int8[:800]}
    flash, latency = MicroFlash(), MicroLatency(rounds=5)
    costs = flash.measure(given, "float")
    assert list(costs) == ["float", "int8"]
    assert costs["int8"].value == len(int8)
    assert costs["int8"].ratio == len(given["float"]) / len(int8)
    assert "an arena of " in costs["int8"].on
    assert flash.refusal(given["damaged"]) is not None
    times = latency.measure(given, "float")
    assert list(times) == ["float", "int8"]
    assert times["float"].ratio == 1.0
    assert all(cost.value > 0 and cost.unit == "ms" and "portable kernels" in cost.estimate for cost in times.values())
    with pytest.raises(ExportError, match=r"the reference 'damaged': must run in TensorFlow Lite Micro"):
        latency.measure(given, "damaged")


@vela
def test_flash_and_cycles_of_an_npu_are_those_of_the_compiled_file():
    dense, sparse = convert_int8(512), convert_int8(512, zeros=0.9)
    given = {"sparse": sparse, "damaged": dense[:800], "elu": convert_int8(64, activation="elu"), "dense": dense}
    with measure_for(U55, "flash") as flash, measure_for(U55, "latency") as latency:
        bytes_of, cycles_of = flash.measure(given, "dense"), latency.measure(given, "dense")
        # Zeros cost nothing less in the file itself, and much less in what Vela makes of it.
        assert len(sparse) == len(dense)
        assert list(bytes_of) == ["sparse", "elu", "dense"]
        for name in ("dense", "sparse"):
            made = check_npu(given[name], U55).compiled
            for found, value, unit in ((bytes_of, made.flash_bytes, "bytes"), (cycles_of, made.cycles, "cycles")):
                assert (found[name].value, found[name].unit, found[name].spread) == (value, unit, 0.0)
                assert found[name].ratio == found["dense"].value / value
        assert bytes_of["sparse"].ratio > 2
        assert cycles_of["sparse"].ratio > 2
        assert f"{made.sram_bytes:,} bytes of SRAM" in bytes_of["sparse"].on
        assert "ethos-u55-128" in cycles_of["sparse"].on
        assert {cost.estimate for cost in bytes_of.values()} == {""}
        assert all("Vela, the compiler, estimates" in cost.estimate for cost in cycles_of.values())
        assert str(cycles_of["dense"]).endswith(" cycles, 1.00 x, an estimate")
        # Cycles leave out what the processor computes: the file with an ELU would win by what was not counted.
        assert list(cycles_of) == ["sparse", "dense"]
        assert latency.refusal(given["elu"]) == (
            "more of it than of 'dense' stays on the processor, which is not in Vela's cycles: "
            "DEQUANTIZE 1 x, ELU 1 x, QUANTIZE 1 x"
        )
        assert flash.refusal(given["damaged"]) is not None
        with pytest.raises(ExportError, match=r"the reference 'damaged': must be a file that Vela compiles"):
            latency.measure(given, "damaged")
        with pytest.raises(ExportError, match=r"the reference 'float': must have an operator that the NPU computes"):
            latency.measure({"float": perceptron(8)}, "float")
