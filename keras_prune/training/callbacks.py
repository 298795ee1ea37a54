"""Callbacks for `model.fit`: when masks change, and under which recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from keras_prune.criteria import Criterion, Gradient, InputActivation, Magnitude
from keras_prune.devices import Device, resolve_device
from keras_prune.growth import Growth
from keras_prune.in_step.hidden_weights import HiddenWeights, MaskedWeights
from keras_prune.in_step.parts import TrainingPart, check_parts
from keras_prune.masks.bound import Mask
from keras_prune.masks.recipe import Recipe, resolve_recipe
from keras_prune.masks.state import TrainingState
from keras_prune.schedules import Schedule, Threshold
from keras_prune.schedules.decays import as_schedule
from keras_prune.scope import Scope, Skipped, check_scope
from keras_prune.strategy import FROM_TRAINING
from keras_prune.training.pruning_run import PruningRun
from keras_prune.training.stepped_callback import SteppedCallback

__all__ = ["DynamicPruning", "GradientPruning", "Pruning", "PruningCallback", "ThresholdPruning"]


class PruningCallback(SteppedCallback[PruningRun]):
    """Base of the pruning callbacks: drives one `PruningRun` from the hooks of `fit`.

    In a custom training loop there are no hooks; then call `attach(model)` before the step function is traced,
    `on_step()` after each step, and `detach()` at the end.

    Args:
        schedule: as for `Pruning`; likewise all others but `growth`.
        criterion: None for the callback's own, `default_criterion`.
        pattern: None for single weights, or what the target chooses.
        allocation: None for the callback's own, `default_allocation`, or what the target chooses.
        growth: what comes back, a name or an instance; None for nothing.
        scope: which tensors; None for all kernels.
        parts: what else acts in the step.
        target: a device that chooses the tensors and their patterns, or None.

    Example:
        >>> import keras
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> pruning = kp.Pruning(kp.schedules.OneShot(0.5))
        >>> pruning.attach(model)
        >>> pruning.on_step(0)  # before the first step of your loop; then pruning.on_step() after each
        >>> pruning.detach()
        >>> pruning.sparsity
        0.5
    """

    default_criterion: ClassVar[str] = "magnitude"
    default_allocation: ClassVar[str] = "global"

    def __init__(
        self,
        schedule: Schedule | float,
        criterion: Any = None,
        pattern: Any = None,
        allocation: Any = None,
        *,
        growth: Any = None,
        scope: Scope | None = None,
        parts: TrainingPart | Sequence[TrainingPart] = (),
        target: str | Device | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.schedule = as_schedule(name, schedule)
        self.recipe = resolve_recipe(
            self.default_criterion if criterion is None else criterion,
            pattern,
            allocation,
            growth,
            default=self.default_allocation,
        )
        check_scope(name, scope)
        self._check(self.recipe)
        self.recipe.check_data(name)
        self.scope = scope if scope is not None else Scope()
        self.parts = check_parts(name, parts)
        self.target = None if target is None else resolve_device(target)

    def _check(self, recipe: Recipe) -> None:
        """Refuse what this callback cannot do."""

    def __repr__(self) -> str:
        recipe = self.recipe
        chosen = [self.schedule, recipe.growth, recipe.criterion, recipe.pattern, recipe.allocation]
        return f"{type(self).__name__}({', '.join(str(one) for one in chosen if one is not None)})"

    # -- what the user can ask ----------------------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """The share of weights in scope that are pruned and zero, counted in the weights now, a fraction in [0, 1]."""
        return self._running().sparsity

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The variables that are not pruned, each with the reason."""
        return self._running().skipped

    # -- what a run needs ---------------------------------------------------------------------------------------------

    def _begin(self, model: keras.Model, history: Any) -> PruningRun:
        return PruningRun(
            model,
            self.recipe,
            self.schedule,
            scope=self.scope,
            device=self.target,
            parts=self.parts,
            hidden=self._hidden_weights,
            owner=self,
            history=history,
        )

    def _hidden_weights(self, state: TrainingState, masks: Sequence[Mask]) -> HiddenWeights:
        """Return how weights that go on learning out of sight are parted, where the growth lets them."""
        return MaskedWeights(state, masks)

    def _shown(self, run: PruningRun) -> dict[str, float]:
        return {"sparsity": run.off}

    def _counted(self, run: PruningRun) -> dict[str, float]:
        return {"sparsity": run.sparsity}

    def _too_late(self, run: PruningRun, total: int, end: str) -> str:
        return (
            f"the schedule ends at step {run.last_step}, and training at step {end}: the final target "
            f"{self.schedule.final:g} will not be reached. Set end_step to {total} or less, or train longer."
        )

    def _fell_short(self, run: PruningRun) -> str:
        return (
            f"training ended at step {run.now}, and the schedule ends at step {run.last_step}: the final "
            f"target {self.schedule.final:g} was not reached, the sparsity is {run.sparsity:.3g}. Let the schedule "
            "end earlier, or train longer."
        )

    def _written(self, number: int) -> str:
        return (
            f"a callback wrote to {number} pruned weights at the end of training (does one restore the best weights of "
            "an epoch that was less sparse?). They are zero again, so the model is not the one that was best. Let that "
            "callback look at epochs after the schedule's end only, EarlyStopping(start_from_epoch=...), or list it "
            "before this one and evaluate again."
        )


class Pruning(PruningCallback):
    """Prunes to a schedule while `fit` trains.

    Steps are the optimizer's iterations, counted from its creation: a model that is compiled anew counts from 0, one
    that goes on training counts on. Pruned weights are exactly 0.0 from the update on, in every checkpoint, and after
    `fit`; masks stay on the model until `keras_prune.strip`.

    Args:
        schedule: target by step, `keras_prune.schedules`; or a number, the sparsity at the end. Then the schedule
            comes from the `fit` that the callback is in: cubic, from a tenth to seven tenths of its steps, with masks
            that change at every hundredth; the rest is there to recover. `fit` prints which steps these are, and
            `resolved_schedule` has them.
        criterion: what a weight is worth: a name ("magnitude", "random", "gradient", "taylor", "movement", "fisher",
            "snip", "synflow") or an instance, `keras_prune.criteria`.
        pattern: where zeros may fall: "unstructured", "filter", "channel", an instance, `keras_prune.patterns`, or a
            mapping of paths (or regular expressions) to patterns. None takes "unstructured", or what the target
            chooses.
        allocation: how much of each tensor is pruned: "global", "uniform", "erk", "lamp", a mapping of paths (or
            regular expressions) to targets, or an instance, `keras_prune.allocation`. None takes "global"; with a
            target, each tensor gets the share from which zeros make it faster, or more (`allocation.Paying`).
        scope: which tensors are pruned, `keras_prune.Scope`; None for all kernels.
        parts: gradient clipping and objectives that act in the step, `keras_prune.ClipGradients`, `keras_prune.L1`; one
            or several.
        target: the device that the model is for: "android", "ios", "arm64", "web", "x86" (`keras_prune.devices`), or
            one of your own. It chooses the tensors in which its runtime skips zeros, the pattern of each, and how much
            of each is pruned. Heads, which give the model's answers, and embeddings are left alone, unless scope= or a
            mapping names them. What you state yourself holds. Where zeros make nothing faster, a warning says why.
            None for all kernels.

    Raises:
        ValueError: the model is not built or not compiled, nothing is prunable, another callback prunes the same
            tensor, a pattern does not divide a shape, a tensor would be emptied, or weights are not finite.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> pruning = kp.Pruning(kp.schedules.PolynomialDecay(0.0, 0.75, begin_step=0, end_step=8, frequency=2))
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 1)), batch_size=10, verbose=0, callbacks=[pruning])
        >>> pruning.sparsity
        0.75
        >>> pruning = kp.Pruning(0.875)
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 1)), batch_size=4, verbose=0, callbacks=[pruning])
        >>> pruning.sparsity, pruning.resolved_schedule.first_step, pruning.resolved_schedule.last_step
        (0.875, 10, 22)
    """


class ThresholdPruning(PruningCallback):
    r"""Prunes what does not exceed a threshold: $|w| \le \theta$, mean $|g| \le \theta$, or mean $|a| \le \theta$.

    Args:
        threshold: $\theta$, or a `keras_prune.schedules.Threshold` (or a schedule of your own that gives a threshold),
            which says when and how it ramps, or that it is a factor of the tensor's standard deviation.
        on: "weight"; "gradient", the mean |g| of training since the last update, or over `data`; "activation", the
            mean |a| of the input that a weight reads, over `data`.
        data: what gradients or activations are measured on.
        pattern: where zeros may fall; a unit goes when its own score does not exceed the threshold.
        frequency: steps between two updates, when `threshold` is a number; gradients are first seen after so many
            steps.
        scope, parts, target: as for `Pruning`.

    Source: Han et al. 2015, "Learning both weights and connections", section 3.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> model.compile(keras.optimizers.SGD(0.0), "mse")
        >>> model.layers[0].set_weights([np.array([[0.5, 0.01], [-0.02, 1.0]])])
        >>> pruning = kp.ThresholdPruning(0.02)
        >>> _ = model.fit(np.ones((4, 2)), np.ones((4, 2)), verbose=0, callbacks=[pruning])
        >>> model.layers[0].get_weights()[0].tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """

    default_allocation: ClassVar[str] = "uniform"
    MEASURES = ("weight", "gradient", "activation")

    def __init__(
        self,
        threshold: float | Schedule,
        on: str = "weight",
        *,
        data: Any = None,
        pattern: Any = None,
        frequency: int = 100,
        **options: Any,
    ) -> None:
        if on not in self.MEASURES:
            raise ValueError(f"ThresholdPruning: on must be one of {self.MEASURES}. Received: on={on!r}")
        self.on = on
        if on == "activation" and data is None:
            raise ValueError(
                "ThresholdPruning: on='activation' is measured on data. Received: data=None. "
                "Give a few hundred samples: data=x."
            )
        if isinstance(threshold, Schedule) and threshold.gives != "threshold":
            raise TypeError(
                "ThresholdPruning: threshold must be a number or a schedules.Threshold. Received: "
                f"{threshold}, which gives a sparsity. Use Pruning for it."
            )
        if not isinstance(threshold, Schedule):
            first = frequency if on == "gradient" and data is None else 0
            threshold = Threshold(threshold, begin_step=first, frequency=frequency)
        criterion: Criterion = Magnitude()
        if on == "gradient":
            criterion = Gradient(data=data)
        elif on == "activation":
            criterion = InputActivation(data=data)
        super().__init__(threshold, criterion, pattern, **options)

    def __repr__(self) -> str:
        return f"ThresholdPruning({self.schedule}, on={self.on!r})"


class GradientPruning(PruningCallback):
    """Prunes to a schedule by the gradients that training computes anyway, without a second pass.

    Args:
        schedule: target by step, or the sparsity at the end, as for `Pruning`; it begins at step 1 or later, when
            gradients have been seen.
        criterion: a name or an instance that takes gradients: "taylor" (|w g|), "gradient" (|g|), "fisher",
            "movement", "snip"; None for "taylor".
        pattern, allocation, scope, parts, target: as for `Pruning`.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> pruning = kp.GradientPruning(kp.schedules.OneShot(0.75, step=5))
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 4)), batch_size=10, verbose=0, callbacks=[pruning])
        >>> pruning.sparsity
        0.75
    """

    default_criterion: ClassVar[str] = "taylor"

    def _check(self, recipe: Recipe) -> None:
        if not recipe.criterion.needs & FROM_TRAINING:
            raise ValueError(
                f"GradientPruning: the criterion must take gradients. Received: {recipe.criterion}, which needs "
                f"{sorted(recipe.criterion.needs)}. Use Pruning for it."
            )


class DynamicPruning(PruningCallback):
    """Prunes to a schedule, and lets pruned weights come back while training goes on.

    With "surgery" all weights go on learning, the pruned ones out of sight. With "set" and "rigl" the weights that come
    back start at 0, and so does what the optimizer keeps of them (momentum, moments): it sees no gradient of what is
    pruned. (Under a wrapper with straight-through updates, pruned weights go on learning in any case.) The number of
    zeros follows the schedule exactly; with a constant schedule only their places change. Updates go on until the
    schedule's `end_step`.

    Args:
        schedule: target by step, or the sparsity at the end, as for `Pruning`.
        growth: "surgery", "set", "rigl" or an instance, `keras_prune.growth`.
        criterion: as for `Pruning`.
        pattern: as for `Pruning`; its units have to be the same weights always (not N:M).
        allocation: as for `Pruning`; None for "erk". "erk" and "uniform" keep each tensor's share constant, as in the
            papers of SET and RigL.
        scope, parts, target: as for `Pruning`.

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> steady = kp.schedules.ConstantSparsity(0.5, begin_step=1, end_step=8, frequency=2)
        >>> pruning = kp.DynamicPruning(steady, growth="rigl")
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 4)), batch_size=10, verbose=0, callbacks=[pruning])
        >>> pruning.sparsity
        0.5
    """

    default_allocation: ClassVar[str] = "erk"

    def __init__(
        self,
        schedule: Schedule | float,
        growth: str | Growth = "rigl",
        criterion: Any = None,
        pattern: Any = None,
        allocation: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(schedule, criterion, pattern, allocation, growth=growth, **options)

    def _check(self, recipe: Recipe) -> None:
        if self.schedule.gives == "threshold":
            raise ValueError(
                f"DynamicPruning: the schedule must give a sparsity. Received: {self.schedule}. The two thresholds of "
                "surgery follow the sparsity; growth.Surgery(margin=...) sets their distance."
            )
        if not recipe.pattern.fixed_units:
            raise ValueError(
                f"DynamicPruning: nothing can grow back in {recipe.pattern}, whose units are not fixed. "
                "Take Block or Unstructured."
            )
