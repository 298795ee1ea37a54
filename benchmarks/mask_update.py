"""A mask update of 100 million weights, in one tensor and in 50: its time against `np.partition`, and its memory.

    python -m benchmarks.mask_update

Time: weights and masks as NumPy arrays in, new masks out, against `np.partition` on all |w| joined, at the same rank;
the two in turn, median of the ratios. Once as the first update of a training (nothing is off, half goes) and once as a
later one (half is off, nine tenths go). "on a model" is the whole of it in a training: variables read, masks set,
weights put at zero.

Memory: the highest resident set during one update above that before the weights were made, in a process of its own. It
counts the weights themselves, once, the masks in force, and all that the update takes, the new masks too.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

import keras_prune as kp
from benchmarks.timing import interleave, machine, median_ratio, print_table, verdict
from keras_prune.arrays.layouts import Layout
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.update import Tensor, masks_at_sparsity
from tflite_export.convert.memory import release

CASES: dict[str, list[tuple[int, int]]] = {
    "one tensor of 100 million": [(10_000, 10_000)],
    "50 tensors of 2 million": [(2_000, 1_000)] * 50,
}
STAGES = {"first": (0.0, 0.5), "later": (0.5, 0.9)}
"""The sparsity before and after the update."""

ASKED_TIME = 1.3
ASKED_MEMORY = 2.5
RECIPE = Recipe(kp.criteria.Magnitude(), kp.patterns.Unstructured(), kp.allocation.Global())


def make_tensors(shapes: list[tuple[int, int]], sparsity: float) -> list[Tensor]:
    """Return random weights of which the smallest are zero, with the masks that say so."""
    rng = np.random.default_rng(0)
    tensors = [
        Tensor(f"layer_{i}/kernel", rng.standard_normal(shape, dtype=np.float32), None, Layout.plain(2), {})
        for i, shape in enumerate(shapes)
    ]
    if not sparsity:
        return tensors
    masks = masks_at_sparsity(tensors, RECIPE, sparsity)
    for tensor, mask in zip(tensors, masks, strict=True):
        np.multiply(tensor.weight, mask, out=tensor.weight)
    return [Tensor(t.path, t.weight, mask, t.layout, {}) for t, mask in zip(tensors, masks, strict=True)]


def time_ratio(shapes: list[tuple[int, int]], before: float, after: float, rounds: int) -> tuple[float, float]:
    """Return the median seconds of `np.partition`, and the median ratio of an update to it."""
    tensors = make_tensors(shapes, before)
    joined = np.abs(np.concatenate([tensor.weight.reshape(-1) for tensor in tensors]))
    rank = round(after * joined.size) - 1
    seconds = interleave(
        {
            "partition": lambda: np.partition(joined, rank),
            "update": lambda: masks_at_sparsity(tensors, RECIPE, after, final=0.9),
        },
        rounds,
    )
    return float(np.median(seconds["partition"])), median_ratio(seconds["update"], seconds["partition"])


# -- on a model -------------------------------------------------------------------------------------------------------


def make_model(shapes: list[tuple[int, int]]) -> keras.Model:
    """Return a model with kernels of these shapes, which is never called."""
    rng = np.random.default_rng(0)
    model = keras.Sequential()
    for rows, columns in shapes:
        layer = keras.layers.Dense(columns, use_bias=False, kernel_initializer="zeros")
        layer.build((None, rows))
        layer.kernel.assign(rng.standard_normal((rows, columns), dtype=np.float32))
        model.add(layer)
    model.built = True
    # No momentum: the optimizer then has no state of the weights' size.
    model.compile(keras.optimizers.SGD(), "mse")
    return model


def live_updates(shapes: list[tuple[int, int]]) -> tuple[kp.Pruning, Callable[[], None]]:
    """Return a callback that is attached to a model, and the function that makes its next update."""
    # Each call is a step, and each step an update: 0.5, then 0.9 in the second.
    schedule = kp.schedules.Piecewise((1, 2), (0.5, 0.9))
    pruning = kp.Pruning(schedule)
    model = make_model(shapes)
    pruning.attach(model)
    pruning.on_step(0)

    def update() -> None:
        model.optimizer.iterations.assign(model.optimizer.iterations + 1)
        pruning.on_step(1)

    return pruning, update


def live_ratios(shapes: list[tuple[int, int]], rounds: int) -> dict[str, float]:
    """Return the median ratio of both updates on a model to `np.partition` of as many values."""
    joined = np.abs(np.concatenate([tensor.weight.reshape(-1) for tensor in make_tensors(shapes, 0.0)]))
    ratios: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(rounds):
        _, update = live_updates(shapes)
        for stage, (_, after) in STAGES.items():
            rank = round(after * joined.size) - 1
            np.partition(joined, rank)
            reference = _once(functools.partial(np.partition, joined, rank))
            ratios[stage].append(_once(update) / reference)
    return {stage: float(np.median(values)) for stage, values in ratios.items()}


def _once(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


# -- memory -----------------------------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Return a field of this process's status, "VmRSS" or "VmHWM" (the highest since the last reset), in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}. Memory is measured on Linux only.")


def peak(case: str, stage: str, *, live: bool) -> float:
    """Return the peak of one update in this process as a multiple of the weights, which are part of it."""
    before, after = STAGES[stage]
    shapes = CASES[case]
    # What the library itself takes, threads and all, is there before.
    if live:
        _, warm = live_updates([(2_000, 2_000)])
        warm()
    else:
        masks_at_sparsity(make_tensors([(3_000, 2_000)], before), RECIPE, after)
    size = 4 * sum(rows * columns for rows, columns in shapes)
    # Free pages that the C library keeps are not the update's.
    release(size)
    base = resident("VmRSS")
    update: Callable[[], object]
    if live:
        _, step = live_updates(shapes)
        if before:
            step()
        update = step
    else:
        tensors = make_tensors(shapes, before)

        def update() -> Any:
            return masks_at_sparsity(tensors, RECIPE, after)

    release(size)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    kept = update()
    highest = resident("VmHWM")
    del kept
    return (highest - base) / size


def peak_in_child(case: str, stage: str, live: bool) -> float:
    """Return `peak` as a fresh process finds it."""
    command = [sys.executable, "-m", "benchmarks.mask_update", "--peak", json.dumps([case, stage, live])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


# -- the command ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.mask_update", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="updates that are timed")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        case, stage, live = json.loads(options.peak)
        print(peak(case, stage, live=live))
        return
    rows = []
    for case, shapes in CASES.items():
        live_times = live_ratios(shapes, max(1, options.rounds // 2))
        for stage, (before, after) in STAGES.items():
            reference, ratio = time_ratio(shapes, before, after, options.rounds)
            memory = peak_in_child(case, stage, False)
            live_memory = peak_in_child(case, stage, True)
            name = f"{case}, {stage} update: {before:.0%} to {after:.0%}"
            asked = [f"{ASKED_TIME:.2f}", f"{ASKED_MEMORY:.2f}"]
            rows.append(_row(name, f"{1000 * reference:.0f}", asked, ratio, memory))
            rows.append(_row("  the same on a model", "", ["", ""], live_times[stage], live_memory))
            for row in rows[-2:]:
                print(*row, sep="  ", flush=True)
    columns = ["mask update", "np.partition, ms", "asked", "time / partition", "", "asked", "peak / weights", ""]
    caption = "Peak memory counts the weights once, the masks in force, and all that the update takes.\n"
    print_table("Mask update", columns, rows, caption + machine("keras", "tensorflow", "numpy"))


def _row(name: str, reference: str, asked: list[str], ratio: float, memory: float) -> list[str]:
    said = [verdict(ratio, ASKED_TIME), verdict(memory, ASKED_MEMORY)] if asked[0] else ["", ""]
    return [name, reference, asked[0], f"{ratio:.2f}", said[0], asked[1], f"{memory:.2f}", said[1]]


if __name__ == "__main__":
    main()
