"""Structured pruning of `keras.applications`: half of the parameters, and outputs that stay what they are.

    python -m benchmarks.structured_zoo [--only NAME ...] [--size 96]

For two sizes of every family, with random weights: the graph and its groups are found, a plan leaves at most half of
the parameters, and the smaller model is built and run. To check it, the weights of exactly the units that go are set to
0 in the whole model: then both must give the same outputs, to 1e-4 of the largest. All weights are drawn at random, so
that an index out of place shows. The last column is the same difference, to that between the outputs of the samples: to
what outputs owe to the input. It is held to 1e-3. Then the smaller model trains a step.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from benchmarks.timing import machine, print_table, verdict
from keras_prune.structured import Analysis, Plan, analyse, plan

TOLERANCE = 1e-4
OF_SPREAD = 1e-3
SHARE = 0.5

COLUMNS = ["model", "calls", "groups", "graph s", "plan s", "rewrite s"]
COLUMNS += ["params", "left", "MACs left", "difference", "of spread"]

ZOO: dict[str, dict[str, Any]] = {
    "VGG16": {},
    "VGG19": {},
    "ResNet50": {},
    "ResNet101": {},
    "ResNet50V2": {},
    "ResNet101V2": {},
    "InceptionV3": {},
    "InceptionResNetV2": {},
    "Xception": {},
    "DenseNet121": {},
    "DenseNet169": {},
    "NASNetMobile": {},
    "NASNetLarge": {},
    "MobileNet": {},
    "MobileNet (alpha 0.5)": {"alpha": 0.5},
    "MobileNetV2": {},
    "MobileNetV2 (alpha 0.5)": {"alpha": 0.5},
    "MobileNetV3Small": {},
    "MobileNetV3Large": {},
    "EfficientNetB0": {},
    "EfficientNetB1": {},
    "EfficientNetV2B0": {},
    "EfficientNetV2S": {},
    "ConvNeXtTiny": {},
    "ConvNeXtSmall": {},
}
"""Inception, InceptionResNet and Xception come in one size each: they have no second row."""


def make(name: str, options: dict[str, Any], size: int) -> keras.Model:
    """A model of `keras.applications` with random weights and logits as its output."""
    kind = getattr(keras.applications, name.split(" ")[0])
    return kind(weights=None, input_shape=(size, size, 3), classifier_activation=None, **options)


def randomise(model: keras.Model, x: np.ndarray, rng: np.random.Generator) -> None:
    """Draw all weights such that signals reach the output, and let batch normalisations take their statistics from x.

    Without this, many random networks give the same output for every input, and any comparison of outputs passes.
    """
    for variable in model.weights:
        shape = variable.shape
        if len(shape) == 1:
            positive = variable.name in ("gamma", "moving_variance", "scale")
            low, high = (0.5, 1.5) if positive else (-0.2, 0.2)
            variable.assign(rng.uniform(low, high, shape).astype(np.float32))
        else:
            window = shape[:-2] if "depthwise" in variable.path else shape[:-1]
            variable.assign(rng.normal(0.0, math.sqrt(2.0 / math.prod(window)), shape).astype(np.float32))
    normalisations = [one for one in model._flatten_layers() if isinstance(one, keras.layers.BatchNormalization)]
    momenta = [one.momentum for one in normalisations]
    for one in normalisations:
        one.momentum = 0.0
    model(x, training=True)
    for one, momentum in zip(normalisations, momenta, strict=True):
        one.momentum = momentum


def zero(analysis: Analysis, keep: np.ndarray) -> None:
    """Set the weights of all units that go to 0, in place."""
    for slot in analysis.slots:
        gone = (slot.units >= 0) & ~keep[slot.units]
        if slot.variable is not None and gone.any():
            value = np.array(slot.variable.numpy())
            value[(slice(None),) * slot.axis + (gone,)] = 0.0
            slot.variable.assign(value)


def run(name: str, options: dict[str, Any], size: int) -> tuple[list[str], float, float]:
    """One row of the table, and the difference of the outputs, to the largest and to their spread."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = make(name, options, size)
    x = rng.normal(size=(4, size, size, 3)) * rng.uniform(0.2, 3.0, (4, 1, 1, 3)) + rng.normal(size=(4, 1, 1, 3))
    x = x.astype(np.float32)
    randomise(model, x, rng)
    start = time.perf_counter()
    found = analyse(model)
    seen = time.perf_counter()
    chosen: Plan = plan(model, params=SHARE, importance="l2", scope="global")
    planned = time.perf_counter()
    zero(chosen.analysis, chosen.keep)
    begin = time.perf_counter()
    smaller = chosen.apply()
    built = time.perf_counter()
    wanted, received = np.asarray(model(x, training=False)), np.asarray(smaller(x, training=False))
    difference = np.abs(wanted - received).max()
    error = float(difference / np.abs(wanted).max())
    of_spread = float(difference / np.abs(wanted - wanted.mean(axis=0)).max())
    before, after = chosen.before, chosen.after
    if smaller.count_params() != after.params or after.params > SHARE * before.params:
        raise AssertionError(f"{name}: {after.params:,} parameters planned, {smaller.count_params():,} built")
    smaller.compile("sgd", "mse", run_eagerly=True)
    loss = smaller.train_on_batch(x, np.zeros_like(received))
    if not np.isfinite(loss):
        raise AssertionError(f"{name}: the smaller model's loss is {loss} in training")
    row = [
        name,
        str(len(list(found.graph.walk()))),
        str(len(found.groups)),
        f"{seen - start:.2f}",
        f"{planned - seen:.2f}",
        f"{built - begin:.1f}",
        f"{before.params / 1e6:.2f} M",
        f"{after.params / before.params:.1%}",
        f"{after.macs / before.macs:.1%}",
        f"{error:.1e}",
        f"{of_spread:.1e}",
    ]
    return row, error, of_spread


def main() -> int:
    """Print the table; 0 if every model passes."""
    parser = argparse.ArgumentParser(description="Structured pruning of keras.applications")
    parser.add_argument("--only", nargs="*", default=list(ZOO), choices=list(ZOO), help="names of models")
    parser.add_argument("--size", type=int, default=96, help="height and width of the input")
    args = parser.parse_args()
    rows, errors, spreads = [], [], []
    for name in args.only:
        row, error, of_spread = run(name, ZOO[name], args.size)
        print("  ".join(row), flush=True)
        rows.append(row)
        errors.append(error)
        spreads.append(of_spread)
        keras.utils.clear_session()
        gc.collect()
    caption = (
        f"largest difference {max(errors):.1e}, asked {TOLERANCE:g}: {verdict(max(errors), TOLERANCE)}; "
        f"of spread {max(spreads):.1e}, asked {OF_SPREAD:g}: {verdict(max(spreads), OF_SPREAD)}\n"
    )
    title = f"Half of the parameters, {args.size} x {args.size}"
    print_table(title, COLUMNS, rows, caption + machine("tensorflow", "keras"))
    return int(max(errors) > TOLERANCE or max(spreads) > OF_SPREAD)


if __name__ == "__main__":
    raise SystemExit(main())
