"""Choose encodings by timing them on this machine, instead of by a target's table."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from keras_prune.devices import Device
from tflite_export.edits.encode import encode
from tflite_export.errors import ExportError
from tflite_export.file.encoding import Encoding
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model.reference import Reference
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.plan import LARGEST_SHARE, TABLES, Options, Plan, PlanLine, as_dense, dense_bytes, weigh
from tflite_export.runtimes.interleaved import time_in_turn
from tflite_export.runtimes.opening import open_own
from tflite_export.runtimes.sessions import Session, filled_up

__all__ = ["FEWEST", "NOISE", "ROUNDS", "SECONDS", "measure", "tune_plan"]

FEWEST, ROUNDS = 10, 60
"""Timed runs of each file, at least and at most."""
SECONDS = 2.0
"""For the rounds of one weight, once the fewest are done."""
NOISE = 0.03
"""Files whose median ratios differ by less count as equally fast; of those, the smallest is taken."""


def tune_plan(dense: TFLiteFile, plan: Plan, weights: list[Weight], target: Device, reference: Reference) -> Plan:
    """Return a plan in which each weight with a choice has the encoding that is the fastest on this machine.

    For each weight that a sparse kernel can read: the whole file with that weight dense, and with it in each
    encoding that is right, all other weights dense; run in turn, each once to warm up and once timed; ratio =
    median over the rounds of (time with it dense / time with it so).

    Args:
        dense: the converter's file.
        plan: by the target's table; lines without a choice stay.
        weights: that it was made from.
        target: of this machine.
        reference: its inputs are what is run.

    Raises:
        ExportError: the dense file cannot be run.
    """
    total = dense_bytes(weights)
    by_tensors = {weight.tensors: weight for weight in weights}
    lines = []
    for line in plan.lines:
        options = weigh(by_tensors[line.tensors], target, total_bytes=total)
        if options.kernels:
            line = _fastest(dense, plan, line, options, weights, reference)
        lines.append(line)
    return Plan(tuple(lines))


def _fastest(
    dense: TFLiteFile, plan: Plan, line: PlanLine, options: Options, weights: list[Weight], reference: Reference
) -> PlanLine:
    """Return the line of the encoding with the best median ratio, the fewest bytes among equals."""
    candidates = {Encoding.DENSE: as_dense(line, "dense")}
    candidates |= {option.encoding: option for option in options.kernels}
    if options.densified is not None:
        candidates[Encoding.DENSIFY] = options.densified
    sessions = {}
    for encoding, candidate in candidates.items():
        file, _ = dense.edited(partial(encode, plan=_only(plan, candidate), weights=weights))
        try:
            sessions[encoding] = _ready(file, f"the file with '{line.name}' as {encoding.value}", reference)
        except ExportError:
            if encoding is Encoding.DENSE:
                raise
            # No candidate: the reason of the chosen encoding lists only those that were timed.
            continue
    ratios = measure(sessions)
    best = max(ratios.values())
    equal = [encoding for encoding, ratio in ratios.items() if ratio >= best * (1 - NOISE)]
    chosen = candidates[min(equal, key=lambda encoding: _size(candidates[encoding]))]
    said = ", ".join(f"{encoding.value} {ratio:.2f} x" for encoding, ratio in ratios.items() if ratio != 1.0)
    reason = f"timed here against dense, whole file: {said}"
    return replace(chosen, reason=reason, gain=round(ratios[chosen.encoding], 3))


def _size(line: PlanLine) -> int:
    """Return the bytes of a line; a DENSIFY that saves next to nothing counts as more than dense."""
    saves = line.encoding is Encoding.DENSE or line.stored_bytes + TABLES <= LARGEST_SHARE * line.dense_bytes
    return line.stored_bytes if saves else line.dense_bytes + line.stored_bytes


def _only(plan: Plan, candidate: PlanLine) -> Plan:
    """Return the plan with this line, and all others dense."""
    return Plan(
        tuple(candidate if line.tensors == candidate.tensors else as_dense(line, line.reason) for line in plan.lines)
    )


def _ready(file: TFLiteFile, subject: str, reference: Reference) -> Session:
    """Return a session that has run once on the first sample."""
    session = open_own(file, subject)
    batch = session.batch_size or 1
    feeds = [filled_up(array[:1], batch) for array in reference.inputs.arrays]
    session.feed(feeds, reference.input_names)
    session.invoke()
    return session


def measure(sessions: Mapping[Encoding, Session]) -> dict[Encoding, float]:
    """Return the median over the rounds of (time of the dense file / time of each).

    In each round every file is run twice in a row and its second run timed: what the files before it pushed
    out of the caches is not charged to it.
    """
    runs = [session.invoke for session in sessions.values()]
    taken = time_in_turn(
        runs, ROUNDS, seconds=SECONDS, fewest=FEWEST, before=lambda place: runs[place](), shuffle=random.Random(0)
    )
    base = taken[:, list(sessions).index(Encoding.DENSE)]
    return {encoding: float(np.median(base / own)) for encoding, own in zip(sessions, taken.T, strict=True)}
