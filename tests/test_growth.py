"""Growth: hand-computed exchanges, and exact counts whatever the input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_prune.growth import SET, Alternation, RigL, Surgery


def test_rigl_drops_the_smallest_and_grows_the_steepest():
    on = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    scores = np.array([4.0, 3, 2, 1, 0, 0, 0, 0])
    gain = np.array([9.0, 9, 9, 9, 1, 5, 3, 4])
    # Half of four are exchanged at the start: 2 and 1 go, gains 5 and 4 come.
    assert RigL(fraction=0.5)(on, scores, {"gradient": gain}, off=4, progress=0.0, seed=0).astype(int).tolist() == [
        1,
        1,
        0,
        0,
        0,
        1,
        0,
        1,
    ]
    # Half way the cosine has halved the fraction: one goes. At the end none.
    assert RigL(fraction=0.5)(on, scores, {"gradient": gain}, off=4, progress=0.5, seed=0).astype(int).tolist() == [
        1,
        1,
        1,
        0,
        0,
        1,
        0,
        0,
    ]
    assert RigL(fraction=0.5)(on, scores, {"gradient": gain}, off=4, progress=1.0, seed=0).tolist() == on.tolist()


def test_set_draws_by_its_seed():
    on = np.arange(100) < 50
    scores = np.where(on, np.arange(100) + 1.0, 0.0)
    rule = SET(fraction=0.2)
    first, again, other = (rule(on, scores, {}, off=50, progress=0.0, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert not first[:10].any(), "the ten lowest scores went"
    assert first[10:50].all()
    assert first[50:].sum() == 10


def test_a_first_mask_from_a_dense_tensor_fills_up_by_gain():
    on, scores = np.ones(10, dtype=bool), np.arange(10.0, dtype=np.float32)
    gain = np.array([0.4, 9, 0.3, 8, 0.2, 0.1, 7, 6, 0, 0], dtype=np.float32)
    # Of four, half stay by score (8 and 9); the other two keep their place by gain (1 and 3), not by index.
    assert np.flatnonzero(RigL(fraction=0.5)(on, scores, {"gradient": gain}, off=6, progress=0.0, seed=0)).tolist() == [
        1,
        3,
        8,
        9,
    ]


def test_what_was_off_comes_before_what_has_just_gone():
    on = np.array([1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    scores = np.array([6.0, 5, 4, 3, 2, 1, 0, 0])
    gain = np.array([0.0, 0, 8, 7, 9, 6, 0.1, 0.2])
    # Five are to be on, three of them by score. Both that were off come, whatever their gain.
    first = RigL(fraction=0.4)(on, scores, {"gradient": gain}, off=3, progress=0.0, seed=0)
    assert np.flatnonzero(first).tolist() == [0, 1, 2, 6, 7]
    # Two of five by score, and only two were off: of those that have gone, the one with the best gain keeps its place.
    second = RigL(fraction=0.99)(on, scores, {"gradient": gain}, off=3, progress=0.0, seed=0)
    assert np.flatnonzero(second).tolist() == [0, 1, 4, 6, 7]


def test_a_schedule_that_rises_draws_evenly():
    """What is brought back is spread over a tensor, in any order of its units: of each half about half."""
    rng = np.random.default_rng(0)
    on, scores = np.ones(4000, dtype=bool), rng.random(4000)
    for rule in (RigL(fraction=0.5), SET(fraction=0.5)):
        gain = rng.random(4000)
        for off in (2000, 3000, 3600):
            after = rule(on, scores, {"gradient": gain}, off=off, progress=0.0, seed=off)
            low = np.count_nonzero(after[:2000]) / np.count_nonzero(after)
            assert 0.4 < low < 0.6, (rule, off, low)


def test_surgery_defends_a_place_whatever_the_sign_of_scores():
    on = np.array([True, False])
    scores = np.array([-1.0, -0.95])
    assert Surgery(margin=0.1)(on, scores, {}, off=1, progress=0, seed=0).tolist() == [True, False]
    assert Surgery(margin=0.01)(on, scores, {}, off=1, progress=0, seed=0).tolist() == [False, True]


def test_surgery_has_two_thresholds():
    on = np.array([True, True, False, False])
    scores = np.array([1.0, 2.0, 1.05, 1.3])
    # With a margin of 10 % a weight that is on holds its place against 1.05, not against 1.3.
    assert Surgery(margin=0.1)(on, scores[[0, 1, 2, 2]], {}, off=2, progress=0, seed=0).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert Surgery(margin=0.1)(on, scores, {}, off=2, progress=0, seed=0).tolist() == [False, True, False, True]


@given(
    rule=st.sampled_from([SET(), RigL(), Surgery(), Alternation(), SET(fraction=0.0), RigL(fraction=0.9)]),
    n=st.integers(1, 60),
    alive=st.floats(0, 1),
    off=st.floats(0, 1),
    progress=st.floats(0, 1),
    seed=st.integers(0, 50),
)
def test_exactly_so_many_are_off(rule, n, alive, off, progress, seed):
    rng = np.random.default_rng(seed)
    on = rng.random(n) < alive
    scores, gain = rng.random(n), rng.random(n)
    count = min(round(off * n), n)
    after = rule(on, scores, {"gradient": gain}, off=count, progress=progress, seed=seed)
    assert np.count_nonzero(~after) == count


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"RigL: fraction .* Received: 1\.5"):
        RigL(fraction=1.5)
    with pytest.raises(ValueError, match=r"margin=-1"):
        Surgery(margin=-1)
    with pytest.raises(ValueError, match=r"RigL: gains must hold the gradient of pruned weights.* Received: \[\]"):
        RigL()(np.ones(2, bool), np.ones(2), {}, off=1, progress=0, seed=0)
