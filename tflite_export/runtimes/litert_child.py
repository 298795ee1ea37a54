"""The child process in which files of unknown origin run: answers requests on its standard input.

It imports LiteRT and NumPy, and of this package only what needs no Keras: see
`tflite_export.processes.child_process.python_command`.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError, FlatbufferError
from tflite_export.processes.child_process import READY
from tflite_export.processes.frames import as_arrays, as_blobs, pack, read_frame
from tflite_export.runtimes.interleaved import time_in_turn
from tflite_export.runtimes.litert import LiteRTSession

__all__ = ["Answer", "LimitExceededError", "main"]


class LimitExceededError(ExportError):
    """A file did not keep within its limits; the way out is the parent's, which knows where they were set."""


Answer = tuple[dict[str, Any], list[NDArray[Any]]]


def main() -> None:
    """Answer requests until the standard input ends.

    A request's `seconds` are held by a watchdog of our own as well, so that the process does not outlive a
    parent that was killed.
    """
    # Other people's code may print: the frames have a stream of their own.
    answers = os.fdopen(os.dup(1), "wb")
    silence = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    os.dup2(silence.fileno(), 1)
    _no_core_files()
    sessions: dict[int, LiteRTSession] = {}
    answers.write(READY)
    answers.flush()
    while True:
        try:
            header, blobs = read_frame(sys.stdin.buffer.read)
        except EOFError:
            return
        for number in header["drop"]:
            sessions.pop(number, None)
        faulthandler.dump_traceback_later(header["seconds"], exit=True, file=silence)
        try:
            answer, arrays = _REQUESTS[header["do"]](sessions, header, blobs)
            size = sum(array.nbytes for array in arrays)
            if size > header["answer"]:
                rule = f"must have outputs of at most {header['answer']} bytes"
                raise LimitExceededError(header["subject"], rule, f"{size} bytes", "")
            described, parts = as_blobs(arrays)
            frame = pack({**answer, "arrays": described}, parts)
        except ExportError as error:
            frame = _refusal(error)
        except Exception as error:  # whatever goes wrong with a file is reported to the parent
            kind = LimitExceededError if isinstance(error, MemoryError) else ExportError
            rule = "must run in the runtime"
            frame = _refusal(kind(header["subject"], rule, _described(error), "Get or export the file again."))
        finally:
            faulthandler.cancel_dump_traceback_later()
        answers.write(frame)
        answers.flush()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refusal(error: ExportError) -> bytes:
    parts = [error.subject, error.rule, str(error.received), error.way_out]
    limited = isinstance(error, LimitExceededError) or _speaks_of_memory(parts[2])
    if parts[2].strip() == "RuntimeError:":
        parts[2] = "RuntimeError without a reason, as where the runtime gets no memory"
    return pack({"refused": parts, "damaged": isinstance(error, FlatbufferError), "limited": limited})


def _speaks_of_memory(said: str) -> bool:
    """Return whether the runtime got no memory: it says so, or gives an error without a text, for its own arena."""
    words = ("failed to allocate", "bad_alloc", "out of memory")
    return said.strip() == "RuntimeError:" or any(each in said.lower() for each in words)


def _no_core_files() -> None:
    """Leave no file behind where the runtime crashes, on the platforms that write one."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _load(sessions: dict[int, LiteRTSession], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    session = LiteRTSession(blobs[0], header["name"], threads=header["threads"], delegate=header["delegate"])
    sessions[header["session"]] = session
    answer = {
        "subject": session.subject,
        "inputs": {name: _plain(detail) for name, detail in session.inputs.items()},
        "outputs": {name: _plain(detail) for name, detail in session.outputs.items()},
    }
    return answer, []


def _feed(sessions: dict[int, LiteRTSession], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    arrays = as_arrays(header["arrays"], blobs)
    sessions[header["session"]].feed(arrays, header["names"])
    return {}, []


def _invoke(sessions: dict[int, LiteRTSession], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    session = sessions[header["session"]]
    start = time.perf_counter()
    session.invoke()
    return {"took": time.perf_counter() - start}, []


def _time(sessions: dict[int, LiteRTSession], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    """Run sessions in turn; the array holds the milliseconds of each run, [rounds, sessions]."""
    timed = [sessions[number].invoke for number in header["sessions"]]
    return {}, [1e3 * time_in_turn(timed, header["rounds"])]


def _fetch(sessions: dict[int, LiteRTSession], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    arrays = [np.asarray(array) for array in sessions[header["session"]].fetch(header["names"])]
    for name, array in zip(header["names"], arrays, strict=True):
        if array.dtype.hasobject:
            raise ExportError(
                f"{header['subject']}, output '{name}'", "must hold numbers", "strings", "Leave the output out."
            )
    return {}, arrays


def _shapes(sessions: dict[int, LiteRTSession], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    shapes = sessions[header["session"]].tensor_shapes()
    return {"shapes": [[index, list(shape)] for index, shape in shapes.items()]}, []


_REQUESTS: dict[str, Callable[[dict[int, LiteRTSession], dict[str, Any], Sequence[bytes]], Answer]] = {
    "load": _load,
    "feed": _feed,
    "invoke": _invoke,
    "time": _time,
    "fetch": _fetch,
    "shapes": _shapes,
}


def _plain(value: Any) -> Any:
    """Return a detail of a tensor as JSON: types by name, arrays as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, type):
        return np.dtype(value).name
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
