"""What was pruned, what was not, and why; and what a model weighs, computes and holds in memory, layer by layer."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from keras_prune.keras_seam import layers_in
from keras_prune.masks.hold import loose_zeros
from keras_prune.masks.state import TrainingState
from keras_prune.models.masked_layers import HoldsMasks, mask_pairs_of
from keras_prune.models.variables import read
from keras_prune.scope import Scope, Skipped
from keras_prune.strip import effective_mask, strip, written_under
from keras_prune.structured.counting.counting import Count, Counts, count
from keras_prune.text.tables import plain_lines

__all__ = ["Report", "Row", "Totals", "report"]

WIDTH = 100
MOST = 256
"""More different values than int8 has are not counted."""
AMOUNTS = {"params": "parameters", "macs": "multiplications for one sample", "peak": "live bytes of activations"}


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
        written: how many weights are not zero though the mask prunes them: something wrote to them.
        loose: how many zeros no mask holds, so that training fills them in.
        values: how many different values there are, zero counted; None for more than 256.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    masked: bool
    written: int = 0
    loose: int = 0
    values: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """A model, tensor by tensor and layer by layer; `str(report)` is two tables.

    Attributes:
        model: the model's name.
        rows: the prunable tensors, in the model's order.
        skipped: the variables that are left out, each with the reason.
        whole: all weights of the model together, masks not counted.
        counts: parameters, multiplications and activation memory for one sample, of each layer and of all, with zeros
            counted as other weights; None if they are not known.
        not_known: why they are not; empty if they are.
        left_alone: prunable tensors that the last pruning left as they are for its target's sake, with the reasons.
    """

    model: str
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    whole: Totals
    counts: Counts | None = None
    not_known: str = ""
    left_alone: tuple[Skipped, ...] = ()

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
            "left_alone": [dataclasses.asdict(skipped) for skipped in self.left_alone],
            "prunable": _counts(self.prunable),
            "whole": _counts(self.whole),
            "layers": None if self.counts is None else [_entries(layer) for layer in self.counts.layers],
            "total": None if self.counts is None else _entries(self.counts.total),
            "not_counted": [dataclasses.asdict(skipped) for skipped in self._not_counted],
            "not_known": self.not_known,
        }

    @property
    def _not_counted(self) -> tuple[Skipped, ...]:
        return () if self.counts is None else self.counts.not_counted

    def plot(self, path: str | os.PathLike[str], what: str = "sparsity") -> None:
        """Write a bar chart to `path`; its ending gives the format (.png, .svg, .pdf).

        Args:
            path: the file.
            what: "sparsity" of each tensor; or of each layer that has some, "params", "macs", or "peak": the bytes of
                activations that live while it runs.

        Raises:
            ImportError: matplotlib is not installed; the message has the command.
            ValueError: `what` is none of these, or there is nothing of it to draw (with the reason).
        """
        from keras_prune.report import plots

        if what == "sparsity":
            if not self.rows:
                raise ValueError(f"{self.model!r} has no prunable tensor, so there is nothing to plot.")
            plots.plot_sparsity({row.path: row.sparsity for row in self.rows}, path, mean=self.sparsity)
            return
        if what not in AMOUNTS:
            raise ValueError(f"report.plot: what must be one of {('sparsity', *AMOUNTS)}. Received: {what!r}")
        if self.counts is None:
            raise ValueError(f"{what} of {self.model!r} by layer are not known: {self.not_known}")
        amounts = {layer.path: getattr(layer, what) for layer in self.counts.layers if getattr(layer, what)}
        if not amounts:
            raise ValueError(f"{self.model!r} has no {what}, so there is nothing to plot.")
        plots.plot_amounts(amounts, path, label=AMOUNTS[what])

    def __str__(self) -> str:
        parts: list[Any] = [self._table()] if self.rows else [Text(f"{self.model}: no prunable tensor.")]
        parts += self._masks() + self._left_out()
        parts += self._layers()
        return "\n".join(plain_lines(*parts, width=WIDTH)).strip("\n")

    def _table(self) -> Table:
        table = Table(title=f"Sparsity of {self.model}", title_justify="left", box=box.SIMPLE)
        table.add_column("tensor", overflow="fold")
        table.add_column("layer", overflow="fold")
        table.add_column("shape", no_wrap=True)
        for name in ("weights", "non-zero", "sparsity"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("mask", no_wrap=True)
        shares = any(_shares(row) for row in self.rows)
        if shares:
            table.add_column("values", justify="right", no_wrap=True)
        for row in self.rows:
            shape = "x".join(str(size) for size in row.shape)
            values = [str(row.values) if _shares(row) else "any"] * shares
            table.add_row(row.path, row.kind, shape, *_cells(row), _mask(row), *values)
        table.add_section()
        table.add_row(f"{len(self.rows)} prunable", "", "", *_cells(self.prunable), "")
        table.add_row("whole model", "", "", *_cells(self.whole), "")
        return table

    def _masks(self) -> list[Text]:
        """Which masks no longer hold, and which zeros have none."""
        written = [row for row in self.rows if row.written]
        loose = [row for row in self.rows if row.loose]
        texts = []
        if written:
            number = sum(row.written for row in written)
            texts.append(
                f"No longer in force: the masks of {_some([row.path for row in written])}. {number:,} of the weights "
                "that they prune are not zero: something wrote to them. The next training step puts them back at zero."
            )
        if loose:
            number = sum(row.loose for row in loose)
            texts.append(
                f"Not held: {number:,} zeros of {_some([row.path for row in loose])}. Training fills them in; "
                "keras_prune.hold(model) keeps them."
            )
        return [Text(text) for text in texts]

    def _left_out(self) -> list[Text]:
        alone = _by_reason(self.left_alone).items()
        return [
            *(Text(f"Left alone for the target: {_some(paths)}: {reason}.") for reason, paths in alone),
            *(Text(f"Left out: {_some(paths)}: {reason}.") for reason, paths in _by_reason(self.skipped).items()),
        ]

    def _layers(self) -> list[Any]:
        """The second table: layers with weights or multiplications, and the one that needs the most memory."""
        if self.counts is None:
            return [Text(f"Layers, MACs and activation memory: not known: {self.not_known}")]
        total = self.counts.total
        largest = next((layer for layer in self.counts.layers if layer.peak == total.peak), None)
        shown = [layer for layer in self.counts.layers if layer.params or layer.macs or layer is largest]
        table = Table(title=f"Layers of {self.model}, for one sample", title_justify="left", box=box.SIMPLE)
        table.add_column("layer", overflow="fold")
        for name in ("parameters", "MACs", "result, bytes", "live, bytes"):
            table.add_column(name, justify="right", no_wrap=True)
        for layer in shown:
            table.add_row(layer.path, *_amounts(layer))
        table.add_section()
        table.add_row(f"all {len(self.counts.layers)} layers", *_amounts(total))
        words = f"FLOPs: {total.flops:,}, two for a MAC. Live: activations that are held while the layer runs."
        if largest is not None:
            words += f" The peak of {total.peak:,} bytes is at {largest.path}."
        reasons = _by_reason(self._not_counted).items()
        return [table, Text(words), *(Text(f"MACs not known: {_some(paths)}: {reason}.") for reason, paths in reasons)]


def _mask(row: Row) -> str:
    return "broken" if row.written else "yes" if row.masked else "no"


def _shares(row: Row) -> bool:
    """Return whether weights that are not zero share values: there are fewer values than half of these weights."""
    return row.values is not None and row.values > 1 and 2 * row.values <= row.nonzero


def _values(variable: keras.Variable, mask: Any) -> int | None:
    weight = read(variable).reshape(-1)
    if mask is not None:
        weight = np.where(mask.reshape(-1), weight, np.zeros((), weight.dtype))
    # The first few of a tensor that shares nothing have so many already.
    few = [np.unique(part).size for part in (weight[: 4 * MOST], weight) if part.size]
    return next((None for number in few if number > MOST), few[-1] if few else 0)


def _by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        reasons.setdefault(one.reason, []).append(one.path)
    return reasons


def _entries(layer: Count) -> dict[str, Any]:
    return {**dataclasses.asdict(layer), "flops": layer.flops}


def _amounts(layer: Count) -> tuple[str, ...]:
    return tuple(f"{number:,}" for number in (layer.params, layer.macs, layer.activations, layer.peak))


def _counts(totals: Totals) -> dict[str, Any]:
    return {"weights": totals.weights, "nonzero": totals.nonzero, "sparsity": totals.sparsity}


def _cells(totals: Totals) -> tuple[str, str, str]:
    return f"{totals.weights:,}", f"{totals.nonzero:,}", f"{totals.sparsity:.1%}"


def _some(paths: list[str], most: int = 4) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def report(model: keras.Layer, *, scope: Scope | None = None) -> Report:
    """Count the zeros of a built model, tensor by tensor; and parameters, MACs and memory, layer by layer.

    What a layer computes with is counted: the weights as they are, and zero under a wrapper's mask. A mask whose
    weights something has written to is named, and so are zeros that no mask holds. A model without prunable tensors has
    a report too, which says so, and why. Where the graph of a model cannot be traced, its layers are not counted, and
    the report says why.

    Layers are counted as `keras_prune.structured.count` does, on the model without masks. Peak activation memory is
    that of an executor that runs calls in the topological order of the graph, gives each a result of its own, and frees
    a tensor after the last call that reads it; batch 1, numbers of the compute policy's type.

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
        >>> report(model).counts.total.macs, report(model).counts.total.peak
        (8, 24)
    """
    survey = (scope or Scope()).survey(model, may_be_empty=True)
    masks, held = effective_mask(model, bound=False), effective_mask(model)
    rows = tuple(
        Row(
            weights=math.prod(target.variable.shape),
            nonzero=_nonzero(target.variable, masks.get(id(target.variable))),
            path=target.path,
            kind=type(target.layer).__name__,
            shape=tuple(target.variable.shape),
            masked=id(target.variable) in held,
            written=written_under(target.variable, masks.get(id(target.variable))),
            loose=loose_zeros(target.variable, held.get(id(target.variable))),
            values=_values(target.variable, masks.get(id(target.variable))),
        )
        for target in survey.targets
    )
    whole = _total(_without_masks(model), masks)
    counts, not_known = _count(model)
    known, state = {row.path for row in rows}, TrainingState.held_by(model)
    left_alone = tuple(one for one in (state.left_alone if state is not None else ()) if one.path in known)
    return Report(str(model.name), rows, survey.skipped, whole, counts, not_known, left_alone)


def _count(model: keras.Layer) -> tuple[Counts | None, str]:
    """Count layers, or say why they cannot be counted."""
    if not isinstance(model, keras.Model):
        return None, f"{type(model).__name__} is a layer, and only models have a graph of layers."
    try:
        masked = any(isinstance(layer, HoldsMasks) for layer in layers_in(model))
        return count(strip(model) if masked else model), ""
    except ValueError as error:
        return None, str(error)


def _nonzero(variable: keras.Variable, mask: Any) -> int:
    value = read(variable)
    return int(np.count_nonzero(value if mask is None else np.logical_and(value != 0, mask)))


def _without_masks(model: keras.Layer) -> list[keras.Variable]:
    own = {id(mask) for layer in layers_in(model) for _, mask in mask_pairs_of(layer)}
    return [variable for variable in model.weights if id(variable) not in own]


def _total(variables: Iterable[keras.Variable], masks: dict[int, Any]) -> Totals:
    counts = [(math.prod(v.shape), _nonzero(v, masks.get(id(v)))) for v in variables]
    return Totals(sum(size for size, _ in counts), sum(nonzero for _, nonzero in counts))
