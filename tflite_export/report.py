"""What an export did: sizes, plan, verification; as a table and as a dictionary."""

from __future__ import annotations

import gzip
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_text
from tflite_export.file.tflite_file import Change
from tflite_export.other_runtimes import Unreadable
from tflite_export.plan.plan import PlanLine
from tflite_export.tflm.mcu import MicroReport
from tflite_export.vela.report import NpuReport
from tflite_export.verification.verify import Verification

__all__ = ["ExportReport", "Size"]


class Size:
    """Bytes of a file, as they are and after gzip (level 6), as a download would be.

    The second takes seconds for a hundred megabytes and is computed when it is first asked for.

    Args:
        content: the file's bytes; they are let go once they are compressed.
    """

    def __init__(self, content: bytes) -> None:
        self.raw = len(content)
        self._content: bytes | None = content
        self._gzip = 0

    @property
    def gzip(self) -> int:
        """Bytes after gzip."""
        if self._content is not None:
            self._gzip = len(gzip.compress(self._content, compresslevel=6))
            self._content = None
        return self._gzip

    def to_dict(self) -> dict[str, int]:
        """Return both as a JSON-able dictionary."""
        return {"raw": self.raw, "gzip": self.gzip}


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Args:
        path: where the file was written.
        dense: size of the converter's dense file.
        written: size of the written file.
        lines: the plan, weight by weight, each with its reason.
        verification: errors in the runtime against the Keras model.
        notes: what was decided on the way: a fixed batch, drawn inputs.
        target: name of the device it is made for.
        quantize: its number type; None is float32.
        changes: what exact rewrites changed in the model.
        sparse_run: what came of running it where sparse kernels are on; None where no sparse kernel would read it.
        unreadable_by: runtimes that cannot read the file, each with its reason.
        micro: what TensorFlow Lite Micro needs for it, of a file for microcontrollers.
        npu: what it costs on the device's NPU, as its compiler estimates.
    """

    path: str
    dense: Size
    written: Size
    lines: tuple[PlanLine, ...]
    verification: Verification
    notes: tuple[str, ...] = ()
    target: str = "any"
    quantize: str | None = None
    changes: tuple[Change, ...] = ()
    sparse_run: str | None = None
    micro: MicroReport | None = None
    unreadable_by: tuple[Unreadable, ...] = ()
    npu: NpuReport | None = None

    def __str__(self) -> str:
        """Return the report as a table."""
        table = Table(title=self.path, title_justify="left")
        for heading, justify in (
            ("weight", "left"),
            ("shape", "left"),
            ("zeros", "right"),
            ("stored as", "left"),
            ("bytes", "right"),
            ("gain", "right"),
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
                "" if line.gain is None else f"{line.gain:.2g} x",
                line.reason,
            )
        footer = [
            f"target '{self.target}', {self.quantize or 'float32'}; "
            "gain: expected time of the operator with the weight dense / as stored",
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
            *self._dense_alone(),
            *(f"warning: {text}" for text in self.verification.warnings),
            *([self.sparse_run] if self.sparse_run else []),
            *self._rewrites(),
            *([str(self.micro)] if self.micro else []),
            *([str(self.npu)] if self.npu else []),
            *self.notes,
            *map(str, self.unreadable_by),
        ]
        return printable(plain_text(table) + "\n".join(footer))

    def _dense_alone(self) -> list[str]:
        """Return a line where a quantized file was not compared with a dense one, because it is one."""
        if self.quantize is None or self.verification.encoding is not None:
            return []
        decoded = self.micro is not None and self.micro.decoding is not None
        why = "decoded weights are those of the dense file" if decoded else "no weight is stored sparse"
        return [f"{why}: the error is what {self.quantize} costs by itself"]

    def _rewrites(self) -> list[str]:
        """Return a line for each rewrite, with what it did most often first."""
        lines = []
        for name in dict.fromkeys(change.rewrite for change in self.changes):
            done = Counter(change.what for change in self.changes if change.rewrite == name).most_common()
            lines.append(f"rewritten ({name}): " + "; ".join(f"{what} ({count} x)" for what, count in done))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able dictionary."""
        return {
            "path": self.path,
            "target": self.target,
            "quantize": self.quantize,
            "dense": self.dense.to_dict(),
            "written": self.written.to_dict(),
            "weights": [line.to_dict() for line in self.lines],
            "verification": self.verification.to_dict(),
            "sparse_run": self.sparse_run,
            "changes": [dict(vars(change)) for change in self.changes],
            "micro": self.micro.to_dict() if self.micro else None,
            "npu": self.npu.to_dict() if self.npu else None,
            "notes": list(self.notes),
            "unreadable_by": {each.runtime: each.reason for each in self.unreadable_by},
        }
