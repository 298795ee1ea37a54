"""Data in any form that Keras users have -> batches, checked: one place for what may be wrong with data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree

__all__ = ["Batch", "Batches"]

FORMS = "(x, y) or (x, y, sample_weight) of arrays, a tf.data.Dataset, a keras PyDataset, or a list of batches"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some samples: inputs, targets and weights as tensors, and how many samples there are."""

    x: Any
    y: Any
    sample_weight: Any
    size: int

    def __str__(self) -> str:
        parts = [f"x {_shapes(self.x)}", f"y {_shapes(self.y)}"]
        if self.sample_weight is not None:
            parts.append(f"sample_weight {_shapes(self.sample_weight)}")
        return ", ".join(parts)


class Batches:
    """Data that can be walked any number of times, batch by batch.

    Args:
        data: a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)` of arrays or structures of arrays; an array
            or a dictionary of arrays, which is x alone; a `tf.data.Dataset`, a `keras.utils.PyDataset` or any
            other iterable of batches, each in one of these forms. A list is a list of batches. An iterator (a
            generator, say) is read whole, since it can be walked only once.
        model: whose inputs the data has to fit.
        labels: whether y is needed.
        size: samples in a batch that is cut from arrays; batches that come as such stay as they are.

    Raises:
        ValueError: while walking: no data, y missing, x, y and sample_weight of different lengths, x of
            another shape than the model's inputs, or a data set without end.
    """

    def __init__(self, data: Any, model: keras.Layer, *, labels: bool, size: int = 32) -> None:
        self.model = model
        self.labels = labels
        self.size = size
        self.data = list(data) if isinstance(data, Iterator) else data

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for item in self._items():
            batch = self._batch(item)
            if batch.size:
                empty = False
                yield batch
        if empty:
            raise ValueError(
                f"Data must hold at least one sample. Received: data={_describe(self.data)}, which is empty. "
                "(An iterator that was walked before is empty too: give a data set or a list instead.)"
            )

    def _items(self) -> Iterator[Any]:
        """Batches as the user wrote them."""
        data = self.data
        if isinstance(data, tuple):
            yield from self._cut(data)
        elif _is_array(data) or isinstance(data, dict):
            yield from self._cut((data,))
        elif isinstance(data, keras.utils.PyDataset):
            if data.num_batches is None:
                raise _endless(data)
            yield from (data[i] for i in range(data.num_batches))
        elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
            if hasattr(data, "element_spec") and int(getattr(data, "cardinality", lambda: -2)()) == -1:
                raise _endless(data)
            yield from data
        else:
            raise ValueError(f"Data must be {FORMS}. Received: data={_describe(data)}")

    def _cut(self, arrays: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        arrays = tuple(_arrays(part) for part in arrays)
        length = _length(arrays)
        for start in range(0, length, self.size):
            yield tuple(
                tree.map_structure(lambda a, start=start: None if a is None else a[start : start + self.size], part)
                for part in arrays
            )

    def _batch(self, item: Any) -> Batch:
        if isinstance(item, list):
            item = tuple(item)
        if not isinstance(item, tuple):
            item = (item,)
        if not 1 <= len(item) <= 3:
            raise ValueError(
                f"A batch is (x,), (x, y) or (x, y, sample_weight). Received: a tuple of {len(item)} parts"
            )
        item = tuple(tree.map_structure(_tensor, _arrays(part)) for part in item)
        x, y, sample_weight = (*item, None, None)[:3]
        size = _length(item)
        if self.labels and y is None:
            raise ValueError(
                f"The loss needs targets: data must be (x, y) or batches of it. Received: x alone, of shape "
                f"{_shapes(x)}."
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
        if len(got) != len(wanted) or not all(_fits(g, w) for g, w in zip(got, wanted, strict=True)):
            raise ValueError(
                f"Data must fit the inputs of {self.model.name!r}, of shape {_list(wanted)}. Received: x of "
                f"shape {_list(got)}. "
                "A data set has to be batched, and an x of several inputs is a list or a dictionary in a "
                "tuple: ([x1, x2], y)."
            )


def _endless(data: Any) -> ValueError:
    return ValueError(
        f"Data must come to an end. Received: {_describe(data)}, which repeats for ever. Take a part of it, "
        f"such as dataset.take(10)."
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _arrays(part: Any) -> Any:
    """Arrays for data frames and for plain lists of numbers."""
    if hasattr(part, "to_numpy"):
        return part.to_numpy()
    if isinstance(part, list) and part and all(isinstance(item, int | float | np.number) for item in part):
        return np.asarray(part)
    return part


def _tensor(value: Any) -> Any:
    """A tensor of the backend; floats of NumPy in Keras's float type, as `fit` has them."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        floating = np.issubdtype(value.dtype, np.floating)
        return ops.convert_to_tensor(value, dtype=keras.config.floatx() if floating else None)
    return ops.convert_to_tensor(value)


def _length(parts: tuple[Any, ...]) -> int:
    leaves = [leaf for part in parts for leaf in tree.flatten(part) if leaf is not None]
    wrong = [leaf for leaf in leaves if not _is_array(leaf) or len(leaf.shape) == 0]
    if wrong or not leaves:
        raise ValueError(
            f"Data must be {FORMS}. Received, where an array should be: {_describe(wrong[0] if wrong else None)}"
        )
    lengths = [int(leaf.shape[0]) for leaf in leaves]
    if len(set(lengths)) > 1:
        raise ValueError(f"x, y and sample_weight must have the same number of samples. Received: {lengths} samples.")
    return lengths[0]


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether Keras takes it: the same shape, or the same up to a last dimension of 1."""
    if len(shape) == len(wanted) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    elif len(shape) == len(wanted) - 1 and wanted[-1] == 1:
        shape = (*shape, 1)
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))


def _shapes(value: Any) -> str:
    return _list([tuple(getattr(leaf, "shape", ())) for leaf in tree.flatten(value) if leaf is not None])


def _list(shapes: list[tuple[Any, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)


def _describe(value: Any) -> str:
    if _is_array(value):
        return f"an array of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) < 80 else text[:77] + '...'} of type {type(value).__name__}"
