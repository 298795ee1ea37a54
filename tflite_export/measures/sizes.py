"""Bytes of the file."""

from __future__ import annotations

from collections.abc import Mapping

from tflite_export.errors import FlatbufferError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.measures.measure import Cost, Measure

__all__ = ["FileSize", "costs_of_bytes"]


class FileSize(Measure):
    """Bytes of the file: what is downloaded, and what storage or flash it takes.

    Args:
        objective: "size", or "flash" for a device whose flash holds the file as it is.

    Example:
        >>> FileSize().measure({"dense": bytes(8), "sparse": bytes(2)}, "dense")["sparse"]
        Cost(value=2.0, unit='bytes', ratio=4.0, spread=0.0, on='the file', estimate='')
    """

    def __init__(self, objective: str = "size") -> None:
        self.objective = objective

    def refusal(self, file: bytes) -> str | None:
        """Return what is damaged in a file, or None."""
        try:
            _ = TFLiteFile.of(file).model
        except FlatbufferError as error:
            return str(error)
        return None

    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the number of bytes of each file."""
        return costs_of_bytes(files, reference, {name: "the file" for name in files})


def costs_of_bytes(files: Mapping[str, bytes], reference: str, on: Mapping[str, str]) -> dict[str, Cost]:
    """Return the bytes of files as costs.

    Args:
        files: content by name.
        reference: the name that the others are compared with.
        on: of the files to return, where they lie.
    """
    return {
        name: Cost(float(len(files[name])), "bytes", len(files[reference]) / len(files[name]), 0.0, place)
        for name, place in on.items()
    }
