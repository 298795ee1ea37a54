"""Run files of unknown origin in a child process: a file that crashes the runtime ends the child, and not us.

LiteRT follows much of a file unchecked, in C++. A damaged file that passes our own checks can still end the
process, never return, or ask for all memory; here it ends a child.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Sequence
from itertools import count
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError, FlatbufferError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.processes.child_process import ChildEndedError, ChildProcess, start_python
from tflite_export.processes.frames import as_arrays, as_blobs
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import describe_here
from tflite_export.runtimes.sessions import MeasuredFile, Measurement, Session

__all__ = ["SHARE", "TIMES_EXPECTED", "IsolatedSession", "LiteRTProcess", "measure_isolated"]

SHARE = 4
"""The inputs together, and the outputs, may take 1 / SHARE of the limit of memory, since they exist on our side too."""
TIMES_EXPECTED = 20
"""A timed loop may take this many times what its runs took before it, on top of the limit of one step."""
_CHILD = "tflite_export.runtimes.litert_child"


class LiteRTProcess:
    """A child process with LiteRT; started by the first request, and again after one that killed it.

    Example:
        >>> with LiteRTProcess() as process:
        ...     process.generation
        0
    """

    def __init__(self) -> None:
        self.generation = 0
        """Grows when a process ends: the sessions in it are gone."""
        self._process: ChildProcess | None = None
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
        """Send a request; return the answer and its arrays.

        Args:
            header: of the request: `do`, `subject` and what it needs.
            blobs: bytes that go with it.
            limits: that it must keep within.
            more_seconds: that it may take on top of them.

        Raises:
            FlatbufferError: the file is damaged.
            ExportError: the request failed, killed the process, or took too long.
        """
        seconds = limits.seconds + more_seconds
        with self._lock:
            dropped, self._dropped = self._dropped, []
            allowed = {"seconds": seconds + 5, "answer": limits.memory // SHARE, "drop": dropped}
            try:
                process = self._running()
                process.limit_memory(limits.memory)
                answer, parts = process.ask({**header, **allowed}, blobs, seconds=seconds)
            except ChildEndedError as error:
                self.close()
                raise ExportError(
                    header["subject"], "must not crash or stall the runtime", error, limits.way_out
                ) from error
            except BaseException:
                self.close()
                raise
        if "refused" in answer:
            subject, rule, received, way_out = answer["refused"]
            kind = FlatbufferError if answer["damaged"] else ExportError
            raise kind(subject, rule, received, limits.way_out if answer["limited"] else way_out)
        return answer, [array.copy() for array in as_arrays(answer["arrays"], parts)]

    def _running(self) -> ChildProcess:
        if self._process is None:
            self._process = start_python(_CHILD, env={"OPENBLAS_NUM_THREADS": "1"})
        return self._process

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                self.generation += 1
                process.close()

    def __enter__(self) -> LiteRTProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SHARED = LiteRTProcess()
atexit.register(_SHARED.close)


class IsolatedSession(Session):
    """A file loaded into an interpreter of a child process.

    Args:
        file: the file, or its bytes; its structure is checked here first, so that most damage never reaches the
            runtime.
        subject: what errors call it.
        threads: threads of the runtime.
        delegate: use the XNNPACK delegate.
        limits: of the child.
        process: the child; None: the one that all sessions share.

    Raises:
        FlatbufferError: the file is damaged.
        ExportError: the runtime cannot load it, or crashes in it.

    Example:
        >>> IsolatedSession(b"no model", "model.tflite")
        Traceback (most recent call last):
            ...
        tflite_export.errors.FlatbufferError: model.tflite: a .tflite carries the identifier TFL3 at byte 4. ...
    """

    def __init__(
        self,
        file: TFLiteFile | bytes,
        subject: str = "the file",
        *,
        threads: int = 1,
        delegate: bool = True,
        limits: Limits | None = None,
        process: LiteRTProcess | None = None,
    ) -> None:
        file = TFLiteFile.of(file, subject)
        _ = file.model  # refuses a damaged file
        self.subject = subject
        self._fed = -1
        self.took = 0.0
        """Seconds of the last `invoke`, measured in the child."""
        self._content = file.content
        self._process = _SHARED if process is None else process
        self._limits = (limits or Limits()).for_files(file.content)
        self._configuration = {"name": subject, "threads": threads, "delegate": delegate}
        self._number = self._process.next_session()
        self._finalizer = weakref.finalize(self, self._process.drop, self._number)
        self._load()

    def _load(self) -> None:
        answer, _ = self._ask("load", self._configuration, [self._content])
        self._generation = self._process.generation
        self.subject = answer["subject"]
        self.inputs = {name: _detail(plain) for name, plain in answer["inputs"].items()}
        self.outputs = {name: _detail(plain) for name, plain in answer["outputs"].items()}
        needed = sum(prod(d["shape"].tolist()) * np.dtype(d["dtype"]).itemsize for d in self.inputs.values())
        if needed > self._limits.memory // SHARE:
            rule = f"must have inputs that fit into 1/{SHARE} of the limit of memory, {self._limits.memory} bytes"
            raise ExportError(self.subject, rule, f"{needed} bytes", self._limits.way_out)

    def run(
        self,
        feeds: Sequence[NDArray[Any]],
        names: Sequence[str],
        outputs: Sequence[str],
        batch: int | None = None,
    ) -> list[NDArray[Any]]:
        """Return the outputs for any number of samples: see `Session.run`.

        Raises:
            ExportError: a name is unknown, the runtime fails or dies, or the outputs of batches do not go together.
        """
        try:
            return super().run(feeds, names, outputs, batch)
        except (IndexError, ValueError) as error:
            if isinstance(error, ExportError):
                raise
            rule = "must have inputs and outputs that begin with the batch"
            raise ExportError(self.subject, rule, error, "Export the model again.") from error

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs, resized to the batch."""
        self.require_names(names, self.inputs)
        if self._generation != self._process.generation:
            self._load()  # another file killed the process in which this one was loaded
        described, blobs = as_blobs(batch)
        self._ask("feed", {"names": list(names), "arrays": described}, blobs)
        self._fed = self._generation

    def invoke(self) -> None:
        """Run the file once, on the inputs that were set."""
        self._require_fed()
        answer, _ = self._ask("invoke", {})
        self.took = float(answer["took"])

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return copies of outputs by name."""
        self.require_names(outputs, self.outputs)
        self._require_fed()
        return self._ask("fetch", {"names": list(outputs)})[1]

    def tensor_shapes(self) -> dict[int, tuple[int, ...]]:
        """Return the shape of each tensor of the first subgraph, as of the last run."""
        self._require_fed()
        return {index: tuple(shape) for index, shape in self._ask("shapes", {})[0]["shapes"]}

    def close(self) -> None:
        """Let the child forget the file."""
        self._finalizer()

    def _require_fed(self) -> None:
        if self._fed != self._process.generation:
            raise ExportError(
                self.subject,
                "must be fed, run and read in one process",
                "another file ended the process",
                "Feed it again.",
            )

    def _ask(
        self, do: str, request: dict[str, Any], blobs: Sequence[bytes] = ()
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        header = {**request, "do": do, "session": self._number, "subject": self.subject}
        return self._process.ask(header, blobs, self._limits)

    def time_beside(self, others: Sequence[IsolatedSession], rounds: int) -> NDArray[np.float64]:
        """Time this file and others of the same process in turn, there; return milliseconds, [rounds, 1 + others].

        Args:
            others: fed and run before, as this one.
            rounds: runs of each.

        Raises:
            ExportError: they take far longer than the runs before did.
        """
        sessions = [self, *others]
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
        _, (samples,) = self._process.ask(header, (), self._limits, more_seconds=TIMES_EXPECTED * expected)
        return samples


def measure_isolated(
    sessions: Sequence[IsolatedSession],
    cases: Sequence[MeasuredFile],
    feeds: Sequence[NDArray[Any]],
    rounds: int,
    warm_up: int,
) -> Measurement:
    """Run files of one child in turn, timed there: the way to the child and back is not timed.

    Args:
        sessions: the files, in one process.
        cases: what each is called, and its names.
        feeds: an array [batch, ...] for each input.
        rounds: timed runs of each; 0 gives outputs only.
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
    samples = sessions[0].time_beside(sessions[1:], rounds) if rounds else np.empty((0, len(sessions)))
    return Measurement(describe_here(), "ms", outputs, samples, [[] for _ in cases])


def _detail(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a tensor's detail as the interpreter gives it: a type, arrays of sizes."""
    sizes = {key: np.array(plain[key], dtype=np.int32) for key in ("shape", "shape_signature")}
    return {**plain, **sizes, "dtype": np.dtype(plain["dtype"]).type}
