"""ResNet-56 on Fashion-MNIST at 2.1 times fewer multiplications: latency in LiteRT and accuracy, beside dense.

    python -m benchmarks.resnet56            a subset of the training images, three seeds
    python -m benchmarks.resnet56 --quick    no accuracy to speak of: the latency, and that all of it runs
    python -m benchmarks.resnet56 --images 60000 --epochs 60 --retrain 40    for a machine with time to spare

The network is that of He et al. 2016, "Deep residual learning for image recognition", section 4.2: three stages of nine
blocks, 16, 32 and 64 wide, on 28 x 28 pixels; where the width changes, the shortcut is a 1x1 convolution.

For each seed a dense network is trained for `--epochs`, and copied. `kp.structured.plan` makes one copy smaller, which
is trained for `--retrain` more epochs; the other copy stays dense and is trained for as many more, in the same way. So
both have had as many epochs on the same images in all. Both are exported by `tflite_export.export`; the accuracies
compared are those of the files, at the end, on the whole test set, and the files are timed in turn, one picture at a
time, on one thread.

What is removed is chosen for XNNPACK, whose kernels here compute 16 output channels at a time, so that 17 channels cost
as much as 32: stages 2 and 3 keep multiples of 16, at least half their width; stage 1, 16 wide, keeps its residual
stream, and its blocks lose an eighth within. Which channels go is decided by the L1 norm of their weights.

Training runs in bfloat16 where `--policy` says so (the default); the networks exported are in float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl

import keras_prune as kp
from benchmarks.data import Images, fashion_mnist
from benchmarks.timing import machine, print_table, verdict
from keras_prune.structured.rules.norm import batch_norm
from tflite_export import benchmark, export

BLOCKS = 9
WIDTHS = (16, 32, 64)
BATCH = 64
RATE, RETRAINING_RATE = 0.1, 0.05
WEIGHT_DECAY = 5e-4
MEAN, DEVIATION = 0.2860, 0.3530
ASKED_MACS, ASKED_LATENCY, ASKED_POINTS = 2.1, 1.7, 0.2
ROUNDS = 1000


@keras.saving.register_keras_serializable(package="benchmarks")
class FusedBatchNormalization(kl.BatchNormalization):  # type: ignore[misc]
    """Keras's batch normalisation over the last axis, which in training runs as TensorFlow's one operation for it.

    Keras composes it of a dozen operations, which take four fifths of a ResNet's training step on a processor.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            exponential_avg_factor=1.0,
            is_training=True,
        )
        for average, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + now * (1.0 - self.momentum))
        return outputs


# A class with a `call` of its own needs a rule of its own; what it does to channels is the same.
kp.structured.rule_for(FusedBatchNormalization)(batch_norm)


def resnet56() -> keras.Model:
    """ResNet-56: 55 convolutions of 3x3, two of 1x1 on shortcuts, and a Dense layer of ten logits."""
    inputs = keras.Input((28, 28, 1))
    x = kl.ReLU()(_normalised(inputs, WIDTHS[0], 3, 1, "stem"))
    for stage, width in enumerate(WIDTHS, start=1):
        for block in range(1, BLOCKS + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            y = kl.ReLU()(_normalised(x, width, 3, stride, f"stage{stage}_block{block}_first"))
            y = _normalised(y, width, 3, 1, f"stage{stage}_block{block}_second")
            if stride == 2:
                x = _normalised(x, width, 1, 2, f"stage{stage}_shortcut")
            x = kl.ReLU()(kl.Add()([x, y]))
    # Logits stay in float32, whatever the policy.
    outputs = kl.Dense(10, name="head", dtype="float32")(kl.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="resnet56")


def _normalised(x: Any, width: int, size: int, stride: int, name: str) -> Any:
    convolution = kl.Conv2D(width, size, stride, "same", use_bias=False, kernel_initializer="he_normal", name=name)
    return FusedBatchNormalization(momentum=0.9, name=f"{name}_norm")(convolution(x))


def smaller(model: keras.Model) -> kp.structured.Plan:
    """Return the plan; see the top of the file for what it keeps, and why."""
    share, multiple = {"stem": 0.0}, {}
    for stage in range(1, len(WIDTHS) + 1):
        for block in range(1, BLOCKS + 1):
            share[f"stage{stage}_block{block}_first"] = 0.5 if stage > 1 else 0.125
            if stage > 1:
                multiple[f"stage{stage}_block{block}_first"] = 16
        if stage > 1:
            share[f"stage{stage}_shortcut"], multiple[f"stage{stage}_shortcut"] = 0.5, 16
    return kp.structured.plan(model, flops=1 / ASKED_MACS, importance="l1", max_share=share, round_to=multiple)


def scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return pixels as `[n, 28, 28, 1]`, of the training set's mean 0 and deviation 1."""
    return ((pixels[..., np.newaxis] / 255.0 - MEAN) / DEVIATION).astype(np.float32)


def batches(x: npt.NDArray[np.float32], y: npt.NDArray[np.uint8], seed: int) -> tf.data.Dataset:
    """Return batches in a new order at every epoch, half of the pictures mirrored."""
    data = tf.data.Dataset.from_tensor_slices((x, y.astype(np.int32))).shuffle(len(x), seed=seed)

    def mirrored(picture: Any, label: Any, mirror: Any) -> tuple[Any, Any]:
        return tf.where(mirror < 0.5, picture, picture[:, ::-1]), label

    drawn = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).map(
        lambda number: tf.cast(number, tf.float32) / 2.0**32
    )
    data = tf.data.Dataset.zip(data, drawn).map(lambda pair, mirror: mirrored(*pair, mirror))
    return data.batch(BATCH, drop_remainder=True)


def fit(model: keras.Model, data: tf.data.Dataset, epochs: int, rate: float) -> float:
    """Train by SGD with momentum, its rate rising for half an epoch and then falling to zero along a cosine.

    Returns:
        The mean loss of the last epoch.
    """
    warm_up = len(data) // 2
    falling = keras.optimizers.schedules.CosineDecay(
        rate / 10, epochs * len(data) - warm_up, warmup_target=rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.SGD(falling, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return float(model.fit(data, epochs=epochs, verbose=0, shuffle=False).history["loss"][-1])


def in_float32(model: keras.Model) -> keras.Model:
    """Return the model with its weights, computing in float32."""

    def copy(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    result = keras.models.clone_model(model, clone_function=copy)
    result.set_weights(model.get_weights())
    return result


def accuracy(path: Path, x: npt.NDArray[np.float32], y: npt.NDArray[np.uint8]) -> float:
    """Return the share of a file's right answers in percent."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    place, result = (io()[0]["index"] for io in (interpreter.get_input_details, interpreter.get_output_details))
    right = 0
    for picture, label in zip(x, y, strict=True):
        interpreter.set_tensor(place, picture[np.newaxis])
        interpreter.invoke()
        right += int(interpreter.get_tensor(result).argmax() == label)
    return 100.0 * right / len(x)


def measure(
    dense: keras.Model, pruned: keras.Model, x: npt.NDArray[np.float32], y: npt.NDArray[np.uint8]
) -> tuple[float, ...]:
    """Export two networks, run and time their files.

    Returns:
        Both accuracies in percent, the median times in milliseconds, and the median over the rounds of dense time /
        pruned time.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.tflite" for name in ("dense", "pruned")]
        for model, path in zip((dense, pruned), paths, strict=True):
            export(in_float32(model), path, target="x86", data=x[:4], batch_size=1)
        first, second = benchmark(*paths, threads=1, rounds=ROUNDS, data=x[:1]).timings
        return *(accuracy(path, x, y) for path in paths), first.median, second.median, second.ratio


def run(images: Images, seed: int, options: argparse.Namespace) -> tuple[float, ...]:
    """Train, copy, make smaller and train both.

    Returns:
        How many times fewer multiplications, and what `measure` returns.
    """
    keras.utils.set_random_seed(seed)
    chosen = np.random.default_rng(seed).permutation(len(images.x_train))[: options.images]
    data = batches(scaled(images.x_train[chosen]), images.y_train[chosen], seed)
    start = time.perf_counter()

    def train(model: keras.Model, name: str, epochs: int, rate: float) -> None:
        loss = fit(model, data, epochs, rate)
        print(f"seed {seed}, {time.perf_counter() - start:.0f} s: {name}, training loss {loss:.4f}", flush=True)

    dense = resnet56()
    train(dense, f"dense, {options.epochs} epochs", options.epochs, RATE)
    made = smaller(dense)
    pruned = made.apply()
    train(pruned, f"pruned, {options.retrain} epochs", options.retrain, RETRAINING_RATE)
    train(dense, f"dense, {options.retrain} more epochs", options.retrain, RETRAINING_RATE)
    return made.before.macs / made.after.macs, *measure(dense, pruned, scaled(images.x_test), images.y_test)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.resnet56", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=6000, help="of the 60,000 for training, drawn by seed")
    parser.add_argument("--epochs", type=int, default=6, help="of the dense network")
    parser.add_argument("--retrain", type=int, default=6, help="further epochs, of both networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--policy", default="mixed_bfloat16", help="of training: mixed_bfloat16 or float32")
    parser.add_argument("--threads", type=int, default=0, help="for training; 0 takes all cores")
    parser.add_argument("--quick", action="store_true", help="one seed, 640 images, one epoch each")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.epochs, options.retrain, options.seeds = 640, 1, 1, options.seeds[:1]
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    keras.config.set_dtype_policy(options.policy)
    images = fashion_mnist()
    rows, results = [], []
    for seed in options.seeds:
        results.append(run(images, seed, options))
        rows.append([f"seed {seed}", *_cells(results[-1])])
        print(*rows[-1], sep="  ", flush=True)
    means = tuple(statistics.mean(column) for column in zip(*results, strict=True))
    macs, dense, pruned, *_, faster = means
    rows.append([f"mean of {len(results)}", *_cells(means)])
    met = verdict(-macs, -ASKED_MACS), verdict(dense - pruned, ASKED_POINTS), verdict(-faster, -ASKED_LATENCY)
    asked = f">= {ASKED_MACS} x {met[0]}", f">= dense - {ASKED_POINTS} {met[1]}", f">= {ASKED_LATENCY} x {met[2]}"
    rows.append(["asked", asked[0], "", asked[1], "", "", asked[2]])
    columns = ["ResNet-56", "fewer MACs", "dense, %", "pruned, %", "dense ms", "pruned ms", "faster"]
    caption = (
        f"Trained on {options.images:,} of 60,000 images: {options.epochs} epochs dense, then {options.retrain} more "
        f"of both networks, in {options.policy}; accuracy of the files on all 10,000 test images. Latency: float32, "
        f"batch 1, one thread, {ROUNDS} rounds in turn; faster is the median over the rounds.\n"
    )
    print_table("Fashion-MNIST", columns, rows, caption + machine("ai-edge-litert", "keras", "tensorflow"))
    return int("MISSED" in met)


def _cells(values: tuple[float, ...]) -> list[str]:
    macs, *shares, dense, pruned, faster = values
    return [f"{macs:.2f} x", *(f"{v:.2f}" for v in shares), f"{dense:.3f}", f"{pruned:.3f}", f"{faster:.2f} x"]


if __name__ == "__main__":
    sys.exit(main())
