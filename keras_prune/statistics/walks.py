"""Data that are walked item by item, as often as they are asked for: generators, indexed data sets, functions."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from keras_prune.statistics.input_shapes import describe

__all__ = ["Called", "Indexed", "Kept", "kept", "may_be_endless"]


class Kept:
    """An iterator that can be walked again: what it has given is kept, and no more is asked of it than is needed."""

    _given: ClassVar[weakref.WeakKeyDictionary[Any, list[Any]]] = weakref.WeakKeyDictionary()

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator = iterator
        self._items: list[Any]
        try:
            self._items = self._given.setdefault(iterator, [])
        except TypeError:  # zip, map and the like cannot be referred to weakly: kept for this reader only
            self._items = []

    def __iter__(self) -> Iterator[Any]:
        place = 0
        while True:
            if place == len(self._items):
                try:
                    self._items.append(next(self.iterator))
                except StopIteration:
                    return
            yield self._items[place]
            place += 1


def kept(data: Any) -> Any:
    """Data that may be read by several, one after the other: an iterator as one that can be walked again."""
    return Kept(data) if isinstance(data, Iterator) else data


@dataclasses.dataclass(frozen=True)
class Indexed:
    """A data set that gives its batches by number; `count` of them, or without end."""

    data: Any
    count: int | None

    def __iter__(self) -> Iterator[Any]:
        place = 0
        while self.count is None or place < self.count:
            yield self.data[place]
            place += 1


@dataclasses.dataclass(frozen=True)
class Called:
    """A function that returns a generator of batches, called anew for each walk."""

    function: Callable[[], Iterable[Any]]

    def __iter__(self) -> Iterator[Any]:
        try:
            items = iter(self.function())
        except TypeError as error:
            raise ValueError(
                "Data may be a function without arguments that returns a generator of batches, as TFLite's "
                f"representative_dataset. Received: {describe(self.function)} ({error})"
            ) from error
        return items


def may_be_endless(data: Any) -> bool:
    """Whether data are a generator, or a `tf.data.Dataset` that repeats for ever or does not know its size."""
    if isinstance(data, Kept):
        return True
    return hasattr(data, "element_spec") and int(getattr(data, "cardinality", lambda: -2)()) < 0
