"""The child process: the same answers, and its end is an error of ours."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.tflite_export.graphs import fill
from tflite_export import ExportError, FlatbufferError, export
from tflite_export.processes.child_process import python_command
from tflite_export.runtimes import isolation
from tflite_export.runtimes.isolation import IsolatedSession, LiteRTProcess, measure_isolated
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.runtimes.sessions import MeasuredFile


@pytest.fixture(scope="module")
def file(tmp_path_factory, make_dense_net, inputs):
    net = make_dense_net()
    path = tmp_path_factory.mktemp("isolation") / "model.tflite"
    export(net, path, data=inputs(net)[0])
    return path.read_bytes()


@pytest.fixture(scope="module")
def process():
    with LiteRTProcess() as shared:
        yield shared


def data(samples, seed=0):
    return np.random.default_rng(seed).normal(size=(samples, 64)).astype("float32")


@pytest.mark.parametrize(("threads", "delegate"), [(1, True), (4, False)])
def test_it_answers_as_the_runtime_here(process, file, threads, delegate):
    here = LiteRTSession(file, "model.tflite", threads=threads, delegate=delegate)
    there = IsolatedSession(file, "model.tflite", threads=threads, delegate=delegate, process=process)
    assert there.subject == here.subject
    assert there.batch_size == here.batch_size
    assert list(there.inputs) == list(here.inputs)
    assert list(there.outputs) == list(here.outputs)
    for name, detail in here.inputs.items():
        assert there.inputs[name]["dtype"] is detail["dtype"]
        assert there.inputs[name]["shape"].tolist() == detail["shape"].tolist()
    x = data(7)
    (got,) = there.run([x], list(there.inputs), list(there.outputs))
    (wanted,) = here.run([x], list(here.inputs), list(here.outputs))
    np.testing.assert_array_equal(got, wanted)
    assert there.tensor_shapes() == here.tensor_shapes()
    assert there.took > 0


def test_an_unknown_name_is_refused(process, file):
    session = IsolatedSession(file, process=process)
    with pytest.raises(ExportError, match=r"knows the names .*Received: \['nobody'\]"):
        session.run([data(1)], ["nobody"], list(session.outputs))


def test_damage_is_refused_before_a_process_is_asked(file):
    idle = LiteRTProcess()
    with pytest.raises(FlatbufferError, match=r"^cut\.tflite: "):
        IsolatedSession(file[:-64], "cut.tflite", process=idle)
    assert idle._process is None


def test_a_crash_is_an_error_with_the_signal_and_the_next_file_runs(file):
    with LiteRTProcess() as own:
        session = IsolatedSession(file, "model.tflite", process=own)
        other = IsolatedSession(file, "other.tflite", process=own)
        other.feed([data(1)], list(other.inputs))
        os.kill(own._process._process.pid, signal.SIGSEGV)
        with pytest.raises(
            ExportError,
            match=r"^model\.tflite \(1 thread, XNNPACK on\): must not crash or stall the runtime\. Received: SIGSEGV",
        ):
            session.run([data(1)], list(session.inputs), list(session.outputs))
        assert own.generation == 1
        # What was fed to the process that died must not be taken for fed.
        with pytest.raises(ExportError, match="must be fed, run and read in one process"):
            other.invoke()
        assert session.run([data(3)], list(session.inputs), list(session.outputs))[0].shape == (3, 16)


def test_a_process_that_does_not_answer_is_ended(file):
    with LiteRTProcess() as own:
        session = IsolatedSession(file, "model.tflite", process=own)
        session._limits = Limits(seconds=0.5)  # from here on: a busy machine may take longer to start the process
        os.kill(own._process._process.pid, signal.SIGSTOP)
        with pytest.raises(
            ExportError,
            match=r"stall the runtime\. Received: no answer within 0\.5 s\. .* its limits, 0\.5 s for a step and 4\.0 "
            "GiB of memory: .* raise them with limits=Limits",
        ):
            session.run([data(1)], list(session.inputs), list(session.outputs))
        assert own._process is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a limit of the address space")
def test_memory_is_limited(process):
    content = fill(2**29)  # 2 GB, never touched
    assert len(content) < 1000
    assert list(IsolatedSession(content, process=process).outputs) == ["y"]
    with pytest.raises(
        ExportError,
        match=r"^small\.tflite.*: must load in the runtime.* 120 s for a step and 1\.0 GiB of memory: .*--memory",
    ):
        IsolatedSession(content, "small.tflite", process=process, limits=Limits(memory=2**30))
    assert list(IsolatedSession(content, process=process).outputs) == ["y"]


def test_an_answer_that_is_too_large_is_refused(process):
    content = fill(2**20)
    session = IsolatedSession(content, process=process)
    session.feed([np.float32(3).reshape(())], ["x"])
    session.invoke()
    assert session.fetch(["y"])[0].tolist()[:2] == [3.0, 3.0]
    session._limits = Limits(memory=2**22 * isolation.SHARE - 1)
    with pytest.raises(ExportError, match=r"must have outputs of at most 4194303 bytes\. Received: 4194304 bytes"):
        session.fetch(["y"])


def test_inputs_that_are_too_large_are_refused(process, file, monkeypatch):
    monkeypatch.setattr(isolation, "SHARE", 2**32 // 100)
    with pytest.raises(ExportError, match=r"must have inputs that fit .*Received: 256 bytes"):
        IsolatedSession(file, process=process)


def test_the_child_needs_no_keras(file):
    """What it imports is read from its own list of modules."""
    command = python_command("tflite_export.runtimes.litert_child")
    command[2] = command[2].replace(".main()", "; print(sorted(m.split('.')[0] for m in sys.modules))")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'tflite_export'" in done.stdout
    assert "'ai_edge_litert'" in done.stdout
    assert not {"'keras'", "'tensorflow'", "'rich'"} & set(done.stdout.replace("[", "").split(", "))


def test_the_child_ends_with_its_parent(file):
    with LiteRTProcess() as own:
        IsolatedSession(file, process=own)
        own._process._process.stdin.close()
        assert own._process._process.wait(timeout=10) == 0


def test_files_are_timed_in_turn_in_the_child(file):
    with LiteRTProcess() as own:
        sessions = [IsolatedSession(file, name, process=own) for name in ("a", "b")]
        names = tuple(sessions[0].inputs), tuple(sessions[0].outputs)
        cases = [MeasuredFile(name, file, *names) for name in ("a", "b")]
        found = measure_isolated(sessions, cases, [data(1)], 7, 2)
        assert found.samples.shape == (7, 2)
        assert (found.samples > 0).all()
        # Below a millisecond: no way to the child and back lies within.
        assert np.median(found.samples) < 1
        np.testing.assert_array_equal(found.outputs[0][0], found.outputs[1][0])
        assert measure_isolated(sessions, cases, [data(1)], 0, 5).samples.shape == (0, 2)


def test_a_timed_loop_that_does_not_end_is_ended_by_what_its_runs_took(file, monkeypatch):
    with LiteRTProcess() as own:
        session = IsolatedSession(file, "slow.tflite", process=own)
        session.feed([data(1)], list(session.inputs))
        session.invoke()
        session._limits = Limits(seconds=0.3)
        session.took = 0.01
        os.kill(own._process._process.pid, signal.SIGSTOP)
        with pytest.raises(ExportError, match=r"^slow\.tflite.*Received: no answer within 1\.3 s"):
            session.time_beside([], 5)


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"memory": -1}, {"seconds": float("nan")}, {"memory": "4 GB"}])
def test_limits_are_positive_numbers(bad):
    with pytest.raises(ExportError, match=r"must be a positive number\. Received: "):
        Limits(**bad)
    assert Limits(memory=100).for_files(b"x" * 20, b"y").memory == 8 * 21
