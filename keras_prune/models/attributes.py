"""Attributes of a layer, other for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["replaced"]


@contextlib.contextmanager
def replaced(layer: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of the instance for a while, past Keras's tracking of attributes."""
    missing = object()
    before = layer.__dict__.get(name, missing)
    layer.__dict__[name] = value
    try:
        yield
    finally:
        if before is missing:
            layer.__dict__.pop(name, None)
        else:
            layer.__dict__[name] = before
