"""The journal: what survives a kill, and what another search is told."""

import json

import pytest

from tflite_export import ExportError
from tflite_export.compression.candidate import Candidate
from tflite_export.compression.journal import NAME, Journal
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
    journal = Journal(tmp_path / "new", ASKED)
    journal.append("a", {"tried": tried.to_dict()})
    again = Journal(tmp_path / "new", ASKED)
    assert list(again.entries) == ["a"]
    assert Tried.from_dict(again.entries["a"]["tried"]) == tried


@pytest.mark.parametrize("cut", [1, 2, 10, 1000])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, cut):
    journal = Journal(tmp_path, ASKED)
    journal.append("a", {"seconds": 1})
    journal.append("b", {"seconds": 2})
    path = tmp_path / NAME
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    again = Journal(tmp_path, ASKED)
    assert list(again.entries) == ([] if cut == 1000 else ["a"])
    again.append("c", {"seconds": 3})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("key") for line in lines] == [None, *again.entries]


def test_another_search_does_not_go_on_from_it(tmp_path):
    Journal(tmp_path, ASKED)
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
