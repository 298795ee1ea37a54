"""The command `keras-prune`: parses, calls the library, returns its exit code, and never prompts.

Commands of packages that build on this one (`demo` of `tflite_export`) are found by their entry points in the group
`keras_prune.commands`, so that this package imports none of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any

import keras
import typer

from keras_prune.container.container import load_kpz, save_kpz
from keras_prune.factorization.factorize import FORMS
from keras_prune.factorization.factorize import factorize as factorize_model
from keras_prune.files.arrays import load_inputs, load_labelled
from keras_prune.files.atomic import check_apart, check_writable, replaced
from keras_prune.files.loading import load_model
from keras_prune.oneshot import prune as prune_model
from keras_prune.patterns import Block
from keras_prune.reconstruction.recalibration import recalibrate as recalibrate_model
from keras_prune.report.report import report as report_model
from keras_prune.scope import Scope
from keras_prune.search.sensitivity import POINTS
from keras_prune.search.sensitivity import sensitivity as measure_sensitivity
from keras_prune.strip import strip as strip_model
from keras_prune.text.plaintext import printable

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Neural-network pruning for Keras 3.",
)

FORMATS = (".keras", ".h5", ".hdf5")
CONTAINER = ".kpz"

KerasFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL.keras", help="A .keras or .h5 file. Loaded in safe mode: code in the file is not run."
    ),
]
Out = Annotated[
    Path, typer.Argument(metavar="OUT.keras", help="Where to write: another file than the input, which stays as it is.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"keras-prune {version('keras-prune')}")
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Neural-network pruning for Keras 3."""


@app.command()
def report(model: KerasFile, as_json: Json = False) -> None:
    """Say what is pruned in a model, what is not, and why."""
    _print(report_model(load_model(model)), as_json)


@app.command()
def prune(
    model: KerasFile,
    out: Out,
    sparsity: Annotated[float, typer.Option(help="Share of the weights to be zero, a fraction in [0, 1).")] = 0.5,
    target: Annotated[
        str | None,
        typer.Option(help="The device: android, ios, arm64, web or x86. Prunes only where its kernels skip zeros."),
    ] = None,
    block: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="ROWS COLS",
            help="Prune whole blocks of a kernel [inputs, outputs], ROWS inputs by COLS outputs. "
            "4 1 gives the 1x4 blocks that TFLite's sparse kernel for dense layers reads.",
        ),
    ] = None,
    allocation: Annotated[
        str | None, typer.Option(help="global, uniform, erk or lamp; if not given, global or what the target needs.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A layer's name, a path, glob or regular expression to leave out.")
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="magnitude, random or synflow; with --reconstruct also second_order.")
    ] = "magnitude",
    reconstruct: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA.npy",
            help="Inputs, a .npy, or a .npz with one array per input, by name: what is kept is solved again on them.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prune a model without training, and write it.

    Train it further to recover: load it with keras_prune.load_model, which holds its zeros, and call fit. Plain Keras
    reads the file too, but a fit then fills the zeros in; keras_prune.hold(model) prevents that.
    """

    def pruned(loaded: keras.Model) -> keras.Model:
        choices: dict[str, Any] = {"target": target, "allocation": allocation, "reconstruct": inputs}
        given = {name: choice for name, choice in choices.items() if choice is not None}
        if block is not None:
            given["pattern"] = Block(*block)
        return prune_model(loaded, sparsity, criterion, scope=Scope(exclude=tuple(exclude or ())), **given)

    inputs = None if reconstruct is None else load_inputs(reconstruct)
    _rewrite(model, out, pruned, as_json)


@app.command()
def strip(model: KerasFile, out: Out, as_json: Json = False) -> None:
    """Write a plain Keras model, without masks or wrapper layers, its pruned weights exactly zero."""
    _rewrite(model, out, strip_model, as_json)


@app.command()
def sensitivity(
    model: KerasFile,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            help="What is measured on: a .npz file with the inputs (x, or one array for each input by its name), their "
            "labels y, and sample_weight if there is one.",
        ),
    ],
    metric: Annotated[
        str | None, typer.Option(help="A metric that the model is compiled with; if not given, the loss.")
    ] = None,
    points: Annotated[
        list[float] | None, typer.Option(help="A sparsity to measure, a fraction in (0, 1); may be given often.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the curves here, too: a .png, .svg or .pdf file.")] = None,
    as_json: Json = False,
) -> None:
    """Say how the loss or a metric changes when each tensor alone is pruned by magnitude, without training."""
    found = measure_sensitivity(
        load_model(model), load_labelled(data), metric=metric, points=tuple(sorted(points or POINTS)), verbose=0
    )
    if plot is not None:
        found.plot(plot)
    _print(found, as_json)


@app.command()
def recalibrate(
    model: KerasFile,
    out: Out,
    data: Annotated[
        Path, typer.Argument(metavar="DATA.npy", help="Inputs: a .npy, or a .npz with one array per input, by name.")
    ],
    as_json: Json = False,
) -> None:
    """Estimate the statistics of batch normalisation again on inputs, and write the model."""
    inputs = load_inputs(data)
    _rewrite(model, out, lambda loaded: recalibrate_model(loaded, inputs), as_json)


@app.command()
def pack(
    model: KerasFile,
    out: Annotated[Path, typer.Argument(metavar="OUT.kpz", help="The container to write.")],
    as_json: Json = False,
) -> None:
    """Write a model as a container: small where its weights are zeros or few values, and nothing is lost."""
    if out.suffix != CONTAINER:
        raise ValueError(f"OUT must end in {CONTAINER}, so that it is not taken for a model file. Received: '{out}'")
    check_apart({"the model": model}, {"OUT": out})
    check_writable(out)
    _print(save_kpz(load_model(model), out), as_json)


@app.command()
def unpack(
    container: Annotated[Path, typer.Argument(metavar="MODEL.kpz", help="A container. Code in it is not run.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write the model of a container as a Keras file, its weights bit for bit, and report on it."""
    _rewrite(container, out, lambda loaded: loaded, as_json, load_kpz)


@app.command()
def factorize(
    model: KerasFile,
    out: Out,
    energy: Annotated[
        float | None,
        typer.Option(help="Share of squared singular values that each kernel keeps, a fraction in (0, 1]."),
    ] = None,
    error: Annotated[float | None, typer.Option(help="Relative error of each kernel at most, in [0, 1).")] = None,
    params: Annotated[float | None, typer.Option(help="Share of the parameters that may be left, in (0, 1).")] = None,
    macs: Annotated[
        float | None, typer.Option(help="Share of the multiplications that may be left, in (0, 1).")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Share of the time in LiteRT on this machine that may be left, in (0, 1).")
    ] = None,
    rank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]RANK",
            help="A rank for all layers: 8; or for one by its name: conv=8, or conv=8,4 where it has several. "
            "May be given often.",
        ),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(help=f"A form to choose from, {', '.join(FORMS)} or tensor_train; may be given often."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA.npy",
            help="Inputs, a .npy, or a .npz with one array per input, by name: errors are those of what layers give.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A layer's name, a path, glob or regular expression to leave out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model with layers in a row in the place of large ones, their kernels factors of the old.

    Say by one option how much is to stay. Strip a pruned model first: its zeros would be lost.

    keras-prune factorize model.keras small.keras --params 0.5

    keras-prune factorize model.keras small.keras --energy 0.95 --data x.npy

    keras-prune factorize model.keras small.keras --rank dense=16 --rank conv=8
    """
    inputs = None if data is None else load_inputs(data)
    ranks = _ranks(rank) if rank else None
    scope = Scope(exclude=tuple(exclude or ()))

    def factorized(loaded: keras.Model) -> tuple[keras.Model, Any]:
        return factorize_model(
            loaded,
            energy=energy,
            error=error,
            params=params,
            macs=macs,
            latency=latency,
            ranks=ranks,
            forms=form or FORMS,
            data=inputs,
            scope=scope,
        )

    _write(model, out, factorized, as_json)


def _ranks(given: list[str]) -> int | dict[str, int | tuple[int, ...]]:
    """Return ranks as `factorize` takes them: one for all, or by layer."""
    found: dict[str, int | tuple[int, ...]] = {}
    for text in given:
        layer, _, numbers = text.rpartition("=")
        ranks = [number.strip() for number in numbers.split(",")]
        alone = len(given) == 1 and len(ranks) == 1
        if not all(number.isdecimal() for number in ranks) or not (layer or alone):
            raise ValueError(
                "--rank must be one number for all layers, or LAYER=RANK or LAYER=RANK,RANK for each. "
                f"Received: '{text}'"
            )
        if not layer:
            return int(ranks[0])
        found[layer] = int(ranks[0]) if len(ranks) == 1 else tuple(map(int, ranks))
    return found


def _rewrite(
    model: Path,
    out: Path,
    change: Callable[[keras.Model], keras.Model],
    as_json: bool,
    load: Callable[[Path], keras.Model] = load_model,
) -> None:
    """Write a changed model, and say what is pruned in it."""

    def reported(loaded: keras.Model) -> tuple[keras.Model, Any]:
        changed = change(loaded)
        return changed, report_model(changed)

    _write(model, out, reported, as_json, load)


def _write(
    model: Path,
    out: Path,
    change: Callable[[keras.Model], tuple[keras.Model, Any]],
    as_json: bool,
    load: Callable[[Path], keras.Model] = load_model,
) -> None:
    """Write a changed model beside the one that was read, whole or not at all, and print the report on it."""
    if out.suffix not in FORMATS:
        raise ValueError(f"OUT must end in {' or '.join(FORMATS)}, which says how it is written. Received: '{out}'")
    check_apart({"the model": model}, {"OUT": out})
    check_writable(out)
    changed, result = change(load(model))
    with replaced(out) as temporary:
        changed.save(temporary)
    _print(result, as_json)


def _print(result: Any, as_json: bool) -> None:
    typer.echo(json.dumps(result.to_dict()) if as_json else str(result))


def main() -> None:
    """Run the command line; an error that names its cause is printed without a traceback, with exit code 1."""
    for entry in entry_points(group="keras_prune.commands"):
        app.command(entry.name)(entry.load())
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.echo(printable(f"keras-prune: {error}"), err=True)
        sys.exit(1)
