"""Who proposes strategies: Optuna's samplers by name, each drawing anew from a seed of the trial's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_prune.trials.extra import search_module

__all__ = ["NAMES", "ONE_OBJECTIVE", "Maker", "make_sampler", "place_of", "population_for", "seeded"]

NAMES = ("tpe", "nsga2", "genetic", "cmaes", "pso", "random")
"""The samplers that have names."""
ONE_OBJECTIVE = ("genetic", "cmaes", "pso")
"""Those that look for the best of one objective."""

Maker = Callable[[int], Any]
"""Seed -> Optuna sampler."""


def population_for(trials: int) -> int:
    """Return how many individuals a generation has: a fifth of all trials, from 4 to 50.

    Example:
        >>> population_for(10), population_for(60), population_for(1000)
        (4, 12, 50)
    """
    return max(4, min(50, round(trials / 5)))


def make_sampler(name: str, population: int, starts: tuple[Mapping[str, Any], ...]) -> Maker:
    """Return what makes the sampler of a name, from a seed.

    Args:
        name: one of `NAMES`; the particles of "pso" are enqueued, and what it draws itself is random.
        population: individuals of a generation.
        starts: parameters of the trials that come first; CMA-ES begins around the first one.
    """
    samplers = search_module("optuna").samplers
    if name == "tpe":
        return lambda seed: samplers.TPESampler(seed=seed, n_startup_trials=population)
    if name in ("nsga2", "genetic"):
        return lambda seed: samplers.NSGAIISampler(seed=seed, population_size=population)
    if name == "cmaes":
        search_module("cmaes")
        centre = {key: value for key, value in (starts[0] if starts else {}).items() if not isinstance(value, str)}
        return lambda seed: samplers.CmaEsSampler(x0=centre or None, seed=seed, warn_independent_sampling=False)
    return lambda seed: samplers.RandomSampler(seed=seed)


def place_of(trial: Any, trials: list[Any]) -> int:
    """Return which trial of the search this is, counted from 0; one that is tried again keeps its place.

    Args:
        trial: of Optuna.
        trials: all of the study.
    """
    known = trial.user_attrs.get("place")
    if known is not None:
        return int(known)
    again = sum("again" in other.user_attrs for other in trials if other.number < trial.number)
    return int(trial.number) - again


def seeded(make: Maker, seed: int) -> Any:
    """Return an Optuna sampler that is made anew for each trial, from the search's seed and the trial's place.

    What a sampler draws then depends on nothing but the trials that are finished: a search that was stopped goes on as
    if it had not been, and workers never draw the same.

    Args:
        make: makes the sampler.
        seed: of the search.
    """
    samplers = search_module("optuna").samplers

    class Seeded(samplers.BaseSampler):  # type: ignore[name-defined]
        """Hands everything on to the sampler of the trial."""

        def __init__(self) -> None:
            self._inner: Any = None
            self._place = 0

        def before_trial(self, study: Any, trial: Any) -> None:
            self._place = place_of(trial, study.get_trials(deepcopy=False))
            drawn = np.random.SeedSequence([seed, self._place]).generate_state(1)
            self._inner = make(int(drawn[0] >> 1))
            self._inner.before_trial(study, self._placed(trial))
            if isinstance(self._inner, samplers.BaseGASampler):
                # One whose parameters are all given is of the generation, too.
                self._inner.get_trial_generation(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._inner.infer_relative_search_space(study, self._placed(trial))

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._inner.sample_relative(study, self._placed(trial), search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            placed = self._placed(trial)
            return self._inner.sample_independent(study, placed, param_name, param_distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self._inner.after_trial(study, self._placed(trial), state, values)

        def _placed(self, trial: Any) -> Any:
            """The trial; for CMA-ES, which draws by a trial's number, under its place."""
            if not isinstance(self._inner, samplers.CmaEsSampler):
                return trial
            placed = copy.copy(trial)
            placed.number = self._place
            return placed

    return Seeded()
