"""The plan of a dense file: its weights under their Keras names, and how each is stored."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from keras_prune.devices import Device
from tflite_export.bench.tune import tune_plan
from tflite_export.convert.converter import Converted
from tflite_export.convert.number_types import FLOAT16, NumberType
from tflite_export.model.reference import Reference
from tflite_export.plan.cluster_safety import plan_for_clusters, without_dangers
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.plan import Optimize, Plan, check_strict, make_plan
from tflite_export.plan.weights import Names, collect
from tflite_export.plan.zeros import lost_zeros, match_kernels, with_paths
from tflite_export.runtimes.opening import open_own
from tflite_export.source.source import Source
from tflite_export.stages.dense_file import DenseFile, may_run_sparse

__all__ = ["PlannedFile", "names_of", "plan_file", "weights_of"]


@dataclass(frozen=True, eq=False)
class PlannedFile:
    """The plan of a dense file.

    Args:
        plan: a line for each weight.
        weights: of the dense file.
        runs_sparse: XNNPACK's sparse inference will be on where the device has it.
        notes: for the report.
    """

    plan: Plan
    weights: list[Weight]
    runs_sparse: bool
    notes: tuple[str, ...]


def plan_file(
    dense: DenseFile,
    names: Names,
    reference: Reference,
    device: Device,
    kind: NumberType,
    *,
    optimize: Optimize,
    strict: bool,
    tune: bool,
) -> PlannedFile:
    """Return how each weight of a dense file is stored.

    Args:
        dense: the file.
        names: of the model's variables.
        reference: its inputs are what the file is run on.
        device: the target.
        kind: number type of the file.
        optimize: for speed or size.
        strict: raise where the number type keeps a weight from being stored sparse.
        tune: time encodings on this machine.

    Raises:
        ExportError: the dense file cannot be run, or, if `strict`, a weight cannot be stored sparse.
    """
    converted = dense.converted
    matches = match_kernels(dense.kernels, found := weights_of(converted, names, reference))
    weights = with_paths(found, matches)
    lost = (
        f"the converter lost {count} zeros of '{name}' when it folded it" for name, count in lost_zeros(matches).items()
    )
    plan, runs_sparse = _plan(converted, weights, device, kind, optimize)
    if strict:
        check_strict(plan, weights)
    if tune:
        tuned = tune_plan(converted.file, plan, weights, device, reference)
        # It knows what is fast here, not what would be wrong elsewhere.
        plan, prediction = without_dangers(tuned, converted.file.model)
        runs_sparse = prediction.on and may_run_sparse(device, kind)
    return PlannedFile(plan, weights, runs_sparse, tuple(lost))


def names_of(source: Source, kind: NumberType) -> Names:
    """Return the names of a model's variables, as a file of a number type will hold them."""
    return Names.of(source.variables(), float16=kind is FLOAT16, sums=kind.weight_bytes == 1)


def weights_of(converted: Converted, names: Names, reference: Reference) -> list[Weight]:
    """Return the weights of the dense file."""
    return collect(converted.file.model, names=names, rows=_rows(converted, reference))


def _rows(converted: Converted, reference: Reference) -> dict[tuple[int, int], int]:
    """Return the rows of each tensor as a matrix, for one sample.

    In the main graph as the runtime sees them, in the others as declared.
    """
    session = open_own(converted.file, converted.file.subject, delegate=False)
    count = converted.batch_size or reference.batch or 1
    session.run([array[:count] for array in reference.inputs.arrays], converted.inputs, converted.outputs, count)
    rows = {(0, index): prod(shape[:-1]) for index, shape in session.tensor_shapes().items()}
    for number, subgraph in enumerate(converted.file.model.subgraphs[1:], start=1):
        for index, tensor in enumerate(subgraph.tensors):
            free = tensor.shapeSignature is not None and min(tensor.shapeSignature, default=1) < 0
            if tensor.shape is not None and not free:
                rows[number, index] = prod(int(size) for size in tensor.shape[:-1])
    return rows


def _plan(
    converted: Converted, weights: list[Weight], device: Device, kind: NumberType, optimize: Optimize
) -> tuple[Plan, bool]:
    """Return the plan, and whether XNNPACK's sparse inference will be on."""
    if not device.densify:
        return make_plan(weights, device, optimize=optimize), False
    # A file for a PC, where sparse inference is off, may get to a phone all the same.
    plan, found = plan_for_clusters(converted.file.model, weights, device, optimize)
    return plan, found.on and may_run_sparse(device, kind)
