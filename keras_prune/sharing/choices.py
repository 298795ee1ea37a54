"""What a user chooses of weight sharing, checked in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune import statistics
from keras_prune.in_step.dropped_weights import draw_shape
from keras_prune.masks.bound import MaskConstraint
from keras_prune.models.variables import read
from keras_prune.scope import Scope, Skipped, Target, check_scope
from keras_prune.sharing.codebooks import Codebook, codebook_of
from keras_prune.sharing.starts import Start
from keras_prune.strategy import integer, resolve

__all__ = ["Choices", "books_of"]

GRANULARITIES = ("tensor", "channel")
MEMBERS = ("value", "gradient")


@dataclasses.dataclass(frozen=True)
class Choices:
    """How weights come to share values.

    Attributes:
        owner: who was asked, for messages.
        values: the most values of a codebook, zero among them.
        start: where k-means begins.
        granularity: "tensor" or "channel": what has a codebook of its own.
        group_by: "value" or "gradient": what puts weights together.
        data: what gradients are taken on.
        scope: which tensors.
        seed: for the start.
    """

    owner: str
    values: int
    start: Start
    granularity: str
    group_by: str
    data: Any
    scope: Scope
    seed: int

    @classmethod
    def of(
        cls,
        owner: str,
        values: Any,
        start: Any,
        granularity: Any,
        group_by: Any,
        data: Any,
        scope: Scope | None,
        seed: Any,
    ) -> Choices:
        """Return the choices that were given.

        Raises:
            ValueError: a number or name is none of those that there are, or gradients have no data.
            TypeError: a value is of another type.
        """
        number = integer(f"{owner}: values", values)
        if not 2 <= number <= 256:
            raise ValueError(
                f"{owner}: values must be from 2 to 256, zero counted: int8 has no more. Received: values={values!r}"
            )
        for name, value, known in (("granularity", granularity, GRANULARITIES), ("group_by", group_by, MEMBERS)):
            if value not in known:
                raise ValueError(f"{owner}: {name} must be one of {known}. Received: {name}={value!r}")
        if (group_by == "gradient") != (data is not None):
            way_out = "Give data=(x, y)." if data is None else "Leave data out, or choose group_by='gradient'."
            raise ValueError(
                f"{owner}: data is what gradients are taken on, for group_by='gradient'. Received: "
                f"group_by={group_by!r} {'without' if data is None else 'with'} data. {way_out}"
            )
        check_scope(owner, scope)
        scope = scope if scope is not None else Scope()
        first: Start = resolve(start, Start)  # type: ignore[type-abstract]
        return cls(owner, number, first, granularity, group_by, data, scope, integer(f"{owner}: seed", seed))

    def survey(self, model: keras.Model) -> tuple[tuple[Target, ...], tuple[Skipped, ...]]:
        """Return the tensors that come to share values, and the others with the reasons.

        Raises:
            ValueError: there are none, or a wrapper lets masked weights learn on.
        """
        found = self.scope.survey(model)
        hidden = [target.path for target in found.targets if target.straight_through]
        if hidden:
            raise ValueError(
                f"{self.owner}: under a wrapper with straight_through=True, masked weights learn on out of sight, and "
                f"would keep values of their own. Received: {hidden}. Call keras_prune.strip(model) first, or leave "
                "them out: scope=keras_prune.Scope(exclude=[...])."
            )
        return found.targets, found.skipped

    def codebooks(self, model: keras.Model, targets: Sequence[Target]) -> list[Codebook]:
        """Return the codebooks of some tensors by their weights as they are now; nothing is changed.

        Raises:
            ValueError: a weight or a gradient is not finite, with the path.
        """
        gradients: list[Any] = [None] * len(targets)
        if self.group_by == "gradient":
            found = statistics.collect(model, targets, frozenset({"gradient"}), self.data)
            gradients = [one["gradient"] for one in found]
        return [self.codebook(target, gradient) for target, gradient in zip(targets, gradients, strict=True)]

    def codebook(self, target: Target, gradient: npt.NDArray[Any] | None = None) -> Codebook:
        """Return the codebook of a tensor by its weights as they are now; `codebooks` does so for many.

        Args:
            target: the tensor.
            gradient: of its shape; None to go by values.
        """
        variable = target.variable
        weight = np.asarray(read(variable))
        masked = isinstance(variable.constraint, MaskConstraint) or target.mask is not None
        try:
            return codebook_of(
                weight,
                books_of(target, self.granularity),
                self.values,
                self.start,
                seed=self.seed + target.index,
                by=gradient,
                with_zeros=masked,
            )
        except ValueError as error:
            raise ValueError(f"{self.owner}: {target.path!r}: {error}") from error


def books_of(target: Target, granularity: str) -> npt.NDArray[np.int32]:
    """Return the codebook of each weight of a tensor, counted from 0, in a shape that broadcasts to the weight's.

    Args:
        target: the tensor.
        granularity: "channel" for one codebook for each output, "tensor" for one.

    Example:
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 2))
        >>> [target] = Scope().survey(layer).targets
        >>> books_of(target, "channel"), books_of(target, "tensor")
        (array([[0, 1, 2]], dtype=int32), array([[0]], dtype=int32))
    """
    shape = tuple(target.variable.shape)
    narrow = draw_shape(target.layout, shape, units=True) if granularity == "channel" else (1,) * len(shape)
    return np.arange(np.prod(narrow, dtype=int), dtype=np.int32).reshape(narrow)
