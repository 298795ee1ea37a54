"""Particle swarm: pymoo moves the particles, and each is a trial of an Optuna study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.trials.extra import search_module

__all__ = ["Swarm"]


class Swarm:
    """A swarm whose state is nothing but the losses of its particles: it is moved again from the first generation on.

    Args:
        parameters: name -> Optuna distribution: numbers, whole numbers and choices.
        size: particles.
        seed: of all that is drawn; the same losses then lead to the same particles.
        starts: parameters of particles of the first generation; the others are drawn.

    Source: Zhan et al. 2009, "Adaptive particle swarm optimization", as pymoo has it.
    """

    def __init__(
        self, parameters: Mapping[str, Any], size: int, seed: int, starts: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._parameters = dict(parameters)
        self._size = size
        self._seed = seed
        self._starts = list(starts)

    def due(self, losses: Mapping[int, float]) -> dict[int, dict[str, Any]]:
        """Return the particles of the first generation that is not over, each with its parameters.

        Particles are counted through all generations, from 0.

        Args:
            losses: of the particles that are done: lower is better, infinity where there is none.
        """
        evaluator = search_module("pymoo.core.evaluator").Evaluator()
        static = search_module("pymoo.problems.static").StaticProblem
        swarm, problem, first = self._swarm(), self._problem(), 0
        swarm.setup(problem, termination=search_module("pymoo.core.termination").NoTermination())
        while True:
            particles = swarm.ask()
            numbers = range(first, first + self._size)
            if not all(number in losses for number in numbers):
                return {number: self._named(one.X) for number, one in zip(numbers, particles, strict=True)}
            values = np.array([[losses[number]] for number in numbers])
            # pymoo computes with losses: an infinite one is the worst that a number can be.
            values[~np.isfinite(values)] = np.finfo(np.float64).max
            evaluator.eval(static(problem, F=values), particles)
            swarm.tell(infills=particles)
            first += self._size

    def _swarm(self) -> Any:
        sampling = search_module("pymoo.operators.sampling.lhs").LHS()
        drawn = sampling(self._problem(), self._size, random_state=np.random.default_rng(self._seed)).get("X")
        for place, start in enumerate(self._starts[: self._size]):
            drawn[place] = self._placed(start)
        return search_module("pymoo.algorithms.soo.nonconvex.pso").PSO(self._size, sampling=drawn, seed=self._seed)

    def _problem(self) -> Any:
        return search_module("pymoo.core.problem").Problem(n_var=len(self._parameters), n_obj=1, xl=0.0, xu=1.0)

    def _named(self, places: npt.NDArray[np.floating]) -> dict[str, Any]:
        """Places in [0, 1] -> values of the parameters."""
        return {
            name: _value(distribution, float(place))
            for (name, distribution), place in zip(self._parameters.items(), places, strict=True)
        }

    def _placed(self, values: Mapping[str, Any]) -> list[float]:
        """Values of the parameters -> places in [0, 1]; what is missing is put in the middle."""
        return [
            _place(distribution, values[name]) if name in values else 0.5
            for name, distribution in self._parameters.items()
        ]


def _value(distribution: Any, place: float) -> Any:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return choices[min(int(place * len(choices)), len(choices) - 1)]
    low, high = distribution.low, distribution.high
    value = math.exp(math.log(low) + place * math.log(high / low)) if distribution.log else low + place * (high - low)
    if distribution.step is not None:
        value = low + round((value - low) / distribution.step) * distribution.step
    value = min(max(value, low), high)
    return round(value) if isinstance(low, int) else float(value)


def _place(distribution: Any, value: Any) -> float:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return (choices.index(value) + 0.5) / len(choices)
    low, high = distribution.low, distribution.high
    if low == high:
        return 0.5
    return math.log(value / low) / math.log(high / low) if distribution.log else (value - low) / (high - low)
