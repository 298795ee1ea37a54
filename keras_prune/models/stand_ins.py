"""Layers that are in a model only while it trains: around another layer, or between two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_prune.keras_seam import layers_in
from keras_prune.models.attributes import replaced

__all__ = ["StandIn", "at_rest", "hand_on", "run_at_rest", "stand_ins_in"]


class StandIn:
    """Base of such layers.

    Attributes:
        at_rest: whether the layer does what `plain` does, for a while.
    """

    at_rest = False

    @property
    def plain(self) -> Any:
        """The layer in whose place this one stands; None for a layer that, at rest, hands its input on."""
        return None


def stand_ins_in(model: Any) -> list[Any]:
    """Return the stand-ins of a model or layer, at any depth."""
    return [layer for layer in layers_in(model) if isinstance(layer, StandIn)]


@contextlib.contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """The scope in which a model computes what it would without its stand-ins."""
    with contextlib.ExitStack() as stack:
        for layer in stand_ins_in(model):
            stack.enter_context(replaced(layer, "at_rest", True))
        yield


def run_at_rest(model: keras.Model) -> Callable[..., Any]:
    """Return a function that answers as the model does without its stand-ins."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with at_rest(model):
            return model(*args, **kwargs)

    return run


def hand_on(inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the inputs: what is called in the place of a stand-in that goes without leaving a layer."""
    return inputs
