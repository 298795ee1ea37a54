"""One of the processes that share a search: it runs trials until enough are finished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_prune.keras_seam import print_msg
from keras_prune.search.result import Result
from keras_prune.search.samplers import make_sampler, place_of, population_for, seeded
from keras_prune.search.storage import open_storage, open_study, short_digest
from keras_prune.search.swarm import Swarm
from keras_prune.trials.extra import quiet_optuna, search_module
from keras_prune.trials.space import ModelSpace
from keras_prune.trials.trial import STOPPED, TrialRunner

__all__ = ["Worker"]

TRIES = 3
"""How often a trial is tried whose process dies."""
PAUSE = 0.25
"""Seconds between two looks at what other workers do."""


class Worker:
    """One process that works on a study.

    Args:
        runner: runs its trials.
        trials: how many have to be finished, by all processes.
        seed: of the search.
        verbose: 1 prints a line a trial.
    """

    def __init__(self, runner: TrialRunner, trials: int, seed: int, verbose: int) -> None:
        self._optuna = search_module("optuna")
        self._states = self._optuna.trial.TrialState
        self._runner = runner
        self._wanted = trials
        self._seed = seed
        self._verbose = verbose
        self._swarm: Swarm | None = None
        self._opened: Any = None

    def open(self, storage: Any, name: str | None, sampler: Any, digest: str) -> None:
        """Make the study or take it up; the one that makes it enqueues the starts.

        Args:
            storage: as for `study`.
            name: likewise.
            sampler: likewise.
            digest: of the model.

        Raises:
            ValueError: the stored study is another one, or a swarm could not tell whether a particle's process lives.
        """
        runner = self._runner
        parameters = runner.parameters()
        described = {
            "space": {key: self._optuna.distributions.distribution_to_json(one) for key, one in parameters.items()},
            "aim": [[one.name, one.rises] for one in runner.objectives],
            "sparsity": getattr(runner.space, "sparsity", None),
            "training": runner.training.described(),
            "model": digest,
            # Its particles follow from the seed and from one another.
            "sampler or seed": ["pso", self._seed] if sampler == "pso" else None,
        }
        name = f"{runner.copy.model.name}-{short_digest(described)}" if name is None else name
        self._store = open_storage(storage)
        self._opened = None if self._store is storage else self._store
        if sampler == "pso" and not self._hears and not isinstance(self._store, self._optuna.storages.InMemoryStorage):
            raise ValueError(
                "study: sampler 'pso' waits for all particles of a generation, so the storage must tell the dead from "
                f"the living. Received: {type(self._store).__name__} without heartbeats. Give a URL, or "
                "RDBStorage(url, heartbeat_interval=5)."
            )
        dense = {one.name: value for one, value in zip(runner.objectives, runner.dense(), strict=True)}
        settings: dict[str, Any] = {"population": population_for(self._wanted), "dense": dense}
        with quiet_optuna():
            self._study, settings, made = open_study(
                self._store, name, [one.rises for one in runner.objectives], described, settings
            )
        self._dense = settings["dense"]
        population = settings["population"]
        starts = runner.space.starts if isinstance(runner.space, ModelSpace) else ()
        if isinstance(sampler, str):
            self._study.sampler = seeded(make_sampler(sampler, population, starts), self._seed)
        else:
            self._study.sampler = sampler
        self._study.pruner = runner.stopper or self._optuna.pruners.NopPruner()
        if sampler == "pso":
            self._swarm = Swarm(parameters, population, self._seed, starts)
        elif made:
            for place, start in enumerate(starts[: self._wanted]):
                self._enqueue(place, start)

    def run(self) -> Result:
        """Work until enough trials are finished."""
        interrupted = False
        try:
            with quiet_optuna():
                while self._next():
                    self._study.optimize(self._run_trial, n_trials=1)
        except KeyboardInterrupt:
            if not any(trial.state == self._states.COMPLETE for trial in self._study.get_trials(deepcopy=False)):
                raise
            interrupted = True
        return Result.of(self._study, self._store, self._runner, self._dense, interrupted=interrupted)

    def close(self) -> None:
        """Close the connections of a storage that was opened here."""
        if self._opened is not None:
            self._opened.remove_session()
            self._opened.engine.dispose()
            self._opened = None

    def _next(self) -> bool:
        """Return whether there is a trial to run now; wait, while others run the last ones."""
        while True:
            self._optuna.storages.fail_stale_trials(self._study)
            by_place = self._by_place()
            losses = {place: loss for place, found in by_place.items() if (loss := self._loss(found)) is not None}
            if len(losses) >= self._wanted:
                return False
            self._try_again(by_place)
            if self._swarm is not None:
                due = self._swarm.due(losses)
                for place, parameters in due.items():
                    if place < self._wanted and place not in by_place:
                        self._enqueue(place, parameters)
            trials = self._study.get_trials(deepcopy=False)
            waiting = any(trial.state == self._states.WAITING for trial in trials)
            running = sum(trial.state == self._states.RUNNING for trial in trials) if self._hears else 0
            if waiting or (self._swarm is None and len(losses) + running < self._wanted):
                return True
            time.sleep(PAUSE)

    @property
    def _hears(self) -> bool:
        """Whether the storage tells the living from the dead, so that a running trial will come to an end."""
        heartbeat = getattr(self._store, "get_heartbeat_interval", None)
        return heartbeat is not None and heartbeat() is not None

    def _by_place(self) -> dict[int, list[Any]]:
        trials = self._study.get_trials(deepcopy=False)
        found: dict[int, list[Any]] = {}
        for trial in trials:
            found.setdefault(place_of(trial, trials), []).append(trial)
        return found

    def _loss(self, tries: Sequence[Any]) -> float | None:
        """What a finished trial is worth to a swarm, lower is better; None if it is not finished."""
        sign = -1.0 if self._runner.objectives[0].rises else 1.0
        for trial in tries:
            if trial.state == self._states.COMPLETE:
                return sign * float(trial.values[0])
            if trial.state == self._states.PRUNED:
                last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
                return np.inf if last is None or not np.isfinite(last) else sign * float(last)
        return np.inf if self._failed(tries) and _deaths(tries) >= TRIES else None

    def _failed(self, tries: Sequence[Any]) -> bool:
        return all(trial.state == self._states.FAIL for trial in tries)

    def _try_again(self, by_place: Mapping[int, Sequence[Any]]) -> None:
        """Enqueue what did not come to its end: interrupted, or run by a process that died."""
        for place, tries in by_place.items():
            if self._failed(tries) and _deaths(tries) < TRIES:
                last = tries[-1]
                self._study.add_trial(
                    self._optuna.trial.create_trial(
                        state=self._states.WAITING,
                        params=last.params,
                        distributions=last.distributions,
                        user_attrs={"place": place, "again": True},
                        system_attrs={
                            key: last.system_attrs[key] for key in ("fixed_params",) if key in last.system_attrs
                        },
                    )
                )

    def _enqueue(self, place: int, parameters: Mapping[str, Any]) -> None:
        self._study.enqueue_trial(dict(parameters), user_attrs={"place": place})

    def _run_trial(self, trial: Any) -> Any:
        trials = self._study.get_trials(deepcopy=False)
        place = place_of(trial, trials)
        trial.set_user_attr("place", place)
        taken = any(
            place_of(other, trials) == place and other.state != self._states.FAIL
            for other in trials
            if other.number < trial.number
        )
        if taken:
            return float("nan")  # two workers have enqueued it: this one fails, and the other counts
        values = self._runner.run(trial)
        if self._verbose:
            found = ", ".join(
                f"{one.name} {value:.6g}" for one, value in zip(self._runner.objectives, values, strict=True)
            )
            print_msg(f"Trial {place + 1} of {self._wanted}: {found}")
        return values if len(values) > 1 else values[0]


def _deaths(tries: Sequence[Any]) -> int:
    """How many processes died on a trial: no error, and no Ctrl-C, ended it."""
    return sum(STOPPED not in trial.user_attrs for trial in tries)
