"""What is kept after pruning, solved again without training: accuracy with and without; time and memory.

    python -m benchmarks.reconstruction
    python -m benchmarks.reconstruction --quick            no accuracy to speak of: that all of it runs
    python -m benchmarks.reconstruction --only nets --seeds 0 --sparsities 0.9

1. nets: two convolutional networks, trained on a part of Fashion-MNIST. Copies are pruned by `kp.prune` at once, and
   measured as they are, with the statistics of batch normalisation estimated again (`kp.recalibrate`), with what is
   kept solved again (`reconstruct=`), and with both.
2. structured: MobileNetV2 of keras.applications, 0.35 as wide, trained likewise, then by `kp.structured.prune` at half
   its parameters, measured in the same four ways; beside it half of its weights zero by magnitude.
3. resnet50: ResNet50 of keras.applications, untrained, on noise: the seconds of a reconstruction, and the memory that
   it takes beside the model.

Solved is on training pictures without their labels. Accuracy is that of the Keras model on test pictures that nothing
else has seen; the mean over the seeds. A number that is missed says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl
from keras import ops

import keras_prune as kp
from benchmarks.data import Images, fashion_mnist
from benchmarks.mask_update import resident
from benchmarks.timing import machine, print_table, verdict

PARTS = ("nets", "structured", "resnet50")
CALIBRATION = 1024
SIZE = 64
"""Pixels of each side of the pictures for MobileNetV2."""
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

UNIFORM = {"allocation": "uniform"}
SECOND = {"criterion": "second_order"}
HALF = {"pattern": kp.patterns.NofM(2, 4), "sparsities": (0.5,), **UNIFORM}
BLOCKS = {"pattern": kp.patterns.Block(4, 1), "sparsities": (0.75,)}
WAYS: dict[str, dict[str, Any]] = {
    "unstructured, global": {},
    "unstructured, uniform": UNIFORM,
    "by activations (Wanda), uniform": {"activations": True, **UNIFORM},
    "second order, global": SECOND,
    "second order, uniform": SECOND | UNIFORM,
    "second order, lamp": SECOND | {"allocation": "lamp"},
    "2:4": HALF,
    "2:4, second order": SECOND | HALF,
    "4x1 blocks, global": BLOCKS,
    "4x1 blocks, second order, lamp": SECOND | BLOCKS | {"allocation": "lamp"},
}
COLUMNS = ["dense", "pruned", "recalibrated", "reconstructed", "both", "of dense", "s", ""]


def pictures(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return pictures as `[n, 28, 28, 1]`, in [0, 1]."""
    return pixels[..., np.newaxis].astype(np.float32) / 255


def accuracies(
    prune: Callable[[Any], keras.Model], x: Any, test: tuple[Any, Any], *, alone: bool = True
) -> tuple[float, ...]:
    """Return the accuracy as pruned, recalibrated, reconstructed, with both, and the seconds of a reconstruction.

    Args:
        prune: gives a model pruned anew, reconstructed on what it is given, or not.
        x: pictures to do so on.
        test: pictures and labels.
        alone: whether it can prune without; if not, the first two are not a number.
    """
    found, took = [], 0.0
    for reconstruct in (None, x):
        if reconstruct is None and not alone:
            found += [float("nan")] * 2
            continue
        start = time.perf_counter()
        model = prune(reconstruct)
        took = time.perf_counter() - start
        found.append(_accuracy(model, *test))
        found.append(_accuracy(kp.recalibrate(model, x), *test))
    return *found, took


def prune_file(path: Path, sparsity: float, way: dict[str, Any], x: Any) -> Callable[[Any], keras.Model]:
    """Return a function that loads a model and prunes it in one of the ways."""
    options = {key: value for key, value in way.items() if key not in ("sparsities", "activations")}
    if "activations" in way:
        options["criterion"] = kp.criteria.Activation(data=x)
    if "pattern" in way:
        options["scope"] = kp.Scope(exclude=_unfit(path))
    return lambda given: kp.prune(keras.models.load_model(path), sparsity, reconstruct=given, verbose=0, **options)


def _unfit(path: Path) -> list[str]:
    """The kernels whose inputs do not divide into fours."""
    return [
        target.path
        for target in kp.Scope().survey(keras.models.load_model(path)).targets
        if target.layout.canonical_shape(target.variable.shape)[-2] % 4
    ]


def _accuracy(model: keras.Model, x: Any, y: Any) -> float:
    return float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(axis=-1) == y))


def trained(build: Callable[[], keras.Model], x: Any, y: Any, seed: int, epochs: int) -> keras.Model:
    """Return a network, trained from a seed."""
    keras.utils.set_random_seed(seed)
    model = build()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


def chosen(images: Images, seed: int, options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Return pictures and labels to train on, drawn by a seed, and to test on."""
    drawn = np.random.default_rng(seed).permutation(len(images.x_train))[: options.images]
    x, y = pictures(images.x_train[drawn]), images.y_train[drawn].astype(np.int32)
    return x, y, pictures(images.x_test[: options.tests]), images.y_test[: options.tests]


def measure_nets(images: Images, options: argparse.Namespace) -> tuple[list[list[str]], bool]:
    """Return the rows of the networks, and whether what is asked of them is met."""
    cases = [(way, s) for way in options.ways for s in WAYS[way].get("sparsities", options.sparsities)]
    found: dict[tuple[str, str, float], list[tuple[float, ...]]] = {(n, *c): [] for n in options.nets for c in cases}
    for name in options.nets:
        for seed in options.seeds:
            x, y, *test = chosen(images, seed, options)
            model = trained(NETS[name], x, y, seed, options.epochs)
            dense = _accuracy(model, *test)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "dense.keras"
                model.save(path)
                for way, sparsity in cases:
                    prune = prune_file(path, sparsity, WAYS[way], x[:CALIBRATION])
                    alone = WAYS[way].get("criterion") != "second_order"
                    taken = accuracies(prune, x[:CALIBRATION], (test[0], test[1]), alone=alone)
                    found[name, way, sparsity].append((dense, *taken))
                    values = (f"{value:.3f}" for value in (dense, *taken))
                    print(name, f"seed {seed}", way, sparsity, *values, flush=True)
    rows = [
        row(f"{name}, {way}, {s:.0%}", values, ASKED.get(s) if way == "unstructured, global" else None)
        for (name, way, s), values in found.items()
    ]
    return rows, all(one[-1] != "MISSED" for one in rows)


def row(name: str, values: Sequence[tuple[float, ...]], asked: float | None = None) -> list[str]:
    """Return the means over the seeds as a row, and whether what is asked of the reconstructed one is met."""
    *accuracy, seconds = (statistics.mean(column) for column in zip(*values, strict=True))
    share = accuracy[3] / accuracy[0]
    cells = ["" if np.isnan(value) else f"{value:.3f}" for value in accuracy]
    return [name, *cells, f"{share:.3f}", f"{seconds:.0f}", "" if asked is None else verdict(-share, -asked)]


def mobile_net() -> keras.Model:
    """MobileNetV2, its averages of statistics fast enough for a few epochs; grey pictures of 28 x 28, enlarged."""
    model = keras.applications.MobileNetV2(
        input_shape=(SIZE, SIZE, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            layer.momentum = 0.9
    return model


def enlarged(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return grey pictures as `[n, SIZE, SIZE, 3]`, in [-1, 1]."""
    return np.repeat(ops.convert_to_numpy(ops.image.resize(2.0 * x - 1.0, (SIZE, SIZE))), 3, axis=-1)


def measure_structured(images: Images, options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of MobileNetV2 at half its parameters."""
    found: dict[str, list[tuple[float, ...]]] = {"half the parameters": [], "half the weights zero": []}
    for seed in options.seeds:
        x, y, *test = chosen(images, seed, options)
        x, test = enlarged(x), [enlarged(test[0]), test[1]]
        model = trained(mobile_net, x, y, seed, options.epochs)
        dense, own = _accuracy(model, *test), x[:CALIBRATION]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dense.keras"
            model.save(path)
            ways: dict[str, Callable[[Any], keras.Model]] = {
                "half the parameters": lambda given, model=model: kp.structured.prune(  # type: ignore[misc]
                    model, params=0.5, reconstruct=given, verbose=0
                ),
                "half the weights zero": prune_file(path, 0.5, {}, own),
            }
            for name, prune in ways.items():
                found[name].append((dense, *accuracies(prune, own, (test[0], test[1]))))
                print("MobileNetV2", name, *(f"{value:.3f}" for value in found[name][-1]), flush=True)
    return [row(f"MobileNetV2 0.35, {SIZE} pixels, {name}", values) for name, values in found.items()]


def measure_resnet50(options: argparse.Namespace) -> list[list[str]]:
    """Return the seconds of a reconstruction, and the memory that it takes, by pattern of the zeros."""
    rows = []
    for name, way in (("80 % zeros", {}), ("half the parameters", None)):
        keras.utils.set_random_seed(0)
        model = keras.applications.ResNet50(weights=None, input_shape=(options.pixels,) * 2 + (3,))
        x = np.random.default_rng(0).normal(size=(options.pictures, options.pixels, options.pixels, 3))
        x = x.astype(np.float32)
        model.predict(x[:8], verbose=0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, start = resident("VmRSS"), time.perf_counter()
        if way is None:
            kp.structured.prune(model, params=0.5, reconstruct=x)
        else:
            kp.prune(model, 0.8, reconstruct=x, **way)
        took, peak = time.perf_counter() - start, resident("VmHWM") - before
        weights = 4 * model.count_params()
        rows.append([f"ResNet50, {name}", f"{took:.0f}", f"{peak / 2**30:.2f}", f"{weights / 2**30:.2f}"])
        print(*rows[-1], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.reconstruction", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="a few pictures and one epoch")
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--sparsities", nargs="+", type=float, default=(0.8, 0.9))
    parser.add_argument("--images", type=int, default=12_000, help="of the 60,000 for training, drawn by seed")
    parser.add_argument("--tests", type=int, default=10_000, help="of the 10,000 for testing")
    parser.add_argument("--epochs", type=int, default=5, help="of dense training")
    parser.add_argument("--pictures", type=int, default=512, help="of noise, for ResNet50")
    parser.add_argument("--pixels", type=int, default=96, help="of each side of these")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.images, options.tests, options.epochs = (0,), 1_500, 500, 1
        options.pictures, options.pixels = 16, 32
    caption = (
        f"Accuracy, mean of seeds {', '.join(map(str, options.seeds))}; {options.images:,} training images, "
        f"{options.epochs} epochs; {CALIBRATION} of them, without labels, to solve on.\n"
    ) + machine("tensorflow", "keras")
    met = True
    if "resnet50" in options.only:  # first: memory that others took is not given back
        rows = measure_resnet50(options)
        noise = f"{options.pictures} pictures of noise, {options.pixels} x {options.pixels}.\n"
        columns = ["", "s", "peak, GiB", "its weights, GiB"]
        print_table("A reconstruction of ResNet50", columns, rows, noise + machine("tensorflow", "keras"))
    if "nets" in options.only:
        rows, met = measure_nets(fashion_mnist(), options)
        print_table("Pruned at once, without training", ["network, pattern, zeros", *COLUMNS], rows, caption)
    if "structured" in options.only:
        rows = measure_structured(fashion_mnist(), options)
        print_table("Units removed at once, without training", ["network", *COLUMNS], rows, caption)
    return int(not met and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
