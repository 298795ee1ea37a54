"""The kept weights of linear maps, against plain least squares on the samples themselves."""

import numpy as np
import pytest

from keras_prune.reconstruction.least_squares import Sums, solve


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2, 6)).astype(np.float32)
    y = (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32) + 0.5
    kernel, bias = rng.normal(size=(2, 6, 4)), rng.normal(size=(2, 4))
    kept = rng.random((2, 6, 4)) < 0.5
    kept[1, :, 2] = False
    sums = Sums.zeros(2, 6)
    for part in np.array_split(np.arange(200), 3):
        sums.add(x[part], y[part])
    return x.astype(np.float64), y.astype(np.float64), kernel, bias, kept, sums


def test_each_output_is_the_least_squares_fit_of_what_it_keeps(case):
    x, y, kernel, _, kept, sums = case
    solved, none = solve(sums, kernel, kept, damping=0.0)
    assert none is None
    for group, output in np.ndindex(2, 4):
        rows = np.flatnonzero(kept[group, :, output])
        wanted = np.zeros(6)
        wanted[rows] = np.linalg.lstsq(x[:, group][:, rows], y[:, group] @ kernel[group, :, output], rcond=None)[0]
        np.testing.assert_allclose(solved[group, :, output], wanted, atol=1e-5)


def test_with_a_bias_it_is_the_fit_with_a_column_of_ones(case):
    x, y, kernel, bias, kept, sums = case
    solved, moved = solve(sums, kernel, kept, bias, damping=0.0)
    for group, output in np.ndindex(2, 4):
        rows = np.flatnonzero(kept[group, :, output])
        columns = np.column_stack([x[:, group][:, rows], np.ones(200)])
        wanted = np.linalg.lstsq(columns, y[:, group] @ kernel[group, :, output] + bias[group, output], rcond=None)[0]
        np.testing.assert_allclose(solved[group, rows, output], wanted[:-1], atol=1e-4)
        assert moved[group, output] == pytest.approx(wanted[-1], abs=1e-4)


def test_what_is_not_kept_is_zero_and_an_input_that_is_always_zero_leaves_its_weight(case):
    x, _, kernel, bias, kept, _ = case
    x = x.astype(np.float32)
    x[:, :, 0] = 0.0
    sums = Sums.zeros(2, 6)
    sums.add(x, x)
    solved, _ = solve(sums, kernel, kept, bias)
    assert np.array_equal(solved[~kept], np.zeros((~kept).sum()))
    np.testing.assert_allclose(solved[:, 0][kept[:, 0]], kernel[:, 0][kept[:, 0]])


def test_nothing_changes_where_nothing_is_pruned(case):
    x, _, kernel, bias, kept, _ = case
    x = x.astype(np.float32)
    sums = Sums.zeros(2, 6)
    sums.add(x, x)
    solved, moved = solve(sums, kernel, np.ones_like(kept), bias)
    np.testing.assert_allclose(solved, kernel, atol=1e-4)
    np.testing.assert_allclose(moved, bias, atol=1e-4)


def test_the_error_is_never_above_that_of_the_pruned_kernel_as_it_was(case):
    x, y, kernel, _, kept, sums = case
    solved, _ = solve(sums, kernel, kept, damping=1e-3)
    for group in range(2):
        wanted = y[:, group] @ kernel[group]
        before = np.square(x[:, group] @ (kernel * kept)[group] - wanted).sum(axis=0)
        after = np.square(x[:, group] @ solved[group] - wanted).sum(axis=0)
        assert np.all(after <= before + 1e-6)
