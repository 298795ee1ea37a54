"""What is tried: how much of a model is left, its zeros, values and number type; and the way to such a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from keras.saving import register_keras_serializable

from keras_prune.strategy import Strategy, check_fraction
from tflite_export.convert.number_types import resolve_number_type

__all__ = ["STAGES", "Candidate", "Route", "Routes"]

STAGES = ("untrained", "short", "full", "long")
"""How far a candidate is trained: not at all; a little, to see whether it holds; as far as the best ones are; on, in
what is left of a budget, where the drop was a little too large."""


@register_keras_serializable(package="tflite_export")
@dataclasses.dataclass(frozen=True)
class Candidate(Strategy):
    """One combination of means that make a file cheaper.

    Args:
        keep: the share of the model that is left by structured pruning, a fraction in (0, 1]: of its multiplications
            where latency is minimised, of its parameters where bytes are. Half of all widths is about a quarter.
        sparsity: the share of zeros in the kernels that are pruned of what is left, a fraction in [0, 1).
        quantize: number type of the file, as `tflite_export.export` names it; None is float32.
        values: the most values that the weights of a kernel share, zero counted; None: any.

    Example:
        >>> str(Candidate(0.35, 0.8, "int8", 16)), str(Candidate())
        ('35 % left, 80 % zeros, 16 values, int8', 'as it is, float32')
        >>> Candidate.from_config(Candidate(0.5).get_config())
        Candidate(keep=0.5, sparsity=0.0, quantize=None, values=None)
    """

    kind: ClassVar[str] = "candidate"

    keep: float = 1.0
    sparsity: float = 0.0
    quantize: str | None = None
    values: int | None = None

    def __post_init__(self) -> None:
        check_fraction("Candidate: keep", self.keep, below_one=False)
        if self.keep == 0.0:
            raise ValueError(f"Candidate: keep is the share that is left, so it is above 0. Received: {self.keep}")
        check_fraction("Candidate: sparsity", self.sparsity)
        resolve_number_type(self.quantize)
        if self.values is not None and not 2 <= self.values <= 256:
            raise ValueError(f"Candidate: values must be from 2 to 256, or None. Received: {self.values}")

    @property
    def is_plain(self) -> bool:
        """Whether the model is left as it is."""
        return self.keep == 1.0 and self.sparsity == 0.0 and self.values is None

    @property
    def number_type(self) -> str:
        """Name of the number type."""
        return self.quantize or "float32"

    @property
    def shape(self) -> str:
        """What is done to the model, whatever the number type: a name for its files."""
        return f"keep{self.keep:g}-zeros{self.sparsity:g}" + (f"-values{self.values}" if self.values else "")

    def __str__(self) -> str:
        if self.is_plain:
            return f"as it is, {self.number_type}"
        left = [f"{100 * self.keep:g} % left"] if self.keep < 1 else []
        zeros = [f"{100 * self.sparsity:g} % zeros"] if self.sparsity else []
        values = [f"{self.values} values"] if self.values else []
        return ", ".join([*left, *zeros, *values, self.number_type])


@dataclasses.dataclass(frozen=True)
class Route:
    """The way from the plain model to that of a candidate.

    Args:
        candidate: what it leads to; all its number types share the model.
        epochs: of each stage of fine-tuning, in the order of `STAGES`.
        start: the way to the larger model that this one is made of; None: the plain one.

    Example:
        >>> half = Route(Candidate(0.5), (2, 8))
        >>> less = Route(Candidate(0.25), start=half).trained(2)
        >>> less.name, less.stage, less.total
        ('keep0.25-zeros0-2-from-keep0.5-zeros0-2+8', 'short', 12)
    """

    candidate: Candidate
    epochs: tuple[int, ...] = ()
    start: Route | None = None

    @property
    def name(self) -> str:
        """What its files are called after."""
        return self.name_as(self.candidate.shape)

    def name_as(self, shape: str) -> str:
        """Return the name with other words for the shape."""
        own = f"{shape}-{'+'.join(map(str, self.epochs)) or 'untrained'}"
        return own if self.start is None else f"{own}-from-{self.start.name}"

    @property
    def stage(self) -> str:
        """How far it is trained, of `STAGES`."""
        return STAGES[len(self.epochs)]

    @property
    def total(self) -> int:
        """Epochs of fine-tuning from the plain model on."""
        return sum(self.epochs) + (0 if self.start is None else self.start.total)

    @property
    def before(self) -> tuple[Route, ...]:
        """The routes to the models that lead to this one, the first first, this one last."""
        begun = () if self.start is None else self.start.before
        return (*begun, *(self.until(place) for place in range(len(self.epochs) + 1)))

    def trained(self, epochs: int) -> Route:
        """Return the route with one more stage of training."""
        return dataclasses.replace(self, epochs=(*self.epochs, epochs))

    def until(self, stages: int) -> Route:
        """Return the route up to so many stages of training."""
        return dataclasses.replace(self, epochs=self.epochs[:stages])

    def leading_to(self, candidate: Candidate) -> Route:
        """Return the same route for another number type."""
        return dataclasses.replace(self, candidate=candidate)


class Routes:
    """The way to each candidate's model as it is now, and which models others may be made of.

    Args:
        held: whether what a route leads to was measured and is good enough.

    Example:
        >>> routes = Routes(lambda route: True)
        >>> routes.remember(Route(Candidate(0.5), (2, 8)))
        >>> routes.start(Candidate(0.25)).name, routes.twin(Candidate(0.5, quantize="int8")).name
        ('keep0.5-zeros0-2+8', 'keep0.5-zeros0-2+8')
    """

    def __init__(self, held: Callable[[Route], bool]) -> None:
        self._held = held
        self._routes: dict[Candidate, Route] = {}

    def to(self, candidate: Candidate) -> Route:
        """Return the route to a candidate; of one that is not known, that of the plain model."""
        return self._routes.get(candidate, Route(candidate))

    def remember(self, route: Route) -> None:
        """Take a route as the one to its candidate."""
        self._routes[route.candidate] = route

    def forget(self, candidate: Candidate) -> None:
        """Take a candidate as not known."""
        self._routes.pop(candidate, None)

    def start(self, candidate: Candidate) -> Route | None:
        """Return the route to the smallest larger model that was trained fully and holds; None: the plain one.

        Units and zeros are taken out of what is left of it, so that its training is not lost.
        """
        found = [
            route
            for other, route in self._routes.items()
            if len(route.epochs) > STAGES.index("short")
            and other.sparsity == 0
            and other.values is None
            and other.keep >= candidate.keep
            and other.shape != candidate.shape  # the same model in another number type
            and self._held(route)
        ]
        return min(found, key=lambda route: route.candidate.keep, default=None)

    def twin(self, candidate: Candidate) -> Route | None:
        """Return the route of the same model in another number type, if it was trained; None where it was not."""
        twins = [
            route
            for other, route in self._routes.items()
            if other.shape == candidate.shape and route.epochs and not self.begins_better(candidate, other)
        ]
        return max(twins, key=lambda route: len(route.epochs), default=None)

    def begins_better(self, candidate: Candidate, other: Candidate) -> bool:
        """Whether a candidate would be made of a smaller model now than another was made of."""
        return _left_of(self.start(candidate)) < _left_of(self.to(other).start)


def _left_of(start: Route | None) -> float:
    return 1.0 if start is None else start.candidate.keep
