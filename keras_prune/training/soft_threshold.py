"""ST-3: soft thresholds, straight-through gradients, a sparsity that rises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from keras_prune.growth import Surgery
from keras_prune.in_step.hidden_weights import HiddenWeights
from keras_prune.in_step.soft_thresholds import SoftThresholds
from keras_prune.masks.bound import Mask
from keras_prune.masks.state import TrainingState
from keras_prune.masks.update import is_single, layout_for
from keras_prune.schedules import Schedule
from keras_prune.training.callbacks import PruningCallback
from keras_prune.training.pruning_run import PruningRun

__all__ = ["SoftThreshold"]


class SoftThreshold(PruningCallback):
    r"""Trains with soft-thresholded weights while all weights learn: $c \cdot sign(w) \max(|w| - t, 0)$ (ST-3).

    The loss sees these weights, and its gradient moves w itself, as if there was no threshold (straight through); so a
    weight that is off goes on learning, comes back when it is among the largest again, and does so from 0 without a
    jump. At each update the schedule says how many weights are off; in each tensor, t is the largest |w| that is off.
    Between two updates a weight may go below t and come back; what is off stays 0 until the next one. The scale c
    brings what is left of an output's $\sum |w|$ back to what it was: $c = 1.01 / (s + 0.01)$ with the share s of
    $\sum |w|$ that is on.

    The model holds the thresholded weights at all times: in validation, in every checkpoint, and at the end, where
    pruned weights are exactly 0.0. What they lack to w is state of the training and is saved with the model.

    Args:
        schedule: target by step, or the sparsity at the end, as for `Pruning`. The paper's rises cubically from 0
            (`PolynomialDecay`).
        criterion: as for `Pruning`; "magnitude" is the paper's.
        pattern: only "unstructured": a threshold is one of single weights.
        allocation: as for `Pruning`; "global" is the paper's.
        rescale: scale what is kept; False for c = 1.
        scope, parts, target: as for `Pruning`.

    Raises:
        ValueError: as for `Pruning`; a pattern has larger units; or a wrapper layer makes the gradient of pruned
            weights 0.

    Source: Vanderschueren and De Vleeschouwer 2023, "Are straight-through gradients and soft-thresholding all you need
    for sparse training?", section 3; c as in their code.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> pruning = kp.SoftThreshold(0.75)
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 4)), batch_size=4, verbose=0, callbacks=[pruning])
        >>> pruning.sparsity
        0.75
    """

    default_allocation: ClassVar[str] = "global"

    def __init__(
        self,
        schedule: Schedule | float,
        criterion: Any = None,
        pattern: Any = None,
        allocation: Any = None,
        *,
        rescale: bool = True,
        **options: Any,
    ) -> None:
        self.rescale = bool(rescale)
        super().__init__(schedule, criterion, pattern, allocation, growth=Surgery(margin=0.0), **options)
        if self.schedule.gives != "sparsity":
            raise ValueError(
                f"SoftThreshold: the schedule must give a sparsity. Received: {self.schedule}. The threshold follows "
                "from it."
            )

    def _hidden_weights(self, state: TrainingState, masks: Sequence[Mask]) -> HiddenWeights:
        return SoftThresholds(state, masks, self.rescale)

    def _begin(self, model: keras.Model, history: Any) -> PruningRun:
        run = super()._begin(model, history)
        try:
            _check_targets(run)
        except ValueError:
            run.abandon()
            raise
        return run


def _check_targets(run: PruningRun) -> None:
    """Refuse tensors that cannot be trained by a soft threshold.

    Raises:
        ValueError: with the paths and the way out.
    """
    for target in run.targets:
        pattern = run.recipe.pattern.at(target.path)
        if not is_single(pattern, layout_for(target.layout, pattern), tuple(target.variable.shape)):
            raise ValueError(
                f"SoftThreshold: a threshold is one of single weights. Received: {pattern} for {target.path!r}. Take "
                "pattern='unstructured', or keras_prune.DynamicPruning(schedule, 'surgery') for larger units."
            )
    under = [target.path for target in run.targets if target.mask is not None and not target.straight_through]
    if under:
        raise ValueError(
            "SoftThreshold: pruned weights go on learning by their gradient, which a wrapper layer makes 0. Received: "
            f"{under} under wrappers. Use the plain layers, whose masks the callback holds; or the wrapper's "
            "straight_through=True."
        )
