"""What was factorised, how, at what error, and why the rest was left."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich import box
from rich.table import Table

from keras_prune.scope import Skipped
from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_lines

__all__ = ["FactorizationReport", "FactorizedLayer"]

WIDTH = 110


@dataclasses.dataclass(frozen=True)
class FactorizedLayer:
    r"""One layer in whose place others stand now.

    Attributes:
        path: of the old layer, and of the last of those in its place.
        kind: its class.
        form: "svd", "spatial", "channel", "tucker2" or "tensor_train".
        ranks: the channels between the layers, in order.
        params: weights of kernels, before and after.
        macs: multiplications for one sample, before and after.
        error: the relative error of the kernel, $\|W - W'\| / \|W\|$; with data, of what it gives on them.
        speed: the measured time of the layer over that of those in its place; None where it was not measured.
    """

    path: str
    kind: str
    form: str
    ranks: tuple[int, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    error: float
    speed: float | None = None


@dataclasses.dataclass(frozen=True)
class FactorizationReport:
    """A factorisation, layer by layer; `str(report)` is a table, `to_dict()` what JSON knows.

    Attributes:
        model: the model's name.
        layers: those that were factorised.
        skipped: the kernels that were left, each with the reason.
        params: weights of the whole model, before and after.
        macs: its multiplications for one sample, before and after.
        latency: measured seconds of a run, before and after; None where it was not measured.
    """

    model: str
    layers: tuple[FactorizedLayer, ...]
    skipped: tuple[Skipped, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    latency: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        table = Table(title=f"Factorisation of {self.model}", title_justify="left", box=box.SIMPLE)
        table.add_column("layer", overflow="fold")
        table.add_column("form", no_wrap=True)
        for name in ("ranks", "weights", "left", "MACs", "left", "error", "speed"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.layers:
            ranks, speed = ", ".join(map(str, row.ranks)), "" if row.speed is None else f"{row.speed:.2f}x"
            amounts = [text for pair in (row.params, row.macs) for text in (f"{pair[0]:,}", f"{pair[1] / pair[0]:.1%}")]
            table.add_row(row.path, row.form, ranks, *amounts, f"{row.error:.4f}", speed)
        lines = plain_lines(table, width=WIDTH) if self.layers else [f"Factorisation of {self.model}: no layer"]
        for name, (before, after) in (("parameters", self.params), ("MACs", self.macs)):
            lines.append(f"{name} {before:,} -> {after:,} ({after / before:.1%} left)" if before else f"{name} 0")
        if self.latency is not None:
            was, now = self.latency
            lines.append(f"latency {1e3 * was:.3f} ms -> {1e3 * now:.3f} ms ({now / was:.1%} left, as measured)")
        lines += [f"left alone: {skipped.path} ({skipped.reason})" for skipped in self.skipped]
        return printable("\n".join(lines).strip("\n"))
