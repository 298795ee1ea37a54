"""What an earlier run of the same training left: its masks are taken up, and what was lost is named."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from keras_prune.masks.mask_set import MaskSet
from keras_prune.masks.state import TrainingState
from keras_prune.models.variables import read
from keras_prune.schedules import Schedule

__all__ = ["EarlierRun"]


class EarlierRun:
    """What an earlier run left in the file that was loaded, in the model's state, or in the weights.

    Args:
        owner: the callback's name, for messages.
        state: of the model.
        keys: of the targets, as in files.

    Attributes:
        found: whether masks of an earlier run were found.
    """

    def __init__(self, owner: str, state: TrainingState, keys: Sequence[str]) -> None:
        self._owner = owner
        self._state = state
        self._keys = tuple(keys)
        self.found = False

    def knows(self, key: str) -> bool:
        """Return whether the mask of a target was restored."""
        return f"mask:{key}" in self._state.restored

    def take_masks(self, masks: MaskSet, *, begun: bool) -> None:
        """Take up the masks: from the file, from the variable, or from the zeros of a training that had begun.

        Args:
            masks: of the targets, in the order of their keys.
            begun: whether the schedule had begun.
        """
        restored = [self.knows(key) for key in self._keys]
        self.found = any(restored)
        for mask, known in zip(masks, restored, strict=True):
            values = mask.read()
            if not known and begun:
                weight = read(mask.target.variable)
                if not weight.all():
                    values = weight != 0
                    self.found = True
            mask.put(np.array(values))

    def refuse_lost_weights(self, schedule: Schedule, now: int) -> None:
        """Refuse to go on where the weights that a schedule rewinds to are not known.

        Args:
            schedule: in steps.
            now: optimizer steps done.

        Raises:
            ValueError: with the ways out.
        """
        rewind = schedule.rewind_step
        if rewind is not None and now > rewind and "rewind:0" not in self._state.restored:
            raise ValueError(
                f"{self._owner}: the weights of step {rewind}, to which the schedule rewinds, are not known: the "
                f"optimizer has done {now} steps. Load the file of an earlier run by keras_prune.load_model, "
                "which brings them along; or compile the model again to count from 0; or set rewind_to to "
                f"{now} or later."
            )

    def warn_of_late_begin(self, schedule: Schedule, now: int) -> None:
        """Warn of a schedule that was over before this training began, if nothing was pruned by it.

        Args:
            schedule: in steps.
            now: optimizer steps done.
        """
        if now > schedule.first_step and not self.found and now >= schedule.last_step and schedule.final > 0:
            warnings.warn(
                f"{self._owner}: its schedule ends at step {schedule.last_step}, and the optimizer has done "
                f"{now} steps already, so nothing will be pruned. Steps are the optimizer's iterations: compile "
                f"the model again to count from 0, or begin the schedule at {now}.",
                stacklevel=2,
            )

    def warn_of_lost_state(self, wanted: Sequence[str]) -> None:
        """Warn of masks that were found without what else belongs to them.

        Args:
            wanted: keys of the state of the step.
        """
        if self.found and any(key not in self._state.restored for key in wanted):
            warnings.warn(
                f"{self._owner} goes on with a training whose masks were found, but not its sums of gradients or "
                "hidden weights, which start from zero. To bring them along, load the file with "
                "keras_prune.load_model, or use BackupAndRestore in the same fit.",
                stacklevel=2,
            )
