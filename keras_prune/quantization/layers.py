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
SHARE_OF_WIDEST = 1 / 256
"""The least width of the range of a step, as a share of the widest: what is finer is lost where the two are added."""


class Seen:
    """The extremes of values that a layer was given, 0 among them.

    Args:
        steps: how many steps have extremes of their own; None: there are no steps.
    """

    def __init__(self, steps: int | None = None) -> None:
        self.low, self.high = np.zeros(_shape(steps)), np.zeros(_shape(steps))

    def add(self, values: Any, step: int | None) -> None:
        """Take a batch of values into account, those of a step."""
        at = () if step is None else step
        self.low[at] = min(self.low[at], float(ops.min(values)))
        self.high[at] = max(self.high[at], float(ops.max(values)))


def _shape(steps: int | None) -> tuple[int, ...]:
    return () if steps is None else (steps,)


def _held_apart(low: Any, high: Any) -> tuple[Any, Any]:
    """Return the ends of ranges, moved apart where they do not hold 0 or are too near."""
    low, high = ops.minimum(low, 0.0), ops.maximum(high, 0.0)
    width = ops.maximum(SHARE_OF_WIDEST * (ops.max(high) - ops.min(low)), NARROWEST)
    return low, ops.maximum(high, low + width)


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
        steps: how many ranges there are, one for each step of a sequence, whose last one later steps have too; None:
            one for all values.
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
        steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if ranges not in RANGES:
            raise ValueError(f"FakeQuantize: ranges must be one of {RANGES}. Received: {ranges!r}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"FakeQuantize: momentum must be a fraction in [0, 1). Received: {momentum}")
        if fixed is not None and not fixed[0] <= 0.0 <= fixed[1] != fixed[0]:
            raise ValueError(f"FakeQuantize: fixed must be the ends of a range that holds 0. Received: {fixed}")
        if steps is not None and (steps < 1 or fixed is not None):
            raise ValueError(
                "FakeQuantize: steps must be 1 or more, each with a range that is not fixed. "
                f"Received: steps={steps}, fixed={fixed}"
            )
        self.ranges, self.momentum = ranges, float(momentum)
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        self.steps = steps
        self.supports_masking = True
        self.watch: Seen | None = None

    def build(self, input_shape: Any = None) -> None:
        """Make the ends of the range."""
        if self.fixed is not None:
            return
        for name, end in (("low", -6.0), ("high", 6.0)):
            variable = self.add_weight(
                name=name,
                shape=_shape(self.steps),
                initializer=keras.initializers.Constant(end),
                dtype="float32",
                trainable=self.ranges == "trained",
                aggregation="mean",
            )
            setattr(self, name, variable)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the range, of several the outermost."""
        return self.fixed if self.fixed is not None else (float(read(self.low).min()), float(read(self.high).max()))

    @property
    def ends_by_step(self) -> tuple[tuple[float, float], ...]:
        """The ends of the range of each step; none where there is one range."""
        if self.steps is None:
            return ()
        return tuple(zip(read(self.low).tolist(), read(self.high).tolist(), strict=True))

    def set_range(self, low: Any, high: Any) -> None:
        """Set the ends of the range, or of all ranges: scalars, or `[steps]`; they are moved apart to hold 0.

        Raises:
            ValueError: the range is fixed, or an end is not a finite number.
        """
        if self.fixed is not None or not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(
                f"FakeQuantize {self.name!r}: a range has two finite ends, and none is fixed. "
                f"Received: {low}, {high}, and fixed={self.fixed}"
            )
        shape = _shape(self.steps)
        low, high = _held_apart(*(np.broadcast_to(np.asarray(end, "float32"), shape) for end in (low, high)))
        self.low.assign(low)
        self.high.assign(high)

    def call(self, inputs: Any, training: bool | None = None, step: int = 0) -> Any:
        """Return the values rounded; in training, move the range first, where there is one.

        Args:
            inputs: any shape.
            training: whether the range moves.
            step: whose range it is, where each has one.
        """
        at = self.place_of(step)
        if self.watch is not None:
            self.watch.add(inputs, at)
            return inputs
        if self.at_rest:
            return inputs
        if self.fixed is not None:
            return round_range(inputs, *self.fixed)
        if self.moves and training and at is None:
            return round_range(inputs, *self.move(*extremes(inputs)))
        low, high = self.low, self.high
        if self.ranges == "trained":  # an optimizer knows nothing of 0, which has to be in the range
            low, high = _held_apart(low, high)
        return round_range(inputs, *((low, high) if at is None else (low[at], high[at])))

    def place_of(self, step: int) -> int | None:
        """Return which of the ranges is a step's; None where there is one range."""
        return None if self.steps is None else min(step, self.steps - 1)

    @property
    def moves(self) -> bool:
        """Whether the ends of the range are moving averages."""
        return self.fixed is None and self.ranges == "moving"

    def move(self, smallest: Any, largest: Any) -> tuple[Any, Any]:
        """Move the ends of the range, or of all ranges, towards the extremes of a batch; return them."""
        low, high = _held_apart(
            self.low * self.momentum + smallest * (1.0 - self.momentum),
            self.high * self.momentum + largest * (1.0 - self.momentum),
        )
        self.low.assign(low)
        self.high.assign(high)
        return low, high

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        own = {"ranges": self.ranges, "momentum": self.momentum, "fixed": self.fixed, "steps": self.steps}
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
