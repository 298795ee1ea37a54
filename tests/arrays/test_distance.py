"""The one measure of how far values are apart, by hand."""

import numpy as np
import pytest

from keras_prune.arrays.distance import distance, largest_difference, relative_difference, scale_of

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "wanted", "largest", "mean", "unequal", "relative", "place"),
    [
        ([[1.0, -3.0], [0.0, 2.0]], [[1.0, -4.0], [0.5, 2.0]], 1.0, 0.375, 2, 0.25, (0, 1)),
        ([0.0, 2.0], [0.0, 0.0], 2.0, 1.0, 1, 2.0, (1,)),  # no scale: the difference itself
        ([INF, 1.0, -INF], [INF, 2.0, -INF], 1.0, 1 / 3, 1, 0.5, (1,)),
        ([1.0, 2.0], [INF, 2.0], INF, INF, 1, INF, (0,)),
        ([INF, 2.0], [1.0, 2.0], INF, INF, 1, INF, (0,)),
        ([-INF, 2.0], [INF, 2.0], INF, INF, 1, INF, (0,)),
        ([1.0, NAN], [1.0, 2.0], INF, INF, 1, INF, (1,)),
        ([1.0, 2.0], [1.0, NAN], INF, INF, 1, INF, (1,)),
        ([NAN, 3.0], [NAN, 4.0], 1.0, 0.5, 1, 0.25, (1,)),
        ([], [], 0.0, 0.0, 0, 0.0, ()),
    ],
)
def test_a_distance_by_hand(found, wanted, largest, mean, unequal, relative, place):
    got = distance(np.array(found), np.array(wanted))
    assert (got.largest, got.unequal, got.relative, got.place) == (largest, unequal, relative, place)
    assert got.mean == pytest.approx(mean)
    assert got.size == np.size(wanted)


def test_another_shape_is_infinitely_far_even_where_it_could_be_broadcast():
    for found, wanted in (((3, 1), (3,)), ((2, 3), (3, 2)), ((), (1,)), ((0,), (2,))):
        got = distance(np.ones(found), np.ones(wanted))
        assert (got.largest, got.relative, got.place) == (INF, INF, ())
        assert relative_difference(np.ones(found), np.ones(wanted)) == INF


@pytest.mark.parametrize("kind", ["uint8", "int8", "int64", "bool", "float16", "float64", "complex64"])
def test_types_do_not_overflow(kind):
    low, high = np.array([0, 1], dtype=kind), np.array([1, 0], dtype=kind)
    got = distance(low, high)
    assert (got.largest, got.unequal) == (1.0, 2)
    bound = np.array([np.iinfo(kind).min, np.iinfo(kind).max]) if kind.startswith(("int", "uint")) else None
    if bound is not None:
        assert distance(bound.astype(kind)[:1], bound.astype(kind)[1:]).largest == float(bound[1]) - float(bound[0])


def test_bfloat16_is_a_float():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    wanted = np.array([1.0, -2.0], dtype=ml_dtypes.bfloat16)
    assert relative_difference(np.array([1.0, -1.5], dtype=ml_dtypes.bfloat16), wanted) == 0.25


def test_a_scale_of_a_larger_array_can_be_given():
    assert distance(np.array([1.0]), np.array([2.0]), scale=8.0).relative == 0.125
    assert distance(np.array([1.0]), np.array([2.0]), scale=0.0).relative == 1.0


def test_what_is_no_float_is_equal_or_infinitely_far():
    assert relative_difference(np.array([1, 2]), np.array([1, 2])) == 0.0
    assert relative_difference(np.array([1, 2]), np.array([1, 3])) == INF
    assert relative_difference(np.array([b"a", b"b"]), np.array([b"a", b"b"])) == 0.0
    assert relative_difference(np.array([True]), np.array([False])) == INF


def test_of_several_the_largest_counts_whatever_stands_after_it():
    far, near = (np.array([1.0]), np.array([2.0])), (np.array([2.0]), np.array([2.0]))
    for pairs in ([far, near], [near, far]):
        assert largest_difference(*zip(*pairs, strict=True)) == 0.5
    # What is infinite on one side only is no agreement, whichever comes last.
    broken = (np.array([INF]), np.array([2.0]))
    for pairs in ([broken, near], [near, broken]):
        assert largest_difference(*zip(*pairs, strict=True)) == INF
    with pytest.raises(ValueError, match="zip"):
        largest_difference([np.ones(1)], [])


def test_the_scale_is_the_largest_finite_value():
    assert scale_of(np.array([1.0, -3.0, INF, NAN])) == 3.0
    assert scale_of(np.array([], dtype="float32")) == 0.0
    assert scale_of(np.array([-128, 127], dtype="int8")) == 128.0
