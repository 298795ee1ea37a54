"""The stage that rewrites a Keras model into an equal one that the runtime serves better."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_prune.arrays.distance import relative_difference
from keras_prune.models.agreement import computing_in_float64
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import Change
from tflite_export.model import precision
from tflite_export.model.inputs import DRAWN, collect_inputs
from tflite_export.model.signature import Signature, signature_of
from tflite_export.rewrites.graph import FlatGraph, refusal_of
from tflite_export.tolerances import REWRITE

__all__ = ["Change", "Pass", "Refusal", "Rewritten", "rewrite_model"]


@dataclass(frozen=True)
class Refusal:
    """Something that a rewrite was meant for and left as it was.

    Args:
        rewrite: name of the pass.
        place: path of the layer, or name of the model.
        reason: why, and what would help.
    """

    rewrite: str
    place: str
    reason: str


@dataclass(frozen=True, eq=False)
class Rewritten:
    """What a pass made of a model.

    Args:
        model: a new model, or the one given where nothing was changed.
        changes: empty where the model is the one given.
        refusals: what was left as it was.
    """

    model: keras.Model
    changes: tuple[Change, ...] = ()
    refusals: tuple[Refusal, ...] = ()


class Pass(ABC):
    """A rewrite of a model into an equal one.

    Names and types of inputs, the structures of inputs and outputs, and the outputs themselves stay as they are.

    Attributes:
        name: what reports call it.
    """

    name: str

    def apply(self, model: keras.Model) -> Rewritten:
        """Return the model rewritten, or the one given with the reason why not.

        Args:
            model: built and without masks; left as it is.
        """
        if not self.concerns(model):
            return Rewritten(model)
        reason = refusal_of(model)
        if reason is not None:
            return Rewritten(model, refusals=(Refusal(self.name, model.name, reason),))
        made, changes, refusals = self.rewrite(FlatGraph(model))
        return Rewritten(model if made is None else made, changes, refusals)

    def concerns(self, model: keras.Model) -> bool:
        """Return whether a model may hold anything for this pass; asked before the model is copied."""
        return True

    @abstractmethod
    def rewrite(self, graph: FlatGraph) -> tuple[keras.Model | None, tuple[Change, ...], tuple[Refusal, ...]]:
        """Return a new model, or None where nothing is changed; what was changed; and what was left as it was.

        Args:
            graph: of a copy of the model, which may be edited.
        """


def rewrite_model(
    model: keras.Model,
    passes: Iterable[Pass],
    inputs: Sequence[NDArray[Any]] | None = None,
    tolerance: float = REWRITE,
) -> Rewritten:
    """Run passes in order, and compare the model after each one that changed something with the one before.

    error = max |after - before| / max |before|, for each output, in float32 as an export computes; where it is too
    large, it is measured anew in float64.

    Args:
        model: built and without masks; left as it is.
        passes: each takes what the one before made.
        inputs: an array [samples, ...] for each input of the model, flat, to compare on. None draws some.
        tolerance: largest error allowed.

    Raises:
        ExportError: a pass changed what the model answers, which is a mistake of the pass.

    Example:
        >>> from tflite_export.rewrites.heads import HeadsPass
        >>> model = keras.Sequential([keras.Input((1, 1, 8)), keras.layers.Conv2D(4, 1), keras.layers.Flatten()])
        >>> rewritten = rewrite_model(model, [HeadsPass()])
        >>> [change.what for change in rewritten.changes]
        ['1x1 convolution on a 1x1 map -> Dense', 'left out']
    """
    changes: list[Change] = []
    refusals: list[Refusal] = []
    for one in passes:
        result = one.apply(model)
        # That a model's graph is not known is each pass's reason, and said once.
        known = {(refusal.place, refusal.reason) for refusal in refusals}
        refusals += [refusal for refusal in result.refusals if (refusal.place, refusal.reason) not in known]
        if result.changes:
            _check_same(model, result.model, one.name, inputs, tolerance)
            changes += result.changes
            model = result.model
    return Rewritten(model, tuple(changes), tuple(refusals))


def _check_same(
    before: keras.Model, after: keras.Model, name: str, inputs: Sequence[NDArray[Any]] | None, tolerance: float
) -> None:
    was, now = signature_of(before), signature_of(after)
    if was.inputs != now.inputs:
        raise _mistake(name, "must keep the model's inputs", now.inputs)
    arrays = _drawn(before, was) if inputs is None else [np.asarray(array) for array in inputs]
    errors = _differences((before, was), (after, now), arrays)
    if not max(errors) <= tolerance:
        # A deep model may blow rounding up to any size; in float64 it is too small to be mistaken for an error.
        rule = f"must keep the outputs to {tolerance:g} of their scale"
        try:
            with computing_in_float64(before), computing_in_float64(after):
                errors = _differences((before, was), (after, now), arrays)
        except Exception as failure:  # a layer of the user's own may know float32 only, and raise anything
            received = f"{max(errors):.3g} in float32, and in float64 {type(failure).__name__}"
            raise _mistake(name, rule, received) from failure
    for place, error in enumerate(errors):
        if not error <= tolerance:
            raise _mistake(name, f"must keep output {place} to {tolerance:g} of its scale", f"{error:.3g}")


def _differences(
    before: tuple[keras.Model, Signature], after: tuple[keras.Model, Signature], arrays: Sequence[NDArray[Any]]
) -> list[float]:
    with precision.float32(before[0]), precision.float32(after[0]):
        wanted, got = _answers(*before, arrays), _answers(*after, arrays)
    keras.tree.assert_same_structure(wanted, got)
    pairs = zip(keras.tree.flatten(wanted), keras.tree.flatten(got), strict=True)
    return [relative_difference(b, a) if a.dtype == b.dtype else float("inf") for a, b in pairs]


def _answers(model: keras.Model, signature: Signature, arrays: Sequence[NDArray[Any]]) -> Any:
    return keras.tree.map_structure(
        keras.ops.convert_to_numpy,
        model(signature.pack([keras.ops.convert_to_tensor(a) for a in arrays]), training=False),
    )


def _drawn(model: keras.Model, signature: Signature) -> list[NDArray[Any]]:
    with warnings.catch_warnings():
        # Its warning is about a file verified on drawn inputs; here two models are compared that must always agree.
        warnings.simplefilter("ignore", UserWarning)
        return list(collect_inputs(model, signature, None, DRAWN).arrays)


def _mistake(name: str, rule: str, received: object) -> ExportError:
    return ExportError(
        f"rewrite '{name}'", rule, received, "Export without this rewrite, and report the model: it is our mistake."
    )
