"""What a container takes, tensor by tensor, beside float32."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_prune.text.tables import plain_table

__all__ = ["ContainerReport", "PackedTensor"]


@dataclasses.dataclass(frozen=True)
class PackedTensor:
    """One tensor of a container; all sizes are bytes.

    Attributes:
        path: of the variable in the model; where that is not known, of the array in Keras's file of weights.
        shape: its shape.
        form: "dense", "sparse", "coded", or "sparse, coded".
        distinct: how many different values it has, 0 among them; None for more than a codebook takes.
        stored: how many values are stored: those that are not 0, or all.
        indices: the gaps between stored values.
        codebook: the different values, and the lengths of their codes.
        values: the stored values, or their codes.
        header: name, shape, lengths and checksums.
        float32: all values with four bytes each.
    """

    path: str
    shape: tuple[int, ...]
    form: str
    distinct: int | None
    stored: int
    indices: int
    codebook: int
    values: int
    header: int
    float32: int

    @property
    def total(self) -> int:
        """Bytes in the file."""
        return self.indices + self.codebook + self.values + self.header


@dataclasses.dataclass(frozen=True)
class ContainerReport:
    """What was written; `str(report)` is a table.

    Attributes:
        tensors: in the order of the file.
        total: bytes of the file.
        float32: bytes of all tensors with four for each value.
    """

    tensors: tuple[PackedTensor, ...]
    total: int

    @property
    def float32(self) -> int:
        """Bytes of all values with four each."""
        return sum(tensor.float32 for tensor in self.tensors)

    @property
    def rest(self) -> int:
        """Bytes of what is no tensor: the architecture, vocabularies, the file's header."""
        return self.total - sum(tensor.total for tensor in self.tensors)

    @property
    def factor(self) -> float:
        """How many times smaller the file is than the values as float32."""
        return self.float32 / self.total

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        tensors = [{**dataclasses.asdict(t), "shape": list(t.shape), "total": t.total} for t in self.tensors]
        return {
            "tensors": tensors,
            "rest": self.rest,
            "total": self.total,
            "float32": self.float32,
            "factor": self.factor,
        }

    def __str__(self) -> str:
        """Return a table, one line a tensor."""
        rows = [
            (
                tensor.path,
                "x".join(map(str, tensor.shape)) or "1",
                tensor.form,
                "many" if tensor.distinct is None else f"{tensor.distinct:,}",
                *(f"{n:,}" for n in (tensor.indices, tensor.values, tensor.codebook, tensor.header)),
                *(f"{n:,}" for n in (tensor.total, tensor.float32)),
            )
            for tensor in self.tensors
        ]
        rows.append(("architecture, files", "", "", "", "", "", "", "", f"{self.rest:,}", ""))
        rows.append(("whole file", "", "", "", "", "", "", "", f"{self.total:,}", f"{self.float32:,}"))
        headings = (
            "tensor", "shape", "form", "distinct", "indices", "values", "codebook", "header", "bytes", "float32"
        )  # fmt: skip
        columns = dict(zip(headings, map(list, zip(*rows, strict=True)), strict=True))
        compared = f"{self.factor:.1f} times fewer than" if self.total < self.float32 else "no fewer than"
        title = f"{self.total:,} bytes, {compared} {self.float32:,} of float32"
        return plain_table(title, columns, right=headings[3:])
