"""Schedules: formulas on hand-computed points, update steps, refusals."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_prune import schedules as s


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (s.PolynomialDecay(0.5, 0.9, begin_step=10, end_step=110), {9: 0.0, 10: 0.5, 60: 0.85, 110: 0.9, 999: 0.9}),
        (s.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=4, power=2), {1: 0.8 - 0.8 * 0.5625, 2: 0.6}),
        (s.Linear(0.2, 0.6, begin_step=0, end_step=100), {25: 0.3, 75: 0.5}),
        (s.Cosine(0.0, 0.9, begin_step=0, end_step=3), {1: 0.9 - 0.9 * 0.75, 2: 0.9 - 0.9 * 0.25}),
        (s.Exponential(0.0, 0.99, begin_step=0, end_step=2), {1: 0.9}),
        (s.Exponential(0.5, 0.875, begin_step=0, end_step=2), {1: 0.75}),
        (s.ConstantSparsity(0.3, begin_step=5), {4: 0.0, 5: 0.3, 10**6: 0.3}),
        (s.OneShot(0.4, step=3), {2: 0.0, 3: 0.4}),
        (s.Iterative(0.488, rounds=3, interval=10, begin_step=10), {9: 0.0, 10: 0.2, 19: 0.2, 20: 0.36, 30: 0.488}),
        (s.Piecewise((5, 10), (0.1, 0.7)), {4: 0.0, 5: 0.1, 9: 0.1, 10: 0.7}),
        (s.Piecewise((0, 10), (0.1, 0.7), interpolate=True), {5: 0.4}),
        (s.Phases(0.8, begin=2, end=8, sparse=2, dense=1), {1: 0, 2: 0.8, 3: 0.8, 4: 0, 5: 0.8, 7: 0, 8: 0.8, 99: 0.8}),
        # A compressed phase that would run into the last one does not begin.
        (s.Phases(0.8, begin=2, end=7, sparse=2, dense=1), {4: 0, 5: 0, 6: 0, 7: 0.8}),
        (s.Threshold(0.1), {0: 0.1, 50: 0.1}),
        (s.Threshold(0.0, final_value=1.0, begin_step=10, end_step=20), {0: 0.0, 15: 0.5, 20: 1.0, 30: 1.0}),
    ],
    ids=lambda value: repr(value) if isinstance(value, s.Schedule) else "",
)
def test_targets_by_hand(schedule, points):
    for step, target in points.items():
        assert schedule(step) == pytest.approx(target, abs=1e-12)


def test_updates_fall_on_the_grid_and_on_the_end():
    ramp = s.Linear(0.0, 0.5, begin_step=2, end_step=11, frequency=4)
    assert [t for t in range(20) if ramp.should_update(t)] == [2, 6, 10, 11]
    constant = s.ConstantSparsity(0.5, begin_step=1, frequency=3)
    assert [t for t in range(9) if constant.should_update(t)] == [1, 4, 7]
    rounds = s.Iterative(0.5, rounds=3, interval=5, begin_step=2)
    assert [t for t in range(30) if rounds.should_update(t)] == [2, 7, 12]
    phases = s.Phases(0.8, begin=2, end=7, sparse=2, dense=1)
    assert [t for t in range(20) if phases.should_update(t)] == [2, 4, 7]
    # The paper's: 100 epochs, of 10 steps here; 75 to 85 is the last dense phase.
    paper = s.Phases(0.9).resolve(s.Span(start=0, total=1000))
    assert [t for t in range(1001) if paper.should_update(t)] == [*range(100, 800, 50), 850]
    pieces = s.Piecewise((1, 9), (0.1, 0.2), interpolate=True, frequency=3)
    assert [t for t in range(12) if pieces.should_update(t)] == [1, 4, 7, 9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: s.ConstantSparsity(1.0),
            r"ConstantSparsity: sparsity must be a fraction in \[0, 1\)\. Received: 1\.0",
        ),
        (lambda: s.ConstantSparsity(-0.1), r"Received: -0\.1"),
        (lambda: s.Linear(0.0, 90, begin_step=0, end_step=9), r"final_sparsity .* Received: 90.* for 90 % write 0\.9"),
        (lambda: s.Linear(0.5, 0.4, begin_step=0, end_step=9), r"initial_sparsity=0\.5, final_sparsity=0\.4"),
        (lambda: s.PolynomialDecay(0.0, 0.5, begin_step=9, end_step=8), r"begin_step=9, end_step=8"),
        (lambda: s.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=8, power=0), r"power=0"),
        (lambda: s.Linear(0.0, 0.5, begin_step=0, end_step=9, frequency=0), r"frequency=0"),
        (lambda: s.Phases(0.5, sparse=0), r"Phases: sparse must be 1 or more, in steps\. Received: sparse=0"),
        (lambda: s.Phases(0.5, begin=9, end=3), r"Phases: end must not come before begin.*begin=9, end=3"),
        (lambda: s.Linear(0.0, 0.5, begin_step=-1, end_step=9), r"begin_step=-1"),
        (lambda: s.Iterative(0.5, rounds=0, interval=1), r"rounds=0"),
        (lambda: s.Iterative(0.5, rounds=2, interval=1, begin_step=5, rewind_to=6), r"rewind_to=6, begin_step=5"),
        (lambda: s.Piecewise((1, 2), (0.5,)), r"sparsities=\(0\.5,\)"),
        (lambda: s.Piecewise((2, 1), (0.1, 0.5)), r"steps=\(2, 1\)"),
        (lambda: s.Piecewise((1, 2), (0.5, 0.1)), r"sparsities=\(0\.5, 0\.1\)"),
        (lambda: s.Threshold(-1.0), r"value=-1\.0"),
        (lambda: s.Threshold(math.inf), r"value=inf"),
        (lambda: s.Threshold(0.1, final_value=0.5), r"end_step=None"),
        (lambda: s.Threshold(0.1, relative_to="mean"), r"Received: 'mean'"),
        (lambda: s.OneShot(0.5, step=-1), r"step=-1"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(
    low=st.floats(0, 0.99),
    high=st.floats(0, 0.99),
    begin=st.integers(0, 50),
    length=st.integers(0, 200),
    kind=st.sampled_from([s.Linear, s.Cosine, s.Exponential, s.PolynomialDecay]),
)
def test_ramps_rise_from_the_first_to_the_last_target(low, high, begin, length, kind):
    low, high = sorted((low, high))
    ramp = kind(low, high, begin_step=begin, end_step=begin + length)
    values = [ramp(step) for step in range(begin, begin + length + 2)]
    assert values[-1] == high
    assert values[0] == (low if length else high)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert all(0.0 <= value < 1.0 for value in values)
