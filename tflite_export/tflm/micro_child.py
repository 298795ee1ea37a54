"""The child process in which TensorFlow Lite Micro runs: a file may crash it.

It imports NumPy and the interpreter, and of this package only the frames: see
`tflite_export.processes.child_process.python_command`. What the interpreter prints goes to the standard error.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import IO, Any

import numpy as np

from tflite_export.processes.child_process import READY
from tflite_export.processes.frames import as_arrays, as_blobs, pack, read_frame

__all__ = ["GRAIN", "LARGEST_ARENA", "Micro", "main", "serve"]

LARGEST_ARENA = 2**28
"""Bytes. Pages that are not touched cost nothing; no microcontroller comes near."""
GRAIN = 16
"""Bytes: arenas are aligned to this, so smaller steps tell nothing."""


class Micro:
    """A file in the interpreter, its inputs and outputs by position."""

    def __init__(self, content: bytes, inputs: int, outputs: int) -> None:
        self.content, self.counts = content, (inputs, outputs)
        self.interpreter = self.allocate(LARGEST_ARENA)
        self.took = 0.0
        """Seconds of the last run."""

    def allocate(self, arena: int) -> Any:
        """Return an interpreter in an arena of this size; RuntimeError, or worse, where it is too small."""
        runtime = importlib.import_module("tflite_micro").runtime
        return runtime.Interpreter.from_bytes(self.content, arena_size=arena)

    def run(self, feeds: list[Any]) -> list[Any]:
        """Return the outputs for one sample."""
        return self._run(self.interpreter, feeds)

    def _run(self, interpreter: Any, feeds: list[Any]) -> list[Any]:
        interpreter.reset()  # state of one sample must not leak into the next
        for position, values in enumerate(feeds):
            interpreter.set_input(values, position)
        start = time.perf_counter()
        interpreter.invoke()
        self.took = time.perf_counter() - start
        return [interpreter.get_output(position) for position in range(self.counts[1])]

    def find_arena(self, feeds: list[Any]) -> int:
        """Return the smallest arena, in bytes, in which the file allocates and gives the same outputs.

        Doubled until it is enough, then halved in between. Each size is tried in a process of its own, since the
        interpreter follows null pointers where some sizes are too small.
        """
        high = GRAIN
        while not self._succeeds(lambda size=high: self.allocate(size)):
            high *= 2
            if high > LARGEST_ARENA:
                raise RuntimeError(f"no arena up to {LARGEST_ARENA} bytes is enough")
        low = high // 2
        while high - low > GRAIN:
            middle = (low + high) // 2 // GRAIN * GRAIN
            if self._succeeds(lambda size=middle: self.allocate(size)):
                high = middle
            else:
                low = middle
        if not self.fits(high, feeds):
            raise RuntimeError(f"it allocates in {high} bytes, and gives other outputs there")
        return high

    def fits(self, arena: int, feeds: list[Any]) -> bool:
        """Return whether the file allocates in an arena of so many bytes, and gives the same outputs there."""
        wanted = self.run(feeds)
        return self._succeeds(lambda: self._must_answer(arena, feeds, wanted))

    def _must_answer(self, arena: int, feeds: list[Any], wanted: list[Any]) -> None:
        for got, expected in zip(self._run(self.allocate(arena), feeds), wanted, strict=True):
            if not np.array_equal(got, expected, equal_nan=got.dtype.kind == "f"):
                raise RuntimeError("other outputs")

    def _succeeds(self, act: Any) -> bool:
        """Return whether an act succeeds, in a forked process whose messages are dropped."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                act()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        return status == 0


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Say that the process is ready, and answer requests until the stream ends."""
    answers.write(READY)
    answers.flush()
    micro: Micro | None = None
    while True:
        try:
            header, blobs = read_frame(requests.read)
        except EOFError:
            return
        answer: dict[str, Any] = {}
        outputs: list[Any] = []
        try:
            if header["do"] == "load":
                micro = Micro(blobs[0], header["inputs"], header["outputs"])
            elif micro is None:
                raise RuntimeError("nothing is loaded")
            elif header["do"] == "run":
                outputs = micro.run(as_arrays(header["arrays"], blobs))
                answer["took"] = micro.took
            elif header["do"] == "arena":
                answer["arena"] = micro.find_arena(as_arrays(header["arrays"], blobs))
            elif header["do"] == "fits":
                answer["fits"] = micro.fits(header["arena"], as_arrays(header["arrays"], blobs))
            else:
                micro.interpreter.print_allocations()
        except (RuntimeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        described, parts = as_blobs(outputs)
        answers.write(pack({**answer, "arrays": described}, parts))
        answers.flush()


def main() -> None:
    """Answer on a copy of the standard output: the interpreter may print on it too."""
    with os.fdopen(os.dup(1), "wb") as own:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, own)
