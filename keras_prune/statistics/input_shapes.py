"""The inputs that a model declares: which arrays fit them, as a batch or as a single sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

__all__ = ["InputShapes", "describe", "is_array", "shape_fits", "shape_of", "shapes_in_words"]


@dataclasses.dataclass(frozen=True)
class InputShapes:
    """What a model takes: by which x is told from (x, y), and a batch from a single sample.

    Args:
        names: keys of the inputs in a dictionary.
        shapes: of each, the batch first; None where a size is free.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]

    @classmethod
    def of(cls, model: Any) -> InputShapes | None:
        """Those that a functional or sequential model declares; None for a model whose inputs only its code knows."""
        inputs = getattr(model, "inputs", None)
        if not inputs:
            return None
        structure = None if isinstance(model, keras.Sequential) else getattr(model, "input", None)
        named = isinstance(structure, dict) and all(is_array(leaf) for leaf in structure.values())
        names = sorted(structure) if named and structure else [tensor.name for tensor in inputs]
        return cls(tuple(names), tuple(tuple(tensor.shape) for tensor in tree.flatten(inputs)))

    def leaves(self, x: Any) -> list[Any] | None:
        """The arrays of x in the order of the inputs; None where it lacks one or has another number of them."""
        if isinstance(x, Mapping):
            return [x[name] for name in self.names] if all(name in x for name in self.names) else None
        leaves = [x] if is_array(x) else tree.flatten(x)
        return leaves if len(leaves) == len(self.shapes) else None

    def fit(self, x: Any, *, single: bool = False, exactly: bool = False) -> bool:
        """Whether x is a batch of inputs, or a single sample: as many arrays, each of the rank and the sizes wanted.

        A last dimension of 1 may be missing or too much, as Keras allows, unless it has to fit exactly.
        """
        leaves = self.leaves(x)
        if leaves is None or not all(is_array(leaf) or single for leaf in leaves):
            return False
        pairs = [
            (shape_of(leaf), shape[1:] if single else (None, *shape[1:]))
            for leaf, shape in zip(leaves, self.shapes, strict=True)
        ]
        return all(shape_fits(shape, wanted, exactly) for shape, wanted in pairs)

    def is_single(self, x: Any) -> bool:
        """Whether x is a single sample and no batch; where it could be both, an exact fit decides."""
        for exactly in (True, False):
            if self.fit(x, exactly=exactly):
                return False
            if self.fit(x, single=True, exactly=exactly):
                return True
        return False


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor of some library."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of an array, a tensor, or numbers in nested lists; () of a string, which is one value."""
    return tuple(value.shape) if is_array(value) else np.shape(value) if not isinstance(value, str) else ()


def shape_fits(shape: tuple[int, ...], wanted: tuple[int | None, ...], exactly: bool = False) -> bool:
    """Return whether an array of a shape is taken where another is wanted.

    Args:
        shape: of the array.
        wanted: the shape wanted; None where a size is free.
        exactly: refuse a last dimension of 1 that is missing or too much, which Keras allows.
    """
    if not exactly:
        if len(shape) == len(wanted) + 1 and shape[-1] == 1:
            shape = shape[:-1]
        elif len(shape) == len(wanted) - 1 and wanted[-1] == 1:
            shape = (*shape, 1)
    return len(shape) == len(wanted) and all(size in (None, have) for size, have in zip(wanted, shape, strict=True))


def shapes_in_words(value: Any) -> str:
    """Return the shapes of the arrays in a structure, for a message: of one array without a list around it."""
    shapes = [shape_of(leaf) for leaf in tree.flatten(value) if leaf is not None]
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)


def describe(value: Any) -> str:
    """A value for an error message, cut to a length that can be read."""
    if is_array(value):
        return f"an array of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) < 80 else text[:77] + '...'} of type {type(value).__name__}"
