"""Exported files against dense ones and against every encoding that could have been chosen, on a grid of Dense layers.

    python -m benchmarks.never_slower            the grid: rows x units x number type x zeros
    python -m benchmarks.never_slower --quick    a part of it
    python -m benchmarks.never_slower --gains    the gains that `keras_prune/devices/catalogue.py` holds for x86

Each case is a chain of Dense layers of equal width, exported for "x86" by `tflite_export.export`. Beside the exported
file are timed: the converter's dense file, and that file with every weight in each encoding which the runtime gets
right. Files run in turn, in an order drawn for each round; each runs once to bring its own weights into the caches and
is then timed; sessions are made anew several times, since where a session's memory lies moves its time by some percent.
Ratios are medians over all rounds of (time / time of the other file in the same round), one thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

from benchmarks.timing import machine, print_table, verdict
from keras_prune.devices import DEVICES, Encoding, Kernel
from tflite_export import export
from tflite_export.convert.converter import convert
from tflite_export.convert.number_types import CALIBRATION, resolve_number_type
from tflite_export.edits.encode import encode
from tflite_export.model.inputs import collect_inputs
from tflite_export.model.reference import answer
from tflite_export.model.signature import signature_of
from tflite_export.plan.plan import Plan, as_dense, dense_bytes, make_plan, weigh
from tflite_export.runtimes.interleaved import time_in_turn
from tflite_export.runtimes.opening import open_own
from tflite_export.runtimes.sessions import Session
from tflite_export.source.loading import open_source
from tflite_export.stages.planned import names_of, weights_of

ROWS, UNITS, SHARES = (1, 196), (256, 512, 1024), (0.5, 0.8, 0.9, 0.95)
NUMBERS: dict[str | None, tuple[Encoding, ...]] = {
    None: (Encoding.DENSE, Encoding.DENSIFY, Encoding.BLOCK, Encoding.CSR),
    "int8": (Encoding.DENSE, Encoding.BLOCK16),
}
"""The encodings of a FULLY_CONNECTED weight that the runtime gets right."""
BLOCKS = {"single": 1, "1x4": 4, "1x16": 16}
ASKED_DENSE, ASKED_BEST = 1.03, 1.05
LAYERS = 3

OTHER = 2**27
"""Bytes that are read to fill the caches with something else."""

GAINS_ROWS = {None: (1, 4, 16, 196), "int8": (1, 4, 196)}
GAINS_CHAINS = ((256, 3), (512, 3), (1024, 3), (1024, 10))
GAINS = {
    Encoding.BLOCK: (None, 4, (0.8, 0.85, 0.9, 0.95)),
    Encoding.CSR: (None, 1, (0.9, 0.95, 0.98)),
    Encoding.BLOCK16: ("int8", 16, (0.8, 0.9, 0.95)),
}


@dataclass(frozen=True)
class Case:
    """A chain of Dense(units) on `rows` rows, with a share of its blocks zero."""

    rows: int
    units: int
    quantize: str | None
    share: float
    block: int
    layers: int = LAYERS

    def model(self) -> keras.Model:
        """Return the model, its zeros in blocks along the inputs of each kernel."""
        rng = np.random.default_rng(1)
        x = y = keras.Input((self.units,))
        for _ in range(self.layers):
            y = keras.layers.Dense(self.units, activation="relu")(y)
        model = keras.Model(x, y)
        for layer in model.layers[1:]:
            count = self.units * self.units // self.block
            kept = (rng.permutation(count) >= round(self.share * count)).reshape(-1, self.units)
            weight = rng.normal(size=(self.units, self.units)) / np.sqrt(self.units * (1 - self.share))
            layer.kernel.assign(weight * np.repeat(kept, self.block, axis=0))
        return model

    def data(self) -> Any:
        return np.random.default_rng(2).normal(size=(max(self.rows, 8), self.units)).astype("float32")


def candidates(case: Case, model: keras.Model) -> dict[str, bytes]:
    """Return the dense file, and it with all weights in each encoding that the runtime gets right."""
    kind = resolve_number_type(case.quantize)
    signature = signature_of(model)
    inputs = collect_inputs(model, signature, case.data(), CALIBRATION)
    converted = convert(lambda: model, signature, case.rows, kind, inputs)
    reference = replace(answer(model, signature, inputs), input_names=converted.inputs, output_names=converted.outputs)
    weights = weights_of(converted, names_of(open_source(model), kind), reference)
    # Every kernel, whatever it gains.
    kernels = tuple(Kernel(e, "", pays_from=(0, 0)) for e in Encoding if e.has_kernel)
    target = replace(DEVICES["x86"], kernels=kernels)
    files = {}
    for encoding in NUMBERS[case.quantize]:
        lines = []
        for weight, line in zip(weights, make_plan(weights, target).lines, strict=True):
            options = weigh(weight, target, total_bytes=dense_bytes(weights))
            every = {option.encoding: option for option in options.kernels}
            if options.densified is not None:
                every[Encoding.DENSIFY] = options.densified
            lines.append(every.get(encoding, as_dense(line, "")))
        edited, _ = converted.file.edited(partial(encode, plan=Plan(tuple(lines)), weights=weights))
        files[encoding.value] = edited.content
    return files


def exported(case: Case, model: keras.Model) -> bytes:
    """Return the file that an export for this machine writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        export(model, path, target="x86", quantize=case.quantize, data=case.data(), batch_size=case.rows)
        return path.read_bytes()


def measure(
    files: Mapping[str, bytes], feed: Any, *, seconds: float, sessions: int, cold: bool = False
) -> dict[str, list[float]]:
    """Return the times of each file's runs, in seconds, by round.

    Each file runs once to bring its weights into the caches, and is then timed; with `cold`, the caches are filled with
    something else instead.
    """
    other = np.ones(OTHER // 8) if cold else np.ones(0)
    times: dict[str, list[float]] = {name: [] for name in files}
    draw = random.Random(0)
    for _ in range(sessions):
        order = list(files)
        draw.shuffle(order)  # also of the allocations
        loaded = [_session(files[name], feed) for name in order]
        runs = [session.invoke for session in loaded]
        taken = time_in_turn(
            runs,
            1000,
            seconds=seconds / sessions,
            fewest=5,
            before=(lambda _: other.sum()) if cold else (lambda place, runs=runs: runs[place]()),
            repeats=None if cold else [_repeats(session) for session in loaded],
            shuffle=draw,
        )
        for name, own in zip(order, taken.T, strict=True):
            times[name] += own.tolist()
    return times


def _session(content: bytes, feed: Any) -> Session:
    session = open_own(content)
    session.feed([feed[: session.batch_size or 1]], list(session.inputs))
    session.invoke()
    return session


def _repeats(session: Session) -> int:
    """Return how often to run for 100 microseconds: a run of three is at the clock's and the interpreter's mercy."""
    once = float(time_in_turn([session.invoke], 1, before=lambda _: session.invoke())[0, 0])
    return max(1, round(1e-4 / once))


def ratio(times: list[float], reference: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


@dataclass(frozen=True)
class Found:
    """What a case took."""

    case: Case
    chosen: str
    best: str
    against_dense: float
    against_best: float
    ratios: dict[str, float]

    def row(self) -> list[str]:
        case = self.case
        zeros = next(name for name, block in BLOCKS.items() if block == case.block)
        place = f"{case.rows} x {case.units}, {case.quantize or 'float32'}, {case.share:.0%} {zeros}"
        said = ", ".join(f"{name} {value:.2f}" for name, value in self.ratios.items())
        return [place, self.chosen, f"{self.against_dense:.3f}", self.best, f"{self.against_best:.3f}", said]


def run(case: Case, seconds: float, sessions: int) -> Found:
    """Time a case; the exported file is one of the candidates byte for byte, or timed beside them."""
    model = case.model()
    files, ours = candidates(case, model), exported(case, model)
    chosen = next((name for name, content in files.items() if content == ours), "mixed")
    if chosen == "mixed":
        files["mixed"] = ours
    times = measure(files, case.data(), seconds=seconds, sessions=sessions)
    dense = times[Encoding.DENSE.value]
    ratios = {name: ratio(dense, own) for name, own in times.items()}
    best = max(ratios, key=lambda name: ratios[name])
    return Found(case, chosen, best, ratio(times[chosen], dense), ratio(times[chosen], times[best]), ratios)


def gains(seconds: float, sessions: int) -> None:
    """Print the gains of the kernels, as `keras_prune/devices/catalogue.py` holds them."""
    for encoding, (quantize, block, shares) in GAINS.items():
        print(encoding.value)
        for rows, (units, layers) in itertools.product(GAINS_ROWS[quantize], GAINS_CHAINS):
            if layers > LAYERS and rows > 4:
                continue
            points = []
            for share in shares:
                case = Case(rows, units, quantize, share, block, layers)
                files = candidates(case, case.model())
                pair = {name: files[name] for name in (Encoding.DENSE.value, encoding.value)}
                times = measure(pair, case.data(), seconds=seconds, sessions=sessions)
                points.append(f"({share:.2f}, {ratio(times['dense'], times[encoding.value]):.2f})")
            size = units * units * layers * (1 if quantize else 4) // 1024
            print(f"  Measured({rows}, {size} * _KB, ({', '.join(points)})),", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.never_slower", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the grid")
    parser.add_argument("--gains", action="store_true", help="print the gains of the kernels instead")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, for each case")
    parser.add_argument("--sessions", type=int, default=4, help="how often sessions are made anew")
    parser.add_argument("--all", action="store_true", help="print every cell, not only the worst")
    options = parser.parse_args(arguments)
    print(machine("ai-edge-litert", "tensorflow", "keras"), flush=True)
    if options.gains:
        gains(options.seconds, options.sessions)
        return 0
    grid = itertools.product(ROWS, UNITS, NUMBERS, SHARES, BLOCKS.values())
    cases = [Case(*cell) for cell in grid]
    if options.quick:
        cases = [case for case in cases if case.units == 512 and case.share in (0.5, 0.9)]
    found = []
    for case in cases:
        found.append(run(case, options.seconds, options.sessions))
        print("  ".join(found[-1].row()), flush=True)
    worst = sorted(found, key=lambda one: max(one.against_dense / ASKED_DENSE, one.against_best / ASKED_BEST))[::-1]
    columns = ["rows x units, type, zeros", "exported", "time / dense", "best", "time / best", "gains over dense"]
    dense, best = max(one.against_dense for one in found), max(one.against_best for one in found)
    late = sum(one.against_dense > ASKED_DENSE for one in found), sum(one.against_best > ASKED_BEST for one in found)
    caption = (
        f"{len(found)} cases. Time / dense: at most {dense:.3f}, asked {ASKED_DENSE}: {verdict(dense, ASKED_DENSE)} "
        f"({late[0]} above). Time / best: at most {best:.3f}, asked {ASKED_BEST}: {verdict(best, ASKED_BEST)} "
        f"({late[1]} above).\n" + machine("ai-edge-litert", "tensorflow", "keras")
    )
    print_table(
        "Never slower: the worst cells", columns, [one.row() for one in worst[: None if options.all else 12]], caption
    )
    return int(any(late))


if __name__ == "__main__":
    sys.exit(main())
