"""A few inputs of the right kind for a model: the first of given data, else drawn ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops, tree

from keras_prune.keras_seam import IndexLookup, calls_of, layers_in

__all__ = ["OPEN_SIZES", "draw_array", "draw_inputs", "first_inputs", "readers_of"]

SAMPLES = 4
OPEN_SIZES = (8, 32, 128)
"""Sizes to try for a dimension that is left open: some layers need a larger one than others."""


def first_inputs(data: Any) -> Any:
    """Return the first samples of the inputs in data, four at most; None where they cannot be had without loss.

    Args:
        data: as for `Batches`; an iterator, which could be walked only once, is left alone.

    Example:
        >>> first_inputs((np.zeros((10, 3)), np.zeros(10))).shape
        (4, 3)
    """
    if data is None or isinstance(data, Iterator):
        return None
    if isinstance(data, keras.utils.PyDataset):
        batch = data[0]
    elif hasattr(data, "element_spec") or isinstance(data, list):
        batch = next(iter(data), None)
    else:
        batch = data
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    leaves = tree.flatten(x)
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return None
    return tree.map_structure(lambda leaf: leaf[:SAMPLES], x)


def draw_inputs(model: Any, inputs: Any, size: int = OPEN_SIZES[0], seed: int = 0) -> Any:
    """Return drawn inputs for a model: a standard normal for floats, ids within tables, words for lookups.

    Args:
        model: whose layers say which numbers and words an input may hold.
        inputs: a structure of Keras tensors (of symbolic inputs).
        size: for dimensions that are left open, the batch excepted.
        seed: fixes the numbers.

    Example:
        >>> words = keras.layers.StringLookup(vocabulary=["a", "b"], num_oov_indices=0)
        >>> inputs = keras.Input((2,), dtype="string")
        >>> model = keras.Model(inputs, words(inputs))
        >>> drawn = draw_inputs(model, model.input)
        >>> drawn.shape[1], set(np.unique(ops.convert_to_numpy(drawn)).tolist()) <= {b"a", b"b"}
        (2, True)
    """
    rng = np.random.default_rng(seed)
    return tree.map_structure(lambda symbol: _draw(rng, model, symbol, size), inputs)


def _draw(rng: np.random.Generator, model: Any, symbol: Any, size: int) -> Any:
    batch = SAMPLES if symbol.shape[0] is None else symbol.shape[0]
    shape = (batch, *(size if one is None else one for one in symbol.shape[1:]))
    kind = keras.backend.standardize_dtype(symbol.dtype)
    array = draw_array(rng, shape, kind, readers_of(model, symbol), layers_in(model))
    if kind == "string":
        import tensorflow as tf

        return tf.constant(array)
    return ops.convert_to_tensor(array, dtype=kind)


def draw_array(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, readers: Sequence[Any], layers: Sequence[Any]
) -> npt.NDArray[Any]:
    """Return drawn values of one input, yet to be cast to its type.

    Args:
        rng: where the numbers come from.
        shape: [samples, ...].
        kind: the input's type, as Keras calls it.
        readers: the layers that are given the input itself; none where that is not known.
        layers: that may come to read it, or what is made of it.

    Returns:
        Of `shape`: a standard normal for floats; words for lookups; ids within the tables that may be indexed by them,
        else 0 and 1.
    """
    inside = [one for layer in readers for one in layers_in(layer)] or layers
    floating = kind.startswith(("float", "bfloat"))
    words = [] if floating else _words(inside, text=kind == "string")
    if words or kind == "string":
        return np.asarray(rng.choice(words or ["a", "b"], shape))
    # Floats are ids only where an Embedding reads them itself, which casts them.
    limit = _limit(readers or inside) if floating else _limit(inside) or _limit(layers)
    return rng.standard_normal(shape) if limit is None and floating else rng.integers(0, limit or 2, shape)


def readers_of(model: Any, symbol: Any) -> list[Any]:
    """The layers that an input is given to."""
    return [
        layer
        for layer in layers_in(model, include_self=False)
        if any(tensor is symbol for node in calls_of(layer) for tensor in node.input_tensors)
    ]


def _words(layers: Sequence[Any], *, text: bool) -> list[Any]:
    """Words that lookups know, and one that they do not, unless they refuse such."""
    tables = [layer for layer in layers if isinstance(layer, IndexLookup) and not layer.invert]
    tables = [layer for layer in tables if (layer.vocabulary_dtype == "string") == text]
    if not tables:
        return []
    table = min(tables, key=lambda layer: layer.num_oov_indices)
    words = table.get_vocabulary(include_special_tokens=False)
    known: list[Any] = [str(word) if text else int(word) for word in words]
    unknown: Any = "a word that no table knows" if text else max(known, default=0) + 1
    return [*known, unknown] if table.num_oov_indices else known


def _limit(layers: Sequence[Any]) -> int | None:
    """What ids must stay below: the smallest table that they may index; None where there is none."""
    sizes = [layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)]
    sizes += [layer.num_tokens for layer in layers if isinstance(layer, keras.layers.CategoryEncoding)]
    return min((size for size in sizes if size), default=None)
