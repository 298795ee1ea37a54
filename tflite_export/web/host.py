"""A process in which LiteRT.js runs: Node, or a browser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from tflite_export.processes.frames import Frame
from tflite_export.runtimes.limits import Limits

__all__ = ["PATIENCE", "Host"]

PATIENCE = 600.0
"""Seconds that one request may take where no limits are given: for files that this process has just made."""


class Host(ABC):
    """A process that runs LiteRT.js and answers frames, until it is closed.

    Attributes:
        description: the runtime, its version and its kind of SIMD.
        limits: what files of unknown origin may take; None: files that this process has just made.
    """

    description: str
    limits: Limits | None = None

    @property
    def seconds(self) -> float:
        """What one request may take."""
        return PATIENCE if self.limits is None else self.limits.seconds

    def way_out(self, otherwise: str) -> str:
        """Return what to do about a file that fails: its limits may be the reason, where it has any."""
        return otherwise if self.limits is None else self.limits.way_out

    @abstractmethod
    def call(self, header: dict[str, Any], blobs: Sequence[bytes] = (), *, more_seconds: float = 0.0) -> Frame:
        """Send a request; return the answer.

        Args:
            header: of the request.
            blobs: bytes that go with it.
            more_seconds: that it may take on top of the limit of one step.

        Raises:
            ExportError: the process ended, or took too long.
        """

    @abstractmethod
    def close(self) -> None:
        """End the process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
