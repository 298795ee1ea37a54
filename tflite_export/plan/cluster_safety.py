"""The plan held against XNNPACK's sparse inference: where it would answer wrongly, and which weights it would read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras_prune.devices import Device, Encoding
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.plan import Optimize, Plan, make_plan
from tflite_export.xnnpack.clusters import analyse
from tflite_export.xnnpack.prediction import Analysis

__all__ = ["plan_for_clusters", "without_dangers"]


def plan_for_clusters(
    file: Any, weights: Iterable[Weight], target: Device, optimize: Optimize = "speed"
) -> tuple[Plan, Analysis]:
    """Return the plan for a file that sparse inference may meet, with what that will do.

    Args:
        file: the dense file's `ModelT`.
        weights: of it.
        target: the device.
        optimize: as for `tflite_export.plan.plan.make_plan`.
    """
    weights = list(weights)
    plan, found = without_dangers(make_plan(weights, target, optimize=optimize), file)
    if not found.on:
        return plan, found

    def reads(weight: Weight) -> str | None:
        use = found.use(*weight.tensors[0])
        return use.reason if use is not None and use.spmm else None

    return make_plan(weights, target, optimize=optimize, clusters=reads), found


def without_dangers(plan: Plan, file: Any) -> tuple[Plan, Analysis]:
    """Return a plan in which nothing behind a DENSIFY makes the file wrong where sparse inference is on.

    One weight that XNNPACK reads from a DENSIFY is enough to switch its graph over, the dense weights with it.

    Args:
        plan: of the file.
        file: the dense file's `ModelT`.
    """
    places = {place for line in plan.sparse if line.encoding is Encoding.DENSIFY for place in line.tensors}
    found = analyse(file, assume_sparse=places)
    if not found.dangers:
        return plan, found
    danger = found.dangers[0]
    kept = [line for line in plan.sparse if line.encoding is not Encoding.DENSIFY]
    reason = f"{danger.subject}: {danger.rule}; {danger.cure}"
    plan = plan.only(kept, f"behind a DENSIFY, ARM and WebAssembly would answer wrongly: {reason}")
    return plan, analyse(file)
