"""Makes candidates, stage by stage, exports, measures and judges them; what the journal knows is not done again."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from keras import tree

from keras_prune.files.atomic import replaced
from keras_prune.files.loading import load_model
from keras_prune.monitoring.metric import Metric
from keras_prune.optimizers.compiling import known_objects
from keras_prune.strip import strip
from keras_prune.structured import Distillation
from tflite_export.compression.candidate import STAGES, Candidate, Route
from tflite_export.compression.given import TrainingData
from tflite_export.compression.journal import Journal
from tflite_export.compression.judging import Judge
from tflite_export.compression.space import Space
from tflite_export.compression.steps import (
    Step,
    Training,
    distillation_as_code,
    learning_rate,
    steps_for,
    target_as_code,
)
from tflite_export.compression.tried import Tried
from tflite_export.errors import ExportError
from tflite_export.export import export
from tflite_export.measures.measure import Cost, Measure
from tflite_export.verification.golden import Golden, read_golden

__all__ = ["Workshop"]

CALIBRATED_ON = 256
"""Inputs that an export is given: it verifies on some and takes ranges of activations from more."""
_SHOWN: dict[Any, Any] = {}
"""Warnings of other packages that were shown: each is shown once, as Python does by default."""


class Workshop:
    """Where candidates are made, each stage of each once.

    Args:
        model: the plain one, without masks; it stays as it is.
        space: what is searched.
        data: what candidates are made with.
        judge: gives their metric.
        measure: gives their cost.
        journal: of what is done.
        seed: set before each fine-tuning.
        distill: how candidates learn from a teacher; None where they learn from labels alone.

    Attributes:
        tried: what was tried, by candidate and stage, in the order of the search.
        spent: the seconds that all of it took, whichever process did it.
        making_seconds: the longest that a model took before it was trained.
    """

    def __init__(
        self,
        model: keras.Model,
        space: Space,
        data: TrainingData,
        judge: Judge,
        measure: Measure,
        journal: Journal,
        *,
        seed: int,
        distill: Distillation | None = None,
        say: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._plain, self._space, self._data = model, space, data
        self._judge, self._measure, self._journal = judge, measure, journal
        self._seed, self._say = seed, say
        self._rate = learning_rate(model)
        self._distill = distill
        self.tried: dict[tuple[Candidate, str], Tried] = {}
        self.spent = 0.0
        self.making_seconds = 0.0
        self._epoch_seconds: dict[float, float] = {}
        self._seen: set[str] = set()
        self._baseline: float | None = None
        self._reference = b""

    @property
    def folder(self) -> Path:
        """Where files and models are."""
        return self._journal.folder

    # -- what a search asks for ---------------------------------------------------------------------------------------

    def try_plain(self, candidate: Candidate) -> Tried:
        """Try the model as it is, in a number type: float32 first, which gives the baseline of the metric.

        Raises:
            ExportError: the plain float32 file, or the reference that costs are compared with, cannot be made.
        """
        made = self.try_candidate(Route(candidate))
        if (candidate == self._space.reference and made.cost is None) or (candidate.quantize is None and not made.file):
            raise ExportError(
                f"the {candidate.number_type} file of the model as it is",
                "must be there for others to be compared with",
                made.reason,
                "Make the model exportable first: tflite_export.export says more.",
            )
        return made

    def try_candidate(self, route: Route) -> Tried:
        """Try the candidate that a route leads to."""
        key = route.name_as(f"{route.candidate.shape}-{route.candidate.number_type}")
        known = self._journal.entries.get(key)
        if known is None:
            tried = self._make(route, key)
            self._journal.append(
                key, {"tried": tried.to_dict(), "baseline": self._baseline, "metric": _metric(self._judge)}
            )
            known = self._journal.entries[key]
        tried = Tried.from_dict(known["tried"])
        for one in () if route.candidate.is_plain else route.before:
            self._count(_model_key(one), one.candidate)
        self._count(key, route.candidate)
        self._baseline = known["baseline"]
        if self._judge.metric is None and known["metric"] is not None:
            self._judge.metric = Metric(**known["metric"])
        self.tried[route.candidate, route.stage] = tried
        return tried

    def epoch_seconds(self, candidate: Candidate) -> float:
        """Return what an epoch of fine-tuning a candidate takes at most, by those that were; 0 before any was.

        A smaller model takes no longer than a larger one.
        """
        larger = [seconds for keep, seconds in self._epoch_seconds.items() if keep >= candidate.keep]
        return min(larger) if larger else max(self._epoch_seconds.values(), default=0.0)

    def _count(self, key: str, candidate: Candidate) -> None:
        """Add the time of something that is done, once."""
        entry = self._journal.entries.get(key)
        if entry is None or key in self._seen:
            return
        self._seen.add(key)
        if "tried" in entry:
            self.spent += entry["tried"]["seconds"]
            return
        self.spent += entry["seconds"]
        if entry["epochs"]:
            seconds = entry["seconds"] / entry["epochs"]
            self._epoch_seconds[candidate.keep] = max(seconds, self._epoch_seconds.get(candidate.keep, 0.0))
        else:
            self.making_seconds = max(self.making_seconds, entry["seconds"])

    # -- files --------------------------------------------------------------------------------------------------------

    def _make(self, route: Route, key: str) -> Tried:
        """Export, measure and judge a candidate; an error of these is its reason."""
        candidate, stage, name = route.candidate, route.stage, ""
        if not candidate.is_plain:
            self._say(f"{candidate}: {_stage_in_words(stage)}")
            try:
                name = self._model(route)
            except ValueError as error:  # a share that cannot be reached, a layer that cannot be pruned
                return Tried(candidate, stage, route.total, reason=str(error))
        self._say(f"{candidate}: exported, measured and judged")
        start = time.perf_counter()
        file, metric, drop, cost, reason, size = "", None, None, None, "", 0
        with _collected() as notes:
            try:
                model = self._load(name) if name else self._plain
                golden = self._export(model, candidate, f"{key}.tflite")
                file = f"{key}.tflite"
                content = (self.folder / file).read_bytes()
                size = len(content)
                cost, reason = self._cost(candidate, content)
            except ExportError as error:
                reason = str(error)
        if file:
            metric = self._judge(model, content, golden)
            assert self._judge.metric is not None
            if candidate.is_plain and candidate.quantize is None:
                self._baseline = metric
            assert self._baseline is not None
            drop = self._judge.metric.loss_from(self._baseline, metric)
        seconds = time.perf_counter() - start
        return Tried(candidate, stage, route.total, metric, drop, cost, size, file, name, seconds, reason, tuple(notes))

    def _export(self, model: keras.Model, candidate: Candidate, name: str) -> Golden:
        """Write the file of a candidate into the folder, verified; gives the order of its inputs and outputs."""
        taken = candidate.quantize in self._space.number_types
        golden = self.folder / f"{name}.golden"
        try:
            export(
                model,
                self.folder / name,
                target=self._space.device if taken else None,
                quantize=candidate.quantize,
                data=tree.map_structure(lambda leaf: leaf[:CALIBRATED_ON], self._data.inputs),
                optimize=self._space.optimize,
                golden=golden,
            )
            return read_golden(golden)
        finally:
            golden.unlink(missing_ok=True)

    def _cost(self, candidate: Candidate, content: bytes) -> tuple[Cost | None, str]:
        """Return what a file costs beside the reference; or why that is not known."""
        if candidate.quantize not in self._space.number_types:
            kinds = ", ".join(kind or "float32" for kind in self._space.number_types)
            return None, f"'{self._space.device.name}' takes {kinds} only: exported for no device, to be judged"
        if candidate == self._space.reference:
            files = {"reference": content}
        else:
            files = {"reference": self._reference_file(), "candidate": content}
        found = self._measure.measure(files, "reference")
        cost = found.get("candidate" if len(files) > 1 else "reference")
        if cost is not None:
            return cost, ""
        return None, self._measure.refusal(content) or "it does not run there, or answers wrongly"

    def _reference_file(self) -> bytes:
        if not self._reference:
            self._reference = (self.folder / self.tried[self._space.reference, "untrained"].file).read_bytes()
        return self._reference

    # -- models -------------------------------------------------------------------------------------------------------

    def _model(self, route: Route) -> str:
        """Return the name of the file of a candidate's model, which all its number types share."""
        key = _model_key(route)
        known = self._journal.entries.get(key)
        if known is not None:
            if known["reason"]:
                raise ExportError("the model", "must be made", known["reason"], "Try another share.")
            return str(known["file"])
        before = self._model(route.before[-2]) if len(route.before) > 1 else ""
        start, name, reason = time.perf_counter(), f"{key}.keras", ""
        with _collected() as notes:
            model = self._load(before) if before else strip(self._plain)
            try:
                for step in self._last_steps(route):
                    model = step.do(model, self._data)
            except ValueError as error:
                if route.epochs:  # of fit: a mistake in the model or the data, which every candidate would meet
                    raise
                reason = str(error)
            else:
                with replaced(self.folder / name) as path:
                    model.save(path)
        entry = {
            "file": name,
            "epochs": route.epochs[-1] if route.epochs else 0,
            "seconds": time.perf_counter() - start,
            "reason": reason,
            "notes": notes,
        }
        self._journal.append(key, entry)
        return self._model(route)

    def _load(self, name: str) -> keras.Model:
        with known_objects(self._plain):
            return load_model(self.folder / name)

    def model_of(self, tried: Tried) -> keras.Model:
        """Return the Keras model behind a file, without masks."""
        return strip(self._load(tried.model) if tried.model else self._plain)

    def steps(self, route: Route) -> list[Step]:
        """Return the steps that make the model that a route leads to."""
        return [step for one in route.before for step in self._last_steps(one)]

    def _last_steps(self, route: Route) -> list[Step]:
        """Return the steps that make it of the model before."""
        if route.epochs:
            return [Training(route.epochs[-1], self._seed, self._rate, self._distill, route.candidate.values)]
        begun = None if route.start is None else route.start.candidate
        return list(steps_for(route.candidate, self._space, self._plain, begun))

    def recipe(self, tried: Tried, route: Route, path: str) -> str:
        """Return the code that makes a file again: see `CompressReport.recipe`."""
        quantize = "" if tried.candidate.quantize is None else f", quantize={tried.candidate.quantize!r}"
        optimize = "" if self._space.optimize == "speed" else f", optimize={self._space.optimize!r}"
        lines = ["import keras", "import keras_prune as kp", "import tflite_export as tx", "", *self._data.code]
        if self._distill is not None and route.total:
            lines.append(distillation_as_code(self._distill, self._plain))
        lines.append("model = kp.strip(model)  # a copy, its optimizer fresh")
        lines += [step.code(self._data) for step in self.steps(route)]
        few = "inputs" if not tree.is_nested(self._data.inputs) else "first"
        if few == "first":
            lines.append(f"first = keras.tree.map_structure(lambda each: each[:{CALIBRATED_ON}], inputs)")
        data = f"inputs[:{CALIBRATED_ON}]" if few == "inputs" else few
        target = target_as_code(self._space.device)
        lines.append(f"print(tx.export(model, {path!r}, target={target}{quantize}{optimize}, data={data}))")
        return "\n".join(lines) + "\n"


def _model_key(route: Route) -> str:
    return route.name_as(f"{route.candidate.shape}-model")


def _stage_in_words(stage: str) -> str:
    return dict(zip(STAGES, ("made without training", "trained a little", "trained fully", "trained on"), strict=True))[
        stage
    ]


def _metric(judge: Judge) -> dict[str, Any] | None:
    return None if judge.metric is None else {"name": judge.metric.name, "rises": judge.metric.rises}


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Collect what our own packages warn of, which the report then has; other warnings are given as ever."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        # A model that was not trained yet has a fresh optimizer, of which a file holds nothing.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer", UserWarning)
        yield found
    for each in caught:
        if any(f"{os.sep}{package}{os.sep}" in each.filename for package in ("keras_prune", "tflite_export")):
            found.append(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno, registry=_SHOWN)
    found[:] = dict.fromkeys(found)
