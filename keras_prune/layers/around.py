"""Wrappers that run a layer in a scope of their own, and are to Keras what the layer is."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras

__all__ = ["Around"]


class Around(keras.layers.Wrapper):
    """A wrapper whose arguments of `call` and `build`, shapes and masks are those of the layer inside.

    Args:
        layer: the layer to wrap; if it is built, its weights are kept.
        **kwargs: what any Keras layer takes; `dtype` is the wrapped layer's.
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        if isinstance(layer, keras.Layer):
            # Keras reads the signatures of `call` and `build` to find arguments and shapes: they are the layer's.
            for method in ("call", "build"):
                setattr(self, method, _with_signature(getattr(self, method), getattr(layer, method)))
            kwargs.setdefault("dtype", layer.dtype_policy)
            kwargs.setdefault("autocast", layer.autocast)
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    @abc.abstractmethod
    def running(self) -> contextlib.AbstractContextManager[Any]:
        """Return the scope in which the layer runs."""

    @abc.abstractmethod
    def build_around(self) -> None:
        """Make what the wrapper needs of the layer, which is built; nothing where that is made."""

    def build(self, *shapes: Any, **named_shapes: Any) -> None:
        """Build the layer, if it is not built, and what the wrapper needs of it."""
        if not self.layer.built:
            self.layer.build(*shapes, **named_shapes)
            self.layer.built = True
        self.build_around()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer in the wrapper's scope."""
        with self.running():
            return self.layer(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's own method does."""
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's own method does."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's own method does."""
        return self.layer.compute_mask(*args, **kwargs)

    def get_build_config(self) -> Any:
        """Return the layer's own, so that it is built with the same shapes."""
        return self.layer.get_build_config()

    def build_from_config(self, config: Any) -> None:
        """Build the layer as it was built, then the rest."""
        if config and not self.layer.built:
            self.layer.build_from_config(config)
        if self.layer.built and not self.built:
            self.build()


def _with_signature(function: Callable[..., Any], model: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which shows the signature of `model`."""

    @functools.wraps(model)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return forward
