"""Archives that others made: what they declare is looked at before anything is unpacked."""

from __future__ import annotations

import os
import zipfile

__all__ = [
    "CONTAINER_MAGIC",
    "LARGEST_MODEL",
    "LARGEST_RATIO",
    "SMALL",
    "check_keras_archive",
    "read_member",
    "require_small_archive",
]

CONTAINER_MAGIC = b"\x89KPZ\r\n\x1a\n"
"""How a `.kpz` file begins. As PNG: a byte that is no ASCII, and line ends that a transfer as text would change."""
LARGEST_MODEL = 16 * 2**30
"""Bytes of a .keras file, unpacked: weights of the largest .tflite, an optimizer's state and room."""
LARGEST_RATIO = 100
"""Unpacked / packed bytes of an archive of more than `SMALL`: zip reaches 1032 with zeros only, weights that are 99 %
zeros 40."""
SMALL = 64 * 2**20
"""Bytes that anything may take, however well it is packed."""
ENTRIES = 100_000
SMALL_MEMBER = 1 << 16
MEMBER_RATIO = 1000
"""Unpacked / packed bytes of a member of more than `SMALL_MEMBER`: text and weights of a model stay below."""


def require_small_archive(archive: zipfile.ZipFile, largest: int | None = None) -> None:
    """Refuse a zip archive by the sizes that it declares; what is unpacked is never more, since reading stops there.

    Args:
        archive: open for reading.
        largest: bytes that it may take, unpacked; None for any number, if they are not packed too well.

    Raises:
        BadZipFile: they are too large, far larger than the archive, or too many.
    """
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    packed = max(1, sum(entry.compress_size for entry in entries))
    if len(entries) > ENTRIES:
        raise zipfile.BadZipFile(f"{len(entries)} entries, where {ENTRIES} are allowed")
    if largest is not None and unpacked > largest:
        raise zipfile.BadZipFile(f"{unpacked} bytes once it is unpacked, where {largest} are allowed")
    if unpacked > SMALL and unpacked > LARGEST_RATIO * packed:
        raise zipfile.BadZipFile(
            f"{unpacked} bytes unpacked of {packed} packed ones, more than {LARGEST_RATIO} times as many"
        )


def check_keras_archive(path: str | os.PathLike[str], largest: int | None = None) -> None:
    """Refuse a .keras file that is no whole archive, or unpacks to more than a model takes, before Keras reads it.

    Args:
        path: of the file.
        largest: bytes that it may take, unpacked; None for any number.

    Raises:
        BadZipFile: it is such; of a damaged archive, `zipfile` raises other errors too, up to `struct.error`.
    """
    with zipfile.ZipFile(path) as archive:
        require_small_archive(archive, largest)
        if "config.json" not in archive.namelist():
            raise zipfile.BadZipFile("an archive without config.json")
        size = archive.getinfo("config.json").file_size
        if size > SMALL:
            raise zipfile.BadZipFile(f"a configuration of {size} bytes, where {SMALL} are allowed")


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a member of a .keras file.

    Raises:
        BadZipFile: it declares a size that nothing in such a file packs to.
        KeyError: there is none of that name.
    """
    info = archive.getinfo(name)
    if info.file_size > SMALL_MEMBER and info.file_size > MEMBER_RATIO * info.compress_size:
        raise zipfile.BadZipFile(
            f"{name} declares {info.file_size:,} bytes, and {info.compress_size:,} are stored: it would fill the memory"
        )
    return archive.read(name)
