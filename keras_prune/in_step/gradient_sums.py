"""Statistics of the gradients of training itself, summed up inside the compiled step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prune.masks.state import TrainingState
from keras_prune.models.variables import dense, read
from keras_prune.scope import Target

__all__ = ["GradientSums", "TrainingSums"]


def _over_replicas(gradient: Any) -> Any:
    """Return the gradient of the whole batch: under `tf.distribute` a step sees that of its replica's share."""
    if keras.backend.backend() != "tensorflow":
        return gradient
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradient
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradient)


class GradientSums:
    """Adds up statistics of the gradients, step by step.

    Args:
        sums: for each weight (by id) the kinds of statistic and the variables that they are added to. Kinds are
            "gradient" (g), "abs_gradient" (|g|), "squared_gradient" (g²), "movement" (-w g, with the weight before
            the step).
        count: a scalar that counts the steps.

    Attributes:
        seen: ids of the weights of which there was a gradient, once a step was traced.
    """

    def __init__(self, sums: Mapping[int, Mapping[str, keras.Variable]], count: keras.Variable) -> None:
        self.sums = sums
        self.count = count
        self.seen: set[int] = set()

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Add this step's gradients."""
        if not any(id(variable) in self.sums for variable in variables):
            return gradients
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is None:
                continue
            self.seen.add(id(variable))
            for kind, total in self.sums.get(id(variable), {}).items():
                g = ops.cast(_over_replicas(dense(gradient)), total.dtype)
                total.assign(total + _statistic(kind, g, variable))
        self.count.assign(self.count + 1.0)
        return gradients

    def after(self, variables: list[keras.Variable]) -> None:
        """Nothing: sums are taken before the weights move."""


def _statistic(kind: str, g: Any, variable: keras.Variable) -> Any:
    if kind == "movement":
        return -ops.cast(ops.convert_to_tensor(variable), g.dtype) * g
    return {"gradient": lambda: g, "abs_gradient": lambda: ops.abs(g), "squared_gradient": lambda: ops.square(g)}[
        kind
    ]()


class TrainingSums:
    """The sums of all targets: made, read and reset on the host; parts of the step add to them.

    Args:
        state: holds the variables.
        targets: at least one.
        kinds: "gradient", "abs_gradient", "squared_gradient", "movement".
    """

    def __init__(self, state: TrainingState, targets: Sequence[Target], kinds: frozenset[str]) -> None:
        self.keys: list[str] = []
        self._counts: list[str] = []
        self._state = state
        self._targets = tuple(targets)
        self._sums: list[dict[str, keras.Variable]] = []
        for target in targets:
            sums = {}
            for kind in sorted(kinds):
                key = f"{kind}:{target.index}"
                sums[kind] = state.variable(key, target.variable.shape, "float32", 0.0)
                self.keys.append(key)
            self._sums.append(sums)
        self._parts: list[GradientSums] = []

    def part(self) -> GradientSums:
        """Return what adds up gradients in the steps of one more optimizer; the steps of each are counted apart."""
        first = self._targets[0].index
        number = len(self._parts)
        key = f"steps{number or ''}:{first}"
        count = self._state.variable(key, (), "float32", 0.0)
        self._counts.append(key)
        table = {id(target.variable): sums for target, sums in zip(self._targets, self._sums, strict=True)}
        self._parts.append(GradientSums(table, count))
        return self._parts[-1]

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """The sums and the steps that they are of, by key."""
        return {key: self._state.variables[key] for key in (*self.keys, *self._counts)}

    @property
    def steps(self) -> int:
        """Steps since the last reset, of the optimizer that has done most."""
        return max(int(ops.convert_to_numpy(part.count.value)) for part in self._parts)

    def _steps_of(self, target: Target) -> np.float32:
        own = [part for part in self._parts if id(target.variable) in part.seen] or self._parts
        return np.float32(max(1, sum(int(ops.convert_to_numpy(part.count.value)) for part in own)))

    def read(self, kinds: frozenset[str]) -> list[dict[str, Any]]:
        """Return some of the kinds for each target: means since the last reset; the movement is a sum over all steps.

        Args:
            kinds: among those that are summed up.
        """
        return [
            {
                kind: read(total) if kind == "movement" else read(total) / self._steps_of(target)
                for kind, total in sums.items()
                if kind in kinds
            }
            for target, sums in zip(self._targets, self._sums, strict=True)
        ]

    def reset(self) -> None:
        """Begin anew; the movement is the history of a weight, and goes on."""
        for sums in self._sums:
            for kind, total in sums.items():
                if kind != "movement":
                    total.assign(ops.zeros_like(total.value))
        for part in self._parts:
            part.count.assign(0.0)
