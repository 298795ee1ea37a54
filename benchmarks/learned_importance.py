"""How well importances rank units: Spearman's correlation with the measured cost of taking each unit out.

    python -m benchmarks.learned_importance

Two models are trained for a short while on 10,000 pictures of Fashion-MNIST. Importances are taken on 512 other
training pictures, the learned ones with a fifth of the units ablated on these. The truth is the change of the loss on
512 test pictures, which no importance has seen, when one unit is taken out. Only units that were not in the learned
importances' sample count, for all rows alike; the mean of three seeds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from benchmarks.data import Images, fashion_mnist
from benchmarks.timing import machine, print_table, verdict
from keras_prune.structured import L1, L2, APoZ, Fisher, Importance, MeanActivation, Random, Taylor, analyse
from keras_prune.structured.analysis.groups import Analysis
from keras_prune.structured.importances.ablation import ablate
from keras_prune.structured.importances.features import features
from keras_prune.structured.importances.learned import Learned, rank_correlation, sample_units

SEEDS = (1, 2, 3)
TRAINED, CALIBRATION, TRUTH = 10_000, 512, 512
SHARE = 0.2
ESTIMATE = "second-order estimate (the feature alone)"

Data = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]
Scores = Mapping[str, npt.NDArray[np.float64]]


def mlp() -> keras.Model:
    """LeNet-300-100: 400 units in two groups."""
    dense = [kl.Dense(n, activation="relu") for n in (300, 100)]
    return keras.Sequential([keras.Input((28, 28, 1)), kl.Flatten(), *dense, kl.Dense(10)])


def residual_cnn() -> keras.Model:
    """A stem and three residual blocks: 224 units in six groups, of which three run through additions."""

    def normalised(x: Any, filters: int, size: int, strides: int) -> Any:
        x = kl.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
        return kl.BatchNormalization(momentum=0.9)(x)  # the default needs thousands of steps

    inputs = keras.Input((28, 28, 1))
    x = kl.ReLU()(normalised(inputs, 16, 3, 2))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        inner = normalised(kl.ReLU()(normalised(x, filters, 3, strides)), filters, 3, 1)
        x = kl.ReLU()(kl.Add()([inner, x if strides == 1 else normalised(x, filters, 1, strides)]))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


MODELS: Mapping[str, tuple[Callable[[], keras.Model], int]] = {
    "LeNet-300-100": (mlp, 5),
    "residual CNN": (residual_cnn, 4),
}
"""By name: how it is made, and the epochs that it is trained for."""


def pictures(x: npt.NDArray[np.uint8], y: npt.NDArray[np.uint8]) -> Data:
    return (x[..., None] / np.float32(255.0)).astype(np.float32), y.astype(np.int32)


def trained(make: Callable[[], keras.Model], epochs: int, data: Data, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = make()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(*data, batch_size=128, epochs=epochs, verbose=0)
    return model


def scores_of(model: keras.Model, analysis: Analysis, data: Data, seed: int) -> Scores:
    """Scores of all units by all importances, as they are compared over the whole model."""
    # Sums that are not normalised are what is comparable over groups: each stands for a change of the loss.
    whole = {"reduction": "sum", "normalise": "none"}
    taken: dict[str, Importance] = {
        "learned (forest)": Learned(data=data, sample=SHARE, seed=seed),
        "learned (network)": Learned(data=data, sample=SHARE, seed=seed, model="network"),
        "Taylor": Taylor(data=data),
        "Taylor, sums": Taylor(data=data, **whole),
        "Fisher": Fisher(data=data),
        "Fisher, sums": Fisher(data=data, **whole),
        "L1": L1(),
        "L2": L2(),
        "APoZ": APoZ(data=data),
        "mean activation": MeanActivation(data=data),
        "random": Random(seed=seed),
    }
    found = {name: importance(model, analysis) for name, importance in taken.items()}
    return {**found, ESTIMATE: features(model, analysis, data).column("second_order")}


def run(images: Images, name: str, seed: int) -> tuple[dict[str, tuple[float, float]], str]:
    """Return for each importance its correlation over all held-out units and the mean within groups, and a line."""
    start = time.perf_counter()
    make, epochs = MODELS[name]
    model = trained(make, epochs, pictures(images.x_train[:TRAINED], images.y_train[:TRAINED]), seed)
    calibration = pictures(images.x_train[-CALIBRATION:], images.y_train[-CALIBRATION:])
    test = pictures(images.x_test[:TRUTH], images.y_test[:TRUTH])
    analysis = analyse(model)
    truth = ablate(model, analysis, range(analysis.size), test)
    sizes = [group.size for group in analysis.groups]
    sample = sample_units(sizes, round(SHARE * analysis.size), seed)
    held_out = np.setdiff1d(np.arange(analysis.size), sample)
    within = [held_out[(held_out >= group.start) & (held_out < group.stop)] for group in analysis.groups]
    result = {}
    for importance, scores in scores_of(model, analysis, calibration, seed).items():
        each = [rank_correlation(scores[units], truth[units]) for units in within]
        result[importance] = rank_correlation(scores[held_out], truth[held_out]), statistics.mean(each)
    accuracy = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    took = time.perf_counter() - start
    return result, (
        f"{name}, seed {seed}: accuracy {accuracy:.3f}, {analysis.size} units in {len(sizes)} groups, "
        f"{len(held_out)} held out, {took:.0f} s; " + ", ".join(f"{key} {both[0]:.3f}" for key, both in result.items())
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.learned_importance", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args(arguments)
    images = fashion_mnist()
    runs: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in MODELS}
    for seed in options.seeds:
        for name in MODELS:
            found, line = run(images, name, seed)
            print(line, flush=True)
            runs[name].append(found)
    means = {
        name: {key: tuple(statistics.mean(run[key][i] for run in of) for i in (0, 1)) for key in of[0]}
        for name, of in runs.items()
    }
    rows = [
        [key, *(f"{value:.3f}" for name in MODELS for value in means[name][key])] for key in next(iter(means.values()))
    ]
    columns = ["importance", *(f"{name}, {what}" for name in MODELS for what in ("all units", "within groups"))]
    caption = "Rank correlation with the cost on test pictures, over units that were not ablated for learning.\n"
    print_table("Learned importance", columns, rows, caption + machine("keras", "tensorflow", "numpy", "scikit-learn"))
    for name in MODELS:
        for kind in ("forest", "network"):
            mine = means[name][f"learned ({kind})"][0]
            best = max(means[name][other][0] for other in ("Taylor", "Taylor, sums", "L1", "L2"))
            print(
                f"{name}: learned ({kind}) {mine:.3f}, the best of Taylor, L1 and L2 {best:.3f}: {verdict(best, mine)}"
            )


if __name__ == "__main__":
    main()
