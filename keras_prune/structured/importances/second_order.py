"""Importance by what a Taylor series of the loss says of a whole unit, which is not taken out for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras.saving import register_keras_serializable

from keras_prune.statistics.evaluation import check_compiled
from keras_prune.structured.analysis.groups import Analysis
from keras_prune.structured.importances.features import of_gradients, sides_of
from keras_prune.structured.importances.importance import Importance, Scores, data_field

__all__ = ["SecondOrder"]


@register_keras_serializable(package="keras_prune_structured")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondOrder(Importance):
    r"""$-q + \tfrac12 h$: the expected change of the loss without a unit, in one pass over data.

    q is the derivative of the loss by a factor on the unit, $\sum w g$ over the kernels that read it, with its sign; h
    the Fisher information of that factor, from the spread of q between batches. `Taylor` adds up sizes weight by
    weight, where terms that cancel count double. Scores are in units of the loss, so that groups can be compared as
    they are, and may be below 0.

    Args:
        data: `(x, y)` or batches of it. Data in one batch have no spread, and h is $q^2$.

    Raises:
        ValueError: when it is called: no data, or a model that is not compiled.

    Source: LeCun et al. 1990, "Optimal brain damage", equation 1, for a factor on a unit, with the Fisher information
    as in Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", equations 6 to 8; the
    first order stays, as in Molchanov et al. 2017, equation 6, without its absolute value.

    Example:
        >>> import numpy as np
        >>> from keras_prune.structured import analyse
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> model.set_weights([np.eye(2), np.zeros(2), np.array([[3.0], [1.0]]), np.zeros(1)])
        >>> model.compile(loss="mse")
        >>> SecondOrder(data=(np.ones((4, 2)), np.full((4, 1), 3.0)))(model, analyse(model))
        array([12.,  0.])
    """

    normalise: str = "none"
    data: Any = data_field()

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        self.check_data()
        check_compiled(model)
        sides = [sides_of(analysis, group) for group in analysis.groups]
        found = of_gradients(model, analysis, sides, "sum", self.data)["second_order"]
        return self.normalised(analysis, found)
