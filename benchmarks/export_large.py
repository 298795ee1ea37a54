"""Export of a 100 MB model: its time beside the stock converter's own, and its peak memory.

    python -m benchmarks.export_large

Time: `tflite_export.export` against `tf.lite.TFLiteConverter.from_keras_model(model).convert()`, each in a process of
its own, in turn, median of the ratios; both start from a model in memory and end with the bytes. Ours also verifies and
writes the file. Memory: the highest resident set of that process above the one before the model was made, as a multiple
of the weights; it counts the model itself, but not what making it left behind: weights are made where they stay, and
free pages are given back before the export.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

from benchmarks.mask_update import resident
from benchmarks.timing import machine, print_table, verdict

UNITS, LAYERS, SHARE = 2048, 6, 0.9
ASKED_TIME = 1.5
BLOCKS = {"single zeros": 1, "1x4 blocks": 4}


def make_model(units: int, layers: int, block: int) -> keras.Model:
    """Return a chain of Dense layers, 90 % of the blocks of each kernel zero."""
    rng = np.random.default_rng(0)

    def weights(shape: tuple[int, int], dtype: str | None = None) -> np.ndarray:
        kept = rng.random((units // block, units), dtype=np.float32) >= SHARE
        weight = rng.standard_normal(shape, dtype=np.float32) * np.repeat(kept, block, axis=0)
        weight *= (units * (1 - SHARE)) ** -0.5
        return weight

    x = y = keras.Input((units,))
    for _ in range(layers):
        y = keras.layers.Dense(units, activation="relu", kernel_initializer=weights)(y)
    model = keras.Model(x, y)
    return model


def measure_here(tool: str, block: int, units: int) -> dict[str, float]:
    """Return seconds and peak memory of one tool in this process; a small model first, for what it only does once."""
    import tensorflow as tf

    from tflite_export import export
    from tflite_export.convert.memory import release

    def run(model: keras.Model) -> None:
        if tool == "stock":
            tf.lite.TFLiteConverter.from_keras_model(model).convert()
            return
        with tempfile.TemporaryDirectory() as folder:
            feed = np.random.default_rng(1).standard_normal((8, model.input_shape[1]), dtype=np.float32)
            export(model, Path(folder) / "model.tflite", data=feed)

    run(make_model(64, 2, block))
    base = resident("VmRSS")
    model = make_model(units, LAYERS, block)
    weights = sum(4 * int(np.prod(variable.shape)) for variable in model.variables)
    release(weights)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    start = time.perf_counter()
    run(model)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": (resident("VmHWM") - base) / weights, "megabytes": weights / 1e6}


def in_child(tool: str, block: int, units: int) -> dict[str, float]:
    """Return what a fresh process measures."""
    command = [sys.executable, "-m", "benchmarks.export_large", "--one", json.dumps([tool, block, units])]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.export_large", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each tool")
    parser.add_argument("--units", type=int, default=UNITS, help="width of the layers")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure_here(*json.loads(options.one))))
        return 0
    rows, missed = [], False
    for zeros, block in BLOCKS.items():
        found: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
        for _ in range(options.rounds):
            for tool, runs in found.items():
                runs.append(in_child(tool, block, options.units))
        seconds = {tool: statistics.median(run["seconds"] for run in runs) for tool, runs in found.items()}
        peaks = {tool: statistics.median(run["peak"] for run in runs) for tool, runs in found.items()}
        time_ratio = statistics.median(
            ours["seconds"] / stock["seconds"] for ours, stock in zip(found["ours"], found["stock"], strict=True)
        )
        missed = missed or time_ratio > ASKED_TIME or peaks["ours"] > peaks["stock"]
        rows.append(
            [
                f"{zeros}, {found['ours'][0]['megabytes']:.0f} MB",
                f"{seconds['stock']:.2f}",
                f"{seconds['ours']:.2f}",
                f"{time_ratio:.2f}",
                verdict(time_ratio, ASKED_TIME),
                f"{peaks['stock']:.1f}",
                f"{peaks['ours']:.1f}",
                verdict(peaks["ours"], peaks["stock"]),
            ]
        )
        print(*rows[-1], sep="  ", flush=True)
    columns = ["model", "stock, s", "ours, s", f"ratio (asked {ASKED_TIME})", "", "stock, peak / model"]
    columns += ["ours (asked: stock's)", ""]
    print_table("Export of a large model", columns, rows, machine("tensorflow", "keras", "ai-edge-litert"))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
