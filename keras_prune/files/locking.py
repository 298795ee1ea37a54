"""A place that one process at a time works in: a lock of the operating system, which ends with its process.

It is on a file of its own, which stays: whoever removed it could remove the lock of the next one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Self

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileLock", "LockedError"]

_PLACE = 2**30
"""On Windows, the byte that is locked: beyond the text, which others read."""


class LockedError(RuntimeError):
    """A lock is held elsewhere.

    Args:
        holder: the number of the process; empty where it is not known.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by process {holder or 'unknown'}")
        self.holder = holder


class FileLock:
    """A lock on a file, held from here to `close`, or to the end of the process, however that ends.

    Args:
        path: of the file, made if it is not there; it holds the number of the process.

    Raises:
        LockedError: another process, or another lock of this one, holds it.
        OSError: the file cannot be written, or its file system has no locks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with FileLock(Path(folder) / "lock"):
        ...         try:
        ...             FileLock(Path(folder) / "lock")
        ...         except LockedError as error:
        ...             print(error.holder == str(os.getpid()))
        True
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        try:
            if not _try(self._file.fileno()):
                self._file.seek(0)
                raise LockedError(self._file.read(20).decode(errors="replace").strip())
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n".encode())
            self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _try(descriptor: int) -> bool:
    """Lock an open file, if nobody else has."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _PLACE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # of flock, of Windows
        return False
    return True
