r"""`tx.compress` on a MobileNetV2 for the web and for 64-bit ARM, and on a keyword spotter for a microcontroller.

    tflite-export install web                        once: LiteRT.js, by npm
    tflite-export install arm64                      once: LiteRT for aarch64, under qemu
    python -m benchmarks.compress                    all three, an hour each at most
    python -m benchmarks.compress --targets web
    python -m benchmarks.compress --quick            no figures to speak of: that all of it runs

1. "web", "arm64": MobileNetV2 of keras.applications, half as wide, 96 x 96, trained on a part of Fashion-MNIST; time in
   LiteRT.js under Node, instructions of aarch64 (cortex-a76). The file must be so many times cheaper than the plain
   float32 file, and cheaper than each single means within the same drop of accuracy: int8 alone, half the width alone,
   zeros alone.
2. "mcu": a DS-CNN that tells ten words apart, said by espeak-ng's voices: flash beside the plain int8 file. It is
   judged on voices that it was not trained on.

Accuracy is that of the files: on validation samples while it is searched, and on test samples, which the search never
saw, in the table. A search that is stopped goes on where it was (`--folder`). A number that is missed says so.
"""

from __future__ import annotations

import argparse
import os
import sys
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
import tensorflow as tf
from keras import layers as kl

import keras_prune as kp
import tflite_export as tx
from benchmarks.data import cache_folder, fashion_mnist, spoken_words
from benchmarks.timing import machine, print_table, verdict
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.tflm.decode_operators import without_decode

ASKED = {"web": 3.0, "arm64": 4.5, "mcu": 1 / 0.4}
"""Least gain: times less than the plain float32 file, or the plain int8 file on a microcontroller."""
MAX_DROP = 0.01
MINUTES = 60.0
Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def mobile_net() -> keras.Model:
    """MobileNetV2, half as wide, its averages of statistics fast enough for a few epochs."""
    model = keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), alpha=0.5, weights=None, classes=10, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            layer.momentum = 0.9
    return model


def ds_cnn() -> keras.Model:
    """The small depthwise-separable network of Zhang et al. 2017, "Hello Edge", on 49 x 10 cepstral coefficients."""
    sound = keras.Input((49, 10, 1))
    x = kl.Conv2D(64, (10, 4), (2, 2), "same", use_bias=False)(sound)
    x = kl.ReLU()(kl.BatchNormalization(momentum=0.9)(x))
    for _ in range(4):
        x = kl.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = kl.ReLU()(kl.BatchNormalization(momentum=0.9)(x))
        x = kl.Conv2D(64, 1, use_bias=False)(x)
        x = kl.ReLU()(kl.BatchNormalization(momentum=0.9)(x))
    return keras.Model(sound, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def pictures(options: argparse.Namespace) -> tuple[Arrays, Arrays, Arrays]:
    """Return training, validation and test pictures of Fashion-MNIST, 96 x 96 x 3 in [-1, 1]."""
    images = fashion_mnist()
    chosen = np.random.default_rng(options.seed).permutation(len(images.x_train))
    train, validation = chosen[: options.images], chosen[-options.validation :]
    test = slice(0, options.tests)
    return (
        (_scaled(images.x_train[train]), images.y_train[train].astype(np.int32)),
        (_scaled(images.x_train[validation]), images.y_train[validation].astype(np.int32)),
        (_scaled(images.x_test[test]), images.y_test[test].astype(np.int32)),
    )


def _scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    scaled = tf.image.resize(pixels[..., np.newaxis] / np.float32(127.5) - 1.0, (96, 96)).numpy()
    return np.repeat(scaled, 3, axis=-1)


def words(options: argparse.Namespace) -> tuple[Arrays, Arrays, Arrays]:
    """Return cepstral coefficients of spoken words; the voices of the three parts are different ones."""
    sounds, labels, voices = spoken_words(6 if options.quick else None)
    features = _cepstrum(sounds)
    part = voices % 5
    return tuple((features[rows], labels[rows]) for rows in (part < 3, part == 3, part == 4))  # type: ignore[return-value]


def _cepstrum(sounds: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 49 x 10 mel-frequency cepstral coefficients of a second at 16 kHz: windows of 40 ms, every 20 ms."""
    spectrum = tf.abs(tf.signal.stft(sounds, 640, 320, 1024))
    mel = tf.signal.linear_to_mel_weight_matrix(40, 513, 16_000, 20.0, 7600.0)
    logs = tf.math.log(tf.matmul(spectrum, mel) + 1e-6)
    found = tf.signal.mfccs_from_log_mel_spectrograms(logs)[..., :10].numpy()
    return ((found - found.mean(axis=(0, 1))) / found.std(axis=(0, 1)))[..., np.newaxis].astype(np.float32)


CASES: dict[str, tuple[Callable[[], keras.Model], Callable[[argparse.Namespace], Any], str]] = {
    "web": (mobile_net, pictures, "latency"),
    "arm64": (mobile_net, pictures, "latency"),
    "mcu": (ds_cnn, words, "flash"),
}


def trained(name: str, make: Callable[[], keras.Model], data: Arrays, options: argparse.Namespace) -> keras.Model:
    """Return the dense model, trained once: a search that goes on needs the very same one."""
    path = options.folder / f"{name}.keras"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if not path.exists():
        keras.utils.set_random_seed(options.seed)
        model = make()
        steps = options.epochs * -(-len(data[0]) // 64)
        model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)), loss)
        model.fit(*data, batch_size=64, epochs=options.epochs, verbose=0)
        model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return kp.load_model(path)


def accuracy(path: Path, data: Arrays) -> float:
    """Return the accuracy of a file in LiteRT; weights that a microcontroller decodes are made dense for it."""
    from ai_edge_litert.interpreter import Interpreter

    file = without_decode(TFLiteFile(path.read_bytes()))
    runner = Interpreter(model_content=file.content, num_threads=os.cpu_count()).get_signature_runner()
    taken, given = next(iter(runner.get_input_details().items())), next(iter(runner.get_output_details()))
    scale, zero = taken[1]["quantization"]
    right = 0
    for picture, label in zip(*data, strict=True):
        x = picture[np.newaxis]
        if taken[1]["dtype"] == np.int8:
            x = np.clip(np.round(x / scale + zero), -128, 127).astype(np.int8)
        right += int(runner(**{taken[0]: x})[given].argmax() == label)
    return right / len(data[0])


def measure(target: str, options: argparse.Namespace) -> tuple[list[list[str]], bool]:
    """Return the rows of a target, and whether what is asked is met."""
    make, load, minimize = CASES[target]
    train, validation, test = load(options)
    model = trained(f"{make.__name__}-{options.seed}", make, train, options)
    start = time.perf_counter()
    report = tx.compress(
        model,
        options.folder / f"{target}.tflite",
        data=train,
        validation=validation,
        target=target,
        max_drop=1.0 if options.quick else MAX_DROP,
        minimize=minimize,
        budget=None if options.quick else 60 * options.minutes,
        trials=1 if options.quick else None,
        epochs=options.on,
        batch_size=64,
        seed=options.seed,
        distill=not options.labels_only,
        verbose=2 if sys.stdout.isatty() else 0,
    )
    minutes = (time.perf_counter() - start) / 60
    print(report, flush=True)
    report.plot(options.folder / f"{target}.png")
    (options.folder / f"{target}.py").write_text(report.recipe)
    single = [row for row in report.rows if str(row.candidate) in report.baselines and row.holds(report.max_drop)]
    means = max((row.ratio for row in single), default=1.0)
    plain = next(row for row in report.rows if row.candidate == tx.Candidate())
    least = ASKED[target]
    done = [verdict(-report.ratio, -least), verdict(means, report.ratio), verdict(minutes, MINUTES)]
    row = [
        target,
        str(report.chosen.candidate),
        f"{report.baseline:.4f}",
        f"{report.chosen.metric:.4f}",
        f"{accuracy(Path(report.folder, plain.file), test):.4f}",
        f"{accuracy(Path(report.path), test):.4f}",
        f"{report.ratio:.2f} x",
        f"{least:.2f} x",
        f"{means:.2f} x",
        f"{minutes:.0f} min",
        "MISSED" if "MISSED" in done else "met",
    ]
    return [row], "MISSED" not in done


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.compress", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--targets", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--minutes", type=float, default=55.0, help="budget of a search")
    parser.add_argument("--images", type=int, default=10_000, help="of the 60,000 for training, drawn by seed")
    parser.add_argument("--validation", type=int, default=2000, help="other ones of the 60,000, to search by")
    parser.add_argument("--tests", type=int, default=10_000, help="of the 10,000 for testing")
    parser.add_argument("--epochs", type=int, default=15, help="of dense training")
    parser.add_argument("--on", type=int, default=8, help="epochs of a full fine-tuning")
    parser.add_argument("--labels-only", action="store_true", help="candidates do not learn from the dense model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="of files, models and journals; by default in the cache of data sets"
    )
    parser.add_argument("--quick", action="store_true", help="a trial, 320 images, an epoch; its own folder")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.validation, options.tests, options.epochs, options.on = 320, 100, 100, 1, 1
    options.folder = options.folder or cache_folder() / ("compress-quick" if options.quick else "compress")
    rows, met = [], True
    for target in options.targets:
        own, fine = measure(target, options)
        rows += own
        met = met and fine
    columns = [
        "target",
        "file",
        "plain",
        "file's",
        "plain, test",
        "file's, test",
        "gain",
        "asked",
        "single",
        "took",
        "",
    ]
    caption = (
        "Accuracy of the plain float32 file and of the chosen one on validation samples, by which it was chosen, and "
        "on test samples. Gain: beside the plain float32 file, on mcu the plain int8 file; single: that of the best "
        f"single means that is good enough. {options.images:,} training images, {options.epochs} epochs.\n"
    )
    caption += machine("tensorflow", "keras", "ai-edge-litert")
    print_table("One call", columns, rows, caption)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
