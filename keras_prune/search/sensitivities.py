"""What a sensitivity analysis has found: a table, a plot, and the allocation that follows from it."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from keras_prune.allocation import Explicit
from keras_prune.monitoring.metric import Metric
from keras_prune.text.tables import plain_lines

__all__ = ["Sensitivities", "TensorSensitivity"]


@dataclasses.dataclass(frozen=True)
class TensorSensitivity:
    """One tensor, pruned alone.

    Attributes:
        path: the variable's path in the model.
        kind: the class of the layer that holds it.
        weights: how many it has.
        sparsity: the share of them that is off in the model as it is.
        sparsities: those at which it was measured, fractions in [0, 1]: as near to the points as its pattern comes.
        values: of the metric there.
    """

    path: str
    kind: str
    weights: int
    sparsity: float
    sparsities: tuple[float, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Sensitivities:
    """A metric against the sparsity of each tensor; `str()` is a table.

    Attributes:
        model: the model's name.
        metric: the metric's name, and whether it rises.
        whole: its value for the model as it is.
        points: the sparsities that were asked for.
        rows: the tensors, in the model's order.
    """

    model: str
    metric: Metric
    whole: float
    points: tuple[float, ...]
    rows: tuple[TensorSensitivity, ...]

    def tolerated(self, drop: float) -> dict[str, float]:
        """Return the sparsity of each tensor up to which the metric gets worse by no more than `drop`, by path.

        Between two points it is a straight line, and nothing beyond the first one that is worse counts. Each tensor is
        looked at alone; all of them together lose more.

        Args:
            drop: in units of the metric, 0 or more.
        """
        if not isinstance(drop, int | float) or not drop >= 0:
            raise ValueError(f"Sensitivities: drop must be 0 or more. Received: {drop!r}")
        return {row.path: self._tolerated(row, float(drop)) for row in self.rows}

    def _tolerated(self, row: TensorSensitivity, drop: float) -> float:
        last, lost_there = row.sparsity, 0.0
        for sparsity, value in zip(row.sparsities, row.values, strict=True):
            lost = self.metric.loss_from(self.whole, value)
            if not lost <= drop:
                share = (drop - lost_there) / (lost - lost_there) if math.isfinite(lost) else 0.0
                return last + (sparsity - last) * share
            last, lost_there = max(last, sparsity), lost
        return last

    def allocation(self, drop: float) -> Explicit:
        """Return the allocation that prunes each tensor as far as `tolerated` says.

        Args:
            drop: as for `tolerated`.
        """
        return Explicit(self.tolerated(drop))

    def sparsity(self, drop: float) -> float:
        """Return the sparsity of all tensors together under `allocation(drop)`, a fraction in [0, 1)."""
        shares = self.tolerated(drop)
        return sum(shares[row.path] * row.weights for row in self.rows) / sum(row.weights for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return {
            "model": self.model,
            "metric": self.metric.name,
            "rises": self.metric.rises,
            "whole": self.whole,
            "points": list(self.points),
            "rows": [
                {**dataclasses.asdict(row), "sparsities": list(row.sparsities), "values": list(row.values)}
                for row in self.rows
            ],
        }

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write the metric against the sparsity of each tensor; the ending of the path gives the format.

        Raises:
            ImportError: matplotlib is not installed; the message has the command.
        """
        from keras_prune.report import plots

        curves = {row.path: ((row.sparsity, *row.sparsities), (self.whole, *row.values)) for row in self.rows}
        worst = {
            row.path: max((self.metric.loss_from(self.whole, value) for value in row.values), default=0.0)
            for row in self.rows
        }
        named = sorted(worst, key=lambda each: -worst[each])
        plots.plot_sensitivity(curves, path, label=self.metric.name, whole=self.whole, order=named)

    def __str__(self) -> str:
        title = Text(f"Sensitivity of {self.model}: {self.metric.name} with one tensor pruned at a time")
        table = Table(box=box.SIMPLE)
        table.add_column("tensor", overflow="fold")
        for name in ("weights", *(f"{point:.4g}" for point in self.points)):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(row.path, f"{row.weights:,}", *(f"{value:.4f}" for value in row.values))
        words = f"As it is, {self.metric.name} is {self.whole:.4f}; {self._direction} is better."
        return "\n".join(plain_lines(title, table, Text(words))).strip("\n")

    @property
    def _direction(self) -> str:
        return "more" if self.metric.rises else "less"
