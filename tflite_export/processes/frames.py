"""The frames that processes exchange, in Python and JavaScript: a JSON header, and raw bytes after it.

    4 bytes: length of the header, little-endian | header: JSON with "sizes" | blobs of these sizes

JavaScript's side is `assets/engine.mjs`. A frame is no pickle: a process that a file took over must not reach its
parent.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_HEADER", "Frame", "as_arrays", "as_blobs", "pack", "read_frame", "unpack"]

LARGEST_HEADER = 2**24
"""Bytes: what is longer is no header, but a stray print."""

Frame = tuple[dict[str, Any], list[bytes]]
"""Header and blobs."""


def pack(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """Return the bytes of a frame.

    Example:
        >>> pack({"do": "load"}, [b"TFL3"])[4:]
        b'{"do": "load", "sizes": [4]}TFL3'
    """
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *blobs])


def read_frame(read: Callable[[int], bytes]) -> Frame:
    """Return the header and the blobs of the next frame.

    Args:
        read: returns exactly so many bytes, fewer only at the end of the stream.

    Raises:
        EOFError: the stream ends inside a frame.
        ValueError: the bytes are not those of a frame.

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


def unpack(content: bytes) -> Frame:
    """Return the header and the blobs of a whole frame.

    Raises:
        EOFError: the frame is cut short.
        ValueError: the bytes are not those of a frame.
    """
    view = memoryview(content)
    place = 0

    def read(count: int) -> bytes:
        nonlocal place
        place += count
        return bytes(view[place - count : place])

    return read_frame(read)


def as_blobs(arrays: Sequence[NDArray[Any]]) -> tuple[list[dict[str, Any]], list[bytes]]:
    r"""Return the types and shapes of arrays, for a header, and their bytes.

    Example:
        >>> as_blobs([np.array([[1, 2]], dtype=np.int8)])
        ([{'dtype': '|i1', 'shape': [1, 2]}], [b'\x01\x02'])
    """
    kept = [np.asarray(array) for array in arrays]
    return (
        [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in kept],
        [array.tobytes() for array in kept],
    )


def as_arrays(described: Sequence[dict[str, Any]], blobs: Sequence[bytes]) -> list[NDArray[Any]]:
    """Return the arrays that `as_blobs` took apart, read-only.

    Raises:
        ValueError: the bytes are not as many as the types and shapes say.
    """
    return [
        np.frombuffer(blob, dtype=np.dtype(entry["dtype"])).reshape(entry["shape"])
        for entry, blob in zip(described, blobs, strict=True)
    ]
