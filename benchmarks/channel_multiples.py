r"""What multiples of channels are worth: a network with a quarter of its multiplications, in multiples of 1, 4, 8, 16.

    tflite-export install web                        once, for "web": LiteRT.js, by npm
    tflite-export install arm64                      once, for "arm64": LiteRT for aarch64, under qemu
    python -m benchmarks.channel_multiples --runtimes litert web arm64

MobileNetV2 of keras.applications, half as wide, 96 pixels, weights as they are drawn. `kp.structured.prune(flops=0.25,
round_to=n)` removes the channels of the smallest L2 norm; float32 files are timed in turn with that of the whole
network. "web" is LiteRT.js under Node, "arm64" counts instructions of a cortex-a76.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

import keras_prune as kp
import tflite_export as tx
from benchmarks.timing import machine, print_table
from tflite_export.measures.latency import Latency

WHOLE = "whole"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.channel_multiples", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--runtimes", nargs="+", choices=("litert", "web", "arm64"), default=["litert"])
    parser.add_argument("--multiples", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--flops", type=float, default=0.25)
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.5, weights=None, classes=10)
    models = {WHOLE: model}
    for multiple in options.multiples:
        models[str(multiple)] = kp.structured.prune(model, flops=options.flops, round_to=multiple)
    pictures = np.random.default_rng(0).uniform(-1.0, 1.0, (8, 96, 96, 3)).astype(np.float32)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, made in models.items():
            path = Path(folder, "model.tflite")
            tx.export(made, path, target="web", data=pictures)
            files[name] = path.read_bytes()
    rows = [[name, f"{made.count_params():,}"] for name, made in models.items()]
    for runtime in options.runtimes:
        costs = Latency(runtime).measure(files, WHOLE)
        for row in rows:
            row.append(f"{costs[row[0]].ratio:.2f}")
    print_table(
        f"{options.flops:.0%} of the multiplications, times less than the whole network".replace("%", " %"),
        ["multiples of", "parameters", *options.runtimes],
        rows,
        "One sample, one thread, float32; arm64 in instructions, the others in time.\n"
        + machine("tensorflow", "keras", "ai-edge-litert"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
