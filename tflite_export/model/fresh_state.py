"""The state that a model keeps from call to call: an export begins with a fresh one, and puts the model's own back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from keras_prune.keras_seam import layers_in, own_state, random_states
from keras_prune.layer_kinds import states_of

__all__ = ["fresh_state", "kept"]


@contextmanager
def fresh_state(model: Any) -> Iterator[None]:
    """Let a model begin a sequence: stateful recurrent layers from zeros. Afterwards all its state is as it was.

    State is what a model may assign as it answers: states of recurrent layers, and whatever else is no weight that is
    trained, such as a layer's own counters and seeds.

    Args:
        model: a Keras 3 or tf_keras model.

    Example:
        >>> import keras
        >>> layer = keras.layers.SimpleRNN(1, stateful=True, kernel_initializer="ones")
        >>> model = keras.Sequential([keras.Input((1, 1), batch_size=1), layer])
        >>> with fresh_state(model):
        ...     _ = model(np.ones((1, 1, 1)))
        >>> float(layer.states[0][0, 0])
        0.0
    """
    layers = layers_in(model)
    variables = {id(variable): variable for layer in layers for variable in _state_of(layer)}
    with kept(variables.values()):
        for layer in layers:
            if getattr(layer, "stateful", False):
                _reset(layer)
        yield


@contextmanager
def kept(variables: Any) -> Iterator[None]:
    """Put variables, Keras's or TensorFlow's, back to their values, those that were changed."""
    before = [(variable, variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, values in before:
            if not np.array_equal(variable.numpy(), values):
                variable.assign(values)


def _state_of(layer: Any) -> list[Any]:
    own = own_state(layer) + random_states(layer) + states_of(layer)
    return [variable for variable in own if hasattr(variable, "assign")]


def _reset(layer: Any) -> None:
    # Keras 3 has reset_state, tf_keras reset_states only; a wrapper's inner layers are in the list as well.
    reset: Callable[[], None] | None = getattr(layer, "reset_state", None) or getattr(layer, "reset_states", None)
    if reset is not None:
        reset()
