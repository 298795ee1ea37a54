"""One global target -> a target for each tensor: how much of each layer is pruned."""

from keras_prune.allocation.allocation import ERK, LAMP, Allocation, Explicit, Global, Sensitivity, Uniform
from keras_prune.allocation.allocation import lamp_scores as lamp_scores
from keras_prune.allocation.paying import Paying
from keras_prune.arrays.splitting import Scored, Share

__all__ = ["ERK", "LAMP", "Allocation", "Explicit", "Global", "Paying", "Scored", "Sensitivity", "Share", "Uniform"]
