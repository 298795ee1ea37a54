"""What `compress` found: everything that was tried as a table, the file that was chosen, its model and its recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.table import Table

from keras_prune.monitoring.metric import Metric
from keras_prune.report.plots import plot_front
from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_text
from tflite_export.compression.space import HALF_THE_WIDTH, Space
from tflite_export.compression.tried import Tried
from tflite_export.errors import ExportError

__all__ = ["CompressReport", "names_of_baselines", "nothing_found", "rows_of"]

WIDTH = 120


@dataclass(frozen=True, eq=False)
class CompressReport:
    """The result of `compress`; `str()` is the table of all that was tried.

    Args:
        path: where the file was written.
        rows: every candidate at the last stage that it reached, or the one that was chosen, in the order tried.
        chosen: the row of the file that was written.
        baselines: what is said of the single means among the rows, by the candidate's name.
        metric: name and direction of what was judged.
        baseline: its value for the plain float32 file.
        max_drop: how much worse it may be.
        target: name of the device.
        objective: what was minimised.
        shares_of: what `keep` is a share of: "multiplications" or "parameters".
        folder: where the files, models and the journal of the search are.
        recipe: code that makes the file again from `model` and `data`, as `compress` was given them, without a search.
        model: the Keras model behind the file, without masks.
        seconds: that the search took, interruptions not counted.
        notes: what was not tried, and why; what is an estimate.
    """

    path: str
    rows: tuple[Tried, ...]
    chosen: Tried
    baselines: dict[str, str]
    metric: Metric
    baseline: float
    max_drop: float
    target: str
    objective: str
    shares_of: str
    folder: str
    recipe: str
    seconds: float
    notes: tuple[str, ...] = ()
    model: keras.Model = field(repr=False, default=None)

    @property
    def ratio(self) -> float:
        """How many times less the chosen file costs than the reference."""
        return self.chosen.ratio

    def __str__(self) -> str:
        """Return the table of all that was tried."""
        table = Table(title=f"{self.path}, for '{self.target}'", title_justify="left")
        for heading, justify in (
            ("", "left"),
            ("left", "right"),
            ("zeros", "right"),
            *((("values", "right"),) if self._shares_values else ()),
            ("numbers", "left"),
            ("epochs", "right"),
            (self.metric.name, "right"),
            ("drop", "right"),
            (self.objective, "right"),
            ("gain", "right"),
            ("bytes", "right"),
        ):
            table.add_column(heading, justify=justify, no_wrap=heading != "")
        for row in self.rows:
            table.add_row(*self._cells(row))
        return printable(plain_text(table, width=WIDTH) + "\n".join(self._footer()))

    @property
    def _shares_values(self) -> bool:
        """Whether weights share values in a row."""
        return any(row.candidate.values for row in self.rows)

    def _cells(self, row: Tried) -> tuple[str, ...]:
        candidate, cost = row.candidate, row.cost
        value = "" if cost is None else f"{cost.value:.3g} {cost.unit}" if cost.unit == "ms" else f"{cost.value:,.0f}"
        return (
            " ".join(filter(None, ["->" if row == self.chosen else "", self.baselines.get(str(candidate), "")])),
            f"{100 * candidate.keep:g}%" if candidate.keep < 1 else "all",
            f"{candidate.sparsity:.0%}" if candidate.sparsity else "",
            *((str(candidate.values or ""),) if self._shares_values else ()),
            candidate.number_type,
            str(row.epochs),
            "" if row.metric is None else f"{row.metric:.4f}",
            "" if row.drop is None else f"{row.drop:+.4f}",
            value,
            "" if cost is None else f"{cost.ratio:.2f} x{'*' if cost.estimate else ''}",
            f"{row.bytes:,}" if row.bytes else "",
        )

    def _footer(self) -> list[str]:
        cost = self.chosen.cost
        assert cost is not None
        reference = next((row for row in self.rows if row.candidate.is_plain and row.ratio == 1.0), None)
        than = "" if reference is None else f" than the plain {reference.candidate.number_type} file"
        return [
            f"-> {self.chosen.candidate}: {cost.ratio:.2f} times less {self.objective}{than}; {self.metric.name} "
            f"{self.chosen.metric:.4f}, the plain float32 file's {self.baseline:.4f}, at most {self.max_drop:g} worse",
            f"left: share of the {self.shares_of}; zeros: share of what is left in pruned kernels; "
            f"{'values: of the weights in a kernel, at most; ' if self._shares_values else ''}"
            f"measured in {cost.unit}, {cost.on}; gain: the reference's / the file's, run in turn",
            *([f"* an estimate: {cost.estimate}"] if cost.estimate else []),
            *(f"no file of {row.candidate}: {row.reason}" for row in self.rows if row.reason and not row.file),
            *(f"not measured, {row.candidate}: {row.reason}" for row in self.rows if row.reason and row.file),
            *(f"warning: {text}" for text in self.chosen.notes),
            *self.notes,
            f"files, models and journal: {self.folder}; {self.seconds:.0f} s",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model as values that JSON knows."""
        return {
            "path": self.path,
            "target": self.target,
            "minimize": self.objective,
            "metric": self.metric.name,
            "rises": self.metric.rises,
            "baseline": self.baseline,
            "max_drop": self.max_drop,
            "rows": [
                {**row.to_dict(), "chosen": row == self.chosen, "is": self.baselines.get(str(row.candidate), "")}
                for row in self.rows
            ],
            "chosen": self.chosen.to_dict(),
            "folder": self.folder,
            "recipe": self.recipe,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a chart of metric against gain, the Pareto front drawn through it; the path's ending is its format.

        Raises:
            ImportError: matplotlib is not installed; the message has the command.
        """
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            if row.cost is not None and row.metric is not None:
                candidate = row.candidate
                means = [
                    name
                    for name, used in (
                        ("fewer channels", candidate.keep < 1),
                        ("zeros", candidate.sparsity),
                        ("shared values", candidate.values),
                    )
                    if used
                ]
                groups.setdefault(" + ".join([*means, candidate.number_type]), []).append((row.ratio, row.metric))
        assert self.chosen.metric is not None
        sign = -1.0 if self.metric.rises else 1.0
        plot_front(
            groups,
            path,
            chosen=(self.ratio, self.chosen.metric),
            least=self.baseline + sign * self.max_drop,
            rises=self.metric.rises,
            across=f"times less {self.objective} than the plain file",
            up=self.metric.name,
        )


def names_of_baselines(space: Space) -> dict[str, str]:
    """Return what baselines are called, by candidate."""
    names = {}
    for candidate in space.baselines:
        if candidate.is_plain:
            names[str(candidate)] = f"plain {candidate.number_type}"
        elif candidate.keep == HALF_THE_WIDTH:
            names[str(candidate)] = "about half the width alone"
        elif candidate.values:
            names[str(candidate)] = "shared values alone"
        else:
            names[str(candidate)] = "zeros alone"
    return names


def rows_of(tried: Iterable[Tried], best: Tried) -> tuple[Tried, ...]:
    """Return one row for each candidate: its last stage, of the best one the stage that was chosen."""
    rows = {each.candidate: each for each in tried}
    rows[best.candidate] = best
    return tuple(rows.values())


def nothing_found(
    tried: Iterable[Tried], metric: Metric | None, max_drop: float, minimize: str, folder: Path
) -> ExportError:
    """Say that nothing cheaper is within the drop, and what is nearest."""
    tried = list(tried)
    cheaper = [each for each in tried if each.cost is not None and each.ratio > 1.0 and each.drop is not None]
    name = metric.name if metric is not None else "the metric"
    if not cheaper:
        reasons = sorted({f"{each.candidate}: {each.reason}" for each in tried if each.reason})
        return ExportError(
            "compress",
            f"found no file with less {minimize} than the plain one's",
            f"{len(tried)} files tried. {'; '.join(reasons)}".strip(),
            f"All are in '{folder}'. Is the model large enough for its {minimize} to depend on its weights?",
        )
    near = min(cheaper, key=lambda each: (each.drop, -each.ratio))
    return ExportError(
        "compress",
        f"found no file with less {minimize} whose {name} is at most {max_drop:g} worse",
        f"the nearest, {near.candidate}, is {near.drop:.4g} worse; nothing was written",
        f"max_drop={_above(near.drop)} would give {near.ratio:.2g}x. A longer budget= or more trials= or epochs= may "
        "find better ones; what was tried counts.",
    )


def _above(drop: float | None) -> str:
    """Return a drop with two digits, rounded up."""
    assert drop is not None
    if drop <= 0:
        return "0"
    step = 10.0 ** (np.floor(np.log10(drop)) - 1)
    return f"{np.ceil(drop / step - 1e-9) * step:.2g}"
