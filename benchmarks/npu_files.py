r"""What zeros are worth on Arm's Ethos-U: flash and cycles by Vela, of networks like those of MLPerf Tiny.

    pip install "keras-prune[npu]"
    python -m benchmarks.npu_files                      the Ethos-U55 at 0, 50 and 90 % zeros, held against its bounds
    python -m benchmarks.npu_files --target ethos-u85   another one; 50 % are then zeros that it is faster for
    python -m benchmarks.npu_files --width              the least widths that cost a whole block more

Weights are random, zeros those of least size in each kernel. Flash is that of the compiled file; dense is the network
as it was before it was pruned. "filled" is what the report of the pruned file holds it against: the same file with
values in place of its zeros. The bounds are those of the Ethos-U55.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
from keras import layers as kl

import keras_prune as kp
import tflite_export as tx
from benchmarks.timing import machine, print_table
from benchmarks.tiny import NETWORKS, inputs_of

FLASH = {"autoencoder": 0.22, "ds_cnn": 0.44, "resnet8": 0.24}
"""At most this share of dense flash is left at 90 % zeros."""
CYCLES = {"autoencoder": 68_339, "ds_cnn": 93_405, "resnet8": 187_930}
"""At most so many cycles at 90 % zeros, on the Ethos-U55 of 128 MACs."""


def exported(model: keras.Model, target: str) -> tx.NpuReport:
    """Return what a model costs on an NPU; how well int8 keeps random weights' answers does not matter."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        path = f"{folder}/model.tflite"
        report = tx.export(model, path, target=target, quantize="int8", data=inputs_of(model), tolerance=10.0)
    assert report.npu is not None
    return report.npu


def measure(name: str, target: str) -> tuple[list[tuple[str, ...]], bool]:
    """Return the rows of a network, and whether it keeps its bounds."""
    rows, kept, dense = [], True, None
    for zeros in (0.0, 0.5, 0.9):
        keras.utils.set_random_seed(0)
        model = NETWORKS[name]()
        if zeros:
            kp.prune(model, zeros, target=target, allocation="uniform", verbose=0)
        found = exported(model, target)
        dense = dense or found.compiled
        flash, cycles = found.compiled.flash_bytes / dense.flash_bytes, found.compiled.cycles / dense.cycles
        verdict = ""
        if zeros == 0.9:
            good = flash <= FLASH[name] and found.compiled.cycles <= CYCLES[name]
            verdict, kept = ("kept" if good else "MISSED", good) if target == "ethos-u55" else ("", True)
        filled = f"{found.filled.flash_bytes / dense.flash_bytes:.3f}" if found.filled else "-"
        rows.append(
            (
                name,
                f"{zeros:.0%}",
                f"{found.compiled.flash_bytes:,}",
                f"{flash:.3f}",
                f"{found.compiled.cycles:,}",
                f"{cycles:.3f}",
                f"{found.compiled.operators_share:.0%}",
                filled,
                verdict,
            )
        )
    return rows, kept


def widths(target: str) -> list[tuple[str, ...]]:
    """Return flash and cycles of a stack of convolutions by its width."""
    rows = []
    for width in (24, 25, 28, 31, 32, 33, 36, 40, 41, 48):
        keras.utils.set_random_seed(0)
        image = keras.Input((16, 16, 32))
        x = kl.Conv2D(width, 3, padding="same", activation="relu")(image)
        x = kl.Conv2D(width, 3, padding="same", activation="relu")(x)
        made = exported(keras.Model(image, kl.Conv2D(32, 1)(x)), target).compiled
        rows.append((str(width), f"{made.flash_bytes:,}", f"{made.cycles:,}", f"{made.cycles / width**2:.1f}"))
    return rows


def main() -> int:
    """Print the tables; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="ethos-u55", choices=("ethos-u55", "ethos-u65", "ethos-u85"))
    parser.add_argument("--width", action="store_true")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    if options.width:
        columns = ("width", "flash", "cycles", "cycles / width^2")
        print_table(
            f"{options.target}: two convolutions by their width",
            columns,
            widths(options.target),
            machine("ethos-u-vela"),
        )
        return 0
    found = [measure(name, options.target) for name in options.networks]
    heads = ("network", "zeros", "flash", "of dense", "cycles", "of dense", "operators on NPU", "filled", "bounds")
    rows = [row for rows, _ in found for row in rows]
    print_table(f"{options.target}, Vela's estimates", heads, rows, machine("ethos-u-vela", "keras"))
    return 0 if all(kept for _, kept in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
