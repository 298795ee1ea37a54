"""A model run on data -> the gates of each of its layers with gates, sample by sample."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.keras_seam import layers_in
from keras_prune.layers.gated import Gated, OpenedGates
from keras_prune.models.attributes import replaced
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.evaluation import forward

__all__ = ["Opened", "gated_layers", "opened_gates"]

Opened = list[npt.NDArray[np.bool_]]
"""For each call of a layer, in order: `[samples, channels]`, True where the gate is open."""


def gated_layers(owner: str, model: Any) -> list[Gated]:
    """Return the layers with gates of a built model, each once; refuse a model without."""
    refuse_keras2(owner, model)
    if not isinstance(model, keras.Model):
        raise TypeError(f"{owner} takes a keras.Model. Received: {model!r} of type {type(model).__name__}")
    found = [layer for layer in layers_in(model) if isinstance(layer, Gated)]
    if not found:
        raise ValueError(
            f"{owner}: {model.name!r} has no layer with gates. Put keras_prune.Gated around some, and train it."
        )
    return found


def opened_gates(owner: str, model: keras.Model, data: Any) -> tuple[list[Opened], int]:
    """Return the gates at inference of each layer with gates, in the order of `gated_layers`, and how many samples.

    Args:
        owner: the function that asks, for messages.
        model: built; it stays as it is.
        data: inputs in any form that `fit` takes; labels are not read.

    Raises:
        ValueError: the model has no gates, or does not hand its layers the samples themselves.
    """
    layers = gated_layers(owner, model)
    batches: list[list[Opened]] = [[] for _ in layers]
    samples = 0
    for batch in Batches(data, model, labels=False):
        samples += batch.size
        with contextlib.ExitStack() as stack:
            watches = [OpenedGates() for _ in layers]
            for layer, watch in zip(layers, watches, strict=True):
                stack.enter_context(replaced(layer, "watch", watch))
            forward(model, batch.x)
        for own, layer, watch in zip(batches, layers, watches, strict=True):
            own.append([_array(owner, layer, gates, batch.size) for gates in watch.calls])
    for layer, own in zip(layers, batches, strict=True):
        if not own[0]:
            raise ValueError(f"{owner}: {model.name!r} does not call its layer {layer.name!r} at inference.")
    return [[np.concatenate(calls) for calls in zip(*own, strict=True)] for own in batches], samples


def _array(owner: str, layer: Gated, gates: Any, size: int) -> npt.NDArray[np.bool_]:
    try:
        found = np.asarray(keras.ops.convert_to_numpy(gates)) > 0
    except Exception as error:  # a tensor of a loop that the backend has compiled
        raise ValueError(
            f"{owner}: the gates of {layer.path!r} cannot be read ({type(error).__name__}): it is called in a loop "
            "inside another layer, such as TimeDistributed."
        ) from error
    if len(found) != size:
        raise ValueError(
            f"{owner}: {layer.path!r} has to be called on the samples themselves, {size} in the first batch. "
            f"Received: {len(found)}, from a layer around it that divides or joins them."
        )
    return found
