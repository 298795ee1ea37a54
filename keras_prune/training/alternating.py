"""AC/DC: dense and compressed phases in turn."""

from __future__ import annotations

import numbers
from typing import Any, ClassVar

from keras_prune.growth import Alternation
from keras_prune.schedules import Phases, Schedule
from keras_prune.training.callbacks import PruningCallback

__all__ = ["Alternating"]


class Alternating(PruningCallback):
    """Trains in dense and compressed phases in turn, the last one compressed (AC/DC).

    At the begin of a compressed phase the weights with the lowest scores are pruned, and stay 0 to its end; then all
    come back, from 0, and the momentum of every weight of the model is cleared. So what is pruned is chosen anew in
    each phase, by weights that have all been trained.

    The model is sparse in compressed phases and dense in the others: validation and checkpoints see what is in force.
    It ends sparse, with exact zeros.

    Args:
        schedule: `keras_prune.schedules.Phases`, which has the lengths of the phases; or a number, the sparsity of the
            compressed ones. Then the warm-up is a tenth of the training, phases are a twentieth, and the last one
            begins at 85 %.
        criterion, pattern, allocation, scope, parts, target: as for `Pruning`; "magnitude" and "global" are the
            paper's. Not a pattern without fixed units (N:M).

    Raises:
        ValueError: as for `Pruning`.

    Source: Peste et al. 2021, "AC/DC: Alternating compressed/decompressed training of deep neural networks",
    algorithm 1 and section 4.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        >>> pruning = kp.Alternating(kp.schedules.Phases(0.75, begin="2 epochs", end="8 epochs", sparse=10, dense=10))
        >>> history = model.fit(np.ones((40, 8)), np.ones((40, 4)), 4, epochs=10, verbose=0, callbacks=[pruning])
        >>> [round(sparsity, 2) for sparsity in history.history["sparsity"]]
        [0.0, 0.75, 0.0, 0.75, 0.0, 0.75, 0.0, 0.75, 0.75, 0.75]
    """

    default_allocation: ClassVar[str] = "global"

    def __init__(
        self,
        schedule: Schedule | float,
        criterion: Any = None,
        pattern: Any = None,
        allocation: Any = None,
        **options: Any,
    ) -> None:
        if isinstance(schedule, numbers.Real) and not isinstance(schedule, bool):
            schedule = Phases(float(schedule))
        super().__init__(schedule, criterion, pattern, allocation, growth=Alternation(), **options)
        if not isinstance(self.schedule, Phases):
            raise TypeError(
                "Alternating: schedule must be a keras_prune.schedules.Phases, or a number, the sparsity of compressed "
                f"phases. Received: {self.schedule!r}. For other schedules there is keras_prune.DynamicPruning."
            )
        if not self.recipe.pattern.fixed_units:
            raise ValueError(
                f"Alternating: nothing can come back in {self.recipe.pattern}, whose units are not fixed. "
                "Take Block or Unstructured."
            )
