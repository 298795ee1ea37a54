"""Allocations against splits worked out by hand, and the promise of them all: the whole meets the target."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_prune.allocation import (
    ERK,
    LAMP,
    Explicit,
    Global,
    Paying,
    Scored,
    Sensitivity,
    Uniform,
    lamp_scores,
)


def tensor(path, scores, unit=1, shape=None, **more):
    scores = np.asarray(scores, dtype=np.float64)
    return Scored(path, shape or (1, scores.size * unit), scores, unit, **more)


def counts(shares, tensors):
    return [round(s * t.units) for s, t in zip(shares, tensors, strict=True)]


def zeros(shares, tensors):
    return sum(c * t.weights_per_unit for c, t in zip(counts(shares, tensors), tensors, strict=True))


A = tensor("a", [1.0, 2.0, 3.0, 4.0])
B = tensor("b", [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0])


def test_uniform_gives_every_tensor_the_target():
    assert Uniform()([A, B], 0.5) == [0.5, 0.5]


def test_uniform_lets_others_give_what_a_floor_holds_back():
    # floor 0.5: b may lose 4 of 8, a 2 of 4; the target of 6 zeros is met exactly at both caps.
    assert counts(Uniform(floor=0.5)([A, B], 0.5), [A, B]) == [2, 4]
    # One unit always stays: a loses 3 of 4, so b gives the fourth. 10 zeros of 12.
    assert counts(Uniform()([A, B], 10 / 12), [A, B]) == [3, 7]


def test_global_takes_the_lowest_scores_of_all():
    mixed = tensor("c", [0.5, 2.5, 20.0, 30.0])
    # Of 1, 2, 3, 4 and 0.5, 2.5, 20, 30 the four lowest are 0.5, 1, 2, 2.5.
    assert Global(floor=0.0)([A, mixed], 0.5) == [0.5, 0.5]
    # Five: 3 as well.
    assert Global(floor=0.0)([A, mixed], 5 / 8) == [0.75, 0.5]


def test_global_keeps_the_floor_and_the_others_give_instead():
    # The six lowest are all of a and 5, 6; at least one unit of a stays.
    assert counts(Global(floor=0.0)([A, B], 0.5), [A, B]) == [3, 3]
    assert counts(Global(floor=0.5)([A, B], 0.5), [A, B]) == [2, 4]


def test_global_breaks_ties_by_the_order_of_tensors_and_meets_the_count():
    tied = [tensor("a", np.ones(4)), tensor("b", np.ones(4))]
    assert counts(Global(floor=0.0)(tied, 0.5), tied) == [3, 1]


def test_global_with_units_of_unequal_size():
    # Channels of 2 and of 4 weights: 8 of 16 weights to go. In order of score: 2 (0.1), 4 (0.2), 2 (0.3).
    tensors = [tensor("a", [0.1, 0.3, 5.0, 6.0], unit=2), tensor("b", [0.2, 7.0], unit=4)]
    assert counts(Global(floor=0.0)(tensors, 0.5), tensors) == [2, 1]


def test_lamp_scores_by_hand():
    # Squares 1, 4, 9: 1 / 14, 4 / 13, 9 / 9, in increasing order of the score.
    np.testing.assert_allclose(lamp_scores(np.array([3.0, 1.0, 2.0])), [1 / 14, 4 / 13, 1.0])
    np.testing.assert_allclose(lamp_scores(np.array([-np.inf, 0.0, 2.0])), [0.0, 0.0, 1.0])


def test_lamp_is_blind_to_the_scale_of_a_tensor():
    # a: 1/30, 4/29, 9/25, 1. b = a · 100 has the same: each gives half, where a global bar takes from a.
    tensors = [A, tensor("b", 100.0 * A.scores)]
    assert counts(LAMP()(tensors, 0.5), tensors) == [2, 2]
    assert counts(Global(floor=0.0)(tensors, 0.5), tensors) == [3, 1]


def test_lamp_by_hand():
    # a: 1/30, 4/29, 9/25, 1 = 0.033, 0.138, 0.36, 1. c: 1/4, 1/3, 1/2, 1.
    # The four lowest: 0.033, 0.138, 0.25, 0.333.
    tensors = [A, tensor("c", [1.0, 1.0, 1.0, 1.0])]
    assert counts(LAMP()(tensors, 0.5), tensors) == [2, 2]
    # The fifth is 0.36.
    assert counts(LAMP()(tensors, 5 / 8), tensors) == [3, 2]


def test_erk_densities_by_hand():
    # Sum over product: (10 + 10) / 100 = 0.2, (10 + 40) / 400 = 0.125. Densities in proportion 8 : 5, and with
    # factor f 100 · 8 f + 400 · 5 f = 250 kept at a target of 0.5, so f = 1 / 11.2: 71.43 and 178.57 are kept.
    tensors = [tensor("a", np.arange(100.0), shape=(10, 10)), tensor("b", np.arange(400.0), shape=(10, 40))]
    shares = ERK()(tensors, 0.5)
    assert counts(shares, tensors) == [29, 221]
    kept = [1 - s for s in shares]
    assert kept[0] / kept[1] == pytest.approx(8 / 5, rel=0.01)


def test_erk_leaves_small_tensors_dense():
    # 4 / 4 = 1 and 80 / 1200 = 1 / 15: at a target of 0.25 the small one would need a density above 1.
    tensors = [
        tensor("small", np.arange(4.0), shape=(2, 2)),
        tensor("large", np.arange(1200.0), shape=(20, 60)),
    ]
    assert counts(ERK()(tensors, 0.25), tensors) == [0, 301]


def test_erk_counts_all_dimensions_of_a_convolution():
    # (3 + 3 + 4 + 8) / 288 = 1 / 16 and (8 + 9) / 72 = 17 / 72. f = 180 / (288 / 16 + 17) = 36 / 7: the second
    # would need a density of 1.21, so it stays whole, and 180 - 72 = 108 of 288 are kept of the first.
    tensors = [
        tensor("conv", np.arange(288.0), shape=(3, 3, 4, 8)),
        tensor("dense", np.arange(72.0), shape=(8, 9)),
    ]
    assert counts(ERK()(tensors, 0.5), tensors) == [180, 0]


def test_sensitivity_gives_equal_loss_by_hand():
    # a loses 1 at 0.5 in a straight line, b a third of it: at equal loss b gives three times the share of a.
    tensors = [
        tensor("a", np.arange(1000.0), curve=((0.5, 1.0), (0.9, 1.8))),
        tensor("b", np.arange(1000.0), curve=((0.5, 1 / 3), (0.9, 0.6))),
    ]
    assert Sensitivity(points=(0.5, 0.9))(tensors, 0.4) == pytest.approx([0.2, 0.6], abs=0.002)


def test_sensitivity_takes_from_a_tensor_that_loses_nothing():
    tensors = [
        tensor("a", np.arange(100.0), curve=((0.5, 10.0), (0.9, 100.0))),
        tensor("b", np.arange(100.0), curve=((0.5, -1.0), (0.9, 0.0))),
    ]
    shares = Sensitivity(points=(0.5, 0.9))(tensors, 0.45)
    assert counts(shares, tensors) == [0, 90]


def test_sensitivity_without_a_measurement_names_the_tensors():
    with pytest.raises(ValueError, match=r"no loss was measured for \['a'\]. Give data"):
        Sensitivity()([A], 0.5)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((0.5, 0.25), r"points must increase from above 0. Received: points=\(0.5, 0.25\)"),
        ((0.0, 0.5), r"Received: points=\(0.0, 0.5\)"),
        ((), r"Received: points=\(\)"),
        ((0.5, 1.5), r"each of points must be a fraction in \[0, 1\). Received: 1.5"),
    ],
)
def test_sensitivity_checks_its_points(points, message):
    with pytest.raises(ValueError, match=message):
        Sensitivity(points=points)


def test_explicit_rises_in_step_and_the_others_follow_the_schedule():
    assert Explicit({"a": 0.75})([A, B], 0.25, final=0.5) == [0.375, 0.25]
    assert Explicit({"a": 0.75})([A, B], 0.5) == [0.75, 0.5]
    assert Explicit({"b": 0.25, "[ab]": 0.75})([A, B], 0.5) == [0.75, 0.25]


def test_explicit_lists_the_paths_when_a_key_is_mistyped():
    with pytest.raises(ValueError, match=r"no prunable tensor matches \['aa'\]. Did you mean 'a'\? .*: a, b"):
        Explicit({"aa": 0.5})([A, B], 0.5)


def test_explicit_refuses_to_empty_a_tensor():
    with pytest.raises(ValueError, match=r"a target of 0.9 would empty 'a'.*at most 3 off"):
        Explicit({"a": 0.9})([A, B], 0.5)


def test_paying_brings_kernels_to_where_they_pay_those_with_the_most_work_first():
    low, high = np.arange(10.0), np.arange(10.0) + 100.0
    one, two = tensor("one", low), tensor("two", high)
    # One bar for all would take 9 of the first, which keeps one unit, and 3 of the second.
    assert counts(Global(floor=0.0)([one, two], 0.6), [one, two]) == [9, 3]
    half = Paying({"two": 0.5}, floor=0.0)
    assert counts(half([one, two], 0.6), [one, two]) == [6, 6]
    # Both can have more than half only with 12 zeros; of 10, the one with more work has its own.
    both = {"one": 0.5, "two": 0.5}
    assert counts(Paying(both)([one, two], 0.6), [one, two]) == [6, 6]
    assert counts(Paying(both, {"two": 2.0})([one, two], 0.5), [one, two]) == [4, 6]
    # One bar would take nine of the first; where work differs, each keeps 0.75 of the share that all keep.
    assert counts(Paying(both, {"one": 2.0})([one, two], 0.5), [one, two]) == [6, 4]
    # Together or not at all.
    assert Paying(both, together=(("one", "two"),)).needed([one, two], 0.5) == [0, 0]
    # Halfway of a ramp, half of what is needed.
    assert counts(half([one, two], 0.3, final=0.6), [one, two]) == [3, 3]


def test_paying_asks_more_of_a_weight_that_costs_more_multiplications():
    one, two = tensor("one", 2.0 * np.arange(1, 11)), tensor("two", np.arange(1, 11) + 0.5)
    # 2, 4, ... beside 1.5, 2.5, ...: the lowest ten are 3 of the first and 7 of the second. Halved, they take turns.
    assert counts(Paying({}, floor=0.0)([one, two], 0.5), [one, two]) == [3, 7]
    assert counts(Paying({}, {"one": 4.0}, floor=0.0)([one, two], 0.5), [one, two]) == [5, 5]
    # Work alone empties none; where the others can give no more, it may have more off.
    assert counts(Paying({}, {"one": 1e6}, floor=0.0)([one, two], 0.6), [one, two]) == [7, 5]
    full = tensor("two", np.arange(1, 11) + 0.5, limit=0.2)
    assert counts(Paying({}, {"one": 1e6}, floor=0.0)([one, full], 0.55), [one, full]) == [9, 2]
    # A score below 0 says that the weight does harm: it goes the earlier, the more it costs.
    harm = [tensor("one", [-1.0, 5.0]), tensor("two", [-1.5, 5.0])]
    assert counts(Paying({}, floor=0.0)(harm, 0.25), harm) == [0, 1]
    assert counts(Paying({}, {"one": 4.0}, floor=0.0)(harm, 0.25), harm) == [1, 0]


def test_explicit_takes_fractions_only():
    with pytest.raises(ValueError, match=r"the target of 'a' must be a fraction in \[0, 1\). Received: 75"):
        Explicit({"a": 75})


PAYING = Paying({"t0": 0.5, "t1": 0.9, "t2": 0.3}, {"t1": 5.0}, (("t0", "t2"),), floor=0.0)
EVERY = [Uniform(floor=0.0), Global(floor=0.0), LAMP(), ERK(), Sensitivity(points=(0.5,), floor=0.0), PAYING]


@pytest.mark.parametrize("allocation", EVERY, ids=lambda a: type(a).__name__)
def test_collapse_is_refused_with_the_name(allocation):
    tensors = [tensor("one", [1.0], curve=((0.5, 1.0),)), tensor("two", np.arange(2.0), curve=((0.5, 1.0),))]
    with pytest.raises(ValueError, match=r"at most a sparsity of 0.333333.*tightest: 'one'.*Received: target=0.9"):
        allocation(tensors, 0.9)


@pytest.mark.parametrize("allocation", EVERY, ids=lambda a: type(a).__name__)
def test_the_limit_of_a_pattern_is_a_cap(allocation):
    # 2:4 gives a half at most: 4 weights of a, so b gives the other 6 of 10.
    tensors = [
        tensor("a", np.arange(8.0), limit=0.5, curve=((0.5, 1.0),)),
        tensor("b", np.arange(8.0) + 100.0, curve=((0.5, 1.0),)),
    ]
    shares = allocation(tensors, 10 / 16)
    assert zeros(shares, tensors) == 10
    assert counts(shares, tensors)[0] <= 4


@pytest.mark.parametrize("kind", [Uniform, Global, LAMP, ERK, Sensitivity])
@pytest.mark.parametrize("floor", [-0.1, 1.0, 20])
def test_floors_are_fractions(kind, floor):
    with pytest.raises(ValueError, match=rf"{kind.__name__}: floor must be a fraction in \[0, 1\). Received: {floor}"):
        kind(floor=floor)


@pytest.mark.parametrize(
    "allocation",
    [
        Uniform(0.2),
        Global(0.2),
        LAMP(0.2),
        ERK(0.2),
        Paying({"a": 0.5}, {"a": 3.0}, (("a", "b"),), 0.2),
        Sensitivity(points=(0.1, 0.2), floor=0.2),
        Explicit({"a": 0.5}),
    ],
    ids=lambda a: type(a).__name__,
)
def test_round_trip(allocation):
    assert type(allocation).from_config(allocation.get_config()) == allocation


@st.composite
def models(draw):
    """Some tensors of unequal size, units and scale, whole units each."""
    tensors = []
    for i in range(draw(st.integers(1, 5))):
        unit = draw(st.sampled_from([1, 1, 2, 4, 9]))
        units = draw(st.integers(2, 60))
        rng = np.random.default_rng(draw(st.integers(0, 1000)))
        scores = np.round(np.abs(rng.normal(size=units)) * 10.0 ** draw(st.integers(-2, 2)), draw(st.integers(0, 4)))
        losses = np.sort(rng.normal(size=2))
        curve = tuple(zip((0.4, 0.8), (float(loss) for loss in losses), strict=True))
        tensors.append(tensor(f"t{i}", scores, unit, (1, unit * units), curve=curve))
    return tensors


@pytest.mark.parametrize("allocation", EVERY, ids=lambda a: type(a).__name__)
@settings(max_examples=150)
@given(tensors=models(), share=st.floats(0.0, 0.999))
def test_the_whole_meets_the_target(allocation, tensors, share):
    size = sum(t.size for t in tensors)
    most = sum(t.size - t.weights_per_unit for t in tensors)
    target = share * most / size
    shares = allocation(tensors, target)
    off = counts(shares, tensors)
    assert all(0 <= c <= t.units - 1 for c, t in zip(off, tensors, strict=True))
    largest = max(t.weights_per_unit for t in tensors)
    # Uniform hands every tensor the same target, as it says, and so rounds in each.
    slack = largest / 2 if shares != [target] * len(tensors) else sum(t.weights_per_unit for t in tensors) / 2
    assert abs(zeros(shares, tensors) - target * size) <= slack + 1e-6


@settings(max_examples=100)
@given(tensors=models(), share=st.floats(0.0, 0.999))
def test_global_takes_no_unit_that_is_worth_more_than_one_it_leaves(tensors, share):
    tensors = [tensor(t.path, t.scores) for t in tensors]  # units of one size
    most = sum(t.size - 1 for t in tensors)
    off = counts(Global(floor=0.0)(tensors, share * most / sum(t.size for t in tensors)), tensors)
    taken = [np.sort(t.scores)[:c] for t, c in zip(tensors, off, strict=True)]
    left = [np.sort(t.scores)[c:] for t, c in zip(tensors, off, strict=True) if c < t.units - 1]
    if sum(off) and left:
        assert max(t.max() for t in taken if t.size) <= min(kept.min() for kept in left)
