"""Methods that prune while they train, at high sparsity: accuracy at equal training steps, the mean of several seeds.

    python -m benchmarks.high_sparsity
    python -m benchmarks.high_sparsity --quick
    python -m benchmarks.high_sparsity --nets dense --sparsities 0.95 --images 12000 --epochs 10

Two networks are trained from the start on Fashion-MNIST by momentum SGD with a cosine decay of the learning rate, and
pruned on the way: by gradual magnitude pruning (`kp.Pruning`), network surgery and RigL (`kp.DynamicPruning`), ST-3
(`kp.SoftThreshold`) and AC/DC (`kp.Alternating`). All of a seed begin with the same weights, see the same batches and
make the same number of steps. Accuracy is that of the Keras model, stripped, on the test pictures, in percent. The last
line says whether the best is at least 0.3 points above gradual magnitude pruning at 95 %, or that none is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl

import keras_prune as kp
from benchmarks.data import Images, fashion_mnist
from benchmarks.timing import machine, print_table

ASKED, AT = 0.3, 0.95
"""Points that the best should be above gradual magnitude pruning, and the sparsity at which that is asked."""
BASE = "gradual magnitude"


def dense() -> keras.Model:
    """LeNet-300-100: 266,000 weights."""
    return keras.Sequential(
        [keras.Input((28, 28, 1)), kl.Flatten(), kl.Dense(300, "relu"), kl.Dense(100, "relu"), kl.Dense(10)]
    )


def residual() -> keras.Model:
    """A ResNet of three blocks, 16, 32 and 64 wide, on maps of 14, 7 and 4: 77,000 weights."""
    inputs = keras.Input((28, 28, 1))
    x = _normalised(inputs, 16, 2, relu=True)
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        path = _normalised(_normalised(x, filters, strides, relu=True), filters, 1)
        if strides > 1:
            x = _normalised(x, filters, strides, size=1)
        x = kl.ReLU()(kl.Add()([x, path]))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def _normalised(x: Any, filters: int, strides: int, size: int = 3, relu: bool = False) -> Any:
    x = kl.BatchNormalization(momentum=0.9)(kl.Conv2D(filters, size, strides, "same", use_bias=False)(x))
    return kl.ReLU()(x) if relu else x


NETS: dict[str, Callable[[], keras.Model]] = {"dense": dense, "residual": residual}

METHODS: dict[str, Callable[[float], keras.callbacks.Callback]] = {
    BASE: kp.Pruning,
    "surgery": lambda sparsity: kp.DynamicPruning(sparsity, "surgery", allocation="global"),
    "RigL": lambda sparsity: kp.DynamicPruning(
        kp.schedules.ConstantSparsity(sparsity, begin_step=1, end="75%"), "rigl"
    ),
    "ST-3": kp.SoftThreshold,
    "AC/DC": kp.Alternating,
}


def accuracy(
    name: str, method: str | None, sparsity: float, seed: int, images: Images, options: argparse.Namespace
) -> float:
    """Return the test accuracy in percent of a network that was trained and pruned; None trains it dense."""
    keras.utils.set_random_seed(seed)
    drawn = np.random.default_rng(seed).permutation(len(images.x_train))[: options.images]
    x, y = images.x_train[drawn, ..., np.newaxis].astype(np.float32) / 255, images.y_train[drawn].astype(np.int32)
    model = NETS[name]()
    steps = options.epochs * (len(x) // options.batch)
    rate = keras.optimizers.schedules.CosineDecay(options.rate, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    callbacks = [] if method is None else [METHODS[method](sparsity)]
    whole = options.batch * (len(x) // options.batch)
    model.fit(x[:whole], y[:whole], batch_size=options.batch, epochs=options.epochs, verbose=0, callbacks=callbacks)
    if method is not None:
        model = kp.strip(model)
        found = kp.report(model).sparsity
        # Of a small tensor, the nearest whole number of weights.
        if found < sparsity - 1e-3:
            raise RuntimeError(f"{method} on {name} came to a sparsity of {found:.4f}, not to {sparsity}.")
    answers = model.predict(images.x_test[..., np.newaxis].astype(np.float32) / 255, batch_size=500, verbose=0)
    return 100.0 * float(np.mean(answers.argmax(axis=-1) == images.y_test))


Found = Mapping[tuple[str, float, str], Sequence[float]]


def rows_of(found: Found) -> list[list[str]]:
    """Return a row for each network, sparsity and method: mean, deviation, distance to gradual magnitude pruning.

    Args:
        found: accuracies in percent, one a seed; the same seeds for all.

    Example:
        >>> rows_of({("a", 0.9, BASE): [80.0, 82.0], ("a", 0.9, "ST-3"): [82.0, 83.0]})[1]
        ['a, 90 %, ST-3', '82.50', '0.71', '+1.50', '0.71']
    """
    rows = []
    for (name, sparsity, method), values in found.items():
        above = _above(found, name, sparsity, method)
        cells = [f"{statistics.mean(values):.2f}", _deviation(values), f"{statistics.mean(above):+.2f}"]
        rows.append([f"{name}, {sparsity:.0%}, {method}".replace("%", " %"), *cells, _deviation(above)])
    return rows


def _above(found: Found, name: str, sparsity: float, method: str) -> list[float]:
    """Return by how many points a method is above gradual magnitude pruning, seed by seed."""
    return [a - b for a, b in zip(found[name, sparsity, method], found[name, sparsity, BASE], strict=True)]


def _deviation(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""


def closing(found: Found) -> str:
    """Say, for each network, which method is best at 95 % and whether it is as far above as asked.

    Example:
        >>> print(closing({("a", 0.95, BASE): [80.0], ("a", 0.95, "ST-3"): [80.2], ("a", 0.95, "RigL"): [79.0]}))
        a at 95 %: the best is ST-3, +0.20 points above gradual magnitude; none is at least 0.3 points above.
    """
    lines = []
    for name in dict.fromkeys(name for name, _, _ in found):
        others = [method for net, sparsity, method in found if (net, sparsity) == (name, AT) and method != BASE]
        if not others:
            continue
        means = {method: statistics.mean(_above(found, name, AT, method)) for method in others}
        best = max(means, key=lambda method: means[method])
        word = (
            f"at least {ASKED} points, as asked" if means[best] >= ASKED else f"none is at least {ASKED} points above"
        )
        lines.append(f"{name} at {AT * 100:.0f} %: the best is {best}, {means[best]:+.2f} points above {BASE}; {word}.")
    return "\n".join(lines) or f"Nothing was measured at {AT * 100:.0f} %."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.high_sparsity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--sparsities", nargs="+", type=float, default=(0.9, 0.95, 0.98))
    parser.add_argument("--images", type=int, default=60_000, help="of the 60,000 for training, drawn by seed")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.05, help="the learning rate at the begin")
    parser.add_argument("--quick", action="store_true", help="one network, one sparsity, one seed, a few steps")
    options = parser.parse_args(arguments)
    if options.quick:
        options.nets, options.sparsities, options.seeds = ("dense",), (AT,), (0,)
        options.images, options.epochs = 6_000, 4
    # What the others are held against is always there.
    methods = dict.fromkeys((BASE, *options.methods))
    images = fashion_mnist()
    found: dict[tuple[str, float, str], list[float]] = {}
    for name in options.nets:
        unpruned = [accuracy(name, None, 0.0, seed, images, options) for seed in options.seeds]
        print(f"{name}, dense: {statistics.mean(unpruned):.2f} (deviation {_deviation(unpruned)})", flush=True)
        for sparsity in options.sparsities:
            for method in methods:
                values = [accuracy(name, method, sparsity, seed, images, options) for seed in options.seeds]
                found[name, sparsity, method] = values
                print(name, sparsity, method, *(f"{value:.2f}" for value in values), flush=True)
    steps = options.epochs * (options.images // options.batch)
    print_table(
        f"Accuracy in percent after {steps} steps, mean of {len(options.seeds)} seeds",
        ("network, sparsity, method", "accuracy", "deviation", f"above {BASE}", "deviation"),
        rows_of(found),
        machine("keras", "tensorflow"),
    )
    print(closing(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
