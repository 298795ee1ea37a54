"""The command ``tflite-export``: parse, call the library, return its exit code."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import typer

from tflite_export.convert import export as export_model
from tflite_export.errors import ExportError
from tflite_export.inputs import SAMPLES
from tflite_export.timing import benchmark
from tflite_export.verify import TOLERANCE
from tflite_export.verify import verify as verify_file

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sparse .tflite files from Keras models, verified in the runtime.",
)

Data = Annotated[
    Path | None,
    typer.Option(help="Inputs to verify on: a .npy, or a .npz with an array for each input, by name."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Samples = Annotated[int, typer.Option(min=1, help="Verify on at most so many samples.")]
Tolerance = Annotated[float, typer.Option(help="Largest error of an output, as a share of its scale.")]
KerasFile = Annotated[
    Path, typer.Argument(metavar="MODEL.keras", help="Loaded in safe mode: code in the file is not run.")
]


@app.command()
def export(
    model: KerasFile,
    path: Annotated[Path, typer.Argument(metavar="OUT.tflite", help="Where to write.")],
    data: Data = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Fix the batch of the file.")] = None,
    samples: Samples = SAMPLES,
    tolerance: Tolerance = TOLERANCE,
    strict: Annotated[bool, typer.Option(help="Fail where a weight stored sparse makes the file wrong.")] = False,
    as_json: Json = False,
) -> None:
    """Export a Keras model as a sparse .tflite that is verified in the runtime."""
    report = export_model(
        load_model(model),
        path,
        data=load_data(data),
        batch_size=batch_size,
        samples=samples,
        tolerance=tolerance,
        strict=strict,
    )
    show(report, as_json)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="FILE.tflite", help="The file to verify.")],
    model: KerasFile,
    data: Data = None,
    samples: Samples = SAMPLES,
    tolerance: Tolerance = TOLERANCE,
    as_json: Json = False,
) -> None:
    """Compare a .tflite with the Keras model that it came from."""
    show(verify_file(path, load_model(model), load_data(data), samples=samples, tolerance=tolerance), as_json)


@app.command()
def bench(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.tflite...", help="The first is what the others are compared with."),
    ],
    runtime: Annotated[str, typer.Option(help="Where to run.")] = "litert",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a run.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each file.")] = 100,
    warm_up: Annotated[int, typer.Option(min=0, help="Runs of each file before that.")] = 5,
    as_json: Json = False,
) -> None:
    """Time files against each other, interleaved, and compare their outputs."""
    show(
        benchmark(*paths, runtime=runtime, threads=threads, batch=batch, rounds=rounds, warm_up=warm_up),
        as_json,
    )


def load_model(path: Path) -> keras.Model:
    """Load a ``.keras`` file in safe mode.

    Raises:
        ExportError: It does not exist, is damaged, or needs code that is not registered.
    """
    if path.suffix != ".keras":
        raise ExportError(
            f"'{path}'",
            "must be a .keras file",
            path.suffix or "no suffix",
            "Save the model by model.save('model.keras').",
        )
    try:
        model: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises anything from ValueError to BadZipFile
        raise ExportError(
            f"'{path}'",
            "must load in safe mode",
            f"{type(error).__name__}: {error}",
            "Save it again; a model with custom code is exported from Python.",
        ) from error
    return model


def load_data(path: Path | None) -> Any:
    """Load inputs from a ``.npy`` or ``.npz``; pickled objects are refused.

    Raises:
        ExportError: It cannot be read.
    """
    if path is None:
        return None
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        arrays = dict(loaded)
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(
            f"'{path}'",
            "must be a .npy or .npz of numbers",
            f"{type(error).__name__}: {error}",
            "Save it by numpy.save.",
        ) from error


def show(report: Any, as_json: bool) -> None:
    """Print a report to the standard output."""
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def main() -> None:
    """Run the command; exit with 1 on an :class:`ExportError`, with 2 on wrong arguments."""
    warnings.simplefilter("default", UserWarning)
    try:
        app()
    except ExportError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
