"""The child process in which Vela compiles: it prints, keeps state between files, and may end its process.

It imports Vela, and of this package only the frames: see `tflite_export.processes.child_process.python_command`. What
Vela prints, by Python and by its core in C++, is kept and sent back: it says why an operator stays on the processor.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tflite_export.processes.child_process import READY
from tflite_export.processes.frames import pack, read_frame

__all__ = ["compile_file", "main", "serve"]

_NAME = "model"


def compile_file(content: bytes, options: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    """Return what Vela's tables say of a file, and the compiled file.

    Args:
        content: the file.
        options: of Vela's command line, by their names.

    Raises:
        RuntimeError: Vela refuses the file, or does not write what it should.
    """
    with tempfile.TemporaryDirectory(prefix="tflite-export-vela-") as folder:
        given = Path(folder) / f"{_NAME}.tflite"
        given.write_bytes(content)
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        vela = importlib.import_module("ethosu.vela.vela")
        with _printed(Path(folder) / "printed") as printed:
            try:
                code = vela.main([str(given), *arguments, "--output-dir", folder, "--verbose-performance"])
            except SystemExit as error:  # of argparse, which has printed why
                code = error.code
            except Exception as error:
                raise RuntimeError(f"{error}\n{printed()}") from error
            said = printed()
        written, tables = Path(folder) / f"{_NAME}_vela.tflite", sorted(Path(folder).glob(f"{_NAME}_summary_*.csv"))
        if code or not written.exists() or not tables:
            raise RuntimeError(said)
        (summary,) = _rows(tables[0])
        layers = Path(folder) / f"{_NAME}_per-layer.csv"
        found = {"summary": summary, "layers": _rows(layers) if layers.exists() else [], "printed": said}
        return found, written.read_bytes()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def _printed(path: Path) -> Iterator[Any]:
    """Keep in a file what is printed meanwhile, by C++ as well; yield a function that reads it."""
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        with path.open("wb") as file:
            for stream, _ in kept:
                os.dup2(file.fileno(), stream)

        def printed() -> str:
            sys.stdout.flush()
            sys.stderr.flush()
            return path.read_text(errors="replace")

        yield printed
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Say that the process is ready, and answer requests until the stream ends."""
    importlib.import_module("ethosu.vela.vela")
    answers.write(READY)
    answers.flush()
    while True:
        try:
            header, blobs = read_frame(requests.read)
        except EOFError:
            return
        try:
            answer, content = compile_file(blobs[0], header["options"])
        except RuntimeError as error:
            answer, content = {"error": str(error)}, b""
        answers.write(pack(answer, [content]))
        answers.flush()


def main() -> None:
    """Answer on a copy of the standard output: Vela prints on it."""
    with os.fdopen(os.dup(1), "wb") as own:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, own)
