"""A schedule through given points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from keras.saving import register_keras_serializable

from keras_prune.schedules.schedule import Schedule, check_steps, on_grid, unresolved
from keras_prune.schedules.spans import Span, Time, check_time
from keras_prune.strategy import check_fraction, integer, to_integers

__all__ = ["Piecewise"]

_register = register_keras_serializable(package="keras_prune")


@_register
@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """Given points: from `steps[i]` on the target is `sparsities[i]`, or the straight line between the points.

    Args:
        steps: increasing steps; or all of them texts, `"10%"` or `"2 epochs"` of the training.
        sparsities: a fraction in [0, 1) for each, not decreasing.
        interpolate: follow the line between points instead of jumping at them.
        frequency: with `interpolate`, steps between two changes of the masks.

    Example:
        >>> Piecewise((0, 100), (0.2, 0.6))(50), Piecewise((0, 100), (0.2, 0.6), interpolate=True)(50)
        (0.2, 0.4)
    """

    steps: tuple[Time, ...]
    sparsities: tuple[float, ...]
    _: dataclasses.KW_ONLY
    interpolate: bool = False
    frequency: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "sparsities"):
            if not isinstance(getattr(self, name), Iterable):
                raise TypeError(f"Piecewise: {name} must be a sequence. Received: {name}={getattr(self, name)!r}")
        if isinstance(self.steps, str):
            raise TypeError(f"Piecewise: steps must be a sequence. Received: steps={self.steps!r}")
        steps: tuple[Time, ...] = tuple(self.steps)
        for step in steps:
            if isinstance(step, str):
                check_time("Piecewise: each of steps", step)
        if not any(isinstance(step, str) for step in steps):
            steps = tuple(integer("Piecewise: each of steps", step) for step in steps)
        elif not all(isinstance(step, str) for step in steps):
            raise TypeError(f"Piecewise: steps must be all steps or all texts. Received: steps={steps}")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "sparsities", tuple(self.sparsities))
        to_integers(self, "frequency")
        if not self.steps or len(self.steps) != len(self.sparsities):
            raise ValueError(
                "Piecewise: steps and sparsities must be of one length, 1 or more. "
                f"Received: steps={self.steps}, sparsities={self.sparsities}"
            )
        for value in self.sparsities:
            check_fraction("Piecewise: each of sparsities", value)
        object.__setattr__(self, "sparsities", tuple(map(float, self.sparsities)))
        if not self.is_relative:
            points = self._points()
            if list(points) != sorted(set(points)) or points[0] < 0:
                raise ValueError(f"Piecewise: steps must increase from 0 or more. Received: steps={self.steps}")
        if list(self.sparsities) != sorted(self.sparsities):
            raise ValueError(
                "Piecewise: sparsities must not decrease, since pruned weights stay pruned. "
                f"Received: sparsities={self.sparsities}"
            )
        check_steps(self, None, None, self.frequency)

    @property
    def is_relative(self) -> bool:
        return any(isinstance(step, str) for step in self.steps)

    def resolve(self, span: Span) -> Schedule:
        if not self.is_relative:
            return self
        # Of points that fall on one step, as those do that lie before the length was known, the last counts.
        points = {span.step(step): sparsity for step, sparsity in zip(self.steps, self.sparsities, strict=True)}
        return dataclasses.replace(self, steps=tuple(points), sparsities=tuple(points.values()))

    def _points(self) -> tuple[int, ...]:
        if self.is_relative:
            raise unresolved(self)
        return tuple(int(step) for step in self.steps)

    @property
    def first_step(self) -> int:
        return self._points()[0]

    @property
    def last_step(self) -> int:
        return self._points()[-1]

    @property
    def final(self) -> float:
        return self.sparsities[-1]

    def __call__(self, step: int) -> float:
        points = self._points()
        reached = sum(1 for point in points if point <= step)
        if reached == 0:
            return 0.0
        value = self.sparsities[reached - 1]
        if not self.interpolate or reached == len(points):
            return value
        start, stop = points[reached - 1], points[reached]
        return value + (self.sparsities[reached] - value) * (step - start) / (stop - start)

    def should_update(self, step: int) -> bool:
        points = self._points()
        if step in points:
            return True
        return self.interpolate and on_grid(step, points[0], points[-1], self.frequency)
