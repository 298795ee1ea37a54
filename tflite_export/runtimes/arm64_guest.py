"""Count the instructions that a file takes on aarch64: LiteRT for that processor, under qemu's user-mode emulation.

XNNPACK's sparse kernels are on there, as on phones. Time under an emulator says nothing about a phone; the number of
guest instructions repeats to 1e-5, and is what is reported. It sees no caches: a smaller file gains more on a device
than here where its dense weights fall out of the cache.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.processes.child_process import limit_memory
from tflite_export.runtimes.arm64 import CPU, CPUS, EMULATOR, PYTHON, find_arm64_runtime, require_tools
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litertjs import ASSETS
from tflite_export.runtimes.opening import open_own
from tflite_export.runtimes.sessions import MeasuredFile, Measurement, in_batches, joined

__all__ = [
    "ROUNDS",
    "TIMEOUT",
    "describe",
    "guest_command",
    "instructions",
    "measure_on_arm64",
    "run_on_arm64",
]

ROUNDS = 3
"""Enough: the counts repeat to 1e-5."""
TIMEOUT = 3600
"""Seconds for everything that the guest does: it runs some fifty times slower than the machine."""


def guest_command(folder: Path, cpu: str, job: Path) -> list[str]:
    """Return the command that does a job in the guest and writes `counts` into the job's folder."""
    return [
        EMULATOR,
        *("-L", str(folder / f"root-{cpu}"), "-cpu", cpu),
        *("-plugin", f"file={folder / 'count_instructions.so'},out={job / 'counts'}"),
        str(folder / "usr" / "bin" / f"python{PYTHON}"),
        *("-B", "-s", str(ASSETS / "guest_litert.py"), str(folder / "site"), str(job)),
    ]


def measure_on_arm64(
    cases: Sequence[MeasuredFile],
    feeds: Sequence[NDArray[Any]],
    rounds: int,
    warm_up: int,
    *,
    cpu: str = CPU,
    limits: Limits | None = None,
) -> Measurement:
    """Run files of unknown origin in turn in one guest, and count its instructions.

    Args:
        cases: the files, and their names.
        feeds: an array [batch, ...] for each input.
        rounds: runs of each that are counted.
        warm_up: runs before that.
        cpu: the processor that qemu is: a key of `CPUS`.
        limits: the memory that the emulator may have.

    Raises:
        ExportError: the runtime is missing, or cannot run one of them.
    """
    allowed = (limits or Limits()).for_files(*(case.content for case in cases))
    outputs, samples = _in_guest(cases, [list(feeds)], rounds, warm_up, cpu, allowed)
    return Measurement(
        f"{describe(cpu)}: instructions, not time",
        "guest instructions",
        [batches[0] for batches in outputs],
        samples,
        [[] for _ in cases],
    )


def run_on_arm64(
    content: bytes,
    feeds: Sequence[NDArray[Any]],
    names: Sequence[str],
    outputs: Sequence[str],
    *,
    subject: str = "the file",
    cpu: str = CPU,
) -> tuple[list[NDArray[Any]], str]:
    """Return the outputs of a file that was just made, for any number of samples, and the runtime's description.

    Args:
        content: the file.
        feeds: an array [samples, ...] for each name.
        names: names of the inputs.
        outputs: names of the outputs wanted.
        subject: what errors call the file.
        cpu: the processor that qemu is.

    Returns:
        An array [samples, ...] for each output, and the runtime in words.

    Raises:
        ExportError: the runtime is missing, or cannot run the file.
    """
    case = MeasuredFile(subject, content, tuple(names), tuple(outputs))
    batches = list(in_batches(feeds, open_own(content, subject).batch_size or 1))
    (found,), _ = _in_guest([case], batches, 0, 1, cpu, None)
    return joined(found, [len(batch[0]) for batch in batches], len(feeds[0])), describe(cpu)


def describe(cpu: str = CPU) -> str:
    """Return the runtime in words."""
    return f"LiteRT {version('ai-edge-litert')} for aarch64 under {_emulator_version()}, {cpu}"


def _in_guest(
    cases: Sequence[MeasuredFile],
    batches: Sequence[Sequence[NDArray[Any]]],
    rounds: int,
    warm_up: int,
    cpu: str,
    limits: Limits | None,
) -> tuple[list[list[list[NDArray[Any]]]], NDArray[np.float64]]:
    """Return outputs by file, batch and position, and the instructions [rounds, files] of the last batch."""
    if cpu not in CPUS:
        raise ExportError("cpu", f"must be one of {sorted(CPUS)}", repr(cpu), "Choose one of these.")
    folder = find_arm64_runtime()
    with tempfile.TemporaryDirectory(prefix="tflite-export-") as temporary:
        job = Path(temporary)
        files = [{"inputs": case.inputs, "outputs": case.outputs} for case in cases]
        order = {"files": files, "batches": len(batches), "rounds": rounds, "warm_up": warm_up}
        (job / "job.json").write_text(json.dumps(order))
        arrays: dict[str, Any] = {
            f"{number}/{position}": feed for number, batch in enumerate(batches) for position, feed in enumerate(batch)
        }
        np.savez(job / "feeds.npz", **arrays)
        for number, case in enumerate(cases):
            (job / f"{number}.tflite").write_bytes(case.content)
        _emulate(folder, cpu, job, limits)
        outputs = [
            _outputs(job / f"outputs-{number}.npz", len(batches), len(case.outputs))
            for number, case in enumerate(cases)
        ]
        return outputs, instructions((job / "counts").read_text(), rounds, len(cases))


def _emulate(folder: Path, cpu: str, job: Path, limits: Limits | None) -> None:
    # Without the environment, which would lie on the guest's stack and move its counts.
    with subprocess.Popen(
        guest_command(folder, cpu, job),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={},
        cwd=job,  # where the emulator leaves a core file, if a file crashes the guest
        executable=require_tools(EMULATOR)[0],
    ) as process:
        if limits is not None:
            limit_memory(process.pid, limits.memory, reserves=True)
        try:
            _, printed = process.communicate(timeout=TIMEOUT)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ExportError(
                    "the guest", f"must end within {TIMEOUT} s", "it did not", "Ask for fewer rounds."
                ) from error
            raise
    if process.returncode:
        raise ExportError(
            f"LiteRT for aarch64 under qemu ({cpu})",
            "must run the files",
            f"exit code {process.returncode}: {(printed.strip().splitlines() or [''])[-1]}",
            "Export the model again with target='arm64'." if limits is None else limits.way_out,
        )


def _outputs(path: Path, batches: int, outputs: int) -> list[list[NDArray[Any]]]:
    with np.load(path, allow_pickle=False) as saved:
        return [[saved[f"{batch}/{position}"] for position in range(outputs)] for batch in range(batches)]


def instructions(counts: str, rounds: int, files: int) -> NDArray[np.float64]:
    r"""Return instructions a run, [rounds, files], from the counter's lines: at the start and the end of each.

    Raises:
        ExportError: the number of lines is another.

    Example:
        >>> instructions("100\n350\n400\n600\n", rounds=1, files=2).tolist()
        [[250.0, 200.0]]
    """
    marks = np.array(counts.split(), dtype=np.float64)
    if marks.size != 2 * rounds * files:
        raise ExportError("the instruction counter", f"must see {2 * rounds * files} marks", marks.size, "Report this.")
    return np.diff(marks.reshape(rounds, files, 2), axis=2)[:, :, 0]


def _emulator_version() -> str:
    said = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    words = said.split()
    return f"qemu {words[2]}" if len(words) > 2 else "qemu"
