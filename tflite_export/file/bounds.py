"""What can be said of a .tflite before it is unpacked: every offset inside the file, and bounded work to follow them.

The object API of the schema checks nothing: a vector's length, taken from a damaged file, decides how many
Python objects it makes, and tables that overlap let a small file expand without bound. FlatBuffers' own
verifier (`flatbuffers/verifier.h`) is C++ only; this one walks the same structure, as the table below
describes it (LiteRT, `tflite/schema/schema.fbs`), and spends a budget on the way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType

from tflite_export.errors import FlatbufferError

__all__ = ["BUDGET", "MOST_TABLES", "Field", "check_bounds"]

MOST_TABLES = 1_000_000
"""Tables in a file: the default of FlatBuffers' own verifier."""
BUDGET = 2
"""Bytes of tables, vectors and names that may be followed, as a multiple of the file's: two, so that a writer
may share a name or a table."""

_OFFSET = struct.Struct("<I")
_SIGNED = struct.Struct("<i")
_SHORT = struct.Struct("<H")
_GET_IT_AGAIN = "The file is damaged: get or export it again."


@dataclass(frozen=True)
class Field:
    """A field of a table that leads elsewhere; scalars need no description.

    Args:
        slot: its number in the schema.
        item: bytes of an item, for a vector of numbers or a string; 0 for tables.
        table: kind of the table that it leads to, or of the tables of its vector; empty for numbers.
        many: a vector of tables, not one.
        union: the slot before holds a type, which names the table by `_UNIONS[table]`.
        copied: the object API copies it (names); vectors of numbers become views of the file.
    """

    slot: int
    item: int = 0
    table: str = ""
    many: bool = False
    union: bool = False
    copied: bool = False


def _numbers(slot: int, item: int = 4) -> Field:
    return Field(slot, item=item)


def _text(slot: int) -> Field:
    return Field(slot, item=1, copied=True)


def _tables(slot: int, table: str) -> Field:
    return Field(slot, table=table, many=True)


_FIELDS: MappingProxyType[str, tuple[Field, ...]] = MappingProxyType(
    {
        "Model": (
            _tables(1, "OperatorCode"),
            _tables(2, "SubGraph"),
            _text(3),
            _tables(4, "Buffer"),
            _numbers(5),
            _tables(6, "Metadata"),
            _tables(7, "SignatureDef"),
            _tables(8, "ExternalBufferGroup"),
            _tables(9, "ExternalBuffer"),
        ),
        "OperatorCode": (_text(1),),
        "SubGraph": (_tables(0, "Tensor"), _numbers(1), _numbers(2), _tables(3, "Operator"), _text(4)),
        "Tensor": (
            _numbers(0),
            _text(3),
            Field(4, table="QuantizationParameters"),
            Field(6, table="SparsityParameters"),
            _numbers(7),
            _tables(9, "VariantSubType"),
        ),
        "QuantizationParameters": (
            _numbers(0),
            _numbers(1),
            _numbers(2),
            _numbers(3, 8),
            Field(5, table="QuantizationDetails", union=True),
        ),
        "CustomQuantization": (_numbers(0, 1),),
        "SparsityParameters": (_numbers(0), _numbers(1), _tables(2, "DimensionMetadata")),
        "DimensionMetadata": (
            Field(3, table="SparseIndexVector", union=True),
            Field(5, table="SparseIndexVector", union=True),
        ),
        "Int32Vector": (_numbers(0, 4),),
        "Uint16Vector": (_numbers(0, 2),),
        "Uint8Vector": (_numbers(0, 1),),
        "VariantSubType": (_numbers(0),),
        "Operator": (
            _numbers(1),
            _numbers(2),
            Field(4, table="Options", union=True),
            _numbers(5, 1),
            _numbers(7, 1),
            _numbers(8),
            Field(12, table="Options", union=True),
        ),
        "Buffer": (_numbers(0, 1),),
        "Metadata": (_text(0),),
        "SignatureDef": (_tables(0, "TensorMap"), _tables(1, "TensorMap"), _text(2)),
        "TensorMap": (_text(0),),
        "ExternalBufferGroup": (_text(0),),
        "ExternalBuffer": (_text(4),),
        # Options hold numbers, short vectors and a few names. The object API makes views of the first two and slices
        # of the last, each within the file.
        "Options": (),
    }
)

_UNIONS: MappingProxyType[str, MappingProxyType[int, str]] = MappingProxyType(
    {
        "SparseIndexVector": MappingProxyType({1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}),
        "QuantizationDetails": MappingProxyType({1: "CustomQuantization"}),
    }
)


def check_bounds(content: bytes, subject: str) -> None:
    r"""Follow every offset of a .tflite once, without unpacking it.

    Args:
        content: the file's bytes.
        subject: what to call it in errors.

    Raises:
        FlatbufferError: an offset leads outside the file, or the tables, followed one by one, are more than
            its bytes could hold.

    Example:
        >>> check_bounds(b"\\xff" * 64, "model.tflite")
        Traceback (most recent call last):
            ...
        tflite_export.errors.FlatbufferError: model.tflite: every offset must lead to a place inside the file. ...
    """
    _Walk(content, subject).run()


class _Walk:
    """One pass over a file; the state is what is left of the budget."""

    def __init__(self, content: bytes, subject: str) -> None:
        self._content = content
        self._subject = subject
        self._bytes = BUDGET * len(content)
        self._tables = MOST_TABLES

    def run(self) -> None:
        """Visit the tables, by a stack of our own: the depth is the schema's, the breadth the file's."""
        pending = [("Model", self._read(_OFFSET, 0))]
        while pending:
            kind, position = pending.pop()
            entries = self._entries(position)
            for field in _FIELDS[kind]:
                if field.slot < len(entries) and entries[field.slot]:
                    pending += self._follow(field, position, entries)

    def _entries(self, position: int) -> tuple[int, ...]:
        """Return a table's field offsets, its own extent and its vtable's checked."""
        vtable = position - self._read(_SIGNED, position)
        size, extent = self._read(_SHORT, vtable), self._read(_SHORT, vtable + 2)
        self._inside(vtable, size)
        self._inside(position, extent)
        if size < 4 or size % 2 or extent < 4:
            self._damaged(f"a table of {extent} bytes with a vtable of {size}")
        self._spend(extent, tables=1)
        entries = struct.unpack_from(f"<{size // 2 - 2}H", self._content, vtable + 4)
        if max(entries, default=0) >= extent:
            self._damaged(f"a field at byte {max(entries)} of a table of {extent}")
        return entries

    def _follow(self, field: Field, position: int, entries: tuple[int, ...]) -> list[tuple[str, int]]:
        """Return the tables that a field leads to; check the vector where it is one."""
        place = position + entries[field.slot]
        target = place + self._read(_OFFSET, place)
        if field.union:
            kind = field.table
            if kind in _UNIONS:
                type_entry = entries[field.slot - 1]
                code = self._content[position + type_entry] if type_entry else 0
                kind = _UNIONS[kind].get(code, "Options")
            return [(kind, target)]
        if field.table and not field.many:
            return [(field.table, target)]
        count = self._read(_OFFSET, target)
        self._inside(target + 4, count * (field.item or 4))
        if not field.table:
            self._spend(count if field.copied else 0)
            return []
        self._spend(4 * count)
        if count > self._tables:
            self._exceeded()
        first = target + 4
        return [(field.table, first + 4 * i + self._read(_OFFSET, first + 4 * i)) for i in range(count)]

    def _read(self, kind: struct.Struct, position: int) -> int:
        self._inside(position, kind.size)
        return int(kind.unpack_from(self._content, position)[0])

    def _inside(self, position: int, size: int) -> None:
        if position < 0 or position + size > len(self._content):
            self._damaged(f"bytes {position} to {position + size} of {len(self._content)}")

    def _spend(self, count: int, tables: int = 0) -> None:
        self._bytes -= count
        self._tables -= tables
        if self._bytes < 0 or self._tables < 0:
            self._exceeded()

    def _damaged(self, received: str) -> None:
        raise FlatbufferError(
            self._subject, "every offset must lead to a place inside the file", received, _GET_IT_AGAIN
        )

    def _exceeded(self) -> None:
        raise FlatbufferError(
            self._subject,
            f"its tables must fit its {len(self._content)} bytes, and be at most {MOST_TABLES}",
            "more entries than that",
            _GET_IT_AGAIN,
        )
