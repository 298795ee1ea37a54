"""Write a file at once or not at all, and never over what is read.

Commands of both packages write through here: an output is checked before work begins, made beside its place under a
short name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_prune.text.plaintext import printable

__all__ = ["PathError", "check_apart", "check_writable", "replaced", "write_atomically"]

StrPath = str | os.PathLike[str]

LONGEST_SUFFIX = 16
"""Characters of a suffix that the temporary file keeps: Keras tells a format by it."""
_KINDS = (
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class PathError(ValueError):
    """A path cannot be written, or must not be.

    Args:
        subject: the path, and what it is for.
        rule: the rule that it breaks.
        received: what was found.
        way_out: what to do about it.

    Example:
        >>> raise PathError("path 'm'", "must be a file", "a folder", "Add a file name.")
        Traceback (most recent call last):
            ...
        keras_prune.files.atomic.PathError: path 'm': must be a file. Received: a folder. Add a file name.
    """

    def __init__(self, subject: str, rule: str, received: object, way_out: str) -> None:
        super().__init__(subject, rule, received, way_out)
        self.subject, self.rule, self.received, self.way_out = subject, rule, received, way_out

    def __str__(self) -> str:
        """Return the message as one line."""
        return printable(f"{self.subject}: {self.rule}. Received: {self.received}. {self.way_out}")


def check_writable(path: StrPath) -> None:
    """Refuse a path that cannot be written, before work begins.

    A symbolic link stands for what it leads to. Devices, pipes and sockets are left alone.

    Raises:
        PathError: It is a folder or no regular file, has a name that is too long, or its folder does not exist or may
            not be written.
    """
    subject = f"path '{os.fspath(path)}'"
    target = _destination(path)
    found = _status(target, subject)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise PathError(subject, "must be a file", "a folder", "Add a file name.")
    if found is not None and not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "no regular file")
        raise PathError(subject, "must be a regular file", kind, "Choose a file; this one stays as it is.")
    if not target.parent.is_dir():
        raise PathError(subject, "its folder must exist", f"'{target.parent}'", "Make the folder, or choose another.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PathError(subject, "its folder must be writable", f"'{target.parent}'", "Choose another folder.")


def check_apart(inputs: Mapping[str, Any], outputs: Mapping[str, StrPath | None]) -> None:
    """Refuse an output that would be written over an input, or over another output.

    Two paths are the same file whatever their spelling: relative, through symbolic links, as hard links, or in other
    letters where the file system makes no difference between them.

    Args:
        inputs: what is read, by its name in messages: a path, or a list of paths that belong together; None for what
            there is none of. What is no path, such as a model in memory, is passed over.
        outputs: what is written, likewise.

    Raises:
        PathError: Two are the same file.

    Example:
        >>> check_apart({"the model": "m.keras"}, {"OUT": "./m.keras"})
        Traceback (most recent call last):
            ...
        keras_prune.files.atomic.PathError: OUT './m.keras': must be another file than the model, or one is lost. ...
    """
    seen: list[tuple[str, Path, os.stat_result | None]] = []
    for name, given in inputs.items():
        for place in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(place, (str, os.PathLike)):
                real = _destination(place)
                seen.append((name, real, _status(real, name)))
    for name, place in outputs.items():
        if place is None:
            continue
        subject = f"{name} '{os.fspath(place)}'"
        real = _destination(place)
        found = _status(real, subject)
        for other, path, status in seen:
            if _same(real, found, path, status):
                raise PathError(
                    subject, f"must be another file than {other}, or one is lost", "the same", "Choose another name."
                )
        seen.append((name, real, found))


@contextmanager
def replaced(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path to write to; on leaving, it becomes the file, whole, or nothing has changed.

    The temporary file lies in the same folder, with the suffix of the path. It goes away on any failure, Ctrl-C
    included. A symbolic link stays, and what it leads to is replaced; an older file keeps its permissions.

    Raises:
        PathError: The disk is full, or the path cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replaced(f"{folder}/model.txt") as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     os.listdir(folder), Path(folder, "model.txt").read_text()
        (['model.txt'], 'all of it')
    """
    check_writable(path)
    target = _destination(path)
    suffix = target.suffix if len(target.suffix) <= LONGEST_SUFFIX else ""
    temporary = target.with_name(f".{secrets.token_hex(6)}.part{suffix}")
    try:
        yield temporary
        _flush(temporary)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise PathError(
            f"path '{os.fspath(path)}'",
            "must be writable",
            error.strerror or error,
            "The previous file is unchanged: free disk space, or choose another path.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: StrPath, content: bytes) -> None:
    """Write bytes so that the path holds either what it held before or all of them: see :func:`replaced`.

    Raises:
        PathError: The disk is full, or the path cannot be written.
    """
    with replaced(path) as temporary, temporary.open("xb") as file:
        file.write(content)


def _destination(path: StrPath) -> Path:
    """Return the file that a path leads to, through all symbolic links, there or not."""
    text = os.fspath(path)
    if "\0" in text:
        raise PathError(f"path {text!r}", "must hold no zero character", repr(text), "Choose another name.")
    real = os.path.realpath(text)
    if os.path.islink(real):
        raise PathError(f"path '{text}'", "must lead to a file", "a loop of symbolic links", "Choose another path.")
    # What /dev/stdout leads to has no path of its own.
    return Path(real if os.path.lexists(real) or not os.path.exists(text) else os.path.abspath(text))


def _status(path: Path, subject: str) -> os.stat_result | None:
    """Return what is at a path; None where nothing is."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise PathError(subject, "must be a valid path on this system", error.strerror, "Choose another.") from error


def _same(first: Path, status: os.stat_result | None, other: Path, other_status: os.stat_result | None) -> bool:
    """Return whether two paths are one file, or would be once both are written."""
    if status is not None and other_status is not None:
        return os.path.samestat(status, other_status)
    if status is not None or other_status is not None:
        return False
    if first == other:
        return True
    if _folded(first.name) != _folded(other.name) or not first.parent.is_dir() or not other.parent.is_dir():
        return False
    return os.path.samefile(first.parent, other.parent) and (first.name == other.name or _folds_names(first.parent))


def _folded(name: str) -> str:
    """Return a name without what some file systems do not tell apart: case, and ways to write an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def _folds_names(folder: Path) -> bool:
    """Return whether a folder takes names that differ in case for one, by making such a file for a moment."""
    probe = folder / f".{secrets.token_hex(6)}.part"
    try:
        probe.open("xb").close()
        return probe.with_name(probe.name.upper()).exists()
    except OSError:
        return True  # it cannot be told: the safe answer
    finally:
        probe.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk; Windows has no such call for a folder."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
