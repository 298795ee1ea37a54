"""Searches for the sparsity of each layer beside the allocations that are known, at equal global sparsity.

    python -m benchmarks.strategy_search
    python -m benchmarks.strategy_search --quick

A small CNN is trained on a part of Fashion-MNIST. Uniform, ERK, LAMP and one global threshold prune it at once by
magnitude, with what is kept solved again (`reconstruct=`); so does each trial of a search. No search begins with a
known allocation, and all have as many trials. A search looks at validation pictures; the table has the accuracy on
those and on test pictures that no search has seen, the mean over the seeds. The closing line says whether the searches
beat uniform.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import numpy.typing as npt
import optuna
from keras import layers as kl

import keras_prune as kp
from benchmarks.data import Images, fashion_mnist
from benchmarks.timing import machine, print_table

KNOWN = ("uniform", "erk", "lamp", "global")
SAMPLERS = {"GA": "genetic", "NSGA-II": "nsga2", "TPE": "tpe", "PSO": "pso", "CMA-ES": "cmaes", "random": "random"}
QUICK = {"seeds": (0,), "trials": 12, "images": 4000, "tests": 2000, "epochs": 2}

Pictures = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


def small_cnn() -> keras.Model:
    """Three 3x3 convolutions and two Dense layers: 65,000 weights in five tensors of very different sizes."""
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for filters, strides in ((16, 2), (32, 2), (32, 1)):
        x = kl.Conv2D(filters, 3, strides, "same", activation="relu")(x)
    x = kl.Dense(32, "relu")(kl.Flatten()(x))
    return keras.Model(inputs, kl.Dense(10)(x), name="small_cnn")


def pictures(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Pictures:
    return pixels[..., np.newaxis].astype(np.float32) / 255, labels.astype(np.int32)


def accuracy(model: keras.Model, data: Pictures) -> float:
    return float(np.mean(model.predict(data[0], batch_size=500, verbose=0).argmax(axis=-1) == data[1]))


def measure(images: Images, seed: int, options: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Return for each way the accuracy on validation and on test pictures, and the seconds that it took."""
    keras.utils.set_random_seed(seed)
    chosen = np.random.default_rng(seed).permutation(len(images.x_train))
    train = pictures(images.x_train[chosen[: options.images]], images.y_train[chosen[: options.images]])
    held = chosen[options.images : options.images + options.tests]
    validation = pictures(images.x_train[held], images.y_train[held])
    test = pictures(images.x_test[: options.tests], images.y_test[: options.tests])
    model = small_cnn()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(*train, batch_size=128, epochs=options.epochs, verbose=0)
    solve = (train[0][: options.calibration], train[1][: options.calibration])
    found = {"dense": (accuracy(model, validation), accuracy(model, test), 0.0)}

    def note(name: str, pruned: keras.Model, start: float) -> None:
        took = time.perf_counter() - start
        found[name] = accuracy(pruned, validation), accuracy(pruned, test), took
        print(f"seed {seed}", name, *(f"{value:.4f}" for value in found[name]), flush=True)

    def again(strategy: kp.search.PruningStrategy) -> keras.Model:
        return strategy.prune(kp.strip(model), solve, reconstruct=solve if options.reconstruct else None)

    for name in KNOWN:
        start = time.perf_counter()
        note(name, again(kp.search.PruningStrategy(options.sparsity, allocation=name)), start)
    for name, sampler in SAMPLERS.items():
        start = time.perf_counter()
        result = kp.search.study(
            model,
            solve,
            validation,
            space=kp.search.Space(starts=()),
            sparsity=options.sparsity,
            sampler=sampler,
            trials=options.trials,
            reconstruct=options.reconstruct,
            storage=optuna.storages.InMemoryStorage(),
            seed=seed,
            verbose=0,
        )
        note(name, again(result.best), start)
    return found


def rows_of(found: list[dict[str, tuple[float, float, float]]]) -> tuple[list[list[str]], dict[str, float]]:
    """Return the rows of the table, and the mean accuracy of each way on test pictures."""
    rows, tested = [], {}
    for name in found[0]:
        validation, test, seconds = (
            statistics.mean(column) for column in zip(*(one[name] for one in found), strict=True)
        )
        tested[name] = test
        rows.append([name, f"{validation:.4f}", f"{test:.4f}", f"{seconds:.1f}"])
    for row in rows[1:]:
        row.insert(3, f"{100 * (tested[row[0]] - tested['uniform']):+.2f}")
    rows[0].insert(3, "")
    return rows, tested


def main(arguments: list[str] | None = None) -> int:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser("python -m benchmarks.strategy_search", description=about)
    parser.add_argument("--quick", action="store_true", help=f"a small run: {QUICK}")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--trials", type=int, default=60, help="of each search")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--images", type=int, default=12_000, help="of the 60,000 for training, drawn by seed")
    parser.add_argument("--tests", type=int, default=5_000, help="pictures for validation, and as many for testing")
    parser.add_argument("--epochs", type=int, default=4, help="of dense training")
    parser.add_argument("--calibration", type=int, default=512, help="pictures to solve the kept weights on")
    parser.add_argument("--no-reconstruct", dest="reconstruct", action="store_false", help="masks alone")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    images = fashion_mnist()
    rows, tested = rows_of([measure(images, seed, options) for seed in options.seeds])
    caption = (
        f"Accuracy at {options.sparsity:.0%} zeros, mean of seeds {', '.join(map(str, options.seeds))}; "
        f"{options.trials} trials a search on {options.tests:,} validation pictures, and as many for testing; "
        f"{options.images:,} training pictures, {options.epochs} epochs"
        f"{f'; kept weights solved on {options.calibration}' if options.reconstruct else ''}.\n"
    )
    columns = ["allocation", "validation", "test", "points above uniform", "s"]
    print_table(
        "Searching for the sparsity of each layer", columns, rows, caption + machine("tensorflow", "optuna", "pymoo")
    )
    searched: dict[str, Any] = {name: tested[name] for name in SAMPLERS}
    behind = [name for name, value in searched.items() if value <= tested["uniform"]]
    print("The searches beat uniform." if not behind else f"Not better than uniform: {', '.join(behind)}.")
    return int(bool(behind))


if __name__ == "__main__":
    sys.exit(main())
