"""The frames by which Python and JavaScript talk: a JSON header, and bytes after it.

    4 bytes: length of the header, little-endian | header: JSON with "sizes" | blobs of these sizes

JavaScript's side is `assets/engine.mjs`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["LARGEST_HEADER", "pack", "read_frame", "unpack"]

LARGEST_HEADER = 2**24
"""Bytes: what is longer is no header, but a stray print."""


def pack(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """Return a frame.

    Example:
        >>> pack({"do": "load"}, [b"TFL3"])[4:]
        b'{"do": "load", "sizes": [4]}TFL3'
    """
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *blobs])


def read_frame(read: Callable[[int], bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Return header and blobs of the next frame.

    Args:
        read: returns exactly so many bytes, fewer only at the end of the stream.

    Raises:
        EOFError: the stream ends inside a frame.
        ValueError: it holds something else.

    Example:
        >>> import io
        >>> read_frame(io.BytesIO(pack({"do": "load"}, [b"TFL3"])).read)
        ({'do': 'load', 'sizes': [4]}, [b'TFL3'])
    """

    def exactly(count: int) -> bytes:
        data = read(count)
        if len(data) < count:
            raise EOFError(f"the stream ended {count - len(data)} bytes early")
        return data

    (length,) = struct.unpack("<I", exactly(4))
    if length > LARGEST_HEADER:
        raise ValueError(f"a frame's header takes at most {LARGEST_HEADER} bytes. Received: {length}.")
    header = json.loads(exactly(length))
    return header, [exactly(size) for size in header["sizes"]]


def unpack(content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return header and blobs of a frame that is whole.

    Raises:
        EOFError: it is cut short.
        ValueError: it is something else.
    """
    view = memoryview(content)
    place = 0

    def read(count: int) -> bytes:
        nonlocal place
        place += count
        return bytes(view[place - count : place])

    return read_frame(read)
