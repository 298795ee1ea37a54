"""The one loop in which runs are timed: in turn, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["time_in_turn"]


def time_in_turn(
    tasks: Sequence[Callable[[], object]],
    rounds: int,
    *,
    seconds: float | None = None,
    fewest: int = 1,
    before: Callable[[int], object] | None = None,
    repeats: Sequence[int] | None = None,
    shuffle: random.Random | None = None,
    clock: Callable[[], float] | None = None,
) -> NDArray[np.float64]:
    """Run every task once in each round; return the seconds of a run, [rounds, tasks].

    Args:
        tasks: without arguments.
        rounds: how many; at most, where `seconds` is given.
        seconds: no round begins later than that, once `fewest` are done.
        fewest: rounds that are run in any case.
        before: called with a task's place right before it is timed, and not timed itself: a run of the same task, so
            that what the other tasks have pushed out of the caches is not charged to it.
        repeats: runs of each task that a sample is the mean of; None: one.
        shuffle: draws a new order of the tasks for each round; None: their own.
        clock: returns seconds; None: `time.perf_counter`.

    Example:
        >>> ticks = iter(range(0, 40, 10))
        >>> time_in_turn([int, float], 1, clock=lambda: next(ticks)).tolist()
        [[10.0, 10.0]]
    """
    clock = time.perf_counter if clock is None else clock
    counts = [1] * len(tasks) if repeats is None else list(repeats)
    order = list(range(len(tasks)))
    end = None if seconds is None else time.monotonic() + seconds
    rows: list[list[float]] = []
    while len(rows) < rounds and (end is None or len(rows) < fewest or time.monotonic() < end):
        if shuffle is not None:
            shuffle.shuffle(order)
        row = [0.0] * len(tasks)
        for place in order:
            task, count = tasks[place], counts[place]
            if before is not None:
                before(place)
            start = clock()
            for _ in range(count):
                result = task()
            row[place] = (clock() - start) / count
            del result  # freed outside the time, as the garbage of a task is
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, len(tasks))
