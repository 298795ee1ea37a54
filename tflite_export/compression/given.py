"""The training data that a search is given: options of `fit`, a sample of inputs, and the code that names both."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_prune.models.variables import weights_digest
from keras_prune.statistics.input_shapes import InputShapes, describe, is_array
from keras_prune.statistics.reading import Reader
from tflite_export.errors import ExportError

__all__ = ["SAMPLES", "TrainingData", "digest_of_data", "digest_of_model", "first_samples"]

SAMPLES = 1024
"""Inputs that kernels are solved on, statistics are estimated on and files are calibrated on."""
LOOKED_AT = 64
"""Samples of an array that tell it from another."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """What candidates are made with.

    Args:
        fit: options of `fit` that hold the data; empty where there are no labels, so that nothing is trained.
        inputs: the first samples of x, in the structure of the model's inputs.
        code: lines that make `inputs` of `data`, for the recipe.
        arguments: the options of `fit` that hold the data, as code.
        weighted: whether samples have weights.
    """

    fit: dict[str, Any]
    inputs: Any
    code: tuple[str, ...]
    arguments: str
    weighted: bool = False

    @property
    def trains(self) -> bool:
        """Whether there are labels to train on."""
        return bool(self.fit)

    @classmethod
    def of(cls, data: Any, model: keras.Model, batch_size: int | None = None) -> TrainingData:
        """Read data in any form that `fit` takes.

        Args:
            data: `(x, y)`, `(x, y, sample_weight)`, x alone, or a data set of batches of these.
            model: whose inputs they are for.
            batch_size: for `fit`, where data are arrays.

        Raises:
            ExportError: they cannot be read, or only once.
        """
        if isinstance(data, Iterator) or (callable(data) and not hasattr(data, "__iter__")):
            raise ExportError(
                "data",
                "must be readable any number of times: each candidate is made with them",
                describe(data),
                "Pass (x, y), a tf.data.Dataset or a keras.utils.PyDataset.",
            )
        try:
            reader = Reader(data, InputShapes.of(model), size=SAMPLES, limit=None)
            parts = next(iter(reader), None)
            whole = reader.whole
        except ValueError as error:
            raise ExportError("data", "must be readable", error, "Pass (x, y), or a data set of batches.") from error
        if parts is None:
            raise ExportError("data", "must hold at least one sample", describe(data), "Check the data set.")
        inputs = first_samples(model, data)
        names = ("x", "y", "sample_weight")[: len(parts)]
        if whole:
            taken = data if isinstance(data, tuple | list) and len(parts) > 1 else (data,)
            fit = dict(zip(names, taken, strict=True)) | ({} if batch_size is None else {"batch_size": batch_size})
            code = [f"{', '.join(names)} = data"] if len(parts) > 1 else ["x = data"]
            simple = is_array(parts[0])
            code += [f"inputs = x[:{SAMPLES}]"] if simple else _FIRST
            arguments = ", ".join(f"{name}={name}" for name in names)
            arguments += "" if batch_size is None else f", batch_size={batch_size}"
        else:
            _refuse_list(data)
            fit, code, arguments = {"x": data}, _FIRST, "x=data"
        labelled = len(parts) > 1
        return cls(fit if labelled else {}, inputs, tuple(code), arguments, weighted=len(parts) > 2)


_FIRST = [
    "from tflite_export.compression.given import first_samples",
    "inputs = first_samples(model, data)",
]


def _refuse_list(data: Any) -> None:
    if isinstance(data, list):
        raise ExportError(
            "data",
            "must be what fit takes",
            f"a list of {len(data)} batches",
            "Pass (x, y), a tf.data.Dataset or a keras.utils.PyDataset.",
        )


def first_samples(model: keras.Model, data: Any, samples: int = SAMPLES) -> Any:
    """Return the first inputs of data, in the structure of the model's inputs.

    Args:
        model: whose inputs they are for.
        data: in any form that `fit` takes.
        samples: so many, or fewer where there are no more.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> first_samples(model, (np.ones((5, 2)), np.ones(5)), 3).shape
        (3, 2)
    """
    taken: list[Any] = []
    count = 0
    for parts in Reader(data, InputShapes.of(model), size=samples, limit=None):
        x = tree.map_structure(lambda leaf: ops.convert_to_numpy(leaf), parts[0])
        taken.append(x)
        count += len(tree.flatten(x)[0])
        if count >= samples:
            break
    return tree.map_structure(lambda *leaves: np.concatenate(leaves)[:samples], *taken)


def digest_of_data(data: Any) -> str:
    """Return what data are told from other data by: shapes, types and some samples of arrays, the kind of data sets.

    Example:
        >>> digest_of_data(np.zeros(3)) == digest_of_data(np.zeros(3)), digest_of_data(np.ones(3)) == digest_of_data(
        ...     np.zeros(3)
        ... )
        (True, False)
    """
    found = hashlib.sha256()
    for leaf in tree.flatten(data):
        if is_array(leaf) and len(leaf.shape):
            array = leaf[:: max(1, len(leaf) // LOOKED_AT)]
            array = np.ascontiguousarray(ops.convert_to_numpy(array))
            found.update(f"{tuple(leaf.shape)} {array.dtype}".encode())
            found.update(array.tobytes() if array.dtype.kind in "fiub" else repr(array.tolist()).encode())
        else:
            spec = getattr(leaf, "element_spec", None)
            name = getattr(leaf, "__qualname__", type(leaf).__qualname__)
            found.update(f"{name} {spec}".encode())
    return found.hexdigest()[:16]


def digest_of_model(model: keras.Model) -> str:
    """Return what a model is told from another by: weights, layers and settings of `compile`.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> copy = keras.models.clone_model(model)  # with other weights
        >>> before = digest_of_model(copy)
        >>> copy.set_weights(model.get_weights())
        >>> before == digest_of_model(model), digest_of_model(copy) == digest_of_model(model)
        (False, True)
    """
    found = hashlib.sha256(weights_digest(model).encode())
    for layer in model.layers:
        found.update(type(layer).__name__.encode())
    found.update(str(_nameless(model.get_compile_config()) if model.compiled else None).encode())
    return found.hexdigest()[:16]


def _nameless(config: Any) -> Any:
    """Return a configuration without names: Keras counts them up, so that the same code gives others the next time."""
    if isinstance(config, dict):
        return {key: _nameless(value) for key, value in config.items() if key != "name"}
    return [_nameless(value) for value in config] if isinstance(config, list | tuple) else config
