"""Run files that others made in a child process: what kills it becomes an error, not our end.

LiteRT follows much of a file unchecked, in C++. A damaged file that passes our own checks can still end the
process, never return, or ask for all memory; here it ends a child.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError, FlatbufferError
from tflite_export.file.flatbuffer import read
from tflite_export.runtimes.children import end
from tflite_export.runtimes.frames import pack, read_frame
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import Case, Measurement, describe_here, fixed_batch, require_names, run_in_batches

__all__ = ["SHARE", "TIMES_EXPECTED", "IsolatedSession", "Worker", "measure_isolated"]

SHARE = 4
"""Inputs, and outputs, may take one part in so many of it: they exist on our side too."""

_START = """
import json, sys, types
sys.path[:], folders = map(json.loads, sys.argv[1:3])
for name, folder in folders.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from tflite_export.runtimes.worker import serve
serve()
"""
_FOLDERS = {name: str(Path(__file__).parents[2] / name) for name in ("keras_prune", "tflite_export")}
"""Packages whose own modules the child imports, and not their `__init__`, which would import Keras."""
TIMES_EXPECTED = 20
"""A timed loop may take so many times what its runs took before it, on top of the limit of one step."""


class Worker:
    """A child process with the runtime; started by the first request, and again after one that killed it.

    Example:
        >>> with Worker() as worker:
        ...     worker.generation
        0
    """

    def __init__(self) -> None:
        self.generation = 0
        """Grows when a process ends: sessions of an earlier one are gone."""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._dropped: list[int] = []
        self._numbers = count()

    def next_session(self) -> int:
        """Return a number for a session."""
        return next(self._numbers)

    def drop(self, number: int) -> None:
        """Forget a session, with the next request."""
        self._dropped.append(number)

    def ask(
        self, header: dict[str, Any], blobs: Sequence[bytes], limits: Limits, *, more_seconds: float = 0.0
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Ask once; return the answer and its arrays.

        Args:
            header: the request: `do`, `subject` and what it needs.
            blobs: bytes that go with it.
            limits: that it must keep within.
            more_seconds: that it may take on top of them.

        Raises:
            FlatbufferError: the file is damaged.
            ExportError: the request failed, killed the process, or took too long.
        """
        seconds = limits.seconds + more_seconds
        allowed = {"seconds": seconds + 5, "memory": limits.memory, "answer": limits.memory // SHARE}
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            dropped, self._dropped = self._dropped, []
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            watch = threading.Timer(seconds, end)
            watch.start()
            try:
                process.stdin.write(pack({**header, **allowed, "drop": dropped}, blobs))
                process.stdin.flush()
                answer, parts = read_frame(process.stdout.read)
            except (EOFError, OSError, ValueError) as error:
                raise self._ended(header["subject"], late.is_set(), seconds, limits) from error
            except BaseException:
                self.close()  # interrupted between question and answer: the next one would get this one's
                raise
            finally:
                watch.cancel()
        if "refused" in answer:
            subject, rule, received, way_out = answer["refused"]
            kind = FlatbufferError if answer["damaged"] else ExportError
            raise kind(subject, rule, received, limits.way_out if answer["limited"] else way_out)
        arrays = [
            np.frombuffer(part, dtype=np.dtype(entry["dtype"])).reshape(entry["shape"]).copy()
            for part, entry in zip(parts, answer["arrays"], strict=True)
        ]
        return answer, arrays

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-c", _START, json.dumps(sys.path), json.dumps(_FOLDERS)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def _ended(self, subject: str, late: bool, seconds: float, limits: Limits) -> ExportError:
        """Return how the process ended."""
        assert self._process is not None
        self._process.kill()
        code = self._process.wait()
        self.close()
        if late:
            how = f"no answer within {seconds:g} s"
        elif code < 0 and -code in {number.value for number in signal.Signals}:
            how = f"{signal.Signals(-code).name} in the runtime"
        else:
            how = f"exit code {code} of the runtime"
        return ExportError(subject, "the runtime must survive it", how, limits.way_out)

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            self.generation += 1
            end(process)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SHARED = Worker()
atexit.register(_SHARED.close)


class IsolatedSession:
    """A file loaded into an interpreter of the child process; used as `litert.Session` is.

    Args:
        content: the file's bytes; its structure is checked here first, so that most damage never reaches the
            runtime.
        subject: what to call it in errors.
        threads: threads of the runtime.
        delegate: use the XNNPACK delegate.
        limits: of the child.
        worker: the process; None for the one that all sessions share.

    Raises:
        FlatbufferError: the file is damaged.
        ExportError: the runtime cannot load it, or does not survive it.

    Example:
        >>> IsolatedSession(b"no model", "model.tflite")
        Traceback (most recent call last):
            ...
        tflite_export.errors.FlatbufferError: model.tflite: a .tflite carries the identifier TFL3 at byte 4. ...
    """

    def __init__(
        self,
        content: bytes,
        subject: str = "the file",
        *,
        threads: int = 1,
        delegate: bool = True,
        limits: Limits | None = None,
        worker: Worker | None = None,
    ) -> None:
        read(content, subject)
        self.subject = subject
        self._fed = -1
        self.took = 0.0
        """Seconds of the last `invoke`, measured in the child."""
        self._content = content
        self._worker = _SHARED if worker is None else worker
        self._limits = (limits or Limits()).for_files(content)
        self._configuration = {"name": subject, "threads": threads, "delegate": delegate}
        self._number = self._worker.next_session()
        self._load()

    def _load(self) -> None:
        answer, _ = self._ask("load", self._configuration, [self._content])
        self._generation = self._worker.generation
        self.subject = answer["subject"]
        self.inputs = {name: _detail(plain) for name, plain in answer["inputs"].items()}
        self.outputs = {name: _detail(plain) for name, plain in answer["outputs"].items()}
        needed = sum(prod(d["shape"].tolist()) * np.dtype(d["dtype"]).itemsize for d in self.inputs.values())
        if needed > self._limits.memory // SHARE:
            rule = f"its inputs must fit 1/{SHARE} of the memory that it may have, {self._limits.memory} bytes"
            raise ExportError(self.subject, rule, f"{needed} bytes", self._limits.way_out)

    @property
    def batch_size(self) -> int | None:
        """The batch that the file is fixed to, or None for a free one."""
        return fixed_batch(self.inputs)

    def run(
        self,
        feeds: Sequence[NDArray[Any]],
        names: Sequence[str],
        outputs: Sequence[str],
        batch: int | None = None,
    ) -> list[NDArray[Any]]:
        """Return the outputs for samples of any number, in batches that the file takes.

        Args:
            feeds: an array [samples, ...] for each name.
            names: names of the inputs.
            outputs: names of the outputs wanted.
            batch: of a file with a free batch: run it in batches of this size.

        Raises:
            ExportError: a name is unknown, or the runtime fails or dies.
        """
        try:
            return run_in_batches(self, feeds, names, outputs, batch)
        except (IndexError, ValueError) as error:
            if isinstance(error, ExportError):
                raise
            rule = "its inputs and outputs must begin with the batch"
            raise ExportError(self.subject, rule, error, "Export the model again.") from error

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs, resized to the batch."""
        require_names(self, names, self.inputs)
        if self._generation != self._worker.generation:
            self._load()  # another file killed the process in which this one was loaded
        arrays = [np.asarray(array) for array in batch]
        described = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
        self._ask("feed", {"names": list(names), "arrays": described}, [array.tobytes() for array in arrays])
        self._fed = self._generation

    def invoke(self) -> None:
        """Run the file once, on the inputs that were set."""
        self._require_fed()
        answer, _ = self._ask("invoke", {})
        self.took = float(answer["took"])

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return copies of outputs by name."""
        require_names(self, outputs, self.outputs)
        self._require_fed()
        return self._ask("fetch", {"names": list(outputs)})[1]

    def tensor_shapes(self) -> dict[int, tuple[int, ...]]:
        """Return the shape of each tensor of the first subgraph, as of the last run."""
        self._require_fed()
        return {index: tuple(shape) for index, shape in self._ask("shapes", {})[0]["shapes"]}

    def _require_fed(self) -> None:
        if self._fed != self._worker.generation:
            raise ExportError(
                self.subject, "its process must live from feed to fetch", "another file killed it", "Feed it again."
            )

    def _ask(
        self, do: str, request: dict[str, Any], blobs: Sequence[bytes] = ()
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        header = {**request, "do": do, "session": self._number, "subject": self.subject}
        return self._worker.ask(header, blobs, self._limits)

    def __del__(self) -> None:
        """Let the child forget the file."""
        if hasattr(self, "_number"):
            self._worker.drop(self._number)


def measure_isolated(
    sessions: Sequence[IsolatedSession],
    cases: Sequence[Case],
    feeds: Sequence[NDArray[Any]],
    rounds: int,
    warm_up: int,
) -> Measurement:
    """Run files of one child in turn, timed there: no question and answer lies within what is timed.

    Args:
        sessions: the files, in one process.
        cases: what each is called, and its names.
        feeds: an array for each input.
        rounds: runs of each that are timed; 0 answers only.
        warm_up: runs before that.

    Raises:
        ExportError: a file cannot be run, or does not keep within its limits.
    """
    outputs = []
    for session, case in zip(sessions, cases, strict=True):
        session.feed(feeds, case.inputs)
        for _ in range(max(warm_up if rounds else 1, 1)):
            session.invoke()
        outputs.append(session.fetch(case.outputs))
    samples = _time_in_turn(sessions, rounds) if rounds else np.empty((0, len(sessions)))
    return Measurement(describe_here(), "ms", outputs, samples, [[] for _ in cases])


def _time_in_turn(sessions: Sequence[IsolatedSession], rounds: int) -> NDArray[np.float64]:
    """Return milliseconds of the runs of each session, [rounds, sessions], all fed and run before."""
    for session in sessions:
        session._require_fed()
    names = list(dict.fromkeys(session.subject for session in sessions))
    header = {
        "do": "time",
        "sessions": [session._number for session in sessions],
        "rounds": rounds,
        "subject": names[0] if len(names) == 1 else f"one of {', '.join(names)}",
    }
    expected = rounds * sum(session.took for session in sessions)
    first = sessions[0]
    _, (samples,) = first._worker.ask(header, (), first._limits, more_seconds=TIMES_EXPECTED * expected)
    return samples


def _detail(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a tensor's detail as the interpreter gives it: a type, arrays of sizes."""
    sizes = {key: np.array(plain[key], dtype=np.int32) for key in ("shape", "shape_signature")}
    return {**plain, **sizes, "dtype": np.dtype(plain["dtype"]).type}
