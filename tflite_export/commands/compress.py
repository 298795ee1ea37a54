"""The command `tflite-export compress`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_prune.devices import DEVICES
from keras_prune.files.arrays import labelled
from keras_prune.files.loading import load_model
from tflite_export.compress import BUDGET, EPOCHS
from tflite_export.compress import compress as compress_model
from tflite_export.errors import ExportError
from tflite_export.file.reading import check_keras_archive, read_arrays
from tflite_export.measures.phone import Phone
from tflite_export.stages.checks import check_places

__all__ = ["compress", "labelled_data"]

_NPZ = "a .npz file with the inputs (x, or one array for each input by its name), their labels y, and sample_weight"


def compress(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL.keras", help="A compiled model, loaded in safe mode: its code does not run."),
    ],
    path: Annotated[Path, typer.Argument(metavar="OUT.tflite", help="File to write.")],
    data: Annotated[Path, typer.Option(help=f"What to train on: {_NPZ}.")],
    validation: Annotated[Path, typer.Option(help=f"What to judge by: {_NPZ}.")],
    target: Annotated[str | None, typer.Option(help=f"Device: {', '.join(DEVICES)}.")] = None,
    max_drop: Annotated[
        float, typer.Option(help="How much worse than the plain file's the metric may be, in the metric's units.")
    ] = 0.01,
    minimize: Annotated[str, typer.Option(help="What to make small: latency, size or flash.")] = "latency",
    budget: Annotated[str | None, typer.Option(help=f'How long to search: "1 h", "90 s". Default: "{BUDGET}".')] = None,
    trials: Annotated[int | None, typer.Option(min=0, help="Instead of a budget: how many candidates to try.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of the compiled metrics. Default: the first beside the loss.")
    ] = None,
    mode: Annotated[str, typer.Option(help="Whether the metric should rise: max, min, or auto.")] = "auto",
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of the full fine-tuning.")] = EPOCHS,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples in a batch of fine-tuning.")] = None,
    distill: Annotated[
        bool, typer.Option(help="Candidates learn from the plain model's answers too, where these are classes.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Set before each fine-tuning.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the search, from which it goes on. Default: beside the file.")
    ] = None,
    phone: Annotated[
        bool, typer.Option("--phone", help="Time candidates in the browser of a phone, which opens a link.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="With --phone: address to listen on. 127.0.0.1 lets this machine alone in.")
    ] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --phone: port; 0 takes a free one.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Also write a chart of metric against gain.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Also write the recipe, as a Python file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Search the cheapest file for a device whose metric is still good enough.

    The same command goes on after a kill where it stopped; Ctrl-C ends with the best so far.
    """
    check_places({"the model": model, "the data": data, "the validation data": validation}, path)
    train, judged = labelled_data(data, "--data"), labelled_data(validation, "--validation")
    measure = Phone(host, port, say=lambda text: typer.echo(text, err=True)) if phone else None
    report = compress_model(
        _loaded(model),
        path,
        data=train,
        validation=judged,
        target=target,
        max_drop=max_drop,
        minimize=minimize,
        budget=budget,
        trials=trials,
        metric=metric,
        mode=mode,
        epochs=epochs,
        batch_size=batch_size,
        distill=distill,
        seed=seed,
        folder=folder,
        measure=measure,
        verbose=0 if quiet or as_json else 2,
    )
    if plot is not None:
        report.plot(plot)
    if recipe is not None:
        recipe.write_text(report.recipe, encoding="utf-8")
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def _loaded(path: Path) -> Any:
    if path.suffix == ".keras" and path.is_file():
        check_keras_archive(path)
    try:
        return load_model(path)
    except (ValueError, TypeError) as error:  # of Keras: a layer that it does not know
        raise ExportError(f"'{path}'", "must load in safe mode", error, "Give a whole .keras file.") from error


def labelled_data(path: Path, option: str) -> tuple[Any, ...]:
    """Return (x, y) or (x, y, sample_weight) of a `.npz` file; x is a dictionary where there are several inputs.

    Args:
        path: of the file.
        option: that names it, for messages.

    Raises:
        ExportError: it cannot be read, or holds no labels or no inputs.
    """
    found = read_arrays(path)
    parts = labelled(found)
    if parts is None:
        raise ExportError(
            option,
            "must hold inputs and their labels y",
            f"the arrays {sorted(found) if isinstance(found, dict) else []} in '{path}'",
            "np.savez(path, x=x, y=y).",
        )
    return parts
