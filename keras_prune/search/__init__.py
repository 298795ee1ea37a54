"""What a model can do without, found by trying."""

from keras_prune.search.sensitivities import Sensitivities, TensorSensitivity
from keras_prune.search.sensitivity import sensitivity

__all__ = ["Sensitivities", "TensorSensitivity", "sensitivity"]
