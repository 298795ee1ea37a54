"""A target for measured latency: plans along the order of removal are made and measured until one meets it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import keras
from keras import ops, tree

from keras_prune.devices import Device
from keras_prune.statistics.batches import Batches
from keras_prune.structured.analysis.groups import Keep
from keras_prune.structured.planning.latency_search import search
from keras_prune.structured.planning.unit_choice import Ranking, why_not_more

__all__ = ["GROUP", "Latency", "Measure", "Trial", "Trials", "find_measure"]

GROUP = "keras_prune.latency"
"""Entry points of packages that measure latency: functions that take `data`, inputs or None, and give a `Measure`.

Where the model is for a device, they are given it as `target=` too.
"""

Measure = Callable[[keras.Model], float]
"""Seconds of a run of a model. It is called with the whole model first; a slow spell of the machine should not count,
so what it gives of the others had better be measured in turn with the first. One that runs nothing says so by an
attribute `estimate`, a text: what its seconds are, and what they leave out."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A plan that was measured.

    Attributes:
        macs: the share of multiplications that is left.
        share: the share of latency.
    """

    macs: float
    share: float


@dataclasses.dataclass(frozen=True)
class Latency:
    """What was measured for a plan.

    Attributes:
        before: seconds of a run of the whole model.
        after: seconds of a run of the planned one.
        trials: all plans that were measured on the way to this one, in order.
        estimate: why these are no measured times; empty where they are.
    """

    before: float
    after: float
    trials: tuple[Trial, ...]
    estimate: str = ""

    def __str__(self) -> str:
        share = self.after / self.before
        found = f"an estimate: {self.estimate}" if self.estimate else "as measured"
        return (
            f"latency {1e3 * self.before:.3f} ms -> {1e3 * self.after:.3f} ms ({share:.1%} left, {found}; "
            f"{len(self.trials)} smaller models {'estimated' if self.estimate else 'measured'})"
        )


def find_measure(model: keras.Model, data: Any, device: Device | None = None) -> Measure:
    """The way to measure latency that an installed package offers.

    Args:
        model: whose inputs `data` has.
        data: as for an importance, or None; its first batch is what is run.
        device: what the model is for; None for no particular one.

    Raises:
        ImportError: no package offers one.
    """
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    if not found:
        raise ImportError(
            "plan: latency is measured on an exported file, by a package that exports; none is installed (no entry "
            f"point in the group {GROUP!r}). Install tflite_export: pip install keras-prune. Or give measure=, a "
            "function from a model to the seconds of a run."
        )
    inputs = None
    if data is not None:
        inputs = tree.map_structure(ops.convert_to_numpy, next(iter(Batches(data, model, labels=False))).x)
    measure: Measure = found[0].load()(inputs, **({} if device is None else {"target": device}))
    return measure


class Trials:
    """Plans by the number of units that go, each measured once.

    Args:
        measure: gives the seconds of a run.
        whole: the model as it is; it is measured first.
        ranking: the order in which its units go.
        build: makes the smaller model from what is kept.
    """

    def __init__(
        self, measure: Measure, whole: keras.Model, ranking: Ranking, build: Callable[[Keep], keras.Model]
    ) -> None:
        self.measure, self.ranking, self.build = measure, ranking, build
        self.before = _seconds(measure, whole)
        self.done: dict[bytes, Trial] = {}

    def meet(self, target: float, low: int) -> tuple[int, Latency]:
        """Return the fewest units, from `low` on, that were measured to meet a target, and what was measured.

        Raises:
            ValueError: no number of units meets it.
        """
        found = search(self.share, self.ranking.share_left, low, len(self.ranking), target)
        if found is None:
            reason = why_not_more(self.ranking.analysis)
            raise ValueError(f"plan: latency={target} cannot be met: {self}. {reason}")
        estimate = str(getattr(self.measure, "estimate", ""))
        return found, Latency(self.before, self.before * self.share(found), tuple(self.done.values()), estimate)

    def share(self, number: int) -> float:
        """Return the latency as a share of the whole model's."""
        keep = self.ranking.keep(number)
        if keep.all():
            return 1.0
        key = keep.tobytes()
        if key not in self.done:
            share = _seconds(self.measure, self.build(keep)) / self.before
            self.done[key] = Trial(self.ranking.share_left(number), share)
        return self.done[key].share

    def __str__(self) -> str:
        best = min(self.done.values(), key=lambda trial: trial.share)
        return (
            f"of {len(self.done)} smaller models measured, the fastest takes {best.share:.4f} of the whole one's "
            f"{1e3 * self.before:.3f} ms, with {best.macs:.4f} of its multiplications left"
        )


def _seconds(measure: Measure, model: keras.Model) -> float:
    """Measure, and refuse what cannot be a time."""
    seconds = float(measure(model))
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"plan: measure must give the seconds of a run, above 0. Received: {seconds}")
    return seconds
