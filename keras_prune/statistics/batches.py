"""Data in any form that Keras users have -> batches, checked: one place for what may be wrong with data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_prune.statistics.input_shapes import InputShapes, describe, shape_fits, shapes_in_words
from keras_prune.statistics.reading import Reader, samples_in

__all__ = ["Batch", "Batches"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some samples: inputs, targets and weights as tensors, and how many samples there are."""

    x: Any
    y: Any
    sample_weight: Any
    size: int

    def __str__(self) -> str:
        parts = [f"x {shapes_in_words(self.x)}", f"y {shapes_in_words(self.y)}"]
        if self.sample_weight is not None:
            parts.append(f"sample_weight {shapes_in_words(self.sample_weight)}")
        return ", ".join(parts)


class Batches:
    """Data that can be walked any number of times, batch by batch.

    Args:
        data: a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)` of arrays or structures of arrays; an array, or a list
            or dictionary of the inputs, which is x alone; a `tf.data.Dataset`, a `keras.utils.PyDataset`, a list, a
            generator or any other iterable of batches, each in one of these forms, or of single samples; or a function
            that returns such a generator, as TFLite's `representative_dataset`. See `statistics.reading.Reader`.
        model: whose inputs the data has to fit.
        labels: whether y is needed.
        size: samples in a batch that is cut from arrays; batches that come as such stay as they are.

    Raises:
        ValueError: while walking: no data, y missing, x, y and sample_weight of different lengths, or x of another
            shape than the model's inputs.

    Warns:
        UserWarning: data whose end is not known go on beyond 1,024 samples, or are no batches but single samples.
    """

    def __init__(self, data: Any, model: keras.Layer, *, labels: bool, size: int = 32) -> None:
        self.model = model
        self.labels = labels
        self.reader = Reader(data, InputShapes.of(model), size=size)

    @functools.cached_property
    def count(self) -> int:
        """How many batches there are, found by one walk."""
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for parts in self.reader:
            batch = self._batch(parts)
            if batch.size:
                empty = False
                yield batch
        if empty:
            raise ValueError(
                f"Data must hold at least one sample. Received: data={describe(self.reader.given)}, which is empty. "
                "(An iterator that was walked before is empty too: give a data set or a list instead.)"
            )

    def _batch(self, item: tuple[Any, ...]) -> Batch:
        item = tuple(tree.map_structure(_tensor, part) for part in item)
        x, y, sample_weight = (*item, None, None)[:3]
        size = samples_in(item, "arrays")
        if self.labels and y is None:
            raise ValueError(
                f"The loss needs targets: data must be (x, y) or batches of it. Received: x alone, of shape "
                f"{shapes_in_words(x)}."
            )
        self._check_inputs(x)
        return Batch(x, y, sample_weight, size)

    def _check_inputs(self, x: Any) -> None:
        """Compare with the inputs that a Functional or Sequential model declares; others check in `call`."""
        inputs = getattr(self.model, "inputs", None)
        if not inputs or isinstance(x, dict):
            return
        wanted = [tuple(t.shape) for t in inputs]
        got = [tuple(t.shape) for t in tree.flatten(x)]
        if len(got) != len(wanted) or not all(shape_fits(g, w) for g, w in zip(got, wanted, strict=True)):
            raise ValueError(
                f"Data must fit the inputs of {self.model.name!r}, of shape {_list(wanted)}. Received: x of "
                f"shape {_list(got)}. "
                "A data set has to be batched, and an x of several inputs is a list or a dictionary in a "
                "tuple: ([x1, x2], y)."
            )


def _tensor(value: Any) -> Any:
    """A tensor of the backend; floats of NumPy in Keras's float type, as `fit` has them."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        floating = np.issubdtype(value.dtype, np.floating)
        return ops.convert_to_tensor(value, dtype=keras.config.floatx() if floating else None)
    return ops.convert_to_tensor(value)


def _list(shapes: list[tuple[Any, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)
