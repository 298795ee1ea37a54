"""A variable's value, without the copies that Keras makes on TensorFlow, and its gradient as one tensor."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

__all__ = ["assign", "dense", "given_back", "read", "resource_of", "weights_digest"]


def dense(gradient: Any) -> Any:
    """Return a gradient as one tensor of its weight's shape.

    On TensorFlow an Embedding's gradient comes as slices, one for each occurrence of a token: those of a token are
    added up. Keras's own operations on slices, |g| or clipping, say, act on each occurrence.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Keras's `convert_to_tensor` leaves slices as they are.
        return tf.convert_to_tensor(gradient)
    return ops.convert_to_tensor(gradient)


def read(variable: keras.Variable) -> npt.NDArray[Any]:
    """Return a variable's value as an array of its shape that may share its memory: read it, never write it.

    Let go of it soon: while it lives, TensorFlow copies the variable before it writes to it.
    """
    resource = resource_of(variable)
    if resource is not None:
        import tensorflow as tf

        # Keras would copy; `resource.value()` takes three times as long to say the same.
        return np.asarray(tf.raw_ops.ReadVariableOp(resource=resource.handle, dtype=resource.dtype))
    return np.asarray(ops.convert_to_numpy(variable.value))


def assign(variable: keras.Variable, values: npt.NDArray[Any]) -> None:
    """Set a variable of the same type and shape."""
    resource = resource_of(variable)
    if resource is not None:
        resource.assign(values, read_value=False)
    else:
        variable.assign(values)


def resource_of(variable: keras.Variable) -> Any:
    """Return the TensorFlow variable, if there is one and it is whole on one device; None otherwise."""
    if keras.backend.backend() != "tensorflow":
        return None
    value = variable.value
    # A distributed variable has a value on each device.
    return None if hasattr(value, "values") or not hasattr(value, "handle") else value


@contextlib.contextmanager
def given_back(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Let variables be written to for a while; in the end, an error or an interrupt included, they are as before."""
    before = [(variable, np.array(read(variable))) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def weights_digest(model: keras.Model) -> str:
    """Return a digest of a model's weights, their shapes and order: names do not count.

    Args:
        model: built.
    """
    digest = hashlib.sha256()
    for variable in model.weights:
        value = read(variable)
        digest.update(f"{value.shape}{value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
