"""Pruned, trained quantization-aware and written as int8: accuracy of the files beside the dense float network.

    python -m benchmarks.quantization_aware --seeds 0 1 2
    python -m benchmarks.quantization_aware --nets cnn --seeds 0

Two networks on Fashion-MNIST: a small CNN with batch normalizations, and an LSTM that reads a picture row by row. Each
is trained dense, pruned to 90 % zeros by `kp.Pruning` with LAMP's shares, then made quantization-aware by
`kp.quantize_aware` and trained further. Accuracy is that of the written files in LiteRT, on all 10,000 test pictures:
dense and pruned in float32, the pruned one as int8 with calibrated ranges (post-training), and the one that was trained
quantization-aware. Asked: the last is at most 0.5 points below the dense float file, and 0.2 points from its own Keras
model. Zeros are counted in the int8 kernels of the last file.
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
from tflite_export import export
from tflite_export.file import flatbuffer
from tflite_export.runtimes.litert import LiteRTSession

SPARSITY = 0.9
DROP, APART = 0.5, 0.2
"""Points that the int8 file may be below the dense float file, and from its own Keras model."""
CALIBRATION = 256
PLAIN = kp.Device("plain", densify=False)
"""Dense storage: what is compared is numbers, and these are the same in any storage."""

Floats = npt.NDArray[np.float32]


def cnn() -> keras.Model:
    """Three convolutions with batch normalizations and a Dense: 93,728 kernel weights."""
    net = keras.Sequential([keras.Input((28, 28), name="x"), kl.Reshape((28, 28, 1))])
    for filters, strides in ((32, 2), (64, 2), (128, 1)):
        net.add(kl.Conv2D(filters, 3, strides, "same", use_bias=False))
        net.add(kl.BatchNormalization(momentum=0.9))
        net.add(kl.ReLU())
    net.add(kl.GlobalAveragePooling2D())
    net.add(kl.Dense(10))
    return net


def lstm() -> keras.Model:
    """An LSTM of 128 units over 28 rows of 28 pixels, and a Dense: 81,152 kernel weights."""
    return keras.Sequential([keras.Input((28, 28), name="x"), kl.LSTM(128), kl.Dense(10)])


NETS: dict[str, Callable[[], keras.Model]] = {"cnn": cnn, "lstm": lstm}


def unrolled(model: keras.Model) -> keras.Model:
    """Return a copy whose LSTM is unrolled, as int8 files need it; it is trained in a loop, which is faster."""

    def clone(layer: keras.Layer) -> keras.Layer:
        options = {"unroll": True} if isinstance(layer, kl.LSTM) else {}
        return type(layer).from_config({**layer.get_config(), **options})

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def fit(model: keras.Model, x: Floats, y: Any, epochs: int, rate: float, batch: int, callbacks: list[Any]) -> None:
    """Train by Adam, with a cosine decay of the learning rate."""
    decay = keras.optimizers.schedules.CosineDecay(rate, max(1, epochs * (len(x) // batch)))
    model.compile(keras.optimizers.Adam(decay), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=callbacks)


def written(model: keras.Model, quantize: str | None, x: Floats) -> bytes:
    """Return the file that a model is exported to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        export(model, path, quantize=quantize, data=x[:CALIBRATION], batch_size=1, target=PLAIN)
        return path.read_bytes()


def accuracy(file: bytes, images: Images) -> float:
    """Return the accuracy of a file in LiteRT on the test pictures, in percent."""
    (answers,) = LiteRTSession(file).run([scaled(images.x_test)], ["x"], ["output_0"], 1)
    return 100.0 * float(np.mean(answers.argmax(-1) == images.y_test))


def scaled(pictures: npt.NDArray[np.uint8]) -> Floats:
    """Return pixels in [0, 1]."""
    return pictures.astype(np.float32) / np.float32(255)


def zeros(file: bytes) -> float:
    """Return the share of zeros in the int8 kernels of a file, those with a scale for each channel."""
    model = flatbuffer.read(file)
    kernels = {
        tensor.buffer: np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8)
        for tensor in model.subgraphs[0].tensors
        if tensor.quantization is not None
        and tensor.quantization.scale is not None
        and len(tensor.quantization.scale) > 1
        and len(tensor.shape) > 1
    }
    return sum(int((k == 0).sum()) for k in kernels.values()) / sum(k.size for k in kernels.values())


def measure(name: str, images: Images, seed: int, options: argparse.Namespace) -> tuple[float, ...]:
    """Train, prune, quantize and write.

    Returns:
        Accuracy in percent: the files of the dense and the pruned float network, of the pruned one as int8, of the one
        trained quantization-aware, and that one's Keras model; the share of zeros in its file.
    """
    keras.utils.set_random_seed(seed)
    drawn = np.random.default_rng(seed).permutation(len(images.x_train))[: options.images]
    x, y = scaled(images.x_train[drawn]), images.y_train[drawn].astype(np.int32)
    model = NETS[name]()
    dense, pruning, aware = options.epochs
    fit(model, x, y, dense, 2e-3, options.batch, [])
    found = [accuracy(written(model, None, x), images)]
    fit(model, x, y, pruning, 2e-3, options.batch, [kp.Pruning(SPARSITY, allocation=options.allocation)])
    model = unrolled(kp.strip(model))
    found += [accuracy(written(model, quantize, x), images) for quantize in (None, "int8")]
    model = kp.quantize_aware(model, data=x[:CALIBRATION])
    fit(model, x, y, aware, 5e-4, options.batch, [])
    file = written(model, "int8", x)
    answers = model.predict(scaled(images.x_test), batch_size=500, verbose=0)
    own = 100.0 * float(np.mean(answers.argmax(-1) == images.y_test))
    return (*found, accuracy(file, images), own, zeros(file))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.quantization_aware", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=60_000, help="training pictures")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, nargs=3, default=[6, 12, 3], help="dense, pruning, quantization-aware")
    parser.add_argument("--allocation", default="lamp", help="how the zeros are shared out between the kernels")
    options = parser.parse_args(arguments)
    images = fashion_mnist()
    rows, met = [], True
    for name in options.nets:
        found = []
        for seed in options.seeds:
            start = time.perf_counter()
            found.append(measure(name, images, seed, options))
            cells = [f"{value:.2f}" for value in found[-1][:5]]
            took = f"{time.perf_counter() - start:.0f} s"
            rows.append([f"{name}, seed {seed}", *cells, f"{found[-1][5]:.4f}", took])
            print(*rows[-1], sep="  ", flush=True)
        mean = [statistics.mean(column) for column in zip(*found, strict=True)]
        rows.append([f"{name}, mean of {len(found)}", *(f"{value:.2f}" for value in mean[:5]), f"{mean[5]:.4f}", ""])
        apart = max(abs(each[3] - each[4]) for each in found)
        rows.append(
            [
                "asked",
                *("", "", ""),
                f">= dense - {DROP} {verdict(mean[0] - mean[3], DROP)}",
                f"file +- {APART} {verdict(apart, APART)}",
                f">= {SPARSITY} {verdict(SPARSITY - min(each[5] for each in found), 1e-4)}",
                "",
            ]
        )
        met = met and mean[0] - mean[3] <= DROP and apart <= APART
    print_table(
        f"Fashion-MNIST, {SPARSITY:.0%} zeros".replace("%", " %"),
        ["network", "dense", "pruned", "int8 after training", "int8 trained", "its Keras model", "zeros", "took"],
        rows,
        "Accuracy in percent on 10,000 test pictures; dense, pruned and int8 are files in LiteRT.\n"
        + machine("keras", "tensorflow", "ai-edge-litert", "numpy"),
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
