"""Rows of features and some targets -> targets for all rows: a random forest, or a small network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.extras import import_extra

__all__ = ["PREDICTORS", "forest", "network"]

Table = npt.NDArray[np.float64]
Predictor = Callable[[Table, Table, int], Table]

TREES = 200
MEMBERS, WIDTH, STEPS, BATCH = 4, 16, 300, 128


def forest(table: Table, targets: Table, seed: int) -> Table:
    """Fit a random forest to each column of targets: 200 trees on 60 % of the features, three rows a leaf at least.

    Args:
        table: features, `[rows, features]`.
        targets: `[rows, folds]`, NaN where a fold is not to see the row.
        seed: of the trees' choices.

    Returns:
        Predictions for all rows, `[rows, folds]`.

    Raises:
        ImportError: scikit-learn is not installed; the message has the command.

    Source: Breiman 2001, "Random forests".
    """
    ensemble = import_extra(
        "sklearn.ensemble", "learned", "learned importance by a forest", 'Or ask for Learned(model="network").'
    )
    found = []
    for column in targets.T:
        seen = np.isfinite(column)
        model = ensemble.RandomForestRegressor(TREES, max_features=0.6, min_samples_leaf=3, random_state=seed)
        found.append(model.fit(table[seen], column[seen]).predict(table))
    return np.stack(found, axis=1)


def network(table: Table, targets: Table, seed: int) -> Table:
    r"""Fit four small networks to each column of targets, and take their mean: two layers of 16, side by side.

    Features become $\operatorname{asinh}(x / \operatorname{median} |x|)$, standardised: products of features are sums
    then, for large ones. All folds and members are one Keras model of stacked kernels, trained in one `fit` of 300
    steps.

    Args:
        table: features, `[rows, features]`.
        targets: `[rows, folds]`, NaN where a fold is not to see the row.
        seed: of starts and batches; the global one is neither read nor set.

    Returns:
        Predictions for all rows, `[rows, folds]`.
    """
    x = _compressed(table).astype(np.float32)
    center, scale = np.nanmean(targets, axis=0), np.nanstd(targets, axis=0)
    scale = np.where(scale > 0.0, scale, 1.0)
    rows = np.flatnonzero(np.isfinite(targets).any(axis=1))
    wanted = np.repeat((targets[rows] - center) / scale, MEMBERS, axis=1)
    seen = np.isfinite(wanted)
    y = np.stack([np.where(seen, wanted, 0.0), seen], axis=-1).astype(np.float32)
    rng = np.random.default_rng(seed)
    size = min(BATCH, len(rows))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-STEPS * size // len(rows)))])[: STEPS * size]
    model = _towers(x.shape[1], seen.shape[1], rng)
    model.fit(x[rows][order], y[order], batch_size=size, epochs=1, shuffle=False, verbose=0)
    made = ops.convert_to_numpy(model(ops.convert_to_tensor(x), training=False)).astype(np.float64)
    return np.asarray(made.reshape(len(x), -1, MEMBERS).mean(axis=2) * scale + center)


def _towers(features: int, towers: int, rng: np.random.Generator) -> keras.Model:
    """Networks side by side, which share nothing but their input."""
    inputs = keras.Input((features,), name="features")
    x: Any = keras.layers.RepeatVector(towers, name="copies")(inputs)
    for i, (fan, width) in enumerate(((features, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))):
        x = keras.layers.EinsumDense(
            "nti,tio->nto",
            output_shape=(towers, width),
            bias_axes="to",
            activation="relu" if i < 2 else None,
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=float(np.sqrt((2.0 if i < 2 else 0.25) / fan)), seed=int(rng.integers(2**31))
            ),
            dtype="float32",
            name=f"layer_{i}",
        )(x)
    model = keras.Model(inputs, x, name="predictor")
    rate = keras.optimizers.schedules.CosineDecay(1e-2, STEPS)
    # Compiled once more by XLA, 300 steps of so small a model would take longer, not shorter.
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.3, name="adamw"),
        _seen_squares,
        steps_per_execution=50,
        jit_compile=False,
    )
    return model


def _seen_squares(y: Any, predicted: Any) -> Any:
    """For each tower the mean of squares over the rows that it is to see, summed over towers."""
    target, seen = y[..., 0], y[..., 1]
    squares = seen * ops.square(target - predicted[..., 0])
    return ops.sum(ops.sum(squares, axis=0) / ops.maximum(ops.sum(seen, axis=0), 1.0))


def _compressed(table: Table) -> Table:
    size = np.median(np.abs(table), axis=0)
    size = np.where(size > 0.0, size, np.abs(table).mean(axis=0))
    values = np.arcsinh(table / np.where(size > 0.0, size, 1.0))
    deviation = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0))


PREDICTORS: Mapping[str, Predictor] = {"forest": forest, "network": network}
"""By the names that `Learned` takes."""
