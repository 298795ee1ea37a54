"""The search: trial after trial, from any number of processes, until enough are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.keras_seam import print_msg
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.monitoring.metric import Score
from keras_prune.search.result import Result
from keras_prune.search.samplers import NAMES, ONE_OBJECTIVE, make_sampler, place_of, population_for, seeded
from keras_prune.search.storage import model_digest, open_storage, open_study, short_digest
from keras_prune.search.swarm import Swarm
from keras_prune.strategy import integer
from keras_prune.trials.extra import import_extra, quiet_optuna
from keras_prune.trials.objectives import Measured, resolve_objectives
from keras_prune.trials.space import ModelSpace, Space
from keras_prune.trials.trial import STOPPED, Training, TrialRunner
from keras_prune.trials.working_copy import WorkingCopy

__all__ = ["study"]

TRIES = 3
"""How often a trial is tried whose process dies."""
PAUSE = 0.25
"""Seconds between two looks at what other workers do."""


def study(
    model: keras.Model,
    data: Any,
    validation: Any,
    *,
    space: Space | Callable[[Any], Any] | None = None,
    sparsity: float | None = None,
    objectives: Any = ("metric",),
    metric: str | None = None,
    mode: str = "auto",
    sampler: Any = "tpe",
    trials: int = 50,
    epochs: int = 0,
    fit: Mapping[str, Any] | None = None,
    reconstruct: bool = False,
    early_stop: Any = "median",
    storage: Any = None,
    name: str | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> Result:
    """Search for the best way to prune a model: how much of each tensor, by which criterion, pattern and schedule.

    Each trial starts from the model's weights, prunes a copy, trains it if `epochs` says so, and measures it. The same
    call on the same storage goes on where an earlier one stopped; called in several processes at once, they share the
    trials. A process that dies leaves a running trial behind, which another one tries again. The model that is given
    is never changed.

    Args:
        model: built; compiled, if trials train or the metric is one of Keras's.
        data: `(x, y)` or a data set: to train on, for criteria that take data, and to reconstruct on.
        validation: `(x, y)` or a data set for `model.evaluate`, or a function of the model that gives a number.
        space: `Space`, or a function of an Optuna trial that returns a `PruningStrategy`, or for trials that train a
            callback. None for `Space()`.
        sparsity: of all tensors together, a fraction in [0, 1): every trial has it, to a weight. None leaves it free,
            for several objectives.
        objectives: one or several of "metric"; "bytes", of the weights that are not zero; "macs", multiplications by
            them for one sample; "latency", seconds of a run, measured by the package that exports; or functions of the
            plain pruned model, whose number should be low (`Objective` for one that should be high).
        metric: its name in what `evaluate` returns; None for the first one beside the loss.
        mode: "max", "min", or "auto" as Keras finds it.
        sampler: "tpe", "nsga2", "genetic" (NSGA-II with one objective), "cmaes", "pso", "random", or an Optuna sampler.
        trials: how many have to be finished, those of earlier calls and other workers included.
        epochs: of training in each trial; 0 prunes at once.
        fit: options of `fit`, such as `{"batch_size": 64}`.
        reconstruct: with `epochs=0`, solve the kept weights again on `data` (as in `keras_prune.prune`).
        early_stop: ends poor trials by the metric after each epoch: "median" for trials worse than the median of the
            others in the second half of the epochs, an Optuna pruner, or None. Only with one objective, "metric".
        storage: None for the SQLite file `keras-prune-search.db` in the current folder; the path of another; a URL such
            as `postgresql+psycopg://...`; or an Optuna storage, `optuna.storages.InMemoryStorage()` for none.
        name: of the study in the storage; None for one of its own for this model, space and these objectives.
        seed: of the search; in one process, the same seed gives the same trials. Trials that train set Keras's seed.
        verbose: 1 prints a line a trial, 0 nothing.

    Returns:
        What was tried: `best`, `front`, `callback()`, `code`, `plot(path)`; `str()` is a table. After Ctrl-C, what was
        tried until then, with `interrupted` set.

    Raises:
        ValueError: an argument is out of its range, the space cannot reach the sparsity, or the study that is stored
            under this name has another model, space or aim.
        ImportError: Optuna, or what a sampler needs, is not installed; the message has the command.
        KeyboardInterrupt: Ctrl-C before any trial was finished.

    Example:
        >>> import numpy as np
        >>> import optuna
        >>> x = np.random.default_rng(0).normal(size=(64, 6))
        >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        >>> model.compile(loss="mse")
        >>> y = model.predict(x, verbose=0)
        >>> memory = optuna.storages.InMemoryStorage()
        >>> result = study(model, (x, y), (x, y), sparsity=0.5, trials=6, storage=memory, verbose=0)
        >>> len(result.trials), result.best.sparsity
        (6, 0.5)
    """
    refuse_keras2("study", model)
    trials, epochs, seed = (
        integer(f"study: {key}", value) for key, value in (("trials", trials), ("epochs", epochs), ("seed", seed))
    )
    if trials < 1 or epochs < 0 or seed < 0:
        raise ValueError(
            "study: trials must be 1 or more, epochs and seed 0 or more. "
            f"Received: trials={trials}, epochs={epochs}, seed={seed}"
        )
    if reconstruct and epochs:
        raise ValueError(f"study: reconstruct=True is for pruning at once, epochs=0. Received: epochs={epochs}")
    _check_sampler(sampler)
    copy = WorkingCopy(model, trains=epochs > 0)
    score = Score("study", validation, metric, mode)
    measured = resolve_objectives(objectives, copy, score, data)
    _check_aim(measured, sampler, sparsity, space)
    chosen = _space_of(model, space, sparsity, epochs)
    training = Training(epochs, dict(fit or {}), reconstruct, isinstance(data, tuple))
    runner = TrialRunner(copy, chosen, measured, score, data, training, _stopper(early_stop, measured, epochs), seed)
    search = _Search(runner, trials, seed, verbose)
    search.open(storage, name, sampler, model_digest(model))
    return search.run()


def _check_sampler(sampler: Any) -> None:
    if isinstance(sampler, str):
        if sampler not in NAMES:
            raise ValueError(f"study: sampler must be one of {NAMES}, or an Optuna sampler. Received: {sampler!r}")
    elif not isinstance(sampler, import_extra("optuna").samplers.BaseSampler):
        raise TypeError(f"study: sampler must be one of {NAMES}, or an Optuna sampler. Received: {sampler!r}")


def _check_aim(measured: Sequence[Measured], sampler: Any, sparsity: float | None, space: Any) -> None:
    names = [one.name for one in measured]
    if len(measured) > 1 and sampler in ONE_OBJECTIVE:
        raise ValueError(
            f"study: sampler {sampler!r} looks for the best of one objective. Received: objectives {names}. Take "
            "'nsga2', 'tpe' or 'random'."
        )
    free = sparsity is None and (space is None or isinstance(space, Space))
    if free and len(measured) == 1 and not callable(space):
        raise ValueError(
            f"study: with one objective, the best is hardly pruned, or pruned to the bounds. Received: sparsity=None "
            f"and objectives {names}. Say sparsity=0.8, or add an objective, such as 'bytes'."
        )
    if sparsity is not None and callable(space) and not isinstance(space, Space):
        raise ValueError(
            f"study: a space of your own says how sparse a trial is. Received: sparsity={sparsity} and a function. "
            "Leave sparsity away."
        )


def _space_of(model: keras.Model, space: Any, sparsity: float | None, epochs: int) -> Callable[[Any], Any]:
    if space is None or isinstance(space, Space):
        return (space or Space()).of(model, sparsity, trains=epochs > 0)
    if not callable(space):
        raise TypeError(
            f"study: space must be a keras_prune.search.Space or a function of a trial. Received: {space!r}"
        )
    chosen: Callable[[Any], Any] = space
    return chosen


def _stopper(early_stop: Any, measured: Sequence[Measured], epochs: int) -> Any:
    """The Optuna pruner that ends poor trials; None if none does."""
    if early_stop is None:
        return None
    pruners = import_extra("optuna").pruners
    given = isinstance(early_stop, pruners.BasePruner)
    if not given and early_stop != "median":
        raise ValueError(f"study: early_stop must be 'median', an Optuna pruner, or None. Received: {early_stop!r}")
    if len(measured) > 1 or epochs == 0 or not measured[0].is_metric:
        if given:
            raise ValueError(
                "study: trials are ended early by the metric after an epoch, where it is the one objective. Received: "
                f"early_stop={early_stop!r}, objectives {[one.name for one in measured]}, epochs={epochs}"
            )
        return None
    return early_stop if given else pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=epochs // 2)


class _Search:
    """One process that works on a study."""

    def __init__(self, runner: TrialRunner, trials: int, seed: int, verbose: int) -> None:
        self._optuna = import_extra("optuna")
        self._states = self._optuna.trial.TrialState
        self._runner = runner
        self._wanted = trials
        self._seed = seed
        self._verbose = verbose
        self._swarm: Swarm | None = None
        self._own = 0

    def open(self, storage: Any, name: str | None, sampler: Any, digest: str) -> None:
        """Make the study or take it up; the one that makes it enqueues the starts."""
        runner = self._runner
        parameters = runner.parameters()
        described = {
            "space": {key: self._optuna.distributions.distribution_to_json(one) for key, one in parameters.items()},
            "aim": [[one.name, one.rises] for one in runner.objectives],
            "sparsity": getattr(runner.space, "sparsity", None),
            "training": runner.training.described(),
            "model": digest,
        }
        name = f"{runner.copy.model.name}-{short_digest(described)}" if name is None else name
        self._store = open_storage(storage)
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

    def _next(self) -> bool:
        """Return whether there is a trial to run now; wait, while others run the last ones."""
        while True:
            self._optuna.storages.fail_stale_trials(self._study)
            by_place = self._by_place()
            losses = {place: loss for place, found in by_place.items() if (loss := self._loss(found)) is not None}
            if len(losses) >= self._wanted:
                return False
            states = [trial.state for found in by_place.values() for trial in found]
            self._try_again(by_place)
            if self._swarm is not None:
                due = self._swarm.due(losses)
                for place, parameters in due.items():
                    if place < self._wanted and place not in by_place:
                        self._enqueue(place, parameters)
                        states.append(self._states.WAITING)
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
        self._own += 1
        if self._verbose:
            found = ", ".join(
                f"{one.name} {value:.6g}" for one, value in zip(self._runner.objectives, values, strict=True)
            )
            print_msg(f"Trial {place + 1} of {self._wanted}: {found}")
        return values if len(values) > 1 else values[0]


def _deaths(tries: Sequence[Any]) -> int:
    """How many processes died on a trial: no error, and no Ctrl-C, ended it."""
    return sum(STOPPED not in trial.user_attrs for trial in tries)
