"""The loop that times: what runs when, by a clock that the tasks move."""

import random

import numpy as np
import pytest

from tflite_export.runtimes import interleaved
from tflite_export.runtimes.interleaved import time_in_turn


class Clock:
    """Tasks that take as long as they are said to, and note that they ran."""

    def __init__(self):
        self.now = 0.0
        self.ran = []

    def task(self, name, *costs):
        left = list(costs)

        def run():
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def __call__(self):
        return self.now


def test_tasks_run_in_turn_and_each_run_is_a_sample():
    clock = Clock()
    taken = time_in_turn([clock.task("a", 1, 2, 4), clock.task("b", 10, 20, 40)], 3, clock=clock)
    np.testing.assert_array_equal(taken, [[1, 10], [2, 20], [4, 40]])
    assert "".join(clock.ran) == "ababab"


def test_what_runs_before_is_not_timed_and_repeats_are_averaged():
    clock = Clock()
    tasks = [clock.task("a", 9, 1, 3), clock.task("b", 7, 5)]
    taken = time_in_turn(tasks, 1, before=lambda place: tasks[place](), repeats=[2, 1], clock=clock)
    np.testing.assert_array_equal(taken, [[(1 + 3) / 2, 5]])
    assert "".join(clock.ran) == "aaabb"


def test_a_shuffled_order_keeps_the_columns():
    clock = Clock()
    taken = time_in_turn(
        [clock.task(name, cost) for name, cost in (("a", 1), ("b", 2), ("c", 3))],
        20,
        shuffle=random.Random(0),
        clock=clock,
    )
    np.testing.assert_array_equal(taken, np.tile([1.0, 2.0, 3.0], (20, 1)))
    rounds = {"".join(clock.ran[start : start + 3]) for start in range(0, 60, 3)}
    assert rounds == {"abc", "acb", "bac", "bca", "cab", "cba"}


@pytest.mark.parametrize(
    ("rounds", "fewest", "seconds", "run"), [(9, 2, 5.0, 5), (3, 2, 5.0, 3), (9, 7, 5.0, 7), (4, 1, None, 4)]
)
def test_rounds_end_by_their_number_or_by_time(monkeypatch, rounds, fewest, seconds, run):
    clock = Clock()
    monkeypatch.setattr(interleaved.time, "monotonic", clock)
    taken = time_in_turn([clock.task("a", 1)], rounds, fewest=fewest, seconds=seconds, clock=clock)
    assert taken.shape == (run, 1)


def test_no_rounds_are_no_samples():
    assert time_in_turn([int, float], 0).shape == (0, 2)
