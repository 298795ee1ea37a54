"""What is exported, behind one interface: a Keras model, or a function of TensorFlow."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
from numpy.typing import NDArray

from keras_prune import strip
from keras_prune.keras_seam import layers_in
from keras_prune.layers import MaskedLayer, Prunable
from keras_prune.models.stand_ins import stand_ins_in
from keras_prune.strip import effective_mask
from tflite_export.convert.converter import SUBJECT, Converted, convert, named_errors
from tflite_export.convert.number_types import FLOAT32, INT8, NumberType, batches, check_loops, configure
from tflite_export.convert.workspace import temporary_folder
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model import precision
from tflite_export.model.classes import Compiled
from tflite_export.model.fresh_state import kept
from tflite_export.model.inputs import SAMPLES, Inputs, collect_inputs
from tflite_export.model.reference import Reference, answer
from tflite_export.model.signature import InputSpec, Signature, one_batch, signature_of

__all__ = ["DEFAULT_KEY", "FunctionSource", "KerasSource", "Source", "build_like"]

DEFAULT_KEY = "serving_default"


class Source(ABC):
    """What is exported.

    Attributes:
        name: what to call it.
        model: the Keras 3 model that rewrites may work on, or None where there is none (a SavedModel).
        notes: what was decided on the way, for the report.
    """

    name: str
    model: keras.Model | None
    notes: tuple[str, ...]

    @abstractmethod
    def signature(self, data: Any = None) -> Signature:
        """Return its inputs; the types of a subclassed Keras model's are read from the data."""

    @abstractmethod
    def inputs(self, signature: Signature, data: Any = None, samples: int = SAMPLES) -> Inputs:
        """Return samples of the data, or drawn ones: see `tflite_export.model.inputs.collect_inputs`."""

    @abstractmethod
    def answer(self, signature: Signature, inputs: Inputs) -> Reference:
        """Return what it answers to the inputs, as it was given: with masks, wrappers, in its own library."""

    @abstractmethod
    def convert(
        self,
        signature: Signature,
        batch_size: int | None = None,
        kind: NumberType = FLOAT32,
        calibration: Inputs | None = None,
    ) -> Converted:
        """Return the dense .tflite: see `tflite_export.convert.converter.convert`."""

    @abstractmethod
    def variables(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield path and values of each variable, so that the weights of the file get their names."""

    def in_numbers(self, kind: NumberType) -> Source:
        """Return what is exported in a number type: this, unless what was trained is for another one."""
        return self


class KerasSource(Source):
    """A Keras 3 model.

    Args:
        model: built.
        original: what it was made from, which answers in its place; None for itself.
        notes: for the report.
        compiled: what it was compiled with, of a file, which is loaded without; None: the model knows.
    """

    def __init__(
        self,
        model: keras.Model,
        original: Any = None,
        notes: tuple[str, ...] = (),
        compiled: Compiled | None = None,
    ) -> None:
        self.name, self.model, self.notes, self._compiled = model.name, model, notes, compiled
        self.keras: keras.Model = model
        self._original = original

    def signature(self, data: Any = None) -> Signature:
        return signature_of(self.keras, data)

    def inputs(self, signature: Signature, data: Any = None, samples: int = SAMPLES) -> Inputs:
        return collect_inputs(self.keras, signature, data, samples)

    def answer(self, signature: Signature, inputs: Inputs) -> Reference:
        if self._original is not None:
            found = answer(self._original, signature, inputs)
            return replace(found, classes=Compiled.of(self._original).classes(found.output_names))
        with precision.float32(self.keras):
            found = answer(self.keras, signature, inputs)
        return replace(found, classes=(self._compiled or Compiled.of(self.keras)).classes(found.output_names))

    def in_numbers(self, kind: NumberType) -> Source:
        """Return this source; of a model that trained quantization-aware, the plain model for all types but int8."""
        if kind is INT8 or not stand_ins_in(self.keras):
            return self
        note = f"exported as it is without quantization-aware training, whose ranges are for int8, not for {kind}"
        stripped = strip(self.keras)
        return KerasSource(stripped, notes=(*self.notes, note), compiled=self._compiled or Compiled.of(self.keras))

    def plain(self) -> keras.Model:
        """Return the model without masks: a copy where it carries any, else itself.

        One that trained quantization-aware is given as it is: the converter reads the ranges from its operations, and
        the zeros are in its kernels.
        """
        if stand_ins_in(self.keras) or not _carries_masks(self.keras):
            return self.keras
        stripped = strip(self.keras)
        build_like(stripped, self.keras)
        return stripped

    def convert(
        self,
        signature: Signature,
        batch_size: int | None = None,
        kind: NumberType = FLOAT32,
        calibration: Inputs | None = None,
    ) -> Converted:
        return convert(self.plain, signature, batch_size, kind, calibration)

    def variables(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for variable in self.keras.variables:
            if variable.shape:
                yield variable.path, keras.ops.convert_to_numpy(variable.value)


class FunctionSource(Source):
    """A TensorFlow function of named tensors: of a SavedModel, or of a tf_keras model that Keras 3 cannot take.

    Args:
        name: what to call it.
        function: from keyword arguments to a dictionary, tensors both.
        specs: (name, shape with the batch, type) of each input.
        tracked: what holds the variables.
        variables: TensorFlow's.
        key: of its signature, which the file keeps.
        notes: for the report.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., dict[str, Any]],
        specs: Iterable[tuple[str, tuple[int | None, ...], str]],
        tracked: Any,
        variables: Iterable[Any],
        key: str = DEFAULT_KEY,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.model, self.notes, self.key = name, None, notes, key
        self._function, self._tracked, self._variables = function, tracked, tuple(variables)
        ordered = sorted(specs)
        for spec_name, shape, dtype in ordered:
            if not shape or dtype == "string":
                raise ExportError(
                    f"input '{spec_name}' of {name}",
                    "must hold numbers and have a batch dimension",
                    f"{dtype}, shape {shape}",
                    "Export the part of the model behind it.",
                )
        self._batch = one_batch((shape[0] for _, shape, _ in ordered), name)
        self._specs = tuple(InputSpec(spec_name, tuple(shape[1:]), dtype) for spec_name, shape, dtype in ordered)

    @classmethod
    def load(cls, path: Path, key: str | None = None) -> FunctionSource:
        """Load a SavedModel.

        Raises:
            ExportError: it cannot be read, has no such signature, or holds pruning wrappers.
        """
        import tensorflow as tf

        subject = f"'{path}'"
        try:
            loaded = tf.saved_model.load(os.fspath(path))
            signatures = dict(loaded.signatures)
        except Exception as error:  # TensorFlow raises anything from OSError to its own errors
            raise ExportError(
                subject, "must load as a SavedModel", f"{type(error).__name__}: {error}", "Save it again."
            ) from error
        if key is None:
            key = DEFAULT_KEY if DEFAULT_KEY in signatures or len(signatures) != 1 else next(iter(signatures))
        if key not in signatures:
            raise ExportError(
                subject, f"must have the signature '{key}'", sorted(signatures), "Name one: signature_key=... ."
            )
        function = signatures[key]
        named = {variable.name: variable for variable in (*getattr(loaded, "variables", ()), *function.variables)}
        wrapped = [name for name in named if "prune_low_magnitude" in name and "/mask" in name]
        if wrapped:
            raise ExportError(
                subject,
                "must be saved without tfmot's pruning wrappers, which change weights as the file runs",
                wrapped[0],
                "Export the tf_keras model object or its .h5 file, or save it after strip_pruning.",
            )
        specs = function.structured_input_signature[1]
        return cls(
            subject,
            function,
            [(name, _shape(spec, subject), spec.dtype.name) for name, spec in specs.items()],
            loaded,
            named.values(),
            key,
        )

    def signature(self, data: Any = None) -> Signature:
        return Signature(self._specs, {spec.name: spec.name for spec in self._specs}, self._batch)

    def inputs(self, signature: Signature, data: Any = None, samples: int = SAMPLES) -> Inputs:
        # An empty model: there are no layers that tell the range of an index, so integers are drawn from 0 and 1.
        return collect_inputs(keras.Sequential(), signature, data, samples)

    def answer(self, signature: Signature, inputs: Inputs) -> Reference:
        # All that it does with a model is to call it. Weights are not copied: what a function assigns is not trained.
        state = [variable for variable in self._variables if not variable.trainable]
        return answer(self, signature, inputs, lambda: kept(state))

    def __call__(self, tensors: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return the outputs for a batch."""
        import tensorflow as tf

        return self._function(**{name: tf.constant(each) for name, each in tensors.items()})

    def write(
        self, folder: str, batch: int | None = None, inputs: tuple[InputSpec, ...] | None = None
    ) -> tuple[tuple[str, ...], set[str]]:
        """Write a SavedModel of this function alone.

        Args:
            folder: where.
            batch: to which the batch is fixed; None leaves it free.
            inputs: with the sizes that they are fixed to; None: as they are.

        Returns:
            The names of its outputs, and the kinds of TensorFlow operations in it.
        """
        import tensorflow as tf

        names: list[str] = []

        def serve(*tensors: Any) -> dict[str, Any]:
            outputs = self._function(**{spec.name: each for spec, each in zip(self._specs, tensors, strict=True)})
            names[:] = sorted(outputs)
            return dict(outputs)

        module = tf.Module()
        module.tracked = self._tracked
        specs = [tf.TensorSpec((batch, *spec.shape), spec.dtype, name=spec.name) for spec in inputs or self._specs]
        function = tf.function(serve, input_signature=specs)
        tf.saved_model.save(module, folder, signatures={self.key: function})
        graph = function.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
        return tuple(names), {node.op for node in nodes}

    def convert(
        self,
        signature: Signature,
        batch_size: int | None = None,
        kind: NumberType = FLOAT32,
        calibration: Inputs | None = None,
    ) -> Converted:
        def convert_at(batch: int | None, *notes: str) -> Converted:
            return self._convert_at(signature, batch, notes, kind, calibration)

        batch_size = signature.batch if batch_size is None else batch_size
        if self._batch is not None and batch_size != self._batch:
            raise ExportError(
                self.name, f"was saved with a batch of {self._batch}", batch_size, "Save it with a free one."
            )
        if batch_size is not None:
            return convert_at(batch_size)
        try:
            return convert_at(None)
        except ExportError as free:
            try:
                return convert_at(1, f"batch fixed to 1: the converter failed with a free batch ({free.received})")
            except ExportError:
                raise free from None

    def _convert_at(
        self,
        signature: Signature,
        batch: int | None,
        notes: tuple[str, ...],
        kind: NumberType,
        calibration: Inputs | None,
    ) -> Converted:
        import tensorflow as tf

        names = tuple(spec.name for spec in self._specs)

        def samples() -> Iterator[dict[str, NDArray[Any]]]:
            assert calibration is not None  # asked for by number types that need it only
            return batches(calibration, names, batch)

        with temporary_folder() as folder, named_errors(signature, self.name):
            outputs, operations = self.write(folder, batch, signature.inputs)
            check_loops(kind, operations, self.name)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[self.key])
            configure(converter, kind, samples)
            file = TFLiteFile(converter.convert(), SUBJECT)
        return Converted(file, batch, names, outputs, notes)

    def variables(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for variable in self._variables:
            if variable.shape.rank and variable.dtype.is_floating:
                yield variable.name.removesuffix(":0"), variable.numpy()


def build_like(model: keras.Model, built: keras.Model) -> None:
    """Build a copy of a subclassed model, whose weights are there already, as its first call would.

    The call is symbolic: sizes that are free stay free, so that no window can be too large for an invented one.
    """
    if model.built:
        return
    signature = signature_of(built)
    inputs = [keras.KerasTensor((signature.batch, *spec.shape), spec.dtype) for spec in signature.inputs]
    with precision.float32(model):
        model(signature.pack(inputs), training=False)


def _carries_masks(model: keras.Model) -> bool:
    """Return whether there is anything to strip. If not, no copy is made: some subclassed models cannot be copied."""
    own = any(isinstance(layer, (MaskedLayer, Prunable)) for layer in layers_in(model))
    return own or bool(effective_mask(model))


def _shape(spec: Any, subject: str) -> tuple[int | None, ...]:
    if spec.shape.rank is None:
        raise ExportError(
            f"input '{spec.name}' of {subject}",
            "must have a known number of dimensions",
            "none",
            "Save it with a shape.",
        )
    return tuple(spec.shape.as_list())
