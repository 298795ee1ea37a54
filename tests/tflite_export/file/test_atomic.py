"""Where an export writes: never over what it reads, never half, and nothing that is no file."""

import errno
import importlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from tflite_export import ExportError, export
from tflite_export.source.loading import files_of
from tflite_export.stages.checks import check_places

convert_module = importlib.import_module("tflite_export.export")


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(convert_module, "open_source", lambda *_: pytest.fail("work began"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/model.tflite", r"its folder must exist\. Received: '.*none'"),
        (".", r"must be a file\. Received: a folder"),
        ("pipe", "must be a regular file. Received: a pipe"),
        ("/dev/null", "must be a regular file. Received: a device"),
    ],
)
@pytest.mark.parametrize("option", ["path", "golden", "c_array"])
def test_a_path_that_cannot_be_written_is_refused_before_work_begins(tmp_path, no_work, name, message, option):
    os.mkfifo(tmp_path / "pipe")
    places = {"path": tmp_path / "model.tflite", option: tmp_path / name}
    with pytest.raises(ExportError, match=message):
        export(None, **places, data=np.ones((1, 64)))


def test_the_endings_of_the_source_are_looked_at_too(tmp_path, no_work):
    (tmp_path / "model.h").mkdir()
    with pytest.raises(ExportError, match=r"model\.h': must be a file\. Received: a folder"):
        export(None, tmp_path / "model.tflite", c_array=tmp_path / "model")
    with pytest.raises(ExportError, match="File name too long"):
        export(None, tmp_path / "model.tflite", c_array=tmp_path / ("n" * 254))


def test_a_read_only_folder_is_refused(tmp_path, no_work, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ExportError, match=r"its folder must be writable"):
        export(None, tmp_path / "model.tflite", data=np.ones((1, 64)))


@pytest.mark.parametrize(
    "out", ["saved_model.pb", "fingerprint.pb", "variables/variables.index", "assets/words", "../link", "../hard"]
)
def test_no_part_of_a_saved_model_is_written_over(tmp_path, no_work, out):
    folder = tmp_path / "saved"
    for part in ("saved_model.pb", "fingerprint.pb", "variables/variables.index", "assets/words"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_bytes(b"part")
    (tmp_path / "link").symlink_to("saved/saved_model.pb")
    os.link(folder / "assets" / "words", tmp_path / "hard")
    for places in ({"path": folder / out}, {"path": tmp_path / "m.tflite", "golden": folder / out}):
        with pytest.raises(ExportError, match="must be another file than the model, or one is lost"):
            export(folder, **places)
    check_places({"the model": files_of(folder)}, folder / "model.tflite")  # beside the parts there is room


# -- temporary folders, and threads ------------------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


FULL = "scratch': must be writable and have room for the model.* bytes are free.* set the environment variable TMPDIR"


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (RuntimeError("mistaken"), ExportError, "mistaken"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (SystemExit(143), SystemExit, None),
        (OSError(errno.ENOSPC, "No space left on device"), ExportError, FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ExportError, FULL),
        # TensorFlow's writer and HDF5 say it in words only.
        (RuntimeError("RESOURCE_EXHAUSTED: /x/variables.data; No space left on device"), ExportError, FULL),
    ],
)
def test_no_temporary_folder_is_left_and_a_full_one_is_named(
    tmp_path, scratch, dense_net, monkeypatch, failure, raised, message
):
    seen = []

    def fail(folder, *_):
        seen.append(os.listdir(folder))
        raise failure

    monkeypatch.setattr("tflite_export.convert.converter._run_converter", fail)
    with pytest.raises(raised, match=message):
        export(dense_net, tmp_path / "model.tflite", data=np.ones((2, 64), "f4"))
    assert "saved_model.pb" in seen[0]
    assert not [each for each in scratch.iterdir() if each.is_dir()]  # TensorFlow's own modules stay until its end
    assert not (tmp_path / "model.tflite").exists()


def test_without_any_temporary_folder_the_error_says_so(tmp_path, dense_net, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ExportError, match=r"the temporary folder .*must be writable.*TMPDIR"):
        export(dense_net, tmp_path / "model.tflite", data=np.ones((2, 64), "f4"))


def test_one_model_is_exported_from_several_threads(tmp_path, scratch):
    """Layers in mixed precision compute in float32 for as long as an export takes, and then as before."""
    stack = [keras.Input((8,)), *(keras.layers.Dense(units, dtype="mixed_float16") for units in (16, 4))]
    model, data = keras.Sequential(stack), np.random.default_rng(0).normal(size=(3, 8)).astype("f4")
    inside = []
    real = convert_module.make_dense_file

    def slow(*arguments):
        inside.append("in")
        time.sleep(0.05)
        made = real(*arguments)
        inside.append("out")
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "make_dense_file", slow)
        with ThreadPoolExecutor(3) as pool:
            done = [pool.submit(export, model, tmp_path / f"{i}.tflite", data=data) for i in range(3)]
    assert all(each.result().verification.max_relative < 1e-4 for each in done)
    assert inside == ["in", "out"] * 3
    assert [layer.dtype_policy.name for layer in model.layers] == ["mixed_float16"] * 2
    assert len({(tmp_path / f"{i}.tflite").read_bytes() for i in range(3)}) == 1
