"""The child process in which untrusted files run: answers requests on its standard input.

It imports the runtime and NumPy, and of this package only what needs no Keras: `tflite_export.runtimes.isolation`
starts it below empty packages of the same names, so that no `__init__.py` of them is run. That takes
0.2 s where TensorFlow would take 4.
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
from tflite_export.runtimes.frames import pack, read_frame
from tflite_export.runtimes.litert import Session

__all__ = ["Answer", "Limited", "serve"]


class Limited(ExportError):
    """A file did not keep within its limits; the way out is the parent's, which knows where they were set."""


Answer = tuple[dict[str, Any], list[NDArray[Any]]]


def serve() -> None:
    """Answer requests until the standard input ends.

    A request's `seconds` are held by a watchdog of our own as well, so that the process does not outlive a
    parent that was killed.
    """
    # Other people's code may print: the frames have a stream of their own.
    answers = os.fdopen(os.dup(1), "wb")
    silence = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    os.dup2(silence.fileno(), 1)
    _limit("RLIMIT_CORE", 0)
    sessions: dict[int, Session] = {}
    while True:
        try:
            header, blobs = read_frame(sys.stdin.buffer.read)
        except EOFError:
            return
        for number in header["drop"]:
            sessions.pop(number, None)
        faulthandler.dump_traceback_later(header["seconds"], exit=True, file=silence)
        _limit("RLIMIT_AS", header["memory"])  # macOS takes the call and does not hold it
        try:
            answer, arrays = _REQUESTS[header["do"]](sessions, header, blobs)
            size = sum(array.nbytes for array in arrays)
            if size > header["answer"]:
                rule = f"its outputs must take at most {header['answer']} bytes"
                raise Limited(header["subject"], rule, f"{size} bytes", "")
            described = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
            frame = pack({**answer, "arrays": described}, [array.tobytes() for array in arrays])
        except ExportError as error:
            frame = _refusal(error)
        except Exception as error:  # whatever a file brings about is the answer to its request
            kind = Limited if isinstance(error, MemoryError) else ExportError
            rule = "the runtime must run it"
            frame = _refusal(kind(header["subject"], rule, _described(error), "Get or export the file again."))
        finally:
            faulthandler.cancel_dump_traceback_later()
        answers.write(frame)
        answers.flush()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refusal(error: ExportError) -> bytes:
    parts = [error.subject, error.rule, str(error.received), error.way_out]
    limited = isinstance(error, Limited) or _speaks_of_memory(parts[2])
    if parts[2].strip() == "RuntimeError:":
        parts[2] = "RuntimeError without a reason, as where the runtime gets no memory"
    return pack({"refused": parts, "damaged": isinstance(error, FlatbufferError), "limited": limited})


def _speaks_of_memory(said: str) -> bool:
    """Return whether the runtime could not get memory: it says so in words, or, for its own arena, in none at all."""
    words = ("failed to allocate", "bad_alloc", "out of memory")
    return said.strip() == "RuntimeError:" or any(each in said.lower() for each in words)


def _limit(name: str, soft: int) -> None:
    """Set a limit of this process, on the platforms that have it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    number = getattr(resource, name)
    _, hard = resource.getrlimit(number)
    resource.setrlimit(number, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _load(sessions: dict[int, Session], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    session = Session(blobs[0], header["name"], threads=header["threads"], delegate=header["delegate"])
    sessions[header["session"]] = session
    answer = {
        "subject": session.subject,
        "inputs": {name: _plain(detail) for name, detail in session.inputs.items()},
        "outputs": {name: _plain(detail) for name, detail in session.outputs.items()},
    }
    return answer, []


def _feed(sessions: dict[int, Session], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    arrays = [
        np.frombuffer(blob, dtype=np.dtype(entry["dtype"])).reshape(entry["shape"])
        for blob, entry in zip(blobs, header["arrays"], strict=True)
    ]
    sessions[header["session"]].feed(arrays, header["names"])
    return {}, []


def _invoke(sessions: dict[int, Session], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    session = sessions[header["session"]]
    start = time.perf_counter()
    session.invoke()
    return {"took": time.perf_counter() - start}, []


def _time(sessions: dict[int, Session], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    """Run sessions in turn; the array holds the milliseconds of each run, [rounds, sessions]."""
    timed = [sessions[number] for number in header["sessions"]]
    samples = np.empty((header["rounds"], len(timed)))
    for round_number in range(len(samples)):
        for column, session in enumerate(timed):
            start = time.perf_counter_ns()
            session.invoke()
            samples[round_number, column] = (time.perf_counter_ns() - start) / 1e6
    return {}, [samples]


def _fetch(sessions: dict[int, Session], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    arrays = [np.asarray(array) for array in sessions[header["session"]].fetch(header["names"])]
    for name, array in zip(header["names"], arrays, strict=True):
        if array.dtype.hasobject:
            raise ExportError(
                f"{header['subject']}, output '{name}'", "must hold numbers", "strings", "Leave the output out."
            )
    return {}, arrays


def _shapes(sessions: dict[int, Session], header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    shapes = sessions[header["session"]].tensor_shapes()
    return {"shapes": [[index, list(shape)] for index, shape in shapes.items()]}, []


_REQUESTS: dict[str, Callable[[dict[int, Session], dict[str, Any], Sequence[bytes]], Answer]] = {
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
