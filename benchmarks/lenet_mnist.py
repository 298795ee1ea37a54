"""LeNet-300-100 on MNIST: 12 times fewer weights at 1.59 % error or less, the mean of three seeds.

    python -m benchmarks.lenet_mnist

The figure to reach is that of Han et al. 2015, "Learning both weights and connections", table 1: 267k weights to 22k,
biases counted, at 1.59 % error on the test set. The recipe is fixed: it was chosen on 5,000 samples held out of the
training set (`--choose` trains on the other 55,000 and prints the error on these); without the option all 60,000 are
trained on, and the test set is used once, for the figure.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import numpy.typing as npt

import keras_prune as kp
from benchmarks.data import Images, mnist
from benchmarks.timing import machine, print_table, verdict

SEEDS = (1, 2, 3)
SPARSITY = 0.925
DENSE_EPOCHS = 12
PRUNING_EPOCHS = 12
FINE_TUNING_EPOCHS = 10
BATCH = 256
HELD_OUT = 5000
ASKED_ERROR = 1.59
ASKED_FACTOR = 12.0


class Shifted(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of pictures, each moved by at most a pixel either way, in a new order at every epoch.

    Args:
        x: `[n, 28, 28]`, 0 to 255.
        y: `[n]`.
        seed: for the moves and the order.
    """

    def __init__(self, x: npt.NDArray[np.uint8], y: npt.NDArray[np.uint8], seed: int) -> None:
        super().__init__()
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        # A view, [n, 3, 3, 28, 28]: of each picture the nine windows.
        self.windows = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(1, 2))
        self.y = y.astype(np.int32)
        self.rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.y) // BATCH

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        rows, cols = np.divmod(self.moves[chosen], 3)
        return scaled(self.windows[chosen, rows, cols]), self.y[chosen]

    def on_epoch_end(self) -> None:
        self.order = self.rng.permutation(len(self.y))
        self.moves = self.rng.integers(0, 9, len(self.y))


def scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return pixels as rows of 784 numbers from 0 to 1."""
    return pixels.reshape(len(pixels), 784).astype(np.float32) / np.float32(255.0)


def lenet() -> keras.Model:
    """LeNet-300-100: 266,610 weights, of which 410 are biases."""
    dense = [keras.layers.Dense(n, activation="relu") for n in (300, 100)]
    return keras.Sequential([keras.Input((784,)), *dense, keras.layers.Dense(10)])


def fit(model: keras.Model, data: Shifted, epochs: int, callbacks: list[Any]) -> None:
    """Train by Adam, with a learning rate that falls to zero along a cosine."""
    rate = keras.optimizers.schedules.CosineDecay(1e-3, decay_steps=epochs * len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(data, epochs=epochs, verbose=0, callbacks=callbacks)


def error(model: keras.Model, x: npt.NDArray[np.uint8], y: npt.NDArray[np.uint8]) -> float:
    """Return the share of wrong answers in percent."""
    answers = model.predict(scaled(x), batch_size=1000, verbose=0).argmax(axis=1)
    return 100.0 * float(np.mean(answers != y))


def run(images: Images, seed: int, *, choose: bool) -> tuple[float, float, int, int]:
    """Train, prune and fine-tune.

    Returns:
        The dense model's error, the pruned model's error, both in percent, the weights that are not zero, and all
        weights; biases are among both.
    """
    keras.utils.set_random_seed(seed)
    x, y, x_test, y_test = images.x_train, images.y_train, images.x_test, images.y_test
    if choose:
        x, y, x_test, y_test = x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]
    data = Shifted(x, y, seed)
    model = lenet()
    fit(model, data, DENSE_EPOCHS, [])
    dense = error(model, x_test, y_test)
    end = PRUNING_EPOCHS * len(data)
    schedule = kp.schedules.PolynomialDecay(0.0, SPARSITY, begin_step=0, end_step=end, frequency=100)
    fit(model, data, PRUNING_EPOCHS + FINE_TUNING_EPOCHS, [kp.Pruning(schedule)])
    model = kp.strip(model)
    weights = model.get_weights()
    kept = sum(int(np.count_nonzero(w)) for w in weights)
    return dense, error(model, x_test, y_test), kept, sum(w.size for w in weights)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.lenet_mnist", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--choose", action="store_true", help="hold 5,000 training samples out, for the error")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args(arguments)
    images = mnist()
    rows, results = [], []
    for seed in options.seeds:
        start = time.perf_counter()
        dense, pruned, kept, total = run(images, seed, choose=options.choose)
        results.append((dense, pruned, kept, total / kept))
        left, factor = f"{kept:,} of {total:,}", f"{total / kept:.2f}"
        took = f"{time.perf_counter() - start:.0f} s"
        rows.append([f"seed {seed}", f"{dense:.2f}", f"{pruned:.2f}", left, factor, took])
        print(*rows[-1], sep="  ", flush=True)
    dense, pruned, kept, times = (statistics.mean(column) for column in zip(*results, strict=True))
    rows.append(["mean", f"{dense:.2f}", f"{pruned:.2f}", f"{kept:,.0f}", f"{times:.2f}", ""])
    met = verdict(pruned, ASKED_ERROR), verdict(-times, -ASKED_FACTOR)
    rows.append(["asked", "", f"<= {ASKED_ERROR} {met[0]}", "", f">= {ASKED_FACTOR:g} {met[1]}", ""])
    columns = ["LeNet-300-100", "dense error, %", "pruned error, %", "weights not zero", "times fewer", "took"]
    where = f"{HELD_OUT:,} held-out training samples" if options.choose else "test set of 10,000"
    caption = f"Error on the {where}. Kernels and biases are both counted; biases are not pruned.\n"
    print_table("MNIST", columns, rows, caption + machine("keras", "tensorflow", "numpy"))


if __name__ == "__main__":
    main()
