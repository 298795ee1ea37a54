"""What a Keras model takes and gives: names, shapes and types, in the order that its file will have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_prune.keras_seam import layers_in
from keras_prune.statistics.input_shapes import InputShapes
from keras_prune.statistics.reading import Reader
from tflite_export.errors import ExportError

__all__ = ["InputSpec", "Signature", "one_batch", "output_names", "signature_of"]


@dataclass(frozen=True)
class InputSpec:
    """One input: its name, its shape without the batch (None where free), its type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """The inputs of a model, flat, and the structure that its `call` wants them in.

    Args:
        inputs: in the order of `keras.tree.flatten`.
        structure: one leaf for each input.
        batch: samples of a run, where the model or whoever exports it has fixed them; None: any number.
    """

    inputs: tuple[InputSpec, ...]
    structure: Any
    batch: int | None = None

    @property
    def free(self) -> tuple[InputSpec, ...]:
        """The inputs with a size besides the batch that is free."""
        return tuple(spec for spec in self.inputs if None in spec.shape)

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Return flat tensors in the structure that the model's `call` wants."""
        return keras.tree.pack_sequence_as(self.structure, list(tensors))


def signature_of(model: keras.Model, data: Any = None) -> Signature:
    """Return the signature of a built model.

    A functional or sequential model knows it; a subclassed one is read from the shapes it was built with, and
    its types from `data` where given (arrays in the structure of its input), else float32. The batch is fixed where
    the model's inputs say so, or a stateful recurrent layer, whose state has the size of a batch.

    Raises:
        ExportError: the model is not built, or its inputs have different batch sizes.
    """
    if not model.built:
        raise ExportError(
            f"model '{model.name}'",
            "must be built before it is exported",
            "an unbuilt model",
            "Call it once on a batch.",
        )
    inputs = getattr(model, "inputs", None)
    if inputs:
        structure = inputs[0] if isinstance(model, keras.Sequential) else model.input
        leaves = keras.tree.flatten(structure)
        for leaf in leaves:
            if leaf.dtype == "string":
                raise ExportError(
                    f"input '{leaf.name}' of model '{model.name}'",
                    "must hold numbers: TFLite has no kernels for text",
                    leaf.dtype,
                    "Export the part of the model behind the layers that read text, and give it their ids.",
                )
        specs = [
            InputSpec(_name(leaf.name, i), tuple(leaf.shape[1:]), keras.backend.standardize_dtype(leaf.dtype))
            for i, leaf in enumerate(leaves)
        ]
        batch = one_batch((leaf.shape[0] for leaf in leaves), f"model '{model.name}'")
        return Signature(_distinct(specs), keras.tree.map_structure(lambda leaf: leaf.name, structure), batch)
    batch = one_batch(_batches_of_states(model), f"model '{model.name}'")
    shapes = _built_shapes(model)
    if isinstance(shapes, dict):
        keys = sorted(shapes)
        return _subclassed([(key, shapes[key]) for key in keys], {key: key for key in keys}, data, batch)
    if shapes and isinstance(shapes[0], (list, tuple)):
        names = [f"input_{i}" for i in range(len(shapes))]
        return _subclassed(list(zip(names, shapes, strict=True)), names, data, batch)
    return _subclassed([("input", shapes)], "input", data, batch)


def one_batch(sizes: Iterable[int | None], subject: str) -> int | None:
    """Return the batch that several inputs have in common; None where it is free in all of them.

    Raises:
        ExportError: they have different ones.
    """
    fixed = {size for size in sizes if size is not None}
    if len(fixed) > 1:
        raise ExportError(subject, "its inputs must have one batch size", sorted(fixed), "Build it with a free batch.")
    return next(iter(fixed), None)


def _batches_of_states(model: keras.Model) -> list[int | None]:
    stateful = [layer for layer in layers_in(model) if isinstance(layer, keras.layers.RNN) and layer.stateful]
    return [int(state.shape[0]) for layer in stateful for state in keras.tree.flatten(layer.states or [])]


def _subclassed(inputs: Sequence[tuple[str, Any]], structure: Any, data: Any, batch: int | None) -> Signature:
    """Return the signature of inputs built with certain shapes; their types are those of the data, else float32."""
    shapes = InputShapes(tuple(name for name, _ in inputs), tuple((None, *shape[1:]) for _, shape in inputs))
    # Only the first sample is read, of a generator too, which its next reader gets again.
    first = None if data is None else next(iter(Reader(data, shapes, size=1, limit=None)), None)
    leaves = (None if first is None else shapes.leaves(first[0])) or []
    typed = len(leaves) == len(inputs) and all(hasattr(leaf, "dtype") for leaf in leaves)
    types = [keras.backend.standardize_dtype(leaf.dtype) for leaf in leaves] if typed else ["float32"] * len(inputs)
    # Doubles are what NumPy makes of any list of numbers; Keras casts them to float32.
    types = ["float32" if dtype == "float64" else dtype for dtype in types]
    specs = [InputSpec(name, tuple(shape[1:]), dtype) for (name, shape), dtype in zip(inputs, types, strict=True)]
    return Signature(tuple(specs), structure, batch)


def output_names(outputs: Any) -> tuple[str, ...]:
    """Return a name for each leaf of a model's outputs: a dictionary's keys, else `output_0`, `output_1`.

    Example:
        >>> output_names({"box": 0, "label": 1}), output_names([0, 1])
        (('box', 'label'), ('output_0', 'output_1'))
    """
    if isinstance(outputs, dict) and all(not isinstance(value, (dict, list, tuple)) for value in outputs.values()):
        return tuple(str(key) for key in sorted(outputs))
    return tuple(f"output_{i}" for i in range(len(keras.tree.flatten(outputs))))


def _built_shapes(model: keras.Model) -> Any:
    config = model.get_build_config() or {}
    shapes = config.get("input_shape", config.get("shapes_dict"))
    if shapes is None:
        raise ExportError(
            f"model '{model.name}'",
            "the shapes it was built with must be known",
            config,
            "Call it once on a batch, or make it a functional model.",
        )
    return shapes


def _name(name: str, position: int) -> str:
    """Return a name that TensorFlow takes for an argument."""
    cleaned = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return cleaned if cleaned and cleaned[0].isalpha() else f"input_{position}"


def _distinct(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    names = [spec.name for spec in specs]
    if len(set(names)) == len(names):
        return tuple(specs)
    return tuple(InputSpec(f"{spec.name}_{i}", spec.shape, spec.dtype) for i, spec in enumerate(specs))
