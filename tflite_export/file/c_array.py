"""A file, or arrays, as C++ source: what a microcontroller without a file system links into its flash.

The header can be included from C as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.atomic import check_writable, write_atomically

__all__ = ["ALIGNMENT", "BYTES_A_LINE", "C_TYPES", "identifier", "write_c_array", "write_c_arrays"]

ALIGNMENT = 16
"""Bytes: what the interpreter asks of a model, and of the constants inside it (`force_align: 16`)."""
BYTES_A_LINE = 12

C_TYPES: dict[str, str] = {
    "uint8": "unsigned char",
    "int8": "signed char",
    "bool": "bool",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float32": "float",
    "float64": "double",
}
"""The C++ type of an array's elements. A model is `unsigned char`, as in TensorFlow Lite Micro's examples."""

# Words of C++20, and what else a variable may not be called.
_WORDS = (
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl "
    "concept const consteval constexpr constinit const_cast continue co_await co_return co_yield decltype default "
    "delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long "
    "mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register "
    "reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this "
    "thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor "
    "xor_eq NULL main"
)
_RESERVED = frozenset(_WORDS.split())


def write_c_array(content: bytes, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write a file's bytes as `path.cc` and `path.h`: an array aligned to 16 bytes, and its length.

    Args:
        content: the file's bytes: at least one.
        path: of either file, or of both without a suffix. The array is named after it: `digits-v2.cc` holds
            `digits_v2` and `digits_v2_len`.

    Returns:
        Paths of the source and the header.

    Raises:
        ExportError: nothing to write, or the path cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, header = write_c_array(b"TFL3", f"{folder}/model")
        ...     print(header.read_text().splitlines()[-7])
        extern const unsigned int model_len;
    """
    return write_c_arrays({identifier(Path(path).stem): np.frombuffer(content, dtype=np.uint8)}, path)


def write_c_arrays(arrays: Mapping[str, NDArray[Any]], path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write arrays, flat in C order, as `path.cc` and `path.h`; for each, `NAME` and `NAME_len` (elements).

    Args:
        arrays: by name; a name that C++ would not take is changed as `identifier` says.
        path: of either file, or of both without a suffix.

    Returns:
        Paths of the source and the header.

    Raises:
        ExportError: an array is empty or of a type that C++ has no name for, two names become one, or the path
            cannot be written.
    """
    source, header = Path(path).with_suffix(".cc"), Path(path).with_suffix(".h")
    for file in (source, header):
        check_writable(file)
    named: dict[str, NDArray[Any]] = {}
    for name, values in arrays.items():
        _check_array(name, values)
        taken = {*named, *(f"{other}_len" for other in named)}
        if taken & {identifier(name), f"{identifier(name)}_len"}:
            raise ExportError(f"array '{name}'", "needs a C++ name of its own", identifier(name), "Rename it.")
        named[identifier(name)] = np.ascontiguousarray(values)
    # The header first: a new header with an old source does not link where a name is new, and says so.
    write_atomically(header, _header(named, header).encode())
    write_atomically(source, _source(named, header).encode())
    return source, header


def identifier(name: str) -> str:
    """Return a name that C++ takes for a variable.

    Everything but ASCII letters and digits becomes `_`, one for a run of them (the compiler keeps two in a row
    for itself); a digit or `_` at the front, and a reserved word, get `a_` in front.

    Example:
        >>> [identifier(name) for name in ("digits-v2", "3x3", "_x", "class", "größe")]
        ['digits_v2', 'a_3x3', 'a_x', 'a_class', 'gr_e']
    """
    cleaned = re.sub(r"[^A-Za-z0-9]+", "_", name)
    if cleaned[:1] in ("", "_"):
        cleaned = f"a_{cleaned[1:]}"
    if cleaned[0].isdigit() or cleaned in _RESERVED:
        cleaned = f"a_{cleaned}"
    return cleaned


def _check_array(name: str, values: NDArray[Any]) -> None:
    subject = f"array '{name}'"
    if values.size == 0:
        raise ExportError(subject, "must hold at least one element for C++", "none", "Leave it out.")
    if values.dtype.name not in C_TYPES:
        raise ExportError(
            subject, f"must be of one of the types {sorted(C_TYPES)}", values.dtype.name, "Cast it before."
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ExportError(subject, "must be finite to be written as numbers", "NaN or infinity", "Clean the data.")


def _header(arrays: Mapping[str, NDArray[Any]], header: Path) -> str:
    guard = f"{identifier(header.stem).upper()}_H_"
    lines = [f"#ifndef {guard}", f"#define {guard}", "", "#include <stdbool.h>", "#include <stdint.h>", ""]
    lines += ["#ifdef __cplusplus", 'extern "C" {', "#endif", ""]
    for name, values in arrays.items():
        lines += [
            f"/* {values.nbytes} bytes, shape {'x'.join(map(str, values.shape)) or 'scalar'} */",
            f"extern const {C_TYPES[values.dtype.name]} {name}[];",
            f"extern const unsigned int {name}_len;",
            "",
        ]
    lines += ["#ifdef __cplusplus", "}", "#endif", "", f"#endif /* {guard} */", ""]
    return "\n".join(lines)


def _source(arrays: Mapping[str, NDArray[Any]], header: Path) -> str:
    lines = [f'#include "{header.name}"', ""]
    for name, values in arrays.items():
        lines += [
            f"alignas({ALIGNMENT}) const {C_TYPES[values.dtype.name]} {name}[] = {{",
            *_rows(values),
            "};",
            f"const unsigned int {name}_len = {values.size};",
            "",
        ]
    return "\n".join(lines)


def _rows(values: NDArray[Any]) -> Iterator[str]:
    """Yield lines of 12 bytes, or of as many elements as these are."""
    if values.dtype == np.uint8:
        table = [f"0x{byte:02x}" for byte in range(256)]
        literals = [table[byte] for byte in values.tobytes()]
    else:
        literals = [_literal(value) for value in values.reshape(-1)]
    step = max(1, BYTES_A_LINE // values.dtype.itemsize)
    for start in range(0, len(literals), step):
        yield "    " + ", ".join(literals[start : start + step]) + ","


def _literal(value: Any) -> str:
    """Return a literal that a compiler reads back as the same number, bit for bit."""
    if value.dtype.kind == "f":
        # Nine digits tell any two float32 apart, seventeen any two float64.
        return f"{float(value):.8e}f" if value.dtype == np.float32 else f"{float(value):.16e}"
    if value.dtype.kind == "b":
        return "true" if value else "false"
    if value.dtype == np.int64:
        return f"INT64_C({int(value)})" if value > np.iinfo(np.int64).min else "INT64_MIN"
    if value.dtype == np.int32 and value == np.iinfo(np.int32).min:
        return "INT32_MIN"  # -2147483648 is a minus in front of a number that no int holds
    return str(int(value))
