"""The layers of a model that trains quantization-aware: around a layer with kernels, and behind an activation."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prune.layers.around import Around
from keras_prune.layers.replacing import ReplacedKernels
from keras_prune.models.stand_ins import StandIn
from keras_prune.models.variables import read
from keras_prune.quantization.kinds import refusal_of, scaled_kernels
from keras_prune.quantization.rounding import round_range, round_weights

__all__ = ["RANGES", "FakeQuantize", "QuantizedKernels", "RoundedLayer", "Seen", "extremes", "rounded_kernels"]

RANGES = ("moving", "trained")
"""How a range comes about in training."""
NARROWEST = 1e-6
"""Width of the range of values that are all zero."""


class Seen:
    """The extremes of values that a layer was given, 0 among them."""

    def __init__(self) -> None:
        self.low = self.high = 0.0

    def add(self, values: Any) -> None:
        """Take a batch of values into account."""
        self.low = min(self.low, float(ops.min(values)))
        self.high = max(self.high, float(ops.max(values)))


def extremes(values: Any) -> tuple[Any, Any]:
    """Return the smallest and the largest of values, 0 among them; no gradient passes."""
    values = ops.cast(ops.stop_gradient(values), "float32")
    return ops.minimum(ops.min(values), 0.0), ops.maximum(ops.max(values), 0.0)


@keras.saving.register_keras_serializable(package="keras_prune")
class FakeQuantize(StandIn, keras.layers.Layer):
    r"""Rounds a tensor to the 256 steps of a range, as an int8 file holds it.

    $\hat x = s (q - z)$ with $q$ from -128 to 127; scale $s$ and zero point $z$ follow from the range's ends.
    The gradient passes straight through within the range, and is 0 outside.

    Args:
        ranges: "moving": in training, the ends of the range are moving averages of each batch's smallest and largest
            value. "trained": they are weights, which the optimizer moves.
        momentum: of the moving averages.
        fixed: the two ends, of a range that never changes; None: one that does.
        **kwargs: what any Keras layer takes.

    Example:
        >>> layer = FakeQuantize(fixed=(0.0, 2.55))
        >>> [round(float(value), 3) for value in layer(keras.ops.convert_to_tensor([-1.0, 0.344, 5.0]))]
        [0.0, 0.34, 2.55]
    """

    def __init__(
        self,
        ranges: str = "moving",
        momentum: float = 0.99,
        fixed: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if ranges not in RANGES:
            raise ValueError(f"FakeQuantize: ranges must be one of {RANGES}. Received: {ranges!r}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"FakeQuantize: momentum must be a fraction in [0, 1). Received: {momentum}")
        if fixed is not None and not fixed[0] <= 0.0 <= fixed[1] != fixed[0]:
            raise ValueError(f"FakeQuantize: fixed must be the ends of a range that holds 0. Received: {fixed}")
        self.ranges, self.momentum = ranges, float(momentum)
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        self.supports_masking = True
        self.watch: Seen | None = None

    def build(self, input_shape: Any = None) -> None:
        """Make the ends of the range."""
        if self.fixed is not None:
            return
        for name, end in (("low", -6.0), ("high", 6.0)):
            variable = self.add_weight(
                name=name,
                shape=(),
                initializer=keras.initializers.Constant(end),
                dtype="float32",
                trainable=self.ranges == "trained",
                aggregation="mean",
            )
            setattr(self, name, variable)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the range."""
        return self.fixed if self.fixed is not None else (float(read(self.low)), float(read(self.high)))

    def set_range(self, low: float, high: float) -> None:
        """Set the ends of the range; they are moved apart to hold 0.

        Raises:
            ValueError: the range is fixed, or an end is not a finite number.
        """
        if self.fixed is not None or not np.isfinite([low, high]).all():
            raise ValueError(
                f"FakeQuantize {self.name!r}: a range has two finite ends, and none is fixed. "
                f"Received: {low}, {high}, and fixed={self.fixed}"
            )
        self.low.assign(min(low, 0.0))
        self.high.assign(max(high, min(low, 0.0) + NARROWEST, 0.0))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the values rounded; in training, move the range first."""
        if self.watch is not None:
            self.watch.add(inputs)
            return inputs
        if self.at_rest:
            return inputs
        if self.fixed is not None:
            return round_range(inputs, *self.fixed)
        if self.moves and training:
            return round_range(inputs, *self.move(*extremes(inputs)))
        if self.ranges == "moving":
            return round_range(inputs, self.low, self.high)
        # An optimizer knows nothing of 0, which has to be in the range.
        low = ops.minimum(self.low, 0.0)
        high = ops.maximum(self.high, low + NARROWEST)
        return round_range(inputs, low, ops.maximum(high, 0.0))

    @property
    def moves(self) -> bool:
        """Whether the ends of the range are moving averages."""
        return self.fixed is None and self.ranges == "moving"

    def move(self, smallest: Any, largest: Any) -> tuple[Any, Any]:
        """Move the ends of the range towards the extremes of a batch; return them."""
        low = self.low * self.momentum + smallest * (1.0 - self.momentum)
        high = self.high * self.momentum + largest * (1.0 - self.momentum)
        self.low.assign(low)
        self.high.assign(high)
        return low, high

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        own = {"ranges": self.ranges, "momentum": self.momentum, "fixed": self.fixed}
        return {**super().get_config(), **own}


class _RoundedKernels(ReplacedKernels):
    """The scope in which kernels read as int8 weights would."""

    def __init__(self, axes: dict[int, tuple[int, ...]], kernels: list[keras.Variable]) -> None:
        super().__init__(kernels)
        self.axes = axes

    def replaced(self, kernel: keras.Variable, value: Any) -> Any:
        return round_weights(value, self.axes[id(kernel)])


@contextlib.contextmanager
def rounded_kernels(layer: keras.Layer, add_loss: Callable[[Any], None]) -> Iterator[None]:
    """The scope in which the kernels that a layer holds itself read as rounded.

    Args:
        layer: built.
        add_loss: takes the losses that were added inside.
    """
    pairs = scaled_kernels(layer)
    scope = _RoundedKernels({id(kernel): axes for kernel, axes in pairs}, [kernel for kernel, _ in pairs])
    with scope:
        scope.replace_kernels()
        yield
    for loss in scope.pending:
        add_loss(loss)


class RoundedLayer(StandIn, Around):
    """Base of the wrappers that run a layer rounded, and leave it in their place.

    Args:
        layer: the layer to wrap; if it is built, its weights are kept.
        **kwargs: what any Keras layer takes; `dtype` is the wrapped layer's.

    Raises:
        ValueError: the layer is one that is not rounded so, with the reason.
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        if isinstance(layer, keras.Layer):
            reason = self.refusal(layer)
            if reason:
                raise ValueError(
                    f"{type(self).__name__}: {type(layer).__name__} {layer.name!r} cannot be wrapped: {reason}."
                )
        super().__init__(layer, **kwargs)

    @staticmethod
    @abc.abstractmethod
    def refusal(layer: keras.Layer) -> str:
        """Return why a layer is not rounded so; empty where it is."""

    @property
    def plain(self) -> keras.Layer:
        """The layer inside."""
        return self.layer


@keras.saving.register_keras_serializable(package="keras_prune")
class QuantizedKernels(RoundedLayer):
    """Runs a layer with its kernels rounded as an int8 file holds them: symmetrically, with one scale a channel.

    The kernels themselves stay as they are and learn by the gradient of the rounded ones. Zeros stay zero, and equal
    weights of a channel stay equal.

    Args:
        layer: the layer to wrap, one of Keras's own with a kernel; if it is built, its weights are kept.
        **kwargs: what any Keras layer takes; `dtype` is the wrapped layer's.

    Call arguments: those of the wrapped layer.

    Raises:
        ValueError: the layer has no kernel that is rounded so, with the reason.

    Example:
        >>> layer = QuantizedKernels(keras.layers.Dense(1, use_bias=False))
        >>> layer.build((None, 3))
        >>> layer.layer.set_weights([np.array([[1.27], [0.344], [0.0]])])
        >>> round(float(layer(np.ones((1, 3)))[0, 0]), 4)
        1.61
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        if layer.built:
            self.build()

    @staticmethod
    def refusal(layer: keras.Layer) -> str:
        """Return why a layer has no kernel that is rounded so; empty where it has."""
        return refusal_of(layer)

    def build_around(self) -> None:
        """Nothing: scales follow from the kernels."""

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """Return the scope in which the layer's kernels read as rounded."""
        return contextlib.nullcontext() if self.at_rest else rounded_kernels(self.layer, self.add_loss)
