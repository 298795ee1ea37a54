import numpy as np

from keras_prune.arrays.union_find import Groups


def test_groups_are_the_connected_components():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pairs = [tuple(int(n) for n in pair) for pair in rng.integers(0, 30, (rng.integers(0, 40), 2))]
        reach = np.eye(30, dtype=bool)
        for a, b in pairs:
            reach[a, b] = reach[b, a] = True
        for _ in range(5):
            reach = reach @ reach
        groups = Groups()
        for a, b in pairs:
            groups.join(a, b)
        order = rng.permutation(30).tolist()
        found = groups.of(order)
        assert sorted(key for group in found for key in group) == list(range(30))
        for group in found:
            assert set(group) == set(np.flatnonzero(reach[group[0]]).tolist())
            assert group == [key for key in order if key in group]
        assert [group[0] for group in found] == [key for key in order if key in {group[0] for group in found}]


def test_a_long_chain_needs_no_deep_stack():
    groups = Groups()
    for i in range(5000):
        groups.join(i, i + 1)
    assert len(groups.of(range(5001))) == 1
