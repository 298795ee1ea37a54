"""Masks chosen input by input, against explicit inverses and against least squares on what is left."""

import numpy as np
import pytest

from keras_prune import patterns
from keras_prune.arrays.layouts import Layout
from keras_prune.criteria import SecondOrder
from keras_prune.reconstruction import column_by_column
from keras_prune.reconstruction.column_by_column import Choice, choose
from keras_prune.reconstruction.least_squares import factor_of_inverse
from tests import own_strategies as own

DENSE = Layout.plain(2)


def hessian_of(groups, width, seed=0):
    x = np.random.default_rng(seed).normal(size=(groups, 40, width)) * np.linspace(0.5, 2.0, width)
    x[:, :, 1:] += 0.7 * x[:, :, :-1]
    return x, x.transpose(0, 2, 1) @ x


def cost_without(x, w, gone):
    """What the outputs of the dense weights lose, squared, if some are 0 and the others are the best that there are."""
    stay = np.setdiff1d(np.arange(len(w)), gone)
    best = np.linalg.lstsq(x[:, stay], x @ w, rcond=None)[0]
    return np.square(x[:, stay] @ best - x @ w).sum()


def test_the_formula_is_the_cost_of_a_weight_once_the_others_are_solved():
    [x], hessian = hessian_of(1, 6)
    w = np.random.default_rng(1).normal(size=6)
    diagonal = np.square(factor_of_inverse(hessian)[0]).sum(axis=0)
    np.testing.assert_allclose(diagonal, np.diag(np.linalg.inv(hessian[0])))
    scores = SecondOrder()(w, {"inverse_hessian": diagonal})
    np.testing.assert_allclose(scores, [cost_without(x, w, [j]) for j in range(6)], rtol=1e-8)


def test_by_hand():
    # H = [[2, 1], [1, 2]]: its inverse is [[2, -1], [-1, 2]] / 3. The first costs 3² / (2/3) = 13.5, of the second what
    # is left of H is 2, so it costs 2² / (1/2) = 8. Of the other output they cost 1.5 and 18.
    hessian, best = np.array([[[2.0, 1.0], [1.0, 2.0]]]), np.array([[[3.0, 1.0], [2.0, 3.0]]])
    first = np.array([[False, True], [False, True]])
    kept = choose(hessian, best, Choice(SecondOrder(), patterns.Unstructured(), DENSE, first))
    np.testing.assert_array_equal(kept, [[True, False], [False, True]])


def reference(hessian, best, count, width, scores):
    """The same with explicit inverses: of each run, `count(run)` weights go."""
    left, kept = best.copy(), np.ones(best.shape, bool)
    for start in range(0, len(best), width):
        run = range(start, start + width)
        inverse = {j: np.linalg.inv(hessian[j:, j:]) for j in run}
        worth = np.array([np.square(left[j]) / inverse[j][0, 0] for j in run])
        kept[run] = scores(worth, count(run))
        for j in run:
            moved = np.where(kept[j], 0.0, left[j]) / inverse[j][0, 0]
            left[j:] -= inverse[j][:, :1] * moved
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_published_algorithm(seed, monkeypatch):
    monkeypatch.setattr(column_by_column, "RUNS", 3)
    _, hessian = hessian_of(1, 12, seed)
    rng = np.random.default_rng(seed)
    best, first = rng.normal(size=(12, 5)), rng.random((12, 5)) < 0.4

    def lowest(worth, number):
        kept = np.ones(worth.size, bool)
        kept[np.argsort(worth, axis=None, kind="stable")[:number]] = False
        return kept.reshape(worth.shape)

    def two_of_four(worth, _):
        return np.argsort(np.argsort(worth, axis=0), axis=0) >= 2

    single = choose(hessian, best[None], Choice(SecondOrder(), patterns.Unstructured(), DENSE, first))
    wanted = reference(hessian[0], best, lambda run: int((~first[run]).sum()), 4, lowest)
    np.testing.assert_array_equal(single, wanted)
    halves = np.tile([[True], [True], [False], [False]], (3, 5))
    pairs = choose(hessian, best[None], Choice(SecondOrder(), patterns.NofM(2, 4), DENSE, halves))
    np.testing.assert_array_equal(pairs, reference(hessian[0], best, lambda run: 10, 4, two_of_four))
    assert (single != first).any()
    assert (pairs != halves).any()


@pytest.mark.parametrize("pattern", [patterns.Block(3, 1), patterns.Filter()], ids=str)
def test_a_unit_of_several_inputs_goes_by_what_it_costs_as_a_whole(pattern, monkeypatch):
    monkeypatch.setattr(column_by_column, "RUNS", 2)
    [x], hessian = hessian_of(1, 6)
    best = np.random.default_rng(2).normal(size=(6, 5))
    first = np.ones((6, 5), bool)
    whole = isinstance(pattern, patterns.Filter)
    first[: 6 if whole else 3, :2] = False
    kept = choose(hessian, best[None], Choice(SecondOrder(), pattern, DENSE, first))
    gone = range(6) if whole else range(3)
    costs = [np.square(x @ w).sum() if whole else cost_without(x, w, gone) for w in best.T]
    assert set(np.flatnonzero(~kept[0])) == set(np.argsort(costs)[:2])


LAYOUTS = {
    "dense": (Layout.plain(2), (8, 6)),
    "convolution": (Layout.plain(4), (2, 2, 4, 6)),
    "grouped": (Layout.grouped(4, 2), (2, 2, 4, 6)),
    "depthwise": (Layout.depthwise(4), (2, 2, 3, 2)),
}
PATTERNS = [
    patterns.Unstructured(),
    patterns.Block(4, 1),
    patterns.Block(2, 2, pooling="max"),
    patterns.NofM(1, 4),
    patterns.Filter(),
    patterns.Channel(),
    own.Pairs(),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: type(pattern).__name__)
def test_every_pattern_keeps_its_units_its_number_and_what_was_off(pattern, layout, monkeypatch):
    monkeypatch.setattr(column_by_column, "RUNS", 2)
    layout, shape = LAYOUTS[layout]
    read = layout.by_input() if pattern.by_input else layout
    rng = np.random.default_rng(3)
    earlier = read.from_canonical(pattern.mask(rng.random(read.canonical_shape(shape)), 0.3), shape)
    scores = np.where(earlier, rng.random(shape) + 1, -np.inf if not pattern.fixed_units else 0.0)
    first = read.from_canonical(pattern.mask(read.to_canonical(scores), 0.6), shape) & earlier
    groups, width, outputs = layout.matrices_shape(shape)
    _, hessian = hessian_of(groups, width)
    best = rng.normal(size=(groups, width, outputs))
    kept = choose(hessian, best, Choice(SecondOrder(), pattern, layout, first, earlier))
    assert not (kept & ~earlier).any()
    assert kept.sum() == first.sum()
    on = pattern.units_on(read.to_canonical(kept))
    assert on.sum() == pattern.units_on(read.to_canonical(first)).sum()
    if pattern.fixed_units:  # the kept weights are those of whole units
        np.testing.assert_array_equal(pattern.expand(on, read.to_canonical(scores)), read.to_canonical(kept))
