"""Targeted dropout: a network that learns to do without the weights that a later prune takes."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_prune.growth import Surgery
from keras_prune.masks.recipe import resolve_recipe
from keras_prune.patterns import Filter, Unstructured
from keras_prune.schedules import ConstantSparsity, Schedule
from keras_prune.schedules.decays import as_schedule
from keras_prune.scope import Scope, check_scope
from keras_prune.strategy import check_fraction
from keras_prune.training.dropout_run import DropoutRun
from keras_prune.training.stepped_callback import SteppedCallback

__all__ = ["TargetedDropout"]


class TargetedDropout(SteppedCallback[DropoutRun]):
    r"""Drops, in each step, some of the weights (or units) that a later prune would take.

    Of the share $\gamma$ of a tensor's weights with the lowest scores, each is 0 in a training step with the
    probability $\alpha$; what is kept is not scaled. So the network learns to do without them, and `kp.prune(model,
    gamma)` afterwards costs little. Which weights are the lowest is chosen anew every so many steps; what is dropped is
    drawn for every step, from the seed and the step's number. A dropped weight has no gradient in that step.

    Weights are dropped inside the training step only: validation, checkpoints and other callbacks see whole weights,
    and nothing is pruned at the end. It goes together with a callback that prunes. In a training loop of your own,
    each step is run inside `with dropout.dropped():`.

    Args:
        schedule: $\gamma$, a fraction in [0, 1), chosen anew every 20 steps; or a schedule of it, which may ramp.
        rate: $\alpha$, a fraction in [0, 1].
        criterion: what a weight is worth, as for `Pruning`.
        pattern: "unstructured" for weights, "filter" for whole outputs: neurons, filters.
        allocation: as for `Pruning`; None for "uniform", the paper's: the same share of each tensor.
        scope: which tensors; None for all kernels.
        seed: an integer.

    Raises:
        ValueError: the rate is no fraction, the pattern is another one, or the model is not built or not compiled.

    Source: Gomez et al. 2019, "Learning sparse networks using targeted dropout", section 3.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> dropout = kp.TargetedDropout(0.75, rate=0.5)
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 4)), verbose=0, callbacks=[dropout])
        >>> dropout.targeted, kp.report(kp.prune(model, 0.75, allocation="uniform")).sparsity
        (0.75, 0.75)
    """

    def __init__(
        self,
        schedule: Schedule | float,
        rate: float = 0.5,
        *,
        criterion: Any = "magnitude",
        pattern: Any = "unstructured",
        allocation: Any = None,
        scope: Scope | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(schedule, numbers.Real) and not isinstance(schedule, bool):
            check_fraction("TargetedDropout: the share of weights", schedule)  # type: ignore[arg-type]
            schedule = ConstantSparsity(float(schedule), frequency=20)
        self.schedule = as_schedule("TargetedDropout", schedule)
        if self.schedule.gives != "sparsity":
            raise ValueError(f"TargetedDropout: the schedule must give a share. Received: {self.schedule}")
        if not isinstance(rate, int | float | np.number) or not 0.0 <= rate <= 1.0:
            raise ValueError(f"TargetedDropout: rate must be a fraction in [0, 1]. Received: rate={rate!r}")
        self.rate = float(rate)
        self.recipe = resolve_recipe(criterion, pattern, allocation, Surgery(margin=0.0), default="uniform")
        if type(self.recipe.pattern) not in (Unstructured, Filter):
            raise ValueError(
                "TargetedDropout: what is dropped are weights or whole outputs. Received: "
                f"pattern={self.recipe.pattern}. Take pattern='unstructured' or pattern='filter'."
            )
        self.recipe.check_data("TargetedDropout")
        check_scope("TargetedDropout", scope)
        self.scope = scope if scope is not None else Scope()
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f"TargetedDropout: seed must be an integer. Received: seed={seed!r}")
        self.seed = seed

    def __repr__(self) -> str:
        return f"TargetedDropout({self.schedule}, rate={self.rate:g}, pattern={self.recipe.pattern})"

    @property
    def targeted(self) -> float:
        """The share of the weights in scope that may be dropped, a fraction in [0, 1)."""
        return self._running().off

    @contextmanager
    def dropped(self) -> Iterator[None]:
        """The scope of one step in a training loop of your own: weights are dropped inside, and whole outside."""
        with self._running().dropped():
            yield

    def on_step(self, steps: int = 1) -> None:
        """Note that the optimizer was called `steps` times more; see `SteppedCallback.on_step`.

        Raises:
            RuntimeError: no step was run inside `dropped()`.
        """
        if steps and self._running().drops == 0:
            raise RuntimeError(
                "TargetedDropout drops nothing by itself in a training loop of your own. Received: a step outside of "
                "dropped(). Write: with dropout.dropped(): step(...)"
            )
        super().on_step(steps)

    # -- what a run needs ---------------------------------------------------------------------------------------------

    def _begin(self, model: keras.Model, history: Any) -> DropoutRun:
        return DropoutRun(
            model,
            self.recipe,
            self.schedule,
            rate=self.rate,
            units=isinstance(self.recipe.pattern, Filter),
            seed=self.seed,
            scope=self.scope,
            owner="TargetedDropout",
            history=history,
        )

    def _shown(self, run: DropoutRun) -> dict[str, float]:
        return {"targeted": run.off}

    def _too_late(self, run: DropoutRun, total: int, end: str) -> str:
        return (
            f"the schedule ends at step {run.last_step}, and training at step {end}: the share "
            f"{self.schedule.final:g} will not be reached. Set end_step to {total} or less, or train longer."
        )

    def _fell_short(self, run: DropoutRun) -> str:
        return (
            f"training ended at step {run.now}, and the schedule ends at step {run.last_step}: the share "
            f"{self.schedule.final:g} was not reached. Let the schedule end earlier, or train longer."
        )

    def _written(self, number: int) -> str:
        raise AssertionError("TargetedDropout prunes nothing")  # its run says so: `settle` returns 0
