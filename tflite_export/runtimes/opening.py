"""Load a file into LiteRT: in this process if we have just made it, and in a child process if it came from outside.

Nothing else chooses. `export`, the search for encodings and the stopwatch open bytes that this process wrote a moment
ago. What takes a path or bytes from a caller opens a file of unknown origin, whoever made it: `verify`, `benchmark`,
`serve`, `check_micro`.
"""

from __future__ import annotations

from typing import Protocol

from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.isolation import IsolatedSession, LiteRTProcess
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import LiteRTSession

__all__ = ["Opener", "open_foreign", "open_own"]


class Opener(Protocol):
    """`open_own`, or `open_foreign` with its limits."""

    def __call__(
        self, file: TFLiteFile | bytes, subject: str = "the file", *, threads: int = 1, delegate: bool = True
    ) -> LiteRTSession | IsolatedSession:
        """Return the file in LiteRT."""


def open_own(
    file: TFLiteFile | bytes, subject: str = "the file", *, threads: int = 1, delegate: bool = True
) -> LiteRTSession:
    """Load a file that this process has just made into LiteRT, in this process.

    Args:
        file: the file, or its bytes.
        subject: what errors call it.
        threads: threads of the runtime.
        delegate: use the XNNPACK delegate, as the runtime does by default.

    Raises:
        FlatbufferError: the file is damaged.
        ExportError: the runtime cannot load it.
    """
    return LiteRTSession(file, subject, threads=threads, delegate=delegate)


def open_foreign(
    file: TFLiteFile | bytes,
    subject: str = "the file",
    *,
    threads: int = 1,
    delegate: bool = True,
    limits: Limits | None = None,
    process: LiteRTProcess | None = None,
) -> IsolatedSession:
    """Load a file of unknown origin into LiteRT, in a child process that it may crash and whose limits it must keep.

    Args:
        file: the file, or its bytes.
        subject: what errors call it.
        threads: threads of the runtime.
        delegate: use the XNNPACK delegate, as the runtime does by default.
        limits: what the file may take; None: those of `Limits()`.
        process: the child process; None: the one that such files share.

    Raises:
        FlatbufferError: the file is damaged.
        ExportError: the runtime cannot load it, or crashes in it.
    """
    return IsolatedSession(file, subject, threads=threads, delegate=delegate, limits=limits, process=process)
