"""Structured pruning of `keras.applications`: half of the parameters, and outputs that stay what they are.

    python -m benchmarks.structured_zoo [--only NAME ...] [--size 96] [--json rows.jsonl]

For two sizes of every family, with random weights: the graph and its groups are found, a plan leaves at most half of
the parameters, and the smaller model is built and run. To check it, the weights of exactly the units that go are set to
0 in the whole model: then both must give the same outputs, to 1e-4 of the largest. All weights are drawn at random, so
that an index out of place shows. The column "of spread" is the same difference, to that between the outputs of the
samples: to what outputs owe to the input. It is held to 1e-3. Then the smaller model is exported to a .tflite, which is
run against it ("file error", to the scale of the output), and trains a step.

For every other model there, the graph, the groups and the plan.

Each model has a process of its own, so that the memory of one is free before the next; one that fails is a row with the
reason, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from benchmarks.timing import machine, print_table, verdict
from keras_prune.keras_seam import layers_in
from keras_prune.structured import Analysis, Plan, analyse, plan

TOLERANCE = 1e-4
OF_SPREAD = 1e-3
SHARE = 0.5

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
"""Pruned, run, exported and trained. Inception, InceptionResNet and Xception come in one size each."""

OTHERS = (
    "ResNet152", "ResNet152V2", "DenseNet201",
    "EfficientNetB2", "EfficientNetB3", "EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetB7",
    "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3", "EfficientNetV2M", "EfficientNetV2L",
    "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge",
)  # fmt: skip
"""Planned only."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """A model with its plan."""

    model: str
    calls: int
    groups: int
    graph_seconds: float
    plan_seconds: float
    params: int
    params_left: float
    macs_left: float

    @property
    def cells(self) -> list[str]:
        return [
            self.model,
            f"{self.calls}, {self.groups}",
            self.seconds,
            f"{self.params / 1e6:.2f} M",
            f"{self.params_left:.1%}",
            f"{self.macs_left:.1%}",
        ]

    @property
    def seconds(self) -> str:
        return f"{self.graph_seconds:.2f}, {self.plan_seconds:.2f}"


@dataclasses.dataclass(frozen=True)
class Pruned(Planned):
    """A model that was pruned: what became of it."""

    rewrite_seconds: float
    difference: float
    of_spread: float
    loss: float
    export_seconds: float
    file_bytes: int
    file_error: float

    @property
    def cells(self) -> list[str]:
        return [
            *super().cells,
            f"{self.difference:.1e}",
            f"{self.of_spread:.1e}",
            f"{self.loss:.2f}",
            f"{self.file_bytes / 1e6:.2f}",
            f"{self.file_error:.1e}",
        ]

    @property
    def seconds(self) -> str:
        return f"{super().seconds}, {self.rewrite_seconds:.1f}, {self.export_seconds:.0f}"


PLANNED = ["model", "calls, groups", "graph, plan s", "params", "left", "MACs"]
PRUNED = ["model", "calls, groups", "seconds", *PLANNED[3:]]
PRUNED += ["difference", "of spread", "loss", "file MB", "file error"]


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
    normalisations = [one for one in layers_in(model) if isinstance(one, keras.layers.BatchNormalization)]
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


def plan_half(name: str, model: keras.Model) -> tuple[Planned, Plan]:
    """Find the graph and its groups, and plan."""
    start = time.perf_counter()
    found = analyse(model)
    seen = time.perf_counter()
    chosen = plan(model, params=SHARE, importance="l2", scope="global")
    planned = time.perf_counter()
    before, after = chosen.before, chosen.after
    if after.params > SHARE * before.params or before.params != model.count_params():
        raise AssertionError(f"{name}: {after.params:,} of {before.params:,} parameters, {model.count_params():,} held")
    row = Planned(
        model=name,
        calls=len(list(found.graph.walk())),
        groups=len(found.groups),
        graph_seconds=seen - start,
        plan_seconds=planned - seen,
        params=before.params,
        params_left=after.params / before.params,
        macs_left=after.macs / before.macs,
    )
    return row, chosen


def prune_half(name: str, size: int) -> Pruned:
    """Prune a model, and hold the smaller one against it; export it, and train it a step."""
    import tflite_export as tx

    rng = np.random.default_rng(0)
    model = make(name, ZOO[name], size)
    x = rng.normal(size=(4, size, size, 3)) * rng.uniform(0.2, 3.0, (4, 1, 1, 3)) + rng.normal(size=(4, 1, 1, 3))
    x = x.astype(np.float32)
    randomise(model, x, rng)
    row, chosen = plan_half(name, model)
    zero(chosen.analysis, chosen.keep)
    begin = time.perf_counter()
    smaller = chosen.apply()
    built = time.perf_counter()
    wanted, received = np.asarray(model(x, training=False)), np.asarray(smaller(x, training=False))
    difference = float(np.abs(wanted - received).max())
    if smaller.count_params() != chosen.after.params:
        raise AssertionError(f"{name}: {chosen.after.params:,} parameters planned, {smaller.count_params():,} built")
    with tempfile.TemporaryDirectory() as folder:
        before_export = time.perf_counter()
        report = tx.export(smaller, Path(folder) / "smaller.tflite", data=x)
        exported = time.perf_counter()
    smaller.compile("sgd", "mse", run_eagerly=True)
    loss = float(smaller.train_on_batch(x, np.zeros_like(received)))
    if not np.isfinite(loss):
        raise AssertionError(f"{name}: the smaller model's loss is {loss} in training")
    return Pruned(
        **dataclasses.asdict(row),
        rewrite_seconds=built - begin,
        difference=difference / float(np.abs(wanted).max()),
        of_spread=difference / float(np.abs(wanted - wanted.mean(axis=0)).max()),
        loss=loss,
        export_seconds=exported - before_export,
        file_bytes=report.written.raw,
        file_error=report.verification.max_relative,
    )


def child(name: str, size: int, to: Path) -> None:
    """Write one model's row to a file."""
    keras.utils.set_random_seed(0)
    row = prune_half(name, size) if name in ZOO else plan_half(name, make(name, {}, size))[0]
    to.write_text(json.dumps(dataclasses.asdict(row)))


def run(name: str, size: int) -> Planned | str:
    """Give one model's row, from a process of its own; or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.structured_zoo", "--size", str(size), "--child", name, str(to)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode or not to.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            return last[0][:300]
        values = json.loads(to.read_text())
    return Pruned(**values) if name in ZOO else Planned(**values)


def main() -> int:
    """Print the tables; 0 if every model passes."""
    parser = argparse.ArgumentParser(description="Structured pruning of keras.applications")
    names = [*ZOO, *OTHERS]
    parser.add_argument("--only", nargs="*", default=names, choices=names, help="names of models")
    parser.add_argument("--size", type=int, default=96, help="height and width of the input")
    parser.add_argument("--json", type=Path, help="append each row to this file, as a line of JSON")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "TO"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.size, Path(args.child[1]))
        return 0
    rows: list[Planned] = []
    failed: list[str] = []
    for name in args.only:
        row = run(name, args.size)
        if isinstance(row, str):
            failed.append(f"{name}: {row}")
            print("FAILED", failed[-1], flush=True)
            continue
        rows.append(row)
        print("  ".join(row.cells), flush=True)
        if args.json:
            with args.json.open("a") as lines:
                lines.write(json.dumps(dataclasses.asdict(row)) + "\n")
    pruned = [row for row in rows if isinstance(row, Pruned)]
    planned = [row for row in rows if not isinstance(row, Pruned)]
    difference, of_spread = (
        max((getattr(row, field) for row in pruned), default=0.0) for field in ("difference", "of_spread")
    )
    caption = (
        f"largest difference {difference:.1e}, asked {TOLERANCE:g}: {verdict(difference, TOLERANCE)}; "
        f"of spread {of_spread:.1e}, asked {OF_SPREAD:g}: {verdict(of_spread, OF_SPREAD)}\n"
    )
    size = f"{args.size} x {args.size}"
    if pruned:
        title = f"Half of the parameters, {size}; seconds: graph, plan, rewrite, export; loss: of the step trained"
        print_table(title, PRUNED, [row.cells for row in pruned], caption + machine("tensorflow", "keras"))
    if planned:
        title = f"The others, {size}: graph, groups and plan"
        print_table(title, PLANNED, [row.cells for row in planned], machine("tensorflow", "keras"))
    for line in failed:
        print("FAILED", line)
    return int(bool(failed) or difference > TOLERANCE or of_spread > OF_SPREAD)


if __name__ == "__main__":
    raise SystemExit(main())
