"""Write a file at once, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from tflite_export.errors import ExportError


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before work begins.

    Raises:
        ExportError: It is a folder, or its folder does not exist or may not be written.
    """
    target = Path(path)
    subject = f"path '{os.fspath(path)}'"
    if target.is_dir():
        raise ExportError(subject, "must be a file", "a folder", "Add a file name.")
    if not target.parent.is_dir():
        raise ExportError(subject, "its folder must exist", f"'{target.parent}'", "Make the folder, or choose another.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ExportError(subject, "its folder must be writable", f"'{target.parent}'", "Choose another folder.")


def check_apart(places: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """Refuse places of which one would be written over another.

    Args:
        places: What is read or written, by its name in messages; None for what there is none of.

    Raises:
        ExportError: Two are the same file.
    """
    seen: dict[str, str] = {}
    for name, place in places.items():
        if place is None:
            continue
        real = os.path.realpath(place)
        if real in seen:
            raise ExportError(
                f"{name} '{os.fspath(place)}'",
                f"must be another file than {seen[real]}, or one is lost",
                "the same",
                "Choose another name.",
            )
        seen[real] = name


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that the path holds either what it held before or all of the new content.

    A temporary file in the same folder is written, flushed to the disk, and renamed.

    Raises:
        ExportError: The disk is full, or the folder cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ExportError(
            f"path '{os.fspath(path)}'",
            "must be writable",
            error.strerror,
            "What stood there is unchanged: free the disk, or choose another path.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
