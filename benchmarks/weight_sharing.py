"""Shared weights: accuracy against the number of values and where k-means begins, at once and trained.

    python -m benchmarks.weight_sharing
    python -m benchmarks.weight_sharing --samples 6000 --dense-epochs 4      the figures of docs/design/sharing.md

A small convolutional network on Fashion-MNIST is trained once for each seed. For each number of values (zero counted)
and each start, the weights of a copy share values by `kp.share`, one codebook for each kernel; "once" is its accuracy
on the test set then, "trained" after `--epochs` with `kp.WeightSharing`. Means over the seeds.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl
from numpy.typing import NDArray

import keras_prune as kp
from benchmarks.data import fashion_mnist
from benchmarks.timing import machine, print_table

VALUES = (2, 4, 8, 16, 32)
STARTS = ("linear", "density", "random", "k-means++")
BATCH = 128
RATE = 1e-3

Split = tuple[NDArray[np.float32], NDArray[np.int32]]


def network() -> keras.Model:
    """Return two convolutions and two Dense layers, some 30,000 weights."""
    net = [keras.Input((28, 28, 1)), kl.Conv2D(8, 3, strides=2, activation="relu")]
    net += [kl.Conv2D(16, 3, strides=2, activation="relu"), kl.Flatten(), kl.Dense(48, "relu"), kl.Dense(10)]
    return keras.Sequential(net)


def compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss, metrics=["accuracy"])
    return model


def accuracy(model: keras.Model, test: Split) -> float:
    found = model.predict_on_batch(test[0]).argmax(axis=-1)
    return float(np.mean(found == test[1]))


def measure(
    weights: Sequence[NDArray[np.float32]], values: int, start: str, train: Split, test: Split, epochs: int, seed: int
) -> tuple[float, float]:
    """Return the accuracy of a trained network's weights that share values, at once and trained on."""
    keras.utils.set_random_seed(seed)
    model = compiled(network())
    model.set_weights(weights)
    once = accuracy(kp.share(model, values, start, seed=seed), test)
    sharing = kp.WeightSharing(values, start, seed=seed)
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[sharing])
    if max(sharing.values.values()) > values:
        raise AssertionError(f"a kernel has more than {values} values: {sharing.values}")
    return once, accuracy(model, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--dense-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=(1,))
    parser.add_argument("--values", type=int, nargs="+", default=VALUES)
    options = parser.parse_args()
    images = fashion_mnist()
    train, test = (
        ((x[..., None] / 255).astype("float32"), y.astype("int32"))
        for x, y in ((images.x_train, images.y_train), (images.x_test, images.y_test))
    )
    train = (train[0][: options.samples], train[1][: options.samples])
    dense, found = [], {}
    for seed in options.seeds:
        keras.utils.set_random_seed(seed)
        model = compiled(network())
        model.fit(*train, batch_size=BATCH, epochs=options.dense_epochs, verbose=0)
        dense.append(accuracy(model, test))
        for values in options.values:
            for start in STARTS:
                case = measure(model.get_weights(), values, start, train, test, options.epochs, seed)
                found.setdefault((values, start), []).append(case)
    rows = []
    for values in options.values:
        means = [[statistics.mean(each) for each in zip(*found[values, start], strict=True)] for start in STARTS]
        rows.append([str(values), *(f"{once:.3f} / {trained:.3f}" for once, trained in means)])
    print_table("accuracy, once / trained", ["values", *STARTS], rows, machine("tensorflow", "keras", "scikit-learn"))
    print(f"dense: {statistics.mean(dense):.3f}; {options}")


if __name__ == "__main__":
    main()
