r"""What zeros and few values are worth on a microcontroller: flash, arena and time of files with DECODE records.

    pip install "keras-prune[mcu,compression]"
    python -m benchmarks.micro_files              90 % zeros, then 16 values a tensor besides, held against the bounds;
                                                  then in the forms that are decoded faster, for which no bound is set
    python -m benchmarks.micro_files --quick      the small convolutional network alone
    python -m benchmarks.micro_files --forms      one Dense layer in each form: bytes and time
    python -m benchmarks.micro_files --weights    how each weight lies in the file, and why

Weights are random, zeros those of least size in each kernel. "dense" is the file with the same weights, none of them
decoded. A file is written only if TensorFlow Lite Micro gives the same outputs for both, bit for bit: the export
compares them. Times are those of its interpreter on this machine, not of a chip.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras

import keras_prune as kp
import tflite_export as tx
from benchmarks.timing import machine, print_table, verdict
from benchmarks.tiny import autoencoder, inputs_of, resnet8, small_cnn

NETWORKS = {"autoencoder": autoencoder, "resnet8": resnet8, "small_cnn": small_cnn}
ZEROS = 0.9
BOUNDS = {None: 0.42, 16: 0.36}
"""At most this share of the dense file is left, by the number of values that the weights of a tensor share."""
FASTER = {None: ("bitmask",), 16: ("table",)}
"""The form that is decoded fastest, likewise: a look-up table takes few values."""


def wide() -> keras.Model:
    """Return a Dense layer of 512 x 512 weights, and a head."""
    return keras.Sequential([keras.Input((512,)), keras.layers.Dense(512, "relu"), keras.layers.Dense(8)])


def exported(
    make: Callable[[], keras.Model], values: int | None, records: tuple[str, ...] | None = None, zeros: float = ZEROS
) -> tx.ExportReport:
    """Return the report of a network's file; how well int8 keeps random weights' answers does not matter."""
    keras.utils.set_random_seed(0)
    model = make()
    kp.prune(model, zeros, target="mcu", allocation="uniform", verbose=0)
    if values:
        kp.share(model, values)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        path = f"{folder}/model.tflite"
        data = inputs_of(model)
        return tx.export(model, path, target="mcu", quantize="int8", data=data, tolerance=10.0, records=records)


def row(
    name: str, values: int | None, records: tuple[str, ...] | None, report: tx.ExportReport
) -> tuple[tuple[str, ...], bool]:
    """Return the row of a file, and whether it keeps its bound; files in one form have none."""
    assert report.micro is not None
    assert report.micro.decoding is not None
    micro, dense = report.micro, report.micro.decoding
    ratio = micro.model_bytes / dense.dense_bytes
    cells = (
        name,
        str(values or "any"),
        "smallest" if records is None else " or ".join(records),
        f"{dense.dense_bytes:,}",
        f"{micro.model_bytes:,}",
        f"{ratio:.3f}",
        *((f"{BOUNDS[values]:.2f}", verdict(ratio, BOUNDS[values])) if records is None else ("", "")),
        f"{dense.dense_arena_bytes:,}",
        f"{micro.arena_bytes:,}",
        f"{dense.slowdown:.2f}",
    )
    return cells, records is not None or ratio <= BOUNDS[values]


def by_form() -> None:
    """Print what a Dense layer with few values takes in each form."""
    rows = []
    for form in ("table", "bitmask", "huffman"):
        found = [exported(wide, 15, (form,), zeros).micro for zeros in (0.8, 0.9, 0.95)]
        assert all(micro is not None and micro.decoding is not None for micro in found)
        figures = [f"{m.model_bytes / m.decoding.dense_bytes:.2f} / {m.decoding.slowdown:.1f}" for m in found]
        rows.append((form, *figures))
    title = (
        "Dense(512) of 512 inputs, one row, 15 values: share of the dense file / time as multiples of the dense one's"
    )
    heads = ("records", "80 % zeros", "90 %", "95 %")
    print_table(title, heads, rows, machine("tflite-micro", "keras", "tensorflow"))


def main() -> int:
    """Print the table; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small convolutional network alone")
    parser.add_argument("--weights", action="store_true", help="print the plan of each file too")
    parser.add_argument("--forms", action="store_true", help="a Dense layer in each form instead")
    options = parser.parse_args()
    if options.forms:
        by_form()
        return 0
    names = ["small_cnn"] if options.quick else list(NETWORKS)
    rows, kept = [], True
    for name in names:
        for values, records in [(values, way[values]) for way in (dict.fromkeys(BOUNDS), FASTER) for values in BOUNDS]:
            report = exported(NETWORKS[name], values, records)
            cells, good = row(name, values, records, report)
            rows.append(cells)
            kept = kept and good
            if options.weights:
                plan = [
                    (line.name, line.encoding.value, f"{line.dense_bytes:,}", f"{line.stored_bytes:,}", line.reason)
                    for line in report.lines
                ]
                print_table(f"{name}, values: {values or 'any'}", ("weight", "as", "dense", "stored", "why"), plan, "")
    heads = (
        "network",
        "values",
        "records",
        "dense file",
        "file",
        "ratio",
        "at most",
        "",
        "dense arena",
        "arena",
        "time / dense",
    )
    title = f"TensorFlow Lite Micro, int8, {ZEROS:.0%} zeros; outputs equal the dense file's bit for bit"
    print_table(title, heads, rows, machine("tflite-micro", "keras", "tensorflow"))
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
