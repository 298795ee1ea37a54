"""Names that stand for importances, and the data that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_prune.strategy import resolve
from keras_prune.structured.importances.activity import ActivationSum, APoZ, Entropy, MeanActivation
from keras_prune.structured.importances.importance import Importance
from keras_prune.structured.importances.learned import Learned
from keras_prune.structured.importances.of_gradients import Fisher, Gradient, Taylor
from keras_prune.structured.importances.of_weights import FPGM, L1, L2, BatchNormScale, LAMPScore, Random
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
    "lamp": LAMPScore,
    "learned": Learned,
    "mean_activation": MeanActivation,
    "random": Random,
    "second_order": SecondOrder,
    "taylor": Taylor,
}


def resolve_importance(value: Any, data: Any = None) -> Importance:
    """Turn a name into an importance, which takes `data` if it has none and needs some."""
    return resolve(value, Importance, {**NAMES, **Importance.known_names}).on(data)
