"""`Gated(layer)`: a layer whose output channels are open or closed for each sample by what the layer is given."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl
from keras import ops

from keras_prune.layer_kinds import channel_axis, quantization_of
from keras_prune.layers.prunable import Prunable
from keras_prune.models.keras2 import refuse_keras2

__all__ = ["GATES", "GateHead", "Gated", "OpenedGates", "gated_layer"]

GATES = ("straight_through", "gumbel")
"""How a gate is drawn in training."""
KINDS = (
    kl.Dense,
    kl.Conv1D,
    kl.Conv2D,
    kl.Conv3D,
    kl.Conv1DTranspose,
    kl.Conv2DTranspose,
    kl.Conv3DTranspose,
    kl.DepthwiseConv1D,
    kl.DepthwiseConv2D,
    kl.SeparableConv1D,
    kl.SeparableConv2D,
)
"""Layers in which every output channel is computed by itself, at every position of the input."""
FOLLOWING = (kl.BatchNormalization, kl.Activation, kl.ReLU, kl.LeakyReLU, kl.ELU, kl.PReLU, kl.Dropout)
"""Layers that may stand behind one of these in a Sequential: they treat each channel by itself."""


class OpenedGates:
    """Takes the gates of every call of a layer while one of these is its `watch`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []


class GateHead(keras.layers.Layer):
    """Logits of gates: the mean of the input over its positions, a hidden layer with relu, a logit for each channel.

    Args:
        channels_first: whether the input's channels lie behind the batch; otherwise they are its last axis.
        hidden: units of the hidden layer; None: a quarter of the input's channels, at least 8.
        **kwargs: what any Keras layer takes.
    """

    def __init__(self, channels_first: bool, hidden: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels_first, self.hidden = channels_first, hidden

    def build_for(self, inputs: int, channels: int) -> None:
        """Make the weights; gates begin open."""
        units = max(8, inputs // 4) if self.hidden is None else self.hidden
        self.hidden_kernel = self.add_weight(name="hidden_kernel", shape=(inputs, units), initializer="he_normal")
        self.hidden_bias = self.add_weight(name="hidden_bias", shape=(units,), initializer="zeros")
        self.logit_kernel = self.add_weight(name="logit_kernel", shape=(units, channels))
        self.logit_bias = self.add_weight(name="logit_bias", shape=(channels,), initializer="ones")
        self.built = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Return logits, `[batch, channels]`."""
        x = ops.cast(inputs, self.compute_dtype)
        positions = tuple(range(2, len(x.shape))) if self.channels_first else tuple(range(1, len(x.shape) - 1))
        if mask is not None and len(mask.shape) == len(x.shape) - 1 > 1:
            there = ops.expand_dims(ops.cast(mask, x.dtype), -1)
            x = ops.sum(x * there, positions) / ops.maximum(ops.sum(there, positions), 1)
        elif positions:
            x = ops.mean(x, positions)
        hidden = ops.relu(ops.matmul(x, self.hidden_kernel) + self.hidden_bias)
        return ops.matmul(hidden, self.logit_kernel) + self.logit_bias

    def prunable_weights(self) -> list[keras.Variable]:
        """Return none: zeros here would save next to nothing, and change which channels are open."""
        return []


@keras.saving.register_keras_serializable(package="keras_prune")
class Gated(keras.layers.Wrapper):
    r"""Runs a layer and multiplies each output channel by a gate of 0 or 1, for each sample by what the layer is given.

    A small head computes the logits of the gates: the mean $\bar x$ of the input over its positions, a hidden layer,
    and a logit for each output channel, $z = W_2\, relu(W_1 \bar x + b_1) + b_2$. With $\sigma$ the sigmoid:

    - at inference $g_c = 1$ where $z_c > 0$, else 0; always the same for the same input;
    - in training with "straight_through" the same 0 or 1, and the gradient of $\sigma(z_c / T)$;
    - in training with "gumbel" 1 where $\sigma((z_c + l) / T) > 1/2$, else 0, and the gradient of that sigmoid; $l$ is
      drawn from the logistic distribution, which the difference of two Gumbel variables has.

    The layer adds $\lambda (\bar g - s)^2$ to the loss, where $\bar g$ is the mean of the gates over batch and channels
    and $s$ is `share`. All output channels of a layer cost the same multiplications, so $\bar g$ is also the share of
    them that is needed (of a separable layer: of those with the pointwise kernel).

    Only the multiplication is done here: the layer computes all channels, closed ones too. `keras_prune.gate_report`
    says how many channels data opens, and which are never open.

    Args:
        layer: a Dense, convolutional, transposed, depthwise or separable layer, plain or in a `Prunable`; or a
            `keras.Sequential` of one and of what treats its channels one by one: a batch normalization, activations,
            dropout. The gates are behind them then. It keeps the weights that it has.
        share: of the channels, in (0, 1], that a sample is to open on average.
        gate: how gates are made in training: "straight_through" or "gumbel".
        strength: $\lambda$, 0 or more; 0: the gates follow the model's loss alone.
        hidden: units of the head's hidden layer; None: a quarter of the input's channels, at least 8.
        temperature: $T$, above 0: the smaller, the fewer gates are moved by a step.
        seed: of the draws, an integer; None: one is drawn, as Keras does.
        **kwargs: what any Keras layer takes; `dtype` is the wrapped layer's. The head computes in the type of the
            weights, in float32 under a mixed policy.

    Call arguments: `inputs` of the layer, `training`, and `mask`, which leaves positions out of the mean.

    Raises:
        TypeError: `layer` is no Keras layer.
        ValueError: an argument is out of its range, or a layer of this kind cannot be gated, with the reason.

    Source: Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons; Bejnordi et al. 2020,
    Batch-Shaping for Learning Conditional Channel Gated Networks, section 3.

    Example:
        >>> layer = Gated(keras.layers.Dense(2, use_bias=False, kernel_initializer="ones"), hidden=1)
        >>> layer.build((None, 3))
        >>> weights = [[[1.0], [0.0], [0.0]], [0.0], [[1.0, -1.0]], [-2.0, 2.0]]
        >>> for weight, value in zip(layer.head.weights, weights, strict=True):
        ...     _ = weight.assign(value)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.array([[1.0, 0, 0], [3.0, 0, 0]]))).tolist()
        [[0.0, 1.0], [3.0, 0.0]]
    """

    def __init__(
        self,
        layer: keras.Layer,
        share: float = 0.5,
        gate: str = "straight_through",
        strength: float = 1.0,
        hidden: int | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_keras2("Gated", layer)
        _check(layer, share, gate, strength, hidden, temperature)
        kwargs.setdefault("dtype", _first(layer).dtype_policy)
        super().__init__(layer, **kwargs)
        self.share, self.gate, self.strength = float(share), gate, float(strength)
        self.hidden, self.temperature, self.seed = hidden, float(temperature), seed
        self.supports_masking = layer.supports_masking
        self.head = GateHead(self._axis == 1, hidden, name="head", dtype=self.variable_dtype)
        if gate == "gumbel":
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.watch: OpenedGates | None = None

    @property
    def _axis(self) -> int:
        return channel_axis(gated_layer(self))[0]

    def build(self, input_shape: Any) -> None:
        """Build the layer, if it is not built, and the head."""
        super().build(input_shape)
        if not self.head.built:
            channels = self.layer.compute_output_shape(input_shape)[self._axis]
            self.head.build_for(input_shape[self._axis], channels)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the layer's outputs with the closed channels at 0; add to the loss."""
        outputs = self.layer(inputs)
        gates = self._gates(inputs, bool(training), mask)
        if self.watch is not None:
            self.watch.calls.append(gates)
        if self.strength:
            self.add_loss(self.strength * ops.square(ops.mean(gates) - self.share))
        ones = [1] * (len(outputs.shape) - 2)
        shape = (-1, gates.shape[-1], *ones) if self._axis == 1 else (-1, *ones, gates.shape[-1])
        return outputs * ops.reshape(ops.cast(gates, outputs.dtype), shape)

    def gates(self, inputs: Any, mask: Any = None) -> Any:
        """Return the gates at inference, of 0 and 1: `[batch, channels]`.

        Args:
            inputs: as for a call.
            mask: as for a call.
        """
        return self._gates(ops.convert_to_tensor(inputs), False, mask)

    def _gates(self, inputs: Any, training: bool, mask: Any) -> Any:
        logits = self.head(inputs, mask=mask)
        if training and self.gate == "gumbel":
            # Away from 0 and 1, where the logarithms end.
            drawn = keras.random.uniform(ops.shape(logits), 1e-6, 1 - 1e-6, logits.dtype, self.seed_generator)
            logits = logits + ops.log(drawn) - ops.log1p(-drawn)
        opened = ops.cast(logits > 0, logits.dtype)
        if not training:
            return opened
        soft = ops.sigmoid(logits / self.temperature)
        return soft + ops.stop_gradient(opened - soft)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return what the layer's own method does."""
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's own method does."""
        return self.layer.compute_mask(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        names = ("share", "gate", "strength", "hidden", "temperature", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def gated_layer(gated: Gated) -> Any:
    """Return the layer whose channels are gated, out of its `Sequential` and `Prunable`."""
    return _unmasked(_first(gated.layer))


def _first(layer: Any) -> Any:
    return layer.layers[0] if type(layer) is keras.Sequential and layer.layers else layer


def _unmasked(layer: Any) -> Any:
    return layer.layer if isinstance(layer, Prunable) else layer


def _check(layer: Any, share: float, gate: str, strength: float, hidden: int | None, temperature: float) -> None:
    if not isinstance(layer, keras.Layer):
        raise TypeError(f"Gated wraps a Keras layer. Received: {layer!r} of type {type(layer).__name__}")
    inner = _unmasked(_first(layer))
    if not isinstance(inner, KINDS):
        raise ValueError(
            "Gated wraps a layer in which every output channel has weights of its own and is computed at every "
            f"position: {', '.join(kind.__name__ for kind in KINDS)}. Received: {type(inner).__name__} {inner.name!r}. "
            "Put the wrapper around the layers inside it."
        )
    following = layer.layers[1:] if type(layer) is keras.Sequential else []
    for other in following:
        _check_following(inner, other)
    for one in (inner, *following):
        if getattr(one, "activation", None) in (keras.activations.softmax, keras.activations.log_softmax):
            raise ValueError(f"Gated: {one.name!r} normalises over the channels. Put that behind the wrapper.")
    if quantization_of(inner) is not None:
        raise ValueError(f"Gated: {type(inner).__name__} {inner.name!r} is quantized ({quantization_of(inner)}).")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"Gated: share must be a fraction in (0, 1]. Received: {share}")
    if gate not in GATES:
        raise ValueError(f"Gated: gate must be one of {GATES}. Received: {gate!r}")
    if not strength >= 0.0:
        raise ValueError(f"Gated: strength must be 0 or more. Received: {strength}")
    if hidden is not None and (not isinstance(hidden, int) or hidden < 1):
        raise ValueError(f"Gated: hidden must be a number of units, 1 or more, or None. Received: {hidden!r}")
    if not temperature > 0.0:
        raise ValueError(f"Gated: temperature must be above 0. Received: {temperature}")


def _check_following(inner: Any, layer: Any) -> None:
    """Refuse a layer behind the one with the kernel that does not treat each channel by itself."""
    axis = channel_axis(inner)[0]
    rank = len(getattr(inner, "kernel_size", ())) + 2  # of what a convolution gives
    channels = (axis, rank - 1) if axis == -1 and rank > 2 else (axis,)
    if not isinstance(layer, FOLLOWING) or getattr(layer, "axis", axis) not in channels:
        raise ValueError(
            f"Gated: behind {inner.name!r} a Sequential may have what treats each channel by itself: "
            f"{', '.join(kind.__name__ for kind in FOLLOWING)}, normalisations along axis {axis}. "
            f"Received: {type(layer).__name__} {layer.name!r}. Put it behind the wrapper."
        )
