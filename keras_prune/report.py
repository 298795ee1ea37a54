"""What was pruned, what was not, and why."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from keras_prune.scope import Scope, Skipped
from keras_prune.strip import effective_mask
from keras_prune.variables import read

__all__ = ["Report", "Row", "Totals", "report"]

WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Totals:
    """Weights counted together.

    Attributes:
        weights: how many there are.
        nonzero: how many of them are not 0.
    """

    weights: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, in [0, 1]; 0 where there are no weights."""
        return 1.0 - self.nonzero / self.weights if self.weights else 0.0


@dataclasses.dataclass(frozen=True)
class Row(Totals):
    """One prunable tensor.

    Attributes:
        path: the variable's path in the model.
        kind: the class of the layer that holds it.
        shape: its shape, in Keras's order.
        masked: whether a mask holds its zeros, so that training cannot change them.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    masked: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """The sparsity of a model, tensor by tensor; `str(report)` is a table.

    Attributes:
        model: the model's name.
        rows: the prunable tensors, in the model's order.
        skipped: the variables that are left out, each with the reason.
        whole: all weights of the model together, masks not counted.
    """

    model: str
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    whole: Totals

    @property
    def prunable(self) -> Totals:
        """The prunable tensors together."""
        return Totals(sum(row.weights for row in self.rows), sum(row.nonzero for row in self.rows))

    @property
    def sparsity(self) -> float:
        """The fraction of zeros in the prunable tensors, in [0, 1]."""
        return self.prunable.sparsity

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return {
            "model": self.model,
            "rows": [{**_counts(row), **dataclasses.asdict(row), "shape": list(row.shape)} for row in self.rows],
            "skipped": [dataclasses.asdict(skipped) for skipped in self.skipped],
            "prunable": _counts(self.prunable),
            "whole": _counts(self.whole),
        }

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a bar chart of the sparsity of each tensor to `path`; its ending gives the format (.png, .svg, .pdf).

        Raises:
            ImportError: matplotlib is not installed; the message has the command.
            ValueError: there is no prunable tensor to draw.
        """
        from keras_prune import plots

        if not self.rows:
            raise ValueError(f"{self.model!r} has no prunable tensor, so there is nothing to plot.")
        plots.plot_sparsity({row.path: row.sparsity for row in self.rows}, path, mean=self.sparsity)

    def __str__(self) -> str:
        parts: list[Any] = [self._table()] if self.rows else [Text(f"{self.model}: no prunable tensor.")]
        parts += self._left_out()
        console = Console(width=WIDTH, file=io.StringIO(), color_system=None, force_terminal=False, highlight=False)
        with console.capture() as capture:
            console.print(Group(*parts))
        return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")

    def _table(self) -> Table:
        table = Table(title=f"Sparsity of {self.model}", title_justify="left", box=box.SIMPLE)
        table.add_column("tensor", overflow="fold")
        table.add_column("layer", overflow="fold")
        table.add_column("shape", no_wrap=True)
        for name in ("weights", "non-zero", "sparsity"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("mask", no_wrap=True)
        for row in self.rows:
            shape = "x".join(str(size) for size in row.shape)
            table.add_row(row.path, row.kind, shape, *_cells(row), "yes" if row.masked else "no")
        table.add_section()
        table.add_row(f"{len(self.rows)} prunable", "", "", *_cells(self.prunable), "")
        table.add_row("whole model", "", "", *_cells(self.whole), "")
        return table

    def _left_out(self) -> list[Text]:
        reasons: dict[str, list[str]] = {}
        for skipped in self.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped.path)
        return [Text(f"Left out: {_some(paths)}: {reason}.") for reason, paths in reasons.items()]


def _counts(totals: Totals) -> dict[str, Any]:
    return {"weights": totals.weights, "nonzero": totals.nonzero, "sparsity": totals.sparsity}


def _cells(totals: Totals) -> tuple[str, str, str]:
    return f"{totals.weights:,}", f"{totals.nonzero:,}", f"{totals.sparsity:.1%}"


def _some(paths: list[str], most: int = 4) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def report(model: keras.Layer, *, scope: Scope | None = None) -> Report:
    """Count the zeros of a built model, tensor by tensor.

    What a layer computes with is counted: a weight under a wrapper's mask is zero, whatever its variable holds. A model
    without prunable tensors has a report too, which says so, and why.

    Args:
        model: a built model or layer.
        scope: which tensors are prunable; by default all that the library knows.

    Raises:
        ValueError: the model is not built.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="ones", name="a")])
        >>> model.layers[0].kernel.assign(np.eye(4)[:, :2]).shape
        TensorShape([4, 2])
        >>> report(model).sparsity, report(model).whole
        (0.75, Totals(weights=10, nonzero=2))
    """
    survey = (scope or Scope()).survey(model, may_be_empty=True)
    masks = effective_mask(model)
    rows = tuple(
        Row(
            weights=math.prod(target.variable.shape),
            nonzero=_nonzero(target.variable, masks.get(id(target.variable))),
            path=target.path,
            kind=type(target.layer).__name__,
            shape=tuple(target.variable.shape),
            masked=id(target.variable) in masks,
        )
        for target in survey.targets
    )
    return Report(str(model.name), rows, survey.skipped, _total(_without_masks(model), masks))


def _nonzero(variable: keras.Variable, mask: Any) -> int:
    value = read(variable)
    return int(np.count_nonzero(value if mask is None else np.logical_and(value != 0, mask)))


def _without_masks(model: keras.Layer) -> list[keras.Variable]:
    own = {id(mask) for layer in model._flatten_layers() for _, mask in getattr(layer, "mask_pairs", ())}
    return [variable for variable in model.weights if id(variable) not in own]


def _total(variables: Iterable[keras.Variable], masks: dict[int, Any]) -> Totals:
    counts = [(math.prod(v.shape), _nonzero(v, masks.get(id(v)))) for v in variables]
    return Totals(sum(size for size, _ in counts), sum(nonzero for _, nonzero in counts))
