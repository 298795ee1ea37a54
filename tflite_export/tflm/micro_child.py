"""The process in which TensorFlow Lite Micro runs: it may die on a file, and the library must not die with it.

Run as a script, with nothing of this package imported. Frames go both ways on the standard streams: eight bytes,
little-endian, with a length; then a `.npz` of that length. What the interpreter prints goes to the standard error.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import sys
from typing import IO, Any

import numpy as np

__all__ = ["GRAIN", "LARGEST_ARENA", "Micro", "read_frame", "serve", "write_frame"]

LARGEST_ARENA = 2**28
"""Bytes. Pages that are not touched cost nothing; no microcontroller comes near."""
GRAIN = 16
"""Bytes: arenas are aligned to this, so smaller steps tell nothing."""


def read_frame(stream: IO[bytes]) -> dict[str, Any] | None:
    """Return the next frame's arrays, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    body = stream.read(length)
    if len(body) < length:
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return dict(arrays)


def write_frame(stream: IO[bytes], **arrays: Any) -> None:
    """Send arrays by name."""
    body = io.BytesIO()
    np.savez(body, **arrays)
    stream.write(struct.pack("<Q", body.tell()) + body.getvalue())
    stream.flush()


class Micro:
    """A file in the interpreter, its inputs and outputs by position."""

    def __init__(self, content: bytes, inputs: int, outputs: int) -> None:
        self.content, self.counts = content, (inputs, outputs)
        self.interpreter = self.allocate(LARGEST_ARENA)

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
        interpreter.invoke()
        return [interpreter.get_output(position) for position in range(self.counts[1])]

    def find_arena(self, feeds: list[Any]) -> int:
        """Return the smallest arena, in bytes, in which the file allocates and answers the same.

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
        wanted = self.run(feeds)
        if not self._succeeds(lambda: self._must_answer(high, feeds, wanted)):
            raise RuntimeError(f"it allocates in {high} bytes and does not answer the same there")
        return high

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
    """Answer requests until the stream ends."""
    micro: Micro | None = None
    while (request := read_frame(requests)) is not None:
        act = str(request.pop("act"))
        feeds = [request[key] for key in sorted(request, key=_position) if key.startswith("input")]
        try:
            if act == "load":
                micro = Micro(request["content"].tobytes(), int(request["inputs"]), int(request["outputs"]))
                write_frame(answers)
            elif micro is None:
                raise RuntimeError("nothing is loaded")
            elif act == "run":
                write_frame(answers, **{f"output{i}": values for i, values in enumerate(micro.run(feeds))})
            elif act == "arena":
                write_frame(answers, arena=micro.find_arena(feeds))
            else:
                micro.interpreter.print_allocations()
                write_frame(answers)
        except (RuntimeError, ValueError) as error:
            write_frame(answers, error=f"{type(error).__name__}: {error}")


def _position(key: str) -> int:
    return int("".join(filter(str.isdigit, key)) or -1)


if __name__ == "__main__":
    # The interpreter may print on the standard output too: the answers go by a copy of it.
    with os.fdopen(os.dup(1), "wb") as own:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, own)
