"""The command `tflite-export`: parse, call the library, return its exit code."""

from __future__ import annotations

import json
import math
import signal
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_prune.devices import DEVICES
from tflite_export.bench.device_page import serve as serve_files
from tflite_export.bench.timing import benchmark
from tflite_export.commands.compress import compress
from tflite_export.errors import ExportError
from tflite_export.export import export as export_model
from tflite_export.file.reading import read_arrays
from tflite_export.inspection import inspect as inspect_source
from tflite_export.model.inputs import SAMPLES
from tflite_export.runtimes.arm64 import install_arm64_runtime
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litertjs import install_web_runtime
from tflite_export.stages.checks import check_places
from tflite_export.tflm.verifying import verify as verify_file

__all__ = [
    "Data",
    "Files",
    "Json",
    "Memory",
    "ModelFile",
    "Samples",
    "Seconds",
    "SignatureKey",
    "Target",
    "Tolerance",
    "app",
    "bench",
    "export",
    "inspect",
    "install",
    "load_data",
    "main",
    "options",
    "parse_shapes",
    "serve",
    "show",
    "verify",
]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make sparse .tflite files from Keras models, verified in the runtime.",
)

app.command()(compress)

Data = Annotated[
    Path | None,
    typer.Option(help="Inputs to run on: a .npy file, or a .npz file with one array per input, by name."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Samples = Annotated[int, typer.Option(min=1, help="Number of samples to verify on, at most.")]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Largest error allowed, as a share of an output's scale. Default: that of the number type."),
]
ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A .keras or .h5 file, loaded in safe mode: its code does not run. Or the folder of a SavedModel: "
        "its code does.",
    ),
]
_DEVICES = f"Device: {', '.join(DEVICES)}."
Target = Annotated[str | None, typer.Option(help=_DEVICES)]
SignatureKey = Annotated[str | None, typer.Option(help="Signature of a SavedModel to use.")]
Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE.tflite...", help="Files to measure; the others are compared with the first."),
]


Seconds = Annotated[
    float, typer.Option(help="Seconds that loading a file, or one run of it, may take in its child process.")
]
Memory = Annotated[
    float, typer.Option(help="Memory of the child process in GiB; at least 8 times the size of the files.")
]
_INSTALLERS = {"web": install_web_runtime, "arm64": install_arm64_runtime}
SECONDS, GIB = Limits().seconds, Limits().memory / 2**30


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tflite-export, of keras-prune {version('keras-prune')}")
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make sparse .tflite files from Keras models, verified in the runtime."""


@app.command()
def export(
    model: ModelFile,
    path: Annotated[Path, typer.Argument(metavar="OUT.tflite", help="File to write.")],
    target: Target = None,
    quantize: Annotated[
        str | None, typer.Option(help="Number type: float16, dynamic, int8 or int16x8. Default: float32.")
    ] = None,
    data: Data = None,
    optimize: Annotated[str, typer.Option(help="What to optimize for: speed, size, or portable.")] = "speed",
    tune: Annotated[bool, typer.Option(help="Choose each weight's encoding by timing it on this machine.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Fix the batch size of the file.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Fix an input's shape, batch first: audio=1,16000,1. A ? leaves a size free."),
    ] = None,
    samples: Samples = SAMPLES,
    tolerance: Tolerance = None,
    arena: Annotated[
        int | None,
        typer.Option(min=1, help="Of mcu: bytes of RAM for the interpreter; what does not fit decoded stays dense."),
    ] = None,
    record: Annotated[
        list[str] | None,
        typer.Option(help="Of mcu: a form that decoded weights may have: bitmask, table or huffman. Default: all."),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(help="Also write a golden file: inputs and expected outputs, to check the file on the device."),
    ] = None,
    c_array: Annotated[Path | None, typer.Option(help="Also write the file as C source: a .cc and a .h.")] = None,
    compiled: Annotated[
        Path | None, typer.Option(help="For an NPU, also write the file as Vela compiles it: what goes to its flash.")
    ] = None,
    signature_key: SignatureKey = None,
    strict: Annotated[
        bool,
        typer.Option(help="Fail if a weight makes the file wrong when stored sparse, instead of storing it dense."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a model as a sparse .tflite file, verified in the runtime."""
    check_places({"the data": data}, path, golden, c_array, compiled)
    report = export_model(
        model,
        path,
        target=target,
        quantize=quantize,
        data=load_data(data),
        optimize=optimize,  # type: ignore[arg-type]  # checked there
        tune=tune,
        batch_size=batch_size,
        shapes=parse_shapes(shape or []),
        samples=samples,
        tolerance=tolerance,
        arena=arena,
        records=record or None,
        golden=golden,
        c_array=c_array,
        compiled=compiled,
        signature_key=signature_key,
        strict=strict,
    )
    show(report, as_json)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A .tflite file of any make, or a .keras or .h5 model.")],
    target: Annotated[str, typer.Option(help=_DEVICES)] = "android",
    as_json: Json = False,
) -> None:
    """Report which operators run sparse on a device, and what to change about the others.

    Exits with 1 if the file would give wrong results there.
    """
    report = inspect_source(path, target=target)
    show(report, as_json)
    if report.is_wrong:
        raise typer.Exit(1)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="FILE.tflite", help="The file to verify.")],
    model: ModelFile,
    data: Data = None,
    samples: Samples = SAMPLES,
    tolerance: Tolerance = None,
    signature_key: SignatureKey = None,
    seconds: Seconds = SECONDS,
    memory: Memory = GIB,
    as_json: Json = False,
) -> None:
    """Compare a .tflite file with the model it was made from."""
    found = verify_file(
        path,
        model,
        load_data(data),
        samples=samples,
        tolerance=tolerance,
        signature_key=signature_key,
        limits=_limits(seconds, memory),
    )
    show(found, as_json)


@app.command()
def bench(
    paths: Files,
    runtime: Annotated[str, typer.Option(help="Runtime: litert, web or arm64.")] = "litert",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Number of samples in a run.")] = 1,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of timed runs of each file.")] = None,
    warm_up: Annotated[int | None, typer.Option(min=0, help="Number of untimed runs of each file before that.")] = None,
    twins: Annotated[
        bool, typer.Option(help="Also time each sparse file against its twin: the same zeros, stored dense.")
    ] = False,
    browser: Annotated[
        bool, typer.Option(help="With --runtime web: run in headless Chromium instead of Node.")
    ] = False,
    data: Data = None,
    seconds: Seconds = SECONDS,
    memory: Memory = GIB,
    as_json: Json = False,
) -> None:
    """Time files against each other in interleaved runs, and compare their outputs."""
    report = benchmark(
        *paths,
        runtime=runtime,
        threads=threads,
        batch=batch,
        rounds=rounds,
        warm_up=warm_up,
        twins=twins,
        browser=browser,
        data=load_data(data),
        limits=_limits(seconds, memory),
    )
    show(report, as_json)


@app.command()
def serve(
    paths: Files,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0 lets phones on the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    golden: Annotated[Path | None, typer.Option(help="Golden file with the outputs that the files must give.")] = None,
    data: Data = None,
    seconds: Seconds = SECONDS,
    memory: Memory = GIB,
) -> None:
    """Serve a page on which a phone measures the files in its own browser."""
    serve_files(
        paths,
        host=host,
        port=port,
        data=load_data(data),
        golden=golden,
        limits=_limits(seconds, memory),
        say=typer.echo,
    )


@app.command()
def install(
    runtime: Annotated[
        str,
        typer.Argument(
            help="web: LiteRT.js for Node, by npm. arm64: LiteRT for aarch64; needs qemu, debootstrap, gcc."
        ),
    ],
) -> None:
    """Install a runtime into the cache, so that files are verified and measured in it; print where it is."""
    if runtime not in _INSTALLERS:
        raise ExportError("runtime", f"must be one of {tuple(_INSTALLERS)}", repr(runtime), "Choose one of these.")
    typer.echo(_INSTALLERS[runtime]())


def _limits(seconds: float, gib: float) -> Limits:
    return Limits(seconds, int(gib * 2**30) if math.isfinite(gib) else 0)


def parse_shapes(given: list[str]) -> dict[str, tuple[int | None, ...]] | None:
    """Return sizes by input from the texts of an option.

    Raises:
        ExportError: one is not written as NAME=SIZE,SIZE.

    Example:
        >>> parse_shapes(["audio=1,16000,1", "ids=?,128"])
        {'audio': (1, 16000, 1), 'ids': (None, 128)}
    """
    shapes: dict[str, tuple[int | None, ...]] = {}
    for text in given:
        name, _, sizes = text.rpartition("=")
        parts = [part.strip() for part in sizes.split(",")]
        if not name or not all(part == "?" or (part.isascii() and part.isdigit()) for part in parts):
            raise ExportError("--shape", "must be NAME=SIZE,SIZE,... with ? for a free size", repr(text), "Correct it.")
        shapes[name] = tuple(None if part == "?" else int(part) for part in parts)
    return shapes or None


def load_data(path: Path | None) -> Any:
    """Load inputs from a `.npy` or `.npz` file; the only array of a `.npz` file may have any name.

    Raises:
        ExportError: it cannot be read.
    """
    if path is None:
        return None
    found = read_arrays(path)
    return next(iter(found.values())) if isinstance(found, dict) and len(found) == 1 else found


def show(report: Any, as_json: bool) -> None:
    """Print a report to the standard output."""
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def main() -> None:
    """Run the command; exit with 1 on an `ExportError` or a missing extra, with 2 on wrong arguments."""
    warnings.simplefilter("default", UserWarning)
    # A request to end unwinds as Ctrl-C does, so that temporary folders and child processes go away.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except (ExportError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
