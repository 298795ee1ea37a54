"""The command `keras-prune`: parses, calls the library, returns its exit code, and never prompts.

Commands of packages that build on this one (`demo` of `tflite_export`) are found by their entry points in the group
`keras_prune.commands`, so that this package imports none of them.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import keras
import typer

from keras_prune.oneshot import prune as prune_model
from keras_prune.patterns import Block
from keras_prune.plaintext import printable
from keras_prune.report import report as report_model
from keras_prune.scope import Scope
from keras_prune.state import load_model
from keras_prune.strip import strip as strip_model

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Neural-network pruning for Keras 3.",
)

KerasFile = Annotated[
    Path, typer.Argument(metavar="MODEL.keras", help="Loaded in safe mode: code in the file is not run.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT.keras", help="Where to write; the input stays as it is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def report(model: KerasFile, as_json: Json = False) -> None:
    """Say what is pruned in a model, what is not, and why."""
    _show(load_model(model), as_json)


@app.command()
def prune(
    model: KerasFile,
    out: Out,
    sparsity: Annotated[float, typer.Option(help="Share of the weights to be zero, a fraction in [0, 1).")] = 0.5,
    block: Annotated[
        tuple[int, int] | None, typer.Option(help="Prune blocks of ROWS COLS of [inputs, outputs]; 4 1 for TFLite.")
    ] = None,
    allocation: Annotated[str, typer.Option(help="global, uniform, erk or lamp.")] = "global",
    exclude: Annotated[list[str] | None, typer.Option(help="A path, or regular expression, to leave out.")] = None,
    as_json: Json = False,
) -> None:
    """Prune a model by magnitude, without training, and write it; train it further to recover."""
    pattern: Any = Block(*block) if block else "unstructured"
    loaded = load_model(model)
    prune_model(loaded, sparsity, pattern=pattern, allocation=allocation, scope=Scope(exclude=tuple(exclude or ())))
    loaded.save(out)
    _show(loaded, as_json)


@app.command()
def strip(model: KerasFile, out: Out, as_json: Json = False) -> None:
    """Write a plain Keras model, without masks or wrapper layers, its pruned weights exactly zero."""
    plain = strip_model(load_model(model))
    plain.save(out)
    _show(plain, as_json)


def _show(model: keras.Model, as_json: bool) -> None:
    result = report_model(model)
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
