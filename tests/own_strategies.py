"""Strategies as a user would write them: one of each kind, unregistered, with no more than its base asks for."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_prune.allocation import Allocation
from keras_prune.criteria import Criterion
from keras_prune.growth import Growth
from keras_prune.in_step.parts import Part
from keras_prune.patterns import Pattern
from keras_prune.schedules import Schedule
from keras_prune.strategy import data_field

SEEN: list[Any] = []
"""What the criterion, the growth and the allocation below were given, in the order of their calls."""


@dataclasses.dataclass(frozen=True)
class Stairs(Schedule):
    """Half of the target from `first` on, all of it from `second` on."""

    first: int
    second: int
    top: float

    def __call__(self, step):
        return self.top * (0.0 if step < self.first else 0.5 if step < self.second else 1.0)

    def should_update(self, step):
        return step in (self.first, self.second)

    @property
    def first_step(self):
        return self.first

    @property
    def last_step(self):
        return self.second


@dataclasses.dataclass(frozen=True)
class Bound(Schedule):
    """The same bound at every second step, in standard deviations or not."""

    gives: ClassVar[str] = "threshold"

    bound: float
    relative_to: str | None = None

    def __call__(self, step):
        return self.bound

    def should_update(self, step):
        return step % 2 == 0


@dataclasses.dataclass(frozen=True)
class Scores(Criterion):
    """The weight's size, with whatever statistics it is told to need."""

    statistics: tuple[str, ...] = ()
    data: Any = data_field()

    @property
    def needs(self):
        return frozenset(self.statistics)

    def __call__(self, weight, statistics):
        SEEN.append(("criterion", {name: np.array(value) for name, value in statistics.items()}))
        extra = [np.abs(np.broadcast_to(value, weight.shape)) for name, value in statistics.items() if name != "seed"]
        return np.abs(weight) + 1e-3 * sum(extra, np.zeros(weight.shape, weight.dtype))


@dataclasses.dataclass(frozen=True)
class Largest(Criterion):
    """As little as a criterion can be: no field, no needs."""

    def __call__(self, weight, statistics):
        return -np.abs(weight)


@dataclasses.dataclass(frozen=True)
class Pairs(Pattern):
    """Two neighbours along the outputs."""

    def check(self, shape):
        if shape[-1] % 2:
            raise ValueError(f"Pairs: the outputs must be even in number. Received: {shape}")

    def weights_per_unit(self, shape):
        return 2

    def reduce(self, scores):
        return scores.reshape(-1, 2).sum(axis=1)

    def expand(self, on, scores):
        return np.repeat(on, 2).reshape(scores.shape)


@dataclasses.dataclass(frozen=True)
class Curved(Allocation):
    """The same for all, having looked at the curves."""

    needs_curves: ClassVar[bool] = True

    data: Any = data_field()

    def __call__(self, tensors, target, final=None):
        SEEN.append(("curves", [tensor.curve for tensor in tensors]))
        return [target] * len(tensors)


@dataclasses.dataclass(frozen=True)
class CurvedAt(Curved):
    """The same, with points of its own."""

    points: tuple[float, ...] = (0.3, 0.6)


@dataclasses.dataclass(frozen=True)
class Swap(Growth):
    """One unit goes for the one with the largest sum of gains, with whatever statistics it is told to need."""

    statistics: tuple[str, ...] = ()
    data: Any = data_field()
    hidden: bool = False

    @property
    def needs(self):
        return frozenset(self.statistics)

    @property
    def keeps_learning(self):
        return self.hidden

    def __call__(self, on, scores, gains, *, off, progress, seed):
        SEEN.append(("growth", {name: np.array(value) for name, value in gains.items()}))
        value = np.where(on, scores, -1.0) if on.all() or not gains else np.where(on, scores, sum(gains.values()) - 1e6)
        after = np.zeros(on.size, bool)
        after[np.argsort(-value, kind="stable")[: on.size - off]] = True
        back, gone = np.flatnonzero(~on & ~after), np.flatnonzero(after & on)
        if back.size and gone.size:
            best = back[np.argmax(sum(gains.values())[back])] if gains else back[seed % back.size]
            after[gone[np.argmin(scores[gone])]], after[best] = False, True
        return after


@dataclasses.dataclass(frozen=True)
class Halve(Part):
    """Half of the gradient, and weights that shrink by a thousandth, as far as the ramp allows."""

    def before(self, gradient, weight, level):
        return gradient * ops.cast(1.0 - 0.5 * level, gradient.dtype)

    def after(self, weight, learning_rate, level):
        return ops.convert_to_tensor(weight) * (1.0 - 1e-3)
