"""The demonstration: real digits, from plain `fit` to two verified files and one table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import typer
from numpy.typing import NDArray

import keras_prune as kp
from keras_prune.extras import import_extra
from keras_prune.report.plots import plot_history
from keras_prune.text.tables import plain_table
from tflite_export.bench.report import Timing
from tflite_export.bench.timing import benchmark
from tflite_export.export import export
from tflite_export.report import ExportReport
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.opening import open_own

__all__ = [
    "BATCH",
    "BLOCK",
    "SEED",
    "SPARSITY",
    "Candidate",
    "Curves",
    "DemoResult",
    "Digits",
    "demo",
    "load_digits",
    "make_network",
    "run",
]

SEED = 0
SPARSITY = 0.9
BLOCK = kp.patterns.Block(4, 1)
"""Four inputs of one output: the 1x4 block of TFLite's sparse fully connected kernel."""

WIDTH, LAYERS = 2048, 5
"""68 MB of dense weights: more than the caches of a PC hold, as a smaller network's are more than those of a phone."""
DENSE_EPOCHS, PRUNING_EPOCHS, RECOVERY_EPOCHS = 6, 6, 4
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Digits:
    """Scikit-learn's 1,797 handwritten digits, a fifth of them held out; pixels in [0, 1]."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the two files, as the table shows it."""

    name: str
    accuracy: float
    nonzero: int
    weights: int
    report: ExportReport
    timing: Timing


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """The two files of the demonstration.

    Attributes:
        dense, sparse: the two files.
        error: largest difference between an output of the sparse file and of the pruned Keras model, on the held-out
            digits.
    """

    dense: Candidate
    sparse: Candidate
    error: float

    def __str__(self) -> str:
        """Return the table."""
        rows = (self.dense, self.sparse)
        columns = {
            "": [row.name for row in rows],
            "accuracy": [f"{row.accuracy:.2%}" for row in rows],
            "non-zero weights": [f"{row.nonzero:,} of {row.weights:,}" for row in rows],
            "file, bytes": [f"{row.report.written.raw:,}" for row in rows],
            "gzip, bytes": [f"{row.report.written.gzip:,}" for row in rows],
            "median ms": [f"{row.timing.median_ms:.3f}" for row in rows],
            "faster": [f"{row.timing.ratio:.2f} x" for row in rows],
        }
        title = "Handwritten digits: dense and pruned, both run in LiteRT, one thread"
        return plain_table(title, columns, right=list(columns)[1:]) + (
            f"largest difference of the sparse file's outputs from the Keras model's: {self.error:.1e}; "
            "faster: median of the ratios of interleaved runs"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        rows = [
            {
                "name": row.name,
                "accuracy": row.accuracy,
                "nonzero": row.nonzero,
                "weights": row.weights,
                "bytes": row.report.written.raw,
                "gzip_bytes": row.report.written.gzip,
                "median_ms": row.timing.median_ms,
                "ratio": row.timing.ratio,
            }
            for row in (self.dense, self.sparse)
        ]
        return {"files": rows, "error": self.error}


class Curves(keras.callbacks.Callback):
    """Notes the sparsity at every step and the accuracy on held-out digits after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []
        self.sparsity: list[float | None] = []
        self.accuracy: list[float | None] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the sparsity of this step; the accuracy is not known."""
        self.steps.append(len(self.steps) + 1)
        self.sparsity.append((logs or {}).get("sparsity", 0.0))
        self.accuracy.append(None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the accuracy at the last step of the epoch."""
        self.accuracy[-1] = (logs or {})["val_accuracy"]

    def plot(self, path: Path) -> None:
        """Draw both curves."""
        series = {"sparsity": self.sparsity, "accuracy, held out": self.accuracy}
        plot_history(self.steps, series, path, title="Sparsity and accuracy while training")


def load_digits() -> Digits:
    """Return the digits.

    Raises:
        ImportError: scikit-learn is not installed; the message has the command.
    """
    bundled = import_extra("sklearn.datasets", "demo", "the demo").load_digits()
    train_test_split = import_extra("sklearn.model_selection", "demo", "the demo").train_test_split
    x = (bundled.data / 16.0).astype(np.float32)
    x, x_test, y, y_test = train_test_split(
        x, bundled.target, test_size=0.2, stratify=bundled.target, random_state=SEED
    )
    return Digits(x, y, x_test, y_test)


def make_network() -> keras.Model:
    """Return an untrained network: wide Dense layers and a Softmax."""
    hidden = [keras.layers.Dense(WIDTH, activation="relu", name=f"hidden_{i + 1}") for i in range(LAYERS)]
    output = keras.layers.Dense(10, activation="softmax", name="digits")
    model = keras.Sequential([keras.Input((64,), name="pixels"), *hidden, output], name="digits_network")
    model.compile(keras.optimizers.Adam(5e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run(folder: Path, verbose: int = 1) -> DemoResult:
    """Train, prune, strip, export, verify and time; leave two files and two plots in `folder`.

    Args:
        folder: made if need be.
        verbose: Keras's own: 1 shows progress bars, 2 a line an epoch, 0 nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(SEED)
    digits, model, curves = load_digits(), make_network(), Curves()
    options = {
        "batch_size": BATCH,
        "verbose": verbose,
        "validation_data": (digits.x_test, digits.y_test),
    }

    model.fit(digits.x, digits.y, epochs=DENSE_EPOCHS, callbacks=[curves], **options)
    dense = export(model, folder / "dense.tflite", data=digits.x_test)
    dense_counts = kp.report(model)

    begin = int(model.optimizer.iterations)
    steps = -(-len(digits.x) // BATCH) * PRUNING_EPOCHS
    ramp = kp.schedules.PolynomialDecay(0.0, SPARSITY, begin_step=begin, end_step=begin + steps, frequency=10)
    pruning = kp.Pruning(ramp, pattern=BLOCK)
    model.fit(digits.x, digits.y, epochs=PRUNING_EPOCHS + RECOVERY_EPOCHS, callbacks=[pruning, curves], **options)
    plain = kp.strip(model)
    sparse = export(plain, folder / "sparse.tflite", data=digits.x_test)
    counts = kp.report(plain)

    counts.plot(folder / "sparsity.png")
    curves.plot(folder / "history.png")
    paths = (folder / "dense.tflite", folder / "sparse.tflite")
    timings = benchmark(*paths, rounds=400, warm_up=20, data=digits.x_test[:1]).timings
    dense_outputs, sparse_outputs = (_outputs(path, digits.x_test) for path in paths)
    result = DemoResult(
        _candidate("dense", dense_outputs, digits, dense_counts, dense, timings[0]),
        _candidate("pruned", sparse_outputs, digits, counts, sparse, timings[1]),
        float(np.abs(sparse_outputs - plain.predict(digits.x_test, verbose=0)).max()),
    )
    (folder / "result.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _outputs(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the outputs of the file in LiteRT."""
    session = open_own(load(path), path.name)
    return session.run([x], list(session.inputs), list(session.outputs))[0]


def _candidate(
    name: str, outputs: NDArray[np.float32], digits: Digits, counts: kp.Report, report: ExportReport, timing: Timing
) -> Candidate:
    accuracy = float((outputs.argmax(axis=1) == digits.y_test).mean())
    return Candidate(name, accuracy, counts.whole.nonzero, counts.whole.weights, report, timing)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the two .tflite files and the plots.")] = Path("build/demo"),
    verbose: Annotated[int, typer.Option(min=0, max=2, help="Keras's own: 1 progress bars, 2 a line an epoch.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Prune a network on real handwritten digits, export it, and time it against its dense self."""
    result = run(out, verbose=0 if as_json else verbose)
    typer.echo(json.dumps(result.to_dict()) if as_json else f"\n{result}\n\nFiles and plots: {out}")
