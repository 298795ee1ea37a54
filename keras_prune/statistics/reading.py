"""Data in any form that people have -> (x,), (x, y) or (x, y, sample_weight), told apart by the inputs' shapes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_prune.statistics.input_shapes import InputShapes, describe, is_array, shape_of, shapes_in_words
from keras_prune.statistics.walks import Called, Indexed, Kept, kept, may_be_endless

__all__ = ["ENDLESS", "Reader", "samples_in"]

FORMS = (
    "an array, a list or dictionary of inputs, (x, y) or (x, y, sample_weight) of arrays, a tf.data.Dataset, a keras "
    "PyDataset, a list or generator of batches, or a function that returns such a generator"
)
ENDLESS = 1024
"""Samples that are read of data whose end is not known, such as a generator's."""


class Reader:
    """Reads data batch by batch, any number of times, and no further than whoever iterates asks.

    What a data set yields may be x, `(x, y)` or `(x, y, sample_weight)`; x is an array, or a list, tuple or dictionary
    of them where the model has several inputs. What is meant is told by the shapes of the inputs. Single samples, of a
    data set that was not batched, are put into batches, with a warning that says so. A function is called each time;
    a list that it yields holds the inputs, as in TFLite's `representative_dataset`. What a generator has given is kept
    for as long as it lives, so that a second reader of it begins with the same.

    Args:
        data: see `FORMS`.
        inputs: of the model; None if they are not known: then a batch is what `fit` would take it for.
        size: samples in a batch that is cut from arrays, or put together from single samples.
        limit: samples to read of data whose end is not known; None for no limit.

    Raises:
        ValueError: while reading: `data` is none of these.

    Warns:
        UserWarning: samples were single, or data go on beyond the limit.

    Example:
        >>> inputs = InputShapes(("x",), ((None, 3),))
        >>> [[part.shape for part in parts] for parts in Reader((np.ones((5, 3)), np.ones(5)), inputs, size=4)]
        [[(4, 3), (4,)], [(1, 3), (1,)]]
        >>> [parts[0].shape for parts in Reader(lambda: ([np.ones((1, 3))] for _ in range(2)), inputs)]
        [(1, 3), (1, 3)]
    """

    def __init__(
        self, data: Any, inputs: InputShapes | None = None, *, size: int = 32, limit: int | None = ENDLESS
    ) -> None:
        self.data = kept(data)
        self.given = self.data.iterator if isinstance(self.data, Kept) else data
        self.inputs = inputs
        self.size = size
        self.limit = limit

    @property
    def whole(self) -> bool:
        """Whether data are arrays that hold all samples, and no data set that is walked."""
        return isinstance(self._resolved(), tuple)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        data = self._resolved()
        if isinstance(data, tuple):
            yield from _cut(data, self.size)
            return
        items, lists_hold_inputs, endless = data
        batches = self._batched(items, lists_hold_inputs)
        yield from self._limited(batches) if endless and self.limit is not None else batches

    def _resolved(self) -> tuple[Any, ...] | _Walk:
        """Arrays as (x, y, sample_weight) or fewer, or what is walked item by item."""
        data = _plain(self.data)
        if isinstance(data, tuple):
            return self._parts(data, lists_hold_inputs=False)
        if is_array(data) or isinstance(data, Mapping):
            return (data,)
        if isinstance(data, list) and data and all(is_array(item) for item in data):
            whole = self._whole_list(data)
            if whole is not None:
                return whole
        if isinstance(data, keras.utils.PyDataset):
            count = data.num_batches
            # Indexed, not iterated: some start worker processes.
            return _Walk(Indexed(data, count), False, count is None)
        generator = getattr(data, "input_gen", None) if hasattr(data, "input_gen") else data
        if callable(generator) and not isinstance(generator, Iterable):
            return _Walk(Called(generator), True, True)
        if isinstance(data, Iterable) and not isinstance(data, str | bytes):
            return _Walk(data, False, may_be_endless(data))
        raise ValueError(f"Data must be {FORMS}. Received: data={describe(self.given)}")

    def _whole_list(self, data: list[Any]) -> tuple[Any, ...] | None:
        """A list of arrays as inputs, or as [x, y]; None if it is a list of batches."""
        if self.inputs is None or len(data) == 1:
            return None
        if len(self.inputs.shapes) == len(data) and self.inputs.fit(data):
            return (data,)
        lengths = {len(item) if len(shape_of(item)) else 0 for item in data}
        if len(data) <= 3 and len(lengths) == 1 and self.inputs.fit(data[0]) and not self.inputs.fit(data[1]):
            return tuple(data)
        return None

    def _parts(self, item: Any, *, lists_hold_inputs: bool, single: bool = False) -> tuple[Any, ...]:
        """An item as (x,), (x, y) or (x, y, sample_weight)."""
        if not isinstance(item, tuple | list):
            return (_plain(item),)
        parts = tuple(_plain(part) for part in item)
        if self.inputs is not None:
            if 1 <= len(parts) <= 3 and self.inputs.fit(parts[0], single=single):
                return parts
            if self.inputs.fit(list(parts), single=single):
                return (list(parts),)
        if lists_hold_inputs and isinstance(item, list):
            return (parts[0] if len(parts) == 1 else list(parts),)
        if not 1 <= len(parts) <= 3:
            raise ValueError(
                f"A batch is (x,), (x, y) or (x, y, sample_weight). Received: a tuple of {len(parts)} parts"
            )
        return parts

    def _batched(self, items: Iterable[Any], lists_hold_inputs: bool) -> Iterator[tuple[Any, ...]]:
        iterator = iter(items)
        for first in iterator:
            if not self._is_single(first, lists_hold_inputs):
                yield self._parts(first, lists_hold_inputs=lists_hold_inputs)
                continue
            sample = self._parts(first, lists_hold_inputs=lists_hold_inputs, single=True)
            warnings.warn(
                f"data: single samples, x of shape {shapes_in_words(sample[0])}, are put into batches of {self.size}. "
                "Batch the data set to choose how many go into one.",
                UserWarning,
                stacklevel=2,
            )
            rest = (self._parts(item, lists_hold_inputs=lists_hold_inputs, single=True) for item in iterator)
            yield from _stacked(sample, rest, self.size)

    def _is_single(self, item: Any, lists_hold_inputs: bool) -> bool:
        if self.inputs is None:
            return False
        readings = [
            self._parts(item, lists_hold_inputs=lists_hold_inputs, single=single)[0] for single in (False, True)
        ]
        return any(map(self.inputs.is_single, readings)) and not self.inputs.fit(readings[0], exactly=True)

    def _limited(self, batches: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        assert self.limit is not None
        taken = 0
        for parts in batches:
            if taken >= self.limit:
                warnings.warn(
                    f"data: the first {taken} samples are read, and there are more: the end of "
                    f"{describe(self.given)} is not known. Give a list of batches, or a data set that knows its size, "
                    "for all of them.",
                    UserWarning,
                    stacklevel=2,
                )
                return
            yield parts
            leaves = [leaf for leaf in tree.flatten(parts[0]) if len(shape_of(leaf))]
            taken += len(leaves[0]) if leaves else 1


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Data that are walked item by item."""

    items: Iterable[Any]
    lists_hold_inputs: bool
    endless: bool

    def __iter__(self) -> Iterator[Any]:
        return iter((self.items, self.lists_hold_inputs, self.endless))


def samples_in(parts: tuple[Any, ...], forms: str = FORMS) -> int:
    """Return how many samples x, y and weights hold, one array or a structure of arrays each.

    Args:
        parts: them; None for what there is none of.
        forms: what data may be, for the message.

    Raises:
        ValueError: something is no array, or they hold different numbers.
    """
    leaves = [leaf for part in parts for leaf in tree.flatten(part) if leaf is not None]
    wrong = [leaf for leaf in leaves if not is_array(leaf) or len(leaf.shape) == 0]
    if wrong or not leaves:
        raise ValueError(
            f"Data must be {forms}. Received, where an array should be: {describe(wrong[0] if wrong else None)}"
        )
    lengths = [int(leaf.shape[0]) for leaf in leaves]
    if len(set(lengths)) > 1:
        raise ValueError(f"x, y and sample_weight must have the same number of samples. Received: {lengths} samples.")
    return lengths[0]


def _cut(parts: tuple[Any, ...], size: int) -> Iterator[tuple[Any, ...]]:
    for start in range(0, samples_in(parts), size):
        yield tuple(
            tree.map_structure(lambda a, start=start: None if a is None else a[start : start + size], part)
            for part in parts
        )


def _stacked(first: tuple[Any, ...], rest: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[Any, ...]]:
    """Batches of single samples; one ends early where the next sample has other sizes."""
    group: list[tuple[Any, ...]] = []
    for sample in chain([first], rest):
        if group and _sizes(sample) != _sizes(group[0]):
            yield _stack(group)
            group = []
        group.append(sample)
        if len(group) == size:
            yield _stack(group)
            group = []
    if group:
        yield _stack(group)


def _stack(samples: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(
        tree.map_structure(lambda *leaves: None if leaves[0] is None else np.stack(list(map(_numpy, leaves))), *column)
        for column in zip(*samples, strict=True)
    )


def _sizes(sample: Any) -> list[tuple[int, ...]]:
    return [shape_of(leaf) for leaf in tree.flatten(sample)]


def _numpy(value: Any) -> Any:
    return keras.ops.convert_to_numpy(value) if is_array(value) else np.asarray(value)


def _plain(part: Any) -> Any:
    """Arrays for data frames and for plain lists of numbers."""
    if hasattr(part, "to_numpy"):
        return part.to_numpy()
    if isinstance(part, list) and part and all(isinstance(item, int | float | np.number) for item in part):
        return np.asarray(part)
    return part
