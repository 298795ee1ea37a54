"""Selection: equal to a sort, on every kind of input, and exact in count and in ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_prune.arrays import selection
from keras_prune.arrays.selection import all_but_smallest, kth_smallest, lowest, smallest

VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, -0.0, 1.0, -np.inf])),
)


@given(values=VALUES, share=st.floats(0, 1))
def test_smallest_is_a_stable_sort(values, share):
    k = round(share * values.size)
    expected = np.zeros(values.size, dtype=bool)
    expected[np.argsort(values, kind="stable")[:k]] = True
    np.testing.assert_array_equal(smallest(values, k), expected)


@given(values=VALUES, share=st.floats(0, 1), seed=st.integers(0, 3), density=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_what_is_off_counts_as_minus_infinity(values, share, seed, density):
    k = round(share * values.size)
    on = np.random.default_rng(seed).random(values.size) < density
    finite = np.where(np.isneginf(values), np.float32(-9), values)
    lowered = np.where(on, finite, -np.inf).astype(np.float32)
    kept = all_but_smallest(finite, k, on=on)
    np.testing.assert_array_equal(kept, on & all_but_smallest(lowered, max(k, int((~on).sum()))))
    if k:
        half = values.size // 2
        bound, counts = lowest([finite[:half], finite[half:]], k, [on[:half], on[half:]])
        assert (bound, counts) == lowest([lowered[:half], lowered[half:]], k)
        np.testing.assert_array_equal(all_but_smallest(finite, k, bound, on), kept)


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["sampled", "partitioned"])
@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "reversed", "pruned", "two values", "one value", "spike"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999, 1.0])
def test_kth_over_chunks_equals_a_sort(monkeypatch, small, kind, share):
    monkeypatch.setattr(selection, "SMALL", small)
    rng = np.random.default_rng(1)
    n = 40_000
    values = {
        "normal": lambda: rng.standard_normal(n),
        "ties": lambda: rng.integers(0, 50, n),
        "sorted": lambda: np.arange(n),
        "reversed": lambda: np.arange(n)[::-1].copy(),
        "pruned": lambda: np.where(rng.random(n) < 0.9, -np.inf, rng.random(n)),
        "two values": lambda: rng.integers(0, 2, n),
        "one value": lambda: np.ones(n),
        # What the sample cannot see: every value at its stride differs from all others.
        "spike": lambda: np.where(np.arange(n) % 34 == 0, 1e6, rng.random(n)),
    }[kind]().astype(np.float32)
    k = max(1, round(share * n))
    chunks = [values[:10], values[10:25_000], values[25_000:]]
    on = rng.random(n) < 0.4
    parts = [on[:10], on[10:25_000], on[25_000:]]
    assert lowest(chunks, k, parts)[0] == np.sort(np.where(on, values, -np.inf))[k - 1]
    assert kth_smallest(chunks, k) == np.sort(values)[k - 1]
    assert np.count_nonzero(smallest(values, k)) == k


def test_bad_ranks_are_named():
    with pytest.raises(ValueError, match=r"from 0 to the number of values, 3\. Received: 4"):
        smallest(np.zeros(3), 4)
    with pytest.raises(ValueError, match="Received: 0"):
        kth_smallest([np.zeros(3)], 0)
