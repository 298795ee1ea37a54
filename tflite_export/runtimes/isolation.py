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
from tflite_export.runtime import require_names, run_in_batches
from tflite_export.runtimes.children import end
from tflite_export.runtimes.frames import pack, read_frame

SECONDS = 120.0
"""That one request may take: loading, feeding, or one run."""
MEMORY = 4 * 2**30
"""Bytes of address space that the child may have, 8 times the file where that is more."""
SHARE = 4
"""Inputs, and outputs, may take one part in so many of it: they exist on our side too."""

_START = (
    "import json, sys, types; sys.path[:] = json.loads(sys.argv[1]); "
    "package = types.ModuleType('tflite_export'); package.__path__ = [sys.argv[2]]; "
    "sys.modules['tflite_export'] = package; "
    "from tflite_export.runtimes.worker import serve; serve()"
)
_WAY_OUT = (
    "The file is damaged, or needs more than the limits of isolation: get or export it again, "
    "or raise seconds or memory."
)


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
        self, header: dict[str, Any], blobs: Sequence[bytes] = (), *, seconds: float = SECONDS
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Ask once; return the answer and its arrays.

        Args:
            header: The request: ``do``, ``subject`` and what it needs.
            blobs: Bytes that go with it.
            seconds: That it may take.

        Raises:
            FlatbufferError: The file is damaged.
            ExportError: The request failed, killed the process, or took too long.
        """
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
                process.stdin.write(pack({**header, "drop": dropped, "seconds": seconds + 5}, blobs))
                process.stdin.flush()
                answer, parts = read_frame(process.stdout.read)
            except (EOFError, OSError, ValueError) as error:
                raise self._ended(header["subject"], late.is_set(), seconds) from error
            except BaseException:
                self.close()  # interrupted between question and answer: the next one would get this one's
                raise
            finally:
                watch.cancel()
        if "refused" in answer:
            raise (FlatbufferError if answer["damaged"] else ExportError)(*answer["refused"])
        arrays = [
            np.frombuffer(part, dtype=np.dtype(entry["dtype"])).reshape(entry["shape"]).copy()
            for part, entry in zip(parts, answer["arrays"], strict=True)
        ]
        return answer, arrays

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -c, not -m: the package's __init__ would import Keras.
            command = [sys.executable, "-c", _START, json.dumps(sys.path), str(Path(__file__).parents[1])]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def _ended(self, subject: str, late: bool, seconds: float) -> ExportError:
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
        return ExportError(subject, "the runtime must survive it", how, _WAY_OUT)

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
    """A file loaded into an interpreter of the child process; used as :class:`tflite_export.runtime.Session` is.

    Args:
        content: The file's bytes; its structure is checked here first, so that most damage never reaches the
            runtime.
        subject: What to call it in errors.
        threads: Threads of the runtime.
        delegate: Use the XNNPACK delegate.
        seconds: That one request may take.
        memory: Bytes of address space that the child may have, on the platforms that hold such a limit
            (Linux); the larger of this and 8 times the file.
        worker: The process; None for the one that all sessions share.

    Raises:
        FlatbufferError: The file is damaged.
        ExportError: The runtime cannot load it, or does not survive it.

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
        seconds: float = SECONDS,
        memory: int = MEMORY,
        worker: Worker | None = None,
    ) -> None:
        read(content, subject)
        self.subject = subject
        self.took = 0.0
        """Seconds of the last :meth:`invoke`, measured in the child."""
        self._content = content
        self._worker = _SHARED if worker is None else worker
        self._seconds = seconds
        self._memory = max(memory, 8 * len(content))
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
        if needed > self._memory // SHARE:
            rule = f"its inputs must fit 1/{SHARE} of the memory that it may have, {self._memory} bytes"
            raise ExportError(self.subject, rule, f"{needed} bytes", _WAY_OUT)

    @property
    def batch_size(self) -> int | None:
        """The batch that the file is fixed to, or None for a free one."""
        sizes = [int(detail["shape_signature"][0]) for detail in self.inputs.values() if len(detail["shape_signature"])]
        return next((size for size in sizes if size >= 0), None)

    def run(self, feeds: Sequence[NDArray[Any]], names: Sequence[str], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return the outputs for samples of any number, in batches that the file takes.

        Args:
            feeds: An array [samples, ...] for each name.
            names: Names of the inputs.
            outputs: Names of the outputs wanted.

        Raises:
            ExportError: A name is unknown, or the runtime fails or dies.
        """
        try:
            return run_in_batches(self, feeds, names, outputs)
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
        if self._generation != self._worker.generation:
            raise ExportError(
                self.subject, "its process must live from feed to fetch", "another file killed it", "Feed it again."
            )

    def _ask(
        self, do: str, request: dict[str, Any], blobs: Sequence[bytes] = ()
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        header = {
            **request,
            "do": do,
            "session": self._number,
            "subject": self.subject,
            "memory": self._memory,
            "answer": self._memory // SHARE,
        }
        return self._worker.ask(header, blobs, seconds=self._seconds)

    def __del__(self) -> None:
        """Let the child forget the file."""
        if hasattr(self, "_number"):
            self._worker.drop(self._number)


def _detail(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a tensor's detail as the interpreter gives it: a type, arrays of sizes."""
    sizes = {key: np.array(plain[key], dtype=np.int32) for key in ("shape", "shape_signature")}
    return {**plain, **sizes, "dtype": np.dtype(plain["dtype"]).type}
