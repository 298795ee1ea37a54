"""A .tflite and what it holds: parsed and checked once, however many stages look into it, and edited in copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer

__all__ = ["Change", "Edit", "TFLiteFile"]


@dataclass(frozen=True)
class Change:
    """One thing that a rewrite of a model, or an edit of a file, changed.

    Args:
        rewrite: name of the rewrite or edit.
        place: path of the layer, or name of the tensor.
        what: from what to what.
    """

    rewrite: str
    place: str
    what: str


Edit = Callable[[Any], tuple[Change, ...]]
"""An edit changes a `ModelT` in place and returns what it changed: nothing where it left the model as it was.

It may replace arrays, but not write into them: they are views of the file that it began with. The names that a file's
signature gives to inputs and outputs stay.
"""


class TFLiteFile:
    """The bytes of a .tflite, with their `ModelT`.

    Args:
        content: the bytes.
        subject: what to call the file in errors.

    Example:
        >>> TFLiteFile(b"no file", "model.tflite").model
        Traceback (most recent call last):
            ...
        tflite_export.errors.FlatbufferError: model.tflite: a .tflite carries the identifier TFL3 at byte 4. ...
    """

    def __init__(self, content: bytes, subject: str = "the file") -> None:
        self.content = content
        self.subject = subject

    @classmethod
    def of(cls, file: TFLiteFile | bytes, subject: str = "the file") -> TFLiteFile:
        """Return a file for its bytes; a file is returned itself."""
        return file if isinstance(file, TFLiteFile) else cls(file, subject)

    @cached_property
    def model(self) -> Any:
        """The `ModelT`, parsed and checked when it is first asked for. It is shared: only `edited` changes one.

        Raises:
            FlatbufferError: the file is damaged.
        """
        return flatbuffer.read(self.content, self.subject)

    def edited(self, *edits: Edit) -> tuple[TFLiteFile, tuple[Change, ...]]:
        """Return the file after edits, written once, with what they changed; without changes, this file itself.

        Raises:
            FlatbufferError: this file is damaged, or the new one would be too large.
            ExportError: an edit renamed an input or an output, which is a mistake of the edit.
        """
        if not edits:
            return self, ()
        model = _copy(self.model)
        changes: tuple[Change, ...] = ()
        for edit in edits:
            changes += edit(model)
        if not changes:
            return self, ()
        if _names(model) != _names(self.model):
            raise ExportError(
                f"an edit of {self.subject} ({', '.join(dict.fromkeys(change.rewrite for change in changes))})",
                f"must keep the names of inputs and outputs, {_names(self.model)}",
                _names(model),
                "Report it: it is our mistake.",
            )
        return TFLiteFile(flatbuffer.write(model), self.subject), changes


def _copy(part: Any) -> Any:
    """Return a copy of a part of a `ModelT` whose lists and tables may be changed; arrays are shared."""
    if isinstance(part, list):
        return [_copy(each) for each in part]
    if type(part).__module__ != schema.__name__:
        return part
    made = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, list) or type(value).__module__ == schema.__name__:
            setattr(made, name, _copy(value))
    return made


def _names(model: Any) -> list[tuple[list[bytes], list[bytes]]]:
    """Return the names of inputs and of outputs in each signature."""
    return [
        ([each.name for each in signature.inputs], [each.name for each in signature.outputs])
        for signature in model.signatureDefs or []
    ]
