"""TensorFlow Lite Micro: the flash that a file takes, and the time of its interpreter on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version

from tflite_export.bench.comparable import matching_names
from tflite_export.bench.timing import ROUNDS, WARM_UP
from tflite_export.errors import ExportError
from tflite_export.measures.latency import costs_of
from tflite_export.measures.measure import Cost, Measure
from tflite_export.measures.refusals import digest
from tflite_export.measures.sizes import costs_of_bytes
from tflite_export.runtimes.interleaved import time_in_turn
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.sessions import Measurement
from tflite_export.tflm.mcu import check_micro, draw_samples
from tflite_export.tflm.micro import MicroSession, require_micro

__all__ = ["ESTIMATE", "MicroFlash", "MicroLatency"]

ESTIMATE = (
    "TensorFlow Lite Micro's portable kernels on this machine: a chip has another processor, and may have its own"
)
"""Why the time of the interpreter here is an estimate."""


class _Micro(Measure):
    """Files that run in TensorFlow Lite Micro: each is checked there once.

    Args:
        limits: what a file may take here.

    Raises:
        ImportError: tflite-micro is not installed.
    """

    def __init__(self, limits: Limits | None) -> None:
        require_micro()
        self.limits = limits
        self._found: dict[str, int | str] = {}

    def refusal(self, file: bytes) -> str | None:
        """Return why TensorFlow Lite Micro does not run a file, or answers otherwise than LiteRT."""
        found = self._check(file)
        return found if isinstance(found, str) else None

    def _check(self, file: bytes) -> int | str:
        """Return the arena that a file needs, in bytes, or why it is refused."""
        key = digest(file)
        if key not in self._found:
            try:
                self._found[key] = check_micro(file, full_int8=False, limits=self.limits).arena_bytes
            except ExportError as error:
                self._found[key] = str(error)
        return self._found[key]

    def _arenas(self, files: Mapping[str, bytes], reference: str) -> dict[str, int]:
        """Return the arenas of the files that run.

        Raises:
            ExportError: the reference does not.
        """
        found = {name: self._check(content) for name, content in files.items()}
        if isinstance(found[reference], str):
            raise ExportError(
                f"the reference '{reference}'",
                "must run in TensorFlow Lite Micro",
                found[reference],
                "Compare with a file that was exported with target='mcu'.",
            )
        return {name: arena for name, arena in found.items() if isinstance(arena, int)}


class MicroFlash(_Micro):
    """Bytes of flash that a file takes on a microcontroller with TensorFlow Lite Micro.

    The interpreter reads the file where it lies: they are the bytes of the file, as the report of
    `tflite_export.export(target="mcu")` counts them. The arena lies in RAM; each cost says how large it must be.

    Args:
        limits: what a file may take here, where it is checked.

    Raises:
        ImportError: tflite-micro is not installed.
    """

    objective = "flash"

    def __init__(self, *, limits: Limits | None = None) -> None:
        super().__init__(limits)

    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the bytes of each file."""
        arenas = self._arenas(files, reference)
        on = {name: f"flash: the file; beside it an arena of {arena:,} bytes of RAM" for name, arena in arenas.items()}
        return costs_of_bytes(files, reference, on)


class MicroLatency(_Micro):
    """The time of a run in TensorFlow Lite Micro on this machine, in turn with the others: an estimate.

    Args:
        rounds: timed runs of each file.
        limits: what a file may take here.

    Raises:
        ImportError: tflite-micro is not installed.
    """

    objective = "latency"

    def __init__(self, *, rounds: int = ROUNDS, limits: Limits | None = None) -> None:
        super().__init__(limits)
        self.rounds = rounds

    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the median of each file's runs, and the median of the pairwise ratios."""
        sound = {name: files[name] for name in self._arenas(files, reference)}
        ordered = sorted(sound, key=lambda name: name != reference)
        with ExitStack() as stack:
            sessions = [stack.enter_context(MicroSession(sound[name], name, limits=self.limits)) for name in ordered]
            inputs = matching_names("inputs", [(session.subject, session.inputs) for session in sessions])
            first = sessions[0]
            drawn = draw_samples(first.inputs)
            feeds = [first.inputs[name].real(drawn[name])[: first.inputs[name].shape[0]] for name in inputs[0]]
            for session, names in zip(sessions, inputs, strict=True):
                session.feed(feeds, names)
                for _ in range(WARM_UP):
                    session.invoke()
            # The interpreters' own clock: the way to their processes and back is not timed.
            samples = 1e3 * time_in_turn(
                [session.invoke for session in sessions],
                self.rounds,
                clock=lambda: sum(session.ran for session in sessions),
            )
        on = f"TensorFlow Lite Micro {version('tflite-micro')} on this machine"
        return costs_of(Measurement(on, "ms", [], samples, []), sound, reference, ESTIMATE)
