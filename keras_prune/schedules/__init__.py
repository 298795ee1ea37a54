"""Step -> target: how much is to be pruned when, and at which steps the masks change."""

from keras_prune.schedules.schedule import (
    ConstantSparsity,
    Cosine,
    Exponential,
    Iterative,
    Linear,
    OneShot,
    Piecewise,
    PolynomialDecay,
    Schedule,
    Span,
    Threshold,
)

__all__ = [
    "ConstantSparsity",
    "Cosine",
    "Exponential",
    "Iterative",
    "Linear",
    "OneShot",
    "Piecewise",
    "PolynomialDecay",
    "Schedule",
    "Span",
    "Threshold",
]
