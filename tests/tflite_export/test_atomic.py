import os

import numpy as np
import pytest

from tflite_export import ExportError, export
from tflite_export.file.atomic import write_atomically


def test_a_file_is_written_whole(tmp_path):
    write_atomically(tmp_path / "a", b"one")
    (tmp_path / "a").chmod(0o640)
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stood_there_stays_when_writing_fails(tmp_path, monkeypatch, step, failure):
    (tmp_path / "a").write_bytes(b"before")

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, step, fail)
    expected = ExportError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(
        expected,
        match="No space left on device. What stood there is unchanged" if expected is ExportError else None,
    ):
        write_atomically(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_a_process_killed_in_the_middle_leaves_what_stood_there(tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
        write_atomically(tmp_path / "a", b"after" * 1000)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/model.tflite", r"its folder must exist\. Received: '.*none'"),
        ("file/model.tflite", r"its folder must exist\. Received: '.*file'"),
        (".", r"must be a file\. Received: a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_work_begins(tmp_path, dense_net, name, message, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("tflite_export.convert.make_dense", lambda *_: pytest.fail("work began"))
    with pytest.raises(ExportError, match=message):
        export(dense_net, tmp_path / name, data=np.ones((1, 64)))


def test_a_read_only_folder_is_refused(tmp_path, dense_net, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ExportError, match=r"its folder must be writable"):
        export(dense_net, tmp_path / "model.tflite", data=np.ones((1, 64)))
