"""Names that stand for importances, resolved in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_prune.strategy import resolve
from keras_prune.structured.importances.activity import ActivationSum, APoZ, Entropy, MeanActivation
from keras_prune.structured.importances.importance import (
    FPGM,
    L1,
    L2,
    LAMP,
    BatchNormScale,
    Fisher,
    Gradient,
    Importance,
    Random,
    Taylor,
)
from keras_prune.structured.importances.learned import Learned
from keras_prune.structured.importances.second_order import SecondOrder

__all__ = ["NAMES", "resolve_importance"]

NAMES: Mapping[str, type[Importance]] = {
    "activation_sum": ActivationSum,
    "apoz": APoZ,
    "batch_norm_scale": BatchNormScale,
    "entropy": Entropy,
    "fisher": Fisher,
    "fpgm": FPGM,
    "gradient": Gradient,
    "l1": L1,
    "l2": L2,
    "lamp": LAMP,
    "learned": Learned,
    "mean_activation": MeanActivation,
    "random": Random,
    "second_order": SecondOrder,
    "taylor": Taylor,
}


def resolve_importance(value: Any, data: Any = None) -> Importance:
    """Turn a name into an importance, which takes `data` if it has none and needs some."""
    found = resolve(value, Importance, NAMES)  # type: ignore[type-abstract]
    if data is not None and hasattr(found, "data") and found.data is None:
        return dataclasses.replace(found, **{"data": data})
    return found
