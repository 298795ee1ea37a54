"""The stages encode and verify: a plan becomes a file that was found right, and what makes it wrong stays dense."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

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
from tflite_export.verification.verify import Answers, Verification, answers, compare_runs

__all__ = ["SPARSE_SAMPLES", "VerifiedEncoder", "VerifiedFile"]

SPARSE_SAMPLES = 4
"""Samples that a file is verified on where sparse kernels are on: an emulated processor takes a second for each."""


@dataclass(frozen=True, eq=False)
class VerifiedFile:
    """A file that was found to answer as its model.

    Args:
        plan: by which it is stored; a weight that made the file wrong is dense in it, with that as its reason.
        file: it.
        verification: its errors.
        sparse_run: what came of running it where sparse kernels are on; None where no sparse kernel would read it.
    """

    plan: Plan
    file: TFLiteFile
    verification: Verification
    sparse_run: str | None


@dataclass(frozen=True, eq=False)
class VerifiedEncoder:
    """The stages encode and verify: a plan becomes a file that was found right.

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

    def encode(self, plan: Plan) -> VerifiedFile:
        """Return the file of a plan, verified; weights that make it wrong are found and left dense.

        1. The file is right: it is returned.
        2. The dense file is wrong too: that is raised, since no weight is to blame.
        3. Weights that make it wrong alone are left dense, if the file is right then.
        4. Else, all are: each may be right alone, and several together wrong.

        Raises:
            ExportError: the dense file is wrong, or, if `strict`, the sparse one.
        """
        try:
            return self._attempt(plan, "the sparse file" if plan.sparse else "the dense file")
        except ExportError as error:
            if not plan.sparse:
                raise
            failure = error
        self._attempt(plan.only([], ""), "the dense file, before any weight was stored sparse")
        right, wrong = self._apart(plan)
        if self.strict:
            culprit = wrong[0].name if wrong else "several weights together"
            raise ExportError(
                f"weight '{culprit}'",
                "stored sparse must leave the outputs as they are",
                failure,
                "Export with strict=False to leave it dense.",
            ) from failure
        if wrong and right:
            plan = plan.only(right, _reason(failure))
            try:
                return self._attempt(plan, "the sparse file")
            except ExportError as error:
                failure = error
        return self._attempt(plan.only([], _reason(failure)), "the dense file")

    def _apart(self, plan: Plan) -> tuple[list[PlanLine], list[PlanLine]]:
        """Return the sparse lines with which the file is right, and those with which it is wrong, each tried alone."""
        right, wrong = [], []
        for line in plan.sparse:
            try:
                self._attempt(plan.only([line], ""), f"the file with '{line.name}' sparse")
            except ExportError:
                wrong.append(line)
            else:
                right.append(line)
        return right, wrong

    def _attempt(self, plan: Plan, subject: str) -> VerifiedFile:
        """Write the file of a plan and verify it.

        Raises:
            ExportError: it does not answer as the model.
        """
        summary = summarize(
            plan.lines, target=self.device.name, quantize=self.kind.name, detail=self.device.lists_weights
        )
        edits = partial(encode, plan=plan, weights=self.weights), partial(add_metadata, summary=summary)
        file, _ = self.dense.edited(*edits)
        beside = self._dense_answers if plan.sparse and self.kind is not FLOAT32 else None
        verification = compare_runs(file, self.reference, subject, self.kind, self.tolerance, beside)
        return VerifiedFile(plan, file, verification, self._run_where_sparse(plan, file))

    @cached_property
    def _dense_answers(self) -> Answers:
        """What the dense file answers: the sharpest measure of a quantized one. For float32 it is the model itself."""
        return answers(self.dense, self.reference, "the dense file")

    def _run_where_sparse(self, plan: Plan, file: TFLiteFile) -> str | None:
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


def _reason(failure: ExportError) -> str:
    return f"stored sparse, the file was wrong: {failure.rule}, received {failure.received}"
