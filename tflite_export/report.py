"""What an export did: sizes, plan, verification; as a table and as a dictionary."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tflite_export.plan import PlanLine
from tflite_export.verify import Verification

WIDTH = 120


@dataclass(frozen=True)
class Size:
    """Bytes of a file, as they are and after gzip (level 6), as a download would be."""

    raw: int
    gzip: int

    @classmethod
    def of(cls, content: bytes) -> Size:
        """Return the sizes of a file's bytes."""
        return cls(len(content), len(gzip.compress(content, compresslevel=6)))


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Args:
        path: Where the file was written.
        dense: Size of the converter's dense file.
        written: Size of the written file.
        lines: The plan, weight by weight, each with its reason.
        verification: Errors in the runtime against the Keras model.
        notes: What was decided on the way: a fixed batch, drawn inputs.
    """

    path: str
    dense: Size
    written: Size
    lines: tuple[PlanLine, ...]
    verification: Verification
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the report as a table."""
        table = Table(title=self.path, title_justify="left")
        for heading, justify in (
            ("weight", "left"),
            ("shape", "left"),
            ("zeros", "right"),
            ("stored as", "left"),
            ("bytes", "right"),
            ("reason", "left"),
        ):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        vectors = [line for line in self.lines if len(line.shape) < 2]
        for line in self.lines:
            if line in vectors:
                continue
            table.add_row(
                line.name,
                "x".join(map(str, line.shape)),
                f"{line.sparsity:.1%}",
                line.encoding.value,
                f"{line.stored_bytes:,}",
                line.reason,
            )
        footer = [
            f"file: {self.written.raw:,} bytes of {self.dense.raw:,} dense "
            f"({self.written.raw / self.dense.raw:.1%}); "
            f"gzip: {self.written.gzip:,} of {self.dense.gzip:,} ({self.written.gzip / self.dense.gzip:.1%})",
            *(
                [
                    f"not shown: {len(vectors)} vectors (biases and the like), dense, "
                    f"{sum(line.dense_bytes for line in vectors):,} bytes"
                ]
                if vectors
                else []
            ),
            str(self.verification),
            *self.notes,
        ]
        return render(table) + "\n".join(footer)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able dictionary."""
        return {
            "path": self.path,
            "dense": dict(vars(self.dense)),
            "written": dict(vars(self.written)),
            "weights": [line.to_dict() for line in self.lines],
            "verification": self.verification.to_dict(),
            "notes": list(self.notes),
        }


def render(table: Table) -> str:
    """Return a table as text."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, highlight=False, markup=False).print(table, markup=False)
    return stream.getvalue()
