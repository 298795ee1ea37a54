"""Deep Compression of the LeNets on MNIST: pruned, values shared, coded by Huffman; sizes of the written files.

    python -m benchmarks.deep_compression --nets lenet-300-100
    python -m benchmarks.deep_compression --nets lenet-5

The figures to beat are those of Han et al. 2016, "Deep Compression", table 1: LeNet-300-100 40 times smaller at 1.58 %
error, and LeNet-5 (Caffe's, 431,080 weights) 39 times at 0.74 %. Asked here is 60 and 50 times, the mean of three
seeds. By the recipe "zeros", nothing is shared, and the factor is that of weights to those that are not zero: asked is
100 times at 1.9 % and 200 times at 0.80 % (Sparse Variational Dropout: 68 at 1.92, 280 at 0.75).

A dense network is trained, once for both recipes. `kp.structured.plan` takes hidden units and filters out of it, as
many as so few weights would leave idle anyway; what is left trains fast. `kp.Pruning` then prunes its kernels while it
trains, by weight times the norm of the input, and it trains on with its masks. `kp.structured.shrink` takes units out
that nothing reads any more. By the recipe "coded", what is left of each kernel shares `VALUES` values, zero among them,
which k-means finds and `kp.WeightSharing` trains. `kp.save_kpz` writes the file; its bytes are counted, all of them:
weights, biases, names, checksums and the architecture. The error is that of the model that `kp.load_kpz` reads from it.
The factor is 4 bytes for each weight of the dense network / bytes of the file, or its weights / those not zero, biases
among both.

All phases move the training pictures by at most a pixel. The smaller networks learn from the dense one's answers too,
as in `benchmarks.lenet_small`. Training uses all 60,000 pictures, and the test set is looked at once, at the end;
`--choose` holds 5,000 training pictures out and measures on these.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
DENSE_EPOCHS = 8
SHARING = 3
"""Epochs in which shared values are trained."""
STEPS = 16
"""In one call; small networks train faster so."""
DENSE_RATE, RATE = 1e-3, 3e-3
"""Of learning, at first: of the dense network, and of the smaller one."""


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
    """How a network is made smaller.

    Attributes:
        coded: whether values are shared and the file counts; otherwise weights that are not zero do.
        widths: units or filters that stay in the hidden layers.
        weights: weights of the kernels that stay.
        epochs: in which more and more of them go, then with what is left.
        error: asked, in percent.
        factor: asked.
    """

    coded: bool
    widths: tuple[int, ...]
    weights: int
    epochs: tuple[int, int]
    error: float
    factor: float


@dataclasses.dataclass(frozen=True)
class Net:
    """A network, and how it is made smaller.

    Attributes:
        make: the dense network.
        recipes: by their names.
    """

    make: Callable[[], keras.Model]
    recipes: dict[str, Recipe]


@dataclasses.dataclass(frozen=True)
class Result:
    """One network, made smaller.

    Attributes:
        error: in percent, of what was read from the file.
        kept: weights that are not zero, biases among them.
        factor: how many times smaller, as the recipe counts.
        report: of the file.
    """

    error: float
    kept: int
    factor: float
    report: Any


NETS = {
    "lenet-300-100": Net(
        lenet,
        {
            "coded": Recipe(True, (100, 60), 9000, (6, 12), 1.58, 60.0),
            "zeros": Recipe(False, (50, 40), 2560, (20, 40), 1.9, 100.0),
        },
    ),
    "lenet-5": Net(
        lenet5,
        {
            "coded": Recipe(True, (12, 30, 120), 20_000, (6, 16), 0.74, 50.0),
            "zeros": Recipe(False, (8, 18, 50), 2060, (20, 40), 0.80, 200.0),
        },
    ),
}


def narrow(model: keras.Model, widths: Sequence[int]) -> keras.Model:
    """Return the model with so many units or filters in its hidden layers, those with the largest weights."""
    hidden = [layer for layer in model.layers if layer.weights][:-1]
    units = {layer.name: width for layer, width in zip(hidden, widths, strict=True)}
    left = kp.structured.remove(
        model, {layer.name: range(units[layer.name], layer.bias.shape[0]) for layer in hidden}
    ).after
    share = left.params / model.count_params()
    return kp.structured.plan(model, params=share + 1e-9, importance="l2", min_width=units).apply()


def pruned(model: keras.Model, recipe: Recipe, data: Shifted, scored: npt.NDArray[np.uint8]) -> keras.Model:
    """Return the network without the units and weights that go, trained.

    Args:
        model: the dense network; it stays as it is.
        recipe: says what stays.
        data: to train on.
        scored: pictures that activations are measured on at each update of the masks.
    """
    model = narrow(model, recipe.widths)
    total = sum(math.prod(layer.kernel.shape) for layer in model.layers if layer.weights)
    schedule = kp.schedules.PolynomialDecay(
        0.0, 1.0 - recipe.weights / total, begin_step=0, end_step=recipe.epochs[0] * len(data), frequency=100
    )
    # By magnitude alone, weights on pixels that are always black would stay as they were drawn.
    criterion = kp.criteria.Activation(data=scaled(scored))
    fit(model, data, sum(recipe.epochs), RATE, [kp.Pruning(schedule, criterion, allocation="lamp")], STEPS)
    return kp.structured.shrink(kp.strip(model))


def shared(model: keras.Model, data: Shifted, seed: int) -> keras.Model:
    """Return the network with few values in each kernel, trained."""
    fit(model, data, SHARING, RATE / 10, [kp.WeightSharing(VALUES, seed=seed)], STEPS)
    return kp.strip(model)


def written(model: keras.Model) -> tuple[keras.Model, Any]:
    """Write a network; return what is read from the file, and the report."""
    with tempfile.TemporaryDirectory() as folder:
        report = kp.save_kpz(model, Path(folder, "model.kpz"))
        return kp.load_kpz(Path(folder, "model.kpz")), report


def run(net: Net, names: Sequence[str], images: Images, seed: int, *, choose: bool) -> Iterator[tuple[str, Result]]:
    """Train the dense network, and make it smaller by each recipe of these names."""
    x, y, x_test, y_test = images.x_train, images.y_train, images.x_test, images.y_test
    if choose:
        x, y, x_test, y_test = x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]
    keras.utils.set_random_seed(seed)
    dense = net.make()
    fit(dense, Shifted(x, y, seed), DENSE_EPOCHS, DENSE_RATE, [], STEPS)
    data = Taught(x, y, seed, dense)
    whole = dense.count_params()
    for name in names:
        recipe = net.recipes[name]
        model = pruned(dense, recipe, data, x[:SCORED])
        if recipe.coded:
            model = shared(model, data, seed)
        loaded, report = written(model)
        kept = sum(int(np.count_nonzero(weight)) for weight in loaded.get_weights())
        factor = 4 * whole / report.total if recipe.coded else whole / kept
        yield name, Result(error(loaded, x_test, y_test), kept, factor, report)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.deep_compression", description=(__doc__ or "").split("\n")[0]
    )
    names = ("coded", "zeros")
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--recipes", nargs="+", choices=names, default=names, help="one of them, or both")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--choose", action="store_true", help="hold 5,000 training samples out, for the error")
    options = parser.parse_args(arguments)
    images = mnist()
    rows = []
    for name in options.nets:
        results: dict[str, list[Result]] = {recipe: [] for recipe in options.recipes}
        for seed in options.seeds:
            start = time.perf_counter()
            for recipe, result in run(NETS[name], options.recipes, images, seed, choose=options.choose):
                results[recipe].append(result)
                row = [f"{name}, {recipe}, seed {seed}", *cells(result)]
                print(*row, f"{time.perf_counter() - start:.0f} s", result.report, sep="\n", flush=True)
                rows.append(row)
        for recipe, found in results.items():
            rows += summary(f"{name}, {recipe}", NETS[name].recipes[recipe], found)
    where = f"{HELD_OUT:,} held-out training samples" if options.choose else "test set of 10,000"
    print_table(
        "MNIST",
        ["network, recipe", "error, %", "not zero", "file, bytes", "times smaller"],
        rows,
        f"Error on the {where}. Times smaller: for coded, 4 bytes for each weight of the dense network / bytes of the "
        "file; for zeros, its weights / weights not zero.\n" + machine("keras", "tensorflow", "numpy", "bitarray"),
    )
    return 0


def cells(result: Result) -> list[str]:
    """Return what the table says of a result."""
    return [f"{result.error:.2f}", f"{result.kept:,}", f"{result.report.total:,}", f"{result.factor:.1f}"]


def summary(title: str, recipe: Recipe, results: Sequence[Result]) -> list[list[str]]:
    """Return the rows of the mean, and of what was asked."""
    wrong = statistics.mean(result.error for result in results)
    factor = statistics.mean(result.factor for result in results)
    met = verdict(wrong, recipe.error), verdict(-factor, -recipe.factor)
    return [
        [f"{title}, mean of {len(results)}", f"{wrong:.3f}", "", "", f"{factor:.1f}"],
        ["asked", f"<= {recipe.error} {met[0]}", "", "", f">= {recipe.factor:g} {met[1]}"],
    ]


if __name__ == "__main__":
    sys.exit(main())
