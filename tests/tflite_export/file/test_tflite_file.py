"""A file is parsed once, and an edit changes a copy of what was parsed."""

import copy

import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.tflite_export.graphs import Net
from tflite_export import ExportError, FlatbufferError
from tflite_export.file import flatbuffer
from tflite_export.file.tflite_file import Change, TFLiteFile


@pytest.fixture
def file():
    made = Net(4, 4, 8)
    return TFLiteFile(made.content(made.dense(made.mean(made.x), 4)), "a net")


@pytest.fixture
def reads(monkeypatch):
    """The contents that were parsed, in order."""
    found = []
    inner = flatbuffer.check_bounds
    monkeypatch.setattr(
        flatbuffer, "check_bounds", lambda content, subject: found.append(content) or inner(content, subject)
    )
    return found


def rename(model):
    model.description = b"renamed"
    model.subgraphs[0].tensors[0].name = b"renamed"
    model.subgraphs[0].operators[0].inputs = model.subgraphs[0].operators[0].inputs.copy()
    model.operatorCodes.append(copy.copy(model.operatorCodes[0]))
    return (Change("rename", "the file", "renamed"),)


def test_a_file_is_parsed_when_it_is_first_looked_into_and_only_then(file, reads):
    assert reads == []
    assert file.model is TFLiteFile.of(file).model
    assert reads == [file.content]


def test_an_edit_leaves_the_file_that_it_began_with_as_it_was(file, reads):
    before = flatbuffer.write(file.model)
    codes = len(file.model.operatorCodes)
    edited, changes = file.edited(rename)
    assert [change.what for change in changes] == ["renamed"]
    assert flatbuffer.write(file.model) == before
    assert len(edited.model.operatorCodes) == codes + 1
    assert edited.model.subgraphs[0].tensors[0].name == b"renamed"
    assert (edited.model.description, edited.subject) == (b"renamed", "a net")
    assert reads == [file.content, edited.content]


def test_several_edits_are_written_at_once_and_none_leaves_the_very_file(file, reads, monkeypatch):
    written = []
    inner = flatbuffer.write
    monkeypatch.setattr(flatbuffer, "write", lambda model: written.append(1) or inner(model))
    assert file.edited(lambda model: ()) == (file, ())
    assert written == []
    _, changes = file.edited(rename, lambda model: (), rename)
    assert len(changes) == 2
    assert len(written) == len(reads) == 1


def test_constants_of_the_file_cannot_be_written_into(file):
    data = next(buffer.data for buffer in file.model.buffers if buffer.data is not None and len(buffer.data))
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_an_edit_that_renames_an_input_is_a_mistake(file):
    def wrong(model):
        entry = schema.TensorMapT(name=b"other", tensorIndex=0)
        model.signatureDefs = [schema.SignatureDefT(inputs=[entry], outputs=[], signatureKey=b"serve")]
        return (Change("wrong", "the file", "an input renamed"),)

    with pytest.raises(ExportError, match=r"an edit of a net \(wrong\): must keep the names of inputs and outputs"):
        file.edited(wrong)


def test_a_damaged_file_is_refused_each_time(reads):
    damaged = TFLiteFile(b"\0\0\0\0TFL3" + bytes(40), "a file")
    for _ in range(2):
        with pytest.raises(FlatbufferError, match="a file: "):
            _ = damaged.model
