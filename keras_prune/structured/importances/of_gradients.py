"""Importances of weights and their gradients, taken on data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from keras.saving import register_keras_serializable

from keras_prune import criteria
from keras_prune.structured.importances.importance import Array, AxisImportance, data_field
from keras_prune.structured.importances.slices import over_others

__all__ = ["Fisher", "Gradient", "Taylor"]

_register = register_keras_serializable(package="keras_prune_structured")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Summed(AxisImportance):
    """A criterion's scores of single weights, summed over those of a unit."""

    criterion: ClassVar[criteria.Criterion]
    every: ClassVar[bool] = True

    data: Any = data_field()

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return over_others(self.criterion(weight, statistics), axis)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient(_Summed):
    r"""$\sum \overline{|g|}$ over a unit's weights.

    Args:
        data: `(x, y)` or batches of it.
    """

    criterion: ClassVar[criteria.Criterion] = criteria.Gradient()
    needs: ClassVar[frozenset[str]] = criteria.Gradient.needs


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Taylor(_Summed):
    r"""$\sum |w| \, \overline{|g|}$ over a unit's weights: the first-order change of the loss without them.

    Args:
        data: `(x, y)` or batches of it.

    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", section 3.1.
    """

    criterion: ClassVar[criteria.Criterion] = criteria.Taylor()
    needs: ClassVar[frozenset[str]] = criteria.Taylor.needs


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher(_Summed):
    r"""$\sum w^2 \, \overline{g^2} / 2$ over a unit's weights.

    Args:
        data: `(x, y)` or batches of it.

    Source: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", equation 8.
    """

    criterion: ClassVar[criteria.Criterion] = criteria.Fisher()
    needs: ClassVar[frozenset[str]] = criteria.Fisher.needs
