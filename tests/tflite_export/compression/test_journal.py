"""The journal: what survives a kill, and what another search is told."""

import json
import os
import subprocess
import sys

import pytest

from keras_prune.files import locking
from tflite_export import ExportError
from tflite_export.compression.candidate import Candidate
from tflite_export.compression.journal import LOCK, NAME, Journal
from tflite_export.compression.tried import Tried
from tflite_export.measures.measure import Cost

ASKED = {"model": "abc", "seed": 0, "target": "web"}


def test_what_was_appended_is_there_again(tmp_path):
    tried = Tried(
        Candidate(0.5, 0.8, "int8"),
        "short",
        2,
        0.875,
        0.0125,
        Cost(1.5, "ms", 2.0, 0.1, "here", "a guess"),
        100,
        "f.tflite",
        "m.keras",
        1.25,
        "",
        ("far from the model's",),
    )
    with Journal(tmp_path / "new", ASKED) as journal:
        journal.append("a", {"tried": tried.to_dict()})
    with Journal(tmp_path / "new", ASKED) as journal:
        again = journal
    assert list(again.entries) == ["a"]
    assert Tried.from_dict(again.entries["a"]["tried"]) == tried


@pytest.mark.parametrize("cut", [1, 2, 10, 1000])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, cut):
    with Journal(tmp_path, ASKED) as journal:
        journal.append("a", {"seconds": 1})
        journal.append("b", {"seconds": 2})
    path = tmp_path / NAME
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    with Journal(tmp_path, ASKED) as again:
        assert list(again.entries) == ([] if cut == 1000 else ["a"])
        again.append("c", {"seconds": 3})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("key") for line in lines] == [None, *again.entries]


def test_another_search_does_not_go_on_from_it(tmp_path):
    Journal(tmp_path, ASKED).close()
    with pytest.raises(ExportError, match=r"seed: 0 there, 1 now\. Pass folder= as another one, or remove this one"):
        Journal(tmp_path, ASKED | {"seed": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAME).write_text("no journal\n")
    with pytest.raises(ExportError, match="must be the journal of a search"):
        Journal(tmp_path / "other", ASKED)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="must be a folder that can be written"):
        Journal(tmp_path / "file", ASKED)


def test_one_search_at_a_time_works_in_a_folder(tmp_path):
    with Journal(tmp_path, ASKED) as journal:
        with pytest.raises(
            ExportError, match=rf"must not be one that another.*process {os.getpid()}\. Wait for its end"
        ):
            Journal(tmp_path, ASKED)
        journal.append("a", {"seconds": 1})
    with pytest.raises(ExportError, match="holds a search for other arguments"):
        Journal(tmp_path, ASKED | {"seed": 1})  # which leaves no lock behind
    with Journal(tmp_path, ASKED) as journal:
        assert list(journal.entries) == ["a"]


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = "import pathlib, runpy, sys; lock = runpy.run_path(sys.argv[1])['FileLock'](pathlib.Path(sys.argv[2]));"
    code += "print(0, flush=True); input()"
    command = [sys.executable, "-c", code, locking.__file__, tmp_path / LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        with pytest.raises(ExportError, match=f"a search of process {process.pid}"):
            Journal(tmp_path, ASKED)
        process.kill()
        process.wait()
        Journal(tmp_path, ASKED).close()
