"""A child process that answers frames on its standard streams: asked, watched, limited and ended in one way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tflite_export.processes.frames import Frame, pack, read_frame

__all__ = [
    "LAST_WORDS",
    "READY",
    "START",
    "ChildEndedError",
    "ChildProcess",
    "limit_memory",
    "python_command",
    "start_python",
]

READY = pack({"ready": True})
"""What a process of ours sends once it has imported what it needs."""
START = 120.0
"""Seconds that this may take."""
LAST_WORDS = 5.0
"""Seconds that a process has between the end of its stream and its own, to print why."""
_PROGRAM = """
import importlib, json, sys, types
sys.path[:], folders = map(json.loads, sys.argv[1:3])
for name, folder in folders.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
importlib.import_module(sys.argv[3]).main()
"""
_PACKAGES = {name: str(Path(__file__).parents[2] / name) for name in ("keras_prune", "tflite_export")}


def python_command(module: str) -> list[str]:
    """Return the command of a process that runs `main` of a module of ours, and imports neither Keras nor TensorFlow.

    Empty modules stand for the two packages, so that no `__init__.py` of theirs runs: it starts in 0.2 s, not in 4.
    """
    return [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), json.dumps(_PACKAGES), module]


def limit_memory(process: int, size: int, *, reserves: bool = False) -> None:
    """Limit the bytes of memory that a child process may have from now on; only Linux holds such limits.

    Args:
        process: its number.
        size: bytes of address space; what the process has already stays.
        reserves: the process reserves far more addresses than it uses, as the engines of WebAssembly do: pages that it
            can write to are counted, and not addresses.
    """
    if sys.platform != "linux":
        return
    import resource

    kind = resource.RLIMIT_DATA if reserves else resource.RLIMIT_AS
    with contextlib.suppress(ProcessLookupError):  # it has ended, which the next request says
        _, hard = resource.prlimit(process, kind)
        resource.prlimit(process, kind, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


class ChildEndedError(Exception):
    """A child process ended, or was ended, before it answered; the text says how."""


class ChildProcess:
    """A process that answers frames, until it is closed.

    Args:
        command: starts it.
        log: keep what it prints on its standard error, for `printed`.
        cwd: its working directory.
        env: environment variables, besides those of this process.

    Example:
        >>> with ChildProcess([sys.executable, "-c", "import sys; sys.exit(3)"]) as child:
        ...     child.ask({"do": "load"}, seconds=60.0)
        Traceback (most recent call last):
            ...
        tflite_export.processes.child_process.ChildEndedError: exit code 3
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: bool = False,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        # The child writes by a handle of its own, at its own place. A pipe, which nobody reads meanwhile, would fill up
        # and stop the child.
        self._folder = tempfile.TemporaryDirectory(prefix="tflite-export-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "stderr" if log else Path(os.devnull)
        try:
            with self._log.open("wb") as errors:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                )
        except BaseException:
            self._folder.cleanup()
            raise

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def printed(self) -> str:
        """Return what the process has printed on its standard error so far, where it is kept."""
        return self._log.read_bytes().decode(errors="replace")

    def limit_memory(self, size: int, *, reserves: bool = False) -> None:
        """Limit the bytes of memory that the process may have from now on: see the function of this name."""
        limit_memory(self._process.pid, size, reserves=reserves)

    def ask(self, header: dict[str, Any], blobs: Sequence[bytes] = (), *, seconds: float) -> Frame:
        """Send a request; return the answer.

        Args:
            header: of the request.
            blobs: bytes that go with it.
            seconds: that the process may take, or it is ended.

        Raises:
            ChildEndedError: the process ended, was ended because it was late, or answered something else than a frame.
        """
        with self._watched(seconds):
            assert self._process.stdin is not None
            self._process.stdin.write(pack(header, blobs))
            self._process.stdin.flush()
            return self._read()

    def receive(self, *, seconds: float) -> Frame:
        """Return a frame that the process sends unasked.

        Raises:
            ChildEndedError: see `ask`.
        """
        with self._watched(seconds):
            return self._read()

    def _read(self) -> Frame:
        assert self._process.stdout is not None
        return read_frame(self._process.stdout.read)

    @contextlib.contextmanager
    def _watched(self, seconds: float) -> Iterator[None]:
        """End the process where it is late, or where it is interrupted: the next request would get this answer."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        watch = threading.Timer(seconds, kill)
        watch.start()
        try:
            yield
        except (EOFError, OSError, ValueError) as error:
            if not isinstance(error, ValueError):  # the stream has ended, and the process is about to
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(LAST_WORDS)
            self._process.kill()
            code = self._process.wait()
            raise ChildEndedError(f"no answer within {seconds:g} s" if late.is_set() else _described(code)) from error
        except BaseException:
            self._process.kill()
            raise
        finally:
            watch.cancel()

    def close(self) -> None:
        """End the process, wait for it, and remove what belongs to it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                # What was still to be written has no reader any more.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_python(module: str, *, log: bool = False, env: Mapping[str, str] | None = None) -> ChildProcess:
    """Start a process of ours and return it when it is ready, so that limits hold for what it is asked alone.

    Args:
        module: its `main` sends `READY`, and then answers requests.
        log: see `ChildProcess`.
        env: see `ChildProcess`.

    Raises:
        ChildEndedError: it does not start.
    """
    child = ChildProcess(python_command(module), log=log, env=env)
    try:
        child.receive(seconds=START)
    except BaseException:
        child.close()
        raise
    return child


def _described(code: int) -> str:
    """Return in words how a process ended."""
    if code < 0 and -code in {number.value for number in signal.Signals}:
        return signal.Signals(-code).name
    return f"exit code {code}"
