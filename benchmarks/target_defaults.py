r"""What a target makes of a network by default: 80 % zeros while `fit` trains on, then accuracy and time beside dense.

    tflite-export install web                        once: LiteRT.js, by npm
    python -m benchmarks.target_defaults             three networks
    python -m benchmarks.target_defaults --quick     no accuracy to speak of: that all of it runs

Each network is trained dense on a part of Fashion-MNIST, then copied and trained on with `kp.Pruning(0.8,
target="web")`, everything else left at its default: which tensors, how much each, and when. Both are exported by
`tflite_export.export(target="web")` and run in turn in Node with relaxed SIMD, on one thread; the ratio is the median
over the rounds of dense / pruned. Accuracy is that of the files, on 10,000 test pictures or as many as asked for.

1. MobileNetV2 of keras.applications, 0.35 as wide, 96 pixels.
2. Like EfficientNet: inverted residuals with squeeze-and-excitation and swish, 48 pixels.
3. A residual network of bottlenecks, whose 3x3 convolutions keep sparse inference off: the warning says so.

A number that is missed says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers as kl

import keras_prune as kp
import tflite_export as tx
from benchmarks.data import Images, fashion_mnist
from benchmarks.timing import machine, print_table, verdict
from tflite_export.runtimes.litertjs import VERSION

SPARSITY = 0.8
ASKED_POINTS = 1.0
ASKED_TIMES = {"MobileNetV2": 1.6}
RUNS_SPARSE = ("MobileNetV2", "like EfficientNet")
BATCH = 64
RATE, RATE_ON = 2e-3, 1e-3


def mobile_net() -> keras.Model:
    """MobileNetV2, its averages of statistics fast enough for a few epochs."""
    model = keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            layer.momentum = 0.9
    return model


def efficient_net() -> keras.Model:
    """Seven inverted residuals with squeeze-and-excitation."""
    image = keras.Input((48, 48, 3))
    x = kl.Activation("swish")(_convolved(image, 16, 3, 2))
    for width, expansion, size, stride, number in (
        (16, 1, 3, 1, 1),
        (24, 6, 3, 2, 2),
        (40, 6, 5, 2, 2),
        (80, 6, 3, 2, 2),
    ):
        for block in range(number):
            x = _inverted(x, width, expansion, size, stride if block == 0 else 1)
    x = kl.Activation("swish")(_convolved(x, 320, 1, 1))
    return keras.Model(image, kl.Dense(10)(kl.Dropout(0.2)(kl.GlobalAveragePooling2D()(x))))


def residual_net() -> keras.Model:
    """Six bottlenecks of 1x1, 3x3 and 1x1 convolutions."""
    image = keras.Input((32, 32, 3))
    x = kl.ReLU()(_convolved(image, 32, 3, 2))
    for width, stride in ((32, 1), (48, 2), (64, 2)):
        for block in range(2):
            step = stride if block == 0 else 1
            y = kl.ReLU()(_convolved(x, width, 1, 1))
            y = _convolved(kl.ReLU()(_convolved(y, width, 3, step)), 4 * width, 1, 1)
            x = kl.ReLU()(kl.Add()([y, x if block else _convolved(x, 4 * width, 1, step)]))
    return keras.Model(image, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def _convolved(x: Any, width: int, size: int, stride: int) -> Any:
    return kl.BatchNormalization(momentum=0.9)(kl.Conv2D(width, size, stride, "same", use_bias=False)(x))


def _inverted(x: Any, width: int, expansion: int, size: int, stride: int) -> Any:
    given = x.shape[-1]
    y = kl.Activation("swish")(_convolved(x, given * expansion, 1, 1)) if expansion > 1 else x
    y = kl.BatchNormalization(momentum=0.9)(kl.DepthwiseConv2D(size, stride, "same", use_bias=False)(y))
    y = kl.Activation("swish")(y)
    squeezed = kl.Conv2D(max(1, given // 4), 1, activation="swish")(kl.GlobalAveragePooling2D(keepdims=True)(y))
    y = kl.Multiply()([y, kl.Conv2D(y.shape[-1], 1, activation="sigmoid")(squeezed)])
    y = _convolved(y, width, 1, 1)
    return kl.Add()([x, y]) if stride == 1 and given == width else y


NETS: dict[str, Callable[[], keras.Model]] = {
    "MobileNetV2": mobile_net,
    "like EfficientNet": efficient_net,
    "residual": residual_net,
}


def pictures(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float32]:
    """Return pictures as `[n, size, size, 3]`, in [-1, 1]."""
    scaled = tf.image.resize(pixels[..., np.newaxis] / np.float32(127.5) - 1.0, (size, size)).numpy()
    return np.repeat(scaled, 3, axis=-1)


def train(model: keras.Model, x: Any, y: Any, epochs: int, rate: float, callbacks: list[Any]) -> None:
    """Train by Adam, its rate falling to zero along a cosine."""
    steps = epochs * -(-len(x) // BATCH)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)


def accuracy(model: keras.Model, x: Any, y: Any) -> float:
    """Return the share of right answers in percent."""
    return 100.0 * float(np.mean(model.predict(x, batch_size=250, verbose=0).argmax(axis=-1) == y))


def measure(name: str, images: Images, options: argparse.Namespace) -> tuple[list[str], bool]:
    """Return a row of the table, and whether what is asked of the network is met."""
    keras.utils.set_random_seed(options.seed)
    start = time.perf_counter()
    dense = NETS[name]()
    size = dense.input_shape[1]
    chosen = np.random.default_rng(options.seed).permutation(len(images.x_train))[: options.images]
    x, y = pictures(images.x_train[chosen], size), images.y_train[chosen].astype(np.int32)
    tested, answers = pictures(images.x_test[: options.tests], size), images.y_test[: options.tests]
    train(dense, x, y, options.epochs, RATE, [])
    before = accuracy(dense, tested, answers)
    print(f"{name}, {time.perf_counter() - start:.0f} s: dense {before:.2f} %", flush=True)
    pruned = keras.models.clone_model(dense)
    pruned.set_weights(dense.get_weights())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(pruned, x, y, options.on, RATE_ON, [kp.Pruning(SPARSITY, target="web")])
    for warning in caught:
        if "target='web'" in str(warning.message):
            print(f"{name}: {warning.message}", flush=True)
    after = accuracy(pruned, tested, answers)
    print(f"{name}, {time.perf_counter() - start:.0f} s: pruned {after:.2f} %", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{kind}.tflite" for kind in ("dense", "pruned")]
        for model, path in zip((dense, pruned), paths, strict=True):
            tx.export(model, path, target="web", data=tested[:4], batch_size=1)
        sparse = tx.inspect(paths[1], target="web").runs_sparse
        first, second = tx.benchmark(*paths, runtime="web", rounds=options.rounds, data=tested[:1]).timings
    least, points = ASKED_TIMES.get(name), before - after
    met = [verdict(points, ASKED_POINTS)] + ([verdict(-second.ratio, -least)] if least else [])
    if name in RUNS_SPARSE and not sparse:
        met.append("MISSED")
    times = f"{second.ratio:.2f} x" + (f" (asked {least} x)" if least else "")
    cells = [f"{before:.2f}", f"{after:.2f}", f"{points:+.2f}", "on" if sparse else "off"]
    done = "MISSED" if "MISSED" in met else "met"
    return [name, *cells, f"{first.median:.2f}", f"{second.median:.2f}", times, done], done == "met"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.target_defaults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--images", type=int, default=8000, help="of the 60,000 for training, drawn by seed")
    parser.add_argument("--tests", type=int, default=10000, help="of the 10,000 for testing")
    parser.add_argument("--epochs", type=int, default=8, help="of dense training")
    parser.add_argument("--on", type=int, default=10, help="epochs of training on, in which it is pruned")
    parser.add_argument("--rounds", type=int, default=200, help="timed runs of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="640 images, 200 tests, an epoch each, 20 rounds")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.tests, options.epochs, options.on, options.rounds = 640, 200, 1, 1, 20
    images = fashion_mnist()
    rows, met = [], True
    for name in options.nets:
        row, fine = measure(name, images, options)
        rows.append(row)
        met = met and fine
        print(*row, sep="  ", flush=True)
    columns = [f"network, {SPARSITY:.0%} zeros", "dense, %", "pruned, %", "lost", "sparse inference"]
    columns += ["dense, ms", "pruned, ms", "faster", ""]
    caption = (
        f"{options.images:,} of 60,000 training images, {options.epochs} epochs dense and {options.on} on; at most "
        f"{ASKED_POINTS:g} point lost. Node, relaxed SIMD, batch 1, one thread.\n"
    )
    caption += machine("tensorflow", "keras", "ai-edge-litert") + f"; LiteRT.js {VERSION}"
    print_table("A target's defaults on Fashion-MNIST", columns, rows, caption)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
