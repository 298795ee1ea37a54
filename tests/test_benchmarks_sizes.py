"""How benchmarks/lenet_small.py counts bytes, and what it takes out before it counts."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from benchmarks.lenet_small import architecture, fold_constants, shrink, size


def sparse_chain(seed: int, widths: tuple[int, ...] = (12, 9, 7, 3), kept: float = 0.12) -> list[list[np.ndarray]]:
    """Kernels with few weights, so that some units read nothing and some are read by nothing."""
    rng = np.random.default_rng(seed)
    return [
        [
            (rng.normal(size=(a, b)) * (rng.random((a, b)) < kept)).astype(np.float32),
            rng.normal(size=b).astype(np.float32),
        ]
        for a, b in itertools.pairwise(widths)
    ]


def forward(x: np.ndarray, weights: list[list[np.ndarray]]) -> np.ndarray:
    """Answers of a chain of Dense layers, with ReLU between them."""
    for i, (kernel, bias) in enumerate(weights):
        x = x @ kernel + bias
        if i < len(weights) - 1:
            x = np.maximum(x, 0.0)
    return x


def test_size_by_hand() -> None:
    first = np.zeros((5, 2), np.float32)
    first[1] = 1.0, -2.0
    first[4, 0] = 3.0
    second = np.array([[0.5, 0.0, 0.0], [0.0, 0.0, 7.0]], np.float32)
    weights = [[first, np.array([0.0, 1.0], np.float32)], [second, np.zeros(3, np.float32)]]
    # Values: 3 + 1 + 2 + 0. Positions: two inputs are read by two units, and 2 x 3: 10 bits in 2 bytes.
    assert architecture(weights) == (2, 2)
    assert size(weights) == 4 * 6 + 2
    assert size(weights, value_bytes=2) == 2 * 6 + 2


def test_bits_of_the_papers_architecture() -> None:
    """375-62-51 has 375 * 62 + 62 * 51 + 51 * 10 = 26,922 positions: 3,366 bytes of bits."""
    weights = [[np.ones((a, b)), np.zeros(b)] for a, b in ((375, 62), (62, 51), (51, 10))]
    assert size(weights) == 4 * 26_922 + 3_366
    assert architecture(weights) == (375, 62, 51)


@pytest.mark.parametrize("seed", range(5))
def test_folding_keeps_answers_and_leaves_no_idle_unit(seed: int) -> None:
    weights = sparse_chain(seed)
    folded = fold_constants(weights)
    x = np.random.default_rng(100 + seed).normal(size=(20, 12)).astype(np.float32)
    np.testing.assert_allclose(forward(x, folded), forward(x, weights), atol=1e-5)
    for (kernel, bias), (behind, _) in itertools.pairwise(folded):
        reads, is_read = kernel.any(axis=0), behind.any(axis=1)
        np.testing.assert_array_equal(reads, is_read)
        assert not bias[~reads].any()
    assert any((~kernel.any(axis=0)).any() for kernel, _ in folded[:-1]), "the case should have units to fold"


def test_shrinking_removes_idle_units_exactly() -> None:
    weights = sparse_chain(0, kept=0.2)
    units = [kernel.shape[1] for kernel, _ in weights]
    layers = [keras.layers.Dense(n, activation="relu" if i < 2 else None) for i, n in enumerate(units)]
    model = keras.Sequential([keras.Input((12,)), *layers])
    for layer, values in zip(model.layers, weights, strict=True):
        layer.set_weights(values)
    x = np.random.default_rng(1).normal(size=(20, 12)).astype(np.float32)
    smaller = shrink(model)
    np.testing.assert_allclose(smaller.predict(x, verbose=0), forward(x, weights), atol=1e-5)
    left = [layer.get_weights() for layer in smaller.layers]
    expected = [int(kernel.any(axis=0).sum()) for kernel, _ in fold_constants(weights)[:-1]]
    assert [layer.units for layer in smaller.layers] == [*expected, 3]
    assert expected < [9, 7]
    assert size(left) < size(weights)
