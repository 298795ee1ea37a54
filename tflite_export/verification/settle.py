"""The stages encode and verify: a plan is written into the file, and what makes the file wrong is taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from keras_prune.devices import Device, Encoding
from tflite_export.convert.number_types import FLOAT32, NumberType
from tflite_export.edits.encode import encode
from tflite_export.edits.metadata import add_metadata, summarize
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model.reference import Reference
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.plan import Plan, PlanLine
from tflite_export.verification.sparse_run import sparse_runtime, verify_where_sparse, why_not_executed
from tflite_export.verification.verify import Verification, answers, compare_runs

__all__ = ["SPARSE_SAMPLES", "Settlement"]

SPARSE_SAMPLES = 4
"""Samples that a file is verified on where sparse kernels are on: an emulated processor takes a second for each."""


@dataclass(frozen=True, eq=False)
class Settlement:
    """The stages encode and verify: a plan -> a file that was found to be right.

    Args:
        dense: the dense file.
        weights: of it.
        reference: what the model answers.
        device: the target.
        kind: number type of the file.
        tolerance: in place of the number type's.
        strict: raise instead of leaving a weight dense.
        runs_sparse: XNNPACK's sparse inference will be on where the target has it.
    """

    dense: TFLiteFile
    weights: list[Weight]
    reference: Reference
    device: Device
    kind: NumberType
    tolerance: float | None
    strict: bool
    runs_sparse: bool

    def settle(self, plan: Plan) -> tuple[Plan, TFLiteFile, Verification, str | None]:
        """Encode and verify; where the file is wrong, find the weights that make it so and leave them dense.

        Raises:
            ExportError: the dense file is wrong too, or `strict`.
        """
        # In float32 the model itself is the sharpest measure; a quantized file is held against its dense twin as well.
        quantized = self.kind is not FLOAT32 and bool(plan.sparse)
        twin = answers(self.dense, self.reference, "the dense file") if quantized else None

        def check(tried: Plan, subject: str) -> tuple[TFLiteFile, Verification, str | None]:
            file = self.encode(tried)
            beside = twin if tried.sparse else None
            verification = compare_runs(file, self.reference, subject, self.kind, self.tolerance, beside)
            return file, verification, self._where_sparse(tried, file)

        try:
            return plan, *check(plan, "the sparse file" if plan.sparse else "the dense file")
        except ExportError as error:
            if not plan.sparse:
                raise
            failure = error
        check(plan.only([], ""), "the dense file, before any weight was stored sparse")
        wrong = [line for line in plan.sparse if not _passes(check, plan.only([line], ""), line)]
        if self.strict:
            culprit = wrong[0].name if wrong else "several weights together"
            raise ExportError(
                f"weight '{culprit}'",
                "stored sparse must leave the outputs as they are",
                failure,
                "Export with strict=False to leave it dense.",
            ) from failure
        kept = [line for line in plan.sparse if line not in wrong] if wrong else []
        reason = f"stored sparse, the file was wrong: {failure.rule}, received {failure.received}"
        settled = plan.only(kept, reason)
        try:
            return settled, *check(settled, "the sparse file")
        except ExportError:
            settled = plan.only([], reason)
            return settled, *check(settled, "the dense file")

    def encode(self, plan: Plan) -> TFLiteFile:
        """Return the file of a plan, with a summary of it inside."""
        summary = summarize(
            plan.lines, target=self.device.name, quantize=self.kind.name, detail=self.device.lists_weights
        )
        edits = partial(encode, plan=plan, weights=self.weights), partial(add_metadata, summary=summary)
        return self.dense.edited(*edits)[0]

    def _where_sparse(self, plan: Plan, file: TFLiteFile) -> str | None:
        """Run a file where sparse inference is on, if it will be, and say what came of it.

        Raises:
            ExportError: an output is off there.
        """
        if not self.runs_sparse or all(line.encoding is not Encoding.DENSIFY for line in plan.sparse):
            return None
        why = why_not_executed(file, self.device, "the sparse file")
        if why is not None:
            return why
        reference = self.reference.first(SPARSE_SAMPLES)
        run = verify_where_sparse(
            file,
            reference.inputs.arrays,
            reference.outputs,
            reference.input_names,
            reference.output_names,
            runtime=sparse_runtime(self.device) or "web",
            subject="the sparse file",
            tolerance=self.kind.tolerance if self.tolerance is None else self.tolerance,
        )
        return str(run)


def _passes(check: Callable[[Plan, str], Any], plan: Plan, line: PlanLine) -> bool:
    try:
        check(plan, f"the file with '{line.name}' sparse")
    except ExportError:
        return False
    return True
