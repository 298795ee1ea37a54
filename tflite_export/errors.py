"""The errors of this package: what is wrong, by which rule, and the way out."""

from __future__ import annotations

from keras_prune.text.plaintext import printable

__all__ = ["ExportError", "FlatbufferError"]


class ExportError(ValueError):
    """A model cannot be exported, or a file cannot be trusted.

    The message reads `subject: rule. Received: received. way_out`. It may hold names of a file; what in them would
    act on a terminal is written as an escape.

    Args:
        subject: what is wrong: a tensor, an input, a file.
        rule: the rule that it breaks.
        received: the value found.
        way_out: what to do about it.

    Example:
        >>> raise ExportError("input 'x'", "must be finite", "2 NaN", "Clean the data.")
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: input 'x': must be finite. Received: 2 NaN. Clean the data.
    """

    def __init__(self, subject: str, rule: str, received: object, way_out: str) -> None:
        super().__init__(subject, rule, received, way_out)
        self.subject = subject
        self.rule = rule
        self.received = received
        self.way_out = way_out

    def __str__(self) -> str:
        """Return the message as one line."""
        return printable(f"{self.subject}: {self.rule}. Received: {self.received}. {self.way_out}")


class FlatbufferError(ExportError):
    """A file is not a .tflite, is damaged, or uses a part of the format that is not handled."""
