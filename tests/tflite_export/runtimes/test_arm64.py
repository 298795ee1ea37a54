"""aarch64 under qemu: how it is started and what is refused; and, where it is installed, what it counts."""

import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import ExportError, benchmark, export
from tflite_export.runtimes import arm64, arm64_guest
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.runtimes.sessions import MeasuredFile
from tflite_export.verification.sparse_run import verify_where_sparse


def missing():
    """Return why nothing can be emulated here, or an empty text."""
    try:
        arm64.find_arm64_runtime()
    except ExportError as error:
        return str(error)
    return ""


MISSING = missing()


@pytest.fixture
def emulator(tmp_path, monkeypatch):
    """A folder for programs, the only one on the PATH, with one that stands for qemu."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path / "cache"))

    def program(name, script="exit 0"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    program(arm64.EMULATOR)
    return program


def test_what_is_not_installed_is_refused_with_the_command_that_installs_it(emulator, tmp_path):
    case = MeasuredFile("a", b"", ("x",), ("y",))
    with pytest.raises(ExportError, match=r"LiteRT for aarch64: must be installed.* Run: tflite-export install arm64"):
        arm64_guest.measure_on_arm64([case], [np.ones(1)], 1, 1)
    with pytest.raises(ExportError, match=r"cpu: must be one of .*'cortex-a76'\]\. Received: 'max'"):
        arm64_guest.measure_on_arm64([case], [np.ones(1)], 1, 1, cpu="max")
    (tmp_path / "bin" / arm64.EMULATOR).unlink()
    with pytest.raises(ExportError, match=r"'qemu-aarch64': must be on the PATH\..* Run: apt-get install qemu-user"):
        arm64.find_arm64_runtime()
    assert not (tmp_path / "cache").exists()


def test_an_installation_names_the_tools_that_are_missing(emulator, tmp_path):
    with pytest.raises(
        ExportError,
        match=r"'debootstrap', .*'cc'.*: must be on the PATH\. Received: none\. Run: apt-get install debootstrap .*gcc",
    ):
        arm64.install_arm64_runtime()
    for tool in arm64.TOOLS:
        emulator(tool, "echo no route >&2; exit 3")
    emulator("fakeroot", 'exec "$@"')
    if not arm64.KEYRING.exists():
        with pytest.raises(ExportError, match="apt-get install debian-archive-keyring"):
            arm64.install_arm64_runtime()
        return
    with pytest.raises(ExportError, match=r"Debian's packages for arm64: must work by .*debootstrap.* no route"):
        arm64.install_arm64_runtime()
    assert not list((tmp_path / "cache").iterdir())


def test_the_guest_sees_one_processor_of_the_kind(tmp_path):
    root = arm64.make_root(tmp_path, "cortex-a72")
    assert "CPU part\t: 0xd08" in (root / "proc" / "cpuinfo").read_text()
    assert (root / "sys/devices/system/cpu/possible").read_text() == "0\n"
    assert (root / "usr").readlink().as_posix() == "../usr"
    command = arm64_guest.guest_command(tmp_path, "cortex-a72", tmp_path / "job")
    assert command[:5] == ["qemu-aarch64", "-L", str(root), "-cpu", "cortex-a72"]
    assert command[6] == f"file={tmp_path}/count_instructions.so,out={tmp_path}/job/counts"
    assert command[-2:] == [str(tmp_path / "site"), str(tmp_path / "job")]


def test_a_guest_that_fails_is_an_error(emulator):
    (arm64.arm64_folder()).mkdir(parents=True)
    (arm64.arm64_folder() / "complete").touch()
    emulator(arm64.EMULATOR, "echo RuntimeError: failed to prepare. >&2; exit 1")
    with pytest.raises(
        ExportError, match=r"must run the files\. Received: exit code 1: RuntimeError: failed to prepare"
    ):
        arm64_guest.measure_on_arm64([MeasuredFile("a", b"", ("x",), ("y",))], [np.ones(1)], 1, 1)


def test_counts_are_differences_between_marks():
    counts = arm64_guest.instructions("5\n105\n200\n260\n300\n400\n500\n560\n", rounds=2, files=2)
    assert counts.tolist() == [[100.0, 60.0], [100.0, 60.0]]
    with pytest.raises(ExportError, match=r"must see 4 marks\. Received: 2"):
        arm64_guest.instructions("5\n105\n", rounds=2, files=1)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_sparse_kernels_take_fewer_instructions_than_the_twin(tmp_path, zero_out, inputs):
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, 2, activation="relu")(layers.ZeroPadding2D(1)(image))
    for units in (128, 128):
        x = layers.Conv2D(units, 1, activation="relu")(x)
    stem = keras.Model(image, x)
    zero_out(stem)
    model = keras.Model(image, layers.Dense(8)(layers.GlobalAveragePooling2D()(stem.output)))
    export(model, tmp_path / "sparse.tflite", data=inputs(model), batch_size=1)
    data = inputs(model)
    content = (tmp_path / "sparse.tflite").read_bytes()
    session = LiteRTSession(content)
    wanted = [np.array(model(data[0]))]
    arguments = [content, data, wanted, list(session.inputs), list(session.outputs)]
    run = verify_where_sparse(*arguments, runtime="arm64", tolerance=1e-4)
    assert (run.samples, run.runtime) == (5, arm64_guest.describe())
    assert 0 < run.max_relative < 1e-5
    wanted[0][4, 0] += 1.0  # of the last sample, in a batch of its own
    with pytest.raises(ExportError, match="must equal the model's outputs"):
        verify_where_sparse(*arguments, runtime="arm64", tolerance=1e-4)
    for cpu in arm64.CPUS:
        report = benchmark(tmp_path / "sparse.tflite", runtime="arm64", twins=True, cpu=cpu)
        (timing,) = report.timings
        assert (report.unit, report.rounds) == ("guest instructions", arm64_guest.ROUNDS)
        assert cpu in report.description
        assert timing.high - timing.low < 1e-2 * timing.median  # Python's own, around the call
        assert timing.twin_ratio > 1.5
