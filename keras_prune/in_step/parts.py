"""What a user adds to the compiled step: gradient clipping, the L1 objective, parts of one's own.

All of it is traced with the optimizer's step, on every backend; nothing here runs on the host while training.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops
from keras.saving import register_keras_serializable

from keras_prune.masks.bound import select
from keras_prune.models.variables import dense
from keras_prune.optimizers.finding import StepPart, rates_of
from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Span
from keras_prune.strategy import Strategy, to_numbers

__all__ = [
    "L1",
    "ActivePart",
    "ClipGradients",
    "MaskedGradients",
    "Part",
    "RampLevel",
    "TrainingPart",
    "check_parts",
]

_register = register_keras_serializable(package="keras_prune")


class MaskedGradients:
    """Makes gradients of what is off 0 before the optimizer sees them, so that its state gathers nothing there.

    Args:
        masks: for each weight (by id) its mask.
    """

    def __init__(self, masks: Mapping[int, keras.Variable]) -> None:
        self.masks = masks

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Select the gradients of what is on."""
        return [
            g if g is None or id(v) not in self.masks else select(self.masks[id(v)], dense(g))
            for g, v in zip(gradients, variables, strict=True)
        ]

    def after(self, variables: list[keras.Variable]) -> None:
        """Nothing: the masks hold the weights."""


@dataclasses.dataclass(frozen=True)
class TrainingPart(Strategy):
    """Base of what acts in the training step beside a pruning callback: `bind` makes it act on a model.

    `Part` acts on one weight at a time; `keras_prune.structured` has parts that act on units.
    """

    kind: ClassVar[str] = "part"
    ramp: Schedule | None = dataclasses.field(default=None, kw_only=True)
    """A schedule whose share of its final value scales the part; None: full strength at once."""

    @property
    def on_biases(self) -> bool:
        """Whether the part acts on biases too, besides the tensors in scope."""
        return False

    @abstractmethod
    def bind(self, model: keras.Model, weights: Sequence[int], level: Any, optimizer: Any) -> StepPart:
        """Return what acts in the step of an optimizer.

        Args:
            model: compiled.
            weights: ids of the variables in scope.
            level: where the ramp stands, from 0 to 1: a scalar variable, or 1.0.
            optimizer: gives the learning rate, by `rates_of`. A model with several optimizers has one part for each,
                which sees the variables that this one moves.
        """


@dataclasses.dataclass(frozen=True)
class Part(TrainingPart):
    """Something that acts in the training step beside any pruning callback: `kp.Pruning(..., parts=[kp.L1(1e-4)])`.

    `before` may change the gradient of a weight; `after` may change the weight itself, once the optimizer has moved it.
    Both are traced with the step, so they see tensors and use `keras.ops`.

    Example:
        >>> class Shrink(Part):
        ...     def before(self, gradient, weight, level):
        ...         return gradient
        ...
        ...     def after(self, weight, learning_rate, level):
        ...         return 0.5 * ops.convert_to_tensor(weight)
        >>> Shrink().after([2.0, 4.0], 0.1, 1.0).numpy()
        array([1., 2.], dtype=float32)
    """

    @abstractmethod
    def before(self, gradient: Any, weight: Any, level: Any) -> Any:
        """Return the gradient that the optimizer is to use, of the weight's shape.

        Args:
            gradient: one tensor of the weight's shape, for an Embedding too.
            weight: the variable, before the step.
            level: where the ramp stands, from 0 to 1.
        """

    def after(self, weight: Any, learning_rate: Any, level: Any) -> Any | None:
        """Return the weight's new value, of its shape, or None to leave it.

        Args:
            weight: the variable, after the step.
            learning_rate: a scalar; 0 in a call that only adds up gradients.
            level: where the ramp stands, from 0 to 1.
        """
        return None

    def bind(self, model: keras.Model, weights: Sequence[int], level: Any, optimizer: Any) -> StepPart:
        """Return this part at work on each of the weights by itself."""
        return ActivePart(self, weights, level, optimizer)


def check_parts(name: str, parts: TrainingPart | Sequence[TrainingPart]) -> tuple[TrainingPart, ...]:
    """Return the parts of a callback; a single one may stand for itself.

    Raises:
        TypeError: one is no part, or its ramp is no schedule.
    """
    found = (parts,) if isinstance(parts, TrainingPart) else tuple(parts)
    for part in found:
        if not isinstance(part, TrainingPart):
            raise TypeError(f"{name}: each of parts must be a keras_prune.Part. Received: {part!r}")
        if part.ramp is not None and not isinstance(part.ramp, Schedule):
            raise TypeError(
                f"{name}: the ramp of a part must be a keras_prune.schedules.Schedule, or None. Received: "
                f"{type(part).__name__}(ramp={part.ramp!r})"
            )
    return found


@_register
@dataclasses.dataclass(frozen=True)
class ClipGradients(Part):
    r"""$|g| > \gamma$ becomes $\gamma$ with the sign of g, element by element, on the tensors in scope and on biases.

    Args:
        gamma: $\gamma$, above 0.

    Example:
        >>> ClipGradients(gamma=1.0).before(ops.convert_to_tensor([-3.0, 0.5]), None, 1.0).numpy()
        array([-1. ,  0.5], dtype=float32)
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        to_numbers(self, "gamma")
        if not self.gamma > 0:
            raise ValueError(f"ClipGradients: gamma must be above 0. Received: gamma={self.gamma}")
        if self.ramp is not None:
            raise ValueError(f"ClipGradients has no strength to ramp. Received: ramp={self.ramp}")

    @property
    def on_biases(self) -> bool:
        return True

    def before(self, gradient: Any, weight: Any, level: Any) -> Any:
        return ops.clip(gradient, -self.gamma, self.gamma)


@_register
@dataclasses.dataclass(frozen=True)
class L1(Part):
    r"""The objective $f = g + \lambda h$ with $h = \sum |w|$, by its gradient or by its proximal step.

    Plain: $\lambda\, sign(w)$ is added to the gradient; weights come near zero but do not reach it. Proximal: after
    the optimizer's step $w \leftarrow sign(w) \max(|w| - \eta \lambda, 0)$ with the learning rate $\eta$, which gives
    exact zeros. The loss that Keras reports is g alone.

    Args:
        strength: $\lambda$, 0 or more.
        ramp: a schedule; $\lambda$ at a step is `strength * ramp(step) / ramp.final`.
        biases: whether $h$ counts the biases too.
        proximal: take the proximal step.

    Source: Parikh and Boyd 2014, "Proximal algorithms", section 6.5.2 (soft thresholding).

    Example:
        >>> L1(0.5, proximal=True).after(ops.convert_to_tensor([1.0, -0.1]), 0.4, 1.0).numpy()
        array([0.8, 0. ], dtype=float32)
    """

    strength: float = 1e-4
    biases: bool = False
    proximal: bool = False

    def __post_init__(self) -> None:
        to_numbers(self, "strength")
        if not self.strength >= 0:
            raise ValueError(f"L1: strength must be 0 or more. Received: strength={self.strength}")

    @property
    def on_biases(self) -> bool:
        return self.biases

    def before(self, gradient: Any, weight: Any, level: Any) -> Any:
        if self.proximal:
            return gradient
        weight = ops.convert_to_tensor(weight)
        return gradient + ops.cast(self.strength * level, gradient.dtype) * ops.cast(ops.sign(weight), gradient.dtype)

    def after(self, weight: Any, learning_rate: Any, level: Any) -> Any | None:
        if not self.proximal:
            return None
        weight = ops.convert_to_tensor(weight)
        bound = ops.cast(self.strength * level * learning_rate, weight.dtype)
        # Selected, not multiplied by the sign: the zeros are positive.
        return ops.where(ops.abs(weight) > bound, weight - ops.sign(weight) * bound, ops.zeros_like(weight))


class ActivePart:
    """A `Part` at work on given weights.

    Args:
        part: the strategy.
        weights: ids of the variables that it acts on.
        level: where its ramp stands, a scalar variable, or 1.0.
        optimizer: gives the learning rate.
    """

    def __init__(self, part: Part, weights: Sequence[int], level: keras.Variable | float, optimizer: Any) -> None:
        self.part = part
        self.weights = frozenset(weights)
        self.level = level
        self.optimizer = optimizer

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Change the gradients of the weights that the part acts on."""
        return [
            self.part.before(dense(g), v, self.level) if g is not None and id(v) in self.weights else g
            for g, v in zip(gradients, variables, strict=True)
        ]

    def after(self, variables: list[keras.Variable]) -> None:
        """Change the weights."""
        for variable, rate in zip(variables, rates_of(self.optimizer, variables), strict=True):
            if id(variable) in self.weights:
                value = self.part.after(variable, rate, self.level)
                if value is not None:
                    variable.assign(value)


class RampLevel:
    """The value of a ramp at its last change, also where a training goes on between two changes.

    Args:
        ramp: the schedule.
        variable: a scalar that takes the share of the ramp's final value.
    """

    def __init__(self, ramp: Schedule, variable: keras.Variable) -> None:
        self.ramp = self._asked = ramp
        self.variable = variable

    def resolve(self, span: Span) -> None:
        """Put the ramp into the steps of a training."""
        self.ramp = self._asked.resolve(span)

    def changes(self, step: int) -> bool:
        """Whether the ramp changes at a step: where it says so, and always where its final value begins."""
        return self.ramp.should_update(step) or step == self.ramp.target_step

    def start(self, step: int) -> None:
        """Set the variable for a training that begins at a step or goes on from it."""
        changes = range(min(step, self.ramp.last_step), self.ramp.first_step - 1, -1)
        self._set(next(filter(self.changes, changes), min(step, self.ramp.first_step)))

    def follow(self, passed: range) -> None:
        """Set the variable if the ramp changes at one of the steps that have passed."""
        last = next(filter(self.changes, reversed(passed)), None)
        if last is not None:
            self._set(last)

    def _set(self, step: int) -> None:
        self.variable.assign(self.ramp(step) / self.ramp.final if self.ramp.final else 0.0)
