"""What belongs together: a union-find over things with keys, and one over NumPy arrays that may be frozen."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["OPAQUE", "Elements", "Groups", "Labels"]

K = TypeVar("K", bound=Hashable)

Labels = npt.NDArray[np.int64]
"""For each index along an axis, the number of the element that it belongs to."""

OPAQUE = 0
"""The element of every index that nobody may remove, because nothing is known of it."""

FREE = np.iinfo(np.int32).max


class Groups(Generic[K]):
    """Keys that are joined into groups, one pair at a time; a key that was never joined is alone.

    Example:
        >>> groups = Groups()
        >>> groups.join("a", "c")
        >>> groups.of(["a", "b", "c"])
        [['a', 'c'], ['b']]
        >>> groups.find("a") == groups.find("c")
        True
    """

    def __init__(self) -> None:
        self._above: dict[K, K] = {}

    def find(self, key: K) -> K:
        """Return the key that stands for the group of a key."""
        while (above := self._above.get(key, key)) != key:
            self._above[key] = key = self._above.get(above, above)
        return key

    def join(self, a: K, b: K) -> None:
        """Make one group of those of two keys."""
        self._above[self.find(a)] = self.find(b)

    def of(self, keys: Iterable[K]) -> list[list[K]]:
        """Return keys by group: groups in the order of their first key, keys in the order given."""
        found: dict[K, list[K]] = {}
        for key in keys:
            found.setdefault(self.find(key), []).append(key)
        return list(found.values())


class Elements:
    """Numbers that are tied into classes, or frozen for a reason, many at a time.

    Attributes:
        reasons: what froze elements, in the order in which it happened.

    Example:
        >>> elements = Elements()
        >>> a, b = elements.fresh(2), elements.fresh(2)
        >>> elements.tie(a, b, "Add")
        >>> elements.find(b).tolist() == a.tolist()
        True
        >>> elements.freeze(b[:1], "an output")
        >>> elements.frozen(a).tolist(), elements.reason(int(a[0]))
        ([True, False], 'an output')
    """

    def __init__(self) -> None:
        self.reasons: list[Any] = []
        self._parent = np.zeros(1024, np.int64)
        self._why = np.full(1024, FREE, np.int32)
        self._count = 1
        self.freeze(np.array([OPAQUE]), "nothing is known of it")

    def __len__(self) -> int:
        return self._count

    def fresh(self, size: int) -> Labels:
        """Return `size` new elements, `[size]`, each in a class of its own."""
        start, self._count = self._count, self._count + size
        if self._count > len(self._parent):
            room = max(2 * len(self._parent), self._count)
            self._parent = np.resize(self._parent, room)
            self._why = np.resize(self._why, room)
        new = np.arange(start, self._count)
        self._parent[new] = new
        self._why[new] = FREE
        return new

    def find(self, labels: Labels) -> Labels:
        """Return for each element the lowest number of its class, in the shape of `labels`."""
        parent = self._parent
        roots = parent[labels]
        while True:
            above = parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        parent[labels] = roots
        return roots

    def tie(self, a: Labels, b: Labels, reason: Any) -> None:
        """Make a[i] and b[i] stay or go together; what is tied to the opaque element is frozen.

        Args:
            a: elements, of any shape.
            b: elements, of the same shape or broadcasting to it.
            reason: why they are tied.
        """
        a, b = np.broadcast_arrays(a, b)
        a, b = a.ravel(), b.ravel()
        opaque = (a == OPAQUE) | (b == OPAQUE)
        if opaque.any():
            self.freeze(np.maximum(a, b)[opaque], reason)
            a, b = a[~opaque], b[~opaque]
        first, second = self.find(a), self.find(b)
        touched = np.concatenate([first, second])
        why = self._why[touched]
        while not np.array_equal(first, second):
            np.minimum.at(self._parent, np.maximum(first, second), np.minimum(first, second))
            first, second = self.find(first), self.find(second)
        np.minimum.at(self._why, self.find(touched), why)

    def freeze(self, labels: Labels, reason: Any) -> None:
        """Keep these elements (of any shape), and all that are or will be tied to them."""
        roots = self.find(labels.ravel())
        roots = roots[self._why[roots] == FREE]
        if roots.size:
            self._why[roots] = len(self.reasons)
            self.reasons.append(reason)

    def frozen(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Return for each element whether it has to stay, in the shape of `labels`."""
        return np.asarray(self._why[self.find(labels)] != FREE)

    def reason(self, label: int) -> Any:
        """Return what froze an element; None if nothing did."""
        why = int(self._why[self.find(np.array([label]))[0]])
        return None if why == FREE else self.reasons[why]
