"""The search for the best strategy, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.variables import weights_digest
from keras_prune.monitoring.metric import Score
from keras_prune.search.result import Result
from keras_prune.search.samplers import NAMES, ONE_OBJECTIVE
from keras_prune.search.worker import Worker
from keras_prune.strategy import integer
from keras_prune.trials.extra import search_module
from keras_prune.trials.objectives import Measured, resolve_objectives
from keras_prune.trials.space import Space
from keras_prune.trials.trial import Training, TrialRunner
from keras_prune.trials.working_copy import WorkingCopy

__all__ = ["study"]


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
            plain pruned model, whose number should be low (`Objective` for one that should be high), such as
            `tflite_export.NpuCost("ethos-u55", "flash_bytes", data=x)`.
        metric: its name in what `evaluate` returns; None for the first one beside the loss.
        mode: "max", "min", or "auto" as Keras finds it.
        sampler: "tpe", "nsga2", "genetic" (NSGA-II with one objective), "cmaes", "pso", "random", or an Optuna sampler,
            whose draws follow from its own state, so that a search that was stopped goes on with other ones.
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
    worker = Worker(runner, trials, seed, verbose)
    try:
        worker.open(storage, name, sampler, weights_digest(model))
        return worker.run()
    finally:
        worker.close()


def _check_sampler(sampler: Any) -> None:
    if isinstance(sampler, str):
        if sampler not in NAMES:
            raise ValueError(f"study: sampler must be one of {NAMES}, or an Optuna sampler. Received: {sampler!r}")
    elif not isinstance(sampler, search_module("optuna").samplers.BaseSampler):
        raise TypeError(f"study: sampler must be one of {NAMES}, or an Optuna sampler. Received: {sampler!r}")


def _check_aim(measured: Sequence[Measured], sampler: Any, sparsity: float | None, space: Any) -> None:
    names = [one.name for one in measured]
    if len(measured) > 1 and sampler in ONE_OBJECTIVE:
        raise ValueError(
            f"study: sampler {sampler!r} looks for the best of one objective. Received: objectives {names}. Take "
            "'nsga2', 'tpe' or 'random'."
        )
    if sparsity is None and len(measured) == 1 and not callable(space):
        raise ValueError(
            f"study: with one objective, the best is hardly pruned, or pruned to the bounds. Received: sparsity=None "
            f"and objectives {names}. Say sparsity=0.8, or add an objective, such as 'bytes'."
        )
    if sparsity is not None and callable(space):
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
    pruners = search_module("optuna").pruners
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
