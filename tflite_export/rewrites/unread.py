"""The rewrite that leaves out channels which no weight reads: pruning single weights of narrow layers makes some.

All that makes such a channel is computed for nothing, a depthwise convolution among it, which has no sparse form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_prune.models.variables import read
from keras_prune.scope import Scope
from keras_prune.structured.analysis.groups import Analysis, Keep, analyse
from keras_prune.structured.surgery.rewrite import rebuild
from keras_prune.structured.surgery.shrink import unread_units
from tflite_export.file.tflite_file import Change
from tflite_export.rewrites.graph import FlatGraph
from tflite_export.rewrites.rewrite import Pass, Refusal

__all__ = ["NAME", "UnreadPass"]

NAME = "unread"


@dataclass(frozen=True)
class UnreadPass(Pass):
    """Leave out the units of a model that nothing reads.

    Args:
        zeros_from: share of zeros above which a 1x1 convolution runs sparse. What is left out are zeros of those that
            read it; where these would no longer have that share, the units stay.

    Example:
        >>> hidden, head = keras.layers.Dense(3), keras.layers.Dense(2)
        >>> model = keras.Sequential([keras.Input((4,)), hidden, head])
        >>> head.set_weights([np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), np.zeros(2)])
        >>> UnreadPass().apply(model).model.layers[1].units
        2
    """

    zeros_from: float = 0.0
    name: str = NAME

    def concerns(self, model: keras.Model) -> bool:
        return any(_has_empty_row(target.layout.inputs, read(target.variable)) for target in _kernels(model))

    def rewrite(self, graph: FlatGraph) -> tuple[keras.Model | None, tuple[Change, ...], tuple[Refusal, ...]]:
        try:
            analysis = analyse(graph.model)
            gone = self._without_those_that_count(analysis, unread_units(analysis))
            made = rebuild(analysis, ~gone, owner="export") if gone.any() else None
        except ValueError as error:  # a layer of the user's own that cannot be built again, say: the units stay
            return None, (), (Refusal(NAME, graph.model.name, str(error)),)
        changes = []
        for group in analysis.groups:
            left_out = int(np.count_nonzero(gone[group.start : group.stop]))
            if left_out:
                place = analysis.slots[group.slots[0]].path
                changes.append(Change(NAME, place, f"{left_out} of {group.size} units left out, which nothing reads"))
        return made, tuple(changes), ()

    def _without_those_that_count(self, analysis: Analysis, gone: Keep) -> Keep:
        """The same units, without those whose zeros a 1x1 convolution needs to run sparse."""
        pointwise = [
            target.variable
            for target in _kernels(analysis.graph.model)
            if len(target.variable.shape) == 4 and tuple(target.variable.shape[:2]) == (1, 1)
        ]
        gone = gone.copy()
        settled = False
        while not settled:
            settled = True
            for variable in pointwise:
                slots = [slot for axis in (2, 3) if (slot := analysis.slot_of(variable, axis)) is not None]
                values = read(variable)
                for slot in slots:
                    values = np.compress(~(gone[slot.units] & (slot.units >= 0)), values, axis=slot.axis)
                if _zeros(read(variable)) > self.zeros_from >= _zeros(values):
                    for slot in slots:
                        units = slot.units[slot.units >= 0]
                        settled = settled and not gone[units].any()
                        gone[units] = False
        return gone


def _kernels(model: keras.Model) -> list[Any]:
    return list(Scope().survey(model).targets)


def _has_empty_row(inputs: tuple[int, ...], kernel: NDArray[Any]) -> bool:
    """Whether a kernel is 0 for an index of an axis along which inputs lie."""
    others = (tuple(other for other in range(kernel.ndim) if other != axis) for axis in inputs)
    return any(not kernel.any(axis=rest).all() for rest in others)


def _zeros(kernel: NDArray[Any]) -> float:
    return 1.0 - np.count_nonzero(kernel) / max(1, kernel.size)
