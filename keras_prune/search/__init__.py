"""What a model can do without, found by trying: tensor by tensor, and by a search for the best strategy."""

from keras_prune.search.result import Result, Tried
from keras_prune.search.sensitivities import Sensitivities, TensorSensitivity
from keras_prune.search.sensitivity import sensitivity
from keras_prune.search.study import study
from keras_prune.trials.choice import PruningStrategy
from keras_prune.trials.objectives import Objective
from keras_prune.trials.space import Space

__all__ = [
    "Objective",
    "PruningStrategy",
    "Result",
    "Sensitivities",
    "Space",
    "TensorSensitivity",
    "Tried",
    "sensitivity",
    "study",
]
