"""Looks at a metric, and what each of them decides for the structure of a model."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich import box
from rich.table import Table

from keras_prune.structured.planning.plan import WIDTH
from keras_prune.text.tables import plain_lines

__all__ = ["Adjustment", "Adjustments", "decide"]


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
    if lost <= tolerance + 1e-6:
        return "close", f"within {tolerance:g}"
    reason = f"{lost:.4f} worse, {tolerance:g} allowed"
    return ("open", reason) if falls + 1 >= patience else ("hold", f"{reason}: look {falls + 1} of {patience}")
