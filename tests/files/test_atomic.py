"""Files are written whole, and never over what is read, a device or a pipe."""

import os
import socket
import sys
from pathlib import Path

import pytest

from keras_prune.files import atomic
from keras_prune.files.atomic import PathError, check_apart, check_writable, replaced, write_atomically


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
    expected = PathError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(
        expected,
        match="No space left on device. The previous file is unchanged" if expected is PathError else None,
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


def test_a_writer_of_its_own_gets_a_path_with_the_suffix_and_a_failure_of_it_changes_nothing(tmp_path):
    out = tmp_path / "model.keras"
    with replaced(out) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".keras")
        temporary.write_bytes(b"one")

    def fail():
        with replaced(out) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert out.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["model.keras"]


@pytest.mark.parametrize("length", [241, 242, 254, 255])
def test_the_longest_names_can_be_written(tmp_path, length):
    for suffix in (".tflite", "." + "x" * 99):
        name = "n" * (length - len(suffix)) + suffix
        write_atomically(tmp_path / name, b"one")
        write_atomically(tmp_path / name, b"two")
        assert (tmp_path / name).read_bytes() == b"two"
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/m", r"its folder must exist\. Received: '.*none'"),
        ("file/m", r"its folder must exist\. Received: '.*file'"),
        (".", r"must be a file\. Received: a folder"),
        ("link", r"must be a file\. Received: a folder"),
        ("n" * 256, "must be a valid path on this system. Received: File name too long"),
        ("a\0b", "must hold no zero character"),
        ("circle", "a loop of symbolic links"),
        ("pipe", "must be a regular file. Received: a pipe. Choose a file; this one stays as it is"),
        ("to_pipe", "Received: a pipe"),
        ("socket", "Received: a socket"),
        ("/dev/null", "Received: a device"),
        ("to_device", "Received: a device"),
    ],
)
def test_what_cannot_be_written_is_refused_and_stays_as_it_is(tmp_path, name, message, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for link, to in {"link": ".", "circle": "circle", "to_pipe": "pipe", "to_device": "/dev/null"}.items():
        (tmp_path / link).symlink_to(to)
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        kinds = {each: os.lstat(each).st_mode for each in [*os.listdir("."), "/dev/null"]}
        for act in (check_writable, lambda path: write_atomically(path, b"after")):
            with pytest.raises(PathError, match=message):
                act(f"{tmp_path}/{name}" if not name.startswith("/") else name)
        assert {each: os.lstat(each).st_mode for each in [*os.listdir("."), "/dev/null"]} == kinds


def test_a_symbolic_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    for content in (b"one", b"two"):  # at first the link leads to nothing
        write_atomically(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["folder", "link"]


@pytest.mark.parametrize(
    "spelling", ["./m", "folder/../m", "symbolic", "hard", "to_folder/../m", "folder/up/m", "absolute"]
)
def test_an_output_is_told_from_an_input_by_the_file_and_not_by_the_spelling(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "m").write_bytes(b"trained")
    (tmp_path / "symbolic").symlink_to("m")
    os.link("m", "hard")
    (tmp_path / "to_folder").symlink_to("folder")
    (tmp_path / "folder" / "up").symlink_to("..")
    out = tmp_path / "m" if spelling == "absolute" else spelling
    with pytest.raises(PathError, match=r"OUT '.*': must be another file than the model, or one is lost"):
        check_apart({"the data": None, "the model": "m"}, {"OUT": out})
    with pytest.raises(PathError, match="must be another file than the model"):
        check_apart({"the model": ["other", Path("m")]}, {"golden": None, "OUT": out})
    check_apart({"the model": "m"}, {"OUT": "folder/m", "golden": "new", "source": "NEW2"})
    check_apart({"the model": object()}, {"OUT": "m"})


def test_outputs_that_do_not_exist_yet_are_told_apart_too(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(".")
    with pytest.raises(PathError, match="must be another file than path"):
        check_apart({}, {"path": tmp_path / "new", "golden": tmp_path / "link" / "new"})
    both = {"path": tmp_path / "größe", "golden": tmp_path / "GRO\u0308SSE"}
    if sys.platform == "linux":
        check_apart({}, both)
    assert os.listdir(tmp_path) == ["link"]  # the probe is gone
    # A file system that makes no difference between cases: macOS, Windows.
    monkeypatch.setattr(atomic, "_folds_names", lambda folder: folder == tmp_path)
    with pytest.raises(PathError, match="must be another file than path"):
        check_apart({}, both)
