"""The answers of a model to inputs, with which its file is compared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_prune.arrays.distance import distance, is_float, scale_of
from tflite_export.errors import ExportError
from tflite_export.model.classes import are_distributions
from tflite_export.model.fresh_state import fresh_state
from tflite_export.model.inputs import Inputs
from tflite_export.model.reasons import reason_of
from tflite_export.model.signature import Signature, output_names
from tflite_export.runtimes.sessions import in_batches, is_per_sample, joined
from tflite_export.tolerances import SAME_IN_COMPANY

__all__ = ["Reference", "answer"]


@dataclass(frozen=True, eq=False)
class Reference:
    """What the Keras model answers to the inputs.

    Args:
        inputs: the samples.
        outputs: one array [samples, ...] for each output; an output of a whole batch is repeated for each sample of it.
        input_names: of the file, in the model's order.
        output_names: likewise.
        batch: samples of a run, where the answers belong to runs of that many: the model or the file has a fixed batch,
            or its answers depend on all samples of a run. The last run is filled up with the last sample. None: the
            answer to a sample is the same in any company.
        classes: for each output, whether the model says that it holds scores of classes; None where it does not say.
            Empty: of no output.
    """

    inputs: Inputs
    outputs: tuple[NDArray[Any], ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    batch: int | None = None
    classes: tuple[bool | None, ...] = ()

    @property
    def named_inputs(self) -> dict[str, NDArray[Any]]:
        """The samples, [samples, ...] each, by the file's names of its inputs."""
        return dict(zip(self.input_names, self.inputs.arrays, strict=True))

    def has_classes(self) -> list[bool]:
        """Return for each output whether the place of its largest value is an answer: see `classes.py`."""
        declared = self.classes or (None,) * len(self.outputs)
        return [
            output.ndim == 2 and output.shape[1] > 1 and (are_distributions(output) if known is None else known)
            for output, known in zip(self.outputs, declared, strict=True)
        ]

    def first(self, samples: int) -> Reference:
        """Return the first samples and answers, as many as make whole runs."""
        whole = -(-samples // (self.batch or 1)) * (self.batch or 1)
        inputs = Inputs(tuple(array[:whole] for array in self.inputs.arrays), self.inputs.drawn)
        return replace(self, inputs=inputs, outputs=tuple(output[:whole] for output in self.outputs))


def answer(
    model: Any,
    signature: Signature,
    inputs: Inputs,
    fresh: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Reference:
    """Run the Keras model on the inputs, each run from a fresh state; the model's own state stays as it is.

    Args:
        model: what is called, with inputs packed as the signature says and `training=False`; it has a `name`.
        signature: of it. With a fixed batch it is run in batches of that size.
        inputs: the samples.
        fresh: makes the context of a run; None: `tflite_export.model.fresh_state.fresh_state` of the model.

    Raises:
        ExportError: the model cannot answer these inputs, or answers NaN.
    """
    within = fresh or (lambda: fresh_state(model))

    def run(feeds: list[NDArray[Any]]) -> tuple[tuple[str, ...], list[NDArray[Any]]]:
        with within():
            try:
                outputs = model(signature.pack(feeds), training=False)
                found = [keras.ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(outputs)]
            except ExportError:
                raise
            except Exception as error:  # layers raise anything
                raise _cannot_answer(model.name, feeds, error) from error
        return output_names(outputs), found

    batch = signature.batch
    names: tuple[str, ...] = ()
    parts: list[list[NDArray[Any]]] = []
    sizes: list[int] = []
    chunks = list(in_batches(inputs.arrays, batch))
    for chunk in chunks:
        names, found = run(chunk)
        if batch is None and not parts:
            needed = _batch_needed(found, chunk, run)
            if needed is not None:
                return answer(model, replace(signature, batch=needed), inputs, fresh)
        parts.append(found)
        sizes.append(len(chunk[0]))
    columns = tuple(joined(parts, sizes, len(inputs)))
    for name, column in zip(names, columns, strict=True):
        if column.dtype.kind == "f" and np.isnan(column).any():
            raise ExportError(
                f"output '{name}' of model '{model.name}'",
                "must hold no NaN",
                f"{int(np.isnan(column).sum())} NaN",
                "Check the weights and the data.",
            )
    return Reference(inputs, columns, tuple(spec.name for spec in signature.inputs), names, batch)


def _batch_needed(found: list[NDArray[Any]], chunk: list[NDArray[Any]], run: Callable[..., Any]) -> int | None:
    """Return the batch that a model has to be run in, or None where the answer to a sample is the same in any.

    1 where an output is of a whole batch, or that of a sample depends on what else is in it; as many samples as there
    are where one alone is not answered.
    """
    count = len(chunk[0])
    if not all(is_per_sample(output, count) for output in found):
        return 1
    if count == 1:
        return None
    try:
        _, alone = run([part[:1] for part in chunk])
    except ExportError:
        return count
    same = all(
        one.shape == output[:1].shape
        and (not is_float(one) or distance(one, output[:1], scale_of(output)).relative <= SAME_IN_COMPANY)
        for one, output in zip(alone, found, strict=True)
    )
    return None if same else 1


def _cannot_answer(name: str, feeds: list[NDArray[Any]], error: Exception) -> ExportError:
    shapes = ", ".join(str(feed.shape) for feed in feeds)
    return ExportError(
        f"model '{name}'",
        f"must accept the data itself, since its file is compared with it (inputs of shape {shapes})",
        reason_of(error),
        "Give data that model(data) takes: check their sizes, and the ranges of ids.",
    )
