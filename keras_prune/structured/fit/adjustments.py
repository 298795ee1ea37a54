"""Looks at a metric, and what each of them decides for the structure of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from keras_prune.monitoring.metric import ROUNDING, Metric
from keras_prune.strategy import check_fraction
from keras_prune.structured.analysis.groups import Analysis, Keep, Units
from keras_prune.structured.analysis.widths import Kept
from keras_prune.structured.counting.counting import Counter
from keras_prune.structured.importances.importance import Scores
from keras_prune.structured.planning.plan import WIDTH
from keras_prune.text.tables import plain_lines

__all__ = [
    "GROWTHS",
    "SCOPES",
    "Adjustment",
    "Adjustments",
    "Progress",
    "check_arguments",
    "check_looks",
    "decide",
    "first_allowed",
    "reached_target",
    "units_to_copy",
]

GROWTHS = ("weights", "net2net")
SCOPES = ("local", "global")
REFERENCES = ("best", "dense")


@dataclasses.dataclass(frozen=True)
class Adjustment:
    """One look at the metric, and what followed.

    Attributes:
        epoch: counted from 0.
        step: of the training, counted from 1.
        metric: its value.
        reference: what it was compared with.
        action: "close", "open" or "hold".
        units: how many units were closed or opened.
        open: how many units are open afterwards.
        reason: why.
    """

    epoch: int
    step: int
    metric: float
    reference: float
    action: str
    units: int
    open: int
    reason: str


class Adjustments(tuple[Adjustment, ...]):
    """All looks at the metric, in order; `str()` is a table."""

    __slots__ = ()

    def __str__(self) -> str:
        table = Table(box=box.SIMPLE)
        for name in ("epoch", "step", "metric", "reference", "action", "units", "open"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for a in self:
            metric, reference = f"{a.metric:.4f}", f"{a.reference:.4f}"
            numbers = (str(a.epoch), str(a.step), metric, reference, a.action, str(a.units), str(a.open))
            table.add_row(*numbers, a.reason)
        return "\n".join(plain_lines(table, width=WIDTH)).strip("\n")

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return everything as values that JSON knows."""
        return [dataclasses.asdict(adjustment) for adjustment in self]


def decide(lost: float, tolerance: float, falls: int, patience: int) -> tuple[str, str]:
    """Choose what to do: an action, and the reason.

    Args:
        lost: how much worse the metric is than its reference; not a number counts as a fall.
        tolerance: how much worse it may be.
        falls: how many looks in a row before this one found it worse than that.
        patience: after how many such looks units are opened.

    Example:
        >>> decide(0.02, 0.01, falls=0, patience=2)
        ('hold', '0.0200 worse, 0.01 allowed: look 1 of 2')
        >>> decide(0.02, 0.01, falls=1, patience=2)
        ('open', '0.0200 worse, 0.01 allowed')
        >>> decide(0.01, 0.01, falls=1, patience=2)
        ('close', 'within 0.01')
    """
    if lost <= tolerance + ROUNDING:
        return "close", f"within {tolerance:g}"
    reason = f"{lost:.4f} worse, {tolerance:g} allowed"
    return ("open", reason) if falls + 1 >= patience else ("hold", f"{reason}: look {falls + 1} of {patience}")


@dataclasses.dataclass
class Progress:
    """What the looks so far have left behind: what a training that goes on has to know.

    Attributes:
        step: the share of units that is closed or opened at a time.
        best: the best value of the metric, or the one that all are compared with; None before the first look.
        falls: how many looks in a row have found the metric worse than allowed.
        falling: whether the last change opened units.
        looks: how many there were.
        steps: of the optimizer.
        put_off: whether units were to be closed at the end of a training, and were not.
        closed: the closed units, in the order in which they were closed.
    """

    step: float
    best: float | None = None
    falls: int = 0
    falling: bool = False
    looks: int = 0
    steps: int = 0
    put_off: bool = False
    closed: list[int] = dataclasses.field(default_factory=list)

    def compared_with(self, reference: str | float, value: float, metric: Metric) -> float:
        """Return what a value of the metric is compared with, and note the value if that is what it is.

        Args:
            reference: "best", "dense" or a number, as for `StructureAdjustment`.
            value: of the metric, at this look.
            metric: tells which of two values is better.
        """
        if not isinstance(reference, str):
            return float(reference)
        if self.best is None or (reference == "best" and metric.loss_from(self.best, value) < 0):
            self.best = value
        return self.best

    def to_array(self) -> npt.NDArray[np.float64]:
        """Return everything as numbers, in the order of the attributes, for a checkpoint."""
        best = np.nan if self.best is None else self.best
        flags = [self.step, best, self.falls, self.falling, self.looks, self.steps, self.put_off]
        return np.array([*flags, *self.closed], np.float64)

    @classmethod
    def from_array(cls, values: npt.NDArray[np.float64]) -> Progress:
        """Return what `to_array` wrote down.

        Example:
            >>> progress = Progress(0.1, best=0.5, falls=2, closed=[7, 3])
            >>> Progress.from_array(progress.to_array()) == progress
            True
        """
        step, best, falls, falling, looks, steps, put_off, *closed = values.tolist()
        return cls(
            step,
            None if np.isnan(best) else best,
            int(falls),
            bool(falling),
            int(looks),
            int(steps),
            bool(put_off),
            [int(unit) for unit in closed],
        )


def first_allowed(analysis: Analysis, order: Units, keep: Keep, least: Kept, number: int) -> Units:
    """Return the first `number` units of an order, while their groups keep what they have to."""
    starts = np.array([group.start for group in analysis.groups], np.int64)
    room = analysis.counts(keep) - least
    found: list[int] = []
    for unit in order:
        group = int(np.searchsorted(starts, unit, side="right")) - 1
        if room[group] > 0 and len(found) < number:
            room[group] -= 1
            found.append(int(unit))
    return np.array(found, np.int64)


def units_to_copy(analysis: Analysis, keep: Keep, scores: Scores, units: Units) -> list[tuple[int, int]]:
    """Return for each unit that comes back the open unit of its group that it copies: the most important in turn.

    Args:
        analysis: of the model.
        keep: which units are open, `[units]`.
        scores: of all units, `[units]`.
        units: that come back.
    """
    scores = np.where(keep, scores, -np.inf)
    pairs = []
    for group in analysis.groups:
        back = [u for u in units.tolist() if group.start <= u < group.stop]
        open_ = group.start + np.flatnonzero(keep[group.start : group.stop])
        best = open_[np.argsort(-scores[open_], kind="stable")]
        pairs += [(u, int(best[i % len(best)])) for i, u in enumerate(back)]
    return pairs


def reached_target(analysis: Analysis, keep: Keep, targets: Mapping[str, float | None]) -> str:
    """Return which target the open units are down to, in words; empty if none."""
    counter = Counter(analysis)
    kept = analysis.counts(keep)
    whole, now = counter.total(counter.sizes), counter.total(kept)
    for name, share in targets.items():
        if share is not None and getattr(now, name) <= share * getattr(whole, name):
            shown = "params" if name == "params" else "flops"
            return f"{shown}={share} is reached, {getattr(now, name) / getattr(whole, name):.3f} left"
    return ""


def check_arguments(
    *,
    tolerance: float,
    shares: Mapping[str, float | None],
    min_step: float,
    whole: Mapping[str, int],
    noise: float,
    choices: Mapping[str, tuple[str, Sequence[str]]],
    reference: str | float,
) -> None:
    """Refuse arguments of `StructureAdjustment` that are out of their range.

    Args:
        tolerance: from 0.
        shares: by name, in (0, 1) or None.
        min_step: in [0, 1).
        whole: by name, whole numbers from 1.
        noise: in [0, 1).
        choices: by name, what was chosen and the choices.
        reference: a name or a finite number.

    Raises:
        ValueError: with the argument and its value.
    """
    for name, share in shares.items():
        if share is not None:
            check_fraction(f"StructureAdjustment: {name}", share)
            if share == 0.0:
                raise ValueError(f"StructureAdjustment: {name} must be above 0. Received: {share}")
    check_fraction("StructureAdjustment: min_step", min_step)
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise ValueError(f"StructureAdjustment: tolerance must be 0 or more. Received: {tolerance!r}")
    for name, number in whole.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"StructureAdjustment: {name} must be a whole number from 1. Received: {number!r}")
    if not isinstance(noise, int | float) or not 0.0 <= noise < 1.0:
        raise ValueError(f"StructureAdjustment: noise must be in [0, 1). Received: {noise!r}")
    for name, (chosen, known) in choices.items():
        if chosen not in known:
            raise ValueError(f"StructureAdjustment: {name} must be one of {known}. Received: {chosen!r}")
    if reference not in REFERENCES and (isinstance(reference, str) or not np.isfinite(reference)):
        raise ValueError(
            f"StructureAdjustment: reference must be one of {REFERENCES}, or a number. Received: {reference!r}"
        )


def check_looks(every: int | None, metric: str, validation_data: Any) -> None:
    """Refuse looks between epochs at what is not measured there.

    Raises:
        ValueError: with the argument and its value.
    """
    if every is not None and (not isinstance(every, int) or every < 1):
        raise ValueError(f"StructureAdjustment: every must be a whole number from 1, or None. Received: {every!r}")
    if every is not None and (validation_data is None or not metric.startswith("val_")):
        raise ValueError(
            f"StructureAdjustment: every={every} looks at a metric of validation_data, with 'val_' before its name. "
            f"Received: metric={metric!r}, validation_data {'None' if validation_data is None else 'given'}."
        )
