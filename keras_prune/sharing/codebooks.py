"""Weights -> codebooks: which weights share a value, and which value that is. Pure: arrays in, arrays out."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.extras import import_extra
from keras_prune.sharing.starts import Start

__all__ = ["Codebook", "codebook_of", "most_values", "nearest_groups"]

LARGE = 1 << 20
"""More values than these go to k-means in bins."""
BINS = 1 << 16
"""How many bins: neighbours in rank, each of which stands in k-means as their mean, with their number."""


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """Which value each weight of a tensor shares.

    Attributes:
        places: the place of each weight's value in its codebook, of the weight's shape; the last place is for zeros.
        values: [codebooks, k + 1], where k is the number of values asked for. Places that no weight has are 0, and
            so is the last one.
        books: the codebook of each weight, in a shape that broadcasts to the weight's.
    """

    places: npt.NDArray[np.integer]
    values: npt.NDArray[np.floating]
    books: npt.NDArray[np.int32]

    def expand(self) -> npt.NDArray[np.floating]:
        """Return the weights: of each its value."""
        return self.values[self.books, self.places]


def codebook_of(
    weight: npt.NDArray[Any],
    books: npt.NDArray[np.int32],
    count: int,
    start: Start,
    *,
    seed: int = 0,
    by: npt.NDArray[Any] | None = None,
    with_zeros: bool = False,
) -> Codebook:
    r"""Return the codebooks of a tensor: $\min \sum_i (w_i - c_{k(i)})^2$ by k-means, zeros apart.

    Zeros are a value of their own, one of the `count`. Weights that have no more values than that already keep them.

    Args:
        weight: a tensor.
        books: the codebook of each weight, from 0, in a shape that broadcasts to the weight's.
        count: the most values of a codebook, 2 or more.
        start: where k-means begins.
        seed: for the start.
        by: what puts weights together, of the weight's shape: those of similar numbers share the mean of their weights.
            None for the weights themselves.
        with_zeros: keep a place for zeros where there are none yet.

    Raises:
        ValueError: a number is not finite.

    Example:
        >>> from keras_prune.sharing.starts import Linear
        >>> weight = np.array([[0.0, 1.0, 1.5], [3.0, 2.5, 0.0]])
        >>> codebook_of(weight, np.zeros((1, 1), np.int32), 3, Linear()).expand()
        array([[0.  , 1.25, 1.25],
               [2.75, 2.75, 0.  ]])
    """
    flat, book = weight.reshape(-1), np.broadcast_to(books, weight.shape).reshape(-1)
    exact = np.asarray(flat, np.float64)
    keys = exact if by is None else np.asarray(by, np.float64).reshape(-1)
    places: npt.NDArray[Any] = np.full(flat.size, count, np.uint8 if count < 256 else np.uint16)
    number = int(books.max()) + 1 if books.size else 0
    values = np.zeros((number, count + 1), weight.dtype)
    # Members of a codebook one after another, each codebook in the order of the tensor.
    order = np.argsort(book, kind="stable") if number > 1 else np.arange(flat.size)
    ends = np.cumsum(np.bincount(book, minlength=number))
    for one, members in enumerate(np.split(order, ends[:-1])):
        on = members[flat[members] != 0]
        room = count - 1 if with_zeros or on.size < members.size else count
        if not on.size:
            continue
        own = keys[on] if by is None or _distinct(exact[on], room + 1) > room else exact[on]
        labels = nearest_groups(own, room, start, seed)
        places[on] = labels
        sums, sizes = np.bincount(labels, exact[on]), np.bincount(labels)
        values[one, : sizes.size] = (sums / sizes).astype(weight.dtype)
    return Codebook(places.reshape(weight.shape), values, books)


def nearest_groups(keys: npt.NDArray[np.float64], count: int, start: Start, seed: int) -> npt.NDArray[np.intp]:
    """Return the group of each number, from 0, in the order of their numbers: at most `count` groups, none empty.

    Above a million numbers, k-means is run on bins of neighbours; each number then goes to the nearest centroid.

    Args:
        keys: [n].
        count: the most groups.
        start: where k-means begins.
        seed: for the start.

    Raises:
        ValueError: a number is not finite, or the start gives something else than `count` finite centroids.

    Example:
        >>> from keras_prune.sharing.starts import Linear
        >>> nearest_groups(np.array([5.0, 1.0, 2.0, 6.0]), 2, Linear(), 0).tolist()
        [1, 0, 0, 1]
    """
    ranked = np.sort(keys)
    if not np.isfinite(ranked[[0, -1]]).all():
        raise ValueError(f"Weight sharing needs finite numbers. Received: from {ranked[0]} to {ranked[-1]}.")
    distinct = ranked[np.flatnonzero(np.diff(ranked, prepend=np.nan) != 0)]
    if distinct.size <= count:
        return np.searchsorted(distinct, keys)
    sizes = np.ones(ranked.size)
    if ranked.size > LARGE and distinct.size > BINS:
        edges = np.linspace(0, ranked.size, BINS + 1).astype(np.intp)
        sizes = np.diff(edges).astype(np.float64)
        ranked = np.add.reduceat(ranked, edges[:-1]) / sizes
    centroids = np.sort(_k_means(ranked, sizes, count, start, seed))
    labels = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, keys)
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def _k_means(
    ranked: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], count: int, start: Start, seed: int
) -> npt.NDArray[np.float64]:
    """Return the centroids of numbers in increasing order, each of which counts as often as its size says."""
    first = np.asarray(start(ranked, count, seed), np.float64)
    if first.shape != (count,) or not np.isfinite(first).all():
        raise ValueError(
            f"{type(start).__name__} must return {count} finite centroids. Received: {first!r} of shape {first.shape}."
        )
    cluster, exceptions = (
        import_extra(f"sklearn.{name}", "compression", "weight sharing") for name in ("cluster", "exceptions")
    )
    with warnings.catch_warnings():
        # Equal centroids in the start: fewer values come of it than there may be.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        found = cluster.KMeans(count, init=first.reshape(-1, 1), n_init=1, algorithm="lloyd")
        found.fit(ranked.reshape(-1, 1), sample_weight=sizes)
    centroids: npt.NDArray[np.float64] = found.cluster_centers_.reshape(-1)
    return centroids


def most_values(weight: npt.NDArray[Any], books: npt.NDArray[np.int32]) -> int:
    """Return how many different values the codebook has that has most of them, zero counted.

    Args:
        weight: a tensor.
        books: the codebook of each weight, in a shape that broadcasts to the weight's.

    Example:
        >>> most_values(np.array([[1.0, 1.0], [2.0, 1.0]]), np.array([[0, 1]], np.int32))
        2
    """
    if not weight.size:
        return 0
    flat, book = np.asarray(weight, np.float64).reshape(-1), np.broadcast_to(books, weight.shape).reshape(-1)
    order = np.lexsort((flat, book))
    new = np.diff(flat[order], prepend=np.nan) != 0
    new |= np.diff(book[order], prepend=-1) != 0
    return int(np.bincount(book[order][new]).max())


def _distinct(values: npt.NDArray[np.float64], enough: int) -> int:
    """Return how many different values there are, or `enough`, if the first few have so many already."""
    first = np.unique(values[: 64 * enough]).size
    return first if first >= enough else np.unique(values).size
