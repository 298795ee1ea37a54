"""Factorised Dense layers: measured time and error against rank, and the point from which they pay.

    python -m benchmarks.factorization
    python -m benchmarks.factorization --width 256 --ranks 8 64          small, that all of it runs

Three Dense layers of `--width` units on vectors of that length, with relu. Their kernels are drawn with singular values
that fall as 1/i^0.7; the errors in the table follow from that choice, the times do not. For each rank all three are
factorised by `kp.factorize(ranks=...)`, as two layers ("svd") and as tensor trains, each exported and timed by
`tflite_export.latency.Stopwatch`: LiteRT, one thread, batch 1, in turn with the whole model. A form pays from the
largest rank that was measured to take less time than the whole model. "error" is the mean over the layers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

import keras_prune as kp
from benchmarks.timing import machine, print_table
from tflite_export.latency import Stopwatch

RANKS = (64, 256, 512, 768, 960, 1008)
TRAIN_RANKS = (4, 16, 64)


def network(width: int) -> keras.Model:
    """Three layers whose kernels' singular values fall as 1/i^0.7."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((width,)), *(keras.layers.Dense(width, "relu") for _ in range(3))])
    for layer in model.layers:
        left, right = (np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2))
        kernel = (left * np.arange(1, width + 1) ** -0.7) @ right
        layer.set_weights([kernel, 0.01 * rng.normal(size=width)])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--train-ranks", type=int, nargs="+", default=TRAIN_RANKS)
    options = parser.parse_args()
    model = network(options.width)
    measure = Stopwatch()
    whole = measure(model)
    print(machine("tensorflow", "keras", "ai-edge-litert", "tensorly"))
    print(f"Dense({options.width}) x 3: {1e3 * whole:.3f} ms, {model.count_params():,} parameters\n")
    measured: dict[str, list[tuple[int, float, float]]] = {}
    for form, ranks in (("svd", options.ranks), ("tensor_train", options.train_ranks)):
        measured[form] = rows(model, form, ranks, measure, whole)
    for form, points in measured.items():
        paying = [rank for rank, _, share in points if share < 1.0]
        found = f"from rank {max(paying)} down" if paying else "at no rank that was measured"
        print(f"{form} pays {found}")


def rows(
    model: keras.Model, form: str, ranks: Sequence[int], measure: Stopwatch, whole: float
) -> list[tuple[int, float, float]]:
    """Measure each rank; print a table."""
    found, table = [], []
    for rank in ranks:
        smaller, report = kp.factorize(model, ranks=rank, forms=form)
        if len(report.layers) < 3:
            table.append([str(rank), "", "", "", "", report.skipped[0].reason])
            continue
        seconds = measure(smaller)
        error = float(np.mean([row.error for row in report.layers]))
        found.append((rank, error, seconds / whole))
        left = [f"{after / before:.3f}" for before, after in (report.params, report.macs)]
        table.append([str(rank), *left, f"{error:.4f}", f"{1e3 * seconds:.3f}", f"{seconds / whole:.3f}"])
    print_table(form, ["rank", "parameters", "MACs", "error", "ms", "of the whole"], table, "")
    return found


if __name__ == "__main__":
    main()
