"""Give memory back before a step that wants much of it."""

from __future__ import annotations

import ctypes
import gc
import sys

__all__ = ["LARGE", "release"]

LARGE = 2**24
"""Bytes of weights from which it is worth a collection, which takes a tenth of a second and more."""


def release(weight_bytes: int) -> None:
    """Free what is unreachable, and return free pages to the system where the C library keeps them (glibc).

    Keras models and the converter's objects are full of cycles, so that only a collection frees them; and glibc
    keeps freed blocks of up to 32 MB for later, which a converter with allocations of other sizes cannot use
    (benchmarks/export_large.py: a model of 100 MB in layers of 16 MB).

    Args:
        weight_bytes: of the model; a small one is not worth it.
    """
    if weight_bytes < LARGE:
        return
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
