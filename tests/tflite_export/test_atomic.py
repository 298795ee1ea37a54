"""Where an export writes: never over what it reads, never half, and nothing that is no file."""

import os

import numpy as np
import pytest

from tflite_export import ExportError, export
from tflite_export.convert import check_places
from tflite_export.loading import files_of


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr("tflite_export.convert.open_source", lambda *_: pytest.fail("work began"))


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
