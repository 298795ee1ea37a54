"""Which values are the smallest: exact selection in linear time, on one array or on many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Chunk = npt.NDArray[np.floating]

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


def lowest(chunks: Sequence[Chunk], k: int) -> tuple[float, list[int]]:
    r"""Return the k-th smallest value of all, and how many values of each chunk are among the k smallest.

    Of equal values those of the earlier chunk count first. A sorted sample brackets the answer between two values that
    hold it with near certainty; one pass counts what lies below the bracket and gathers what lies in it, and only that
    is partitioned. Where the sample misled (the count proves it), the bracket opens to everything on that side, so the
    answer is always exact. Time O(n); memory a byte a value of a piece besides the bracket.

    Args:
        chunks: one-dimensional float arrays without NaN; minus infinity is allowed.
        k: rank, from 1 to the number of values.

    Source: Floyd and Rivest 1975, "Expected time bounds for selection", CACM 18(3).

    Example:
        >>> lowest([np.array([5.0, 1.0]), np.array([1.0])], 2)
        (1.0, [1, 1])
    """
    total = sum(chunk.size for chunk in chunks)
    if not 1 <= k <= total:
        raise ValueError(f"kth_smallest: k must be from 1 to the number of values, {total}. Received: {k}")
    low, high = _bracket(chunks, k, total) if total > SMALL else (-np.inf, np.inf)
    under, band = _split(chunks, low, high)
    if k > sum(under) + sum(part.size for part in band):
        # The sample put the bracket too low.
        under, band = _split(chunks, high, np.inf)
    elif k <= sum(under) and low > -np.inf:
        # Too high.
        under, band = _split(chunks, -np.inf, low)
    if k <= sum(under):
        # Only minus infinity is not above minus infinity.
        return -np.inf, _hand_out(k, under)
    joined = np.concatenate(band)
    rank = k - 1 - sum(under)
    joined.partition(rank)
    bound = float(joined[rank])
    del joined
    counts = [n + int(np.count_nonzero(part < bound)) for n, part in zip(under, band, strict=True)]
    ties = [int(np.count_nonzero(part == bound)) for part in band]
    taken = _hand_out(k - sum(counts), ties)
    return bound, [n + tied for n, tied in zip(counts, taken, strict=True)]


def _hand_out(wanted: int, available: Sequence[int]) -> list[int]:
    """Take so many in all, from the first on."""
    taken = []
    for n in available:
        taken.append(min(wanted, n))
        wanted -= taken[-1]
    return taken


def _bracket(chunks: Sequence[Chunk], k: int, total: int) -> tuple[float, float]:
    """Two values of a sorted sample, four standard errors apart on each side of the wanted rank."""
    size = max(1024, round(total ** (2 / 3)))
    stride = max(1, total // size)
    sample = np.sort(np.concatenate([chunk[::stride] for chunk in chunks]))
    share = k / total
    centre = share * sample.size
    margin = 4.0 * np.sqrt(sample.size * share * (1.0 - share)) + 2.0
    low = sample[int(np.clip(centre - margin, 0, sample.size - 1))]
    high = sample[int(np.clip(np.ceil(centre + margin), 0, sample.size - 1))]
    return float(low), float(high)


def _split(chunks: Sequence[Chunk], low: float, high: float) -> tuple[list[int], list[Chunk]]:
    """Count in each chunk what lies at or below `low`, and gather what lies above it and not above `high`."""

    def split(i: int, part: slice) -> tuple[int, int, Chunk]:
        piece = chunks[i][part]
        # Comparing with scalars of the chunk's own type keeps the pass in that type.
        under = piece <= piece.dtype.type(low)
        within = piece <= piece.dtype.type(high)
        np.not_equal(within, under, out=within)
        return i, int(np.count_nonzero(under)), np.compress(within, piece)

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


def all_but_smallest(values: Chunk, k: int, bound: float | None = None) -> npt.NDArray[np.bool_]:
    """Mark all but exactly the k smallest values: the opposite of `smallest`.

    Args:
        values: one-dimensional floats without NaN.
        k: how many not to mark, from 0 to `values.size`.
        bound: the k-th smallest value, if the caller thinks to know it; a wrong one costs time only.

    Example:
        >>> all_but_smallest(np.array([2.0, 1.0, 1.0, 1.0]), 2)
        array([ True, False, False,  True])
    """
    if not 0 <= k <= values.size:
        raise ValueError(f"smallest: k must be from 0 to the number of values, {values.size}. Received: {k}")
    if k in (0, values.size):
        return np.full(values.shape, k == 0)
    threshold = values.dtype.type(kth_smallest([values], k) if bound is None else bound)
    marked = np.empty(values.shape, dtype=bool)

    def mark(_: int, part: slice) -> int:
        np.greater(values[part], threshold, out=marked[part])
        return int(np.count_nonzero(marked[part]))

    surplus = values.size - sum(in_pieces([values.size], mark)) - k
    if surplus:
        ties = np.concatenate(
            in_pieces([values.size], lambda _, part: np.flatnonzero(values[part] == threshold) + part.start)
        )
        if not 0 < surplus <= ties.size:
            # Only a bound that was given can be wrong.
            return all_but_smallest(values, k)
        marked[ties[ties.size - surplus :]] = True
    return marked
