"""A device is what its fields say: under another name, or made by the user, it comes out of every stage the same."""

import dataclasses
import json
import platform
import sys
import types
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
import tflite_export as tx
from keras_prune.devices import DEVICES, Clusters, Device, Kernel, Measured
from keras_prune.devices.catalogue import MCU, X86
from tflite_export import ExportError, latency
from tflite_export.bench import tune
from tflite_export.edits.integer_io import make_io_integer
from tflite_export.model.shapes import fix_sizes
from tflite_export.model.signature import InputSpec, Signature
from tflite_export.plan.eligibility import Consumer, Weight
from tflite_export.plan.plan import make_plan
from tflite_export.runtimes.opening import open_own
from tflite_export.verification import sparse_run, verified_encoding, verify
from tflite_export.verification.sparse_run import sparse_runtime

OWN = Device(
    "own",
    (
        Kernel("CSR", "a test", (Measured(1, 2**20, ((0.2, 1.0), (0.5, 4.0))),)),
        Kernel("1x16 blocks", "a test", pays_from=(0.5, 0.6)),
    ),
    Clusters(0.5, ((0.6, 1.2), (0.8, 2.0)), "a test"),
    runs_on=("*",),
    fixed_sizes="a test fixes them",
    stands_in=("web",),
)
"""With kernels, gains and needs that no device of the library has."""

ALL = {device.name: device for device in (*DEVICES.values(), OWN)}
# Each export takes a second: those that differ by more than the name, a note and their kernels, which `test_plan` has.
DISTINCT = {name: ALL[name] for name in ("any", "android", "web", "mcu", "own")}


def copy(device):
    return dataclasses.replace(device, name="copy")


def same_but_for_the_name(stage, device):
    """Hold what a stage makes of a device against what it makes of the copy."""
    found, copied = (json.dumps(stage(given), default=str) for given in (device, copy(device)))
    assert found.replace(f"'{device.name}'", "'copy'") == copied
    return json.loads(copied)


def net():
    """A stem, 1x1 convolutions as sparse inference takes them, and matrices."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="stem")(image)
    x = layers.Conv2D(16, 1, name="last")(layers.Conv2D(16, 1, name="mix")(x))
    x = layers.Dense(64, name="hidden")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, layers.Dense(16, name="scores")(x), name="net")
    model.compile("sgd", "mse")
    return model


@pytest.fixture(scope="module")
def pruned():
    return kp.prune(net(), 0.9, allocation="uniform")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")


@pytest.fixture
def stand_in(monkeypatch):
    """LiteRT.js, LiteRT for aarch64 and TensorFlow Lite Micro are there, and agree with whatever they are given."""
    asked = []

    def run(content, *arguments, runtime, **options):
        asked.append(runtime)
        return f"executed in {runtime}"

    def check(file, inputs, *, full_int8, dense):
        asked.append("micro")
        return types.SimpleNamespace(full_int8=full_int8)

    monkeypatch.setattr(sparse_run, "_web_is_present", lambda: True)
    monkeypatch.setattr(sparse_run, "_arm64_is_present", lambda: True)
    monkeypatch.setattr(verified_encoding, "why_not_executed", lambda *_: None)
    monkeypatch.setattr(verified_encoding, "verify_where_sparse", run)
    monkeypatch.setattr(verify, "CONFIGURATIONS", ((False, 1),))
    # `tflite_export.export` is the function by that name.
    monkeypatch.setattr(sys.modules["tflite_export.export"], "check_micro", check)
    monkeypatch.setattr(
        sys.modules["tflite_export.export"], "store", lambda file, _, lines, *rest, **more: (file, lines)
    )
    return asked


def refusal_or(action):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return [action(), [str(warning.message) for warning in said]]
        except ValueError as error:
            return str(error)


# -- pruning ----------------------------------------------------------------------------------------------------------


def zeros(model):
    return {w.path: np.flatnonzero(np.asarray(w.numpy()) == 0).tolist() for w in model.weights if "kernel" in w.path}


@pytest.mark.parametrize("device", ALL.values(), ids=ALL)
def test_prune(device):
    found = same_but_for_the_name(lambda given: refusal_or(lambda: zeros(kp.prune(net(), 0.9, target=given))), device)
    assert isinstance(found, str) == (not (device.skips_zeros or device.packs_zeros))


STEADY = kp.schedules.ConstantSparsity(0.9, begin_step=1, end_step=2, frequency=1)
CALLBACKS = {
    "Pruning": lambda target: kp.Pruning(STEADY, target=target),
    "GradientPruning": lambda target: kp.GradientPruning(STEADY, target=target),
    "DynamicPruning": lambda target: kp.DynamicPruning(STEADY, growth="set", target=target),
    "ThresholdPruning": lambda target: kp.ThresholdPruning(0.1, target=target),
}


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks(make, images):
    def stage(given):
        model, pruning = net(), make(given)
        model.run_eagerly = True
        model.fit(images, np.ones((3, 16)), batch_size=3, epochs=3, shuffle=False, verbose=0, callbacks=[pruning])
        return zeros(model), [str(skipped) for skipped in pruning.skipped]

    found = same_but_for_the_name(lambda given: refusal_or(lambda: stage(given)), OWN)
    assert any(found[0][0].values())


# -- export -----------------------------------------------------------------------------------------------------------


def weight(share, block=1, rows=1, kind="float32"):
    rng = np.random.default_rng(0)
    kept = np.repeat(rng.permutation(64 * 64 // block) >= round(share * 64 * 64 / block), block).reshape(64, 64)
    values = (rng.integers(1, 100, (64, 64)) * kept).astype(kind)
    return Weight(f"{share} in {block}/{rows}", values, (Consumer("FULLY_CONNECTED", 1, rows=rows, computes=kind),), ())


def convolution():
    values = weight(0.9).values.reshape(64, 1, 1, 64)
    return Weight("convolution", values, (Consumer("CONV_2D", 1, rows=49),), ())


WEIGHTS = [
    *(weight(share, block, rows) for share in (0.4, 0.85, 0.97) for block in (1, 4) for rows in (1, 196)),
    weight(0.95, 16, kind="int8"),
    convolution(),
]


@pytest.mark.parametrize("device", ALL.values(), ids=ALL)
def test_plan(device):
    def stage(given):
        lines = make_plan(WEIGHTS, given, clusters=lambda each: "read as sparse" if each.values.ndim == 4 else None)
        return [line.to_dict() for line in lines.lines]

    assert len(same_but_for_the_name(stage, device)) == len(WEIGHTS)


def test_gains_of_ones_own_change_the_plan():
    """Single zeros, 40 % of them: CSR gains from 22 % by the user's table, and from about 95 % by that of x86."""
    values = weight(0.4)
    [line] = make_plan([values], OWN).lines
    assert line.encoding is tx.Encoding.CSR
    # 1 / gain is 1 at 20 % and 1/4 at 50 %, so 1/2 at 40 %.
    assert line.gain == pytest.approx(2.0, abs=0.01)
    assert "the kernel is faster from 22% at 1 row, expected 2 x" in line.reason
    [line] = make_plan([values], dataclasses.replace(OWN, kernels=X86.kernels)).lines
    assert line.encoding is tx.Encoding.DENSIFY
    [line] = make_plan([convolution()], OWN, clusters=lambda each: "read as sparse").lines
    assert line.gain == 2.0
    unmeasured = dataclasses.replace(OWN, clusters=Clusters())
    [line] = make_plan([convolution()], unmeasured, clusters=lambda each: "read as sparse").lines
    assert line.gain is None
    assert line.reason.endswith("read as sparse")


@pytest.mark.parametrize("device", DISTINCT.values(), ids=DISTINCT)
def test_export(device, pruned, images, stand_in, tmp_path):
    def stage(given):
        stand_in.clear()
        quantize = "int8" if device.quantize else None
        report = tx.export(pruned, tmp_path / "m.tflite", target=given, quantize=quantize, data=images)
        assert report.target == given.name
        file = open_own((tmp_path / "m.tflite").read_bytes())
        return {
            "inputs": [detail["dtype"].__name__ for detail in file.inputs.values()],
            "outputs": [detail["dtype"].__name__ for detail in file.outputs.values()],
            "batch": file.batch_size,
            "lines": [line.to_dict() for line in report.lines],
            "changes": [str(change) for change in report.changes],
            "notes": report.notes,
            "sparse run": report.sparse_run,
            "asked": list(stand_in),
            "micro": None if report.micro is None else report.micro.full_int8,
            "unreadable by": [str(reader) for reader in report.unreadable_by],
        }

    found = same_but_for_the_name(stage, device)
    integers = ["int8"] if device.integer_io else ["float32"]
    assert found["inputs"] == found["outputs"] == integers
    assert found["batch"] == (1 if device.fixed_sizes else None)
    assert found["micro"] == (True if "micro" in device.stands_in else None)
    assert found["asked"] == list(device.stands_in[:1])


@pytest.fixture(scope="module")
def file(pruned, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "m.tflite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verified_encoding, "why_not_executed", lambda *_: "not in this test")
        tx.export(pruned, path, target="web", data=images)
    return path.read_bytes()


@pytest.mark.parametrize("device", ALL.values(), ids=ALL)
def test_inspect(device, file):
    found = same_but_for_the_name(lambda given: {**tx.inspect(file, target=given).to_dict(), "target": ""}, device)
    assert ("sparse kernels of Dense layers read" in found["summary"]) == bool(device.kernels)
    assert any("prune whole channels instead" in note for note in found["notes"]) == (
        device.npu is None and not device.skips_zeros
    )
    assert found["runs_sparse"] == (device.clusters is not None and device.clusters.everywhere)


@pytest.mark.parametrize("device", ALL.values(), ids=ALL)
def test_what_stands_in_and_which_sizes_are_fixed(device, stand_in):
    free = Signature((InputSpec("audio", (None, 1), "float32"),), "audio")

    def stage(given):
        fixed, notes = fix_sizes(free, given)
        return [sparse_runtime(given), fixed.batch, notes]

    assert same_but_for_the_name(stage, device)[1] == (1 if device.fixed_sizes else None)


@pytest.mark.parametrize("device", [MCU, X86], ids=["mcu", "x86"])
def test_number_types_and_tuning_are_refused_alike(device, pruned, images, tmp_path):
    elsewhere = dataclasses.replace(device, name="far away", runs_on=("vax",))
    for quantize, tuned in ((None, True), ("int8", True), ("dynamic", True)):
        options = {"quantize": quantize, "tune": tuned, "data": images}
        found = same_but_for_the_name(
            lambda given, options=options: refusal_or(
                lambda: tx.export(pruned, tmp_path / "m", target=given, **options)
            ),
            elsewhere,
        )
        rule = "takes quantize='int8'" if device is MCU and quantize != "int8" else "needs a machine of that kind"
        assert rule in found


def test_tuning_takes_what_is_fastest_here(stand_in, pruned, images, monkeypatch, tmp_path):
    monkeypatch.setattr(tune, "measure", lambda sessions: {e: 1.0 + len(e) / 10 for e in sessions})

    def stage(given):
        report = tx.export(pruned, tmp_path / "m", target=given, data=images, tune=True)
        return [line.to_dict() for line in report.lines]

    here = dataclasses.replace(OWN, runs_on=(platform.machine(),))
    assert any("timed here" in line["reason"] for line in same_but_for_the_name(stage, here))


def test_the_stopwatch_times_the_file_of_a_device(stand_in, monkeypatch):
    """The one of a device with integer inputs has integer inputs."""
    taken = []
    monkeypatch.setattr(latency.Stopwatch, "_times", lambda self, sessions: taken.extend(sessions) or [1.0])
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")

    def stage(given):
        latency.Stopwatch(x, target=given, quantize="int8")(model)
        return [detail["dtype"].__name__ for detail in taken.pop().inputs.values()]

    assert same_but_for_the_name(stage, MCU) == ["int8"]


def test_a_plan_by_latency_takes_a_device_of_ones_own(monkeypatch):
    sizes = []

    def times(self, sessions):
        sizes.append([session.batch_size for session in sessions])
        return [1.0, 0.4][: len(sessions)]

    monkeypatch.setattr(latency.Stopwatch, "_times", times)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(16), layers.Dense(4)])
    measure = latency.Stopwatch(np.ones((2, 16)), target=OWN)
    kp.structured.plan(model, latency=0.999, params=0.5, measure=measure)
    assert sizes
    assert {size for pair in sizes for size in pair} == {1}


def test_integer_inputs_and_outputs_need_no_micro_and_are_run_before_they_are_written(
    pruned, images, tmp_path, monkeypatch
):
    chip = Device("chip", integer_io=True)
    path = tmp_path / "m.tflite"
    tx.export(pruned, path, target=chip, quantize="int8", data=images)
    file = open_own(before := path.read_bytes())
    assert [detail["dtype"].__name__ for detail in (*file.inputs.values(), *file.outputs.values())] == ["int8"] * 2
    exporting = sys.modules["tflite_export.export"]

    def wrong(model):
        changes = make_io_integer(model)
        weights = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda each: len(each.data))
        weights.data = np.full_like(weights.data, 1)
        return changes

    monkeypatch.setattr(exporting, "make_io_integer", wrong)
    with pytest.raises(ExportError, match=r"output '.*': must be the same integers .*: [0-9]+ of 48 values differ"):
        tx.export(pruned, path, target=chip, quantize="int8", data=images)
    assert path.read_bytes() == before
