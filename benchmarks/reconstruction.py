"""What is kept after pruning, solved again without training: accuracy with and without, on two convolutional networks.

    python -m benchmarks.reconstruction
    python -m benchmarks.reconstruction --seeds 0 --sparsities 0.9

Each network is trained on a part of Fashion-MNIST. Copies are pruned by `kp.prune` at once, and measured as they are,
with the statistics of batch normalisation estimated again (`kp.recalibrate`), with what is kept solved again
(`reconstruct=`), and with both, on 1,024 training pictures without their labels. Accuracy is that of the Keras model on
test pictures that nothing else has seen; the mean over the seeds. A number that is missed says so.
"""

from __future__ import annotations

import argparse
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
from benchmarks.data import Images, fashion_mnist
from benchmarks.timing import machine, print_table, verdict

CALIBRATION = 1024
ASKED = {0.8: 0.97, 0.9: 0.66}
"""Least share of the dense accuracy that is left, by sparsity."""


def with_batch_norm() -> keras.Model:
    """Four 3x3 convolutions, each batch-normalised: 64,000 weights."""
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for filters, strides in ((16, 1), (32, 2), (64, 2), (64, 1)):
        x = kl.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
        x = kl.ReLU()(kl.BatchNormalization(momentum=0.9)(x))  # the default needs thousands of steps
    return keras.Model(inputs, kl.Dense(10)(kl.Dense(64, "relu")(kl.GlobalAveragePooling2D()(x))))


def without() -> keras.Model:
    """Three 3x3 convolutions with biases, and two Dense layers: 225,000 weights."""
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        x = kl.Conv2D(filters, 3, strides, "same", activation="relu")(x)
    return keras.Model(inputs, kl.Dense(10)(kl.Dense(64, "relu")(kl.Flatten()(x))))


NETS: dict[str, Callable[[], keras.Model]] = {"batch norm": with_batch_norm, "plain": without}

WAYS: dict[str, dict[str, Any]] = {
    "unstructured, global": {},
    "unstructured, uniform": {"allocation": "uniform"},
    "by activations (Wanda), uniform": {"allocation": "uniform", "activations": True},
    "2:4": {"pattern": kp.patterns.NofM(2, 4), "allocation": "uniform", "sparsities": (0.5,)},
    "4x1 blocks, global": {"pattern": kp.patterns.Block(4, 1), "sparsities": (0.75,)},
}


def pictures(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return pictures as `[n, 28, 28, 1]`, in [0, 1]."""
    return pixels[..., np.newaxis].astype(np.float32) / 255


def accuracies(
    path: Path, sparsity: float, way: dict[str, Any], x: npt.NDArray[np.float32], test: tuple[Any, Any]
) -> tuple[float, ...]:
    """Return the accuracy as pruned, recalibrated, reconstructed, with both, and the seconds of a reconstruction."""
    found = []
    options = {key: value for key, value in way.items() if key not in ("sparsities", "activations")}
    if "activations" in way:
        options["criterion"] = kp.criteria.Activation(data=x)
    scope = kp.Scope(exclude=_unfit(path)) if "pattern" in way else None
    for recalibrate, reconstruct in ((False, None), (True, None), (False, x), (True, x)):
        model = keras.models.load_model(path)
        start = time.perf_counter()
        kp.prune(model, sparsity, scope=scope, reconstruct=reconstruct, **options)
        took = time.perf_counter() - start
        if recalibrate:
            kp.recalibrate(model, x)
        found.append(_accuracy(model, *test))
    return *found, took


def _unfit(path: Path) -> list[str]:
    """The kernels whose inputs do not divide into fours."""
    return [
        target.path
        for target in kp.Scope().survey(keras.models.load_model(path)).targets
        if target.layout.canonical_shape(target.variable.shape)[-2] % 4
    ]


def _accuracy(model: keras.Model, x: Any, y: Any) -> float:
    return float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(axis=-1) == y))


def measure(name: str, images: Images, options: argparse.Namespace) -> tuple[list[list[str]], bool]:
    """Return the rows of a network, and whether what is asked of it is met."""
    cases = [(way, s) for way, given in WAYS.items() for s in given.get("sparsities", options.sparsities)]
    found: dict[tuple[str, float], list[tuple[float, ...]]] = {case: [] for case in cases}
    for seed in options.seeds:
        keras.utils.set_random_seed(seed)
        chosen = np.random.default_rng(seed).permutation(len(images.x_train))[: options.images]
        x, y = pictures(images.x_train[chosen]), images.y_train[chosen].astype(np.int32)
        test = pictures(images.x_test[: options.tests]), images.y_test[: options.tests]
        model = NETS[name]()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, batch_size=128, epochs=options.epochs, verbose=0)
        dense = _accuracy(model, *test)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dense.keras"
            model.save(path)
            for way, sparsity in cases:
                taken = accuracies(path, sparsity, WAYS[way], x[:CALIBRATION], test)
                found[way, sparsity].append((dense, *taken))
                print(name, f"seed {seed}", way, sparsity, *(f"{value:.3f}" for value in (dense, *taken)), flush=True)
    rows, met = [], True
    for (way, sparsity), values in found.items():
        dense, pruned, again, solved, both, seconds = (statistics.mean(column) for column in zip(*values, strict=True))
        asked = ASKED.get(sparsity) if way == "unstructured, global" else None
        word = "" if asked is None else verdict(-solved / dense, -asked)
        met = met and word != "MISSED"
        cells = [f"{value:.3f}" for value in (dense, pruned, again, solved, both)]
        rows.append([f"{name}, {way}, {sparsity:.0%}", *cells, f"{solved / dense:.3f}", f"{seconds:.0f}", word])
    return rows, met


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.reconstruction", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--sparsities", nargs="+", type=float, default=(0.8, 0.9))
    parser.add_argument("--images", type=int, default=12_000, help="of the 60,000 for training, drawn by seed")
    parser.add_argument("--tests", type=int, default=10_000, help="of the 10,000 for testing")
    parser.add_argument("--epochs", type=int, default=5, help="of dense training")
    options = parser.parse_args(arguments)
    images = fashion_mnist()
    rows, met = [], True
    for name in options.nets:
        own, fine = measure(name, images, options)
        rows += own
        met = met and fine
    columns = [
        "network, pattern, zeros",
        "dense",
        "pruned",
        "recalibrated",
        "reconstructed",
        "both",
        "of dense",
        "s",
        "",
    ]
    caption = (
        f"Accuracy, mean of seeds {', '.join(map(str, options.seeds))}; {options.images:,} training images, "
        f"{options.epochs} epochs; {CALIBRATION} of them, without labels, to solve on.\n"
    )
    print_table("Pruned at once, without training", columns, rows, caption + machine("tensorflow", "keras"))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
