"""Penalties that drive units to zero while a model trains: group lasso, growing regularisation, network slimming.

These are parts of a pruning callback, as gradient clipping and the L1 term are:
`kp.StructuredPruning(params=0.5, ..., parts=[kp.structured.GroupLasso(1e-3)])`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl
from keras import ops
from keras.saving import register_keras_serializable

from keras_prune.in_step.parts import L1, ActivePart, TrainingPart
from keras_prune.keras_seam import layers_in
from keras_prune.models.variables import dense
from keras_prune.optimizers.finding import StepPart, rates_of
from keras_prune.structured.analysis.groups import Analysis, analyse

__all__ = ["GroupLasso", "GrowingPenalty", "GrowingRegularisation", "Slimming", "UnitPart", "UnitSlices"]

_register = register_keras_serializable(package="keras_prune_structured")


class UnitSlices:
    """The trainable weights of each unit, for use in the traced step.

    A weight of a kernel that lies on a unit of its inputs and on one of its outputs is of both; where the same unit
    lies along two axes of a variable, a weight on both counts twice.

    Args:
        analysis: of the model.

    Attributes:
        size: the number of units.
        counts: how many weights each unit has, `[units + 1]`; the last entry stands for what is of no unit.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.size = analysis.size
        self.counts: npt.NDArray[np.float32] = np.zeros(self.size + 1, np.float32)
        self._places: dict[int, tuple[keras.Variable, list[tuple[int, npt.NDArray[np.int32]]]]] = {}
        for slot in analysis.slots:
            if slot.variable is not None and slot.variable.trainable and (slot.units >= 0).any():
                units = np.where(slot.units < 0, self.size, slot.units).astype(np.int32)
                self._places.setdefault(id(slot.variable), (slot.variable, []))[1].append((slot.axis, units))
                np.add.at(self.counts, units, math.prod(slot.variable.shape) // len(units))
        self.counts[-1] = 0.0

    def __contains__(self, variable: keras.Variable) -> bool:
        return id(variable) in self._places

    def squares(self) -> Any:
        r"""Return $\lVert w_u \rVert^2$ for each unit, `[units + 1]`."""
        total = ops.zeros((self.size + 1,), "float32")
        for variable, axes in self._places.values():
            squares = ops.square(ops.cast(ops.convert_to_tensor(variable), "float32"))
            for axis, units in axes:
                rows = ops.sum(squares, axis=tuple(a for a in range(len(variable.shape)) if a != axis))
                total = total + ops.segment_sum(rows, ops.convert_to_tensor(units), num_segments=self.size + 1)
        return total

    def along(self, variable: keras.Variable, values: Any) -> list[Any]:
        """Return `values` of units (`[units + 1]`) along each axis of a variable that units lie on, to be broadcast."""
        result = []
        for axis, units in self._places[id(variable)][1]:
            shape = [len(units) if a == axis else 1 for a in range(len(variable.shape))]
            result.append(ops.reshape(ops.take(values, ops.convert_to_tensor(units)), shape))
        return result

    def add_to(self, gradients: Sequence[Any], variables: Sequence[keras.Variable], factors: Any) -> list[Any]:
        r"""Return the gradients with $\sum_u c_u w$ added, over the units u that a weight is of.

        Args:
            gradients: of `variables`, None where there is none.
            variables: what the optimizer is about to move.
            factors: $c$, `[units + 1]`.
        """
        result = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is not None and variable in self:
                gradient = dense(gradient)
                weight = ops.cast(ops.convert_to_tensor(variable), gradient.dtype)
                for factor in self.along(variable, factors):
                    gradient = gradient + ops.cast(factor, gradient.dtype) * weight
            result.append(gradient)
        return result


@dataclasses.dataclass(frozen=True)
class UnitPart(TrainingPart):
    """A part of pruning-aware training that acts on units: slices of several tensors at once."""

    @abstractmethod
    def on_units(self, analysis: Analysis, level: Any, optimizer: Any) -> StepPart:
        """Return what acts in the step.

        Args:
            analysis: says which weights a unit has.
            level: where the ramp stands, from 0 to 1: a scalar variable, or 1.0.
            optimizer: gives the learning rate.
        """

    def bind(self, model: keras.Model, weights: Sequence[int], level: Any, optimizer: Any) -> StepPart:
        """Return what acts in the step of a callback that prunes single weights.

        `weights` does not matter: units are slices of all weights.
        """
        return self.on_units(analyse(model), level, optimizer)


def _check_strength(part: Any) -> None:
    if not part.strength >= 0:
        raise ValueError(f"{type(part).__name__}: strength must be 0 or more. Received: strength={part.strength}")


@_register
@dataclasses.dataclass(frozen=True)
class GroupLasso(UnitPart):
    r"""The objective $f = g + \lambda \sum_u \sqrt{p_u}\, \lVert w_u \rVert_2$ over units with $p_u$ weights $w_u$.

    Plain: its gradient $\lambda \sqrt{p_u}\, w_u / \lVert w_u \rVert_2$ is added (0 where $w_u = 0$); units come near
    zero and never reach it. Proximal: after the optimizer's step, with the learning rate $\eta$, the block soft
    threshold $w_u \leftarrow \max(0, 1 - \eta \lambda \sqrt{p_u} / \lVert w_u \rVert_2)\, w_u$, which gives units of
    exact zeros. A weight of a kernel between two layers is of a unit of its inputs and of one of its outputs: groups
    overlap, and the weight takes both gradients, or the product of both factors, which for $\eta \to 0$ is the same
    to first order. The loss that Keras reports is g alone.

    Args:
        strength: $\lambda$, 0 or more.
        proximal: take the proximal step.
        ramp: a schedule; $\lambda$ at a step is `strength * ramp(step) / ramp.final`.

    Source: Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables", section 2
    with $K_j = p_j I$; Wen et al. 2016, "Learning structured sparsity in deep neural networks", equations 3 to 5;
    Parikh and Boyd 2014, "Proximal algorithms", sections 6.5.1 and 6.5.4 (block soft threshold).

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1)])
        >>> GroupLasso(1e-3, proximal=True).get_config()
        {'ramp': None, 'strength': 0.001, 'proximal': True}
    """

    strength: float = 1e-4
    proximal: bool = False

    def __post_init__(self) -> None:
        _check_strength(self)

    def on_units(self, analysis: Analysis, level: Any, optimizer: Any) -> StepPart:
        return _Lasso(self, UnitSlices(analysis), level, optimizer)


class _Lasso:
    """A `GroupLasso` at work."""

    def __init__(self, part: GroupLasso, slices: UnitSlices, level: Any, optimizer: Any) -> None:
        self.part = part
        self.slices = slices
        self.level = level
        self.optimizer = optimizer

    def _over_norms(self) -> Any:
        r"""$\lambda \sqrt{p_u} / \lVert w_u \rVert$ for each unit; 0 for units of zeros."""
        squares = self.slices.squares()
        alive = squares > 0.0
        strength = ops.cast(self.part.strength * self.level, "float32") * np.sqrt(self.slices.counts)
        return ops.where(alive, strength * ops.rsqrt(ops.where(alive, squares, 1.0)), 0.0)

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        if self.part.proximal:
            return gradients
        return self.slices.add_to(gradients, variables, self._over_norms())

    def after(self, variables: list[keras.Variable]) -> None:
        if not self.part.proximal:
            return
        # All norms are taken before the first weight shrinks.
        over_norms = self._over_norms()
        for variable, rate in zip(variables, rates_of(self.optimizer, variables), strict=True):
            if variable in self.slices:
                factors = ops.maximum(0.0, 1.0 - rate * over_norms)
                weight = ops.convert_to_tensor(variable)
                factor = math.prod(self.slices.along(variable, factors))
                shrunk = weight * ops.cast(factor, weight.dtype)
                # Selected where 0, so that the zeros are positive.
                variable.assign(ops.where(factor > 0.0, shrunk, ops.zeros_like(weight)))


@_register
@dataclasses.dataclass(frozen=True)
class Slimming(UnitPart):
    r"""Network slimming: the objective $f = g + \lambda \sum |\gamma|$ over the scales of all batch normalisations.

    Scales of channels that do little go to 0, and show which channels to remove: with the importance
    `kp.structured.BatchNormScale(normalise="none")` and `scope="global"`.

    Args:
        strength: $\lambda$, 0 or more.
        proximal: take the proximal step of `keras_prune.L1`, which gives exact zeros; else its gradient is added.
        ramp: a schedule; $\lambda$ at a step is `strength * ramp(step) / ramp.final`.

    Raises:
        ValueError: the strength is below 0; when bound: the model has no batch normalisation with a trainable scale.

    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming", equation 1.

    Example:
        >>> Slimming(1e-4).get_config()
        {'ramp': None, 'strength': 0.0001, 'proximal': False}
    """

    strength: float = 1e-4
    proximal: bool = False

    def __post_init__(self) -> None:
        _check_strength(self)

    def on_units(self, analysis: Analysis, level: Any, optimizer: Any) -> StepPart:
        return self.bind(analysis.graph.model, (), level, optimizer)

    def bind(self, model: keras.Model, weights: Sequence[int], level: Any, optimizer: Any) -> StepPart:
        scales = [
            id(layer.gamma)
            for layer in layers_in(model)
            if isinstance(layer, kl.BatchNormalization) and layer.scale and layer.gamma.trainable
        ]
        if not scales:
            raise ValueError(
                f"Slimming: {model.name!r} has no batch normalisation with a trainable scale, which is what it acts "
                "on. Take GroupLasso(strength), or put BatchNormalization behind the layers that are to shrink."
            )
        return ActivePart(L1(self.strength, proximal=self.proximal), scales, level, optimizer)


@_register
@dataclasses.dataclass(frozen=True)
class GrowingRegularisation(UnitPart):
    r"""A penalty $\frac{1}{2} \lambda_u \lVert w_u \rVert^2$ that grows on the units chosen to go, before they do.

    A unit that `StructuredPruning` chooses is not closed at once: $\lambda_u$ starts at $\delta$ and grows by $\delta$
    every K steps, and when it reaches the ceiling $\tau$ the unit is closed. So what it did moves to other units while
    training goes on. From choice to removal it takes $K \lceil \tau / \delta - 1 \rceil$ steps. The gradient
    $\lambda_u w_u$ is added to that of the loss, so the optimizer should be one whose step grows with it, SGD rather
    than Adam; $\eta \tau < 2$ keeps it stable.

    Args:
        delta: $\delta$, above 0.
        every: K, in steps.
        ceiling: $\tau$, not below delta.
        ramp: None: the penalty grows by itself.

    Source: Wang et al. 2021, "Neural pruning via growing regularization", algorithm 1 (GReg-1).

    Example:
        >>> GrowingRegularisation(delta=0.01, every=5, ceiling=0.1).steps
        45
    """

    delta: float = 1e-3
    every: int = 10
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.delta <= self.ceiling:
            raise ValueError(
                "GrowingRegularisation: delta must be above 0 and not above the ceiling. "
                f"Received: delta={self.delta}, ceiling={self.ceiling}"
            )
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"GrowingRegularisation: every must be a whole number from 1. Received: {self.every!r}")
        if self.ramp is not None:
            raise ValueError(f"GrowingRegularisation grows by itself. Received: ramp={self.ramp}")

    @property
    def steps(self) -> int:
        """Steps from the choice of a unit to its removal."""
        return self.every * math.ceil(self.ceiling / self.delta - 1.0 - 1e-9)

    def on_units(self, analysis: Analysis, level: Any, optimizer: Any) -> StepPart:
        raise ValueError(
            "GrowingRegularisation acts on units that are chosen to go, and only StructuredPruning chooses some. "
            "Received: a callback without units. Write kp.StructuredPruning(..., parts=[GrowingRegularisation()])."
        )


class GrowingPenalty:
    r"""A `GrowingRegularisation` at work.

    Args:
        slices: the weights of each unit.
        strengths: $\lambda_u$, a variable `[units + 1]`.
    """

    def __init__(self, slices: UnitSlices, strengths: keras.Variable) -> None:
        self.slices = slices
        self.strengths = strengths

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Add the penalty's gradient."""
        return self.slices.add_to(gradients, variables, ops.convert_to_tensor(self.strengths))

    def after(self, variables: list[keras.Variable]) -> None:
        """Nothing: the penalty acts by its gradient."""
