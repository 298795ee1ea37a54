"""How a metric steers the sparsity: from each look at it, what is done next. Pure: numbers in, numbers out."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from keras_prune.monitoring.metric import Metric
from keras_prune.strategy import check_fraction
from keras_prune.text.tables import plain_lines

__all__ = ["Look", "Looks", "Progress", "Steering"]

LARGEST_STEP = 0.5
"""Steps grow up to this share of the weights that are left."""
OWNER = "AdaptivePruning"


@dataclasses.dataclass(frozen=True)
class Look:
    """One look at the metric, at the end of an epoch, and what followed.

    Attributes:
        epoch: counted from 0.
        metric: its value.
        baseline: what it was compared with; not a number while the baseline is measured.
        sparsity: of the model that was measured, a fraction in [0, 1).
        action: "measure", "raise", "hold", "roll back" or "end".
        to: the sparsity that is asked for in the next epoch; under an allocation by name, of the tensors without one.
        reason: why.
    """

    epoch: int
    metric: float
    baseline: float
    sparsity: float
    action: str
    to: float
    reason: str


class Looks(tuple[Look, ...]):
    """All looks at the metric, in order; `str()` is a table."""

    __slots__ = ()

    def __str__(self) -> str:
        table = Table(box=box.SIMPLE)
        for name in ("epoch", "metric", "baseline", "sparsity", "action", "next"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for look in self:
            numbers = (str(look.epoch), f"{look.metric:.4f}", f"{look.baseline:.4f}", f"{look.sparsity:.1%}")
            table.add_row(*numbers, look.action, f"{look.to:.1%}", look.reason)
        return "\n".join(plain_lines(table)).strip("\n")

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return everything as values that JSON knows."""
        return [dataclasses.asdict(look) for look in self]


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands between two looks.

    Attributes:
        began_at: the sparsity at the beginning.
        at: the sparsity that was asked for last.
        most: the highest that may be asked for.
        step: the share of the weights that are left which the next raise prunes.
        baseline: what the metric is compared with; None before it is known.
        largest: what the step may grow to: after a roll back, no further than the step that it was halved to.
        worse: how many looks in a row have found the metric worse than allowed.
        near: how many looks in a row have found it near that.
        good_at: the sparsity of the last good model; where nothing was raised yet, that of the beginning.
        good_metric: its metric, None where it was not measured.
        good_epoch: its epoch, or None.
        going_back: whether the last good model is to be put back.
        to: the sparsity that is to be brought about, or None.
        ended: whether there is nothing more to try.
    """

    began_at: float
    at: float
    most: float
    step: float
    largest: float
    baseline: float | None = None
    worse: int = 0
    near: int = 0
    good_at: float = 0.0
    good_metric: float | None = None
    good_epoch: int | None = None
    going_back: bool = False
    to: float | None = None
    ended: bool = False

    def done(self) -> Progress:
        """Return where the training stands once what the last look decided is done."""
        return dataclasses.replace(self, at=self.at if self.to is None else self.to, to=None, going_back=False)

    def to_array(self, looks: Looks) -> npt.NDArray[np.uint8]:
        """Return this and the looks so far as bytes, for a file."""
        text = json.dumps({"progress": dataclasses.asdict(self), "looks": looks.to_dicts()})
        return np.frombuffer(text.encode(), np.uint8).copy()

    @staticmethod
    def from_array(values: npt.NDArray[np.uint8]) -> tuple[Progress, Looks]:
        """Return what `to_array` wrote down.

        Example:
            >>> progress = Progress(0.0, at=0.2, most=0.98, step=0.1, largest=0.5, baseline=0.9, good_epoch=3, to=0.28)
            >>> Progress.from_array(progress.to_array(Looks())) == (progress, ())
            True
        """
        known = json.loads(values.astype(np.uint8).tobytes())
        return Progress(**known["progress"]), Looks(Look(**look) for look in known["looks"])


@dataclasses.dataclass(frozen=True)
class Steering:
    r"""The rule by which a metric steers the sparsity.

    A raise takes the sparsity from s to $1 - (1 - s)(1 - \delta)$: it prunes the share $\delta$ of what is left. While
    the metric has lost no more than the share `near` of the tolerance, $\delta$ grows by the factor `speed_up` from
    raise to raise. A roll back halves it, and it does not grow beyond that any more; `patience` looks in a row near the
    tolerance halve it, too. It is over when $\delta$ comes below `min_step`, or the sparsity to `max_sparsity`.

    Args:
        tolerance: how much worse than the baseline the metric may be.
        relative: the tolerance is a share of the baseline.
        baseline: None for the best of the first looks.
        baseline_epochs: how many looks these are.
        patience: how many looks in a row may find the metric too bad, or near that, before something is done.
        near: from which share of the tolerance on the sparsity is held.
        step: the first $\delta$.
        speed_up: 1 or more.
        min_step: the smallest $\delta$.
        max_sparsity: where it ends in any case.

    Raises:
        ValueError: an argument is out of its range.
    """

    tolerance: float = 0.01
    relative: bool = False
    baseline: float | None = None
    baseline_epochs: int = 1
    patience: int = 2
    near: float = 0.5
    step: float = 0.2
    speed_up: float = 1.5
    min_step: float = 0.02
    max_sparsity: float = 0.98

    def __post_init__(self) -> None:
        for name, least in (("tolerance", 0.0), ("speed_up", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not (value >= least and math.isfinite(value)):
                raise ValueError(f"{OWNER}: {name} must be {least:g} or more, and finite. Received: {value!r}")
        for name in ("patience", "baseline_epochs"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{OWNER}: {name} must be a whole number from 1. Received: {number!r}")
        for name in ("step", "min_step", "max_sparsity"):
            share = getattr(self, name)
            check_fraction(f"{OWNER}: {name}", share)
            if share == 0.0:
                raise ValueError(f"{OWNER}: {name} must be above 0. Received: {share}")
        if not isinstance(self.near, int | float) or not 0.0 <= self.near <= 1.0:
            raise ValueError(f"{OWNER}: near is a share of the tolerance, in [0, 1]. Received: {self.near!r}")
        if self.step < self.min_step:
            raise ValueError(
                f"{OWNER}: step must not be below min_step. Received: step={self.step}, min_step={self.min_step}"
            )
        if self.baseline is not None and (
            not isinstance(self.baseline, int | float) or not math.isfinite(self.baseline)
        ):
            raise ValueError(
                f"{OWNER}: baseline must be a finite number, or None to measure it. Received: {self.baseline!r}"
            )

    def begin(self, sparsity: float, highest: float = 1.0) -> Progress:
        """Return where a training stands that begins.

        Args:
            sparsity: of the model as it is.
            highest: that patterns and allocation allow.
        """
        most = max(sparsity, min(self.max_sparsity, highest))
        now = Progress(sparsity, sparsity, most, self.step, max(self.step, LARGEST_STEP), good_at=sparsity)
        if self.baseline is None:
            return now
        return dataclasses.replace(now, baseline=float(self.baseline), to=self._next(now))

    def look(
        self, now: Progress, metric: Metric, epoch: int, value: float, sparsity: float, number: int
    ) -> tuple[Progress, Look]:
        """Decide what follows from a look at the metric.

        Args:
            now: where the training stands.
            metric: tells which of two values is better.
            epoch: that has ended.
            value: of the metric.
            sparsity: of the model that it was measured on, for the record.
            number: of the look, counted from 1.

        Returns:
            Where the training stands then, `good_epoch` being this epoch if its model is to be kept; and the record.

        Raises:
            ValueError: no value that the baseline could be is a finite number.
        """
        if self.baseline is None and number <= self.baseline_epochs:
            after, action, reason = self._measure(now, metric, epoch, value, number)
        else:
            after, action, reason = self._decide(now, metric, epoch, value)
        baseline = math.nan if action == "measure" or after.baseline is None else after.baseline
        to = after.good_at if after.going_back or after.ended else after.at
        to = to if after.to is None else after.to
        return after, Look(epoch, value, baseline, sparsity, action, to, reason)

    def _measure(
        self, now: Progress, metric: Metric, epoch: int, value: float, number: int
    ) -> tuple[Progress, str, str]:
        after = now
        if math.isfinite(value) and (now.baseline is None or metric.loss_from(now.baseline, value) < 0):
            after = dataclasses.replace(now, baseline=value, good_metric=value, good_epoch=epoch)
        reason = f"epoch {number} of {self.baseline_epochs} for the baseline"
        if number < self.baseline_epochs:
            return after, "measure", reason
        if after.baseline is None:
            raise ValueError(
                f"{OWNER}: the baseline must be a finite number. Received: {metric.name}={value} before anything was "
                "pruned. Look for NaN in the data, or lower the learning rate."
            )
        if after.at >= after.most:
            return dataclasses.replace(after, ended=True), "end", f"{after.most:.4g} is the highest sparsity allowed"
        return dataclasses.replace(after, to=self._next(after)), "raise", f"{reason}: {after.baseline:.4f}"

    def _decide(self, now: Progress, metric: Metric, epoch: int, value: float) -> tuple[Progress, str, str]:
        baseline = now.baseline
        assert baseline is not None
        allowed = self.tolerance * (abs(baseline) if self.relative else 1.0)
        lost = metric.loss_from(baseline, value)
        words = f"{lost:.4f} worse" if lost > 0 else "no worse" if math.isfinite(lost) else f"{metric.name} is {value}"
        if not metric.is_within(allowed, baseline, value):
            return self._fall(now, f"{words}, {allowed:.4g} allowed")
        better = now.good_metric is None or metric.loss_from(now.good_metric, value) < 0
        now = dataclasses.replace(now, worse=0)
        if now.at > now.good_at or better:
            now = dataclasses.replace(now, good_at=now.at, good_metric=value, good_epoch=epoch)
        if now.at >= now.most:
            return dataclasses.replace(now, ended=True), "end", f"{words}, at the highest sparsity allowed"
        if metric.is_within(self.near * allowed, baseline, value):
            step = now.step if now.near else min(now.largest, now.step * self.speed_up)
            after = dataclasses.replace(now, near=0, step=step)
            return dataclasses.replace(after, to=self._next(after)), "raise", f"{words}, {allowed:.4g} allowed"
        near = now.near + 1
        if near < self.patience:
            reason = f"{words}, near the {allowed:.4g} allowed: look {near} of {self.patience}"
            return dataclasses.replace(now, near=near), "hold", reason
        return self._go_on(now, "raise", f"{words} for {near} looks, {allowed:.4g} allowed")

    def _fall(self, now: Progress, reason: str) -> tuple[Progress, str, str]:
        worse = now.worse + 1
        if worse < self.patience:
            after = dataclasses.replace(now, worse=worse, near=0)
            return after, "hold", f"{reason}: look {worse} of {self.patience}"
        back = dataclasses.replace(now, at=now.good_at, going_back=True, largest=now.step / 2)
        epoch = "the beginning" if now.good_epoch is None else f"epoch {now.good_epoch}"
        return self._go_on(back, "roll back", f"{reason}: back to {epoch}, {now.good_at:.1%}")

    def _go_on(self, now: Progress, action: str, reason: str) -> tuple[Progress, str, str]:
        """Go on from a sparsity in a step half as large; end where that is too small."""
        after = dataclasses.replace(now, step=now.step / 2, worse=0, near=0)
        if after.step < self.min_step:
            after = dataclasses.replace(after, ended=True)
            return after, "end", f"{reason}; a step of {after.step:.3g} would be below min_step"
        return dataclasses.replace(after, to=self._next(after)), action, f"{reason}; on in steps of {after.step:.3g}"

    @staticmethod
    def _next(now: Progress) -> float:
        return min(now.most, 1.0 - (1.0 - now.at) * (1.0 - now.step))
