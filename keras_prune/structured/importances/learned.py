"""Learned importance: the cost of taking out a sample of units is measured, that of the others predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.statistics.evaluation import check_compiled
from keras_prune.statistics.walks import kept
from keras_prune.structured.analysis.groups import Analysis
from keras_prune.structured.importances.ablation import ablate
from keras_prune.structured.importances.features import features
from keras_prune.structured.importances.importance import (
    REDUCTIONS,
    Importance,
    ScoredUnits,
    Scores,
    check_choice,
    data_field,
)
from keras_prune.structured.importances.predictors import PREDICTORS, Predictor

__all__ = ["Learned", "Prediction", "predict_costs", "rank_correlation", "sample_units"]

Units = npt.NDArray[np.int64]

FOLDS = 5
LEAST = 2 * FOLDS
"""Units that a sample needs, so that each fold is a forecast of two at least."""
WEIGHTS = (0.0, *(4.0**k for k in range(-5, 6)))
"""Factors on the curvature that are tried: 1 is right for likelihoods, for a squared error it depends on its unit."""


@register_keras_serializable(package="keras_prune_structured")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(Importance):
    r"""The change of the loss without a unit: measured for a sample of units, predicted for the others from features.

    A random forest or a small network learns what the second-order estimate of the cost gets wrong (`predict_costs`),
    from the norms of a unit, its gradients and activations, and where it is (`features`). Five fits each leave out a
    fifth of the sample; their mean is the prediction, and how they rank the units that they have not seen is in the
    plan. Scores are in units of the loss, so that groups can be compared as they are; below 0, the data are answered
    better without the unit.

    Args:
        reduction: of the axes of a group, in features of weights and gradients.
        sample: units to measure: a share of them (0.2), or how many (100). Each group has its part, one at least. 1.0
            measures every unit, and nothing is predicted.
        model: "forest" (needs scikit-learn: `pip install "keras-prune[learned]"`) or "network".
        seed: of the sample, the folds and the fits.
        data: `(x, y)` or batches of it.

    Raises:
        ValueError: when it is called: no data, a model that is not compiled, or a sample that is too small to be
            parted, with the least that is not.

    Source: the oracle and the rank correlation with it are those of Molchanov et al. 2017, "Pruning convolutional
    neural networks for resource efficient inference", sections 2.2 and 3.1; the forest is Breiman's (2001).

    Example:
        >>> from keras_prune.structured import plan
        >>> keras.utils.set_random_seed(0)
        >>> layers = [keras.layers.Dense(20, activation="relu"), keras.layers.Dense(1)]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> model.compile(loss="mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 4))
        >>> made = plan(model, params=0.5, importance=Learned(sample=10), data=(x, x[:, :1]))
        >>> print(made.notes[0])
        cost of 10 of 20 units measured, of the others predicted by a forest: rank correlation on held-out units ...
    """

    normalise: str = "none"
    reduction: str = "mean"
    sample: float | int = 0.2
    model: str = "forest"
    seed: int = 0
    data: Any = data_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "reduction", REDUCTIONS)
        check_choice(self, "model", PREDICTORS)
        number = isinstance(self.sample, int | float) and not isinstance(self.sample, bool)
        if not number or not (0.0 < self.sample <= 1.0 if isinstance(self.sample, float) else self.sample >= 1):
            raise ValueError(
                "Learned: sample must be a share of units in (0, 1], such as 0.2, or a whole number of them, such as "
                f"100. Received: {self.sample!r}"
            )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Learned: seed must be a whole number from 0. Received: {self.seed!r}")

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        return self.score(model, analysis).scores

    def score(self, model: keras.Model, analysis: Analysis) -> ScoredUnits:
        """Return the costs, and a note with the rank correlation on units that the fits had not seen."""
        self.check_data()
        check_compiled(model)
        if not analysis.size:
            return ScoredUnits(np.zeros(0))
        data = kept(self.data)
        sample = sample_units([group.size for group in analysis.groups], self._count(analysis), self.seed)
        costs = ablate(model, analysis, sample, data)
        if len(sample) == analysis.size:
            return ScoredUnits(self.normalised(analysis, costs), (f"cost of all {len(sample)} units measured",))
        table = features(model, analysis, data, self.reduction)
        made = predict_costs(
            table.values, table.column("first_order"), table.column("curvature"), sample, costs, self.model, self.seed
        )
        note = (
            f"cost of {len(sample)} of {analysis.size} units measured, of the others predicted by a {self.model}: rank "
            f"correlation on held-out units {made.correlation:.3f} (of the second-order estimate alone "
            f"{made.estimate_correlation:.3f})"
        )
        return ScoredUnits(self.normalised(analysis, made.costs), (note,))

    def _count(self, analysis: Analysis) -> int:
        """How many units to measure."""
        size, groups = analysis.size, len(analysis.groups)
        count = round(self.sample * size) if isinstance(self.sample, float) else min(self.sample, size)
        least = max(LEAST, groups)
        if count < min(least, size):
            way = f"Ask for sample={least} or more, or" if least < size else "Ask for"
            raise ValueError(
                f"Learned: a sample needs {least} units at least, to be parted into {FOLDS} folds and to have one of "
                f"each of {groups} groups. Received: sample={self.sample}, which is {count} of {size} units. {way} "
                "sample=1.0, which measures every unit."
            )
        return count


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Costs of all units.

    Attributes:
        costs: `[units]`; of the sample as measured, of the others as predicted.
        held_out: for each unit of the sample, what the fit that had not seen it said.
        correlation: Spearman's rank correlation of `held_out` with the measured costs.
        estimate_correlation: the same for the second-order estimate, without learning.
    """

    costs: Scores
    held_out: Scores
    correlation: float
    estimate_correlation: float


def predict_costs(
    table: npt.NDArray[np.float64],
    first_order: Scores,
    curvature: Scores,
    sample: Units,
    costs: Scores,
    model: str = "forest",
    seed: int = 0,
) -> Prediction:
    r"""Learn the costs of a sample, and predict those of all units.

    With $t(c) = \operatorname{asinh}(c / m)$, m the median of $|c|$, and the estimate $e = f + \alpha h / 2$ (first
    order f, curvature h, $\alpha$ the factor that fits the sample best), the target is $t(c) - t(e)$: what the
    estimate gets wrong. m, $\alpha$ and the fit are made five times, each without a fifth of the sample.

    Args:
        table: features, `[units, features]`.
        first_order: of the Taylor series of the cost, `[units]`.
        curvature: twice the second order, up to a factor of the loss, `[units]`.
        sample: numbers of the units that were measured.
        costs: what was measured, `[len(sample)]`.
        model: a name in `predictors.PREDICTORS`.
        seed: of folds and fits.
    """
    fit: Predictor = PREDICTORS[model]
    folds = np.random.default_rng((seed, 1)).permutation(len(sample)) % FOLDS
    targets = np.full((len(table), FOLDS), np.nan)
    estimates = np.empty((len(table), FOLDS))
    scales = np.empty(FOLDS)
    for fold in range(FOLDS):
        seen, known = sample[folds != fold], costs[folds != fold]
        scales[fold] = _scale(known)
        estimates[:, fold] = _estimate(first_order, curvature, seen, known, scales[fold])
        targets[seen, fold] = np.arcsinh(known / scales[fold]) - estimates[seen, fold]
    predicted = scales * np.sinh(fit(table, targets, seed) + estimates)
    held_out = predicted[sample, folds]
    guess = (scales * np.sinh(estimates))[sample, folds]
    result = predicted.mean(axis=1)
    result[sample] = costs
    return Prediction(result, held_out, rank_correlation(held_out, costs), rank_correlation(guess, costs))


def _scale(costs: Scores) -> float:
    """The median of |c|, of those that are not 0 if most are."""
    sizes = np.abs(costs)
    return float(np.median(sizes) or np.median(sizes[sizes > 0]) if sizes.any() else 1.0)


def _estimate(first_order: Scores, curvature: Scores, seen: Units, costs: Scores, scale: float) -> Scores:
    """The second-order estimates, compressed, with the curvature in the measure that fits best."""
    wanted = np.arcsinh(costs / scale)

    def of(weight: float) -> Scores:
        return np.asarray(np.arcsinh((first_order + weight * curvature / 2.0) / scale))

    return min((of(weight) for weight in WEIGHTS), key=lambda found: float(np.abs(found[seen] - wanted).mean()))


def sample_units(sizes: list[int], count: int, seed: int) -> Units:
    """Return `count` units at random, from each group its part, and one at least, in ascending order.

    Args:
        sizes: of the groups, whose units are numbered one after the other.
        count: from the number of groups to the number of units.
        seed: of the choice.

    Example:
        >>> [int(np.sum(sample_units([10, 30, 2], 8, 0) < end)) for end in (10, 40, 42)]
        [2, 7, 8]
    """
    parts = count * np.array(sizes) / sum(sizes)
    taken = np.maximum(1, np.floor(parts)).astype(np.int64)
    while taken.sum() < count:
        taken[np.argmax(np.where(taken < sizes, parts - taken, -np.inf))] += 1
    while taken.sum() > count:
        taken[np.argmax(np.where(taken > 1, taken - parts, -np.inf))] -= 1
    rng = np.random.default_rng((seed, 0))
    starts = np.cumsum([0, *sizes[:-1]])
    chosen = [s + rng.choice(n, k, replace=False) for s, n, k in zip(starts, sizes, taken, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return Spearman's rank correlation: Pearson's of ranks, equal values with their mean rank; NaN for a constant.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0, 4.0], [1.0, 10.0, 5.0, 20.0])
        0.8
    """
    x, y = _mean_ranks(np.asarray(a, np.float64)), _mean_ranks(np.asarray(b, np.float64))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def _mean_ranks(values: Scores) -> Scores:
    _, place, number = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(number) - (number - 1) / 2.0)[place])
