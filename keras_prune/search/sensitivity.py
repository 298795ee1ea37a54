"""How much each tensor matters: a metric measured with one tensor at a time pruned, to each of some sparsities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune import statistics
from keras_prune.devices.pruned_tensors import choose_tensors
from keras_prune.masks.recipe import Recipe, resolve_recipe
from keras_prune.masks.update import MaskArray, Tensor
from keras_prune.models.variables import given_back, read
from keras_prune.monitoring.metric import Metric, Score
from keras_prune.scope import Scope, Target
from keras_prune.search.sensitivities import Sensitivities, TensorSensitivity
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.pruned_alone import finite, mean_loss, values_alone
from keras_prune.statistics.walks import kept
from keras_prune.strategy import check_points
from keras_prune.strip import effective_mask
from keras_prune.training.measuring import alone

__all__ = ["POINTS", "sensitivity"]

POINTS = (0.25, 0.5, 0.75, 0.9, 0.95)
"""The sparsities at which is measured."""
LOSS = (None, "loss")


def sensitivity(
    model: keras.Model,
    data: Any = None,
    criterion: Any = "magnitude",
    pattern: Any = None,
    *,
    points: Sequence[float] = POINTS,
    metric: Any = None,
    mode: str = "auto",
    scope: Scope | None = None,
    verbose: str | int = "auto",
) -> Sensitivities:
    r"""Measure a metric with each tensor alone pruned to each of some sparsities: $M(w \odot m_l(s))$.

    Nothing is trained, and the model stays as it was, in an error or an interrupt, too. What a mask has off already
    stays off. Cost: one evaluation a tensor and point.

    Args:
        model: built, and compiled unless the metric is a function.
        data: what is measured on: `(x, y)`, `(x, y, sample_weight)`, or batches of it in any form. A criterion that
            takes data and has none of its own gets it, too.
        criterion: what a weight is worth, as for `kp.prune`.
        pattern: where zeros may fall, as for `kp.prune`.
        points: sparsities, increasing fractions in (0, 1). Where the pattern allows less, the most that it allows.
        metric: the name of a metric that the model is compiled with; a function of the model that returns a number,
            for which `data` is not needed; or None for the loss.
        mode: "max", "min", or "auto" as Keras's callbacks find it; what a function returns rises with "auto".
        scope: which tensors; None for all kernels.
        verbose: 0 for no progress bar.

    Returns:
        What was measured: a table by `str()`, `to_dict()`, `plot(path)`, and `allocation(drop)`, which prunes each
        tensor until the metric has lost so much.

    Raises:
        ValueError: the points do not increase, the metric is not known (with those that are) or not finite for the
            model as it is, a pattern does not divide a shape, or weights are not finite.

    Source: Han et al. 2015, "Learning both weights and connections", section 3 and figure 6.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False, name="a")])
        >>> model.compile("sgd", "mse")
        >>> model.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]])])
        >>> x = np.eye(2)
        >>> found = kp.search.sensitivity(model, (x, x @ model.get_weights()[0]), points=(0.25, 0.5), verbose=0)
        >>> found.rows[0].values, found.tolerated(0.75)
        ((0.25, 1.25), {'a/kernel': 0.375})
    """
    points = tuple(float(point) for point in points)
    check_points("sensitivity", points)
    recipe = resolve_recipe(criterion, pattern, "uniform", default="uniform")
    data = kept(data)
    recipe = dataclasses.replace(recipe, criterion=recipe.criterion.on(data))
    recipe.check_data("sensitivity", training=False)
    if data is None and not callable(metric):
        raise ValueError(
            f"sensitivity: the {metric or 'loss'} is measured on data. Received: data=None. Give data=(x, y)."
        )
    targets = choose_tensors(model, scope, recipe, None, "sensitivity")[0].targets
    measure = mean_loss(model, data) if metric in LOSS else _Scored(model, data, metric, mode)
    with given_back([*model.variables, *model.metrics_variables]):
        masks = _masks(model, targets)
        masks_at, _ = alone(_tensors(model, targets, masks, recipe), recipe)
        whole = measure(())
        direction = measure.metric if isinstance(measure, _Scored) else Metric("loss", rises=False)
        finite(model, direction.name, whole)
        found = _walk(values_alone(targets, masks_at, points, measure), len(targets) * len(points), verbose)
    rows = []
    for i, (target, mask) in enumerate(zip(targets, masks, strict=True)):
        sparsities, values = zip(*found[i * len(points) : (i + 1) * len(points)], strict=True)
        off = 0.0 if mask is None else (mask.size - int(np.count_nonzero(mask))) / mask.size
        size = math.prod(target.variable.shape)
        rows.append(TensorSensitivity(target.path, type(target.layer).__name__, size, off, sparsities, values))
    return Sensitivities(str(model.name), direction, whole, points, tuple(rows))


class _Scored:
    """A metric of a model, or a function of it, with other values in the place of some variables' own."""

    def __init__(self, model: keras.Model, data: Any, metric: Any, mode: str) -> None:
        self._model = model
        if callable(metric):
            self._score = Score("sensitivity", metric, None, mode)
        else:
            self._score = Score("sensitivity", Batches(data, model, labels=True, size=256), metric, mode)

    def __call__(self, weights: Sequence[tuple[keras.Variable, Any]]) -> float:
        with given_back([variable for variable, _ in weights]):
            for variable, value in weights:
                variable.assign(value)
            return self._score(self._model)

    @property
    def metric(self) -> Metric:
        """Its name and direction, once it was measured."""
        assert self._score.metric is not None
        return self._score.metric


def _masks(model: keras.Model, targets: Sequence[Target]) -> list[MaskArray | None]:
    """Return the mask that each target has already; None where it has none, or all is on."""
    known = effective_mask(model)
    masks = [known.get(id(target.variable)) for target in targets]
    return [None if mask is None or mask.all() else mask for mask in masks]


def _tensors(
    model: keras.Model, targets: Sequence[Target], masks: Sequence[MaskArray | None], recipe: Recipe
) -> list[Tensor]:
    gathered = statistics.collect(model, targets, recipe.criterion.needs, recipe.criterion.data)
    return [
        Tensor(target.path, np.array(read(target.variable)), mask, target.layout, values, target.index)
        for target, mask, values in zip(targets, masks, gathered, strict=True)
    ]


def _walk(values: Iterator[tuple[int, float, float]], total: int, verbose: str | int) -> list[tuple[float, float]]:
    """Return sparsities and values, and show how far the walk is."""
    bar = keras.utils.Progbar(total, unit_name="evaluation", verbose=1 if verbose == "auto" else int(verbose))
    found = []
    for _, sparsity, value in values:
        found.append((sparsity, value))
        bar.update(len(found))
    return found
