"""Patterns: hand-computed masks, exact counts, units that stay whole, and refusals that name the nearest fit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_prune.arrays.selection import smallest
from keras_prune.patterns import Block, Channel, Filter, NofM, Unstructured

KERNEL = np.array([[1.0, 8.0, 3.0], [2.0, 7.0, 4.0], [9.0, 1.0, 5.0], [9.0, 2.0, 6.0]])


def test_unstructured_by_hand():
    mask = Unstructured().mask(KERNEL, 0.25)
    # Three of twelve: 1 (0,0), 1 (2,1), and of the two 2s the first, (1,0).
    assert np.argwhere(~mask).tolist() == [[0, 0], [1, 0], [2, 1]]


def test_block_by_hand():
    # Blocks of 2 x 1 have means 1.5, 7.5, 3.5 / 9, 1.5, 5.5.
    mask = Block(2, 1).mask(KERNEL, 1 / 3)
    assert mask.astype(int).tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 1]]
    # Blocks of 2 x 3 by their largest: 8 against 9.
    assert Block(2, 3, pooling="max").mask(KERNEL, 0.5).astype(int).tolist() == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]


def test_nofm_by_hand():
    mask = NofM(1, 4).mask(KERNEL, 0.75)
    # Of equal ones the lower index goes: 9 at row 3 stays.
    assert mask.astype(int).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]]
    # Groups lose 1+2, 1+2 and 3+4 under 2:4; a sixth of the weights is one group of three, the first.
    half = NofM(2, 4).mask(KERNEL, 1 / 6)
    assert half.astype(int).tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_channels_by_hand():
    means = KERNEL.mean(axis=0)
    off = int(np.argmin(means))
    assert (~Filter().mask(KERNEL, 1 / 3)).all(axis=0).tolist() == [i == off for i in range(3)]
    conv = np.stack([KERNEL, KERNEL * 2])  # [2, in 4, out 3]
    off = int(np.argmin(KERNEL.mean(axis=1)))
    assert (~Channel().mask(conv, 0.25)).all(axis=(0, 2)).tolist() == [i == off for i in range(4)]


PATTERNS = [Unstructured(), Block(4, 1), Block(2, 3), Block(1, 6, pooling="max"), NofM(2, 4), NofM(1, 4), NofM(3, 4)]
PATTERNS += [Filter(), Channel(), Filter(pooling="max")]


@given(
    pattern=st.sampled_from(PATTERNS),
    shape=st.sampled_from([(8, 6), (4, 12), (3, 4, 6), (3, 3, 4, 6)]),
    share=st.floats(0, 0.999),
    seed=st.integers(0, 99),
    ties=st.booleans(),
)
def test_exact_count_whole_units_and_the_lowest_go(pattern, shape, share, seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, shape).astype(np.float32) if ties else rng.random(shape, dtype=np.float32)
    target = share * pattern.limit(shape)
    mask = pattern.mask(scores, target)
    wanted = round(target * pattern.units(shape)) * pattern.weights_per_unit(shape)
    assert np.count_nonzero(~mask) == wanted
    assert pattern.units(shape) * pattern.weights_per_unit(shape) == math.prod(shape)
    units = pattern.reduce(scores)
    off = smallest(units, round(target * pattern.units(shape)))
    if off.any() and not off.all():
        assert units[off].max() <= units[~off].min()
    if pattern.fixed_units:
        # Units are whole: the mask, seen in units, holds only zeros and ones.
        assert set(np.unique(pattern.reduce(mask.astype(np.float32)))) <= {0.0, 1.0}
    else:
        groups = mask.reshape(-1, pattern.m, shape[-1]).sum(axis=1)
        assert set(np.unique(groups)) <= {pattern.n, pattern.m}


@pytest.mark.parametrize(
    ("pattern", "shape", "message"),
    [
        (
            Block(4, 1),
            (6, 8),
            r"Block\(4, 1\) does not divide a kernel of shape \(6, 8\).* nearest that does is Block\(3, 1\)",
        ),
        (Block(3, 3), (3, 3, 2, 8), r"flattened to \(18, 8\).*Block\(3, 2\)"),
        (NofM(2, 4), (10, 3), r"NofM\(2, 4\) does not divide the 10 inputs.*nearest m that does is 5"),
    ],
)
def test_shapes_that_do_not_divide_name_the_nearest(pattern, shape, message):
    with pytest.raises(ValueError, match=message):
        pattern.mask(np.ones(shape), 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(0, 1), r"Received: Block\(0, 1\)"),
        (lambda: Block(1, 1, pooling="sum"), r"pooling='sum'"),
        (lambda: NofM(4, 4), r"NofM\(4, 4\)"),
        (lambda: NofM(2, 4).mask(np.ones((4, 4)), 0.6), r"at most a sparsity of 0\.5.*target=0\.6"),
        (lambda: Unstructured().mask(np.ones((4, 4)), 1.0), r"Received: 1\.0"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
