"""Step -> target: how much is to be pruned when, and at which steps the masks change."""

from keras_prune.schedules.decays import Cosine, Exponential, Linear, PolynomialDecay
from keras_prune.schedules.phases import Phases
from keras_prune.schedules.piecewise import Piecewise
from keras_prune.schedules.rounds import Iterative, OneShot
from keras_prune.schedules.schedule import Schedule
from keras_prune.schedules.spans import Span
from keras_prune.schedules.threshold import Threshold
from keras_prune.schedules.timed import ConstantSparsity

__all__ = [
    "ConstantSparsity",
    "Cosine",
    "Exponential",
    "Iterative",
    "Linear",
    "OneShot",
    "Phases",
    "Piecewise",
    "PolynomialDecay",
    "Schedule",
    "Span",
    "Threshold",
]
