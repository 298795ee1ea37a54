"""Which values are the smallest: exact selection in linear time, on one array or on many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "PARALLEL",
    "PIECE",
    "SMALL",
    "Chunk",
    "Mask",
    "T",
    "all_but_smallest",
    "in_pieces",
    "kth_smallest",
    "lowest",
    "smallest",
]

T = TypeVar("T")
Chunk = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

SMALL = 1 << 14
"""Up to this many values, `np.partition` on all of them is the fastest way."""

PIECE = 1 << 18
"""Values that are worked on at a time: a megabyte of float32 stays in the cache, and outweighs a call."""

PARALLEL = 1 << 22
"""From this many values on, pieces are shared out among threads: NumPy works outside the interpreter's lock."""


def in_pieces(sizes: Sequence[int], work: Callable[[int, slice], T]) -> list[T]:
    """Call `work(i, part)` for consecutive parts of the i-th of several arrays, and return what it returns, in order.

    Args:
        sizes: of the arrays.
        work: independent of the order; on large arrays several calls run at once.
    """
    parts = [(i, slice(start, min(start + PIECE, n))) for i, n in enumerate(sizes) for start in range(0, n, PIECE)]
    threads = min(os.cpu_count() or 1, 4) if sum(sizes) >= PARALLEL else 1
    if threads == 1:
        return [work(i, part) for i, part in parts]
    share = -(-len(parts) // (4 * threads))
    lots = [parts[start : start + share] for start in range(0, len(parts), share)]
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda lot: [work(i, part) for i, part in lot], lots)
        return [result for results in done for result in results]


def kth_smallest(chunks: Sequence[Chunk], k: int) -> float:
    """Return the k-th smallest value (k from 1) of all values in `chunks`, without joining them.

    Args:
        chunks: one-dimensional float arrays without NaN; minus infinity is allowed.
        k: rank, from 1 to the number of values.

    Example:
        >>> kth_smallest([np.array([5.0, 1.0]), np.array([3.0])], 2)
        3.0
    """
    return lowest(chunks, k)[0]


def lowest(chunks: Sequence[Chunk], k: int, on: Sequence[Mask | None] | None = None) -> tuple[float, list[int]]:
    r"""Return the k-th smallest value of all, and how many values of each chunk are among the k smallest.

    Of equal values those of the earlier chunk count first. A sorted sample brackets the answer between two values that
    hold it with near certainty; one pass counts what lies below the bracket and gathers what lies in it, and only that
    is partitioned. Where the sample misled (the count proves it), the bracket opens to everything on that side, so the
    answer is always exact. Time O(n); memory a byte a value of a piece besides the bracket.

    Args:
        chunks: one-dimensional float arrays without NaN; minus infinity is allowed.
        k: rank, from 1 to the number of values.
        on: for each chunk, where its values count as they are; elsewhere they are lower than all others, whatever
            they are, and minus infinity is the answer where the rank falls among them. None: everywhere.

    Source: Floyd and Rivest 1975, "Expected time bounds for selection", CACM 18(3).

    Example:
        >>> lowest([np.array([5.0, 1.0]), np.array([1.0])], 2)
        (1.0, [1, 1])
        >>> lowest([np.array([5.0, 1.0]), np.array([3.0])], 2, on=[np.array([False, True]), None])
        (1.0, [2, 0])
    """
    total = sum(chunk.size for chunk in chunks)
    if not 1 <= k <= total:
        raise ValueError(f"kth_smallest: k must be from 1 to the number of values, {total}. Received: {k}")
    on = on if on is not None else [None] * len(chunks)
    off = [0 if mask is None else mask.size - int(np.count_nonzero(mask)) for mask in on]
    if k <= sum(off):
        return -np.inf, _hand_out(k, off)
    rank, among = k - sum(off), total - sum(off)
    low, high = _bracket(chunks, on, rank / among, total) if among > SMALL else (None, np.inf)
    under, band = _split(chunks, on, low, high)
    if rank > sum(under) + sum(part.size for part in band):
        # The sample put the bracket too low.
        under, band = _split(chunks, on, high, np.inf)
    elif low is not None and rank <= sum(under) and low > -np.inf:
        # Too high.
        under, band = _split(chunks, on, None, low)
    if rank <= sum(under):
        # Only minus infinity is not above minus infinity.
        return -np.inf, _add(off, _hand_out(rank, under))
    joined = np.concatenate(band)
    place = rank - 1 - sum(under)
    joined.partition(place)
    bound = float(joined[place])
    del joined
    counts = [n + int(np.count_nonzero(part < bound)) for n, part in zip(under, band, strict=True)]
    ties = [int(np.count_nonzero(part == bound)) for part in band]
    return bound, _add(off, counts, _hand_out(rank - sum(counts), ties))


def _add(*counts: Sequence[int]) -> list[int]:
    return [sum(column) for column in zip(*counts, strict=True)]


def _hand_out(wanted: int, available: Sequence[int]) -> list[int]:
    """Take so many in all, from the first on."""
    taken = []
    for n in available:
        taken.append(min(wanted, n))
        wanted -= taken[-1]
    return taken


def _bracket(
    chunks: Sequence[Chunk], on: Sequence[Mask | None], share: float, total: int
) -> tuple[float | None, float]:
    """Two values of a sorted sample, four standard errors apart on each side of the wanted share of what is on.

    None or infinity where such a value lies beyond the sample.
    """
    size = max(1024, round(total ** (2 / 3)))
    stride = max(1, total // size)
    parts = [
        chunk[::stride] if mask is None else chunk[::stride][mask[::stride]]
        for chunk, mask in zip(chunks, on, strict=True)
    ]
    sample = np.sort(np.concatenate(parts))
    centre = share * sample.size
    margin = 4.0 * np.sqrt(sample.size * share * (1.0 - share)) + 2.0
    first, last = int(np.floor(centre - margin)), int(np.ceil(centre + margin))
    low = float(sample[first]) if 0 <= first < sample.size else None
    return low, float(sample[last]) if last < sample.size else np.inf


def _split(
    chunks: Sequence[Chunk], on: Sequence[Mask | None], low: float | None, high: float
) -> tuple[list[int], list[Chunk]]:
    """Count in each chunk what is on and at or below `low`, and gather what is on, above it and not above `high`.

    With `low` None nothing is below, and the pass that would count it is saved.
    """

    def split(i: int, part: slice) -> tuple[int, int, Chunk]:
        piece, mask = chunks[i][part], on[i]
        # Comparing with scalars of the chunk's own type keeps the pass in that type.
        within = piece <= piece.dtype.type(high)
        if mask is not None:
            np.logical_and(within, mask[part], out=within)
        below = 0
        if low is not None:
            under = piece <= piece.dtype.type(low)
            if mask is not None:
                np.logical_and(within, under, out=under)
            np.not_equal(within, under, out=within)
            below = int(np.count_nonzero(under))
        return i, below, np.compress(within, piece)

    count = [0] * len(chunks)
    band: list[list[Chunk]] = [[chunk[:0]] for chunk in chunks]
    for i, under, part in in_pieces([chunk.size for chunk in chunks], split):
        count[i] += under
        band[i].append(part)
    return count, [np.concatenate(parts) for parts in band]


def smallest(values: Chunk, k: int) -> npt.NDArray[np.bool_]:
    """Mark exactly the k smallest values; of equal ones, those with the lower index.

    Args:
        values: one-dimensional floats without NaN.
        k: how many to mark, from 0 to `values.size`.

    Returns:
        A boolean array of the shape of `values` with exactly `k` True.

    Example:
        >>> smallest(np.array([2.0, 1.0, 1.0, 1.0]), 2)
        array([False,  True,  True, False])
    """
    marked = all_but_smallest(values, k)
    return np.logical_not(marked, out=marked)


def all_but_smallest(values: Chunk, k: int, bound: float | None = None, on: Mask | None = None) -> Mask:
    """Mark all but exactly the k smallest values: the opposite of `smallest`.

    Args:
        values: one-dimensional floats without NaN.
        k: how many not to mark, from 0 to `values.size`.
        bound: the k-th smallest value, if the caller thinks to know it; a wrong one costs time only.
        on: where values count as they are; the others are the smallest of all, and none of them is marked even if
            they are more than `k`. None: everywhere.

    Example:
        >>> all_but_smallest(np.array([2.0, 1.0, 1.0, 1.0]), 2)
        array([ True, False, False,  True])
        >>> all_but_smallest(np.array([2.0, 1.0, 3.0]), 2, on=np.array([False, True, True]))
        array([False, False,  True])
    """
    if not 0 <= k <= values.size:
        raise ValueError(f"smallest: k must be from 0 to the number of values, {values.size}. Received: {k}")
    off = 0 if on is None else on.size - int(np.count_nonzero(on))
    if k <= off or k == values.size:
        return on.copy() if on is not None and k <= off else np.full(values.shape, k == 0)
    threshold = values.dtype.type(lowest([values], k, [on])[0] if bound is None else bound)
    marked = np.empty(values.shape, dtype=bool)

    def mark(_: int, part: slice) -> int:
        np.greater(values[part], threshold, out=marked[part])
        if on is not None:
            np.logical_and(marked[part], on[part], out=marked[part])
        return int(np.count_nonzero(marked[part]))

    def tied(part: slice) -> Mask:
        equal: Mask = values[part] == threshold
        if on is not None:
            np.logical_and(equal, on[part], out=equal)
        return equal

    surplus = values.size - sum(in_pieces([values.size], mark)) - k
    if surplus:
        ties = np.concatenate(in_pieces([values.size], lambda _, part: np.flatnonzero(tied(part)) + part.start))
        if not 0 < surplus <= ties.size:
            # Only a bound that was given can be wrong.
            return all_but_smallest(values, k, on=on)
        marked[ties[ties.size - surplus :]] = True
    return marked
