"""Callbacks for `model.fit`: when masks change, and under which recipe."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras

from keras_prune.criteria import Criterion, Gradient, InputActivation, Magnitude
from keras_prune.devices import Device, resolve_device
from keras_prune.growth import Growth
from keras_prune.masks.recipe import Recipe, resolve_recipe
from keras_prune.schedules import PolynomialDecay, Schedule, Threshold
from keras_prune.scope import Scope, Skipped, check_scope
from keras_prune.statistics import INPUTS, WITHOUT_DATA
from keras_prune.strategy import FROM_TRAINING, ONLY_FROM_TRAINING, Measuring, check_fraction, resolve
from keras_prune.training.parts import Part, check_parts
from keras_prune.training.pruning_run import PruningRun
from keras_prune.training.stepped_callback import SteppedCallback

__all__ = ["DynamicPruning", "GradientPruning", "Pruning", "PruningCallback", "ThresholdPruning"]


class PruningCallback(SteppedCallback[PruningRun]):
    """Base of the pruning callbacks: drives one `PruningRun` from the hooks of `fit`.

    In a custom training loop there are no hooks; then call `attach(model)` before the step function is traced,
    `on_step()` after each step, and `detach()` at the end.

    Args:
        recipe: how masks are found.
        schedule: when, and how much.
        scope: which tensors.
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

    def __init__(
        self,
        recipe: Recipe,
        schedule: Schedule | float,
        scope: Scope | None,
        parts: Sequence[Part],
        target: str | Device | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        schedule = as_schedule(name, schedule)
        check_scope(name, scope)
        for one in (recipe.criterion, recipe.growth):
            if one is not None:
                check_data(name, one)
        self.recipe = recipe
        self.schedule = schedule
        self.scope = scope if scope is not None else Scope()
        self.parts = check_parts(name, parts)
        self.target = None if target is None else resolve_device(target)

    @abstractmethod
    def __repr__(self) -> str:
        raise NotImplementedError

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
            owner=self,
            history=history,
        )

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


def as_schedule(name: str, schedule: Any) -> Schedule:
    """Return a schedule; for a number, one that comes to that sparsity in the training that it is given to.

    Cubic, from a tenth to seven tenths of the training, so that the rest of it is there to recover.

    Raises:
        TypeError: it is neither. ValueError: the number is no fraction in [0, 1).
    """
    if isinstance(schedule, numbers.Real) and not isinstance(schedule, bool):
        check_fraction(f"{name}: the sparsity", schedule)  # type: ignore[arg-type]
        return PolynomialDecay(0.0, float(schedule), begin="10%", end="70%")
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"{name}: schedule must be a keras_prune.schedules.Schedule, or a number, the sparsity at the end. "
            f"Received: {schedule!r} of type {type(schedule).__name__}."
        )
    return schedule


def check_data(name: str, strategy: Measuring, *, training: bool = True) -> None:
    """Refuse a criterion or a growth whose statistics nobody can give: neither training, nor data, nor the tensor.

    Raises:
        ValueError: with the way out.
    """
    served = WITHOUT_DATA | (strategy.from_training if training else frozenset())
    served |= frozenset() if strategy.data is None else strategy.from_data
    missing = sorted(strategy.needs - served)
    if not missing:
        return
    kind = type(strategy).__name__
    if not training and (ONLY_FROM_TRAINING.intersection(missing) or not strategy.takes_data):
        raise ValueError(
            f"{name}: {kind} takes {missing} from training. Received: no training. "
            f"Use a callback: model.fit(..., callbacks=[keras_prune.GradientPruning(schedule, {kind}())])."
        )
    if not strategy.takes_data:
        raise ValueError(
            f"{name}: {kind} takes {missing} from data. Received: a {strategy.kind} without data. Give the class a "
            "field `data: Any = keras_prune.strategy.data_field()`."
        )
    place = "criteria." if type(strategy).__module__ == Criterion.__module__ else ""
    example = "x" if strategy.needs <= INPUTS | WITHOUT_DATA else "(x, y)"
    raise ValueError(
        f"{name}: {kind} takes {missing} from data. Received: data=None. "
        f"Write {place}{kind}(data={example}) with a few hundred samples."
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
        allocation: how much each tensor gives: "global", "uniform", "erk", "lamp", a mapping of paths (or regular
            expressions) to targets, or an instance, `keras_prune.allocation`. None takes "global"; with a target,
            each tensor gets the share from which zeros make it faster, or more (`allocation.Paying`).
        scope: which tensors, `keras_prune.Scope`; None for all kernels.
        parts: gradient clipping and objectives that act in the step, `keras_prune.ClipGradients`, `keras_prune.L1`; one
            or several.
        target: the device that the model is for: "android", "ios", "arm64", "web", "x86" (`keras_prune.devices`). It
            chooses the tensors in which its runtime skips zeros, the pattern of each and how much it gives, and leaves
            alone what gives the answers, and embeddings, unless scope= or a mapping names them; what is stated holds.
            Where zeros will speed up nothing, a warning says why. None for all kernels.

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

    def __init__(
        self,
        schedule: Schedule | float,
        criterion: Any = "magnitude",
        pattern: Any = None,
        allocation: Any = None,
        *,
        scope: Scope | None = None,
        parts: Sequence[Part] = (),
        target: str | Device | None = None,
    ) -> None:
        recipe = resolve_recipe(criterion, pattern, allocation, default="global")
        super().__init__(recipe, schedule, scope, parts, target)

    def __repr__(self) -> str:
        return f"Pruning({self.schedule}, {self.recipe.criterion}, {self.recipe.pattern}, {self.recipe.allocation})"


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
        scope: as for `Pruning`.
        parts: as for `Pruning`.
        target: as for `Pruning`.

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

    MEASURES = ("weight", "gradient", "activation")

    def __init__(
        self,
        threshold: float | Schedule,
        on: str = "weight",
        *,
        data: Any = None,
        pattern: Any = None,
        frequency: int = 100,
        scope: Scope | None = None,
        parts: Sequence[Part] = (),
        target: str | Device | None = None,
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
        recipe = resolve_recipe(criterion, pattern, None, default="uniform")
        super().__init__(recipe, threshold, scope, parts, target)

    def __repr__(self) -> str:
        return f"ThresholdPruning({self.schedule}, on={self.on!r})"


class GradientPruning(PruningCallback):
    """Prunes to a schedule by the gradients that training sees anyway; no second pass.

    Args:
        schedule: target by step, or the sparsity at the end, as for `Pruning`; it begins at step 1 or later, when
            gradients have been seen.
        criterion: a name or an instance that takes gradients: "taylor" (|w g|), "gradient" (|g|), "fisher",
            "movement", "snip".
        pattern: as for `Pruning`.
        allocation: as for `Pruning`.
        scope: as for `Pruning`.
        parts: as for `Pruning`.
        target: as for `Pruning`.

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

    def __init__(
        self,
        schedule: Schedule | float,
        criterion: Any = "taylor",
        pattern: Any = None,
        allocation: Any = None,
        *,
        scope: Scope | None = None,
        parts: Sequence[Part] = (),
        target: str | Device | None = None,
    ) -> None:
        chosen = resolve(criterion, Criterion)  # type: ignore[type-abstract]
        if not chosen.needs & FROM_TRAINING:
            raise ValueError(
                f"GradientPruning: the criterion must take gradients. Received: {chosen}, which needs "
                f"{sorted(chosen.needs)}. "
                "Use Pruning for it."
            )
        recipe = resolve_recipe(chosen, pattern, allocation, default="global")
        super().__init__(recipe, schedule, scope, parts, target)

    def __repr__(self) -> str:
        return f"GradientPruning({self.schedule}, {self.recipe.criterion})"


class DynamicPruning(PruningCallback):
    """Prunes to a schedule, and lets pruned weights come back while training goes on.

    With "surgery" all weights go on learning, the pruned ones out of sight. With "set" and "rigl" the weights that come
    back start at 0, and the optimizer's momentum or moments with them: it sees no gradient of what is pruned. (Under a
    wrapper with straight-through updates they learn on in any case.) The number of zeros follows the schedule exactly;
    with a constant schedule only their places change. Updates go on until the schedule's `end_step`.

    Args:
        schedule: target by step, or the sparsity at the end, as for `Pruning`.
        growth: "surgery", "set", "rigl" or an instance, `keras_prune.growth`.
        criterion: as for `Pruning`.
        pattern: as for `Pruning`; its units have to be the same weights always (not N:M).
        allocation: as for `Pruning`, None for "erk"; "erk" and "uniform" keep each tensor's share constant, as SET and
            RigL have it.
        scope: as for `Pruning`.
        parts: as for `Pruning`.
        target: as for `Pruning`.

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

    def __init__(
        self,
        schedule: Schedule | float,
        growth: str | Growth = "rigl",
        criterion: Any = "magnitude",
        pattern: Any = None,
        allocation: Any = None,
        *,
        scope: Scope | None = None,
        parts: Sequence[Part] = (),
        target: str | Device | None = None,
    ) -> None:
        recipe = resolve_recipe(criterion, pattern, allocation, growth, default="erk")
        schedule = as_schedule("DynamicPruning", schedule)
        if schedule.gives == "threshold":
            raise ValueError(
                f"DynamicPruning: the schedule must give a sparsity. Received: {schedule}. The two thresholds of "
                "surgery follow the sparsity; growth.Surgery(margin=...) sets their distance."
            )
        if not recipe.pattern.fixed_units:
            raise ValueError(
                f"DynamicPruning: nothing can grow back in {recipe.pattern}, whose units are not fixed. "
                "Take Block or Unstructured."
            )
        super().__init__(recipe, schedule, scope, parts, target)

    def __repr__(self) -> str:
        return f"DynamicPruning({self.schedule}, {self.recipe.growth}, {self.recipe.criterion})"
