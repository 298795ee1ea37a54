"""Deep Compression of the LeNets on MNIST: pruned, values shared, coded by Huffman; sizes of the written files.

    python -m benchmarks.deep_compression --nets lenet-300-100
    python -m benchmarks.deep_compression --nets lenet-5
    python -m benchmarks.deep_compression --zeros-only

The figures to beat are those of Han et al. 2016, "Deep Compression", table 1: LeNet-300-100 40 times smaller at 1.58 %
error, and LeNet-5 (Caffe's, 431,080 weights) 39 times at 0.74 %. Asked here is 60 and 50 times, the mean of three
seeds. With `--zeros-only`, nothing is shared, and the factor is that of weights to those that are not zero: asked is
100 times at 1.9 % and 200 times at 0.80 % (Sparse Variational Dropout: 68 at 1.92, 280 at 0.75).

A dense network is trained, then pruned while it trains and trained on with its masks; what is left of each kernel
shares `VALUES` values, zero among them, which k-means finds and `kp.WeightSharing` trains. `kp.save_kpz` writes the
file; its bytes are counted, all of them: weights, biases, names, checksums and the architecture. The error is that of
the model that `kp.load_kpz` reads from it. The factor is float32 weights / file.

All phases move the training pictures by at most a pixel. LeNet-300-100 is pruned by weight times the norm of its input
and learns from the dense one's answers too, as in `benchmarks.lenet_small`. Training uses all 60,000 pictures, and the
test set is looked at once, at the end; `--choose` holds 5,000 training pictures out and measures on these.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

import keras_prune as kp
from benchmarks.data import Images, mnist
from benchmarks.lenet_mnist import HELD_OUT, SEEDS, Shifted, error, lenet, scaled
from benchmarks.lenet_small import SCORED, Taught, fit
from benchmarks.timing import machine, print_table, verdict

VALUES = 16
SHARING = 4
"""Epochs in which shared values are trained."""
RATE = 2e-3


def lenet5() -> keras.Model:
    """Caffe's LeNet-5: 431,080 weights, of which 580 are biases."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            kl.Reshape((28, 28, 1)),
            kl.Conv2D(20, 5),
            kl.MaxPooling2D(2),
            kl.Conv2D(50, 5),
            kl.MaxPooling2D(2),
            kl.Flatten(),
            kl.Dense(500, activation="relu"),
            kl.Dense(10),
        ]
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        make: the dense network.
        taught: whether the pruned network learns from the dense one's answers.
        sparsity: of its kernels.
        epochs: dense, pruning, and after it with masks.
        error: asked, in percent.
        factor: asked.
    """

    make: Callable[[], keras.Model]
    taught: bool
    sparsity: float
    epochs: tuple[int, int, int]
    error: float
    factor: float


CODED = {
    "lenet-300-100": Recipe(lenet, True, 0.96, (12, 12, 12), 1.58, 60.0),
    "lenet-5": Recipe(lenet5, False, 0.95, (10, 10, 10), 0.74, 50.0),
}
ZEROS = {
    "lenet-300-100": Recipe(lenet, True, 0.9915, (12, 30, 40), 1.9, 100.0),
    "lenet-5": Recipe(lenet5, False, 0.9963, (10, 20, 20), 0.80, 200.0),
}


def trained(
    recipe: Recipe, x: npt.NDArray[np.uint8], y: npt.NDArray[np.uint8], seed: int, *, shared: bool
) -> keras.Model:
    """Return the pruned network, trained; with values shared, and these trained, where that is asked for."""
    keras.utils.set_random_seed(seed)
    model = recipe.make()
    dense, pruning, after = recipe.epochs
    data: Shifted = Shifted(x, y, seed)
    fit(model, data, dense, 1e-3, [])
    criterion: Any = "magnitude"
    if recipe.taught:
        data = Taught(x, y, seed, model)
        # By magnitude alone, weights on pixels that are always black would stay as they were drawn.
        criterion = kp.criteria.Activation(data=scaled(x[:SCORED]))
    steps = pruning * len(data)
    schedule = kp.schedules.PolynomialDecay(0.0, recipe.sparsity, begin_step=0, end_step=steps, frequency=100)
    fit(model, data, pruning + after, RATE, [kp.Pruning(schedule, criterion, allocation="lamp")])
    model = kp.strip(model)
    if shared:
        fit(model, data, SHARING, RATE / 10, [kp.WeightSharing(VALUES, seed=seed)])
        model = kp.strip(model)
    return model


def run(recipe: Recipe, images: Images, seed: int, *, choose: bool, zeros_only: bool) -> tuple[float, float, Any]:
    """Train, share and write.

    Returns:
        The error in percent, how many times smaller, and the report of the file.
    """
    x, y, x_test, y_test = images.x_train, images.y_train, images.x_test, images.y_test
    if choose:
        x, y, x_test, y_test = x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]
    model = trained(recipe, x, y, seed, shared=not zeros_only)
    with tempfile.TemporaryDirectory() as folder:
        report = kp.save_kpz(model, Path(folder, "model.kpz"))
        loaded = kp.load_kpz(Path(folder, "model.kpz"))
    weights = loaded.get_weights()
    kept = sum(int(np.count_nonzero(w)) for w in weights)
    factor = sum(w.size for w in weights) / kept if zeros_only else report.factor
    return error(loaded, x_test, y_test), factor, report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.deep_compression", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--nets", nargs="+", choices=tuple(CODED), default=tuple(CODED))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--choose", action="store_true", help="hold 5,000 training samples out, for the error")
    parser.add_argument("--zeros-only", action="store_true", help="share nothing; count weights that are not zero")
    options = parser.parse_args(arguments)
    images = mnist()
    rows = []
    for name in options.nets:
        recipe = (ZEROS if options.zeros_only else CODED)[name]
        results = []
        for seed in options.seeds:
            start = time.perf_counter()
            wrong, factor, report = run(recipe, images, seed, choose=options.choose, zeros_only=options.zeros_only)
            results.append((wrong, factor))
            took = f"{time.perf_counter() - start:.0f} s"
            rows.append([f"{name}, seed {seed}", f"{wrong:.2f}", f"{report.total:,}", f"{factor:.1f}", took])
            print(*rows[-1], report, sep="\n", flush=True)
        wrong, factor = (statistics.mean(column) for column in zip(*results, strict=True))
        rows.append([f"{name}, mean of {len(results)}", f"{wrong:.2f}", "", f"{factor:.1f}", ""])
        met = verdict(wrong, recipe.error), verdict(-factor, -recipe.factor)
        rows.append(["asked", f"<= {recipe.error} {met[0]}", "", f">= {recipe.factor:g} {met[1]}", ""])
    where = f"{HELD_OUT:,} held-out training samples" if options.choose else "test set of 10,000"
    what = "weights / weights not zero" if options.zeros_only else "bytes of float32 weights / bytes of the file"
    print_table(
        "MNIST",
        ["network", "error, %", "file, bytes", "times smaller", "took"],
        rows,
        f"Error on the {where}. Times smaller: {what}.\n" + machine("keras", "tensorflow", "numpy", "bitarray"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
