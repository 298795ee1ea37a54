"""One call: the best file for a device within a budget of accuracy."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import keras

from keras_prune.devices import DEVICES, Device
from keras_prune.strip import strip
from keras_prune.structured import Distillation
from tflite_export.compression.candidate import Candidate
from tflite_export.compression.given import TrainingData, digest_of_data, digest_of_model
from tflite_export.compression.journal import Journal
from tflite_export.compression.judging import Judge
from tflite_export.compression.progress import SearchProgress
from tflite_export.compression.report import CompressReport, names_of_baselines, nothing_found, rows_of
from tflite_export.compression.search import Bounds, Search
from tflite_export.compression.space import space_for
from tflite_export.compression.workshop import Workshop
from tflite_export.errors import ExportError
from tflite_export.file.atomic import check_writable, write_atomically
from tflite_export.measures.choosing import measure_for
from tflite_export.measures.measure import OBJECTIVES, Measure
from tflite_export.targets import resolve_target

__all__ = ["compress"]

BUDGET = "20 min"
EPOCHS = 8
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def compress(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    data: Any,
    validation: Any,
    target: str | Device | None = None,
    max_drop: float = 0.01,
    minimize: str = "latency",
    budget: str | float | None = None,
    trials: int | None = None,
    metric: str | None = None,
    mode: str = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    distill: Distillation | bool = True,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    measure: Measure | None = None,
    verbose: int = 1,
) -> CompressReport:
    """Write the cheapest file of a model for a device whose metric is still good enough.

    Tried are structured shares, zeros in the pattern that the device skips, values that weights share where fewer take
    less flash (microcontrollers, NPUs), number types, and their combinations. Each
    candidate is made without training first (what is kept is solved again, statistics are estimated again); those
    that cost less than the best so far are trained a little; the best are trained fully; what misses `max_drop` by
    little is trained on in the time that is left. Each is exported by
    `tflite_export.export`, which verifies it, and is measured in the target's runtime in turn with the plain file;
    the metric is that of the file, run in LiteRT on the validation inputs. The model itself stays as it is.

    The journal in `folder` makes a search resumable: after a kill at any point, the same call goes on where it
    stopped, and ends as one that was not interrupted. What was tried also counts for another `max_drop`, `budget` or
    `trials`. Ctrl-C ends with the best so far.

    Args:
        model: a built Keras model, compiled: fine-tuning takes its loss and its optimizer, fresh, from there.
        path: where to write the file: at the end, once, or not at all.
        data: what to train on: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset` or a `keras.utils.PyDataset`.
            Without labels nothing is trained.
        validation: what to judge by, likewise; or a function from a Keras model to a number.
        target: as for `tflite_export.export`.
        max_drop: how much worse than the plain float32 file's the metric may be, in the metric's own units: 0.01 of
            an accuracy is one point.
        minimize: "latency", "size" (bytes of the file) or "flash" (bytes on a microcontroller).
        budget: how long to search: "20 min", "1 h", "90 s", or seconds; None, without `trials`: 20 minutes. Time for
            the last stage is kept.
        trials: instead of a budget: how many candidates to try besides the baselines. Nothing depends on the clock
            then, but measured times themselves.
        metric: of those that the model is compiled with, by name; None: the first beside the loss.
        mode: "max", "min", or "auto" as Keras finds it; a function's value rises with "auto".
        epochs: of the full fine-tuning; the short one is a quarter of it, one at least. None: 8. 0: nothing is trained.
        batch_size: of fine-tuning, where data are arrays; None: 32.
        distill: whether candidates learn from the plain model's answers beside the labels. True: where these are
            classes, and Keras's Distiller can train the model; otherwise from labels alone, and the report says why.
            A `keras_prune.structured.Distillation` says how. False: from labels alone, which is better where the plain
            model is not trained to its end.
        seed: of Python's, NumPy's and TensorFlow's generators, set before each fine-tuning.
        folder: of the search; None: `NAME-search` beside the path.
        measure: how cost is measured; None: by what the device is and what is installed.
        verbose: 0: nothing is printed. 1: a progress bar, then the table. 2: the bar alone.

    Returns:
        The table of all that was tried, the Keras model behind the file, and its recipe as code.

    Raises:
        ExportError: an argument is not known; the model cannot be exported as it is; no candidate that costs less
            is within `max_drop`: the message says which `max_drop` would give what, and nothing is written; or the
            folder holds a search for other arguments, or one that is running.
        KeyboardInterrupt: Ctrl-C before anything good was found.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> with tempfile.TemporaryDirectory() as at:
        ...     report = compress(model, f"{at}/m.tflite", data=(x, x[:, :1]), validation=(x, x[:, :1]), max_drop=0.1,
        ...                       minimize="size", trials=0, epochs=0, verbose=0)
        >>> report.ratio > 1.0, report.chosen.drop <= 0.1
        (True, True)
    """
    device = resolve_target(target)
    bounds = _bounds(max_drop, minimize, budget, trials, epochs, seed)
    check_writable(path)
    _check_model(model, validation, bounds.epochs)
    plain = strip(model)
    given = TrainingData.of(data, model, batch_size)
    if not given.trains:
        bounds = _untrained(bounds, epochs)
    judge = Judge(model, validation, metric, mode)
    taught, untaught = _distillation(distill, plain, given)
    space = space_for(device, minimize, plain)
    place = Path(folder) if folder is not None else Path(path).with_name(f"{Path(path).stem}-search")
    asked = {
        "model": digest_of_model(model),
        "target": device.name if DEVICES.get(device.name) == device else repr(device),
        "minimize": minimize,
        "metric": metric,
        "mode": mode,
        "epochs": bounds.epochs,
        "batch_size": batch_size,
        "distill": None if taught is None else [taught.temperature, taught.alpha, taught.outputs],
        "seed": seed,
        "measure": None if measure is None else type(measure).__name__,
        "data": digest_of_data(data),
        "validation": digest_of_data(validation),
    }
    with (
        measure_for(device, minimize, measure) as measuring,  # first, so that a refusal leaves no folder behind
        Journal(place, asked) as journal,
        SearchProgress(bounds.seconds or bounds.trials or 1, shown=verbose > 0) as progress,
    ):
        lab = Workshop(plain, space, given, judge, measuring, journal, seed=seed, distill=taught, say=progress.doing)
        search = Search(space, lab, bounds, after=lambda: progress.done(*_so_far(search, lab, bounds)))
        interrupted = False
        try:
            search.run()
        except KeyboardInterrupt:
            if search.best() is None:
                raise
            interrupted = True
    best = search.best()
    if best is None:
        raise nothing_found(lab.tried.values(), judge.metric, bounds.max_drop, minimize, place)
    plain_metric = lab.tried[Candidate(), "untrained"].metric
    assert judge.metric is not None
    assert plain_metric is not None
    write_atomically(path, (place / best.file).read_bytes())
    notes = [*space.notes, *search.notes, *(note for note in (untaught, judge.note) if note)]
    if not bounds.epochs:
        notes.append("nothing was trained")
    if interrupted:
        notes.append("interrupted: the best of what was tried until then; the same call goes on from there")
    report = CompressReport(
        path=os.fspath(path),
        rows=rows_of(lab.tried.values(), best),
        chosen=best,
        baselines=names_of_baselines(space),
        metric=judge.metric,
        baseline=plain_metric,
        max_drop=max_drop,
        target=device.name,
        objective=minimize,
        shares_of="multiplications" if space.goal == "flops" else "parameters",
        folder=os.fspath(place),
        recipe=lab.recipe(best, search.route_to(best), os.fspath(path)),
        model=lab.model_of(best),
        seconds=lab.spent,
        notes=tuple(notes),
    )
    if verbose == 1:
        print(report)
    return report


def _bounds(
    max_drop: float, minimize: str, budget: str | float | None, trials: int | None, epochs: int | None, seed: int
) -> Bounds:
    """Check what says how far to go."""
    if minimize not in OBJECTIVES:
        raise ExportError("minimize", f"must be one of {OBJECTIVES}", repr(minimize), "Choose one of these.")
    if not isinstance(max_drop, int | float) or not max_drop >= 0:
        raise ExportError(
            "max_drop", "must be 0 or more, in the metric's units", repr(max_drop), "0.01 of an accuracy is a point."
        )
    if budget is not None and trials is not None:
        raise ExportError(
            "budget, trials", "are two ways to say when to end", f"{budget!r}, {trials!r}", "Give one of them."
        )
    for name, value in (("trials", trials), ("epochs", epochs), ("seed", seed)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ExportError(name, "must be a whole number, 0 or more", repr(value), "Correct it.")
    seconds = None if trials is not None else _seconds(BUDGET if budget is None else budget)
    return Bounds(float(max_drop), EPOCHS if epochs is None else epochs, trials, seconds)


def _seconds(budget: str | float) -> float:
    """Return the seconds of a budget.

    Example:
        >>> _seconds("20 min"), _seconds("1.5 h"), _seconds(90)
        (1200.0, 5400.0, 90.0)
    """
    if isinstance(budget, int | float) and not isinstance(budget, bool) and budget > 0:
        return float(budget)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", budget) if isinstance(budget, str) else None
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ExportError("budget", "must be such as '20 min', '1 h', '90 s', or seconds", repr(budget), "Correct it.")
    return float(found[1]) * _UNITS[found[2]]


def _check_model(model: Any, validation: Any, epochs: int) -> None:
    """Refuse what cannot be trained or judged."""
    if not isinstance(model, keras.Model):
        raise ExportError(
            "model", "must be a Keras model", type(model).__name__, "Load a file by keras_prune.load_model."
        )
    if not model.built:
        raise ExportError(f"model '{model.name}'", "must be built", "an unbuilt model", "Call it once on a batch.")
    if validation is None:
        raise ExportError(
            "validation",
            "must be there: it says which files are good enough",
            None,
            "Pass (x, y), a data set, or a function from a Keras model to a number.",
        )
    if not model.compiled and (epochs or not callable(validation)):
        raise ExportError(
            f"model '{model.name}'",
            "must be compiled: its loss and optimizer train candidates, its metrics judge them",
            "a model that is not compiled",
            "Call compile(...) on it; or pass epochs=0 and validation= as a function.",
        )


def _distillation(
    distill: Distillation | bool, plain: keras.Model, given: TrainingData
) -> tuple[Distillation | None, str]:
    """Return how candidates learn from the plain model; or None, and why they do not where that was not asked for."""
    if not isinstance(distill, Distillation | bool):
        raise ExportError(
            "distill",
            "must be True, False or a keras_prune.structured.Distillation",
            repr(distill),
            "Leave it out: candidates then learn from the plain model where they can.",
        )
    if distill is False or not given.trains:
        return None, ""
    chosen = Distillation() if distill is True else distill
    taught = chosen if chosen.teacher is not None else dataclasses.replace(chosen, teacher=plain)
    reason = "samples have weights" if given.weighted else taught.refusal(plain, **given.fit)
    if distill is not True:
        if reason:
            raise ExportError("distill", "must be able to train the model", reason, "Pass distill=False.")
        return taught, ""
    if not reason and taught.kind_of(plain) == "values":
        reason = "by its loss, the model's outputs are values and not classes"
    return (None, f"candidates learned from labels alone: {reason}") if reason else (taught, "")


def _untrained(bounds: Bounds, epochs: int | None) -> Bounds:
    if epochs:
        raise ExportError("data", "must have labels to train on", f"x alone, and epochs={epochs}", "Pass (x, y).")
    return Bounds(bounds.max_drop, 0, bounds.trials, bounds.seconds)


def _so_far(search: Search, lab: Workshop, bounds: Bounds) -> tuple[float, str]:
    best = search.best()
    words = "" if best is None else f"best {best.ratio:.2f} x at {best.metric:.4f}"
    return (lab.spent if bounds.seconds is not None else float(search.count())), words
