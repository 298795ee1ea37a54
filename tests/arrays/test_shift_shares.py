"""Sparsities shifted to a number of zeros."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_prune.arrays.splitting import Scored, shift_shares

TENSORS = st.lists(
    st.tuples(st.integers(2, 40), st.integers(1, 40), st.floats(0.0, 0.99), st.floats(0.0, 0.3), st.floats(0.6, 0.99)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40)
@given(TENSORS, st.floats(0.0, 1.0))
def test_shares_are_within_bounds_in_order_and_add_up_to_a_weight(drawn, place):
    tensors = [Scored(str(i), (rows, cols), np.zeros(0), 1) for i, (rows, cols, *_) in enumerate(drawn)]
    wanted, bounds = [one[2] for one in drawn], [(one[3], one[4]) for one in drawn]
    sizes = np.array([t.size for t in tensors])
    least = np.minimum(np.ceil([low * n for (low, _), n in zip(bounds, sizes, strict=True)]), sizes - 1)
    most = np.minimum(np.floor([high * n for (_, high), n in zip(bounds, sizes, strict=True)]), sizes - 1)
    least = np.minimum(least, most)
    target = float(least.sum() + place * (most.sum() - least.sum())) / sizes.sum()
    shares = np.array(shift_shares(tensors, wanted, bounds, target))
    counts = shares * sizes
    assert np.allclose(counts, np.round(counts))
    assert (counts.round() >= least).all()
    assert (counts.round() <= most).all()
    assert abs(counts.sum() - target * sizes.sum()) <= 0.5 + 1e-6


def test_the_shift_is_one_on_the_logistic_scale():
    tensors = [Scored("a", (100, 100), np.zeros(0), 1), Scored("b", (300, 100), np.zeros(0), 1)]
    a, b = shift_shares(tensors, [0.3, 0.6], [(0.0, 0.8), (0.2, 1.0)], 0.7)
    odds = [np.log(u / (1 - u)) for u in ((a / 0.8), ((b - 0.2) / 0.8))]
    before = [np.log(u / (1 - u)) for u in ((0.3 / 0.8), ((0.6 - 0.2) / 0.8))]
    assert odds[0] - before[0] == pytest.approx(odds[1] - before[1], abs=0.01)
    assert a * 1 + b * 3 == pytest.approx(0.7 * 4)
    # Without a target they stay, in whole units; blocks of four have 2,500 units.
    blocks = [Scored("a", (100, 100), np.zeros(0), 4)]
    assert shift_shares(blocks, [0.30003], [(0.0, 1.0)], None) == [0.3]


def test_bounds_that_do_not_allow_the_target_are_refused():
    tensors = [Scored("a", (10, 10), np.zeros(0), 1), Scored("b", (10, 10), np.zeros(0), 4, 0.5)]
    with pytest.raises(ValueError, match=r"from 0\.1 to 0\.64\. Received: 0\.8"):
        shift_shares(tensors, [0.5, 0.5], [(0.2, 0.8), (0.0, 0.99)], 0.8)
